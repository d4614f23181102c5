//! A model small enough to take steps in milliseconds, and steps of it on any grid of ranks.
// Each test program uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use v3_model::Config;
use v3_model::train::{Job, MicroBatch, RankTrainer, StepOutcome, TrainArgs, TrainOptions};
use v3_ranks::{WorldConfig, run_threads};

/// Four layers, eight experts in four groups, one module.
pub fn config() -> Config {
    Config::from_json_str(
        r#"{
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 256, "hidden_size": 24,
        "intermediate_size": 40, "moe_intermediate_size": 12, "num_hidden_layers": 4, "num_nextn_predict_layers": 1,
        "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 20, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
        "n_group": 4, "topk_group": 2, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "first_k_dense_replace": 1, "moe_layer_freq": 1, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "initializer_range": 0.08, "hidden_act": "silu",
        "attention_bias": false, "tie_word_embeddings": false}"#,
    )
    .expect("a valid configuration")
}

/// Arguments of a short run on two pipeline ranks and two expert-parallel ranks.
pub fn args() -> TrainArgs {
    TrainArgs {
        steps: Some(6),
        seq_len: Some(12),
        micro_batch: Some(4),
        micro_batches: Some(4),
        lr: Some(0.01),
        threads: Some(2),
        save_every: Some(3),
        ..TrainArgs::default()
    }
}

/// A job of these arguments that writes to `out`.
pub fn job(args: &TrainArgs, config: &Config, out: PathBuf) -> Job {
    let options = TrainOptions::new(args, None).expect("valid options");
    Job::with(options, config.clone(), None, out).expect("a job")
}

/// The micro-batches of the first step.
pub fn first_step(job: &Job) -> Vec<MicroBatch> {
    job.micro_batches(&job.batches().expect("batches"), 1)
}

/// Gradients by name. A rank only contributes what it keeps after the sum over ranks.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// Runs `body` on every rank of the job's grid and returns what rank 0 returns, and all gradients after their sum over ranks.
pub fn on_grid<R: Send>(
    job: &Job,
    threads: usize,
    body: impl Fn(&mut RankTrainer) -> v3_model::Result<R> + Sync,
) -> (Vec<R>, Gradients) {
    let results = run_threads(WorldConfig::new(job.grid.size()), |world| -> v3_model::Result<_> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let mut trainer = job.trainer(world)?;
            let result = body(&mut trainer)?;
            let world = &trainer.world;
            trainer.optimizer.reduce(&mut trainer.model, world)?;
            let mut pieces = Vec::new();
            for shard in &trainer.optimizer.shards {
                for p in trainer.model.store.layout().params().iter().filter(|p| p.is_trained()) {
                    let range = p.offset.max(shard.own.start)..(p.offset + p.len).min(shard.own.end);
                    if !range.is_empty() {
                        pieces.push((p.name.clone(), p.len, range.start - p.offset, trainer.model.grads[range].to_vec()));
                    }
                }
            }
            Ok((result, pieces))
        })
    })
    .expect("no rank fails");
    let mut gradients = Gradients::new();
    let mut out = Vec::new();
    for (result, pieces) in results {
        out.push(result);
        for (name, len, start, values) in pieces {
            let whole = gradients.entry(name).or_insert_with(|| vec![f32::NAN; len]);
            whole[start..start + values.len()].copy_from_slice(&values);
        }
    }
    (out, gradients)
}

/// Forward and backward of the first step.
pub fn run_step(job: &Job, threads: usize) -> (StepOutcome, Gradients) {
    let batches = first_step(job);
    let (mut outcomes, gradients) = on_grid(job, threads, |trainer| Ok(trainer.run(1, &batches)?.0));
    (outcomes.swap_remove(0), gradients)
}

/// A folder of this test that is empty.
pub fn folder(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}
