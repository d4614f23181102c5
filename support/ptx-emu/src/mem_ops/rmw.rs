//! What atomics compute: functions of the old value and one or two operands, in the low bits of 64 (PTX ISA 9.0, section 9.7.13.5).

use crate::ast::Type;
use crate::formats::{f32_to_bf16, f32_to_f16};
use half::{bf16, f16};

/// New value of the old one, `b`, and `c`.
pub type Function = fn(u64, u64, u64) -> u64;

/// The quiet NaN that arithmetic on a GPU gives.
const NAN32: u32 = 0x7fff_ffff;

/// Sign-preserving flush of subnormal numbers.
fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

fn add_f32(a: u64, b: u64, _: u64) -> u64 {
    let sum = f32::from_bits(a as u32) + f32::from_bits(b as u32);
    u64::from(if sum.is_nan() { NAN32 } else { sum.to_bits() })
}

fn add_f32_ftz(a: u64, b: u64, c: u64) -> u64 {
    u64::from(flush(add_f32(u64::from(flush(a as u32)), u64::from(flush(b as u32)), c) as u32))
}

fn add_f64(a: u64, b: u64, _: u64) -> u64 {
    let sum = f64::from_bits(a) + f64::from_bits(b);
    if sum.is_nan() { f64::NAN.to_bits() } else { sum.to_bits() }
}

/// What a 16-bit format needs here. The sum of two values is exact in f32 or rounds in it to what rounds right again: 24 bits are more
/// than twice the 11 or 8 and 2 more.
trait Half {
    fn value(bits: u16) -> f32;
    fn round(value: f32) -> u16;
}

struct HalfF16;
struct HalfBf16;

impl Half for HalfF16 {
    fn value(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }

    fn round(value: f32) -> u16 {
        f32_to_f16(value)
    }
}

impl Half for HalfBf16 {
    fn value(bits: u16) -> f32 {
        bf16::from_bits(bits).to_f32()
    }

    fn round(value: f32) -> u16 {
        f32_to_bf16(value)
    }
}

fn half_add<H: Half>(a: u16, b: u16) -> u16 {
    H::round(H::value(a) + H::value(b))
}

/// `min` or `max` as of the instructions of that name: a number before NaN, -0 below +0.
fn half_pick<H: Half, const MAX: bool>(a: u16, b: u16) -> u16 {
    let (x, y) = (H::value(a), H::value(b));
    match (x.is_nan(), y.is_nan()) {
        (true, true) => 0x7fff,
        (true, false) => b,
        (false, true) => a,
        (false, false) if x == y => match (x.is_sign_negative(), MAX) {
            (true, true) | (false, false) => b,
            (true, false) | (false, true) => a,
        },
        (false, false) => {
            if (x < y) != MAX {
                a
            } else {
                b
            }
        }
    }
}

fn one(f: fn(u16, u16) -> u16, a: u64, b: u64) -> u64 {
    u64::from(f(a as u16, b as u16))
}

fn two(f: fn(u16, u16) -> u16, a: u64, b: u64) -> u64 {
    one(f, a, b) | one(f, a >> 16, b >> 16) << 16
}

/// The function of an operation on a type, for shared memory and for global memory; None when there is none. Sums of f32 flush subnormal
/// numbers in global memory, and only there.
pub fn function(operation: &str, ty: Type, vector: bool) -> Option<(Function, Function)> {
    use Type::*;
    let both = |f: Function| Some((f, f));
    let half = matches!(ty, F16 | Bf16 | F16x2 | Bf16x2);
    if half && !vector && operation != "add" {
        return None;
    }
    if vector && !half && ty != F32 {
        return None;
    }
    match (operation, ty) {
        ("and", B32 | B64) => both(|a, b, _| a & b),
        ("or", B32 | B64) => both(|a, b, _| a | b),
        ("xor", B32 | B64) => both(|a, b, _| a ^ b),
        ("exch", B32 | B64 | B128) => both(|_, b, _| b),
        ("cas", B16 | B32 | B64 | B128) => both(|a, b, c| if a == b { c } else { a }),
        ("add", U32 | S32 | U64) => both(|a, b, _| a.wrapping_add(b)),
        ("inc", U32) => both(|a, b, _| if a >= b { 0 } else { a + 1 }),
        ("dec", U32) => both(|a, b, _| if a == 0 || a > b { b } else { a - 1 }),
        ("min", U32 | U64) => both(|a, b, _| a.min(b)),
        ("max", U32 | U64) => both(|a, b, _| a.max(b)),
        ("min", S32) => both(|a, b, _| (a as i32).min(b as i32) as u32 as u64),
        ("max", S32) => both(|a, b, _| (a as i32).max(b as i32) as u32 as u64),
        ("min", S64) => both(|a, b, _| (a as i64).min(b as i64) as u64),
        ("max", S64) => both(|a, b, _| (a as i64).max(b as i64) as u64),
        ("add", F32) => Some((add_f32, add_f32_ftz)),
        ("add", F64) => both(add_f64),
        ("add", F16) => both(|a, b, _| one(half_add::<HalfF16>, a, b)),
        ("add", F16x2) => both(|a, b, _| two(half_add::<HalfF16>, a, b)),
        ("add", Bf16) => both(|a, b, _| one(half_add::<HalfBf16>, a, b)),
        ("add", Bf16x2) => both(|a, b, _| two(half_add::<HalfBf16>, a, b)),
        ("min", F16) => both(|a, b, _| one(half_pick::<HalfF16, false>, a, b)),
        ("min", F16x2) => both(|a, b, _| two(half_pick::<HalfF16, false>, a, b)),
        ("min", Bf16) => both(|a, b, _| one(half_pick::<HalfBf16, false>, a, b)),
        ("min", Bf16x2) => both(|a, b, _| two(half_pick::<HalfBf16, false>, a, b)),
        ("max", F16) => both(|a, b, _| one(half_pick::<HalfF16, true>, a, b)),
        ("max", F16x2) => both(|a, b, _| two(half_pick::<HalfF16, true>, a, b)),
        ("max", Bf16) => both(|a, b, _| one(half_pick::<HalfBf16, true>, a, b)),
        ("max", Bf16x2) => both(|a, b, _| two(half_pick::<HalfBf16, true>, a, b)),
        _ => None,
    }
}
