//! Accesses that must be reported, and as what.

use super::{Run, config, fails, module, run};
use ptx_emu::{Checks, Config, Kind, Machine, Module, Report, Shape};

#[test]
fn misaligned_accesses_of_every_size() {
    for space in ["global", "shared", "local", "param", ""] {
        let (register, setup) = match space {
            "global" => ("%rd10", "mov.u64 %rd10, %rd1;"),
            "" => ("%rd10", "cvta.shared.u64 %rd10, sh;"),
            "shared" => ("%r10", "mov.u32 %r10, sh;"),
            "local" => ("%r10", "mov.u32 %r10, lo;"),
            _ => ("%rd10", "mov.u64 %rd10, blob;"),
        };
        let dot = if space.is_empty() { "" } else { "." };
        for (access, bytes) in [
            ("b16 %h1", 2),
            ("u32 %r9", 4),
            ("f64 %rd9", 8),
            ("b128 %q1", 16),
            ("v2.u16 {%h1, %h2}", 4),
            ("v4.u8 {%h1, %h2, %h3, %h4}", 4),
            ("v4.f32 {%r6, %r7, %r8, %r9}", 16),
            ("v2.b64 {%rd8, %rd9}", 16),
        ] {
            for off in [1, bytes / 2, bytes - 1] {
                let (ty, values) = access.split_once(' ').unwrap();
                let body = format!("{setup} ld{dot}{space}.{ty} {values}, [{register}+{off}];");
                fails("", &body, Kind::Misaligned, &format!("not a multiple of {bytes}"));
                if space != "param" {
                    let body = body
                        .replace("ld", "st")
                        .replace(&format!("{values}, [{register}+{off}]"), &format!("[{register}+{off}], {values}"));
                    let zero: String = (1..5)
                        .map(|i| format!("mov.b16 %h{i}, 0;"))
                        .chain((6..10).map(|i| format!("mov.u32 %r{i}, 0;")))
                        .collect();
                    let zero = format!("{zero} mov.u64 %rd8, 0; mov.u64 %rd9, 0; mov.b128 %q1, {{%rd8, %rd9}};");
                    fails("", &format!("{zero} {body}"), Kind::Misaligned, &format!("not a multiple of {bytes}"));
                }
            }
        }
    }
    fails("", "atom.global.add.u32 %r9, [%rd1+2], 1;", Kind::Misaligned, "atomic operation on 4 bytes");
    fails("", "red.shared.add.u64 [sh+4], 1;", Kind::Misaligned, "atomic operation on 8 bytes");
}

/// A kernel that accesses `bytes` bytes at `in + n` in lane `lane`, the others at `in`.
fn access(run: &Run, lane: u32, op: &str, n: u64) -> Result<(), Report> {
    let body =
        format!("setp.eq.u32 %p1, %r1, {lane}; selp.b64 %rd10, %rd5, 0, %p1; add.s64 %rd10, %rd10, %rd1; mov.u32 %r9, 1; {op}");
    run.launch(&module("", &body), Shape::new(1, 32), n, &[])
}

#[test]
fn both_ends_of_an_allocation() {
    for size in [64u64, 100, 4096, 65_536] {
        for (op, bytes) in [
            ("ld.global.u8 %r9, [%rd10];", 1),
            ("st.global.u32 [%rd10], %r9;", 4),
            ("ld.u32 %r9, [%rd10];", 4),
            ("atom.global.add.u32 %r9, [%rd10], 1;", 4),
            ("ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%rd10];", 16),
        ] {
            let last = (size - bytes) / bytes * bytes;
            for lane in [0, 17, 31] {
                let new = || Run::new(config(), &vec![0; size as usize], 16);
                access(&new(), lane, op, last).unwrap();
                for outside in [last + bytes, 0u64.wrapping_sub(bytes)] {
                    let run = new();
                    let report = access(&run, lane, op, outside).unwrap_err();
                    assert_eq!(report.kind, Kind::OutOfBounds, "{report}");
                    assert_eq!(report.thread.unwrap().thread[0], lane);
                    let side = if outside > size { "bytes before" } else { "the end of" };
                    let text = &report.message;
                    assert!(
                        text.contains(side) && text.contains(&format!("allocation of {size} bytes at {:#x}", run.input)),
                        "{text}"
                    );
                    assert!(text.contains("on device 0"), "{text}");
                }
            }
        }
    }
}

#[test]
fn null_freed_and_wild_pointers() {
    fails("", "ld.global.u32 %r9, [0];", Kind::OutOfBounds, "load of 4 bytes at 0x0: a null pointer");
    fails("", "mov.u64 %rd10, 64; st.u64 [%rd10], %rd10;", Kind::OutOfBounds, "store of 8 bytes at 0x40: a null pointer");
    fails("", "ld.global.u32 %r9, [0x700000000000];", Kind::OutOfBounds, "nowhere near an allocation");
    fails("", "mov.u64 %rd10, -8; ld.global.u64 %rd9, [%rd10];", Kind::OutOfBounds, "at 0xfffffffffffffff8");
    fails("", "cvta.shared.u64 %rd10, sh; ld.global.u32 %r9, [%rd10];", Kind::OutOfBounds, "a generic address of shared memory");
    fails("", "cvta.local.u64 %rd10, lo; st.global.u32 [%rd10], %r1;", Kind::OutOfBounds, "a generic address of local memory");
    fails(
        "",
        "cvta.param.u64 %rd10, blob; ld.global.u32 %r9, [%rd10];",
        Kind::OutOfBounds,
        "a generic address of a kernel parameter",
    );
    let run = Run::new(config(), &[0; 100], 16);
    run.machine.memory().free(run.input).unwrap();
    let report = access(&run, 3, "ld.global.u8 %r9, [%rd10];", 7).unwrap_err();
    assert_eq!(report.kind, Kind::OutOfBounds);
    assert!(report.message.contains("byte 0 of an allocation of 100 bytes"), "{report}");
    assert!(report.message.contains("that was freed"), "{report}");
    assert_eq!(report.site.as_ref().unwrap().ptx_line, report_line());
}

/// The line of the body in a module without global variables.
fn report_line() -> u32 {
    let text = module("", "THE BODY");
    text.lines().position(|l| l == "THE BODY").unwrap() as u32 + 1
}

#[test]
fn memory_of_another_device_wants_peer_access() {
    let text = module("", "ld.global.u32 %r2, [%rd1]; add.u32 %r2, %r2, 1; st.global.u32 [%rd2], %r2;");
    let kernel = Module::parse(&text).unwrap();
    let attempt = |enable: Option<(u32, u32)>| {
        let machine = Machine::new(Config { devices: 2, ..config() });
        let memory = machine.memory();
        let (own, other) = (memory.alloc(1, 64).unwrap(), memory.alloc(0, 64).unwrap());
        memory.write(other, &[5, 0, 0, 0]).unwrap();
        if let Some((from, to)) = enable {
            memory.enable_peer(from, to).unwrap();
        }
        let loaded = machine.load(&kernel, 1).unwrap();
        let stream = machine.stream(1).unwrap();
        let args = [other.into(), own.into(), 0u64.into(), ptx_emu::Arg(vec![0; 512])];
        machine.launch(stream, &loaded, "k", Shape::new(1, 1), &args).unwrap();
        machine.synchronize()?;
        let mut back = [0; 4];
        memory.read(own, &mut back).unwrap();
        Ok::<_, Report>(back)
    };
    assert_eq!(attempt(Some((1, 0))).unwrap(), [6, 0, 0, 0]);
    for none in [None, Some((0, 1))] {
        let report = attempt(none).unwrap_err();
        assert_eq!(report.kind, Kind::OutOfBounds);
        assert!(report.message.contains("on device 0; device 1 has no peer access to it"), "{report}");
    }
}

#[test]
fn shared_memory_ends_where_the_launch_says() {
    // 1024 bytes of static shared memory, which begin at 1024.
    for (op, message) in [
        ("ld.shared.u32 %r9, [sh+1024];", "load of 4 bytes at shared address 0x800"),
        ("st.shared.v4.u32 [sh+1024], {%r1, %r1, %r1, %r1};", "store of 16 bytes"),
        ("ld.shared.u8 %r9, [sh+-1];", "shared address 0x3ff"),
        ("mov.u32 %r9, 0; st.shared.u32 [sh], %r9; st.shared.u32 [%r9], %r9;", "the addresses 0x400 to 0x800"),
        ("atom.shared.add.u32 %r9, [sh+1024], 1;", "atomic operation on 4 bytes at shared address 0x800"),
        ("cvta.shared.u64 %rd10, sh; st.u32 [%rd10+1024], %r1;", "shared address 0x800"),
        ("mov.u64 %rd10, sh; add.s64 %rd10, %rd10, 0x100000000; ld.shared.u32 %r9, [%rd10];", ""),
        ("cvta.to.shared.u64 %rd10, %rd1; cvt.u32.u64 %r9, %rd10; ld.shared.u32 %r8, [%r9];", ""),
    ] {
        fails("", op, Kind::OutOfBounds, message);
    }
    // Dynamic shared memory moves the end.
    let globals = ".extern .shared .align 16 .b8 more[];";
    let body = "st.shared.u32 [more+96], 5; st.shared.u32 [sh+1020], 6;";
    let run = Run::new(config(), &[0; 16], 16);
    run.launch(&module(globals, body), Shape::new(1, 32).shared(100), 0, &[]).unwrap();
    let report = run.launch(&module(globals, body), Shape::new(1, 32).shared(99), 0, &[]).unwrap_err();
    assert_eq!(report.kind, Kind::OutOfBounds);
    assert!(report.message.contains("0x400 to 0x863"), "{report}");
}

#[test]
fn local_memory_ends_with_the_variables() {
    fails("", "ld.local.u32 %r9, [lo+64];", Kind::OutOfBounds, "the variables of the thread end at 0x40");
    fails("", "st.local.u8 [lo+-1], %r1;", Kind::OutOfBounds, "store of 1 bytes at local address 0xffffffffffffffff");
    fails("", "cvta.local.u64 %rd10, lo; st.u64 [%rd10+64], %rd10;", Kind::OutOfBounds, "local address 0x40");
    // A pointer to a variable of a function that has returned.
    let function = "
        .func (.param .u64 result) leak() {
            .reg .u64 %rd<2>; .local .align 8 .u64 mine; cvta.local.u64 %rd1, mine; st.u64 [%rd1], %rd1; st.param.u64 [result], %rd1; ret; }";
    let body = "{ .param .u64 out; call (out), leak, (); ld.param.u64 %rd10, [out]; } ld.u64 %rd11, [%rd10];";
    fails(function, body, Kind::OutOfBounds, "the variables of the thread end at");
}

#[test]
fn parameters_and_constants_are_only_read() {
    fails("", "cvta.param.u64 %rd10, blob; st.u32 [%rd10], %r1;", Kind::OutOfBounds, "parameters cannot be written");
    fails("", "cvta.param.u64 %rd10, blob; ld.u32 %r9, [%rd10+512];", Kind::OutOfBounds, "bytes of parameters");
    let globals = ".const .align 4 .u32 cv = 7;\n.global .align 4 .u32 gv = 7;";
    fails(globals, "cvta.const.u64 %rd10, cv; st.u32 [%rd10], %r1;", Kind::OutOfBounds, "constants cannot be written: byte 0");
    fails(globals, "mov.u64 %rd10, cv; atom.add.u32 %r9, [%rd10], 1;", Kind::OutOfBounds, "(cv)");
    fails(
        globals,
        "mov.u64 %rd10, gv; ld.const.u32 %r9, [%rd10];",
        Kind::OutOfBounds,
        "not a constant: byte 0 of the allocation of 4 bytes",
    );
    fails(globals, "ld.global.u32 %r9, [gv+4];", Kind::OutOfBounds, "(gv) on device 0");
    for op in ["atom.add.u32 %r9, [%rd10], 1;", "red.add.u32 [%rd10], 1;"] {
        fails("", &format!("cvta.local.u64 %rd10, lo; {op}"), Kind::IllegalOperand, "on local memory");
        fails("", &format!("cvta.param.u64 %rd10, blob; {op}"), Kind::IllegalOperand, "on kernel parameters");
    }
    let vector = "mov.f32 %f1, 0f00000000; cvta.shared.u64 %rd10, sh; atom.add.v2.f32 {%f2, %f3}, [%rd10], {%f1, %f1};";
    fails("", vector, Kind::IllegalOperand, "on shared memory as a vector");
}

#[test]
fn bytes_that_nothing_wrote() {
    // `out` of 512 bytes, of which the host has written all but some.
    let attempt = |body: &str, undefined: std::ops::Range<u64>, checks: Checks| {
        let run = Run::new(Config { checks, ..config() }, &[0; 16], 512);
        run.machine.memory().undefine(run.output + undefined.start, undefined.end - undefined.start).unwrap();
        run.launch(&module("", body), Shape::new(1, 32), 0, &[]).map(|()| run.output)
    };
    let checked = Checks::ALL;
    for (body, lane) in [
        ("ld.global.u32 %r2, [%rd4];", 6),
        ("ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd4];", 6),
        ("ld.u16 %h1, [%rd4+2];", 6),
        ("ld.global.nc.b128 %q1, [%rd4];", 6),
        ("atom.global.add.u32 %r2, [%rd4], 1;", 6),
        ("red.add.u32 [%rd4], 1;", 6),
        ("shl.b32 %r3, %r1, 2; cvt.u64.u32 %rd10, %r3; add.s64 %rd10, %rd10, %rd2; ld.global.u32 %r2, [%rd10];", 24),
    ] {
        let report = attempt(body, 98..99, checked).unwrap_err();
        assert_eq!(report.kind, Kind::UninitializedMemory, "{report}");
        assert_eq!(report.thread.unwrap().thread[0], lane, "{report}");
        assert!(report.message.contains("byte 98 of the allocation of 512 bytes"), "{report}");
        attempt(body, 98..98, checked).unwrap();
        attempt(body, 98..99, Checks::NONE).unwrap();
    }
    // What is not used, or was written first, is no matter.
    attempt("ld.global.v4.u32 {%r2, _, %r4, %r5}, [%rd4];", 100..104, checked).unwrap();
    attempt("ld.global.u8 %h1, [%rd4+1];", 98..99, checked).unwrap();
    attempt("st.global.u8 [%rd4+2], %r1; ld.global.u32 %r2, [%rd4];", 98..99, checked).unwrap();
    attempt("st.global.v4.u32 [%rd4], {%r1, %r1, %r1, %r1}; ld.global.u32 %r2, [%rd4];", 0..512, checked).unwrap();
    attempt("setp.lt.u32 %p1, %r1, 31; @%p1 st.global.u32 [%rd4], %r1; @%p1 ld.global.u32 %r2, [%rd4];", 0..512, checked)
        .unwrap();
    let partly = "setp.lt.u32 %p1, %r1, 31; @%p1 st.global.u32 [%rd4], %r1; ld.global.u32 %r2, [%rd4];";
    assert_eq!(attempt(partly, 0..512, checked).unwrap_err().thread.unwrap().thread[0], 31);
}

#[test]
fn shared_bytes_that_nothing_wrote() {
    let store = "mov.u32 %r2, sh; mad.lo.u32 %r2, %r1, 4, %r2; st.shared.u32 [%r2], %r1;";
    run("", &format!("{store} ld.shared.u32 %r3, [%r2];"), &[0; 512], 32);
    let message = "load of 4 bytes at shared address 0x480: nothing wrote 0x480";
    // The barrier is for the other lanes, which read what their neighbours wrote.
    let body = format!("{store} bar.warp.sync 0xffffffff; ld.shared.u32 %r3, [%r2+4];");
    fails("", &body, Kind::UninitializedMemory, message);
    fails("", "cvta.shared.u64 %rd10, sh; ld.u8 %r3, [%rd10];", Kind::UninitializedMemory, "shared address 0x400");
    fails("", "atom.shared.add.u32 %r3, [sh], 1;", Kind::UninitializedMemory, "atomic operation on 4 bytes");
    let partly = "st.shared.u16 [sh], 7; bar.warp.sync 0xffffffff; ld.shared.u32 %r3, [sh];";
    fails("", partly, Kind::UninitializedMemory, "nothing wrote 0x402");
    // Another block's shared memory is another one's.
    let run = Run::new(config(), &[0; 16], 16);
    let body = "mov.u32 %r2, %ctaid.x; setp.eq.u32 %p1, %r2, 0; @%p1 st.shared.u32 [sh], %r1; ld.shared.u32 %r3, [sh];";
    let report = run.launch(&module("", body), Shape::new(2, 1), 0, &[]).unwrap_err();
    assert_eq!(report.thread.unwrap().block, [1, 0, 0]);
}

#[test]
fn undefined_registers_are_not_stored() {
    for op in
        ["st.global.u32 [%rd4], %r30;", "st.u32 [%rd4], %r30;", "st.shared.u32 [sh], %r30;", "red.global.add.u32 [%rd4], %r30;"]
    {
        fails("", op, Kind::UninitializedRegister, "never written");
    }
    fails("", "st.local.u32 [%r30], %r1;", Kind::UninitializedRegister, "never written");
    fails("", "ld.local.u32 %r2, [%r30];", Kind::UninitializedRegister, "never written");
    fails("", "ld.u32 %r2, [%rd30];", Kind::UninitializedRegister, "never written");
}

#[test]
fn copies_keep_what_is_undefined() {
    let run = Run::new(config(), &[1; 512], 512);
    let memory = run.machine.memory();
    memory.undefine(run.input + 40, 4).unwrap();
    memory.copy(run.output, run.input, 512).unwrap();
    let report = run.launch(&module("", "ld.global.u32 %r2, [%rd4+8];"), Shape::new(1, 32), 0, &[]).unwrap_err();
    assert_eq!((report.kind, report.thread.unwrap().thread[0]), (Kind::UninitializedMemory, 2));
}
