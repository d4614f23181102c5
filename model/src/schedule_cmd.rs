//! `v3 schedule`: a pipeline schedule as text, JSON, a picture or a Chrome trace.

use std::io::Write;

use dualpipe::{Costs, Kind, Schedule, simulate};

use crate::error::{Error, Result};

/// What `v3 schedule` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A chart, then makespan, bubble per rank and peak activations per rank
    Text,
    /// The list of actions of each rank
    Json,
    /// A picture
    Svg,
    /// Events for chrome://tracing or Perfetto
    Trace,
}

/// Options of `v3 schedule`.
#[derive(Debug, Clone, clap::Args)]
pub struct ScheduleArgs {
    /// Name of the schedule: gpipe, 1f1b, interleaved (or interleaved-N: N stages a rank), zb-h1, zb-v, dualpipe or dualpipev
    #[arg(long, value_name = "NAME")]
    pub kind: String,
    /// Pipeline ranks
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub ranks: usize,
    /// Micro-batches of a step
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    pub micro_batches: usize,
    /// Cost of a forward, a full backward, a backward for weights, an overlapped pair and a transfer
    #[arg(long, value_name = "COSTS", default_value = "F=1,B=2,W=1,FB=3,P2P=0")]
    pub costs: String,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Columns of the chart.
const WIDTH: usize = 80;

/// What `v3 schedule` prints for these options.
pub fn render(args: &ScheduleArgs) -> Result<String> {
    let kind: Kind = args.kind.parse().map_err(|e| option_error("--kind", &e))?;
    let costs: Costs = args.costs.parse().map_err(|e| option_error("--costs", &e))?;
    let schedule = plan(kind, "--ranks", args.ranks, args.micro_batches)?;
    let timeline = || simulate(&schedule, &costs).map_err(|e| option_error("--costs", &e));
    Ok(match args.format {
        Format::Json => schedule.to_json() + "\n",
        Format::Text => timeline()?.to_text(WIDTH),
        Format::Svg => timeline()?.to_svg() + "\n",
        Format::Trace => timeline()?.to_chrome_trace() + "\n",
    })
}

/// A schedule for so many ranks, which the option `ranks_option` gave, and so many micro-batches, which `--micro-batches` gave.
pub fn plan(kind: Kind, ranks_option: &str, ranks: usize, micro_batches: usize) -> Result<Schedule> {
    Schedule::new(kind, ranks, micro_batches).map_err(|e| option_error(ranks_option, &e))
}

/// Runs `v3 schedule`.
pub fn run(args: &ScheduleArgs) -> Result<()> {
    print(&render(args)?)
}

/// Writes text to standard output. A reader that has gone away is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("write", "standard output")(e)),
        _ => Ok(()),
    }
}

/// What the piece says about an option that was given.
fn option_error(option: &str, error: &dualpipe::Error) -> Error {
    use dualpipe::Error as Piece;
    let on = |kind: &Kind| format!(" for {kind}");
    match error {
        Piece::UnknownKind { expected, got } => Error::option(option, format!("one of {expected}"), format!("\"{got}\"")),
        Piece::Ranks { kind, expected, got } => Error::option(option, format!("{expected}{}", on(kind)), got),
        Piece::MicroBatches { kind, ranks, expected, got } => {
            Error::option("--micro-batches", format!("{expected}{} on {ranks} ranks", on(kind)), got)
        }
        Piece::Shape { expected, got, .. } => Error::option(option, expected, got),
        other => Error::Piece { piece: "dualpipe", message: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(kind: &str, ranks: usize, micro_batches: usize, costs: &str, format: Format) -> ScheduleArgs {
        ScheduleArgs { kind: kind.into(), ranks, micro_batches, costs: costs.into(), format }
    }

    const COSTS: &str = "F=1,B=2,W=1,FB=3,P2P=0";

    #[test]
    fn every_kind_prints_in_every_format() {
        for kind in Kind::ALL {
            let render = |format| render(&args(kind.name(), 2, 4, COSTS, format)).unwrap();
            let text = render(Format::Text);
            let at = |what: &str| text.rfind(what).unwrap_or_else(|| panic!("{what} in:\n{text}"));
            assert!(at("akespan") < at("ubble") && at("ubble") < at("ctivations"));
            assert!(text.lines().all(|line| line.chars().count() <= 80));
            assert!(render(Format::Svg).starts_with("<svg"));
            let schedule = Schedule::from_json(&render(Format::Json)).unwrap();
            assert_eq!((schedule.kind(), schedule.ranks()), (kind, 2));
            serde_json::from_str::<serde_json::Value>(&render(Format::Trace)).unwrap();
        }
    }

    #[test]
    fn options_that_cannot_be_taken_are_named() {
        let error = |kind, ranks, micro_batches, costs| {
            let error = render(&args(kind, ranks, micro_batches, costs, Format::Text)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("expected") && text.contains("found") && !text.contains('\n'), "{text}");
            text
        };
        assert!(error("dualpipa", 2, 4, COSTS).starts_with("--kind: expected one of gpipe, 1f1b"));
        assert!(error("dualpipe", 3, 8, COSTS).starts_with("--ranks:"));
        assert!(error("1f1b", 0, 7, COSTS).starts_with("--ranks:"));
        assert!(error("1f1b", 2, 0, COSTS).starts_with("--micro-batches:"));
        for costs in ["F", "F=x", "G=1", "W=3,B=2", "F=-1", "F=inf"] {
            assert!(error("1f1b", 2, 2, costs).starts_with("--costs:"), "{costs}");
        }
        error("1f1b", usize::MAX, usize::MAX, COSTS);
    }
}
