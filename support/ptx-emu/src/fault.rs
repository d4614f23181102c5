//! What goes wrong while a kernel runs, before it is known where: executors return a [`Fault`], the interpreter makes a report of it.

use crate::report::{Kind, ThreadId};

/// An error of one instruction.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What kind.
    pub kind: Kind,
    /// The lane, where one lane is to blame.
    pub lane: Option<usize>,
    /// What happened, in words, without the place.
    pub message: String,
    /// A second place, such as the other side of a race.
    pub other: Option<String>,
    /// What the race detector found: the engine puts it in words.
    pub race: Option<Box<crate::race::Report>>,
    /// The instruction to blame, by its number, where it is another one than runs: that of an asynchronous operation.
    pub site: Option<u32>,
    /// The thread to blame, together with `site`.
    pub thread: Option<ThreadId>,
}

impl Fault {
    /// Of a whole warp instruction.
    pub fn new(kind: Kind, message: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind, lane: None, message: message.into(), other: None, race: None, site: None, thread: None })
    }

    /// Of one lane.
    pub fn at(kind: Kind, lane: usize, message: impl Into<String>) -> Box<Fault> {
        Box::new(Fault { kind, lane: Some(lane), message: message.into(), other: None, race: None, site: None, thread: None })
    }
}

/// What executing one instruction returns.
pub type Exec<T = ()> = Result<T, Box<Fault>>;
