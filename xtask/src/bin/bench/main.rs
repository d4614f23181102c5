//! Measures every operation of every piece beside what the machine can do at most.
//!
//! Run by `cargo xtask bench [PIECE] [--json FILE] [--threads 1,2] [--quick]`. One line an operation: operation, shape, backend,
//! threads, median, rate, unit, and the fraction of the machine's ceiling, measured in the same run.

mod ceilings;
mod measure;
mod ops;

use ceilings::{Ceiling, Ceilings};
use measure::{Effort, median_seconds};
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
    let parsed = Parsed::new(args, &["--json", "--threads"], &["--quick"])?;
    parsed.at_most(1)?;
    let pieces = ops::pieces();
    let only = parsed.words.first().map(String::as_str);
    if let Some(name) = only.filter(|name| !pieces.iter().any(|(piece, _)| piece == name)) {
        let known: Vec<&str> = pieces.iter().map(|(piece, _)| *piece).collect();
        return Err(Failure::usage(format!("unknown piece '{name}': expected one of {}", known.join(", "))));
    }
    let thread_counts = thread_counts(parsed.value("--threads").unwrap_or("1,2"))?;
    let effort = if parsed.flag("--quick") { Effort::QUICK } else { Effort::FULL };
    let mut json = match parsed.value("--json") {
        None => None,
        Some(path) => {
            let file = std::fs::File::create(path).map_err(|e| Failure::usage(format!("--json {path}: {e}")))?;
            Some(std::io::BufWriter::new(file))
        }
    };
    println!("{}", Line::HEADER);
    let mut emit = |line: &Line| -> Result<(), Failure> {
        println!("{}", line.text());
        let Some(json) = &mut json else { return Ok(()) };
        writeln!(json, "{}", line.json()).and_then(|()| json.flush()).map_err(|e| Failure::task(format!("--json: {e}")))
    };
    for &threads in &thread_counts {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Failure::task(format!("cannot start {threads} threads: {e}")))?;
        let before = pool.install(|| Ceilings::measure(effort));
        for ceiling in Ceiling::ALL {
            emit(&Line::of_ceiling(ceiling, threads, before.rate(ceiling)))?;
        }
        for (piece, operations) in pieces.iter().filter(|(piece, _)| only.is_none_or(|o| o == *piece)) {
            for operation in operations(threads) {
                emit(&measure(piece, operation, threads, effort, &pool, &before)?)?;
            }
        }
        let drift = pool.install(|| Ceilings::measure(effort)).drift(&before);
        if drift > 0.1 {
            eprintln!(
                "bench: with {threads} threads a ceiling moved by {:.0} % during the run: the machine is not quiet",
                drift * 100.0
            );
        }
    }
    Ok(())
}

fn thread_counts(text: &str) -> Result<Vec<usize>, Failure> {
    text.split(',')
        .map(|n| n.trim().parse().ok().filter(|n| (1..=1024).contains(n)))
        .collect::<Option<Vec<usize>>>()
        .ok_or_else(|| Failure::usage(format!("--threads: expected numbers from 1 to 1024 such as 1,2, got '{text}'")))
}

fn measure(
    piece: &'static str,
    operation: Operation,
    threads: usize,
    effort: Effort,
    pool: &rayon::ThreadPool,
    ceilings: &Ceilings,
) -> Result<Line, Failure> {
    let Operation { name, shape, backend, work, unit, limit, setup } = operation;
    let failed = |e: ops::AnyError| Failure::task(format!("{piece} {name} {shape}: {e}"));
    let (mut run, mut failure) = (pool.install(setup).map_err(failed)?, None);
    let median = pool.install(|| {
        median_seconds(effort, || match run() {
            Ok(seconds) => seconds,
            Err(e) => {
                failure = Some(e);
                f64::NAN
            }
        })
    });
    failure.map_or(Ok(()), |e| Err(failed(e)))?;
    let rate = work / median / unit.scale();
    let ceiling = limit.map(|limit| limit.ceiling(ceilings));
    let fraction = ceiling.map(|c| rate / ceilings.rate(c));
    Ok(Line { piece, name: name.into(), shape, backend, threads, median, rate, unit: unit.name(), ceiling, fraction })
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
    ceiling: Option<Ceiling>,
    fraction: Option<f64>,
}

impl Line {
    const HEADER: &'static str = "operation                             shape                         backend     threads     median       rate  unit       of ceiling";

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
            ceiling: None,
            fraction: None,
        }
    }

    fn text(&self) -> String {
        let operation = format!("{} {}", self.piece, self.name);
        let fraction = match (self.fraction, self.ceiling) {
            (Some(fraction), Some(ceiling)) => format!("{fraction:.2} of {}", ceiling.name()),
            _ => "-".into(),
        };
        format!(
            "{operation:<36}  {:<28}  {:<10}  {:>7}  {:>9}  {:>9.2}  {:<9}  {fraction}",
            self.shape,
            self.backend,
            self.threads,
            duration(self.median),
            self.rate,
            self.unit
        )
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
            "ceiling": self.ceiling.map(Ceiling::name),
            "fraction_of_ceiling": self.fraction,
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
