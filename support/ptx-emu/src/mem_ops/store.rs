//! `st`.

use super::load::{check_vector, policy};
use super::modifiers::{Family, MemSpace, Modifiers};
use super::place::{self, Locate, Note, Place, Shape, with_bytes};
use crate::ast::{Instruction, Operand};
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{Addr, Reg, Src};
use crate::memory::Word;
use crate::race::{AccessKind, Order, Sem};
use crate::regs::{LANES, Lanes64, Mask, lanes};
use crate::report::Kind;
use std::sync::atomic::{Ordering, fence};

/// A decoded store.
#[derive(Debug)]
pub struct Store {
    space: MemSpace,
    addr: Addr,
    shape: Shape,
    sem: Sem,
    /// By element.
    src: Box<[Src]>,
    /// The sources are not checked before it executes: what nothing wrote may go to local memory.
    checks: bool,
}

/// Decodes `st`.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<Store> {
    let modifiers = Modifiers::parse(decoder, instruction, Family::Store)?;
    let [address, source, rest @ ..] = instruction.operands.as_slice() else {
        return Err(decoder.error("a store wants an address and a source"));
    };
    check_vector(decoder, instruction, &modifiers, source)?;
    let mut src = vec![];
    for element in decoder.elements(source).to_vec() {
        let value = decoder.src(&element, modifiers.ty)?;
        if !matches!(value, Src::Reg(_) | Src::Imm(_)) || (modifiers.ty == crate::ast::Type::B128 && matches!(value, Src::Imm(_)))
        {
            return Err(decoder.error("what is stored must be a register or a literal"));
        }
        src.push(value);
    }
    let registers: Vec<Reg> = src.iter().filter_map(|s| if let Src::Reg(reg) = s { Some(*reg) } else { None }).collect();
    let addr = match address {
        Operand::Address { rest, .. } if rest.is_empty() => decoder.addr(address)?,
        _ => return Err(decoder.unknown(instruction)),
    };
    policy(decoder, &modifiers, rest)?;
    let space = modifiers.space_of(decoder, &addr, true)?;
    let checks = matches!(space, MemSpace::Local | MemSpace::Generic);
    if checks && !registers.iter().any(|reg| addr.base == Src::Reg(*reg)) {
        decoder.not_read(&registers);
    }
    let element = modifiers.ty.bytes();
    Ok(Store {
        space,
        addr,
        shape: Shape { bytes: element * modifiers.vector, element, used: u32::MAX, reads: false, writes: true, constant: false },
        sem: modifiers.sem,
        src: src.into(),
        checks,
    })
}

/// Executes one.
pub fn exec(op: &Store, cx: &mut Cx<'_>) -> Exec<Step> {
    if matches!(op.sem.order, Order::Release) {
        fence(Ordering::Release);
    }
    let addresses = place::addresses_of(cx, &op.addr);
    place::by_place(cx, op.space, &addresses, |cx, place, addresses, mask| {
        if op.checks {
            check_sources(op, cx, place, mask)?;
        }
        let changed = match place {
            Place::Global => {
                let bytes = place::find_global(cx, addresses, mask, &op.shape)?;
                note(op, cx, place, addresses, mask)?;
                // SAFETY: `global` has checked the pointers for the whole access, and nothing since can have freed what they point to.
                with_bytes!(bytes, addresses, |at| unsafe { transfer::<_, false>(op, cx, at, mask) })
            }
            Place::Shared(rank) => {
                let bytes = place::find_shared(cx, rank, addresses, mask, &op.shape)?;
                note(op, cx, place, addresses, mask)?;
                // SAFETY: `shared` has checked the pointers for the whole access, and nothing since can have moved what they point to.
                with_bytes!(bytes, addresses, |at| unsafe { transfer::<_, true>(op, cx, at, mask) })
            }
            Place::Local => local(op, cx, addresses, mask)?,
            Place::Param => return place::param(cx.launch, addresses, mask, &op.shape),
        };
        if changed {
            cx.env.progress();
        }
        Ok(())
    })?;
    Ok(Step::Next)
}

/// What the interpreter checks of other instructions: sources that nothing wrote, unless they go to local memory, and those that a matrix
/// instruction in flight will write.
fn check_sources(op: &Store, cx: &Cx<'_>, place: Place, mask: Mask) -> Exec {
    let checks = cx.env.config.checks;
    for source in &op.src {
        let Src::Reg(reg) = source else { continue };
        let unwritten = mask & !cx.warp.regs.defined(reg.slot);
        if checks.uninitialized && place != Place::Local && unwritten != 0 {
            let lane = unwritten.trailing_zeros() as usize;
            let message = format!("a source register of {} was never written in lanes {unwritten:#010x}", cx.instr.text);
            return Err(Fault::at(Kind::UninitializedRegister, lane, message));
        }
        if checks.in_flight && cx.warp.tensor.in_flight.contains(&cx.warp.regs.absolute(reg.slot)) {
            let message = format!("{} reads a register of a wgmma.mma_async that has not been waited for", cx.instr.text);
            return Err(Fault::at(Kind::WgmmaRegisterInFlight, mask.trailing_zeros() as usize, message));
        }
    }
    Ok(())
}

fn note(op: &Store, cx: &mut Cx<'_>, place: Place, addresses: &Lanes64, mask: Mask) -> Exec {
    if cx.detector.is_none() {
        return Ok(());
    }
    let unused = 64 - 8 * op.shape.element.min(8);
    let mut values: Vec<Lanes64> = vec![];
    for source in &op.src {
        match source {
            Src::Reg(reg) if op.shape.element == 16 => {
                let (low, high) = cx.get128(*reg);
                values.extend([low, high]);
            }
            other => values.push(cx.get64(other).map(|v| v << unused)),
        }
    }
    let agree = |a: u32, b: u32| values.iter().all(|v| v[a as usize % LANES] == v[b as usize % LANES]);
    let note = Note { kind: AccessKind::Write, sem: op.sem, shape: &op.shape, agree: Some(&agree) };
    place::note_access(cx, place, addresses, mask, &note)
}

/// Stores a word by lane, in the order of lanes; whether that changed anything, if `ask`.
///
/// # Safety
/// Each pointer of `mask` plus `at` is valid for writes; aligned, and accessed by others only atomically, unless `OWN`.
#[inline(always)]
unsafe fn scatter<T: Word + PartialEq, L: Locate, const OWN: bool>(
    place: &L,
    at: usize,
    values: &[T; LANES],
    mask: Mask,
    ask: bool,
) -> bool {
    // SAFETY: the caller promises it.
    let load = |i: usize| unsafe {
        let from = place.at(i).wrapping_add(at);
        if OWN { T::load_own(from) } else { T::load(from) }
    };
    // SAFETY: the caller promises it.
    let store = |i: usize| unsafe {
        let to = place.at(i).wrapping_add(at);
        if OWN { T::store_own(to, values[i]) } else { T::store(to, values[i]) }
    };
    if mask == Mask::MAX {
        // Mostly the first lane tells.
        let mut changed = ask && load(0) != values[0];
        if ask && !changed {
            changed = (1..LANES).fold(false, |changed, i| changed | (load(i) != values[i]));
        }
        (0..LANES).for_each(store);
        return changed;
    }
    let changed = ask && lanes(mask).any(|i| load(i) != values[i]);
    lanes(mask).for_each(store);
    changed
}

/// Moves registers to where pointers point; whether that changed anything, if somebody asks.
///
/// # Safety
/// Each pointer is valid for writes of the whole access; aligned, and accessed by others only atomically, unless `OWN`.
unsafe fn transfer<L: Locate, const OWN: bool>(op: &Store, cx: &Cx<'_>, place: &L, mask: Mask) -> bool {
    let ask = cx.env.config.threads <= 1;
    let element = op.shape.element as usize;
    let mut changed = false;
    for (i, source) in op.src.iter().enumerate() {
        let at = i * element;
        let ask = ask && !changed;
        // SAFETY: the caller promises it for all of the access.
        changed |= unsafe {
            match (element, source) {
                (1, _) => scatter::<u8, L, OWN>(place, at, &cx.get32(source).map(|v| v as u8), mask, ask),
                (2, _) => scatter::<u16, L, OWN>(place, at, &cx.get32(source).map(|v| v as u16), mask, ask),
                (4, _) => scatter::<u32, L, OWN>(place, at, &cx.get32(source), mask, ask),
                (16, Src::Reg(reg)) => {
                    let (low, high) = cx.get128(*reg);
                    let first = scatter::<u64, L, OWN>(place, at, &low, mask, ask);
                    scatter::<u64, L, OWN>(place, at + 8, &high, mask, ask) | first
                }
                _ => scatter::<u64, L, OWN>(place, at, &cx.get64(source), mask, ask),
            }
        };
    }
    changed
}

/// Local memory: what nothing wrote is still that there.
fn local(op: &Store, cx: &mut Cx<'_>, addresses: &Lanes64, mask: Mask) -> Exec<bool> {
    place::local(cx, addresses, mask, &op.shape)?;
    let tracks = cx.env.memory.tracks();
    let element = op.shape.element;
    let mut changed = false;
    for (i, source) in op.src.iter().enumerate() {
        let at = addresses.map(|a| a.wrapping_add(i as u64 * u64::from(element)));
        match source {
            Src::Reg(reg) if element == 16 => {
                let (low, high) = cx.get128(*reg);
                changed |= cx.warp.local.store(&at, 8, &low, mask)?;
                changed |= cx.warp.local.store(&at.map(|a| a.wrapping_add(8)), 8, &high, mask)?;
            }
            other => {
                let values = cx.get64(other);
                changed |= cx.warp.local.store(&at, element, &values, mask)?;
            }
        }
        if tracks {
            let defined = if let Src::Reg(reg) = source { cx.warp.regs.defined(reg.slot) } else { Mask::MAX };
            cx.warp.local.define(&at, element, defined, mask)?;
        }
    }
    Ok(changed)
}
