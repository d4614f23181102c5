//! The average, its worker thread and the operations on it.

use crate::config::{EmaConfig, Shard};
use crate::error::{Error, Result};
use crate::kernel::{Element, lerp_on};
use crate::ring::{Ring, Stopped};
use crate::state::State;
use half::bf16;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use v3_numerics::cpu::Isa;
use v3_numerics::par;

/// Elements that one work item of a snapshot copies.
const COPY_CHUNK: usize = 1 << 18;

/// What a staging buffer holds: allocated by the first snapshot of its kind, then kept.
pub enum Buffer {
    Empty,
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Buffer {
    pub fn as_f32(&mut self) -> &mut Vec<f32> {
        if !matches!(self, Buffer::F32(_)) {
            *self = Buffer::F32(Vec::new());
        }
        match self {
            Buffer::F32(v) => v,
            _ => unreachable!("set above"),
        }
    }

    pub fn as_bf16(&mut self) -> &mut Vec<bf16> {
        if !matches!(self, Buffer::Bf16(_)) {
            *self = Buffer::Bf16(Vec::new());
        }
        match self {
            Buffer::Bf16(v) => v,
            _ => unreachable!("set above"),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Buffer::Empty => 0,
            Buffer::F32(v) => 4 * v.capacity(),
            Buffer::Bf16(v) => 2 * v.capacity(),
        }
    }
}

/// One snapshot's instructions.
struct Job {
    step: u64,
    rate: f32,
}

/// What the worker changes, under one lock.
struct Average {
    values: Vec<f32>,
    updates: u64,
    step: Option<u64>,
}

#[derive(Default)]
struct Times {
    update: Duration,
    blocked: Duration,
    copy: Duration,
    blocked_submissions: u64,
    submitted: u64,
    skipped: u64,
    applied: u64,
}

struct Shared {
    ring: Ring<Buffer, Job>,
    average: Mutex<Average>,
    times: Mutex<Times>,
    staging_bytes: AtomicUsize,
}

/// What submitters, readers and swaps hold while they work: at most one of them at a time.
struct Front {
    /// Updates submitted, including those in flight and those of a restored state.
    updates: u64,
    last_step: Option<u64>,
    swapped: bool,
}

/// A run of one tensor that this instance averages.
struct Piece {
    tensor: usize,
    within: Range<usize>,
}

/// What happened to a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submission {
    /// Whether a snapshot was taken: false for steps that `every_n` leaves out.
    pub taken: bool,
    /// Time spent waiting for a free staging buffer.
    pub blocked: Duration,
    /// Time spent copying.
    pub copy: Duration,
}

/// One finished update, as an observer sees it.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// The step whose weights went in.
    pub step: u64,
    /// Updates made so far, this one included.
    pub updates: u64,
    /// What the difference was multiplied by: 1 - decay.
    pub rate: f32,
    /// When the worker began.
    pub start: Instant,
    /// How long it took.
    pub duration: Duration,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Snapshots taken.
    pub submitted: u64,
    /// Steps that `every_n` left out.
    pub skipped: u64,
    /// Updates finished (those of a restored state not counted).
    pub applied: u64,
    /// Submissions that had to wait for a free buffer.
    pub blocked_submissions: u64,
    /// Time that submitters waited for a free buffer, in seconds.
    pub blocked_seconds: f64,
    /// Time that submitters copied, in seconds. What the average costs the training thread is this and `blocked_seconds`.
    pub copy_seconds: f64,
    /// Time that the worker spent updating, in seconds.
    pub update_seconds: f64,
    /// Snapshots waiting or being worked on now.
    pub in_flight: usize,
    /// The most there ever were; at most `max_in_flight`.
    pub most_in_flight: usize,
    /// Submitters waiting for a free buffer now.
    pub waiting: usize,
    /// Bytes of the averages.
    pub average_bytes: usize,
    /// Bytes of the staging buffers allocated so far.
    pub staging_bytes: usize,
}

/// An exponential moving average of the weights of a model. See the [crate's page](crate) for the protocol.
pub struct Ema {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    front: Mutex<Front>,
    config: EmaConfig,
    lens: Vec<usize>,
    pieces: Vec<Piece>,
}

impl std::fmt::Debug for Ema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ema").field("config", &self.config).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panics while it holds one of these is reported through the ring.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stopped(why: Stopped) -> Error {
    let message = match why {
        Stopped::Failed(message) => message,
        Stopped::Closed => "closed".into(),
    };
    Error::Worker { message }
}

/// The runs of the tensors that a shard covers, in order.
fn pieces(lens: &[usize], range: Range<usize>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut first = 0;
    for (tensor, &len) in lens.iter().enumerate() {
        let start = range.start.clamp(first, first + len) - first;
        let end = range.end.clamp(first, first + len) - first;
        if start < end {
            pieces.push(Piece { tensor, within: start..end });
        }
        first += len;
    }
    pieces
}

/// The number of parameters, unless it cannot be counted.
pub(crate) fn total_len(lens: &[usize]) -> Result<usize> {
    let total = lens.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)).filter(|n| *n <= isize::MAX as usize / 4);
    total.ok_or_else(|| Error::Shape {
        what: "tensors",
        expected: "a total that fits in memory".into(),
        got: "more parameters".into(),
    })
}

impl Ema {
    /// An average that starts as `initial`, the tensors of the model in any fixed order; starts the worker thread.
    pub fn new(initial: &[&[f32]], config: EmaConfig) -> Result<Self> {
        Self::with_observer(initial, config, |_| {})
    }

    /// As [`Ema::new`]; `observer` is called on the worker thread after every update, before the staging buffer is free
    /// again. A panic in it is reported as one of the worker.
    pub fn with_observer(initial: &[&[f32]], config: EmaConfig, observer: impl FnMut(&Update) + Send + 'static) -> Result<Self> {
        config.validate()?;
        let lens: Vec<usize> = initial.iter().map(|t| t.len()).collect();
        let range = config.shard.range(total_len(&lens)?);
        let mut values = Vec::with_capacity(range.len());
        for piece in pieces(&lens, range) {
            values.extend_from_slice(&initial[piece.tensor][piece.within]);
        }
        Self::start(State { step: None, updates: 0, shard: config.shard, lens, values }, config, observer)
    }

    /// Continues from a saved state, which must have been saved by the same shard of the same tensors. Everything after is bit
    /// for bit as if there had been no interruption, if the configuration is the same.
    pub fn restore(state: State, config: EmaConfig) -> Result<Self> {
        Self::restore_with_observer(state, config, |_| {})
    }

    /// [`Ema::restore`] with an observer.
    pub fn restore_with_observer(
        state: State,
        config: EmaConfig,
        observer: impl FnMut(&Update) + Send + 'static,
    ) -> Result<Self> {
        config.validate()?;
        if state.shard != config.shard {
            return Err(Error::Shape {
                what: "shard of the state",
                expected: format!("{} of {}", config.shard.rank, config.shard.ranks),
                got: format!("{} of {}", state.shard.rank, state.shard.ranks),
            });
        }
        state.check()?;
        Self::start(state, config, observer)
    }

    fn start(state: State, config: EmaConfig, observer: impl FnMut(&Update) + Send + 'static) -> Result<Self> {
        let front = Front { updates: state.updates, last_step: state.step, swapped: false };
        let range = config.shard.range(total_len(&state.lens)?);
        let average = Average { values: state.values, updates: state.updates, step: state.step };
        let shared = Arc::new(Shared {
            ring: Ring::new((0..config.max_in_flight).map(|_| Buffer::Empty).collect()),
            average: Mutex::new(average),
            times: Mutex::default(),
            staging_bytes: AtomicUsize::new(0),
        });
        let isa = Isa::detect();
        let for_worker = Arc::clone(&shared);
        let worker = std::thread::Builder::new()
            .name("ema".into())
            .spawn(move || run_worker(&for_worker, isa, observer))
            .map_err(|e| Error::Thread { message: e.to_string() })?;
        Ok(Self {
            shared,
            worker: Some(worker),
            front: Mutex::new(front),
            pieces: pieces(&state.lens, range),
            lens: state.lens,
            config,
        })
    }

    /// Takes a snapshot of the weights after `step` and returns: **the weights may be overwritten at once**. Steps must rise.
    ///
    /// The calling thread copies (with the threads of its pool), after waiting for a staging buffer if `max_in_flight` snapshots
    /// are under way. All tensors are passed, in the order of the initial ones, also where only a shard is averaged. Steps that
    /// are no multiple of `every_n` return at once.
    pub fn submit<T: Element>(&self, step: u64, weights: &[&[T]]) -> Result<Submission> {
        let mut front = lock(&self.front);
        if let Some(last) = front.last_step.filter(|last| *last >= step) {
            return Err(Error::StepOrder { last, got: step });
        }
        if front.swapped {
            return Err(Error::Swapped);
        }
        self.check_shapes(weights.iter().map(|t| t.len()))?;
        if !step.is_multiple_of(self.config.every_n) {
            lock(&self.shared.times).skipped += 1;
            return Ok(Submission { taken: false, blocked: Duration::ZERO, copy: Duration::ZERO });
        }
        let start = Instant::now();
        let (buffer, waited) = self.shared.ring.acquire().map_err(stopped)?;
        let blocked = if waited { start.elapsed() } else { Duration::ZERO };
        let start = Instant::now();
        let mut slot = Slot { shared: &self.shared, buffer: Some(buffer) };
        self.copy(&mut slot, weights);
        let copy = start.elapsed();
        let job = Job { step, rate: self.config.rate(front.updates) };
        if let Some(buffer) = slot.buffer.take() {
            self.shared.ring.publish(buffer, job).map_err(stopped)?;
        }
        front.updates += 1;
        front.last_step = Some(step);
        let mut times = lock(&self.shared.times);
        times.submitted += 1;
        times.blocked += blocked;
        times.blocked_submissions += u64::from(waited);
        times.copy += copy;
        Ok(Submission { taken: true, blocked, copy })
    }

    fn copy<T: Element>(&self, slot: &mut Slot<'_>, weights: &[&[T]]) {
        let mut items: Vec<(&mut [T], &[T])> = Vec::new();
        let mut rest = slot.values::<T>(self.shard_len()).as_mut_slice();
        for piece in &self.pieces {
            let (run, tail) = rest.split_at_mut(piece.within.len());
            let source = &weights[piece.tensor][piece.within.clone()];
            items.extend(run.chunks_mut(COPY_CHUNK).zip(source.chunks(COPY_CHUNK)));
            rest = tail;
        }
        par::for_each_chunk_mut(&mut items, 1, |_, item| item[0].0.copy_from_slice(item[0].1));
    }

    /// Allocates and touches all staging buffers for snapshots of this type, so that the first submissions are as fast as
    /// the later ones. Waits for what is in flight.
    pub fn reserve<T: Element>(&self) -> Result<()> {
        let _front = lock(&self.front);
        self.shared.ring.wait_idle().map_err(stopped)?;
        let mut slots = Vec::new();
        for _ in 0..self.config.max_in_flight {
            let (buffer, _) = self.shared.ring.acquire().map_err(stopped)?;
            slots.push(Slot { shared: &self.shared, buffer: Some(buffer) });
        }
        for slot in &mut slots {
            slot.values::<T>(self.shard_len()).fill(T::from_f32(0.0));
        }
        Ok(())
    }

    /// Waits until all snapshots have been averaged.
    pub fn flush(&self) -> Result<()> {
        let _front = lock(&self.front);
        self.shared.ring.wait_idle().map_err(stopped)
    }

    /// Runs `f` on the averages with everything submitted so far applied.
    fn read<R>(&self, f: impl FnOnce(&Average) -> Result<R>) -> Result<R> {
        let front = lock(&self.front);
        if front.swapped {
            return Err(Error::Swapped);
        }
        self.shared.ring.wait_idle().map_err(stopped)?;
        f(&lock(&self.shared.average))
    }

    /// A copy of the averages, tensor by tensor, after waiting for everything submitted so far. Of a shard, each tensor's
    /// part in it (which may be empty).
    pub fn averaged(&self) -> Result<Vec<Vec<f32>>> {
        self.read(|average| {
            let mut tensors = vec![Vec::new(); self.lens.len()];
            let mut rest = average.values.as_slice();
            for piece in &self.pieces {
                let (run, tail) = rest.split_at(piece.within.len());
                tensors[piece.tensor] = run.to_vec();
                rest = tail;
            }
            Ok(tensors)
        })
    }

    /// Writes the averages over `weights` (bf16: rounded to nearest even), after waiting for everything submitted so far.
    /// Elements outside this shard are left alone.
    pub fn write_into<T: Element>(&self, weights: &mut [&mut [T]]) -> Result<()> {
        self.check_shapes(weights.iter().map(|t| t.len()))?;
        self.read(|average| {
            let mut rest = average.values.as_slice();
            for piece in &self.pieces {
                let (run, tail) = rest.split_at(piece.within.len());
                let target = &mut weights[piece.tensor][piece.within.clone()];
                target.iter_mut().zip(run).for_each(|(w, a)| *w = T::from_f32(*a));
                rest = tail;
            }
            Ok(())
        })
    }

    /// Exchanges the averages with the model's weights, for an evaluation, without more memory: afterwards the model holds the
    /// averages and this object the weights, until [`Ema::swap_out`]. Waits for everything submitted so far; in between,
    /// submitting, reading and saving are refused. Of a shard, only its elements are exchanged.
    pub fn swap_in(&self, weights: &mut [&mut [f32]]) -> Result<()> {
        self.check_shapes(weights.iter().map(|t| t.len()))?;
        let mut front = lock(&self.front);
        if front.swapped {
            return Err(Error::Swapped);
        }
        self.shared.ring.wait_idle().map_err(stopped)?;
        self.exchange(weights);
        front.swapped = true;
        Ok(())
    }

    /// Undoes [`Ema::swap_in`]: the weights are back bit for bit, and so are the averages if the model was not changed.
    pub fn swap_out(&self, weights: &mut [&mut [f32]]) -> Result<()> {
        self.check_shapes(weights.iter().map(|t| t.len()))?;
        let mut front = lock(&self.front);
        if !front.swapped {
            return Err(Error::NotSwapped);
        }
        self.exchange(weights);
        front.swapped = false;
        Ok(())
    }

    fn exchange(&self, weights: &mut [&mut [f32]]) {
        let mut average = lock(&self.shared.average);
        let mut rest = average.values.as_mut_slice();
        for piece in &self.pieces {
            let (run, tail) = rest.split_at_mut(piece.within.len());
            run.swap_with_slice(&mut weights[piece.tensor][piece.within.clone()]);
            rest = tail;
        }
    }

    /// Calls `f` on the model's weights with the averages swapped in, and swaps out after, on a panic as well.
    pub fn with_averages<R>(&self, weights: &mut [&mut [f32]], f: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
        struct SwapOut<'a, 'w, 't>(&'a Ema, &'w mut [&'t mut [f32]]);
        impl Drop for SwapOut<'_, '_, '_> {
            fn drop(&mut self) {
                // The shapes were those of the swap in, and nobody else can have swapped out unless by mistake.
                let _ = self.0.swap_out(self.1);
            }
        }
        self.swap_in(weights)?;
        let guard = SwapOut(self, weights);
        let view: Vec<&[f32]> = guard.1.iter().map(|t| &**t).collect();
        Ok(f(&view))
    }

    /// A copy of everything that [`Ema::restore`] needs, after waiting for everything submitted so far.
    pub fn state(&self) -> Result<State> {
        self.read(|average| {
            Ok(State {
                step: average.step,
                updates: average.updates,
                shard: self.config.shard,
                lens: self.lens.clone(),
                values: average.values.clone(),
            })
        })
    }

    /// Ends the worker after everything submitted so far and gives the state, without a copy.
    pub fn finish(mut self) -> Result<State> {
        self.read(|_| Ok(()))?;
        self.stop();
        let mut average = lock(&self.shared.average);
        Ok(State {
            step: average.step,
            updates: average.updates,
            shard: self.config.shard,
            lens: std::mem::take(&mut self.lens),
            values: std::mem::take(&mut average.values),
        })
    }

    /// Updates applied so far, those of a restored state included, and the last step among them.
    pub fn progress(&self) -> (u64, Option<u64>) {
        let average = lock(&self.shared.average);
        (average.updates, average.step)
    }

    /// The configuration.
    pub fn config(&self) -> &EmaConfig {
        &self.config
    }

    /// Parameters that this instance averages.
    pub fn shard_len(&self) -> usize {
        self.pieces.iter().map(|p| p.within.len()).sum()
    }

    /// The runs of the tensors that this instance averages: tensor, elements of it.
    pub fn shard_pieces(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        self.pieces.iter().map(|p| (p.tensor, p.within.clone()))
    }

    /// Counters since the start. Never waits for the worker.
    pub fn stats(&self) -> Stats {
        let load = self.shared.ring.load();
        let times = lock(&self.shared.times);
        Stats {
            submitted: times.submitted,
            skipped: times.skipped,
            applied: times.applied,
            blocked_submissions: times.blocked_submissions,
            blocked_seconds: times.blocked.as_secs_f64(),
            copy_seconds: times.copy.as_secs_f64(),
            update_seconds: times.update.as_secs_f64(),
            in_flight: load.in_flight,
            most_in_flight: load.most_in_flight,
            waiting: load.waiting,
            average_bytes: 4 * self.shard_len(),
            staging_bytes: self.shared.staging_bytes.load(Ordering::Relaxed),
        }
    }

    fn check_shapes(&self, lens: impl ExactSizeIterator<Item = usize>) -> Result<()> {
        if lens.len() != self.lens.len() {
            let got = format!("{} tensors", lens.len());
            return Err(Error::Shape { what: "weights", expected: format!("{} tensors", self.lens.len()), got });
        }
        for (i, (got, expected)) in lens.zip(&self.lens).enumerate() {
            if got != *expected {
                let expected = format!("{expected} elements in tensor {i}");
                return Err(Error::Shape { what: "weights", expected, got: got.to_string() });
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.shared.ring.close();
        if let Some(worker) = self.worker.take() {
            // Panics are caught in the worker and reported through the ring.
            let _ = worker.join();
        }
    }
}

impl Drop for Ema {
    /// Ends the worker and waits for it: for the update under way, not for those that are queued, which nobody can read.
    fn drop(&mut self) {
        self.stop();
    }
}

/// A buffer that goes back to the ring if it is not published.
struct Slot<'a> {
    shared: &'a Shared,
    buffer: Option<Buffer>,
}

impl Slot<'_> {
    /// The buffer as `n` values of this type.
    fn values<T: Element>(&mut self, n: usize) -> &mut Vec<T> {
        let buffer = self.buffer.get_or_insert(Buffer::Empty);
        let before = buffer.bytes();
        let values = T::vec(buffer);
        if values.len() != n {
            *values = vec![T::zeroed(); n];
        }
        let after = n * size_of::<T>();
        // Wrapping, as a difference: the sum is what counts.
        self.shared.staging_bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        T::vec(buffer)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.shared.ring.put_back(buffer);
        }
    }
}

/// The worker: one update after the other, until the ring ends.
fn run_worker(shared: &Shared, isa: Isa, mut observer: impl FnMut(&Update)) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        while let Some((buffer, job)) = shared.ring.take() {
            let start = Instant::now();
            let updates = {
                let mut average = lock(&shared.average);
                match &buffer {
                    Buffer::F32(weights) => lerp_on(isa, &mut average.values, weights, job.rate),
                    Buffer::Bf16(weights) => lerp_on(isa, &mut average.values, weights, job.rate),
                    Buffer::Empty => {}
                }
                average.updates += 1;
                average.step = Some(job.step);
                average.updates
            };
            let duration = start.elapsed();
            {
                let mut times = lock(&shared.times);
                times.update += duration;
                times.applied += 1;
            }
            observer(&Update { step: job.step, updates, rate: job.rate, start, duration });
            shared.ring.done(buffer);
        }
    }));
    if let Err(panic) = outcome {
        let message = panic
            .downcast_ref::<&str>()
            .map(|s| s.to_string())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panicked".into());
        shared.ring.fail(message);
    }
}

/// The shard's range must hold as many values as the state has.
pub(crate) fn shard_len(lens: &[usize], shard: Shard) -> Result<usize> {
    Ok(shard.range(total_len(lens)?).len())
}
