//! Expert rows travel back and are added in the fixed tree; gradients take the same way in the other direction.

use std::sync::Arc;

use half::bf16;
use v3_ranks::{Comm, Step, Task, run_task};

use crate::cpu::{Element, RowMap};
use crate::dispatch::{check_len, pack, zero_rows};
use crate::error::{Error, Result};
use crate::exchange::{Arrived, Exchange, Mover};
use crate::in_flight::{drive, finished};
use crate::kernels::{WeightedRows, weighted_rows};
use crate::plan::Plan;
use crate::sums::{Gradients, Sums};

/// What sums and gradients are while they travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Wire {
    /// Sums are exact copies: the result has the same bits for every number of ranks and every placement.
    #[default]
    F32,
    /// Half of the bytes. Sums are formed in f32, and rounded to bf16 (nearest even) where they leave a rank and where they leave a node. The sums of the
    /// token's own rank and node are rounded alike, so that the result depends on the layout only, not on where the token is at home.
    Bf16,
}

/// How expert rows are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CombineOptions {
    /// Whether each row is multiplied by its weight first, and rounded.
    pub weighted: bool,
    /// What travels.
    pub wire: Wire,
}

impl Default for CombineOptions {
    fn default() -> Self {
        CombineOptions { weighted: true, wire: Wire::F32 }
    }
}

/// Sums on either wire.
#[derive(Debug)]
enum AnySums {
    F32(Sums<f32>),
    Bf16(Sums<bf16>),
}

impl AnySums {
    fn new(comm: &Comm, row_len: usize, options: CombineOptions) -> Self {
        let sequence = comm.next_sequence();
        match options.wire {
            Wire::F32 => AnySums::F32(Sums::new(sequence, row_len, options.weighted)),
            Wire::Bf16 => AnySums::Bf16(Sums::new(sequence, row_len, options.weighted)),
        }
    }

    fn poll<E: Element>(&mut self, comm: &Comm, plan: &Plan, own: &[E], out: &mut [E]) -> Result<Step<()>> {
        match self {
            AnySums::F32(sums) => sums.poll(comm, plan, own, out),
            AnySums::Bf16(sums) => sums.poll(comm, plan, own, out),
        }
    }
}

/// What a combine comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Combined<E> {
    /// The combined rows of this rank's tokens, `[T, row_len]`.
    pub rows: Vec<E>,
    /// The expert rows, handed back.
    pub expert_rows: Vec<E>,
}

/// A combine in flight: [`Plan::combine_start`], [`Plan::dispatch_backward_start`]. Nothing leaves before it is polled for the first time.
#[derive(Debug)]
pub struct Combine<E> {
    plan: Arc<Plan>,
    sums: AnySums,
    rows: Option<Combined<E>>,
}

impl<E: Element> Task for Combine<E> {
    type Output = Combined<E>;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<Combined<E>>> {
        let Some(Combined { rows, expert_rows }) = &mut self.rows else { return Err(finished("a combine")) };
        Ok(match self.sums.poll(comm, &self.plan, expert_rows, rows)? {
            Step::Waiting(messages) => Step::Waiting(messages),
            Step::Done(()) => Step::Done(self.rows.take().ok_or_else(|| finished("a combine"))?),
        })
    }
}

impl<E: Element> Combine<E> {
    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Waits for the combined rows.
    ///
    /// # Errors
    /// When other ranks have another `row_len`, or another rank has failed.
    pub fn finish(self, comm: &Comm) -> Result<Combined<E>> {
        run_task(comm, self)
    }
}

/// What the backward pass of a combine comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct CombineGradients {
    /// Gradients of the expert rows, `[R, row_len]`, in the memory of the rows.
    pub d_expert_rows: Vec<f32>,
    /// Gradients of the routing's weights, `[T, k]`.
    pub d_weights: Vec<f32>,
    /// What was sent, handed back.
    pub dy: Vec<f32>,
}

/// The backward pass of a combine in flight: [`Plan::combine_backward_start`]. Nothing leaves before it is polled for the first time.
#[derive(Debug)]
pub struct CombineBackward {
    plan: Arc<Plan>,
    work: Backward,
    dy: Vec<f32>,
    /// dy as it travels, when that is not in f32.
    narrow: Option<Vec<bf16>>,
    d_rows: Option<Vec<f32>>,
}

impl Task for CombineBackward {
    type Output = CombineGradients;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<CombineGradients>> {
        let Some(d_rows) = &mut self.d_rows else { return Err(finished("a backward pass")) };
        let step = match &self.narrow {
            None => self.work.poll(comm, &self.plan, &self.dy, None, d_rows)?,
            Some(narrow) => self.work.poll(comm, &self.plan, narrow, None, d_rows)?,
        };
        Ok(match step {
            Step::Waiting(messages) => Step::Waiting(messages),
            Step::Done(d_weights) => {
                let d_expert_rows = self.d_rows.take().ok_or_else(|| finished("a backward pass"))?;
                Step::Done(CombineGradients { d_expert_rows, d_weights, dy: std::mem::take(&mut self.dy) })
            }
        })
    }
}

impl CombineBackward {
    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Waits for the gradients.
    ///
    /// # Errors
    /// When other ranks have another `row_len`, or another rank has failed.
    pub fn finish(self, comm: &Comm) -> Result<CombineGradients> {
        run_task(comm, self)
    }

    /// The same in two exchanges, the gradients of the weights apart: they travel home when the caller starts them, and do not wait in a port
    /// behind what was sent meanwhile while the gradients of the rows wait for them. All ranks of the group split it, or none.
    pub fn split(self) -> CombineBackwardRows {
        CombineBackwardRows(self)
    }
}

/// The first part of a backward pass of a combine in flight: [`CombineBackward::split`].
#[derive(Debug)]
pub struct CombineBackwardRows(CombineBackward);

/// What the first part comes to.
#[derive(Debug)]
pub struct CombineRowGradients {
    /// Gradients of the expert rows, `[R, row_len]`, in the memory of the rows.
    pub d_expert_rows: Vec<f32>,
    /// The second part, not yet started.
    pub weights: WeightGradients,
    /// What was sent, handed back.
    pub dy: Vec<f32>,
}

impl Task for CombineBackwardRows {
    type Output = CombineRowGradients;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<CombineRowGradients>> {
        let CombineBackward { plan, work, dy, narrow, d_rows } = &mut self.0;
        let Some(rows) = d_rows else { return Err(finished("a backward pass")) };
        let step = match narrow {
            None => work.poll_rows(comm, plan, dy, None, rows)?,
            Some(narrow) => work.poll_rows(comm, plan, narrow, None, rows)?,
        };
        Ok(match step {
            Step::Waiting(messages) => Step::Waiting(messages),
            Step::Done(()) => {
                let d_expert_rows = d_rows.take().ok_or_else(|| finished("a backward pass"))?;
                let gradients = std::mem::replace(&mut work.gradients, Gradients::new(0));
                let products = std::mem::take(&mut work.products);
                let weights = WeightGradients { plan: Arc::clone(plan), gradients, products };
                Step::Done(CombineRowGradients { d_expert_rows, weights, dy: std::mem::take(dy) })
            }
        })
    }
}

/// The second part of a backward pass of a combine, a [task](v3_ranks::Task): the gradients of the routing's weights go home, and come to
/// `[T, k]`. Nothing leaves before it is polled for the first time.
#[derive(Debug)]
pub struct WeightGradients {
    plan: Arc<Plan>,
    gradients: Gradients,
    products: Vec<f32>,
}

impl Task for WeightGradients {
    type Output = Vec<f32>;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> Result<Step<Vec<f32>>> {
        self.gradients.poll(comm, &self.plan, &self.products)
    }
}

/// The rows of dy on their way out, then the gradients of weights on their way home.
#[derive(Debug)]
struct Backward {
    exchange: Exchange,
    dispatched: bool,
    gradients: Gradients,
    /// dy . row for each expert-major row.
    products: Vec<f32>,
    row_len: usize,
}

impl Backward {
    fn new(comm: &Comm, plan: &Plan, row_len: usize) -> Self {
        let sequence = comm.next_sequence();
        Backward {
            exchange: Exchange::new(sequence, row_len),
            dispatched: false,
            gradients: Gradients::new(sequence),
            products: vec![0.0; plan.expert_rows()],
            row_len,
        }
    }

    /// Without `expert_rows` these are in `d_rows` until their gradients replace them.
    fn poll<W: Element>(
        &mut self,
        comm: &Comm,
        plan: &Plan,
        dy: &[W],
        expert_rows: Option<&[f32]>,
        d_rows: &mut [f32],
    ) -> Result<Step<Vec<f32>>> {
        match self.poll_rows(comm, plan, dy, expert_rows, d_rows)? {
            Step::Waiting(messages) => Ok(Step::Waiting(messages)),
            Step::Done(()) => self.gradients.poll(comm, plan, &self.products),
        }
    }

    /// The rows alone.
    fn poll_rows<W: Element>(
        &mut self,
        comm: &Comm,
        plan: &Plan,
        dy: &[W],
        expert_rows: Option<&[f32]>,
        d_rows: &mut [f32],
    ) -> Result<Step<()>> {
        if !self.dispatched {
            let (products, row_len) = (&mut self.products, self.row_len);
            let mut mover = Products { plan, dy, expert_rows, row_len, d_rows, products };
            if let Step::Waiting(messages) = self.exchange.poll(comm, plan, &mut mover)? {
                return Ok(Step::Waiting(messages));
            }
            for padding in &plan.padding {
                d_rows[padding.start * row_len..padding.end * row_len].fill(0.0);
            }
            self.dispatched = true;
        }
        Ok(Step::Done(()))
    }
}

/// Meets rows of dy with expert rows.
struct Products<'a, W> {
    plan: &'a Plan,
    dy: &'a [W],
    expert_rows: Option<&'a [f32]>,
    row_len: usize,
    d_rows: &'a mut [f32],
    products: &'a mut [f32],
}

impl<W: Element> Mover<W> for Products<'_, W> {
    fn pack(&self, rows: &[u32]) -> Result<Vec<W>> {
        pack(self.dy, self.row_len, rows)
    }

    fn deliver(&mut self, rows: Arrived<'_, W>, first: usize, map: &RowMap) -> Result<()> {
        let (row_len, expert_rows) = (self.row_len, self.expert_rows);
        let dy = match rows {
            Arrived::Own(range) => &self.dy[range.start * row_len..range.end * row_len],
            Arrived::Message(message) => message,
        };
        let rows = WeightedRows { dy, first, map, weights: &self.plan.row_weights, expert_rows, row_len };
        weighted_rows(&rows, self.d_rows, self.products);
        Ok(())
    }
}

impl Plan {
    /// Adds the expert rows `[R, row_len]` of each token where the token is at home: returns `[T, row_len]`.
    ///
    /// The sum is a fixed binary tree over logical expert ids, absent experts skipped; a leaf is the row, times its weight and
    /// rounded if `weighted`. The bits depend neither on the number of ranks nor on where the experts are.
    /// Padding rows are not read.
    ///
    /// # Errors
    /// When `expert_rows` has another length than R rows, other ranks have another `row_len`, or another rank has failed.
    pub fn combine(&self, comm: &Comm, expert_rows: &[f32], row_len: usize, weighted: bool) -> Result<Vec<f32>> {
        self.combine_with(comm, expert_rows, row_len, CombineOptions { weighted, wire: Wire::F32 })
    }

    /// [`combine`](Plan::combine) into memory of the caller, `[T, row_len]`, overwritten.
    ///
    /// # Errors
    /// As [`combine`](Plan::combine), and when `out` has another length than T rows.
    pub fn combine_into(&self, comm: &Comm, expert_rows: &[f32], row_len: usize, weighted: bool, out: &mut [f32]) -> Result<()> {
        self.combine_to(comm, expert_rows, row_len, CombineOptions { weighted, wire: Wire::F32 }, out)
    }

    /// [`combine`](Plan::combine) of f32 or bf16 rows over either wire. With [`Wire::Bf16`] the bits depend on the layout as
    /// [`reference::dispatch::combine_rounded`](crate::reference::dispatch::combine_rounded) says; bf16 results are rounded once more at home.
    ///
    /// # Errors
    /// As [`combine`](Plan::combine).
    pub fn combine_with<E: Element>(
        &self,
        comm: &Comm,
        expert_rows: &[E],
        row_len: usize,
        options: CombineOptions,
    ) -> Result<Vec<E>> {
        check_len("expert rows", expert_rows.len(), self.expert_rows(), row_len)?;
        let mut out = zero_rows(self.tokens, row_len)?;
        self.combine_to(comm, expert_rows, row_len, options, &mut out)?;
        Ok(out)
    }

    fn combine_to<E: Element>(
        &self,
        comm: &Comm,
        expert_rows: &[E],
        row_len: usize,
        options: CombineOptions,
        out: &mut [E],
    ) -> Result<()> {
        check_len("expert rows", expert_rows.len(), self.expert_rows(), row_len)?;
        check_len("combined rows", out.len(), self.tokens, row_len)?;
        self.check_group(comm)?;
        let mut sums = AnySums::new(comm, row_len, options);
        drive(comm, |comm| sums.poll(comm, self, expert_rows, out))
    }

    /// [`combine_with`](Plan::combine_with) in flight, as a [task](v3_ranks::Task) that owns the expert rows.
    ///
    /// # Errors
    /// When `expert_rows` has another length than R rows, or the group is not the plan's.
    pub fn combine_start<E: Element>(
        self: &Arc<Self>,
        comm: &Comm,
        expert_rows: Vec<E>,
        row_len: usize,
        options: CombineOptions,
    ) -> Result<Combine<E>> {
        check_len("expert rows", expert_rows.len(), self.expert_rows(), row_len)?;
        self.check_group(comm)?;
        let rows = zero_rows(self.tokens, row_len)?;
        let sums = AnySums::new(comm, row_len, options);
        Ok(Combine { plan: Arc::clone(self), sums, rows: Some(Combined { rows, expert_rows }) })
    }

    /// The backward pass of the weighted [`combine`](Plan::combine): from `dy` `[T, row_len]`, the gradient of its result, and the expert
    /// rows it was given, returns the gradients of the expert rows, weight * dy `[R, row_len]` (zeros in padding rows), and of the
    /// routing's weights, dy . row `[T, k]`.
    ///
    /// A product dy . row is added in 16 chains of fused multiply-adds, each over every 16th column, and the chains pairwise.
    ///
    /// # Errors
    /// When a length does not fit, other ranks have another `row_len`, or another rank has failed.
    pub fn combine_backward(&self, comm: &Comm, dy: &[f32], expert_rows: &[f32], row_len: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut d_expert_rows = bytemuck::allocation::zeroed_vec(expert_rows.len());
        let d_weights = self.combine_backward_into(comm, dy, expert_rows, row_len, &mut d_expert_rows)?;
        Ok((d_expert_rows, d_weights))
    }

    /// [`combine_backward`](Plan::combine_backward) with the gradients of the expert rows in memory of the caller, `[R, row_len]`, overwritten.
    /// Returns the gradients of the weights.
    ///
    /// # Errors
    /// As [`combine_backward`](Plan::combine_backward), and when `d_expert_rows` has another length than R rows.
    pub fn combine_backward_into(
        &self,
        comm: &Comm,
        dy: &[f32],
        expert_rows: &[f32],
        row_len: usize,
        d_expert_rows: &mut [f32],
    ) -> Result<Vec<f32>> {
        check_len("expert rows", expert_rows.len(), self.expert_rows(), row_len)?;
        self.backward(comm, dy, Some(expert_rows), row_len, d_expert_rows)
    }

    /// [`combine_backward`](Plan::combine_backward) where the gradients of the expert rows replace the rows themselves: no further memory.
    /// Returns the gradients of the weights.
    ///
    /// # Errors
    /// As [`combine_backward`](Plan::combine_backward).
    pub fn combine_backward_in_place(
        &self,
        comm: &Comm,
        dy: &[f32],
        expert_rows: &mut [f32],
        row_len: usize,
    ) -> Result<Vec<f32>> {
        self.backward(comm, dy, None, row_len, expert_rows)
    }

    fn backward(
        &self,
        comm: &Comm,
        dy: &[f32],
        expert_rows: Option<&[f32]>,
        row_len: usize,
        d_expert_rows: &mut [f32],
    ) -> Result<Vec<f32>> {
        check_len("gradients of combined rows", dy.len(), self.tokens, row_len)?;
        check_len("gradients of expert rows", d_expert_rows.len(), self.expert_rows(), row_len)?;
        self.check_group(comm)?;
        let mut work = Backward::new(comm, self, row_len);
        drive(comm, |comm| work.poll(comm, self, dy, expert_rows, d_expert_rows))
    }

    /// [`combine_backward_in_place`](Plan::combine_backward_in_place) in flight, as a [task](v3_ranks::Task) that owns both. With
    /// [`Wire::Bf16`] each rank rounds its rows of `dy` to bf16 first, for its own experts too.
    ///
    /// # Errors
    /// When a length does not fit, or the group is not the plan's.
    pub fn combine_backward_start(
        self: &Arc<Self>,
        comm: &Comm,
        dy: Vec<f32>,
        expert_rows: Vec<f32>,
        row_len: usize,
        wire: Wire,
    ) -> Result<CombineBackward> {
        check_len("gradients of combined rows", dy.len(), self.tokens, row_len)?;
        check_len("expert rows", expert_rows.len(), self.expert_rows(), row_len)?;
        self.check_group(comm)?;
        let narrow = match wire {
            Wire::F32 => None,
            Wire::Bf16 => {
                let mut narrow = vec![bf16::ZERO; dy.len()];
                v3_numerics::convert::f32_to_bf16(&dy, &mut narrow)
                    .map_err(|error| Error::Config { what: "dy", reason: error.to_string() })?;
                Some(narrow)
            }
        };
        let work = Backward::new(comm, self, row_len);
        Ok(CombineBackward { plan: Arc::clone(self), work, dy, narrow, d_rows: Some(expert_rows) })
    }

    /// The backward pass of [`dispatch`](Plan::dispatch) of f32 rows: the gradients of the dispatched rows `[R, row_len]` of each token,
    /// added in the same tree as in [`combine`](Plan::combine), without weights: `[T, row_len]`.
    ///
    /// # Errors
    /// As [`combine`](Plan::combine).
    pub fn dispatch_backward(&self, comm: &Comm, d_expert_rows: &[f32], row_len: usize) -> Result<Vec<f32>> {
        self.combine(comm, d_expert_rows, row_len, false)
    }

    /// [`dispatch_backward`](Plan::dispatch_backward) in flight: [`combine_start`](Plan::combine_start) without weights.
    ///
    /// # Errors
    /// As [`combine_start`](Plan::combine_start).
    pub fn dispatch_backward_start<E: Element>(
        self: &Arc<Self>,
        comm: &Comm,
        d_expert_rows: Vec<E>,
        row_len: usize,
        wire: Wire,
    ) -> Result<Combine<E>> {
        self.combine_start(comm, d_expert_rows, row_len, CombineOptions { weighted: false, wire })
    }
}
