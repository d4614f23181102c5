//! Multi-head latent attention (MLA) on the CPU.
//!
//! MLA caches one small latent a token instead of keys and values for every head. A layer is
//!
//! ```text
//! c      [T, d_c]                  latent: a projection of the hidden state, normalised
//! k_rope [T, d_rope]               one rotated key for all heads
//! kv     [T, H, d_nope + d_v]      = kv_b_proj c: per head [k_nope | v]
//! q      [T, H, d_nope + d_rope]   per head [q_nope | q_rope], the second part rotated
//! out    [T, H, d_v]               softmax(scale (q_nope . k_nope + q_rope . k_rope)) v, causal
//! ```
//!
//! and there are two ways to compute it, each with its own kernel here:
//!
//! - **Prefill** ([`prefill_forward`], [`prefill_backward`]) expands keys and values: fewest operations when many tokens come
//!   at once, and what training differentiates. Sequences of any lengths are packed one after the other; scores live in
//!   blocks (online softmax), never as `T x T`.
//! - **Absorbed decode** ([`decode()`]) never expands: [`Absorbed::absorb_query`] moves the query into latent space, attention runs
//!   over the cached latents themselves, for all heads the same, and [`Absorbed::expand_output`] comes back. It reads
//!   `d_c + d_rope` values a token from a paged cache ([`LatentCache`]) in f32, bf16 or FP8. Several queries a sequence are allowed, so
//!   that drafts can be verified and a prompt can be taken in chunks behind an existing cache.
//!
//! Around them: rotary embedding with YaRN ([`RopeTable`]), a cache with copy-on-write [`fork`](LatentCache::fork) and
//! [`trim`](LatentCache::trim), the absorb projections. Norms are in `v3_numerics::ops`.
//!
//! # Example
//!
//! ```
//! use mla_kernels::*;
//!
//! # fn main() -> Result<()> {
//! // Two sequences of 3 and 2 tokens, 2 heads.
//! let shape = PrefillShape { heads: 2, d_nope: 4, d_rope: 2, d_v: 3 };
//! let rope = RopeConfig { dim: 2, theta: 10_000.0, max_position: 64, yarn: None, interleaved: true };
//! let scale = softmax_scale(shape.d_qk(), &rope);
//! let mut q = vec![0.1; 5 * 2 * shape.d_qk()];
//! let kv = vec![0.2; 5 * 2 * shape.d_kv()];
//! let k_rope = vec![0.3; 5 * 2];
//! // Rotate the last d_rope values of each head.
//! let positions = [0, 1, 2, 0, 1];
//! let table = RopeTable::new(&rope)?;
//! table.apply(&mut q, 5, 2 * shape.d_qk(), shape.d_nope, 2, shape.d_qk(), &positions, false)?;
//! let (mut out, mut lse) = (vec![0.0; 5 * 2 * 3], vec![0.0; 5 * 2]);
//! prefill_forward(&shape, scale, &[0, 3, 5], &q, &kv, &k_rope, &mut out, &mut lse)?;
//! assert!(out.iter().all(|x| (x - 0.2).abs() < 1e-6));
//!
//! // One new token against a cache of latents.
//! let config = CacheConfig { d_c: 8, d_rope: 2, page_size: 16, num_pages: 4, dtype: KvType::Bf16 };
//! let mut cache = LatentCache::new(config)?;
//! let seq = cache.new_sequence();
//! cache.append(seq, &vec![0.5; 3 * 8], &[0.0; 3 * 2])?;
//! let absorbed = Absorbed::new(&vec![0.25; 2 * shape.d_kv() * 8], 2, shape.d_nope, shape.d_v, 8)?;
//! let mut q_latent = vec![0.0; 2 * 8];
//! absorbed.absorb_query(&q, 1, 2 * shape.d_qk(), shape.d_qk(), &mut q_latent)?;
//! let (mut latent, mut lse) = (vec![0.0; 2 * 8], vec![0.0; 2]);
//! let request = DecodeRequest { seq, s_q: 1 };
//! decode(&cache, &[request], 2, &q_latent, &[0.0; 4], scale, &mut latent, &mut lse, &DecodeOptions::default())?;
//! let mut out = vec![0.0; 2 * 3];
//! absorbed.expand_output(&latent, 1, &mut out)?;
//! assert!(out.iter().all(|x| (x - 1.0).abs() < 1e-6)); // 8 values of 0.5, times 0.25
//! # Ok(())
//! # }
//! ```
//!
//! # Numerical policy
//!
//! - Inputs, sums and outputs are f32. A score is one chain of fused multiply-adds over the head dimension; an output adds one chain
//!   over the keys of each block, blocks in ascending order; `2^x` is a polynomial with a relative error below 2e-7. Log-sum-exps are
//!   natural logarithms. A query that sees no key gives 0 and `-inf`.
//! - **The same bits** on every instruction set (portable, AVX2, AVX-512) and for every number of threads.
//! - **Batch invariance**: the result of a row depends on its own query and the tokens it sees only, to the bit. Neither other
//!   sequences, nor later tokens (were they NaN), nor how many queries come with it matter: blocks begin at fixed
//!   multiples from the start of the sequence, splits at multiples of [`DecodeOptions::split_len`].
//! - FP8 cache: E4M3 with one f32 scale for each 128 values, `max(amax, 1e-4) / 448`; the rotated key in bf16.
//!
//! # How it is fast
//!
//! Queries lie in the vector lanes. A block of 32 queries is transposed once; scores are then broadcast keys times query vectors,
//! maximum, exponential and sum of the softmax are vertical, and outputs broadcast values times probability vectors. Keys and values are
//! read as they lie, nothing is transposed per key, and no sum crosses lanes. In the backward the scores of a block, just computed, are
//! broadcast against rows of queries and output gradients. Work is cut by sequence and head (prefill), or by
//! request, 32 queries and split (decode), and runs on the rayon pool of the caller.
//!
//! Measured on one core of a Sapphire Rapids virtual machine whose FMA peak is 240 GFLOP/s, busy with other work, processor time, best of
//! many; operations that causality makes needless are not counted:
//!
//! | operation | shape | GFLOP/s |
//! |---|---|---|
//! | prefill forward | 256 tokens, heads of 48/32 | 147 |
//! | prefill backward | 256 tokens, heads of 48/32 | 145 |
//! | prefill forward | 512 tokens, heads of 192/128 | 189 |
//! | prefill backward | 512 tokens, heads of 192/128 | 163 |
//! | decode, f32 / bf16 / FP8 | 512 tokens of 512 + 64, 16 heads | 117 / 121 / 112 |
//! | decode, f32 / bf16 / FP8 | 512 tokens of 512 + 64, 128 heads | 152 / 156 / 147 |
//!
//! Fewer than 16 queries a sequence fill a vector partly: one head costs as much as sixteen.
//!
//! # Features
//!
//! `rayon` (default): parallel loops. Without it everything runs on the calling thread, with the same bits.

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
