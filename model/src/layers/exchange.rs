//! The four exchanges of a mixture-of-experts layer: each is started, and finished later.
//!
//! With a lane in [`Env`], an exchange is under way on the lane between the two while the rank's own thread does something else.
//! Without one, it is run when it is finished.

use std::cell::RefCell;
use std::sync::Arc;

use fp8_gemm::linear::{ACTIVATION_SCALES, Activation};
use fp8_gemm::quantize::quantize_1x128;
use fp8_gemm::{Block, BlockScaled, Precision};
use half::bf16;
use moe_dispatch::router::Routing;
use moe_dispatch::{Combine, CombineBackwardRows, CombineOptions, CombineRowGradients, Combined, Pairs, Plan, PlanOptions};
use moe_dispatch::{PlannedDispatch, Rows, WeightGradients, Wire};
use v3_numerics::view::MatRef;
use v3_numerics::{E4M3, convert};
use v3_ranks::{Comm, Lane, Step, Task, Ticket, run_task};

use super::Env;
use crate::error::{Error, Result};

/// What a dispatch carries: the normalised rows in the precision of the linear layers. A row is quantised by itself, so doing it
/// before the rows travel gives the bits of doing it after, and they take a half or a quarter of the bytes.
#[derive(Debug)]
pub enum Payload {
    /// f32 rows.
    F32(Rows<f32>),
    /// bf16 rows.
    Bf16(Rows<bf16>),
    /// FP8 rows with their scales.
    Fp8(Pairs<E4M3, f32>),
}

impl Payload {
    /// The rows `h`, in the precision of `env`.
    pub fn new(env: &Env<'_>, h: &[f32]) -> Result<Self> {
        let row_len = env.hidden;
        Ok(match env.precision {
            Precision::F32 => Payload::F32(Rows { data: h.to_vec(), row_len }),
            Precision::Bf16 => {
                let mut data = vec![bf16::ZERO; h.len()];
                convert::f32_to_bf16(h, &mut data)?;
                Payload::Bf16(Rows { data, row_len })
            }
            Precision::Fp8 => {
                let q = quantize_1x128(MatRef::new(h, h.len() / row_len, row_len)?, ACTIVATION_SCALES);
                let (data, side) = q.into_parts();
                Payload::Fp8(Pairs { data, row_len, side, side_len: row_len.div_ceil(128) })
            }
        })
    }
}

/// An exchange under way: a task, or the lane's ticket for it.
#[derive(Debug)]
pub enum Exchange<K, O> {
    /// It will run where it is waited for.
    Here(Box<K>),
    /// It runs on the lane.
    Lane(Ticket<O>),
}

impl<K, O> Exchange<K, O>
where
    K: Task<Output = O, Error = moe_dispatch::Error> + 'static,
    O: Send + 'static,
{
    fn start(env: &Env<'_>, task: K) -> Self {
        match env.lane {
            Some(lane) => Exchange::Lane(lane.submit(task)),
            None => Exchange::Here(Box::new(task)),
        }
    }

    /// Waits for the result.
    pub fn finish(self, env: &Env<'_>) -> Result<O> {
        Ok(match self {
            Exchange::Here(task) => run_task(env.ep, *task)?,
            Exchange::Lane(ticket) => ticket.finish(env.ep)?,
        })
    }
}

type PlannedRows<T> = Exchange<PlannedDispatch<Rows<T>>, (Arc<Plan>, moe_dispatch::Dispatched<Rows<T>>)>;
type PlannedPairs = Exchange<PlannedDispatch<Pairs<E4M3, f32>>, (Arc<Plan>, moe_dispatch::Dispatched<Pairs<E4M3, f32>>)>;

/// A dispatch under way, in the precision of its rows.
#[derive(Debug)]
pub enum Dispatch {
    /// f32 rows.
    F32(PlannedRows<f32>),
    /// bf16 rows.
    Bf16(PlannedRows<bf16>),
    /// FP8 rows with their scales.
    Fp8(PlannedPairs),
}

/// What a dispatch brings.
#[derive(Debug)]
pub struct Dispatched {
    /// Who sent what where; used by the three other exchanges.
    pub plan: Arc<Plan>,
    /// The rows of this rank's experts.
    pub rows: Activation,
}

impl Dispatch {
    /// Plans the dispatch of this routing and sends the rows to their experts.
    pub fn start(env: &Env<'_>, routing: &Routing, payload: Payload) -> Result<Self> {
        let (layout, options) = (&env.moe()?.layout, PlanOptions::default());
        Ok(match payload {
            Payload::F32(rows) => {
                Dispatch::F32(Exchange::start(env, Plan::start_dispatch(env.ep, layout, routing, options, rows)?))
            }
            Payload::Bf16(rows) => {
                Dispatch::Bf16(Exchange::start(env, Plan::start_dispatch(env.ep, layout, routing, options, rows)?))
            }
            Payload::Fp8(rows) => {
                Dispatch::Fp8(Exchange::start(env, Plan::start_dispatch(env.ep, layout, routing, options, rows)?))
            }
        })
    }

    /// Waits for the rows of this rank's experts.
    pub fn finish(self, env: &Env<'_>) -> Result<Dispatched> {
        let hidden = env.hidden;
        let (plan, rows) = match self {
            Dispatch::F32(exchange) => {
                let (plan, dispatched) = exchange.finish(env)?;
                let rows = env.activation(dispatched.rows.data, plan.expert_rows(), hidden)?;
                (plan, rows)
            }
            Dispatch::Bf16(exchange) => {
                let (plan, dispatched) = exchange.finish(env)?;
                let mut rows = vec![0.0; plan.expert_rows() * hidden];
                convert::bf16_to_f32(&dispatched.rows.data, &mut rows)?;
                let rows = env.activation(rows, plan.expert_rows(), hidden)?;
                (plan, rows)
            }
            Dispatch::Fp8(exchange) => {
                let (plan, dispatched) = exchange.finish(env)?;
                let Pairs { data, side, .. } = dispatched.rows;
                let rows = BlockScaled::new(data, side, plan.expert_rows(), hidden, Block::Row128)?;
                (plan, Activation::from_block_scaled(rows)?)
            }
        };
        Ok(Dispatched { plan, rows })
    }
}

/// A combine under way.
pub type Combining = Exchange<Combine<f32>, Combined<f32>>;

/// Sends expert rows back and adds them where their tokens are at home, times their weights if `weighted`.
pub fn start_combine(env: &Env<'_>, plan: &Arc<Plan>, rows: Vec<f32>, weighted: bool) -> Result<Combining> {
    let options = CombineOptions { weighted, wire: Wire::F32 };
    Ok(Exchange::start(env, plan.combine_start(env.ep, rows, env.hidden, options)?))
}

/// The backward of a combine under way: the gradients of the expert rows.
pub type CombiningBackward = Exchange<CombineBackwardRows, CombineRowGradients>;

/// Sends the gradients `dy` of combined rows to the experts, which gives the gradients of the expert rows `out_rows`. Those of the
/// weights are another exchange.
pub fn start_combine_backward(env: &Env<'_>, plan: &Arc<Plan>, dy: Vec<f32>, out_rows: Vec<f32>) -> Result<CombiningBackward> {
    let task = plan.combine_backward_start(env.ep, dy, out_rows, env.hidden, Wire::F32)?.split();
    Ok(Exchange::start(env, task))
}

/// The backward of a dispatch under way.
#[derive(Debug)]
pub struct DispatchingBackward {
    weights: Exchange<WeightGradients, Vec<f32>>,
    rows: Combining,
}

impl DispatchingBackward {
    /// Sends the gradients of the router's weights home, and behind them those of the expert rows `drows`, added where their tokens
    /// are at home.
    pub fn start(env: &Env<'_>, plan: &Arc<Plan>, weights: WeightGradients, drows: Vec<f32>) -> Result<Self> {
        let weights = Exchange::start(env, weights);
        Ok(Self { weights, rows: start_combine(env, plan, drows, false)? })
    }

    /// Waits for the gradients of the tokens' rows, and of their weights.
    pub fn finish(self, env: &Env<'_>) -> Result<(Vec<f32>, Vec<f32>)> {
        let dweights = self.weights.finish(env)?;
        Ok((self.rows.finish(env)?.rows, dweights))
    }
}

/// Starts a lane of this rank for its exchanges. What it packs and adds, it does on its own thread, without taking part in the
/// rank's threads.
pub fn lane(ep: &Comm) -> Result<Lane> {
    let lane = Lane::spawn(ep, "exchange")?;
    lane.submit(OwnThread).finish(ep)?;
    Ok(lane)
}

/// Makes a pool of the lane's thread alone, which parallel loops on it then use.
struct OwnThread;

thread_local! {
    static POOL: RefCell<Option<rayon::ThreadPool>> = const { RefCell::new(None) };
}

impl Task for OwnThread {
    type Output = ();
    type Error = Error;

    fn poll(&mut self, _: &Comm) -> Result<Step<()>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().map_err(Error::piece("rayon"))?;
        POOL.with(|own| own.replace(Some(pool)));
        Ok(Step::Done(()))
    }
}
