//! Stands for NCCL's library: moves bytes between emulated devices, in the order of their streams, and fails when it is told to.
//!
//! It does what nccl.h says of the functions used, more strictly than the library: the end of a group waits on the host until every
//! send and receive of the group has its counterpart, and gives up after [`PATIENCE`].

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{CStr, c_char, c_int};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use v3_gpu::{LaunchConfig, Stream};
use v3_ranks::nccl::sys::{Functions, ncclComm, ncclDataType_t, ncclResult_t, ncclUniqueId};

/// How long a rank waits for the others.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a communicator's handle points to.
struct Handle {
    group: [c_char; 128],
    rank: c_int,
    size: c_int,
}

/// A send or a receive.
#[derive(Clone)]
struct Operation {
    group: [c_char; 128],
    from: c_int,
    to: c_int,
    address: u64,
    bytes: u64,
    stream: u64,
    number: u64,
}

type Channel = ([c_char; 128], c_int, c_int);

#[derive(Default)]
struct State {
    ids: u8,
    joined: HashMap<[c_char; 128], HashSet<c_int>>,
    live: HashSet<usize>,
    streams: HashMap<u64, Stream>,
    sends: HashMap<Channel, VecDeque<Operation>>,
    receives: HashMap<Channel, VecDeque<Operation>>,
    numbers: u64,
    done: HashSet<u64>,
    /// The function that fails, and how.
    failing: Option<(&'static str, ncclResult_t)>,
    /// What the functions have been called, in order.
    calls: Vec<&'static str>,
    asynchronous: Option<ncclResult_t>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static GROUP: RefCell<Group> = const { RefCell::new(Group { depth: 0, operations: Vec::new(), failed: None }) };
}

fn lock() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<R>(body: impl FnOnce(&mut State) -> R) -> R {
    body(lock().get_or_insert_default())
}

/// Forgets everything.
pub fn reset() {
    *lock() = None;
}

/// Makes a function fail from now on, or none.
pub fn fail(failing: Option<(&'static str, u32)>) {
    with(|state| state.failing = failing.map(|(function, code)| (function, ncclResult_t(code))));
}

/// What operations under way report from now on.
pub fn fail_later(code: u32) {
    with(|state| state.asynchronous = Some(ncclResult_t(code)));
}

/// The functions called since the last reset.
pub fn calls() -> Vec<&'static str> {
    with(|state| state.calls.clone())
}

/// Communicators that nobody has ended.
pub fn live() -> usize {
    with(|state| state.live.len())
}

/// Makes a stream known by its handle.
pub fn know(stream: &Stream) {
    with(|state| state.streams.insert(stream.raw(), stream.clone()));
}

/// The groups of a thread.
struct Group {
    depth: u32,
    operations: Vec<(bool, Operation)>,
    /// A call inside has failed: the end of the group returns that, and nothing of it is done.
    failed: Option<ncclResult_t>,
}

/// Notes a call; the failure that it was told to have.
fn enter(function: &'static str) -> Option<ncclResult_t> {
    with(|state| {
        state.calls.push(function);
        state.failing.filter(|(failing, _)| *failing == function).map(|(_, code)| code)
    })
}

macro_rules! enter {
    ($function:literal) => {
        if let Some(code) = enter($function) {
            return code;
        }
    };
}

unsafe extern "C" fn get_version(version: *mut c_int) -> ncclResult_t {
    enter!("ncclGetVersion");
    // SAFETY: the caller's result.
    unsafe { *version = 22707 };
    ncclResult_t::ncclSuccess
}

unsafe extern "C" fn get_unique_id(id: *mut ncclUniqueId) -> ncclResult_t {
    enter!("ncclGetUniqueId");
    let number = with(|state| {
        state.ids += 1;
        state.ids
    });
    // SAFETY: the caller's result. Every byte counts.
    unsafe { (*id).internal = std::array::from_fn(|i| (i as u8 ^ number) as c_char) };
    ncclResult_t::ncclSuccess
}

unsafe extern "C" fn comm_init_rank(handle: *mut *mut ncclComm, size: c_int, id: ncclUniqueId, rank: c_int) -> ncclResult_t {
    enter!("ncclCommInitRank");
    if rank < 0 || rank >= size {
        return ncclResult_t::ncclInvalidArgument;
    }
    let group = id.internal;
    let began = Instant::now();
    let mut state = lock();
    let joined = &mut state.get_or_insert_default().joined;
    if !joined.entry(group).or_default().insert(rank) {
        return ncclResult_t::ncclInvalidUsage;
    }
    CHANGED.notify_all();
    while state.get_or_insert_default().joined[&group].len() < size as usize {
        if began.elapsed() > PATIENCE {
            return ncclResult_t::ncclSystemError;
        }
        state = CHANGED.wait_timeout(state, Duration::from_millis(50)).unwrap_or_else(PoisonError::into_inner).0;
    }
    let made = Box::into_raw(Box::new(Handle { group, rank, size }));
    state.get_or_insert_default().live.insert(made as usize);
    // SAFETY: the caller's result.
    unsafe { *handle = made.cast() };
    ncclResult_t::ncclSuccess
}

fn end(handle: *mut ncclComm) -> ncclResult_t {
    if !with(|state| state.live.remove(&(handle as usize))) {
        return ncclResult_t::ncclInvalidArgument;
    }
    // SAFETY: made by `comm_init_rank`, and live until a moment ago.
    drop(unsafe { Box::from_raw(handle.cast::<Handle>()) });
    ncclResult_t::ncclSuccess
}

unsafe extern "C" fn comm_destroy(handle: *mut ncclComm) -> ncclResult_t {
    enter!("ncclCommDestroy");
    end(handle)
}

unsafe extern "C" fn comm_abort(handle: *mut ncclComm) -> ncclResult_t {
    enter!("ncclCommAbort");
    end(handle)
}

/// The live communicator behind a handle.
fn handle_of<'a>(handle: *mut ncclComm) -> Option<&'a Handle> {
    // SAFETY: made by `comm_init_rank` and live; the tests end none while it is used.
    with(|state| state.live.contains(&(handle as usize))).then(|| unsafe { &*handle.cast::<Handle>() })
}

unsafe extern "C" fn comm_count(handle: *mut ncclComm, count: *mut c_int) -> ncclResult_t {
    enter!("ncclCommCount");
    let Some(communicator) = handle_of(handle) else { return ncclResult_t::ncclInvalidArgument };
    // SAFETY: the caller's result.
    unsafe { *count = communicator.size };
    ncclResult_t::ncclSuccess
}

unsafe extern "C" fn comm_get_async_error(_: *mut ncclComm, error: *mut ncclResult_t) -> ncclResult_t {
    enter!("ncclCommGetAsyncError");
    // SAFETY: the caller's result.
    unsafe { *error = with(|state| state.asynchronous).unwrap_or(ncclResult_t::ncclSuccess) };
    ncclResult_t::ncclSuccess
}

unsafe extern "C" fn get_error_string(code: ncclResult_t) -> *const c_char {
    let text: &CStr = if code == ncclResult_t::ncclRemoteError { c"remote process exited" } else { c"it failed" };
    text.as_ptr()
}

unsafe extern "C" fn get_last_error(_: *mut ncclComm) -> *const c_char {
    c"told to fail".as_ptr()
}

unsafe extern "C" fn group_start() -> ncclResult_t {
    enter!("ncclGroupStart");
    GROUP.with_borrow_mut(|group| group.depth += 1);
    ncclResult_t::ncclSuccess
}

unsafe extern "C" fn group_end() -> ncclResult_t {
    let failing = enter("ncclGroupEnd");
    let operations = GROUP.with_borrow_mut(|group| {
        let Some(depth) = group.depth.checked_sub(1) else { return Err(ncclResult_t::ncclInvalidUsage) };
        group.depth = depth;
        if depth > 0 {
            return Ok(Vec::new());
        }
        let operations = std::mem::take(&mut group.operations);
        group.failed.take().map_or(Ok(operations), Err)
    });
    match (failing, operations) {
        (Some(code), _) | (None, Err(code)) => code,
        (None, Ok(operations)) => run(operations),
    }
}

fn queue(
    send: bool,
    address: u64,
    count: u64,
    kind: ncclDataType_t,
    peer: c_int,
    handle: *mut ncclComm,
    stream: u64,
) -> ncclResult_t {
    let Some(&Handle { group, rank, size }) = handle_of(handle) else { return ncclResult_t::ncclInvalidArgument };
    if peer < 0 || peer >= size || address == 0 || kind != ncclDataType_t::ncclUint8 {
        return ncclResult_t::ncclInvalidArgument;
    }
    let (from, to) = if send { (rank, peer) } else { (peer, rank) };
    let number = with(|state| {
        state.numbers += 1;
        state.numbers
    });
    let operation = Operation { group, from, to, address, bytes: count, stream, number };
    let alone = GROUP.with_borrow_mut(|group| {
        group.operations.push((send, operation));
        group.depth == 0
    });
    if alone { run(GROUP.with_borrow_mut(|group| std::mem::take(&mut group.operations))) } else { ncclResult_t::ncclSuccess }
}

unsafe extern "C" fn send(
    from: *const std::ffi::c_void,
    count: u64,
    kind: ncclDataType_t,
    peer: c_int,
    handle: *mut ncclComm,
    stream: *mut v3_ranks::nccl::sys::CUstream_st,
) -> ncclResult_t {
    if let Some(code) = enter("ncclSend") {
        GROUP.with_borrow_mut(|group| group.failed = group.failed.or(Some(code)));
        return code;
    }
    queue(true, from as u64, count, kind, peer, handle, stream as u64)
}

unsafe extern "C" fn recv(
    into: *mut std::ffi::c_void,
    count: u64,
    kind: ncclDataType_t,
    peer: c_int,
    handle: *mut ncclComm,
    stream: *mut v3_ranks::nccl::sys::CUstream_st,
) -> ncclResult_t {
    if let Some(code) = enter("ncclRecv") {
        GROUP.with_borrow_mut(|group| group.failed = group.failed.or(Some(code)));
        return code;
    }
    queue(false, into as u64, count, kind, peer, handle, stream as u64)
}

/// Matches sends and receives, queues the copies, and waits until all of `operations` are queued.
fn run(operations: Vec<(bool, Operation)>) -> ncclResult_t {
    let mine: Vec<u64> = operations.iter().map(|(_, operation)| operation.number).collect();
    let mut state = lock();
    for (send, operation) in operations {
        let channel = (operation.group, operation.from, operation.to);
        let all = state.get_or_insert_default();
        let (own, others) = if send { (&mut all.sends, &mut all.receives) } else { (&mut all.receives, &mut all.sends) };
        let Some(other) = others.get_mut(&channel).and_then(VecDeque::pop_front) else {
            own.entry(channel).or_default().push_back(operation);
            continue;
        };
        let numbers = [operation.number, other.number];
        let (from, to) = if send { (operation, other) } else { (other, operation) };
        if from.bytes != to.bytes {
            return ncclResult_t::ncclInvalidArgument;
        }
        let (Some(source), Some(target)) = (all.streams.get(&from.stream), all.streams.get(&to.stream)) else {
            return ncclResult_t::ncclInvalidUsage;
        };
        copy(source, target, &from, &to);
        all.done.extend(numbers);
        CHANGED.notify_all();
    }
    let began = Instant::now();
    while !mine.iter().all(|number| state.get_or_insert_default().done.contains(number)) {
        if began.elapsed() > PATIENCE {
            return ncclResult_t::ncclSystemError;
        }
        state = CHANGED.wait_timeout(state, Duration::from_millis(50)).unwrap_or_else(PoisonError::into_inner).0;
    }
    ncclResult_t::ncclSuccess
}

/// Copies behind what both streams were given, and before what they will be.
fn copy(source: &Stream, target: &Stream, from: &Operation, to: &Operation) {
    let kernel = target.device().module(COPY).unwrap().kernel("copy").unwrap();
    let args = [from.address, to.address, from.bytes].map(|value| value.to_le_bytes().to_vec());
    let same = source.raw() == target.raw();
    if !same {
        target.wait(source).unwrap();
    }
    // SAFETY: the two ranks vouch for their memory; the kernel touches nothing else.
    unsafe { target.launch_raw(&kernel, &LaunchConfig::new(1, 32), &args) }.unwrap();
    if !same {
        source.wait(target).unwrap();
    }
}

/// Copies bytes, one after another with the threads of one block.
const COPY: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 from, .param .u64 to, .param .u64 bytes)
{
    .reg .b64 %rd<8>;
    .reg .b32 %r<4>;
    .reg .b16 %rs<2>;
    .reg .pred %p;
    ld.param.u64 %rd1, [from];
    ld.param.u64 %rd2, [to];
    ld.param.u64 %rd3, [bytes];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ntid.x;
    cvt.u64.u32 %rd4, %r1;
    cvt.u64.u32 %rd5, %r2;
AGAIN:
    setp.ge.u64 %p, %rd4, %rd3;
    @%p bra DONE;
    add.s64 %rd6, %rd1, %rd4;
    add.s64 %rd7, %rd2, %rd4;
    ld.global.u8 %rs1, [%rd6];
    st.global.u8 [%rd7], %rs1;
    add.s64 %rd4, %rd4, %rd5;
    bra AGAIN;
DONE:
    ret;
}";

/// The functions of the stand-in.
pub fn functions() -> Functions {
    Functions {
        ncclCommAbort: Some(comm_abort),
        ncclCommCount: Some(comm_count),
        ncclCommDestroy: Some(comm_destroy),
        ncclCommGetAsyncError: Some(comm_get_async_error),
        ncclCommInitRank: Some(comm_init_rank),
        ncclGetErrorString: Some(get_error_string),
        ncclGetLastError: Some(get_last_error),
        ncclGetUniqueId: Some(get_unique_id),
        ncclGetVersion: Some(get_version),
        ncclGroupEnd: Some(group_end),
        ncclGroupStart: Some(group_start),
        ncclRecv: Some(recv),
        ncclSend: Some(send),
    }
}
