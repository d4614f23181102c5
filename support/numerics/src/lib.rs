//! Number formats, CPU dispatch, f32 matrix multiply and the small operations of a transformer layer

pub mod convert;
pub mod cpu;
pub mod e5m6;
mod error;
pub mod formats;
pub mod gemm;
pub mod ops;
pub mod par;
pub mod reference;
mod scratch;
pub mod simd;
pub mod view;

pub use error::{Error, Result};
pub use formats::{E4M3, E5M2};
pub use half::bf16;
pub use view::{MatMut, MatRef};
