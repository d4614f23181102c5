//! A transformer block: the attention half, then the feed-forward half, each with its norm and its residual.

use std::ops::Range;

use fp8_gemm::Precision;
use fp8_gemm::linear::Activation;
use v3_numerics::ops;
use v3_numerics::view::MatMut;

use super::attention::{self, Attention};
use super::linear::Packing;
use super::mlp::{self, Mlp};
use super::moe::{self, Moe, RouterReport};
use super::{Env, Rows};
use crate::config::Config;
use crate::error::Result;
use crate::params::ParamStore;

/// The feed-forward half's network.
#[derive(Debug)]
pub enum Ffn {
    /// The first layers' dense network.
    Dense(Mlp),
    /// Routed and shared experts.
    Moe(Box<Moe>),
}

/// One block.
#[derive(Debug)]
pub struct Block {
    /// The attention half.
    pub attention: Attention,
    /// `post_attention_layernorm`.
    pub norm: Range<usize>,
    /// The feed-forward half.
    pub ffn: Ffn,
}

#[derive(Debug)]
enum FfnSaved {
    Dense(mlp::Saved),
    Moe(Box<moe::Saved>),
}

/// What the forward leaves for the backward. Each part goes when the last component that reads it is done.
#[derive(Debug, Default)]
pub struct Saved {
    attention: Option<attention::Saved>,
    x: Vec<f32>,
    rstd: Vec<f32>,
    h: Option<Activation>,
    ffn: Option<FfnSaved>,
    dh: Vec<f32>,
}

/// A block's forward between two of its components, which run in this order: [`Block::attention`], then for a mixture of experts
/// dispatch (started, finished), then [`Block::mlp`], then for a mixture of experts combine, then [`Forward::output`].
#[derive(Debug)]
pub struct Forward {
    y: Vec<f32>,
    h: Activation,
    moe: Option<moe::Forward>,
}

/// A block's backward for inputs between two of its components: combine for a mixture of experts, [`Block::mlp_input`], dispatch for
/// a mixture of experts, [`Block::attention_input`].
#[derive(Debug)]
pub struct Backward {
    dy: Vec<f32>,
    dh: Vec<f32>,
    moe: moe::Backward,
}

/// The tensors of layer `layer` that every rank of the stage holds, in memory order; routed experts are apart.
pub fn tensor_names(config: &Config, layer: usize) -> Vec<String> {
    let mut names = attention::tensor_names(layer, config.q_lora_rank.is_some());
    names.push(format!("model.layers.{layer}.post_attention_layernorm.weight"));
    if config.is_moe(layer) {
        names.extend(moe::tensor_names(config, layer));
    } else {
        names.extend(mlp::tensor_names(&format!("model.layers.{layer}.mlp")));
    }
    names
}

impl Block {
    /// Packs the weights of `layer` that this rank holds.
    pub fn new(
        config: &Config,
        layer: usize,
        experts: Range<usize>,
        store: &ParamStore,
        precision: Precision,
        packing: Packing,
    ) -> Result<Self> {
        let ffn = if config.is_moe(layer) {
            Ffn::Moe(Box::new(Moe::new(config, layer, experts, store, precision, packing)?))
        } else {
            Ffn::Dense(Mlp::dense(store, &format!("model.layers.{layer}.mlp"), precision, packing)?)
        };
        Ok(Self {
            attention: Attention::new(config, layer, store, precision, packing)?,
            norm: store.param(&format!("model.layers.{layer}.post_attention_layernorm.weight"))?.range(),
            ffn,
        })
    }

    /// Packs the current values again.
    pub fn pack(&mut self, store: &ParamStore) -> Result<()> {
        self.attention.pack(store)?;
        match &mut self.ffn {
            Ffn::Dense(mlp) => mlp.pack(store),
            Ffn::Moe(moe) => moe.pack(store),
        }
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        self.attention.bytes()
            + match &self.ffn {
                Ffn::Dense(mlp) => mlp.bytes(),
                Ffn::Moe(moe) => moe.bytes(),
            }
    }

    fn normalise(&self, env: &Env<'_>, x: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut h, mut rstd) = (vec![0.0; x.len()], vec![0.0; x.len() / env.hidden]);
        ops::rms_norm(x, env.store.at(&self.norm), env.eps, &mut h, &mut rstd)?;
        Ok((h, rstd))
    }

    /// Whether the feed-forward half communicates.
    pub fn is_moe(&self) -> bool {
        matches!(self.ffn, Ffn::Moe(_))
    }

    /// The feed-forward half alone on rows `x`, for inference: `x + ffn(norm(x))`.
    pub fn ffn_inference(&self, env: &Env<'_>, rows: &Rows, x: Vec<f32>) -> Result<Vec<f32>> {
        let (mut saved, mut forward, _) = self.begin_ffn(env, rows, x)?;
        self.ffn_forward(env, &mut saved, &mut forward)?;
        Ok(forward.y)
    }

    /// All components of the feed-forward half but the router's.
    fn ffn_forward(&self, env: &Env<'_>, saved: &mut Saved, forward: &mut Forward) -> Result<()> {
        forward.start_dispatch(env)?;
        forward.finish_dispatch(env)?;
        self.mlp(env, saved, forward)?;
        forward.start_combine(env)?;
        forward.finish_combine(env, saved)
    }

    fn begin_ffn(&self, env: &Env<'_>, rows: &Rows, x: Vec<f32>) -> Result<(Saved, Forward, Option<RouterReport>)> {
        let m = rows.len();
        let (h, rstd) = self.normalise(env, &x)?;
        let y = x.clone();
        let (h, moe, report) = match &self.ffn {
            Ffn::Dense(_) => (env.activation(h, m, env.hidden)?, None, None),
            Ffn::Moe(moe) => {
                let act = Activation::new(&h, m, env.hidden, env.precision)?;
                let (forward, report) = moe.forward(env, rows, &h)?;
                (act, Some(forward), Some(report))
            }
        };
        Ok((Saved { x, rstd, ..Saved::default() }, Forward { y, h, moe }, report))
    }

    /// Forward of one chunk, all components one after another.
    pub fn forward(&self, env: &Env<'_>, rows: &Rows, x: Vec<f32>) -> Result<(Vec<f32>, Saved, Option<RouterReport>)> {
        let (mut saved, mut forward, report) = self.attention(env, rows, x)?;
        self.ffn_forward(env, &mut saved, &mut forward)?;
        Ok((forward.output(env, &mut saved), saved, report))
    }

    /// The attention half, the norm after it, and the router.
    pub fn attention(&self, env: &Env<'_>, rows: &Rows, x: Vec<f32>) -> Result<(Saved, Forward, Option<RouterReport>)> {
        let (x, attention) = self.attention.forward(env, rows, x)?;
        let (mut saved, forward, report) = self.begin_ffn(env, rows, x)?;
        saved.attention = Some(attention);
        Ok((saved, forward, report))
    }

    /// The networks: the dense one, or routed and shared experts.
    pub fn mlp(&self, env: &Env<'_>, saved: &mut Saved, forward: &mut Forward) -> Result<()> {
        match (&self.ffn, &mut forward.moe) {
            (Ffn::Dense(mlp), None) => {
                let (out, kept) = mlp.forward(env, &forward.h, &[0, forward.h.rows()])?;
                ops::add_assign(&mut forward.y, &out)?;
                saved.ffn = Some(FfnSaved::Dense(kept));
                Ok(())
            }
            (Ffn::Moe(moe), Some(state)) => moe.compute(env, &forward.h, state),
            _ => Err(super::out_of_order("block")),
        }
    }

    /// Backward for inputs, all components one after another.
    pub fn backward_input(&self, env: &Env<'_>, rows: &Rows, saved: &mut Saved, dy: Vec<f32>) -> Result<Vec<f32>> {
        let mut backward = Backward::new(dy);
        if self.is_moe() {
            backward.start_combine(env, saved)?;
            backward.finish_combine(env)?;
        }
        self.mlp_input(env, saved, &mut backward)?;
        if self.is_moe() {
            backward.start_dispatch(env)?;
            backward.finish_dispatch(env)?;
        }
        self.attention_input(env, rows, saved, backward)
    }

    /// Backward for inputs of the networks.
    pub fn mlp_input(&self, env: &Env<'_>, saved: &mut Saved, backward: &mut Backward) -> Result<()> {
        let m = saved.rstd.len();
        match (&self.ffn, &mut saved.ffn) {
            (Ffn::Dense(mlp), Some(FfnSaved::Dense(s))) => {
                backward.dh = vec![0.0; m * env.hidden];
                mlp.backward_input(s, &[0, m], backward.dy.clone(), MatMut::new(&mut backward.dh, m, env.hidden)?, false)
            }
            (Ffn::Moe(moe), Some(FfnSaved::Moe(s))) => moe.compute_backward(env, s, &backward.dy, &mut backward.moe),
            _ => Err(super::out_of_order("block")),
        }
    }

    /// Backward for inputs of the norm before the networks and of the attention half: the gradient of the block's input.
    pub fn attention_input(&self, env: &Env<'_>, rows: &Rows, saved: &mut Saved, backward: Backward) -> Result<Vec<f32>> {
        let Backward { dy: mut dx, mut dh, moe } = backward;
        if let Ffn::Moe(layer) = &self.ffn {
            let Some(FfnSaved::Moe(s)) = &mut saved.ffn else { return Err(super::out_of_order("router")) };
            dh = layer.finish_backward(env, s, moe)?;
        }
        let mut dnorm = vec![0.0; dx.len()];
        ops::rms_norm_backward_input(&dh, &saved.x, env.store.at(&self.norm), &saved.rstd, &mut dnorm)?;
        ops::add_assign(&mut dx, &dnorm)?;
        saved.dh = dh;
        let attention = saved.attention.as_mut().ok_or_else(|| super::out_of_order("attention"))?;
        self.attention.backward_input(env, rows, attention, dx)
    }

    /// Backward for weights, both components one after another.
    pub fn backward_weight(&self, env: &Env<'_>, mut saved: Saved, grads: &mut [f32]) -> Result<()> {
        self.mlp_weight(env, &mut saved, grads)?;
        self.attention_weight(env, &mut saved, grads)
    }

    /// Backward for the weights of the networks.
    pub fn mlp_weight(&self, env: &Env<'_>, saved: &mut Saved, grads: &mut [f32]) -> Result<()> {
        let m = saved.rstd.len();
        let act = match saved.h.take() {
            Some(act) => act,
            None => Activation::new(&self.normalise(env, &saved.x)?.0, m, env.hidden, env.precision)?,
        };
        match (&self.ffn, &mut saved.ffn) {
            (Ffn::Dense(mlp), Some(FfnSaved::Dense(_))) => {
                if let Some(FfnSaved::Dense(s)) = saved.ffn.take() {
                    mlp.backward_weight(env, s, &act, &[0, m], grads)?;
                }
            }
            (Ffn::Moe(moe), Some(FfnSaved::Moe(s))) => moe.backward_weight(env, s, &act, grads)?,
            _ => return Err(super::out_of_order("block")),
        }
        saved.release();
        Ok(())
    }

    /// Backward for the weights of the attention half, of the norm after it and of the router.
    pub fn attention_weight(&self, env: &Env<'_>, saved: &mut Saved, grads: &mut [f32]) -> Result<()> {
        let attention = saved.attention.take().ok_or_else(|| super::out_of_order("attention"))?;
        ops::rms_norm_backward_weight(&env.factor(&saved.dh), &env.factor(&saved.x), &saved.rstd, &mut grads[self.norm.clone()])?;
        saved.dh = Vec::new();
        if let (Ffn::Moe(moe), Some(FfnSaved::Moe(s))) = (&self.ffn, &saved.ffn) {
            // The router's gradient needs the normalised rows in f32.
            moe.router_weight(env, s, &self.normalise(env, &saved.x)?.0, grads)?;
        }
        self.attention.backward_weight(env, attention, grads)?;
        saved.release();
        Ok(())
    }
}

impl Forward {
    /// The rows leave for their experts; nothing without experts, as for the next three.
    pub fn start_dispatch(&mut self, env: &Env<'_>) -> Result<()> {
        self.moe.as_mut().map_or(Ok(()), |moe| moe.start_dispatch(env))
    }

    /// The rows of this rank's experts are here.
    pub fn finish_dispatch(&mut self, env: &Env<'_>) -> Result<()> {
        self.moe.as_mut().map_or(Ok(()), |moe| moe.finish_dispatch(env))
    }

    /// The experts' outputs leave for their tokens.
    pub fn start_combine(&mut self, env: &Env<'_>) -> Result<()> {
        self.moe.as_mut().map_or(Ok(()), |moe| moe.start_combine(env))
    }

    /// The experts' outputs are here, and are added.
    pub fn finish_combine(&mut self, env: &Env<'_>, saved: &mut Saved) -> Result<()> {
        if let Some(moe) = self.moe.take() {
            saved.ffn = Some(FfnSaved::Moe(Box::new(moe.finish_combine(env, &mut self.y)?)));
        }
        Ok(())
    }

    /// The block's output.
    pub fn output(self, env: &Env<'_>, saved: &mut Saved) -> Vec<f32> {
        saved.h = (!env.recompute.norms).then_some(self.h);
        self.y
    }

    /// Bytes that will be kept, as far as they are there.
    pub fn bytes(&self) -> usize {
        self.h.bytes() + self.moe.as_ref().map_or(0, moe::Forward::bytes)
    }
}

impl Backward {
    /// Begins with the gradient of the block's output.
    pub fn new(dy: Vec<f32>) -> Self {
        Self { dy, dh: Vec::new(), moe: moe::Backward::default() }
    }

    /// The gradient leaves for the experts.
    pub fn start_combine(&mut self, env: &Env<'_>, saved: &mut Saved) -> Result<()> {
        match &mut saved.ffn {
            Some(FfnSaved::Moe(s)) => self.moe.start_combine(env, s, std::mem::take(&mut self.dy)),
            _ => Err(super::out_of_order("combine")),
        }
    }

    /// The gradients of the experts' outputs are here.
    pub fn finish_combine(&mut self, env: &Env<'_>) -> Result<()> {
        self.dy = self.moe.finish_combine(env)?;
        Ok(())
    }

    /// The gradients of the experts' inputs leave for their tokens.
    pub fn start_dispatch(&mut self, env: &Env<'_>) -> Result<()> {
        self.moe.start_dispatch(env)
    }

    /// The gradients of the experts' inputs are here.
    pub fn finish_dispatch(&mut self, env: &Env<'_>) -> Result<()> {
        self.moe.finish_dispatch(env)
    }
}

impl Saved {
    /// Drops what both components for weights read, once both are done.
    fn release(&mut self) {
        let networks = match &self.ffn {
            Some(FfnSaved::Dense(_)) => true,
            Some(FfnSaved::Moe(s)) => s.has_networks(),
            None => false,
        };
        if self.attention.is_none() && !networks {
            *self = Saved::default();
        }
    }

    /// Bytes kept, of the attention half and of the feed-forward half.
    pub fn bytes(&self) -> (usize, usize) {
        let ffn = match &self.ffn {
            Some(FfnSaved::Dense(s)) => s.bytes(),
            Some(FfnSaved::Moe(s)) => s.bytes(),
            None => 0,
        };
        let own = (self.x.len() + self.rstd.len() + self.dh.len()) * 4 + self.h.as_ref().map_or(0, Activation::bytes);
        (self.attention.as_ref().map_or(0, attention::Saved::bytes), own + ffn)
    }

    /// The router's choice of this block, if it has one.
    pub fn routing(&self) -> Option<&moe_dispatch::router::Routing> {
        match &self.ffn {
            Some(FfnSaved::Moe(s)) => Some(s.routing()),
            _ => None,
        }
    }
}
