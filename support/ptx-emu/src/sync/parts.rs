//! What the decoders of this family share: opcode parts in any order, addresses in shared memory, scopes.

use crate::ast::{Instruction, Operand};
use crate::cx::{Cx, SHARED_RANK_SHIFT, SHARED_START, SHARED_WINDOW, WINDOW};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::Addr;
use crate::race::{Order, Scope, Sem};
use crate::regs::lanes;
use crate::report::Kind;

/// The parts of an opcode behind its base, taken one by one; what is left in the end is unknown.
pub struct Parts<'a> {
    left: Vec<&'a str>,
}

impl<'a> Parts<'a> {
    /// Of an instruction whose first `skip` parts are known.
    pub fn new(instruction: &'a Instruction, skip: usize) -> Parts<'a> {
        Parts { left: instruction.opcode.iter().skip(skip).map(String::as_str).collect() }
    }

    /// Whether this part stands there; takes it.
    pub fn take(&mut self, part: &str) -> bool {
        match self.left.iter().position(|p| *p == part) {
            Some(at) => {
                self.left.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first of these that stands there.
    pub fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        table.iter().find(|(name, _)| self.take(name)).map(|&(_, value)| value)
    }

    /// Whether nothing is left.
    pub fn done(&self) -> bool {
        self.left.is_empty()
    }

    /// A scope.
    pub fn scope(&mut self) -> Option<Scope> {
        self.one_of(&[("cta", Scope::Cta), ("cluster", Scope::Cluster), ("gpu", Scope::Gpu), ("sys", Scope::Sys)])
    }

    /// The window of a shared address; generic where none is written.
    pub fn shared_window(&mut self) -> Window {
        self.one_of(&[("shared", Window::Cta), ("shared::cta", Window::Cta), ("shared::cluster", Window::Cluster)])
            .unwrap_or(Window::Generic)
    }
}

/// Order and scope of an mbarrier operation, and whether they were written: `default` at block scope when nothing is. None when the combination is not
/// one.
pub fn order_and_scope(parts: &mut Parts<'_>, default: Order) -> Option<(Sem, bool)> {
    let order = parts.one_of(&[("relaxed", Order::Relaxed), ("release", Order::Release), ("acquire", Order::Acquire)]);
    let scope = parts.scope();
    match (order, scope) {
        (None, None) => Some((Sem::new(default, Scope::Cta), false)),
        (Some(order), Some(scope @ (Scope::Cta | Scope::Cluster))) if order == default || order == Order::Relaxed => {
            Some((Sem::new(order, scope), true))
        }
        _ => None,
    }
}

/// Which addresses an operand in shared memory can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// `.shared`, `.shared::cta`: the executing block's.
    Cta,
    /// `.shared::cluster`: any block's of the cluster.
    Cluster,
    /// No state space: a generic address that must lie in shared memory.
    Generic,
}

/// An address operand in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct SharedAddr {
    /// Where.
    pub addr: Addr,
    /// Which window.
    pub window: Window,
}

/// A place in the shared memory of a block of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Rank of the block.
    pub rank: usize,
    /// Shared address inside it.
    pub address: u32,
}

/// Decodes `[addr]` in shared memory.
pub fn shared_addr(decoder: &mut Decoder<'_>, operand: &Operand, window: Window) -> Result<SharedAddr> {
    Ok(SharedAddr { addr: decoder.addr(operand)?, window })
}

/// The block and the offset of a shared or generic address, without a look at bounds.
pub fn locate(cx: &Cx<'_>, address: u64, window: Window, lane: usize, what: &str) -> Exec<Place> {
    let offset = match window {
        Window::Generic => match address.checked_sub(SHARED_WINDOW) {
            Some(offset) if offset < WINDOW => offset as u32,
            _ => {
                return Err(Fault::at(
                    Kind::OutOfBounds,
                    lane,
                    format!("{what}: the generic address {address:#x} is not in shared memory"),
                ));
            }
        },
        Window::Cta | Window::Cluster => address as u32,
    };
    let rank = match offset >> SHARED_RANK_SHIFT {
        0 => cx.rank,
        r => r as usize - 1,
    };
    let place = Place { rank, address: offset & ((1 << SHARED_RANK_SHIFT) - 1) };
    if rank >= cx.blocks.len() {
        return Err(Fault::at(
            Kind::OutOfBounds,
            lane,
            format!("{what}: shared address {offset:#x} names block {rank} of a cluster of {}", cx.blocks.len()),
        ));
    }
    if rank != cx.rank && window == Window::Cta {
        return Err(Fault::at(
            Kind::OutOfBounds,
            lane,
            format!(
                "{what}: shared address {offset:#x} is that of block {rank} of the cluster, the instruction takes only its own block's"
            ),
        ));
    }
    Ok(place)
}

/// Checks that `size` bytes lie in the shared memory of a block that still runs.
pub fn check_shared(cx: &Cx<'_>, place: Place, size: u64, align: u32, lane: usize, what: &str) -> Exec {
    let Place { rank, address } = place;
    let end = u64::from(cx.launch.shared_size);
    if address < SHARED_START || u64::from(address) + size > end {
        let whose = if rank == cx.rank { String::new() } else { format!(" of block {rank} of the cluster") };
        return Err(Fault::at(
            Kind::OutOfBounds,
            lane,
            format!(
                "{what}: {size} bytes at shared address {address:#x}{whose}, where shared memory is {SHARED_START:#x} to {end:#x}"
            ),
        ));
    }
    if !address.is_multiple_of(align) {
        return Err(Fault::at(
            Kind::Misaligned,
            lane,
            format!("{what}: shared address {address:#x} is not a multiple of {align}"),
        ));
    }
    if rank != cx.rank && cx.blocks[rank].live_threads == 0 {
        return Err(Fault::at(
            Kind::EarlyExit,
            lane,
            format!("{what}: block {rank} of the cluster has exited, its shared memory is gone"),
        ));
    }
    Ok(())
}

/// The places of a shared operand by lane (of executing lanes), checked.
pub fn places(cx: &Cx<'_>, operand: &SharedAddr, size: u64, align: u32, what: &str) -> Exec<Vec<(usize, Place)>> {
    let addresses = cx.address(&operand.addr);
    let mut list = Vec::with_capacity(cx.mask.count_ones() as usize);
    for lane in lanes(cx.mask) {
        let place = locate(cx, addresses[lane], operand.window, lane, what)?;
        check_shared(cx, place, size, align, lane, what)?;
        list.push((lane, place));
    }
    Ok(list)
}
