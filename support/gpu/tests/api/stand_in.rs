//! The back end over the CUDA driver, with a library in the driver's place that does everything in host memory and checks the rules of the calls
//! (driver.c): the tests of the other files, on its two devices. Compiles that library, so it needs a C compiler.

use crate::common::{self, with_kernel};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use v3_gpu::{Args, Backend, Device, Error, LaunchConfig};

/// Names the part that a child process has to play.
const PART: &str = "V3_GPU_TEST_STAND_IN_PART";

fn part(name: &str) -> bool {
    std::env::var(PART).is_ok_and(|part| part == name)
}

/// The folder that holds the library; None without a C compiler.
fn library() -> Option<PathBuf> {
    let folder = std::env::temp_dir().join(format!("v3-gpu-stand-in-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("driver.c"), include_str!("driver.c")).unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .current_dir(&folder)
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "driver.c", "-o", "libcuda.so.1"])
        .status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(e) if e.kind() == ErrorKind::NotFound => return None,
        Err(e) => panic!("{e}"),
    }
    Some(folder)
}

/// Runs some tests of this program over the stand-in, and returns what the stand-in said at the end.
fn run(folder: &Path, part: &str, mode: &str, filters: &[&str]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(filters)
        .args(["--skip", "over_a_stand_in"])
        .env(PART, part)
        .env("V3_STAND_IN", mode)
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{part} {mode}: {}\n{said}", output.status);
    assert!(!said.contains("SKIPPED") && !said.contains(" 0 passed"), "{said}");
    said.lines().find(|l| l.starts_with("STAND-IN: launches")).unwrap_or_else(|| panic!("no end: {said}")).to_string()
}

#[test]
fn all_over_a_stand_in() {
    let Some(folder) = library() else {
        return v3_testkit::skip::skip("all_over_a_stand_in", "there is no C compiler");
    };
    for mode in ["new", "old"] {
        let tests = ["launches::", "memory::", "peers::", "streams::", "tensor_maps::", "stand_in::what_the_device_is"];
        let said = run(&folder, "tests", mode, &tests);
        let count = |what: &str| -> u64 {
            let rest = said.split(&format!("{what} ")).nth(1).unwrap_or_else(|| panic!("{what}: {said}"));
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
        };
        assert!(count("launches") > 50 && count("tensor maps") > 5, "{said}");
        // Two launches ask for clusters of kernels that have none of their own; ten are programmatic.
        let asked = (count("clusters"), count("programmatic"), count("pools kept"));
        assert_eq!(asked, (2, 10, u64::from(mode == "new")), "{said}");
        run(&folder, "failure", mode, &["stand_in::a_failure_stays"]);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_the_device_is() {
    if !part("tests") {
        return;
    }
    let old = std::env::var("V3_STAND_IN").is_ok_and(|mode| mode == "old");
    assert_eq!(Device::cuda_count(), Ok(2));
    let device = Device::cuda(1).unwrap();
    let info = device.info().unwrap();
    assert_eq!((device.backend(), device.ordinal(), info.name.as_str()), (Backend::Cuda, 1, "stand-in 1"));
    assert_eq!((info.compute_capability, info.sm_count, info.l2_bytes), ((9, 0), 132, 50 << 20));
    assert_eq!((info.memory, info.max_shared_per_block, info.stream_ordered), (80 << 30, 227 * 1024, !old));
    assert_eq!(info.driver, if old { "CUDA driver 12.0" } else { "CUDA driver 13.0" });
    assert!(device.raw_context().is_some_and(|context| context != 0));
    let none = Device::cuda(2).unwrap_err();
    assert!(matches!(&none, Error::NoDevice { reason, .. } if reason.contains("there are 2")), "{none}");
}

#[test]
fn a_failure_stays() {
    if !part("failure") {
        return;
    }
    let device = Device::cuda(0).unwrap();
    let (stream, fails) = with_kernel(&device, "fails");
    let (x, event) = (stream.upload(&[1u32]).unwrap(), device.event(false).unwrap());
    // SAFETY: the stand-in's kernel touches nothing.
    let launch = || unsafe { stream.launch(&fails, &LaunchConfig::new(1, 1), Args::new()) };
    launch().unwrap();
    let is_dead = |result: Result<(), Error>| match result {
        Err(Error::Kernel { report }) => assert!(report.starts_with("CUDA_ERROR_LAUNCH_FAILED (719): "), "{report}"),
        result => panic!("{result:?}"),
    };
    is_dead(stream.synchronize());
    is_dead(launch());
    is_dead(device.synchronize());
    is_dead(stream.download(&x).map(|_| ()));
    is_dead(stream.alloc::<u8>(1).map(|_| ()));
    is_dead(device.stream().map(|_| ()));
    is_dead(device.pinned::<u8>(1).map(|_| ()));
    is_dead(event.is_done().map(|_| ()));
    is_dead(device.module(common::PTX).map(|_| ()));
    // What lives in a failed context goes with the process: nothing here is left for the stand-in to count.
    drop((x, event));
    let other = Device::cuda(1).unwrap().stream().unwrap();
    assert_eq!(other.download(&other.upload(&[3u8]).unwrap()).unwrap(), [3]);
}
