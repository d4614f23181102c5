//! Modules, kernels, launches: what they are, and every mistake that can be made with them.

use crate::common::{PTX, PTX_90, emulated, for_each_device, for_each_device_from, with_kernel};
use v3_gpu::{Args, Backend, Device, DevicePtr, Error, Kernel, LaunchConfig, Stream};

fn launch(stream: &Stream, kernel: &Kernel, config: LaunchConfig, args: Args) -> Result<(), Error> {
    // SAFETY: the kernels of this file use only the buffers that they are given here, as far as they reach.
    unsafe { stream.launch(kernel, &config, args) }
}

/// The message of a launch that was refused, which must be of this kernel.
fn refused(kernel: &str, result: Result<(), Error>) -> String {
    match result {
        Err(Error::Launch { kernel: said, message }) => {
            assert_eq!(said, kernel);
            message
        }
        result => panic!("{kernel}: {result:?}"),
    }
}

#[test]
fn what_a_kernel_is() {
    for_each_device("what_a_kernel_is", |device| {
        let module = device.module(PTX).unwrap();
        let info = |name: &str| module.kernel(name).unwrap().info().clone();
        assert_eq!(info("scale").params, [8, 4, 4]);
        assert_eq!(info("mixed").params, [24, 1, 8]);
        assert_eq!(info("nothing").params, [] as [u32; 0]);
        assert_eq!((info("small").max_threads, info("nothing").max_threads), (64, 1024));
        let shared = info("shared");
        let most = device.info().unwrap().max_shared_per_block;
        assert_eq!((shared.static_shared, shared.max_dynamic_shared), (1024, most - 1024));
        assert_eq!(shared.name, "shared");
        assert_eq!(shared.cluster, None);
        assert_eq!(shared.registers.is_none(), device.backend() == Backend::Emulator);
        let nothing = module.kernel("nothing").unwrap();
        // 1536 or 2048 threads a multiprocessor.
        assert!(matches!(nothing.occupancy(1024, 0).unwrap(), 1 | 2));
        assert!(nothing.occupancy(128, 0).unwrap() >= 12);
        assert_eq!(nothing.occupancy(32, most).unwrap(), 1);
        assert_eq!(nothing.device(), device);
        assert_eq!(module.device(), device);
    });
}

#[test]
fn a_launch_has_as_many_threads_as_it_says() {
    for_each_device("a_launch_has_as_many_threads_as_it_says", |device| {
        let (stream, scale) = with_kernel(device, "scale");
        for (blocks, threads) in [(1, 1), (1, 33), (3, 32), (7, 96), (2, 1024)] {
            let n = blocks * threads;
            let x = stream.upload(&vec![3u32; n as usize + 5]).unwrap();
            let args = Args::new().buffer(&x).value(n + 5).value(7u32);
            launch(&stream, &scale, LaunchConfig::new(blocks, threads), args).unwrap();
            let mut expected = vec![21; n as usize];
            expected.extend([3; 5]);
            assert_eq!(stream.download(&x).unwrap(), expected);
        }
    });
}

#[test]
fn arguments_of_every_size() {
    for_each_device("arguments_of_every_size", |device| {
        let (stream, mixed) = with_kernel(device, "mixed");
        let out = stream.zeroed::<u32>(1).unwrap();
        let one = LaunchConfig::new(1, 1);
        launch(&stream, &mixed, one, Args::new().value([1000u32, 0, 0, 0, 0, 0]).value(200u8).buffer(&out)).unwrap();
        assert_eq!(stream.download(&out).unwrap(), [1200]);
        let pair = [out.ptr(), DevicePtr(5), DevicePtr(6)];
        launch(&stream, &mixed, one, Args::new().params(&pair, &[out.ptr()]).value(0u8).buffer(&out)).unwrap();
        assert_eq!(stream.download(&out).unwrap(), [out.ptr().0 as u32]);
        // The same by bytes alone.
        let bytes = [vec![7u8; 24], vec![1], out.ptr().0.to_le_bytes().to_vec()];
        // SAFETY: the address is that of `out`.
        unsafe { stream.launch_raw(&mixed, &one, &bytes).unwrap() };
        assert_eq!(stream.download(&out).unwrap(), [0x0707_0708]);
    });
}

#[test]
fn wrong_arguments() {
    for_each_device("wrong_arguments", |device| {
        let (stream, scale) = with_kernel(device, "scale");
        let x = stream.upload(&[1u32; 32]).unwrap();
        let one = LaunchConfig::new(1, 32);
        let try_with = |args| refused("scale", launch(&stream, &scale, one, args));
        assert_eq!(try_with(Args::new()), "0 arguments where the kernel takes 3");
        assert_eq!(try_with(Args::new().buffer(&x).value(32u32)), "2 arguments where the kernel takes 3");
        let four = Args::new().buffer(&x).value(32u32).value(2u32).value(2u32);
        assert_eq!(try_with(four), "4 arguments where the kernel takes 3");
        assert_eq!(try_with(Args::new().buffer(&x).value(32u64).value(2u32)), "argument 1 has 8 bytes where the kernel takes 4");
        assert_eq!(try_with(Args::new().value(1u32).value(32u32).value(2u32)), "argument 0 has 4 bytes where the kernel takes 8");
        // SAFETY: it is refused.
        let raw = unsafe { stream.launch_raw(&scale, &one, &[vec![0; 8], vec![0; 4], vec![]]) };
        assert_eq!(refused("scale", raw), "argument 2 has 0 bytes where the kernel takes 4");
        assert_eq!(stream.download(&x).unwrap(), [1; 32], "nothing ran");
    });
}

#[test]
fn dead_pointers() {
    for_each_device("dead_pointers", |device| {
        let (stream, scale) = with_kernel(device, "scale");
        let x = stream.upload(&[1u32; 32]).unwrap();
        let freed = {
            let gone = stream.upload(&[0u8; 1 << 20]).unwrap();
            gone.ptr().offset(1 << 19)
        };
        let empty = stream.alloc::<u32>(0).unwrap();
        let past = x.ptr().offset(128);
        let dead = |args: Args, index, address: DevicePtr| {
            let result = launch(&stream, &scale, LaunchConfig::new(1, 32), args);
            assert_eq!(result, Err(Error::DeadPointer { index, address: address.0 }));
        };
        let rest = |args: Args| args.value(32u32).value(2u32);
        dead(rest(Args::new().pointer(DevicePtr(0))), 0, DevicePtr(0));
        dead(rest(Args::new().buffer(&empty)), 0, DevicePtr(0));
        dead(rest(Args::new().pointer(freed)), 0, freed);
        dead(rest(Args::new().pointer(DevicePtr(0x1234))), 0, DevicePtr(0x1234));
        dead(rest(Args::new().pointer(past)), 0, past);
        // Inside of a struct.
        dead(rest(Args::new().params(&[x.ptr()], &[x.ptr(), freed])), 0, freed);
        dead(Args::new().buffer(&x).value(1u32).params(&[0u32], &[DevicePtr(8)]), 2, DevicePtr(8));
        // In the middle of live memory is fine.
        launch(&stream, &scale, LaunchConfig::new(1, 32), Args::new().pointer(x.range(30..32).unwrap()).value(2u32).value(9u32))
            .unwrap();
        let mut expected = vec![1; 30];
        expected.extend([9, 9]);
        assert_eq!(stream.download(&x).unwrap(), expected);
    });
}

#[test]
fn pinned_memory_is_an_argument() {
    for_each_device("pinned_memory_is_an_argument", |device| {
        let (stream, scale) = with_kernel(device, "scale");
        let mut x = device.pinned::<u32>(10).unwrap();
        x.fill(6);
        launch(&stream, &scale, LaunchConfig::new(1, 32), Args::new().pinned(&x).value(10u32).value(7u32)).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(x[..], [42; 10]);
    });
}

#[test]
fn wrong_shapes() {
    for_each_device("wrong_shapes", |device| {
        let module = device.module(PTX).unwrap();
        let stream = device.stream().unwrap();
        let refuse = |name: &str, config| refused(name, launch(&stream, &module.kernel(name).unwrap(), config, Args::new()));
        let shape = |grid, block| LaunchConfig { grid, block, ..LaunchConfig::new(1, 1) };
        for (block, most) in
            [([0, 1, 1], 1024), ([1025, 1, 1], 1024), ([32, 32, 2], 1024), ([1, 1, 65], 1024), ([u32::MAX; 3], 1024)]
        {
            let message = refuse("nothing", shape([1; 3], block));
            assert_eq!(message, format!("a block of {block:?} threads: 1 to {most} of them, z at most 64"));
        }
        assert!(refuse("small", shape([1; 3], [65, 1, 1])).contains("1 to 64 of them"));
        for grid in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1 << 31, 1, 1], [1, 65536, 1], [1, 1, 65536]] {
            assert!(refuse("nothing", shape(grid, [1; 3])).contains("a grid of"), "{grid:?}");
        }
        let most = device.info().unwrap().max_shared_per_block;
        for (name, most) in [("nothing", most), ("bump", most)] {
            let message = refuse(name, LaunchConfig::new(1, 1).shared(most + 1));
            assert_eq!(message, format!("{} bytes of dynamic shared memory: at most {most}", most + 1));
        }
        launch(&stream, &module.kernel("nothing").unwrap(), shape([3, 2, 2], [4, 4, 64]), Args::new()).unwrap();
        launch(&stream, &module.kernel("nothing").unwrap(), LaunchConfig::new(1, 1).shared(most), Args::new()).unwrap();
        stream.synchronize().unwrap();
    });
}

#[test]
fn dynamic_shared_memory_beyond_48_kilobytes() {
    for_each_device("dynamic_shared_memory_beyond_48_kilobytes", |device| {
        let (stream, shared) = with_kernel(device, "shared");
        let out = stream.zeroed::<u32>(1).unwrap();
        let most = shared.info().max_dynamic_shared;
        assert!(most > 48 * 1024);
        for bytes in [16, 47 * 1024, 47 * 1024 + 16, most, 100] {
            launch(&stream, &shared, LaunchConfig::new(1, 32).shared(bytes), Args::new().buffer(&out)).unwrap();
            assert_eq!(stream.download(&out).unwrap(), [bytes]);
        }
        let message =
            refused("shared", launch(&stream, &shared, LaunchConfig::new(1, 32).shared(most + 1), Args::new().buffer(&out)));
        assert_eq!(message, format!("{} bytes of dynamic shared memory: at most {most}", most + 1));
    });
}

#[test]
fn clusters() {
    for_each_device_from("clusters", (9, 0), |device| {
        let stream = device.stream().unwrap();
        let module = device.module(PTX_90).unwrap();
        let (pair, ranks) = (module.kernel("pair").unwrap(), module.kernel("ranks").unwrap());
        assert_eq!((pair.info().cluster, ranks.info().cluster), (Some([2, 1, 1]), None));
        let run = |kernel: &Kernel, config: LaunchConfig| {
            let out = stream.upload(&[99u32; 8]).unwrap();
            launch(&stream, kernel, config, Args::new().buffer(&out))?;
            Ok::<_, Error>(stream.download(&out).unwrap())
        };
        assert_eq!(run(&pair, LaunchConfig::new(8, 1)).unwrap(), [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(run(&pair, LaunchConfig::new(8, 1).clusters(2)).unwrap(), [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(run(&ranks, LaunchConfig::new(8, 1)).unwrap(), [0; 8]);
        assert_eq!(run(&ranks, LaunchConfig::new(8, 1).clusters(4)).unwrap(), [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(run(&ranks, LaunchConfig::new(8, 1).clusters(8)).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        let refuse = |kernel: &Kernel, config| refused(&kernel.info().name, run(kernel, config).map(|_| ()));
        assert!(refuse(&ranks, LaunchConfig::new(7, 1).clusters(2)).contains("is not a multiple of clusters of [2, 1, 1]"));
        assert!(refuse(&pair, LaunchConfig::new(7, 1)).contains("is not a multiple of clusters of [2, 1, 1]"));
        assert!(refuse(&pair, LaunchConfig::new(8, 1).clusters(4)).contains("requires [2, 1, 1]"));
        assert!(refuse(&ranks, LaunchConfig::new(34, 1).clusters(17)).contains("1 to 16"));
        assert!(refuse(&ranks, LaunchConfig::new(8, 1).clusters(0)).contains("1 to 16"));
    });
}

#[test]
fn cooperative_grids_fit_the_device() {
    for_each_device("cooperative_grids_fit_the_device", |device| {
        let stream = device.stream().unwrap();
        let nothing = device.module(PTX).unwrap().kernel("nothing").unwrap();
        let most = nothing.occupancy(1024, 0).unwrap() * device.info().unwrap().sm_count;
        let run = |blocks: u32| launch(&stream, &nothing, LaunchConfig::new(blocks, 1024).cooperative(), Args::new());
        run(most).unwrap();
        let message = refused("nothing", run(most + 1));
        assert!(device.backend() != Backend::Emulator || message.contains("cooperative"), "{message}");
        launch(&stream, &nothing, LaunchConfig::new(most + 1, 1024), Args::new()).unwrap();
        stream.synchronize().unwrap();
    });
}

#[test]
fn names_that_are_not_there() {
    for_each_device("names_that_are_not_there", |device| {
        let module = device.module(PTX).unwrap();
        for name in ["scal", "Scale", "", "a\0b", "counter"] {
            assert_eq!(module.kernel(name).unwrap_err(), Error::NotFound { what: "kernel", name: name.into() });
        }
        for name in ["count", "", "a\0b", "scale"] {
            assert_eq!(module.global(name).unwrap_err(), Error::NotFound { what: "variable", name: name.into() });
        }
    });
}

#[test]
fn variables_of_a_module() {
    for_each_device("variables_of_a_module", |device| {
        let stream = device.stream().unwrap();
        let module = device.module(PTX).unwrap();
        let other = device.module(PTX).unwrap();
        let (address, bytes) = module.global("counter").unwrap();
        assert_eq!(bytes, 4);
        assert_ne!(address, other.global("counter").unwrap().0, "each load has its own");
        let bump = module.kernel("bump").unwrap();
        let scale = module.kernel("scale").unwrap();
        for _ in 0..3 {
            launch(&stream, &bump, LaunchConfig::new(1, 1), Args::new()).unwrap();
        }
        // The kernel is given the variable's address, by raw bytes.
        let args = [address.0.to_le_bytes().to_vec(), 1u32.to_le_bytes().to_vec(), 2u32.to_le_bytes().to_vec()];
        // SAFETY: one u32 is there.
        unsafe { stream.launch_raw(&scale, &LaunchConfig::new(1, 1), &args).unwrap() };
        let (out, mixed) = (stream.zeroed::<u32>(1).unwrap(), module.kernel("mixed").unwrap());
        drop(module);
        stream.synchronize().unwrap();
        // Kernels keep their module.
        launch(&stream, &mixed, LaunchConfig::new(1, 1), Args::new().value([1u32; 6]).value(1u8).buffer(&out)).unwrap();
        assert_eq!(stream.download(&out).unwrap(), [2]);
    });
}

#[test]
fn malformed_modules_are_errors_with_a_place() {
    for_each_device("malformed_modules_are_errors_with_a_place", |device| {
        let message = |ptx: &str| match device.module(ptx) {
            Err(Error::Module { message }) => message,
            result => panic!("{result:?}"),
        };
        let typo = PTX.replace("mad.lo.u32 %r6, %r3, %r4, %r5;", "mad.lo.u32 %r6, %r3 %r4, %r5;");
        let line = 1 + typo.lines().position(|l| l.contains("%r3 %r4")).unwrap();
        let said = message(&typo);
        match device.backend() {
            Backend::Emulator => assert!(said.starts_with(&format!("{line}:25: ")), "{said}"),
            _ => assert!(said.contains(&format!("line {line}")), "{said}"),
        }
        let unknown = message(&PTX.replace("mul.lo.u32", "mul.middle.u32"));
        assert!(unknown.contains("middle"), "{unknown}");
        assert!(message("").len() > 3);
        assert!(message("no PTX at all").len() > 3);
        let zero = message(&PTX.replace("bra DONE", "bra\0DONE"));
        assert!(!zero.is_empty());
    });
}

#[test]
fn kernels_of_another_device_are_refused() {
    let mut two = emulated(2);
    let pairs: Vec<(Device, Device)> = vec![(two.remove(0), two.remove(0)), (emulated(1).remove(0), emulated(1).remove(0))];
    for (a, b) in pairs {
        let (on_a, of_b) = (a.stream().unwrap(), with_kernel(&b, "nothing").1);
        let result = launch(&on_a, &of_b, LaunchConfig::new(1, 1), Args::new());
        assert_eq!(result, Err(Error::WrongDevice { what: "the kernel" }));
    }
}
