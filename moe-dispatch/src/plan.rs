//! The plan of one layer's dispatch: who sends which rows where, and in which order what comes back is added.

use std::sync::atomic::{AtomicU64, Ordering};

use v3_ranks::Comm;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::router::Routing;
use crate::tree::{Program, join_height, owned_nodes};

/// Row index of a padding row in [`Plan::gather`].
pub(crate) const PADDING: u32 = u32::MAX;

/// What a plan may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanOptions {
    /// Each expert's rows begin at a multiple of this, and zero rows fill the gap; at least 1, which means no padding.
    pub alignment: usize,
    /// Rows per message, at least 1: a gateway passes on the first message while the second is still under way.
    pub chunk_rows: usize,
}

impl Default for PlanOptions {
    fn default() -> Self {
        PlanOptions { alignment: 1, chunk_rows: 4096 }
    }
}

/// Rows and bytes that a rank has sent, by the link they took. Rows that stay on their rank are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Rows between nodes.
    pub slow_rows: u64,
    /// Their bytes.
    pub slow_bytes: u64,
    /// Rows inside nodes.
    pub fast_rows: u64,
    /// Their bytes.
    pub fast_bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; 4]);

impl Counters {
    pub fn add(&self, slow: bool, rows: usize, bytes: usize) {
        let at = if slow { 0 } else { 2 };
        // Sums of integers: the order does not matter.
        self.0[at].fetch_add(rows as u64, Ordering::Relaxed);
        self.0[at + 1].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn read(&self) -> Traffic {
        let [slow_rows, slow_bytes, fast_rows, fast_bytes] = [0, 1, 2, 3].map(|i| self.0[i].load(Ordering::Relaxed));
        Traffic { slow_rows, slow_bytes, fast_rows, fast_bytes }
    }
}

/// The kind of message, the upper part of its tag.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Plan = 1,
    Rows = 2,
    SideRows = 3,
    Sums = 4,
    Gradients = 5,
}

/// The tag of a message about the tokens of one rank. Tags of this form belong to this crate.
pub(crate) fn tag(kind: Kind, source: usize) -> u64 {
    0x6d6f_6500_0000_0000 | (kind as u64) << 32 | source as u64
}

/// Rows to send: which of the rows of a buffer, to whom.
#[derive(Debug)]
pub(crate) struct Send {
    pub to: usize,
    pub slow: bool,
    pub rows: Vec<u32>,
}

/// Rows of one source that come in, and that this rank passes on if it is their gateway.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub source: usize,
    pub from: usize,
    pub rows: usize,
    pub forward: Vec<Send>,
}

/// Sums of expert rows for the tokens of one source.
#[derive(Debug)]
pub(crate) struct Merge {
    pub source: usize,
    /// The next rank on the way home; this rank when it is home.
    pub to: usize,
    pub slow: bool,
    pub program: Program,
    /// Ranks that send partial sums, and how many rows.
    pub inputs: Vec<(usize, usize)>,
    /// Gradients of weights to pass on, as (buffer, index), and who sends how many.
    pub gradients: Vec<(u32, u32)>,
    pub gradient_inputs: Vec<(usize, usize)>,
}

/// Who sends which rows where, for one routing; used by dispatch, by combine and by both of their backward passes.
///
/// Building it is a collective operation, as is each use: every rank of the group does the same in the same order.
#[derive(Debug)]
pub struct Plan {
    pub(crate) layout: Layout,
    pub(crate) options: PlanOptions,
    pub(crate) me: usize,
    pub(crate) tokens: usize,
    pub(crate) top_k: usize,
    /// Rows of this rank's tokens to other nodes' gateways, then to ranks of its own node.
    pub(crate) sends: Vec<Send>,
    /// Rows from others: those to pass on first.
    pub(crate) inbound: Vec<Inbound>,
    /// For each expert-major row the source rank and the row of that source's buffer, or [`PADDING`].
    pub(crate) gather: Vec<(u32, u32)>,
    pub(crate) row_weights: Vec<f32>,
    offsets: Vec<usize>,
    counts: Vec<usize>,
    /// Sums for the tokens of other ranks, in the order in which they are sent.
    pub(crate) outgoing: Vec<Merge>,
    /// Sums for this rank's tokens.
    pub(crate) home: Merge,
    /// Where the gradient of each weight of `home.gradients` belongs in `[T, k]`.
    pub(crate) choice: Vec<u32>,
    max_nodes_per_token: usize,
    pub(crate) dispatched: Counters,
    pub(crate) combined: Counters,
}

/// The expert slots and weights of some tokens of one rank, `[rows, k]`, ascending by logical expert inside a row.
#[derive(Debug, Default, Clone)]
struct Block {
    slots: Vec<u32>,
    weights: Vec<f32>,
}

impl Block {
    fn pick(&self, rows: &[u32], top_k: usize) -> Block {
        let mut block = Block { slots: Vec::with_capacity(rows.len() * top_k), weights: Vec::with_capacity(rows.len() * top_k) };
        for &row in rows {
            let range = row as usize * top_k..(row as usize + 1) * top_k;
            block.slots.extend_from_slice(&self.slots[range.clone()]);
            block.weights.extend_from_slice(&self.weights[range]);
        }
        block
    }

    /// As a message: k, then slots, then the bits of the weights.
    fn encode(&self, top_k: usize) -> Vec<u32> {
        let mut words = Vec::with_capacity(1 + 2 * self.slots.len());
        words.push(top_k as u32);
        words.extend_from_slice(&self.slots);
        words.extend(self.weights.iter().map(|weight| weight.to_bits()));
        words
    }

    fn decode(words: &[u32], top_k: usize, slots: usize) -> Result<Block> {
        let refuse = |expected: String, got: String| Err(Error::Shape { what: "routing of another rank", expected, got });
        let Some((&their_k, entries)) = words.split_first() else {
            return refuse("a header".into(), "an empty message".into());
        };
        if their_k as usize != top_k {
            return refuse(format!("{top_k} experts a token"), their_k.to_string());
        }
        let (ids, weights) = entries.split_at(entries.len() / 2);
        if ids.len() != weights.len() || !ids.len().is_multiple_of(top_k) || ids.iter().any(|&slot| slot as usize >= slots) {
            return refuse(format!("rows of {top_k} slots below {slots}"), format!("{} words", entries.len()));
        }
        Ok(Block { slots: ids.to_vec(), weights: weights.iter().map(|&bits| f32::from_bits(bits)).collect() })
    }
}

/// This rank's tokens with their slots ascending by logical expert, and for each entry its place in `[T, k]`.
fn sort_routing(layout: &Layout, me: usize, routing: &Routing) -> Result<(Block, Vec<u32>)> {
    let (tokens, top_k) = (routing.tokens, routing.top_k);
    let entries = tokens.checked_mul(top_k).filter(|&n| top_k > 0 && n < u32::MAX as usize);
    let sound = |len: usize| entries == Some(len);
    if !sound(routing.indices.len()) || !sound(routing.weights.len()) {
        return Err(Error::Shape {
            what: "routing",
            expected: format!("{tokens} x {top_k} indices and weights, at least one a token"),
            got: format!("{} indices and {} weights", routing.indices.len(), routing.weights.len()),
        });
    }
    let mut slots = Vec::with_capacity(tokens * top_k);
    let mut weights = Vec::with_capacity(tokens * top_k);
    let mut choice = Vec::with_capacity(tokens * top_k);
    // The expert in the upper half, its place in the lower.
    let mut order: Vec<u64> = Vec::with_capacity(top_k);
    for (token, experts) in routing.indices.chunks_exact(top_k).enumerate() {
        order.clear();
        order.extend(experts.iter().zip((token * top_k) as u64..).map(|(&expert, at)| u64::from(expert) << 32 | at));
        order.sort_unstable();
        if order.last().is_some_and(|last| (last >> 32) as usize >= layout.num_experts()) {
            let expected = format!("experts below {}", layout.num_experts());
            return Err(Error::Shape { what: "routing indices", expected, got: format!("{experts:?} for token {token}") });
        }
        if order.windows(2).any(|pair| pair[0] >> 32 == pair[1] >> 32) {
            let expected = "different experts for a token".to_string();
            return Err(Error::Shape { what: "routing indices", expected, got: format!("{experts:?} for token {token}") });
        }
        for &entry in &order {
            let (expert, at) = ((entry >> 32) as usize, entry as u32);
            slots.push(layout.slot_for(expert, me, token) as u32);
            weights.push(routing.weights[at as usize]);
            choice.push(at);
        }
    }
    Ok((Block { slots, weights }, choice))
}

/// For each place among `places` the rows of a block that have an entry there.
fn rows_by_place(block: &Block, top_k: usize, place_of_slot: &[u32], places: usize) -> Vec<Vec<u32>> {
    let mut rows = vec![Vec::new(); places];
    for (row, slots) in block.slots.chunks_exact(top_k).enumerate() {
        for (at, &slot) in slots.iter().enumerate() {
            let place = place_of_slot[slot as usize];
            if slots[..at].iter().all(|&before| place_of_slot[before as usize] != place) {
                rows[place as usize].push(row as u32);
            }
        }
    }
    rows
}

impl Plan {
    /// Plans the dispatch of `routing.tokens` rows of this rank. Every rank of `comm` brings its own routing, with the same `top_k`;
    /// a rank may have no tokens.
    ///
    /// # Errors
    /// When the group has another size than the layout, the routing is malformed (an expert that does not exist or is listed twice for a
    /// token, `top_k` zero or not the same on all ranks), or another rank has failed.
    pub fn new(comm: &Comm, layout: &Layout, routing: &Routing) -> Result<Plan> {
        Plan::with_options(comm, layout, routing, PlanOptions::default())
    }

    /// [`Plan::new`] with options, the same on all ranks.
    ///
    /// # Errors
    /// As [`Plan::new`], and when an option is zero.
    pub fn with_options(comm: &Comm, layout: &Layout, routing: &Routing, options: PlanOptions) -> Result<Plan> {
        let (ep_size, me, top_k) = (layout.ep_size(), comm.rank(), routing.top_k);
        if comm.size() != ep_size {
            return Err(Error::Shape { what: "ranks of the group", expected: ep_size.to_string(), got: comm.size().to_string() });
        }
        if options.alignment == 0 || options.chunk_rows == 0 {
            return Err(Error::Config { what: "plan options", reason: "alignment and chunk rows are at least 1".into() });
        }
        let (mine, choice) = sort_routing(layout, me, routing)?;
        let slots = layout.phy2log().len();
        let rank_of_slot: Vec<u32> = (0..slots).map(|slot| layout.rank_of_slot(slot) as u32).collect();
        let node_of_slot: Vec<u32> = rank_of_slot.iter().map(|&rank| layout.node(rank as usize) as u32).collect();
        let my_node = layout.node(me);

        // Tell others what will come: each gateway of another node, and each other rank of this node.
        let mut sends = Vec::new();
        let mut max_nodes_per_token = usize::from(routing.tokens > 0);
        if ep_size > 1 {
            let mut nodes_of_row = vec![0usize; routing.tokens];
            for (node, rows) in rows_by_place(&mine, top_k, &node_of_slot, layout.nodes()).into_iter().enumerate() {
                rows.iter().for_each(|&row| nodes_of_row[row as usize] += 1);
                if node != my_node {
                    let to = layout.gateway(me, node);
                    comm.send(to, tag(Kind::Plan, me), mine.pick(&rows, top_k).encode(top_k))?;
                    sends.push(Send { to, slow: true, rows });
                }
            }
            max_nodes_per_token = nodes_of_row.into_iter().max().unwrap_or(0);
            for (rank, rows) in rows_by_place(&mine, top_k, &rank_of_slot, ep_size).into_iter().enumerate() {
                if rank != me && layout.node(rank) == my_node {
                    comm.send(rank, tag(Kind::Plan, me), mine.pick(&rows, top_k).encode(top_k))?;
                    sends.push(Send { to: rank, slow: false, rows });
                }
            }
        }
        // Learn the same of others, gateways first: they pass it on.
        let mut blocks = vec![Block::default(); ep_size];
        let mut inbound = Vec::new();
        let gateway = |source: usize| layout.gateway(source, my_node);
        let (passed_on, received): (Vec<usize>, Vec<usize>) =
            (0..ep_size).filter(|&source| source != me).partition(|&source| gateway(source) == me);
        for (sources, is_gateway) in [(passed_on, true), (received, false)] {
            for source in sources {
                let from = if is_gateway { source } else { gateway(source) };
                let block = Block::decode(&comm.recv::<u32>(from, tag(Kind::Plan, source))?, top_k, slots)?;
                let rows = block.slots.len() / top_k;
                let mut forward = Vec::new();
                if is_gateway {
                    let mut by_rank = rows_by_place(&block, top_k, &rank_of_slot, ep_size);
                    for to in layout.ranks_of_node(my_node).filter(|&rank| rank != me) {
                        let rows = std::mem::take(&mut by_rank[to]);
                        comm.send(to, tag(Kind::Plan, source), block.pick(&rows, top_k).encode(top_k))?;
                        forward.push(Send { to, slow: false, rows });
                    }
                }
                blocks[source] = block;
                inbound.push(Inbound { source, from, rows, forward });
            }
        }
        blocks[me] = mine;

        // Expert-major order: by slot, then by source, then by token.
        let first_slot = me * layout.slots_per_rank();
        let local = first_slot..first_slot + layout.slots_per_rank();
        let mut counts = vec![0usize; local.len()];
        for slot in blocks.iter().flat_map(|block| &block.slots) {
            if local.contains(&(*slot as usize)) {
                counts[*slot as usize - first_slot] += 1;
            }
        }
        let mut offsets = Vec::with_capacity(counts.len() + 1);
        let mut end = 0usize;
        offsets.push(0);
        for &count in &counts {
            end += count.next_multiple_of(options.alignment);
            offsets.push(end);
        }
        if end >= PADDING as usize {
            return Err(Error::Unsupported { what: format!("{end} expert rows on one rank") });
        }
        let mut gather = vec![(PADDING, 0); end];
        let mut row_weights = vec![0f32; end];
        let mut next = offsets.clone();
        // The expert-major rows of each source's entries, in the order of the entries.
        let mut leaves = vec![Vec::new(); ep_size];
        for (source, block) in blocks.iter().enumerate() {
            for (entry, (&slot, &weight)) in block.slots.iter().zip(&block.weights).enumerate() {
                if local.contains(&(slot as usize)) {
                    let at = &mut next[slot as usize - first_slot];
                    gather[*at] = (source as u32, (entry / top_k) as u32);
                    row_weights[*at] = weight;
                    leaves[source].push(*at as u32);
                    *at += 1;
                }
            }
        }

        // How the results come back.
        let sums = Sums { layout, me, top_k, rank_of_slot: &rank_of_slot };
        let mut outgoing: Vec<Merge> = (0..ep_size)
            .filter(|&source| source != me)
            .map(|source| sums.merge(source, &blocks[source], &leaves[source]))
            .collect();
        // Partial sums bound for other nodes leave first; what waits for others' partial sums leaves last.
        outgoing.sort_by_key(|merge| {
            let waits = merge.slow;
            let far = layout.node(merge.source) != my_node;
            (waits, !far, (merge.source + ep_size - me) % ep_size)
        });
        let home = sums.merge(me, &blocks[me], &leaves[me]);
        Ok(Plan {
            layout: layout.clone(),
            options,
            me,
            tokens: routing.tokens,
            top_k,
            sends,
            inbound,
            gather,
            row_weights,
            offsets,
            counts,
            outgoing,
            home,
            choice,
            max_nodes_per_token,
            dispatched: Counters::default(),
            combined: Counters::default(),
        })
    }

    /// The layout that the plan is for.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Tokens of this rank, T.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Experts per token, k.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Expert-major rows on this rank, R, padding included.
    pub fn expert_rows(&self) -> usize {
        self.gather.len()
    }

    /// Where the rows of each local expert begin, and R at the end: [local experts + 1], multiples of the alignment.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Rows of each local expert, padding not counted.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The weight of each expert-major row `[R]`; 0 for padding.
    pub fn row_weights(&self) -> &[f32] {
        &self.row_weights
    }

    /// Rows that this rank sends to other nodes in one dispatch: the number of distinct pairs of one of its tokens and another node.
    pub fn slow_rows(&self) -> usize {
        self.sends.iter().filter(|send| send.slow).map(|send| send.rows.len()).sum()
    }

    /// The most nodes that one of this rank's tokens goes to, its own included.
    pub fn max_nodes_per_token(&self) -> usize {
        self.max_nodes_per_token
    }

    /// Bytes of memory that the plan holds.
    pub fn bytes(&self) -> usize {
        let merge = |merge: &Merge| {
            size_of_val(merge.program.terms.as_slice())
                + size_of_val(merge.program.starts.as_slice())
                + size_of_val(merge.gradients.as_slice())
        };
        let send = |send: &Send| size_of_val(send.rows.as_slice());
        self.sends.iter().map(send).sum::<usize>()
            + self.inbound.iter().flat_map(|inbound| &inbound.forward).map(send).sum::<usize>()
            + self.outgoing.iter().map(merge).sum::<usize>()
            + merge(&self.home)
            + size_of_val(self.gather.as_slice())
            + size_of_val(self.row_weights.as_slice())
            + size_of_val(self.choice.as_slice())
    }

    /// What this rank has sent so far from tokens to experts: in [`dispatch`](Plan::dispatch) and
    /// [`combine_backward`](Plan::combine_backward), rows that it passed on as a gateway included.
    pub fn traffic(&self) -> Traffic {
        self.dispatched.read()
    }

    /// What this rank has sent so far from experts to tokens: in [`combine`](Plan::combine) and
    /// [`dispatch_backward`](Plan::dispatch_backward).
    pub fn combine_traffic(&self) -> Traffic {
        self.combined.read()
    }
}

struct Sums<'a> {
    layout: &'a Layout,
    me: usize,
    top_k: usize,
    rank_of_slot: &'a [u32],
}

impl Sums<'_> {
    /// What this rank adds for the tokens of one source. It owns its own expert rows; as a gateway, those of its node; as the source, all.
    fn merge(&self, source: usize, block: &Block, leaves: &[u32]) -> Merge {
        let (layout, me, top_k) = (self.layout, self.me, self.top_k);
        let my_node = layout.node(me);
        let home = source == me;
        let gateway = !home && layout.node(source) != my_node && layout.gateway(source, my_node) == me;
        let to = if home || gateway { source } else { layout.gateway(source, my_node) };
        let mut program = Program::new();
        program.terms.reserve(if home { block.slots.len() } else { leaves.len() });
        let mut received = vec![0usize; layout.ep_size()];
        let mut gradients_received = vec![0usize; layout.ep_size()];
        let mut gradients = Vec::with_capacity(leaves.len());
        let mut leaf = leaves.iter().map(|&at| at as usize);
        let mut heights = vec![0u32; top_k];
        let mut owners = vec![0u32; top_k];
        let mut mine = Vec::with_capacity(top_k);
        const NOBODY: u32 = u32::MAX;
        for (row, slots) in block.slots.chunks_exact(top_k).enumerate() {
            let weights = &block.weights[row * top_k..(row + 1) * top_k];
            mine.clear();
            for (at, &slot) in slots.iter().enumerate() {
                if at + 1 < top_k {
                    let phy2log = layout.phy2log();
                    heights[at] = join_height(phy2log[slot as usize], phy2log[slots[at + 1] as usize]);
                }
                let rank = self.rank_of_slot[slot as usize] as usize;
                // From whom this rank gets what that rank computes, if it does.
                let owner = if rank == me {
                    mine.extend(leaf.next());
                    Some(me)
                } else if (home || gateway) && layout.node(rank) == my_node {
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
                        gradients_received[owner] += 1;
                        (1 + owner as u32, gradients_received[owner] as u32 - 1)
                    });
                }
            }
            if mine.len() == top_k {
                // All of the token's experts are here: the whole tree.
                for ((&leaf, &weight), &height) in mine.iter().zip(weights).zip(&heights) {
                    program.push(0, leaf, weight, Some(height));
                }
                program.end_row();
                continue;
            }
            let mut next_mine = mine.iter();
            // The terms of the node `lo..hi`: this rank's rows one by one, others' sums as they come.
            let mut add = |program: &mut Program, lo: usize, hi: usize| {
                owned_nodes(&owners, &heights, lo, hi, &mut |lo, hi, owner| {
                    if owner as usize == me {
                        for at in lo..hi {
                            if let Some(&leaf) = next_mine.next() {
                                program.push(0, leaf, weights[at], Some(heights[at]));
                            }
                        }
                    } else {
                        let theirs = &mut received[owner as usize];
                        program.push(1 + owner as usize, *theirs, 1.0, Some(heights[hi - 1]));
                        *theirs += 1;
                    }
                });
            };
            if home {
                add(&mut program, 0, top_k);
                program.end_row();
            } else {
                // Only whole nodes of the tree may leave.
                let whole: Vec<u32> = owners.iter().map(|&owner| u32::from(owner == NOBODY)).collect();
                owned_nodes(&whole, &heights, 0, top_k, &mut |lo, hi, outside| {
                    if outside == 0 {
                        add(&mut program, lo, hi);
                        program.end_row();
                    }
                });
            }
        }
        let senders = |counts: Vec<usize>| counts.into_iter().enumerate().filter(|&(_, count)| count > 0).collect();
        Merge {
            source,
            to,
            slow: !home && layout.node(to) != my_node,
            program,
            inputs: senders(received),
            gradients,
            gradient_inputs: senders(gradients_received),
        }
    }
}
