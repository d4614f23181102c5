//! A schedule found by search, from costs, transfer times and a memory cap.
//!
//! A [`Problem`] is a pipeline: what each half of a rank's share of the model costs and keeps, how long transfers take, how much memory a rank
//! has. [`search`] chooses a placement and an order for every rank; [`lower_bound`] says what no schedule can beat.
//!
//! ```
//! use dualpipe::search::{Options, Problem, search};
//! use dualpipe::{Costs, Kind, Schedule, simulate};
//!
//! let mut problem = Problem::uniform(4, 8, &"F=1,B=2.2,W=1,P2P=0.5".parse::<Costs>()?)?;
//! problem.memory = 5.0; // activations of five micro-batches
//! let found = search(&problem, &Options { effort: 5000, ..Options::default() })?;
//! let known = Schedule::new(Kind::ZbH1, 4, 8)?;
//! let known = simulate(&known, &problem.costs(known.placement()))?.makespan();
//! assert!(found.lower_bound <= found.makespan && found.makespan < 0.9 * known);
//! # Ok::<(), dualpipe::Error>(())
//! ```

mod bound;
mod build;
#[cfg(test)]
mod exact;
mod improve;
mod problem;
mod rules;
mod setup;
mod sim;
mod solve;
#[cfg(test)]
mod tests;

pub use bound::lower_bound;
pub use problem::{MAX_SEARCHED, PLACEMENTS, PlacedCosts, Problem, Slice};
pub use solve::{Found, Options, search};
