//! Sums of expert rows: the bits of the CPU's and of the reference's tree.

use crate::{Kind, config, devices, emulator, experts, kinds};
use moe_dispatch::gpu::permute::{PermuteKernels, RowLayout};
use moe_dispatch::gpu::unpermute::{RowElement, UnpermuteKernels};
use moe_dispatch::reference::dispatch::tree_sum;
use moe_dispatch::{Error, Routing, cpu};
use proptest::prelude::*;
use v3_numerics::bf16;
use v3_testkit::Rng;

/// A type of rows and its bits.
trait Element: RowElement {
    fn from(x: f32) -> Self;
    fn value(self) -> f32;
}
impl Element for bf16 {
    fn from(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
}
impl Element for f32 {
    fn from(x: f32) -> Self {
        x
    }
    fn value(self) -> f32 {
        self
    }
}

fn check<A: Element, O: Element>(
    test: &str,
    (tokens, top_k, num_experts): (usize, usize, usize),
    (columns, alignment, kind, weighted): (usize, usize, Kind, bool),
    seed: u64,
) {
    let mut rng = Rng::new(seed);
    let choices = experts(&mut rng, tokens, top_k, num_experts, kind);
    let weights: Vec<f32> = rng.normal_vec(tokens * top_k, 1.0);
    let height = (num_experts as u32).next_power_of_two().trailing_zeros();
    for device in devices(test) {
        let (permute, kernels) = (PermuteKernels::load(&device).unwrap(), UnpermuteKernels::load(&device).unwrap());
        let stream = device.stream().unwrap();
        let mut layout = RowLayout::new(&stream, tokens, top_k, num_experts, alignment).unwrap();
        let uploaded = stream.upload(&choices).unwrap();
        permute.lay_out(&stream, &uploaded, &mut layout).unwrap();
        let map = stream.download(layout.map()).unwrap();
        let mut rng = Rng::new(seed ^ 1);
        let rows: Vec<A> = rng.spread_vec(layout.capacity() * columns, -3, 3).into_iter().map(A::from).collect();
        let rows_there = stream.upload(&rows).unwrap();
        let weights_there = stream.upload(&weights).unwrap();
        let mut out = stream.upload(&vec![O::from(f32::NAN); tokens * columns]).unwrap();
        let used = weighted.then_some(&weights_there);
        kernels.unpermute(&stream, &rows_there, columns, &uploaded, used, &layout, &mut out).unwrap();
        layout.check(&stream).unwrap();
        let out = stream.download(&out).unwrap();
        for token in 0..tokens {
            let mut leaves = vec![];
            for choice in token * top_k..(token + 1) * top_k {
                if choices[choice] >= 0 {
                    let weight = if weighted { weights[choice] } else { 1.0 };
                    let row = &rows[map[choice] as usize * columns..][..columns];
                    leaves.push((choices[choice] as u32, row.iter().map(|x| weight * x.value()).collect::<Vec<f32>>()));
                }
            }
            let sum = tree_sum(&leaves, 0, height).unwrap_or_else(|| vec![0.0; columns]);
            let expected: Vec<u32> = sum.into_iter().map(|x| O::from(x).value().to_bits()).collect();
            let got: Vec<u32> = out[token * columns..][..columns].iter().map(|x| x.value().to_bits()).collect();
            assert_eq!(got, expected, "{}: token {token}, {:?}", device.backend(), &choices[token * top_k..][..top_k]);
        }
    }
}

proptest! {
    #![proptest_config(config(10))]

    #[test]
    fn sums_have_the_bits_of_the_tree(
        shape in (prop_oneof![Just(0usize), Just(1), 2..24usize, Just(37)], 1..=16usize,
                  prop_oneof![Just(1usize), 2..20usize, Just(256), Just(1000)]),
        how in (prop_oneof![Just(8usize), Just(136), Just(256), Just(1032)], prop_oneof![Just(1usize), Just(4)], kinds(), any::<bool>()),
        types in 0..4u32,
        seed: u64,
    ) {
        let test = "sums_have_the_bits_of_the_tree";
        match types {
            0 => check::<bf16, bf16>(test, shape, how, seed),
            1 => check::<bf16, f32>(test, shape, how, seed),
            2 => check::<f32, bf16>(test, shape, how, seed),
            _ => check::<f32, f32>(test, shape, how, seed),
        }
    }
}

/// Each pair of types, at the widest choice.
#[test]
fn all_types_at_sixteen_experts() {
    let test = "all_types_at_sixteen_experts";
    let (shape, how) = ((11, 16, 64), (1544, 1, Kind::Random, true));
    check::<bf16, bf16>(test, shape, how, 1);
    check::<bf16, f32>(test, shape, how, 2);
    check::<f32, bf16>(test, shape, how, 3);
    check::<f32, f32>(test, shape, how, 4);
}

/// There and back, against the CPU's permutation and combination.
#[test]
fn there_and_back_as_on_the_cpu() {
    let (tokens, top_k, num_experts, d) = (29, 6, 24, 256);
    let mut rng = Rng::new(9);
    let mut choices = experts(&mut rng, tokens, top_k, num_experts, Kind::First);
    choices
        .chunks_mut(top_k)
        .enumerate()
        .for_each(|(t, c)| c.iter_mut().for_each(|e| *e = (*e * 5 + t as i32) % num_experts as i32));
    let weights: Vec<f32> = (0..tokens * top_k).map(|_| rng.below(1000) as f32 / 512.0).collect();
    let x: Vec<bf16> = rng.normal_vec(tokens * d, 1.0).into_iter().map(bf16::from_f32).collect();
    let indices: Vec<u32> = choices.iter().map(|&e| e as u32).collect();
    let routing = Routing { tokens, top_k, indices: indices.clone(), weights: weights.clone(), scores: vec![] };
    let local = cpu::Local::new(&routing, num_experts).unwrap();
    let mut rows = vec![bf16::ZERO; tokens * top_k * d];
    local.permute(&x, d, &mut rows).unwrap();
    let mut y = vec![bf16::ZERO; tokens * d];
    local.combine(&rows, d, true, &mut y).unwrap();
    for device in devices("there_and_back_as_on_the_cpu") {
        let stream = device.stream().unwrap();
        let (permute, unpermute) = (PermuteKernels::load(&device).unwrap(), UnpermuteKernels::load(&device).unwrap());
        let mut layout = RowLayout::new(&stream, tokens, top_k, num_experts, 1).unwrap();
        let there = stream.upload(&indices).unwrap();
        permute.lay_out(&stream, &there, &mut layout).unwrap();
        assert_eq!(stream.download(layout.offsets()).unwrap(), local.offsets());
        let mut rows_there = stream.alloc::<bf16>(layout.capacity() * d).unwrap();
        permute.permute(&stream, &stream.upload(&x).unwrap(), d, &layout, &mut rows_there).unwrap();
        assert!(stream.download(&rows_there).unwrap() == rows);
        let mut y_there = stream.alloc::<bf16>(tokens * d).unwrap();
        let weights = stream.upload(&weights).unwrap();
        unpermute.unpermute(&stream, &rows_there, d, &there, Some(&weights), &layout, &mut y_there).unwrap();
        layout.check(&stream).unwrap();
        assert!(stream.download(&y_there).unwrap() == y);
    }
}

#[test]
fn what_is_wrong_is_left_out_and_said() {
    let device = emulator();
    let stream = device.stream().unwrap();
    let (permute, unpermute) = (PermuteKernels::load(&device).unwrap(), UnpermuteKernels::load(&device).unwrap());
    // One row of room, and an expert twice.
    let experts = stream.upload(&[0i32, 1, -1, 2, 2, 0]).unwrap();
    let mut layout = RowLayout::new(&stream, 2, 3, 3, 1).unwrap();
    permute.lay_out(&stream, &experts, &mut layout).unwrap();
    layout.check(&stream).unwrap();
    let rows: Vec<f32> = (0..6 * 8).map(|i| (1 << (i / 8)) as f32).collect();
    let rows = stream.upload(&rows).unwrap();
    let mut out = stream.alloc::<f32>(2 * 8).unwrap();
    unpermute.unpermute(&stream, &rows, 8, &experts, None, &layout, &mut out).unwrap();
    // Rows: expert 0 has 1 and 2, expert 1 has 4, expert 2 has 8 and 16, the second of which is left out.
    let got = stream.download(&out).unwrap();
    assert!(got[..8].iter().all(|&x| x == 5.0) && got[8..].iter().all(|&x| x == 10.0), "{got:?}");
    assert!(layout.check(&stream).unwrap_err().to_string().contains("one twice for token 1"));
    // A choice that the layout does not know.
    let others = stream.upload(&[0i32, 1, 2, 2, -1, 0]).unwrap();
    unpermute.unpermute(&stream, &rows, 8, &others, None, &layout, &mut out).unwrap();
    let got = stream.download(&out).unwrap();
    assert!(got[..8].iter().all(|&x| x == 5.0) && got[8..].iter().all(|&x| x == 10.0), "{got:?}");
    assert!(layout.check(&stream).unwrap_err().to_string().contains("none for token 0"));
    layout.check(&stream).unwrap();

    let (rows, mut out) = (stream.zeroed::<bf16>(6 * 4).unwrap(), stream.zeroed::<bf16>(2 * 4).unwrap());
    let refused = unpermute.unpermute(&stream, &rows, 4, &others, None, &layout, &mut out).unwrap_err();
    assert_eq!(refused.to_string(), "columns: expected a multiple of 8, got 4");
    let refused = unpermute.unpermute(&stream, &rows, 8, &others, None, &layout, &mut out).unwrap_err();
    assert!(matches!(refused, Error::Shape { what: "expert-major rows", .. }), "{refused}");
}
