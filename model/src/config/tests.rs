use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A configuration as published, small.
fn published() -> Value {
    let mut value = Config::default_training().unwrap().to_json();
    value["rope_scaling"] = json!({
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
    });
    value["extra"] = json!({"a": [1, null]});
    value
}

/// As newer libraries write it.
fn newer() -> Value {
    let mut value = published();
    let map = value.as_object_mut().unwrap();
    let mut rope = map.remove("rope_scaling").unwrap();
    map.remove("rope_theta");
    rope.as_object_mut().unwrap().remove("type");
    rope["rope_type"] = json!("yarn");
    rope["rope_theta"] = json!(10000.0);
    map.insert("rope_parameters".into(), rope);
    map.remove("torch_dtype");
    map.insert("dtype".into(), json!("float32"));
    value
}

fn error(change: impl FnOnce(&mut Value)) -> String {
    let mut value = published();
    change(&mut value);
    let text = Config::from_json(value).unwrap_err().to_string();
    assert!(text.contains("expected") && text.contains("found") && !text.contains('\n'), "{text}");
    text
}

#[test]
fn shipped_configurations_are_valid() {
    for text in [include_str!("../../configs/default.json"), include_str!("../../configs/tiny_v3.json")] {
        let config = Config::from_json_str(text).unwrap();
        config.router_config().validate().unwrap();
        config.rope_config().frequencies().unwrap();
        assert_eq!(config.vocab_size, 256);
    }
}

#[test]
fn both_spellings_of_the_rotary_embedding_say_the_same() {
    let (a, b) = (Config::from_json(published()).unwrap(), Config::from_json(newer()).unwrap());
    assert_eq!(a.yarn, b.yarn);
    assert_eq!((a.rope_theta, a.softmax_scale()), (b.rope_theta, b.softmax_scale()));
    let mscale = 0.1 * 40f64.ln() + 1.0;
    let scale = (48f64).powf(-0.5) * mscale * mscale;
    assert!((f64::from(a.softmax_scale()) - scale).abs() < 1e-7);
    // Each is written as it was read.
    let (a, b) = (a.to_json(), b.to_json());
    assert!(a.get("rope_parameters").is_none() && a["rope_scaling"]["type"] == "yarn" && a["rope_theta"] == 10000.0);
    assert!(b.get("rope_scaling").is_none() && b.get("rope_theta").is_none() && b["rope_parameters"]["rope_type"] == "yarn");
    // Both at once, as long as they agree.
    let both = |theta: f64, factor: f64| {
        let mut value = newer();
        value["rope_theta"] = json!(theta);
        value["rope_scaling"] = published()["rope_scaling"].clone();
        value["rope_scaling"]["factor"] = json!(factor);
        Config::from_json(value)
    };
    assert!(both(10000.0, 40.0).is_ok());
    assert!(both(5000.0, 40.0).unwrap_err().to_string().contains("rope_theta: expected rope_parameters.rope_theta = 10000"));
    assert!(both(10000.0, 4.0).unwrap_err().to_string().contains("rope_scaling: expected what rope_parameters says"));
}

#[test]
fn reading_what_is_written_changes_nothing() {
    for value in [published(), newer()] {
        let config = Config::from_json(value.clone()).unwrap();
        let written = config.to_json();
        for (key, old) in value.as_object().unwrap() {
            let same = old == &written[key] || old.as_f64().is_some_and(|v| Some(v) == written[key].as_f64());
            assert!(same || key.starts_with("rope_"), "{key}: {old} became {}", written[key]);
        }
        let again = Config::from_json_str(&config.to_json_string()).unwrap();
        assert_eq!(again.to_json(), written);
    }
}

#[test]
fn storage_is_declared_where_it_was() {
    let mut config = Config::from_json(newer()).unwrap();
    config.set_storage("bfloat16", true);
    let json = config.to_json();
    assert!(config.is_fp8() && json["dtype"] == "bfloat16" && json.get("torch_dtype").is_none());
    assert!(Config::from_json(json).unwrap().is_fp8());
    config.set_storage("float32", false);
    assert!(!config.is_fp8() && config.to_json().get("quantization_config").is_none());
}

#[test]
fn contradictions_are_named() {
    let set = |field: &'static str, to: Value| move |v: &mut Value| v[field] = to;
    let starts = |field: &'static str, to: Value, message: &str| {
        let text = error(set(field, to.clone()));
        assert!(text.starts_with(&format!("model configuration: {field}")) && text.contains(message), "{field} = {to}: {text}");
    };
    for field in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_group",
        "topk_group",
        "num_experts_per_tok",
        "moe_layer_freq",
        "max_position_embeddings",
    ] {
        for value in [json!(0), json!(-3), json!(2.5), json!("8"), json!(1e30), json!(u64::MAX)] {
            starts(field, value.clone(), &format!("found {value}"));
        }
    }
    for field in ["vocab_size", "kv_lora_rank", "first_k_dense_replace", "routed_scaling_factor", "q_lora_rank"] {
        let text = error(|v| drop(v.as_object_mut().unwrap().remove(field)));
        assert!(text.contains(field) && text.contains("found no such field"), "{text}");
    }
    starts("n_routed_experts", json!(-8), "found -8");
    starts("n_routed_experts", Value::Null, "first_k_dense_replace = 1 leaves mixture layers among 4 layers");
    starts("n_group", json!(3), "a divisor of n_routed_experts = 8, found 3");
    starts("topk_group", json!(5), "at most n_group = 4, found 5");
    starts("num_experts_per_tok", json!(5), "at most the 4 experts that the 2 kept of 4 groups hold, found 5");
    starts("qk_rope_head_dim", json!(15), "an even number");
    starts("num_key_value_heads", json!(2), "num_attention_heads = 4");
    starts("first_k_dense_replace", json!(5), "at most num_hidden_layers = 4, found 5");
    starts("hidden_act", json!("gelu"), "\"silu\", the only one supported, found \"gelu\"");
    starts("topk_method", json!("greedy"), "\"noaux_tc\"");
    starts("scoring_func", json!("tanh"), "\"sigmoid\" or \"softmax\", found \"tanh\"");
    starts("attention_bias", json!(true), "false, the only value supported");
    starts("tie_word_embeddings", json!(true), "false, the only value supported");
    starts("attention_dropout", json!(0.1), "0, the only value supported");
    starts("norm_topk_prob", json!(1), "true or false, found 1");
    starts("rms_norm_eps", json!(0.0), "a positive number");
    starts("rms_norm_eps", json!("x"), "a number, found \"x\"");
    starts("rope_theta", json!(1.0), "a number above 1");
    starts("routed_scaling_factor", json!(-1.0), "a positive number, found -1");
    starts("rope_scaling", json!("yarn"), "an object");
    starts("rope_scaling", json!({"type": "linear", "factor": 2}), "\"default\" or \"yarn\", found \"linear\"");
    starts("rope_scaling", json!({"factor": 2}), "rope_type: expected \"default\" or \"yarn\", found no such field");
    starts("quantization_config", json!({"quant_method": "awq"}), "\"fp8\", the only one supported, found \"awq\"");
    starts("quantization_config", json!({"quant_method": "fp8", "weight_block_size": [64, 64]}), "[128, 128], found [64,64]");
    let text = error(|v| {
        v["model_type"] = json!("llama");
        v["architectures"] = json!(["LlamaForCausalLM"]);
    });
    assert!(text.contains("model_type: expected \"deepseek_v3\", found \"llama\""), "{text}");
    let text = error(|v| {
        v["hidden_size"] = json!(1 << 20);
        v["num_attention_heads"] = json!(1 << 24);
        v["num_key_value_heads"] = json!(1 << 24);
    });
    assert!(text.contains("at most 2^40 elements"), "{text}");
    starts("qk_head_dim", json!(7), "qk_nope_head_dim + qk_rope_head_dim = 48, found 7");
    for (field, value, message) in [
        ("factor", json!(0.5), "at least 1"),
        ("factor", Value::Null, "a number, found null"),
        ("original_max_position_embeddings", json!(0), "from 1"),
        ("beta_fast", json!(0.5), "above beta_slow"),
        ("beta_slow", json!(-1), "positive"),
        ("mscale", json!(-1), "at least 0"),
        ("attention_factor", json!(1.5), "not supported, found 1.5"),
    ] {
        let text = error(|v| v["rope_scaling"][field] = value);
        assert!(text.contains(&format!("rope_scaling.{field}: expected")) && text.contains(message), "{text}");
    }
    for text in ["", "{", "[]", "7"] {
        assert!(Config::from_json_str(text).is_err());
    }
}

#[test]
fn a_dense_model_needs_no_experts() {
    let mut value = published();
    let map = value.as_object_mut().unwrap();
    for field in ["n_routed_experts", "n_shared_experts", "moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group"]
    {
        map.remove(field);
    }
    map.remove("first_k_dense_replace");
    map.remove("routed_scaling_factor");
    let config = Config::from_json(value).unwrap();
    assert!((0..9).all(|layer| !config.is_moe(layer)));
    assert!(config.tensors().iter().all(|t| !t.name.contains("experts") && !t.name.contains("mlp.gate.")));
    assert_eq!(Config::from_json(config.to_json()).unwrap().tensors(), config.tensors());
}

#[test]
fn groups_of_one_expert_are_groups() {
    let mut value = published();
    value["n_group"] = json!(8);
    value["topk_group"] = json!(2);
    Config::from_json(value.clone()).unwrap().router_config().validate().unwrap();
    value["topk_group"] = json!(1);
    assert!(Config::from_json(value).unwrap_err().to_string().contains("at most the 1 experts"));
}

#[test]
fn eos_tokens_are_a_number_a_list_or_none() {
    for (value, ids) in [(json!(1), vec![1]), (json!([1, 2]), vec![1, 2]), (Value::Null, vec![]), (json!(-1), vec![])] {
        let mut json = published();
        json["eos_token_id"] = value;
        assert_eq!(Config::from_json(json).unwrap().eos_token_ids(), ids);
    }
}

#[test]
fn tensors_of_the_real_model() {
    // The published sizes: 671 billion parameters and an MTP module of 11.6 billion beyond the shared embedding and head.
    let mut value = published();
    for (field, size) in [
        ("vocab_size", 129280),
        ("hidden_size", 7168),
        ("intermediate_size", 18432),
        ("moe_intermediate_size", 2048),
        ("num_hidden_layers", 61),
        ("num_attention_heads", 128),
        ("num_key_value_heads", 128),
        ("n_routed_experts", 256),
        ("num_experts_per_tok", 8),
        ("n_group", 8),
        ("topk_group", 4),
        ("first_k_dense_replace", 3),
        ("q_lora_rank", 1536),
        ("kv_lora_rank", 512),
        ("qk_nope_head_dim", 128),
        ("qk_rope_head_dim", 64),
        ("v_head_dim", 128),
    ] {
        value[field] = json!(size);
    }
    let mut config = Config::from_json(value).unwrap();
    let tensors = config.tensors();
    assert_eq!(tensors.iter().map(|t| &t.name).collect::<BTreeSet<_>>().len(), tensors.len());
    assert_eq!(config.parameter_count() / 1_000_000_000, 682);
    let with = config.parameter_count();
    config.num_nextn_predict_layers = 0;
    assert_eq!(config.parameter_count() / 1_000_000_000, 671);
    assert_eq!((with - config.parameter_count()) / 100_000_000, 116);
    let find = |name: &str| tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(find("model.layers.60.self_attn.kv_a_proj_with_mqa.weight").shape, [576, 7168]);
    assert_eq!(find("model.layers.3.mlp.experts.255.down_proj.weight").shape, [7168, 2048]);
    assert_eq!(find("model.layers.2.mlp.down_proj.weight").shape, [7168, 18432]);
    assert_eq!(find("model.layers.61.eh_proj.weight").shape, [7168, 14336]);
    let head = find("model.layers.61.shared_head.head.weight");
    assert_eq!((head.copy_of, head.layer, head.kind), (Some("lm_head.weight"), Some(61), TensorKind::Head));
}

/// A field of the published configuration with a value that may or may not make sense.
fn mutation() -> impl Strategy<Value = (usize, Value)> {
    let value = prop_oneof![
        (0i64..20).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[a-z]{0,5}".prop_map(Value::from),
        Just(Value::Null),
        Just(json!([1])),
        Just(json!({"type": "yarn", "factor": 2})),
    ];
    (0usize..60, value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is accepted is usable by the pieces, survives writing, and has sizes that can be listed.
    #[test]
    fn accepted_or_refused_but_never_a_panic(mutations in prop::collection::vec(mutation(), 1..4)) {
        let mut value = published();
        let fields: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        for (i, new) in mutations {
            value[&fields[i % fields.len()]] = new;
        }
        match Config::from_json(value) {
            Ok(config) => {
                prop_assert!(config.n_routed_experts == 0 || config.router_config().validate().is_ok());
                prop_assert!(config.rope_config().frequencies().is_ok());
                prop_assert!(config.softmax_scale().is_finite());
                let again = Config::from_json(config.to_json()).unwrap();
                prop_assert_eq!(again.to_json(), config.to_json());
                if config.num_hidden_layers < 100 && config.n_routed_experts < 100 && config.num_nextn_predict_layers < 100 {
                    for t in config.tensors() {
                        prop_assert!(!t.is_empty() && t.len() <= 1 << 42, "{} {:?}", t.name, t.shape);
                    }
                }
            }
            Err(error) => prop_assert!(error.to_string().contains("expected")),
        }
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in ".{0,200}") {
        prop_assert!(Config::from_json_str(&text).is_err());
    }
}
