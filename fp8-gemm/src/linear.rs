//! The three products of a linear layer `y = x W^T` in a chosen precision.
//!
//! Weights are `[n, k]`: out by in features, as published. [`fprop`] gives `y = x W^T`, [`dgrad`] `dx = dy W`, [`wgrad`] `dw = dy^T x`, and each has
//! a form for experts, whose rows are sorted by group.
//!
//! | precision | `x` | `W` | `dy` in dgrad | `dy` and `x` in wgrad |
//! |---|---|---|---|---|
//! | f32 | f32 | f32 | f32 | f32 |
//! | bf16 | bf16 | bf16 | rounded to bf16 | rounded to bf16 |
//! | fp8 | 1x128, power-of-two scales | 128x128 | 1x128 | 128x1 along tokens, `x` re-tiled from what was kept |
//!
//! Activations have power-of-two scales because they are quantised twice, along features for the forward pass and along tokens for the
//! weight gradient: a change between powers of two only moves exponents. Weights and gradients have scales `amax / 448`.

use crate::error::{Error, Result, check_len, check_offsets, check_shape};
use crate::gemm::{gemm_grouped, gemm_k_grouped, gemm_packed, k_grouped_columns};
use crate::kept::E5m6Rows;
use crate::operand::Operand;
use crate::packed::Packed;
use crate::precision::Precision;
use crate::quantize::{quantize_1x128, quantize_128x128};
use crate::scaled::{BlockScaled, ScalePolicy};
use crate::source::{ColumnQuantized, ColumnValues};
use v3_numerics::view::{MatMut, MatRef};
use v3_numerics::{bf16, convert};

/// How activations are scaled: they are re-tiled for the weight gradient.
pub const ACTIVATION_SCALES: ScalePolicy = ScalePolicy::PowerOfTwo;
/// How weights are scaled.
pub const WEIGHT_SCALES: ScalePolicy = ScalePolicy::F32;
/// How gradients are scaled.
pub const GRADIENT_SCALES: ScalePolicy = ScalePolicy::F32;

/// The weight of a linear layer, `[n, k]`, packed for a precision.
#[derive(Debug, Clone)]
pub struct Weight {
    n: usize,
    k: usize,
    precision: Precision,
    forward: Packed,
    backward: Option<Packed>,
}

impl Weight {
    /// Packs `w` `[n, k]` for [`fprop`] and [`dgrad`].
    pub fn pack(w: &[f32], n: usize, k: usize, precision: Precision) -> Result<Weight> {
        Self::pack_mat(matrix("weight", w, n, k)?, precision, true)
    }

    /// Packs `w` `[n, k]` for [`fprop`] alone, in half the memory.
    pub fn pack_inference(w: &[f32], n: usize, k: usize, precision: Precision) -> Result<Weight> {
        Self::pack_mat(matrix("weight", w, n, k)?, precision, false)
    }

    /// Packs a view `[n, k]`, with or without what [`dgrad`] needs.
    pub fn pack_mat(w: MatRef<'_, f32>, precision: Precision, for_training: bool) -> Result<Weight> {
        match precision {
            Precision::F32 => Self::from_operand(Operand::F32(w), precision, for_training),
            Precision::Bf16 => Self::from_operand(Operand::RoundedToBf16(w), precision, for_training),
            Precision::Fp8 => Self::from_block_scaled(&quantize_128x128(w, WEIGHT_SCALES), for_training),
        }
    }

    /// Packs codes `[n, k]` with 128x128 scales as they are, such as those of an FP8 checkpoint.
    pub fn from_block_scaled(w: &BlockScaled, for_training: bool) -> Result<Weight> {
        if w.block() != crate::scaled::Block::Square128 {
            return Err(Error::Unsupported { what: "weight", expected: "128x128 blocks", got: format!("{:?}", w.block()) });
        }
        Self::from_operand(w.into(), Precision::Fp8, for_training)
    }

    fn from_operand(w: Operand<'_>, precision: Precision, for_training: bool) -> Result<Weight> {
        let forward = Packed::new(w.t()?)?;
        let backward = if for_training { Some(Packed::new(w)?) } else { None };
        Ok(Weight { n: w.rows(), k: w.cols(), precision, forward, backward })
    }

    /// The number of out features.
    pub fn n(&self) -> usize {
        self.n
    }
    /// The number of in features.
    pub fn k(&self) -> usize {
        self.k
    }
    /// The precision it was packed for.
    pub fn precision(&self) -> Precision {
        self.precision
    }
    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        self.forward.bytes() + self.backward.as_ref().map_or(0, Packed::bytes)
    }

    fn backward(&self) -> Result<&Packed> {
        self.backward.as_ref().ok_or_else(|| Error::Unsupported {
            what: "weight of dgrad",
            expected: "one packed for training",
            got: "one packed for inference".into(),
        })
    }
}

/// The format an [`Activation`] is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// E4M3 with 1x128 power-of-two scales.
    Fp8,
    /// 12 bits with 1x128 power-of-two scales: for [`wgrad`] only.
    E5m6,
}

impl ActivationKind {
    /// `f32`, `bf16`, `fp8` or `e5m6`.
    pub const fn name(self) -> &'static str {
        match self {
            ActivationKind::F32 => "f32",
            ActivationKind::Bf16 => "bf16",
            ActivationKind::Fp8 => "fp8",
            ActivationKind::E5m6 => "e5m6",
        }
    }
}

/// The input `[m, k]` of a linear layer, prepared once for [`fprop`] and kept for [`wgrad`].
#[derive(Debug, Clone)]
pub struct Activation {
    rows: usize,
    cols: usize,
    values: Values,
}

#[derive(Debug, Clone)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Fp8(BlockScaled),
    E5m6(E5m6Rows),
}

impl Activation {
    /// From `x` `[m, k]`: copied, rounded or quantised.
    pub fn new(x: &[f32], m: usize, k: usize, precision: Precision) -> Result<Activation> {
        Ok(Self::from_mat(matrix("activation", x, m, k)?, precision))
    }

    /// From a view.
    pub fn from_mat(x: MatRef<'_, f32>, precision: Precision) -> Activation {
        let values = match precision {
            Precision::F32 => Values::F32(flatten(x)),
            Precision::Bf16 => Values::Bf16(to_bf16(x)),
            Precision::Fp8 => Values::Fp8(quantize_1x128(x, ACTIVATION_SCALES)),
        };
        Activation { rows: x.rows(), cols: x.cols(), values }
    }

    /// From `x` `[m, k]`, which f32 keeps without a copy.
    pub fn from_vec(x: Vec<f32>, m: usize, k: usize, precision: Precision) -> Result<Activation> {
        if precision != Precision::F32 {
            return Self::new(&x, m, k, precision);
        }
        check_len("activation", m.checked_mul(k), x.len())?;
        Ok(Activation { rows: m, cols: k, values: Values::F32(x) })
    }

    /// From codes with 1x128 blocks that are already there, such as those of [`crate::quantize::swiglu_quantize_1x128`].
    pub fn from_block_scaled(x: BlockScaled) -> Result<Activation> {
        if x.block() != crate::scaled::Block::Row128 {
            return Err(Error::Unsupported { what: "activation", expected: "1x128 blocks", got: format!("{:?}", x.block()) });
        }
        Ok(Activation { rows: x.rows(), cols: x.cols(), values: Values::Fp8(x) })
    }

    /// The same in E5M6, for [`wgrad`] alone: what the report keeps of the input of the linear after attention. Make it from an f32 or
    /// bf16 activation; from FP8 nothing is gained.
    pub fn to_e5m6(&self) -> Activation {
        let x = self.to_f32();
        let view = MatRef::new(&x, self.rows, self.cols).expect("the values fill the matrix");
        Activation { values: Values::E5m6(E5m6Rows::encode(view)), ..*self }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(x) => 4 * x.len(),
            Values::Bf16(x) => 2 * x.len(),
            Values::Fp8(x) => x.bytes(),
            Values::E5m6(x) => x.bytes(),
        }
    }
    /// The format it is kept in.
    pub fn kind(&self) -> ActivationKind {
        match &self.values {
            Values::F32(_) => ActivationKind::F32,
            Values::Bf16(_) => ActivationKind::Bf16,
            Values::Fp8(_) => ActivationKind::Fp8,
            Values::E5m6(_) => ActivationKind::E5m6,
        }
    }

    /// The values, row-major: exact, except that FP8 rounds `code * scale` to f32 when the scale is not a power of two.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::F32(x) => x.clone(),
            Values::Bf16(x) => {
                let mut out = vec![0.0; x.len()];
                convert::bf16_to_f32(x, &mut out).expect("the output was made to fit");
                out
            }
            Values::Fp8(x) => x.dequantize(),
            Values::E5m6(x) => x.decode(),
        }
    }

    fn operand(&self) -> Result<Operand<'_>> {
        Ok(match &self.values {
            Values::F32(x) => Operand::F32(MatRef::new(x, self.rows, self.cols)?),
            Values::Bf16(x) => Operand::Bf16(MatRef::new(x, self.rows, self.cols)?),
            Values::Fp8(x) => x.into(),
            Values::E5m6(_) => {
                return Err(Error::Unsupported {
                    what: "activation of fprop",
                    expected: "f32, bf16 or fp8",
                    got: "e5m6, which is for wgrad only".into(),
                });
            }
        })
    }
}

/// `y = x W^T`: `x` `[m, k]`, `w` `[n, k]`, `y` `[m, n]`, overwritten. The activation must be of the weight's precision.
pub fn fprop(x: &Activation, w: &Weight, y: MatMut<'_, f32>) -> Result<()> {
    gemm_packed(x.operand()?, &w.forward, y, false)
}

/// `dx = dy W`, or `dx += dy W` with `accumulate`: `dy` `[m, n]`, `w` `[n, k]`, `dx` `[m, k]`, in the weight's precision.
pub fn dgrad(dy: MatRef<'_, f32>, w: &Weight, dx: MatMut<'_, f32>, accumulate: bool) -> Result<()> {
    gemm_packed(gradient(dy, w.precision), w.backward()?, dx, accumulate)
}

/// `dw += dy^T x`, the finished product added once: `x` `[m, k]`, `dy` `[m, n]`, `dw` `[n, k]`.
pub fn wgrad(x: &Activation, dy: MatRef<'_, f32>, dw: &mut [f32], precision: Precision) -> Result<()> {
    wgrad_grouped(x, &[0, x.rows], dy, dw, precision)
}

/// [`fprop`] for experts: the rows from `offsets[g]` to `offsets[g + 1]` with `weights[g]`. One more offset than there are weights, ascending from 0
/// to the number of rows; a group may be empty.
pub fn fprop_grouped(x: &Activation, offsets: &[usize], weights: &[Weight], y: MatMut<'_, f32>) -> Result<()> {
    let weights: Vec<_> = weights.iter().map(|w| &w.forward).collect();
    gemm_grouped(x.operand()?, offsets, &weights, y, false)
}

/// [`dgrad`] for experts, with groups as in [`fprop_grouped`].
pub fn dgrad_grouped(
    dy: MatRef<'_, f32>,
    offsets: &[usize],
    weights: &[Weight],
    dx: MatMut<'_, f32>,
    accumulate: bool,
) -> Result<()> {
    let precision = weights.first().map_or(Precision::F32, |w| w.precision);
    let weights: Vec<_> = weights.iter().map(Weight::backward).collect::<Result<_>>()?;
    gemm_grouped(gradient(dy, precision), offsets, &weights, dx, accumulate)
}

/// [`wgrad`] for experts, with groups as in [`fprop_grouped`]: `dw` `[groups, n, k]`. In FP8 the 128 tokens that share a scale begin anew with
/// each group.
pub fn wgrad_grouped(x: &Activation, offsets: &[usize], dy: MatRef<'_, f32>, dw: &mut [f32], precision: Precision) -> Result<()> {
    let (n, k) = (dy.cols(), x.cols);
    check_shape("output gradient", (x.rows, n), (dy.rows(), n))?;
    check_offsets(offsets, offsets.len().saturating_sub(1), x.rows)?;
    let ranges: Vec<_> = offsets.windows(2).map(|w| w[0]..w[1]).collect();
    check_len("weight gradient", ranges.len().checked_mul(n).and_then(|len| len.checked_mul(k)), dw.len())?;
    // What the kept format cannot serve as it is becomes f32 first.
    let widened;
    let x_f32 = match (&x.values, precision) {
        (Values::F32(x), _) => Some(x),
        (Values::Fp8(_), Precision::Fp8) | (Values::Bf16(_), Precision::Bf16) => None,
        _ => {
            widened = x.to_f32();
            Some(&widened)
        }
    };
    let x_f32 = match x_f32 {
        Some(values) => Some(MatRef::new(values, x.rows, k)?),
        None => None,
    };
    if precision == Precision::Fp8 {
        // Both sides are quantised along tokens as they are read. Rows of the gradient must be contiguous for that.
        let gathered;
        let dy = if dy.has_contiguous_rows() {
            dy
        } else {
            gathered = dy.to_vec();
            MatRef::new(&gathered, x.rows, n)?
        };
        let mut groups = Vec::with_capacity(ranges.len());
        for range in ranges {
            let values = match (&x.values, x_f32) {
                (_, Some(x)) => ColumnValues::F32(x.row_range(range.clone())?),
                (Values::Fp8(x), None) => ColumnValues::Scaled(x, range.start),
                _ => unreachable!("only fp8 is kept as it is"),
            };
            let dy = ColumnValues::F32(dy.row_range(range.clone())?);
            groups.push((
                ColumnQuantized::new(dy, range.len(), GRADIENT_SCALES),
                ColumnQuantized::new(values, range.len(), ACTIVATION_SCALES),
            ));
        }
        return k_grouped_columns(&groups, n, k, dw, true);
    }
    let mut groups = Vec::with_capacity(ranges.len());
    for range in ranges {
        let dy = dy.row_range(range.clone())?;
        groups.push(match (&x.values, x_f32, precision) {
            (_, Some(x), Precision::F32) => (Operand::F32(dy), Operand::F32(x.row_range(range)?)),
            (_, Some(x), _) => (Operand::RoundedToBf16(dy), Operand::RoundedToBf16(x.row_range(range)?)),
            (Values::Bf16(values), None, _) => {
                (Operand::RoundedToBf16(dy), Operand::Bf16(MatRef::new(values, x.rows, k)?.row_range(range)?))
            }
            _ => unreachable!("only bf16 is kept as it is"),
        });
    }
    gemm_k_grouped(&groups, n, k, dw, true)
}

/// An output gradient as dgrad reads it.
fn gradient(dy: MatRef<'_, f32>, precision: Precision) -> Operand<'_> {
    match precision {
        Precision::F32 => Operand::F32(dy),
        Precision::Bf16 => Operand::RoundedToBf16(dy),
        Precision::Fp8 => Operand::QuantizedRows(dy, GRADIENT_SCALES),
    }
}

fn matrix<'a>(what: &'static str, x: &'a [f32], rows: usize, cols: usize) -> Result<MatRef<'a, f32>> {
    check_len(what, rows.checked_mul(cols), x.len())?;
    Ok(MatRef::new(x, rows, cols)?)
}

fn flatten(x: MatRef<'_, f32>) -> Vec<f32> {
    if !x.has_contiguous_rows() {
        return x.to_vec();
    }
    let mut out = Vec::with_capacity(x.rows() * x.cols());
    (0..x.rows()).for_each(|i| out.extend_from_slice(x.row(i)));
    out
}

fn to_bf16(x: MatRef<'_, f32>) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; x.rows() * x.cols()];
    if out.is_empty() {
        return out;
    }
    let gathered;
    let x = if x.has_contiguous_rows() {
        x
    } else {
        gathered = x.to_vec();
        MatRef::new(&gathered, x.rows(), x.cols()).expect("the copy fills the matrix")
    };
    v3_numerics::par::for_each_chunk_mut(&mut out, x.cols() * 32, |t, out| {
        for (i, out) in out.chunks_mut(x.cols()).enumerate() {
            convert::f32_to_bf16(x.row(t * 32 + i), out).expect("equal lengths");
        }
    });
    out
}
