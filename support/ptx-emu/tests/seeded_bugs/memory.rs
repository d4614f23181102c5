//! `bugs_memory.cu`: accesses that are wrong by themselves.

use crate::args;
use crate::common::*;
use ptx_emu::{Config, Kind, Shape, ThreadId};
use std::sync::Arc;

const BLOCK: u32 = 64;

fn memory() -> Arc<Text> {
    text("bugs_memory", "sm_80")
}

fn one_block() -> Shape {
    Shape::new(1, BLOCK)
}

/// A report in a kernel of this file by one of these threads of block 0.
fn wrong(kernel: &str, kind: Kind, place: Place, thread: fn(ThreadId) -> bool, says: &[&str], run: impl Fn(&Gpu) -> Run + Sync) {
    let text = memory();
    let expected = Expected { text: &text, kernel, kinds: &[kind], places: &[place], thread, says };
    reports(WRONG, &expected, |config| run(&Gpu::new(&text, config)));
}

fn right(run: impl Fn(&Gpu) -> Run + Sync) {
    let text = memory();
    passes(CORRECT, |config| run(&Gpu::new(&text, config)));
}

fn thread(id: ThreadId, x: u32) -> bool {
    id == ThreadId { device: 0, block: [0; 3], thread: [x, 0, 0] }
}

/// Where all lanes are wrong the first is named, of whichever warp comes first.
fn first_of_a_warp(id: ThreadId) -> bool {
    thread(id, 0) || thread(id, 32)
}

#[test]
fn global_memory_past_the_end() {
    let place = Place("st.global", "out[threadIdx.x] = threadIdx.x;");
    for n in [1, 31, 40, 63] {
        let run = |gpu: &Gpu| gpu.run("global_out_of_bounds", one_block(), &args![gpu.room::<u32>(n as usize), n]);
        let who: fn(ThreadId) -> bool = match n {
            1 => |id| thread(id, 1),
            31 => |id| thread(id, 31),
            40 => |id| thread(id, 40),
            _ => |id| thread(id, 63),
        };
        wrong("global_out_of_bounds", Kind::OutOfBounds, place, who, &["4 bytes"], run);
    }
    right(|gpu| {
        let out = gpu.room::<u32>(40);
        gpu.run("global_out_of_bounds_ok", one_block(), &args![out, 40u32])?;
        gpu.expect("out", out, &Vec::from_iter(0..40u32))
    });
}

#[test]
fn global_memory_before_the_start() {
    let place = Place("st.global", "out[-1] = 1;");
    wrong(
        "global_before_start",
        Kind::OutOfBounds,
        place,
        |id| thread(id, 0),
        &["4 bytes"],
        |gpu| gpu.run("global_before_start", one_block(), &args![gpu.room::<u32>(64)]),
    );
}

#[test]
fn shared_memory_past_the_end() {
    let place = Place("st.shared", "values[next + 64 - n] = mine + 1;");
    wrong(
        "shared_out_of_bounds",
        Kind::OutOfBounds,
        place,
        |id| thread(id, 63),
        &["shared"],
        |gpu| gpu.run("shared_out_of_bounds", one_block(), &args![gpu.room::<u32>(64), 64u32]),
    );
    right(|gpu| {
        let out = gpu.room::<u32>(64);
        gpu.run("shared_out_of_bounds_ok", one_block(), &args![out, 64u32])?;
        gpu.expect("out", out, &Vec::from_iter((0..64u32).map(|i| (i + 1) % 64)))
    });
}

#[test]
fn dynamic_shared_memory_that_is_too_small() {
    let run = |gpu: &Gpu, bytes: u32| {
        let out = gpu.room::<u32>(64);
        gpu.run("dynamic_shared_too_small", one_block().shared(bytes), &args![out])?;
        gpu.expect("out", out, &Vec::from_iter((0..64u32).rev()))
    };
    let place = Place("st.shared", "dynamic[threadIdx.x] = threadIdx.x;");
    let who = |id| thread(id, 63);
    wrong("dynamic_shared_too_small", Kind::OutOfBounds, place, who, &["shared"], |gpu| run(gpu, 252));
    right(|gpu| run(gpu, 256));
}

#[test]
fn misaligned_addresses() {
    let x: Vec<u32> = (0..64 * 4 + 4).map(|i| i * 3).collect();
    let vector = |gpu: &Gpu, offset: u32| {
        let out = gpu.room::<u32>(64);
        gpu.run("misaligned_vector", one_block(), &args![gpu.upload(&x), out, offset])?;
        let sums = x.chunks_exact(4).take(64).map(|four| four.iter().sum::<u32>());
        gpu.expect("out", out, &Vec::from_iter(sums))
    };
    let place = Place("ld.global.v4", "const uint4 four");
    wrong("misaligned_vector", Kind::Misaligned, place, first_of_a_warp, &["16"], |gpu| vector(gpu, 1));
    right(|gpu| vector(gpu, 0));

    let scalar = |gpu: &Gpu, offset: u32| {
        let out = gpu.room::<u32>(64);
        gpu.run("misaligned_scalar", one_block(), &args![gpu.upload(&x), out, offset])?;
        gpu.expect("out", out, &x[..64])
    };
    let place = Place("ld.global", "out[threadIdx.x] = *reinterpret_cast<const uint32_t*>");
    wrong("misaligned_scalar", Kind::Misaligned, place, first_of_a_warp, &[], |gpu| scalar(gpu, 2));
    right(|gpu| scalar(gpu, 0));
}

#[test]
fn shared_memory_that_nobody_wrote() {
    let place = Place("ld.shared", "out[threadIdx.x] = values[threadIdx.x];");
    let who = |id: ThreadId| (32..64).contains(&id.thread[0]);
    wrong("uninitialised_shared", Kind::UninitializedMemory, place, who, &["shared"], |gpu| {
        gpu.run("uninitialised_shared", one_block(), &args![gpu.room::<u32>(64)])
    });
    right(|gpu| {
        let out = gpu.room::<u32>(64);
        gpu.run("uninitialised_shared_ok", one_block(), &args![out])?;
        gpu.expect("out", out, &Vec::from_iter((0..64u32).map(|i| i + 7)))
    });
}

#[test]
fn a_register_that_nothing_wrote() {
    let place = Place("add.u32", "ptx::add_unwritten(threadIdx.x)");
    wrong("uninitialised_register", Kind::UninitializedRegister, place, anyone, &["add.u32"], |gpu| {
        gpu.run("uninitialised_register", one_block(), &args![gpu.room::<u32>(64)])
    });
    right(|gpu| {
        let out = gpu.room::<u32>(64);
        gpu.run("uninitialised_register_ok", one_block(), &args![out])?;
        gpu.expect("out", out, &Vec::from_iter((0..64u32).map(|i| i + 5)))
    });
}

#[test]
fn global_memory_that_nobody_wrote() {
    let place = Place("ld.global", "out[threadIdx.x] = x[threadIdx.x];");
    let x: Vec<u32> = (0..64).map(|i| i * i).collect();
    let run = |gpu: &Gpu, written: usize| {
        let (from, out) = (gpu.room::<u32>(64), gpu.room::<u32>(64));
        gpu.machine.memory().write(from, bytemuck::cast_slice(&x[..written])).unwrap();
        gpu.run("uninitialised_global", one_block(), &args![from, out])?;
        gpu.expect("out", out, &x)
    };
    wrong("uninitialised_global", Kind::UninitializedMemory, place, |id| thread(id, 40), &["global"], |gpu| run(gpu, 40));
    right(|gpu| run(gpu, 64));
}

#[test]
fn local_memory_that_nobody_wrote() {
    // A load moves what nobody wrote into a register, where it is found when it is used.
    let place = Place("st.global", "out[threadIdx.x] = values[threadIdx.x];");
    let run = |gpu: &Gpu, n: u32| {
        let out = gpu.room::<u32>(64);
        gpu.run("uninitialised_local", one_block(), &args![out, n])?;
        gpu.expect("out", out, &Vec::from_iter((0..64u32).map(|i| i * i)))
    };
    wrong("uninitialised_local", Kind::UninitializedRegister, place, |id| thread(id, 60), &["st.global"], |gpu| run(gpu, 60));
    right(|gpu| run(gpu, 64));
}

#[test]
fn pointers_to_nothing() {
    let place = Place("ld.global", "x[threadIdx.x] += 1;");
    let touch = |gpu: &Gpu, address: u64| gpu.run("touch", one_block(), &args![address]);
    wrong("touch", Kind::OutOfBounds, place, first_of_a_warp, &["4 bytes"], |gpu| touch(gpu, 0));
    wrong("touch", Kind::OutOfBounds, place, first_of_a_warp, &["4 bytes"], |gpu| {
        let x = gpu.zeros::<u32>(64);
        gpu.machine.memory().free(x).unwrap();
        touch(gpu, x)
    });
    right(|gpu| {
        let x = gpu.zeros::<u32>(64);
        touch(gpu, x)?;
        gpu.expect("x", x, &[1u32; 64])
    });

    // Memory of another device can be reached once it is mapped.
    let text = memory();
    let expected = Expected {
        text: &text,
        kernel: "touch",
        kinds: &[Kind::OutOfBounds],
        places: &[place],
        thread: first_of_a_warp,
        says: &["device 1"],
    };
    let foreign = |config: Config, mapped: bool| {
        let gpu = Gpu::new(&text, Config { devices: 2, ..config });
        let x = gpu.machine.memory().alloc(1, 256).unwrap();
        gpu.machine.memory().write(x, &[0; 256]).unwrap();
        if mapped {
            gpu.machine.memory().enable_peer(0, 1).unwrap();
        }
        touch(&gpu, x)?;
        gpu.expect("x", x, &[1u32; 64])
    };
    reports(WRONG, &expected, |config| foreign(config, false));
    passes(CORRECT, |config| foreign(config, true));
}

#[test]
fn memory_that_is_read_as_constant_and_written() {
    let x: Vec<u32> = (10..74).collect();
    let run = |gpu: &Gpu, blocks: u32| {
        let out = gpu.room::<u32>(64);
        gpu.run("read_const_global", Shape::new(blocks, BLOCK), &args![gpu.upload(&x), out])?;
        gpu.expect("out", out, &x)
    };
    let text = memory();
    let expected = Expected {
        text: &text,
        kernel: "read_const_global",
        kinds: &[Kind::DataRace],
        places: &[
            Place("ld.global.nc", "out[threadIdx.x] = __ldg(x + threadIdx.x);"),
            Place("st.volatile", "*const_cast<volatile uint32_t*>(x) = 1;"),
        ],
        thread: |id| id.thread == [0; 3] && id.block[0] < 2,
        says: &["global"],
    };
    reports(WRONG, &expected, |config| run(&Gpu::new(&text, config), 2));
    right(|gpu| run(gpu, 1));
}
