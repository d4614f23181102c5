//! Links between ranks: which kind joins two ranks, what crossed it, and how long a message takes.

use std::time::Duration;

use crate::error::Error;

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

    /// Seconds that a message occupies a port; a bound keeps sums of times finite.
    fn occupancy(&self, bytes: u64) -> f64 {
        (bytes as f64 / self.bandwidth).min(1e15)
    }
}

/// The links of a world: fast ones inside a node of `ranks_per_node` ranks, slow ones between nodes.
///
/// Every rank has one send port and one receive port of each kind. A message of `b` bytes occupies the sender's port for
/// `b / bandwidth`, as soon as the port is free; `latency` after it began to leave, its head reaches the receiver's port, which it
/// occupies as soon as that is free and again for `b / bandwidth`; then it can be received. Messages pass a send port in the order in
/// which they were sent, and a receive port in the order in which their heads reach it (at equal times: by sender, then as
/// sent). A rank's messages to itself take no time.
///
/// As text, in an option: `slow=LATENCY,BANDWIDTH,fast=LATENCY,BANDWIDTH`, for example `slow=10us,50GB/s,fast=2us,160GB/s`. A latency is
/// a number with `s`, `ms`, `us` or `ns`; a bandwidth a number with `B/s`, `kB/s`, `MB/s` or `GB/s` (powers of 1000), or `inf`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkModel {
    /// Between ranks of one node.
    pub fast: Link,
    /// Between nodes.
    pub slow: Link,
}

impl LinkModel {
    fn link(&self, kind: LinkKind) -> Option<(usize, Link)> {
        match kind {
            LinkKind::Local => None,
            LinkKind::Fast => Some((0, self.fast)),
            LinkKind::Slow => Some((1, self.slow)),
        }
    }
}

impl std::fmt::Display for LinkModel {
    /// In the form that [`LinkModel::from_str`](std::str::FromStr) reads; reading it gives the same model.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "slow={},fast={}", self.slow, self.fast)
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanoseconds = self.latency.as_nanos();
        match [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)].iter().find(|(_, unit)| nanoseconds.is_multiple_of(*unit))
        {
            Some((name, unit)) => write!(f, "{}{name}", nanoseconds / unit)?,
            None => write!(f, "{nanoseconds}ns")?,
        }
        if self.bandwidth.is_infinite() {
            return write!(f, ",inf");
        }
        // The largest unit in which the number comes back as it was.
        let exact = |(_, unit): &(&str, f64)| self.bandwidth >= *unit && self.bandwidth / unit * unit == self.bandwidth;
        match BANDWIDTH_UNITS.iter().find(|unit| exact(unit)) {
            Some((name, unit)) => write!(f, ",{}{name}", self.bandwidth / unit),
            None => write!(f, ",{}B/s", self.bandwidth),
        }
    }
}

const BANDWIDTH_UNITS: [(&str, f64); 4] = [("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3), ("B/s", 1.0)];

/// Longest first where one ends in another.
const LATENCY_UNITS: [(&str, f64); 4] = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];

impl std::str::FromStr for LinkModel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse =
            |expected: &str, got: &str| Error::Config { what: "link", expected: expected.to_string(), got: format!("{got:?}") };
        let form = "slow=LATENCY,BANDWIDTH,fast=LATENCY,BANDWIDTH (such as slow=10us,50GB/s,fast=2us,160GB/s)";
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let [first_latency, first_bandwidth, second_latency, second_bandwidth] = parts[..] else {
            return Err(refuse(form, text));
        };
        let (mut fast, mut slow) = (None, None);
        for (latency, bandwidth) in [(first_latency, first_bandwidth), (second_latency, second_bandwidth)] {
            let Some((kind, latency)) = latency.split_once('=') else { return Err(refuse(form, text)) };
            let place = match kind.trim() {
                "fast" => &mut fast,
                "slow" => &mut slow,
                other => return Err(refuse("slow or fast", other)),
            };
            let link = Link { latency: parse_latency(latency.trim())?, bandwidth: parse_bandwidth(bandwidth)? };
            if place.replace(link).is_some() {
                return Err(refuse("slow and fast once each", text));
            }
        }
        match (fast, slow) {
            (Some(fast), Some(slow)) => Ok(LinkModel { fast, slow }),
            _ => Err(refuse("slow and fast once each", text)),
        }
    }
}

/// The number before one of the units, in the base unit.
fn parse_quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    units.iter().find_map(|(name, unit)| {
        let number: f64 = text.strip_suffix(name)?.trim_end().parse().ok()?;
        Some(number * unit)
    })
}

fn parse_latency(text: &str) -> Result<Duration, Error> {
    let refuse = || Error::Config {
        what: "link latency",
        expected: "a time that is not negative, with s, ms, us or ns, such as 10us".to_string(),
        got: format!("{text:?}"),
    };
    let seconds = parse_quantity(text, &LATENCY_UNITS).ok_or_else(refuse)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| refuse())
}

fn parse_bandwidth(text: &str) -> Result<f64, Error> {
    let refuse = || Error::Config {
        what: "link bandwidth",
        expected: "more than 0, with GB/s, MB/s, kB/s or B/s, such as 50GB/s, or inf".to_string(),
        got: format!("{text:?}"),
    };
    if text == "inf" {
        return Ok(f64::INFINITY);
    }
    let bandwidth = parse_quantity(text, &BANDWIDTH_UNITS).ok_or_else(refuse)?;
    if bandwidth > 0.0 && bandwidth.is_finite() { Ok(bandwidth) } else { Err(refuse()) }
}

/// When each port of each rank is free again, in seconds of the world's clock.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    model: LinkModel,
    send: [Vec<f64>; 2],
    receive: [Vec<f64>; 2],
}

impl Ports {
    /// Free ports for `ranks` ranks.
    pub fn new(model: LinkModel, ranks: usize) -> Self {
        let free = || [vec![0.0; ranks], vec![0.0; ranks]];
        Ports { model, send: free(), receive: free() }
    }

    /// Sends `bytes` from rank `src` at time `now`, and returns the time at which the head reaches the receive port.
    pub fn leave(&mut self, now: f64, src: usize, kind: LinkKind, bytes: u64) -> f64 {
        let Some((port, link)) = self.model.link(kind) else { return now };
        let leaves = now.max(self.send[port][src]);
        self.send[port][src] = leaves + link.occupancy(bytes);
        leaves + link.latency.as_secs_f64()
    }

    /// Lets a message whose head comes to the receive port of rank `dst` at time `head` in, and returns the time at which it has arrived.
    pub fn enter(&mut self, head: f64, dst: usize, kind: LinkKind, bytes: u64) -> f64 {
        let Some((port, link)) = self.model.link(kind) else { return head };
        let arrived = head.max(self.receive[port][dst]) + link.occupancy(bytes);
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

    fn ports() -> Ports {
        // 1 byte a second between nodes, 10 inside.
        let second = Duration::from_secs(1);
        let fast = Link { latency: second, bandwidth: 10.0 };
        Ports::new(LinkModel { fast, slow: Link { latency: 5 * second, bandwidth: 1.0 } }, 4)
    }

    fn send(ports: &mut Ports, now: f64, src: usize, dst: usize, kind: LinkKind, bytes: u64) -> f64 {
        let head = ports.leave(now, src, kind, bytes);
        ports.enter(head, dst, kind, bytes)
    }

    #[test]
    fn one_message_takes_latency_and_its_bytes() {
        assert_eq!(send(&mut ports(), 2.0, 0, 1, LinkKind::Fast, 10), 4.0);
        assert_eq!(send(&mut ports(), 2.0, 0, 2, LinkKind::Slow, 10), 17.0);
        assert_eq!(send(&mut ports(), 2.0, 0, 0, LinkKind::Local, 10), 2.0);
        assert_eq!(send(&mut ports(), 2.0, 0, 1, LinkKind::Fast, 0), 3.0);
    }

    #[test]
    fn a_send_port_passes_messages_in_order() {
        let mut p = ports();
        assert_eq!(send(&mut p, 0.0, 0, 2, LinkKind::Slow, 10), 15.0);
        assert_eq!(send(&mut p, 0.0, 0, 3, LinkKind::Slow, 10), 25.0);
        // The fast port is another one.
        assert_eq!(send(&mut p, 0.0, 0, 1, LinkKind::Fast, 10), 2.0);
    }

    #[test]
    fn a_receive_port_takes_one_message_at_a_time() {
        let mut p = ports();
        assert_eq!(send(&mut p, 0.0, 0, 2, LinkKind::Slow, 10), 15.0);
        assert_eq!(send(&mut p, 0.0, 1, 2, LinkKind::Slow, 10), 25.0);
        assert_eq!(send(&mut p, 100.0, 1, 2, LinkKind::Slow, 10), 115.0);
    }

    #[test]
    fn a_link_without_limit_costs_its_latency() {
        let mut p = Ports::new(LinkModel { fast: Link::INSTANT, slow: Link::INSTANT }, 2);
        assert_eq!(send(&mut p, 1.0, 0, 1, LinkKind::Slow, u64::MAX), 1.0);
    }

    #[test]
    fn a_model_is_read_from_text() {
        let link = |latency, bandwidth| Link { latency, bandwidth };
        let want = LinkModel { slow: link(Duration::from_micros(10), 50e9), fast: link(Duration::from_nanos(1500), 1.6e11) };
        assert_eq!("slow=10us,50GB/s,fast=1.5us,160GB/s".parse(), Ok(want));
        assert_eq!(" fast = 1500ns , 160000 MB/s, slow=0.00001 s,5e10B/s".parse(), Ok(want));
        assert_eq!(want.to_string(), "slow=10us,50GB/s,fast=1500ns,160GB/s");
        let want = LinkModel { slow: link(Duration::from_millis(2), 2500.0), fast: Link::INSTANT };
        assert_eq!("slow=2ms,2.5kB/s,fast=0s,inf".parse(), Ok(want));
        assert_eq!(want.to_string(), "slow=2ms,2.5kB/s,fast=0s,inf");
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for bandwidth in [1e-3, 0.1, 1.0, 3.0, 999.0, 1e3 / 3.0, 123_456_789.012_345, 1e9 / 7.0, 5e10, 1e300, f64::INFINITY] {
            for nanoseconds in [0, 1, 999, 1_000, 1_001, 10_000_000, 3_000_000_000, 3_000_000_001, 86_400_123_456_789] {
                let link = Link { latency: Duration::from_nanos(nanoseconds), bandwidth };
                let model = LinkModel { fast: link, slow: Link { bandwidth: 1.0, ..link } };
                assert_eq!(model.to_string().parse(), Ok(model), "{model}");
            }
        }
    }

    #[test]
    fn a_text_without_sense_says_what_is_wrong() {
        for (text, what) in [
            ("", "slow=LATENCY,BANDWIDTH,fast=LATENCY,BANDWIDTH"),
            ("slow=10us,50GB/s", "slow=LATENCY,BANDWIDTH,fast=LATENCY,BANDWIDTH"),
            ("10us,50GB/s,2us,160GB/s", "slow=LATENCY,BANDWIDTH,fast=LATENCY,BANDWIDTH"),
            ("slow=1us,1GB/s,slow=1us,1GB/s", "once each"),
            ("slow=1us,1GB/s,medium=1us,1GB/s", "expected slow or fast, got \"medium\""),
            ("slow=1,1GB/s,fast=1us,1GB/s", "link latency: expected a time that is not negative, with s, ms, us or ns"),
            ("slow=-1us,1GB/s,fast=1us,1GB/s", "got \"-1us\""),
            ("slow=nans,1GB/s,fast=1us,1GB/s", "got \"nans\""),
            ("slow=1e99s,1GB/s,fast=1us,1GB/s", "got \"1e99s\""),
            ("slow=1us,0GB/s,fast=1us,1GB/s", "link bandwidth: expected more than 0"),
            ("slow=1us,NaNGB/s,fast=1us,1GB/s", "got \"NaNGB/s\""),
            ("slow=1us,-1kB/s,fast=1us,1GB/s", "got \"-1kB/s\""),
            ("slow=1us,infGB/s,fast=1us,1GB/s", "got \"infGB/s\""),
            ("slow=1us,1GB,fast=1us,1GB/s", "got \"1GB\""),
        ] {
            let error = text.parse::<LinkModel>().unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
