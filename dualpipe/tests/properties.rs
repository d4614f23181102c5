//! Generators, validator, simulator, formulas and JSON, against the obvious reference and on random schedules.

use dualpipe::{
    Action, ActionKind, Costs, Error, Freed, Kind, Placement, Schedule, StageCosts, Step, formula, reference, simulate, validate,
};
use proptest::prelude::*;
use v3_testkit::Rng;

/// Ranks and micro-batches that `kind` takes, small ones.
fn sizes(kind: Kind) -> Vec<(usize, usize)> {
    let mut sizes = Vec::new();
    for ranks in 1..=8 {
        for micro_batches in 1..=2 * ranks + 5 {
            if kind.check(ranks, micro_batches).is_ok() {
                sizes.push((ranks, micro_batches));
            }
        }
    }
    sizes
}

/// A valid list of actions in an order that chance chose, with `I` and `W` or `B`, and pairs.
fn random_actions(kind: Kind, ranks: usize, micro_batches: usize, rng: &mut Rng) -> Vec<Vec<Step>> {
    let (placement, stages) = (kind.placement(), kind.placement().stages(ranks));
    let mut forward = vec![false; stages * micro_batches];
    let mut backward = vec![false; stages * micro_batches];
    let mut lists: Vec<Vec<Step>> = vec![Vec::new(); ranks];
    let mut todo: Vec<(usize, Action)> = Vec::new();
    for rank in 0..ranks {
        for direction in 0..placement.directions() as u8 {
            for chunk in 0..placement.chunks(micro_batches, direction.into()) {
                todo.push((rank, Action::new(ActionKind::F, direction, chunk)));
                if rng.below(2) == 0 {
                    todo.push((rank, Action::new(ActionKind::B, direction, chunk)));
                } else {
                    todo.push((rank, Action::new(ActionKind::I, direction, chunk)));
                    todo.push((rank, Action::new(ActionKind::W, direction, chunk)));
                }
            }
        }
    }
    while !todo.is_empty() {
        let index = rng.below(todo.len());
        let (rank, action) = todo[index];
        let stage = placement.stage_of(ranks, rank, action.direction.into()).unwrap();
        let at = |stage: usize| placement.micro_batch(micro_batches, action.direction.into(), action.chunk) * stages + stage;
        let can = match action.kind {
            ActionKind::F => stage == 0 || forward[at(stage - 1)],
            ActionKind::B | ActionKind::I => forward[at(stage)] && (stage + 1 == stages || backward[at(stage + 1)]),
            ActionKind::W => backward[at(stage)],
        };
        if !can {
            continue;
        }
        todo.swap_remove(index);
        match action.kind {
            ActionKind::F => forward[at(stage)] = true,
            ActionKind::B | ActionKind::I => backward[at(stage)] = true,
            ActionKind::W => {}
        }
        lists[rank].push(Step::One(action));
    }
    lists
}

/// The verdict of a checker that knows nothing of stages' order of visits but the definition: it lets every rank take any
/// step that can run until none can.
fn runs_to_the_end(kind: Kind, ranks: usize, micro_batches: usize, lists: &[Vec<Step>]) -> bool {
    let (placement, stages) = (kind.placement(), kind.placement().stages(ranks));
    let mut done = std::collections::HashSet::new();
    let mut at = vec![0; ranks];
    loop {
        let mut moved = false;
        for rank in 0..ranks {
            let Some(step) = lists[rank].get(at[rank]) else { continue };
            let place = |action: &Action| {
                let stage = placement.stage_of(ranks, rank, action.direction.into()).unwrap();
                (stage, placement.micro_batch(micro_batches, action.direction.into(), action.chunk))
            };
            let can = step.actions().all(|action| {
                let (stage, m) = place(&action);
                match action.kind {
                    ActionKind::F => !done.contains(&('F', stage, m)) && (stage == 0 || done.contains(&('F', stage - 1, m))),
                    ActionKind::B | ActionKind::I => {
                        done.contains(&('F', stage, m))
                            && !done.contains(&('I', stage, m))
                            && (stage + 1 == stages || done.contains(&('I', stage + 1, m)))
                    }
                    ActionKind::W => done.contains(&('I', stage, m)) && !done.contains(&('W', stage, m)),
                }
            });
            if can {
                for action in step.actions() {
                    let (stage, m) = place(&action);
                    match action.kind {
                        ActionKind::F => drop(done.insert(('F', stage, m))),
                        ActionKind::I => drop(done.insert(('I', stage, m))),
                        ActionKind::W => drop(done.insert(('W', stage, m))),
                        ActionKind::B => drop((done.insert(('I', stage, m)), done.insert(('W', stage, m)))),
                    }
                }
                at[rank] += 1;
                moved = true;
            }
        }
        if !moved {
            let ended = (0..ranks).all(|rank| at[rank] == lists[rank].len());
            return ended && done.len() == 3 * stages * micro_batches;
        }
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    proptest::sample::select(Kind::ALL.to_vec())
}

/// Costs whose sums are exact.
fn costs() -> impl Strategy<Value = Costs> {
    (0..9u32, 0..9u32, 0..9u32, 0..25u32, 0..4u32).prop_map(|(f, i, w, fb, p2p)| {
        let exact = |n: u32| f64::from(n) * 0.25;
        Costs { f: exact(f), b: exact(i + w), w: exact(w), fb: exact(fb), p2p: exact(p2p) }
    })
}

#[test]
fn every_generated_schedule_is_valid_and_runs() {
    for kind in Kind::ALL {
        for (ranks, micro_batches) in sizes(kind) {
            let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
            assert!(runs_to_the_end(kind, ranks, micro_batches, schedule.ranks_actions()), "{kind} {ranks} {micro_batches}");
            assert_eq!(Schedule::from_json(&schedule.to_json()).unwrap(), schedule);
        }
    }
}

#[test]
fn every_stage_and_micro_batch_has_its_place() {
    for kind in Kind::ALL {
        for (ranks, micro_batches) in sizes(kind) {
            let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
            for stage in 0..schedule.stages() {
                for m in 0..micro_batches {
                    let (rank, direction, chunk) = schedule.locate(stage, m).unwrap();
                    assert_eq!(schedule.stage_of(rank, direction as u8), Some(stage));
                    assert_eq!(schedule.micro_batch(direction as u8, chunk), m);
                    assert!(schedule.micro_batches_of(rank, stage).contains(&m));
                }
            }
            assert_eq!(schedule.locate(schedule.stages(), 0), None);
            assert_eq!(schedule.stage_of(ranks, 0), None);
        }
    }
}

/// So a transport need only keep the order of the messages for one stage on one link.
#[test]
fn messages_are_sent_in_the_order_in_which_they_are_taken() {
    for kind in Kind::ALL {
        for (ranks, micro_batches) in sizes(kind) {
            let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
            let messages = schedule.messages();
            let stages = schedule.stages();
            // Stages whose next one is on the same rank: the point of a V, and every round of one rank.
            let on_rank = match kind.placement() {
                Placement::V => 1,
                Placement::Loop(_) if ranks == 1 => stages - 1,
                _ => 0,
            };
            assert_eq!(messages.len(), 2 * micro_batches * (stages - 1 - on_rank));
            for from in 0..ranks {
                for to in 0..ranks {
                    for stage_gradient in 0..2 * stages {
                        let of_link = messages.iter().filter(|message| {
                            (message.from, message.to) == (from, to)
                                && 2 * message.stage + usize::from(message.gradient) == stage_gradient
                        });
                        let sent: Vec<_> = of_link.map(|message| message.from_step).collect();
                        assert!(sent.is_sorted(), "{kind} {ranks} {micro_batches}: rank {from} to {to}: {sent:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn bubbles_equal_the_formulas() {
    let mut compared = 0;
    for kind in Kind::ALL {
        for (ranks, micro_batches) in sizes(kind) {
            let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
            for (f, i, w) in (0..5).flat_map(|f| (0..5).flat_map(move |i| (0..5).map(move |w| (f, i, w)))) {
                let (f, b, w) = (f64::from(f), f64::from(i + w), f64::from(w));
                for fb in [f.max(b), 0.5 * (f.max(b) + f + b), f + b] {
                    let costs = Costs { f, b, w, fb, p2p: 0.0 };
                    let Some(bubble) = formula::bubble(kind, ranks, micro_batches, &costs) else { continue };
                    let simulated = simulate(&schedule, &costs).unwrap().bubble();
                    assert_eq!(simulated, bubble, "{kind}, {ranks} ranks, {micro_batches} micro-batches, {costs}");
                    assert_eq!(formula::bubble_bounds(&schedule, &costs).unwrap(), (bubble, bubble), "{kind} {costs}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 10_000, "only {compared} cases lie where a formula holds");
}

/// The table of the DualPipe paper, at the costs for which it is written: F = I, W <= I.
#[test]
fn bubbles_equal_the_published_table() {
    for (f, w, saved) in [(1.0, 1.0, 0.0), (2.0, 1.0, 0.5), (3.0, 2.0, 1.0), (3.0, 3.0, 2.5)] {
        let costs = Costs { f, b: f + w, w, fb: f + f + w - saved, p2p: 0.0 };
        let Costs { f, b, w, fb, .. } = costs;
        for pp in [2, 4, 6, 8, 16] {
            for micro_batches in [2 * pp, 2 * pp + 2, 3 * pp] {
                let bubble =
                    |kind, ranks| simulate(&Schedule::new(kind, ranks, micro_batches).unwrap(), &costs).unwrap().bubble();
                let n = pp as f64;
                assert_eq!(bubble(Kind::OneFOneB, pp), (n - 1.0) * (f + b));
                assert_eq!(bubble(Kind::ZbH1, pp), (n - 1.0) * (f + b - 2.0 * w));
                assert_eq!(bubble(Kind::DualPipe, pp), (n / 2.0 - 1.0) * (fb + b - 3.0 * w));
                assert_eq!(bubble(Kind::DualPipeV, pp / 2), (n / 2.0 - 1.0) * (fb + b - 3.0 * w));
            }
        }
    }
}

/// On the same model, cut into as many stages as each schedule wants, with any number of micro-batches.
#[test]
fn no_schedule_takes_longer_than_1f1b() {
    for ranks in 1..=8usize {
        for micro_batches in 1..=2 * ranks + 5 {
            let makespan = |kind: Kind| {
                let schedule = Schedule::new(kind, ranks, micro_batches).ok()?;
                // Twelve units of forward a rank, of which each of its stages has its share; of two copies, all.
                let share = match kind.placement() {
                    Placement::Line | Placement::Bidirectional => 1.0,
                    Placement::V => 2.0,
                    Placement::Loop(each) => f64::from(each),
                };
                let costs = Costs { f: 12.0 / share, b: 24.0 / share, w: 12.0 / share, fb: 36.0 / share, p2p: 0.0 };
                Some(simulate(&schedule, &costs).unwrap().makespan())
            };
            let plain = makespan(Kind::OneFOneB).unwrap();
            let others = [Kind::Interleaved(3), Kind::Interleaved(4)];
            for kind in Kind::ALL.into_iter().chain(others).filter(|&kind| kind != Kind::GPipe) {
                if let Some(time) = makespan(kind) {
                    assert!(time <= plain, "{kind}, {ranks} ranks, {micro_batches} micro-batches: {time}, 1f1b {plain}");
                }
            }
        }
    }
}

#[test]
fn interleaved_is_as_megatron_has_it() {
    let text = |ranks, micro_batches, rank: usize| {
        let schedule = Schedule::new(Kind::Interleaved(2), ranks, micro_batches).unwrap();
        schedule.steps(rank).iter().map(|step| step.to_string()).collect::<Vec<_>>().join(" ")
    };
    // Warm-ups of 2(R - 1 - r) + (v - 1)R forwards, in groups of R micro-batches.
    let (first, last) = ("F0.0 F0.1 F1.0 F1.1 F0.2 B1.0 F0.3", "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 F0.2 B0.0");
    assert!(text(2, 4, 0).starts_with(first), "{}", text(2, 4, 0));
    assert!(text(2, 4, 1).starts_with(last), "{}", text(2, 4, 1));
    // Of three micro-batches on two ranks, the fourth is left out.
    assert_eq!(text(2, 3, 1), "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 F0.2 B0.0 B0.1 F1.2 B1.2 B0.2");
    let schedule = Schedule::new(Kind::Interleaved(3), 2, 2).unwrap();
    assert_eq!((schedule.stages(), schedule.stages_of(1)), (6, vec![1, 3, 5]));
    assert!(schedule.to_json().starts_with(r#"{"schedule":"interleaved-3","ranks":2,"#));
    for name in ["interleaved-3", "interleaved-255", "custom-loop-1", "custom", "custom-v", "custom-bidirectional"] {
        assert_eq!(name.parse::<Kind>().unwrap().to_string(), name);
    }
    assert_eq!("interleaved".parse::<Kind>().unwrap(), Kind::Interleaved(2));
    for name in ["interleaved-1", "interleaved-256", "interleaved-", "interleaved--2", "custom-loop-0", "gpipe-2"] {
        assert!(name.parse::<Kind>().is_err(), "{name}");
    }
}

#[test]
fn fewer_or_odd_micro_batches_leave_out_the_others() {
    for kind in Kind::ALL {
        for ranks in [2usize, 4, 6] {
            let full = kind.full_micro_batches(ranks).next_multiple_of(2 * ranks);
            for micro_batches in 1..full {
                let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
                let forwards: usize =
                    schedule.ranks_actions().iter().flatten().flat_map(Step::actions).filter(|a| a.kind == ActionKind::F).count();
                assert_eq!(forwards, schedule.stages() * micro_batches);
                let chunks: Vec<usize> =
                    (0..kind.placement().directions()).map(|d| kind.placement().chunks(micro_batches, d)).collect();
                assert!(chunks.iter().max().unwrap() - chunks.iter().min().unwrap() <= 1);
            }
        }
    }
}

#[test]
fn activations_peak_as_published() {
    for kind in Kind::ALL {
        for (ranks, micro_batches) in sizes(kind) {
            let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
            let at_input = schedule.peak_activations(Freed::AtInput);
            let at_weight = schedule.peak_activations(Freed::AtWeight);
            assert!(at_input.iter().zip(&at_weight).all(|(i, w)| i <= w));
            match kind {
                Kind::GPipe => assert_eq!(at_weight, vec![micro_batches; ranks]),
                Kind::OneFOneB => {
                    let expected: Vec<usize> = (0..ranks).map(|rank| micro_batches.min(ranks - rank)).collect();
                    assert_eq!((&at_input, &at_weight), (&expected, &expected));
                }
                Kind::ZbH1 => assert_eq!(at_weight, vec![micro_batches.min(ranks); ranks]),
                Kind::ZbV if micro_batches >= 2 * ranks - 1 => assert_eq!(at_weight, vec![2 * ranks; ranks]),
                Kind::ZbV => assert!(at_weight.iter().all(|&peak| peak <= 2 * micro_batches.min(ranks))),
                Kind::DualPipe if micro_batches >= 2 * ranks => {
                    assert!(at_input.iter().max() == Some(&(ranks + 1)), "{ranks} {micro_batches}: {at_input:?}");
                }
                Kind::DualPipeV if micro_batches >= 2 * ranks => {
                    assert_eq!(*at_input.iter().max().unwrap(), 2 * ranks + 1);
                }
                Kind::DualPipe | Kind::DualPipeV => {
                    let (published, each) = if kind == Kind::DualPipe { (ranks + 1, 1) } else { (2 * ranks + 1, 2) };
                    assert!(at_input.iter().all(|&peak| peak <= published.min(each * micro_batches)));
                }
                // As many forwards ahead as the plan says, and the one before the first backward.
                Kind::Interleaved(each) if micro_batches.is_multiple_of(ranks) => {
                    let (each, all) = (usize::from(each), usize::from(each) * micro_batches);
                    let ahead = |rank: usize| 2 * (ranks - 1 - rank) + (each - 1) * ranks;
                    let expected: Vec<usize> = (0..ranks).map(|rank| (ahead(rank) + 1).min(all)).collect();
                    assert_eq!((&at_input, &at_weight), (&expected, &expected));
                }
                _ => {}
            }
        }
    }
}

#[test]
fn activations_rise_and_fall_over_time() {
    for kind in Kind::ALL {
        let schedule = Schedule::new(kind, 4, 9).unwrap();
        let timeline = simulate(&schedule, &Costs::default()).unwrap();
        for freed in [Freed::AtInput, Freed::AtWeight] {
            for rank in 0..4 {
                let curve = timeline.activation_curve(rank, freed);
                assert!(curve.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 != pair[1].1), "{kind}: {curve:?}");
                let peak = curve.iter().map(|&(_, held)| held).max().unwrap();
                assert_eq!((peak, curve.last().unwrap().1), (schedule.peak_activations(freed)[rank], 0));
            }
        }
        assert!(timeline.activation_curve(4, Freed::AtInput).is_empty());
    }
}

#[test]
fn what_a_schedule_cannot_take_is_said() {
    let said = |kind: Kind, ranks, micro_batches| Schedule::new(kind, ranks, micro_batches).unwrap_err().to_string();
    assert_eq!(
        said(Kind::DualPipe, 3, 6),
        "schedule dualpipe: expected an even number of 2 or more (in the middle of an odd number a stage would be opposite to \
         itself) ranks, found 3"
    );
    assert_eq!(said(Kind::Interleaved(1), 3, 6), "schedule interleaved-1: expected 2 or more stages a rank, found 1");
    assert!(said(Kind::Custom(Placement::V), 3, 6).contains("found 'custom-v'"));
    assert_eq!(said(Kind::OneFOneB, 3, 0), "schedule 1f1b on 3 ranks: expected 1 or more micro-batches, found 0");
    assert_eq!(said(Kind::GPipe, 0, 1), "schedule gpipe: expected 1 or more ranks, found 0");
    assert!(matches!(Schedule::new(Kind::GPipe, usize::MAX, usize::MAX), Err(Error::Shape { .. })));
    assert!(matches!(validate(Kind::GPipe, 1, usize::MAX, &[vec![]]), Err(Error::Shape { .. })));
    assert!(matches!(Schedule::new(Kind::DualPipeV, usize::MAX, usize::MAX), Err(Error::Shape { .. })));
    assert_eq!(
        "dualpipes".parse::<Kind>().unwrap_err().to_string(),
        "schedule: expected one of gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe, dualpipev, interleaved-N with N from 2 to \
         255, found 'dualpipes'"
    );
}

#[test]
fn wrong_lists_are_refused_with_their_place() {
    let refused = |actions: &str, reason: &str| {
        let text = format!(r#"{{"schedule":"1f1b","ranks":2,"micro_batches":1,"ranks_actions":{actions}}}"#);
        let message = Schedule::from_json(&text).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    };
    let fine = r#"[[["F",0,0]],[["B",0,0]]]"#;
    refused(&format!("[{fine}]"), "expected 2 lists");
    refused(&format!(r#"[{fine},[[["F",0,0]]]]"#), "rank 1 lacks B (or I and W) of direction 0, chunk 0");
    refused(&format!(r#"[{fine},[[["F",0,0]],[["I",0,0]]]]"#), "rank 1 lacks W");
    refused(&format!(r#"[{fine},[[["B",0,0]],[["F",0,0]]]]"#), "rank 1, step 0");
    refused(&format!(r#"[{fine},[[["F",0,0]],[["W",0,0]],[["I",0,0]]]]"#), "W before I");
    refused(&format!(r#"[{fine},[[["F",0,0]],[["F",0,0]]]]"#), "F twice");
    refused(&format!(r#"[{fine},[[["F",0,0],["B",0,0]]]]"#), "pair of different chunks");
    refused(&format!(r#"[{fine},[[["B",0,0],["F",0,0]]]]"#), "pair of F and B");
    refused(&format!(r#"[{fine},[[]]]"#), "one or two actions");
    refused(&format!(r#"[{fine},[[["X",0,0]]]]"#), "found 'X'");
    refused(&format!(r#"[{fine},[[["F",1,0]]]]"#), "direction below 1");
    refused(&format!(r#"[{fine},[[["F",0,1]]]]"#), "chunk below 1");
    refused(&format!(r#"[{fine},[[["F",0,-1]]]]"#), "line 1 column");
    for text in ["", "{}", "[]", "null", r#"{"schedule":"zb","ranks":1,"micro_batches":1,"ranks_actions":[[]]}"#] {
        assert!(Schedule::from_json(text).is_err(), "{text}");
    }
}

#[test]
fn a_circle_of_waiting_is_found() {
    // Both ranks want the other direction's forward first.
    let step = |kind, direction| Step::One(Action::new(kind, direction, 0));
    let rank = |far: u8| {
        vec![step(ActionKind::F, far), step(ActionKind::F, 1 - far), step(ActionKind::B, far), step(ActionKind::B, 1 - far)]
    };
    let error = validate(Kind::DualPipe, 2, 2, &[rank(1), rank(0)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "schedule: deadlock: rank 0 waits at step 0 (F1.0) for the activation of micro-batch 1 from stage 0 on rank 1"
    );
}

#[test]
fn costs_are_read_and_checked() {
    assert_eq!("".parse::<Costs>().unwrap(), Costs::default());
    assert_eq!("F=1,B=2,W=1,FB=3,P2P=0".parse::<Costs>().unwrap(), Costs::default());
    assert_eq!(" B = 4 , F=2".parse::<Costs>().unwrap(), Costs { f: 2.0, b: 4.0, w: 1.0, fb: 6.0, p2p: 0.0 });
    assert_eq!(Costs::default().to_string().parse::<Costs>().unwrap(), Costs::default());
    for text in ["F", "F=", "F=x", "Q=1", "F=1,F=2", "F=-1", "B=inf", "P2P=nan", "B=1,W=2", "f=1"] {
        let message = text.parse::<Costs>().unwrap_err().to_string();
        assert!(message.starts_with("costs"), "{text}: {message}");
    }
    let schedule = Schedule::new(Kind::GPipe, 2, 1).unwrap();
    assert!(simulate(&schedule, &Costs { f: f64::NAN, ..Costs::default() }).is_err());
    assert!(simulate(&schedule, &Costs { p2p: -1.0, ..Costs::default() }).is_err());
    assert!(simulate(&schedule, &StageCosts(vec![Costs::default()])).is_err());
}

#[test]
fn equal_stage_costs_are_costs() {
    let costs: Costs = "F=2,B=5,W=2,FB=6,P2P=0.5".parse().unwrap();
    for kind in Kind::ALL {
        let schedule = Schedule::new(kind, 4, 9 - usize::from(kind == Kind::DualPipe)).unwrap();
        let each = StageCosts(vec![costs; schedule.stages()]);
        assert_eq!(simulate(&schedule, &each).unwrap(), simulate(&schedule, &costs).unwrap());
    }
}

#[test]
fn mean_costs_of_a_simulation_give_it_back() {
    let costs: Costs = "F=2,B=5,W=2,FB=6".parse().unwrap();
    for kind in Kind::ALL {
        let schedule = Schedule::new(kind, 4, 12).unwrap();
        let timeline = simulate(&schedule, &costs).unwrap();
        assert_eq!(simulate(&schedule, &timeline.mean_costs()).unwrap(), timeline);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_simulator_equals_the_reference(kind in kinds(), size in 0..1000usize, costs in costs()) {
        let sizes = sizes(kind);
        let (ranks, micro_batches) = sizes[size % sizes.len()];
        let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
        same_as_reference(&schedule, &costs);
    }

    #[test]
    fn random_orders_are_valid_and_simulated(kind in kinds(), half in 1..4usize, chunks in 1..5usize, seed: u64, costs in costs()) {
        let (ranks, micro_batches) = (2 * half, 2 * chunks);
        let lists = random_actions(kind, ranks, micro_batches, &mut Rng::new(seed));
        let schedule = Schedule::from_actions(kind, ranks, micro_batches, lists).unwrap();
        same_as_reference(&schedule, &costs);
        prop_assert_eq!(Schedule::from_json(&schedule.to_json()).unwrap(), schedule);
    }

    #[test]
    fn the_validator_agrees_with_the_definition(kind in kinds(), half in 1..3usize, chunks in 1..4usize, seed: u64, changes in 1..4usize) {
        let (ranks, micro_batches) = (2 * half, 2 * chunks);
        let mut rng = Rng::new(seed);
        let mut lists = random_actions(kind, ranks, micro_batches, &mut rng);
        for _ in 0..changes {
            let rank = rng.below(ranks);
            let (a, b) = (rng.below(lists[rank].len()), rng.below(lists[rank].len()));
            match rng.below(4) {
                0 | 1 => lists[rank].swap(a, b),
                2 => {
                    lists[rank].remove(a);
                }
                _ => {
                    let step = lists[rank][a];
                    lists[rank].insert(b, step);
                }
            }
            if lists[rank].is_empty() {
                break;
            }
        }
        let valid = validate(kind, ranks, micro_batches, &lists).is_ok();
        prop_assert_eq!(valid, runs_to_the_end(kind, ranks, micro_batches, &lists));
    }

    #[test]
    fn bubbles_lie_within_the_bounds(kind in kinds(), size in 0..1000usize, costs in costs()) {
        let sizes = sizes(kind);
        let (ranks, micro_batches) = sizes[size % sizes.len()];
        let schedule = Schedule::new(kind, ranks, micro_batches).unwrap();
        let bubble = simulate(&schedule, &costs).unwrap().bubble();
        let (low, high) = formula::bubble_bounds(&schedule, &costs).unwrap();
        prop_assert!(low <= bubble && bubble <= high, "{} {} {}: {} not in {}..={}", kind, ranks, micro_batches, bubble, low, high);
    }

    #[test]
    fn damaged_text_never_panics(kind in kinds(), place: prop::sample::Index, byte: u8, cut: bool) {
        let schedule = Schedule::new(kind, 2, 4).unwrap();
        let mut text = schedule.to_json().into_bytes();
        let place = place.index(text.len());
        if cut {
            text.truncate(place);
        } else {
            text[place] = byte;
        }
        if let Ok(text) = String::from_utf8(text)
            && let Ok(read) = Schedule::from_json(&text)
        {
            prop_assert!(runs_to_the_end(read.kind(), read.ranks(), read.micro_batches(), read.ranks_actions()));
        }
    }
}

fn same_as_reference(schedule: &Schedule, costs: &Costs) {
    let timeline = simulate(schedule, costs).unwrap();
    let expected = reference::times(schedule, costs);
    for (rank, spans) in timeline.spans().iter().enumerate() {
        let got: Vec<(f64, f64)> = spans.iter().map(|span| (span.start, span.end)).collect();
        assert_eq!(got, expected[rank], "rank {rank} of {}", schedule.to_json());
        let mut free = 0.0;
        for span in spans {
            assert_eq!(span.wait, span.start - free);
            free = span.end;
        }
    }
    let last = expected.iter().flatten().fold(0.0, |last: f64, &(_, end)| last.max(end));
    assert_eq!(timeline.makespan(), last);
}
