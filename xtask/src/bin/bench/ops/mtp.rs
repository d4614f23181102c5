//! The output head, the entry of a module, the sampler and the verifier.

use super::{Operation, Unit, bytes, f32_flops, values};
use crate::ceilings::Ceiling;
use mtp::{
    Draft, GradScale, Head, MergeNorms, RequestRng, Sampler, head_backward, head_backward_input, head_backward_weight,
    head_forward, merge_forward, verify_sampled,
};
use std::hint::black_box;

const V3_VOCABULARY: usize = 129_280;

pub fn operations(_threads: usize) -> Vec<Operation> {
    let mut all = vec![];
    for (tokens, hidden, vocab) in [(2048, 256, 256), (512, 1024, 8192)] {
        let shape = format!("{tokens}x{hidden}, vocabulary {vocab}");
        let product = 2.0 * (tokens * hidden * vocab) as f64;
        let operands = move || {
            let targets: Vec<i64> = (0..tokens).map(|t| (t * 7 % vocab) as i64).collect();
            (values(tokens * hidden, 1), values(vocab * hidden, 2), targets, vec![(vocab as f32).ln(); tokens])
        };
        let one = GradScale::Uniform(1.0);
        all.push(Operation::new("head forward", &*shape, f32_flops(product), move || {
            let (h, w, targets, _) = operands();
            Ok(move || {
                let head = Head { h: &h, w: &w, targets: &targets, hidden, vocab };
                head_forward(&head).map(|out| drop(black_box(out)))
            })
        }));
        // Logits are computed again: a product more than a backward that had kept them.
        all.push(Operation::new("head backward input", &*shape, f32_flops(2.0 * product), move || {
            let (h, w, targets, lse) = operands();
            let mut dh = vec![0.0; tokens * hidden];
            Ok(move || head_backward_input(&Head { h: &h, w: &w, targets: &targets, hidden, vocab }, &lse, one, &mut dh))
        }));
        all.push(Operation::new("head backward weight", &*shape, f32_flops(2.0 * product), move || {
            let (h, w, targets, lse) = operands();
            let mut dw = vec![0.0; vocab * hidden];
            Ok(move || head_backward_weight(&Head { h: &h, w: &w, targets: &targets, hidden, vocab }, &lse, one, &mut dw))
        }));
        all.push(Operation::new("head backward both", &*shape, f32_flops(3.0 * product), move || {
            let (h, w, targets, lse) = operands();
            let (mut dh, mut dw) = (vec![0.0; tokens * hidden], vec![0.0; vocab * hidden]);
            Ok(move || {
                let head = Head { h: &h, w: &w, targets: &targets, hidden, vocab };
                head_backward(&head, &lse, one, &mut dh, &mut dw)
            })
        }));
    }
    let (tokens, hidden) = (1024, 7168);
    all.push(Operation::new("merge", format!("{tokens}x2x{hidden}"), bytes(16 * tokens * hidden, Ceiling::Copy), move || {
        let (emb, h, w) = (values(tokens * hidden, 1), values(tokens * hidden, 2), values(hidden, 3));
        let (mut merged, mut rstd_emb, mut rstd_h) = (vec![0.0; 2 * tokens * hidden], vec![0.0; tokens], vec![0.0; tokens]);
        Ok(move || {
            let norms = MergeNorms { enorm: &w, hnorm: &w, eps: 1e-6 };
            merge_forward(&norms, &emb, &h, &mut merged, &mut rstd_emb, &mut rstd_h)
        })
    }));
    for (name, top_k, top_p) in [("probs", 0, 1.0), ("probs, top-k 50", 50, 1.0), ("probs, top-p 0.95", 0, 0.95)] {
        all.push(Operation::new(name, format!("vocabulary {V3_VOCABULARY}"), (1.0, Unit::Count("rows/s"), None), move || {
            let (sampler, logits) = (Sampler::new(0.8, top_k, top_p)?, logits(V3_VOCABULARY));
            Ok(move || sampler.probs(&logits).map(|p| drop(black_box(p))))
        }));
    }
    all.push(Operation::new(
        "verify one draft",
        format!("vocabulary {V3_VOCABULARY}"),
        (1.0, Unit::Count("drafts/s"), None),
        || {
            let p = Sampler::default().probs(&logits(V3_VOCABULARY))?;
            let (target, mut rng) = ([p.clone(), p.clone()].concat(), RequestRng::new(1, 1));
            Ok(move || {
                verify_sampled(&[17], Draft::Sampled(&p), &target, V3_VOCABULARY, &mut rng).map(|v| {
                    black_box(v);
                })
            })
        },
    ));
    all
}

/// Logits that spread as a trained model's do.
fn logits(n: usize) -> Vec<f32> {
    let (a, b) = (values(n, 5), values(n, 6));
    a.iter().zip(&b).map(|(a, b)| 8.0 * a * b).collect()
}
