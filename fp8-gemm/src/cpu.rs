//! The inner loops, written once over [`v3_numerics::simd`] and instantiated for each instruction set.
//!
//! Every instruction set gives the same bits: the tiles keep one order of fused multiply-adds for each output element, and the
//! element-wise loops, which are plain Rust for the compiler to vectorise, round where the reference does.
//!
//! [`Isa::Avx512Bf16`] runs the AVX-512 loops: bf16 and E4M3 operands become f32 when they are decoded, where a product of two is
//! exact. Where the bf16 dot product runs at half the rate of f32 multiply-adds this is also the fastest way.

use crate::scaled::{BLOCK, ScalePolicy};
use v3_numerics::cpu::Isa;
use v3_numerics::simd::{Kernel, LANES, Simd, dispatch};
use v3_numerics::{E4M3, MatRef, bf16};

/// The columns of a packed panel.
pub(crate) const PANEL: usize = 2 * LANES;

/// The values of k that are decoded at a time.
pub(crate) const K_CHUNK: usize = 512;

/// The most rows that a task decodes at a time.
pub(crate) const ROW_CHUNK: usize = 196;

/// Distance between the rows of decoded left operands, when k runs along them: one line more than they need, so that the rows
/// of a tile do not compete for the same sets of the first cache.
pub(crate) const A_STRIDE: usize = K_CHUNK + 16;

/// Distance between the k of decoded left operands, when rows run along them.
pub(crate) const A_STRIDE_T: usize = 208;

/// Rows by [`PANEL`] columns, over up to 128 values of k.
#[derive(Clone, Copy)]
pub(crate) struct Strip {
    pub rows: usize,
    /// Decoded left operand: element `(r, p)` at `r * A_STRIDE + p`, or at `p * A_STRIDE_T + r` when `transposed`.
    pub a: *const f32,
    /// Decoded panel, `[k, PANEL]`.
    pub b: *const f32,
    /// The length of the sum.
    pub k: usize,
    /// The totals, `[rows, PANEL]` with row stride `total_stride`.
    pub total: *mut f32,
    pub total_stride: usize,
    /// One scale a row (promotion only).
    pub row_scales: *const f32,
    /// One scale a column (promotion only), `PANEL` of them.
    pub col_scales: *const f32,
    /// Whether totals begin at +0 instead of at what is there.
    pub first: bool,
    pub transposed: bool,
    /// Whether a fresh chain is scaled and added to the totals; else the totals are the chain, continued.
    pub promote: bool,
}

/// Runs the tiles of a strip.
///
/// # Safety
/// The pointers must be valid for the extents that [`Strip`] documents, and nothing else may reach the totals meanwhile.
pub(crate) unsafe fn run_strip(isa: Isa, strip: &Strip) {
    dispatch(isa, *strip);
}

impl Kernel for Strip {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        macro_rules! tile {
            ($tile:expr, $vectors:literal, $rows:expr, $($n:literal)+) => {
                match ($rows, self.transposed) {
                    $(
                        ($n, false) if $n <= S::TILE_ROWS => s.outline(Tile::<$n, $vectors, false>($tile)),
                        ($n, true) if $n <= S::TILE_ROWS => s.outline(Tile::<$n, $vectors, true>($tile)),
                    )+
                    _ => unreachable!("a tile has from 1 to {} rows", S::TILE_ROWS),
                }
            };
        }
        // Tiles of nearly equal height.
        let count = self.rows.div_ceil(S::TILE_ROWS);
        for i in 0..count {
            let (first, end) = (self.rows * i / count, self.rows * (i + 1) / count);
            let mut tile = self;
            tile.a = self.a.wrapping_add(first * if self.transposed { 1 } else { A_STRIDE });
            tile.total = self.total.wrapping_add(first * self.total_stride);
            tile.row_scales = self.row_scales.wrapping_add(first);
            if S::TILE_VECTORS == 2 {
                tile!(tile, 2, end - first, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            } else {
                tile!(tile, 1, end - first, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
                tile.b = tile.b.wrapping_add(LANES);
                tile.total = tile.total.wrapping_add(LANES);
                tile.col_scales = tile.col_scales.wrapping_add(LANES);
                tile!(tile, 1, end - first, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
        }
    }
}

/// `R` rows by `V` vectors, in registers.
struct Tile<const R: usize, const V: usize, const TRANSPOSED: bool>(Strip);

impl<const R: usize, const V: usize, const TRANSPOSED: bool> Kernel for Tile<R, V, TRANSPOSED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = self.0;
        let (row_step, k_step) = if TRANSPOSED { (1, A_STRIDE_T) } else { (A_STRIDE, 1) };
        let zero = s.splat(0.0);
        let mut acc = [[zero; V]; R];
        // SAFETY: `run_strip`'s caller promises `k` values for each row of the left operand, a panel of `k` rows, totals for each
        // row and, with `promote`, the scales.
        unsafe {
            if !t.promote && !t.first {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = s.load_ptr(t.total.add(r * t.total_stride + v * LANES));
                    }
                }
            }
            let (mut a, mut b) = (t.a, t.b);
            for _ in 0..t.k {
                let mut row = [zero; V];
                for (v, x) in row.iter_mut().enumerate() {
                    *x = s.load_ptr(b.add(v * LANES));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*a.add(r * row_step));
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = s.mul_add(x, row[v], *acc);
                    }
                }
                // The last step leads one behind the end, where nothing is read.
                a = a.wrapping_add(k_step);
                b = b.wrapping_add(PANEL);
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let total = t.total.add(r * t.total_stride + v * LANES);
                    if t.promote {
                        let scale = s.mul(s.splat(*t.row_scales.add(r)), s.load_ptr(t.col_scales.add(v * LANES)));
                        let before = if t.first { zero } else { s.load_ptr(total) };
                        s.store_ptr(s.mul_add(*acc, scale, before), total);
                    } else {
                        s.store_ptr(*acc, total);
                    }
                }
            }
        }
    }
}

/// The most rows of a [`FewRows`].
pub(crate) const FEW_ROWS: usize = 4;
/// The most panels of a [`FewRows`].
pub(crate) const FEW_PANELS: usize = 4;

/// A few rows by up to [`FEW_PANELS`] panels of bf16, which are decoded in registers: what generating a token wants. One row and one panel
/// would be two chains, each waiting for itself.
#[derive(Clone, Copy)]
pub(crate) struct FewRows {
    /// 1 to [`FEW_ROWS`].
    pub rows: usize,
    /// 1 to [`FEW_PANELS`].
    pub panels: usize,
    /// Decoded left operand, `[rows, k]` with row stride [`A_STRIDE`].
    pub a: *const f32,
    /// The first panel, `[k, PANEL]`.
    pub b: *const bf16,
    pub panel_stride: usize,
    /// The length of the sum.
    pub k: usize,
    /// The totals of each panel, `[rows, PANEL]`.
    pub totals: [*mut f32; FEW_PANELS],
    pub total_stride: usize,
    /// Whether totals begin at +0 instead of at what is there.
    pub first: bool,
}

/// Continues the chains of a few rows.
///
/// # Safety
/// As [`run_strip`].
pub(crate) unsafe fn run_few_rows(isa: Isa, few: &FewRows) {
    dispatch(isa, *few);
}

impl Kernel for FewRows {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        macro_rules! tile {
            ($($rows:literal $panels:literal)+) => {
                match (self.rows, self.panels) {
                    $(($rows, $panels) => s.outline(FewTile::<$rows, $panels>(self)),)+
                    _ => unreachable!("a few rows are 1 to 4, and so are panels"),
                }
            };
        }
        tile!(1 1 1 2 1 3 1 4 2 1 2 2 2 3 2 4 3 1 3 2 3 3 3 4 4 1 4 2 4 3 4 4);
    }
}

struct FewTile<const R: usize, const P: usize>(FewRows);

impl<const R: usize, const P: usize> Kernel for FewTile<R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = self.0;
        let mut acc = [[[s.splat(0.0); 2]; P]; R];
        // SAFETY: `run_few_rows`'s caller promises `k` values for each row, panels of `k` rows, and totals for each row and panel.
        unsafe {
            if !t.first {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (total, acc) in t.totals.iter().zip(acc) {
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = s.load_ptr(total.add(r * t.total_stride + v * LANES));
                        }
                    }
                }
            }
            for k in 0..t.k {
                let mut x = [s.splat(0.0); R];
                for (r, x) in x.iter_mut().enumerate() {
                    *x = s.splat(*t.a.add(r * A_STRIDE + k));
                }
                for p in 0..P {
                    for v in 0..2 {
                        let b = s.load_bf16(&*t.b.add(p * t.panel_stride + k * PANEL + v * LANES).cast::<[bf16; LANES]>());
                        for (acc, x) in acc.iter_mut().zip(x) {
                            acc[p][v] = s.mul_add(x, b, acc[p][v]);
                        }
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (total, acc) in t.totals.iter().zip(acc) {
                    for (v, acc) in acc.iter().enumerate() {
                        s.store_ptr(*acc, total.add(r * t.total_stride + v * LANES));
                    }
                }
            }
        }
    }
}

/// Declares functions whose bodies are compiled for each instruction set and run on the one that the first argument names. Bodies are
/// methods of structs, not closures: `inline(always)` does not reach through a closure's `call_once`.
macro_rules! loops {
    ($($(#[$doc:meta])* fn $name:ident<$a:lifetime>($($arg:ident: $type:ty),*) $(-> $output:ty)? $body:block)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name<$a>(isa: Isa, $($arg: $type),*) $(-> $output)? {
            struct Loop<$a> {
                $($arg: $type,)*
            }
            impl<$a> Loop<$a> {
                #[inline(always)]
                fn body(self) $(-> $output)? {
                    let Loop { $($arg),* } = self;
                    $body
                }
            }
            impl<$a> Kernel for Loop<$a> {
                type Output = loops!(@output $($output)?);
                #[inline(always)]
                fn run<S: Simd>(self, _: S) -> Self::Output {
                    self.body()
                }
            }
            dispatch(isa, Loop { $($arg),* })
        }
    )*};
    (@output) => { () };
    (@output $output:ty) => { $output };
}

loops! {
    /// A row in 1x128 blocks: codes, and a scale for each block.
    fn quantize_row<'a>(x: &'a [f32], policy: ScalePolicy, codes: &'a mut [E4M3], scales: &'a mut [f32]) {
        for ((x, codes), out) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
            let scale = policy.scale(amax_of(x));
            *out = scale.scale;
            for (code, x) in codes.iter_mut().zip(x) {
                *code = to_e4m3(*x * scale.reciprocal);
            }
        }
    }

    /// A row in 1x128 blocks, as the f32 values of the codes; the scale of block `b` goes to `scales[b * scale_stride]`.
    fn quantize_row_values<'a>(x: &'a [f32], policy: ScalePolicy, values: &'a mut [f32], scales: &'a mut [f32], scale_stride: usize) {
        for (b, (x, values)) in x.chunks(BLOCK).zip(values.chunks_mut(BLOCK)).enumerate() {
            let scale = policy.scale(amax_of(x));
            scales[b * scale_stride] = scale.scale;
            for (value, x) in values.iter_mut().zip(x) {
                *value = round_to_e4m3(*x * scale.reciprocal);
            }
        }
    }

    /// Raises the largest magnitude of each 128 columns.
    fn amax_blocks<'a>(x: &'a [f32], amax: &'a mut [f32]) {
        for (x, amax) in x.chunks(BLOCK).zip(amax) {
            *amax = amax_of(x).max(*amax);
        }
    }

    /// Raises the largest magnitude of each column, NaN and infinities included: see [`any_not_finite`].
    fn amax_columns<'a>(x: &'a [f32], amax: &'a mut [f32]) {
        for (amax, x) in amax.iter_mut().zip(x) {
            *amax = f32::from_bits(amax.to_bits().max(x.to_bits() & MAGNITUDE));
        }
    }

    /// Whether a maximum of [`amax_columns`] is not finite, so that [`amax_finite_columns`] must take it anew.
    fn any_not_finite<'a>(amax: &'a [f32]) -> bool {
        amax.iter().fold(0, |all, x| all.max(x.to_bits())) >= INFINITY
    }

    /// As [`amax_columns`], NaN as zero and infinities as the largest finite value.
    fn amax_finite_columns<'a>(x: &'a [f32], amax: &'a mut [f32]) {
        for (amax, x) in amax.iter_mut().zip(x) {
            *amax = f32::from_bits(amax.to_bits().max(finite_magnitude(*x)));
        }
    }

    /// Codes, with a factor for each 128 columns.
    fn encode_blocks<'a>(x: &'a [f32], reciprocals: &'a [f32], codes: &'a mut [E4M3]) {
        for ((x, r), codes) in x.chunks(BLOCK).zip(reciprocals).zip(codes.chunks_mut(BLOCK)) {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = to_e4m3(*x * *r);
            }
        }
    }

    /// Codes, with a factor for each column.
    fn encode_columns<'a>(x: &'a [f32], reciprocals: &'a [f32], codes: &'a mut [E4M3]) {
        for ((code, x), r) in codes.iter_mut().zip(x).zip(reciprocals) {
            *code = to_e4m3(*x * *r);
        }
    }

    /// The largest magnitude, as [`crate::reference::amax`].
    fn amax<'a>(x: &'a [f32]) -> f32 {
        amax_of(x)
    }

    /// The values of bf16.
    fn decode_bf16<'a>(x: &'a [bf16], out: &'a mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }

    /// The values of codes.
    fn decode_e4m3<'a>(x: &'a [E4M3], out: &'a mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = from_e4m3(x.0);
        }
    }

    /// The values of bf16, from contiguous rows to rows of `stride`. So are the next.
    fn load_bf16<'a>(x: MatRef<'a, bf16>, out: &'a mut [f32], stride: usize) {
        for (i, out) in (0..x.rows()).zip(out.chunks_mut(stride)) {
            for (out, x) in out.iter_mut().zip(x.row(i)) {
                *out = f32::from_bits(u32::from(x.to_bits()) << 16);
            }
        }
    }

    /// Values rounded to bf16.
    fn load_rounded<'a>(x: MatRef<'a, f32>, out: &'a mut [f32], stride: usize) {
        for (i, out) in (0..x.rows()).zip(out.chunks_mut(stride)) {
            for (out, x) in out.iter_mut().zip(x.row(i)) {
                *out = f32::from_bits(u32::from(to_bf16(*x)) << 16);
            }
        }
    }

    /// The values of codes.
    fn load_e4m3<'a>(x: MatRef<'a, E4M3>, out: &'a mut [f32], stride: usize) {
        for (i, out) in (0..x.rows()).zip(out.chunks_mut(stride)) {
            for (out, x) in out.iter_mut().zip(x.row(i)) {
                *out = from_e4m3(x.0);
            }
        }
    }

    /// The values of the codes that `x * reciprocal` rounds to, with a factor for each column.
    fn load_quantized<'a>(x: MatRef<'a, f32>, reciprocals: &'a [f32], out: &'a mut [f32], stride: usize) {
        for (i, out) in (0..x.rows()).zip(out.chunks_mut(stride)) {
            for ((out, x), r) in out.iter_mut().zip(x.row(i)).zip(reciprocals) {
                *out = round_to_e4m3(*x * *r);
            }
        }
    }

    /// The same of what codes with a scale a row are worth.
    fn load_requantized<'a>(
        x: MatRef<'a, E4M3>,
        scales: MatRef<'a, f32>,
        reciprocals: &'a [f32],
        out: &'a mut [f32],
        stride: usize
    ) {
        for (i, out) in (0..x.rows()).zip(out.chunks_mut(stride)) {
            let scale = *scales.at(i, 0);
            for ((out, x), r) in out.iter_mut().zip(x.row(i)).zip(reciprocals) {
                *out = round_to_e4m3((from_e4m3(x.0) * scale) * *r);
            }
        }
    }

    /// `x *= s` with a factor for each 128 columns.
    fn scale_blocks<'a>(x: &'a mut [f32], scales: &'a [f32]) {
        for (x, s) in x.chunks_mut(BLOCK).zip(scales) {
            for x in x {
                *x *= *s;
            }
        }
    }

    /// `x *= s` with a factor for each.
    fn scale_columns<'a>(x: &'a mut [f32], scales: &'a [f32]) {
        for (x, s) in x.iter_mut().zip(scales) {
            *x *= *s;
        }
    }
}

/// The bits of a magnitude, with NaN as 0 and infinity as the largest finite value.
#[inline(always)]
fn finite_magnitude(x: f32) -> u32 {
    let bits = x.to_bits() & MAGNITUDE;
    if bits > INFINITY { 0 } else { bits.min(INFINITY - 1) }
}

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

#[inline(always)]
fn amax_of(x: &[f32]) -> f32 {
    // Magnitudes are ordered as their bits are; lanes keep the maximum free of a chain.
    let mut lanes = [0u32; 4 * LANES];
    let (chunks, rest) = x.as_chunks::<{ 4 * LANES }>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(x.to_bits() & MAGNITUDE);
        }
    }
    let tail = rest.iter().map(|x| x.to_bits() & MAGNITUDE).fold(0, u32::max);
    let mut amax = lanes.into_iter().fold(tail, u32::max);
    if amax >= INFINITY {
        amax = x.iter().map(|x| finite_magnitude(*x)).fold(0, u32::max);
    }
    f32::from_bits(amax)
}

/// 2^20 times the power of two below a magnitude (below 2^-6, of that): its last place is the last place of the code.
#[inline(always)]
fn magic(magnitude: u32) -> u32 {
    (magnitude & INFINITY).max((127 - 6) << 23) + (20 << 23)
}

/// `E4M3::from_f32`, without a branch.
#[inline(always)]
fn to_e4m3(x: f32) -> E4M3 {
    let bits = x.to_bits();
    let magnitude = bits & MAGNITUDE;
    let limited = magnitude.min(448.0f32.to_bits());
    let magic = magic(limited);
    // How many of its last places the value is: 8 to 16 of them, or fewer in a subnormal. Codes count them through all exponents.
    let places = (f32::from_bits(limited) + f32::from_bits(magic)).to_bits().wrapping_sub(magic);
    let code = places.wrapping_add(magic >> 20).wrapping_sub((127 - 6 + 20) << 3);
    let code = if magnitude > INFINITY { 0x7f } else { code };
    E4M3((code | ((bits >> 24) & 0x80)) as u8)
}

/// The nearest value that E4M3 has, ties to even, saturating; NaN stays NaN.
#[inline(always)]
fn round_to_e4m3(x: f32) -> f32 {
    let bits = x.to_bits();
    let magnitude = bits & MAGNITUDE;
    let limited = magnitude.min(448.0f32.to_bits());
    let magic = f32::from_bits(magic(limited));
    let rounded = ((f32::from_bits(limited) + magic) - magic).to_bits();
    let rounded = if magnitude > INFINITY { 0x7fc0_0000 } else { rounded };
    f32::from_bits(rounded | (bits & 0x8000_0000))
}

/// `E4M3::to_f32`, without a branch or a table.
#[inline(always)]
fn from_e4m3(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let sign = u32::from(code & 0x80) << 24;
    // A subnormal code is read as if it had the exponent of 2^-6 and an implicit one, which is then taken away.
    let normal = (magnitude << 20) + (120 << 23);
    let subnormal = (f32::from_bits(normal + (1 << 23)) - 0.015625).to_bits();
    let bits = if magnitude < 8 { subnormal } else { normal };
    let bits = if magnitude == 0x7f { 0x7fc0_0000 } else { bits };
    f32::from_bits(bits | sign)
}

/// `bf16::from_f32`, without a branch.
#[inline(always)]
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { nearest }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bf16, and every f32 whose lower half is next to where rounding turns.
    fn inputs() -> impl Iterator<Item = f32> {
        (0..=u16::MAX)
            .flat_map(|high| [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(u32::from(high) << 16 | low)))
    }

    #[test]
    fn branchless_conversions_equal_the_formats() {
        for x in inputs() {
            let code = E4M3::from_f32(x);
            assert_eq!(to_e4m3(x).0, code.0, "{x:e}");
            let value = round_to_e4m3(x);
            assert!(value.to_bits() == code.to_f32().to_bits() || value.is_nan() && code.is_nan(), "{x:e}");
            let back = from_e4m3(code.0);
            assert!(back.to_bits() == code.to_f32().to_bits() || back.is_nan() && code.is_nan(), "{x:e}");
            assert_eq!(to_bf16(x), bf16::from_f32(x).to_bits(), "{x:e}");
        }
    }
}
