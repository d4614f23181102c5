//! A plan from its parts: this rank's routing, then what the other ranks say of theirs.

use crate::cpu::RowMap;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::plan::block::{Block, below, copies, present, rows_by_place, sort_routing};
use crate::plan::merge::{Merge, Sums};
use crate::plan::{Counters, FanOut, Inbound, MAX_RANKS, Plan, PlanOptions, Send};
use crate::router::Routing;

/// What this rank knows while the routing of other ranks comes in.
#[derive(Debug)]
pub(crate) struct Parts {
    pub layout: Layout,
    pub options: PlanOptions,
    pub me: usize,
    pub tokens: usize,
    pub top_k: usize,
    pub sends: Vec<Send>,
    pub counters: Counters,
    rank_of_slot: Vec<u32>,
    /// This rank's own routing.
    pub mine: Block,
    choice: Vec<u32>,
    max_nodes_per_token: usize,
    inbound: Vec<(usize, Block, Vec<Send>)>,
}

/// Ranks in the order in which a rank at place `place` of its node sends to them: each begins with another, so that no port is asked by all at once.
fn rotated<T>(list: &mut [T], place: usize, size: usize, key: impl Fn(&T) -> usize) {
    list.sort_by_key(|item| (key(item) + 2 * size - place - 1) % size.max(1));
}

impl Parts {
    pub fn new(layout: &Layout, me: usize, routing: &Routing, options: PlanOptions) -> Result<Parts> {
        options.check()?;
        let (ep_size, top_k) = (layout.ep_size(), routing.top_k);
        if ep_size > MAX_RANKS {
            return Err(Error::Unsupported { what: format!("{ep_size} ranks, more than {MAX_RANKS}") });
        }
        if let Some(capacity) = options.capacity.filter(|&capacity| capacity < routing.tokens) {
            return Err(Error::Shape {
                what: "tokens",
                expected: format!("at most {capacity}, the capacity"),
                got: routing.tokens.to_string(),
            });
        }
        let (mine, choice) = sort_routing(layout, me, routing, options.channels)?;
        let slots = layout.phy2log().len();
        let rank_of_slot: Vec<u32> = (0..slots).map(|slot| layout.rank_of_slot(slot) as u32).collect();
        let mut parts = Parts {
            layout: layout.clone(),
            options,
            me,
            tokens: routing.tokens,
            top_k,
            sends: Vec::new(),
            counters: Counters::default(),
            rank_of_slot,
            mine,
            choice,
            max_nodes_per_token: 0,
            inbound: Vec::new(),
        };
        parts.plan_sends();
        Ok(parts)
    }

    /// The sends of this rank's own rows: to each gateway of another node, and to each other rank of this node.
    fn plan_sends(&mut self) {
        let (layout, me, top_k) = (&self.layout, self.me, self.top_k);
        let my_node = layout.node(me);
        let node_of_slot: Vec<u32> = self.rank_of_slot.iter().map(|&rank| layout.node(rank as usize) as u32).collect();
        let mut nodes_of_row = vec![0usize; self.tokens];
        let mut sends = Vec::new();
        for (node, rows) in rows_by_place(&self.mine, top_k, &node_of_slot, layout.nodes()).into_iter().enumerate() {
            rows.iter().for_each(|&row| nodes_of_row[row as usize] += 1);
            if node != my_node {
                let channels = below(&rows, &self.mine.channels);
                sends.push(Send { to: layout.gateway(me, node), slow: true, rows, channels });
            }
        }
        rotated(&mut sends, my_node, layout.nodes(), |send| layout.node(send.to));
        sends.extend(self.fan_out(&self.mine));
        self.max_nodes_per_token = nodes_of_row.into_iter().max().unwrap_or(0);
        self.sends = sends;
    }

    /// The sends of a block's rows to the other ranks of this node.
    pub fn fan_out(&self, block: &Block) -> Vec<Send> {
        let (layout, me, top_k) = (&self.layout, self.me, self.top_k);
        let mut by_rank = rows_by_place(block, top_k, &self.rank_of_slot, layout.ep_size());
        let ranks = layout.ranks_of_node(layout.node(me));
        let mut sends = Vec::new();
        for to in ranks.clone().filter(|&rank| rank != me) {
            let mut rows = std::mem::take(&mut by_rank[to]);
            if self.options.fan_out == FanOut::PerExpert {
                rows = copies(block, &rows, top_k, &self.rank_of_slot, to);
            }
            let channels = below(&rows, &block.channels);
            sends.push(Send { to, slow: false, rows, channels });
        }
        rotated(&mut sends, me - ranks.start, ranks.len(), |send| send.to - ranks.start);
        sends
    }

    /// `rows` of a block, each once for every entry on rank `to`.
    pub fn copies(&self, block: &Block, rows: &[u32], to: usize) -> Vec<u32> {
        copies(block, rows, self.top_k, &self.rank_of_slot, to)
    }

    /// Whether a slot is on this rank.
    pub fn is_local(&self, slot: u32) -> bool {
        self.rank_of_slot.get(slot as usize).is_some_and(|&rank| rank as usize == self.me)
    }

    /// What other ranks are to know of this rank's routing, and to whom it goes.
    pub fn messages(&self) -> Vec<(usize, Vec<u32>)> {
        self.sends.iter().map(|send| (send.to, self.message(&self.mine, send))).collect()
    }

    fn message(&self, block: &Block, send: &Send) -> Vec<u32> {
        let mut rows = send.rows.clone();
        rows.dedup();
        block.pick(&rows, self.top_k).encode(self.top_k)
    }

    /// Every other rank, and from whom this rank learns of that rank's routing: gateways' first, since they pass it on.
    pub fn sources(&self) -> Vec<(usize, usize)> {
        let (layout, me) = (&self.layout, self.me);
        let gateway = |source: usize| layout.gateway(source, layout.node(me));
        let others = (0..layout.ep_size()).filter(|&source| source != me);
        let (passed_on, received): (Vec<usize>, Vec<usize>) = others.partition(|&source| gateway(source) == me);
        let sender = |source: usize| if gateway(source) == me { source } else { gateway(source) };
        passed_on.into_iter().chain(received).map(|source| (source, sender(source))).collect()
    }

    /// Takes in the routing of rank `source`; returns what is to be passed on, and to whom.
    pub fn learn(&mut self, source: usize, words: &[u32]) -> Result<Vec<(usize, Vec<u32>)>> {
        let slots = self.layout.phy2log().len();
        let block = Block::decode(words, self.top_k, self.options.channels, slots, self.options.capacity)?;
        let forward = if self.is_gateway(source) { self.fan_out(&block) } else { Vec::new() };
        let messages = forward.iter().map(|send| (send.to, self.message(&block, send))).collect();
        self.inbound.push((source, block, forward));
        Ok(messages)
    }

    /// [`learn`](Parts::learn) of what others know already.
    pub fn learn_block(&mut self, source: usize, block: Block) {
        let forward = if self.is_gateway(source) { self.fan_out(&block) } else { Vec::new() };
        self.inbound.push((source, block, forward));
    }

    /// Whether this rank passes on the rows of another node's rank. The ranks of this rank's own node tell each other.
    pub fn is_gateway(&self, source: usize) -> bool {
        let (layout, me) = (&self.layout, self.me);
        layout.node(source) != layout.node(me) && layout.gateway(source, layout.node(me)) == me
    }

    /// The plan, once every source has been learned of.
    pub fn build(self) -> Result<Plan> {
        let Parts { layout, options, me, tokens, top_k, .. } = self;
        let ep_size = layout.ep_size();
        let mut forwards: Vec<Vec<Send>> = std::iter::repeat_with(Vec::new).take(ep_size).collect();
        let mut blocks = vec![Block { channels: vec![0; options.channels + 1], ..Block::default() }; ep_size];
        for (source, block, forward) in self.inbound {
            blocks[source] = block;
            forwards[source] = forward;
        }
        blocks[me] = self.mine;

        // Expert-major order: by slot, then by source, then by token.
        let first_slot = me * layout.slots_per_rank();
        let local = first_slot..first_slot + layout.slots_per_rank();
        let is_local = |slot: u32| local.contains(&(slot as usize));
        let mut source_counts = vec![0u32; local.len() * ep_size];
        for (source, block) in blocks.iter().enumerate() {
            for &slot in block.slots.iter().filter(|&&slot| is_local(slot)) {
                source_counts[(slot as usize - first_slot) * ep_size + source] += 1;
            }
        }
        let placed = Placed::new(&source_counts, ep_size, &options)?;
        let mut next = placed.first.clone();
        let mut row_weights = vec![0f32; placed.rows];
        // For each source where its rows go: row i to `places[starts[i]..starts[i + 1]]`.
        let mut deliveries: Vec<(Vec<u32>, Vec<u32>)> = Vec::with_capacity(ep_size);
        for (source, block) in blocks.iter().enumerate() {
            let (mut starts, mut places) = (Vec::with_capacity(block.rows() + 1), Vec::new());
            starts.push(0);
            for (slots, weights) in block.slots.chunks_exact(top_k).zip(block.weights.chunks_exact(top_k)) {
                for (&slot, &weight) in present(slots).iter().zip(weights).filter(|&(&slot, _)| is_local(slot)) {
                    let at = &mut next[(slot as usize - first_slot) * ep_size + source];
                    row_weights[*at] = weight;
                    places.push(*at as u32);
                    *at += 1;
                }
                starts.push(places.len() as u32);
            }
            deliveries.push((starts, places));
        }

        // How the results come back.
        let sums = Sums { layout: &layout, me, top_k, rank_of_slot: &self.rank_of_slot };
        let merge = |source: usize| sums.merge(source, &blocks[source], &deliveries[source].1);
        let mut outgoing: Vec<Merge> = (0..ep_size).filter(|&source| source != me).map(merge).collect();
        let (my_node, nodes, per_node) = (layout.node(me), layout.nodes(), layout.ranks_per_node().min(ep_size));
        // Sums that leave the node first, then those that another rank of this node sends on, then those that stay in it. Each
        // rank begins with another destination; those for one node follow each other, so that every gateway soon has its first whole sum.
        outgoing.sort_by_key(|merge| {
            let far = layout.node(merge.source) != my_node;
            let (node, place) = (layout.node(merge.source), merge.to % per_node);
            let turn = (node + 2 * nodes - my_node - 1) % nodes;
            (!merge.slow, !far, turn, (place + 2 * per_node - me % per_node - 1) % per_node)
        });
        let home = merge(me);

        let map = |starts, places| {
            // SAFETY: the places of each slot and source begin at `placed.first`, are counted up, and are as many as `source_counts` says, so
            // that none is another's; `starts` counts them.
            unsafe { RowMap::new_unchecked(starts, places, placed.rows) }
        };
        let mut inbound = Vec::with_capacity(ep_size - 1);
        let my_gateway = |source: usize| layout.gateway(source, my_node);
        for source in (0..ep_size).filter(|&source| source != me) {
            let (mut starts, places) = std::mem::take(&mut deliveries[source]);
            let block = &blocks[source];
            let direct = layout.node(source) == my_node;
            let from = if direct || my_gateway(source) == me { source } else { my_gateway(source) };
            let mut channels = block.channels.clone();
            // One copy for each entry here: they come one by one.
            if options.fan_out == FanOut::PerExpert && (direct || from != source) {
                channels = channels.iter().map(|&row| starts[row as usize]).collect();
                starts = (0..=places.len() as u32).collect();
            }
            let forward = std::mem::take(&mut forwards[source]);
            inbound.push(Inbound { source, from, channels, forward, delivery: map(starts, places) });
        }
        inbound.sort_by_key(|inbound| (layout.node(inbound.source) == my_node, inbound.from != inbound.source));
        let (starts, places) = std::mem::take(&mut deliveries[me]);
        let own = map(starts, places);
        let totals = source_counts.chunks(ep_size).map(|counts| counts.iter().map(|&n| n as usize).sum()).collect();
        Ok(Plan {
            options,
            me,
            tokens,
            top_k,
            sends: self.sends,
            inbound,
            own,
            expert_rows: placed.rows,
            padding: placed.padding,
            row_weights,
            offsets: placed.offsets,
            counts: totals,
            source_counts,
            outgoing,
            home,
            choice: self.choice,
            max_nodes_per_token: self.max_nodes_per_token,
            dispatched: self.counters,
            combined: Counters::default(),
            layout,
        })
    }
}

/// Where the rows of each local expert from each source begin.
pub(crate) struct Placed {
    pub rows: usize,
    offsets: Vec<usize>,
    /// [local experts, ranks].
    pub first: Vec<usize>,
    padding: Vec<std::ops::Range<usize>>,
}

impl Placed {
    pub fn new(source_counts: &[u32], ep_size: usize, options: &PlanOptions) -> Result<Placed> {
        let too_many = || Error::Unsupported { what: "more than 2^32 - 2 expert rows on one rank".into() };
        let (mut offsets, mut first, mut padding) = (vec![0], Vec::with_capacity(source_counts.len()), Vec::new());
        let mut at = 0usize;
        let mut pad = |from: usize, to: usize| {
            if from < to {
                padding.push(from..to);
            }
        };
        for counts in source_counts.chunks(ep_size) {
            let begin = at;
            for &count in counts {
                first.push(at);
                if options.capacity.is_some_and(|capacity| count as usize > capacity) {
                    let expected = format!("at most {} rows of a rank for one expert", options.capacity.unwrap_or(0));
                    return Err(Error::Shape { what: "routing of another rank", expected, got: count.to_string() });
                }
                let used = at.checked_add(count as usize).ok_or_else(too_many)?;
                at = options.capacity.map_or(Some(used), |capacity| at.checked_add(capacity)).ok_or_else(too_many)?;
                pad(used, at);
            }
            let end = (at - begin)
                .checked_next_multiple_of(options.alignment)
                .and_then(|rows| rows.checked_add(begin))
                .filter(|&end| end < u32::MAX as usize)
                .ok_or_else(too_many)?;
            pad(at, end);
            at = end;
            offsets.push(at);
        }
        Ok(Placed { rows: at, offsets, first, padding })
    }
}
