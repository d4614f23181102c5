//! Rows from the order of tokens to expert-major order, on the device alone (kernels/permute_layout.cu, kernels/permute.cu).
//!
//! [`RowLayout`] says where the rows of each expert go; kernels make it from the experts of each token without the host reading anything back, in
//! memory of the size of the worst case. [`PermuteKernels::permute`] copies rows there, [`PermuteKernels::permute_quantize`] makes E4M3 with a scale for
//! each 128 values of them on the way; each token's row is read once, and quantised once, however many experts want it.
//!
//! # Numbers
//!
//! s = max(amax, 1e-4) / 448, or the power of two at or above it; a code is the E4M3 nearest to x * (1 / s), ties to even, saturating; NaN keeps its sign
//! and does not count in amax, an infinity counts as the largest f32. Padding rows are what rows of zeros become.

use super::Arch;
use super::common::{blocks_of, check_arch, check_len, check_width, small, wrong};
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;
use v3_gpu::{Args, Buffer, Device, DevicePtr, Kernel, LaunchConfig, Stream};
use v3_numerics::{E4M3, bf16};

/// Most experts of a token.
pub const MAX_TOP_K: u32 = 16;
/// Most experts of a [`RowLayout`].
pub const MAX_EXPERTS: u32 = 1024;
/// In [`RowLayout::gather`]: no token's row.
pub const PADDING: u32 = u32::MAX;
/// Values that share a scale.
pub const SCALE_BLOCK: usize = 128;

/// Threads and warps of a block (both kernels), and of the block that scans.
const THREADS: u32 = 256;
const WARPS: u64 = 8;
const SCAN_THREADS: u32 = 1024;
/// Most blocks that count and place, and the least of choices that a warp should have.
const MAX_COUNT_BLOCKS: u64 = 256;
const WARP_CHOICES: u64 = 128;
/// Bytes of a row that a warp moves.
const PIECE: u64 = 2048;

/// Parameters of `permute_count`, `permute_scan` and `permute_place` (kernels/permute_layout.cu).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PermuteLayoutParams {
    /// i32 `[tokens, top_k]`; negative: none.
    pub experts: DevicePtr,
    /// u32 `[num_experts + 1]`.
    pub offsets: DevicePtr,
    /// u32 `[num_experts]`.
    pub counts: DevicePtr,
    /// u32 `[capacity]`.
    pub gather: DevicePtr,
    /// i32 `[tokens, top_k]`.
    pub map: DevicePtr,
    /// u32 `[blocks, num_experts]`, for the kernels' use.
    pub block_counts: DevicePtr,
    /// u32 `[2]`, zero at first: 1 + a token that names an expert that does not exist; the number of rows, when it is above `capacity`.
    pub status: DevicePtr,
    /// tokens * top_k, below 2^31.
    pub choices: u64,
    /// At least 1.
    pub top_k: u32,
    /// At most [`MAX_EXPERTS`].
    pub num_experts: u32,
    /// At least 1; choices + num_experts * alignment is below 2^31.
    pub alignment: u32,
    /// Rows that there is room for, below 2^31.
    pub capacity: u32,
    /// Of the grid, at least 1.
    pub blocks: u32,
    /// A multiple of 32; blocks * 8 * warp_choices is at least `choices`.
    pub warp_choices: u32,
    /// Zero.
    pub reserved: [u32; 6],
}

/// Parameters of `permute_rows`, `permute_quantize_bf16` and `permute_quantize_f32` (kernels/permute.cu).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PermuteParams {
    /// `[tokens, width]`, at a multiple of 16 bytes.
    pub rows: DevicePtr,
    /// i32 `[tokens, top_k]`: the row of each choice, or -1.
    pub map: DevicePtr,
    /// u32 `[capacity]`: [`PADDING`] for rows to fill with zeros. Not read where `padding_warps` is 0.
    pub gather: DevicePtr,
    /// One u32: the number of rows, padding included. Not read where `padding_warps` is 0.
    pub row_count: DevicePtr,
    /// `[capacity, width]`, at a multiple of 16 bytes.
    pub out: DevicePtr,
    /// f32; not read by `permute_rows`.
    pub scales: DevicePtr,
    /// Bytes, a multiple of 16.
    pub row_stride: u64,
    /// Bytes, a multiple of 16.
    pub out_stride: u64,
    /// The scale of row i and block b is at `i * scale_row_stride + b * scale_block_stride`.
    pub scale_row_stride: u64,
    /// See `scale_row_stride`.
    pub scale_block_stride: u64,
    /// Rows of the source.
    pub tokens: u32,
    /// At most 32.
    pub top_k: u32,
    /// `permute_rows`: bytes, a multiple of 16. Else values, a multiple of 128.
    pub width: u32,
    /// Pieces of 2048 bytes of a row of the source, rounded up.
    pub pieces: u32,
    /// Rows of the result that there is room for.
    pub capacity: u32,
    /// capacity / 32, rounded up; 0 where there is no padding.
    pub padding_warps: u32,
    /// 0, or 1 for scales that are powers of two.
    pub policy: u32,
    /// Zero.
    pub reserved: [u32; 5],
}

const _: () = {
    assert!(size_of::<PermuteLayoutParams>() == 112);
    assert!(offset_of!(PermuteLayoutParams, status) == 48);
    assert!(offset_of!(PermuteLayoutParams, top_k) == 64);
    assert!(offset_of!(PermuteLayoutParams, warp_choices) == 84);
    assert!(size_of::<PermuteParams>() == 128);
    assert!(offset_of!(PermuteParams, row_stride) == 48);
    assert!(offset_of!(PermuteParams, tokens) == 80);
    assert!(offset_of!(PermuteParams, policy) == 104);
};

mod sealed {
    /// How rows of a type are quantised.
    pub trait Quantised {
        const KERNEL: usize;
    }
}

/// Types of rows that are quantised: bf16 and f32.
pub trait Quantise: Pod + sealed::Quantised {}
impl sealed::Quantised for bf16 {
    const KERNEL: usize = 0;
}
impl sealed::Quantised for f32 {
    const KERNEL: usize = 1;
}
impl Quantise for bf16 {}
impl Quantise for f32 {}

/// How a block's scale follows from its largest magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ScaleRule {
    /// max(amax, 1e-4) / 448.
    #[default]
    F32,
    /// The power of two at or above that.
    PowerOfTwo,
}

/// In which order scales lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ScaleOrder {
    /// `[capacity, blocks]`.
    #[default]
    Rows,
    /// `[blocks, capacity rounded up to 4]`: what tensor copies read.
    Blocks,
}

impl ScaleOrder {
    /// Distances from one row's scale to the next one's, and from one block's; and the number of scales.
    fn strides(self, capacity: usize, blocks: usize) -> (usize, usize, usize) {
        match self {
            ScaleOrder::Rows => (blocks, 1, capacity * blocks),
            ScaleOrder::Blocks => (1, capacity.next_multiple_of(4), capacity.next_multiple_of(4) * blocks),
        }
    }
}

/// Where the rows of each expert go, on a device. Its memory stays where it is, so that launches that use it can be captured.
#[derive(Debug)]
pub struct RowLayout {
    pub(super) tokens: u32,
    pub(super) top_k: u32,
    num_experts: u32,
    alignment: u32,
    pub(super) capacity: u32,
    blocks: u32,
    warp_choices: u32,
    offsets: Buffer<u32>,
    counts: Buffer<u32>,
    gather: Buffer<u32>,
    pub(super) map: Buffer<i32>,
    block_counts: Buffer<u32>,
    /// Two words of the kernels here, two of unpermute's.
    pub(super) status: Buffer<u32>,
}

impl RowLayout {
    /// For `tokens` tokens with `top_k` choices each among `num_experts` experts, whose rows begin at multiples of `alignment`; with room for the
    /// worst case. Nothing is in it yet: every choice is masked out.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Unsupported`] for sizes that the kernels do not count; what the device refuses.
    pub fn new(stream: &Stream, tokens: usize, top_k: usize, num_experts: usize, alignment: usize) -> Result<RowLayout> {
        let padding = num_experts.min(tokens.saturating_mul(top_k)).saturating_mul(alignment.saturating_sub(1));
        let capacity = tokens.saturating_mul(top_k).saturating_add(padding);
        RowLayout::with_capacity(stream, tokens, top_k, num_experts, alignment, capacity)
    }

    /// [`RowLayout::new`] with room for `capacity` rows; those behind are left out, and [`RowLayout::check`] says so.
    ///
    /// # Errors
    /// As [`RowLayout::new`].
    pub fn with_capacity(
        stream: &Stream,
        tokens: usize,
        top_k: usize,
        num_experts: usize,
        alignment: usize,
        capacity: usize,
    ) -> Result<RowLayout> {
        if top_k == 0 || top_k > MAX_TOP_K as usize {
            return Err(Error::Unsupported { what: format!("{top_k} experts for a token on a GPU: 1 to {MAX_TOP_K}") });
        }
        if num_experts == 0 || num_experts > MAX_EXPERTS as usize {
            return Err(Error::Unsupported { what: format!("{num_experts} experts in a layout on a GPU: 1 to {MAX_EXPERTS}") });
        }
        if alignment == 0 {
            return Err(wrong("alignment", "at least 1", 0));
        }
        let choices = tokens.saturating_mul(top_k);
        small("rows with padding", choices.saturating_add(num_experts.saturating_mul(alignment)))?;
        let capacity = small("capacity", capacity)?;
        let per_block = WARPS * WARP_CHOICES;
        let blocks = (choices as u64).div_ceil(per_block).clamp(1, MAX_COUNT_BLOCKS);
        let warp_choices = (choices as u64).div_ceil(blocks * WARPS).next_multiple_of(32).max(32);
        let map = stream.upload(&vec![-1; choices])?;
        // All of these are below 2^31.
        Ok(RowLayout {
            tokens: tokens as u32,
            top_k: top_k as u32,
            num_experts: num_experts as u32,
            alignment: alignment as u32,
            capacity,
            blocks: blocks as u32,
            warp_choices: warp_choices as u32,
            offsets: stream.zeroed(num_experts + 1)?,
            counts: stream.zeroed(num_experts)?,
            gather: stream.upload(&vec![PADDING; capacity as usize])?,
            map,
            block_counts: stream.alloc(blocks as usize * num_experts)?,
            status: stream.zeroed(4)?,
        })
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// Choices of a token.
    pub fn top_k(&self) -> usize {
        self.top_k as usize
    }

    /// Experts.
    pub fn num_experts(&self) -> usize {
        self.num_experts as usize
    }

    /// Rows that there is room for, which expert-major buffers have.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// `[num_experts + 1]`: the first row of each expert; the last is the number of rows, padding included.
    pub fn offsets(&self) -> &Buffer<u32> {
        &self.offsets
    }

    /// `[num_experts]`: rows of each expert without padding.
    pub fn counts(&self) -> &Buffer<u32> {
        &self.counts
    }

    /// `[capacity]`: the token of each row; [`PADDING`] for padding and behind the last row.
    pub fn gather(&self) -> &Buffer<u32> {
        &self.gather
    }

    /// `[tokens, top_k]`: the row of each choice, or -1: what combine of [`exchange`](super::exchange) wants.
    pub fn map(&self) -> &Buffer<i32> {
        &self.map
    }

    /// What the kernels are given for these experts, i32 `[tokens, top_k]`.
    pub fn params(&self, experts: DevicePtr) -> PermuteLayoutParams {
        PermuteLayoutParams {
            experts,
            offsets: self.offsets.ptr(),
            counts: self.counts.ptr(),
            gather: self.gather.ptr(),
            map: self.map.ptr(),
            block_counts: self.block_counts.ptr(),
            status: self.status.ptr(),
            choices: u64::from(self.tokens) * u64::from(self.top_k),
            top_k: self.top_k,
            num_experts: self.num_experts,
            alignment: self.alignment,
            capacity: self.capacity,
            blocks: self.blocks,
            warp_choices: self.warp_choices,
            reserved: [0; 6],
        }
    }

    /// Waits for the stream, and says what was wrong since the last time and has been left out. The layout can be used on.
    ///
    /// # Errors
    /// [`Error::Shape`] for an expert that does not exist, more rows than the capacity, a choice without a row, an expert that a token names twice; what the
    /// device reports.
    pub fn check(&mut self, stream: &Stream) -> Result<()> {
        let status = stream.download(&self.status)?;
        let Some((kind, at)) = status.iter().enumerate().find(|(_, at)| **at > 0) else { return Ok(()) };
        stream.fill(&mut self.status, 0)?;
        Err(match kind {
            0 => wrong("routing indices", format!("experts below {}", self.num_experts), format!("others for token {}", at - 1)),
            1 => wrong("expert rows", format!("at most the capacity, {}", self.capacity), at),
            2 => wrong("map of expert rows", "a row for each choice", format!("none for token {}", at - 1)),
            _ => wrong("routing indices", "different experts for a token", format!("one twice for token {}", at - 1)),
        })
    }

    fn use_in(&self, stream: &Stream) -> Result<()> {
        for buffer in [&self.offsets, &self.counts, &self.gather, &self.block_counts, &self.status] {
            buffer.use_in(stream)?;
        }
        Ok(self.map.use_in(stream)?)
    }

    /// What the kernels that move rows are given, except for the rows.
    fn moves(&self) -> PermuteParams {
        PermuteParams {
            map: self.map.ptr(),
            gather: self.gather.ptr(),
            row_count: self.offsets.ptr().offset(u64::from(self.num_experts) * 4),
            tokens: self.tokens,
            top_k: self.top_k,
            capacity: self.capacity,
            padding_warps: if self.alignment > 1 { self.capacity.div_ceil(32) } else { 0 },
            ..PermuteParams::zeroed()
        }
    }
}

/// The kernels, loaded on a device: once, then used from any thread.
#[derive(Debug, Clone)]
pub struct PermuteKernels {
    arch: Arch,
    count: Kernel,
    scan: Kernel,
    place: Kernel,
    rows: Kernel,
    quantize: [Kernel; 2],
}

impl PermuteKernels {
    /// Loads the kernels that the device runs best.
    ///
    /// # Errors
    /// [`Error::Unsupported`] before compute capability 8.0; what the device refuses.
    pub fn load(device: &Device) -> Result<PermuteKernels> {
        Self::load_for(device, Arch::of(device.info()?.compute_capability)?)
    }

    /// Loads the kernels of one architecture.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the device does not run them; what the device refuses.
    pub fn load_for(device: &Device, arch: Arch) -> Result<PermuteKernels> {
        check_arch(device, arch)?;
        let layout = device.module(ptx!("permute_layout.sm_80"))?;
        let permute = device.module(match arch {
            Arch::Sm80 => ptx!("permute.sm_80"),
            Arch::Sm90a => ptx!("permute.sm_90a"),
        })?;
        Ok(PermuteKernels {
            arch,
            count: layout.kernel("permute_count")?,
            scan: layout.kernel("permute_scan")?,
            place: layout.kernel("permute_place")?,
            rows: permute.kernel("permute_rows")?,
            quantize: [permute.kernel("permute_quantize_bf16")?, permute.kernel("permute_quantize_f32")?],
        })
    }

    /// Which text of the kernels this is.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The device they are loaded on.
    pub fn device(&self) -> &Device {
        self.rows.device()
    }

    /// Makes the layout of these experts `[tokens, top_k]`: of i32 or u32, negative (as i32) where a choice is masked out. The rows of an expert are
    /// in the order of the tokens. An expert that does not exist is left out, and [`RowLayout::check`] says so.
    ///
    /// # Errors
    /// [`Error::Shape`] when their number is another than the layout's; what the device refuses.
    pub fn lay_out<I: ExpertNumber>(&self, stream: &Stream, experts: &Buffer<I>, layout: &mut RowLayout) -> Result<()> {
        check_len("experts", experts.len(), layout.tokens(), layout.top_k())?;
        experts.use_in(stream)?;
        layout.use_in(stream)?;
        // SAFETY: the buffers have the sizes that the layout says, and are kept until this is done.
        unsafe { self.lay_out_raw(stream, &layout.params(experts.ptr())) }
    }

    /// [`PermuteKernels::lay_out`] over raw addresses: three launches.
    ///
    /// # Errors
    /// What the device refuses.
    ///
    /// # Safety
    ///
    /// Everything that `params` says is so: live memory of those sizes that the device can reach, which nothing else writes, nor reads what is written,
    /// until the stream is past this.
    pub unsafe fn lay_out_raw(&self, stream: &Stream, params: &PermuteLayoutParams) -> Result<()> {
        let grid = LaunchConfig::new(params.blocks, THREADS).shared(params.num_experts.saturating_mul(WARPS as u32 * 4));
        // SAFETY: the struct that the kernels take, over memory that the caller vouches for.
        unsafe {
            stream.launch(&self.count, &grid, Args::new().value(*params))?;
            stream.launch(&self.scan, &LaunchConfig::new(1, SCAN_THREADS), Args::new().value(*params))?;
            stream.launch(&self.place, &grid, Args::new().value(*params))?;
        }
        Ok(())
    }

    /// Copies the tokens' rows, `[tokens, width]`, to `out`, `[capacity, width]`. Padding rows become zeros; rows behind the last one stay as they are.
    ///
    /// # Errors
    /// [`Error::Shape`] for other lengths, and for rows whose bytes are not a multiple of 16; what the device refuses.
    pub fn permute<T: Pod>(
        &self,
        stream: &Stream,
        rows: &Buffer<T>,
        width: usize,
        layout: &RowLayout,
        out: &mut Buffer<T>,
    ) -> Result<()> {
        let bytes = width.saturating_mul(size_of::<T>());
        check_width("bytes of a row", bytes, 16)?;
        check_len("rows", rows.len(), layout.tokens(), width)?;
        check_len("expert-major rows", out.len(), layout.capacity(), width)?;
        let params = PermuteParams {
            rows: rows.ptr(),
            out: out.ptr(),
            row_stride: bytes as u64,
            out_stride: bytes as u64,
            width: small("bytes of a row", bytes)?,
            ..layout.moves()
        };
        rows.use_in(stream)?;
        out.use_in(stream)?;
        layout.use_in(stream)?;
        // SAFETY: the buffers hold as much as the kernel reads and writes, and are kept until this is done; the map leads nowhere else.
        unsafe { self.permute_raw(stream, &params) }
    }

    /// Quantises the tokens' rows, `[tokens, width]` of bf16 or f32, into `codes`, `[capacity, width]`, and `scales` in the order asked for.
    /// Padding rows become what rows of zeros do; rows behind the last one stay as they are.
    ///
    /// # Errors
    /// [`Error::Shape`] for other lengths, and for a width that is not a multiple of 128; what the device refuses.
    #[expect(clippy::too_many_arguments, reason = "operands of one operation, each of another kind")]
    pub fn permute_quantize<T: Quantise>(
        &self,
        stream: &Stream,
        rows: &Buffer<T>,
        width: usize,
        layout: &RowLayout,
        rule: ScaleRule,
        codes: &mut Buffer<E4M3>,
        scales: &mut Buffer<f32>,
        order: ScaleOrder,
    ) -> Result<()> {
        check_width("columns to quantise", width, SCALE_BLOCK)?;
        check_len("rows", rows.len(), layout.tokens(), width)?;
        check_len("codes", codes.len(), layout.capacity(), width)?;
        let (row, block, count) = order.strides(layout.capacity(), width / SCALE_BLOCK);
        check_len("scales", scales.len(), count, 1)?;
        let params = PermuteParams {
            rows: rows.ptr(),
            out: codes.ptr(),
            scales: scales.ptr(),
            row_stride: (width * size_of::<T>()) as u64,
            out_stride: width as u64,
            scale_row_stride: row as u64,
            scale_block_stride: block as u64,
            width: small("columns to quantise", width * size_of::<T>())? / size_of::<T>() as u32,
            policy: u32::from(rule == ScaleRule::PowerOfTwo),
            ..layout.moves()
        };
        rows.use_in(stream)?;
        codes.use_in(stream)?;
        scales.use_in(stream)?;
        layout.use_in(stream)?;
        // SAFETY: as for `permute`.
        unsafe { self.permute_quantize_raw::<T>(stream, &params) }
    }

    /// `permute_rows` over raw addresses. `pieces` is worked out here.
    ///
    /// # Errors
    /// [`Error::Shape`] for a width or strides that are not multiples of 16, and for more than 2^31 blocks; what the device refuses.
    ///
    /// # Safety
    ///
    /// Everything that `params` says is so: live memory of those sizes that the device can reach, rows of the result do not overlap, no two choices have the
    /// same row in `map`, and nothing else writes what is read, or touches what is written, until the stream is past this.
    pub unsafe fn permute_raw(&self, stream: &Stream, params: &PermuteParams) -> Result<()> {
        check_width("bytes of a row", params.width as usize, 16)?;
        // SAFETY: as this function's own.
        unsafe { launch(stream, &self.rows, params, 1) }
    }

    /// `permute_quantize_bf16` or `permute_quantize_f32` over raw addresses. `pieces` is worked out here.
    ///
    /// # Errors
    /// As [`PermuteKernels::permute_raw`], the width a multiple of 128.
    ///
    /// # Safety
    ///
    /// As [`PermuteKernels::permute_raw`], the scales included.
    pub unsafe fn permute_quantize_raw<T: Quantise>(&self, stream: &Stream, params: &PermuteParams) -> Result<()> {
        check_width("columns to quantise", params.width as usize, SCALE_BLOCK)?;
        // SAFETY: as this function's own.
        unsafe { launch(stream, &self.quantize[T::KERNEL], params, size_of::<T>() as u64) }
    }
}

/// Types of expert numbers: i32, and u32, of which those from 2^31 on count as negative.
pub trait ExpertNumber: Pod + numbers::Number {}
impl ExpertNumber for i32 {}
impl ExpertNumber for u32 {}

mod numbers {
    /// 32 bits.
    pub trait Number {}
    impl Number for i32 {}
    impl Number for u32 {}
}

/// # Safety
///
/// As the kernel's raw entry point.
unsafe fn launch(stream: &Stream, kernel: &Kernel, params: &PermuteParams, value_bytes: u64) -> Result<()> {
    for stride in [params.row_stride, params.out_stride] {
        if !stride.is_multiple_of(16) {
            return Err(wrong("stride of rows", "a multiple of 16 bytes", stride));
        }
    }
    if params.width == 0 {
        return Ok(());
    }
    let pieces = (u64::from(params.width) * value_bytes).div_ceil(PIECE);
    let warps = u64::from(params.tokens) * pieces + u64::from(params.padding_warps);
    let params = PermuteParams { pieces: small("bytes of a row", pieces as usize)?, ..*params };
    let Some(blocks) = blocks_of("rows to permute", warps.div_ceil(WARPS))? else { return Ok(()) };
    // SAFETY: the struct that the kernel takes, over memory that the caller vouches for.
    Ok(unsafe { stream.launch(kernel, &LaunchConfig::new(blocks, THREADS), Args::new().value(params)) }?)
}
