//! What the actions cost.

use std::fmt;
use std::str::FromStr;

use crate::action::{ActionKind, Step};
use crate::error::{Error, Result};
use crate::schedule::Schedule;

/// Gives each step its duration, and each transfer its own, in any unit of time.
pub trait CostModel {
    /// How long `rank` works on `step` once all it needs is there.
    fn compute(&self, schedule: &Schedule, rank: usize, step: &Step) -> f64;

    /// How long a result of rank `from` is under way to rank `to` (never asked for `from == to`, which is free).
    fn transfer(&self, from: usize, to: usize) -> f64 {
        let _ = (from, to);
        0.0
    }
}

/// The same cost for every rank and chunk, in any unit of time.
///
/// As text: `F=1,B=2,W=1,FB=3,P2P=0`, each part optional. Left out, `F`, `B` and `W` are 1, 2 and 1, `FB` is `F + B`
/// (nothing gained by overlapping), `P2P` is 0.
///
/// ```
/// use dualpipe::Costs;
/// let costs: Costs = "F=2,B=5,W=2".parse()?;
/// assert_eq!((costs.i(), costs.fb), (3.0, 7.0));
/// # Ok::<(), dualpipe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// A forward.
    pub f: f64,
    /// A full backward; the backward for inputs is `b - w`.
    pub b: f64,
    /// A backward for weights; at most `b`.
    pub w: f64,
    /// An overlapped pair of a forward and a full backward.
    pub fb: f64,
    /// A transfer between ranks.
    pub p2p: f64,
}

impl Default for Costs {
    /// `F=1,B=2,W=1,FB=3,P2P=0`.
    fn default() -> Costs {
        Costs { f: 1.0, b: 2.0, w: 1.0, fb: 3.0, p2p: 0.0 }
    }
}

impl Costs {
    /// A backward for inputs: `b - w`.
    pub fn i(&self) -> f64 {
        self.b - self.w
    }

    /// A step of these kinds.
    pub fn step(&self, step: &Step) -> f64 {
        match step {
            Step::Pair(..) => self.fb,
            Step::One(action) => match action.kind {
                ActionKind::F => self.f,
                ActionKind::B => self.b,
                ActionKind::I => self.i(),
                ActionKind::W => self.w,
            },
        }
    }

    /// Checks that all costs are finite and not negative, and `w <= b`.
    pub fn check(&self) -> Result<()> {
        let parts = [("F", self.f), ("B", self.b), ("W", self.w), ("FB", self.fb), ("P2P", self.p2p)];
        for (name, value) in parts {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Shape {
                    what: format!("costs: {name}"),
                    expected: "a finite number, 0 or more".into(),
                    got: value.to_string(),
                });
            }
        }
        if self.w > self.b {
            return Err(Error::Shape {
                what: "costs: W".into(),
                expected: format!("at most B = {}, of which it is a part", self.b),
                got: self.w.to_string(),
            });
        }
        Ok(())
    }
}

impl CostModel for Costs {
    fn compute(&self, _: &Schedule, _: usize, step: &Step) -> f64 {
        self.step(step)
    }

    fn transfer(&self, _: usize, _: usize) -> f64 {
        self.p2p
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Costs { f: forward, b, w, fb, p2p } = self;
        write!(f, "F={forward},B={b},W={w},FB={fb},P2P={p2p}")
    }
}

impl FromStr for Costs {
    type Err = Error;

    fn from_str(text: &str) -> Result<Costs> {
        let fault =
            |expected: &str, got: &str| Error::Shape { what: "costs".into(), expected: expected.into(), got: format!("'{got}'") };
        let mut costs = Costs::default();
        let mut given = [false; 5];
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let form = "NAME=NUMBER with NAME one of F, B, W, FB, P2P";
            let (name, value) = part.split_once('=').ok_or_else(|| fault(form, part))?;
            let (index, field) = match name.trim() {
                "F" => (0, &mut costs.f),
                "B" => (1, &mut costs.b),
                "W" => (2, &mut costs.w),
                "FB" => (3, &mut costs.fb),
                "P2P" => (4, &mut costs.p2p),
                _ => return Err(fault(form, part)),
            };
            if std::mem::replace(&mut given[index], true) {
                return Err(fault("each name at most once", part));
            }
            *field = value.trim().parse().map_err(|_| fault(form, part))?;
        }
        if !given[3] {
            costs.fb = costs.f + costs.b;
        }
        costs.check()?;
        Ok(costs)
    }
}

/// A cost for each stage (index 0 the first), for models whose stages differ. A pair takes the mean of the `fb` of its
/// two stages; a transfer takes the `p2p` of the first stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCosts(pub Vec<Costs>);

impl CostModel for StageCosts {
    fn compute(&self, schedule: &Schedule, rank: usize, step: &Step) -> f64 {
        let of = |direction: u8| {
            let stage = schedule.stage_of(rank, direction);
            stage.and_then(|stage| self.0.get(stage)).copied().unwrap_or(MISSING)
        };
        match step {
            Step::One(action) => of(action.direction).step(step),
            Step::Pair(forward, backward) => 0.5 * (of(forward.direction).fb + of(backward.direction).fb),
        }
    }

    fn transfer(&self, _: usize, _: usize) -> f64 {
        self.0.first().map_or(0.0, |costs| costs.p2p)
    }
}

/// Stands for the cost of a stage that has none: the simulator refuses it.
const MISSING: Costs = Costs { f: f64::NAN, b: f64::NAN, w: f64::NAN, fb: f64::NAN, p2p: f64::NAN };
