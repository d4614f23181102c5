//! Asynchronous copies: `cp.async`, bulk copies, their groups and their misuse, on small kernels.

mod kernel_runs;

use kernel_runs::{Buffer, FENCE, INIT, WAIT, config, dump, fast, fill, module, put, run, value, words};
use ptx_emu::{Kind, Module, Shape};

const SEEDS: u64 = 10;

fn accepted(instruction: &str) -> Result<(), String> {
    let body = format!(
        "mov.u32 %r1, 1024; mov.u64 %rd1, 0; mov.u32 %r2, 1; setp.eq.u32 %p1, %r2, 1; mov.u64 %rd2, 0; mov.u64 %rd3, 0; mov.u16 %h1, 1;\n{instruction}"
    );
    Module::parse(&module(&body, 1, 64)).map(drop).map_err(|e| e.to_string())
}

#[test]
fn decodes_every_form() {
    // Accepted by ptxas 13.0 for sm_90a.
    let forms = "cp.async.ca.shared.global [%r1], [%rd1], 4; cp.async.ca.shared::cta.global.L2::128B [%r1], [%rd1], 8;
        cp.async.cg.shared.global.L2::cache_hint.L2::256B [%r1], [%rd1], 16, %r2, %rd3; cp.async.ca.shared.global [%r1], [%rd1], 4, %p1;
        cp.async.ca.shared.global [%r1], [%rd1], 16, %r2; cp.async.cg.shared.global.L2::64B [%r1], [%rd1], 16, 3;
        cp.async.ca.shared.global.L2::cache_hint [%r1], [%rd1], 16, %rd3; cp.async.ca.shared.global.L2::cache_hint [%r1], [%rd1], 16, %p1, %rd3;
        cp.async.commit_group; cp.async.wait_group 3; cp.async.wait_all; cp.async.mbarrier.arrive.b64 [%rd1];
        cp.async.mbarrier.arrive.noinc.shared.b64 [%r1]; cp.async.mbarrier.arrive.shared::cta.b64 [%r1];
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], %r2, [%r1];
        cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r1], [%rd1], 16, [%r1], %rd3;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%r1], [%rd1], %r2, [%r1], %h1, %rd3;
        cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r1], [%r1], %r2, [%r1];
        cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r1], %r2; cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%rd1], [%r1], %r2, %rd3;
        cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 [%r1], [%r1], %r2, [%r1];
        cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u64 [%r1], [%r1], %r2, [%r1];
        cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r1], %r2;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.f16 [%rd1], [%r1], %r2;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.noftz.bf16 [%rd1], [%r1], %r2, %rd3;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.min.bf16 [%rd1], [%r1], %r2;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f64 [%rd1], [%r1], %r2;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.inc.u32 [%rd1], [%r1], %r2;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.and.b64 [%rd1], [%r1], %r2;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.max.s64 [%rd1], [%r1], %r2;
        cp.async.bulk.prefetch.L2.global [%rd1], %r2; cp.async.bulk.prefetch.L2.global.L2::cache_hint [%rd1], %r2, %rd3;
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; cp.async.bulk.wait_group.read 3;
        cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2}], [%r1];
        cp.async.bulk.tensor.1d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2}], [%r1];
        cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%r1], [%rd1, {%r2, %r2, %r2, %r2, 3}], [%r1], %h1, %rd3;
        cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group.L2::cache_hint [%rd1, {%r2, %r2, %r2, %r2}], [%r1], %rd3;
        cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%rd1, {%r2, %r2, -1}], [%r1];
        cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%rd1, {%r2, %r2, %r2}], [%r1];
        cp.reduce.async.bulk.tensor.3d.global.shared::cta.xor.tile.bulk_group.L2::cache_hint [%rd1, {%r2, %r2, %r2}], [%r1], %rd3;
        cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%rd1, {%r2, %r2}]; cp.async.bulk.prefetch.tensor.2d.L2.global.L2::cache_hint [%rd1, {%r2, %r2}], %rd3";
    for form in forms.split(';').map(str::trim) {
        if let Err(e) = accepted(&format!("{form};")) {
            panic!("{form}: {e}");
        }
    }
}

#[test]
fn refuses_what_is_no_form() {
    for (form, why) in [
        ("cp.async.cg.shared.global [%r1], [%rd1], 8;", "cp.async of 8 bytes"),
        ("cp.async.ca.shared.global [%r1], [%rd1], 12;", "cp.async of 12 bytes"),
        ("cp.async.ca.shared::cluster.global [%r1], [%rd1], 4;", "unknown instruction"),
        ("cp.async.ca.shared.global.L2::cache_hint [%r1], [%rd1], 4;", "a cache policy is missing"),
        ("cp.async.wait_group %r1;", "integer literal"),
        ("cp.async.bulk.shared::cluster.global.bulk_group [%r1], [%rd1], %r2;", "unknown instruction"),
        ("cp.async.bulk.global.shared::cta.mbarrier::complete_tx::bytes [%rd1], [%r1], %r2, [%r1];", "unknown instruction"),
        (
            "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.multicast::cluster [%r1], [%rd1], %r2, [%r1], %h1;",
            "unknown instruction",
        ),
        ("cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%rd1], [%r1], %r2, %h1;", "unknown instruction"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f16 [%rd1], [%r1], %r2;", "unknown instruction"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.min.f32 [%rd1], [%r1], %r2;", "has no Min of F32"),
        (
            "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.f32 [%r1], [%r1], %r2, [%r1];",
            "has no Add of F32",
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r2}], [%r1], {%h1};",
            "unknown instruction",
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r2}], [%r1];",
            "unknown instruction",
        ),
        (
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r2}], [%r1];",
            "2 coordinates of a tensor of 3",
        ),
        (
            "cp.async.bulk.tensor.6d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2}], [%r1];",
            "unknown instruction",
        ),
        (
            "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.cta_group::1 [%r1], [%rd1, {%r2}], [%r1];",
            "unknown instruction",
        ),
    ] {
        match accepted(form) {
            Ok(()) => panic!("{form} is accepted"),
            Err(e) => assert!(e.contains(why), "{form}: {e}"),
        }
    }
}

// ---- cp.async ----------------------------------------------------------------------------------------------------------

#[test]
fn copies_of_each_size() {
    for (size, cache) in [(4, "ca"), (8, "ca"), (16, "ca"), (16, "cg")] {
        // Each of 64 threads copies its `size` bytes, waits, meets the others, and stores what its neighbour copied.
        let body = format!(
            "mul.lo.u32 %r1, tid, {size}; cvt.u64.u32 %rd1, %r1; add.u64 %rd1, %rd1, p1; mov.u32 %r2, smem; add.u32 %r3, %r2, %r1;
            cp.async.{cache}.shared.global [%r3], [%rd1], {size}; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
            xor.b32 %r4, tid, 33; mul.lo.u32 %r4, %r4, {size}; add.u32 %r4, %r4, %r2; mul.lo.u32 %r6, tid, {count}; mov.u32 %r7, 0;
            L: ld.shared.b32 %r5, [%r4]; {} add.u32 %r4, %r4, 4; add.u32 %r6, %r6, 1; add.u32 %r7, %r7, 1;
            setp.lt.u32 %p1, %r7, {count}; @%p1 bra L;",
            put("%r6", "%r5"),
            count = size / 4
        );
        for config in (0..SEEDS).map(config).chain([fast()]) {
            let n = 64 * size / 4;
            let out = run(&body, Shape::new(1, 64), 1024, vec![Buffer::zeros(n), words(n, value)], config).ok().words(0);
            let per = size as u32 / 4;
            for (i, &v) in out.iter().enumerate() {
                let i = i as u32;
                assert_eq!(v, value(((i / per) ^ 33) * per + i % per));
            }
        }
    }
}

#[test]
fn what_is_not_read_is_zero() {
    // Lane l reads l % 17 bytes of 16; a second copy is ignored in odd lanes, whose source is nowhere.
    let body = format!(
        "mul.lo.u32 %r1, tid, 16; cvt.u64.u32 %rd1, %r1; add.u64 %rd1, %rd1, p1; mov.u32 %r2, smem; add.u32 %r3, %r2, %r1;
        rem.u32 %r4, tid, 17; cp.async.cg.shared.global [%r3], [%rd1], 16, %r4;
        and.b32 %r5, tid, 1; setp.eq.u32 %p1, %r5, 1; selp.b64 %rd2, 12, %rd1, %p1; cp.async.ca.shared.global [%r3+1024], [%rd2], 4, %p1;
        cp.async.wait_all; mov.u32 %r6, 0;
        L: add.u32 %r8, %r3, %r6; ld.shared.b32 %r7, [%r8]; add.u32 %r9, %r1, %r6; shr.u32 %r9, %r9, 2; {}
        add.u32 %r6, %r6, 4; setp.lt.u32 %p2, %r6, 16; @%p2 bra L;
        ld.shared.b32 %r7, [%r3+1024]; add.u32 %r9, tid, 128; {}",
        put("%r9", "%r7"),
        put("%r9", "%r7")
    );
    for config in (0..SEEDS).map(config).chain([fast()]) {
        let r = run(&body, Shape::new(1, 32), 2048, vec![Buffer::zeros(160), words(128, value)], config).ok();
        let source: Vec<u8> = (0..128).flat_map(|i| value(i).to_le_bytes()).collect();
        let out = r.bytes(0);
        for (i, &byte) in out[..512].iter().enumerate() {
            let expected = if i % 16 < (i / 16) % 17 { source[i] } else { 0 };
            assert_eq!(byte, expected, "byte {i}");
        }
        for (lane, &v) in r.words(0)[128..].iter().enumerate() {
            assert_eq!(v, if lane % 2 == 1 { 0 } else { value(4 * lane as u32) });
        }
    }
}

/// Warp 0 copies words in four groups, one after the other, waits until `remain` of them may be under way, and reads the group `read`.
fn groups(remain: u32, read: u32) -> String {
    format!(
        "shl.b32 %r1, tid, 2; cvt.u64.u32 %rd1, %r1; add.u64 %rd1, %rd1, p1; mov.u32 %r2, smem; add.u32 %r3, %r2, %r1; mov.u32 %r4, 0;
        L: cp.async.ca.shared.global [%r3], [%rd1], 4; cp.async.commit_group; add.u32 %r3, %r3, 128; add.u64 %rd1, %rd1, 128;
        add.u32 %r4, %r4, 1; setp.lt.u32 %p1, %r4, 4; @%p1 bra L;
        cp.async.wait_group {remain}; add.u32 %r5, %r2, %r1; ld.shared.b32 %r6, [%r5+{}]; {} cp.async.wait_all;",
        128 * read,
        put("tid", "%r6")
    )
}

#[test]
fn groups_complete_in_order_for_their_thread() {
    let buffers = || vec![Buffer::zeros(32), words(128, value)];
    for seed in 0..SEEDS {
        for (remain, read) in [(0, 3), (1, 2), (3, 0), (2, 1)] {
            let out = run(&groups(remain, read), Shape::new(1, 32), 512, buffers(), config(seed)).ok().words(0);
            assert!(out.iter().enumerate().all(|(i, &v)| v == value(i as u32 + 32 * read)));
        }
    }
    for (remain, read) in [(1, 3), (4, 0)] {
        let run = run(&groups(remain, read), Shape::new(1, 32), 512, buffers(), config(0));
        assert_eq!(run.report().kind, Kind::DataRace, "{}", run.report());
    }
}

#[test]
fn another_thread_needs_a_barrier_behind_the_wait() {
    let body = |barrier: &str| {
        format!(
            "shl.b32 %r1, tid, 2; cvt.u64.u32 %rd1, %r1; add.u64 %rd1, %rd1, p1; mov.u32 %r2, smem; add.u32 %r3, %r2, %r1;
            cp.async.ca.shared.global [%r3], [%rd1], 4; cp.async.wait_all; {barrier}
            xor.b32 %r4, %r1, 128; add.u32 %r4, %r4, %r2; ld.shared.b32 %r5, [%r4]; {}",
            put("tid", "%r5")
        )
    };
    let buffers = || vec![Buffer::zeros(64), words(64, value)];
    for seed in 0..SEEDS {
        run(&body("bar.sync 0;"), Shape::new(1, 64), 256, buffers(), config(seed)).ok();
        let run = run(&body(""), Shape::new(1, 64), 256, buffers(), config(seed));
        // A reader that comes before the copy is issued reads what nothing wrote.
        assert!(matches!(run.report().kind, Kind::DataRace | Kind::UninitializedMemory), "{}", run.report());
    }
}

#[test]
fn copies_arrive_at_mbarriers() {
    // Warp 1 reads what warp 0 copies, when the copies have arrived.
    for (count, variant) in [(32, ".noinc"), (1, "")] {
        // Without .noinc the copies add their own arrivals; a plain one of thread 0, after the copies were issued, is what is counted.
        let plain = if count == 1 {
            "bar.warp.sync 0xffffffff; setp.eq.u32 %p4, tid, 0; @%p4 mbarrier.arrive.shared.b64 _, [%r2];"
        } else {
            ""
        };
        let body = format!(
            "mov.u32 %r2, smem; setp.ne.u32 %p1, tid, 0; @%p1 bra READY; mbarrier.init.shared.b64 [%r2], {count}; READY: bar.sync 0;
            shl.b32 %r1, lane, 2; add.u32 %r3, %r2, %r1; setp.ge.u32 %p2, tid, 32; @%p2 bra READ;
            cvt.u64.u32 %rd1, %r1; add.u64 %rd1, %rd1, p1;
            cp.async.ca.shared.global [%r3+64], [%rd1], 4; cp.async.ca.shared.global [%r3+192], [%rd1+128], 4;
            cp.async.mbarrier.arrive{variant}.shared.b64 [%r2]; {plain} ret;
            READ: mbarrier.try_wait.parity.shared.b64 %p3, [%r2], 0; @!%p3 bra READ;
            ld.shared.b32 %r4, [%r3+64]; ld.shared.b32 %r5, [%r3+192]; add.u32 %r4, %r4, %r5; {}",
            put("lane", "%r4")
        );
        for config in (0..SEEDS).map(config).chain([fast()]) {
            let out = run(&body, Shape::new(1, 64), 512, vec![Buffer::zeros(32), words(64, value)], config).ok().words(0);
            assert!(out.iter().enumerate().all(|(i, &v)| v == value(i as u32).wrapping_add(value(i as u32 + 32))));
        }
    }
}

#[test]
fn an_mbarrier_is_invalidated_after_several_phases_of_copies() {
    // The arrivals of the second phase tell of the first copies too, which everybody has observed before.
    let body = format!(
        "mov.u32 %r2, smem; setp.ne.u32 %p1, tid, 0; @%p1 bra READY; mbarrier.init.shared.b64 [%r2], 64; READY: bar.sync 0;
        shl.b32 %r1, tid, 2; add.u32 %r3, %r2, %r1; cvt.u64.u32 %rd1, %r1; add.u64 %rd1, %rd1, p1; mov.u32 %r4, 0;
        AGAIN: cp.async.ca.shared.global [%r3+64], [%rd1], 4; cp.async.mbarrier.arrive.noinc.shared.b64 [%r2];
        WAIT: mbarrier.try_wait.parity.shared.b64 %p3, [%r2], %r4; @!%p3 bra WAIT;
        add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, 2; @%p2 bra AGAIN;
        bar.sync 0; @!%p1 mbarrier.inval.shared.b64 [%r2];
        ld.shared.b32 %r5, [%r3+64]; {}",
        put("tid", "%r5")
    );
    for config in (0..SEEDS).map(config).chain([fast()]) {
        let out = run(&body, Shape::new(1, 64), 512, vec![Buffer::zeros(64), words(64, value)], config).ok().words(0);
        assert!(out.iter().enumerate().all(|(i, &v)| v == value(i as u32)));
    }
}

#[test]
fn misuse_of_copies_is_reported() {
    for (body, kind, part) in [
        ("cp.async.ca.shared.global [%r2+2], [p1], 4;", Kind::Misaligned, "not a multiple of 4"),
        ("cp.async.ca.shared.global [%r2], [p1+8], 16;", Kind::Misaligned, "not a multiple of 16"),
        ("cp.async.ca.shared.global [%r2+1024], [p1], 4;", Kind::OutOfBounds, "4 bytes at shared address 0x800"),
        ("cp.async.ca.shared.global [%r2], [p1+256], 4;", Kind::OutOfBounds, "end of the allocation of 256 bytes"),
        ("cp.async.ca.shared.global [%r2], [p1], 4, 5;", Kind::IllegalOperand, "reads 5 bytes and writes 4"),
        ("cp.async.ca.shared.global [%r2], [p2], 4;", Kind::UninitializedMemory, "was never written"),
        (
            "mbarrier.init.shared.b64 [%r2], 1; cp.async.ca.shared.global [%r2], [p1], 4;",
            Kind::BarrierMisuse,
            "writes the mbarrier",
        ),
        ("cp.async.mbarrier.arrive.shared.b64 [%r2];", Kind::BarrierMisuse, "mbarrier.init has not been executed there"),
    ] {
        let body = format!("setp.ne.u32 %p1, tid, 0; @%p1 exit; mov.u32 %r2, smem; {body}");
        let buffers = vec![Buffer::zeros(4), words(64, value), Buffer::Unwritten(64)];
        run(&body, Shape::new(1, 32), 1024, buffers, config(0)).reports(kind, part);
    }
}

// ---- Bulk copies -------------------------------------------------------------------------------------------------------

#[test]
fn bulk_loads_land_and_complete() {
    for space in ["shared::cluster", "shared::cta"] {
        let body = format!(
            "{INIT} setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS;
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 4112;
            add.u32 %r2, %r1, 128; cp.async.bulk.{space}.global.mbarrier::complete_tx::bytes [%r2], [p1], 4096, [%r1];
            add.u64 %rd1, p1, 8192; cp.async.bulk.{space}.global.mbarrier::complete_tx::bytes [%r2+4096], [%rd1], 16, [%r1];
            WAITS: {WAIT} {}",
            dump(128, 1028, "0")
        );
        for config in (0..SEEDS).map(config).chain([fast()]) {
            let out = run(&body, Shape::new(1, 64), 8192, vec![Buffer::zeros(1028), words(2052, value)], config).ok().words(0);
            for (i, &v) in out.iter().enumerate() {
                assert_eq!(v, value(if i < 1024 { i as u32 } else { i as u32 + 1024 }));
            }
        }
    }
}

#[test]
fn bulk_loads_that_nobody_waits_for_race() {
    let body = format!(
        "{INIT} setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 256; cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1+128], [p1], 256, [%r1];
        WAITS: {}",
        dump(128, 64, "0")
    );
    for seed in 0..SEEDS {
        let run = run(&body, Shape::new(1, 64), 1024, vec![Buffer::zeros(64), words(64, value)], config(seed));
        // A reader that comes before the copy is issued reads what nothing wrote.
        assert!(matches!(run.report().kind, Kind::DataRace | Kind::UninitializedMemory), "{}", run.report());
    }
}

#[test]
fn a_phase_told_of_fewer_bytes_completes_early() {
    for expected in [64, 128, 240] {
        let body = format!(
            "{INIT} setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS;
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {expected};
            cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1+128], [p1], 256, [%r1];
            WAITS: {WAIT} {}",
            dump(128, 64, "0")
        );
        for seed in 0..SEEDS {
            let run = run(&body, Shape::new(1, 64), 1024, vec![Buffer::zeros(64), words(64, value)], config(seed));
            assert_eq!(run.report().kind, Kind::DataRace, "{}", run.report());
        }
    }
}

#[test]
fn a_phase_told_of_more_bytes_never_completes() {
    let body = format!(
        "{INIT} setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 512;
        cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1+128], [p1], 256, [%r1];
        WAITS: {WAIT}"
    );
    for seed in 0..SEEDS {
        run(&body, Shape::new(1, 64), 1024, vec![Buffer::zeros(64), words(64, value)], config(seed))
            .reports(Kind::Deadlock, "phase of parity 0: 1 of 1 arrivals, transaction count 256");
    }
}

#[test]
fn bulk_stores_reach_global_memory() {
    let body = format!(
        "{} @%p1 exit; cp.async.bulk.global.shared::cta.bulk_group [p0], [%r1], 1024; add.u64 %rd1, p0, 2048;
        cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r1+1024], 16; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
        fill(512, FENCE)
    );
    for config in (0..SEEDS).map(config).chain([fast()]) {
        let out = run(&body, Shape::new(1, 64), 2048, vec![words(520, |_| 1)], config).ok().words(0);
        for (i, &v) in out.iter().enumerate() {
            let i = i as u32;
            let expected = match i {
                0..256 => 3 * i + 7,
                512..516 => 3 * (i - 256) + 7,
                _ => 1,
            };
            assert_eq!(v, expected, "word {i}");
        }
    }
}

#[test]
fn stores_need_the_fence_and_the_wait() {
    let store = "cp.async.bulk.global.shared::cta.bulk_group [p0], [%r1], 256; cp.async.bulk.commit_group;";
    let buffers = || vec![Buffer::zeros(64)];
    for seed in 0..SEEDS {
        let r = run(
            &format!("{} @%p1 exit; {store} cp.async.bulk.wait_group.read 0;", fill(64, FENCE)),
            Shape::new(1, 64),
            256,
            buffers(),
            config(seed),
        );
        assert_eq!(r.ok().words(0)[5], 22);
        let r = run(
            &format!("{} @%p1 exit; {store} cp.async.bulk.wait_group 0;", fill(64, "")),
            Shape::new(1, 64),
            256,
            buffers(),
            config(seed),
        );
        assert_eq!(r.report().kind, Kind::MissingProxyFence, "{}", r.report());
        let r = run(&format!("{} @%p1 exit; {store}", fill(64, FENCE)), Shape::new(1, 64), 256, buffers(), config(seed));
        assert_eq!(r.report().kind, Kind::EarlyExit, "{}", r.report());
        // Writing the source again needs the wait, of which `.read` is enough.
        let again = |wait: &str| {
            format!("{} @%p1 exit; {store} {wait} st.shared.b32 [%r1+64], tid; cp.async.bulk.wait_group 0;", fill(64, FENCE))
        };
        let r = run(&again("cp.async.bulk.wait_group.read 0;"), Shape::new(1, 64), 256, buffers(), config(seed));
        assert_eq!(r.ok().words(0)[16], 55);
        let r = run(&again(""), Shape::new(1, 64), 256, buffers(), config(seed));
        assert_eq!(r.report().kind, Kind::DataRace, "{}", r.report());
        // Reading what was stored needs the whole wait.
        let back = |wait: &str| {
            format!(
                "{} @%p1 exit; {store} {wait} fence.proxy.async.global; ld.global.b32 %r5, [p0+8]; st.global.b32 [p1], %r5; cp.async.bulk.wait_group 0;",
                fill(64, FENCE)
            )
        };
        let buffers = || vec![Buffer::zeros(64), Buffer::zeros(1)];
        let r = run(&back("cp.async.bulk.wait_group 0;"), Shape::new(1, 64), 256, buffers(), config(seed));
        assert_eq!(r.ok().words(1), [13]);
        let r = run(&back("cp.async.bulk.wait_group.read 0;"), Shape::new(1, 64), 256, buffers(), config(seed));
        assert_eq!(r.report().kind, Kind::DataRace, "{}", r.report());
    }
}

#[test]
fn bulk_reductions() {
    // Four blocks add 64 floats each to the same place, and take the maximum of words.
    let body = format!(
        "{} mov.u32 %r43, 0x40000000; setp.ge.u32 %p2, tid, 32; shl.b32 %r42, tid, 2; add.u32 %r42, %r42, %r1;
        st.shared.b32 [%r42], %r43; fence.proxy.async.shared::cta; bar.sync 0; @%p1 exit;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [p0], [%r1], 256;
        cp.reduce.async.bulk.global.shared::cta.bulk_group.max.u32 [p1], [%r1+256], 256;
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
        fill(128, FENCE)
    );
    for config in (0..SEEDS).map(config).chain([fast()]) {
        let r = run(&body, Shape::new(4, 64), 512, vec![Buffer::zeros(64), words(64, |i| i * 6)], config).ok();
        assert!(r.words(0).iter().all(|&v| f32::from_bits(v) == 8.0));
        for (i, &v) in r.words(1).iter().enumerate() {
            let i = i as u32;
            assert_eq!(v, (i * 6).max(3 * (i + 64) + 7));
        }
    }
}

/// Each block of a pair sends to the other's shared memory and waits for what it is sent.
fn send(op: &str) -> String {
    format!(
        "{INIT} shl.b32 %r2, tid, 2; add.u32 %r2, %r2, %r1; mad.lo.u32 %r3, block, 1000, tid; st.shared.b32 [%r2+128], %r3; st.shared.b32 [%r2+512], tid;
        {FENCE} setp.eq.u32 %p4, tid, 0; @%p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 256;
        barrier.cluster.arrive; barrier.cluster.wait; setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS;
        xor.b32 %r4, rank, 1; mapa.shared::cluster.u32 %r5, %r1, %r4; {op} [%r5+512], [%r1+128], 256, [%r5];
        WAITS: {WAIT} mad.lo.u32 %r6, block, 64, tid; ld.shared.b32 %r7, [%r2+512]; {} barrier.cluster.arrive; barrier.cluster.wait;",
        put("%r6", "%r7")
    )
}

#[test]
fn blocks_send_to_each_other() {
    for (op, adds) in [
        ("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes", false),
        ("cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32", true),
    ] {
        for config in (0..SEEDS).map(config).chain([fast()]) {
            let out = run(&send(op), Shape::new(2, 64).clusters(2), 1024, vec![Buffer::zeros(128)], config).ok().words(0);
            for (i, &v) in out.iter().enumerate() {
                let (block, tid) = (i as u32 / 64, i as u32 % 64);
                assert_eq!(v, (block ^ 1) * 1000 + tid + if adds { tid } else { 0 });
            }
        }
    }
}

#[test]
fn misuse_of_bulk_copies_is_reported() {
    let init = "mbarrier.init.shared::cta.b64 [%r1], 1;";
    let load = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes";
    let store = "cp.async.bulk.global.shared::cta.bulk_group";
    for (body, kind, part) in [
        (format!("{init} {load} [%r1+128], [p1], 24, [%r1];"), Kind::IllegalOperand, "24 bytes"),
        (format!("{init} {load} [%r1+136], [p1], 16, [%r1];"), Kind::Misaligned, "destination address 0x488"),
        (format!("{init} {load} [%r1+128], [p1+8], 16, [%r1];"), Kind::Misaligned, "source address"),
        (format!("{init} {load} [%r1+1008], [p1], 32, [%r1];"), Kind::OutOfBounds, "32 bytes at shared address 0x7f0"),
        (
            format!("{init} {load} [%r1+128], [p1+240], 32, [%r1];"),
            Kind::OutOfBounds,
            "beyond the end of the allocation of 256 bytes",
        ),
        (format!("{init} {load} [%r1+128], [p2], 32, [%r1];"), Kind::UninitializedMemory, "was never written"),
        (format!("{init} {load} [%r1], [p1], 32, [%r1];"), Kind::BarrierMisuse, "writes the mbarrier"),
        (format!("{load} [%r1+128], [p1], 32, [%r1];"), Kind::BarrierMisuse, "mbarrier.init has not been executed there"),
        (
            format!("{init} mov.u16 %h1, 2; {load}.multicast::cluster [%r1+128], [p1], 32, [%r1], %h1;"),
            Kind::IllegalOperand,
            "a cluster of 1",
        ),
        (
            format!("{init} mov.u16 %h1, 0; {load}.multicast::cluster [%r1+128], [p1], 32, [%r1], %h1;"),
            Kind::IllegalOperand,
            "a multicast to the blocks 0x0000",
        ),
        (format!("{store} [p0], [%r1], 16;"), Kind::UninitializedMemory, "reads 16 bytes at shared address"),
        (
            format!("st.shared.v4.b32 [%r1], {{tid, tid, tid, tid}}; {FENCE} {store} [p0+16], [%r1], 16;"),
            Kind::OutOfBounds,
            "end of the allocation of 16 bytes",
        ),
        (
            format!("st.shared.v4.b32 [%r1], {{tid, tid, tid, tid}}; {FENCE} {store} [p0+4], [%r1], 16;"),
            Kind::Misaligned,
            "destination address",
        ),
        (format!("{init} {load} [%r1+128], [p1], 32, [%r1];"), Kind::EarlyExit, "is in flight"),
        (
            format!(
                "{init} {load} [%r1+128], [p1], 32, [%r1];
                mov.u32 %r5, 0; D: add.u32 %r5, %r5, 1; nanosleep.u32 100; setp.lt.u32 %p3, %r5, 9; @%p3 bra D;"
            ),
            Kind::EarlyExit,
            "no thread has waited for the asynchronous copies",
        ),
    ] {
        let body = format!("mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 exit; {body}");
        let buffers = vec![Buffer::zeros(4), words(64, value), Buffer::Unwritten(64)];
        run(&body, Shape::new(1, 32), 1024, buffers, config(0)).reports(kind, part);
    }
}

#[test]
fn destination_and_mbarrier_are_in_one_block() {
    let body = "mov.u32 %r1, smem; mbarrier.init.shared::cta.b64 [%r1], 1; barrier.cluster.arrive; barrier.cluster.wait;
        xor.b32 %r4, rank, 1; mapa.shared::cluster.u32 %r5, %r1, %r4;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r5+128], [p1], 32, [%r1];";
    run(body, Shape::new(2, 1).clusters(2), 1024, vec![Buffer::zeros(4), words(64, value)], config(0))
        .reports(Kind::BarrierMisuse, "they must be in the same one");
}

#[test]
fn multicast_reaches_every_block_of_its_mask() {
    // Block 0 loads for both, block 1 for itself alone, to different places.
    let load = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster";
    let body = format!(
        "{INIT} setp.eq.u32 %p4, tid, 0; setp.eq.u32 %p5, rank, 0; selp.b32 %r10, 512, 1024, %p5;
        @%p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], %r10; barrier.cluster.arrive; barrier.cluster.wait;
        setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS; @%p5 bra BOTH;
        mov.u16 %h1, 2; add.u64 %rd1, p1, 512; {load} [%r1+640], [%rd1], 512, [%r1], %h1; bra WAITS;
        BOTH: mov.u16 %h1, 3; {load} [%r1+128], [p1], 512, [%r1], %h1;
        WAITS: {WAIT} @%p5 bra FIRST; {} bra END; FIRST: {} END: barrier.cluster.arrive; barrier.cluster.wait;",
        dump(128, 256, "128"),
        dump(128, 128, "0").replace("DUMP", "OTHER")
    );
    for config in (0..SEEDS).map(config).chain([fast()]) {
        let out =
            run(&body, Shape::new(2, 64).clusters(2), 2048, vec![Buffer::zeros(384), words(256, value)], config).ok().words(0);
        for (i, &v) in out.iter().enumerate() {
            assert_eq!(v, value(if i < 128 { i as u32 } else { i as u32 - 128 }), "word {i}");
        }
    }
}

#[test]
fn a_block_does_not_end_before_its_copies() {
    let body = "mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 exit; mbarrier.init.shared::cta.b64 [%r1], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 4096;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1+128], [p1], 4096, [%r1];";
    for seed in 0..SEEDS {
        let run = run(body, Shape::new(1, 32), 8192, vec![Buffer::zeros(4), words(1024, value)], config(seed));
        assert_eq!(run.report().kind, Kind::EarlyExit, "{}", run.report());
    }
}
