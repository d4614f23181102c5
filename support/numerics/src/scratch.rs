//! Buffers aligned to a cache line, and a small stock of them for each thread.

use std::cell::RefCell;

/// A cache line of values.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A buffer of f32 aligned to 64 bytes.
#[derive(Clone, Default)]
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// At least `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Aligned {
        Aligned(vec![Line([0.0; 16]); len.div_ceil(16)])
    }

    /// Room for at least `len` values; what they are is unspecified.
    fn reserve(&mut self, len: usize) {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
    }

    /// The number of values there is room for.
    pub(crate) fn len(&self) -> usize {
        self.0.len() * 16
    }
    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }
    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

thread_local! {
    static STOCK: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// The most buffers that a thread keeps.
const KEPT: usize = 6;
/// The largest buffer that a thread keeps, in values.
const KEPT_LEN: usize = 4 << 20;

/// A buffer on loan from the thread's stock, returned when dropped. It is taken out of the stock while in use, so a thread that runs
/// another task in the middle of its own (as rayon's do while they wait) gets another buffer.
pub(crate) struct Scratch(Aligned);

impl Scratch {
    /// Room for at least `len` values, which hold anything.
    pub(crate) fn take(len: usize) -> Scratch {
        let mut buffer = STOCK.with(|stock| stock.borrow_mut().pop()).unwrap_or_default();
        buffer.reserve(len);
        Scratch(buffer)
    }
}

impl std::ops::Deref for Scratch {
    type Target = Aligned;
    fn deref(&self) -> &Aligned {
        &self.0
    }
}
impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Aligned {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // A thread that is being torn down has no stock any more.
        let _ = STOCK.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            if stock.len() < KEPT && buffer.len() <= KEPT_LEN {
                stock.push(buffer);
            }
        });
    }
}
