//! `cargo xtask bindings`: the files of support/gpu that are made from the CUDA driver's headers.
//!
//! The work is done by a second program behind the feature `bindings`, which alone needs `bindgen`. This one finds the
//! headers, and libclang at a pinned version: another one may give another text.

use crate::cuda::Toolkit;
use crate::python::{Python, Wheel};
use std::path::{Path, PathBuf};
use xtask::args::{Failure, Parsed};
use xtask::workspace::{self, TempFolder, cargo, io};

const LIBCLANG: [Wheel; 1] = [Wheel {
    name: "libclang",
    version: "18.1.1",
    x86_64: "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b",
    aarch64: "54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592",
}];

/// Writes the files, or compares with `--check`.
pub fn run(args: &[String]) -> Result<(), Failure> {
    Parsed::new(args, &[], &["--check"])?.at_most(0)?;
    let target = workspace::target_directory(&workspace::members_metadata()?);
    let toolkit = Toolkit::find(&target)?;
    let libclang = libclang(&target)?;
    let status = cargo()
        .args(["run", "--quiet", "--package", "xtask", "--features", "bindings", "--bin", "bindings", "--"])
        .arg("--include")
        .arg(toolkit.root.join("include"))
        .args(args)
        .env("LIBCLANG_PATH", libclang)
        .status()
        .map_err(|e| Failure::task(format!("cannot start cargo: {e}")))?;
    match status.code() {
        Some(0) => Ok(()),
        code => Err(Failure { status: code.map_or(1, |c| c.clamp(1, 255) as u8), message: "bindings are not current".into() }),
    }
}

/// The folder that holds libclang.so, fetched when it is not there.
fn libclang(target: &Path) -> Result<PathBuf, Failure> {
    let folder = target.join(format!("libclang-{}", LIBCLANG[0].version));
    if !folder.join("libclang.so").is_file() {
        let new = TempFolder::at(target.join(format!("libclang.new-{}", std::process::id())))?;
        let python = Python::find()?;
        let unpacked = new.path.join("unpacked");
        for wheel in python.download("bindings", &LIBCLANG, &new.path.join("wheels"))? {
            python.unpack("bindings", &wheel, &unpacked)?;
        }
        let native = unpacked.join(format!("libclang-{}.data/platlib/clang/native", LIBCLANG[0].version));
        workspace::remove(&folder)?;
        std::fs::rename(&native, &folder).map_err(io(&native))?;
    }
    Ok(folder)
}
