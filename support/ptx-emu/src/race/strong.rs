//! Strong accesses: release and acquire through memory.

use std::sync::Arc;

use super::check::{Check, launch_of};
use super::clock::Time;
use super::location::Published;
use super::shadow::{Attr, Cell, Class, Record, Shadow, Shape};
use super::sync::learnt;
use super::view::Knowledge;
use super::warp::Pending;
use super::{Access, AccessKind, Detector, Outcome, Proxy, Race, Report, Scope, Warp, misuse};

impl Detector {
    /// A strong access, lane by lane in order: each lane sees what lower lanes of the same instruction wrote.
    pub(super) fn access_strong(
        &mut self,
        warp: Warp,
        b: usize,
        owner: Option<(usize, u32)>,
        access: &Access<'_>,
        now: Time,
    ) -> Outcome {
        if !access.element.is_power_of_two() || access.element > 16 || !access.size.is_multiple_of(access.element) {
            return misuse("a strong access of elements of a size other than 1, 2, 4, 8 or 16");
        }
        let mut lanes = access.mask;
        let mut outcome = Ok(());
        if !access.sem.acquires() && !access.sem.releases() && access.element == 4 && access.size == 4 {
            let (done, found) = self.access_relaxed(warp, b, owner, access, now)?;
            lanes &= !done;
            if let Some(race) = found {
                outcome = Err(Box::new(Report::Race(race)));
            }
        }
        while lanes != 0 {
            let lane = lanes.trailing_zeros();
            lanes &= lanes - 1;
            let address = access.addresses[(lane & 31) as usize];
            if address & u64::from(access.element - 1) != 0 {
                return misuse("a strong access at a misaligned address");
            }
            for e in 0..access.size / access.element {
                let one = self.access_element(warp, b, owner, access, lane, address + u64::from(e * access.element), now);
                outcome = outcome.and(one);
            }
        }
        outcome
    }

    /// Relaxed accesses of words that have nothing to do with release and acquire; which lanes made theirs. The others are
    /// above these.
    fn access_relaxed(
        &mut self,
        warp: Warp,
        b: usize,
        owner: Option<(usize, u32)>,
        access: &Access<'_>,
        now: Time,
    ) -> Outcome<(u32, Option<Race>)> {
        let Detector { blocks, shared, global, pool, agents, fences, launches, options, .. } = self;
        let block = &blocks[b];
        let Some(state) = block.warps.get(warp.index as usize) else {
            return misuse("no such warp in its block");
        };
        // Lanes act in the order of their numbers, so that all must know the same.
        let [group] = state.groups.as_slice() else { return Ok((0, None)) };
        if !state.fences.is_empty() || group.clock.sc.is_some() {
            return Ok((0, None));
        }
        let shadow = match owner {
            Some((slot, _)) => &mut shared[slot],
            None => &mut **global,
        };
        let views = [block.view(state, group)];
        let mut check = Check::new(
            &views,
            access.mask,
            Proxy::Generic,
            access.space,
            owner.map(|o| o.1),
            agents,
            fences,
            launches,
            options.issuer_proxy_fence,
        );
        check.rmw = access.kind == AccessKind::ReadWrite;
        let class = Class::strong(access.sem.scope, 4);
        let attr = Attr::new(0xf, Shape::Whole, false, class, access.kind.writes());
        let mut done = 0;
        let mut lanes = access.mask & group.mask;
        while lanes != 0 {
            let lane = lanes.trailing_zeros();
            lanes &= lanes - 1;
            let address = access.addresses[(lane & 31) as usize];
            let (page, side) = shadow.page(Shadow::page_of(address), pool);
            let cell = &mut page[Shadow::word_of(address)];
            if address & 3 != 0
                || cell.meta & (Cell::PUBLISHED | Cell::SPLIT) != 0
                || !side.locations.is_empty() && side.locations.contains_key(&address)
            {
                break;
            }
            done |= 1 << lane;
            let x = Record { who: state.uid, time: now, site: access.site, mask: 1 << lane, attr };
            if !(check.rmw && check.atomic_after_atomic(cell, class, access.sem.scope)) {
                check.visit(cell, side, &x, address, false);
            } else {
                cell.set_write(&x);
            }
        }
        Ok((done, check.found))
    }

    fn access_element(
        &mut self,
        warp: Warp,
        b: usize,
        owner: Option<(usize, u32)>,
        access: &Access<'_>,
        lane: u32,
        address: u64,
        now: Time,
    ) -> Outcome {
        let sem = access.sem;
        if access.kind.reads() {
            self.read_published(warp, b, owner, access, lane, address, now)?;
        }
        let Detector { blocks, shared, global, pool, agents, fences, launches, options, .. } = self;
        let block = &blocks[b];
        let Some(state) = block.warps.get(warp.index as usize) else {
            return misuse("no such warp in its block");
        };
        let Some(group) = state.groups.iter().find(|g| g.mask >> lane & 1 != 0) else {
            return misuse("no such lane in its warp");
        };
        let shadow = match owner {
            Some((slot, _)) => &mut shared[slot],
            None => &mut **global,
        };
        let views = [block.view(state, group)];
        let mut check = Check::new(
            &views,
            1 << lane,
            Proxy::Generic,
            access.space,
            owner.map(|o| o.1),
            agents,
            fences,
            launches,
            options.issuer_proxy_fence,
        );
        check.rmw = access.kind == AccessKind::ReadWrite;
        let class = Class::strong(sem.scope, access.element);
        let attr = Attr::new(0xf, Shape::Whole, false, class, access.kind.writes());
        let x = Record { who: state.uid, time: now, site: access.site, mask: 1 << lane, attr };
        // What the write publishes beside its own release: what the value read had published, and the thread's earlier release
        // operation on the location.
        let mut sequence = None;
        let mut earlier = None;
        if access.kind.writes() {
            let (page, side) = shadow.page(Shadow::page_of(address), pool);
            let (time, published) = last_write(&page[Shadow::word_of(address)], side, address);
            if let Some(location) = side.locations.get_mut(&address) {
                let device = |w| launch_of(launches, w).map(|l| l.device);
                if published && access.kind == AccessKind::ReadWrite {
                    let linked = location.time == time
                        && location.element == access.element
                        && location.scope.is_some_and(|s| s.min(sem.scope) >= views[0].level(location.uid, device));
                    sequence = linked.then(|| std::mem::take(&mut location.published));
                }
                if !sem.releases() {
                    earlier = location.operation_of(state.uid, lane);
                }
            }
        }
        super::access::pieces(address, u64::from(access.element), |at, bytes| {
            let (page, side) = shadow.page(Shadow::page_of(at), pool);
            let x = Record { attr: x.attr.with_bytes(bytes), ..x };
            check.visit(&mut page[Shadow::word_of(at)], side, &x, at, false);
        });
        let found = check.found;
        if access.kind.writes() {
            let releases = sem.releases();
            let fenced = state
                .fences
                .iter()
                .filter(|(mask, p)| mask >> lane & 1 != 0 && !(releases && p.scope <= sem.scope))
                .map(|(_, p)| Published { knowledge: Knowledge { mask: 1 << lane, ..p.knowledge.clone() }, ..p.clone() });
            let own = releases.then(|| Published {
                scope: sem.scope,
                operation: true,
                sc_only: false,
                knowledge: Knowledge {
                    clock: Arc::clone(&group.clock),
                    first: block.first,
                    warps: block.warp_count(),
                    block_time: group.block_time,
                    uid: state.uid,
                    warp_time: group.warp_time,
                    mask: 1 << lane,
                    time: now,
                    init_only: false,
                },
            });
            let passed_on = group.clock.sc.iter().flat_map(|f| f.iter().zip(SCOPES)).filter_map(|(clock, scope)| {
                let clock = Arc::clone(clock.as_ref()?);
                let knowledge = Knowledge { uid: state.uid, first: block.first, ..Knowledge::of_clock(clock) };
                Some(Published { scope, operation: false, sc_only: true, knowledge })
            });
            let mut fresh = passed_on.chain(fenced).chain(own).chain(earlier).peekable();
            if fresh.peek().is_some() || sequence.is_some() {
                let (page, side) = shadow.page(Shadow::page_of(address), pool);
                let location = side.locations.entry(address).or_default();
                location.time = now;
                location.stamp = u64::from(now) << 5 | u64::from(lane);
                location.uid = state.uid;
                location.scope = Some(sem.scope);
                location.element = access.element;
                location.inherit(sequence);
                for p in fresh {
                    location.publish(p);
                }
                set_published(&mut page[Shadow::word_of(address)], side, address);
            }
        }
        match found {
            None => Ok(()),
            Some(race) => Err(Box::new(Report::Race(race))),
        }
    }

    /// A lane reads what the last write published: it learns it now, if it acquires, or else with its next fence.
    fn read_published(
        &mut self,
        warp: Warp,
        b: usize,
        owner: Option<(usize, u32)>,
        access: &Access<'_>,
        lane: u32,
        address: u64,
        now: Time,
    ) -> Outcome {
        let sem = access.sem;
        if sem.acquires() {
            // A strong read of the location followed by an acquire operation on it is an acquire pattern, too.
            self.acquire_pending(warp, 1 << lane, sem.scope, false, Some(place(owner, address)), now)?;
        }
        let Detector { blocks, shared, global, pool, launches, .. } = self;
        let shadow = match owner {
            Some((slot, _)) => &mut shared[slot],
            None => &mut **global,
        };
        let (page, side) = shadow.page(Shadow::page_of(address), pool);
        let (time, published) = last_write(&page[Shadow::word_of(address)], side, address);
        if !published {
            return Ok(());
        }
        let Some(location) = side.locations.get_mut(&address) else { return Ok(()) };
        let block = &mut blocks[b];
        let (first, count, device) = (block.first, block.warp_count(), block.device);
        let cluster = Arc::clone(&block.cluster);
        let Some(state) = block.warps.get_mut(warp.index as usize) else {
            return misuse("no such warp in its block");
        };
        let uid = state.uid;
        let Some(group) = state.groups.iter().find(|g| g.mask >> lane & 1 != 0) else {
            return misuse("no such lane in its warp");
        };
        let device_of = |w| launch_of(launches, w).map(|l| l.device);
        let view = group.view(first, count, uid, &cluster, device);
        let linked = location.time == time
            && location.element == access.element
            && location.scope.is_some_and(|s| s.min(sem.scope) >= view.level(location.uid, device_of));
        if !linked {
            return Ok(());
        }
        let version = (address, location.stamp);
        if state.polled.iter().any(|p| p.0 == version && p.1 >> lane & 1 != 0) {
            return Ok(());
        }
        let mut later: Vec<(usize, Scope, bool)> = Vec::new();
        let mut learn = Vec::new();
        for (i, p) in location.published.iter().enumerate() {
            let k = &p.knowledge;
            let known = match p.sc_only {
                true => view.covers(&k.clock),
                false => !k.init_only && view.uncovered(k.uid, k.mask, k.time, 1 << lane) == 0,
            };
            if known {
                continue;
            }
            let level = view.level(k.uid, device_of);
            if p.scope < level {
                continue;
            }
            if sem.acquires() && sem.scope >= level && !p.sc_only { learn.push(i) } else { later.push((i, level, p.sc_only)) }
        }
        let mut pending: Vec<Pending> = Vec::new();
        let pend = |level, sc_only, knowledge| Pending {
            mask: 1 << lane,
            level,
            sc_only,
            knowledge,
            agents: Vec::new(),
            from: Some(place(owner, address)),
        };
        if later.len() > FEW {
            // A long release sequence: those that need the same fence become one.
            for sc_only in [false, true] {
                let Some(top) = later.iter().filter(|l| l.2 == sc_only).map(|l| l.1).max() else { continue };
                let (same, rest): (Vec<_>, Vec<_>) = later.into_iter().partition(|l| (l.1, l.2) == (top, sc_only));
                later = rest;
                let clock = location.clock_of(same.iter().map(|l| l.0));
                pending.push(pend(top, sc_only, Knowledge::of_clock(clock)));
            }
        }
        pending.extend(later.iter().map(|&(i, level, sc_only)| pend(level, sc_only, location.published[i].knowledge.clone())));
        if !learn.is_empty() {
            let clock = location.clock_of(learn.into_iter());
            state.learn(first, 1 << lane, |g| learnt(g, &g.view(first, count, uid, &cluster, device), &clock));
        }
        for p in pending {
            state.pend(p);
        }
        match state.polled.iter_mut().find(|p| p.0 == version) {
            Some(p) => p.1 |= 1 << lane,
            None => {
                state.polled.rotate_right(1);
                state.polled[0] = (version, 1 << lane);
            }
        }
        Ok(())
    }
}

const SCOPES: [Scope; 4] = [Scope::Cta, Scope::Cluster, Scope::Gpu, Scope::Sys];
/// Releases read at once that are remembered one by one.
const FEW: usize = 8;

/// An address with the first warp of the block whose shared memory it is in.
fn place(owner: Option<(usize, u32)>, address: u64) -> (u32, u64) {
    (owner.map_or(u32::MAX, |o| o.1), address)
}

/// Time of the last write of the byte at `address`, and whether it published something.
fn last_write(cell: &Cell, side: &super::shadow::Side, address: u64) -> (Time, bool) {
    let cell = if cell.meta & Cell::SPLIT != 0 { &side.splits.get(cell.w_who)[(address & 3) as usize] } else { cell };
    (cell.w_time, cell.meta & Cell::PUBLISHED != 0)
}

fn set_published(cell: &mut Cell, side: &mut super::shadow::Side, address: u64) {
    if cell.meta & Cell::SPLIT != 0 {
        side.splits.get_mut(cell.w_who)[(address & 3) as usize].meta |= Cell::PUBLISHED;
    } else {
        cell.meta |= Cell::PUBLISHED;
    }
}
