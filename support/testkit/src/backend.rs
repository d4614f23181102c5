//! One property on every backend.

use crate::skip::skip;

/// Calls `run` for each backend that `available` accepts, and [skips](mod@crate::skip) the others by name, as `test (backend)`.
/// Returns how many ran.
///
/// ```
/// #[derive(Debug, Clone, Copy, PartialEq)]
/// enum Isa { Portable, Imaginary }
/// let all = [Isa::Portable, Isa::Imaginary];
/// let mut seen = vec![];
/// let ran = v3_testkit::backend::for_each_available(
///     "doc example", &all, |isa| format!("{isa:?}"), |isa| isa == Isa::Portable, |isa| seen.push(isa));
/// assert_eq!((ran, seen), (1, vec![Isa::Portable]));
/// assert!(v3_testkit::skip::skipped().iter().any(|(name, _)| name == "doc example (Imaginary)"));
/// ```
pub fn for_each_available<B: Copy, N: AsRef<str>>(
    test: &str,
    all: &[B],
    name: impl Fn(B) -> N,
    available: impl Fn(B) -> bool,
    mut run: impl FnMut(B),
) -> usize {
    let mut ran = 0;
    for backend in all {
        if available(*backend) {
            run(*backend);
            ran += 1;
        } else {
            skip(&format!("{test} ({})", name(*backend).as_ref()), "not available on this machine");
        }
    }
    ran
}

/// Stamps one `#[test]` per backend from one property, so that a failure names the backend and an absent one is skipped by name.
///
/// ```
/// fn property(lanes: usize) {
///     assert!(lanes.is_power_of_two());
/// }
/// v3_testkit::backend_tests!(property;
///     four: 4, if true;
///     three: 3, if false;
/// );
/// ```
#[macro_export]
macro_rules! backend_tests {
    ($property:ident; $($name:ident: $backend:expr, if $available:expr;)+) => {
        /// One test for each backend.
        mod $property {
            #[allow(unused_imports, reason = "a backend may be named without a path")]
            use super::*;
            $(
                #[test]
                fn $name() {
                    if $available {
                        super::$property($backend);
                    } else {
                        let name = concat!(module_path!(), "::", stringify!($name));
                        $crate::skip::skip(name, "not available on this machine");
                    }
                }
            )+
        }
    };
}
