//! The published grid: every schedule with a name, the search without seeds, and the lower bound.
//!
//! `cargo run --release -p dualpipe --example search_grid [EFFORT]` prints the table of the README.

mod points;

use dualpipe::search::{Options, search};
use dualpipe::{Kind, Schedule, simulate};

fn main() -> dualpipe::Result<()> {
    let effort = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(Options::default().effort);
    println!(
        "| pipeline; cap | R, M | {} | search | lower bound | best known | search/known | s |",
        Kind::ALL.map(Kind::name).join(" | ")
    );
    let mut gaps = 0.0;
    let (mut better, mut worst, mut count) = (0, 0.0f64, 0);
    for point in points::grid()? {
        let problem = &point.problem;
        let mut cells = Vec::new();
        let mut best: Option<(f64, Kind)> = None;
        for kind in Kind::ALL {
            let cell = match Schedule::new(kind, problem.ranks, problem.micro_batches) {
                Ok(schedule) if problem.fits(&schedule)? => {
                    let makespan = simulate(&schedule, &problem.costs(schedule.placement()))?.makespan();
                    if best.is_none_or(|(other, _)| makespan < other) {
                        best = Some((makespan, kind));
                    }
                    format!("{makespan:.1}")
                }
                _ => "-".into(),
            };
            cells.push(cell);
        }
        let begin = std::time::Instant::now();
        let found = search(problem, &Options { effort, known: false, ..Options::default() })?;
        let seconds = begin.elapsed().as_secs_f64();
        let (known, name) = best.map_or((f64::NAN, "none".into()), |(makespan, kind)| (makespan, kind.to_string()));
        gaps += found.gap();
        let ratio = found.makespan / known;
        (better, worst, count) = (better + usize::from(ratio <= 0.97), worst.max(ratio), count + 1);
        println!(
            "| {} | {}, {} | {} | {:.1} | {:.1} | {name} | {ratio:.3} | {seconds:.1} |",
            point.name,
            problem.ranks,
            problem.micro_batches,
            cells.join(" | "),
            found.makespan,
            found.lower_bound,
        );
    }
    println!(
        "{count} points; better by 3 % on {better}; at worst {worst:.3} of the best known; mean gap {:.2} %",
        100.0 * gaps / count as f64
    );
    Ok(())
}
