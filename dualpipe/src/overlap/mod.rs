//! Communication behind computation: the components of a pair of chunks, and the orders in which they can run.

mod arrangement;
mod component;
mod set;

pub use arrangement::{Arrangement, Op};
pub use component::{Component, ComponentKind, Half, Pairing, StageComponents};
pub use set::{Arrangements, Overlap};
