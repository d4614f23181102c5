//! With the feature `nvcc`: compiles kernels/ with the CUDA compiler, for the program to embed instead of ptx/. Otherwise nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The release that ptx/ is made with; a newer one's PTX would not load on the drivers that this one's does.
const RELEASE: &str = "release 13.0";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(compiled_kernels)");
    if std::env::var_os("CARGO_FEATURE_NVCC").is_none() || std::env::var_os("DOCS_RS").is_some() {
        return;
    }
    for name in ["CUDA_PATH", "CARGO_TARGET_DIR"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=kernels");
    let out = PathBuf::from(variable("OUT_DIR"));
    // What v3-gpu says of itself (`links`).
    let headers = PathBuf::from(variable("DEP_V3_GPU_INCLUDE"));
    println!("cargo:rerun-if-changed={}", headers.display());
    let nvcc = find_nvcc(&out);
    let mut sources: Vec<PathBuf> = std::fs::read_dir("kernels")
        .expect("kernels/ is part of the crate")
        .map(|e| e.expect("it can be listed").path())
        .collect();
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    for source in sources {
        compile(&nvcc, &headers, &source, &out);
    }
    println!("cargo:rustc-cfg=compiled_kernels");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// CUDA_PATH's, or the one that `cargo xtask setup` put into the target folder, whose version is checked.
fn find_nvcc(out: &Path) -> PathBuf {
    let of_target = out.ancestors().map(|folder| folder.join("cuda/bin/nvcc")).find(|path| path.is_file());
    let nvcc = std::env::var_os("CUDA_PATH").map(|path| Path::new(&path).join("bin/nvcc")).or(of_target);
    let nvcc = nvcc.expect("the feature nvcc wants CUDA 13.0: run `cargo xtask setup`, or set CUDA_PATH");
    let said = Command::new(&nvcc).arg("--version").output().unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(RELEASE), "{} is not of {RELEASE}: {said}", nvcc.display());
    nvcc
}

/// One text for each architecture and variant that the head of the source names, as `cargo xtask ptx` makes them.
fn compile(nvcc: &Path, headers: &Path, source: &Path, out: &Path) {
    let text = std::fs::read_to_string(source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    let words = |key: &str| -> Vec<String> {
        let lines = text.lines().take_while(|l| l.starts_with("//"));
        lines.filter_map(|l| l.strip_prefix(&format!("// {key}:"))).flat_map(str::split_whitespace).map(str::to_string).collect()
    };
    let defines: Vec<String> = words("defines").iter().map(|d| format!("-D{d}")).collect();
    let mut variants = vec![(String::new(), vec![])];
    for word in words("variants") {
        let (name, options) = word.split_once('=').unwrap_or_else(|| panic!("{}: variant {word}", source.display()));
        variants.push((format!("-{name}"), options.split(',').map(str::to_string).collect()));
    }
    let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for arch in words("archs") {
        for (suffix, options) in &variants {
            let ptx = out.join(format!("{stem}{suffix}.{arch}.ptx"));
            let status = Command::new(nvcc)
                .args(["-ptx", "-std=c++17", "-lineinfo", "-I"])
                .arg(headers)
                .arg(format!("-arch={}", arch.replace("sm_", "compute_")))
                .args(&defines)
                .args(options)
                .arg(source)
                .arg("-o")
                .arg(&ptx)
                .status();
            let status = status.unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
            assert!(status.success(), "nvcc could not make {}", ptx.display());
        }
    }
}
