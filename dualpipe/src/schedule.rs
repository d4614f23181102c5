//! A schedule: for each rank the list of its steps; checked when it is made, read and written as JSON.

use serde::{Deserialize, Serialize};

use crate::action::{Action, ActionKind, Step};
use crate::error::{Error, Result};
use crate::generate::generate;
use crate::kind::{Kind, Placement};
use crate::validate::validate;

/// The largest number of micro-batches times stages, copies counted, that a schedule may have: 1,048,576.
pub const MAX_CHUNKS: usize = 1 << 20;

/// When the activations of a chunk are counted as freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Freed {
    /// After the backward for inputs (`B` or `I`), as the DualPipe paper counts.
    AtInput,
    /// After the backward for weights (`B` or `W`), as memory has it when the inputs of the linear layers are kept.
    AtWeight,
}

impl Freed {
    /// Whether this action frees the activations of its chunk.
    pub(crate) fn by(self, kind: ActionKind) -> bool {
        match self {
            Freed::AtInput => matches!(kind, ActionKind::B | ActionKind::I),
            Freed::AtWeight => matches!(kind, ActionKind::B | ActionKind::W),
        }
    }
}

/// For each rank the list of its steps. Always valid: every way of making one checks it with [`validate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    kind: Kind,
    ranks: usize,
    micro_batches: usize,
    ranks_actions: Vec<Vec<Step>>,
}

/// A transfer from one rank to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The rank that sends.
    pub from: usize,
    /// The index of the step whose result is sent.
    pub from_step: usize,
    /// The rank that receives.
    pub to: usize,
    /// The index of the step that needs it.
    pub to_step: usize,
    /// The stage it is made for.
    pub stage: usize,
    /// The micro-batch.
    pub micro_batch: usize,
    /// Whether it is a gradient on its way back, or an activation on its way forward.
    pub gradient: bool,
}

/// The JSON form, with its fields in the order in which they are written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    schedule: String,
    ranks: usize,
    micro_batches: usize,
    ranks_actions: Vec<Vec<Vec<(String, u8, usize)>>>,
}

impl Schedule {
    /// Makes the schedule of this kind.
    ///
    /// # Errors
    /// As [`Kind::check`]; also when stages times micro-batches exceed [`MAX_CHUNKS`].
    ///
    /// ```
    /// use dualpipe::{Kind, Schedule};
    /// let schedule = Schedule::new(Kind::DualPipe, 4, 8)?;
    /// assert_eq!(schedule.stages(), 4);
    /// assert!(Schedule::new(Kind::DualPipe, 3, 6).is_err()); // an odd number of ranks
    /// # Ok::<(), dualpipe::Error>(())
    /// ```
    pub fn new(kind: Kind, ranks: usize, micro_batches: usize) -> Result<Schedule> {
        kind.check(ranks, micro_batches)?;
        size_fits(kind, ranks, micro_batches)?;
        let ranks_actions = generate(kind, ranks, micro_batches);
        Schedule::from_actions(kind, ranks, micro_batches, ranks_actions)
    }

    /// A schedule of your own making, with the placement of `kind`.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn from_actions(kind: Kind, ranks: usize, micro_batches: usize, ranks_actions: Vec<Vec<Step>>) -> Result<Schedule> {
        validate(kind, ranks, micro_batches, &ranks_actions)?;
        Ok(Schedule { kind, ranks, micro_batches, ranks_actions })
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of ranks, R.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Number of micro-batches, M.
    pub fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    /// Where the stages are.
    pub fn placement(&self) -> Placement {
        self.kind.placement()
    }

    /// Number of stages of the model, S.
    pub fn stages(&self) -> usize {
        self.placement().stages(self.ranks)
    }

    /// The steps of every rank.
    pub fn ranks_actions(&self) -> &[Vec<Step>] {
        &self.ranks_actions
    }

    /// The steps of one rank; none where there is no such rank.
    pub fn steps(&self, rank: usize) -> &[Step] {
        self.ranks_actions.get(rank).map_or(&[], Vec::as_slice)
    }

    /// The stage that `rank` holds for `direction` (below [`Placement::directions`]).
    pub fn stage_of(&self, rank: usize, direction: u8) -> Option<usize> {
        self.placement().stage_of(self.ranks, rank, direction.into())
    }

    /// The stages that `rank` holds, by direction.
    pub fn stages_of(&self, rank: usize) -> Vec<usize> {
        (0..=u8::MAX).map_while(|direction| self.stage_of(rank, direction)).collect()
    }

    /// The micro-batch (0..M) that `chunk` of `direction` stands for.
    pub fn micro_batch(&self, direction: u8, chunk: usize) -> usize {
        self.placement().micro_batch(self.micro_batches, direction.into(), chunk)
    }

    /// The rank, direction and chunk in which a micro-batch visits a stage.
    pub fn locate(&self, stage: usize, micro_batch: usize) -> Option<(usize, usize, usize)> {
        self.placement().locate(self.ranks, self.micro_batches, stage, micro_batch)
    }

    /// The micro-batches that `rank` sees in `stage`.
    pub fn micro_batches_of(&self, rank: usize, stage: usize) -> Vec<usize> {
        (0..self.micro_batches).filter(|&m| self.locate(stage, m).is_some_and(|(r, ..)| r == rank)).collect()
    }

    /// The most chunks of which a rank keeps activations at one time, for each rank. A chunk counts from the start of its
    /// forward; those of a rank with two stages are of half the size in a V.
    pub fn peak_activations(&self, freed: Freed) -> Vec<usize> {
        let peak = |steps: &Vec<Step>| {
            let (mut held, mut peak) = (0usize, 0usize);
            for step in steps {
                held += step.actions().filter(|a| a.kind == ActionKind::F).count();
                peak = peak.max(held);
                held -= step.actions().filter(|action| freed.by(action.kind)).count();
            }
            peak
        };
        self.ranks_actions.iter().map(peak).collect()
    }

    /// All transfers between ranks, in the order of the receiving rank and step. A stage that is on the same rank as the
    /// next hands over without one.
    pub fn messages(&self) -> Vec<Message> {
        let stages = self.stages();
        let slot = |stage: usize, micro_batch: usize| micro_batch * stages + stage;
        let mut forward_step = vec![0usize; stages * self.micro_batches];
        let mut backward_step = vec![0usize; stages * self.micro_batches];
        let each = || {
            self.ranks_actions.iter().enumerate().flat_map(move |(rank, steps)| {
                steps.iter().enumerate().flat_map(move |(index, step)| {
                    step.actions().filter_map(move |action| {
                        let stage = self.stage_of(rank, action.direction)?;
                        let micro_batch = self.micro_batch(action.direction, action.chunk);
                        Some((rank, index, action.kind, stage, micro_batch))
                    })
                })
            })
        };
        for (_, index, kind, stage, micro_batch) in each() {
            match kind {
                ActionKind::F => forward_step[slot(stage, micro_batch)] = index,
                ActionKind::B | ActionKind::I => backward_step[slot(stage, micro_batch)] = index,
                ActionKind::W => {}
            }
        }
        each()
            .filter_map(|(to, to_step, kind, stage, micro_batch)| {
                let (source, gradient) = match kind {
                    ActionKind::F => (stage.checked_sub(1)?, false),
                    ActionKind::B | ActionKind::I => (stage + 1, true),
                    ActionKind::W => return None,
                };
                let (from, ..) = self.locate(source, micro_batch)?;
                let made = if gradient { &backward_step } else { &forward_step };
                let from_step = made[slot(source, micro_batch)];
                (from != to).then_some(Message { from, from_step, to, to_step, stage, micro_batch, gradient })
            })
            .collect()
    }

    /// One line of compact JSON:
    /// `{"schedule":"1f1b","ranks":1,"micro_batches":1,"ranks_actions":[[[["F",0,0]],[["B",0,0]]]]}`.
    /// `ranks_actions[rank]` is a list of steps, a step a list of one or two actions `[kind, direction, chunk]`.
    pub fn to_json(&self) -> String {
        let action = |a: Action| (a.kind.letter().to_string(), a.direction, a.chunk);
        let json = Json {
            schedule: self.kind.to_string(),
            ranks: self.ranks,
            micro_batches: self.micro_batches,
            ranks_actions: self
                .ranks_actions
                .iter()
                .map(|steps| steps.iter().map(|s| s.actions().map(action).collect()).collect())
                .collect(),
        };
        // Strings, numbers and lists only: this cannot fail.
        serde_json::to_string(&json).unwrap_or_default()
    }

    /// Reads what [`Schedule::to_json`] writes, or any other valid list of actions in that form.
    ///
    /// # Errors
    /// Text that is not of that form, unknown names, and all that [`validate`] finds.
    pub fn from_json(text: &str) -> Result<Schedule> {
        let json: Json = serde_json::from_str(text).map_err(|error| Error::Json { message: error.to_string() })?;
        let kind: Kind = json.schedule.parse()?;
        let step = |rank: usize, index: usize, actions: &[(String, u8, usize)]| {
            let fault = |message: String| Error::Step { rank, step: index, message };
            let action = |(letter, direction, chunk): &(String, u8, usize)| {
                let kind = ActionKind::from_letter(letter)
                    .ok_or_else(|| fault(format!("expected an action F, B, I or W, found '{letter}'")))?;
                Ok(Action::new(kind, *direction, *chunk))
            };
            match actions {
                [single] => Ok(Step::One(action(single)?)),
                [forward, backward] => Ok(Step::Pair(action(forward)?, action(backward)?)),
                other => Err(fault(format!("expected one or two actions, found {}", other.len()))),
            }
        };
        let ranks_actions = json
            .ranks_actions
            .iter()
            .enumerate()
            .map(|(rank, steps)| steps.iter().enumerate().map(|(i, actions)| step(rank, i, actions)).collect())
            .collect::<Result<Vec<Vec<Step>>>>()?;
        Schedule::from_actions(kind, json.ranks, json.micro_batches, ranks_actions)
    }
}

/// Refuses sizes that no pipeline has and no memory holds.
pub(crate) fn size_fits(kind: Kind, ranks: usize, micro_batches: usize) -> Result<()> {
    let fits = ranks
        .checked_mul(kind.placement().directions())
        .and_then(|stages| stages.checked_mul(micro_batches))
        .is_some_and(|chunks| chunks <= MAX_CHUNKS);
    if fits {
        return Ok(());
    }
    Err(Error::Shape {
        what: format!("schedule {kind}"),
        expected: format!("micro-batches times stages of at most {MAX_CHUNKS}"),
        got: format!("{ranks} ranks and {micro_batches} micro-batches"),
    })
}
