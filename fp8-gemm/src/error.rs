//! What can go wrong.

/// The result of every fallible function of this crate.
pub type Result<T> = core::result::Result<T, Error>;

/// Why an operation refused its arguments. Nothing has been written when an operation returns one of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand does not have the shape or the length that the others imply.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The operand.
        what: &'static str,
        /// The shape it should have.
        expected: String,
        /// The shape it has.
        got: String,
    },
    /// Operands whose precisions, scale blocks or kinds cannot be combined.
    #[error("{what}: expected {expected}, got {got}")]
    Unsupported {
        /// The operand.
        what: &'static str,
        /// What is supported.
        expected: &'static str,
        /// What was given.
        got: String,
    },
    /// A scale that its encoding cannot hold.
    #[error("scale {index} is {value}, not a power of two that UE8M0 can hold")]
    Scale {
        /// The position of the scale.
        index: usize,
        /// Its value.
        value: String,
    },
    /// A name that is none of the listed ones.
    #[error("{what}: expected {expected}, got {got:?}")]
    Name {
        /// What is being named.
        what: &'static str,
        /// The names there are.
        expected: &'static str,
        /// The name found.
        got: String,
    },
    /// What the GPU, or what stands in for it, refused or reported.
    #[cfg(feature = "gpu")]
    #[error(transparent)]
    Gpu(#[from] v3_gpu::Error),
    /// What the f32 routines underneath refused.
    #[error(transparent)]
    Numerics(#[from] v3_numerics::Error),
}

pub(crate) fn check_shape(what: &'static str, expected: (usize, usize), got: (usize, usize)) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Shape { what, expected: format!("[{}, {}]", expected.0, expected.1), got: format!("[{}, {}]", got.0, got.1) })
    }
}

pub(crate) fn check_len(what: &'static str, expected: Option<usize>, got: usize) -> Result<()> {
    match expected {
        Some(expected) if expected == got => Ok(()),
        Some(expected) => Err(Error::Shape { what, expected: format!("length {expected}"), got: format!("length {got}") }),
        None => Err(Error::Shape { what, expected: "a shape that fits in memory".into(), got: format!("length {got}") }),
    }
}

/// Group offsets: one more than there are groups, ascending from 0 to the number of rows.
pub(crate) fn check_offsets(offsets: &[usize], groups: usize, rows: usize) -> Result<()> {
    if offsets.len() == groups + 1 && offsets[0] == 0 && offsets[groups] == rows && offsets.is_sorted() {
        Ok(())
    } else {
        Err(Error::Shape {
            what: "group offsets",
            expected: format!("{} values ascending from 0 to {rows}", groups + 1),
            got: format!("{offsets:?}"),
        })
    }
}
