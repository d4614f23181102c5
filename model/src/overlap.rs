//! Communication behind computation in training: the order of components that is asked for, where it comes from, and what came of it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use dualpipe::{ActionKind, Arrangements, ComponentCosts, Half, Overlap, Schedule, Step, Tuning};

use crate::checkpoint::write_file_atomic;
use crate::components::{self, Part, Record};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::grid::Grid;

/// `--overlap`, with the files beside it.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum OverlapChoice {
    /// One component after another.
    #[default]
    Off,
    /// The order of the DeepSeek-V3 report.
    Default,
    /// The best order that a search finds.
    Tuned {
        /// What components cost, as `v3 bench components` writes it. Not needed where the arrangements are there already.
        costs: Option<PathBuf>,
        /// Where arrangements are kept: read if there, else written.
        arrangements: Option<PathBuf>,
    },
}

impl OverlapChoice {
    /// Reads the options.
    ///
    /// # Errors
    /// An unknown name; a file that the choice does not read; `tuned` without a file.
    pub fn new(name: Option<&str>, costs: Option<&Path>, arrangements: Option<&Path>) -> Result<Self> {
        let choice = match name.unwrap_or("off") {
            "off" => Self::Off,
            "default" => Self::Default,
            "tuned" => {
                let costs = costs.map(Path::to_path_buf);
                let arrangements = arrangements.map(Path::to_path_buf);
                if costs.is_none() && !arrangements.as_ref().is_some_and(|path| path.exists()) {
                    let expected =
                        "--costs FILE beside it, which v3 bench components writes, or --arrangements FILE that is there";
                    return Err(Error::option("--overlap", expected, "tuned"));
                }
                return Ok(Self::Tuned { costs, arrangements });
            }
            other => return Err(Error::option("--overlap", "off, default or tuned", other)),
        };
        match [("--costs", costs), ("--arrangements", arrangements)].into_iter().find_map(|(o, path)| Some((o, path?))) {
            Some((option, path)) => Err(Error::option(option, "--overlap tuned beside it", path.display())),
            None => Ok(choice),
        }
    }

    /// The name of the option's value.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Default => "default",
            Self::Tuned { .. } => "tuned",
        }
    }

    /// The order for this model and schedule: for `tuned` read from the file of arrangements, or searched from the costs and then
    /// written there.
    ///
    /// # Errors
    /// Files that cannot be read or written, or are for another model; costs that are missing.
    pub fn resolve(&self, config: &Config, grid: &Grid, schedule: &Schedule) -> Result<Overlap> {
        let Self::Tuned { costs, arrangements } = self else {
            return Ok(if *self == Self::Off { Overlap::Off } else { Overlap::Default });
        };
        if let Some(path) = arrangements.as_ref().filter(|path| path.exists()) {
            let found: Arrangements = read(path)?.parse().map_err(|e: dualpipe::Error| file(path, &e))?;
            let overlap = Overlap::Tuned(found);
            // A simulation without costs of time looks every step up.
            let free = free_costs();
            dualpipe::simulate_components(schedule, |half, stage| components::list(config, grid, half, stage), &free, &overlap)
                .map_err(|e| file(path, &e))?;
            return Ok(overlap);
        }
        let path =
            costs.as_ref().ok_or_else(|| Error::option("--costs", "a file, because there are no arrangements yet", "none"))?;
        let costs = read_costs(path)?;
        let lists = |half, stage| components::list(config, grid, half, stage);
        let found = dualpipe::tune(schedule, lists, &costs, Tuning::default()).map_err(|e| file(path, &e))?;
        if let Some(path) = arrangements {
            write_file_atomic(path, found.to_string().as_bytes())?;
        }
        Ok(Overlap::Tuned(found))
    }
}

/// Nothing takes time.
fn free_costs() -> ComponentCosts {
    let mut costs = ComponentCosts::default();
    for half in [Half::Forward, Half::Backward] {
        for kind in dualpipe::ComponentKind::ALL {
            costs.set(half, kind, None, dualpipe::ComponentCost::default());
        }
    }
    costs
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Error::io("read", path))
}

/// Reads a file of costs.
///
/// # Errors
/// A file that cannot be read or holds something else.
pub fn read_costs(path: &Path) -> Result<ComponentCosts> {
    read(path)?.parse().map_err(|e: dualpipe::Error| file(path, &e))
}

fn file(path: &Path, error: &dualpipe::Error) -> Error {
    match error {
        dualpipe::Error::Shape { what, expected, got } => {
            Error::File { path: path.into(), expected: format!("{what}: {expected}"), found: got.clone() }
        }
        other => {
            Error::File { path: path.into(), expected: "what fits this model and schedule".into(), found: other.to_string() }
        }
    }
}

/// What some steps of a schedule took, in seconds summed over ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Steps.
    pub steps: f64,
    /// Computing components.
    pub computing: f64,
    /// Waits for exchanges of the layers that were already sent.
    pub exposed: f64,
    /// Waits for exchanges of the layers that nobody had sent yet: another rank was late.
    pub bubble: f64,
    /// What the exchanges take alone, by the costs, if there are any.
    pub communication: f64,
}

/// What a step of training came to: pairs, and chunks that ran alone.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OverlapFigures {
    /// Pairs.
    pub pairs: Figures,
    /// All other steps.
    pub alone: Figures,
}

impl Figures {
    /// The share of the exchanges that computation hides; `None` where nothing says what they take alone.
    pub fn hidden(&self) -> Option<f64> {
        (self.communication > 0.0).then(|| 1.0 - self.exposed / self.communication)
    }
}

impl OverlapFigures {
    /// The figures of pipeline rank `rank` from the records of its components. `costs` say what exchanges take alone.
    pub fn new(
        schedule: &Schedule,
        rank: usize,
        lists: impl Fn(Half, usize) -> Vec<dualpipe::Component>,
        records: &[Record],
        costs: Option<&ComponentCosts>,
    ) -> Self {
        let mut paired = HashSet::new();
        let mut figures = Self::default();
        for step in schedule.steps(rank) {
            if let Step::Pair(..) = step {
                figures.pairs.steps += 1.0;
                for action in step.actions() {
                    let half = if action.kind == ActionKind::F { Half::Forward } else { Half::Backward };
                    let stage = schedule.stage_of(rank, action.direction).unwrap_or_default();
                    paired.insert((half, stage, schedule.micro_batch(action.direction, action.chunk)));
                }
            } else {
                figures.alone.steps += 1.0;
            }
        }
        for record in records {
            let pair = paired.contains(&(record.half, record.stage, record.micro_batch));
            let sum = if pair { &mut figures.pairs } else { &mut figures.alone };
            match record.part {
                Part::Compute => sum.computing += record.seconds,
                Part::Start => {}
                Part::Finish => {
                    sum.exposed += record.waits.exposed;
                    sum.bubble += record.waits.bubble;
                    let list = lists(record.half, record.stage);
                    let cost = list.get(record.component).and_then(|c| costs?.get(record.half, c));
                    sum.communication += cost.map_or(0.0, |cost| cost.alone());
                }
            }
        }
        figures
    }

    /// As numbers, to add up over ranks.
    pub fn to_array(self) -> [f64; 10] {
        let [a, b] = [self.pairs, self.alone].map(|f| [f.steps, f.computing, f.exposed, f.bubble, f.communication]);
        [a[0], a[1], a[2], a[3], a[4], b[0], b[1], b[2], b[3], b[4]]
    }

    /// The reverse of [`OverlapFigures::to_array`].
    pub fn from_array(x: [f64; 10]) -> Self {
        let part = |x: &[f64]| Figures { steps: x[0], computing: x[1], exposed: x[2], bubble: x[3], communication: x[4] };
        Self { pairs: part(&x[..5]), alone: part(&x[5..]) }
    }
}
