//! What can stand on either side of a product, and where its result can go.

use crate::error::{Error, Result};
use crate::scaled::{BlockScaled, BlockScaledRef, ScalePolicy};
use v3_numerics::bf16;
use v3_numerics::view::{MatMut, MatRef};

/// A matrix in one of the precisions. Views are cheap to copy and to transpose.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Operand<'a> {
    /// f32 values.
    F32(MatRef<'a, f32>),
    /// bf16 values.
    Bf16(MatRef<'a, bf16>),
    /// f32 values that are rounded to bf16, nearest even, as they are read: a bf16 operand without a copy.
    RoundedToBf16(MatRef<'a, f32>),
    /// E4M3 codes with block scales. Along the direction that is summed over, scales must change every 128 only: a left
    /// operand has 1x128 or 128x128 blocks, a right operand 128x1 (a transposed 1x128) or 128x128.
    Fp8(BlockScaledRef<'a>),
    /// f32 values that are quantised 1x128 as they are read: the same bits as [`crate::quantize::quantize_1x128`] first. Left operands only.
    QuantizedRows(MatRef<'a, f32>, ScalePolicy),
}

impl<'a> Operand<'a> {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Operand::F32(x) | Operand::RoundedToBf16(x) | Operand::QuantizedRows(x, _) => x.rows(),
            Operand::Bf16(x) => x.rows(),
            Operand::Fp8(x) => x.rows(),
        }
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        match self {
            Operand::F32(x) | Operand::RoundedToBf16(x) | Operand::QuantizedRows(x, _) => x.cols(),
            Operand::Bf16(x) => x.cols(),
            Operand::Fp8(x) => x.cols(),
        }
    }

    /// The transpose. What is quantised along its rows as it is read has none.
    pub fn t(self) -> Result<Self> {
        match self {
            Operand::F32(x) => Ok(Operand::F32(x.t())),
            Operand::Bf16(x) => Ok(Operand::Bf16(x.t())),
            Operand::RoundedToBf16(x) => Ok(Operand::RoundedToBf16(x.t())),
            Operand::Fp8(x) => Ok(Operand::Fp8(x.t())),
            Operand::QuantizedRows(..) => Err(Error::Unsupported {
                what: "transpose",
                expected: "an operand that is not quantised along its rows as it is read",
                got: self.kind().into(),
            }),
        }
    }

    /// The rows of `range`, as [`MatRef::row_range`] and [`BlockScaledRef::row_range`].
    pub fn row_range(self, range: std::ops::Range<usize>) -> Result<Self> {
        Ok(match self {
            Operand::F32(x) => Operand::F32(x.row_range(range)?),
            Operand::Bf16(x) => Operand::Bf16(x.row_range(range)?),
            Operand::RoundedToBf16(x) => Operand::RoundedToBf16(x.row_range(range)?),
            Operand::Fp8(x) => Operand::Fp8(x.row_range(range)?),
            Operand::QuantizedRows(x, policy) => Operand::QuantizedRows(x.row_range(range)?, policy),
        })
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Operand::F32(_) => "f32",
            Operand::Bf16(_) => "bf16",
            Operand::RoundedToBf16(_) => "f32 rounded to bf16",
            Operand::Fp8(_) => "fp8",
            Operand::QuantizedRows(..) => "f32 quantised to fp8",
        }
    }
}

impl<'a> From<MatRef<'a, f32>> for Operand<'a> {
    fn from(x: MatRef<'a, f32>) -> Self {
        Operand::F32(x)
    }
}
impl<'a> From<MatRef<'a, bf16>> for Operand<'a> {
    fn from(x: MatRef<'a, bf16>) -> Self {
        Operand::Bf16(x)
    }
}
impl<'a> From<BlockScaledRef<'a>> for Operand<'a> {
    fn from(x: BlockScaledRef<'a>) -> Self {
        Operand::Fp8(x)
    }
}
impl<'a> From<&'a BlockScaled> for Operand<'a> {
    fn from(x: &'a BlockScaled) -> Self {
        Operand::Fp8(x.view())
    }
}

/// Where a product goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output<'a> {
    /// f32; with `accumulate` the finished product is added once.
    F32(MatMut<'a, f32>),
    /// bf16, rounded once, nearest even; with `accumulate` the sum of the former value and the finished f32 product is.
    Bf16(MatMut<'a, bf16>),
}

impl Output<'_> {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Output::F32(c) => c.rows(),
            Output::Bf16(c) => c.rows(),
        }
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        match self {
            Output::F32(c) => c.cols(),
            Output::Bf16(c) => c.cols(),
        }
    }

    /// The same, for a shorter time.
    pub fn reborrow(&mut self) -> Output<'_> {
        match self {
            Output::F32(c) => Output::F32(c.reborrow()),
            Output::Bf16(c) => Output::Bf16(c.reborrow()),
        }
    }

    /// The rows of `range`.
    pub fn row_range(self, range: std::ops::Range<usize>) -> Result<Self> {
        Ok(match self {
            Output::F32(c) => Output::F32(c.row_range(range)?),
            Output::Bf16(c) => Output::Bf16(c.row_range(range)?),
        })
    }
}

impl<'a> From<MatMut<'a, f32>> for Output<'a> {
    fn from(c: MatMut<'a, f32>) -> Self {
        Output::F32(c)
    }
}
impl<'a> From<MatMut<'a, bf16>> for Output<'a> {
    fn from(c: MatMut<'a, bf16>) -> Self {
        Output::Bf16(c)
    }
}
