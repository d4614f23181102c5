//! E5M6 rows: 12 bits a value, for activations that are kept for the backward pass and quantised anew there.

use crate::cpu;
use crate::error::{Result, check_len};
use crate::scaled::BLOCK;
use v3_numerics::cpu::Isa;
use v3_numerics::view::MatRef;
use v3_numerics::{e5m6, par};

/// The rows that are converted as one task.
const ROWS: usize = 32;

/// A matrix `[rows, cols]` in E5M6 with a power-of-two scale for each 128 values of a row: `2^ceil(log2(amax / 65024))`, 1 for a block of
/// zeros. Rows are packed on their own, two values in 3 bytes; an odd last value is paired with a zero.
#[derive(Debug, Clone, PartialEq)]
pub struct E5m6Rows {
    data: Vec<u8>,
    scales: Vec<f32>,
    rows: usize,
    cols: usize,
}

/// The power-of-two scale of a block.
fn block_scale(amax: f32) -> f32 {
    if amax == 0.0 {
        return 1.0;
    }
    // In f64 the quotient is normal, and a power of two only if it really is one: 65024 is 127 * 2^9, so the 24-bit mantissa of
    // amax over 127 differs from any power of two by at least 2^-24 relative unless it equals it.
    let bits = (f64::from(amax) / f64::from(e5m6::MAX)).to_bits();
    let exponent = (bits >> 52) as i64 - 1023 + i64::from(bits & ((1 << 52) - 1) != 0);
    f32::from_bits(((exponent.max(-126) + 127) as u32) << 23)
}

impl E5m6Rows {
    /// Encodes `x` `[rows, cols]`. An infinity becomes the largest value of its block's scale, NaN stays NaN.
    pub fn encode(x: MatRef<'_, f32>) -> E5m6Rows {
        let isa = Isa::detect();
        let (rows, cols) = (x.rows(), x.cols());
        let blocks = cols.div_ceil(BLOCK);
        let row_bytes = e5m6::packed_len(cols);
        let mut data = vec![0u8; rows * row_bytes];
        let mut scales = vec![0.0; rows * blocks];
        if rows * cols > 0 {
            let mut tasks: Vec<_> = data.chunks_mut(ROWS * row_bytes).zip(scales.chunks_mut(ROWS * blocks)).collect();
            par::for_each_chunk_mut(&mut tasks, 1, |t, task| {
                let (data, scales) = &mut task[0];
                let mut block = [0.0f32; BLOCK];
                for (i, (data, scales)) in data.chunks_mut(row_bytes).zip(scales.chunks_mut(blocks)).enumerate() {
                    for (b, scale) in scales.iter_mut().enumerate() {
                        let first = b * BLOCK;
                        let len = (cols - first).min(BLOCK);
                        for (p, value) in block[..len].iter_mut().enumerate() {
                            *value = x.at(t * ROWS + i, first + p).clamp(-f32::MAX, f32::MAX);
                        }
                        *scale = block_scale(cpu::amax(isa, &block[..len]));
                        // Dividing by a power of two is exact, and cannot overflow as multiplying by 2^126 * 2 could.
                        block[..len].iter_mut().for_each(|x| *x /= *scale);
                        let at = e5m6::packed_len(first);
                        let out = &mut data[at..at + e5m6::packed_len(len)];
                        e5m6::encode_slice(&block[..len], 1.0, out).expect("the block was cut to fit");
                    }
                }
            });
        }
        E5m6Rows { data, scales, rows, cols }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// The packed codes, [`e5m6::packed_len`]`(cols)` bytes a row.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
    /// The scales `[rows, ceil(cols / 128)]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }
    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        self.data.len() + 4 * self.scales.len()
    }

    /// The values, row-major into `out`.
    pub fn decode_into(&self, out: &mut [f32]) -> Result<()> {
        check_len("decoded values", Some(self.rows * self.cols), out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let row_bytes = e5m6::packed_len(self.cols);
        let blocks = self.cols.div_ceil(BLOCK);
        par::for_each_chunk_mut(out, self.cols, |i, out| {
            let data = &self.data[i * row_bytes..(i + 1) * row_bytes];
            let scales = &self.scales[i * blocks..(i + 1) * blocks];
            for (b, (out, scale)) in out.chunks_mut(BLOCK).zip(scales).enumerate() {
                let at = e5m6::packed_len(b * BLOCK);
                let data = &data[at..at + e5m6::packed_len(out.len())];
                e5m6::decode_slice(data, *scale, out).expect("the block was cut to fit");
            }
        });
        Ok(())
    }

    /// The values, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.decode_into(&mut out).expect("the output was made to fit");
        out
    }
}
