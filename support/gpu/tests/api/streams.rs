//! Streams and events.

use crate::common::{PTX_90, emulated, for_each_device, for_each_device_from, with_kernel};
use v3_gpu::{Args, Backend, Error, LaunchConfig};

#[test]
fn a_stream_runs_in_order() {
    for_each_device("a_stream_runs_in_order", |device| {
        let (stream, scale) = with_kernel(device, "scale");
        let mut x = stream.upload(&[1u32; 100]).unwrap();
        for factor in [2u32, 3, 5] {
            let args = Args::new().buffer(&x).value(100u32).value(factor);
            // SAFETY: the kernel changes the 100 elements of x alone.
            unsafe { stream.launch(&scale, &LaunchConfig::new(4, 32), args).unwrap() };
        }
        let before = stream.download(&x).unwrap();
        stream.write(&mut x, &[4; 100]).unwrap();
        let args = Args::new().buffer(&x).value(99u32).value(10u32);
        // SAFETY: as above.
        unsafe { stream.launch(&scale, &LaunchConfig::new(2, 64), args).unwrap() };
        assert_eq!(before, [30; 100]);
        let mut expected = vec![40; 99];
        expected.push(4);
        assert_eq!(stream.download(&x).unwrap(), expected);
    });
}

#[test]
fn events_order_streams() {
    for_each_device("events_order_streams", |device| {
        let (a, scale) = with_kernel(device, "scale");
        let b = device.stream().unwrap();
        let x = a.upload(&[1u32; 64]).unwrap();
        let launch = |stream: &v3_gpu::Stream, factor: u32| {
            let args = Args::new().buffer(&x).value(64u32).value(factor);
            // SAFETY: the kernel changes the elements of x alone, and the streams take turns.
            unsafe { stream.launch(&scale, &LaunchConfig::new(1, 64), args).unwrap() };
        };
        let event = device.event(false).unwrap();
        event.synchronize().unwrap();
        assert!(event.is_done().unwrap(), "never recorded");
        for round in 0..5 {
            launch(&a, 2);
            if round % 2 == 0 {
                a.record(&event).unwrap();
                b.wait_event(&event).unwrap();
            } else {
                b.wait(&a).unwrap();
            }
            launch(&b, 1);
            a.wait(&b).unwrap();
        }
        a.record(&event).unwrap();
        event.synchronize().unwrap();
        assert!(event.is_done().unwrap());
        assert_eq!(a.download(&x).unwrap(), [32; 64]);
        device.synchronize().unwrap();
    });
}

#[test]
fn events_of_other_machines_are_refused() {
    let (a, b) = (emulated(1).remove(0), emulated(1).remove(0));
    let (on_a, event_b) = (a.stream().unwrap(), b.event(false).unwrap());
    // The second of its machine as well: machines do not mistake each other's for their own.
    let _of_a = a.event(false).unwrap();
    assert_eq!(on_a.record(&event_b), Err(Error::WrongDevice { what: "the event" }));
    assert_eq!(on_a.wait_event(&event_b), Err(Error::WrongDevice { what: "the event" }));
}

#[test]
fn a_borrowed_stream_is_the_same_stream() {
    for_each_device("a_borrowed_stream_is_the_same_stream", |device| {
        let stream = device.stream().unwrap();
        // SAFETY: the stream outlives what borrows it.
        let borrowed = unsafe { device.stream_from_raw(stream.raw()) };
        let mut x = borrowed.upload(&[1u32, 2, 3]).unwrap();
        stream.fill_range(&mut x, 1..3, 0xff).unwrap();
        assert_eq!(borrowed.download(&x).unwrap(), [1, u32::MAX, u32::MAX]);
        drop((x, borrowed));
        assert_eq!(stream.download(&stream.upload(&[4u8]).unwrap()).unwrap(), [4]);
    });
    // A handle that means nothing there is an error on the emulator.
    let (a, b) = (emulated(1).remove(0), emulated(1).remove(0));
    let stream = a.stream().unwrap();
    // SAFETY: the emulator looks handles up.
    let stray = unsafe { b.stream_from_raw(stream.raw()) };
    assert_eq!(stray.synchronize(), Err(Error::WrongDevice { what: "the stream" }));
}

#[test]
fn time_between_events() {
    for_each_device("time_between_events", |device| {
        let stream = device.stream().unwrap();
        let (from, until) = (device.event(true).unwrap(), device.event(true).unwrap());
        stream.record(&from).unwrap();
        let _x = stream.zeroed::<u8>(1 << 20).unwrap();
        stream.record(&until).unwrap();
        until.synchronize().unwrap();
        match device.backend() {
            Backend::Emulator => {
                assert!(matches!(from.elapsed_ms(&until), Err(Error::Unsupported { what }) if what.contains("emulator")));
            }
            _ => assert!(from.elapsed_ms(&until).unwrap() >= 0.0),
        }
    });
}

#[test]
fn a_dependent_launch_sees_what_it_waits_for() {
    for_each_device_from("a_dependent_launch_sees_what_it_waits_for", (9, 0), |device| {
        let stream = device.stream().unwrap();
        let module = device.module(PTX_90).unwrap();
        let (first, second) = (module.kernel("first").unwrap(), module.kernel("second").unwrap());
        for _ in 0..10 {
            let x = stream.upload(&[0u32, 0]).unwrap();
            let one = LaunchConfig::new(1, 1);
            // SAFETY: the kernels use the two elements of x, the second after it has waited for the first.
            unsafe {
                stream.launch(&first, &one, Args::new().buffer(&x)).unwrap();
                stream.launch(&second, &one.programmatic(), Args::new().buffer(&x)).unwrap();
            }
            assert_eq!(stream.download(&x).unwrap(), [5, 6]);
        }
    });
}
