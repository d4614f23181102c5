//! `atom` and `red`: every operation on every type, against what the manual says they compute.

use super::{Numbers, Run, config, module};
use half::{bf16, f16};
use ptx_emu::{Checks, Config, Shape};

type Oracle = fn(u64, u64, u64) -> u64;

/// Operation, type, bytes, and what it gives of the old value and the operands (PTX ISA 9.0, section 9.7.13.5).
const SCALARS: [(&str, &str, u32, Oracle); 27] = [
    ("and", "b32", 4, |a, b, _| a & b),
    ("and", "b64", 8, |a, b, _| a & b),
    ("or", "b32", 4, |a, b, _| a | b),
    ("or", "b64", 8, |a, b, _| a | b),
    ("xor", "b32", 4, |a, b, _| a ^ b),
    ("xor", "b64", 8, |a, b, _| a ^ b),
    ("exch", "b32", 4, |_, b, _| b),
    ("exch", "b64", 8, |_, b, _| b),
    ("cas", "b16", 2, |a, b, c| if a == b { c } else { a }),
    ("cas", "b32", 4, |a, b, c| if a == b { c } else { a }),
    ("cas", "b64", 8, |a, b, c| if a == b { c } else { a }),
    ("add", "u32", 4, |a, b, _| u64::from((a as u32).wrapping_add(b as u32))),
    ("add", "s32", 4, |a, b, _| u64::from((a as u32).wrapping_add(b as u32))),
    ("add", "u64", 8, |a, b, _| a.wrapping_add(b)),
    ("inc", "u32", 4, |a, b, _| if a >= b { 0 } else { a + 1 }),
    ("dec", "u32", 4, |a, b, _| if a == 0 || a > b { b } else { a - 1 }),
    ("min", "u32", 4, |a, b, _| a.min(b)),
    ("max", "u32", 4, |a, b, _| a.max(b)),
    ("min", "s32", 4, |a, b, _| if (a as i32) < (b as i32) { a } else { b }),
    ("max", "s32", 4, |a, b, _| if (a as i32) > (b as i32) { a } else { b }),
    ("min", "u64", 8, |a, b, _| a.min(b)),
    ("max", "u64", 8, |a, b, _| a.max(b)),
    ("min", "s64", 8, |a, b, _| if (a as i64) < (b as i64) { a } else { b }),
    ("max", "s64", 8, |a, b, _| if (a as i64) > (b as i64) { a } else { b }),
    ("add", "f32", 4, |a, b, _| u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits())),
    ("add", "f64", 8, |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits()),
    ("add.noftz", "f16x2", 4, |a, b, _| u64::from(pair(a, b, add16))),
];

fn add16(a: u16, b: u16) -> u16 {
    // Exact: the sum of two f16 fits an f64.
    f16::from_f64(f16::from_bits(a).to_f64() + f16::from_bits(b).to_f64()).to_bits()
}

fn addb16(a: u16, b: u16) -> u16 {
    // Two bf16 of like size: their sum is exact in f64.
    bf16::from_f64(bf16::from_bits(a).to_f64() + bf16::from_bits(b).to_f64()).to_bits()
}

fn pair(a: u64, b: u64, f: fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

/// A value of a type: near the edges now and then.
fn value(numbers: &mut Numbers, ty: &str) -> u64 {
    let n = numbers.next();
    match ty {
        "f32" => u64::from(((n % 2001) as f32 / 8.0 - 125.0).to_bits()),
        "f64" => ((n % 2001) as f64 / 8.0 - 125.0).to_bits(),
        "f16x2" => [n, n >> 20]
            .iter()
            .enumerate()
            .map(|(i, v)| u64::from(f16::from_f64((v % 4001) as f64 / 64.0 - 31.0).to_bits()) << (16 * i))
            .sum(),
        "b16" => n % 4,
        _ => {
            let edges = [0, 1, 2, 3, 5, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, i64::MIN as u64, u64::MAX];
            let all = if n.is_multiple_of(3) { numbers.next() } else { edges[(n >> 8) as usize % edges.len()] };
            if matches!(ty, "u64" | "s64" | "b64") { all } else { all & 0xffff_ffff }
        }
    }
}

const SPACES: [(&str, &str, &str); 4] = [
    (".global", "", "%rd20"),
    ("", "", "%rd20"),
    (
        ".shared",
        "mov.u32 %r2, sh; cvt.u32.u64 %r3, %rd21; add.u32 %r3, %r3, %r2; ld.global.u64 %rd22, [%rd20]; st.shared.u64 [%r3], %rd22;",
        "%r3",
    ),
    (
        "",
        "mov.u64 %rd23, sh; add.s64 %rd23, %rd23, %rd21; cvta.shared.u64 %rd23, %rd23; ld.global.u64 %rd22, [%rd20]; st.u64 [%rd23], %rd22;",
        "%rd23",
    ),
];

const SEMANTICS: [&str; 6] = ["", ".relaxed.cta", ".acquire.gpu", ".release.sys", ".acq_rel.cluster", ".sys"];

/// Lane i works on cell i mod `cells`; cells are 8 bytes apart. Input: per lane 16 bytes of operands, then the cells.
#[test]
fn every_operation_on_every_type() {
    let mut numbers = Numbers(20);
    let mut round = 0;
    for (operation, ty, bytes, oracle) in SCALARS {
        for (space, setup, address) in SPACES {
            for cells in [1, 5, 32] {
                for red in [false, true] {
                    let cas = operation == "cas";
                    if red && (cas || operation == "exch") {
                        continue;
                    }
                    round += 1;
                    let sem = SEMANTICS[round % if red { 2 } else { SEMANTICS.len() }];
                    let operands: Vec<(u64, u64)> = (0..32).map(|_| (value(&mut numbers, ty), value(&mut numbers, ty))).collect();
                    let initial: Vec<u64> = (0..32).map(|_| value(&mut numbers, ty)).collect();
                    let bits = bytes * 8;
                    let (class, load) = match bytes {
                        2 => ("%h", "b16"),
                        4 => ("%r", "b32"),
                        _ => ("%rd", "b64"),
                    };
                    let (b, c, d) = match bytes {
                        2 | 4 => (format!("{class}10"), format!("{class}11"), format!("{class}12")),
                        _ => ("%rd10".into(), "%rd11".into(), "%rd12".into()),
                    };
                    let (name, target) = if red { ("red", String::new()) } else { ("atom", format!("{d}, ")) };
                    let third = if cas { format!(", {c}") } else { String::new() };
                    let result = if red { String::new() } else { format!("st.global.{load} [%rd4], {d};") };
                    let body = format!(
                        "ld.global.{load} {b}, [%rd3]; ld.global.{load} {c}, [%rd3+8];
                         rem.u32 %r4, %r1, {cells}; mul.wide.u32 %rd21, %r4, 8; add.s64 %rd20, %rd1, %rd21; add.s64 %rd20, %rd20, 512;
                         {setup} bar.sync 0;
                         {name}{sem}{space}.{operation}.{ty} {target}[{address}], {b}{third};
                         {result} bar.sync 0; mul.wide.u32 %rd21, %r4, 8;
                         ld{space}.b{bits} {b}, [{address}]; st.global.b{bits} [%rd4+8], {b};"
                    );
                    let mut input: Vec<u8> =
                        operands.iter().flat_map(|(b, c)| [b.to_le_bytes(), c.to_le_bytes()].concat()).collect();
                    input.extend(initial.iter().flat_map(|v| v.to_le_bytes()));
                    let run = Run::new(config(), &input, 512);
                    run.launch(&module("", &body), Shape::new(1, 32), 0, &[]).unwrap_or_else(|e| panic!("{e}\n{body}"));
                    let output = run.output(512);
                    let mut memory = initial.clone();
                    let keep = u64::MAX >> (64 - bits);
                    let mut old = vec![];
                    for (lane, &(b, c)) in operands.iter().enumerate() {
                        let cell = &mut memory[lane % cells];
                        old.push(*cell & keep);
                        *cell = oracle(*cell & keep, b & keep, c & keep) & keep;
                    }
                    for lane in 0..32 {
                        let word = |at: usize| u64::from_le_bytes(output[16 * lane + at..][..8].try_into().unwrap()) & keep;
                        if !red {
                            assert_eq!(word(0), old[lane], "old value of lane {lane}, {cells} cells\n{body}");
                        }
                        assert_eq!(word(8), memory[lane % cells], "cell of lane {lane}, {cells} cells\n{body}");
                    }
                }
            }
        }
    }
}

#[test]
fn atomics_of_128_bits() {
    // Lanes exchange their own numbers: what comes out is what the lane before put in.
    let input = Numbers(21).bytes(512 + 16);
    for (setup, address) in
        [("", "[%rd1+512]"), ("ld.global.b128 %q3, [%rd1+512]; st.shared.b128 [sh], %q3; bar.sync 0;", "[sh]")]
    {
        let body = format!("{setup} ld.global.b128 %q1, [%rd3]; atom.exch.b128 %q2, {address}, %q1; st.global.b128 [%rd4], %q2;");
        let run = Run::new(config(), &input, 512);
        run.launch(&module("", &body), Shape::new(1, 32), 0, &[]).unwrap();
        let mut expected = input[512..].to_vec();
        expected.extend_from_slice(&input[..496]);
        assert_eq!(run.output(512), expected);
        // Only the lane whose comparand is there succeeds; the next lane sees its value.
        let body = format!(
            "{setup} ld.global.b128 %q1, [%rd3]; ld.global.b128 %q4, [%rd1+512]; setp.ge.u32 %p1, %r1, 7;
             @%p1 ld.global.b128 %q4, [%rd1+112]; @!%p1 st.global.b128 [%rd3], %q4; setp.eq.u32 %p2, %r1, 3;
             @%p2 ld.global.b128 %q4, [%rd1+512]; setp.lt.u32 %p3, %r1, 3; @%p3 ld.global.b128 %q4, [%rd1+320];
             bar.sync 0; atom.cas.b128 %q2, {address}, %q4, %q1; st.global.b128 [%rd4], %q2;"
        );
        let run = Run::new(config(), &input, 512);
        run.launch(&module("", &body), Shape::new(1, 32), 0, &[]).unwrap();
        let output = run.output(512);
        for lane in 0..32 {
            // Lanes 0 to 2 compare with something else; lane 3 succeeds; all others find lane 3's number, and none of them matches.
            let expected = if lane <= 3 { &input[512..] } else { &input[48..64] };
            assert_eq!(&output[16 * lane..][..16], expected, "lane {lane}");
        }
    }
}

#[test]
fn sums_of_f32_flush_subnormal_numbers_in_global_memory_only() {
    let (tiny, half_min) = (1u32, 0x0040_0000u32);
    for (a, b, plain, flushed) in [
        (tiny, tiny, 2, 0),
        (half_min, half_min, 0x0080_0000, 0),
        (0x8000_0001, 0x8000_0001, 0x8000_0002, 0x8000_0000),
        (0x0080_0001, 0x8080_0000, 1, 0),
        (0x3f80_0000, tiny, 0x3f80_0000, 0x3f80_0000),
        (0x7f80_0000, 0xff80_0000, 0x7fff_ffff, 0x7fff_ffff),
        (0x7fc0_0001, 0x3f80_0000, 0x7fff_ffff, 0x7fff_ffff),
        (0x7f7f_ffff, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0000),
    ] {
        let body = format!(
            "st.global.u32 [%rd2], {a}; st.shared.u32 [sh], {a}; mov.b32 %f1, {b}; cvta.shared.u64 %rd10, sh;
             red.global.add.f32 [%rd2], %f1; atom.shared.add.f32 %f2, [sh], %f1; ld.shared.u32 %r2, [sh]; st.global.u32 [%rd2+4], %r2;
             st.global.u32 [%rd2+8], {a}; st.shared.u32 [sh], {a};
             red.add.f32 [%rd10], %f1; add.s64 %rd11, %rd2, 8; atom.add.f32 %f2, [%rd11], %f1; ld.shared.u32 %r2, [sh];
             st.global.u32 [%rd2+12], %r2;"
        );
        let run = Run::new(config(), &[0; 16], 16);
        run.launch(&module("", &body), Shape::new(1, 1), 0, &[]).unwrap();
        let words: Vec<u32> = run.output(16).chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(words, [flushed, plain, flushed, plain], "{a:#x} + {b:#x}");
    }
}

/// `add`, `min` or `max` of 16-bit numbers: NaN loses against a number, -0 is below +0.
fn half_oracle(operation: &str, brain: bool, a: u16, b: u16) -> u16 {
    let real = |v: u16| if brain { bf16::from_bits(v).to_f64() } else { f16::from_bits(v).to_f64() };
    let (x, y) = (real(a), real(b));
    let below = |p: f64, q: f64| p < q || (p == q && p.is_sign_negative() && q.is_sign_positive());
    match operation {
        "add" if (x + y).is_nan() => 0x7fff,
        "add" => {
            if brain {
                addb16(a, b)
            } else {
                add16(a, b)
            }
        }
        _ if x.is_nan() && y.is_nan() => 0x7fff,
        _ if x.is_nan() => b,
        _ if y.is_nan() => a,
        "min" => {
            if below(y, x) {
                b
            } else {
                a
            }
        }
        _ => {
            if below(x, y) {
                b
            } else {
                a
            }
        }
    }
}

#[test]
fn half_precision_scalars_and_vectors() {
    let mut numbers = Numbers(22);
    for (ty, brain, packed) in [("f16", false, false), ("bf16", true, false), ("f16x2", false, true), ("bf16x2", true, true)] {
        for operation in ["add", "min", "max"] {
            for n in [1usize, 2, 4, 8] {
                if (packed && n == 8) || (operation != "add" && n == 1) {
                    continue;
                }
                let element = if packed { 4 } else { 2 };
                let bytes = n * element;
                // Around 1 with a few special numbers: infinities, NaN, zeros, subnormals, the largest.
                let one = if brain { 0x3f80u16 } else { 0x3c00 };
                let infinity = if brain { 0x7f80u16 } else { 0x7c00 };
                let specials = [0, 0x8000, 1, 0x8001, infinity, infinity | 0x8000, infinity | 1, infinity - 1, 0x7fff];
                let mut number = || {
                    let v = numbers.next();
                    if v.is_multiple_of(4) {
                        specials[(v >> 8) as usize % specials.len()]
                    } else {
                        (one - 0x100 + (v >> 8) as u16 % 0x200) | ((v >> 40) as u16 & 1) << 15
                    }
                };
                let operands: Vec<Vec<u16>> = (0..32).map(|_| (0..8).map(|_| number()).collect()).collect();
                let cells: Vec<Vec<u16>> = (0..32).map(|_| (0..8).map(|_| number()).collect()).collect();
                let class = if packed { "%r" } else { "%h" };
                let list = |first: usize| {
                    let list: Vec<String> = (first..first + n).map(|i| format!("{class}{i}")).collect();
                    if n == 1 { list[0].clone() } else { format!("{{{}}}", list.join(", ")) }
                };
                let vector = if n == 1 { String::new() } else { format!(".v{n}") };
                let bits = element * 8;
                let (b, d) = (list(10), list(20));
                let body = format!(
                    "ld.global{vector}.b{bits} {b}, [%rd3]; add.s64 %rd20, %rd3, 512;
                     atom.global{vector}.{operation}.noftz.{ty} {d}, [%rd20], {b};
                     st.global{vector}.b{bits} [%rd4], {d};
                     red.{operation}.noftz{vector}.{ty} [%rd20], {b};"
                );
                let flat = |list: &[Vec<u16>]| list.iter().flatten().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
                let run = Run::new(config(), &[flat(&operands), flat(&cells)].concat(), 512);
                run.launch(&module("", &body), Shape::new(1, 32), 0, &[]).unwrap_or_else(|e| panic!("{e}\n{body}"));
                let old = run.output(512);
                let mut after = vec![0; 512];
                run.machine.memory().read(run.input + 512, &mut after).unwrap();
                for lane in 0..32 {
                    let initial = flat(&cells[lane..=lane]);
                    assert_eq!(old[16 * lane..][..bytes], initial[..bytes], "{body}");
                    for i in 0..8 {
                        let got = u16::from_le_bytes(after[16 * lane + 2 * i..][..2].try_into().unwrap());
                        let (a, b) = (cells[lane][i], operands[lane][i]);
                        let twice = half_oracle(operation, brain, half_oracle(operation, brain, a, b), b);
                        let expected = if 2 * i < bytes { twice } else { a };
                        assert_eq!(got, expected, "{a:#x} {operation} {b:#x} twice, {ty} {n}");
                    }
                }
            }
        }
    }
}

#[test]
fn vectors_of_f32() {
    let mut numbers = Numbers(23);
    let values: Vec<f32> = (0..256).map(|_| (numbers.next() % 1000) as f32 / 16.0).collect();
    let input: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    for (n, list, old) in [(2, "{%f0, %f1}", "{%f4, %f5}"), (4, "{%f0, %f1, %f2, %f3}", "{%f4, %f5, %f6, %f7}")] {
        let body = format!(
            "ld.global.v{n}.f32 {list}, [%rd3]; add.s64 %rd20, %rd3, 512; atom.global.relaxed.gpu.add.v{n}.f32 {old}, [%rd20], {list};
             red.global.v{n}.f32.add [%rd20], {list}; st.global.v{n}.f32 [%rd4], {old};"
        );
        let run = Run::new(config(), &input, 512);
        run.launch(&module("", &body), Shape::new(1, 32), 0, &[]).unwrap();
        let output = run.output(512);
        let mut after = vec![0; 512];
        run.machine.memory().read(run.input + 512, &mut after).unwrap();
        let float = |bytes: &[u8], i: usize| f32::from_le_bytes(bytes[4 * i..][..4].try_into().unwrap());
        for i in (0..128).filter(|i| i % 4 < n) {
            assert_eq!(float(&output, i), values[128 + i]);
            assert_eq!(float(&after, i), values[128 + i] + values[i] + values[i]);
        }
    }
}

#[test]
fn the_order_of_lanes_is_open() {
    // Some seed lets a high lane come first; the sum is the same with all of them.
    let mut firsts = std::collections::HashSet::new();
    for seed in 0..20 {
        let run = Run::new(Config { seed, ..config() }, &[0; 16], 512);
        run.launch(&module("", "atom.global.add.u32 %r2, [%rd1], 1; st.global.u32 [%rd4], %r2;"), Shape::new(1, 32), 0, &[])
            .unwrap();
        let output = run.output(512);
        firsts.insert((0..32).find(|&i| output[16 * i] == 0).unwrap());
        let mut back = [0; 4];
        run.machine.memory().read(run.input, &mut back).unwrap();
        assert_eq!(back, [32, 0, 0, 0]);
    }
    assert_eq!(firsts, [0, 31].into());
}

#[test]
fn threads_of_the_machine_lose_no_update() {
    let fast = Config { threads: 4, checks: Checks::NONE, ..Config::default() };
    let body = "
        mov.u64 %rd10, 0;
        LOOP:
        atom.global.add.u32 %r2, [%rd1], 1;
        red.global.add.u64 [%rd1+8], 3;
        red.global.add.f32 [%rd1+16], 0f3F800000;
        atom.global.inc.u32 %r3, [%rd1+20], 999;
        atom.global.add.noftz.f16 %h1, [%rd1+24], %h0;
        ld.global.b128 %q1, [%rd1+32];
        atom.global.exch.b128 %q2, [%rd1+32], %q1;
        AGAIN:
        ld.volatile.global.u32 %r4, [%rd1+48];
        add.u32 %r5, %r4, 1;
        atom.global.cas.b32 %r6, [%rd1+48], %r4, %r5;
        setp.ne.u32 %p1, %r6, %r4;
        @%p1 bra AGAIN;
        add.s64 %rd10, %rd10, 1;
        setp.lt.u64 %p1, %rd10, %rd5;
        @%p1 bra LOOP;";
    let body = body.replacen("mov.u64", "mov.b16 %h0, 0; mov.u64", 1);
    let run = Run::new(fast, &[0; 64], 16);
    let (blocks, threads, rounds) = (24u64, 96u64, 20u64);
    run.launch(&module("", &body), Shape::new(blocks as u32, threads as u32), rounds, &[]).unwrap();
    let mut back = [0; 64];
    run.machine.memory().read(run.input, &mut back).unwrap();
    let n = blocks * threads * rounds;
    let word = |at: usize| u64::from(u32::from_le_bytes(back[at..at + 4].try_into().unwrap()));
    assert_eq!(word(0), n);
    assert_eq!(u64::from_le_bytes(back[8..16].try_into().unwrap()), 3 * n);
    assert_eq!(f32::from_bits(word(16) as u32), n as f32);
    assert_eq!(word(20), n % 1000);
    assert_eq!(word(48), n);
}
