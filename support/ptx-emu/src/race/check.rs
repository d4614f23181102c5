//! The rules: which of two accesses to a word is ordered before the other, which pairs race, and what to remember.

use super::Launch;
use super::agents::Agents;
use super::clock::Time;
use super::fences::Fences;
use super::shadow::{Attr, Cell, Class, Record, Shape, Side};
use super::types::{Actor, LaunchId, Observe, Party, Proxy, Race, RaceKind, Scope, Space};
use super::view::View;

/// How an earlier access stands to the one being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// Ordered before, as far as this location is concerned.
    Before,
    /// Not ordered, and need not be; of these lanes of the record.
    Open(u32),
    Race(RaceKind),
}

/// The last answers about who knows whom, by the low bits of the number asked about.
#[derive(Clone, Copy, Debug)]
struct Memo {
    warps: [(u32, Time); MEMO],
    fence_warp: u32,
    fence_known: Time,
    /// Slot, writes known, reads known.
    agents: [(u32, Time, Time); MEMO],
}

const MEMO: usize = 8;

/// One check: the accessing side and what is needed to look others up.
pub(super) struct Check<'a> {
    /// One view, or one for each issuer of an agent: the access must be ordered after what all of them are ordered after.
    pub views: &'a [View<'a>],
    /// Lanes of the thread group that the views stand for.
    pub group: u32,
    /// Whether an agent accesses, and through which proxy.
    pub proxy: Proxy,
    pub agents: &'a Agents,
    pub fences: &'a Fences,
    pub launches: &'a [Launch],
    pub issuer_fence: bool,
    pub space: Space,
    /// Number of the first warp of the block that owns the shared memory.
    pub owner: Option<u32>,
    pub agree: Option<&'a dyn Fn(u32, u32) -> bool>,
    /// Whether the access is an atomic read-modify-write.
    pub rmw: bool,
    /// Whether an agent accesses as a whole, not lane by lane.
    pub whole: bool,
    /// The first race found.
    pub found: Option<Race>,
    memo: Memo,
}

/// The launch that a warp's number belongs to.
pub(super) fn launch_of(launches: &[Launch], warp: u32) -> Option<&Launch> {
    let i = launches.partition_point(|l| l.first <= warp).checked_sub(1)?;
    launches.get(i).filter(|l| warp - l.first < l.warps)
}

impl<'a> Check<'a> {
    pub fn new(
        views: &'a [View<'a>],
        group: u32,
        proxy: Proxy,
        space: Space,
        owner: Option<u32>,
        agents: &'a Agents,
        fences: &'a Fences,
        launches: &'a [Launch],
        issuer_fence: bool,
    ) -> Self {
        Check {
            views,
            group,
            proxy,
            agents,
            fences,
            launches,
            issuer_fence,
            space,
            owner,
            agree: None,
            rmw: false,
            whole: false,
            found: None,
            memo: Memo { warps: [(u32::MAX, 0); MEMO], fence_warp: u32::MAX, fence_known: 0, agents: [(u32::MAX, 0, 0); MEMO] },
        }
    }

    /// The time up to which all lanes of a warp are known to every view.
    #[inline]
    pub fn warp_known(&mut self, who: u32) -> Time {
        let slot = who as usize % MEMO;
        if self.memo.warps[slot].0 != who {
            self.memo.warps[slot] = (who, self.views.iter().map(|v| v.warp_known(who)).min().unwrap_or(0));
        }
        self.memo.warps[slot].1
    }

    /// The time up to which an agent's writes or reads are known to every lane of the group.
    #[inline]
    pub fn agent_known(&mut self, slot: u32, writes: bool) -> Time {
        let at = slot as usize % MEMO;
        if self.memo.agents[at].0 != slot {
            let (mut of_writes, mut of_reads) = (0, 0);
            if let Some(a) = self.agents.of_record(slot) {
                let known = |writes| self.views.iter().map(|v| a.known(v, self.group, writes)).min().unwrap_or(0);
                (of_writes, of_reads) = (known(true), known(false));
            }
            self.memo.agents[at] = (slot, of_writes, of_reads);
        }
        if writes { self.memo.agents[at].1 } else { self.memo.agents[at].2 }
    }

    /// The time before which all writes of a warp are fenced towards the asynchronous proxy, as far as every view knows.
    fn fence_known(&mut self, who: u32) -> Time {
        if self.memo.fence_warp != who {
            let known = self.warp_known(who);
            self.memo.fence_warp = who;
            self.memo.fence_known = self.fences.latest(who, u32::MAX, self.space_bit(who), known);
        }
        self.memo.fence_known
    }

    /// Whether an agent's writes need no proxy fence before this access.
    pub fn same_proxy(&self, slot: u32) -> bool {
        self.proxy == Proxy::Generic || self.agents.of_record(slot).is_some_and(|a| a.proxy == Proxy::Async)
    }

    /// Whether a write of a warp at `time` surely needs no proxy fence before this access, or has it.
    pub fn all_fenced(&mut self, who: u32, time: Time) -> bool {
        self.proxy == Proxy::Generic || time < self.fence_known(who)
    }

    /// The kind of `fence.proxy.async` that a warp needs for the memory accessed.
    fn space_bit(&self, who: u32) -> u8 {
        match self.owner {
            None => 1,
            Some(first) => match launch_of(self.launches, who) {
                Some(l) if who.wrapping_sub(first) < l.warps_per_block => 2,
                _ => 4,
            },
        }
    }

    /// The lanes of the earlier access `o` (to one of `bytes`) that `x` does not know; for an agent any bit, or none.
    fn uncovered(&mut self, o: &Record, x: &Record, bytes: u32) -> u32 {
        if o.attr.agent() {
            if x.attr.agent() && x.who == o.who || o.time <= self.agent_known(o.who, o.attr.write()) {
                return 0;
            }
            let Some(agent) = self.agents.of_record(o.who) else {
                // Cannot be: agents stay as long as records name them.
                return 0;
            };
            let record = Record { mask: o.lanes(bytes), ..*o };
            return u32::from(!self.views.iter().all(|v| agent.covered(&record, v, self.own(x))));
        }
        if o.time <= self.warp_known(o.who) {
            return 0;
        }
        if o.who == x.who && !x.attr.agent() && same_mapping(o, x) {
            return 0;
        }
        let lanes = o.lanes(bytes);
        let own = self.own(x);
        let mut missing = 0;
        for v in self.views {
            let mut m = v.uncovered(o.who, lanes, o.time, own);
            if m != 0 && o.attr.class() == Class::MBARRIER_INIT && v.knows_init(o.who, m, o.time) {
                m = 0;
            }
            missing |= m;
        }
        missing
    }

    /// The narrowest scope with both `x`'s thread and the other's.
    fn level(&self, o: &Record) -> Scope {
        let who = if o.attr.agent() {
            match self.agents.of_record(o.who).and_then(|a| a.parts.first()) {
                Some(part) => part.knowledge.uid,
                None => return Scope::Sys,
            }
        } else {
            o.who
        };
        let device = |w| launch_of(self.launches, w).map(|l| l.device);
        self.views.first().map_or(Scope::Sys, |v| v.level(who, device))
    }

    /// Whether an atomic of this class on a word is the next of a row of such atomics, each of which has read the one before.
    pub fn atomic_after_atomic(&self, cell: &Cell, class: Class, scope: Scope) -> bool {
        let same = |c: &Cell| {
            let attr = Attr::new(0xf, Shape::Whole, false, class, true);
            c.meta & !Cell::W_LANE == (attr.0 & 0xfff) << Cell::W_ATTR_SHIFT
        };
        if !(same(cell) && cell.r_time == 0 && cell.w_time != 0) {
            return false;
        }
        let device = |w| launch_of(self.launches, w).map(|l| l.device);
        self.views.first().is_some_and(|v| v.level(cell.w_who, device) <= scope)
    }

    fn proxy_of(&self, o: &Record) -> Proxy {
        if o.attr.agent() { self.agents.of_record(o.who).map_or(Proxy::Async, |a| a.proxy) } else { Proxy::Generic }
    }

    /// Why two strong accesses are not morally strong (PTX ISA 9.0, section 8.7), if so.
    fn not_morally_strong(&self, o: &Record, x: &Record) -> Option<RaceKind> {
        let (Some((so, eo)), Some((sx, ex))) = (o.attr.class().parts(), x.attr.class().parts()) else {
            return Some(RaceKind::Unordered);
        };
        if eo != ex {
            Some(RaceKind::MixedSize)
        } else if so.min(sx) < self.level(o) {
            Some(RaceKind::InsufficientScope)
        } else if self.proxy_of(o) != self.proxy {
            Some(RaceKind::Unordered)
        } else {
            None
        }
    }

    /// How `o` stands to `x`, which overlap in `bytes`. `last`: `o` is the word's last write.
    fn relation(&mut self, o: &Record, x: &Record, bytes: u32, side: &Side, address: u64, last: bool) -> Relation {
        let conflict = o.attr.write() || x.attr.write();
        let strong = o.attr.class().parts().is_some() && x.attr.class().parts().is_some();
        let same_event = o.time == x.time && o.who == x.who && o.attr.agent() == x.attr.agent();
        if same_event && !x.attr.agent() {
            let same_lanes = o.lanes(bytes) & !x.mask == 0;
            if !conflict {
                return if same_lanes { Relation::Before } else { Relation::Open(o.mask) };
            }
            if o.attr.class() == Class::MBARRIER && x.attr.class() == Class::MBARRIER {
                return Relation::Open(o.mask);
            }
            if !strong && !same_lanes {
                let (a, b) = (o.lanes(bytes).trailing_zeros(), x.lanes(bytes).trailing_zeros());
                let agree = self.agree.is_some_and(|f| f(a, b));
                return if agree { Relation::Open(o.mask) } else { Relation::Race(RaceKind::SameInstruction) };
            }
        }
        let missing = self.uncovered(o, x, bytes);
        if missing == 0 {
            return match last && self.proxy_fence_missing(o, x, bytes) {
                true => Relation::Race(RaceKind::MissingProxyFence),
                false => Relation::Before,
            };
        }
        if !conflict {
            return Relation::Open(missing);
        }
        let (co, cx) = (o.attr.class(), x.attr.class());
        if strong {
            match self.not_morally_strong(o, x) {
                // A strong read-modify-write reads the last write and so comes after it.
                None if last && self.rmw => return Relation::Before,
                None => return Relation::Open(missing),
                Some(kind) => {
                    if self.observed(o, x, side, address) {
                        return Relation::Before;
                    }
                    return Relation::Race(kind);
                }
            }
        }
        match (co, cx) {
            (Class::MBARRIER, Class::MBARRIER) => Relation::Open(missing),
            (Class::MBARRIER_INIT, Class::MBARRIER) => Relation::Race(RaceKind::MbarrierInit),
            _ if o.attr.write() && co.parts().is_some() && self.observed(o, x, side, address) => Relation::Before,
            _ => Relation::Race(RaceKind::Unordered),
        }
    }

    /// The lanes whose own past the accessing side knows by program order.
    fn own(&self, x: &Record) -> u32 {
        match self.agents.of_record(x.who) {
            // The issuers, as far as the views say.
            Some(a) if x.attr.agent() && !a.per_lane => u32::MAX,
            _ => x.mask,
        }
    }

    /// Whether every view knows the strong write `o`, or someone who has read it, strongly.
    fn observed(&self, o: &Record, x: &Record, side: &Side, address: u64) -> bool {
        let Some(location) = location_of(o, address).and_then(|at| side.locations.get(&at)) else {
            return false;
        };
        let own = self.own(x);
        let knows = |v: &View<'_>| match self.agents.of_record(o.who).filter(|_| o.attr.agent()) {
            Some(agent) => agent.covered(o, v, own),
            None => v.uncovered(o.who, o.lanes(0xf), o.time, own) == 0,
        };
        self.views.iter().all(|v| location.observed(o, v, own) || knows(v))
    }

    /// Whether `o`, a write through the generic proxy that is ordered before `x`, an access through the asynchronous proxy, has no
    /// proxy fence of its writer behind it that `x` knows.
    fn proxy_fence_missing(&mut self, o: &Record, x: &Record, bytes: u32) -> bool {
        if self.proxy != Proxy::Async || !o.attr.write() || matches!(o.attr.class(), Class::MBARRIER | Class::MBARRIER_INIT) {
            return false;
        }
        let Some(view) = self.views.first() else { return false };
        let issuer = view.uid;
        let same_launch = |w| launch_of(self.launches, w).map(|l| l.id) == launch_of(self.launches, issuer).map(|l| l.id);
        if o.attr.agent() {
            let Some(agent) = self.agents.of_record(o.who) else { return false };
            if agent.proxy == Proxy::Async || !agent.parts.first().is_some_and(|p| same_launch(p.knowledge.uid)) {
                return false;
            }
            // The fence belongs to one that has waited for the copy.
            let own = self.own(x);
            let lanes = o.lanes(bytes);
            return !agent.observations.iter().filter(|n| n.what == Observe::All && n.time >= o.time).any(|n| {
                let bit = self.space_bit(n.uid);
                let mut waiters = if agent.per_lane && n.part.is_some() { n.mask & lanes } else { n.mask };
                while waiters != 0 {
                    let lane = waiters.trailing_zeros();
                    waiters &= waiters - 1;
                    if self.fenced(n.uid, lane, bit, n.time, own) {
                        return true;
                    }
                }
                false
            });
        }
        if !same_launch(o.who) || o.time < self.fence_known(o.who) {
            return false;
        }
        let own = self.own(x);
        if self.issuer_fence
            && self.views.iter().all(|v| {
                let lane = (v.own_mask & own).trailing_zeros().min(31);
                self.fenced(v.uid, lane, self.space_bit(v.uid), o.time, own)
            })
        {
            return false;
        }
        let bit = self.space_bit(o.who);
        let mut lanes = o.lanes(bytes);
        while lanes != 0 {
            let lane = lanes.trailing_zeros();
            lanes &= lanes - 1;
            if !self.fenced(o.who, lane, bit, o.time, own) {
                return true;
            }
        }
        false
    }

    /// Whether all views know of a proxy fence by that lane after `after`.
    fn fenced(&self, warp: u32, lane: u32, bit: u8, after: Time, own: u32) -> bool {
        self.fences.after(warp, lane, bit, after, |t| self.views.iter().all(|v| v.uncovered(warp, 1 << lane, t, own) == 0))
    }

    /// Whether nothing later can race with `o` and not with `x`, which is ordered after `o`.
    fn droppable(&self, o: &Record, x: &Record) -> bool {
        if o.attr.write() && !x.attr.write() || o.attr.bytes() & !x.attr.bytes() != 0 {
            return false;
        }
        let (co, cx) = (o.attr.class(), x.attr.class());
        match cx {
            // Whatever is not ordered after these races with them.
            Class::WEAK | Class::MBARRIER_INIT => true,
            Class::MBARRIER => co == Class::MBARRIER,
            _ => co.parts().is_some() && self.not_morally_strong(o, x).is_none(),
        }
    }

    fn report(&mut self, kind: RaceKind, o: &Record, x: &Record, bytes: u32, address: u64, unit: bool) {
        if self.found.is_some() {
            return;
        }
        let mut bytes = bytes;
        if o.attr.shape() != Shape::Whole {
            // Only the bytes of the lanes at fault.
            let mut at_fault = |b: &u32| match kind {
                RaceKind::MissingProxyFence => self.proxy_fence_missing(o, x, 1 << b),
                RaceKind::SameInstruction => true,
                _ => self.uncovered(o, x, 1 << b) != 0,
            };
            let faulty = (0..4).filter(|b| bytes >> b & 1 != 0).filter(&mut at_fault).fold(0, |m, b| m | 1 << b);
            bytes = if faulty == 0 { bytes } else { faulty };
        }
        let (address, size) = if unit { (address, 1) } else { (address + u64::from(bytes.trailing_zeros()), bytes.count_ones()) };
        self.found = Some(Race {
            kind,
            space: self.space,
            address,
            size,
            first: self.party(o, bytes, Some(x)),
            second: self.party(x, bytes, None),
        });
    }

    /// A side of a race; the earlier one with the later one given.
    fn party(&self, r: &Record, bytes: u32, against: Option<&Record>) -> Party {
        let lanes = r.lanes(bytes);
        let place = |uid: u32| {
            launch_of(self.launches, uid).map(|l| {
                let index = uid - l.first;
                (l.id, u64::from(index / l.warps_per_block), index % l.warps_per_block)
            })
        };
        let actor = if r.attr.agent() {
            let agent = self.agents.of_record(r.who);
            match agent.and_then(|a| a.parts.first().map(|p| (a, p))) {
                Some((a, p)) => {
                    let (launch, block, warp) = place(p.knowledge.uid).unwrap_or((LaunchId(0), 0, 0));
                    let lanes = if a.per_lane { lanes & p.lanes } else { p.lanes };
                    Actor::Agent { kind: a.kind, launch, block, warp, lane: lanes.trailing_zeros() & 31 }
                }
                None => Actor::Host,
            }
        } else {
            match place(r.who) {
                Some((launch, block, warp)) => {
                    // Rather one that is not known to be ordered.
                    let strangers = match against {
                        Some(x) => {
                            let own = self.own(x);
                            self.views.iter().fold(0, |m, v| m | v.uncovered(r.who, lanes, r.time, own))
                        }
                        None => 0,
                    };
                    let lanes = if strangers != 0 { strangers } else { lanes };
                    Actor::Thread { launch, block, warp, lane: lanes.trailing_zeros() & 31 }
                }
                None => Actor::Host,
            }
        };
        Party { actor, site: r.site, writes: r.attr.write(), time: r.time }
    }

    /// [`Check::visit`] for a read or an mbarrier operation by several lanes on the same bytes, too.
    pub fn visit_lanes(&mut self, cell: &mut Cell, side: &mut Side, x: &Record, address: u64) {
        if x.mask & (x.mask - 1) == 0 || x.attr.shape() != Shape::Whole || x.attr.agent() || self.alike_for_lanes(cell, side, x) {
            self.visit(cell, side, x, address, false);
            return;
        }
        let mut lanes = x.mask;
        while lanes != 0 {
            let lane = lanes & lanes.wrapping_neg();
            lanes &= lanes - 1;
            self.visit(cell, side, &Record { mask: lane, ..*x }, address, false);
        }
    }

    /// Whether every lane of the group stands alike to all that `x` may conflict with.
    fn alike_for_lanes(&mut self, cell: &Cell, side: &Side, x: &Record) -> bool {
        let (class, write) = (x.attr.class(), x.attr.write());
        let mut alike = |o: &Record| {
            !(write || o.attr.write())
                || class == Class::MBARRIER && o.attr.class() == class
                || o.time <= if o.attr.agent() { self.agent_known(o.who, o.attr.write()) } else { self.warp_known(o.who) }
        };
        if cell.meta & Cell::SPLIT != 0 {
            return false;
        }
        let list = if cell.meta & Cell::SPILL != 0 { side.lists.get(cell.r_site).records.as_slice() } else { &[] };
        cell.write().is_none_or(|o| alike(&o)) && cell.read().is_none_or(|o| alike(&o)) && list.iter().all(alike)
    }

    /// Checks the access `x` to a word against what the word remembers, and remembers it. `address` is the word's (with `unit`, that
    /// of the one byte the cell stands for).
    pub fn visit(&mut self, cell: &mut Cell, side: &mut Side, x: &Record, address: u64, unit: bool) {
        if cell.meta & Cell::SPLIT == 0 && !unit && self.must_split(cell, side, x) {
            split(cell, side);
        }
        if cell.meta & Cell::SPLIT != 0 {
            self.visit_split(cell, side, x, address);
            return;
        }
        let write = cell.write();
        let mut old_write = None;
        if let Some(w) = write {
            let bytes = w.attr.bytes() & x.attr.bytes();
            let mut kept = true;
            if bytes != 0 {
                match self.relation(&w, x, bytes, side, address, true) {
                    Relation::Before => kept = !self.droppable(&w, x),
                    Relation::Race(kind) => {
                        self.report(kind, &w, x, bytes, address, unit);
                        kept = false;
                    }
                    Relation::Open(_) => {
                        if !x.attr.write() && x.attr.class().parts().is_some() && w.attr.class().parts().is_some() {
                            self.observe(&w, x, side, address);
                        }
                    }
                }
            }
            if kept {
                old_write = Some(w);
            }
        }
        if cell.meta & Cell::SPILL != 0 {
            self.visit_list(cell, side, x, address, unit);
        }
        if let Some(mut r) = cell.read() {
            r.site = side.read_site(cell);
            if !x.attr.write() && (r.who, r.time, r.attr) == (x.who, x.time, x.attr) && r.attr.shape() == Shape::Whole {
                cell.r_mask |= x.mask;
                return;
            }
            let kept = self.keeps(&mut r, x, side, address, unit);
            if x.attr.write() {
                if kept {
                    cell.r_mask = r.mask;
                } else {
                    cell.clear_read();
                }
            } else if kept {
                side.push(cell, r);
            }
        }
        if x.attr.write() {
            if let Some(w) = old_write {
                side.push(cell, w);
            }
            cell.set_write(x);
            let others = x.mask & (x.mask - 1);
            if others != 0 && x.attr.shape() == Shape::Whole {
                // The word names one lane only.
                side.push(cell, Record { mask: others, ..*x });
            }
        } else {
            cell.set_read(x);
            side.set_read_site(cell, x.site);
        }
        side.trim(cell);
    }

    /// Checks `x` against a record that is not the last write; whether to keep the record, narrowed to the lanes that `x` does not
    /// know.
    fn keeps(&mut self, o: &mut Record, x: &Record, side: &Side, address: u64, unit: bool) -> bool {
        let bytes = o.attr.bytes() & x.attr.bytes();
        if bytes == 0 {
            return true;
        }
        match self.relation(o, x, bytes, side, address, false) {
            Relation::Before => !self.droppable(o, x),
            Relation::Race(kind) => {
                self.report(kind, o, x, bytes, address, unit);
                false
            }
            Relation::Open(lanes) => {
                if o.attr.shape() == Shape::Whole && !o.attr.agent() && o.mask & lanes != 0 && self.droppable(o, x) {
                    o.mask &= lanes;
                }
                true
            }
        }
    }

    fn visit_list(&mut self, cell: &Cell, side: &mut Side, x: &Record, address: u64, unit: bool) {
        let list = side.lists.get_mut(cell.r_site);
        // A read of what only others' reads are listed for concerns none of them, unless it is ordered after all.
        if !x.attr.write() && list.writes == 0 {
            let ordered = cell.r_time != 0 && !cell.read_is_agent() && cell.r_time <= self.warp_known(cell.r_who);
            if !ordered {
                return;
            }
        }
        let mut records = std::mem::take(&mut list.records);
        records.retain_mut(|o| self.keeps(o, x, side, address, unit));
        let list = side.lists.get_mut(cell.r_site);
        list.writes = records.iter().filter(|r| r.attr.write()).count() as u32;
        list.records = records;
    }

    /// The reader `x` comes after the strong write `w` from now on.
    fn observe(&mut self, w: &Record, x: &Record, side: &mut Side, address: u64) {
        if let (Some(at), Some(view)) = (location_of(w, address), self.views.first()) {
            side.locations.entry(at).or_default().observe(w, view, x.mask, x.time);
        }
    }

    /// Whether the bytes of the word get different histories.
    fn must_split(&mut self, cell: &Cell, side: &Side, x: &Record) -> bool {
        let bytes = x.attr.bytes();
        if x.attr.write() && bytes != 0xf && cell.write().is_some_and(|w| w.attr.bytes() & !bytes != 0) {
            return true;
        }
        if x.attr.shape() == Shape::Whole {
            return false;
        }
        // With a lane for each byte, either no lane matters or all bytes had these lanes before.
        let mut fits = |o: &Record| {
            o.attr.bytes() & bytes == 0
                || if o.attr.agent() {
                    o.time <= self.agent_known(o.who, o.attr.write())
                } else {
                    o.time <= self.warp_known(o.who) || o.who == x.who && same_mapping(o, x)
                }
        };
        let list = if cell.meta & Cell::SPILL != 0 { side.lists.get(cell.r_site).records.as_slice() } else { &[] };
        !(cell.write().is_none_or(|o| fits(&o)) && cell.read().is_none_or(|o| fits(&o)) && list.iter().all(fits))
    }

    fn visit_split(&mut self, cell: &mut Cell, side: &mut Side, x: &Record, address: u64) {
        let index = cell.w_who;
        let mut four = *side.splits.get(index);
        for (b, byte) in (0..).zip(&mut four) {
            if x.attr.bytes() >> b & 1 != 0 {
                self.visit(byte, side, &x.byte(b), address + u64::from(b), true);
            }
        }
        let alike = |c: &Cell| c.w_time == x.time && c.r_time == 0 && c.meta & (Cell::SPILL | Cell::PUBLISHED) == 0;
        if x.attr.write() && x.attr.bytes() == 0xf && four.iter().all(alike) {
            side.splits.give(index);
            *cell = Cell::EMPTY;
            cell.set_write(x);
        } else {
            *side.splits.get_mut(index) = four;
        }
    }
}

/// Whether both accesses, of one warp, gave each byte they share to the same single lane.
fn same_mapping(o: &Record, x: &Record) -> bool {
    let per_lane = match (o.attr.shape(), x.attr.shape()) {
        (Shape::Whole, Shape::Whole) => return o.mask & !x.mask == 0,
        (Shape::Halves, Shape::Halves) => 2,
        (Shape::Bytes, Shape::Bytes) => 1,
        _ => return false,
    };
    let base = |r: &Record| r.mask.trailing_zeros() as i32 - (r.attr.bytes().trailing_zeros() / per_lane) as i32;
    base(o) == base(x)
}

/// Address of the location that a strong record in the word (or byte) at `address` belongs to.
fn location_of(r: &Record, address: u64) -> Option<u64> {
    let (_, element) = r.attr.class().parts()?;
    let first = if address & 3 == 0 { address + u64::from(r.attr.bytes().trailing_zeros() & 3) } else { address };
    Some(first & !((1 << element) - 1))
}

/// Gives each byte of a word a history of its own.
fn split(cell: &mut Cell, side: &mut Side) {
    let mut four = [Cell::EMPTY; 4];
    let write = cell.write();
    let read = cell.read().map(|r| Record { site: side.read_site(cell), ..r });
    let records = if cell.meta & Cell::SPILL != 0 { side.lists.get(cell.r_site).records.clone() } else { Vec::new() };
    for (b, byte) in (0..).zip(&mut four) {
        let has = |r: &Record| r.attr.bytes() >> b & 1 != 0;
        if let Some(w) = write.filter(has) {
            byte.set_write(&w.byte(b));
            byte.meta |= cell.meta & Cell::PUBLISHED;
        }
        if let Some(r) = read.filter(has) {
            byte.set_read(&r.byte(b));
            byte.r_site = r.site;
        }
        for r in records.iter().copied().filter(has) {
            side.push(byte, r.byte(b));
        }
    }
    side.release(cell);
    let index = side.splits.take(|| [Cell::EMPTY; 4]);
    *side.splits.get_mut(index) = four;
    *cell = Cell { w_who: index, meta: Cell::SPLIT, ..Cell::EMPTY };
}
