//! `griddepcontrol`, `nanosleep`, `setmaxnreg` (PTX ISA 9.0, sections 9.7.13.14, 9.7.19.1 and 9.7.19.5).

use super::parts::Parts;
use super::{SyncOp, hooks};
use crate::ast::{Instruction, Type};
use crate::cx::{Block, Cx, Step, Wait};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::report::Kind;
use std::sync::atomic::Ordering;

/// Warps of a warpgroup.
const WARPGROUP: u32 = 4;
/// Registers of a multiprocessor.
const REGISTERS: u32 = 65536;
/// Most registers of a thread.
const MOST_REGISTERS: u32 = 255;

/// What this module executes.
#[derive(Debug)]
pub enum MiscOp {
    /// `griddepcontrol.launch_dependents`
    LaunchDependents,
    /// `griddepcontrol.wait`
    WaitForPrerequisites,
    /// `nanosleep`, however long.
    Sleep,
    /// `setmaxnreg`
    SetMaxRegisters {
        /// Registers of each thread afterwards.
        count: u32,
        /// `.inc`
        more: bool,
    },
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    let mut parts = Parts::new(instruction, 1);
    let base = instruction.opcode.first().map_or("", String::as_str);
    let op = match (base, instruction.operands.as_slice()) {
        ("griddepcontrol", []) if parts.take("launch_dependents") => MiscOp::LaunchDependents,
        ("griddepcontrol", []) if parts.take("wait") => MiscOp::WaitForPrerequisites,
        ("nanosleep", [time]) if parts.take("u32") => {
            decoder.src(time, Type::U32)?;
            MiscOp::Sleep
        }
        ("setmaxnreg", [count]) => {
            let Some(more) = parts.one_of(&[("inc", true), ("dec", false)]) else { return Err(decoder.unknown(instruction)) };
            if !(parts.take("sync") && parts.take("aligned") && parts.take("u32")) {
                return Err(decoder.unknown(instruction));
            }
            let count = decoder.literal(count)?;
            if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
                return Err(decoder.error(format!("setmaxnreg takes a multiple of 8 from 24 to 256, not {count}")));
            }
            MiscOp::SetMaxRegisters { count: count as u32, more }
        }
        _ => return Err(decoder.unknown(instruction)),
    };
    if !parts.done() {
        return Err(decoder.unknown(instruction));
    }
    Ok(SyncOp::Misc(op))
}

/// Registers of a block's threads, by warp.
///
/// How many a kernel starts with is the assembler's choice and not in the PTX. Taken is the most that lets one block of this size run: a
/// multiprocessor's 64 Ki registers over the threads of the block's whole warpgroups, a multiple of 8, at most 255. A block that asks for more than that in
/// all would wait forever whatever the assembler chose.
#[derive(Debug, Default)]
pub struct Registers {
    /// What each warp has asked for so far, in order.
    asked: Vec<Vec<(u32, bool)>>,
    /// Registers of each thread of a warp.
    held: Vec<u32>,
    pool: u32,
}

impl Registers {
    fn prepare(&mut self, warps: usize) {
        if self.held.is_empty() {
            let threads = (warps as u32 * 32).max(1);
            let each = (REGISTERS / threads).min(MOST_REGISTERS) / 8 * 8;
            self.held = vec![each; warps];
            self.asked = vec![vec![]; warps];
            self.pool = each * threads;
        }
    }

    fn room(&self, warp: usize, count: u32) -> bool {
        let others: u32 = self.held.iter().enumerate().filter(|(w, _)| *w != warp).map(|(_, held)| held * 32).sum();
        others + count * 32 <= self.pool
    }
}

/// Executes one.
pub fn exec(op: &MiscOp, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        MiscOp::Sleep => Ok(Step::Yield),
        MiscOp::LaunchDependents => {
            if !std::mem::replace(&mut cx.blocks[cx.rank].sync.released, true) {
                cx.launch.released.fetch_add(1, Ordering::AcqRel);
                cx.env.progress();
            }
            Ok(Step::Next)
        }
        MiscOp::WaitForPrerequisites => {
            if !cx.launch.prerequisites.iter().all(|l| l.finished.load(Ordering::Acquire)) {
                return Ok(Step::Wait(Wait::GridDependency));
            }
            hooks::grid_dependency(cx)?;
            Ok(Step::Next)
        }
        MiscOp::SetMaxRegisters { count, more } => set_max_registers(*count, *more, cx),
    }
}

fn set_max_registers(count: u32, more: bool, cx: &mut Cx<'_>) -> Exec<Step> {
    if let Some(wait) = super::converge(cx)? {
        return Ok(Step::Wait(wait));
    }
    let warp = cx.warp.index;
    let state = &mut cx.blocks[cx.rank];
    let warps = state.warps.len();
    if !(warps as u32).is_multiple_of(WARPGROUP) {
        let message = format!("setmaxnreg is executed by whole warpgroups of {WARPGROUP} warps, the block has {warps} warps");
        return Err(Fault::new(Kind::Divergence, message));
    }
    let ended = state.sync.exited_warps;
    let registers = &mut state.sync.registers;
    registers.prepare(warps);
    let waited = matches!(cx.resumed, Some(Wait::Registers { .. }));
    let warp = warp as usize;
    if !waited {
        let turn = registers.asked[warp].len();
        let first = warp / WARPGROUP as usize * WARPGROUP as usize;
        let text = |(count, more)| format!("setmaxnreg.{} {count}", if more { "inc" } else { "dec" });
        for other in first..first + WARPGROUP as usize {
            match registers.asked[other].get(turn) {
                Some(&theirs) if theirs == (count, more) => {}
                Some(&theirs) => {
                    let message = format!(
                        "warp {warp} executes {} where warp {other} of its warpgroup executed {}",
                        text((count, more)),
                        text(theirs)
                    );
                    return Err(Fault::new(Kind::Divergence, message));
                }
                None if ended & (1 << other) != 0 => {
                    let message =
                        format!("warp {warp} executes {}, warp {other} of its warpgroup has ended without", text((count, more)));
                    return Err(Fault::new(Kind::Divergence, message));
                }
                None => {}
            }
        }
        registers.asked[warp].push((count, more));
    }
    if more && !registers.room(warp, count) {
        return Ok(Step::Wait(Wait::Registers { count }));
    }
    registers.held[warp] = count;
    cx.env.progress();
    Ok(Step::Next)
}

/// Whether a warp can have this many registers now.
pub fn enough_registers(block: &Block, warp: u32, count: u32) -> bool {
    block.sync.registers.room(warp as usize, count)
}

/// In words, why not.
pub fn describe(block: &Block, warp: u32, count: u32) -> String {
    let registers = &block.sync.registers;
    let held: u32 = registers.held.iter().map(|held| held * 32).sum();
    let own = registers.held.get(warp as usize).copied().unwrap_or(0) * 32;
    format!(
        "setmaxnreg.inc waits for {} registers a thread: {} of the block's {} are with other warps",
        count,
        held.saturating_sub(own),
        registers.pool
    )
}

/// A warp has ended: its warpgroup must have executed the same. Its registers stay with it, as long as the block runs.
pub fn exited(block: &Block, warp: u32) -> Exec {
    let registers = &block.sync.registers;
    let warp = warp as usize;
    let Some(asked) = registers.asked.get(warp) else { return Ok(()) };
    let first = warp / WARPGROUP as usize * WARPGROUP as usize;
    for other in first..(first + WARPGROUP as usize).min(registers.asked.len()) {
        if registers.asked[other].len() > asked.len() {
            let message = format!(
                "warp {warp} ends after {} setmaxnreg instructions, warp {other} of its warpgroup has executed {}",
                asked.len(),
                registers.asked[other].len()
            );
            return Err(Fault::new(Kind::Divergence, message));
        }
    }
    Ok(())
}
