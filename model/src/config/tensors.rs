//! Every tensor of a checkpoint, under its published name.

use super::Config;

/// What a tensor is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorKind {
    /// Weight `[out_features, in_features]` of a linear layer that FP8 checkpoints store as E4M3 with 128x128 scales.
    Linear,
    /// `eh_proj` of an MTP module: a linear layer whose weight published FP8 checkpoints leave in bf16.
    Projection,
    /// Weight of an RMSNorm.
    Norm,
    /// `[vocab_size, hidden_size]`: a row per token.
    Embedding,
    /// `[vocab_size, hidden_size]`: the output head.
    Head,
    /// `[n_routed_experts, hidden_size]`: the router.
    Router,
    /// `[n_routed_experts]`: added to affinities for selection only; moved by its own rule, not by gradient; f32.
    RouterBias,
}

impl TensorKind {
    /// Whether FP8 checkpoints, as published, store this tensor as E4M3.
    pub fn is_fp8_stored(self) -> bool {
        self == TensorKind::Linear
    }

    /// Whether it is the weight of a linear layer, stored in FP8 or not.
    pub fn is_linear(self) -> bool {
        matches!(self, TensorKind::Linear | TensorKind::Projection)
    }
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Published name.
    pub name: String,
    /// Shape; weights of linear layers are `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// What it is.
    pub kind: TensorKind,
    /// The layer it belongs to; MTP modules follow the last layer of the main model.
    pub layer: Option<usize>,
    /// For the embedding and the head of an MTP module, which the checkpoint repeats: the tensor of the main model that they
    /// are copies of.
    pub copy_of: Option<&'static str>,
}

impl TensorSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements; it always has some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Name of the scales of the FP8 weight `name`.
pub fn scale_name(name: &str) -> String {
    format!("{name}_scale_inv")
}

impl Config {
    /// Every tensor of a checkpoint of this configuration: the embedding, the layers in order, the final norm, the head, then
    /// the MTP modules. FP8 scales are not listed: [`TensorKind::is_fp8_stored`] tells which tensors may have them.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut out = Vec::new();
        let (vocab, d) = (self.vocab_size, self.hidden_size);
        let mut push = |name: String, shape: &[usize], kind, layer, copy_of| {
            out.push(TensorSpec { name, shape: shape.to_vec(), kind, layer, copy_of })
        };
        push(EMBEDDING.into(), &[vocab, d], TensorKind::Embedding, None, None);
        for layer in 0..self.num_hidden_layers {
            self.layer_tensors(layer, &mut |name, shape, kind| push(name, shape, kind, Some(layer), None));
        }
        push("model.norm.weight".into(), &[d], TensorKind::Norm, None, None);
        push(HEAD.into(), &[vocab, d], TensorKind::Head, None, None);
        for layer in self.mtp_layers() {
            let prefix = format!("model.layers.{layer}");
            let at = Some(layer);
            push(format!("{prefix}.embed_tokens.weight"), &[vocab, d], TensorKind::Embedding, at, Some(EMBEDDING));
            push(format!("{prefix}.enorm.weight"), &[d], TensorKind::Norm, at, None);
            push(format!("{prefix}.hnorm.weight"), &[d], TensorKind::Norm, at, None);
            push(format!("{prefix}.eh_proj.weight"), &[d, 2 * d], TensorKind::Projection, at, None);
            self.layer_tensors(layer, &mut |name, shape, kind| push(name, shape, kind, at, None));
            push(format!("{prefix}.shared_head.norm.weight"), &[d], TensorKind::Norm, at, None);
            push(format!("{prefix}.shared_head.head.weight"), &[vocab, d], TensorKind::Head, at, Some(HEAD));
        }
        out
    }

    /// Indices of the layers of the MTP modules.
    pub fn mtp_layers(&self) -> std::ops::Range<usize> {
        self.num_hidden_layers..self.num_hidden_layers + self.num_nextn_predict_layers
    }

    /// The tensors of one transformer block, attention first.
    fn layer_tensors(&self, layer: usize, push: &mut dyn FnMut(String, &[usize], TensorKind)) {
        use TensorKind::{Linear, Norm, Router, RouterBias};
        let (d, heads) = (self.hidden_size, self.num_attention_heads);
        let prefix = format!("model.layers.{layer}");
        let attention = format!("{prefix}.self_attn");
        let query = heads * self.qk_head_dim();
        push(format!("{prefix}.input_layernorm.weight"), &[d], Norm);
        match self.q_lora_rank {
            Some(rank) => {
                push(format!("{attention}.q_a_proj.weight"), &[rank, d], Linear);
                push(format!("{attention}.q_a_layernorm.weight"), &[rank], Norm);
                push(format!("{attention}.q_b_proj.weight"), &[query, rank], Linear);
            }
            None => push(format!("{attention}.q_proj.weight"), &[query, d], Linear),
        }
        let latent = self.kv_lora_rank;
        push(format!("{attention}.kv_a_proj_with_mqa.weight"), &[latent + self.qk_rope_head_dim, d], Linear);
        push(format!("{attention}.kv_a_layernorm.weight"), &[latent], Norm);
        let up = heads * (self.qk_nope_head_dim + self.v_head_dim);
        push(format!("{attention}.kv_b_proj.weight"), &[up, latent], Linear);
        push(format!("{attention}.o_proj.weight"), &[d, heads * self.v_head_dim], Linear);
        push(format!("{prefix}.post_attention_layernorm.weight"), &[d], Norm);

        let mlp = format!("{prefix}.mlp");
        let feed_forward = |at: &str, inner: usize, push: &mut dyn FnMut(String, &[usize], TensorKind)| {
            push(format!("{at}.gate_proj.weight"), &[inner, d], Linear);
            push(format!("{at}.up_proj.weight"), &[inner, d], Linear);
            push(format!("{at}.down_proj.weight"), &[d, inner], Linear);
        };
        if !self.is_moe(layer) {
            feed_forward(&mlp, self.intermediate_size, push);
            return;
        }
        let experts = self.n_routed_experts;
        push(format!("{mlp}.gate.weight"), &[experts, d], Router);
        push(format!("{mlp}.gate.e_score_correction_bias"), &[experts], RouterBias);
        for expert in 0..experts {
            feed_forward(&format!("{mlp}.experts.{expert}"), self.moe_intermediate_size, push);
        }
        if self.n_shared_experts > 0 {
            feed_forward(&format!("{mlp}.shared_experts"), self.shared_intermediate_size(), push);
        }
    }

    /// Number of parameters, the repeated embedding and head of MTP modules counted once.
    pub fn parameter_count(&self) -> u64 {
        self.tensors().iter().filter(|t| t.copy_of.is_none()).map(|t| t.len() as u64).sum()
    }
}

/// Published name of the embedding.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// Published name of the output head.
const HEAD: &str = "lm_head.weight";
