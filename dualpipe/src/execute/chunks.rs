//! Runs the steps of a rank component by component.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::action::{Action, ActionKind, Step};
use crate::execute::mail::Post;
use crate::execute::{ExecuteError, Stage};
use crate::overlap::{Arrangement, Component, Half, Op, Overlap, Pairing, StageComponents};
use crate::schedule::Schedule;

/// A chunk that is being run.
struct Chunk {
    half: Half,
    stage: usize,
    micro_batch: usize,
    action: Action,
    components: Rc<[Component]>,
    /// Components that are not weights and not done.
    left: usize,
    /// Weights that are not done, in the order of the list.
    weights: VecDeque<usize>,
    begun: bool,
    /// Weights of a full backward that were put off are done by the end of the step at this position.
    until: Option<u64>,
}

/// The arrangement for a forward and a backward stage, either of which may not be there.
type Arranged = HashMap<(Option<usize>, Option<usize>), Rc<Arrangement>>;

/// What a rank knows of components while it runs its steps.
pub(crate) struct Chunks<'a> {
    overlap: &'a Overlap,
    offered: HashMap<(Half, usize), Rc<[Component]>>,
    arranged: Arranged,
    /// Whether the model offers components, once asked.
    offers: Option<bool>,
    /// Chunks whose weights are put off, in the order in which they came.
    put_off: Vec<Chunk>,
    /// For each stage the micro-batches in the order in which the schedule does their weights.
    order: HashMap<usize, VecDeque<usize>>,
}

impl<'a> Chunks<'a> {
    pub(crate) fn new(schedule: &Schedule, rank: usize, overlap: &'a Overlap) -> Chunks<'a> {
        let mut order: HashMap<usize, VecDeque<usize>> = HashMap::new();
        for action in schedule.steps(rank).iter().flat_map(Step::actions) {
            if let (ActionKind::B | ActionKind::W, Some(stage)) = (action.kind, schedule.stage_of(rank, action.direction)) {
                order.entry(stage).or_default().push_back(schedule.micro_batch(action.direction, action.chunk));
            }
        }
        Chunks { overlap, offered: HashMap::new(), arranged: HashMap::new(), offers: None, put_off: Vec::new(), order }
    }

    fn offered<S: Stage>(&mut self, model: &mut S, half: Half, stage: usize) -> Rc<[Component]> {
        let known = self.offered.entry((half, stage));
        let mut ask = || model.by_components().map(|parts| parts.components(half, stage)).unwrap_or_default();
        Rc::clone(known.or_insert_with(|| ask().into()))
    }

    /// Runs a step if the model offers the components of all that it does, and says whether it did.
    pub(crate) fn run<S: Stage>(
        &mut self,
        mail: &mut impl Post,
        model: &mut S,
        step: Step,
        position: u64,
    ) -> Result<bool, ExecuteError<S::Error>> {
        let mut chunks = [None, None];
        for action in step.actions() {
            let half = if action.kind == ActionKind::F { Half::Forward } else { Half::Backward };
            let (stage, micro_batch) = mail.place(action);
            let components = self.offered(model, half, stage);
            if *self.offers.get_or_insert(!components.is_empty()) == components.is_empty() {
                let expected = "components of all stages and both halves, or of none";
                return Err(ExecuteError::Contract { step, stage, expected, got: "components of some" });
            }
            if components.is_empty() {
                continue;
            }
            let weights = components.iter().enumerate().filter(|(_, c)| c.kind.is_weight()).map(|(index, _)| index);
            let weights: VecDeque<usize> = weights.collect();
            let left = components.len() - weights.len();
            chunks[half as usize] =
                Some(Chunk { half, stage, micro_batch, action, components, left, weights, begun: false, until: None });
        }
        let (Some(true), Some(parts)) = (self.offers, model.by_components()) else { return Ok(false) };
        if let Step::One(action @ Action { kind: ActionKind::W, .. }) = step {
            self.finish_weights(mail, parts, step, action, position)?;
            return Ok(true);
        }
        let arrangement = self.arrangement(&chunks, step, position)?;
        self.follow(mail, parts, step, position, &arrangement, chunks)?;
        Ok(true)
    }

    fn arrangement<E>(
        &mut self,
        chunks: &[Option<Chunk>; 2],
        step: Step,
        position: u64,
    ) -> Result<Rc<Arrangement>, ExecuteError<E>> {
        let stage = |half: Half| chunks[half as usize].as_ref().map(|chunk| chunk.stage);
        let key = (stage(Half::Forward), stage(Half::Backward));
        if let (Some(known), false) = (self.arranged.get(&key), matches!(self.overlap, Overlap::Random(_))) {
            return Ok(Rc::clone(known));
        }
        let list = |half: Half| chunks[half as usize].as_ref().map_or(Vec::new(), |chunk| chunk.components.to_vec());
        let made = Pairing::new(list(Half::Forward), list(Half::Backward))
            .and_then(|pairing| self.overlap.arrangement(&pairing, position))
            .map_err(|source| ExecuteError::Arrangement { step, source })?;
        let made = Rc::new(made);
        self.arranged.insert(key, Rc::clone(&made));
        Ok(made)
    }

    fn follow<E>(
        &mut self,
        mail: &mut impl Post,
        parts: &mut dyn StageComponents<Error = E>,
        step: Step,
        position: u64,
        arrangement: &Arrangement,
        mut chunks: [Option<Chunk>; 2],
    ) -> Result<(), ExecuteError<E>> {
        let failed = |error| ExecuteError::Stage { step, error };
        let fills = arrangement.ops().contains(&Op::Fill);
        for &op in arrangement.ops() {
            let (half, component) = match op {
                Op::Compute(half, component) | Op::Start(half, component) | Op::Finish(half, component) => (half, component),
                Op::Fill => {
                    self.fill(parts, step)?;
                    continue;
                }
            };
            let Some(chunk) = &mut chunks[half as usize] else { continue };
            let (stage, micro_batch) = (chunk.stage, chunk.micro_batch);
            let weight = chunk.components.get(component).is_some_and(|component| component.kind.is_weight());
            if weight && chunk.action.kind == ActionKind::I {
                // Its own are put off; where the arrangement fills waits, others take their place.
                if fills && chunk.left > 0 {
                    self.fill(parts, step)?;
                }
                continue;
            }
            if !chunk.begun {
                let work = mail.receive(step, chunk.action)?;
                parts.begin(half, work).map_err(failed)?;
                chunk.begun = true;
            }
            if weight {
                self.before(parts, step, stage, micro_batch)?;
                chunk.weights.retain(|&other| other != component);
            }
            match op {
                Op::Start(..) => {
                    parts.start(half, stage, micro_batch, component).map_err(failed)?;
                    continue;
                }
                Op::Finish(..) => parts.finish(half, stage, micro_batch, component).map_err(failed)?,
                _ => parts.compute(half, stage, micro_batch, component).map_err(failed)?,
            }
            if !weight {
                chunk.left = chunk.left.saturating_sub(1);
                if chunk.left == 0 {
                    let result = parts.result(half, stage, micro_batch).map_err(failed)?;
                    mail.send(step, stage, micro_batch, half == Half::Backward, result)?;
                }
            }
        }
        for mut chunk in chunks.into_iter().flatten() {
            if chunk.half == Half::Forward {
                parts.end(Half::Forward, chunk.stage, chunk.micro_batch).map_err(failed)?;
            } else if chunk.weights.is_empty() {
                self.end_backward(parts, step, chunk.stage, chunk.micro_batch)?;
            } else {
                chunk.until = (chunk.action.kind == ActionKind::B).then_some(position + 1);
                self.put_off.push(chunk);
            }
        }
        // What this step's arrangement had no place for.
        self.flush(parts, step, |chunk| chunk.until.is_some_and(|until| until <= position))
    }

    /// A chunk has done its weights, and the schedule's next one of its stage may.
    fn end_backward<E>(
        &mut self,
        parts: &mut dyn StageComponents<Error = E>,
        step: Step,
        stage: usize,
        micro_batch: usize,
    ) -> Result<(), ExecuteError<E>> {
        if let Some(order) = self.order.get_mut(&stage) {
            order.retain(|&other| other != micro_batch);
        }
        parts.end(Half::Backward, stage, micro_batch).map_err(|error| ExecuteError::Stage { step, error })
    }

    /// The micro-batch whose weights are the next of this stage.
    fn turn(&self, stage: usize) -> Option<usize> {
        self.order.get(&stage).and_then(|order| order.front().copied())
    }

    /// One component for weights of a chunk that was put off.
    fn weight<E>(&mut self, parts: &mut dyn StageComponents<Error = E>, step: Step, index: usize) -> Result<(), ExecuteError<E>> {
        let Some(chunk) = self.put_off.get_mut(index) else { return Ok(()) };
        let (stage, micro_batch) = (chunk.stage, chunk.micro_batch);
        if let Some(component) = chunk.weights.pop_front() {
            let done = parts.compute(Half::Backward, stage, micro_batch, component);
            done.map_err(|error| ExecuteError::Stage { step, error })?;
        }
        if self.put_off.get(index).is_some_and(|chunk| chunk.weights.is_empty()) {
            self.put_off.remove(index);
            self.end_backward(parts, step, stage, micro_batch)?;
        }
        Ok(())
    }

    /// One component for weights of the chunk that was put off first, of those whose turn it is.
    fn fill<E>(&mut self, parts: &mut dyn StageComponents<Error = E>, step: Step) -> Result<(), ExecuteError<E>> {
        let found = self.put_off.iter().position(|chunk| self.turn(chunk.stage) == Some(chunk.micro_batch));
        found.map_or(Ok(()), |index| self.weight(parts, step, index))
    }

    /// All weights of the chunks that were put off and are `due`, each after those of its stage that come before it.
    fn flush<E>(
        &mut self,
        parts: &mut dyn StageComponents<Error = E>,
        step: Step,
        due: impl Fn(&Chunk) -> bool,
    ) -> Result<(), ExecuteError<E>> {
        while let Some(chunk) = self.put_off.iter().find(|chunk| due(chunk)) {
            let stage = chunk.stage;
            let turn = self.turn(stage);
            let first = self.put_off.iter().position(|chunk| chunk.stage == stage && Some(chunk.micro_batch) == turn);
            // The first of its stage was put off as well, or it would have been done.
            let Some(index) = first else { return Ok(()) };
            self.weight(parts, step, index)?;
        }
        Ok(())
    }

    /// The weights of this stage that the schedule has before those of this micro-batch.
    fn before<E>(
        &mut self,
        parts: &mut dyn StageComponents<Error = E>,
        step: Step,
        stage: usize,
        micro_batch: usize,
    ) -> Result<(), ExecuteError<E>> {
        while let Some(turn) = self.turn(stage).filter(|&turn| turn != micro_batch) {
            let found = self.put_off.iter().position(|chunk| (chunk.stage, chunk.micro_batch) == (stage, turn));
            let Some(index) = found else { return Ok(()) };
            self.weight(parts, step, index)?;
        }
        Ok(())
    }

    /// What is still put off when the last step is done.
    pub(crate) fn end<S: Stage>(&mut self, model: &mut S, step: Step) -> Result<(), ExecuteError<S::Error>> {
        match model.by_components() {
            Some(parts) => self.flush(parts, step, |_| true),
            None => Ok(()),
        }
    }

    /// The step `W`: what is left of the weights of its chunk, which may be nothing.
    fn finish_weights<E>(
        &mut self,
        mail: &impl Post,
        parts: &mut dyn StageComponents<Error = E>,
        step: Step,
        action: Action,
        position: u64,
    ) -> Result<(), ExecuteError<E>> {
        let (stage, micro_batch) = mail.place(action);
        self.flush(parts, step, |chunk| {
            (chunk.stage, chunk.micro_batch) == (stage, micro_batch) || chunk.until.is_some_and(|until| until <= position)
        })
    }
}
