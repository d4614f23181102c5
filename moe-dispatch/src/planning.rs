//! Building a plan: every rank tells the gateways of the other nodes, and the ranks of its own, what it will send them.

use v3_ranks::{Comm, Step, Task, run_task};

use crate::error::{Error, Result};
use crate::in_flight::{Pending, drive, finished};
use crate::layout::Layout;
use crate::plan::{Kind, Parts, Plan, PlanOptions, tag};
use crate::router::Routing;

/// A plan in the making: [`Plan::start`].
#[derive(Debug)]
pub struct Planning {
    sequence: u64,
    /// `None` when the plan has been handed out.
    parts: Option<Parts>,
    told: bool,
    /// Sources whose routing has not come, and who sends it.
    missing: Vec<(usize, usize)>,
}

pub(crate) fn check_ranks(comm: &Comm, layout: &Layout) -> Result<()> {
    if comm.size() == layout.ep_size() {
        return Ok(());
    }
    Err(Error::Shape { what: "ranks of the group", expected: layout.ep_size().to_string(), got: comm.size().to_string() })
}

/// Whether `comm` is of the group that an exchange was started on, as far as ranks and size tell.
pub(crate) fn check_member(comm: &Comm, layout: &Layout, me: usize) -> Result<()> {
    if comm.rank() == me && comm.size() == layout.ep_size() {
        return Ok(());
    }
    Err(Error::Shape {
        what: "group of the plan",
        expected: format!("rank {me} of {}", layout.ep_size()),
        got: format!("rank {} of {}", comm.rank(), comm.size()),
    })
}

impl Planning {
    pub(crate) fn new(comm: &Comm, layout: &Layout, routing: &Routing, options: PlanOptions) -> Result<Planning> {
        check_ranks(comm, layout)?;
        let parts = Parts::new(layout, comm.rank(), routing, options)?;
        let missing = parts.sources();
        Ok(Planning { sequence: comm.next_sequence(), parts: Some(parts), told: false, missing })
    }

    /// What is known already: this rank's own part.
    pub(crate) fn parts(&self) -> Option<&Parts> {
        self.parts.as_ref()
    }

    pub(crate) fn advance(&mut self, comm: &Comm) -> Result<Step<Plan>> {
        let Some(parts) = &mut self.parts else { return Err(finished("a plan")) };
        check_member(comm, &parts.layout, parts.me)?;
        if !self.told {
            self.told = true;
            for (to, words) in parts.messages() {
                comm.send(to, tag(Kind::Plan, self.sequence, 0, parts.me), words)?;
            }
        }
        let mut waiting = Pending::new();
        let mut still_missing = Vec::new();
        for (source, from) in std::mem::take(&mut self.missing) {
            let tag = tag(Kind::Plan, self.sequence, 0, source);
            match comm.try_recv::<u32>(from, tag)? {
                Some(words) => {
                    for (to, words) in parts.learn(source, &words)? {
                        comm.send(to, tag, words)?;
                    }
                }
                None => {
                    still_missing.push((source, from));
                    waiting.push((from, tag));
                }
            }
        }
        self.missing = still_missing;
        match self.parts.take() {
            Some(parts) if waiting.is_empty() => Ok(Step::Done(parts.build()?)),
            parts => {
                self.parts = parts;
                Ok(Step::Waiting(waiting))
            }
        }
    }
}

impl Task for Planning {
    type Output = Plan;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<Plan>> {
        self.advance(comm)
    }
}

impl Planning {
    /// Waits for the plan.
    ///
    /// # Errors
    /// When ranks disagree, or another rank has failed.
    pub fn finish(self, comm: &Comm) -> Result<Plan> {
        run_task(comm, self)
    }
}

impl Plan {
    /// Plans the dispatch of `routing.tokens` rows of this rank. Every rank of `comm` brings its own routing, with the same `top_k`;
    /// a rank may have no tokens, and a token may have [masked](crate::plan::MASKED) choices.
    ///
    /// # Errors
    /// When the group has another size than the layout, the routing is malformed (an expert that does not exist or is listed twice for a
    /// token, `top_k` zero or not the same on all ranks), or another rank has failed.
    pub fn new(comm: &Comm, layout: &Layout, routing: &Routing) -> Result<Plan> {
        Plan::with_options(comm, layout, routing, PlanOptions::default())
    }

    /// [`Plan::new`] with options, the same on all ranks.
    ///
    /// # Errors
    /// As [`Plan::new`], and when an option is out of its range, or more tokens than the capacity come.
    pub fn with_options(comm: &Comm, layout: &Layout, routing: &Routing, options: PlanOptions) -> Result<Plan> {
        let mut planning = Planning::new(comm, layout, routing, options)?;
        drive(comm, |comm| planning.advance(comm))
    }

    /// [`with_options`](Plan::with_options) in flight.
    ///
    /// # Errors
    /// As [`with_options`](Plan::with_options), as far as it concerns this rank's arguments.
    pub fn start(comm: &Comm, layout: &Layout, routing: &Routing, options: PlanOptions) -> Result<Planning> {
        Planning::new(comm, layout, routing, options)
    }
}
