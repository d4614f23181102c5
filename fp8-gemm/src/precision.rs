//! The precision of a linear layer's products.

use crate::error::Error;

/// In which format the operands of a product are. Sums are f32 in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Operands as they are.
    F32,
    /// Operands rounded to bf16, nearest even.
    #[default]
    Bf16,
    /// Operands quantised to E4M3 with block scales.
    Fp8,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Fp8];

    /// `f32`, `bf16` or `fp8`.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Fp8 => "fp8",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|p| p.name() == s).ok_or_else(|| Error::Name {
            what: "precision",
            expected: "f32, bf16 or fp8",
            got: s.to_string(),
        })
    }
}
