//! Borrowed matrices: a pointer, a shape and two strides.
//!
//! A view never owns and never copies. Element `(i, j)` lies `i * row_stride + j * col_stride` values after the first, so a
//! transpose is an exchange of strides and a column slice of a wider matrix is a view with a row stride larger than
//! its number of columns.

use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::ops::Range;

/// A shared view of a matrix of `T`, `[rows, cols]`.
pub struct MatRef<'a, T> {
    ptr: *const T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    lifetime: PhantomData<&'a [T]>,
}

/// An exclusive view of a matrix of `T`, `[rows, cols]`. Distinct elements never share memory.
pub struct MatMut<'a, T> {
    ptr: *mut T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: a MatRef is a shared borrow of its elements, as `&[T]` is.
unsafe impl<T: Sync> Send for MatRef<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for MatRef<'_, T> {}
// SAFETY: a MatMut is an exclusive borrow of its elements, as `&mut [T]` is.
unsafe impl<T: Send> Send for MatMut<'_, T> {}
// SAFETY: as above; a shared MatMut only reads.
unsafe impl<T: Sync> Sync for MatMut<'_, T> {}

impl<T> Clone for MatRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for MatRef<'_, T> {}

impl<T> std::fmt::Debug for MatRef<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MatRef [{}, {}] strides ({}, {})", self.rows, self.cols, self.row_stride, self.col_stride)
    }
}
impl<T> std::fmt::Debug for MatMut<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MatMut [{}, {}] strides ({}, {})", self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

/// The number of values that a row-major matrix spans, or an error when the rows overlap or the buffer is too short.
fn check_span(what: &'static str, len: usize, rows: usize, cols: usize, row_stride: usize) -> Result<()> {
    if row_stride < cols && rows > 1 {
        return Err(Error::Shape { what, expected: format!("a row stride of at least {cols}"), got: row_stride.to_string() });
    }
    let span =
        if rows == 0 || cols == 0 { Some(0) } else { (rows - 1).checked_mul(row_stride).and_then(|s| s.checked_add(cols)) };
    match span {
        Some(span) if span <= len => Ok(()),
        _ => Err(Error::Shape {
            what,
            expected: format!("room for [{rows}, {cols}] with row stride {row_stride}"),
            got: format!("{len} values"),
        }),
    }
}

fn check_exact(what: &'static str, len: usize, rows: usize, cols: usize) -> Result<()> {
    if rows.checked_mul(cols) == Some(len) {
        Ok(())
    } else {
        Err(Error::Shape { what, expected: format!("[{rows}, {cols}]"), got: format!("{len} values") })
    }
}

fn check_range(what: &'static str, range: &Range<usize>, len: usize) -> Result<()> {
    if range.start <= range.end && range.end <= len {
        Ok(())
    } else {
        Err(Error::Shape { what, expected: format!("a range within 0..{len}"), got: format!("{range:?}") })
    }
}

impl<'a, T> MatRef<'a, T> {
    /// A row-major matrix that fills `data` exactly.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        check_exact("matrix", data.len(), rows, cols)?;
        Ok(Self { ptr: data.as_ptr(), rows, cols, row_stride: cols, col_stride: 1, lifetime: PhantomData })
    }

    /// A row-major matrix whose rows begin `row_stride` values apart. `data` may be longer than the matrix.
    pub fn with_stride(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check_span("matrix", data.len(), rows, cols, row_stride)?;
        Ok(Self { ptr: data.as_ptr(), rows, cols, row_stride, col_stride: 1, lifetime: PhantomData })
    }

    /// The transpose, `[cols, rows]`, of the same memory.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// The distance in values from a row to the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }
    /// The distance in values from a column to the next.
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }
    /// The first element. Dangling, but aligned, when the matrix has none.
    pub fn as_ptr(&self) -> *const T {
        self.ptr
    }
    /// Whether the values of a row lie side by side, so that [`MatRef::row`] works.
    pub fn has_contiguous_rows(&self) -> bool {
        self.col_stride == 1 || self.cols <= 1
    }

    /// Element `(i, j)`.
    ///
    /// # Panics
    /// When it lies outside the matrix, as indexing a slice does.
    pub fn at(&self, i: usize, j: usize) -> &'a T {
        assert!(i < self.rows && j < self.cols, "({i}, {j}) is outside of [{}, {}]", self.rows, self.cols);
        // SAFETY: the constructors checked that every element of the shape lies within the borrowed slice.
        unsafe { &*self.ptr.add(i * self.row_stride + j * self.col_stride) }
    }

    /// Row `i` as a slice.
    ///
    /// # Panics
    /// When there is no such row, as indexing a slice does, or when the view is a transpose, whose rows are not slices.
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        assert!(self.has_contiguous_rows(), "the rows of a transposed view are not contiguous");
        if self.cols == 0 {
            return &[];
        }
        // SAFETY: the constructors checked that the row lies within the borrowed slice, and its values are contiguous.
        unsafe { std::slice::from_raw_parts(self.ptr.add(i * self.row_stride), self.cols) }
    }

    /// The rows of `range`.
    pub fn row_range(self, range: Range<usize>) -> Result<Self> {
        check_range("row range", &range, self.rows)?;
        let ptr = self.ptr.wrapping_add(range.start * self.row_stride);
        Ok(Self { ptr, rows: range.len(), ..self })
    }

    /// The columns of `range`.
    pub fn col_range(self, range: Range<usize>) -> Result<Self> {
        check_range("column range", &range, self.cols)?;
        let ptr = self.ptr.wrapping_add(range.start * self.col_stride);
        Ok(Self { ptr, cols: range.len(), ..self })
    }

    /// The elements, copied in row-major order.
    pub fn to_vec(&self) -> Vec<T>
    where
        T: Copy,
    {
        (0..self.rows).flat_map(|i| (0..self.cols).map(move |j| *self.at(i, j))).collect()
    }
}

impl<'a, T> MatMut<'a, T> {
    /// A row-major matrix that fills `data` exactly.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        check_exact("matrix", data.len(), rows, cols)?;
        Ok(Self { ptr: data.as_mut_ptr(), rows, cols, row_stride: cols, col_stride: 1, lifetime: PhantomData })
    }

    /// A row-major matrix whose rows begin `row_stride` values apart; at least `cols`, so that rows do not overlap. `data`
    /// may be longer than the matrix; what lies between the rows is never touched.
    pub fn with_stride(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check_span("matrix", data.len(), rows, cols, row_stride)?;
        Ok(Self { ptr: data.as_mut_ptr(), rows, cols, row_stride, col_stride: 1, lifetime: PhantomData })
    }

    /// The transpose, `[cols, rows]`, of the same memory.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The same view, for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { lifetime: PhantomData, ..*self }
    }

    /// The same view, shared.
    pub fn as_ref(&self) -> MatRef<'_, T> {
        MatRef {
            ptr: self.ptr,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
            lifetime: PhantomData,
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// The distance in values from a row to the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }
    /// The distance in values from a column to the next.
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }
    /// The first element. Dangling, but aligned, when the matrix has none.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.ptr
    }
    /// Whether the values of a row lie side by side, so that [`MatMut::row_mut`] works.
    pub fn has_contiguous_rows(&self) -> bool {
        self.col_stride == 1 || self.cols <= 1
    }

    /// Element `(i, j)`.
    ///
    /// # Panics
    /// When it lies outside the matrix, as indexing a slice does.
    pub fn at_mut(&mut self, i: usize, j: usize) -> &mut T {
        assert!(i < self.rows && j < self.cols, "({i}, {j}) is outside of [{}, {}]", self.rows, self.cols);
        // SAFETY: the constructors checked that every element of the shape lies within the borrowed slice.
        unsafe { &mut *self.ptr.add(i * self.row_stride + j * self.col_stride) }
    }

    /// Row `i` as a slice.
    ///
    /// # Panics
    /// When there is no such row, as indexing a slice does, or when the view is a transpose, whose rows are not slices.
    pub fn row(&self, i: usize) -> &[T] {
        self.as_ref().row(i)
    }

    /// Row `i` as a slice.
    ///
    /// # Panics
    /// As [`MatMut::row`].
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        assert!(self.has_contiguous_rows(), "the rows of a transposed view are not contiguous");
        if self.cols == 0 {
            return &mut [];
        }
        // SAFETY: the constructors checked that the row lies within the borrowed slice, and its values are contiguous.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.row_stride), self.cols) }
    }

    /// The rows of `range`.
    pub fn row_range(self, range: Range<usize>) -> Result<Self> {
        check_range("row range", &range, self.rows)?;
        let ptr = self.ptr.wrapping_add(range.start * self.row_stride);
        Ok(Self { ptr, rows: range.len(), ..self })
    }

    /// The columns of `range`.
    pub fn col_range(self, range: Range<usize>) -> Result<Self> {
        check_range("column range", &range, self.cols)?;
        let ptr = self.ptr.wrapping_add(range.start * self.col_stride);
        Ok(Self { ptr, cols: range.len(), ..self })
    }

    /// The rows before `row`, and the others.
    pub fn split_at_row(self, row: usize) -> Result<(Self, Self)> {
        check_range("row", &(row..self.rows), self.rows)?;
        let tail = self.ptr.wrapping_add(row * self.row_stride);
        Ok((Self { rows: row, ..self }, Self { ptr: tail, rows: self.rows - row, ..self }))
    }

    /// The columns before `col`, and the others.
    pub fn split_at_col(self, col: usize) -> Result<(Self, Self)> {
        check_range("column", &(col..self.cols), self.cols)?;
        let tail = self.ptr.wrapping_add(col * self.col_stride);
        Ok((Self { cols: col, ..self }, Self { ptr: tail, cols: self.cols - col, ..self }))
    }

    /// Sets every element.
    pub fn fill(&mut self, value: T)
    where
        T: Copy,
    {
        for i in 0..self.rows {
            for j in 0..self.cols {
                *self.at_mut(i, j) = value;
            }
        }
    }

    /// A handle from which several threads take disjoint tiles.
    pub(crate) fn as_shared(&mut self) -> SharedMat<'_, T> {
        SharedMat(self.reborrow())
    }
}

/// A matrix that is being cut into disjoint tiles by several threads.
pub(crate) struct SharedMat<'a, T>(MatMut<'a, T>);

// SAFETY: nothing is reachable through a shared reference but `tile`, whose contract keeps tiles disjoint.
unsafe impl<T: Send> Sync for SharedMat<'_, T> {}

impl<T> SharedMat<'_, T> {
    /// The tile of `rows` x `cols` at `(row, col)`.
    ///
    /// # Safety
    /// It must lie inside the matrix, and no two tiles that are alive may overlap.
    pub(crate) unsafe fn tile(&self, row: usize, rows: usize, col: usize, cols: usize) -> MatMut<'_, T> {
        debug_assert!(row + rows <= self.0.rows && col + cols <= self.0.cols);
        let offset = row * self.0.row_stride + col * self.0.col_stride;
        MatMut {
            ptr: self.0.ptr.wrapping_add(offset),
            rows,
            cols,
            row_stride: self.0.row_stride,
            col_stride: self.0.col_stride,
            lifetime: PhantomData,
        }
    }
}
