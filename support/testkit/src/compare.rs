//! Slices against expected values.

use std::fmt;

/// How far a value may be from what is expected. The parts add up: the bound at index `i` is `absolute + relative * |expected[i]| + ulps * ulp(expected[i])`, where `ulp` is the distance of
/// neighbouring f32 at that magnitude. Whatever the bound, a NaN equals a NaN and nothing else, and an infinity equals
/// itself and, where the bound has ulps, a finite expectation that rounds to it in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    absolute: f64,
    relative: f64,
    ulps: f64,
}

impl Tolerance {
    /// Equal values. (For equal bits, which tell -0 from +0, see [`assert_bits_eq`].)
    pub const EXACT: Tolerance = Tolerance { absolute: 0.0, relative: 0.0, ulps: 0.0 };

    /// An absolute bound.
    pub const fn absolute(bound: f64) -> Tolerance {
        Tolerance { absolute: bound, ..Tolerance::EXACT }
    }
    /// A bound relative to the expected value.
    pub const fn relative(bound: f64) -> Tolerance {
        Tolerance { relative: bound, ..Tolerance::EXACT }
    }
    /// A bound in units in the last place of the expected value as f32.
    pub const fn ulps(bound: f64) -> Tolerance {
        Tolerance { ulps: bound, ..Tolerance::EXACT }
    }
    /// This bound and an absolute one.
    pub const fn and_absolute(self, bound: f64) -> Tolerance {
        Tolerance { absolute: self.absolute + bound, ..self }
    }
    /// This bound and a relative one.
    pub const fn and_relative(self, bound: f64) -> Tolerance {
        Tolerance { relative: self.relative + bound, ..self }
    }
    /// This bound and one in units in the last place.
    pub const fn and_ulps(self, bound: f64) -> Tolerance {
        Tolerance { ulps: self.ulps + bound, ..self }
    }

    /// The bound at one expected value.
    pub fn bound(&self, expected: f64) -> f64 {
        self.absolute + self.relative * expected.abs() + if self.ulps > 0.0 { self.ulps * ulp(expected) } else { 0.0 }
    }

    /// Whether `value` is close enough.
    pub fn accepts(&self, value: f64, expected: f64) -> bool {
        if value.is_nan() || expected.is_nan() {
            return value.is_nan() && expected.is_nan();
        }
        if value.is_infinite() || expected.is_infinite() {
            return value == expected || (self.ulps > 0.0 && overflows(value, expected));
        }
        (value - expected).abs() <= self.bound(expected)
    }

    /// Compares every element. The error lists the first [`Mismatches::SHOWN`] failing indexes and counts the rest.
    pub fn check<A, B>(&self, what: &str, got: &[A], expected: &[B]) -> Result<(), Mismatches>
    where
        A: Copy + Into<f64>,
        B: Copy + Into<f64>,
    {
        self.check_with(what, got, expected, |_, expected| self.bound(expected))
    }

    /// As [`Tolerance::check`] with a further absolute bound for each index, such as a condition number times an epsilon.
    pub fn check_bounded<A, B>(&self, what: &str, got: &[A], expected: &[B], bounds: &[f64]) -> Result<(), Mismatches>
    where
        A: Copy + Into<f64>,
        B: Copy + Into<f64>,
    {
        if bounds.len() != expected.len() {
            let lengths = Some((bounds.len(), expected.len()));
            return Report { what: format!("bounds of {what}"), lengths, ..Default::default() }.into_result();
        }
        self.check_with(what, got, expected, |i, expected| self.bound(expected) + bounds[i])
    }

    fn check_with<A, B>(&self, what: &str, got: &[A], expected: &[B], bound: impl Fn(usize, f64) -> f64) -> Result<(), Mismatches>
    where
        A: Copy + Into<f64>,
        B: Copy + Into<f64>,
    {
        let mut report = Report { what: what.to_string(), total: got.len(), ..Default::default() };
        if got.len() != expected.len() {
            report.lengths = Some((got.len(), expected.len()));
            return report.into_result();
        }
        for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
            let (value, expected): (f64, f64) = ((*got).into(), (*expected).into());
            let bound = bound(index, expected);
            let near = (value - expected).abs() <= bound && value.is_finite() && expected.is_finite();
            if !near && !self.accepts(value, expected) {
                report.push(Mismatch { index, value, expected, bound });
            }
        }
        report.into_result()
    }
}

/// Whether an infinite `value` is what rounding a finite `expected` to f32 gives.
fn overflows(value: f64, expected: f64) -> bool {
    value.is_infinite() && expected.is_finite() && f64::from(expected as f32) == value
}

/// The distance between neighbouring f32 values at the magnitude of `x`; that of subnormals when it is smaller still.
pub fn ulp(x: f64) -> f64 {
    let x = x.abs().clamp(f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX));
    // The exponent field of the f64, less the 23 places of the f32 mantissa.
    f64::from_bits((x.to_bits() & 0x7ff0_0000_0000_0000) - (23 << 52))
}

/// One element that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mismatch {
    /// Where.
    pub index: usize,
    /// What was found.
    pub value: f64,
    /// What was expected.
    pub expected: f64,
    /// How large the difference may be.
    pub bound: f64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let difference = self.value - self.expected;
        write!(
            f,
            "[{}] {:e}, expected {:e}: off by {difference:e} = {:.1} ulp, allowed {:e}",
            self.index,
            self.value,
            self.expected,
            difference / ulp(self.expected),
            self.bound
        )
    }
}

/// What a comparison found wrong. Its `Display` and `Debug` are the report.
#[derive(Clone, PartialEq)]
pub struct Mismatches(Box<Report>);

#[derive(Clone, Default, PartialEq)]
struct Report {
    what: String,
    lengths: Option<(usize, usize)>,
    total: usize,
    failed: usize,
    shown: Vec<Mismatch>,
    worst: Option<Mismatch>,
}

impl Report {
    fn push(&mut self, mismatch: Mismatch) {
        let off = |m: &Mismatch| (m.value - m.expected).abs();
        if self.worst.is_none_or(|worst| off(&mismatch) > off(&worst) || off(&mismatch).is_nan()) {
            self.worst = Some(mismatch);
        }
        if self.shown.len() < Mismatches::SHOWN {
            self.shown.push(mismatch);
        }
        self.failed += 1;
    }

    fn into_result(self) -> Result<(), Mismatches> {
        if self.failed == 0 && self.lengths.is_none() { Ok(()) } else { Err(Mismatches(Box::new(self))) }
    }
}

impl Mismatches {
    /// How many failing indexes a report lists.
    pub const SHOWN: usize = 16;

    /// The number of failing indexes.
    pub fn failed(&self) -> usize {
        self.0.failed
    }
    /// The first of them.
    pub fn shown(&self) -> &[Mismatch] {
        &self.0.shown
    }
    /// The one that is furthest off.
    pub fn worst(&self) -> Option<Mismatch> {
        self.0.worst
    }
}

impl fmt::Display for Mismatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((got, expected)) = self.0.lengths {
            return write!(f, "{}: {got} values, expected {expected}", self.0.what);
        }
        write!(f, "{}: {} of {} values differ", self.0.what, self.0.failed, self.0.total)?;
        for mismatch in &self.0.shown {
            write!(f, "\n  {mismatch}")?;
        }
        if self.0.failed > self.0.shown.len() {
            write!(f, "\n  and {} more", self.0.failed - self.0.shown.len())?;
        }
        if let Some(worst) = self.0.worst {
            write!(f, "\n  worst: {worst}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mismatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Mismatches {}

/// Compares bit patterns (NaN payloads and the sign of zero count), listing the failing indexes.
pub fn check_bits(what: &str, got: &[f32], expected: &[f32]) -> Result<(), Mismatches> {
    let mut report = Report { what: format!("{what} (bits)"), total: got.len(), ..Default::default() };
    if got.len() != expected.len() {
        report.lengths = Some((got.len(), expected.len()));
        return report.into_result();
    }
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        if got.to_bits() != expected.to_bits() {
            report.push(Mismatch { index, value: f64::from(*got), expected: f64::from(*expected), bound: 0.0 });
        }
    }
    report.into_result()
}

/// Panics with the report of [`check_bits`].
#[track_caller]
pub fn assert_bits_eq(what: &str, got: &[f32], expected: &[f32]) {
    if let Err(report) = check_bits(what, got, expected) {
        panic!("{report}");
    }
}
