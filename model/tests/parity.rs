//! Equality with the public implementation of the same model, on the cases of tests/data/hf.

use std::path::{Path, PathBuf};

use dualpipe::Stage;
use fp8_gemm::Precision;
use mtp::Sampler;
use v3_model::checkpoint::{TensorFile, read_tensors};
use v3_model::generate::{GenerateOptions, Generator};
use v3_model::inspect;
use v3_model::layers::Recompute;

const CASES: [&str; 4] = ["base", "yarn", "noqlora", "fp8"];

fn case(name: &str) -> (PathBuf, TensorFile) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf").join(name);
    let expected = read_tensors(&dir.join("expected.safetensors")).expect("expected values");
    (dir, expected)
}

fn tensor(file: &TensorFile, name: &str) -> Vec<f32> {
    let shape = file.info(name).expect(name).shape.clone();
    file.f32(name, &shape).expect(name)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| if (a - b).abs() > m || (a - b).is_nan() { (a - b).abs() } else { m })
}

#[test]
fn logits_of_the_main_model_and_of_the_module() {
    for name in CASES {
        let (dir, expected) = case(name);
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("logits-{name}.safetensors"));
        inspect::logits(&dir, &dir.join("expected.safetensors"), &out, Precision::F32).expect("logits");
        let found = read_tensors(&out).expect("written logits");
        let bound = if name == "fp8" { 5e-4 } else { 5e-5 };
        for tensor_name in ["logits", "mtp_logits"] {
            let error = largest_difference(&tensor(&found, tensor_name), &tensor(&expected, tensor_name));
            assert!(error <= bound, "{name}: {tensor_name} {error:e}");
        }
    }
}

#[test]
fn loss_and_gradients() {
    for name in CASES {
        let (dir, expected) = case(name);
        for recompute in ["none", "all"] {
            let recompute: Recompute = recompute.parse().expect("a list");
            let found =
                inspect::gradients(&dir, &dir.join("expected.safetensors"), Precision::F32, recompute).expect("gradients");
            let error = (found.loss - tensor(&expected, "loss")[0]).abs();
            assert!(error <= 1e-5, "{name}: loss {error:e}");
            let mut compared = 0;
            for p in found.model.store.layout().params().iter().filter(|p| p.is_trained() && name != "fp8") {
                let expected = tensor(&expected, &format!("grad.{}", p.name));
                let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let error = largest_difference(&found.model.grads[p.range()], &expected);
                assert!(error <= 1e-4 * scale, "{name}: {} {error:e} of {scale:e}", p.name);
                compared += 1;
            }
            assert!(compared > 30 || name == "fp8");
        }
    }
}

#[test]
fn router_choices() {
    for name in CASES {
        let (dir, expected) = case(name);
        let mut model =
            inspect::load(&dir, Precision::F32, v3_model::layers::linear::Packing::Inference, false).expect("a model");
        let (ids, batch, length) = expected.token_ids("input_ids", model.config.vocab_size).expect("ids");
        model.begin_step(vec![v3_model::layers::tail::Chunk {
            sequences: batch,
            tokens: length,
            rows: length,
            ids,
            global_sequences: batch,
            first_sequence: 0,
            micro_batches: 1,
        }]);
        model.forward(0, 0, None).expect("a forward pass");
        let saved = model.saved(0, 0).expect("what it kept");
        let mut layers = 0;
        for (layer, routing) in saved.blocks.iter().enumerate().filter_map(|(i, b)| Some((i, b.routing()?))) {
            let shape = [routing.tokens, routing.top_k];
            let indices = expected.i64(&format!("router.{layer}.indices"), &shape).expect("indices");
            let weights = expected.f32(&format!("router.{layer}.weights"), &shape).expect("weights");
            for token in 0..routing.tokens {
                let range = token * routing.top_k..(token + 1) * routing.top_k;
                let mut found: Vec<(i64, f32)> = routing.indices[range.clone()]
                    .iter()
                    .map(|&e| i64::from(e))
                    .zip(routing.weights[range.clone()].iter().copied())
                    .collect();
                found.sort_by_key(|(e, _)| *e);
                // No token of these cases is within 1e-5 of another choice, so all are compared.
                assert_eq!(
                    found.iter().map(|f| f.0).collect::<Vec<_>>(),
                    indices[range.clone()],
                    "{name}, layer {layer}, token {token}"
                );
                for ((_, a), b) in found.iter().zip(&weights[range]) {
                    assert!((a - b).abs() <= 1e-5, "{name}, layer {layer}, token {token}: weight {a} for {b}");
                }
            }
            layers += 1;
        }
        assert_eq!(layers, model.config.num_hidden_layers - 1, "{name}");
    }
}

#[test]
fn greedy_continuations_with_and_without_speculation() {
    for name in CASES {
        let (dir, expected) = case(name);
        let generator = Generator::load(&dir, Precision::F32).expect("a model");
        let (all, _, length) = expected.token_ids("greedy", generator.model().config.vocab_size).expect("ids");
        let prompt = length - 24;
        for speculate in [false, true] {
            let sampler = Sampler::new(0.0, 0, 1.0).expect("greedy");
            let options = GenerateOptions { max_new_tokens: 24, sampler, seed: 0, speculate };
            let found = generator.generate(&all[..prompt], &options, |_| Ok(true)).expect("tokens");
            assert_eq!(found.tokens, all[prompt..], "{name}, speculate: {speculate}");
            assert_eq!(found.acceptance.passes() > 0, speculate, "{name}: drafts are made when asked for");
        }
    }
}
