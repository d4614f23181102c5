//! Mixture-of-experts routing, load balance, dispatch and combine over ranks, and expert placement
pub mod balance;
pub mod error;
pub mod placement;
pub mod reference;
pub mod router;

pub use error::{Error, Result};
pub use router::Routing;
