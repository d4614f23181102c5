//! Dispatch and combine, obviously.
