//! Vector clocks, compressed by the hierarchy of threads.
//!
//! All events of a run have one total order of times. A clock says up to which time its owner has seen each thread, and
//! names threads in bulk: everything (the floor), all threads of a range of warps (a launch or a block), some lanes of one
//! warp. Warps are numbered once and for all, the warps of a launch (and so of each block) consecutively, so that ranges
//! name launches and blocks.

use std::sync::Arc;

use super::AgentId;

/// A time on the detector's clock. 0 is before every event.
pub(super) type Time = u32;

/// All lanes of the warps `first..first + len`, up to `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub first: u32,
    pub len: u32,
    pub time: Time,
}

/// Some lanes of one warp, up to `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lanes {
    pub warp: u32,
    pub mask: u32,
    pub time: Time,
}

/// What some thread has seen of all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clock {
    /// Everything up to this time.
    pub floor: Time,
    /// Whole launches, by first warp; disjoint.
    pub launches: Vec<Span>,
    /// Whole blocks, by first warp; disjoint.
    pub blocks: Vec<Span>,
    /// Lanes, by warp; the masks of one warp are disjoint.
    pub lanes: Vec<Lanes>,
}

fn span_time(spans: &[Span], warp: u32) -> Time {
    let after = spans.partition_point(|s| s.first <= warp);
    match after.checked_sub(1).and_then(|i| spans.get(i)) {
        Some(s) if warp - s.first < s.len => s.time,
        _ => 0,
    }
}

fn add_span(spans: &mut Vec<Span>, new: Span) {
    match spans.binary_search_by_key(&new.first, |s| s.first) {
        Ok(i) => spans[i].time = spans[i].time.max(new.time),
        Err(i) => spans.insert(i, new),
    }
}

fn join_spans(into: &mut Vec<Span>, from: &[Span]) {
    if into.is_empty() {
        into.extend_from_slice(from);
    } else {
        for &s in from {
            add_span(into, s);
        }
    }
}

impl Clock {
    /// The latest time up to which every lane of `warp` has been seen.
    pub fn warp_time(&self, warp: u32) -> Time {
        let mut time = self.floor;
        if !self.launches.is_empty() {
            time = time.max(span_time(&self.launches, warp));
        }
        if !self.blocks.is_empty() {
            time = time.max(span_time(&self.blocks, warp));
        }
        let (mut union, mut oldest) = (0u32, Time::MAX);
        for entry in self.lanes_of(warp) {
            union |= entry.mask;
            oldest = oldest.min(entry.time);
        }
        if union == u32::MAX { time.max(oldest) } else { time }
    }

    /// The latest time up to which `lane` of `warp` has been seen.
    pub fn lane_time(&self, warp: u32, lane: u32) -> Time {
        let mut time = self.floor;
        if !self.launches.is_empty() {
            time = time.max(span_time(&self.launches, warp));
        }
        if !self.blocks.is_empty() {
            time = time.max(span_time(&self.blocks, warp));
        }
        match self.lanes_of(warp).iter().find(|e| e.mask >> lane & 1 != 0) {
            Some(e) => time.max(e.time),
            None => time,
        }
    }

    /// The entries of one warp.
    pub fn lanes_of(&self, warp: u32) -> &[Lanes] {
        if self.lanes.is_empty() {
            return &[];
        }
        let start = self.lanes.partition_point(|e| e.warp < warp);
        let tail = &self.lanes[start..];
        let len = tail.iter().take_while(|e| e.warp == warp).count();
        &tail[..len]
    }

    pub fn add_launch(&mut self, span: Span) {
        add_span(&mut self.launches, span);
    }

    pub fn add_block(&mut self, span: Span) {
        add_span(&mut self.blocks, span);
    }

    /// Adds lanes of a warp, up to a time.
    pub fn add_lanes(&mut self, mut new: Lanes) {
        if new.mask == 0 || new.time == 0 {
            return;
        }
        let start = self.lanes.partition_point(|e| e.warp < new.warp);
        // Masks of one warp are disjoint: an entry of the same lanes is the only one concerned.
        if let Some(e) = self.lanes.get_mut(start).filter(|e| e.warp == new.warp && e.mask == new.mask) {
            e.time = e.time.max(new.time);
            return;
        }
        let mut end = start;
        let mut same_time = None;
        let mut emptied = false;
        while let Some(e) = self.lanes.get_mut(end).filter(|e| e.warp == new.warp) {
            if e.time >= new.time {
                new.mask &= !e.mask;
            } else {
                e.mask &= !new.mask;
                emptied |= e.mask == 0;
            }
            if e.time == new.time {
                same_time = Some(end);
            }
            end += 1;
        }
        if new.mask != 0 {
            match same_time {
                Some(i) => self.lanes[i].mask |= new.mask,
                None => self.lanes.insert(end, new),
            }
        }
        if emptied {
            self.lanes.retain(|e| e.mask != 0);
        }
    }

    /// Whether everything that `other` has seen has been seen here.
    pub fn covers(&self, other: &Clock) -> bool {
        let spans = |theirs: &[Span], ours: &[Span]| {
            theirs.iter().all(|s| s.time <= self.floor || span_time(ours, s.first) >= s.time || self.covers_span(s))
        };
        other.floor <= self.floor
            && spans(&other.launches, &self.launches)
            && spans(&other.blocks, &self.blocks)
            && other.lanes.iter().all(|e| self.covers_lanes(e))
    }

    fn covers_span(&self, s: &Span) -> bool {
        span_time(&self.launches, s.first) >= s.time
    }

    fn covers_lanes(&self, e: &Lanes) -> bool {
        if e.time <= self.floor {
            return true;
        }
        let mut missing = e.mask;
        for mine in self.lanes_of(e.warp) {
            if mine.time >= e.time {
                missing &= !mine.mask;
            }
        }
        missing == 0 || span_time(&self.blocks, e.warp) >= e.time || span_time(&self.launches, e.warp) >= e.time
    }

    /// Learns what `other` has seen.
    pub fn join(&mut self, other: &Clock) {
        self.floor = self.floor.max(other.floor);
        join_spans(&mut self.launches, &other.launches);
        join_spans(&mut self.blocks, &other.blocks);
        if self.lanes.is_empty() {
            self.lanes.extend_from_slice(&other.lanes);
        } else if !other.lanes.is_empty() {
            self.join_lanes(&other.lanes);
        }
    }

    fn join_lanes(&mut self, other: &[Lanes]) {
        // The usual case is that both know the same lanes of the same warps.
        if self.lanes.len() == other.len() && self.lanes.iter().zip(other).all(|(a, b)| a.warp == b.warp && a.mask == b.mask) {
            for (a, b) in self.lanes.iter_mut().zip(other) {
                a.time = a.time.max(b.time);
            }
            return;
        }
        let merged = Vec::with_capacity(self.lanes.len() + other.len());
        let mine = std::mem::replace(&mut self.lanes, merged);
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (mine.get(i), other.get(j)) {
            if a.warp < b.warp {
                self.lanes.push(*a);
                i += 1;
            } else if b.warp < a.warp {
                self.lanes.push(*b);
                j += 1;
            } else {
                let warp = a.warp;
                let start = self.lanes.len();
                while let Some(a) = mine.get(i).filter(|a| a.warp == warp) {
                    self.lanes.push(*a);
                    i += 1;
                }
                let mut tail = Clock { lanes: self.lanes.split_off(start), ..Clock::default() };
                while let Some(b) = other.get(j).filter(|b| b.warp == warp) {
                    tail.add_lanes(*b);
                    j += 1;
                }
                self.lanes.append(&mut tail.lanes);
            }
        }
        self.lanes.extend_from_slice(&mine[i..]);
        self.lanes.extend_from_slice(&other[j..]);
    }

    /// Forgets entries about the warps `first..first + len` that are no news to one who has seen all of them up to `time`,
    /// and what the floor says already.
    pub fn prune(&mut self, first: u32, len: u32, time: Time) {
        let floor = self.floor;
        self.lanes.retain(|e| e.time > floor && (e.time > time || e.warp.wrapping_sub(first) >= len));
        self.blocks.retain(|s| s.time > floor && (s.time > time || s.first != first));
    }
}

/// `a` joined with `b`; keeps the pointer when nothing changes.
pub(super) fn joined(a: &Arc<Clock>, b: &Arc<Clock>) -> Arc<Clock> {
    if Arc::ptr_eq(a, b) || a.covers(b) {
        return Arc::clone(a);
    }
    if b.covers(a) {
        return Arc::clone(b);
    }
    let mut clock = Clock::clone(a);
    clock.join(b);
    Arc::new(clock)
}

/// What a synchronisation object has been given by those who released into it: one phase of a barrier, a lock, a flag.
#[derive(Clone, Debug, Default)]
pub struct SyncVar {
    pub(super) clock: Option<Arc<Clock>>,
    /// Asynchronous operations whose completion an acquirer observes.
    pub(super) agents: Vec<AgentId>,
    /// The last acquirer's clock before and after, so that warps that knew the same go on sharing one clock.
    pub(super) memo: Option<Memo>,
}

#[derive(Clone, Debug)]
pub(super) struct Memo {
    pub block: u32,
    pub block_time: Time,
    pub before: Arc<Clock>,
    pub after: Arc<Clock>,
}

impl SyncVar {
    /// Nothing released yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything released so far (a new phase begins).
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
