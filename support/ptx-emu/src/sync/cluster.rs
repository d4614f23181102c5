//! The barrier of a cluster: `barrier.cluster` (PTX ISA 9.0, section 9.7.13.4).
//!
//! Every thread arrives, then waits, in turns. Threads that have exited count as arrived in this phase and all that follow.

use super::parts::Parts;
use super::{ClusterState, SyncOp, hooks};
use crate::ast::Instruction;
use crate::cx::{Cx, Step, Wait, Warp};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::race::SyncVar;
use crate::regs::{LANES, Mask, lanes};
use crate::report::Kind;

/// `barrier.cluster`.
#[derive(Debug, Clone, Copy)]
pub struct ClusterBarrierOp {
    wait: bool,
    relaxed: bool,
    aligned: bool,
}

/// Decodes `barrier.cluster`.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    let mut parts = Parts::new(instruction, 2);
    let wait = match parts.one_of(&[("arrive", false), ("wait", true)]) {
        Some(wait) => wait,
        None => return Err(decoder.unknown(instruction)),
    };
    let relaxed = !wait && parts.take("relaxed");
    if !relaxed {
        parts.take(if wait { "acquire" } else { "release" });
    }
    let aligned = parts.take("aligned");
    if !parts.done() {
        return Err(decoder.unknown(instruction));
    }
    if !instruction.operands.is_empty() {
        return Err(decoder.error("barrier.cluster takes no operands"));
    }
    Ok(SyncOp::ClusterBarrier(ClusterBarrierOp { wait, relaxed, aligned }))
}

/// The barrier of a cluster.
#[derive(Debug, Default)]
pub struct ClusterBarrier {
    /// Phases completed.
    pub generation: u64,
    /// Threads of the cluster; 0 until the first arrives.
    threads: u32,
    /// Threads that arrived in this phase and have not exited.
    arrived: u32,
    /// Threads that have exited.
    exited: u32,
    current: SyncVar,
    previous: SyncVar,
}

impl ClusterBarrier {
    fn try_complete(&mut self) {
        if self.threads > 0 && self.arrived > 0 && self.arrived + self.exited >= self.threads {
            self.generation += 1;
            self.arrived = 0;
            self.previous = std::mem::take(&mut self.current);
        }
    }

    /// In words: who has come.
    pub fn describe(&self) -> String {
        let exited = if self.exited == 0 { String::new() } else { format!(", {} have exited", self.exited) };
        format!("barrier.cluster: {} of {} threads have arrived{exited}", self.arrived, self.threads)
    }
}

/// What a warp's lanes did at the cluster's barrier.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Lanes that arrived and have not waited.
    open: Mask,
    /// In which phase.
    generation: [u64; LANES],
}

/// Executes `barrier.cluster`.
pub fn exec(op: ClusterBarrierOp, cx: &mut Cx<'_>) -> Exec<Step> {
    let resumed = matches!(cx.resumed, Some(Wait::ClusterBarrier { .. }));
    if op.aligned
        && !resumed
        && let Some(wait) = super::converge(cx)?
    {
        return Ok(Step::Wait(wait));
    }
    let mask = cx.mask;
    let arrivals = &mut cx.warp.sync.cluster;
    if !op.wait {
        let again = arrivals.open & mask;
        if again != 0 {
            let message = "barrier.cluster.arrive by a thread that has arrived before and not waited".to_string();
            return Err(Fault::at(Kind::BarrierMisuse, again.trailing_zeros() as usize, message));
        }
        arrivals.open |= mask;
        for lane in lanes(mask) {
            arrivals.generation[lane] = cx.cluster.barrier.generation;
        }
        hooks::cluster_arrive(cx, op.relaxed)?;
        let barrier = &mut cx.cluster.barrier;
        barrier.threads = cx.launch.block.iter().product::<u32>() * cx.blocks.len() as u32;
        barrier.arrived += mask.count_ones();
        barrier.try_complete();
        return Ok(Step::Next);
    }
    let without = mask & !arrivals.open;
    if without != 0 {
        let message = "barrier.cluster.wait by a thread that has not arrived".to_string();
        return Err(Fault::at(Kind::BarrierMisuse, without.trailing_zeros() as usize, message));
    }
    let generation = lanes(mask).map(|lane| arrivals.generation[lane]).max().unwrap_or(0);
    if cx.cluster.barrier.generation <= generation {
        return Ok(Step::Wait(Wait::ClusterBarrier { generation }));
    }
    arrivals.open &= !mask;
    hooks::cluster_wait(cx)?;
    Ok(Step::Next)
}

/// The variable that arrivals release into.
pub fn current(cluster: &mut ClusterState) -> &mut SyncVar {
    &mut cluster.barrier.current
}

/// The variable of the phase that completed last.
pub fn previous(cluster: &mut ClusterState) -> &mut SyncVar {
    &mut cluster.barrier.previous
}

/// Threads of a warp have exited; `newly` are those not told of before.
pub fn exited(cluster: &mut ClusterState, warp: &Warp, newly: Mask) {
    let barrier = &mut cluster.barrier;
    let arrivals = &warp.sync.cluster;
    let counted = lanes(newly & arrivals.open).filter(|&lane| arrivals.generation[lane] == barrier.generation).count() as u32;
    barrier.arrived = barrier.arrived.saturating_sub(counted);
    barrier.exited += newly.count_ones();
    barrier.try_complete();
}
