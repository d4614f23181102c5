//! What the tensor instructions compute, as functions on plain slices: [`mma`] (`mma.sync`), [`wgmma`] (`wgmma.mma_async`), and
//! [`matrix`] (`ldmatrix`, `stmatrix`, `movmatrix`).
//!
//! Nothing here knows of warps that wait, of memory that may race, or of an instruction's text. A register of a warp is a `[u32; 32]`, one
//! word a lane. Section numbers are those of the PTX ISA 9.0 manual.
//!
//! # Operands as bytes
//!
//! Every fragment layout of the manual is the same picture once elements are counted in bytes. A row of A, and a column of B, is
//! 16 or 32 bytes of consecutive `k`. Lane `l` is in group `g = l / 4` at place `t = l % 4`; each of its registers holds 4 consecutive bytes:
//!
//! - A, register `r`: row `g + 8 * (r % 2)`, bytes `16 * (r / 2) + 4 * t ..+ 4`;
//! - B, register `r`: column `g`, bytes `16 * r + 4 * t ..+ 4`;
//! - accumulators, element `i`: row `g + 8 * (i / 2 % 2)`, column `8 * (i / 4) + 2 * t + i % 2`; an `.f16x2` register holds elements `2r` (low) and
//!   `2r + 1`.
//!
//! So operands travel as byte matrices: A is `[m][row bytes]`, B is `[n][row bytes]` (each column of B is a row here), D is `[m][n]` words. An
//! FP16 accumulator is held as the bits of the `f32` of the same value.
//!
//! # Arithmetic
//!
//! The manual leaves the order, the rounding and the intermediate precision of accumulation open ("at least single precision"); see
//! [`Accumulation`] for the two orders offered. Integer sums wrap, or saturate once, after all products of the step were added exactly,
//! under `.satfinite`. A NaN result is `0x7fff_ffff` (`0x7fff` in FP16).

mod arithmetic;
pub mod matrix;
pub mod mma;
pub mod wgmma;
pub mod wmma;

pub use arithmetic::{HOPPER_FRACTION_BITS, PreparedB, Step};

#[cfg(test)]
mod tests;

use crate::formats::{f16_to_f32, f32_to_f16};

/// A register of a warp: one word a lane.
pub type Register = [u32; 32];

/// Element type of the multiplicands A and B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Multiplicand {
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.tf32`: the lower 13 bits of each word are ignored.
    Tf32,
    /// `.e4m3`
    E4m3,
    /// `.e5m2`
    E5m2,
    /// `.s8`
    S8,
    /// `.u8`
    U8,
    /// `.s4`: two to a byte, the lower half first.
    S4,
    /// `.u4`: two to a byte, the lower half first.
    U4,
}

impl Multiplicand {
    /// Bits of an element.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 16,
            Self::Tf32 => 32,
            Self::E4m3 | Self::E5m2 | Self::S8 | Self::U8 => 8,
            Self::S4 | Self::U4 => 4,
        }
    }

    /// `.e4m3` or `.e5m2`.
    #[must_use]
    pub const fn is_fp8(self) -> bool {
        matches!(self, Self::E4m3 | Self::E5m2)
    }

    /// `.s8`, `.u8`, `.s4` or `.u4`.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::S8 | Self::U8 | Self::S4 | Self::U4)
    }

    /// As PTX writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
            Self::S8 => "s8",
            Self::U8 => "u8",
            Self::S4 => "s4",
            Self::U4 => "u4",
        }
    }
}

/// Element type of the accumulators C and D.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accumulator {
    /// `.f16`, two to a register. Sums are made in `f32` and rounded to the nearest even once an instruction.
    F16,
    /// `.f32`
    F32,
    /// `.s32`
    S32,
}

impl Accumulator {
    /// As PTX writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::S32 => "s32",
        }
    }
}

/// How floating-point products are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Accumulation {
    /// One `f32` addition a product, `k` ascending, starting from the accumulator (from +0 where it is not read). Products of FP8 and FP16
    /// elements are exact in `f32`; those of BF16 and TF32 are too, unless they leave its range, and then are rounded to it.
    #[default]
    Exact,
    /// FP8 products as Hopper's tensor cores add them, see [`HOPPER_FRACTION_BITS`]; other types as [`Accumulation::Exact`].
    Hopper,
}

/// What cannot be computed, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A form that PTX does not define.
    #[error("{instruction} has no form {form}")]
    NoSuchForm {
        /// The instruction.
        instruction: &'static str,
        /// The combination of types, shape and modifiers asked for.
        form: String,
    },
    /// An operand of an instruction has the wrong number of registers.
    #[error("{instruction}: operand {operand} has {got} registers, its type and shape need {expected}")]
    Registers {
        /// The instruction.
        instruction: &'static str,
        /// `a`, `b`, `c` or `d`.
        operand: &'static str,
        /// Registers needed.
        expected: usize,
        /// Registers given.
        got: usize,
    },
    /// A matrix descriptor leads beyond shared memory.
    #[error("operand {operand} reads 16 bytes of shared memory at {address:#x}, which ends at {end:#x}")]
    SharedOutOfBounds {
        /// `A` or `B`.
        operand: &'static str,
        /// First byte of the 16.
        address: u32,
        /// Size of shared memory in bytes.
        end: u32,
    },
    /// A matrix descriptor has a bit set that must be zero.
    #[error("the matrix descriptor {descriptor:#018x} of operand {operand} has reserved bits set: {reserved:#018x}")]
    DescriptorReserved {
        /// `A` or `B`.
        operand: &'static str,
        /// The descriptor.
        descriptor: u64,
        /// Those of its bits that must be zero.
        reserved: u64,
    },
}

/// Lanes that hold one row of a fragment.
const PLACES: usize = 4;

/// Writes the rows of A that a warp's registers hold into a matrix of `row_bytes` a row (16 or 32).
fn a_rows_from_registers(registers: &[Register], row_bytes: usize, rows: &mut [u8]) {
    for (r, register) in registers.iter().enumerate() {
        for (g, words) in register.chunks_exact(PLACES).enumerate() {
            put_words(words, &mut rows[(g + 8 * (r % 2)) * row_bytes + 16 * (r / 2)..][..16]);
        }
    }
}

/// Writes the columns of B that a warp's registers hold into a matrix of `row_bytes` a column (16 or 32).
fn b_rows_from_registers(registers: &[Register], row_bytes: usize, rows: &mut [u8]) {
    for (r, register) in registers.iter().enumerate() {
        for (g, words) in register.chunks_exact(PLACES).enumerate() {
            put_words(words, &mut rows[g * row_bytes + 16 * r..][..16]);
        }
    }
}

fn put_words(words: &[u32], bytes: &mut [u8]) {
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// Where the 8 columns begin that elements `2 * pair` and `2 * pair + 1` of the four lanes of group `g` cover, among a warp's rows of `n`.
const fn pair_place(pair: usize, g: usize, n: usize) -> usize {
    (g + 8 * (pair % 2)) * n + 8 * (pair / 2)
}

/// Reads a warp's accumulator registers into its rows of `n` words: `f32` bits for FP16 and FP32, `i32` bits for S32.
fn accumulators_from_registers(ty: Accumulator, registers: &[Register], n: usize, rows: &mut [u32]) {
    if ty == Accumulator::F16 {
        for (pair, register) in registers.iter().enumerate() {
            for (g, words) in register.chunks_exact(PLACES).enumerate() {
                let row = &mut rows[pair_place(pair, g, n)..][..2 * PLACES];
                for (columns, word) in row.chunks_exact_mut(2).zip(words) {
                    columns[0] = f16_to_f32(*word as u16).to_bits();
                    columns[1] = f16_to_f32((word >> 16) as u16).to_bits();
                }
            }
        }
        return;
    }
    for (pair, two) in registers.chunks_exact(2).enumerate() {
        let lanes = two[0].chunks_exact(PLACES).zip(two[1].chunks_exact(PLACES));
        for (g, (even, odd)) in lanes.enumerate() {
            let row = &mut rows[pair_place(pair, g, n)..][..2 * PLACES];
            for (columns, (even, odd)) in row.chunks_exact_mut(2).zip(even.iter().zip(odd)) {
                columns[0] = *even;
                columns[1] = *odd;
            }
        }
    }
}

/// The reverse of [`accumulators_from_registers`]: rounds to the type and makes NaN canonical.
fn accumulators_to_registers(ty: Accumulator, rows: &[u32], n: usize, registers: &mut [Register]) {
    if ty == Accumulator::F16 {
        let half = |bits: u32| u32::from(f32_to_f16(f32::from_bits(bits)));
        for (pair, register) in registers.iter_mut().enumerate() {
            for (g, words) in register.chunks_exact_mut(PLACES).enumerate() {
                let row = &rows[pair_place(pair, g, n)..][..2 * PLACES];
                for (columns, word) in row.chunks_exact(2).zip(words) {
                    *word = half(columns[0]) | half(columns[1]) << 16;
                }
            }
        }
        return;
    }
    let canonical = |bits: u32| {
        let nan = ty == Accumulator::F32 && bits & 0x7fff_ffff > 0x7f80_0000;
        if nan { 0x7fff_ffff } else { bits }
    };
    for (pair, two) in registers.chunks_exact_mut(2).enumerate() {
        let (first, second) = two.split_at_mut(1);
        let lanes = first[0].chunks_exact_mut(PLACES).zip(second[0].chunks_exact_mut(PLACES));
        for (g, (even, odd)) in lanes.enumerate() {
            let row = &rows[pair_place(pair, g, n)..][..2 * PLACES];
            for (columns, (even, odd)) in row.chunks_exact(2).zip(even.iter_mut().zip(odd)) {
                *even = canonical(columns[0]);
                *odd = canonical(columns[1]);
            }
        }
    }
}
