//! Rotary position embedding of the decoupled part of queries and keys, with YaRN.
//!
//! Frequencies: `theta^(-2i/dim)`, and with YaRN a blend of these and of the same divided by `factor`, by a linear ramp
//! between the dimensions that turn `beta_fast` and `beta_slow` times within the original context (rounded outwards to
//! whole dimensions). Cosines and sines carry the ratio of the two magnitude scales, as published models expect:
//! `mscale(factor, mscale) / mscale(factor, mscale_all_dim)`, `mscale(s, m) = 0.1 m ln s + 1` for `s > 1`; when one of the
//! two is zero, `mscale(factor, 1)`. The square of `mscale(factor, mscale_all_dim)` multiplies the softmax scale.
//!
//! Angles, cosines and sines are computed in f64 and rounded to f32 once.

use crate::error::{Error, Result, product};
use v3_numerics::par;

/// Positions up to this one are tabulated; later ones are computed when met, by the same formula.
const TABLE_POSITIONS: usize = 4096;
/// Rows that one unit of parallel work rotates, for rows of one head.
const ROTATIONS_PER_CHUNK: usize = 4096;

/// YaRN: a context window extended by `factor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// New context length over the original one, at least 1.
    pub factor: f64,
    /// Context length before the extension.
    pub original_max_position: usize,
    /// Dimensions that turn more often than this within the original context keep their frequency. 32 in published models.
    pub beta_fast: f64,
    /// Dimensions that turn less often than this are slowed by `factor`. 1 in published models.
    pub beta_slow: f64,
    /// Magnitude scale of cosines and sines; 0 when the configuration does not name it.
    pub mscale: f64,
    /// Magnitude scale of the attention scores; 0 when the configuration does not name it.
    pub mscale_all_dim: f64,
}

/// The rotation of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Width of the rotated part of a head, even.
    pub dim: usize,
    /// Base of the frequencies, above 1; 10,000 in published models.
    pub theta: f64,
    /// Context length of the model. Sizes the table; it does not limit positions.
    pub max_position: usize,
    /// Context extension.
    pub yarn: Option<Yarn>,
    /// Whether the values of a pair lie side by side, `(2i, 2i + 1)`, as in published DeepSeek-V3 weights, or
    /// half a head apart, `(i, i + dim / 2)`.
    pub interleaved: bool,
}

/// `0.1 m ln s + 1` for `s > 1`, else 1: YaRN's correction of magnitudes for a context `s` times as long.
pub fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// What attention scores are multiplied by before the softmax: `qk_head_dim^-0.5`, times the square of
/// [`yarn_mscale`]`(factor, mscale_all_dim)` under YaRN. `qk_head_dim` is the whole width of a head, `d_nope + d_rope`.
pub fn softmax_scale(qk_head_dim: usize, config: &RopeConfig) -> f32 {
    let mscale = config.yarn.map_or(1.0, |y| yarn_mscale(y.factor, y.mscale_all_dim));
    ((qk_head_dim as f64).powf(-0.5) * mscale * mscale) as f32
}

impl RopeConfig {
    /// The angle per position of each pair, `[dim / 2]`, and what cosines and sines are multiplied by.
    pub fn frequencies(&self) -> Result<(Vec<f64>, f64)> {
        let parameter = |what, expected, got: f64| Err(Error::Parameter { what, expected, got: got.to_string() });
        if !self.dim.is_multiple_of(2) {
            return Err(Error::Parameter { what: "rope dim", expected: "even", got: self.dim.to_string() });
        }
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return parameter("rope theta", "finite and above 1", self.theta);
        }
        let pairs = self.dim / 2;
        let plain = (0..pairs).map(|i| self.theta.powf(-((2 * i) as f64) / self.dim as f64));
        let Some(yarn) = self.yarn else {
            return Ok((plain.collect(), 1.0));
        };
        if !(yarn.factor.is_finite() && yarn.factor >= 1.0) {
            return parameter("YaRN factor", "finite and at least 1", yarn.factor);
        }
        if yarn.original_max_position == 0 {
            return parameter("YaRN original_max_position", "positive", 0.0);
        }
        for (what, beta) in [("YaRN beta_fast", yarn.beta_fast), ("YaRN beta_slow", yarn.beta_slow)] {
            if !(beta.is_finite() && beta > 0.0) {
                return parameter(what, "finite and positive", beta);
            }
        }
        for (what, m) in [("YaRN mscale", yarn.mscale), ("YaRN mscale_all_dim", yarn.mscale_all_dim)] {
            if !(m.is_finite() && m >= 0.0) {
                return parameter(what, "finite and not negative", m);
            }
        }
        // The dimension whose pair turns `turns` times within the original context.
        let dimension = |turns: f64| {
            self.dim as f64 * (yarn.original_max_position as f64 / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
        };
        let low = dimension(yarn.beta_fast).floor().max(0.0);
        let mut high = dimension(yarn.beta_slow).ceil().min(self.dim as f64 - 1.0);
        if low == high {
            high += 0.001;
        }
        let frequencies = plain
            .enumerate()
            .map(|(i, f)| {
                let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f / yarn.factor * slowed + f * (1.0 - slowed)
            })
            .collect();
        let magnitude = if yarn.mscale != 0.0 && yarn.mscale_all_dim != 0.0 {
            yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim)
        } else {
            yarn_mscale(yarn.factor, 1.0)
        };
        Ok((frequencies, magnitude))
    }
}

/// Cosines and sines of a model's rotation.
#[derive(Debug, Clone)]
pub struct RopeTable {
    config: RopeConfig,
    frequencies: Vec<f64>,
    magnitude: f64,
    positions: usize,
    /// `[positions, dim]`: the cosines of a position, then its sines.
    values: Vec<f32>,
}

impl RopeTable {
    /// Tabulates the rotation of `config` up to its `max_position` or 4096 positions, whichever is less.
    ///
    /// An odd `dim`, a base at or below 1 and YaRN values out of range are [`Error::Parameter`]. `dim` 0 is allowed.
    pub fn new(config: &RopeConfig) -> Result<Self> {
        let (frequencies, magnitude) = config.frequencies()?;
        let positions = config.max_position.min(TABLE_POSITIONS);
        let mut values = vec![0.0; product("rope table", &[positions, config.dim])?];
        let mut table = Self { config: *config, frequencies, magnitude, positions: 0, values: Vec::new() };
        if config.dim > 0 {
            par::for_each_chunk_mut(&mut values, config.dim, |position, row| table.compute(position as u32, row));
        }
        table.positions = positions;
        table.values = values;
        Ok(table)
    }

    /// What the table was made from.
    pub fn config(&self) -> &RopeConfig {
        &self.config
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.values[..]) + size_of_val(&self.frequencies[..])
    }

    /// Writes the cosines, then the sines of a position to `row`, `[dim]`.
    fn compute(&self, position: u32, row: &mut [f32]) {
        let (cos, sin) = row.split_at_mut(self.frequencies.len());
        for ((c, s), f) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let (sine, cosine) = (f * f64::from(position)).sin_cos();
            *c = (cosine * self.magnitude) as f32;
            *s = (sine * self.magnitude) as f32;
        }
    }

    /// Rotates in place `heads` heads of each of `rows` rows by the angle of the row's position.
    ///
    /// Head `h` of row `r` is the `dim` values of `x` from `r * row_stride + offset + h * head_stride` on; nothing else is
    /// touched. `positions` has one entry a row, any value. `inverse` multiplies by the transpose of the rotation (scaled
    /// alike), which is the backward of the forward. Each value is two products and one sum, rounded each
    /// (`x0 cos - x1 sin`, `x1 cos + x0 sin`).
    pub fn apply(
        &self,
        x: &mut [f32],
        rows: usize,
        row_stride: usize,
        offset: usize,
        heads: usize,
        head_stride: usize,
        positions: &[u32],
        inverse: bool,
    ) -> Result<()> {
        let dim = self.config.dim;
        if positions.len() != rows {
            return Err(Error::Shape {
                what: "positions",
                expected: format!("one for each of {rows} rows"),
                got: positions.len().to_string(),
            });
        }
        if rows == 0 || heads == 0 || dim == 0 {
            return Ok(());
        }
        let too_large = || Error::Shape {
            what: "rope rows",
            expected: "a span that fits the address space".into(),
            got: format!("{rows} rows of stride {row_stride}"),
        };
        if heads > 1 && head_stride < dim {
            return Err(Error::Shape {
                what: "rope head stride",
                expected: format!("at least {dim}"),
                got: head_stride.to_string(),
            });
        }
        let row_end = (heads - 1)
            .checked_mul(head_stride)
            .and_then(|v| v.checked_add(offset))
            .and_then(|v| v.checked_add(dim))
            .ok_or_else(too_large)?;
        if rows > 1 && row_stride < row_end {
            return Err(Error::Shape {
                what: "rope row stride",
                expected: format!("at least {row_end}"),
                got: row_stride.to_string(),
            });
        }
        let span = (rows - 1).checked_mul(row_stride).and_then(|v| v.checked_add(row_end)).ok_or_else(too_large)?;
        if x.len() < span {
            return Err(Error::Shape {
                what: "rope rows",
                expected: format!("at least {span} values"),
                got: x.len().to_string(),
            });
        }
        let row_stride = if rows == 1 { row_end } else { row_stride };
        let rows_per_chunk = (ROTATIONS_PER_CHUNK / (heads * dim / 2).max(1)).max(1);
        par::for_each_chunk_mut(&mut x[..span], rows_per_chunk * row_stride, |chunk, part| {
            let mut computed = vec![0.0f32; dim];
            let first = chunk * rows_per_chunk;
            for (row, &position) in part.chunks_mut(row_stride).zip(&positions[first..]) {
                let turn = if (position as usize) < self.positions {
                    &self.values[position as usize * dim..][..dim]
                } else {
                    self.compute(position, &mut computed);
                    &computed[..]
                };
                let (cos, sin) = turn.split_at(dim / 2);
                for head in 0..heads {
                    rotate(&mut row[offset + head * head_stride..][..dim], cos, sin, self.config.interleaved, inverse);
                }
            }
        });
        Ok(())
    }
}

#[inline]
fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], interleaved: bool, inverse: bool) {
    let sign = if inverse { -1.0 } else { 1.0 };
    if interleaved {
        for ((pair, c), s) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (a, b, s) = (pair[0], pair[1], s * sign);
            pair[0] = a * c - b * s;
            pair[1] = b * c + a * s;
        }
    } else {
        let (first, second) = x.split_at_mut(cos.len());
        for (((p, q), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let (a, b, s) = (*p, *q, s * sign);
            *p = a * c - b * s;
            *q = b * c + a * s;
        }
    }
}
