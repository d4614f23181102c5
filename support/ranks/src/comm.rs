//! The handle with which one rank talks to the others of its group.

use std::any::type_name;
use std::sync::Arc;

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::link::{Blocked, LinkKind, Traffic};
use crate::threads::WorldConfig;
use crate::world::{Key, Message, Tag, World};

/// One rank's view of a group of ranks.
///
/// Messages are matched by group, source and tag, and keep their order among equals. A `Comm` belongs to one rank; it may move to
/// another thread, and several threads of a rank may use groups of their own, but then [`WorldConfig::compute_slots`] no
/// longer counts exactly. Every operation but [`send`](Comm::send) may wait, and none waits for ever for a rank that has failed or ended.
#[derive(Clone)]
pub struct Comm {
    world: Arc<World>,
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
        Comm { world, group: 0, ranks, me: rank }
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
        let group = self.world.group(self.group, &members, id);
        Ok(Comm { world: Arc::clone(&self.world), group, ranks: members.into(), me })
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
        self.world.check()
    }

    /// Runs `wait`, which blocks on something other than a message, without occupying a compute slot.
    ///
    /// # Errors
    /// When the world has failed meanwhile.
    pub fn blocking<R>(&self, wait: impl FnOnce() -> R) -> Result<R> {
        self.world.without_slot(self.world_rank(), wait)
    }

    /// What this rank has sent so far, in all of its groups.
    pub fn traffic(&self) -> Traffic {
        self.world.traffic(self.world_rank())
    }

    /// How long this rank has been blocked so far, in all of its groups.
    pub fn blocked(&self) -> Blocked {
        self.world.blocked(self.world_rank())
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

    /// Takes the next message from rank `src` with this tag if it has arrived. It does not give the compute slot away.
    ///
    /// # Errors
    /// As [`recv`](Comm::recv).
    pub fn try_recv<T: Pod + Send>(&self, src: usize, tag: u64) -> Result<Option<Vec<T>>> {
        let key = Key { group: self.group, src: self.member("source", src)?, tag: Tag::User(tag) };
        match self.world.try_take(self.world_rank(), key, "try_recv")? {
            None => Ok(None),
            Some(message) => self.open(key, message, "try_recv").map(Some),
        }
    }

    fn post<T: Send + 'static>(&self, dst: usize, tag: Tag, operation: &'static str, data: Vec<T>, rows: u64) -> Result<()> {
        let bytes = size_of_val(data.as_slice()) as u64;
        self.post_as::<T, Vec<T>>(dst, tag, operation, data, bytes, rows)
    }

    /// Posts a payload of elements `T` held by `P`.
    fn post_as<T, P: Send + 'static>(
        &self,
        dst: usize,
        tag: Tag,
        operation: &'static str,
        payload: P,
        bytes: u64,
        rows: u64,
    ) -> Result<()> {
        let dst = self.member("destination", dst)?;
        let key = Key { group: self.group, src: self.world_rank(), tag };
        self.world.post(dst, key, operation, Box::new(payload), type_name::<T>(), bytes, rows)
    }

    fn take<T: Send + 'static>(&self, src: usize, tag: Tag, operation: &'static str) -> Result<Vec<T>> {
        self.take_as::<T, Vec<T>>(src, tag, operation)
    }

    fn take_as<T, P: 'static>(&self, src: usize, tag: Tag, operation: &'static str) -> Result<P> {
        let key = Key { group: self.group, src: self.member("source", src)?, tag };
        let message = self.world.take(self.world_rank(), key, operation)?;
        self.open_as::<T, P>(key, message, operation)
    }

    fn open<T: 'static>(&self, key: Key, message: Message, operation: &'static str) -> Result<Vec<T>> {
        self.open_as::<T, Vec<T>>(key, message, operation)
    }

    fn open_as<T, P: 'static>(&self, key: Key, message: Message, operation: &'static str) -> Result<P> {
        let rank = self.world_rank();
        let error = if key.tag == Tag::Collective && message.operation != operation {
            let other_operation = message.operation;
            Error::OperationMismatch { rank, operation, other: key.src, other_operation }
        } else {
            let (expected, got) = (type_name::<T>(), message.type_name);
            match message.payload.downcast::<P>() {
                Ok(payload) => return Ok(*payload),
                Err(_) => Error::TypeMismatch { rank, source_rank: key.src, expected, got },
            }
        };
        self.world.set_failed_in(rank, operation);
        Err(error)
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
            let part = (len, data[cut(dst)..cut(dst + 1)].to_vec());
            let bytes = size_of_val(part.1.as_slice()) as u64;
            self.post_as::<T, (usize, Vec<T>)>(dst, Tag::Collective, operation, part, bytes, 0)?;
        }
        let mine = cut(self.me)..cut(self.me + 1);
        let mut parts = vec![Vec::new(); size];
        for src in self.others() {
            let (their_len, part) = self.take_as::<T, (usize, Vec<T>)>(src, Tag::Collective, operation)?;
            if their_len != len {
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
        let bytes = size_of_val(total.as_slice()) as u64;
        for dst in self.others() {
            self.post_as::<T, Arc<Vec<T>>>(dst, Tag::Collective, operation, Arc::clone(&total), bytes, 0)?;
        }
        data[mine].copy_from_slice(&total);
        for src in self.others() {
            let total = self.take_as::<T, Arc<Vec<T>>>(src, Tag::Collective, operation)?;
            data[cut(src)..cut(src + 1)].copy_from_slice(&total);
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
        self.world.set_failed_in(self.world_rank(), operation);
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
