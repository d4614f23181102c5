//! What can go wrong.

use crate::Backend;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong. The same mistakes give the same variants on every back end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no device: no driver, or none of this number.
    #[error("no {backend} device: {reason}")]
    NoDevice {
        /// Which back end was asked.
        backend: Backend,
        /// Why.
        reason: String,
    },
    /// The back end was not compiled in, or does not have what was asked for.
    #[error("unsupported: {what}")]
    Unsupported {
        /// What.
        what: String,
    },
    /// A length or a size does not fit.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// Of what.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// There is not enough device memory.
    #[error("out of memory: {bytes} bytes")]
    OutOfMemory {
        /// What was asked for.
        bytes: u64,
    },
    /// A kernel got a null pointer, or a pointer into memory that is not allocated (any more).
    #[error("argument {index}: address {address:#x} is in no live allocation of this context")]
    DeadPointer {
        /// Which argument of the launch.
        index: usize,
        /// The address.
        address: u64,
    },
    /// The module has no such kernel or variable.
    #[error("the module has no {what} named {name}")]
    NotFound {
        /// Kernel or variable.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A module that cannot be loaded.
    #[error("the module cannot be loaded: {message}")]
    Module {
        /// What is wrong with it.
        message: String,
    },
    /// A launch whose shape or arguments do not fit the kernel or the device. Nothing was queued.
    #[error("launch of {kernel}: {message}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What does not fit.
        message: String,
    },
    /// A tensor map that the hardware could not use.
    #[error("tensor map: {message}")]
    TensorMap {
        /// Which rule it breaks.
        message: String,
    },
    /// A kernel went wrong. The context does not recover.
    #[error("a kernel failed: {report}")]
    Kernel {
        /// What the back end says: the emulator's report, or the driver's error.
        report: String,
    },
    /// Memory, streams or modules of one context were given to another.
    #[error("{what} belongs to another device")]
    WrongDevice {
        /// What.
        what: &'static str,
    },
    /// Another error of the driver.
    #[error("{call}: {message}")]
    Driver {
        /// The call.
        call: &'static str,
        /// Its error.
        message: String,
    },
}
