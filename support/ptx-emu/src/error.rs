//! The errors of this crate.

/// A PTX text that is malformed, or that uses what the parser does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: u32,
    /// Column in bytes, counted from 1; at most one past the last byte of the line.
    pub column: u32,
    /// What was found and what was expected instead.
    pub message: String,
}
