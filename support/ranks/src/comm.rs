//! The handle with which one rank talks to the others of its group.

use std::any::type_name;
use std::sync::Arc;

use bytemuck::Pod;

use crate::clock::Waits;
use crate::error::{Error, Result};
use crate::link::{Blocked, LinkKind, Traffic};
use crate::lock::Actor;
use crate::state::Key;
use crate::threads::WorldConfig;
use crate::transport::{Envelope, Payload, Tag};
use crate::world::World;

/// One rank's view of a group of ranks.
///
/// Messages are matched by group, source and tag, and keep their order among equals. A `Comm` belongs to one rank; it may move to
/// another thread, and several threads of a rank may use groups of their own, but then [`WorldConfig::compute_slots`] no
/// longer counts exactly. Every operation but [`send`](Comm::send) may wait, and none waits for ever for a rank that has failed or ended.
#[derive(Clone)]
pub struct Comm {
    world: Arc<World>,
    actor: Arc<Actor>,
    group: u64,
    /// World ranks of the members.
    ranks: Arc<[usize]>,
    me: usize,
}

impl std::fmt::Debug for Comm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Comm(rank {} of {}, world rank {})", self.me, self.size(), self.world_rank())
    }
}

impl Comm {
    pub(crate) fn world(world: Arc<World>, rank: usize) -> Self {
        let ranks = (0..world.size()).collect();
        let actor = world.actor(rank);
        Comm { world, actor, group: 0, ranks, me: rank }
    }

    /// The same view of the group for another actor of this rank.
    pub(crate) fn with_actor(&self, actor: Arc<Actor>) -> Self {
        Comm { actor, ..self.clone() }
    }

    pub(crate) fn the_world(&self) -> &World {
        &self.world
    }

    pub(crate) fn is_of_world(&self, other: &Comm) -> bool {
        Arc::ptr_eq(&self.world, &other.world)
    }

    /// Whether both belong to the same rank of the same world, be it to different actors or groups of it.
    pub(crate) fn is_of_rank(&self, other: &Comm) -> bool {
        self.is_of_world(other) && self.actor.rank == other.actor.rank
    }

    pub(crate) fn actor(&self) -> &Actor {
        &self.actor
    }

    /// A world of one rank on the calling thread.
    pub fn solo() -> Self {
        Comm::world(Arc::new(World::new(&WorldConfig::new(1))), 0)
    }

    /// This rank's number in the group.
    pub fn rank(&self) -> usize {
        self.me
    }

    /// Number of ranks in the group.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// This rank's number in the whole world.
    pub fn world_rank(&self) -> usize {
        self.ranks[self.me]
    }

    /// World ranks of the members of the group, in order.
    pub fn world_ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// The node this rank is on.
    pub fn node(&self) -> usize {
        self.world.node(self.world_rank())
    }

    /// The node that a rank of the group is on.
    ///
    /// # Errors
    /// When the group has no such rank.
    pub fn node_of(&self, rank: usize) -> Result<usize> {
        Ok(self.world.node(self.member("rank", rank)?))
    }

    /// Ranks per node in the world.
    pub fn ranks_per_node(&self) -> usize {
        self.world.ranks_per_node
    }

    /// What kind of link joins this rank to a rank of the group.
    ///
    /// # Errors
    /// When the group has no such rank.
    pub fn link_kind(&self, rank: usize) -> Result<LinkKind> {
        Ok(self.world.link_kind(self.world_rank(), self.member("rank", rank)?))
    }

    /// A group of some ranks of this one, numbered in the order of `ranks`. Every member calls it with the same list; nothing is
    /// sent. Groups with different `id`s do not see each other's messages; asking twice gives the same group.
    ///
    /// # Errors
    /// When a rank is out of range or listed twice, or this rank is not listed.
    pub fn subgroup(&self, ranks: &[usize], id: u64) -> Result<Comm> {
        let mut members = Vec::with_capacity(ranks.len());
        for &rank in ranks {
            let member = self.member("subgroup", rank)?;
            if members.contains(&member) {
                return Err(shape("subgroup", "distinct ranks", format!("rank {rank} twice")));
            }
            members.push(member);
        }
        let me = ranks.iter().position(|&rank| rank == self.me);
        let me = me.ok_or_else(|| shape("subgroup", format!("a list with rank {}", self.me), format!("{ranks:?}")))?;
        let group = self.world.group(self.group, &members, id)?;
        Ok(Comm { world: Arc::clone(&self.world), actor: Arc::clone(&self.actor), group, ranks: members.into(), me })
    }

    /// Says what this rank is doing, for the message of a failure; an empty text takes the label away.
    pub fn set_label(&self, label: impl Into<String>) {
        let label = label.into();
        self.world.set_label(self.world_rank(), (!label.is_empty()).then_some(label));
    }

    /// Asks whether the world still runs, so that a long computation can end when another rank has failed.
    ///
    /// # Errors
    /// [`Error::Aborted`] with the other rank's message.
    pub fn check(&self) -> Result<()> {
        self.world.check(&self.actor)
    }

    /// Runs `wait`, which blocks on something other than a message, without occupying a compute slot. Under the virtual clock it takes no
    /// time, and the other ranks wait for it as they wait for a rank that computes: it must not depend on what they do.
    ///
    /// # Errors
    /// When the world has failed meanwhile.
    pub fn blocking<R>(&self, wait: impl FnOnce() -> R) -> Result<R> {
        self.world.without_slot(&self.actor, wait)
    }

    /// What this rank has sent so far, in all of its groups.
    pub fn traffic(&self) -> Traffic {
        self.world.traffic(&self.actor)
    }

    /// How long this rank has been blocked so far, in all of its groups.
    pub fn blocked(&self) -> Blocked {
        self.world.blocked(&self.actor)
    }

    /// How long this actor (the rank's own thread or a lane) has waited for messages and tasks so far, in all of its groups.
    pub fn waits(&self) -> Waits {
        self.world.lock().actors[self.actor.id].waited
    }

    /// What all actors of this rank, its lanes included, have waited so far.
    pub fn rank_waits(&self) -> Waits {
        self.world.look(&self.actor).waited(self.world_rank())
    }

    // ---- clock

    /// Whether the world's clock is the virtual one.
    pub fn is_virtual(&self) -> bool {
        self.world.is_virtual()
    }

    /// Seconds since the world began, on its clock; under the virtual clock, this actor's own time.
    pub fn now(&self) -> f64 {
        self.world.now(&self.world.lock(), &self.actor)
    }

    /// Lets `seconds` of work pass: under the virtual clock this actor's time moves, under the wall clock nothing happens.
    ///
    /// # Errors
    /// When `seconds` is negative or not finite, or the world has failed.
    pub fn advance(&self, seconds: f64) -> Result<()> {
        self.world.advance(&self.actor, seconds)
    }

    /// Counts the calls of this rank for this group, from 0. Ranks that start their exchanges in the same order get the same numbers, so
    /// that tags made of them keep several exchanges in flight apart.
    pub fn next_sequence(&self) -> u64 {
        self.world.next_sequence(&self.actor, self.group)
    }

    /// Adds to the count of rows sent over one kind of link.
    pub fn count_rows(&self, kind: LinkKind, rows: u64) {
        self.world.count_rows(self.world_rank(), kind, rows);
    }

    fn member(&self, what: &'static str, rank: usize) -> Result<usize> {
        let found = self.ranks.get(rank).copied();
        found.ok_or_else(|| shape(what, format!("a rank below {}", self.size()), rank.to_string()))
    }

    // ---- point to point

    /// Sends `data` to rank `dst` of the group without waiting. The vector itself is handed over. A rank may send to itself.
    ///
    /// # Errors
    /// When the group has no such rank, or the world has failed.
    pub fn send<T: Pod + Send>(&self, dst: usize, tag: u64, data: Vec<T>) -> Result<()> {
        self.post(dst, Tag::User(tag), "send", data, 0)
    }

    /// [`send`](Comm::send) of `rows` rows, which the counters of [`Comm::traffic`] show.
    ///
    /// # Errors
    /// As [`send`](Comm::send).
    pub fn send_rows<T: Pod + Send>(&self, dst: usize, tag: u64, data: Vec<T>, rows: usize) -> Result<()> {
        self.post(dst, Tag::User(tag), "send", data, rows as u64)
    }

    /// Waits for the next message from rank `src` of the group with this tag.
    ///
    /// # Errors
    /// When the group has no such rank, the message holds another type, `src` has ended without sending one, nobody can send any more,
    /// or the world has failed.
    pub fn recv<T: Pod + Send>(&self, src: usize, tag: u64) -> Result<Vec<T>> {
        self.take(src, Tag::User(tag), "recv")
    }

    /// Takes the next message from rank `src` with this tag if it has arrived. It does not give the compute slot away. Asking takes no
    /// time: under the virtual clock a loop that only asks never ends; [`wait_any`](Comm::wait_any) waits.
    ///
    /// # Errors
    /// As [`recv`](Comm::recv).
    pub fn try_recv<T: Pod + Send>(&self, src: usize, tag: u64) -> Result<Option<Vec<T>>> {
        let key = self.key("source", src, Tag::User(tag))?;
        match self.world.try_take(&self.actor, key, "try_recv")? {
            None => Ok(None),
            Some(envelope) => self.open::<T, _>(envelope, "try_recv", Payload::into_vec).map(Some),
        }
    }

    /// Waits until a message from one of these ranks, each with its tag, has arrived, and returns the place in the list of the one that
    /// arrived first. It stays in the mailbox.
    ///
    /// # Errors
    /// When the list is empty, the group has no such rank, all of the ranks have ended without sending, nobody can send any more, or
    /// the world has failed.
    pub fn wait_any(&self, list: &[(usize, u64)]) -> Result<usize> {
        const OPERATION: &str = "wait_any";
        if list.is_empty() {
            return Err(self.fail(OPERATION, shape(OPERATION, "a list of ranks and tags", "an empty one")));
        }
        let keys: Result<Vec<Key>> = list.iter().map(|&(src, tag)| self.key("source", src, Tag::User(tag))).collect();
        self.world.wait_any(&self.actor, &keys?, OPERATION)
    }

    pub(crate) fn key(&self, what: &'static str, src: usize, tag: Tag) -> Result<Key> {
        Ok(Key { group: self.group, src: self.member(what, src)?, tag })
    }

    fn post<T: Pod + Send>(&self, dst: usize, tag: Tag, operation: &'static str, data: Vec<T>, rows: u64) -> Result<()> {
        let dst = self.member("destination", dst)?;
        let envelope = Envelope::new::<T>(self.group, self.world_rank(), tag, operation, Payload::new(data));
        self.world.post(&self.actor, dst, operation, envelope, rows)
    }

    fn take<T: Pod + Send>(&self, src: usize, tag: Tag, operation: &'static str) -> Result<Vec<T>> {
        self.open::<T, _>(self.take_envelope(src, tag, operation)?, operation, Payload::into_vec)
    }

    fn take_envelope(&self, src: usize, tag: Tag, operation: &'static str) -> Result<Envelope> {
        let key = self.key("source", src, tag)?;
        self.world.take(&self.actor, key, operation)
    }

    /// Takes the elements `T` out of a message.
    fn open<T: Pod, P>(
        &self,
        envelope: Envelope,
        operation: &'static str,
        payload: impl FnOnce(Payload) -> Option<P>,
    ) -> Result<P> {
        let rank = self.world_rank();
        let Envelope { src, tag, operation: other_operation, type_name: got, .. } = envelope;
        let expected = type_name::<T>();
        let error = if tag == Tag::Collective && other_operation != operation {
            Error::OperationMismatch { rank, operation, other: src, other_operation: other_operation.into_owned() }
        } else if got != expected {
            Error::TypeMismatch { rank, source_rank: src, expected, got: got.into_owned() }
        } else {
            match payload(envelope.payload) {
                Some(payload) => return Ok(payload),
                None => Error::TypeMismatch { rank, source_rank: src, expected, got: "bytes that do not hold them".to_string() },
            }
        };
        Err(self.fail(operation, error))
    }

    // ---- collectives: every rank of the group calls the same ones in the same order

    /// Ranks of the group other than this one, the next one first.
    fn others(&self) -> impl Iterator<Item = usize> {
        let (me, size) = (self.me, self.size());
        (1..size).map(move |step| (me + step) % size)
    }

    /// Sends `data[r]` to rank r and returns what each rank sent here, in the order of the ranks. Lengths are free, zero included.
    ///
    /// # Errors
    /// When `data` does not hold one vector per rank, ranks disagree on operation or type, or the world has failed.
    pub fn all_to_all_v<T: Pod + Send>(&self, data: Vec<Vec<T>>) -> Result<Vec<Vec<T>>> {
        const OPERATION: &str = "all_to_all_v";
        if data.len() != self.size() {
            let expected = format!("one vector for each of {} ranks", self.size());
            return Err(self.fail(OPERATION, shape("all_to_all_v", expected, data.len().to_string())));
        }
        let mut data = data;
        for dst in self.others() {
            self.post(dst, Tag::Collective, OPERATION, std::mem::take(&mut data[dst]), 0)?;
        }
        for src in self.others() {
            data[src] = self.take(src, Tag::Collective, OPERATION)?;
        }
        Ok(data)
    }

    /// Sends `data` to every rank and returns what each rank sent, in the order of the ranks.
    ///
    /// # Errors
    /// When ranks disagree on operation or type, or the world has failed.
    pub fn all_gather_v<T: Pod + Send + Sync>(&self, data: &[T]) -> Result<Vec<Vec<T>>> {
        const OPERATION: &str = "all_gather_v";
        let mut gathered = vec![Vec::new(); self.size()];
        for dst in self.others() {
            self.post(dst, Tag::Collective, OPERATION, data.to_vec(), 0)?;
        }
        gathered[self.me] = data.to_vec();
        for src in self.others() {
            gathered[src] = self.take(src, Tag::Collective, OPERATION)?;
        }
        Ok(gathered)
    }

    /// Returns on every rank what rank `root` passed; what the others pass is dropped.
    ///
    /// # Errors
    /// When the group has no such rank, ranks disagree on operation or type, or the world has failed.
    pub fn broadcast<T: Pod + Send>(&self, root: usize, data: Vec<T>) -> Result<Vec<T>> {
        const OPERATION: &str = "broadcast";
        self.member("root", root)?;
        if self.me != root {
            return self.take(root, Tag::Collective, OPERATION);
        }
        for dst in self.others() {
            self.post(dst, Tag::Collective, OPERATION, data.clone(), 0)?;
        }
        Ok(data)
    }

    /// Waits until every rank of the group has come here.
    ///
    /// # Errors
    /// When ranks disagree on the operation, or the world has failed.
    pub fn barrier(&self) -> Result<()> {
        const OPERATION: &str = "barrier";
        let size = self.size();
        // After round i a rank knows of the 2^(i+1) ranks before it.
        let mut distance = 1;
        while distance < size {
            self.post((self.me + distance) % size, Tag::Collective, OPERATION, Vec::<u8>::new(), 0)?;
            self.take::<u8>((self.me + size - distance) % size, Tag::Collective, OPERATION)?;
            distance *= 2;
        }
        Ok(())
    }

    /// Combines the ranks' vectors element by element, `combine(combine(x0, x1), x2)` and so on in the order of the ranks, and leaves
    /// the result on every rank. The order does not depend on timing, on the length, or on which rank asks: all get the same bits.
    ///
    /// # Errors
    /// When lengths differ, ranks disagree on operation or type, or the world has failed.
    pub fn all_reduce<T: Pod + Send + Sync>(&self, data: &mut [T], combine: impl Fn(T, T) -> T) -> Result<()> {
        self.all_reduce_named("all_reduce", data, combine)
    }

    /// [`all_reduce`](Comm::all_reduce) by addition: ((x0 + x1) + x2) + ...
    ///
    /// # Errors
    /// As [`all_reduce`](Comm::all_reduce).
    pub fn all_reduce_sum<T: Sum>(&self, data: &mut [T]) -> Result<()> {
        self.all_reduce_named("all_reduce_sum", data, T::add)
    }

    fn all_reduce_named<T: Pod + Send + Sync>(
        &self,
        operation: &'static str,
        data: &mut [T],
        combine: impl Fn(T, T) -> T,
    ) -> Result<()> {
        let (size, len) = (self.size(), data.len());
        if size == 1 {
            return Ok(());
        }
        // Rank r reduces part r, and everybody gets it from there. A rank with another length would cut elsewhere, so each message
        // carries its sender's.
        let cut = |rank: usize| (len as u128 * rank as u128 / size as u128) as usize;
        for dst in self.others() {
            let payload = Payload::new(data[cut(dst)..cut(dst + 1)].to_vec());
            let envelope = Envelope::new::<T>(self.group, self.world_rank(), Tag::Collective, operation, payload);
            let dst = self.member("destination", dst)?;
            self.world.post(&self.actor, dst, operation, Envelope { extent: len as u64, ..envelope }, 0)?;
        }
        let mine = cut(self.me)..cut(self.me + 1);
        let mut parts = vec![Vec::new(); size];
        for src in self.others() {
            let envelope = self.take_envelope(src, Tag::Collective, operation)?;
            let their_len = envelope.extent;
            let part = self.open::<T, _>(envelope, operation, Payload::into_vec::<T>)?;
            if their_len != len as u64 {
                let expected = format!("{len} elements, as on rank {}", self.world_rank());
                let got = format!("{their_len} on rank {}", self.ranks[src]);
                return Err(self.fail(operation, shape(operation, expected, got)));
            }
            parts[src] = part;
        }
        // The sum grows in the first rank's copy, or in place where that is this rank.
        let mut total = std::mem::take(&mut parts[0]);
        if self.me == 0 {
            total = data[mine.clone()].to_vec();
        }
        for (rank, part) in parts.iter().enumerate().skip(1) {
            let part = if rank == self.me { &data[mine.clone()] } else { part.as_slice() };
            for (sum, &x) in total.iter_mut().zip(part) {
                *sum = combine(*sum, x);
            }
        }
        let total = Arc::new(total);
        for dst in self.others() {
            let payload = Payload::shared(Arc::clone(&total));
            let envelope = Envelope::new::<T>(self.group, self.world_rank(), Tag::Collective, operation, payload);
            self.world.post(&self.actor, self.member("destination", dst)?, operation, envelope, 0)?;
        }
        data[mine].copy_from_slice(&total);
        for src in self.others() {
            let envelope = self.take_envelope(src, Tag::Collective, operation)?;
            let total = self.open::<T, _>(envelope, operation, Payload::into_shared::<T>)?;
            let part = &mut data[cut(src)..cut(src + 1)];
            if total.len() != part.len() {
                let got = format!("{} on rank {}", total.len(), self.ranks[src]);
                return Err(self.fail(operation, shape(operation, format!("a part of {} elements", part.len()), got)));
            }
            part.copy_from_slice(&total);
        }
        Ok(())
    }

    /// Adds the ranks' vectors in the order of the ranks and returns this rank's part: `counts[r]` elements go to rank r, one part after
    /// the other. The bits are those of [`all_reduce_sum`](Comm::all_reduce_sum).
    ///
    /// # Errors
    /// When `counts` does not hold one count per rank or does not add up to the length, a rank sends another count, ranks disagree on
    /// operation or type, or the world has failed.
    pub fn reduce_scatter_sum<T: Sum>(&self, data: &[T], counts: &[usize]) -> Result<Vec<T>> {
        const OPERATION: &str = "reduce_scatter_sum";
        let total = counts.iter().try_fold(0usize, |sum, &count| sum.checked_add(count));
        if counts.len() != self.size() || total != Some(data.len()) {
            let expected = format!("{} counts that add up to {}", self.size(), data.len());
            return Err(self.fail(OPERATION, shape("reduce_scatter_sum counts", expected, format!("{counts:?}"))));
        }
        let mut starts = Vec::with_capacity(counts.len());
        let mut start = 0;
        for count in counts {
            starts.push(start);
            start += count;
        }
        let part = |rank: usize| &data[starts[rank]..starts[rank] + counts[rank]];
        for dst in self.others() {
            self.post(dst, Tag::Collective, OPERATION, part(dst).to_vec(), 0)?;
        }
        let mut parts = vec![Vec::new(); self.size()];
        for src in self.others() {
            let theirs: Vec<T> = self.take(src, Tag::Collective, OPERATION)?;
            if theirs.len() != counts[self.me] {
                let expected = format!("{} elements from rank {}", counts[self.me], self.ranks[src]);
                return Err(self.fail(OPERATION, shape(OPERATION, expected, theirs.len().to_string())));
            }
            parts[src] = theirs;
        }
        let mut sum = if self.me == 0 { part(0).to_vec() } else { std::mem::take(&mut parts[0]) };
        for (rank, theirs) in parts.iter().enumerate().skip(1) {
            let theirs = if rank == self.me { part(rank) } else { theirs.as_slice() };
            for (sum, &x) in sum.iter_mut().zip(theirs) {
                *sum = sum.add(x);
            }
        }
        Ok(sum)
    }

    fn fail(&self, operation: &'static str, error: Error) -> Error {
        self.world.set_failed_in(&self.actor, operation);
        error
    }
}

fn shape(what: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::Shape { what, expected: expected.into(), got: got.into() }
}

/// Numbers that [`Comm::all_reduce_sum`] adds: floating point rounds to nearest, integers wrap around.
pub trait Sum: Pod + Send + Sync {
    /// The sum of two.
    #[must_use]
    fn add(self, other: Self) -> Self;
}

macro_rules! sum {
    ($add:ident: $($t:ty),*) => {
        $(impl Sum for $t {
            #[inline]
            fn add(self, other: Self) -> Self {
                sum!($add, self, other)
            }
        })*
    };
    (float, $a:expr, $b:expr) => { $a + $b };
    (integer, $a:expr, $b:expr) => { $a.wrapping_add($b) };
}

sum!(float: f32, f64);
sum!(integer: u32, u64, i32, i64);
