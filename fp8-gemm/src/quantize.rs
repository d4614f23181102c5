//! Quantisers to block-scaled E4M3, and back. Their bits are those of [`crate::reference::quantize`].
//!
//! A block's `amax` is the largest magnitude in it. NaN does not count and stays NaN; an infinity counts as the largest finite f32
//! and becomes 448 times the scale, with its sign. The scale follows from `amax` by the [`ScalePolicy`], and a code is the E4M3 value
//! nearest to `x * reciprocal` (that product rounded to f32), ties to even, saturating.

use crate::cpu;
use crate::error::{Error, Result, check_len};
use crate::scaled::{BLOCK, Block, BlockScaled, ScalePolicy};
use v3_numerics::cpu::Isa;
use v3_numerics::view::MatRef;
use v3_numerics::{E4M3, par};

/// The rows that are quantised as one task.
const ROWS: usize = 32;

/// 1x128: `x` `[rows, cols]` with a scale for each 128 values of a row. For activations and gradients that are summed along their rows.
pub fn quantize_1x128(x: MatRef<'_, f32>, policy: ScalePolicy) -> BlockScaled {
    quantize_rows(x.rows(), x.cols(), policy, &x)
}

/// Where a quantiser takes its rows from.
trait Rows: Sync {
    /// Row `i`, in `buffer` or wherever it is already.
    fn row<'b>(&'b self, i: usize, buffer: &'b mut Vec<f32>) -> &'b [f32];
}

impl Rows for MatRef<'_, f32> {
    fn row<'b>(&'b self, i: usize, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        row_of(*self, i, buffer)
    }
}

/// `silu(gate) * up` of rows `[gate | up]`.
struct SwigluRows<'a>(MatRef<'a, f32>);

impl Rows for SwigluRows<'_> {
    fn row<'b>(&'b self, i: usize, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        let mut gathered = Vec::new();
        let row = row_of(self.0, i, &mut gathered);
        let inter = row.len() / 2;
        buffer.resize(inter, 0.0);
        v3_numerics::ops::swiglu(row, inter, buffer).expect("one row of gate and up, one row of outputs");
        buffer
    }
}

/// The values of codes and scales.
struct Dequantized<'a> {
    x: &'a BlockScaled,
    isa: Isa,
}

impl Rows for Dequantized<'_> {
    fn row<'b>(&'b self, i: usize, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        buffer.resize(self.x.cols(), 0.0);
        dequantize_row(self.isa, self.x, i, buffer);
        buffer
    }
}

/// 1x128 of the rows of a source.
fn quantize_rows(rows: usize, cols: usize, policy: ScalePolicy, source: &impl Rows) -> BlockScaled {
    let isa = Isa::detect();
    let blocks = cols.div_ceil(BLOCK);
    let mut data = vec![E4M3(0); rows * cols];
    let mut scales = vec![0.0; rows * blocks];
    if rows * cols > 0 {
        let mut tasks: Vec<_> = data.chunks_mut(ROWS * cols).zip(scales.chunks_mut(ROWS * blocks)).collect();
        par::for_each_chunk_mut(&mut tasks, 1, |t, task| {
            let (data, scales) = &mut task[0];
            let mut buffer = Vec::new();
            for (i, (data, scales)) in data.chunks_mut(cols).zip(scales.chunks_mut(blocks)).enumerate() {
                let x = source.row(t * ROWS + i, &mut buffer);
                cpu::quantize_row(isa, x, policy, data, scales);
            }
        });
    }
    BlockScaled::from_quantizer(data, scales, rows, cols, Block::Row128)
}

/// Row `i`, through `buffer` when the view is not contiguous.
fn row_of<'b>(x: MatRef<'b, f32>, i: usize, buffer: &'b mut Vec<f32>) -> &'b [f32] {
    if x.has_contiguous_rows() {
        return x.row(i);
    }
    buffer.clear();
    buffer.extend((0..x.cols()).map(|j| *x.at(i, j)));
    buffer
}

/// 128x1: `x` `[rows, cols]` with a scale for each 128 values of a column, codes where the values were. For activations and gradients
/// that are summed along their rows' index, as a weight gradient sums tokens.
pub fn quantize_128x1(x: MatRef<'_, f32>, policy: ScalePolicy) -> BlockScaled {
    quantize_columns(x.rows(), x.cols(), policy, &x)
}

/// 128x1 of the rows of a source, each asked for twice.
fn quantize_columns(rows: usize, cols: usize, policy: ScalePolicy, source: &impl Rows) -> BlockScaled {
    let isa = Isa::detect();
    let mut data = vec![E4M3(0); rows * cols];
    let mut scales = vec![0.0; rows.div_ceil(BLOCK) * cols];
    if rows * cols > 0 {
        let mut tasks: Vec<_> = data.chunks_mut(BLOCK * cols).zip(scales.chunks_mut(cols)).collect();
        par::for_each_chunk_mut(&mut tasks, 1, |t, task| {
            let (data, scales) = &mut task[0];
            let mut buffer = Vec::new();
            let height = data.len() / cols;
            for i in 0..height {
                cpu::amax_columns(isa, source.row(t * BLOCK + i, &mut buffer), scales);
            }
            if cpu::any_not_finite(isa, scales) {
                scales.fill(0.0);
                for i in 0..height {
                    cpu::amax_finite_columns(isa, source.row(t * BLOCK + i, &mut buffer), scales);
                }
            }
            let mut reciprocals = vec![0.0; cols];
            for (scale, reciprocal) in scales.iter_mut().zip(&mut reciprocals) {
                let s = policy.scale(*scale);
                (*scale, *reciprocal) = (s.scale, s.reciprocal);
            }
            for (i, data) in data.chunks_mut(cols).enumerate() {
                cpu::encode_columns(isa, source.row(t * BLOCK + i, &mut buffer), &reciprocals, data);
            }
        });
    }
    BlockScaled::from_quantizer(data, scales, rows, cols, Block::Col128)
}

/// 1x128 along the rows' index, transposed: `x` `[tokens, cols]` gives `[cols, tokens]` with a scale for each 128 tokens of a column.
/// The same codes and scales as [`quantize_128x1`], in the order that K-major tensor cores want.
pub fn quantize_1x128_transposed(x: MatRef<'_, f32>, policy: ScalePolicy) -> BlockScaled {
    transpose(&quantize_128x1(x, policy))
}

/// Both copies that training needs of a gradient: 1x128 as it is, for the gradient of the input, and 1x128 along tokens, transposed, for
/// the gradient of the weight. Each is quantised from `x` itself.
pub fn quantize_1x128_with_transpose(x: MatRef<'_, f32>, policy: ScalePolicy) -> (BlockScaled, BlockScaled) {
    (quantize_1x128(x, policy), quantize_1x128_transposed(x, policy))
}

/// 128x128: `w` `[rows, cols]` with a scale for each 128 by 128 values. For weights; never for gradients of activations.
pub fn quantize_128x128(w: MatRef<'_, f32>, policy: ScalePolicy) -> BlockScaled {
    let isa = Isa::detect();
    let (rows, cols) = (w.rows(), w.cols());
    let blocks = cols.div_ceil(BLOCK);
    let mut data = vec![E4M3(0); rows * cols];
    let mut scales = vec![0.0; rows.div_ceil(BLOCK) * blocks];
    if rows * cols > 0 {
        let mut tasks: Vec<_> = data.chunks_mut(BLOCK * cols).zip(scales.chunks_mut(blocks)).collect();
        par::for_each_chunk_mut(&mut tasks, 1, |t, task| {
            let (data, scales) = &mut task[0];
            let mut buffer = Vec::new();
            let height = data.len() / cols;
            let mut reciprocals = vec![0.0; blocks];
            for i in 0..height {
                let row = row_of(w, t * BLOCK + i, &mut buffer);
                cpu::amax_blocks(isa, row, scales);
            }
            for (scale, reciprocal) in scales.iter_mut().zip(&mut reciprocals) {
                let s = policy.scale(*scale);
                (*scale, *reciprocal) = (s.scale, s.reciprocal);
            }
            for (i, data) in data.chunks_mut(cols).enumerate() {
                let row = row_of(w, t * BLOCK + i, &mut buffer);
                cpu::encode_blocks(isa, row, &reciprocals, data);
            }
        });
    }
    BlockScaled::from_quantizer(data, scales, rows, cols, Block::Square128)
}

/// SwiGLU and 1x128 quantisation in one pass: `gate_up` `[tokens, 2 * inter]`, rows `[gate | up]`, gives `silu(gate) * up` `[tokens, inter]`
/// quantised, without storing it. The bits are those of [`v3_numerics::ops::swiglu`] followed by [`quantize_1x128`].
pub fn swiglu_quantize_1x128(gate_up: MatRef<'_, f32>, policy: ScalePolicy) -> Result<BlockScaled> {
    let (tokens, width) = (gate_up.rows(), gate_up.cols());
    if !width.is_multiple_of(2) {
        return Err(Error::Shape { what: "columns of gate and up", expected: "an even number".into(), got: width.to_string() });
    }
    Ok(quantize_rows(tokens, width / 2, policy, &SwigluRows(gate_up)))
}

/// The values `code * scale`, rounded to f32, row-major into `out`.
pub fn dequantize_into(x: &BlockScaled, out: &mut [f32]) -> Result<()> {
    check_len("dequantised values", Some(x.data().len()), out.len())?;
    let cols = x.cols();
    if cols == 0 {
        return Ok(());
    }
    let isa = Isa::detect();
    par::for_each_chunk_mut(out, ROWS * cols, |t, out| {
        for (i, out) in out.chunks_mut(cols).enumerate() {
            dequantize_row(isa, x, t * ROWS + i, out);
        }
    });
    Ok(())
}

pub(crate) fn dequantize_row(isa: Isa, x: &BlockScaled, i: usize, out: &mut [f32]) {
    let cols = x.cols();
    cpu::decode_e4m3(isa, &x.data()[i * cols..(i + 1) * cols], out);
    let scale_cols = x.block().scale_shape(x.rows(), cols).1;
    let scale_row = x.block().scale_index(i, 0).0;
    let scales = &x.scales()[scale_row * scale_cols..(scale_row + 1) * scale_cols];
    if x.block() == Block::Col128 {
        cpu::scale_columns(isa, out, scales);
    } else {
        cpu::scale_blocks(isa, out, scales);
    }
}

/// Re-tiles 1x128 (or any other) blocks to 128x1 along tokens, for the weight gradient: dequantises and quantises again. With power-of-two scales
/// on both sides a code changes only where the new scale is larger and it falls among the subnormals.
pub fn retile_128x1(x: &BlockScaled, policy: ScalePolicy) -> BlockScaled {
    quantize_columns(x.rows(), x.cols(), policy, &Dequantized { x, isa: Isa::detect() })
}

/// The same matrix with rows and columns exchanged in memory.
pub fn transpose(x: &BlockScaled) -> BlockScaled {
    let (rows, cols) = (x.rows(), x.cols());
    let (scale_rows, scale_cols) = x.block().scale_shape(rows, cols);
    let data = transpose_slice(x.data(), rows, cols);
    let scales = transpose_slice(x.scales(), scale_rows, scale_cols);
    BlockScaled::from_quantizer(data, scales, cols, rows, x.block().transposed())
}

fn transpose_slice<T: Copy + Default + Send + Sync>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    /// Rows and columns that are turned at a time: both sides stay in the first cache.
    const TILE: usize = 64;
    let mut out = vec![T::default(); x.len()];
    if x.is_empty() {
        return out;
    }
    par::for_each_chunk_mut(&mut out, TILE * rows, |t, out| {
        for first_row in (0..rows).step_by(TILE) {
            let height = (rows - first_row).min(TILE);
            for (j, out) in out.chunks_exact_mut(rows).enumerate() {
                let column = x[first_row * cols + t * TILE + j..].iter().step_by(cols);
                for (out, x) in out[first_row..first_row + height].iter_mut().zip(column) {
                    *out = *x;
                }
            }
        }
    });
    out
}
