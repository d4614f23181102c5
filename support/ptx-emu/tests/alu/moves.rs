//! `mov` (sections 9.7.9.3 and 9.7.9.4), special registers and addresses; what nothing wrote travels until it is used.

use crate::harness::{Bits, HEAD, Values, check, run, try_run};
use ptx_emu::{Arg, Config, Kind, Machine, Module, Shape};

/// Copies, literals, predicates.
#[test]
fn copies() {
    for (class, bits, types) in [
        ("b16", 16, ["b16", "u16", "s16"].as_slice()),
        ("b32", 32, &["b32", "u32", "s32", "f32"]),
        ("b64", 64, &["b64", "u64", "s64", "f64"]),
    ] {
        let rows = Values::new(80).integers(&[bits], 50);
        for ty in types {
            check(&format!("mov.{ty} %d, %a;"), &[class], class, &rows, |v| v[0]);
        }
    }
    let one = [vec![1]];
    assert_eq!(run("mov.f32 %d, 1.5;", &["b32"], "b32", &one), [0x3fc0_0000]);
    assert_eq!(run("mov.f32 %d, 0d3FF8000000000000;", &["b32"], "b32", &one), [0x3fc0_0000]);
    assert_eq!(run("mov.f64 %d, 0f3FC00000;", &["b32"], "b64", &one), [0x3ff8_0000_0000_0000]);
    assert_eq!(run("mov.b32 %d, 0fBF800000;", &["b32"], "b32", &one), [0xbf80_0000]);
    assert_eq!(run("mov.s16 %d, -2;", &["b32"], "b16", &one), [0xfffe]);
    assert_eq!(run("mov.pred %d, 1;", &["b32"], "pred", &one), [1]);
    assert_eq!(run("mov.pred %d, 0;", &["b32"], "pred", &one), [0]);
}

/// The first element is the least significant.
#[test]
fn vectors() {
    let rows = Values::new(81).integers(&[64, 64], 200);
    check("mov.b64 {%t0, %t1}, %a;\nmov.b64 %d, {%t1, %t0};", &["b64"; 2], "b64", &rows, |v| v[0].rotate_left(32));
    check("mov.b64 {%t0, _}, %a;\nmov.b32 %d, %t0;", &["b64"; 2], "b32", &rows, |v| v[0] & 0xffff_ffff);
    check("mov.b64 {_, %d}, %a;", &["b64"; 2], "b32", &rows, |v| v[0] >> 32);
    check("mov.b64 {%h0, %h1, %h2, %h3}, %a;\nmov.b64 %d, {%h3, %h0, %h1, %h2};", &["b64"; 2], "b64", &rows, |v| {
        v[0].rotate_left(16)
    });
    check("mov.b64 %d, {%t0, 7};\nmov.b64 {%t0, %t1}, %a;\nmov.b64 %d, {%t0, 7};", &["b64"; 2], "b64", &rows, |v| {
        v[0] & 0xffff_ffff | 7 << 32
    });
    check("mov.b128 %x0, {%a, %b};\nmov.b128 %x1, %x0;\nmov.b128 {_, %d}, %x1;", &["b64"; 2], "b64", &rows, |v| v[1]);
    check("mov.b128 %x0, {%a, %b};\nmov.b128 {%d, %w0}, %x0;", &["b64"; 2], "b64", &rows, |v| v[0]);
    let rows = Values::new(82).integers(&[32], 200);
    check("mov.b32 {%h0, %h1}, %a;\nmov.b32 %d, {%h1, %h0};", &["b32"], "b32", &rows, |v| v[0] >> 16 | (v[0] & 0xffff) << 16);
    let bytes = ".reg .b8 %y<4>;\nmov.b32 {%y0, %y1, %y2, %y3}, %a;\nmov.b32 %d, {%y3, %y2, %y1, %y0};";
    check(bytes, &["b32"], "b32", &rows, |v| u64::from((v[0] as u32).swap_bytes()));
    let bytes = ".reg .b8 %y<2>;\nmov.b16 {%y0, %y1}, %a;\nmov.b16 %d, {%y1, %y0};";
    check(bytes, &["b16"], "b16", &rows, |v| u64::from((v[0] as u16).swap_bytes()));
}

/// Under a guard the other lanes keep what they had.
#[test]
fn guards() {
    let rows = Values::new(83).integers(&[32, 32], 200);
    check("mov.b32 %d, %a;\n@%b add.s32 %d, %d, 1;", &["b32", "pred"], "b32", &rows, |v| (v[0] + (v[1] & 1)) & 0xffff_ffff);
    check("mov.b32 %d, %a;\n@!%b mov.b32 %d, 5;", &["b32", "pred"], "b32", &rows, |v| if v[1] & 1 == 1 { v[0] } else { 5 });
    check("mov.pred %d, 0;\n@%b setp.ne.u32 %d, %a, %a;\n@!%b setp.eq.u32 %d, %a, %a;", &["b32", "pred"], "pred", &rows, |v| {
        u64::from(v[1] & 1 == 0)
    });
}

/// Special registers (section 10) of a launch of 2 x 3 blocks of 8 x 3 x 2 threads, as the threads see them.
#[test]
fn special_registers() {
    let names = [
        "%tid.x",
        "%tid.y",
        "%tid.z",
        "%ntid.x",
        "%ntid.y",
        "%ntid.z",
        "%ctaid.x",
        "%ctaid.y",
        "%ctaid.z",
        "%nctaid.x",
        "%nctaid.y",
        "%nctaid.z",
        "%laneid",
        "%warpid",
        "%lanemask_eq",
        "%lanemask_le",
        "%lanemask_lt",
        "%lanemask_ge",
        "%lanemask_gt",
    ];
    let mut text = format!("{HEAD}.entry k(.param .u64 out)\n{{\n.reg .b32 %r<9>;\n.reg .b64 %d<3>;\nld.param.u64 %d0, [out];\n");
    // The thread's number in the grid.
    text += "mov.u32 %r0, %ctaid.y;\nmov.u32 %r1, %nctaid.x;\nmov.u32 %r2, %ctaid.x;\nmad.lo.u32 %r0, %r0, %r1, %r2;\n\
             mov.u32 %r1, %tid.z;\nmov.u32 %r2, %tid.y;\nmad.lo.u32 %r1, %r1, 3, %r2;\nmov.u32 %r2, %tid.x;\nmad.lo.u32 %r1, %r1, 8, %r2;\n\
             mad.lo.u32 %r0, %r0, 48, %r1;\n";
    text += &format!("mad.wide.u32 %d0, %r0, {}, %d0;\n", 4 * names.len());
    for (i, name) in names.iter().enumerate() {
        text += &format!("mov.u32 %r3, {name};\nst.global.u32 [%d0+{}], %r3;\n", 4 * i);
    }
    text += "ret;\n}\n";
    let machine = Machine::new(Config::default());
    let loaded = machine.load(&Module::parse(&text).unwrap(), 0).unwrap();
    let threads = 6 * 48;
    let out = machine.memory().alloc(0, (4 * names.len() * threads) as u64).unwrap();
    let shape = Shape { grid: [2, 3, 1], block: [8, 3, 2], ..Shape::new(1, 1) };
    machine.launch(machine.stream(0).unwrap(), &loaded, "k", shape, &[Arg::from(out)]).unwrap();
    machine.synchronize().unwrap();
    let mut bytes = vec![0; 4 * names.len() * threads];
    machine.memory().read(out, &mut bytes).unwrap();
    let words: Vec<u32> = bytes.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
    for thread in 0..threads {
        let (block, inside) = (thread as u32 / 48, thread as u32 % 48);
        let lane = inside % 32;
        let wanted = [
            inside % 8,
            inside / 8 % 3,
            inside / 24,
            8,
            3,
            2,
            block % 2,
            block / 2,
            0,
            2,
            3,
            1,
            lane,
            inside / 32,
            1 << lane,
            ((1u64 << (lane + 1)) - 1) as u32,
            (1 << lane) - 1,
            !((1 << lane) - 1),
            !((1u64 << (lane + 1)) - 1) as u32,
        ];
        assert_eq!(words[thread * names.len()..][..names.len()], wanted, "thread {thread}");
    }
}

/// Addresses of shared variables are offsets of 32 or 64 bits; an offset may be added.
#[test]
fn addresses() {
    let body = ".shared .align 8 .b8 s[64];\nmov.u32 %t0, s;\nmov.u64 %w0, s+8;\ncvt.u32.u64 %t1, %w0;\nsub.u32 %d, %t1, %t0;";
    assert_eq!(run(body, &["b32"], "b32", &[vec![0]]), [8]);
    let body = ".shared .align 8 .b8 s[64];\nmov.u32 %t0, s+16;\nst.shared.u32 [%t0], %a;\nld.shared.u32 %d, [s+16];";
    assert_eq!(run(body, &["b32"], "b32", &[vec![77]]), [77]);
    let body = ".local .align 8 .b8 l[64];\nmov.u64 %w0, l;\nst.local.u32 [%w0+4], %a;\nld.local.u32 %d, [l+4];";
    assert_eq!(run(body, &["b32"], "b32", &[vec![78]]), [78]);
}

/// Moving, selecting and packing what nothing wrote is no error; computing with it is.
#[test]
fn unwritten_values() {
    let one: &[Vec<Bits>] = &[vec![1]];
    let fine = [
        "mov.b32 %t1, %t9;\nmov.b32 %d, %a;",
        "mov.b64 %w0, {%a, %t9};\nmov.b64 {%d, _}, %w0;\nmov.b32 %d, %a;",
        "setp.eq.u32 %p, %a, 1;\nselp.b32 %t1, %a, %t9, %p;\nmov.b32 %d, %a;",
        "cvt.u64.u32 %w0, %t9;\nmov.b32 %d, %a;",
        "prmt.b32 %t1, %a, %t9, 0x5410;\nmov.b32 %d, %a;",
    ];
    for body in fine {
        assert_eq!(run(body, &["b32"], "b32", one), [1], "{body}");
    }
    for body in [
        "add.s32 %d, %a, %t9;",
        "mov.b32 %t1, %t9;\nadd.s32 %d, %a, %t1;",
        "cvt.u64.u32 %w0, %t9;\nadd.s64 %w0, %w0, 1;\ncvt.u32.u64 %d, %w0;",
        "setp.eq.u32 %p, %t9, 1;\nselp.b32 %d, 1, 2, %p;",
        "mov.b64 %w0, {%a, %t9};\nshr.u64 %w0, %w0, 3;\ncvt.u32.u64 %d, %w0;",
        "cvt.rn.f32.s32 %d, %t9;",
        "popc.b32 %d, %t9;",
        "mad.lo.u32 %d, %a, %a, %t9;",
        "lop3.b32 %d, %a, %t9, %a, 0x80;",
    ] {
        let report = try_run(body, &["b32"], "b32", one, Config::default()).expect_err(body);
        assert_eq!(report.kind, Kind::UninitializedRegister, "{body}: {report}");
    }
}
