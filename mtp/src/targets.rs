//! Which token each depth reads and which it predicts, and what each depth weighs in the loss.

use crate::error::{Error, Result, check_len};

/// A packed batch of tokens with its sequence and document boundaries.
///
/// Position i of depth k is the row whose hidden state is h_i: it takes the embedding of token i + k beside the hidden state of
/// depth k - 1, and predicts token i + k + 1. Depth 0 is the main model. A position whose tokens i .. i + k + 1 are not all
/// in one document of one sequence predicts nothing.
#[derive(Debug, Clone, Copy)]
pub struct TokenBatch<'a> {
    /// The tokens of all sequences, one after the other.
    pub ids: &'a [u32],
    /// Where sequences begin, and the end: ascending from 0 to `ids.len()`.
    pub cu_seqlens: &'a [usize],
    /// The document of each token, where a sequence holds several that attend to each other. A document is a run of equal
    /// numbers inside a sequence.
    pub documents: Option<&'a [u32]>,
    /// The last tokens of each sequence that are looked at, as targets and as embeddings of deeper modules, but are no rows
    /// of the batch. With `depths + 1` every row of every depth has a target.
    pub lookahead: usize,
}

/// What one depth reads and predicts, one entry for each row of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepthRows {
    /// The token whose embedding enters: token i + k. Where there is none (`targets` is then -1), token i stands in.
    pub inputs: Vec<u32>,
    /// The position inside the sequence that the depth's attention sees: i + k.
    pub positions: Vec<u32>,
    /// The token to predict, i + k + 1; -1 where there is none.
    pub targets: Vec<i64>,
    /// The number of targets that are not -1: what the depth's loss is averaged over.
    pub count: usize,
}

impl<'a> TokenBatch<'a> {
    /// Sequences without further boundaries, all of whose tokens are rows.
    pub fn new(ids: &'a [u32], cu_seqlens: &'a [usize]) -> Self {
        TokenBatch { ids, cu_seqlens, documents: None, lookahead: 0 }
    }

    /// Rows of the batch: tokens less the lookahead of each sequence.
    ///
    /// # Errors
    /// As [`TokenBatch::depth`].
    pub fn rows(&self) -> Result<usize> {
        self.check()?;
        Ok(self.cu_seqlens.windows(2).map(|s| (s[1] - s[0]).saturating_sub(self.lookahead)).sum())
    }

    /// What depth `k` reads and predicts; 0 is the main model.
    ///
    /// ```
    /// let ids = [10, 11, 12, 13, 20, 21];
    /// let rows = mtp::TokenBatch::new(&ids, &[0, 4, 6]).depth(1)?;
    /// assert_eq!(rows.targets, [12, 13, -1, -1, -1, -1]);
    /// assert_eq!(rows.inputs, [11, 12, 13, 13, 21, 21]);
    /// assert_eq!((rows.positions, rows.count), (vec![1, 2, 3, 4, 1, 2], 2));
    /// # Ok::<(), mtp::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if the boundaries do not ascend from 0 to the number of tokens, or `documents` has another length;
    /// [`Error::Parameter`] for a depth beyond 2^31 or a sequence as long.
    pub fn depth(&self, k: usize) -> Result<DepthRows> {
        let rows = self.rows()?;
        let limit = i32::MAX as usize;
        if k >= limit || self.ids.len() >= limit - k {
            let got = format!("depth {k}, {} tokens", self.ids.len());
            return Err(Error::Parameter { what: "depth and tokens", expected: "less than 2^31 together", got });
        }
        let mut out = DepthRows {
            inputs: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            targets: Vec::with_capacity(rows),
            count: 0,
        };
        for sequence in self.cu_seqlens.windows(2) {
            let ids = &self.ids[sequence[0]..sequence[1]];
            let ends = self.documents.map(|d| run_ends(&d[sequence[0]..sequence[1]]));
            for i in 0..ids.len().saturating_sub(self.lookahead) {
                let end = ends.as_ref().map_or(ids.len(), |e| e[i]);
                out.inputs.push(if i + k < end { ids[i + k] } else { ids[i] });
                out.positions.push((i + k) as u32);
                let target = (i + k + 1 < end).then(|| i64::from(ids[i + k + 1]));
                out.count += usize::from(target.is_some());
                out.targets.push(target.unwrap_or(-1));
            }
        }
        Ok(out)
    }

    fn check(&self) -> Result<()> {
        let sound =
            self.cu_seqlens.first() == Some(&0) && self.cu_seqlens.last() == Some(&self.ids.len()) && self.cu_seqlens.is_sorted();
        if !sound {
            return Err(Error::Shape {
                what: "cu_seqlens",
                expected: format!("boundaries ascending from 0 to {}", self.ids.len()),
                got: format!("{:?}", self.cu_seqlens),
            });
        }
        self.documents.map_or(Ok(()), |d| check_len("documents", d.len(), self.ids.len()))
    }
}

/// For each entry, the end of the run of equal values it belongs to.
fn run_ends(values: &[u32]) -> Vec<usize> {
    let mut ends = vec![values.len(); values.len()];
    for i in (1..values.len()).rev() {
        ends[i - 1] = if values[i - 1] == values[i] { ends[i] } else { i };
    }
    ends
}

/// What the loss of a depth is averaged over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Averaging {
    /// Over the depth's own targets, as Megatron does.
    #[default]
    OwnTokens,
    /// Over the rows of the batch, as the DeepSeek-V3 report writes it: a deeper module, having fewer targets, weighs less.
    AllTokens,
}

/// The loss of the modules: lambda / D times the sum over the D depths of their average losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossWeights {
    /// The weight of all depths together: 0.3 for most of DeepSeek-V3's training, 0.1 at its end.
    pub lambda: f64,
    /// The number of depths D.
    pub depths: usize,
    /// What each depth is averaged over.
    pub averaging: Averaging,
}

impl LossWeights {
    /// What one predicted token of a depth weighs in the loss, which is also the scale of its gradient: lambda / (D n), where n
    /// is `targets`, the depth's number of targets in the whole step, or `rows`, the step's number of rows. 0 if that is 0.
    pub fn token_weight(&self, targets: usize, rows: usize) -> f64 {
        let n = match self.averaging {
            Averaging::OwnTokens => targets,
            Averaging::AllTokens => rows,
        };
        if n == 0 || self.depths == 0 { 0.0 } else { self.lambda / (self.depths as f64 * n as f64) }
    }
}

/// The sum of per-token losses in f64, in order.
pub fn sum_losses(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| f64::from(l)).sum()
}
