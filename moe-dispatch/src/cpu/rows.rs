//! Moving rows into expert-major order.

use bytemuck::Pod;
use v3_numerics::cpu::Isa;
use v3_numerics::par;

use super::stream::Copier;
use crate::error::{Error, Result};
use crate::plan::MASKED;
use crate::router::{check_len, shape};

/// Bytes that one thread writes at a time, about.
const BYTES_PER_ITEM: usize = 1 << 19;

/// Messages of at least this many bytes go past the caches.
const LARGE_MESSAGE: usize = 1 << 20;

/// For each of some source rows, the rows of a result that are copies of it. A row of the result is a copy of at most one source row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowMap {
    /// Copies of row i: `to[starts[i]..starts[i + 1]]`.
    starts: Vec<u32>,
    to: Vec<u32>,
    result_rows: usize,
}

impl RowMap {
    /// Row i goes to `to[starts[i]..starts[i + 1]]` of a result with `result_rows` rows; `starts` begins with 0 and ends with the length of `to`.
    ///
    /// # Errors
    /// When `starts` does not cut `to` into runs, or `to` names a row that the result does not have, or one row twice.
    pub fn new(starts: Vec<u32>, to: Vec<u32>, result_rows: usize) -> Result<RowMap> {
        let cuts = starts.first() == Some(&0) && starts.is_sorted() && starts.last().map(|&end| end as usize) == Some(to.len());
        if !cuts {
            return Err(shape("starts of a row map", format!("ascending from 0 to {}", to.len()), format!("{starts:?}")));
        }
        let mut taken = vec![false; result_rows];
        for &row in &to {
            match taken.get_mut(row as usize) {
                Some(taken) if !*taken => *taken = true,
                Some(_) => return Err(shape("row map", "one source for a row", format!("two for row {row}"))),
                None => return Err(shape("row map", format!("rows below {result_rows}"), row)),
            }
        }
        Ok(RowMap { starts, to, result_rows })
    }

    /// [`new`](RowMap::new) without looking.
    ///
    /// # Safety
    /// `new` would accept the arguments.
    pub(crate) unsafe fn new_unchecked(starts: Vec<u32>, to: Vec<u32>, result_rows: usize) -> RowMap {
        RowMap { starts, to, result_rows }
    }

    /// The map of what one source brings to a result whose row `i` is a copy of row `gather[i].1` of source `gather[i].0`.
    ///
    /// # Errors
    /// When the result needs a row of this source that does not exist.
    pub fn of_source(gather: &[(u32, u32)], source: u32, rows: usize) -> Result<RowMap> {
        let mut starts = vec![0u32; rows + 1];
        let mine = || gather.iter().enumerate().filter(|(_, from)| from.0 == source);
        for (_, &(_, row)) in mine() {
            match starts.get_mut(row as usize + 1) {
                Some(count) => *count += 1,
                None => return Err(shape("row map", format!("source rows below {rows}"), row)),
            }
        }
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        let mut next = starts.clone();
        let mut to = vec![0; starts[rows] as usize];
        for (at, &(_, row)) in mine() {
            let next = &mut next[row as usize];
            to[*next as usize] = at as u32;
            *next += 1;
        }
        // Each row of the result has one entry in `gather`, so `to` names it once.
        Ok(RowMap { starts, to, result_rows: gather.len() })
    }

    /// Source rows.
    pub fn rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Rows of the result, those that are copies of nothing included.
    pub fn result_rows(&self) -> usize {
        self.result_rows
    }

    /// The rows of the result that are copies of source row `row`; none if there is no such row.
    pub fn copies(&self, row: usize) -> &[u32] {
        match self.starts.get(row..).and_then(|starts| starts.first_chunk()) {
            Some(&[first, end]) => &self.to[first as usize..end as usize],
            None => &[],
        }
    }

    /// Bytes of memory that the map holds.
    pub fn bytes(&self) -> usize {
        size_of_val(self.starts.as_slice()) + size_of_val(self.to.as_slice())
    }

    /// Copies the source rows `first..`, as many as `rows` `[n, row_len]` holds, to their places in `out` `[result rows, row_len]`, and
    /// leaves the other rows of `out` alone. Each source row is read once. A large result is written past the caches.
    ///
    /// # Errors
    /// When a length does not fit, or there are fewer than `first + n` source rows.
    pub fn scatter<T: Pod + Send + Sync>(&self, first: usize, rows: &[T], row_len: usize, out: &mut [T]) -> Result<()> {
        check_len("result rows", out.len(), self.result_rows, row_len)?;
        let bytes = row_len * size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }
        let count = rows.len() / row_len;
        check_len("source rows", rows.len(), count, row_len)?;
        let end = first.checked_add(count).filter(|&end| end <= self.rows());
        let Some(end) = end else {
            return Err(shape("source rows", format!("rows {first} to {} at most", self.rows()), format!("{count} rows")));
        };
        let copier = Copier::new(Isa::detect(), size_of_val(out));
        let result = Shared(out.as_mut_ptr().cast::<u8>());
        // Rows with about the same number of copies on each thread.
        let copies = (self.starts[end] - self.starts[first]) as usize;
        let per_item = (BYTES_PER_ITEM * count.max(1) / (bytes * copies.max(1))).max(1);
        par::for_each(count.div_ceil(per_item), |item| {
            let result = &result;
            let (mut places, mut next): (Vec<*mut u8>, Vec<*mut u8>) = (Vec::with_capacity(16), Vec::with_capacity(16));
            let find = |at: usize, places: &mut Vec<*mut u8>| {
                places.clear();
                // SAFETY: each row of the result begins `bytes` after the one before, and `to` holds rows of the result only.
                places.extend(self.copies(first + at).iter().map(|&row| unsafe { result.0.add(row as usize * bytes) }));
                copier.prepare(places, bytes);
            };
            let part = item * per_item..((item + 1) * per_item).min(count);
            find(part.start, &mut places);
            for at in part.clone() {
                if at + 1 < part.end {
                    find(at + 1, &mut next);
                }
                // SAFETY: a row of the result is in `to` once, so this thread alone writes it; `out` is borrowed for as long as the loop
                // runs; the source row is inside `rows`, and T has no padding and accepts any bytes.
                unsafe { copier.copy(rows.as_ptr().add(at * row_len).cast(), &places, bytes) };
                std::mem::swap(&mut places, &mut next);
            }
            copier.finish();
        });
        Ok(())
    }
}

/// Row `list[i]` of `rows` `[n, row_len]` to row i of `out` `[list, row_len]`: what a message to another rank is packed from.
///
/// # Errors
/// When a length does not fit or `list` names a row that does not exist.
pub fn gather_rows<T: Pod + Send + Sync>(list: &[u32], rows: &[T], row_len: usize, out: &mut [T]) -> Result<()> {
    check_len("gathered rows", out.len(), list.len(), row_len)?;
    let bytes = row_len * size_of::<T>();
    if bytes == 0 {
        return Ok(());
    }
    let count = rows.len() / row_len;
    check_len("source rows", rows.len(), count, row_len)?;
    if let Some(row) = list.iter().find(|&&row| row as usize >= count) {
        return Err(shape("gathered rows", format!("rows below {count}"), row));
    }
    // Another core reads it, and the lines that this core still owned would have to be fetched from it one by one.
    let large = size_of_val(out) >= LARGE_MESSAGE;
    let copier = Copier::new(Isa::detect(), if large { usize::MAX } else { 0 });
    let per_item = (BYTES_PER_ITEM / bytes).max(1);
    par::for_each_chunk_mut(out, per_item * row_len, |item, out| {
        for (to, &row) in out.chunks_exact_mut(row_len).zip(&list[item * per_item..]) {
            let from = &rows[row as usize * row_len..][..row_len];
            copier.prepare(&[to.as_mut_ptr().wrapping_add(row_len).cast()], bytes);
            // SAFETY: both rows are `bytes` long, and `out` is borrowed alone.
            unsafe { copier.copy(from.as_ptr().cast(), &[to.as_mut_ptr().cast()], bytes) };
        }
        copier.finish();
    });
    Ok(())
}

/// The beginning of a result that several threads write different rows of.
struct Shared(*mut u8);

// SAFETY: the pointer is only copied; who writes through it says why that is sound.
unsafe impl Sync for Shared {}

/// Expert-major order of one rank's own choices `[T, k]`, masked ones left out: expert by expert, inside an expert by token. Gives the map of the rows and where each
/// expert's rows begin, `[experts + 1]`.
///
/// # Errors
/// When there are not `tokens * top_k` choices, or one of them is no expert.
pub(crate) fn expert_major(indices: &[u32], tokens: usize, top_k: usize, num_experts: usize) -> Result<(RowMap, Vec<u32>)> {
    check_len("routing.indices", indices.len(), tokens, top_k)?;
    if u32::try_from(indices.len()).is_err() {
        return Err(Error::Unsupported { what: format!("{} expert rows on one rank", indices.len()) });
    }
    let mut offsets = vec![0u32; num_experts + 1];
    for &expert in indices.iter().filter(|&&expert| expert != MASKED) {
        match offsets.get_mut(expert as usize + 1) {
            Some(count) => *count += 1,
            None => return Err(shape("expert index", format!("below {num_experts}"), expert)),
        }
    }
    for expert in 0..num_experts {
        offsets[expert + 1] += offsets[expert];
    }
    let mut next = offsets.clone();
    let (mut starts, mut to) = (vec![0], Vec::with_capacity(indices.len()));
    for token in 0..tokens {
        for &expert in indices[token * top_k..(token + 1) * top_k].iter().filter(|&&expert| expert != MASKED) {
            let next = &mut next[expert as usize];
            to.push(*next);
            *next += 1;
        }
        starts.push(to.len() as u32);
    }
    let result_rows = to.len();
    Ok((RowMap { starts, to, result_rows }, offsets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gather_list_as_maps_of_its_sources() -> Result<()> {
        let gather = [(1, 2), (0, 0), (u32::MAX, 0), (1, 0), (1, 2), (0, 1)];
        let of_1 = RowMap::of_source(&gather, 1, 3)?;
        assert_eq!((of_1.rows(), of_1.result_rows()), (3, 6));
        assert_eq!([of_1.copies(0), of_1.copies(1), of_1.copies(2), of_1.copies(3)], [&[3][..], &[], &[0, 4], &[]]);
        assert!(RowMap::of_source(&gather, 1, 2).is_err());
        let of_0 = RowMap::of_source(&gather, 0, 2)?;
        assert_eq!(of_0, RowMap::new(vec![0, 1, 2], vec![1, 5], 6)?);
        let mut out = [0u16; 12];
        of_1.scatter(0, &[1, 2, 3, 4, 5, 6], 2, &mut out)?;
        of_0.scatter(0, &[7, 8, 9, 10], 2, &mut out)?;
        assert_eq!(out, [5, 6, 7, 8, 0, 0, 1, 2, 5, 6, 9, 10]);
        Ok(())
    }

    #[test]
    fn gathered_rows() -> Result<()> {
        let rows: Vec<u64> = (0..40).collect();
        let mut out = [0; 12];
        gather_rows(&[9, 0, 3], &rows, 4, &mut out)?;
        assert_eq!(out, [36, 37, 38, 39, 0, 1, 2, 3, 12, 13, 14, 15]);
        assert!(gather_rows(&[10, 0, 3], &rows, 4, &mut out).is_err());
        assert!(gather_rows(&[9, 0], &rows, 4, &mut out).is_err());
        assert!(gather_rows(&[9, 0, 3], &rows[1..], 4, &mut out).is_err());
        gather_rows::<u64>(&[], &rows, 4, &mut [])
    }
}
