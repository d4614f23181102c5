//! `cvta`, `isspacep`, `mapa`, `getctarank`, policies, functions with parameters, local memory of activations.

use super::{Numbers, Run, config, fails, module, run};
use ptx_emu::{Checks, Config, Kind, Machine, Module, Shape};

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect()
}

#[test]
fn generic_addresses_go_there_and_back() {
    let globals = ".global .align 16 .b8 gv[64];\n.const .align 16 .b8 cv[64] = {1};";
    for (space, variable) in [("global", "gv"), ("const", "cv"), ("shared", "sh"), ("local", "lo"), ("param", "blob")] {
        let body = format!(
            "mov.u64 %rd10, {variable}; cvta.{space}.u64 %rd11, %rd10; cvta.{space}.u64 %rd12, {variable}+8;
             cvta.to.{space}.u64 %rd13, %rd11; sub.s64 %rd14, %rd12, %rd11; sub.s64 %rd15, %rd13, %rd10;
             st.global.v2.u64 [%rd4], {{%rd14, %rd15}};"
        );
        let output = run(globals, &body, &[0; 512], 32);
        assert_eq!(&output[..16], &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "{space}");
    }
}

#[test]
fn isspacep_knows_the_windows() {
    let globals = ".global .align 16 .b8 gv[64];\n.const .align 16 .b8 cv[64] = {1};";
    // The window of parameters is within that of global memory, that of the block within that of the cluster (PTX ISA 9.0, 9.7.9.21).
    let spaces = ["global", "const", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry"];
    for (from, variable, within) in [
        ("global", "gv", &["global"][..]),
        ("const", "cv", &["const"]),
        ("shared", "sh", &["shared", "shared::cta", "shared::cluster"]),
        ("local", "lo", &["local"]),
        ("param", "blob", &["param", "param::entry", "global"]),
    ] {
        for space in spaces {
            let body = format!(
                "cvta.{from}.u64 %rd10, {variable}; isspacep.{space} %p1, %rd10; selp.u32 %r2, 1, 0, %p1; st.global.u32 [%rd4], %r2;"
            );
            let output = run(globals, &body, &[0; 512], 1);
            assert_eq!(output[0] == 1, within.contains(&space), "isspacep.{space} of {variable}");
        }
    }
}

#[test]
fn blocks_of_a_cluster_reach_each_others_shared_memory() {
    // Each block writes its rank + 10 to its own memory, then reads all others', both ways, and asks whose they are.
    let body = "
        mov.u32 %r2, %cluster_ctarank; add.u32 %r3, %r2, 10; st.shared.u32 [sh], %r3;
        barrier.cluster.arrive; barrier.cluster.wait;
        mapa.shared::cluster.u32 %r4, sh, %r1; ld.shared::cluster.u32 %r5, [%r4];
        cvta.shared.u64 %rd10, sh; mapa.u64 %rd11, %rd10, %r1; ld.u32 %r6, [%rd11];
        getctarank.shared::cluster.u32 %r7, %r4; getctarank.u64 %r8, %rd11;
        mov.u32 %r9, %ctaid.x; mad.lo.u32 %r10, %r9, 4, %r1; mad.wide.u32 %rd12, %r10, 16, %rd2;
        st.global.v4.u32 [%rd12], {%r5, %r6, %r7, %r8};
        isspacep.shared::cta %p1, %rd11; isspacep.shared::cluster %p2, %rd11; selp.u32 %r11, 1, 0, %p1; selp.u32 %r12, 2, 0, %p2;
        add.u32 %r13, %r11, %r12; mapa.shared::cluster.u32 %r14, sh+4, %r1;
        mad.lo.u32 %r15, %r2, 4, %r14; st.shared::cluster.u32 [%r15], %r13;
        barrier.cluster.arrive; barrier.cluster.wait;
        mov.u32 %r16, sh; mad.lo.u32 %r16, %r1, 4, %r16; ld.shared.u32 %r17, [%r16+4];
        add.s64 %rd12, %rd12, 256; st.global.u32 [%rd12], %r17;";
    for seed in 0..4 {
        let run = Run::new(Config { seed, ..config() }, &[0; 16], 512);
        run.launch(&module("", body), Shape::new(4, 4).clusters(4), 0, &[]).unwrap();
        let out = words(&run.output(512));
        for block in 0..4u32 {
            for peer in 0..4u32 {
                let at = (block * 4 + peer) as usize * 4;
                assert_eq!(out[at..at + 4], [peer + 10, peer + 10, peer, peer]);
                // Peer wrote to this block whether the address was its own.
                assert_eq!(out[at + 64], if peer == block { 3 } else { 2 });
            }
        }
    }
}

#[test]
fn blocks_outside_the_cluster_are_out_of_reach() {
    fails("", "mapa.shared::cluster.u32 %r2, sh, 1;", Kind::IllegalOperand, "block of rank 1 of a cluster of 1");
    fails("", "mapa.u64 %rd10, %rd1, 0;", Kind::OutOfBounds, "is not an address of shared memory");
    fails("", "getctarank.u64 %r2, %rd1;", Kind::OutOfBounds, "is not an address of shared memory");
    let far = "mov.u32 %r2, sh; add.u32 %r2, %r2, 0x5000000; ld.shared::cluster.u32 %r3, [%r2];";
    fails("", far, Kind::OutOfBounds, "no shared address of a cluster of 1 blocks");
}

#[test]
fn another_blocks_memory_wants_shared_cluster() {
    let run = Run::new(config(), &[0; 16], 512);
    let body =
        "mov.u32 %r2, %cluster_ctarank; xor.b32 %r2, %r2, 1; mapa.shared::cluster.u32 %r3, sh, %r2; st.shared.u32 [%r3], 1;";
    let report = run.launch(&module("", body), Shape::new(2, 1).clusters(2), 0, &[]).unwrap_err();
    assert_eq!(report.kind, Kind::OutOfBounds);
    assert!(report.message.contains("it wants .shared::cluster"), "{report}");
}

#[test]
fn policies_are_made_and_taken() {
    let input = Numbers(9).bytes(512);
    let body = "
        createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %rd10, 0.5;
        createpolicy.range.global.L2::evict_last.b64 %rd11, [%rd1], 128, 256;
        createpolicy.cvt.L2.b64 %rd12, %rd10;
        ld.global.L2::cache_hint.v2.u64 {%rd13, %rd14}, [%rd3], %rd10;
        st.global.L2::cache_hint.v2.u64 [%rd4], {%rd13, %rd14}, %rd12;
        red.global.add.L2::cache_hint.u32 [%rd4], 1, %rd11;
        prefetch.global.L2 [%rd1]; prefetch.L1 [0]; prefetchu.L1 [%rd1];
        applypriority.global.L2::evict_normal [%rd1], 128;";
    let output = run("", body, &input, 32);
    for thread in 0..32 {
        let mut expected = input[16 * thread..][..16].to_vec();
        let sum = words(&expected)[0].wrapping_add(1);
        expected[..4].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(output[16 * thread..][..16], expected);
    }
    fails(
        "",
        "mov.f32 %f1, 0f40000000; createpolicy.fractional.L2::evict_last.b64 %rd10, %f1;",
        Kind::IllegalOperand,
        "fraction 2",
    );
    fails("", "add.s64 %rd1, %rd1, 8; applypriority.global.L2::evict_normal [%rd1], 128;", Kind::Misaligned, "multiple of 128");
}

#[test]
fn discarded_lines_are_undefined() {
    let discard = "setp.eq.u32 %p1, %r1, 0; add.s64 %rd10, %rd1, OFFSET; @%p1 discard.global.L2 [%rd10], 128; bar.sync 0;";
    // Allocations are aligned to 256.
    let discard = discard.replace("OFFSET", "128");
    let body = format!("{discard} ld.global.u32 %r2, [%rd3];");
    let report = fails("", &body, Kind::UninitializedMemory, "nothing wrote");
    assert_eq!(report.thread.unwrap().thread, [8, 0, 0]);
    run(
        "",
        &format!("{discard} setp.lt.u32 %p1, %r1, 8; @%p1 ld.global.u32 %r2, [%rd3]; ld.global.u32 %r2, [%rd3+256];"),
        &[0; 1024],
        32,
    );
    run("", &format!("{discard} st.global.u32 [%rd3], %r1; ld.global.u32 %r2, [%rd3];"), &[0; 1024], 32);
    fails("", "add.s64 %rd10, %rd1, 64; discard.L2 [%rd10], 128;", Kind::Misaligned, "multiple of 128");
    fails("", "cvta.shared.u64 %rd10, sh; discard.L2 [%rd10], 128;", Kind::IllegalOperand, "not global memory");
}

/// Functions take and return values through `.param` variables, and keep local variables of their own.
const FUNCTIONS: &str = "
.func (.param .align 8 .b8 result[16]) mix(.param .u32 a, .param .align 8 .b8 pair[16])
{
    .reg .u32 %r<6>; .reg .u64 %rd<6>; .local .align 8 .b8 mine[32];
    ld.param.u32 %r1, [a];
    ld.param.v2.u32 {%r2, %r3}, [pair];
    ld.param.u64 %rd1, [pair+8];
    st.local.u32 [mine+4], %r1;
    cvta.local.u64 %rd2, mine;
    st.u64 [%rd2+16], %rd1;
    ld.local.u32 %r4, [mine+4];
    add.u32 %r5, %r4, %r2;
    ld.local.u64 %rd3, [mine+16];
    st.param.v2.u32 [result], {%r5, %r3};
    st.param.u64 [result+8], %rd3;
    ret;
}
.func (.param .u32 result) down(.param .u32 n)
{
    .reg .u32 %r<6>; .reg .pred %p; .local .align 4 .u32 kept;
    ld.param.u32 %r1, [n];
    st.local.u32 [kept], %r1;
    mov.u32 %r3, 0;
    setp.eq.u32 %p, %r1, 0;
    @%p bra END;
    sub.u32 %r2, %r1, 1;
    { .param .u32 in; .param .u32 out;
      st.param.u32 [in], %r2;
      call (out), down, (in);
      ld.param.u32 %r3, [out]; }
END:
    ld.local.u32 %r4, [kept];
    add.u32 %r5, %r3, %r4;
    st.param.u32 [result], %r5;
    ret;
}";

#[test]
fn parameters_of_functions_lie_in_local_memory() {
    let body = "
        { .param .u32 a; .param .align 8 .b8 pair[16]; .param .align 8 .b8 result[16];
          ld.global.v2.u32 {%r2, %r3}, [%rd3]; ld.global.u64 %rd10, [%rd3+8];
          st.param.u32 [a], %r1; st.param.v2.u32 [pair], {%r2, %r3}; st.param.u64 [pair+8], %rd10;
          call (result), mix, (a, pair);
          ld.param::func.v2.u32 {%r4, %r5}, [result]; ld.param.u64 %rd11, [result+8]; }
        st.global.v2.u32 [%rd4], {%r4, %r5}; st.global.u64 [%rd4+8], %rd11;";
    let input = Numbers(10).bytes(512);
    let output = run(FUNCTIONS, body, &input, 32);
    for thread in 0..32 {
        let mut expected = input[16 * thread..][..16].to_vec();
        let sum = words(&expected)[0].wrapping_add(thread as u32);
        expected[..4].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(output[16 * thread..][..16], expected, "thread {thread}");
    }
}

#[test]
fn activations_have_local_variables_of_their_own() {
    let body = "
        and.b32 %r2, %r1, 15;
        { .param .u32 in; .param .u32 out; st.param.u32 [in], %r2; call (out), down, (in); ld.param.u32 %r3, [out]; }
        st.global.u32 [%rd4], %r3;";
    let output = run(FUNCTIONS, body, &[0; 512], 32);
    for thread in 0..32u32 {
        let n = thread % 16;
        assert_eq!(words(&output)[4 * thread as usize], n * (n + 1) / 2, "thread {thread}");
    }
}

#[test]
fn undefined_bytes_may_pass_through_local_memory() {
    // Only half of the struct is written; copying all of it is no use of the other half. A word of which nothing was written stays so.
    let copy = "st.local.u32 [lo], %r1; ld.local.u64 %rd10, [lo]; st.local.u64 [lo+8], %rd10; ld.local.u32 %r2, [lo+8];
                st.global.u32 [%rd4], %r2;";
    let output = run("", copy, &[0; 512], 32);
    assert!((0..32).all(|i| words(&output)[4 * i] == i as u32));
    let with_use = format!(
        "{copy} ld.local.u64 %rd10, [lo+16]; st.local.u64 [lo+24], %rd10; ld.local.u32 %r3, [lo+28]; add.u32 %r4, %r3, 1;"
    );
    fails("", &with_use, Kind::UninitializedRegister, "add.u32 was never written");
    // The same through generic addresses, and through the parameters of a function.
    let generic = "cvta.local.u64 %rd11, lo; st.u32 [%rd11], %r1; ld.u64 %rd10, [%rd11]; st.u64 [%rd11+8], %rd10;
                   ld.u32 %r2, [%rd11+8]; st.global.u32 [%rd4], %r2;";
    run("", generic, &[0; 512], 32);
    fails(
        "",
        &format!("{generic} ld.u32 %r3, [%rd11+20]; st.global.u32 [%rd4], %r3;"),
        Kind::UninitializedRegister,
        "st.global.u32",
    );
    fails("", "cvta.local.u64 %rd11, lo; ld.u32 %r3, [%rd11]; st.u32 [%rd4], %r3;", Kind::UninitializedRegister, "st.u32");
    let call = "
        { .param .u32 a; .param .align 8 .b8 pair[16]; .param .align 8 .b8 result[16];
          st.param.u32 [a], %r1; st.param.v2.u32 [pair], {%r1, %r1}; st.param.u64 [pair+8], %rd39;
          call (result), mix, (a, pair);
          ld.param.v2.u32 {%r4, %r5}, [result]; ld.param.u64 %rd11, [result+8]; }
        st.global.u32 [%rd4], %r5;";
    run(FUNCTIONS, call, &[0; 512], 32);
    fails(FUNCTIONS, &format!("{call} st.global.u64 [%rd4+8], %rd11;"), Kind::UninitializedRegister, "st.global.u64");
    // Nothing of this is asked without the check.
    let run = Run::new(Config { checks: Checks::NONE, ..Config::default() }, &[0; 512], 512);
    run.launch(&module("", &with_use), Shape::new(1, 32), 0, &[]).unwrap();
}

#[test]
fn polling_the_host_sees_pinned_memory() {
    let machine = Machine::new(config());
    let memory = machine.memory();
    let flag = memory.alloc_pinned(64).unwrap();
    let text = module("", "ld.volatile.u32 %r2, [%rd1]; st.u32 [%rd2], %r2;");
    let loaded = machine.load(&Module::parse(&text).unwrap(), 0).unwrap();
    let stream = machine.stream(0).unwrap();
    memory.write(flag, &77u32.to_le_bytes()).unwrap();
    let args = [flag.into(), (flag + 4).into(), 0u64.into(), ptx_emu::Arg(vec![0; 512])];
    machine.launch(stream, &loaded, "k", Shape::new(1, 1), &args).unwrap();
    machine.synchronize().unwrap();
    let mut back = [0; 8];
    memory.read(flag, &mut back).unwrap();
    assert_eq!(back, [77, 0, 0, 0, 77, 0, 0, 0]);
}

#[test]
fn spinning_on_memory_that_nothing_changes() {
    let stuck = |body: &str| {
        let run = Run::new(Config { budget: 300_000, ..config() }, &[1; 512], 512);
        (run.launch(&module("", body), Shape::new(1, 32), 0, &[]).unwrap_err(), run.input)
    };
    let (report, address) = stuck("L: ld.volatile.global.u32 %r2, [%rd1+4]; setp.ne.u32 %p1, %r2, 0; @%p1 bra L;");
    assert_eq!(report.kind, Kind::Livelock, "{report}");
    let text = report.to_string();
    assert!(text.contains(&format!("it last read Global memory at {:#x}", address + 4)), "{text}");
    // Storing what is there already changes nothing; nor does a comparison that fails.
    let (report, _) = stuck("L: st.volatile.global.u32 [%rd1+4], 0x01010101; st.local.u32 [lo], 5; bra L;");
    assert_eq!(report.kind, Kind::Livelock, "{report}");
    let (report, _) = stuck("L: atom.global.cas.b32 %r2, [%rd1+4], 0, 1; setp.ne.u32 %p1, %r2, 0; @%p1 bra L;");
    assert_eq!(report.kind, Kind::Livelock, "{report}");
    // A counter does change; in local memory too.
    let (report, _) = stuck("L: red.global.add.u32 [%rd1+4], 1; bra L;");
    assert_eq!(report.kind, Kind::Budget, "{report}");
    let (report, _) =
        stuck("st.local.u32 [lo], 5; L: ld.local.u32 %r2, [lo]; add.u32 %r2, %r2, 1; st.local.u32 [lo], %r2; bra L;");
    assert_eq!(report.kind, Kind::Budget, "{report}");
}
