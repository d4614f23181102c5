//! Multi-head latent attention: prefill forward and backward, absorbed decode over a paged latent cache, RoPE and YaRN

mod absorb;
mod cache;
mod cpu;
mod decode;
mod error;
mod prefill;
pub mod reference;
pub mod rope;

pub use absorb::Absorbed;
pub use cache::{CacheConfig, KvType, LatentCache, SeqId};
pub use decode::{DecodeOptions, DecodeRequest, decode};
pub use error::{Error, Result};
pub use prefill::{PrefillShape, prefill_backward, prefill_forward};
pub use rope::{RopeConfig, RopeTable, Yarn, softmax_scale};
