//! Devices, modules and kernels.

use crate::buffer::DevicePtr;
use crate::driver::{Driver, Handle};
use crate::stream::{Event, Stream};
use crate::{Error, Pinned, Result, TensorMap, TensorMapDesc};
use bytemuck::Pod;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What executes kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The emulator of PTX on the CPU.
    Emulator,
    /// An NVIDIA GPU through the CUDA driver.
    Cuda,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Backend::Emulator => "emulator",
            Backend::Cuda => "cuda",
        })
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Name, as the driver has it.
    pub name: String,
    /// (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub sm_count: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Most shared memory of a block, in bytes.
    pub max_shared_per_block: u32,
    /// Bytes of L2.
    pub l2_bytes: u64,
    /// Whether memory is allocated and freed in the order of a stream. Where the driver has no memory pools for the device, allocating may
    /// wait for the device, and freeing waits for the stream.
    pub stream_ordered: bool,
    /// Version of the driver, or of the emulator.
    pub driver: String,
}

/// What a kernel is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelInfo {
    /// Name.
    pub name: String,
    /// Bytes of each parameter.
    pub params: Vec<u32>,
    /// Most threads of a block.
    pub max_threads: u32,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    /// Most dynamic shared memory of a block, in bytes.
    pub max_dynamic_shared: u32,
    /// Blocks of a cluster in x, y, z, where the kernel says them itself.
    pub cluster: Option<[u32; 3]>,
    /// Registers of a thread; None where the back end does not know.
    pub registers: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) driver: Box<dyn Driver>,
    /// Live allocations of this context and of the peers it may access: address, bytes.
    live: Mutex<BTreeMap<u64, u64>>,
    /// Those that it may access. Not kept alive: two devices may be each other's peers.
    peers: Mutex<Vec<Weak<Context>>>,
}

impl Context {
    fn live(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, address: u64, bytes: u64) {
        self.live().insert(address, bytes);
    }

    pub(crate) fn remove(&self, address: u64) {
        self.live().remove(&address);
    }

    /// Whether an address lies in a live allocation of this context or of a peer.
    pub(crate) fn owns(&self, address: u64) -> bool {
        let here = |c: &Context| c.live().range(..=address).next_back().is_some_and(|(&a, &n)| address - a < n.max(1));
        here(self) || self.peers().iter().filter_map(Weak::upgrade).any(|p| here(&p))
    }

    /// Whether it is this context or one that it has access to.
    pub(crate) fn reaches(&self, other: &Context) -> bool {
        std::ptr::eq(self, other) || self.peers().iter().any(|p| std::ptr::eq(p.as_ptr(), other))
    }

    fn peers(&self) -> MutexGuard<'_, Vec<Weak<Context>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device, with its context. Clones are the same device.
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) context: Arc<Context>,
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.context, &other.context)
    }
}

impl Device {
    #[cfg_attr(not(any(feature = "emulator", feature = "cuda")), allow(dead_code))] // without a back end there is no device
    pub(crate) fn new(driver: Box<dyn Driver>) -> Device {
        Device { context: Arc::new(Context { driver, live: Mutex::default(), peers: Mutex::default() }) }
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.context.driver
    }

    /// The devices of a new emulated machine.
    #[cfg(feature = "emulator")]
    pub fn emulated(config: &crate::EmulatorConfig) -> Result<Vec<Device>> {
        crate::emulator::devices(config)
    }

    /// A GPU by its number. [`Error::NoDevice`] where there is no driver or no such GPU; [`Error::Unsupported`] where this crate was built
    /// without `cuda`.
    pub fn cuda(ordinal: u32) -> Result<Device> {
        #[cfg(feature = "cuda")]
        return crate::cuda::device(ordinal);
        #[cfg(not(feature = "cuda"))]
        Err(Error::Unsupported { what: format!("CUDA device {ordinal}: v3-gpu was built without its feature cuda") })
    }

    /// The number of GPUs. [`Error::NoDevice`] where there is no driver.
    pub fn cuda_count() -> Result<u32> {
        #[cfg(feature = "cuda")]
        return crate::cuda::count();
        #[cfg(not(feature = "cuda"))]
        Err(Error::Unsupported { what: "v3-gpu was built without its feature cuda".into() })
    }

    /// What executes kernels.
    pub fn backend(&self) -> Backend {
        self.driver().backend()
    }

    /// Its number among the devices of its back end.
    pub fn ordinal(&self) -> u32 {
        self.driver().ordinal()
    }

    /// What it is.
    pub fn info(&self) -> Result<DeviceInfo> {
        self.driver().info()
    }

    /// Waits for everything queued on the device.
    pub fn synchronize(&self) -> Result<()> {
        self.driver().synchronize()
    }

    /// Calls `body` while this device's context is the current one of the calling thread, for libraries that look there. The thread gets back the
    /// one that it had, even when `body` panics. On the emulator there is no such thing, and `body` is called.
    pub fn with_current<R>(&self, body: impl FnOnce() -> R) -> Result<R> {
        let (mut body, mut result) = (Some(body), None);
        self.driver().with_current(&mut || result = body.take().map(|body| body()))?;
        // Every driver calls it once.
        result.ok_or_else(|| Error::Unsupported { what: "calling a function with this device current".into() })
    }

    /// A new stream.
    pub fn stream(&self) -> Result<Stream> {
        Stream::new(self)
    }

    /// A stream that another library made on this device: its handle ([`Stream::raw`], for CUDA a `CUstream`).
    ///
    /// # Safety
    ///
    /// The handle is of a live stream of this device's context (for CUDA the primary context), and stays so as long as the result, its
    /// clones, and buffers that were allocated in it.
    pub unsafe fn stream_from_raw(&self, handle: u64) -> Stream {
        Stream::borrow(self, handle)
    }

    /// A new event. With `timing`, [`Event::elapsed_ms`] can be asked of it.
    pub fn event(&self, timing: bool) -> Result<Event> {
        Event::new(self, timing)
    }

    /// Loads a PTX module: compiles it for the device, or decodes it for the emulator.
    pub fn module(&self, ptx: &str) -> Result<Module> {
        let handle = self.driver().module_load(ptx)?;
        Ok(Module { inner: Arc::new(ModuleInner { device: self.clone(), handle }) })
    }

    /// Host memory that this device can reach, and that copies need not stage. Zeroed.
    pub fn pinned<T: Pod>(&self, len: usize) -> Result<Pinned<T>> {
        Pinned::new(self, len)
    }

    /// Encodes a tensor map. [`Error::TensorMap`] where it breaks a rule of the hardware.
    pub fn tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        desc.check()?;
        if desc.address.0 == 0 || !self.context.owns(desc.address.0) {
            return Err(Error::DeadPointer { index: 0, address: desc.address.0 });
        }
        self.driver().tensor_map(desc).map(TensorMap)
    }

    /// Encodes a tensor map of memory that is not this crate's: the address is not looked up.
    pub fn tensor_map_raw(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        desc.check()?;
        self.driver().tensor_map(desc).map(TensorMap)
    }

    /// Whether kernels of this device can be given access to the other's memory.
    pub fn can_access_peer(&self, other: &Device) -> Result<bool> {
        self.driver().can_access_peer(other.driver())
    }

    /// Gives kernels of this device access to the other's memory. Doing so again changes nothing.
    pub fn enable_peer_access(&self, other: &Device) -> Result<()> {
        if self == other {
            return Err(Error::WrongDevice { what: "the peer is the device itself, not another: it" });
        }
        if self.context.reaches(&other.context) {
            return Ok(());
        }
        self.driver().enable_peer_access(other.driver())?;
        let mut peers = self.context.peers();
        peers.retain(|p| p.strong_count() > 0);
        peers.push(Arc::downgrade(&other.context));
        Ok(())
    }

    /// The driver's context (`CUcontext`) as an integer, for other libraries; None for the emulator.
    pub fn raw_context(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        return crate::cuda::raw_context(self.driver());
        #[cfg(not(feature = "cuda"))]
        None
    }
}

#[derive(Debug)]
struct ModuleInner {
    device: Device,
    handle: Handle,
}

impl Drop for ModuleInner {
    fn drop(&mut self) {
        // Nobody can be told; the context frees it at the latest.
        let _ = self.device.driver().module_unload(self.handle);
    }
}

/// A loaded module. Clones are the same module; it is unloaded with the last of them and of its kernels.
#[derive(Debug, Clone)]
pub struct Module {
    inner: Arc<ModuleInner>,
}

impl Module {
    /// A kernel by name.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        let (handle, info) = self.inner.device.driver().kernel(self.inner.handle, name)?;
        Ok(Kernel { module: self.clone(), handle, info: Arc::new(info) })
    }

    /// Address and bytes of a `__device__` or `__constant__` variable.
    pub fn global(&self, name: &str) -> Result<(DevicePtr, u64)> {
        let (address, bytes) = self.inner.device.driver().global(self.inner.handle, name)?;
        Ok((DevicePtr(address), bytes))
    }

    /// The device it is loaded on.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }
}

/// A kernel of a loaded module.
#[derive(Debug, Clone)]
pub struct Kernel {
    module: Module,
    pub(crate) handle: Handle,
    info: Arc<KernelInfo>,
}

impl Kernel {
    /// What it is.
    pub fn info(&self) -> &KernelInfo {
        &self.info
    }

    /// The device it is loaded on.
    pub fn device(&self) -> &Device {
        self.module.device()
    }

    /// Blocks of this kernel that fit on one multiprocessor at a time.
    pub fn occupancy(&self, threads: u32, dynamic_shared: u32) -> Result<u32> {
        self.device().driver().occupancy(self.handle, threads, dynamic_shared)
    }
}
