//! `mma.sync.aligned` (section 9.7.14.5): shapes `m16n8k*` and the integer `m8n8k*`, row-major A by column-major B; and of F64.
//!
//! Not here: the `m8n8k4` of FP16 (four products a warp, for `sm_70`), single bits, block scales, and the types of `sm_100` and later.

use super::{Accumulation, Accumulator, Error, Multiplicand, Register, Step};
use super::{a_rows_from_registers, accumulators_from_registers, accumulators_to_registers, b_rows_from_registers};

const INSTRUCTION: &str = "mma.sync";

/// A form of `mma.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mma {
    m: usize,
    row_bytes: usize,
    d: Accumulator,
    a: Multiplicand,
    b: Multiplicand,
    saturate: bool,
}

impl Mma {
    /// The form `mma.sync.aligned.m{m}n{n}k{k}.row.col{.satfinite}.d.a.b.d`.
    ///
    /// # Errors
    /// [`Error::NoSuchForm`] when the manual's syntax does not have it (C and D of one type, as every shape here needs).
    pub fn new(
        (m, n, k): (usize, usize, usize),
        d: Accumulator,
        a: Multiplicand,
        b: Multiplicand,
        saturate: bool,
    ) -> Result<Self, Error> {
        use Accumulator::{F16, F32, S32};
        use Multiplicand as M;
        let legal = n == 8
            && match (a, b) {
                (M::F16, M::F16) => m == 16 && matches!(k, 8 | 16) && matches!(d, F16 | F32) && !saturate,
                (M::Bf16, M::Bf16) => m == 16 && matches!(k, 8 | 16) && d == F32 && !saturate,
                (M::Tf32, M::Tf32) => m == 16 && matches!(k, 4 | 8) && d == F32 && !saturate,
                (M::E4m3 | M::E5m2, M::E4m3 | M::E5m2) => m == 16 && matches!(k, 16 | 32) && matches!(d, F16 | F32) && !saturate,
                (M::S8 | M::U8, M::S8 | M::U8) => d == S32 && matches!((m, k), (8, 16) | (16, 16) | (16, 32)),
                (M::S4 | M::U4, M::S4 | M::U4) => d == S32 && matches!((m, k), (8, 32) | (16, 32) | (16, 64)),
                _ => false,
            };
        if !legal {
            let satfinite = if saturate { ".satfinite" } else { "" };
            let (a, b, d) = (a.name(), b.name(), d.name());
            return Err(Error::NoSuchForm {
                instruction: INSTRUCTION,
                form: format!("m{m}n{n}k{k}.row.col{satfinite}.{d}.{a}.{b}.{d}"),
            });
        }
        Ok(Self { m, row_bytes: k * a.bits() / 8, d, a, b, saturate })
    }

    /// Registers of A.
    #[must_use]
    pub const fn a_registers(&self) -> usize {
        self.m / 8 * self.row_bytes / 16
    }

    /// Registers of B.
    #[must_use]
    pub const fn b_registers(&self) -> usize {
        self.row_bytes / 16
    }

    /// Registers of C, and of D.
    #[must_use]
    pub const fn d_registers(&self) -> usize {
        let elements = self.m / 4;
        if matches!(self.d, Accumulator::F16) { elements / 2 } else { elements }
    }

    /// `D = A * B + C`.
    ///
    /// # Errors
    /// [`Error::Registers`] when an operand has not the number of registers it needs.
    pub fn run(
        &self,
        a: &[Register],
        b: &[Register],
        c: &[Register],
        d: &mut [Register],
        accumulation: Accumulation,
    ) -> Result<(), Error> {
        let counts = [
            ("a", self.a_registers(), a.len()),
            ("b", self.b_registers(), b.len()),
            ("c", self.d_registers(), c.len()),
            ("d", self.d_registers(), d.len()),
        ];
        for (operand, expected, got) in counts {
            if expected != got {
                return Err(Error::Registers { instruction: INSTRUCTION, operand, expected, got });
            }
        }
        let mut a_rows = [0; 16 * 32];
        a_rows_from_registers(a, self.row_bytes, &mut a_rows);
        let mut b_rows = [0; 8 * 32];
        b_rows_from_registers(b, self.row_bytes, &mut b_rows);
        let mut rows = [0; 16 * 8];
        accumulators_from_registers(self.d, c, 8, &mut rows);
        let step = Step {
            m: self.m,
            n: 8,
            row_bytes: self.row_bytes,
            a: self.a,
            b: self.b,
            d: self.d,
            read_d: true,
            negate: false,
            saturate: self.saturate,
            accumulation,
        };
        step.run(&a_rows, &b_rows, &mut rows);
        accumulators_to_registers(self.d, &rows, 8, d);
        Ok(())
    }
}

/// A register of 64 bits of a warp.
pub type WideRegister = [u64; 32];

/// Whether there is an F64 form of this shape.
#[must_use]
pub const fn has_f64(shape: (usize, usize, usize)) -> bool {
    matches!(shape, (8, 8, 4) | (16, 8, 4 | 8 | 16))
}

/// `mma.sync.aligned.m{m}n{n}k{k}.row.col.f64.f64.f64.f64{.rn}`: a chain of fused multiply-adds, `k` ascending from C.
///
/// Shapes `m8n8k4`, `m16n8k4`, `m16n8k8`, `m16n8k16`. A needs `m / 8 * k / 4` registers, B `k / 4`, C and D `m / 4`. Element `r` of A is at row
/// `g + 8 * (r % 2)` (`g` for `m8`), column `4 * (r / 2) + t` (`t`); element `r` of B at row `4 * r + t`, column `g`.
///
/// # Errors
/// [`Error::NoSuchForm`] for another shape, [`Error::Registers`] when an operand has not the number of registers it needs.
pub fn f64(
    (m, n, k): (usize, usize, usize),
    a: &[WideRegister],
    b: &[WideRegister],
    c: &[WideRegister],
    d: &mut [WideRegister],
) -> Result<(), Error> {
    if !has_f64((m, n, k)) {
        return Err(Error::NoSuchForm { instruction: INSTRUCTION, form: format!("m{m}n{n}k{k}.row.col.f64.f64.f64.f64") });
    }
    let halves = m / 8;
    let counts = [("a", halves * k / 4, a.len()), ("b", k / 4, b.len()), ("c", m / 4, c.len()), ("d", m / 4, d.len())];
    for (operand, expected, got) in counts {
        if expected != got {
            return Err(Error::Registers { instruction: INSTRUCTION, operand, expected, got });
        }
    }
    for (i, register) in d.iter_mut().enumerate() {
        for (lane, word) in register.iter_mut().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            let (half, column) = (i / 2, 2 * t + i % 2);
            let sum = (0..k).fold(f64::from_bits(c[i][lane]), |sum, at| {
                let x = f64::from_bits(a[half + halves * (at / 4)][4 * g + at % 4]);
                let y = f64::from_bits(b[at / 4][4 * column + at % 4]);
                x.mul_add(y, sum)
            });
            *word = if sum.is_nan() { 0x7fff_ffff_ffff_ffff } else { sum.to_bits() };
        }
    }
    Ok(())
}
