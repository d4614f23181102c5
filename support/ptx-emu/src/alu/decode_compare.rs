//! Decoding comparisons and selections (PTX ISA 9.0, sections 9.7.3.1, 9.7.6 and 9.7.7).

use super::compare::{Class, Combine, Compare};
use super::decode_float::half_of;
use super::half::Half;
use super::opcode::{Opcode, Ty, destination, source};
use super::{Alu, Pred};
use crate::ast::{Instruction, Operand};
use crate::decode::{Decoder, Result};

const RELATIONS: [(&str, &str); 18] = [
    ("eq", "eq"),
    ("ne", "ne"),
    ("lt", "lt"),
    ("le", "le"),
    ("gt", "gt"),
    ("ge", "ge"),
    ("lo", "lo"),
    ("ls", "ls"),
    ("hi", "hi"),
    ("hs", "hs"),
    ("equ", "equ"),
    ("neu", "neu"),
    ("ltu", "ltu"),
    ("leu", "leu"),
    ("gtu", "gtu"),
    ("geu", "geu"),
    ("num", "num"),
    ("nan", "nan"),
];

#[derive(Clone, Copy)]
enum Bool {
    And,
    Or,
    Xor,
}

/// The relation on values of this type, and what it is combined with.
fn relation(d: &mut Decoder<'_>, op: &mut Opcode<'_>, ty: Ty) -> Result<(Compare, Option<Bool>)> {
    let ftz = matches!(ty, Ty::F32 | Ty::F16 | Ty::F16x2) && op.flag("ftz");
    let Some(name) = op.pick(&RELATIONS) else { return Err(op.unknown(d, "it needs a comparison")) };
    let combine = op.pick(&[("and", Bool::And), ("or", Bool::Or), ("xor", Bool::Xor)]);
    op.end(d)?;
    match Compare::new(name, ty, ftz) {
        Some(compare) => Ok((compare, combine)),
        None => Err(op.unknown(d, &format!("this type has no comparison .{name}"))),
    }
}

/// The operands after the destination: a and b, and the predicate where one is combined with.
fn compared(
    d: &mut Decoder<'_>,
    op: &Opcode<'_>,
    instruction: &Instruction,
    ty: Ty,
    with: Option<Bool>,
) -> Result<(crate::isa::Src, crate::isa::Src, Combine)> {
    let (a, b, combine) = match with {
        None => {
            let [_, a, b] = op.operands(d, instruction)?;
            (a, b, Combine::Plain)
        }
        Some(with) => {
            let [_, a, b, p] = op.operands(d, instruction)?;
            let p = Pred::decode(d, p)?;
            let combine = match with {
                Bool::And => Combine::And(p),
                Bool::Or => Combine::Or(p),
                Bool::Xor => Combine::Xor(p),
            };
            (a, b, combine)
        }
    };
    Ok((source(d, a, ty)?, source(d, b, ty)?, combine))
}

/// `setp`
pub(super) fn setp(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    let (compare, with) = relation(d, op, ty)?;
    let (a, b, combine) = compared(d, op, instruction, ty, with)?;
    let (p, q) = match &instruction.operands[0] {
        Operand::Pair(..) if matches!(ty, Ty::F16 | Ty::Bf16) => {
            return Err(d.error("setp of one 16-bit float writes one predicate"));
        }
        Operand::Pair(p, q) => (d.pred_dst(p)?, d.pred_dst(q)?),
        p => (d.pred_dst(p)?, None),
    };
    Ok(match half_of(ty) {
        Some((_, true)) => Alu::SetpHalves { compare, combine, p, q, a, b },
        _ => Alu::Setp { compare, combine, p, q, a, b },
    })
}

/// `set`
pub(super) fn set(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let (to_type, ty) = op.pair(d)?;
    let (compare, with) = relation(d, op, ty)?;
    let half = half_of(ty);
    let packed = matches!(half, Some((_, true)));
    // Which destinations go with which sources, and what is written where it holds (one half of it, of packed types).
    let pattern = match (to_type, half) {
        (Ty::U32 | Ty::S32, Some((_, true))) => 0xffff,
        (Ty::F16x2, Some((Half::F16, true))) => 0x3c00,
        (Ty::Bf16x2, Some((Half::Bf16, true))) => 0x3f80,
        (_, Some((_, true))) => return Err(op.no_type(d)),
        (Ty::U32 | Ty::S32, _) => u32::MAX,
        (Ty::U16 | Ty::S16, Some(_)) => 0xffff,
        (Ty::F32, None) => 1.0f32.to_bits(),
        (Ty::F16, None | Some((Half::F16, _))) => 0x3c00,
        (Ty::Bf16, _) => 0x3f80,
        _ => return Err(op.no_type(d)),
    };
    let (a, b, combine) = compared(d, op, instruction, ty, with)?;
    let to = destination(d, &instruction.operands[0], to_type)?;
    Ok(Alu::Set { compare, combine, packed, d: to, a, b, pattern })
}

/// Types that are selected: all but 8-bit, packed and 16-bit floating-point ones.
fn selectable(ty: Ty) -> bool {
    matches!(ty, Ty::B16 | Ty::U16 | Ty::S16 | Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64)
}

/// `selp`
pub(super) fn selp(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    op.end(d)?;
    if !selectable(ty) {
        return Err(op.no_type(d));
    }
    d.moves();
    let [to, a, b, p] = op.operands(d, instruction)?;
    let (a, b, p) = (source(d, a, ty)?, source(d, b, ty)?, Pred::decode(d, p)?);
    Ok(Alu::Select { d: destination(d, to, ty)?, a, b, p, wide: ty.bits() == 64 })
}

/// `slct`
pub(super) fn slct(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let (ty, selector) = op.pair(d)?;
    let ftz = selector == Ty::F32 && op.flag("ftz");
    op.end(d)?;
    if !selectable(ty) || !matches!(selector, Ty::S32 | Ty::F32) {
        return Err(op.no_type(d));
    }
    let [to, a, b, c] = op.operands(d, instruction)?;
    let (a, b, c) = (source(d, a, ty)?, source(d, b, ty)?, source(d, c, selector)?);
    let to = destination(d, to, ty)?;
    Ok(Alu::SelectBySign { d: to, a, b, c, wide: ty.bits() == 64, float: selector == Ty::F32, ftz })
}

/// `testp`
pub(super) fn testp(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<Alu> {
    let ty = op.single(d)?;
    let class = op.pick(&[
        ("finite", Class::Finite),
        ("infinite", Class::Infinite),
        ("number", Class::Number),
        ("notanumber", Class::NotANumber),
        ("normal", Class::Normal),
        ("subnormal", Class::Subnormal),
    ]);
    let Some(class) = class else { return Err(op.unknown(d, "it needs a class")) };
    op.end(d)?;
    if !matches!(ty, Ty::F32 | Ty::F64) {
        return Err(op.no_type(d));
    }
    let [p, a] = op.operands(d, instruction)?;
    let a = source(d, a, ty)?;
    Ok(Alu::Testp { class, wide: ty == Ty::F64, p: d.pred_dst(p)?, a })
}
