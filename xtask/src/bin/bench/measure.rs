//! Timing one operation.

use std::time::{Duration, Instant};

/// How long an operation is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Timed runs at least.
    pub least: usize,
    /// Timed runs at most.
    pub most: usize,
    /// No further run is begun after this much time.
    pub budget: Duration,
}

impl Effort {
    /// What a figure to be quoted needs.
    pub const FULL: Effort = Effort { least: 7, most: 51, budget: Duration::from_millis(800) };
    /// A look.
    pub const QUICK: Effort = Effort { least: 3, most: 5, budget: Duration::from_millis(60) };
}

/// Calls `run` once without counting it, then as often as the effort says, and returns what it gave.
pub fn repeat<T>(effort: Effort, mut run: impl FnMut() -> T) -> Vec<T> {
    run();
    let begin = Instant::now();
    let mut results = vec![];
    while results.len() < effort.least || (results.len() < effort.most && begin.elapsed() < effort.budget) {
        results.push(run());
    }
    results
}

/// How many seconds `run` takes.
pub fn timed(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// The median; the mean of the two in the middle where there are two.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

/// How far values lie apart: between the lowest and the highest tenth, over the median.
pub fn spread(values: &mut [f64]) -> f64 {
    let middle = median(values);
    let tenth = values.len() / 10;
    match (values.get(tenth), values.get(values.len().saturating_sub(1 + tenth))) {
        (Some(low), Some(high)) => (high - low) / middle,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&mut []).is_nan());
        assert_eq!(spread(&mut [4.0, 5.0, 3.0]), 0.5);
        assert_eq!(spread(&mut [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]), 0.0);
        assert_eq!(spread(&mut []), 0.0);
        let mut runs = 0;
        let results = repeat(Effort { least: 3, most: 5, budget: Duration::ZERO }, || {
            runs += 1;
            runs
        });
        assert_eq!(results, [2, 3, 4]);
    }
}
