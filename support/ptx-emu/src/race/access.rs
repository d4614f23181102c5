//! Accesses of threads.

use super::check::Check;
use super::clock::{Span, Time};
use super::shadow::{Attr, Cell, Class, Pool, Record, Shadow, Shape, Side};
use super::view::View;
use super::{Access, AccessKind, Detector, HOST, Outcome, Proxy, Report, Space, Warp, misuse};

/// What the short way knows of the accessing lanes.
struct Fast {
    now: Time,
    site: u32,
    uid: u32,
    first: u32,
    warps: u32,
    block_time: Time,
    warp_time: Time,
    /// The last other warp that the long way has looked up.
    other: u32,
    other_known: Time,
}

impl Fast {
    /// Whether everything that a warp did by `time` is known.
    #[inline(always)]
    fn known(&self, who: u32, time: Time) -> bool {
        time == 0
            || (who.wrapping_sub(self.first) < self.warps && time <= self.block_time)
            || (who == self.other && time <= self.other_known)
    }
}

/// An access to one whole word, weak.
struct Word {
    /// Lane and attributes as a cell's last write has them, and which bits of them say that the same lanes wrote.
    w_meta: u32,
    w_same: u32,
    /// Attributes as a cell's last read has them, and which bits of them say that the same lanes read.
    r_meta: u32,
    r_same: u32,
    mask: u32,
    shape: Shape,
}

impl Word {
    #[inline(always)]
    fn new(mask: u32, shape: Shape) -> Self {
        let shape_bits = (shape as u32) << 4;
        let whole = shape as u32 == Shape::Whole as u32;
        Word {
            w_meta: mask.trailing_zeros() & Cell::W_LANE | Cell::W_PLAIN | shape_bits << Cell::W_ATTR_SHIFT,
            w_same: Cell::W_LANE | if whole { Cell::W_SHAPE } else { Cell::W_ATTR },
            r_meta: Cell::R_PLAIN | shape_bits << Cell::R_ATTR_SHIFT,
            r_same: if whole { Cell::R_SHAPE } else { Cell::R_ATTR },
            mask,
            shape,
        }
    }

    fn record(&self, fast: &Fast, write: bool) -> Record {
        Record {
            who: fast.uid,
            time: fast.now,
            site: fast.site,
            mask: self.mask,
            attr: Attr::new(0xf, self.shape, false, Class::WEAK, write),
        }
    }
}

/// A plain write of a whole word to a word with a plain past that is all ordered before; whether it was that.
#[inline(always)]
fn write_fast(cell: &mut Cell, x: &Word, f: &Fast) -> bool {
    let m = cell.meta;
    let w_known = f.known(cell.w_who, cell.w_time)
        || (cell.w_who == f.uid && (cell.w_time <= f.warp_time || (m ^ x.w_meta) & x.w_same == 0));
    let r_known = f.known(cell.r_who, cell.r_time)
        || (cell.r_who == f.uid && (cell.r_time <= f.warp_time || (cell.r_mask == x.mask && (m ^ x.r_meta) & x.r_same == 0)));
    if m & Cell::SLOW == 0 && w_known && r_known {
        *cell = Cell { w_who: f.uid, w_time: f.now, w_site: f.site, meta: x.w_meta, ..Cell::EMPTY };
        return true;
    }
    false
}

/// The same for a read.
#[inline(always)]
fn read_fast(cell: &mut Cell, x: &Word, f: &Fast) -> bool {
    let m = cell.meta;
    if m & Cell::SLOW != 0 {
        return false;
    }
    let one_lane = x.mask & x.mask.wrapping_sub(1) == 0 || x.shape as u32 != Shape::Whole as u32;
    let w_known = f.known(cell.w_who, cell.w_time)
        || (cell.w_who == f.uid && (cell.w_time <= f.warp_time || one_lane && (m ^ x.w_meta) & x.w_same == 0));
    if !w_known {
        return false;
    }
    if cell.r_time == f.now && cell.r_who == f.uid && (m ^ x.r_meta) & Cell::R_ATTR == 0 && x.shape as u32 == 0 {
        cell.r_mask |= x.mask;
        return true;
    }
    let r_known = f.known(cell.r_who, cell.r_time) || (cell.r_who == f.uid && (cell.r_time <= f.warp_time || subsumed(cell, x)));
    if r_known {
        cell.r_who = f.uid;
        cell.r_time = f.now;
        cell.r_site = f.site;
        cell.r_mask = x.mask;
        cell.meta = m & !Cell::R_ATTR | x.r_meta;
    }
    r_known
}

/// Whether the last read, by the same warp, was by lanes that read the same bytes now.
#[inline(always)]
fn subsumed(cell: &Cell, x: &Word) -> bool {
    let lanes = if x.shape as u32 == 0 { cell.r_mask & !x.mask == 0 } else { cell.r_mask == x.mask };
    lanes && (cell.meta ^ x.r_meta) & x.r_same == 0
}

/// A weak write of a whole word that agents or several warps have read or written.
fn write_medium(cell: &mut Cell, side: &mut Side, x: &Word, f: &Fast, check: &mut Check<'_>) -> bool {
    let m = cell.meta;
    if m & (Cell::W_CLASS | Cell::R_CLASS | Cell::SPLIT) != 0 {
        return false;
    }
    let w_known = if m & Cell::W_AGENT != 0 {
        cell.w_time <= check.agent_known(cell.w_who, true)
    } else {
        f.known(cell.w_who, cell.w_time)
    };
    let r_known = if m & Cell::R_AGENT != 0 {
        cell.r_time <= check.agent_known(cell.r_who, false)
    } else {
        f.known(cell.r_who, cell.r_time) || cell.r_who == f.uid && cell.r_time <= f.warp_time
    };
    if !(w_known && r_known) {
        return false;
    }
    if m & Cell::SPILL != 0 {
        let list = side.lists.get(cell.r_site);
        let known = |r: &Record| {
            if r.attr.agent() { r.time <= check.agent_known(r.who, r.attr.write()) } else { f.known(r.who, r.time) }
        };
        if list.writes != 0 || !list.records.iter().all(known) {
            return false;
        }
        side.release(cell);
    }
    *cell = Cell { w_who: f.uid, w_time: f.now, w_site: f.site, meta: x.w_meta, ..Cell::EMPTY };
    true
}

/// A weak read of a whole word that an agent wrote, or that several warps read.
fn read_medium(cell: &mut Cell, side: &mut Side, x: &Word, f: &Fast, check: &mut Check<'_>) -> bool {
    let m = cell.meta;
    if m & (Cell::W_CLASS | Cell::R_CLASS | Cell::R_AGENT | Cell::SPLIT) != 0 {
        return false;
    }
    let one_lane = x.mask & (x.mask - 1) == 0 || x.shape != Shape::Whole;
    let w_known = if m & Cell::W_AGENT != 0 {
        cell.w_time <= check.agent_known(cell.w_who, true)
    } else {
        f.known(cell.w_who, cell.w_time)
            || cell.w_who == f.uid && (cell.w_time <= f.warp_time || one_lane && (m ^ x.w_meta) & x.w_same == 0)
            || cell.w_time <= check.warp_known(cell.w_who)
    };
    if !w_known || m & Cell::SPILL != 0 && side.lists.get(cell.r_site).writes != 0 {
        return false;
    }
    let same_event = cell.r_time == f.now && cell.r_who == f.uid;
    if same_event {
        if (m ^ x.r_meta) & Cell::R_ATTR != 0 || x.shape != Shape::Whole {
            return false;
        }
        cell.r_mask |= x.mask;
        return true;
    }
    if f.known(cell.r_who, cell.r_time) {
        if m & Cell::SPILL != 0 {
            // The others may be known now as well: the long way tidies the list.
            return false;
        }
    } else if !(cell.r_who == f.uid && (cell.r_time <= f.warp_time || subsumed(cell, x)))
        && let Some(r) = cell.read()
    {
        let site = side.read_site(cell);
        side.push(cell, Record { site, ..r });
    }
    cell.r_who = f.uid;
    cell.r_time = f.now;
    cell.r_mask = x.mask;
    cell.meta = cell.meta & !Cell::R_ATTR | x.r_meta;
    side.set_read_site(cell, f.site);
    true
}

/// One word by the shortest way that serves.
#[inline(always)]
fn word<const WRITE: bool>(cell: &mut Cell, side: &mut Side, x: &Word, f: &mut Fast, check: &mut Check<'_>, address: u64) {
    let done = if WRITE { write_fast(cell, x, f) } else { read_fast(cell, x, f) };
    if !done {
        word_slow::<WRITE>(cell, side, x, f, check, address);
    }
}

#[inline(never)]
fn word_slow<const WRITE: bool>(cell: &mut Cell, side: &mut Side, x: &Word, f: &mut Fast, check: &mut Check<'_>, address: u64) {
    let done = if WRITE { write_medium(cell, side, x, f, check) } else { read_medium(cell, side, x, f, check) };
    if !done {
        if cell.meta & (Cell::W_AGENT | Cell::SPLIT) == 0 && cell.w_time != 0 {
            f.other = cell.w_who;
            f.other_known = check.warp_known(cell.w_who);
        }
        check.visit_lanes(cell, side, &x.record(f, WRITE), address);
    }
}

/// All words of a weak access of one group of lanes.
fn walk<const WRITE: bool>(
    shadow: &mut Shadow,
    pool: &mut Pool,
    check: &mut Check<'_>,
    f: &mut Fast,
    addresses: &[u64; 32],
    size: u32,
    mask: u32,
) {
    let mut lanes = mask;
    let mut number = Shadow::page_of(addresses[(mask.trailing_zeros() & 31) as usize]);
    let (mut page, mut side) = shadow.page(number, pool);
    while lanes != 0 {
        let lane = lanes.trailing_zeros();
        let bit = lanes & lanes.wrapping_neg();
        lanes &= lanes - 1;
        let address = addresses[(lane & 31) as usize];
        if Shadow::page_of(address) != number {
            number = Shadow::page_of(address);
            (page, side) = shadow.page(number, pool);
        }
        if size >= 4 && address & 3 == 0 && size & 3 == 0 {
            let mut group = bit;
            if !WRITE {
                // Neighbours that read the same words make one record.
                while lanes != 0 && addresses[(lanes.trailing_zeros() & 31) as usize] == address {
                    group |= lanes & lanes.wrapping_neg();
                    lanes &= lanes - 1;
                }
            }
            let x = Word::new(group, Shape::Whole);
            let first = Shadow::word_of(address);
            let words = (size / 4) as usize;
            if let Some(cells) = page.get_mut(first..first + words) {
                for (k, cell) in cells.iter_mut().enumerate() {
                    word::<WRITE>(cell, side, &x, f, check, address + 4 * k as u64);
                }
                continue;
            }
        } else if size < 4 && address & u64::from(size - 1) == 0 && size != 3 {
            // Neighbouring lanes with neighbouring bytes of one word make one access of the word.
            let mut group = bit;
            let mut count = 1;
            let in_word = (4 - (address & 3) as u32) / size;
            while count < in_word {
                let next = (lane + count) & 31;
                if lanes >> next & 1 == 0 || addresses[next as usize] != address + u64::from(count * size) {
                    break;
                }
                group |= 1 << next;
                lanes &= !(1 << next);
                count += 1;
            }
            if count == 1 && !WRITE {
                while lanes != 0 && addresses[(lanes.trailing_zeros() & 31) as usize] == address {
                    group |= lanes & lanes.wrapping_neg();
                    lanes &= lanes - 1;
                }
            }
            let shape = match (count, size) {
                (1, _) => Shape::Whole,
                (_, 2) => Shape::Halves,
                _ => Shape::Bytes,
            };
            let cell = &mut page[Shadow::word_of(address)];
            if count * size == 4 {
                word::<WRITE>(cell, side, &Word::new(group, shape), f, check, address);
            } else {
                let bytes = ((1 << (count * size)) - 1) << (address & 3);
                let attr = Attr::new(bytes, shape, false, Class::WEAK, WRITE);
                let x = Record { who: f.uid, time: f.now, site: f.site, mask: group, attr };
                check.visit_lanes(cell, side, &x, address & !3);
            }
            continue;
        }
        // Any bytes, word by word.
        let x = Record {
            who: f.uid,
            time: f.now,
            site: f.site,
            mask: bit,
            attr: Attr::new(0xf, Shape::Whole, false, Class::WEAK, WRITE),
        };
        pieces(address, u64::from(size), |at, bytes| {
            let (page, side) = shadow.page(Shadow::page_of(at), pool);
            let x = Record { attr: x.attr.with_bytes(bytes), ..x };
            check.visit(&mut page[Shadow::word_of(at)], side, &x, at, false);
        });
        (page, side) = shadow.page(number, pool);
    }
}

/// Calls `f` for each word of a range with the word's address and the mask of its bytes in the range.
pub(super) fn pieces(address: u64, len: u64, mut f: impl FnMut(u64, u32)) {
    let mut at = address;
    let mut left = len;
    while left != 0 {
        let skip = at & 3;
        let n = left.min(4 - skip);
        f(at & !3, ((1u32 << n) - 1) << skip);
        left -= n;
        match at.checked_add(n) {
            Some(next) => at = next,
            None => return,
        }
    }
}

impl Detector {
    /// A memory instruction of a warp. A strong access acquires and publishes as its order says; lanes that do so act in the
    /// order of their numbers.
    ///
    /// # Errors
    /// A race; or a warp or block that does not run; or events beyond what can be numbered.
    pub fn access(&mut self, warp: Warp, access: &Access<'_>) -> Outcome {
        let now = self.tick()?;
        let b = self.block_index(warp.block)?;
        let owner = self.owner(access.space)?;
        if access.size == 0 || access.size > 64 {
            return misuse("an access of no bytes, or of more than 64 a lane");
        }
        if access.sem.strong() {
            return self.access_strong(warp, b, owner, access, now);
        }
        let Detector { blocks, shared, global, pool, agents, fences, launches, options, .. } = self;
        let block = &blocks[b];
        let Some(state) = block.warps.get(warp.index as usize) else {
            return misuse("no such warp in its block");
        };
        let shadow = match owner {
            Some((slot, _)) => &mut shared[slot],
            None => &mut **global,
        };
        let mut found = None;
        for group in &state.groups {
            let mask = group.mask & access.mask;
            if mask == 0 {
                continue;
            }
            let views = [block.view(state, group)];
            let mut check = Check::new(
                &views,
                mask,
                Proxy::Generic,
                access.space,
                owner.map(|o| o.1),
                agents,
                fences,
                launches,
                options.issuer_proxy_fence,
            );
            check.agree = access.agree;
            let mut fast = Fast {
                now,
                site: access.site,
                uid: state.uid,
                first: block.first,
                warps: block.warp_count(),
                block_time: group.block_time,
                warp_time: group.warp_time,
                other: u32::MAX,
                other_known: 0,
            };
            match access.kind {
                AccessKind::Read => {
                    walk::<false>(shadow, pool, &mut check, &mut fast, access.addresses, access.size, mask);
                }
                _ => walk::<true>(shadow, pool, &mut check, &mut fast, access.addresses, access.size, mask),
            }
            found = found.or(check.found);
        }
        match found {
            None => Ok(()),
            Some(race) => Err(Box::new(Report::Race(race))),
        }
    }

    /// For shared memory the owner's slot and first warp.
    pub(super) fn owner(&self, space: Space) -> Outcome<Option<(usize, u32)>> {
        match space {
            Space::Global => Ok(None),
            Space::Shared(owner) => {
                let slot = self.block_index(owner)?;
                Ok(Some((slot, self.blocks[slot].first)))
            }
        }
    }

    /// A weak access of one thread to `len` bytes in a row (a copy or fill in stream order).
    ///
    /// # Errors
    /// As [`Detector::access`].
    pub fn access_range(
        &mut self,
        warp: Warp,
        lane: u32,
        space: Space,
        address: u64,
        len: u64,
        kind: AccessKind,
        site: u32,
    ) -> Outcome {
        let now = self.tick()?;
        let b = self.block_index(warp.block)?;
        let owner = self.owner(space)?;
        let Detector { blocks, shared, global, pool, agents, fences, launches, options, .. } = self;
        let block = &blocks[b];
        let Some(state) = block.warps.get(warp.index as usize) else {
            return misuse("no such warp in its block");
        };
        let Some(group) = state.groups.iter().find(|g| lane < 32 && g.mask >> lane & 1 != 0) else {
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
            space,
            owner.map(|o| o.1),
            agents,
            fences,
            launches,
            options.issuer_proxy_fence,
        );
        let attr = Attr::new(0xf, Shape::Whole, false, Class::WEAK, kind.writes());
        let x = Record { who: state.uid, time: now, site, mask: 1 << lane, attr };
        range(shadow, pool, &mut check, &x, address, len)
    }

    /// A weak access of the host to global memory.
    ///
    /// # Errors
    /// A race: a launch that the host has not waited for is not ordered before; or events beyond what can be numbered.
    pub fn host_access(&mut self, address: u64, len: u64, kind: AccessKind, site: u32) -> Outcome {
        let now = self.tick()?;
        let Detector { global, pool, agents, fences, launches, options, host, .. } = self;
        let views = [View {
            clock: host,
            first: HOST,
            warps: 1,
            block_time: now,
            uid: HOST,
            warp_time: now,
            own_mask: u32::MAX,
            own_time: Time::MAX,
            cluster: &[] as &[Span],
            device: u32::MAX,
        }];
        let mut check =
            Check::new(&views, 1, Proxy::Generic, Space::Global, None, agents, fences, launches, options.issuer_proxy_fence);
        let attr = Attr::new(0xf, Shape::Whole, false, Class::WEAK, kind.writes());
        let x = Record { who: HOST, time: now, site, mask: 1, attr };
        range(global, pool, &mut check, &x, address, len)
    }

    /// Forgets what happened in a range of global memory: it has been freed.
    pub fn forget_global(&mut self, address: u64, len: u64) {
        self.global.forget(address, len);
    }
}

/// What was last found to be no obstacle to an agent's access: cells that look the same need no second look.
#[derive(Default)]
struct Alike {
    w_who: u32,
    w_time: Time,
    r_who: u32,
    r_time: Time,
    meta: u32,
    known: bool,
}

/// An access of an agent to a whole word, weak, of which all that matters is known to be ordered before; whether it was that.
fn agent_word(cell: &mut Cell, side: &mut Side, x: &Record, check: &mut Check<'_>, alike: &mut Alike) -> bool {
    let m = cell.meta;
    if m & (Cell::W_CLASS | Cell::R_CLASS | Cell::SPLIT) != 0 {
        return false;
    }
    let look = m & !Cell::W_LANE;
    if !alike.known
        || (alike.w_who, alike.w_time, alike.r_who, alike.r_time, alike.meta)
            != (cell.w_who, cell.w_time, cell.r_who, cell.r_time, look)
    {
        let w_known = cell.w_time == 0
            || if m & Cell::W_AGENT != 0 {
                cell.w_time <= check.agent_known(cell.w_who, true) && check.same_proxy(cell.w_who)
            } else {
                cell.w_time <= check.warp_known(cell.w_who) && check.all_fenced(cell.w_who, cell.w_time)
            };
        if !w_known {
            return false;
        }
        let r_known = cell.r_time == 0
            || if m & Cell::R_AGENT != 0 {
                cell.r_time <= check.agent_known(cell.r_who, false)
            } else {
                cell.r_time <= check.warp_known(cell.r_who)
            };
        if !r_known {
            // A read of the same agent is as good as known to it; others' reads only go on the list.
            let own = m & Cell::R_AGENT != 0 && cell.r_who == x.who && cell.r_mask == x.mask && m & Cell::R_SHAPE == 0;
            if x.attr.write() || m & Cell::SPILL != 0 && side.lists.get(cell.r_site).writes != 0 {
                return false;
            }
            if let Some(r) = cell.read().filter(|_| !own) {
                let site = side.read_site(cell);
                side.push(cell, Record { site, ..r });
            }
            cell.set_read(x);
            side.set_read_site(cell, x.site);
            return true;
        }
        *alike =
            Alike { w_who: cell.w_who, w_time: cell.w_time, r_who: cell.r_who, r_time: cell.r_time, meta: look, known: true };
    }
    if m & Cell::SPILL != 0 {
        let list = side.lists.get(cell.r_site);
        let mut known = |r: &Record| {
            r.time <= if r.attr.agent() { check.agent_known(r.who, r.attr.write()) } else { check.warp_known(r.who) }
        };
        if list.writes != 0 || !list.records.iter().all(&mut known) {
            return false;
        }
        let keep = *cell;
        side.release(&keep);
        cell.meta &= !Cell::SPILL;
    }
    if x.attr.write() {
        *cell = Cell::EMPTY;
        cell.set_write(x);
    } else {
        cell.set_read(x);
        cell.r_site = x.site;
    }
    true
}

/// One record's access to bytes in a row.
pub(super) fn range(shadow: &mut Shadow, pool: &mut Pool, check: &mut Check<'_>, x: &Record, address: u64, len: u64) -> Outcome {
    let quick = x.attr.agent() && x.attr.class() == Class::WEAK && check.whole;
    let mut alike = Alike::default();
    let mut at = address;
    let mut left = len;
    while left != 0 {
        let (page, side) = shadow.page(Shadow::page_of(at), pool);
        let word = Shadow::word_of(at);
        if quick && at & 3 == 0 && left >= 4 {
            let words = (left / 4).min((Shadow::words() - word) as u64);
            for (k, cell) in (0..words).zip(&mut page[word..]) {
                if !agent_word(cell, side, x, check, &mut alike) {
                    check.visit(cell, side, x, at + 4 * k, false);
                }
            }
            left -= 4 * words;
            // Only a range that is used up can end at the end of the address space.
            at = at.wrapping_add(4 * words);
            continue;
        }
        let skip = at & 3;
        let n = left.min(4 - skip);
        let x = Record { attr: x.attr.with_bytes(((1u32 << n) - 1) << skip), ..*x };
        check.visit(&mut page[word], side, &x, at & !3, false);
        left -= n;
        match at.checked_add(n) {
            Some(next) => at = next,
            None => break,
        }
    }
    match check.found {
        None => Ok(()),
        Some(race) => Err(Box::new(Report::Race(race))),
    }
}
