//! Process groups: ranks as threads of one process, with collectives in fixed order
mod comm;
mod error;
mod link;
mod threads;
mod world;

pub use comm::{Comm, Sum};
pub use error::{Error, RanksError, Result};
pub use link::{Blocked, Link, LinkKind, LinkModel, LinkTraffic, Ports, Traffic};
pub use threads::{WorldConfig, run_threads};
