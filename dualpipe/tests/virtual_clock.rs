//! The executor under the virtual clock takes exactly the time that the simulator says.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{moe_costs, moe_layers};
use dualpipe::{
    Arrangement, Component, ComponentCost, ComponentCosts, ComponentKind, ExecuteError, ExecuteOptions, Half, Kind, Overlap,
    Pairing, Ports, Schedule, Span, Stage, StageComponents, StepTimeline, Tuning, Work, execute_with, simulate_components,
    simulate_pair, tune,
};
use v3_ranks::{Clock, Comm, Lane, Link, LinkModel, Step, Task, Ticket, Waits, WorldConfig, run_threads};

const EXPERT: usize = 2;
/// Of all links; times are whole seconds, so that sums are exact.
const LATENCY: u64 = 1;
const LAYERS: usize = 2;

/// A model whose components only take time: computations let it pass, communications exchange so many bytes with the other rank.
struct Timed {
    stages: usize,
    expert: Comm,
    costs: ComponentCosts,
    lane: Option<Lane>,
    tickets: HashMap<(Half, usize, usize, usize), Ticket<()>>,
    transfer_bytes: usize,
}

/// One exchange, on the communicating lane.
struct Exchange {
    expert: Comm,
    tag: u64,
    bytes: Option<usize>,
}

impl Task for Exchange {
    type Output = ();
    type Error = v3_ranks::Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<()>, v3_ranks::Error> {
        let other = 1 - self.expert.rank();
        if let Some(bytes) = self.bytes.take() {
            comm.send(other, self.tag, vec![0u8; bytes])?;
        }
        Ok(match comm.try_recv::<u8>(other, self.tag)? {
            Some(_) => Step::Done(()),
            None => Step::Waiting(vec![(other, self.tag)]),
        })
    }
}

impl Timed {
    fn component(&self, half: Half, stage: usize, component: usize) -> (Component, ComponentCost) {
        let part = parts(half, stage)[component].clone();
        let cost = self.costs.get(half, &part).unwrap();
        (part, cost)
    }

    fn tag(half: Half, stage: usize, m: usize, component: usize) -> u64 {
        (((stage * 64 + m) * 64 + component) * 2 + half as usize) as u64
    }
}

fn parts(half: Half, stage: usize) -> Vec<Component> {
    moe_layers(half, stage * LAYERS..(stage + 1) * LAYERS)
}

impl StageComponents for Timed {
    type Error = v3_ranks::Error;

    fn components(&self, half: Half, stage: usize) -> Vec<Component> {
        parts(half, stage)
    }

    fn begin(&mut self, _: Half, _: Work) -> Result<(), v3_ranks::Error> {
        Ok(())
    }

    fn compute(&mut self, half: Half, stage: usize, _: usize, component: usize) -> Result<(), v3_ranks::Error> {
        self.expert.advance(self.component(half, stage, component).1.compute)
    }

    fn start(&mut self, half: Half, stage: usize, m: usize, component: usize) -> Result<(), v3_ranks::Error> {
        let cost = self.component(half, stage, component).1;
        let tag = Timed::tag(half, stage, m, component);
        self.expert.advance(cost.start)?;
        // One byte a second.
        let bytes = (cost.slow + cost.fast) as usize;
        match &self.lane {
            Some(lane) => {
                let task = Exchange { expert: self.expert.clone(), tag, bytes: Some(bytes) };
                self.tickets.insert((half, stage, m, component), lane.submit(task));
                Ok(())
            }
            None => self.expert.send(1 - self.expert.rank(), tag, vec![0u8; bytes]),
        }
    }

    fn finish(&mut self, half: Half, stage: usize, m: usize, component: usize) -> Result<(), v3_ranks::Error> {
        match self.tickets.remove(&(half, stage, m, component)) {
            Some(ticket) => ticket.finish(&self.expert)?,
            None => drop(self.expert.recv::<u8>(1 - self.expert.rank(), Timed::tag(half, stage, m, component))?),
        }
        self.expert.advance(self.component(half, stage, component).1.finish)
    }

    fn result(&mut self, half: Half, stage: usize, _: usize) -> Result<Option<Vec<f32>>, v3_ranks::Error> {
        let last = if half == Half::Forward { self.stages - 1 } else { 0 };
        Ok((stage != last).then(|| vec![0.0; self.transfer_bytes / 4]))
    }

    fn end(&mut self, _: Half, _: usize, _: usize) -> Result<(), v3_ranks::Error> {
        Ok(())
    }
}

impl Stage for Timed {
    type Error = v3_ranks::Error;

    fn forward(&mut self, _: usize, _: usize, _: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, v3_ranks::Error> {
        panic!("runs by components")
    }

    fn backward_input(&mut self, _: usize, _: usize, _: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, v3_ranks::Error> {
        panic!("runs by components")
    }

    fn backward_weight(&mut self, _: usize, _: usize) -> Result<(), v3_ranks::Error> {
        panic!("runs by components")
    }

    fn by_components(&mut self) -> Option<&mut dyn StageComponents<Error = v3_ranks::Error>> {
        Some(self)
    }
}

/// Spans and waits of each pipeline rank, checked to be those of every expert-parallel rank.
fn run(schedule: &Schedule, costs: &ComponentCosts, overlap: &Overlap, per_node: usize, lanes: bool) -> Vec<(Vec<Span>, Waits)> {
    let link = Link { latency: Duration::from_secs(LATENCY), bandwidth: 1.0 };
    let world = WorldConfig::new(schedule.ranks() * EXPERT)
        .ranks_per_node(per_node)
        .link(LinkModel { fast: link, slow: link })
        .clock(Clock::Virtual);
    let results = run_threads(world, |comm: Comm| -> Result<_, ExecuteError<v3_ranks::Error>> {
        let (pipeline_rank, expert_rank) = (comm.rank() / EXPERT, comm.rank() % EXPERT);
        let group = |members: Vec<usize>, id| comm.subgroup(&members, id).unwrap();
        let pipeline = group((0..schedule.ranks()).map(|rank| rank * EXPERT + expert_rank).collect(), 1);
        let expert = group((0..EXPERT).map(|rank| pipeline_rank * EXPERT + rank).collect(), 2);
        let lane = lanes.then(|| Lane::spawn(&expert, "exchange").unwrap());
        let transfer_bytes = (costs.transfer.slow + costs.transfer.fast) as usize;
        let mut model =
            Timed { stages: schedule.stages(), expert, costs: costs.clone(), lane, tickets: HashMap::new(), transfer_bytes };
        let spans = execute_with(schedule, &pipeline, &mut model, 0, &ExecuteOptions::new(overlap.clone()))?;
        Ok((spans, comm.waits()))
    });
    let results = results.unwrap();
    for pair in results.chunks(EXPERT) {
        assert_eq!(pair[0], pair[1]);
    }
    results.into_iter().step_by(EXPERT).collect()
}

fn same(schedule: &Schedule, costs: &ComponentCosts, overlap: &Overlap, per_node: usize, lanes: bool) -> StepTimeline {
    let simulated = simulate_components(schedule, parts, costs, overlap).unwrap();
    let about = format!("{}, {} ranks, {overlap:?}, {per_node} a node, lanes: {lanes}", schedule.kind(), schedule.ranks());
    for (rank, (spans, waits)) in run(schedule, costs, overlap, per_node, lanes).into_iter().enumerate() {
        assert_eq!(spans, simulated.timeline.spans()[rank], "{about}: rank {rank}");
        let lanes = simulated.ranks[rank];
        assert_eq!((waits.exposed, waits.bubble), (lanes.exposed(), lanes.bubble()), "{about}: rank {rank}");
        let end = spans.last().unwrap().end;
        assert_eq!(end, lanes.pairs.computing + lanes.alone.computing + waits.total(), "{about}: rank {rank}");
    }
    simulated
}

/// Whole seconds: attention and MLP, communication of 0.8 of computation.
fn costs(per_node: usize) -> ComponentCosts {
    let mut costs = moe_costs([10.0, 10.0, 10.0], [20.0, 20.0, 20.0], 0.8, Ports::Two);
    let latency = LATENCY as f64;
    // Between the expert ranks of one node the fast port is used.
    let times = |seconds: f64| if per_node > 1 { (0.0, seconds) } else { (seconds, 0.0) };
    for (half, kind, seconds) in [
        (Half::Forward, ComponentKind::Dispatch, 18.0),
        (Half::Forward, ComponentKind::Combine, 19.0),
        (Half::Backward, ComponentKind::CombineBackward, 17.0),
        (Half::Backward, ComponentKind::DispatchBackward, 16.0),
    ] {
        let (slow, fast) = times(seconds);
        let cost = ComponentCost { start: 1.0, finish: 2.0, ..ComponentCost::communicate(slow, fast, latency) };
        costs.set(half, kind, None, cost);
    }
    costs.transfer = ComponentCost::communicate(4.0, 0.0, latency);
    costs
}

#[test]
fn the_executor_takes_the_time_that_the_simulator_says() {
    for (kind, ranks, micro_batches) in [
        (Kind::OneFOneB, 1, 3),
        (Kind::GPipe, 2, 3),
        (Kind::Interleaved(2), 2, 3),
        (Kind::ZbH1, 3, 5),
        (Kind::ZbV, 2, 5),
        (Kind::DualPipe, 2, 7),
        (Kind::DualPipe, 4, 10),
        (Kind::DualPipeV, 2, 6),
        (Kind::DualPipeV, 3, 8),
    ] {
        let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
        for (per_node, lanes) in [(1, false), (EXPERT, true), (1, true)] {
            let costs = costs(per_node);
            let tuned = tune(&schedule, parts, &costs, Tuning { seed: 0, tries: 2000, put_off: 2 }).unwrap();
            for overlap in [Overlap::Off, Overlap::Default, Overlap::Tuned(tuned), Overlap::Random(7)] {
                same(&schedule, &costs, &overlap, per_node, lanes);
            }
        }
    }
}

#[test]
fn a_pair_alone_takes_the_time_of_the_pair_simulator() {
    // The last rank of two, whose first pair has its inputs at the begin: nothing is before it but its own forward.
    let schedule = Schedule::new(Kind::DualPipeV, 1, 6).unwrap();
    let mut costs = costs(1);
    costs.transfer = ComponentCost::default();
    let pairs: Vec<usize> = (0..schedule.steps(0).len()).filter(|&index| schedule.steps(0)[index].is_pair()).collect();
    assert!(pairs.len() >= 4);
    for overlap in [Overlap::Off, Overlap::Default, Overlap::Random(3)] {
        let simulated = same(&schedule, &costs, &overlap, 1, true);
        let pairing = |forward: usize, backward: usize| {
            Pairing::new(parts(Half::Forward, forward), parts(Half::Backward, backward)).unwrap()
        };
        for &index in &pairs {
            let span = simulated.timeline.spans()[0][index];
            let stages: Vec<usize> = span.step.actions().map(|action| schedule.stage_of(0, action.direction).unwrap()).collect();
            let pairing = pairing(stages[0], stages[1]);
            let arrangement = match overlap {
                Overlap::Off => Arrangement::sequential(&pairing),
                Overlap::Default => Arrangement::default(&pairing),
                _ => continue,
            };
            let alone = simulate_pair(&pairing, &costs.of(&pairing).unwrap(), &arrangement).unwrap();
            assert_eq!(span.end - span.start, alone.makespan, "{overlap:?}: {}", span.step);
        }
    }
}

#[test]
fn steady_pairs_hide_their_communication_and_off_costs() {
    // Four layers a chunk, as the report's trace has them; transfers of a tenth of a communication.
    for ranks in [2, 4, 8] {
        let schedule = Schedule::new(Kind::DualPipe, ranks, 32).unwrap();
        let parts = |half, stage: usize| moe_layers(half, 4 * stage..4 * stage + 4);
        for (ratio, least) in [(0.8, 0.95), (1.0, 0.90)] {
            let mut costs = moe_costs([1.0; 3], [1.5; 3], ratio, Ports::Two);
            costs.transfer = ComponentCost::communicate(0.15, 0.0, 0.01);
            let tuned = tune(&schedule, parts, &costs, Tuning::default()).unwrap();
            let simulate = |overlap: &Overlap| simulate_components(&schedule, parts, &costs, overlap).unwrap();
            let (off, tuned) = (simulate(&Overlap::Off), simulate(&Overlap::Tuned(tuned)));
            assert!(tuned.hidden_in_pairs() >= least, "{ranks} ranks, {ratio}: {}", tuned.hidden_in_pairs());
            let gain = off.timeline.makespan() / tuned.timeline.makespan();
            // On 8 ranks every other chunk is alone, and the pipeline fills and drains.
            assert!(gain >= if ranks < 8 { 1.6 } else { 1.4 }, "{ranks} ranks, {ratio}: {gain}");
        }
    }
}
