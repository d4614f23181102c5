//! Loads, stores, atomics and address conversions, end to end: what they give, and what they report.

mod atomics;
mod faults;
mod loads;
mod modifiers;
mod spaces;

use ptx_emu::{Arg, Checks, Config, Kind, Machine, Module, Report, Shape};

/// Deterministic numbers (splitmix64).
struct Numbers(pub u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// A module with one kernel `k(in, out, n)`: `%rd1` is `in`, `%rd2` is `out`, `%r1` is `%tid.x`, `%rd3` is `in + 16 tid`, `%rd4` is `out + 16
/// tid`, `%rd5` is `n`.
fn module(globals: &str, body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n{globals}\n\
         .visible .entry k(.param .u64 in, .param .u64 out, .param .u64 n, .param .align 16 .b8 blob[512])\n{{\n\
         .reg .pred %p<8>;\n.reg .b16 %h<40>;\n.reg .b32 %r<40>;\n.reg .b64 %rd<40>;\n.reg .b128 %q<8>;\n\
         .reg .f32 %f<8>;\n.reg .f64 %fd<8>;\n\
         .shared .align 16 .b8 sh[1024];\n.local .align 16 .b8 lo[64];\n\
         ld.param.u64 %rd1, [in];\nld.param.u64 %rd2, [out];\nld.param.u64 %rd5, [n];\n\
         mov.u32 %r1, %tid.x;\nmul.wide.u32 %rd6, %r1, 16;\nadd.s64 %rd3, %rd1, %rd6;\nadd.s64 %rd4, %rd2, %rd6;\n\
         {body}\nret;\n}}\n"
    )
}

/// All detectors.
fn config() -> Config {
    Config { checks: Checks::ALL, ..Config::default() }
}

struct Run {
    machine: Machine,
    input: u64,
    output: u64,
}

impl Run {
    fn new(config: Config, input: &[u8], output: usize) -> Run {
        let machine = Machine::new(config);
        let memory = machine.memory();
        let (a, b) = (memory.alloc(0, input.len() as u64).unwrap(), memory.alloc(0, output as u64).unwrap());
        memory.write(a, input).unwrap();
        memory.fill(b, 0xee, output as u64).unwrap();
        Run { machine, input: a, output: b }
    }

    fn launch(&self, text: &str, shape: Shape, n: u64, blob: &[u8]) -> Result<(), Report> {
        let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let loaded = self.machine.load(&module, 0).unwrap();
        let stream = self.machine.stream(0).unwrap();
        let mut bytes = blob.to_vec();
        bytes.resize(512, 0);
        let args = [self.input.into(), self.output.into(), n.into(), Arg(bytes)];
        self.machine.launch(stream, &loaded, "k", shape, &args).unwrap();
        self.machine.synchronize()
    }

    fn output(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.machine.memory().read(self.output, &mut bytes).unwrap();
        bytes
    }
}

/// Runs a body with one block of `threads` threads on `input`; 16 bytes of output a thread.
fn run(globals: &str, body: &str, input: &[u8], threads: u32) -> Vec<u8> {
    let run = Run::new(config(), input, 16 * threads as usize);
    let text = module(globals, body);
    run.launch(&text, Shape::new(1, threads), 0, input).unwrap_or_else(|e| panic!("{e}\n{body}"));
    run.output(16 * threads as usize)
}

/// Runs a body with one warp, expecting a report.
fn fails(globals: &str, body: &str, kind: Kind, message: &str) -> Report {
    let run = Run::new(config(), &[1; 512], 512);
    let report = run.launch(&module(globals, body), Shape::new(1, 32), 0, &[]).expect_err(body);
    assert_eq!(report.kind, kind, "{report}\n{body}");
    assert!(report.message.contains(message), "{report}\nwhere `{message}` was expected\n{body}");
    report
}

/// Whether the module is decoded.
fn decodes(body: &str) -> Result<(), String> {
    let globals = ".global .align 16 .b8 gv[64];\n.const .align 16 .b8 cv[64] = {1, 2, 3};";
    Module::parse(&module(globals, body)).map(|_| ()).map_err(|e| e.to_string())
}
