//! Arrangements of components: legal ones, their simulation on two lanes, their search, and their text.

mod common;

use common::{moe_costs, moe_layers};
use dualpipe::{
    Arrangement, Arrangements, Component, ComponentCost, ComponentCosts, ComponentKind, Half, Kind, Op, PairCosts, PairTimeline,
    Pairing, Ports, Schedule, Tuning, pair_bound, simulate_pair, simulate_steady, tune, tune_pair,
};
use proptest::prelude::*;
use v3_testkit::Rng;

fn layers(count: usize) -> Pairing {
    Pairing::new(moe_layers(Half::Forward, 0..count), moe_layers(Half::Backward, 0..count)).unwrap()
}

/// Components of any kinds after any others.
fn random_half(half: Half, rng: &mut Rng, most: usize) -> Vec<Component> {
    let count = rng.below(most + 1);
    let mut list: Vec<Component> = Vec::new();
    for index in 0..count {
        let kind = loop {
            let kind = ComponentKind::ALL[rng.below(ComponentKind::ALL.len())];
            if !(half == Half::Forward && kind.is_weight()) {
                break kind;
            }
        };
        let mut after: Vec<usize> = (0..index).filter(|_| rng.below(3) == 0).collect();
        if !kind.is_weight() {
            after.retain(|&other| !list[other].kind.is_weight());
        }
        list.push(Component::new(kind, rng.below(4), after));
    }
    list
}

fn random_pairing(rng: &mut Rng, most: usize) -> Pairing {
    Pairing::new(random_half(Half::Forward, rng, most), random_half(Half::Backward, rng, most)).unwrap()
}

/// Times whose sums are exact.
fn random_costs(pairing: &Pairing, rng: &mut Rng) -> PairCosts {
    let mut exact = |most: usize| rng.below(most) as f64 * 0.25;
    let mut half = |half: Half| {
        let cost = |component: &Component| match component.kind.communicates() {
            true => ComponentCost {
                compute: 0.0,
                start: exact(2),
                finish: exact(2),
                slow: exact(9),
                fast: exact(9),
                latency: exact(3),
            },
            false => ComponentCost::compute(exact(9)),
        };
        pairing.half(half).iter().map(cost).collect::<Vec<_>>()
    };
    let (forward, backward) = (half(Half::Forward), half(Half::Backward));
    let ports = if rng.below(2) == 0 { Ports::One } else { Ports::Two };
    let transfer = ComponentCost::communicate(rng.below(3) as f64 * 0.25, 0.0, rng.below(3) as f64 * 0.25);
    PairCosts { ports, transfer, forward, backward }
}

/// What `Component::after` means, without the bookkeeping of the library.
fn legal(pairing: &Pairing, ops: &[Op]) -> bool {
    let at = |op: Op| ops.iter().position(|&other| other == op);
    let mut expected = 0;
    for half in [Half::Forward, Half::Backward] {
        let list = pairing.half(half);
        let done = |index: usize| match list[index].kind.communicates() {
            true => at(Op::Finish(half, index)),
            false => at(Op::Compute(half, index)),
        };
        for (index, component) in list.iter().enumerate() {
            expected += 1 + usize::from(component.kind.communicates());
            let begin = match component.kind.communicates() {
                true => at(Op::Start(half, index)),
                false => at(Op::Compute(half, index)),
            };
            if component.kind.is_weight() && begin.is_none() {
                expected -= 1;
                continue;
            }
            let (Some(begin), Some(end)) = (begin, done(index)) else { return false };
            if end < begin || component.after.iter().any(|&other| done(other).is_none_or(|done| done > begin)) {
                return false;
            }
        }
    }
    ops.iter().filter(|&&op| op != Op::Fill).count() == expected
}

/// The two lanes by the definition: each entry in turn, ports as lists of busy times.
fn obvious(pairing: &Pairing, costs: &PairCosts, ops: &[Op]) -> (f64, f64) {
    let (mut now, mut exposed) = (0.0f64, 0.0f64);
    let mut busy: [Vec<(f64, f64)>; 2] = [Vec::new(), Vec::new()];
    let mut arrives = std::collections::HashMap::new();
    let mut left = [Half::Forward, Half::Backward]
        .map(|half| pairing.half(half).iter().filter(|component| !component.kind.is_weight()).count());
    let mut send = |now: f64, cost: &ComponentCost| {
        let times = match costs.ports {
            Ports::One => [cost.slow.max(cost.fast), 0.0],
            Ports::Two => [cost.slow, cost.fast],
        };
        let mut end = now;
        for (port, time) in busy.iter_mut().zip(times).filter(|(_, time)| *time > 0.0) {
            let free = port.last().map_or(0.0, |&(_, end)| end);
            let begin = f64::max(free, now);
            port.push((begin, begin + time));
            end = end.max(begin + time);
        }
        end + cost.latency
    };
    for &op in ops {
        let (half, index) = match op {
            Op::Compute(half, index) | Op::Start(half, index) | Op::Finish(half, index) => (half, index),
            Op::Fill => continue,
        };
        let cost = &costs.half(half)[index];
        match op {
            Op::Start(..) => {
                now += cost.start;
                arrives.insert((half, index), send(now, cost));
                continue;
            }
            Op::Finish(..) => {
                let there = arrives[&(half, index)];
                exposed += f64::max(there - now, 0.0);
                now = now.max(there) + cost.finish;
            }
            _ => now += cost.compute,
        }
        if !pairing.half(half)[index].kind.is_weight() {
            left[half as usize] -= 1;
            if left[half as usize] == 0 {
                send(now, &costs.transfer);
            }
        }
    }
    (now, exposed)
}

#[test]
fn the_default_is_figure_4_of_the_report() {
    let pairing = layers(3);
    let text = Arrangement::default(&pairing).describe(&pairing);
    let expected = "\
computes:     ATTN(F)0 MLP(B)2 MLP(W)2 MLP(F)0 ATTN(B)2 ATTN(W)2 ATTN(F)1 MLP(B)1 MLP(W)1 MLP(F)1 ATTN(B)1 ATTN(W)1 ATTN(F)2 \
MLP(B)0 MLP(W)0 MLP(F)2 ATTN(B)0 ATTN(W)0
communicates: COMBINE(B)2 DISPATCH(F)0 DISPATCH(B)2 COMBINE(F)0 COMBINE(B)1 DISPATCH(F)1 DISPATCH(B)1 COMBINE(F)1 COMBINE(B)0 \
DISPATCH(F)2 DISPATCH(B)0 COMBINE(F)2
";
    assert_eq!(text, expected);
}

#[test]
fn a_chunk_alone_fills_its_waits() {
    let alone = Pairing::new(moe_layers(Half::Forward, 0..1), Vec::new()).unwrap();
    let ops = |arrangement: Arrangement| arrangement.ops().iter().map(Op::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(ops(Arrangement::default(&alone)), "F0 F1> * F1< F2 F3> * F3<");
    assert_eq!(ops(Arrangement::sequential(&alone)), "F0 F1> F1< F2 F3> F3<");
    let back = Pairing::new(Vec::new(), moe_layers(Half::Backward, 0..2)).unwrap();
    assert_eq!(ops(Arrangement::default(&back)), "B0> * B0< B1 B3> B2 * B3< B4 B6> B5 * B6< B7 B9> B8 * B9< B10 B11");
}

#[test]
fn a_pair_hides_what_it_must() {
    // Four layers; communication of 0.8 and 1.0 of computation.
    let pairing = layers(4);
    for (attention, mlp) in [([1.0; 3], [1.0; 3]), ([1.0; 3], [2.0; 3]), ([2.0; 3], [1.0; 3])] {
        for (ratio, least) in [(0.8, 0.95), (1.0, 0.90)] {
            let costs = moe_costs(attention, mlp, ratio, Ports::Two).of(&pairing).unwrap();
            let tuned = tune_pair(&pairing, &costs, Tuning::default()).unwrap();
            assert!(tuned.steady.hidden() >= least, "{attention:?} {mlp:?} {ratio}: {:?}", tuned.steady);
            let off = simulate_pair(&pairing, &costs, &Arrangement::sequential(&pairing)).unwrap();
            assert!(off.hidden().abs() < 1e-12);
            assert!(off.makespan >= 1.6 * tuned.steady.makespan);
            assert!(tuned.steady.makespan >= tuned.bound - 1e-9);
        }
    }
}

#[test]
fn a_tuned_pair_hides_transfers_that_the_default_waits_for() {
    let pairing = layers(4);
    let mut costs = moe_costs([1.0; 3], [2.0; 3], 0.8, Ports::Two);
    costs.transfer = ComponentCost::communicate(0.4, 0.0, 0.1);
    let costs = costs.of(&pairing).unwrap();
    let default = simulate_steady(&pairing, &costs, &Arrangement::default(&pairing)).unwrap();
    let tuned = tune_pair(&pairing, &costs, Tuning::default()).unwrap().steady;
    assert!(tuned.exposed < 0.5 * default.exposed, "{tuned:?} {default:?}");
}

/// All orders of a pairing, by the library's own notion of an order, which `legal` checks elsewhere.
fn all_orders(pairing: &Pairing, costs: &PairCosts, ops: &mut Vec<Op>, best: &mut f64) {
    let mut ready = Vec::new();
    for half in [Half::Forward, Half::Backward] {
        let done = |index: usize| match pairing.half(half)[index].kind.communicates() {
            true => ops.contains(&Op::Finish(half, index)),
            false => ops.contains(&Op::Compute(half, index)),
        };
        for (index, component) in pairing.half(half).iter().enumerate() {
            let can = component.after.iter().all(|&other| done(other));
            match component.kind.communicates() {
                _ if done(index) => {}
                true if ops.contains(&Op::Start(half, index)) => ready.push(Op::Finish(half, index)),
                true if can => ready.push(Op::Start(half, index)),
                false if can => ready.push(Op::Compute(half, index)),
                _ => {}
            }
        }
    }
    if ready.is_empty() {
        let arrangement = Arrangement::new(pairing, ops.clone()).unwrap();
        *best = best.min(simulate_steady(pairing, costs, &arrangement).unwrap().makespan);
        return;
    }
    for op in ready {
        ops.push(op);
        all_orders(pairing, costs, ops, best);
        ops.pop();
    }
}

#[test]
fn the_search_finds_the_best_of_all_orders() {
    let mut rng = Rng::new(5);
    let mut improved = 0;
    for case in 0..30 {
        let pairing = loop {
            let pairing = random_pairing(&mut rng, 4);
            let count = |half| pairing.half(half).iter().map(|c| 1 + usize::from(c.kind.communicates())).sum::<usize>();
            let (forward, backward) = (count(Half::Forward), count(Half::Backward));
            if forward > 0 && backward > 0 && (5..9).contains(&(forward + backward)) {
                break pairing;
            }
        };
        let costs = random_costs(&pairing, &mut rng);
        let mut best = f64::INFINITY;
        all_orders(&pairing, &costs, &mut Vec::new(), &mut best);
        let tuned = tune_pair(&pairing, &costs, Tuning { seed: case, tries: 20_000, put_off: 0 }).unwrap();
        assert_eq!(best, simulate_steady(&pairing, &costs, &tuned.arrangement).unwrap().makespan, "case {case}");
        let default = simulate_steady(&pairing, &costs, &Arrangement::default(&pairing)).unwrap();
        improved += usize::from(best < default.makespan);
    }
    assert!(improved >= 5, "the default is nearly always best: these cases show nothing");
}

#[test]
fn the_same_seed_gives_the_same_arrangement() {
    let pairing = layers(2);
    let costs = moe_costs([1.0, 1.5, 0.5], [2.0, 2.5, 1.5], 0.9, Ports::One).of(&pairing).unwrap();
    let tune = |seed| tune_pair(&pairing, &costs, Tuning { seed, tries: 4000, put_off: 2 }).unwrap();
    assert_eq!(tune(3), tune(3));
    assert!((0..8).any(|seed| tune(seed).arrangement != tune(3).arrangement));
}

#[test]
fn a_schedule_is_tuned_whole_and_read_back() {
    let schedule = Schedule::new(Kind::DualPipe, 4, 10).unwrap();
    let parts = |half, stage: usize| moe_layers(half, 2 * stage..2 * stage + 2);
    let costs = moe_costs([1.0; 3], [2.0; 3], 0.8, Ports::Two);
    let set = tune(&schedule, parts, &costs, Tuning { seed: 1, tries: 2000, put_off: 2 }).unwrap();
    // Every pair, and every chunk alone, of every rank.
    for rank in 0..4 {
        for step in schedule.steps(rank) {
            let mut halves = [Vec::new(), Vec::new()];
            for action in step.actions().filter(|action| action.kind != dualpipe::ActionKind::W) {
                let half = if action.kind == dualpipe::ActionKind::F { Half::Forward } else { Half::Backward };
                halves[half as usize] = parts(half, schedule.stage_of(rank, action.direction).unwrap());
            }
            let [forward, backward] = halves;
            if !(forward.is_empty() && backward.is_empty()) {
                let found = set.get(&Pairing::new(forward, backward).unwrap());
                assert!(found.is_some_and(|found| step.is_pair() || found.ops().contains(&Op::Fill)), "{step}");
            }
        }
    }
    let text = set.to_string();
    assert_eq!(text.parse::<Arrangements>().unwrap(), set);
    // A cost that is missing is named.
    let error = tune(&schedule, parts, &ComponentCosts::new(Ports::One), Tuning::default()).unwrap_err().to_string();
    assert_eq!(error, "component costs: expected a cost of F attention of layer 0, found none");
}

#[test]
fn wrong_arrangements_are_refused() {
    let pairing = layers(1);
    let good = Arrangement::sequential(&pairing).ops().to_vec();
    let said = |ops: Vec<Op>| Arrangement::new(&pairing, ops).unwrap_err().to_string();
    let change = |index: usize, op: Op| {
        let mut ops = good.clone();
        ops[index] = op;
        said(ops)
    };
    assert_eq!(
        change(0, Op::Fill),
        "arrangement: entry 1: expected attention of layer 0 to be done before, found F1 (dispatch of layer 0)"
    );
    assert_eq!(change(1, Op::Compute(Half::Forward, 9)), "arrangement: entry 1: expected a component below F4, found F9");
    assert!(change(1, Op::Compute(Half::Forward, 1)).contains("a communication to be started and finished"));
    assert!(change(0, Op::Start(Half::Forward, 0)).contains("a computation to be computed"));
    assert!(change(1, Op::Finish(Half::Forward, 1)).contains("one finish after its start"));
    assert!(change(1, Op::Compute(Half::Forward, 0)).contains("each component once"));
    // Weights may be left out, as the last here; nothing else may.
    assert!(Arrangement::new(&pairing, good[..good.len() - 1].to_vec()).is_ok());
    assert!(said(good[..good.len() - 2].to_vec()).contains("none for B4 (attention-input of layer 0)"));
    assert!(said(Vec::new()).contains("none for F0"));

    let said = |list: Vec<Component>| Pairing::new(Vec::new(), list).unwrap_err().to_string();
    let part = |kind, after: &[usize]| Component::new(kind, 0, after);
    assert!(said(vec![part(ComponentKind::MlpInput, &[0])]).contains("earlier components"));
    assert!(said(vec![part(ComponentKind::MlpWeight, &[]), part(ComponentKind::Leave, &[0])]).contains("no weights"));
    let forward = Pairing::new(vec![part(ComponentKind::MlpWeight, &[])], Vec::new());
    assert!(forward.unwrap_err().to_string().contains("no weights in a forward"));
}

#[test]
fn cost_files_are_read_and_written() {
    let text = "
        ports one          # not two
        compute F attention 1.5e-3
        compute F attention 3 1.6e-3
        compute B mlp-weight 0
        communicate F dispatch slow=9e-4 fast=4e-4 latency=1e-5
        communicate B combine-backward 3 slow=1e-3 start=2e-5 finish=3e-5
        transfer slow=1e-4 latency=1e-5
    ";
    let costs: ComponentCosts = text.parse().unwrap();
    assert_eq!(costs.ports, Ports::One);
    let attention = |layer| costs.get(Half::Forward, &Component::new(ComponentKind::Attention, layer, [])).unwrap().compute;
    assert_eq!((attention(2), attention(3)), (1.5e-3, 1.6e-3));
    let combine = Component::new(ComponentKind::CombineBackward, 3, []);
    let expected = ComponentCost { slow: 1e-3, start: 2e-5, finish: 3e-5, ..ComponentCost::default() };
    assert_eq!(costs.get(Half::Backward, &combine), Some(expected));
    assert_eq!(costs.get(Half::Forward, &combine), None);
    assert_eq!(costs.transfer, ComponentCost::communicate(1e-4, 0.0, 1e-5));
    assert_eq!(costs.to_string().parse::<ComponentCosts>().unwrap(), costs);

    let said = |text: &str| text.parse::<ComponentCosts>().unwrap_err().to_string();
    for (text, reason) in [
        ("ports three", "line 1: expected 'ports one' or 'ports two', found 'ports three'"),
        ("\nports one\nports one", "line 3: expected one line of ports"),
        ("compute", "expected a half, F or B, found ''"),
        ("compute X mlp 1", "expected a half, F or B, found 'X'"),
        ("compute F milp 1", "expected a component: enter, attention,"),
        ("compute F dispatch 1", "'communicate' for what communicates"),
        ("communicate F mlp slow=1", "'communicate' for what communicates"),
        ("compute F mlp", "expected a time in seconds, finite, 0 or more, found ''"),
        ("compute F mlp -1", "expected a time in seconds"),
        ("compute F mlp inf", "expected a time in seconds"),
        ("compute F mlp 1 2 3", "expected nothing after the time, found '3'"),
        ("compute F mlp 1\ncompute F mlp 2", "line 2: expected one line for each component"),
        ("communicate F dispatch quick=1", "NAME one of slow"),
        ("communicate F dispatch slow", "NAME=SECONDS"),
        ("communicate F dispatch slow=1 slow=1", "at most once"),
        ("communicate F dispatch slow=nan", "expected a time in seconds"),
        ("travel 1", "expected a line that begins with ports, compute, communicate or transfer"),
    ] {
        let message = said(text);
        assert!(message.starts_with("component costs: line") && message.contains(reason), "{text}: {message}");
    }
    let mut costs = moe_costs([1.0; 3], [1.0; 3], 1.0, Ports::Two);
    costs.set(Half::Forward, ComponentKind::Mlp, Some(1), ComponentCost::compute(f64::NAN));
    assert!(costs.of(&layers(1)).is_ok());
    let message = costs.of(&layers(2)).unwrap_err().to_string();
    assert_eq!(message, "cost of F mlp of layer 1: expected finite times, 0 or more, found compute = NaN");
}

#[test]
fn wrong_text_of_arrangements_is_refused_with_its_line() {
    let good = "arrangements 1\npair\nforward attention:0 dispatch:0<0\nbackward -\norder F0 F1> * F1<\n";
    assert_eq!(good.parse::<Arrangements>().unwrap().to_string(), good);
    let said = |from: &str, to: &str| {
        let text = good.replace(from, to);
        assert_ne!(text, good);
        text.parse::<Arrangements>().unwrap_err().to_string()
    };
    for (from, to, reason) in [
        ("arrangements 1", "arrangements 2", "line 1: expected 'arrangements 1'"),
        ("pair", "pear", "line 2: expected 'pair', found 'pear'"),
        ("forward", "farword", "line 3: expected a line 'forward ...'"),
        ("attention:0", "attention", "line 3: expected a component such as"),
        ("attention:0", "attenuation:0", "line 3: expected a component such as"),
        ("attention:0", "attention:x", "line 3: expected a component such as"),
        ("0<0", "0<1", "line 3: expected components in an order in which they can run"),
        ("F1>", "F1?", "line 5: expected an entry such as"),
        ("F1>", "F+1>", "line 5: expected an entry such as"),
        ("* F1<", "*", "line 5: expected an order of the components above"),
        ("order F0 F1> * F1<\n", "", "expected a line 'order ...' after 'pair'"),
    ] {
        let message = said(from, to);
        assert!(message.contains(reason), "{to}: {message}");
    }
    let twice = format!("{good}{}", good.split_once('\n').unwrap().1);
    assert!(twice.parse::<Arrangements>().unwrap_err().to_string().contains("line 6: expected each pair of lists once"));
}

/// Times as the simulator gives them, from the begin of the pair.
fn same_as_obvious(pairing: &Pairing, costs: &PairCosts, arrangement: &Arrangement) -> PairTimeline {
    let timeline = simulate_pair(pairing, costs, arrangement).unwrap();
    assert_eq!((timeline.makespan, timeline.exposed), obvious(pairing, costs, arrangement.ops()));
    assert_eq!(timeline.makespan, timeline.computing + timeline.exposed);
    let steady = simulate_steady(pairing, costs, arrangement).unwrap();
    assert_eq!(steady.makespan, steady.computing + steady.exposed);
    assert!(steady.makespan >= pair_bound(pairing, costs).unwrap());
    timeline
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_arrangement_is_legal_and_simulated(seed: u64) {
        let mut rng = Rng::new(seed);
        let pairing = random_pairing(&mut rng, 9);
        let costs = random_costs(&pairing, &mut rng);
        let sequential = Arrangement::sequential(&pairing);
        let all = [sequential.clone(), Arrangement::default(&pairing), Arrangement::random(&pairing, seed)];
        for arrangement in &all {
            prop_assert!(legal(&pairing, arrangement.ops()));
            prop_assert!(arrangement.check(&pairing).is_ok());
            same_as_obvious(&pairing, &costs, arrangement);
        }
        let off = simulate_pair(&pairing, &costs, &sequential).unwrap();
        // With nothing on the ports but the components, all is exposed; transfers can only add to it.
        prop_assert!(off.exposed >= off.communication);
        let tuned = tune_pair(&pairing, &costs, Tuning { seed, tries: 300, put_off: 2 }).unwrap();
        prop_assert!(legal(&pairing, tuned.arrangement.ops()));
        prop_assert_eq!(same_as_obvious(&pairing, &costs, &tuned.arrangement), tuned.alone);

        let mut set = Arrangements::new();
        set.insert(pairing.clone(), tuned.arrangement).unwrap();
        prop_assert_eq!(set.to_string().parse::<Arrangements>().unwrap(), set);
    }

    #[test]
    fn the_check_agrees_with_the_definition(seed: u64, changes in 1..4usize) {
        let mut rng = Rng::new(seed);
        let pairing = random_pairing(&mut rng, 6);
        let mut ops = Arrangement::random(&pairing, seed).ops().to_vec();
        for _ in 0..changes {
            if ops.is_empty() {
                break;
            }
            let (a, b) = (rng.below(ops.len()), rng.below(ops.len()));
            match rng.below(4) {
                0 | 1 => ops.swap(a, b),
                2 => drop(ops.remove(a)),
                _ => ops.insert(b, ops[a]),
            }
        }
        prop_assert_eq!(Arrangement::new(&pairing, ops.clone()).is_ok(), legal(&pairing, &ops));
    }

    #[test]
    fn damaged_files_never_panic(seed: u64, place: prop::sample::Index, byte: u8, cut: bool) {
        let mut rng = Rng::new(seed);
        let pairing = random_pairing(&mut rng, 5);
        let mut set = Arrangements::new();
        set.insert(pairing.clone(), Arrangement::random(&pairing, seed)).unwrap();
        for text in [set.to_string(), moe_costs([1.0; 3], [1.5; 3], 0.7, Ports::One).to_string()] {
            let mut text = text.into_bytes();
            let place = place.index(text.len());
            if cut {
                text.truncate(place);
            } else {
                text[place] = byte;
            }
            if let Ok(text) = String::from_utf8(text) {
                if let Ok(read) = text.parse::<Arrangements>() {
                    prop_assert!(read.iter().all(|(pairing, arrangement)| legal(pairing, arrangement.ops())));
                }
                let _: Result<ComponentCosts, _> = text.parse();
            }
        }
    }
}
