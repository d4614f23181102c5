//! Barriers, mbarriers, fences, asynchronous copies and what keeps track of them: decoding and executing.

use crate::ast::Instruction;
use crate::cx::{Block, Cx, Group, Step, Wait, Warp};
use crate::decode::{Decoder, Result};
use crate::detect::Detector;
use crate::fault::Exec;
use crate::machine::{Env, Launch};
use crate::rng::Rng;

/// A decoded instruction of this family.
#[derive(Debug)]
pub enum SyncOp {}

/// What a warp keeps: groups of asynchronous copies, warp barriers.
#[derive(Debug, Default)]
pub struct WarpState {}

/// What a block keeps: named barriers, the multiprocessor it runs on.
#[derive(Debug, Default)]
pub struct BlockState {
    /// `%smid`.
    pub sm: u32,
}

/// What a cluster keeps: its barrier, asynchronous operations in flight.
#[derive(Debug, Default)]
pub struct ClusterState {}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    Err(decoder.unknown(instruction))
}

/// Executes one.
pub fn exec(op: &SyncOp, _cx: &mut Cx<'_>) -> Exec<Step> {
    match *op {}
}

/// Whether what a group waits for has come: then its instruction runs again. Polled by the engine.
pub fn satisfied(_wait: &Wait, _group: &Group, _warp: &Warp, _rank: usize, _blocks: &[Block], _cluster: &ClusterState) -> bool {
    false
}

/// In words, what a group waits for: "named barrier 1: 96 of 128 threads have arrived".
pub fn describe(_wait: &Wait, _warp: &Warp, _rank: usize, _blocks: &[Block], _cluster: &ClusterState) -> String {
    String::new()
}

/// Asynchronous operations in flight that could complete now.
pub fn pending(_cluster: &ClusterState) -> usize {
    0
}

/// Completes one asynchronous operation in flight, chosen by `rng`; false when there is none.
pub fn advance(
    _env: &Env,
    _launch: &Launch,
    _blocks: &mut [Block],
    _cluster: &mut ClusterState,
    _detector: Option<&mut Detector>,
    _rng: &mut Rng,
) -> Exec<bool> {
    Ok(false)
}

/// Called when threads of a warp exit: barriers no longer wait for them.
pub fn exited(_blocks: &mut [Block], _cluster: &mut ClusterState, _rank: usize, _warp: &Warp) -> Exec {
    Ok(())
}
