//! Links between ranks: which kind joins two ranks, what crossed it, and how long a message takes.

use std::time::Duration;

/// The kind of link that joins two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkKind {
    /// A rank to itself: no link, no time, not counted as traffic.
    Local,
    /// Two ranks of one node.
    Fast,
    /// Two ranks of different nodes.
    Slow,
}

/// Latency and bandwidth of one kind of link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Time from the start of a message at the sender to its start at the receiver.
    pub latency: Duration,
    /// Bytes a second through one port, greater than 0; `f64::INFINITY` for a link without a limit.
    pub bandwidth: f64,
}

impl Link {
    /// A link that takes no time.
    pub const INSTANT: Link = Link { latency: Duration::ZERO, bandwidth: f64::INFINITY };

    fn occupancy(&self, bytes: u64) -> Duration {
        let seconds = bytes as f64 / self.bandwidth;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4)
    }
}

/// The links of a world: fast ones inside a node of `ranks_per_node` ranks, slow ones between nodes.
///
/// Every rank has one send port and one receive port of each kind. A message of `b` bytes occupies the sender's port for
/// `b / bandwidth`, as soon as the port is free; `latency` after it began to leave it begins to occupy the receiver's port, as
/// soon as that is free and again for `b / bandwidth`; then it can be received. Messages pass a port in the order in which
/// they were sent. A rank's messages to itself take no time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkModel {
    /// Between ranks of one node.
    pub fast: Link,
    /// Between nodes.
    pub slow: Link,
}

/// When each port of each rank is free again, on a clock that starts with the world.
///
/// A pure function of the calls made: the same calls give the same times. [`run_threads`](crate::run_threads) feeds it the
/// wall clock.
#[derive(Debug, Clone)]
pub struct Ports {
    model: LinkModel,
    send: [Vec<Duration>; 2],
    receive: [Vec<Duration>; 2],
}

impl Ports {
    /// Free ports for `ranks` ranks.
    pub fn new(model: LinkModel, ranks: usize) -> Self {
        let free = || [vec![Duration::ZERO; ranks], vec![Duration::ZERO; ranks]];
        Ports { model, send: free(), receive: free() }
    }

    /// Sends `bytes` from rank `src` to rank `dst` at time `now`, and returns the time at which the message has arrived.
    pub fn schedule(&mut self, now: Duration, src: usize, dst: usize, kind: LinkKind, bytes: u64) -> Duration {
        let (port, link) = match kind {
            LinkKind::Local => return now,
            LinkKind::Fast => (0, self.model.fast),
            LinkKind::Slow => (1, self.model.slow),
        };
        let occupancy = link.occupancy(bytes);
        let leaves = now.max(self.send[port][src]);
        self.send[port][src] = leaves.saturating_add(occupancy);
        let begins = leaves.saturating_add(link.latency).max(self.receive[port][dst]);
        let arrived = begins.saturating_add(occupancy);
        self.receive[port][dst] = arrived;
        arrived
    }
}

/// What one rank sent over one kind of link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkTraffic {
    /// Messages, empty ones and those of collectives included.
    pub messages: u64,
    /// Bytes of their elements.
    pub bytes: u64,
    /// Rows, as counted by [`Comm::send_rows`](crate::Comm::send_rows) and [`Comm::count_rows`](crate::Comm::count_rows).
    pub rows: u64,
}

/// What one rank sent, by kind of link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To itself.
    pub local: LinkTraffic,
    /// Inside its node.
    pub fast: LinkTraffic,
    /// To other nodes.
    pub slow: LinkTraffic,
}

impl Traffic {
    /// The part that belongs to one kind of link.
    pub fn of(&self, kind: LinkKind) -> LinkTraffic {
        match kind {
            LinkKind::Local => self.local,
            LinkKind::Fast => self.fast,
            LinkKind::Slow => self.slow,
        }
    }

    pub(crate) fn of_mut(&mut self, kind: LinkKind) -> &mut LinkTraffic {
        match kind {
            LinkKind::Local => &mut self.local,
            LinkKind::Fast => &mut self.fast,
            LinkKind::Slow => &mut self.slow,
        }
    }

    /// What was sent since `earlier`, a snapshot of the same rank.
    pub fn since(&self, earlier: &Traffic) -> Traffic {
        let part = |a: LinkTraffic, b: LinkTraffic| LinkTraffic {
            messages: a.messages.saturating_sub(b.messages),
            bytes: a.bytes.saturating_sub(b.bytes),
            rows: a.rows.saturating_sub(b.rows),
        };
        Traffic {
            local: part(self.local, earlier.local),
            fast: part(self.fast, earlier.fast),
            slow: part(self.slow, earlier.slow),
        }
    }
}

/// How long one rank stood still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocked {
    /// Waiting for messages.
    pub messages: Duration,
    /// Waiting for a compute slot.
    pub slots: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn ports() -> Ports {
        // 1 byte a millisecond between nodes, 10 inside.
        let model =
            LinkModel { fast: Link { latency: MS, bandwidth: 10_000.0 }, slow: Link { latency: 5 * MS, bandwidth: 1_000.0 } };
        Ports::new(model, 4)
    }

    #[test]
    fn one_message_takes_latency_and_its_bytes() {
        assert_eq!(ports().schedule(2 * MS, 0, 1, LinkKind::Fast, 10), 4 * MS);
        assert_eq!(ports().schedule(2 * MS, 0, 2, LinkKind::Slow, 10), 17 * MS);
        assert_eq!(ports().schedule(2 * MS, 0, 0, LinkKind::Local, 10), 2 * MS);
        assert_eq!(ports().schedule(2 * MS, 0, 1, LinkKind::Fast, 0), 3 * MS);
    }

    #[test]
    fn a_send_port_passes_messages_in_order() {
        let mut p = ports();
        assert_eq!(p.schedule(Duration::ZERO, 0, 2, LinkKind::Slow, 10), 15 * MS);
        assert_eq!(p.schedule(Duration::ZERO, 0, 3, LinkKind::Slow, 10), 25 * MS);
        // The fast port is another one.
        assert_eq!(p.schedule(Duration::ZERO, 0, 1, LinkKind::Fast, 10), 2 * MS);
    }

    #[test]
    fn a_receive_port_takes_one_message_at_a_time() {
        let mut p = ports();
        assert_eq!(p.schedule(Duration::ZERO, 0, 2, LinkKind::Slow, 10), 15 * MS);
        assert_eq!(p.schedule(Duration::ZERO, 1, 2, LinkKind::Slow, 10), 25 * MS);
        assert_eq!(p.schedule(100 * MS, 1, 2, LinkKind::Slow, 10), 115 * MS);
    }

    #[test]
    fn a_link_without_limit_costs_its_latency() {
        let mut p = Ports::new(LinkModel { fast: Link::INSTANT, slow: Link::INSTANT }, 2);
        assert_eq!(p.schedule(MS, 0, 1, LinkKind::Slow, u64::MAX), MS);
    }
}
