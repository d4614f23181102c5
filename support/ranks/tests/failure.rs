//! A rank that fails ends the others, whatever they wait for; nothing hangs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use v3_ranks::{Clock, Comm, Error, Link, LinkModel, RanksError, WorldConfig, run_threads};

/// A hang guard: far above what these tests take, far below the default stall limit.
const GUARD: Duration = Duration::from_secs(10);

fn fails(config: WorldConfig, body: impl Fn(Comm) -> Result<(), String> + Sync) -> RanksError {
    let began = Instant::now();
    let error = run_threads(config, body).expect_err("the world should have failed");
    assert!(began.elapsed() < GUARD, "took {:?}", began.elapsed());
    error
}

fn text<T>(result: Result<T, Error>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

type Wait = fn(&Comm) -> Result<(), Error>;

const WAITS: [(&str, Wait); 6] = [
    ("recv", |comm| comm.recv::<f32>(1, 5).map(drop)),
    ("barrier", |comm| comm.barrier()),
    ("all_to_all_v", |comm| comm.all_to_all_v(vec![vec![0u8]; comm.size()]).map(drop)),
    ("all_reduce_sum", |comm| comm.all_reduce_sum(&mut [1.0f32; 9])),
    ("reduce_scatter_sum", |comm| comm.reduce_scatter_sum(&[1.0f32; 3], &[1, 1, 1]).map(drop)),
    ("all_gather_v", |comm| comm.all_gather_v(&[1u8]).map(drop)),
];

#[test]
fn an_error_ends_ranks_that_wait() {
    let clocks = [Clock::Wall, Clock::Virtual];
    for (slots, clock) in [None, Some(1), Some(2)].into_iter().flat_map(|slots| clocks.map(|clock| (slots, clock))) {
        for (name, wait) in WAITS {
            let aborted = AtomicUsize::new(0);
            let config = WorldConfig { compute_slots: slots, clock, ..WorldConfig::new(3) };
            let error = fails(config, |comm| {
                if comm.rank() == 1 {
                    comm.blocking(|| std::thread::sleep(Duration::from_millis(20))).unwrap();
                    return Err("the disk is full".into());
                }
                let error = wait(&comm).expect_err(name);
                let Error::Aborted { rank, message, .. } = &error else { panic!("{name}: {error}") };
                assert_eq!((*rank, message.as_str()), (1, "the disk is full"), "{name}");
                // From here on everything is refused.
                assert_eq!(comm.send(0, 0, vec![0u8]), Err(error.clone()));
                assert_eq!(comm.check(), Err(error.clone()));
                aborted.fetch_add(1, Ordering::SeqCst);
                text(Err(error))
            });
            assert_eq!((error.rank, error.message.as_str()), (1, "the disk is full"), "{name}");
            assert_eq!(aborted.into_inner(), 2, "{name}");
        }
    }
}

#[test]
fn a_panic_ends_ranks_that_wait() {
    let error = fails(WorldConfig::new(3), |comm| {
        if comm.rank() == 2 {
            comm.set_label("layer 4, backward");
            panic!("index {} out of range", 17);
        }
        text(comm.barrier())
    });
    assert_eq!(error.rank, 2);
    assert_eq!(error.operation, "layer 4, backward");
    assert_eq!(error.message, "panicked: index 17 out of range");
    assert_eq!(error.to_string(), "rank 2 failed in layer 4, backward: panicked: index 17 out of range");
}

#[test]
fn a_failure_reaches_a_rank_that_waits_for_a_compute_slot() {
    // Rank 1 wants its slot back while rank 0 holds the only one, and rank 0 then fails without giving it up.
    let holds = AtomicUsize::new(0);
    let error = fails(WorldConfig::new(4).compute_slots(1), |comm| match comm.rank() {
        0 => {
            holds.store(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(50));
            Err("out of memory".into())
        }
        1 => {
            let wait = || {
                while holds.load(Ordering::SeqCst) == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            text(comm.blocking(wait))?;
            panic!("got a slot that rank 0 holds");
        }
        _ => text(comm.barrier()),
    });
    assert_eq!(error.message, "out of memory");
}

#[test]
fn a_failure_reaches_a_rank_that_waits_for_a_slow_message() {
    let hour = Link { latency: Duration::from_secs(3600), bandwidth: 1.0 };
    let config = WorldConfig::new(3).ranks_per_node(1).link(LinkModel { fast: hour, slow: hour });
    let error = fails(config, |comm| match comm.rank() {
        0 => text(comm.recv::<u8>(1, 0).map(drop)),
        1 => text(comm.send(0, 0, vec![1u8; 1000])),
        _ => {
            std::thread::sleep(Duration::from_millis(20));
            Err("stop".into())
        }
    });
    assert_eq!((error.rank, error.message.as_str()), (2, "stop"));
}

#[test]
fn waiting_for_a_rank_that_has_ended_is_an_error() {
    let error = fails(WorldConfig::new(2), |comm| match comm.rank() {
        0 => {
            comm.send(1, 3, vec![1u8]).unwrap();
            Ok(())
        }
        _ => {
            // What was sent before the end still arrives.
            assert_eq!(comm.recv::<u8>(0, 3).unwrap(), [1]);
            text(comm.recv::<u8>(0, 3).map(drop))
        }
    });
    assert_eq!((error.rank, error.operation.as_str()), (1, "recv"));
    assert_eq!(error.message, "rank 1 waits in recv for rank 0, which has ended without sending");
}

#[test]
fn a_circle_of_waits_is_an_error() {
    let config = WorldConfig { stall_after: Duration::from_millis(50), ..WorldConfig::new(2) };
    let error = fails(config, |comm| text(comm.recv::<u8>(1 - comm.rank(), 9).map(drop)));
    assert!(error.message.contains("rank 0 in recv for rank 1 (tag 9)"), "{error}");
    assert!(error.message.contains("rank 1 in recv for rank 0 (tag 9)"), "{error}");
}

#[test]
fn another_type_than_the_sent_one_is_an_error() {
    let error = fails(WorldConfig::new(2), |comm| {
        text(comm.send(1 - comm.rank(), 0, vec![1.0f32]))?;
        if comm.rank() == 0 { text(comm.recv::<u32>(1, 0).map(drop)) } else { text(comm.recv::<f32>(0, 0).map(drop)) }
    });
    assert_eq!((error.rank, error.operation.as_str()), (0, "recv"));
    assert_eq!(error.message, "rank 0 received from rank 1: expected elements of type u32, got f32");
    let error = fails(WorldConfig::new(2), |comm| {
        if comm.rank() == 0 { text(comm.all_reduce_sum(&mut [1.0f64])) } else { text(comm.all_reduce_sum(&mut [1.0f32])) }
    });
    assert!(error.message.contains("expected elements of type"), "{error}");
}

#[test]
fn different_collectives_at_the_same_time_are_an_error() {
    let error = fails(WorldConfig::new(2), |comm| {
        if comm.rank() == 0 { text(comm.barrier()) } else { text(comm.all_gather_v(&[1u8]).map(drop)) }
    });
    assert!(error.message.contains("barrier") && error.message.contains("all_gather_v"), "{error}");
}

#[test]
fn lengths_that_differ_are_an_error() {
    let error = fails(WorldConfig::new(3), |comm| {
        let mut data = vec![0f32; if comm.rank() == 2 { 8 } else { 9 }];
        text(comm.all_reduce_sum(&mut data))
    });
    assert!(error.message.contains("all_reduce_sum: expected"), "{error}");
    let error = fails(WorldConfig::new(2), |comm| text(comm.reduce_scatter_sum(&[1.0f32; 3], &[1, 1]).map(drop)));
    assert!(error.message.contains("2 counts that add up to 3"), "{error}");
    let error = fails(WorldConfig::new(2), |comm| text(comm.all_to_all_v(vec![vec![1u8]]).map(drop)));
    assert!(error.message.contains("one vector for each of 2 ranks"), "{error}");
    let error = fails(WorldConfig::new(2), |comm| text(comm.send(2, 0, vec![1u8])));
    assert!(error.message.contains("expected a rank below 2, got 2"), "{error}");
}

#[test]
fn no_more_ranks_run_than_there_are_slots() {
    for slots in [1, 2, 3] {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        run_threads(WorldConfig::new(5).compute_slots(slots), |comm: Comm| -> Result<(), Error> {
            for round in 0..20 {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                for _ in 0..100 {
                    std::thread::yield_now();
                }
                running.fetch_sub(1, Ordering::SeqCst);
                match round % 3 {
                    0 => comm.barrier()?,
                    1 => comm.all_reduce_sum(&mut [1u64])?,
                    _ => {
                        comm.send((comm.rank() + 1) % 5, 0, vec![round])?;
                        assert_eq!(comm.recv::<i32>((comm.rank() + 4) % 5, 0)?, [round]);
                    }
                }
            }
            Ok(())
        })
        .unwrap();
        let most = most.into_inner();
        assert!(most <= slots, "{most} ranks ran with {slots} slots");
    }
}

#[test]
fn a_message_over_a_slow_link_arrives_no_earlier_than_the_link_allows() {
    let model = LinkModel { fast: Link::INSTANT, slow: Link { latency: Duration::from_millis(5), bandwidth: 1e6 } };
    let config = WorldConfig::new(4).ranks_per_node(2).compute_slots(1).link(model);
    let began = Instant::now();
    let got = run_threads(config, |comm: Comm| -> Result<_, Error> {
        comm.send((comm.rank() + 2) % 4, 0, vec![0u8; 10_000])?;
        comm.recv::<u8>((comm.rank() + 2) % 4, 0)?;
        Ok((began.elapsed(), comm.blocked()))
    })
    .unwrap();
    for (elapsed, blocked) in got {
        assert!(elapsed >= Duration::from_millis(15), "{elapsed:?}");
        assert!(blocked.messages <= elapsed && blocked.slots <= elapsed, "{blocked:?} in {elapsed:?}");
    }
}

#[test]
fn a_configuration_without_sense_is_refused() {
    let none = Link { latency: Duration::ZERO, bandwidth: 0.0 };
    for (config, word) in [
        (WorldConfig::new(0), "number of ranks"),
        (WorldConfig::new(2).ranks_per_node(0), "ranks per node"),
        (WorldConfig::new(2).compute_slots(0), "compute slots"),
        (WorldConfig::new(2).link(LinkModel { fast: none, slow: none }), "bandwidth"),
    ] {
        let error = run_threads(config, |_| Ok::<(), String>(())).unwrap_err();
        assert!(error.message.contains(word), "{error}");
    }
}

#[test]
fn an_error_that_was_handled_is_not_what_a_later_failure_is_about() {
    let error = fails(WorldConfig::new(2), |comm| {
        comm.send(1 - comm.rank(), 0, vec![0u8]).unwrap();
        let wrong = comm.recv::<f32>(1 - comm.rank(), 0);
        assert!(matches!(wrong, Err(Error::TypeMismatch { .. })));
        text(comm.barrier())?;
        if comm.rank() == 1 { Err("the disk is full".into()) } else { text(comm.barrier()) }
    });
    assert_eq!(error.to_string(), "rank 1 failed in its own work after barrier: the disk is full");
}
