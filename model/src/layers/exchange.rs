//! The four exchanges of a mixture-of-experts layer: each is started, and finished later.

use std::sync::Arc;

use fp8_gemm::linear::{ACTIVATION_SCALES, Activation};
use fp8_gemm::quantize::quantize_1x128;
use fp8_gemm::{Block, BlockScaled, Precision};
use half::bf16;
use moe_dispatch::Plan;
use moe_dispatch::router::Routing;
use v3_numerics::convert;
use v3_numerics::view::MatRef;

use super::Env;
use crate::error::Result;

/// What a dispatch carries: the normalised rows in the precision of the linear layers. A row is quantised by itself, so doing it
/// before the rows travel gives the bits of doing it after, and they take a half or a quarter of the bytes.
#[derive(Debug)]
pub enum Payload {
    /// f32 rows.
    F32(Vec<f32>),
    /// bf16 rows.
    Bf16(Vec<bf16>),
    /// FP8 rows with their scales.
    Fp8(Box<BlockScaled>),
}

impl Payload {
    /// The rows `h`, in the precision of `env`.
    pub fn new(env: &Env<'_>, h: &[f32]) -> Result<Self> {
        Ok(match env.precision {
            Precision::F32 => Payload::F32(h.to_vec()),
            Precision::Bf16 => {
                let mut narrow = vec![bf16::ZERO; h.len()];
                convert::f32_to_bf16(h, &mut narrow)?;
                Payload::Bf16(narrow)
            }
            Precision::Fp8 => {
                Payload::Fp8(Box::new(quantize_1x128(MatRef::new(h, h.len() / env.hidden, env.hidden)?, ACTIVATION_SCALES)))
            }
        })
    }
}

/// What a dispatch brings.
#[derive(Debug)]
pub struct Dispatched {
    /// Who sent what where; used by the three other exchanges.
    pub plan: Arc<Plan>,
    /// The rows of this rank's experts.
    pub rows: Activation,
}

/// An exchange under way.
#[derive(Debug)]
pub struct Pending<T> {
    result: T,
}

impl<T> Pending<T> {
    /// Waits for the result.
    pub fn finish(self, _env: &Env<'_>) -> Result<T> {
        Ok(self.result)
    }
}

/// Plans the dispatch of this routing and sends the rows to their experts.
pub fn start_dispatch(env: &Env<'_>, routing: &Routing, payload: Payload) -> Result<Pending<Dispatched>> {
    let plan = Plan::new(env.ep, &env.moe()?.layout, routing)?;
    let (rows, hidden) = (plan.expert_rows(), env.hidden);
    let rows = match payload {
        Payload::F32(h) => env.activation(plan.dispatch(env.ep, &h, hidden)?, rows, hidden)?,
        Payload::Bf16(narrow) => {
            let mut sent = vec![0.0; rows * hidden];
            convert::bf16_to_f32(&plan.dispatch(env.ep, &narrow, hidden)?, &mut sent)?;
            env.activation(sent, rows, hidden)?
        }
        Payload::Fp8(q) => {
            let scales = (q.scales(), hidden.div_ceil(128));
            let (data, scales) = plan.dispatch_pair(env.ep, (q.data(), hidden), scales)?;
            Activation::from_block_scaled(BlockScaled::new(data, scales, rows, hidden, Block::Row128)?)?
        }
    };
    Ok(Pending { result: Dispatched { plan: Arc::new(plan), rows } })
}

/// Combined rows.
#[derive(Debug)]
pub struct Combined {
    /// `[tokens, hidden]`.
    pub out: Vec<f32>,
    /// The expert rows that were sent, handed back.
    pub rows: Vec<f32>,
}

/// Sends expert rows back and adds them where their tokens are at home, times their weights if `weighted`.
pub fn start_combine(env: &Env<'_>, plan: &Arc<Plan>, rows: Vec<f32>, weighted: bool) -> Result<Pending<Combined>> {
    Ok(Pending { result: Combined { out: plan.combine(env.ep, &rows, env.hidden, weighted)?, rows } })
}

/// The gradients of a combine.
#[derive(Debug)]
pub struct CombineGradients {
    /// Of the expert rows.
    pub dout_rows: Vec<f32>,
    /// Of the weights.
    pub dweights: Vec<f32>,
    /// The gradients that were sent, handed back.
    pub dy: Vec<f32>,
}

/// Sends the gradients `dy` of combined rows to the experts: gives the gradients of the expert rows `out_rows`, and on the way back
/// those of the weights.
pub fn start_combine_backward(
    env: &Env<'_>,
    plan: &Arc<Plan>,
    dy: Vec<f32>,
    out_rows: Vec<f32>,
) -> Result<Pending<CombineGradients>> {
    let (dout_rows, dweights) = plan.combine_backward(env.ep, &dy, &out_rows, env.hidden)?;
    Ok(Pending { result: CombineGradients { dout_rows, dweights, dy } })
}
