//! The driver's functions, found at run time, and what its results mean.

use crate::sys::{self, CUresult};
use crate::{Backend, Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// The oldest driver that is used, as `cuDriverGetVersion` counts: CUDA 12.0, whose `cuGetProcAddress` finds the others.
const OLDEST_DRIVER: i32 = 12000;

/// The driver, initialised.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) functions: sys::Functions,
    /// 13000 for CUDA 13.0.
    pub(super) version: i32,
}

/// Calls a function of the driver by its name and gives what it returned; an error where the driver lacks it. To be used in an `unsafe` block.
macro_rules! result_of {
    ($api:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match $api.functions.$name {
            Some(function) => Ok(function($($arg),*)),
            None => Err($api.missing(stringify!($name))),
        }
    };
}
pub(super) use result_of;

/// The same, with an error where the function returns one.
macro_rules! call {
    ($api:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match result_of!($api, $name($($arg),*)) {
            Ok(result) => $api.check(stringify!($name), result),
            Err(missing) => Err(missing),
        }
    };
}
pub(super) use call;

/// The driver, or why there is none. Asked for once: a driver that is installed later is not seen.
pub(super) fn api() -> Result<&'static Api> {
    static API: OnceLock<Result<Api>> = OnceLock::new();
    API.get_or_init(open).as_ref().map_err(Error::clone)
}

pub(super) fn no_device(reason: impl Into<String>) -> Error {
    Error::NoDevice { backend: Backend::Cuda, reason: reason.into() }
}

#[cfg(target_os = "linux")]
fn symbol(name: &CStr) -> *mut c_void {
    unsafe extern "C" {
        // In csrc/driver_stub.c.
        fn v3_gpu_driver_symbol(name: *const c_char) -> *mut c_void;
    }
    // SAFETY: it takes a string that ends with a zero, and may be called at any time from any thread.
    unsafe { v3_gpu_driver_symbol(name.as_ptr()) }
}

/// Nothing is found where the jumps of csrc/ are not compiled.
#[cfg(not(target_os = "linux"))]
fn symbol(_name: &CStr) -> *mut c_void {
    std::ptr::null_mut()
}

fn open() -> Result<Api> {
    if cfg!(not(target_os = "linux")) {
        return Err(no_device("the CUDA driver is only looked for on Linux"));
    }
    if symbol(c"cuInit").is_null() {
        return Err(no_device("there is no NVIDIA driver: libcuda.so.1 cannot be loaded"));
    }
    // The exported name of the version that the types are of (CUDA 12.0 and later have it).
    let finder = symbol(c"cuGetProcAddress_v2");
    // SAFETY: null, or the driver's function of this signature; `Option` of a function pointer has the layout of a pointer.
    let finder: sys::PFN_cuGetProcAddress_v12000 = unsafe { std::mem::transmute(finder) };
    let Some(finder) = finder else {
        return Err(no_device("the NVIDIA driver is older than CUDA 12.0, which this crate needs"));
    };
    let find = |name: &CStr, version: c_int| {
        let mut function = std::ptr::null_mut();
        let mut found = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        // SAFETY: `name` ends with a zero, both results outlive the call.
        let result = unsafe { finder(name.as_ptr(), &mut function, version, 0, &mut found) };
        let there = result == CUresult::CUDA_SUCCESS && found == sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;
        if there { function } else { std::ptr::null_mut() }
    };
    // SAFETY: what the driver finds under a name and a version is that function in that version.
    let functions = unsafe { sys::Functions::find(find) };
    let mut api = Api { functions, version: 0 };
    // SAFETY: no flags are defined; any number of calls is allowed.
    let ready = unsafe { call!(api, cuInit(0)) };
    ready.map_err(|e| no_device(format!("the driver cannot start: {e}")))?;
    // SAFETY: the result outlives the call.
    unsafe { call!(api, cuDriverGetVersion(&mut api.version)) }.map_err(|e| no_device(e.to_string()))?;
    if api.version < OLDEST_DRIVER {
        return Err(no_device(format!("the driver is for CUDA {}: this crate needs 12.0", api.version_name())));
    }
    Ok(api)
}

impl Api {
    pub(super) fn version_name(&self) -> String {
        format!("{}.{}", self.version / 1000, self.version % 1000 / 10)
    }

    pub(super) fn missing(&self, call: &'static str) -> Error {
        Error::Unsupported { what: format!("{call}, which the driver for CUDA {} lacks", self.version_name()) }
    }

    /// Name and description of a result: `CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered`.
    pub(super) fn describe(&self, result: CUresult) -> String {
        let text = |function: sys::PFN_cuGetErrorName_v6000| {
            let mut text: *const c_char = std::ptr::null();
            let function = function?;
            // SAFETY: `text` outlives the call, which sets it to a string that lives as long as the driver, or leaves it null.
            unsafe {
                let known = function(result, &mut text) == CUresult::CUDA_SUCCESS && !text.is_null();
                known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        let name = text(self.functions.cuGetErrorName).unwrap_or_else(|| "an error this driver does not name".into());
        match text(self.functions.cuGetErrorString) {
            Some(description) => format!("{name} ({}): {description}", result.0),
            None => format!("{name} ({})", result.0),
        }
    }

    /// The meaning of a result.
    pub(super) fn check(&self, call: &'static str, result: CUresult) -> Result<()> {
        Err(match result {
            CUresult::CUDA_SUCCESS => return Ok(()),
            CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => no_device(self.describe(result)),
            r if is_kernel_failure(r) => Error::Kernel { report: self.describe(r) },
            CUresult::CUDA_ERROR_NOT_SUPPORTED => Error::Unsupported { what: format!("{call}: {}", self.describe(result)) },
            r => Error::Driver { call, message: self.describe(r) },
        })
    }
}

/// What a kernel's failure leaves behind: every later call in the context returns it again (CUDA driver API, `CUresult`: "the process
/// must be terminated and relaunched").
fn is_kernel_failure(result: CUresult) -> bool {
    matches!(
        result,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTAINED
            | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK
    )
}
