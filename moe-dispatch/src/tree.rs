//! The fixed tree in which a token's expert rows are added.
//!
//! The leaves of the tree are the logical experts, 0, 1, 2, ...; a node of height h covers 2^h of them, beginning at a multiple of 2^h.
//! A token uses a few of the leaves. An inner node with both sides present is the sum of the two; with one side present it is that
//! side, with no addition. Which rank adds what therefore cannot change the result, as long as each adds whole nodes of the tree.

/// One row to add: where it is, what it is multiplied by, and how many additions follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Term {
    /// Which buffer holds the row: 0 is this rank's expert rows, 1 + r what rank r sent.
    pub buffer: u32,
    /// The row in that buffer.
    pub row: u32,
    /// 1 for rows that are sums already.
    pub weight: f32,
    /// After this row is pushed, so many times the two topmost sums are replaced by their sum.
    pub adds: u32,
}

/// For each of some output rows, the terms whose tree sum it is, in the order of the leaves.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Program {
    pub terms: Vec<Term>,
    /// Terms of row i: `starts[i]..starts[i + 1]`.
    pub starts: Vec<u32>,
    /// Most sums that wait at a time, the topmost not counted.
    pub depth: usize,
    /// Heights at which the waiting sums of the current row will be joined to their right neighbours.
    waiting: Vec<u32>,
    /// Height at which the last term of the current row joins the next.
    next: Vec<u32>,
}

impl Program {
    pub fn new() -> Self {
        Program { terms: Vec::new(), starts: vec![0], depth: 0, waiting: Vec::new(), next: Vec::new() }
    }

    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Adds a term to the current row. `next` is the height at which it joins the term that follows, if one does.
    pub fn push(&mut self, buffer: usize, row: usize, weight: f32, next: Option<u32>) {
        self.terms.push(Term { buffer: buffer as u32, row: row as u32, weight, adds: 0 });
        self.next.push(next.unwrap_or(u32::MAX));
    }

    /// Ends the current row.
    pub fn end_row(&mut self) {
        let first = self.starts.last().map_or(0, |&start| start as usize);
        let row = &mut self.terms[first..];
        if let Some(last) = self.next.last_mut() {
            *last = u32::MAX;
        }
        for (term, &next) in row.iter_mut().zip(&self.next) {
            while self.waiting.last().is_some_and(|&height| height < next) {
                self.waiting.pop();
                term.adds += 1;
            }
            if next != u32::MAX {
                self.waiting.push(next);
                self.depth = self.depth.max(self.waiting.len());
            }
        }
        self.next.clear();
        self.starts.push(self.terms.len() as u32);
    }
}

/// The height at which two different leaves come together.
#[inline]
pub(crate) fn join_height(a: u32, b: u32) -> u32 {
    31 - (a ^ b | 1).leading_zeros()
}

/// Cuts the leaves `lo..hi` of one token, whose neighbours join at `heights`, into the largest nodes that belong to one owner
/// each, and calls `emit(lo, hi, owner)` on them in order.
pub(crate) fn owned_nodes(owners: &[u32], heights: &[u32], lo: usize, hi: usize, emit: &mut impl FnMut(usize, usize, u32)) {
    if lo >= hi {
        return;
    }
    let owner = owners[lo];
    if owners[lo + 1..hi].iter().all(|&other| other == owner) {
        return emit(lo, hi, owner);
    }
    let mut cut = lo;
    for at in lo..hi - 1 {
        if heights[at] > heights[cut] {
            cut = at;
        }
    }
    owned_nodes(owners, heights, lo, cut + 1, emit);
    owned_nodes(owners, heights, cut + 1, hi, emit);
}
