//! Streams, events and launches.

use crate::buffer::{Buffer, DevicePtr, Pinned, bytes_of};
use crate::device::{Device, Kernel};
use crate::driver::Handle;
use crate::{Error, Result};
use bytemuck::Pod;
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug)]
struct StreamInner {
    device: Device,
    handle: Handle,
    /// Made by this crate, and destroyed with the last clone.
    owned: bool,
}

impl Drop for StreamInner {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        // What is queued still runs; nobody can be told of an error.
        let _ = self.device.driver().stream_destroy(self.handle);
    }
}

/// A queue of work: what is given to it runs in order. Clones are the same stream.
#[derive(Debug, Clone)]
pub struct Stream {
    inner: Arc<StreamInner>,
}

/// Shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y, z; None: as the kernel says.
    pub cluster: Option<[u32; 3]>,
    /// Dynamic shared memory in bytes. More than 48 KiB is asked of the driver as needed.
    pub dynamic_shared: u32,
    /// The launch may begin before the one ahead of it in the stream has ended, once all of that one's blocks have executed
    /// `griddepcontrol.launch_dependents` (programmatic dependent launch). The kernel must execute `griddepcontrol.wait`.
    pub programmatic: bool,
    /// All blocks are resident at once, so that they may wait for each other: a grid that does not fit the device is [`Error::Launch`], and
    /// one that fits begins when there is room for all of it (cooperative launch).
    pub cooperative: bool,
}

impl LaunchConfig {
    /// One-dimensional, without clusters or dynamic shared memory.
    pub fn new(blocks: u32, threads: u32) -> LaunchConfig {
        let (grid, block) = ([blocks, 1, 1], [threads, 1, 1]);
        LaunchConfig { grid, block, cluster: None, dynamic_shared: 0, programmatic: false, cooperative: false }
    }

    /// With this much dynamic shared memory, in bytes.
    pub fn shared(self, bytes: u32) -> LaunchConfig {
        LaunchConfig { dynamic_shared: bytes, ..self }
    }

    /// With clusters of this many blocks in x.
    pub fn clusters(self, blocks: u32) -> LaunchConfig {
        LaunchConfig { cluster: Some([blocks, 1, 1]), ..self }
    }

    /// With programmatic dependent launch.
    pub fn programmatic(self) -> LaunchConfig {
        LaunchConfig { programmatic: true, ..self }
    }

    /// With all blocks resident at once.
    pub fn cooperative(self) -> LaunchConfig {
        LaunchConfig { cooperative: true, ..self }
    }
}

/// Arguments of a launch, in the order of the kernel's parameters.
#[derive(Debug, Clone, Default)]
pub struct Args {
    values: Vec<Vec<u8>>,
    /// Addresses to look up before launching, with the argument they are part of.
    pointers: Vec<(usize, u64)>,
}

impl Args {
    /// None.
    pub fn new() -> Args {
        Args::default()
    }

    /// A buffer's address. An empty buffer has none: launching with it is [`Error::DeadPointer`].
    pub fn buffer<T: Pod>(self, buffer: &Buffer<T>) -> Args {
        self.pointer(buffer.ptr())
    }

    /// The device's address of pinned memory.
    pub fn pinned<T: Pod>(self, pinned: &Pinned<T>) -> Args {
        self.pointer(pinned.ptr())
    }

    /// An address inside a live allocation of this crate.
    pub fn pointer(mut self, pointer: DevicePtr) -> Args {
        self.pointers.push((self.values.len(), pointer.0));
        self.values.push(pointer.0.to_le_bytes().to_vec());
        self
    }

    /// A scalar, a tensor map, or a `#[repr(C)]` struct. Addresses inside it are not looked up.
    pub fn value<T: Pod>(mut self, value: T) -> Args {
        self.values.push(bytemuck::bytes_of(&value).to_vec());
        self
    }

    /// A `#[repr(C)]` struct with the addresses that it holds: each must lie inside a live allocation of this crate.
    pub fn params<T: Pod>(mut self, value: &T, pointers: &[DevicePtr]) -> Args {
        let index = self.values.len();
        self.pointers.extend(pointers.iter().map(|p| (index, p.0)));
        self.values.push(bytemuck::bytes_of(value).to_vec());
        self
    }
}

impl Stream {
    pub(crate) fn new(device: &Device) -> Result<Stream> {
        let handle = device.driver().stream_create()?;
        Ok(Stream { inner: Arc::new(StreamInner { device: device.clone(), handle, owned: true }) })
    }

    pub(crate) fn borrow(device: &Device, handle: Handle) -> Stream {
        Stream { inner: Arc::new(StreamInner { device: device.clone(), handle, owned: false }) }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.inner.handle
    }

    pub(crate) fn is(&self, other: &Stream) -> bool {
        self.handle() == other.handle() && self.device() == other.device()
    }

    /// The driver's handle (`CUstream`) as an integer, for other libraries. Meaningless for the emulator.
    pub fn raw(&self) -> u64 {
        self.inner.handle
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Waits until everything queued so far is done.
    pub fn synchronize(&self) -> Result<()> {
        self.device().driver().stream_synchronize(self.handle())
    }

    /// Memory for `len` elements, with whatever is in it.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::new(self, len)
    }

    /// Memory for `len` elements, all bytes zero.
    pub fn zeroed<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(len)?;
        self.fill(&mut buffer, 0)?;
        Ok(buffer)
    }

    /// Memory with these elements.
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(values.len())?;
        self.write(&mut buffer, values)?;
        Ok(buffer)
    }

    /// That a buffer may be used in this stream: an error when it lies where this device cannot reach, or may not (`elsewhere`).
    fn here<T: Pod>(&self, buffer: &Buffer<T>, elsewhere: bool) -> Result<()> {
        let device = buffer.device();
        if device == self.device() || (elsewhere && self.device().context.reaches(&device.context)) {
            return buffer.use_in(self);
        }
        Err(Error::WrongDevice { what: "the buffer" })
    }

    fn same(what: &'static str, expected: usize, got: usize) -> Result<()> {
        if expected == got {
            return Ok(());
        }
        Err(Error::Shape { what, expected: format!("{expected} elements"), got: format!("{got}") })
    }

    /// Queues a copy of as many elements as the buffer has. The slice may be reused as soon as this returns.
    pub fn write<T: Pod>(&self, to: &mut Buffer<T>, from: &[T]) -> Result<()> {
        Stream::same("copy to a buffer", to.len(), from.len())?;
        self.here(to, false)?;
        if to.bytes() == 0 {
            return Ok(());
        }
        self.device().driver().write(self.handle(), to.ptr().0, bytemuck::cast_slice(from))
    }

    /// Copies a buffer to a slice of the same length, behind what is queued, and waits for it.
    pub fn read<T: Pod>(&self, from: &Buffer<T>, to: &mut [T]) -> Result<()> {
        Stream::same("copy from a buffer", from.len(), to.len())?;
        self.here(from, false)?;
        if from.bytes() == 0 {
            return self.synchronize();
        }
        self.device().driver().read(self.handle(), from.ptr().0, bytemuck::cast_slice_mut(to))
    }

    /// All elements of a buffer, behind what is queued.
    pub fn download<T: Pod>(&self, from: &Buffer<T>) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); from.len()];
        self.read(from, &mut values)?;
        Ok(values)
    }

    /// Queues a copy between buffers of the same length, of this device or of one it has access to.
    pub fn copy<T: Pod>(&self, to: &mut Buffer<T>, from: &Buffer<T>) -> Result<()> {
        Stream::same("copy between buffers", to.len(), from.len())?;
        self.here(to, true)?;
        self.here(from, true)?;
        self.copy_raw(to.ptr(), from.ptr(), from.bytes())
    }

    /// Queues a copy from pinned memory and does not wait for it. Whoever touches the pinned memory before it is done waits then.
    pub fn write_pinned<T: Pod>(&self, to: &mut Buffer<T>, from: &Pinned<T>) -> Result<()> {
        self.pinned(to, from)?;
        self.copy_raw(to.ptr(), from.ptr(), to.bytes())?;
        from.used_until_here(self)
    }

    /// Queues a copy to pinned memory and does not wait for it. Whoever touches the pinned memory before it is done waits then.
    pub fn read_pinned<T: Pod>(&self, from: &Buffer<T>, to: &mut Pinned<T>) -> Result<()> {
        self.pinned(from, to)?;
        self.copy_raw(to.ptr(), from.ptr(), from.bytes())?;
        to.used_until_here(self)
    }

    fn pinned<T: Pod>(&self, buffer: &Buffer<T>, pinned: &Pinned<T>) -> Result<()> {
        Stream::same("copy with pinned memory", buffer.len(), pinned.elements())?;
        self.here(buffer, false)?;
        if pinned.device() == self.device() { Ok(()) } else { Err(Error::WrongDevice { what: "the pinned memory" }) }
    }

    fn copy_raw(&self, to: DevicePtr, from: DevicePtr, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.device().driver().copy(self.handle(), to.0, from.0, bytes)
    }

    /// Queues setting all bytes of a buffer.
    pub fn fill<T: Pod>(&self, buffer: &mut Buffer<T>, byte: u8) -> Result<()> {
        self.here(buffer, false)?;
        if buffer.bytes() == 0 {
            return Ok(());
        }
        self.device().driver().fill(self.handle(), buffer.ptr().0, byte, buffer.bytes())
    }

    /// Queues setting all bytes of some elements of a buffer.
    pub fn fill_range<T: Pod>(&self, buffer: &mut Buffer<T>, range: Range<usize>, byte: u8) -> Result<()> {
        let to = buffer.range(range.clone())?;
        self.here(buffer, false)?;
        let bytes = bytes_of::<T>(range.len())?;
        if bytes == 0 {
            return Ok(());
        }
        self.device().driver().fill(self.handle(), to.0, byte, bytes)
    }

    /// Queues setting all of `bytes` bytes from an address on.
    ///
    /// # Safety
    ///
    /// That memory is live, this device can reach it, and nothing else uses it meanwhile.
    pub unsafe fn fill_raw(&self, to: DevicePtr, byte: u8, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.device().driver().fill(self.handle(), to.0, byte, bytes)
    }

    /// Records an event behind what is queued.
    pub fn record(&self, event: &Event) -> Result<()> {
        if event.inner.device != *self.device() {
            return Err(Error::WrongDevice { what: "the event" });
        }
        self.device().driver().event_record(event.inner.handle, self.handle())
    }

    /// What is queued from now on waits for the event's latest record. The event may be another device's.
    pub fn wait_event(&self, event: &Event) -> Result<()> {
        if event.inner.device.backend() != self.device().backend() {
            return Err(Error::WrongDevice { what: "the event" });
        }
        self.device().driver().stream_wait_event(self.handle(), event.inner.handle)
    }

    /// What is queued from now on waits for everything queued on another stream so far.
    pub fn wait(&self, other: &Stream) -> Result<()> {
        let event = other.device().event(false)?;
        other.record(&event)?;
        self.wait_event(&event)
    }

    /// Queues a launch. Mistakes in its shape, in the number and sizes of its arguments and null or dangling addresses among
    /// them are errors, and nothing is queued.
    ///
    /// # Safety
    ///
    /// The kernel must do with its arguments only what their lengths and types allow, and nothing that races with other work in flight. (The
    /// emulator reports what breaks this rule; a GPU does not.) Memory must stay until the launch is done: a buffer of another stream wants
    /// [`Buffer::use_in`].
    pub unsafe fn launch(&self, kernel: &Kernel, config: &LaunchConfig, args: Args) -> Result<()> {
        for &(index, address) in &args.pointers {
            if address == 0 || !self.device().context.owns(address) {
                return Err(Error::DeadPointer { index, address });
            }
        }
        // SAFETY: as this function's own.
        unsafe { self.launch_raw(kernel, config, &args.values) }
    }

    /// Queues a launch with the bytes of each parameter. Addresses are not looked up: they may be any library's.
    ///
    /// # Safety
    ///
    /// As for [`Stream::launch`]; and all addresses must be of live memory that this device can reach.
    pub unsafe fn launch_raw(&self, kernel: &Kernel, config: &LaunchConfig, args: &[Vec<u8>]) -> Result<()> {
        if kernel.device() != self.device() {
            return Err(Error::WrongDevice { what: "the kernel" });
        }
        let info = kernel.info();
        let fail = |message: String| Err(Error::Launch { kernel: info.name.clone(), message });
        if args.len() != info.params.len() {
            return fail(format!("{} arguments where the kernel takes {}", args.len(), info.params.len()));
        }
        for (i, (arg, &size)) in args.iter().zip(&info.params).enumerate() {
            if arg.len() != size as usize {
                return fail(format!("argument {i} has {} bytes where the kernel takes {size}", arg.len()));
            }
        }
        // Limits of every compute capability so far (CUDA programming guide, "Technical specifications per compute capability").
        let threads = product(config.block);
        if threads == 0 || threads > u64::from(info.max_threads) || config.block[2] > 64 {
            return fail(format!("a block of {:?} threads: 1 to {} of them, z at most 64", config.block, info.max_threads));
        }
        let [x, y, z] = config.grid;
        if product(config.grid) == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return fail(format!("a grid of {:?} blocks: x is 1 to 2^31 - 1, y and z are 1 to 65535", config.grid));
        }
        if config.dynamic_shared > info.max_dynamic_shared {
            let (asked, most) = (config.dynamic_shared, info.max_dynamic_shared);
            return fail(format!("{asked} bytes of dynamic shared memory: at most {most}"));
        }
        if let (Some(asked), Some(required)) = (config.cluster, info.cluster)
            && asked != required
        {
            return fail(format!("clusters of {asked:?} where the kernel requires {required:?}"));
        }
        if let Some(cluster) = config.cluster.or(info.cluster) {
            if !(1..=16).contains(&product(cluster)) {
                return fail(format!("a cluster of {cluster:?} blocks: 1 to 16 of them"));
            }
            if (0..3).any(|i| !config.grid[i].is_multiple_of(cluster[i])) {
                return fail(format!("a grid of {:?} blocks is not a multiple of clusters of {cluster:?}", config.grid));
            }
        }
        self.device().driver().launch(self.handle(), kernel.handle, config, args)
    }

    /// Bytes that `len` elements take, as [`Stream::alloc`] counts them.
    pub fn bytes_of<T: Pod>(len: usize) -> Result<u64> {
        bytes_of::<T>(len)
    }
}

/// Too large a product is the largest number.
fn product(dims: [u32; 3]) -> u64 {
    dims.iter().fold(1, |a, &d| a.saturating_mul(u64::from(d)))
}

#[derive(Debug)]
struct EventInner {
    device: Device,
    handle: Handle,
}

impl Drop for EventInner {
    fn drop(&mut self) {
        // Nobody can be told of an error.
        let _ = self.device.driver().event_destroy(self.handle);
    }
}

/// A point in a stream. Clones are the same event.
#[derive(Debug, Clone)]
pub struct Event {
    inner: Arc<EventInner>,
}

impl Event {
    pub(crate) fn new(device: &Device, timing: bool) -> Result<Event> {
        let handle = device.driver().event_create(timing)?;
        Ok(Event { inner: Arc::new(EventInner { device: device.clone(), handle }) })
    }

    /// Waits for its latest record; at once when it was never recorded.
    pub fn synchronize(&self) -> Result<()> {
        self.inner.device.driver().event_synchronize(self.inner.handle)
    }

    /// Whether its latest record is reached.
    pub fn is_done(&self) -> Result<bool> {
        self.inner.device.driver().event_done(self.inner.handle)
    }

    /// Milliseconds of device time between two events that were made with timing, recorded and reached. [`Error::Unsupported`] on
    /// the emulator: it has no device time.
    pub fn elapsed_ms(&self, until: &Event) -> Result<f32> {
        self.inner.device.driver().event_elapsed_ms(self.inner.handle, until.inner.handle)
    }
}
