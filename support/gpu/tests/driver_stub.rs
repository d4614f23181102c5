//! The jumps to the CUDA driver, with a library in the driver's place. Compiles that library, so it needs a C compiler.

#![cfg(all(feature = "cuda", target_os = "linux"))]

use cust::sys::{self, CUresult};
use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::process::Command;
// Brings in the definitions of the driver's functions.
use v3_gpu as _;

/// Stands in for the driver. Each function checks that its arguments came through: integers in registers and on the stack,
/// and floating point.
const STAND_IN: &str = r#"
int cuInit(unsigned flags) { return flags == 7 ? 0 : 1; }
int cuTexRefSetMipmapLevelClamp(void *h, float a, float b) { return h == (void *)5 && a == 1.5f && b == -2.25f ? 0 : 1; }
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **params, void **extra) {
    return f == (void *)1 && gx == 2 && gy == 3 && gz == 4 && bx == 5 && by == 6 && bz == 7 && shared == 8 &&
           stream == (void *)9 && params == (void **)10 && extra == (void **)11 ? 0 : 1;
}
int cuGetErrorString(int error, const char **text) { *text = error == 100 ? "stand-in" : ""; return 0; }
"#;

const CHILD: &str = "V3_GPU_TEST_STAND_IN";

fn launch() -> CUresult {
    let p = |n: usize| n as *mut c_void;
    // SAFETY: the stand-in only compares its arguments.
    unsafe { sys::cuLaunchKernel(p(1).cast(), 2, 3, 4, 5, 6, 7, 8, p(9).cast(), p(10).cast(), p(11).cast()) }
}

/// The calls, in a process that finds the stand-in as libcuda.so.1. Twice: the first call of each takes another way.
fn child() {
    // The first calls of one function race.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(launch)).collect();
        threads.into_iter().for_each(|t| assert_eq!(t.join().unwrap(), CUresult::CUDA_SUCCESS));
    });
    for _ in 0..2 {
        // SAFETY: as above.
        unsafe {
            assert_eq!(sys::cuInit(7), CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuInit(0), CUresult::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(sys::cuTexRefSetMipmapLevelClamp(5 as *mut _, 1.5, -2.25), CUresult::CUDA_SUCCESS);
            // The stand-in has no such function.
            assert_eq!(sys::cuCtxSynchronize(), CUresult::CUDA_ERROR_NOT_FOUND);
        }
        assert_eq!(launch(), CUresult::CUDA_SUCCESS);
        assert_eq!(error_string(CUresult::CUDA_ERROR_NO_DEVICE), "stand-in");
    }
}

fn error_string(error: CUresult) -> String {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: `text` outlives the call, and is set to a string that lives as long as the program.
    unsafe {
        assert_eq!(sys::cuGetErrorString(error, &mut text), CUresult::CUDA_SUCCESS);
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

#[test]
fn arguments_reach_the_library_that_is_loaded() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("driver_stub");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("stand_in.c"), STAND_IN).unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let compiled = Command::new(compiler)
        .current_dir(&folder)
        .args(["-shared", "-fPIC", "stand_in.c", "-o", "libcuda.so.1"])
        .status()
        .unwrap();
    assert!(compiled.success());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "arguments_reach_the_library_that_is_loaded", "--test-threads=1"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", &folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
