//! A timeline as text, for a terminal.

use std::fmt::Write;

use crate::action::Step;
use crate::kind::Placement;
use crate::schedule::Freed;
use crate::timeline::{Span, TimeUnit, Timeline};

/// The fewest columns that [`Timeline::to_text`] works with.
pub const MIN_WIDTH: usize = 40;

/// The most bands of the chart; beyond, time is drawn in a coarser scale.
const MAX_BANDS: usize = 16;

impl Timeline {
    /// A chart of all ranks and the figures below it, in lines of at most `width` columns (at least [`MIN_WIDTH`]).
    ///
    /// One line a rank; time goes to the right, and on in further bands when it does not fit. An action begins with its letter and
    /// chunk, and lasts to the next or to the dots of idle time: `F3--` is a forward of chunk 3. Letters are small for direction 1, and
    /// after the number of the direction from 2 on (`2F3`); `F3+b1` is an overlapped pair. Where there is no room the chunk is left out. The last lines are the makespan, the bubble
    /// per rank and the peak activations per rank.
    ///
    /// ```
    /// use dualpipe::{Costs, Kind, Schedule, simulate};
    /// let text = simulate(&Schedule::new(Kind::ZbH1, 2, 3)?, &Costs::default())?.to_text(80);
    /// assert!(text.contains("\n0  F0 F1 "));
    /// # Ok::<(), dualpipe::Error>(())
    /// ```
    pub fn to_text(&self, width: usize) -> String {
        let width = width.max(MIN_WIDTH);
        let mut out = String::new();
        let stages = match self.kind().placement() {
            Placement::Line => "",
            Placement::Bidirectional | Placement::V => "; capitals: direction 0, small: direction 1; +: overlapped",
            Placement::Loop(0..=2) => "; capitals: round 0, small: round 1",
            Placement::Loop(_) => "; capitals: round 0, small: round 1, then after the number of the round",
        };
        let title = format!("{}: {} ranks, {} micro-batches{stages}", self.kind(), self.ranks(), self.micro_batches());
        wrap(&mut out, &title, width, 2);
        self.chart(&mut out, width);
        self.figures(&mut out, width);
        out
    }

    fn chart(&self, out: &mut String, width: usize) {
        let label = self.ranks().saturating_sub(1).to_string().len() + 1;
        let room = width - label - 1;
        let (columns, cell) = self.columns(room);
        // A band ends where a step of the shortest kind ends; the gap after the last step needs no column.
        let band = if columns <= room + 1 { room + 1 } else { (room / cell).max(1) * cell };
        let per_time = if self.makespan() > 0.0 { columns as f64 / self.makespan() } else { 0.0 };
        let lines: Vec<Vec<u8>> = self.spans().iter().map(|spans| draw(spans, columns, per_time)).collect();
        let mut begin = 0;
        while begin < columns {
            let end = (begin + band).min(columns);
            out.push('\n');
            for (rank, line) in lines.iter().enumerate() {
                let part = String::from_utf8_lossy(&line[begin..end.min(begin + room)]);
                let _ = writeln!(out, "{rank:<label$} {}", part.trim_end());
            }
            begin = end;
        }
        out.push('\n');
    }

    /// In how many columns the whole timeline is drawn, and how many of them the shortest step takes: enough for its label if
    /// that fits.
    fn columns(&self, room: usize) -> (usize, usize) {
        let makespan = self.makespan();
        let digits = |most: usize| most.saturating_sub(1).to_string().len();
        let directions = self.kind().placement().directions();
        let chunk_digits = digits(self.micro_batches()) + if directions > 2 { digits(directions) } else { 0 };
        let steps = self.spans().iter().flatten();
        let shortest =
            steps.map(|span| span.end - span.start).filter(|&time| time > makespan * 1e-6).fold(f64::INFINITY, f64::min);
        if !(shortest.is_finite() && makespan > 0.0) {
            return (room, 1);
        }
        let most = MAX_BANDS * room;
        let wanted = |cell: usize| ((makespan / shortest * cell as f64).round() as usize, cell);
        let cells = [2 + chunk_digits, 1 + chunk_digits, 1];
        cells.into_iter().map(wanted).find(|&(columns, _)| columns <= most).unwrap_or((most, 1))
    }

    fn figures(&self, out: &mut String, width: usize) {
        let unit = match self.unit() {
            TimeUnit::Units => "",
            TimeUnit::Seconds => " s",
        };
        let list = |values: Vec<String>| values.join(" ");
        let counts = |freed| list(self.peak_activations(freed).iter().map(usize::to_string).collect());
        wrap(out, &format!("makespan: {}{unit}", number(self.makespan())), width, 2);
        let bubbles = self.bubbles().iter().map(|&time| number(time)).collect();
        wrap(out, &format!("bubble per rank{}: {}", if unit.is_empty() { "" } else { " (s)" }, list(bubbles)), width, 2);
        wrap(out, &format!("peak activations per rank, freed at W: {}", counts(Freed::AtWeight)), width, 2);
        wrap(out, &format!("peak activations per rank: {}", counts(Freed::AtInput)), width, 2);
    }
}

/// One rank's line.
fn draw(spans: &[Span], columns: usize, per_time: f64) -> Vec<u8> {
    let mut line = vec![b'.'; columns];
    for span in spans {
        let column = |time: f64| ((time * per_time).round() as usize).min(columns);
        let (begin, end) = (column(span.start), column(span.end));
        let Some(cell) = line.get_mut(begin..end) else { continue };
        // One column stays free between two steps, where there is room.
        let room = if cell.len() > 2 { cell.len() - 1 } else { cell.len() };
        let name = names(&span.step).into_iter().find(|name| name.len() <= room).unwrap_or_default();
        cell.fill(b'-');
        cell[..name.len()].copy_from_slice(name.as_bytes());
        if room < cell.len() {
            cell[room] = b' ';
        }
    }
    line
}

/// What a step is called, longest first.
fn names(step: &Step) -> Vec<String> {
    let letter = |action: crate::Action| match action.direction {
        0 => action.kind.letter().to_string(),
        1 => action.kind.letter().to_ascii_lowercase().to_string(),
        round => format!("{round}{}", action.kind.letter()),
    };
    let letters: Vec<String> = step.actions().map(letter).collect();
    let full: Vec<String> = step.actions().map(|action| format!("{}{}", letter(action), action.chunk)).collect();
    vec![full.join("+"), full.concat(), letters.join("+"), letters.concat(), letters[0].clone()]
}

/// At most 6 digits after the point, none of them needless.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// Writes `text` in lines of at most `width`, breaking at spaces; further lines are indented.
fn wrap(out: &mut String, text: &str, width: usize, indent: usize) {
    let mut column = 0;
    for word in text.split(' ') {
        if column > indent && column + 1 + word.len() > width {
            let _ = write!(out, "\n{:indent$}", "");
            column = indent;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out.push('\n');
}
