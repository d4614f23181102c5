//! Rows into expert-major order and back on one rank, against the definitions, on every instruction set.

use moe_dispatch::cpu::{Element, Local, RowMap};
use moe_dispatch::plan::MASKED;
use moe_dispatch::reference::dispatch as reference;
use moe_dispatch::{Error, Layout, PlanOptions, Routing};
use proptest::prelude::*;
use v3_numerics::bf16;
use v3_numerics::cpu::{Isa, with_isa};
use v3_testkit::backend::for_each_available;
use v3_testkit::{Rng, assert_bits_eq};

/// A result of this many bytes is written past the caches.
const LARGE: usize = 8 << 20;

fn on_each_isa(run: impl Fn()) {
    for_each_available("permute and combine", &Isa::ALL, Isa::name, Isa::is_available, |isa| with_isa(isa, &run).unwrap());
}

fn routing(rng: &mut Rng, tokens: usize, top_k: usize, experts: usize) -> Routing {
    let mut order: Vec<u32> = (0..experts as u32).collect();
    let mut indices = Vec::new();
    for _ in 0..tokens {
        rng.shuffle(&mut order);
        indices.extend_from_slice(&order[..top_k]);
    }
    Routing { tokens, top_k, indices, weights: rng.uniform_vec(tokens * top_k, -1.0, 1.0), scores: Vec::new() }
}

fn bf16_rows(rng: &mut Rng, n: usize) -> Vec<bf16> {
    rng.normal_vec(n, 1.0).into_iter().map(bf16::from_f32).collect()
}

/// The sums by the definition: the rows as f32, the tree over the experts.
fn expected<A: Element + Into<f32>>(
    local: &Local,
    routing: &Routing,
    experts: usize,
    rows: &[A],
    d: usize,
    weighted: bool,
) -> Vec<f32> {
    let layout = Layout::new(experts, 1, 1).unwrap();
    let row = |token: usize, choice: usize| {
        let at = local.map().copies(token)[choice] as usize;
        rows[at * d..(at + 1) * d].iter().map(|&x| x.into()).collect()
    };
    reference::combine(&layout, routing, d, weighted, row).0
}

fn round(x: &[f32]) -> Vec<u16> {
    x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect()
}

fn bits(x: &[bf16]) -> Vec<u16> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn permute_and_combine_equal_the_definitions(
        tokens in 0usize..20, experts in 1usize..40, k: prop::sample::Index, d in 0usize..300, skew in 0usize..3, weighted: bool, seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        let top_k = 1 + k.index(experts.min(9));
        let routing = routing(&mut rng, tokens, top_k, experts);
        let local = Local::new(&routing, experts).unwrap();
        // Rows that begin anywhere.
        let memory = bf16_rows(&mut rng, skew + tokens * d);
        let x = &memory[skew..];
        on_each_isa(|| {
            let mut memory = vec![bf16::ONE; skew + tokens * top_k * d];
            let rows = &mut memory[skew..];
            local.permute(x, d, rows).unwrap();
            let (order, _) = reference::expert_rows(&Layout::new(experts, 1, 1).unwrap(), std::slice::from_ref(&routing), &PlanOptions::default()).remove(0);
            for (at, row) in order.into_iter().enumerate() {
                let token = row.unwrap().token;
                assert_eq!(bits(&rows[at * d..][..d]), bits(&x[token * d..][..d]));
            }
        });
        // Rows of experts that are not copies of each other.
        let rows = bf16_rows(&mut rng, tokens * top_k * d);
        let wide: Vec<f32> = rng.normal_vec(tokens * top_k * d, 1.0);
        let (of_bf16, of_f32) = (expected(&local, &routing, experts, &rows, d, weighted), expected(&local, &routing, experts, &wide, d, weighted));
        on_each_isa(|| {
            let (mut y, mut y_bf16) = (vec![7.0f32; tokens * d], vec![bf16::ONE; tokens * d]);
            local.combine(&rows, d, weighted, &mut y).unwrap();
            assert_bits_eq("bf16 to f32", &y, &of_bf16);
            local.combine(&rows, d, weighted, &mut y_bf16).unwrap();
            assert_eq!(bits(&y_bf16), round(&of_bf16), "bf16 to bf16");
            local.combine(&wide, d, weighted, &mut y).unwrap();
            assert_bits_eq("f32 to f32", &y, &of_f32);
            local.combine(&wide, d, weighted, &mut y_bf16).unwrap();
            assert_eq!(bits(&y_bf16), round(&of_f32), "f32 to bf16");
        });
    }
}

#[test]
fn large_results_are_the_same_past_the_caches() {
    let mut rng = Rng::new(1);
    // Rows of whole lines, and rows that are aligned differently each.
    for d in [2048, 2061] {
        let (tokens, top_k, experts) = (LARGE.div_ceil(4 * d), 3, 8);
        let routing = routing(&mut rng, tokens, top_k, experts);
        let local = Local::new(&routing, experts).unwrap();
        let x = bf16_rows(&mut rng, tokens * d);
        let y = rng.normal_vec(tokens * top_k * d, 1.0);
        let sums = expected(&local, &routing, experts, &y, d, true);
        on_each_isa(|| {
            let mut rows = vec![bf16::ONE; tokens * top_k * d];
            assert!(size_of_val(rows.as_slice()) >= LARGE);
            local.permute(&x, d, &mut rows).unwrap();
            for token in 0..tokens {
                for &at in local.map().copies(token) {
                    assert!(rows[at as usize * d..][..d] == x[token * d..][..d], "row {at} is not token {token}'s");
                }
            }
            let mut out = vec![0.0f32; tokens * d];
            assert!(size_of_val(out.as_slice()) >= LARGE);
            local.combine(&y, d, true, &mut out).unwrap();
            assert_bits_eq("sums", &out, &sums);
        });
    }
}

#[cfg(feature = "rayon")]
#[test]
fn the_number_of_threads_changes_nothing() {
    let mut rng = Rng::new(2);
    let (tokens, top_k, experts, d) = (500, 4, 16, 700);
    let routing = routing(&mut rng, tokens, top_k, experts);
    let local = Local::new(&routing, experts).unwrap();
    let x = rng.normal_vec(tokens * d, 1.0);
    let run = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let (mut rows, mut sums) = (vec![0.0; tokens * top_k * d], vec![0.0f32; tokens * d]);
            local.permute(&x, d, &mut rows).unwrap();
            local.combine(&rows, d, true, &mut sums).unwrap();
            (rows, sums)
        })
    };
    assert!(run(1) == run(3));
}

#[test]
fn masked_choices_have_no_rows() {
    let indices = vec![2, MASKED, MASKED, MASKED, 0, 2];
    let routing = Routing { tokens: 3, top_k: 2, indices, weights: vec![0.5, 9.0, 9.0, 9.0, 0.25, 2.0], scores: vec![] };
    let local = Local::new(&routing, 3).unwrap();
    assert_eq!((local.offsets(), local.map().result_rows()), (&[0, 1, 1, 3][..], 3));
    let mut rows = [0.0f32; 3];
    local.permute(&[1.0, 2.0, 3.0], 1, &mut rows).unwrap();
    assert_eq!(rows, [3.0, 1.0, 3.0]);
    let mut y = [7.0f32; 3];
    local.combine(&rows, 1, true, &mut y).unwrap();
    assert_eq!(y, [0.5, 0.0, 6.75]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = Routing { tokens: 2, top_k: 2, indices: vec![0, 2, 2, 1], weights: vec![1.0; 4], scores: vec![] };
    let local = Local::new(&good, 3).unwrap();
    assert_eq!(local.offsets(), [0, 1, 2, 4]);
    for (bad, experts) in [
        (Routing { indices: vec![0, 2, 2, 3], ..good.clone() }, 3),
        (Routing { indices: vec![0, 0, 2, 1], ..good.clone() }, 3),
        (Routing { indices: vec![0, 2, 2], ..good.clone() }, 3),
        (Routing { weights: vec![1.0; 3], ..good.clone() }, 3),
        (Routing { tokens: usize::MAX, ..good.clone() }, 3),
        (good.clone(), 0),
    ] {
        assert!(matches!(Local::new(&bad, experts), Err(Error::Shape { .. })), "{bad:?}");
    }
    let (x, rows, mut out) = (vec![0.0f32; 10], vec![0.0f32; 20], vec![0.0f32; 20]);
    local.permute(&x, 5, &mut out).unwrap();
    assert!(local.permute(&x[1..], 5, &mut out).is_err());
    assert!(local.permute(&x, 5, &mut out[1..]).is_err());
    local.combine(&rows, 5, true, &mut out[..10]).unwrap();
    assert!(local.combine(&rows[1..], 5, true, &mut out[..10]).is_err());
    assert!(local.combine(&rows, 5, true, &mut out).is_err());
    // Part of the source rows.
    let mut part = vec![9.0f32; 20];
    local.map().scatter(1, &[1.0, 2.0, 3.0, 4.0, 5.0], 5, &mut part).unwrap();
    assert_eq!((part[5], part[19], part[0], part[12]), (1.0, 5.0, 9.0, 9.0));
    assert!(local.map().scatter(1, &x, 5, &mut part).is_err());
    assert!(local.map().scatter(usize::MAX, &x, 5, &mut part).is_err());

    RowMap::new(vec![0, 1, 1, 3], vec![4, 0, 2], 5).unwrap();
    for (starts, to) in [
        (vec![], vec![]),
        (vec![1, 3], vec![4, 0, 2]),
        (vec![0, 2], vec![4, 0, 2]),
        (vec![0, 3, 2, 3], vec![4, 0, 2]),
        (vec![0, 3], vec![4, 0, 5]),
        (vec![0, 3], vec![4, 0, 4]),
    ] {
        assert!(matches!(RowMap::new(starts.clone(), to.clone(), 5), Err(Error::Shape { .. })), "{starts:?} {to:?}");
    }
}
