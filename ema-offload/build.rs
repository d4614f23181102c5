//! Tells the compiler that `cfg(loom)` (see `tests/loom.rs`) is not a mistake.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(loom)");
}
