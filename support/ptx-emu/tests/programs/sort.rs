//! `bitonic_sort.cu`.

use crate::SEEDS;
use crate::args;
use crate::common::*;
use ptx_emu::{Config, Shape};
use v3_testkit::Rng;

fn each(seeds: u64, sizes: &[usize], run: impl Fn(&Text, Config, usize) -> Run + Sync) {
    for arch in ["sm_80", "sm_90"] {
        let text = text("bitonic_sort", arch);
        for &n in sizes {
            passes(seeds, |config| run(&text, config, n));
        }
    }
}

#[test]
fn keys_with_values() {
    each(2, &[1024, 4096], |text, config, n| {
        let mut rng = Rng::new(n as u64 + config.seed);
        let ascending = config.seed % 2 == 0;
        let gpu = Gpu::new(text, config);
        // Keys repeat; each value is the place its key comes from.
        let keys: Vec<u32> = (0..n).map(|_| if rng.below(4) == 0 { rng.below(10) as u32 } else { rng.u32() }).collect();
        let (k, v) = (gpu.upload(&keys), gpu.upload(&Vec::from_iter(0..n as u32)));
        let (size, direction) = (n as u32, u32::from(ascending));
        let blocks = size / 1024;
        gpu.run("bitonic_sort_shared", Shape::new(blocks, 512), &args![k, v, size, direction])?;
        let mut run = 2048;
        while run <= size {
            let mut stride = run / 2;
            while stride >= 1024 {
                gpu.launch("bitonic_merge_global", Shape::new(size / 512, 256), &args![k, v, size, run, stride, direction])?;
                stride /= 2;
            }
            gpu.launch("bitonic_merge_shared", Shape::new(blocks, 512), &args![k, v, size, run, direction])?;
            run *= 2;
        }
        gpu.machine.synchronize()?;

        let mut expected = keys.clone();
        expected.sort_unstable();
        if !ascending {
            expected.reverse();
        }
        gpu.expect("keys", k, &expected)?;
        let values = gpu.download::<u32>(v, n);
        let followed: Vec<u32> = values.iter().map(|&at| keys[at as usize]).collect();
        equal("keys by value", &followed, &expected)?;
        let mut places = values;
        places.sort_unstable();
        equal("values", &places, &Vec::from_iter(0..n as u32))
    });
}

#[test]
fn inside_warps() {
    each(SEEDS, &[32, 96, 1024], |text, config, n| {
        let gpu = Gpu::new(text, config);
        let mut x = Rng::new(n as u64).normal_vec(n, 10.0);
        let address = gpu.upload(&x);
        gpu.run("bitonic_sort_warp", Shape::new(3, 64), &args![address, n as u32])?;
        x.chunks_mut(32).for_each(|warp| warp.sort_by(f32::total_cmp));
        gpu.expect("x", address, &x)
    });
}

#[test]
fn odd_and_even_places() {
    each(SEEDS, &[1, 2, 77, 200], |text, config, n| {
        let gpu = Gpu::new(text, config);
        let mut rng = Rng::new(n as u64);
        let mut x: Vec<i16> = (0..n).map(|_| rng.u32() as i16).collect();
        let address = gpu.upload(&x);
        gpu.run("odd_even_transpose", Shape::new(1, 100).shared(2 * n as u32), &args![address, n as u32])?;
        x.sort_unstable();
        gpu.expect("x", address, &x)
    });
}
