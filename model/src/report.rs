//! What a run leaves to look at: the loss curve, a page with all pictures, and tables of at most 80 columns.

use std::fmt::Write;

use plotters::prelude::*;

use crate::error::{Error, Result};

/// One line of a plot.
#[derive(Debug, Clone, Copy)]
pub struct Series<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Points (x, y); those that are not finite are left out.
    pub points: &'a [(f64, f64)],
}

/// How a plot is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Plot<'a> {
    /// Heading.
    pub title: &'a str,
    /// What x is.
    pub x_label: &'a str,
    /// What y is.
    pub y_label: &'a str,
    /// Whether y is drawn on a logarithmic axis, as long as the values span enough of it ([`LOG_SPAN`]); those that are not
    /// positive are then left out.
    pub log_y: bool,
}

/// Ratio of the largest to the smallest value below which a linear axis is easier to read than a logarithmic one.
pub const LOG_SPAN: f64 = 20.0;

/// A number on an axis: four digits that count, without zeros that say nothing.
fn label(value: f64) -> String {
    let magnitude = value.abs().log10().floor();
    let decimals = if magnitude.is_finite() { (3.0 - magnitude).clamp(0.0, 12.0) as usize } else { 0 };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Colours that stay apart for colour-blind readers and on paper (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

impl Plot<'_> {
    /// Draws the series as an SVG picture of 960x540.
    pub fn svg(&self, series: &[Series<'_>]) -> Result<String> {
        let drawable = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite() && (!self.log_y || *y > 0.0);
        let points = || series.iter().flat_map(|s| s.points.iter().copied()).filter(drawable);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            if low > high { (0.0, 1.0) } else { (low, high) }
        };
        let (x0, x1) = range(&mut points().map(|p| p.0));
        let (y0, y1) = range(&mut points().map(|p| p.1));
        let x1 = if x1 > x0 { x1 } else { x0 + 1.0 };
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (960, 540)).into_drawing_area();
            let drawn = area.fill(&WHITE).and_then(|()| {
                if self.log_y && y0 > 0.0 && y1 / y0 >= LOG_SPAN {
                    self.draw(&area, series, x0..x1, (y0 / 1.05..y1 * 1.05).log_scale(), &drawable)
                } else {
                    let margin = if y1 > y0 { (y1 - y0) * 0.05 } else { 0.5 };
                    self.draw(&area, series, x0..x1, y0 - margin..y1 + margin, &drawable)
                }
            });
            drawn.and_then(|()| area.present()).map_err(Error::piece("plotters"))?;
        }
        Ok(svg)
    }

    fn draw<'a, Y>(
        &self,
        area: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
        series: &[Series<'_>],
        x: std::ops::Range<f64>,
        y: Y,
        drawable: &dyn Fn(&(f64, f64)) -> bool,
    ) -> std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>
    where
        Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
        Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64> + plotters::coord::ranged1d::Ranged<ValueType = f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 22))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(self.x_label)
            .y_desc(self.y_label)
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 16))
            .light_line_style(RGBColor(244, 244, 244))
            .bold_line_style(RGBColor(220, 220, 220))
            .x_labels(10)
            .y_labels(10)
            .x_label_formatter(&|x| label(*x))
            .y_label_formatter(&|y| label(*y))
            .draw()?;
        for (line, colour) in series.iter().zip(COLOURS.iter().cycle()) {
            let points = line.points.iter().copied().filter(drawable);
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(("sans-serif", 15))
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .draw()
    }
}

/// The curve of a training run: loss over steps, on a logarithmic axis where the values are positive and span much of it.
pub fn loss_svg(series: &[Series<'_>]) -> Result<String> {
    let positive = series.iter().all(|s| s.points.iter().all(|p| !p.1.is_finite() || p.1 > 0.0));
    Plot { title: "Training loss", x_label: "step", y_label: "loss (nats per token)", log_y: positive }.svg(series)
}

/// Width of a terminal that every table fits.
pub const TABLE_WIDTH: usize = 80;

/// A table of names and values, with headings between, that fits 80 columns.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
enum Row {
    Heading(String),
    Pair(String, String),
}

impl Table {
    /// An empty table.
    pub fn new() -> Table {
        Table::default()
    }

    /// Adds a heading.
    pub fn heading(&mut self, text: impl Into<String>) -> &mut Table {
        self.rows.push(Row::Heading(text.into()));
        self
    }

    /// Adds a row.
    pub fn row(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Table {
        self.rows.push(Row::Pair(name.into(), value.into()));
        self
    }

    /// The table as text of at most 80 columns, values broken over several lines where they must be.
    pub fn to_text(&self) -> String {
        let names = self.rows.iter().filter_map(|row| match row {
            Row::Pair(name, _) => Some(name.chars().count()),
            Row::Heading(_) => None,
        });
        let width = names.max().unwrap_or(0).min(TABLE_WIDTH / 2);
        let room = TABLE_WIDTH - width - 4;
        let mut out = String::new();
        for row in &self.rows {
            match row {
                Row::Heading(text) => {
                    for line in wrap(text, TABLE_WIDTH) {
                        out.push_str(&line);
                        out.push('\n');
                    }
                }
                Row::Pair(name, value) => {
                    let (names, values) = (wrap(name, width), wrap(value, room));
                    for i in 0..names.len().max(values.len()) {
                        let name = names.get(i).map_or("", String::as_str);
                        let value = values.get(i).map_or("", String::as_str);
                        let pad = " ".repeat(width - name.chars().count());
                        out.push_str(format!("  {name}{pad}  {value}").trim_end());
                        out.push('\n');
                    }
                }
            }
        }
        out
    }

    /// The table as HTML.
    pub fn to_html(&self) -> String {
        let mut out = String::from("<table>\n");
        for row in &self.rows {
            match row {
                Row::Heading(text) => out += &format!("<tr><th colspan=\"2\">{}</th></tr>\n", escape(text)),
                Row::Pair(name, value) => {
                    out += &format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(name), escape(value).replace('\n', "<br>"));
                }
            }
        }
        out + "</table>\n"
    }
}

/// Breaks a text into lines of at most `width` characters, between words where that is possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        let mut used = 0;
        for word in paragraph.split(' ') {
            let mut word: Vec<char> = word.chars().collect();
            if used > 0 && used + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
                used = 0;
            } else if used > 0 {
                line.push(' ');
                used += 1;
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            used += word.len();
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

/// Escapes text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A picture of a page.
#[derive(Debug, Clone, Copy)]
pub struct Figure<'a> {
    /// What it shows.
    pub title: &'a str,
    /// An SVG document.
    pub svg: &'a str,
    /// A sentence below it.
    pub caption: &'a str,
}

/// A self-contained page: the pictures inline, the table, and whatever samples of text there are. It loads nothing.
pub fn html_page(title: &str, table: &Table, figures: &[Figure<'_>], samples: &[(&str, &str)]) -> String {
    let mut out =
        format!("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{}</title>\n", escape(title));
    out.push_str(STYLE);
    // Writing to a string does not fail.
    let _ = writeln!(out, "</head>\n<body>\n<h1>{}</h1>\n{}", escape(title), table.to_html());
    for figure in figures {
        let svg = inline_svg(figure.svg);
        let (title, caption) = (escape(figure.title), escape(figure.caption));
        let _ = writeln!(out, "<h2>{title}</h2>\n<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>");
    }
    for (title, text) in samples {
        let _ = writeln!(out, "<h2>{}</h2>\n<pre>{}</pre>", escape(title), escape(text));
    }
    out + "</body>\n</html>\n"
}

const STYLE: &str = "<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse } th { text-align: left; padding-top: .8rem }
td { padding: .1rem 1.5rem .1rem 0; vertical-align: top; font-variant-numeric: tabular-nums }
figure { margin: 0; overflow-x: auto } figcaption { color: #555 } svg { max-width: 100%; height: auto }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .8rem }
</style>
";

/// An SVG document without what may only stand at the start of a file.
fn inline_svg(svg: &str) -> &str {
    svg.find("<svg").map_or(svg, |at| &svg[at..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tables_fit_and_lose_nothing(rows in prop::collection::vec(("[a-z ]{0,60}", "[a-zA-Z0-9 é]{0,200}"), 0..6)) {
            let mut table = Table::new();
            table.heading("a heading");
            for (name, value) in &rows {
                table.row(name, value);
            }
            let text = table.to_text();
            prop_assert!(text.lines().all(|line| line.chars().count() <= TABLE_WIDTH));
            let letters = |s: &str| {
                let mut letters: Vec<char> = s.chars().filter(|c| !c.is_whitespace()).collect();
                letters.sort_unstable();
                letters
            };
            let all: String = rows.iter().flat_map(|(n, v)| [n.as_str(), v.as_str()]).chain(["a heading"]).collect();
            prop_assert_eq!(letters(&text), letters(&all));
        }
    }

    #[test]
    fn a_table_looks_right() {
        let mut table = Table::new();
        table.heading("Validation").row("bits per byte", "1.92").row("order-2 model", "2.41");
        assert_eq!(table.to_text(), "Validation\n  bits per byte  1.92\n  order-2 model  2.41\n");
    }

    #[test]
    fn plots_are_drawn_whatever_the_numbers() {
        let steps: Vec<(f64, f64)> = (0..100).map(|i| (i as f64, 5.5 * (-0.02 * i as f64).exp())).collect();
        let broken = [(0.0, f64::NAN), (1.0, f64::INFINITY), (2.0, 3.0)];
        let flat = [(7.0, 2.0)];
        for points in [&steps[..], &broken, &flat, &[], &[(0.0, -1.0), (1.0, 0.0)]] {
            let svg = loss_svg(&[Series { name: "main <loss>", points }, Series { name: "mtp", points: &steps }]).unwrap();
            assert!(svg.contains("<svg") && svg.contains("</svg>") && !svg.contains("NaN"));
            assert!(svg.contains("step") && svg.contains("main &lt;loss&gt;"));
        }
        let svg = loss_svg(&[Series { name: "loss", points: &[] }]).unwrap();
        assert!(svg.contains("</svg>"));
    }

    #[test]
    fn labels_have_the_digits_that_count() {
        for (value, text) in [(0.0, "0"), (100.0, "100"), (5.45, "5.45"), (0.0001, "0.0001"), (12345.0, "12345"), (-2.0, "-2")] {
            assert_eq!(label(value), text);
        }
    }

    #[test]
    fn both_axes_have_labels() {
        let falling =
            |ratio: f64| -> Vec<(f64, f64)> { (0..=100).map(|i| (i as f64, 5.5 * ratio.powf(-i as f64 / 100.0))).collect() };
        for ratio in [1.01, 2.5, 19.0, 21.0, 300.0, 1e6] {
            let svg = loss_svg(&[Series { name: "loss", points: &falling(ratio) }]).unwrap();
            let numbers: Vec<f64> = svg.lines().filter_map(|line| line.trim().parse().ok()).collect();
            // Steps are whole and up to 100; what is left are losses, and step 0.
            let (steps, losses): (Vec<f64>, Vec<f64>) = numbers.iter().partition(|n| **n >= 10.0);
            assert!(steps.contains(&20.0) && steps.contains(&100.0), "{ratio}: {numbers:?}");
            assert!(losses.len() >= 3, "{ratio}: {numbers:?}");
            assert_eq!(losses.iter().filter(|n| **n == 0.0).count(), 1, "{ratio}: {numbers:?}");
        }
    }

    #[test]
    fn a_page_stands_alone() {
        let mut table = Table::new();
        table.row("a & b", "<1>");
        let svg = "<?xml version=\"1.0\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>";
        let page = html_page("run", &table, &[Figure { title: "t", svg, caption: "c" }], &[("sample", "x < y")]);
        assert!(page.contains("a &amp; b") && page.contains("&lt;1&gt;") && page.contains("x &lt; y"));
        assert!(!page.contains("<?xml") && !page.contains("<link") && !page.contains("src="));
        for tag in ["html", "body", "table", "figure", "svg", "pre"] {
            assert_eq!(page.matches(&format!("<{tag}")).count(), page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
