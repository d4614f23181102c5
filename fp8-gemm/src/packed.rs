//! Right operands in the order the kernels read them.
//!
//! The columns are cut into panels of 32; a panel holds its 32 values for each k in turn, in the operand's own format, so that a
//! stretch of k decodes as one contiguous run. The layout is the same for every instruction set.

use crate::cpu::PANEL;
use crate::error::{Error, Result};
use crate::operand::Operand;
use crate::scaled::{BLOCK, Block, BlockScaledRef};
use v3_numerics::gemm::PackedB;
use v3_numerics::view::MatRef;
use v3_numerics::{E4M3, bf16, convert, par};

/// A right operand `[k, n]`, packed once and used many times.
#[derive(Debug, Clone)]
pub struct Packed {
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) panels: Panels,
}

#[derive(Debug, Clone)]
pub(crate) enum Panels {
    F32(PackedB),
    Bf16(Vec<bf16>),
    /// Codes, and the scales of a panel's columns for each 128 along k: `[panel, ceil(k / 128), 32]`.
    Fp8(Vec<E4M3>, Vec<f32>),
}

impl Packed {
    /// Packs `b` `[k, n]`. For weights stored `[out, in]` pass their transposed view.
    pub fn new(b: Operand<'_>) -> Result<Packed> {
        let (k, n) = (b.rows(), b.cols());
        let panels = match b {
            Operand::F32(b) => Panels::F32(PackedB::new(b)),
            Operand::Bf16(b) => Panels::Bf16(pack_panels(b, |row, out| out.copy_from_slice(row), |x| x)),
            Operand::RoundedToBf16(b) => {
                // Lengths agree: both are parts of the same row.
                let convert = |row: &[f32], out: &mut [bf16]| convert::f32_to_bf16(row, out).expect("equal lengths");
                Panels::Bf16(pack_panels(b, convert, bf16::from_f32))
            }
            Operand::Fp8(b) => {
                if b.block() == Block::Row128 {
                    return Err(Error::Unsupported {
                        what: "right operand",
                        expected: "scales that change every 128 along k: 128x1 or 128x128 blocks",
                        got: "1x128 blocks".into(),
                    });
                }
                Panels::Fp8(pack_panels(b.data(), |row, out| out.copy_from_slice(row), |x| x), pack_scales(b))
            }
            Operand::QuantizedRows(..) => {
                return Err(Error::Unsupported {
                    what: "right operand",
                    expected: "f32, bf16, or codes with scales",
                    got: b.kind().into(),
                });
            }
        };
        Ok(Packed { k, n, panels })
    }

    /// The number of rows, the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }
    /// The number of columns.
    pub fn n(&self) -> usize {
        self.n
    }
    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(b) => b.bytes(),
            Panels::Bf16(b) => 2 * b.len(),
            Panels::Fp8(b, scales) => b.len() + 4 * scales.len(),
        }
    }
    /// The precision of its values: `f32`, `bf16` or `fp8`.
    pub fn kind(&self) -> &'static str {
        match &self.panels {
            Panels::F32(_) => "f32",
            Panels::Bf16(_) => "bf16",
            Panels::Fp8(..) => "fp8",
        }
    }
}

/// Panels of `b`, with zeros in the columns that the last lacks.
fn pack_panels<S: Copy + Sync, T: Copy + Default + Send>(
    b: MatRef<'_, S>,
    convert_row: impl Fn(&[S], &mut [T]) + Sync + Send,
    convert: impl Fn(S) -> T + Sync + Send,
) -> Vec<T> {
    let (k, n) = (b.rows(), b.cols());
    let mut data = vec![T::default(); n.div_ceil(PANEL) * k * PANEL];
    if data.is_empty() {
        return data;
    }
    par::for_each_chunk_mut(&mut data, k * PANEL, |panel, data| {
        let first = panel * PANEL;
        let width = (n - first).min(PANEL);
        if b.has_contiguous_rows() {
            for (p, out) in data.chunks_exact_mut(PANEL).enumerate() {
                convert_row(&b.row(p)[first..first + width], &mut out[..width]);
            }
        } else if b.t().has_contiguous_rows() {
            // Transposing in short stretches of k keeps the panel's lines in the first cache.
            for p0 in (0..k).step_by(BLOCK) {
                let stretch = p0..(p0 + BLOCK).min(k);
                for j in 0..width {
                    let column = &b.t().row(first + j)[stretch.clone()];
                    for (out, x) in data[p0 * PANEL..].chunks_exact_mut(PANEL).zip(column) {
                        out[j] = convert(*x);
                    }
                }
            }
        } else {
            for (p, out) in data.chunks_exact_mut(PANEL).enumerate() {
                for (j, out) in out[..width].iter_mut().enumerate() {
                    *out = convert(*b.at(p, first + j));
                }
            }
        }
    });
    data
}

fn pack_scales(b: BlockScaledRef<'_>) -> Vec<f32> {
    let (k, n) = (b.rows(), b.cols());
    let blocks = k.div_ceil(BLOCK);
    let mut scales = vec![0.0; n.div_ceil(PANEL) * blocks * PANEL];
    for (i, scales) in scales.chunks_exact_mut(PANEL).enumerate() {
        let (panel, block) = (i / blocks, i % blocks);
        let first = panel * PANEL;
        let width = (n - first).min(PANEL);
        for (j, scale) in scales[..width].iter_mut().enumerate() {
            *scale = b.scale_at(block * BLOCK, first + j);
        }
    }
    scales
}
