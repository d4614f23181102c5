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

/// What the forward leaves for the backward.
#[derive(Debug)]
pub struct Saved {
    attention: attention::Saved,
    x: Vec<f32>,
    rstd: Vec<f32>,
    h: Option<Activation>,
    ffn: FfnSaved,
    dh: Vec<f32>,
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

    /// The feed-forward half alone on rows `x`, for inference: `x + ffn(norm(x))`.
    pub fn ffn_inference(&self, env: &Env<'_>, rows: &Rows, x: Vec<f32>) -> Result<Vec<f32>> {
        Ok(self.ffn_forward(env, rows, x)?.0)
    }

    fn ffn_forward(&self, env: &Env<'_>, rows: &Rows, x: Vec<f32>) -> Result<(Vec<f32>, FfnState, Option<RouterReport>)> {
        let m = rows.len();
        let (h, rstd) = self.normalise(env, &x)?;
        let mut y = x.clone();
        let (act, ffn, report) = match &self.ffn {
            Ffn::Dense(mlp) => {
                let act = env.activation(h, m, env.hidden)?;
                let (out, saved) = mlp.forward(env, &act, &[0, m])?;
                ops::add_assign(&mut y, &out)?;
                (act, FfnSaved::Dense(saved), None)
            }
            Ffn::Moe(moe) => {
                let act = Activation::new(&h, m, env.hidden, env.precision)?;
                let (saved, report) = moe.forward(env, rows, &h, &act, &mut y)?;
                (act, FfnSaved::Moe(Box::new(saved)), Some(report))
            }
        };
        Ok((y, FfnState { x, rstd, act, ffn }, report))
    }

    /// Forward of one chunk.
    pub fn forward(&self, env: &Env<'_>, rows: &Rows, x: Vec<f32>) -> Result<(Vec<f32>, Saved, Option<RouterReport>)> {
        let (x, attention) = self.attention.forward(env, rows, x)?;
        let (y, state, report) = self.ffn_forward(env, rows, x)?;
        let FfnState { x, rstd, act, ffn } = state;
        let h = (!env.recompute.norms).then_some(act);
        Ok((y, Saved { attention, x, rstd, h, ffn, dh: Vec::new() }, report))
    }

    /// Backward for inputs.
    pub fn backward_input(&self, env: &Env<'_>, rows: &Rows, saved: &mut Saved, dy: Vec<f32>) -> Result<Vec<f32>> {
        let m = rows.len();
        let mut dh = vec![0.0; m * env.hidden];
        let mut dx = dy.clone();
        match (&self.ffn, &mut saved.ffn) {
            (Ffn::Dense(mlp), FfnSaved::Dense(s)) => {
                mlp.backward_input(s, &[0, m], dy, MatMut::new(&mut dh, m, env.hidden)?, false)?;
            }
            (Ffn::Moe(moe), FfnSaved::Moe(s)) => moe.backward_input(env, s, &dy, &mut dh)?,
            _ => return Err(super::out_of_order("block")),
        }
        let mut dnorm = vec![0.0; dx.len()];
        ops::rms_norm_backward_input(&dh, &saved.x, env.store.at(&self.norm), &saved.rstd, &mut dnorm)?;
        ops::add_assign(&mut dx, &dnorm)?;
        saved.dh = dh;
        self.attention.backward_input(env, rows, &mut saved.attention, dx)
    }

    /// Backward for weights.
    pub fn backward_weight(&self, env: &Env<'_>, saved: Saved, grads: &mut [f32]) -> Result<()> {
        let m = saved.rstd.len();
        ops::rms_norm_backward_weight(&env.factor(&saved.dh), &env.factor(&saved.x), &saved.rstd, &mut grads[self.norm.clone()])?;
        // The router's gradient needs the normalised rows in f32; so does a GEMM operand that was not kept.
        let needs_h = saved.h.is_none() || matches!(self.ffn, Ffn::Moe(_));
        let h = if needs_h { self.normalise(env, &saved.x)?.0 } else { Vec::new() };
        let act = match saved.h {
            Some(act) => act,
            None => Activation::new(&h, m, env.hidden, env.precision)?,
        };
        match (&self.ffn, saved.ffn) {
            (Ffn::Dense(mlp), FfnSaved::Dense(s)) => mlp.backward_weight(env, s, &act, &[0, m], grads)?,
            (Ffn::Moe(moe), FfnSaved::Moe(s)) => moe.backward_weight(env, *s, &h, &act, grads)?,
            _ => return Err(super::out_of_order("block")),
        }
        self.attention.backward_weight(env, saved.attention, grads)
    }
}

struct FfnState {
    x: Vec<f32>,
    rstd: Vec<f32>,
    act: Activation,
    ffn: FfnSaved,
}

impl Saved {
    /// Bytes kept, of the attention half and of the feed-forward half.
    pub fn bytes(&self) -> (usize, usize) {
        let ffn = match &self.ffn {
            FfnSaved::Dense(s) => s.bytes(),
            FfnSaved::Moe(s) => s.bytes(),
        };
        let own = (self.x.len() + self.rstd.len() + self.dh.len()) * 4 + self.h.as_ref().map_or(0, Activation::bytes);
        (self.attention.bytes(), own + ffn)
    }

    /// The router's choice of this block, if it has one.
    pub fn routing(&self) -> Option<&moe_dispatch::router::Routing> {
        match &self.ffn {
            FfnSaved::Dense(_) => None,
            FfnSaved::Moe(s) => Some(s.routing()),
        }
    }
}
