//! Dispatch and combine between ranks of one GPU, in one launch: `cargo run --release -p moe-dispatch --features cuda --example exchange_gpu`.
//!
//! Correctness, bytes a second against the multiprocessors that a rank may use, what it costs a matrix product on the others, and a graph
//! that is captured once and replayed. All memory is that of one device: what is measured is the kernels, not a link. Without `cuda` it runs on the
//! emulator, on small sizes and without times.

use moe_dispatch::gpu::Arch;
use moe_dispatch::gpu::exchange::{Copies, ExchangeConfig, ExchangeKernels, Group};
use moe_dispatch::{Layout, Result};
use v3_gpu::{Args, Backend, Buffer, Device, EmulatorConfig, LaunchConfig, Stream};
use v3_numerics::bf16;

/// Sizes, small on the emulator.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    columns: usize,
    top_k: usize,
    experts_per_rank: usize,
}

/// Two ranks: of one node, or of two.
const LAYOUTS: [(&str, usize); 2] = [("fast hop, 1 node x 2 ranks", 2), ("both hops, 2 nodes x 1 rank", 1)];

/// What an example may fail with.
type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let device = if cfg!(feature = "cuda") { Device::cuda(0)? } else { Device::emulated(&EmulatorConfig::default())?.remove(0) };
    let on_gpu = device.backend() == Backend::Cuda;
    let info = device.info()?;
    let arch = Arch::of(info.compute_capability)?;
    println!("{} ({}), {}, {} multiprocessors, kernels for {arch}", device.backend(), info.name, info.driver, info.sm_count);
    let sizes = match on_gpu {
        true => Sizes { tokens: 4096, columns: 7168, top_k: 8, experts_per_rank: 32 },
        false => Sizes { tokens: 12, columns: 128, top_k: 4, experts_per_rank: 4 },
    };
    println!(
        "{} tokens a rank, rows of {} bf16, top {} of {} experts; one device, memory to memory",
        sizes.tokens,
        sizes.columns,
        sizes.top_k,
        2 * sizes.experts_per_rank
    );
    let all_copies: &[Copies] = if arch == Arch::Sm90a { &[Copies::Vectors, Copies::Bulk] } else { &[Copies::Vectors] };
    for &copies in all_copies {
        for (name, per_node) in LAYOUTS {
            for sms in [8, 16, 20, 24, 32] {
                let mut run = Run::new(&device, arch, copies, per_node, sms, sizes)?;
                run.check(1)?;
                match on_gpu {
                    true => println!("{copies:?}, {name}, {sms} multiprocessors a rank: {}", run.speed()?),
                    // One is enough to see that it works.
                    false if sms == 8 => println!("{copies:?}, {name}, {sms} multiprocessors a rank: right"),
                    false => {}
                }
            }
        }
    }
    let mut run = Run::new(&device, arch, all_copies[all_copies.len() - 1], 2, 20, sizes)?;
    neighbour(&device, &mut run, on_gpu)?;
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    if on_gpu {
        graph::replay(&mut run)?;
    }
    Ok(())
}

/// A group of two ranks with its tokens.
struct Run {
    group: Group,
    sizes: Sizes,
    rows: [Vec<bf16>; 2],
}

impl Run {
    fn new(device: &Device, arch: Arch, copies: Copies, per_node: usize, sms: u32, sizes: Sizes) -> Result<Run> {
        let layout = Layout::new(2 * sizes.experts_per_rank, 2, per_node)?;
        let (top_k, tokens, columns) = (sizes.top_k as u32, sizes.tokens as u32, sizes.columns as u32);
        let config = ExchangeConfig { sms, ..ExchangeConfig::new(&layout, top_k, tokens, 2 * columns, columns)? };
        let places = config.places() as u32;
        let load = |device: &Device| ExchangeKernels::load_for(device, arch, copies);
        let group = Group::with_kernels(config, &[device.clone(), device.clone()], places, load)?;
        let mut run = Run { group, sizes, rows: Default::default() };
        run.write(0)?;
        Ok(run)
    }

    /// Tokens that depend on `round`: small whole numbers, and weights of 1 / k, so that every sum is exact.
    fn write(&mut self, round: usize) -> Result<()> {
        let Sizes { tokens, columns, top_k, experts_per_rank } = self.sizes;
        let experts = 2 * experts_per_rank;
        for rank in 0..2 {
            let value = |i: usize| bf16::from_f32(((i * 7 + i / columns * 3 + round * 5 + rank) % 15) as f32);
            self.rows[rank] = (0..tokens * columns).map(value).collect();
            // Different within a token: an odd stride over a power of two of experts.
            let chosen =
                |i: usize| ((i / top_k * 29 + round * 11 + rank * 3 + i % top_k * (2 * (i / top_k % 7) + 1)) % experts) as i32;
            let chosen: Vec<i32> = (0..tokens * top_k).map(chosen).collect();
            let weights = vec![1.0 / top_k as f32; tokens * top_k];
            self.group.write_tokens(rank, bytemuck::cast_slice(&self.rows[rank]), &chosen, &weights)?;
        }
        Ok(())
    }

    /// The stream of both ranks.
    fn stream(&self) -> Stream {
        self.group.stream(0).expect("there are two ranks").clone()
    }

    /// Gives combine what dispatch brought: every expert's row is its token's.
    fn echo(&mut self) -> Result<()> {
        let (config, stream) = (*self.group.config(), self.stream());
        let top_k = config.top_k as usize;
        let map: Vec<i32> = (0..config.places() * top_k).map(|i| (i / top_k) as i32).collect();
        for rank in 0..2 {
            let member = self.group.member(rank).expect("there are two ranks");
            // Behind the counts there may be anything, which nobody reads.
            let mut rows = stream.download(member.out_rows())?;
            rows.truncate(config.places() * config.row_bytes as usize);
            self.group.write_expert_rows(rank, bytemuck::cast_slice(&rows), &map)?;
        }
        Ok(())
    }

    /// That every token comes back as it was.
    fn check_combined(&self) -> Outcome<()> {
        for (rank, rows) in self.rows.iter().enumerate() {
            let combined = self.stream().download(self.group.member(rank).expect("there are two ranks").combined())?;
            if let Some(at) = rows.iter().zip(&combined).position(|(a, b)| a.to_bits() != b.to_bits()) {
                return Err(format!("rank {rank}, token {}: wrong", at / self.sizes.columns).into());
            }
        }
        Ok(())
    }

    fn check(&mut self, round: usize) -> Outcome<()> {
        self.write(round)?;
        self.group.dispatch()?;
        self.echo()?;
        self.group.combine(true)?;
        self.check_combined()
    }

    /// Bytes of the rows that dispatch delivers, to both ranks together.
    fn delivered(&self) -> Result<f64> {
        let mut rows = 0u64;
        for rank in 0..2 {
            let counts = self.stream().download(self.group.member(rank).expect("there are two ranks").out_counts())?;
            rows += counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        }
        Ok(rows as f64 * f64::from(self.group.config().row_bytes))
    }

    fn speed(&mut self) -> Result<String> {
        let stream = self.stream();
        let bytes = self.delivered()?;
        let dispatch = seconds(&stream, 20, || self.group.dispatch())?;
        let combine = seconds(&stream, 20, || self.group.combine(true))?;
        let leaves = (2 * self.sizes.tokens * self.sizes.top_k * self.sizes.columns * 2) as f64;
        let copy = copy_seconds(&stream, bytes as usize)?;
        Ok(format!(
            "dispatch {:.0} us, {:.0} GB/s delivered; combine {:.0} us, {:.0} GB/s of expert rows; a device copy of the delivered bytes {:.0} us, {:.0} GB/s",
            dispatch * 1e6,
            bytes / dispatch / 1e9,
            combine * 1e6,
            leaves / combine / 1e9,
            copy * 1e6,
            bytes / copy / 1e9
        ))
    }
}

/// Seconds of device time that one of `times` takes, after two that are not counted.
fn seconds(stream: &Stream, times: u32, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let (from, until) = (stream.device().event(true)?, stream.device().event(true)?);
    for _ in 0..2 {
        work()?;
    }
    stream.record(&from)?;
    for _ in 0..times {
        work()?;
    }
    stream.record(&until)?;
    until.synchronize()?;
    Ok(f64::from(from.elapsed_ms(&until)?) / 1e3 / f64::from(times))
}

fn copy_seconds(stream: &Stream, bytes: usize) -> Result<f64> {
    let (from, mut to) = (stream.zeroed::<u8>(bytes)?, stream.alloc::<u8>(bytes)?);
    seconds(stream, 20, || Ok(stream.copy(&mut to, &from)?))
}

/// A matrix product on the multiprocessors that an exchange leaves: alone, beside dispatches, beside copies of the same bytes.
fn neighbour(device: &Device, run: &mut Run, on_gpu: bool) -> Outcome<()> {
    let n: u32 = if on_gpu { 8192 } else { 128 };
    let stream = device.stream()?;
    let kernel = device.module(include_str!("../tests/ptx/neighbour_gemm.sm_80.ptx"))?.kernel("neighbour_gemm")?;
    let values: Vec<bf16> = (0..n * n).map(|i| bf16::from_f32((i % 5) as f32 - 2.0)).collect();
    let (a, b) = (stream.upload(&values)?, stream.upload(&values)?);
    let d: Buffer<f32> = stream.zeroed(values.len())?;
    let blocks = device.info()?.sm_count - 2 * run.group.config().sms;
    let product = || -> Result<()> {
        let args = Args::new().buffer(&a).buffer(&b).buffer(&d).value(n).value(n).value(n);
        // SAFETY: matrices of n x n, which nothing else uses.
        Ok(unsafe { stream.launch(&kernel, &LaunchConfig::new(blocks, 256), args) }?)
    };
    product()?;
    let got = stream.download(&d)?;
    for at in [0, 1, n as usize + 7, values.len() - 1] {
        let (row, column, n) = (at / n as usize, at % n as usize, n as usize);
        let sum: f32 = (0..n).map(|k| values[row * n + k].to_f32() * values[column * n + k].to_f32()).sum();
        if got[at] != sum {
            return Err(format!("the product beside it is wrong: {} instead of {sum}", got[at]).into());
        }
    }
    if !on_gpu {
        println!("a product beside it: right");
        return Ok(());
    }
    let other = run.stream();
    let bytes = run.delivered()? as usize;
    let (from, mut to) = (other.zeroed::<u8>(bytes)?, other.alloc::<u8>(bytes)?);
    let alone = seconds(&stream, 10, product)?;
    let dispatch = seconds(&other, 10, || run.group.dispatch())?;
    // Enough of the other that the products never run alone.
    let times = (12.0 * alone / dispatch * 3.0).ceil() as u32;
    for _ in 0..times {
        run.group.dispatch()?;
    }
    let beside_dispatch = seconds(&stream, 10, product)?;
    let covered = !done(&other)?;
    device.synchronize()?;
    let copy = copy_seconds(&other, bytes)?;
    for _ in 0..(12.0 * alone / copy * 3.0).ceil() as u32 {
        other.copy(&mut to, &from)?;
    }
    let beside_copy = seconds(&stream, 10, product)?;
    let covered = covered && !done(&other)?;
    device.synchronize()?;
    println!(
        "a product of {n}^3 on {blocks} multiprocessors: alone {:.0} us; beside dispatches of {:.0} MB {:.0} us, {:.2} times; beside copies of the same {:.0} us, {:.2} times{}",
        alone * 1e6,
        bytes as f64 / 1e6,
        beside_dispatch * 1e6,
        beside_dispatch / alone,
        beside_copy * 1e6,
        beside_copy / alone,
        if covered { "" } else { " (void: the others ended before the products)" }
    );
    Ok(())
}

/// Whether everything queued on a stream is done.
fn done(stream: &Stream) -> Result<bool> {
    let event = stream.device().event(false)?;
    stream.record(&event)?;
    Ok(event.is_done()?)
}

/// Graphs, through the driver itself.
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod graph {
    use super::{Outcome, Run};
    use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
    use std::ptr::null_mut;
    use std::time::Instant;

    unsafe extern "C" {
        fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    const RTLD_NOW: c_int = 2;
    /// CU_STREAM_CAPTURE_MODE_RELAXED.
    const RELAXED: c_uint = 2;
    const REPLAYS: usize = 100;

    fn symbol(name: &CStr) -> Outcome<*mut c_void> {
        // SAFETY: strings that end with a zero; the library stays loaded.
        let found = unsafe { dlsym(dlopen(c"libcuda.so.1".as_ptr(), RTLD_NOW), name.as_ptr()) };
        if found.is_null() { Err(format!("the driver has no {}", name.to_string_lossy()).into()) } else { Ok(found) }
    }

    /// Calls a function of the driver (CUDA driver API 13.0), which is given by its types.
    macro_rules! driver {
        ($name:literal ($($arg:expr => $type:ty),*)) => {{
            // SAFETY: the driver's function of this signature.
            let function: unsafe extern "C" fn($($type),*) -> c_int = unsafe { std::mem::transmute(symbol($name)?) };
            // SAFETY: handles that are live, and results that outlive the call.
            let result = unsafe { function($($arg),*) };
            if result != 0 {
                return Err(format!("{}: {result}", $name.to_string_lossy()).into());
            }
        }};
    }

    /// Captures a dispatch and a combine, and replays them with other tokens every ten times.
    pub fn replay(run: &mut Run) -> Outcome<()> {
        run.check(2)?;
        let stream = run.stream();
        let raw = stream.raw() as *mut c_void;
        let context = stream.device().raw_context().ok_or("no context")?;
        driver!(c"cuCtxPushCurrent_v2"(context as *mut c_void => *mut c_void));
        let (mut graph, mut exec) = (null_mut(), null_mut());
        driver!(c"cuStreamBeginCapture_v2"(raw => *mut c_void, RELAXED => c_uint));
        run.group.dispatch()?;
        run.group.combine(true)?;
        driver!(c"cuStreamEndCapture"(raw => *mut c_void, &mut graph => *mut *mut c_void));
        driver!(c"cuGraphInstantiateWithFlags"(&mut exec => *mut *mut c_void, graph => *mut c_void, 0 => u64));
        let start = Instant::now();
        let mut waited = std::time::Duration::ZERO;
        for i in 0..REPLAYS {
            if i % 10 == 0 {
                // Expert rows are those of the dispatch before: the first replay of ten brings them, the others use them.
                let from = Instant::now();
                run.write(3 + i)?;
                driver!(c"cuGraphLaunch"(exec => *mut c_void, raw => *mut c_void));
                run.echo()?;
                stream.synchronize()?;
                waited += from.elapsed();
            }
            driver!(c"cuGraphLaunch"(exec => *mut c_void, raw => *mut c_void));
            if i % 10 == 9 {
                stream.synchronize()?;
                let from = Instant::now();
                run.check_combined()?;
                waited += from.elapsed();
            }
        }
        let seconds = (start.elapsed() - waited).as_secs_f64();
        println!("captured once, replayed {REPLAYS} times and checked: {:.0} us a replay", seconds / REPLAYS as f64 * 1e6);
        driver!(c"cuGraphExecDestroy"(exec => *mut c_void));
        driver!(c"cuGraphDestroy"(graph => *mut c_void));
        driver!(c"cuCtxPopCurrent_v2"(&mut null_mut() => *mut *mut c_void));
        Ok(())
    }
}
