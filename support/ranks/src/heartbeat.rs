//! Tells a rank that has stopped from one that is slow: a thread of its own in every process sends a small datagram to every other
//! rank each period, whatever the rank computes, and notices whose datagrams have ceased.
//!
//! Datagrams go over UDP, not over the messages between ranks, so that neither a long computation nor a stopped peer that the
//! messages wait for holds them up. A lost datagram is one beat of many: the time-out is at least four periods. On one machine
//! they go over the loopback address; between machines to every address that the peer has, until the peer has been heard,
//! and from then on to where it was heard from.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How ranks in different processes watch each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Time between two signs of life.
    pub period: Duration,
    /// A rank that has given none for this long is taken to have stopped; at least four periods.
    pub timeout: Duration,
}

impl Default for Heartbeat {
    /// One a second; a minute.
    fn default() -> Self {
        Heartbeat { period: Duration::from_secs(1), timeout: Duration::from_secs(60) }
    }
}

impl Heartbeat {
    /// What is wrong with the values, if anything: field, expectation.
    pub(crate) fn problem(&self) -> Option<(&'static str, &'static str, Duration)> {
        if self.period < Duration::from_millis(1) {
            Some(("heartbeat period", "at least 1 ms", self.period))
        } else if self.period.checked_mul(4).is_none_or(|four| self.timeout < four) {
            Some(("heartbeat time-out", "at least four periods", self.timeout))
        } else {
            None
        }
    }
}

/// Where a rank can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Equal for ranks that share a loopback interface; empty when not known.
    host: String,
    port: u16,
    ips: Vec<IpAddr>,
}

impl Address {
    /// As text, to be sent to the other ranks.
    pub fn encode(&self) -> String {
        let ips: Vec<String> = self.ips.iter().map(IpAddr::to_string).collect();
        format!("{}|{}|{}", self.host, self.port, ips.join(","))
    }

    /// From the text of another rank.
    pub fn decode(text: &str) -> Option<Self> {
        let mut parts = text.split('|');
        let (host, port, ips) = (parts.next()?, parts.next()?, parts.next()?);
        let ips = ips.split(',').filter(|ip| !ip.is_empty()).map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
        Some(Address { host: host.to_owned(), port: port.parse().ok()?, ips })
    }

    /// The addresses to try from `own`.
    fn seen_from(&self, own: &Address) -> Vec<SocketAddr> {
        if !self.host.is_empty() && self.host == own.host {
            return vec![SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))];
        }
        self.ips.iter().map(|&ip| SocketAddr::from((ip, self.port))).collect()
    }
}

/// Opens this rank's socket.
pub(crate) fn open() -> Result<(UdpSocket, Address)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = socket.local_addr()?.port();
    Ok((socket, Address { host: host_identity(), port, ips: own_addresses() }))
}

/// The boot of the machine and the network namespace of the process: processes with the same see the same loopback interface.
fn host_identity() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let network = std::fs::read_link("/proc/self/ns/net");
    match (boot, network) {
        (Ok(boot), Ok(network)) => format!("{}-{}", boot.trim(), network.display()),
        _ => String::new(),
    }
}

/// IPv4 addresses of this machine. The routing table of Linux lists them; elsewhere it is the one that the default route leaves from.
fn own_addresses() -> Vec<IpAddr> {
    let mut found = std::fs::read_to_string("/proc/net/fib_trie").map_or_else(|_| Vec::new(), |text| local_addresses(&text));
    // Connecting a datagram socket sends nothing: it only chooses a route.
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    if let Ok(address) = routed
        && !found.contains(&address.ip())
    {
        found.push(address.ip());
    }
    found.retain(|ip| !ip.is_loopback() && !ip.is_unspecified());
    found
}

/// The addresses that /proc/net/fib_trie marks as the machine's own: a line `|-- ADDRESS` followed by `/32 host LOCAL`.
fn local_addresses(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
        } else if let (true, Some(address)) = (line == "/32 host LOCAL", last)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// What a rank says of itself in every beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Status {
    /// Whether everything in this rank waits for messages of other ranks, or it has ended.
    pub waits: bool,
    /// Messages handed to other ranks so far.
    pub sent: u64,
    /// Messages received from them.
    pub received: u64,
    /// Whether this rank has ended, and has nothing to say about those that wait. Not sent.
    pub ended: bool,
}

/// What the watch has noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Nothing has been heard from a rank for so long; `ever` says whether anything had been before.
    Silent { rank: usize, since: Duration, ever: bool },
    /// Another rank says so of a third.
    Reported { rank: usize, by: usize },
    /// All ranks have waited for messages for the given time, and none is under way.
    Stalled,
}

const MAGIC: u64 = u64::from_le_bytes(*b"v3beat01");
const BEAT: usize = 8 * 6;

/// One datagram. The number of the job keeps strangers out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beat {
    job: u64,
    from: usize,
    silent: Option<usize>,
    status: Status,
}

impl Beat {
    fn encode(&self) -> [u8; BEAT] {
        let silent = self.silent.map_or(0x7fff_ffff, |rank| rank as u64);
        let ranks = self.from as u64 | silent << 32 | u64::from(self.status.waits) << 63;
        let mut bytes = [0; BEAT];
        for (at, value) in [MAGIC, self.job, ranks, self.status.sent, self.status.received].into_iter().enumerate() {
            bytes[8 * at..8 * at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8], job: u64, ranks: usize) -> Option<Self> {
        let words = bytes.as_chunks::<8>().0;
        let [magic, its_job, who, sent, received, _] = *<&[[u8; 8]; 6]>::try_from(words).ok()?;
        let who = u64::from_le_bytes(who);
        if bytes.len() != BEAT || u64::from_le_bytes(magic) != MAGIC || u64::from_le_bytes(its_job) != job {
            return None;
        }
        let (from, silent) = ((who & 0xffff_ffff) as usize, (who >> 32 & 0x7fff_ffff) as usize);
        let status = Status {
            waits: who >> 63 == 1,
            sent: u64::from_le_bytes(sent),
            received: u64::from_le_bytes(received),
            ended: false,
        };
        (from < ranks).then_some(Beat { job, from, silent: (silent < ranks).then_some(silent), status })
    }
}

struct Peer {
    addresses: Vec<SocketAddr>,
    heard: Instant,
    ever: bool,
    status: Status,
}

/// The watching thread; it ends when this is dropped.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the watch needs to know.
pub(crate) struct Watched {
    pub me: usize,
    /// By rank, this one included.
    pub addresses: Vec<Address>,
    /// The same number in all ranks of one job.
    pub job: u64,
    pub heartbeat: Heartbeat,
    /// Standing still for so long is a stall.
    pub stall_after: Duration,
}

impl Watch {
    /// Starts the thread. `status` is asked at each beat; `notice` is called once, from the thread, with the first thing noticed; the
    /// beats go on after it.
    pub fn start(
        socket: UdpSocket,
        watched: Watched,
        status: impl Fn() -> Status + Send + 'static,
        notice: impl FnOnce(Notice) + Send + 'static,
    ) -> Result<Self> {
        if watched.me >= watched.addresses.len() {
            return Err(Error::new(ErrorKind::InvalidInput, "this rank is not among the ranks"));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let mut loop_ = Loop::new(&socket, watched);
            let mut notice = Some(notice);
            while !stopped.load(Ordering::Acquire) {
                if let Some(found) = loop_.turn(&status)
                    && let Some(notice) = notice.take()
                {
                    // The others are told before this thread does anything else.
                    loop_.beat(&status);
                    notice(found);
                }
            }
        })?;
        Ok(Watch { stop, thread: Some(thread) })
    }

    /// Stops the beats.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

struct Loop<'a> {
    socket: &'a UdpSocket,
    watched: Watched,
    peers: Vec<Peer>,
    next_beat: Instant,
    last_turn: Instant,
    silent: Option<usize>,
    /// Sums of the counters when something last moved, and when that was.
    still: (u64, u64, Instant),
}

impl<'a> Loop<'a> {
    fn new(socket: &'a UdpSocket, watched: Watched) -> Self {
        let now = Instant::now();
        let own = &watched.addresses[watched.me];
        let peer =
            |address: &Address| Peer { addresses: address.seen_from(own), heard: now, ever: false, status: Status::default() };
        let peers = watched.addresses.iter().map(peer).collect();
        Loop { socket, peers, next_beat: now, last_turn: now, silent: None, still: (0, 0, now), watched }
    }

    /// Receives until the next beat is due, sends it, and looks around.
    fn turn(&mut self, status: &impl Fn() -> Status) -> Option<Notice> {
        let now = Instant::now();
        // A thread that has not run for that long was stopped itself and has heard nobody meanwhile.
        if now - self.last_turn > self.watched.heartbeat.timeout / 2 {
            self.peers.iter_mut().for_each(|peer| peer.heard = now);
        }
        self.last_turn = now;
        if now >= self.next_beat {
            let own = self.beat(status);
            self.next_beat = now + self.watched.heartbeat.period;
            return self.silence(now).or_else(|| self.stall(now, own));
        }
        // Short enough that stopping does not take long.
        let wait = (self.next_beat - now).min(Duration::from_millis(100));
        let _ = self.socket.set_read_timeout(Some(wait.max(Duration::from_micros(100))));
        let mut buffer = [0; BEAT + 1];
        // What cannot be received is silence, and that is what is watched for.
        let (len, source) = self.socket.recv_from(&mut buffer).ok()?;
        let beat = Beat::decode(&buffer[..len], self.watched.job, self.peers.len())?;
        let peer = &mut self.peers[beat.from];
        (peer.heard, peer.ever, peer.status) = (Instant::now(), true, beat.status);
        peer.addresses = vec![source];
        let silent = beat.silent.filter(|&silent| silent != self.watched.me && self.silent.is_none())?;
        self.silent = Some(silent);
        Some(Notice::Reported { rank: silent, by: beat.from })
    }

    fn beat(&mut self, status: &impl Fn() -> Status) -> Status {
        let status = status();
        let beat = Beat { job: self.watched.job, from: self.watched.me, silent: self.silent, status }.encode();
        for (rank, peer) in self.peers.iter().enumerate() {
            if rank != self.watched.me {
                // An address that cannot be reached may be one of several; if it is the only one, the peer notices the silence.
                peer.addresses.iter().for_each(|address| drop(self.socket.send_to(&beat, address)));
            }
        }
        status
    }

    fn silence(&mut self, now: Instant) -> Option<Notice> {
        if self.silent.is_some() {
            return None;
        }
        let timeout = self.watched.heartbeat.timeout;
        let others = self.peers.iter().enumerate().filter(|(rank, _)| *rank != self.watched.me);
        let longest = others.max_by_key(|(_, peer)| now - peer.heard)?;
        let (rank, since, ever) = (longest.0, now - longest.1.heard, longest.1.ever);
        if since < timeout {
            return None;
        }
        self.silent = Some(rank);
        Some(Notice::Silent { rank, since, ever })
    }

    fn stall(&mut self, now: Instant, own: Status) -> Option<Notice> {
        let me = self.watched.me;
        self.peers[me].status = own;
        let all = || self.peers.iter().map(|peer| peer.status);
        let sum = |of: fn(&Status) -> u64| all().fold(0u64, |sum, status| sum.wrapping_add(of(&status)));
        let (sent, received) = (sum(|s| s.sent), sum(|s| s.received));
        if sent != received || !all().all(|status| status.waits) || (sent, received) != (self.still.0, self.still.1) {
            self.still = (sent, received, now);
            return None;
        }
        (!own.ended && now - self.still.2 >= self.watched.stall_after).then_some(Notice::Stalled)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn quick() -> Heartbeat {
        Heartbeat { period: 20 * MS, timeout: 1000 * MS }
    }

    /// Watches of `ranks` ranks, each with what it notices. The addresses are changed by `change` before the start.
    fn watches(
        ranks: usize,
        statuses: &[Status],
        stall_after: Duration,
        change: impl Fn(&mut Address),
    ) -> Vec<(Watch, Receiver<Notice>)> {
        let (sockets, mut addresses): (Vec<_>, Vec<_>) = (0..ranks).map(|_| open().unwrap()).unzip();
        addresses.iter_mut().for_each(change);
        let start = |(me, socket): (usize, UdpSocket)| {
            let (send, receive) = channel();
            let watched = Watched { me, addresses: addresses.clone(), job: 7, heartbeat: quick(), stall_after };
            let status = statuses[me];
            let watch = Watch::start(socket, watched, move || status, move |notice| send.send(notice).unwrap()).unwrap();
            (watch, receive)
        };
        sockets.into_iter().enumerate().map(start).collect()
    }

    #[test]
    fn the_living_are_not_reported_and_the_silent_one_is_by_all() {
        let mut all = watches(3, &[Status::default(); 3], Duration::from_secs(60), |_| ());
        std::thread::sleep(2200 * MS);
        assert!(all.iter().all(|(_, notices)| notices.try_recv().is_err()), "all three beat");
        let (gone, _) = all.remove(1);
        gone.stop();
        for (_, notices) in &all {
            let silent = match notices.recv_timeout(Duration::from_secs(10)).unwrap() {
                Notice::Silent { rank, since, ever } => {
                    assert!(ever && since >= quick().timeout && since < Duration::from_secs(8), "{since:?}");
                    rank
                }
                Notice::Reported { rank, by } => {
                    assert_ne!(by, 1);
                    rank
                }
                Notice::Stalled => panic!("nobody waits"),
            };
            assert_eq!(silent, 1);
        }
    }

    #[test]
    fn a_rank_is_found_at_the_one_of_its_addresses_that_works() {
        let all = watches(2, &[Status::default(); 2], Duration::from_secs(60), |address| {
            address.host.clear();
            // The first is a documentation network, where nobody answers.
            address.ips = vec![IpAddr::from([198, 51, 100, 77]), IpAddr::from([127, 0, 0, 2])];
        });
        std::thread::sleep(2200 * MS);
        assert!(all.iter().all(|(_, notices)| notices.try_recv().is_err()));
    }

    #[test]
    fn a_rank_without_a_working_address_was_never_heard() {
        let all = watches(2, &[Status::default(); 2], Duration::from_secs(60), |address| {
            address.host.clear();
            address.ips.clear();
        });
        let notice = all[0].1.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(notice, Notice::Silent { rank: 1, ever: false, .. }), "{notice:?}");
    }

    #[test]
    fn a_stall_is_everybody_waiting_and_nothing_under_way() {
        let waits = |sent, received| Status { waits: true, sent, received, ended: false };
        let stalled = watches(2, &[waits(3, 1), waits(0, 2)], 300 * MS, |_| ());
        for (_, notices) in &stalled {
            assert_eq!(notices.recv_timeout(Duration::from_secs(10)), Ok(Notice::Stalled));
        }
        let under_way = watches(2, &[waits(3, 1), waits(0, 1)], 300 * MS, |_| ());
        let one_computes = watches(2, &[waits(3, 1), Status { waits: false, ..waits(0, 2) }], 300 * MS, |_| ());
        let one_ended = watches(2, &[waits(3, 1), Status { ended: true, ..waits(0, 2) }], 300 * MS, |_| ());
        assert_eq!(one_ended[0].1.recv_timeout(Duration::from_secs(10)), Ok(Notice::Stalled));
        std::thread::sleep(900 * MS);
        for (_, notices) in under_way.iter().chain(&one_computes).chain(&one_ended) {
            assert!(notices.try_recv().is_err());
        }
    }

    #[test]
    fn beats_and_addresses_survive_their_encoding() {
        let status = Status { waits: true, sent: u64::MAX, received: 5, ended: false };
        for silent in [None, Some(0), Some(2)] {
            let beat = Beat { job: 9, from: 2, silent, status };
            assert_eq!(Beat::decode(&beat.encode(), 9, 3), Some(beat));
            assert_eq!(Beat::decode(&beat.encode(), 8, 3), None, "another job");
            assert_eq!(Beat::decode(&beat.encode(), 9, 2), None, "no such rank");
            assert_eq!(Beat::decode(&beat.encode()[1..], 9, 3), None);
        }
        let address =
            Address { host: "a-b".into(), port: 77, ips: vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])] };
        assert_eq!(Address::decode(&address.encode()), Some(address.clone()));
        let bare = Address { ips: Vec::new(), ..address };
        assert_eq!(Address::decode(&bare.encode()), Some(bare));
        assert_eq!(Address::decode("host|port|"), None);
    }

    #[test]
    fn own_addresses_are_read_from_the_routing_table() {
        let text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.0\n        /24 link UNICAST\n     |-- 10.1.0.7\n        \
                    /32 host LOCAL\n     |-- 10.1.0.255\n        /32 link BROADCAST\nLocal:\n     |-- 10.1.0.7\n        /32 host LOCAL\n";
        assert_eq!(local_addresses(text), [IpAddr::from([10, 1, 0, 7])]);
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        assert_eq!(Heartbeat::default().problem(), None);
        assert!(Heartbeat { period: Duration::ZERO, timeout: MS }.problem().is_some_and(|p| p.0 == "heartbeat period"));
        assert!(Heartbeat { period: MS, timeout: 3 * MS }.problem().is_some_and(|p| p.0 == "heartbeat time-out"));
        assert!(Heartbeat { period: Duration::MAX, timeout: Duration::MAX }.problem().is_some());
    }
}
