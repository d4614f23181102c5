//! The attention half of a block: `y = x + o_proj(attention(norm(x)))`, with its backward for inputs and for weights apart.

use std::borrow::Cow;
use std::ops::Range;

use fp8_gemm::Precision;
use fp8_gemm::linear::Activation;
use mla_kernels::{PrefillShape, prefill_backward, prefill_forward};
use v3_numerics::ops;
use v3_numerics::view::MatMut;

use super::linear::{Linear, Packing, columns, columns_mut};
use super::{Env, Rows};
use crate::config::Config;
use crate::error::Result;
use crate::params::ParamStore;

/// Sizes of multi-head latent attention, in the order of the columns that the input projections write.
#[derive(Debug, Clone)]
pub struct Dims {
    /// Hidden size.
    pub hidden: usize,
    /// Heads.
    pub heads: usize,
    /// Query and key columns of a head without position.
    pub nope: usize,
    /// Query and key columns of a head with position.
    pub rope: usize,
    /// Value columns of a head.
    pub v: usize,
    /// Rank of the compressed query; `None` without query compression.
    pub q_lora: Option<usize>,
    /// Rank of the latent that keys and values share.
    pub kv_lora: usize,
}

impl Dims {
    /// The sizes that `config` gives.
    pub fn new(config: &Config) -> Self {
        Self {
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            nope: config.qk_nope_head_dim,
            rope: config.qk_rope_head_dim,
            v: config.v_head_dim,
            q_lora: config.q_lora_rank,
            kv_lora: config.kv_lora_rank,
        }
    }

    /// Columns of a head's query.
    pub fn qk(&self) -> usize {
        self.nope + self.rope
    }

    /// Columns of the fused input projection: the compressed query where there is one, the latent, the shared rotary key.
    pub fn down(&self) -> usize {
        self.q_lora.unwrap_or(0) + self.kv_lora + self.rope
    }

    /// Columns of the compressed query in the fused input projection.
    pub fn q_columns(&self) -> Range<usize> {
        0..self.q_lora.unwrap_or(0)
    }

    /// Columns of the latent in the fused input projection.
    pub fn kv_columns(&self) -> Range<usize> {
        let start = self.q_lora.unwrap_or(0);
        start..start + self.kv_lora
    }

    /// Columns of the shared rotary key in the fused input projection.
    pub fn rope_columns(&self) -> Range<usize> {
        self.down() - self.rope..self.down()
    }

    fn shape(&self) -> PrefillShape {
        PrefillShape { heads: self.heads, d_nope: self.nope, d_rope: self.rope, d_v: self.v }
    }
}

/// The weights of one attention half.
#[derive(Debug)]
pub struct Attention {
    /// Sizes.
    pub dims: Dims,
    /// `input_layernorm`.
    pub norm: Range<usize>,
    /// `q_a_proj` (when there is one) and `kv_a_proj_with_mqa`, side by side.
    pub down: Linear,
    /// `q_a_layernorm`, when the query is compressed.
    pub q_norm: Option<Range<usize>>,
    /// `q_b_proj`, or `q_proj` without query compression.
    pub q_up: Linear,
    /// `kv_a_layernorm`.
    pub kv_norm: Range<usize>,
    /// `kv_b_proj`.
    pub kv_up: Linear,
    /// `kv_b_proj` in the parameter buffer, for absorption.
    pub kv_up_range: Range<usize>,
    /// `o_proj`.
    pub out: Linear,
}

/// What the forward of one chunk leaves for its backward.
#[derive(Debug)]
pub struct Saved {
    x: Vec<f32>,
    rstd: Vec<f32>,
    h: Option<Activation>,
    down: Vec<f32>,
    q_rstd: Vec<f32>,
    kv_rstd: Vec<f32>,
    q_latent: Option<Activation>,
    kv_latent: Option<Activation>,
    q: Option<Vec<f32>>,
    kv: Option<Vec<f32>>,
    k_rope: Vec<f32>,
    out: Activation,
    lse: Vec<f32>,
    deferred: Option<Deferred>,
}

/// What the backward for inputs leaves for the backward for weights.
#[derive(Debug)]
struct Deferred {
    dy: Vec<f32>,
    dq: Vec<f32>,
    dkv: Vec<f32>,
    dq_latent: Vec<f32>,
    dkv_latent: Vec<f32>,
    ddown: Vec<f32>,
    dh: Vec<f32>,
}

/// The names of the tensors of a layer, in the memory order this module wants.
pub fn tensor_names(layer: usize, q_lora: bool) -> Vec<String> {
    let attention: &[&str] = if q_lora {
        &["q_a_proj.weight", "kv_a_proj_with_mqa.weight", "q_b_proj.weight", "q_a_layernorm.weight"]
    } else {
        &["kv_a_proj_with_mqa.weight", "q_proj.weight"]
    };
    let common = ["kv_b_proj.weight", "kv_a_layernorm.weight", "o_proj.weight"];
    let mut names = vec![format!("model.layers.{layer}.input_layernorm.weight")];
    names.extend(attention.iter().chain(&common).map(|n| format!("model.layers.{layer}.self_attn.{n}")));
    names
}

impl Attention {
    /// Packs the weights of `layer`.
    pub fn new(config: &Config, layer: usize, store: &ParamStore, precision: Precision, packing: Packing) -> Result<Self> {
        let dims = Dims::new(config);
        let name = |n: &str| format!("model.layers.{layer}.self_attn.{n}.weight");
        let linear = |names: &[String]| Linear::new(store, names, precision, packing);
        let (down, q_up, q_norm) = if dims.q_lora.is_some() {
            let down = linear(&[name("q_a_proj"), name("kv_a_proj_with_mqa")])?;
            (down, linear(&[name("q_b_proj")])?, Some(store.param(&name("q_a_layernorm"))?.range()))
        } else {
            (linear(&[name("kv_a_proj_with_mqa")])?, linear(&[name("q_proj")])?, None)
        };
        Ok(Self {
            norm: store.param(&format!("model.layers.{layer}.input_layernorm.weight"))?.range(),
            down,
            q_norm,
            q_up,
            kv_norm: store.param(&name("kv_a_layernorm"))?.range(),
            kv_up: linear(&[name("kv_b_proj")])?,
            kv_up_range: store.param(&name("kv_b_proj"))?.range(),
            out: linear(&[name("o_proj")])?,
            dims,
        })
    }

    /// Packs the current values again.
    pub fn pack(&mut self, store: &ParamStore) -> Result<()> {
        for linear in [&mut self.down, &mut self.q_up, &mut self.kv_up, &mut self.out] {
            linear.pack(store, Packing::Training)?;
        }
        Ok(())
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        [&self.down, &self.q_up, &self.kv_up, &self.out].map(Linear::bytes).iter().sum()
    }

    /// RMSNorm of some columns of the input projections, as a GEMM operand. Returns the reciprocal deviations as well.
    pub fn latent(&self, env: &Env<'_>, down: &[f32], cols: &Range<usize>, norm: &Range<usize>) -> Result<(Vec<f32>, Vec<f32>)> {
        let m = down.len() / self.dims.down();
        let (mut y, mut rstd) = (vec![0.0; m * cols.len()], vec![0.0; m]);
        let view = columns(down, m, self.dims.down(), cols)?;
        ops::rms_norm_strided(view, env.store.at(norm), env.eps, MatMut::new(&mut y, m, cols.len())?, &mut rstd)?;
        Ok((y, rstd))
    }

    /// The rotary part of all heads' queries, in place.
    pub fn rope_queries(&self, env: &Env<'_>, q: &mut [f32], positions: &[u32], inverse: bool) -> Result<()> {
        let d = &self.dims;
        Ok(env.rope.apply(q, positions.len(), d.heads * d.qk(), d.nope, d.heads, d.qk(), positions, inverse)?)
    }

    /// The shared rotary key of each row, rotated.
    pub fn rope_key(&self, env: &Env<'_>, down: &[f32], positions: &[u32]) -> Result<Vec<f32>> {
        let cols = self.dims.rope_columns();
        let mut key: Vec<f32> = down.chunks_exact(self.dims.down()).flat_map(|r| r[cols.clone()].iter().copied()).collect();
        env.rope.apply(&mut key, positions.len(), cols.len(), 0, 1, cols.len(), positions, false)?;
        Ok(key)
    }

    fn queries(&self, env: &Env<'_>, input: &Activation, positions: &[u32]) -> Result<Vec<f32>> {
        let mut q = self.q_up.forward(input)?;
        self.rope_queries(env, &mut q, positions, false)?;
        Ok(q)
    }

    /// Forward of packed sequences. Returns `x + attention` and what the backward needs.
    pub fn forward(&self, env: &Env<'_>, rows: &Rows, x: Vec<f32>) -> Result<(Vec<f32>, Saved)> {
        let (d, m) = (&self.dims, rows.len());
        let (mut h, mut rstd) = (vec![0.0; x.len()], vec![0.0; m]);
        ops::rms_norm(&x, env.store.at(&self.norm), env.eps, &mut h, &mut rstd)?;
        let h = env.activation(h, m, d.hidden)?;
        let down = self.down.forward(&h)?;
        let (q_latent, q_rstd) = match &self.q_norm {
            Some(norm) => {
                let (y, rstd) = self.latent(env, &down, &d.q_columns(), norm)?;
                (Some(env.activation(y, m, d.q_columns().len())?), rstd)
            }
            None => (None, Vec::new()),
        };
        let (kv_latent, kv_rstd) = self.latent(env, &down, &d.kv_columns(), &self.kv_norm)?;
        let kv_latent = env.activation(kv_latent, m, d.kv_lora)?;
        let q = self.queries(env, q_latent.as_ref().unwrap_or(&h), &rows.positions)?;
        let kv = self.kv_up.forward(&kv_latent)?;
        let k_rope = self.rope_key(env, &down, &rows.positions)?;
        let (mut out, mut lse) = (vec![0.0; m * d.heads * d.v], vec![0.0; m * d.heads]);
        prefill_forward(&d.shape(), env.scale, &rows.cu_seqlens, &q, &kv, &k_rope, &mut out, &mut lse)?;
        let (mut y, out) = if env.precision == Precision::Fp8 {
            // The input of the output projection is read again by the attention's own backward, which is sensitive to its
            // rounding: it is kept in 12 bits, made from the unrounded values.
            let y = self.out.forward(&Activation::new(&out, m, d.heads * d.v, env.precision)?)?;
            (y, Activation::from_vec(out, m, d.heads * d.v, Precision::F32)?.to_e5m6())
        } else {
            let out = env.activation(out, m, d.heads * d.v)?;
            (self.out.forward(&out)?, out)
        };
        ops::add_assign(&mut y, &x)?;
        let keep_norms = !env.recompute.norms;
        let saved = Saved {
            x,
            rstd,
            h: keep_norms.then_some(h),
            down,
            q_rstd,
            kv_rstd,
            q_latent: q_latent.filter(|_| keep_norms),
            kv_latent: keep_norms.then_some(kv_latent),
            q: (!env.recompute.up_projections).then_some(q),
            kv: (!env.recompute.up_projections).then_some(kv),
            k_rope,
            out,
            lse,
            deferred: None,
        };
        Ok((y, saved))
    }

    /// The normalised inputs, kept or made again: of the input projections, the query projection and the key-value projection.
    fn inputs<'s>(&self, env: &Env<'_>, saved: &'s Saved) -> Result<Inputs<'s>> {
        let (d, m) = (&self.dims, saved.rstd.len());
        let h = match &saved.h {
            Some(h) => Cow::Borrowed(h),
            None => {
                let (mut h, mut rstd) = (vec![0.0; saved.x.len()], vec![0.0; m]);
                ops::rms_norm(&saved.x, env.store.at(&self.norm), env.eps, &mut h, &mut rstd)?;
                Cow::Owned(env.activation(h, m, d.hidden)?)
            }
        };
        let q_latent = match (&saved.q_latent, &self.q_norm) {
            (Some(q), _) => Some(Cow::Borrowed(q)),
            (None, Some(norm)) => {
                let (y, _) = self.latent(env, &saved.down, &d.q_columns(), norm)?;
                Some(Cow::Owned(env.activation(y, m, d.q_columns().len())?))
            }
            (None, None) => None,
        };
        let kv_latent = match &saved.kv_latent {
            Some(kv) => Cow::Borrowed(kv),
            None => {
                let (y, _) = self.latent(env, &saved.down, &d.kv_columns(), &self.kv_norm)?;
                Cow::Owned(env.activation(y, m, d.kv_lora)?)
            }
        };
        Ok(Inputs { h, q_latent, kv_latent })
    }

    /// Backward for inputs: the gradient of `x` from that of `y`.
    pub fn backward_input(&self, env: &Env<'_>, rows: &Rows, saved: &mut Saved, dy: Vec<f32>) -> Result<Vec<f32>> {
        let (d, m) = (&self.dims, rows.len());
        let (q, kv) = match (saved.q.take(), saved.kv.take()) {
            (Some(q), Some(kv)) => (q, kv),
            _ => {
                let inputs = self.inputs(env, saved)?;
                let q = self.queries(env, inputs.q_latent.as_ref().unwrap_or(&inputs.h), &rows.positions)?;
                (q, self.kv_up.forward(&inputs.kv_latent)?)
            }
        };
        let mut dout = vec![0.0; m * d.heads * d.v];
        self.out.backward_input(&dy, MatMut::new(&mut dout, m, d.heads * d.v)?, false)?;
        let (mut dq, mut dkv, mut dk_rope) = (vec![0.0; q.len()], vec![0.0; kv.len()], vec![0.0; saved.k_rope.len()]);
        let out = saved.out.to_f32();
        prefill_backward(
            &d.shape(),
            env.scale,
            &rows.cu_seqlens,
            &q,
            &kv,
            &saved.k_rope,
            &out,
            &saved.lse,
            &dout,
            &mut dq,
            &mut dkv,
            &mut dk_rope,
        )?;
        drop((q, kv, dout));
        self.rope_queries(env, &mut dq, &rows.positions, true)?;
        env.rope.apply(&mut dk_rope, m, d.rope, 0, 1, d.rope, &rows.positions, true)?;

        let mut ddown = vec![0.0; m * d.down()];
        for (row, key) in ddown.chunks_exact_mut(d.down()).zip(dk_rope.chunks_exact(d.rope)) {
            row[d.rope_columns()].copy_from_slice(key);
        }
        let mut dh = vec![0.0; m * d.hidden];
        let mut dq_latent = Vec::new();
        if let Some(norm) = &self.q_norm {
            let cols = d.q_columns();
            dq_latent = vec![0.0; m * cols.len()];
            self.q_up.backward_input(&dq, MatMut::new(&mut dq_latent, m, cols.len())?, false)?;
            self.latent_backward(env, saved, &dq_latent, &cols, norm, &saved.q_rstd, &mut ddown)?;
        }
        let mut dkv_latent = vec![0.0; m * d.kv_lora];
        self.kv_up.backward_input(&dkv, MatMut::new(&mut dkv_latent, m, d.kv_lora)?, false)?;
        self.latent_backward(env, saved, &dkv_latent, &d.kv_columns(), &self.kv_norm, &saved.kv_rstd, &mut ddown)?;
        self.down.backward_input(&ddown, MatMut::new(&mut dh, m, d.hidden)?, false)?;
        if self.q_norm.is_none() {
            self.q_up.backward_input(&dq, MatMut::new(&mut dh, m, d.hidden)?, true)?;
        }
        let mut dx = vec![0.0; saved.x.len()];
        ops::rms_norm_backward_input(&dh, &saved.x, env.store.at(&self.norm), &saved.rstd, &mut dx)?;
        ops::add_assign(&mut dx, &dy)?;
        saved.deferred = Some(Deferred { dy, dq, dkv, dq_latent, dkv_latent, ddown, dh });
        Ok(dx)
    }

    fn latent_backward(
        &self,
        env: &Env<'_>,
        saved: &Saved,
        dy: &[f32],
        cols: &Range<usize>,
        norm: &Range<usize>,
        rstd: &[f32],
        ddown: &mut [f32],
    ) -> Result<()> {
        let (m, width) = (rstd.len(), self.dims.down());
        let x = columns(&saved.down, m, width, cols)?;
        let dx = columns_mut(ddown, m, width, cols)?;
        let dy = columns(dy, m, cols.len(), &(0..cols.len()))?;
        Ok(ops::rms_norm_backward_input_strided(dy, x, env.store.at(norm), rstd, dx)?)
    }

    /// Backward for weights, from what the backward for inputs left.
    pub fn backward_weight(&self, env: &Env<'_>, saved: Saved, grads: &mut [f32]) -> Result<()> {
        let Some(w) = &saved.deferred else {
            return Err(super::out_of_order("attention"));
        };
        let (d, m) = (&self.dims, saved.rstd.len());
        let inputs = self.inputs(env, &saved)?;
        self.out.backward_weight(env, &saved.out, &w.dy, grads)?;
        self.q_up.backward_weight(env, inputs.q_latent.as_ref().unwrap_or(&inputs.h), &w.dq, grads)?;
        self.kv_up.backward_weight(env, &inputs.kv_latent, &w.dkv, grads)?;
        self.down.backward_weight(env, &inputs.h, &w.ddown, grads)?;
        let down = env.factor(&saved.down);
        let mut norm_weight = |dy: &[f32], cols: Range<usize>, rstd: &[f32], norm: &Range<usize>| -> Result<()> {
            let dy = env.factor(dy);
            let x = columns(&down, m, d.down(), &cols)?;
            let dy = columns(&dy, m, cols.len(), &(0..cols.len()))?;
            Ok(ops::rms_norm_backward_weight_strided(dy, x, rstd, &mut grads[norm.clone()])?)
        };
        if let Some(norm) = &self.q_norm {
            norm_weight(&w.dq_latent, d.q_columns(), &saved.q_rstd, norm)?;
        }
        norm_weight(&w.dkv_latent, d.kv_columns(), &saved.kv_rstd, &self.kv_norm)?;
        Ok(ops::rms_norm_backward_weight(&env.factor(&w.dh), &env.factor(&saved.x), &saved.rstd, &mut grads[self.norm.clone()])?)
    }
}

struct Inputs<'a> {
    h: Cow<'a, Activation>,
    q_latent: Option<Cow<'a, Activation>>,
    kv_latent: Cow<'a, Activation>,
}

impl Saved {
    /// Bytes kept until the backward for inputs, and bytes kept beyond it for the backward for weights.
    pub fn bytes(&self) -> usize {
        let f32s = self.x.len() + self.rstd.len() + self.down.len() + self.q_rstd.len() + self.kv_rstd.len() + self.k_rope.len();
        let options = [&self.q, &self.kv].iter().map(|v| v.as_ref().map_or(0, Vec::len)).sum::<usize>();
        let kept =
            [&self.h, &self.q_latent, &self.kv_latent].iter().map(|a| a.as_ref().map_or(0, Activation::bytes)).sum::<usize>();
        let deferred = self
            .deferred
            .as_ref()
            .map_or(0, |w| [&w.dy, &w.dq, &w.dkv, &w.dq_latent, &w.dkv_latent, &w.ddown, &w.dh].iter().map(|v| v.len()).sum());
        (f32s + self.lse.len() + options + deferred) * 4 + kept + self.out.bytes()
    }
}
