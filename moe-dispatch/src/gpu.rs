//! The same on GPUs: kernels/ over `v3-gpu`.
//!
//! Two back ends execute them, and nothing here knows which: an NVIDIA GPU (`cuda`, with this crate's feature of that name), or `emulator`, which runs
//! the same PTX on the CPU and is what this crate's tests use. [`v3_gpu::Device::backend`] says which one a device is.
//!
//! | module | what | bits |
//! |---|---|---|
//! | [`router`] | logits to experts and weights | those of [`route`](crate::router::route) |
//! | [`permute`] | where each expert's rows go; rows there, as they are or as E4M3 with a scale for each 128 values | those of the CPU's rule |
//! | [`unpermute`] | each token's rows back, times their weights, added in the tree | those of [`Local::combine`](crate::cpu::Local::combine) |
//! | [`exchange`] | dispatch and combine between devices | those of `reference::dispatch::combine_rounded` |
//!
//! Each comes as well over raw addresses, `unsafe`, on any library's memory, and on its streams through [`v3_gpu::Device::stream_from_raw`]. Nothing is read
//! back between the steps, and all memory has the size of the worst case, so that a captured graph can hold them. What is wrong in the values is left out, and
//! `check` of the object in question says so.
//!
//! ```no_run
//! use moe_dispatch::gpu::permute::{PermuteKernels, RowLayout, ScaleOrder, ScaleRule};
//! use moe_dispatch::gpu::router::{DeviceRouting, RouterKernels};
//! use moe_dispatch::gpu::unpermute::UnpermuteKernels;
//! use moe_dispatch::router::RouterConfig;
//! use v3_numerics::{E4M3, bf16};
//!
//! # fn main() -> moe_dispatch::Result<()> {
//! let (config, tokens, d) = (RouterConfig::deepseek_v3(), 4096, 7168);
//! let device = v3_gpu::Device::cuda(0)?;
//! let stream = device.stream()?;
//! # let (logits, x) = (stream.alloc::<f32>(tokens * 256)?, stream.alloc::<bf16>(tokens * d)?);
//! let mut routing = DeviceRouting::new(&stream, &config, tokens, false)?;
//! RouterKernels::load(&device)?.route(&stream, &config, &logits, None, &mut routing)?; // logits: [T, 256] f32
//!
//! let permute = PermuteKernels::load(&device)?;
//! let mut layout = RowLayout::new(&stream, tokens, 8, 256, 128)?; // experts begin at multiples of 128
//! permute.lay_out(&stream, routing.indices(), &mut layout)?;
//! let mut codes = stream.alloc::<E4M3>(layout.capacity() * d)?;
//! let mut scales = stream.alloc::<f32>(layout.capacity() * (d / 128))?;
//! permute.permute_quantize(&stream, &x, d, &layout, ScaleRule::F32, &mut codes, &mut scales, ScaleOrder::Rows)?; // x: [T, d] bf16
//!
//! // ... the experts, on rows layout.offsets()[e]..layout.offsets()[e + 1] ...
//! # let rows = stream.alloc::<bf16>(layout.capacity() * d)?;
//! let mut y = stream.alloc::<bf16>(tokens * d)?;
//! let weights = Some(routing.weights());
//! UnpermuteKernels::load(&device)?.unpermute(&stream, &rows, d, routing.indices(), weights, &layout, &mut y)?;
//! layout.check(&stream)?;
//! # Ok(())
//! # }
//! ```

/// A kernel's text: what build.rs compiled, or what is checked in.
macro_rules! ptx {
    ($name:literal) => {{
        #[cfg(compiled_kernels)]
        let text = include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx"));
        #[cfg(not(compiled_kernels))]
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/ptx/", $name, ".ptx"));
        text
    }};
}

mod arch;
mod common;
pub mod exchange;
pub mod permute;
pub mod router;
pub mod unpermute;

pub use arch::Arch;
