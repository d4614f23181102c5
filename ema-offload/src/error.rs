//! What can go wrong.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
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
    /// A configuration that makes no sense.
    #[error("{what}: expected {expected}, got {got}")]
    Config {
        /// The field.
        what: &'static str,
        /// What it should have been.
        expected: &'static str,
        /// What it was.
        got: String,
    },
    /// Steps must rise from one submission to the next.
    #[error("step {got} was submitted after step {last}")]
    StepOrder {
        /// The last step submitted, or saved in the state that was restored.
        last: u64,
        /// The step submitted now.
        got: u64,
    },
    /// The averages are swapped into the model: swap them out first.
    #[error("the averages are swapped into the model")]
    Swapped,
    /// The averages are not swapped in.
    #[error("the averages are not swapped into the model")]
    NotSwapped,
    /// The worker thread panicked; the averages are lost.
    #[error("the averaging thread failed: {message}")]
    Worker {
        /// What it said.
        message: String,
    },
    /// The worker thread could not be started.
    #[error("cannot start the averaging thread: {message}")]
    Thread {
        /// The system's reason.
        message: String,
    },
    /// A saved state could not be read or written.
    #[error("state of the averages: {0}")]
    Io(#[from] std::io::Error),
    /// What was read is not a saved state, or a damaged one.
    #[error("state of the averages: expected {expected}, got {got}")]
    Format {
        /// What it should have been.
        expected: String,
        /// What it was.
        got: String,
    },
}
