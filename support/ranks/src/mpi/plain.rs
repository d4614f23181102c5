//! MPI's own uneven all-to-all, for measuring against.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use super::engine::Port;
use super::raw::{Fault, Mpi};
use crate::error::{Error, Result};

static PORT: Mutex<Option<Arc<Port>>> = Mutex::new(None);

/// Says whose engine it is that makes the call; `None` when it has ended.
pub(super) fn set_port(port: Option<Arc<Port>>) {
    *PORT.lock().unwrap_or_else(PoisonError::into_inner) = port;
}

/// The buffers of a call, for the thread that makes it.
struct Buffers {
    send: *const [u8],
    receive: *mut [u8],
}

// SAFETY: the pointers are to slices that `mpi_all_to_all_v` holds borrowed until the call has been made or dropped.
unsafe impl Send for Buffers {}

/// `MPI_Alltoallv` as it is, over all ranks of the job: `sent[r]` rows of `row_bytes` bytes go to rank r, one part after the other, and
/// `received[r]` come from there. It is what a program would call that has only MPI; measurements compare with it. Every rank
/// calls it, inside [`run_mpi`](crate::run_mpi), with no message of its own under way: other messages wait meanwhile.
///
/// # Errors
/// When counts and lengths do not agree with each other or with the number of ranks, no world over MPI runs, or MPI fails.
pub fn mpi_all_to_all_v(send: &[u8], sent: &[usize], receive: &mut [u8], received: &[usize], row_bytes: usize) -> Result<()> {
    let refuse = |what, expected: &str, got: String| Err(Error::Shape { what, expected: expected.into(), got });
    for (what, counts, bytes) in [("rows sent", sent, send.len()), ("rows received", received, receive.len())] {
        let rows = counts.iter().try_fold(0usize, |sum, &count| sum.checked_add(count));
        if rows.and_then(|rows| rows.checked_mul(row_bytes)) != Some(bytes) {
            return refuse(what, &format!("counts that make {bytes} bytes of rows of {row_bytes}"), format!("{counts:?}"));
        }
    }
    let port = PORT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(port) = port else { return refuse("world", "one that runs over MPI", "none".into()) };
    let (tell, done) = channel();
    let (sent, received) = (sent.to_vec(), received.to_vec());
    let buffers = Buffers { send, receive };
    port.call(Box::new(move |mpi: &Mpi| {
        let buffers = buffers;
        // SAFETY: the caller holds both slices until this has been called, or dropped and `done` been told of it.
        let outcome = unsafe { mpi.all_to_all_v(&*buffers.send, &sent, &mut *buffers.receive, &received, row_bytes) };
        let _ = tell.send(outcome);
    }));
    // The call drops its end when it is dropped itself: then nothing touches the buffers any more.
    let outcome = done.recv().unwrap_or_else(|_| Err(Fault { call: "MPI_Alltoallv", code: 0, text: "MPI has ended".into() }));
    outcome.map_err(|fault| Error::Mpi { message: fault.to_string() })
}
