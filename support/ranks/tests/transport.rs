//! Worlds of one rank each that reach the others over a transport: here, bytes through channels, as between processes.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use v3_ranks::transport::{Envelope, Payload, Tag, Transport, World, run_process};
use v3_ranks::{Clock, Comm, Error, Lane, Link, LinkModel, RanksError, Result, Step, Task, WorldConfig};

/// What goes from one process to another: nothing but plain data.
enum Wire {
    Message { header: Header, text: Vec<u8>, align: usize, bytes: Vec<u8> },
    Ended(usize),
    Failed(RanksError),
    Close,
}

struct Header {
    group: u64,
    src: usize,
    tag: Option<u64>,
    operation_bytes: usize,
    extent: u64,
    origin: f64,
}

struct Channels {
    rank: usize,
    to: Vec<Sender<Wire>>,
}

impl Channels {
    fn tell(&self, dst: usize, wire: Wire) -> Result<()> {
        let sent = self.to[dst].send(wire);
        sent.map_err(|error| Error::Transport { rank: self.rank, destination: dst, message: error.to_string() })
    }
}

impl Transport for Channels {
    fn send(&self, dst: usize, envelope: Envelope) -> Result<()> {
        let Envelope { group, src, tag, operation, type_name, extent, origin, payload } = envelope;
        let tag = match tag {
            Tag::User(tag) => Some(tag),
            Tag::Collective => None,
        };
        let header = Header { group, src, tag, operation_bytes: operation.len(), extent, origin };
        let text = [operation.as_bytes(), type_name.as_bytes()].concat();
        self.tell(dst, Wire::Message { header, text, align: payload.align(), bytes: payload.bytes().to_vec() })
    }

    fn ended(&self, rank: usize, failure: Option<&RanksError>) {
        for dst in 0..self.to.len() {
            let wire = failure.map_or(Wire::Ended(rank), |failure| Wire::Failed(failure.clone()));
            // A process that is gone needs no word.
            let _gone = self.tell(dst, wire);
        }
    }
}

fn deliver(world: &World, dst: usize, from: &Receiver<Wire>) {
    while let Ok(wire) = from.recv() {
        match wire {
            Wire::Message { header, text, align, bytes } => {
                let (operation, type_name) = text.split_at(header.operation_bytes);
                let string = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().into();
                let envelope = Envelope {
                    group: header.group,
                    src: header.src,
                    tag: header.tag.map_or(Tag::Collective, Tag::User),
                    operation: string(operation),
                    type_name: string(type_name),
                    extent: header.extent,
                    origin: header.origin,
                    payload: Payload::receive(align, bytes.len(), |to| to.copy_from_slice(&bytes)).unwrap(),
                };
                world.deliver(dst, envelope).unwrap();
            }
            Wire::Ended(rank) => world.ended(rank),
            Wire::Failed(failure) => world.fail(failure.rank, failure.operation, failure.message),
            Wire::Close => return,
        }
    }
}

/// Runs `body` once per rank, each rank in a world of its own.
fn run<R: Send, E: Display>(
    size: usize,
    body: impl Fn(Comm) -> std::result::Result<R, E> + Sync,
) -> Vec<std::result::Result<R, RanksError>> {
    let (to, from): (Vec<_>, Vec<_>) = (0..size).map(|_| channel()).unzip();
    let body = &body;
    std::thread::scope(|scope| {
        let processes: Vec<_> = from
            .into_iter()
            .enumerate()
            .map(|(rank, from)| {
                let close = to[rank].clone();
                let transport = Arc::new(Channels { rank, to: to.clone() });
                scope.spawn(move || {
                    let config =
                        WorldConfig { stall_after: Duration::from_millis(20), ..WorldConfig::new(size).ranks_per_node(2) };
                    let world = World::process(&config, rank, transport).unwrap();
                    std::thread::scope(|scope| {
                        let (world, from) = (&world, from);
                        scope.spawn(move || deliver(world, rank, &from));
                        let result = run_process(world, rank, body);
                        close.send(Wire::Close).unwrap();
                        result
                    })
                })
            })
            .collect();
        processes.into_iter().map(|process| process.join().unwrap()).collect()
    })
}

fn all<R>(results: Vec<std::result::Result<R, RanksError>>) -> Vec<R> {
    results.into_iter().map(|result| result.unwrap()).collect()
}

#[test]
fn messages_and_collectives_are_those_of_threads() {
    type Got = (Vec<u32>, Vec<f64>, Vec<Vec<u16>>, v3_ranks::Traffic);
    fn body(comm: Comm) -> Result<Got> {
        let (me, size) = (comm.rank(), comm.size());
        let mut sum: Vec<f32> = (0..7).map(|i| 0.1 + (me * i) as f32 / 3.0).collect();
        comm.all_reduce_sum(&mut sum)?;
        let part = comm.reduce_scatter_sum(&vec![1.0 / (me + 1) as f64; size], &vec![1; size])?;
        let turned: Vec<usize> = (0..size).rev().collect();
        let group = comm.subgroup(&turned, 3)?;
        let rows = group.all_to_all_v((0..size).map(|dst| vec![(10 * me + dst) as u16; dst]).collect())?;
        for dst in 0..size {
            comm.send_rows(dst, 5, vec![me as u128; me], me)?;
            comm.send(dst, 6, vec![[me as u8; 3]; 2])?;
        }
        for src in 0..size {
            assert_eq!(comm.recv::<[u8; 3]>(src, 6)?, [[src as u8; 3]; 2]);
            assert_eq!(comm.recv::<u128>(src, 5)?, vec![src as u128; src]);
        }
        let word = comm.broadcast(1, vec![me as i64; 4])?;
        assert_eq!(word, [1; 4]);
        comm.barrier()?;
        Ok((sum.iter().map(|x| x.to_bits()).collect(), part, rows, comm.traffic()))
    }
    for size in [2, 3, 5] {
        let threads = v3_ranks::run_threads(WorldConfig::new(size).ranks_per_node(2), body).unwrap();
        assert_eq!(all(run(size, body)), threads);
    }
}

/// Sends to the next rank and takes from the one before.
struct Ring(bool);

impl Task for Ring {
    type Output = u64;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<u64>> {
        let (me, size) = (comm.rank(), comm.size());
        if !std::mem::replace(&mut self.0, true) {
            comm.send((me + 1) % size, 1, vec![me as u64])?;
        }
        let before = (me + size - 1) % size;
        Ok(comm.try_recv(before, 1)?.map_or(Step::Waiting(vec![(before, 1)]), |data| Step::Done(data[0])))
    }
}

#[test]
fn a_lane_exchanges_between_processes() {
    let got = all(run(3, |comm| Lane::spawn(&comm, "ring")?.submit(Ring(false)).finish(&comm)));
    assert_eq!(got, [2, 0, 1]);
}

#[test]
fn a_failure_in_one_process_ends_the_others() {
    for panics in [false, true] {
        let results = run(3, |comm| {
            if comm.rank() != 1 {
                return comm.recv::<f32>(1, 0).map(drop).map_err(|error| error.to_string());
            }
            // The others wait longer than their limit, but what is elsewhere may still come.
            std::thread::sleep(Duration::from_millis(60));
            assert!(!panics, "stop");
            Err("the disk is full".to_string())
        });
        for result in results {
            let error = result.unwrap_err();
            assert_eq!(error.rank, 1);
            assert_eq!(error.message, if panics { "panicked: stop" } else { "the disk is full" });
        }
    }
}

#[test]
fn waiting_for_a_process_that_has_ended_is_an_error() {
    let results = run(2, |comm| if comm.rank() == 0 { Ok(()) } else { comm.recv::<f32>(0, 0).map(drop) });
    assert_eq!(results[0], Ok(()));
    let error = results[1].clone().unwrap_err();
    assert_eq!(error.message, "rank 1 waits in recv for rank 0, which has ended without sending");
}

#[test]
fn another_type_or_operation_is_an_error() {
    let results = run(2, |comm| {
        comm.send(1 - comm.rank(), 0, vec![1.0f32])?;
        comm.recv::<u32>(1 - comm.rank(), 0).map(drop)
    });
    let error = results[0].clone().unwrap_err();
    assert!(error.message.contains("expected elements of type u32, got f32"), "{error}");
    let results = run(2, |comm| if comm.rank() == 0 { comm.barrier() } else { comm.all_gather_v(&[1u8]).map(drop) });
    let error = results[0].clone().unwrap_err();
    assert!(error.message.contains("barrier") && error.message.contains("all_gather_v"), "{error}");
}

#[test]
fn what_makes_no_sense_between_processes_is_refused() {
    let transport = || Arc::new(Channels { rank: 0, to: Vec::new() });
    let config = WorldConfig::new(2);
    let link = LinkModel { fast: Link::INSTANT, slow: Link::INSTANT };
    for (config, rank, word) in [
        (config, 2, "rank of this process"),
        (config.clock(Clock::Virtual), 0, "clock"),
        (config.link(link), 0, "link model"),
        (WorldConfig::new(0), 0, "number of ranks"),
    ] {
        let error = World::process(&config, rank, transport()).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    let world = World::process(&config, 0, transport()).unwrap();
    assert!(run_process(&world, 1, |_| Ok::<(), Error>(())).is_err());
    let envelope = |src| Envelope {
        group: 0,
        src,
        tag: Tag::User(0),
        operation: "send".into(),
        type_name: "u8".into(),
        extent: 0,
        origin: 0.0,
        payload: Payload::new(vec![0u8]),
    };
    assert!(world.deliver(1, envelope(1)).is_err());
    assert!(world.deliver(9, envelope(1)).is_err());
    assert!(world.deliver(0, envelope(2)).is_err());
    assert!(world.deliver(0, envelope(1)).is_ok());
    for (align, bytes) in [(0, 0), (3, 3), (32, 32), (4, 6), (1, usize::MAX)] {
        assert!(Payload::receive(align, bytes, |_| ()).is_err(), "{align} {bytes}");
    }
}
