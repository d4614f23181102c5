//! What a run writes and shows while it goes: metrics.jsonl and the progress bar.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::StepOutcome;
use crate::error::{Error, Result};

/// Name of the file of metrics in a run folder.
pub const METRICS: &str = "metrics.jsonl";

/// One line of metrics.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    /// What was minimised: main loss, weighted multi-token-prediction loss and balance loss.
    pub loss: f64,
    /// Mean cross entropy of the next token, nats.
    pub main_loss: f64,
    /// Mean cross entropy over the multi-token-prediction depths; null without modules.
    pub mtp_loss: Option<f64>,
    /// Sequence-wise balance loss, summed over layers.
    pub balance_loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens trained on a second.
    pub tokens_per_s: f64,
    /// Largest load of an expert over the mean of its layer.
    pub max_expert_load: f64,
}

impl StepMetrics {
    /// The line of a step.
    pub fn new(step: u64, outcome: &StepOutcome, lr: f64, tokens_per_s: f64) -> Self {
        let n = outcome.mtp_losses.len();
        Self {
            step,
            loss: outcome.loss,
            main_loss: outcome.main_loss,
            mtp_loss: (n > 0).then(|| outcome.mtp_losses.iter().sum::<f64>() / n as f64),
            balance_loss: outcome.balance_loss,
            lr,
            grad_norm: outcome.grad_norm,
            tokens_per_s,
            max_expert_load: outcome.max_load,
        }
    }
}

/// Reads metrics.jsonl of a run folder.
pub fn read(run: &Path) -> Result<Vec<StepMetrics>> {
    let path = run.join(METRICS);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let parse = |line: &str| serde_json::from_str(line).map_err(|e| Error::file(&path, "one object of metrics a line", e));
    text.lines().map(parse).collect()
}

/// Makes the run folder. A new run wants a folder that is new or empty; a resumed one forgets the metrics of steps after the
/// checkpoint's, which will be done again, and a line that was cut short.
pub fn prepare_folder(out: &Path, resumed_step: Option<u64>) -> Result<()> {
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let path = out.join(METRICS);
    match resumed_step {
        None => {
            let mut entries = std::fs::read_dir(out).map_err(Error::io("read", out))?;
            if entries.next().is_some() {
                return Err(Error::option("--out", "a new or empty folder", format!("{}, which has files in it", out.display())));
            }
        }
        Some(step) => {
            // What an earlier part of the run reported no longer holds.
            let report = out.join(super::finish::REPORT);
            if report.exists() {
                std::fs::remove_file(&report).map_err(Error::io("remove", &report))?;
            }
            let text = match std::fs::read_to_string(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
                read => read.map_err(Error::io("read", &path))?,
            };
            let kept = |line: &&str| serde_json::from_str::<StepMetrics>(line).is_ok_and(|m| m.step <= step);
            let text: String = text.lines().filter(kept).flat_map(|line| [line, "\n"]).collect();
            crate::checkpoint::write_file_atomic(&path, text.as_bytes())?;
        }
    }
    Ok(())
}

/// Removes the folder of a run that ended before its first step. What it holds by then is an empty metrics.jsonl at most.
pub fn remove_unused_folder(out: &Path) {
    let path = out.join(METRICS);
    if std::fs::metadata(&path).is_ok_and(|m| m.len() == 0) {
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::remove_dir(out);
}

/// The progress bar and the open metrics.jsonl.
#[derive(Debug)]
pub struct Console {
    bar: ProgressBar,
    file: File,
    path: PathBuf,
}

impl Console {
    /// Opens metrics.jsonl for appending and shows the bar on stderr.
    pub fn new(out: &Path, steps: u64, first: u64) -> Result<Self> {
        let path = out.join(METRICS);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
        let bar = ProgressBar::new(steps);
        let style =
            ProgressStyle::with_template("step {pos}/{len} [{bar:20}] {msg} left {eta}").map_err(Error::piece("indicatif"))?;
        bar.set_style(style.progress_chars("=> "));
        bar.set_position(first - 1);
        bar.reset_eta();
        Ok(Self { bar, file, path })
    }

    /// Adds a step.
    pub fn step(&mut self, m: &StepMetrics) -> Result<()> {
        let mut line = serde_json::to_string(m).map_err(Error::piece("serde_json"))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))?;
        self.bar.set_message(format!("loss {:.3}, {:.0} tokens/s,", m.loss, m.tokens_per_s));
        self.bar.set_position(m.step);
        Ok(())
    }

    /// Leaves the bar as it stands.
    pub fn finish(self) {
        self.bar.abandon();
    }
}

/// The current time in UTC, as the name of a run folder.
pub fn date_time() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    format!("{year:04}-{month:02}-{day:02}-{:02}{:02}{:02}", time / 3600, time / 60 % 60, time % 60)
}

/// Year, month and day of a number of days since 1970 (proleptic Gregorian calendar).
fn civil(days: i64) -> (i64, i64, i64) {
    // Counted from 1 March of the year 0, leap days fall at the end of each year, and of each period of 4, 100 and 400 years.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_780), (2026, 11, 23));
    }
}
