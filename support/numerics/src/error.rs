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
    /// An index, such as a token id, lies outside what it indexes.
    #[error("{what}: {index} is out of range, there are {len}")]
    Index {
        /// The list that holds the index.
        what: &'static str,
        /// The offending value.
        index: usize,
        /// The number of entries there are.
        len: usize,
    },
    /// A parameter has a value that the operation is not defined for.
    #[error("{what}: expected {expected}, got {got}")]
    Parameter {
        /// The parameter.
        what: &'static str,
        /// The values allowed.
        expected: &'static str,
        /// The value found.
        got: String,
    },
    /// This processor cannot run what was asked for.
    #[error("{what} is not supported by this processor")]
    Unsupported {
        /// The name of the instruction set.
        what: &'static str,
    },
}

/// `Ok` when `got == expected`, a shape error otherwise.
pub(crate) fn check_len(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Shape { what, expected: format!("length {expected}"), got: format!("length {got}") })
    }
}

/// `Ok` when the two shapes are equal, a shape error otherwise.
pub(crate) fn check_shape(what: &'static str, expected: (usize, usize), got: (usize, usize)) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Shape { what, expected: format!("[{}, {}]", expected.0, expected.1), got: format!("[{}, {}]", got.0, got.1) })
    }
}

/// The number of rows of length `d` in a buffer of `len` values, or a shape error.
pub(crate) fn rows_of(what: &'static str, len: usize, d: usize) -> Result<usize> {
    if d == 0 {
        return if len == 0 {
            Ok(0)
        } else {
            Err(Error::Shape { what, expected: "no values, as a row has none".into(), got: format!("length {len}") })
        };
    }
    if len.is_multiple_of(d) {
        Ok(len / d)
    } else {
        Err(Error::Shape { what, expected: format!("a multiple of {d} values"), got: format!("length {len}") })
    }
}
