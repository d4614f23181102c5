//! Which arrangement a step takes.

use crate::error::{Error, Result};
use crate::overlap::arrangement::Arrangement;
use crate::overlap::component::{Component, Half, Pairing};

/// How [`crate::execute_with`] orders the components of a step, where the model offers them.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub enum Overlap {
    /// One component after another: [`Arrangement::sequential`].
    #[default]
    Off,
    /// The order of the DeepSeek-V3 report: [`Arrangement::default`].
    Default,
    /// Arrangements found by search; a step whose components have none is an error.
    Tuned(Arrangements),
    /// A different random order for every step, from this seed: for tests.
    Random(u64),
}

/// Arrangements by the components they are for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arrangements {
    entries: Vec<(Pairing, Arrangement)>,
}

impl Arrangements {
    /// None yet.
    pub fn new() -> Arrangements {
        Arrangements::default()
    }

    /// Adds one, in place of another for the same components.
    ///
    /// # Errors
    /// As [`Arrangement::check`].
    pub fn insert(&mut self, pairing: Pairing, arrangement: Arrangement) -> Result<()> {
        arrangement.check(&pairing)?;
        match self.entries.iter_mut().find(|(other, _)| *other == pairing) {
            Some((_, old)) => *old = arrangement,
            None => self.entries.push((pairing, arrangement)),
        }
        Ok(())
    }

    /// That for these components.
    pub fn get(&self, pairing: &Pairing) -> Option<&Arrangement> {
        self.entries.iter().find(|(other, _)| other == pairing).map(|(_, arrangement)| arrangement)
    }

    /// All, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&Pairing, &Arrangement)> {
        self.entries.iter().map(|(pairing, arrangement)| (pairing, arrangement))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Overlap {
    /// The arrangement for a step; `position` tells steps apart where chance decides.
    pub(crate) fn arrangement(&self, pairing: &Pairing, position: u64) -> Result<Arrangement> {
        match self {
            Overlap::Off => Ok(Arrangement::sequential(pairing)),
            Overlap::Default => Ok(Arrangement::default(pairing)),
            Overlap::Random(seed) => {
                Ok(Arrangement::random(pairing, seed.wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
            }
            Overlap::Tuned(set) => set.get(pairing).cloned().ok_or_else(|| Error::Shape {
                what: "tuned arrangements".into(),
                expected: format!(
                    "one for {} and {}",
                    summary(Half::Forward, pairing.half(Half::Forward)),
                    summary(Half::Backward, pairing.half(Half::Backward))
                ),
                got: format!("{} others", set.len()),
            }),
        }
    }
}

fn summary(half: Half, list: &[Component]) -> String {
    match (list.first(), list.last()) {
        (Some(first), Some(last)) => format!("the {} components {half} from {first} to {last}", list.len()),
        _ => format!("no components {half}"),
    }
}
