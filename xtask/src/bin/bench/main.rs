//! Measures every operation of every piece beside what the machine can do at most.
//!
//! Run by `cargo xtask bench [PIECE] [--json FILE] [--threads 1,2] [--peers PYTHON] [--quick]`. One line an operation: operation, shape, backend,
//! threads, median, rate, unit, and the fraction of the machine's ceiling. The ceiling is measured again after every single
//! run of an operation, and the fraction is the median over such pairs: on a machine that others use as well, both slow
//! down together. A ceiling that varied by more than 10 % between its runs is marked: such a fraction is not to be quoted. Some operations are
//! held against a loop of the same reads and writes, or with `--peers` against another implementation in a Python that has it. The rates of the ceilings themselves are those at the start.

mod ceilings;
mod measure;
mod ops;
mod peer;
mod streams;

use ceilings::{Ceiling, Machine};
use measure::{Effort, median, repeat, spread};
use ops::Operation;
use std::io::Write;
use std::process::ExitCode;
use xtask::args::{Failure, Parsed};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

fn run(args: &[String]) -> Result<(), Failure> {
    let parsed = Parsed::new(args, &["--json", "--threads", "--peers"], &["--quick"])?;
    parsed.at_most(1)?;
    let pieces = ops::pieces();
    let only = parsed.words.first().map(String::as_str);
    if let Some(name) = only.filter(|name| !pieces.iter().any(|(piece, _)| piece == name)) {
        let known: Vec<&str> = pieces.iter().map(|(piece, _)| *piece).collect();
        return Err(Failure::usage(format!("unknown piece '{name}': expected one of {}", known.join(", "))));
    }
    let thread_counts = thread_counts(parsed.value("--threads").unwrap_or("1,2"))?;
    let effort = if parsed.flag("--quick") { Effort::QUICK } else { Effort::FULL };
    if let Some(python) = parsed.value("--peers") {
        peer::PYTHON.get_or_init(|| python.into());
    }
    let mut json = match parsed.value("--json") {
        None => None,
        Some(path) => {
            let file = std::fs::File::create(path).map_err(|e| Failure::usage(format!("--json {path}: {e}")))?;
            Some(std::io::BufWriter::new(file))
        }
    };
    let mut stdout = std::io::stdout();
    let closed = |e: std::io::Error| Failure::task(format!("standard output: {e}"));
    writeln!(stdout, "{}", Line::header()).map_err(closed)?;
    let mut emit = |line: &Line| -> Result<(), Failure> {
        writeln!(stdout, "{}", line.text()).map_err(closed)?;
        let Some(json) = &mut json else { return Ok(()) };
        writeln!(json, "{}", line.json()).and_then(|()| json.flush()).map_err(|e| Failure::task(format!("--json: {e}")))
    };
    let mut machine = Machine::new();
    for &threads in &thread_counts {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Failure::task(format!("cannot start {threads} threads: {e}")))?;
        let mut rates = vec![];
        for ceiling in Ceiling::ALL {
            let rate = pool.install(|| machine.measure(ceiling, effort.least));
            emit(&Line::of_ceiling(ceiling, threads, rate))?;
            rates.push(rate);
        }
        let faster = rates[Ceiling::F32Fma as usize] > rates[Ceiling::Bf16Dot as usize];
        let narrow = if faster { Ceiling::F32Fma } else { Ceiling::Bf16Dot };
        for (piece, operations) in pieces.iter().filter(|(piece, _)| only.is_none_or(|o| o == *piece)) {
            for operation in operations(threads) {
                let line = pool.install(|| measure(piece, operation, threads, effort, narrow, &mut machine))?;
                emit(&line)?;
            }
        }
    }
    for (piece, table) in ops::tables().into_iter().filter(|(piece, _)| only.is_none_or(|o| o == *piece)) {
        table(&mut stdout, parsed.flag("--quick")).map_err(|e| Failure::task(format!("{piece}: {e}")))?;
    }
    Ok(())
}

fn thread_counts(text: &str) -> Result<Vec<usize>, Failure> {
    text.split(',')
        .map(|n| n.trim().parse().ok().filter(|n| (1..=1024).contains(n)))
        .collect::<Option<Vec<usize>>>()
        .ok_or_else(|| Failure::usage(format!("--threads: expected numbers from 1 to 1024 such as 1,2, got '{text}'")))
}

/// Measures an operation in pairs with its ceiling, on the current pool.
fn measure(
    piece: &'static str,
    operation: Operation,
    threads: usize,
    effort: Effort,
    narrow: Ceiling,
    machine: &mut Machine,
) -> Result<Line, Failure> {
    let Operation { name, shape, backend, work, unit, limit, setup, beside } = operation;
    let failed = |e: ops::AnyError| Failure::task(format!("{piece} {name} {shape}: {e}"));
    let ceiling = limit.map(|limit| limit.ceiling(narrow));
    let (mut other, mut skipped) = (None, None);
    match beside.map(|start| start()) {
        Some(Ok(started)) => other = Some(started),
        Some(Err(reason)) => skipped = Some(reason.to_string()),
        None => {}
    }
    let mut run = setup().map_err(failed)?;
    // The rate of the other, in the unit of this.
    let mut probe = || -> Result<Option<f64>, ops::AnyError> {
        match (&mut other, ceiling) {
            (Some((_, other)), _) => Ok(Some(work / other()? / unit.scale())),
            (None, Some(ceiling)) => Ok(Some(machine.probe(ceiling))),
            (None, None) => Ok(None),
        }
    };
    let pairs = repeat(effort, || {
        let seconds = run()?;
        Ok((seconds, probe()?))
    });
    let pairs = pairs.into_iter().collect::<Result<Vec<(f64, Option<f64>)>, _>>().map_err(failed)?;
    let seconds = median(&mut pairs.iter().map(|p| p.0).collect::<Vec<_>>());
    let rate = |seconds: f64| work / seconds / unit.scale();
    let mut probes: Vec<f64> = pairs.iter().filter_map(|p| p.1).collect();
    let against = other.map(|(name, _)| name).or(ceiling.map(|c| c.name().into())).map(|name| Against {
        name,
        fraction: median(&mut pairs.iter().filter_map(|p| Some(rate(p.0) / p.1?)).collect::<Vec<_>>()),
        spread: spread(&mut probes),
    });
    let (rate, unit) = (rate(seconds), unit.name());
    Ok(Line { piece, name: name.into(), shape, backend, threads, median: seconds, rate, unit, against, skipped })
}

/// What an operation is held against.
struct Against {
    name: String,
    /// Rate of the operation over the rate of this.
    fraction: f64,
    /// How much the rates of this differed.
    spread: f64,
}

/// One line of output.
struct Line {
    piece: &'static str,
    name: String,
    shape: String,
    backend: String,
    threads: usize,
    median: f64,
    rate: f64,
    unit: &'static str,
    against: Option<Against>,
    /// Why there is nothing that it is held against.
    skipped: Option<String>,
}

impl Line {
    fn header() -> String {
        Line::columns(["operation", "shape", "backend", "threads", "median", "rate", "unit", "of ceiling"])
    }

    fn columns([operation, shape, backend, threads, median, rate, unit, fraction]: [&str; 8]) -> String {
        format!("{operation:<38}  {shape:<34}  {backend:<10}  {threads:>7}  {median:>9}  {rate:>9}  {unit:<10}  {fraction}")
    }

    fn of_ceiling(ceiling: Ceiling, threads: usize, rate: f64) -> Line {
        Line {
            piece: "machine",
            name: ceiling.name().into(),
            shape: "-".into(),
            backend: "measured".into(),
            threads,
            median: f64::NAN,
            rate,
            unit: ceiling.unit(),
            against: None,
            skipped: None,
        }
    }

    fn text(&self) -> String {
        let fraction = match (&self.against, &self.skipped) {
            (Some(Against { name, fraction, spread }), _) if *spread > 0.1 => {
                format!("{fraction:.2} of {name}, which varied by {:.0} %", 100.0 * spread)
            }
            (Some(Against { name, fraction, .. }), _) => format!("{fraction:.2} of {name}"),
            (None, Some(reason)) => format!("skipped: {reason}"),
            (None, None) => "-".into(),
        };
        let rate = if self.rate < 1e5 { format!("{:.1}", self.rate) } else { format!("{:.0}", self.rate) };
        Line::columns([
            &format!("{} {}", self.piece, self.name),
            &self.shape,
            &self.backend,
            &self.threads.to_string(),
            &duration(self.median),
            &rate,
            self.unit,
            &fraction,
        ])
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "piece": self.piece,
            "operation": self.name,
            "shape": self.shape,
            "backend": self.backend,
            "threads": self.threads,
            "median_seconds": self.median.is_finite().then_some(self.median),
            "rate": self.rate,
            "unit": self.unit,
            "ceiling": self.against.as_ref().map(|a| &a.name),
            "fraction_of_ceiling": self.against.as_ref().map(|a| a.fraction),
            "spread_of_ceiling": self.against.as_ref().map(|a| a.spread),
            "skipped": self.skipped,
        })
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s.is_nan() => "-".into(),
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.3} s"),
    }
}
