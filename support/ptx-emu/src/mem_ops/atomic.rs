//! `atom`, `red`.

use super::load::{check_vector, policy};
use super::modifiers::{Family, MemSpace, Modifiers};
use super::place::{self, Note, Place, Pointers, Shape};
use super::rmw::{self, Function};
use crate::ast::{Instruction, Operand, Space, Type};
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::Exec;
use crate::isa::{Addr, Reg, Src};
use crate::memory::Word;
use crate::race::{AccessKind, Order, Sem};
use crate::regs::{LANES, Lanes64, Mask, lanes};
use std::sync::atomic::{Ordering, fence};

/// A decoded `atom` or `red`.
#[derive(Debug)]
pub struct Atomic {
    space: MemSpace,
    addr: Addr,
    shape: Shape,
    sem: Sem,
    /// In shared and in global memory.
    functions: (Function, Function),
    /// `.cas`, for 128 bits.
    compares: bool,
    /// By element; None for `_` and for `red`.
    dst: Box<[Option<Reg>]>,
    /// By element.
    b: Box<[Src]>,
    /// The new value of `.cas`.
    c: Option<Src>,
}

/// Decodes `atom` and `red`.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<Atomic> {
    let returns = instruction.opcode.first().is_some_and(|base| base == "atom");
    if instruction.opcode.get(1).is_some_and(|part| part == "async") {
        return Err(decoder.unknown(instruction));
    }
    let modifiers = Modifiers::parse(decoder, instruction, Family::Atomic)?;
    let vector = modifiers.vector > 1;
    let operation = modifiers.operation.as_deref().unwrap_or("");
    let half = matches!(modifiers.ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2);
    let legal = modifiers.noftz == half
        && (!vector || matches!(modifiers.space, MemSpace::Global | MemSpace::Generic))
        && (returns || (!matches!(operation, "cas" | "exch") && matches!(modifiers.sem.order, Order::Relaxed | Order::Release)));
    let functions =
        rmw::function(operation, modifiers.ty, vector).filter(|_| legal).ok_or_else(|| decoder.unknown(instruction))?;
    let operands = instruction.operands.as_slice();
    let (target, operands) = match (returns, operands) {
        (true, [target, rest @ ..]) => (Some(target), rest),
        (_, all) => (None, all),
    };
    let [address, b, rest @ ..] = operands else {
        return Err(decoder.error("an atomic operation wants an address and an operand"));
    };
    check_vector(decoder, instruction, &modifiers, b)?;
    let mut dst = vec![];
    if let Some(target) = target {
        check_vector(decoder, instruction, &modifiers, target)?;
        for element in decoder.elements(target).to_vec() {
            let sink = matches!(&element, Operand::Name(name) if name == "_");
            dst.push(if sink { None } else { Some(decoder.dst_of(&element, modifiers.ty)?) });
        }
    }
    let addr = decoder.addr(address)?;
    let mut sources = vec![];
    for element in decoder.elements(b).to_vec() {
        sources.push(value(decoder, &element, modifiers.ty)?);
    }
    let (c, rest) = match (operation == "cas", rest) {
        (true, [c, rest @ ..]) => (Some(value(decoder, c, modifiers.ty)?), rest),
        (true, []) => return Err(decoder.error("cas wants the value to compare with and the new one")),
        (false, rest) => (None, rest),
    };
    policy(decoder, &modifiers, rest)?;
    let space = modifiers.space_of(decoder, &addr, true)?;
    if !matches!(space, MemSpace::Generic | MemSpace::Global | MemSpace::SharedCta | MemSpace::SharedCluster) {
        return Err(decoder.unknown(instruction));
    }
    let element = modifiers.ty.bytes();
    Ok(Atomic {
        space,
        addr,
        shape: Shape { bytes: element * modifiers.vector, element, used: u32::MAX, reads: true, writes: true, constant: false },
        sem: modifiers.sem,
        functions,
        compares: operation == "cas",
        dst: dst.into(),
        b: sources.into(),
        c,
    })
}

fn value(decoder: &mut Decoder<'_>, operand: &Operand, ty: Type) -> Result<Src> {
    match decoder.src(operand, ty)? {
        Src::Imm(_) if ty == Type::B128 => Err(decoder.error("a 128-bit operand must be a register")),
        value @ (Src::Reg(_) | Src::Imm(_)) => Ok(value),
        _ => Err(decoder.error("an operand of an atomic operation must be a register or a literal")),
    }
}

/// Executes one.
pub fn exec(op: &Atomic, cx: &mut Cx<'_>) -> Exec<Step> {
    if matches!(op.sem.order, Order::Release | Order::AcqRel) {
        fence(Ordering::Release);
    }
    let addresses = place::addresses_of(cx, &op.addr);
    // Lanes that hit the same bytes do so in an order that nothing promises.
    let reverse = cx.env.config.seed != 0 && cx.rng.one_in(2);
    place::by_place(cx, op.space, &addresses, |cx, place, addresses, mask| {
        let note = Note { kind: AccessKind::ReadWrite, sem: op.sem, shape: &op.shape, agree: None };
        let changed = match place {
            Place::Global => {
                let pointers = place::global(cx, addresses, mask, &op.shape)?;
                place::note_access(cx, place, addresses, mask, &note)?;
                cx.warp.polled = Some((Space::Global, addresses[mask.trailing_zeros() as usize % LANES]));
                // With one thread nothing comes between a load and a store, and the bus need not be locked.
                let alone = cx.env.config.threads <= 1;
                // SAFETY: `global` has checked the pointers for the whole access, and nothing since can have freed what they point to.
                unsafe {
                    apply(op, cx, op.functions.1, &pointers, mask, reverse, if alone { Mode::Alone } else { Mode::Concurrent })
                }
            }
            Place::Shared(rank) if op.shape.bytes == op.shape.element => {
                let pointers = place::shared(cx, rank, addresses, mask, &op.shape)?;
                place::note_access(cx, place, addresses, mask, &note)?;
                cx.warp.polled = Some((Space::Shared, addresses[mask.trailing_zeros() as usize % LANES]));
                // SAFETY: `shared` has checked the pointers for the whole access, and nothing since can have moved what they point to.
                unsafe { apply(op, cx, op.functions.0, &pointers, mask, reverse, Mode::Own) }
            }
            Place::Shared(_) | Place::Local | Place::Param => {
                use crate::fault::Fault;
                let what = match place {
                    Place::Local => "local memory",
                    Place::Param => "kernel parameters",
                    _ => "shared memory as a vector",
                };
                return Err(Fault::at(
                    crate::report::Kind::IllegalOperand,
                    mask.trailing_zeros() as usize,
                    format!("{} on {what}, where there are no such operations", cx.instr.text),
                ));
            }
        };
        if changed {
            cx.env.progress();
        }
        Ok(())
    })?;
    if matches!(op.sem.order, Order::Acquire | Order::AcqRel) {
        fence(Ordering::Acquire);
    }
    Ok(Step::Next)
}

/// Who else may be at the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nobody, at any alignment: shared memory.
    Own,
    /// Nobody but the host.
    Alone,
    /// Other threads.
    Concurrent,
}

/// The lanes of a mask in the order of lanes or the other way round.
fn order(mask: Mask, reverse: bool) -> impl Iterator<Item = usize> {
    let flipped = lanes(if reverse { mask.reverse_bits() } else { mask });
    flipped.map(move |i| if reverse { LANES - 1 - i } else { i })
}

/// Updates the words that pointers point to, one lane after the other; gives the old values and whether anything changed.
///
/// # Safety
/// Each pointer of `mask` plus `at` is valid for reads and writes; aligned, and accessed by others only atomically, unless the mode is `Own`.
#[inline]
unsafe fn update<T: Word + Into<u64>>(
    pointers: &Pointers,
    at: usize,
    mode: Mode,
    lanes_in_order: impl Iterator<Item = usize>,
    new: impl Fn(usize, u64) -> u64,
) -> (Lanes64, bool)
where
    u64: Truncate<T>,
{
    let mut old = [0; LANES];
    let mut changed = false;
    for i in lanes_in_order {
        let to = pointers[i].wrapping_add(at);
        // SAFETY: the caller promises it.
        let before: u64 = unsafe {
            match mode {
                Mode::Own => {
                    let before = T::load_own(to).into();
                    T::store_own(to, new(i, before).truncate());
                    before
                }
                Mode::Alone => {
                    let before = T::load(to).into();
                    T::store(to, new(i, before).truncate());
                    before
                }
                Mode::Concurrent => T::update(to, |v| new(i, v.into()).truncate()).into(),
            }
        };
        changed |= mode != Mode::Concurrent && new(i, before) != before;
        old[i] = before;
    }
    (old, changed)
}

/// The low bits of 64.
trait Truncate<T> {
    fn truncate(self) -> T;
}

impl Truncate<u16> for u64 {
    fn truncate(self) -> u16 {
        self as u16
    }
}

impl Truncate<u32> for u64 {
    fn truncate(self) -> u32 {
        self as u32
    }
}

impl Truncate<u64> for u64 {
    fn truncate(self) -> u64 {
        self
    }
}

/// Executes the operation on all elements; whether anything changed, unless the mode is `Concurrent`.
///
/// # Safety
/// Each pointer of `mask` is valid for reads and writes of the whole access; aligned, and accessed by others only atomically, unless the
/// mode is `Own`.
unsafe fn apply(
    op: &Atomic,
    cx: &mut Cx<'_>,
    function: Function,
    pointers: &Pointers,
    mask: Mask,
    reverse: bool,
    mode: Mode,
) -> bool {
    if op.shape.element == 16 {
        // SAFETY: as promised by the caller.
        return unsafe { wide(op, cx, pointers, mask, reverse, mode) };
    }
    let element = op.shape.element;
    let keep = u64::MAX >> (64 - 8 * element);
    let c = op.c.as_ref().map_or([0; LANES], |c| cx.get64(c).map(|v| v & keep));
    let mut changed = false;
    for (i, source) in op.b.iter().enumerate() {
        let b = cx.get64(source).map(|v| v & keep);
        let at = i * element as usize;
        let new = |lane: usize, old: u64| function(old, b[lane], c[lane]) & keep;
        let order = order(mask, reverse);
        // SAFETY: as promised by the caller.
        let (old, did) = unsafe {
            match element {
                2 => update::<u16>(pointers, at, mode, order, new),
                4 => update::<u32>(pointers, at, mode, order, new),
                _ => update::<u64>(pointers, at, mode, order, new),
            }
        };
        changed |= did;
        if let Some(Some(reg)) = op.dst.get(i) {
            cx.warp.regs.set64(*reg, &old, mask);
        }
    }
    changed
}

/// `.b128`: exchange, or compare and exchange.
///
/// # Safety
/// As of [`apply`].
unsafe fn wide(op: &Atomic, cx: &mut Cx<'_>, pointers: &Pointers, mask: Mask, reverse: bool, mode: Mode) -> bool {
    let operand = |cx: &Cx<'_>, source: Option<&Src>| match source {
        Some(Src::Reg(reg)) => cx.get128(*reg),
        _ => ([0; LANES], [0; LANES]),
    };
    let b = operand(cx, op.b.first());
    let c = operand(cx, op.c.as_ref());
    let (mut low, mut high) = ([0; LANES], [0; LANES]);
    let mut changed = false;
    for i in order(mask, reverse) {
        let to = pointers[i];
        let step = || {
            // SAFETY: as promised by the caller; other 128-bit operations are kept out by `Memory::wide`.
            let old = unsafe {
                match mode {
                    Mode::Own => (u64::load_own(to), u64::load_own(to.wrapping_add(8))),
                    _ => (u64::load(to), u64::load(to.wrapping_add(8))),
                }
            };
            let new = match op.compares {
                false => (b.0[i], b.1[i]),
                true if old == (b.0[i], b.1[i]) => (c.0[i], c.1[i]),
                true => old,
            };
            if new != old {
                // SAFETY: as above.
                unsafe {
                    match mode {
                        Mode::Own => {
                            u64::store_own(to, new.0);
                            u64::store_own(to.wrapping_add(8), new.1);
                        }
                        _ => {
                            u64::store(to, new.0);
                            u64::store(to.wrapping_add(8), new.1);
                        }
                    }
                }
            }
            (old, new != old)
        };
        let (old, did) = if mode == Mode::Own { step() } else { cx.env.memory.wide(step) };
        (low[i], high[i]) = old;
        changed |= did;
    }
    if let Some(Some(reg)) = op.dst.first() {
        cx.warp.regs.set128(*reg, &low, &high, mask);
    }
    changed
}
