//! The pinned toolkit: wheels of the Python package index, by version and content.

use crate::python::Wheel;

/// The release whose PTX is checked in. Not newer: PTX of a later release does not load on drivers of the 580 series.
pub const RELEASE: &str = "13.0";
/// The compiler of the pinned wheels, to the last digit.
pub const COMPILER: &str = "13.0.88";
/// `CUDA_VERSION` in cuda.h of that release.
pub const HEADER: &str = "13000";

/// The programs of the toolkit with the version that each of them reports.
pub const PROGRAMS: [(&str, &str); 6] = [
    ("nvcc", COMPILER),
    ("ptxas", COMPILER),
    ("fatbinary", COMPILER),
    ("nvlink", COMPILER),
    ("nvdisasm", "13.2.86"),
    ("cuobjdump", "13.2.86"),
];

/// All of them. They unpack into one folder without a file in common.
pub const WHEELS: [Wheel; 7] = [
    Wheel {
        name: "nvidia-cuda-nvcc",
        version: "13.0.88",
        x86_64: "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
        aarch64: "c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f",
    },
    Wheel {
        name: "nvidia-nvvm",
        version: "13.0.88",
        x86_64: "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
        aarch64: "c4376a291d72d22a315d9d2f69bdae8f8cd83a627f75bad395cee49a0fe65dc1",
    },
    Wheel {
        name: "nvidia-cuda-crt",
        version: "13.0.88",
        x86_64: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
        aarch64: "ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003",
    },
    Wheel {
        name: "nvidia-cuda-runtime",
        version: "13.0.96",
        x86_64: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        aarch64: "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
    },
    Wheel {
        name: "nvidia-cuda-cccl",
        version: "13.0.85",
        x86_64: "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
        aarch64: "6f0203e29fed809ee2b7fe9b1344df66ecab990c37d6a2e0e189b26d6c97ed7c",
    },
    Wheel {
        name: "nvidia-cuda-nvdisasm",
        version: "13.2.86",
        x86_64: "53606e719ecae07a2335f95902d5a1393a0cc1c317499ee7ffcf628a44385f2c",
        aarch64: "d02c627f7aecfcac4dd5e923e94adeaa6607c5fdae8df750b01ad948d38941d3",
    },
    Wheel {
        name: "nvidia-cuda-cuobjdump",
        version: "13.2.86",
        x86_64: "d332c2ffe78e703ca0a3894be927f83124244e2acf0d792b8c12b4362d44d837",
        aarch64: "9a025b92d5faca837f69841317760df9b27f3871bfa089d80cc428399743fd56",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn hashes_are_whole_and_differ() {
        let hashes: Vec<&str> = WHEELS.iter().flat_map(|w| [w.x86_64, w.aarch64]).collect();
        assert!(hashes.iter().all(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit())));
        assert_eq!(hashes.iter().collect::<BTreeSet<_>>().len(), 2 * WHEELS.len());
    }
}
