//! Timelines in the form that `chrome://tracing` and Perfetto open.

use serde_json::{Value, json};

use crate::svg::Panel;
use crate::timeline::TimeUnit;

/// Timelines as one Chrome trace: a process for each panel, a thread for each rank, a complete event (`"ph":"X"`) for each step.
///
/// Measured seconds keep their length; a simulated unit of time becomes a millisecond.
pub fn chrome_trace(panels: &[Panel<'_>]) -> String {
    let mut events: Vec<Value> = Vec::new();
    for (pid, panel) in panels.iter().enumerate() {
        let timeline = panel.timeline;
        let placement = timeline.kind().placement();
        let micros = match timeline.unit() {
            TimeUnit::Units => 1e3,
            TimeUnit::Seconds => 1e6,
        };
        events.push(json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": panel.title}}));
        events.push(json!({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}));
        for (rank, spans) in timeline.spans().iter().enumerate() {
            let name = format!("rank {rank}");
            events.push(json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": rank, "args": {"name": name}}));
            events.push(json!({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": rank, "args": {"sort_index": rank}}));
            for span in spans {
                let micro_batch = |action: crate::Action| {
                    placement.micro_batch(timeline.micro_batches(), action.direction.into(), action.chunk)
                };
                let micro_batches: Vec<usize> = span.step.actions().map(micro_batch).collect();
                let kinds: String = span.step.actions().map(|action| action.kind.letter()).collect();
                events.push(json!({
                    "ph": "X",
                    "name": span.step.to_string(),
                    "cat": kinds,
                    "pid": pid,
                    "tid": rank,
                    "ts": span.start * micros,
                    "dur": (span.end - span.start) * micros,
                    "args": {"micro_batches": micro_batches, "wait_us": span.wait * micros},
                }));
            }
        }
    }
    json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string()
}

impl crate::Timeline {
    /// This timeline alone as a Chrome trace; see [`chrome_trace`].
    pub fn to_chrome_trace(&self) -> String {
        chrome_trace(&[Panel { title: self.title(""), timeline: self }])
    }
}
