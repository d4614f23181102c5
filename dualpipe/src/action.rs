//! The steps of a rank: forward, backward, and the two halves of a backward.

use std::fmt;

/// What a rank does with one chunk of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ActionKind {
    /// Forward.
    F,
    /// Full backward: for the inputs, then for the weights.
    B,
    /// Backward for the inputs only.
    I,
    /// Backward for the weights only, at any time after the `I` of the same chunk.
    W,
}

impl ActionKind {
    /// All kinds.
    pub const ALL: [ActionKind; 4] = [ActionKind::F, ActionKind::B, ActionKind::I, ActionKind::W];

    /// The letter: `F`, `B`, `I` or `W`.
    pub fn letter(self) -> char {
        match self {
            ActionKind::F => 'F',
            ActionKind::B => 'B',
            ActionKind::I => 'I',
            ActionKind::W => 'W',
        }
    }

    /// The kind with this letter.
    pub fn from_letter(letter: &str) -> Option<ActionKind> {
        match letter {
            "F" => Some(ActionKind::F),
            "B" => Some(ActionKind::B),
            "I" => Some(ActionKind::I),
            "W" => Some(ActionKind::W),
            _ => None,
        }
    }
}

/// One unit of work of a rank.
///
/// `direction` tells which of the rank's stages it is about (see [`crate::Placement`]); `chunk` counts the micro-batches
/// of that direction from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Action {
    /// What is done.
    pub kind: ActionKind,
    /// Which of the rank's stages: 0 where it holds one.
    pub direction: u8,
    /// The micro-batch, counted within the direction.
    pub chunk: usize,
}

impl Action {
    /// An action from its three parts.
    pub fn new(kind: ActionKind, direction: u8, chunk: usize) -> Action {
        Action { kind, direction, chunk }
    }
}

impl fmt::Display for Action {
    /// As in `F1.4`: forward of chunk 4 in direction 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}.{}", self.kind.letter(), self.direction, self.chunk)
    }
}

/// What a rank does at one time: one action, or a forward and a full backward that overlap each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// One action.
    One(Action),
    /// A forward (first) and a full backward (second) of different chunks, rearranged so that the communication of each
    /// hides behind the computation of the other.
    Pair(Action, Action),
}

impl Step {
    /// The actions of the step, one or two, in order.
    pub fn actions(&self) -> impl Iterator<Item = Action> + use<> {
        let (first, second) = match *self {
            Step::One(action) => (action, None),
            Step::Pair(forward, backward) => (forward, Some(backward)),
        };
        std::iter::once(first).chain(second)
    }

    /// Whether this is an overlapped pair.
    pub fn is_pair(&self) -> bool {
        matches!(self, Step::Pair(..))
    }
}

impl fmt::Display for Step {
    /// As in `F0.3` or `F0.3+B1.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::One(action) => write!(f, "{action}"),
            Step::Pair(forward, backward) => write!(f, "{forward}+{backward}"),
        }
    }
}
