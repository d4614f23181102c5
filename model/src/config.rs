//! `config.json` of a DeepSeek-V3-format checkpoint.
//!
//! Fields bear their published names. Both spellings of the rotary embedding are read: `rope_theta` with `rope_scaling`, as
//! published, and the newer `rope_parameters`; a configuration is written back in the spelling it was read in, with every field
//! that this program does not know kept as it was.
//!
//! What would change results but is not implemented is refused by name rather than ignored: other activations, other router
//! scores, biases in attention, tied embeddings, other rotary scalings, other quantisations.

mod fields;
mod tensors;

use std::path::Path;

use mla_kernels::rope::RopeConfig;
use moe_dispatch::router::{GroupScore, RouterConfig, Scoring};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use fields::Fields;
pub use tensors::{TensorKind, TensorSpec, scale_name};

/// How router logits become affinities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoringFunc {
    /// Each expert on its own: 1 / (1 + exp(-logit)).
    Sigmoid,
    /// Normalised over the experts.
    Softmax,
}

impl ScoringFunc {
    fn name(self) -> &'static str {
        match self {
            ScoringFunc::Sigmoid => "sigmoid",
            ScoringFunc::Softmax => "softmax",
        }
    }
}

/// YaRN context extension, as in `rope_scaling` of the published checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// Extended over original context length.
    pub factor: f64,
    /// Context length before the extension.
    pub original_max_position_embeddings: usize,
    /// Rotations over the original context above which a dimension keeps its frequency.
    pub beta_fast: f64,
    /// Rotations below which a dimension is interpolated by `factor`.
    pub beta_slow: f64,
    /// Coefficient of the attention temperature that multiplies cosine and sine.
    pub mscale: f64,
    /// Coefficient of the attention temperature that multiplies the softmax scale; 0 means none.
    pub mscale_all_dim: f64,
}

/// A DeepSeek-V3 configuration. Build one with [`Config::from_json_str`] or [`Config::from_file`], which validate; after changing
/// a field by hand call [`Config::validate`]. Two are equal when they are written alike.
#[derive(Debug, Clone)]
pub struct Config {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the dense feed-forward layers.
    pub intermediate_size: usize,
    /// Inner width of one expert.
    pub moe_intermediate_size: usize,
    /// Number of layers of the main model.
    pub num_hidden_layers: usize,
    /// Number of multi-token-prediction modules; module k (from 1) is layer `num_hidden_layers + k - 1` of the checkpoint.
    pub num_nextn_predict_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Rank of the query compression; `None` for queries projected directly.
    pub q_lora_rank: Option<usize>,
    /// Rank of the latent from which keys and values are made.
    pub kv_lora_rank: usize,
    /// Width of the part of a head's query and key that carries no position.
    pub qk_nope_head_dim: usize,
    /// Width of the rotary part; even.
    pub qk_rope_head_dim: usize,
    /// Width of a head's value.
    pub v_head_dim: usize,
    /// Number of routed experts of a mixture layer; 0 when every layer is dense.
    pub n_routed_experts: usize,
    /// Number of shared experts, which are one feed-forward of `n_shared_experts * moe_intermediate_size`; 0 for none.
    pub n_shared_experts: usize,
    /// Routed experts that a token visits.
    pub num_experts_per_tok: usize,
    /// Groups into which the routed experts are divided.
    pub n_group: usize,
    /// Groups from which a token's experts are taken.
    pub topk_group: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    pub norm_topk_prob: bool,
    /// What the weights are multiplied by at the end.
    pub routed_scaling_factor: f64,
    /// How router logits become affinities.
    pub scoring_func: ScoringFunc,
    /// The first so many layers are dense.
    pub first_k_dense_replace: usize,
    /// After those, every so many-th layer (by index) is a mixture; 1 in published checkpoints.
    pub moe_layer_freq: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Context extension, if any.
    pub yarn: Option<Yarn>,
    /// Whether rotary pairs are neighbours (2i, 2i+1), as in published checkpoints, or halves (i, i + d/2).
    pub rope_interleave: bool,
    /// Positions that the model is made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// The configuration as read; unknown fields live here.
    raw: Map<String, Value>,
}

/// Largest value of any one size; keeps every product of two within 64 bits.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 10_000;
const MAX_EXPERTS: usize = 1 << 16;
/// Largest number of expert tensors; the published models have 45 thousand.
const MAX_EXPERT_TENSORS: usize = 1 << 20;
/// Largest number of elements of one tensor.
const MAX_ELEMENTS: u128 = 1 << 40;

/// Side of the square blocks of FP8 weights.
pub const FP8_BLOCK: usize = 128;

impl Config {
    /// Reads and validates a `config.json`.
    pub fn from_file(path: &Path) -> Result<Config> {
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let text = std::str::from_utf8(&text).map_err(|e| Error::file(path, "UTF-8 text", e))?;
        let value: Value = serde_json::from_str(text).map_err(|e| Error::file(path, "a JSON object", e))?;
        Config::from_json(value).map_err(|e| e.in_file(path))
    }

    /// Reads and validates the text of a `config.json`.
    pub fn from_json_str(text: &str) -> Result<Config> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::config("text", "a JSON object", e))?;
        Config::from_json(value)
    }

    /// Reads and validates a configuration.
    pub fn from_json(value: Value) -> Result<Config> {
        let Value::Object(raw) = value else {
            return Err(Error::config("text", "a JSON object", fields::brief(&value)));
        };
        let f = Fields(&raw);
        f.supported_model()?;
        let num_hidden_layers = f.size("num_hidden_layers", MAX_LAYERS)?;
        let num_attention_heads = f.size("num_attention_heads", MAX_SIZE)?;
        if let Some(kv_heads) = f.optional_count("num_key_value_heads", MAX_SIZE)?
            && kv_heads != num_attention_heads
        {
            return Err(Error::config(
                "num_key_value_heads",
                format!("num_attention_heads = {num_attention_heads}, since every head has its own key and value"),
                kv_heads,
            ));
        }
        let n_routed_experts = f.optional_count("n_routed_experts", MAX_EXPERTS)?.unwrap_or(0);
        let moe = n_routed_experts > 0;
        // Fields that only a mixture needs may be missing from a dense model.
        let moe_size = |name, dense| if moe || f.present(name) { f.size(name, MAX_SIZE) } else { Ok(dense) };
        let (rope_theta, yarn) = f.rope()?;
        let config = Config {
            vocab_size: f.size("vocab_size", MAX_SIZE)?,
            hidden_size: f.size("hidden_size", MAX_SIZE)?,
            intermediate_size: f.size("intermediate_size", MAX_SIZE)?,
            moe_intermediate_size: moe_size("moe_intermediate_size", 1)?,
            num_hidden_layers,
            num_nextn_predict_layers: f.optional_count("num_nextn_predict_layers", MAX_LAYERS)?.unwrap_or(0),
            num_attention_heads,
            q_lora_rank: f.nullable_size("q_lora_rank", MAX_SIZE)?,
            kv_lora_rank: f.size("kv_lora_rank", MAX_SIZE)?,
            qk_nope_head_dim: f.size("qk_nope_head_dim", MAX_SIZE)?,
            qk_rope_head_dim: f.size("qk_rope_head_dim", MAX_SIZE)?,
            v_head_dim: f.size("v_head_dim", MAX_SIZE)?,
            n_routed_experts,
            n_shared_experts: f.optional_count("n_shared_experts", MAX_EXPERTS)?.unwrap_or(0),
            num_experts_per_tok: moe_size("num_experts_per_tok", 1)?,
            n_group: f.optional_size("n_group", MAX_EXPERTS)?.unwrap_or(1),
            topk_group: f.optional_size("topk_group", MAX_EXPERTS)?.unwrap_or(1),
            norm_topk_prob: f.optional_bool("norm_topk_prob")?.unwrap_or(true),
            routed_scaling_factor: if moe || f.present("routed_scaling_factor") {
                f.number("routed_scaling_factor")?
            } else {
                1.0
            },
            scoring_func: f.scoring_func()?,
            first_k_dense_replace: if moe || f.present("first_k_dense_replace") {
                f.count("first_k_dense_replace", MAX_LAYERS)?
            } else {
                num_hidden_layers
            },
            moe_layer_freq: f.optional_size("moe_layer_freq", MAX_LAYERS)?.unwrap_or(1),
            rope_theta,
            yarn,
            rope_interleave: f.optional_bool("rope_interleave")?.unwrap_or(true),
            max_position_embeddings: f.size("max_position_embeddings", u32::MAX as usize)?,
            rms_norm_eps: f.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
            initializer_range: f.optional_number("initializer_range")?.unwrap_or(0.02),
            raw: raw.clone(),
        };
        config.validate()?;
        f.agrees("qk_head_dim", config.qk_head_dim(), "qk_nope_head_dim + qk_rope_head_dim")?;
        Ok(config)
    }

    /// The model that `v3 train` trains when no configuration is given.
    pub fn default_training() -> Result<Config> {
        Config::from_json_str(include_str!("../configs/default.json"))
    }

    /// Checks every field on its own and against the others.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
            ("n_group", self.n_group),
            ("topk_group", self.topk_group),
            ("num_experts_per_tok", self.num_experts_per_tok),
            ("moe_layer_freq", self.moe_layer_freq),
        ];
        for (field, size) in sizes {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(Error::config(field, format!("an integer from 1 to {MAX_SIZE}"), size));
            }
        }
        if self.num_hidden_layers > MAX_LAYERS || self.num_nextn_predict_layers > MAX_LAYERS {
            let layers = self.num_hidden_layers.max(self.num_nextn_predict_layers);
            return Err(Error::config("num_hidden_layers", format!("at most {MAX_LAYERS}"), layers));
        }
        if !self.qk_rope_head_dim.is_multiple_of(2) {
            return Err(Error::config("qk_rope_head_dim", "an even number, since it is rotated in pairs", self.qk_rope_head_dim));
        }
        if self.max_position_embeddings == 0 {
            return Err(Error::config("max_position_embeddings", "a positive integer", 0));
        }
        for (field, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("initializer_range", self.initializer_range),
            ("routed_scaling_factor", self.routed_scaling_factor),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::config(field, "a positive number", value));
            }
            if !(value as f32 > 0.0 && (value as f32).is_finite()) {
                return Err(Error::config(field, "a number that f32 can hold", format!("{value:e}")));
            }
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(Error::config("rope_theta", "a number above 1", self.rope_theta));
        }
        if let Some(yarn) = &self.yarn {
            yarn.validate()?;
            if !(self.softmax_scale() > 0.0 && self.softmax_scale().is_finite()) {
                let expected = "a number that gives a finite softmax scale";
                return Err(Error::config("rope_scaling.mscale_all_dim", expected, yarn.mscale_all_dim));
            }
        }
        self.validate_experts()?;
        self.validate_elements()
    }

    fn validate_experts(&self) -> Result<()> {
        if self.n_routed_experts > MAX_EXPERTS || self.n_shared_experts > MAX_EXPERTS {
            let experts = self.n_routed_experts.max(self.n_shared_experts);
            return Err(Error::config("n_routed_experts", format!("at most {MAX_EXPERTS}"), experts));
        }
        if self.n_routed_experts == 0 {
            if self.first_k_dense_replace < self.num_hidden_layers {
                return Err(Error::config(
                    "n_routed_experts",
                    format!(
                        "a positive integer, since first_k_dense_replace = {} leaves mixture layers among {} layers",
                        self.first_k_dense_replace, self.num_hidden_layers
                    ),
                    0,
                ));
            }
            return Ok(());
        }
        let (experts, groups) = (self.n_routed_experts, self.n_group);
        let layers = self.num_hidden_layers + self.num_nextn_predict_layers;
        if 3 * experts * layers > MAX_EXPERT_TENSORS {
            let expected = format!("at most {} in each of {layers} layers", MAX_EXPERT_TENSORS / 3 / layers);
            return Err(Error::config("n_routed_experts", expected, experts));
        }
        if self.first_k_dense_replace > self.num_hidden_layers {
            return Err(Error::config(
                "first_k_dense_replace",
                format!("at most num_hidden_layers = {}", self.num_hidden_layers),
                self.first_k_dense_replace,
            ));
        }
        if !experts.is_multiple_of(groups) {
            return Err(Error::config("n_group", format!("a divisor of n_routed_experts = {experts}"), groups));
        }
        if self.topk_group > groups {
            return Err(Error::config("topk_group", format!("at most n_group = {groups}"), self.topk_group));
        }
        let kept = self.topk_group * (experts / groups);
        if self.num_experts_per_tok > kept {
            return Err(Error::config(
                "num_experts_per_tok",
                format!("at most the {kept} experts that the {} kept of {groups} groups hold", self.topk_group),
                self.num_experts_per_tok,
            ));
        }
        Ok(())
    }

    fn validate_elements(&self) -> Result<()> {
        let heads = self.num_attention_heads as u128;
        let head = (self.qk_head_dim() + self.v_head_dim + self.qk_nope_head_dim) as u128;
        let wide = self.intermediate_size.max(self.moe_intermediate_size * self.n_shared_experts.max(1)) as u128;
        let hidden = 2 * self.hidden_size as u128;
        let rank = self.kv_lora_rank.max(self.q_lora_rank.unwrap_or(self.hidden_size)).max(self.hidden_size) as u128;
        for (field, elements) in [
            ("num_attention_heads", heads * head * rank),
            ("intermediate_size", wide * hidden),
            ("vocab_size", self.vocab_size as u128 * hidden),
            ("n_routed_experts", self.n_routed_experts as u128 * hidden),
        ] {
            if elements > MAX_ELEMENTS {
                return Err(Error::config(
                    field,
                    "sizes that give tensors of at most 2^40 elements",
                    format!("one of up to {elements} elements"),
                ));
            }
        }
        Ok(())
    }

    /// Width of a head's query and key: the part without position and the rotary part.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Whether layer `layer` is a mixture of experts; the layers of the MTP modules, from `num_hidden_layers` on, follow the
    /// same rule.
    pub fn is_moe(&self, layer: usize) -> bool {
        self.n_routed_experts > 0 && layer >= self.first_k_dense_replace && layer.is_multiple_of(self.moe_layer_freq)
    }

    /// Inner width of the shared experts together; 0 for none.
    pub fn shared_intermediate_size(&self) -> usize {
        self.n_shared_experts * self.moe_intermediate_size
    }

    /// The rotary embedding, as `mla-kernels` takes it.
    pub fn rope_config(&self) -> RopeConfig {
        RopeConfig {
            dim: self.qk_rope_head_dim,
            theta: self.rope_theta,
            max_position: self.max_position_embeddings,
            yarn: self.yarn.as_ref().map(|y| mla_kernels::rope::Yarn {
                factor: y.factor,
                original_max_position: y.original_max_position_embeddings,
                beta_fast: y.beta_fast,
                beta_slow: y.beta_slow,
                mscale: y.mscale,
                mscale_all_dim: y.mscale_all_dim,
            }),
            interleaved: self.rope_interleave,
        }
    }

    /// What query-key products are multiplied by before the softmax: `qk_head_dim^-0.5`, times the square of YaRN's attention
    /// temperature where `mscale_all_dim` asks for it.
    pub fn softmax_scale(&self) -> f32 {
        mla_kernels::rope::softmax_scale(self.qk_head_dim(), &self.rope_config())
    }

    /// The router of a mixture layer, as `moe-dispatch` takes it.
    pub fn router_config(&self) -> RouterConfig {
        RouterConfig {
            num_experts: self.n_routed_experts,
            top_k: self.num_experts_per_tok,
            n_group: self.n_group,
            topk_group: self.topk_group,
            scoring: match self.scoring_func {
                ScoringFunc::Sigmoid => Scoring::Sigmoid,
                ScoringFunc::Softmax => Scoring::Softmax,
            },
            group_score: GroupScore::TopTwo,
            norm_topk_prob: self.norm_topk_prob,
            routed_scaling_factor: self.routed_scaling_factor as f32,
        }
    }

    /// Tokens that end a generated text, from `eos_token_id` (a number, a list or null).
    pub fn eos_token_ids(&self) -> Vec<u32> {
        let as_id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.raw.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(as_id).collect(),
            Some(id) => as_id(id).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Whether `quantization_config` declares FP8 weights.
    pub fn is_fp8(&self) -> bool {
        self.raw.get("quantization_config").is_some_and(|q| !q.is_null())
    }

    /// States how weights are stored: `dtype` as torch calls it (`float32`, `bfloat16`), and whether linear weights are FP8 with
    /// 128x128 scales.
    pub fn set_storage(&mut self, dtype: &str, fp8: bool) {
        let mut named = false;
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = self.raw.get_mut(key) {
                *value = dtype.into();
                named = true;
            }
        }
        if !named {
            self.raw.insert("torch_dtype".into(), dtype.into());
        }
        if !fp8 {
            self.raw.remove("quantization_config");
        } else if !self.is_fp8() {
            let declared = json!({
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
            });
            self.raw.insert("quantization_config".into(), declared);
        }
    }

    /// The configuration as it is written: every known field under its published name, every other as it was read.
    pub fn to_json(&self) -> Value {
        let mut map = self.raw.clone();
        map.entry("architectures").or_insert_with(|| json!(["DeepseekV3ForCausalLM"]));
        map.entry("model_type").or_insert_with(|| "deepseek_v3".into());
        map.entry("tie_word_embeddings").or_insert(Value::Bool(false));
        let fields = [
            ("vocab_size", json!(self.vocab_size)),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("moe_intermediate_size", json!(self.moe_intermediate_size)),
            ("num_hidden_layers", json!(self.num_hidden_layers)),
            ("num_nextn_predict_layers", json!(self.num_nextn_predict_layers)),
            ("num_attention_heads", json!(self.num_attention_heads)),
            ("num_key_value_heads", json!(self.num_attention_heads)),
            ("q_lora_rank", json!(self.q_lora_rank)),
            ("kv_lora_rank", json!(self.kv_lora_rank)),
            ("qk_nope_head_dim", json!(self.qk_nope_head_dim)),
            ("qk_rope_head_dim", json!(self.qk_rope_head_dim)),
            ("v_head_dim", json!(self.v_head_dim)),
            ("n_routed_experts", if self.n_routed_experts == 0 { Value::Null } else { json!(self.n_routed_experts) }),
            ("n_shared_experts", json!(self.n_shared_experts)),
            ("num_experts_per_tok", json!(self.num_experts_per_tok)),
            ("n_group", json!(self.n_group)),
            ("topk_group", json!(self.topk_group)),
            ("norm_topk_prob", json!(self.norm_topk_prob)),
            ("routed_scaling_factor", json!(self.routed_scaling_factor)),
            ("scoring_func", json!(self.scoring_func.name())),
            ("topk_method", json!("noaux_tc")),
            ("first_k_dense_replace", json!(self.first_k_dense_replace)),
            ("moe_layer_freq", json!(self.moe_layer_freq)),
            ("hidden_act", json!("silu")),
            ("max_position_embeddings", json!(self.max_position_embeddings)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("initializer_range", json!(self.initializer_range)),
        ];
        for (name, value) in fields {
            map.insert(name.into(), value);
        }
        if map.contains_key("qk_head_dim") {
            map.insert("qk_head_dim".into(), json!(self.qk_head_dim()));
        }
        if !self.rope_interleave || map.contains_key("rope_interleave") {
            map.insert("rope_interleave".into(), json!(self.rope_interleave));
        }
        fields::write_rope(&mut map, self.rope_theta, self.yarn.as_ref());
        Value::Object(map)
    }

    /// The text of [`Config::to_json`], indented, with a final line break.
    pub fn to_json_string(&self) -> String {
        format!("{:#}\n", self.to_json())
    }
}

impl PartialEq for Config {
    fn eq(&self, other: &Config) -> bool {
        self.to_json() == other.to_json()
    }
}

impl Yarn {
    fn validate(&self) -> Result<()> {
        let positive = |v: f64| v.is_finite() && v > 0.0;
        if !(positive(self.factor) && self.factor >= 1.0) {
            return Err(Error::config("rope_scaling.factor", "a number of at least 1", self.factor));
        }
        if self.original_max_position_embeddings == 0 {
            return Err(Error::config("rope_scaling.original_max_position_embeddings", "a positive integer", 0));
        }
        if !positive(self.beta_slow) {
            return Err(Error::config("rope_scaling.beta_slow", "a positive number", self.beta_slow));
        }
        if !(self.beta_fast.is_finite() && self.beta_fast > self.beta_slow) {
            let expected = format!("a number above beta_slow = {}", self.beta_slow);
            return Err(Error::config("rope_scaling.beta_fast", expected, self.beta_fast));
        }
        for (field, value) in [("mscale", self.mscale), ("mscale_all_dim", self.mscale_all_dim)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::config(format!("rope_scaling.{field}"), "a number of at least 0", value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
