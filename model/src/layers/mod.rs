//! The layers of the model: which piece computes what, on which parameters, and what the forward keeps for the backward.
//!
//! Every layer has three functions. `forward` returns the output and what it keeps; `backward_input` turns the gradient of
//! the output into that of the input and leaves in what was kept all that the weights' gradients still need;
//! `backward_weight` consumes it. A schedule may run the second and the third far apart: the weights are really deferred.

pub mod attention;
pub mod block;
pub mod exchange;
pub mod linear;
pub mod mlp;
pub mod moe;
pub mod tail;

use std::borrow::Cow;

use fp8_gemm::Precision;
use fp8_gemm::linear::Activation;
use mla_kernels::rope::{RopeTable, softmax_scale};
use moe_dispatch::Layout;
use moe_dispatch::router::RouterConfig;
use v3_ranks::{Comm, Lane};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::params::ParamStore;

/// What is computed again in the backward instead of being kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recompute {
    /// The outputs of all RMSNorms.
    pub norms: bool,
    /// Queries, keys and values, from their latents.
    pub up_projections: bool,
    /// The outputs of SwiGLU.
    pub swiglu: bool,
}

impl std::str::FromStr for Recompute {
    type Err = Error;

    /// A comma-separated list of `norm`, `mla-up` and `swiglu`; `all`, `none`.
    fn from_str(list: &str) -> Result<Self> {
        let mut r = Self::default();
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "norm" => r.norms = true,
                "mla-up" => r.up_projections = true,
                "swiglu" => r.swiglu = true,
                "all" => r = Self { norms: true, up_projections: true, swiglu: true },
                "none" => r = Self::default(),
                other => return Err(Error::option("--recompute", "a list of norm, mla-up, swiglu, or all or none", other)),
            }
        }
        Ok(r)
    }
}

/// What a mixture-of-experts layer reads beside its weights.
#[derive(Debug)]
pub struct MoeSettings {
    /// Router settings.
    pub router: RouterConfig,
    /// Which rank holds which experts.
    pub layout: Layout,
}

/// What does not change between the steps of a run: tables and settings derived from the configuration.
#[derive(Debug)]
pub struct Settings {
    /// Rotary tables.
    pub rope: RopeTable,
    /// Softmax scale.
    pub scale: f32,
    /// Router and placement of the experts, when there are any.
    pub moe: Option<MoeSettings>,
    /// Precision of the linear layers.
    pub precision: Precision,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// Epsilon of every RMSNorm.
    pub eps: f32,
    /// Hidden size.
    pub hidden: usize,
    /// Factor of the sequence-wise balance loss.
    pub balance_alpha: f32,
    /// A router whose logits are not finite reports a loss that is not, at the end of the step, instead of failing in the middle
    /// of it: how training learns on all ranks at once that it has diverged.
    pub report_divergence: bool,
    /// The backward for weights sums the absolute values of its terms: what the rounding error of a gradient is measured by.
    pub magnitudes: bool,
}

impl Settings {
    /// Derives the settings for an expert-parallel group of `ep_size` ranks.
    pub fn new(
        config: &Config,
        precision: Precision,
        recompute: Recompute,
        ep_size: usize,
        ranks_per_node: usize,
    ) -> Result<Self> {
        let rope = config.rope_config();
        let moe = match config.n_routed_experts {
            0 => None,
            n => Some(MoeSettings { router: config.router_config(), layout: Layout::new(n, ep_size, ranks_per_node)? }),
        };
        Ok(Self {
            scale: softmax_scale(config.qk_head_dim(), &rope),
            rope: RopeTable::new(&rope)?,
            moe,
            precision,
            recompute,
            eps: config.rms_norm_eps as f32,
            hidden: config.hidden_size,
            balance_alpha: 0.0,
            report_divergence: false,
            magnitudes: false,
        })
    }

    /// The environment of a call: these settings with the current parameters and the expert-parallel group.
    pub fn env<'a>(&'a self, store: &'a ParamStore, ep: &'a Comm) -> Env<'a> {
        Env {
            store,
            ep,
            lane: None,
            rope: &self.rope,
            moe: self.moe.as_ref(),
            precision: self.precision,
            recompute: self.recompute,
            eps: self.eps,
            scale: self.scale,
            hidden: self.hidden,
            balance_alpha: self.balance_alpha,
            report_divergence: self.report_divergence,
            magnitudes: self.magnitudes,
        }
    }
}

/// What every layer call reads.
#[derive(Debug, Clone, Copy)]
pub struct Env<'a> {
    /// Parameters.
    pub store: &'a ParamStore,
    /// The expert-parallel group.
    pub ep: &'a Comm,
    /// Where exchanges run while the rank computes, if they do.
    pub lane: Option<&'a Lane>,
    /// Rotary tables.
    pub rope: &'a RopeTable,
    /// Router and placement of the experts, when there are any.
    pub moe: Option<&'a MoeSettings>,
    /// Precision of the linear layers.
    pub precision: Precision,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// Epsilon of every RMSNorm.
    pub eps: f32,
    /// Softmax scale.
    pub scale: f32,
    /// Hidden size.
    pub hidden: usize,
    /// Factor of the sequence-wise balance loss.
    pub balance_alpha: f32,
    /// See [`Settings::report_divergence`].
    pub report_divergence: bool,
    /// See [`Settings::magnitudes`].
    pub magnitudes: bool,
}

impl<'a> Env<'a> {
    /// A factor of the weights' gradients: itself, or its absolute values when magnitudes are asked for.
    pub fn factor<'x>(&self, x: &'x [f32]) -> Cow<'x, [f32]> {
        if self.magnitudes { x.iter().map(|v| v.abs()).collect() } else { Cow::Borrowed(x) }
    }

    /// Router and placement; an error in a model without experts.
    pub fn moe(&self) -> Result<&'a MoeSettings> {
        self.moe.ok_or_else(|| out_of_order("router"))
    }

    /// A GEMM operand of `m` rows in the precision of the linear layers.
    pub fn activation(&self, x: Vec<f32>, m: usize, k: usize) -> Result<Activation> {
        Ok(Activation::from_vec(x, m, k, self.precision)?)
    }
}

/// The packed rows of one chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Where each sequence starts; one more entry than sequences.
    pub cu_seqlens: Vec<usize>,
    /// Position of each row.
    pub positions: Vec<u32>,
    /// Weight of a sequence's balance loss in the loss of the step.
    pub sequence_scale: f32,
}

impl Rows {
    /// `sequences` sequences of `len` rows, whose first position is `first`.
    pub fn uniform(sequences: usize, len: usize, first: u32, sequence_scale: f32) -> Self {
        Self {
            cu_seqlens: (0..=sequences).map(|s| s * len).collect(),
            positions: (0..sequences).flat_map(|_| first..first + len as u32).collect(),
            sequence_scale,
        }
    }

    /// Rows in all.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The length of each sequence.
    pub fn lengths(&self) -> Vec<usize> {
        self.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect()
    }
}

/// A part of a chunk that ran without what must precede it.
pub(crate) fn out_of_order(what: &'static str) -> Error {
    Error::Piece { piece: "v3-model", message: format!("{what}: a part ran before what it depends on") }
}
