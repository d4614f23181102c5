//! Averages a toy "training" whose weights jitter around a slow trend, and shows what the average cost the training loop.

use ema_offload::{Ema, EmaConfig, Warmup};

fn main() -> ema_offload::Result<()> {
    let n = 1 << 20;
    let mut weights = [vec![0.0f32; n], vec![1.0; 1000]];
    let tensors: Vec<&[f32]> = weights.iter().map(|t| t.as_slice()).collect();
    let config = EmaConfig { decay: 0.99, warmup: Warmup::Ratio { offset: 10.0 }, ..EmaConfig::default() };
    let ema = Ema::new(&tensors, config)?;

    let start = std::time::Instant::now();
    let steps = 100;
    for step in 1..=steps {
        // The optimiser: a trend of 0.01 a step, and noise.
        let noise = if step % 2 == 0 { 0.5 } else { -0.5 };
        weights.iter_mut().flatten().for_each(|w| *w += 0.01 + noise);
        let tensors: Vec<&[f32]> = weights.iter().map(|t| t.as_slice()).collect();
        ema.submit(step, &tensors)?;
    }
    let elapsed = start.elapsed().as_secs_f64();
    let averages = ema.averaged()?;
    let stats = ema.stats();
    println!("weight {:.3}, average {:.3}", weights[0][0], averages[0][0]);
    println!(
        "{steps} steps in {elapsed:.3} s: copying {:.1} %, waiting {:.1} %; the worker spent {:.3} s behind them",
        100.0 * stats.copy_seconds / elapsed,
        100.0 * stats.blocked_seconds / elapsed,
        stats.update_seconds,
    );
    println!("{} bytes of averages, {} of staging", stats.average_bytes, stats.staging_bytes);

    // Evaluate with the averages in place of the weights; they are back afterwards.
    let mut model: Vec<&mut [f32]> = weights.iter_mut().map(|t| t.as_mut_slice()).collect();
    let mean = ema.with_averages(&mut model, |t| t[0].iter().sum::<f32>() / t[0].len() as f32)?;
    println!("mean of the first tensor under the averages: {mean:.3}");
    Ok(())
}
