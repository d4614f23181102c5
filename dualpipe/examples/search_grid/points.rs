//! The published grid: pipelines of 4 to 8 ranks and 16 to 32 micro-batches, each under three caps.
//!
//! Memory is counted in the activations that one rank keeps for one micro-batch when the model is even; three tenths are freed at `I`,
//! the rest at `W`. Parameters take as much as two micro-batches. All of it is larger where a stage is.

use dualpipe::search::{PLACEMENTS, Problem, Slice};
use dualpipe::{Kind, Placement, Schedule};

/// A point of the grid.
pub struct Point {
    /// Name of the pipeline, and of the cap.
    pub name: String,
    /// The pipeline with the cap.
    pub problem: Problem,
}

/// How the cost of a slice follows from its place in the model: 1 to 2 times the least.
#[derive(Clone, Copy)]
enum Shape {
    Even,
    Rising,
    Falling,
    /// The first and the last slice cost twice the others: embedding, output head and loss.
    Ends,
    /// Drawn by a fixed generator.
    Uneven,
}

struct Row {
    name: &'static str,
    ranks: usize,
    micro_batches: usize,
    /// F, I, W of an even rank.
    costs: [f64; 3],
    /// What a pair saves of `F + I + W`.
    saved: f64,
    shape: Shape,
    link: f64,
}

const fn row(name: &'static str, sizes: (usize, usize), costs: [f64; 3], saved: f64, shape: Shape, link: f64) -> Row {
    Row { name, ranks: sizes.0, micro_batches: sizes.1, costs, saved, shape, link }
}

const ROWS: [Row; 12] = [
    row("even", (4, 16), [1.0, 1.0, 1.0], 0.0, Shape::Even, 0.0),
    row("even, pairs", (8, 24), [1.0, 1.0, 1.0], 0.5, Shape::Even, 0.0),
    row("W > I", (4, 24), [1.0, 1.0, 1.5], 0.0, Shape::Even, 0.0),
    row("W > I, pairs", (8, 32), [1.0, 0.8, 1.4], 0.5, Shape::Even, 0.0),
    row("slow", (8, 32), [1.0, 1.2, 0.8], 0.0, Shape::Even, 0.5),
    row("slow, pairs", (6, 24), [1.0, 1.2, 0.8], 0.5, Shape::Even, 1.0),
    row("rising", (4, 16), [1.0, 1.0, 1.0], 0.0, Shape::Rising, 0.1),
    row("falling", (8, 16), [1.0, 1.2, 0.9], 0.0, Shape::Falling, 0.1),
    row("ends, pairs", (6, 24), [1.0, 1.2, 0.8], 0.3, Shape::Ends, 0.1),
    row("uneven", (8, 32), [1.0, 1.1, 1.0], 0.0, Shape::Uneven, 0.2),
    row("uneven, W > I, slow", (6, 32), [1.0, 0.8, 1.3], 0.0, Shape::Uneven, 0.7),
    row("uneven, pairs", (4, 32), [1.0, 1.1, 1.0], 0.5, Shape::Uneven, 0.2),
];

/// All points: 36.
///
/// The caps: *tight*, what 1F1B needs; *middle*, half as much again for activations; *loose*, room for two copies of the parameters
/// and two and a half times the activations of 1F1B.
pub fn grid() -> dualpipe::Result<Vec<Point>> {
    let mut points = Vec::new();
    let mut state = 12_345u64;
    for row in &ROWS {
        let count = 2 * row.ranks;
        let mut slices = Vec::new();
        for index in 0..count {
            // Knuth's MMIX generator.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let share = index as f64 / (count - 1) as f64;
            let size = match row.shape {
                Shape::Even => 1.0,
                Shape::Rising => 1.0 + share,
                Shape::Falling => 2.0 - share,
                Shape::Ends if index == 0 || index + 1 == count => 2.0,
                Shape::Ends => 1.0,
                Shape::Uneven => 1.0 + (state >> 33) as f64 / (1u64 << 31) as f64,
            };
            let half = 0.5 * size;
            let [f, i, w] = row.costs.map(|cost| cost * half);
            slices.push(Slice {
                f,
                i,
                w,
                fb: f + i + w - row.saved * half,
                parameters: 2.0 * half,
                at_input: 0.3 * half,
                at_weight: 0.7 * half,
            });
        }
        let unlimited = Problem {
            ranks: row.ranks,
            micro_batches: row.micro_batches,
            slices,
            links: vec![row.link; row.ranks],
            memory: f64::INFINITY,
            placements: PLACEMENTS.to_vec(),
        };
        let most = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
        let parameters = most(unlimited.parameters(Placement::Line));
        let tight = most(unlimited.peak_memory(&Schedule::new(Kind::OneFOneB, row.ranks, row.micro_batches)?)?);
        let activations = tight - parameters;
        let caps =
            [("tight", tight), ("middle", parameters + 1.5 * activations), ("loose", 2.0 * parameters + 2.5 * activations)];
        for (cap, memory) in caps {
            points.push(Point { name: format!("{}; {cap}", row.name), problem: Problem { memory, ..unlimited.clone() } });
        }
    }
    Ok(points)
}
