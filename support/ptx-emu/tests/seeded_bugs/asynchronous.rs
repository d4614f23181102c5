//! `bugs_async.cu`, blocks on their own: mbarriers, bulk copies, WGMMA, TMA, registers of warpgroups.

use crate::args;
use crate::common::*;
use half::bf16;
use ptx_emu::tma::{DataType, TensorMap, Tiled};
use ptx_emu::{Arg, Kind, Shape, ThreadId};
use std::sync::Arc;

const BLOCK: u32 = 128;

fn asynchronous() -> Arc<Text> {
    text("bugs_async", "sm_90a")
}

fn here(id: ThreadId) -> bool {
    id.block == [0; 3]
}

/// A wrong kernel, run as one block of 128 threads.
fn wrong(kernel: &str, kind: Kind, places: &[Place], says: &[&str], args: impl Fn(&Gpu) -> Vec<Arg> + Sync) {
    wrong_with(BLOCK, kernel, kind, places, says, args);
}

fn wrong_with(threads: u32, kernel: &str, kind: Kind, places: &[Place], says: &[&str], args: impl Fn(&Gpu) -> Vec<Arg> + Sync) {
    let text = asynchronous();
    let expected = Expected { text: &text, kernel, kinds: &[kind], places, thread: here, says };
    reports(WRONG, &expected, |config| {
        let gpu = Gpu::new(&text, config);
        gpu.run(kernel, Shape::new(1, threads), &args(&gpu))
    });
}

/// A correct kernel of one block whose last argument is `out`.
fn right(kernel: &str, threads: u32, out: &[u32], args: impl Fn(&Gpu) -> Vec<Arg> + Sync) {
    let text = asynchronous();
    passes(CORRECT, |config| {
        let gpu = Gpu::new(&text, config);
        let address = gpu.room::<u32>(out.len());
        let mut args = args(&gpu);
        args.push(Arg::from(address));
        gpu.run(kernel, Shape::new(1, threads), &args)?;
        gpu.expect("out", address, out)
    });
}

fn out_of(gpu: &Gpu) -> Vec<Arg> {
    args![gpu.room::<u32>(384)].to_vec()
}

fn none(_: &Gpu) -> Vec<Arg> {
    vec![]
}

fn iota(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..BLOCK).map(f).collect()
}

#[test]
fn arrivals_at_mbarriers() {
    let arrive = Place("mbarrier.arrive", "ptx::mbarrier_arrive(mbarrier, BUG == TOO_MANY ? 2 : 1);");
    let wait = Place("mbarrier.try_wait", "pipeline::wait(mbarrier,");
    wrong("mbarrier_too_many", Kind::BarrierMisuse, &[arrive], &["arriv"], out_of);
    wrong("mbarrier_wrong_phase", Kind::Deadlock, &[wait], &["mbarrier", "warp 0", "warp 3"], out_of);
    wrong("mbarrier_uninitialised", Kind::BarrierMisuse, &[arrive, wait], &["init"], out_of);
    // Found by the next operation on the object.
    wrong("mbarrier_overwritten", Kind::BarrierMisuse, &[arrive], &["overwritten"], out_of);
    let again = Place("mbarrier.arrive", "ptx::mbarrier_arrive(mbarrier);");
    wrong("mbarrier_invalidated", Kind::BarrierMisuse, &[again], &["mbarrier"], out_of);
    for kernel in ["mbarrier_too_many_ok", "mbarrier_wrong_phase_ok", "mbarrier_invalidated_ok"] {
        right(kernel, BLOCK, &iota(|i| i), none);
    }
}

fn x() -> Vec<u32> {
    (0..256).map(|i| i * i + 3).collect()
}

fn x_and_out(gpu: &Gpu) -> Vec<Arg> {
    args![gpu.upload(&x()), gpu.room::<u32>(128)].to_vec()
}

const SUM: &str = "out[threadIdx.x] = values[threadIdx.x] + values[threadIdx.x + 128];";
const LOAD: Place = Place("cp.async.bulk.shared", "ptx::cp_async_bulk_load(ptx::shared_address(values");

#[test]
fn bulk_loads() {
    let places = [LOAD, Place("ld.shared", SUM)];
    for kernel in ["bulk_load_no_wait", "bulk_load_no_expect"] {
        wrong(kernel, Kind::DataRace, &places, &["shared"], x_and_out);
    }
    let wait = Place("mbarrier.try_wait", "pipeline::wait(mbarrier, 0);");
    wrong("bulk_load_never", Kind::Deadlock, &[wait], &["mbarrier", "1024"], x_and_out);
    wrong("bulk_load_size", Kind::IllegalOperand, &[LOAD], &["16", "8"], x_and_out);
    let sums: Vec<u32> = (0..128).map(|i| x()[i] + x()[i + 128]).collect();
    right("bulk_load", BLOCK, &sums, |gpu| args![gpu.upload(&x())].to_vec());
}

const STORE: Place = Place("cp.async.bulk.global", "ptx::cp_async_bulk_store(out");

#[test]
fn bulk_stores() {
    let write = Place("st.shared", "values[threadIdx.x] = threadIdx.x");
    wrong("bulk_store_no_fence", Kind::MissingProxyFence, &[STORE, write], &["fence.proxy.async"], out_of);
    wrong("bulk_store_reuse", Kind::DataRace, &[STORE, write], &["shared"], out_of);
    let read = Place("ld.volatile", "copy[threadIdx.x] = *const_cast<volatile uint32_t*>(out + threadIdx.x);");
    let out_and_copy = |gpu: &Gpu| args![gpu.zeros::<u32>(128), gpu.room::<u32>(128)].to_vec();
    wrong("bulk_store_unwaited", Kind::DataRace, &[STORE, read], &["global"], out_and_copy);

    right("bulk_store_no_fence_ok", BLOCK, &iota(|i| i), none);
    right("bulk_store_reuse_ok", BLOCK, &[iota(|i| i), iota(|i| 2 * i)].concat(), none);
    let text = asynchronous();
    passes(CORRECT, |config| {
        let gpu = Gpu::new(&text, config);
        let (out, copy) = (gpu.room::<u32>(128), gpu.room::<u32>(128));
        gpu.run("bulk_store_unwaited_ok", Shape::new(1, BLOCK), &args![out, copy])?;
        gpu.expect("out", out, &iota(|i| i))?;
        gpu.expect("copy", copy, &iota(|i| i))
    });
}

/// A [64, 16], B [8, 16] and D [64, 8]: small integers, and D + A B^T.
fn product() -> (Vec<u16>, Vec<u16>, Vec<f32>, Vec<f32>) {
    let small = |n: i32, step: i32| -> Vec<i32> { (0..n).map(|i| (i * step + i / 5) % 9 - 4).collect() };
    let (a, b, d) = (small(64 * 16, 7), small(8 * 16, 5), small(64 * 8, 11));
    let mut sum = d.clone();
    for row in 0..64 {
        for column in 0..8 {
            sum[row * 8 + column] += (0..16).map(|k| a[row * 16 + k] * b[column * 16 + k]).sum::<i32>();
        }
    }
    let bits = |x: &[i32]| x.iter().map(|&x| bf16::from_f32(x as f32).to_bits()).collect();
    let floats = |x: &[i32]| x.iter().map(|&x| x as f32).collect();
    (bits(&a), bits(&b), floats(&d), floats(&sum))
}

#[test]
fn matrix_instructions() {
    let operands = |gpu: &Gpu| {
        let (a, b, d, _) = product();
        args![gpu.upload(&a), gpu.upload(&b), gpu.upload(&d)].to_vec()
    };
    let multiply = Place("wgmma.mma_async", "ptx::wgmma_m64n8k16_f32_bf16_bf16(sum, da, db, true);");
    let store = Place("st.global", "mine[i / 2 * 64 + i % 2] = sum[i];");
    let touch = Place("add.f32", "sum[0] = sum[0] + 1.0f;");
    let write_a = Place("st.shared", "*reinterpret_cast<uint4*>(operand_a + place)");
    let write_b = Place("st.shared", "*reinterpret_cast<uint4*>(operand_b + place)");
    let overwrite = Place("st.shared", "operand_b[threadIdx.x] = 0;");

    wrong("wgmma_no_wait", Kind::WgmmaRegisterInFlight, &[store], &["wgmma"], operands);
    wrong("wgmma_touched", Kind::WgmmaRegisterInFlight, &[touch], &["add"], operands);
    wrong("wgmma_no_fence", Kind::MissingWgmmaFence, &[multiply], &["wgmma.fence"], operands);
    wrong("wgmma_no_proxy_fence", Kind::MissingProxyFence, &[multiply, write_a, write_b], &["fence.proxy.async"], operands);
    wrong("wgmma_operand_overwritten", Kind::DataRace, &[multiply, overwrite], &["shared"], operands);
    wrong("wgmma_descriptors_differ", Kind::Divergence, &[multiply], &["descriptor"], operands);
    wrong("wgmma_no_commit", Kind::WgmmaRegisterInFlight, &[store], &["wgmma"], operands);

    let text = asynchronous();
    passes(CORRECT, |config| {
        let gpu = Gpu::new(&text, config);
        let (a, b, d, sum) = product();
        let out = gpu.upload(&d);
        gpu.run("wgmma_ok", Shape::new(1, BLOCK), &args![gpu.upload(&a), gpu.upload(&b), out])?;
        gpu.expect("d", out, &sum)
    });
}

#[test]
fn tensor_copies() {
    // A [4, 32] tensor of u32 in one box.
    let map = |gpu: &Gpu| {
        let tiled = Tiled {
            data_type: DataType::Uint32,
            address: gpu.upload(&x()[..128]),
            dims: &[32, 4],
            strides: &[128],
            box_dims: &[32, 4],
            element_strides: &[1, 1],
            ..Tiled::default()
        };
        Arg(TensorMap::tiled(&tiled).unwrap().encode().bytes.to_vec())
    };
    let map_and_out = |gpu: &Gpu| [vec![map(gpu)], out_of(gpu)].concat();
    let load = Place("cp.async.bulk.tensor", "ptx::cp_async_bulk_tensor_2d_load(ptx::shared_address(values) + OFFSET");
    let read = Place("ld.shared", "out[threadIdx.x] = values[OFFSET / 4 + threadIdx.x];");
    wrong("tma_misaligned", Kind::Misaligned, &[load], &["128"], map_and_out);
    wrong("tma_wrong_bytes", Kind::DataRace, &[load, read], &["shared"], map_and_out);
    right("tma_load", BLOCK, &x()[..128], |gpu| vec![map(gpu)]);
}

#[test]
fn registers_of_warpgroups() {
    let more = Place("setmaxnreg.inc", "ptx::setmaxnreg_inc<240>();");
    wrong_with(384, "setmaxnreg_exhausted", Kind::Deadlock, &[more], &["240"], out_of);
    let fewer = Place("setmaxnreg.dec", "ptx::setmaxnreg_dec<40>();");
    let end = Place("ret", "}");
    wrong_with(384, "setmaxnreg_part", Kind::Divergence, &[fewer, end], &["warpgroup"], out_of);
    right("setmaxnreg_ok", 384, &Vec::from_iter(0..384), none);
}

#[test]
fn one_lane_is_elected() {
    let text = asynchronous();
    passes(CORRECT, |config| {
        let gpu = Gpu::new(&text, config);
        let out = gpu.zeros::<u32>(4);
        gpu.run("elect_one", Shape::new(1, BLOCK), &args![out])?;
        gpu.expect("out", out, &[1u32; 4])
    });
}
