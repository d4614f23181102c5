//! Shadow memory: for each 4-byte word the last write, the last read, and what else is not ordered before them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::clock::Time;
use super::location::Location;
use super::types::Scope;

/// Bytes of memory a page covers, as a shift.
const PAGE_SHIFT: u32 = 11;
const PAGE_WORDS: usize = 1 << (PAGE_SHIFT - 2);

/// One access as remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Number of the warp, or slot of the agent.
    pub who: u32,
    pub time: Time,
    pub site: u32,
    /// Lanes. With a shape other than whole: consecutive ones, the lowest for the lowest byte accessed.
    pub mask: u32,
    pub attr: Attr,
}

/// Which bytes of the word, how they belong to lanes, how strong: 13 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attr(pub u32);

impl Attr {
    const BYTES: u32 = 0xf;
    const SHAPE: u32 = 0x30;
    pub const AGENT: u32 = 0x40;
    const CLASS_SHIFT: u32 = 7;
    const CLASS: u32 = 0x1f << Self::CLASS_SHIFT;
    /// All but the last bit, which in a cell the position tells.
    const KEPT: u32 = 0xfff;
    const WRITE: u32 = 0x1000;

    pub fn new(bytes: u32, shape: Shape, agent: bool, class: Class, write: bool) -> Self {
        Attr(
            bytes
                | (shape as u32) << 4
                | if agent { Self::AGENT } else { 0 }
                | u32::from(class.0) << Self::CLASS_SHIFT
                | if write { Self::WRITE } else { 0 },
        )
    }

    pub fn bytes(self) -> u32 {
        self.0 & Self::BYTES
    }

    pub fn with_bytes(self, bytes: u32) -> Self {
        Attr(self.0 & !(Self::BYTES | Self::SHAPE) | bytes)
    }

    pub fn shape(self) -> Shape {
        match self.0 & Self::SHAPE {
            0 => Shape::Whole,
            0x10 => Shape::Halves,
            _ => Shape::Bytes,
        }
    }

    pub fn agent(self) -> bool {
        self.0 & Self::AGENT != 0
    }

    pub fn class(self) -> Class {
        Class(((self.0 & Self::CLASS) >> Self::CLASS_SHIFT) as u8)
    }

    pub fn write(self) -> bool {
        self.0 & Self::WRITE != 0
    }
}

/// How the bytes of a word belong to lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Every lane of the mask accessed all the bytes.
    Whole = 0,
    /// One lane per two bytes.
    Halves = 1,
    /// One lane per byte.
    Bytes = 2,
}

/// Strength of an access: weak, an operation of or on an mbarrier, or strong with a scope and an element size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    pub const WEAK: Class = Class(0);
    pub const MBARRIER_INIT: Class = Class(1);
    pub const MBARRIER: Class = Class(2);

    /// A strong access of elements of `element` bytes (1 to 16).
    pub fn strong(scope: Scope, element: u32) -> Self {
        Class(3 + scope as u8 * 5 + element.max(1).ilog2().min(4) as u8)
    }

    /// Scope and binary logarithm of the element size, if strong.
    pub fn parts(self) -> Option<(Scope, u8)> {
        let code = self.0.checked_sub(3)?;
        let scope = match code / 5 {
            0 => Scope::Cta,
            1 => Scope::Cluster,
            2 => Scope::Gpu,
            _ => Scope::Sys,
        };
        Some((scope, code % 5))
    }
}

impl Record {
    /// Lanes that accessed one of `bytes`.
    pub fn lanes(&self, bytes: u32) -> u32 {
        let per_lane = match self.attr.shape() {
            Shape::Whole => return self.mask,
            Shape::Halves => 2,
            Shape::Bytes => 1,
        };
        let first_lane = self.mask.trailing_zeros();
        let first = self.attr.bytes().trailing_zeros() / per_lane;
        let mut lanes = 0;
        let mut rest = bytes & self.attr.bytes();
        while rest != 0 {
            let byte = rest.trailing_zeros();
            rest &= rest - 1;
            lanes |= 1u32.checked_shl(first_lane + byte / per_lane - first).unwrap_or(0);
        }
        lanes
    }

    /// The same access seen by one byte alone, as a unit of its own.
    pub fn byte(&self, byte: u32) -> Record {
        Record { mask: self.lanes(1 << byte), attr: self.attr.with_bytes(0xf), ..*self }
    }
}

/// What is known of one word (or, in a split word, of one byte).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Cell {
    /// Last write: number of the warp or slot of the agent; of a split word, the index of the split.
    pub w_who: u32,
    /// 0: none.
    pub w_time: Time,
    pub w_site: u32,
    /// Lane of the write, attributes of both, flags: see the constants.
    pub meta: u32,
    pub r_who: u32,
    pub r_time: Time,
    /// With [`Cell::SPILL`], the index of the list, which then holds the site.
    pub r_site: u32,
    pub r_mask: u32,
}

impl Cell {
    pub const EMPTY: Cell = Cell { w_who: 0, w_time: 0, w_site: 0, meta: 0, r_who: 0, r_time: 0, r_site: 0, r_mask: 0 };

    pub const W_LANE: u32 = 0x1f;
    pub const W_ATTR_SHIFT: u32 = 5;
    pub const W_ATTR: u32 = Attr::KEPT << Self::W_ATTR_SHIFT;
    pub const W_SHAPE: u32 = Attr::SHAPE << Self::W_ATTR_SHIFT;
    pub const W_AGENT: u32 = Attr::AGENT << Self::W_ATTR_SHIFT;
    pub const W_CLASS: u32 = Attr::CLASS << Self::W_ATTR_SHIFT;
    /// The bytes have histories of their own.
    pub const SPLIT: u32 = 1 << 17;
    /// The last write publishes what was released before it: see [`Location`].
    pub const PUBLISHED: u32 = 1 << 18;
    pub const R_ATTR_SHIFT: u32 = 19;
    pub const R_ATTR: u32 = Attr::KEPT << Self::R_ATTR_SHIFT;
    pub const R_SHAPE: u32 = Attr::SHAPE << Self::R_ATTR_SHIFT;
    pub const R_AGENT: u32 = Attr::AGENT << Self::R_ATTR_SHIFT;
    pub const R_CLASS: u32 = Attr::CLASS << Self::R_ATTR_SHIFT;
    /// There is a list of further records.
    pub const SPILL: u32 = 1 << 31;

    /// What keeps a cell from the short way of plain accesses.
    pub const SLOW: u32 = Self::W_AGENT | Self::W_CLASS | Self::R_AGENT | Self::R_CLASS | Self::SPLIT | Self::SPILL;
    /// Attributes of a weak access of a whole word.
    pub const W_PLAIN: u32 = 0xf << Self::W_ATTR_SHIFT;
    pub const R_PLAIN: u32 = 0xf << Self::R_ATTR_SHIFT;

    pub fn write(&self) -> Option<Record> {
        (self.w_time != 0 && self.meta & Self::SPLIT == 0).then(|| Record {
            who: self.w_who,
            time: self.w_time,
            site: self.w_site,
            mask: match Attr((self.meta & Self::W_ATTR) >> Self::W_ATTR_SHIFT).shape() {
                Shape::Whole => 1 << (self.meta & Self::W_LANE),
                // Consecutive lanes from the first; more bits than lanes do no harm.
                _ => 0xf << (self.meta & Self::W_LANE),
            },
            attr: Attr((self.meta & Self::W_ATTR) >> Self::W_ATTR_SHIFT | Attr::WRITE),
        })
    }

    /// The last read; its site is the list's when there is one.
    pub fn read(&self) -> Option<Record> {
        (self.r_time != 0).then_some(Record {
            who: self.r_who,
            time: self.r_time,
            site: self.r_site,
            mask: self.r_mask,
            attr: Attr((self.meta & Self::R_ATTR) >> Self::R_ATTR_SHIFT),
        })
    }

    /// Sets the last write; nothing is published any more.
    pub fn set_write(&mut self, r: &Record) {
        self.w_who = r.who;
        self.w_time = r.time;
        self.w_site = r.site;
        self.meta = self.meta & !(Self::W_LANE | Self::W_ATTR | Self::PUBLISHED)
            | r.mask.trailing_zeros() & Self::W_LANE
            | (r.attr.0 & Attr::KEPT) << Self::W_ATTR_SHIFT;
    }

    /// Sets the last read, not its site.
    pub fn set_read(&mut self, r: &Record) {
        self.r_who = r.who;
        self.r_time = r.time;
        self.r_mask = r.mask;
        self.meta = self.meta & !Self::R_ATTR | (r.attr.0 & Attr::KEPT) << Self::R_ATTR_SHIFT;
    }

    pub fn read_is_agent(&self) -> bool {
        self.meta & Self::R_AGENT != 0
    }

    pub fn clear_read(&mut self) {
        self.r_time = 0;
        self.meta &= !Self::R_ATTR;
    }
}

/// Further records of a word.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    /// Site of the cell's last read.
    pub read_site: u32,
    /// How many of the records are writes.
    pub writes: u32,
    pub records: Vec<Record>,
}

/// Values with stable indices.
#[derive(Clone, Debug)]
pub(super) struct Slab<T> {
    items: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    pub fn get(&self, i: u32) -> &T {
        &self.items[i as usize]
    }

    pub fn get_mut(&mut self, i: u32) -> &mut T {
        &mut self.items[i as usize]
    }

    /// A free slot, made by `new` when there is none; keeps what the slot held, for its allocations.
    pub fn take(&mut self, new: impl FnOnce() -> T) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.items.push(new());
            (self.items.len() - 1) as u32
        })
    }

    pub fn give(&mut self, i: u32) {
        self.free.push(i);
    }

    pub fn clear(&mut self) {
        self.items.clear();
        self.free.clear();
    }

    /// All slots, free ones included.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter()
    }
}

/// Hashes one address, which nobody chooses to collide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }

    fn write_u64(&mut self, n: u64) {
        // Fibonacci hashing; the table takes its bits from both ends.
        let h = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ h >> 32;
    }
}

/// What words need beside their cells.
#[derive(Clone, Debug, Default)]
pub(super) struct Side {
    pub lists: Slab<List>,
    pub splits: Slab<[Cell; 4]>,
    /// By address: strong accesses that published something or were observed.
    pub locations: HashMap<u64, Location, BuildHasherDefault<AddressHasher>>,
    /// Records dropped for want of room.
    pub dropped: u64,
    /// Most records kept in a list.
    pub reads_kept: usize,
    /// State of the choice of what to drop.
    pub random: u32,
}

pub(super) type Page = Box<[Cell; PAGE_WORDS]>;

/// Pages no longer in use, shared by all shadows of a detector.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    pages: Vec<Page>,
}

/// Most pages kept for later.
const POOL_PAGES: usize = 1024;

impl Pool {
    fn take(&mut self) -> Page {
        match self.pages.pop() {
            Some(mut page) => {
                page.fill(Cell::EMPTY);
                page
            }
            None => match vec![Cell::EMPTY; PAGE_WORDS].into_boxed_slice().try_into() {
                Ok(page) => page,
                // The length is the array's.
                Err(_) => Box::new([Cell::EMPTY; PAGE_WORDS]),
            },
        }
    }

    fn give(&mut self, page: Page) {
        if self.pages.len() < POOL_PAGES {
            self.pages.push(page);
        }
    }
}

/// The shadow of one address space: global memory, or one block's shared memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Shadow {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Page number to index, for shared memory (small addresses).
    dense: Vec<u32>,
    /// Page number to index, for global memory.
    sparse: HashMap<u64, u32, BuildHasherDefault<AddressHasher>>,
    /// Recently used entries of `sparse`: page number plus one, index.
    recent: Vec<(u64, u32)>,
    pub side: Side,
}

/// Entries of `recent`.
const RECENT: usize = 256;
/// Shared memory of a block never reaches this many pages (1 MiB).
const DENSE_PAGES: u64 = 512;
const NONE: u32 = u32::MAX;

impl Shadow {
    /// Shadow of global memory (`global`), or of shared memory.
    pub fn new(global: bool) -> Self {
        let mut shadow = Shadow::default();
        // Words of shared memory are few, so that all their readers can be kept.
        shadow.side.reads_kept = if global { 8 } else { 64 };
        shadow.side.random = 0x9e37_79b9;
        if global {
            shadow.recent = vec![(0, 0); RECENT];
        }
        shadow
    }

    /// Page number of an address.
    pub fn page_of(address: u64) -> u64 {
        address >> PAGE_SHIFT
    }

    /// Index of an address's word in its page.
    pub fn word_of(address: u64) -> usize {
        (address >> 2) as usize & (PAGE_WORDS - 1)
    }

    /// Words in a page.
    pub const fn words() -> usize {
        PAGE_WORDS
    }

    /// The page of that number and what goes beside it; made on first use.
    pub fn page(&mut self, number: u64, pool: &mut Pool) -> (&mut [Cell; PAGE_WORDS], &mut Side) {
        let index = self.page_index(number, pool);
        (&mut self.pages[index as usize], &mut self.side)
    }

    #[inline]
    fn page_index(&mut self, number: u64, pool: &mut Pool) -> u32 {
        if self.recent.is_empty() && number < DENSE_PAGES {
            match self.dense.get(number as usize) {
                Some(&i) if i != NONE => i,
                _ => {
                    let i = self.add_page(pool);
                    if self.dense.len() <= number as usize {
                        self.dense.resize(number as usize + 1, NONE);
                    }
                    self.dense[number as usize] = i;
                    i
                }
            }
        } else {
            let slot = number as usize & (RECENT - 1);
            match self.recent.get(slot) {
                Some(&(tag, i)) if tag == number + 1 => i,
                _ => self.page_index_slow(number, slot, pool),
            }
        }
    }

    fn page_index_slow(&mut self, number: u64, slot: usize, pool: &mut Pool) -> u32 {
        let i = match self.sparse.get(&number) {
            Some(&i) => i,
            None => {
                let i = self.add_page(pool);
                self.sparse.insert(number, i);
                i
            }
        };
        if let Some(entry) = self.recent.get_mut(slot) {
            *entry = (number + 1, i);
        }
        i
    }

    fn add_page(&mut self, pool: &mut Pool) -> u32 {
        let page = pool.take();
        match self.free.pop() {
            Some(i) => {
                self.pages[i as usize] = page;
                i
            }
            None => {
                self.pages.push(page);
                (self.pages.len() - 1) as u32
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self, pool: &mut Pool) {
        for page in self.pages.drain(..) {
            pool.give(page);
        }
        self.free.clear();
        self.dense.clear();
        self.sparse.clear();
        self.recent.fill((0, 0));
        self.side.lists.clear();
        self.side.splits.clear();
        self.side.locations.clear();
    }

    /// Forgets the words that overlap `address..address + len`.
    pub fn forget(&mut self, address: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|n| address.checked_add(n)) else {
            return;
        };
        let (first_page, last_page) = (Self::page_of(address), Self::page_of(last));
        let mut numbers: Vec<u64> = if last_page - first_page < self.sparse.len() as u64 {
            (first_page..=last_page).filter(|n| self.sparse.contains_key(n)).collect()
        } else {
            self.sparse.keys().copied().filter(|n| (first_page..=last_page).contains(n)).collect()
        };
        numbers.sort_unstable();
        for number in numbers {
            let Some(&i) = self.sparse.get(&number) else { continue };
            let from = if number == first_page { Self::word_of(address) } else { 0 };
            let to = if number == last_page { Self::word_of(last) } else { PAGE_WORDS - 1 };
            for cell in &mut self.pages[i as usize][from..=to] {
                self.side.release(cell);
                *cell = Cell::EMPTY;
            }
            if (from, to) == (0, PAGE_WORDS - 1) {
                self.sparse.remove(&number);
                self.free.push(i);
                if let Some(entry) = self.recent.get_mut(number as usize & (RECENT - 1)) {
                    *entry = (0, 0);
                }
            }
        }
        self.side.locations.retain(|&a, _| a < address || a > last);
    }

    /// Pages in use.
    pub fn len(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    /// Calls `f` with the slot of every agent that a record names.
    pub fn agents(&self, mut f: impl FnMut(u32)) {
        let mut cell_agents = |c: &Cell| {
            if c.meta & (Cell::W_AGENT | Cell::SPLIT) == Cell::W_AGENT {
                f(c.w_who);
            }
            if c.meta & Cell::R_AGENT != 0 {
                f(c.r_who);
            }
        };
        for page in &self.pages {
            page.iter().for_each(&mut cell_agents);
        }
        for split in self.side.splits.iter() {
            split.iter().for_each(&mut cell_agents);
        }
        for list in self.side.lists.iter() {
            list.records.iter().filter(|r| r.attr.agent()).for_each(|r| f(r.who));
        }
    }
}

impl Side {
    /// Frees what a cell refers to.
    pub fn release(&mut self, cell: &Cell) {
        if cell.meta & Cell::SPILL != 0 {
            self.free_list(cell.r_site);
        }
        if cell.meta & Cell::SPLIT != 0 {
            let split = *self.splits.get(cell.w_who);
            for c in &split {
                if c.meta & Cell::SPILL != 0 {
                    self.free_list(c.r_site);
                }
            }
            self.splits.give(cell.w_who);
        }
    }

    fn free_list(&mut self, i: u32) {
        self.lists.get_mut(i).records.clear();
        self.lists.give(i);
    }

    /// Site of a cell's last read.
    pub fn read_site(&self, cell: &Cell) -> u32 {
        if cell.meta & Cell::SPILL != 0 { self.lists.get(cell.r_site).read_site } else { cell.r_site }
    }

    pub fn set_read_site(&mut self, cell: &mut Cell, site: u32) {
        if cell.meta & Cell::SPILL != 0 {
            self.lists.get_mut(cell.r_site).read_site = site;
        } else {
            cell.r_site = site;
        }
    }

    /// Gives a cell's list back when it is empty.
    pub fn trim(&mut self, cell: &mut Cell) {
        if cell.meta & Cell::SPILL != 0 && self.lists.get(cell.r_site).records.is_empty() {
            let i = cell.r_site;
            cell.r_site = self.lists.get(i).read_site;
            cell.meta &= !Cell::SPILL;
            self.lists.give(i);
        }
    }

    /// Adds a record to a cell's list.
    pub fn push(&mut self, cell: &mut Cell, record: Record) {
        if cell.meta & Cell::SPILL == 0 {
            let i = self.lists.take(List::default);
            let list = self.lists.get_mut(i);
            list.records.clear();
            list.writes = 0;
            list.read_site = cell.r_site;
            cell.r_site = i;
            cell.meta |= Cell::SPILL;
        }
        let list = self.lists.get_mut(cell.r_site);
        let full = list.records.len() >= self.reads_kept;
        if !full {
            // The same lanes' earlier access of the same sort is ordered before; lanes of one instruction share a record.
            for e in &mut list.records {
                if e.who == record.who && e.attr == record.attr {
                    if e.time == record.time && record.attr.shape() == Shape::Whole {
                        e.mask |= record.mask;
                        return;
                    }
                    if e.mask & !record.mask == 0 && e.time <= record.time && !record.attr.agent() {
                        *e = record;
                        return;
                    }
                }
            }
            list.records.push(record);
        } else {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 17;
            self.random ^= self.random << 5;
            self.dropped += 1;
            let i = self.random as usize % list.records.len();
            let old = std::mem::replace(&mut list.records[i], record);
            list.writes -= u32::from(old.attr.write());
        }
        list.writes += u32::from(record.attr.write());
    }
}
