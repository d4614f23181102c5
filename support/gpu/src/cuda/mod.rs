//! The back end that is an NVIDIA GPU.
//!
//! `cust` owns what it has an owner for: the primary context of a device, and streams. The other calls go to the driver through
//! [`crate::sys`], for what `cust` 0.3.2 (CUDA 11.4) cannot say: tensor maps, clusters, programmatic launches, memory pools and peers, an
//! assembler's messages, another stream's wait for an event. And its `CUresult` is a Rust enum without room for a newer driver's values, so
//! that calls which may return one are made here first.
//!
//! Every call makes the context current and gives the thread back the one it had.

mod api;
mod launch;

use crate::driver::{Driver, Handle};
use crate::sys::{self, CUresult};
use crate::{Backend, Device, DeviceInfo, Error, KernelInfo, LaunchConfig, Result, TensorMapDesc};
use api::{Api, call, no_device, result_of};
use cust::context::Context;
use cust::stream::{Stream, StreamFlags};
use launch::{Kernel, Modules};
use std::any::Any;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A GPU by its number.
pub(crate) fn device(ordinal: u32) -> Result<Device> {
    Ok(Device::new(Box::new(Cuda::new(ordinal)?)))
}

/// The number of GPUs.
pub(crate) fn count() -> Result<u32> {
    let api = api::api()?;
    let mut count = 0;
    // SAFETY: the result outlives the call.
    unsafe { call!(api, cuDeviceGetCount(&mut count)) }?;
    match u32::try_from(count) {
        Ok(0) | Err(_) => Err(no_device("the driver finds no GPU")),
        Ok(count) => Ok(count),
    }
}

/// The `CUcontext` of a device of this back end.
pub(crate) fn raw_context(driver: &dyn Driver) -> Option<u64> {
    driver.as_any().downcast_ref::<Cuda>().map(|cuda| cuda.raw() as u64)
}

/// A device's primary context.
#[derive(Debug)]
struct Cuda {
    api: &'static Api,
    ordinal: u32,
    device: sys::CUdevice_v1,
    /// Whether memory is allocated and freed in stream order.
    pools: bool,
    compute_capability: (u32, u32),
    /// Dynamic and static shared memory of a block that asks for it, in bytes.
    max_shared: u32,
    modules: Mutex<Modules>,
    streams: Mutex<HashMap<Handle, Stream>>,
    /// Last, so that it is released after all that lives in it.
    context: Context,
}

/// Makes a context current while it lives.
struct Current(&'static Api);

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: the result outlives the call. It pops what was pushed where this was made: the driver calls nothing in between.
        let _ = unsafe { call!(self.0, cuCtxPopCurrent(&mut popped)) };
    }
}

/// What `cust` returns, as this crate says it.
fn from_cust(api: &Api, call: &'static str) -> impl Fn(cust::error::CudaError) -> Error {
    move |e| api.check(call, CUresult(e as u32)).err().unwrap_or(Error::Driver { call, message: e.to_string() })
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::OutOfMemory { bytes })
}

impl Cuda {
    fn new(ordinal: u32) -> Result<Cuda> {
        let api = api::api()?;
        let count = count()?;
        if ordinal >= count {
            return Err(no_device(format!("there are {count} GPUs, counted from 0: none is number {ordinal}")));
        }
        let (mut device, mut before, mut context) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        let number = i32::try_from(ordinal).map_err(|_| no_device(format!("none is number {ordinal}")))?;
        // SAFETY: the results outlive the calls. The context is retained here so that a driver which refuses it says so (a device in
        // exclusive use is an error that `cust` does not know); `cust` retains it a second time, and this one is released below.
        let context = unsafe {
            call!(api, cuDeviceGet(&mut device, number))?;
            call!(api, cuCtxGetCurrent(&mut before))?;
            call!(api, cuDevicePrimaryCtxRetain(&mut context, device)).map_err(|e| match e {
                Error::Driver { message, .. } => no_device(message),
                e => e,
            })?;
            let made = cust::device::Device::get_device(ordinal).and_then(Context::new);
            // `cust` leaves it current.
            let restored = call!(api, cuCtxSetCurrent(before));
            let released = call!(api, cuDevicePrimaryCtxRelease(device));
            let made = made.map_err(from_cust(api, "cuDevicePrimaryCtxRetain"))?;
            restored.and(released)?;
            made
        };
        let mut cuda = Cuda {
            api,
            ordinal,
            device,
            pools: false,
            compute_capability: (0, 0),
            max_shared: 0,
            modules: Mutex::default(),
            streams: Mutex::default(),
            context,
        };
        cuda.pools = cuda.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0
            && api.functions.cuMemAllocAsync.is_some()
            && api.functions.cuMemFreeAsync.is_some();
        cuda.max_shared = cuda.unsigned(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        cuda.compute_capability = (
            cuda.unsigned(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            cuda.unsigned(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if cuda.pools {
            // A pool that gives its memory back whenever the device is waited for makes every allocation after that a slow one.
            let mut threshold = u64::MAX;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            let pool = cuda.pool()?;
            // SAFETY: the attribute is a u64, which the call reads.
            unsafe { call!(api, cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast())) }?;
        }
        Ok(cuda)
    }

    fn raw(&self) -> sys::CUcontext {
        self.context.as_raw().cast()
    }

    fn current(&self) -> Result<Current> {
        // SAFETY: the context lives as long as `self`.
        unsafe { call!(self.api, cuCtxPushCurrent(self.raw())) }?;
        Ok(Current(self.api))
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32> {
        let mut value = 0;
        // SAFETY: the result outlives the call.
        unsafe { call!(self.api, cuDeviceGetAttribute(&mut value, attribute, self.device)) }?;
        Ok(value)
    }

    fn unsigned(&self, attribute: sys::CUdevice_attribute) -> Result<u32> {
        Ok(u32::try_from(self.attribute(attribute)?).unwrap_or(0))
    }

    /// The pool that memory of this device comes from.
    fn pool(&self) -> Result<sys::CUmemoryPool> {
        let mut pool = std::ptr::null_mut();
        // SAFETY: the result outlives the call.
        unsafe { call!(self.api, cuDeviceGetDefaultMemPool(&mut pool, self.device)) }?;
        Ok(pool)
    }

    fn try_alloc(&self, bytes: usize, stream: Handle) -> Result<(u64, CUresult)> {
        let mut address = 0;
        // SAFETY: the result outlives the call; the stream is one that this object made and has not destroyed.
        let result = unsafe {
            if self.pools {
                result_of!(self.api, cuMemAllocAsync(&mut address, bytes, stream as sys::CUstream))
            } else {
                result_of!(self.api, cuMemAlloc(&mut address, bytes))
            }
        };
        Ok((address, result?))
    }

    fn find_kernel(&self, handle: Handle) -> Result<Arc<Kernel>> {
        lock(&self.modules).kernels.get(&handle).cloned().ok_or(Error::WrongDevice { what: "the kernel" })
    }
}

impl Driver for Cuda {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn backend(&self) -> Backend {
        Backend::Cuda
    }

    fn ordinal(&self) -> u32 {
        self.ordinal
    }

    fn info(&self) -> Result<DeviceInfo> {
        use sys::CUdevice_attribute as A;
        let mut name = [0 as std::ffi::c_char; 256];
        let mut memory = 0;
        // SAFETY: the results outlive the calls, and the name's length is given.
        unsafe {
            call!(self.api, cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, self.device))?;
            call!(self.api, cuDeviceTotalMem(&mut memory, self.device))?;
        }
        let name = name.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect::<Vec<u8>>();
        Ok(DeviceInfo {
            name: String::from_utf8_lossy(&name).into_owned(),
            compute_capability: self.compute_capability,
            sm_count: self.unsigned(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory: memory as u64,
            max_shared_per_block: self.max_shared,
            l2_bytes: u64::from(self.unsigned(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
            stream_ordered: self.pools,
            driver: format!("CUDA driver {}", self.api.version_name()),
        })
    }

    fn with_current(&self, body: &mut dyn FnMut()) -> Result<()> {
        let _current = self.current()?;
        body();
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: nothing is passed.
        unsafe { call!(self.api, cuCtxSynchronize()) }
    }

    fn alloc(&self, bytes: u64, stream: Handle) -> Result<u64> {
        let _current = self.current()?;
        let size = size(bytes)?;
        let (mut address, mut result) = self.try_alloc(size, stream)?;
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            // Other streams may be about to free some.
            // SAFETY: nothing is passed.
            unsafe { call!(self.api, cuCtxSynchronize()) }?;
            (address, result) = self.try_alloc(size, stream)?;
        }
        match result {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Error::OutOfMemory { bytes }),
            result => self.api.check("cuMemAllocAsync", result).map(|()| address),
        }
    }

    fn free(&self, address: u64, stream: Handle) -> Result<()> {
        let _current = self.current()?;
        let stream = stream as sys::CUstream;
        // SAFETY: what `alloc` gave, freed once, behind what the stream does with it.
        unsafe {
            if self.pools {
                call!(self.api, cuMemFreeAsync(address, stream))
            } else {
                call!(self.api, cuStreamSynchronize(stream))?;
                call!(self.api, cuMemFree(address))
            }
        }
    }

    fn pinned(&self, bytes: u64) -> Result<(*mut u8, u64)> {
        let _current = self.current()?;
        let (mut host, mut address): (*mut c_void, u64) = (std::ptr::null_mut(), 0);
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        let size = size(bytes)?;
        // SAFETY: the results outlive the calls.
        unsafe {
            match result_of!(self.api, cuMemHostAlloc(&mut host, size, flags))? {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(Error::OutOfMemory { bytes }),
                result => self.api.check("cuMemHostAlloc", result)?,
            }
            if let Err(e) = call!(self.api, cuMemHostGetDevicePointer(&mut address, host, 0)) {
                let _ = call!(self.api, cuMemFreeHost(host));
                return Err(e);
            }
        }
        Ok((host.cast(), address))
    }

    fn free_pinned(&self, host: *mut u8, _device: u64) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: what `pinned` gave, freed once.
        unsafe { call!(self.api, cuMemFreeHost(host.cast())) }
    }

    fn stream_create(&self) -> Result<Handle> {
        let _current = self.current()?;
        // A context that has failed says so here, possibly in a value that `cust` does not know.
        // SAFETY: the null stream exists in every context.
        match unsafe { result_of!(self.api, cuStreamQuery(std::ptr::null_mut())) }? {
            CUresult::CUDA_ERROR_NOT_READY => {}
            result => self.api.check("cuStreamQuery", result)?,
        }
        let stream = Stream::new(StreamFlags::DEFAULT, None).map_err(from_cust(self.api, "cuStreamCreate"))?;
        let handle = stream.as_inner() as u64;
        lock(&self.streams).insert(handle, stream);
        Ok(handle)
    }

    fn stream_destroy(&self, stream: Handle) -> Result<()> {
        let _current = self.current()?;
        // What is queued still runs: the driver lets go of the stream behind it.
        drop(lock(&self.streams).remove(&stream));
        Ok(())
    }

    fn stream_synchronize(&self, stream: Handle) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: a stream that this object made.
        unsafe { call!(self.api, cuStreamSynchronize(stream as sys::CUstream)) }
    }

    fn event_create(&self, timing: bool) -> Result<Handle> {
        let _current = self.current()?;
        let flags = if timing { sys::CUevent_flags::CU_EVENT_DEFAULT } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let mut event = std::ptr::null_mut();
        // SAFETY: the result outlives the call.
        unsafe { call!(self.api, cuEventCreate(&mut event, flags.0)) }?;
        Ok(event as Handle)
    }

    fn event_destroy(&self, event: Handle) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: an event that this object made, destroyed once.
        unsafe { call!(self.api, cuEventDestroy(event as sys::CUevent)) }
    }

    fn event_record(&self, event: Handle, stream: Handle) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: an event and a stream that this object made.
        unsafe { call!(self.api, cuEventRecord(event as sys::CUevent, stream as sys::CUstream)) }
    }

    fn event_synchronize(&self, event: Handle) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: an event that this object made.
        unsafe { call!(self.api, cuEventSynchronize(event as sys::CUevent)) }
    }

    fn event_done(&self, event: Handle) -> Result<bool> {
        let _current = self.current()?;
        // SAFETY: an event that this object made.
        match unsafe { result_of!(self.api, cuEventQuery(event as sys::CUevent)) }? {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => self.api.check("cuEventQuery", result).map(|()| true),
        }
    }

    fn event_elapsed_ms(&self, from: Handle, to: Handle) -> Result<f32> {
        let _current = self.current()?;
        let mut milliseconds = 0.0;
        // SAFETY: events that this object made; the result outlives the call.
        unsafe { call!(self.api, cuEventElapsedTime(&mut milliseconds, from as sys::CUevent, to as sys::CUevent)) }?;
        Ok(milliseconds)
    }

    fn stream_wait_event(&self, stream: Handle, event: Handle) -> Result<()> {
        let _current = self.current()?;
        // SAFETY: a stream that this object made, and an event that this or another device's object made.
        unsafe { call!(self.api, cuStreamWaitEvent(stream as sys::CUstream, event as sys::CUevent, 0)) }
    }

    fn write(&self, stream: Handle, to: u64, bytes: &[u8]) -> Result<()> {
        let _current = self.current()?;
        let stream = stream as sys::CUstream;
        // SAFETY: the destination is as long (`Stream` compares lengths). It waits, since the driver may read the bytes after it
        // returns (they may be pinned memory, or memory that the device reads in place).
        unsafe {
            call!(self.api, cuMemcpyHtoDAsync(to, bytes.as_ptr().cast(), bytes.len(), stream))?;
            call!(self.api, cuStreamSynchronize(stream))
        }
    }

    fn read(&self, stream: Handle, from: u64, bytes: &mut [u8]) -> Result<()> {
        let _current = self.current()?;
        let stream = stream as sys::CUstream;
        // SAFETY: as for `write`.
        unsafe {
            call!(self.api, cuMemcpyDtoHAsync(bytes.as_mut_ptr().cast(), from, bytes.len(), stream))?;
            call!(self.api, cuStreamSynchronize(stream))
        }
    }

    fn copy(&self, stream: Handle, to: u64, from: u64, bytes: u64) -> Result<()> {
        let _current = self.current()?;
        let bytes = size(bytes)?;
        // SAFETY: `Stream` compares lengths and devices. One address space holds all devices and pinned memory; the driver finds out
        // which of them an address is of.
        unsafe { call!(self.api, cuMemcpyAsync(to, from, bytes, stream as sys::CUstream)) }
    }

    fn fill(&self, stream: Handle, to: u64, value: u8, bytes: u64) -> Result<()> {
        let _current = self.current()?;
        let bytes = size(bytes)?;
        // SAFETY: `Stream` passes a buffer's own length.
        unsafe { call!(self.api, cuMemsetD8Async(to, value, bytes, stream as sys::CUstream)) }
    }

    fn module_load(&self, ptx: &str) -> Result<Handle> {
        let _current = self.current()?;
        launch::load(self, ptx)
    }

    fn module_unload(&self, module: Handle) -> Result<()> {
        let _current = self.current()?;
        launch::unload(self, module)
    }

    fn kernel(&self, module: Handle, name: &str) -> Result<(Handle, KernelInfo)> {
        let _current = self.current()?;
        launch::kernel(self, module, name)
    }

    fn global(&self, module: Handle, name: &str) -> Result<(u64, u64)> {
        let _current = self.current()?;
        launch::global(self, module, name)
    }

    fn occupancy(&self, kernel: Handle, threads: u32, dynamic_shared: u32) -> Result<u32> {
        let _current = self.current()?;
        let kernel = self.find_kernel(kernel)?;
        launch::allow(self, &kernel, dynamic_shared, [1; 3])?;
        let mut blocks = 0;
        let threads = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: a loaded kernel; the result outlives the call.
        unsafe {
            call!(
                self.api,
                cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, kernel.raw(), threads, dynamic_shared as usize)
            )
        }?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    fn launch(&self, stream: Handle, kernel: Handle, config: &LaunchConfig, args: &[Vec<u8>]) -> Result<()> {
        let _current = self.current()?;
        launch::launch(self, stream, &*self.find_kernel(kernel)?, config, args)
    }

    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<[u8; 128]> {
        let _current = self.current()?;
        launch::tensor_map(self.api, desc)
    }

    fn can_access_peer(&self, other: &dyn Driver) -> Result<bool> {
        let Some(other) = other.as_any().downcast_ref::<Cuda>().filter(|o| o.ordinal != self.ordinal) else {
            return Ok(false);
        };
        let mut can = 0;
        // SAFETY: the result outlives the call.
        unsafe { call!(self.api, cuDeviceCanAccessPeer(&mut can, self.device, other.device)) }?;
        Ok(can != 0)
    }

    fn enable_peer_access(&self, other: &dyn Driver) -> Result<()> {
        let Some(other) = other.as_any().downcast_ref::<Cuda>() else {
            return Err(Error::WrongDevice { what: "the peer is of another back end: it" });
        };
        let _current = self.current()?;
        // What is allocated without pools: once for each pair of contexts.
        // SAFETY: the other context lives as long as `other`.
        match unsafe { result_of!(self.api, cuCtxEnablePeerAccess(other.raw(), 0)) }? {
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {}
            result => self.api.check("cuCtxEnablePeerAccess", result)?,
        }
        // What comes from the other device's pool.
        if other.pools {
            let access = sys::CUmemAccessDesc_v1 {
                location: sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: self.device },
                flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            };
            let pool = other.pool()?;
            // SAFETY: one description, which the call reads.
            unsafe { call!(self.api, cuMemPoolSetAccess(pool, &access, 1)) }?;
        }
        Ok(())
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Whatever is left must go while the context is there. Nothing should be: all that is made of a device holds it.
        if let Ok(_current) = self.current() {
            lock(&self.streams).clear();
            for module in lock(&self.modules).drain() {
                // SAFETY: a module that was loaded and not unloaded.
                let _ = unsafe { call!(self.api, cuModuleUnload(module as sys::CUmodule)) };
            }
        }
    }
}
