//! Tuning under the virtual clock, where the answer can be known, and the file it leaves.

use std::time::Duration;

use moe_dispatch::measure::{FanRanks, fan_routing, time_dispatch};
use moe_dispatch::tune::{Point, TuneOptions, Tuned, tune};
use moe_dispatch::{Layout, Plan, PlanOptions, Result};
use v3_ranks::{Clock, Comm, Link, LinkModel, WorldConfig, run_threads};

/// 2 nodes of 2 ranks; a row of 64 bytes takes 64 us on a slow link and 20 us on a fast one.
fn tuned(latency: Duration) -> Tuned {
    let (fast, slow) = (Link { latency, bandwidth: 3.2e6 }, Link { latency, bandwidth: 1e6 });
    let world = WorldConfig::new(4).ranks_per_node(2).clock(Clock::Virtual).link(LinkModel { fast, slow });
    let layout = Layout::new(16, 4, 2).unwrap();
    let all = run_threads(world, |comm: Comm| -> Result<Tuned> {
        let routing = fan_routing(&layout, comm.rank(), 64, &[3], FanRanks::Others)?;
        let options = TuneOptions { channels: vec![2, 1], chunk_rows: vec![1, 8, 64], repeats: 2, row_len: 16 };
        let tuned = tune(&comm, &layout, &routing, PlanOptions::default(), &options)?;
        // The curve is what the exchange takes.
        let options = PlanOptions { channels: tuned.channels, chunk_rows: tuned.chunk_rows, ..PlanOptions::default() };
        let again = time_dispatch(&comm, &Plan::with_options(&comm, &layout, &routing, options)?, 16)?;
        let same = |point: &&Point| (point.channels, point.chunk_rows) == (tuned.channels, tuned.chunk_rows);
        let point = tuned.curve.iter().find(same).unwrap();
        assert!((again / point.dispatch - 1.0).abs() < 1e-5, "{again} {}", point.dispatch);
        Ok(tuned)
    })
    .unwrap();
    assert!(all.iter().all(|tuned| *tuned == all[0]), "ranks choose differently");
    all.into_iter().next().unwrap()
}

#[test]
fn a_pipeline_wants_chunks() {
    let tuned = tuned(Duration::from_micros(1));
    assert_eq!(tuned.curve.len(), 6);
    let at = |chunk_rows: usize| tuned.curve.iter().find(|point| (point.channels, point.chunk_rows) == (1, chunk_rows)).unwrap();
    // In one piece the fast hop begins when the slow one has ended.
    assert!(at(64).dispatch > 1.25 * at(8).dispatch, "{tuned}");
    assert!((tuned.ranks, tuned.ranks_per_node, tuned.row_bytes, tuned.is_virtual) == (4, 2, 64, true));
    let best = tuned.curve.iter().map(|point| point.dispatch + point.combine).fold(f64::INFINITY, f64::min);
    let chosen = at(tuned.chunk_rows);
    assert!(tuned.channels == 1 && tuned.chunk_rows < 64 && chosen.dispatch + chosen.combine <= 1.01 * best, "{tuned}");
}

#[test]
fn what_is_written_is_read() {
    let tuned = tuned(Duration::from_micros(20));
    let path = std::env::temp_dir().join(format!("moe-dispatch-tuned-{}", std::process::id()));
    tuned.write(&path).unwrap();
    assert_eq!(Tuned::read(&path).unwrap(), tuned);
    let base = PlanOptions { alignment: 16, capacity: Some(99), ..PlanOptions::default() };
    let options = base.tuned(&path).unwrap();
    assert_eq!(options, PlanOptions { channels: tuned.channels, chunk_rows: tuned.chunk_rows, ..base });
    std::fs::write(&path, "something else\n").unwrap();
    let error = base.tuned(&path).unwrap_err().to_string();
    assert!(
        error.contains("moe-dispatch-tuned") && error.contains("line 1: expected 'moe-dispatch tuned options, version 1'"),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
    assert!(base.tuned(&path).unwrap_err().to_string().contains("moe-dispatch-tuned"));
    assert!(base.tuned("no/such/file").is_err());
    let gone = Tuned::write(&tuned, "no/such/directory/file").unwrap_err();
    assert!(gone.to_string().contains("no/such/directory/file"), "{gone}");
}

#[test]
fn bad_files_are_errors_that_name_the_line() {
    let good = "moe-dispatch tuned options, version 1\nchannels 2\nchunk_rows 64\nranks 4\nranks_per_node 2\nrow_bytes 64\nclock wall\n# note\npoint 2 64 1e-3 2e-3\n";
    let tuned: Tuned = good.parse().unwrap();
    assert_eq!(tuned.curve, [Point { channels: 2, chunk_rows: 64, dispatch: 1e-3, combine: 2e-3 }]);
    assert_eq!(tuned.to_string().parse::<Tuned>().unwrap(), tuned);
    for (from, to, word) in [
        ("version 1", "version 2", "line 1"),
        (good, "", "empty"),
        ("channels 2", "channels 0", "line 2: expected a number"),
        ("channels 2", "channels 300", "channels are 1 to 256"),
        ("channels 2", "channels -2", "line 2"),
        ("channels 2\n", "", "'channels' is missing"),
        ("clock wall\n", "", "'clock' is missing"),
        ("clock wall", "clock sun", "line 7: not understood"),
        ("ranks 4", "ranks 4\nranks 5", "line 5: not understood, or there twice: 'ranks 5'"),
        ("ranks 4", "rank 4", "line 4: not understood"),
        ("point 2 64 1e-3 2e-3", "point 2 64 1e-3", "line 9"),
        ("1e-3", "NaN", "line 9: expected seconds, got 'NaN'"),
        ("1e-3", "-1", "line 9: expected seconds"),
        ("chunk_rows 64", "chunk_rows 99999999999999999999999", "line 3"),
    ] {
        let error = good.replacen(from, to, 1).parse::<Tuned>().unwrap_err().to_string();
        assert!(error.contains(word), "{error} should say {word}");
    }
}

#[test]
fn nothing_to_try_is_an_error() {
    let comm = Comm::solo();
    let layout = Layout::new(2, 1, 1).unwrap();
    let routing = moe_dispatch::Routing { tokens: 1, top_k: 1, indices: vec![0], weights: vec![1.0], scores: vec![] };
    let good = TuneOptions { channels: vec![1], chunk_rows: vec![1], repeats: 1, row_len: 1 };
    let text = |options: TuneOptions| tune(&comm, &layout, &routing, PlanOptions::default(), &options).unwrap_err().to_string();
    assert!(text(TuneOptions { channels: vec![], ..good.clone() }).contains("nothing to try"));
    assert!(text(TuneOptions { repeats: 0, ..good.clone() }).contains("repeats"));
    assert!(text(TuneOptions { chunk_rows: vec![0], ..good }).contains("plan options"));
}
