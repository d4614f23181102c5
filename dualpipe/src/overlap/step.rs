//! A whole step on paper, component by component: every rank with its two lanes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::error::{Error, Result};
use crate::overlap::component::{Component, Half, Pairing};
use crate::overlap::costs::{ComponentCost, ComponentCosts, Ports};
use crate::overlap::program::{Key, Piece, program};
use crate::overlap::set::Overlap;
use crate::schedule::Schedule;
use crate::timeline::{Span, TimeUnit, Timeline};

/// What the steps of one sort of one rank take together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LaneTimes {
    /// How many steps.
    pub steps: usize,
    /// The computing lane works.
    pub computing: f64,
    /// It waits for communication of components, or for an activation or gradient, that was already sent.
    pub exposed: f64,
    /// It waits for an activation or gradient that was not yet sent.
    pub bubble: f64,
    /// What of the communication of components would be exposed if nothing overlapped.
    pub communication: f64,
}

/// One rank's part of a simulated step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RankLanes {
    /// Overlapped pairs.
    pub pairs: LaneTimes,
    /// All other steps.
    pub alone: LaneTimes,
}

impl RankLanes {
    /// How long the rank waits for what was already sent.
    pub fn exposed(&self) -> f64 {
        self.pairs.exposed + self.alone.exposed
    }

    /// How long the rank waits for what was not yet sent.
    pub fn bubble(&self) -> f64 {
        self.pairs.bubble + self.alone.bubble
    }
}

/// A step simulated component by component.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTimeline {
    /// When each rank did which step; `wait` is what it waited for its first input.
    pub timeline: Timeline,
    /// By rank.
    pub ranks: Vec<RankLanes>,
}

/// Runs a schedule on paper as [`crate::execute_with`] runs it, component by component, in the order that `overlap` says. Every rank
/// stands for a group of ranks that communicate with each other and all do the same at the same time.
///
/// Ports are those of [`v3_ranks::LinkModel`]: a message occupies the sender's port, its head reaches the receiver's port a latency later, and
/// occupies that as long; send ports serve in the order of sending, receive ports in the order in which heads come. A
/// communication of components leaves and comes in on the rank's own ports; [`ComponentCosts::transfer`] goes from rank to rank, by the same ports.
/// A rank reads inputs and waits for communications where its arrangement says.
///
/// # Errors
/// Components without costs or that cannot be arranged; tuned arrangements that are missing.
pub fn simulate_components(
    schedule: &Schedule,
    components: impl Fn(Half, usize) -> Vec<Component>,
    costs: &ComponentCosts,
    overlap: &Overlap,
) -> Result<StepTimeline> {
    // Checks the cost of a transfer.
    costs.of(&Pairing::default())?;
    let programs = (0..schedule.ranks()).map(|rank| program(schedule, rank, &components, costs, overlap));
    let programs = programs.collect::<Result<Vec<_>>>()?;
    let mut world = World {
        costs,
        schedule,
        actors: programs.into_iter().map(|pieces| Actor { pieces, ..Actor::default() }).collect(),
        heads: BinaryHeap::new(),
        sequence: 0,
        send_free: vec![[0.0; 2]; schedule.ranks()],
        receive_free: vec![[0.0; 2]; schedule.ranks()],
        arrived: HashMap::new(),
    };
    world.run()?;
    let spans = world.actors.iter_mut().map(|actor| std::mem::take(&mut actor.spans)).collect();
    Ok(StepTimeline {
        timeline: Timeline::from_parts(schedule, spans, TimeUnit::Seconds),
        ranks: world.actors.iter().map(|actor| actor.lanes).collect(),
    })
}

/// What a message is waited for by: a communication of a rank, or an activation or gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Token {
    Communication(usize, usize),
    Transfer(Key),
}

/// The head of a message on its way to a receive port.
struct Head {
    time: f64,
    source: usize,
    sequence: u64,
    to: usize,
    port: usize,
    occupies: f64,
    token: Token,
    sent: f64,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

impl Ord for Head {
    /// The greatest is served first: least time, then sender, then as sent.
    fn cmp(&self, other: &Self) -> Ordering {
        let time = other.time.total_cmp(&self.time);
        time.then(other.source.cmp(&self.source)).then(other.sequence.cmp(&self.sequence))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A message, all parts of which have a known arrival when `parts` is 0.
#[derive(Clone, Copy, Default)]
struct Arrival {
    parts: usize,
    at: f64,
    sent: f64,
}

#[derive(Default)]
struct Actor {
    pieces: Vec<Piece>,
    next: usize,
    now: f64,
    /// When the current step began, and when its first input was there.
    step: usize,
    began: f64,
    first_input: Option<f64>,
    lanes: RankLanes,
    spans: Vec<Span>,
}

struct World<'a> {
    costs: &'a ComponentCosts,
    schedule: &'a Schedule,
    actors: Vec<Actor>,
    heads: BinaryHeap<Head>,
    sequence: u64,
    send_free: Vec<[f64; 2]>,
    receive_free: Vec<[f64; 2]>,
    arrived: HashMap<Token, Arrival>,
}

impl World<'_> {
    fn run(&mut self) -> Result<()> {
        loop {
            // The rank that can act soonest; a rank that waits acts when what it waits for is there.
            let turns = (0..self.actors.len()).filter_map(|rank| self.turn(rank).map(|time| (time, rank)));
            let first = turns.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            match (self.heads.peek(), first) {
                (Some(head), first) if first.is_none_or(|(time, _)| head.time < time) => self.serve(),
                (_, Some((time, rank))) => self.act(rank, time),
                _ => break,
            }
        }
        let stuck = self.actors.iter().position(|actor| actor.next < actor.pieces.len());
        stuck.map_or(Ok(()), |rank| {
            let step = self.actors[rank].step;
            let message = "waits for ever for an input that comes too late in this order".into();
            Err(Error::Step { rank, step, message })
        })
    }

    /// When a rank can act, if that is known.
    fn turn(&self, rank: usize) -> Option<f64> {
        let actor = &self.actors[rank];
        let token = match *actor.pieces.get(actor.next)? {
            Piece::Wait { id } => Token::Communication(rank, id),
            Piece::Receive { key } => Token::Transfer(key),
            _ => return Some(actor.now),
        };
        self.arrived.get(&token).filter(|arrival| arrival.parts == 0).map(|arrival| actor.now.max(arrival.at))
    }

    fn act(&mut self, rank: usize, time: f64) {
        let actor = &mut self.actors[rank];
        let Some(&piece) = actor.pieces.get(actor.next) else { return };
        actor.next += 1;
        let step = self.schedule.steps(rank).get(actor.step).copied();
        let pair = step.is_some_and(|step| step.is_pair());
        let lanes = if pair { &mut actor.lanes.pairs } else { &mut actor.lanes.alone };
        match piece {
            Piece::Advance(seconds) => {
                lanes.computing += seconds;
                actor.now += seconds;
            }
            Piece::Begun => {
                actor.first_input.get_or_insert(actor.now);
            }
            Piece::Wait { .. } | Piece::Receive { .. } => {
                let token = match piece {
                    Piece::Wait { id } => Token::Communication(rank, id),
                    Piece::Receive { key } => Token::Transfer(key),
                    _ => return,
                };
                let sent = self.arrived.remove(&token).map_or(0.0, |arrival| arrival.sent);
                lanes.exposed += (time - actor.now.max(sent)).max(0.0);
                lanes.bubble += (sent.min(time) - actor.now).max(0.0);
                actor.now = time;
            }
            Piece::Send { id, cost } => {
                lanes.communication += cost.alone();
                self.send(rank, rank, Token::Communication(rank, id), &cost);
            }
            Piece::Post { key, to } => {
                let transfer = self.costs.transfer;
                self.send(rank, to, Token::Transfer(key), &transfer);
            }
            Piece::StepEnd(index) => {
                lanes.steps += 1;
                let start = actor.first_input.unwrap_or(actor.began);
                if let Some(step) = step {
                    actor.spans.push(Span { rank, step, start, end: actor.now, wait: start - actor.began });
                }
                (actor.step, actor.began, actor.first_input) = (index + 1, actor.now, None);
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, token: Token, cost: &ComponentCost) {
        let now = self.actors[from].now;
        let parts = match self.costs.ports {
            Ports::One => [cost.slow.max(cost.fast), 0.0],
            Ports::Two => [cost.slow, cost.fast],
        };
        let mut arrival = Arrival { parts: 0, at: now + cost.latency, sent: now };
        for (port, occupies) in parts.into_iter().enumerate().filter(|(_, occupies)| *occupies > 0.0) {
            let leaves = self.send_free[from][port].max(now);
            self.send_free[from][port] = leaves + occupies;
            arrival.parts += 1;
            self.sequence += 1;
            let (time, sequence) = (leaves + cost.latency, self.sequence);
            self.heads.push(Head { time, source: from, sequence, to, port, occupies, token, sent: now });
        }
        self.arrived.insert(token, arrival);
    }

    /// The first head enters its port.
    fn serve(&mut self) {
        let Some(head) = self.heads.pop() else { return };
        let free = &mut self.receive_free[head.to][head.port];
        *free = free.max(head.time) + head.occupies;
        let arrival = self.arrived.entry(head.token).or_insert(Arrival { parts: 1, at: 0.0, sent: head.sent });
        arrival.at = arrival.at.max(*free);
        arrival.parts -= 1;
    }
}

impl StepTimeline {
    /// The share of the communication in pairs that computation hides, over all ranks: 1 where there is none.
    pub fn hidden_in_pairs(&self) -> f64 {
        let sum = |part: &dyn Fn(&RankLanes) -> f64| self.ranks.iter().map(part).sum::<f64>();
        let communication = sum(&|lanes| lanes.pairs.communication);
        if communication > 0.0 { 1.0 - sum(&|lanes| lanes.pairs.exposed) / communication } else { 1.0 }
    }
}
