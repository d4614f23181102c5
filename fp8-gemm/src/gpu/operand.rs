//! E4M3 matrices with their scales in device memory.

use super::View;
use crate::error::{Error, Result, check_shape};
use crate::{BLOCK, Block, BlockScaled};
use v3_gpu::{Buffer, Stream};
use v3_numerics::E4M3;

/// Rows of E4M3 begin at multiples of this many elements, and rows of f32 scales at multiples of 4: TMA takes multiples of 16 bytes.
const CODES_ALIGNMENT: usize = 16;
const SCALES_ALIGNMENT: usize = 4;

/// An activation or gradient: E4M3 `[rows, cols]` with a scale for each 128 values of a row (1x128).
///
/// The codes' rows are a multiple of 16 elements apart. Scales are stored `[ceil(cols / 128), rows]` ("MN-major"), rows of them a multiple of
/// 4 elements apart. What lies between is never read.
#[derive(Debug)]
pub struct Activation {
    pub(super) codes: Buffer<E4M3>,
    pub(super) scales: Buffer<f32>,
    rows: usize,
    cols: usize,
}

fn padded(n: usize, to: usize) -> Result<usize> {
    n.checked_next_multiple_of(to).ok_or_else(|| too_large(n))
}

fn too_large(n: usize) -> Error {
    Error::Shape { what: "matrix", expected: "a shape that fits in memory".into(), got: n.to_string() }
}

fn area(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols).ok_or_else(|| too_large(rows.max(cols)))
}

impl Activation {
    /// Memory for one, with whatever is in it.
    pub fn new(stream: &Stream, rows: usize, cols: usize) -> Result<Self> {
        let codes = stream.alloc(area(rows, padded(cols, CODES_ALIGNMENT)?)?)?;
        let scales = stream.alloc(area(cols.div_ceil(BLOCK), padded(rows, SCALES_ALIGNMENT)?)?)?;
        Ok(Self { codes, scales, rows, cols })
    }

    /// A copy of one in host memory, which must be 1x128.
    pub fn upload(stream: &Stream, x: &BlockScaled) -> Result<Self> {
        if x.block() != Block::Row128 {
            return Err(Error::Unsupported {
                what: "scales of an activation",
                expected: "1x128",
                got: format!("{:?}", x.block()),
            });
        }
        let mut this = Self::new(stream, x.rows(), x.cols())?;
        let (codes_stride, scales_stride) = (this.codes_stride(), this.scales_stride());
        let mut codes = vec![E4M3(0); this.codes.len()];
        let mut scales = vec![0.0; this.scales.len()];
        let blocks = x.cols().div_ceil(BLOCK);
        if !codes.is_empty() {
            for (to, from) in codes.chunks_mut(codes_stride).zip(x.data().chunks(x.cols())) {
                to[..from.len()].copy_from_slice(from);
            }
            for (b, to) in scales.chunks_mut(scales_stride).enumerate() {
                for (to, from) in to.iter_mut().zip(x.scales().iter().skip(b).step_by(blocks)) {
                    *to = *from;
                }
            }
        }
        stream.write(&mut this.codes, &codes)?;
        stream.write(&mut this.scales, &scales)?;
        Ok(this)
    }

    /// A copy in host memory. Waits for what `stream` was given so far.
    pub fn download(&self, stream: &Stream) -> Result<BlockScaled> {
        let (codes, scales) = (stream.download(&self.codes)?, stream.download(&self.scales)?);
        let blocks = self.cols.div_ceil(BLOCK);
        let mut data = Vec::with_capacity(area(self.rows, self.cols)?);
        for row in codes.chunks(self.codes_stride().max(1)) {
            data.extend(row.iter().take(self.cols));
        }
        let stride = self.scales_stride();
        let scales = (0..self.rows).flat_map(|i| (0..blocks).map(move |b| (i, b))).map(|(i, b)| scales[b * stride + i]).collect();
        Ok(BlockScaled::from_quantizer(data, scales, self.rows, self.cols, Block::Row128))
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.scales.bytes()
    }

    /// Elements from one row of the codes to the next.
    pub fn codes_stride(&self) -> usize {
        self.cols.next_multiple_of(CODES_ALIGNMENT)
    }

    /// Elements from one row of the scales to the next.
    pub fn scales_stride(&self) -> usize {
        self.rows.next_multiple_of(SCALES_ALIGNMENT)
    }

    /// As an operand of a product.
    pub fn view(&self) -> Rows128<'_> {
        let blocks = self.cols.div_ceil(BLOCK);
        let codes = View::with_stride(&self.codes, 0, self.rows, self.cols, self.codes_stride());
        let scales = View::with_stride(&self.scales, 0, blocks, self.rows, self.scales_stride());
        // Both buffers were made for these shapes.
        Rows128 { codes: codes.expect("codes fill their buffer"), scales: scales.expect("scales fill their buffer") }
    }
}

/// A weight: E4M3 `[rows, cols]` (out features by in features) with a scale for each 128 by 128 values.
///
/// The codes' rows are a multiple of 16 elements apart; scales are row-major `[ceil(rows / 128), ceil(cols / 128)]`.
#[derive(Debug)]
pub struct Weight {
    codes: Buffer<E4M3>,
    scales: Buffer<f32>,
    rows: usize,
    cols: usize,
}

impl Weight {
    /// A copy of one in host memory, which must be 128x128.
    pub fn upload(stream: &Stream, w: &BlockScaled) -> Result<Self> {
        if w.block() != Block::Square128 {
            return Err(Error::Unsupported { what: "scales of a weight", expected: "128x128", got: format!("{:?}", w.block()) });
        }
        let stride = padded(w.cols(), CODES_ALIGNMENT)?;
        let mut codes = vec![E4M3(0); area(w.rows(), stride)?];
        if !codes.is_empty() {
            for (to, from) in codes.chunks_mut(stride).zip(w.data().chunks(w.cols())) {
                to[..from.len()].copy_from_slice(from);
            }
        }
        let (codes, scales) = (stream.upload(&codes)?, stream.upload(w.scales())?);
        Ok(Self { codes, scales, rows: w.rows(), cols: w.cols() })
    }

    /// The number of rows: out features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns: in features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.scales.bytes()
    }

    /// As an operand of a product.
    pub fn view(&self) -> Square128<'_> {
        let stride = self.cols.next_multiple_of(CODES_ALIGNMENT);
        let (scale_rows, scale_cols) = Block::Square128.scale_shape(self.rows, self.cols);
        let codes = View::with_stride(&self.codes, 0, self.rows, self.cols, stride);
        let scales = View::new(&self.scales, scale_rows, scale_cols);
        // Both buffers were made for these shapes.
        Square128 { codes: codes.expect("codes fill their buffer"), scales: scales.expect("scales fill their buffer") }
    }
}

/// Codes `[rows, cols]` with scales for 1x128, as a product reads them.
#[derive(Debug, Clone, Copy)]
pub struct Rows128<'a> {
    pub(super) codes: View<'a, E4M3>,
    pub(super) scales: View<'a, f32>,
}

impl<'a> Rows128<'a> {
    /// From views. `scales` is `[ceil(cols / 128), rows]`. Both begin at multiples of 16 bytes; rows of the codes are a multiple of 16 elements
    /// apart, those of the scales a multiple of 4.
    pub fn new(codes: View<'a, E4M3>, scales: View<'a, f32>) -> Result<Self> {
        check_shape("scales of 1x128", (codes.cols().div_ceil(BLOCK), codes.rows()), (scales.rows(), scales.cols()))?;
        aligned("codes of 1x128", &codes, 16)?;
        aligned("scales of 1x128", &scales, 16)?;
        Ok(Self { codes, scales })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.codes.rows()
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.codes.cols()
    }
}

/// Codes `[rows, cols]` with scales for 128x128, as a product reads them.
#[derive(Debug, Clone, Copy)]
pub struct Square128<'a> {
    pub(super) codes: View<'a, E4M3>,
    pub(super) scales: View<'a, f32>,
}

impl<'a> Square128<'a> {
    /// From views. `scales` is `[ceil(rows / 128), ceil(cols / 128)]`. The codes begin at a multiple of 16 bytes, their rows are a multiple of 16
    /// elements apart.
    pub fn new(codes: View<'a, E4M3>, scales: View<'a, f32>) -> Result<Self> {
        let expected = Block::Square128.scale_shape(codes.rows(), codes.cols());
        check_shape("scales of 128x128", expected, (scales.rows(), scales.cols()))?;
        aligned("codes of 128x128", &codes, 16)?;
        Ok(Self { codes, scales })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.codes.rows()
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.codes.cols()
    }
}

/// What TMA asks of a matrix: its first element and its rows at multiples of this many bytes.
pub(super) fn aligned<T: bytemuck::Pod>(what: &'static str, view: &View<'_, T>, bytes: usize) -> Result<()> {
    check_aligned(what, view.ptr().0, view.rows(), view.row_stride() * size_of::<T>(), bytes)
}

pub(super) fn check_aligned(what: &'static str, address: u64, rows: usize, stride_bytes: usize, bytes: usize) -> Result<()> {
    let begins = address.is_multiple_of(bytes as u64);
    if begins && (rows <= 1 || stride_bytes.is_multiple_of(bytes)) {
        return Ok(());
    }
    let got = if begins { format!("rows {stride_bytes} bytes apart") } else { format!("address {address:#x}") };
    Err(Error::Shape { what, expected: format!("multiples of {bytes} bytes"), got })
}
