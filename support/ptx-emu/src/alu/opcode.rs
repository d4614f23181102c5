//! Opcodes taken apart: instruction types in order, the other modifiers as a set. The assembler takes modifiers in any order
//! (`add.ftz.rn.f32` and `add.f32.rn.ftz` are both accepted), so the order among them carries no meaning here either.

use crate::ast::{Instruction, Operand, Type};
use crate::decode::{Decoder, Result};
use crate::formats::Rounding;
use crate::isa::{Reg, Src, Width};

/// An instruction type: those of variables, and those that only instructions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names are PTX's own
pub(crate) enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    U16x2,
    S16x2,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F32x2,
    F64,
    Tf32,
    E4m3x2,
    E5m2x2,
}

impl Ty {
    /// By the name in PTX, without the dot.
    pub fn by_name(name: &str) -> Option<Ty> {
        use Ty::*;
        Some(match name {
            "pred" => Pred,
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "b128" => B128,
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "u16x2" => U16x2,
            "s16x2" => S16x2,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "f32" => F32,
            "f32x2" => F32x2,
            "f64" => F64,
            "tf32" => Tf32,
            "e4m3x2" => E4m3x2,
            "e5m2x2" => E5m2x2,
            _ => return None,
        })
    }

    /// The type of a register that holds it.
    pub fn storage(self) -> Type {
        match self {
            Ty::Pred => Type::Pred,
            Ty::B8 | Ty::U8 | Ty::S8 => Type::B8,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 | Ty::E4m3x2 | Ty::E5m2x2 => Type::B16,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::U16x2 | Ty::S16x2 | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 => Type::B32,
            Ty::F32 => Type::F32,
            Ty::F64 => Type::F64,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F32x2 => Type::B64,
            Ty::B128 => Type::B128,
        }
    }

    /// In bits; a predicate counts as one.
    pub fn bits(self) -> u32 {
        Width::of(self.storage()).map_or(1, Width::bits)
    }

    /// `.s8` to `.s64`.
    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// `.u8` to `.u64`.
    pub fn is_unsigned(self) -> bool {
        matches!(self, Ty::U8 | Ty::U16 | Ty::U32 | Ty::U64)
    }

    /// A floating-point type, packed ones included.
    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::F32 | Ty::F32x2 | Ty::F64)
    }

    /// A signed or unsigned integer type, not packed.
    pub fn is_int(self) -> bool {
        self.is_signed() || self.is_unsigned()
    }
}

/// An opcode being decoded. What a decoder does not take is an error at the [`Opcode::end`].
#[derive(Clone)]
pub(crate) struct Opcode<'a> {
    name: String,
    left: Vec<&'a str>,
    /// The types, in order.
    pub types: Vec<Ty>,
}

impl<'a> Opcode<'a> {
    /// Of an instruction.
    pub fn new(instruction: &'a Instruction) -> Opcode<'a> {
        let mut opcode = Opcode { name: instruction.opcode.join("."), left: vec![], types: vec![] };
        for part in instruction.opcode.iter().skip(1) {
            match Ty::by_name(part) {
                Some(ty) => opcode.types.push(ty),
                None => opcode.left.push(part),
            }
        }
        opcode
    }

    /// Whether this modifier stands there; takes it.
    pub fn flag(&mut self, name: &str) -> bool {
        match self.left.iter().position(|part| *part == name) {
            Some(at) => {
                self.left.remove(at);
                true
            }
            None => false,
        }
    }

    /// The first modifier of the table that stands there; takes it.
    pub fn pick<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        table.iter().find(|(name, _)| self.flag(name)).map(|&(_, value)| value)
    }

    /// `.rn`, `.rz`, `.rm` or `.rp`.
    pub fn rounding(&mut self) -> Option<Rounding> {
        self.pick(&[("rn", Rounding::NearestEven), ("rz", Rounding::TowardZero), ("rm", Rounding::Down), ("rp", Rounding::Up)])
    }

    /// The only type.
    pub fn single(&self, decoder: &Decoder<'_>) -> Result<Ty> {
        match self.types.as_slice() {
            &[ty] => Ok(ty),
            _ => Err(self.unknown(decoder, "it takes one type")),
        }
    }

    /// Both types.
    pub fn pair(&self, decoder: &Decoder<'_>) -> Result<(Ty, Ty)> {
        match self.types.as_slice() {
            &[a, b] => Ok((a, b)),
            _ => Err(self.unknown(decoder, "it takes two types")),
        }
    }

    /// That nothing is left.
    pub fn end(&self, decoder: &Decoder<'_>) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(part) => Err(self.unknown(decoder, &format!("no modifier .{part} here"))),
        }
    }

    /// The error for an opcode that nothing here executes, and why.
    pub fn unknown(&self, decoder: &Decoder<'_>, why: &str) -> crate::error::ParseError {
        decoder.error(format!("unknown instruction {}: {why}", self.name))
    }

    /// The error for a type that the instruction does not have.
    pub fn no_type(&self, decoder: &Decoder<'_>) -> crate::error::ParseError {
        self.unknown(decoder, "not a type of this instruction")
    }

    /// The operands, exactly so many.
    pub fn operands<'o, const N: usize>(&self, decoder: &Decoder<'_>, instruction: &'o Instruction) -> Result<&'o [Operand; N]> {
        instruction
            .operands
            .as_slice()
            .try_into()
            .map_err(|_| decoder.error(format!("{} takes {N} operands, not {}", self.name, instruction.operands.len())))
    }
}

/// A source of exactly this type's width. Only literals of its own kind are taken: the assembler takes no integers for floats nor the
/// reverse, none at all for the 16-bit floats, but any literal of the size for an untyped operand.
pub(crate) fn source(decoder: &mut Decoder<'_>, operand: &Operand, ty: Ty) -> Result<Src> {
    let fits = match operand {
        Operand::Int(_) => !ty.is_float(),
        Operand::F32(_) => matches!(ty, Ty::F32 | Ty::B32 | Ty::F64),
        Operand::F64(_) => matches!(ty, Ty::F32 | Ty::F64 | Ty::B64),
        _ => true,
    };
    if !fits {
        return Err(decoder.error(format!("a literal of another type where the instruction reads {}", name(ty))));
    }
    let src = decoder.src(operand, ty.storage())?;
    if let Src::Reg(reg) = src {
        exactly(decoder, reg, ty)?;
    }
    Ok(src)
}

/// A destination of exactly this type's width.
pub(crate) fn destination(decoder: &mut Decoder<'_>, operand: &Operand, ty: Ty) -> Result<Reg> {
    if matches!(operand, Operand::Name(name) if name == "_") {
        return Err(decoder.error("the result of this instruction cannot be discarded"));
    }
    let reg = decoder.dst_of(operand, ty.storage())?;
    exactly(decoder, reg, ty)?;
    Ok(reg)
}

fn exactly(decoder: &Decoder<'_>, reg: Reg, ty: Ty) -> Result<()> {
    if reg.width.bits() == ty.bits() {
        return Ok(());
    }
    Err(decoder.error(format!("a register of {} bits where the instruction takes {}", reg.width.bits(), name(ty))))
}

fn name(ty: Ty) -> String {
    format!(".{ty:?}").to_lowercase()
}
