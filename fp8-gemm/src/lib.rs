//! Fine-grained FP8, bf16 and f32 matrix multiplication with 128-wide promotion, grouped by expert.

mod cpu;
mod driver;
mod error;
pub mod gemm;
mod kept;
pub mod linear;
mod operand;
mod packed;
mod precision;
pub mod quantize;
pub mod reference;
mod scaled;

pub use error::{Error, Result};
pub use kept::E5m6Rows;
pub use operand::{Operand, Output};
pub use packed::Packed;
pub use precision::Precision;
pub use scaled::{BLOCK, Block, BlockScaled, BlockScaledRef, E4M3_MAX, Scale, ScalePolicy};
