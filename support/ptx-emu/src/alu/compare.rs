//! Comparisons: `setp`, `set`, `slct`, `testp` (PTX ISA 9.0, sections 9.7.3.1, 9.7.6 and 9.7.7).

use super::Pred;
use super::float::flush_if;
use super::half::Half;
use super::opcode::Ty;
use crate::cx::Cx;
use crate::regs::{LANES, Lanes32, Lanes64, Mask};

/// What is compared. 16-bit registers hold zero-extended values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Signed, of 16 bits.
    S16,
    /// Unsigned or untyped, of 16 and 32 bits.
    U32,
    /// Signed, of 32 bits.
    S32,
    /// Unsigned or untyped, of 64 bits.
    U64,
    /// Signed, of 64 bits.
    S64,
    /// The low half of a register; with `.ftz`.
    Half(Half, bool),
    /// The upper half of a register; with `.ftz`.
    UpperHalf(Half, bool),
    /// `.f32`; with `.ftz`.
    F32(bool),
    /// `.f64`
    F64,
}

/// The relations that the others are made of; each is false where an operand is NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Eq,
    Lt,
    Le,
    /// Less or greater.
    Ordered,
    /// Neither is NaN.
    Num,
}

/// A relation between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Compare {
    kind: Kind,
    base: Base,
    /// a and b change places: greater is less the other way round.
    swapped: bool,
    /// The opposite holds, NaN included.
    negated: bool,
}

impl Compare {
    /// The relation of this name, as values of this type have it; None where they have none of the name.
    pub fn new(name: &str, ty: Ty, ftz: bool) -> Option<Compare> {
        let kind = match ty {
            Ty::S16 => Kind::S16,
            Ty::B16 | Ty::U16 | Ty::B32 | Ty::U32 => Kind::U32,
            Ty::S32 => Kind::S32,
            Ty::B64 | Ty::U64 => Kind::U64,
            Ty::S64 => Kind::S64,
            Ty::F16 | Ty::F16x2 => Kind::Half(Half::F16, ftz),
            Ty::Bf16 | Ty::Bf16x2 => Kind::Half(Half::Bf16, ftz),
            Ty::F32 => Kind::F32(ftz),
            Ty::F64 => Kind::F64,
            _ => return None,
        };
        let float = matches!(kind, Kind::Half(..) | Kind::F32(_) | Kind::F64);
        let ordered = float || ty.is_int();
        let (base, swapped, negated) = match name {
            "eq" => (Base::Eq, false, false),
            "ne" if float => (Base::Ordered, false, false),
            "ne" => (Base::Eq, false, true),
            "lt" if ordered => (Base::Lt, false, false),
            "le" if ordered => (Base::Le, false, false),
            "gt" if ordered => (Base::Lt, true, false),
            "ge" if ordered => (Base::Le, true, false),
            "lo" if ty.is_unsigned() => (Base::Lt, false, false),
            "ls" if ty.is_unsigned() => (Base::Le, false, false),
            "hi" if ty.is_unsigned() => (Base::Lt, true, false),
            "hs" if ty.is_unsigned() => (Base::Le, true, false),
            "equ" if float => (Base::Ordered, false, true),
            "neu" if float => (Base::Eq, false, true),
            "ltu" if float => (Base::Le, true, true),
            "leu" if float => (Base::Lt, true, true),
            "gtu" if float => (Base::Le, false, true),
            "geu" if float => (Base::Lt, false, true),
            "num" if float => (Base::Num, false, false),
            "nan" if float => (Base::Num, false, true),
            _ => return None,
        };
        Some(Compare { kind, base, swapped, negated })
    }

    /// Whether the operands have 64 bits.
    pub fn is_wide(self) -> bool {
        matches!(self.kind, Kind::U64 | Kind::S64 | Kind::F64)
    }

    /// The same comparison of the upper halves.
    pub fn of_upper_halves(self) -> Compare {
        match self.kind {
            Kind::Half(format, ftz) => Compare { kind: Kind::UpperHalf(format, ftz), ..self },
            _ => self,
        }
    }

    /// The lanes in which it holds, of values up to 32 bits.
    #[inline]
    pub fn run32(self, a: &Lanes32, b: &Lanes32) -> Mask {
        #[cfg(target_arch = "x86_64")]
        if super::lanes::wide_vectors() {
            // SAFETY: the processor has both features.
            return unsafe { self.run32_wide(a, b) };
        }
        self.run32_all(a, b)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn run32_wide(self, a: &Lanes32, b: &Lanes32) -> Mask {
        self.run32_all(a, b)
    }

    /// The same on any processor.
    #[inline(always)]
    pub fn run32_all(self, a: &Lanes32, b: &Lanes32) -> Mask {
        let (a, b) = if self.swapped { (b, a) } else { (a, b) };
        let half = |x: u32, format: Half, ftz: bool| {
            let x = x & 0xffff;
            format.widen(if ftz { format.flush(x) } else { x })
        };
        let mask = match self.kind {
            Kind::S32 => relation(self.base, |i| (a[i] as i32, b[i] as i32)),
            Kind::S16 => relation(self.base, |i| (a[i] as i16, b[i] as i16)),
            Kind::F32(ftz) => relation(self.base, |i| (f32::from_bits(flush_if(ftz, a[i])), f32::from_bits(flush_if(ftz, b[i])))),
            Kind::Half(format, ftz) => relation(self.base, |i| (half(a[i], format, ftz), half(b[i], format, ftz))),
            Kind::UpperHalf(format, ftz) => {
                relation(self.base, |i| (half(a[i] >> 16, format, ftz), half(b[i] >> 16, format, ftz)))
            }
            _ => relation(self.base, |i| (a[i], b[i])),
        };
        if self.negated { !mask } else { mask }
    }

    /// The lanes in which it holds, of 64-bit values.
    #[inline]
    pub fn run64(self, a: &Lanes64, b: &Lanes64) -> Mask {
        #[cfg(target_arch = "x86_64")]
        if super::lanes::wide_vectors() {
            // SAFETY: the processor has both features.
            return unsafe { self.run64_wide(a, b) };
        }
        self.run64_all(a, b)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn run64_wide(self, a: &Lanes64, b: &Lanes64) -> Mask {
        self.run64_all(a, b)
    }

    /// The same on any processor.
    #[inline(always)]
    pub fn run64_all(self, a: &Lanes64, b: &Lanes64) -> Mask {
        let (a, b) = if self.swapped { (b, a) } else { (a, b) };
        let mask = match self.kind {
            Kind::S64 => relation(self.base, |i| (a[i] as i64, b[i] as i64)),
            Kind::F64 => relation(self.base, |i| (f64::from_bits(a[i]), f64::from_bits(b[i]))),
            _ => relation(self.base, |i| (a[i], b[i])),
        };
        if self.negated { !mask } else { mask }
    }
}

#[inline(always)]
#[allow(clippy::eq_op)] // a number is what equals itself
fn relation<T: PartialOrd>(base: Base, pair: impl Fn(usize) -> (T, T)) -> Mask {
    match base {
        Base::Eq => mask_of(|i| pair(i).0 == pair(i).1),
        Base::Lt => mask_of(|i| pair(i).0 < pair(i).1),
        Base::Le => mask_of(|i| pair(i).0 <= pair(i).1),
        Base::Ordered => mask_of(|i| pair(i).0 < pair(i).1 || pair(i).0 > pair(i).1),
        Base::Num => mask_of(|i| pair(i).0 == pair(i).0 && pair(i).1 == pair(i).1),
    }
}

/// The lanes in which something holds.
#[inline(always)]
pub(crate) fn mask_of(holds: impl Fn(usize) -> bool) -> Mask {
    // One byte a lane, then eight at a time: the product moves the lowest bit of each byte to the top one.
    let mut bytes = [0u8; LANES];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from(holds(i));
    }
    let mut mask = 0;
    for (i, eight) in bytes.chunks_exact(8).enumerate() {
        let eight = eight.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
        mask |= ((eight.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32) << (8 * i);
    }
    mask
}

/// How the result of a comparison is combined with a predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Combine {
    /// Not at all.
    Plain,
    /// `.and`
    And(Pred),
    /// `.or`
    Or(Pred),
    /// `.xor`
    Xor(Pred),
}

impl Combine {
    /// Of the lanes in which the comparison holds.
    #[inline(always)]
    pub fn apply(self, cx: &Cx<'_>, holds: Mask) -> Mask {
        match self {
            Combine::Plain => holds,
            Combine::And(p) => holds & p.mask(cx),
            Combine::Or(p) => holds | p.mask(cx),
            Combine::Xor(p) => holds ^ p.mask(cx),
        }
    }
}

/// `testp`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the modifiers
pub(crate) enum Class {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

impl Class {
    /// The lanes whose `.f32` is of this class.
    pub fn run32(self, a: &Lanes32) -> Mask {
        mask_of(|i| self.holds(f32::from_bits(a[i]).classify()))
    }

    /// The lanes whose `.f64` is of this class.
    pub fn run64(self, a: &Lanes64) -> Mask {
        mask_of(|i| self.holds(f64::from_bits(a[i]).classify()))
    }

    /// Zero is finite, and neither normal nor subnormal.
    fn holds(self, category: std::num::FpCategory) -> bool {
        use std::num::FpCategory as C;
        match self {
            Class::Finite => !matches!(category, C::Nan | C::Infinite),
            Class::Infinite => category == C::Infinite,
            Class::Number => category != C::Nan,
            Class::NotANumber => category == C::Nan,
            Class::Normal => category == C::Normal,
            Class::Subnormal => category == C::Subnormal,
        }
    }
}
