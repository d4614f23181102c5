//! A chunk of a stage in components: the parts between which a schedule can change from one chunk to another, so that one chunk's
//! communication is under way while another computes.
//!
//! A forward is the embedding (first stage), then for each layer attention, dispatch, networks and combine, then head, loss and
//! multi-token-prediction modules (last stage). A backward runs the other way, with the networks' and the attention's weights
//! in components of their own, which nothing else waits for. A dense layer has no communication. The modules are one component
//! with the head: their own exchanges are waited for inside.
//!
//! Components carry the number of their layer in the model; what belongs to no layer (the weights of head, modules and embedding)
//! has the number after the last.

use dualpipe::Work;
use dualpipe::{Component, ComponentKind, Half, StageComponents};
use v3_numerics::ops;
use v3_ranks::Waits;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::layers::{Env, Rows, block, out_of_order};
use crate::stage::{RankModel, Saved};

/// A chunk's forward between two of its components.
#[derive(Debug)]
pub struct ForwardFlight {
    rows: Rows,
    /// The residual stream between two blocks.
    x: Option<Vec<f32>>,
    block: Option<block::Forward>,
}

impl ForwardFlight {
    /// Bytes that will be kept and are not yet among what is.
    pub(crate) fn bytes(&self) -> usize {
        self.block.as_ref().map_or(0, block::Forward::bytes)
    }
}

/// A chunk's backward between two of its components.
#[derive(Debug)]
pub struct BackwardFlight {
    rows: Rows,
    /// The gradient of the residual stream between two blocks.
    dx: Option<Vec<f32>>,
    block: Option<block::Backward>,
}

/// The components of one half of a chunk of `stage`, in an order in which they can run one after another.
pub fn list(config: &Config, grid: &Grid, half: Half, stage: usize) -> Vec<Component> {
    let mut list: Vec<Component> = Vec::new();
    // Adds a component; returns its index.
    let mut push = |kind, layer, after: &[Option<usize>]| {
        list.push(Component::new(kind, layer, after.iter().flatten().copied().collect::<Vec<_>>()));
        Some(list.len() - 1)
    };
    let layers = grid.layers.get(stage).cloned().unwrap_or_default();
    let (embed, tail) = (stage == 0, stage + 1 == grid.layers.len());
    let outside = config.num_hidden_layers;
    let mut last = None;
    match half {
        Half::Forward => {
            if embed {
                last = push(ComponentKind::Enter, outside, &[]);
            }
            for layer in layers {
                last = push(ComponentKind::Attention, layer, &[last]);
                if config.is_moe(layer) {
                    last = push(ComponentKind::Dispatch, layer, &[last]);
                }
                last = push(ComponentKind::Mlp, layer, &[last]);
                if config.is_moe(layer) {
                    last = push(ComponentKind::Combine, layer, &[last]);
                }
            }
            if tail {
                push(ComponentKind::Leave, outside, &[last]);
            }
        }
        Half::Backward => {
            if tail {
                last = push(ComponentKind::Enter, outside, &[]);
            }
            let head = last;
            for layer in layers.rev() {
                if config.is_moe(layer) {
                    last = push(ComponentKind::CombineBackward, layer, &[last]);
                }
                last = push(ComponentKind::MlpInput, layer, &[last]);
                push(ComponentKind::MlpWeight, layer, &[last]);
                if config.is_moe(layer) {
                    last = push(ComponentKind::DispatchBackward, layer, &[last]);
                }
                last = push(ComponentKind::AttentionInput, layer, &[last]);
                push(ComponentKind::AttentionWeight, layer, &[last]);
            }
            let tail_weights = if tail { push(ComponentKind::MlpWeight, outside, &[head]) } else { None };
            if embed {
                // Modules add to the embedding's gradient too.
                push(ComponentKind::AttentionWeight, outside, &[last, tail_weights]);
            }
        }
    }
    list
}

/// What is to be done with a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It computes.
    Compute,
    /// Its communication leaves.
    Start,
    /// Its communication is waited for.
    Finish,
}

/// What one component of one chunk took on the rank's own thread, by the world's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// Forward or backward.
    pub half: Half,
    /// The stage.
    pub stage: usize,
    /// The micro-batch.
    pub micro_batch: usize,
    /// The component's place in the list of its half and stage.
    pub component: usize,
    /// What was done with it.
    pub part: Part,
    /// Seconds from its begin to its end, waits included.
    pub seconds: f64,
    /// Waits for its communication.
    pub waits: Waits,
}

fn no_cost(half: Half, component: &Component) -> Error {
    Error::Piece { piece: "v3-model", message: format!("the table of costs has none for {half} {component}") }
}

fn missing(stage: usize) -> Error {
    Error::Piece { piece: "v3-model", message: format!("stage {stage} is not on this rank") }
}

fn no_chunk(micro_batch: usize) -> Error {
    Error::Piece { piece: "v3-model", message: format!("no micro-batch {micro_batch} in this step") }
}

impl RankModel {
    /// Runs those components of a half that `pick` picks, one after another.
    pub(crate) fn run_all(
        &mut self,
        half: Half,
        stage: usize,
        micro_batch: usize,
        pick: impl Fn(ComponentKind) -> bool,
    ) -> Result<()> {
        let weights = self.stages.get(&stage).ok_or_else(|| missing(stage))?;
        let kinds: Vec<ComponentKind> = weights.components[half as usize].iter().map(|component| component.kind).collect();
        for (index, kind) in kinds.into_iter().enumerate().filter(|(_, kind)| pick(*kind)) {
            if kind.communicates() {
                self.run(half, stage, micro_batch, index, Part::Start)?;
                self.run(half, stage, micro_batch, index, Part::Finish)?;
            } else {
                self.run(half, stage, micro_batch, index, Part::Compute)?;
            }
        }
        Ok(())
    }

    fn run(&mut self, half: Half, stage: usize, micro_batch: usize, index: usize, part: Part) -> Result<()> {
        let weights = self.stages.get(&stage).ok_or_else(|| missing(stage))?;
        let component = weights.components[half as usize].get(index).ok_or_else(|| out_of_order("component"))?;
        // What is outside of the layers has no block.
        let (kind, layer) = (component.kind, component.layer.wrapping_sub(weights.first_layer));
        if kind.communicates() != (part != Part::Compute) {
            return Err(out_of_order("component"));
        }
        let took = match (&self.costs, part) {
            (Some(costs), Part::Compute) => Some(costs.get(half, component).ok_or_else(|| no_cost(half, component))?.compute),
            _ => None,
        };
        let (begun, waited) = (self.ep.now(), self.ep.waits());
        match half {
            Half::Forward => self.run_forward(stage, micro_batch, kind, layer, part)?,
            Half::Backward if kind.is_weight() => self.run_weights(stage, micro_batch, kind, layer)?,
            Half::Backward => self.run_backward(stage, micro_batch, kind, layer, part)?,
        }
        if let Some(seconds) = took {
            self.ep.advance(seconds)?;
        }
        let (seconds, waits) = (self.ep.now() - begun, self.ep.waits().since(&waited));
        self.records.push(Record { half, stage, micro_batch, component: index, part, seconds, waits });
        self.account((stage, micro_batch));
        Ok(())
    }

    fn run_forward(&mut self, stage: usize, micro_batch: usize, kind: ComponentKind, layer: usize, part: Part) -> Result<()> {
        let Self { settings, store, stages, chunks, ep, lane, report, forwards, saved, .. } = self;
        let env = Env { lane: lane.as_ref(), ..settings.env(store, ep) };
        let weights = stages.get(&stage).ok_or_else(|| missing(stage))?;
        let chunk = chunks.get(micro_batch).ok_or_else(|| no_chunk(micro_batch))?;
        let (Some(flight), Some(saved)) = (forwards.get_mut(&(stage, micro_batch)), saved.get_mut(&(stage, micro_batch))) else {
            return Err(out_of_order("forward"));
        };
        match kind {
            ComponentKind::Enter => {
                let embed = weights.embed.as_ref().ok_or_else(|| out_of_order("embedding"))?;
                let mut x = vec![0.0; flight.rows.len() * env.hidden];
                ops::embedding_gather(&chunk.inputs(0), store.at(embed), env.hidden, &mut x)?;
                flight.x = Some(x);
                return Ok(());
            }
            ComponentKind::Leave => {
                let tail = weights.tail.as_ref().ok_or_else(|| out_of_order("head"))?;
                let x = flight.x.take().ok_or_else(|| out_of_order("head"))?;
                let (kept, mut found) = tail.forward(&env, chunk, x)?;
                saved.tail = Some(kept);
                report.routers.extend(found.routers.drain(..).map(|router| (micro_batch, router)));
                report.tails.insert(micro_batch, found);
                return Ok(());
            }
            _ => {}
        }
        let block = weights.blocks.get(layer).ok_or_else(|| out_of_order("layer"))?;
        if kind == ComponentKind::Attention {
            let x = flight.x.take().filter(|_| saved.blocks.len() == layer).ok_or_else(|| out_of_order("attention"))?;
            let (kept, forward, router) = block.attention(&env, &flight.rows, x)?;
            saved.blocks.push(kept);
            report.routers.extend(router.map(|router| (micro_batch, router)));
            flight.block = Some(forward);
            return Ok(());
        }
        let forward = flight.block.as_mut().ok_or_else(|| out_of_order("layer"))?;
        let kept = saved.blocks.get_mut(layer).ok_or_else(|| out_of_order("layer"))?;
        let whole = match (kind, part) {
            (ComponentKind::Dispatch, Part::Start) => return forward.start_dispatch(&env),
            (ComponentKind::Dispatch, _) => return forward.finish_dispatch(&env),
            (ComponentKind::Combine, Part::Start) => return forward.start_combine(&env),
            (ComponentKind::Combine, _) => {
                forward.finish_combine(&env, kept)?;
                true
            }
            (ComponentKind::Mlp, _) => {
                block.mlp(&env, kept, forward)?;
                !block.is_moe()
            }
            _ => return Err(out_of_order("component")),
        };
        if let (true, Some(forward)) = (whole, flight.block.take_if(|_| whole)) {
            flight.x = Some(forward.output(&env, kept));
        }
        Ok(())
    }

    fn run_backward(&mut self, stage: usize, micro_batch: usize, kind: ComponentKind, layer: usize, part: Part) -> Result<()> {
        let Self { settings, store, stages, chunks, ep, lane, backwards, saved, .. } = self;
        let env = Env { lane: lane.as_ref(), ..settings.env(store, ep) };
        let weights = stages.get(&stage).ok_or_else(|| missing(stage))?;
        let chunk = chunks.get(micro_batch).ok_or_else(|| no_chunk(micro_batch))?;
        let (Some(flight), Some(saved)) = (backwards.get_mut(&(stage, micro_batch)), saved.get_mut(&(stage, micro_batch))) else {
            return Err(out_of_order("backward"));
        };
        if kind == ComponentKind::Enter {
            let (Some(tail), Some(kept)) = (&weights.tail, &mut saved.tail) else { return Err(out_of_order("head")) };
            flight.dx = Some(tail.backward_input(&env, chunk, kept)?);
            return Ok(());
        }
        let block = weights.blocks.get(layer).ok_or_else(|| out_of_order("layer"))?;
        let kept = saved.blocks.get_mut(layer).ok_or_else(|| out_of_order("layer"))?;
        // The first component of a layer takes the gradient of the layer's output.
        if flight.block.is_none() {
            flight.block = flight.dx.take().map(block::Backward::new);
        }
        let backward = flight.block.as_mut().ok_or_else(|| out_of_order("layer"))?;
        match (kind, part) {
            (ComponentKind::CombineBackward, Part::Start) => backward.start_combine(&env, kept),
            (ComponentKind::CombineBackward, _) => backward.finish_combine(&env),
            (ComponentKind::MlpInput, _) => block.mlp_input(&env, kept, backward),
            (ComponentKind::DispatchBackward, Part::Start) => backward.start_dispatch(&env),
            (ComponentKind::DispatchBackward, _) => backward.finish_dispatch(&env),
            (ComponentKind::AttentionInput, _) => {
                let backward = flight.block.take().ok_or_else(|| out_of_order("layer"))?;
                let dx = block.attention_input(&env, &flight.rows, kept, backward)?;
                if layer == 0 && weights.embed.is_some() {
                    saved.dinput = dx;
                } else {
                    flight.dx = Some(dx);
                }
                Ok(())
            }
            _ => Err(out_of_order("component")),
        }
    }

    fn run_weights(&mut self, stage: usize, micro_batch: usize, kind: ComponentKind, layer: usize) -> Result<()> {
        let Self { settings, store, grads, module_embed, stages, chunks, ep, saved, .. } = self;
        let env = settings.env(store, ep);
        let weights = stages.get(&stage).ok_or_else(|| missing(stage))?;
        let chunk = chunks.get(micro_batch).ok_or_else(|| no_chunk(micro_batch))?;
        let saved = saved.get_mut(&(stage, micro_batch)).ok_or_else(|| out_of_order("weights"))?;
        match (kind, weights.blocks.get(layer).zip(saved.blocks.get_mut(layer))) {
            (ComponentKind::MlpWeight, Some((block, kept))) => block.mlp_weight(&env, kept, grads),
            (ComponentKind::AttentionWeight, Some((block, kept))) => block.attention_weight(&env, kept, grads),
            (ComponentKind::MlpWeight, None) => {
                let (Some(tail), Some(kept)) = (&weights.tail, saved.tail.take()) else { return Err(out_of_order("head")) };
                let apart = tail.embed.clone().filter(|_| !module_embed.is_empty());
                if let Some(embed) = &apart {
                    grads[embed.clone()].swap_with_slice(module_embed);
                }
                let done = tail.backward_weight(&env, chunk, kept, grads);
                if let Some(embed) = &apart {
                    grads[embed.clone()].swap_with_slice(module_embed);
                }
                done
            }
            (_, None) => {
                let embed = weights.embed.as_ref().ok_or_else(|| out_of_order("embedding"))?;
                let dinput = std::mem::take(&mut saved.dinput);
                Ok(ops::embedding_scatter_add(&chunk.inputs(0), &env.factor(&dinput), env.hidden, &mut grads[embed.clone()])?)
            }
            _ => Err(out_of_order("component")),
        }
    }
}

impl StageComponents for RankModel {
    type Error = Error;

    fn components(&self, half: Half, stage: usize) -> Vec<Component> {
        self.stages.get(&stage).map_or(Vec::new(), |weights| weights.components[half as usize].clone())
    }

    fn begin(&mut self, half: Half, work: Work) -> Result<()> {
        let Work { stage, micro_batch, input } = work;
        let weights = self.stages.get(&stage).ok_or_else(|| missing(stage))?;
        let rows = self.chunks.get(micro_batch).ok_or_else(|| no_chunk(micro_batch))?.rows_of(0);
        let key = (stage, micro_batch);
        let own = match half {
            Half::Forward => weights.embed.is_some(),
            Half::Backward => weights.tail.is_some(),
        };
        if own == input.is_some() {
            return Err(out_of_order("stage"));
        }
        match half {
            Half::Forward => {
                self.saved.insert(key, Saved { blocks: Vec::with_capacity(weights.blocks.len()), ..Saved::default() });
                self.forwards.insert(key, ForwardFlight { rows, x: input, block: None });
            }
            Half::Backward => {
                if !self.saved.contains_key(&key) || self.forwards.contains_key(&key) {
                    return Err(out_of_order("stage"));
                }
                self.backwards.insert(key, BackwardFlight { rows, dx: input, block: None });
            }
        }
        Ok(())
    }

    fn compute(&mut self, half: Half, stage: usize, micro_batch: usize, component: usize) -> Result<()> {
        self.run(half, stage, micro_batch, component, Part::Compute)
    }

    fn start(&mut self, half: Half, stage: usize, micro_batch: usize, component: usize) -> Result<()> {
        self.run(half, stage, micro_batch, component, Part::Start)
    }

    fn finish(&mut self, half: Half, stage: usize, micro_batch: usize, component: usize) -> Result<()> {
        self.run(half, stage, micro_batch, component, Part::Finish)
    }

    fn result(&mut self, half: Half, stage: usize, micro_batch: usize) -> Result<Option<Vec<f32>>> {
        let key = (stage, micro_batch);
        match half {
            Half::Forward => Ok(self.forwards.get_mut(&key).and_then(|flight| flight.x.take())),
            Half::Backward => Ok(self.backwards.remove(&key).and_then(|flight| flight.dx)),
        }
    }

    fn end(&mut self, half: Half, stage: usize, micro_batch: usize) -> Result<()> {
        let key = (stage, micro_batch);
        match half {
            Half::Forward => drop(self.forwards.remove(&key)),
            Half::Backward => drop(self.saved.remove(&key)),
        }
        self.account(key);
        Ok(())
    }
}
