//! Text, SVG and Chrome trace of timelines.

use dualpipe::{
    Costs, Kind, MIN_WIDTH, Panel, Schedule, TimeUnit, Timeline, chrome_trace, simulate, svg, svg_measured_above_simulated,
};

fn timeline(kind: Kind, ranks: usize, micro_batches: usize, costs: &str) -> Timeline {
    simulate(&Schedule::new(kind, ranks, micro_batches).unwrap(), &costs.parse::<Costs>().unwrap()).unwrap()
}

const SIZES: [(usize, usize); 5] = [(2, 4), (4, 8), (8, 20), (16, 64), (64, 256)];

#[test]
fn the_text_is_as_shown() {
    let text = timeline(Kind::DualPipe, 4, 8, "").to_text(80);
    let expected = "\
dualpipe: 4 ranks, 8 micro-batches; capitals: direction 0, small: direction 1;
  +: overlapped

0  F0 F1 F2 f0 i0 w0 f1 F3+b1--- ...f2+B0--- b2--- ...f3+B1--- b3--- I2 W2 I3 W3
1  ...F0 f0 F1 f1 F2 b0--- f2+B0--- F3+b1--- f3+B1--- b2--- B2--- ...i3 I3 w3 W3
2  ...f0 F0 f1 F1 f2 B0--- F2+b0--- f3+B1--- F3+b1--- B2--- b2--- ...I3 i3 W3 w3
3  f0 f1 f2 F0 I0 W0 F1 f3+B1--- ...F2+b0--- B2--- ...F3+b1--- B3--- i2 w2 i3 w3

makespan: 26
bubble per rank: 2 2 2 2
peak activations per rank, freed at W: 5 5 5 5
peak activations per rank: 5 5 5 5
";
    assert_eq!(text, expected);
}

#[test]
fn rounds_are_told_apart() {
    let timeline = timeline(Kind::Interleaved(3), 2, 2, "F=1,B=2,W=1");
    let text = timeline.to_text(80);
    let title =
        "interleaved-3: 2 ranks, 2 micro-batches; capitals: round 0, small: round 1, then\n  after the number of the round\n";
    assert!(text.starts_with(title), "{text}");
    let row = text.lines().find(|line| line.starts_with("0  ")).unwrap();
    for name in ["F0", "f0", "2F0"] {
        assert!(row.contains(name), "{row}");
    }
    let svg = timeline.to_svg();
    // The dark shade of round 0, the light one of round 2, and one between.
    for colour in ["#f0a830", "#f8d590", "#f4be60"] {
        assert!(svg.contains(colour), "{colour}");
    }
    assert!(svg.contains("the lighter, the later round"));
}

#[test]
fn every_line_of_text_fits_and_the_figures_come_last() {
    for kind in Kind::ALL {
        for (ranks, micro_batches) in SIZES {
            for costs in ["", "F=0.7,B=1.9,W=0.9,FB=2.1,P2P=0.05", "F=1000,B=2000,W=1", "F=0,B=0,W=0,FB=0"] {
                let timeline = timeline(kind, ranks, micro_batches, costs);
                for width in [MIN_WIDTH, 80, 200] {
                    let text = timeline.to_text(width);
                    assert!(text.is_ascii());
                    for line in text.lines() {
                        assert!(line.len() <= width, "{} columns: {line}", line.len());
                        assert!(!line.ends_with(' ') || line.len() <= 3, "'{line}'");
                    }
                    let at = |what: &str| text.find(what).unwrap();
                    assert!(at("\nmakespan: ") < at("\nbubble per rank: "));
                    assert!(at("\nbubble per rank: ") < at("\npeak activations per rank: "));
                }
                assert!(timeline.to_text(0).lines().all(|line| line.len() <= MIN_WIDTH));
            }
        }
    }
}

#[test]
fn all_chunks_can_be_read_at_80_columns() {
    let text = timeline(Kind::ZbH1, 8, 20, "").to_text(80);
    for chunk in 0..20 {
        for letter in ["F", "I", "W"] {
            assert!(text.contains(&format!("{letter}{chunk}")), "{letter}{chunk}");
        }
    }
}

/// Checks that tags close in order and attributes are quoted: as much of XML as is used.
fn assert_well_formed(text: &str) {
    let mut open = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        assert!(!rest[..start].contains('>'), "{}", &rest[..start]);
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap_or_default());
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
}

fn numbers(text: &str, attribute: &str) -> Vec<f64> {
    let key = format!(" {attribute}=\"");
    let value = |part: &str| part.split('"').next().unwrap_or_default().parse().expect("a number");
    text.split(&key).skip(1).map(value).collect()
}

#[test]
fn pictures_are_well_formed_and_within_their_frame() {
    for kind in Kind::ALL {
        for (ranks, micro_batches) in &SIZES[..4] {
            let timeline = timeline(kind, *ranks, *micro_batches, "F=1,B=2.5,W=1,FB=3,P2P=0.1");
            let picture = timeline.to_svg();
            assert_well_formed(&picture);
            assert!(!picture.contains("NaN") && !picture.contains("inf\""));
            let height: f64 = numbers(&picture, "height")[0];
            assert!(numbers(&picture, "x").iter().all(|&x| (0.0..=1200.0).contains(&x)));
            assert!(numbers(&picture, "y").iter().all(|&y| y >= 0.0 && y <= height));
            let spans = timeline.spans().iter().map(Vec::len).sum::<usize>();
            assert_eq!(picture.matches("<title>").count(), spans);
            for rank in 0..*ranks {
                assert!(picture.contains(&format!(">rank {rank}</text>")));
            }
            assert!(picture.contains(">F forward</text>"));
            assert_eq!(picture.contains(">B full backward</text>"), !matches!(kind, Kind::ZbH1 | Kind::ZbV));
        }
    }
    assert_well_formed(&timeline(Kind::GPipe, 1, 1, "F=0,B=0,W=0").to_svg());
    assert_well_formed(&svg(&[]));
}

#[test]
fn the_measured_panel_stands_above_the_simulated_on_one_scale() {
    let simulated = timeline(Kind::DualPipe, 4, 8, "F=0.01,B=0.02,W=0.01").with_unit(TimeUnit::Seconds);
    let measured = timeline(Kind::DualPipe, 4, 8, "F=0.02,B=0.04,W=0.02").with_unit(TimeUnit::Seconds);
    let picture = svg_measured_above_simulated(&measured, &simulated);
    assert_well_formed(&picture);
    let title = |words: &str| picture.find(&format!(">{words}")).unwrap();
    assert!(
        title("Measured: dualpipe, 4 ranks, 8 micro-batches — 520 ms")
            < title("Simulated: dualpipe, 4 ranks, 8 micro-batches — 260 ms")
    );
    // The backgrounds of the rows are as long as the makespans.
    let rows: Vec<&str> = picture.lines().filter(|line| line.contains("fill-opacity")).collect();
    assert_eq!(rows.len(), 8);
    let (first, last) = (numbers(rows[0], "width")[0], numbers(rows[7], "width")[0]);
    assert!((first - 2.0 * last).abs() < 0.02, "{first} {last}");
    assert_eq!(picture.matches("idle 7.7 %").count(), 8);
}

#[test]
fn titles_are_escaped() {
    let timeline = timeline(Kind::GPipe, 2, 2, "");
    let picture = svg(&[Panel { title: "a < b & \"c\"".into(), timeline: &timeline }]);
    assert_well_formed(&picture);
    assert!(picture.contains(">a &lt; b &amp; &quot;c&quot; —"));
}

#[test]
fn the_trace_has_every_step_once_and_in_time() {
    let simulated = timeline(Kind::DualPipeV, 3, 7, "F=1,B=2,W=1,FB=2.5");
    let measured = simulated.clone().with_unit(TimeUnit::Seconds);
    let panels =
        [Panel { title: "measured".into(), timeline: &measured }, Panel { title: "simulated".into(), timeline: &simulated }];
    let trace: serde_json::Value = serde_json::from_str(&chrome_trace(&panels)).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for (pid, micros) in [(0u64, 1e6), (1, 1e3)] {
        for (rank, spans) in simulated.spans().iter().enumerate() {
            let of_rank = events
                .iter()
                .filter(|event| (&event["ph"], &event["pid"], &event["tid"]) == (&"X".into(), &pid.into(), &rank.into()));
            let got: Vec<(String, f64, f64)> = of_rank
                .map(|event| {
                    (event["name"].as_str().unwrap().into(), event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap())
                })
                .collect();
            let expected: Vec<(String, f64, f64)> =
                spans.iter().map(|span| (span.step.to_string(), span.start * micros, (span.end - span.start) * micros)).collect();
            assert_eq!(got, expected);
        }
        let named = |name: &str| events.iter().filter(|e| e["name"] == name && e["pid"] == pid).count();
        assert_eq!((named("process_name"), named("thread_name")), (1, 3));
    }
    assert_eq!(serde_json::from_str::<serde_json::Value>(&simulated.to_chrome_trace()).unwrap()["displayTimeUnit"], "ms");
}
