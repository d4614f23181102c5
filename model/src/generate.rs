//! Generation: absorbed decode over paged latent caches, with the multi-token-prediction modules as drafters.
//!
//! One pass of the main model takes the last committed token and the drafted ones; the verifier says how many stand; the
//! caches are trimmed back to what stands. Every row's result depends on that row's own context only, so that greedy
//! generation gives the same tokens with and without drafts.

use std::path::Path;

use fp8_gemm::Precision;
use fp8_gemm::linear::Activation;
use mla_kernels::{Absorbed, CacheConfig, DecodeOptions, DecodeRequest, KvType, LatentCache, SeqId, decode};
use mtp::{AcceptanceStats, Draft, RequestRng, Sampler, argmax, verify_greedy, verify_sampled};
use v3_numerics::ops;

use crate::error::{Error, Result};
use crate::inspect;
use crate::layers::block::Block;
use crate::layers::linear::Packing;
use crate::layers::{Env, Rows};
use crate::stage::{RankModel, StageWeights};

/// Tokens of a cache page.
const PAGE: usize = 64;
/// Rows of the prompt that one pass takes.
const PROMPT_CHUNK: usize = 256;

/// How to choose tokens, and how many.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerateOptions {
    /// Tokens to add.
    pub max_new_tokens: usize,
    /// Temperature and truncation.
    pub sampler: Sampler,
    /// Seed of the choices.
    pub seed: u64,
    /// Draft with the modules, when the checkpoint has any.
    pub speculate: bool,
}

/// What generation came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generated {
    /// The tokens added.
    pub tokens: Vec<u32>,
    /// Drafted and accepted tokens by position; empty without drafts.
    pub acceptance: AcceptanceStats,
    /// Seconds after the prompt.
    pub seconds: f64,
    /// Bytes of the caches.
    pub cache_bytes: usize,
}

/// A loaded model that generates.
#[derive(Debug)]
pub struct Generator {
    model: RankModel,
    layers: Vec<Absorbed>,
    modules: Vec<Absorbed>,
}

/// A block's cache.
#[derive(Debug)]
struct LayerCache {
    cache: LatentCache,
    seq: SeqId,
}

/// Hidden states of consecutive positions, those no longer needed dropped from the front.
#[derive(Debug, Default)]
struct States {
    first: usize,
    rows: Vec<f32>,
}

impl States {
    fn end(&self, width: usize) -> usize {
        self.first + self.rows.len() / width
    }

    fn range(&self, range: std::ops::Range<usize>, width: usize) -> Vec<f32> {
        self.rows[(range.start - self.first) * width..(range.end - self.first) * width].to_vec()
    }

    fn truncate(&mut self, end: usize, width: usize) {
        self.rows.truncate(end.saturating_sub(self.first) * width);
    }

    fn forget_before(&mut self, position: usize, width: usize) {
        let n = position.saturating_sub(self.first).min(self.rows.len() / width);
        self.rows.drain(..n * width);
        self.first += n;
    }
}

/// One request under way.
#[derive(Debug)]
struct Session {
    main: Vec<LayerCache>,
    modules: Vec<LayerCache>,
    /// States after each depth's final norm: of the main model, then of each module.
    states: Vec<States>,
}

impl Generator {
    /// Loads a checkpoint.
    pub fn load(dir: &Path, precision: Precision) -> Result<Self> {
        Self::new(inspect::load(dir, precision, Packing::Inference, true)?)
    }

    /// Absorbs the up-projections of a model that holds everything on one rank.
    pub fn new(model: RankModel) -> Result<Self> {
        let absorb = |block: &Block| {
            let (d, w) = (&block.attention.dims, &block.attention.kv_up_range);
            Ok::<_, Error>(Absorbed::new(model.store.at(w), d.heads, d.nope, d.v, d.kv_lora)?)
        };
        let stage = whole(&model)?;
        let layers = stage.blocks.iter().map(absorb).collect::<Result<_>>()?;
        let modules = stage.tail.iter().flat_map(|t| &t.modules).map(|m| absorb(&m.block)).collect::<Result<_>>()?;
        Ok(Self { model, layers, modules })
    }

    /// The model.
    pub fn model(&self) -> &RankModel {
        &self.model
    }

    fn session(&self, tokens: usize) -> Result<Session> {
        let dtype = if self.model.settings.precision == Precision::F32 { KvType::F32 } else { KvType::Bf16 };
        let cache = || -> Result<LayerCache> {
            let c = &self.model.config;
            let num_pages = tokens.div_ceil(PAGE);
            let config = CacheConfig { d_c: c.kv_lora_rank, d_rope: c.qk_rope_head_dim, page_size: PAGE, num_pages, dtype };
            let mut cache = LatentCache::new(config)?;
            let seq = cache.new_sequence();
            Ok(LayerCache { cache, seq })
        };
        let all = |n: usize| (0..n).map(|_| cache()).collect::<Result<Vec<_>>>();
        let states = (0..=self.modules.len()).map(|_| States::default()).collect();
        Ok(Session { main: all(self.layers.len())?, modules: all(self.modules.len())?, states })
    }

    fn env(&self) -> Env<'_> {
        self.model.settings.env(&self.model.store, self.model.expert_group())
    }

    /// One pass of the main model over `ids`, which follow what the caches hold. Keeps the rows' states; returns nothing.
    fn main_pass(&self, session: &mut Session, ids: &[u32]) -> Result<()> {
        let env = self.env();
        let stage = whole(&self.model)?;
        let (Some(embed), Some(tail)) = (&stage.embed, &stage.tail) else {
            return Err(crate::layers::out_of_order("generation"));
        };
        let first = match session.main.first() {
            Some(layer) => layer.cache.len(layer.seq)?,
            None => 0,
        };
        let mut x = vec![0.0; ids.len() * env.hidden];
        ops::embedding_gather(ids, env.store.at(embed), env.hidden, &mut x)?;
        for ((block, absorbed), cache) in stage.blocks.iter().zip(&self.layers).zip(&mut session.main) {
            x = block_pass(&env, block, absorbed, cache, x, first)?;
        }
        let h = normalise(&env, &x, &tail.norm)?;
        if session.states[0].rows.is_empty() {
            session.states[0].first = first;
        }
        session.states[0].rows.extend(h);
        Ok(())
    }

    /// One pass of module `i` (depth i + 1) over positions `range`, whose next-but-i tokens are `ids`.
    fn module_pass(&self, session: &mut Session, i: usize, range: std::ops::Range<usize>, ids: &[u32]) -> Result<()> {
        let env = self.env();
        let stage = whole(&self.model)?;
        let (Some(embed), Some(tail)) = (&stage.embed, &stage.tail) else {
            return Err(crate::layers::out_of_order("generation"));
        };
        let module = &tail.modules[i];
        let rows = range.len();
        let prev = session.states[i].range(range.clone(), env.hidden);
        let mut emb = vec![0.0; rows * env.hidden];
        ops::embedding_gather(ids, env.store.at(embed), env.hidden, &mut emb)?;
        let (merged, _) = module.merge(&env, &emb, &prev)?;
        let x = module.proj.forward(&Activation::from_vec(merged, rows, 2 * env.hidden, env.precision)?)?;
        let cache = &mut session.modules[i];
        // The position of a module's row is that of the token it embeds.
        let x = block_pass(&env, &module.block, &self.modules[i], cache, x, range.start + i + 1)?;
        let h = normalise(&env, &x, &module.norm)?;
        let states = &mut session.states[i + 1];
        if states.rows.is_empty() {
            states.first = range.start;
        }
        states.rows.extend(h);
        Ok(())
    }

    /// Logits of the states of `depth` at positions `range`.
    fn logits(&self, session: &Session, depth: usize, range: std::ops::Range<usize>) -> Result<Vec<f32>> {
        let Some(tail) = &whole(&self.model)?.tail else {
            return Err(crate::layers::out_of_order("generation"));
        };
        tail.project(&self.env(), &session.states[depth].range(range, self.model.config.hidden_size))
    }

    /// Drafts up to `wanted` tokens after `tokens`, the last of which the main model has not seen yet. Returns the tokens and,
    /// when sampling, their distributions.
    fn draft(
        &self,
        session: &mut Session,
        tokens: &[u32],
        wanted: usize,
        sampler: &Sampler,
        rng: &mut RequestRng,
    ) -> Result<(Vec<u32>, Vec<f32>)> {
        let (n, width) = (tokens.len(), self.model.config.hidden_size);
        let (mut drafted, mut laws) = (Vec::new(), Vec::new());
        for i in 0..self.modules.len().min(wanted) {
            let depth = i + 1;
            // Rows of positions up to n - 2; those whose embedded token is drafted are tried and taken back below.
            let done = session.states[depth].end(width);
            let token = |t: usize| if t + depth < n { tokens[t + depth] } else { drafted[t + depth - n] };
            let ids: Vec<u32> = (done..n - 1).map(token).collect();
            self.module_pass(session, i, done..n - 1, &ids)?;
            let logits = self.logits(session, depth, n - 2..n - 1)?;
            if sampler.is_greedy() {
                drafted.push(argmax(&logits)?);
            } else {
                let law = sampler.probs(&logits)?;
                drafted.push(mtp::sample(&law, rng)?);
                laws.extend(law);
            }
        }
        for (i, cache) in session.modules.iter_mut().enumerate() {
            let certain = n.saturating_sub(i + 1);
            let kept = certain.min(cache.cache.len(cache.seq)?);
            cache.cache.trim(cache.seq, kept)?;
            session.states[i + 1].truncate(certain, width);
        }
        Ok((drafted, laws))
    }

    /// Adds tokens to `prompt`; `emit` sees each as soon as it is committed and may end generation by returning false.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut emit: impl FnMut(u32) -> Result<bool>,
    ) -> Result<Generated> {
        let config = &self.model.config;
        let (vocab, width, limit) = (config.vocab_size, config.hidden_size, config.max_position_embeddings);
        if prompt.is_empty() {
            return Err(Error::option("--prompt", "at least one token", "none"));
        }
        crate::text::check_ids("--ids", prompt, vocab)?;
        if prompt.len().saturating_add(options.max_new_tokens) > limit {
            let expected = format!("at most max_position_embeddings = {limit} tokens with the prompt's {}", prompt.len());
            return Err(Error::option("--max-new-tokens", expected, options.max_new_tokens));
        }
        let mut out = Generated::default();
        if options.max_new_tokens == 0 {
            return Ok(out);
        }
        let depth = if options.speculate { self.modules.len() } else { 0 };
        let per_token = (self.layers.len() + self.modules.len()) * (config.kv_lora_rank + config.qk_rope_head_dim) * 2;
        let tokens = prompt.len() + options.max_new_tokens;
        if let Some((memory, need)) = crate::memory::exceeded(tokens as u128 * per_token as u128) {
            let expected = format!("as many as have room in {memory} of memory");
            return Err(Error::option("--max-new-tokens", expected, format!("{}, which need {need}", options.max_new_tokens)));
        }
        let mut session = self.session(prompt.len() + options.max_new_tokens + depth)?;
        out.cache_bytes = session.main.iter().chain(&session.modules[..depth]).map(|c| c.cache.bytes()).sum();
        let mut rng = RequestRng::new(options.seed, 0);
        for ids in prompt.chunks(PROMPT_CHUNK) {
            self.main_pass(&mut session, ids)?;
            if depth == 0 {
                let last = session.states[0].end(width) - 1;
                session.states[0].forget_before(last, width);
            }
        }
        let begun = std::time::Instant::now();
        let mut tokens = prompt.to_vec();
        let logits = self.logits(&session, 0, prompt.len() - 1..prompt.len())?;
        let mut pending = vec![options.sampler.sample(&logits, &mut rng)?];
        loop {
            for token in pending.drain(..) {
                tokens.push(token);
                out.tokens.push(token);
                if !emit(token)? || out.tokens.len() == options.max_new_tokens {
                    out.seconds = begun.elapsed().as_secs_f64();
                    return Ok(out);
                }
            }
            let n = tokens.len();
            let wanted = (options.max_new_tokens - out.tokens.len() - 1).min(depth);
            let (drafted, laws) = self.draft(&mut session, &tokens, wanted, &options.sampler, &mut rng)?;
            let mut ids = vec![tokens[n - 1]];
            ids.extend(&drafted);
            self.main_pass(&mut session, &ids)?;
            let logits = self.logits(&session, 0, n - 1..n + drafted.len())?;
            let verdict = if options.sampler.is_greedy() {
                let choices = logits.chunks_exact(vocab).map(|row| Ok(argmax(row)?)).collect::<Result<Vec<_>>>()?;
                verify_greedy(&drafted, &choices)?
            } else {
                let target = logits.chunks_exact(vocab).map(|row| Ok(options.sampler.probs(row)?)).collect::<Result<Vec<_>>>()?;
                verify_sampled(&drafted, Draft::Sampled(&laws), &target.concat(), vocab, &mut rng)?
            };
            if !drafted.is_empty() {
                out.acceptance.record(drafted.len(), &verdict);
            }
            pending.extend(verdict.committed(&drafted));
            let kept = n - 1 + verdict.kept_rows();
            for layer in &mut session.main {
                layer.cache.trim(layer.seq, kept)?;
            }
            session.states[0].truncate(kept, width);
            // A module still needs the states of the positions that it has not been over.
            for i in 0..=depth {
                let needed = if i < depth { session.states[i + 1].end(width) } else { kept };
                let end = session.states[i].end(width);
                session.states[i].forget_before(needed.min(end), width);
            }
        }
    }
}

/// The only stage of a model on one rank.
fn whole(model: &RankModel) -> Result<&StageWeights> {
    model.stages.get(&0).ok_or_else(|| crate::layers::out_of_order("generation"))
}

fn normalise(env: &Env<'_>, x: &[f32], norm: &std::ops::Range<usize>) -> Result<Vec<f32>> {
    let (mut h, mut rstd) = (vec![0.0; x.len()], vec![0.0; x.len() / env.hidden]);
    ops::rms_norm(x, env.store.at(norm), env.eps, &mut h, &mut rstd)?;
    Ok(h)
}

/// One block over the rows `x`, whose first position is `first`; appends them to its cache.
fn block_pass(
    env: &Env<'_>,
    block: &Block,
    absorbed: &Absorbed,
    cache: &mut LayerCache,
    x: Vec<f32>,
    first: usize,
) -> Result<Vec<f32>> {
    let attention = &block.attention;
    let d = &attention.dims;
    let m = x.len() / env.hidden;
    let rows = Rows::uniform(1, m, first as u32, 0.0);
    let h = Activation::from_vec(normalise(env, &x, &attention.norm)?, m, d.hidden, env.precision)?;
    let down = attention.down.forward(&h)?;
    let mut q = match &attention.q_norm {
        Some(norm) => {
            let (latent, _) = attention.latent(env, &down, &d.q_columns(), norm)?;
            attention.q_up.forward(&Activation::from_vec(latent, m, d.q_columns().len(), env.precision)?)?
        }
        None => attention.q_up.forward(&h)?,
    };
    attention.rope_queries(env, &mut q, &rows.positions, false)?;
    let (latent, _) = attention.latent(env, &down, &d.kv_columns(), &attention.kv_norm)?;
    cache.cache.append(cache.seq, &latent, &attention.rope_key(env, &down, &rows.positions)?)?;

    let mut q_latent = vec![0.0; m * d.heads * d.kv_lora];
    absorbed.absorb_query(&q, m, d.heads * d.qk(), d.qk(), &mut q_latent)?;
    let q_rope: Vec<f32> = q.chunks_exact(d.qk()).flat_map(|head| head[d.nope..].iter().copied()).collect();
    let (mut out, mut lse) = (vec![0.0; q_latent.len()], vec![0.0; m * d.heads]);
    let request = [DecodeRequest { seq: cache.seq, s_q: m }];
    decode(&cache.cache, &request, d.heads, &q_latent, &q_rope, env.scale, &mut out, &mut lse, &DecodeOptions::default())?;
    let mut values = vec![0.0; m * d.heads * d.v];
    absorbed.expand_output(&out, m, &mut values)?;
    let mut y = attention.out.forward(&Activation::from_vec(values, m, d.heads * d.v, env.precision)?)?;
    ops::add_assign(&mut y, &x)?;
    block.ffn_inference(env, &rows, y)
}
