//! Waiting costs no processor time. Alone in its program, as it measures all of it.

use std::time::Duration;

use v3_ranks::{Comm, Error, Lane, Link, LinkModel, Result, Step, Task, WorldConfig, run_threads};

/// Processor time of this program so far, from Linux; the unit of /proc/self/stat is a hundredth of a second.
fn processor_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may hold spaces. After it, fields 14 and 15: in user and in system mode.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(10 * ticks))
}

struct Exchange(bool);

impl Task for Exchange {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<()>> {
        let (next, before) = ((comm.rank() + 1) % comm.size(), (comm.rank() + comm.size() - 1) % comm.size());
        if !std::mem::replace(&mut self.0, true) {
            comm.send(next, 1, vec![0u8])?;
        }
        Ok(comm.try_recv::<u8>(before, 1)?.map_or(Step::Waiting(vec![(before, 1)]), |_| Step::Done(())))
    }
}

#[test]
fn ranks_and_lanes_that_wait_use_no_processor_time() {
    let slow = Link { latency: Duration::from_secs(1), bandwidth: f64::INFINITY };
    let config = WorldConfig::new(6).link(LinkModel { fast: slow, slow });
    let Some(before) = processor_time() else {
        v3_testkit::skip::skip("waiting costs no processor time", "no /proc/self/stat here");
        return;
    };
    run_threads(config, |comm: Comm| -> Result<()> {
        let busy = Lane::spawn(&comm, "busy")?;
        let _idle = Lane::spawn(&comm, "idle")?;
        busy.submit(Exchange(false)).finish(&comm)
    })
    .unwrap();
    let used = processor_time().unwrap_or_default().saturating_sub(before);
    // 18 threads wait for a second. A single one that spins would use all of it.
    assert!(used <= Duration::from_millis(200), "{used:?}");
}
