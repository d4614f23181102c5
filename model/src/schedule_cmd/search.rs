//! `v3 schedule --kind search`: a schedule found for given costs and a memory cap.

use std::fmt::Write;
use std::path::Path;

use dualpipe::search::{Found, Options, Problem, search};
use dualpipe::{Costs, Placement};

use super::{ScheduleArgs, option_error};
use crate::error::{Error, Result};

/// Options that only `--kind search` takes.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "With --kind search")]
pub struct SearchArgs {
    /// Most memory of a rank, parameters and activations, in the unit of PARAMS, ACT_I and ACT_W; no cap if left out
    #[arg(long, value_name = "CAP", allow_negative_numbers = true)]
    pub memory: Option<f64>,
    /// Costs of each stage in order, one or two stages a rank: a file with a line for each, or the lines separated by ';'. As
    /// --costs, which then is not looked at
    #[arg(long, value_name = "FILE|LIST")]
    pub stages: Option<String>,
    /// Placements to choose from: line (one stage a rank), v (two), bidirectional (two copies of the parameters)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub placements: Vec<String>,
    /// Same seed, same schedule [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Schedules tried for each placement, about; the time is proportional to it [default: 120000]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub effort: Option<usize>,
    /// Do not start from the schedules that have a name
    #[arg(long)]
    pub no_known: bool,
}

impl SearchArgs {
    /// The options given, by name: other kinds take none of them.
    pub(super) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--memory", self.memory.is_some()),
            ("--stages", self.stages.is_some()),
            ("--placements", !self.placements.is_empty()),
            ("--seed", self.seed.is_some()),
            ("--effort", self.effort.is_some()),
            ("--no-known", self.no_known),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }
}

/// Memory of a stage: parameters, activations of a micro-batch freed at `I`, and at `W`.
type Memory = [f64; 3];

/// What is searched, from the options.
pub(super) fn problem(args: &ScheduleArgs) -> Result<Problem> {
    let (option, stages) = match &args.search.stages {
        None => ("--costs", vec![stage("--costs", &args.costs)?]),
        Some(text) => ("--stages", stages(text)?),
    };
    let (ranks, micro_batches) = (args.ranks, args.micro_batches);
    let costs: Vec<Costs> = stages.iter().map(|(costs, _)| *costs).collect();
    let mut problem = match args.search.stages {
        None => Problem::uniform(ranks, micro_batches, &costs[0]),
        Some(_) => Problem::from_stages(ranks, micro_batches, &costs),
    }
    .map_err(|error| match error {
        dualpipe::Error::Shape { ref what, .. } if what == "search: sizes" => option_error("--ranks", &error),
        other => option_error(option, &other),
    })?;
    // Two slices a rank: halves of a stage where there is one stage a rank.
    let slices = problem.slices.len();
    for (index, slice) in problem.slices.iter_mut().enumerate() {
        let halves = if 2 * stages.len() == slices || stages.len() == 1 { 2.0 } else { 1.0 };
        let at = (index * stages.len() / slices).min(stages.len() - 1);
        let [parameters, at_input, at_weight] = stages[at].1.map(|value| value / halves);
        (slice.parameters, slice.at_input, slice.at_weight) = (parameters, at_input, at_weight);
    }
    if let Some(memory) = args.search.memory {
        if !(memory.is_finite() && memory >= 0.0) {
            return Err(Error::option("--memory", "a finite number, 0 or more", memory.to_string()));
        }
        problem.memory = memory;
    }
    if !args.search.placements.is_empty() {
        let placement = |name: &String| match name.trim() {
            "line" => Ok(Placement::Line),
            "v" => Ok(Placement::V),
            "bidirectional" => Ok(Placement::Bidirectional),
            other => Err(Error::option("--placements", "line, v or bidirectional", format!("\"{other}\""))),
        };
        problem.placements = args.search.placements.iter().map(placement).collect::<Result<_>>()?;
    }
    Ok(problem)
}

/// The lines of `--stages`: a list if it has a `=`, a file if not. A line may end in a comment after `#`.
fn stages(text: &str) -> Result<Vec<(Costs, Memory)>> {
    let content = match text.contains('=') {
        true => text.replace(';', "\n"),
        false => std::fs::read_to_string(text).map_err(Error::io("read", Path::new(text)))?,
    };
    let lines = content.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let stages: Vec<_> = lines.filter(|line| !line.is_empty()).map(|line| stage("--stages", line)).collect::<Result<_>>()?;
    if stages.is_empty() {
        return Err(Error::option("--stages", "the costs of one or two stages a rank", "none"));
    }
    Ok(stages)
}

/// Costs and memory of one stage: as [`Costs`], and PARAMS (0), ACT_I (0) and ACT_W (1 if neither is given).
fn stage(option: &str, text: &str) -> Result<(Costs, Memory)> {
    let mut memory: [Option<f64>; 3] = [None; 3];
    let mut rest = Vec::new();
    for part in text.split(',') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let Some(index) = ["PARAMS", "ACT_I", "ACT_W"].iter().position(|known| *known == name.trim()) else {
            rest.push(part);
            continue;
        };
        let value: Option<f64> = value.trim().parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
        if value.is_none() || memory[index].is_some() {
            return Err(Error::option(option, "PARAMS, ACT_I and ACT_W, each a number of 0 or more, once", format!("'{part}'")));
        }
        memory[index] = value;
    }
    let costs: Costs = rest.join(",").parse().map_err(|e| option_error(option, &e))?;
    let [parameters, at_input, at_weight] = memory;
    let default = if at_input.is_some() { 0.0 } else { 1.0 };
    Ok((costs, [parameters.unwrap_or(0.0), at_input.unwrap_or(0.0), at_weight.unwrap_or(default)]))
}

/// Searches.
pub(super) fn find(args: &ScheduleArgs, problem: &Problem) -> Result<Found> {
    let default = Options::default();
    let options = Options {
        seed: args.search.seed.unwrap_or(default.seed),
        effort: args.search.effort.unwrap_or(default.effort),
        known: !args.search.no_known,
    };
    search(problem, &options).map_err(|error| match error {
        dualpipe::Error::Shape { ref what, .. } if what == "search: memory" => option_error("--memory", &error),
        dualpipe::Error::Shape { ref what, .. } if what == "search: placements" => option_error("--placements", &error),
        other => option_error("--ranks", &other),
    })
}

/// Makespan, lower bound, gap and memory, as lines below the chart.
pub(super) fn summary(found: &Found, problem: &Problem, width: usize) -> String {
    let mut out = String::new();
    let number = |value: f64| {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    // Writing to a string cannot fail.
    let _ = writeln!(out, "lower bound of all schedules: {}, gap {:.2} %", number(found.lower_bound), 100.0 * found.gap());
    let cap = if problem.memory.is_finite() { format!(" (cap {})", number(problem.memory)) } else { String::new() };
    let mut line = format!("peak memory{cap}:");
    for peak in &found.peak_memory {
        let next = number(*peak);
        if line.len() + 1 + next.len() > width {
            let _ = writeln!(out, "{line}");
            line = " ".into();
        }
        let _ = write!(line, " {next}");
    }
    let _ = writeln!(out, "{line}");
    out
}
