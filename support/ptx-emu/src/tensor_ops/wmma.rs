//! `wmma.load`, `wmma.mma`, `wmma.store`: matrices between memory and the fragments of [`crate::tensor::wmma`].

use super::warp::{MmaF64, count, destinations, sources};
use super::{TensorOp, accumulator, multiplicand, shape, take_satfinite};
use crate::ast::{Instruction, Operand, Type};
use crate::cx::Cx;
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{Addr, Reg, Src, Width};
use crate::mem_ops::{self as mem, MemSpace, Note, Place};
use crate::memory::Word;
use crate::race::{AccessKind, Sem};
use crate::regs::{LANES, Lanes64, Mask};
use crate::report::Kind;
use crate::tensor::Register;
use crate::tensor::wmma::{Element, Fragment, Matrix, Wmma};

/// `wmma.mma`, F64 excepted.
#[derive(Debug)]
pub struct WmmaOp {
    form: Wmma,
    d: Box<[Reg]>,
    a: Box<[Src]>,
    b: Box<[Src]>,
    c: Box<[Src]>,
}

/// `wmma.load`, `wmma.store`
#[derive(Debug)]
pub struct Transfer {
    fragment: Fragment,
    space: MemSpace,
    address: Addr,
    /// In elements; None where the matrix lies densely.
    stride: Option<Src>,
    /// 4-bit elements: two to a unit.
    packed: bool,
    column_major: bool,
    registers: Registers,
}

#[derive(Debug)]
enum Registers {
    Load(Box<[Reg]>),
    Store(Box<[Src]>),
}

/// What stands behind `aligned`.
struct Modifiers<'t> {
    /// `row` is false, `col` true.
    layouts: Vec<bool>,
    shape: (usize, usize, usize),
    /// State space and types.
    rest: Vec<&'t str>,
}

/// Layouts and shape may stand in either order.
fn modifiers<'t>(parts: &[&'t str]) -> Option<Modifiers<'t>> {
    let (mut layouts, mut found, mut rest) = (vec![], None, vec![]);
    for part in parts {
        match (*part, shape(part)) {
            ("row", _) => layouts.push(false),
            ("col", _) => layouts.push(true),
            (_, Some(numbers)) if found.is_none() => found = Some(numbers),
            (other, _) => rest.push(other),
        }
    }
    Some(Modifiers { layouts, shape: found?, rest })
}

fn element(text: &str) -> Option<(Element, Option<Element>)> {
    // The second is what the type is of an accumulator, where both exist.
    Some(match text {
        "f64" => (Element::F64, Some(Element::F64)),
        other => match (multiplicand(other), accumulator(other)) {
            (Some(m), a) => (Element::Multiplicand(m), a.map(Element::Accumulator)),
            (None, Some(a)) => (Element::Accumulator(a), Some(Element::Accumulator(a))),
            (None, None) => return None,
        },
    })
}

pub fn decode_transfer(decoder: &mut Decoder<'_>, instruction: &Instruction, which: &str, rest: &[&str]) -> Result<TensorOp> {
    let store = which == "d";
    let matrix = match which {
        "a" => Matrix::A,
        "b" => Matrix::B,
        _ => Matrix::C,
    };
    let Some(Modifiers { layouts, shape, rest }) = modifiers(rest) else { return Err(decoder.unknown(instruction)) };
    let ([column_major], [space @ .., ty]) = (layouts.as_slice(), rest.as_slice()) else {
        return Err(decoder.unknown(instruction));
    };
    let space = match space {
        [] => MemSpace::Generic,
        ["global"] => MemSpace::Global,
        ["shared" | "shared::cta"] => MemSpace::SharedCta,
        _ => return Err(decoder.unknown(instruction)),
    };
    let element = match (element(ty), matrix) {
        (Some((_, Some(accumulator))), Matrix::C) => accumulator,
        (Some((multiplicand, _)), Matrix::A | Matrix::B) => multiplicand,
        _ => return Err(decoder.unknown(instruction)),
    };
    let packed = element.bits() == 4;
    if packed && matrix != Matrix::C && *column_major != (matrix == Matrix::B) {
        return Err(decoder.unknown(instruction));
    }
    let fragment = Fragment::new(matrix, shape, element).map_err(|e| decoder.error(e.to_string()))?;
    let (first, second, stride) = match instruction.operands.as_slice() {
        [first, second] => (first, second, None),
        [first, second, stride] => (first, second, Some(stride)),
        _ => return Err(decoder.error("wmma.load and wmma.store take two or three operands")),
    };
    let ty = if element == Element::F64 { Type::F64 } else { Type::B32 };
    let (address, vector): (&Operand, &Operand) = if store { (first, second) } else { (second, first) };
    let address = decoder.addr(address)?;
    let registers =
        if store { Registers::Store(sources(decoder, vector, ty)?) } else { Registers::Load(destinations(decoder, vector, ty)?) };
    let got = match &registers {
        Registers::Load(list) => list.len(),
        Registers::Store(list) => list.len(),
    };
    count(decoder, "r", got, fragment.registers())?;
    let stride = stride.map(|stride| decoder.src(stride, Type::U32)).transpose()?;
    let op = Transfer { fragment, space, address, stride, packed, column_major: *column_major, registers };
    Ok(TensorOp::WmmaTransfer(Box::new(op)))
}

pub fn decode_mma(decoder: &mut Decoder<'_>, instruction: &Instruction, rest: &[&str]) -> Result<TensorOp> {
    let [d, a, b, c] = instruction.operands.as_slice() else {
        return Err(decoder.error("wmma.mma takes four operands"));
    };
    let Some(Modifiers { layouts, shape, rest: types }) = modifiers(rest) else { return Err(decoder.unknown(instruction)) };
    if layouts.len() != 2 {
        return Err(decoder.unknown(instruction));
    }
    if let (["f64", "f64", "f64", "f64"] | ["rn", "f64", "f64", "f64", "f64"], (8, 8, 4)) = (types.as_slice(), shape) {
        return MmaF64::decode(decoder, shape, [d, a, b, c]);
    }
    let (saturate, types) = take_satfinite(&types);
    let types = match types.as_slice() {
        [d, c] => [*d, "f16", "f16", *c],
        [d, a, b, c] => [*d, *a, *b, *c],
        _ => return Err(decoder.unknown(instruction)),
    };
    let [Some(d_type), Some(c_type)] = [accumulator(types[0]), accumulator(types[3])] else {
        return Err(decoder.unknown(instruction));
    };
    let [Some(a_type), Some(b_type)] = [multiplicand(types[1]), multiplicand(types[2])] else {
        return Err(decoder.unknown(instruction));
    };
    let sub_byte = a_type.bits() == 4;
    if sub_byte && layouts != [false, true] {
        return Err(decoder.unknown(instruction));
    }
    let form = Wmma::new(shape, d_type, a_type, b_type, c_type, saturate).map_err(|e| decoder.error(e.to_string()))?;
    let op = WmmaOp {
        form,
        d: destinations(decoder, d, Type::B32)?,
        a: sources(decoder, a, Type::B32)?,
        b: sources(decoder, b, Type::B32)?,
        c: sources(decoder, c, Type::B32)?,
    };
    let fragments = form.fragments();
    for (what, got, fragment) in [
        ("a", op.a.len(), fragments[0]),
        ("b", op.b.len(), fragments[1]),
        ("c", op.c.len(), fragments[2]),
        ("d", op.d.len(), fragments[3]),
    ] {
        count(decoder, what, got, fragment.registers())?;
    }
    Ok(TensorOp::Wmma(Box::new(op)))
}

impl WmmaOp {
    pub fn exec(&self, cx: &mut Cx<'_>) -> Exec {
        let read = |sources: &[Src]| -> Vec<Register> { sources.iter().map(|source| cx.get32(source)).collect() };
        let d = self.form.run(&read(&self.a), &read(&self.b), &read(&self.c))?;
        for (reg, values) in self.d.iter().zip(&d) {
            cx.set32(*reg, values);
        }
        Ok(())
    }
}

impl Transfer {
    pub fn exec(&self, cx: &mut Cx<'_>) -> Exec {
        let start = cx.uniform(&cx.address(&self.address), "the address of a matrix")?;
        let stride = self.stride(cx, start)?;
        let units = self.fragment.units();
        let mut values = match &self.registers {
            Registers::Load(_) => vec![0; units],
            Registers::Store(list) => {
                let registers: Vec<Lanes64> = list.iter().map(|source| cx.get64(source)).collect();
                self.fragment.unpack(&registers)?
            }
        };
        // As many instructions of one unit a lane as it takes: a matrix has a multiple of 32 units.
        for first in (0..units).step_by(LANES) {
            let addresses: Lanes64 =
                std::array::from_fn(|lane| start.wrapping_add(self.fragment.offset(first + lane, stride, self.column_major)));
            let part = &mut values[first..first + LANES];
            mem::by_place(cx, self.space, &addresses, |cx, place, addresses, mask| self.part(cx, place, addresses, mask, part))?;
        }
        if let Registers::Load(list) = &self.registers {
            for (reg, register) in list.iter().zip(self.fragment.pack(&values)) {
                match reg.width {
                    Width::W64 | Width::W128 => cx.set64(*reg, &register),
                    _ => cx.set32(*reg, &register.map(|word| word as u32)),
                }
            }
        } else {
            cx.env.progress();
        }
        Ok(())
    }

    /// The stride in units, checked together with the address: rows must begin at a multiple of 16 bytes, the matrix at one of 32 (sooner
    /// where the fragment is smaller; section 9.7.14.4.2 and the CUDA programming guide on `load_matrix_sync`).
    fn stride(&self, cx: &Cx<'_>, start: u64) -> Exec<u64> {
        let dense = self.fragment.dense_stride(self.column_major);
        let bytes = self.fragment.unit_bytes() as u64;
        let fragment = self.fragment.registers() as u64 * if bytes == 8 { 8 } else { 4 };
        let packed = if self.packed { 2 } else { 1 };
        let stride = match &self.stride {
            None => dense,
            Some(src) => {
                let elements = cx.uniform(&cx.get64(src), "the stride of a matrix")? & 0xffff_ffff;
                if elements < dense * packed || elements % packed != 0 {
                    let message = format!("a stride of {elements} elements, where a row or column alone has {}", dense * packed);
                    return Err(Fault::new(Kind::IllegalOperand, message));
                }
                elements / packed
            }
        };
        for (what, value, align) in [
            ("the address of a matrix", start, fragment.min(32)),
            ("the stride of a matrix in bytes", stride * bytes, fragment.min(16)),
        ] {
            if !value.is_multiple_of(align) {
                return Err(Fault::new(Kind::Misaligned, format!("{what}, {value:#x}, must be a multiple of {align}")));
            }
        }
        Ok(stride)
    }

    /// Moves a unit a lane.
    fn part(&self, cx: &mut Cx<'_>, place: Place, addresses: &Lanes64, mask: Mask, values: &mut [u64]) -> Exec {
        let load = matches!(self.registers, Registers::Load(_));
        let bytes = self.fragment.unit_bytes() as u32;
        let shape = mem::Shape { bytes, element: bytes, used: u32::MAX, reads: load, writes: !load, constant: false };
        let pointers = match place {
            Place::Global => mem::global(cx, addresses, mask, &shape)?,
            Place::Shared(rank) => mem::shared(cx, rank, addresses, mask, &shape)?,
            Place::Local | Place::Param => {
                let lane = mask.trailing_zeros() as usize % LANES;
                let message = format!("{}: the address is neither in global nor in shared memory", cx.instr.text);
                return Err(Fault::at(Kind::OutOfBounds, lane, message));
            }
        };
        let kind = if load { AccessKind::Read } else { AccessKind::Write };
        mem::note_access(cx, place, addresses, mask, &Note { kind, sem: Sem::WEAK, shape: &shape, agree: None })?;
        for lane in crate::regs::lanes(mask) {
            let (pointer, value) = (pointers[lane], &mut values[lane]);
            // SAFETY: `global` or `shared` has checked that the pointer is valid for an aligned access of this many bytes, and others
            // access what is there only atomically meanwhile.
            unsafe {
                match (load, bytes) {
                    (true, 1) => *value = u64::from(u8::load(pointer)),
                    (true, 2) => *value = u64::from(u16::load(pointer)),
                    (true, 4) => *value = u64::from(u32::load(pointer)),
                    (true, _) => *value = u64::load(pointer),
                    (false, 1) => u8::store(pointer, *value as u8),
                    (false, 2) => u16::store(pointer, *value as u16),
                    (false, 4) => u32::store(pointer, *value as u32),
                    (false, _) => u64::store(pointer, *value),
                }
            }
        }
        Ok(())
    }
}
