//! The same on GPUs: kernels/ over `v3-gpu`.
//!
//! Two back ends execute them, and nothing here knows which: an NVIDIA GPU (`cuda`, with this crate's feature of that name), or `emulator`, which runs
//! the same PTX on the CPU and is what this crate's tests use. [`v3_gpu::Device::backend`] says which one a device is.
//!
//! [`exchange`]: dispatch and combine between devices.

/// A kernel's text: what build.rs compiled, or what is checked in.
macro_rules! ptx {
    ($name:literal) => {{
        #[cfg(compiled_kernels)]
        let text = include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx"));
        #[cfg(not(compiled_kernels))]
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/ptx/", $name, ".ptx"));
        text
    }};
}

mod arch;
pub mod exchange;

pub use arch::Arch;
