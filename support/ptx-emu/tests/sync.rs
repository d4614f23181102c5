//! Barriers, mbarriers, fences and their misuse, on small kernels.

mod kernel_runs;

use kernel_runs::{Buffer, config, fast, module, put, run, run_out};
use proptest::prelude::*;
use ptx_emu::{Config, Kind, Module, Shape};

const SEEDS: u64 = 12;

fn accepted(instruction: &str) -> Result<(), String> {
    let body = format!(
        "mov.u32 %r1, 1024; mov.u64 %rd1, 0; mov.u32 %r2, 1; setp.eq.u32 %p1, %r2, 1; mov.u64 %rd2, 0; mov.u16 %h1, 1;\n{instruction}"
    );
    Module::parse(&module(&body, 1, 64)).map(drop).map_err(|e| e.to_string())
}

#[test]
fn decodes_every_form() {
    // Accepted by ptxas 13.0 for sm_90a.
    let forms = "bar.sync 0; bar.sync %r2, %r1; bar.cta.sync 1; bar.arrive 1, 64; barrier.sync 1; barrier.cta.sync.aligned 2, 64;
        barrier.arrive 1, 64; barrier.cta.arrive.aligned 1, 64; bar.red.popc.u32 %r4, 1, %p1; bar.red.popc.u32 %r4, 1, 64, !%p1;
        bar.red.and.pred %p2, 1, %p1; barrier.cta.red.or.aligned.pred %p2, 1, 64, %p1; barrier.red.popc.aligned.u32 %r4, 1, %p1;
        bar.cta.red.or.pred %p2, 1, %p1; barrier.red.popc.u32 %r4, %r2, %p1; bar.warp.sync %r2; bar.warp.sync 0xffffffff;
        barrier.cluster.arrive; barrier.cluster.wait; barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; barrier.cluster.arrive.release;
        mbarrier.init.shared.b64 [%r1], %r2; mbarrier.init.b64 [%rd1], %r2; mbarrier.init.shared::cta.b64 [%r1+8], 5; mbarrier.inval.shared.b64 [%r1];
        mbarrier.arrive.b64 %rd2, [%rd1]; mbarrier.arrive.b64 %rd2, [%rd1], 2; mbarrier.arrive.shared.b64 _, [%r1];
        mbarrier.arrive.shared::cluster.b64 _, [%r1], 3; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1];
        mbarrier.arrive.release.cta.b64 %rd2, [%rd1]; mbarrier.arrive.relaxed.cluster.shared::cta.b64 %rd2, [%r1];
        mbarrier.arrive.noComplete.shared.b64 %rd2, [%r1], 4; mbarrier.arrive.noComplete.release.cta.shared::cta.b64 %rd2, [%r1], 4;
        mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%r1], 3; mbarrier.arrive.expect_tx.release.cta.shared.b64 %rd2, [%r1], 3;
        mbarrier.arrive.expect_tx.b64 %rd2, [%rd1], 3; mbarrier.arrive_drop.shared.b64 %rd2, [%r1];
        mbarrier.arrive_drop.expect_tx.shared::cta.b64 %rd2, [%r1], 4; mbarrier.arrive_drop.noComplete.shared.b64 %rd2, [%r1], 4;
        mbarrier.arrive_drop.release.cluster.shared::cluster.b64 _, [%r1], 4; mbarrier.expect_tx.shared.b64 [%r1], 4;
        mbarrier.expect_tx.b64 [%rd1], 4; mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%r1], 4;
        mbarrier.complete_tx.shared::cluster.b64 [%r1], 4; mbarrier.test_wait.shared.b64 %p2, [%r1], %rd2;
        mbarrier.test_wait.parity.b64 %p2, [%rd1], %r2; mbarrier.test_wait.acquire.cluster.shared::cta.b64 %p2, [%r1], %rd2;
        mbarrier.try_wait.parity.relaxed.cta.shared.b64 %p2, [%r1], %r2, %r1; mbarrier.try_wait.b64 %p2, [%rd1], %rd2, %r1;
        mbarrier.try_wait.relaxed.cluster.b64 %p2, [%rd1], %rd2; mbarrier.test_wait.parity.acquire.cta.shared.b64 %p2, [%r1], %r2;
        mbarrier.pending_count.b64 %r4, %rd2; fence.sc.cta; fence.acq_rel.gpu; fence.gpu; fence.sys; fence.cta; fence.cluster; fence.acquire.gpu;
        fence.release.sys; fence.proxy.alias; fence.proxy.async; fence.proxy.async.global; fence.proxy.async.shared::cta;
        fence.proxy.async.shared::cluster; fence.proxy.tensormap::generic.release.gpu; fence.proxy.tensormap::generic.acquire.gpu [%rd1], 128;
        fence.mbarrier_init.release.cluster; membar.gl; membar.cta; membar.sys; membar.proxy.alias; griddepcontrol.wait;
        griddepcontrol.launch_dependents; nanosleep.u32 %r1; nanosleep.u32 20; setmaxnreg.dec.sync.aligned.u32 40;
        setmaxnreg.inc.sync.aligned.u32 232";
    for form in forms.split(';').map(str::trim) {
        if let Err(e) = accepted(&format!("{form};")) {
            panic!("{form}: {e}");
        }
    }
}

#[test]
fn refuses_what_is_no_form() {
    for (form, why) in [
        ("bar.sync 16;", "barrier 16 does not exist"),
        ("bar.arrive 1;", "a count of threads"),
        ("bar.sync.release 1;", "unknown instruction"),
        ("bar.red.xor.pred %p2, 1, %p1;", "unknown instruction"),
        ("barrier.cluster.wait.release;", "unknown instruction"),
        ("barrier.cluster.arrive.acquire;", "unknown instruction"),
        ("mbarrier.arrive.shared::cluster.b64 %rd2, [%r1];", "the destination must be _"),
        ("mbarrier.arrive.release.gpu.shared.b64 %rd2, [%r1];", "unknown instruction"),
        ("mbarrier.arrive.acquire.cta.shared.b64 %rd2, [%r1];", "unknown instruction"),
        ("mbarrier.arrive.noComplete.shared.b64 %rd2, [%r1];", "wrong number of operands"),
        ("mbarrier.test_wait.shared::cluster.b64 %p2, [%r1], %rd2;", "unknown instruction"),
        ("mbarrier.test_wait.shared.b64 %p2, [%r1], %rd2, %r2;", "wrong number of operands"),
        ("mbarrier.init.shared.b32 [%r1], %r2;", "unknown instruction"),
        ("mbarrier.spin.shared.b64 [%r1], %r2;", "unknown instruction"),
        ("fence.acq_rel;", "unknown instruction"),
        ("fence.proxy.texture;", "unknown instruction"),
        ("fence.acquire.sync_restrict::shared::cluster.cluster;", "unknown instruction"),
        ("membar.gpu;", "unknown instruction"),
        ("setmaxnreg.inc.sync.aligned.u32 20;", "a multiple of 8"),
        ("setmaxnreg.inc.sync.aligned.u32 257;", "a multiple of 8"),
        ("tensormap.replace.tile.rank.global.b1024.b32 [%rd1], 3;", "unknown instruction"),
    ] {
        match accepted(form) {
            Ok(()) => panic!("{form} is accepted"),
            Err(e) => assert!(e.contains(why), "{form}: {e}"),
        }
    }
}

// ---- Barriers of a block -----------------------------------------------------------------------------------------------

/// Thread i writes i to shared memory, waits, and reads what thread i ^ 64 wrote.
fn exchange(barrier: &str) -> String {
    format!(
        "shl.b32 %r1, tid, 2; mov.u32 %r2, smem; add.u32 %r1, %r1, %r2; st.shared.b32 [%r1], tid;
        {barrier}
        xor.b32 %r3, %r1, 256; ld.shared.b32 %r4, [%r3]; {}",
        put("tid", "%r4")
    )
}

#[test]
fn barriers_order_the_block() {
    for barrier in ["bar.sync 0;", "barrier.sync 3;", "barrier.cta.sync.aligned 15, 128;", "mov.u32 %r9, 5; bar.sync %r9, 128;"] {
        for seed in 0..SEEDS {
            let out = run_out(&exchange(barrier), Shape::new(1, 128), 512, 128, seed).ok().words(0);
            assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32 ^ 64), "{barrier}");
        }
    }
}

#[test]
fn without_a_barrier_there_is_a_race() {
    let run = run_out(&exchange(""), Shape::new(1, 128), 512, 128, 0);
    assert!(matches!(run.report().kind, Kind::DataRace | Kind::UninitializedMemory), "{}", run.report());
}

#[test]
fn warps_of_a_partial_size_count_whole() {
    // 80 threads are three warps; the last has 16 threads and counts for 32.
    let body = format!("bar.sync 1, 96; bar.sync 0; {}", put("tid", "tid"));
    let out = run_out(&body, Shape::new(1, 80), 4, 80, 1).ok().words(0);
    assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32));
}

#[test]
fn producers_arrive_and_consumers_wait() {
    // Warps 2 and 3 write and arrive at barrier 2, warps 0 and 1 wait there and read; the other way round at barrier 3 before the next turn.
    let body = format!(
        "and.b32 %r5, tid, 63; shl.b32 %r1, %r5, 2; mov.u32 %r2, smem; add.u32 %r1, %r1, %r2; mov.u32 %r6, 0; mov.u32 %r7, 0;
        setp.ge.u32 %p1, tid, 64;
        @%p1 bra PRODUCE;
        CONSUME: bar.sync 2, 128; xor.b32 %r3, %r1, 128; ld.shared.b32 %r4, [%r3]; add.u32 %r7, %r7, %r4; bar.arrive 3, 128;
        add.u32 %r6, %r6, 1; setp.lt.u32 %p2, %r6, 5; @%p2 bra CONSUME;
        {}
        ret;
        PRODUCE: add.u32 %r8, %r6, %r5; st.shared.b32 [%r1], %r8; bar.arrive 2, 128; bar.sync 3, 128;
        add.u32 %r6, %r6, 1; setp.lt.u32 %p2, %r6, 5; @%p2 bra PRODUCE;",
        put("tid", "%r7")
    );
    for seed in 0..SEEDS {
        let out = run_out(&body, Shape::new(1, 128), 256, 64, seed).ok().words(0);
        assert!(out.iter().enumerate().all(|(i, &v)| v == 5 * (i as u32 ^ 32) + 10), "{out:?}");
    }
}

#[test]
fn subsets_use_barriers_of_their_own() {
    // Pairs of warps meet at a barrier with a number of their own, in different numbers of turns.
    let body = format!(
        "shr.u32 %r9, warp, 1; add.u32 %r10, %r9, 1; shl.b32 %r1, tid, 2; mov.u32 %r2, smem; add.u32 %r1, %r1, %r2; mov.u32 %r6, 0;
        mov.u32 %r4, tid;
        TURN: st.shared.b32 [%r1], %r4; bar.sync %r10, 64; xor.b32 %r3, %r1, 128; ld.shared.b32 %r4, [%r3]; add.u32 %r4, %r4, 1;
        bar.sync %r10, 64;
        add.u32 %r6, %r6, 1; setp.lt.u32 %p2, %r6, %r10; @%p2 bra TURN;
        {}",
        put("tid", "%r4")
    );
    for seed in 0..SEEDS {
        let out = run_out(&body, Shape::new(1, 256), 1024, 256, seed).ok().words(0);
        for (i, &v) in out.iter().enumerate() {
            let i = i as u32;
            let turns = i / 64 + 1;
            assert_eq!(v, (if turns % 2 == 1 { i ^ 32 } else { i }) + turns);
        }
    }
}

#[test]
fn reductions_see_every_thread() {
    let body = format!(
        "setp.lt.u32 %p1, tid, 40; setp.lt.u32 %p2, tid, 128;
        bar.red.popc.u32 %r1, 0, %p1; bar.red.popc.u32 %r2, 1, 128, !%p1; bar.red.and.pred %p3, 0, %p2; bar.red.and.pred %p4, 0, %p1;
        barrier.cta.red.or.aligned.pred %p5, 2, %p1; bar.red.or.pred %p6, 2, !%p2;
        selp.b32 %r3, 1, 0, %p3; selp.b32 %r4, 2, 0, %p4; selp.b32 %r5, 4, 0, %p5; selp.b32 %r6, 8, 0, %p6;
        or.b32 %r3, %r3, %r4; or.b32 %r3, %r3, %r5; or.b32 %r3, %r3, %r6;
        shl.b32 %r1, %r1, 8; shl.b32 %r2, %r2, 16; or.b32 %r3, %r3, %r1; or.b32 %r3, %r3, %r2; {}",
        put("tid", "%r3")
    );
    for seed in 0..SEEDS {
        let out = run_out(&body, Shape::new(1, 128), 4, 128, seed).ok().words(0);
        assert!(out.iter().all(|&v| v == (88 << 16 | 40 << 8 | 1 | 4)), "{:#x}", out[0]);
    }
}

#[test]
fn lanes_may_come_to_a_barrier_apart_unless_it_is_aligned() {
    // Each half of a warp has a barrier instruction of its own.
    let body = |barrier: &str| {
        format!(
            "and.b32 %r1, tid, 16; setp.eq.u32 %p1, %r1, 0; @%p1 bra LOW; {barrier} bra END; LOW: {barrier} END: {}",
            put("tid", "tid")
        )
    };
    for seed in 0..SEEDS {
        let out = run_out(&body("barrier.sync 1;"), Shape::new(1, 64), 4, 64, seed).ok().words(0);
        assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32));
    }
    let run = run_out(&body("bar.sync 1;"), Shape::new(1, 64), 4, 64, 0);
    assert_eq!(run.report().kind, Kind::Divergence, "{}", run.report());
    let run = run_out("setp.lt.u32 %p1, lane, 7; @%p1 bar.sync 0;", Shape::new(1, 64), 4, 1, 0);
    run.reports(Kind::Divergence, "the guard is false in lanes 0xffffff80");
}

#[test]
fn exited_threads_count_where_the_whole_block_is_expected() {
    let body = |barrier: &str| format!("setp.ge.u32 %p1, tid, 96; @%p1 exit; {barrier} {}", put("tid", "tid"));
    for seed in 0..SEEDS {
        run_out(&body("bar.sync 0;"), Shape::new(1, 128), 4, 128, seed).ok();
    }
    let run = run_out(&body("bar.sync 1, 128;"), Shape::new(1, 128), 4, 128, 0);
    run.reports(Kind::Deadlock, "named barrier 1: 96 of 128 threads have arrived");
}

#[test]
fn misuse_of_barriers_is_reported() {
    let half = "setp.lt.u32 %p1, tid, 64; ";
    for (body, part) in [
        ("mov.u32 %r1, 16; bar.sync %r1;".to_string(), "barrier 16 does not exist"),
        ("mov.u32 %r1, 48; bar.sync 1, %r1;".into(), "48 threads is not a positive multiple"),
        ("mov.u32 %r1, 0; bar.sync 1, %r1;".into(), "0 threads is not a positive multiple"),
        ("bar.sync 1, 256;".into(), "256 threads in a block of 128"),
        (format!("{half} @%p1 bra A; bar.sync 1, 128; ret; A: bar.sync 1, 96;"), "those that arrived before it expect"),
        (
            format!("{half} @%p1 bra A; bar.sync 1, 128; ret; A: bar.red.popc.u32 %r1, 1, 128, %p1;"),
            "a reduction and plain arrivals",
        ),
        (format!("{half} @%p1 bra A; bar.sync 0; ret; A: bar.arrive 1, 128; bar.arrive 1, 128;"), "arrives twice"),
    ] {
        let run = run_out(&body, Shape::new(1, 128), 4, 1, 0);
        run.reports(Kind::BarrierMisuse, part);
    }
}

#[test]
fn operands_of_an_aligned_barrier_must_agree() {
    run_out("bar.sync lane, 128;", Shape::new(1, 128), 4, 1, 0).reports(Kind::Divergence, "the barrier's number");
}

// ---- Barriers of a warp ------------------------------------------------------------------------------------------------

#[test]
fn lanes_meet_in_a_warp_wherever_they_are() {
    // Lanes 0-15 and 16-31 exchange through shared memory, each at an instruction of its own.
    let body = format!(
        "shl.b32 %r1, tid, 2; mov.u32 %r2, smem; add.u32 %r1, %r1, %r2; st.shared.b32 [%r1], tid; xor.b32 %r3, %r1, 64;
        setp.lt.u32 %p1, lane, 16; @%p1 bra LOW;
        bar.warp.sync 0xffffffff; ld.shared.b32 %r4, [%r3]; bra END;
        LOW: bar.warp.sync 0xffffffff; ld.shared.b32 %r4, [%r3];
        END: {}",
        put("tid", "%r4")
    );
    for seed in 0..SEEDS {
        let out = run_out(&body, Shape::new(1, 64), 256, 64, seed).ok().words(0);
        assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32 ^ 16));
    }
}

#[test]
fn parts_of_a_warp_meet_among_themselves() {
    // Quarters of a warp with member masks of their own, at one instruction.
    let body = format!(
        "shl.b32 %r1, tid, 2; mov.u32 %r2, smem; add.u32 %r1, %r1, %r2; shr.u32 %r5, lane, 3; shl.b32 %r5, %r5, 3; mov.u32 %r6, 255;
        shl.b32 %r6, %r6, %r5; st.shared.b32 [%r1], tid; bar.warp.sync %r6; xor.b32 %r3, %r1, 16; ld.shared.b32 %r4, [%r3]; {}",
        put("tid", "%r4")
    );
    for seed in 0..SEEDS {
        let out = run_out(&body, Shape::new(1, 32), 128, 32, seed).ok().words(0);
        assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32 ^ 4));
    }
}

#[test]
fn members_of_a_warp_barrier_must_come() {
    run_out("bar.warp.sync 0xfffffffe;", Shape::new(1, 32), 4, 1, 0).reports(Kind::Divergence, "which is not one of them");
    let run = run_out(
        "setp.eq.u32 %p1, lane, 3; @%p1 bra A; bar.warp.sync 0xffffffff; ret; A: bar.sync 1, 64; ret;",
        Shape::new(1, 64),
        4,
        1,
        0,
    );
    assert!(matches!(run.report().kind, Kind::Deadlock | Kind::Divergence), "{}", run.report());
}

#[test]
fn lanes_that_exit_are_not_waited_for() {
    let body = format!("setp.gt.u32 %p1, lane, 20; @%p1 exit; bar.warp.sync 0xffffffff; {}", put("tid", "tid"));
    for seed in 0..SEEDS {
        run_out(&body, Shape::new(1, 32), 4, 32, seed).ok();
    }
}

// ---- The cluster's barrier ---------------------------------------------------------------------------------------------

/// Each block writes its number, all meet, each reads the other's.
fn cluster_exchange(meet: &str) -> String {
    format!(
        "shl.b32 %r1, tid, 2; mov.u32 %r2, smem; add.u32 %r1, %r1, %r2; mad.lo.u32 %r5, block, 100, tid; st.shared.b32 [%r1], %r5;
        {meet}
        xor.b32 %r6, rank, 1; mapa.shared::cluster.u32 %r7, %r1, %r6; ld.shared::cluster.b32 %r8, [%r7];
        {meet}
        mad.lo.u32 %r9, block, 64, tid; {}",
        put("%r9", "%r8")
    )
}

#[test]
fn blocks_of_a_cluster_meet() {
    for meet in [
        "barrier.cluster.arrive; barrier.cluster.wait;",
        "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
    ] {
        for seed in 0..SEEDS {
            let out = run_out(&cluster_exchange(meet), Shape::new(4, 64).clusters(2), 256, 256, seed).ok().words(0);
            for (i, &v) in out.iter().enumerate() {
                let (block, tid) = (i as u32 / 64, i as u32 % 64);
                assert_eq!(v, (block ^ 1) * 100 + tid);
            }
        }
    }
}

#[test]
fn a_relaxed_arrival_orders_nothing() {
    let meet = "barrier.cluster.arrive.relaxed; barrier.cluster.wait;";
    let run = run_out(&cluster_exchange(meet), Shape::new(2, 64).clusters(2), 256, 256, 0);
    assert_eq!(run.report().kind, Kind::DataRace, "{}", run.report());
    let meet = "fence.acq_rel.cluster; barrier.cluster.arrive.relaxed; barrier.cluster.wait;";
    for seed in 0..SEEDS {
        run_out(&cluster_exchange(meet), Shape::new(2, 64).clusters(2), 256, 256, seed).ok();
    }
}

#[test]
fn a_block_must_not_end_before_others_are_done_with_its_memory() {
    let body = |last: &str| {
        cluster_exchange("barrier.cluster.arrive; barrier.cluster.wait;")
            .replacen("barrier.cluster.arrive; barrier.cluster.wait;", "MEET", 1)
            .replace("barrier.cluster.arrive; barrier.cluster.wait;", last)
            .replace("MEET", "barrier.cluster.arrive; barrier.cluster.wait;")
    };
    for seed in 0..SEEDS {
        let shape = Shape::new(2, 64).clusters(2);
        run_out(&body("barrier.cluster.arrive; barrier.cluster.wait;"), shape, 256, 256, seed).ok();
        let run = run_out(&body(""), shape, 256, 256, seed);
        assert_eq!(run.report().kind, Kind::EarlyExit, "{}", run.report());
        // To arrive is not enough: the other block may end meanwhile.
        let run = run_out(&body("barrier.cluster.arrive.relaxed; barrier.cluster.wait;"), shape, 256, 256, seed);
        assert_eq!(run.report().kind, Kind::EarlyExit, "{}", run.report());
    }
}

#[test]
fn misuse_of_the_clusters_barrier_is_reported() {
    let shape = Shape::new(2, 64).clusters(2);
    run_out("barrier.cluster.arrive; barrier.cluster.arrive;", shape, 4, 1, 0)
        .reports(Kind::BarrierMisuse, "has arrived before and not waited");
    run_out("barrier.cluster.wait;", shape, 4, 1, 0).reports(Kind::BarrierMisuse, "has not arrived");
    run_out("setp.eq.u32 %p1, tid, 0; @%p1 barrier.cluster.arrive.aligned;", shape, 4, 1, 0)
        .reports(Kind::Divergence, "the guard is false");
    let waits = "setp.eq.u32 %p1, rank, 0; @%p1 bra A; bar.sync 1, 64; A: barrier.cluster.arrive; barrier.cluster.wait;
        setp.eq.u32 %p1, rank, 0; @%p1 bra B; bra END; B: barrier.cluster.arrive; barrier.cluster.wait; END: bar.sync 0;";
    run_out(waits, shape, 4, 1, 0).ok();
}

#[test]
fn threads_that_exit_do_not_hold_the_cluster_up() {
    let body = format!(
        "setp.ge.u32 %p1, tid, 40; @%p1 exit; barrier.cluster.arrive; barrier.cluster.wait; mad.lo.u32 %r1, rank, 64, tid; {}",
        put("%r1", "tid")
    );
    for seed in 0..SEEDS {
        run_out(&body, Shape::new(2, 64).clusters(2), 4, 128, seed).ok();
    }
    // One block ends without ever arriving.
    let body = "setp.eq.u32 %p1, rank, 1; @%p1 exit; barrier.cluster.arrive; barrier.cluster.wait;";
    for seed in 0..SEEDS {
        run_out(body, Shape::new(2, 64).clusters(2), 4, 64, seed).ok();
    }
    // One never comes.
    let body =
        "setp.eq.u32 %p1, rank, 1; @%p1 bra A; barrier.cluster.arrive; barrier.cluster.wait; ret; A: setp.lt.u32 %p2, tid, 32;
        @%p2 bra END; bar.sync 1, 64; END: bar.sync 2, 64;";
    run_out(body, Shape::new(2, 64).clusters(2), 4, 64, 0)
        .reports(Kind::Deadlock, "barrier.cluster: 64 of 128 threads have arrived");
}

// ---- mbarriers ---------------------------------------------------------------------------------------------------------

/// Thread 0 initialises an mbarrier for so many arrivals, all know.
fn with_mbarrier(count: u32, body: &str) -> String {
    format!(
        "mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 bra READY; mbarrier.init.shared.b64 [%r1], {count};
        READY: bar.sync 0;
        {body}"
    )
}

#[test]
fn an_mbarrier_orders_what_came_before_arrivals() {
    let wait = [
        "W: mbarrier.try_wait.parity.shared.b64 %p3, [%r1], 0; @!%p3 bra W;",
        "W: mbarrier.test_wait.parity.shared.b64 %p3, [%r1], 0; @!%p3 bra W;",
        "W: mbarrier.try_wait.shared.b64 %p3, [%r1], %rd1, 1000; @!%p3 bra W;",
        "W: mbarrier.test_wait.acquire.cluster.shared.b64 %p3, [%r1], %rd1; @!%p3 bra W;",
        "cvta.shared.u64 %rd3, %rd2; W: mbarrier.test_wait.b64 %p3, [%rd3], %rd1; @!%p3 bra W;",
    ];
    for wait in wait {
        let body = with_mbarrier(
            128,
            &format!(
                "shl.b32 %r2, tid, 2; add.u32 %r2, %r2, %r1; st.shared.b32 [%r2+64], tid; cvt.u64.u32 %rd2, %r1;
                mbarrier.arrive.shared.b64 %rd1, [%r1];
                {wait}
                mov.u32 %r3, 127; sub.u32 %r3, %r3, tid; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, %r1; ld.shared.b32 %r4, [%r3+64]; {}",
                put("tid", "%r4")
            ),
        );
        for seed in 0..SEEDS {
            let out = run_out(&body, Shape::new(1, 128), 1024, 128, seed).ok().words(0);
            assert!(out.iter().enumerate().all(|(i, &v)| v == 127 - i as u32), "{wait}");
        }
    }
}

#[test]
fn relaxed_arrivals_and_waits_order_nothing() {
    let body = |arrive: &str, wait: &str| {
        with_mbarrier(
            64,
            &format!(
                "shl.b32 %r2, tid, 2; add.u32 %r2, %r2, %r1; st.shared.b32 [%r2+64], tid;
                mbarrier.arrive{arrive}.shared.b64 %rd1, [%r1];
                W: mbarrier.try_wait.parity{wait}.shared.b64 %p3, [%r1], 0; @!%p3 bra W;
                xor.b32 %r3, %r2, 128; ld.shared.b32 %r4, [%r3+64];"
            ),
        )
    };
    for seed in 0..SEEDS {
        run_out(&body(".release.cta", ".acquire.cta"), Shape::new(1, 64), 512, 1, seed).ok();
    }
    for (arrive, wait) in [(".relaxed.cta", ""), ("", ".relaxed.cta")] {
        let run = run_out(&body(arrive, wait), Shape::new(1, 64), 512, 1, 0);
        assert_eq!(run.report().kind, Kind::DataRace, "{}", run.report());
    }
}

#[test]
fn states_and_counts() {
    // One thread walks through phases: pending counts before each arrival, drops, transactions.
    let body = format!(
        "setp.ne.u32 %p1, tid, 0; @%p1 exit; mov.u32 %r1, smem;
        mbarrier.init.shared.b64 [%r1], 5;
        mbarrier.arrive.shared.b64 %rd1, [%r1]; mbarrier.pending_count.b64 %r10, %rd1;
        mbarrier.arrive.shared.b64 %rd2, [%r1], 2; mbarrier.pending_count.b64 %r11, %rd2;
        mbarrier.arrive.noComplete.shared.b64 %rd3, [%r1], 1; mbarrier.pending_count.b64 %r12, %rd3;
        mbarrier.test_wait.shared.b64 %p2, [%r1], %rd1; selp.b32 %r13, 1, 0, %p2;
        mbarrier.arrive_drop.shared.b64 %rd4, [%r1]; mbarrier.pending_count.b64 %r14, %rd4;
        mbarrier.test_wait.shared.b64 %p2, [%r1], %rd1; selp.b32 %r15, 1, 0, %p2;
        mbarrier.arrive.expect_tx.shared.b64 %rd5, [%r1], 32; mbarrier.pending_count.b64 %r16, %rd5;
        mbarrier.complete_tx.shared.b64 [%r1], 64; mbarrier.arrive.shared.b64 %rd6, [%r1], 3;
        mbarrier.test_wait.parity.shared.b64 %p2, [%r1], 1; selp.b32 %r17, 1, 0, %p2;
        mbarrier.expect_tx.shared.b64 [%r1], 48; mbarrier.complete_tx.shared.b64 [%r1], 16;
        mbarrier.test_wait.parity.shared.b64 %p2, [%r1], 1; selp.b32 %r18, 1, 0, %p2;
        mbarrier.inval.shared.b64 [%r1];
        {}",
        (0..9).map(|i| format!("mov.u32 %r30, {i}; {}", put("%r30", &format!("%r{}", 10 + i)))).collect::<String>()
    );
    for config in [config(0), config(3), fast()] {
        let out = run(&body, Shape::new(1, 32), 16, vec![Buffer::zeros(9)], config).ok().words(0);
        assert_eq!(out, [5, 4, 2, 0, 1, 1, 4, 0, 1]);
    }
}

#[test]
fn remote_arrivals() {
    // Each block's threads arrive at the other block's barrier, having written to its memory.
    let body = |arrive: &str, wait: &str| {
        format!(
            "mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 bra READY; mbarrier.init.shared.b64 [%r1], 64;
            fence.mbarrier_init.release.cluster;
            READY: barrier.cluster.arrive; barrier.cluster.wait;
            xor.b32 %r2, rank, 1; mapa.shared::cluster.u32 %r3, %r1, %r2; shl.b32 %r4, tid, 2; add.u32 %r5, %r3, %r4;
            mad.lo.u32 %r6, rank, 1000, tid; st.shared::cluster.b32 [%r5+64], %r6;
            mbarrier.arrive{arrive}.shared::cluster.b64 _, [%r3];
            W: mbarrier.try_wait.parity{wait}.shared::cta.b64 %p2, [%r1], 0; @!%p2 bra W;
            xor.b32 %r7, %r4, 128; add.u32 %r7, %r7, %r1; ld.shared.b32 %r8, [%r7+64]; mad.lo.u32 %r9, block, 64, tid; {}
            barrier.cluster.arrive; barrier.cluster.wait;",
            put("%r9", "%r8")
        )
    };
    for (arrive, wait) in [(".release.cluster", ".acquire.cluster"), ("", "")] {
        for seed in 0..SEEDS {
            let out = run_out(&body(arrive, wait), Shape::new(2, 64).clusters(2), 512, 128, seed).ok().words(0);
            for (i, &v) in out.iter().enumerate() {
                let (block, tid) = (i as u32 / 64, i as u32 % 64);
                assert_eq!(v, (block ^ 1) * 1000 + (tid ^ 32));
            }
        }
    }
    for (arrive, wait) in
        [(".release.cluster", ""), (".release.cta", ".acquire.cluster"), (".relaxed.cluster", ".acquire.cluster")]
    {
        let run = run_out(&body(arrive, wait), Shape::new(2, 64).clusters(2), 512, 128, 0);
        assert!(matches!(run.report().kind, Kind::DataRace | Kind::InsufficientScope), "{}", run.report());
    }
}

#[test]
fn misuse_of_mbarriers_is_reported() {
    let one = "setp.ne.u32 %p1, tid, 0; @%p1 exit; mov.u32 %r1, smem; ";
    for (body, kind, part) in [
        ("mbarrier.arrive.shared.b64 _, [%r1];", Kind::BarrierMisuse, "mbarrier.init has not been executed there"),
        ("mbarrier.init.shared.b64 [%r1], 0;", Kind::BarrierMisuse, "a count of 0"),
        ("mbarrier.init.shared.b64 [%r1], 1048576;", Kind::BarrierMisuse, "a count of 1048576"),
        ("mbarrier.init.shared.b64 [%r1+4], 1;", Kind::Misaligned, "not a multiple of 8"),
        ("mbarrier.init.shared.b64 [%r1+4096], 1;", Kind::OutOfBounds, "8 bytes at shared address"),
        ("mbarrier.init.shared.b64 [0], 1;", Kind::OutOfBounds, "8 bytes at shared address"),
        ("mbarrier.init.b64 [p0], 1;", Kind::OutOfBounds, "is not in shared memory"),
        (
            "mbarrier.init.shared.b64 [%r1], 1; mbarrier.arrive.shared.b64 _, [%r1], 2;",
            Kind::BarrierMisuse,
            "1 more arrivals than",
        ),
        (
            "mbarrier.init.shared.b64 [%r1], 1; mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 16; mbarrier.arrive.shared.b64 _, [%r1];",
            Kind::BarrierMisuse,
            "1 more arrivals than",
        ),
        (
            "mbarrier.init.shared.b64 [%r1], 2; mbarrier.arrive.noComplete.shared.b64 %rd1, [%r1], 2;",
            Kind::BarrierMisuse,
            "noComplete",
        ),
        ("mbarrier.init.shared.b64 [%r1], 1; mbarrier.arrive.shared.b64 _, [%r1], 0;", Kind::BarrierMisuse, "a count of 0"),
        (
            "mbarrier.init.shared.b64 [%r1], 1; mbarrier.expect_tx.shared.b64 [%r1], 1048575; mbarrier.expect_tx.shared.b64 [%r1], 1;",
            Kind::BarrierMisuse,
            "transaction count would become 1048576",
        ),
        (
            "mbarrier.init.shared.b64 [%r1], 1; mbarrier.inval.shared.b64 [%r1]; mbarrier.arrive.shared.b64 _, [%r1];",
            Kind::BarrierMisuse,
            "no mbarrier",
        ),
        ("mbarrier.inval.shared.b64 [%r1];", Kind::BarrierMisuse, "no mbarrier"),
        (
            "mbarrier.init.shared.b64 [%r1], 1; mbarrier.arrive.shared.b64 %rd1, [%r1]; mbarrier.arrive.shared.b64 _, [%r1];
            mbarrier.test_wait.shared.b64 %p2, [%r1], %rd1;",
            Kind::BarrierMisuse,
            "neither of the phase in progress nor of the one before",
        ),
        (
            "mbarrier.init.shared.b64 [%r1], 2; mbarrier.expect_tx.shared.b64 [%r1], 16; mbarrier.init.shared.b64 [%r1], 2;",
            Kind::BarrierMisuse,
            "it is in use",
        ),
        (
            "mbarrier.init.shared.b64 [%r1], 1; W: mbarrier.try_wait.parity.shared.b64 %p2, [%r1], 0; @!%p2 bra W;",
            Kind::Deadlock,
            "waits for the phase of parity 0 of the mbarrier at shared address 0x400: phase of parity 0: 0 of 1 arrivals, transaction count 0",
        ),
    ] {
        let run = run_out(&format!("{one}{body}"), Shape::new(1, 32), 64, 1, 0);
        run.reports(kind, part);
    }
}

#[test]
fn the_lanes_of_an_arrival_belong_to_one_phase() {
    let run = run_out(&with_mbarrier(4, "mbarrier.arrive.shared.b64 _, [%r1];"), Shape::new(1, 32), 64, 1, 0);
    run.reports(Kind::BarrierMisuse, "28 more arrivals than the phase expects");
    assert_eq!(run.report().thread.unwrap().thread, [3, 0, 0]);
    // One in a warp is right.
    let body = "setp.ne.u32 %p2, lane, 0; @!%p2 mbarrier.arrive.shared.b64 _, [%r1];";
    run_out(&with_mbarrier(4, body), Shape::new(1, 128), 64, 1, 0).ok();
}

#[test]
fn an_mbarrier_that_is_waited_for_stays() {
    for instruction in ["mbarrier.inval.shared.b64 [%r1];", "mbarrier.init.shared.b64 [%r1], 1;"] {
        let body = with_mbarrier(
            1,
            &format!(
                "setp.ge.u32 %p2, tid, 32; @%p2 bra A; W: mbarrier.try_wait.parity.shared.b64 %p3, [%r1], 0; @!%p3 bra W; ret;
                A: mov.u32 %r5, 0; D: add.u32 %r5, %r5, 1; nanosleep.u32 100; setp.lt.u32 %p3, %r5, 40; @%p3 bra D;
                setp.ne.u32 %p3, tid, 32; @%p3 exit; {instruction}"
            ),
        );
        run_out(&body, Shape::new(1, 64), 64, 1, 0).reports(Kind::BarrierMisuse, "groups of threads wait for it");
    }
}

#[test]
fn a_store_over_an_mbarrier_is_noticed() {
    let body =
        with_mbarrier(1, "setp.ne.u32 %p2, tid, 0; @%p2 exit; st.shared.b32 [%r1+4], %r1; mbarrier.arrive.shared.b64 _, [%r1];");
    let run = run_out(&body, Shape::new(1, 32), 64, 1, 0);
    assert_eq!(run.report().kind, Kind::BarrierMisuse, "{}", run.report());
}

#[test]
fn an_mbarrier_is_used_only_where_its_initialisation_is_known() {
    let body = "mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 bra A; mbarrier.init.shared.b64 [%r1], 1; bra END;
        A: setp.ne.u32 %p1, tid, 32; @%p1 bra END; nanosleep.u32 100; nanosleep.u32 100; mbarrier.arrive.shared.b64 _, [%r1]; END: bar.sync 0;";
    let run = run_out(body, Shape::new(1, 64), 64, 1, 0);
    assert_eq!(run.report().kind, Kind::DataRace, "{}", run.report());
}

#[test]
fn an_exited_block_has_no_mbarriers() {
    let body = "mov.u32 %r1, smem; mbarrier.init.shared.b64 [%r1], 64; barrier.cluster.arrive; barrier.cluster.wait;
        setp.eq.u32 %p1, rank, 1; @%p1 exit; mov.u32 %r5, 0; D: add.u32 %r5, %r5, 1; nanosleep.u32 100; setp.lt.u32 %p3, %r5, 100; @%p3 bra D;
        mov.u32 %r2, 1; mapa.shared::cluster.u32 %r3, %r1, %r2; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3];";
    run_out(body, Shape::new(2, 1).clusters(2), 64, 1, 0).reports(Kind::EarlyExit, "has exited");
}

// ---- A ring of mbarriers -----------------------------------------------------------------------------------------------

fn ring(turns: u32, slots: u32, wait_empty: bool) -> String {
    // Warp 0 fills slots, warp 1 empties them: `full` at smem, `empty` at smem + 64, data at smem + 128.
    let wait = |which: &str, label: &str| {
        format!("{label}: mbarrier.try_wait.parity.shared.b64 %p2, [{which}], %r7; @!%p2 bra {label};")
    };
    let next = format!(
        "add.u32 %r6, %r6, 1; setp.eq.u32 %p4, %r6, {slots}; @%p4 xor.b32 %r7, %r7, 1; @%p4 mov.u32 %r6, 0;
        add.u32 %r5, %r5, 1; setp.lt.u32 %p5, %r5, {turns};"
    );
    let slot = "shl.b32 %r8, %r6, 3; add.u32 %r10, %r1, %r8; shl.b32 %r9, %r6, 7; add.u32 %r9, %r9, %r1; shl.b32 %r11, lane, 2; add.u32 %r9, %r9, %r11;";
    format!(
        "mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 bra READY; mov.u32 %r2, 0;
        I: shl.b32 %r3, %r2, 3; add.u32 %r3, %r3, %r1; mbarrier.init.shared.b64 [%r3], 32; mbarrier.init.shared.b64 [%r3+64], 32;
        add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, {slots}; @%p1 bra I;
        READY: bar.sync 0;
        mov.u32 %r5, 0; mov.u32 %r6, 0; setp.ge.u32 %p3, tid, 32; @%p3 bra CONSUME;
        mov.u32 %r7, 1;
        P: {slot} {} mad.lo.u32 %r12, %r5, 10, lane; st.shared.b32 [%r9+128], %r12; mbarrier.arrive.shared.b64 _, [%r10]; {next} @%p5 bra P; ret;
        CONSUME: mov.u32 %r7, 0; mov.u32 %r20, 0;
        C: {slot} {} ld.shared.b32 %r12, [%r9+128]; add.u32 %r20, %r20, %r12; mbarrier.arrive.shared.b64 _, [%r10+64]; {next} @%p5 bra C;
        {}",
        if wait_empty { wait("%r10+64", "WP") } else { String::new() },
        wait("%r10", "WC"),
        put("lane", "%r20")
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_ring_delivers_everything(turns in 1u32..12, slots in 1u32..5, seed in 0u64..1 << 20) {
        let out = run_out(&ring(turns, slots, true), Shape::new(1, 64), 1024, 32, seed).ok().words(0);
        for (lane, &sum) in out.iter().enumerate() {
            prop_assert_eq!(sum, 10 * (turns * (turns - 1) / 2) + turns * lane as u32);
        }
    }
}

#[test]
fn a_producer_that_does_not_wait_is_found() {
    for seed in 0..SEEDS {
        let run = run_out(&ring(9, 3, false), Shape::new(1, 64), 1024, 32, seed);
        assert!(matches!(run.report().kind, Kind::DataRace | Kind::BarrierMisuse | Kind::Deadlock), "{}", run.report());
    }
}

#[test]
fn a_wait_may_fail_before_its_time() {
    // With a seed, some `try_wait` returns false at once; without one, none does.
    let body = with_mbarrier(
        32,
        &format!(
            "mov.u32 %r20, 0; setp.lt.u32 %p2, tid, 32; @%p2 bra A;
            W: mbarrier.try_wait.parity.shared.b64 %p3, [%r1], 0; @%p3 bra DONE; add.u32 %r20, %r20, 1; bra W;
            DONE: {} ret;
            A: mov.u32 %r5, 0; D: add.u32 %r5, %r5, 1; nanosleep.u32 100; setp.lt.u32 %p3, %r5, 20; @%p3 bra D;
            mbarrier.arrive.shared.b64 _, [%r1];",
            put("lane", "%r20")
        ),
    );
    let failed = |seed| run_out(&body, Shape::new(1, 64), 64, 32, seed).ok().words(0)[0];
    assert_eq!(failed(0), 0);
    assert!((1..60).any(|seed| failed(seed) > 0));
}

// ---- The rest ----------------------------------------------------------------------------------------------------------

#[test]
fn registers_move_between_warpgroups() {
    let body = |first: u32, others: u32| {
        format!(
            "setp.lt.u32 %p1, tid, 128; @%p1 bra P; setmaxnreg.inc.sync.aligned.u32 {others}; bra END;
            P: setmaxnreg.dec.sync.aligned.u32 {first}; END: {}",
            put("tid", "tid")
        )
    };
    for seed in 0..SEEDS {
        run_out(&body(40, 232), Shape::new(1, 384), 4, 384, seed).ok();
    }
    run_out(&body(40, 240), Shape::new(1, 384), 4, 384, 0)
        .reports(Kind::Deadlock, "setmaxnreg.inc waits for 240 registers a thread");
    run_out("setmaxnreg.dec.sync.aligned.u32 40;", Shape::new(1, 96), 4, 1, 0).reports(Kind::Divergence, "whole warpgroups");
    run_out("setp.lt.u32 %p1, tid, 32; @%p1 exit; setmaxnreg.dec.sync.aligned.u32 40;", Shape::new(1, 128), 4, 1, 0)
        .reports(Kind::Divergence, "its warpgroup");
    let body =
        "setp.lt.u32 %p1, tid, 32; @%p1 bra A; setmaxnreg.dec.sync.aligned.u32 40; ret; A: setmaxnreg.dec.sync.aligned.u32 48;";
    run_out(body, Shape::new(1, 128), 4, 1, 0).reports(Kind::Divergence, "setmaxnreg.dec");
    run_out("setp.eq.u32 %p1, lane, 0; @%p1 setmaxnreg.dec.sync.aligned.u32 40;", Shape::new(1, 128), 4, 1, 0)
        .reports(Kind::Divergence, "the guard is false");
}

#[test]
fn a_dependent_launch_waits_for_the_one_before() {
    let first = module(
        &format!(
            "griddepcontrol.launch_dependents; mov.u32 %r5, 0; D: add.u32 %r5, %r5, 1; nanosleep.u32 50; setp.lt.u32 %p3, %r5, 30; @%p3 bra D; {}",
            put("tid", "tid")
        ),
        1,
        4,
    );
    let second = |wait: &str| {
        let text = module(
            &format!(
                "{wait} mul.wide.u32 %rd1, tid, 4; add.u64 %rd1, %rd1, p0; ld.global.b32 %r1, [%rd1]; add.u32 %r1, %r1, 1; st.global.b32 [%rd1], %r1;"
            ),
            1,
            4,
        );
        text.replace("entry k", "entry second")
    };
    let attempt = |wait: &str, seed: u64| {
        let machine = ptx_emu::Machine::new(Config { seed, ..Config::default() });
        let a = machine.load(&Module::parse(&first).unwrap(), 0).unwrap();
        let b = machine.load(&Module::parse(&second(wait)).unwrap(), 0).unwrap();
        let stream = machine.stream(0).unwrap();
        let buffer = machine.memory().alloc(0, 256).unwrap();
        machine.memory().write(buffer, &[0; 256]).unwrap();
        machine.launch(stream, &a, "k", Shape::new(1, 64), &[buffer.into()]).unwrap();
        let shape = Shape { programmatic: true, ..Shape::new(1, 64) };
        machine.launch(stream, &b, "second", shape, &[buffer.into()]).unwrap();
        machine.synchronize().map(|()| {
            let mut bytes = [0; 256];
            machine.memory().read(buffer, &mut bytes).unwrap();
            bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect::<Vec<_>>()
        })
    };
    for seed in 0..SEEDS {
        let out = attempt("griddepcontrol.wait;", seed).unwrap_or_else(|e| panic!("{e}"));
        assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32 + 1));
    }
    // Without the wait there is a race, which shows where the second launch begins before the first has ended.
    let reports: Vec<_> = (0..4 * SEEDS).filter_map(|seed| attempt("", seed).err()).collect();
    assert!(!reports.is_empty());
    assert!(reports.iter().all(|r| r.kind == Kind::DataRace), "{}", reports[0]);
}
