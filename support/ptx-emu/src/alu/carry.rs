//! Extended precision: `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc` (PTX ISA 9.0, section 9.7.2).
//!
//! The carry flag is a predicate of its own in each activation of a function, [`CARRY`]: it is not kept across calls. A subtraction adds the
//! complement, so the flag is set where it does *not* borrow: `addc` after `sub.cc` sees that, and the compiler's 128-bit
//! division depends on it.

use super::Alu;
use super::decode_int::Part;
use super::ints::{mul_hi_s, mul_hi_s64, mul_hi_u, mul_hi_u64, s16};
use super::opcode::{Opcode, Ty, destination, source};
use crate::ast::Instruction;
use crate::cx::Cx;
use crate::decode::{Decoder, Result};
use crate::isa::{Reg, Src};
use crate::regs::{LANES, Mask};

/// The predicate that holds `CC.CF`: the first, which no name stands for.
const CARRY: u32 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Add,
    Sub,
    /// The low or the high half of a product, plus c.
    Mad {
        high: bool,
    },
}

/// An operation with the flag.
#[derive(Debug)]
pub(crate) struct Carry {
    kind: Kind,
    ty: Ty,
    /// Adds the flag.
    carry_in: bool,
    /// Writes it.
    carry_out: bool,
    /// Clamps, instead of wrapping.
    sat: bool,
    d: Reg,
    sources: [Src; 3],
}

/// `addc`, `subc`, `madc`.
pub(super) fn decode(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction, base: &str) -> Result<Alu> {
    let ty = op.single(d)?;
    if base == "madc" {
        let high = match super::decode_int::part(d, op)? {
            Part::Lo => false,
            Part::Hi => true,
            Part::Wide => return Err(op.unknown(d, "it needs .lo or .hi")),
        };
        let carry_out = op.flag("cc");
        return mad(d, op, instruction, ty, high, true, carry_out);
    }
    let carry_out = op.flag("cc");
    Carry::add(d, op, instruction, ty, base == "subc", true, carry_out)
}

/// `mad.cc` and `madc`.
pub(super) fn mad(
    d: &mut Decoder<'_>,
    op: &mut Opcode<'_>,
    instruction: &Instruction,
    ty: Ty,
    high: bool,
    carry_in: bool,
    carry_out: bool,
) -> Result<Alu> {
    check_type(d, op, ty, carry_out)?;
    let sat = !carry_out && high && ty == Ty::S32 && op.flag("sat");
    op.end(d)?;
    let [to, a, b, c] = op.operands(d, instruction)?;
    let sources = [source(d, a, ty)?, source(d, b, ty)?, source(d, c, ty)?];
    Ok(Alu::Carry(Carry { kind: Kind::Mad { high }, ty, carry_in, carry_out, sat, d: destination(d, to, ty)?, sources }))
}

fn check_type(d: &Decoder<'_>, op: &Opcode<'_>, ty: Ty, carry_out: bool) -> Result<()> {
    // The assembler takes 16-bit types where no carry comes out.
    if ty.is_int() && ty.bits() >= if carry_out { 32 } else { 16 } { Ok(()) } else { Err(op.no_type(d)) }
}

impl Carry {
    /// `add.cc`, `sub.cc`, `addc`, `subc`.
    pub(super) fn add(
        d: &mut Decoder<'_>,
        op: &mut Opcode<'_>,
        instruction: &Instruction,
        ty: Ty,
        sub: bool,
        carry_in: bool,
        carry_out: bool,
    ) -> Result<Alu> {
        check_type(d, op, ty, carry_out)?;
        let sat = !carry_out && ty == Ty::S32 && op.flag("sat");
        op.end(d)?;
        let [to, a, b] = op.operands(d, instruction)?;
        let sources = [source(d, a, ty)?, source(d, b, ty)?, Src::Imm(0)];
        let kind = if sub { Kind::Sub } else { Kind::Add };
        Ok(Alu::Carry(Carry { kind, ty, carry_in, carry_out, sat, d: destination(d, to, ty)?, sources }))
    }

    /// Executes it.
    pub(super) fn exec(&self, cx: &mut Cx<'_>) {
        let [a, b, c] = [0, 1, 2].map(|i| cx.get64(&self.sources[i]));
        let flags = if self.carry_in { cx.warp.regs.pred(CARRY) } else { 0 };
        let mut out = [0; LANES];
        let mut carried: Mask = 0;
        for i in 0..LANES {
            let (value, carry) = self.lane(a[i], b[i], c[i], flags >> i & 1 == 1);
            out[i] = value;
            carried |= Mask::from(carry) << i;
        }
        cx.set64(self.d, &out);
        if self.carry_out {
            cx.set_pred(CARRY, carried);
        }
    }

    /// One lane: the result, and the carry.
    fn lane(&self, a: u64, b: u64, c: u64, flag: bool) -> (u64, bool) {
        let bits = self.ty.bits();
        let limit = 1u128 << bits;
        let (x, y) = match self.kind {
            Kind::Add | Kind::Sub => (a, b),
            Kind::Mad { high } => (self.product(a, b, high), c),
        };
        let sub = self.kind == Kind::Sub;
        let y = if sub { !y & (limit - 1) as u64 } else { y };
        // What is added when no flag comes in: nothing, or the one that completes the complement.
        let more = if self.carry_in { flag } else { sub };
        let sum = u128::from(x) + u128::from(y) + u128::from(more);
        let carry = sum >= limit;
        if self.sat {
            let exact = i64::from(x as i32) + i64::from(y as i32) + i64::from(more);
            return ((exact.clamp(i32::MIN.into(), i32::MAX.into()) as u32).into(), carry);
        }
        ((sum & (limit - 1)) as u64, carry)
    }

    fn product(&self, a: u64, b: u64, high: bool) -> u64 {
        let mask = if self.ty.bits() == 64 { u64::MAX } else { (1 << self.ty.bits()) - 1 };
        let product = match (high, self.ty) {
            (false, _) => a.wrapping_mul(b),
            (true, Ty::U16) => a.wrapping_mul(b) >> 16,
            (true, Ty::S16) => (s16(a as u32).wrapping_mul(s16(b as u32)) >> 16) as u64,
            (true, Ty::U32) => mul_hi_u(a as u32, b as u32).into(),
            (true, Ty::S32) => mul_hi_s(a as u32, b as u32).into(),
            (true, Ty::U64) => mul_hi_u64(a, b),
            (true, _) => mul_hi_s64(a, b),
        };
        product & mask
    }
}
