//! Layouts, and rows moved and quantised by them.

use crate::{Kind, config, devices, emulator, experts, kinds};
use moe_dispatch::Error;
use moe_dispatch::gpu::Arch;
use moe_dispatch::gpu::permute::{
    PADDING, PermuteKernels, PermuteParams, Quantise, RowLayout, SCALE_BLOCK, ScaleOrder, ScaleRule,
};
use proptest::prelude::*;
use v3_gpu::{Device, Stream};
use v3_numerics::{E4M3, bf16};
use v3_testkit::Rng;

/// Every kernel text on every device that runs it.
fn kernels(test: &str) -> Vec<(Device, PermuteKernels)> {
    let mut all = vec![];
    for device in devices(test) {
        let capability = device.info().unwrap().compute_capability;
        for arch in [Arch::Sm80, Arch::Sm90a].into_iter().filter(|arch| arch.runs_on(capability)) {
            all.push((device.clone(), PermuteKernels::load_for(&device, arch).unwrap()));
        }
    }
    all
}

/// A layout, as the definition says it.
#[derive(Debug, PartialEq)]
struct Expected {
    offsets: Vec<u32>,
    counts: Vec<u32>,
    gather: Vec<u32>,
    map: Vec<i32>,
}

fn expected(experts: &[i32], top_k: usize, num_experts: usize, alignment: usize, capacity: usize) -> Expected {
    let mut all = Expected { offsets: vec![0], counts: vec![], gather: vec![], map: vec![-1; experts.len()] };
    for expert in 0..num_experts {
        let first = all.gather.len();
        for (choice, _) in experts.iter().enumerate().filter(|(_, e)| **e == expert as i32) {
            all.map[choice] = all.gather.len() as i32;
            all.gather.push((choice / top_k) as u32);
        }
        all.counts.push((all.gather.len() - first) as u32);
        all.gather.resize(all.gather.len().next_multiple_of(alignment), PADDING);
        all.offsets.push(all.gather.len() as u32);
    }
    assert!(all.gather.len() <= capacity, "the worst case has room");
    all.gather.resize(capacity, PADDING);
    all
}

fn found(stream: &Stream, layout: &RowLayout) -> Expected {
    Expected {
        offsets: stream.download(layout.offsets()).unwrap(),
        counts: stream.download(layout.counts()).unwrap(),
        gather: stream.download(layout.gather()).unwrap(),
        map: stream.download(layout.map()).unwrap(),
    }
}

fn check_layout(test: &str, tokens: usize, top_k: usize, num_experts: usize, alignment: usize, kind: Kind, seed: u64) {
    let mut rng = Rng::new(seed);
    let choices = [kind, Kind::Random].map(|kind| experts(&mut rng, tokens, top_k, num_experts, kind));
    for device in devices(test) {
        let kernels = PermuteKernels::load(&device).unwrap();
        let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
        let mut layout = RowLayout::new(&other, tokens, top_k, num_experts, alignment).unwrap();
        // The second time over what the first one left.
        for choices in &choices {
            let uploaded = stream.upload(choices).unwrap();
            kernels.lay_out(&stream, &uploaded, &mut layout).unwrap();
            layout.check(&stream).unwrap();
            let expected = expected(choices, top_k, num_experts, alignment, layout.capacity());
            assert_eq!(found(&stream, &layout), expected, "{} tokens {tokens} {choices:?}", device.backend());
        }
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn layouts_are_stable_sorts(
        tokens in prop_oneof![Just(0usize), Just(1), 2..40usize, Just(127)],
        top_k in 1..=16usize,
        num_experts in prop_oneof![Just(1usize), 2..20usize, Just(67)],
        alignment in prop_oneof![Just(1usize), Just(4), Just(7)],
        kind in kinds(),
        seed: u64,
    ) {
        check_layout("layouts_are_stable_sorts", tokens, top_k, num_experts, alignment, kind, seed);
    }
}

/// More choices than one block counts; as many experts as there may be.
#[test]
fn layouts_of_several_blocks() {
    check_layout("layouts_of_several_blocks", 389, 8, 32, 16, Kind::Random, 1);
    check_layout("layouts_of_several_blocks", 263, 6, 5, 1, Kind::Sparse, 2);
    check_layout("layouts_of_several_blocks", 37, 2, 1024, 2, Kind::Random, 3);
}

#[test]
fn what_is_wrong_in_experts_is_left_out_and_said() {
    let device = emulator();
    let kernels = PermuteKernels::load(&device).unwrap();
    let stream = device.stream().unwrap();
    let mut layout = RowLayout::with_capacity(&stream, 3, 2, 4, 2, 6).unwrap();
    let wrong = stream.upload(&[0i32, 1, 2, 4, i32::MAX, 3]).unwrap();
    kernels.lay_out(&stream, &wrong, &mut layout).unwrap();
    let said = layout.check(&stream).unwrap_err().to_string();
    assert!(said.contains("experts below 4") && (said.contains("token 1") || said.contains("token 2")), "{said}");
    // Of 8 rows with padding 6 have room.
    let said = {
        kernels.lay_out(&stream, &wrong, &mut layout).unwrap();
        assert_eq!(stream.download(layout.map()).unwrap(), [0, 2, 4, -1, -1, -1]);
        assert_eq!(stream.download(layout.offsets()).unwrap(), [0, 2, 4, 6, 6]);
        assert_eq!(stream.download(layout.counts()).unwrap(), [1, 1, 1, 0]);
        assert_eq!(stream.download(layout.gather()).unwrap(), [0, PADDING, 0, PADDING, 1, PADDING]);
        let fine = stream.upload(&[0u32, 1, 2, 3, u32::MAX, 3]).unwrap();
        layout.check(&stream).unwrap_err();
        kernels.lay_out(&stream, &fine, &mut layout).unwrap();
        layout.check(&stream).unwrap_err().to_string()
    };
    assert!(said.contains("at most the capacity, 6") && said.contains('8'), "{said}");
    layout.check(&stream).unwrap();

    for (top_k, experts, what) in
        [(17, 4, "17 experts for a token"), (0, 4, "0 experts"), (2, 1025, "1025 experts"), (2, 0, "0 experts")]
    {
        let refused = RowLayout::new(&stream, 3, top_k, experts, 1).unwrap_err();
        assert!(matches!(refused, Error::Unsupported { .. }) && refused.to_string().contains(what), "{refused}");
    }
    assert!(RowLayout::new(&stream, 3, 2, 4, 0).unwrap_err().to_string().contains("alignment"));
    assert!(RowLayout::new(&stream, 1 << 30, 4, 4, 1).unwrap_err().to_string().contains("2^31"));
    let few = stream.upload(&[0i32; 5]).unwrap();
    assert!(matches!(kernels.lay_out(&stream, &few, &mut layout), Err(Error::Shape { what: "experts", .. })));
}

/// Values of every kind: ordinary ones, some far from 1, some of any bits; and whole blocks of one kind.
fn values(rng: &mut Rng, len: usize) -> Vec<f32> {
    let mut x: Vec<f32> = match rng.below(4) {
        0 => rng.normal_vec(len, 1.0),
        1 => rng.spread_vec(len, -40, 30),
        2 => rng.bits_vec(len),
        _ => rng.spread_vec(len, -127, 128),
    };
    for block in x.chunks_mut(SCALE_BLOCK) {
        match rng.below(8) {
            0 => block.fill(0.0),
            1 => block.iter_mut().for_each(|x| *x *= 1e-30),
            2 => block[0] = f32::NEG_INFINITY,
            3 => block.fill(-f32::NAN),
            _ => {}
        }
    }
    x
}

/// Codes and scales of one row, by the rule.
fn quantise(row: &[f32], rule: ScaleRule) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (vec![], vec![]);
    for block in row.chunks(SCALE_BLOCK) {
        let amax = block.iter().filter(|x| !x.is_nan()).fold(0.0f32, |m, x| m.max(x.abs())).min(f32::MAX);
        let mut scale = amax.max(1e-4) / 448.0;
        if rule == ScaleRule::PowerOfTwo {
            let bits = scale.to_bits();
            scale = f32::from_bits((bits + 0x7f_ffff) & 0xff80_0000);
        }
        let reciprocal = 1.0 / scale;
        // A product of a NaN may lose its sign.
        codes.extend(block.iter().map(|x| if x.is_nan() { E4M3::from_f32(*x).0 } else { E4M3::from_f32(x * reciprocal).0 }));
        scales.push(scale);
    }
    (codes, scales)
}

const POISON: u8 = 0x5a;

/// Rows copied and quantised, against the layout's definition.
fn check_rows<T: Quantise + PartialEq + std::fmt::Debug>(
    test: &str,
    (tokens, top_k, num_experts, alignment): (usize, usize, usize, usize),
    (kind, blocks, rule, order): (Kind, usize, ScaleRule, ScaleOrder),
    seed: u64,
    from: impl Fn(f32) -> T,
    to: impl Fn(T) -> f32,
) {
    let width = blocks * SCALE_BLOCK;
    let mut rng = Rng::new(seed);
    let choices = experts(&mut rng, tokens, top_k, num_experts, kind);
    let rows: Vec<T> = values(&mut rng, tokens * width).into_iter().map(from).collect();
    for (device, kernels) in kernels(test) {
        let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
        let what = format!("{} {}", device.backend(), kernels.arch());
        let mut layout = RowLayout::new(&stream, tokens, top_k, num_experts, alignment).unwrap();
        kernels.lay_out(&stream, &stream.upload(&choices).unwrap(), &mut layout).unwrap();
        let capacity = layout.capacity();
        let layout_expected = expected(&choices, top_k, num_experts, alignment, capacity);
        let count = *layout_expected.offsets.last().unwrap() as usize;
        let uploaded = other.upload(&rows).unwrap();
        stream.wait(&other).unwrap();

        let poison = vec![T::zeroed(); capacity * width];
        let mut out = stream.upload(&poison).unwrap();
        stream.fill(&mut out, POISON).unwrap();
        let mut codes = stream.alloc::<E4M3>(capacity * width).unwrap();
        stream.fill(&mut codes, POISON).unwrap();
        let scale_rows = if order == ScaleOrder::Rows { capacity } else { capacity.next_multiple_of(4) };
        let mut scales = stream.alloc::<f32>(scale_rows * blocks).unwrap();
        stream.fill(&mut scales, POISON).unwrap();
        kernels.permute(&stream, &uploaded, width, &layout, &mut out).unwrap();
        kernels.permute_quantize(&stream, &uploaded, width, &layout, rule, &mut codes, &mut scales, order).unwrap();
        stream.synchronize().unwrap_or_else(|e| panic!("{what}: {e}"));

        let (out, codes, scales) =
            (stream.download(&out).unwrap(), stream.download(&codes).unwrap(), stream.download(&scales).unwrap());
        let out: &[u8] = bytemuck::cast_slice(&out);
        let zeros = vec![T::zeroed(); width];
        let row_bytes = width * size_of::<T>();
        let mut scales_left = scales.clone();
        for row in 0..capacity {
            let got = &out[row * row_bytes..][..row_bytes];
            let got_codes: Vec<u8> = codes[row * width..][..width].iter().map(|c| c.0).collect();
            let at = |block: usize| if order == ScaleOrder::Rows { row * blocks + block } else { block * scale_rows + row };
            let got_scales: Vec<u32> = (0..blocks).map(|block| scales[at(block)].to_bits()).collect();
            if row >= count {
                assert!(got.iter().chain(&got_codes).all(|&b| b == POISON), "{what}: row {row} behind the last, {count}");
                continue;
            }
            let token = layout_expected.gather[row];
            let source = if token == PADDING { &zeros } else { &rows[token as usize * width..][..width] };
            assert!(got == bytemuck::cast_slice::<T, u8>(source), "{what}: row {row} of token {token}");
            let (expected_codes, expected_scales) = quantise(&source.iter().map(|&x| to(x)).collect::<Vec<_>>(), rule);
            assert_eq!(got_codes, expected_codes, "{what}: codes of row {row}, token {token}");
            let expected_scales: Vec<u32> = expected_scales.iter().map(|s| s.to_bits()).collect();
            assert_eq!(got_scales, expected_scales, "{what}: scales of row {row}, token {token}");
            (0..blocks).for_each(|block| scales_left[at(block)] = f32::from_ne_bytes([POISON; 4]));
        }
        let poison = u32::from_ne_bytes([POISON; 4]);
        assert!(scales_left.iter().all(|s| s.to_bits() == poison), "{what}: a scale outside of the rows");
    }
}

fn shapes() -> impl Strategy<Value = (usize, usize, usize, usize)> {
    let tokens = prop_oneof![Just(0usize), Just(1), 2..20usize, Just(31)];
    (tokens, 1..=16usize, prop_oneof![Just(1usize), 2..12usize], prop_oneof![Just(1usize), Just(4), Just(5)])
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn rows_of_bf16(
        shape in shapes(),
        how in (kinds(), prop_oneof![Just(1usize), Just(2), Just(9)], prop_oneof![Just(ScaleRule::F32), Just(ScaleRule::PowerOfTwo)],
                prop_oneof![Just(ScaleOrder::Rows), Just(ScaleOrder::Blocks)]),
        seed: u64,
    ) {
        check_rows("rows_of_bf16", shape, how, seed, bf16::from_f32, |x: bf16| x.to_f32());
    }

    #[test]
    fn rows_of_f32(
        shape in shapes(),
        how in (kinds(), prop_oneof![Just(1usize), Just(3), Just(5)], prop_oneof![Just(ScaleRule::F32), Just(ScaleRule::PowerOfTwo)],
                prop_oneof![Just(ScaleOrder::Rows), Just(ScaleOrder::Blocks)]),
        seed: u64,
    ) {
        check_rows("rows_of_f32", shape, how, seed, |x| x, |x: f32| x);
    }
}

/// FP8 rows with their scales behind, as a dispatch gives them: codes and scales part on the way to the experts.
#[test]
fn parts_of_wider_rows() {
    for (device, kernels) in kernels("parts_of_wider_rows") {
        let stream = device.stream().unwrap();
        let (tokens, codes, scales) = (13, 256usize, 16usize);
        let mut rng = Rng::new(5);
        let choices = experts(&mut rng, tokens, 3, 4, Kind::Random);
        let rows: Vec<u8> = (0..tokens * (codes + scales)).map(|_| rng.below(256) as u8).collect();
        let uploaded = stream.upload(&rows).unwrap();
        let mut layout = RowLayout::new(&stream, tokens, 3, 4, 1).unwrap();
        kernels.lay_out(&stream, &stream.upload(&choices).unwrap(), &mut layout).unwrap();
        let capacity = layout.capacity();
        let gather = stream.download(layout.gather()).unwrap();
        for (first, width) in [(0, codes), (codes, scales)] {
            let out = stream.upload(&vec![POISON; capacity * width]).unwrap();
            let params = PermuteParams {
                rows: uploaded.ptr().offset(first as u64),
                map: layout.map().ptr(),
                out: out.ptr(),
                row_stride: (codes + scales) as u64,
                out_stride: width as u64,
                tokens: tokens as u32,
                top_k: 3,
                width: width as u32,
                capacity: capacity as u32,
                ..bytemuck::Zeroable::zeroed()
            };
            // SAFETY: the buffers are as large as the strides say.
            unsafe { kernels.permute_raw(&stream, &params) }.unwrap();
            let out = stream.download(&out).unwrap();
            for (row, &token) in gather.iter().enumerate() {
                let got = &out[row * width..][..width];
                match token {
                    PADDING => assert!(got.iter().all(|&b| b == POISON), "behind the last row"),
                    token => assert_eq!(got, &rows[token as usize * (codes + scales) + first..][..width], "row {row}"),
                }
            }
        }
    }
}

#[test]
fn widths_that_are_refused() {
    let device = emulator();
    let kernels = PermuteKernels::load(&device).unwrap();
    let stream = device.stream().unwrap();
    let layout = RowLayout::new(&stream, 2, 1, 2, 1).unwrap();
    let said = |result: moe_dispatch::Result<()>| result.unwrap_err().to_string();
    let (rows, mut out) = (stream.zeroed::<bf16>(2 * 12).unwrap(), stream.zeroed::<bf16>(2 * 12).unwrap());
    assert_eq!(said(kernels.permute(&stream, &rows, 12, &layout, &mut out)), "bytes of a row: expected a multiple of 16, got 24");
    let (mut codes, mut scales) = (stream.zeroed::<E4M3>(2 * 12).unwrap(), stream.zeroed::<f32>(2).unwrap());
    let refused =
        kernels.permute_quantize(&stream, &rows, 12, &layout, ScaleRule::F32, &mut codes, &mut scales, ScaleOrder::Rows);
    assert_eq!(said(refused), "columns to quantise: expected a multiple of 128, got 12");
    assert!(said(kernels.permute(&stream, &rows, 16, &layout, &mut out)).starts_with("rows: expected [2, 16]"));
    // Without columns there is nothing to do.
    let (rows, mut out) = (stream.zeroed::<f32>(0).unwrap(), stream.zeroed::<f32>(0).unwrap());
    kernels.permute(&stream, &rows, 0, &layout, &mut out).unwrap();
}
