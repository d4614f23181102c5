//! The virtual clock: schedules computed by hand, failures, and many ranks.

use std::time::{Duration, Instant};

use v3_ranks::{Clock, Comm, Error, Link, LinkModel, Result, Waits, WorldConfig, run_threads};

/// 1 second and 4 bytes a second between nodes, half a second and 8 bytes a second inside.
fn link() -> LinkModel {
    LinkModel {
        fast: Link { latency: Duration::from_millis(500), bandwidth: 8.0 },
        slow: Link { latency: Duration::from_secs(1), bandwidth: 4.0 },
    }
}

fn world(ranks: usize, ranks_per_node: usize) -> WorldConfig {
    WorldConfig::new(ranks).ranks_per_node(ranks_per_node).link(link()).clock(Clock::Virtual)
}

fn run<R: Send>(config: WorldConfig, body: impl Fn(Comm) -> Result<R> + Sync) -> Vec<R> {
    run_threads(config, body).unwrap()
}

/// Receives from `src` and says when that was.
fn received(comm: &Comm, src: usize, tag: u64) -> Result<f64> {
    comm.recv::<u8>(src, tag)?;
    Ok(comm.now())
}

#[test]
fn a_message_arrives_after_latency_and_transfer() {
    let got = run(world(2, 1), |comm| {
        if comm.rank() == 0 {
            comm.advance(2.0)?;
            comm.send(1, 0, vec![0u8; 12])?;
        } else {
            assert_eq!(received(&comm, 0, 0)?, 6.0);
        }
        assert!(comm.is_virtual());
        Ok((comm.now(), comm.waits()))
    });
    // Sent at 2, under way for 1 + 12 / 4: the receiver waits 2 for the sender, then 4 for the link.
    assert_eq!(got, [(2.0, Waits::default()), (6.0, Waits { exposed: 4.0, bubble: 2.0 })]);
}

#[test]
fn what_was_sent_before_the_wait_began_is_exposed_from_the_wait_on() {
    let got = run(world(2, 1), |comm| {
        if comm.rank() == 0 {
            comm.send(1, 0, vec![0u8; 12])?;
            comm.send(1, 1, vec![0u8; 12])?;
            return Ok(comm.waits());
        }
        // Arrivals at 4 and, behind it on the port, 7.
        comm.advance(3.5)?;
        assert_eq!(received(&comm, 0, 0)?, 4.0);
        comm.advance(9.0)?;
        assert_eq!(received(&comm, 0, 1)?, 13.0);
        Ok(comm.waits())
    });
    assert_eq!(got[1], Waits { exposed: 0.5, bubble: 0.0 });
}

#[test]
fn a_receive_port_serves_heads_in_the_order_in_which_they_come() {
    run(world(3, 1), |comm| {
        match comm.rank() {
            0 => {
                // Heads at 1 and, as the send port is taken until then, at 2.
                comm.send(2, 0, vec![0u8; 4])?;
                comm.send(2, 1, vec![0u8; 4])?;
            }
            1 => {
                // Sent later than both, but its head comes at 1.5.
                comm.advance(0.5)?;
                comm.send(2, 0, vec![0u8; 4])?;
            }
            _ => {
                assert_eq!(received(&comm, 0, 0)?, 2.0);
                assert_eq!(received(&comm, 0, 1)?, 4.0);
                // It was there before.
                assert_eq!(received(&comm, 1, 0)?, 4.0);
                assert_eq!(comm.waits(), Waits { exposed: 4.0, bubble: 0.0 });
            }
        }
        Ok(())
    });
}

#[test]
fn heads_that_come_together_are_served_by_sender() {
    run(world(4, 1), |comm| {
        if comm.rank() > 0 {
            // The one with the highest rank is the first to send in real time.
            std::thread::sleep(Duration::from_millis(3 * (4 - comm.rank() as u64)));
            comm.send(0, 0, vec![0u8; 4])?;
            return Ok(());
        }
        assert_eq!(comm.wait_any(&[(3, 0), (2, 0), (1, 0)])?, 2);
        assert_eq!(comm.now(), 2.0);
        assert_eq!(received(&comm, 2, 0)?, 3.0);
        assert_eq!(received(&comm, 3, 0)?, 4.0);
        assert_eq!(received(&comm, 1, 0)?, 4.0);
        Ok(())
    });
}

#[test]
fn ports_of_both_kinds_and_directions_work_side_by_side() {
    run(world(4, 2), |comm| {
        let (neighbour, remote) = (comm.rank() ^ 1, comm.rank() ^ 2);
        comm.send(remote, 0, vec![0u8; 8])?;
        comm.send(neighbour, 0, vec![0u8; 8])?;
        comm.send(comm.rank(), 0, vec![0u8; 1000])?;
        assert_eq!(received(&comm, comm.rank(), 0)?, 0.0);
        assert_eq!(comm.wait_any(&[(remote, 0), (neighbour, 0)])?, 1);
        assert_eq!(received(&comm, neighbour, 0)?, 1.5);
        assert_eq!(received(&comm, remote, 0)?, 3.0);
        Ok(())
    });
}

#[test]
fn without_a_link_model_messages_take_no_time() {
    let got = run(WorldConfig::new(2).clock(Clock::Virtual), |comm| {
        if comm.rank() == 0 {
            comm.advance(3.0)?;
            comm.send(1, 0, vec![0u8; 1000])?;
        } else {
            assert_eq!(comm.try_recv::<u8>(0, 0)?, None);
            assert_eq!(received(&comm, 0, 0)?, 3.0);
        }
        Ok(comm.waits())
    });
    assert_eq!(got[1], Waits { exposed: 0.0, bubble: 3.0 });
}

#[test]
fn collectives_take_the_time_of_their_messages() {
    // An all-to-all of 4 bytes to each of 2 others: the second leaves at 1, and heads at 1 and 2 are in by 3. Then the same again, with one
    // rank 5 seconds late: the others have its message at 5 + 3 + 2 at most.
    let got = run(world(3, 1), |comm| {
        comm.all_to_all_v(vec![vec![0u8; 4]; 3])?;
        assert_eq!(comm.now(), 3.0);
        if comm.rank() == 1 {
            comm.advance(5.0)?;
        }
        comm.all_to_all_v(vec![vec![0u8; 4]; 3])?;
        Ok(comm.now())
    });
    // Rank 1 sends at 8 to 2 (there at 10), then to 0 (there at 11), and finds everything there.
    assert_eq!(got, [11.0, 8.0, 10.0]);
    let got = run(world(4, 1), |comm| {
        comm.advance(comm.rank() as f64)?;
        comm.barrier()?;
        Ok(comm.now())
    });
    // Empty messages, a second each. After the first round 0 is at 4, 1 at 1, 2 at 2, 3 at 3 (each waits for the one before it).
    // Then each waits for the one two before it: 0 for 2 (3), 1 for 3 (4), 2 for 0 (5), 3 for 1 (3).
    assert_eq!(got, [4.0, 4.0, 5.0, 3.0 + 0.0]);
    let got = run(world(2, 1), |comm| {
        let mut x = [comm.rank() as f32, 2.0];
        comm.all_reduce_sum(&mut x)?;
        Ok((comm.now(), x))
    });
    // Two rounds of one f32 each.
    assert_eq!(got, [(4.0, [1.0, 4.0]); 2]);
}

#[test]
fn collectives_take_the_same_time_whatever_the_threads_do() {
    let times = |disturb: u64, compute_slots| {
        let config = WorldConfig { compute_slots, ..world(6, 2) };
        run(config, |comm| {
            let mut log = Vec::new();
            let (me, size) = (comm.rank(), comm.size());
            let pair = comm.subgroup(&[me & !1, me | 1], 0)?;
            for round in 0..8 {
                if disturb > 0 {
                    std::thread::sleep(Duration::from_micros((disturb * (me as u64 + 7) * (round + 3)) % 400));
                }
                comm.advance(0.1 * ((me as u64 * 5 + round) % 7) as f64)?;
                match round % 4 {
                    0 => drop(comm.all_to_all_v((0..size).map(|dst| vec![0u8; (me + dst) % 5]).collect())?),
                    1 => comm.all_reduce_sum(&mut [1.0f32; 20])?,
                    2 => drop(pair.all_gather_v(&vec![0u64; me])?),
                    _ => drop(comm.broadcast(round as usize % size, vec![0u8; 9])?),
                }
                log.push(comm.now());
            }
            Ok((log, comm.waits(), comm.blocked()))
        })
    };
    let undisturbed = times(0, None);
    assert!(undisturbed.iter().all(|(log, waits, _)| log.is_sorted() && waits.exposed > 0.0));
    for (disturb, slots) in [(0, Some(1)), (17, None), (23, Some(2)), (101, Some(1))] {
        let again = times(disturb, slots);
        for (a, b) in undisturbed.iter().zip(&again) {
            assert_eq!((&a.0, a.1, a.2.messages), (&b.0, b.1, b.2.messages));
        }
    }
}

#[test]
fn a_circle_of_waits_is_noticed_at_once() {
    let began = Instant::now();
    let error = run_threads(world(3, 1), |comm: Comm| match comm.rank() {
        2 => Ok(()),
        rank => comm.recv::<u8>(1 - rank, 9).map(drop),
    })
    .unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!((error.rank, error.operation.as_str()), (0, "recv"));
    let waits = "rank 0 in recv for rank 1 (tag 9), rank 1 in recv for rank 0 (tag 9)";
    assert_eq!(error.message, format!("every rank waits for a message and none is under way: {waits}"));
}

#[test]
fn a_rank_that_ends_or_fails_ends_those_that_wait_for_it() {
    let error = run_threads(world(2, 1), |comm: Comm| -> Result<()> {
        if comm.rank() == 0 {
            comm.send(1, 0, vec![0u8; 4])?;
            return comm.advance(7.0);
        }
        // What was sent before the end still arrives.
        assert_eq!(received(&comm, 0, 0)?, 2.0);
        assert_eq!(comm.try_recv::<u8>(0, 0)?, None);
        let error = comm.recv::<u8>(0, 0).unwrap_err();
        assert_eq!(error, Error::Ended { rank: 1, operation: "recv", source_rank: 0 });
        assert_eq!(comm.now(), 7.0);
        Err(error)
    })
    .unwrap_err();
    assert_eq!(error.rank, 1);
    for late in [false, true] {
        let error = run_threads(world(4, 2), |comm: Comm| -> std::result::Result<(), String> {
            match comm.rank() {
                0 => {
                    // In virtual time before the others wait, in real time maybe after.
                    std::thread::sleep(Duration::from_millis(if late { 20 } else { 0 }));
                    panic!("stop");
                }
                1 => comm.recv::<u8>(0, 0).map(drop),
                2 => comm.barrier(),
                _ => comm.advance(3.0).and_then(|()| comm.send(2, 0, vec![1u8])).and_then(|()| comm.recv::<u8>(2, 1)).map(drop),
            }
            .map_err(|error| error.to_string())
        })
        .unwrap_err();
        assert_eq!((error.rank, error.message.as_str()), (0, "panicked: stop"));
    }
}

#[test]
fn a_span_without_sense_is_refused() {
    run(world(1, 1), |comm| {
        for seconds in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(comm.advance(seconds), Err(Error::Shape { .. })), "{seconds}");
        }
        comm.advance(f64::MAX)?;
        assert!(comm.advance(f64::MAX).is_err());
        assert!(matches!(comm.wait_any(&[]), Err(Error::Shape { .. })));
        assert!(matches!(comm.wait_any(&[(1, 0)]), Err(Error::Shape { .. })));
        Ok(())
    });
}

#[test]
fn a_token_goes_round_many_ranks_in_exact_time() {
    let ranks = 200;
    let config = WorldConfig { compute_slots: Some(2), ..world(ranks, 8) };
    let got = run(config, |comm| {
        let (me, last) = (comm.rank(), ranks - 1);
        if me > 0 {
            comm.recv::<u8>(me - 1, 0)?;
        }
        if me < last {
            comm.send(me + 1, 0, vec![0u8; 4])?;
        }
        Ok(comm.now())
    });
    // 1 second inside a node, 2 to the next.
    for (rank, &time) in got.iter().enumerate() {
        assert_eq!(time, (rank + rank / 8) as f64, "rank {rank}");
    }
}

#[test]
fn under_the_wall_clock_advancing_takes_no_time_and_waits_are_real() {
    let config = WorldConfig::new(2).ranks_per_node(1);
    let late = Duration::from_millis(30);
    let slow = Link { latency: Duration::from_millis(20), bandwidth: 1e6 };
    let got = run(config.link(LinkModel { fast: slow, slow }), |comm| {
        assert!(!comm.is_virtual());
        comm.advance(1e6)?;
        if comm.rank() == 0 {
            std::thread::sleep(late);
            comm.send(1, 0, vec![0u8; 10_000])?;
        } else {
            comm.recv::<u8>(0, 0)?;
        }
        Ok((comm.now(), comm.waits(), comm.blocked()))
    });
    let (now, waits, blocked) = got[1];
    // At least 20 ms of latency and 10 ms of bytes after it was sent; before that the sender slept.
    assert!(waits.exposed >= 0.030, "{waits:?}");
    assert!(waits.total() <= now && now < 1e6, "{waits:?} {now}");
    assert!((waits.total() - blocked.messages.as_secs_f64()).abs() < 1e-6, "{waits:?} {blocked:?}");
}

#[test]
fn under_the_wall_clock_too_a_receive_port_serves_heads_in_the_order_in_which_they_come() {
    // Rank 0's port is busy for 20 s with its first message, so the head of its second comes after that of rank 2, sent later.
    let slow = Link { latency: Duration::from_millis(5), bandwidth: 1e6 };
    let config = WorldConfig::new(4).ranks_per_node(1).link(LinkModel { fast: slow, slow });
    let began = Instant::now();
    run(config, |comm| {
        match comm.rank() {
            0 => {
                comm.send(3, 0, vec![0u8; 20_000_000])?;
                comm.send(1, 0, vec![0u8; 1])?;
            }
            1 => {
                comm.recv::<u8>(2, 0)?;
                assert_eq!(comm.try_recv::<u8>(0, 0)?, None);
            }
            2 => {
                // Long enough for rank 0 to have sent; if it has not, the test shows nothing.
                std::thread::sleep(Duration::from_millis(30));
                comm.send(1, 0, Vec::<u8>::new())?;
            }
            _ => {}
        }
        Ok(())
    });
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
