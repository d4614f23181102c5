//! Device memory and pinned host memory.

use crate::stream::{Event, Stream};
use crate::{Device, Error, Result};
use bytemuck::Pod;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// An address in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

// SAFETY: a transparent u64.
unsafe impl bytemuck::Zeroable for DevicePtr {}
// SAFETY: as above.
unsafe impl Pod for DevicePtr {}

impl DevicePtr {
    /// The address this many bytes further on.
    pub fn offset(self, bytes: u64) -> DevicePtr {
        DevicePtr(self.0.wrapping_add(bytes))
    }
}

pub(crate) fn bytes_of<T>(len: usize) -> Result<u64> {
    len.checked_mul(size_of::<T>()).and_then(|b| u64::try_from(b).ok()).ok_or_else(|| Error::Shape {
        what: "buffer",
        expected: "fewer elements".into(),
        got: len.to_string(),
    })
}

/// `len` elements of device memory, allocated and freed in the order of its stream. A buffer of no elements has a null address.
#[derive(Debug)]
pub struct Buffer<T: Pod> {
    stream: Stream,
    address: u64,
    len: usize,
    /// Other streams that copies to and from it were queued in.
    users: Mutex<Vec<Stream>>,
    of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub(crate) fn new(stream: &Stream, len: usize) -> Result<Buffer<T>> {
        let bytes = bytes_of::<T>(len)?;
        let mut address = 0;
        if bytes > 0 {
            address = stream.device().driver().alloc(bytes, stream.handle())?;
            stream.device().context.add(address, bytes);
        }
        Ok(Buffer { stream: stream.clone(), address, len, users: Mutex::default(), of: PhantomData })
    }

    /// To be called before a launch in another stream than the buffer's own uses it: what comes next in that stream comes after the buffer's
    /// allocation and what its own stream was given so far, and freeing the buffer will come after what that stream was given by
    /// then. Copies do this themselves. Nothing else is ordered: streams that write what others use are the caller's to order.
    pub fn use_in(&self, stream: &Stream) -> Result<()> {
        if self.stream.is(stream) {
            return Ok(());
        }
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if !users.iter().any(|s| s.is(stream)) {
            stream.wait(&self.stream)?;
            users.push(stream.clone());
        }
        Ok(())
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    /// Its address. Memory that other devices and libraries use through it must not outlive it.
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr(self.address)
    }

    /// Address of some of its elements. An error when they are not all inside.
    pub fn range(&self, range: Range<usize>) -> Result<DevicePtr> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::Shape {
                what: "range of a buffer",
                expected: format!("within 0..{}", self.len),
                got: format!("{range:?}"),
            });
        }
        Ok(DevicePtr(self.address + (range.start * size_of::<T>()) as u64))
    }

    /// The stream in whose order it is freed.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The device it lies on.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            self.device().context.remove(self.address);
            // Nobody can be told of an error; a context that has failed frees everything itself.
            for user in self.users.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
                let _ = self.stream.wait(&user);
            }
            let _ = self.device().driver().free(self.address, self.stream.handle());
        }
    }
}

/// Host memory that a device can reach, as a slice. Taking the slice waits for the copies that were queued with this memory
/// ([`Stream::write_pinned`], [`Stream::read_pinned`]). Of kernels that were given its address it knows nothing: that they are
/// done is for the caller to see to, as [`Stream::launch`] says.
#[derive(Debug)]
pub struct Pinned<T: Pod> {
    device: Device,
    host: *mut T,
    address: u64,
    len: usize,
    /// Reached when the copies that use it are done.
    busy: Mutex<Vec<Event>>,
    is_busy: AtomicBool,
}

// SAFETY: it owns its memory; `T: Pod` has no thread affinity.
unsafe impl<T: Pod + Send> Send for Pinned<T> {}
// SAFETY: shared references only read.
unsafe impl<T: Pod + Sync> Sync for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    pub(crate) fn new(device: &Device, len: usize) -> Result<Pinned<T>> {
        let bytes = bytes_of::<T>(len)?;
        if bytes == 0 {
            return Ok(Pinned::over(device, std::ptr::NonNull::dangling().as_ptr(), 0, len));
        }
        let (host, address) = device.driver().pinned(bytes)?;
        if !host.cast::<T>().is_aligned() {
            let _ = device.driver().free_pinned(host, address);
            return Err(Error::Unsupported { what: format!("pinned memory aligned to {} bytes", align_of::<T>()) });
        }
        // SAFETY: the driver gave `bytes` bytes at `host`, which nobody else has yet.
        unsafe { host.write_bytes(0, bytes as usize) };
        device.context.add(address, bytes);
        Ok(Pinned::over(device, host.cast(), address, len))
    }

    fn over(device: &Device, host: *mut T, address: u64, len: usize) -> Pinned<T> {
        Pinned { device: device.clone(), host, address, len, busy: Mutex::default(), is_busy: AtomicBool::new(false) }
    }

    /// The device that made it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its length, without waiting.
    pub(crate) fn elements(&self) -> usize {
        self.len
    }

    /// What the stream was given so far may use it until it is done.
    pub(crate) fn used_until_here(&self, stream: &Stream) -> Result<()> {
        let event = stream.device().event(false).and_then(|event| stream.record(&event).map(|()| event));
        match event {
            Ok(event) => {
                let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
                busy.retain(|e| !matches!(e.is_done(), Ok(true)));
                busy.push(event);
                self.is_busy.store(true, Ordering::Release);
                Ok(())
            }
            Err(e) => {
                // Without an event to wait for later, now.
                let _ = stream.synchronize();
                Err(e)
            }
        }
    }

    fn wait(&self) {
        if self.is_busy.load(Ordering::Acquire) {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            for event in busy.drain(..) {
                // A context that has failed copies nothing any more; the next call says that it has.
                let _ = event.synchronize();
            }
            self.is_busy.store(false, Ordering::Release);
        }
    }

    /// Where the device sees it.
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr(self.address)
    }
}

impl<T: Pod> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.wait();
        // SAFETY: `len` elements, initialised (zeroed or copied to), aligned (drivers align to at least 64 bytes; checked when made),
        // and no copy writes them: copying to it takes it exclusively.
        unsafe { std::slice::from_raw_parts(self.host, self.len) }
    }
}

impl<T: Pod> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.wait();
        // SAFETY: as for Deref; the exclusive borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.host, self.len) }
    }
}

impl<T: Pod> Drop for Pinned<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            self.device.context.remove(self.address);
            // Work in flight may still use it.
            let _ = self.device.driver().synchronize();
            let _ = self.device.driver().free_pinned(self.host.cast(), self.address);
        }
    }
}
