//! Obvious versions of this crate's operations, the oracle of its tests.
pub mod dispatch;
pub mod router;
