//! `cargo xtask bindings`: the files of support/gpu that are made from the CUDA driver's headers, and that of support/ranks that is
//! made from NCCL's.
//!
//! The work is done by a second program behind the feature `bindings`, which alone needs `bindgen`. This one finds the
//! headers, and libclang at a pinned version: another one may give another text. NCCL's header is all that is kept of its wheel, whose
//! library (300 MB) is loaded at run time if at all.

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

/// The oldest release for CUDA 13: what it declares, later ones still take.
const NCCL: [Wheel; 1] = [Wheel {
    name: "nvidia-nccl-cu13",
    version: "2.27.7",
    x86_64: "b28a524abd8389b76a4a3f133c76a7aaa7005e47fcaa9d9603b90103927a3f93",
    aarch64: "5e3cc863e52bf9dd1e3ab1941bddb414098f489ae7342f6b3a274602303da123",
}];

/// Writes the files, or compares with `--check`.
pub fn run(args: &[String]) -> Result<(), Failure> {
    Parsed::new(args, &[], &["--check"])?.at_most(0)?;
    let target = workspace::target_directory(&workspace::members_metadata()?);
    let toolkit = Toolkit::find(&target)?;
    let libclang = libclang(&target)?;
    let nccl = nccl(&target)?;
    let status = cargo()
        .args(["run", "--quiet", "--package", "xtask", "--features", "bindings", "--bin", "bindings", "--"])
        .arg("--include")
        .arg(toolkit.root.join("include"))
        .arg("--nccl")
        .arg(nccl)
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
    let version = LIBCLANG[0].version;
    let inside = format!("libclang-{version}.data/platlib/clang/native");
    fetch(&LIBCLANG, &target.join(format!("libclang-{version}")), "libclang.so", &inside)
}

/// The folder that holds nccl.h, fetched when it is not there.
fn nccl(target: &Path) -> Result<PathBuf, Failure> {
    fetch(&NCCL, &target.join(format!("nccl-{}", NCCL[0].version)), "nccl.h", "nvidia/nccl/include")
}

/// Keeps the folder `inside` of a wheel as `folder`, unless that holds `file` already.
fn fetch(wheels: &[Wheel], folder: &Path, file: &str, inside: &str) -> Result<PathBuf, Failure> {
    if !folder.join(file).is_file() {
        let new = TempFolder::at(folder.with_extension(format!("new-{}", std::process::id())))?;
        let python = Python::find()?;
        let unpacked = new.path.join("unpacked");
        for wheel in python.download("bindings", wheels, &new.path.join("wheels"))? {
            python.unpack("bindings", &wheel, &unpacked)?;
        }
        let kept = unpacked.join(inside);
        workspace::remove(folder)?;
        std::fs::rename(&kept, folder).map_err(io(&kept))?;
    }
    Ok(folder.to_path_buf())
}
