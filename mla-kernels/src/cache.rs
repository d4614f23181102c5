//! A paged cache of latents: what a token leaves behind is one row, `[latent | rotated key]`, for all heads.
//!
//! Pages come from one pool. Sequences share pages after [`LatentCache::fork`]; a page that is shared is copied when one of
//! its sequences writes to it.

use crate::error::{Error, Result, check_len, product};
use bytemuck::cast_slice;
use v3_numerics::{E4M3, bf16};

/// Values that share one scale in an FP8 row.
const GROUP: usize = 128;

/// How a token is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Everything in f32.
    F32,
    /// Everything in bf16, nearest even.
    Bf16,
    /// The latent in E4M3 with one f32 scale for each 128 values (`max(amax, 1e-4) / 448`; the last group may be shorter), the
    /// rotated key in bf16: `d_c + 4 * ceil(d_c / 128) + 2 * d_rope` bytes, 656 for 512 and 64.
    Fp8,
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvType::F32 => "f32",
            KvType::Bf16 => "bf16",
            KvType::Fp8 => "fp8",
        })
    }
}

impl std::str::FromStr for KvType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "f32" => Ok(KvType::F32),
            "bf16" => Ok(KvType::Bf16),
            "fp8" => Ok(KvType::Fp8),
            _ => Err(Error::Parameter { what: "cache type", expected: "f32, bf16 or fp8", got: s.into() }),
        }
    }
}

/// The shape of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// Width of a latent, positive (`kv_lora_rank`).
    pub d_c: usize,
    /// Width of the rotated key, possibly 0 (`qk_rope_head_dim`).
    pub d_rope: usize,
    /// Tokens in a page, positive.
    pub page_size: usize,
    /// Pages in the pool.
    pub num_pages: usize,
    /// How a token is stored.
    pub dtype: KvType,
}

impl CacheConfig {
    /// Bytes of one token.
    pub fn token_bytes(&self) -> usize {
        match self.dtype {
            KvType::F32 => 4 * (self.d_c + self.d_rope),
            KvType::Bf16 => 2 * (self.d_c + self.d_rope),
            KvType::Fp8 => self.d_c + 4 * self.d_c.div_ceil(GROUP) + 2 * self.d_rope,
        }
    }
}

/// Names a sequence of a [`LatentCache`]. It is never valid again once the sequence is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId {
    index: u32,
    generation: u32,
}

#[derive(Debug, Clone, Default)]
struct Sequence {
    generation: u32,
    live: bool,
    len: usize,
    pages: Vec<u32>,
}

/// The cache of one layer.
#[derive(Debug, Clone)]
pub struct LatentCache {
    config: CacheConfig,
    token_bytes: usize,
    /// `[num_pages, page_size, token_bytes]`.
    pool: Vec<u8>,
    /// Sequences that hold a page.
    references: Vec<u32>,
    free_pages: Vec<u32>,
    sequences: Vec<Sequence>,
    free_sequences: Vec<u32>,
}

impl LatentCache {
    /// An empty cache with its whole pool allocated (the system gives memory to a page of it when it is first written).
    pub fn new(config: CacheConfig) -> Result<Self> {
        for (what, value) in [("d_c", config.d_c), ("page_size", config.page_size)] {
            if value == 0 {
                return Err(Error::Parameter { what, expected: "positive", got: "0".into() });
            }
        }
        let num_pages = u32::try_from(config.num_pages).map_err(|_| Error::Parameter {
            what: "num_pages",
            expected: "below 2^32",
            got: config.num_pages.to_string(),
        })?;
        product("cache row", &[config.d_c.saturating_add(config.d_rope), 8])?;
        let token_bytes = config.token_bytes();
        let bytes = product("cache pool", &[config.num_pages, config.page_size, token_bytes])?;
        Ok(Self {
            config,
            token_bytes,
            pool: vec![0; bytes],
            references: vec![0; config.num_pages],
            free_pages: (0..num_pages).rev().collect(),
            sequences: Vec::new(),
            free_sequences: Vec::new(),
        })
    }

    /// The shape of the cache.
    pub fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Bytes of the pool and of the bookkeeping.
    pub fn bytes(&self) -> usize {
        let tables: usize = self.sequences.iter().map(|s| size_of_val(&s.pages[..]) + size_of::<Sequence>()).sum();
        self.pool.len() + size_of_val(&self.references[..]) + size_of_val(&self.free_pages[..]) + tables
    }

    /// Pages that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.free_pages.len()
    }

    /// Starts an empty sequence. It holds no page yet.
    pub fn new_sequence(&mut self) -> SeqId {
        let index = self.free_sequences.pop().unwrap_or_else(|| {
            self.sequences.push(Sequence::default());
            (self.sequences.len() - 1) as u32
        });
        let s = &mut self.sequences[index as usize];
        s.live = true;
        SeqId { index, generation: s.generation }
    }

    fn sequence(&self, seq: SeqId) -> Result<&Sequence> {
        match self.sequences.get(seq.index as usize) {
            Some(s) if s.live && s.generation == seq.generation => Ok(s),
            _ => Err(Error::UnknownSequence { index: seq.index, generation: seq.generation }),
        }
    }

    /// Tokens of a sequence.
    pub fn len(&self, seq: SeqId) -> Result<usize> {
        Ok(self.sequence(seq)?.len)
    }

    /// Whether a sequence holds no token.
    pub fn is_empty(&self, seq: SeqId) -> Result<bool> {
        Ok(self.len(seq)? == 0)
    }

    /// Pages that appending `tokens` tokens to a sequence would take from the pool.
    pub fn pages_needed(&self, seq: SeqId, tokens: usize) -> Result<usize> {
        let s = self.sequence(seq)?;
        if tokens == 0 {
            return Ok(0);
        }
        let pages = s.len.saturating_add(tokens).div_ceil(self.config.page_size);
        Ok(pages - s.pages.len() + usize::from(self.writes_to_shared_page(s)))
    }

    /// Whether the next token of a sequence falls on a page that another sequence holds too.
    fn writes_to_shared_page(&self, s: &Sequence) -> bool {
        s.len < s.pages.len() * self.config.page_size && s.pages.last().is_some_and(|&p| self.references[p as usize] > 1)
    }

    /// Appends tokens: `latent [n, d_c]` (normalised) and `k_rope [n, d_rope]` (rotated), stored in the type of the cache.
    ///
    /// When the pool has too few pages, or a size is wrong, nothing changes.
    pub fn append(&mut self, seq: SeqId, latent: &[f32], k_rope: &[f32]) -> Result<()> {
        let CacheConfig { d_c, d_rope, page_size, .. } = self.config;
        let tokens = latent.len() / d_c;
        check_len("latent", latent.len(), &[tokens, d_c])?;
        check_len("k_rope", k_rope.len(), &[tokens, d_rope])?;
        let needed = self.pages_needed(seq, tokens)?;
        if needed > self.free_pages.len() {
            return Err(Error::OutOfPages { needed, free: self.free_pages.len() });
        }
        if tokens == 0 {
            return Ok(());
        }
        let index = seq.index as usize;
        if self.writes_to_shared_page(&self.sequences[index]) {
            let page = self.take_page();
            let s = &mut self.sequences[index];
            let last = s.pages.len() - 1;
            let shared = std::mem::replace(&mut s.pages[last], page);
            let used = (s.len - last * page_size) * self.token_bytes;
            let page_bytes = page_size * self.token_bytes;
            let from = shared as usize * page_bytes;
            self.pool.copy_within(from..from + used, page as usize * page_bytes);
            self.references[shared as usize] -= 1;
        }
        let len = self.sequences[index].len;
        while self.sequences[index].pages.len() * page_size < len + tokens {
            let page = self.take_page();
            self.sequences[index].pages.push(page);
        }
        let s = &mut self.sequences[index];
        s.len += tokens;
        for i in 0..tokens {
            let (page, slot) = (s.pages[(len + i) / page_size] as usize, (len + i) % page_size);
            let row = &mut self.pool[(page * page_size + slot) * self.token_bytes..][..self.token_bytes];
            encode(self.config.dtype, &latent[i * d_c..][..d_c], &k_rope[i * d_rope..][..d_rope], row);
        }
        Ok(())
    }

    /// Takes a page that is known to be free.
    fn take_page(&mut self) -> u32 {
        let page = self.free_pages.pop().expect("the caller counted the free pages");
        self.references[page as usize] = 1;
        page
    }

    fn release_page(&mut self, page: u32) {
        let count = &mut self.references[page as usize];
        *count -= 1;
        if *count == 0 {
            self.free_pages.push(page);
        }
    }

    /// Forgets the last tokens, as after a rejected draft: the sequence keeps its first `new_len`.
    pub fn trim(&mut self, seq: SeqId, new_len: usize) -> Result<()> {
        let len = self.sequence(seq)?.len;
        if new_len > len {
            return Err(Error::TooLong { what: "trim", requested: new_len, len });
        }
        let s = &mut self.sequences[seq.index as usize];
        s.len = new_len;
        let released = s.pages.split_off(new_len.div_ceil(self.config.page_size));
        released.into_iter().rev().for_each(|p| self.release_page(p));
        Ok(())
    }

    /// A second sequence with the same tokens. Both may go on by themselves; no token is copied now, and at most one
    /// page of them later.
    pub fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        let (len, pages) = {
            let s = self.sequence(seq)?;
            (s.len, s.pages.clone())
        };
        pages.iter().for_each(|&p| self.references[p as usize] += 1);
        let copy = self.new_sequence();
        let s = &mut self.sequences[copy.index as usize];
        s.len = len;
        s.pages = pages;
        Ok(copy)
    }

    /// Ends a sequence and gives back the pages that it alone held.
    pub fn free(&mut self, seq: SeqId) -> Result<()> {
        self.trim(seq, 0)?;
        let s = &mut self.sequences[seq.index as usize];
        s.live = false;
        // A slot whose generations are used up is retired, so that no id is ever valid twice.
        if let Some(next) = s.generation.checked_add(1) {
            s.generation = next;
            self.free_sequences.push(seq.index);
        }
        Ok(())
    }

    /// Reads tokens back as they are stored: `latent [n, d_c]` and `k_rope [n, d_rope]` for the `n` tokens from `start` on.
    pub fn read(&self, seq: SeqId, start: usize, latent: &mut [f32], k_rope: &mut [f32]) -> Result<()> {
        let CacheConfig { d_c, d_rope, .. } = self.config;
        let tokens = latent.len() / d_c;
        check_len("latent", latent.len(), &[tokens, d_c])?;
        check_len("k_rope", k_rope.len(), &[tokens, d_rope])?;
        let len = self.len(seq)?;
        let end = start.saturating_add(tokens);
        if end > len {
            return Err(Error::TooLong { what: "read", requested: end, len });
        }
        let pages = self.pages(seq)?;
        let mut row = vec![0.0; d_c + d_rope];
        for i in 0..tokens {
            widen(&self.config, self.row(pages, start + i), &mut row);
            latent[i * d_c..][..d_c].copy_from_slice(&row[..d_c]);
            k_rope[i * d_rope..][..d_rope].copy_from_slice(&row[d_c..]);
        }
        Ok(())
    }

    /// The page table of a sequence.
    pub(crate) fn pages(&self, seq: SeqId) -> Result<&[u32]> {
        Ok(&self.sequence(seq)?.pages)
    }

    /// The stored form of one token of the sequence with this page table. It must have that token.
    #[inline(always)]
    pub(crate) fn row(&self, pages: &[u32], token: usize) -> &[u8] {
        let page_size = self.config.page_size;
        let row = (pages[token / page_size] as usize * page_size + token % page_size) * self.token_bytes;
        &self.pool[row..][..self.token_bytes]
    }
}

/// Stores one token.
fn encode(dtype: KvType, latent: &[f32], k_rope: &[f32], row: &mut [u8]) {
    match dtype {
        KvType::F32 => {
            let (l, k) = row.split_at_mut(4 * latent.len());
            l.copy_from_slice(cast_slice(latent));
            k.copy_from_slice(cast_slice(k_rope));
        }
        KvType::Bf16 => encode_bf16(latent.iter().chain(k_rope), row),
        KvType::Fp8 => {
            let (codes, rest) = row.split_at_mut(latent.len());
            let (scales, rope) = rest.split_at_mut(4 * latent.len().div_ceil(GROUP));
            for ((x, q), s) in latent.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(scales.chunks_exact_mut(4)) {
                let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let scale = amax.max(1e-4) / 448.0;
                let inverse = 1.0 / scale;
                x.iter().zip(q).for_each(|(x, q)| *q = E4M3::from_f32(x * inverse).0);
                s.copy_from_slice(&scale.to_ne_bytes());
            }
            encode_bf16(k_rope.iter(), rope);
        }
    }
}

fn encode_bf16<'a>(x: impl Iterator<Item = &'a f32>, row: &mut [u8]) {
    x.zip(row.chunks_exact_mut(2)).for_each(|(x, y)| y.copy_from_slice(&bf16::from_f32(*x).to_ne_bytes()));
}

/// Widens one stored token to `[d_c + d_rope]`. Inlined, so that the loops become vectors of the kernel that calls it.
#[inline(always)]
pub(crate) fn widen(config: &CacheConfig, row: &[u8], out: &mut [f32]) {
    match config.dtype {
        KvType::F32 => {
            for (o, b) in out.iter_mut().zip(row.chunks_exact(4)) {
                *o = f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        KvType::Bf16 => widen_bf16(row, out),
        KvType::Fp8 => {
            let (codes, rest) = row.split_at(config.d_c);
            let (scales, rope) = rest.split_at(4 * config.d_c.div_ceil(GROUP));
            let (latent, k_rope) = out.split_at_mut(config.d_c);
            for ((x, q), s) in latent.chunks_mut(GROUP).zip(codes.chunks(GROUP)).zip(scales.chunks_exact(4)) {
                let scale = f32::from_ne_bytes([s[0], s[1], s[2], s[3]]);
                x.iter_mut().zip(q).for_each(|(x, q)| *x = e4m3_to_f32(*q) * scale);
            }
            widen_bf16(rope, k_rope);
        }
    }
}

#[inline(always)]
fn widen_bf16(row: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(row.chunks_exact(2)) {
        *o = f32::from_bits(u32::from(u16::from_ne_bytes([b[0], b[1]])) << 16);
    }
}

/// As `E4M3::to_f32`, in arithmetic that vectorises. The exponent is rebiased by adding 120; a subnormal is read as a mantissa
/// above 2^-6, which is then subtracted.
#[inline(always)]
fn e4m3_to_f32(code: u8) -> f32 {
    let code = u32::from(code);
    let magnitude = (code & 0x7f) << 20;
    let normal = f32::from_bits(magnitude + (120 << 23));
    let subnormal = f32::from_bits(magnitude + (121 << 23)) - 0.015_625;
    let value = if magnitude < 8 << 20 { subnormal } else { normal };
    let value = if magnitude == 0x7f << 20 { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | (code & 0x80) << 24)
}

#[cfg(test)]
mod tests {
    use super::e4m3_to_f32;
    use v3_numerics::E4M3;

    #[test]
    fn every_e4m3_code() {
        for code in 0..=255u8 {
            let (got, expected) = (e4m3_to_f32(code), E4M3(code).to_f32());
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{code:#x}: {got} {expected}");
        }
    }
}
