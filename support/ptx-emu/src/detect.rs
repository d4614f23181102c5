//! What ties the race detector to launches, and its findings to faults.

use crate::fault::Fault;
use crate::machine::Launch;
use crate::race::{self, LaunchId};
use crate::report::Kind;
use std::collections::HashMap;
use std::sync::Arc;

/// The detectors of a run, when they are on.
#[derive(Debug, Default)]
pub struct Detector {
    /// Happens-before.
    pub race: race::Detector,
    /// The detector's names of launches.
    pub launches: HashMap<u64, LaunchId>,
    /// The launches by those names, for reports.
    pub started: HashMap<LaunchId, Arc<Launch>>,
}

impl From<Box<race::Report>> for Box<Fault> {
    fn from(report: Box<race::Report>) -> Box<Fault> {
        let (kind, message) = match &*report {
            race::Report::Race(found) => {
                let kind = match found.kind {
                    race::RaceKind::InsufficientScope => Kind::InsufficientScope,
                    race::RaceKind::MissingProxyFence => Kind::MissingProxyFence,
                    _ => Kind::DataRace,
                };
                (kind, String::new())
            }
            other => (Kind::Unsupported, other.to_string()),
        };
        Box::new(Fault { kind, lane: None, message, other: None, race: Some(report), site: None, thread: None })
    }
}
