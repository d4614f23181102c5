//! The CUDA driver as this machine has it, or has none.

#![cfg(all(feature = "cuda", target_os = "linux"))]

use std::ffi::{c_char, c_int, c_void};
use v3_gpu::{Backend, Device, Error};

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
}

#[test]
fn a_missing_driver_is_a_value() {
    // SAFETY: loads a library by name, with RTLD_NOW.
    let there = unsafe { !dlopen(c"libcuda.so.1".as_ptr(), 2).is_null() };
    let result = cust::quick_init().map(|_| ());
    if there {
        // Whatever the driver says is a value as well.
        println!("driver: {result:?}");
        return;
    }
    let error = result.unwrap_err();
    assert_eq!(error, cust::error::CudaError::NoDevice);
    assert!(error.to_string().contains("no CUDA-capable device"), "{error}");
    let reason = "there is no NVIDIA driver: libcuda.so.1 cannot be loaded".to_string();
    let none = Error::NoDevice { backend: Backend::Cuda, reason };
    assert_eq!(Device::cuda_count(), Err(none.clone()));
    assert_eq!(Device::cuda(0), Err(none));
}
