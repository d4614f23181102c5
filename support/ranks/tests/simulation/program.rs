//! Random programs for ranks and lanes that cannot deadlock, and their run on a world.

use std::time::Duration;

use v3_ranks::{Comm, Error, Lane, LinkModel, Result, Step, Task, Ticket, Waits, WorldConfig, run_threads};
use v3_testkit::Rng;

#[derive(Debug, Clone)]
pub enum TaskStep {
    Advance(f64),
    Send { dst: usize, tag: u64, bytes: usize },
    Recv { src: usize, tag: u64 },
}

#[derive(Debug, Clone)]
pub enum Op {
    Advance(f64),
    Send {
        dst: usize,
        tag: u64,
        bytes: usize,
    },
    Recv {
        src: usize,
        tag: u64,
    },
    /// Takes what has arrived, or says so and waits.
    Try {
        src: usize,
        tag: u64,
    },
    /// Waits for any of them, then takes all in order.
    Any(Vec<(usize, u64)>),
    Submit {
        lane: usize,
        steps: Vec<TaskStep>,
    },
    IsDone {
        ticket: usize,
    },
    Finish {
        ticket: usize,
    },
}

#[derive(Debug, Clone)]
pub struct Program {
    pub ranks_per_node: usize,
    pub link: Option<LinkModel>,
    pub ops: Vec<Vec<Op>>,
}

/// What one rank saw: its time or an answer after each operation, its waits, and those of its lanes.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub log: Vec<f64>,
    pub waits: Waits,
    pub lanes: Vec<Waits>,
}

/// Tags of messages between main threads, which are used again and again; all others are used once.
const COMMON_TAGS: u64 = 2;

impl Program {
    /// Operations are drawn one after another as they could run one after another: what is received was sent before. Sends do not wait,
    /// so no order of the clock can deadlock.
    pub fn random(rng: &mut Rng, ranks: usize, length: usize, link: Option<LinkModel>) -> Program {
        let mut ops: Vec<Vec<Op>> = vec![Vec::new(); ranks];
        let mut open: Vec<Vec<usize>> = vec![Vec::new(); ranks];
        let mut tickets = vec![0; ranks];
        // (source, destination, tag)
        let mut pending: Vec<(usize, usize, u64)> = Vec::new();
        let mut next_tag = 1000;
        for _ in 0..length {
            let rank = rng.below(ranks);
            match rng.below(8) {
                0 | 1 => ops[rank].push(Op::Advance(span(rng))),
                2 | 3 => {
                    let dst = rng.below(ranks);
                    let tag = rng.below(COMMON_TAGS as usize) as u64;
                    pending.push((rank, dst, tag));
                    ops[rank].push(Op::Send { dst, tag, bytes: bytes(rng) });
                }
                4 => {
                    if let Some((src, tag)) = pick(rng, &mut pending, rank, false) {
                        ops[rank].push(if rng.below(2) == 0 { Op::Recv { src, tag } } else { Op::Try { src, tag } });
                    }
                }
                5 => {
                    let list: Vec<(usize, u64)> = (0..3).filter_map(|_| pick(rng, &mut pending, rank, false)).collect();
                    if !list.is_empty() {
                        ops[rank].push(Op::Any(list));
                    }
                }
                6 => {
                    let mut steps = Vec::new();
                    for _ in 0..=rng.below(4) {
                        match rng.below(5) {
                            0 => steps.push(TaskStep::Advance(span(rng))),
                            1 | 2 => {
                                let dst = rng.below(ranks);
                                next_tag += 1;
                                pending.push((rank, dst, next_tag));
                                steps.push(TaskStep::Send { dst, tag: next_tag, bytes: bytes(rng) });
                            }
                            _ => {
                                if let Some((src, tag)) = pick(rng, &mut pending, rank, true) {
                                    steps.push(TaskStep::Recv { src, tag });
                                }
                            }
                        }
                    }
                    open[rank].push(tickets[rank]);
                    tickets[rank] += 1;
                    ops[rank].push(Op::Submit { lane: rng.below(2), steps });
                }
                _ if open[rank].is_empty() => {}
                _ => {
                    let at = rng.below(open[rank].len());
                    if rng.below(2) == 0 {
                        ops[rank].push(Op::IsDone { ticket: open[rank][at] });
                    } else {
                        ops[rank].push(Op::Finish { ticket: open[rank].remove(at) });
                    }
                }
            }
        }
        for (src, dst, tag) in pending {
            ops[dst].push(Op::Recv { src, tag });
        }
        for (rank, open) in open.into_iter().enumerate() {
            ops[rank].extend(open.into_iter().map(|ticket| Op::Finish { ticket }));
        }
        Program { ranks_per_node: 1 + rng.below(3), link, ops }
    }
}

/// Often the same few values, so that events coincide.
fn span(rng: &mut Rng) -> f64 {
    if rng.below(3) == 0 { rng.below(1_000_000) as f64 * 1e-6 } else { rng.below(4) as f64 * 0.5 }
}

fn bytes(rng: &mut Rng) -> usize {
    [0, 1, 2, 8, 8, 40][rng.below(6)]
}

/// Takes a message to `dst` out of those that are under way; tasks may take only what has a tag of its own.
fn pick(rng: &mut Rng, pending: &mut Vec<(usize, usize, u64)>, dst: usize, own_tag: bool) -> Option<(usize, u64)> {
    let fits: Vec<usize> =
        (0..pending.len()).filter(|&i| pending[i].1 == dst && (!own_tag || pending[i].2 >= COMMON_TAGS)).collect();
    if fits.is_empty() {
        return None;
    }
    let (src, _, tag) = pending.remove(fits[rng.below(fits.len())]);
    Some((src, tag))
}

struct Steps {
    steps: std::vec::IntoIter<TaskStep>,
    waiting: Option<(usize, u64)>,
    sleep: Sleep,
}

impl Task for Steps {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<()>> {
        loop {
            self.sleep.sometimes();
            if let Some((src, tag)) = self.waiting {
                if comm.try_recv::<u8>(src, tag)?.is_none() {
                    return Ok(Step::Waiting(vec![(src, tag)]));
                }
                self.waiting = None;
            }
            match self.steps.next() {
                None => return Ok(Step::Done(())),
                Some(TaskStep::Advance(seconds)) => comm.advance(seconds)?,
                Some(TaskStep::Send { dst, tag, bytes }) => comm.send(dst, tag, vec![0u8; bytes])?,
                Some(TaskStep::Recv { src, tag }) => self.waiting = Some((src, tag)),
            }
        }
    }
}

/// Disturbs the threads: sleeps now and then, unless the seed is 0.
#[derive(Clone)]
struct Sleep(u64);

impl Sleep {
    fn sometimes(&mut self) {
        if self.0 == 0 {
            return;
        }
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match (self.0 >> 33) % 8 {
            0 => std::thread::sleep(Duration::from_micros(self.0 >> 57)),
            1 | 2 => std::thread::yield_now(),
            _ => {}
        }
    }
}

/// Runs a program under the virtual clock.
pub fn run(program: &Program, compute_slots: Option<usize>, disturb: u64) -> Vec<Seen> {
    let size = program.ops.len();
    let config = WorldConfig { compute_slots, link: program.link, ..WorldConfig::new(size) };
    let config = config.ranks_per_node(program.ranks_per_node).clock(v3_ranks::Clock::Virtual);
    run_threads(config, |comm: Comm| -> Result<Seen> {
        let mut sleep = Sleep(disturb.wrapping_mul(comm.rank() as u64 + 1));
        let mut log = Vec::new();
        let mut lanes: Vec<Option<Lane>> = vec![None, None];
        let mut tickets: Vec<Option<Ticket<()>>> = Vec::new();
        for op in &program.ops[comm.rank()] {
            sleep.sometimes();
            match op {
                Op::Advance(seconds) => comm.advance(*seconds)?,
                Op::Send { dst, tag, bytes } => comm.send(*dst, *tag, vec![0u8; *bytes])?,
                Op::Recv { src, tag } => drop(comm.recv::<u8>(*src, *tag)?),
                Op::Try { src, tag } => {
                    let found = comm.try_recv::<u8>(*src, *tag)?.is_some();
                    log.push(f64::from(u8::from(found)));
                    if !found {
                        comm.recv::<u8>(*src, *tag)?;
                    }
                }
                Op::Any(list) => {
                    log.push(comm.wait_any(list)? as f64);
                    log.push(comm.now());
                    for &(src, tag) in list {
                        comm.recv::<u8>(src, tag)?;
                    }
                }
                Op::Submit { lane, steps } => {
                    if lanes[*lane].is_none() {
                        lanes[*lane] = Some(Lane::spawn(&comm, format!("lane {lane}"))?);
                    }
                    let Some(lane) = &lanes[*lane] else { continue };
                    let steps = Steps { steps: steps.clone().into_iter(), waiting: None, sleep: sleep.clone() };
                    tickets.push(Some(lane.submit(steps)));
                }
                Op::IsDone { ticket } => {
                    log.push(f64::from(u8::from(tickets[*ticket].as_ref().is_some_and(Ticket::is_done))));
                }
                Op::Finish { ticket } => {
                    if let Some(ticket) = tickets[*ticket].take() {
                        ticket.finish(&comm)?;
                    }
                }
            }
            log.push(comm.now());
        }
        let lanes = lanes.iter().map(|lane| lane.as_ref().map(Lane::waits).unwrap_or_default()).collect();
        Ok(Seen { log, waits: comm.waits(), lanes })
    })
    .unwrap()
}
