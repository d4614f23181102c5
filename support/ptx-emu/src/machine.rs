//! The machine: devices, streams, launches, and the calls of the host.

use crate::ast::Space;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::{LaunchError, ParseError};
use crate::memory::{AllocOptions, Memory};
use crate::program::{Program, Target};
use crate::report::Report;
use crate::stream::{Command, State, Waiting};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Function handles are addresses from here on, outside of every memory.
pub const FUNCTION_HANDLES: u64 = 0x7f40_0000_0000;

/// Most shared memory of a block, static and dynamic together, in bytes (Hopper: 227 KiB).
pub const MOST_SHARED: u32 = 227 * 1024;

/// What all parts of a running machine share.
#[derive(Debug)]
pub struct Env {
    /// Settings.
    pub config: Config,
    /// Global memory.
    pub memory: Memory,
    /// Counts changes of state that another thread could see; only kept while one thread runs everything.
    progress: AtomicU64,
    printed: Mutex<String>,
}

impl Env {
    /// `%globaltimer`: nanoseconds of a clock that runs with the instructions.
    pub fn timer(&self, clock: u64) -> u64 {
        1_000_000 + clock
    }

    /// Something changed that another thread could see: a store, an arrival, an exit.
    #[inline]
    pub fn progress(&self) {
        if self.config.threads <= 1 {
            // One thread runs everything: no need to lock the bus.
            self.progress.store(self.progress.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// How often something changed.
    pub fn progressed(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// What a kernel prints.
    pub fn print(&self, text: &str) {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }
}

/// A launch that another may overlap and has to wait for.
#[derive(Debug, Clone)]
pub struct Prerequisite {
    /// Its number.
    pub id: u64,
    /// All its blocks are done.
    pub finished: Arc<AtomicBool>,
}

/// A launch that runs.
#[derive(Debug)]
pub struct Launch {
    /// Number.
    pub id: u64,
    /// Device.
    pub device: u32,
    /// The module.
    pub program: Arc<Program>,
    /// The kernel.
    pub kernel: u32,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Whether the launch or the kernel asked for clusters.
    pub explicit_cluster: bool,
    /// Bytes.
    pub dynamic_shared: u32,
    /// Where shared addresses end: the reserved first bytes, static and dynamic shared memory.
    pub shared_size: u32,
    /// Multiprocessors of the device.
    pub sm_count: u32,
    /// Parameter memory.
    pub params: Vec<u8>,
    /// Addresses of symbols.
    pub symbols: Arc<[u64]>,
    /// First of the numbers that the race detector calls the program's instructions by.
    pub site_base: u32,
    /// Launches that `griddepcontrol.wait` waits for.
    pub prerequisites: Vec<Prerequisite>,
    /// Launches known to be over when this one started: what the race detector takes as ordered before.
    pub after: Vec<u64>,
    /// Blocks that executed `griddepcontrol.launch_dependents` or have exited.
    pub released: AtomicU64,
    /// All blocks are done.
    pub finished: Arc<AtomicBool>,
    /// Warp instructions executed.
    pub executed: AtomicU64,
}

impl Launch {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Blocks of the grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&d| u64::from(d)).product()
    }

    /// Blocks of a cluster.
    pub fn cluster_size(&self) -> u32 {
        self.cluster.iter().product()
    }

    /// The kernel's name.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.program.functions[self.kernel as usize].name)
    }
}

/// A parsed and decoded module, to be loaded on any number of machines.
#[derive(Debug, Clone)]
pub struct Module {
    pub(crate) program: Arc<Program>,
}

impl Module {
    /// Parses and decodes a PTX text. A malformed text or an instruction that is not modelled is an error with its line and column.
    pub fn parse(ptx: &str) -> Result<Module, ParseError> {
        let tree = crate::parse::parse(ptx)?;
        Ok(Module { program: Arc::new(crate::decode::decode(&tree)?) })
    }

    /// The kernels' names, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.program.functions.iter().filter(|f| f.is_entry && f.defined).map(|f| &*f.name)
    }

    /// Sizes in bytes of a kernel's parameters, in order.
    pub fn params(&self, kernel: &str) -> Option<Vec<u32>> {
        let function = &self.program.functions[*self.program.by_name.get(kernel)? as usize];
        function.is_entry.then(|| function.params.iter().map(|p| p.size).collect())
    }

    /// Blocks of a cluster that a kernel requires (`.reqnctapercluster`).
    pub fn required_cluster(&self, kernel: &str) -> Option<[u32; 3]> {
        self.program.functions[*self.program.by_name.get(kernel)? as usize].required_cluster
    }

    /// Bytes of static shared memory that a kernel names.
    pub fn static_shared(&self, kernel: &str) -> Option<u32> {
        Some(self.program.shared_layout(*self.program.by_name.get(kernel)?).1)
    }

    /// Most threads of a block of a kernel.
    pub fn max_threads(&self, kernel: &str) -> Option<u32> {
        let function = &self.program.functions[*self.program.by_name.get(kernel)? as usize];
        function.is_entry.then(|| function.max_threads.unwrap_or(1024).min(1024) as u32)
    }

    /// `sm_90a` and the like.
    pub fn target(&self) -> &str {
        &self.program.target
    }
}

/// A module loaded on a device: its variables have addresses.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub(crate) program: Arc<Program>,
    pub(crate) device: u32,
    pub(crate) symbols: Arc<[u64]>,
    pub(crate) site_base: u32,
}

impl Loaded {
    /// Address and bytes of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        let at = self.program.symbols.iter().position(|s| s.name == name && s.space != Space::Shared)?;
        Some((self.symbols[at], self.program.symbols[at].size))
    }
}

/// Shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y, z; None: as the kernel says, or no clusters.
    pub cluster: Option<[u32; 3]>,
    /// Dynamic shared memory in bytes.
    pub dynamic_shared: u32,
    /// The launch may begin when all blocks of the one before it in the stream have executed `griddepcontrol.launch_dependents`
    /// or ended (programmatic stream serialisation).
    pub programmatic: bool,
}

impl Shape {
    /// One-dimensional, without clusters or dynamic shared memory.
    pub fn new(blocks: u32, threads: u32) -> Shape {
        Shape { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: None, dynamic_shared: 0, programmatic: false }
    }

    /// With this much dynamic shared memory, in bytes.
    pub fn shared(self, bytes: u32) -> Shape {
        Shape { dynamic_shared: bytes, ..self }
    }

    /// With clusters of this many blocks in x.
    pub fn clusters(self, blocks: u32) -> Shape {
        Shape { cluster: Some([blocks, 1, 1]), ..self }
    }
}

/// A kernel argument: its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg(pub Vec<u8>);

macro_rules! arg_from {
    ($($t:ty),*) => { $(
        impl From<$t> for Arg {
            fn from(value: $t) -> Arg {
                Arg(value.to_le_bytes().to_vec())
            }
        }
    )* };
}
arg_from!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl From<&[u8]> for Arg {
    fn from(bytes: &[u8]) -> Arg {
        Arg(bytes.to_vec())
    }
}

/// A stream of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(pub(crate) usize);

/// An event of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(pub(crate) usize);

pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) state: Mutex<State>,
    pub(crate) engine: Mutex<Engine>,
}

/// Devices that execute PTX. Clones are the same machine; host threads may share it.
///
/// Work is queued on streams and runs when a host thread waits for it ([`Machine::synchronize`] and its like), in the order that the seed
/// says. The first error stops the machine: it returns that [`Report`] from then on, as a GPU's context would.
#[derive(Clone)]
pub struct Machine {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("config", &self.inner.env.config).finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine with these settings. More than one operating-system thread turns the detectors off, and with them repeatability.
    pub fn new(mut config: Config) -> Machine {
        config.devices = config.devices.max(1);
        config.sm_count = config.sm_count.max(1);
        config.threads = config.threads.max(1);
        config.hosts = config.hosts.max(1);
        if config.threads > 1 {
            config.checks = crate::config::Checks::NONE;
        }
        let memory = Memory::new(config.devices, config.checks.uninitialized);
        let state = State::new(&config);
        let engine = Engine::new(&config, config.seed);
        let env = Env { config, memory, progress: AtomicU64::new(0), printed: Mutex::default() };
        Machine { inner: Arc::new(Inner { env, state: Mutex::new(state), engine: Mutex::new(engine) }) }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.inner.env.config
    }

    /// Global memory of all devices: allocation, host access, peer access.
    pub fn memory(&self) -> &Memory {
        &self.inner.env.memory
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What kernels have printed since this was last asked.
    pub fn take_printed(&self) -> String {
        std::mem::take(&mut *self.inner.env.printed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads a module on a device: its variables get memory there, with their initial values.
    pub fn load(&self, module: &Module, device: u32) -> Result<Loaded, LaunchError> {
        let program = Arc::clone(&module.program);
        if device >= self.config().devices {
            return Err(LaunchError::Device { device, devices: self.config().devices });
        }
        let memory = self.memory();
        let mut addresses = vec![0; program.symbols.len()];
        for (symbol, address) in program.symbols.iter().zip(&mut addresses) {
            if symbol.space == Space::Shared {
                continue;
            }
            if symbol.is_extern && symbol.init.is_empty() {
                return Err(LaunchError::Extern { name: symbol.name.clone() });
            }
            let options = AllocOptions {
                align: u64::from(symbol.align),
                constant: symbol.space == Space::Const,
                name: Some(Arc::from(symbol.name.as_str())),
            };
            *address = memory.alloc_with(device, symbol.size.max(1), &options).map_err(LaunchError::Memory)?;
        }
        for (symbol, &address) in program.symbols.iter().zip(&addresses) {
            if symbol.space == Space::Shared {
                continue;
            }
            // Variables without initial values are zero, as new memory is.
            memory.define(address, symbol.size.max(1)).map_err(LaunchError::Memory)?;
            let mut bytes = symbol.init.clone();
            for relocation in &symbol.relocations {
                let base = match relocation.target {
                    Target::Symbol(id) => addresses[id as usize],
                    Target::Function(id) => FUNCTION_HANDLES + u64::from(id),
                };
                let value = base.wrapping_add(relocation.offset as u64).to_le_bytes();
                let at = relocation.at as usize;
                for (byte, value) in bytes.iter_mut().skip(at).zip(value.into_iter().take(relocation.size as usize)) {
                    *byte = value;
                }
            }
            memory.write(address, &bytes).map_err(LaunchError::Memory)?;
        }
        let site_base = self.state().register(&program);
        Ok(Loaded { program, device, symbols: addresses.into(), site_base })
    }

    /// A new stream on a device.
    pub fn stream(&self, device: u32) -> Result<StreamId, LaunchError> {
        if device >= self.config().devices {
            return Err(LaunchError::Device { device, devices: self.config().devices });
        }
        Ok(StreamId(self.state().add_stream(device)))
    }

    /// A new event, not recorded yet: waiting for it waits for nothing.
    pub fn event(&self) -> EventId {
        EventId(self.state().add_event())
    }

    /// Queues a launch. What is wrong with its shape or its arguments is an error at once; nothing is queued then.
    pub fn launch(&self, stream: StreamId, module: &Loaded, kernel: &str, shape: Shape, args: &[Arg]) -> Result<(), LaunchError> {
        let launch = self.prepare(module, kernel, shape, args)?;
        let mut state = self.state();
        if state.device_of(stream.0)? != module.device {
            return Err(LaunchError::Stream { what: "the module is loaded on another device" });
        }
        state.enqueue(stream.0, Command::Launch { launch: Box::new(launch), programmatic: shape.programmatic })
    }

    fn prepare(&self, module: &Loaded, kernel: &str, shape: Shape, args: &[Arg]) -> Result<Launch, LaunchError> {
        let program = &module.program;
        let &id = program.by_name.get(kernel).ok_or_else(|| LaunchError::NoKernel { name: kernel.into() })?;
        let function = &program.functions[id as usize];
        if !function.is_entry || !function.defined {
            return Err(LaunchError::NoKernel { name: kernel.into() });
        }
        let product = |dims: [u32; 3]| dims.iter().try_fold(1u64, |a, &d| a.checked_mul(u64::from(d)));
        let [gx, gy, gz] = shape.grid;
        if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX as u32 || gy > 65535 || gz > 65535 {
            return Err(LaunchError::Grid { grid: shape.grid });
        }
        let threads = product(shape.block).unwrap_or(u64::MAX);
        let most = function.max_threads.unwrap_or(1024).min(1024);
        if threads == 0 || threads > most || shape.block[2] > 64 {
            return Err(LaunchError::Threads { block: shape.block, most });
        }
        if let Some(required) = function.required_block
            && required != shape.block
        {
            return Err(LaunchError::Block { block: shape.block, required });
        }
        let explicit_cluster = shape.cluster.is_some() || function.required_cluster.is_some();
        let cluster = match (shape.cluster, function.required_cluster) {
            (Some(asked), Some(required)) if asked != required => {
                return Err(LaunchError::Cluster {
                    cluster: asked,
                    grid: shape.grid,
                    what: "the kernel requires another cluster",
                });
            }
            (asked, required) => asked.or(required).unwrap_or([1; 3]),
        };
        let blocks = product(cluster).unwrap_or(u64::MAX);
        if blocks == 0 || blocks > 16 {
            return Err(LaunchError::Cluster { cluster, grid: shape.grid, what: "a cluster has 1 to 16 blocks" });
        }
        if (0..3).any(|i| !shape.grid[i].is_multiple_of(cluster[i])) {
            return Err(LaunchError::Cluster { cluster, grid: shape.grid, what: "the grid is not a multiple of the cluster" });
        }
        let (offsets, fixed) = program.shared_layout(id);
        let shared = u64::from(fixed) + u64::from(shape.dynamic_shared);
        if shared > u64::from(MOST_SHARED) {
            return Err(LaunchError::Shared { fixed, dynamic: shape.dynamic_shared, most: MOST_SHARED });
        }
        if args.len() != function.params.len() {
            return Err(LaunchError::ArgumentCount { kernel: kernel.into(), expected: function.params.len(), got: args.len() });
        }
        let mut params = vec![0; function.param_size as usize];
        for (i, (param, arg)) in function.params.iter().zip(args).enumerate() {
            if arg.0.len() != param.size as usize {
                return Err(LaunchError::ArgumentSize {
                    kernel: kernel.into(),
                    index: i,
                    expected: param.size,
                    got: arg.0.len(),
                });
            }
            params[param.offset as usize..][..arg.0.len()].copy_from_slice(&arg.0);
        }
        let symbols: Vec<u64> = module
            .symbols
            .iter()
            .enumerate()
            .map(|(i, &address)| offsets.get(&(i as u32)).map_or(address, |&offset| u64::from(offset)))
            .collect();
        Ok(Launch {
            id: 0,
            device: module.device,
            program: Arc::clone(program),
            kernel: id,
            grid: shape.grid,
            block: shape.block,
            cluster,
            explicit_cluster,
            dynamic_shared: shape.dynamic_shared,
            shared_size: crate::cx::SHARED_START + shared as u32,
            sm_count: self.config().sm_count,
            params,
            symbols: symbols.into(),
            site_base: module.site_base,
            prerequisites: vec![],
            after: vec![],
            released: AtomicU64::new(0),
            finished: Arc::default(),
            executed: AtomicU64::new(0),
        })
    }

    /// Queues a copy between two addresses of any devices or of pinned host memory.
    pub fn copy_async(&self, stream: StreamId, to: u64, from: u64, bytes: u64) -> Result<(), LaunchError> {
        self.state().enqueue(stream.0, Command::Copy { to, from, bytes })
    }

    /// Queues a copy of host bytes to an address; the bytes are taken now.
    pub fn write_async(&self, stream: StreamId, to: u64, bytes: &[u8]) -> Result<(), LaunchError> {
        self.state().enqueue(stream.0, Command::Write { to, bytes: bytes.into() })
    }

    /// Queues filling memory with a byte.
    pub fn fill_async(&self, stream: StreamId, to: u64, value: u8, bytes: u64) -> Result<(), LaunchError> {
        self.state().enqueue(stream.0, Command::Fill { to, value, bytes })
    }

    /// Queues freeing memory: it is freed when the stream gets there.
    pub fn free_async(&self, stream: StreamId, address: u64) -> Result<(), LaunchError> {
        self.state().enqueue(stream.0, Command::Free { address })
    }

    /// Queues recording an event.
    pub fn record(&self, stream: StreamId, event: EventId) -> Result<(), LaunchError> {
        self.state().record(stream.0, event.0)
    }

    /// Makes what is queued on the stream from now on wait for the event's latest record.
    pub fn wait_event(&self, stream: StreamId, event: EventId) -> Result<(), LaunchError> {
        self.state().wait_event(stream.0, event.0)
    }

    /// Whether everything before the event's latest record is done.
    pub fn event_done(&self, event: EventId) -> bool {
        self.state().event_done(event.0)
    }

    /// Runs until all streams are empty.
    pub fn synchronize(&self) -> Result<(), Report> {
        crate::engine::drive(&self.inner, Waiting::All)
    }

    /// Runs until a stream is empty. Other streams run along.
    pub fn synchronize_stream(&self, stream: StreamId) -> Result<(), Report> {
        crate::engine::drive(&self.inner, Waiting::Stream(stream.0))
    }

    /// Runs until an event's latest record is reached.
    pub fn synchronize_event(&self, event: EventId) -> Result<(), Report> {
        crate::engine::drive(&self.inner, Waiting::Event(event.0))
    }

    /// Warp instructions executed so far by all launches.
    pub fn executed(&self) -> u64 {
        self.state().executed
    }

    /// Thread instructions (one for each lane that is on) executed so far.
    pub fn thread_instructions(&self) -> u64 {
        self.state().thread_instructions
    }
}

/// Blocks of this many threads and bytes of shared memory that are resident on one multiprocessor at a time, by Hopper's limits on
/// threads (2048), blocks (32) and shared memory (228 KiB, 1 KiB of it reserved for each block). Registers are not counted: PTX does
/// not say how many a kernel takes.
pub fn blocks_per_sm(threads: u32, shared: u32) -> u32 {
    let by_threads = 2048 / threads.max(1).next_multiple_of(32);
    let by_shared = (228 * 1024) / shared.saturating_add(1024);
    by_threads.min(by_shared).min(32)
}

/// Runs `n` seeds of the same test, each on machines of its own: `test` gets the settings to use. Returns the first failure with its
/// seed. Seeds run side by side on as many threads as the computer has; the failure returned is that of the lowest seed.
pub fn explore<E: Send>(n: u64, base: &Config, test: impl Fn(Config) -> Result<(), E> + Sync) -> Result<(), (u64, E)> {
    let threads = std::thread::available_parallelism().map_or(1, |p| p.get()).min(n.max(1) as usize);
    let next = AtomicU64::new(0);
    let failures: Mutex<Vec<(u64, E)>> = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let failed = || failures.lock().unwrap_or_else(PoisonError::into_inner);
                    if i >= n || failed().iter().any(|(seed, _)| *seed < base.seed + i) {
                        return;
                    }
                    let seed = base.seed + i;
                    if let Err(e) = test(Config { seed, ..base.clone() }) {
                        failed().push((seed, e));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failures.into_iter().min_by_key(|(seed, _)| *seed) {
        None => Ok(()),
        Some(failure) => Err(failure),
    }
}
