//! The model to beat: an order-2 byte model with Witten-Bell smoothing.
//!
//! The probability of a byte after the two before it interpolates the orders:
//!
//! P(b | h) = (c(h b) + T(h) P(b | h')) / (c(h) + T(h))
//!
//! with c the counts in the training text, T(h) the number of distinct bytes seen after context h, and h' the context without its
//! oldest byte; below order 0 stands the uniform distribution over 256 bytes. A context that was never seen leaves P(b | h').
//! (I. Witten and T. Bell, "The zero-frequency problem", 1991, method C.)

use std::collections::HashMap;

/// Counts of one context.
#[derive(Debug, Clone, Copy, Default)]
struct Context {
    total: u64,
    distinct: u64,
}

/// A fitted model.
#[derive(Debug, Clone)]
pub struct Order2 {
    /// Per order: the contexts, by their bytes as a number.
    contexts: [HashMap<u32, Context>; 3],
    /// Per order: the counts of context and next byte, by `context << 8 | byte`.
    counts: [HashMap<u32, u64>; 3],
}

/// The last `order` bytes before `at`, as a number.
fn context(text: &[u8], at: usize, order: usize) -> u32 {
    text[at - order..at].iter().fold(0, |c, b| c << 8 | u32::from(*b))
}

impl Order2 {
    /// Counts a text. The first bytes, which have no full context, are counted in the orders that they have.
    pub fn fit(text: &[u8]) -> Order2 {
        let mut model = Order2 { contexts: Default::default(), counts: Default::default() };
        for at in 0..text.len() {
            for order in 0..=at.min(2) {
                let context = context(text, at, order);
                let count = model.counts[order].entry(context << 8 | u32::from(text[at])).or_default();
                *count += 1;
                let seen = model.contexts[order].entry(context).or_default();
                seen.total += 1;
                seen.distinct += u64::from(*count == 1);
            }
        }
        model
    }

    /// Probability of `byte` after `history`, of which the last two bytes count.
    pub fn probability(&self, history: &[u8], byte: u8) -> f64 {
        let mut p = 1.0 / 256.0;
        for order in 0..=history.len().min(2) {
            let context = context(history, history.len(), order);
            if let Some(seen) = self.contexts[order].get(&context) {
                let count = self.counts[order].get(&(context << 8 | u32::from(byte))).copied().unwrap_or(0);
                p = (count as f64 + seen.distinct as f64 * p) / (seen.total + seen.distinct) as f64;
            }
        }
        p
    }

    /// Bits that the bytes of `text` from `first` on cost, each after those of `text` before it.
    pub fn bits(&self, text: &[u8], first: usize) -> f64 {
        (first..text.len()).map(|at| -self.probability(&text[..at], text[at]).log2()).sum()
    }

    /// Mean bits per byte of a held-out text, its first byte, which has no history, left out (as it is for the model that is
    /// compared). Zero for a text of fewer than two bytes.
    pub fn bits_per_byte(&self, text: &[u8]) -> f64 {
        if text.len() < 2 { 0.0 } else { self.bits(text, 1) / (text.len() - 1) as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_history_gives_a_distribution(text in prop::collection::vec(any::<u8>(), 0..200), history in prop::collection::vec(any::<u8>(), 0..4)) {
            let model = Order2::fit(&text);
            for history in [&history[..], &text[..text.len() / 2]] {
                let sum: f64 = (0..=255).map(|b| model.probability(history, b)).sum();
                // 256 terms, each rounded a few times.
                prop_assert!((sum - 1.0).abs() < 1e-12, "{sum}");
                prop_assert!((0..=255).all(|b| model.probability(history, b) > 0.0));
            }
        }
    }

    #[test]
    fn by_hand() {
        // "abab": order 0: a 2, b 2; after a: b 2; after b: a 1; after ab: a 1; after ba: b 1.
        let model = Order2::fit(b"abab");
        let a0 = (2.0 + 2.0 / 256.0) / 6.0;
        assert!((model.probability(b"", b'a') - a0).abs() < 1e-15);
        let a1 = (1.0 + a0) / 2.0;
        assert!((model.probability(b"b", b'a') - a1).abs() < 1e-15);
        assert!((model.probability(b"xab", b'a') - (1.0 + a1) / 2.0).abs() < 1e-15);
        // "zb" was never seen: what order 1 says.
        assert!((model.probability(b"zb", b'a') - a1).abs() < 1e-15);
        assert!((model.bits(b"ba", 1) + a1.log2()).abs() < 1e-12);
        assert!((Order2::fit(b"").bits_per_byte(b"hello") - 8.0).abs() < 1e-12);
    }

    #[test]
    fn learns_english() {
        let text = crate::text::default_text();
        let (train, rest) = text.split_at(text.len() - text.len() / 20);
        let bits = Order2::fit(train).bits_per_byte(rest);
        assert!((1.5..3.0).contains(&bits), "{bits}");
    }
}
