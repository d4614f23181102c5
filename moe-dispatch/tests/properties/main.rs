//! Dispatch, combine and their backward passes against the definitions, for every shape of group and every placement.

mod case;
mod in_flight;

use case::{Load, bits, cases, expert_outputs, routing, row, rows, run};
use half::bf16;
use moe_dispatch::reference::dispatch as reference;
use moe_dispatch::{CombineOptions, Error, Layout, Plan, PlanOptions, ReplicaChoice, Routing, Rows, Wire};
use proptest::prelude::*;
use v3_numerics::cpu::{Isa, with_isa};
use v3_ranks::{Comm, WorldConfig, run_threads};
use v3_testkit::backend::for_each_available;
use v3_testkit::poison::poisoned;
use v3_testkit::rng::Rng;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn dispatch_brings_every_row_to_its_experts_in_order(case in cases()) {
        let got = run(&case, |comm, plan| {
            let x = rows(&case, 1, comm.rank());
            let mut out = poisoned(plan.expert_rows() * case.row_len);
            plan.dispatch_into(comm, &x, case.row_len, &mut out)?;
            // The same as values and a side row of bytes, counted as one row each.
            let before = plan.traffic();
            let side: Vec<u8> = (0..plan.tokens()).flat_map(|token| [comm.rank() as u8, token as u8]).collect();
            let (again, side) = plan.dispatch_pair(comm, (&x, case.row_len), (&side, 2))?;
            assert_eq!(bits(&out), bits(&again));
            let after = plan.traffic();
            assert_eq!((after.slow_rows, after.fast_rows), (2 * before.slow_rows, 2 * before.fast_rows));
            assert_eq!(before.slow_bytes, before.slow_rows * 4 * case.row_len as u64);
            assert_eq!(after.slow_bytes - before.slow_bytes, before.slow_rows * (4 * case.row_len as u64 + 2));
            Ok((out, side, plan.offsets().to_vec(), plan.counts().to_vec(), plan.row_weights().to_vec()))
        });
        for ((out, side, offsets, counts, weights), (order, want_offsets)) in got.iter().zip(reference::expert_rows(&case.layout, &case.routings, &case.options)) {
            prop_assert_eq!(offsets, &want_offsets);
            prop_assert_eq!(counts.iter().sum::<usize>(), order.iter().flatten().count());
            for (at, entry) in order.into_iter().enumerate() {
                let got = &out[at * case.row_len..(at + 1) * case.row_len];
                match entry {
                    Some(reference::ExpertRow { source, token, choice }) => {
                        prop_assert_eq!(bits(got), bits(&row(&case, 1, source, token, 0)));
                        prop_assert_eq!(&side[2 * at..2 * at + 2], &[source as u8, token as u8]);
                        let routing = &case.routings[source];
                        prop_assert_eq!(weights[at].to_bits(), routing.weights[token * routing.top_k + choice].to_bits());
                    }
                    None => prop_assert!(got.iter().all(|x| x.to_bits() == 0) && weights[at] == 0.0),
                }
            }
        }
    }

    #[test]
    fn slow_rows_are_the_distinct_pairs_of_token_and_node(case in cases()) {
        let got = run(&case, |comm, plan| {
            plan.dispatch(comm, &rows(&case, 1, comm.rank()), case.row_len)?;
            Ok((plan.slow_rows(), plan.traffic(), plan.max_nodes_per_token(), comm.traffic()))
        });
        for (source, (slow_rows, traffic, most, sent)) in got.into_iter().enumerate() {
            let want = reference::token_node_pairs(&case.layout, source, &case.routings[source]);
            prop_assert_eq!(slow_rows, want);
            prop_assert_eq!(traffic.slow_rows, want as u64);
            prop_assert!(most <= case.layout.nodes() && most <= case.routings[source].top_k.max(1));
            // The group here is the world, so the links of both are the same.
            prop_assert_eq!((sent.slow.rows, sent.fast.rows), (traffic.slow_rows, traffic.fast_rows));
        }
    }

    #[test]
    fn combine_adds_in_the_tree_wherever_the_experts_are(case in cases(), weighted: bool) {
        let got = run(&case, |comm, plan| {
            let outputs = expert_outputs(&case, 2, comm.rank());
            let mut out = poisoned(plan.tokens() * case.row_len);
            plan.combine_into(comm, &outputs, case.row_len, weighted, &mut out)?;
            if !weighted {
                assert_eq!(bits(&out), bits(&plan.dispatch_backward(comm, &outputs, case.row_len)?));
            }
            Ok(out)
        });
        for (source, out) in got.iter().enumerate() {
            let routing = &case.routings[source];
            let expert_row = |token, choice| row(&case, 2, source, token, choice);
            let (want, exact) = reference::combine(&case.layout, routing, case.row_len, weighted, expert_row);
            prop_assert_eq!(bits(out), bits(&want));
            // At most k roundings on the way of each product: one for itself, k - 1 additions. Half an ulp each.
            let magnitudes = |token, choice| expert_row(token, choice).iter().map(|x| x.abs()).collect();
            let absolute = Routing { weights: routing.weights.iter().map(|w| w.abs()).collect(), ..routing.clone() };
            let (_, sums) = reference::combine(&case.layout, &absolute, case.row_len, weighted, magnitudes);
            for ((got, exact), sum) in out.iter().zip(exact).zip(sums) {
                let bound = 1.001 * routing.top_k as f64 * 2f64.powi(-24) * sum;
                prop_assert!((f64::from(*got) - exact).abs() <= bound, "{got} is not {exact} within {bound}");
            }
        }
    }

    /// Sums that travel in bf16, of f32 and of bf16 rows, equal the definition bit for bit, and are as near to the exact sum as three roundings allow.
    #[test]
    fn narrow_sums_round_once_a_hop(case in cases(), weighted: bool) {
        let options = CombineOptions { weighted, wire: Wire::Bf16 };
        let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<bf16>>();
        let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let got = run(&case, |comm, plan| {
            let outputs = expert_outputs(&case, 2, comm.rank());
            let of_f32 = plan.combine_with(comm, &outputs, case.row_len, options)?;
            let of_bf16 = plan.combine_with(comm, &narrow(&outputs), case.row_len, options)?;
            // bf16 rows over an f32 wire are rounded at home only.
            let once = plan.combine_with(comm, &narrow(&outputs), case.row_len, CombineOptions { wire: Wire::F32, ..options })?;
            let sent = plan.combine_traffic();
            assert_eq!(sent.slow_rows, 3 * plan.combine_slow_rows() as u64);
            assert_eq!(sent.slow_bytes, plan.combine_slow_rows() as u64 * (2 + 2 + 4) * case.row_len as u64);
            Ok((of_f32, of_bf16, once))
        });
        for (source, (of_f32, of_bf16, once)) in got.iter().enumerate() {
            let routing = &case.routings[source];
            let expert_row = |token, choice| row(&case, 2, source, token, choice);
            let rounded_row = |token, choice| wide(&narrow(&expert_row(token, choice)));
            let want = reference::combine_rounded(&case.layout, source, routing, case.row_len, weighted, expert_row);
            prop_assert_eq!(bits(of_f32), bits(&want));
            let want = reference::combine_rounded(&case.layout, source, routing, case.row_len, weighted, rounded_row);
            prop_assert_eq!(of_bf16, &narrow(&want));
            let (want, exact) = reference::combine(&case.layout, routing, case.row_len, weighted, rounded_row);
            prop_assert_eq!(once, &narrow(&want));
            let (_, exact_of_f32) = reference::combine(&case.layout, routing, case.row_len, weighted, expert_row);
            // Each product passes at most k roundings to f32, and one to bf16 (half an ulp, 2^-8) a hop, of which there are two; bf16
            // results add one more. Magnitudes grow by no more than the same factors.
            let magnitudes = |token, choice| expert_row(token, choice).iter().map(|x| x.abs()).collect();
            let absolute = Routing { weights: routing.weights.iter().map(|w| w.abs()).collect(), ..routing.clone() };
            let (_, sums) = reference::combine(&case.layout, &absolute, case.row_len, weighted, magnitudes);
            let factor = |roundings: i32| (1.0 + 2f64.powi(-8)).powi(roundings) * (1.0 + 2f64.powi(-24)).powi(routing.top_k as i32) - 1.0;
            for (at, sum) in sums.into_iter().enumerate() {
                let error = (f64::from(of_f32[at]) - exact_of_f32[at]).abs();
                prop_assert!(error <= factor(2) * sum, "{error} is more than {}", factor(2) * sum);
                // The rows themselves were rounded, each to at most 1 + 2^-8 of what it was.
                let (sum, error) = (sum * (1.0 + 2f64.powi(-8)), (of_bf16[at].to_f64() - exact[at]).abs());
                prop_assert!(error <= factor(3) * sum, "{error} is more than {}", factor(3) * sum);
            }
        }
    }

    #[test]
    fn backward_passes_follow_the_definitions(case in cases()) {
        let got = run(&case, |comm, plan| {
            let dy = rows(&case, 3, comm.rank());
            let mut outputs = expert_outputs(&case, 2, comm.rank());
            let mut d_rows = poisoned(outputs.len());
            let d_weights = plan.combine_backward_into(comm, &dy, &outputs, case.row_len, &mut d_rows)?;
            let again = plan.combine_backward_in_place(comm, &dy, &mut outputs, case.row_len)?;
            assert_eq!((bits(&d_rows), bits(&d_weights)), (bits(&outputs), bits(&again)));
            Ok((d_rows, d_weights))
        });
        let want: Vec<_> = case.routings.iter().enumerate().map(|(source, routing)| {
            reference::combine_backward(routing, &rows(&case, 3, source), case.row_len, |token, choice| row(&case, 2, source, token, choice))
        }).collect();
        let orders = reference::expert_rows(&case.layout, &case.routings, &case.options);
        for ((rank, (d_rows, d_weights)), (order, _)) in got.iter().enumerate().zip(orders) {
            for (at, entry) in order.into_iter().enumerate() {
                let got = bits(&d_rows[at * case.row_len..(at + 1) * case.row_len]);
                match entry {
                    Some(reference::ExpertRow { source, token, choice }) => {
                        prop_assert_eq!(got, bits(&want[source].0[token * case.routings[source].top_k + choice]));
                    }
                    None => prop_assert!(got.iter().all(|&bits| bits == 0)),
                }
            }
            let (routing, dy) = (&case.routings[rank], rows(&case, 3, rank));
            prop_assert_eq!(d_weights.len(), routing.tokens * routing.top_k);
            for (at, (got, exact)) in d_weights.iter().zip(&want[rank].1).enumerate() {
                let (token, choice) = (at / routing.top_k, at % routing.top_k);
                let sum: f64 = dy[token * case.row_len..].iter().zip(row(&case, 2, rank, token, choice)).map(|(a, b)| f64::from((a * b).abs())).sum();
                // A chain of row_len / 16 fused multiply-adds, then four additions.
                let bound = 1.001 * (case.row_len.div_ceil(16) + 4) as f64 * 2f64.powi(-24) * sum;
                prop_assert!((f64::from(*got) - exact).abs() <= bound, "{got} is not {exact} within {bound}");
            }
        }
    }

    /// <dispatch(x), g> = <x, dispatch_backward(g)> and <combine(r), dy> = <r, d_rows>, exactly: everything is a small integer.
    #[test]
    fn backward_passes_are_the_transposes(case in cases()) {
        let mut case = case;
        for routing in &mut case.routings {
            for (at, weight) in routing.weights.iter_mut().enumerate() {
                *weight = [1.0, 2.0, -4.0, 0.0][at % 4];
            }
        }
        let integers = |seed: u64, len: usize| -> Vec<f32> {
            let mut rng = Rng::new(case.seed ^ seed);
            (0..len).map(|_| rng.below(17) as f32 - 8.0).collect()
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let sums = run(&case, |comm, plan| {
            let (me, d) = (comm.rank() as u64, case.row_len);
            let (tokens, rows) = (plan.tokens() * d, plan.expert_rows() * d);
            let (x, g) = (integers(me, tokens), integers(100 + me, rows));
            let (r, dy) = (integers(200 + me, rows), integers(300 + me, tokens));
            let dispatched = dot(&plan.dispatch(comm, &x, d)?, &g);
            let gathered = dot(&x, &plan.dispatch_backward(comm, &g, d)?);
            let combined = dot(&plan.combine(comm, &r, d, true)?, &dy);
            let (d_rows, d_weights) = plan.combine_backward(comm, &dy, &r, d)?;
            let weights = &case.routings[comm.rank()].weights;
            Ok([dispatched, gathered, combined, dot(&r, &d_rows), dot(weights, &d_weights)])
        });
        let total = sums.into_iter().fold([0.0; 5], |mut total, sums| {
            total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
            total
        });
        prop_assert_eq!(total[0], total[1]);
        prop_assert_eq!(total[2], total[3]);
        prop_assert_eq!(total[2], total[4]);
    }
}

/// The same tokens on 1, 2, 4 and 8 ranks of every number of nodes, with experts in place, moved and replicated: the same bits for every token.
#[test]
fn the_number_of_ranks_changes_no_bit() {
    let (tokens, experts, top_k, d) = (48, 16, 6, 80);
    let mut rng = Rng::new(5);
    let whole = routing(&mut rng, tokens, top_k, experts, Load::Even);
    let x = rng.normal_vec(tokens * d, 1.0);
    let dy = rng.normal_vec(tokens * d, 1.0);
    let mut shuffled: Vec<u32> = (0..experts as u32).chain((0..experts as u32).rev()).collect();
    rng.shuffle(&mut shuffled);
    type Results = (Vec<u32>, Vec<u32>, Vec<u32>);
    let mut want: Option<Results> = None;
    for ep_size in [1usize, 2, 4, 8] {
        for ranks_per_node in [1, 2, 4, 8].into_iter().filter(|&n| n <= ep_size) {
            for layout in [
                Layout::new(experts, ep_size, ranks_per_node).unwrap(),
                Layout::placed(experts, ep_size, ranks_per_node, &shuffled).unwrap(),
                Layout::placed(experts, ep_size, ranks_per_node, &shuffled).unwrap().with_choice(ReplicaChoice::Nearest),
            ] {
                let share = tokens / ep_size;
                let parts = run_threads(WorldConfig::new(ep_size), |comm: Comm| -> moe_dispatch::Result<Results> {
                    let own = comm.rank() * share..(comm.rank() + 1) * share;
                    let entries = own.start * top_k..own.end * top_k;
                    let values = own.start * d..own.end * d;
                    let routing = Routing {
                        tokens: share,
                        top_k,
                        indices: whole.indices[entries.clone()].to_vec(),
                        weights: whole.weights[entries].to_vec(),
                        scores: Vec::new(),
                    };
                    let plan = Plan::new(&comm, &layout, &routing)?;
                    // An "expert" that depends on the row and on the logical expert.
                    let mut rows = plan.dispatch(&comm, &x[values.clone()], d)?;
                    for (local, &expert) in layout.local_experts(comm.rank()).iter().enumerate() {
                        let range = plan.offsets()[local] * d..plan.offsets()[local + 1] * d;
                        rows[range].iter_mut().for_each(|x| *x = *x * (1.0 + expert as f32 / 7.0) + 0.1);
                    }
                    let out = plan.combine(&comm, &rows, d, true)?;
                    let (d_rows, d_weights) = plan.combine_backward(&comm, &dy[values], &rows, d)?;
                    let dx = plan.dispatch_backward(&comm, &d_rows, d)?;
                    Ok((bits(&out), bits(&d_weights), bits(&dx)))
                })
                .unwrap();
                let got = parts.into_iter().reduce(|mut all, part| {
                    all.0.extend(part.0);
                    all.1.extend(part.1);
                    all.2.extend(part.2);
                    all
                });
                let got = got.unwrap();
                assert_eq!(want.get_or_insert(got.clone()), &got, "{ep_size} ranks, {ranks_per_node} a node");
            }
        }
    }
}

#[test]
fn replicas_share_the_tokens_or_are_the_nearest() {
    // Expert 0 on ranks 0, 1 and 3, expert 1 on rank 2 only; two ranks a node.
    let spread = Layout::placed(2, 4, 2, &[0, 0, 1, 0]).unwrap();
    let nearest = spread.clone().with_choice(ReplicaChoice::Nearest);
    for source in 0..4 {
        let mut shares = [0; 4];
        for token in 0..30 {
            shares[spread.slot_for(0, source, token)] += 1;
            assert_eq!(spread.slot_for(1, source, token), 2);
            // On the rank itself, else on its node.
            assert_eq!(nearest.slot_for(0, source, token), [0, 1, 3, 3][source]);
            assert_eq!(nearest.slot_for(1, source, token), 2);
        }
        assert_eq!(shares, [10, 10, 0, 10]);
    }
    // No replica on the node: they take turns.
    let far = Layout::placed(2, 4, 2, &[0, 0, 1, 1]).unwrap().with_choice(ReplicaChoice::Nearest);
    let ones = (0..30).filter(|&token| far.slot_for(0, 2, token) == 1).count();
    assert_eq!(ones, 15);
    // Uneven last node: every gateway exists and is on the node asked for.
    let uneven = Layout::new(5, 5, 3).unwrap();
    for source in 0..5 {
        for node in 0..2 {
            let gateway = uneven.gateway(source, node);
            assert!(gateway < 5 && uneven.node(gateway) == node);
            assert!(uneven.node(source) != node || gateway == source);
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let mut rng = Rng::new(11);
    let (experts, d) = (16, 131);
    let routing = routing(&mut rng, 37, 7, experts, Load::Even);
    let layout = Layout::new(experts, 1, 1).unwrap();
    let comm = Comm::solo();
    let plan = Plan::new(&comm, &layout, &routing).unwrap();
    let rows = rng.spread_vec(plan.expert_rows() * d, -20, 20);
    let dy = rng.normal_vec(37 * d, 1.0);
    let compute = |isa| {
        with_isa(isa, || {
            let out = plan.combine(&comm, &rows, d, true).unwrap();
            let (d_rows, d_weights) = plan.combine_backward(&comm, &dy, &rows, d).unwrap();
            [bits(&out), bits(&d_rows), bits(&d_weights)]
        })
        .unwrap()
    };
    let want = compute(Isa::Portable);
    let ran =
        for_each_available("moe combine", &Isa::ALL, Isa::name, Isa::is_available, |isa| assert_eq!(compute(isa), want, "{isa}"));
    assert!(ran >= 1);
}

#[cfg(feature = "rayon")]
#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rng = Rng::new(3);
    let (experts, d, tokens) = (8, 260, 700);
    let routing = routing(&mut rng, tokens, 4, experts, Load::Even);
    let layout = Layout::new(experts, 1, 1).unwrap();
    let x = rng.normal_vec(tokens * d, 1.0);
    let compute = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let comm = Comm::solo();
            let plan = Plan::new(&comm, &layout, &routing).unwrap();
            let rows = plan.dispatch(&comm, &x, d).unwrap();
            let out = plan.combine(&comm, &rows, d, true).unwrap();
            let (d_rows, d_weights) = plan.combine_backward(&comm, &x, &rows, d).unwrap();
            [bits(&rows), bits(&out), bits(&d_rows), bits(&d_weights)]
        })
    };
    let want = compute(1);
    assert_eq!(compute(2), want);
    assert_eq!(compute(5), want);
}

#[test]
fn what_callers_get_wrong_is_an_error() {
    let layout = Layout::new(4, 1, 1).unwrap();
    let comm = Comm::solo();
    let routing = |indices: &[u32], top_k: usize| Routing {
        tokens: indices.len() / top_k.max(1),
        top_k,
        indices: indices.to_vec(),
        weights: vec![1.0; indices.len()],
        scores: Vec::new(),
    };
    let text = |result: moe_dispatch::Result<Plan>| result.unwrap_err().to_string();
    assert_eq!(
        text(Plan::new(&comm, &layout, &routing(&[0, 4], 2))),
        "routing indices: expected experts below 4, got [0, 4] for token 0"
    );
    assert_eq!(
        text(Plan::new(&comm, &layout, &routing(&[1, 2, 3, 3], 2))),
        "routing indices: expected different experts for a token, got [3, 3] for token 1"
    );
    assert!(text(Plan::new(&comm, &layout, &routing(&[], 0))).contains("at least one a token"));
    let short = Routing { weights: vec![], ..routing(&[1, 2], 2) };
    assert!(text(Plan::new(&comm, &layout, &short)).contains("2 indices and 0 weights"));
    assert!(text(Plan::new(&comm, &Layout::new(4, 2, 1).unwrap(), &routing(&[1], 1))).contains("ranks of the group"));
    for (options, word) in [
        (PlanOptions { alignment: 0, ..PlanOptions::default() }, "alignment and chunk rows"),
        (PlanOptions { chunk_rows: 0, ..PlanOptions::default() }, "alignment and chunk rows"),
        (PlanOptions { channels: 0, ..PlanOptions::default() }, "channels are 1 to 256"),
        (PlanOptions { channels: 257, ..PlanOptions::default() }, "channels are 1 to 256"),
        (PlanOptions { capacity: Some(0), ..PlanOptions::default() }, "at most 0, the capacity"),
        (PlanOptions { capacity: Some(usize::MAX), ..PlanOptions::default() }, "expert rows on one rank"),
    ] {
        let error = text(Plan::with_options(&comm, &layout, &routing(&[1], 1), options));
        assert!(error.contains(word), "{error}");
    }

    let plan = Plan::new(&comm, &layout, &routing(&[1, 2], 2)).unwrap();
    assert!(matches!(plan.dispatch(&comm, &[0f32; 5], 3), Err(Error::Shape { what: "rows", .. })));
    assert!(matches!(plan.dispatch_into(&comm, &[0f32; 3], 3, &mut [0f32; 5]), Err(Error::Shape { .. })));
    assert!(matches!(plan.combine(&comm, &[0f32; 5], 3, true), Err(Error::Shape { what: "expert rows", .. })));
    assert!(matches!(plan.combine_into(&comm, &[0f32; 6], 3, true, &mut [0f32; 4]), Err(Error::Shape { .. })));
    assert!(matches!(plan.combine_backward_in_place(&comm, &[0f32; 3], &mut [0f32; 5], 3), Err(Error::Shape { .. })));
    assert!(matches!(plan.combine_backward(&comm, &[0f32; 4], &[0f32; 6], 3), Err(Error::Shape { .. })));
    // Rows without columns are possible, if useless.
    assert_eq!(plan.combine(&comm, &[], 0, true).unwrap(), []);
    assert_eq!(plan.combine_backward(&comm, &[], &[], 0).unwrap(), (vec![], vec![0.0; 2]));

    for (layout, word) in [
        (Layout::new(0, 1, 1), "number of experts"),
        (Layout::new(4, 0, 1), "number of ranks"),
        (Layout::new(4, 2, 0), "ranks per node"),
        (Layout::new(5, 2, 1), "cannot be divided"),
        (Layout::placed(4, 1, 1, &[0, 1, 2, 4]), "slot 3 holds expert 4"),
        (Layout::placed(4, 1, 1, &[0, 1, 2, 2]), "expert 3 has no slot"),
    ] {
        let error = layout.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn ranks_that_disagree_end_with_an_error() {
    let layout = Layout::new(4, 4, 2).unwrap();
    let routing = |top_k: usize| Routing {
        tokens: 1,
        top_k,
        indices: (0..top_k as u32).collect(),
        weights: vec![1.0; top_k],
        scores: Vec::new(),
    };
    let error = run_threads(WorldConfig::new(4), |comm: Comm| {
        Plan::new(&comm, &layout, &routing(if comm.rank() == 3 { 2 } else { 3 })).map(drop)
    })
    .unwrap_err();
    assert!(error.message.contains("routing of another rank"), "{error}");
    // The same in one pass: another number of experts, rows of another length, more tokens than the capacity of others.
    for (wrong, word) in [(0, "16 bytes for "), (1, "20 bytes for "), (2, "for one expert")] {
        let error = run_threads(WorldConfig::new(4), |comm: Comm| {
            let odd = comm.rank() == 3;
            let (top_k, d) = (if odd && wrong == 0 { 2 } else { 3 }, if odd && wrong == 1 { 5 } else { 4 });
            let (tokens, capacity) = if odd && wrong == 2 { (3, 3) } else { (1, 1) };
            let one = routing(top_k);
            let routing = Routing { tokens, indices: one.indices.repeat(tokens), weights: one.weights.repeat(tokens), ..one };
            let options = PlanOptions { capacity: Some(capacity), ..PlanOptions::default() };
            let rows = Rows { data: vec![0f32; tokens * d], row_len: d };
            Plan::start_dispatch(&comm, &layout, &routing, options, rows)?.finish(&comm).map(drop)
        })
        .unwrap_err();
        assert!(error.message.contains(word), "{error}");
    }
    let error = run_threads(WorldConfig::new(4), |comm: Comm| {
        let plan = Plan::new(&comm, &layout, &routing(4))?;
        let d = if comm.rank() == 3 { 5 } else { 4 };
        plan.dispatch(&comm, &vec![0f32; d], d).map(drop)
    })
    .unwrap_err();
    assert!(error.message.contains("rows of"), "{error}");
    let error = run_threads(WorldConfig::new(4), |comm: Comm| {
        let plan = Plan::new(&comm, &layout, &routing(4))?;
        let d = if comm.rank() == 3 { 5 } else { 4 };
        plan.combine(&comm, &vec![0f32; d * plan.expert_rows()], d, true).map(drop)
    })
    .unwrap_err();
    assert!(error.message.contains("sums of another rank"), "{error}");
}
