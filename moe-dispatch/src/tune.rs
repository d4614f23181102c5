//! Channels and chunk sizes by measuring: [`tune`] times dispatch and combine for some of both, over the ranks and links at hand, and a [`Tuned`] keeps
//! the curve and the choice in a file that [`PlanOptions::tuned`] reads.
//!
//! Small chunks let a gateway begin early, large ones make few messages: which is best depends on latencies, bandwidths and the cost of a message,
//! and it is cheaper to measure than to know them.
//!
//! ```
//! use moe_dispatch::tune::{TuneOptions, tune};
//! use moe_dispatch::{Layout, PlanOptions, Routing};
//! use v3_ranks::{Comm, WorldConfig, run_threads};
//!
//! let file = std::env::temp_dir().join(format!("tuned-{}.txt", std::process::id()));
//! let layout = Layout::new(8, 4, 2)?;
//! run_threads(WorldConfig::new(4).ranks_per_node(2), |comm: Comm| -> moe_dispatch::Result<()> {
//!     let indices = (0..64).flat_map(|token| [token % 8, (token + 3) % 8]).collect();
//!     let routing = Routing { tokens: 64, top_k: 2, indices, weights: vec![0.5; 128], scores: vec![] };
//!     let options = TuneOptions { channels: vec![1, 2], chunk_rows: vec![16, 64], repeats: 3, row_len: 32 };
//!     let tuned = tune(&comm, &layout, &routing, PlanOptions::default(), &options)?;
//!     if comm.rank() == 0 {
//!         println!("{tuned}");
//!         tuned.write(&file)?;
//!     }
//!     Ok(())
//! })?;
//! let options = PlanOptions::default().tuned(&file)?;
//! assert!([16, 64].contains(&options.chunk_rows));
//! # std::fs::remove_file(&file)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use v3_ranks::Comm;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::measure::{time_combine, time_dispatch};
use crate::plan::{Plan, PlanOptions};
use crate::router::Routing;

/// The first line of a file.
const HEADER: &str = "moe-dispatch tuned options, version 1";

/// What [`tune`] tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TuneOptions {
    /// Numbers of channels, each 1 to 256.
    pub channels: Vec<usize>,
    /// Rows per message, each at least 1.
    pub chunk_rows: Vec<usize>,
    /// Measurements of each point, at least 1, in rounds over all points; their median counts. Under the virtual clock one is enough.
    pub repeats: usize,
    /// f32 values of a row.
    pub row_len: usize,
}

impl Default for TuneOptions {
    /// Rows of 7168 bf16, 1 to 4 channels, chunks of 16 to 1024 rows.
    fn default() -> Self {
        let chunk_rows = vec![16, 32, 64, 128, 256, 512, 1024];
        TuneOptions { channels: vec![1, 2, 4], chunk_rows, repeats: 5, row_len: 3584 }
    }
}

/// One measured point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Channels.
    pub channels: usize,
    /// Rows per message.
    pub chunk_rows: usize,
    /// Seconds of a dispatch, from a common beginning to the end of the last rank.
    pub dispatch: f64,
    /// Seconds of a combine.
    pub combine: f64,
}

impl Point {
    fn total(&self) -> f64 {
        self.dispatch + self.combine
    }
}

/// What was measured, and what is best. It prints as the text of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// The channels to use.
    pub channels: usize,
    /// The rows per message to use.
    pub chunk_rows: usize,
    /// Ranks that measured.
    pub ranks: usize,
    /// Ranks per node of the layout.
    pub ranks_per_node: usize,
    /// Whether by the virtual clock.
    pub is_virtual: bool,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// All points.
    pub curve: Vec<Point>,
}

/// Measures every pair of channels and chunk size on all ranks of the group, and chooses: the pair with the least time of dispatch and combine, or, among those
/// within 1 % of it, the one with the fewest channels and then the largest chunks. All ranks measure the same and return the same. `base` holds
/// the options that stay as they are.
///
/// # Errors
/// When there is nothing to try, an option is out of its range or a row is empty or does not fit into memory, and as [`Plan::with_options`].
pub fn tune(comm: &Comm, layout: &Layout, routing: &Routing, base: PlanOptions, options: &TuneOptions) -> Result<Tuned> {
    let row_bytes = options.row_len.checked_mul(size_of::<f32>()).filter(|&bytes| bytes > 0);
    let row_bytes = row_bytes.ok_or_else(|| refuse(format!("rows of {} values cannot be measured", options.row_len)))?;
    let mut plans = Vec::new();
    for &channels in &options.channels {
        for &chunk_rows in &options.chunk_rows {
            plans.push(Plan::with_options(comm, layout, routing, PlanOptions { channels, chunk_rows, ..base })?);
        }
    }
    if options.repeats == 0 {
        return Err(refuse("repeats are at least 1"));
    }
    let mut times = vec![(Vec::new(), Vec::new()); plans.len()];
    // Rounds over all points: what disturbs the machine for a while disturbs all alike.
    for _ in 0..options.repeats {
        for (plan, (dispatch, combine)) in plans.iter().zip(&mut times) {
            dispatch.push(time_dispatch(comm, plan, options.row_len)?);
            combine.push(time_combine(comm, plan, options.row_len)?);
        }
    }
    let point = |(plan, (dispatch, combine)): (&Plan, &mut (Vec<f64>, Vec<f64>))| {
        let PlanOptions { channels, chunk_rows, .. } = plan.options();
        Point { channels, chunk_rows, dispatch: median(dispatch), combine: median(combine) }
    };
    let curve: Vec<Point> = plans.iter().zip(&mut times).map(point).collect();
    let least = curve.iter().map(Point::total).fold(f64::INFINITY, f64::min);
    let near = curve.iter().filter(|point| point.total() <= 1.01 * least);
    let best = near.min_by_key(|point| (point.channels, usize::MAX - point.chunk_rows));
    let best = best.ok_or_else(|| refuse("nothing to try: no channels or no chunk sizes"))?;
    Ok(Tuned {
        channels: best.channels,
        chunk_rows: best.chunk_rows,
        ranks: layout.ep_size(),
        ranks_per_node: layout.ranks_per_node(),
        is_virtual: comm.is_virtual(),
        row_bytes,
        curve,
    })
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    // Whole nanoseconds: more digits say nothing.
    times.get(times.len() / 2).map_or(f64::NAN, |seconds| (seconds * 1e9).round() / 1e9)
}

fn refuse(reason: impl Into<String>) -> Error {
    Error::Config { what: "tuned options", reason: reason.into() }
}

impl fmt::Display for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        for (key, value) in [
            ("channels", self.channels),
            ("chunk_rows", self.chunk_rows),
            ("ranks", self.ranks),
            ("ranks_per_node", self.ranks_per_node),
            ("row_bytes", self.row_bytes),
        ] {
            writeln!(f, "{key} {value}")?;
        }
        writeln!(f, "clock {}", if self.is_virtual { "virtual" } else { "wall" })?;
        writeln!(f, "# channels chunk_rows dispatch_s combine_s")?;
        for Point { channels, chunk_rows, dispatch, combine } in &self.curve {
            writeln!(f, "point {channels} {chunk_rows} {dispatch:e} {combine:e}")?;
        }
        Ok(())
    }
}

impl FromStr for Tuned {
    type Err = Error;

    /// Reads the text of a file. Every key is there once; lines that begin with # say nothing.
    fn from_str(text: &str) -> Result<Tuned> {
        let mut lines = text.lines().zip(1..);
        match lines.next() {
            Some((HEADER, _)) => {}
            Some((other, _)) => return Err(refuse(format!("line 1: expected '{HEADER}', got '{}'", other.escape_debug()))),
            None => return Err(refuse("the file is empty")),
        }
        let keys = ["channels", "chunk_rows", "ranks", "ranks_per_node", "row_bytes"];
        let mut numbers = [None; 5];
        let mut is_virtual = None;
        let mut curve = Vec::new();
        for (line, number) in lines.filter(|(line, _)| !line.starts_with('#')) {
            let at = |reason: String| refuse(format!("line {number}: {reason}"));
            let words: Vec<&str> = line.split_whitespace().collect();
            let count = |word: &str| match word.parse::<usize>() {
                Ok(count) if count > 0 => Ok(count),
                _ => Err(at(format!("expected a number from 1 on, got '{}'", word.escape_debug()))),
            };
            let seconds = |word: &str| match word.parse::<f64>() {
                Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(seconds),
                _ => Err(at(format!("expected seconds, got '{}'", word.escape_debug()))),
            };
            match words[..] {
                ["point", channels, chunk_rows, dispatch, combine] => curve.push(Point {
                    channels: count(channels)?,
                    chunk_rows: count(chunk_rows)?,
                    dispatch: seconds(dispatch)?,
                    combine: seconds(combine)?,
                }),
                ["clock", name @ ("wall" | "virtual")] if is_virtual.is_none() => is_virtual = Some(name == "virtual"),
                [key, value]
                    if let Some(place) = keys.iter().position(|&k| k == key)
                        && numbers[place].is_none() =>
                {
                    numbers[place] = Some(count(value)?);
                }
                _ => return Err(at(format!("not understood, or there twice: '{}'", line.escape_debug()))),
            }
        }
        let missing = |key: &str| refuse(format!("'{key}' is missing"));
        let [channels, chunk_rows, ranks, ranks_per_node, row_bytes] = numbers;
        let need = |number: Option<usize>, key: &str| number.ok_or_else(|| missing(key));
        let tuned = Tuned {
            channels: need(channels, keys[0])?,
            chunk_rows: need(chunk_rows, keys[1])?,
            ranks: need(ranks, keys[2])?,
            ranks_per_node: need(ranks_per_node, keys[3])?,
            row_bytes: need(row_bytes, keys[4])?,
            is_virtual: is_virtual.ok_or_else(|| missing("clock"))?,
            curve,
        };
        PlanOptions { channels: tuned.channels, chunk_rows: tuned.chunk_rows, ..PlanOptions::default() }.check()?;
        Ok(tuned)
    }
}

impl Tuned {
    /// Stores curve and choice.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.to_string()).map_err(|error| refuse(format!("{}: {error}", path.display())))
    }

    /// Reads what [`write`](Tuned::write) has stored.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else, with its name and the line.
    pub fn read(path: impl AsRef<Path>) -> Result<Tuned> {
        let path = path.as_ref();
        let named = |reason: String| refuse(format!("{}: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        text.parse().map_err(|error: Error| match error {
            Error::Config { reason, .. } => named(reason),
            other => other,
        })
    }
}

impl PlanOptions {
    /// The same with the channels and chunk size of a file that [`tune`] has made.
    ///
    /// # Errors
    /// As [`Tuned::read`].
    pub fn tuned(self, path: impl AsRef<Path>) -> Result<PlanOptions> {
        let Tuned { channels, chunk_rows, .. } = Tuned::read(path)?;
        Ok(PlanOptions { channels, chunk_rows, ..self })
    }
}
