//! The state of an mbarrier as a value (PTX ISA 9.0, sections 9.7.13.15.1 to 9.7.13.15.7).
//!
//! A phase completes when no arrival is pending *and* the transaction count is zero; then as many arrivals are pending again as are expected, and the
//! next phase begins. The transaction count may be negative for a while: bytes can land before they are announced.
//!
//! Packed into the object's 8 bytes, from bit 0: expected arrivals (20 bits), pending arrivals (20), transaction count (21, two's
//! complement), phase (3, counting on from 0). Hardware shows none of this; three bits of the phase instead of one let a stale state of
//! `mbarrier.arrive` be told from a fresh one.

use std::fmt;

/// Most arrivals: 2^20 - 1.
pub const MOST_ARRIVALS: u32 = (1 << 20) - 1;
/// Largest transaction count, either sign: 2^20 - 1.
pub const MOST_TX: i64 = (1 << 20) - 1;

/// The state of an mbarrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// Arrivals that each phase to come expects.
    pub expected: u32,
    /// Arrivals that this phase still waits for.
    pub pending: u32,
    /// Bytes announced and not yet landed.
    pub tx: i32,
    /// Phases completed, modulo 8.
    pub phase: u8,
}

/// An operation that an mbarrier's state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misuse {
    /// A count outside of 1 to 2^20 - 1.
    Count(u32),
    /// More arrivals than are pending.
    TooMany(u32),
    /// More arrivals dropped than later phases expect.
    Dropped,
    /// `.noComplete` would complete the phase.
    Completes,
    /// The transaction count would leave its range.
    Tx(i64),
    /// More pending arrivals than can be counted.
    Overflow,
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misuse::Count(count) => write!(f, "a count of {count} is not from 1 to {MOST_ARRIVALS}"),
            Misuse::TooMany(count) => write!(f, "{count} more arrivals than the phase expects are too many"),
            Misuse::Dropped => f.write_str("more arrivals are dropped than later phases expect"),
            Misuse::Completes => f.write_str(".noComplete must not complete the phase, and this arrival would"),
            Misuse::Tx(tx) => write!(f, "the transaction count would become {tx}, its range is -{MOST_TX} to {MOST_TX}"),
            Misuse::Overflow => write!(f, "more than {MOST_ARRIVALS} arrivals would be pending"),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrived = self.expected.saturating_sub(self.pending);
        write!(
            f,
            "phase of parity {}: {arrived} of {} arrivals, transaction count {}",
            u8::from(self.parity()),
            self.expected,
            self.tx
        )
    }
}

impl Phase {
    /// A fresh object.
    pub fn new(count: u32) -> Result<Phase, Misuse> {
        if count == 0 || count > MOST_ARRIVALS {
            return Err(Misuse::Count(count));
        }
        Ok(Phase { expected: count, pending: count, tx: 0, phase: 0 })
    }

    /// As it lies in memory.
    pub fn pack(self) -> u64 {
        u64::from(self.expected)
            | u64::from(self.pending) << 20
            | (u64::from(self.tx as u32) & 0x1f_ffff) << 40
            | u64::from(self.phase & 7) << 61
    }

    /// From memory.
    pub fn unpack(bits: u64) -> Phase {
        let tx = (bits >> 40 & 0x1f_ffff) as u32;
        Phase {
            expected: (bits & 0xf_ffff) as u32,
            pending: (bits >> 20 & 0xf_ffff) as u32,
            tx: ((tx << 11) as i32) >> 11,
            phase: (bits >> 61) as u8,
        }
    }

    /// Of the phase in progress.
    pub fn parity(self) -> bool {
        self.phase & 1 != 0
    }

    /// Whether the phase of this parity, the one in progress or the one before, has completed.
    pub fn completed(self, parity: bool) -> bool {
        self.parity() != parity
    }

    /// Whether the phase that a state of `arrive` was taken in has completed; None when that is neither the phase in progress nor the one before.
    pub fn completed_since(self, state: Phase) -> Option<bool> {
        match self.phase.wrapping_sub(state.phase) & 7 {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// Completes the phase if nothing is missing; whether it did.
    fn settle(&mut self) -> bool {
        if self.pending != 0 || self.tx != 0 {
            return false;
        }
        self.pending = self.expected;
        self.phase = (self.phase + 1) & 7;
        true
    }

    /// `count` arrivals, which with `drop` are not expected in later phases; whether the phase completes.
    pub fn arrive(&mut self, count: u32, drop: bool, no_complete: bool) -> Result<bool, Misuse> {
        if count == 0 || count > MOST_ARRIVALS {
            return Err(Misuse::Count(count));
        }
        if count > self.pending {
            return Err(Misuse::TooMany(count - self.pending));
        }
        if drop && count > self.expected {
            return Err(Misuse::Dropped);
        }
        if no_complete && count == self.pending && self.tx == 0 {
            return Err(Misuse::Completes);
        }
        self.pending -= count;
        if drop {
            self.expected -= count;
        }
        Ok(self.settle())
    }

    /// Announces bytes.
    pub fn expect_tx(&mut self, bytes: u32) -> Result<(), Misuse> {
        self.add_tx(i64::from(bytes))
    }

    /// Bytes have landed; whether the phase completes.
    pub fn complete_tx(&mut self, bytes: u32) -> Result<bool, Misuse> {
        self.add_tx(-i64::from(bytes))?;
        Ok(self.settle())
    }

    fn add_tx(&mut self, bytes: i64) -> Result<(), Misuse> {
        let tx = i64::from(self.tx) + bytes;
        if tx.abs() > MOST_TX {
            return Err(Misuse::Tx(tx));
        }
        self.tx = tx as i32;
        Ok(())
    }

    /// One arrival more is pending in this phase: what `cp.async.mbarrier.arrive` does before it arrives.
    pub fn add_pending(&mut self) -> Result<(), Misuse> {
        if self.pending >= MOST_ARRIVALS {
            return Err(Misuse::Overflow);
        }
        self.pending += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The manual's words with unbounded numbers: a phase is over when the arrivals it began with have come and as many bytes have landed as
    /// were announced.
    #[derive(Debug, Default)]
    struct Model {
        completed: u64,
        wanted: u32,
        next: u32,
        arrived: u32,
        announced: u64,
        landed: u64,
    }

    impl Model {
        fn look(&mut self) -> bool {
            let over = self.arrived == self.wanted && self.announced == self.landed;
            if over {
                *self = Model { completed: self.completed + 1, wanted: self.next, next: self.next, ..Model::default() };
            }
            over
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Arrive { count: u32, drop: bool, no_complete: bool, tx: Option<u32> },
        Expect(u32),
        Land(u32),
        More,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let bytes = || prop_oneof![Just(16u32), Just(128), 0u32..600_000];
        let arrive = (1u32..5, any::<bool>(), any::<bool>(), proptest::option::of(bytes()));
        let event = prop_oneof![
            4 => arrive.prop_map(|(count, drop, no_complete, tx)| Event::Arrive {
                count: if tx.is_some() { 1 } else { count },
                drop: drop && count == 1,
                no_complete: no_complete && count == 2,
                tx,
            }),
            1 => bytes().prop_map(Event::Expect),
            3 => bytes().prop_map(Event::Land),
            1 => Just(Event::More),
        ];
        proptest::collection::vec(event, 1..60)
    }

    proptest! {
        #[test]
        fn is_what_the_manual_says(count in 1u32..6, events in events()) {
            let mut phase = Phase::new(count).unwrap();
            let mut model = Model { wanted: count, next: count, ..Model::default() };
            for event in events {
                let before = phase;
                let tx = model.announced as i64 - model.landed as i64;
                prop_assert_eq!(Phase::unpack(phase.pack()), phase);
                match event {
                    Event::Arrive { count, drop, no_complete, tx: bytes } => {
                        let announced = tx + bytes.map_or(0, i64::from);
                        if announced.abs() > MOST_TX {
                            prop_assert_eq!(phase.expect_tx(bytes.unwrap()), Err(Misuse::Tx(announced)));
                            continue;
                        }
                        if let Some(bytes) = bytes {
                            phase.expect_tx(bytes).unwrap();
                            model.announced += u64::from(bytes);
                        }
                        let missing = model.wanted - model.arrived;
                        let result = phase.arrive(count, drop, no_complete);
                        if count > missing {
                            prop_assert_eq!(result, Err(Misuse::TooMany(count - missing)));
                        } else if drop && count > model.next {
                            prop_assert_eq!(result, Err(Misuse::Dropped));
                        } else if no_complete && count == missing && announced == 0 {
                            prop_assert_eq!(result, Err(Misuse::Completes));
                        } else {
                            model.arrived += count;
                            model.next -= if drop { count } else { 0 };
                            prop_assert_eq!(result, Ok(model.look()));
                        }
                    }
                    Event::Expect(bytes) => {
                        let announced = tx + i64::from(bytes);
                        if announced.abs() > MOST_TX {
                            prop_assert_eq!(phase.expect_tx(bytes), Err(Misuse::Tx(announced)));
                        } else {
                            prop_assert_eq!(phase.expect_tx(bytes), Ok(()));
                            model.announced += u64::from(bytes);
                        }
                    }
                    Event::Land(bytes) => {
                        let landed = tx - i64::from(bytes);
                        if landed.abs() > MOST_TX {
                            prop_assert_eq!(phase.complete_tx(bytes), Err(Misuse::Tx(landed)));
                        } else {
                            model.landed += u64::from(bytes);
                            prop_assert_eq!(phase.complete_tx(bytes), Ok(model.look()));
                        }
                    }
                    Event::More => {
                        phase.add_pending().unwrap();
                        model.wanted += 1;
                    }
                }
                prop_assert_eq!(u64::from(phase.phase), model.completed % 8);
                prop_assert_eq!(phase.completed(false), model.completed % 2 == 1);
                prop_assert_eq!(phase.completed(true), model.completed.is_multiple_of(2));
                prop_assert_eq!(phase.pending, model.wanted - model.arrived);
                prop_assert_eq!(i64::from(phase.tx), model.announced as i64 - model.landed as i64);
                // A state taken before an event says afterwards whether its phase is over.
                prop_assert_eq!(phase.completed_since(before), Some(phase.phase != before.phase));
            }
        }

        #[test]
        fn packs_without_loss(expected in 0u32..1 << 20, pending in 0u32..1 << 20, tx in -MOST_TX..=MOST_TX, phase in 0u8..8) {
            let all = Phase { expected, pending, tx: tx as i32, phase };
            prop_assert_eq!(Phase::unpack(all.pack()), all);
        }

        #[test]
        fn every_word_is_a_state(bits: u64) {
            prop_assert_eq!(Phase::unpack(bits).pack(), bits);
        }
    }

    #[test]
    fn a_fresh_object_passes_for_parity_one() {
        let phase = Phase::new(1).unwrap();
        assert!(phase.completed(true));
        assert!(!phase.completed(false));
    }

    #[test]
    fn counts_have_their_range() {
        assert_eq!(Phase::new(0), Err(Misuse::Count(0)));
        assert_eq!(Phase::new(1 << 20), Err(Misuse::Count(1 << 20)));
        assert_eq!(Phase::new(MOST_ARRIVALS).unwrap().add_pending(), Err(Misuse::Overflow));
        assert_eq!(Phase::new(1).unwrap().arrive(0, false, false), Err(Misuse::Count(0)));
    }

    #[test]
    fn a_state_from_two_phases_ago_is_refused() {
        let mut phase = Phase::new(1).unwrap();
        let old = phase;
        assert_eq!(phase.arrive(1, false, false), Ok(true));
        assert_eq!(phase.completed_since(old), Some(true));
        assert_eq!(phase.arrive(1, false, false), Ok(true));
        assert_eq!(phase.completed_since(old), None);
    }
}
