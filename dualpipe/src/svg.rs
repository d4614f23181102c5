//! A timeline as a picture.

use std::fmt::Write;

use crate::action::{Action, ActionKind, Step};
use crate::kind::Placement;
use crate::text::number;
use crate::timeline::{Span, TimeUnit, Timeline};

/// One timeline of a picture, with its title.
#[derive(Debug, Clone)]
pub struct Panel<'a> {
    /// What stands above it.
    pub title: String,
    /// What is drawn.
    pub timeline: &'a Timeline,
}

const WIDTH: f64 = 1200.0;
/// Left of the rows: the names of the ranks.
const LEFT: f64 = 64.0;
/// Right of the rows: the idle shares.
const RIGHT: f64 = 92.0;
/// A grey with a contrast of 4.5 to white and of 4.6 to black.
const GREY: &str = "#767676";
const FONT: &str = "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\"";

impl Timeline {
    /// This timeline alone as an SVG picture; see [`svg`].
    pub fn to_svg(&self) -> String {
        svg(&[Panel { title: self.title(""), timeline: self }])
    }

    /// As in `dualpipe, 4 ranks, 8 micro-batches`.
    pub(crate) fn title(&self, prefix: &str) -> String {
        let (kind, ranks, micro_batches) = (self.kind(), self.ranks(), self.micro_batches());
        format!("{prefix}{kind}, {ranks} ranks, {micro_batches} micro-batches")
    }
}

/// The measured timeline of a step above the simulation of the same plan, in one picture.
///
/// ```no_run
/// # fn f(schedule: &dualpipe::Schedule, spans: Vec<Vec<dualpipe::Span>>) -> Result<(), Box<dyn std::error::Error>> {
/// use dualpipe::{TimeUnit, Timeline, simulate, svg_measured_above_simulated};
/// let measured = Timeline::measured(schedule, spans)?;
/// let simulated = simulate(schedule, &measured.mean_costs())?.with_unit(TimeUnit::Seconds);
/// std::fs::write("timeline.svg", svg_measured_above_simulated(&measured, &simulated))?;
/// # Ok(())
/// # }
/// ```
pub fn svg_measured_above_simulated(measured: &Timeline, simulated: &Timeline) -> String {
    svg(&[
        Panel { title: measured.title("Measured: "), timeline: measured },
        Panel { title: simulated.title("Simulated: "), timeline: simulated },
    ])
}

/// Timelines one above the other as an SVG picture of its own (no style sheet, no script, no font to load), 1200 wide, legible on a
/// light and on a dark page.
///
/// Each panel has its title with the makespan, one row a rank with the share of the makespan in which the rank did not work, and a time axis.
/// Panels in the same unit share one scale. Colour tells the kind of work, the lighter shade direction 1 (of several rounds the later); the number is the
/// chunk (left out where it does not fit; the tooltip has all); an overlapped pair shows its forward above its backward.
pub fn svg(panels: &[Panel<'_>]) -> String {
    let mut body = String::new();
    let mut top = 12.0;
    for panel in panels {
        let unit = panel.timeline.unit();
        let same = panels.iter().filter(|other| other.timeline.unit() == unit);
        let longest = same.map(|other| other.timeline.makespan()).fold(0.0, f64::max);
        top = draw_panel(&mut body, panel, longest, top);
    }
    let two_ways = panels.iter().map(|panel| panel.timeline.kind().placement()).find(|placement| placement.directions() > 1);
    let kinds = ActionKind::ALL.map(|kind| panels.iter().any(|panel| uses(panel.timeline, kind)));
    let pairs = panels.iter().any(|panel| panel.timeline.spans().iter().flatten().any(|span| span.step.is_pair()));
    let height = draw_legend(&mut body, kinds, pairs, two_ways, top);
    let about = panels.iter().map(|panel| panel.title.as_str()).collect::<Vec<_>>().join("; ");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{}\" {FONT}>\n{body}</svg>\n",
        escape(&about)
    )
}

fn uses(timeline: &Timeline, kind: ActionKind) -> bool {
    timeline.spans().iter().flatten().any(|span| span.step.actions().any(|action| action.kind == kind))
}

/// Draws one panel from `top` down; returns where the next begins.
fn draw_panel(body: &mut String, panel: &Panel<'_>, longest: f64, top: f64) -> f64 {
    let timeline = panel.timeline;
    let (row, gap) = match timeline.ranks() {
        0..=16 => (26.0, 4.0),
        17..=64 => (16.0, 2.0),
        _ => (10.0, 1.0),
    };
    let room = WIDTH - LEFT - RIGHT;
    let scale = if longest > 0.0 { room / longest } else { 0.0 };
    let (unit, per_unit) = shown_unit(timeline.unit(), longest);
    let makespan = rounded(timeline.makespan() / per_unit);
    let title = format!("{} — {makespan} {unit}", panel.title);
    text(body, LEFT, top + 14.0, 15.0, "start", "font-weight=\"600\"", &title);
    let mean = format!("mean {}", percent(timeline.idle_share()));
    text(body, WIDTH - 8.0, top + 14.0, 11.0, "end", "", &mean);
    let first = top + 26.0;
    for (rank, (spans, idle)) in timeline.spans().iter().zip(timeline.idle_shares()).enumerate() {
        let y = first + rank as f64 * (row + gap);
        let width = timeline.makespan() * scale;
        let _ = writeln!(
            body,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.2}\" height=\"{row}\" fill=\"#808080\" fill-opacity=\"0.14\"/>"
        );
        let size = f64::min(12.0, row);
        let middle = y + row / 2.0 + size * 0.35;
        text(body, LEFT - 8.0, middle, size, "end", "", &format!("rank {rank}"));
        text(body, WIDTH - 8.0, middle, size, "end", "", &format!("idle {}", percent(idle)));
        for span in spans {
            draw_span(body, timeline, span, scale, y, row, (unit, per_unit));
        }
    }
    let below = first + timeline.ranks() as f64 * (row + gap);
    draw_axis(body, longest, scale, below, unit, per_unit);
    below + 48.0
}

fn draw_span(body: &mut String, timeline: &Timeline, span: &Span, scale: f64, y: f64, row: f64, unit: (&str, f64)) {
    let x = LEFT + span.start * scale;
    let width = (span.end - span.start) * scale;
    // A hair of the row's background stays visible between two steps.
    let drawn = if width > 2.0 { width - 0.6 } else { width };
    let (name, per_unit) = unit;
    let about: Vec<String> = span.step.actions().map(|action| describe(timeline, action)).collect();
    let times = format!("{} to {} {name}", number(span.start / per_unit), number(span.end / per_unit));
    let _ = writeln!(body, "<g><title>rank {}: {}; {times}</title>", span.rank, escape(&about.join(" overlapped with ")));
    let count = if span.step.is_pair() { 2.0 } else { 1.0 };
    for (index, action) in span.step.actions().enumerate() {
        let height = row / count;
        let at = y + index as f64 * height;
        let fill = colour(action.kind, action.direction, timeline.kind().placement().directions());
        let _ = writeln!(body, "<rect x=\"{x:.2}\" y=\"{at}\" width=\"{drawn:.2}\" height=\"{height}\" fill=\"{fill}\"/>");
        let label = action.chunk.to_string();
        let size = f64::min(11.0, height - 1.0);
        if size >= 8.0 && width >= label.len() as f64 * size * 0.62 + 2.0 {
            let _ = writeln!(
                body,
                "<text x=\"{:.2}\" y=\"{:.2}\" font-size=\"{size}\" text-anchor=\"middle\" fill=\"#111\">{label}</text>",
                x + drawn / 2.0,
                at + height / 2.0 + size * 0.36
            );
        }
    }
    if let Step::Pair(..) = span.step {
        let _ = writeln!(
            body,
            "<rect x=\"{:.2}\" y=\"{}\" width=\"{:.2}\" height=\"{}\" fill=\"none\" stroke=\"{GREY}\"/>",
            x + 0.5,
            y + 0.5,
            (drawn - 1.0).max(0.0),
            row - 1.0
        );
    }
    body.push_str("</g>\n");
}

fn draw_axis(body: &mut String, longest: f64, scale: f64, y: f64, unit: &str, per_unit: f64) {
    let _ = writeln!(body, "<path d=\"M{LEFT} {y}H{}\" stroke=\"{GREY}\" fill=\"none\"/>", WIDTH - RIGHT);
    let length = longest / per_unit;
    let step = tick(length / 12.0);
    let mut index = 0;
    while length > 0.0 && index as f64 * step <= length * (1.0 + 1e-9) {
        let value = index as f64 * step;
        let x = LEFT + value * per_unit * scale;
        let _ = writeln!(body, "<path d=\"M{x:.2} {y}v5\" stroke=\"{GREY}\" fill=\"none\"/>");
        text(body, x, y + 17.0, 11.0, "middle", "", &number(value));
        index += 1;
    }
    text(body, WIDTH - 8.0, y + 17.0, 11.0, "end", "", &format!("time ({unit})"));
}

fn draw_legend(body: &mut String, kinds: [bool; 4], pairs: bool, two_ways: Option<Placement>, top: f64) -> f64 {
    let (mut x, mut y) = (LEFT, top);
    let mut entry = |fills: &[String], stacked: bool, label: &str| {
        let swatch = if fills.is_empty() { 0.0 } else { 30.0 };
        let wide = swatch + label.len() as f64 * 6.2 + 16.0;
        if x + wide > WIDTH {
            (x, y) = (LEFT, y + 22.0);
        }
        let count = fills.len().max(1) as f64;
        for (index, fill) in fills.iter().enumerate() {
            let part = index as f64;
            let (dx, dy, w, h) = if stacked {
                (0.0, 14.0 / count * part, 24.0, 14.0 / count)
            } else {
                (24.0 / count * part, 0.0, 24.0 / count, 14.0)
            };
            let _ = writeln!(body, "<rect x=\"{}\" y=\"{}\" width=\"{w}\" height=\"{h}\" fill=\"{fill}\"/>", x + dx, y + dy);
        }
        if stacked {
            let _ = writeln!(
                body,
                "<rect x=\"{}\" y=\"{}\" width=\"23\" height=\"13\" fill=\"none\" stroke=\"{GREY}\"/>",
                x + 0.5,
                y + 0.5
            );
        }
        text(body, x + swatch, y + 11.0, 12.0, "start", "", label);
        x += wide;
    };
    for (kind, used) in ActionKind::ALL.into_iter().zip(kinds) {
        if used {
            let directions = two_ways.map_or(1, Placement::directions);
            let fills = [colour(kind, 0, directions), colour(kind, u8::MAX, directions)];
            entry(if two_ways.is_some() { &fills } else { &fills[..1] }, false, kind_name(kind));
        }
    }
    if pairs {
        entry(&[colour(ActionKind::F, 0, 1), colour(ActionKind::B, 0, 1)], true, "FB overlapped pair");
    }
    match two_ways {
        Some(Placement::V) => entry(&[], false, "light: way up of the V"),
        Some(Placement::Loop(_)) => entry(&[], false, "the lighter, the later round"),
        Some(_) => entry(&[], false, "light: direction 1"),
        None => {}
    }
    y + 30.0
}

fn kind_name(kind: ActionKind) -> &'static str {
    match kind {
        ActionKind::F => "F forward",
        ActionKind::B => "B full backward",
        ActionKind::I => "I backward for inputs",
        ActionKind::W => "W backward for weights",
    }
}

fn describe(timeline: &Timeline, action: Action) -> String {
    let placement = timeline.kind().placement();
    let micro_batch = placement.micro_batch(timeline.micro_batches(), action.direction.into(), action.chunk);
    let Action { direction, chunk, .. } = action;
    format!("{}, direction {direction}, chunk {chunk} (micro-batch {micro_batch})", kind_name(action.kind))
}

/// From the dark shade of direction 0 to the light one of the last. Black text on any of these has a contrast of 5 or more.
fn colour(kind: ActionKind, direction: u8, directions: usize) -> String {
    let (dark, light) = match kind {
        ActionKind::F => ([0xf0, 0xa8, 0x30], [0xf8, 0xd5, 0x90]),
        ActionKind::B => ([0x4f, 0xae, 0x6d], [0xa9, 0xda, 0xb6]),
        ActionKind::I => ([0x4a, 0xa3, 0xd6], [0xa8, 0xd4, 0xee]),
        ActionKind::W => ([0xa5, 0x8b, 0xe0], [0xd3, 0xc5, 0xf2]),
    };
    let last = directions.saturating_sub(1).max(1);
    let at = usize::from(direction).min(last);
    let [r, g, b]: [usize; 3] = std::array::from_fn(|i| (dark[i] * (last - at) + light[i] * at) / last);
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Name of the unit on the axis, and how much of the timeline's unit it is.
fn shown_unit(unit: TimeUnit, longest: f64) -> (&'static str, f64) {
    match unit {
        TimeUnit::Units => ("units", 1.0),
        TimeUnit::Seconds if longest < 1e-3 => ("µs", 1e-6),
        TimeUnit::Seconds if longest < 2.0 => ("ms", 1e-3),
        TimeUnit::Seconds => ("s", 1.0),
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `least`.
fn tick(least: f64) -> f64 {
    if !(least.is_finite() && least > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&step| step >= least).unwrap_or(10.0 * power)
}

fn rounded(value: f64) -> String {
    let digits = if value >= 1000.0 { 0 } else { 3 };
    number((value * 10f64.powi(digits)).round() / 10f64.powi(digits))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn text(body: &mut String, x: f64, y: f64, size: f64, anchor: &str, more: &str, words: &str) {
    let _ = writeln!(
        body,
        "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{GREY}\" {more}>{}</text>",
        escape(words)
    );
}

fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
