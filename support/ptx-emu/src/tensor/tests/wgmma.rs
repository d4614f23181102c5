use super::super::wgmma::{Descriptor, Form, ROW_BYTES, ROWS, Swizzle, WARP_ROWS, Wgmma};
use super::super::{Accumulation, Accumulator, Error, Multiplicand as M, PreparedB, Register};
use super::{Matrix, Random, expected, get, put, random_accumulators};

const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

fn form(n: usize, d: Accumulator, a: M, b: M) -> Form {
    Form {
        n,
        k: ROW_BYTES * 8 / a.bits(),
        d,
        a,
        b,
        a_in_registers: false,
        negate_a: false,
        negate_b: false,
        transpose_a: false,
        transpose_b: false,
        saturate: false,
    }
}

/// A CuTe layout: shape and stride of each level, innermost first; the coordinate is split level by level.
fn cute(levels: &[(usize, usize)], mut coordinate: usize) -> usize {
    let mut offset = 0;
    for (i, &(shape, stride)) in levels.iter().enumerate() {
        let digit = if i + 1 == levels.len() { coordinate } else { coordinate % shape };
        offset += digit * stride;
        coordinate /= shape;
    }
    offset
}

/// `Swizzle<bits, 4, 3>` of a byte offset.
fn cute_swizzle(bits: u32, offset: usize) -> usize {
    offset ^ (((offset >> 7) & ((1 << bits) - 1)) << 4)
}

/// Byte offset from the pattern's start of element (`mn`, `k`), from the table of section 9.7.15.5.1.2.1.3, its columns "canonical layout"
/// and "swizzling". `lbo` and `sbo` are in bytes, `size` is the element's.
fn canonical(mn_major: bool, swizzle: Swizzle, lbo: usize, sbo: usize, size: usize, mn: usize, k: usize) -> usize {
    let t = 16 / size;
    let (lbo, sbo) = (lbo / size, sbo / size);
    let many = usize::MAX;
    let elements = match (mn_major, swizzle) {
        (true, Swizzle::None) => cute(&[(t, 1), (1, t), (many, sbo)], mn) + cute(&[(8, t), (many, lbo)], k),
        (true, Swizzle::B32) => cute(&[(t, 1), (2, t), (many, lbo)], mn) + cute(&[(8, 2 * t), (many, sbo)], k),
        (true, Swizzle::B64) => cute(&[(t, 1), (4, t), (many, lbo)], mn) + cute(&[(8, 4 * t), (many, sbo)], k),
        (true, Swizzle::B128) => cute(&[(t, 1), (8, t), (many, lbo)], mn) + cute(&[(8, 8 * t), (many, sbo)], k),
        (false, Swizzle::None) => cute(&[(8, t), (many, sbo)], mn) + cute(&[(t, 1), (many, lbo)], k),
        (false, Swizzle::B32) => cute(&[(8, 2 * t), (many, sbo)], mn) + cute(&[(t, 1), (many, t)], k),
        (false, Swizzle::B64) => cute(&[(8, 4 * t), (many, sbo)], mn) + cute(&[(t, 1), (many, t)], k),
        (false, Swizzle::B128) => cute(&[(8, 8 * t), (many, sbo)], mn) + cute(&[(t, 1), (many, t)], k),
    };
    let bits = match swizzle {
        Swizzle::None => 0,
        Swizzle::B32 => 1,
        Swizzle::B64 => 2,
        Swizzle::B128 => 3,
    };
    cute_swizzle(bits, elements * size)
}

/// The manual's worked examples of canonical layouts (figures 166 to 170): exact layouts with numbers in them.
#[test]
fn the_manuals_examples() {
    // ((8,2),(4,4)):((4,32),(1,64)), tf32, LBO 64 elements, SBO 32 elements.
    let exact = |mn, k| (cute(&[(8, 4), (2, 32)], mn) + cute(&[(4, 1), (4, 64)], k)) * 4;
    let descriptor =
        Descriptor { start: 0, leading_byte_offset: 256, stride_byte_offset: 128, base_offset: 0, swizzle: Swizzle::None };
    assert_eq!(descriptor.encode(), 16 << 16 | 8 << 32);
    // Swizzle<1,4,3> o ((8,2,2),(8,2)):((1,8,128),(16,256)), bf16, N-major, LBO 128 elements, SBO 256 elements.
    let n_major = |mn, k| cute_swizzle(1, (cute(&[(8, 1), (2, 8), (2, 128)], mn) + cute(&[(8, 16), (2, 256)], k)) * 2);
    for mn in 0..16 {
        for k in 0..8 {
            assert_eq!(canonical(false, Swizzle::None, 256, 128, 4, mn, k), exact(mn, k));
        }
        for k in 0..16 {
            assert_eq!(canonical(true, Swizzle::B32, 256, 512, 2, mn, k), n_major(mn, k));
        }
    }
    // And the code under test on the first one: element (mn, k) read back from where the example puts it.
    let mut shared = vec![0xff; 64 * 1024];
    for mn in 0..16 {
        for k in 0..8 {
            shared[exact(mn, k)..][..4].copy_from_slice(&((mn * 8 + k) as u32).to_le_bytes());
        }
    }
    let mut b = Vec::new();
    Wgmma::new(form(16, Accumulator::F32, M::Tf32, M::Tf32))
        .unwrap()
        .b_from_shared(&shared, descriptor.encode(), &mut b)
        .unwrap();
    let words: Vec<u32> = b.chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
    assert_eq!(words, (0..128).collect::<Vec<u32>>());
}

/// Where an operand starts in shared memory, its strides, and how many steps of `k` lie in it (K-major swizzles: inside the pattern).
struct Place {
    start: usize,
    base_offset: usize,
    lbo: usize,
    sbo: usize,
    steps: usize,
}

fn place(mn_major: bool, swizzle: Swizzle, mn: usize, size: usize, random: &mut Random) -> Place {
    let atom = 8 * swizzle.bytes() as usize;
    let line = random.below(8) * usize::from(random.below(2) == 0);
    let (start, base_offset) = match swizzle {
        Swizzle::None => (16 * random.below(100), random.below(8)),
        _ => (1024 * random.below(3) + 128 * line, line),
    };
    // Patterns that start off their boundary keep that phase only when the next pattern is a multiple of the boundary away.
    let pad = if line == 0 { atom } else { 1024 };
    let groups = if mn_major { (mn * size).div_ceil(swizzle.bytes() as usize) } else { mn / 8 };
    let first = if mn_major && swizzle == Swizzle::None { 128 } else { atom.max(pad) } + pad * random.below(3);
    let second = groups.max(if mn_major { 1 } else { 2 }) * first + pad * random.below(3);
    match (mn_major, swizzle) {
        // SBO between groups of 8 rows, LBO between the two halves of a step.
        (false, Swizzle::None) => Place { start, base_offset, lbo: second, sbo: first, steps: 1 },
        (false, _) => {
            let steps = swizzle.bytes() as usize / ROW_BYTES;
            Place { start, base_offset, lbo: 16 * random.below(100), sbo: first, steps }
        }
        // SBO between the 16-byte columns, LBO between groups of 8 k.
        (true, Swizzle::None) => Place { start, base_offset, lbo: second, sbo: first, steps: 1 },
        // LBO between patterns along the rows, SBO between groups of 8 k.
        (true, _) => Place { start, base_offset, lbo: first, sbo: second, steps: 1 },
    }
}

/// Every layout: what a writer puts where the manual's canonical layouts say comes back, at every step of `k`, and the ranges are the bytes
/// written, neither more nor fewer.
#[test]
fn canonical_layouts() {
    let mut random = Random::new(1);
    for round in 0..6 {
        for (ty, mn_major) in [(M::Bf16, false), (M::Bf16, true), (M::E4m3, false), (M::Tf32, false), (M::S8, false)] {
            for swizzle in SWIZZLES {
                for n in [8, 16, 24, 64, 104, 128, 256] {
                    if ty == M::S8 && n == 104 {
                        continue;
                    }
                    let d = if ty == M::S8 { Accumulator::S32 } else { Accumulator::F32 };
                    let mut form = form(n, d, ty, ty);
                    (form.transpose_a, form.transpose_b) = (mn_major, mn_major);
                    let wgmma = Wgmma::new(form).unwrap();
                    for (operand, rows) in [('A', ROWS), ('B', n)] {
                        let size = ty.bits() / 8;
                        let at = place(mn_major, swizzle, rows, size, &mut random);
                        let mut shared = vec![0xee; 1 << 18];
                        let mut written = vec![0usize; shared.len()];
                        let k = form.k * at.steps;
                        let pattern = |mn: usize, k: usize| (mn * 509 + k * 3 + round) as u32;
                        for mn in 0..rows {
                            for kk in 0..k {
                                let to = at.start + canonical(mn_major, swizzle, at.lbo, at.sbo, size, mn, kk);
                                shared[to..to + size].copy_from_slice(&pattern(mn, kk).to_le_bytes()[..size]);
                                written[to..to + size].iter_mut().for_each(|w| *w = kk / form.k + 1);
                            }
                        }
                        for step in 0..at.steps {
                            let descriptor = Descriptor {
                                start: (at.start + ROW_BYTES * step) as u32,
                                leading_byte_offset: at.lbo as u32,
                                stride_byte_offset: at.sbo as u32,
                                base_offset: at.base_offset as u32,
                                swizzle,
                            }
                            .encode();
                            let mut bytes = Vec::new();
                            let ranges = if operand == 'A' {
                                let mut ranges = vec![];
                                for warp in 0..4 {
                                    let mut a = [0; WARP_ROWS * ROW_BYTES];
                                    wgmma.a_from_shared(warp, &shared, descriptor, &mut a).unwrap();
                                    bytes.extend(a);
                                    let own = wgmma.a_ranges(warp, descriptor).unwrap();
                                    assert!(own.windows(2).all(|w| w[0].end < w[1].start), "sorted and merged");
                                    ranges.extend(own);
                                }
                                ranges
                            } else {
                                wgmma.b_from_shared(&shared, descriptor, &mut bytes).unwrap();
                                wgmma.b_ranges(descriptor).unwrap()
                            };
                            let context = format!("{operand} {ty:?} mn_major {mn_major} {swizzle:?} n {n} step {step}");
                            for (i, element) in bytes.chunks(size).enumerate() {
                                let (mn, kk) = (i / form.k, i % form.k + step * form.k);
                                assert_eq!(element, &pattern(mn, kk).to_le_bytes()[..size], "{context} at ({mn}, {kk})");
                            }
                            let mut touched = vec![false; shared.len()];
                            for range in &ranges {
                                touched[range.start as usize..range.end as usize].fill(true);
                            }
                            let wanted: Vec<bool> = written.iter().map(|w| *w == step + 1).collect();
                            assert!(touched == wanted, "{context}: ranges");
                            let mut sorted = ranges.clone();
                            sorted.sort_unstable_by_key(|range| range.start);
                            assert!(sorted.windows(2).all(|w| w[0].end <= w[1].start), "{context}: disjoint");
                            assert!(operand == 'A' || ranges.windows(2).all(|w| w[0].end < w[1].start), "{context}: merged");
                        }
                    }
                }
            }
        }
    }
}

/// Whole operands that lie densely are one range.
#[test]
fn dense_operands_are_one_range() {
    let wgmma = Wgmma::new(form(128, Accumulator::F32, M::E4m3, M::E4m3)).unwrap();
    let mut descriptor =
        Descriptor { start: 1024, leading_byte_offset: 0, stride_byte_offset: 256, base_offset: 0, swizzle: Swizzle::B32 };
    assert_eq!(wgmma.b_ranges(descriptor.encode()).unwrap(), vec![1024..1024 + 128 * 32]);
    descriptor = Descriptor { swizzle: Swizzle::None, leading_byte_offset: 128, ..descriptor };
    assert_eq!(wgmma.a_ranges(3, descriptor.encode()).unwrap(), vec![1024 + 48 * 32..1024 + 64 * 32]);
}

/// Row and column of element `i` of A in thread `thread` of the warpgroup: figures 148, 150 and 152.
fn a_place(ty: M, thread: usize, i: usize) -> (usize, usize) {
    let (warp, g, t) = (thread / 32, thread % 32 / 4, thread % 4);
    let (row, column) = match ty.bits() {
        16 => (i / 2 % 2 * 8, 2 * t + i % 2 + i / 4 * 8),
        32 => (i % 2 * 8, t + i / 2 * 4),
        _ => (i / 4 % 2 * 8, 4 * t + i % 4 + i / 8 * 16),
    };
    (16 * warp + g + row, column)
}

/// The same of D: figures 149, 151 and 153.
fn d_place(thread: usize, i: usize) -> (usize, usize) {
    let lane = thread % 32;
    (16 * (thread / 32) + lane / 4 + 8 * ((i >> 1) & 1), 8 * (i / 4) + 2 * (lane % 4) + (i & 1))
}

fn check_product(form: Form, scale_d: bool, random: &mut Random) {
    let wgmma = Wgmma::new(form).unwrap();
    let (n, k) = (form.n, form.k);
    let (am, bm) = (Matrix::random(form.a, ROWS, k, random), Matrix::random(form.b, n, k, random));
    let bytes =
        |m: &Matrix, ty: M| -> Vec<u8> { m.patterns.iter().flat_map(|p| p.to_le_bytes()[..ty.bits() / 8].to_vec()).collect() };
    let a_bytes = bytes(&am, form.a);
    let d_bits = if form.d == Accumulator::F16 { 16 } else { 32 };
    let (c_patterns, c_values) = random_accumulators(form.d, ROWS * n, random);
    let mut prepared = PreparedB::default();
    wgmma.prepare_b(&bytes(&bm, form.b), Accumulation::Exact, &mut prepared).unwrap();
    for warp in 0..4 {
        let mut a = [0; WARP_ROWS * ROW_BYTES];
        if form.a_in_registers {
            let mut registers: Vec<Register> = vec![[0; 32]; 4];
            for lane in 0..32 {
                for i in 0..ROWS * k / 128 {
                    let (row, column) = a_place(form.a, 32 * warp + lane, i);
                    put(&mut registers, form.a.bits(), lane, i, am.pattern(row, column));
                }
            }
            wgmma.a_from_registers(&registers, &mut a).unwrap();
        } else {
            a.copy_from_slice(&a_bytes[warp * WARP_ROWS * ROW_BYTES..][..WARP_ROWS * ROW_BYTES]);
        }
        let mut registers: Vec<Register> = vec![[0; 32]; wgmma.d_registers()];
        for lane in 0..32 {
            for i in 0..n / 2 {
                let (row, column) = d_place(32 * warp + lane, i);
                put(&mut registers, d_bits, lane, i, c_patterns[row * n + column]);
            }
        }
        let mut d = vec![0x7fc0_0000; WARP_ROWS * n];
        wgmma.d_from_registers(&registers, &mut d).unwrap();
        wgmma.run(&a, &prepared, scale_d, Accumulation::Exact, &mut d).unwrap();
        wgmma.d_to_registers(&d, &mut registers).unwrap();
        for lane in 0..32 {
            for i in 0..n / 2 {
                let (row, column) = d_place(32 * warp + lane, i);
                let c = if scale_d { c_values[row * n + column] } else { 0.0 };
                let sign = if form.negate_a != form.negate_b { -1.0 } else { 1.0 };
                let products = (0..k).map(|at| (sign * am.value(row, at), bm.value(column, at)));
                let want = expected(form.d, form.saturate, c, products);
                assert_eq!(get(&registers, d_bits, lane, i), want, "{form:?} warp {warp} lane {lane} element {i}");
            }
        }
    }
}

#[test]
fn every_form_against_a_naive_product() {
    use Accumulator::{F16, F32, S32};
    let mut random = Random::new(2);
    let mut forms = 0;
    let all = [M::F16, M::Bf16, M::Tf32, M::E4m3, M::E5m2, M::S8, M::U8];
    for (a, b) in all.iter().flat_map(|&a| all.iter().map(move |&b| (a, b))) {
        for d in [F16, F32, S32] {
            for modifiers in 0..32 {
                let bit = |i: usize| modifiers >> i & 1 == 1;
                let n = [8, 16, 24, 32, 48, 96, 128, 208, 256][random.below(9)];
                let form = Form {
                    a_in_registers: bit(0),
                    negate_a: bit(1),
                    negate_b: bit(2),
                    saturate: bit(3),
                    transpose_b: false,
                    ..form(n, d, a, b)
                };
                if Wgmma::new(form).is_ok() {
                    check_product(form, bit(4), &mut random);
                    forms += 1;
                }
            }
        }
    }
    // f16 to 2 types, bf16, tf32, 4 pairs of fp8 to 2 types: 8 ways with signs and A's place; 4 pairs of integers: 4; all with and
    // without the old D.
    assert_eq!(forms, 2 * (8 * (2 + 1 + 1 + 8) + 4 * 4));
}

#[test]
fn what_does_not_exist_is_refused() {
    use Accumulator::{F16, F32, S32};
    let base = form(64, F32, M::Bf16, M::Bf16);
    let fp8 = form(64, F32, M::E4m3, M::E5m2);
    let integer = form(64, S32, M::S8, M::U8);
    assert!(Wgmma::new(base).is_ok() && Wgmma::new(fp8).is_ok() && Wgmma::new(integer).is_ok());
    for refused in [
        Form { n: 4, ..base },
        Form { n: 0, ..base },
        Form { n: 264, ..base },
        Form { n: 40, ..integer },
        Form { k: 8, ..base },
        Form { d: F16, ..base },
        Form { b: M::F16, ..base },
        Form { saturate: true, ..base },
        Form { transpose_a: true, a_in_registers: true, ..base },
        Form { transpose_b: true, ..fp8 },
        Form { transpose_a: true, ..form(64, F32, M::Tf32, M::Tf32) },
        Form { negate_a: true, ..integer },
        Form { d: F32, ..integer },
        form(64, S32, M::S4, M::S4),
    ] {
        assert!(matches!(Wgmma::new(refused), Err(Error::NoSuchForm { .. })), "{refused:?}");
    }
    let text = Wgmma::new(Form { transpose_b: true, ..fp8 }).unwrap_err().to_string();
    assert_eq!(text, "wgmma.mma_async has no form m64n64k32.f32.e4m3.e5m2, imm-trans-b 1");
}

/// A descriptor that leads out of shared memory, or has bits outside its fields, is reported, not followed.
#[test]
fn bad_descriptors() {
    let wgmma = Wgmma::new(form(64, Accumulator::F32, M::Bf16, M::Bf16)).unwrap();
    let shared = vec![0; 4096];
    let descriptor =
        |start| Descriptor { start, leading_byte_offset: 16, stride_byte_offset: 256, base_offset: 0, swizzle: Swizzle::B32 };
    let mut b = Vec::new();
    assert!(wgmma.b_from_shared(&shared, descriptor(2048).encode(), &mut b).is_ok());
    let beyond = wgmma.b_from_shared(&shared, descriptor(2048 + 256).encode(), &mut b);
    assert_eq!(beyond, Err(Error::SharedOutOfBounds { operand: "B", address: 4096, end: 4096 }));
    for bit in [14, 15, 30, 31, 46, 47, 48, 52, 61] {
        let bits = descriptor(0).encode() | 1 << bit;
        assert!(matches!(wgmma.b_ranges(bits), Err(Error::DescriptorReserved { operand: "B", .. })), "bit {bit}");
    }
    for field in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        let whole = Descriptor {
            start: 0x3fff0,
            leading_byte_offset: 0x12340,
            stride_byte_offset: 0x3fff0,
            base_offset: 5,
            swizzle: field,
        };
        assert_eq!(Descriptor::decode(whole.encode(), "A"), Ok(whole));
    }
}
