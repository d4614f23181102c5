//! The work of one rank on its own memory: rows into expert-major order, and back as tree sums.
//!
//! Both are bound by memory, so what counts is how often each byte crosses to it. [`RowMap::scatter`] reads a row once and writes all its
//! copies, past the caches when the result is large; [`Local::combine`] reads each expert row once and writes each sum once. What they compute
//! depends neither on the instruction set nor on the number of threads.
//!
//! [`Local`] is both for one rank that has all experts, without a group of ranks:
//!
//! ```
//! use moe_dispatch::cpu::Local;
//! use moe_dispatch::router::{RouterConfig, route};
//!
//! let (tokens, d) = (2, 4);
//! let routing = route(&RouterConfig::new(3, 2), &[0.0, 2.0, 1.0, 3.0, 0.0, 1.0], &[])?;
//! let x = [1.0f32, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0];
//!
//! let local = Local::new(&routing, 3)?;
//! let mut rows = vec![0.0; tokens * 2 * d];
//! local.permute(&x, d, &mut rows)?;
//! assert_eq!(local.offsets(), [0, 1, 2, 4]); // expert 0 has one row, expert 1 one, expert 2 two
//! assert_eq!(rows[..d], x[d..]); // token 1 goes to expert 0
//!
//! let mut y = vec![0.0f32; tokens * d];
//! local.combine(&rows, d, true, &mut y)?; // the experts were the identity, and weights add up to 1
//! assert!(y.iter().zip(&x).all(|(y, x)| (y - x).abs() <= 1e-6 * x));
//! # Ok::<(), moe_dispatch::Error>(())
//! ```

mod rows;
mod select;
pub(crate) mod stock;
mod stream;
mod sums;

pub use rows::{RowMap, gather_rows};
pub use sums::Element;

pub(crate) use select::Selection;
pub(crate) use sums::{Received, SumRows, sum_rows};

use bytemuck::Pod;

use crate::error::Result;
use crate::plan::MASKED;
use crate::router::{Routing, check_len, shape};
use crate::tree::{Program, join_height};

/// One rank's tokens in expert-major order, expert by expert and inside an expert by token, and back.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    map: RowMap,
    offsets: Vec<u32>,
    sums: Program,
}

impl Local {
    /// For a routing among `num_experts` experts; choices may be [masked](crate::plan::MASKED).
    ///
    /// # Errors
    /// When the routing's lengths do not fit together, or it names an expert that does not exist, or one twice for a token.
    pub fn new(routing: &Routing, num_experts: usize) -> Result<Local> {
        let (tokens, top_k) = (routing.tokens, routing.top_k);
        check_len("routing.weights", routing.weights.len(), tokens, top_k)?;
        let (map, offsets) = rows::expert_major(&routing.indices, tokens, top_k, num_experts)?;
        let mut sums = Program::new();
        sums.terms.reserve(routing.indices.len());
        let mut leaves: Vec<(u32, u32, f32)> = Vec::with_capacity(top_k);
        for token in 0..tokens {
            let range = token * top_k..(token + 1) * top_k;
            leaves.clear();
            let choices = routing.indices[range.clone()].iter().zip(&routing.weights[range]).filter(|choice| *choice.0 != MASKED);
            leaves.extend(choices.zip(map.copies(token)).map(|((&expert, &weight), &row)| (expert, row, weight)));
            leaves.sort_unstable_by_key(|leaf| leaf.0);
            if let Some(pair) = leaves.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(shape("routing indices", "different experts for a token", format!("{} twice", pair[0].0)));
            }
            for (at, &(expert, row, weight)) in leaves.iter().enumerate() {
                let next = leaves.get(at + 1).map(|next| join_height(expert, next.0));
                sums.push(0, row as usize, weight, next);
            }
            sums.end_row();
        }
        Ok(Local { map, offsets, sums })
    }

    /// Where the rows of each expert begin, and their number at the end: [experts + 1].
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// The places of each token's rows.
    pub fn map(&self) -> &RowMap {
        &self.map
    }

    /// Copies the tokens' rows `[T, row_len]` into expert-major order `[R, row_len]`, R the number of choices that are not masked. A large
    /// result is written fastest where it begins at a multiple of 64 bytes.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn permute<T: Pod + Send + Sync>(&self, rows: &[T], row_len: usize, out: &mut [T]) -> Result<()> {
        check_len("rows", rows.len(), self.map.rows(), row_len)?;
        self.map.scatter(0, rows, row_len, out)
    }

    /// Adds the expert rows `[R, row_len]` of each token in the tree over the experts, in f32, each times its weight and rounded if
    /// `weighted`: `[T, row_len]`, rounded once.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn combine<A: Element, O: Element>(
        &self,
        expert_rows: &[A],
        row_len: usize,
        weighted: bool,
        out: &mut [O],
    ) -> Result<()> {
        check_len("expert rows", expert_rows.len(), self.map.result_rows(), row_len)?;
        check_len("sums", out.len(), self.map.rows(), row_len)?;
        if row_len > 0 {
            let sums =
                SumRows::<A, f32> { program: &self.sums, own: expert_rows, received: &[], chunk_rows: 1, row_len, weighted };
            sum_rows(&sums, 0..self.map.rows(), out);
        }
        Ok(())
    }
}
