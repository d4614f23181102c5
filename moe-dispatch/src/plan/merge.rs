//! Which sums a rank makes for whose tokens, and what it needs for them.

use crate::layout::Layout;
use crate::plan::block::{Block, present};
use crate::tree::{Level, Program, above, join_height, owned_nodes};

/// Partial sums that another rank sends.
#[derive(Debug)]
pub(crate) struct Input {
    pub from: usize,
    /// Its rows in channel c: `channels[c]..channels[c + 1]`.
    pub channels: Vec<u32>,
}

/// Sums of expert rows for the tokens of one source.
#[derive(Debug)]
pub(crate) struct Merge {
    pub source: usize,
    /// The next rank on the way home; this rank when it is home.
    pub to: usize,
    pub slow: bool,
    pub program: Program,
    /// Rows of the program in channel c: `channels[c]..channels[c + 1]`.
    pub channels: Vec<u32>,
    pub inputs: Vec<Input>,
    /// Gradients of weights to pass on, as (buffer, index), and who sends how many.
    pub gradients: Vec<(u32, u32)>,
    pub gradient_inputs: Vec<(usize, usize)>,
}

impl Merge {
    pub fn bytes(&self) -> usize {
        size_of_val(self.program.terms.as_slice())
            + size_of_val(self.program.starts.as_slice())
            + size_of_val(self.gradients.as_slice())
    }
}

pub(crate) struct Sums<'a> {
    pub layout: &'a Layout,
    pub me: usize,
    pub top_k: usize,
    pub rank_of_slot: &'a [u32],
}

/// Counts what comes from each rank, and numbers the ranks from which something comes.
struct Received {
    counts: Vec<usize>,
    number: Vec<Option<usize>>,
    ranks: Vec<usize>,
}

impl Received {
    fn new(ranks: usize) -> Self {
        Received { counts: vec![0; ranks], number: vec![None; ranks], ranks: Vec::new() }
    }

    /// The buffer of what a rank sends, and the index of the next of it.
    fn next(&mut self, rank: usize) -> (usize, usize) {
        let number = *self.number[rank].get_or_insert_with(|| {
            self.ranks.push(rank);
            self.ranks.len() - 1
        });
        self.counts[rank] += 1;
        (1 + number, self.counts[rank] - 1)
    }
}

const NOBODY: u32 = u32::MAX;

impl Sums<'_> {
    /// What this rank adds for the tokens of one source. It owns its own expert rows; as a gateway, those of its node; as the source, all.
    pub fn merge(&self, source: usize, block: &Block, leaves: &[u32]) -> Merge {
        let (layout, me, top_k) = (self.layout, self.me, self.top_k);
        let my_node = layout.node(me);
        let home = source == me;
        let gateway = !home && layout.node(source) != my_node && layout.gateway(source, my_node) == me;
        let to = if home || gateway { source } else { layout.gateway(source, my_node) };
        let mut program = Program::new();
        program.terms.reserve(if home { block.slots.len() } else { leaves.len() });
        let mut received = Received::new(layout.ep_size());
        let mut gradients_received = Received::new(layout.ep_size());
        let mut gradients = Vec::with_capacity(leaves.len());
        let mut leaf = leaves.iter().map(|&at| at as usize);
        let mut heights = vec![0u32; top_k];
        let mut owners = vec![0u32; top_k];
        let mut outside = vec![0u32; top_k];
        let mut mine = Vec::with_capacity(top_k);
        // Rows of the program, and rows received from each rank, before each channel and after the last.
        let (mut channels, mut channels_received) = (Vec::new(), Vec::new());
        let mut bounds = block.channels.iter().peekable();
        for row in 0..=block.rows() {
            while bounds.next_if(|&&bound| bound as usize == row).is_some() {
                channels.push(program.rows() as u32);
                channels_received.push(received.counts.clone());
            }
            if row == block.rows() {
                break;
            }
            let slots = present(&block.slots[row * top_k..(row + 1) * top_k]);
            let weights = &block.weights[row * top_k..(row + 1) * top_k];
            let k = slots.len();
            mine.clear();
            for (at, &slot) in slots.iter().enumerate() {
                if at + 1 < k {
                    let phy2log = layout.phy2log();
                    heights[at] = join_height(phy2log[slot as usize], phy2log[slots[at + 1] as usize]);
                }
                let rank = self.rank_of_slot[slot as usize] as usize;
                let here = layout.node(rank) == my_node;
                outside[at] = u32::from(!here);
                // From whom this rank gets what that rank computes, if it does.
                let owner = if rank == me {
                    mine.extend(leaf.next());
                    Some(me)
                } else if (home || gateway) && here {
                    Some(rank)
                } else if home {
                    Some(layout.gateway(me, layout.node(rank)))
                } else {
                    None
                };
                owners[at] = owner.map_or(NOBODY, |owner| owner as u32);
                if let Some(owner) = owner {
                    gradients.push(if owner == me {
                        (0, mine.last().map_or(0, |&at| at as u32))
                    } else {
                        let (buffer, at) = gradients_received.next(owner);
                        (buffer as u32, at as u32)
                    });
                }
            }
            if mine.len() == k {
                // All of the token's experts are here: the whole tree.
                for ((&leaf, &weight), &height) in mine.iter().zip(weights).zip(&heights) {
                    program.push(0, leaf, weight, Some(height));
                }
                program.completes(Level::Rank, above(&heights[..k.saturating_sub(1)]));
                program.end_row();
                continue;
            }
            let mut next_mine = mine.iter();
            // The terms of the node `lo..hi` of the tree: this rank's rows one by one, others' sums as they come.
            let mut add = |program: &mut Program, lo: usize, hi: usize| {
                owned_nodes(&owners, &heights, lo, hi, &mut |lo, hi, owner| {
                    if owner as usize == me {
                        for at in lo..hi {
                            if let Some(&leaf) = next_mine.next() {
                                program.push(0, leaf, weights[at], Some(heights[at]));
                            }
                        }
                        program.completes(Level::Rank, above(&heights[lo..hi - 1]));
                    } else {
                        let (buffer, row) = received.next(owner as usize);
                        program.push(buffer, row, 1.0, Some(heights[hi - 1]));
                    }
                });
            };
            if home {
                // What this node adds is rounded as if it came from another.
                owned_nodes(&outside, &heights, 0, k, &mut |lo, hi, outside| {
                    add(&mut program, lo, hi);
                    if outside == 0 {
                        program.completes(Level::Node, above(&heights[lo..hi - 1]));
                    }
                });
                program.end_row();
            } else {
                // Only whole nodes of the tree may leave.
                let whole: Vec<u32> = owners[..k].iter().map(|&owner| u32::from(owner == NOBODY)).collect();
                owned_nodes(&whole, &heights, 0, k, &mut |lo, hi, outside| {
                    if outside == 0 {
                        add(&mut program, lo, hi);
                        program.end_row();
                    }
                });
            }
        }
        let of_rank = |rank: usize| channels_received.iter().map(|counts: &Vec<usize>| counts[rank] as u32).collect();
        Merge {
            source,
            to,
            slow: !home && layout.node(to) != my_node,
            program,
            channels,
            inputs: received.ranks.iter().map(|&from| Input { from, channels: of_rank(from) }).collect(),
            gradients,
            gradient_inputs: gradients_received.ranks.iter().map(|&from| (from, gradients_received.counts[from])).collect(),
        }
    }
}
