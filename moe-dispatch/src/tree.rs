//! The fixed tree in which a token's expert rows are added.
//!
//! The leaves of the tree are the logical experts, 0, 1, 2, ...; a node of height h covers 2^h of them, beginning at a multiple of 2^h.
//! A token uses a few of the leaves. An inner node with both sides present is the sum of the two; with one side present it is that
//! side, with no addition. Which rank adds what therefore cannot change the result, as long as each adds whole nodes of the tree.

/// No rounding in between.
const NEVER: u8 = u8::MAX;

/// One row to add: where it is, what it is multiplied by, and how many additions follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Term {
    /// Which buffer holds the row: 0 is this rank's expert rows, 1 + i what the i-th input sent.
    pub buffer: u32,
    /// The row in that buffer.
    pub row: u32,
    /// 1 for rows that are sums already.
    pub weight: f32,
    /// After this row is pushed, so many times the two topmost sums are replaced by their sum.
    pub adds: u8,
    /// After so many of these additions the sum is one that another rank would have sent, once within its node and once between
    /// nodes: when sums travel rounded it is rounded here.
    rounds: [u8; 2],
}

impl Term {
    /// Whether a sum that travels rounded is complete after `adds` of this term's additions.
    #[inline(always)]
    pub fn rounds_after(&self, adds: u8) -> bool {
        self.rounds[0] == adds || self.rounds[1] == adds
    }
}

/// Where a term joins its neighbours, and which sums it completes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Joins {
    /// Height at which the term joins the next.
    next: u32,
    /// All joins below these heights are inside the node of the tree that the term completes, for a rank and for a node of ranks.
    completes: [Option<u32>; 2],
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
    /// One for each term of the current row.
    joins: Vec<Joins>,
}

/// Whose sum a term completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Rank = 0,
    Node = 1,
}

impl Program {
    pub fn new() -> Self {
        Program { terms: Vec::new(), starts: vec![0], depth: 0, waiting: Vec::new(), joins: Vec::new() }
    }

    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// The terms of one row.
    pub fn row(&self, row: usize) -> &[Term] {
        &self.terms[self.starts[row] as usize..self.starts[row + 1] as usize]
    }

    /// Adds a term to the current row. `next` is the height at which it joins the term that follows, if one does.
    pub fn push(&mut self, buffer: usize, row: usize, weight: f32, next: Option<u32>) {
        self.terms.push(Term { buffer: buffer as u32, row: row as u32, weight, adds: 0, rounds: [NEVER; 2] });
        self.joins.push(Joins { next: next.unwrap_or(u32::MAX), completes: [None; 2] });
    }

    /// Says that the last term completes a sum all of whose joins are below `height`.
    pub fn completes(&mut self, level: Level, height: u32) {
        if let Some(joins) = self.joins.last_mut() {
            joins.completes[level as usize] = Some(height);
        }
    }

    /// Ends the current row.
    pub fn end_row(&mut self) {
        let first = self.starts.last().map_or(0, |&start| start as usize);
        let row = &mut self.terms[first..];
        if let Some(last) = self.joins.last_mut() {
            last.next = u32::MAX;
        }
        for (term, joins) in row.iter_mut().zip(&self.joins) {
            term.rounds = joins.completes.map(|completes| if completes.is_some() { 0 } else { NEVER });
            while let Some(&height) = self.waiting.last().filter(|&&height| height < joins.next) {
                self.waiting.pop();
                term.adds += 1;
                for (round, completes) in term.rounds.iter_mut().zip(joins.completes) {
                    if completes.is_some_and(|limit| height < limit) {
                        *round = term.adds;
                    }
                }
            }
            if joins.next != u32::MAX {
                self.waiting.push(joins.next);
                self.depth = self.depth.max(self.waiting.len());
            }
        }
        self.joins.clear();
        self.starts.push(self.terms.len() as u32);
    }
}

/// One more than the greatest of some heights; 0 without any: a limit for [`Program::completes`].
pub(crate) fn above(heights: &[u32]) -> u32 {
    heights.iter().max().map_or(0, |&height| height + 1)
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
