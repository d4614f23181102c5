//! The program as its user meets it: runs that are killed and taken up again, models of unusual but legal form, and hostile
//! options.

mod files;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use files::{Dir, config, write_checkpoint};
use serde_json::{Value, json};
use v3_model::checkpoint::{Checkpoint, CheckpointWriter, Dtype, WriteSpec};

fn v3(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_v3")).args(args).current_dir(dir).output().expect("v3 starts")
}

/// Runs `v3`, which must succeed, and returns its stdout.
fn succeeds(dir: &Path, args: &[&str]) -> String {
    let output = v3(dir, args);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "v3 {}: {:?} {err}", args.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `v3`, which must refuse with one sentence that mentions all of `mentions`.
fn refuses(dir: &Path, args: &[&str], mentions: &[&str]) {
    let output = v3(dir, args);
    let err = String::from_utf8_lossy(&output.stderr);
    let shown = format!("v3 {}: {:?}\n{err}", args.join(" "), output.status);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert_eq!(err.trim_end().lines().count(), 1, "{shown}");
    assert!(output.stdout.is_empty() && mentions.iter().all(|m| err.contains(m)), "{mentions:?}: {shown}");
}

/// A model of four layers that takes steps in milliseconds, with `changes`.
fn write_config(dir: &Dir, changes: Value) {
    let mut json = json!({
        "model_type": "deepseek_v3", "vocab_size": 256, "hidden_size": 24, "intermediate_size": 40, "moe_intermediate_size": 12,
        "num_hidden_layers": 4, "num_nextn_predict_layers": 1, "num_attention_heads": 3, "q_lora_rank": 20, "kv_lora_rank": 16,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1, "max_position_embeddings": 64, "initializer_range": 0.08
    });
    for (field, value) in changes.as_object().expect("an object") {
        json[field] = value.clone();
    }
    std::fs::write(dir.join("c.json"), json.to_string()).expect("written");
}

/// A text whose evaluation takes no time.
fn write_text(dir: &Dir) {
    let text: String = (0..4000u32).map(|i| char::from(b' ' + (i * i % 89) as u8)).collect();
    std::fs::write(dir.join("text"), text).expect("written");
}

fn workplace(changes: Value) -> Dir {
    let dir = Dir::new();
    write_config(&dir, changes);
    write_text(&dir);
    dir
}

const TRAIN: [&str; 13] =
    ["train", "--config", "c.json", "--data", "text", "--seq-len", "12", "--micro-batch", "4", "--threads", "2", "--out", "run"];

fn train(dir: &Dir, args: &[&str]) -> String {
    let _ = std::fs::remove_dir_all(dir.join("run"));
    succeeds(&dir.0, &[&TRAIN, args].concat())
}

/// What a run's metrics.jsonl says that does not depend on the clock; one line a step, in order.
fn losses(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let parse = |(i, line): (usize, &str)| {
        let mut m: Value = serde_json::from_str(line).expect("an object a line");
        m.as_object_mut().expect("an object").remove("tokens_per_s");
        assert_eq!(m["step"], i + 1);
        m
    };
    text.lines().enumerate().map(parse).collect()
}

#[test]
fn killed_at_any_moment_a_run_goes_on_as_if_it_had_not_been() {
    let dir = workplace(json!({}));
    let begun = std::time::Instant::now();
    train(&dir, &["--steps", "12", "--save-every", "1"]);
    let whole = begun.elapsed();
    let expected = losses(&dir.join("run"));
    let weights = |run: &str, which: &str| std::fs::read(dir.join(run).join(which).join("model.safetensors")).expect("weights");
    assert_eq!(expected.len(), 12);

    let fresh = [&TRAIN[..11], &["--steps", "12", "--save-every", "1", "--out", "killed"]].concat();
    let resume = ["train", "--resume", "killed", "--threads", "2"];
    let run = dir.join("killed");
    for kill in 1..8u32 {
        let started = run.join("checkpoint").exists() || run.join(".checkpoint.ready").exists();
        if !started {
            let _ = std::fs::remove_dir_all(&run);
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_v3"));
        command.args(if started { &resume[..] } else { &fresh[..] }).current_dir(&dir.0);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("v3 starts");
        // Moments spread over the run, which a resumed one has less of.
        std::thread::sleep(whole * (kill * 37 % 100) / 150 + Duration::from_millis(u64::from(kill)));
        child.kill().expect("killed or already over");
        child.wait().expect("waited for");
    }
    if !run.join("checkpoint").exists() && !run.join(".checkpoint.ready").exists() {
        let _ = std::fs::remove_dir_all(&run);
        succeeds(&dir.0, &fresh);
    } else if !run.join("report.html").exists() {
        succeeds(&dir.0, &resume);
    }
    assert_eq!(losses(&run), expected);
    for which in ["checkpoint", "ema"] {
        assert!(weights("killed", which) == weights("run", which), "{which} differs");
    }
    assert!(run.join("report.html").exists());
    refuses(&dir.0, &resume, &["--steps: expected more than the 12 done, found 12"]);
}

#[test]
fn a_run_killed_between_its_last_checkpoint_and_its_report_gets_both() {
    let dir = workplace(json!({}));
    train(&dir, &["--steps", "2"]);
    let ema = std::fs::read(dir.join("run/ema/model.safetensors")).expect("an average");
    std::fs::remove_dir_all(dir.join("run/ema")).expect("removed");
    for file in ["report.html", "loss.svg", "timeline.svg", "trace.json"] {
        std::fs::remove_file(dir.join("run").join(file)).expect("removed");
    }
    succeeds(&dir.0, &["train", "--resume", "run"]);
    assert!(std::fs::read(dir.join("run/ema/model.safetensors")).expect("an average") == ema);
    for file in ["report.html", "loss.svg", "timeline.svg", "trace.json"] {
        assert!(dir.join("run").join(file).exists(), "{file}");
    }
}

#[test]
fn a_run_goes_on_with_other_ranks_and_precision() {
    let dir = workplace(json!({}));
    train(&dir, &["--steps", "2"]);
    let more: [&[&str]; 4] = [
        &["--steps", "3", "--pipeline", "1", "--expert-parallel", "4"],
        &["--steps", "4", "--pipeline", "4", "--expert-parallel", "1", "--schedule", "zb-h1"],
        &["--steps", "5", "--precision", "fp8"],
        &["--steps", "6", "--precision", "bf16", "--no-mtp", "--no-ema"],
    ];
    for args in more {
        succeeds(&dir.0, &[&["train", "--resume", "run"], args].concat());
    }
    assert_eq!(losses(&dir.join("run")).len(), 6);
}

#[test]
fn a_damaged_training_state_is_refused_before_anything_changes() {
    let dir = workplace(json!({}));
    train(&dir, &["--steps", "2"]);
    let resume = ["train", "--resume", "run", "--steps", "3"];
    for (file, name) in [
        ("checkpoint", "model.layers.2.self_attn.o_proj.weight"),
        ("checkpoint/training", "m.model.layers.2.self_attn.o_proj.weight"),
        ("checkpoint/training", "ema.lm_head.weight"),
    ] {
        let path = dir.join("run").join(file).join("model.safetensors");
        let whole = std::fs::read(&path).expect("a file");
        let checkpoint = Checkpoint::open(&dir.join("run").join(file)).expect("a checkpoint");
        let specs: Vec<WriteSpec> = checkpoint
            .names()
            .filter(|n| *n != name)
            .map(|n| WriteSpec { name: n.into(), dtype: Dtype::F32, shape: checkpoint.info(n).expect("a tensor").shape.clone() })
            .collect();
        let mut writer = CheckpointWriter::create(&dir.join("less"), &specs, u64::MAX).expect("a writer");
        for spec in &specs {
            writer.write_bytes(&spec.name, checkpoint.bytes(&spec.name).expect("a tensor")).expect("written");
        }
        writer.finish().expect("written");
        drop(checkpoint);
        std::fs::rename(dir.join("less/model.safetensors"), &path).expect("renamed");
        refuses(&dir.0, &resume, &[&format!("run/{file}: tensor {name}: expected")]);
        std::fs::write(&path, &whole[..whole.len() / 2]).expect("written");
        refuses(&dir.0, &resume, &[&format!("run/{file}/model.safetensors: expected")]);
        std::fs::write(&path, whole).expect("written");
        assert!(dir.join("run/report.html").exists());
    }
    let state = dir.join("run/checkpoint/training/state.json");
    std::fs::write(&state, "{\"format\": 1").expect("written");
    refuses(&dir.0, &resume, &["state.json: expected the state of a training run, found EOF"]);
}

#[test]
fn unusual_models_train_and_speculate() {
    let dense = json!({"first_k_dense_replace": 4, "n_routed_experts": null});
    let yarn = json!({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16}});
    let one = json!({"n_routed_experts": 1, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
        "num_attention_heads": 1, "n_shared_experts": 0, "q_lora_rank": null});
    let cases: [(Value, &[&str]); 8] = [
        (dense, &["--precision", "bf16"]),
        (yarn, &["--precision", "fp8"]),
        (one, &["--expert-parallel", "1"]),
        (json!({"num_hidden_layers": 1, "first_k_dense_replace": 0, "vocab_size": 300}), &["--pipeline", "1"]),
        (json!({"num_nextn_predict_layers": 2, "num_experts_per_tok": 8, "topk_group": 4}), &["--schedule", "dualpipev"]),
        (json!({"rope_interleave": false}), &["--expert-parallel", "4", "--ranks-per-node", "2", "--micro-batches", "6"]),
        (json!({"scoring_func": "softmax", "moe_layer_freq": 2}), &["--schedule", "zb-v", "--recompute", "all"]),
        // Positions for less than a sample's usual prompt.
        (json!({"max_position_embeddings": 13}), &["--no-ema"]),
    ];
    for (changes, args) in cases {
        let dir = workplace(changes.clone());
        let table = train(&dir, &[&["--steps", "2"], args].concat());
        assert!(table.contains("the same tokens") && !table.contains("OTHER TOKENS"), "{changes}: {table}");
        let generate = ["generate", "run/checkpoint", "--ids", "65,66", "--max-new-tokens", "11", "--temperature", "0"];
        let plain = succeeds(&dir.0, &[&generate[..], &["--no-speculate"]].concat());
        assert_eq!(succeeds(&dir.0, &generate), plain, "{changes}");
        assert_eq!(plain.split(',').count(), 11);
    }
}

#[test]
fn short_sequences_and_ranks_without_tokens() {
    let dir = workplace(json!({}));
    let shape = |seq_len, micro_batch, ranks| {
        let _ = std::fs::remove_dir_all(dir.join("run"));
        let sizes = ["--steps", "2", "--seq-len", seq_len, "--micro-batch", micro_batch, "--expert-parallel", ranks];
        succeeds(&dir.0, &[&["train", "--config", "c.json", "--data", "text", "--out", "run"], &sizes[..]].concat());
        losses(&dir.join("run"))
    };
    assert_eq!(shape("12", "1", "8")[0]["main_loss"], shape("12", "1", "1")[0]["main_loss"]);
    shape("1", "1", "2");
    shape("2", "1", "2");
}

#[test]
fn sizes_that_cannot_fit_are_refused_before_anything_is_written() {
    let dir = workplace(json!({}));
    let train = |args: &[&'static str]| [&["train", "--config", "c.json", "--seq-len", "12", "--out", "run"], args].concat();
    let cases: [(&[&str], &str); 8] = [
        (&["--micro-batch", "18446744073709551615"], "--micro-batch: expected as many sequences as"),
        (&["--micro-batch", "99999999999999999999"], "--micro-batch: expected a whole number below 2^64, found 9999"),
        (&["--micro-batch", "-1"], "--micro-batch: expected a whole number, 0 or more, found -1"),
        (&["--threads", "100000"], "--threads: expected at most 1024, found 100000"),
        (&["--lr", "x"], "--lr: expected a number, found x"),
        (&["--save-every", "0"], "--save-every: expected 1 or more, found 0"),
        (&["--pipeline", "1000"], "--pipeline: expected"),
        (&["--precision", ""], "--precision: expected f32, bf16 or fp8, found nothing"),
    ];
    for (args, message) in cases {
        refuses(&dir.0, &train(args), &[message]);
    }
    for (changes, message) in [
        (json!({"hidden_size": 1 << 24}), "--config: expected a model that can be trained in"),
        (json!({"n_routed_experts": 1 << 16, "num_hidden_layers": 10_000}), "n_routed_experts: expected at most"),
    ] {
        write_config(&dir, changes);
        refuses(&dir.0, &train(&[]), &[message]);
    }
    assert_eq!(dir.names(), ["c.json", "text"]);
}

#[test]
fn generation_names_the_option_at_fault() {
    let dir = Dir::new();
    write_checkpoint(&dir.join("model"), &config(), Dtype::F32, u64::MAX);
    let generate = |args: &[&'static str]| [&["generate", "model"], args].concat();
    let cases: [(&[&str], &str); 9] = [
        (&["--temperature", "-1"], "--temperature: expected a finite number, 0 or more, found -1"),
        (&["--temperature", "nan"], "--temperature: expected a finite number, 0 or more, found NaN"),
        (&["--top-p", "0"], "--top-p: expected a number above 0, at most 1, found 0"),
        (&["--top-k", "-1"], "--top-k: expected a whole number, 0 or more, found -1"),
        (&["--prompt", "z"], "--prompt: expected token ids from 0 to 96, found 122 at position 0"),
        (&["--prompt", ""], "--prompt: expected at least one token"),
        (&["--ids", "-1"], "--ids: expected token ids separated by commas, found \"-1\""),
        (&["--ids", "1,2", "--max-new-tokens", "18446744073709551615"], "--max-new-tokens: expected at most"),
        (&["--ids", "1,2", "--max-new-tokens", "255"], "--max-new-tokens: expected at most max_position_embeddings = 256"),
    ];
    for (args, message) in cases {
        refuses(&dir.0, &generate(args), &[message]);
    }
    let long = vec!["1"; 257].join(",");
    refuses(&dir.0, &["generate", "model", "--ids", &long], &["--ids: expected at most max_position_embeddings = 256", "257"]);
    // Without --max-new-tokens, as many as there is room for.
    let long = vec!["1"; 250].join(",");
    assert_eq!(succeeds(&dir.0, &["generate", "model", "--ids", &long]).split(',').count(), 6);
    assert_eq!(succeeds(&dir.0, &generate(&["--ids", "1", "--max-new-tokens", "0"])), "\n");
}

#[test]
fn streams_that_are_closed_or_full() {
    let dir = Dir::new();
    let run = |args: &[&str], out: Stdio, err: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_v3"));
        command.args(args).current_dir(&dir.0).stdout(out).stderr(err).status().expect("v3 starts").code()
    };
    let schedule = ["schedule", "--kind", "dualpipe", "--ranks", "8", "--micro-batches", "64", "--format", "svg"];
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(run(&schedule, writer.into(), Stdio::null()), Some(0), "a reader that has gone away is no error");
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        let full = || Stdio::from(full.try_clone().expect("a handle"));
        assert_eq!(run(&schedule, full(), Stdio::null()), Some(2));
        assert_eq!(run(&["eval", "none", "--data", "none"], Stdio::null(), full()), Some(2));
        assert_eq!(run(&["--frobnicate"], Stdio::null(), full()), Some(2));
    }
}
