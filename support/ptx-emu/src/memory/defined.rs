//! Which bytes of an allocation something wrote: a bit a byte, by pages that cost nothing while they are all the same.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Bytes of a page.
const PAGE: u64 = 4096;
const WORDS: usize = PAGE as usize / 64;

/// A page of which some bytes are defined.
struct Bits {
    /// How many bits of `words` are set.
    set: AtomicU32,
    words: [AtomicU64; WORDS],
}

/// Stands for a page that is defined as a whole; never read through.
static ALL: Bits = Bits { set: AtomicU32::new(PAGE as u32), words: [const { AtomicU64::new(u64::MAX) }; WORDS] };

fn all() -> *mut Bits {
    (&raw const ALL).cast_mut()
}

/// The defined bytes of one allocation. Threads may use it at the same time; what they see of each other's concurrent changes is not
/// ordered.
pub(super) struct Defined {
    /// By page: null where nothing is defined, `ALL` where everything is, else bits that live as long as this does.
    pages: Box<[AtomicPtr<Bits>]>,
}

impl Defined {
    /// Nothing is defined. `size`: bytes of the allocation.
    pub(super) fn new(size: u64) -> Option<Defined> {
        let pages = usize::try_from(size.div_ceil(PAGE)).ok()?;
        // Zeroed by the system: pages of the table that are never touched cost nothing.
        let pages = Box::<[AtomicPtr<Bits>]>::new_zeroed_slice(pages);
        // SAFETY: a pointer of zero bytes is null, which is a value of `AtomicPtr`.
        Some(Defined { pages: unsafe { pages.assume_init() } })
    }

    /// The bits of a page, created where there are none.
    fn bits(&self, page: usize) -> &Bits {
        let slot = &self.pages[page];
        let known = slot.load(Ordering::Acquire);
        let (words, set) = if known.is_null() {
            (0, 0)
        } else if known == all() {
            (u64::MAX, PAGE as u32)
        } else {
            // SAFETY: such a pointer comes from `Box::into_raw` below and is freed only when `self` is dropped.
            return unsafe { &*known };
        };
        let fresh =
            Box::into_raw(Box::new(Bits { set: AtomicU32::new(set), words: std::array::from_fn(|_| AtomicU64::new(words)) }));
        match slot.compare_exchange(known, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: just made; freed only when `self` is dropped.
            Ok(_) => unsafe { &*fresh },
            Err(_) => {
                // SAFETY: nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                self.bits(page)
            }
        }
    }

    /// Calls `f` for each page of a range, with the first and last-but-one byte inside the page; stops at `Some`.
    #[inline]
    fn pages<R>(&self, start: u64, len: u64, mut f: impl FnMut(usize, u64, u64) -> Option<R>) -> Option<R> {
        let end = start + len;
        let mut at = start;
        while at < end {
            let page = at / PAGE;
            let stop = end.min((page + 1) * PAGE);
            if let Some(result) = f(page as usize, at - page * PAGE, stop - page * PAGE) {
                return Some(result);
            }
            at = stop;
        }
        None
    }

    /// Marks a range inside the allocation.
    pub(super) fn define(&self, start: u64, len: u64) {
        self.pages(start, len, |page, from, to| {
            let slot = &self.pages[page];
            let known = slot.load(Ordering::Acquire);
            let whole = to - from == PAGE;
            if known != all()
                && !(whole
                    && known.is_null()
                    && slot.compare_exchange(ptr::null_mut(), all(), Ordering::AcqRel, Ordering::Acquire).is_ok())
            {
                let bits = self.bits(page);
                words(from, to, |word, mask| {
                    let old = bits.words[word].load(Ordering::Relaxed);
                    if old & mask != mask {
                        let old = bits.words[word].fetch_or(mask, Ordering::Relaxed);
                        bits.set.fetch_add((mask & !old).count_ones(), Ordering::Relaxed);
                    }
                    true
                });
            }
            None::<()>
        });
    }

    /// Forgets a range inside the allocation.
    pub(super) fn undefine(&self, start: u64, len: u64) {
        self.pages(start, len, |page, from, to| {
            if !self.pages[page].load(Ordering::Acquire).is_null() {
                let bits = self.bits(page);
                words(from, to, |word, mask| {
                    let old = bits.words[word].fetch_and(!mask, Ordering::Relaxed);
                    bits.set.fetch_sub((mask & old).count_ones(), Ordering::Relaxed);
                    true
                });
            }
            None::<()>
        });
    }

    /// The first byte of a range inside the allocation whose state is `value`.
    fn first(&self, start: u64, len: u64, value: bool) -> Option<u64> {
        self.pages(start, len, |page, from, to| {
            let known = self.pages[page].load(Ordering::Acquire);
            let base = page as u64 * PAGE;
            if known.is_null() || known == all() {
                return ((known == all()) == value).then_some(base + from);
            }
            // SAFETY: neither null nor `ALL`: made by `bits`, freed only when `self` is dropped.
            let bits = unsafe { &*known };
            if bits.set.load(Ordering::Relaxed) == PAGE as u32 {
                return value.then_some(base + from);
            }
            let mut found = None;
            words(from, to, |word, mask| {
                let state = bits.words[word].load(Ordering::Relaxed);
                let hits = mask & if value { state } else { !state };
                if hits != 0 {
                    found = Some(base + word as u64 * 64 + u64::from(hits.trailing_zeros()));
                }
                hits == 0
            });
            found
        })
    }

    /// The first byte of a range inside the allocation that nothing wrote.
    #[inline]
    pub(super) fn first_undefined(&self, start: u64, len: u64) -> Option<u64> {
        self.first(start, len, false)
    }

    /// Copies the state of `len` bytes at `from` of `source` to `to`; ranges of one allocation must not overlap.
    pub(super) fn copy_from(&self, to: u64, source: &Defined, from: u64, len: u64) {
        let mut at = 0;
        while at < len {
            let gap = source.first_undefined(from + at, len - at).map_or(len, |b| b - from);
            self.define(to + at, gap - at);
            let next = source.first(from + gap, len - gap, true).map_or(len, |b| b - from);
            self.undefine(to + gap, next - gap);
            at = next;
        }
    }
}

impl Drop for Defined {
    fn drop(&mut self) {
        for slot in &mut self.pages {
            let bits = *slot.get_mut();
            if !bits.is_null() && bits != all() {
                // SAFETY: made by `Box::into_raw` in `bits`, and nobody uses it any more.
                drop(unsafe { Box::from_raw(bits) });
            }
        }
    }
}

/// Calls `f` with each word of a bitmap that holds bits of `from..to`, and which bits; stops at false.
#[inline]
pub(super) fn words(from: u64, to: u64, mut f: impl FnMut(usize, u64) -> bool) {
    let mut at = from;
    while at < to {
        let word = at / 64;
        let stop = to.min((word + 1) * 64);
        let count = stop - at;
        let mask = (u64::MAX >> (64 - count)) << (at % 64);
        if !f(word as usize, mask) {
            return;
        }
        at = stop;
    }
}
