//! Whatever is wrong with the input, `v3` says so in one sentence on stderr that names the file, tensor or option, ends with status 2,
//! and leaves nothing behind.

mod files;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use files::{Dir, config, config_json, names, write_checkpoint};
use serde_json::{Value, json};
use v3_model::Config;
use v3_model::checkpoint::{Checkpoint, Dtype, NamedTensor, TensorData, write_tensors};

fn v3(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_v3")).args(args).current_dir(dir).output().expect("v3 starts")
}

/// Every path below a directory.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for name in names(dir) {
        let path = dir.join(name);
        if path.is_dir() {
            out.extend(tree(&path));
        }
        out.push(path);
    }
    out
}

/// Runs `v3` in `dir`, and checks the form of its refusal and that it mentions all of `mentions`.
fn refuses(dir: &Path, args: &[&str], mentions: &[&str]) {
    let before = tree(dir);
    let output = v3(dir, args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let shown = format!("v3 {}: {:?}\nstdout: {out}\nstderr: {err}", args.join(" "), output.status);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert_eq!(err.trim_end().lines().count(), 1, "{shown}");
    assert!(out.is_empty() && !err.contains("panicked"), "{shown}");
    for mention in mentions {
        assert!(err.contains(mention), "it does not mention {mention}: {shown}");
    }
    assert_eq!(tree(dir), before, "{shown}");
}

/// A directory with a checkpoint `model`, its ids `ids.safetensors`, and a text `text`.
fn scene(config: &Config) -> Dir {
    let dir = Dir::new();
    write_checkpoint(&dir.join("model"), config, Dtype::F32, u64::MAX);
    write_ids(&dir.join("ids.safetensors"), &[5, 6, 7, 8]);
    std::fs::write(dir.join("text"), "!\"#$%&'()*+,-./0123456789:;<=>?@ABC".repeat(40)).unwrap();
    dir
}

fn write_ids(path: &Path, ids: &[i64]) {
    write_tensors(path, &[NamedTensor { name: "input_ids", shape: &[1, ids.len()], data: TensorData::I64(ids) }]).unwrap();
}

/// Every command that reads the checkpoint `model`.
fn readers() -> Vec<Vec<&'static str>> {
    vec![
        vec!["generate", "model", "--ids", "5,6", "--max-new-tokens", "2"],
        vec!["eval", "model", "--data", "text"],
        vec!["logits", "model", "--ids", "ids.safetensors", "--out", "out.safetensors"],
        vec!["grad", "model", "--ids", "ids.safetensors", "--out", "out.safetensors"],
        vec!["convert", "model", "out", "--to", "bf16"],
    ]
}

#[test]
fn the_same_commands_work_on_good_input() {
    let dir = scene(&config());
    for args in readers() {
        let output = v3(&dir.0, &args);
        assert!(output.status.success(), "v3 {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(dir.names(), ["ids.safetensors", "model", "out", "out.safetensors", "text"]);
}

#[test]
fn checkpoints_that_are_not_there_or_not_whole() {
    for args in readers() {
        let dir = scene(&config());
        let weights = dir.join("model/model.safetensors");
        let bytes = std::fs::read(&weights).unwrap();
        for cut in [0, 4, 1000, bytes.len() - 1] {
            std::fs::write(&weights, &bytes[..cut]).unwrap();
            refuses(&dir.0, &args, &["model.safetensors", "expected", "found"]);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        std::fs::write(&weights, &longer).unwrap();
        refuses(&dir.0, &args, &["model.safetensors", "bytes of tensor data"]);
        std::fs::write(&weights, &bytes).unwrap();

        std::fs::remove_file(dir.join("model/config.json")).unwrap();
        refuses(&dir.0, &args, &["cannot read", "config.json"]);
        std::fs::write(dir.join("model/config.json"), "{\"vocab_size\": 97").unwrap();
        refuses(&dir.0, &args, &["config.json: expected a JSON object"]);
        std::fs::write(dir.join("model/config.json"), config().to_json_string()).unwrap();

        std::fs::remove_file(&weights).unwrap();
        refuses(&dir.0, &args, &["model: expected model.safetensors or model.safetensors.index.json, found neither"]);
        std::fs::write(&weights, &bytes).unwrap();
        let mut elsewhere = args.clone();
        elsewhere[1] = "no-model";
        refuses(&dir.0, &elsewhere, &["no-model: expected a checkpoint directory, found nothing"]);
    }
}

/// Writes `model` again with one tensor changed (or dropped, for `None`).
fn rewrite(dir: &Path, name: &str, new: Option<(Dtype, Vec<usize>)>) {
    use v3_model::checkpoint::{CheckpointWriter, WriteSpec};
    let old = Checkpoint::open(&dir.join("model")).unwrap();
    let mut specs = Vec::new();
    for stored in old.names() {
        let info = old.info(stored).unwrap();
        let (dtype, shape) = match &new {
            _ if stored != name => (info.dtype, info.shape.clone()),
            Some(new) => new.clone(),
            None => continue,
        };
        specs.push(WriteSpec { name: stored.to_owned(), dtype, shape });
    }
    let mut writer = CheckpointWriter::create(&dir.join("model"), &specs, u64::MAX).unwrap();
    for spec in &specs {
        let mut bytes = old.bytes(&spec.name).unwrap().to_vec();
        bytes.resize(spec.bytes(), 0);
        writer.write_bytes(&spec.name, &bytes).unwrap();
    }
    writer.write_config(&old.config().unwrap()).unwrap();
    writer.finish().unwrap();
}

#[test]
fn tensors_that_are_missing_or_of_the_wrong_shape_or_type() {
    let name = "model.layers.1.mlp.experts.3.up_proj.weight";
    let cases = [
        (None, format!("tensor {name}: expected a tensor of this name, found none")),
        (Some((Dtype::F32, vec![136, 24])), format!("tensor {name}: expected shape [24, 136], found [136, 24]")),
        (Some((Dtype::F32, vec![24 * 136])), format!("tensor {name}: expected shape [24, 136], found [3264]")),
        (Some((Dtype::I64, vec![24, 136])), format!("tensor {name}: expected F32, BF16, F16 or F8_E4M3 with scales, found I64")),
        (
            Some((Dtype::F8_E4M3, vec![24, 136])),
            format!("tensor {name}: expected F32, BF16 or F16, since there is no {name}_scale_inv"),
        ),
    ];
    for (new, message) in cases {
        let dir = scene(&config());
        rewrite(&dir.0, name, new);
        for args in readers() {
            refuses(&dir.0, &args, &[&message]);
        }
    }
}

#[test]
fn configurations_that_contradict_themselves() {
    let dir = scene(&config());
    let cases: [(&str, Value, &str); 9] = [
        ("num_key_value_heads", json!(2), "num_key_value_heads: expected num_attention_heads = 3"),
        ("n_group", json!(3), "n_group: expected a divisor of n_routed_experts = 8, found 3"),
        ("num_experts_per_tok", json!(5), "num_experts_per_tok: expected at most the 4 experts"),
        ("topk_group", json!(5), "topk_group: expected at most n_group = 4, found 5"),
        ("qk_rope_head_dim", json!(7), "qk_rope_head_dim: expected an even number"),
        ("hidden_size", json!(0), "hidden_size: expected an integer from 1"),
        ("kv_lora_rank", json!(-24), "kv_lora_rank: expected an integer from 1"),
        ("first_k_dense_replace", json!(9), "first_k_dense_replace: expected at most num_hidden_layers = 2, found 9"),
        ("hidden_act", json!("relu"), "hidden_act: expected \"silu\", the only one supported, found \"relu\""),
    ];
    for (field, value, message) in cases {
        let mut json = config_json();
        json[field] = value;
        std::fs::write(dir.join("model/config.json"), json.to_string()).unwrap();
        std::fs::write(dir.join("config.json"), json.to_string()).unwrap();
        for args in readers() {
            refuses(&dir.0, &args, &["config.json: ", message]);
        }
        refuses(&dir.0, &["train", "--config", "config.json", "--steps", "1", "--out", "run"], &["config.json: ", message]);
    }
}

#[test]
fn token_ids_out_of_range() {
    let dir = scene(&config());
    for (list, message) in [
        ("5,97", "--ids: expected token ids from 0 to 96, found 97 at position 1"),
        ("5,x", "--ids: expected token ids separated by commas, found \"x\""),
        ("", "--ids: expected token ids separated by commas"),
        ("99999999999", "--ids: expected token ids"),
    ] {
        refuses(&dir.0, &["generate", "model", "--ids", list], &[message]);
    }
    refuses(&dir.0, &["generate", "model", "--prompt", "z"], &["token ids from 0 to 96, found 122"]);
    for command in ["logits", "grad"] {
        let args = [command, "model", "--ids", "ids.safetensors", "--out", "out.safetensors"];
        for (ids, message) in
            [(&[5, 97][..], "found 97 at [0, 1]"), (&[-1, 3], "found -1 at [0, 0]"), (&[], "at least one token")]
        {
            write_ids(&dir.join("ids.safetensors"), ids);
            refuses(&dir.0, &args, &["ids.safetensors: tensor input_ids: expected", message]);
        }
        let other = NamedTensor { name: "ids", shape: &[1, 1], data: TensorData::I64(&[1]) };
        write_tensors(&dir.join("ids.safetensors"), &[other]).unwrap();
        refuses(&dir.0, &args, &["tensor input_ids: expected a tensor of this name, found none"]);
        std::fs::write(dir.join("ids.safetensors"), "not a safetensors file").unwrap();
        refuses(&dir.0, &args, &["ids.safetensors: expected a safetensors header"]);
    }
    std::fs::write(dir.join("text"), "z".repeat(2000)).unwrap();
    refuses(&dir.0, &["eval", "model", "--data", "text"], &["text: expected tokens below vocab_size = 97, found token 122"]);
}

#[test]
fn data_that_is_not_there_or_empty() {
    let dir = scene(&config());
    std::fs::write(dir.join("empty"), "").unwrap();
    for command in [&["eval", "model"][..], &["train", "--steps", "1", "--out", "run"]] {
        let with = |file| [command, &["--data", file]].concat();
        refuses(&dir.0, &with("empty"), &["empty: expected", "text"]);
        refuses(&dir.0, &with("none"), &["cannot read none"]);
        refuses(&dir.0, &with("model"), &["model: expected a text file, found a directory"]);
    }
    std::fs::write(dir.join("short"), "a short text").unwrap();
    refuses(&dir.0, &["train", "--steps", "1", "--out", "run", "--data", "short"], &["short: expected at least", "tokens in"]);
}

#[test]
fn training_that_cannot_be_laid_out() {
    let dir = scene(&config());
    let train = |args: &[&'static str]| [&["train", "--steps", "1", "--out", "run"], args].concat();
    for (args, mentions) in [
        (&["--pipeline", "100", "--schedule", "1f1b"][..], &["--pipeline", "at most 4", "found 100"][..]),
        (&["--pipeline", "0"], &["--pipeline", "found 0"]),
        (&["--pipeline", "1", "--schedule", "dualpipe"], &["even", "found 1"]),
        (&["--schedule", "dualpipa"], &["--schedule", "dualpipe", "found dualpipa"]),
        (&["--micro-batches", "0"], &["--micro-batches", "found 0"]),
        (&["--micro-batch", "0"], &["--micro-batch", "found 0"]),
        (&["--micro-batch=-1"], &["--micro-batch", "-1"]),
        (&["--expert-parallel", "3"], &["--expert-parallel", "found 3"]),
        (&["--seq-len", "0"], &["--seq-len", "found 0"]),
        (&["--overlap", "on"], &["--overlap", "off, default or tuned", "found on"]),
        (&["--overlap", "tuned"], &["--overlap", "--costs", "found tuned"]),
        (&["--costs", "costs.txt"], &["--costs", "--overlap tuned", "found costs.txt"]),
        (&["--link", "slow=1,fast=2"], &["--link", "slow=LATENCY,BANDWIDTH", "found slow=1,fast=2"]),
        (&["--seq-len", "100000"], &["--seq-len", "found 100000"]),
        (&["--steps", "0"], &["--steps"]),
        (&["--threads", "0"], &["--threads", "found 0"]),
        (&["--ranks-per-node", "0"], &["--ranks-per-node", "found 0"]),
        (&["--lr", "nan"], &["--lr", "found NaN"]),
        (&["--precision", "fp4"], &["--precision", "f32, bf16 or fp8", "found fp4"]),
        (&["--recompute", "everything"], &["--recompute", "everything"]),
        (&["--config", "none.json"], &["cannot read none.json"]),
    ] {
        refuses(&dir.0, &train(args), mentions);
    }
    refuses(&dir.0, &["train", "--resume", "none"], &["none"]);
    std::fs::create_dir(dir.join("hollow")).unwrap();
    refuses(&dir.0, &["train", "--resume", "hollow"], &["hollow"]);
}

#[test]
fn output_that_cannot_be_written() {
    let dir = scene(&config());
    for command in ["logits", "grad"] {
        refuses(&dir.0, &[command, "model", "--ids", "ids.safetensors", "--out", "text/out"], &["cannot", "text/out"]);
        refuses(&dir.0, &[command, "model", "--ids", "ids.safetensors", "--out", "model"], &["model: expected a file to write"]);
    }
    refuses(&dir.0, &["convert", "model", "text/out", "--to", "bf16"], &["cannot create text"]);
    refuses(&dir.0, &["train", "--steps", "1", "--out", "text/run"], &["cannot", "text"]);
    std::fs::write(
        dir.join("place.json"),
        json!({"weight": [[1, 2]], "num_replicas": 2, "num_groups": 1, "num_nodes": 1, "num_gpus": 2}).to_string(),
    )
    .unwrap();
    refuses(&dir.0, &["place", "--input", "place.json", "--out", "text/out.json"], &["cannot write text/out.json"]);
}

#[test]
fn conversion_placement_and_schedules() {
    let dir = scene(&config());
    refuses(&dir.0, &["convert", "model", "model", "--to", "f32"], &["OUT: expected a directory other than IN"]);
    refuses(&dir.0, &["convert", "model", "text", "--to", "f32"], &["OUT: expected a directory that does not exist"]);
    refuses(&dir.0, &["convert", "model", "out", "--to", "fp4"], &["--to", "fp4", "f32", "bf16", "fp8"]);
    refuses(&dir.0, &["convert", "model", "out", "--to", "f32", "--max-shard-size", "0"], &["--max-shard-size"]);
    refuses(&dir.0, &["place", "--input", "none.json", "--out", "o.json"], &["cannot read none.json"]);
    std::fs::write(dir.join("p.json"), "{").unwrap();
    refuses(&dir.0, &["place", "--input", "p.json", "--out", "o.json"], &["p.json: expected a JSON object"]);
    std::fs::write(dir.join("p.json"), "{}").unwrap();
    refuses(
        &dir.0,
        &["place", "--input", "p.json", "--out", "o.json"],
        &["p.json: weight: expected a list", "found no such field"],
    );
    let schedule = |kind, ranks, micro_batches| ["schedule", "--kind", kind, "--ranks", ranks, "--micro-batches", micro_batches];
    refuses(&dir.0, &schedule("nonsense", "2", "4"), &["--kind: expected one of gpipe", "found \"nonsense\""]);
    refuses(&dir.0, &schedule("dualpipe", "3", "8"), &["--ranks: expected an even number"]);
    refuses(&dir.0, &schedule("dualpipe", "4", "0"), &["--micro-batches: expected", "found 0"]);
    refuses(&dir.0, &schedule("1f1b", "0", "6"), &["--ranks: expected 1 or more"]);
    refuses(&dir.0, &schedule("1f1b", "-2", "6"), &["--ranks", "-2"]);
    refuses(&dir.0, &[&schedule("1f1b", "2", "4")[..], &["--costs", "F=x"]].concat(), &["--costs: expected"]);
    refuses(&dir.0, &[&schedule("1f1b", "2", "4")[..], &["--format", "png"]].concat(), &["--format", "png"]);
}

#[test]
fn options_that_do_not_exist() {
    let dir = Dir::new();
    refuses(&dir.0, &[], &[]);
    refuses(&dir.0, &["frobnicate"], &["frobnicate"]);
    for command in ["train", "generate", "eval", "logits", "grad", "convert", "schedule", "place"] {
        refuses(&dir.0, &[command, "--frobnicate"], &["--frobnicate"]);
    }
    refuses(&dir.0, &["generate"], &["CHECKPOINT"]);
    refuses(&dir.0, &["generate", "model", "--temperature=-1"], &["temperature"]);
    refuses(&dir.0, &["generate", "model", "--top-p", "2"], &["top"]);
    refuses(&dir.0, &["generate", "model", "--max-new-tokens=-5"], &["--max-new-tokens"]);
}
