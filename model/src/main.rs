//! The `v3` command.
fn main() {}
