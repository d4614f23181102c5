//! The operations of each piece, at shapes of the real model and of the small one that `v3 train` trains by default.

mod dualpipe;
mod ema_offload;
mod fp8_gemm;
mod mla_kernels;
mod moe_dispatch;
mod moe_links;
mod mtp;
mod numerics;
mod ptx_emu;

use crate::ceilings::Ceiling;
use std::time::Instant;

/// Any error of any piece.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Runs an operation once and says how many seconds it took.
pub type Run = Box<dyn FnMut() -> Result<f64, AnyError> + Send>;

/// What an operation is held against.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// One ceiling.
    Of(Ceiling),
    /// Arithmetic on operands of at most 16 bits: the faster of the f32 and the bf16 peak, which is which depends on the
    /// processor.
    Narrow,
}

impl Limit {
    /// The ceiling it means on a machine whose faster peak is `narrow`.
    pub fn ceiling(self, narrow: Ceiling) -> Ceiling {
        match self {
            Limit::Of(ceiling) => ceiling,
            Limit::Narrow => narrow,
        }
    }
}

/// What an operation's work is counted in.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    /// Floating-point operations.
    Flops,
    /// Bytes that have to be read or written.
    Bytes,
    /// Anything else, by name.
    Count(&'static str),
}

impl Unit {
    /// The name of the rate.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Flops => "GFLOP/s",
            Unit::Bytes => "GB/s",
            Unit::Count(name) => name,
        }
    }

    /// What a rate in one a second is divided by.
    pub fn scale(self) -> f64 {
        if matches!(self, Unit::Count(_)) { 1.0 } else { 1e9 }
    }
}

/// One operation at one shape.
pub struct Operation {
    /// What it is.
    pub name: &'static str,
    /// At which shape.
    pub shape: String,
    /// What runs it.
    pub backend: String,
    /// How much one run does.
    pub work: f64,
    /// What that is counted in.
    pub unit: Unit,
    /// What the rate is held against.
    pub limit: Option<Limit>,
    /// Makes the operands, and what runs on them.
    pub setup: Box<dyn FnOnce() -> Result<Run, AnyError> + Send>,
    /// What does the same amount of work beside it, held against instead of `limit`.
    pub beside: Option<Beside>,
}

/// Gives the name of what runs beside an operation and what runs it once; an error says why it cannot.
pub type Beside = Box<dyn FnOnce() -> Result<(String, Run), AnyError> + Send>;

impl Operation {
    /// An operation on the instruction set in use. `setup` makes the operands and returns what is timed.
    pub fn new<F, E>(
        name: &'static str,
        shape: impl Into<String>,
        (work, unit, limit): (f64, Unit, Option<Limit>),
        setup: impl FnOnce() -> Result<F, AnyError> + Send + 'static,
    ) -> Operation
    where
        F: FnMut() -> Result<(), E> + Send + 'static,
        E: Into<AnyError>,
    {
        Operation::timed(name, shape, (work, unit, limit), move || {
            let mut f = setup()?;
            Ok(move || {
                let start = Instant::now();
                f().map_err(Into::into)?;
                Ok(start.elapsed().as_secs_f64())
            })
        })
    }

    /// An operation that times itself.
    pub fn timed<F>(
        name: &'static str,
        shape: impl Into<String>,
        (work, unit, limit): (f64, Unit, Option<Limit>),
        setup: impl FnOnce() -> Result<F, AnyError> + Send + 'static,
    ) -> Operation
    where
        F: FnMut() -> Result<f64, AnyError> + Send + 'static,
    {
        let backend = v3_numerics::cpu::Isa::detect().name().to_string();
        Operation {
            name,
            shape: shape.into(),
            backend,
            work,
            unit,
            limit,
            setup: Box::new(move || Ok(Box::new(setup()?) as Run)),
            beside: None,
        }
    }
}

impl Operation {
    /// With another backend than the processor's instruction set.
    fn backend(self, name: &str) -> Operation {
        Operation { backend: name.to_string(), ..self }
    }

    /// Beside the same in another implementation, on request: see [`peer`](crate::peer).
    fn beside_peer(self, script: &'static str, threads: usize, operation: &'static str) -> Operation {
        Operation { beside: Some(Box::new(move || crate::peer::start(script, threads, operation))), ..self }
    }

    /// Beside something that is as fast as the machine allows, at the same amount of work. `setup` returns what is timed.
    fn beside<F: FnMut() + Send + 'static>(self, name: &'static str, setup: impl FnOnce() -> F + Send + 'static) -> Operation {
        let beside = move || -> Result<(String, Run), AnyError> {
            let mut f = setup();
            Ok((name.to_string(), Box::new(move || Ok(crate::measure::timed(&mut f)))))
        };
        Operation { beside: Some(Box::new(beside)), ..self }
    }
}

/// Work in floating-point operations against the f32 peak.
pub fn f32_flops(work: f64) -> (f64, Unit, Option<Limit>) {
    (work, Unit::Flops, Some(Limit::Of(Ceiling::F32Fma)))
}

/// Work in floating-point operations on narrow operands.
pub fn narrow_flops(work: f64) -> (f64, Unit, Option<Limit>) {
    (work, Unit::Flops, Some(Limit::Narrow))
}

/// Work in bytes against one of the memory's ceilings.
pub fn bytes(work: usize, ceiling: Ceiling) -> (f64, Unit, Option<Limit>) {
    (work as f64, Unit::Bytes, Some(Limit::Of(ceiling)))
}

/// A piece and its operations for a number of threads.
pub type Piece = (&'static str, fn(usize) -> Vec<Operation>);

/// Every piece, and the numerics below them.
pub fn pieces() -> Vec<Piece> {
    vec![
        ("numerics", numerics::operations),
        ("fp8-gemm", fp8_gemm::operations),
        ("mla-kernels", mla_kernels::operations),
        ("moe-dispatch", moe_dispatch::operations),
        ("dualpipe", dualpipe::operations),
        ("mtp", mtp::operations),
        ("ema-offload", ema_offload::operations),
        ("ptx-emu", ptx_emu::operations),
    ]
}

/// What prints a table of its own, below the operations, and whether it may be a small one.
pub type Table = fn(&mut dyn std::io::Write, bool) -> Result<(), AnyError>;

/// Tables of pieces.
pub fn tables() -> Vec<(&'static str, Table)> {
    vec![("moe-dispatch", moe_links::table)]
}

/// `n` values between -1 and 1 that no shape sees twice in the same place.
pub fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}
