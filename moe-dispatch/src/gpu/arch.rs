//! Which text of the kernels a device runs.

use std::fmt;

use crate::error::{Error, Result};

/// Which text of the kernels a device runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Arch {
    /// Compute capability 8.0 and later.
    Sm80,
    /// Compute capability 9.0 (Hopper).
    Sm90a,
}

impl Arch {
    /// The best that a device of this compute capability runs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] before 8.0.
    pub fn of(compute_capability: (u32, u32)) -> Result<Arch> {
        match compute_capability {
            // Texts for `sm_90a` are for that capability alone.
            (9, 0) => Ok(Arch::Sm90a),
            (8.., _) => Ok(Arch::Sm80),
            (major, minor) => Err(Error::Unsupported {
                what: format!("a GPU of compute capability {major}.{minor}: the kernels want 8.0 or later"),
            }),
        }
    }

    /// Whether a device of this compute capability runs it.
    pub fn runs_on(self, compute_capability: (u32, u32)) -> bool {
        match self {
            Arch::Sm80 => compute_capability >= (8, 0),
            Arch::Sm90a => compute_capability == (9, 0),
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
        })
    }
}
