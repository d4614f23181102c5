//! Rows of a table, and the sum of their gradients.

use super::{add_assign, rows_per_task};
use crate::error::{Error, Result, check_len, rows_of};
use crate::par;
use crate::view::MatMut;

/// `out[i] = table[ids[i]]`: `table` `[vocabulary, d]`, `out` `[ids, d]`. An id out of range is an error.
pub fn embedding_gather(ids: &[u32], table: &[f32], d: usize, out: &mut [f32]) -> Result<()> {
    let vocabulary = rows_of("embedding table", table.len(), d)?;
    check_len("output of the embedding", ids.len() * d, out.len())?;
    if d == 0 {
        return Ok(());
    }
    check_ids(ids, vocabulary)?;
    let band = rows_per_task(d);
    par::for_each_chunk_mut(out, band * d, |chunk, out| {
        for (id, out) in ids[chunk * band..].iter().zip(out.chunks_exact_mut(d)) {
            out.copy_from_slice(&table[*id as usize * d..(*id as usize + 1) * d]);
        }
    });
    Ok(())
}

/// `dtable[ids[i]] += dy[i]`, one after the other for `i` ascending: `dtable` `[vocabulary, d]`, `dy` `[ids, d]`.
pub fn embedding_scatter_add(ids: &[u32], dy: &[f32], d: usize, dtable: &mut [f32]) -> Result<()> {
    /// The columns that a task takes, of every row.
    const COLUMNS: usize = 64;
    let vocabulary = rows_of("embedding table gradient", dtable.len(), d)?;
    check_len("output gradient of the embedding", ids.len() * d, dy.len())?;
    if d == 0 {
        return Ok(());
    }
    check_ids(ids, vocabulary)?;
    if dy.len() < super::GRAIN {
        for (id, dy) in ids.iter().zip(dy.chunks_exact(d)) {
            add_assign(&mut dtable[*id as usize * d..(*id as usize + 1) * d], dy)?;
        }
        return Ok(());
    }
    par::for_each_tile(MatMut::new(dtable, vocabulary, d)?, vocabulary, COLUMNS, |_, first, mut dtable| {
        for (id, dy) in ids.iter().zip(dy.chunks_exact(d)) {
            let row = dtable.row_mut(*id as usize);
            for (sum, dy) in row.iter_mut().zip(&dy[first..]) {
                *sum += dy;
            }
        }
    });
    Ok(())
}

fn check_ids(ids: &[u32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => Err(Error::Index { what: "token id", index: *id as usize, len: vocabulary }),
    }
}
