//! Several devices.

use crate::common::{emulated, for_each_device, with_kernel};
use v3_gpu::{Args, Device, Error, LaunchConfig, Stream};

/// Two emulated devices, and two GPUs where there are two that reach each other.
fn for_each_pair(name: &str, test: impl Fn(&Device, &Device)) {
    let two = emulated(2);
    test(&two[0], &two[1]);
    let gpus = || -> Result<(Device, Device), Error> {
        let (a, b) = (Device::cuda(0)?, Device::cuda(1)?);
        if a.can_access_peer(&b)? && b.can_access_peer(&a)? {
            return Ok((a, b));
        }
        Err(Error::Unsupported { what: "the first two GPUs do not reach each other".into() })
    };
    match gpus() {
        Ok((a, b)) => test(&a, &b),
        Err(Error::NoDevice { reason, .. } | Error::Unsupported { what: reason }) => {
            v3_testkit::skip::skip(&format!("{name} (cuda)"), &reason);
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn peers_copy_and_launch() {
    for_each_pair("peers_copy_and_launch", |a, b| {
        assert!(a.can_access_peer(b).unwrap());
        let (on_a, scale) = with_kernel(a, "scale");
        let on_b = b.stream().unwrap();
        let mut of_a = on_a.upload(&[1u32; 40]).unwrap();
        let mut of_b = on_b.upload(&[5u32; 40]).unwrap();
        let launch = |stream: &Stream, x: &v3_gpu::Buffer<u32>| {
            let args = Args::new().buffer(x).value(40u32).value(3u32);
            // SAFETY: the kernel changes the elements of x alone; the streams wait for each other.
            unsafe { stream.launch(&scale, &LaunchConfig::new(2, 32), args) }
        };
        // Before access is given, the address is nobody's.
        assert_eq!(launch(&on_a, &of_b), Err(Error::DeadPointer { index: 0, address: of_b.ptr().0 }));
        a.enable_peer_access(b).unwrap();
        a.enable_peer_access(b).unwrap();
        on_a.wait(&on_b).unwrap();
        launch(&on_a, &of_b).unwrap();
        on_a.copy(&mut of_a, &of_b).unwrap();
        assert_eq!(on_a.download(&of_a).unwrap(), [15; 40]);
        on_b.wait(&on_a).unwrap();
        assert_eq!(on_b.download(&of_b).unwrap(), [15; 40]);
        // One way only, until the other is asked for.
        assert_eq!(on_b.copy(&mut of_b, &of_a), Err(Error::WrongDevice { what: "the buffer" }));
        b.enable_peer_access(a).unwrap();
        on_b.copy(&mut of_b, &of_a).unwrap();
        assert_eq!(on_b.download(&of_b).unwrap(), [15; 40]);
    });
}

#[test]
fn peers_that_are_gone() {
    for_each_pair("peers_that_are_gone", |a, b| {
        a.enable_peer_access(b).unwrap();
        let (on_a, scale) = with_kernel(a, "scale");
        let address = b.stream().unwrap().upload(&[1u32]).unwrap().ptr();
        let args = Args::new().pointer(address).value(1u32).value(1u32);
        // SAFETY: it is refused.
        let result = unsafe { on_a.launch(&scale, &LaunchConfig::new(1, 1), args) };
        assert_eq!(result, Err(Error::DeadPointer { index: 0, address: address.0 }));
    });
}

#[test]
fn a_device_is_not_its_own_peer() {
    for_each_device("a_device_is_not_its_own_peer", |device| {
        assert!(!device.can_access_peer(device).unwrap());
        assert!(matches!(device.enable_peer_access(device), Err(Error::WrongDevice { .. })));
    });
    let (a, b) = (emulated(1).remove(0), emulated(1).remove(0));
    assert!(!a.can_access_peer(&b).unwrap(), "another machine");
    assert!(matches!(a.enable_peer_access(&b), Err(Error::WrongDevice { .. })));
}
