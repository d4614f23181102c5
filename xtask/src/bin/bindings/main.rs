//! Writes what support/gpu knows of the CUDA driver and support/ranks of NCCL; `cargo xtask bindings` starts it with headers and libclang.
//!
//! - csrc/driver_functions.h: the functions that `cust_raw` declares, which csrc/driver_stub.c defines.
//! - src/sys.rs: types and function pointers of the driver functions that v3-gpu calls itself, from the headers of the
//!   pinned toolkit. `cust_raw` declares CUDA 11.4, which knows neither tensor maps nor clusters, and its enums have no room
//!   for the values of a newer driver.
//! - support/ranks/src/nccl/sys.rs: types and function pointers of the NCCL functions that v3-ranks calls.

use std::process::{Command, ExitCode, Stdio};
use xtask::args::{Failure, Parsed};
use xtask::workspace::{self, io, text};

/// The functions, each with the CUDA version that gave it the signature we call. The header names their types
/// `PFN_<name>_v<version>`.
const FUNCTIONS: [(&str, u32); 61] = [
    ("cuCtxDisablePeerAccess", 4000),
    ("cuCtxEnablePeerAccess", 4000),
    ("cuCtxGetCurrent", 4000),
    ("cuCtxPopCurrent", 4000),
    ("cuCtxPushCurrent", 4000),
    ("cuCtxSetCurrent", 4000),
    ("cuCtxSynchronize", 2000),
    ("cuDeviceCanAccessPeer", 4000),
    ("cuDeviceGet", 2000),
    ("cuDeviceGetAttribute", 2000),
    ("cuDeviceGetCount", 2000),
    ("cuDeviceGetDefaultMemPool", 11020),
    ("cuDeviceGetName", 2000),
    ("cuDevicePrimaryCtxGetState", 7000),
    ("cuDevicePrimaryCtxRelease", 11000),
    ("cuDevicePrimaryCtxRetain", 7000),
    ("cuDeviceTotalMem", 3020),
    ("cuDriverGetVersion", 2020),
    ("cuEventCreate", 2000),
    ("cuEventDestroy", 4000),
    ("cuEventElapsedTime", 2000),
    ("cuEventQuery", 2000),
    ("cuEventRecord", 2000),
    ("cuEventSynchronize", 2000),
    ("cuFuncGetAttribute", 2020),
    ("cuFuncGetParamInfo", 12040),
    ("cuFuncSetAttribute", 9000),
    ("cuGetErrorName", 6000),
    ("cuGetErrorString", 6000),
    ("cuInit", 2000),
    ("cuLaunchHostFunc", 10000),
    ("cuLaunchKernelEx", 11060),
    ("cuMemAlloc", 3020),
    ("cuMemAllocAsync", 11020),
    ("cuMemFree", 3020),
    ("cuMemFreeAsync", 11020),
    ("cuMemFreeHost", 2000),
    ("cuMemGetInfo", 3020),
    ("cuMemHostAlloc", 2020),
    ("cuMemHostGetDevicePointer", 3020),
    ("cuMemPoolSetAccess", 11020),
    ("cuMemPoolSetAttribute", 11020),
    ("cuMemcpyAsync", 4000),
    ("cuMemcpyDtoDAsync", 3020),
    ("cuMemcpyDtoHAsync", 3020),
    ("cuMemcpyHtoDAsync", 3020),
    ("cuMemcpyPeerAsync", 4000),
    ("cuMemsetD32Async", 3020),
    ("cuMemsetD8Async", 3020),
    ("cuModuleGetFunction", 2000),
    ("cuModuleGetGlobal", 3020),
    ("cuModuleLoadDataEx", 2010),
    ("cuModuleUnload", 2000),
    ("cuOccupancyMaxActiveBlocksPerMultiprocessor", 6050),
    ("cuOccupancyMaxActiveClusters", 11070),
    ("cuStreamCreateWithPriority", 5050),
    ("cuStreamDestroy", 4000),
    ("cuStreamQuery", 2000),
    ("cuStreamSynchronize", 2000),
    ("cuStreamWaitEvent", 3020),
    ("cuTensorMapEncodeTiled", 12000),
];

/// Asked for by its exported name, since it is what finds the others.
const FINDER: &str = "PFN_cuGetProcAddress_v12000";

/// Constants and enums that no signature names.
const EXTRA_ITEMS: [&str; 9] = [
    "CUDA_VERSION",
    "CU_MEMHOSTALLOC_.*",
    "CU_LAUNCH_PARAM_.*",
    "CUctx_flags",
    "CUstream_flags",
    "CUevent_flags",
    "CUevent_wait_flags",
    "CUdriverProcAddress_flags",
    "CUlaunchAttribute.*",
];

/// The functions of NCCL; the header declares them without a type for their pointers.
const NCCL_FUNCTIONS: [&str; 13] = [
    "ncclCommAbort",
    "ncclCommCount",
    "ncclCommDestroy",
    "ncclCommGetAsyncError",
    "ncclCommInitRank",
    "ncclGetErrorString",
    "ncclGetLastError",
    "ncclGetUniqueId",
    "ncclGetVersion",
    "ncclGroupEnd",
    "ncclGroupStart",
    "ncclRecv",
    "ncclSend",
];

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bindings: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

fn run(args: &[String]) -> Result<(), Failure> {
    let parsed = Parsed::new(args, &["--include", "--nccl"], &["--check"])?;
    parsed.at_most(0)?;
    let include = parsed.value("--include").ok_or_else(|| Failure::usage("--include: where is cuda.h?".into()))?;
    let nccl = parsed.value("--nccl").ok_or_else(|| Failure::usage("--nccl: where is nccl.h?".into()))?;
    let files = [
        ("support/gpu/csrc/driver_functions.h", stub_functions()?),
        ("support/gpu/src/sys.rs", sys(include)?),
        ("support/ranks/src/nccl/sys.rs", nccl_sys(include, nccl)?),
    ];
    let mut stale = vec![];
    for (name, made) in files {
        let path = workspace::root().join(name);
        if std::fs::read_to_string(&path).is_ok_and(|there| there == made) {
            println!("{name}: current");
        } else if parsed.flag("--check") {
            stale.push(name);
        } else {
            std::fs::write(&path, made).map_err(io(&path))?;
            println!("{name}: written");
        }
    }
    match stale.is_empty() {
        true => Ok(()),
        false => Err(Failure::task(format!("{} would change: run `cargo xtask bindings`", stale.join(", ")))),
    }
}

/// The list of functions for csrc/driver_stub.c.
fn stub_functions() -> Result<String, Failure> {
    let metadata = workspace::cargo_metadata(&["--features", "v3-gpu/cuda"])?;
    let mut packages = workspace::list(&metadata, "packages").iter();
    let package = packages.find(|p| text(p, "name") == "cust_raw").ok_or_else(|| Failure::task("there is no cust_raw".into()))?;
    let source = workspace::directory(package).join("src/cuda.rs");
    let declared = functions(&std::fs::read_to_string(&source).map_err(io(&source))?);
    if declared.is_empty() {
        return Err(Failure::task(format!("{} declares no function", source.display())));
    }
    let version = text(package, "version");
    let mut out =
        format!("/* @generated by `cargo xtask bindings`: the {} functions of cust_raw {version}. */\n", declared.len());
    for (index, name) in declared.iter().enumerate() {
        out.push_str(&format!("FUNCTION({index}, {name})\n"));
    }
    Ok(out)
}

/// The names of the functions in `extern "C"` blocks, in order, each once.
fn functions(source: &str) -> Vec<String> {
    let mut names: Vec<String> = vec![];
    let mut foreign = false;
    for line in source.lines() {
        if line.starts_with("extern \"C\" {") {
            foreign = true;
        } else if line.starts_with('}') {
            foreign = false;
        } else if let Some(rest) = line.trim_start().strip_prefix("pub fn ").filter(|_| foreign) {
            let name = rest.split('(').next().unwrap_or_default().to_string();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// A builder for a header of these lines, found in these folders.
fn builder(name: &str, header: &str, include: &[&str]) -> Result<bindgen::Builder, Failure> {
    // A compiler's own headers (stddef.h) do not come with libclang; those of the C compiler do as well.
    let own = Command::new("cc").arg("-print-file-name=include").output();
    let own = own.map_err(|e| Failure::task(format!("cc: {e}")))?;
    let own = String::from_utf8_lossy(&own.stdout).trim().to_string();
    let rust = bindgen::RustTarget::stable(85, 0).map_err(|_| Failure::task("bindgen does not know Rust 1.85".into()))?;
    Ok(bindgen::Builder::default()
        .header_contents(name, header)
        .clang_args(include.iter().map(|folder| format!("-I{folder}")))
        .clang_arg(format!("-isystem{own}"))
        .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
        .generate_comments(false)
        .size_t_is_usize(true)
        .merge_extern_blocks(true)
        .disable_header_comment()
        .formatter(bindgen::Formatter::None)
        .rust_target(rust)
        .rust_edition(bindgen::RustEdition::Edition2024))
}

/// support/ranks/src/nccl/sys.rs.
fn nccl_sys(include: &str, nccl: &str) -> Result<String, Failure> {
    // What the functions are called by: a pointer type each, named as cudaTypedefs.h names those of the driver.
    let mut header = String::from("#include <nccl.h>\n");
    for name in NCCL_FUNCTIONS {
        header.push_str(&format!("typedef __typeof__(&{name}) PFN_{name};\n"));
    }
    let mut builder = builder("communicator.h", &header, &[include, nccl])?.allowlist_type("ncclDataType_t");
    builder = builder.allowlist_var("NCCL_VERSION_CODE");
    for name in NCCL_FUNCTIONS {
        builder = builder.allowlist_type(format!("PFN_{name}"));
    }
    let made = builder.generate().map_err(|e| Failure::task(format!("bindgen: {e}")))?.to_string();
    let fields: String = NCCL_FUNCTIONS.iter().map(|name| format!("    pub {name}: PFN_{name},\n")).collect();
    let values: String = NCCL_FUNCTIONS.iter().map(|name| format!("{name}: pointer(find(c\"{name}\")),\n")).collect();
    let text = TABLE.replace("{fields}", &fields).replace("{values}", &values);
    format(&format!("{NCCL_HEAD}{made}\n{text}"))
}

const NCCL_HEAD: &str = "\
//! @generated by `cargo xtask bindings` from nccl.h of NCCL 2.27.
//!
//! Types, constants and function pointers of NCCL, as far as this crate uses them.

// The names, the layout and the derived traits are those of the header, whose documentation describes them.
#![allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code, unused_imports, clippy::all)]

";

/// The struct that holds the functions of NCCL, and what fills it.
const TABLE: &str = "
/// Functions of the library; those that it lacks are `None`.
#[derive(Debug, Clone, Copy)]
pub struct Functions {
{fields}}

impl Functions {
    /// Asks `find` for each function by its name.
    ///
    /// # Safety
    /// What `find` returns is null or that function of NCCL.
    pub unsafe fn find(mut find: impl FnMut(&core::ffi::CStr) -> *mut core::ffi::c_void) -> Functions {
        /// # Safety
        /// `F` is an `Option` of a function pointer, and `pointer` is null or such a function.
        unsafe fn pointer<F: Copy>(pointer: *mut core::ffi::c_void) -> F {
            const { assert!(size_of::<F>() == size_of::<*mut core::ffi::c_void>()) };
            // SAFETY: an `Option` of a function pointer has the layout of a pointer, and null is `None`.
            unsafe { core::mem::transmute_copy(&pointer) }
        }
        // SAFETY: the caller vouches for what `find` returns; each field's type is that of the function asked for.
        unsafe { Functions { {values} } }
    }
}
";

/// src/sys.rs.
fn sys(include: &str) -> Result<String, Failure> {
    let header = "#include <cuda.h>\n#include <cudaTypedefs.h>\n";
    let mut builder = builder("driver.h", header, &[include])?.allowlist_type(FINDER);
    for item in EXTRA_ITEMS {
        builder = builder.allowlist_type(item).allowlist_var(item);
    }
    for (name, version) in FUNCTIONS {
        builder = builder.allowlist_type(format!("PFN_{name}_v{version}"));
    }
    let made = builder.generate().map_err(|e| Failure::task(format!("bindgen: {e}")))?.to_string();
    for (name, version) in FUNCTIONS {
        if !made.contains(&format!("pub type PFN_{name}_v{version} ")) {
            return Err(Failure::task(format!("the headers have no {name} of version {version}")));
        }
    }
    format(&format!("{HEAD}{made}\n{}", table()))
}

const HEAD: &str = "\
//! @generated by `cargo xtask bindings` from cuda.h and cudaTypedefs.h of CUDA 13.0.
//!
//! Types, constants and function pointers of the CUDA driver, as far as this crate uses them.

// The names, the layout and the derived traits are those of the headers, whose documentation describes them.
#![allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code, unused_imports, clippy::all)]

";

/// The struct that holds the functions, and what fills it.
fn table() -> String {
    let mut fields = String::new();
    let mut values = String::new();
    for (name, version) in FUNCTIONS {
        fields.push_str(&format!("    pub {name}: PFN_{name}_v{version},\n"));
        values.push_str(&format!("{name}: pointer(find(c\"{name}\", {version})),\n"));
    }
    format!(
        "
/// Functions of the driver; those that it lacks are `None`.
#[derive(Debug, Clone, Copy)]
pub struct Functions {{
{fields}}}

impl Functions {{
    /// Asks `find` for each function by its name and the CUDA version of the signature, as `cuGetProcAddress` takes them.
    ///
    /// # Safety
    /// What `find` returns is null or that function of the driver, in that version.
    pub unsafe fn find(mut find: impl FnMut(&core::ffi::CStr, core::ffi::c_int) -> *mut core::ffi::c_void) -> Functions {{
        /// # Safety
        /// `F` is an `Option` of a function pointer, and `pointer` is null or such a function.
        unsafe fn pointer<F: Copy>(pointer: *mut core::ffi::c_void) -> F {{
            const {{ assert!(size_of::<F>() == size_of::<*mut core::ffi::c_void>()) }};
            // SAFETY: an `Option` of a function pointer has the layout of a pointer, and null is `None`.
            unsafe {{ core::mem::transmute_copy(&pointer) }}
        }}
        // SAFETY: the caller vouches for what `find` returns; each field's type is that of the function asked for.
        unsafe {{ Functions {{ {values} }} }}
    }}
}}
"
    )
}

/// The text as rustfmt leaves it, so that the formatting check of the workspace passes.
fn format(text: &str) -> Result<String, Failure> {
    let failure = |e: std::io::Error| Failure::task(format!("rustfmt: {e}"));
    let mut rustfmt = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(workspace::root().join("rustfmt.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failure)?;
    if let Some(mut stdin) = rustfmt.stdin.take() {
        std::io::Write::write_all(&mut stdin, text.as_bytes()).map_err(failure)?;
    }
    let output = rustfmt.wait_with_output().map_err(failure)?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Failure::task(format!(
            "rustfmt could not read what was made: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_functions_are_found_once_and_in_order() {
        let source = "impl A {\n    pub fn of_a_type() {}\n}\nextern \"C\" {\n    pub fn cuB(\n        a: i32,\n    ) -> R;\n}\n\
                      extern \"C\" {\n    pub fn cuA(a: i32) -> R;\n    pub fn cuB() -> R;\n}\n";
        assert_eq!(functions(source), ["cuB", "cuA"]);
    }

    #[test]
    fn the_list_is_sorted_and_without_repetition() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a.0.to_ascii_lowercase() < b.0.to_ascii_lowercase() || a.0 < b.0));
        let table = table();
        assert_eq!(table.matches("pointer(find(").count(), FUNCTIONS.len());
        assert!(table.contains("pub cuTensorMapEncodeTiled: PFN_cuTensorMapEncodeTiled_v12000,"));
    }
}
