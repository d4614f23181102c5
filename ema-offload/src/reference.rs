//! The definition of the average: no threads, no SIMD, one element at a time.

use crate::config::EmaConfig;
use crate::kernel::Element;

/// `average = fma(rate, weight - average, average)` for each element: what [`crate::lerp`] must equal bit by bit.
pub fn lerp<T: Element>(average: &mut [f32], weight: &[T], rate: f32) {
    for (a, w) in average.iter_mut().zip(weight) {
        *a = rate.mul_add(w.to_f32() - *a, *a);
    }
}

/// The same in f64, `average + rate * (weight - average)`: what the f32 average approximates.
pub fn lerp_f64(average: &mut [f64], weight: &[f32], rate: f64) {
    for (a, w) in average.iter_mut().zip(weight) {
        *a += rate * (f64::from(*w) - *a);
    }
}

/// The moving average, updated on the spot: what [`crate::Ema`] must equal bit by bit.
#[derive(Debug, Clone, PartialEq)]
pub struct SynchronousEma {
    /// The averages of each tensor.
    pub averages: Vec<Vec<f32>>,
    /// Updates made.
    pub updates: u64,
    config: EmaConfig,
}

impl SynchronousEma {
    /// The averages start as the weights. (The configuration is taken as it is; the shard is ignored.)
    pub fn new(initial: &[&[f32]], config: &EmaConfig) -> Self {
        let averages = initial.iter().map(|t| t.to_vec()).collect();
        Self { averages, updates: 0, config: config.clone() }
    }

    /// One step's weights.
    pub fn submit<T: Element>(&mut self, step: u64, weights: &[&[T]]) {
        if !step.is_multiple_of(self.config.every_n) {
            return;
        }
        let rate = self.config.rate(self.updates);
        for (average, weight) in self.averages.iter_mut().zip(weights) {
            lerp(average, weight, rate);
        }
        self.updates += 1;
    }
}
