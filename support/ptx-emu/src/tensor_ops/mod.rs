//! Matrix instructions in a warp's or warpgroup's context: decoding and executing. What they compute is in [`crate::tensor`].

mod flight;
mod warp;
mod wgmma;
mod wmma;

use crate::ast::Instruction;
use crate::config::Fp8Accumulation;
use crate::cx::{Cx, Step, Wait};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::regs::{LANES, Mask};
use crate::report::Kind;
use crate::tensor::{self, Accumulation, Accumulator, Multiplicand};

pub use flight::{WarpState, before_instruction};
pub use wgmma::{BlockState, describe, satisfied};

/// A decoded instruction of this family.
#[derive(Debug)]
pub enum TensorOp {
    /// `mma.sync`
    Mma(warp::MmaOp),
    /// `mma.sync` of F64.
    MmaF64(warp::MmaF64),
    /// `ldmatrix`, `stmatrix`
    Matrix(warp::MatrixOp),
    /// `movmatrix`
    Transpose(warp::Transpose),
    /// `wmma.mma`
    Wmma(Box<wmma::WmmaOp>),
    /// `wmma.load`, `wmma.store`
    WmmaTransfer(Box<wmma::Transfer>),
    /// `wgmma.mma_async`
    Wgmma(Box<wgmma::WgmmaOp>),
    /// `wgmma.fence`
    WgmmaFence,
    /// `wgmma.commit_group`
    WgmmaCommit,
    /// `wgmma.wait_group`
    WgmmaWait(u32),
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<TensorOp> {
    let opcode: Vec<&str> = instruction.opcode.iter().map(String::as_str).collect();
    match opcode.as_slice() {
        ["mma", "sync", "aligned", shape, rest @ ..] => warp::decode_mma(decoder, instruction, shape, rest),
        ["ldmatrix" | "stmatrix", "sync", "aligned", rest @ ..] => {
            warp::decode_matrix(decoder, instruction, opcode[0] == "stmatrix", rest)
        }
        ["movmatrix", "sync", "aligned", "m8n8", "trans", "b16"] => warp::decode_transpose(decoder, instruction),
        ["wmma", "load", which @ ("a" | "b" | "c"), "sync", "aligned", rest @ ..]
        | ["wmma", "store", which @ "d", "sync", "aligned", rest @ ..] => {
            wmma::decode_transfer(decoder, instruction, which, rest)
        }
        ["wmma", "mma", "sync", "aligned", rest @ ..] => wmma::decode_mma(decoder, instruction, rest),
        ["wgmma", "mma_async", "sync", "aligned", shape, rest @ ..] => wgmma::decode(decoder, instruction, shape, rest),
        ["wgmma", "fence", "sync", "aligned"] if instruction.operands.is_empty() => Ok(TensorOp::WgmmaFence),
        ["wgmma", "commit_group", "sync", "aligned"] if instruction.operands.is_empty() => Ok(TensorOp::WgmmaCommit),
        ["wgmma", "wait_group", "sync", "aligned"] => match instruction.operands.as_slice() {
            [pending] => {
                let pending = decoder.literal(pending)?;
                Ok(TensorOp::WgmmaWait(u32::try_from(pending).unwrap_or(u32::MAX)))
            }
            _ => Err(decoder.error("wgmma.wait_group takes one integer")),
        },
        _ => Err(decoder.unknown(instruction)),
    }
}

/// Executes one.
pub fn exec(op: &TensorOp, cx: &mut Cx<'_>) -> Exec<Step> {
    if let Some(wait) = converge(cx)? {
        return Ok(Step::Wait(wait));
    }
    match op {
        TensorOp::Mma(op) => op.exec(cx)?,
        TensorOp::MmaF64(op) => op.exec(cx)?,
        TensorOp::Matrix(op) => op.exec(cx)?,
        TensorOp::Transpose(op) => op.exec(cx),
        TensorOp::Wmma(op) => op.exec(cx)?,
        TensorOp::WmmaTransfer(op) => op.exec(cx)?,
        TensorOp::Wgmma(op) => return op.exec(cx),
        // Only the check of registers in flight counts fences.
        TensorOp::WgmmaFence if cx.env.config.checks.in_flight => cx.warp.tensor.fence(),
        TensorOp::WgmmaFence => {}
        TensorOp::WgmmaCommit => cx.warp.tensor.commit(),
        TensorOp::WgmmaWait(pending) => flight::wait(cx, *pending as usize)?,
    }
    Ok(Step::Next)
}

/// All of this family are `.sync.aligned`, for whole warps: waits until all lanes are here; an error when they cannot come.
fn converge(cx: &Cx<'_>) -> Exec<Option<Wait>> {
    if cx.mask == Mask::MAX {
        return Ok(None);
    }
    let live = cx.warp.live;
    if live != Mask::MAX {
        let missing = !live;
        let why = if cx.warp.exists == Mask::MAX { "have exited" } else { "have exited or do not exist" };
        let message = format!("all 32 threads of a warp must execute it, those in lanes {missing:#010x} {why}");
        return Err(Fault::at(Kind::Divergence, missing.trailing_zeros() as usize % LANES, message));
    }
    let here = cx.warp.groups.get(cx.warp.current).map_or(0, |g| g.mask);
    let skip = here & !cx.mask;
    if skip != 0 {
        let message = format!("all threads of a warp must execute it together, the guard is false in lanes {skip:#010x}");
        return Err(Fault::at(Kind::Divergence, skip.trailing_zeros() as usize % LANES, message));
    }
    Ok(Some(Wait::Converge(live)))
}

impl From<tensor::Error> for Box<Fault> {
    fn from(error: tensor::Error) -> Box<Fault> {
        let kind = match error {
            tensor::Error::SharedOutOfBounds { .. } => Kind::OutOfBounds,
            _ => Kind::IllegalOperand,
        };
        Fault::new(kind, error.to_string())
    }
}

fn accumulation(cx: &Cx<'_>) -> Accumulation {
    match cx.env.config.fp8 {
        Fp8Accumulation::Exact => Accumulation::Exact,
        Fp8Accumulation::Hopper => Accumulation::Hopper,
    }
}

/// The numbers of a shape: `m16n8k32` is (16, 8, 32).
fn shape(text: &str) -> Option<(usize, usize, usize)> {
    let (m, rest) = text.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

fn multiplicand(text: &str) -> Option<Multiplicand> {
    Some(match text {
        "f16" => Multiplicand::F16,
        "bf16" => Multiplicand::Bf16,
        "tf32" => Multiplicand::Tf32,
        "e4m3" => Multiplicand::E4m3,
        "e5m2" => Multiplicand::E5m2,
        "s8" => Multiplicand::S8,
        "u8" => Multiplicand::U8,
        "s4" => Multiplicand::S4,
        "u4" => Multiplicand::U4,
        _ => return None,
    })
}

fn accumulator(text: &str) -> Option<Accumulator> {
    Some(match text {
        "f16" => Accumulator::F16,
        "f32" => Accumulator::F32,
        "s32" => Accumulator::S32,
        _ => return None,
    })
}

/// `.satfinite`, wherever it stands, and what is left.
fn take_satfinite<'t>(parts: &[&'t str]) -> (bool, Vec<&'t str>) {
    let rest: Vec<&str> = parts.iter().copied().filter(|&part| part != "satfinite").collect();
    (rest.len() + 1 == parts.len(), rest)
}
