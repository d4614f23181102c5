//! Several exchanges at a time, driven in every way, ended in any order: each gives what it gives alone.

use std::sync::Arc;

use half::bf16;
use moe_dispatch::{CombineOptions, Error, Pairs, Plan, Result, Rows, Wire};
use proptest::prelude::*;
use v3_ranks::{Comm, Lane, Step, Task, run_task, run_threads};
use v3_testkit::rng::Rng;

use crate::case::{Case, bits, cases, expert_outputs, rows, world};

/// An exchange whose result is a list of bits.
struct Job(Box<dyn Task<Output = Vec<u32>, Error = Error>>);

struct Mapped<T, F>(T, F);

impl<T: Task<Error = Error>, F: FnMut(T::Output) -> Vec<u32> + Send> Task for Mapped<T, F> {
    type Output = Vec<u32>;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<Vec<u32>>> {
        Ok(match self.0.poll(comm)? {
            Step::Done(output) => Step::Done((self.1)(output)),
            Step::Waiting(messages) => Step::Waiting(messages),
        })
    }
}

impl Task for Job {
    type Output = Vec<u32>;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<Vec<u32>>> {
        self.0.poll(comm)
    }
}

fn job<T: Task<Error = Error> + 'static>(task: T, result: impl FnMut(T::Output) -> Vec<u32> + Send + 'static) -> Job {
    Job(Box::new(Mapped(task, result)))
}

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

fn narrow_bits(x: &[bf16]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits().into()).collect()
}

fn pairs(case: &Case, rank: usize) -> Pairs<u8, f32> {
    let mut rng = Rng::new(case.seed ^ rank as u64);
    let tokens = case.routings[rank].tokens;
    let data = (0..tokens * case.row_len).map(|_| rng.below(256) as u8).collect();
    Pairs { data, row_len: case.row_len, side: rng.normal_vec(tokens * 3, 1.0), side_len: 3 }
}

fn pair_bits(pairs: &Pairs<u8, f32>) -> Vec<u32> {
    pairs.data.iter().map(|&x| x.into()).chain(bits(&pairs.side)).collect()
}

const KINDS: usize = 10;

/// An exchange of each kind, in flight.
fn start(case: &Case, comm: &Comm, plan: &Arc<Plan>, kind: usize) -> Result<Job> {
    let (me, row_len) = (comm.rank(), case.row_len);
    let (layout, routing) = (&case.layout, &case.routings[me]);
    let x = || rows(case, 1, me);
    // Nobody may read padding rows, and gradients go there as zeros.
    let outputs = || expert_outputs(case, 2, me);
    let wire = |bf16: bool| if bf16 { Wire::Bf16 } else { Wire::F32 };
    Ok(match kind {
        0 => job(plan.dispatch_start(comm, Rows { data: x(), row_len })?, |done| bits(&done.rows.data)),
        1 => job(plan.dispatch_start(comm, Rows { data: narrow(&x()), row_len })?, |done| narrow_bits(&done.rows.data)),
        2 => job(plan.dispatch_start(comm, pairs(case, me))?, |done| pair_bits(&done.rows)),
        3 => {
            let rows = Rows { data: x(), row_len };
            let sent = rows.clone();
            job(Plan::start_dispatch(comm, layout, routing, case.options, rows)?, move |(plan, done)| {
                assert_eq!(done.sent, sent);
                // Planned and dispatched as one: the slow link has carried each row once a node, in that one dispatch.
                assert_eq!(plan.traffic().slow_rows, plan.slow_rows() as u64);
                let layout = plan.offsets().iter().chain(plan.counts()).map(|&n| n as u32);
                layout
                    .chain(plan.source_counts().iter().copied())
                    .chain(bits(plan.row_weights()))
                    .chain(bits(&done.rows.data))
                    .collect()
            })
        }
        4 => job(Plan::start_dispatch(comm, layout, routing, case.options, pairs(case, me))?, |(_, done)| pair_bits(&done.rows)),
        5 | 6 => {
            let options = CombineOptions { weighted: true, wire: wire(kind == 6) };
            job(plan.combine_start(comm, outputs(), row_len, options)?, |done| bits(&done.rows))
        }
        7 => job(plan.dispatch_backward_start(comm, narrow(&outputs()), row_len, Wire::Bf16)?, |done| narrow_bits(&done.rows)),
        _ => job(plan.combine_backward_start(comm, x(), outputs(), row_len, wire(kind == 9))?, |done| {
            bits(&done.d_expert_rows).into_iter().chain(bits(&done.d_weights)).collect()
        }),
    })
}

/// What it gives alone, with the calls that wait.
fn alone(case: &Case, comm: &Comm, plan: &Plan, kind: usize) -> Result<Vec<u32>> {
    let (me, row_len) = (comm.rank(), case.row_len);
    let (x, outputs) = (rows(case, 1, me), expert_outputs(case, 2, me));
    let pairs = pairs(case, me);
    let pair = || -> Result<Vec<u32>> {
        let (data, side) = plan.dispatch_pair(comm, (&pairs.data, row_len), (&pairs.side, 3))?;
        Ok(pair_bits(&Pairs { data, side, ..pairs.clone() }))
    };
    let narrow_sums = CombineOptions { weighted: false, wire: Wire::Bf16 };
    Ok(match kind {
        0 => bits(&plan.dispatch(comm, &x, row_len)?),
        1 => narrow_bits(&plan.dispatch(comm, &narrow(&x), row_len)?),
        2 | 4 => pair()?,
        3 => {
            let layout = plan.offsets().iter().chain(plan.counts()).map(|&n| n as u32);
            let rows = plan.dispatch(comm, &x, row_len)?;
            layout.chain(plan.source_counts().iter().copied()).chain(bits(plan.row_weights())).chain(bits(&rows)).collect()
        }
        5 => bits(&plan.combine(comm, &outputs, row_len, true)?),
        6 => bits(&plan.combine_with(comm, &outputs, row_len, CombineOptions { weighted: true, ..narrow_sums })?),
        7 => narrow_bits(&plan.combine_with(comm, &narrow(&outputs), row_len, narrow_sums)?),
        _ => {
            // In bf16 every rank's rows are rounded first.
            let dy = if kind == 9 { narrow(&x).iter().map(|x| x.to_f32()).collect() } else { x };
            let (d_rows, d_weights) = plan.combine_backward(comm, &dy, &outputs, row_len)?;
            bits(&d_rows).into_iter().chain(bits(&d_weights)).collect()
        }
    })
}

/// Polls all jobs, in another order on every rank, asleep when none can go on.
fn poll_all(comm: &Comm, jobs: Vec<Job>, rng: &mut Rng) -> Result<Vec<Vec<u32>>> {
    let mut results: Vec<Option<Vec<u32>>> = jobs.iter().map(|_| None).collect();
    let mut open: Vec<(usize, Job)> = jobs.into_iter().enumerate().collect();
    loop {
        rng.shuffle(&mut open);
        let (mut waiting, mut still) = (Vec::new(), Vec::new());
        for (at, mut job) in open {
            match job.poll(comm)? {
                Step::Done(result) => results[at] = Some(result),
                Step::Waiting(messages) => {
                    waiting.extend(messages);
                    still.push((at, job));
                }
            }
        }
        open = still;
        if open.is_empty() {
            return Ok(results.into_iter().flatten().collect());
        }
        comm.wait_any(&waiting)?;
    }
}

#[derive(Debug, Clone, Copy)]
enum Driver {
    Lane,
    Polls,
    InTurn,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn exchanges_in_flight_give_what_each_gives_alone(
        case in cases(),
        kinds in prop::collection::vec(0..KINDS, 1..7),
        driver in prop_oneof![Just(Driver::Lane), Just(Driver::Polls), Just(Driver::InTurn)],
    ) {
        // Two at most at a time for the shared processor: a lane needs a slot beside its rank's.
        let case = Case { slots: case.slots.map(|slots| slots + 1), ..case };
        run_threads(world(&case), |comm: Comm| -> Result<()> {
            let plan = Arc::new(Plan::with_options(&comm, &case.layout, &case.routings[comm.rank()], case.options)?);
            let want: Vec<Vec<u32>> = kinds.iter().map(|&kind| alone(&case, &comm, &plan, kind)).collect::<Result<_>>()?;
            let jobs: Vec<Job> = kinds.iter().map(|&kind| start(&case, &comm, &plan, kind)).collect::<Result<_>>()?;
            let mut rng = Rng::new(case.seed + comm.rank() as u64);
            let got = match driver {
                Driver::Lane => {
                    let lane = Lane::spawn(&comm, "communication")?;
                    let mut tickets: Vec<_> = jobs.into_iter().map(|job| lane.submit(job)).enumerate().collect();
                    rng.shuffle(&mut tickets);
                    let mut got = tickets.into_iter().map(|(at, ticket)| Ok((at, ticket.finish(&comm)?))).collect::<Result<Vec<_>>>()?;
                    got.sort();
                    got.into_iter().map(|(_, result)| result).collect()
                }
                Driver::Polls => poll_all(&comm, jobs, &mut rng)?,
                Driver::InTurn => jobs.into_iter().map(|job| run_task(&comm, job)).collect::<Result<_>>()?,
            };
            for ((got, want), kind) in got.iter().zip(&want).zip(&kinds) {
                assert_eq!(got, want, "kind {kind}");
            }
            Ok(())
        })
        .map_err(|error| TestCaseError::fail(error.to_string()))?;
    }
}
