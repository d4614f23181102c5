//! `ld`, `ldu`.

use super::modifiers::{Family, MemSpace, Modifiers};
use super::place::{self, Locate, Note, Place, Shape, with_bytes};
use crate::ast::{Instruction, Operand, Space};
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::Exec;
use crate::isa::{Addr, Reg, Src, Width};
use crate::machine::Launch;
use crate::memory::Word;
use crate::race::{AccessKind, Order, Sem};
use crate::regs::{LANES, Lanes32, Lanes64, Mask};
use std::sync::atomic::{Ordering, fence};

/// A decoded load.
#[derive(Debug)]
pub struct Load {
    space: MemSpace,
    addr: Addr,
    shape: Shape,
    /// Sign-extends into wider registers.
    signed: bool,
    sem: Sem,
    /// By element; None for `_`.
    dst: Box<[Option<Reg>]>,
    /// It marks its destinations as written itself: what local memory holds may not be.
    defines: bool,
}

/// Whether a vector of elements is one that the instruction takes: at most 16 bytes.
pub fn check_vector(decoder: &Decoder<'_>, instruction: &Instruction, modifiers: &Modifiers, operand: &Operand) -> Result<()> {
    let bytes = modifiers.vector * modifiers.ty.bytes();
    if bytes > 16 {
        // 32 bytes are for sm_100.
        return Err(decoder.unknown(instruction));
    }
    let elements = decoder.elements(operand).len();
    if elements != modifiers.vector as usize {
        return Err(decoder.error(format!("{elements} elements where the instruction has {}", modifiers.vector)));
    }
    Ok(())
}

/// The operand of a cache policy, which must stand where `.L2::cache_hint` does. Its value does nothing.
pub fn policy(decoder: &mut Decoder<'_>, modifiers: &Modifiers, rest: &[Operand]) -> Result<()> {
    match (modifiers.cache_hint, rest) {
        (false, []) => Ok(()),
        (true, [policy]) => decoder.src(policy, crate::ast::Type::B64).map(|_| ()),
        (false, _) => Err(decoder.error("too many operands")),
        (true, _) => Err(decoder.error(".L2::cache_hint wants one operand more, the policy")),
    }
}

/// Decodes `ld` and `ldu`.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<Load> {
    let modifiers = Modifiers::parse(decoder, instruction, Family::Load)?;
    if instruction.opcode.first().is_some_and(|base| base == "ldu") {
        let plain = modifiers.sem == Sem::WEAK && !modifiers.non_coherent && !modifiers.cache_hint;
        if !plain || !matches!(modifiers.space, MemSpace::Global | MemSpace::Generic) {
            return Err(decoder.unknown(instruction));
        }
    }
    let [target, address, rest @ ..] = instruction.operands.as_slice() else {
        return Err(decoder.error("a load wants a destination and an address"));
    };
    check_vector(decoder, instruction, &modifiers, target)?;
    let elements = decoder.elements(target).to_vec();
    let mut dst = vec![];
    let mut used = 0;
    for (i, element) in elements.iter().enumerate() {
        let sink = matches!(element, Operand::Name(name) if name == "_");
        dst.push(if sink { None } else { Some(decoder.dst_of(element, modifiers.ty)?) });
        used |= u32::from(!sink) << i;
    }
    let addr = decoder.addr(address)?;
    policy(decoder, &modifiers, rest)?;
    let space = modifiers.space_of(decoder, &addr, false)?;
    let defines = matches!(space, MemSpace::Local | MemSpace::Generic);
    if defines {
        decoder.defines();
    }
    let element = modifiers.ty.bytes();
    use crate::ast::Type::{S8, S16, S32, S64};
    Ok(Load {
        space,
        addr,
        shape: Shape {
            bytes: element * modifiers.vector,
            element,
            used,
            reads: true,
            writes: false,
            constant: space == MemSpace::Const,
        },
        signed: matches!(modifiers.ty, S8 | S16 | S32 | S64),
        sem: modifiers.sem,
        dst: dst.into(),
        defines,
    })
}

/// Executes one.
pub fn exec(op: &Load, cx: &mut Cx<'_>) -> Exec<Step> {
    if let (MemSpace::Param, Src::Param(base)) = (op.space, op.addr.base) {
        uniform(op, cx, (base as u64).wrapping_add(op.addr.offset as u64))?;
        return Ok(Step::Next);
    }
    let addresses = place::addresses_of(cx, &op.addr);
    place::by_place(cx, op.space, &addresses, |cx, place, addresses, mask| {
        match place {
            Place::Global => {
                let bytes = place::find_global(cx, addresses, mask, &op.shape)?;
                note(op, cx, place, addresses, mask)?;
                // SAFETY: `global` has checked the pointers for the whole access, and nothing since can have freed what they point to.
                with_bytes!(bytes, addresses, |at| unsafe { transfer::<_, false>(op, cx, at, mask) });
                polled(cx, Space::Global, addresses, mask);
            }
            Place::Shared(rank) => {
                let bytes = place::find_shared(cx, rank, addresses, mask, &op.shape)?;
                note(op, cx, place, addresses, mask)?;
                // SAFETY: `shared` has checked the pointers for the whole access, and nothing since can have moved what they point to.
                with_bytes!(bytes, addresses, |at| unsafe { transfer::<_, true>(op, cx, at, mask) });
                polled(cx, Space::Shared, addresses, mask);
            }
            Place::Local => return local(op, cx, addresses, mask),
            Place::Param => param(op, cx, addresses, mask)?,
        }
        if op.defines && cx.env.memory.tracks() {
            for reg in op.dst.iter().flatten() {
                cx.warp.regs.define(reg.slot, Mask::MAX, mask);
            }
        }
        Ok(())
    })?;
    if matches!(op.sem.order, Order::Acquire) {
        fence(Ordering::Acquire);
    }
    Ok(Step::Next)
}

#[inline]
fn polled(cx: &mut Cx<'_>, space: Space, addresses: &Lanes64, mask: Mask) {
    cx.warp.polled = Some((space, addresses[mask.trailing_zeros() as usize % LANES]));
}

#[inline]
fn note(op: &Load, cx: &mut Cx<'_>, place: Place, addresses: &Lanes64, mask: Mask) -> Exec {
    if cx.detector.is_none() {
        return Ok(());
    }
    let note = Note { kind: AccessKind::Read, sem: op.sem, shape: &op.shape, agree: None };
    place::note_access(cx, place, addresses, mask, &note)
}

/// Loads a word by lane.
///
/// # Safety
/// Each pointer plus `at` is valid for reads; aligned, and written by others only atomically, unless `OWN`.
#[inline(always)]
unsafe fn gather<T: Word, L: Locate, const OWN: bool>(place: &L, at: usize) -> [T; LANES] {
    let mut values = [T::default(); LANES];
    for (lane, value) in values.iter_mut().enumerate() {
        let from = place.at(lane).wrapping_add(at);
        // SAFETY: the caller promises it.
        *value = unsafe { if OWN { T::load_own(from) } else { T::load(from) } };
    }
    values
}

/// Writes values of up to 32 bits, already extended to 32, to a register.
#[inline]
fn put32(cx: &mut Cx<'_>, reg: Reg, values: &Lanes32, signed: bool, mask: Mask) {
    if signed && matches!(reg.width, Width::W64 | Width::W128) {
        cx.warp.regs.set64(reg, &values.map(|v| i64::from(v as i32) as u64), mask);
    } else {
        cx.warp.regs.set32(reg, values, mask);
    }
}

/// Writes the low bytes of values to a register, sign-extended if the type is signed.
fn put(op: &Load, cx: &mut Cx<'_>, reg: Reg, values: &Lanes64, mask: Mask) {
    let unused = 64 - 8 * op.shape.element.min(8);
    let values = match op.signed {
        true => values.map(|v| ((v << unused) as i64 >> unused) as u64),
        false => values.map(|v| v << unused >> unused),
    };
    cx.warp.regs.set64(reg, &values, mask);
}

/// Moves what pointers point to into registers.
///
/// # Safety
/// Each pointer is valid for reads of the whole access; aligned, and written by others only atomically, unless `OWN`.
unsafe fn transfer<L: Locate, const OWN: bool>(op: &Load, cx: &mut Cx<'_>, place: &L, mask: Mask) {
    let element = op.shape.element as usize;
    for (i, reg) in op.dst.iter().enumerate() {
        let Some(reg) = *reg else { continue };
        let at = i * element;
        // SAFETY: the caller promises it for all of the access.
        unsafe {
            match (element, op.signed) {
                (1, false) => put32(cx, reg, &gather::<u8, L, OWN>(place, at).map(u32::from), false, mask),
                (1, true) => put32(cx, reg, &gather::<u8, L, OWN>(place, at).map(|v| v as i8 as u32), true, mask),
                (2, false) => put32(cx, reg, &gather::<u16, L, OWN>(place, at).map(u32::from), false, mask),
                (2, true) => put32(cx, reg, &gather::<u16, L, OWN>(place, at).map(|v| v as i16 as u32), true, mask),
                (4, signed) => put32(cx, reg, &gather::<u32, L, OWN>(place, at), signed, mask),
                (8, _) => cx.warp.regs.set64(reg, &gather::<u64, L, OWN>(place, at), mask),
                _ => {
                    let low = gather::<u64, L, OWN>(place, at);
                    let high = gather::<u64, L, OWN>(place, at + 8);
                    cx.warp.regs.set128(reg, &low, &high, mask);
                }
            }
        }
    }
}

/// Local memory: what nothing wrote stays unwritten in the register.
fn local(op: &Load, cx: &mut Cx<'_>, addresses: &Lanes64, mask: Mask) -> Exec {
    place::local(cx, addresses, mask, &op.shape)?;
    let tracks = op.defines && cx.env.memory.tracks();
    let element = op.shape.element;
    for (i, reg) in op.dst.iter().enumerate() {
        let Some(reg) = *reg else { continue };
        let at = addresses.map(|a| a.wrapping_add(i as u64 * u64::from(element)));
        if element == 16 {
            let low = cx.warp.local.load(&at, 8, mask)?;
            let high = cx.warp.local.load(&at.map(|a| a.wrapping_add(8)), 8, mask)?;
            cx.warp.regs.set128(reg, &low, &high, mask);
        } else {
            let values = cx.warp.local.load(&at, element, mask)?;
            put(op, cx, reg, &values, mask);
        }
        if tracks {
            let defined = cx.warp.local.defined(&at, element, mask)?;
            cx.warp.regs.define(reg.slot, defined, mask);
        }
    }
    Ok(())
}

/// A little-endian word of parameter memory; what is outside is 0.
fn word(launch: &Launch, at: u64, bytes: usize) -> u64 {
    let mut word = [0; 8];
    let from = usize::try_from(at).ok().and_then(|at| launch.params.get(at..)?.get(..bytes)).unwrap_or(&[]);
    word[..from.len()].copy_from_slice(from);
    u64::from_le_bytes(word)
}

/// Kernel parameters at an address that is the same for all lanes.
fn uniform(op: &Load, cx: &mut Cx<'_>, address: u64) -> Exec {
    let mask = cx.mask;
    place::param(cx.launch, &[address; LANES], mask & mask.wrapping_neg(), &op.shape)?;
    for (i, reg) in op.dst.iter().enumerate() {
        let Some(reg) = *reg else { continue };
        let at = address + i as u64 * u64::from(op.shape.element);
        if op.shape.element == 16 {
            let (low, high) = (word(cx.launch, at, 8), word(cx.launch, at + 8, 8));
            cx.warp.regs.set128(reg, &[low; LANES], &[high; LANES], mask);
        } else {
            let value = word(cx.launch, at, op.shape.element as usize);
            put(op, cx, reg, &[value; LANES], mask);
        }
    }
    Ok(())
}

/// Kernel parameters.
fn param(op: &Load, cx: &mut Cx<'_>, addresses: &Lanes64, mask: Mask) -> Exec {
    place::param(cx.launch, addresses, mask, &op.shape)?;
    let launch = cx.launch;
    let element = op.shape.element as usize;
    let gather = |at: u64, bytes: usize| addresses.map(|a| word(launch, a.wrapping_add(at), bytes));
    for (i, reg) in op.dst.iter().enumerate() {
        let Some(reg) = *reg else { continue };
        let at = (i * element) as u64;
        if element == 16 {
            cx.warp.regs.set128(reg, &gather(at, 8), &gather(at + 8, 8), mask);
        } else {
            put(op, cx, reg, &gather(at, element), mask);
        }
    }
    Ok(())
}
