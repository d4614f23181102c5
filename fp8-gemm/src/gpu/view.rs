//! Matrices in device memory.

use crate::error::{Error, Result};
use bytemuck::Pod;
use v3_gpu::{Buffer, DevicePtr, Stream};

/// A row-major matrix in a buffer.
#[derive(Debug)]
pub struct View<'a, T: Pod> {
    buffer: &'a Buffer<T>,
    place: Place,
}

impl<T: Pod> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Pod> Copy for View<'_, T> {}

/// A row-major matrix in a buffer, to be written.
#[derive(Debug)]
pub struct ViewMut<'a, T: Pod> {
    buffer: &'a mut Buffer<T>,
    place: Place,
}

/// Where in a buffer: `rows` times `cols` elements from `first` on, a row `row_stride` after the one before.
#[derive(Debug, Clone, Copy)]
struct Place {
    first: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl Place {
    fn new(len: usize, first: usize, rows: usize, cols: usize, row_stride: usize) -> Result<Place> {
        let shape = |expected: &str| Error::Shape {
            what: "matrix in device memory",
            expected: expected.into(),
            got: format!("[{rows}, {cols}] with rows {row_stride} apart, from {first} of {len}"),
        };
        if row_stride < cols && rows > 1 {
            return Err(shape("rows that do not overlap"));
        }
        let end = match rows.checked_sub(1) {
            Some(before) if cols > 0 => {
                before.checked_mul(row_stride).and_then(|n| n.checked_add(cols)).and_then(|n| n.checked_add(first))
            }
            _ => Some(first),
        };
        match end {
            Some(end) if end <= len => Ok(Place { first, rows, cols, row_stride: row_stride.max(cols) }),
            _ => Err(shape("all elements inside of the buffer")),
        }
    }
}

impl<'a, T: Pod> View<'a, T> {
    /// All of a buffer.
    pub fn new(buffer: &'a Buffer<T>, rows: usize, cols: usize) -> Result<Self> {
        whole(buffer.len(), rows, cols)?;
        Self::with_stride(buffer, 0, rows, cols, cols)
    }

    /// `rows` times `cols` elements from number `first` on, a row `row_stride` elements after the one before.
    pub fn with_stride(buffer: &'a Buffer<T>, first: usize, rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        Ok(Self { buffer, place: Place::new(buffer.len(), first, rows, cols, row_stride)? })
    }

    pub(super) fn use_in(&self, stream: &Stream) -> Result<()> {
        Ok(self.buffer.use_in(stream)?)
    }
}

impl<'a, T: Pod> ViewMut<'a, T> {
    /// All of a buffer.
    pub fn new(buffer: &'a mut Buffer<T>, rows: usize, cols: usize) -> Result<Self> {
        whole(buffer.len(), rows, cols)?;
        Self::with_stride(buffer, 0, rows, cols, cols)
    }

    /// `rows` times `cols` elements from number `first` on, a row `row_stride` elements after the one before.
    pub fn with_stride(buffer: &'a mut Buffer<T>, first: usize, rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        let place = Place::new(buffer.len(), first, rows, cols, row_stride)?;
        Ok(Self { buffer, place })
    }

    pub(super) fn use_in(&self, stream: &Stream) -> Result<()> {
        Ok(self.buffer.use_in(stream)?)
    }
}

fn whole(len: usize, rows: usize, cols: usize) -> Result<()> {
    if rows.checked_mul(cols) == Some(len) {
        return Ok(());
    }
    Err(Error::Shape { what: "matrix in device memory", expected: format!("[{rows}, {cols}]"), got: format!("{len} elements") })
}

macro_rules! common {
    ($view:ident) => {
        impl<T: Pod> $view<'_, T> {
            /// The number of rows.
            pub fn rows(&self) -> usize {
                self.place.rows
            }
            /// The number of columns.
            pub fn cols(&self) -> usize {
                self.place.cols
            }
            /// Elements from one row to the next.
            pub fn row_stride(&self) -> usize {
                self.place.row_stride
            }
            /// The address of element (0, 0). Null for an empty buffer.
            pub fn ptr(&self) -> DevicePtr {
                self.buffer.ptr().offset((self.place.first * size_of::<T>()) as u64)
            }
        }
    };
}
common!(View);
common!(ViewMut);
