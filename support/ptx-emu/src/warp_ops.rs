//! Exchanges inside a warp: shuffles, votes, matches, reductions, election: decoding and executing.
//!
//! All of them name the lanes that take part in a *membermask* (PTX ISA 9.0, sections 9.7.9.6 and 9.7.13.10 to 9.7.13.16). Each executing
//! lane must be in its own mask, and lanes of one mask wait for each other; lanes that have exited do not count. Lanes
//! that come together with different masks (after `match.any`, say) are so many separate exchanges.

use crate::ast::{Instruction, Operand, Type};
use crate::cx::{Cx, Step, Wait};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{PredSrc, Reg, Src};
use crate::regs::{LANES, Lanes32, Mask, lanes};
use crate::report::Kind;

/// A decoded instruction of this family.
#[derive(Debug)]
pub enum WarpOp {
    /// `shfl.sync`
    Shuffle { mode: Shuffle, dst: Reg, inside: Option<u32>, value: Src, distance: Src, clamp: Src, members: Src },
    /// `vote.sync.{all,any,uni}.pred`
    Vote { what: Vote, dst: Option<u32>, pred: PredSrc, members: Src },
    /// `vote.sync.ballot.b32`
    Ballot { dst: Reg, pred: PredSrc, members: Src },
    /// `match.{any,all}.sync`
    Match { all: bool, dst: Reg, same: Option<u32>, value: Src, members: Src },
    /// `activemask`
    ActiveMask { dst: Reg },
    /// `redux.sync`
    Redux { op: Redux, dst: Reg, value: Src, members: Src },
    /// `elect.sync`
    Elect { dst: Reg, leader: Option<u32>, members: Src },
}

/// Where a shuffle reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    /// A lower lane.
    Up,
    /// A higher lane.
    Down,
    /// The lane whose number differs in these bits.
    Bfly,
    /// A lane of its segment by number.
    Idx,
}

/// What a vote asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    /// All true.
    All,
    /// Any true.
    Any,
    /// All alike.
    Uni,
}

/// How a reduction combines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redux {
    /// Modulo 2^32.
    Add,
    /// Unsigned.
    MinU,
    /// Signed.
    MinS,
    /// Unsigned.
    MaxU,
    /// Signed.
    MaxS,
    /// Bitwise.
    And,
    /// Bitwise.
    Or,
    /// Bitwise.
    Xor,
}

/// A register destination, perhaps with a predicate: `d` or `d|p`.
fn dst_and_pred(decoder: &mut Decoder<'_>, operand: &Operand) -> Result<(Reg, Option<u32>)> {
    match operand {
        Operand::Pair(dst, pred) => Ok((decoder.dst_of(dst, Type::B32)?, decoder.pred_dst(pred)?)),
        dst => Ok((decoder.dst_of(dst, Type::B32)?, None)),
    }
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<WarpOp> {
    let opcode: Vec<&str> = instruction.opcode.iter().map(String::as_str).collect();
    let operands = instruction.operands.as_slice();
    let wrong = |decoder: &Decoder<'_>| decoder.error(format!("{} with {} operands", opcode.join("."), operands.len()));
    Ok(match opcode.as_slice() {
        ["shfl", "sync", mode @ ("up" | "down" | "bfly" | "idx"), "b32"] => {
            let [dst, value, distance, clamp, members] = operands else { return Err(wrong(decoder)) };
            let (dst, inside) = dst_and_pred(decoder, dst)?;
            WarpOp::Shuffle {
                mode: match *mode {
                    "up" => Shuffle::Up,
                    "down" => Shuffle::Down,
                    "bfly" => Shuffle::Bfly,
                    _ => Shuffle::Idx,
                },
                dst,
                inside,
                value: decoder.src(value, Type::B32)?,
                distance: decoder.src(distance, Type::B32)?,
                clamp: decoder.src(clamp, Type::B32)?,
                members: decoder.src(members, Type::B32)?,
            }
        }
        ["vote", "sync", what @ ("all" | "any" | "uni"), "pred"] => {
            let [dst, pred, members] = operands else { return Err(wrong(decoder)) };
            WarpOp::Vote {
                what: match *what {
                    "all" => Vote::All,
                    "any" => Vote::Any,
                    _ => Vote::Uni,
                },
                dst: decoder.pred_dst(dst)?,
                pred: decoder.pred_src(pred)?,
                members: decoder.src(members, Type::B32)?,
            }
        }
        ["vote", "sync", "ballot", "b32"] => {
            let [dst, pred, members] = operands else { return Err(wrong(decoder)) };
            WarpOp::Ballot {
                dst: decoder.dst_of(dst, Type::B32)?,
                pred: decoder.pred_src(pred)?,
                members: decoder.src(members, Type::B32)?,
            }
        }
        ["match", kind @ ("any" | "all"), "sync", ty @ ("b32" | "b64")] => {
            let [dst, value, members] = operands else { return Err(wrong(decoder)) };
            let all = *kind == "all";
            if !all && matches!(dst, Operand::Pair(..)) {
                return Err(decoder.error("match.any has no predicate destination"));
            }
            let (dst, same) = dst_and_pred(decoder, dst)?;
            let ty = if *ty == "b64" { Type::B64 } else { Type::B32 };
            WarpOp::Match { all, dst, same, value: decoder.src(value, ty)?, members: decoder.src(members, Type::B32)? }
        }
        ["activemask", "b32"] => {
            let [dst] = operands else { return Err(wrong(decoder)) };
            WarpOp::ActiveMask { dst: decoder.dst_of(dst, Type::B32)? }
        }
        ["redux", "sync", op, ty] => {
            let op = match (*op, *ty) {
                ("add", "u32" | "s32") => Redux::Add,
                ("min", "u32") => Redux::MinU,
                ("min", "s32") => Redux::MinS,
                ("max", "u32") => Redux::MaxU,
                ("max", "s32") => Redux::MaxS,
                ("and", "b32") => Redux::And,
                ("or", "b32") => Redux::Or,
                ("xor", "b32") => Redux::Xor,
                _ => return Err(decoder.unknown(instruction)),
            };
            let [dst, value, members] = operands else { return Err(wrong(decoder)) };
            WarpOp::Redux {
                op,
                dst: decoder.dst_of(dst, Type::B32)?,
                value: decoder.src(value, Type::B32)?,
                members: decoder.src(members, Type::B32)?,
            }
        }
        ["elect", "sync"] => {
            let [dst, members] = operands else { return Err(wrong(decoder)) };
            let (dst, leader) = dst_and_pred(decoder, dst)?;
            WarpOp::Elect { dst, leader, members: decoder.src(members, Type::B32)? }
        }
        _ => return Err(decoder.unknown(instruction)),
    })
}

/// The exchanges that the executing lanes take part in: each the lanes of one membermask. None while some have yet to come.
fn exchanges(cx: &Cx<'_>, members: &Src) -> Exec<std::result::Result<([Mask; LANES], usize), Mask>> {
    let masks = cx.get32(members);
    let mut list = [0; LANES];
    let mut count = 0;
    let mut missing = 0;
    let mut rest = cx.mask;
    while rest != 0 {
        let lane = rest.trailing_zeros() as usize;
        let mask = masks[lane];
        // The common case: all lanes have the same mask.
        let here = if masks == [mask; LANES] {
            cx.mask
        } else {
            lanes(cx.mask).filter(|&i| masks[i] == mask).fold(0, |m, i| m | 1 << i)
        };
        rest &= !here;
        if here & !mask != 0 {
            let outside = (here & !mask).trailing_zeros() as usize;
            let message = format!("lane {outside} executes with membermask {mask:#010x}, which does not name it");
            return Err(Fault::at(Kind::Divergence, outside, message));
        }
        if mask & cx.warp.live & !here != 0 {
            missing |= mask & cx.warp.live;
        }
        list[count] = here;
        count += 1;
    }
    Ok(if missing == 0 { Ok((list, count)) } else { Err(missing | cx.mask) })
}

/// Executes one.
pub fn exec(op: &WarpOp, cx: &mut Cx<'_>) -> Exec<Step> {
    let members = match op {
        WarpOp::ActiveMask { dst } => {
            cx.set32(*dst, &[cx.mask; LANES]);
            return Ok(Step::Next);
        }
        WarpOp::Shuffle { members, .. }
        | WarpOp::Vote { members, .. }
        | WarpOp::Ballot { members, .. }
        | WarpOp::Match { members, .. }
        | WarpOp::Redux { members, .. }
        | WarpOp::Elect { members, .. } => members,
    };
    let (list, count) = match exchanges(cx, members)? {
        Ok(all) => all,
        Err(wanted) => return Ok(Step::Wait(Wait::Converge(wanted))),
    };
    let list = &list[..count];
    match op {
        WarpOp::ActiveMask { .. } => {}
        WarpOp::Shuffle { mode, dst, inside, value, distance, clamp, .. } => {
            shuffle(cx, list, *mode, (*dst, *inside), [value, distance, clamp])?
        }
        WarpOp::Vote { what, dst, pred, .. } => {
            let votes = cx.pred(*pred);
            let mut result = 0;
            for &here in list {
                let yes = votes & here;
                let holds = match what {
                    Vote::All => yes == here,
                    Vote::Any => yes != 0,
                    Vote::Uni => yes == here || yes == 0,
                };
                result |= if holds { here } else { 0 };
            }
            if let Some(dst) = dst {
                cx.set_pred(*dst, result);
            }
        }
        WarpOp::Ballot { dst, pred, .. } => {
            let votes = cx.pred(*pred);
            let values = by_exchange(list, |here| votes & here);
            cx.set32(*dst, &values);
        }
        WarpOp::Match { all, dst, same, value, .. } => {
            let values = cx.get64(value);
            let mut result = [0; LANES];
            let mut agree = 0;
            for &here in list {
                for lane in lanes(here) {
                    let equal = lanes(here).filter(|&i| values[i] == values[lane]).fold(0, |m: Mask, i| m | 1 << i);
                    if !all {
                        result[lane] = equal;
                    } else if equal == here {
                        result[lane] = here;
                        agree |= 1 << lane;
                    }
                }
            }
            cx.set32(*dst, &result);
            if let Some(same) = same {
                cx.set_pred(*same, agree);
            }
        }
        WarpOp::Redux { op, dst, value, .. } => {
            let values = cx.get32(value);
            let combine = |a: u32, b: u32| match op {
                Redux::Add => a.wrapping_add(b),
                Redux::MinU => a.min(b),
                Redux::MinS => (a as i32).min(b as i32) as u32,
                Redux::MaxU => a.max(b),
                Redux::MaxS => (a as i32).max(b as i32) as u32,
                Redux::And => a & b,
                Redux::Or => a | b,
                Redux::Xor => a ^ b,
            };
            let result = by_exchange(list, |here| lanes(here).map(|i| values[i]).reduce(combine).unwrap_or(0));
            cx.set32(*dst, &result);
        }
        WarpOp::Elect { dst, leader, .. } => {
            // The manual leaves open which lane it is; the lowest, as on hardware so far.
            let result = by_exchange(list, Mask::trailing_zeros);
            cx.set32(*dst, &result);
            if let Some(leader) = leader {
                let elected = list.iter().fold(0, |m, here| m | (here & here.wrapping_neg()));
                cx.set_pred(*leader, elected);
            }
        }
    }
    Ok(Step::Next)
}

/// One value for each exchange, in its lanes.
fn by_exchange(list: &[Mask], value: impl Fn(Mask) -> u32) -> Lanes32 {
    let mut result = [0; LANES];
    for &here in list {
        let value = value(here);
        for lane in lanes(here) {
            result[lane] = value;
        }
    }
    result
}

fn shuffle(
    cx: &mut Cx<'_>,
    list: &[Mask],
    mode: Shuffle,
    (dst, inside): (Reg, Option<u32>),
    [value, distance, clamp]: [&Src; 3],
) -> Exec {
    let (values, distances, clamps) = (cx.get32(value), cx.get32(distance), cx.get32(clamp));
    let mut result = [0; LANES];
    let mut in_range: Mask = 0;
    for &here in list {
        for lane in lanes(here) {
            let (l, b, c) = (lane as i32, (distances[lane] & 31) as i32, clamps[lane]);
            let segment = ((c >> 8) & 31) as i32;
            let most = (l & segment) | ((c & 31) as i32 & !segment);
            let (from, ok) = match mode {
                Shuffle::Up => (l - b, l - b >= most),
                Shuffle::Down => (l + b, l + b <= most),
                Shuffle::Bfly => (l ^ b, (l ^ b) <= most),
                Shuffle::Idx => {
                    let j = (l & segment) | (b & !segment);
                    (j, j <= most)
                }
            };
            let from = if ok { from as usize } else { lane };
            in_range |= Mask::from(ok) << lane;
            if here & (1 << from) == 0 {
                return Err(Fault::at(
                    Kind::Divergence,
                    lane,
                    format!(
                        "shfl reads lane {from}, which does not take part: the value is undefined (taking part: {here:#010x})"
                    ),
                ));
            }
            result[lane] = values[from];
        }
    }
    cx.set32(dst, &result);
    if let Some(inside) = inside {
        cx.set_pred(inside, in_range);
    }
    Ok(())
}
