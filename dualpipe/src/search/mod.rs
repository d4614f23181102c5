//! A schedule found by search, from costs, transfer times and a memory cap.
//!
//! A [`Problem`] is a pipeline: what each half of a rank's share of the model costs and keeps, how long transfers take, how much memory a rank
//! has. [`search`] chooses a placement and an order for every rank; [`lower_bound`] says what no schedule can beat.
//!
//! # What is searched
//!
//! The semantics are those of [`simulate`](crate::simulate). Actions are `F`, `I`, `W`, and a pair `F`+`B` where it is cheaper than its parts; a full
//! backward is `I` and `W` at once, which is never later. A rank holds its parameters and, from the start of each `F`, the
//! activations of that chunk: one part to the end of its `I`, the other to the end of its `W`. Since all micro-batches are
//! alike, each stage takes them in order: any other order can be renamed into that one.
//!
//! # How
//!
//! First lists are made by rules, an event at a time: a rank that is free takes the most urgent action that is ready and fits, or waits a
//! little for a more urgent one. How urgent an action is follows from when it would come with nothing else to do, and from ten
//! numbers that chance draws. The best rules are varied. Then the best lists are annealed: a letter on the longest path is
//! moved, exchanged, paired or taken out of a pair, and at times the lists are made anew with some micro-batches earlier or later on
//! all ranks. Everything is drawn from one seed, and counted, not timed: same seed, same answer.
//!
//! Measured: equal to an exact solver on 200 of 200 random problems with at most 3 ranks and 4 micro-batches (in the tests of this module); on the published
//! grid (`cargo run --release -p dualpipe --example search_grid`), starting from nothing, never behind the best schedule with a name, and 3 % or more ahead on
//! 22 of 36 points; some seconds on one core for 8 ranks and 32 micro-batches.
//!
//! # Example
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
