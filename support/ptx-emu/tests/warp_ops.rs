//! Exchanges inside a warp (PTX ISA 9.0, sections 9.7.9.6 and 9.7.13.9 to 9.7.13.14): results by the manual's pseudocode, who has to take part, and what is
//! reported when somebody does not.

use ptx_emu::{Arg, Config, Kind, Machine, Module, Report, Shape};

const HEAD: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

/// Runs `body` in one block; `%i` is the thread's number, `%a` its word of the input, and `%d` (0 at first) what is returned of each thread.
fn try_run(body: &str, threads: u32, input: &[u32], config: Config) -> Result<Vec<u32>, Report> {
    let text = format!(
        "{HEAD}.entry k(.param .u64 in, .param .u64 out)\n{{\n.reg .pred %p<9>;\n.reg .b32 %i, %a, %d, %r<20>;\n.reg .b64 %x<9>, %in, %out;\n\
         ld.param.u64 %in, [in];\nld.param.u64 %out, [out];\nmov.u32 %i, %tid.x;\nmov.u32 %d, 0;\n\
         mad.wide.u32 %in, %i, 4, %in;\nmad.wide.u32 %out, %i, 4, %out;\nld.global.u32 %a, [%in];\n\
         {body}\nDONE:\nst.global.u32 [%out], %d;\nEND:\nret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let machine = Machine::new(config);
    let loaded = machine.load(&module, 0).unwrap();
    let memory = machine.memory();
    let bytes: Vec<u8> = (0..threads as usize).flat_map(|i| input.get(i).copied().unwrap_or(0).to_le_bytes()).collect();
    let from = memory.alloc(0, bytes.len() as u64).unwrap();
    let to = memory.alloc(0, bytes.len() as u64).unwrap();
    memory.write(from, &bytes).unwrap();
    memory.write(to, &vec![0xee; bytes.len()]).unwrap();
    let stream = machine.stream(0).unwrap();
    machine.launch(stream, &loaded, "k", Shape::new(1, threads), &[Arg::from(from), Arg::from(to)]).unwrap();
    machine.synchronize()?;
    let mut read = vec![0; bytes.len()];
    memory.read(to, &mut read).unwrap();
    Ok(read.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect())
}

/// The same in several schedules, which must agree.
fn run(body: &str, threads: u32, input: &[u32]) -> Vec<u32> {
    let mut first = None;
    for seed in 0..8 {
        let got = try_run(body, threads, input, Config { seed, ..Config::default() })
            .unwrap_or_else(|report| panic!("{body}\n{report}"));
        assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{body}: seed {seed}");
    }
    first.unwrap()
}

fn report(body: &str, threads: u32) -> Report {
    try_run(body, threads, &words(), Config::default()).expect_err(body)
}

fn words() -> Vec<u32> {
    (0..32u32).map(|i| (i + 1).wrapping_mul(0x9e37_79b1)).collect()
}

/// Section 9.7.9.6: every mode, distance, clamp and segment, with the predicate.
#[test]
fn shuffles() {
    let input = words();
    for mode in ["up", "down", "bfly", "idx"] {
        for c in [0u32, 31, 7, 0x1800, 0x181f, 0x1c03, 0x1e1f, 0x1f1f, 0x101f, 0xffff_e01f] {
            for b in [0u32, 1, 2, 3, 8, 16, 31, 33] {
                let oracle = |lane: u32| {
                    let (clamp, segment, b) = (c & 31, c >> 8 & 31, b & 31);
                    let most = (lane & segment) | (clamp & !segment & 31);
                    let least = lane & segment;
                    let (j, inside) = match mode {
                        "up" => (lane as i32 - b as i32, lane as i32 - b as i32 >= most as i32),
                        "down" => ((lane + b) as i32, lane + b <= most),
                        "bfly" => ((lane ^ b) as i32, lane ^ b <= most),
                        _ => ((least | (b & !segment)) as i32, least | (b & !segment) <= most),
                    };
                    (if inside { input[j as usize] } else { input[lane as usize] }, inside)
                };
                let body = format!("shfl.sync.{mode}.b32 %d, %a, {b}, {c}, 0xffffffff;");
                let wanted: Vec<u32> = (0..32).map(|lane| oracle(lane).0).collect();
                assert_eq!(run(&body, 32, &input), wanted, "{body}");
                let body = format!("shfl.sync.{mode}.b32 %r0|%p0, %a, {b}, {c}, -1;\nselp.u32 %d, 1, 0, %p0;");
                let wanted: Vec<u32> = (0..32).map(|lane| u32::from(oracle(lane).1)).collect();
                assert_eq!(run(&body, 32, &input), wanted, "{body}");
            }
        }
    }
    // Distance and clamp by lane.
    let body = "xor.b32 %r0, %i, 5;\nshfl.sync.idx.b32 %d, %a, %r0, 31, -1;";
    assert_eq!(run(body, 32, &input), (0..32).map(|i| input[i ^ 5]).collect::<Vec<_>>());
}

/// Votes, in parts of the warp as well (section 9.7.13.9).
#[test]
fn votes() {
    let input = words();
    for (mask, threads) in [(0xffff_ffffu32, 32u32), (0x00ff_ffff, 24), (0xffff_ffff, 20)] {
        for limit in [0u32, 5, 19, 40] {
            let set = format!("setp.lt.u32 %p0, %i, {limit};\n");
            let live = if threads == 32 { u32::MAX } else { (1 << threads) - 1 } & mask;
            let votes = (0..32).filter(|&i| i < limit && live >> i & 1 == 1).fold(0u32, |m, i| m | 1 << i);
            let all = |value: u32| vec![value; threads as usize];
            assert_eq!(run(&format!("{set}vote.sync.ballot.b32 %d, %p0, {mask};"), threads, &input), all(votes));
            assert_eq!(run(&format!("{set}vote.sync.ballot.b32 %d, !%p0, {mask};"), threads, &input), all(live & !votes));
            for (mode, holds) in [("all", votes == live), ("any", votes != 0), ("uni", votes == live || votes == 0)] {
                let body = format!("{set}vote.sync.{mode}.pred %p1, %p0, {mask};\nselp.u32 %d, 1, 0, %p1;");
                assert_eq!(run(&body, threads, &input), all(u32::from(holds)), "{body}");
            }
        }
    }
}

/// Section 9.7.13.10.
#[test]
fn matches() {
    let input: Vec<u32> = (0..32).map(|i| i * i % 7).collect();
    let equal = |i: usize| (0..32).filter(|&j| input[j] == input[i]).fold(0u32, |m, j| m | 1 << j);
    assert_eq!(run("match.any.sync.b32 %d, %a, -1;", 32, &input), (0..32).map(equal).collect::<Vec<_>>());
    // 64 bits: the upper halves count.
    let body = "and.b32 %r0, %i, 1;\nmov.b64 %x0, {%a, %r0};\nmatch.any.sync.b64 %d, %x0, -1;";
    let wanted: Vec<u32> = (0..32).map(|i| equal(i) & if i % 2 == 0 { 0x5555_5555 } else { 0xaaaa_aaaa }).collect();
    assert_eq!(run(body, 32, &input), wanted);
    for (same, value) in [(true, vec![7; 32]), (false, input.clone())] {
        let body = "match.all.sync.b32 %r0|%p0, %a, -1;\nselp.u32 %r1, 5, 0, %p0;\nadd.u32 %d, %r0, %r1;";
        // The mask of all members and true, or 0 and false.
        assert_eq!(run(body, 32, &value), vec![if same { 4 } else { 0 }; 32]);
        assert_eq!(run("match.all.sync.b32 %d, %a, -1;", 32, &value), vec![if same { u32::MAX } else { 0 }; 32]);
        let body = "mov.b64 %x0, {%a, %a};\nmatch.all.sync.b64 _|%p0, %x0, -1;\nselp.u32 %d, 1, 0, %p0;";
        assert_eq!(run(body, 32, &value), vec![u32::from(same); 32]);
    }
}

/// Section 9.7.13.12.
#[test]
fn reductions() {
    let input = words();
    for (mask, threads) in [(0xffff_ffffu32, 32usize), (0xffff_ffff, 13), (0xfff, 12)] {
        let part = &input[..threads];
        let signed = part.iter().map(|&x| x as i32);
        for (op, wanted) in [
            ("add.u32", part.iter().fold(0u32, |s, &x| s.wrapping_add(x))),
            ("add.s32", part.iter().fold(0u32, |s, &x| s.wrapping_add(x))),
            ("min.u32", *part.iter().min().unwrap()),
            ("max.u32", *part.iter().max().unwrap()),
            ("min.s32", signed.clone().min().unwrap() as u32),
            ("max.s32", signed.clone().max().unwrap() as u32),
            ("and.b32", part.iter().fold(u32::MAX, |s, x| s & x)),
            ("or.b32", part.iter().fold(0, |s, x| s | x)),
            ("xor.b32", part.iter().fold(0, |s, x| s ^ x)),
        ] {
            assert_eq!(run(&format!("redux.sync.{op} %d, %a, {mask};"), threads as u32, &input), vec![wanted; threads], "{op}");
        }
    }
}

/// Section 9.7.13.14: one leader, the same for all; `activemask` (section 9.7.13.11) is who executes.
#[test]
fn election() {
    let body = "elect.sync %r0|%p0, -1;\nselp.u32 %r1, 100, 0, %p0;\nadd.u32 %d, %r0, %r1;";
    let mut wanted = vec![0; 32];
    wanted[0] = 100;
    assert_eq!(run(body, 32, &words()), wanted);
    let body = "setp.lt.u32 %p1, %i, 4;\n@%p1 bra DONE;\nelect.sync _|%p0, 0xfffffff0;\nselp.u32 %d, 1, 0, %p0;";
    let mut wanted = vec![0; 32];
    wanted[4] = 1;
    assert_eq!(run(body, 32, &words()), wanted);
    assert_eq!(run("activemask.b32 %d;", 9, &words()), vec![0x1ff; 9]);
    let body = "and.b32 %r0, %i, 1;\nsetp.eq.u32 %p0, %r0, 1;\n@%p0 activemask.b32 %d;";
    assert_eq!(run(body, 32, &words()), (0..32).map(|i| if i % 2 == 1 { 0xaaaa_aaaa } else { 0 }).collect::<Vec<_>>());
}

/// Members that are elsewhere are waited for, wherever they come from; each mask is a party of its own.
#[test]
fn convergence() {
    let input = words();
    // The halves of the warp part, do different things, and meet at the shuffle.
    let body = "setp.lt.u32 %p0, %i, 16;\nmov.u32 %r0, 0;\n@%p0 bra LOW;\nadd.u32 %r0, %r0, 1;\nadd.u32 %r0, %r0, 1;\nbra JOIN;\n\
                LOW:\nadd.u32 %r0, %r0, 5;\nJOIN:\nshfl.sync.bfly.b32 %r1, %a, 16, 31, -1;\nadd.u32 %d, %r1, %r0;";
    let wanted: Vec<u32> = (0..32).map(|i| input[i ^ 16].wrapping_add(if i < 16 { 5 } else { 2 })).collect();
    assert_eq!(run(body, 32, &input), wanted);
    // Each half by itself, at different instructions.
    let body = "setp.lt.u32 %p0, %i, 16;\n@%p0 bra LOW;\nredux.sync.add.u32 %d, %a, 0xffff0000;\nbra DONE;\n\
                LOW:\nredux.sync.max.u32 %d, %a, 0xffff;";
    let low = *input[..16].iter().max().unwrap();
    let high = input[16..].iter().fold(0u32, |s, &x| s.wrapping_add(x));
    assert_eq!(run(body, 32, &input), (0..32).map(|i| if i < 16 { low } else { high }).collect::<Vec<_>>());
    // Tiles of eight execute one instruction together, each with its own mask.
    let body = "and.b32 %r0, %i, 24;\nshl.b32 %r1, 0xff, %r0;\nredux.sync.add.u32 %d, %a, %r1;";
    let sum = |i: usize| input[i / 8 * 8..][..8].iter().fold(0u32, |s, &x| s.wrapping_add(x));
    assert_eq!(run(body, 32, &input), (0..32).map(sum).collect::<Vec<_>>());
    let body = "and.b32 %r0, %i, 24;\nshl.b32 %r1, 0xff, %r0;\nshfl.sync.down.b32 %d, %a, 1, 0x181f, %r1;";
    assert_eq!(run(body, 32, &input), (0..32).map(|i| input[if i % 8 == 7 { i } else { i + 1 }]).collect::<Vec<_>>());
    // Whoever has exited does not count.
    let body = "setp.ge.u32 %p0, %i, 20;\n@%p0 bra END;\nredux.sync.xor.b32 %d, %a, -1;";
    let wanted = input[..20].iter().fold(0, |s, x| s ^ x);
    let got = run(body, 32, &input);
    assert_eq!(got[..20], vec![wanted; 20]);
    assert_eq!(got[20..], [0xeeee_eeee; 12]);
}

/// A thread outside of its own mask, members with different masks, members that never come.
#[test]
fn misuse() {
    for op in [
        "shfl.sync.idx.b32 %d, %a, 0, 31, 0x7fffffff;",
        "vote.sync.ballot.b32 %d, 1, 0x7fffffff;",
        "match.any.sync.b32 %d, %a, 0x7fffffff;",
        "redux.sync.add.u32 %d, %a, 0x7fffffff;",
        "elect.sync %d|%p0, 0x7fffffff;",
    ] {
        let found = report(op, 32);
        assert_eq!(found.kind, Kind::Divergence, "{op}: {found}");
        let text = found.to_string();
        assert!(text.contains("0x7fffffff") && text.contains("lane 31"), "{text}");
    }
    // Lane 3 names everyone, the others leave it out.
    let body = "setp.eq.u32 %p0, %i, 3;\nselp.b32 %r0, 0xffffffff, 0xfffffff7, %p0;\nvote.sync.ballot.b32 %d, 1, %r0;";
    let found = report(body, 32);
    assert_eq!(found.kind, Kind::Divergence);
    assert!(found.to_string().contains("different masks"), "{found}");
    // Half of the members wait at one instruction, the other half at another.
    let body = "setp.lt.u32 %p0, %i, 16;\n@%p0 bra LOW;\nredux.sync.add.u32 %d, %a, -1;\nbra DONE;\nLOW:\nredux.sync.max.u32 %d, %a, -1;";
    assert_eq!(report(body, 32).kind, Kind::Divergence);
    // The guard keeps members away: they reach a barrier instead.
    let body = "setp.lt.u32 %p0, %i, 16;\n@%p0 redux.sync.add.u32 %d, %a, -1;\nbar.sync 0;";
    let found = report(body, 32);
    assert!(matches!(found.kind, Kind::Divergence | Kind::Deadlock), "{found}");
}

/// The value of a thread that does not take part is undefined: using it is reported, reading and dropping it is not.
#[test]
fn values_of_absent_lanes() {
    let input = words();
    let shuffle = "shfl.sync.down.b32 %r0, %a, 16, 31, 0xfffff;\n";
    // Guarded by the source lane, as code that means it does.
    let body = format!("{shuffle}mov.u32 %d, %a;\nadd.u32 %r1, %i, 16;\nsetp.lt.u32 %p0, %r1, 20;\n@%p0 add.u32 %d, %d, %r0;");
    let wanted: Vec<u32> = (0..20).map(|i| input[i].wrapping_add(if i < 4 { input[i + 16] } else { 0 })).collect();
    assert_eq!(run(&body, 20, &input), wanted);
    let found = report(&format!("{shuffle}add.u32 %d, %a, %r0;"), 20);
    assert_eq!(found.kind, Kind::Divergence, "{found}");
    let text = found.to_string();
    assert!(text.contains("read from lane 20") && text.contains("shfl"), "{text}");
    // Lanes outside of the mask, though they exist.
    let body = "setp.ge.u32 %p0, %i, 20;\n@%p0 bra DONE;\nshfl.sync.down.b32 %r0, %a, 16, 31, 0xfffff;\nadd.u32 %d, %a, %r0;";
    assert_eq!(report(body, 32).kind, Kind::Divergence);
    // The clamp keeps lanes from reading beyond: their own value is defined.
    let body = "shfl.sync.down.b32 %r0, %a, 16, 19, 0xfffff;\nadd.u32 %d, %a, %r0;";
    assert_eq!(
        run(body, 20, &input),
        (0..20).map(|i| input[i].wrapping_add(input[if i < 4 { i + 16 } else { i }])).collect::<Vec<_>>()
    );
    // What nothing wrote travels with the shuffle, and no further than the lanes that read it.
    let body = "setp.lt.u32 %p0, %i, 16;\n@%p0 mov.u32 %r1, %a;\nand.b32 %r2, %i, 15;\nshfl.sync.idx.b32 %r0, %r1, %r2, 31, -1;\nmov.u32 %d, %r0;";
    assert_eq!(run(body, 32, &input), (0..32).map(|i| input[i % 16]).collect::<Vec<_>>());
    let body = "setp.lt.u32 %p0, %i, 16;\n@%p0 mov.u32 %r1, %a;\nshfl.sync.bfly.b32 %r0, %r1, 16, 31, -1;\nadd.u32 %d, %r0, 1;";
    assert_eq!(report(body, 32).kind, Kind::UninitializedRegister);
}

/// Whole algorithms: a sum by butterflies, an inclusive scan by the manual's example, both on doubles' halves too.
#[test]
fn algorithms() {
    let input = words();
    let body: String = [16, 8, 4, 2, 1]
        .iter()
        .map(|b| format!("shfl.sync.bfly.b32 %r0, %a, {b}, 31, -1;\nadd.u32 %a, %a, %r0;\n"))
        .collect::<String>()
        + "mov.u32 %d, %a;";
    assert_eq!(run(&body, 32, &input), vec![input.iter().fold(0u32, |s, &x| s.wrapping_add(x)); 32]);
    let body: String = [1, 2, 4, 8, 16]
        .iter()
        .map(|b| format!("shfl.sync.up.b32 %r0|%p0, %a, {b}, 0, -1;\n@%p0 add.u32 %a, %r0, %a;\n"))
        .collect::<String>()
        + "mov.u32 %d, %a;";
    let scan: Vec<u32> = input
        .iter()
        .scan(0u32, |s, &x| {
            *s = s.wrapping_add(x);
            Some(*s)
        })
        .collect();
    assert_eq!(run(&body, 32, &input), scan);
}
