//! The GPUs of this machine, or why there is none: `cargo run -p v3-gpu --features cuda --example devices`.

use v3_gpu::{Device, Error, Result};

fn main() {
    if let Err(error) = devices() {
        // The name of the variant is what scripts look for.
        let name = if matches!(error, Error::NoDevice { .. }) { "NoDevice: " } else { "" };
        println!("{name}{error}");
    }
}

fn devices() -> Result<()> {
    for ordinal in 0..Device::cuda_count()? {
        let info = Device::cuda(ordinal)?.info()?;
        if ordinal == 0 {
            println!("driver for CUDA: {}", info.driver);
        }
        let (major, minor) = info.compute_capability;
        println!(
            "{ordinal}: {}, sm_{major}{minor}, {} multiprocessors, {} MB, {} KB of shared memory a block, {} MB of L2, {}",
            info.name,
            info.sm_count,
            info.memory / 1_000_000,
            info.max_shared_per_block / 1024,
            info.l2_bytes >> 20,
            if info.stream_ordered { "memory allocated in stream order" } else { "no memory pools" }
        );
    }
    Ok(())
}
