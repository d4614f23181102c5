//! The whole API on every back end: on the emulator, on a GPU where there is one, and with `cuda` over a stand-in for the driver too.

#[path = "../common/mod.rs"]
mod common;
mod launches;
mod memory;
mod peers;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod stand_in;
mod streams;
mod tensor_maps;
