//! What can go wrong.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has the wrong size, or holds a value outside its range.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// What it should have been.
        expected: String,
        /// What it was.
        got: String,
    },
    /// A configuration contradicts itself.
    #[error("{what}: {reason}")]
    Config {
        /// The field, or the fields.
        what: &'static str,
        /// The contradiction.
        reason: String,
    },
    /// A combination of options that is not offered.
    #[error("not supported: {what}")]
    Unsupported {
        /// The combination.
        what: String,
    },
    /// What the GPU, or what stands in for it, refused or reported.
    #[cfg(feature = "gpu")]
    #[error(transparent)]
    Gpu(#[from] v3_gpu::Error),
    /// Ranks could not exchange something: another rank failed, or they disagree.
    #[error(transparent)]
    Ranks(#[from] v3_ranks::Error),
}
