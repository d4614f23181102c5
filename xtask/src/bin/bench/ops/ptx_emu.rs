//! How fast the emulator executes: plain instructions, and a tile of the FP8 GEMM, without detectors and with all of them.

use super::{AnyError, Operation, Unit};
use ptx_emu::tma::{DataType, Swizzle, TensorMap, Tiled};
use ptx_emu::{Arg, Checks, Config, Machine, Module, Shape};

const SPEED: &str = include_str!("../../../../../support/ptx-emu/tests/ptx/speed.sm_80.ptx");
const GEMM: &str = include_str!("../../../../../fp8-gemm/ptx/sm90_fp8_gemm_1d2d.sm_90a.ptx");

const BLOCKS: u32 = 8;
const THREADS: u32 = 256;

pub fn operations(threads: usize) -> Vec<Operation> {
    let mut operations = vec![];
    for (name, kernel, times) in
        [("registers", "speed_registers", 1500u32), ("memory", "speed_memory", 1500), ("divergent", "speed_divergent", 1000)]
    {
        for checks in checks(threads) {
            operations.push(instructions(name, kernel, times, checks, threads));
        }
    }
    for checks in checks(threads) {
        operations.push(tile(checks, threads));
    }
    operations
}

/// Detectors want a single thread.
fn checks(threads: usize) -> Vec<Checks> {
    if threads == 1 { vec![Checks::NONE, Checks::ALL] } else { vec![Checks::NONE] }
}

fn config(checks: Checks, threads: usize) -> Config {
    Config { checks, threads, ..Config::default() }
}

fn shape_of(text: &str, checks: Checks) -> String {
    format!("{text}, detectors {}", if checks == Checks::NONE { "off" } else { "on" })
}

/// A machine, the kernel's name and its arguments for one of the kernels of `speed.cu`.
fn speed(kernel: &str, times: u32, checks: Checks, threads: usize) -> Result<impl FnMut() -> Result<u64, AnyError>, AnyError> {
    let machine = Machine::new(config(checks, threads));
    let module = machine.load(&Module::parse(SPEED)?, 0)?;
    let stream = machine.stream(0)?;
    let n = BLOCKS * THREADS;
    let out = machine.memory().alloc(0, 4 * u64::from(n))?;
    let mut args = vec![Arg::from(out), Arg::from(times)];
    let mut shape = Shape::new(BLOCKS, THREADS);
    if kernel == "speed_memory" {
        let x = machine.memory().alloc(0, 4 * u64::from(n))?;
        machine.memory().fill(x, 0, 4 * u64::from(n))?;
        args = vec![Arg::from(x), Arg::from(out), Arg::from(n), Arg::from(times)];
        shape = shape.shared(4 * THREADS);
    }
    let kernel = kernel.to_string();
    Ok(move || -> Result<u64, AnyError> {
        let before = machine.thread_instructions();
        machine.launch(stream, &module, &kernel, shape, &args)?;
        machine.synchronize()?;
        Ok(machine.thread_instructions() - before)
    })
}

fn instructions(name: &'static str, kernel: &'static str, times: u32, checks: Checks, threads: usize) -> Operation {
    // How many instructions it takes is counted in a short run and scaled; the rate then is of what is really executed.
    let count = |times| speed(kernel, times, Checks::NONE, 1).and_then(|mut run| run()).unwrap_or(0);
    let (short, longer) = (count(1), count(2));
    let work = (short + (longer - short) * u64::from(times - 1)) as f64;
    Operation::new(name, shape_of("8 x 256 threads", checks), (work, Unit::Count("instr/s"), None), move || {
        let mut run = speed(kernel, times, checks, threads)?;
        Ok(move || run().map(|_| ()))
    })
    .backend("ptx-emu")
}

/// D[128, 128] = A[128, 512] B[128, 512]^T.
fn tile(checks: Checks, threads: usize) -> Operation {
    const M: u64 = 128;
    const K: u64 = 512;
    let flops = (2 * M * M * K) as f64;
    Operation::new("FP8 GEMM tile", shape_of("128x128x512", checks), (flops, Unit::Flops, None), move || {
        let machine = Machine::new(config(checks, threads));
        let module = machine.load(&Module::parse(GEMM)?, 0)?;
        let stream = machine.stream(0)?;
        let memory = machine.memory();
        let filled = |bytes: u64, value: u8| -> Result<u64, AnyError> {
            let address = memory.alloc(0, bytes)?;
            memory.fill(address, value, bytes)?;
            Ok(address)
        };
        let (a, b) = (filled(M * K, 0x38)?, filled(M * K, 0x38)?); // E4M3 ones
        let ones = 1f32.to_le_bytes();
        let scales = |count: u64| -> Result<u64, AnyError> {
            let address = memory.alloc(0, 4 * count)?;
            memory.write(address, &ones.repeat(count as usize))?;
            Ok(address)
        };
        let (scales_a, scales_b) = (scales(M * K / 128)?, scales(K / 128)?);
        let d = memory.alloc(0, 2 * M * M)?;
        let map = |data_type, address, dims: [u64; 2], stride: u64, box_dims: [u32; 2], swizzle| -> Result<[u8; 128], AnyError> {
            let tiled = Tiled {
                data_type,
                address,
                dims: &dims,
                strides: &[stride],
                box_dims: &box_dims,
                element_strides: &[1, 1],
                swizzle,
                ..Tiled::default()
            };
            Ok(TensorMap::tiled(&tiled)?.encode().bytes)
        };
        let mut params = vec![];
        params.extend(map(DataType::Uint8, a, [K, M], K, [128, 128], Swizzle::B128)?);
        params.extend(map(DataType::Uint8, b, [K, M], K, [128, 128], Swizzle::B128)?);
        params.extend(map(DataType::Float32, scales_a, [M, K / 128], 4 * M, [128, 1], Swizzle::None)?);
        params.extend(map(DataType::Bfloat16, d, [M, M], 2 * M, [64, 64], Swizzle::B128)?);
        params.extend(scales_b.to_le_bytes());
        params.extend((K / 128).to_le_bytes());
        for value in [M as u32, M as u32, K as u32, 1] {
            params.extend(value.to_le_bytes());
        }
        params.resize(640, 0);
        let args = [Arg(params)];
        let shape = Shape::new(1, 384).shared(199_248);
        Ok(move || -> Result<(), AnyError> {
            machine.launch(stream, &module, "sm90_fp8_gemm_1d2d", shape, &args)?;
            Ok(machine.synchronize()?)
        })
    })
    .backend("ptx-emu")
}
