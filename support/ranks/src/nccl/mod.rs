//! Rows between GPUs over NCCL: grouped sends and receives on a stream.
//!
//! The library is opened when [`Nccl::open`] is called; without it that is an error, and nothing else needs it. A [`Communicator`] is one
//! rank's: a device, and a group of ranks that may be threads of one process or processes on many hosts. The ranks find each other through
//! 128 bytes that rank 0 makes ([`Nccl::unique_id`]), which [`Communicator::over`] sends over a [`Comm`].
//!
//! What is queued runs in the order of its stream, behind what the stream was given before; the calls return before it has. Several sends and
//! receives that need each other belong into one [`group`](Communicator::group). Nothing here waits for the device, allocates on it, or reads
//! back.
//!
//! ```no_run
//! use v3_gpu::Device;
//! use v3_ranks::nccl::{Communicator, Nccl};
//! use v3_ranks::{Comm, WorldConfig, run_threads};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nccl = Nccl::open()?;
//! run_threads(WorldConfig::new(2), |comm: Comm| -> Result<(), v3_ranks::nccl::Error> {
//!     let device = Device::cuda(comm.rank() as u32)?;
//!     let stream = device.stream()?;
//!     let ranks = Communicator::over(&comm, &nccl, &device)?;
//!     let (mine, mut theirs) = (stream.upload(&[comm.rank() as u32])?, stream.zeroed::<u32>(1)?);
//!     let other = 1 - comm.rank();
//!     ranks.group(|group| {
//!         group.send(&stream, &mine, 0..1, other)?;
//!         group.recv(&stream, &mut theirs, 0..1, other)
//!     })?;
//!     assert_eq!(stream.download(&theirs)?, [other as u32]);
//!     Ok(())
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! # Failures
//!
//! Every call's result is looked at, and becomes [`Error::Call`] with the function, NCCL's name for the error and its last words. After such an error the
//! communicator is finished: NCCL promises nothing more of it, later calls return the same error, and dropping it aborts it instead of waiting
//! for the others. [`Communicator::check`] asks for errors of operations under way (a peer that has gone).
//!
//! # What has been run
//!
//! This module is tested over a stand-in for the library, which moves rows between emulated devices in the order of their streams and returns each error
//! code from each function. On a machine with a GPU and the library, a test runs one rank in a stream; nobody has run it so far, nor captured a graph, nor
//! run several ranks over the real library.

pub mod sys;

use std::cell::RefCell;
use std::ffi::{CStr, c_int};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Pod;
use v3_gpu::{Buffer, Device, DevicePtr, Stream};

use crate::comm::Comm;
use sys::{Functions, ncclComm, ncclDataType_t, ncclResult_t, ncclUniqueId};

/// The result of this module's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with NCCL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no library to open.
    #[error("NCCL could not be opened: {reason}")]
    Library {
        /// What was tried, and why it failed.
        reason: String,
    },
    /// The library lacks a function, or is another library.
    #[error("{library} has no function {function}")]
    Missing {
        /// The library.
        library: String,
        /// The function.
        function: &'static str,
    },
    /// A call failed, or an earlier one did and the communicator is finished.
    #[error("{call}: {name} ({code}): {message}")]
    Call {
        /// The function of NCCL.
        call: &'static str,
        /// NCCL's number for the error.
        code: u32,
        /// NCCL's constant.
        name: String,
        /// What the library says of it.
        message: String,
    },
    /// An argument has the wrong size.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// What it should have been.
        expected: String,
        /// What it was.
        got: String,
    },
    /// Of device or memory.
    #[error(transparent)]
    Gpu(#[from] v3_gpu::Error),
    /// Of the group through which the ranks found each other.
    #[error(transparent)]
    Ranks(#[from] crate::Error),
}

/// The names under which the library is looked for, as the system's loader does.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

#[derive(Debug)]
struct Library {
    functions: Functions,
    name: String,
    version: u32,
    /// Last: the functions are its.
    _opened: Option<libloading::Library>,
}

/// The opened library. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Nccl {
    library: Arc<Library>,
}

/// Calls a function of the library by name; a missing one is an error.
macro_rules! call {
    ($library:expr, $function:ident($($argument:expr),*)) => {{
        let library: &Library = $library;
        match library.functions.$function {
            Some(function) => library.result(stringify!($function), function($($argument),*)),
            None => Err(Error::Missing { library: library.name.clone(), function: stringify!($function) }),
        }
    }};
}

impl Library {
    fn result(&self, call: &'static str, result: ncclResult_t) -> Result<()> {
        if result == ncclResult_t::ncclSuccess {
            return Ok(());
        }
        let text = |pointer: *const std::ffi::c_char| match pointer.is_null() {
            true => String::new(),
            // SAFETY: NCCL returns texts that end in a zero and stay; one of another thread's failure may change, which
            // NCCL's own documentation accepts.
            false => unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_string(),
        };
        // SAFETY: both take any code, and a null communicator.
        let said = self.functions.ncclGetErrorString.map(|f| text(unsafe { f(result) })).unwrap_or_default();
        // SAFETY: as above.
        let last = self.functions.ncclGetLastError.map(|f| text(unsafe { f(std::ptr::null_mut()) })).unwrap_or_default();
        let message = if last.is_empty() { said } else { format!("{said}; {last}") };
        Err(Error::Call { call, code: result.0, name: name_of(result), message })
    }
}

/// The constant of nccl.h.
fn name_of(result: ncclResult_t) -> String {
    match result {
        ncclResult_t::ncclUnhandledCudaError => "ncclUnhandledCudaError".into(),
        ncclResult_t::ncclSystemError => "ncclSystemError".into(),
        ncclResult_t::ncclInternalError => "ncclInternalError".into(),
        ncclResult_t::ncclInvalidArgument => "ncclInvalidArgument".into(),
        ncclResult_t::ncclInvalidUsage => "ncclInvalidUsage".into(),
        ncclResult_t::ncclRemoteError => "ncclRemoteError".into(),
        ncclResult_t::ncclInProgress => "ncclInProgress".into(),
        ncclResult_t(code) => format!("result {code}"),
    }
}

impl Nccl {
    /// Opens the library by the names that the system's loader knows: `libnccl.so.2`, `libnccl.so`.
    ///
    /// # Errors
    /// [`Error::Library`] where there is none.
    pub fn open() -> Result<Nccl> {
        let mut reasons = Vec::new();
        for name in NAMES {
            match Nccl::open_at(Path::new(name)) {
                Err(Error::Library { reason }) => reasons.push(reason),
                opened => return opened,
            }
        }
        Err(Error::Library { reason: reasons.join("; ") })
    }

    /// Opens the library in this file.
    ///
    /// # Errors
    /// [`Error::Library`] when the file cannot be opened, [`Error::Missing`] when it lacks a function.
    pub fn open_at(file: &Path) -> Result<Nccl> {
        let name = PathBuf::from(file).display().to_string();
        let refuse = |e: libloading::Error| Error::Library { reason: e.to_string() };
        // SAFETY: what NCCL's library does when it is loaded (it reads its environment variables) is sound in any thread.
        let opened = unsafe { libloading::Library::new(file) }.map_err(refuse)?;
        let find = |function: &CStr| {
            // SAFETY: the address is not called before `Functions::find` has given it the type that nccl.h declares for its name.
            let found = unsafe { opened.get::<*mut std::ffi::c_void>(function.to_bytes_with_nul()) };
            found.map_or(std::ptr::null_mut(), |symbol| *symbol)
        };
        // SAFETY: as above: functions of NCCL by their names, or null.
        let functions = unsafe { Functions::find(find) };
        Nccl::new(functions, name, Some(opened))
    }

    /// A library that is linked already, or one's own that does the same.
    ///
    /// # Safety
    /// The functions do what nccl.h says, and stay.
    ///
    /// # Errors
    /// [`Error::Missing`] when one is `None`.
    pub unsafe fn from_functions(functions: Functions) -> Result<Nccl> {
        Nccl::new(functions, "the given library".into(), None)
    }

    fn new(functions: Functions, name: String, opened: Option<libloading::Library>) -> Result<Nccl> {
        let f = &functions;
        let there = [
            ("ncclCommAbort", f.ncclCommAbort.is_some()),
            ("ncclCommCount", f.ncclCommCount.is_some()),
            ("ncclCommDestroy", f.ncclCommDestroy.is_some()),
            ("ncclCommGetAsyncError", f.ncclCommGetAsyncError.is_some()),
            ("ncclCommInitRank", f.ncclCommInitRank.is_some()),
            ("ncclGetErrorString", f.ncclGetErrorString.is_some()),
            ("ncclGetUniqueId", f.ncclGetUniqueId.is_some()),
            ("ncclGetVersion", f.ncclGetVersion.is_some()),
            ("ncclGroupEnd", f.ncclGroupEnd.is_some()),
            ("ncclGroupStart", f.ncclGroupStart.is_some()),
            ("ncclRecv", f.ncclRecv.is_some()),
            ("ncclSend", f.ncclSend.is_some()),
        ];
        if let Some(&(function, _)) = there.iter().find(|(_, there)| !there) {
            return Err(Error::Missing { library: name, function });
        }
        let mut library = Library { functions, name, version: 0, _opened: opened };
        let mut version = 0;
        // SAFETY: the result outlives the call.
        unsafe { call!(&library, ncclGetVersion(&mut version)) }?;
        library.version = u32::try_from(version).unwrap_or(0);
        Ok(Nccl { library: Arc::new(library) })
    }

    /// The version, as NCCL counts: 22707 is 2.27.7.
    pub fn version(&self) -> u32 {
        self.library.version
    }

    /// What the ranks of a new group find each other by. One rank makes it and gives it to the others.
    ///
    /// # Errors
    /// When the library cannot open its sockets.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: the result outlives the call.
        unsafe { call!(&self.library, ncclGetUniqueId(&mut id)) }?;
        Ok(UniqueId(id.internal.map(|byte| byte as u8)))
    }
}

/// What the ranks of one group have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

/// One rank of a group of devices.
#[derive(Debug)]
pub struct Communicator {
    nccl: Nccl,
    device: Device,
    handle: *mut ncclComm,
    rank: usize,
    size: usize,
    /// The first error, after which nothing is promised.
    failed: RefCell<Option<Error>>,
}

// SAFETY: NCCL takes calls for a communicator from any thread, one at a time: it may move between threads, and is not `Sync`.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Joins a group of `size` ranks as number `rank`, on `device`. It waits for all of them.
    ///
    /// # Errors
    /// When the rank is not below the size, or the library refuses.
    pub fn new(nccl: &Nccl, device: &Device, id: &UniqueId, rank: usize, size: usize) -> Result<Communicator> {
        let number = |n: usize| c_int::try_from(n).ok().filter(|_| rank < size);
        let (Some(rank_number), Some(size_number)) = (number(rank), number(size)) else {
            return Err(Error::Shape { what: "rank", expected: format!("below {size}"), got: rank.to_string() });
        };
        let id = ncclUniqueId { internal: id.0.map(|byte| byte as std::ffi::c_char) };
        let mut handle = std::ptr::null_mut();
        // SAFETY: the result outlives the call, which looks for its device in the current context.
        let made = device
            .with_current(|| unsafe { call!(&nccl.library, ncclCommInitRank(&mut handle, size_number, id, rank_number)) })?;
        made?;
        let communicator =
            Communicator { nccl: nccl.clone(), device: device.clone(), handle, rank, size, failed: RefCell::new(None) };
        let mut count = 0;
        // SAFETY: the communicator is live, and the result outlives the call.
        communicator.calls(|library| unsafe { call!(library, ncclCommCount(communicator.handle, &mut count)) })?;
        match usize::try_from(count) {
            Ok(count) if count == size => Ok(communicator),
            _ => Err(Error::Shape { what: "ranks of the communicator", expected: size.to_string(), got: count.to_string() }),
        }
    }

    /// The group that the ranks of `comm` form, each with its own device. A collective operation of `comm`.
    ///
    /// # Errors
    /// As [`Communicator::new`], and those of `comm`.
    pub fn over(comm: &Comm, nccl: &Nccl, device: &Device) -> Result<Communicator> {
        let id = if comm.rank() == 0 { nccl.unique_id()?.0.to_vec() } else { Vec::new() };
        let id = comm.broadcast(0, id)?;
        let id = <[u8; 128]>::try_from(id.as_slice()).map_err(|_| Error::Shape {
            what: "unique id",
            expected: "128 bytes".into(),
            got: id.len().to_string(),
        })?;
        // The others may take long to join.
        comm.blocking(|| Communicator::new(nccl, device, &UniqueId(id), comm.rank(), comm.size()))?
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// This rank's device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Calls `body` with the device's context current, unless there has been an error, and keeps the first one.
    fn calls<R>(&self, body: impl FnOnce(&Library) -> Result<R>) -> Result<R> {
        if let Some(error) = &*self.failed.borrow() {
            return Err(error.clone());
        }
        let result = self.device.with_current(|| body(&self.nccl.library))?;
        if let Err(error @ Error::Call { .. }) = &result {
            self.fail(error);
        }
        result
    }

    fn fail(&self, error: &Error) {
        self.failed.borrow_mut().get_or_insert_with(|| error.clone());
    }

    /// Whether operations under way have failed, such as those with a rank that has gone. It does not wait.
    ///
    /// # Errors
    /// The failure; the communicator is finished then.
    pub fn check(&self) -> Result<()> {
        self.calls(|library| {
            let mut state = ncclResult_t::ncclSuccess;
            // SAFETY: the communicator is live, and the result outlives the call.
            unsafe { call!(library, ncclCommGetAsyncError(self.handle, &mut state)) }?;
            match state {
                ncclResult_t::ncclInProgress => Ok(()),
                state => library.result("ncclCommGetAsyncError", state),
            }
        })
    }

    /// Sends and receives that start together, whatever their order: those of an exchange need each other. All are queued when it returns; if
    /// `body` fails, the communicator is finished, since the others may have been told of a part.
    ///
    /// # Errors
    /// That of `body`, or of a call.
    pub fn group<R>(&self, body: impl FnOnce(&mut Group<'_>) -> Result<R>) -> Result<R> {
        /// Ends the group also when `body` panics: NCCL counts groups by thread.
        struct Open<'a>(Option<&'a Library>);
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                if let Some(library) = self.0.take() {
                    // SAFETY: it takes nothing. Nobody can be told of an error: another one is under way.
                    let _ = unsafe { call!(library, ncclGroupEnd()) };
                }
            }
        }
        self.calls(|library| {
            // SAFETY: it takes nothing.
            unsafe { call!(library, ncclGroupStart()) }?;
            let mut open = Open(Some(library));
            let mut group = Group { communicator: self, library, queued: false, thread: std::marker::PhantomData };
            let result = body(&mut group);
            let queued = group.queued;
            open.0 = None;
            // SAFETY: it takes nothing.
            let ended = unsafe { call!(library, ncclGroupEnd()) };
            let result = result.and_then(|result| ended.map(|()| result));
            if let Err(error) = &result
                && queued
            {
                self.fail(error);
            }
            result
        })
    }

    /// Sends `send_counts[r]` elements to rank r, from `send` in the order of the ranks, and receives `recv_counts[r]` from it into `recv`,
    /// likewise. Counts of 0 send nothing; what r sends here and what is expected from it must agree.
    ///
    /// # Errors
    /// When there is not one count for each rank, or a buffer is shorter than their sum; nothing is queued then.
    pub fn all_to_all_v<T: Pod>(
        &self,
        stream: &Stream,
        send: &Buffer<T>,
        send_counts: &[usize],
        recv: &mut Buffer<T>,
        recv_counts: &[usize],
    ) -> Result<()> {
        let ranges = |what, counts: &[usize], len: usize| {
            let shape = |expected: String, got: String| Error::Shape { what, expected, got };
            if counts.len() != self.size {
                return Err(shape(format!("{} counts", self.size), counts.len().to_string()));
            }
            let mut ranges = Vec::with_capacity(counts.len());
            let mut end = 0usize;
            for &count in counts {
                let start = end;
                end = end
                    .checked_add(count)
                    .filter(|&end| end <= len)
                    .ok_or_else(|| shape(format!("at most {len} elements, the buffer's"), format!("{counts:?}")))?;
                ranges.push(start..end);
            }
            Ok(ranges)
        };
        let sends = ranges("counts to send", send_counts, send.len())?;
        let receives = ranges("counts to receive", recv_counts, recv.len())?;
        self.group(|group| {
            for (peer, (from, to)) in sends.into_iter().zip(receives).enumerate() {
                group.send(stream, send, from, peer)?;
                group.recv(stream, recv, to, peer)?;
            }
            Ok(())
        })
    }

    /// Ends the communicator without waiting for the other ranks.
    ///
    /// # Errors
    /// What the library says.
    pub fn abort(mut self) -> Result<()> {
        self.end(true)
    }

    fn end(&mut self, abort: bool) -> Result<()> {
        let handle = std::mem::replace(&mut self.handle, std::ptr::null_mut());
        if handle.is_null() {
            return Ok(());
        }
        let library = &self.nccl.library;
        // SAFETY: the communicator is live; nobody else has its handle, and it is not used again.
        self.device.with_current(|| unsafe {
            if abort { call!(library, ncclCommAbort(handle)) } else { call!(library, ncclCommDestroy(handle)) }
        })?
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let failed = self.failed.get_mut().is_some();
        // Nobody can be told.
        let _ = self.end(failed);
    }
}

/// Sends and receives of one [`Communicator::group`].
#[derive(Debug)]
pub struct Group<'a> {
    communicator: &'a Communicator,
    library: &'a Library,
    queued: bool,
    /// NCCL counts groups by thread.
    thread: std::marker::PhantomData<*const ()>,
}

impl Group<'_> {
    /// Sends elements of a buffer to a rank. None sends nothing.
    ///
    /// # Errors
    /// When the range is not inside the buffer, there is no such rank, buffer or stream are another device's, or the library refuses.
    pub fn send<T: Pod>(&mut self, stream: &Stream, from: &Buffer<T>, range: Range<usize>, to: usize) -> Result<()> {
        let (address, bytes) = self.memory(stream, from, range)?;
        // SAFETY: live memory of this device, ordered before the stream's work by `use_in`, which also keeps it until that work is done.
        unsafe { self.send_raw(stream, address, bytes, to) }
    }

    /// Receives elements of a buffer from a rank. None receives nothing.
    ///
    /// # Errors
    /// As [`send`](Group::send).
    pub fn recv<T: Pod>(&mut self, stream: &Stream, into: &mut Buffer<T>, range: Range<usize>, from: usize) -> Result<()> {
        let (address, bytes) = self.memory(stream, into, range)?;
        // SAFETY: as in `send`.
        unsafe { self.recv_raw(stream, address, bytes, from) }
    }

    /// Sends bytes from an address.
    ///
    /// # Safety
    /// The memory is live until the stream has done it, and the device can reach it.
    ///
    /// # Errors
    /// As [`send`](Group::send).
    pub unsafe fn send_raw(&mut self, stream: &Stream, from: DevicePtr, bytes: u64, to: usize) -> Result<()> {
        let Some(peer) = self.prepare(stream, bytes, to)? else { return Ok(()) };
        let (handle, library) = (self.communicator.handle, self.library);
        let kind = ncclDataType_t::ncclUint8;
        // SAFETY: the communicator and the stream are live; the caller vouches for the memory.
        unsafe { call!(library, ncclSend(from.0 as *const _, bytes, kind, peer, handle, stream.raw() as *mut _)) }
    }

    /// Receives bytes at an address.
    ///
    /// # Safety
    /// As [`send_raw`](Group::send_raw); and nothing else uses the memory until the stream has done it.
    ///
    /// # Errors
    /// As [`send`](Group::send).
    pub unsafe fn recv_raw(&mut self, stream: &Stream, into: DevicePtr, bytes: u64, from: usize) -> Result<()> {
        let Some(peer) = self.prepare(stream, bytes, from)? else { return Ok(()) };
        let (handle, library) = (self.communicator.handle, self.library);
        let kind = ncclDataType_t::ncclUint8;
        // SAFETY: as in `send_raw`.
        unsafe { call!(library, ncclRecv(into.0 as *mut _, bytes, kind, peer, handle, stream.raw() as *mut _)) }
    }

    fn memory<T: Pod>(&self, stream: &Stream, buffer: &Buffer<T>, range: Range<usize>) -> Result<(DevicePtr, u64)> {
        let bytes = (range.len() * size_of::<T>()) as u64;
        let address = buffer.range(range)?;
        if *buffer.device() != self.communicator.device {
            return Err(v3_gpu::Error::WrongDevice { what: "the buffer" }.into());
        }
        buffer.use_in(stream)?;
        Ok((address, bytes))
    }

    /// The rank as NCCL takes it; `None` when there is nothing to do.
    fn prepare(&mut self, stream: &Stream, bytes: u64, peer: usize) -> Result<Option<c_int>> {
        let size = self.communicator.size;
        let number = c_int::try_from(peer).ok().filter(|_| peer < size);
        let Some(number) = number else {
            return Err(Error::Shape { what: "rank", expected: format!("below {size}"), got: peer.to_string() });
        };
        if *stream.device() != self.communicator.device {
            return Err(v3_gpu::Error::WrongDevice { what: "the stream" }.into());
        }
        self.queued |= bytes > 0;
        Ok((bytes > 0).then_some(number))
    }
}
