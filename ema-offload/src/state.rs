//! Saving and restoring.
//!
//! The bytes, all little-endian: the magic `EMASTATE`; u64 version (1), updates, whether there is a step (0 or 1), step, rank
//! and ranks of the shard, number of tensors, the length of each; the averages of the shard as f32; and a u64 checksum of
//! all bytes before it (FNV-1a over 8-byte words, the last padded with zeros).

use crate::config::Shard;
use crate::ema::shard_len;
use crate::error::{Error, Result};
use std::io::{Read, Write};

const MAGIC: u64 = u64::from_le_bytes(*b"EMASTATE");
const VERSION: u64 = 1;

/// Values written or read at a time.
const CHUNK: usize = 1 << 16;

/// The whole of an average at one moment: what [`Ema::state`](crate::Ema::state) gives and
/// [`Ema::restore`](crate::Ema::restore) takes.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The step of the last snapshot averaged.
    pub step: Option<u64>,
    /// Updates made: warm-up continues from here.
    pub updates: u64,
    /// Which part of the parameters `values` are.
    pub shard: Shard,
    /// The lengths of all tensors.
    pub lens: Vec<usize>,
    /// The averages of the shard, end to end.
    pub values: Vec<f32>,
}

/// FNV-1a over words.
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|w| self.word(u64::from_le_bytes(*w)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(last));
        }
    }
}

fn format(expected: impl ToString, got: impl ToString) -> Error {
    Error::Format { expected: expected.to_string(), got: got.to_string() }
}

impl State {
    /// Writes the state. Use a buffered writer for small states, and make the file atomic yourself (write, sync, rename).
    pub fn write_to(&self, writer: &mut impl Write) -> Result<()> {
        let mut checksum = Checksum::new();
        let head = [
            MAGIC,
            VERSION,
            self.updates,
            u64::from(self.step.is_some()),
            self.step.unwrap_or(0),
            self.shard.rank as u64,
            self.shard.ranks as u64,
            self.lens.len() as u64,
        ];
        for word in head.into_iter().chain(self.lens.iter().map(|n| *n as u64)) {
            checksum.word(word);
            writer.write_all(&word.to_le_bytes())?;
        }
        let mut bytes = Vec::with_capacity(4 * CHUNK);
        for chunk in self.values.chunks(CHUNK) {
            bytes.clear();
            chunk.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
            checksum.bytes(&bytes);
            writer.write_all(&bytes)?;
        }
        writer.write_all(&checksum.0.to_le_bytes())?;
        Ok(())
    }

    /// Reads what [`State::write_to`] wrote. What is damaged or cut short is an error, and no more memory is taken than
    /// there are bytes.
    pub fn read_from(reader: &mut impl Read) -> Result<Self> {
        let mut checksum = Checksum::new();
        let mut word = || -> Result<u64> {
            let mut bytes = [0; 8];
            reader.read_exact(&mut bytes)?;
            checksum.word(u64::from_le_bytes(bytes));
            Ok(u64::from_le_bytes(bytes))
        };
        if word()? != MAGIC {
            return Err(format("the magic EMASTATE", "something else"));
        }
        let version = word()?;
        if version != VERSION {
            return Err(format(format!("version {VERSION}"), version));
        }
        let updates = word()?;
        let step = match (word()?, word()?) {
            (0, 0) => None,
            (1, step) => Some(step),
            (flag, _) => return Err(format("0 or 1 for whether there is a step", flag)),
        };
        let fits = |what: &str, n: u64| usize::try_from(n).map_err(|_| format(format!("a {what} that fits in memory"), n));
        let shard = Shard { rank: fits("rank", word()?)?, ranks: fits("number of ranks", word()?)? };
        if shard.rank >= shard.ranks {
            return Err(format("a rank below the number of ranks", format!("{} of {}", shard.rank, shard.ranks)));
        }
        let tensors = word()?;
        let mut lens = Vec::new();
        for _ in 0..tensors {
            lens.push(fits("length", word()?)?);
        }
        let n = shard_len(&lens, shard)?;
        let mut values = Vec::new();
        let mut bytes = Vec::new();
        while values.len() < n {
            let now = CHUNK.min(n - values.len());
            bytes.resize(4 * now, 0);
            reader.read_exact(&mut bytes)?;
            checksum.bytes(&bytes);
            values.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        let mut stored = [0; 8];
        reader.read_exact(&mut stored)?;
        let stored = u64::from_le_bytes(stored);
        if stored != checksum.0 {
            return Err(format(format!("the checksum {:016x}", checksum.0), format!("{stored:016x}")));
        }
        Ok(Self { step, updates, shard, lens, values })
    }

    /// Whether the values are as many as the tensors and the shard say.
    pub(crate) fn check(&self) -> Result<()> {
        if self.shard.rank >= self.shard.ranks {
            return Err(format("a rank below the number of ranks", format!("{} of {}", self.shard.rank, self.shard.ranks)));
        }
        let n = shard_len(&self.lens, self.shard)?;
        if n != self.values.len() {
            return Err(format(format!("{n} values"), self.values.len()));
        }
        Ok(())
    }
}
