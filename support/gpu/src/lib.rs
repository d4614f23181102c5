//! Devices, memory, streams, launches and tensor maps: over the CUDA driver, or over an emulator of PTX.
//!
//! One safe API, two back ends: `cust` and the driver itself (feature `cuda`), and [`ptx-emu`](https://docs.rs/ptx-emu) (feature
//! `emulator`), which executes the same PTX on the CPU and reports races, hangs and bad accesses. Code that launches kernels is
//! written, and tested, once.
//!
//! A binary built with `cuda` starts on a machine without a driver: [`Device::cuda`] is then the error [`Error::NoDevice`].
//!
//! ```
//! # #[cfg(feature = "emulator")]
//! # fn main() -> Result<(), v3_gpu::Error> {
//! use v3_gpu::{Args, Device, EmulatorConfig, LaunchConfig};
//!
//! let ptx = r#"
//! .version 8.0
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 x, .param .u32 n) {
//!     .reg .b64 %rd<4>;
//!     .reg .b32 %r<6>;
//!     .reg .pred %p;
//!     ld.param.u64 %rd1, [x];
//!     ld.param.u32 %r1, [n];
//!     mov.u32 %r2, %tid.x;
//!     setp.ge.u32 %p, %r2, %r1;
//!     @%p ret;
//!     mul.wide.u32 %rd2, %r2, 4;
//!     add.s64 %rd3, %rd1, %rd2;
//!     ld.global.u32 %r3, [%rd3];
//!     shl.b32 %r4, %r3, 1;
//!     st.global.u32 [%rd3], %r4;
//!     ret;
//! }"#;
//! let device = Device::emulated(&EmulatorConfig::default())?.remove(0);
//! let stream = device.stream()?;
//! let kernel = device.module(ptx)?.kernel("twice")?;
//! let x = stream.upload(&[1u32, 2, 3])?;
//! let args = Args::new().buffer(&x).value(3u32);
//! // SAFETY: the kernel reads and writes the three elements of `x` alone.
//! unsafe { stream.launch(&kernel, &LaunchConfig::new(1, 32), args)? };
//! assert_eq!(stream.download(&x)?, [2, 4, 6]);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "emulator"))]
//! # fn main() {}
//! ```
//!
//! # Ownership and order
//!
//! Everything holds its device's context, which lives as long as anything of it. Memory is allocated and freed in the order of a stream:
//! dropping a [`Buffer`] queues freeing it behind what its stream was given before. If other streams use the buffer, let its stream wait
//! for them ([`Stream::wait`]) before dropping it. Copies from and to host slices are complete when they return; copies through
//! [`Pinned`] memory are not.
//!
//! # Raw pointers
//!
//! [`Buffer::ptr`], [`Stream::raw`] and [`Device::raw_context`] give what other libraries want; [`Stream::launch_raw`] takes addresses
//! of memory that is not this crate's, unchecked.

mod buffer;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod driver;
#[cfg(feature = "emulator")]
mod emulator;
#[cfg(any(feature = "cuda", test))]
mod entry;
mod error;
mod stream;
#[cfg(feature = "cuda")]
mod sys;
mod tensor_map;

pub use buffer::{Buffer, DevicePtr, Pinned};
pub use device::{Backend, Device, DeviceInfo, Kernel, KernelInfo, Module};
#[cfg(feature = "emulator")]
pub use emulator::{EmulatorChecks, EmulatorConfig, Fp8Accumulation};
pub use error::{Error, Result};
pub use stream::{Args, Event, LaunchConfig, Stream};
pub use tensor_map::{L2Promotion, OutOfBoundsFill, Swizzle, TensorMap, TensorMapDesc, TensorType};
