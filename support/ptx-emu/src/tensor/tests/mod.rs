//! Layouts are written here as the manual prints them, element by element; the code under test knows bytes only.

mod accumulation;
mod matrix;
mod mma;
mod wgmma;
mod wmma;

use super::{Accumulator, Multiplicand, Register};
use crate::formats::{Format, Modifiers, Rounding, encode};

/// A small generator (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A matrix of elements: patterns as stored, and their values.
pub(super) struct Matrix {
    pub(super) columns: usize,
    pub(super) patterns: Vec<u32>,
    pub(super) values: Vec<f64>,
}

impl Matrix {
    /// Finite values around 1 in magnitude, some zero and some subnormal; every pattern for integers.
    pub(super) fn random(ty: Multiplicand, rows: usize, columns: usize, random: &mut Random) -> Self {
        let (patterns, values) = (0..rows * columns).map(|_| element(ty, random)).unzip();
        Self { columns, patterns, values }
    }

    pub(super) fn value(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.columns + column]
    }

    pub(super) fn pattern(&self, row: usize, column: usize) -> u32 {
        self.patterns[row * self.columns + column]
    }
}

fn element(ty: Multiplicand, random: &mut Random) -> (u32, f64) {
    let bits = random.next();
    let small = |format: Format, bits: u64| {
        let exponent = (bits >> 32) % 9;
        let value = match bits % 16 {
            0 => 0.0,
            1 => f64::from(2f32.powi(-15)),
            _ => (1.0 + ((bits >> 8) & 0xffff) as f64 / 65536.0) * 2f64.powi(exponent as i32 - 5),
        };
        let value = if bits & 16 == 0 { value } else { -value };
        encode(value, format, Rounding::NearestEven, Modifiers::default())
    };
    match ty {
        Multiplicand::F16 => {
            let p = small(Format::F16, bits);
            (p, half::f16::from_bits(p as u16).to_f64())
        }
        Multiplicand::Bf16 => {
            let p = small(Format::Bf16, bits);
            (p, half::bf16::from_bits(p as u16).to_f64())
        }
        Multiplicand::Tf32 => {
            let p = small(Format::Tf32, bits);
            // What is below the format's fraction must not matter.
            (p | (bits as u32 & 0x1fff), f64::from(f32::from_bits(p)))
        }
        Multiplicand::E4m3 => {
            let p = small(Format::E4m3, bits);
            (p, f64::from(crate::formats::e4m3_to_f32(p as u8)))
        }
        Multiplicand::E5m2 => {
            let p = small(Format::E5m2, bits);
            (p, f64::from(crate::formats::e5m2_to_f32(p as u8)))
        }
        Multiplicand::S8 => (bits as u32 & 0xff, f64::from(bits as i8)),
        Multiplicand::U8 => (bits as u32 & 0xff, f64::from(bits as u8)),
        Multiplicand::S4 => (bits as u32 & 0xf, f64::from((bits as i32) << 28 >> 28)),
        Multiplicand::U4 => (bits as u32 & 0xf, (bits & 0xf) as f64),
    }
}

/// Accumulators: patterns as held in a register (one element each), and values.
pub(super) fn random_accumulators(ty: Accumulator, count: usize, random: &mut Random) -> (Vec<u32>, Vec<f64>) {
    (0..count)
        .map(|_| match ty {
            Accumulator::F16 => {
                let (p, v) = element(Multiplicand::F16, random);
                (p, v)
            }
            Accumulator::F32 => {
                let v = (random.next() as i32 as f32) * 2f32.powi(-28);
                (v.to_bits(), f64::from(v))
            }
            Accumulator::S32 => {
                let v = random.next() as i32 >> random.below(20);
                (v as u32, f64::from(v))
            }
        })
        .unzip()
}

/// What D must be: sums in f32 with `k` ascending from C for floating point, the same bits; exact for integers.
pub(super) fn expected(d: Accumulator, saturate: bool, c: f64, products: impl Iterator<Item = (f64, f64)>) -> u32 {
    match d {
        Accumulator::S32 => {
            let sum = products.fold(c as i64, |s, (x, y)| s + (x * y) as i64);
            if saturate { sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32 } else { sum as u32 }
        }
        Accumulator::F16 | Accumulator::F32 => {
            let sum = products.fold(c as f32, |s, (x, y)| s + (x * y) as f32);
            if d == Accumulator::F32 {
                sum.to_bits()
            } else {
                encode(f64::from(sum), Format::F16, Rounding::NearestEven, Modifiers::default())
            }
        }
    }
}

/// Puts element `i` (of `bits` bits) of a lane into its registers, lowest first.
pub(super) fn put(registers: &mut [Register], bits: usize, lane: usize, i: usize, pattern: u32) {
    let per_register = 32 / bits;
    registers[i / per_register][lane] |= pattern << (bits * (i % per_register));
}

/// Takes it out.
pub(super) fn get(registers: &[Register], bits: usize, lane: usize, i: usize) -> u32 {
    let per_register = 32 / bits;
    let mask = if bits == 32 { u32::MAX } else { (1 << bits) - 1 };
    (registers[i / per_register][lane] >> (bits * (i % per_register))) & mask
}
