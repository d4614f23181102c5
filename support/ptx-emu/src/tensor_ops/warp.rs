//! `mma.sync`, `ldmatrix`, `stmatrix`, `movmatrix`: one warp.

use super::{TensorOp, accumulation, accumulator, multiplicand, shape, take_satfinite};
use crate::ast::{Instruction, Operand, Type};
use crate::cx::Cx;
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{Addr, Reg, Src};
use crate::mem_ops::{MemSpace, Place, place_of};
use crate::race::{Access, AccessKind, Sem, Space};
use crate::regs::{Lanes64, Mask};
use crate::report::Kind;
use crate::tensor::matrix::{self, Row};
use crate::tensor::mma::{self, Mma, WideRegister};
use crate::tensor::{Accumulation, Register};

/// `mma.sync`
#[derive(Debug)]
pub struct MmaOp {
    form: Mma,
    d: Box<[Reg]>,
    a: Box<[Src]>,
    b: Box<[Src]>,
    c: Box<[Src]>,
}

/// `mma.sync` of F64.
#[derive(Debug)]
pub struct MmaF64 {
    shape: (usize, usize, usize),
    d: Box<[Reg]>,
    a: Box<[Src]>,
    b: Box<[Src]>,
    c: Box<[Src]>,
}

/// `ldmatrix`, `stmatrix`
#[derive(Debug)]
pub struct MatrixOp {
    store: bool,
    transpose: bool,
    /// `.shared`; else the address is generic.
    shared: bool,
    address: Addr,
    registers: Box<[Reg]>,
}

/// `movmatrix`
#[derive(Debug)]
pub struct Transpose {
    d: Reg,
    a: Src,
}

pub fn sources(decoder: &mut Decoder<'_>, operand: &Operand, ty: Type) -> Result<Box<[Src]>> {
    let list = decoder.elements(operand);
    list.iter().map(|element| decoder.src(element, ty)).collect()
}

pub fn destinations(decoder: &mut Decoder<'_>, operand: &Operand, ty: Type) -> Result<Box<[Reg]>> {
    let list = decoder.elements(operand);
    list.iter().map(|element| decoder.dst_of(element, ty)).collect()
}

/// Registers an operand must have.
pub fn count(decoder: &Decoder<'_>, what: &str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(decoder.error(format!("operand {what} has {got} registers, its type and shape need {expected}")))
    }
}

pub fn decode_mma(decoder: &mut Decoder<'_>, instruction: &Instruction, shape_text: &str, rest: &[&str]) -> Result<TensorOp> {
    let [d, a, b, c] = instruction.operands.as_slice() else {
        return Err(decoder.error("mma takes four operands"));
    };
    let (Some(shape), ["row", "col", types @ ..]) = (shape(shape_text), rest) else {
        return Err(decoder.unknown(instruction));
    };
    if let ["f64", "f64", "f64", "f64"] | ["f64", "f64", "f64", "f64", "rn"] | ["rn", "f64", "f64", "f64", "f64"] = types {
        if !mma::has_f64(shape) {
            return Err(decoder.unknown(instruction));
        }
        return MmaF64::decode(decoder, shape, [d, a, b, c]);
    }
    let (saturate, types) = take_satfinite(types);
    let form = match types.as_slice() {
        [d, a, b, c] if d == c => accumulator(d).zip(multiplicand(a)).zip(multiplicand(b)),
        _ => None,
    };
    let Some(((accumulators, a_type), b_type)) = form else { return Err(decoder.unknown(instruction)) };
    let form = Mma::new(shape, accumulators, a_type, b_type, saturate).map_err(|e| decoder.error(e.to_string()))?;
    let op = MmaOp {
        form,
        d: destinations(decoder, d, Type::B32)?,
        a: sources(decoder, a, Type::B32)?,
        b: sources(decoder, b, Type::B32)?,
        c: sources(decoder, c, Type::B32)?,
    };
    count(decoder, "d", op.d.len(), form.d_registers())?;
    count(decoder, "a", op.a.len(), form.a_registers())?;
    count(decoder, "b", op.b.len(), form.b_registers())?;
    count(decoder, "c", op.c.len(), form.d_registers())?;
    Ok(TensorOp::Mma(op))
}

impl MmaOp {
    pub fn exec(&self, cx: &mut Cx<'_>) -> Exec {
        // No operand has more than four registers.
        let read = |sources: &[Src]| -> [Register; 4] {
            let mut registers = [[0; 32]; 4];
            registers.iter_mut().zip(sources).for_each(|(to, from)| *to = cx.get32(from));
            registers
        };
        let (a, b, c) = (read(&self.a), read(&self.b), read(&self.c));
        let mut d = [[0; 32]; 4];
        let accumulation: Accumulation = accumulation(cx);
        self.form.run(&a[..self.a.len()], &b[..self.b.len()], &c[..self.c.len()], &mut d[..self.d.len()], accumulation)?;
        for (reg, values) in self.d.iter().zip(&d) {
            cx.set32(*reg, values);
        }
        Ok(())
    }
}

impl MmaF64 {
    /// `shape` is one of [`mma::has_f64`].
    pub fn decode(decoder: &mut Decoder<'_>, shape: (usize, usize, usize), [d, a, b, c]: [&Operand; 4]) -> Result<TensorOp> {
        let (m, n, k) = shape;
        let op = MmaF64 {
            shape,
            d: destinations(decoder, d, Type::F64)?,
            a: sources(decoder, a, Type::F64)?,
            b: sources(decoder, b, Type::F64)?,
            c: sources(decoder, c, Type::F64)?,
        };
        count(decoder, "d", op.d.len(), m * n / 32)?;
        count(decoder, "a", op.a.len(), m * k / 32)?;
        count(decoder, "b", op.b.len(), n * k / 32)?;
        count(decoder, "c", op.c.len(), m * n / 32)?;
        Ok(TensorOp::MmaF64(op))
    }

    pub fn exec(&self, cx: &mut Cx<'_>) -> Exec {
        let read = |sources: &[Src]| -> Vec<WideRegister> { sources.iter().map(|source| cx.get64(source)).collect() };
        let (a, b, c) = (read(&self.a), read(&self.b), read(&self.c));
        let mut d = vec![[0; 32]; self.d.len()];
        mma::f64(self.shape, &a, &b, &c, &mut d)?;
        for (reg, values) in self.d.iter().zip(&d) {
            cx.set64(*reg, values);
        }
        Ok(())
    }
}

pub fn decode_matrix(decoder: &mut Decoder<'_>, instruction: &Instruction, store: bool, rest: &[&str]) -> Result<TensorOp> {
    let ["m8n8", count_text, rest @ ..] = rest else { return Err(decoder.unknown(instruction)) };
    let matrices = match *count_text {
        "x1" => 1,
        "x2" => 2,
        "x4" => 4,
        _ => return Err(decoder.unknown(instruction)),
    };
    let (transpose, rest) = match rest {
        ["trans", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let shared = match rest {
        ["b16"] => false,
        ["shared" | "shared::cta", "b16"] => true,
        _ => return Err(decoder.unknown(instruction)),
    };
    let [first, second] = instruction.operands.as_slice() else {
        return Err(decoder.error("ldmatrix and stmatrix take two operands"));
    };
    let (address, registers) = if store { (first, second) } else { (second, first) };
    let address = decoder.addr(address)?;
    let registers = if store {
        let list = decoder.elements(registers);
        let mut regs = Vec::with_capacity(list.len());
        for element in list {
            match decoder.src(element, Type::B32)? {
                Src::Reg(reg) => regs.push(reg),
                _ => return Err(decoder.error("stmatrix stores registers")),
            }
        }
        regs.into_boxed_slice()
    } else {
        destinations(decoder, registers, Type::B32)?
    };
    count(decoder, "r", registers.len(), matrices)?;
    Ok(TensorOp::Matrix(MatrixOp { store, transpose, shared, address, registers }))
}

impl MatrixOp {
    pub fn exec(&self, cx: &mut Cx<'_>) -> Exec {
        let lanes = 8 * self.registers.len();
        let mask = Mask::MAX >> (32 - lanes);
        let mut addresses = cx.address(&self.address);
        for (lane, address) in addresses.iter_mut().enumerate().take(lanes) {
            *address = self.shared_address(cx, lane, *address)?;
        }
        let kind = if self.store { AccessKind::Write } else { AccessKind::Read };
        if self.store {
            let mut rows = [[0; 16]; 32];
            for (i, reg) in self.registers.iter().enumerate() {
                rows[8 * i..8 * i + 8].copy_from_slice(&matrix::store(&cx.get32(&Src::Reg(*reg)), self.transpose));
            }
            self.race(cx, mask, &addresses, kind, &rows)?;
            let shared = &mut cx.blocks[cx.rank].shared;
            for (row, &address) in rows.iter().zip(&addresses).take(lanes) {
                // Inside: `shared_address` has checked it.
                let _ = shared.write(address as u32, row);
            }
            return Ok(());
        }
        let mut rows: [Row; 32] = [[0; 16]; 32];
        let shared = &cx.blocks[cx.rank].shared;
        for (row, &address) in rows.iter_mut().zip(&addresses).take(lanes) {
            if let Some(bytes) = shared.bytes(address as u32, 16) {
                row.copy_from_slice(bytes);
            }
        }
        if cx.env.config.checks.uninitialized {
            for (lane, &address) in addresses.iter().enumerate().take(lanes) {
                if let Some(byte) = shared.first_undefined(address, 16) {
                    let message = format!("ldmatrix reads shared memory at {byte:#x}, which nothing wrote");
                    return Err(Fault::at(Kind::UninitializedMemory, lane, message));
                }
            }
        }
        self.race(cx, mask, &addresses, kind, &rows)?;
        for (i, &reg) in self.registers.iter().enumerate() {
            let mut of_matrix = [[0; 16]; 8];
            of_matrix.copy_from_slice(&rows[8 * i..8 * i + 8]);
            cx.set32(reg, &matrix::load(&of_matrix, self.transpose));
        }
        Ok(())
    }

    /// The address of a row as an offset in the block's shared memory.
    fn shared_address(&self, cx: &Cx<'_>, lane: usize, address: u64) -> Exec<u64> {
        let name = if self.store { "stmatrix" } else { "ldmatrix" };
        let space = if self.shared { MemSpace::SharedCta } else { MemSpace::Generic };
        let address = match place_of(space, address, cx.rank, cx.blocks.len()) {
            Ok((Place::Shared(rank), offset)) if rank == cx.rank => offset,
            Ok(_) => {
                let message = format!("{name}: the address {address:#x} is not in the shared memory of the block");
                return Err(Fault::at(Kind::OutOfBounds, lane, message));
            }
            Err(what) => return Err(Fault::at(Kind::OutOfBounds, lane, format!("{name}: {what}"))),
        };
        let shared = &cx.blocks[cx.rank].shared;
        if address < u64::from(crate::cx::SHARED_START) || !shared.holds(address, 16) {
            let message =
                format!("{name}: a row of 16 bytes at shared address {address:#x}, shared memory ends at {:#x}", shared.size());
            return Err(Fault::at(Kind::OutOfBounds, lane, message));
        }
        if address % 16 != 0 {
            let message = format!("{name}: the row at shared address {address:#x} must be aligned to 16 bytes");
            return Err(Fault::at(Kind::Misaligned, lane, message));
        }
        Ok(address)
    }

    fn race(&self, cx: &mut Cx<'_>, mask: Mask, addresses: &Lanes64, kind: AccessKind, rows: &[Row; 32]) -> Exec {
        let (Some(warp), site) = (cx.race_warp(), cx.site) else { return Ok(()) };
        let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
        let equal = |one: u32, other: u32| rows.get(one as usize) == rows.get(other as usize);
        let access = Access {
            space: Space::Shared(warp.block),
            kind,
            sem: Sem::WEAK,
            mask,
            addresses,
            size: 16,
            element: 16,
            site,
            agree: Some(&equal),
        };
        Ok(detector.race.access(warp, &access)?)
    }
}

pub fn decode_transpose(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<TensorOp> {
    let [d, a] = instruction.operands.as_slice() else { return Err(decoder.error("movmatrix takes two operands")) };
    Ok(TensorOp::Transpose(Transpose { d: decoder.dst_of(d, Type::B32)?, a: decoder.src(a, Type::B32)? }))
}

impl Transpose {
    pub fn exec(&self, cx: &mut Cx<'_>) {
        let transposed = matrix::transpose(&cx.get32(&self.a));
        cx.set32(self.d, &transposed);
    }
}
