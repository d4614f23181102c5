//! The same arithmetic on GPUs: quantisers and the FP8 product of kernels/, over `v3-gpu`.
//!
//! Two back ends execute them, and [`Kernels`] does not know which: an NVIDIA GPU (`cuda`, with this crate's feature of that name), or `emulator`, which runs
//! the same PTX on the CPU and is what this crate's tests use. [`v3_gpu::Device::backend`] says which one a device is.
//!
//! | function | what | from |
//! |---|---|---|
//! | [`Kernels::quantize_1x128`] | bf16 to E4M3 with 1x128 scales; the bits of [`crate::quantize::quantize_1x128`] | sm_80 |
//! | [`Kernels::quantize_1x128_with_transpose`] | the same, and the transposed copy with scales along tokens; the bits of [`crate::quantize::quantize_1x128_with_transpose`] | sm_80 |
//! | [`Kernels::gemm_nt`] | D = A Bᵀ, 1x128 by 128x128, bf16 out | sm_90a |
//!
//! Each comes as well over raw addresses, `unsafe`: [`Kernels::quantize_1x128_raw`], [`Kernels::quantize_1x128_with_transpose_raw`],
//! [`Kernels::gemm_nt_raw`], on any library's memory, and on its streams through [`v3_gpu::Device::stream_from_raw`].
//!
//! ```no_run
//! use fp8_gemm::gpu::{Activation, Kernels, View, ViewMut, Weight};
//! use fp8_gemm::{ScalePolicy, quantize::quantize_128x128};
//! use v3_numerics::{MatRef, bf16};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (tokens, out_features, in_features) = (100, 384, 512);
//! # let (w, x) = (vec![0.0f32; out_features * in_features], vec![bf16::ZERO; tokens * in_features]);
//! let device = v3_gpu::Device::cuda(0)?;
//! let (kernels, stream) = (Kernels::load(&device)?, device.stream()?);
//!
//! let weight = quantize_128x128(MatRef::new(&w, out_features, in_features)?, ScalePolicy::F32); // w: [out, in] f32
//! let weight = Weight::upload(&stream, &weight)?;
//! let x = stream.upload(&x)?; // [tokens, in] bf16
//! let mut input = Activation::new(&stream, tokens, in_features)?;
//! kernels.quantize_1x128(&stream, View::new(&x, tokens, in_features)?, ScalePolicy::F32, &mut input)?;
//! let mut y = stream.alloc::<bf16>(tokens * out_features)?;
//! kernels.gemm_nt(&stream, input.view(), weight.view(), ViewMut::new(&mut y, tokens, out_features)?)?;
//! let y = stream.download(&y)?; // waits
//! # Ok(())
//! # }
//! ```
//!
//! # Numbers
//!
//! The product sums as the CPU's does ([`crate::reference::matmul_promoted`]) except inside of a chain of 128, where the tensor core sums four times 32 in
//! an order and a precision of its own: Hopper keeps about 14 bits of each partial sum, which is why chains are no longer than that. The total
//! is rounded once to bf16. **The bits depend on the two rows alone**: not on the number of rows, nor on the plan.
//!
//! # Order
//!
//! Everything is queued on the stream that is given, and kernels are launched programmatically: on Hopper one begins while the one before it ends. Buffers
//! of other streams are kept until the work is done ([`v3_gpu::Buffer::use_in`]); that their values are there before is the caller's
//! to see to ([`v3_gpu::Stream::wait`]).

mod operand;
mod params;
mod plan;
mod view;

pub use operand::{Activation, Rows128, Square128, Weight};
pub use params::{Fp8Gemm1d2dParams, QuantizeParams, policy_code};
pub use plan::{Arch, GEMM_TILE, GemmPlan};
pub use view::{View, ViewMut};

use crate::error::{Error, Result, check_shape};
use crate::{BLOCK, ScalePolicy};
use operand::check_aligned;
use v3_gpu::{Args, Device, DevicePtr, Kernel, L2Promotion, LaunchConfig, Stream, Swizzle, TensorMapDesc, TensorType};
use v3_numerics::bf16;

/// A kernel's text: what build.rs compiled, or what is checked in.
macro_rules! ptx {
    ($name:literal) => {{
        #[cfg(compiled_kernels)]
        let text = include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx"));
        #[cfg(not(compiled_kernels))]
        let text = include_str!(concat!("../ptx/", $name, ".ptx"));
        text
    }};
}

/// Threads of a block of the quantisers, rows and half warps of it, and what the transposing one takes of shared memory
/// (kernels/quantize_1x128.cu).
const QUANTIZE_THREADS: u32 = 256;
const QUANTIZE_ROWS: u64 = 4;
const QUANTIZE_HALF_WARPS: u64 = 16;
const TRANSPOSE_SHARED: u32 = 18944;

/// Threads and shared memory of a block of the product (kernels/sm90_fp8_gemm_1d2d.cu).
const GEMM_THREADS: u32 = 384;
const GEMM_SHARED: u32 = 199_248;

/// The kernels, loaded on a device: once, then used from any thread.
#[derive(Debug, Clone)]
pub struct Kernels {
    arch: Arch,
    sm_count: u32,
    quantize: Kernel,
    quantize_with_transpose: Kernel,
    gemm: Option<Gemm>,
}

#[derive(Debug, Clone)]
struct Gemm {
    single: Kernel,
    multicast: Kernel,
}

/// A product over raw addresses: D `[m, n]` = A `[m, k]` Bᵀ, B `[n, k]`.
///
/// Strides are those from one row to the next, in elements. Addresses of A, B, scales of A and D, and the distances of their rows in
/// bytes, are multiples of 16 (the distance does not matter where there is one row).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawGemm {
    /// E4M3 `[m, k]`.
    pub a: DevicePtr,
    /// At least k.
    pub a_stride: u64,
    /// f32 `[ceil(k / 128), m]`: a scale for each 128 values of a row of A.
    pub scales_a: DevicePtr,
    /// At least m.
    pub scales_a_stride: u64,
    /// E4M3 `[n, k]`.
    pub b: DevicePtr,
    /// At least k.
    pub b_stride: u64,
    /// f32 `[ceil(n / 128), ceil(k / 128)]`: a scale for each 128 by 128 values of B.
    pub scales_b: DevicePtr,
    /// At least ceil(k / 128).
    pub scales_b_stride: u64,
    /// bf16 `[m, n]`.
    pub d: DevicePtr,
    /// At least n.
    pub d_stride: u64,
    /// Rows of A and D.
    pub m: u32,
    /// Rows of B, columns of D.
    pub n: u32,
    /// Columns of A and B. With none of them D becomes zeros.
    pub k: u32,
}

impl Kernels {
    /// Loads the kernels that the device runs best. [`Error::Unsupported`] before compute capability 8.0.
    pub fn load(device: &Device) -> Result<Kernels> {
        Self::load_for(device, Arch::of(device.info()?.compute_capability)?)
    }

    /// Loads the kernels of one architecture, which the device must run.
    pub fn load_for(device: &Device, arch: Arch) -> Result<Kernels> {
        let info = device.info()?;
        if !arch.runs_on(info.compute_capability) {
            let (major, minor) = info.compute_capability;
            let got = format!("{} of compute capability {major}.{minor}", info.name);
            return Err(Error::Unsupported { what: "GPU", expected: "one that runs the architecture asked for", got });
        }
        let (quantize, gemm) = match arch {
            Arch::Sm80 => (ptx!("quantize_1x128.sm_80"), None),
            Arch::Sm90a => {
                let kernel = |text| device.module(text)?.kernel("sm90_fp8_gemm_1d2d");
                let single = kernel(ptx!("sm90_fp8_gemm_1d2d.sm_90a"))?;
                let multicast = kernel(ptx!("sm90_fp8_gemm_1d2d-multicast.sm_90a"))?;
                (ptx!("quantize_1x128.sm_90a"), Some(Gemm { single, multicast }))
            }
        };
        let quantize = device.module(quantize)?;
        Ok(Kernels {
            arch,
            sm_count: info.sm_count,
            quantize_with_transpose: quantize.kernel("quantize_1x128_with_transpose")?,
            quantize: quantize.kernel("quantize_1x128")?,
            gemm,
        })
    }

    /// Which text of the kernels this is.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The device they are loaded on.
    pub fn device(&self) -> &Device {
        self.quantize.device()
    }

    /// How [`Kernels::gemm_nt`] launches a product with D `[m, n]`.
    pub fn plan(&self, m: u32, n: u32) -> GemmPlan {
        GemmPlan::new(m, n, self.sm_count)
    }

    /// Quantises `x` with a scale for each 128 values of a row. `out` has the shape of `x`.
    pub fn quantize_1x128(&self, stream: &Stream, x: View<'_, bf16>, policy: ScalePolicy, out: &mut Activation) -> Result<()> {
        check_shape("quantised rows", (x.rows(), x.cols()), (out.rows(), out.cols()))?;
        let params = quantize_params(x, policy, out, None)?;
        x.use_in(stream)?;
        out.codes.use_in(stream)?;
        out.scales.use_in(stream)?;
        // SAFETY: the views and the operand hold as much as the kernel reads and writes; their memory is kept until this is done.
        unsafe { self.quantize_1x128_raw(stream, &params) }
    }

    /// Quantises `x` `[rows, cols]` as [`Kernels::quantize_1x128`] does, and into `transposed` `[cols, rows]` its transpose, with a scale for each
    /// 128 rows of a column of `x`. Both are made from `x` itself.
    pub fn quantize_1x128_with_transpose(
        &self,
        stream: &Stream,
        x: View<'_, bf16>,
        policy: ScalePolicy,
        out: &mut Activation,
        transposed: &mut Activation,
    ) -> Result<()> {
        check_shape("quantised rows", (x.rows(), x.cols()), (out.rows(), out.cols()))?;
        check_shape("quantised columns", (x.cols(), x.rows()), (transposed.rows(), transposed.cols()))?;
        let params = quantize_params(x, policy, out, Some(transposed))?;
        x.use_in(stream)?;
        for activation in [&*out, &*transposed] {
            activation.codes.use_in(stream)?;
            activation.scales.use_in(stream)?;
        }
        // SAFETY: as for `quantize_1x128`.
        unsafe { self.quantize_1x128_with_transpose_raw(stream, &params) }
    }

    /// `quantize_1x128` over raw addresses. With no rows or no columns it does nothing.
    ///
    /// # Safety
    ///
    /// The addresses, strides and sizes of `params` (without those of the transposed copy) describe live memory that the device can reach,
    /// rows do not overlap, and nothing else writes what is read, or touches what is written, until the stream is past this.
    pub unsafe fn quantize_1x128_raw(&self, stream: &Stream, params: &QuantizeParams) -> Result<()> {
        let units = u64::from(params.rows).div_ceil(QUANTIZE_ROWS) * u64::from(params.cols).div_ceil(BLOCK as u64);
        // SAFETY: as this function's own.
        unsafe { launch_quantizer(stream, &self.quantize, params, units.div_ceil(QUANTIZE_HALF_WARPS), 0) }
    }

    /// `quantize_1x128_with_transpose` over raw addresses. With no rows or no columns it does nothing.
    ///
    /// # Safety
    ///
    /// As for [`Kernels::quantize_1x128_raw`], the transposed copy included.
    pub unsafe fn quantize_1x128_with_transpose_raw(&self, stream: &Stream, params: &QuantizeParams) -> Result<()> {
        let blocks = u64::from(params.rows).div_ceil(BLOCK as u64) * u64::from(params.cols).div_ceil(BLOCK as u64);
        // SAFETY: as this function's own.
        unsafe { launch_quantizer(stream, &self.quantize_with_transpose, params, blocks, TRANSPOSE_SHARED) }
    }

    /// `d` `[m, n]` = `a` `[m, k]` times the transpose of `b` `[n, k]`. `d` is overwritten; it begins at a multiple of 16 bytes, and its rows are a
    /// multiple of 8 elements apart. With k = 0 it becomes zeros. [`Error::Unsupported`] on devices that are not Hopper.
    pub fn gemm_nt(&self, stream: &Stream, a: Rows128<'_>, b: Square128<'_>, d: ViewMut<'_, bf16>) -> Result<()> {
        let (m, n) = (dimension("m", d.rows())?, dimension("n", d.cols())?);
        self.gemm_nt_with(stream, a, b, d, &self.plan(m, n))
    }

    /// [`Kernels::gemm_nt`] with a plan of the caller's. Every plan gives the same bits.
    pub fn gemm_nt_with(
        &self,
        stream: &Stream,
        a: Rows128<'_>,
        b: Square128<'_>,
        d: ViewMut<'_, bf16>,
        plan: &GemmPlan,
    ) -> Result<()> {
        check_shape("a", (d.rows(), b.cols()), (a.rows(), a.cols()))?;
        check_shape("d", (a.rows(), b.rows()), (d.rows(), d.cols()))?;
        check_aligned("d", d.ptr().0, d.rows(), d.row_stride() * 2, 16)?;
        let gemm = RawGemm {
            a: a.codes.ptr(),
            a_stride: a.codes.row_stride() as u64,
            scales_a: a.scales.ptr(),
            scales_a_stride: a.scales.row_stride() as u64,
            b: b.codes.ptr(),
            b_stride: b.codes.row_stride() as u64,
            scales_b: b.scales.ptr(),
            scales_b_stride: b.scales.row_stride() as u64,
            d: d.ptr(),
            d_stride: d.row_stride() as u64,
            m: dimension("m", d.rows())?,
            n: dimension("n", d.cols())?,
            k: dimension("k", a.cols())?,
        };
        a.codes.use_in(stream)?;
        a.scales.use_in(stream)?;
        b.codes.use_in(stream)?;
        b.scales.use_in(stream)?;
        d.use_in(stream)?;
        // SAFETY: the views hold as much as the kernel reads and writes; their memory is kept until this is done.
        unsafe { self.gemm_nt_raw(stream, &gemm, plan) }
    }

    /// [`Kernels::gemm_nt_with`] over raw addresses.
    ///
    /// # Safety
    ///
    /// The addresses, strides and sizes of `gemm` describe live memory that the device can reach, rows of D do not overlap, and nothing else
    /// writes what is read, or touches D, until the stream is past this.
    pub unsafe fn gemm_nt_raw(&self, stream: &Stream, gemm: &RawGemm, plan: &GemmPlan) -> Result<()> {
        let Some(kernels) = &self.gemm else {
            let got = format!("the kernels of {}", self.arch);
            return Err(Error::Unsupported { what: "FP8 product on a GPU", expected: "sm_90a", got });
        };
        let (m, n, k) = (gemm.m, gemm.n, gemm.k);
        for (what, size) in [("m", m), ("n", n), ("k", k)] {
            // Coordinates of tensor copies are signed.
            dimension(what, size as usize)?;
        }
        let (d_stride, width) = (gemm.d_stride, u64::from(n));
        if m == 0 || n == 0 {
            return Ok(());
        }
        if k == 0 {
            // SAFETY: D, which the caller lends for writing.
            return unsafe { zero_rows(stream, gemm.d, m, width * 2, d_stride * 2) };
        }
        let kernel = match plan.cluster {
            1 => &kernels.single,
            2 => &kernels.multicast,
            other => return Err(Error::Unsupported { what: "cluster of a plan", expected: "1 or 2", got: other.to_string() }),
        };
        let tiles = u64::from(m).div_ceil(128 * u64::from(plan.cluster)) * width.div_ceil(128);
        let fits = tiles < 1 << 31 && plan.raster_rows > 0 && plan.blocks > 0 && plan.blocks.is_multiple_of(plan.cluster);
        if !fits {
            return Err(Error::Unsupported {
                what: "plan of a product",
                expected: "blocks in whole clusters, raster_rows of 1 or more, fewer than 2^31 tiles",
                got: format!("{plan:?} for {tiles} tiles"),
            });
        }
        let params = self.gemm_params(gemm, plan)?;
        let config = LaunchConfig::new(plan.blocks, GEMM_THREADS).shared(GEMM_SHARED).programmatic();
        // SAFETY: the struct that the kernel takes, over memory that the caller vouches for.
        Ok(unsafe { stream.launch(kernel, &config, Args::new().value(params)) }?)
    }

    fn gemm_params(&self, gemm: &RawGemm, plan: &GemmPlan) -> Result<Fp8Gemm1d2dParams> {
        let &RawGemm { m, n, k, .. } = gemm;
        let [m_, n_, k_] = [m, n, k].map(u64::from);
        let blocks_k = k_.div_ceil(BLOCK as u64);
        // One row has no next one: any distance will do that TMA takes.
        let bytes = |rows: u64, stride: u64, width: u64, size: u64| {
            let stride = if rows == 1 { width.next_multiple_of(16) } else { stride };
            stride.saturating_mul(size)
        };
        let encode = |desc: TensorMapDesc| self.device().tensor_map_raw(&desc);
        let codes = |address, rows, stride, box_rows| {
            let row_bytes = bytes(rows, stride, k_, 1);
            TensorMapDesc::matrix(TensorType::U8, address, [rows, k_], row_bytes, [box_rows, 128])
                .swizzle(Swizzle::B128)
                .l2_promotion(L2Promotion::B256)
        };
        let scales_bytes = bytes(blocks_k, gemm.scales_a_stride, m_, 4);
        let scales = TensorMapDesc::matrix(TensorType::F32, gemm.scales_a, [blocks_k, m_], scales_bytes, [1, 128]);
        let d_bytes = bytes(m_, gemm.d_stride, n_, 2);
        let d = TensorMapDesc::matrix(TensorType::Bf16, gemm.d, [m_, n_], d_bytes, [64, 64]).swizzle(Swizzle::B128);
        Ok(Fp8Gemm1d2dParams {
            a: encode(codes(gemm.a, m_, gemm.a_stride, 128))?,
            b: encode(codes(gemm.b, n_, gemm.b_stride, 128 / plan.cluster))?,
            scales_a: encode(scales)?,
            d: encode(d)?,
            scales_b: gemm.scales_b,
            scales_b_stride: gemm.scales_b_stride,
            m,
            n,
            k,
            raster_rows: plan.raster_rows,
            reserved: [0; 24],
        })
    }
}

fn quantize_params(
    x: View<'_, bf16>,
    policy: ScalePolicy,
    out: &Activation,
    transposed: Option<&Activation>,
) -> Result<QuantizeParams> {
    let null = DevicePtr::default();
    Ok(QuantizeParams {
        x: x.ptr(),
        codes: out.codes.ptr(),
        scales: out.scales.ptr(),
        codes_t: transposed.map_or(null, |t| t.codes.ptr()),
        scales_t: transposed.map_or(null, |t| t.scales.ptr()),
        x_stride: x.row_stride() as u64,
        codes_stride: out.codes_stride() as u64,
        scale_row_stride: 1,
        scale_block_stride: out.scales_stride() as u64,
        codes_t_stride: transposed.map_or(0, |t| t.codes_stride() as u64),
        scale_t_row_stride: 1,
        scale_t_block_stride: transposed.map_or(0, |t| t.scales_stride() as u64),
        rows: dimension("rows", x.rows())?,
        cols: dimension("columns", x.cols())?,
        policy: policy_code(policy),
        reserved: [0; 5],
    })
}

/// # Safety
///
/// As for the kernel's raw entry point.
unsafe fn launch_quantizer(stream: &Stream, kernel: &Kernel, params: &QuantizeParams, blocks: u64, shared: u32) -> Result<()> {
    if blocks == 0 {
        return Ok(());
    }
    let Some(blocks) = u32::try_from(blocks).ok().filter(|&b| b <= i32::MAX as u32) else {
        return Err(Error::Shape {
            what: "matrix to quantise",
            expected: "fewer than 2^31 blocks".into(),
            got: blocks.to_string(),
        });
    };
    let config = LaunchConfig::new(blocks, QUANTIZE_THREADS).shared(shared).programmatic();
    // SAFETY: the struct that the kernel takes, over memory that the caller vouches for.
    Ok(unsafe { stream.launch(kernel, &config, Args::new().value(*params)) }?)
}

/// # Safety
///
/// `rows` rows of `width` bytes, `stride` apart from `address` on, are live and lent for writing.
unsafe fn zero_rows(stream: &Stream, address: DevicePtr, rows: u32, width: u64, stride: u64) -> Result<()> {
    if rows == 1 || stride == width {
        // SAFETY: they lie without gaps.
        return Ok(unsafe { stream.fill_raw(address, 0, u64::from(rows) * width) }?);
    }
    for row in 0..u64::from(rows) {
        // SAFETY: one of the rows.
        unsafe { stream.fill_raw(address.offset(row * stride), 0, width) }?;
    }
    Ok(())
}

/// A size that the kernels can count.
fn dimension(what: &'static str, size: usize) -> Result<u32> {
    u32::try_from(size).ok().filter(|&size| size <= i32::MAX as u32).ok_or_else(|| Error::Shape {
        what,
        expected: "less than 2^31".into(),
        got: size.to_string(),
    })
}
