//! `wmma.load`, `wmma.mma`, `wmma.store` (section 9.7.14.4): which register holds what, and the product.
//!
//! The manual leaves the place of elements in a fragment open. Here element `i` of lane `l` is number `l * elements_per_lane + i` of the matrix in
//! row-major order (column-major for B), whatever the layout in memory; where a fragment has more room than the matrix, as FP16's A and B do,
//! the matrix is repeated. The F64 fragments are those of `mma.sync`.

use super::{Accumulation, Accumulator, Error, Multiplicand, Register, Step};
use crate::formats::{f16_to_f32, f32_to_f16};

const INSTRUCTION: &str = "wmma";

/// Which matrix a fragment is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Matrix {
    /// A, `[m][k]`
    A,
    /// B, `[k][n]`
    B,
    /// C and D, `[m][n]`
    C,
}

/// Element type of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// Of A and B.
    Multiplicand(Multiplicand),
    /// Of C and D.
    Accumulator(Accumulator),
    /// `.f64`, of all.
    F64,
}

impl Element {
    /// Bits of an element.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::Multiplicand(ty) => ty.bits(),
            Self::Accumulator(Accumulator::F16) => 16,
            Self::Accumulator(Accumulator::F32 | Accumulator::S32) => 32,
            Self::F64 => 64,
        }
    }
}

/// A fragment: how a matrix is spread over the registers of a warp, in units of whole bytes (an element, or two 4-bit ones).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fragment {
    matrix: Matrix,
    /// Of the matrix, in units; 4-bit elements lie side by side along `k`.
    rows: usize,
    columns: usize,
    unit_bytes: usize,
    registers: usize,
    register_bytes: usize,
}

impl Fragment {
    /// The fragment of a matrix of `wmma.*.m{m}n{n}k{k}`.
    ///
    /// # Errors
    /// [`Error::NoSuchForm`].
    pub fn new(matrix: Matrix, shape: (usize, usize, usize), element: Element) -> Result<Self, Error> {
        use Multiplicand as M;
        let (m, n, k) = shape;
        let wide = matches!(shape, (16, 16, 16) | (8, 32, 16) | (32, 8, 16));
        let legal = match element {
            Element::Multiplicand(M::F16 | M::Bf16 | M::S8 | M::U8) => matrix != Matrix::C && wide,
            Element::Multiplicand(M::Tf32) => matrix != Matrix::C && shape == (16, 16, 8),
            Element::Multiplicand(M::S4 | M::U4) => matrix != Matrix::C && shape == (8, 8, 32),
            Element::Multiplicand(M::E4m3 | M::E5m2) => false,
            Element::Accumulator(Accumulator::F16) => matrix == Matrix::C && wide,
            Element::Accumulator(Accumulator::F32) => matrix == Matrix::C && (wide || shape == (16, 16, 8)),
            Element::Accumulator(Accumulator::S32) => matrix == Matrix::C && (wide || shape == (8, 8, 32)),
            Element::F64 => shape == (8, 8, 4),
        };
        if !legal {
            let form = format!("m{m}n{n}k{k} with {matrix:?} of {element:?}");
            return Err(Error::NoSuchForm { instruction: INSTRUCTION, form });
        }
        let packed = if element.bits() == 4 { 2 } else { 1 };
        let (rows, columns) = match matrix {
            Matrix::A => (m, k / packed),
            Matrix::B => (k / packed, n),
            Matrix::C => (m, n),
        };
        let unit_bytes = element.bits() * packed / 8;
        let register_bytes = if element == Element::F64 { 8 } else { 4 };
        let registers = match element {
            Element::Multiplicand(M::F16) => 8,
            _ => rows * columns * unit_bytes / 32 / register_bytes,
        };
        Ok(Self { matrix, rows, columns, unit_bytes, registers, register_bytes })
    }

    /// Registers a thread.
    #[must_use]
    pub const fn registers(&self) -> usize {
        self.registers
    }

    /// Bytes of a unit: an element, or two of 4 bits.
    #[must_use]
    pub const fn unit_bytes(&self) -> usize {
        self.unit_bytes
    }

    /// Units of the matrix.
    #[must_use]
    pub const fn units(&self) -> usize {
        self.rows * self.columns
    }

    /// Row and column of unit `index` (column-major for B).
    #[must_use]
    pub const fn place(&self, index: usize) -> (usize, usize) {
        match self.matrix {
            Matrix::B => (index % self.rows, index / self.rows),
            _ => (index / self.columns, index % self.columns),
        }
    }

    /// Byte offset in memory of unit `index`, with `stride` elements from one row (or column, when `column_major`) to the next; `stride` counts
    /// 4-bit elements in pairs of two.
    #[must_use]
    pub const fn offset(&self, index: usize, stride: u64, column_major: bool) -> u64 {
        let (row, column) = self.place(index);
        let (major, minor) = if column_major { (column, row) } else { (row, column) };
        (major as u64).wrapping_mul(stride).wrapping_add(minor as u64).wrapping_mul(self.unit_bytes as u64)
    }

    /// The stride of a matrix that lies densely, in units: what a form without stride means.
    #[must_use]
    pub const fn dense_stride(&self, column_major: bool) -> u64 {
        (if column_major { self.rows } else { self.columns }) as u64
    }

    /// The registers that hold a matrix, given its units in order of their index.
    #[must_use]
    pub fn pack(&self, units: &[u64]) -> Vec<[u64; 32]> {
        let mut registers = vec![[0; 32]; self.registers];
        let per_register = self.register_bytes / self.unit_bytes;
        let per_lane = self.registers * per_register;
        for (r, register) in registers.iter_mut().enumerate() {
            for (lane, word) in register.iter_mut().enumerate() {
                for j in 0..per_register {
                    let index = (lane * per_lane + r * per_register + j) % self.units();
                    *word |= units.get(index).copied().unwrap_or(0) << (8 * self.unit_bytes * j);
                }
            }
        }
        registers
    }

    /// The units of a matrix in order of their index, given the registers that hold it: the reverse of [`Self::pack`].
    ///
    /// # Errors
    /// [`Error::Registers`].
    pub fn unpack(&self, registers: &[[u64; 32]]) -> Result<Vec<u64>, Error> {
        if registers.len() != self.registers {
            let operand = match self.matrix {
                Matrix::A => "a",
                Matrix::B => "b",
                Matrix::C => "c",
            };
            let (expected, got) = (self.registers, registers.len());
            return Err(Error::Registers { instruction: INSTRUCTION, operand, expected, got });
        }
        let per_register = self.register_bytes / self.unit_bytes;
        let per_lane = self.registers * per_register;
        let mask = u64::MAX >> (64 - 8 * self.unit_bytes);
        Ok((0..self.units())
            .map(|index| {
                let (lane, i) = (index / per_lane, index % per_lane);
                registers[i / per_register][lane] >> (8 * self.unit_bytes * (i % per_register)) & mask
            })
            .collect())
    }
}

/// A form of `wmma.mma`, F64 excepted (which is `mma.sync`'s [`super::mma::f64`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wmma {
    shape: (usize, usize, usize),
    types: (Multiplicand, Multiplicand),
    accumulators: (Accumulator, Accumulator),
    saturate: bool,
    a: Fragment,
    b: Fragment,
    c: Fragment,
    d: Fragment,
}

impl Wmma {
    /// `wmma.mma.sync.aligned.*.m{m}n{n}k{k}.d.a.b.c{.satfinite}`.
    ///
    /// # Errors
    /// [`Error::NoSuchForm`].
    pub fn new(
        shape: (usize, usize, usize),
        d: Accumulator,
        a: Multiplicand,
        b: Multiplicand,
        c: Accumulator,
        saturate: bool,
    ) -> Result<Self, Error> {
        use Accumulator::{F16, F32, S32};
        let accumulators = match a {
            Multiplicand::F16 => matches!(d, F16 | F32) && matches!(c, F16 | F32),
            _ if a.is_integer() => (d, c) == (S32, S32),
            _ => (d, c) == (F32, F32),
        };
        if a != b || !accumulators || saturate && !a.is_integer() {
            let (m, n, k) = shape;
            let satfinite = if saturate { ".satfinite" } else { "" };
            let form = format!("m{m}n{n}k{k}.{}.{}.{}.{}{satfinite}", d.name(), a.name(), b.name(), c.name());
            return Err(Error::NoSuchForm { instruction: INSTRUCTION, form });
        }
        Ok(Self {
            shape,
            types: (a, b),
            accumulators: (d, c),
            saturate,
            a: Fragment::new(Matrix::A, shape, Element::Multiplicand(a))?,
            b: Fragment::new(Matrix::B, shape, Element::Multiplicand(b))?,
            c: Fragment::new(Matrix::C, shape, Element::Accumulator(c))?,
            d: Fragment::new(Matrix::C, shape, Element::Accumulator(d))?,
        })
    }

    /// Fragments of A, B, C and D.
    #[must_use]
    pub const fn fragments(&self) -> [&Fragment; 4] {
        [&self.a, &self.b, &self.c, &self.d]
    }

    /// `D = A * B + C`; the registers of D.
    ///
    /// # Errors
    /// [`Error::Registers`] when an operand has not the number of registers it needs.
    pub fn run(&self, a: &[Register], b: &[Register], c: &[Register]) -> Result<Vec<Register>, Error> {
        let wide = |registers: &[Register]| -> Vec<[u64; 32]> { registers.iter().map(|r| r.map(u64::from)).collect() };
        // Units in order of their index are rows of A and columns of B.
        let bytes = |fragment: &Fragment, units: &[u64]| -> Vec<u8> {
            units.iter().flat_map(|unit| unit.to_le_bytes()[..fragment.unit_bytes].to_vec()).collect()
        };
        let a = bytes(&self.a, &self.a.unpack(&wide(a))?);
        let b = bytes(&self.b, &self.b.unpack(&wide(b))?);
        let half = |unit: u64| f16_to_f32(unit as u16).to_bits();
        let mut d: Vec<u32> = self.c.unpack(&wide(c))?.into_iter().map(|unit| unit as u32).collect();
        if self.accumulators.1 == Accumulator::F16 {
            d.iter_mut().for_each(|word| *word = half(u64::from(*word)));
        }
        let (m, n, k) = self.shape;
        let step = Step {
            m,
            n,
            row_bytes: k * self.types.0.bits() / 8,
            a: self.types.0,
            b: self.types.1,
            d: self.accumulators.0,
            read_d: true,
            negate: false,
            saturate: self.saturate,
            accumulation: Accumulation::Exact,
        };
        step.run(&a, &b, &mut d);
        let result: Vec<u64> = d
            .into_iter()
            .map(|bits| match self.accumulators.0 {
                Accumulator::F16 => u64::from(f32_to_f16(f32::from_bits(bits))),
                Accumulator::F32 if bits & 0x7fff_ffff > 0x7f80_0000 => 0x7fff_ffff,
                Accumulator::F32 | Accumulator::S32 => u64::from(bits),
            })
            .collect();
        Ok(self.d.pack(&result).into_iter().map(|register| register.map(|word| word as u32)).collect())
    }
}
