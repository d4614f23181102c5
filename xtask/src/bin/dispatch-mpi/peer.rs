//! The peer: every (token, expert) row packed in the order of the experts, sent with MPI's own all-to-all, unpacked expert by expert.
//! Counts and orders are settled beforehand, as a plan is.

use moe_dispatch::Routing;
use v3_ranks::{Comm, mpi_all_to_all_v};

use crate::Outcome;

pub struct Peer {
    hidden: usize,
    /// Rows that a rank sends to itself.
    own: usize,
    /// The token of each row, in the order in which they are packed.
    order: Vec<u32>,
    sent: Vec<usize>,
    received: Vec<usize>,
    /// Blocks of rows: where they have come, where they belong, how many.
    blocks: Vec<(usize, usize, usize)>,
    packed: Vec<u16>,
    arrived: Vec<u16>,
}

impl Peer {
    pub fn new(comm: &Comm, routing: &Routing, experts: usize, hidden: usize) -> Outcome<Self> {
        let size = comm.size();
        let local = experts / size;
        // By expert, then by token: experts of one rank are neighbours.
        let mut order: Vec<(u32, u32)> = Vec::with_capacity(routing.indices.len());
        for (at, &expert) in routing.indices.iter().enumerate() {
            order.push((expert, (at / routing.top_k) as u32));
        }
        order.sort_unstable();
        let counts: Vec<u64> = routing.expert_counts(experts)?;
        let theirs: Vec<Vec<u64>> = comm.all_to_all_v(counts.chunks(local).map(<[u64]>::to_vec).collect())?;
        let sent: Vec<usize> = counts.chunks(local).map(|counts| counts.iter().sum::<u64>() as usize).collect();
        let received: Vec<usize> = theirs.iter().map(|counts| counts.iter().sum::<u64>() as usize).collect();

        let mut blocks = Vec::new();
        let mut from: Vec<usize> = received.iter().scan(0, |sum, &n| Some(std::mem::replace(sum, *sum + n))).collect();
        let mut to = 0;
        for expert in 0..local {
            for (source, counts) in theirs.iter().enumerate() {
                let rows = counts[expert] as usize;
                blocks.push((from[source], to, rows));
                from[source] += rows;
                to += rows;
            }
        }
        let packed = vec![0; order.len() * hidden];
        let arrived = vec![0; to * hidden];
        Ok(Peer {
            hidden,
            own: sent[comm.rank()],
            order: order.into_iter().map(|(_, token)| token).collect(),
            sent,
            received,
            blocks,
            packed,
            arrived,
        })
    }

    /// Rows that go to other ranks.
    pub fn rows_to_others(&self) -> usize {
        self.order.len() - self.own
    }

    /// MPI's part alone.
    pub fn exchange(&mut self) -> Outcome<()> {
        let (packed, arrived) = (bytemuck::cast_slice(&self.packed), bytemuck::cast_slice_mut(&mut self.arrived));
        Ok(mpi_all_to_all_v(packed, &self.sent, arrived, &self.received, self.hidden * 2)?)
    }

    /// From rows in the order of tokens to rows in the order of experts.
    pub fn run(&mut self, rows: &[u16], out: &mut [u16]) -> Outcome<()> {
        let hidden = self.hidden;
        for (row, &token) in self.packed.chunks_exact_mut(hidden).zip(&self.order) {
            row.copy_from_slice(&rows[token as usize * hidden..][..hidden]);
        }
        self.exchange()?;
        for &(from, to, count) in &self.blocks {
            out[to * hidden..][..count * hidden].copy_from_slice(&self.arrived[from * hidden..][..count * hidden]);
        }
        Ok(())
    }
}
