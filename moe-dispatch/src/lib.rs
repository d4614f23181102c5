//! Mixture-of-experts routing, load balance, dispatch and combine over ranks, and expert placement
pub mod balance;
mod combine;
mod dispatch;
pub mod error;
pub mod layout;
pub mod placement;
pub mod plan;
pub mod reference;
pub mod router;
mod tree;

pub use error::{Error, Result};
pub use layout::{Layout, ReplicaChoice};
pub use plan::{Plan, PlanOptions, Traffic};
pub use router::Routing;
