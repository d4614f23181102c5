//! Asynchronous operations in flight.
//!
//! What an operation may touch is checked, and told to the race detector, when it is issued: bounds, alignment and order are a matter of the
//! program, not of time. Bytes move later: at once in the order of issue without a seed, with one in any order and in parts, and at the
//! latest when someone waits for them.

use super::io::World;
use super::mbarrier;
use super::parts::Place;
use crate::fault::Exec;
use crate::race::AgentId;
use crate::regs::Mask;
use crate::rng::Rng;
use crate::tma::{Reduction, TensorMap};
use std::collections::VecDeque;

/// Bytes that move together.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Global address; or a shared address of `Load::from`; unused for a fill.
    pub global: u64,
    /// Shared address.
    pub shared: u32,
    /// How many.
    pub bytes: u32,
    /// Elements outside of the tensor.
    pub fill: bool,
}

/// One lane's part of a `cp.async`.
#[derive(Debug, Clone, Copy)]
pub struct LaneCopy {
    /// Global address.
    pub from: u64,
    /// Shared address.
    pub to: u32,
    /// Bytes written.
    pub bytes: u8,
    /// Bytes read; the others are 0.
    pub read: u8,
}

/// What an operation does.
#[derive(Debug)]
pub enum Body {
    /// `cp.async`
    Lanes {
        /// Lane by lane.
        copies: Vec<LaneCopy>,
    },
    /// The arrival of `cp.async.mbarrier.arrive`, once the copies before it are done.
    Arrive {
        /// Where each lane arrives.
        places: Vec<Place>,
        /// The copies, as the race detector knows them.
        agents: Vec<AgentId>,
    },
    /// To shared memory, completing on an mbarrier of each block that receives.
    Load {
        /// What moves where: the same offsets in each block.
        pieces: VecDeque<Piece>,
        /// Block whose shared memory is the source; None: global memory.
        from: Option<usize>,
        /// Blocks that receive.
        to: Vec<usize>,
        /// Shared address of the mbarrier in each.
        mbarrier: u32,
        /// How elements are converted, and what stands for those outside.
        map: Option<Box<TensorMap>>,
        /// What is done to what is there.
        reduction: Option<Reduction>,
    },
    /// To global memory, in a bulk group.
    Store {
        /// What moves where.
        pieces: VecDeque<Piece>,
        /// What has been read of them, from the first on.
        staged: Option<Vec<u8>>,
        /// What is done to what is there.
        reduction: Option<Reduction>,
    },
}

/// Which groups of a thread an operation counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `cp.async`
    Copies,
    /// `cp.async.bulk`
    Bulk,
}

/// An operation in flight.
#[derive(Debug)]
pub struct Operation {
    /// What it does.
    pub body: Body,
    /// Rank of the block that issued it.
    pub rank: usize,
    /// Warp.
    pub warp: u32,
    /// Lanes.
    pub lanes: Mask,
    /// Which groups it may be in.
    pub family: Family,
    /// Number of its group: the same for all its lanes.
    pub group: u32,
    /// What the race detector calls it.
    pub agent: Option<AgentId>,
    /// The instruction.
    pub site: u32,
    /// The instruction's name.
    pub what: &'static str,
}

/// How far to carry an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Its sources have been read.
    Read,
    /// It is done.
    Done,
    /// This many pieces more, from the end that is given.
    Pieces {
        /// How many.
        count: usize,
        /// The last ones.
        back: bool,
    },
}

impl Operation {
    /// Whether shared memory of a block is still to be read or written.
    pub fn touches(&self, rank: usize) -> bool {
        match &self.body {
            Body::Lanes { .. } => self.rank == rank,
            Body::Arrive { places, .. } => places.iter().any(|p| p.rank == rank),
            Body::Load { from, to, .. } => *from == Some(rank) || to.contains(&rank),
            Body::Store { staged, .. } => self.rank == rank && staged.is_none(),
        }
    }

    fn pieces(&self) -> usize {
        match &self.body {
            Body::Lanes { .. } | Body::Arrive { .. } => 1,
            Body::Load { pieces, .. } | Body::Store { pieces, .. } => pieces.len(),
        }
    }

    /// Carries it on; whether it is done.
    fn step(&mut self, world: &mut World<'_>, until: Until) -> Exec<bool> {
        let result = match &mut self.body {
            Body::Lanes { copies } => {
                for copy in copies {
                    let mut bytes = [0; 16];
                    let (read, bytes) = (copy.read as usize, &mut bytes[..copy.bytes as usize]);
                    if read > 0 {
                        world.read_global(self.site, copy.from, &mut bytes[..read])?;
                    }
                    world.write_shared(Place { rank: self.rank, address: copy.to }, bytes)?;
                }
                Ok(true)
            }
            Body::Arrive { places, agents } => {
                for (i, &place) in places.iter().enumerate() {
                    // Once an object is enough.
                    let told = i.checked_sub(1).and_then(|i| places.get(i)) == Some(&place);
                    world.complete(place, if told { &[] } else { agents }, None, (self.what, self.site))?;
                }
                Ok(true)
            }
            Body::Load { pieces, from, to, mbarrier, map, reduction } => {
                let (count, back) = match until {
                    Until::Pieces { count, back } => (count.min(pieces.len()), back),
                    Until::Read | Until::Done => (pieces.len(), false),
                };
                let mut landed = 0;
                let mut buffer = vec![];
                for _ in 0..count {
                    let Some(piece) = (if back { pieces.pop_back() } else { pieces.pop_front() }) else { break };
                    buffer.clear();
                    buffer.resize(piece.bytes as usize, 0);
                    match (piece.fill, *from) {
                        (true, _) => map.iter().for_each(|map| map.fill(&mut buffer)),
                        (false, Some(rank)) => {
                            world.read_shared(Place { rank, address: piece.global as u32 }, &mut buffer)?;
                        }
                        (false, None) => {
                            world.read_global(self.site, piece.global, &mut buffer)?;
                            map.iter().for_each(|map| map.convert(&mut buffer));
                        }
                    }
                    for &rank in to.iter() {
                        let place = Place { rank, address: piece.shared };
                        match reduction {
                            None => world.write_shared(place, &buffer)?,
                            Some(reduction) => {
                                let mut old = vec![0; buffer.len()];
                                world.read_shared(place, &mut old)?;
                                reduction.apply(&mut old, &buffer);
                                world.write_shared(place, &old)?;
                            }
                        }
                    }
                    landed += piece.bytes;
                }
                let done = pieces.is_empty();
                // The detector counts the whole as observed with the phase in which its last part lands.
                let agents: &[AgentId] = if done { self.agent.as_slice() } else { &[] };
                for &rank in to.iter() {
                    world.complete(Place { rank, address: *mbarrier }, agents, Some(landed), (self.what, self.site))?;
                }
                Ok(done)
            }
            Body::Store { pieces, staged, reduction } => {
                if staged.is_none() {
                    let mut bytes = Vec::new();
                    for piece in pieces.iter() {
                        let at = bytes.len();
                        bytes.resize(at + piece.bytes as usize, 0);
                        world.read_shared(Place { rank: self.rank, address: piece.shared }, &mut bytes[at..])?;
                    }
                    *staged = Some(bytes);
                    if until != Until::Done {
                        return Ok(false);
                    }
                }
                if until == Until::Read {
                    return Ok(false);
                }
                let bytes = staged.get_or_insert_default();
                let count = match until {
                    Until::Pieces { count, .. } => count.min(pieces.len()),
                    Until::Read | Until::Done => pieces.len(),
                };
                let mut at = 0;
                for _ in 0..count {
                    let Some(piece) = pieces.pop_front() else { break };
                    let end = (at + piece.bytes as usize).min(bytes.len());
                    match reduction {
                        None => world.write_global(self.site, piece.global, &bytes[at..end])?,
                        Some(reduction) => world.reduce_global(self.site, piece.global, &bytes[at..end], reduction)?,
                    }
                    at = end;
                }
                bytes.drain(..at);
                Ok(pieces.is_empty())
            }
        };
        result.map_err(|mut fault: Box<crate::fault::Fault>| {
            fault.site = fault.site.or(Some(self.site));
            fault
        })
    }
}

/// Operations in flight, in the order of issue.
#[derive(Debug, Default)]
pub struct Queue {
    operations: VecDeque<Operation>,
}

impl Queue {
    /// How many.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// In the order of issue.
    pub fn iter(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter()
    }

    /// Takes an operation in.
    pub fn push(&mut self, operation: Operation) {
        self.operations.push_back(operation);
    }

    /// Carries one operation on, and takes it out when it is done.
    fn run(&mut self, at: usize, world: &mut World<'_>, until: Until) -> Exec {
        let Some(operation) = self.operations.get_mut(at) else { return Ok(()) };
        if operation.step(world, until)? {
            let operation = self.operations.remove(at);
            if let (Some(operation), Some(detector)) = (operation, world.detector.as_deref_mut())
                && let (Body::Load { .. }, Some(agent)) = (&operation.body, operation.agent)
            {
                detector.race.agent_retire(agent);
            }
        }
        Ok(())
    }

    /// A copy that an operation must wait for: `cp.async.mbarrier.arrive` comes after the copies of its threads.
    fn before(&self, at: usize) -> Option<usize> {
        let operation = self.operations.get(at)?;
        let Body::Arrive { .. } = operation.body else { return None };
        self.operations.iter().take(at).position(|o| {
            matches!(o.body, Body::Lanes { .. })
                && o.rank == operation.rank
                && o.warp == operation.warp
                && o.lanes & operation.lanes != 0
        })
    }

    /// Carries on an operation: the first, or one that the seed chooses, perhaps in part.
    pub fn advance(&mut self, world: &mut World<'_>, rng: &mut Rng) -> Exec<bool> {
        if self.operations.is_empty() {
            return Ok(false);
        }
        let seeded = world.env.config.seed != 0;
        let mut at = if seeded { rng.below(self.operations.len()) } else { 0 };
        if let Some(before) = self.before(at) {
            at = before;
        }
        let pieces = self.operations.get(at).map_or(0, Operation::pieces);
        let until = if seeded && pieces > 1 && !rng.one_in(3) {
            Until::Pieces { count: 1 + rng.below(pieces), back: rng.one_in(2) }
        } else {
            Until::Done
        };
        self.run(at, world, until)?;
        Ok(true)
    }

    /// Completes what was pushed last: where operations are carried out at once.
    pub fn complete_last(&mut self, world: &mut World<'_>) -> Exec {
        match self.operations.len() {
            0 => Ok(()),
            n => self.run(n - 1, world, Until::Done),
        }
    }

    /// Carries on all operations of a warp of which this holds.
    pub fn force(
        &mut self,
        world: &mut World<'_>,
        (rank, warp): (usize, u32),
        until: Until,
        wanted: impl Fn(&Operation) -> bool,
    ) -> Exec {
        let mut at = 0;
        while let Some(operation) = self.operations.get(at) {
            let before = self.operations.len();
            if operation.rank == rank && operation.warp == warp && wanted(operation) {
                self.run(at, world, until)?;
            }
            at += usize::from(self.operations.len() == before);
        }
        Ok(())
    }
}

impl World<'_> {
    fn complete(&mut self, place: Place, agents: &[AgentId], landed: Option<u32>, of: (&str, u32)) -> Exec {
        let detector = self.detector.as_deref_mut();
        mbarrier::complete(self.blocks, detector, place, agents, landed, of)
    }
}

/// Whether operations are carried out when they are issued: nothing looks at how they are in flight.
pub fn at_once(world: &World<'_>) -> bool {
    world.env.config.seed == 0 && world.detector.is_none() && !world.env.config.checks.uninitialized
}
