//! Lanes: threads of a rank that drive communication while the rank computes.

use std::collections::VecDeque;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::lock::Actor;
use crate::state::{Check, Key, State, Want};
use crate::threads::panic_text;
use crate::transport::Tag;
use crate::world::World;

/// How far a task has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// It is done.
    Done(T),
    /// It can go on when a message from one of these ranks of the group, with this tag, has arrived. The list is not empty.
    Waiting(Vec<(usize, u64)>),
}

/// Communication in several steps that several of can be under way at a time.
pub trait Task: Send {
    /// What it comes to.
    type Output: Send;
    /// What can go wrong.
    type Error: Display + From<Error>;

    /// Goes as far as it can without waiting: sends ([`Comm::send`]) and takes what has arrived ([`Comm::try_recv`]), all over `comm`
    /// and groups made of it. Called again when something that it waits for has arrived; never again after it is done or has failed.
    ///
    /// # Errors
    /// Whatever goes wrong ends the world, with this error's text.
    fn poll(&mut self, comm: &Comm) -> std::result::Result<Step<Self::Output>, Self::Error>;
}

/// Runs a task to its end on the calling thread, waiting where it waits.
///
/// # Errors
/// The task's own, or what [`Comm::wait_any`] returns.
pub fn run_task<T: Task>(comm: &Comm, mut task: T) -> std::result::Result<T::Output, T::Error> {
    let _origin = Origin::begin(comm);
    loop {
        match task.poll(comm)? {
            Step::Done(output) => return Ok(output),
            Step::Waiting(list) if list.is_empty() => return Err(waits_for_nothing().into()),
            Step::Waiting(list) => drop(comm.wait_any(&list)?),
        }
    }
}

/// The origin of an actor during a task: afterwards, also when the task panics and its caller goes on, it is what it was.
struct Origin<'a> {
    comm: &'a Comm,
    before: Option<f64>,
}

impl<'a> Origin<'a> {
    fn begin(comm: &'a Comm) -> Self {
        let (world, actor) = (comm.the_world(), comm.actor());
        let mut state = world.lock();
        let now = world.now(&state, actor);
        Origin { comm, before: state.actors[actor.id].origin.replace(now) }
    }
}

impl Drop for Origin<'_> {
    fn drop(&mut self) {
        self.comm.the_world().lock().actors[self.comm.actor().id].origin = self.before;
    }
}

fn waits_for_nothing() -> Error {
    let expected = "a list of what it waits for".to_string();
    Error::Shape { what: "task that is not done", expected, got: "an empty list".to_string() }
}

/// A task in a lane's queue.
pub(crate) struct Submitted {
    ticket: u64,
    at: f64,
    job: Box<dyn Job>,
}

/// A task with its types taken away.
trait Job: Send {
    /// `None`: done. The error is what the world fails with.
    fn poll(&mut self, comm: &Comm) -> std::result::Result<Option<Vec<(usize, u64)>>, String>;
}

struct Typed<T: Task> {
    task: T,
    output: Arc<Mutex<Option<T::Output>>>,
}

impl<T: Task> Job for Typed<T> {
    fn poll(&mut self, comm: &Comm) -> std::result::Result<Option<Vec<(usize, u64)>>, String> {
        match self.task.poll(comm).map_err(|error| error.to_string())? {
            Step::Waiting(list) if list.is_empty() => Err(waits_for_nothing().to_string()),
            Step::Waiting(list) => Ok(Some(list)),
            Step::Done(output) => {
                *self.output.lock().unwrap_or_else(PoisonError::into_inner) = Some(output);
                Ok(None)
            }
        }
    }
}

/// A task given to a lane.
#[derive(Debug)]
pub struct Ticket<T> {
    id: u64,
    lane: Arc<Actor>,
    /// Of the actor that submitted it.
    comm: Comm,
    output: Arc<Mutex<Option<T>>>,
}

impl<T: Send> Ticket<T> {
    /// Waits until the task is done, and returns what it came to. The wait is `comm`'s: it counts in its [`Comm::waits`], as exposed from
    /// the task's origin on (its submission, or the latest origin of what it has received).
    ///
    /// # Errors
    /// [`Error::Closed`] when the lane was dropped before, when `comm` belongs to another rank than the lane, or when the world has failed.
    pub fn finish(self, comm: &Comm) -> Result<T> {
        let id = self.id;
        let lane = self.lane.id;
        if !comm.is_of_rank(&self.comm) {
            let got =
                format!("rank {}{}", comm.world_rank(), if comm.is_of_world(&self.comm) { "" } else { " of another world" });
            return Err(Error::Shape { what: "rank that finishes a task", expected: format!("rank {}", self.lane.rank), got });
        }
        comm.the_world().wait(comm.actor(), "finish", &[Want::Ticket(id, lane)], |state, now| state.task_done(id, lane, now))?;
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Done tasks have left their output, and only this call takes it.
        output.ok_or_else(|| self.comm.the_world().lock().closed(lane))
    }

    /// Whether [`finish`](Ticket::finish) would return at once, with a result or an error. Asking takes no time: under the virtual
    /// clock a loop that only asks never ends.
    pub fn is_done(&self) -> bool {
        let world = self.comm.the_world();
        match world.lock_in_turn(self.comm.actor()) {
            Ok(mut state) => {
                let now = world.now(&state, self.comm.actor());
                matches!(state.task_done(self.id, self.lane.id, now), Check::Ready(..) | Check::Never(_))
            }
            Err(_) => true,
        }
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        self.comm.the_world().lock().tickets.remove(&self.id);
    }
}

impl State {
    fn task_done(&mut self, ticket: u64, lane: usize, now: f64) -> Check<()> {
        match self.tickets.get(&ticket) {
            Some(Some((at, origin))) if *at <= now => Check::Ready((), Some(*origin)),
            Some(Some((at, _))) => Check::At(*at),
            Some(None) if !self.is_closed(lane) => Check::Nothing,
            _ => Check::Never(self.closed(lane)),
        }
    }
}

/// A thread of a rank that drives tasks while the rank does something else.
///
/// It has an actor of its own: its own virtual time and its own waits. It takes a compute slot (lanes have slots of their own, as
/// many as ranks) while it works on a task and gives it away while it waits; waiting costs no processor time. Dropping it drops the tasks that are not done and ends the thread. The tasks
/// and the lane's rank share mailboxes: tags tell their messages apart ([`Comm::next_sequence`]). A lane is meant to live as long as its rank: a world keeps a record
/// of some hundred bytes for each that it has had.
#[derive(Debug)]
pub struct Lane {
    comm: Comm,
    actor: Arc<Actor>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    /// Starts a lane of this rank, whose tasks use the group of `comm`. Under the virtual clock its time begins at that of `comm`.
    ///
    /// # Errors
    /// When the world has failed, or no thread can be started.
    pub fn spawn(comm: &Comm, name: impl Into<String>) -> Result<Lane> {
        let name: Arc<str> = name.into().into();
        let world = comm.the_world();
        let actor = {
            let mut state = world.lock_in_turn(comm.actor())?;
            let now = world.now(&state, comm.actor());
            state.add_actor(comm.world_rank(), Some(Arc::clone(&name)), now, true)
        };
        let lane = comm.with_actor(Arc::clone(&actor));
        let thread = std::thread::Builder::new().name(format!("rank-{}-{name}", comm.world_rank())).spawn(move || live(&lane));
        match thread {
            Ok(thread) => Ok(Lane { comm: comm.clone(), actor, thread: Some(thread) }),
            Err(error) => {
                world.lock().end_actor(actor.id);
                let expected = format!("a thread for lane {name}");
                Err(Error::Config { what: "threads", expected, got: error.to_string() })
            }
        }
    }

    /// Gives the lane a task. It begins now, in the time of the actor that started the lane. A failure of the world shows in
    /// [`Ticket::finish`].
    pub fn submit<T>(&self, task: T) -> Ticket<T::Output>
    where
        T: Task + 'static,
        T::Output: 'static,
    {
        let output = Arc::new(Mutex::new(None));
        let job = Box::new(Typed { task, output: Arc::clone(&output) });
        let world = self.comm.the_world();
        let mut state = world.look(self.comm.actor());
        let at = world.now(&state, self.comm.actor());
        let id = state.new_ticket();
        state.actors[self.actor.id].inbox.push_back(Submitted { ticket: id, at, job });
        state.happened(self.actor.rank, Want::Submission(self.actor.id), at);
        drop(state);
        Ticket { id, lane: Arc::clone(&self.actor), comm: self.comm.clone(), output }
    }

    /// How long the lane itself has waited so far.
    pub fn waits(&self) -> crate::Waits {
        self.comm.the_world().look(self.comm.actor()).actors[self.actor.id].waited
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let world = self.comm.the_world();
        let inbox = world.look(self.comm.actor()).close(self.actor.id);
        // Tasks are foreign code: they are dropped without the lock.
        drop(inbox);
        let Some(thread) = self.thread.take() else { return };
        // A task may own its lane.
        if thread.thread().id() != std::thread::current().id() {
            // The thread catches panics, and a failure of the world shows elsewhere.
            drop(world.without_slot(self.comm.actor(), || thread.join()));
        }
    }
}

/// A task that a lane has begun.
struct InFlight {
    ticket: u64,
    origin: f64,
    job: Box<dyn Job>,
    waits: Vec<Key>,
    fresh: bool,
}

/// What the thread of a lane does.
fn live(comm: &Comm) {
    let (world, actor) = (comm.the_world(), comm.actor());
    // Nothing that the closure can see survives the panic.
    let outcome = catch_unwind(AssertUnwindSafe(|| drive(comm)));
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(message)) => Some(message),
        Err(panic) => Some(panic_text(panic.as_ref())),
    };
    let mut state = world.lock();
    if let Some(message) = failure
        && state.admit(actor).is_ok()
    {
        state.fail_own(actor, message);
    }
    let inbox = state.close(actor.id);
    state.end_actor(actor.id);
    drop(state);
    drop(inbox);
}

fn drive(comm: &Comm) -> std::result::Result<(), String> {
    let (world, actor) = (comm.the_world(), comm.actor());
    if world.enter(actor).is_err() {
        return Ok(());
    }
    let mut tasks: Vec<InFlight> = Vec::new();
    loop {
        match next(world, actor, &tasks) {
            Ok(new) => tasks.extend(new.into_iter().map(|Submitted { ticket, at, job }| InFlight {
                ticket,
                origin: at,
                job,
                waits: Vec::new(),
                fresh: true,
            })),
            Err(Error::Closed { .. } | Error::Aborted { .. }) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        let mut at = 0;
        while let Some(task) = tasks.get_mut(at) {
            if !(task.fresh || has_arrived(world, actor, &task.waits)) {
                at += 1;
                continue;
            }
            task.fresh = false;
            world.lock().actors[actor.id].origin = Some(task.origin);
            let outcome = task.job.poll(comm);
            task.origin = world.lock().actors[actor.id].origin.take().unwrap_or(task.origin);
            match outcome? {
                Some(list) => {
                    let keys: Result<Vec<Key>> = list.iter().map(|&(src, tag)| comm.key("lane", src, Tag::User(tag))).collect();
                    task.waits = keys.map_err(|error| error.to_string())?;
                    at += 1;
                }
                None => {
                    let done = tasks.remove(at);
                    match world.lock_in_turn(actor) {
                        Ok(mut state) => {
                            let now = world.now(&state, actor);
                            state.complete(actor, done.ticket, now, done.origin);
                        }
                        // Closed or aborted: nobody can ask for it any more.
                        Err(_) => return Ok(()),
                    }
                }
            }
        }
    }
}

fn has_arrived(world: &World, actor: &Actor, keys: &[Key]) -> bool {
    // A task before this one may have advanced the lane's time.
    let mut state = world.look(actor);
    let now = world.now(&state, actor);
    if !world.is_virtual() {
        state.serve_until(actor.rank, now);
    }
    matches!(state.first_arrival(actor.rank, keys, now), Check::Ready(..))
}

impl State {
    /// A lane is done with a task.
    fn complete(&mut self, actor: &Actor, ticket: u64, now: f64, origin: f64) {
        self.made_progress();
        // Nobody may be interested any more.
        if let Some(done) = self.tickets.get_mut(&ticket) {
            *done = Some((now, origin));
            self.happened(actor.rank, Want::Ticket(ticket, actor.id), now);
        }
    }

    /// Tasks submitted to a lane by `now`.
    fn submissions(&mut self, lane: usize, now: f64) -> Vec<Submitted> {
        let inbox: &mut VecDeque<Submitted> = &mut self.actors[lane].inbox;
        let due = inbox.iter().take_while(|task| task.at <= now).count();
        inbox.drain(..due).collect()
    }
}

/// Waits until a task was submitted or a message for one of `tasks` has arrived, and returns the new tasks.
fn next(world: &World, actor: &Actor, tasks: &[InFlight]) -> Result<Vec<Submitted>> {
    const OPERATION: &str = "lane";
    let keys: Vec<Key> = tasks.iter().flat_map(|task| task.waits.iter().copied()).collect();
    let mut wants: Vec<Want> = keys.iter().map(|&key| Want::Message(key)).collect();
    wants.push(Want::Submission(actor.id));
    world.wait(actor, OPERATION, &wants, |state, now| {
        let new = state.submissions(actor.id, now);
        if !new.is_empty() {
            return Check::Ready(new, None);
        }
        let submitted = state.actors[actor.id].inbox.front().map(|task| task.at);
        match (state.first_arrival(actor.rank, &keys, now), submitted) {
            (Check::Ready(_, origin), _) => Check::Ready(new, origin),
            (Check::At(at), Some(submitted)) => Check::At(at.min(submitted)),
            (Check::At(at), None) => Check::At(at),
            (_, Some(submitted)) => Check::At(submitted),
            (Check::UnderWay, None) => Check::UnderWay,
            (Check::Never(error), None) => Check::Never(error),
            // One task that can never go on is an error, whatever the others wait for.
            (Check::Nothing, None) => {
                let lost = |task: &&InFlight| task.waits.iter().all(|&key| state.never_comes(key));
                match tasks.iter().find(lost).and_then(|task| task.waits.first()) {
                    Some(first) => Check::Never(Error::Ended { rank: actor.rank, operation: OPERATION, source_rank: first.src }),
                    None => Check::Nothing,
                }
            }
        }
    })
}
