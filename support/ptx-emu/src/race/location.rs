//! Release and acquire through memory: what a strong write publishes, and who has seen it.

use std::sync::Arc;

use super::clock::{Clock, Time};
use super::types::Scope;
use super::view::{Knowledge, View};

/// What a release pattern makes known to those who read the value.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// Scope of the release operation or fence.
    pub scope: Scope,
    /// Whether a release operation on the location published it (not a fence before a strong write).
    pub operation: bool,
    pub sc: ScFence,
    pub knowledge: Knowledge,
}

/// What `fence.sc` has to do with something published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScFence {
    /// Nothing.
    No,
    /// The writer executed it, after what it makes known.
    Own,
    /// Another thread executed it, and then a barrier together with the writer. That is no release pattern of the writer's, but
    /// whoever reads the value and then executes a `fence.sc` of its own comes later in the order of these fences, and so in
    /// causality order (PTX ISA 9.0, sections 8.9.4 and 8.9.5).
    Passed,
}

/// Lanes that strongly read the value written at `write`, by time `time`: what they do later is ordered after that write.
#[derive(Clone, Copy, Debug)]
struct Observer {
    write: Time,
    uid: u32,
    mask: u32,
    time: Time,
}

/// A location (an address with one element size) of strong accesses.
#[derive(Clone, Debug, Default)]
pub(super) struct Location {
    /// Time of the write that `published` belongs to: void once the word has a later write.
    pub time: Time,
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

    /// All that the value makes known to those in scope of everything published.
    pub fn merged(&mut self) -> Arc<Clock> {
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
        if self.published.len() >= 2 * self.pruned.max(4) && !new.knowledge.init_only {
            // An entry that the new owner knows, from the same block and no wider: whoever learns it learns the new one.
            let before = self.published.len();
            self.published.retain(|old| {
                let o = &old.knowledge;
                !(old.scope <= new.scope
                    && (new.sc != ScFence::Passed || old.sc == ScFence::Passed)
                    && o.first == k.first
                    && !old.knowledge.init_only
                    && k.covers_lanes(o.uid, o.mask, o.time))
            });
            // What was dropped is part of the new one.
            let all = self.merged.as_ref().is_some_and(|m| m.0 == before);
            match &mut self.merged {
                Some(m) if all => m.0 = self.published.len(),
                _ => self.merged = None,
            }
            self.pruned = self.published.len();
        }
        self.published.push(new);
    }

    /// A strong read by `view`'s lanes of the value written at `write`, which they did not know.
    pub fn observe(&mut self, write: Time, view: &View<'_>, mask: u32, now: Time) {
        if self.observed(write, view, mask) {
            return;
        }
        if self.observers.len() >= OBSERVERS {
            // Older values are gone from the word, except where unordered writes are still on its list.
            self.observers.retain(|o| o.write == write);
        }
        self.observers.push(Observer { write, uid: view.uid, mask, time: now });
    }

    /// Whether `view`'s lanes know someone who has read the value written at `write`.
    pub fn observed(&self, write: Time, view: &View<'_>, lane: u32) -> bool {
        self.observers.iter().any(|o| o.write == write && view.knows_any(o.uid, o.mask, o.time, lane))
    }
}

/// All of these together.
pub(super) fn merge<'a>(all: impl Iterator<Item = &'a Knowledge>) -> Arc<Clock> {
    let mut clock = Clock::default();
    all.for_each(|k| k.add_to(&mut clock));
    Arc::new(clock)
}
