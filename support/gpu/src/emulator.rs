//! The back end that executes PTX on the CPU.

use crate::driver::{Driver, Handle};
use crate::{Backend, Device, DeviceInfo, Error, KernelInfo, L2Promotion, LaunchConfig, OutOfBoundsFill, Result, Swizzle};
use crate::{TensorMapDesc, TensorType};
use ptx_emu::tma::{self, Tiled};
use ptx_emu::{Arg, EventId, LaunchError, Loaded, MOST_SHARED, Machine, MemoryError, Module, Report, Shape, StreamId};
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use ptx_emu::{Checks as EmulatorChecks, Config as EmulatorConfig, Fp8Accumulation};

/// What all devices of a machine share.
#[derive(Debug, Default)]
struct Tables {
    streams: HashMap<Handle, StreamId>,
    events: HashMap<Handle, EventId>,
    modules: HashMap<Handle, Arc<(Module, Loaded)>>,
    kernels: HashMap<Handle, (Arc<(Module, Loaded)>, String)>,
}

/// A handle that no machine has given out before: one machine's mean nothing to another.
fn new_handle() -> Handle {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[derive(Debug)]
struct Emulator {
    machine: Machine,
    device: u32,
    tables: Arc<Mutex<Tables>>,
}

/// The devices of a new machine.
pub(crate) fn devices(config: &EmulatorConfig) -> Result<Vec<Device>> {
    let machine = Machine::new(config.clone());
    let tables = Arc::new(Mutex::new(Tables::default()));
    Ok((0..machine.config().devices)
        .map(|device| Device::new(Box::new(Emulator { machine: machine.clone(), device, tables: Arc::clone(&tables) })))
        .collect())
}

fn unknown(what: &'static str) -> Error {
    Error::WrongDevice { what }
}

impl From<Report> for Error {
    fn from(report: Report) -> Error {
        Error::Kernel { report: report.to_string() }
    }
}

fn driver(call: &'static str) -> impl Fn(LaunchError) -> Error {
    move |e| match e {
        LaunchError::Stopped(report) => Error::Kernel { report },
        e => Error::Driver { call, message: e.to_string() },
    }
}

fn memory(call: &'static str) -> impl Fn(MemoryError) -> Error {
    move |e| Error::Driver { call, message: e.to_string() }
}

impl Emulator {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stream(&self, handle: Handle) -> Result<StreamId> {
        self.tables().streams.get(&handle).copied().ok_or_else(|| unknown("the stream"))
    }

    fn event(&self, handle: Handle) -> Result<EventId> {
        self.tables().events.get(&handle).copied().ok_or_else(|| unknown("the event"))
    }
}

impl Driver for Emulator {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn backend(&self) -> Backend {
        Backend::Emulator
    }

    fn ordinal(&self) -> u32 {
        self.device
    }

    fn info(&self) -> Result<DeviceInfo> {
        Ok(DeviceInfo {
            name: "ptx-emu".into(),
            compute_capability: (9, 0),
            sm_count: self.machine.config().sm_count,
            memory: 1 << 40,
            max_shared_per_block: MOST_SHARED,
            l2_bytes: 50 << 20,
            stream_ordered: true,
            driver: format!("ptx-emu seed {}", self.machine.config().seed),
        })
    }

    fn synchronize(&self) -> Result<()> {
        Ok(self.machine.synchronize()?)
    }

    fn alloc(&self, bytes: u64, _stream: Handle) -> Result<u64> {
        self.machine.memory().alloc(self.device, bytes).map_err(|_| Error::OutOfMemory { bytes })
    }

    fn free(&self, address: u64, stream: Handle) -> Result<()> {
        self.machine.free_async(self.stream(stream)?, address).map_err(driver("free"))
    }

    fn pinned(&self, bytes: u64) -> Result<(*mut u8, u64)> {
        let address = self.machine.memory().alloc_pinned(bytes).map_err(|_| Error::OutOfMemory { bytes })?;
        let host = self.machine.memory().pinned_pointer(address).map_err(memory("pinned memory"))?;
        // The host may write it whenever it likes: its bytes count as written.
        self.machine.memory().fill(address, 0, bytes).map_err(memory("pinned memory"))?;
        Ok((host, address))
    }

    fn free_pinned(&self, _host: *mut u8, device: u64) -> Result<()> {
        self.machine.memory().free(device).map_err(memory("free of pinned memory"))
    }

    fn stream_create(&self) -> Result<Handle> {
        let stream = self.machine.stream(self.device).map_err(driver("stream"))?;
        let mut tables = self.tables();
        let handle = new_handle();
        tables.streams.insert(handle, stream);
        Ok(handle)
    }

    fn stream_destroy(&self, stream: Handle) -> Result<()> {
        self.tables().streams.remove(&stream);
        Ok(())
    }

    fn stream_synchronize(&self, stream: Handle) -> Result<()> {
        let stream = self.stream(stream)?;
        Ok(self.machine.synchronize_stream(stream)?)
    }

    fn event_create(&self, _timing: bool) -> Result<Handle> {
        let event = self.machine.event();
        let mut tables = self.tables();
        let handle = new_handle();
        tables.events.insert(handle, event);
        Ok(handle)
    }

    fn event_destroy(&self, event: Handle) -> Result<()> {
        self.tables().events.remove(&event);
        Ok(())
    }

    fn event_record(&self, event: Handle, stream: Handle) -> Result<()> {
        self.machine.record(self.stream(stream)?, self.event(event)?).map_err(driver("event record"))
    }

    fn event_synchronize(&self, event: Handle) -> Result<()> {
        let event = self.event(event)?;
        Ok(self.machine.synchronize_event(event)?)
    }

    fn event_done(&self, event: Handle) -> Result<bool> {
        Ok(self.machine.event_done(self.event(event)?))
    }

    fn event_elapsed_ms(&self, _from: Handle, _to: Handle) -> Result<f32> {
        Err(Error::Unsupported { what: "device time on the emulator".into() })
    }

    fn stream_wait_event(&self, stream: Handle, event: Handle) -> Result<()> {
        self.machine.wait_event(self.stream(stream)?, self.event(event)?).map_err(driver("wait for an event"))
    }

    fn write(&self, stream: Handle, to: u64, bytes: &[u8]) -> Result<()> {
        self.machine.write_async(self.stream(stream)?, to, bytes).map_err(driver("copy to the device"))
    }

    fn read(&self, stream: Handle, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.stream_synchronize(stream)?;
        self.machine.memory().read(from, bytes).map_err(memory("copy to the host"))
    }

    fn copy(&self, stream: Handle, to: u64, from: u64, bytes: u64) -> Result<()> {
        self.machine.copy_async(self.stream(stream)?, to, from, bytes).map_err(driver("copy"))
    }

    fn fill(&self, stream: Handle, to: u64, value: u8, bytes: u64) -> Result<()> {
        self.machine.fill_async(self.stream(stream)?, to, value, bytes).map_err(driver("fill"))
    }

    fn module_load(&self, ptx: &str) -> Result<Handle> {
        let module = Module::parse(ptx).map_err(|e| Error::Module { message: e.to_string() })?;
        let loaded = self.machine.load(&module, self.device).map_err(|e| Error::Module { message: e.to_string() })?;
        let mut tables = self.tables();
        let handle = new_handle();
        tables.modules.insert(handle, Arc::new((module, loaded)));
        Ok(handle)
    }

    fn module_unload(&self, module: Handle) -> Result<()> {
        let mut tables = self.tables();
        if let Some(gone) = tables.modules.remove(&module) {
            tables.kernels.retain(|_, (of, _)| !Arc::ptr_eq(of, &gone));
        }
        Ok(())
    }

    fn kernel(&self, module: Handle, name: &str) -> Result<(Handle, KernelInfo)> {
        let mut tables = self.tables();
        let of = Arc::clone(tables.modules.get(&module).ok_or_else(|| unknown("the module"))?);
        let missing = || Error::NotFound { what: "kernel", name: name.into() };
        let static_shared = of.0.static_shared(name).ok_or_else(missing)?;
        let info = KernelInfo {
            name: name.into(),
            params: of.0.params(name).ok_or_else(missing)?,
            max_threads: of.0.max_threads(name).ok_or_else(missing)?,
            static_shared,
            max_dynamic_shared: MOST_SHARED.saturating_sub(static_shared),
            cluster: of.0.required_cluster(name),
            registers: None,
        };
        let handle = new_handle();
        tables.kernels.insert(handle, (of, name.into()));
        Ok((handle, info))
    }

    fn global(&self, module: Handle, name: &str) -> Result<(u64, u64)> {
        let tables = self.tables();
        let of = tables.modules.get(&module).ok_or_else(|| unknown("the module"))?;
        of.1.global(name).ok_or_else(|| Error::NotFound { what: "variable", name: name.into() })
    }

    fn occupancy(&self, kernel: Handle, threads: u32, dynamic_shared: u32) -> Result<u32> {
        let tables = self.tables();
        let (of, name) = tables.kernels.get(&kernel).ok_or_else(|| unknown("the kernel"))?;
        let shared = of.0.static_shared(name).unwrap_or(0).saturating_add(dynamic_shared);
        Ok(ptx_emu::blocks_per_sm(threads, shared))
    }

    fn launch(&self, stream: Handle, kernel: Handle, config: &LaunchConfig, args: &[Vec<u8>]) -> Result<()> {
        let stream = self.stream(stream)?;
        let (of, name) = self.tables().kernels.get(&kernel).cloned().ok_or_else(|| unknown("the kernel"))?;
        if config.cooperative {
            let [threads, blocks] = [config.block, config.grid].map(|d| d.iter().fold(1u32, |a, &n| a.saturating_mul(n)));
            let shared = of.0.static_shared(&name).unwrap_or(0).saturating_add(config.dynamic_shared);
            let most = ptx_emu::blocks_per_sm(threads, shared).saturating_mul(self.machine.config().sm_count);
            if blocks > most {
                let message = format!("{blocks} cooperative blocks, where {most} are resident at once");
                return Err(Error::Launch { kernel: name, message });
            }
        }
        let shape = Shape {
            grid: config.grid,
            block: config.block,
            cluster: config.cluster,
            dynamic_shared: config.dynamic_shared,
            programmatic: config.programmatic,
        };
        let args: Vec<Arg> = args.iter().map(|a| Arg(a.clone())).collect();
        self.machine.launch(stream, &of.1, &name, shape, &args).map_err(|e| match e {
            LaunchError::Stopped(report) => Error::Kernel { report },
            e => Error::Launch { kernel: name, message: e.to_string() },
        })
    }

    fn tensor_map(&self, desc: &TensorMapDesc) -> Result<[u8; 128]> {
        let ones = vec![1; desc.dims.len()];
        let tiled = Tiled {
            data_type: match desc.ty {
                TensorType::U8 => tma::DataType::Uint8,
                TensorType::U16 => tma::DataType::Uint16,
                TensorType::U32 => tma::DataType::Uint32,
                TensorType::S32 => tma::DataType::Int32,
                TensorType::U64 => tma::DataType::Uint64,
                TensorType::S64 => tma::DataType::Int64,
                TensorType::F16 => tma::DataType::Float16,
                TensorType::F32 => tma::DataType::Float32,
                TensorType::F64 => tma::DataType::Float64,
                TensorType::Bf16 => tma::DataType::Bfloat16,
                TensorType::Tf32 => tma::DataType::Tfloat32,
            },
            address: desc.address.0,
            dims: &desc.dims,
            strides: &desc.strides,
            box_dims: &desc.box_dims,
            element_strides: if desc.element_strides.is_empty() { &ones } else { &desc.element_strides },
            interleave: tma::Interleave::None,
            swizzle: match desc.swizzle {
                Swizzle::None => tma::Swizzle::None,
                Swizzle::B32 => tma::Swizzle::B32,
                Swizzle::B64 => tma::Swizzle::B64,
                Swizzle::B128 => tma::Swizzle::B128,
            },
            l2_promotion: match desc.l2_promotion {
                L2Promotion::None => tma::L2Promotion::None,
                L2Promotion::B64 => tma::L2Promotion::B64,
                L2Promotion::B128 => tma::L2Promotion::B128,
                L2Promotion::B256 => tma::L2Promotion::B256,
            },
            fill: match desc.fill {
                OutOfBoundsFill::Zero => tma::Fill::Zero,
                OutOfBoundsFill::Nan => tma::Fill::Nan,
            },
        };
        let map = tma::TensorMap::tiled(&tiled).map_err(|e| Error::TensorMap { message: e.to_string() })?;
        Ok(map.encode().bytes)
    }

    fn can_access_peer(&self, other: &dyn Driver) -> Result<bool> {
        let other = other.as_any().downcast_ref::<Emulator>();
        Ok(other.is_some_and(|o| Arc::ptr_eq(&o.tables, &self.tables) && o.device != self.device))
    }

    fn enable_peer_access(&self, other: &dyn Driver) -> Result<()> {
        if !self.can_access_peer(other)? {
            return Err(Error::WrongDevice { what: "the peer is not of the same machine: it" });
        }
        self.machine.memory().enable_peer(self.device, other.ordinal()).map_err(memory("peer access"))
    }
}
