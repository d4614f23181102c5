//! What a rank does in a whole step, component by component, written down instead of done.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::action::{Action, ActionKind, Step};
use crate::error::{Error, Result};
use crate::execute::chunks::Chunks;
use crate::execute::mail::Post;
use crate::execute::{ExecuteError, Stage, Work};
use crate::overlap::component::{Component, Half, StageComponents};
use crate::overlap::costs::{ComponentCost, ComponentCosts};
use crate::overlap::set::Overlap;
use crate::schedule::Schedule;

/// Names an activation or gradient: whether it is a gradient, the stage it is for, the micro-batch.
pub(crate) type Key = (bool, usize, usize);

/// A piece of work of a rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Piece {
    /// Computes so long.
    Advance(f64),
    /// A communication of the components leaves.
    Send { id: usize, cost: ComponentCost },
    /// It is waited for.
    Wait { id: usize },
    /// An activation or gradient leaves to another rank.
    Post { key: Key, to: usize },
    /// It is waited for.
    Receive { key: Key },
    /// The half that begins has its input.
    Begun,
    /// The step of this index ends.
    StepEnd(usize),
}

/// The pieces of one rank.
pub(crate) fn program(
    schedule: &Schedule,
    rank: usize,
    components: &dyn Fn(Half, usize) -> Vec<Component>,
    costs: &ComponentCosts,
    overlap: &Overlap,
) -> Result<Vec<Piece>> {
    let pieces = Rc::new(RefCell::new(Vec::new()));
    let mut model = Writer { schedule, components, costs, pieces: Rc::clone(&pieces), ids: HashMap::new() };
    let mut post = Letters { schedule, rank, pieces: Rc::clone(&pieces) };
    let mut chunks = Chunks::new(schedule, rank, overlap);
    for (index, step) in schedule.steps(rank).iter().enumerate() {
        let ran = chunks.run(&mut post, &mut model, *step, index as u64).map_err(|error| fault(rank, index, error))?;
        if !ran {
            let message = "expected components of all stages, found none".into();
            return Err(Error::Step { rank, step: index, message });
        }
        if index + 1 == schedule.steps(rank).len() {
            chunks.end(&mut model, *step).map_err(|error| fault(rank, index, error))?;
        }
        pieces.borrow_mut().push(Piece::StepEnd(index));
    }
    let pieces = pieces.borrow().clone();
    Ok(pieces)
}

fn fault(rank: usize, step: usize, error: ExecuteError<Error>) -> Error {
    match error {
        ExecuteError::Stage { error, .. } => error,
        ExecuteError::Arrangement { source, .. } => source,
        other => Error::Step { rank, step, message: other.to_string() },
    }
}

struct Writer<'a> {
    schedule: &'a Schedule,
    components: &'a dyn Fn(Half, usize) -> Vec<Component>,
    costs: &'a ComponentCosts,
    pieces: Rc<RefCell<Vec<Piece>>>,
    ids: HashMap<(Half, usize, usize, usize), usize>,
}

impl Writer<'_> {
    fn cost(&self, half: Half, stage: usize, component: usize) -> Result<ComponentCost> {
        let list = (self.components)(half, stage);
        let found = list.get(component).and_then(|component| self.costs.checked(half, component).transpose());
        found.unwrap_or_else(|| {
            Err(Error::Shape {
                what: "component costs".into(),
                expected: list.get(component).map_or("a component".into(), |part| format!("a cost of {half} {part}")),
                got: "none".into(),
            })
        })
    }

    fn push(&self, piece: Piece) {
        self.pieces.borrow_mut().push(piece);
    }
}

impl StageComponents for Writer<'_> {
    type Error = Error;

    fn components(&self, half: Half, stage: usize) -> Vec<Component> {
        (self.components)(half, stage)
    }

    fn begin(&mut self, _: Half, _: Work) -> Result<()> {
        self.push(Piece::Begun);
        Ok(())
    }

    fn compute(&mut self, half: Half, stage: usize, _: usize, component: usize) -> Result<()> {
        self.push(Piece::Advance(self.cost(half, stage, component)?.compute));
        Ok(())
    }

    fn start(&mut self, half: Half, stage: usize, micro_batch: usize, component: usize) -> Result<()> {
        let cost = self.cost(half, stage, component)?;
        let id = self.ids.len();
        self.ids.insert((half, stage, micro_batch, component), id);
        self.push(Piece::Advance(cost.start));
        self.push(Piece::Send { id, cost });
        Ok(())
    }

    fn finish(&mut self, half: Half, stage: usize, micro_batch: usize, component: usize) -> Result<()> {
        let cost = self.cost(half, stage, component)?;
        // Arrangements start what they finish.
        if let Some(&id) = self.ids.get(&(half, stage, micro_batch, component)) {
            self.push(Piece::Wait { id });
        }
        self.push(Piece::Advance(cost.finish));
        Ok(())
    }

    fn result(&mut self, half: Half, stage: usize, _: usize) -> Result<Option<Vec<f32>>> {
        let last = match half {
            Half::Forward => self.schedule.stages() - 1,
            Half::Backward => 0,
        };
        Ok((stage != last).then(Vec::new))
    }

    fn end(&mut self, _: Half, _: usize, _: usize) -> Result<()> {
        Ok(())
    }
}

impl Stage for Writer<'_> {
    type Error = Error;

    fn forward(&mut self, _: usize, _: usize, _: Option<Vec<f32>>) -> Result<Option<Vec<f32>>> {
        Err(whole())
    }

    fn backward_input(&mut self, _: usize, _: usize, _: Option<Vec<f32>>) -> Result<Option<Vec<f32>>> {
        Err(whole())
    }

    fn backward_weight(&mut self, _: usize, _: usize) -> Result<()> {
        Err(whole())
    }

    fn by_components(&mut self) -> Option<&mut dyn StageComponents<Error = Error>> {
        Some(self)
    }
}

fn whole() -> Error {
    Error::Shape { what: "chunk".into(), expected: "its components".into(), got: "a call for all of it".into() }
}

/// Writes down the transfers of a rank.
struct Letters<'a> {
    schedule: &'a Schedule,
    rank: usize,
    pieces: Rc<RefCell<Vec<Piece>>>,
}

impl Letters<'_> {
    fn rank_of(&self, stage: usize, micro_batch: usize) -> usize {
        self.schedule.locate(stage, micro_batch).map_or(0, |(rank, ..)| rank)
    }
}

impl Post for Letters<'_> {
    fn place(&self, action: Action) -> (usize, usize) {
        let stage = self.schedule.stage_of(self.rank, action.direction).unwrap_or_default();
        (stage, self.schedule.micro_batch(action.direction, action.chunk))
    }

    fn receive<E>(&mut self, _: Step, action: Action) -> std::result::Result<Work, ExecuteError<E>> {
        let (stage, micro_batch) = self.place(action);
        let source = match action.kind {
            ActionKind::F => stage.checked_sub(1),
            _ => Some(stage + 1).filter(|&next| next < self.schedule.stages()),
        };
        if let Some(source) = source
            && self.rank_of(source, micro_batch) != self.rank
        {
            let key = (action.kind != ActionKind::F, stage, micro_batch);
            self.pieces.borrow_mut().push(Piece::Receive { key });
        }
        Ok(Work { stage, micro_batch, input: None })
    }

    fn send<E>(
        &mut self,
        _: Step,
        stage: usize,
        micro_batch: usize,
        gradient: bool,
        result: Option<Vec<f32>>,
    ) -> std::result::Result<(), ExecuteError<E>> {
        if result.is_some() {
            let to_stage = if gradient { stage - 1 } else { stage + 1 };
            let to = self.rank_of(to_stage, micro_batch);
            if to != self.rank {
                self.pieces.borrow_mut().push(Piece::Post { key: (gradient, to_stage, micro_batch), to });
            }
        }
        Ok(())
    }
}
