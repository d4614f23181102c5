//! Which registers asynchronous matrix instructions own (PTX ISA 9.0, section 9.7.15.7), and `wgmma.fence`, `.commit_group`, `.wait_group`.
//!
//! From its issue until a group with it has been waited for, the accumulators and A fragments of a `wgmma.mma_async` belong to it: any other
//! instruction that touches them is reported, `wgmma.mma_async` of the same shape on the same accumulators excepted. Copies
//! that the compiler's `mov` makes are registers in flight too, until what they copy is not.
//!
//! Between any access to such a register and the instruction that takes it there must be a `wgmma.fence`. An epoch counts the fences, and
//! each register remembers the epoch it was last touched in. Copies hand the epoch on and constants have none: where a compiler puts a
//! `mov` says nothing of the program.

use std::collections::VecDeque;

use crate::cx::{Cx, Warp};
use crate::fault::{Exec, Fault};
use crate::isa::{Instr, PRED_BIT};
use crate::race::{AgentId, Observe};
use crate::regs::{LANES, Mask};
use crate::report::Kind;

/// A `wgmma.mma_async` that has not been waited for.
#[derive(Debug)]
pub struct Issued {
    /// Absolute slots of its accumulators.
    pub accumulators: Vec<usize>,
    /// Absolute slots of A, when it is in registers.
    pub fragments: Vec<usize>,
    /// `m64nNkK` and the type of D.
    pub shape: (usize, usize, crate::tensor::Accumulator),
}

/// `wgmma`s that are waited for together.
#[derive(Debug, Default)]
struct Group {
    issued: Vec<Issued>,
    /// What the race detector calls them; more than one only if the warps of a warpgroup commit differently.
    agents: Vec<AgentId>,
}

/// What a warp keeps: registers of asynchronous matrix instructions in flight.
#[derive(Debug, Default)]
pub struct WarpState {
    /// Not committed yet.
    open: Group,
    committed: VecDeque<Group>,
    /// All slots that `open` and `committed` own, and the copies: what most instructions are checked against.
    pub in_flight: Vec<usize>,
    /// Copies of slots in flight: (copy, original).
    copies: Vec<(usize, usize)>,
    /// Fences so far.
    epoch: u32,
    /// By slot: the epoch of the last access.
    touched: Vec<u32>,
    /// `wgmma.mma_async` executed so far.
    pub issued: u64,
}

impl WarpState {
    /// Whether instructions must be told to [`before_instruction`].
    pub fn watches(&self) -> bool {
        self.epoch != 0
    }

    /// `wgmma.fence`.
    pub fn fence(&mut self) {
        self.epoch = self.epoch.saturating_add(1);
    }

    /// `wgmma.commit_group`.
    pub fn commit(&mut self) {
        self.committed.push_back(std::mem::take(&mut self.open));
    }

    fn touch(&mut self, slot: usize, epoch: u32) {
        if self.touched.len() <= slot {
            self.touched.resize(slot + 1, 0);
        }
        self.touched[slot] = epoch;
    }

    fn touched(&self, slot: usize) -> u32 {
        self.touched.get(slot).copied().unwrap_or(0)
    }

    fn owns(&self, slot: usize) -> bool {
        self.in_flight.contains(&slot)
    }

    /// The agent of the group being filled.
    pub fn agent(&self) -> Option<AgentId> {
        self.open.agents.last().copied()
    }

    /// The group being filled has part in an agent.
    pub fn take_part(&mut self, agent: Option<AgentId>) {
        if let Some(agent) = agent
            && !self.open.agents.contains(&agent)
        {
            self.open.agents.push(agent);
        }
    }

    /// Checks that a `wgmma.mma_async` may take its registers.
    pub fn check(&self, new: &Issued) -> Exec {
        if self.epoch == 0 {
            return Err(Fault::new(
                Kind::MissingWgmmaFence,
                "no wgmma.fence stands before the first wgmma.mma_async of the warp",
            ));
        }
        for (slots, what) in [(&new.accumulators, "an accumulator"), (&new.fragments, "a register of A")] {
            if slots.iter().any(|&slot| self.touched(slot) == self.epoch) {
                return Err(Fault::new(
                    Kind::MissingWgmmaFence,
                    format!("{what} was accessed after the last wgmma.fence and is used by wgmma.mma_async without another"),
                ));
            }
        }
        for old in self.committed.iter().chain([&self.open]).flat_map(|group| &group.issued) {
            let shared = |a: &[usize], b: &[usize]| a.iter().any(|slot| b.contains(slot));
            if shared(&new.accumulators, &old.accumulators) && new.shape != old.shape {
                return Err(Fault::new(
                    Kind::WgmmaRegisterInFlight,
                    "an accumulator belongs to a wgmma.mma_async of another shape that has not been waited for",
                ));
            }
            if shared(&new.accumulators, &old.fragments) || shared(&new.fragments, &old.accumulators) {
                return Err(Fault::new(
                    Kind::WgmmaRegisterInFlight,
                    "a register is A of one wgmma.mma_async and accumulator of another, and the earlier has not been waited for",
                ));
            }
        }
        let copied = |slots: &[usize]| slots.iter().any(|slot| self.copies.iter().any(|copy| copy.0 == *slot));
        if copied(&new.accumulators) || copied(&new.fragments) {
            return Err(Fault::new(
                Kind::WgmmaRegisterInFlight,
                "a register is a copy of one that belongs to a wgmma.mma_async that has not been waited for",
            ));
        }
        Ok(())
    }

    /// A `wgmma.mma_async` takes its registers.
    pub fn issue(&mut self, new: Issued) {
        for &slot in new.accumulators.iter().chain(&new.fragments) {
            if !self.in_flight.contains(&slot) {
                self.in_flight.push(slot);
            }
        }
        self.open.issued.push(new);
    }

    /// Forgets registers that nothing owns any more.
    fn release(&mut self) {
        let in_flight = &mut self.in_flight;
        in_flight.clear();
        for issued in self.committed.iter().chain([&self.open]).flat_map(|group| &group.issued) {
            in_flight.extend(issued.accumulators.iter().chain(&issued.fragments));
        }
        in_flight.sort_unstable();
        in_flight.dedup();
        // Copies of copies come after what they copy.
        let mut kept = Vec::new();
        for &(copy, original) in &self.copies {
            if in_flight.contains(&original) {
                in_flight.push(copy);
                kept.push((copy, original));
            }
        }
        self.copies = kept;
    }
}

/// `wgmma.wait_group`: all but the last `pending` groups are complete.
pub fn wait(cx: &mut Cx<'_>, pending: usize) -> Exec {
    let warp = cx.race_warp();
    let state = &mut cx.warp.tensor;
    while state.committed.len() > pending {
        let Some(group) = state.committed.pop_front() else { break };
        let (Some(warp), Some(detector)) = (warp, cx.detector.as_deref_mut()) else { continue };
        for agent in group.agents {
            detector.race.agent_observe(agent, warp, Mask::MAX, Observe::All)?;
            if cx.blocks[cx.rank].tensor.observed(agent) {
                detector.race.agent_retire(agent);
            }
        }
    }
    state.release();
    Ok(())
}

/// Before an instruction of another family, once the warp has executed a `wgmma.fence`: may it touch its registers? Notes that it does.
pub fn before_instruction(warp: &mut Warp, instr: &Instr, mask: Mask) -> Exec {
    let Warp { tensor: state, regs, .. } = warp;
    let slot = |key: &u32| (key & PRED_BIT == 0).then(|| regs.absolute(*key));
    let epoch = state.epoch;
    if instr.moves {
        let origin = instr.reads.iter().filter_map(slot).find(|&slot| state.owns(slot));
        let latest = instr.reads.iter().filter_map(slot).map(|slot| state.touched(slot)).max().unwrap_or(0);
        for to in instr.writes.iter().filter_map(slot) {
            overwrite(state, to, instr, mask)?;
            state.touch(to, latest);
            if let Some(origin) = origin {
                state.copies.push((to, origin));
                state.in_flight.push(to);
            }
        }
        return Ok(());
    }
    for from in instr.reads.iter().filter_map(slot) {
        if state.owns(from) {
            return Err(touches(instr, "reads", mask));
        }
        state.touch(from, epoch);
    }
    for to in instr.writes.iter().filter_map(slot) {
        overwrite(state, to, instr, mask)?;
        state.touch(to, epoch);
    }
    Ok(())
}

/// A register gets another value: it is no copy any more; an error when it is in flight itself.
fn overwrite(state: &mut WarpState, slot: usize, instr: &Instr, mask: Mask) -> Exec {
    if !state.owns(slot) {
        return Ok(());
    }
    let before = state.copies.len();
    state.copies.retain(|copy| copy.0 != slot);
    if state.copies.len() == before {
        return Err(touches(instr, "writes", mask));
    }
    // Its own copies stay unusable: they hold the old value.
    state.in_flight.retain(|&other| other != slot);
    Ok(())
}

fn touches(instr: &Instr, how: &str, mask: Mask) -> Box<Fault> {
    let lane = mask.trailing_zeros() as usize % LANES;
    let message = format!("{} {how} a register of a wgmma.mma_async that has not been waited for", instr.text);
    Fault::at(Kind::WgmmaRegisterInFlight, lane, message)
}
