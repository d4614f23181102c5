//! What a back end has to do. One object is one device's context.

use crate::{Backend, DeviceInfo, KernelInfo, LaunchConfig, Result, TensorMapDesc};
use std::any::Any;

/// A stream, event, module or kernel as the back end names it.
pub(crate) type Handle = u64;

/// A device's context. Handles are those that this object gave out.
pub(crate) trait Driver: Send + Sync + std::fmt::Debug {
    #[cfg_attr(not(any(feature = "emulator", feature = "cuda")), allow(dead_code))] // only back ends tell each other apart
    fn as_any(&self) -> &dyn Any;
    fn backend(&self) -> Backend;
    fn ordinal(&self) -> u32;
    fn info(&self) -> Result<DeviceInfo>;
    /// Waits for everything on the device.
    fn synchronize(&self) -> Result<()>;
    /// Calls `body` while the context is the current one of this thread, where there are such things.
    fn with_current(&self, body: &mut dyn FnMut()) -> Result<()> {
        body();
        Ok(())
    }

    fn alloc(&self, bytes: u64, stream: Handle) -> Result<u64>;
    fn free(&self, address: u64, stream: Handle) -> Result<()>;
    /// Host memory that the device can reach: where the host sees it, and where the device does.
    fn pinned(&self, bytes: u64) -> Result<(*mut u8, u64)>;
    fn free_pinned(&self, host: *mut u8, device: u64) -> Result<()>;

    fn stream_create(&self) -> Result<Handle>;
    fn stream_destroy(&self, stream: Handle) -> Result<()>;
    fn stream_synchronize(&self, stream: Handle) -> Result<()>;
    fn event_create(&self, timing: bool) -> Result<Handle>;
    fn event_destroy(&self, event: Handle) -> Result<()>;
    fn event_record(&self, event: Handle, stream: Handle) -> Result<()>;
    fn event_synchronize(&self, event: Handle) -> Result<()>;
    fn event_done(&self, event: Handle) -> Result<bool>;
    fn event_elapsed_ms(&self, from: Handle, to: Handle) -> Result<f32>;
    fn stream_wait_event(&self, stream: Handle, event: Handle) -> Result<()>;

    /// The bytes are taken before it returns.
    fn write(&self, stream: Handle, to: u64, bytes: &[u8]) -> Result<()>;
    /// Waits for the stream.
    fn read(&self, stream: Handle, from: u64, bytes: &mut [u8]) -> Result<()>;
    fn copy(&self, stream: Handle, to: u64, from: u64, bytes: u64) -> Result<()>;
    fn fill(&self, stream: Handle, to: u64, value: u8, bytes: u64) -> Result<()>;

    fn module_load(&self, ptx: &str) -> Result<Handle>;
    fn module_unload(&self, module: Handle) -> Result<()>;
    fn kernel(&self, module: Handle, name: &str) -> Result<(Handle, KernelInfo)>;
    fn global(&self, module: Handle, name: &str) -> Result<(u64, u64)>;
    /// Blocks of this kernel that fit on one multiprocessor.
    fn occupancy(&self, kernel: Handle, threads: u32, dynamic_shared: u32) -> Result<u32>;
    fn launch(&self, stream: Handle, kernel: Handle, config: &LaunchConfig, args: &[Vec<u8>]) -> Result<()>;

    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<[u8; 128]>;
    fn can_access_peer(&self, other: &dyn Driver) -> Result<bool>;
    fn enable_peer_access(&self, other: &dyn Driver) -> Result<()>;
}
