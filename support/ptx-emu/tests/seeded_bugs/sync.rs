//! `bugs_sync.cu`: wrong synchronisation by ordinary instructions.

use crate::args;
use crate::common::*;
use ptx_emu::{Arg, Config, Kind, Shape, ThreadId};
use std::sync::Arc;

const BLOCK: u32 = 128;

fn sync() -> Arc<Text> {
    text("bugs_sync", "sm_80")
}

/// What a wrong kernel of this file is launched with, and what is to be reported.
struct Wrong<'a> {
    kernel: &'a str,
    blocks: u32,
    kind: Kind,
    places: &'a [Place],
    thread: fn(ThreadId) -> bool,
    says: &'a [&'a str],
}

impl Wrong<'_> {
    fn check(&self, args: impl Fn(&Gpu) -> Vec<Arg> + Sync) {
        let text = sync();
        let Wrong { kernel, kind, places, thread, says, .. } = *self;
        let expected = Expected { text: &text, kernel, kinds: &[kind], places, thread, says };
        reports(WRONG, &expected, |config| {
            let gpu = Gpu::new(&text, config);
            gpu.run(kernel, Shape::new(self.blocks, BLOCK), &args(&gpu))
        });
    }
}

/// A correct kernel: its last argument is `out`, which starts as `before` and must become `after`.
fn right(kernel: &str, blocks: u32, before: &[u32], after: &[u32], args: impl Fn(&Gpu) -> Vec<Arg> + Sync) {
    let text = sync();
    passes(CORRECT, |config| {
        let gpu = Gpu::new(&text, config);
        let out = if before.is_empty() { gpu.room::<u32>(after.len()) } else { gpu.upload(before) };
        let mut args = args(&gpu);
        args.push(Arg::from(out));
        gpu.run(kernel, Shape::new(blocks, BLOCK), &args)?;
        gpu.expect("out", out, after)
    });
}

fn out_of(gpu: &Gpu) -> Vec<Arg> {
    args![gpu.room::<u32>(128)].to_vec()
}

fn zeroed_out_of(gpu: &Gpu) -> Vec<Arg> {
    args![gpu.zeros::<u32>(128)].to_vec()
}

fn iota(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..BLOCK).map(f).collect()
}

#[test]
fn race_of_warps_in_shared_memory() {
    let write = Place("st.shared", "values[threadIdx.x] = threadIdx.x;");
    let read = Place("ld.shared", "out[threadIdx.x] = values[(threadIdx.x + 32) % 128];");
    // Nothing says which of the two comes first: a read that comes first finds memory that nobody wrote.
    let text = sync();
    let expected = Expected {
        text: &text,
        kernel: "shared_race",
        kinds: &[Kind::DataRace],
        places: &[write, read],
        thread: |id| id.block == [0; 3],
        says: &["shared"],
    };
    reports(50, &expected, |config| {
        let gpu = Gpu::new(&text, config);
        gpu.run("shared_race", Shape::new(1, BLOCK), &out_of(&gpu))
    });
    right("shared_race_ok", 1, &[], &iota(|i| (i + 32) % 128), |_| vec![]);
}

#[test]
fn race_inside_a_warp() {
    let places = [
        Place("st.shared", "values[threadIdx.x] = threadIdx.x;"),
        Place("ld.shared", "out[threadIdx.x] = values[threadIdx.x ^ 31];"),
    ];
    let wrong = Wrong {
        kernel: "warp_race",
        blocks: 1,
        kind: Kind::DataRace,
        places: &places,
        thread: |id| id.block == [0; 3],
        says: &["shared"],
    };
    wrong.check(out_of);
    right("warp_race_ok", 1, &[], &iota(|i| i ^ 31), |_| vec![]);
}

#[test]
fn race_of_blocks_in_global_memory() {
    let line = "out[threadIdx.x] += 1;";
    let wrong = Wrong {
        kernel: "global_race",
        blocks: 4,
        kind: Kind::DataRace,
        places: &[Place("ld.global", line), Place("st.global", line)],
        thread: |id| id.block[0] < 4,
        says: &["global"],
    };
    wrong.check(zeroed_out_of);
    right("global_race_ok", 4, &[0; 128], &[4; 128], |_| vec![]);
}

/// Data and a flag that is down.
fn data_and_flag(gpu: &Gpu) -> Vec<Arg> {
    args![gpu.room::<u32>(128), gpu.zeros::<u32>(1)].to_vec()
}

#[test]
fn flags_that_order_nothing() {
    let places =
        [Place("st.global", "data[threadIdx.x] = threadIdx.x + 1;"), Place("ld.global", "out[threadIdx.x] = data[threadIdx.x];")];
    // At .cta scope the flag itself is what races: strong accesses whose scopes do not include each other.
    let flags = [
        Place("st.release.cta", "ptx::st_release_cta_global(flag, 1u);"),
        Place("ld.acquire.cta", "while (ptx::ld_acquire_cta_global(flag) == 0)"),
    ];
    let with_out = |gpu: &Gpu| [data_and_flag(gpu), out_of(gpu)].concat();
    let scope = Wrong {
        kernel: "flag_scope_block",
        blocks: 2,
        kind: Kind::InsufficientScope,
        places: &flags,
        thread: |id| id.thread == [0; 3],
        says: &["global"],
    };
    scope.check(with_out);
    for kernel in ["flag_relaxed", "flag_no_fence"] {
        let wrong = Wrong {
            kernel,
            blocks: 2,
            kind: Kind::DataRace,
            places: &places,
            thread: |id| id.block == [1, 0, 0],
            says: &["global"],
        };
        wrong.check(with_out);
    }
    for kernel in ["flag_scope_block_ok", "flag_relaxed_ok", "flag_no_fence_ok"] {
        right(kernel, 2, &[], &iota(|i| i + 1), data_and_flag);
    }
}

#[test]
fn atomics_of_too_small_a_scope() {
    let wrong = Wrong {
        kernel: "atomic_scope",
        blocks: 4,
        kind: Kind::InsufficientScope,
        places: &[
            Place("atom.global.cta", "atomicAdd_block(out, 1)"),
            Place("red.global.cta", "atomicAdd_block(out, 1)"),
            Place("atom.cta", "atomicAdd_block(out, 1)"),
        ],
        thread: |id| id.block[0] < 4,
        says: &["global"],
    };
    wrong.check(zeroed_out_of);
    right("atomic_scope_ok", 4, &[0], &[512], |_| vec![]);
}

#[test]
fn a_flag_that_nobody_sets() {
    let wrong = Wrong {
        kernel: "livelock",
        blocks: 1,
        kind: Kind::Livelock,
        places: &[Place("", "while (ptx::ld_acquire_gpu_global(flag) == 0)")],
        thread: |id| id.block == [0; 3],
        says: &["last read Global memory", "warp 0", "warp 3"],
    };
    wrong.check(|gpu| [args![gpu.zeros::<u32>(1)].to_vec(), out_of(gpu)].concat());
    right("livelock", 1, &[], &[1; 128], |gpu| args![gpu.upload(&[1u32])].to_vec());
}

#[test]
fn the_last_block_reads_without_a_fence() {
    let wrong = Wrong {
        kernel: "last_block_no_fence",
        blocks: 4,
        kind: Kind::DataRace,
        places: &[Place("st.global", "partial[blockIdx.x] = sum;"), Place("ld.global", "total += partial[i];")],
        thread: |id| id.thread == [0; 3],
        says: &["global"],
    };
    let partial_and_count = |gpu: &Gpu| args![gpu.room::<u32>(4), gpu.zeros::<u32>(1)].to_vec();
    wrong.check(|gpu| [partial_and_count(gpu), out_of(gpu)].concat());
    right("last_block_no_fence_ok", 4, &[], &[512], partial_and_count);
}

#[test]
fn a_barrier_that_some_threads_never_reach() {
    let wrong = Wrong {
        kernel: "barrier_count",
        blocks: 1,
        kind: Kind::Deadlock,
        places: &[Place("bar.sync", "ptx::bar_sync(1, 128);"), Place("bar.sync", "ptx::bar_sync(2, 128);")],
        thread: |id| id.block == [0; 3],
        says: &["barrier 1", "barrier 2", "warp 0", "warp 1", "warp 2", "warp 3"],
    };
    wrong.check(out_of);
    right("barrier_count_ok", 1, &[], &iota(|i| 127 - i), |_| vec![]);
}

#[test]
fn a_part_of_a_warp_at_a_barrier() {
    let wrong = Wrong {
        kernel: "divergent_barrier",
        blocks: 1,
        kind: Kind::Divergence,
        places: &[Place("bar.sync", "__syncthreads();")],
        thread: anyone,
        says: &["bar.sync"],
    };
    wrong.check(out_of);
    right("divergent_barrier_ok", 1, &[], &iota(|i| (i + 64) % 128), |_| vec![]);
}

#[test]
fn shuffles_with_lanes_that_are_not_there() {
    let wrong = Wrong {
        kernel: "shuffle_absent",
        blocks: 1,
        kind: Kind::Divergence,
        // What is read from a lane that has ended is undefined where it is used.
        places: &[Place("st.global", "__shfl_xor_sync(0xffffffffu, threadIdx.x, 1)")],
        thread: |id| id.thread[0] % 2 == 0,
        says: &["shfl", "undefined"],
    };
    wrong.check(out_of);
    let kept = |i: u32| if i.is_multiple_of(2) { i ^ 1 } else { 99 };
    right("shuffle_absent_ok", 1, &[99; 128], &iota(kept), |_| vec![]);
    let wrong = Wrong {
        kernel: "shuffle_not_named",
        thread: |id| id.thread[0] % 32 >= 16,
        places: &[Place("shfl.sync", "__shfl_xor_sync(0x0000ffffu, threadIdx.x, 1)")],
        says: &["shfl.sync"],
        ..wrong
    };
    wrong.check(out_of);
}

#[test]
fn asynchronous_copies_without_a_wait() {
    let x = iota(|i| i * 5);
    let input = |gpu: &Gpu| args![gpu.upload(&x)].to_vec();
    let with_out = |gpu: &Gpu| [input(gpu), out_of(gpu)].concat();
    let places = [
        Place("cp.async", "ptx::cp_async_cg_16(ptx::shared_address(values + threadIdx.x * 4), x + threadIdx.x * 4);"),
        Place("ld.shared", "out[threadIdx.x] = ptx::ld_shared_u32(ptx::shared_address(values + threadIdx.x));"),
    ];
    for kernel in ["copy_no_wait", "copy_no_barrier"] {
        let wrong = Wrong {
            kernel,
            blocks: 1,
            kind: Kind::DataRace,
            places: &places,
            thread: |id| id.block == [0; 3],
            says: &["shared"],
        };
        wrong.check(with_out);
    }
    right("copy_no_wait_ok", 1, &[], &x, input);
}

#[test]
fn traps_and_assertions() {
    let wrong = Wrong {
        kernel: "trap_here",
        blocks: 1,
        kind: Kind::Trap,
        places: &[Place("trap", "ptx::trap();")],
        thread: |id| id.thread == [77, 0, 0],
        says: &[],
    };
    wrong.check(|gpu| [out_of(gpu), args![77u32].to_vec()].concat());
    let text = sync();
    passes(CORRECT, |config: Config| {
        let gpu = Gpu::new(&text, config);
        let out = gpu.room::<u32>(128);
        gpu.run("trap_here", Shape::new(1, BLOCK), &args![out, 128u32])?;
        gpu.expect("out", out, &iota(|i| i))
    });

    let wrong = Wrong {
        kernel: "assert_here",
        places: &[Place("call", "assert(x[threadIdx.x] != 0);")],
        thread: |id| [5, 70].contains(&id.thread[0]),
        says: &["x[threadIdx.x] != 0", "bugs_sync.cu"],
        ..wrong
    };
    let x = |zeros: &[u32]| iota(|i| if zeros.contains(&i) { 0 } else { i + 1 });
    wrong.check(|gpu| [args![gpu.upload(&x(&[5, 70]))].to_vec(), out_of(gpu)].concat());
    right("assert_here", 1, &[], &x(&[]), |gpu| args![gpu.upload(&x(&[]))].to_vec());
}
