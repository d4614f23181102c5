//! The same programs in a simulation of its own: one thread, one operation at a time, everything looked up by searching.

use v3_ranks::{LinkModel, Waits};

use crate::program::{Op, Program, Seen, TaskStep};

struct Message {
    src: usize,
    dst: usize,
    tag: u64,
    bytes: usize,
    origin: f64,
    head: Option<f64>,
    arrival: Option<f64>,
    taken: bool,
}

struct Running {
    ticket: usize,
    steps: Vec<TaskStep>,
    at: usize,
    origin: f64,
    fresh: bool,
}

#[derive(Default)]
struct LaneState {
    number: usize,
    time: f64,
    waits: Waits,
    inbox: Vec<(f64, Running)>,
    tasks: Vec<Running>,
    /// The task that is being polled, and whether it may go on without asking.
    polling: Option<usize>,
    /// Where the next look for a task that can go on begins; `None` between two passes.
    pass: Option<usize>,
}

struct RankState {
    time: f64,
    at: usize,
    /// What an operation of several steps has done so far.
    part: usize,
    log: Vec<f64>,
    waits: Waits,
    lanes: [Option<LaneState>; 2],
    spawned: usize,
    tickets: Vec<Option<(f64, f64)>>,
}

pub struct Reference<'a> {
    program: &'a Program,
    messages: Vec<Message>,
    send_free: Vec<[f64; 2]>,
    receive_free: Vec<[f64; 2]>,
    ranks: Vec<RankState>,
}

fn account(waits: &mut Waits, began: f64, origin: f64, ended: f64) {
    if ended > began {
        waits.exposed += (ended - began.max(origin)).max(0.0);
        waits.bubble += (origin.min(ended) - began).max(0.0);
    }
}

impl<'a> Reference<'a> {
    pub fn run(program: &'a Program) -> Vec<Seen> {
        let size = program.ops.len();
        let rank = || RankState {
            time: 0.0,
            at: 0,
            part: 0,
            log: Vec::new(),
            waits: Waits::default(),
            lanes: [None, None],
            spawned: 0,
            tickets: Vec::new(),
        };
        let mut world = Reference {
            program,
            messages: Vec::new(),
            send_free: vec![[0.0; 2]; size],
            receive_free: vec![[0.0; 2]; size],
            ranks: (0..size).map(|_| rank()).collect(),
        };
        while world.step() {}
        world
            .ranks
            .into_iter()
            .enumerate()
            .map(|(i, rank)| {
                assert_eq!(rank.at, program.ops[i].len(), "rank {i} is stuck");
                let lanes = rank.lanes.iter().map(|lane| lane.as_ref().map(|lane| lane.waits).unwrap_or_default()).collect();
                Seen { log: rank.log, waits: rank.waits, lanes }
            })
            .collect()
    }

    /// The port and link between two ranks.
    fn link(&self, src: usize, dst: usize) -> Option<(usize, f64, f64)> {
        let LinkModel { fast, slow } = self.program.link?;
        let same_node = src / self.program.ranks_per_node == dst / self.program.ranks_per_node;
        match (src == dst, same_node) {
            (true, _) => None,
            (_, true) => Some((0, fast.latency.as_secs_f64(), fast.bandwidth)),
            (_, false) => Some((1, slow.latency.as_secs_f64(), slow.bandwidth)),
        }
    }

    fn send(&mut self, now: f64, src: usize, dst: usize, tag: u64, bytes: usize, origin: f64) {
        let (mut head, mut arrival) = (None, Some(now));
        if let Some((port, latency, bandwidth)) = self.link(src, dst) {
            let leaves = now.max(self.send_free[src][port]);
            self.send_free[src][port] = leaves + bytes as f64 / bandwidth;
            (head, arrival) = (Some(leaves + latency), None);
        }
        self.messages.push(Message { src, dst, tag, bytes, origin, head, arrival, taken: false });
    }

    fn first(&self, dst: usize, src: usize, tag: u64) -> Option<usize> {
        self.messages.iter().position(|m| !m.taken && m.dst == dst && m.src == src && m.tag == tag)
    }

    fn arrival(&self, dst: usize, src: usize, tag: u64) -> Option<f64> {
        self.first(dst, src, tag).and_then(|m| self.messages[m].arrival)
    }

    /// When the thread of a rank can do its next operation.
    fn main_ready(&self, rank: usize) -> Option<f64> {
        let me = &self.ranks[rank];
        let arrival = match self.program.ops[rank].get(me.at)? {
            Op::Recv { src, tag } => self.arrival(rank, *src, *tag)?,
            Op::Try { src, tag } if me.part == 1 => self.arrival(rank, *src, *tag)?,
            Op::Any(list) if me.part == 0 => {
                list.iter().filter_map(|&(src, tag)| self.arrival(rank, src, tag)).min_by(f64::total_cmp)?
            }
            Op::Any(list) => self.arrival(rank, list[me.part - 1].0, list[me.part - 1].1)?,
            Op::Finish { ticket } => me.tickets[*ticket]?.0,
            _ => 0.0,
        };
        Some(me.time.max(arrival))
    }

    /// What a task that is not being polled waits for.
    fn awaited(task: &Running) -> (usize, u64) {
        match task.steps[task.at] {
            TaskStep::Recv { src, tag } => (src, tag),
            _ => panic!("a task waits for messages only"),
        }
    }

    fn lane_ready(&self, rank: usize, lane: &LaneState) -> Option<f64> {
        if lane.polling.is_some() || lane.pass.is_some() {
            return Some(lane.time);
        }
        let submitted = lane.inbox.iter().map(|(at, _)| *at);
        let arrived = lane.tasks.iter().filter_map(|task| {
            let (src, tag) = Self::awaited(task);
            self.arrival(rank, src, tag)
        });
        submitted.chain(arrived).min_by(f64::total_cmp).map(|at| at.max(lane.time))
    }

    fn step(&mut self) -> bool {
        // Who acts first: (time, rank, number of the lane, index of the lane).
        let mut first: Option<(f64, usize, usize, usize)> = None;
        let mut offer = |candidate: (f64, usize, usize, usize)| {
            if first.is_none_or(|best| candidate < best) {
                first = Some(candidate);
            }
        };
        for (r, rank) in self.ranks.iter().enumerate() {
            if let Some(time) = self.main_ready(r) {
                offer((time, r, 0, 0));
            }
            for (i, lane) in rank.lanes.iter().enumerate() {
                if let Some(lane) = lane
                    && let Some(time) = self.lane_ready(r, lane)
                {
                    offer((time, r, lane.number, i));
                }
            }
        }
        let pending = self.messages.iter().enumerate().filter(|(_, m)| m.arrival.is_none());
        let head = pending.min_by(|(i, a), (j, b)| a.head.partial_cmp(&b.head).unwrap().then((a.src, i).cmp(&(b.src, j))));
        if let Some((m, message)) = head
            && let Some(time) = message.head
            && first.is_none_or(|(at, ..)| time < at)
        {
            let (dst, bytes) = (message.dst, message.bytes);
            let (port, _, bandwidth) = self.link(message.src, dst).expect("a head belongs to a link");
            let arrival = time.max(self.receive_free[dst][port]) + bytes as f64 / bandwidth;
            self.receive_free[dst][port] = arrival;
            self.messages[m].arrival = Some(arrival);
            return true;
        }
        match first {
            None => return false,
            Some((time, rank, 0, _)) => self.main_step(rank, time),
            Some((time, rank, _, lane)) => self.lane_step(rank, lane, time),
        }
        true
    }

    fn receive(&mut self, rank: usize, src: usize, tag: u64, time: f64) {
        let m = self.first(rank, src, tag).expect("it has arrived");
        self.messages[m].taken = true;
        let me = &mut self.ranks[rank];
        account(&mut me.waits, me.time, self.messages[m].origin, time);
        me.time = time;
    }

    fn main_step(&mut self, rank: usize, time: f64) {
        let mut done = true;
        match self.program.ops[rank][self.ranks[rank].at].clone() {
            Op::Advance(seconds) => self.ranks[rank].time += seconds,
            Op::Send { dst, tag, bytes } => self.send(time, rank, dst, tag, bytes, time),
            Op::Recv { src, tag } => self.receive(rank, src, tag, time),
            Op::Try { src, tag } if self.ranks[rank].part == 0 => {
                let found = self.arrival(rank, src, tag).is_some_and(|at| at <= time);
                self.ranks[rank].log.push(f64::from(u8::from(found)));
                if found {
                    self.receive(rank, src, tag, time);
                } else {
                    self.ranks[rank].part = 1;
                    done = false;
                }
            }
            Op::Try { src, tag } => self.receive(rank, src, tag, time),
            Op::Any(list) if self.ranks[rank].part == 0 => {
                let mut best: Option<(f64, usize)> = None;
                for (i, &(src, tag)) in list.iter().enumerate() {
                    if let Some(at) = self.arrival(rank, src, tag)
                        && best.is_none_or(|(earliest, _)| at < earliest)
                    {
                        best = Some((at, i));
                    }
                }
                let (_, i) = best.expect("one has arrived");
                let m = self.first(rank, list[i].0, list[i].1).expect("it has arrived");
                let me = &mut self.ranks[rank];
                account(&mut me.waits, me.time, self.messages[m].origin, time);
                me.time = time;
                me.log.push(i as f64);
                me.log.push(time);
                me.part = 1;
                done = false;
            }
            Op::Any(list) => {
                let part = self.ranks[rank].part;
                self.receive(rank, list[part - 1].0, list[part - 1].1, time);
                self.ranks[rank].part += 1;
                done = part == list.len();
            }
            Op::Submit { lane, steps } => {
                let me = &mut self.ranks[rank];
                if me.lanes[lane].is_none() {
                    me.spawned += 1;
                    me.lanes[lane] = Some(LaneState { number: me.spawned, time, ..LaneState::default() });
                }
                let running = Running { ticket: me.tickets.len(), steps, at: 0, origin: time, fresh: true };
                me.lanes[lane].as_mut().expect("made above").inbox.push((time, running));
                me.tickets.push(None);
            }
            Op::IsDone { ticket } => {
                let me = &mut self.ranks[rank];
                me.log.push(f64::from(u8::from(me.tickets[ticket].is_some_and(|(at, _)| at <= time))));
            }
            Op::Finish { ticket } => {
                let me = &mut self.ranks[rank];
                let (_, origin) = me.tickets[ticket].expect("it is done");
                account(&mut me.waits, me.time, origin, time);
                me.time = time;
            }
        }
        if done {
            let me = &mut self.ranks[rank];
            me.log.push(me.time);
            me.part = 0;
            me.at += 1;
        }
    }

    fn lane_step(&mut self, rank: usize, index: usize, time: f64) {
        let mut lane = self.ranks[rank].lanes[index].take().expect("it exists");
        if let Some(t) = lane.polling {
            self.poll(rank, &mut lane, t);
        } else if let Some(from) = lane.pass {
            // The next task that can go on, in order of submission.
            let ready = |task: &Running| {
                let (src, tag) = Self::awaited(task);
                self.arrival(rank, src, tag).is_some_and(|at| at <= lane.time)
            };
            let next = (from..lane.tasks.len()).find(|&t| lane.tasks[t].fresh || ready(&lane.tasks[t]));
            lane.polling = next;
            if next.is_none() {
                lane.pass = None;
            }
        } else {
            let began = lane.time;
            lane.time = time;
            let due = lane.inbox.iter().take_while(|(at, _)| *at <= time).count();
            if due == 0 {
                // A message ended the wait: the one that arrived first, among equals the one of the earliest task.
                let mut best: Option<(f64, f64)> = None;
                for task in &lane.tasks {
                    let (src, tag) = Self::awaited(task);
                    if let Some(m) = self.first(rank, src, tag)
                        && let Some(at) = self.messages[m].arrival
                        && best.is_none_or(|(earliest, _)| at < earliest)
                    {
                        best = Some((at, self.messages[m].origin));
                    }
                }
                let (_, origin) = best.expect("it has arrived");
                account(&mut lane.waits, began, origin, time);
            }
            lane.tasks.extend(lane.inbox.drain(..due).map(|(_, task)| task));
            lane.pass = Some(0);
        }
        self.ranks[rank].lanes[index] = Some(lane);
    }

    /// One step of the task that is being polled.
    fn poll(&mut self, rank: usize, lane: &mut LaneState, t: usize) {
        let task = &mut lane.tasks[t];
        task.fresh = false;
        match task.steps.get(task.at).cloned() {
            None => {
                let task = lane.tasks.remove(t);
                self.ranks[rank].tickets[task.ticket] = Some((lane.time, task.origin));
                lane.polling = None;
                lane.pass = Some(t);
            }
            Some(TaskStep::Advance(seconds)) => {
                lane.time += seconds;
                task.at += 1;
            }
            Some(TaskStep::Send { dst, tag, bytes }) => {
                let origin = task.origin;
                task.at += 1;
                self.send(lane.time, rank, dst, tag, bytes, origin);
            }
            Some(TaskStep::Recv { src, tag }) => {
                if self.arrival(rank, src, tag).is_some_and(|at| at <= lane.time) {
                    let m = self.first(rank, src, tag).expect("it has arrived");
                    self.messages[m].taken = true;
                    task.origin = task.origin.max(self.messages[m].origin);
                    task.at += 1;
                } else {
                    lane.polling = None;
                    lane.pass = Some(t + 1);
                }
            }
        }
    }
}
