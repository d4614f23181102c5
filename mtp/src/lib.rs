//! Multi-token prediction: training modules and loss, draft verification by exact rejection sampling.
//!
//! DeepSeek-V3 predicts not one next token but several: beside the main model stand D small modules, the k-th of which sees
//! the hidden state of depth k - 1 at position i and the embedding of token i + k, and predicts token i + k + 1, so that the
//! causal chain is kept. In training the modules sharpen the main model; afterwards they are dropped, or they draft tokens
//! that the main model verifies in one pass. This crate holds what is particular to that and nothing of the transformer
//! block between, so that any model can use it:
//!
//! - [`TokenBatch`]: which token each depth reads and predicts, across sequence and document boundaries;
//! - [`merge_forward`] and its backward passes: `[RMSNorm(embedding) | RMSNorm(hidden)]`, the entry of a module, and [`project`];
//! - [`head_forward`] and its backward passes: the output head with its cross entropy, logits never stored;
//! - [`LossWeights`]: lambda / D, and what each depth is averaged over;
//! - [`verify_greedy`] and [`verify_sampled`]: which drafted tokens stand. They know nothing of models, and serve EAGLE-style
//!   drafters as well;
//! - [`Sampler`], [`RequestRng`]: temperature, top-k, top-p; a seeded stream of random numbers per request;
//! - [`AcceptanceStats`]: acceptance by position.
//!
//! # One depth, forwards and backwards
//!
//! ```
//! use mtp::*;
//! let (hidden, vocab, ids) = (2, 4, [3, 1, 2, 0]);
//! let batch = TokenBatch::new(&ids, &[0, 4]);
//! let rows = batch.depth(1)?; // position i reads token i + 1, predicts token i + 2
//! assert_eq!(rows.targets, [2, 0, -1, -1]);
//!
//! // The entry: embeddings of rows.inputs and the hidden states of the depth before.
//! let (emb, h) = ([0.5; 8], [1.0, -1.0, 2.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
//! let norms = MergeNorms { enorm: &[1.0; 2], hnorm: &[1.0; 2], eps: 1e-6 };
//! let (mut merged, mut rstd_emb, mut rstd_h) = ([0.0; 16], [0.0; 4], [0.0; 4]);
//! merge_forward(&norms, &emb, &h, &mut merged, &mut rstd_emb, &mut rstd_h)?;
//! let mut x = [0.0; 8];
//! project(&merged, &[0.1; 8], hidden, &mut x)?;
//! // ... the module's transformer block and its norm turn x into hidden states ...
//!
//! // The shared output head.
//! let w = [0.2, 0.1, -0.3, 0.0, 0.5, 0.5, 0.0, -0.1];
//! let head = Head { h: &x, w: &w, targets: &rows.targets, hidden, vocab };
//! let out = head_forward(&head)?;
//! let weights = LossWeights { lambda: 0.3, depths: 1, averaging: Averaging::OwnTokens };
//! let token_weight = weights.token_weight(rows.count, batch.rows()?);
//! let loss = token_weight * sum_losses(&out.loss);
//! assert!(loss > 0.0 && out.loss[2..] == [0.0, 0.0]);
//! let (mut dx, mut dw) = ([0.0; 8], [0.0; 8]);
//! head_backward_input(&head, &out.lse, GradScale::Uniform(token_weight as f32), &mut dx)?;
//! head_backward_weight(&head, &out.lse, GradScale::Uniform(token_weight as f32), &mut dw)?;
//! # Ok::<(), mtp::Error>(())
//! ```
//!
//! # Drafting
//!
//! ```
//! use mtp::*;
//! let sampler = Sampler::new(0.7, 50, 0.95)?;
//! let mut rng = RequestRng::new(42, 0);
//! let q = sampler.probs(&[0.1, 2.0, 0.3])?; // the drafter's law, and a token from it
//! let drafted = sample(&q, &mut rng)?;
//! // One pass of the target over the drafted token gives the laws before and after it.
//! let p = [sampler.probs(&[0.0, 1.9, 0.5])?, sampler.probs(&[1.0, 1.0, 0.0])?].concat();
//! let verdict = verify_sampled(&[drafted], Draft::Sampled(&q), &p, 3, &mut rng)?;
//! let committed: Vec<u32> = verdict.committed(&[drafted]).collect();
//! assert_eq!(committed.len(), verdict.accepted + 1);
//! # Ok::<(), mtp::Error>(())
//! ```
//!
//! # Numerical policy
//!
//! Every result has the same bits for any number of threads and on every instruction set; a row's loss and input gradient
//! depend on that row and the weights only. The orders of summation are stated at [`head_forward`]'s module and functions. Any
//! number of tokens including 0, any hidden size, vocabularies from 1 to 2^32 - 1.
//!
//! # Memory
//!
//! The head holds one block of at most [`TOKEN_BLOCK`] x [`VOCAB_CHUNK`] logits (1 MiB), and for the weight gradient of more than
//! [`TOKEN_BLOCK`] tokens one chunk of `[VOCAB_CHUNK, hidden]`; never `[tokens, vocabulary]`.
//!
//! # Measured
//!
//! One thread of a 2-core virtual machine of the Sapphire Rapids class (f32 multiply-add peak 240 GFLOP/s), 2026-11-23, medians of
//! `cargo xtask bench mtp`, GFLOP/s: 2048 tokens, hidden 256, vocabulary 256: forward 151, backward for inputs 186, for weights
//! 178; 512 tokens, hidden 1024, vocabulary 8192: forward 176, backward for inputs 180, for weights 172. The backwards count
//! the logits they compute again.
//!
//! # Features
//!
//! `rayon` (default): parallel loops on the caller's rayon pool. Without it everything runs on the calling thread, with the
//! same results.

mod error;
mod head;
mod math;
mod merge;
pub mod reference;
mod rng;
mod sampler;
mod stats;
mod targets;
mod verify;

pub use error::{Error, Result};
pub use head::{
    GradScale, Head, HeadOutput, TOKEN_BLOCK, VOCAB_CHUNK, head_backward, head_backward_input, head_backward_weight, head_forward,
};
pub use merge::{
    MergeNorms, MergeSaved, merge_backward_input, merge_backward_weight, merge_forward, project, project_backward_input,
    project_backward_weight,
};
pub use rng::{RequestRng, Uniform};
pub use sampler::{Sampler, argmax, sample};
pub use stats::AcceptanceStats;
pub use targets::{Averaging, DepthRows, LossWeights, TokenBatch, sum_losses};
pub use verify::{Draft, Verdict, verify_greedy, verify_sampled};
