//! Lanes: tasks in flight, what their waits count as, and how they fail and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use v3_ranks::{Clock, Comm, Error, Lane, Link, LinkModel, Result, Step, Task, Waits, WorldConfig, run_task, run_threads};

/// A hang guard: far above what these tests take, far below the default stall limit.
const GUARD: Duration = Duration::from_secs(10);

/// A second and 4 bytes a second, everywhere.
fn world(ranks: usize) -> WorldConfig {
    let link = Link { latency: Duration::from_secs(1), bandwidth: 4.0 };
    WorldConfig::new(ranks).link(LinkModel { fast: link, slow: link }).clock(Clock::Virtual)
}

fn clocks(ranks: usize) -> [WorldConfig; 4] {
    let wall = WorldConfig::new(ranks);
    [wall, wall.compute_slots(1), wall.clock(Clock::Virtual), wall.clock(Clock::Virtual).compute_slots(1)]
}

/// Sends some bytes, then takes one message.
struct Exchange {
    to: Option<(usize, usize)>,
    from: Option<usize>,
    tag: u64,
}

impl Task for Exchange {
    type Output = (usize, f64);
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<(usize, f64)>> {
        if let Some((dst, bytes)) = self.to.take() {
            comm.send(dst, self.tag, vec![0u8; bytes])?;
        }
        let Some(src) = self.from else { return Ok(Step::Done((0, comm.now()))) };
        Ok(match comm.try_recv::<u8>(src, self.tag)? {
            Some(data) => Step::Done((data.len(), comm.now())),
            None => Step::Waiting(vec![(src, self.tag)]),
        })
    }
}

fn exchange(to: usize, bytes: usize, from: usize, tag: u64) -> Exchange {
    Exchange { to: Some((to, bytes)), from: Some(from), tag }
}

#[test]
fn a_task_goes_on_while_its_rank_computes() {
    let got = run_threads(world(2), |comm: Comm| -> Result<_> {
        let lane = Lane::spawn(&comm, "exchange")?;
        let other = 1 - comm.rank();
        // Under way until 3, and until 5 behind it.
        let first = lane.submit(exchange(other, 8, other, 0));
        let second = lane.submit(exchange(other, 8, other, 1));
        assert!(!first.is_done());
        comm.advance(4.0)?;
        assert!(first.is_done() && !second.is_done());
        let first = first.finish(&comm)?;
        assert_eq!(comm.now(), 4.0);
        let second = second.finish(&comm)?;
        Ok((first, second, comm.now(), comm.waits(), lane.waits()))
    })
    .unwrap();
    let lane = Waits { exposed: 5.0, bubble: 0.0 };
    assert_eq!(got, [((8, 3.0), (8, 5.0), 5.0, Waits { exposed: 1.0, bubble: 0.0 }, lane); 2]);
}

#[test]
fn a_wait_is_a_bubble_until_the_other_rank_has_submitted() {
    let got = run_threads(world(2), |comm: Comm| -> Result<_> {
        let lane = Lane::spawn(&comm, "exchange")?;
        let other = 1 - comm.rank();
        comm.advance(10.0 * comm.rank() as f64)?;
        let ticket = lane.submit(exchange(other, 4, other, 0));
        comm.advance(3.0)?;
        ticket.finish(&comm)?;
        Ok((comm.now(), comm.waits(), comm.rank_waits()))
    })
    .unwrap();
    // Rank 1 submits at 10, which arrives at 12. Rank 0 waits from 3 on: 7 for rank 1, then 2 for the link. Its lane waits from 0 on.
    let (main, lane) = (Waits { exposed: 2.0, bubble: 7.0 }, Waits { exposed: 2.0, bubble: 10.0 });
    assert_eq!(got[0], (12.0, main, main + lane));
    assert_eq!(got[1], (13.0, Waits::default(), Waits::default()));
}

/// Takes a message and passes it on.
struct Forward {
    from: usize,
    to: usize,
}

impl Task for Forward {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<()>> {
        Ok(match comm.try_recv::<u8>(self.from, 0)? {
            None => Step::Waiting(vec![(self.from, 0)]),
            Some(data) => {
                comm.send(self.to, 0, data)?;
                Step::Done(())
            }
        })
    }
}

#[test]
fn what_is_forwarded_counts_from_where_it_began() {
    for lane in [true, false] {
        let got = run_threads(world(3), |comm: Comm| -> Result<_> {
            match comm.rank() {
                0 => {
                    comm.advance(1.0)?;
                    comm.send(1, 0, vec![0u8; 4])?;
                }
                1 if lane => Lane::spawn(&comm, "forward")?.submit(Forward { from: 0, to: 2 }).finish(&comm)?,
                1 => run_task(&comm, Forward { from: 0, to: 2 })?,
                _ => drop(comm.recv::<u8>(1, 0)?),
            }
            Ok((comm.now(), comm.waits()))
        })
        .unwrap();
        // Given to be sent at 1, forwarded at 3, there at 5.
        assert_eq!(got[2], (5.0, Waits { exposed: 4.0, bubble: 1.0 }));
        assert_eq!(got[1], (3.0, Waits { exposed: 2.0, bubble: 1.0 }));
    }
    // Received and sent by the rank itself it is a new message.
    let got = run_threads(world(3), |comm: Comm| -> Result<_> {
        match comm.rank() {
            0 => comm.send(1, 0, vec![0u8; 4])?,
            1 => comm.send(2, 0, comm.recv::<u8>(0, 0)?)?,
            _ => drop(comm.recv::<u8>(1, 0)?),
        }
        Ok(comm.waits())
    })
    .unwrap();
    assert_eq!(got[2], Waits { exposed: 2.0, bubble: 2.0 });
}

#[test]
fn tasks_complete_in_any_order() {
    for config in clocks(3) {
        run_threads(config, |comm: Comm| -> Result<()> {
            let lane = Lane::spawn(&comm, "any order")?;
            let (me, tasks) = (comm.rank(), 6);
            // Every rank waits for all the others' messages first, and sends its own in the opposite order.
            let numbers: Vec<u64> = (0..tasks).map(|_| comm.next_sequence()).collect();
            assert_eq!(numbers, (0..tasks).collect::<Vec<_>>());
            let receive = |tag| lane.submit(Exchange { to: None, from: Some((me + 1) % 3), tag });
            let tickets: Vec<_> = numbers.iter().map(|&tag| receive(tag)).collect();
            for &tag in numbers.iter().rev() {
                let dst = (me + 2) % 3;
                lane.submit(Exchange { to: Some((dst, tag as usize)), from: None, tag }).finish(&comm)?;
                comm.barrier()?;
            }
            for (tag, ticket) in tickets.into_iter().enumerate() {
                assert_eq!(ticket.finish(&comm)?.0, tag);
            }
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn two_lanes_and_their_rank_share_ports_in_the_order_of_time() {
    run_threads(world(2), |comm: Comm| -> Result<()> {
        if comm.rank() == 0 {
            let (a, b) = (Lane::spawn(&comm, "a")?, Lane::spawn(&comm, "b")?);
            let send = |tag| Exchange { to: Some((1, 4)), from: None, tag };
            // All at time 0: the rank itself first, then its lanes as they were spawned.
            let (b, a) = (b.submit(send(2)), a.submit(send(1)));
            comm.send(1, 0, vec![0u8; 4])?;
            a.finish(&comm)?;
            b.finish(&comm)?;
            assert_eq!(comm.now(), 0.0);
            return Ok(());
        }
        for tag in 0..3 {
            comm.recv::<u8>(0, tag)?;
            assert_eq!(comm.now(), 2.0 + tag as f64);
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_rank_computes_while_a_lane_waits_for_the_link() {
    let link = Link { latency: Duration::from_millis(40), bandwidth: f64::INFINITY };
    let began = Instant::now();
    // Both ranks keep their slot all the time.
    run_threads(WorldConfig::new(2).compute_slots(2).link(LinkModel { fast: link, slow: link }), |comm: Comm| -> Result<()> {
        let lane = Lane::spawn(&comm, "exchange")?;
        let other = 1 - comm.rank();
        let ticket = lane.submit(exchange(other, 8, other, 0));
        assert!(!ticket.is_done());
        while !ticket.is_done() {
            assert!(began.elapsed() < GUARD);
            std::thread::sleep(Duration::from_millis(1));
        }
        let before = comm.waits();
        ticket.finish(&comm)?;
        assert_eq!(comm.waits(), before);
        assert!(comm.now() >= 0.040);
        Ok(())
    })
    .unwrap();
}

/// Does as it is told.
enum Bad {
    Fail,
    Panic,
    WaitForNothing,
    WaitForNobody,
    WaitFor(usize),
}

impl Task for Bad {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<()>> {
        match self {
            Bad::Fail => comm.send(comm.size(), 0, vec![0u8]).map(Step::Done),
            Bad::Panic => panic!("out of range"),
            Bad::WaitForNothing => Ok(Step::Waiting(Vec::new())),
            Bad::WaitForNobody => Ok(Step::Waiting(vec![(comm.size(), 0)])),
            Bad::WaitFor(src) => Ok(Step::Waiting(vec![(*src, 77)])),
        }
    }
}

#[test]
fn a_task_that_fails_ends_the_world() {
    for config in clocks(3) {
        for (bad, text) in [
            ((|| Bad::Fail) as fn() -> Bad, "expected a rank below 3, got 3"),
            (|| Bad::Panic, "panicked: out of range"),
            (|| Bad::WaitForNothing, "an empty list"),
            (|| Bad::WaitForNobody, "expected a rank below 3, got 3"),
        ] {
            let began = Instant::now();
            let error = run_threads(config, |comm: Comm| {
                if comm.rank() != 1 {
                    return comm.barrier();
                }
                let lane = Lane::spawn(&comm, "exchange")?;
                let error = lane.submit(bad()).finish(&comm).unwrap_err();
                assert!(matches!(error, Error::Aborted { rank: 1, .. }), "{error}");
                Err(error)
            })
            .unwrap_err();
            assert!(began.elapsed() < GUARD, "{:?}", began.elapsed());
            assert_eq!(error.rank, 1);
            assert!(error.message.contains(text), "{error}");
            assert!(error.operation.ends_with("(lane exchange)"), "{error}");
        }
    }
}

#[test]
fn a_failing_task_ends_a_rank_that_computes_or_waits_elsewhere() {
    for config in clocks(2) {
        let error = run_threads(config, |comm: Comm| {
            if comm.rank() == 0 {
                let lane = Lane::spawn(&comm, "exchange")?;
                let _ticket = lane.submit(Bad::Panic);
                return comm.recv::<u8>(1, 0).map(drop);
            }
            comm.recv::<u8>(0, 0).map(drop)
        })
        .unwrap_err();
        assert_eq!((error.rank, error.message.as_str()), (0, "panicked: out of range"));
    }
}

#[test]
fn a_task_that_waits_for_nobody_is_noticed() {
    for config in clocks(2) {
        let config = WorldConfig { stall_after: Duration::from_millis(50), ..config };
        // The other rank waits as well: a circle.
        let error = run_threads(config, |comm: Comm| {
            if comm.rank() == 1 {
                return comm.recv::<u8>(0, 5).map(drop);
            }
            let lane = Lane::spawn(&comm, "exchange")?;
            lane.submit(Bad::WaitFor(1)).finish(&comm)
        })
        .unwrap_err();
        for wait in [
            "rank 0 in finish for a task of lane exchange",
            "rank 0 lane exchange in lane for rank 1 (tag 77)",
            "rank 1 in recv for rank 0 (tag 5)",
        ] {
            assert!(error.message.contains(wait), "{error}");
        }
        // The other rank has ended.
        let error = run_threads(config, |comm: Comm| {
            if comm.rank() == 1 {
                return Ok(());
            }
            let lane = Lane::spawn(&comm, "exchange")?;
            lane.submit(Bad::WaitFor(1)).finish(&comm)
        })
        .unwrap_err();
        assert_eq!(error.message, "rank 0 waits in lane for rank 1, which has ended without sending");
    }
}

/// Waits for a message that never comes, and counts its drops.
struct Counted(Arc<AtomicUsize>, bool);

impl Task for Counted {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<()>> {
        if self.1 {
            // Not what a task should do, but it must not keep anybody from ending.
            comm.recv::<u8>(1, 77)?;
        }
        Ok(Step::Waiting(vec![(1, 77)]))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn dropping_a_lane_drops_its_tasks_and_nothing_else() {
    for config in clocks(2) {
        for blocks in [false, true] {
            let drops = Arc::new(AtomicUsize::new(0));
            let began = Instant::now();
            run_threads(config, |comm: Comm| -> Result<()> {
                if comm.rank() == 0 {
                    let lane = Lane::spawn(&comm, "exchange")?;
                    let (a, b) = (Counted(drops.clone(), blocks), Counted(drops.clone(), blocks));
                    let (a, b) = (lane.submit(a), lane.submit(b));
                    comm.advance(1.0)?;
                    assert!(!a.is_done());
                    drop(lane);
                    assert_eq!(drops.load(Ordering::SeqCst), 2);
                    assert!(a.is_done() && b.is_done());
                    let closed = Err(Error::Closed { rank: 0, lane: "exchange".into() });
                    assert_eq!(a.finish(&comm), closed);
                    assert_eq!(b.finish(&comm), closed);
                    if comm.is_virtual() {
                        assert_eq!(comm.now(), 1.0);
                    }
                }
                // The rank and its world go on.
                comm.barrier()
            })
            .unwrap();
            assert!(began.elapsed() < GUARD, "{:?}", began.elapsed());
        }
    }
}

#[test]
fn a_panic_of_the_rank_ends_its_lanes() {
    for config in clocks(2) {
        for blocks in [false, true] {
            let drops = Arc::new(AtomicUsize::new(0));
            let error = run_threads(config, |comm: Comm| -> Result<()> {
                if comm.rank() == 1 {
                    return comm.barrier();
                }
                let lane = Lane::spawn(&comm, "exchange")?;
                let _ticket = lane.submit(Counted(drops.clone(), blocks));
                comm.advance(1.0)?;
                panic!("stop");
            })
            .unwrap_err();
            assert_eq!((error.rank, error.message.as_str()), (0, "panicked: stop"));
            assert_eq!(drops.load(Ordering::SeqCst), 1);
        }
    }
}

#[test]
fn a_lane_that_is_never_dropped_ends_with_its_rank() {
    for config in clocks(2) {
        let drops = Arc::new(AtomicUsize::new(0));
        run_threads(config, |comm: Comm| -> Result<()> {
            let lane = Lane::spawn(&comm, "exchange")?;
            let ticket = lane.submit(Counted(drops.clone(), false));
            std::mem::forget((lane, ticket));
            Ok(())
        })
        .unwrap();
        let began = Instant::now();
        while drops.load(Ordering::SeqCst) < 2 {
            assert!(began.elapsed() < GUARD);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_task_runs_without_a_lane() {
    for config in clocks(2) {
        run_threads(config, |comm: Comm| -> Result<()> {
            let other = 1 - comm.rank();
            assert_eq!(run_task(&comm, exchange(other, 3 + comm.rank(), other, 4))?.0, 3 + other);
            assert!(matches!(run_task(&comm, Bad::WaitForNothing), Err(Error::Shape { .. })));
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_ticket_is_refused_on_another_rank_and_in_another_world() {
    for config in clocks(2) {
        let left = std::sync::Mutex::new(None);
        let texts = run_threads(config, |comm: Comm| -> Result<String> {
            let lane = Lane::spawn(&comm, "exchange")?;
            let ticket = lane.submit(exchange(comm.rank(), 4, comm.rank(), 0));
            if comm.rank() == 0 {
                *left.lock().unwrap() = Some(ticket);
                comm.barrier()?;
                comm.barrier()?;
                return Ok(String::new());
            }
            comm.barrier()?;
            let theirs = left.lock().unwrap().take().unwrap();
            let first = theirs.finish(&comm).unwrap_err().to_string();
            let second = ticket.finish(&Comm::solo()).unwrap_err().to_string();
            comm.barrier()?;
            Ok(format!("{first}; {second}"))
        })
        .unwrap();
        let refused = "rank that finishes a task: expected rank";
        assert_eq!(texts[1], format!("{refused} 0, got rank 1; {refused} 1, got rank 0 of another world"));
    }
}

/// Waits for ever for what it is told.
struct Starved(usize, u64);

impl Task for Starved {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, _: &Comm) -> Result<Step<()>> {
        Ok(Step::Waiting(vec![(self.0, self.1)]))
    }
}

#[test]
fn a_task_that_waits_for_an_ended_rank_fails_whatever_the_others_wait_for() {
    for config in clocks(3) {
        let began = Instant::now();
        let error = run_threads(config, |comm: Comm| -> Result<()> {
            match comm.rank() {
                0 => {
                    let lane = Lane::spawn(&comm, "exchange")?;
                    let (other, lost) = (lane.submit(Starved(1, 4)), lane.submit(Starved(2, 3)));
                    comm.send(2, 0, vec![0u8])?;
                    lost.finish(&comm)?;
                    other.finish(&comm)
                }
                1 => comm.recv::<u8>(0, 9).map(drop),
                _ => comm.recv::<u8>(0, 0).map(drop),
            }
        })
        .unwrap_err();
        assert!(began.elapsed() < GUARD, "took {:?}", began.elapsed());
        assert_eq!(
            error.to_string(),
            "rank 0 failed in lane (lane exchange): rank 0 waits in lane for rank 2, which has ended without sending"
        );
    }
}

struct Panics;

impl Task for Panics {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, _: &Comm) -> Result<Step<()>> {
        panic!("no such expert");
    }
}

#[test]
fn a_panic_in_a_task_names_the_task_and_not_what_its_rank_did_last() {
    for config in clocks(2) {
        let error = run_threads(config, |comm: Comm| -> Result<()> {
            let lane = Lane::spawn(&comm, "exchange")?;
            if comm.rank() == 1 {
                return lane.submit(Panics).finish(&comm);
            }
            comm.recv::<u8>(1, 0).map(drop)
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "rank 1 failed in a task (lane exchange): panicked: no such expert");
    }
}

#[test]
fn what_is_sent_after_a_panic_in_a_task_counts_from_its_sending() {
    let waits = run_threads(world(2), |comm: Comm| -> Result<Waits> {
        if comm.rank() == 1 {
            comm.recv::<u8>(0, 0)?;
            return Ok(comm.waits());
        }
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_task(&comm, Panics).is_ok()));
        assert!(caught.is_err());
        comm.advance(5.0)?;
        comm.send(1, 0, vec![0u8; 4])?;
        Ok(comm.waits())
    })
    .unwrap();
    assert_eq!(waits[1], Waits { exposed: 2.0, bubble: 5.0 });
}
