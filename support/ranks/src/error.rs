//! What can go wrong between ranks.

/// The result of the operations of a [`Comm`](crate::Comm).
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation between ranks did not complete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another rank failed; the world is being taken down.
    #[error("rank {rank} failed in {operation}: {message}")]
    Aborted {
        /// World rank of the one that failed first.
        rank: usize,
        /// What it was doing.
        operation: String,
        /// Its own message.
        message: String,
    },
    /// A message holds another element type than the receiver asked for.
    #[error("rank {rank} received from rank {source_rank}: expected elements of type {expected}, got {got}")]
    TypeMismatch {
        /// World rank of the receiver.
        rank: usize,
        /// World rank of the sender.
        source_rank: usize,
        /// The type asked for.
        expected: &'static str,
        /// The type sent.
        got: String,
    },
    /// Two ranks of one group are in different collective operations.
    #[error("rank {rank} is in {operation} while rank {other} is in {other_operation}")]
    OperationMismatch {
        /// World rank of the one that noticed.
        rank: usize,
        /// What it was doing.
        operation: &'static str,
        /// World rank of the other.
        other: usize,
        /// What the other was doing.
        other_operation: String,
    },
    /// An argument has the wrong size, or differs between ranks that must agree on it.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// What it should have been.
        expected: String,
        /// What it was.
        got: String,
    },
    /// A rank that has returned can send no more messages.
    #[error("rank {rank} waits in {operation} for rank {source_rank}, which has ended without sending")]
    Ended {
        /// World rank of the receiver.
        rank: usize,
        /// What it was doing.
        operation: &'static str,
        /// World rank of the sender.
        source_rank: usize,
    },
    /// Every rank waits for a message and none is under way.
    #[error("every rank waits for a message and none is under way: {waits}")]
    Stalled {
        /// Who waits for whom.
        waits: String,
    },
    /// A lane was dropped before what was asked of it was done.
    #[error("lane {lane} of rank {rank} was dropped")]
    Closed {
        /// World rank of the lane.
        rank: usize,
        /// Name of the lane.
        lane: String,
    },
    /// A message could not be handed to another process.
    #[error("rank {rank} could not send to rank {destination}: {message}")]
    Transport {
        /// World rank of the sender.
        rank: usize,
        /// World rank of the receiver.
        destination: usize,
        /// What the transport says.
        message: String,
    },
    /// A call of MPI failed.
    #[error("{message}")]
    Mpi {
        /// The function and its text for the error.
        message: String,
    },
    /// Two different groups have the same number.
    #[error("the groups of ranks {first} and {second} have the same number")]
    Group {
        /// World ranks of the group made first.
        first: String,
        /// World ranks of the other.
        second: String,
    },
    /// A configuration that makes no sense.
    #[error("{what}: expected {expected}, got {got}")]
    Config {
        /// The field.
        what: &'static str,
        /// What it should have been.
        expected: String,
        /// What it was.
        got: String,
    },
}

/// Why [`run_threads`](crate::run_threads) ended early: the first rank that failed, and its message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} failed in {operation}: {message}")]
pub struct RanksError {
    /// World rank of the one that failed first.
    pub rank: usize,
    /// What it was doing: the operation between ranks that failed, or the label last set by
    /// [`Comm::set_label`](crate::Comm::set_label).
    pub operation: String,
    /// The text of its error, or of its panic.
    pub message: String,
}
