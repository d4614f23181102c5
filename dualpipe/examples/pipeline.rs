//! Runs a small model under DualPipe on four ranks (threads), and draws what was measured above the simulation of the same
//! plan:
//!
//! ```sh
//! cargo run --release -p dualpipe --example pipeline -- timeline.svg trace.json
//! ```
//!
//! Without arguments it only prints.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use dualpipe::{Kind, Panel, Schedule, Stage, TimeUnit, chrome_trace, execute, gather, simulate, svg_measured_above_simulated};
use v3_ranks::{Comm, WorldConfig, run_threads};

/// Each stage multiplies by a number, `y = w x`, and takes its time.
struct Scale {
    stages: usize,
    weights: Vec<f32>,
    gradients: Vec<f32>,
    /// x of each (stage, micro-batch), from the forward to the backward for inputs.
    saved: HashMap<(usize, usize), f32>,
    /// x and dy of each (stage, micro-batch), from there to the backward for weights.
    kept_back: HashMap<(usize, usize), (f32, f32)>,
}

impl Stage for Scale {
    type Error = Infallible;

    fn forward(&mut self, stage: usize, micro_batch: usize, input: Option<Vec<f32>>) -> Result<Option<Vec<f32>>, Infallible> {
        work(Duration::from_millis(2));
        let x = input.map_or(micro_batch as f32, |input| input[0]);
        self.saved.insert((stage, micro_batch), x);
        Ok((stage + 1 < self.stages).then(|| vec![self.weights[stage] * x]))
    }

    fn backward_input(
        &mut self,
        stage: usize,
        micro_batch: usize,
        gradient: Option<Vec<f32>>,
    ) -> Result<Option<Vec<f32>>, Infallible> {
        work(Duration::from_millis(2));
        // The loss is what comes out of the last stage.
        let dy = gradient.map_or(1.0, |gradient| gradient[0]);
        if let Some(x) = self.saved.remove(&(stage, micro_batch)) {
            self.kept_back.insert((stage, micro_batch), (x, dy));
        }
        Ok((stage > 0).then(|| vec![self.weights[stage] * dy]))
    }

    fn backward_weight(&mut self, stage: usize, micro_batch: usize) -> Result<(), Infallible> {
        work(Duration::from_millis(2));
        if let Some((x, dy)) = self.kept_back.remove(&(stage, micro_batch)) {
            self.gradients[stage] += x * dy;
        }
        Ok(())
    }
}

/// Stands for a kernel on a device: the processor is free meanwhile.
fn work(time: Duration) {
    let start = Instant::now();
    while let Some(left) = time.checked_sub(start.elapsed()) {
        std::thread::sleep(left);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schedule = Schedule::new(Kind::DualPipe, 4, 10)?;
    let results = run_threads(WorldConfig::new(schedule.ranks()), |comm: Comm| -> Result<_, Box<dyn std::error::Error>> {
        let stages = schedule.stages();
        let mut model = Scale {
            stages,
            weights: vec![0.5, 2.0, 3.0, 1.0],
            gradients: vec![0.0; stages],
            saved: HashMap::new(),
            kept_back: HashMap::new(),
        };
        let spans = execute(&schedule, &comm, &mut model, 0)?;
        // Each direction has its copy of the stage: their gradients are summed.
        comm.all_reduce_sum(&mut model.gradients)?;
        Ok((model.gradients, gather(&schedule, &comm, &spans)?))
    })?;
    let (gradients, measured) = &results[0];
    println!("gradients: {gradients:?}\n");
    print!("{}", measured.to_text(80));

    let simulated = simulate(&schedule, &measured.mean_costs())?.with_unit(TimeUnit::Seconds);
    println!("simulated makespan: {:.4} s", simulated.makespan());
    let mut files = std::env::args().skip(1);
    if let Some(path) = files.next() {
        std::fs::write(path, svg_measured_above_simulated(measured, &simulated))?;
    }
    if let Some(path) = files.next() {
        let panels =
            [Panel { title: "measured".into(), timeline: measured }, Panel { title: "simulated".into(), timeline: &simulated }];
        std::fs::write(path, chrome_trace(&panels))?;
    }
    Ok(())
}
