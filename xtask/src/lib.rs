//! What the programs of this crate share.

pub mod args;
pub mod workspace;
