//! Fences: `fence`, `membar` (PTX ISA 9.0, section 9.7.13.5 "membar/fence").
//!
//! Memory here is sequentially consistent, so that fences only tell the race detector what is ordered.

use super::parts::Parts;
use super::{SyncOp, hooks};
use crate::ast::{Instruction, Type};
use crate::cx::{Cx, Step};
use crate::decode::{Decoder, Result};
use crate::fault::Exec;
use crate::race::{FenceOrder, ProxyFence, Scope};

/// A fence.
#[derive(Debug, Clone, Copy)]
pub enum FenceOp {
    /// Of the generic proxy.
    Memory(FenceOrder, Scope),
    /// `fence.proxy.async`.
    ProxyAsync(ProxyFence),
    /// `fence.mbarrier_init`.
    MbarrierInit,
    /// `fence.proxy.alias`: other virtual addresses of the same memory, of which there are none here.
    ProxyAlias,
    /// `fence.proxy.tensormap`: tensor maps are read when a copy is issued, in the program's order. A release or acquire at its scope.
    Tensormap(FenceOrder, Scope),
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<SyncOp> {
    let mut parts = Parts::new(instruction, 1);
    let op = if instruction.opcode.first().is_some_and(|base| base == "membar") { membar(&mut parts) } else { fence(&mut parts) };
    let Some(op) = op.filter(|_| parts.done()) else { return Err(decoder.unknown(instruction)) };
    match (op, instruction.operands.as_slice()) {
        (FenceOp::Tensormap(FenceOrder::Acquire, _), [address, size]) => {
            decoder.addr(address)?;
            decoder.src(size, Type::U32)?;
            if decoder.literal(size)? != 128 {
                return Err(decoder.error("fence.proxy.tensormap covers 128 bytes"));
            }
        }
        (FenceOp::Tensormap(FenceOrder::Acquire, _), _) => return Err(decoder.error("this fence takes an address and a size")),
        (_, []) => {}
        _ => return Err(decoder.error("this fence takes no operands")),
    }
    Ok(SyncOp::Fence(op))
}

fn membar(parts: &mut Parts<'_>) -> Option<FenceOp> {
    if parts.take("proxy") {
        return parts.take("alias").then_some(FenceOp::ProxyAlias);
    }
    let scope = parts.one_of(&[("cta", Scope::Cta), ("gl", Scope::Gpu), ("sys", Scope::Sys)])?;
    Some(FenceOp::Memory(FenceOrder::Sc, scope))
}

fn fence(parts: &mut Parts<'_>) -> Option<FenceOp> {
    if parts.take("mbarrier_init") {
        return (parts.take("release") && parts.take("cluster")).then_some(FenceOp::MbarrierInit);
    }
    if parts.take("proxy") {
        if parts.take("alias") {
            return Some(FenceOp::ProxyAlias);
        }
        if parts.take("async") {
            let covers = parts.one_of(&[
                ("global", ProxyFence::GLOBAL),
                ("shared::cta", ProxyFence::SHARED_CTA),
                ("shared::cluster", ProxyFence::SHARED_CLUSTER),
            ]);
            return Some(FenceOp::ProxyAsync(covers.unwrap_or(ProxyFence::ALL)));
        }
        if parts.take("tensormap::generic") {
            let order = parts.one_of(&[("release", FenceOrder::Release), ("acquire", FenceOrder::Acquire)])?;
            return Some(FenceOp::Tensormap(order, parts.scope()?));
        }
        return None;
    }
    let order = parts.one_of(&[
        ("sc", FenceOrder::Sc),
        ("acq_rel", FenceOrder::AcqRel),
        ("acquire", FenceOrder::Acquire),
        ("release", FenceOrder::Release),
    ]);
    Some(FenceOp::Memory(order.unwrap_or(FenceOrder::AcqRel), parts.scope()?))
}

/// Executes one.
pub fn exec(op: FenceOp, cx: &mut Cx<'_>) -> Exec<Step> {
    match op {
        FenceOp::Memory(order, scope) | FenceOp::Tensormap(order, scope) => hooks::fence(cx, order, scope)?,
        FenceOp::ProxyAsync(covers) => hooks::fence_proxy_async(cx, covers)?,
        FenceOp::MbarrierInit => hooks::fence_mbarrier_init(cx)?,
        FenceOp::ProxyAlias => {}
    }
    Ok(Step::Next)
}
