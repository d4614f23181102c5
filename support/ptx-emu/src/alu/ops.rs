//! The lane-wise operations, by the widths of their sources and results.

use super::approx::{self, Approx, Function};
use super::convert::{
    FloatToFloat, FloatToInt, IntToFloat, IntToInt, PackSat, PackedToPacked, PairToPacked, from_e4m3, from_e5m2, to_e4m3, to_e5m2,
};
use super::float::{self, Arith, Extremum, Mode};
use super::half::{Half, HalfMode, both, both2, both3};
use super::ints::{self, Permute};
use super::lanes::lanewise;
use super::video::Video;
use crate::formats::Rounding;

lanewise! {
    /// One 32-bit source.
    Un32(a: u32) -> u32 {
        Copy => a,
        Not => !a,
        Neg => 0u32.wrapping_sub(a),
        Abs => (a as i32).unsigned_abs(),
        Abs16 => ints::s16(a).unsigned_abs(),
        /// `cnot`
        IsZero => u32::from(a == 0),
        /// A sign changed, or bits complemented.
        Xor(mask: u32) => a ^ mask,
        /// Signs cleared.
        And(mask: u32) => a & mask,
        FlushThenXor(mask: u32) => float::flush(a) ^ mask,
        FlushThenAnd(mask: u32) => float::flush(a) & mask,
        HalfSigns(format: Half, keep: u32, change: u32) => both(|x| format.flush(x) & keep ^ change, a),
        Popc => a.count_ones(),
        Clz => a.leading_zeros(),
        Brev => a.reverse_bits(),
        BfindU(shift_amount: bool) => ints::bfind(a.into(), 32, shift_amount),
        BfindS(shift_amount: bool) => ints::bfind(ints::magnitude_bits(i64::from(a as i32)), 32, shift_amount),
        SqrtF32 => float::sqrt(a),
        RcpF32 => float::div(1.0f32.to_bits(), a),
        ArithF32(op: Arith, mode: Mode) => float::in_mode(op, mode, a, 0, 0),
        Approx(op: Approx) => op.apply(a),
        // Conversions that kernels make often.
        SextS8 => a as u8 as i8 as u32,
        SextS16 => ints::s16(a) as u32,
        ZextU8 => a & 0xff,
        ZextU16 => a & 0xffff,
        S32ToF32 => (a as i32 as f32).to_bits(),
        U32ToF32 => (a as f32).to_bits(),
        F32ToS32Zero => (f32::from_bits(a) as i32) as u32,
        F32ToU32Zero => f32::from_bits(a) as u32,
        F16ToF32 => float::bits(Half::F16.widen(a)),
        Bf16ToF32 => float::bits(Half::Bf16.widen(a)),
        F32ToF16 => Half::F16.round(f32::from_bits(a)),
        F32ToBf16 => Half::Bf16.round(f32::from_bits(a)),
        E4m3x2ToF16x2 => from_e4m3(a >> 8 & 0xff) << 16 | from_e4m3(a & 0xff),
        E5m2x2ToF16x2 => from_e5m2(a >> 8 & 0xff) << 16 | from_e5m2(a & 0xff),
        RcpApprox(ftz: bool) => approx::single(Function::Rcp, ftz, a),
        SqrtApprox(ftz: bool) => approx::single(Function::Sqrt, ftz, a),
        RsqrtApprox(ftz: bool) => approx::single(Function::Rsqrt, ftz, a),
        Ex2Approx(ftz: bool) => approx::single(Function::Ex2, ftz, a),
        IntToInt(how: IntToInt) => how.apply(a.into()) as u32,
        IntToFloat(how: IntToFloat) => how.apply(a.into()) as u32,
        FloatToInt(how: FloatToInt) => how.apply(a.into()) as u32,
        FloatToFloat(how: FloatToFloat) => how.apply(a.into()) as u32,
        Packed(how: PackedToPacked) => how.apply(a),
    }
}

lanewise! {
    /// Two 32-bit sources.
    Bin32(a: u32, b: u32) -> u32 {
        Add => a.wrapping_add(b),
        Sub => a.wrapping_sub(b),
        AddSatS => (a as i32).saturating_add(b as i32) as u32,
        SubSatS => (a as i32).saturating_sub(b as i32) as u32,
        Add16x2 => both2(|x, y| x.wrapping_add(y) & 0xffff, a, b),
        Mul => a.wrapping_mul(b),
        MulHiS => ints::mul_hi_s(a, b),
        MulHiU => ints::mul_hi_u(a, b),
        MulHiS16 => (ints::s16(a).wrapping_mul(ints::s16(b)) >> 16) as u32,
        MulHiU16 => a.wrapping_mul(b) >> 16,
        MulWideS16 => ints::s16(a).wrapping_mul(ints::s16(b)) as u32,
        Mul24LoU => (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff),
        Mul24LoS => ints::s24(a).wrapping_mul(ints::s24(b)) as u32,
        Mul24HiU => ints::mul24_hi_u(a, b),
        Mul24HiS => ints::mul24_hi_s(a, b),
        DivS => ints::div_s(a, b),
        DivU => ints::div_u(a, b),
        DivS16 => ints::div_s(ints::s16(a) as u32, ints::s16(b) as u32),
        RemS => ints::rem_s(a, b),
        RemU => ints::rem_u(a, b),
        RemS16 => ints::rem_s(ints::s16(a) as u32, ints::s16(b) as u32),
        MinS => (a as i32).min(b as i32) as u32,
        MinU => a.min(b),
        MaxS => (a as i32).max(b as i32) as u32,
        MaxU => a.max(b),
        MinReluS => ints::relu_s((a as i32).min(b as i32)),
        MaxReluS => ints::relu_s((a as i32).max(b as i32)),
        MinS16 => ints::s16(a).min(ints::s16(b)) as u32,
        MaxS16 => ints::s16(a).max(ints::s16(b)) as u32,
        MinU16x2 => both2(|x, y| x.min(y), a, b),
        MaxU16x2 => both2(|x, y| x.max(y), a, b),
        MinS16x2(relu: bool) => both2(|x, y| ints::s16(x).min(ints::s16(y)).max(if relu { 0 } else { i32::MIN }) as u32 & 0xffff, a, b),
        MaxS16x2(relu: bool) => both2(|x, y| ints::s16(x).max(ints::s16(y)).max(if relu { 0 } else { i32::MIN }) as u32 & 0xffff, a, b),
        And => a & b,
        Or => a | b,
        Xor => a ^ b,
        Shl => ints::shl(a, b),
        ShrU => ints::shr_u(a, b),
        ShrS => ints::shr_s(a as i32, b),
        ShrS16 => ints::shr_s(ints::s16(a), b),
        Szext(wrap: bool, signed: bool) => ints::szext(a, b, wrap, signed),
        Bmsk(wrap: bool) => ints::bmsk(a, b, wrap),
        /// a in the lower half, b in the upper one.
        Pack16 => a & 0xffff | b << 16,
        AddF32 => float::add(a, b),
        SubF32 => float::sub(a, b),
        MulF32 => float::mul(a, b),
        DivF32 => float::div(a, b),
        AddF32Ftz => float::flush(float::add(float::flush(a), float::flush(b))),
        SubF32Ftz => float::flush(float::sub(float::flush(a), float::flush(b))),
        MulF32Ftz => float::flush(float::mul(float::flush(a), float::flush(b))),
        ArithF32(op: Arith, mode: Mode) => float::in_mode(op, mode, a, b, 0),
        DivApprox(ftz: bool) => approx::div_approx(ftz, a, b),
        ExtremumF32(how: Extremum) => float::extremum(how, a, b),
        CopysignF32 => float::copysign(a, b),
        AddF16 => Half::F16.add(a, b),
        SubF16 => Half::F16.sub(a, b),
        MulF16 => Half::F16.mul(a, b),
        AddF16x2 => both2(|x, y| Half::F16.add(x, y), a, b),
        SubF16x2 => both2(|x, y| Half::F16.sub(x, y), a, b),
        MulF16x2 => both2(|x, y| Half::F16.mul(x, y), a, b),
        AddBf16 => Half::Bf16.add(a, b),
        SubBf16 => Half::Bf16.sub(a, b),
        MulBf16 => Half::Bf16.mul(a, b),
        AddBf16x2 => both2(|x, y| Half::Bf16.add(x, y), a, b),
        SubBf16x2 => both2(|x, y| Half::Bf16.sub(x, y), a, b),
        MulBf16x2 => both2(|x, y| Half::Bf16.mul(x, y), a, b),
        HalfInMode(op: Arith, format: Half, mode: HalfMode) => half_in_mode(op, format, mode, a, b, 0),
        Halfx2InMode(op: Arith, format: Half, mode: HalfMode) => both2(|x, y| half_in_mode(op, format, mode, x, y, 0), a, b),
        ExtremumF16(how: Extremum) => Half::F16.extremum(how, a, b),
        ExtremumF16x2(how: Extremum) => both2(|x, y| Half::F16.extremum(how, x, y), a, b),
        ExtremumBf16(how: Extremum) => Half::Bf16.extremum(how, a, b),
        ExtremumBf16x2(how: Extremum) => both2(|x, y| Half::Bf16.extremum(how, x, y), a, b),
        /// `cvt.rn.bf16x2.f32` and `cvt.rn.f16x2.f32`: the first source goes to the upper half.
        F32x2ToF16x2 => Half::F16.round(f32::from_bits(a)) << 16 | Half::F16.round(f32::from_bits(b)),
        F32x2ToBf16x2 => Half::Bf16.round(f32::from_bits(a)) << 16 | Half::Bf16.round(f32::from_bits(b)),
        /// `cvt.rn.satfinite.e4m3x2.f32` and `cvt.rn.satfinite.e5m2x2.f32`
        F32x2ToE4m3x2 => to_e4m3(f32::from_bits(a)) << 8 | to_e4m3(f32::from_bits(b)),
        F32x2ToE5m2x2 => to_e5m2(f32::from_bits(a)) << 8 | to_e5m2(f32::from_bits(b)),
        PairToPacked(how: PairToPacked) => how.apply(a, b),
        PackSat(how: PackSat) => how.apply(a, b, 0),
    }
}

lanewise! {
    /// Three 32-bit sources.
    Tri32(a: u32, b: u32, c: u32) -> u32 {
        Mad => a.wrapping_mul(b).wrapping_add(c),
        MadHiS => ints::mul_hi_s(a, b).wrapping_add(c),
        MadHiU => ints::mul_hi_u(a, b).wrapping_add(c),
        MadHiSatS => (ints::mul_hi_s(a, b) as i32).saturating_add(c as i32) as u32,
        MadHiS16 => ((ints::s16(a).wrapping_mul(ints::s16(b)) >> 16) as u32).wrapping_add(c),
        MadHiU16 => (a.wrapping_mul(b) >> 16).wrapping_add(c),
        MadWideS16 => (ints::s16(a).wrapping_mul(ints::s16(b)) as u32).wrapping_add(c),
        Mad24LoU => (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c),
        Mad24LoS => (ints::s24(a).wrapping_mul(ints::s24(b)) as u32).wrapping_add(c),
        Mad24HiU => ints::mul24_hi_u(a, b).wrapping_add(c),
        Mad24HiS => ints::mul24_hi_s(a, b).wrapping_add(c),
        Mad24HiSatS => (ints::mul24_hi_s(a, b) as i32).saturating_add(c as i32) as u32,
        SadU => a.abs_diff(b).wrapping_add(c),
        SadS => (a as i32).abs_diff(b as i32).wrapping_add(c),
        SadS16 => ints::s16(a).abs_diff(ints::s16(b)).wrapping_add(c),
        Lop3(table: u8) => ints::lop3(a, b, c, table),
        FunnelL(wrap: bool) => ints::funnel_l(a, b, if wrap { c & 31 } else { c.min(32) }),
        FunnelR(wrap: bool) => ints::funnel_r(a, b, if wrap { c & 31 } else { c.min(32) }),
        Prmt => ints::prmt(a, b, c),
        PrmtMode(mode: Permute) => ints::prmt(a, b, mode.selector(c)),
        Bfe(signed: bool) => ints::bfe(a.into(), b.into(), c.into(), 31, signed) as u32,
        Fns => ints::fns(a, b, c),
        Dp4a(a_signed: bool, b_signed: bool) => ints::dp4a(a, b, c, a_signed, b_signed),
        Dp2a(a_signed: bool, b_signed: bool, high: bool) => ints::dp2a(a, b, c, a_signed, b_signed, high),
        Video(how: Video) => how.apply(a, b, c),
        FmaF32 => float::fma(a, b, c),
        FmaF32Ftz => float::flush(float::fma(float::flush(a), float::flush(b), float::flush(c))),
        ArithF32(op: Arith, mode: Mode) => float::in_mode(op, mode, a, b, c),
        FmaF16 => Half::F16.fma(a, b, c),
        FmaBf16 => Half::Bf16.fma(a, b, c),
        FmaBf16x2 => both3(|x, y, z| Half::Bf16.fma(x, y, z), a, b, c),
        HalfInMode(op: Arith, format: Half, mode: HalfMode) => half_in_mode(op, format, mode, a, b, c),
        Halfx2InMode(op: Arith, format: Half, mode: HalfMode) => both3(|x, y, z| half_in_mode(op, format, mode, x, y, z), a, b, c),
        PackSat(how: PackSat) => how.apply(a, b, c),
    }
}

lanewise! {
    /// Four 32-bit sources.
    Quad32(a: u32, b: u32, c: u32, e: u32) -> u32 {
        Bfi => ints::bfi(a.into(), b.into(), c.into(), e.into(), 31) as u32,
    }
}

lanewise! {
    /// One 64-bit source.
    Un64(a: u64) -> u64 {
        Copy => a,
        Not => !a,
        Neg => 0u64.wrapping_sub(a),
        Abs => (a as i64).unsigned_abs(),
        IsZero => u64::from(a == 0),
        Xor(mask: u64) => a ^ mask,
        And(mask: u64) => a & mask,
        Brev => a.reverse_bits(),
        SqrtF64 => float::sqrt64(a),
        ArithF64(op: Arith, rounding: Rounding) => float::in_mode64(op, rounding, a, 0, 0),
        Approx(op: Approx) => op.apply64(a),
        IntToInt(how: IntToInt) => how.apply(a),
        IntToFloat(how: IntToFloat) => how.apply(a),
        FloatToInt(how: FloatToInt) => how.apply(a),
        FloatToFloat(how: FloatToFloat) => how.apply(a),
    }
}

lanewise! {
    /// Two 64-bit sources; shift amounts are zero-extended.
    Bin64(a: u64, b: u64) -> u64 {
        Add => a.wrapping_add(b),
        Sub => a.wrapping_sub(b),
        Mul => a.wrapping_mul(b),
        MulHiS => ints::mul_hi_s64(a, b),
        MulHiU => ints::mul_hi_u64(a, b),
        DivS => ints::div_s64(a, b),
        DivU => ints::div_u64(a, b),
        RemS => ints::rem_s64(a, b),
        RemU => ints::rem_u64(a, b),
        MinS => (a as i64).min(b as i64) as u64,
        MinU => a.min(b),
        MaxS => (a as i64).max(b as i64) as u64,
        MaxU => a.max(b),
        And => a & b,
        Or => a | b,
        Xor => a ^ b,
        Shl => ints::shl64(a, b),
        ShrU => ints::shr_u64(a, b),
        ShrS => ints::shr_s64(a as i64, b),
        /// The low halves of a and b, b's above.
        Pack32 => a & 0xffff_ffff | b << 32,
        AddF64 => float::add64(a, b),
        SubF64 => float::sub64(a, b),
        MulF64 => float::mul64(a, b),
        DivF64 => float::div64(a, b),
        ArithF64(op: Arith, rounding: Rounding) => float::in_mode64(op, rounding, a, b, 0),
        ExtremumF64(max: bool) => float::extremum64(max, a, b),
        CopysignF64 => float::copysign64(a, b),
    }
}

lanewise! {
    /// Three 64-bit sources; positions and lengths are zero-extended.
    Tri64(a: u64, b: u64, c: u64) -> u64 {
        Mad => a.wrapping_mul(b).wrapping_add(c),
        MadHiS => ints::mul_hi_s64(a, b).wrapping_add(c),
        MadHiU => ints::mul_hi_u64(a, b).wrapping_add(c),
        SadU => a.abs_diff(b).wrapping_add(c),
        SadS => (a as i64).abs_diff(b as i64).wrapping_add(c),
        Bfe(signed: bool) => ints::bfe(a, b, c, 63, signed),
        FmaF64 => float::fma64(a, b, c),
        ArithF64(op: Arith, rounding: Rounding) => float::in_mode64(op, rounding, a, b, c),
    }
}

lanewise! {
    /// Four 64-bit sources.
    Quad64(a: u64, b: u64, c: u64, e: u64) -> u64 {
        Bfi => ints::bfi(a, b, c, e, 63),
    }
}

lanewise! {
    /// One 32-bit source, a 64-bit result.
    Widen1(a: u32) -> u64 {
        Zext => a.into(),
        Sext => i64::from(a as i32) as u64,
        F32ToF64 => super::convert::f32_to_f64(a),
        S32ToF64 => f64::from(a as i32).to_bits(),
        U32ToF64 => f64::from(a).to_bits(),
        IntToInt(how: IntToInt) => how.apply(a.into()),
        IntToFloat(how: IntToFloat) => how.apply(a.into()),
        FloatToInt(how: FloatToInt) => how.apply(a.into()),
        FloatToFloat(how: FloatToFloat) => how.apply(a.into()),
    }
}

lanewise! {
    /// Two 32-bit sources, a 64-bit result.
    Widen2(a: u32, b: u32) -> u64 {
        MulS => i64::from(a as i32).wrapping_mul(i64::from(b as i32)) as u64,
        MulU => u64::from(a).wrapping_mul(b.into()),
    }
}

lanewise! {
    /// Two 32-bit sources and a 64-bit one, a 64-bit result.
    Widen3(a: u32, b: u32, c: u64) -> u64 {
        MadS => (i64::from(a as i32).wrapping_mul(i64::from(b as i32)) as u64).wrapping_add(c),
        MadU => u64::from(a).wrapping_mul(b.into()).wrapping_add(c),
    }
}

lanewise! {
    /// One 64-bit source, a 32-bit result.
    Narrow1(a: u64) -> u32 {
        Low => a as u32,
        High => (a >> 32) as u32,
        Popc => a.count_ones(),
        Clz => a.leading_zeros(),
        BfindU(shift_amount: bool) => ints::bfind(a, 64, shift_amount),
        BfindS(shift_amount: bool) => ints::bfind(ints::magnitude_bits(a as i64), 64, shift_amount),
        F64ToF32 => float::bits(f64::from_bits(a) as f32),
        IntToInt(how: IntToInt) => how.apply(a) as u32,
        IntToFloat(how: IntToFloat) => how.apply(a) as u32,
        FloatToInt(how: FloatToInt) => how.apply(a) as u32,
        FloatToFloat(how: FloatToFloat) => how.apply(a) as u32,
    }
}

/// An operation of 16-bit floats with modifiers.
#[inline(always)]
fn half_in_mode(op: Arith, format: Half, mode: HalfMode, a: u32, b: u32, c: u32) -> u32 {
    let [a, b, c] = [a, b, c].map(|x| format.start(mode, x));
    let result = match op {
        Arith::Add => format.add(a, b),
        Arith::Sub => format.sub(a, b),
        Arith::Mul => format.mul(a, b),
        _ => format.fma(a, b, c),
    };
    format.finish(mode, result)
}
