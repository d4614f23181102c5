//! DeepSeek-V3-format models: configuration, weights, training and generation, composed of the six pieces
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod error;
pub mod order2;
pub mod report;
pub mod text;

pub use config::Config;
pub use error::{Error, Result};
