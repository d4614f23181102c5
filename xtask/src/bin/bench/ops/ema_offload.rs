//! The fused conversion and interpolation, and the snapshot that a training thread pays for.

use super::{AnyError, Operation, bytes, values};
use crate::ceilings::Ceiling;
use ema_offload::{Element, Ema, EmaConfig, bf16, lerp};
use v3_numerics::par;

const N: usize = 48 << 20;

pub fn operations(_threads: usize) -> Vec<Operation> {
    vec![
        interpolation::<bf16>("lerp bf16"),
        interpolation::<f32>("lerp f32"),
        Operation::timed("snapshot f32", format!("{N}"), bytes(8 * N, Ceiling::Copy), || {
            let weights = values(N, 1);
            let ema = Ema::new(&[&weights], EmaConfig { decay: 0.999, ..EmaConfig::default() })?;
            let mut step = 0;
            Ok(move || -> Result<f64, AnyError> {
                step += 1;
                // Only the copy is timed: the worker finishes before the next snapshot begins.
                let submission = ema.submit(step, &[&weights])?;
                ema.flush()?;
                Ok(submission.copy.as_secs_f64())
            })
        }),
    ]
}

fn interpolation<T: Element>(name: &'static str) -> Operation {
    Operation::new(name, format!("{N}"), bytes(N * (8 + size_of::<T>()), Ceiling::TriadInPlace), || {
        let weights: Vec<T> = values(N, 1).into_iter().map(T::from_f32).collect();
        let mut average = values(N, 2);
        Ok(move || -> Result<(), AnyError> {
            let chunk = 1 << 18;
            par::for_each_chunk_mut(&mut average, chunk, |i, average| lerp(average, &weights[i * chunk..], 0.001));
            Ok(())
        })
    })
}
