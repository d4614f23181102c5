//! Integer arithmetic of one lane that is more than one machine operation (PTX ISA 9.0, sections 9.7.1 and 9.7.8). Registers of 16 bits arrive
//! zero-extended; what exceeds the destination is cut off where it is written.

/// Sign-extends the low 16 bits.
#[inline(always)]
pub(crate) fn s16(a: u32) -> i32 {
    i32::from(a as u16 as i16)
}

/// The upper 32 bits of a product.
#[inline(always)]
pub(crate) fn mul_hi_s(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
}

#[inline(always)]
pub(crate) fn mul_hi_u(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

#[inline(always)]
pub(crate) fn mul_hi_s64(a: u64, b: u64) -> u64 {
    ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
}

#[inline(always)]
pub(crate) fn mul_hi_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// `mul24` (section 9.7.1.5): bits 16 to 47 of the product of the low 24 bits.
#[inline(always)]
pub(crate) fn mul24_hi_u(a: u32, b: u32) -> u32 {
    ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> 16) as u32
}

#[inline(always)]
pub(crate) fn mul24_hi_s(a: u32, b: u32) -> u32 {
    ((i64::from(s24(a)) * i64::from(s24(b))) >> 16) as u32
}

/// Sign-extends the low 24 bits.
#[inline(always)]
pub(crate) fn s24(a: u32) -> i32 {
    ((a << 8) as i32) >> 8
}

/// Division by zero gives all ones: the manual leaves the value open (section 9.7.1.8). The smallest integer over -1 wraps.
#[inline(always)]
pub(crate) fn div_s(a: u32, b: u32) -> u32 {
    if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 }
}

#[inline(always)]
pub(crate) fn div_u(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(u32::MAX)
}

#[inline(always)]
pub(crate) fn div_s64(a: u64, b: u64) -> u64 {
    if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 }
}

#[inline(always)]
pub(crate) fn div_u64(a: u64, b: u64) -> u64 {
    a.checked_div(b).unwrap_or(u64::MAX)
}

/// The remainder of a division by zero is the dividend, which the manual leaves open too (section 9.7.1.9).
#[inline(always)]
pub(crate) fn rem_s(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }
}

#[inline(always)]
pub(crate) fn rem_u(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(a)
}

#[inline(always)]
pub(crate) fn rem_s64(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }
}

#[inline(always)]
pub(crate) fn rem_u64(a: u64, b: u64) -> u64 {
    a.checked_rem(b).unwrap_or(a)
}

/// `.relu` of a signed result.
#[inline(always)]
pub(crate) fn relu_s(a: i32) -> u32 {
    a.max(0) as u32
}

/// Shifts clamp their amount (sections 9.7.8.8 and 9.7.8.9): beyond the width nothing, or the sign alone, is left.
#[inline(always)]
pub(crate) fn shl(a: u32, by: u32) -> u32 {
    if by > 31 { 0 } else { a << (by & 31) }
}

#[inline(always)]
pub(crate) fn shr_u(a: u32, by: u32) -> u32 {
    if by > 31 { 0 } else { a >> (by & 31) }
}

#[inline(always)]
pub(crate) fn shr_s(a: i32, by: u32) -> u32 {
    (a >> by.min(31)) as u32
}

#[inline(always)]
pub(crate) fn shl64(a: u64, by: u64) -> u64 {
    if by > 63 { 0 } else { a << (by & 63) }
}

#[inline(always)]
pub(crate) fn shr_u64(a: u64, by: u64) -> u64 {
    if by > 63 { 0 } else { a >> (by & 63) }
}

#[inline(always)]
pub(crate) fn shr_s64(a: i64, by: u64) -> u64 {
    (a >> by.min(63)) as u64
}

/// `shf` (section 9.7.8.7) of the pair whose upper half is b, by n at most 32.
#[inline(always)]
pub(crate) fn funnel_l(a: u32, b: u32, n: u32) -> u32 {
    let pair = u64::from(b) << 32 | u64::from(a);
    (pair << (n & 63) >> 32) as u32
}

#[inline(always)]
pub(crate) fn funnel_r(a: u32, b: u32, n: u32) -> u32 {
    let pair = u64::from(b) << 32 | u64::from(a);
    (pair >> (n & 63)) as u32
}

/// The low n bits set; n up to 64.
#[inline(always)]
fn low_bits(n: u64) -> u64 {
    if n > 63 { u64::MAX } else { (1 << (n & 63)) - 1 }
}

/// `bfe` (section 9.7.1.19) of a value of `msb + 1` bits.
#[inline(always)]
pub(crate) fn bfe(a: u64, b: u64, c: u64, msb: u64, signed: bool) -> u64 {
    let (position, length) = (b & 0xff, c & 0xff);
    let inside = (msb + 1).saturating_sub(position).min(length);
    let field = shr_u64(a, position) & low_bits(inside);
    let sign = signed && length != 0 && a >> (position + length - 1).min(msb) & 1 == 1;
    if sign { field | !low_bits(inside) } else { field }
}

/// `bfi` (section 9.7.1.20).
#[inline(always)]
pub(crate) fn bfi(a: u64, b: u64, c: u64, d: u64, msb: u64) -> u64 {
    let (position, length) = (c & 0xff, d & 0xff);
    let inside = (msb + 1).saturating_sub(position).min(length);
    let mask = shl64(low_bits(inside), position);
    (b & !mask) | (shl64(a, position) & mask)
}

/// `bfind` (section 9.7.1.16) of an unsigned value of `width` bits.
#[inline(always)]
pub(crate) fn bfind(a: u64, width: u32, shift_amount: bool) -> u32 {
    match a {
        0 => u32::MAX,
        _ if shift_amount => width - 1 - a.ilog2(),
        _ => a.ilog2(),
    }
}

/// What `bfind` looks at in a signed value.
#[inline(always)]
pub(crate) fn magnitude_bits(a: i64) -> u64 {
    (if a < 0 { !a } else { a }) as u64
}

/// `fns` (section 9.7.1.17).
pub(crate) fn fns(mask: u32, base: u32, offset: u32) -> u32 {
    let bit = |at: i32| mask >> at & 1 == 1;
    let (base, offset) = (base as i32, offset as i32);
    if !(0..32).contains(&base) {
        return u32::MAX;
    }
    if offset == 0 {
        return if bit(base) { base as u32 } else { u32::MAX };
    }
    let step = offset.signum();
    let mut left = offset.unsigned_abs();
    let mut at = base;
    while (0..32).contains(&at) {
        left -= u32::from(bit(at));
        if left == 0 {
            return at as u32;
        }
        at += step;
    }
    u32::MAX
}

/// `szext` (section 9.7.1.21).
#[inline(always)]
pub(crate) fn szext(a: u32, b: u32, wrap: bool, signed: bool) -> u32 {
    if !wrap && b > 31 {
        return a;
    }
    let n = b & 31;
    let field = a & ((1 << n) - 1);
    let sign = signed && n != 0 && a >> (n.wrapping_sub(1) & 31) & 1 == 1;
    if sign { field | u32::MAX << n } else { field }
}

/// `bmsk` (section 9.7.1.22).
#[inline(always)]
pub(crate) fn bmsk(a: u32, b: u32, wrap: bool) -> u32 {
    let (start, width) = (a & 31, b & 31);
    if !wrap && a > 31 {
        return 0;
    }
    let from = u32::MAX << start;
    let to = if start + width > 31 || (!wrap && b > 31) { 0 } else { u32::MAX << (start + width) };
    from & !to
}

/// `dp4a` (section 9.7.1.23): four products of bytes, and c.
#[inline(always)]
pub(crate) fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    (0..4).fold(c, |sum, i| sum.wrapping_add(byte(a, i, a_signed).wrapping_mul(byte(b, i, b_signed)) as u32))
}

/// `dp2a` (section 9.7.1.24): two products of halves of a and bytes of b, and c.
#[inline(always)]
pub(crate) fn dp2a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, high: bool) -> u32 {
    (0..2).fold(c, |sum, i| {
        let half = a >> (16 * i);
        let half = if a_signed { s16(half) } else { (half & 0xffff) as i32 };
        sum.wrapping_add(half.wrapping_mul(byte(b, i + if high { 2 } else { 0 }, b_signed)) as u32)
    })
}

#[inline(always)]
fn byte(word: u32, i: u32, signed: bool) -> i32 {
    let byte = (word >> (8 * i)) as u8;
    if signed { i32::from(byte as i8) } else { i32::from(byte) }
}

/// `lop3` (section 9.7.8.6): the table has a bit for each combination of bits, a's the most significant.
#[inline(always)]
pub(crate) fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    let mut result = 0;
    for row in 0..8u8 {
        let pick = |x: u32, bit: u8| if row & bit != 0 { x } else { !x };
        let here = 0u32.wrapping_sub(u32::from(table >> row & 1));
        result |= pick(a, 4) & pick(b, 2) & pick(c, 1) & here;
    }
    result
}

/// Modes of `prmt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the modifiers
pub(crate) enum Permute {
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

impl Permute {
    /// The general form's selector that does the same.
    #[inline(always)]
    pub fn selector(self, c: u32) -> u32 {
        let table = match self {
            Permute::F4e => [0x3210, 0x4321, 0x5432, 0x6543],
            Permute::B4e => [0x5670, 0x6701, 0x7012, 0x0123],
            Permute::Rc8 => [0x0000, 0x1111, 0x2222, 0x3333],
            Permute::Ecl => [0x3210, 0x3211, 0x3222, 0x3333],
            Permute::Ecr => [0x0000, 0x1110, 0x2210, 0x3210],
            Permute::Rc16 => [0x1010, 0x3232, 0x1010, 0x3232],
        };
        table[(c & 3) as usize]
    }
}

/// `prmt` (section 9.7.9.7): each nibble of the selector picks a byte of the pair whose upper half is b, or, with its top bit, the byte's sign.
#[inline(always)]
pub(crate) fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let pair = u64::from(b) << 32 | u64::from(a);
    let mut result = 0;
    for i in 0..4 {
        let choice = selector >> (4 * i);
        let byte = (pair >> (8 * (choice & 7))) as u8;
        let sign = ((byte as i8) >> 7) as u8;
        let value = if choice & 8 != 0 { sign } else { byte };
        result |= u32::from(value) << (8 * i);
    }
    result
}
