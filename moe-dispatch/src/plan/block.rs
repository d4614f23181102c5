//! What a rank knows of another rank's tokens: expert slots and weights, as they travel in a plan's messages.

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::plan::MASKED;
use crate::router::Routing;

/// The expert slots and weights of some tokens of one rank, `[rows, k]`, ascending by logical expert inside a row, masked choices last.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Block {
    pub slots: Vec<u32>,
    pub weights: Vec<f32>,
    /// Rows of channel c: `channels[c]..channels[c + 1]`.
    pub channels: Vec<u32>,
}

/// How many of the elements of an ascending list lie below each bound.
pub(crate) fn below(list: &[u32], bounds: &[u32]) -> Vec<u32> {
    bounds.iter().map(|&bound| list.partition_point(|&row| row < bound) as u32).collect()
}

impl Block {
    pub fn pick(&self, rows: &[u32], top_k: usize) -> Block {
        let mut block = Block {
            slots: Vec::with_capacity(rows.len() * top_k),
            weights: Vec::with_capacity(rows.len() * top_k),
            channels: below(rows, &self.channels),
        };
        for &row in rows {
            let range = row as usize * top_k..(row as usize + 1) * top_k;
            block.slots.extend_from_slice(&self.slots[range.clone()]);
            block.weights.extend_from_slice(&self.weights[range]);
        }
        block
    }

    /// Rows, of which each has the slots of `top_k` choices.
    pub fn rows(&self) -> usize {
        self.channels.last().map_or(0, |&end| end as usize)
    }

    /// As a message: k, the number of channels, the first row of each but the first, and the number of rows; then slots, then the bits of
    /// the weights.
    pub fn encode(&self, top_k: usize) -> Vec<u32> {
        let channels = self.channels.len() - 1;
        let mut words = Vec::with_capacity(2 + channels + 2 * self.slots.len());
        words.extend([top_k as u32, channels as u32]);
        words.extend_from_slice(&self.channels[1..]);
        words.extend_from_slice(&self.slots);
        words.extend(self.weights.iter().map(|weight| weight.to_bits()));
        words
    }

    /// Reads a message of a rank that should have the same `top_k`, `channels` and number of slots, and at most `capacity` rows.
    pub fn decode(words: &[u32], top_k: usize, channels: usize, slots: usize, capacity: Option<usize>) -> Result<Block> {
        let refuse = |expected: String, got: String| Err(Error::Shape { what: "routing of another rank", expected, got });
        let [their_k, their_channels, rest @ ..] = words else {
            return refuse("a header".into(), format!("a message of {} words", words.len()));
        };
        if *their_k as usize != top_k || *their_channels as usize != channels || rest.len() < channels {
            return refuse(
                format!("{top_k} experts a token in {channels} channels"),
                format!("{their_k} in {their_channels}, {} words", words.len()),
            );
        }
        let (ends, entries) = rest.split_at(channels);
        let rows = ends.last().map_or(0, |&end| end as usize);
        let expected = rows.checked_mul(top_k).and_then(|n| n.checked_mul(2));
        if expected != Some(entries.len()) || !ends.is_sorted() {
            return refuse(format!("{rows} rows of {top_k} slots and weights"), format!("{} words", entries.len()));
        }
        if capacity.is_some_and(|capacity| rows > capacity) {
            return refuse(format!("at most {} tokens", capacity.unwrap_or(0)), rows.to_string());
        }
        let (ids, weights) = entries.split_at(entries.len() / 2);
        check_slots(ids, top_k, slots)?;
        let channels = std::iter::once(0).chain(ends.iter().copied()).collect();
        Ok(Block { slots: ids.to_vec(), weights: weights.iter().map(|&bits| f32::from_bits(bits)).collect(), channels })
    }
}

/// Whether rows of slots are sound: masked choices are the last of a row, and the others exist.
pub(crate) fn check_slots(ids: &[u32], top_k: usize, slots: usize) -> Result<()> {
    let sound = |row: &[u32]| present(row).iter().all(|&slot| (slot as usize) < slots);
    if ids.chunks_exact(top_k).all(sound) {
        return Ok(());
    }
    let expected = format!("slots below {slots}, masked ones last");
    Err(Error::Shape { what: "routing of another rank", expected, got: "others".into() })
}

/// The slots of a row that are not masked.
#[inline]
pub(crate) fn present(slots: &[u32]) -> &[u32] {
    let end = slots.iter().rposition(|&slot| slot != MASKED).map_or(0, |last| last + 1);
    &slots[..end]
}

/// This rank's tokens with their slots ascending by logical expert, and for each choice that is not masked, in that order, its place in `[T, k]`.
pub(crate) fn sort_routing(layout: &Layout, me: usize, routing: &Routing, channels: usize) -> Result<(Block, Vec<u32>)> {
    let (tokens, top_k) = (routing.tokens, routing.top_k);
    let entries = tokens.checked_mul(top_k).filter(|&n| (1..1 << 24).contains(&top_k) && n < u32::MAX as usize);
    let sound = |len: usize| entries == Some(len);
    if !sound(routing.indices.len()) || !sound(routing.weights.len()) {
        return Err(Error::Shape {
            what: "routing",
            expected: format!("{tokens} x {top_k} indices and weights, at least one a token, fewer than 2^24"),
            got: format!("{} indices and {} weights", routing.indices.len(), routing.weights.len()),
        });
    }
    let mut slots = Vec::with_capacity(tokens * top_k);
    let mut weights = Vec::with_capacity(tokens * top_k);
    let mut choice = Vec::with_capacity(tokens * top_k);
    // The expert in the upper half, its place in the lower: masked choices come last.
    let mut order: Vec<u64> = Vec::with_capacity(top_k.min(routing.indices.len()));
    for (token, experts) in routing.indices.chunks_exact(top_k).enumerate() {
        order.clear();
        order.extend(experts.iter().zip((token * top_k) as u64..).map(|(&expert, at)| u64::from(expert) << 32 | at));
        order.sort_unstable();
        let masked = order.iter().rev().take_while(|&&entry| (entry >> 32) as u32 == MASKED).count();
        let chosen = &order[..top_k - masked];
        if chosen.last().is_some_and(|last| (last >> 32) as usize >= layout.num_experts()) {
            let expected = format!("experts below {}", layout.num_experts());
            return Err(Error::Shape { what: "routing indices", expected, got: format!("{experts:?} for token {token}") });
        }
        if chosen.windows(2).any(|pair| pair[0] >> 32 == pair[1] >> 32) {
            let expected = "different experts for a token".to_string();
            return Err(Error::Shape { what: "routing indices", expected, got: format!("{experts:?} for token {token}") });
        }
        for &entry in chosen {
            let (expert, at) = ((entry >> 32) as usize, entry as u32);
            slots.push(layout.slot_for(expert, me, token) as u32);
            weights.push(routing.weights[at as usize]);
            choice.push(at);
        }
        slots.resize((token + 1) * top_k, MASKED);
        weights.resize((token + 1) * top_k, 0.0);
    }
    // Channel c has the tokens from c T / C on.
    let channels = (0..=channels).map(|channel| (channel as u64 * tokens as u64 / channels as u64) as u32).collect();
    Ok((Block { slots, weights, channels }, choice))
}

/// For each place among `places` the rows of a block that have an entry there.
pub(crate) fn rows_by_place(block: &Block, top_k: usize, place_of_slot: &[u32], places: usize) -> Vec<Vec<u32>> {
    let mut rows = vec![Vec::new(); places];
    for (row, slots) in block.slots.chunks_exact(top_k).enumerate() {
        let slots = present(slots);
        for (at, &slot) in slots.iter().enumerate() {
            let place = place_of_slot[slot as usize];
            if slots[..at].iter().all(|&before| place_of_slot[before as usize] != place) {
                rows[place as usize].push(row as u32);
            }
        }
    }
    rows
}

/// `rows` with every row repeated once for each of its entries on `rank`.
pub(crate) fn copies(block: &Block, rows: &[u32], top_k: usize, rank_of_slot: &[u32], rank: usize) -> Vec<u32> {
    let mut copies = Vec::with_capacity(rows.len());
    for &row in rows {
        let slots = present(&block.slots[row as usize * top_k..(row as usize + 1) * top_k]);
        let there = slots.iter().filter(|&&slot| rank_of_slot[slot as usize] as usize == rank).count();
        copies.extend(std::iter::repeat_n(row, there));
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(indices: &[u32], top_k: usize) -> Routing {
        let weights = (0..indices.len()).map(|i| i as f32).collect();
        Routing { tokens: indices.len() / top_k, top_k, indices: indices.to_vec(), weights, scores: Vec::new() }
    }

    #[test]
    fn what_is_encoded_is_decoded() -> Result<()> {
        let layout = Layout::new(6, 2, 1)?;
        let (block, choice) = sort_routing(&layout, 0, &routing(&[5, MASKED, 0, 3, 1, 4, MASKED, MASKED, MASKED], 3), 2)?;
        assert_eq!(block.slots, [0, 5, MASKED, 1, 3, 4, MASKED, MASKED, MASKED]);
        assert_eq!((choice, block.channels.clone()), (vec![2, 0, 4, 3, 5], vec![0, 1, 3]));
        assert_eq!(Block::decode(&block.encode(3), 3, 2, 6, Some(3))?, block);
        let some = block.pick(&[1], 3);
        assert_eq!(
            (some.slots.clone(), some.weights.clone(), some.channels.clone()),
            (vec![1, 3, 4], vec![4.0, 3.0, 5.0], vec![0, 0, 1])
        );
        assert_eq!(Block::decode(&some.encode(3), 3, 2, 6, None)?, some);
        Ok(())
    }

    #[test]
    fn bad_messages_are_errors() -> Result<()> {
        let (block, _) = sort_routing(&Layout::new(6, 2, 1)?, 0, &routing(&[5, 0, 3, 1], 2), 2)?;
        let good = block.encode(2);
        assert_eq!(good[..4], [2, 2, 1, 2]);
        let with = |at: usize, word: u32| {
            let mut words = good.clone();
            words[at] = word;
            words
        };
        for (words, expected) in [
            (vec![], "a header"),
            (vec![2], "a header"),
            (vec![2, 2, 1], "2 experts a token in 2 channels"),
            (with(0, 3), "2 experts a token in 2 channels"),
            (with(1, 3), "2 experts a token in 2 channels"),
            (with(2, 3), "2 rows of 2 slots and weights"),
            (with(3, 1), "1 rows of 2 slots and weights"),
            (with(3, u32::MAX), "slots and weights"),
            (with(4, 6), "slots below 6"),
            (with(4, MASKED), "masked ones last"),
            (good[..good.len() - 1].to_vec(), "2 rows of 2 slots and weights"),
        ] {
            let error = Block::decode(&words, 2, 2, 6, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{words:?}: {error}");
        }
        let error = Block::decode(&good, 2, 2, 6, Some(1)).unwrap_err().to_string();
        assert!(error.contains("at most 1 tokens, got 2"), "{error}");
        Ok(())
    }
}
