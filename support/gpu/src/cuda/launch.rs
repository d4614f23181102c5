//! Modules, kernels, launches and tensor maps.

use super::api::{Api, call, result_of};
use super::{Cuda, lock};
use crate::driver::Handle;
use crate::sys::{self, CUresult};
use crate::{Error, KernelInfo, L2Promotion, LaunchConfig, OutOfBoundsFill, Result, Swizzle, TensorMapDesc, TensorType, entry};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What a kernel may use of shared memory without asking, static and dynamic together.
const UNASKED_SHARED: u64 = 48 * 1024;

/// Blocks of a cluster that every GPU with clusters takes.
const PORTABLE_CLUSTER: u32 = 8;

/// What is loaded.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// By module. Kept where the driver cannot be asked (before CUDA 12.4): the sizes of parameters as the text has them.
    texts: HashMap<Handle, Option<Box<str>>>,
    pub(super) kernels: HashMap<Handle, Arc<Kernel>>,
    next: Handle,
}

impl Modules {
    /// All modules, which the caller unloads.
    pub(super) fn drain(&mut self) -> Vec<Handle> {
        self.kernels.clear();
        self.texts.drain().map(|(module, _)| module).collect()
    }
}

#[derive(Debug)]
pub(super) struct Kernel {
    /// A `CUfunction`.
    function: u64,
    module: Handle,
    name: String,
    static_shared: u32,
    /// `.reqnctapercluster`.
    required_cluster: Option<[u32; 3]>,
    /// Dynamic shared memory that the driver was asked to allow.
    allowed_shared: AtomicU32,
    allowed_clusters: AtomicBool,
}

impl Kernel {
    pub(super) fn raw(&self) -> sys::CUfunction {
        self.function as sys::CUfunction
    }
}

pub(super) fn load(cuda: &Cuda, ptx: &str) -> Result<Handle> {
    let text = CString::new(ptx).map_err(|e| {
        let before = &ptx.as_bytes()[..e.nul_position()];
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        let column = 1 + before.iter().rev().take_while(|&&b| b != b'\n').count();
        Error::Module { message: format!("{line}:{column}: a zero byte") }
    })?;
    let mut log = vec![0u8; 16 * 1024];
    let mut options = [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // Values are passed as they are where a pointer has room for them.
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), (log.len() - 1) as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: the text ends with a zero; options, values, the log and the result outlive the call, and the log is as long as it is said to be.
    let result = unsafe {
        let image = text.as_ptr().cast();
        result_of!(cuda.api, cuModuleLoadDataEx(&mut module, image, 2, options.as_mut_ptr(), values.as_mut_ptr()))
    }?;
    cuda.api.check("cuModuleLoadDataEx", result).map_err(|e| match e {
        Error::Driver { message, .. } if result != CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            let log = log.iter().take_while(|&&b| b != 0).copied().collect::<Vec<u8>>();
            Error::Module { message: format!("{message}\n{}", String::from_utf8_lossy(&log)).trim_end().to_string() }
        }
        e => e,
    })?;
    let handle = module as Handle;
    let text = cuda.api.functions.cuFuncGetParamInfo.is_none().then(|| ptx.into());
    lock(&cuda.modules).texts.insert(handle, text);
    Ok(handle)
}

pub(super) fn unload(cuda: &Cuda, module: Handle) -> Result<()> {
    let mut modules = lock(&cuda.modules);
    modules.kernels.retain(|_, kernel| kernel.module != module);
    if modules.texts.remove(&module).is_none() {
        return Ok(());
    }
    // SAFETY: it was loaded, and nothing of it is used any more: what is launched of it finishes first.
    unsafe {
        call!(cuda.api, cuCtxSynchronize())?;
        call!(cuda.api, cuModuleUnload(module as sys::CUmodule))
    }
}

pub(super) fn kernel(cuda: &Cuda, module: Handle, name: &str) -> Result<(Handle, KernelInfo)> {
    use sys::CUfunction_attribute as A;
    let missing = || Error::NotFound { what: "kernel", name: name.into() };
    let c_name = CString::new(name).map_err(|_| missing())?;
    let mut function = std::ptr::null_mut();
    // SAFETY: a loaded module; the name ends with a zero; the result outlives the call.
    let result = unsafe { result_of!(cuda.api, cuModuleGetFunction(&mut function, module as sys::CUmodule, c_name.as_ptr())) }?;
    if result == CUresult::CUDA_ERROR_NOT_FOUND {
        return Err(missing());
    }
    cuda.api.check("cuModuleGetFunction", result)?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: a function of a loaded module; the result outlives the call.
        unsafe { call!(cuda.api, cuFuncGetAttribute(&mut value, attribute, function)) }?;
        Ok::<u32, Error>(u32::try_from(value).unwrap_or(0))
    };
    let params = match lock(&cuda.modules).texts.get(&module) {
        Some(Some(text)) => entry::params(text, name).ok_or_else(missing)?,
        Some(None) => params(cuda.api, function)?,
        None => return Err(Error::WrongDevice { what: "the module" }),
    };
    let cluster = [
        attribute(A::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH)?,
        attribute(A::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT)?,
        attribute(A::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH)?,
    ];
    let static_shared = attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    let info = KernelInfo {
        name: name.into(),
        params,
        max_threads: attribute(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        static_shared,
        max_dynamic_shared: cuda.max_shared.saturating_sub(static_shared),
        cluster: (!cluster.contains(&0)).then_some(cluster),
        registers: Some(attribute(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?),
    };
    let kernel = Kernel {
        function: function as u64,
        module,
        name: name.into(),
        static_shared,
        required_cluster: info.cluster,
        allowed_shared: AtomicU32::new(0),
        allowed_clusters: AtomicBool::new(false),
    };
    let mut modules = lock(&cuda.modules);
    modules.next += 1;
    let handle = modules.next;
    modules.kernels.insert(handle, Arc::new(kernel));
    Ok((handle, info))
}

/// Bytes of each parameter, as the driver has them.
fn params(api: &Api, function: sys::CUfunction) -> Result<Vec<u32>> {
    let mut sizes = vec![];
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: a function of a loaded module; the results outlive the call.
        let result = unsafe { result_of!(api, cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size)) }?;
        if result == CUresult::CUDA_ERROR_INVALID_VALUE {
            // There is none of this number.
            return Ok(sizes);
        }
        api.check("cuFuncGetParamInfo", result)?;
        sizes.push(u32::try_from(size).unwrap_or(u32::MAX));
    }
}

pub(super) fn global(cuda: &Cuda, module: Handle, name: &str) -> Result<(u64, u64)> {
    let missing = || Error::NotFound { what: "variable", name: name.into() };
    let c_name = CString::new(name).map_err(|_| missing())?;
    let (mut address, mut bytes) = (0, 0);
    // SAFETY: a loaded module; the name ends with a zero; the results outlive the call.
    let result =
        unsafe { result_of!(cuda.api, cuModuleGetGlobal(&mut address, &mut bytes, module as sys::CUmodule, c_name.as_ptr())) }?;
    if result == CUresult::CUDA_ERROR_NOT_FOUND {
        return Err(missing());
    }
    cuda.api.check("cuModuleGetGlobal", result)?;
    Ok((address, bytes as u64))
}

/// Asks the driver to allow what it does not allow unasked: much dynamic shared memory, large clusters.
pub(super) fn allow(cuda: &Cuda, kernel: &Kernel, dynamic_shared: u32, cluster: [u32; 3]) -> Result<()> {
    use sys::CUfunction_attribute as A;
    let much = u64::from(kernel.static_shared) + u64::from(dynamic_shared) > UNASKED_SHARED;
    if much && kernel.allowed_shared.load(Ordering::Acquire) < dynamic_shared {
        let bytes = i32::try_from(dynamic_shared).unwrap_or(i32::MAX);
        let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a function of a loaded module.
        unsafe { call!(cuda.api, cuFuncSetAttribute(kernel.raw(), attribute, bytes)) }?;
        kernel.allowed_shared.fetch_max(dynamic_shared, Ordering::AcqRel);
    }
    let blocks = cluster.iter().fold(1u32, |a, &d| a.saturating_mul(d));
    if blocks > PORTABLE_CLUSTER && !kernel.allowed_clusters.load(Ordering::Acquire) {
        let attribute = A::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
        // SAFETY: as above.
        unsafe { call!(cuda.api, cuFuncSetAttribute(kernel.raw(), attribute, 1)) }?;
        kernel.allowed_clusters.store(true, Ordering::Release);
    }
    Ok(())
}

/// Where the driver reads an argument: aligned for a tensor map.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
struct Line([u8; 128]);

pub(super) fn launch(cuda: &Cuda, stream: Handle, kernel: &Kernel, config: &LaunchConfig, args: &[Vec<u8>]) -> Result<()> {
    let fail = |message: String| Error::Launch { kernel: kernel.name.clone(), message };
    let cluster = config.cluster.or(kernel.required_cluster);
    if cluster.is_some() && cuda.compute_capability.0 < 9 {
        return Err(fail("clusters need compute capability 9.0".into()));
    }
    allow(cuda, kernel, config.dynamic_shared, cluster.unwrap_or([1; 3])).map_err(|e| match e {
        Error::Driver { message, .. } => fail(message),
        e => e,
    })?;

    let mut attributes = Vec::with_capacity(3);
    let mut attribute = |id, set: &dyn Fn(&mut sys::CUlaunchAttributeValue)| {
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        set(&mut value);
        attributes.push(sys::CUlaunchAttribute { id, pad: [0; 4], value });
    };
    // A kernel that says its cluster itself must not be told again.
    if let (Some([x, y, z]), None) = (config.cluster, kernel.required_cluster) {
        attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &|value| {
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
        });
    }
    // A permission: without the hardware for it there is nothing to permit.
    if config.programmatic && cuda.compute_capability.0 >= 9 {
        attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, &|value| {
            value.programmaticStreamSerializationAllowed = 1;
        });
    }
    if config.cooperative {
        attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, &|value| value.cooperative = 1);
    }

    let lines = |arg: &Vec<u8>| arg.len().div_ceil(128).max(1);
    let mut storage = vec![Line([0; 128]); args.iter().map(lines).sum()];
    let mut pointers: Vec<*mut c_void> = Vec::with_capacity(args.len());
    let mut rest = storage.as_mut_slice();
    for arg in args {
        let (here, after) = rest.split_at_mut(lines(arg));
        for (line, bytes) in here.iter_mut().zip(arg.chunks(128)) {
            line.0[..bytes.len()].copy_from_slice(bytes);
        }
        pointers.push(here.as_mut_ptr().cast());
        rest = after;
    }

    let config = sys::CUlaunchConfig {
        gridDimX: config.grid[0],
        gridDimY: config.grid[1],
        gridDimZ: config.grid[2],
        blockDimX: config.block[0],
        blockDimY: config.block[1],
        blockDimZ: config.block[2],
        sharedMemBytes: config.dynamic_shared,
        hStream: stream as sys::CUstream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    };
    // SAFETY: a loaded function and a stream of this object; `Stream::launch_raw` has compared number and sizes of the arguments with those of the
    // parameters; all that the call reads outlives it, and it copies the arguments. What the kernel does is the caller's to answer for.
    let result =
        unsafe { result_of!(cuda.api, cuLaunchKernelEx(&config, kernel.raw(), pointers.as_mut_ptr(), std::ptr::null_mut())) }?;
    match result {
        CUresult::CUDA_ERROR_INVALID_VALUE
        | CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE
        | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        | CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE => Err(fail(cuda.api.describe(result))),
        result => cuda.api.check("cuLaunchKernelEx", result),
    }
}

pub(super) fn tensor_map(api: &Api, desc: &TensorMapDesc) -> Result<[u8; 128]> {
    use sys::{CUtensorMapDataType as T, CUtensorMapL2promotion as L, CUtensorMapSwizzle as S};
    let ty = match desc.ty {
        TensorType::U8 => T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        TensorType::U16 => T::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        TensorType::U32 => T::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        TensorType::S32 => T::CU_TENSOR_MAP_DATA_TYPE_INT32,
        TensorType::U64 => T::CU_TENSOR_MAP_DATA_TYPE_UINT64,
        TensorType::S64 => T::CU_TENSOR_MAP_DATA_TYPE_INT64,
        TensorType::F16 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        TensorType::F32 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        TensorType::F64 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        TensorType::Bf16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        TensorType::Tf32 => T::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
    };
    let swizzle = match desc.swizzle {
        Swizzle::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let l2_promotion = match desc.l2_promotion {
        L2Promotion::None => L::CU_TENSOR_MAP_L2_PROMOTION_NONE,
        L2Promotion::B64 => L::CU_TENSOR_MAP_L2_PROMOTION_L2_64B,
        L2Promotion::B128 => L::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        L2Promotion::B256 => L::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
    };
    let fill = match desc.fill {
        OutOfBoundsFill::Zero => sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        OutOfBoundsFill::Nan => sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA,
    };
    let ones = [1; 5];
    let element_strides = if desc.element_strides.is_empty() { &ones[..] } else { &desc.element_strides };
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: `TensorMapDesc::check` has compared the lengths: rank elements each, one fewer of the strides; the address is only written
    // into the map, which outlives the call.
    let result = unsafe {
        result_of!(
            api,
            cuTensorMapEncodeTiled(
                &mut map,
                ty,
                desc.dims.len() as u32,
                desc.address.0 as *mut c_void,
                desc.dims.as_ptr(),
                desc.strides.as_ptr(),
                desc.box_dims.as_ptr(),
                element_strides.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                l2_promotion,
                fill,
            )
        )
    }?;
    if result == CUresult::CUDA_ERROR_INVALID_VALUE {
        return Err(Error::TensorMap { message: format!("the driver refuses {desc:?}: {}", api.describe(result)) });
    }
    api.check("cuTensorMapEncodeTiled", result)?;
    let mut bytes = [0; 128];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(map.opaque) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    Ok(bytes)
}
