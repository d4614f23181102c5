//! The element-wise reductions of bulk copies: `cp.reduce.async.bulk` and `cp.reduce.async.bulk.tensor` (section 9.7.9.25.4.2).

use super::map::DataType;
use crate::formats::{Format, Modifiers, Rounding, bf16_to_f32, encode, f16_to_f32};

/// `.redOp`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// `.add`
    Add,
    /// `.min`
    Min,
    /// `.max`
    Max,
    /// `.inc`: one more, or 0 from the source's value on.
    Inc,
    /// `.dec`: one less, or the source's value from 0 and from beyond that value.
    Dec,
    /// `.and`
    And,
    /// `.or`
    Or,
    /// `.xor`
    Xor,
}

/// `.type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReduceType {
    /// `.u32`
    U32,
    /// `.s32`
    S32,
    /// `.u64`
    U64,
    /// `.s64`
    S64,
    /// `.b32`
    B32,
    /// `.b64`
    B64,
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.f32`
    F32,
    /// `.f64`
    F64,
}

impl ReduceType {
    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::S32 | Self::B32 | Self::F32 => 4,
            Self::U64 | Self::S64 | Self::B64 | Self::F64 => 8,
        }
    }
}

/// A combination that the manual does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReduceError {
    /// Of `cp.reduce.async.bulk`.
    #[error("cp.reduce.async.bulk to {destination} memory has no {op:?} of {ty:?}")]
    NoSuchForm {
        /// The operation.
        op: ReduceOp,
        /// The type.
        ty: ReduceType,
        /// `shared` or `global`.
        destination: &'static str,
    },
    /// Of `cp.reduce.async.bulk.tensor`.
    #[error("cp.reduce.async.bulk.tensor has no {op:?} of a tensor of {data_type:?}")]
    NoSuchTensorForm {
        /// The operation.
        op: ReduceOp,
        /// The tensor's type.
        data_type: DataType,
    },
}

/// A legal reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reduction {
    op: ReduceOp,
    ty: ReduceType,
}

impl Reduction {
    /// One of `cp.reduce.async.bulk`.
    ///
    /// # Errors
    /// [`ReduceError::NoSuchForm`] when the manual's table of operations and types does not have it.
    pub fn new(op: ReduceOp, ty: ReduceType, to_shared: bool) -> Result<Self, ReduceError> {
        use ReduceType::{B32, B64, Bf16, F16, F32, F64, S32, S64, U32, U64};
        let legal = match (op, to_shared) {
            (ReduceOp::Add, true) => matches!(ty, U32 | S32 | U64),
            (ReduceOp::Add, false) => matches!(ty, U32 | S32 | U64 | F32 | F64 | F16 | Bf16),
            (ReduceOp::Min | ReduceOp::Max, true) => matches!(ty, U32 | S32),
            (ReduceOp::Min | ReduceOp::Max, false) => matches!(ty, U32 | S32 | U64 | S64 | F16 | Bf16),
            (ReduceOp::Inc | ReduceOp::Dec, _) => ty == U32,
            (ReduceOp::And | ReduceOp::Or | ReduceOp::Xor, true) => ty == B32,
            (ReduceOp::And | ReduceOp::Or | ReduceOp::Xor, false) => matches!(ty, B32 | B64),
        };
        if legal {
            Ok(Self { op, ty })
        } else {
            Err(ReduceError::NoSuchForm { op, ty, destination: if to_shared { "shared" } else { "global" } })
        }
    }

    /// One of `cp.reduce.async.bulk.tensor`, whose type is the tensor's.
    ///
    /// # Errors
    /// [`ReduceError::NoSuchTensorForm`].
    pub fn for_tensor(op: ReduceOp, data_type: DataType) -> Result<Self, ReduceError> {
        let bits = matches!(op, ReduceOp::And | ReduceOp::Or | ReduceOp::Xor);
        let ty = match (data_type, bits) {
            (DataType::Uint32 | DataType::Int32, true) => ReduceType::B32,
            (DataType::Uint64 | DataType::Int64, true) => ReduceType::B64,
            (DataType::Uint32, false) => ReduceType::U32,
            (DataType::Int32, false) => ReduceType::S32,
            (DataType::Uint64, false) => ReduceType::U64,
            // Addition in two's complement knows no sign.
            (DataType::Int64, false) if op == ReduceOp::Add => ReduceType::U64,
            (DataType::Int64, false) => ReduceType::S64,
            (DataType::Float16, false) => ReduceType::F16,
            (DataType::Bfloat16, false) => ReduceType::Bf16,
            (DataType::Float32 | DataType::Float32Ftz, false) => ReduceType::F32,
            (DataType::Float64, false) => ReduceType::F64,
            _ => return Err(ReduceError::NoSuchTensorForm { op, data_type }),
        };
        Self::new(op, ty, false).map_err(|_| ReduceError::NoSuchTensorForm { op, data_type })
    }

    /// Bytes of an element.
    #[must_use]
    pub const fn element_bytes(&self) -> usize {
        self.ty.bytes()
    }

    /// `destination[i] = op(destination[i], source[i])` for the whole elements that both slices have.
    ///
    /// Additions of floating-point numbers round to the nearest even; of F32 they flush subnormal inputs and results to zero, keeping the sign. Of
    /// a number and a NaN, minimum and maximum are the number.
    pub fn apply(&self, destination: &mut [u8], source: &[u8]) {
        let size = self.ty.bytes();
        for (to, from) in destination.chunks_exact_mut(size).zip(source.chunks_exact(size)) {
            let pattern = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
            let result = self.element(pattern(to), pattern(from));
            to.copy_from_slice(&result.to_le_bytes()[..size]);
        }
    }

    /// One element, as its pattern in the low bits.
    #[must_use]
    pub fn element(&self, old: u64, operand: u64) -> u64 {
        match self.op {
            ReduceOp::And => old & operand,
            ReduceOp::Or => old | operand,
            ReduceOp::Xor => old ^ operand,
            ReduceOp::Inc => {
                if old >= operand {
                    0
                } else {
                    old + 1
                }
            }
            ReduceOp::Dec => {
                if old == 0 || old > operand {
                    operand
                } else {
                    old - 1
                }
            }
            ReduceOp::Add => self.add(old, operand),
            ReduceOp::Min => self.extreme(old, operand, false),
            ReduceOp::Max => self.extreme(old, operand, true),
        }
    }

    fn add(&self, old: u64, operand: u64) -> u64 {
        let nearest = |sum: f64, format| u64::from(encode(sum, format, Rounding::NearestEven, Modifiers::default()));
        match self.ty {
            ReduceType::F16 => nearest(f64::from(f16_to_f32(old as u16)) + f64::from(f16_to_f32(operand as u16)), Format::F16),
            // The f64 sum may be rounded, but to so many more bits than twice BF16's that rounding again gives what rounding once would.
            ReduceType::Bf16 => {
                nearest(f64::from(bf16_to_f32(old as u16)) + f64::from(bf16_to_f32(operand as u16)), Format::Bf16)
            }
            ReduceType::F32 => {
                let flushed = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
                let sum = flushed(f32::from_bits(old as u32)) + flushed(f32::from_bits(operand as u32));
                u64::from(if sum.is_nan() { 0x7fff_ffff } else { flushed(sum).to_bits() })
            }
            ReduceType::F64 => {
                let sum = f64::from_bits(old) + f64::from_bits(operand);
                if sum.is_nan() { 0x7fff_ffff_ffff_ffff } else { sum.to_bits() }
            }
            ReduceType::U32 | ReduceType::S32 | ReduceType::B32 => u64::from((old as u32).wrapping_add(operand as u32)),
            ReduceType::U64 | ReduceType::S64 | ReduceType::B64 => old.wrapping_add(operand),
        }
    }

    fn extreme(&self, old: u64, operand: u64, largest: bool) -> u64 {
        let float = |value: fn(u16) -> f32| {
            let (x, y) = (value(old as u16), value(operand as u16));
            match (x.is_nan(), y.is_nan()) {
                (true, true) => 0x7fff,
                (true, false) => operand,
                (false, true) => old,
                // Minus zero is below plus zero.
                (false, false) => {
                    if x.total_cmp(&y).is_lt() == largest {
                        operand
                    } else {
                        old
                    }
                }
            }
        };
        let operand_is_larger = match self.ty {
            ReduceType::F16 => return float(f16_to_f32),
            ReduceType::Bf16 => return float(bf16_to_f32),
            ReduceType::S32 => (operand as i32) > (old as i32),
            ReduceType::S64 => (operand as i64) > (old as i64),
            _ => operand > old,
        };
        if operand_is_larger == largest { operand } else { old }
    }
}
