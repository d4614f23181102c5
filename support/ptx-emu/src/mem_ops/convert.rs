//! `cvta`, `isspacep`, `mapa`, `getctarank`, `createpolicy`, `prefetch`, `applypriority`, `discard`: what is about addresses and not about
//! what lies there.

use super::modifiers::MemSpace;
use super::place::{self, NOT_SHARED, Note, Place, Shape};
use crate::ast::{Instruction, Space, Type};
use crate::cx::{Cx, LOCAL_WINDOW, PARAM_WINDOW, SHARED_RANK_SHIFT, SHARED_WINDOW, Step, WINDOW};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{Addr, Reg, Src};
use crate::race::{AccessKind, Sem};
use crate::regs::{LANES, lanes};
use crate::report::Kind;

/// A decoded instruction on addresses.
#[derive(Debug)]
pub enum Convert {
    /// `cvta`: to the generic address.
    Generic { dst: Reg, src: Src, space: MemSpace },
    /// `cvta.to`: from the generic address.
    Specific { dst: Reg, src: Src, space: MemSpace },
    /// `isspacep`
    Within { dst: Option<u32>, src: Src, space: MemSpace },
    /// `mapa`
    Map { dst: Reg, src: Src, block: Src, generic: bool },
    /// `getctarank`
    Rank { dst: Reg, src: Src, generic: bool },
    /// `createpolicy.fractional`, `.range`, `.cvt`: a value that stands for itself.
    Policy { dst: Reg, fraction: Option<Src> },
    /// `prefetch`, `prefetchu`: nothing happens.
    Prefetch,
    /// `applypriority`, `discard`: 128 bytes of global memory, whose contents `discards` gives up.
    Line { addr: Addr, generic: bool, discards: bool },
}

fn space(part: &str) -> Option<MemSpace> {
    Some(match part {
        "global" => MemSpace::Global,
        "const" => MemSpace::Const,
        "local" => MemSpace::Local,
        "shared" | "shared::cta" => MemSpace::SharedCta,
        "shared::cluster" => MemSpace::SharedCluster,
        "param" | "param::entry" => MemSpace::Param,
        _ => return None,
    })
}

/// The space of a variable must be that of the instruction.
fn agree(decoder: &Decoder<'_>, src: &Src, space: MemSpace) -> Result<()> {
    let fits = match decoder.space_of(src) {
        None => true,
        Some(Space::Global) => space == MemSpace::Global,
        Some(Space::Const) => space == MemSpace::Const,
        Some(Space::Shared) => matches!(space, MemSpace::SharedCta | MemSpace::SharedCluster),
        Some(Space::Local) => space == MemSpace::Local,
        Some(Space::Param) => space == MemSpace::Param,
        Some(Space::Reg) => false,
    };
    if fits { Ok(()) } else { Err(decoder.error("the variable lies in another state space than the instruction says")) }
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<Convert> {
    let opcode: Vec<&str> = instruction.opcode.iter().map(String::as_str).collect();
    let unknown = || decoder.unknown(instruction);
    match (opcode.as_slice(), instruction.operands.as_slice()) {
        (["cvta", "to", part, "u64"], [dst, src]) => {
            let space = space(part).ok_or_else(unknown)?;
            let dst = decoder.dst_of(dst, Type::U64)?;
            let src = decoder.src(src, Type::U64)?;
            Ok(Convert::Specific { dst, src, space })
        }
        (["cvta", part, "u64"], [dst, src]) => {
            let space = space(part).ok_or_else(unknown)?;
            let dst = decoder.dst_of(dst, Type::U64)?;
            let src = decoder.src(src, Type::U64)?;
            agree(decoder, &src, space)?;
            Ok(Convert::Generic { dst, src, space })
        }
        (["isspacep", part], [dst, src]) => {
            let space = space(part).ok_or_else(unknown)?;
            let dst = decoder.pred_dst(dst)?;
            let src = decoder.src(src, Type::U32)?;
            Ok(Convert::Within { dst, src, space })
        }
        (["mapa", rest @ .., ty @ ("u32" | "u64")], [dst, src, block]) => {
            let ty = if *ty == "u64" { Type::U64 } else { Type::U32 };
            let generic = match (rest, ty) {
                ([], Type::U64) => true,
                (["shared::cluster"], _) => false,
                _ => return Err(unknown()),
            };
            let dst = decoder.dst_of(dst, ty)?;
            let src = decoder.src(src, ty)?;
            agree(decoder, &src, if generic { MemSpace::Generic } else { MemSpace::SharedCta })?;
            let block = decoder.src(block, Type::U32)?;
            Ok(Convert::Map { dst, src, block, generic })
        }
        (["getctarank", rest @ .., ty @ ("u32" | "u64")], [dst, src]) => {
            let ty = if *ty == "u64" { Type::U64 } else { Type::U32 };
            let generic = match (rest, ty) {
                ([], Type::U64) => true,
                (["shared::cluster"], _) => false,
                _ => return Err(unknown()),
            };
            let dst = decoder.dst_of(dst, Type::U32)?;
            let src = decoder.src(src, ty)?;
            agree(decoder, &src, if generic { MemSpace::Generic } else { MemSpace::SharedCta })?;
            Ok(Convert::Rank { dst, src, generic })
        }
        (["createpolicy", "cvt", "L2", "b64"], [dst, property]) => {
            let dst = decoder.dst_of(dst, Type::B64)?;
            decoder.src(property, Type::B64)?;
            Ok(Convert::Policy { dst, fraction: None })
        }
        (["createpolicy", "fractional", rest @ .., "b64"], [dst, fraction @ ..]) if priorities(rest) && fraction.len() <= 1 => {
            let dst = decoder.dst_of(dst, Type::B64)?;
            let fraction = match fraction {
                [fraction] => Some(decoder.src(fraction, Type::F32)?),
                _ => None,
            };
            Ok(Convert::Policy { dst, fraction })
        }
        (["createpolicy", "range", rest @ .., "b64"], [dst, address, primary, total])
            if priorities(rest.strip_prefix(&["global"]).unwrap_or(rest)) =>
        {
            let dst = decoder.dst_of(dst, Type::B64)?;
            decoder.addr(address)?;
            decoder.src(primary, Type::U32)?;
            decoder.src(total, Type::U32)?;
            Ok(Convert::Policy { dst, fraction: None })
        }
        (["prefetch", "L1" | "L2"] | ["prefetch", "global" | "local", "L1" | "L2"], [address])
        | (["prefetch", "global", "L2::evict_last" | "L2::evict_normal"], [address])
        | (["prefetch", "tensormap"] | ["prefetch", "const" | "param", "tensormap"], [address])
        | (["prefetchu", "L1"], [address]) => {
            decoder.addr(address)?;
            Ok(Convert::Prefetch)
        }
        (["applypriority", rest @ .., "L2::evict_normal"] | ["discard", rest @ .., "L2"], [address, size]) => {
            let generic = match rest {
                [] => true,
                ["global"] => false,
                _ => return Err(unknown()),
            };
            let addr = decoder.addr(address)?;
            if decoder.literal(size)? != 128 {
                return Err(decoder.error("the size must be 128"));
            }
            Ok(Convert::Line { addr, generic, discards: opcode[0] == "discard" })
        }
        _ => Err(unknown()),
    }
}

/// `.L2::primary` with or without `.L2::secondary`.
fn priorities(parts: &[&str]) -> bool {
    let primary = |p: &str| matches!(p, "L2::evict_last" | "L2::evict_normal" | "L2::evict_first" | "L2::evict_unchanged");
    match parts {
        [first] => primary(first),
        [first, second] => primary(first) && matches!(*second, "L2::evict_first" | "L2::evict_unchanged"),
        _ => false,
    }
}

/// Executes one.
pub fn exec(op: &Convert, cx: &mut Cx<'_>) -> Exec<Step> {
    let (rank, ranks) = (cx.rank, cx.blocks.len());
    match op {
        Convert::Generic { dst, src, space } => {
            let start = match space {
                MemSpace::SharedCta | MemSpace::SharedCluster => SHARED_WINDOW,
                MemSpace::Local => LOCAL_WINDOW,
                MemSpace::Param => PARAM_WINDOW,
                _ => 0,
            };
            let values = cx.get64(src);
            // Addresses inside a window have 32 bits.
            let window = if start == 0 { u64::MAX } else { WINDOW - 1 };
            cx.set64(*dst, &values.map(|a| start + (a & window)));
        }
        Convert::Specific { dst, src, space } => {
            let values = cx.get64(src);
            let values = match space {
                MemSpace::SharedCta | MemSpace::SharedCluster => values.map(|a| match a.wrapping_sub(SHARED_WINDOW) {
                    inside @ 0..WINDOW => inside,
                    // What comes of it must not look like an address of shared memory even when it is cut to 32 bits.
                    _ => NOT_SHARED,
                }),
                MemSpace::Local => values.map(|a| a.wrapping_sub(LOCAL_WINDOW)),
                MemSpace::Param => values.map(|a| a.wrapping_sub(PARAM_WINDOW)),
                _ => values,
            };
            cx.set64(*dst, &values);
        }
        Convert::Within { dst, src, space } => {
            let values = cx.get64(src);
            let device = cx.launch.device;
            let mut mask = 0;
            for lane in lanes(cx.mask) {
                let address = values[lane];
                let within = match (place::place_of(MemSpace::Generic, address, rank, ranks), space) {
                    (Ok((Place::Shared(at), _)), MemSpace::SharedCta) => at == rank,
                    (Ok((Place::Shared(_), _)), space) => *space == MemSpace::SharedCluster,
                    (Ok((Place::Local, _)), space) => *space == MemSpace::Local,
                    // The window of parameters is a part of that of global memory.
                    (Ok((Place::Param, _)), space) => matches!(space, MemSpace::Param | MemSpace::Global),
                    (Ok((Place::Global, _)), MemSpace::Global) => !is_constant(cx, device, address),
                    (Ok((Place::Global, _)), MemSpace::Const) => is_constant(cx, device, address),
                    _ => false,
                };
                mask |= u32::from(within) << lane;
            }
            if let Some(dst) = dst {
                cx.set_pred(*dst, mask);
            }
        }
        Convert::Map { dst, src, block, generic } => {
            let (values, targets) = (cx.get64(src), cx.get32(block));
            let mut result = [0; LANES];
            for lane in lanes(cx.mask) {
                let target = targets[lane];
                if target as usize >= ranks {
                    let message = format!("mapa to the block of rank {target} of a cluster of {ranks}");
                    return Err(Fault::at(Kind::IllegalOperand, lane, message));
                }
                let offset = shared_offset(*generic, values[lane], rank, ranks, lane)?;
                let mapped = offset | u64::from(target + 1) << SHARED_RANK_SHIFT;
                result[lane] = if *generic { SHARED_WINDOW + mapped } else { mapped };
            }
            cx.set64(*dst, &result);
        }
        Convert::Rank { dst, src, generic } => {
            let values = cx.get64(src);
            let mut result = [0; LANES];
            let space = if *generic { MemSpace::Generic } else { MemSpace::SharedCluster };
            for lane in lanes(cx.mask) {
                let (at, _) = place::shared_address(space, values[lane], rank, ranks, lane)?;
                result[lane] = at as u32;
            }
            cx.set32(*dst, &result);
        }
        Convert::Policy { dst, fraction } => {
            if let Some(fraction) = fraction {
                let values = cx.get32(fraction);
                for lane in lanes(cx.mask) {
                    let value = f32::from_bits(values[lane]);
                    if !(value > 0.0 && value <= 1.0) {
                        let message = format!("createpolicy with the fraction {value}: it must be above 0 and at most 1");
                        return Err(Fault::at(Kind::IllegalOperand, lane, message));
                    }
                }
            }
            // The value is opaque; nothing here depends on it.
            cx.set64(*dst, &[1; LANES]);
        }
        Convert::Prefetch => {}
        Convert::Line { addr, generic, discards } => {
            let addresses = cx.address(addr);
            let space = if *generic { MemSpace::Generic } else { MemSpace::Global };
            let shape = Shape { bytes: 128, element: 128, used: 1, reads: false, writes: *discards, constant: false };
            let discards = *discards;
            place::by_place(cx, space, &addresses, |cx, place, addresses, mask| {
                if place != Place::Global {
                    let message = format!("{} on what is not global memory", cx.instr.text);
                    return Err(Fault::at(Kind::IllegalOperand, mask.trailing_zeros() as usize, message));
                }
                place::global(cx, addresses, mask, &shape)?;
                if !discards {
                    return Ok(());
                }
                // The detector takes 64 bytes at a time.
                let half = Shape { bytes: 64, element: 64, ..shape };
                let note = Note { kind: AccessKind::Write, sem: Sem::WEAK, shape: &half, agree: Some(&|_, _| true) };
                place::note_access(cx, place, addresses, mask, &note)?;
                place::note_access(cx, place, &addresses.map(|a| a.wrapping_add(64)), mask, &note)?;
                // Undefined until written again.
                for lane in lanes(mask) {
                    let range = place::global_range(cx.env, cx.launch.device, addresses[lane], 128, true, "discard")?;
                    range.undefine(addresses[lane] - range.base(), 128);
                }
                Ok(())
            })?;
        }
    }
    Ok(Step::Next)
}

/// The offset in its block of a shared address, without the block's rank.
fn shared_offset(generic: bool, address: u64, rank: usize, ranks: usize, lane: usize) -> Exec<u64> {
    let space = if generic { MemSpace::Generic } else { MemSpace::SharedCluster };
    let (_, offset) = place::shared_address(space, address, rank, ranks, lane)?;
    if u64::from(offset) >> SHARED_RANK_SHIFT != 0 {
        return Err(Fault::at(Kind::OutOfBounds, lane, format!("{address:#x} is not an address of shared memory")));
    }
    Ok(u64::from(offset))
}

fn is_constant(cx: &mut Cx<'_>, device: u32, address: u64) -> bool {
    let site = cx.site;
    let Some(block) = cx.blocks.get_mut(cx.rank) else { return false };
    block.view.find(&cx.env.memory, device, site, address).is_some_and(|found| found.constant())
}
