//! Comparators, generators and skip bookkeeping for the tests of this workspace.
//!
//! A dev-dependency only, without dependencies of its own.
//!
//! - [`compare`]: slices compared to expected values under a stated tolerance; the report lists the first failing indexes with
//!   value, expectation, distance in units in the last place, and counts the rest.
//! - [`rng`]: a small seeded generator and the distributions that numerical tests want, the nasty values included.
//! - [`skip`]: a test that cannot run here says so by name, and the run can list what was skipped.
//! - [`backend`]: one property on every instruction set (or any other closed list of backends).
//! - [`poison`]: buffers of NaN with guards around them, so that what a kernel forgets to write, or writes beyond, shows.
//!
//! ```
//! use v3_testkit::{compare::Tolerance, rng::Rng};
//! let mut rng = Rng::new(7);
//! let x = rng.normal_vec(1000, 1.0);
//! let doubled: Vec<f32> = x.iter().map(|x| x + x).collect();
//! let expected: Vec<f64> = x.iter().map(|x| 2.0 * f64::from(*x)).collect();
//! Tolerance::ulps(0.5).check("doubling", &doubled, &expected).unwrap();
//! ```

pub mod backend;
pub mod compare;
pub mod poison;
pub mod rng;
pub mod skip;

pub use compare::{Tolerance, assert_bits_eq};
pub use rng::Rng;
