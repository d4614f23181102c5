//! The executor on a small network: every schedule gives what one rank gives.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use dualpipe::{ActionKind, Costs, ExecuteError, Freed, Kind, Outbox, Schedule, Span, Stage, Step, TimeUnit, Timeline, Work};
use dualpipe::{execute, gather, simulate, svg_measured_above_simulated};
use v3_ranks::{Comm, Link, LinkModel, RanksError, WorldConfig, run_threads};
use v3_testkit::Rng;

const LAYERS: usize = 16;
const WIDTH: usize = 5;
const TOKENS: usize = 3;
const SIZE: usize = TOKENS * WIDTH;

type Matrix = [f32; WIDTH * WIDTH];

/// y = tanh(x w') per layer, half the squared distance to a target as loss.
struct Net {
    stages: usize,
    weights: Vec<Matrix>,
    gradients: Vec<Matrix>,
    inputs: Vec<Vec<f32>>,
    targets: Vec<Vec<f32>>,
    /// x and y of each (layer, micro-batch), for the backward for inputs.
    saved: HashMap<(usize, usize), (Vec<f32>, Vec<f32>)>,
    /// x and the gradient before tanh of each (layer, micro-batch), for the backward for weights.
    kept_back: HashMap<(usize, usize), (Vec<f32>, Vec<f32>)>,
    losses: BTreeMap<usize, f32>,
    /// Chunks held: now and at most, freed at I and freed at W.
    held: [usize; 2],
    peak: [usize; 2],
    /// Fails at this (kind, stage, micro-batch).
    fails_at: Option<(ActionKind, usize, usize)>,
    panics: bool,
    /// Runs pairs by its own code, in halves.
    interleaves: bool,
}

impl Net {
    fn new(stages: usize, micro_batches: usize) -> Net {
        let mut rng = Rng::new(1);
        let weights = (0..LAYERS).map(|_| std::array::from_fn(|_| 0.7 * rng.normal())).collect();
        let mut rows = |_| rng.normal_vec(SIZE, 1.0);
        let inputs = (0..micro_batches).map(&mut rows).collect();
        let targets = (0..micro_batches).map(&mut rows).collect();
        Net {
            stages,
            weights,
            gradients: vec![[0.0; WIDTH * WIDTH]; LAYERS],
            inputs,
            targets,
            saved: HashMap::new(),
            kept_back: HashMap::new(),
            losses: BTreeMap::new(),
            held: [0; 2],
            peak: [0; 2],
            fails_at: None,
            panics: false,
            interleaves: false,
        }
    }

    fn layers(&self, stage: usize) -> std::ops::Range<usize> {
        stage * LAYERS / self.stages..(stage + 1) * LAYERS / self.stages
    }

    fn check(&self, kind: ActionKind, stage: usize, micro_batch: usize) -> Result<(), String> {
        if self.fails_at != Some((kind, stage, micro_batch)) {
            return Ok(());
        }
        assert!(!self.panics, "the model is on fire");
        Err("the model is tired".into())
    }

    /// The gradient of the layer's output before tanh, and of its input.
    fn through_layer(&self, layer: usize, y: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let dz: Vec<f32> = dy.iter().zip(y).map(|(dy, y)| dy * (1.0 - y * y)).collect();
        let mut dx = vec![0.0; SIZE];
        for t in 0..TOKENS {
            for o in 0..WIDTH {
                for i in 0..WIDTH {
                    dx[t * WIDTH + i] += dz[t * WIDTH + o] * self.weights[layer][o * WIDTH + i];
                }
            }
        }
        (dz, dx)
    }

    /// The finished sum of this micro-batch, added once.
    fn add_weight_gradient(&mut self, layer: usize, x: &[f32], dz: &[f32]) {
        for o in 0..WIDTH {
            for i in 0..WIDTH {
                let sum: f32 = (0..TOKENS).map(|t| dz[t * WIDTH + o] * x[t * WIDTH + i]).sum();
                self.gradients[layer][o * WIDTH + i] += sum;
            }
        }
    }

    fn start(&self, stage: usize, micro_batch: usize, gradient: Option<Vec<f32>>) -> Vec<f32> {
        gradient.unwrap_or_else(|| {
            let y = &self.saved[&(self.layers(stage).end - 1, micro_batch)].1;
            y.iter().zip(&self.targets[micro_batch]).map(|(y, target)| y - target).collect()
        })
    }

    /// Both backwards at once, layer by layer: what `I` then `W` must equal.
    fn full_backward(&mut self, stage: usize, micro_batch: usize, gradient: Option<Vec<f32>>) -> Option<Vec<f32>> {
        let mut dy = self.start(stage, micro_batch, gradient);
        for layer in self.layers(stage).rev() {
            let (x, y) = self.saved.remove(&(layer, micro_batch)).unwrap();
            let (dz, dx) = self.through_layer(layer, &y, &dy);
            self.add_weight_gradient(layer, &x, &dz);
            dy = dx;
        }
        (stage > 0).then_some(dy)
    }
}

impl Stage for Net {
    type Error = String;

    fn forward(&mut self, stage: usize, micro_batch: usize, input: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, String> {
        self.check(ActionKind::F, stage, micro_batch)?;
        assert_eq!(input.is_none(), stage == 0);
        self.held = self.held.map(|held| held + 1);
        self.peak = [0, 1].map(|i| self.peak[i].max(self.held[i]));
        let mut x = input.unwrap_or_else(|| self.inputs[micro_batch].clone());
        for layer in self.layers(stage) {
            let mut y = vec![0.0f32; SIZE];
            for t in 0..TOKENS {
                for o in 0..WIDTH {
                    let sum: f32 = (0..WIDTH).map(|i| x[t * WIDTH + i] * self.weights[layer][o * WIDTH + i]).sum();
                    y[t * WIDTH + o] = sum.tanh();
                }
            }
            let twice = self.saved.insert((layer, micro_batch), (x, y.clone()));
            assert!(twice.is_none());
            x = y;
        }
        if stage + 1 < self.stages {
            return Ok(Some(x));
        }
        let loss = x.iter().zip(&self.targets[micro_batch]).map(|(y, target)| 0.5 * (y - target) * (y - target)).sum();
        assert!(self.losses.insert(micro_batch, loss).is_none());
        Ok(None)
    }

    fn backward_input(
        &mut self,
        stage: usize,
        micro_batch: usize,
        gradient: Option<Vec<f32>>,
    ) -> Result<Option<Vec<f32>>, String> {
        self.check(ActionKind::I, stage, micro_batch)?;
        assert_eq!(gradient.is_none(), stage + 1 == self.stages);
        let mut dy = self.start(stage, micro_batch, gradient);
        for layer in self.layers(stage).rev() {
            let (x, y) = self.saved.remove(&(layer, micro_batch)).unwrap();
            let (dz, dx) = self.through_layer(layer, &y, &dy);
            self.kept_back.insert((layer, micro_batch), (x, dz));
            dy = dx;
        }
        self.held[0] -= 1;
        Ok((stage > 0).then_some(dy))
    }

    fn backward_weight(&mut self, stage: usize, micro_batch: usize) -> Result<(), String> {
        self.check(ActionKind::W, stage, micro_batch)?;
        for layer in self.layers(stage) {
            let (x, dz) = self.kept_back.remove(&(layer, micro_batch)).unwrap();
            self.add_weight_gradient(layer, &x, &dz);
        }
        self.held[1] -= 1;
        Ok(())
    }

    fn forward_backward(&mut self, forward: Work, backward: Work, outbox: &mut Outbox<'_>) -> Result<(), String> {
        if self.interleaves {
            outbox.gradient(self.backward_input(backward.stage, backward.micro_batch, backward.input)?);
            outbox.activation(self.forward(forward.stage, forward.micro_batch, forward.input)?);
            return self.backward_weight(backward.stage, backward.micro_batch);
        }
        let activation = self.forward(forward.stage, forward.micro_batch, forward.input)?;
        outbox.activation(activation);
        let gradient = self.backward_input(backward.stage, backward.micro_batch, backward.input)?;
        outbox.gradient(gradient);
        self.backward_weight(backward.stage, backward.micro_batch)
    }
}

/// What one rank gives without any schedule: losses, gradients, and the sum of the magnitudes of the micro-batches' gradients.
struct Plain {
    losses: Vec<u32>,
    gradients: Vec<Matrix>,
    magnitudes: Vec<[f64; WIDTH * WIDTH]>,
}

fn plain(micro_batches: usize) -> Plain {
    let mut net = Net::new(1, micro_batches);
    let mut magnitudes = vec![[0.0f64; WIDTH * WIDTH]; LAYERS];
    for m in 0..micro_batches {
        let mut one = Net::new(1, micro_batches);
        for net in [&mut net, &mut one] {
            net.forward(0, m, None).unwrap();
            net.full_backward(0, m, None);
        }
        for (sum, gradient) in magnitudes.iter_mut().flatten().zip(one.gradients.iter().flatten()) {
            *sum += f64::from(gradient.abs());
        }
    }
    let losses = net.losses.values().map(|loss| loss.to_bits()).collect();
    Plain { losses, gradients: net.gradients, magnitudes }
}

/// One step on as many threads as the schedule has ranks: each rank's network and spans.
fn run(schedule: &Schedule, change: impl Fn(usize, &mut Net) + Sync) -> Result<Vec<(Net, Vec<Span>)>, RanksError> {
    run_in(WorldConfig::new(schedule.ranks()), schedule, change)
}

fn run_in(
    world: WorldConfig,
    schedule: &Schedule,
    change: impl Fn(usize, &mut Net) + Sync,
) -> Result<Vec<(Net, Vec<Span>)>, RanksError> {
    run_threads(world, |comm: Comm| -> Result<_, ExecuteError<String>> {
        let mut net = Net::new(schedule.stages(), schedule.micro_batches());
        change(comm.rank(), &mut net);
        let spans = execute(schedule, &comm, &mut net, 0)?;
        Ok((net, spans))
    })
}

/// Losses of all micro-batches in order, and the gradients summed over ranks in order.
fn together(nets: &[&Net]) -> (Vec<u32>, Vec<Matrix>) {
    let mut losses = BTreeMap::new();
    let mut gradients = vec![[0.0f32; WIDTH * WIDTH]; LAYERS];
    for net in nets {
        for (&m, loss) in &net.losses {
            assert!(losses.insert(m, loss.to_bits()).is_none());
        }
        for (sum, gradient) in gradients.iter_mut().flatten().zip(net.gradients.iter().flatten()) {
            *sum += gradient;
        }
    }
    (losses.into_values().collect(), gradients)
}

fn check_against_plain(schedule: &Schedule, plain: &Plain, nets: &[&Net]) {
    let about = format!("{}, {} ranks, {} micro-batches", schedule.kind(), schedule.ranks(), schedule.micro_batches());
    let (losses, gradients) = together(nets);
    assert_eq!(losses, plain.losses, "{about}: losses");
    // Both sums add the same M numbers, in orders that differ: each addition rounds by at most 2^-24 of a partial sum, which
    // is at most the sum of magnitudes, and there are at most M on either side.
    let factor = 2.0 * schedule.micro_batches() as f64 * 2f64.powi(-24);
    let pairs = gradients.iter().flatten().zip(plain.gradients.iter().flatten());
    for ((got, expected), magnitude) in pairs.zip(plain.magnitudes.iter().flatten()) {
        let (got, expected) = (f64::from(*got), f64::from(*expected));
        assert!((got - expected).abs() <= factor * magnitude, "{about}: gradient {got}, expected {expected}");
        assert!(got != 0.0);
    }
}

/// Every kind on 1 to 4 ranks and on 8, at the fewest micro-batches it takes (at least 3) and some more.
fn cases() -> Vec<Schedule> {
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        for ranks in [1, 2, 3, 4, 8] {
            for more in [0, 3, 4] {
                let micro_batches = kind.full_micro_batches(ranks).max(3) + more;
                cases.extend(Schedule::new(kind, ranks, micro_batches));
            }
        }
    }
    cases
}

#[test]
fn every_schedule_gives_the_losses_and_gradients_of_one_rank() {
    let cases = cases();
    assert!(Kind::ALL.iter().all(|&kind| cases.iter().filter(|schedule| schedule.kind() == kind).count() >= 6));
    for schedule in cases {
        let plain = plain(schedule.micro_batches());
        let results = run(&schedule, |_, _| {}).unwrap();
        let nets: Vec<&Net> = results.iter().map(|(net, _)| net).collect();
        check_against_plain(&schedule, &plain, &nets);

        // Activations: nothing is left, and at its fullest each rank held what the plan says.
        assert!(nets.iter().all(|net| net.held == [0, 0] && net.saved.is_empty() && net.kept_back.is_empty()));
        let peaks = |freed: usize| nets.iter().map(|net| net.peak[freed]).collect::<Vec<_>>();
        assert_eq!(peaks(0), schedule.peak_activations(Freed::AtInput), "{}", schedule.kind());
        assert_eq!(peaks(1), schedule.peak_activations(Freed::AtWeight), "{}", schedule.kind());

        // What was measured is a timeline of this schedule.
        let spans = results.iter().map(|(_, spans)| spans.clone()).collect();
        let measured = Timeline::measured(&schedule, spans).unwrap();
        assert!(measured.makespan() > 0.0 && measured.bubbles().iter().all(|&bubble| bubble >= 0.0));
        let costs = measured.mean_costs();
        let simulated = simulate(&schedule, &costs).unwrap().with_unit(TimeUnit::Seconds);
        assert!(svg_measured_above_simulated(&measured, &simulated).contains("Measured: "));
    }
}

/// Turns every `B` into `I` and `W`, pairs included.
fn split(schedule: &Schedule) -> Schedule {
    let split_step = |step: &Step| -> Vec<Step> {
        let part = |action: dualpipe::Action| match action.kind {
            ActionKind::B => vec![
                Step::One(dualpipe::Action { kind: ActionKind::I, ..action }),
                Step::One(dualpipe::Action { kind: ActionKind::W, ..action }),
            ],
            _ => vec![Step::One(action)],
        };
        step.actions().flat_map(part).collect()
    };
    let lists = schedule.ranks_actions().iter().map(|steps| steps.iter().flat_map(split_step).collect()).collect();
    Schedule::from_actions(schedule.kind(), schedule.ranks(), schedule.micro_batches(), lists).unwrap()
}

#[test]
fn i_then_w_equals_b_bit_for_bit() {
    // In the model of this test: the fused backward against the two halves.
    let (mut fused, mut halves) = (Net::new(2, 3), Net::new(2, 3));
    for m in 0..3 {
        let gradient = |net: &mut Net| {
            let activation = net.forward(0, m, None).unwrap();
            net.forward(1, m, activation).unwrap();
        };
        gradient(&mut fused);
        gradient(&mut halves);
        let back = fused.full_backward(1, m, None);
        fused.full_backward(0, m, back);
        let back = halves.backward_input(1, m, None).unwrap();
        halves.backward_input(0, m, back).unwrap();
        halves.backward_weight(1, m).unwrap();
        halves.backward_weight(0, m).unwrap();
    }
    let bits = |net: &Net| net.gradients.iter().flatten().map(|g| g.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&fused), bits(&halves));

    // In the executor: every schedule, with its B as they are and split.
    for schedule in cases() {
        let bits = |schedule: &Schedule| {
            let results = run(schedule, |_, _| {}).unwrap();
            results.iter().map(|(net, _)| bits(net)).collect::<Vec<_>>()
        };
        assert_eq!(bits(&schedule), bits(&split(&schedule)), "{}", schedule.kind());
    }
}

#[test]
fn an_interleaved_pair_changes_no_bit() {
    for (kind, ranks, micro_batches) in [(Kind::DualPipe, 4, 10), (Kind::DualPipeV, 3, 8)] {
        let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
        let gradients = |interleaves: bool| {
            let results = run(&schedule, |_, net| net.interleaves = interleaves).unwrap();
            let nets: Vec<&Net> = results.iter().map(|(net, _)| net).collect();
            let (losses, gradients) = together(&nets);
            (losses, gradients.iter().flatten().map(|g| g.to_bits()).collect::<Vec<_>>())
        };
        assert_eq!(gradients(true), gradients(false));
    }
}

#[test]
fn one_rank_at_a_time_and_slow_links_change_no_bit() {
    let link = Link { latency: Duration::from_micros(200), bandwidth: 1e6 };
    for kind in Kind::ALL {
        let schedule = Schedule::new(kind, 4, 8).unwrap();
        let slots = WorldConfig::new(4).compute_slots(1);
        let slow = WorldConfig::new(4).ranks_per_node(2).link(LinkModel { fast: link, slow: link });
        for world in [slots, slow] {
            let results = run_in(world, &schedule, |_, _| {}).unwrap();
            let nets: Vec<&Net> = results.iter().map(|(net, _)| net).collect();
            check_against_plain(&schedule, &plain(8), &nets);
        }
    }
}

#[test]
fn steps_follow_each_other_on_one_group() {
    let schedule = Schedule::new(Kind::DualPipe, 2, 4).unwrap();
    let timelines = run_threads(WorldConfig::new(2), |comm: Comm| -> Result<Timeline, String> {
        let pipeline = comm.subgroup(&[0, 1], 7).map_err(|error| error.to_string())?;
        let mut last = None;
        for step in 0..5 {
            let mut net = Net::new(2, 4);
            let spans = execute(&schedule, &pipeline, &mut net, step).map_err(|error| error.to_string())?;
            last = Some(gather(&schedule, &pipeline, &spans).map_err(|error| error.to_string())?);
        }
        last.ok_or_else(|| "no step".into())
    })
    .unwrap();
    assert_eq!(timelines[0], timelines[1]);
    assert_eq!(timelines[0].unit(), TimeUnit::Seconds);
    assert_eq!(timelines[0].spans()[1].len(), schedule.steps(1).len());
}

#[test]
fn an_error_on_one_rank_ends_all() {
    for kind in Kind::ALL {
        let ranks = 4;
        let schedule = Schedule::new(kind, ranks, 8).unwrap();
        for panics in [false, true] {
            for action in [ActionKind::F, ActionKind::I, ActionKind::W] {
                for stage in [0, schedule.stages() - 1] {
                    let (rank, ..) = schedule.locate(stage, 2).unwrap();
                    let error = run(&schedule, |_, net| {
                        net.fails_at = Some((action, stage, 2));
                        net.panics = panics;
                    })
                    .err()
                    .expect("a failing rank fails the step");
                    assert_eq!(error.rank, rank, "{kind}: {error}");
                    let reason = if panics { "the model is on fire" } else { "the model is tired" };
                    assert!(error.message.contains(reason), "{kind}: {error}");
                }
            }
        }
    }
}

/// A model whose results are all of one sort.
struct Careless {
    result: Option<Vec<f32>>,
    results_of_a_pair: usize,
}

impl Stage for Careless {
    type Error = String;

    fn forward(&mut self, _: usize, _: usize, _: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, String> {
        Ok(self.result.clone())
    }

    fn backward_input(&mut self, _: usize, _: usize, _: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, String> {
        Ok(None)
    }

    fn backward_weight(&mut self, _: usize, _: usize) -> Result<(), String> {
        Ok(())
    }

    fn forward_backward(&mut self, _: Work, _: Work, outbox: &mut Outbox<'_>) -> Result<(), String> {
        for _ in 0..self.results_of_a_pair {
            outbox.activation(None);
            outbox.gradient(None);
        }
        Ok(())
    }
}

#[test]
fn a_model_that_breaks_its_contract_is_told() {
    let said = |kind: Kind, ranks: usize, result: Option<Vec<f32>>| {
        let schedule = Schedule::new(kind, ranks, 2).unwrap();
        let error = run_threads(WorldConfig::new(ranks), |comm: Comm| {
            let mut model = Careless { result: result.clone(), results_of_a_pair: 0 };
            execute(&schedule, &comm, &mut model, 0).map(drop)
        });
        error.unwrap_err().message
    };
    assert_eq!(said(Kind::GPipe, 2, None), "F0.0, stage 0: expected a result for the neighbouring stage, found none");
    assert_eq!(said(Kind::GPipe, 1, Some(vec![])), "F0.0, stage 0: expected no result at the end of the pipeline, found one");

    let schedule = Schedule::new(Kind::GPipe, 2, 2).unwrap();
    let mut model = Careless { result: None, results_of_a_pair: 0 };
    let error = execute(&schedule, &Comm::solo(), &mut model, 0).unwrap_err();
    assert_eq!(error.to_string(), "pipeline group: expected 2 ranks, found 1");

    // A pair on one rank: DualPipeV hands its results over in place, to itself.
    let action = |kind, chunk| dualpipe::Action::new(kind, 0, chunk);
    let lists = vec![vec![
        Step::One(action(ActionKind::F, 0)),
        Step::Pair(action(ActionKind::F, 1), action(ActionKind::B, 0)),
        Step::One(action(ActionKind::B, 1)),
    ]];
    let schedule = Schedule::from_actions(Kind::GPipe, 1, 2, lists).unwrap();
    for results_of_a_pair in 0..3 {
        let mut model = Careless { result: None, results_of_a_pair };
        let result = execute(&schedule, &Comm::solo(), &mut model, 0);
        match results_of_a_pair {
            1 => assert_eq!(result.unwrap().len(), 3),
            _ => assert!(matches!(result, Err(ExecuteError::Contract { .. }))),
        }
    }
}

#[test]
fn spans_of_another_schedule_are_refused() {
    let schedule = Schedule::new(Kind::OneFOneB, 2, 2).unwrap();
    let spans = simulate(&schedule, &Costs::default()).unwrap().spans().to_vec();
    assert!(Timeline::measured(&schedule, spans.clone()).is_ok());
    let other = Schedule::new(Kind::GPipe, 2, 2).unwrap();
    let message = Timeline::measured(&other, spans.clone()).unwrap_err().to_string();
    assert!(message.contains("rank 1"), "{message}");
    assert!(Timeline::measured(&schedule, spans[..1].to_vec()).is_err());
    assert!(Timeline::measured(&schedule, vec![spans[0].clone(), spans[1][1..].to_vec()]).is_err());
    let mut backwards = spans.clone();
    backwards[0][1].start = -1.0;
    assert!(Timeline::measured(&schedule, backwards).is_err());
    let mut never = spans;
    never[1][3].end = f64::NAN;
    assert!(Timeline::measured(&schedule, never).is_err());
}
