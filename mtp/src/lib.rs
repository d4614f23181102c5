//! Multi-token prediction: training modules and loss, draft verification by exact rejection sampling
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
