//! What the detectors need besides their own state.

/// The detectors of a run, when they are on.
#[derive(Debug, Default)]
pub struct Detector {}
