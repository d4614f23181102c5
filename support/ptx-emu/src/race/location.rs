//! Release and acquire through memory: what a strong write publishes, and who has seen it.

use std::collections::HashMap;
use std::sync::Arc;

use super::clock::{Clock, Time};
use super::shadow::Record;
use super::types::Scope;
use super::view::{Knowledge, View};

/// What a release pattern makes known to those who read the value.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// Scope of the release operation or fence.
    pub scope: Scope,
    /// Whether a release operation on the location published it (not a fence before a strong write).
    pub operation: bool,
    /// Whether only a `fence.sc` of the reader makes it known (see [`Clock::sc`]): the knowledge is a clock alone.
    pub sc_only: bool,
    pub knowledge: Knowledge,
}

/// Lanes that strongly read the value written at `write` by the lanes `writers`, by time `time`: what they do later is ordered
/// after that write.
#[derive(Clone, Copy, Debug)]
struct Observer {
    write: Time,
    writers: u32,
    uid: u32,
    mask: u32,
    time: Time,
}

/// A location (an address with one element size) of strong accesses.
#[derive(Clone, Debug, Default)]
pub(super) struct Location {
    /// Time of the write that `published` belongs to: void once the word has a later write.
    pub time: Time,
    /// Tells each such write from all others, the other lanes' of one instruction included.
    pub stamp: u64,
    /// That write's warp, scope and size.
    pub uid: u32,
    pub scope: Option<Scope>,
    pub element: u32,
    pub published: Vec<Published>,
    /// Length of `published` when it was last pruned.
    pruned: usize,
    /// All that the first so many of `published` make known.
    merged: Option<(usize, Arc<Clock>)>,
    /// The latest release operation of each thread.
    operations: Vec<Published>,
    observers: Vec<Observer>,
}

/// Threads whose latest release operation on a location is kept.
const OPERATIONS: usize = 64;
/// Observers kept of one location before those of overwritten values are dropped.
const OBSERVERS: usize = 64;

impl Location {
    /// A new write goes on with the release sequence of the value that it read, or begins without.
    pub fn inherit(&mut self, sequence: Option<Vec<Published>>) {
        match sequence {
            Some(published) => self.published = published,
            None => {
                self.published.clear();
                self.pruned = 0;
                self.merged = None;
            }
        }
    }

    /// A thread's latest release operation on the location: a later strong write of its own publishes it again (PTX ISA 9.0,
    /// section 8.8).
    pub fn operation_of(&self, uid: u32, lane: u32) -> Option<Published> {
        self.operations.iter().find(|p| p.knowledge.uid == uid && p.knowledge.mask >> lane & 1 != 0).cloned()
    }

    /// What those of `published` make known together, by their indices, ascending.
    pub fn clock_of(&mut self, which: impl ExactSizeIterator<Item = usize>) -> Arc<Clock> {
        if which.len() != self.published.len() {
            let mut clock = Clock::default();
            which.filter_map(|i| self.published.get(i)).for_each(|p| p.knowledge.add_to(&mut clock));
            return Arc::new(clock);
        }
        let (from, mut clock) = self.merged.take().unwrap_or_default();
        if let Some(new) = self.published.get(from..).filter(|n| !n.is_empty()) {
            let into = Arc::make_mut(&mut clock);
            new.iter().for_each(|p| p.knowledge.add_to(into));
        }
        self.merged = Some((self.published.len(), Arc::clone(&clock)));
        clock
    }

    /// Adds what a release by `knowledge`'s owner makes known.
    pub fn publish(&mut self, new: Published) {
        let k = &new.knowledge;
        let again = |p: &Published| (p.knowledge.uid, p.knowledge.mask, p.knowledge.time) == (k.uid, k.mask, k.time);
        if new.operation {
            if self.published.iter().rev().any(again) {
                return;
            }
            self.operations.retain(|p| p.knowledge.uid != k.uid || p.knowledge.mask != k.mask);
            if self.operations.len() >= OPERATIONS {
                self.operations.remove(0);
            }
            self.operations.push(new.clone());
        }
        if self.published.len() >= 2 * self.pruned.max(4) {
            self.prune();
        }
        self.published.push(new);
    }

    /// Drops what a later entry of the same block, no narrower, includes: whoever learns the one learns the other.
    fn prune(&mut self) {
        let before = self.published.len();
        let mut kept: Vec<Published> = Vec::new();
        let mut of_block: HashMap<u32, Vec<usize>> = HashMap::new();
        for old in self.published.drain(..).rev() {
            let o = &old.knowledge;
            let later = of_block.entry(o.first).or_default();
            let included = |&i: &usize| {
                let new: &Published = &kept[i];
                let known = || match old.sc_only {
                    true => new.knowledge.view(&[], 0).covers(&o.clock),
                    false => new.knowledge.covers_lanes(o.uid, o.mask, o.time),
                };
                let sort = old.sc_only || !new.sc_only && !o.init_only;
                old.scope <= new.scope && sort && !new.knowledge.init_only && known()
            };
            if !later.iter().any(included) {
                later.push(kept.len());
                kept.push(old);
            }
        }
        kept.reverse();
        self.published = kept;
        self.pruned = self.published.len();
        self.merged = self.merged.take().filter(|m| m.0 == before).map(|m| (self.published.len(), m.1));
    }

    /// A strong read by `view`'s lanes of the value that `write` wrote, which they did not know.
    pub fn observe(&mut self, write: &Record, view: &View<'_>, mask: u32, now: Time) {
        if self.observed(write, view, mask) {
            return;
        }
        if self.observers.len() >= OBSERVERS {
            // Older values are gone from the word, except where unordered writes are still on its list.
            self.observers.retain(|o| o.write == write.time);
        }
        if let Some(o) = self.observers.last_mut()
            && (o.write, o.writers, o.uid, o.time) == (write.time, write.mask, view.uid, now)
        {
            o.mask |= mask;
            return;
        }
        self.observers.push(Observer { write: write.time, writers: write.mask, uid: view.uid, mask, time: now });
    }

    /// Whether `view`'s lanes know someone who has read the value that `write` wrote.
    pub fn observed(&self, write: &Record, view: &View<'_>, lane: u32) -> bool {
        self.observers
            .iter()
            .any(|o| o.write == write.time && write.mask & !o.writers == 0 && view.knows_any(o.uid, o.mask, o.time, lane))
    }
}
