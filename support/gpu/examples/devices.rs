//! The GPUs of this machine, or why there is none: `cargo run -p v3-gpu --features cuda --example devices`.

use cust::device::{Device, DeviceAttribute};
use cust::error::CudaResult;
// Brings in the definitions of the driver's functions.
use v3_gpu as _;

fn main() {
    if let Err(error) = devices() {
        println!("{error:?}: {error}");
    }
}

fn devices() -> CudaResult<()> {
    cust::init(cust::CudaFlags::empty())?;
    let version = cust::CudaApiVersion::get()?;
    println!("driver for CUDA {}.{}", version.major(), version.minor());
    for (index, device) in Device::devices()?.enumerate() {
        let device = device?;
        let major = device.get_attribute(DeviceAttribute::ComputeCapabilityMajor)?;
        let minor = device.get_attribute(DeviceAttribute::ComputeCapabilityMinor)?;
        let multiprocessors = device.get_attribute(DeviceAttribute::MultiprocessorCount)?;
        println!(
            "{index}: {}, sm_{major}{minor}, {multiprocessors} multiprocessors, {} MB",
            device.name()?,
            device.total_memory()? / 1_000_000
        );
    }
    Ok(())
}
