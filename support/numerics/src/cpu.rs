//! Which instruction set the kernels run on.
//!
//! The choice is made once, at the entry of an operation, by [`Isa::detect`]; the kernels themselves are written once
//! and instantiated for each instruction set (see [`crate::simd`]). It never changes a result of this crate: every
//! operation states one order of its floating-point operations and keeps it on each of them.

use crate::error::{Error, Result};
use std::cell::Cell;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set, from the least to the most capable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, any processor. Fused multiply-adds are computed by the C library where the hardware has none.
    Portable,
    /// AVX2, FMA and F16C: x86-64 processors since 2013.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: server processors since 2017, Zen 4.
    Avx512,
    /// AVX-512 with BF16 dot products: Cooper Lake, Sapphire Rapids, Zen 4.
    Avx512Bf16,
}

impl Isa {
    /// All of them, the least capable first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The instruction set to use on this thread: the one set by [`with_isa`] when inside one; else the best available,
    /// lowered by the environment variable `V3_ISA` (`portable`, `avx2`, `avx512`, `avx512bf16`) when it names a lesser
    /// one. The environment and the processor are asked once per process.
    ///
    /// An operation asks once, on the thread that calls it, and hands the answer to its workers.
    pub fn detect() -> Isa {
        if let Some(isa) = OVERRIDE.with(Cell::get) {
            return isa;
        }
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Isa::best_available();
            match Isa::from_env() {
                Ok(Some(limit)) => best.min(limit),
                _ => best,
            }
        })
    }

    /// What the environment variable `V3_ISA` asks for. An unset or empty variable is `None`; a name that does not exist
    /// is an error, which [`Isa::detect`] ignores and a program should report.
    pub fn from_env() -> Result<Option<Isa>> {
        match std::env::var("V3_ISA") {
            Ok(name) if !name.is_empty() => name.parse().map(Some),
            _ => Ok(None),
        }
    }

    /// The most capable instruction set of this processor, whatever the environment says. All below it are available too.
    pub fn best_available() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable))
    }

    /// Whether this processor (and operating system) can execute it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                Isa::Portable => true,
                Isa::Avx2 => avx2(),
                Isa::Avx512 => avx512(),
                Isa::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// Its name in `V3_ISA`, in bench lines and in skip messages.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(s: &str) -> Result<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == s).ok_or_else(|| Error::Parameter {
            what: "instruction set",
            expected: "portable, avx2, avx512 or avx512bf16",
            got: s.to_string(),
        })
    }
}

thread_local! {
    static OVERRIDE: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// Runs `f` with [`Isa::detect`] answering `isa` on this thread, and restores the former answer after, on a panic as well.
/// For tests and comparisons. An instruction set that the processor lacks is [`Error::Unsupported`], and `f` is not run.
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> Result<R> {
    struct Restore(Option<Isa>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OVERRIDE.with(|o| o.set(self.0));
        }
    }
    if !isa.is_available() {
        return Err(Error::Unsupported { what: isa.name() });
    }
    let _restore = Restore(OVERRIDE.with(|o| o.replace(Some(isa))));
    Ok(f())
}
