//! Kernels that go wrong. A program of its own: on a GPU what fails takes the process's context with it.

mod common;

use common::{PTX, emulated, gpu, with_kernel};
use v3_gpu::{Args, Device, EmulatorChecks, EmulatorConfig, Error, Kernel, LaunchConfig, Stream};

fn launch(stream: &Stream, kernel: &Kernel, config: LaunchConfig, args: Args) -> Result<(), Error> {
    // SAFETY: on the emulator mistakes are reports; the one kernel that runs on a GPU only stops.
    unsafe { stream.launch(kernel, &config, args) }
}

fn report(result: Result<(), Error>) -> String {
    match result {
        Err(Error::Kernel { report }) => report,
        result => panic!("{result:?}"),
    }
}

fn a_failed_context_stays_failed(device: &Device) -> String {
    let (stream, fails) = with_kernel(device, "fails");
    let before = stream.upload(&[1u32; 8]).unwrap();
    launch(&stream, &fails, LaunchConfig::new(2, 32), Args::new()).unwrap();
    let said = report(stream.synchronize());
    // Every use of it from now on says so, in whichever stream.
    assert_eq!(report(stream.synchronize()), said);
    assert!(matches!(stream.download(&before), Err(Error::Kernel { .. })));
    assert!(matches!(device.synchronize(), Err(Error::Kernel { .. })));
    let other = device.stream();
    if let Ok(other) = other {
        assert!(matches!(launch(&other, &fails, LaunchConfig::new(1, 1), Args::new()), Err(Error::Kernel { .. })));
    }
    assert!(matches!(launch(&stream, &fails, LaunchConfig::new(1, 1), Args::new()), Err(Error::Kernel { .. })));
    said
}

#[test]
fn trap_on_the_emulator() {
    let device = emulated(1).remove(0);
    let said = a_failed_context_stays_failed(&device);
    let line = 1 + PTX.lines().position(|l| l.trim() == "trap;").unwrap();
    assert!(said.starts_with("trap: "), "{said}");
    for part in ["in fails:", &format!("at PTX line {line}"), "block (", "thread (", "seed 0"] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    // Another machine is another context.
    let (stream, nothing) = with_kernel(&emulated(1)[0], "nothing");
    launch(&stream, &nothing, LaunchConfig::new(1, 1), Args::new()).unwrap();
    stream.synchronize().unwrap();
}

/// The only test of this program that runs on a GPU, and what it leaves behind is no context for another.
#[test]
fn trap_on_the_gpu() {
    if let Some(device) = gpu("trap_on_the_gpu") {
        let said = a_failed_context_stays_failed(&device);
        assert!(said.contains("CUDA_ERROR_"), "{said}");
    }
}

#[test]
fn accesses_beyond_a_buffer_are_reported() {
    let device = emulated(1).remove(0);
    let (stream, scale) = with_kernel(&device, "scale");
    let x = stream.upload(&[1u32; 32]).unwrap();
    // One element more than there is.
    launch(&stream, &scale, LaunchConfig::new(2, 32), Args::new().buffer(&x).value(33u32).value(2u32)).unwrap();
    let said = report(stream.synchronize());
    assert!(said.starts_with("out-of-bounds access: "), "{said}");
    assert!(said.contains("block (1, 0, 0) thread (0, 0, 0)"), "{said}");
    assert!(said.contains("ld.global.u32"), "{said}");
}

#[test]
fn reads_of_what_nothing_wrote_are_reported() {
    let device = emulated(1).remove(0);
    let (stream, scale) = with_kernel(&device, "scale");
    let x = stream.alloc::<u32>(32).unwrap();
    launch(&stream, &scale, LaunchConfig::new(1, 32), Args::new().buffer(&x).value(32u32).value(2u32)).unwrap();
    let said = report(stream.synchronize());
    assert!(said.starts_with("read of memory that nothing wrote: "), "{said}");
}

#[test]
fn memory_that_was_freed_is_reported() {
    let device = emulated(1).remove(0);
    let (stream, scale) = with_kernel(&device, "scale");
    let address = stream.upload(&[1u32; 32]).unwrap().ptr();
    stream.synchronize().unwrap();
    let args = [address.0.to_le_bytes().to_vec(), 32u32.to_le_bytes().to_vec(), 1u32.to_le_bytes().to_vec()];
    // SAFETY: on the emulator it is a report.
    unsafe { stream.launch_raw(&scale, &LaunchConfig::new(1, 32), &args).unwrap() };
    let said = report(stream.synchronize());
    assert!(said.starts_with("out-of-bounds access: "), "{said}");
    assert!(said.contains("freed"), "{said}");
}

#[test]
fn streams_that_nothing_orders_race() {
    let device = emulated(1).remove(0);
    let (a, scale) = with_kernel(&device, "scale");
    let b = device.stream().unwrap();
    let x = a.upload(&[1u32; 32]).unwrap();
    a.synchronize().unwrap();
    let args = || Args::new().buffer(&x).value(32u32).value(2u32);
    launch(&a, &scale, LaunchConfig::new(1, 32), args()).unwrap();
    launch(&b, &scale, LaunchConfig::new(1, 32), args()).unwrap();
    let said = report(device.synchronize());
    assert!(said.starts_with("data race: "), "{said}");
    // Without the detector both run, one after the other or not.
    let config = EmulatorConfig { checks: EmulatorChecks { races: false, ..EmulatorChecks::ALL }, ..EmulatorConfig::default() };
    let device = Device::emulated(&config).unwrap().remove(0);
    let (a, scale) = with_kernel(&device, "scale");
    let b = device.stream().unwrap();
    let x = a.upload(&[1u32; 32]).unwrap();
    a.synchronize().unwrap();
    for stream in [&a, &b] {
        launch(stream, &scale, LaunchConfig::new(1, 32), Args::new().buffer(&x).value(32u32).value(2u32)).unwrap();
    }
    device.synchronize().unwrap();
}

#[test]
fn endless_kernels_are_stopped() {
    const ENDLESS: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry endless(.param .u64 x)
{
    .reg .b64 %rd<2>;
    .reg .b32 %r<3>;
    ld.param.u64 %rd1, [x];
LOOP:
    ld.global.u32 %r1, [%rd1];
    add.u32 %r2, %r1, 1;
    st.global.u32 [%rd1], %r2;
    bra LOOP;
}";
    let config = EmulatorConfig { budget: 10_000, ..EmulatorConfig::default() };
    let device = Device::emulated(&config).unwrap().remove(0);
    let stream = device.stream().unwrap();
    let x = stream.zeroed::<u32>(1).unwrap();
    let kernel = device.module(ENDLESS).unwrap().kernel("endless").unwrap();
    launch(&stream, &kernel, LaunchConfig::new(1, 1), Args::new().buffer(&x)).unwrap();
    let said = report(stream.synchronize());
    assert!(said.starts_with("instruction budget used up: "), "{said}");
}
