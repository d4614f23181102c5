//! Messages that have been read become messages to send: what a thread hands out it has taken in before, so that it touches no fresh memory.

use std::any::Any;
use std::cell::RefCell;

use bytemuck::Pod;

/// Buffers that a thread keeps at most.
const KEPT: usize = 8;
/// Bytes of the largest buffer that a thread keeps.
const LARGEST: usize = 16 << 20;

thread_local! {
    static STOCK: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// `len` values that hold anything.
pub(crate) fn take<T: Pod>(len: usize) -> Vec<T> {
    let fits = |buffer: &Box<dyn Any>| buffer.downcast_ref::<Vec<T>>().is_some_and(|buffer| buffer.capacity() >= len);
    // A thread's last values are dropped while its stock is no longer there.
    let found = STOCK.try_with(|stock| {
        let mut stock = stock.borrow_mut();
        let at = stock.iter().rposition(fits)?;
        stock.swap_remove(at).downcast::<Vec<T>>().ok()
    });
    match found.ok().flatten() {
        Some(mut buffer) => {
            buffer.resize(len, T::zeroed());
            *buffer
        }
        None => bytemuck::allocation::zeroed_vec(len),
    }
}

/// Keeps a buffer for [`take`], or drops it.
pub(crate) fn give<T: Pod>(buffer: Vec<T>) {
    let bytes = buffer.capacity() * size_of::<T>();
    if bytes == 0 || bytes > LARGEST {
        return;
    }
    // As above: then it is dropped here.
    let _ = STOCK.try_with(|stock| {
        let mut stock = stock.borrow_mut();
        if stock.len() < KEPT {
            stock.push(Box::new(buffer));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_taken() {
        let mut buffer: Vec<u16> = take(100);
        assert_eq!(buffer, [0; 100]);
        buffer.fill(7);
        let place = buffer.as_ptr();
        give(buffer);
        // Neither another type nor more room than there is.
        assert_eq!(take::<u32>(10), [0; 10]);
        assert_eq!(take::<u16>(1000), [0; 1000]);
        let shorter: Vec<u16> = take(60);
        assert_eq!((shorter.as_ptr(), shorter.len()), (place, 60));
        assert_eq!(shorter, [7; 60]);
        give(shorter);
        let longer: Vec<u16> = take(90);
        assert_eq!(longer.as_ptr(), place);
        assert_eq!((&longer[..60], &longer[60..]), (&[7; 60][..], &[0; 30][..]));
        for _ in 0..2 * KEPT {
            give(vec![1u8; 10]);
        }
        give(Vec::<u8>::new());
        assert!(STOCK.with(|stock| stock.borrow().len()) <= KEPT);
    }
}
