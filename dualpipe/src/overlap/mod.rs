//! Communication behind computation: the components of a pair of chunks, and the orders in which they can run.

mod arrangement;
mod component;
mod costs;
mod lanes;
mod program;
mod set;
mod step;
mod text;
mod tune;

pub use arrangement::{Arrangement, Op};
pub use component::{Component, ComponentKind, Half, Pairing, StageComponents};
pub use costs::{ComponentCost, ComponentCosts, PairCosts, Ports};
pub use lanes::{PairTimeline, pair_bound, simulate_pair, simulate_steady};
pub use set::{Arrangements, Overlap};
pub use step::{LaneTimes, RankLanes, StepTimeline, simulate_components};
pub use tune::{Tuned, Tuning, tune, tune_pair};
