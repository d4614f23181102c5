//! Making schedules, simulating them, and what the executor adds to the work of a step.

use super::{AnyError, Operation, Unit};
use dualpipe::{Costs, Kind, Schedule, Stage, execute, simulate};
use std::hint::black_box;
use std::time::Instant;
use v3_ranks::{Comm, WorldConfig, run_threads};

pub fn operations(threads: usize) -> Vec<Operation> {
    let (ranks, micro_batches) = (16, 128);
    let shape = format!("{ranks} ranks, {micro_batches} micro-batches");
    let actions = (ranks * micro_batches * 2) as f64;
    let mut all = vec![
        Operation::new("make and validate", &*shape, (actions, Unit::Count("actions/s"), None), move || {
            Ok(move || Schedule::new(Kind::DualPipe, ranks, micro_batches).map(|s| drop(black_box(s))))
        }),
        Operation::new("simulate", &*shape, (actions, Unit::Count("actions/s"), None), move || {
            let schedule = Schedule::new(Kind::DualPipe, ranks, micro_batches)?;
            let costs = Costs::default();
            Ok(move || simulate(&schedule, &costs).map(|t| drop(black_box(t))))
        }),
    ];
    let (ranks, micro_batches, len) = (2, 64, 64 * 1024);
    let schedule_shape = format!("{ranks} ranks, {micro_batches} x {len} f32");
    // Every micro-batch crosses from rank to rank once forwards and once backwards.
    let messages = (2 * micro_batches * (ranks - 1)) as f64;
    all.push(Operation::timed("execute empty stages", schedule_shape, (messages, Unit::Count("messages/s"), None), move || {
        let schedule = Schedule::new(Kind::DualPipe, ranks, micro_batches)?;
        Ok(move || {
            let world = WorldConfig::new(ranks).compute_slots(threads.min(ranks));
            let body = |comm: Comm| -> Result<f64, AnyError> {
                let mut model = Empty { stages: schedule.stages(), len };
                comm.barrier()?;
                let start = Instant::now();
                execute(&schedule, &comm, &mut model, 0).map_err(|e| e.to_string())?;
                Ok(start.elapsed().as_secs_f64())
            };
            Ok(run_threads(world, body)?.into_iter().fold(0.0, f64::max))
        })
    }));
    all
}

/// Stages that pass on what they get.
struct Empty {
    stages: usize,
    len: usize,
}

impl Stage for Empty {
    type Error = std::convert::Infallible;

    fn forward(&mut self, stage: usize, _: usize, input: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, Self::Error> {
        let output = input.unwrap_or_else(|| vec![1.0; self.len]);
        Ok((stage + 1 < self.stages).then_some(output))
    }

    fn backward_input(&mut self, stage: usize, _: usize, gradient: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, Self::Error> {
        let gradient = gradient.unwrap_or_else(|| vec![1.0; self.len]);
        Ok((stage > 0).then_some(gradient))
    }

    fn backward_weight(&mut self, _: usize, _: usize) -> Result<(), Self::Error> {
        Ok(())
    }
}
