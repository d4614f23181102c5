//! DeepSeek-V3-format models: configuration, weights, training and generation, composed of the six pieces
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod error;
pub mod generate;
pub mod grid;
pub mod inspect;
pub mod layers;
pub mod order2;
pub mod params;
mod pieces;
pub mod place_cmd;
pub mod report;
pub mod schedule_cmd;
pub mod stage;
pub mod text;
pub mod train;

pub use config::Config;
pub use error::{Error, Result};
