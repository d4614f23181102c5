//! Where tasks take their operands from: decoding of stretches of either side to f32.

use crate::cpu::{self, A_STRIDE, A_STRIDE_T, PANEL, ROW_CHUNK};
use crate::operand::Operand;
use crate::packed::{Packed, Panels};
use crate::scaled::{BLOCK, BlockScaled, BlockScaledRef, ScalePolicy};
use std::ops::Range;
use v3_numerics::cpu::Isa;
use v3_numerics::view::MatRef;
use v3_numerics::{bf16, par};

/// A left operand `[m, k]`.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    Operand(Operand<'a>),
    /// The transpose of a matrix `[k, m]` that is quantised along its columns.
    Columns(&'a ColumnQuantized<'a>),
}

/// A right operand `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    Packed(&'a Packed),
    /// Values with contiguous rows.
    Bf16(MatRef<'a, bf16>),
    /// Values with contiguous rows, rounded to bf16 as they are read.
    Rounded(MatRef<'a, f32>),
    /// A matrix that is quantised along its columns.
    Columns(&'a ColumnQuantized<'a>),
}

/// A matrix `[tokens, cols]` quantised 128x1 as it is read: scales are known, codes are never stored.
pub(crate) struct ColumnQuantized<'a> {
    values: ColumnValues<'a>,
    tokens: usize,
    cols: usize,
    /// `[ceil(tokens / 128), cols]`, as are the reciprocals.
    scales: Vec<f32>,
    reciprocals: Vec<f32>,
}

/// What a [`ColumnQuantized`] reads.
#[derive(Clone, Copy)]
pub(crate) enum ColumnValues<'a> {
    /// Values with contiguous rows.
    F32(MatRef<'a, f32>),
    /// The rows of a 1x128 matrix from the given one on: dequantised, then quantised anew.
    Scaled(&'a BlockScaled, usize),
}

impl<'a> ColumnQuantized<'a> {
    /// Finds the scales of the `tokens` rows of `values`.
    pub fn new(values: ColumnValues<'a>, tokens: usize, policy: ScalePolicy) -> Self {
        let isa = Isa::detect();
        let cols = match values {
            ColumnValues::F32(x) => x.cols(),
            ColumnValues::Scaled(x, _) => x.cols(),
        };
        let mut scales = vec![0.0; tokens.div_ceil(BLOCK) * cols];
        let mut reciprocals = vec![0.0; scales.len()];
        if !scales.is_empty() {
            let mut tasks: Vec<_> = scales.chunks_mut(cols).zip(reciprocals.chunks_mut(cols)).collect();
            par::for_each_chunk_mut(&mut tasks, 1, |t, task| {
                let (scales, reciprocals) = &mut task[0];
                let block = t * BLOCK..tokens.min((t + 1) * BLOCK);
                column_amax(isa, values, block.clone(), scales, reciprocals, cpu::amax_columns);
                if cpu::any_not_finite(isa, scales) {
                    scales.fill(0.0);
                    column_amax(isa, values, block, scales, reciprocals, cpu::amax_finite_columns);
                }
                for (scale, reciprocal) in scales.iter_mut().zip(reciprocals.iter_mut()) {
                    let s = policy.scale(*scale);
                    (*scale, *reciprocal) = (s.scale, s.reciprocal);
                }
            });
        }
        ColumnQuantized { values, tokens, cols, scales, reciprocals }
    }

    /// The values of the codes of `rows` (within one block of 128) and `cols`, one row each `stride`.
    fn load(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], stride: usize) {
        let at = rows.start / BLOCK * self.cols;
        let reciprocals = &self.reciprocals[at + cols.start..at + cols.end];
        match self.values {
            ColumnValues::F32(x) => cpu::load_quantized(isa, part(x, rows, cols), reciprocals, out, stride),
            ColumnValues::Scaled(x, first) => {
                let view = x.view();
                let rows = first + rows.start..first + rows.end;
                // Columns that share scales, one run after the other.
                let mut begin = cols.start;
                while begin < cols.end {
                    let end = cols.end.min((begin / BLOCK + 1) * BLOCK);
                    let codes = part(view.data(), rows.clone(), begin..end);
                    let scales = part(view.scales(), rows.clone(), begin / BLOCK..begin / BLOCK + 1);
                    let run = begin - cols.start..end - cols.start;
                    cpu::load_requantized(isa, codes, scales, &reciprocals[run.clone()], &mut out[run.start..], stride);
                    begin = end;
                }
            }
        }
    }

    /// The scales of a block of 128 rows.
    fn scales(&self, block: usize) -> &[f32] {
        &self.scales[block * self.cols..(block + 1) * self.cols]
    }
}

/// Raises `amax` by `raise` for each of the rows; `buffer` holds a dequantised one.
fn column_amax(
    isa: Isa,
    values: ColumnValues<'_>,
    rows: Range<usize>,
    amax: &mut [f32],
    buffer: &mut [f32],
    raise: fn(Isa, &[f32], &mut [f32]),
) {
    for i in rows {
        match values {
            ColumnValues::F32(x) => raise(isa, x.row(i), amax),
            ColumnValues::Scaled(x, first) => {
                crate::quantize::dequantize_row(isa, x, first + i, buffer);
                raise(isa, buffer, amax);
            }
        }
    }
}

/// Rows and columns that lie inside the view.
fn part<T>(x: MatRef<'_, T>, rows: Range<usize>, cols: Range<usize>) -> MatRef<'_, T> {
    x.row_range(rows).and_then(|x| x.col_range(cols)).expect("a part of the view")
}

impl Left<'_> {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Left::Operand(a) => a.rows(),
            Left::Columns(a) => a.cols,
        }
    }

    /// Whether decoded values are `[k, rows]`: where the values of a column, not those of a row, lie side by side.
    pub fn is_transposed(&self) -> bool {
        fn by_columns<T>(a: MatRef<'_, T>) -> bool {
            !a.has_contiguous_rows() && a.t().has_contiguous_rows()
        }
        match self {
            Left::Operand(Operand::F32(a) | Operand::RoundedToBf16(a)) => by_columns(*a),
            Left::Operand(Operand::Bf16(a)) => by_columns(*a),
            Left::Operand(Operand::Fp8(a)) => by_columns(a.data()),
            Left::Operand(Operand::QuantizedRows(..)) => false,
            Left::Columns(_) => true,
        }
    }

    /// Decodes `rows` x `ks` to rows of [`A_STRIDE`], or transposed to rows of [`A_STRIDE_T`], and the scales to `[128 of k, ROW_CHUNK]`.
    pub fn load(&self, isa: Isa, rows: Range<usize>, ks: Range<usize>, out: &mut [f32], scales: &mut [f32]) {
        let a = match self {
            Left::Operand(a) => a,
            Left::Columns(a) => {
                for (first, scales) in ks.clone().step_by(BLOCK).zip(scales.chunks_mut(ROW_CHUNK)) {
                    let end = ks.end.min(first + BLOCK);
                    a.load(isa, first..end, rows.clone(), &mut out[(first - ks.start) * A_STRIDE_T..], A_STRIDE_T);
                    scales[..rows.len()].copy_from_slice(&a.scales(first / BLOCK)[rows.clone()]);
                }
                return;
            }
        };
        // Of the whole: a part of one column looks contiguous either way.
        let transposed = self.is_transposed();
        match a {
            Operand::Bf16(a) => {
                load(part(*a, rows, ks), transposed, out, bf16::to_f32, |x, out, stride| cpu::load_bf16(isa, x, out, stride))
            }
            Operand::RoundedToBf16(a) => {
                let one = |x| bf16::from_f32(x).to_f32();
                load(part(*a, rows, ks), transposed, out, one, |x, out, stride| cpu::load_rounded(isa, x, out, stride));
            }
            Operand::Fp8(a) => {
                load_scales(*a, rows.clone(), ks.clone(), scales);
                let one = v3_numerics::E4M3::to_f32;
                load(part(a.data(), rows, ks), transposed, out, one, |x, out, stride| cpu::load_e4m3(isa, x, out, stride));
            }
            Operand::QuantizedRows(a, policy) => {
                let mut gathered = Vec::new();
                for (r, i) in rows.enumerate() {
                    let x = if a.has_contiguous_rows() {
                        &a.row(i)[ks.clone()]
                    } else {
                        gathered.clear();
                        gathered.extend(ks.clone().map(|p| *a.at(i, p)));
                        &gathered
                    };
                    let values = &mut out[r * A_STRIDE..][..ks.len()];
                    cpu::quantize_row_values(isa, x, *policy, values, &mut scales[r..], ROW_CHUNK);
                }
            }
            Operand::F32(_) => unreachable!("f32 products do not come here"),
        }
    }
}

fn load<T: Copy>(
    a: MatRef<'_, T>,
    transposed: bool,
    out: &mut [f32],
    convert: impl Fn(T) -> f32,
    convert_rows: impl Fn(MatRef<'_, T>, &mut [f32], usize),
) {
    if transposed {
        convert_rows(a.t(), out, A_STRIDE_T);
    } else if a.has_contiguous_rows() {
        convert_rows(a, out, A_STRIDE);
    } else {
        for (i, out) in (0..a.rows()).zip(out.chunks_mut(A_STRIDE)) {
            for (p, out) in (0..a.cols()).zip(out) {
                *out = convert(*a.at(i, p));
            }
        }
    }
}

fn load_scales(a: BlockScaledRef<'_>, rows: Range<usize>, ks: Range<usize>, scales: &mut [f32]) {
    for (first, scales) in ks.step_by(BLOCK).zip(scales.chunks_mut(ROW_CHUNK)) {
        for (i, scale) in rows.clone().zip(scales) {
            *scale = a.scale_at(i, first);
        }
    }
}

impl Right<'_> {
    /// The length of the sums.
    pub fn k(&self) -> usize {
        match self {
            Right::Packed(b) => b.k,
            Right::Bf16(b) => b.rows(),
            Right::Rounded(b) => b.rows(),
            Right::Columns(b) => b.tokens,
        }
    }

    /// The number of columns.
    pub fn n(&self) -> usize {
        match self {
            Right::Packed(b) => b.n,
            Right::Bf16(b) => b.cols(),
            Right::Rounded(b) => b.cols(),
            Right::Columns(b) => b.cols,
        }
    }

    /// Whether sums are promoted with scales every 128.
    pub fn has_scales(&self) -> bool {
        match self {
            Right::Packed(b) => matches!(b.panels, Panels::Fp8(..)),
            Right::Columns(_) => true,
            _ => false,
        }
    }

    /// The panels, when they are bf16.
    pub fn bf16_panels(&self) -> Option<&[bf16]> {
        match self {
            Right::Packed(Packed { panels: Panels::Bf16(data), .. }) => Some(data),
            _ => None,
        }
    }

    /// Decodes `ks` (within one block of 128) of a panel to `[k, PANEL]`, and the scales of its columns.
    pub fn load(&self, isa: Isa, panel: usize, ks: Range<usize>, out: &mut [f32], scales: &mut [f32; PANEL]) {
        let (k, first) = (self.k(), panel * PANEL);
        let cols = first..self.n().min(first + PANEL);
        if !matches!(self, Right::Packed(_)) && cols.len() < PANEL {
            // Lanes without a column are computed as well; what is left from other panels might be slow there.
            out[..ks.len() * PANEL].fill(0.0);
        }
        match self {
            Right::Packed(b) => {
                let at = (panel * k + ks.start) * PANEL..(panel * k + ks.end) * PANEL;
                match &b.panels {
                    Panels::Bf16(data) => cpu::decode_bf16(isa, &data[at], &mut out[..ks.len() * PANEL]),
                    Panels::Fp8(data, all) => {
                        let at_scale = (panel * k.div_ceil(BLOCK) + ks.start / BLOCK) * PANEL;
                        scales.copy_from_slice(&all[at_scale..at_scale + PANEL]);
                        cpu::decode_e4m3(isa, &data[at], &mut out[..ks.len() * PANEL]);
                    }
                    Panels::F32(_) => unreachable!("f32 products do not come here"),
                }
            }
            Right::Bf16(b) => cpu::load_bf16(isa, part(*b, ks, cols), out, PANEL),
            Right::Rounded(b) => cpu::load_rounded(isa, part(*b, ks, cols), out, PANEL),
            Right::Columns(b) => {
                scales[..cols.len()].copy_from_slice(&b.scales(ks.start / BLOCK)[cols.clone()]);
                b.load(isa, ks, cols, out, PANEL);
            }
        }
    }
}
