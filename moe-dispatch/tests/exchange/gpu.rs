//! Several ranks on one GPU, in one launch.

use crate::cases::{Kind, Rng, config};
use crate::exact::exchange;
use moe_dispatch::gpu::Arch;
use moe_dispatch::gpu::exchange::{Copies, ExchangeConfig, ExchangeKernels};
use v3_gpu::{Device, Error};

/// The first GPU; if there is none that is noted.
fn gpu(test: &str) -> Option<Device> {
    match Device::cuda(0) {
        Ok(device) => Some(device),
        Err(Error::NoDevice { reason, .. } | Error::Unsupported { what: reason }) => {
            v3_testkit::skip::skip(&format!("{test} (cuda)"), &reason);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn ranks_of_one_gpu() {
    let Some(device) = gpu("ranks_of_one_gpu") else { return };
    let arch = Arch::of(device.info().unwrap().compute_capability).unwrap();
    let mut texts = vec![(arch, Copies::Vectors)];
    if arch == Arch::Sm90a {
        texts.extend([(Arch::Sm80, Copies::Vectors), (Arch::Sm90a, Copies::Bulk)]);
    }
    for (arch, copies) in texts {
        for (nodes, per_node) in [(1, 1), (1, 8), (2, 2), (2, 4), (4, 2), (8, 1)] {
            let sizes = |change: &dyn Fn(&mut ExchangeConfig)| {
                let mut config = config(nodes, per_node, nodes * per_node * 8, 6.min(nodes * per_node * 8), 150);
                change(&mut config);
                config
            };
            let kinds = [Kind::Random, Kind::Skewed, Kind::Empty, Kind::Sparse, Kind::Random];
            let load = |device: &Device| ExchangeKernels::load_for(device, arch, copies);
            let devices = vec![device.clone(); (nodes * per_node) as usize];
            exchange(sizes(&|c| (c.sms, c.warps) = (8, 16)), &devices, &kinds, &mut Rng(1), load);
            exchange(sizes(&|c| (c.row_bytes, c.columns, c.slots) = (14336, 7168, 2)), &devices, &kinds, &mut Rng(2), load);
            exchange(sizes(&|c| (c.slots, c.warps) = (1, 2)), &devices, &kinds, &mut Rng(3), load);
        }
    }
}
