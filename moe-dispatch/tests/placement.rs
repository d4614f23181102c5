//! Placement of random loads: valid, deterministic, at least as balanced as a plain greedy packing, and moving little.

use moe_dispatch::Error;
use moe_dispatch::placement::{Placement, PlacementInput, place};
use proptest::prelude::*;
use v3_testkit::Rng;

/// Sizes that go together: experts, replicas, groups, nodes, devices.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    experts: usize,
    replicas: usize,
    groups: usize,
    nodes: usize,
    devices: usize,
}

fn sizes() -> impl Strategy<Value = Sizes> {
    // Groups of `size` experts, devices of `slots` slots; spare slots as they come.
    (1usize..7, 1usize..7, 1usize..4, 1usize..5, 0usize..4).prop_map(|(groups, size, nodes, per_node, spare)| {
        let (experts, devices) = (groups * size, nodes * per_node);
        let slots = experts.div_ceil(devices) + spare;
        Sizes { experts, replicas: slots * devices, groups, nodes, devices }
    })
}

impl Sizes {
    fn input(self, weight: &[f64]) -> PlacementInput<'_> {
        PlacementInput {
            num_groups: self.groups,
            num_nodes: self.nodes,
            effort: 20,
            ..PlacementInput::new(weight, self.experts, self.replicas, self.devices)
        }
    }
}

/// Loads as they occur: a few hot experts, many cold ones, some idle, ties.
fn loads(rng: &mut Rng, n: usize) -> Vec<f64> {
    (0..n)
        .map(|_| match rng.below(5) {
            0 => 0.0,
            1 => 100.0,
            2 => 1000.0 * f64::from(rng.uniform()).powi(3),
            _ => 10.0 + 90.0 * f64::from(rng.uniform()),
        })
        .collect()
}

fn assert_valid(input: &PlacementInput<'_>, p: &Placement) {
    let slots = input.num_replicas / input.num_devices;
    let pools = if input.is_hierarchical() { input.num_nodes } else { 1 };
    let cap = slots.div_ceil(input.num_experts / pools);
    for l in 0..input.layers() {
        let log2phy = p.log2phy(l);
        for (e, slots_of) in log2phy.iter().enumerate() {
            assert_eq!(slots_of.len(), p.logcnt[l * input.num_experts + e] as usize);
            assert!(!slots_of.is_empty(), "expert {e} has no slot");
        }
        for device in p.layer(l).chunks(slots) {
            for e in device {
                assert!(device.iter().filter(|x| *x == e).count() <= cap, "expert {e} too often on a device: {device:?}");
            }
        }
        let group_size = input.num_experts / input.num_groups;
        for group in log2phy.chunks(group_size).filter(|_| input.is_hierarchical()) {
            let node = |slot: u32| slot as usize / (input.num_replicas / input.num_nodes);
            let first = node(group[0][0]);
            assert!(group.iter().flatten().all(|&s| node(s) == first), "a group on two nodes");
        }
        let max = p.device_load[l * input.num_devices..][..input.num_devices].iter().fold(0.0f64, |m, &x| m.max(x));
        let mean = input.weight[l * input.num_experts..][..input.num_experts].iter().sum::<f64>() / input.num_devices as f64;
        let expected = if max == 0.0 { 1.0 } else { mean / max };
        assert!((p.balancedness[l] - expected).abs() < 1e-9);
    }
}

/// Largest device load of the plain method, and whether it put an expert twice on a device: groups onto nodes, replicas to the largest share, replicas onto
/// devices, each time the largest first onto the least loaded place with room.
fn greedy(weight: &[f64], sizes: Sizes) -> (f64, bool) {
    fn pack(loads: &[f64], places: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..loads.len()).collect();
        order.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]).then(a.cmp(&b)));
        let mut held = vec![Vec::new(); places];
        let mut total = vec![0.0; places];
        for i in order {
            let open = (0..places).filter(|&p| held[p].len() < loads.len() / places);
            let p = open.min_by(|&a, &b| f64::total_cmp(&total[a], &total[b])).unwrap();
            held[p].push(i);
            total[p] += loads[i];
        }
        held
    }
    let hierarchical = sizes.groups.is_multiple_of(sizes.nodes);
    let (groups, nodes) = if hierarchical { (sizes.groups, sizes.nodes) } else { (1, 1) };
    let size = sizes.experts / groups;
    let group_loads: Vec<f64> = weight.chunks(size).map(|g| g.iter().sum()).collect();
    let (mut worst, mut twice) = (0.0f64, false);
    for node in pack(&group_loads, nodes) {
        let own: Vec<f64> = node.iter().flat_map(|g| weight[g * size..][..size].to_vec()).collect();
        let mut count = vec![1.0; own.len()];
        for _ in own.len()..sizes.replicas / nodes {
            let share = |e: usize| own[e] / count[e];
            let hot = (0..own.len()).fold(0, |best, e| if share(e) > share(best) { e } else { best });
            count[hot] += 1.0;
        }
        let replicas: Vec<usize> = (0..own.len()).flat_map(|e| std::iter::repeat_n(e, count[e] as usize)).collect();
        let shares: Vec<f64> = replicas.iter().map(|&e| own[e] / count[e]).collect();
        for device in pack(&shares, sizes.devices / nodes) {
            worst = worst.max(device.iter().map(|&i| shares[i]).sum());
            let mut experts: Vec<usize> = device.iter().map(|&i| replicas[i]).collect();
            experts.sort_unstable();
            twice |= experts.windows(2).any(|w| w[0] == w[1]);
        }
    }
    (worst, twice)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn valid_and_balanced(sizes in sizes(), seed: u64, layers in 0usize..3) {
        let mut rng = Rng::new(seed);
        let weight = loads(&mut rng, layers * sizes.experts);
        let input = sizes.input(&weight);
        let p = place(&input).unwrap();
        assert_valid(&input, &p);
        prop_assert_eq!(&p, &place(&input).unwrap());
        for (l, w) in weight.chunks(sizes.experts).enumerate() {
            let max = p.device_load[l * sizes.devices..][..sizes.devices].iter().fold(0.0f64, |m, &x| m.max(x));
            let (theirs, twice) = greedy(w, sizes);
            // An answer with an expert twice on a device may be better than any without.
            prop_assert!(twice || max <= theirs * (1.0 + 1e-9), "layer {} of {:?}: {} against {}", l, sizes, max, theirs);
        }
    }

    #[test]
    fn near_the_previous_one(sizes in sizes(), seed: u64) {
        let mut rng = Rng::new(seed);
        let before = loads(&mut rng, sizes.experts);
        let old = place(&sizes.input(&before)).unwrap();
        let same = PlacementInput { previous: Some(&old.phy2log), ..sizes.input(&before) };
        prop_assert_eq!(&place(&same).unwrap().phy2log, &old.phy2log);

        // The loads drift.
        let after: Vec<f64> = before.iter().map(|w| w * f64::from(rng.range(0.8, 1.25))).collect();
        let input = PlacementInput { previous: Some(&old.phy2log), ..sizes.input(&after) };
        let new = place(&input).unwrap();
        assert_valid(&input, &new);
        let fresh = place(&sizes.input(&after)).unwrap();
        prop_assert!(new.balancedness[0] >= fresh.balancedness[0] * (1.0 - input.tolerance) - 1e-9);
        let moves = new.moves.as_ref().unwrap()[0];
        let unguided = Placement::evaluate(&input, fresh.phy2log.clone()).unwrap().moves.unwrap()[0];
        prop_assert!(moves <= unguided, "{} moves, {} without looking at the previous placement", moves, unguided);
        // What stays on a device keeps its slot.
        let slots = sizes.replicas / sizes.devices;
        let kept = new.phy2log.iter().zip(&old.phy2log).filter(|(a, b)| a == b).count();
        prop_assert_eq!(kept, sizes.replicas - moves, "devices of {} slots", slots);

        // Any previous slots are taken for what they are worth: here arbitrary ones, experts missing and duplicated.
        let junk: Vec<u32> = (0..sizes.replicas).map(|_| rng.below(sizes.experts) as u32).collect();
        let input = PlacementInput { previous: Some(&junk), ..sizes.input(&after) };
        let p = place(&input).unwrap();
        assert_valid(&input, &p);
        prop_assert!(p.balancedness[0] >= fresh.balancedness[0] * (1.0 - input.tolerance) - 1e-9);
    }
}

#[cfg(feature = "rayon")]
#[test]
fn the_number_of_threads_changes_nothing() {
    let mut rng = Rng::new(2);
    let weight = loads(&mut rng, 5 * 64);
    let input = PlacementInput { num_groups: 8, num_nodes: 4, effort: 20, ..PlacementInput::new(&weight, 64, 80, 16) };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| place(&input).unwrap())
    };
    assert!(run(1) == run(3));
}

#[test]
fn corner_cases() {
    // One device, one expert, more slots than experts, no load, an enormous load.
    let p = place(&PlacementInput::new(&[3.0], 1, 4, 1)).unwrap();
    assert_eq!((p.phy2log.as_slice(), p.balancedness[0]), (&[0, 0, 0, 0][..], 1.0));
    let p = place(&PlacementInput::new(&[0.0, 0.0], 2, 4, 2)).unwrap();
    assert_eq!((p.logcnt.as_slice(), p.balancedness[0]), (&[2, 2][..], 1.0));
    let p = place(&PlacementInput::new(&[1e200, 1e200, 1e-300], 3, 6, 2)).unwrap();
    assert_eq!(p.balancedness[0], 1.0);
    let p = place(&PlacementInput::new(&[], 3, 6, 2)).unwrap();
    assert_eq!((p.layers, p.phy2log.len()), (0, 0));
    // A large pool: the work is bounded.
    let weight: Vec<f64> = (0..1 << 12).map(|i| f64::from(i % 1009)).collect();
    let p = place(&PlacementInput { effort: 1, ..PlacementInput::new(&weight, 1 << 12, 7 << 10, 1 << 8) }).unwrap();
    assert!(p.balancedness[0] > 0.98, "{}", p.balancedness[0]);
}

#[test]
fn bad_input_is_refused() {
    let weight = [1.0; 12];
    let good = PlacementInput { num_groups: 4, num_nodes: 2, ..PlacementInput::new(&weight, 12, 16, 4) };
    place(&good).unwrap();
    for bad in [
        PlacementInput { num_experts: 0, ..good },
        PlacementInput { num_devices: 0, ..good },
        PlacementInput { num_devices: 3, ..good },
        PlacementInput { num_nodes: 0, ..good },
        PlacementInput { num_nodes: 3, ..good },
        PlacementInput { num_groups: 0, ..good },
        PlacementInput { num_groups: 5, ..good },
        PlacementInput { num_replicas: 8, ..good },
        PlacementInput { num_replicas: 0, ..good },
        PlacementInput { num_replicas: usize::MAX - 3, ..good },
        PlacementInput { tolerance: 1.0, ..good },
        PlacementInput { tolerance: f64::NAN, ..good },
    ] {
        assert!(matches!(place(&bad), Err(Error::Config { .. } | Error::Shape { .. })), "{bad:?}");
    }
    for load in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
        let mut weight = weight;
        weight[7] = load;
        let message = place(&PlacementInput { weight: &weight, ..good }).unwrap_err().to_string();
        assert!(message.contains("expert 7 of layer 0"), "{message}");
    }
    assert!(place(&PlacementInput { weight: &weight[1..], ..good }).is_err());
    assert!(place(&PlacementInput { previous: Some(&[0; 15]), ..good }).is_err());
    assert!(place(&PlacementInput { previous: Some(&[12; 16]), ..good }).is_err());
    assert!(Placement::evaluate(&good, vec![0; 16]).is_err());
    assert!(Placement::evaluate(&good, vec![0; 15]).is_err());
}
