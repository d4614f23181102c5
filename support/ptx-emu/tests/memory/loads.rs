//! `ld` and `st` of every type, width and vector, in every space.

use super::{Numbers, Run, config, module, run};
use ptx_emu::Shape;

/// Type, bytes, whether it sign-extends.
const TYPES: [(&str, usize, bool); 15] = [
    ("b8", 1, false),
    ("u8", 1, false),
    ("s8", 1, true),
    ("b16", 2, false),
    ("u16", 2, false),
    ("s16", 2, true),
    ("b32", 4, false),
    ("u32", 4, false),
    ("s32", 4, true),
    ("f32", 4, false),
    ("b64", 8, false),
    ("u64", 8, false),
    ("s64", 8, true),
    ("f64", 8, false),
    ("b128", 16, false),
];

/// A space: how the 16 bytes at `%rd3` of each thread get there, and the address operand (`+OFF` is added to it).
struct Space {
    name: &'static str,
    setup: &'static str,
    address: &'static str,
}

const MOVE: &str = "ld.global.v2.u64 {%rd10, %rd11}, [%rd3];";

fn spaces(writable: bool) -> Vec<Space> {
    let mut all = vec![
        Space { name: ".global", setup: "", address: "%rd3" },
        Space { name: "", setup: "", address: "%rd3" },
        Space {
            name: ".shared",
            setup: "mov.u32 %r2, sh; mad.lo.u32 %r3, %r1, 16, %r2; st.shared.v2.u64 [%r3], {%rd10, %rd11};",
            address: "%r3",
        },
        Space {
            name: ".shared::cluster",
            setup: "mov.u32 %r2, sh; mad.lo.u32 %r3, %r1, 16, %r2; st.shared.v2.u64 [%r3], {%rd10, %rd11};
                    mapa.shared::cluster.u32 %r4, %r3, 0;",
            address: "%r4",
        },
        Space {
            name: "",
            setup: "mov.u64 %rd12, sh; mad.wide.u32 %rd12, %r1, 16, %rd12; cvta.shared.u64 %rd13, %rd12;
                    st.v2.u64 [%rd13], {%rd10, %rd11};",
            address: "%rd13",
        },
        Space { name: ".local", setup: "st.local.v2.u64 [lo+16], {%rd10, %rd11};", address: "lo+16" },
        Space { name: "", setup: "cvta.local.u64 %rd13, lo; st.v2.u64 [%rd13+16], {%rd10, %rd11};", address: "%rd13+16" },
    ];
    if !writable {
        all.extend([
            Space { name: ".global.nc", setup: "", address: "%rd3" },
            Space { name: ".volatile", setup: "", address: "%rd3" },
            Space { name: ".acquire.gpu", setup: "", address: "%rd3" },
            Space { name: ".param", setup: "mov.u64 %rd12, blob; mad.wide.u32 %rd12, %r1, 16, %rd12;", address: "%rd12" },
            Space { name: "", setup: "cvta.param.u64 %rd12, blob; mad.wide.u32 %rd12, %r1, 16, %rd12;", address: "%rd12" },
            Space { name: ".const", setup: "mov.u64 %rd12, cv; mad.wide.u32 %rd12, %r1, 16, %rd12;", address: "%rd12" },
            Space { name: "", setup: "cvta.const.u64 %rd12, cv; mad.wide.u32 %rd12, %r1, 16, %rd12;", address: "%rd12" },
        ]);
    }
    all
}

fn offset(address: &str, more: usize) -> String {
    match address.split_once('+') {
        Some((base, offset)) => format!("{base}+{}", offset.parse::<usize>().unwrap() + more),
        None => format!("{address}+{more}"),
    }
}

/// Constants of the module: the same bytes as the input.
fn constants(input: &[u8]) -> String {
    let values: Vec<String> = input.iter().map(u8::to_string).collect();
    format!(".const .align 16 .b8 cv[{}] = {{{}}};", input.len(), values.join(", "))
}

fn extend(bytes: &[u8], signed: bool, to: usize) -> Vec<u8> {
    let fill = if signed && bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = bytes.to_vec();
    wide.resize(to, fill);
    wide
}

#[test]
fn loads_of_every_type_into_every_register_in_every_space() {
    let input = Numbers(1).bytes(512);
    let globals = constants(&input);
    for space in spaces(false) {
        for (ty, bytes, signed) in TYPES {
            if ty == "f64" && space.name == ".volatile" {
                continue; // the same as u64
            }
            for (register, store, width) in [("%h9", "b16", 2), ("%r9", "b32", 4), ("%rd9", "b64", 8), ("%q0", "b128", 16)] {
                // 8-bit values fit 16-bit registers; 128-bit registers are for b128 only.
                if width < bytes || (width == 16) != (bytes == 16) {
                    continue;
                }
                for at in [0, 16 - bytes] {
                    let Space { name, setup, address } = space;
                    let address = offset(address, at);
                    let body =
                        format!("{MOVE}\n{setup}\nld{name}.{ty} {register}, [{address}];\nst.global.{store} [%rd4], {register};");
                    let output = run(&globals, &body, &input, 32);
                    for thread in 0..32 {
                        let from = &input[16 * thread + at..][..bytes];
                        let expected = extend(from, signed, width);
                        let got = &output[16 * thread..][..width];
                        assert_eq!(got, expected, "thread {thread} of\n{body}");
                        assert!(output[16 * thread + width..16 * (thread + 1)].iter().all(|&b| b == 0xee), "{body}");
                    }
                }
            }
        }
    }
}

#[test]
fn stores_write_the_low_bytes_and_no_others() {
    let input = Numbers(2).bytes(512);
    for space in spaces(true) {
        for (ty, bytes, _) in TYPES {
            for (register, width, load) in [
                ("%h9", 2, "ld.global.b16 %h9, [%rd3];"),
                ("%r9", 4, "ld.global.b32 %r9, [%rd3];"),
                ("%rd9", 8, "ld.global.b64 %rd9, [%rd3];"),
                ("%q0", 16, "ld.global.b128 %q0, [%rd3];"),
            ] {
                if width < bytes || (width == 16) != (bytes == 16) {
                    continue;
                }
                for at in [0, 16 - bytes] {
                    let Space { name, setup, address } = space;
                    let address = offset(address, at);
                    // The value is the thread's own input; where it goes holds that input turned round.
                    let body = format!(
                        "ld.global.v2.u64 {{%rd10, %rd11}}, [%rd3];\nnot.b64 %rd10, %rd10;\nnot.b64 %rd11, %rd11;\n{load}\n\
                         st.global.v2.u64 [%rd3], {{%rd10, %rd11}};\n{setup}\nst{name}.{ty} [{address}], {register};\n\
                         ld{name}.b128 %q2, [{}];\nst.global.b128 [%rd4], %q2;",
                        space.address
                    );
                    let output = run("", &body, &input, 32);
                    for thread in 0..32 {
                        let own = &input[16 * thread..][..16];
                        let mut expected: Vec<u8> = own.iter().map(|b| !b).collect();
                        expected[at..at + bytes].copy_from_slice(&own[..bytes]);
                        assert_eq!(&output[16 * thread..][..16], expected, "thread {thread} of\n{body}");
                    }
                }
            }
        }
    }
}

#[test]
fn vectors_of_every_width() {
    let input = Numbers(3).bytes(512);
    let globals = constants(&input);
    for space in spaces(false) {
        for (ty, bytes, class) in
            [("u8", 1, "%h"), ("b8", 1, "%r"), ("s16", 2, "%h"), ("f32", 4, "%f"), ("u32", 4, "%r"), ("b64", 8, "%rd")]
        {
            for n in [2, 4, 8] {
                if n * bytes > 16 || (n == 8 && space.name.contains("acquire")) {
                    continue;
                }
                let first = if class.starts_with("%r") { 24 } else { 0 };
                let list: Vec<String> = (first..first + n).map(|i| format!("{class}{i}")).collect();
                let Space { name, setup, address } = space;
                let list = list.join(", ");
                let body = format!(
                    "{MOVE}\n{setup}\nld{name}.v{n}.{ty} {{{list}}}, [{address}];\nst.global.v{n}.{ty} [%rd4], {{{list}}};"
                );
                let output = run(&globals, &body, &input, 32);
                for thread in 0..32 {
                    let got = &output[16 * thread..][..16];
                    assert_eq!(&got[..n * bytes], &input[16 * thread..][..n * bytes], "thread {thread} of\n{body}");
                    assert!(got[n * bytes..].iter().all(|&b| b == 0xee), "{body}");
                }
            }
        }
    }
}

#[test]
fn sinks_of_vectors_are_left_out() {
    let input = Numbers(4).bytes(512);
    let body = "mov.u32 %r2, 7; mov.u32 %r3, 9; ld.global.v4.u32 {_, %r2, _, %r4}, [%rd3];
                st.global.v4.u32 [%rd4], {%r2, %r3, %r4, %r3};";
    let output = run("", body, &input, 32);
    for thread in 0..32 {
        let from = &input[16 * thread..][..16];
        let expected = [&from[4..8], &[9, 0, 0, 0], &from[12..], &[9, 0, 0, 0]].concat();
        assert_eq!(&output[16 * thread..][..16], expected);
    }
}

#[test]
fn only_executing_lanes_access_memory() {
    // The address of odd lanes is garbage, for loads and for stores.
    let input = Numbers(5).bytes(512);
    for ty in ["u8", "u32", "b64", "b128"] {
        let register = if ty == "b128" { "%q1" } else { "%rd9" };
        let body = format!(
            "and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 0; selp.b64 %rd20, %rd3, 12345, %p1; selp.b64 %rd21, %rd4, -1, %p1;
             @%p1 ld.global.{ty} {register}, [%rd20];
             @%p1 st.global.{ty} [%rd21], {register};"
        );
        let bytes: usize = ty[1..].parse::<usize>().unwrap() / 8;
        let output = run("", &body, &input, 32);
        for thread in 0..32 {
            let got = &output[16 * thread..][..16];
            let mut expected = vec![0xee; 16];
            if thread % 2 == 0 {
                expected[..bytes].copy_from_slice(&input[16 * thread..][..bytes]);
            }
            assert_eq!(got, expected, "thread {thread} of {ty}");
        }
    }
}

#[test]
fn lanes_in_different_spaces_and_allocations_at_once() {
    // Lane i mod 5: global in, global out, shared, local, parameters, through one generic load.
    let input = Numbers(6).bytes(512);
    let body = "
        mov.u32 %r2, sh; mad.lo.u32 %r3, %r1, 16, %r2; st.shared.u32 [%r3], 111;
        st.local.u32 [lo], 222;
        st.global.u32 [%rd4], 333;
        mov.u64 %rd10, sh; mad.wide.u32 %rd10, %r1, 16, %rd10; cvta.shared.u64 %rd10, %rd10;
        cvta.local.u64 %rd11, lo;
        cvta.param.u64 %rd12, blob; mad.wide.u32 %rd12, %r1, 16, %rd12;
        rem.u32 %r4, %r1, 5;
        mov.u64 %rd20, %rd3;
        setp.eq.u32 %p1, %r4, 1; @%p1 mov.u64 %rd20, %rd4;
        setp.eq.u32 %p1, %r4, 2; @%p1 mov.u64 %rd20, %rd10;
        setp.eq.u32 %p1, %r4, 3; @%p1 mov.u64 %rd20, %rd11;
        setp.eq.u32 %p1, %r4, 4; @%p1 mov.u64 %rd20, %rd12;
        ld.u32 %r5, [%rd20];
        st.global.u32 [%rd4], %r5;
        setp.ne.u32 %p1, %r4, 4; add.u32 %r6, %r5, 1;
        @%p1 st.u32 [%rd20], %r6;
        ld.u32 %r7, [%rd20];
        st.global.u32 [%rd4+4], %r7;";
    let output = run("", body, &input, 32);
    for thread in 0..32 {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let own = word(&input[16 * thread..]);
        let before = match thread % 5 {
            0 | 4 => own,
            1 => 333,
            2 => 111,
            _ => 222,
        };
        let after = if thread % 5 == 4 { before } else { before.wrapping_add(1) };
        // Lanes of kind 1 store to their own output, before the first word of it is written with what was loaded.
        let first = if thread % 5 == 1 { after } else { before };
        assert_eq!(word(&output[16 * thread..]), first, "thread {thread}");
        assert_eq!(word(&output[16 * thread + 4..]), after, "thread {thread}");
    }
}

#[test]
fn variables_of_the_module_have_their_values() {
    let globals = "
        .global .align 4 .u32 table[4] = {10, 20, 30, 40};
        .global .align 8 .u64 pointer = generic(table);
        .const .align 4 .f32 half = 0f3F000000;
        .global .align 2 .u16 zeros[3];";
    let body = "
        ld.global.u64 %rd10, [pointer]; ld.global.u32 %r2, [%rd10+8]; ld.const.f32 %f1, [half]; ld.global.u16 %h1, [zeros+2];
        st.global.u32 [%rd4], %r2; st.global.f32 [%rd4+4], %f1; st.global.u16 [%rd4+8], %h1;
        ld.global.u32 %r3, [table+12]; st.global.u32 [%rd4+12], %r3;";
    let output = run(globals, body, &[0; 512], 1);
    assert_eq!(output, [30, 0, 0, 0, 0, 0, 0, 0x3f, 0, 0, 0xee, 0xee, 40, 0, 0, 0]);
}

#[test]
fn many_blocks_and_warps_write_their_own() {
    let run = Run::new(config(), &[0; 16], 4 * 7 * 96);
    let body = "mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.u32 %r4, %r2, %r3, %r1; mad.wide.u32 %rd10, %r4, 4, %rd2;
                st.global.u32 [%rd10], %r4;";
    run.launch(&module("", body), Shape::new(7, 96), 0, &[]).unwrap();
    let words: Vec<u32> = run.output(4 * 7 * 96).chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
    assert!(words.iter().enumerate().all(|(i, &w)| w == i as u32));
}
