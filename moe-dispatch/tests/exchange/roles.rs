//! Which warps do what: the same on host and device.

use crate::cases::Rng;
use crate::emulated;
use moe_dispatch::gpu::exchange::warps_of_first;
use v3_gpu::{Args, LaunchConfig};

#[test]
fn host_and_device_share_warps_out_alike() {
    let mut rng = Rng(1);
    let mut inputs: Vec<[u32; 3]> = Vec::new();
    for warps in [2, 3, 8, 15, 16] {
        for first in [0, 1, 2, 5, 100, u32::MAX] {
            for second in [0, 1, 3, 5, 99, 1000, u32::MAX] {
                inputs.push([warps, first, second]);
            }
        }
    }
    for _ in 0..500 {
        let bits = rng.below(32);
        inputs.push([2 + rng.below(15) as u32, (rng.next() as u32) >> bits, (rng.next() as u32) >> rng.below(32)]);
    }
    let device = emulated(1, 0).remove(0);
    let stream = device.stream().unwrap();
    let kernel = device.module(include_str!("../ptx/ep_roles.sm_80.ptx")).unwrap().kernel("ep_roles").unwrap();
    let from = stream.upload(&inputs.concat()).unwrap();
    let to = stream.zeroed::<u32>(inputs.len()).unwrap();
    let count = inputs.len() as u32;
    let args = Args::new().buffer(&from).buffer(&to).value(count);
    // SAFETY: the kernel reads three words and writes one for each of `count` inputs.
    unsafe { stream.launch(&kernel, &LaunchConfig::new(count.div_ceil(128), 128), args) }.unwrap();
    let device = stream.download(&to).unwrap();
    for (&[warps, first, second], device) in inputs.iter().zip(device) {
        let host = warps_of_first(warps, first, second);
        assert_eq!(host, device, "{warps} warps, {first} and {second} rows");
        // What the description says, in another way.
        let share = f64::from(warps) * f64::from(first) / (f64::from(first) + f64::from(second));
        match (first, second) {
            (0, _) => assert_eq!(host, 0),
            (_, 0) => assert_eq!(host, warps),
            _ => assert!((1..warps).contains(&host) && (f64::from(host) - share.clamp(1.0, f64::from(warps - 1))).abs() <= 0.5),
        }
    }
}
