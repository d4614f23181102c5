//! The inner loops, one set for each instruction set, and the choice between them.
//!
//! Every set gives the same bits: the tile kernels keep one order of fused multiply-adds for each output element, and the
//! element-wise loops round once where the reference does. [`v3_numerics::cpu::Isa::Avx512Bf16`] runs the AVX-512 set: bf16 and E4M3 operands
//! become f32 when they are packed, which on processors with a half-rate bf16 dot is also the fastest way.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elementwise;
mod portable;

use v3_numerics::E4M3;
use v3_numerics::cpu::Isa;

/// The columns of a packed panel.
pub(crate) const PANEL: usize = 32;

/// The values of k that are decoded at a time.
pub(crate) const K_CHUNK: usize = 512;

/// The most rows that a task decodes at a time.
pub(crate) const ROW_CHUNK: usize = 192;

/// Distance between the rows of decoded left operands, when k runs along them: one line more than they need, so that the rows
/// of a tile do not compete for the same sets of the first cache.
pub(crate) const A_STRIDE: usize = K_CHUNK + 16;

/// Distance between the k of decoded left operands, when rows run along them.
pub(crate) const A_STRIDE_T: usize = ROW_CHUNK + 16;

/// A tile of up to [`Kernels::rows`] rows by [`PANEL`] columns, over up to 128 values of k.
pub(crate) struct Tile {
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

/// Computes a tile of `rows` rows, at least 1.
///
/// # Safety
/// The processor must have the instruction set; the pointers of the tile must be valid for the extents documented there.
pub(crate) type TileFn = unsafe fn(&Tile, usize);

/// The largest magnitude: NaN counts as zero, an infinity as the largest finite f32.
pub(crate) type AmaxFn = unsafe fn(&[f32]) -> f32;

/// The inner loops of one instruction set. Obtained from [`kernels`] only, which checks that the processor has it.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// The most rows of a tile.
    pub rows: usize,
    pub tile: TileFn,
    amax: AmaxFn,
    amax_columns: unsafe fn(&[f32], &mut [f32]),
    encode: unsafe fn(&[f32], f32, &mut [E4M3]),
    encode_columns: unsafe fn(&[f32], &[f32], &mut [E4M3]),
    round: unsafe fn(&[f32], f32, &mut [f32]),
    round_bf16: unsafe fn(&[f32], &mut [f32]),
    scale: unsafe fn(&mut [f32], f32),
    scale_columns: unsafe fn(&mut [f32], &[f32]),
}

impl Kernels {
    /// The largest magnitude of `x`, as [`crate::reference::amax`].
    pub fn amax(&self, x: &[f32]) -> f32 {
        // SAFETY: `kernels` gave this set only after checking that the processor has it.
        unsafe { (self.amax)(x) }
    }
    /// Raises each of `acc` to the magnitude of the value beside it.
    pub fn amax_columns(&self, x: &[f32], acc: &mut [f32]) {
        assert_eq!(x.len(), acc.len());
        // SAFETY: as in `amax`.
        unsafe { (self.amax_columns)(x, acc) }
    }
    /// `E4M3::from_f32(x * r)`.
    pub fn encode(&self, x: &[f32], r: f32, out: &mut [E4M3]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: as in `amax`.
        unsafe { (self.encode)(x, r, out) }
    }
    /// `E4M3::from_f32(x * r)` with a factor for each.
    pub fn encode_columns(&self, x: &[f32], r: &[f32], out: &mut [E4M3]) {
        assert!(x.len() == out.len() && r.len() == x.len());
        // SAFETY: as in `amax`.
        unsafe { (self.encode_columns)(x, r, out) }
    }
    /// `E4M3::from_f32(x * r).to_f32()`.
    pub fn round(&self, x: &[f32], r: f32, out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: as in `amax`.
        unsafe { (self.round)(x, r, out) }
    }
    /// `bf16::from_f32(x).to_f32()`.
    pub fn round_bf16(&self, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: as in `amax`.
        unsafe { (self.round_bf16)(x, out) }
    }
    /// `x *= s`.
    pub fn scale(&self, x: &mut [f32], s: f32) {
        // SAFETY: as in `amax`.
        unsafe { (self.scale)(x, s) }
    }
    /// `x *= s` with a factor for each.
    pub fn scale_columns(&self, x: &mut [f32], s: &[f32]) {
        assert_eq!(x.len(), s.len());
        // SAFETY: as in `amax`.
        unsafe { (self.scale_columns)(x, s) }
    }
}

/// The inner loops for the instruction set that [`Isa::detect`] names, on the calling thread.
pub(crate) fn kernels() -> Kernels {
    // `Isa::detect` answers only with what the processor has.
    match Isa::detect() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::KERNELS,
        _ => portable::KERNELS,
    }
}
