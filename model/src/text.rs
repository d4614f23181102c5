//! Text to tokens and back, and the data that training and evaluation read.

use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

/// Name of a tokenizer beside a checkpoint's weights.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// How text becomes tokens.
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// A token is a byte.
    Bytes,
    /// A `tokenizer.json`.
    File(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    /// The tokenizer of a checkpoint directory: its `tokenizer.json` if it has one, bytes otherwise.
    pub fn open(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join(TOKENIZER_FILE);
        if !path.exists() {
            return Ok(Tokenizer::Bytes);
        }
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| Error::file(&path, "a tokenizer", e))?;
        Ok(Tokenizer::File(Box::new(tokenizer)))
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Tokenizer::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Tokenizer::File(tokenizer) => {
                let refused = |e| Error::file(TOKENIZER_FILE, "a tokenizer that can encode the text", e);
                let encoding = tokenizer.encode_fast(text, true).map_err(refused)?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The text of some tokens, special ones left out; what is not UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self {
            Tokenizer::Bytes => {
                let mut text = String::new();
                let mut pending = Vec::new();
                for id in ids {
                    push_byte(*id, &mut pending, &mut text);
                }
                text.push_str(&String::from_utf8_lossy(&pending));
                Ok(text)
            }
            Tokenizer::File(tokenizer) => tokenizer.decode(ids, true).map_err(Error::piece("tokenizers")),
        }
    }

    /// A decoder that gives out text as tokens arrive.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder { tokenizer: self, pending: Vec::new(), ids: Vec::new(), shown: 0 }
    }
}

/// Appends a byte token to `pending` and moves to `text` what can be shown.
fn push_byte(id: u32, pending: &mut Vec<u8>, text: &mut String) {
    let Ok(byte) = u8::try_from(id) else {
        text.push_str(&String::from_utf8_lossy(pending));
        text.push(char::REPLACEMENT_CHARACTER);
        pending.clear();
        return;
    };
    pending.push(byte);
    loop {
        let (valid, error_len) = match std::str::from_utf8(pending) {
            Ok(_) => (pending.len(), None),
            Err(e) => (e.valid_up_to(), e.error_len()),
        };
        text.push_str(&String::from_utf8_lossy(&pending[..valid]));
        pending.drain(..valid);
        match error_len {
            // Not the start of a character, whatever follows.
            Some(bad) => {
                text.push(char::REPLACEMENT_CHARACTER);
                pending.drain(..bad);
            }
            None => return,
        }
    }
}

/// Turns tokens into text as they arrive; a character whose bytes are not all there yet is held back.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u8>,
    ids: Vec<u32>,
    shown: usize,
}

/// Tokens that a streamed text keeps as context once they are shown: a token's text can depend on its neighbours.
const STREAM_CONTEXT: usize = 4;

impl StreamDecoder<'_> {
    /// The text that this token completes; often empty in the middle of a character.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let mut out = String::new();
        match self.tokenizer {
            Tokenizer::Bytes => push_byte(id, &mut self.pending, &mut out),
            Tokenizer::File(_) => {
                let before = self.tokenizer.decode(&self.ids[..self.shown])?;
                self.ids.push(id);
                let text = self.tokenizer.decode(&self.ids)?;
                if let Some(new) = text.strip_prefix(&before).filter(|_| !text.ends_with(char::REPLACEMENT_CHARACTER)) {
                    out.push_str(new);
                    self.shown = self.ids.len();
                    let forget = self.shown.saturating_sub(STREAM_CONTEXT);
                    self.ids.drain(..forget);
                    self.shown -= forget;
                }
            }
        }
        Ok(out)
    }

    /// What was held back, however incomplete.
    pub fn finish(&mut self) -> Result<String> {
        match self.tokenizer {
            Tokenizer::Bytes => Ok(String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()),
            Tokenizer::File(_) => {
                let before = self.tokenizer.decode(&self.ids[..self.shown])?;
                let text = self.tokenizer.decode(&self.ids)?;
                self.shown = self.ids.len();
                Ok(text.strip_prefix(&before).unwrap_or_default().to_owned())
            }
        }
    }
}

/// Checks that every id is below `vocab_size`; `option` is what the error names.
pub fn check_ids(option: &str, ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().position(|id| *id as usize >= vocab_size) {
        None => Ok(()),
        Some(at) => {
            let found = format!("{} at position {at}", ids[at]);
            Err(Error::option(option, format!("token ids from 0 to {}", vocab_size - 1), found))
        }
    }
}

/// Parses `5,6,7`, the form of `--ids` on the command line.
pub fn parse_ids(option: &str, list: &str, vocab_size: usize) -> Result<Vec<u32>> {
    let parse = |item: &str| {
        let id = item.trim().parse::<u32>();
        id.map_err(|_| Error::option(option, "token ids separated by commas", format!("\"{item}\"")))
    };
    let ids = list.split(',').map(parse).collect::<Result<Vec<u32>>>()?;
    check_ids(option, &ids, vocab_size)?;
    Ok(ids)
}

/// A sequence of tokens, one byte each where that is enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tokens {
    /// Ids below 256.
    U8(Vec<u8>),
    /// Any ids.
    U32(Vec<u32>),
}

impl Tokens {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Tokens::U8(v) => v.len(),
            Tokens::U32(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of a range that lies within.
    pub fn slice(&self, range: Range<usize>) -> Vec<u32> {
        match self {
            Tokens::U8(v) => v[range].iter().map(|b| u32::from(*b)).collect(),
            Tokens::U32(v) => v[range].to_vec(),
        }
    }
}

/// The text that the repository ships.
pub fn default_text() -> &'static [u8] {
    include_bytes!("../data/kjv.txt")
}

/// A text cut into a part to train on and the last 5 %, held out.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// What to train on.
    pub train: Tokens,
    /// What to validate on.
    pub held_out: Tokens,
    bytes: Vec<u8>,
    train_bytes: usize,
}

impl Dataset {
    /// Reads a file. `vocab_size` bounds the ids; `window` tokens, at least, must be in each part.
    pub fn load(path: &Path, tokenizer: &Tokenizer, vocab_size: usize, window: usize) -> Result<Dataset> {
        if path.is_dir() {
            return Err(Error::file(path, "a text file", "a directory"));
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        Dataset::from_bytes(path, bytes, tokenizer, vocab_size, window)
    }

    /// Reads a file whole, to evaluate on: its tokens, of which there are two or more, and its length in bytes.
    pub fn load_whole(path: &Path, tokenizer: &Tokenizer, vocab_size: usize) -> Result<(Tokens, usize)> {
        if path.is_dir() {
            return Err(Error::file(path, "a text file", "a directory"));
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let tokens = match tokenizer {
            Tokenizer::Bytes => Tokens::U8(bytes.clone()),
            Tokenizer::File(_) => {
                let text = std::str::from_utf8(&bytes).map_err(|e| Error::file(path, "UTF-8 text", e))?;
                Tokens::U32(tokenizer.encode(text)?)
            }
        };
        if tokens.len() < 2 {
            return Err(Error::file(path, "a text of at least 2 tokens", tokens.len()));
        }
        if let Some(id) = tokens.slice(0..tokens.len()).into_iter().max().filter(|id| *id as usize >= vocab_size) {
            return Err(Error::file(path, format!("tokens below vocab_size = {vocab_size}"), format!("token {id}")));
        }
        Ok((tokens, bytes.len()))
    }

    /// As [`Dataset::load`], of a text in memory that messages call `path`.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>, tokenizer: &Tokenizer, vocab_size: usize, window: usize) -> Result<Dataset> {
        if bytes.is_empty() {
            return Err(Error::file(path, "text", "an empty file"));
        }
        let mut train_bytes = bytes.len() - bytes.len() / 20;
        let part = |range: Range<usize>| -> Result<Tokens> {
            match tokenizer {
                Tokenizer::Bytes => Ok(Tokens::U8(bytes[range].to_vec())),
                Tokenizer::File(_) => {
                    let text = std::str::from_utf8(&bytes[range]).map_err(|e| Error::file(path, "UTF-8 text", e))?;
                    Ok(Tokens::U32(tokenizer.encode(text)?))
                }
            }
        };
        if let Tokenizer::File(_) = tokenizer {
            while train_bytes < bytes.len() && bytes[train_bytes] & 0xc0 == 0x80 {
                train_bytes += 1; // not inside a character
            }
        }
        let (train, held_out) = (part(0..train_bytes)?, part(train_bytes..bytes.len())?);
        for (tokens, what) in [(&train, "the training part"), (&held_out, "the last 5 %, which are held out")] {
            if tokens.len() < window.max(2) {
                let expected = format!("at least {} tokens in {what}", window.max(2));
                return Err(Error::file(path, expected, tokens.len()));
            }
            let largest = match tokens {
                Tokens::U8(v) => v.iter().copied().max().map(u32::from),
                Tokens::U32(v) => v.iter().copied().max(),
            };
            if let Some(id) = largest.filter(|id| *id as usize >= vocab_size) {
                let expected = format!("tokens below vocab_size = {vocab_size}");
                return Err(Error::file(path, expected, format!("token {id}")));
            }
        }
        Ok(Dataset { train, held_out, bytes, train_bytes })
    }

    /// The bytes of the training part.
    pub fn train_bytes(&self) -> &[u8] {
        &self.bytes[..self.train_bytes]
    }

    /// The bytes of the held-out part.
    pub fn held_out_bytes(&self) -> &[u8] {
        &self.bytes[self.train_bytes..]
    }
}

/// Which windows of the training tokens make up which step: windows of `seq_len + lookahead` tokens, cut at multiples of `seq_len`
/// from an offset that differs in every epoch, in an order that differs in every epoch, each once an epoch. A function of the
/// seed and the window's number alone, so that a resumed run reads what the uninterrupted one would have.
#[derive(Debug, Clone)]
pub struct Batches<'a> {
    tokens: &'a Tokens,
    seed: u64,
    seq_len: usize,
    lookahead: usize,
    windows: u64,
}

impl<'a> Batches<'a> {
    /// `lookahead` is the number of tokens a window has beyond its `seq_len` inputs: 1 for the next token, and one more for each
    /// depth of multi-token prediction.
    pub fn new(tokens: &'a Tokens, seed: u64, seq_len: usize, lookahead: usize) -> Result<Batches<'a>> {
        let window = seq_len + lookahead;
        if seq_len == 0 || window > tokens.len() {
            let most = tokens.len().saturating_sub(lookahead);
            return Err(Error::option("--seq-len", format!("1 to {most}, what the training part holds"), seq_len));
        }
        // One window less than fits, so that every offset below seq_len leaves as many.
        let windows = ((tokens.len() - lookahead) / seq_len).saturating_sub(1).max(1);
        Ok(Batches { tokens, seed, seq_len, lookahead, windows: windows as u64 })
    }

    /// Windows in an epoch.
    pub fn epoch_len(&self) -> u64 {
        self.windows
    }

    /// First token of window `number`, counted from 0 over the whole run.
    pub fn start(&self, number: u64) -> usize {
        let (epoch, at) = (number / self.windows, number % self.windows);
        let key = mix(self.seed ^ mix(epoch));
        let slack = self.tokens.len() - self.lookahead - self.windows as usize * self.seq_len;
        let offset = mix(key) % (slack.min(self.seq_len - 1) as u64 + 1);
        permute(at, self.windows, key) as usize * self.seq_len + offset as usize
    }

    /// The `seq_len + lookahead` tokens of window `number`.
    pub fn window(&self, number: u64) -> Vec<u32> {
        let start = self.start(number);
        self.tokens.slice(start..start + self.seq_len + self.lookahead)
    }

    /// The windows of micro-batch `index` of step `step` (both from 0), `micro_batch` of them one after the other, when a step has
    /// `micro_batches` such.
    pub fn micro_batch(&self, step: u64, micro_batches: usize, index: usize, micro_batch: usize) -> Vec<u32> {
        let first = (step * micro_batches as u64 + index as u64) * micro_batch as u64;
        (0..micro_batch as u64).flat_map(|i| self.window(first + i)).collect()
    }
}

/// Windows over `len` tokens in which every token but the first is predicted exactly once, from at most `seq_len` before it:
/// window i is tokens `i * seq_len ..= (i + 1) * seq_len`, the last one shorter.
pub fn eval_windows(len: usize, seq_len: usize) -> Vec<Range<usize>> {
    let ends = (1..len).step_by(seq_len.max(1));
    ends.map(|first| first - 1..(first + seq_len.max(1)).min(len)).collect()
}

/// A bijection of 64-bit integers that mixes well (the finaliser of SplitMix64).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Where `at` goes in a permutation of `0..n` chosen by `key`: a four-round Feistel network over the next even power of two, repeated
/// until the result is below `n`.
fn permute(at: u64, n: u64, key: u64) -> u64 {
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = at;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(right ^ mix(key ^ round)) & mask));
        }
        x = (left << half) | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests;
