//! What the tests with compiled kernels share: PTX texts, a machine with a stream, seeds, and what a report must say.
#![allow(dead_code)] // each test program uses a part of it

pub mod attention;
pub mod fp8_gemm;
pub mod pair;

use bytemuck::Pod;
use ptx_emu::{Arg, Config, Kind, LaunchError, Loaded, Machine, Module, Report, Shape, StreamId, ThreadId, explore};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A compiled kernel file of `tests/kernels` with its PTX.
pub struct Text {
    /// The PTX, line by line.
    pub ptx: Vec<String>,
    /// The source, line by line.
    pub source: Vec<String>,
    /// What `.file` calls the source.
    pub file: String,
    /// Parsed and decoded.
    pub module: Module,
}

/// The PTX of `tests/kernels/{name}.cu` for an architecture; `name` may end in `-variant`.
pub fn text(name: &str, arch: &str) -> Arc<Text> {
    static TEXTS: Mutex<Option<HashMap<String, Arc<Text>>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{name}.{arch}");
    let entry = texts.get_or_insert_default().entry(key.clone());
    Arc::clone(entry.or_insert_with(|| {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let stem = name.split('-').next().unwrap();
        let read = |path: String| std::fs::read_to_string(tests.join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let ptx = read(format!("ptx/{key}.ptx"));
        let module = Module::parse(&ptx).unwrap_or_else(|e| panic!("{key}: {e}"));
        let lines = |text: String| text.lines().map(str::to_owned).collect();
        Arc::new(Text {
            ptx: lines(ptx),
            source: lines(read(format!("kernels/{stem}.cu"))),
            file: format!("support/ptx-emu/tests/kernels/{stem}.cu"),
            module,
        })
    }))
}

impl Text {
    /// The lines of a kernel's definition in the PTX, counted from 1.
    fn lines_of(&self, kernel: &str) -> std::ops::Range<u32> {
        let begins = |l: &String| l.contains(".entry") && l.split([' ', '(']).any(|word| word == kernel);
        let first = self.ptx.iter().position(begins).unwrap_or_else(|| panic!("no kernel {kernel}"));
        let length = self.ptx[first..].iter().position(|l| l == "}").unwrap();
        first as u32 + 1..(first + length) as u32 + 1
    }

    /// Whether a line of the source holds a piece of text.
    fn source_line_has(&self, line: u32, piece: &str) -> bool {
        line.checked_sub(1).and_then(|i| self.source.get(i as usize)).is_some_and(|l| l.contains(piece))
    }
}

/// What one run of a test comes to when it is not as it should be.
#[derive(Debug)]
pub enum Failure {
    /// The emulator reports something.
    Report(Box<Report>),
    /// The results are wrong, or a call of the host fails.
    Wrong(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Report(report) => write!(f, "{report}"),
            Failure::Wrong(text) => f.write_str(text),
        }
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Failure {
        Failure::Report(Box::new(report))
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Failure {
        Failure::Wrong(error.to_string())
    }
}

/// The result of one run.
pub type Run = Result<(), Failure>;

/// A machine with a module on device 0 and a stream there.
pub struct Gpu {
    /// The machine.
    pub machine: Machine,
    /// A stream of device 0.
    pub stream: StreamId,
    /// The module on device 0.
    pub loaded: Loaded,
}

impl Gpu {
    /// A machine of its own.
    pub fn new(text: &Text, config: Config) -> Gpu {
        let machine = Machine::new(config);
        let loaded = machine.load(&text.module, 0).unwrap();
        let stream = machine.stream(0).unwrap();
        Gpu { machine, stream, loaded }
    }

    /// Memory that nothing has written, of `n` elements.
    pub fn room<T: Pod>(&self, n: usize) -> u64 {
        self.machine.memory().alloc(0, (n * size_of::<T>()) as u64).unwrap()
    }

    /// Memory with these elements.
    pub fn upload<T: Pod>(&self, values: &[T]) -> u64 {
        let address = self.room::<T>(values.len());
        self.machine.memory().write(address, bytemuck::cast_slice(values)).unwrap();
        address
    }

    /// Memory of `n` zeros.
    pub fn zeros<T: Pod>(&self, n: usize) -> u64 {
        self.upload(&vec![T::zeroed(); n])
    }

    /// What memory holds.
    pub fn download<T: Pod>(&self, address: u64, n: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); n];
        self.machine.memory().read(address, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }

    /// Launches a kernel without waiting for it.
    pub fn launch(&self, kernel: &str, shape: Shape, args: &[Arg]) -> Run {
        Ok(self.machine.launch(self.stream, &self.loaded, kernel, shape, args)?)
    }

    /// Launches a kernel and waits for it.
    pub fn run(&self, kernel: &str, shape: Shape, args: &[Arg]) -> Run {
        self.launch(kernel, shape, args)?;
        Ok(self.machine.synchronize()?)
    }

    /// Compares memory with what it must hold.
    pub fn expect<T: Pod + PartialEq + std::fmt::Debug>(&self, what: &str, address: u64, expected: &[T]) -> Run {
        equal(what, &self.download::<T>(address, expected.len()), expected)
    }
}

/// Values that must be equal; the failure counts and names the first that are not.
pub fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: &[T], expected: &[T]) -> Run {
    assert_eq!(got.len(), expected.len());
    let wrong: Vec<usize> = (0..got.len()).filter(|&i| got[i] != expected[i]).collect();
    let Some(_) = wrong.first() else { return Ok(()) };
    let some: Vec<String> = wrong.iter().take(4).map(|&i| format!("[{i}] {:?} is not {:?}", got[i], expected[i])).collect();
    Err(Failure::Wrong(format!("{what}: {} of {} values are wrong: {}", wrong.len(), got.len(), some.join(", "))))
}

/// Kernel arguments.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { [$(ptx_emu::Arg::from($value)),*] };
}

/// How many seeds to try: this many, or what the environment variable `V3_EMU_SEEDS` says where that is more.
pub fn seeds(usual: u64) -> u64 {
    match std::env::var("V3_EMU_SEEDS") {
        Ok(text) => text.parse::<u64>().unwrap_or_else(|_| panic!("V3_EMU_SEEDS={text}: expected a number")).max(usual),
        Err(_) => usual,
    }
}

/// Seeds that a correct kernel is run with.
pub const CORRECT: u64 = 50;
/// Seeds that a wrong kernel is run with.
pub const WRONG: u64 = 6;

/// A run that must pass with `n` seeds (more where the environment says so).
pub fn passes(n: u64, run: impl Fn(Config) -> Run + Sync) {
    passes_on(Config::default(), n, run);
}

/// The same with other settings.
pub fn passes_on(base: Config, n: u64, run: impl Fn(Config) -> Run + Sync) {
    if let Err((seed, failure)) = explore(seeds(n), &base, run) {
        panic!("seed {seed}: {failure}");
    }
}

/// A place that a report may name: the opcode begins so, and the line of the kernel's source file holds this text.
#[derive(Clone, Copy)]
pub struct Place(pub &'static str, pub &'static str);

/// What a report must say.
pub struct Expected<'a> {
    /// The kernel file.
    pub text: &'a Text,
    /// The kernel.
    pub kernel: &'a str,
    /// One of these.
    pub kinds: &'a [Kind],
    /// One of these. Of a race, each side is at one of these.
    pub places: &'a [Place],
    /// Which threads may be named.
    pub thread: fn(ThreadId) -> bool,
    /// What the whole report's text must contain.
    pub says: &'a [&'a str],
}

impl Expected<'_> {
    /// What is wrong with a report.
    pub fn check(&self, report: &Report) -> Result<(), String> {
        let Expected { text, kernel, .. } = self;
        if !self.kinds.contains(&report.kind) {
            return Err(format!("{:?} is not one of {:?}", report.kind, self.kinds));
        }
        let site = report.site.as_ref().ok_or("no place")?;
        if &*site.kernel != *kernel || !text.lines_of(kernel).contains(&site.ptx_line) {
            return Err(format!("the place is not in {kernel}"));
        }
        let line = text.ptx[site.ptx_line as usize - 1].trim();
        if !line.contains(&*site.instruction) {
            return Err(format!("line {} of the PTX is `{line}`", site.ptx_line));
        }
        let places: Vec<&(Arc<str>, u32)> = site.source.iter().chain(&site.inlined_at).filter(|p| *p.0 == *text.file).collect();
        if places.is_empty() {
            return Err(format!("no place in {}", text.file));
        }
        let there = |place: &Place| {
            site.instruction.starts_with(place.0) && places.iter().any(|(_, line)| text.source_line_has(*line, place.1))
        };
        if !self.places.is_empty() && !self.places.iter().any(there) {
            return Err("another place was expected".into());
        }
        let thread = report.thread.ok_or("no thread")?;
        if !(self.thread)(thread) {
            return Err("another thread was expected".into());
        }
        let words = report.to_string();
        if let Some(missing) = self.says.iter().find(|s| !words.contains(**s)) {
            return Err(format!("the report does not say `{missing}`"));
        }
        if matches!(report.kind, Kind::DataRace | Kind::InsufficientScope | Kind::MissingProxyFence) && !self.places.is_empty() {
            self.check_other_side(report)?;
        }
        Ok(())
    }

    /// The earlier access of a race is described in a line of its own.
    fn check_other_side(&self, report: &Report) -> Result<(), String> {
        let before = report.details.iter().find(|d| d.starts_with("before: ")).ok_or("only one side of the race is named")?;
        let numbers = |after: &str| -> Vec<u32> {
            let digits = before.split(after).skip(1).map(|t| &t[..t.find(|c: char| !c.is_ascii_digit()).unwrap_or(t.len())]);
            digits.filter_map(|d| d.parse().ok()).collect()
        };
        let [ptx_line] = numbers("PTX line ")[..] else { return Err("the other side has no line of PTX".into()) };
        let source_lines = numbers(&format!("{}:", self.text.file));
        let line = &self.text.ptx[ptx_line as usize - 1];
        let there =
            |place: &Place| line.contains(place.0) && source_lines.iter().any(|&line| self.text.source_line_has(line, place.1));
        if !self.places.iter().any(there) {
            return Err("the other side of the race was expected at another place".into());
        }
        Ok(())
    }
}

/// A run that must end in this report with every one of `n` seeds.
pub fn reports(n: u64, expected: &Expected<'_>, run: impl Fn(Config) -> Run + Sync) {
    reports_on(Config::default(), n, expected, run);
}

/// The same with other settings.
pub fn reports_on(base: Config, n: u64, expected: &Expected<'_>, run: impl Fn(Config) -> Run + Sync) {
    let outcome = explore(seeds(n), &base, |config| match run(config) {
        Ok(()) => Err("nothing is reported".to_string()),
        Err(Failure::Wrong(text)) => Err(format!("nothing is reported, but: {text}")),
        Err(Failure::Report(report)) => expected.check(&report).map_err(|what| format!("{what}; the report is:\n{report}")),
    });
    if let Err((seed, what)) = outcome {
        panic!("{} with seed {seed}: {what}", expected.kernel);
    }
}

/// Any thread.
pub fn anyone(_: ThreadId) -> bool {
    true
}
