//! The one error of this crate. Each message is one sentence that names the file, the tensor, the field or the option, what was
//! expected there, and what was found.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong between a command line and a finished run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, in the infinitive: `read`, `create`, `write`.
        action: &'static str,
        /// The file or directory it was attempted on.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file does not hold what its format promises.
    #[error("{}: expected {expected}, found {found}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should have been there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// A tensor is absent, or has the wrong type, shape or place.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file or the checkpoint directory.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What should have been there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// A field of a model configuration is absent, malformed, unsupported, or contradicts another.
    #[error("{}: {field}: expected {expected}, found {found}", path.as_deref().unwrap_or(Path::new("model configuration")).display())]
    Config {
        /// The file it was read from, if it was read from one.
        path: Option<PathBuf>,
        /// Name of the field as published.
        field: String,
        /// What should have been there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// A command-line option (or the argument of a library call that it stands for) cannot be taken.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The option, as typed: `--micro-batches`.
        option: String,
        /// What could have been taken.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Training produced a number that is not finite.
    #[error("step {step}: expected a finite {what}, found {value}; {kept}")]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// What is not finite: `loss`, `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What remains: `the checkpoint of step 40 in runs/a/checkpoint is kept`.
        kept: String,
    },
    /// One of the pieces refused its input.
    #[error("{piece}: {message}")]
    Piece {
        /// Name of the crate.
        piece: &'static str,
        /// Its message.
        message: String,
    },
}

impl Error {
    /// An [`Error::Io`]; made for `map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// An [`Error::File`].
    pub fn file(path: impl Into<PathBuf>, expected: impl Display, found: impl Display) -> Error {
        Error::File { path: path.into(), expected: expected.to_string(), found: found.to_string() }
    }

    /// An [`Error::Tensor`].
    pub fn tensor(path: impl Into<PathBuf>, tensor: impl Display, expected: impl Display, found: impl Display) -> Error {
        Error::Tensor { path: path.into(), tensor: tensor.to_string(), expected: expected.to_string(), found: found.to_string() }
    }

    /// An [`Error::Config`] without a file.
    pub fn config(field: impl Display, expected: impl Display, found: impl Display) -> Error {
        Error::Config { path: None, field: field.to_string(), expected: expected.to_string(), found: found.to_string() }
    }

    /// An [`Error::Option`].
    pub fn option(option: impl Display, expected: impl Display, found: impl Display) -> Error {
        let found = match found.to_string() {
            empty if empty.is_empty() => "nothing".into(),
            found => found,
        };
        Error::Option { option: option.to_string(), expected: expected.to_string(), found }
    }

    /// An [`Error::Piece`]; made for `map_err(Error::piece("mla-kernels"))`.
    pub fn piece<E: Display>(piece: &'static str) -> impl FnOnce(E) -> Error {
        move |error| Error::Piece { piece, message: error.to_string() }
    }

    /// The same error, naming `path` if it is a configuration error that names no file yet.
    pub fn in_file(self, path: &Path) -> Error {
        match self {
            Error::Config { path: None, field, expected, found } => {
                Error::Config { path: Some(path.to_owned()), field, expected, found }
            }
            other => other,
        }
    }

    /// The message with every line break replaced, so that it is one line whatever a file name or a value contains.
    pub fn one_line(&self) -> String {
        self.to_string().replace(['\n', '\r'], " ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line() {
        let error = Error::file("a\nb", "x", "y").in_file(Path::new("c"));
        assert_eq!(error.one_line(), "a b: expected x, found y");
        let error = Error::config("q_lora_rank", "a positive integer", -1);
        assert_eq!(error.to_string(), "model configuration: q_lora_rank: expected a positive integer, found -1");
        let error = error.in_file(Path::new("m/config.json")).in_file(Path::new("other"));
        assert_eq!(error.to_string(), "m/config.json: q_lora_rank: expected a positive integer, found -1");
    }
}
