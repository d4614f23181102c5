//! Runs kernels that stand in a test: wraps bodies, makes buffers, reads results back.

// Each test program uses a part of it.
#![allow(dead_code)]

use ptx_emu::{Arg, Checks, Config, Kind, Machine, Module, Report, Shape};

/// A module with one kernel `k` over this body. Registers: `%p0..` predicates, `%h0..` 16, `%r0..` 32, `%rd0..` 64, `%f0..` f32 bits; `tid`, `lane`, `warp`,
/// `block` and `rank` are set, `p0..p7` hold the parameters (u64), `smem` is `shared` bytes of shared memory.
pub fn module(body: &str, params: usize, shared: usize) -> String {
    let list: Vec<String> = (0..params).map(|i| format!(".param .align 64 .b64 arg{i}")).collect();
    module_with(body, &list.join(", "), &(0..params).map(|i| format!("ld.param.b64 p{i}, [arg{i}];")).collect::<String>(), shared)
}

/// The same with other parameters, and a text in front that reads them.
pub fn module_with(body: &str, params: &str, front: &str, shared: usize) -> String {
    format!(
        ".version 8.8
.target sm_90a
.address_size 64
.visible .entry k({params})
{{
.reg .pred %p<32>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .b64 %rd<64>; .reg .f32 %f<16>;
.reg .b32 tid, lane, warp, block, rank; .reg .b64 p<8>;
.shared .align 1024 .b8 smem[{shared}];
mov.u32 tid, %tid.x; and.b32 lane, tid, 31; shr.u32 warp, tid, 5; mov.u32 block, %ctaid.x; mov.u32 rank, %cluster_ctarank;
{front}
{body}
ret;
}}
"
    )
}

/// What a run gave.
pub struct Run {
    pub machine: Machine,
    pub result: Result<(), Report>,
    pub buffers: Vec<u64>,
    sizes: Vec<usize>,
}

impl Run {
    /// A buffer's words.
    pub fn words(&self, buffer: usize) -> Vec<u32> {
        self.bytes(buffer).chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    /// A buffer's bytes.
    pub fn bytes(&self, buffer: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.sizes[buffer]];
        self.machine.memory().read(self.buffers[buffer], &mut bytes).unwrap();
        bytes
    }

    /// The run without an error.
    pub fn ok(self) -> Run {
        if let Err(report) = &self.result {
            panic!("{report}");
        }
        self
    }

    /// The error.
    pub fn report(&self) -> &Report {
        match &self.result {
            Err(report) => report,
            Ok(()) => panic!("the kernel ran to its end without a report"),
        }
    }

    /// Checks the kind of the error and that its text holds a part.
    pub fn reports(&self, kind: Kind, part: &str) {
        let report = self.report();
        let text = report.to_string();
        assert_eq!(report.kind, kind, "{text}");
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// What a buffer holds at first.
pub enum Buffer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many that nothing wrote.
    Unwritten(usize),
}

impl Buffer {
    pub fn words(words: impl IntoIterator<Item = u32>) -> Buffer {
        Buffer::Bytes(words.into_iter().flat_map(u32::to_le_bytes).collect())
    }

    pub fn zeros(words: usize) -> Buffer {
        Buffer::Bytes(vec![0; 4 * words])
    }
}

pub fn config(seed: u64) -> Config {
    Config { seed, ..Config::default() }
}

pub fn fast() -> Config {
    Config { checks: Checks::NONE, ..Config::default() }
}

/// Runs `k` with the buffers' addresses as parameters, and `more` behind them.
pub fn run_with(ptx: &str, shape: Shape, buffers: Vec<Buffer>, config: Config, more: impl FnOnce(&[u64]) -> Vec<Arg>) -> Run {
    let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
    let machine = Machine::new(config);
    let loaded = machine.load(&module, 0).unwrap();
    let stream = machine.stream(0).unwrap();
    let mut addresses = vec![];
    let mut sizes = vec![];
    for buffer in buffers {
        let size = match &buffer {
            Buffer::Bytes(bytes) => bytes.len(),
            Buffer::Unwritten(n) => *n,
        };
        let address = machine.memory().alloc(0, size as u64).unwrap();
        if let Buffer::Bytes(bytes) = buffer {
            machine.memory().write(address, &bytes).unwrap();
        }
        addresses.push(address);
        sizes.push(size);
    }
    let mut args: Vec<Arg> = addresses.iter().map(|&a| Arg::from(a)).collect();
    args.extend(more(&addresses));
    machine.launch(stream, &loaded, "k", shape, &args).unwrap();
    let result = machine.synchronize();
    Run { machine, result, buffers: addresses, sizes }
}

/// Runs a body with these buffers.
pub fn run(body: &str, shape: Shape, shared: usize, buffers: Vec<Buffer>, config: Config) -> Run {
    run_with(&module(body, buffers.len(), shared), shape, buffers, config, |_| vec![])
}

/// Runs a body with one zeroed buffer of words for its results.
pub fn run_out(body: &str, shape: Shape, shared: usize, words: usize, seed: u64) -> Run {
    run(body, shape, shared, vec![Buffer::zeros(words)], config(seed))
}

/// The store of a 32-bit register to `p0[index]`.
pub fn put(index: &str, value: &str) -> String {
    format!("{{ .reg .b64 at; mul.wide.u32 at, {index}, 4; add.u64 at, at, p0; st.global.b32 [at], {value}; }}\n")
}

/// A buffer of n words: word i is f(i).
pub fn words(n: usize, f: impl Fn(u32) -> u32) -> Buffer {
    Buffer::words((0..n as u32).map(f))
}

pub fn value(i: u32) -> u32 {
    i.wrapping_mul(0x9e37_79b9) ^ 0x1234_5678
}

/// Waits for the mbarrier at `%r1`, phase 0.
pub const WAIT: &str = "W: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r1], 0; @!%p3 bra W;";
/// Thread 0 initialises an mbarrier for one arrival at `smem`, `%r1`, and all know.
pub const INIT: &str = "mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 bra READY; mbarrier.init.shared::cta.b64 [%r1], 1;
    fence.mbarrier_init.release.cluster; READY: bar.sync 0;";

/// The threads of a block store `count` words from `smem + from` on to `p0[first ..]`.
pub fn dump(from: u32, count: u32, first: &str) -> String {
    format!(
        "mov.u32 %r40, tid; mov.u32 %r41, %ntid.x; DUMP: setp.ge.u32 %p20, %r40, {count}; @%p20 bra DUMPED;
        shl.b32 %r42, %r40, 2; mov.u32 %r43, smem; add.u32 %r42, %r42, %r43; ld.shared.b32 %r44, [%r42+{from}]; add.u32 %r45, %r40, {first};
        {} add.u32 %r40, %r40, %r41; bra DUMP; DUMPED:",
        put("%r45", "%r44")
    )
}

/// Threads fill `n` words from `smem` on with `tid`-dependent values, fence, meet; thread 0 goes on.
pub fn fill(n: u32, fence: &str) -> String {
    format!(
        "mov.u32 %r1, smem; mov.u32 %r40, tid; mov.u32 %r41, %ntid.x; FILL: setp.ge.u32 %p20, %r40, {n}; @%p20 bra FILLED;
        shl.b32 %r42, %r40, 2; add.u32 %r42, %r42, %r1; mul.lo.u32 %r43, %r40, 3; add.u32 %r43, %r43, 7; st.shared.b32 [%r42], %r43;
        add.u32 %r40, %r40, %r41; bra FILL; FILLED: {fence} bar.sync 0; setp.ne.u32 %p1, tid, 0;"
    )
}

/// What writers of shared memory execute before an asynchronous copy reads it.
pub const FENCE: &str = "fence.proxy.async.shared::cta;";
