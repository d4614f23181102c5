//! Flags between two devices at the scope of one (`bugs_sync.cu`, `producer_consumer.cu`): what one GPU cannot show.

use crate::args;
use crate::common::pair::{Pair, Pipe, pipe};
use crate::common::*;
use ptx_emu::{Config, Kind, Shape};

/// A run that must end in a report that names one of two kernels, whichever came second, on its device.
fn reports_between(text: &Text, kernels: [&str; 2], places: &[Place], run: impl Fn(Config) -> Run) {
    for seed in 0..seeds(WRONG) {
        let Err(Failure::Report(report)) = run(Config { seed, ..Config::default() }) else {
            panic!("seed {seed}: nothing is reported");
        };
        let device = report.thread.map_or(0, |t| t.device);
        let expected = Expected {
            text,
            kernel: kernels[device as usize],
            kinds: &[Kind::InsufficientScope],
            places,
            thread: |id| id.thread == [0; 3],
            says: &["global", "device 1", kernels[0], kernels[1]],
        };
        expected.check(&report).unwrap_or_else(|what| panic!("seed {seed}: {what}; the report is:\n{report}"));
    }
}

#[test]
fn a_release_that_reaches_one_device_only() {
    let text = text("bugs_sync", "sm_80");
    // The data and the flag lie on either device.
    let send = |config: Config, sender: &str, memory: u32| {
        let pair = Pair::new(&text, config);
        let (data, flag, out) = (pair.room(memory, 128), pair.upload(memory, &[0]), pair.room(1, 128));
        pair.run([(sender, &args![data, flag]), ("device_receive", &args![data, flag, out])], Shape::new(1, 128))?;
        pair.expect("out", out, &Vec::from_iter(1..=128))
    };
    let places = [
        Place("st.release.gpu", "ptx::st_release_gpu_global(flag, 1u);"),
        Place("ld.acquire.sys", "while (ptx::ld_acquire_sys_global(flag) == 0)"),
    ];
    for memory in [0, 1] {
        passes(CORRECT, |config| send(config, "device_send_ok", memory));
        reports_between(&text, ["device_send_gpu", "device_receive"], &places, |config| send(config, "device_send_gpu", memory));
    }
}

#[test]
fn a_ring_between_devices_with_flags_of_one_device() {
    let sizes = |ring_on| Pipe { blocks: 2, chunks: 3, slots: 2, ring_on };
    let kernels = ["produce", "consume"];
    for arch in ["sm_80", "sm_90"] {
        let wrong = text("producer_consumer-scope", arch);
        let flag = [
            Place("ld.acquire.gpu", "load(cuda::memory_order_acquire)"),
            Place("st.release.gpu", "store(turn + 1, cuda::memory_order_release)"),
            Place("st.relaxed", "store(turn + 1, cuda::memory_order_release)"),
        ];
        for ring_on in [0, 1] {
            reports_between(&wrong, kernels, &flag, |config| pipe(&wrong, config, kernels, sizes(ring_on)));
        }
        let right = text("producer_consumer", arch);
        passes(CORRECT, |config| {
            let ring_on = (config.seed % 2) as u32;
            pipe(&right, config, kernels, sizes(ring_on))
        });
    }
}
