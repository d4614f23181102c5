//! Arithmetic, logic, comparisons, conversions, moves: decoding and executing (PTX ISA 9.0, sections 9.7.1 to 9.7.9 and 9.7.18).
//!
//! Decoding chooses one operation out of the lists in [`ops`]; executing it is one loop over the lanes. What is not lane by lane (comparisons,
//! which write predicates; the carry flag; vectors of `mov`) has a variant of its own.

mod approx;
mod bits;
mod carry;
mod compare;
mod convert;
mod decode_compare;
mod decode_convert;
mod decode_float;
mod decode_int;
mod float;
mod half;
mod ints;
mod lanes;
mod moves;
mod opcode;
mod ops;
mod soft;
#[cfg(test)]
mod tests;
mod video;

use crate::ast::{Instruction, Operand};
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::Exec;
use crate::isa::{PredSrc, Reg, Src};
use crate::regs::{LANES, Mask};
pub(crate) use bits::discardable;
pub(crate) use compare::mask_of;
use compare::{Class, Combine, Compare};
use lanes::{view32, view64};
pub(crate) use opcode::{Opcode, Ty, destination, source};
use ops::{Bin32, Bin64, Narrow1, Quad32, Quad64, Tri32, Tri64, Un32, Un64, Widen1, Widen2, Widen3};

/// A decoded instruction of this family.
#[derive(Debug)]
#[allow(private_interfaces)] // the operations are this family's own business
pub enum Alu {
    /// One source of up to 32 bits.
    Un32 { op: Un32, d: Reg, a: Src },
    /// Two sources of up to 32 bits.
    Bin32 { op: Bin32, d: Reg, a: Src, b: Src },
    /// Three sources of up to 32 bits.
    Tri32 { op: Tri32, d: Reg, a: Src, b: Src, c: Src },
    /// `fma.rn.f16x2`: as two loops over halves, which vectorise where one over pairs of them does not.
    FmaF16x2 { d: Reg, a: Src, b: Src, c: Src },
    /// Four sources of 32 bits.
    Quad32 { op: Quad32, d: Reg, sources: [Src; 4] },
    /// One 64-bit source.
    Un64 { op: Un64, d: Reg, a: Src },
    /// Two 64-bit sources.
    Bin64 { op: Bin64, d: Reg, a: Src, b: Src },
    /// Three 64-bit sources.
    Tri64 { op: Tri64, d: Reg, a: Src, b: Src, c: Src },
    /// Four 64-bit sources.
    Quad64 { op: Quad64, d: Reg, sources: [Src; 4] },
    /// A 64-bit result of one source of 32.
    Widen1 { op: Widen1, d: Reg, a: Src },
    /// A 64-bit result of two sources of 32.
    Widen2 { op: Widen2, d: Reg, a: Src, b: Src },
    /// A 64-bit result of two sources of 32 and one of 64.
    Widen3 { op: Widen3, d: Reg, a: Src, b: Src, c: Src },
    /// A 32-bit result of a 64-bit source.
    Narrow1 { op: Narrow1, d: Reg, a: Src },
    /// An approximate operation of a source of up to 32 bits, which settings may perturb.
    Approx { op: approx::Approx, d: Reg, a: Src },
    /// `div.approx` and `div.full`.
    DivApprox { op: Bin32, d: Reg, a: Src, b: Src },
    /// `selp`
    Select { d: Reg, a: Src, b: Src, p: Pred, wide: bool },
    /// `slct`; with `.ftz` of a float selector.
    SelectBySign { d: Reg, a: Src, b: Src, c: Src, wide: bool, float: bool, ftz: bool },
    /// `setp`: p and q.
    Setp { compare: Compare, combine: Combine, p: Option<u32>, q: Option<u32>, a: Src, b: Src },
    /// `setp` of packed values: p of the lower halves, q of the upper ones.
    SetpHalves { compare: Compare, combine: Combine, p: Option<u32>, q: Option<u32>, a: Src, b: Src },
    /// `set`: this pattern where it holds; of packed values, the patterns of the lower and the upper halves.
    Set { compare: Compare, combine: Combine, packed: bool, d: Reg, a: Src, b: Src, pattern: u32 },
    /// `testp`
    Testp { class: Class, wide: bool, p: Option<u32>, a: Src },
    /// `lop3` with a predicate.
    Lop3Pred { d: Reg, p: Option<u32>, a: Src, b: Src, c: Src, table: u8, or: bool, q: Pred },
    /// `and`, `or`, `xor`, `not` and `mov` of predicates.
    Predicates { op: bits::PredOp, d: Option<u32>, a: Pred, b: Pred },
    /// An addition, subtraction or multiply-add with the carry flag.
    Carry(carry::Carry),
    /// `mov` of a vector to a register.
    Pack { d: Reg, parts: Box<[Src]>, bits: u32 },
    /// `mov` of a register to a vector.
    Unpack { parts: Box<[Option<Reg>]>, a: Src, bits: u32 },
    /// `mov.b128`
    Copy128 { d: Reg, a: Reg },
    /// `mov.b128` of a vector of two.
    Pack128 { d: Reg, low: Src, high: Src },
    /// The reverse.
    Unpack128 { low: Option<Reg>, high: Option<Reg>, a: Reg },
}

/// A predicate as a source: a register, or a literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pred {
    /// A register.
    Reg(PredSrc),
    /// A literal.
    Literal(bool),
    /// `%is_explicit_cluster`
    ExplicitCluster,
}

impl Pred {
    /// Decodes one.
    pub fn decode(decoder: &mut Decoder<'_>, operand: &Operand) -> Result<Pred> {
        match operand {
            Operand::Int(value) => Ok(Pred::Literal(*value != 0)),
            Operand::Name(name) if name == "%is_explicit_cluster" => Ok(Pred::ExplicitCluster),
            other => decoder.pred_src(other).map(Pred::Reg),
        }
    }

    /// The lanes in which it holds.
    #[inline(always)]
    pub fn mask(self, cx: &Cx<'_>) -> Mask {
        match self {
            Pred::Reg(src) => cx.pred(src),
            Pred::Literal(true) => Mask::MAX,
            Pred::Literal(false) => 0,
            Pred::ExplicitCluster if cx.launch.explicit_cluster => Mask::MAX,
            Pred::ExplicitCluster => 0,
        }
    }
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<Alu> {
    let Some(base) = instruction.opcode.first() else { return Err(decoder.unknown(instruction)) };
    let mut opcode = Opcode::new(instruction);
    let float = opcode.types.first().is_some_and(|ty| ty.is_float());
    let op = &mut opcode;
    match base.as_str() {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "abs" | "neg" | "min" | "max" if float => {
            decode_float::arithmetic(decoder, op, instruction, base)
        }
        "add" | "sub" | "mul" | "mad" | "div" | "abs" | "neg" | "min" | "max" => {
            decode_int::arithmetic(decoder, op, instruction, base)
        }
        "addc" | "subc" | "madc" => carry::decode(decoder, op, instruction, base),
        "mul24" | "mad24" | "sad" | "rem" | "dp4a" | "dp2a" => decode_int::arithmetic(decoder, op, instruction, base),
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => decode_float::unary(decoder, op, instruction, base),
        "copysign" => decode_float::copysign(decoder, op, instruction),
        "testp" => decode_compare::testp(decoder, op, instruction),
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "popc" | "clz" | "brev" | "bfind"
        | "bfe" | "bfi" | "fns" | "szext" | "bmsk" => bits::decode(decoder, op, instruction, base),
        "setp" => decode_compare::setp(decoder, op, instruction),
        "set" => decode_compare::set(decoder, op, instruction),
        "selp" => decode_compare::selp(decoder, op, instruction),
        "slct" => decode_compare::slct(decoder, op, instruction),
        "cvt" => decode_convert::cvt(decoder, op, instruction),
        "mov" => moves::decode(decoder, op, instruction),
        "vadd2" | "vsub2" | "vavrg2" | "vabsdiff2" | "vmin2" | "vmax2" | "vadd4" | "vsub4" | "vavrg4" | "vabsdiff4" | "vmin4"
        | "vmax4" => video::decode(decoder, op, instruction, base),
        _ => Err(decoder.unknown(instruction)),
    }
}

/// Executes one.
pub fn exec(op: &Alu, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        Alu::Un32 { op, d, a } => {
            let (mut hold, mut out) = ([0; LANES], [0; LANES]);
            op.run(view32(cx, a, &mut hold), &mut out);
            cx.set32(*d, &out);
        }
        Alu::Bin32 { op, d, a, b } => {
            let (mut hold, mut out) = ([[0; LANES]; 2], [0; LANES]);
            let [h0, h1] = &mut hold;
            op.run(view32(cx, a, h0), view32(cx, b, h1), &mut out);
            cx.set32(*d, &out);
        }
        Alu::Tri32 { op, d, a, b, c } => {
            let (mut hold, mut out) = ([[0; LANES]; 3], [0; LANES]);
            let [h0, h1, h2] = &mut hold;
            op.run(view32(cx, a, h0), view32(cx, b, h1), view32(cx, c, h2), &mut out);
            cx.set32(*d, &out);
        }
        Alu::Un64 { op, d, a } => {
            let (mut hold, mut out) = ([0; LANES], [0; LANES]);
            op.run(view64(cx, a, &mut hold), &mut out);
            cx.set64(*d, &out);
        }
        Alu::Bin64 { op, d, a, b } => {
            let (mut hold, mut out) = ([[0; LANES]; 2], [0; LANES]);
            let [h0, h1] = &mut hold;
            op.run(view64(cx, a, h0), view64(cx, b, h1), &mut out);
            cx.set64(*d, &out);
        }
        Alu::Tri64 { op, d, a, b, c } => {
            let (mut hold, mut out) = ([[0; LANES]; 3], [0; LANES]);
            let [h0, h1, h2] = &mut hold;
            op.run(view64(cx, a, h0), view64(cx, b, h1), view64(cx, c, h2), &mut out);
            cx.set64(*d, &out);
        }
        Alu::Setp { compare, combine, p, q, a, b } => {
            let holds = compare_lanes(*compare, cx, a, b);
            let (yes, no) = (combine.apply(cx, holds), combine.apply(cx, !holds));
            if let Some(p) = p {
                cx.set_pred(*p, yes);
            }
            if let Some(q) = q {
                cx.set_pred(*q, no);
            }
        }
        Alu::Select { d, a, b, p, wide } => {
            let chosen = p.mask(cx);
            select(cx, *d, a, b, chosen, *wide);
        }
        Alu::Widen1 { op, d, a } => {
            let (mut hold, mut out) = ([0; LANES], [0; LANES]);
            op.run(view32(cx, a, &mut hold), &mut out);
            cx.set64(*d, &out);
        }
        Alu::Widen2 { op, d, a, b } => {
            let (mut hold, mut out) = ([[0; LANES]; 2], [0; LANES]);
            let [h0, h1] = &mut hold;
            op.run(view32(cx, a, h0), view32(cx, b, h1), &mut out);
            cx.set64(*d, &out);
        }
        Alu::Widen3 { op, d, a, b, c } => {
            let (mut hold, mut wide, mut out) = ([[0; LANES]; 2], [0; LANES], [0; LANES]);
            let [h0, h1] = &mut hold;
            op.run(view32(cx, a, h0), view32(cx, b, h1), view64(cx, c, &mut wide), &mut out);
            cx.set64(*d, &out);
        }
        Alu::Narrow1 { op, d, a } => {
            let (mut hold, mut out) = ([0; LANES], [0; LANES]);
            op.run(view64(cx, a, &mut hold), &mut out);
            cx.set32(*d, &out);
        }
        Alu::FmaF16x2 { d, a, b, c } => {
            let sources = [a, b, c].map(|src| cx.get32(src));
            let mut halves = [[0; LANES]; 2];
            for (half, out) in halves.iter_mut().enumerate() {
                let [a, b, c] = sources.map(|lanes| lanes.map(|v| v >> (16 * half) & 0xffff));
                Tri32::FmaF16.run(&a, &b, &c, out);
            }
            let [low, high] = halves;
            cx.set32(*d, &std::array::from_fn(|i| low[i] | high[i] << 16));
        }
        rest => return exec_rare(rest, cx),
    }
    Ok(Step::Next)
}

#[inline(never)]
fn exec_rare(op: &Alu, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        Alu::Quad32 { op, d, sources: [a, b, c, e] } => {
            let mut out = [0; LANES];
            op.run(&cx.get32(a), &cx.get32(b), &cx.get32(c), &cx.get32(e), &mut out);
            cx.set32(*d, &out);
        }
        Alu::Quad64 { op, d, sources: [a, b, c, e] } => {
            let mut out = [0; LANES];
            op.run(&cx.get64(a), &cx.get64(b), &cx.get64(c), &cx.get64(e), &mut out);
            cx.set64(*d, &out);
        }
        Alu::Approx { op, d, a } => {
            let a = cx.get32(a);
            let mut out = [0; LANES];
            if cx.env.config.perturb_approx {
                for (out, a) in out.iter_mut().zip(a) {
                    *out = op.perturbed(a, cx.rng);
                }
            } else {
                op.lanes().run(&a, &mut out);
            }
            cx.set32(*d, &out);
        }
        Alu::DivApprox { op, d, a, b } => {
            let mut out = [0; LANES];
            op.run(&cx.get32(a), &cx.get32(b), &mut out);
            if cx.env.config.perturb_approx {
                out = out.map(|exact| approx::div_perturbed(exact, cx.rng));
            }
            cx.set32(*d, &out);
        }
        Alu::SelectBySign { d, a, b, c, wide, float, ftz } => {
            let selector = cx.get32(c);
            // NaN is not at least zero; minus zero is.
            let chosen = match float {
                true => compare::mask_of(|i| f32::from_bits(float::flush_if(*ftz, selector[i])) >= 0.0),
                false => compare::mask_of(|i| selector[i] as i32 >= 0),
            };
            select(cx, *d, a, b, chosen, *wide);
        }
        Alu::SetpHalves { compare, combine, p, q, a, b } => {
            let low = combine.apply(cx, compare_lanes(*compare, cx, a, b));
            let high = combine.apply(cx, compare_lanes(compare.of_upper_halves(), cx, a, b));
            if let Some(p) = p {
                cx.set_pred(*p, low);
            }
            if let Some(q) = q {
                cx.set_pred(*q, high);
            }
        }
        Alu::Set { compare, combine, packed, d, a, b, pattern } => {
            let low = combine.apply(cx, compare_lanes(*compare, cx, a, b));
            let value = |mask: Mask, i: usize| if mask >> i & 1 == 1 { *pattern } else { 0 };
            let out = if *packed {
                let high = combine.apply(cx, compare_lanes(compare.of_upper_halves(), cx, a, b));
                std::array::from_fn(|i| value(low, i) & 0xffff | value(high, i) << 16)
            } else {
                std::array::from_fn(|i| value(low, i))
            };
            cx.set32(*d, &out);
        }
        Alu::Testp { class, wide, p, a } => {
            let holds = if *wide { class.run64(&cx.get64(a)) } else { class.run32(&cx.get32(a)) };
            if let Some(p) = p {
                cx.set_pred(*p, holds);
            }
        }
        Alu::Lop3Pred { d, p, a, b, c, table, or, q } => {
            let mut out = [0; LANES];
            Tri32::Lop3(*table).run(&cx.get32(a), &cx.get32(b), &cx.get32(c), &mut out);
            let nonzero = compare::mask_of(|i| out[i] != 0);
            let q = q.mask(cx);
            cx.set32(*d, &out);
            if let Some(p) = p {
                cx.set_pred(*p, if *or { nonzero | q } else { nonzero & q });
            }
        }
        Alu::Predicates { op, d, a, b } => {
            let value = op.apply(a.mask(cx), b.mask(cx));
            if let Some(d) = d {
                cx.set_pred(*d, value);
            }
        }
        Alu::Carry(op) => op.exec(cx),
        Alu::Pack { .. } | Alu::Unpack { .. } | Alu::Copy128 { .. } | Alu::Pack128 { .. } | Alu::Unpack128 { .. } => {
            moves::exec(op, cx);
        }
        common => return exec(common, cx),
    }
    Ok(Step::Next)
}

#[inline(always)]
fn compare_lanes(compare: Compare, cx: &Cx<'_>, a: &Src, b: &Src) -> Mask {
    if compare.is_wide() {
        let (mut h0, mut h1) = ([0; LANES], [0; LANES]);
        compare.run64(view64(cx, a, &mut h0), view64(cx, b, &mut h1))
    } else {
        let (mut h0, mut h1) = ([0; LANES], [0; LANES]);
        compare.run32(view32(cx, a, &mut h0), view32(cx, b, &mut h1))
    }
}

/// Writes a where chosen, b elsewhere.
#[inline(always)]
fn select(cx: &mut Cx<'_>, d: Reg, a: &Src, b: &Src, chosen: Mask, wide: bool) {
    if wide {
        let (mut h0, mut h1) = ([0; LANES], [0; LANES]);
        let (a, b) = (view64(cx, a, &mut h0), view64(cx, b, &mut h1));
        let out = std::array::from_fn(|i| if chosen & (1 << i) != 0 { a[i] } else { b[i] });
        cx.set64(d, &out);
    } else {
        let (mut h0, mut h1) = ([0; LANES], [0; LANES]);
        let (a, b) = (view32(cx, a, &mut h0), view32(cx, b, &mut h1));
        let out = std::array::from_fn(|i| if chosen & (1 << i) != 0 { a[i] } else { b[i] });
        cx.set32(d, &out);
    }
}
