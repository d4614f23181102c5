//! Placement against the answers of a public balancer (`tests/data/`): a floor to beat.

use moe_dispatch::placement::{Placement, PlacementInput, place};
use serde_json::Value;

struct Case {
    name: &'static str,
    weight: Vec<f64>,
    experts: usize,
    replicas: usize,
    groups: usize,
    nodes: usize,
    gpus: usize,
    phy2log: Vec<u32>,
    balancedness: Vec<f64>,
}

fn rows<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> (Vec<T>, usize) {
    let rows: Vec<&Vec<Value>> = value.as_array().unwrap().iter().map(|r| r.as_array().unwrap()).collect();
    (rows.iter().flat_map(|r| r.iter().map(|v| read(v).unwrap())).collect(), rows[0].len())
}

fn cases() -> Vec<Case> {
    [
        ("readme", include_str!("data/readme.json")),
        ("hier64", include_str!("data/hier64.json")),
        ("global48", include_str!("data/global48.json")),
    ]
    .map(|(name, text)| {
        let v: Value = serde_json::from_str(text).unwrap();
        let int = |key: &str| v[key].as_u64().unwrap() as usize;
        let (weight, experts) = rows(&v["weight"], Value::as_f64);
        Case {
            name,
            weight,
            experts,
            replicas: int("num_replicas"),
            groups: int("num_groups"),
            nodes: int("num_nodes"),
            gpus: int("num_gpus"),
            phy2log: rows(&v["phy2log"], |x| x.as_u64().map(|x| x as u32)).0,
            balancedness: v["balancedness"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect(),
        }
    })
    .into()
}

impl Case {
    fn input(&self) -> PlacementInput<'_> {
        PlacementInput {
            num_groups: self.groups,
            num_nodes: self.nodes,
            ..PlacementInput::new(&self.weight, self.experts, self.replicas, self.gpus)
        }
    }
}

/// Every promise of a placement, but for balancedness.
fn check_valid(name: &str, input: &PlacementInput<'_>, p: &Placement) {
    let slots = input.num_replicas / input.num_devices;
    let run = input.num_replicas / input.num_nodes;
    for l in 0..input.layers() {
        let layer = p.layer(l);
        let mut count = vec![0u32; input.num_experts];
        layer.iter().for_each(|&e| count[e as usize] += 1);
        assert!(count.iter().all(|&c| c > 0), "{name}: an expert of layer {l} has no slot");
        assert_eq!(count, p.logcnt[l * input.num_experts..][..input.num_experts], "{name}: logcnt of layer {l}");
        let pool_experts = if input.is_hierarchical() { input.num_experts / input.num_nodes } else { input.num_experts };
        for device in layer.chunks(slots) {
            let mut sorted = device.to_vec();
            sorted.sort_unstable();
            let twice = sorted.windows(2).any(|w| w[0] == w[1]);
            assert!(!twice || slots > pool_experts, "{name}: layer {l} has an expert twice on a device: {device:?}");
        }
        if input.is_hierarchical() {
            let mut node_of = vec![None; input.num_groups];
            for (slot, &e) in layer.iter().enumerate() {
                let group = e as usize / (input.num_experts / input.num_groups);
                assert_eq!(*node_of[group].get_or_insert(slot / run), slot / run, "{name}: group {group} on two nodes");
            }
        }
    }
}

#[test]
fn at_least_as_balanced_as_the_public_balancer() {
    for case in cases() {
        let input = case.input();
        // The golden numbers mean what ours mean.
        let theirs = Placement::evaluate(&input, case.phy2log.clone()).unwrap();
        for (a, b) in theirs.balancedness.iter().zip(&case.balancedness) {
            assert!((a - b).abs() < 1e-6, "{}: {a} computed, {b} recorded", case.name);
        }
        let ours = place(&input).unwrap();
        check_valid(case.name, &input, &ours);
        println!("{}: theirs {:?}, ours {:?}", case.name, theirs.balancedness, ours.balancedness);
        for (l, (a, b)) in ours.balancedness.iter().zip(&theirs.balancedness).enumerate() {
            assert!(a >= b, "{} layer {l}: {a} against {b}", case.name);
        }
        assert_eq!(ours.moves, None);
    }
}

#[test]
fn a_previous_placement_keeps_most_experts_where_they_are() {
    for case in cases() {
        let input = case.input();
        let first = place(&input).unwrap();
        let again = place(&PlacementInput { previous: Some(&first.phy2log), ..input }).unwrap();
        assert_eq!(again.phy2log, first.phy2log, "{}: nothing changed, nothing moves", case.name);
        assert_eq!(again.moves, Some(vec![0; input.layers()]));

        // From the public balancer's placement: still at least as balanced, and fewer moves than a fresh answer makes.
        let after = place(&PlacementInput { previous: Some(&case.phy2log), ..input }).unwrap();
        check_valid(case.name, &input, &after);
        for (a, b) in after.balancedness.iter().zip(&case.balancedness) {
            assert!(*a >= b - 1e-6, "{}: {a} against {b}", case.name);
        }
        let unguided = PlacementInput { previous: Some(&case.phy2log), ..input };
        let unguided = Placement::evaluate(&unguided, first.phy2log.clone()).unwrap();
        let (few, many) = (after.moves.unwrap().iter().sum::<usize>(), unguided.moves.unwrap().iter().sum::<usize>());
        println!("{}: {few} moves, {many} for a fresh placement, {} slots", case.name, case.phy2log.len());
        assert!(few * 3 <= many * 2, "{}: {few} moves against {many}", case.name);
    }
}
