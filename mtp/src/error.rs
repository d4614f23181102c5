//! The crate's error type.

/// What a caller can get wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice or a matrix has the wrong size.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument at fault.
        what: &'static str,
        /// The size it should have had.
        expected: String,
        /// The size it had.
        got: String,
    },
    /// A token id or a target is not in the vocabulary.
    #[error("{what}[{index}] is {value}, outside the vocabulary of {vocab}")]
    Token {
        /// The argument at fault.
        what: &'static str,
        /// Where in it.
        index: usize,
        /// The value found.
        value: i64,
        /// The size of the vocabulary.
        vocab: usize,
    },
    /// A parameter is out of its range.
    #[error("{what}: expected {expected}, got {got}")]
    Parameter {
        /// The parameter at fault.
        what: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value found.
        got: String,
    },
    /// A row of numbers is no probability distribution, or a token was drawn that its distribution excludes.
    #[error("{what}, position {position}: {reason}")]
    Distribution {
        /// The argument at fault.
        what: &'static str,
        /// The row of it.
        position: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An error of the numeric layer below.
    #[error(transparent)]
    Numerics(#[from] v3_numerics::Error),
}

/// The crate's result type.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn check_len(what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Shape { what, expected: format!("{expected} values"), got: format!("{got}") })
}

/// `rows * columns`, refusing what does not fit in memory.
pub(crate) fn area(what: &'static str, rows: usize, columns: usize) -> Result<usize> {
    rows.checked_mul(columns).ok_or_else(|| Error::Shape {
        what,
        expected: "a size that fits in memory".into(),
        got: format!("{rows} x {columns}"),
    })
}
