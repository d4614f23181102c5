//! Pipeline schedules as data, with a validator, a simulator, pictures and an executor

mod action;
mod cost;
mod error;
mod execute;
pub mod formula;
mod generate;
mod kind;
pub mod reference;
mod schedule;
mod simulate;
mod svg;
mod text;
mod timeline;
mod trace;
mod validate;

pub use action::{Action, ActionKind, Step};
pub use cost::{CostModel, Costs, StageCosts};
pub use error::{Error, Result};
pub use execute::{ExecuteError, Outbox, Stage, Work, execute, gather};
pub use kind::{Kind, Placement};
pub use schedule::{Freed, MAX_CHUNKS, Message, Schedule};
pub use simulate::simulate;
pub use svg::{Panel, svg, svg_measured_above_simulated};
pub use text::MIN_WIDTH;
pub use timeline::{MeasuredCosts, Span, TimeUnit, Timeline};
pub use trace::chrome_trace;
pub use validate::validate;
