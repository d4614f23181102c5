//! Checks that the kernels' host code shares.

use super::Arch;
use crate::error::{Error, Result};
use v3_gpu::Device;

/// An `Error::Shape`.
pub fn wrong(what: &'static str, expected: impl ToString, got: impl ToString) -> Error {
    Error::Shape { what, expected: expected.to_string(), got: got.to_string() }
}

/// `Error::Shape` unless `len` is `rows * columns`.
pub fn check_len(what: &'static str, len: usize, rows: usize, columns: usize) -> Result<()> {
    if rows.checked_mul(columns) == Some(len) {
        return Ok(());
    }
    Err(wrong(what, format!("[{rows}, {columns}]"), format!("{len} elements")))
}

/// `Error::Shape` unless a width is a multiple of what the kernels move.
pub fn check_width(what: &'static str, width: usize, of: usize) -> Result<()> {
    if width.is_multiple_of(of) {
        return Ok(());
    }
    Err(wrong(what, format!("a multiple of {of}"), width))
}

/// A size that the kernels can count.
pub fn small(what: &'static str, size: usize) -> Result<u32> {
    u32::try_from(size).ok().filter(|&size| size <= i32::MAX as u32).ok_or_else(|| wrong(what, "less than 2^31", size))
}

/// Blocks of a grid; `None` without any.
pub fn blocks_of(what: &'static str, blocks: u64) -> Result<Option<u32>> {
    let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32);
    blocks.map(|blocks| (blocks > 0).then_some(blocks)).ok_or_else(|| wrong(what, "fewer than 2^31 blocks", "more"))
}

/// `Error::Unsupported` when the device does not run a text.
pub fn check_arch(device: &Device, arch: Arch) -> Result<()> {
    let info = device.info()?;
    if arch.runs_on(info.compute_capability) {
        return Ok(());
    }
    Err(Error::Unsupported { what: format!("kernels for {arch} on {}", info.name) })
}
