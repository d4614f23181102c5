//! `v3 schedule`: a pipeline schedule as text, JSON, a picture, a Chrome trace, or the text form of PyTorch.

mod search;

use std::io::Write;

use dualpipe::{Costs, Kind, Schedule, Timeline, simulate};

use crate::error::{Error, Result};

pub use search::SearchArgs;

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
    /// The CSV of PyTorch's pipelining: a row a rank
    Torch,
}

/// Options of `v3 schedule`.
#[derive(Debug, Clone, clap::Args)]
pub struct ScheduleArgs {
    /// Name of the schedule: gpipe, 1f1b, interleaved (or interleaved-N: N stages a rank), zb-h1, zb-v, dualpipe or
    /// dualpipev; or search: the best found for the costs and a memory cap
    #[arg(long, value_name = "NAME")]
    pub kind: String,
    /// Pipeline ranks
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub ranks: usize,
    /// Micro-batches of a step
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    pub micro_batches: usize,
    /// Cost of a forward, a full backward, a backward for weights, an overlapped pair and a transfer. With --kind search also memory
    /// of a rank: PARAMS (0 if left out), and activations of a micro-batch that are freed at I, ACT_I (0), and at W, ACT_W (1)
    #[arg(long, value_name = "COSTS", default_value = "F=1,B=2,W=1,FB=3,P2P=0")]
    pub costs: String,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Options of the search
    #[command(flatten)]
    pub search: SearchArgs,
}

/// The kind that is no name of a schedule.
const SEARCH: &str = "search";

/// Columns of the chart.
const WIDTH: usize = 80;

/// What `v3 schedule` prints for these options.
pub fn render(args: &ScheduleArgs) -> Result<String> {
    if args.kind == SEARCH {
        let problem = search::problem(args)?;
        let found = search::find(args, &problem)?;
        let costs = problem.costs(found.schedule.placement());
        let timeline = simulate(&found.schedule, &costs).map_err(|e| option_error("--costs", &e))?;
        let more = search::summary(&found, &problem, WIDTH);
        return show(&found.schedule, args.format, || Ok(timeline), &more);
    }
    let kind: Kind = args.kind.parse().map_err(|e| option_error("--kind", &e))?;
    if let Some(option) = args.search.given() {
        return Err(Error::option(option, "--kind search with it", format!("--kind {kind}")));
    }
    let costs: Costs = args.costs.parse().map_err(|e| option_error("--costs", &e))?;
    let schedule = plan(kind, "--ranks", args.ranks, args.micro_batches)?;
    show(&schedule, args.format, || simulate(&schedule, &costs).map_err(|e| option_error("--costs", &e)), "")
}

/// A schedule in a format; `more` stands below the figures of the text.
fn show(schedule: &Schedule, format: Format, timeline: impl FnOnce() -> Result<Timeline>, more: &str) -> Result<String> {
    Ok(match format {
        Format::Json => schedule.to_json() + "\n",
        Format::Text => timeline()?.to_text(WIDTH) + more,
        Format::Svg => timeline()?.to_svg() + "\n",
        Format::Trace => timeline()?.to_chrome_trace() + "\n",
        Format::Torch => schedule.to_torch_csv().map_err(|e| option_error("--format", &e))?,
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
        Piece::UnknownKind { expected, got } => {
            let search = if option == "--kind" { ", search" } else { "" };
            Error::option(option, format!("one of {expected}{search}"), format!("\"{got}\""))
        }
        Piece::Unsupported { what, why } => Error::option(option, format!("what it can express ({why})"), what),
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
        ScheduleArgs { kind: kind.into(), ranks, micro_batches, costs: costs.into(), format, search: SearchArgs::default() }
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

    fn searched(costs: &str, format: Format, search: SearchArgs) -> ScheduleArgs {
        ScheduleArgs { search: SearchArgs { effort: Some(500), ..search }, ..args("search", 4, 8, costs, format) }
    }

    #[test]
    fn a_search_prints_in_every_format() {
        let costs = "F=1,B=2.2,W=1,FB=3,P2P=0.1,PARAMS=3,ACT_I=0.25,ACT_W=0.75";
        for placement in ["line", "v", "bidirectional"] {
            let search = SearchArgs { memory: Some(8.0), placements: vec![placement.into()], ..SearchArgs::default() };
            let render = |format| render(&searched(costs, format, search.clone()));
            let text = render(Format::Text).unwrap();
            for what in ["custom", "makespan", "bubble", "lower bound of all schedules", "gap", "peak memory (cap 8)"] {
                assert!(text.contains(what), "{what} in:\n{text}");
            }
            assert!(text.lines().all(|line| line.chars().count() <= 80));
            let peaks = text.lines().find_map(|line| line.strip_prefix("peak memory (cap 8):")).unwrap();
            assert!(peaks.split_whitespace().all(|peak| peak.parse::<f64>().unwrap() <= 8.0), "{peaks}");
            let schedule = Schedule::from_json(&render(Format::Json).unwrap()).unwrap();
            assert_eq!((schedule.ranks(), schedule.micro_batches()), (4, 8));
            assert!(render(Format::Svg).unwrap().starts_with("<svg"));
            serde_json::from_str::<serde_json::Value>(&render(Format::Trace).unwrap()).unwrap();
            match render(Format::Torch) {
                Ok(csv) => assert_eq!(Schedule::from_torch_csv(&csv).unwrap().ranks_actions(), schedule.ranks_actions()),
                Err(error) => assert!(placement == "bidirectional" && error.to_string().contains("two ranks"), "{error}"),
            }
        }
        // The unit is the activations of a rank and micro-batch, and there is no cap, unless options say otherwise.
        let text = render(&searched("F=1,B=2,W=1", Format::Text, SearchArgs::default())).unwrap();
        assert!(text.contains("peak memory:"), "{text}");
    }

    #[test]
    fn stages_come_from_a_list_or_a_file() {
        let lines = ["F=1,B=2,W=1 # embedding", "F=2,B=4,W=2,PARAMS=2", "F=1,B=2,W=1,ACT_I=1", "F=1,B=3,W=1,ACT_W=2"];
        let path = std::env::temp_dir().join(format!("v3-stages-{}.txt", std::process::id()));
        std::fs::write(&path, lines.join("\n")).unwrap();
        let from = |stages: String| {
            let search = SearchArgs { stages: Some(stages), ..SearchArgs::default() };
            search::problem(&searched("F=1", Format::Text, search))
        };
        let file = from(path.display().to_string()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let list = from(lines.map(|line| line.split('#').next().unwrap().to_string()).join(";")).unwrap();
        assert_eq!(file, list);
        let stage = |stage| file.stage(dualpipe::Placement::Line, stage);
        assert_eq!((stage(1).f, stage(1).parameters, stage(1).at_weight), (2.0, 2.0, 1.0));
        assert_eq!((stage(2).at_input, stage(2).at_weight), (1.0, 0.0));
        assert_eq!((stage(3).i, stage(3).at_weight), (2.0, 2.0));
        // Two a rank.
        let halves = from(["F=1,B=2,W=1,PARAMS=1"; 8].join(";")).unwrap();
        assert_eq!((halves.slices[3].f, halves.slices[3].parameters, halves.slices[3].at_weight), (1.0, 1.0, 1.0));
        let said = |text: &str| from(text.into()).unwrap_err().to_string();
        assert!(said("F=1;F=1").starts_with("--stages: expected 4 (one a rank)"));
        assert!(said("F=1,PARAMS=-1;F=1;F=1;F=1").starts_with("--stages: expected PARAMS"));
        assert!(said("F=1,ACT_I=1,ACT_I=1").contains("once"));
        assert!(said("F=1,G=1").starts_with("--stages: expected NAME=NUMBER"));
        assert!(said("/no/such/file").contains("/no/such/file"));
        assert!(said(";;#=").starts_with("--stages: expected the costs"));
    }

    #[test]
    fn options_of_the_search_that_cannot_be_taken_are_named() {
        let none = SearchArgs::default;
        let said = |args: &ScheduleArgs| {
            let text = render(args).unwrap_err().to_string();
            assert!(text.contains("expected") && text.contains("found") && !text.contains('\n'), "{text}");
            text
        };
        let with = |search: SearchArgs| searched(COSTS, Format::Text, search);
        assert!(said(&with(SearchArgs { memory: Some(0.5), ..none() })).starts_with("--memory: expected 1 or more"));
        assert!(said(&with(SearchArgs { memory: Some(-1.0), ..none() })).starts_with("--memory:"));
        assert!(said(&with(SearchArgs { placements: vec!["w".into()], ..none() })).starts_with("--placements:"));
        let two_ways = SearchArgs { placements: vec!["bidirectional".into()], ..none() };
        assert!(said(&ScheduleArgs { ranks: 3, ..with(two_ways) }).starts_with("--ranks:"));
        assert!(said(&ScheduleArgs { ranks: 0, ..with(none()) }).starts_with("--ranks:"));
        assert!(said(&ScheduleArgs { ranks: usize::MAX, ..with(none()) }).starts_with("--ranks:"));
        assert!(said(&ScheduleArgs { micro_batches: 0, ..with(none()) }).starts_with("--ranks:"));
        assert!(said(&ScheduleArgs { costs: "F=-1".into(), ..with(none()) }).starts_with("--costs:"));
        let seeded = SearchArgs { seed: Some(1), ..none() };
        assert!(said(&ScheduleArgs { kind: "1f1b".into(), ..with(seeded) }).starts_with("--seed: expected --kind search"));
        assert!(said(&args("serch", 4, 8, COSTS, Format::Text)).ends_with("search, found \"serch\""));
        assert!(said(&args("dualpipe", 4, 8, COSTS, Format::Torch)).starts_with("--format:"));
    }
}
