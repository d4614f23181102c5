//! The published grid: every schedule with a name, the search without seeds, and the lower bound.
//!
//! `cargo run --release -p dualpipe --example search_grid [EFFORT]` prints three tables: makespans of what fits, bubbles, and the memory
//! of the fullest rank.

mod points;

use dualpipe::search::{Options, search};
use dualpipe::{Kind, Schedule, simulate};

/// Makespan, bubble, and peak memory of the fullest rank; the first two only where the cap allows it.
struct Measured {
    times: Option<(f64, f64)>,
    peak: f64,
}

fn main() -> dualpipe::Result<()> {
    let effort = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(Options::default().effort);
    let mut tables = [Vec::new(), Vec::new(), Vec::new()];
    let (mut better, mut worst, mut gaps, mut longest) = (0, 0.0f64, 0.0, 0.0f64);
    let points = points::grid()?;
    for point in &points {
        let problem = &point.problem;
        let most = |peaks: Vec<f64>| peaks.into_iter().fold(0.0, f64::max);
        let mut columns = Vec::new();
        let mut best: Option<(f64, Kind)> = None;
        for kind in Kind::ALL {
            let schedule = Schedule::new(kind, problem.ranks, problem.micro_batches)?;
            let peak = most(problem.peak_memory(&schedule)?);
            let mut times = None;
            if problem.fits(&schedule)? {
                let timeline = simulate(&schedule, &problem.costs(schedule.placement()))?;
                times = Some((timeline.makespan(), timeline.bubble()));
                if best.is_none_or(|(other, _)| timeline.makespan() < other) {
                    best = Some((timeline.makespan(), kind));
                }
            }
            columns.push(Measured { times, peak });
        }
        let begin = std::time::Instant::now();
        let found = search(problem, &Options { effort, known: false, ..Options::default() })?;
        let seconds = begin.elapsed().as_secs_f64();
        let timeline = simulate(&found.schedule, &problem.costs(found.schedule.placement()))?;
        let peak = most(found.peak_memory.clone());
        columns.push(Measured { times: Some((found.makespan, timeline.bubble())), peak });

        let (known, name) = best.map_or((f64::NAN, "none".into()), |(makespan, kind)| (makespan, kind.to_string()));
        let ratio = found.makespan / known;
        better += usize::from(ratio <= 0.97);
        (worst, gaps, longest) = (worst.max(ratio), gaps + found.gap(), longest.max(seconds));
        let sizes = format!("{} | {}x{}", point.name, problem.ranks, problem.micro_batches);
        let times = |pick: fn((f64, f64)) -> f64| -> String {
            let cells: Vec<String> =
                columns.iter().map(|m| m.times.map_or("-".into(), |times| format!("{:.1}", pick(times)))).collect();
            cells.join(" | ")
        };
        let peaks: Vec<String> = columns.iter().map(|m| format!("{:.1}", m.peak)).collect();
        let placement = found.schedule.kind().name().trim_start_matches("custom").trim_start_matches('-');
        let placement = if placement.is_empty() { "line" } else { placement };
        let bound = found.lower_bound;
        let makespans = times(|(makespan, _)| makespan);
        tables[0].push(format!("| {sizes} | {makespans} | {bound:.1} | {placement} | {ratio:.3} of {name} | {seconds:.1} |"));
        tables[1].push(format!("| {sizes} | {} |", times(|(_, bubble)| bubble)));
        tables[2].push(format!("| {sizes} | {:.1} | {} |", problem.memory, peaks.join(" | ")));
    }
    let kinds = Kind::ALL.map(Kind::name).join(" | ");
    let heads = [
        ("Makespan", format!("| pipeline; cap | R x M | {kinds} | search | bound | placement | search / best known | s |")),
        ("Bubble: makespan minus the work of the least busy rank", format!("| pipeline; cap | R x M | {kinds} | search |")),
        ("Memory of the fullest rank", format!("| pipeline; cap | R x M | cap | {kinds} | search |")),
    ];
    for ((title, head), rows) in heads.iter().zip(&tables) {
        println!("{title}\n\n{head}\n{}|", "|---".repeat(head.matches('|').count() - 1));
        rows.iter().for_each(|row| println!("{row}"));
        println!();
    }
    println!(
        "{} points; search better by 3 % on {better}, at worst {worst:.3} of the best known; {:.1} % above the bound on the average; \
         {longest:.1} s at most.",
        points.len(),
        100.0 * gaps / points.len() as f64
    );
    Ok(())
}
