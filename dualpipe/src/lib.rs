//! Pipeline schedules as data, with a validator, a simulator, pictures and an executor.
//!
//! A pipeline cuts a model into stages, one or more a rank, and sends micro-batches through them, forward and back. Which rank
//! does what when decides how long ranks idle (the *bubble*) and how many activations they keep. Here such a plan is a
//! value, a [`Schedule`]: for each rank a list of steps `F` (forward), `B` (full backward), `I` (backward for the inputs), `W` (backward for
//! the weights, whenever convenient), or a pair `F`+`B` whose communication hides behind each other's computation. You can
//! make one, read one, check it, time it on paper, draw it, and run it on a model.
//!
//! ```
//! use dualpipe::{Costs, Kind, Schedule, simulate};
//!
//! let schedule = Schedule::new(Kind::DualPipe, 4, 8)?;
//! let costs: Costs = "F=1,B=2,W=1,FB=2.5".parse()?;
//! let timeline = simulate(&schedule, &costs)?;
//! print!("{}", timeline.to_text(80)); // a chart for the terminal
//! let picture: String = timeline.to_svg();
//! assert_eq!(timeline.bubble(), 1.5); // (R/2 - 1)(FB + B - 3W)
//! assert_eq!(Schedule::from_json(&schedule.to_json())?, schedule);
//! # assert!(picture.starts_with("<svg"));
//! # Ok::<(), dualpipe::Error>(())
//! ```
//!
//! # The schedules
//!
//! `R` ranks, `M` micro-batches, `I = B - W`; the bubble is the makespan minus the work of the least busy rank; activations are the
//! most chunks that a rank keeps, freed at `B` or `I`, and, where different, freed at `W`.
//!
//! | [`Kind`]      | stages        | bubble, full          | activations           |
//! |---------------|---------------|-----------------------|-----------------------|
//! | `gpipe`       | R             | `(R-1)(F+B)`          | M                     |
//! | `1f1b`        | R             | `(R-1)(F+B)`          | R                     |
//! | `interleaved` | NR in a loop  | `(R-1)(F+B)`          | (N+1)R-1 N-ths        |
//! | `zb-h1`       | R             | `(R-1)(F+B-2W)`       | R; every rank R at W  |
//! | `zb-v`        | 2R in a V     | `(R-1)max(I,2(I-W))`  | 2R halves             |
//! | `dualpipe`    | R, each twice | `(R/2-1)(FB+F-2W)`    | R+1                   |
//! | `dualpipev`   | 2R in a V     | `(R-1)(FB+F-2W)`      | 2R+1 halves           |
//!
//! Any `M` runs. Where the authors' plan wants more ([`Kind::full_micro_batches`]), an even number (`dualpipe`) or a multiple of `R`
//! (`interleaved`), the plan is that for so many, without the rest: it takes no longer, and never longer than 1F1B on the same model (tested
//! up to 8 ranks). `dualpipe` refuses an odd `R`, whose middle rank would hold its own mirror image.
//!
//! With `F = I` the last two are the `(PP/2-1)(FB+B-3W)` of the DualPipe paper. [`formula`] says where each holds (it is tested
//! there, exactly) and bounds the bubble for all other costs. DualPipe and DualPipeV are action for action what the authors'
//! code does; golden lists recorded from it are among the tests. Where a rank finds its stages is its [`Placement`].
//!
//! # Checking
//!
//! Every way of making a [`Schedule`] runs [`validate`], so a value of that type is one that runs: each forward and backward
//! exactly once, in an order without deadlock. [`Schedule::from_actions`] takes lists of your own; [`Schedule::messages`] lists the
//! transfers a plan implies.
//!
//! # Searching
//!
//! [`search`] finds a schedule for costs, transfer times and a memory cap, and says what none can beat. Schedules go to and from PyTorch by
//! [`Schedule::to_torch_csv`] and [`Schedule::from_torch_csv`].
//!
//! # Running
//!
//! A model implements [`Stage`]: forward, backward for the inputs, backward for the weights, of a stage and a micro-batch.
//! [`execute`] runs one rank's list over a [`v3_ranks::Comm`], sends results as soon as they exist, waits for inputs just before they
//! are needed, and measures. `W` is called when the plan says, so the model must keep what it needs until then. The
//! schedule never changes a micro-batch's loss by a bit; sums of gradients over micro-batches differ only by the order of
//! additions (within `2 M 2^-24` of the sum of magnitudes), and within one schedule they are the same in every run.
//!
//! # Communication behind computation
//!
//! With expert parallelism a chunk communicates as long as it computes, or nearly. A model that also implements [`StageComponents`] offers its
//! chunks in [`Component`]s: attention, dispatch, MLP, combine, and their backwards, for inputs and for weights apart. An [`Arrangement`] is one order
//! of the components of a forward and a backward on the computing lane; a communication is under way, on a communicating lane, from its start
//! to its finish. [`execute_with`] runs a schedule so, by [`Overlap`]:
//!
//! - `Off`: one component after another, each communication waited for at once;
//! - `Default`: Figure 4 of the DeepSeek-V3 report, layer by layer
//!   `MLP(B) MLP(W) MLP(F) ATTN(B) ATTN(W) ATTN(F)` against `DISPATCH(F) DISPATCH(B) COMBINE(F) COMBINE(B)`;
//! - `Tuned`: what [`tune`] finds for measured [`ComponentCosts`]; [`Arrangements`] are kept as text.
//!
//! An activation or gradient leaves the moment it exists, before the weights, and is waited for just before its first use. Weights of chunks
//! that run alone fill waits: the chunk's own, and those that the schedule has later on this rank. A tuned pair may put two components
//! for weights off into the next pair, where they cover the time until its first communication is there; what they need is kept so
//! much longer than [`Schedule::peak_activations`] says. Every legal order leaves the same bits: weights of a stage are always added in the
//! order of the schedule.
//!
//! ```
//! use dualpipe::{Component, ComponentCost, ComponentCosts, ComponentKind::*, Half, Pairing, Ports, Tuning, tune_pair};
//!
//! let part = |kind, after: &[usize]| Component::new(kind, 0, after);
//! let forward = vec![part(Attention, &[]), part(Dispatch, &[0]), part(Mlp, &[1]), part(Combine, &[2])];
//! let backward = vec![
//!     part(CombineBackward, &[]),
//!     part(MlpInput, &[0]),
//!     part(MlpWeight, &[1]),
//!     part(DispatchBackward, &[1]),
//!     part(AttentionInput, &[3]),
//!     part(AttentionWeight, &[4]),
//! ];
//! let costs: ComponentCosts = "
//!     compute F attention 2e-3
//!     compute F mlp 2e-3
//!     compute B mlp-input 2e-3
//!     compute B mlp-weight 2e-3
//!     compute B attention-input 2e-3
//!     compute B attention-weight 2e-3
//!     communicate F dispatch slow=2e-3
//!     communicate F combine slow=2e-3
//!     communicate B combine-backward slow=2e-3
//!     communicate B dispatch-backward slow=2e-3
//! ".parse()?;
//! let pairing = Pairing::new(forward, backward)?;
//! let tuned = tune_pair(&pairing, &costs.of(&pairing)?, Tuning::default())?;
//! print!("{}", tuned.arrangement.describe(&pairing));
//! assert!(tuned.steady.hidden() > 0.99);
//! # Ok::<(), dualpipe::Error>(())
//! ```
//!
//! On paper, [`simulate_pair`] and [`simulate_steady`] time one pair, [`pair_bound`] says what no order beats, and [`simulate_components`] times a whole
//! step on all ranks, with the ports of [`v3_ranks::LinkModel`]. Under the virtual clock the executor takes exactly that time, to
//! the bit (tested). *Exposed* is waiting for what was already sent; waiting for what was not is *bubble*.
//!
//! # Pictures
//!
//! A [`Timeline`] is simulated ([`simulate`]) or measured ([`gather`], [`Timeline::measured`]). [`Timeline::to_text`] charts it in 80 columns,
//! [`svg`] draws one or several, [`svg_measured_above_simulated`] compares a step as it ran with the same plan simulated with the
//! mean costs that were measured, [`chrome_trace`] writes what Perfetto and `chrome://tracing` open.
//!
//! The simulator takes `B` and a pair as one piece whose results leave at its end, as the formulas do. [`execute`] sends the
//! gradient of a `B` before it begins with the weights, so a measured step can beat its simulation.
//!
//! # Figures
//!
//! DualPipe for 16 ranks and 128 micro-batches (2,500 steps) is made and checked in 0.3 ms and simulated in 0.3 ms on one core; the work is
//! proportional to the number of steps (`cargo bench -p dualpipe`).
//!
//! # Features
//!
//! None: there is nothing to leave out.

mod action;
mod cost;
mod error;
mod execute;
pub mod formula;
mod generate;
mod kind;
mod overlap;
pub mod reference;
mod schedule;
pub mod search;
mod simulate;
mod svg;
mod text;
mod timeline;
mod torch;
mod trace;
mod validate;

pub use action::{Action, ActionKind, Step};
pub use cost::{CostModel, Costs, StageCosts};
pub use error::{Error, Result};
pub use execute::{ExecuteError, ExecuteOptions, Outbox, Stage, Work, execute, execute_with, gather};
pub use kind::{Kind, Placement};
pub use overlap::{
    Arrangement, Arrangements, Component, ComponentCost, ComponentCosts, ComponentKind, Half, LaneTimes, Op, Overlap, PairCosts,
    PairTimeline, Pairing, Ports, RankLanes, StageComponents, StepTimeline, Tuned, Tuning, pair_bound, simulate_components,
    simulate_pair, simulate_steady, tune, tune_pair,
};
pub use schedule::{Freed, MAX_CHUNKS, Message, Schedule};
pub use simulate::simulate;
pub use svg::{Panel, svg, svg_measured_above_simulated};
pub use text::MIN_WIDTH;
pub use timeline::{MeasuredCosts, Span, TimeUnit, Timeline};
pub use trace::chrome_trace;
/// The process groups that [`execute`] runs over.
pub use v3_ranks as ranks;
pub use validate::validate;
