//! Vector clocks, compressed by the hierarchy of threads.
//!
//! All events of a run have one total order of times. A clock says up to which time its owner has seen each thread, and
//! names threads in bulk: whole launches that have ended, all threads of a block, some lanes of one warp. Warps are numbered once and for all, the warps of a launch (and so of each block) consecutively, so that ranges
//! name launches and blocks.

use std::sync::Arc;

use super::{AgentId, HOST, INIT_ONLY, Scope};

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
    /// The host, up to this time.
    pub host: Time,
    /// Warps of launches that have ended, from their beginning to their end: ranges (start, end), ascending, with gaps between.
    pub ended: Vec<(u32, u32)>,
    /// Whole blocks, by first warp; disjoint.
    pub blocks: Vec<Span>,
    /// Lanes, by warp; the masks of one warp are disjoint.
    pub lanes: Vec<Lanes>,
    /// What those who executed a `fence.sc` in the past of this had seen before it.
    pub sc: ScFences,
}

/// By scope: all that was seen before `fence.sc` operations of that scope. Whoever reads, strongly, what was written after them
/// and then executes a `fence.sc` comes later in the order of these fences, and so in causality order (PTX ISA 9.0, sections 8.9.4
/// and 8.9.5), even where the writer has no release pattern of its own: others fenced, and a barrier followed.
pub(super) type ScFences = Option<Box<[Option<Arc<Clock>>; 4]>>;

fn covers_sc(mine: &ScFences, other: &ScFences) -> bool {
    let Some(other) = other else { return true };
    let none = [const { None }; 4];
    let mine = mine.as_deref().unwrap_or(&none);
    mine.iter().zip(other.iter()).all(|(a, b)| match (a, b) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.covers(b),
    })
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
        let mut time = self.launch_time(warp);
        if time == Time::MAX {
            return time;
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

    /// The latest time up to which all of the launch of `warp` has been seen: `MAX` once it has ended, for the host as for a
    /// launch.
    pub fn launch_time(&self, warp: u32) -> Time {
        if warp == HOST {
            self.host
        } else if self.has_ended(warp, warp + 1) {
            Time::MAX
        } else {
            0
        }
    }

    fn has_ended(&self, start: u32, end: u32) -> bool {
        match self.ended.partition_point(|r| r.0 <= start).checked_sub(1) {
            Some(i) => end <= self.ended[i].1,
            None => false,
        }
    }

    /// Learns all of a launch that has ended.
    pub fn add_ended(&mut self, start: u32, end: u32) {
        // Ranges that touch the new one become one with it.
        let from = self.ended.partition_point(|r| r.1 < start);
        let to = self.ended.partition_point(|r| r.0 <= end);
        let (mut start, mut end) = (start, end);
        if from < to {
            start = start.min(self.ended[from].0);
            end = end.max(self.ended[to - 1].1);
        }
        self.ended.splice(from..to, [(start, end)]);
    }

    /// The latest time up to which all of the block that starts at warp `first` has been seen, as such.
    pub fn block_time(&self, first: u32) -> Time {
        span_time(&self.blocks, first)
    }

    /// Whether a block has been seen up to the span's time.
    pub fn covers_block(&self, s: &Span) -> bool {
        span_time(&self.blocks, s.first) >= s.time || self.launch_time(s.first) >= s.time
    }

    /// Whether the host and all ended launches that `other` has seen have been seen here.
    pub fn covers_ended(&self, other: &Clock) -> bool {
        other.host <= self.host && other.ended.iter().all(|r| self.has_ended(r.0, r.1))
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
        self.covers_ended(other)
            && other.blocks.iter().all(|s| self.covers_block(s))
            && other.lanes.iter().all(|e| self.covers_lanes(e))
            && self.covers_sc(other)
    }

    /// Whether the `fence.sc` operations that `other` has seen have been seen here.
    pub fn covers_sc(&self, other: &Clock) -> bool {
        covers_sc(&self.sc, &other.sc)
    }

    /// A `fence.sc` at a scope, of one who has seen this and, by itself, `own`.
    pub fn fence_sc(&mut self, scope: Scope, mut own: Clock) {
        own.sc = None;
        let fences = self.sc.get_or_insert_default();
        // A wider fence serves for a narrower one.
        fences[..=scope as usize].fill(None);
        fences[scope as usize] = Some(Arc::new(own));
    }

    fn covers_lanes(&self, e: &Lanes) -> bool {
        let mut missing = e.mask;
        for mine in self.lanes_of(e.warp) {
            if mine.time >= e.time {
                missing &= !mine.mask;
            }
        }
        missing == 0 || span_time(&self.blocks, e.warp) >= e.time || self.launch_time(e.warp) >= e.time
    }

    /// Learns what `other` has seen.
    pub fn join(&mut self, other: &Clock) {
        self.host = self.host.max(other.host);
        if self.ended.is_empty() {
            self.ended.extend_from_slice(&other.ended);
        } else if self.ended != other.ended {
            other.ended.iter().for_each(|r| self.add_ended(r.0, r.1));
        }
        join_spans(&mut self.blocks, &other.blocks);
        if self.lanes.is_empty() {
            self.lanes.extend_from_slice(&other.lanes);
        } else if !other.lanes.is_empty() {
            self.join_lanes(&other.lanes);
        }
        if let Some(other) = &other.sc {
            let fences = self.sc.get_or_insert_default();
            for (mine, theirs) in fences.iter_mut().zip(other.iter()) {
                if let Some(theirs) = theirs {
                    *mine = Some(mine.as_ref().map_or_else(|| Arc::clone(theirs), |m| joined(m, theirs)));
                }
            }
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

    /// Whether [`Clock::prune`] would find something about those warps.
    pub fn has_old(&self, first: u32, len: u32, time: Time) -> bool {
        let start = self.lanes.partition_point(|e| e.warp < first);
        self.lanes[start..].iter().take_while(|e| e.warp - first < len).any(|e| e.time <= time)
            || (1..=time).contains(&self.block_time(first))
    }

    /// Forgets entries about the warps `first..first + len` that are no news to one who has seen all of them up to `time`.
    pub fn prune(&mut self, first: u32, len: u32, time: Time) {
        self.lanes.retain(|e| e.time > time || e.warp.wrapping_sub(first) >= len);
        self.blocks.retain(|s| s.time > time || s.first != first);
    }
}

impl Clock {
    /// What is left without those warps, if that is more than nothing.
    pub fn without(&self, first: u32, len: u32) -> Option<Clock> {
        let other = |warp: u32| (warp & !INIT_ONLY).wrapping_sub(first) >= len;
        let of_launch = self.host == 0
            && self.ended.is_empty()
            && !self.lanes.iter().any(|e| other(e.warp))
            && !self.blocks.iter().any(|s| other(s.first));
        (!of_launch).then(|| Clock {
            host: self.host,
            ended: self.ended.clone(),
            blocks: self.blocks.iter().copied().filter(|s| other(s.first)).collect(),
            lanes: self.lanes.iter().copied().filter(|e| other(e.warp)).collect(),
            sc: None,
        })
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
