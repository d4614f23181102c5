//! Schedules run component by component: whatever the order, the same bits.

mod common;

use std::collections::HashMap;

use common::{moe_costs, moe_layers};
use dualpipe::{
    Action, ActionKind, Arrangements, Component, ComponentKind, ExecuteError, ExecuteOptions, Half, Kind, Overlap, Ports,
    Schedule, Stage, StageComponents, Step, Tuning, Work, execute_with, tune,
};
use proptest::prelude::*;
use v3_ranks::{Comm, RanksError, WorldConfig, run_threads};
use v3_testkit::Rng;

const LAYERS: usize = 8;
const WIDTH: usize = 4;
/// Expert-parallel ranks.
const EXPERT: usize = 2;

type Row = Vec<f32>;

/// x + experts(attention(x)), where `attention` is tanh of a product on the own rank, and `experts` the same on the other rank, which
/// the rows travel to and back from.
struct Net {
    layers_per_stage: usize,
    stages: usize,
    expert: Comm,
    attention: Vec<Row>,
    mlp: Vec<Row>,
    /// Sums over micro-batches, of attention, then of MLP, by layer.
    gradients: HashMap<usize, [Row; 2]>,
    /// What is kept between components, by (what, layer, micro-batch).
    kept: HashMap<(&'static str, usize, usize), Row>,
    /// The rows that go through a chunk.
    flow: HashMap<(Half, usize, usize), Row>,
    losses: HashMap<usize, u32>,
    /// Which micro-batch did the weights of a stage, in order.
    weights_done: Vec<(usize, usize)>,
    ended: usize,
    /// Fails at this component.
    fails_at: Option<(ComponentKind, usize)>,
    offers: Offers,
}

#[derive(Clone, Copy, PartialEq)]
enum Offers {
    All,
    Nothing,
    /// Components of forwards only.
    Forwards,
    /// A list in an order in which it cannot run.
    Nonsense,
}

impl Net {
    fn new(stages: usize, expert: Comm) -> Net {
        let mut rng = Rng::new(3);
        let mut matrices = |_| rng.normal_vec(WIDTH * WIDTH, 0.6);
        let attention = (0..LAYERS).map(&mut matrices).collect();
        let mlp = (0..LAYERS).map(&mut matrices).collect();
        Net {
            layers_per_stage: LAYERS / stages,
            stages,
            expert,
            attention,
            mlp,
            gradients: HashMap::new(),
            kept: HashMap::new(),
            flow: HashMap::new(),
            losses: HashMap::new(),
            weights_done: Vec::new(),
            ended: 0,
            fails_at: None,
            offers: Offers::All,
        }
    }

    fn layers(&self, stage: usize) -> std::ops::Range<usize> {
        stage * self.layers_per_stage..(stage + 1) * self.layers_per_stage
    }

    fn list(&self, half: Half, stage: usize) -> Vec<Component> {
        moe_layers(half, self.layers(stage))
    }

    fn keep(&mut self, what: &'static str, layer: usize, m: usize, row: Row) {
        assert!(self.kept.insert((what, layer, m), row).is_none(), "{what} of layer {layer} twice");
    }

    fn drop_kept(&mut self, what: &'static str, layer: usize, m: usize) -> Row {
        self.kept.remove(&(what, layer, m)).unwrap_or_else(|| panic!("no {what} of layer {layer}"))
    }

    fn add_gradient(&mut self, which: usize, layer: usize, x: &[f32], dz: &[f32]) {
        let sums = self.gradients.entry(layer).or_insert_with(|| [vec![0.0; WIDTH * WIDTH], vec![0.0; WIDTH * WIDTH]]);
        for (o, dz) in dz.iter().enumerate() {
            for (i, x) in x.iter().enumerate() {
                sums[which][o * WIDTH + i] += dz * x;
            }
        }
    }

    fn tag(&self, kind: ComponentKind, layer: usize, m: usize) -> u64 {
        ((m * LAYERS + layer) * 16 + kind as usize) as u64
    }

    fn other(&self) -> usize {
        1 - self.expert.rank()
    }
}

/// tanh(w x) and the derivative of its argument.
fn through(w: &[f32], x: &[f32]) -> Row {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>().tanh();
    w.chunks(WIDTH).map(dot).collect()
}

fn back(w: &[f32], y: &[f32], dy: &[f32]) -> (Row, Row) {
    let dz: Row = dy.iter().zip(y).map(|(dy, y)| dy * (1.0 - y * y)).collect();
    let mut dx = vec![0.0; WIDTH];
    for (row, dz) in w.chunks(WIDTH).zip(&dz) {
        dx.iter_mut().zip(row).for_each(|(dx, w)| *dx += w * dz);
    }
    (dz, dx)
}

impl StageComponents for Net {
    type Error = String;

    fn components(&self, half: Half, stage: usize) -> Vec<Component> {
        match (self.offers, half) {
            (Offers::Nothing, _) | (Offers::Forwards, Half::Backward) => Vec::new(),
            (Offers::Nonsense, _) => self.list(half, stage).into_iter().rev().collect(),
            _ => self.list(half, stage),
        }
    }

    fn begin(&mut self, half: Half, work: Work) -> Result<(), String> {
        let Work { stage, micro_batch: m, input } = work;
        let end = match half {
            Half::Forward => 0,
            Half::Backward => self.stages - 1,
        };
        assert_eq!(input.is_none(), stage == end);
        let row = input.unwrap_or_else(|| match half {
            Half::Forward => Rng::new((m * EXPERT + self.expert.rank()) as u64).normal_vec(WIDTH, 1.0),
            Half::Backward => self.drop_kept("output", LAYERS, m),
        });
        assert!(self.flow.insert((half, stage, m), row).is_none());
        Ok(())
    }

    fn compute(&mut self, half: Half, stage: usize, m: usize, component: usize) -> Result<(), String> {
        let Component { kind, layer, .. } = self.list(half, stage)[component];
        if self.fails_at == Some((kind, m)) {
            return Err(format!("{kind} is tired"));
        }
        match kind {
            ComponentKind::Attention => {
                let x = self.flow[&(half, stage, m)].clone();
                let a = through(&self.attention[layer], &x);
                self.keep("x", layer, m, x);
                self.keep("a", layer, m, a);
            }
            ComponentKind::Mlp => {
                let y = through(&self.mlp[layer], &self.kept[&("a of other", layer, m)]);
                self.keep("y of other", layer, m, y);
            }
            ComponentKind::MlpInput => {
                let dy = self.drop_kept("dy of other", layer, m);
                let y = self.drop_kept("y of other", layer, m);
                let (dz, da) = back(&self.mlp[layer], &y, &dy);
                self.keep("dz of other", layer, m, dz);
                self.keep("da of other", layer, m, da);
            }
            ComponentKind::MlpWeight => {
                let (a, dz) = (self.drop_kept("a of other", layer, m), self.drop_kept("dz of other", layer, m));
                self.add_gradient(1, layer, &a, &dz);
            }
            ComponentKind::AttentionInput => {
                let (a, da) = (self.drop_kept("a", layer, m), self.drop_kept("da", layer, m));
                let (dz, dx) = back(&self.attention[layer], &a, &da);
                self.keep("dz", layer, m, dz);
                let flow = self.flow.get_mut(&(half, stage, m)).unwrap();
                flow.iter_mut().zip(dx).for_each(|(flow, dx)| *flow += dx);
            }
            ComponentKind::AttentionWeight => {
                let (x, dz) = (self.drop_kept("x", layer, m), self.drop_kept("dz", layer, m));
                self.add_gradient(0, layer, &x, &dz);
                if layer == self.layers(stage).end - 1 {
                    self.weights_done.push((stage, m));
                }
            }
            other => panic!("{other} does not compute"),
        }
        Ok(())
    }

    fn start(&mut self, half: Half, stage: usize, m: usize, component: usize) -> Result<(), String> {
        let Component { kind, layer, .. } = self.list(half, stage)[component];
        let row = match kind {
            ComponentKind::Dispatch => self.kept[&("a", layer, m)].clone(),
            ComponentKind::Combine => self.kept[&("y of other", layer, m)].clone(),
            ComponentKind::CombineBackward => self.flow[&(half, stage, m)].clone(),
            ComponentKind::DispatchBackward => self.drop_kept("da of other", layer, m),
            other => panic!("{other} does not communicate"),
        };
        self.expert.send(self.other(), self.tag(kind, layer, m), row).map_err(|error| error.to_string())
    }

    fn finish(&mut self, half: Half, stage: usize, m: usize, component: usize) -> Result<(), String> {
        let Component { kind, layer, .. } = self.list(half, stage)[component];
        let row: Row = self.expert.recv(self.other(), self.tag(kind, layer, m)).map_err(|error| error.to_string())?;
        match kind {
            ComponentKind::Dispatch => self.keep("a of other", layer, m, row),
            ComponentKind::Combine => {
                let flow = self.flow.get_mut(&(half, stage, m)).unwrap();
                flow.iter_mut().zip(row).for_each(|(flow, y)| *flow += y);
            }
            ComponentKind::CombineBackward => self.keep("dy of other", layer, m, row),
            ComponentKind::DispatchBackward => self.keep("da", layer, m, row),
            other => panic!("{other} does not communicate"),
        }
        Ok(())
    }

    fn result(&mut self, half: Half, stage: usize, m: usize) -> Result<Option<Row>, String> {
        let row = self.flow.remove(&(half, stage, m)).unwrap();
        if half == Half::Forward && stage + 1 == self.stages {
            let loss = row.iter().map(|y| 0.5 * y * y).sum::<f32>();
            assert!(self.losses.insert(m, loss.to_bits()).is_none());
            self.keep("output", LAYERS, m, row);
            return Ok(None);
        }
        Ok((half == Half::Forward || stage > 0).then_some(row))
    }

    fn end(&mut self, half: Half, stage: usize, m: usize) -> Result<(), String> {
        assert!(!self.flow.contains_key(&(half, stage, m)));
        self.ended += 1;
        Ok(())
    }
}

/// The same, whole chunks at a time, where components are not offered.
impl Stage for Net {
    type Error = String;

    fn forward(&mut self, stage: usize, micro_batch: usize, input: Option<Row>) -> Result<Option<Row>, String> {
        assert!(self.offers == Offers::Nothing);
        self.begin(Half::Forward, Work { stage, micro_batch, input })?;
        self.all(Half::Forward, stage, micro_batch, |_| true)?;
        self.result(Half::Forward, stage, micro_batch)
    }

    fn backward_input(&mut self, stage: usize, micro_batch: usize, gradient: Option<Row>) -> Result<Option<Row>, String> {
        assert!(self.offers == Offers::Nothing);
        self.begin(Half::Backward, Work { stage, micro_batch, input: gradient })?;
        self.all(Half::Backward, stage, micro_batch, |kind| !kind.is_weight())?;
        self.result(Half::Backward, stage, micro_batch)
    }

    fn backward_weight(&mut self, stage: usize, micro_batch: usize) -> Result<(), String> {
        assert!(self.offers == Offers::Nothing);
        self.all(Half::Backward, stage, micro_batch, ComponentKind::is_weight)
    }

    fn by_components(&mut self) -> Option<&mut dyn StageComponents<Error = String>> {
        Some(self)
    }
}

impl Net {
    fn all(&mut self, half: Half, stage: usize, m: usize, wanted: impl Fn(ComponentKind) -> bool) -> Result<(), String> {
        for (index, component) in self.list(half, stage).into_iter().enumerate() {
            if !wanted(component.kind) {
                continue;
            }
            if component.kind.communicates() {
                self.start(half, stage, m, index)?;
                self.finish(half, stage, m, index)?;
            } else {
                self.compute(half, stage, m, index)?;
            }
        }
        Ok(())
    }
}

/// Losses by micro-batch and gradients by layer.
type Bits = (Vec<(usize, u32)>, Vec<(usize, Vec<u32>)>);

/// The bits of each rank, and in which order it did the weights of which stage and micro-batch.
type Outcome = Vec<(Bits, Vec<(usize, usize)>)>;

fn run(schedule: &Schedule, options: &ExecuteOptions, change: impl Fn(usize, &mut Net) + Sync) -> Result<Outcome, RanksError> {
    run_threads(WorldConfig::new(schedule.ranks() * EXPERT), |comm: Comm| -> Result<_, ExecuteError<String>> {
        let (pipeline_rank, expert_rank) = (comm.rank() / EXPERT, comm.rank() % EXPERT);
        let group = |members: Vec<usize>, id| comm.subgroup(&members, id).unwrap();
        let pipeline = group((0..schedule.ranks()).map(|rank| rank * EXPERT + expert_rank).collect(), 1);
        let expert = group((0..EXPERT).map(|rank| pipeline_rank * EXPERT + rank).collect(), 2);
        let mut net = Net::new(schedule.stages(), expert);
        change(comm.rank(), &mut net);
        let spans = execute_with(schedule, &pipeline, &mut net, 0, options)?;
        assert_eq!(spans.len(), schedule.steps(pipeline_rank).len());
        assert!(spans.iter().all(|span| span.start <= span.end && span.wait >= 0.0));
        assert!(net.kept.is_empty() && net.flow.is_empty());
        if net.offers == Offers::All {
            let forwards =
                schedule.steps(pipeline_rank).iter().flat_map(Step::actions).filter(|a| a.kind == ActionKind::F).count();
            assert_eq!(net.ended, 2 * forwards);
        }
        let sorted = |sums: &[Row; 2]| sums.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        let mut gradients: Vec<_> = net.gradients.iter().map(|(&layer, sums)| (layer, sorted(sums))).collect();
        gradients.sort();
        let mut losses: Vec<_> = net.losses.into_iter().collect();
        losses.sort_unstable();
        Ok(((losses, gradients), net.weights_done))
    })
}

fn tuned(schedule: &Schedule, seed: u64) -> Arrangements {
    let layers = LAYERS / schedule.stages();
    let parts = |half, stage: usize| moe_layers(half, stage * layers..(stage + 1) * layers);
    let costs = moe_costs([1.0, 1.5, 0.5], [2.0, 1.0, 1.5], 0.9, Ports::Two);
    tune(schedule, parts, &costs, Tuning { seed, tries: 1000, put_off: 2 }).unwrap()
}

fn whole(schedule: &Schedule) -> Outcome {
    run(schedule, &ExecuteOptions::default(), |_, net| net.offers = Offers::Nothing).unwrap()
}

/// Without the order in which stages take their turns with weights; that of each stage is in the bits.
fn bits(outcome: Outcome) -> Vec<Bits> {
    outcome.into_iter().map(|(bits, _)| bits).collect()
}

#[test]
fn every_schedule_and_order_gives_the_bits_of_whole_chunks() {
    for kind in Kind::ALL {
        for (ranks, micro_batches) in [(1, 3), (2, 5), (4, 9)] {
            let Ok(schedule) = Schedule::new(kind, ranks, micro_batches) else { continue };
            let expected = bits(whole(&schedule));
            let each =
                [Overlap::Off, Overlap::Default, Overlap::Tuned(tuned(&schedule, 1)), Overlap::Random(1), Overlap::Random(2)];
            for overlap in each {
                let got = run(&schedule, &ExecuteOptions::new(overlap.clone()), |_, _| {}).unwrap();
                assert_eq!(bits(got), expected, "{kind}, {ranks} ranks, {micro_batches} micro-batches, {overlap:?}");
            }
        }
    }
}

#[test]
fn weights_fill_waits_and_keep_their_order() {
    let schedule = Schedule::new(Kind::ZbV, 4, 10).unwrap();
    let order = |overlap: Overlap| {
        let outcome = run(&schedule, &ExecuteOptions::new(overlap), |_, _| {}).unwrap();
        outcome.into_iter().map(|(_, order)| order).collect::<Vec<_>>()
    };
    let (off, filled) = (order(Overlap::Off), order(Overlap::Default));
    // As in the schedule when nothing overlaps.
    for (rank, done) in off.iter().enumerate() {
        let weights = schedule.steps(rank / EXPERT).iter().flat_map(Step::actions).filter(|a| a.kind == ActionKind::W);
        let place =
            |a: Action| (schedule.stage_of(rank / EXPERT, a.direction).unwrap(), schedule.micro_batch(a.direction, a.chunk));
        assert_eq!(*done, weights.map(place).collect::<Vec<_>>());
    }
    for (off, filled) in off.iter().zip(&filled) {
        for stage in 0..schedule.stages() {
            let of = |done: &[(usize, usize)]| done.iter().copied().filter(|&(s, _)| s == stage).collect::<Vec<_>>();
            assert_eq!(of(off), of(filled));
        }
    }
}

/// Which calls of weights come before which of forwards, on the way of one rank.
struct Recorder {
    stages: usize,
    calls: Vec<String>,
}

impl StageComponents for Recorder {
    type Error = String;

    fn components(&self, half: Half, stage: usize) -> Vec<Component> {
        moe_layers(half, stage..stage + 1)
    }

    fn begin(&mut self, half: Half, work: Work) -> Result<(), String> {
        self.calls.push(format!("begin {half}{}", work.micro_batch));
        Ok(())
    }

    fn compute(&mut self, half: Half, stage: usize, m: usize, component: usize) -> Result<(), String> {
        self.calls.push(format!("{} {m}", self.components(half, stage)[component].kind));
        Ok(())
    }

    fn start(&mut self, half: Half, stage: usize, m: usize, component: usize) -> Result<(), String> {
        self.calls.push(format!("start {} {m}", self.components(half, stage)[component].kind));
        Ok(())
    }

    fn finish(&mut self, half: Half, stage: usize, m: usize, component: usize) -> Result<(), String> {
        self.calls.push(format!("finish {} {m}", self.components(half, stage)[component].kind));
        Ok(())
    }

    fn result(&mut self, half: Half, stage: usize, m: usize) -> Result<Option<Row>, String> {
        self.calls.push(format!("result {half}{m}"));
        let last = if half == Half::Forward { self.stages - 1 } else { 0 };
        Ok((stage != last).then(Vec::new))
    }

    fn end(&mut self, half: Half, _: usize, m: usize) -> Result<(), String> {
        self.calls.push(format!("end {half}{m}"));
        Ok(())
    }
}

impl Stage for Recorder {
    type Error = String;

    fn forward(&mut self, _: usize, _: usize, _: Option<Row>) -> Result<Option<Row>, String> {
        Err("not by components".into())
    }

    fn backward_input(&mut self, _: usize, _: usize, _: Option<Row>) -> Result<Option<Row>, String> {
        Err("not by components".into())
    }

    fn backward_weight(&mut self, _: usize, _: usize) -> Result<(), String> {
        Err("not by components".into())
    }

    fn by_components(&mut self) -> Option<&mut dyn StageComponents<Error = String>> {
        Some(self)
    }
}

fn recorded(steps: Vec<Step>, micro_batches: usize, overlap: Overlap) -> Vec<String> {
    let schedule = Schedule::from_actions(Kind::GPipe, 1, micro_batches, vec![steps]).unwrap();
    let mut model = Recorder { stages: 1, calls: Vec::new() };
    execute_with(&schedule, &Comm::solo(), &mut model, 0, &ExecuteOptions::new(overlap)).unwrap();
    model.calls
}

#[test]
fn calls_come_as_the_default_says() {
    let one = |kind, chunk| Step::One(Action::new(kind, 0, chunk));
    let pair = Step::Pair(Action::new(ActionKind::F, 0, 1), Action::new(ActionKind::B, 0, 0));
    let steps = vec![
        one(ActionKind::F, 0),
        pair,
        one(ActionKind::I, 1),
        one(ActionKind::F, 2),
        one(ActionKind::B, 2),
        one(ActionKind::W, 1),
    ];
    let calls = recorded(steps, 3, Overlap::Default);
    let expected = "begin F0, attention 0, start dispatch 0, finish dispatch 0, mlp 0, start combine 0, finish combine 0, result F0, end F0, \
        begin B0, start combine-backward 0, begin F1, attention 1, start dispatch 1, finish combine-backward 0, mlp-input 0, \
        start dispatch-backward 0, mlp-weight 0, finish dispatch 1, mlp 1, start combine 1, finish dispatch-backward 0, \
        attention-input 0, result B0, attention-weight 0, finish combine 1, result F1, end F1, end B0, \
        begin B1, start combine-backward 1, finish combine-backward 1, mlp-input 1, start dispatch-backward 1, \
        finish dispatch-backward 1, attention-input 1, result B1, \
        begin F2, attention 2, start dispatch 2, finish dispatch 2, mlp 2, start combine 2, finish combine 2, result F2, end F2, \
        begin B2, start combine-backward 2, finish combine-backward 2, mlp-input 2, start dispatch-backward 2, mlp-weight 2, \
        finish dispatch-backward 2, attention-input 2, result B2, attention-weight 2, end B2, mlp-weight 1, attention-weight 1, end B1";
    // The weights of micro-batch 1 come after those of 2 in the schedule, so they fill nothing before.
    assert_eq!(calls.join(", "), expected);

    // Next in turn, they fill the waits of a forward.
    let steps =
        vec![one(ActionKind::F, 0), one(ActionKind::I, 0), one(ActionKind::F, 1), one(ActionKind::W, 0), one(ActionKind::B, 1)];
    let calls = recorded(steps.clone(), 2, Overlap::Default).join(", ");
    let filled = "start dispatch 1, mlp-weight 0, finish dispatch 1, mlp 1, start combine 1, attention-weight 0, end B0, finish combine 1, \
        result F1, end F1";
    assert!(calls.contains(filled), "{calls}");
    let calls = recorded(steps, 2, Overlap::Off).join(", ");
    assert!(calls.contains("end F1, mlp-weight 0, attention-weight 0, end B0"), "{calls}");
}

#[test]
fn what_cannot_be_arranged_is_said() {
    let schedule = Schedule::new(Kind::DualPipeV, 2, 5).unwrap();
    let said = |overlap: Overlap, change: &(dyn Fn(usize, &mut Net) + Sync)| {
        run(&schedule, &ExecuteOptions::new(overlap), change).unwrap_err().message
    };
    let message = said(Overlap::Tuned(Arrangements::new()), &|_, _| {});
    assert!(message.contains("tuned arrangements: expected one for the 8 components F from attention of layer"), "{message}");
    let message = said(Overlap::Default, &|_, net| net.offers = Offers::Forwards);
    assert!(message.contains("expected components of all stages and both halves, or of none"), "{message}");
    let message = said(Overlap::Default, &|_, net| net.offers = Offers::Nonsense);
    assert!(message.contains("expected to come after earlier components of its list"), "{message}");
    for kind in [ComponentKind::Attention, ComponentKind::MlpInput, ComponentKind::AttentionWeight] {
        for overlap in [Overlap::Off, Overlap::Default, Overlap::Random(4)] {
            let message = said(overlap, &|rank, net| net.fails_at = (rank == 1).then_some((kind, 2)));
            assert!(message.contains(&format!("{kind} is tired")), "{message}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_orders_give_the_same_bits(
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        half in 1..=2usize,
        micro_batches in 1..9usize,
        seed: u64,
    ) {
        let schedule = Schedule::new(kind, 2 * half, micro_batches).unwrap();
        let got = run(&schedule, &ExecuteOptions::new(Overlap::Random(seed)), |_, _| {}).unwrap();
        prop_assert_eq!(bits(got), bits(whole(&schedule)));
    }
}
