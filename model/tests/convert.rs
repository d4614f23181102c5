//! `v3 convert`: values, names, shards, configuration, and what it refuses.

mod files;

use std::path::Path;

use files::{Dir, config, names, source, values, write_checkpoint};
use half::bf16;
use v3_model::Config;
use v3_model::checkpoint::{Checkpoint, Dtype};
use v3_model::config::{TensorKind, scale_name};
use v3_model::convert::{Storage, convert};

fn run(input: &Path, output: &Path, to: Storage, max_shard: u64) -> Result<(), String> {
    let mut last = (0, 0);
    let result = convert(input, output, to, max_shard, &mut |done, total| {
        assert!(done >= last.0 && done <= total, "progress runs forward");
        last = (done, total);
    });
    result.map_err(|e| e.to_string())
}

fn read(path: &Path, config: &Config) -> Vec<(String, Vec<f32>)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    config.tensors().into_iter().map(|t| (t.name.clone(), checkpoint.tensor_f32(&t.name, &t.shape).unwrap())).collect()
}

#[test]
fn f32_to_bf16_rounds_and_back_is_exact() {
    let dir = Dir::new();
    let config = config();
    let (f32_dir, bf16_dir, back) = (dir.join("f32"), dir.join("bf16"), dir.join("back"));
    write_checkpoint(&f32_dir, &config, Dtype::F32, u64::MAX);
    run(&f32_dir, &bf16_dir, Storage::Bf16, 60_000).unwrap();
    run(&bf16_dir, &back, Storage::F32, u64::MAX).unwrap();
    let converted = Checkpoint::open(&bf16_dir).unwrap();
    assert!(names(&bf16_dir).len() > 3, "it is sharded");
    for t in config.tensors() {
        let info = converted.info(&t.name).unwrap();
        let expected = values(source(&t), t.len());
        let read = converted.tensor_f32(&t.name, &t.shape).unwrap();
        if t.kind == TensorKind::RouterBias {
            assert_eq!((info.dtype, read), (Dtype::F32, expected));
        } else {
            assert_eq!(info.dtype, Dtype::BF16);
            assert_eq!(read, expected.iter().map(|v| bf16::from_f32(*v).to_f32()).collect::<Vec<_>>());
        }
    }
    assert_eq!(read(&back, &config), read(&bf16_dir, &config));
    let json = converted.config().unwrap().to_json();
    assert_eq!((&json["torch_dtype"], &json["quantization_config"]), (&"bfloat16".into(), &serde_json::Value::Null));
    assert_eq!(json["some_unknown_field"], files::config_json()["some_unknown_field"]);
    assert_eq!(Checkpoint::open(&back).unwrap().config().unwrap(), config);
    assert_eq!(dir.names(), ["back", "bf16", "f32"]);
}

#[test]
fn fp8_is_stored_as_published() {
    let dir = Dir::new();
    let config = config();
    let (f32_dir, fp8_dir) = (dir.join("f32"), dir.join("fp8"));
    write_checkpoint(&f32_dir, &config, Dtype::F32, u64::MAX);
    run(&f32_dir, &fp8_dir, Storage::Fp8, 40_000).unwrap();
    let fp8 = Checkpoint::open(&fp8_dir).unwrap();
    fp8.check_all(&config).unwrap();
    for t in config.tensors() {
        let original = values(source(&t), t.len());
        let read = fp8.tensor_f32(&t.name, &t.shape).unwrap();
        if t.kind == TensorKind::Linear {
            assert_eq!(fp8.info(&t.name).unwrap().dtype, Dtype::F8_E4M3, "{}", t.name);
            let (rows, cols) = (t.shape[0], t.shape[1]);
            let blocks = cols.div_ceil(128);
            let scales = scale_name(&t.name);
            let scales = fp8.tensor_f32(&scales, &[rows.div_ceil(128), blocks]).unwrap();
            for (i, (value, original)) in read.iter().zip(&original).enumerate() {
                let scale = scales[i / cols / 128 * blocks + i % cols / 128];
                // Nearest even of E4M3: half a unit of 3 mantissa bits, or half of the smallest subnormal; scales are rounded too.
                let bound = (original.abs() / 16.0).max(scale * 2f32.powi(-10)) * (1.0 + 1e-5);
                assert!((value - original).abs() <= bound, "{} [{i}]: {value} for {original}, scale {scale}", t.name);
            }
            for (block, scale) in scales.iter().enumerate() {
                let inside = |i: usize| i / cols / 128 * blocks + i % cols / 128 == block;
                let largest = (0..original.len()).filter(|i| inside(*i)).fold(0f32, |m, i| m.max(original[i].abs()));
                assert_eq!(*scale, largest.max(1e-4) / 448.0, "{} block {block}", t.name);
            }
        } else {
            assert!(!fp8.is_fp8(&t.name), "{}", t.name);
            let dtype = if t.kind == TensorKind::RouterBias { Dtype::F32 } else { Dtype::BF16 };
            assert_eq!(fp8.info(&t.name).unwrap().dtype, dtype, "{}", t.name);
        }
    }
    let json = fp8.config().unwrap().to_json();
    assert_eq!(json["torch_dtype"], "bfloat16");
    assert_eq!(json["quantization_config"]["quant_method"], "fp8");
    assert_eq!(json["quantization_config"]["weight_block_size"], serde_json::json!([128, 128]));

    // FP8 to FP8 copies; FP8 to f32 dequantises exactly and says so in the configuration.
    let (again, back) = (dir.join("again"), dir.join("back"));
    run(&fp8_dir, &again, Storage::Fp8, u64::MAX).unwrap();
    let copied = Checkpoint::open(&again).unwrap();
    for name in fp8.names() {
        assert_eq!(fp8.bytes(name).unwrap(), copied.bytes(name).unwrap(), "{name}");
    }
    run(&fp8_dir, &back, Storage::F32, u64::MAX).unwrap();
    assert_eq!(read(&back, &config), read(&fp8_dir, &config));
    assert!(Checkpoint::open(&back).unwrap().names().all(|n| !n.ends_with("_scale_inv")));
    let json = Checkpoint::open(&back).unwrap().config().unwrap().to_json();
    assert_eq!((&json["torch_dtype"], json.get("quantization_config")), (&"float32".into(), None));
}

#[test]
fn what_belongs_to_the_model_comes_along_and_a_run_s_state_does_not() {
    let dir = Dir::new();
    let input = dir.join("in");
    write_checkpoint(&input, &config(), Dtype::F32, u64::MAX);
    for name in
        ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE", "trainer.json", "optimizer.safetensors"]
    {
        std::fs::write(input.join(name), name).unwrap();
    }
    run(&input, &dir.join("out"), Storage::F32, u64::MAX).unwrap();
    let expected =
        ["LICENSE", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&dir.join("out")), expected);
}

#[test]
fn what_cannot_be_converted_is_named_and_leaves_nothing() {
    let dir = Dir::new();
    let config = config();
    let input = dir.join("in");
    write_checkpoint(&input, &config, Dtype::F32, u64::MAX);
    let fails = |input: &Path, output: &Path, to, message: &str| {
        let before = dir.names();
        let error = run(input, output, to, u64::MAX).unwrap_err();
        assert!(error.contains(message), "{error}");
        assert_eq!(dir.names(), before);
    };
    fails(&input, &input, Storage::F32, "OUT: expected a directory other than IN");
    fails(&input, &dir.0, Storage::F32, "OUT: expected a directory that does not exist");
    fails(&dir.join("none"), &dir.join("out"), Storage::F32, "expected a checkpoint directory, found nothing");
    fails(&input, &input.join("config.json/out"), Storage::F32, "cannot create");

    // A tensor short.
    let mut longer = config.clone();
    (longer.num_hidden_layers, longer.num_nextn_predict_layers) = (4, 0);
    std::fs::write(input.join("config.json"), longer.to_json_string()).unwrap();
    fails(&input, &dir.join("out"), Storage::F32, "tensor model.layers.3.input_layernorm.weight: expected a tensor of this name");
    (longer.num_hidden_layers, longer.num_nextn_predict_layers) = (2, 2);
    std::fs::write(input.join("config.json"), longer.to_json_string()).unwrap();
    fails(&input, &dir.join("out"), Storage::F32, "num_nextn_predict_layers = 2 (0 for a checkpoint without MTP layers)");
    std::fs::write(input.join("config.json"), config.to_json_string()).unwrap();

    // A value that no scale can represent.
    let file = input.join("model.safetensors");
    let place = Checkpoint::open(&input).unwrap().info("model.layers.0.mlp.up_proj.weight").unwrap().range.start;
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[place..place + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(&file, &bytes).unwrap();
    fails(&input, &dir.join("out"), Storage::Fp8, "up_proj.weight: expected finite values, to be quantised, found inf");

    std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
    fails(&input, &dir.join("out"), Storage::F32, "bytes of tensor data as the header says");
}
