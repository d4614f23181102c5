//! Expert-major rows back to tokens: for each token the weighted sum of its experts' rows (kernels/unpermute.cu).
//!
//! # Numbers
//!
//! A leaf is round(weight * row) in f32; leaves are added in f32 in the fixed tree over the experts, as [`Local::combine`](crate::cpu::Local::combine) does, with
//! the same bits; bf16 results are rounded once, and a NaN among those is 0x7fff. A token without rows becomes zeros.

use super::Arch;
use super::common::{blocks_of, check_arch, check_len, check_width, small, wrong};
use super::permute::{ExpertNumber, RowLayout};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;
use v3_gpu::{Args, Buffer, Device, DevicePtr, Kernel, LaunchConfig, Stream};
use v3_numerics::bf16;

use super::permute::MAX_TOP_K;

const THREADS: u32 = 128;
const WARPS: u64 = 4;
/// Bytes of a row that a warp adds.
const PIECE: u64 = 2048;

/// Parameters of `unpermute_FROM_TO` (kernels/unpermute.cu).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct UnpermuteParams {
    /// `[row_count, columns]`, at a multiple of 16 bytes.
    pub rows: DevicePtr,
    /// i32 `[tokens, top_k]`: the row of each choice, or -1.
    pub map: DevicePtr,
    /// i32 `[tokens, top_k]`: the expert of each choice; negative: none.
    pub experts: DevicePtr,
    /// f32 `[tokens, top_k]`; null for weights of 1.
    pub weights: DevicePtr,
    /// `[tokens, columns]`, at a multiple of 16 bytes.
    pub out: DevicePtr,
    /// u32 `[2]`, zero at first: 1 + a token that has a choice without a row; that names an expert twice.
    pub status: DevicePtr,
    /// Bytes, a multiple of 16.
    pub row_stride: u64,
    /// Bytes, a multiple of 16.
    pub out_stride: u64,
    /// Rows of the result.
    pub tokens: u32,
    /// 1 to [`MAX_TOP_K`].
    pub top_k: u32,
    /// A multiple of 8.
    pub columns: u32,
    /// Pieces of 2048 bytes of an expert's row, rounded up.
    pub pieces: u32,
    /// Rows that there are.
    pub row_count: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

const _: () = {
    assert!(size_of::<UnpermuteParams>() == 96);
    assert!(offset_of!(UnpermuteParams, status) == 40);
    assert!(offset_of!(UnpermuteParams, tokens) == 64);
    assert!(offset_of!(UnpermuteParams, row_count) == 80);
};

mod sealed {
    /// Which kernel has it.
    pub trait Known {
        const PLACE: usize;
    }
}

/// Types of rows that are added: bf16 and f32.
pub trait RowElement: Pod + sealed::Known {}
impl sealed::Known for bf16 {
    const PLACE: usize = 0;
}
impl sealed::Known for f32 {
    const PLACE: usize = 1;
}
impl RowElement for bf16 {}
impl RowElement for f32 {}

/// The kernels, loaded on a device: once, then used from any thread.
#[derive(Debug, Clone)]
pub struct UnpermuteKernels {
    /// From, to.
    kernels: [[Kernel; 2]; 2],
}

impl UnpermuteKernels {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) before compute capability 8.0; what the device refuses.
    pub fn load(device: &Device) -> Result<UnpermuteKernels> {
        check_arch(device, Arch::Sm80)?;
        let module = device.module(ptx!("unpermute.sm_80"))?;
        Ok(UnpermuteKernels {
            kernels: [
                [module.kernel("unpermute_bf16_bf16")?, module.kernel("unpermute_bf16_f32")?],
                [module.kernel("unpermute_f32_bf16")?, module.kernel("unpermute_f32_f32")?],
            ],
        })
    }

    /// The device they are loaded on.
    pub fn device(&self) -> &Device {
        self.kernels[0][0].device()
    }

    /// For each token the sum of its experts' rows, `[capacity, columns]`, times their weights `[tokens, top_k]`, if there are any: `[tokens, columns]`.
    /// `experts` are those that the layout was made of. A choice without a row, and an expert that a token names again, are left out, and
    /// [`RowLayout::check`] says so.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for other lengths, and for columns that are not a multiple of 8; what the device refuses.
    #[expect(clippy::too_many_arguments, reason = "operands of one operation, each of another kind")]
    pub fn unpermute<A: RowElement, O: RowElement, I: ExpertNumber>(
        &self,
        stream: &Stream,
        rows: &Buffer<A>,
        columns: usize,
        experts: &Buffer<I>,
        weights: Option<&Buffer<f32>>,
        layout: &RowLayout,
        out: &mut Buffer<O>,
    ) -> Result<()> {
        check_len("expert-major rows", rows.len(), layout.capacity(), columns)?;
        check_len("experts", experts.len(), layout.tokens(), layout.top_k())?;
        if let Some(weights) = weights {
            check_len("weights", weights.len(), layout.tokens(), layout.top_k())?;
            weights.use_in(stream)?;
        }
        check_len("combined rows", out.len(), layout.tokens(), columns)?;
        let params = UnpermuteParams {
            rows: rows.ptr(),
            map: layout.map.ptr(),
            experts: experts.ptr(),
            weights: weights.map_or(DevicePtr::default(), |weights| weights.ptr()),
            out: out.ptr(),
            status: layout.status.range(2..4)?,
            row_stride: columns.saturating_mul(size_of::<A>()) as u64,
            out_stride: columns.saturating_mul(size_of::<O>()) as u64,
            tokens: layout.tokens,
            top_k: layout.top_k,
            columns: small("columns", columns)?,
            row_count: layout.capacity,
            ..UnpermuteParams::zeroed()
        };
        rows.use_in(stream)?;
        experts.use_in(stream)?;
        layout.map.use_in(stream)?;
        layout.status.use_in(stream)?;
        out.use_in(stream)?;
        // SAFETY: the buffers hold as much as the kernel reads and writes, and are kept until this is done; the map leads nowhere else.
        unsafe { self.unpermute_raw::<A, O>(stream, &params) }
    }

    /// `unpermute_FROM_TO` over raw addresses. `pieces` is worked out here.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for columns that are not a multiple of 8, strides that are not one of 16, a top_k beyond [`MAX_TOP_K`], and more than 2^31
    /// blocks; what the device refuses.
    ///
    /// # Safety
    ///
    /// Everything that `params` says is so: live memory of those sizes that the device can reach, and nothing else writes what is read, or touches what is
    /// written, until the stream is past this.
    pub unsafe fn unpermute_raw<A: RowElement, O: RowElement>(&self, stream: &Stream, params: &UnpermuteParams) -> Result<()> {
        check_width("columns", params.columns as usize, 8)?;
        for stride in [params.row_stride, params.out_stride] {
            if !stride.is_multiple_of(16) {
                return Err(wrong("stride of rows", "a multiple of 16 bytes", stride));
            }
        }
        if params.top_k == 0 || params.top_k > MAX_TOP_K {
            return Err(wrong("experts of a token", format!("1 to {MAX_TOP_K}"), params.top_k));
        }
        let pieces = (u64::from(params.columns) * size_of::<A>() as u64).div_ceil(PIECE);
        let warps = u64::from(params.tokens) * pieces;
        let Some(blocks) = blocks_of("rows to combine", warps.div_ceil(WARPS))? else { return Ok(()) };
        // Sums that wait, in f32: 8 of a thread for bf16 rows, 4 for f32.
        let waiting = (params.top_k - 1) * THREADS * if size_of::<A>() == 2 { 32 } else { 16 };
        let config = LaunchConfig::new(blocks, THREADS).shared(waiting);
        // It is below 2^23.
        let params = UnpermuteParams { pieces: pieces as u32, ..*params };
        // SAFETY: the struct that the kernel takes, over memory that the caller vouches for.
        Ok(unsafe { stream.launch(&self.kernels[A::PLACE][O::PLACE], &config, Args::new().value(params)) }?)
    }
}
