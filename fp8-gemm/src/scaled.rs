//! E4M3 matrices with block scales: the owner, its views, and the rules that make scales.

use crate::error::{Error, Result, check_len, check_shape};
use v3_numerics::E4M3;
use v3_numerics::view::MatRef;

/// The number of values along each scaled direction that share a scale, and the length of a partial sum before promotion.
pub const BLOCK: usize = 128;

/// The largest E4M3 value.
pub const E4M3_MAX: f32 = 448.0;

/// Which elements of a matrix share a scale. Blocks begin at row 0 and column 0; those at the edges may be smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Block {
    /// 128 consecutive values of a row (1x128): activations and gradients, summed along their rows.
    Row128,
    /// 128 consecutive values of a column (128x1): activations and gradients, summed along their columns.
    Col128,
    /// 128 rows by 128 columns: weights.
    Square128,
}

impl Block {
    /// The shape of the matrix of scales of a `[rows, cols]` matrix.
    pub const fn scale_shape(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Block::Row128 => (rows, cols.div_ceil(BLOCK)),
            Block::Col128 => (rows.div_ceil(BLOCK), cols),
            Block::Square128 => (rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)),
        }
    }

    /// Where the scale of element `(i, j)` is in that matrix.
    pub const fn scale_index(self, i: usize, j: usize) -> (usize, usize) {
        match self {
            Block::Row128 => (i, j / BLOCK),
            Block::Col128 => (i / BLOCK, j),
            Block::Square128 => (i / BLOCK, j / BLOCK),
        }
    }

    /// The blocks of the transposed matrix.
    pub const fn transposed(self) -> Block {
        match self {
            Block::Row128 => Block::Col128,
            Block::Col128 => Block::Row128,
            Block::Square128 => Block::Square128,
        }
    }
}

/// How a block's scale follows from its largest magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ScalePolicy {
    /// `s = max(amax, 1e-4) / 448`; values are multiplied by `r = 1 / s` rounded to f32.
    #[default]
    F32,
    /// `s = 2^ceil(log2(max(amax, 1e-4) / 448))`, exact in UE8M0; multiplying by `r = 1 / s` is exact.
    PowerOfTwo,
    /// `r = 448 / amax` (1 when `amax` is 0, limited to the largest f32), `s = 1 / r`: no floor, as TransformerEngine does.
    TransformerEngine,
}

/// A block's scale and the factor its values are multiplied by before rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// What a code is multiplied by to give the value.
    pub scale: f32,
    /// What a value is multiplied by to give the code.
    pub reciprocal: f32,
}

impl ScalePolicy {
    /// The scale of a block whose largest magnitude is `amax`: not NaN and finite (see [`crate::quantize`] on non-finite values).
    #[inline]
    pub fn scale(self, amax: f32) -> Scale {
        match self {
            ScalePolicy::F32 => {
                let scale = amax.max(1e-4) / E4M3_MAX;
                Scale { scale, reciprocal: 1.0 / scale }
            }
            ScalePolicy::PowerOfTwo => {
                // The exponent, one more unless the mantissa is zero. amax >= 1e-4 keeps it far from the ends of the range.
                let bits = (amax.max(1e-4) / E4M3_MAX).to_bits();
                let exponent = (bits >> 23) + u32::from(bits & 0x7f_ffff != 0);
                Scale { scale: f32::from_bits(exponent << 23), reciprocal: f32::from_bits((254 - exponent) << 23) }
            }
            ScalePolicy::TransformerEngine => {
                let reciprocal = if amax == 0.0 { 1.0 } else { (E4M3_MAX / amax).min(f32::MAX) };
                Scale { scale: 1.0 / reciprocal, reciprocal }
            }
        }
    }
}

/// A matrix `[rows, cols]` of E4M3 codes with a scale for each block: element `(i, j)` is worth `code * scale`.
#[derive(Clone, PartialEq)]
pub struct BlockScaled {
    data: Vec<E4M3>,
    scales: Vec<f32>,
    rows: usize,
    cols: usize,
    block: Block,
}

impl std::fmt::Debug for BlockScaled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockScaled [{}, {}] {:?}", self.rows, self.cols, self.block)
    }
}

impl BlockScaled {
    /// From codes `[rows, cols]` and scales [`Block::scale_shape`], both row-major. Scales must be finite and not negative.
    pub fn new(data: Vec<E4M3>, scales: Vec<f32>, rows: usize, cols: usize, block: Block) -> Result<Self> {
        let (sr, sc) = block.scale_shape(rows, cols);
        check_len("codes", rows.checked_mul(cols), data.len())?;
        check_len("scales", sr.checked_mul(sc), scales.len())?;
        if let Some(index) = scales.iter().position(|s| !(s.is_finite() && *s >= 0.0)) {
            return Err(Error::Unsupported {
                what: "scales",
                expected: "finite values that are not negative",
                got: format!("{} at {index}", scales[index]),
            });
        }
        Ok(Self { data, scales, rows, cols, block })
    }

    /// From codes and scales in UE8M0, each byte `e` standing for `2^(e - 127)`. `255` (NaN) is refused, and so is `0`, whose
    /// value f32 holds only as a subnormal.
    pub fn from_ue8m0(data: Vec<E4M3>, scales: &[u8], rows: usize, cols: usize, block: Block) -> Result<Self> {
        if let Some(index) = scales.iter().position(|e| matches!(e, 0 | 255)) {
            return Err(Error::Scale { index, value: format!("code {}", scales[index]) });
        }
        let scales = scales.iter().map(|&e| f32::from_bits(u32::from(e) << 23)).collect();
        Self::new(data, scales, rows, cols, block)
    }

    /// What the quantisers make; lengths are right by construction, and a scale may be anything a policy gives.
    pub(crate) fn from_quantizer(data: Vec<E4M3>, scales: Vec<f32>, rows: usize, cols: usize, block: Block) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        debug_assert_eq!(scales.len(), block.scale_shape(rows, cols).0 * block.scale_shape(rows, cols).1);
        Self { data, scales, rows, cols, block }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Which elements share a scale.
    pub fn block(&self) -> Block {
        self.block
    }
    /// The codes, row-major.
    pub fn data(&self) -> &[E4M3] {
        &self.data
    }
    /// The scales, row-major, [`Block::scale_shape`].
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }
    /// The codes and the scales.
    pub fn into_parts(self) -> (Vec<E4M3>, Vec<f32>) {
        (self.data, self.scales)
    }
    /// The bytes it occupies: one a code, four a scale.
    pub fn bytes(&self) -> usize {
        self.data.len() + 4 * self.scales.len()
    }

    /// The scales as UE8M0 bytes. Fails with [`Error::Scale`] on one that is not a power of two from 2^-126 to 2^127.
    pub fn scales_ue8m0(&self) -> Result<Vec<u8>> {
        let encode = |(index, s): (usize, &f32)| {
            let bits = s.to_bits();
            let exponent = bits >> 23;
            if bits & 0x7f_ffff == 0 && (1..=254).contains(&exponent) {
                Ok(exponent as u8)
            } else {
                Err(Error::Scale { index, value: s.to_string() })
            }
        };
        self.scales.iter().enumerate().map(encode).collect()
    }

    /// A view of the whole.
    pub fn view(&self) -> BlockScaledRef<'_> {
        let (sr, sc) = self.block.scale_shape(self.rows, self.cols);
        // Lengths were checked by every constructor.
        let data = MatRef::new(&self.data, self.rows, self.cols).expect("codes fill the matrix");
        let scales = MatRef::new(&self.scales, sr, sc).expect("scales fill their matrix");
        BlockScaledRef { data, scales, block: self.block }
    }

    /// The values `code * scale`, rounded to f32, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.data.len()];
        crate::quantize::dequantize_into(self, &mut out).expect("the output was made to fit");
        out
    }
}

/// A view of a block-scaled matrix, possibly transposed or a band of rows.
#[derive(Debug, Clone, Copy)]
pub struct BlockScaledRef<'a> {
    data: MatRef<'a, E4M3>,
    scales: MatRef<'a, f32>,
    block: Block,
}

impl<'a> BlockScaledRef<'a> {
    /// From a view of codes and a view of scales, whose shape must be [`Block::scale_shape`].
    pub fn new(data: MatRef<'a, E4M3>, scales: MatRef<'a, f32>, block: Block) -> Result<Self> {
        check_shape("scales", block.scale_shape(data.rows(), data.cols()), (scales.rows(), scales.cols()))?;
        Ok(Self { data, scales, block })
    }

    /// The transpose: codes and scales exchange their strides, 1x128 becomes 128x1.
    pub fn t(self) -> Self {
        Self { data: self.data.t(), scales: self.scales.t(), block: self.block.transposed() }
    }

    /// The rows of `range`. Unless blocks are 1x128 it must begin at a multiple of 128 and end at one or at the last row.
    pub fn row_range(self, range: std::ops::Range<usize>) -> Result<Self> {
        let data = self.data.row_range(range.clone())?;
        let scales = if self.block == Block::Row128 {
            self.scales.row_range(range)?
        } else {
            if !range.start.is_multiple_of(BLOCK) || !(range.end.is_multiple_of(BLOCK) || range.end == self.data.rows()) {
                return Err(Error::Shape {
                    what: "row range",
                    expected: "bounds at multiples of 128, as rows share scales".into(),
                    got: format!("{range:?}"),
                });
            }
            self.scales.row_range(range.start / BLOCK..range.end.div_ceil(BLOCK))?
        };
        Ok(Self { data, scales, ..self })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.data.rows()
    }
    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.data.cols()
    }
    /// Which elements share a scale.
    pub fn block(&self) -> Block {
        self.block
    }
    /// The codes.
    pub fn data(&self) -> MatRef<'a, E4M3> {
        self.data
    }
    /// The scales.
    pub fn scales(&self) -> MatRef<'a, f32> {
        self.scales
    }
    /// The scale of element `(i, j)`.
    ///
    /// # Panics
    /// When it lies outside the matrix, as indexing a slice does.
    pub fn scale_at(&self, i: usize, j: usize) -> f32 {
        let (i, j) = self.block.scale_index(i, j);
        *self.scales.at(i, j)
    }
}
