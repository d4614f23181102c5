//! The sums of products behind every matrix instruction.

use std::cell::RefCell;

use super::{Accumulation, Accumulator, Multiplicand};
use crate::formats::{E4M3_VALUES, E5M2_VALUES, bf16_to_f32, f16_to_f32, tf32_to_f32};

/// Fraction bits that Hopper's FP8 tensor cores keep below the largest exponent of a step ([`Accumulation::Hopper`]).
///
/// For each element of D, the products of a step (32 for `k32`) and the accumulator are aligned to the largest exponent among them, cut off
/// toward zero below this many fraction bits, and added as integers; the sum, cut off again to as many fraction bits of its own,
/// becomes the new accumulator. The exponent of a product is the sum of its factors' exponents, so its significand lies in [0, 4); a
/// subnormal factor has the smallest normal exponent. Where an operand or the accumulator is infinite or NaN, the element is computed
/// as [`Accumulation::Exact`] says.
///
/// Source: the DeepSeek-V3 technical report, section 3.3.2, finds that the products are aligned to the largest exponent, that bits beyond the
/// kept ones are truncated, and that around 14 bits remain (13 and the leading one).
pub const HOPPER_FRACTION_BITS: u32 = 13;

/// Calls the instance of a function compiled for the widest vectors this processor has. The results are the same bits: no instance
/// contracts a multiplication and an addition.
macro_rules! best_isa {
    ($name:ident($($argument:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has AVX-512F, the only requirement of this instance.
                unsafe { avx512::$name($($argument),*) }
            } else if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2, the only requirement of this instance.
                unsafe { avx2::$name($($argument),*) }
            } else {
                $name($($argument),*)
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        $name($($argument),*)
    }};
}
/// One step `D = A * B + D`: `m` rows, `n` columns, `row_bytes` bytes of `k`.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Rows of A and D, a multiple of 4.
    pub m: usize,
    /// Columns of B and D, a multiple of 8.
    pub n: usize,
    /// Bytes of a row of A and of a column of B.
    pub row_bytes: usize,
    /// Elements of A.
    pub a: Multiplicand,
    /// Elements of B, of as many bits as A's.
    pub b: Multiplicand,
    /// Elements of D.
    pub d: Accumulator,
    /// Whether D is read; if not it counts as +0.
    pub read_d: bool,
    /// Products with the opposite sign (floating point only).
    pub negate: bool,
    /// `.satfinite` (integers only).
    pub saturate: bool,
    /// Order and precision of floating-point sums.
    pub accumulation: Accumulation,
}

/// B decoded for the steps of one form: several parts of A can be multiplied by it, row by row.
#[derive(Debug, Default)]
pub struct PreparedB {
    /// `[k][n]`, so that the loop over columns vectorises.
    values: Vec<f32>,
    parts: Parts,
    /// `[n][row_bytes]`, for the rare elements that are computed one by one.
    bytes: Vec<u8>,
}

/// Decoded A, kept between calls so that a step allocates nothing.
#[derive(Default)]
struct Scratch {
    /// `[m][k]`
    values: Vec<f32>,
    parts: Parts,
    /// B, where the caller does not prepare it.
    b: PreparedB,
}

/// Integers, or significands of FP8 values in units of the last fraction bit, and the exponents of their leading places.
#[derive(Debug, Default)]
struct Parts {
    integers: Vec<i32>,
    exponents: Vec<i32>,
    /// Rows of A or columns of B with an infinity or a NaN.
    special: Vec<bool>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Step {
    fn k(&self) -> usize {
        self.row_bytes * 8 / self.a.bits()
    }

    /// Whether FP8 products are added as Hopper does.
    fn truncates(&self) -> bool {
        self.accumulation == Accumulation::Hopper && self.a.is_fp8()
    }

    /// Computes the step. `a` is `[m][row_bytes]`, `b` is `[n][row_bytes]` (a column of B is a row here), `d` is `[m][n]` words: `f32` bits,
    /// or `i32` bits for S32.
    ///
    /// # Panics
    /// When a slice is shorter than that, or `m` is no multiple of 4, or `n` none of 8.
    pub fn run(&self, a: &[u8], b: &[u8], d: &mut [u32]) {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut prepared = std::mem::take(&mut scratch.b);
            self.prepare(b, &mut prepared);
            self.multiply(a, &prepared, d, scratch);
            scratch.b = prepared;
        });
    }

    /// Decodes B, `[n][row_bytes]`, for [`Self::run_prepared`] of the same form (`m`, `read_d` and signs may differ).
    ///
    /// # Panics
    /// When `b` is shorter than that, or `n` is no multiple of 8.
    pub fn prepare(&self, b: &[u8], prepared: &mut PreparedB) {
        assert!(self.n.is_multiple_of(8), "a step of {} columns", self.n);
        let b = &b[..self.n * self.row_bytes];
        let (n, elements) = (self.n, self.n * self.k());
        let PreparedB { values, parts, bytes } = prepared;
        if self.d == Accumulator::S32 {
            parts.integers.resize(elements, 0);
            transpose_rows(b, self.row_bytes, n, &mut parts.integers, 0, |row, out| decode_integers(self.b, row, out));
        } else if self.truncates() {
            parts.integers.resize(elements, 0);
            parts.exponents.resize(elements, 0);
            let table = fp8_table(self.b);
            let code = |x: &u8| usize::from(*x);
            transpose_rows(b, self.row_bytes, n, &mut parts.integers, 0, |row, out| {
                row.iter().zip(out).for_each(|(x, o)| *o = table.significands[code(x)]);
            });
            transpose_rows(b, self.row_bytes, n, &mut parts.exponents, 0, |row, out| {
                row.iter().zip(out).for_each(|(x, o)| *o = table.exponents[code(x)]);
            });
            parts.special.clear();
            parts.special.extend(b.chunks_exact(self.row_bytes).map(|row| row.iter().any(|x| table.special[code(x)])));
            bytes.clear();
            bytes.extend_from_slice(b);
        } else {
            values.resize(elements, 0.0);
            transpose_rows(b, self.row_bytes, n, values, 0.0, |row, out| decode(self.b, row, out));
        }
    }

    /// [`Self::run`] with a B that [`Self::prepare`] decoded.
    ///
    /// # Panics
    /// When a slice is shorter than it must be, or `m` is no multiple of 4, or B was prepared for another form.
    pub fn run_prepared(&self, a: &[u8], b: &PreparedB, d: &mut [u32]) {
        SCRATCH.with_borrow_mut(|scratch| self.multiply(a, b, d, scratch));
    }

    fn multiply(&self, a: &[u8], b: &PreparedB, d: &mut [u32], scratch: &mut Scratch) {
        assert!(self.m.is_multiple_of(4), "a step of {} rows", self.m);
        let (a, d) = (&a[..self.m * self.row_bytes], &mut d[..self.m * self.n]);
        if !self.read_d {
            d.fill(0);
        }
        let (sizes, elements) = (Sizes { n: self.n, k: self.k() }, self.m * self.k());
        if self.d == Accumulator::S32 {
            let integers = &mut scratch.parts.integers;
            integers.resize(elements, 0);
            decode_integers(self.a, a, integers);
            best_isa!(integer_rows(sizes, integers, &b.parts.integers, self.saturate, d));
        } else if self.truncates() {
            self.hopper(a, b, d, &mut scratch.parts);
        } else {
            scratch.values.resize(elements, 0.0);
            decode(self.a, a, &mut scratch.values);
            if self.negate {
                scratch.values.iter_mut().for_each(|x| *x = -*x);
            }
            best_isa!(exact_rows(sizes, &scratch.values, &b.values, d));
        }
    }

    fn hopper(&self, a: &[u8], b: &PreparedB, d: &mut [u32], a_parts: &mut Parts) {
        let sizes = Sizes { n: self.n, k: self.k() };
        let k = sizes.k;
        let (a_table, b_table) = (fp8_table(self.a), fp8_table(self.b));
        a_parts.integers.resize(a.len(), 0);
        a_parts.exponents.resize(a.len(), 0);
        let sign = if self.negate { -1 } else { 1 };
        for ((&pattern, integer), exponent) in a.iter().zip(&mut a_parts.integers).zip(&mut a_parts.exponents) {
            *integer = sign * a_table.significands[usize::from(pattern)];
            *exponent = a_table.exponents[usize::from(pattern)];
        }
        a_parts.special.clear();
        a_parts.special.extend(a.chunks_exact(k).map(|row| row.iter().any(|&x| a_table.special[usize::from(x)])));
        let fraction_bits = a_table.fraction_bits + b_table.fraction_bits;
        let specials = |parts: &Parts| parts.special.contains(&true);
        let rare = specials(a_parts) || specials(&b.parts) || d.iter().any(|bits| bits & 0x7f80_0000 == 0x7f80_0000);
        let before = if rare { d.to_vec() } else { Vec::new() };
        best_isa!(hopper_rows(sizes, a_parts, &b.parts, fraction_bits, d));
        if rare {
            for (i, word) in d.iter_mut().enumerate() {
                let (row, column) = (i / self.n, i % self.n);
                let old = f32::from_bits(before[i]);
                if a_parts.special[row] || b.parts.special[column] || !old.is_finite() {
                    let (a_row, b_row) = (&a[row * k..][..k], &b.bytes[column * k..][..k]);
                    let sum = a_row.iter().zip(b_row).fold(old, |sum, (&x, &y)| {
                        let x = a_table.values[usize::from(x)];
                        sum + if self.negate { -x } else { x } * b_table.values[usize::from(y)]
                    });
                    *word = sum.to_bits();
                }
            }
        }
    }
}

/// Columns of B and elements of `k`.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    k: usize,
}

/// Instances of the row functions for one instruction set.
macro_rules! instances {
    ($isa:ident, $feature:literal) => {
        #[cfg(target_arch = "x86_64")]
        mod $isa {
            use super::{Parts, Sizes};

            #[target_feature(enable = $feature)]
            pub(super) fn exact_rows(sizes: Sizes, a: &[f32], b: &[f32], d: &mut [u32]) {
                super::exact_rows(sizes, a, b, d);
            }

            #[target_feature(enable = $feature)]
            pub(super) fn integer_rows(sizes: Sizes, a: &[i32], b: &[i32], saturate: bool, d: &mut [u32]) {
                super::integer_rows(sizes, a, b, saturate, d);
            }

            #[target_feature(enable = $feature)]
            pub(super) fn hopper_rows(sizes: Sizes, a: &Parts, b: &Parts, fraction_bits: u32, d: &mut [u32]) {
                super::hopper_rows(sizes, a, b, fraction_bits, d);
            }
        }
    };
}
instances!(avx2, "avx2");
instances!(avx512, "avx512f");

/// Rows computed at once: each vector of B that is read serves as many.
const ROWS: usize = 4;

/// `sums[r][l] += a[r][i] * b[i][column + l]` for `i` ascending, for any pair of types.
#[inline(always)]
fn block<T: Copy, const LANES: usize>(
    sizes: Sizes,
    a: &[T],
    b: &[T],
    column: usize,
    sums: &mut [[T; LANES]; ROWS],
    add: impl Fn(T, T, T) -> T,
) {
    let (first, rest) = a.split_at(sizes.k);
    let (second, rest) = rest.split_at(sizes.k);
    let (third, fourth) = rest.split_at(sizes.k);
    let rows = first.iter().zip(second).zip(third).zip(fourth);
    for ((((x0, x1), x2), x3), b) in rows.zip(b.chunks_exact(sizes.n)) {
        let b = &b[column..][..LANES];
        for (sums, x) in sums.iter_mut().zip([x0, x1, x2, x3]) {
            for (sum, y) in sums.iter_mut().zip(b) {
                *sum = add(*sum, *x, *y);
            }
        }
    }
}

#[inline(always)]
fn exact_rows(sizes: Sizes, a: &[f32], b: &[f32], d: &mut [u32]) {
    #[inline(always)]
    fn columns<const LANES: usize>(sizes: Sizes, a: &[f32], b: &[f32], column: usize, d: &mut [u32]) {
        let mut sums = [[0.0; LANES]; ROWS];
        for (sums, row) in sums.iter_mut().zip(d.chunks_exact(sizes.n)) {
            for (sum, word) in sums.iter_mut().zip(&row[column..][..LANES]) {
                *sum = f32::from_bits(*word);
            }
        }
        block(sizes, a, b, column, &mut sums, |sum, x, y| sum + x * y);
        for (sums, row) in sums.iter().zip(d.chunks_exact_mut(sizes.n)) {
            for (sum, word) in sums.iter().zip(&mut row[column..][..LANES]) {
                *word = sum.to_bits();
            }
        }
    }
    for (a, d) in a.chunks_exact(ROWS * sizes.k).zip(d.chunks_exact_mut(ROWS * sizes.n)) {
        let mut column = 0;
        while column + 32 <= sizes.n {
            columns::<32>(sizes, a, b, column, d);
            column += 32;
        }
        while column < sizes.n {
            columns::<8>(sizes, a, b, column, d);
            column += 8;
        }
    }
}

#[inline(always)]
fn integer_rows(sizes: Sizes, a: &[i32], b: &[i32], saturate: bool, d: &mut [u32]) {
    for (a, d) in a.chunks_exact(ROWS * sizes.k).zip(d.chunks_exact_mut(ROWS * sizes.n)) {
        for column in (0..sizes.n).step_by(8) {
            let mut sums = [[0i32; 8]; ROWS];
            // At most 64 products below 2^16 each: no overflow.
            block(sizes, a, b, column, &mut sums, |sum, x, y| sum.wrapping_add(x.wrapping_mul(y)));
            for (sums, row) in sums.iter().zip(d.chunks_exact_mut(sizes.n)) {
                for (&sum, word) in sums.iter().zip(&mut row[column..][..8]) {
                    let old = *word as i32;
                    *word = if saturate { old.saturating_add(sum) } else { old.wrapping_add(sum) } as u32;
                }
            }
        }
    }
}

/// See [`HOPPER_FRACTION_BITS`]. `fraction_bits` is how many the product of two significands has.
#[inline(always)]
fn hopper_rows(sizes: Sizes, a: &Parts, b: &Parts, fraction_bits: u32, d: &mut [u32]) {
    const LANES: usize = 8;
    // Nothing below leaves an i32; the wrapping forms keep checks of that out of the loops.
    let up = HOPPER_FRACTION_BITS - fraction_bits;
    for (row, d) in d.chunks_exact_mut(sizes.n).enumerate() {
        let significands = &a.integers[row * sizes.k..][..sizes.k];
        let exponents = &a.exponents[row * sizes.k..][..sizes.k];
        for column in (0..sizes.n).step_by(LANES) {
            let old: [u32; LANES] = std::array::from_fn(|l| d[column + l]);
            let old_exponents: [i32; LANES] = std::array::from_fn(|l| {
                let field = ((old[l] >> 23) & 0xff) as i32;
                if old[l] << 1 == 0 { 2 * ZERO_EXPONENT } else { field.max(1) - 127 }
            });
            let mut largest = old_exponents;
            for (exponent, b) in exponents.iter().zip(b.exponents.chunks_exact(sizes.n)) {
                for (largest, b) in largest.iter_mut().zip(&b[column..][..LANES]) {
                    *largest = (*largest).max(exponent.wrapping_add(*b));
                }
            }
            let mut sums: [i32; LANES] = std::array::from_fn(|l| {
                let field = (old[l] >> 23) & 0xff;
                let significand = (old[l] & 0x007f_ffff) | if field == 0 { 0 } else { 0x0080_0000 };
                let shift = (largest[l] - old_exponents[l]) as u32 + 23 - HOPPER_FRACTION_BITS;
                let kept = significand.wrapping_shr(shift.min(31)) as i32;
                if old[l] >> 31 == 0 { kept } else { -kept }
            });
            let b_rows = b.exponents.chunks_exact(sizes.n).zip(b.integers.chunks_exact(sizes.n));
            for ((exponent, significand), (b_exponents, b_significands)) in exponents.iter().zip(significands).zip(b_rows) {
                let (b_exponents, b_significands) = (&b_exponents[column..][..LANES], &b_significands[column..][..LANES]);
                for l in 0..LANES {
                    let product = significand.wrapping_mul(b_significands[l]);
                    let sign = product >> 31;
                    let magnitude = (product ^ sign).wrapping_sub(sign) << up;
                    let shift = largest[l].wrapping_sub(*exponent).wrapping_sub(b_exponents[l]) as u32;
                    let kept = magnitude.wrapping_shr(shift.min(31));
                    sums[l] = sums[l].wrapping_add((kept ^ sign).wrapping_sub(sign));
                }
            }
            for l in 0..LANES {
                // Below 2^22 in magnitude, so exact in f32, whose lower fraction bits are then cut off.
                let sum = f32::from_bits((sums[l] as f32).to_bits() & !((1 << (23 - HOPPER_FRACTION_BITS)) - 1));
                let exponent = largest[l].clamp(-126, 127);
                let power = f32::from_bits(((exponent + 127) as u32) << 23);
                d[column + l] = (sum * (1.0 / (1u32 << HOPPER_FRACTION_BITS) as f32) * power).to_bits();
            }
        }
    }
}

/// Values, significands and exponents of the patterns of an FP8 type.
struct Fp8Table {
    fraction_bits: u32,
    values: &'static [f32; 256],
    /// With the sign; in units of the last fraction bit.
    significands: [i32; 256],
    exponents: [i32; 256],
    special: [bool; 256],
}

/// Exponent of a zero factor: a product with it never has the largest one, unless all are zero.
const ZERO_EXPONENT: i32 = -1000;

static E4M3: Fp8Table = Fp8Table::new(3, 7, &E4M3_VALUES);
static E5M2: Fp8Table = Fp8Table::new(2, 15, &E5M2_VALUES);

/// The table of `.e5m2`, or of `.e4m3` for any other type.
fn fp8_table(ty: Multiplicand) -> &'static Fp8Table {
    if ty == Multiplicand::E5m2 { &E5M2 } else { &E4M3 }
}

impl Fp8Table {
    const fn new(fraction_bits: u32, bias: i32, values: &'static [f32; 256]) -> Self {
        let mut table = Self { fraction_bits, values, significands: [0; 256], exponents: [0; 256], special: [false; 256] };
        let mut pattern = 0;
        while pattern < 256 {
            let magnitude = (pattern & 0x7f) as i32;
            let field = magnitude >> fraction_bits;
            let fraction = magnitude & ((1 << fraction_bits) - 1);
            // E5M2 has infinity and NaN in the last exponent, E4M3 one NaN.
            table.special[pattern] = if fraction_bits == 2 { field == 31 } else { magnitude == 0x7f };
            let (significand, exponent) = if magnitude == 0 || table.special[pattern] {
                (0, ZERO_EXPONENT)
            } else if field == 0 {
                (fraction, 1 - bias)
            } else {
                (fraction | 1 << fraction_bits, field - bias)
            };
            table.significands[pattern] = if pattern < 128 { significand } else { -significand };
            table.exponents[pattern] = exponent;
            pattern += 1;
        }
        table
    }
}

/// Decodes the `n` rows of `bytes` into the columns of `out`, `[k][n]`.
fn transpose_rows<T: Copy>(bytes: &[u8], row_bytes: usize, n: usize, out: &mut [T], zero: T, decode: impl Fn(&[u8], &mut [T])) {
    let k = out.len() / n;
    // At most 32 bytes of 4-bit elements.
    let mut row = [zero; 64];
    for (column, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
        decode(bytes, &mut row[..k]);
        for (to, value) in out[column..].iter_mut().step_by(n).zip(&row[..k]) {
            *to = *value;
        }
    }
}

/// The values of floating-point elements.
fn decode(ty: Multiplicand, bytes: &[u8], out: &mut [f32]) {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match ty {
        Multiplicand::F16 => out.iter_mut().zip(halves()).for_each(|(o, h)| *o = f16_to_f32(h)),
        Multiplicand::Bf16 => out.iter_mut().zip(halves()).for_each(|(o, h)| *o = bf16_to_f32(h)),
        Multiplicand::Tf32 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *o = tf32_to_f32(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            }
        }
        Multiplicand::E4m3 => out.iter_mut().zip(bytes).for_each(|(o, &b)| *o = E4M3_VALUES[usize::from(b)]),
        Multiplicand::E5m2 => out.iter_mut().zip(bytes).for_each(|(o, &b)| *o = E5M2_VALUES[usize::from(b)]),
        Multiplicand::S8 | Multiplicand::U8 | Multiplicand::S4 | Multiplicand::U4 => {
            unreachable!("integers have integer accumulators: checked where a form is made")
        }
    }
}

/// The values of integer elements.
fn decode_integers(ty: Multiplicand, bytes: &[u8], out: &mut [i32]) {
    let halves = |f: fn(u8) -> i32, out: &mut [i32]| {
        for (o, &b) in out.chunks_exact_mut(2).zip(bytes) {
            o[0] = f(b & 15);
            o[1] = f(b >> 4);
        }
    };
    match ty {
        Multiplicand::S8 => out.iter_mut().zip(bytes).for_each(|(o, &b)| *o = i32::from(b as i8)),
        Multiplicand::U8 => out.iter_mut().zip(bytes).for_each(|(o, &b)| *o = i32::from(b)),
        Multiplicand::S4 => halves(|x| i32::from((x << 4) as i8 >> 4), out),
        Multiplicand::U4 => halves(i32::from, out),
        _ => unreachable!("floating-point elements have floating-point accumulators: checked where a form is made"),
    }
}
