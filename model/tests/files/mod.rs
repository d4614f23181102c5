//! A directory per test, and small checkpoints to put into it.
#![allow(dead_code)] // each test binary uses its own part

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use v3_model::Config;
use v3_model::checkpoint::{CheckpointWriter, Dtype, WriteSpec};
use v3_model::config::TensorSpec;

/// A fresh directory, removed when dropped.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Dir {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("v3-model-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names in the directory, hidden ones included, sorted.
    pub fn names(&self) -> Vec<String> {
        names(&self.0)
    }
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A small model whose linear weights have ragged 128x128 blocks.
pub fn config_json() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 97, "hidden_size": 136,
        "intermediate_size": 264, "moe_intermediate_size": 24, "num_hidden_layers": 2, "num_nextn_predict_layers": 1,
        "num_attention_heads": 3, "num_key_value_heads": 3, "n_shared_experts": 1, "n_routed_experts": 8,
        "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
        "v_head_dim": 12, "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float32",
        "some_unknown_field": {"kept": [1, 2.5, "x"]},
    })
}

pub fn config() -> Config {
    Config::from_json(config_json()).unwrap()
}

/// Numbers that differ by tensor and place, of mixed sign and size, with many bits.
pub fn values(name: &str, len: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(0x9e37_79b9_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next() * 0.25).collect()
}

/// Whose values a tensor has: its own, or those of what it is a copy of.
pub fn source(tensor: &TensorSpec) -> &str {
    tensor.copy_of.unwrap_or(&tensor.name)
}

/// Writes a checkpoint of `config` in f32 (or bf16), in shards of at most `max_shard` bytes.
pub fn write_checkpoint(dir: &Path, config: &Config, dtype: Dtype, max_shard: u64) {
    let tensors = config.tensors();
    let specs: Vec<WriteSpec> =
        tensors.iter().map(|t| WriteSpec { name: t.name.clone(), dtype, shape: t.shape.clone() }).collect();
    let mut writer = CheckpointWriter::create(dir, &specs, max_shard).unwrap();
    for t in &tensors {
        writer.write_f32(&t.name, &values(source(t), t.len())).unwrap();
    }
    writer.write_config(config).unwrap();
    writer.finish().unwrap();
}

/// The bytes of a safetensors file with this header and so many bytes of data.
pub fn file_with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}
