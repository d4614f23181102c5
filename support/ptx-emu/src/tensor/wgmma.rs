//! `wgmma.mma_async` (section 9.7.15.5): matrix descriptors, the layouts of operands in shared memory, and the product.
//!
//! # Shared memory layouts
//!
//! In units of 16 bytes (`T` elements), with `S` the width of the swizzle in bytes, section 9.7.15.5.1.2.1.3 gives the place of row
//! `r` of A (or column `r` of B) and `k` in an operand that starts at `start`:
//!
//! | major | swizzle | address of the 16 bytes that hold (`r`, `k`) |
//! |---|---|---|
//! | K | none | `start + r / 8 * SBO + r % 8 * 16 + k / T * LBO` |
//! | K | `S` | `start + r / 8 * SBO + r % 8 * S + k / T * 16` |
//! | MN | none | `start + r / T * SBO + k % 8 * 16 + k / 8 * LBO` |
//! | MN | `S` | `start + r / T % (S / 16) * 16 + r / T / (S / 16) * LBO + k % 8 * S + k / 8 * SBO` |
//!
//! The swizzle then exchanges 16-byte places within `S` bytes by the number of the 128-byte line they are in: `address ^= (address / 128 - base
//! offset) % (S / 16) * 16`. The lines are counted on the absolute shared address, so a start address that was advanced inside a pattern
//! needs no correction; a pattern that itself starts off its boundary has `base offset = start / 128 % 8` in its descriptor. (The manual gives
//! that formula for the field, not how the hardware uses it; subtracting it is what makes the canonical layouts hold from such a start.)

use std::ops::Range;

use super::{Accumulation, Accumulator, Error, Multiplicand, PreparedB, Register, Step};
use super::{a_rows_from_registers, accumulators_from_registers, accumulators_to_registers};

const INSTRUCTION: &str = "wgmma.mma_async";

/// Bytes of a row of A or a column of B that one instruction reads, whatever the type.
pub const ROW_BYTES: usize = 32;

/// Rows of A and D.
pub const ROWS: usize = 64;

/// Rows of A and D that belong to one of the four warps.
pub const WARP_ROWS: usize = 16;

/// A warp's rows of A, `[16][32 bytes]`.
pub type WarpRows = [u8; WARP_ROWS * ROW_BYTES];

/// Swizzle of an operand in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// No swizzle.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

impl Swizzle {
    /// Width in bytes; 16 without a swizzle.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::None => 16,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }
}

/// A matrix descriptor (section 9.7.15.5.1.2.2), all fields in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Shared address of the first element, a multiple of 16 below 2^18.
    pub start: u32,
    /// LBO, a multiple of 16 below 2^18.
    pub leading_byte_offset: u32,
    /// SBO, a multiple of 16 below 2^18.
    pub stride_byte_offset: u32,
    /// 0 to 7.
    pub base_offset: u32,
    /// Swizzle.
    pub swizzle: Swizzle,
}

impl Descriptor {
    const RESERVED: u64 = 0x3ff1_c000_c000_c000;

    /// Splits a descriptor; `operand` (`A`, `B`) is for the report.
    ///
    /// # Errors
    /// [`Error::DescriptorReserved`] when a bit outside the fields is set.
    pub fn decode(bits: u64, operand: &'static str) -> Result<Self, Error> {
        let reserved = bits & Self::RESERVED;
        if reserved != 0 {
            return Err(Error::DescriptorReserved { operand, descriptor: bits, reserved });
        }
        let field = |shift: u32| ((bits >> shift) as u32 & 0x3fff) << 4;
        Ok(Self {
            start: field(0),
            leading_byte_offset: field(16),
            stride_byte_offset: field(32),
            base_offset: (bits >> 49) as u32 & 7,
            swizzle: match bits >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::B128,
                2 => Swizzle::B64,
                _ => Swizzle::B32,
            },
        })
    }

    /// The descriptor's bits; addresses and offsets are cut to their fields as the manual's `matrix-descriptor-encode` does.
    #[must_use]
    pub const fn encode(&self) -> u64 {
        const fn field(bytes: u32) -> u64 {
            ((bytes & 0x3ffff) >> 4) as u64
        }
        let swizzle = match self.swizzle {
            Swizzle::None => 0u64,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        field(self.start)
            | field(self.leading_byte_offset) << 16
            | field(self.stride_byte_offset) << 32
            | ((self.base_offset & 7) as u64) << 49
            | swizzle << 62
    }

    /// The swizzle of an address.
    const fn swizzled(&self, address: u32) -> u32 {
        match self.swizzle {
            Swizzle::None => address,
            _ => address ^ (((address >> 7).wrapping_sub(self.base_offset) % (self.swizzle.bytes() / 16)) << 4),
        }
    }

    /// Address of the 16 bytes that hold row `r`, 16-byte place `c` of `k`, of a K-major operand.
    const fn k_major(&self, r: u32, c: u32) -> u32 {
        let (group, row) = (r / 8 * self.stride_byte_offset, r % 8);
        match self.swizzle {
            Swizzle::None => self.start + group + row * 16 + c * self.leading_byte_offset,
            _ => self.swizzled(self.start + group + row * self.swizzle.bytes() + c * 16),
        }
    }

    /// Address of the 16 bytes that hold place `j` of the rows (`r / T`) at `k`, of an MN-major operand.
    const fn mn_major(&self, j: u32, k: u32) -> u32 {
        let width = self.swizzle.bytes() / 16;
        match self.swizzle {
            Swizzle::None => self.start + j * self.stride_byte_offset + k % 8 * 16 + k / 8 * self.leading_byte_offset,
            _ => {
                let repeat = j / width * self.leading_byte_offset + k / 8 * self.stride_byte_offset;
                self.swizzled(self.start + repeat + j % width * 16 + k % 8 * self.swizzle.bytes())
            }
        }
    }
}

/// The modifiers and immediate operands of a `wgmma.mma_async`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Form {
    /// Columns of B and D: `m64n{n}`.
    pub n: usize,
    /// Elements of `k`: the last number of the shape.
    pub k: usize,
    /// Type of D.
    pub d: Accumulator,
    /// Type of A.
    pub a: Multiplicand,
    /// Type of B.
    pub b: Multiplicand,
    /// Whether A comes from registers.
    pub a_in_registers: bool,
    /// `imm-scale-a` is -1.
    pub negate_a: bool,
    /// `imm-scale-b` is -1.
    pub negate_b: bool,
    /// `imm-trans-a` is 1: A is M-major.
    pub transpose_a: bool,
    /// `imm-trans-b` is 1: B is N-major.
    pub transpose_b: bool,
    /// `.satfinite`.
    pub saturate: bool,
}

/// A legal form of `wgmma.mma_async`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wgmma {
    form: Form,
}

impl Wgmma {
    /// Checks a form against the manual's syntax.
    ///
    /// For integers `n` is 8, 16, 24, 32 or a multiple of 16 up to 256 (section 9.7.15.5.1.1.3); else any multiple of 8 up to 256.
    ///
    /// # Errors
    /// [`Error::NoSuchForm`], with what was asked for.
    pub fn new(form: Form) -> Result<Self, Error> {
        use Accumulator::{F16, F32, S32};
        use Multiplicand as M;
        let types = match (form.a, form.b) {
            (M::F16, M::F16) => form.k == 16 && matches!(form.d, F16 | F32),
            (M::Bf16, M::Bf16) => form.k == 16 && form.d == F32,
            (M::Tf32, M::Tf32) => form.k == 8 && form.d == F32,
            (M::E4m3 | M::E5m2, M::E4m3 | M::E5m2) => form.k == 32 && matches!(form.d, F16 | F32),
            (M::S8 | M::U8, M::S8 | M::U8) => form.k == 32 && form.d == S32,
            _ => false,
        };
        let integer = form.a.is_integer();
        let columns =
            matches!(form.n, 8..=256) && form.n.is_multiple_of(8) && (!integer || form.n <= 32 || form.n.is_multiple_of(16));
        let transposes = !(form.transpose_a || form.transpose_b) || form.a.bits() == 16;
        let signs = !(integer && (form.negate_a || form.negate_b));
        let a_transpose = !(form.a_in_registers && form.transpose_a);
        if !(types && columns && transposes && signs && a_transpose && (integer || !form.saturate)) {
            let modifiers = [
                (form.saturate, ", .satfinite"),
                (form.a_in_registers, ", A in registers"),
                (form.negate_a, ", imm-scale-a -1"),
                (form.negate_b, ", imm-scale-b -1"),
                (form.transpose_a, ", imm-trans-a 1"),
                (form.transpose_b, ", imm-trans-b 1"),
            ];
            let modifiers: String = modifiers.iter().filter(|m| m.0).map(|m| m.1).collect();
            let Form { n, k, d, a, b, .. } = form;
            return Err(Error::NoSuchForm {
                instruction: INSTRUCTION,
                form: format!("m64n{n}k{k}.{}.{}.{}{modifiers}", d.name(), a.name(), b.name()),
            });
        }
        Ok(Self { form })
    }

    /// The form.
    #[must_use]
    pub const fn form(&self) -> &Form {
        &self.form
    }

    /// Registers a thread of D.
    #[must_use]
    pub const fn d_registers(&self) -> usize {
        if matches!(self.form.d, Accumulator::F16) { self.form.n / 4 } else { self.form.n / 2 }
    }

    /// Registers a thread of A, where it is in registers.
    #[must_use]
    pub const fn a_registers(&self) -> usize {
        4
    }

    /// Reads the 16 rows of A that belong to `warp` (0 to 3 in its warpgroup), `[16][32 bytes]`, through its descriptor; `shared` is indexed by
    /// shared address.
    ///
    /// # Errors
    /// [`Error::SharedOutOfBounds`], [`Error::DescriptorReserved`].
    pub fn a_from_shared(&self, warp: usize, shared: &[u8], descriptor: u64, a: &mut WarpRows) -> Result<(), Error> {
        gather("A", shared, Descriptor::decode(descriptor, "A")?, self.form.transpose_a, first_row(warp), a)
    }

    /// Reads B, `[n][32 bytes]` (a column of B is a row here), through its descriptor; `shared` is indexed by shared address.
    ///
    /// # Errors
    /// [`Error::SharedOutOfBounds`], [`Error::DescriptorReserved`].
    pub fn b_from_shared(&self, shared: &[u8], descriptor: u64, b: &mut Vec<u8>) -> Result<(), Error> {
        b.resize(self.form.n * ROW_BYTES, 0);
        gather("B", shared, Descriptor::decode(descriptor, "B")?, self.form.transpose_b, 0, b)
    }

    /// The bytes of shared memory that a warp reads through A's descriptor: sorted, disjoint, neighbours merged.
    ///
    /// # Errors
    /// [`Error::DescriptorReserved`].
    pub fn a_ranges(&self, warp: usize, descriptor: u64) -> Result<Vec<Range<u32>>, Error> {
        let first = first_row(warp);
        Ok(ranges(Descriptor::decode(descriptor, "A")?, self.form.transpose_a, first..first + WARP_ROWS as u32))
    }

    /// The bytes of shared memory that B's descriptor leads to: sorted, disjoint, neighbours merged.
    ///
    /// # Errors
    /// [`Error::DescriptorReserved`].
    pub fn b_ranges(&self, descriptor: u64) -> Result<Vec<Range<u32>>, Error> {
        Ok(ranges(Descriptor::decode(descriptor, "B")?, self.form.transpose_b, 0..self.form.n as u32))
    }

    /// Reads the 16 rows of A that a warp holds in registers.
    ///
    /// # Errors
    /// [`Error::Registers`] when `registers` are not 4.
    pub fn a_from_registers(&self, registers: &[Register], a: &mut WarpRows) -> Result<(), Error> {
        self.count("a", registers.len(), self.a_registers())?;
        a_rows_from_registers(registers, ROW_BYTES, a);
        Ok(())
    }

    /// Reads the rows of D that a warp holds into `d`, `[16][n]` words.
    ///
    /// # Errors
    /// [`Error::Registers`] when `registers` are not [`Self::d_registers`], or `d` not 16 n words.
    pub fn d_from_registers(&self, registers: &[Register], d: &mut [u32]) -> Result<(), Error> {
        self.count("d", registers.len(), self.d_registers())?;
        self.count("d", d.len(), WARP_ROWS * self.form.n)?;
        accumulators_from_registers(self.form.d, registers, self.form.n, d);
        Ok(())
    }

    /// Writes a warp's rows of D into its registers, rounded to the type.
    ///
    /// # Errors
    /// [`Error::Registers`] when `registers` are not [`Self::d_registers`], or `d` not 16 n words.
    pub fn d_to_registers(&self, d: &[u32], registers: &mut [Register]) -> Result<(), Error> {
        self.count("d", registers.len(), self.d_registers())?;
        self.count("d", d.len(), WARP_ROWS * self.form.n)?;
        accumulators_to_registers(self.form.d, d, self.form.n, registers);
        Ok(())
    }

    /// Decodes B, `[n][32 bytes]`, once for the four warps.
    ///
    /// # Errors
    /// [`Error::Registers`] when `b` has another size.
    pub fn prepare_b(&self, b: &[u8], accumulation: Accumulation, prepared: &mut PreparedB) -> Result<(), Error> {
        self.count("b", b.len(), self.form.n * ROW_BYTES)?;
        self.step(true, accumulation).prepare(b, prepared);
        Ok(())
    }

    /// A warp's part of `D = A * B + D`, or of `D = A * B` when `scale_d` is false: `a` is `[16][32 bytes]`, `d` is `[16][n]` words.
    ///
    /// # Errors
    /// [`Error::Registers`] when `d` has another size.
    ///
    /// # Panics
    /// When `b` was prepared for another form or accumulation.
    pub fn run(
        &self,
        a: &WarpRows,
        b: &PreparedB,
        scale_d: bool,
        accumulation: Accumulation,
        d: &mut [u32],
    ) -> Result<(), Error> {
        self.count("d", d.len(), WARP_ROWS * self.form.n)?;
        self.step(scale_d, accumulation).run_prepared(a, b, d);
        Ok(())
    }

    fn step(&self, scale_d: bool, accumulation: Accumulation) -> Step {
        let form = &self.form;
        Step {
            m: WARP_ROWS,
            n: form.n,
            row_bytes: ROW_BYTES,
            a: form.a,
            b: form.b,
            d: form.d,
            read_d: scale_d,
            negate: form.negate_a != form.negate_b,
            saturate: form.saturate,
            accumulation,
        }
    }

    fn count(&self, operand: &'static str, got: usize, expected: usize) -> Result<(), Error> {
        if got == expected { Ok(()) } else { Err(Error::Registers { instruction: INSTRUCTION, operand, expected, got }) }
    }
}

/// The 16 bytes at a shared address.
fn chunk<'a>(operand: &'static str, shared: &'a [u8], address: u32) -> Result<&'a [u8], Error> {
    let at = address as usize;
    shared.get(at..at + 16).ok_or(Error::SharedOutOfBounds { operand, address, end: shared.len() as u32 })
}

/// First of the rows of A and D that belong to a warp.
const fn first_row(warp: usize) -> u32 {
    (warp % 4 * WARP_ROWS) as u32
}

/// Copies `out.len() / 32` rows of an operand, from row `first` on, out of shared memory. `first` is a multiple of 8.
fn gather(
    operand: &'static str,
    shared: &[u8],
    descriptor: Descriptor,
    mn_major: bool,
    first: u32,
    out: &mut [u8],
) -> Result<(), Error> {
    if mn_major {
        // 16-bit elements: 16 bytes hold 8 rows at one k.
        for (j, rows) in out.chunks_exact_mut(8 * ROW_BYTES).enumerate() {
            for k in 0..16 {
                let bytes = chunk(operand, shared, descriptor.mn_major(first / 8 + j as u32, k as u32))?;
                for (i, element) in bytes.chunks_exact(2).enumerate() {
                    rows[i * ROW_BYTES + 2 * k..][..2].copy_from_slice(element);
                }
            }
        }
    } else {
        for (r, row) in out.chunks_exact_mut(ROW_BYTES).enumerate() {
            for (c, place) in row.chunks_exact_mut(16).enumerate() {
                place.copy_from_slice(chunk(operand, shared, descriptor.k_major(first + r as u32, c as u32))?);
            }
        }
    }
    Ok(())
}

/// The byte ranges of some rows of an operand, multiples of 8.
fn ranges(descriptor: Descriptor, mn_major: bool, rows: Range<u32>) -> Vec<Range<u32>> {
    let mut starts: Vec<u32> = if mn_major {
        (rows.start / 8..rows.end / 8).flat_map(|j| (0..16).map(move |k| descriptor.mn_major(j, k))).collect()
    } else {
        rows.flat_map(|r| (0..2).map(move |c| descriptor.k_major(r, c))).collect()
    };
    starts.sort_unstable();
    let mut merged: Vec<Range<u32>> = Vec::new();
    for start in starts {
        match merged.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(start + 16),
            _ => merged.push(start..start + 16),
        }
    }
    merged
}
