//! DeepSeek-V3-format models: configuration, weights, training and generation, composed of the six pieces.
//!
//! This crate is the program `v3`, and thin: what is hot is in the pieces. The repository's README lists the commands and their formats,
//! ARCHITECTURE.md follows a training step and a generated token through the modules below.
//!
//! | module | what |
//! |---|---|
//! | [`config`], [`checkpoint`], [`convert`] | `config.json` and safetensors as published, read and written whole or not at all |
//! | [`grid`], [`params`] | which rank holds which stage, layer and expert; one flat buffer a rank, in buckets by holders |
//! | [`layers`], [`stage`] | forward, backward for inputs, backward for weights: of each layer, and of one rank's stages |
//! | [`train`] | options, the step on a grid of ranks, sharded AdamW, moving average, saving and resuming, report |
//! | [`generate`], [`inspect`] | generation with drafts over latent caches; logits, gradients and evaluation of a checkpoint |
//! | [`text`], [`order2`], [`report`] | tokens and data, the byte model to beat, pictures and tables |
//! | [`schedule_cmd`], [`place_cmd`] | `v3 schedule`, `v3 place` |
//!
//! # Example
//!
//! ```
//! use dualpipe::{Kind, Schedule};
//! use v3_model::{Config, grid::Grid};
//!
//! // Where the default model lives on 2 pipeline ranks by 2 expert-parallel ranks.
//! let config = Config::default_training()?;
//! let schedule = Schedule::new(Kind::DualPipe, 2, 4)?;
//! let grid = Grid::new(&config, &schedule, 2, config.num_nextn_predict_layers)?;
//! assert_eq!(grid.size(), 4);
//! // DualPipe: both ranks hold the first and the last stage, so embedding and head are shared with the MTP module.
//! assert_eq!(grid.stages_of, [[0, 1], [0, 1]]);
//! # Ok::<(), v3_model::Error>(())
//! ```
//!
//! ```no_run
//! use v3_model::generate::{GenerateOptions, Generator};
//!
//! let generator = Generator::load("runs/mine/checkpoint".as_ref(), fp8_gemm::Precision::F32)?;
//! let sampler = mtp::Sampler::new(0.0, 0, 1.0)?; // greedy
//! let options = GenerateOptions { max_new_tokens: 32, sampler, seed: 0, speculate: true };
//! let generated = generator.generate(b"In the".map(u32::from).as_slice(), &options, |_token| Ok(true))?;
//! println!("{:?}, {:?} of the drafts accepted", generated.tokens, generated.acceptance.rate());
//! # Ok::<(), v3_model::Error>(())
//! ```
//!
//! # What holds
//!
//! From the same weights, a token's logits and a micro-batch's loss have the same bits for every schedule, every number of pipeline and expert-parallel
//! ranks, and of threads; gradients have them for every number of threads, with and without recomputation, and after resuming.
//! Greedy generation gives the same tokens with and without drafts. What a user can get wrong is one sentence that names
//! file, tensor or option ([`Error`]).
pub mod bench_cmd;
pub mod checkpoint;
pub mod components;
pub mod config;
pub mod convert;
pub mod error;
pub mod generate;
pub mod grid;
pub mod inspect;
pub mod layers;
pub mod memory;
pub mod order2;
pub mod overlap;
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

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
