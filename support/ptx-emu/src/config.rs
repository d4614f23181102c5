//! Settings of a machine.

/// How FP8 matrix instructions accumulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fp8Accumulation {
    /// Exact products, f32 sums.
    #[default]
    Exact,
    /// As Hopper's tensor cores: products and accumulator aligned to the largest of them, truncated to about 14 bits.
    Hopper,
}

/// Which detectors run. Bounds, alignment, barriers' rules and deadlocks are always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Reads of memory and registers that nothing wrote.
    pub uninitialized: bool,
    /// Data races, scopes, proxy fences.
    pub races: bool,
    /// Registers of matrix instructions in flight.
    pub in_flight: bool,
}

impl Checks {
    /// All of them.
    pub const ALL: Checks = Checks { uninitialized: true, races: true, in_flight: true };
    /// None of them.
    pub const NONE: Checks = Checks { uninitialized: false, races: false, in_flight: false };
}

/// Settings of a machine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Devices.
    pub devices: u32,
    /// Multiprocessors of each.
    pub sm_count: u32,
    /// The order in which things happen where the program leaves it open.
    pub seed: u64,
    /// Detectors.
    pub checks: Checks,
    /// How FP8 matrix instructions accumulate.
    pub fp8: Fp8Accumulation,
    /// Operating-system threads that run blocks. More than one only without detectors: then nothing is repeatable.
    pub threads: usize,
    /// Most warp instructions of one launch.
    pub budget: u64,
    /// `.approx` operations give the exact result rounded, or with this set one within their documented error, chosen by the seed.
    pub perturb_approx: bool,
    /// Host threads that use the machine: a launch that waits for something is stuck only when all of them wait.
    pub hosts: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            devices: 1,
            sm_count: 132,
            seed: 0,
            checks: Checks::ALL,
            fp8: Fp8Accumulation::Exact,
            threads: 1,
            budget: 1 << 34,
            perturb_approx: false,
            hosts: 1,
        }
    }
}
