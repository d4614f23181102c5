//! The output head and its cross entropy in one: logits live in a block of fixed size, never `[tokens, vocabulary]`.
//!
//! Each pass walks the vocabulary in chunks of [`VOCAB_CHUNK`] and, inside a chunk, the tokens in blocks of
//! [`TOKEN_BLOCK`]; it computes the block of logits with [`v3_numerics::gemm`], uses it, and forgets it. The backward passes
//! recompute it: one more product instead of 4 T V bytes, which for 4096 tokens of DeepSeek-V3 would be 2.1 GB.
//!
//! **Order of summation.** A logit is one chain of fused multiply-adds over the hidden size. A row's exponentials are
//! summed in sixteen interleaved lanes inside a chunk, each with its rounding errors beside it; the chunks in f64, in order. A row of `dh` is a chain over
//! each chunk of the vocabulary, the chunks added in order: it depends on that row and the weights only. A row of `dw` is
//! a chain over each block of tokens, the blocks added in order, and the finished sum is added to what was there once.
//! None of it depends on the number of threads.

use crate::error::{Error, Result, area, check_len};
use crate::math;
use v3_numerics::cpu::Isa;
use v3_numerics::gemm::gemm;
use v3_numerics::par;
use v3_numerics::view::{MatMut, MatRef};

/// Columns of the vocabulary that are computed at a time.
pub const VOCAB_CHUNK: usize = 512;
/// Rows that are computed at a time.
pub const TOKEN_BLOCK: usize = 512;
/// Rows of a block that one task takes.
const ROWS_PER_TASK: usize = 16;

/// The operands of an output head: hidden states, weights and targets.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Hidden states after the final norm, `[tokens, hidden]`.
    pub h: &'a [f32],
    /// Weights of the output head, `[vocab, hidden]`.
    pub w: &'a [f32],
    /// What each row predicts, `[tokens]`: a token id, or -1 for nothing.
    pub targets: &'a [i64],
    /// The hidden size.
    pub hidden: usize,
    /// The size of the vocabulary, at least 1.
    pub vocab: usize,
}

/// What the gradient of each token's loss is multiplied by.
#[derive(Debug, Clone, Copy)]
pub enum GradScale<'a> {
    /// One factor for all: 1/n for a mean, lambda/(D n) for a module's share.
    Uniform(f32),
    /// One factor a token, `[tokens]`.
    PerToken(&'a [f32]),
}

impl GradScale<'_> {
    fn at(&self, token: usize) -> f32 {
        match self {
            GradScale::Uniform(scale) => *scale,
            GradScale::PerToken(scales) => scales[token],
        }
    }
}

/// What [`head_forward`] gives, one entry a token.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadOutput {
    /// Cross entropy in nats; 0 where the target is -1.
    pub loss: Vec<f32>,
    /// The natural logarithm of the sum of exponentials of the logits: what the backward passes need.
    pub lse: Vec<f32>,
    /// The token of the largest logit, the lowest id among equals.
    pub argmax: Vec<u32>,
}

impl Head<'_> {
    /// The number of rows.
    pub fn tokens(&self) -> usize {
        self.targets.len()
    }

    /// Bytes of the block of logits that a pass holds.
    pub fn scratch_bytes(&self) -> usize {
        self.tokens().min(TOKEN_BLOCK) * self.vocab.min(VOCAB_CHUNK) * size_of::<f32>()
    }

    fn check(&self) -> Result<()> {
        if self.vocab == 0 || u32::try_from(self.vocab).is_err() {
            let expected = "at least 1, less than 2^32";
            return Err(Error::Parameter { what: "vocab", expected, got: self.vocab.to_string() });
        }
        check_len("h", self.h.len(), area("h", self.tokens(), self.hidden)?)?;
        check_len("w", self.w.len(), area("w", self.vocab, self.hidden)?)?;
        for (index, &value) in self.targets.iter().enumerate() {
            if !(-1..self.vocab as i64).contains(&value) {
                return Err(Error::Token { what: "targets", index, value, vocab: self.vocab });
            }
        }
        Ok(())
    }

    fn check_backward(&self, lse: &[f32], scale: GradScale<'_>) -> Result<()> {
        self.check()?;
        check_len("lse", lse.len(), self.tokens())?;
        match scale {
            GradScale::Uniform(_) => Ok(()),
            GradScale::PerToken(scales) => check_len("scale", scales.len(), self.tokens()),
        }
    }

    fn rows(&self, block: &Block) -> Result<MatRef<'_, f32>> {
        let h = &self.h[block.token * self.hidden..(block.token + block.tokens) * self.hidden];
        Ok(MatRef::new(h, block.tokens, self.hidden)?)
    }

    fn weights(&self, block: &Block) -> Result<MatRef<'_, f32>> {
        let w = &self.w[block.column * self.hidden..(block.column + block.columns) * self.hidden];
        Ok(MatRef::new(w, block.columns, self.hidden)?)
    }

    /// The blocks, chunk of the vocabulary by chunk, and in each by token.
    fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        let (all_tokens, all_columns) = (self.tokens(), self.vocab);
        (0..all_columns).step_by(VOCAB_CHUNK).flat_map(move |column| {
            (0..all_tokens).step_by(TOKEN_BLOCK).map(move |token| Block {
                token,
                tokens: (all_tokens - token).min(TOKEN_BLOCK),
                column,
                columns: (all_columns - column).min(VOCAB_CHUNK),
            })
        })
    }

    /// The gradient of a block of logits, `[tokens, columns]`: scale (softmax - one at the target).
    fn grad_block(&self, block: &Block, lse: &[f32], scale: GradScale<'_>, grads: &mut [f32]) -> Result<()> {
        let out = MatMut::new(grads, block.tokens, block.columns)?;
        gemm(self.rows(block)?, self.weights(block)?.t(), out, false)?;
        let isa = Isa::detect();
        block.for_each_row(grads, |row, grads| {
            let token = block.token + row;
            let target = self.targets[token];
            if target < 0 {
                grads.fill(0.0);
                return;
            }
            let (lse, scale) = (lse[token], scale.at(token));
            let here = (target as usize).checked_sub(block.column).filter(|&i| i < grads.len());
            let at_target = here.map(|i| (i, (math::exp_one(isa, grads[i] - lse) - 1.0) * scale));
            math::exp_scaled(isa, grads, lse, scale);
            if let Some((i, g)) = at_target {
                grads[i] = g;
            }
        });
        Ok(())
    }
}

/// One block of logits: where it begins and how large it is.
struct Block {
    token: usize,
    tokens: usize,
    column: usize,
    columns: usize,
}

impl Block {
    fn area(&self) -> usize {
        self.tokens * self.columns
    }

    /// Calls `f(row, values)` on every row of the block, in parallel.
    fn for_each_row(&self, values: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync + Send) {
        par::for_each_chunk_mut(values, ROWS_PER_TASK * self.columns, |task, rows| {
            for (i, row) in rows.chunks_exact_mut(self.columns).enumerate() {
                f(task * ROWS_PER_TASK + i, row);
            }
        });
    }
}

/// What is known of a row after some chunks of its logits.
#[derive(Clone, Copy)]
struct Running {
    /// The largest logit.
    max: f32,
    argmax: u32,
    /// The target's logit.
    at_target: f32,
    /// The sum of exp(logit - max).
    sum: f64,
}

impl Running {
    const START: Running = Running { max: f32::NEG_INFINITY, argmax: 0, at_target: f32::NAN, sum: 0.0 };

    /// Takes in a chunk of logits that begins at `column`.
    fn take(&mut self, isa: Isa, logits: &[f32], column: usize, target: i64) {
        if let Some(&x) = usize::try_from(target).ok().and_then(|t| t.checked_sub(column)).and_then(|i| logits.get(i)) {
            self.at_target = x;
        }
        let chunk_max = math::max(isa, logits);
        if chunk_max > self.max {
            self.argmax = (column + math::position(logits, chunk_max)) as u32;
            if self.sum != 0.0 {
                self.sum *= f64::from(math::exp_one(isa, self.max - chunk_max));
            }
            self.max = chunk_max;
        }
        // While all logits are minus infinity or NaN there is nothing to measure them from: 0 keeps both visible.
        let origin = if self.max == f32::NEG_INFINITY { 0.0 } else { self.max };
        self.sum += math::sum_exp(isa, logits, origin);
    }

    fn lse(&self) -> f64 {
        f64::from(self.max) + math::ln(self.sum)
    }

    fn loss(&self) -> f64 {
        // In this order the two large numbers cancel first: a token predicted with near certainty keeps its small loss.
        (f64::from(self.max) - f64::from(self.at_target)) + math::ln(self.sum)
    }
}

/// Cross entropy of every row, in nats, with what the backward passes need.
///
/// NaN logits give a NaN loss; they never pass for a maximum.
///
/// ```
/// let h = [1.0, 0.0, 0.0, 1.0]; // two tokens of hidden size 2
/// let w = [0.0, 0.0, 2.0, 0.0, 0.0, 3.0]; // vocabulary of 3
/// let out = mtp::head_forward(&mtp::Head { h: &h, w: &w, targets: &[1, -1], hidden: 2, vocab: 3 })?;
/// assert_eq!(out.argmax, [1, 2]);
/// assert!((out.loss[0] - (2.0 + 2f32.exp()).ln() + 2.0).abs() < 1e-6);
/// assert_eq!(out.loss[1], 0.0);
/// # Ok::<(), mtp::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`], [`Error::Parameter`] for an empty vocabulary, [`Error::Token`] for a target outside it.
pub fn head_forward(head: &Head<'_>) -> Result<HeadOutput> {
    head.check()?;
    let isa = Isa::detect();
    let mut running = vec![Running::START; head.tokens()];
    let mut logits = vec![0.0; head.scratch_bytes() / size_of::<f32>()];
    for block in head.blocks() {
        let logits = &mut logits[..block.area()];
        let out = MatMut::new(logits, block.tokens, block.columns)?;
        gemm(head.rows(&block)?, head.weights(&block)?.t(), out, false)?;
        let states = &mut running[block.token..block.token + block.tokens];
        let logits = &*logits;
        par::for_each_chunk_mut(states, ROWS_PER_TASK, |task, states| {
            for (i, state) in states.iter_mut().enumerate() {
                let row = task * ROWS_PER_TASK + i;
                let logits = &logits[row * block.columns..][..block.columns];
                state.take(isa, logits, block.column, head.targets[block.token + row]);
            }
        });
    }
    Ok(HeadOutput {
        loss: running.iter().zip(head.targets).map(|(r, &t)| if t < 0 { 0.0 } else { r.loss() as f32 }).collect(),
        lse: running.iter().map(|r| r.lse() as f32).collect(),
        argmax: running.iter().map(|r| r.argmax).collect(),
    })
}

/// The gradient for the hidden states: `dh` `[tokens, hidden]`, overwritten; zero where the target is -1.
///
/// # Errors
/// As [`head_forward`], and [`Error::Shape`] for `lse`, `scale` or `dh`.
pub fn head_backward_input(head: &Head<'_>, lse: &[f32], scale: GradScale<'_>, dh: &mut [f32]) -> Result<()> {
    head.check_backward(lse, scale)?;
    check_len("dh", dh.len(), head.h.len())?;
    let mut grads = vec![0.0; head.scratch_bytes() / size_of::<f32>()];
    for block in head.blocks() {
        let grads = &mut grads[..block.area()];
        head.grad_block(&block, lse, scale, grads)?;
        add_input(head, &block, grads, dh)?;
    }
    Ok(())
}

/// The gradient for the weights, added to `dw` `[vocab, hidden]` once it is complete.
///
/// # Errors
/// As [`head_forward`], and [`Error::Shape`] for `lse`, `scale` or `dw`.
pub fn head_backward_weight(head: &Head<'_>, lse: &[f32], scale: GradScale<'_>, dw: &mut [f32]) -> Result<()> {
    head.check_backward(lse, scale)?;
    check_len("dw", dw.len(), head.w.len())?;
    let mut grads = vec![0.0; head.scratch_bytes() / size_of::<f32>()];
    let mut sums = WeightSums::new(head);
    for block in head.blocks() {
        let grads = &mut grads[..block.area()];
        head.grad_block(&block, lse, scale, grads)?;
        sums.add(head, &block, grads, dw)?;
    }
    Ok(())
}

/// Both gradients with the logits recomputed once: the same bits as [`head_backward_input`] and [`head_backward_weight`],
/// in about three quarters of the time.
///
/// # Errors
/// As those two.
pub fn head_backward(head: &Head<'_>, lse: &[f32], scale: GradScale<'_>, dh: &mut [f32], dw: &mut [f32]) -> Result<()> {
    head.check_backward(lse, scale)?;
    check_len("dh", dh.len(), head.h.len())?;
    check_len("dw", dw.len(), head.w.len())?;
    let mut grads = vec![0.0; head.scratch_bytes() / size_of::<f32>()];
    let mut sums = WeightSums::new(head);
    for block in head.blocks() {
        let grads = &mut grads[..block.area()];
        head.grad_block(&block, lse, scale, grads)?;
        add_input(head, &block, grads, dh)?;
        sums.add(head, &block, grads, dw)?;
    }
    Ok(())
}

fn add_input(head: &Head<'_>, block: &Block, grads: &[f32], dh: &mut [f32]) -> Result<()> {
    let dh = &mut dh[block.token * head.hidden..(block.token + block.tokens) * head.hidden];
    let grads = MatRef::new(grads, block.tokens, block.columns)?;
    let first = block.column == 0;
    Ok(gemm(grads, head.weights(block)?, MatMut::new(dh, block.tokens, head.hidden)?, !first)?)
}

/// The sum over token blocks of a chunk's weight gradient; absent where one block holds all tokens.
struct WeightSums {
    sum: Vec<f32>,
}

impl WeightSums {
    fn new(head: &Head<'_>) -> Self {
        let several = head.tokens() > TOKEN_BLOCK;
        WeightSums { sum: vec![0.0; if several { head.vocab.min(VOCAB_CHUNK) * head.hidden } else { 0 }] }
    }

    fn add(&mut self, head: &Head<'_>, block: &Block, grads: &[f32], dw: &mut [f32]) -> Result<()> {
        let dw = &mut dw[block.column * head.hidden..(block.column + block.columns) * head.hidden];
        let grads = MatRef::new(grads, block.tokens, block.columns)?.t();
        if head.tokens() <= TOKEN_BLOCK {
            return Ok(gemm(grads, head.rows(block)?, MatMut::new(dw, block.columns, head.hidden)?, true)?);
        }
        let sum = &mut self.sum[..dw.len()];
        let first = block.token == 0;
        gemm(grads, head.rows(block)?, MatMut::new(sum, block.columns, head.hidden)?, !first)?;
        if block.token + block.tokens == head.tokens() {
            let sum = &*sum;
            let run = 16 * 1024;
            par::for_each_chunk_mut(dw, run, |i, dw| {
                dw.iter_mut().zip(&sum[i * run..]).for_each(|(d, s)| *d += s);
            });
        }
        Ok(())
    }
}
