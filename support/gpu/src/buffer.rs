//! Device memory and pinned host memory.

use crate::stream::Stream;
use crate::{Device, Error, Result};
use bytemuck::Pod;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

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
        Ok(Buffer { stream: stream.clone(), address, len, of: PhantomData })
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
            // Nobody can be told; a context that has failed frees everything itself.
            let _ = self.device().driver().free(self.address, self.stream.handle());
        }
    }
}

/// Host memory that a device can reach, as a slice. Kernels and asynchronous copies may use it while the host holds it: wait for them
/// before reading, and do not write what they read.
#[derive(Debug)]
pub struct Pinned<T: Pod> {
    device: Device,
    host: *mut T,
    address: u64,
    len: usize,
}

// SAFETY: it owns its memory; `T: Pod` has no thread affinity.
unsafe impl<T: Pod + Send> Send for Pinned<T> {}
// SAFETY: shared references only read.
unsafe impl<T: Pod + Sync> Sync for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    pub(crate) fn new(device: &Device, len: usize) -> Result<Pinned<T>> {
        let bytes = bytes_of::<T>(len)?;
        if bytes == 0 {
            return Ok(Pinned { device: device.clone(), host: std::ptr::NonNull::dangling().as_ptr(), address: 0, len });
        }
        let (host, address) = device.driver().pinned(bytes)?;
        // SAFETY: the driver gave `bytes` bytes at `host`, which nobody else has yet.
        unsafe { host.write_bytes(0, bytes as usize) };
        device.context.add(address, bytes);
        Ok(Pinned { device: device.clone(), host: host.cast(), address, len })
    }

    /// Where the device sees it.
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr(self.address)
    }
}

impl<T: Pod> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements, initialised (zeroed or copied to), aligned (the driver aligns to 256 bytes).
        unsafe { std::slice::from_raw_parts(self.host, self.len) }
    }
}

impl<T: Pod> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
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
