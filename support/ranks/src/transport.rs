//! The seam to ranks of other processes: what a message is outside its mailbox, and who carries it there.
//!
//! A world may hold some ranks in this process and reach the others over a [`Transport`]. [`World::process`] makes such a world; whatever
//! receives messages (a thread of its own) puts them into the mailboxes with [`World::deliver`], and tells of ranks that have ended or
//! failed with [`World::ended`] and [`World::fail`]. [`run_process`] runs the function of the rank that lives here.

use std::any::{Any, type_name};
use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::comm::Comm;
use crate::error::{Error, RanksError};
use crate::threads::run_rank;
pub use crate::world::World;

/// What tells messages of one group and source apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tag {
    /// The tag of [`Comm::send`].
    User(u64),
    /// A message of a collective.
    Collective,
}

/// A message on its way.
#[derive(Debug)]
pub struct Envelope {
    /// Number of the group: a hash of how it came about, the same in every process.
    pub group: u64,
    /// World rank of the sender.
    pub src: usize,
    /// Tells it from other messages of the same source and group.
    pub tag: Tag,
    /// The operation that sent it.
    pub operation: Cow<'static, str>,
    /// The type of its elements.
    pub type_name: Cow<'static, str>,
    /// A number that goes with the elements; the length of the whole vector in all-reduce, else 0.
    pub extent: u64,
    /// When it, or what it forwards, was first given to be sent: seconds of the sender's clock.
    pub origin: f64,
    /// Its elements.
    pub payload: Payload,
}

/// The elements of a message: a vector that is handed over as it is, readable as bytes.
pub struct Payload(Box<dyn Data>);

trait Data: Any + Send {
    fn bytes(&self) -> &[u8];
    fn align(&self) -> usize;
}

impl<T: Pod + Send> Data for Vec<T> {
    fn bytes(&self) -> &[u8] {
        bytes_of(self)
    }

    fn align(&self) -> usize {
        align_of::<T>()
    }
}

impl<T: Pod + Send + Sync> Data for Arc<Vec<T>> {
    fn bytes(&self) -> &[u8] {
        bytes_of(self)
    }

    fn align(&self) -> usize {
        align_of::<T>()
    }
}

/// Vectors of elements without size have no bytes; bytemuck would refuse to cast them.
fn bytes_of<T: Pod>(data: &[T]) -> &[u8] {
    if size_of::<T>() == 0 { &[] } else { bytemuck::cast_slice(data) }
}

/// Bytes that came from elsewhere, aligned for the elements that they are.
enum Received {
    A1(Vec<u8>),
    A2(Vec<u16>),
    A4(Vec<u32>),
    A8(Vec<u64>),
    A16(Vec<u128>),
}

impl Data for Received {
    fn bytes(&self) -> &[u8] {
        match self {
            Received::A1(data) => data,
            Received::A2(data) => bytes_of(data),
            Received::A4(data) => bytes_of(data),
            Received::A8(data) => bytes_of(data),
            Received::A16(data) => bytes_of(data),
        }
    }

    fn align(&self) -> usize {
        match self {
            Received::A1(_) => 1,
            Received::A2(_) => 2,
            Received::A4(_) => 4,
            Received::A8(_) => 8,
            Received::A16(_) => 16,
        }
    }
}

impl Received {
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Received::A1(data) => data,
            Received::A2(data) => bytemuck::cast_slice_mut(data),
            Received::A4(data) => bytemuck::cast_slice_mut(data),
            Received::A8(data) => bytemuck::cast_slice_mut(data),
            Received::A16(data) => bytemuck::cast_slice_mut(data),
        }
    }

    /// The same memory as a vector of `T`, where size and alignment allow it.
    fn into_vec<T: Pod>(self) -> Option<Vec<T>> {
        match self {
            Received::A1(data) => bytemuck::try_cast_vec(data).ok(),
            Received::A2(data) => bytemuck::try_cast_vec(data).ok(),
            Received::A4(data) => bytemuck::try_cast_vec(data).ok(),
            Received::A8(data) => bytemuck::try_cast_vec(data).ok(),
            Received::A16(data) => bytemuck::try_cast_vec(data).ok(),
        }
    }
}

impl Payload {
    /// A vector, handed over.
    pub fn new<T: Pod + Send>(data: Vec<T>) -> Self {
        Payload(Box::new(data))
    }

    pub(crate) fn shared<T: Pod + Send + Sync>(data: Arc<Vec<T>>) -> Self {
        Payload(Box::new(data))
    }

    /// Memory to receive `bytes` bytes of elements with this alignment; all zero.
    ///
    /// # Errors
    /// When `align` is not 1, 2, 4, 8 or 16, `bytes` is no multiple of it, or there is not so much memory.
    pub fn receive(align: usize, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self, Error> {
        fn zeros<T: Zeroable + Clone>(bytes: usize) -> Option<Vec<T>> {
            let len = bytes / size_of::<T>();
            let mut data = Vec::new();
            data.try_reserve_exact(len).ok()?;
            data.resize(len, T::zeroed());
            Some(data)
        }
        let refuse = |expected: &str| Error::Shape {
            what: "received message",
            expected: expected.to_string(),
            got: format!("{bytes} bytes of elements aligned to {align}"),
        };
        if !matches!(align, 1 | 2 | 4 | 8 | 16) || !bytes.is_multiple_of(align) {
            return Err(refuse("an alignment of 1, 2, 4, 8 or 16 that divides the length"));
        }
        let received = match align {
            1 => zeros(bytes).map(Received::A1),
            2 => zeros(bytes).map(Received::A2),
            4 => zeros(bytes).map(Received::A4),
            8 => zeros(bytes).map(Received::A8),
            _ => zeros(bytes).map(Received::A16),
        };
        let mut received = received.ok_or_else(|| refuse("no more than there is memory"))?;
        fill(received.bytes_mut());
        Ok(Payload(Box::new(received)))
    }

    /// The elements as bytes, where they lie.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// Alignment of the elements.
    pub fn align(&self) -> usize {
        self.0.align()
    }

    /// The vector, if its elements are `T`: what was handed over, or the memory it was received in.
    pub(crate) fn into_vec<T: Pod + Send>(self) -> Option<Vec<T>> {
        let any: Box<dyn Any> = self.0;
        match any.downcast::<Vec<T>>() {
            Ok(data) => Some(*data),
            Err(any) => any.downcast::<Received>().ok()?.into_vec(),
        }
    }

    /// As [`into_vec`](Payload::into_vec), for a vector that may be shared with other receivers.
    pub(crate) fn into_shared<T: Pod + Send + Sync>(self) -> Option<Arc<Vec<T>>> {
        let any: Box<dyn Any> = self.0;
        match any.downcast::<Arc<Vec<T>>>() {
            Ok(data) => Some(*data),
            Err(any) => any.downcast::<Received>().ok()?.into_vec().map(Arc::new),
        }
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.bytes().len())
    }
}

/// Memory that a message from elsewhere is being received into.
#[cfg(feature = "mpi")]
pub(crate) struct Arriving {
    memory: Received,
    bytes: usize,
}

#[cfg(feature = "mpi")]
impl Arriving {
    /// Memory for `bytes` bytes of elements with this alignment, without content.
    ///
    /// # Errors
    /// As [`Payload::receive`].
    pub fn new(align: usize, bytes: usize) -> Result<Self, Error> {
        fn reserve<T>(bytes: usize) -> Option<Vec<T>> {
            let mut data = Vec::new();
            data.try_reserve_exact(bytes / size_of::<T>()).ok()?;
            Some(data)
        }
        let memory = match align {
            _ if !bytes.is_multiple_of(align.max(1)) => None,
            1 => reserve(bytes).map(Received::A1),
            2 => reserve(bytes).map(Received::A2),
            4 => reserve(bytes).map(Received::A4),
            8 => reserve(bytes).map(Received::A8),
            16 => reserve(bytes).map(Received::A16),
            _ => None,
        };
        memory.map(|memory| Arriving { memory, bytes }).ok_or_else(|| Error::Shape {
            what: "received message",
            expected: "elements of an alignment up to 16 that divides their bytes, for which there is memory".into(),
            got: format!("{bytes} bytes of elements aligned to {align}"),
        })
    }

    /// Where the bytes go: as many as were asked for.
    pub fn start(&mut self) -> *mut u8 {
        match &mut self.memory {
            Received::A1(data) => data.as_mut_ptr().cast(),
            Received::A2(data) => data.as_mut_ptr().cast(),
            Received::A4(data) => data.as_mut_ptr().cast(),
            Received::A8(data) => data.as_mut_ptr().cast(),
            Received::A16(data) => data.as_mut_ptr().cast(),
        }
    }

    /// How many bytes it is for.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The message.
    ///
    /// # Safety
    /// Every byte from [`start`](Arriving::start) on has been written.
    pub unsafe fn arrived(mut self) -> Payload {
        // SAFETY: the capacity was reserved for so many elements, the bytes have been written, and integers take any.
        unsafe {
            match &mut self.memory {
                Received::A1(data) => data.set_len(self.bytes),
                Received::A2(data) => data.set_len(self.bytes / 2),
                Received::A4(data) => data.set_len(self.bytes / 4),
                Received::A8(data) => data.set_len(self.bytes / 8),
                Received::A16(data) => data.set_len(self.bytes / 16),
            }
        }
        Payload(Box::new(self.memory))
    }
}

impl Envelope {
    pub(crate) fn new<T: Pod>(group: u64, src: usize, tag: Tag, operation: &'static str, payload: Payload) -> Self {
        let (operation, type_name) = (Cow::Borrowed(operation), Cow::Borrowed(type_name::<T>()));
        Envelope { group, src, tag, operation, type_name, extent: 0, origin: 0.0, payload }
    }
}

/// Carries messages to ranks of other processes. Its methods are called by the ranks' threads and must not wait for another rank.
pub trait Transport: Send + Sync {
    /// Sends a message to world rank `dst`, which is not in this process. Messages of one source, group and tag keep their order.
    /// What goes wrong later is told by [`World::fail`].
    ///
    /// # Errors
    /// When the message cannot be sent.
    fn send(&self, dst: usize, envelope: Envelope) -> Result<(), Error>;

    /// A rank of this process has returned: with `None` when all went well, else with the first failure of the world.
    fn ended(&self, rank: usize, failure: Option<&RanksError>);
}

/// Runs `body` as the rank of `world` that lives in this process, on the calling thread.
///
/// # Errors
/// The first failure of the world, with its rank and what that rank was doing.
pub fn run_process<R, E: Display>(
    world: &Arc<World>,
    rank: usize,
    body: impl FnOnce(Comm) -> Result<R, E>,
) -> Result<R, RanksError> {
    let start_error = |error: &dyn Display| RanksError { rank, operation: "start".into(), message: error.to_string() };
    if !world.is_here(rank) {
        return Err(start_error(&format!("rank {rank} is not in this process")));
    }
    let result = run_rank(world, rank, body);
    match (world.failure(), result) {
        (Some(failure), _) => Err(failure),
        (None, Some(result)) => Ok(result),
        (None, None) => Err(start_error(&"the rank ended without a result")),
    }
}
