//! Runs a schedule on a model.

pub(crate) mod chunks;
pub(crate) mod mail;

use v3_ranks::Comm;

use chunks::Chunks;
use mail::{Mail, Post};

use crate::action::{ActionKind, Step};
use crate::error::{Error, Result};
use crate::overlap::{Overlap, StageComponents};
use crate::schedule::Schedule;
use crate::timeline::{Span, Timeline};

/// What a model does for the executor: the stages that one rank holds.
///
/// Each call names the stage (0..S) and the micro-batch (0..M) it is about. The implementation keeps what the backward needs
/// from `forward` to `backward_input`, and what the weight gradients need from there to `backward_weight`, which may come much
/// later and in another order than the forwards. It adds the weight gradients of all micro-batches up; the loss of a
/// micro-batch stays with it as well.
///
/// Activations and gradients are vectors of the implementation's own layout; they are handed over, not copied.
pub trait Stage {
    /// Why a call can fail.
    type Error;

    /// Forward of one micro-batch. `input` is what the stage before returned, `None` for stage 0, which takes its own data.
    /// Returns what the next stage gets; the last stage computes the loss and returns `None`.
    fn forward(&mut self, stage: usize, micro_batch: usize, input: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, Self::Error>;

    /// Backward for the inputs. `gradient` is that of what `forward` returned, `None` for the last stage, which starts from its
    /// loss. Returns the gradient of `input`; stage 0 returns `None`.
    fn backward_input(
        &mut self,
        stage: usize,
        micro_batch: usize,
        gradient: Option<Vec<f32>>,
    ) -> Result<Option<Vec<f32>>, Self::Error>;

    /// Backward for the weights, after `backward_input` of the same stage and micro-batch.
    fn backward_weight(&mut self, stage: usize, micro_batch: usize) -> Result<(), Self::Error>;

    /// An overlapped pair: a forward and a full backward of different micro-batches.
    ///
    /// As given, one after the other. An implementation that interleaves them gives each result to `outbox` as soon as it has
    /// it, each exactly once, and must leave the same bits as one after the other.
    fn forward_backward(&mut self, forward: Work, backward: Work, outbox: &mut Outbox<'_>) -> Result<(), Self::Error> {
        let activation = self.forward(forward.stage, forward.micro_batch, forward.input)?;
        outbox.activation(activation);
        let gradient = self.backward_input(backward.stage, backward.micro_batch, backward.input)?;
        outbox.gradient(gradient);
        self.backward_weight(backward.stage, backward.micro_batch)
    }

    /// The same model run component by component, which [`execute_with`] then does instead of calling the methods above. As
    /// given, not offered.
    fn by_components(&mut self) -> Option<&mut dyn StageComponents<Error = Self::Error>> {
        None
    }
}

/// One half of an overlapped pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The stage.
    pub stage: usize,
    /// The micro-batch.
    pub micro_batch: usize,
    /// For a forward the activation of the stage before, for a backward the gradient of the stage after; `None` at the ends.
    pub input: Option<Vec<f32>>,
}

/// Takes the results of an overlapped pair and sends them on at once.
pub struct Outbox<'a> {
    deliver: &'a mut dyn FnMut(bool, Option<Vec<f32>>),
}

impl<'a> Outbox<'a> {
    /// An outbox that calls `deliver` with whether the result is a gradient, and the result.
    pub fn new(deliver: &'a mut dyn FnMut(bool, Option<Vec<f32>>)) -> Outbox<'a> {
        Outbox { deliver }
    }

    /// The result of the forward; `None` from the last stage.
    pub fn activation(&mut self, activation: Option<Vec<f32>>) {
        (self.deliver)(false, activation);
    }

    /// The gradient of the backward's input; `None` from stage 0.
    pub fn gradient(&mut self, gradient: Option<Vec<f32>>) {
        (self.deliver)(true, gradient);
    }
}

/// Why a rank stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError<E> {
    /// The model failed.
    #[error("{step}: {error}")]
    Stage {
        /// The step.
        step: Step,
        /// What the model says.
        error: E,
    },
    /// The model broke the contract of [`Stage`].
    #[error("{step}, stage {stage}: expected {expected}, found {got}")]
    Contract {
        /// The step.
        step: Step,
        /// The stage.
        stage: usize,
        /// What a [`Stage`] must do.
        expected: &'static str,
        /// What this one did.
        got: &'static str,
    },
    /// The components that the model offers cannot be arranged.
    #[error("{step}: {source}")]
    Arrangement {
        /// The step.
        step: Step,
        /// What is wrong with them, or which arrangement is missing.
        source: Error,
    },
    /// A message could not be sent or received; when another rank failed, this says why.
    #[error("{step}: {source}")]
    Comm {
        /// The step.
        step: Step,
        /// What the transport says.
        source: v3_ranks::Error,
    },
    /// The group does not have the schedule's number of ranks.
    #[error("pipeline group: expected {expected} ranks, found {got}")]
    Ranks {
        /// The schedule's.
        expected: usize,
        /// The group's.
        got: usize,
    },
}

/// How [`execute_with`] runs a schedule.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ExecuteOptions {
    /// The order of components, where the model offers them.
    pub overlap: Overlap,
}

impl ExecuteOptions {
    /// Options with this order of components.
    pub fn new(overlap: Overlap) -> ExecuteOptions {
        ExecuteOptions { overlap }
    }
}

/// [`execute_with`] the default options: where the model offers components, they run one after another.
///
/// # Errors
/// See [`ExecuteError`].
pub fn execute<S: Stage>(
    schedule: &Schedule,
    comm: &Comm,
    model: &mut S,
    step_id: u64,
) -> Result<Vec<Span>, ExecuteError<S::Error>> {
    execute_with(schedule, comm, model, step_id, &ExecuteOptions::default())
}

/// Runs this rank's part of `schedule` on `model`. Every rank of `comm`, which has as many as the schedule, calls it with the
/// same schedule, `step_id` and options; rank `r` of the group plays rank `r`.
///
/// - A result is sent as soon as it exists (`B` sends its gradient before it begins with the weights), and received when the
///   step that needs it is next. A result for a stage on the same rank is handed over in place.
/// - `B` is `backward_input`, then `backward_weight`; `I` and `W` are one of them; a pair is `forward_backward`.
/// - Where the model offers components ([`Stage::by_components`]), a step runs those instead, in the order of
///   [`ExecuteOptions::overlap`]: an input is received just before the first component of its half, a result leaves when the
///   last component that is not for weights is done, and weights that `I` put off may fill the waits of the steps before their
///   `W`. An arrangement may put weights of its own backward off as well: they fill places of the next step, and are done when
///   that ends.
/// - Messages carry tags with the highest bit set, distinct within one `step_id`; give the pipeline a group of its own, or keep
///   your own tags below.
/// - The first error ends this rank's part; whoever runs the ranks ends the others ([`v3_ranks::run_threads`] does).
///
/// Returns one [`Span`] a step, in seconds of the clock of the ranks ([`Comm::now`]): `start` to `end` is the work, `wait`
/// the time spent receiving before. [`Timeline::measured`] puts those of all ranks together, [`gather`] exchanges them first.
///
/// # Errors
/// See [`ExecuteError`].
pub fn execute_with<S: Stage>(
    schedule: &Schedule,
    comm: &Comm,
    model: &mut S,
    step_id: u64,
    options: &ExecuteOptions,
) -> Result<Vec<Span>, ExecuteError<S::Error>> {
    if comm.size() != schedule.ranks() {
        return Err(ExecuteError::Ranks { expected: schedule.ranks(), got: comm.size() });
    }
    let rank = comm.rank();
    let mut mail = Mail::new(schedule, comm, step_id);
    let mut chunks = Chunks::new(schedule, rank, &options.overlap);
    let mut spans = Vec::with_capacity(schedule.steps(rank).len());
    for (index, step) in schedule.steps(rank).iter().enumerate() {
        let before = comm.now();
        mail.first_received = None;
        if !chunks.run(&mut mail, model, *step, index as u64)? {
            run_whole(&mut mail, model, *step)?;
        }
        if index + 1 == schedule.steps(rank).len() {
            chunks.end(model, *step)?;
        }
        let start = mail.first_received.unwrap_or(before);
        spans.push(Span { rank, step: *step, start, end: comm.now(), wait: start - before });
    }
    Ok(spans)
}

/// Runs a step by the methods for whole chunks.
fn run_whole<S: Stage>(mail: &mut Mail<'_>, model: &mut S, step: Step) -> Result<(), ExecuteError<S::Error>> {
    let mut work = step.actions().map(|action| mail.receive(step, action));
    let (first, second) = (work.next().transpose()?, work.next().transpose()?);
    drop(work);
    mail.first_received = Some(mail.now());
    let failed = |error| ExecuteError::Stage { step, error };
    match (step, first, second) {
        (Step::One(action), Some(Work { stage, micro_batch, input }), _) => match action.kind {
            ActionKind::F => {
                let activation = model.forward(stage, micro_batch, input).map_err(failed)?;
                mail.send(step, stage, micro_batch, false, activation)
            }
            ActionKind::B | ActionKind::I => {
                let gradient = model.backward_input(stage, micro_batch, input).map_err(failed)?;
                mail.send(step, stage, micro_batch, true, gradient)?;
                match action.kind {
                    ActionKind::B => model.backward_weight(stage, micro_batch).map_err(failed),
                    _ => Ok(()),
                }
            }
            ActionKind::W => model.backward_weight(stage, micro_batch).map_err(failed),
        },
        (Step::Pair(..), Some(forward), Some(backward)) => run_pair(mail, model, step, forward, backward),
        // A step has an action, a pair has two.
        _ => Ok(()),
    }
}

fn run_pair<S: Stage>(
    mail: &mut Mail<'_>,
    model: &mut S,
    step: Step,
    forward: Work,
    backward: Work,
) -> Result<(), ExecuteError<S::Error>> {
    let places = [(forward.stage, forward.micro_batch), (backward.stage, backward.micro_batch)];
    let mut delivered = [0usize; 2];
    let mut failure = None;
    let mut deliver = |gradient: bool, result: Option<Vec<f32>>| {
        let (stage, micro_batch) = places[usize::from(gradient)];
        delivered[usize::from(gradient)] += 1;
        if failure.is_none() {
            failure = mail.send(step, stage, micro_batch, gradient, result).err();
        }
    };
    let done = model.forward_backward(forward, backward, &mut Outbox::new(&mut deliver));
    if let Some(failure) = failure {
        return Err(failure);
    }
    done.map_err(|error| ExecuteError::Stage { step, error })?;
    if delivered != [1, 1] {
        return Err(ExecuteError::Contract {
            step,
            stage: places[0].0,
            expected: "a pair to deliver its activation once and its gradient once",
            got: "another number of results",
        });
    }
    Ok(())
}

/// Exchanges the spans of all ranks of the group that ran `schedule`; every rank gets the whole timeline. A collective
/// operation of `comm`. Meant for ranks of one process, whose clock is one.
///
/// # Errors
/// As [`Timeline::measured`], and those of the transport.
pub fn gather(schedule: &Schedule, comm: &Comm, spans: &[Span]) -> Result<Timeline> {
    let numbers: Vec<f64> = spans.iter().flat_map(|span| [span.start, span.end, span.wait]).collect();
    let all = comm.all_gather_v(&numbers).map_err(Error::Comm)?;
    let lists = all.iter().enumerate().map(|(rank, numbers)| {
        let times = numbers.as_chunks::<3>().0.iter();
        let span = |(step, &[start, end, wait]): (&Step, &[f64; 3])| Span { rank, step: *step, start, end, wait };
        schedule.steps(rank).iter().zip(times).map(span).collect()
    });
    Timeline::measured(schedule, lists.collect())
}
