//! DeepSeekMoE: routed experts spread over the expert-parallel ranks, and the shared experts every token passes through.

use std::ops::Range;
use std::sync::Arc;

use fp8_gemm::Precision;
use fp8_gemm::linear::Activation;
use moe_dispatch::router::{self, Routing};
use moe_dispatch::{CombineRowGradients, Combined, Plan, WeightGradients, balance};
use v3_numerics::gemm;
use v3_numerics::view::{MatMut, MatRef};

use super::exchange::{self, Combining, CombiningBackward, Dispatch, Dispatched, DispatchingBackward, Payload};
use super::linear::Packing;
use super::mlp::{self, Mlp};
use super::{Env, Rows, out_of_order};
use crate::config::Config;
use crate::error::Result;
use crate::params::ParamStore;

/// The feed-forward half of a mixture-of-experts layer.
#[derive(Debug)]
pub struct Moe {
    layer: usize,
    gate: Range<usize>,
    bias: Range<usize>,
    experts: Mlp,
    shared: Option<Mlp>,
}

/// What the forward leaves for the backward. The normalised input is the caller's to keep.
#[derive(Debug)]
pub struct Saved {
    routing: Routing,
    dlogits: Vec<f32>,
    plan: Arc<Plan>,
    /// Until the weights of the networks are done.
    networks: Option<Networks>,
}

#[derive(Debug)]
struct Networks {
    rows: Activation,
    out_rows: Vec<f32>,
    experts: mlp::Saved,
    shared: Option<mlp::Saved>,
}

/// What a layer's router did with one chunk, for losses and load figures.
#[derive(Debug, Clone)]
pub struct RouterReport {
    /// Index of the layer.
    pub layer: usize,
    /// Tokens of this rank sent to each expert.
    pub counts: Vec<u64>,
    /// Sequence-wise balance loss of each sequence of the chunk.
    pub balance: Vec<f64>,
}

/// The experts that rank `rank` of `ranks` holds.
pub fn local_experts(config: &Config, rank: usize, ranks: usize) -> Range<usize> {
    let n = config.n_routed_experts / ranks;
    rank * n..(rank + 1) * n
}

fn expert_prefixes(layer: usize, experts: Range<usize>) -> Vec<String> {
    experts.map(|e| format!("model.layers.{layer}.mlp.experts.{e}")).collect()
}

/// The tensors of the routed experts `experts` of a layer, in memory order.
pub fn expert_tensor_names(config: &Config, layer: usize, experts: Range<usize>, precision: Precision) -> Vec<String> {
    mlp::expert_tensor_names(&expert_prefixes(layer, experts), config.moe_intermediate_size, precision)
}

/// The other tensors of the layer's feed-forward half, in memory order.
pub fn tensor_names(config: &Config, layer: usize) -> Vec<String> {
    let mut names = vec![gate_name(layer), bias_name(layer)];
    if config.n_shared_experts > 0 {
        names.extend(mlp::tensor_names(&format!("model.layers.{layer}.mlp.shared_experts")));
    }
    names
}

fn gate_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.gate.weight")
}

/// The name of a layer's router bias.
pub fn bias_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.gate.e_score_correction_bias")
}

impl Moe {
    /// Packs the weights of `layer` that this rank holds.
    pub fn new(
        config: &Config,
        layer: usize,
        experts: Range<usize>,
        store: &ParamStore,
        precision: Precision,
        packing: Packing,
    ) -> Result<Self> {
        let shared = format!("model.layers.{layer}.mlp.shared_experts");
        Ok(Self {
            layer,
            gate: store.param(&gate_name(layer))?.range(),
            bias: store.param(&bias_name(layer))?.range(),
            experts: Mlp::experts(store, &expert_prefixes(layer, experts), precision, packing)?,
            shared: (config.n_shared_experts > 0).then(|| Mlp::dense(store, &shared, precision, packing)).transpose()?,
        })
    }

    /// Packs the current values again.
    pub fn pack(&mut self, store: &ParamStore) -> Result<()> {
        self.experts.pack(store)?;
        self.shared.iter_mut().try_for_each(|m| m.pack(store))
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        self.experts.bytes() + self.shared.as_ref().map_or(0, Mlp::bytes)
    }

    /// The router's choice for rows `h[m, hidden]`, always in f32, and whether its logits were finite (others are an error
    /// unless divergence is to be reported).
    fn route(&self, env: &Env<'_>, h: &[f32]) -> Result<(Routing, bool)> {
        let router = &env.moe()?.router;
        let (experts, hidden) = (router.num_experts, env.hidden);
        let m = h.len() / hidden;
        let mut logits = vec![0.0; m * experts];
        let gate = MatRef::new(env.store.at(&self.gate), experts, hidden)?;
        gemm::gemm(MatRef::new(h, m, hidden)?, gate.t(), MatMut::new(&mut logits, m, experts)?, false)?;
        let finite = !env.report_divergence || logits.iter().all(|l| l.is_finite());
        if !finite {
            logits.fill(0.0);
        }
        Ok((router::route(router, &logits, env.store.at(&self.bias))?, finite))
    }

    /// Begins a forward with the normalised rows `h`: routes them and makes what the dispatch carries.
    pub fn forward(&self, env: &Env<'_>, rows: &Rows, h: &[f32]) -> Result<(Forward, RouterReport)> {
        let (routing, finite) = self.route(env, h)?;
        let (balance, dlogits) = self.balance(env, rows, &routing, finite)?;
        let counts = routing.expert_counts(env.moe()?.router.num_experts)?;
        let phase = ForwardPhase::Routed(Payload::new(env, h)?);
        Ok((Forward { routing, dlogits, phase }, RouterReport { layer: self.layer, counts, balance }))
    }

    /// The experts on the rows that came, and the shared experts on the normalised rows `act` of this rank.
    pub fn compute(&self, env: &Env<'_>, act: &Activation, forward: &mut Forward) -> Result<()> {
        let ForwardPhase::Dispatched(Dispatched { plan, rows }) = forward.take() else { return Err(out_of_order("experts")) };
        let (out_rows, experts) = self.experts.forward(env, &rows, plan.offsets())?;
        let shared = self.shared.as_ref().map(|mlp| mlp.forward(env, act, &[0, act.rows()])).transpose()?;
        forward.phase = ForwardPhase::Computed(Computed { plan, rows, out_rows, experts, shared });
        Ok(())
    }

    /// The balance loss of each sequence and the gradient of the step's loss through it.
    fn balance(&self, env: &Env<'_>, rows: &Rows, routing: &Routing, finite: bool) -> Result<(Vec<f64>, Vec<f32>)> {
        let lengths = rows.lengths();
        if env.balance_alpha == 0.0 {
            let loss = if finite { 0.0 } else { f64::NAN };
            return Ok((vec![loss; lengths.len()], vec![0.0; routing.scores.len()]));
        }
        let balance = balance::sequence_balance_loss(&env.moe()?.router, routing, &lengths, env.balance_alpha)?;
        // The piece gives the gradient of the mean over these sequences; the step's loss is a mean over all of them.
        let mut dlogits = balance.dlogits;
        let sequences = lengths.iter().filter(|&&n| n > 0).count();
        v3_numerics::ops::scale(&mut dlogits, rows.sequence_scale * sequences as f32);
        let losses = if finite { balance.per_sequence } else { vec![f64::NAN; lengths.len()] };
        Ok((losses, dlogits))
    }

    /// Backward for inputs of experts and shared experts; `dy` is the gradient of the layer's output.
    pub fn compute_backward(&self, env: &Env<'_>, saved: &mut Saved, dy: &[f32], backward: &mut Backward) -> Result<()> {
        let BackwardPhase::Combined(dout_rows, weights) = backward.take() else { return Err(out_of_order("experts")) };
        let Some(networks) = &mut saved.networks else { return Err(out_of_order("experts")) };
        let hidden = env.hidden;
        let n = saved.plan.expert_rows();
        let mut drows = vec![0.0; n * hidden];
        let offsets = saved.plan.offsets();
        self.experts.backward_input(&mut networks.experts, offsets, dout_rows, MatMut::new(&mut drows, n, hidden)?, false)?;
        let mut dshared = None;
        if let (Some(mlp), Some(shared)) = (&self.shared, &mut networks.shared) {
            let m = dy.len() / hidden;
            let mut dx = vec![0.0; dy.len()];
            mlp.backward_input(shared, &[0, m], dy.to_vec(), MatMut::new(&mut dx, m, hidden)?, false)?;
            dshared = Some(dx);
        }
        backward.phase = BackwardPhase::Computed { plan: Arc::clone(&saved.plan), weights, drows, dshared };
        Ok(())
    }

    /// Backward for inputs of the router: the gradient of the normalised rows, which is what came back from the experts, then the
    /// router's part, then the shared experts'.
    pub fn finish_backward(&self, env: &Env<'_>, saved: &mut Saved, backward: Backward) -> Result<Vec<f32>> {
        let BackwardPhase::Dispatched { mut dh, dweights, dshared } = backward.phase else {
            return Err(out_of_order("dispatch"));
        };
        let router = &env.moe()?.router;
        let m = dh.len() / env.hidden;
        let dlogits = router::route_backward(router, &saved.routing, &dweights)?;
        v3_numerics::ops::add_assign(&mut saved.dlogits, &dlogits)?;
        let gate = MatRef::new(env.store.at(&self.gate), router.num_experts, env.hidden)?;
        let dlogits = MatRef::new(&saved.dlogits, m, router.num_experts)?;
        gemm::gemm(dlogits, gate, MatMut::new(&mut dh, m, env.hidden)?, true)?;
        if let Some(dshared) = dshared {
            v3_numerics::ops::add_assign(&mut dh, &dshared)?;
        }
        Ok(dh)
    }

    /// Backward for the weights of the networks; `act` is the normalised input as a GEMM operand.
    pub fn backward_weight(&self, env: &Env<'_>, saved: &mut Saved, act: &Activation, grads: &mut [f32]) -> Result<()> {
        let Networks { rows, experts, shared, .. } = saved.networks.take().ok_or_else(|| out_of_order("experts"))?;
        self.experts.backward_weight(env, experts, &rows, saved.plan.offsets(), grads)?;
        if let (Some(mlp), Some(shared)) = (&self.shared, shared) {
            mlp.backward_weight(env, shared, act, &[0, act.rows()], grads)?;
        }
        Ok(())
    }

    /// Backward for the weights of the router; `h` is the normalised input.
    pub fn router_weight(&self, env: &Env<'_>, saved: &Saved, h: &[f32], grads: &mut [f32]) -> Result<()> {
        let (m, experts) = (h.len() / env.hidden, env.moe()?.router.num_experts);
        let (dlogits, h) = (env.factor(&saved.dlogits), env.factor(h));
        let dlogits = MatRef::new(&dlogits, m, experts)?;
        let dgate = MatMut::new(&mut grads[self.gate.clone()], experts, env.hidden)?;
        Ok(gemm::gemm(dlogits.t(), MatRef::new(&h, m, env.hidden)?, dgate, true)?)
    }
}

/// A forward under way: what one component leaves for the next.
#[derive(Debug)]
pub struct Forward {
    routing: Routing,
    dlogits: Vec<f32>,
    phase: ForwardPhase,
}

#[derive(Debug)]
enum ForwardPhase {
    Routed(Payload),
    Dispatching(Dispatch),
    Dispatched(Dispatched),
    Computed(Computed),
    Combining(Combining, Computed),
    /// A component took it and failed.
    Taken,
}

#[derive(Debug)]
struct Computed {
    plan: Arc<Plan>,
    rows: Activation,
    out_rows: Vec<f32>,
    experts: mlp::Saved,
    shared: Option<(Vec<f32>, mlp::Saved)>,
}

impl Forward {
    fn take(&mut self) -> ForwardPhase {
        std::mem::replace(&mut self.phase, ForwardPhase::Taken)
    }

    /// The rows leave for their experts.
    pub fn start_dispatch(&mut self, env: &Env<'_>) -> Result<()> {
        let ForwardPhase::Routed(payload) = self.take() else { return Err(out_of_order("dispatch")) };
        self.phase = ForwardPhase::Dispatching(Dispatch::start(env, &self.routing, payload)?);
        Ok(())
    }

    /// The rows of this rank's experts are here.
    pub fn finish_dispatch(&mut self, env: &Env<'_>) -> Result<()> {
        let ForwardPhase::Dispatching(pending) = self.take() else { return Err(out_of_order("dispatch")) };
        self.phase = ForwardPhase::Dispatched(pending.finish(env)?);
        Ok(())
    }

    /// The experts' outputs leave for their tokens.
    pub fn start_combine(&mut self, env: &Env<'_>) -> Result<()> {
        let ForwardPhase::Computed(mut computed) = self.take() else { return Err(out_of_order("combine")) };
        let out_rows = std::mem::take(&mut computed.out_rows);
        let pending = exchange::start_combine(env, &computed.plan, out_rows, true)?;
        self.phase = ForwardPhase::Combining(pending, computed);
        Ok(())
    }

    /// Adds the experts' output to `y`, and after it the shared experts'.
    pub fn finish_combine(self, env: &Env<'_>, y: &mut [f32]) -> Result<Saved> {
        let ForwardPhase::Combining(pending, computed) = self.phase else { return Err(out_of_order("combine")) };
        let Combined { rows: out, expert_rows: out_rows } = pending.finish(env)?;
        v3_numerics::ops::add_assign(y, &out)?;
        let Computed { plan, rows, experts, shared, .. } = computed;
        let shared = match shared {
            Some((out, saved)) => {
                v3_numerics::ops::add_assign(y, &out)?;
                Some(saved)
            }
            None => None,
        };
        let networks = Some(Networks { rows, out_rows, experts, shared });
        Ok(Saved { routing: self.routing, dlogits: self.dlogits, plan, networks })
    }

    /// Bytes that will be kept, as far as they are there.
    pub fn bytes(&self) -> usize {
        let phase = match &self.phase {
            ForwardPhase::Dispatched(d) => d.plan.bytes() + d.rows.bytes(),
            ForwardPhase::Computed(c) | ForwardPhase::Combining(_, c) => {
                let shared = c.shared.as_ref().map_or(0, |(_, saved)| saved.bytes());
                c.plan.bytes() + c.rows.bytes() + c.out_rows.len() * 4 + c.experts.bytes() + shared
            }
            _ => 0,
        };
        self.routing.bytes() + self.dlogits.len() * 4 + phase
    }
}

/// A backward for inputs under way.
#[derive(Debug, Default)]
pub struct Backward {
    phase: BackwardPhase,
}

#[derive(Debug, Default)]
enum BackwardPhase {
    #[default]
    Begun,
    Combining(CombiningBackward),
    /// Gradients of the expert rows; those of the weights have not left.
    Combined(Vec<f32>, WeightGradients),
    Computed {
        plan: Arc<Plan>,
        weights: WeightGradients,
        drows: Vec<f32>,
        dshared: Option<Vec<f32>>,
    },
    Dispatching(DispatchingBackward, Option<Vec<f32>>),
    Dispatched {
        dh: Vec<f32>,
        dweights: Vec<f32>,
        /// Kept apart until the experts' part, which is the first term of the sum, has come.
        dshared: Option<Vec<f32>>,
    },
    /// A component took it and failed.
    Taken,
}

impl Backward {
    fn take(&mut self) -> BackwardPhase {
        std::mem::replace(&mut self.phase, BackwardPhase::Taken)
    }

    /// The gradient `dy` of the layer's output leaves for the experts. The experts' outputs are not needed beyond it.
    pub fn start_combine(&mut self, env: &Env<'_>, saved: &mut Saved, dy: Vec<f32>) -> Result<()> {
        let BackwardPhase::Begun = self.take() else { return Err(out_of_order("combine")) };
        let networks = saved.networks.as_mut().ok_or_else(|| out_of_order("combine"))?;
        let out_rows = std::mem::take(&mut networks.out_rows);
        self.phase = BackwardPhase::Combining(exchange::start_combine_backward(env, &saved.plan, dy, out_rows)?);
        Ok(())
    }

    /// The gradients of this rank's expert rows are here. Hands back what was sent.
    pub fn finish_combine(&mut self, env: &Env<'_>) -> Result<Vec<f32>> {
        let BackwardPhase::Combining(pending) = self.take() else { return Err(out_of_order("combine")) };
        let CombineRowGradients { d_expert_rows, weights, dy } = pending.finish(env)?;
        self.phase = BackwardPhase::Combined(d_expert_rows, weights);
        Ok(dy)
    }

    /// The gradients of the experts' inputs, and of the router's weights, leave for their tokens.
    pub fn start_dispatch(&mut self, env: &Env<'_>) -> Result<()> {
        let BackwardPhase::Computed { plan, weights, drows, dshared } = self.take() else { return Err(out_of_order("dispatch")) };
        self.phase = BackwardPhase::Dispatching(DispatchingBackward::start(env, &plan, weights, drows)?, dshared);
        Ok(())
    }

    /// The sums of the gradients are here.
    pub fn finish_dispatch(&mut self, env: &Env<'_>) -> Result<()> {
        let BackwardPhase::Dispatching(pending, dshared) = self.take() else { return Err(out_of_order("dispatch")) };
        let (dh, dweights) = pending.finish(env)?;
        self.phase = BackwardPhase::Dispatched { dh, dweights, dshared };
        Ok(())
    }
}

impl Saved {
    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        let networks = |n: &Networks| {
            n.out_rows.len() * 4 + n.rows.bytes() + n.experts.bytes() + n.shared.as_ref().map_or(0, mlp::Saved::bytes)
        };
        self.routing.bytes() + self.plan.bytes() + self.dlogits.len() * 4 + self.networks.as_ref().map_or(0, networks)
    }

    /// Whether the weights of the networks are still to be done.
    pub fn has_networks(&self) -> bool {
        self.networks.is_some()
    }

    /// The router's choice, for tests and inspection.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }
}
