//! Rows travel to their experts: once to each other node, from there to the ranks of the node, and into expert-major order.

use std::mem::MaybeUninit;

use bytemuck::Pod;
use v3_numerics::par;
use v3_ranks::Comm;

use crate::error::{Error, Result};
use crate::plan::{Kind, PADDING, Plan, tag};

/// Elements that one thread copies at a time, about.
const ELEMENTS_PER_ITEM: usize = 1 << 16;

impl Plan {
    /// Brings this rank's rows `[T, row_len]` to their experts and returns the rows of this rank's experts `[R, row_len]`, expert by expert
    /// (see [`offsets`](Plan::offsets)), those of one expert by source rank, then by token. Padding rows are zero. The elements may be anything:
    /// f32, bf16, E4M3, bytes.
    ///
    /// # Errors
    /// When `rows` has another length than T rows, other ranks have another `row_len`, or another rank has failed.
    pub fn dispatch<T: Pod + Send + Sync>(&self, comm: &Comm, rows: &[T], row_len: usize) -> Result<Vec<T>> {
        self.dispatch_kind(comm, rows, row_len, Kind::Rows)
    }

    /// [`dispatch`](Plan::dispatch) into memory of the caller, `[R, row_len]`.
    ///
    /// # Errors
    /// As [`dispatch`](Plan::dispatch), and when `out` has another length than R rows.
    pub fn dispatch_into<T: Pod + Send + Sync>(&self, comm: &Comm, rows: &[T], row_len: usize, out: &mut [T]) -> Result<()> {
        check_len("dispatched rows", out.len(), self.expert_rows(), row_len)?;
        let received = self.exchange(comm, rows, row_len, Kind::Rows)?;
        let buffers = self.buffers(rows, &received);
        par::for_each_chunk_mut(out, rows_per_item(row_len) * row_len, |item, part| {
            let list = items(&self.gather, item, row_len);
            for (to, &(source, row)) in part.chunks_exact_mut(row_len).zip(list) {
                match source {
                    PADDING => to.fill(T::zeroed()),
                    _ => to.copy_from_slice(row_of(buffers[source as usize], row, row_len)),
                }
            }
        });
        Ok(())
    }

    /// [`dispatch`](Plan::dispatch) of rows in two parts, such as E4M3 values and their scales. Each row counts once in [`traffic`](Plan::traffic),
    /// with the bytes of both parts.
    ///
    /// # Errors
    /// As [`dispatch`](Plan::dispatch), for either part.
    pub fn dispatch_pair<T: Pod + Send + Sync, U: Pod + Send + Sync>(
        &self,
        comm: &Comm,
        rows: (&[T], usize),
        side: (&[U], usize),
    ) -> Result<(Vec<T>, Vec<U>)> {
        check_len("side rows", side.0.len(), self.tokens, side.1)?;
        let rows = self.dispatch_kind(comm, rows.0, rows.1, Kind::Rows)?;
        Ok((rows, self.dispatch_kind(comm, side.0, side.1, Kind::SideRows)?))
    }

    fn dispatch_kind<T: Pod + Send + Sync>(&self, comm: &Comm, rows: &[T], row_len: usize, kind: Kind) -> Result<Vec<T>> {
        let received = self.exchange(comm, rows, row_len, kind)?;
        let buffers = self.buffers(rows, &received);
        Ok(collect_rows(self.expert_rows(), row_len, |at| match self.gather[at] {
            (PADDING, _) => None,
            (source, row) => Some(row_of(buffers[source as usize], row, row_len)),
        }))
    }

    /// The rows of each source rank that this rank has: its own, and what came.
    pub(crate) fn buffers<'a, T>(&self, rows: &'a [T], received: &'a [Vec<T>]) -> Vec<&'a [T]> {
        received.iter().enumerate().map(|(rank, rows_of)| if rank == self.me { rows } else { rows_of }).collect()
    }

    /// Both hops. Returns what came from each source rank, in the order of its tokens.
    pub(crate) fn exchange<T: Pod + Send + Sync>(
        &self,
        comm: &Comm,
        rows: &[T],
        row_len: usize,
        kind: Kind,
    ) -> Result<Vec<Vec<T>>> {
        check_len("rows", rows.len(), self.tokens, row_len)?;
        self.check_group(comm)?;
        let chunk_rows = self.options.chunk_rows;
        let mut received: Vec<Vec<T>> = std::iter::repeat_with(Vec::new).take(self.layout.ep_size()).collect();
        if row_len == 0 {
            return Ok(received);
        }
        for send in &self.sends {
            for chunk in send.rows.chunks(chunk_rows) {
                self.send_rows(comm, kind, self.me, send.to, send.slow, chunk, rows, row_len)?;
            }
        }
        for inbound in &self.inbound {
            let buffer = &mut received[inbound.source];
            let mut forwarded = vec![0; inbound.forward.len()];
            let mut arrived = 0;
            while arrived < inbound.rows {
                let chunk: Vec<T> = comm.recv(inbound.from, tag(kind, inbound.source))?;
                let fits =
                    !chunk.is_empty() && chunk.len().is_multiple_of(row_len) && chunk.len() / row_len <= inbound.rows - arrived;
                if !fits {
                    return Err(mixed_len(inbound.source, row_len, chunk.len()));
                }
                arrived += chunk.len() / row_len;
                if buffer.is_empty() {
                    *buffer = chunk;
                } else {
                    buffer.extend_from_slice(&chunk);
                }
                for (send, done) in inbound.forward.iter().zip(&mut forwarded) {
                    let ready = send.rows[*done..].partition_point(|&row| (row as usize) < arrived);
                    for part in send.rows[*done..*done + ready].chunks(chunk_rows) {
                        self.send_rows(comm, kind, inbound.source, send.to, send.slow, part, buffer, row_len)?;
                    }
                    *done += ready;
                }
            }
        }
        Ok(received)
    }

    fn send_rows<T: Pod + Send + Sync>(
        &self,
        comm: &Comm,
        kind: Kind,
        source: usize,
        to: usize,
        slow: bool,
        list: &[u32],
        rows: &[T],
        row_len: usize,
    ) -> Result<()> {
        let message = collect_rows(list.len(), row_len, |at| Some(row_of(rows, list[at], row_len)));
        // The second part of a row does not make it two rows.
        let counted = if matches!(kind, Kind::SideRows) { 0 } else { list.len() };
        self.dispatched.add(slow, counted, size_of_val(message.as_slice()));
        comm.send_rows(to, tag(kind, source), message, counted)?;
        Ok(())
    }

    pub(crate) fn check_group(&self, comm: &Comm) -> Result<()> {
        if comm.rank() != self.me || comm.size() != self.layout.ep_size() {
            return Err(Error::Shape {
                what: "group of the plan",
                expected: format!("rank {} of {}", self.me, self.layout.ep_size()),
                got: format!("rank {} of {}", comm.rank(), comm.size()),
            });
        }
        Ok(())
    }
}

pub(crate) fn check_len(what: &'static str, len: usize, rows: usize, row_len: usize) -> Result<()> {
    if rows.checked_mul(row_len) == Some(len) {
        return Ok(());
    }
    Err(Error::Shape { what, expected: format!("{rows} rows of {row_len}"), got: format!("{len} elements") })
}

fn mixed_len(source: usize, row_len: usize, len: usize) -> Error {
    Error::Shape {
        what: "rows of another rank",
        expected: format!("rows of {row_len} from rank {source}"),
        got: format!("{len} elements"),
    }
}

/// Rows that one thread handles at a time; a function of the row length alone.
pub(crate) fn rows_per_item(row_len: usize) -> usize {
    (ELEMENTS_PER_ITEM / row_len.max(1)).max(1)
}

/// The entries of a list with one entry per row that belong to item number `item`.
pub(crate) fn items<T>(list: &[T], item: usize, row_len: usize) -> &[T] {
    let rows = rows_per_item(row_len);
    let first = (item * rows).min(list.len());
    &list[first..(first + rows).min(list.len())]
}

#[inline]
pub(crate) fn row_of<T>(rows: &[T], row: u32, row_len: usize) -> &[T] {
    &rows[row as usize * row_len..][..row_len]
}

/// `rows` rows of `row_len` elements, each a copy of what `row` returns, or zeros.
fn collect_rows<'a, T: Pod + Send + Sync>(
    rows: usize,
    row_len: usize,
    row: impl Fn(usize) -> Option<&'a [T]> + Sync + Send,
) -> Vec<T> {
    let mut out: Vec<T> = Vec::with_capacity(rows * row_len);
    if rows * row_len == 0 {
        return out;
    }
    let per_item = rows_per_item(row_len);
    par::for_each_chunk_mut(&mut out.spare_capacity_mut()[..rows * row_len], per_item * row_len, |item, part| {
        for (at, to) in part.chunks_exact_mut(row_len).enumerate() {
            match row(item * per_item + at) {
                Some(from) => {
                    assert_eq!(from.len(), row_len, "a row has the length of a row");
                    to.write_copy_of_slice(from);
                }
                None => to.fill(MaybeUninit::new(T::zeroed())),
            }
        }
    });
    // SAFETY: the loop above has written every one of the first `rows * row_len` elements: its chunks cover them, and each
    // chunk's length is a multiple of `row_len`, as both the whole and the chunk length are.
    unsafe { out.set_len(rows * row_len) };
    out
}
