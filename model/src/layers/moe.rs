//! DeepSeekMoE: routed experts spread over the expert-parallel ranks, and the shared experts every token passes through.

use std::ops::Range;

use fp8_gemm::linear::{ACTIVATION_SCALES, Activation};
use fp8_gemm::quantize::quantize_1x128;
use fp8_gemm::{Block, BlockScaled, Precision};
use half::bf16;
use moe_dispatch::router::{self, Routing};
use moe_dispatch::{Plan, balance};
use v3_numerics::view::{MatMut, MatRef};
use v3_numerics::{convert, gemm};

use super::linear::Packing;
use super::mlp::{self, Mlp};
use super::{Env, MoeSettings, Rows};
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
    plan: Plan,
    rows: Activation,
    out_rows: Vec<f32>,
    experts: mlp::Saved,
    shared: Option<mlp::Saved>,
    dlogits: Vec<f32>,
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

    /// Forward: adds the experts' output for the normalised rows `h` to `y`.
    pub fn forward(
        &self,
        env: &Env<'_>,
        rows: &Rows,
        h: &[f32],
        act: &Activation,
        y: &mut [f32],
    ) -> Result<(Saved, RouterReport)> {
        let MoeSettings { router, layout } = env.moe()?;
        let (routing, finite) = self.route(env, h)?;
        let (balance, dlogits) = self.balance(env, rows, &routing, finite)?;
        let plan = Plan::new(env.ep, layout, &routing)?;
        let sent = send_rows(env, &plan, h)?;
        let (out_rows, experts) = self.experts.forward(env, &sent, plan.offsets())?;
        let out = plan.combine(env.ep, &out_rows, env.hidden, true)?;
        v3_numerics::ops::add_assign(y, &out)?;
        let shared = match &self.shared {
            Some(mlp) => {
                let (out, saved) = mlp.forward(env, act, &[0, act.rows()])?;
                v3_numerics::ops::add_assign(y, &out)?;
                Some(saved)
            }
            None => None,
        };
        let counts = routing.expert_counts(router.num_experts)?;
        let report = RouterReport { layer: self.layer, counts, balance };
        Ok((Saved { routing, plan, rows: sent, out_rows, experts, shared, dlogits }, report))
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

    /// Backward for inputs: writes the gradient of the normalised rows to `dh`.
    pub fn backward_input(&self, env: &Env<'_>, saved: &mut Saved, dy: &[f32], dh: &mut Vec<f32>) -> Result<()> {
        let (router, hidden) = (&env.moe()?.router, env.hidden);
        let (dout_rows, dweights) = saved.plan.combine_backward(env.ep, dy, &saved.out_rows, hidden)?;
        saved.out_rows = Vec::new();
        let n = saved.plan.expert_rows();
        let mut drows = vec![0.0; n * hidden];
        self.experts.backward_input(
            &mut saved.experts,
            saved.plan.offsets(),
            dout_rows,
            MatMut::new(&mut drows, n, hidden)?,
            false,
        )?;
        *dh = saved.plan.dispatch_backward(env.ep, &drows, hidden)?;
        let m = dh.len() / hidden;
        let dlogits = router::route_backward(router, &saved.routing, &dweights)?;
        v3_numerics::ops::add_assign(&mut saved.dlogits, &dlogits)?;
        let gate = MatRef::new(env.store.at(&self.gate), router.num_experts, hidden)?;
        let dlogits = MatRef::new(&saved.dlogits, m, router.num_experts)?;
        gemm::gemm(dlogits, gate, MatMut::new(dh, m, hidden)?, true)?;
        if let (Some(mlp), Some(shared)) = (&self.shared, &mut saved.shared) {
            mlp.backward_input(shared, &[0, m], dy.to_vec(), MatMut::new(dh, m, hidden)?, true)?;
        }
        Ok(())
    }

    /// Backward for weights; `h` is the normalised input, `act` the same as a GEMM operand.
    pub fn backward_weight(&self, env: &Env<'_>, saved: Saved, h: &[f32], act: &Activation, grads: &mut [f32]) -> Result<()> {
        let (m, experts) = (act.rows(), env.moe()?.router.num_experts);
        let (dlogits, h) = (env.factor(&saved.dlogits), env.factor(h));
        let dlogits = MatRef::new(&dlogits, m, experts)?;
        let dgate = MatMut::new(&mut grads[self.gate.clone()], experts, env.hidden)?;
        gemm::gemm(dlogits.t(), MatRef::new(&h, m, env.hidden)?, dgate, true)?;
        self.experts.backward_weight(env, saved.experts, &saved.rows, saved.plan.offsets(), grads)?;
        if let (Some(mlp), Some(shared)) = (&self.shared, saved.shared) {
            mlp.backward_weight(env, shared, act, &[0, m], grads)?;
        }
        Ok(())
    }
}

/// Sends the normalised rows to their experts in the precision of the linear layers: a row is quantised by itself, so doing it
/// before the rows travel gives the bits of doing it after, and they take a half or a quarter of the bytes.
fn send_rows(env: &Env<'_>, plan: &Plan, h: &[f32]) -> Result<Activation> {
    let (rows, hidden) = (plan.expert_rows(), env.hidden);
    match env.precision {
        Precision::F32 => env.activation(plan.dispatch(env.ep, h, hidden)?, rows, hidden),
        Precision::Bf16 => {
            let mut narrow = vec![bf16::ZERO; h.len()];
            convert::f32_to_bf16(h, &mut narrow)?;
            let mut sent = vec![0.0; rows * hidden];
            convert::bf16_to_f32(&plan.dispatch(env.ep, &narrow, hidden)?, &mut sent)?;
            env.activation(sent, rows, hidden)
        }
        Precision::Fp8 => {
            let q = quantize_1x128(MatRef::new(h, h.len() / hidden, hidden)?, ACTIVATION_SCALES);
            let scales = (q.scales(), hidden.div_ceil(128));
            let (data, scales) = plan.dispatch_pair(env.ep, (q.data(), hidden), scales)?;
            Ok(Activation::from_block_scaled(BlockScaled::new(data, scales, rows, hidden, Block::Row128)?)?)
        }
    }
}

impl Saved {
    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        let routing = self.routing.bytes() + self.plan.bytes();
        let vecs = (self.out_rows.len() + self.dlogits.len()) * 4;
        routing + vecs + self.rows.bytes() + self.experts.bytes() + self.shared.as_ref().map_or(0, mlp::Saved::bytes)
    }

    /// The router's choice, for tests and inspection.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }
}
