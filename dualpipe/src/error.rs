//! The errors of this crate.

use crate::Kind;

/// What can be wrong with a schedule, with costs, or with spans.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that no schedule has.
    #[error("schedule: expected one of {expected}, found '{got}'")]
    UnknownKind {
        /// The names there are.
        expected: String,
        /// The name given.
        got: String,
    },
    /// A number of ranks that the schedule cannot take.
    #[error("schedule {kind}: expected {expected} ranks, found {got}")]
    Ranks {
        /// The schedule.
        kind: Kind,
        /// What it can take.
        expected: String,
        /// What was asked for.
        got: usize,
    },
    /// A number of micro-batches that the schedule cannot take.
    #[error("schedule {kind} on {ranks} ranks: expected {expected} micro-batches, found {got}")]
    MicroBatches {
        /// The schedule.
        kind: Kind,
        /// The number of ranks.
        ranks: usize,
        /// What it can take.
        expected: String,
        /// What was asked for.
        got: usize,
    },
    /// A part of the input has the wrong size or value.
    #[error("{what}: expected {expected}, found {got}")]
    Shape {
        /// The part.
        what: String,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// Text that is not a schedule in JSON.
    #[error("schedule: expected JSON as written by `Schedule::to_json`, found {message}")]
    Json {
        /// What the parser says, with line and column.
        message: String,
    },
    /// A cell of a table of actions that is not of the form.
    #[error("schedule: row {row}, cell {cell}: expected {expected}, found '{got}'")]
    Cell {
        /// The index of the row.
        row: usize,
        /// The index of the cell in the row.
        cell: usize,
        /// What it must be.
        expected: String,
        /// What it is, or its beginning.
        got: String,
    },
    /// Something that is well-formed, but that this crate, or the form asked for, cannot express.
    #[error("{what}: not supported: {why}")]
    Unsupported {
        /// What it is.
        what: String,
        /// Why not.
        why: String,
    },
    /// A step that cannot stand where it stands.
    #[error("schedule: rank {rank}, step {step}: {message}")]
    Step {
        /// The rank.
        rank: usize,
        /// The index of the step in the rank's list.
        step: usize,
        /// What is wrong with it.
        message: String,
    },
    /// An action is missing.
    #[error("schedule: rank {rank} lacks {missing}")]
    Missing {
        /// The rank.
        rank: usize,
        /// The action, or the actions of which one is needed.
        missing: String,
    },
    /// The ranks wait for each other in a circle.
    #[error("schedule: deadlock: rank {rank} waits at step {step} ({action}) for {waits_for}")]
    Deadlock {
        /// A rank that never gets on.
        rank: usize,
        /// The index of the step at which it stands.
        step: usize,
        /// That step.
        action: String,
        /// What it waits for.
        waits_for: String,
    },
    /// The ranks could not exchange what they measured.
    #[error(transparent)]
    Comm(v3_ranks::Error),
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
