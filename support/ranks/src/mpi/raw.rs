//! The calls of MPI that the engine makes, each with its error code checked.
//!
//! The bindings are those of the crate `mpi` (rsmpi). Its safe layer asserts that calls succeed or ignores what they return;
//! here an error is a value, as MPI_ERRORS_RETURN makes it one (MPI 3.1, section 8.3).

use std::ffi::c_int;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use ::mpi::ffi;

/// A call of MPI that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The function.
    pub call: &'static str,
    /// Its error code; 0 where the call itself succeeded but what came is not what was expected.
    pub code: i32,
    /// The library's text for the code.
    pub text: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.call, self.text)
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), Fault> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut len: c_int = 0;
    // SAFETY: the buffer holds MPI_MAX_ERROR_STRING bytes, which is the most that the function writes.
    let known = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) };
    let len = if known == ffi::MPI_SUCCESS as c_int { usize::try_from(len).unwrap_or(0).min(text.len()) } else { 0 };
    let text = if len == 0 { "an error without a text".into() } else { String::from_utf8_lossy(&text[..len]).into_owned() };
    Err(Fault { call, code, text })
}

fn unexpected(call: &'static str, text: impl Into<String>) -> Fault {
    Fault { call, code: 0, text: text.into() }
}

/// A count of bytes as MPI takes it.
fn count(call: &'static str, bytes: usize) -> Result<c_int, Fault> {
    c_int::try_from(bytes).map_err(|_| unexpected(call, format!("{bytes} bytes are more than one message of MPI holds")))
}

/// A request of a send or receive under way.
pub(crate) type Request = ffi::MPI_Request;

/// A message that has been matched and is to be received.
pub(crate) struct Matched {
    message: ffi::MPI_Message,
    /// Rank that sent it.
    pub source: usize,
    /// Its bytes.
    pub len: usize,
}

/// MPI, initialised by this thread, with a communicator of its own. Only this thread may call it.
pub(crate) struct Mpi {
    comm: ffi::MPI_Comm,
    pub rank: usize,
    pub size: usize,
    thread: PhantomData<*const ()>,
}

impl Mpi {
    /// Initialises MPI for the calling thread. A process can do so once.
    pub fn start() -> Result<Self, Fault> {
        let mut already: c_int = 0;
        // SAFETY: MPI_Initialized may be called at any time.
        check("MPI_Initialized", unsafe { ffi::MPI_Initialized(&mut already) })?;
        if already != 0 {
            return Err(unexpected("MPI_Init_thread", "MPI has been initialised before in this process"));
        }
        let mut provided: c_int = 0;
        // SAFETY: MPI is not initialised; null stands for arguments that are not passed on (MPI 3.1, section 8.7).
        check("MPI_Init_thread", unsafe {
            ffi::MPI_Init_thread(null_mut(), null_mut(), ffi::RSMPI_THREAD_FUNNELED, &mut provided)
        })?;
        // SAFETY: MPI is initialised by this thread; every pointer is to a live local.
        unsafe {
            if provided < ffi::RSMPI_THREAD_FUNNELED {
                return Err(unexpected("MPI_Init_thread", "this MPI was built without support for threads"));
            }
            check("MPI_Comm_set_errhandler", ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN))?;
            let mut comm = ffi::RSMPI_COMM_NULL;
            check("MPI_Comm_dup", ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &mut comm))?;
            check("MPI_Comm_set_errhandler", ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN))?;
            let (mut rank, mut size): (c_int, c_int) = (0, 0);
            check("MPI_Comm_rank", ffi::MPI_Comm_rank(comm, &mut rank))?;
            check("MPI_Comm_size", ffi::MPI_Comm_size(comm, &mut size))?;
            match (usize::try_from(rank), usize::try_from(size)) {
                (Ok(rank), Ok(size)) if rank < size => Ok(Mpi { comm, rank, size, thread: PhantomData }),
                _ => Err(unexpected("MPI_Comm_rank", format!("rank {rank} of {size}"))),
            }
        }
    }

    /// Exchanges short texts at the start: by rank.
    pub fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let len = count("MPI_Allgather", own.len())?;
        let mut lens: Vec<c_int> = vec![0; self.size];
        // SAFETY: `lens` holds one int for each rank.
        check("MPI_Allgather", unsafe {
            let one = (&raw const len).cast();
            ffi::MPI_Allgather(one, 1, ffi::RSMPI_INT32_T, lens.as_mut_ptr().cast(), 1, ffi::RSMPI_INT32_T, self.comm)
        })?;
        let mut starts: Vec<c_int> = Vec::with_capacity(self.size);
        let mut total: c_int = 0;
        for &len in &lens {
            starts.push(total);
            let next = (len >= 0).then(|| total.checked_add(len)).flatten();
            total = next.ok_or_else(|| unexpected("MPI_Allgatherv", "texts that are too long"))?;
        }
        let mut all = vec![0u8; usize::try_from(total).unwrap_or(0)];
        // SAFETY: `all` holds the sum of the counts, each at the sum of those before it.
        check("MPI_Allgatherv", unsafe {
            let (bytes, to) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
            let (u8s, lens, starts) = (ffi::RSMPI_UINT8_T, lens.as_ptr(), starts.as_ptr());
            ffi::MPI_Allgatherv(bytes, len, u8s, to, lens, starts, u8s, self.comm)
        })?;
        let mut rest = all.as_slice();
        let mut texts = Vec::with_capacity(self.size);
        for &len in &lens {
            let (text, after) = rest.split_at(usize::try_from(len).unwrap_or(0).min(rest.len()));
            texts.push(text.to_vec());
            rest = after;
        }
        Ok(texts)
    }

    /// When rank 0's clock stood at 0, on the clock of this process. Rank 0 tells every other one the time a few times; the
    /// quickest answer counts, and is wrong by at most half of the time it took.
    pub fn common_start(&self) -> Result<Instant, Fault> {
        const ROUNDS: usize = 16;
        let zero = Instant::now();
        let mut best = (Duration::MAX, zero);
        for other in 1..self.size {
            for _ in 0..ROUNDS {
                if self.rank == 0 {
                    self.receive_word(other)?;
                    self.send_word(other, zero.elapsed().as_nanos() as u64)?;
                } else if self.rank == other {
                    let asked = Instant::now();
                    self.send_word(0, 0)?;
                    let time = Duration::from_nanos(self.receive_word(0)?);
                    let took = asked.elapsed();
                    if took < best.0 {
                        let start = (asked + took / 2).checked_sub(time);
                        best = (took, start.ok_or_else(|| unexpected("MPI_Recv", "a time before this machine's start"))?);
                    }
                }
            }
        }
        Ok(best.1)
    }

    fn send_word(&self, to: usize, word: u64) -> Result<(), Fault> {
        let to = count("MPI_Send", to)?;
        // SAFETY: one word is read from a live local.
        check("MPI_Send", unsafe { ffi::MPI_Send((&raw const word).cast(), 1, ffi::RSMPI_UINT64_T, to, 0, self.comm) })
    }

    fn receive_word(&self, from: usize) -> Result<u64, Fault> {
        let (from, mut word) = (count("MPI_Recv", from)?, 0u64);
        // SAFETY: one word is written to a live local.
        check("MPI_Recv", unsafe {
            let status = ffi::RSMPI_STATUS_IGNORE;
            ffi::MPI_Recv((&raw mut word).cast(), 1, ffi::RSMPI_UINT64_T, from, 0, self.comm, status)
        })?;
        Ok(word)
    }

    /// Begins to send bytes.
    ///
    /// # Safety
    /// The bytes stay where they are, unchanged, until the request is complete.
    pub unsafe fn isend(&self, bytes: &[u8], to: usize, tag: c_int) -> Result<Request, Fault> {
        const CALL: &str = "MPI_Isend";
        let len = count(CALL, bytes.len())?;
        let to = count(CALL, to)?;
        let mut request = MaybeUninit::uninit();
        // SAFETY: the bytes are valid for the length given, and the caller keeps them so.
        unsafe {
            let code = ffi::MPI_Isend(bytes.as_ptr().cast(), len, ffi::RSMPI_UINT8_T, to, tag, self.comm, request.as_mut_ptr());
            check(CALL, code)?;
            Ok(request.assume_init())
        }
    }

    /// Begins to receive exactly `len` bytes.
    ///
    /// # Safety
    /// The memory at `to` holds `len` bytes and is touched by nobody else until the request is complete.
    pub unsafe fn irecv(&self, to: *mut u8, len: usize, from: usize, tag: c_int) -> Result<Request, Fault> {
        const CALL: &str = "MPI_Irecv";
        let len = count(CALL, len)?;
        let from = count(CALL, from)?;
        let mut request = MaybeUninit::uninit();
        // SAFETY: as the caller promises.
        unsafe {
            check(CALL, ffi::MPI_Irecv(to.cast(), len, ffi::RSMPI_UINT8_T, from, tag, self.comm, request.as_mut_ptr()))?;
            Ok(request.assume_init())
        }
    }

    /// Looks for a message with this tag from any rank, and takes it out of the matching.
    pub fn improbe(&self, tag: c_int) -> Result<Option<Matched>, Fault> {
        const CALL: &str = "MPI_Improbe";
        let (mut flag, mut message) = (0, MaybeUninit::uninit());
        let mut status: MaybeUninit<ffi::MPI_Status> = MaybeUninit::uninit();
        // SAFETY: every pointer is to a live local; message and status are written when the flag is set.
        unsafe {
            let any = ffi::RSMPI_ANY_SOURCE;
            check(CALL, ffi::MPI_Improbe(any, tag, self.comm, &mut flag, message.as_mut_ptr(), status.as_mut_ptr()))?;
            if flag == 0 {
                return Ok(None);
            }
            let mut len: c_int = 0;
            check("MPI_Get_count", ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &mut len))?;
            let source = status.assume_init().MPI_SOURCE;
            match (usize::try_from(source), usize::try_from(len)) {
                (Ok(source), Ok(len)) if source < self.size => Ok(Some(Matched { message: message.assume_init(), source, len })),
                _ => Err(unexpected(CALL, format!("a message of {len} bytes from rank {source}"))),
            }
        }
    }

    /// Begins to receive a matched message.
    ///
    /// # Safety
    /// The memory at `to` holds [`Matched::len`] bytes and is touched by nobody else until the request is complete.
    pub unsafe fn imrecv(&self, matched: Matched, to: *mut u8) -> Result<Request, Fault> {
        const CALL: &str = "MPI_Imrecv";
        let len = count(CALL, matched.len)?;
        let (mut message, mut request) = (matched.message, MaybeUninit::uninit());
        // SAFETY: as the caller promises.
        unsafe {
            check(CALL, ffi::MPI_Imrecv(to.cast(), len, ffi::RSMPI_UINT8_T, &mut message, request.as_mut_ptr()))?;
            Ok(request.assume_init())
        }
    }

    /// Positions of requests that have completed since; each becomes the null request. `lens` gives the bytes that a receive must
    /// have brought, by position; `None` for a send.
    pub fn test_some(&self, requests: &mut [Request], lens: &[Option<usize>]) -> Result<Vec<usize>, Fault> {
        const CALL: &str = "MPI_Testsome";
        let total = count(CALL, requests.len())?;
        let mut indices: Vec<c_int> = vec![0; requests.len()];
        let mut statuses: Vec<MaybeUninit<ffi::MPI_Status>> = vec![MaybeUninit::zeroed(); requests.len()];
        let mut done: c_int = 0;
        // SAFETY: the arrays hold as many elements as there are requests; a request that completes is replaced by the null request.
        let code = unsafe {
            ffi::MPI_Testsome(total, requests.as_mut_ptr(), &mut done, indices.as_mut_ptr(), statuses.as_mut_ptr().cast())
        };
        let done = usize::try_from(done).unwrap_or(0).min(requests.len());
        if code == ffi::MPI_ERR_IN_STATUS as c_int {
            for status in &statuses[..done] {
                // SAFETY: zeroed above or written by the call; a status of integers is valid either way.
                check(CALL, unsafe { status.assume_init_ref() }.MPI_ERROR)?;
            }
        }
        check(CALL, code)?;
        let mut completed = Vec::with_capacity(done);
        for (&index, status) in indices.iter().zip(&statuses).take(done) {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let Some(&expected) = lens.get(index) else { return Err(unexpected(CALL, "an index out of range")) };
            if let Some(expected) = expected {
                let mut len: c_int = 0;
                // SAFETY: the call above wrote this status.
                check("MPI_Get_count", unsafe { ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &mut len) })?;
                if usize::try_from(len) != Ok(expected) {
                    return Err(unexpected(CALL, format!("{len} bytes where {expected} were announced")));
                }
            }
            completed.push(index);
        }
        Ok(completed)
    }

    /// Rows of `row_bytes` bytes from every rank to every rank; one count per rank, and the slices hold as many rows as the counts say.
    pub fn all_to_all_v(
        &self,
        send: &[u8],
        sent: &[usize],
        receive: &mut [u8],
        received: &[usize],
        row_bytes: usize,
    ) -> Result<(), Fault> {
        const CALL: &str = "MPI_Alltoallv";
        let layout = |counts: &[usize], bytes: usize| -> Result<(Vec<c_int>, Vec<c_int>), Fault> {
            let (mut lens, mut starts, mut rows) = (Vec::new(), Vec::new(), 0usize);
            for &len in counts {
                lens.push(count(CALL, len)?);
                starts.push(count(CALL, rows)?);
                rows = rows.saturating_add(len);
            }
            match rows.checked_mul(row_bytes) == Some(bytes) && counts.len() == self.size {
                true => Ok((lens, starts)),
                false => Err(unexpected(CALL, format!("{} counts of {rows} rows for {bytes} bytes", counts.len()))),
            }
        };
        let (send_lens, send_starts) = layout(sent, send.len())?;
        let (receive_lens, receive_starts) = layout(received, receive.len())?;
        let row_bytes = count(CALL, row_bytes)?;
        // SAFETY: there is a count and a start per rank, the parts that they name lie inside the slices, and the type of a row
        // is freed after its last use.
        unsafe {
            let mut row = ffi::RSMPI_DATATYPE_NULL;
            check("MPI_Type_contiguous", ffi::MPI_Type_contiguous(row_bytes, ffi::RSMPI_UINT8_T, &mut row))?;
            check("MPI_Type_commit", ffi::MPI_Type_commit(&mut row))?;
            let code = ffi::MPI_Alltoallv(
                send.as_ptr().cast(),
                send_lens.as_ptr(),
                send_starts.as_ptr(),
                row,
                receive.as_mut_ptr().cast(),
                receive_lens.as_ptr(),
                receive_starts.as_ptr(),
                row,
                self.comm,
            );
            check("MPI_Type_free", ffi::MPI_Type_free(&mut row))?;
            check(CALL, code)
        }
    }

    /// Ends the whole job with this status.
    pub fn abort(&self, status: i32) -> Result<(), Fault> {
        // SAFETY: MPI is initialised and this is its thread.
        check("MPI_Abort", unsafe { ffi::MPI_Abort(self.comm, status) })
    }

    /// Ends MPI; every rank calls it, with nothing under way.
    pub fn finish(mut self) -> Result<(), Fault> {
        // SAFETY: MPI is initialised, this is its thread, and the communicator is this one's own.
        unsafe {
            check("MPI_Comm_free", ffi::MPI_Comm_free(&mut self.comm))?;
            check("MPI_Finalize", ffi::MPI_Finalize())
        }
    }
}
