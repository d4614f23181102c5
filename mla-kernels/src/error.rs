//! The errors of this crate.

/// Everything a caller can get wrong. Nothing has been written to an output or to a cache when one is returned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer does not have the size that the shapes ask for.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The operand.
        what: &'static str,
        /// The size or relation it must have.
        expected: String,
        /// What it has.
        got: String,
    },
    /// A parameter is outside of its range.
    #[error("{what} must be {expected}, got {got}")]
    Parameter {
        /// The parameter.
        what: &'static str,
        /// Its range.
        expected: &'static str,
        /// Its value.
        got: String,
    },
    /// Something that this build or processor cannot do.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be done.
        reason: String,
    },
    /// A sequence id that the cache never gave out, or whose sequence was freed.
    #[error("sequence {index} (generation {generation}) is not in this cache")]
    UnknownSequence {
        /// The slot of the id.
        index: u32,
        /// The generation of the id.
        generation: u32,
    },
    /// The page pool of the cache cannot hold what was asked for. The cache is as it was before.
    #[error("the cache needs {needed} more pages and has {free} free")]
    OutOfPages {
        /// Pages that the operation needs.
        needed: usize,
        /// Pages that are free.
        free: usize,
    },
    /// A sequence is shorter than the length asked for.
    #[error("{what}: the sequence holds {len} tokens, {requested} were asked for")]
    TooLong {
        /// The operation.
        what: &'static str,
        /// The length asked for.
        requested: usize,
        /// The length of the sequence.
        len: usize,
    },
    /// A matrix operation refused its operands.
    #[error(transparent)]
    Numerics(#[from] v3_numerics::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The product of `dims`, or an error naming `what` when it does not fit a `usize`.
pub(crate) fn product(what: &'static str, dims: &[usize]) -> Result<usize> {
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(|| Error::Shape {
        what,
        expected: "a size that fits the address space".into(),
        got: format!("{dims:?}"),
    })
}

/// Checks that a buffer of `len` values holds exactly `dims`.
pub(crate) fn check_len(what: &'static str, len: usize, dims: &[usize]) -> Result<()> {
    if product(what, dims)? == len {
        Ok(())
    } else {
        Err(Error::Shape { what, expected: format!("{dims:?}"), got: format!("{len} values") })
    }
}
