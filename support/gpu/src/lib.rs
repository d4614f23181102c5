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
//! # Back ends
//!
//! [`Device::backend`] names them; results and errors should too.
//!
//! | name | feature | devices | needs |
//! |---|---|---|---|
//! | `emulator` | `emulator` | `Device::emulated`: as many as asked for, of compute capability 9.0, in one address space | nothing |
//! | `cuda` | `cuda` | [`Device::cuda`]: the GPUs of this machine | a driver for CUDA 12.0 or later, Linux on x86-64 or AArch64; to build, a C compiler, but no toolkit |
//!
//! The same mistakes are the same errors on both: [`Error`] lists them. What differs:
//!
//! - The emulator runs what is queued when a host thread waits, in an order that a seed chooses; nothing runs behind the program's back.
//! - What a kernel does wrong is a report on the emulator (what, where, which thread, which seed) and one of the driver's few errors on a GPU, if
//!   anything. Either way the context is lost: every later call is [`Error::Kernel`].
//! - A malformed module's message begins with `line:column` on the emulator; on a GPU it is what the driver's assembler says.
//! - The emulator has no device time ([`Event::elapsed_ms`]) and does not know registers ([`KernelInfo::registers`]).
//! - Device memory comes from the device's default pool on a GPU, which is told to keep what it has; where there are no pools
//!   ([`DeviceInfo::stream_ordered`]) freeing waits for the stream. Copies from slices wait for the stream on a GPU.
//! - Sizes of parameters are asked of the driver from CUDA 12.4 on, and read from the PTX text before.
//!
//! # Ownership and order
//!
//! Everything holds its device's context, which lives as long as anything of it, and may be used from any thread. Memory is allocated and freed in the order
//! of a stream: dropping a [`Buffer`] queues freeing it behind what its stream was given before, and behind the copies that other
//! streams were given with it. What a launch in another stream uses is to be named with [`Buffer::use_in`]. Copies from and to host slices are
//! complete when they return; copies through [`Pinned`] memory are not, and whoever touches the memory waits for them.
//!
//! # Raw pointers
//!
//! [`Buffer::ptr`], [`Stream::raw`] and [`Device::raw_context`] give what other libraries want; [`Stream::launch_raw`] takes addresses
//! of memory that is not this crate's, unchecked, and [`Device::stream_from_raw`] another library's stream.

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
