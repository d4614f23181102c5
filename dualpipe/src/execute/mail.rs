//! The transfers of one rank.

use std::collections::HashMap;

use v3_ranks::Comm;

use crate::action::{Action, ActionKind, Step};
use crate::execute::{ExecuteError, Work};
use crate::schedule::Schedule;

/// How a rank comes by its inputs and gets rid of its results.
pub(crate) trait Post {
    /// The stage and the micro-batch that the action is about.
    fn place(&self, action: Action) -> (usize, usize);

    /// What the action is about, with what it needs, waiting for it.
    fn receive<E>(&mut self, step: Step, action: Action) -> Result<Work, ExecuteError<E>>;

    /// Sends the result of a forward to the next stage, that of a backward to the one before.
    fn send<E>(
        &mut self,
        step: Step,
        stage: usize,
        micro_batch: usize,
        gradient: bool,
        result: Option<Vec<f32>>,
    ) -> Result<(), ExecuteError<E>>;
}

/// The transfers of one rank.
pub(crate) struct Mail<'a> {
    schedule: &'a Schedule,
    comm: &'a Comm,
    step_id: u64,
    /// Results for stages on this same rank, by (gradient, stage that takes it, micro-batch).
    on_rank: HashMap<(bool, usize, usize), Vec<f32>>,
    /// When the first input of the current step was there.
    pub(crate) first_received: Option<f64>,
}

impl<'a> Mail<'a> {
    pub(crate) fn new(schedule: &'a Schedule, comm: &'a Comm, step_id: u64) -> Mail<'a> {
        Mail { schedule, comm, step_id, on_rank: HashMap::new(), first_received: None }
    }

    /// The time of the group's clock.
    pub(crate) fn now(&self) -> f64 {
        self.comm.now()
    }

    /// Distinct for each transfer of a step.
    fn tag(&self, gradient: bool, to_stage: usize, micro_batch: usize) -> u64 {
        let (stages, micro_batches) = (self.schedule.stages(), self.schedule.micro_batches());
        let each = 2 * (stages * micro_batches) as u64;
        let index = 2 * (micro_batch * stages + to_stage) as u64 + u64::from(gradient);
        self.step_id.wrapping_mul(each).wrapping_add(index) | 1 << 63
    }

    /// The rank that holds `stage` for this micro-batch.
    fn rank_of(&self, stage: usize, micro_batch: usize) -> usize {
        self.schedule.locate(stage, micro_batch).map_or(0, |(rank, ..)| rank)
    }
}

impl Post for Mail<'_> {
    fn place(&self, action: Action) -> (usize, usize) {
        let stage = self.schedule.stage_of(self.comm.rank(), action.direction).unwrap_or_default();
        (stage, self.schedule.micro_batch(action.direction, action.chunk))
    }

    fn receive<E>(&mut self, step: Step, action: Action) -> Result<Work, ExecuteError<E>> {
        let (stage, micro_batch) = self.place(action);
        let (from_stage, gradient) = match action.kind {
            ActionKind::F if stage > 0 => (stage - 1, false),
            ActionKind::B | ActionKind::I if stage + 1 < self.schedule.stages() => (stage + 1, true),
            _ => {
                self.first_received.get_or_insert_with(|| self.comm.now());
                return Ok(Work { stage, micro_batch, input: None });
            }
        };
        let from = self.rank_of(from_stage, micro_batch);
        let input = if from == self.comm.rank() {
            // A valid schedule has made it before.
            self.on_rank.remove(&(gradient, stage, micro_batch))
        } else {
            let tag = self.tag(gradient, stage, micro_batch);
            Some(self.comm.recv(from, tag).map_err(|source| ExecuteError::Comm { step, source })?)
        };
        self.first_received.get_or_insert_with(|| self.comm.now());
        Ok(Work { stage, micro_batch, input })
    }

    fn send<E>(
        &mut self,
        step: Step,
        stage: usize,
        micro_batch: usize,
        gradient: bool,
        result: Option<Vec<f32>>,
    ) -> Result<(), ExecuteError<E>> {
        let to_stage = match gradient {
            true => stage.checked_sub(1),
            false => Some(stage + 1).filter(|&next| next < self.schedule.stages()),
        };
        let contract = |expected, got| Err(ExecuteError::Contract { step, stage, expected, got });
        let (to_stage, result) = match (to_stage, result) {
            (Some(to_stage), Some(result)) => (to_stage, result),
            (None, None) => return Ok(()),
            (Some(_), None) => return contract("a result for the neighbouring stage", "none"),
            (None, Some(_)) => return contract("no result at the end of the pipeline", "one"),
        };
        let to = self.rank_of(to_stage, micro_batch);
        if to == self.comm.rank() {
            self.on_rank.insert((gradient, to_stage, micro_batch), result);
            return Ok(());
        }
        let tag = self.tag(gradient, to_stage, micro_batch);
        self.comm.send(to, tag, result).map_err(|source| ExecuteError::Comm { step, source })
    }
}
