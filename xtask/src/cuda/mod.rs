//! The CUDA toolkit that compiles the kernels: which one, how it comes here, where it is.

pub mod setup;
mod toolkit;
mod wheels;

pub use toolkit::Toolkit;
pub use wheels::RELEASE;
