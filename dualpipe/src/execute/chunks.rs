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
            chunks[half as usize] = Some(Chunk { half, stage, micro_batch, action, components, left, weights, begun: false });
        }
        let (Some(true), Some(parts)) = (self.offers, model.by_components()) else { return Ok(false) };
        if let Step::One(action @ Action { kind: ActionKind::W, .. }) = step {
            self.finish_weights(mail, parts, step, action)?;
            return Ok(true);
        }
        let arrangement = self.arrangement(&chunks, step, position)?;
        self.follow(mail, parts, step, &arrangement, chunks)?;
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
            match op {
                Op::Start(..) => {
                    parts.start(half, stage, micro_batch, component).map_err(failed)?;
                    continue;
                }
                Op::Finish(..) => parts.finish(half, stage, micro_batch, component).map_err(failed)?,
                _ => parts.compute(half, stage, micro_batch, component).map_err(failed)?,
            }
            if weight {
                chunk.weights.retain(|&other| other != component);
                if chunk.weights.is_empty() {
                    self.weights_done(stage, micro_batch);
                }
            } else {
                chunk.left = chunk.left.saturating_sub(1);
                if chunk.left == 0 {
                    let result = parts.result(half, stage, micro_batch).map_err(failed)?;
                    mail.send(step, stage, micro_batch, half == Half::Backward, result)?;
                }
            }
        }
        for chunk in chunks.into_iter().flatten() {
            if chunk.action.kind == ActionKind::I {
                self.put_off.push(chunk);
            } else {
                if chunk.half == Half::Backward && !chunk.components.iter().any(|component| component.kind.is_weight()) {
                    self.weights_done(chunk.stage, chunk.micro_batch);
                }
                parts.end(chunk.half, chunk.stage, chunk.micro_batch).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The schedule's next chunk of this stage may do its weights.
    fn weights_done(&mut self, stage: usize, micro_batch: usize) {
        if let Some(order) = self.order.get_mut(&stage) {
            order.retain(|&other| other != micro_batch);
        }
    }

    /// One component for weights of the chunk that was put off first, if it is its turn.
    fn fill<E>(&mut self, parts: &mut dyn StageComponents<Error = E>, step: Step) -> Result<(), ExecuteError<E>> {
        let turn = |chunk: &Chunk| self.order.get(&chunk.stage).and_then(VecDeque::front) == Some(&chunk.micro_batch);
        let found = self.put_off.iter_mut().find(|chunk| !chunk.weights.is_empty() && turn(chunk));
        let Some(chunk) = found else { return Ok(()) };
        let Some(component) = chunk.weights.pop_front() else { return Ok(()) };
        let (stage, micro_batch, last) = (chunk.stage, chunk.micro_batch, chunk.weights.is_empty());
        let done = parts.compute(Half::Backward, stage, micro_batch, component);
        done.map_err(|error| ExecuteError::Stage { step, error })?;
        if last {
            self.weights_done(stage, micro_batch);
        }
        Ok(())
    }

    /// The step `W`: what is left of the weights of its chunk.
    fn finish_weights<E>(
        &mut self,
        mail: &impl Post,
        parts: &mut dyn StageComponents<Error = E>,
        step: Step,
        action: Action,
    ) -> Result<(), ExecuteError<E>> {
        let (stage, micro_batch) = mail.place(action);
        let failed = |error| ExecuteError::Stage { step, error };
        let found = self.put_off.iter().position(|chunk| (chunk.stage, chunk.micro_batch) == (stage, micro_batch));
        // A valid schedule has done the backward for inputs before.
        let Some(chunk) = found.map(|index| self.put_off.remove(index)) else { return Ok(()) };
        for component in chunk.weights {
            parts.compute(Half::Backward, stage, micro_batch, component).map_err(failed)?;
        }
        self.weights_done(stage, micro_batch);
        parts.end(Half::Backward, stage, micro_batch).map_err(failed)
    }
}
