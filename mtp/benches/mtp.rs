//! Head, verifier and sampler.
fn main() {}
