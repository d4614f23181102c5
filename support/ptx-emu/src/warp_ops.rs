//! Exchanges inside a warp: shuffles, votes, matches, reductions, election: decoding and executing (PTX ISA 9.0, sections 9.7.9.6 and 9.7.13).
//!
//! All of them but `activemask` name their members by a mask. Every executing thread must be a member of its own mask, members must name the
//! same mask, and the instruction waits until all members that have not exited are here. Threads may come with different masks at
//! once, as the tiles of a warp do: each mask is a party of its own.

use crate::alu::{Opcode, Pred, Ty, destination, discardable, mask_of, source};
use crate::ast::{Instruction, Operand};
use crate::cx::{Cx, Step, Wait, Warp};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{PRED_BIT, Reg, Src};
use crate::regs::{LANES, Lanes32, Mask, lanes};
use crate::report::Kind;

/// What a warp keeps of exchanges.
#[derive(Debug, Default)]
pub struct WarpState {
    /// Left by a shuffle: the lanes of its result that hold a value that something wrote.
    pub result_defined: Option<Mask>,
    /// Registers that hold, in some lanes, what a shuffle read from threads that do not take part.
    absent: Vec<Absent>,
}

/// A register (its slot in the whole file) that a shuffle filled from threads that do not take part.
#[derive(Debug)]
struct Absent {
    slot: usize,
    /// Lanes that have such a value.
    readers: Mask,
    /// The lane that each of them read.
    from: [u8; LANES],
    line: u32,
}

/// The fault of using a register in lanes where a shuffle read it from a thread that does not take part; None where that is not why it is
/// unwritten.
pub fn read_from_absent(warp: &Warp, slot: u32, unwritten: Mask, what: &str) -> Option<Box<Fault>> {
    if slot & PRED_BIT != 0 {
        return None;
    }
    let slot = warp.regs.absolute(slot);
    let found = warp.exchange.absent.iter().find(|a| a.slot == slot && a.readers & unwritten != 0)?;
    let lane = (found.readers & unwritten).trailing_zeros() as usize;
    Some(Fault::at(
        Kind::Divergence,
        lane,
        format!(
            "{what} holds what the shfl of PTX line {} read from lane {}, which does not take part in it: the value is undefined",
            found.line, found.from[lane]
        ),
    ))
}

/// A decoded instruction of this family.
#[derive(Debug)]
#[allow(private_interfaces)] // the operations are this family's own business
pub enum WarpOp {
    /// `shfl.sync`
    Shuffle { mode: Shuffle, d: Reg, p: Option<u32>, a: Src, b: Src, c: Src, members: Src },
    /// `vote.sync` that gives a predicate.
    Vote { mode: Vote, d: Option<u32>, a: Pred, members: Src },
    /// `vote.sync.ballot`
    Ballot { d: Reg, a: Pred, members: Src },
    /// `match.any.sync` and `match.all.sync`
    Match { all: bool, d: Reg, p: Option<u32>, a: Src, members: Src },
    /// `activemask`
    ActiveMask { d: Reg },
    /// `redux.sync`
    Reduce { op: Reduce, d: Reg, a: Src, members: Src },
    /// `elect.sync`
    Elect { d: Reg, p: Option<u32>, members: Src },
}

/// How `shfl` finds its source lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the modifiers
pub(crate) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// What `vote` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the modifiers
pub(crate) enum Vote {
    All,
    Any,
    Uni,
}

/// What `redux` computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named after the modifiers and types
pub(crate) enum Reduce {
    Add,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
}

/// Decodes one.
pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction) -> Result<WarpOp> {
    let mut opcode = Opcode::new(instruction);
    let (d, op) = (decoder, &mut opcode);
    match instruction.opcode.first().map(String::as_str) {
        Some("activemask") => {
            op.end(d)?;
            if op.single(d)? != Ty::B32 {
                return Err(op.no_type(d));
            }
            let [to] = op.operands(d, instruction)?;
            Ok(WarpOp::ActiveMask { d: destination(d, to, Ty::B32)? })
        }
        Some("shfl") => {
            synchronous(d, op)?;
            shuffle(d, op, instruction)
        }
        Some("vote") => {
            synchronous(d, op)?;
            vote(d, op, instruction)
        }
        Some("match") => {
            synchronous(d, op)?;
            matching(d, op, instruction)
        }
        Some("redux") => {
            synchronous(d, op)?;
            reduce(d, op, instruction)
        }
        Some("elect") => {
            synchronous(d, op)?;
            op.end(d)?;
            if !op.types.is_empty() {
                return Err(op.no_type(d));
            }
            let [to, members] = op.operands(d, instruction)?;
            let Operand::Pair(to, p) = to else { return Err(d.error("elect.sync writes a register and a predicate: d|p")) };
            let members = source(d, members, Ty::B32)?;
            Ok(WarpOp::Elect { d: discardable(d, to, Ty::B32)?, p: d.pred_dst(p)?, members })
        }
        _ => Err(d.unknown(instruction)),
    }
}

/// The forms without `.sync` left with sm_70: a member mask says who takes part.
fn synchronous(d: &Decoder<'_>, op: &mut Opcode<'_>) -> Result<()> {
    if op.flag("sync") { Ok(()) } else { Err(op.unknown(d, "without .sync it ended with sm_70")) }
}

fn shuffle(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<WarpOp> {
    let mode = op.pick(&[("up", Shuffle::Up), ("down", Shuffle::Down), ("bfly", Shuffle::Bfly), ("idx", Shuffle::Idx)]);
    let Some(mode) = mode else { return Err(op.unknown(d, "it needs .up, .down, .bfly or .idx")) };
    op.end(d)?;
    if op.single(d)? != Ty::B32 {
        return Err(op.no_type(d));
    }
    // What nothing wrote is passed on as such: `exec` says which lanes get it.
    d.moves();
    let [to, a, b, c, members] = op.operands(d, instruction)?;
    let (to, p) = match to {
        Operand::Pair(to, p) => (&**to, Some(&**p)),
        to => (to, None),
    };
    let (a, b, c) = (source(d, a, Ty::B32)?, source(d, b, Ty::B32)?, source(d, c, Ty::B32)?);
    let members = source(d, members, Ty::B32)?;
    let to = destination(d, to, Ty::B32)?;
    let p = p.map(|p| d.pred_dst(p)).transpose()?.flatten();
    Ok(WarpOp::Shuffle { mode, d: to, p, a, b, c, members })
}

fn vote(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<WarpOp> {
    let ballot = op.flag("ballot");
    let mode = op.pick(&[("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni)]);
    op.end(d)?;
    let ty = op.single(d)?;
    let [to, a, members] = op.operands(d, instruction)?;
    let (a, members) = (Pred::decode(d, a)?, source(d, members, Ty::B32)?);
    match (ballot, mode, ty) {
        (true, None, Ty::B32) => Ok(WarpOp::Ballot { d: destination(d, to, Ty::B32)?, a, members }),
        (false, Some(mode), Ty::Pred) => Ok(WarpOp::Vote { mode, d: d.pred_dst(to)?, a, members }),
        _ => Err(op.unknown(d, "vote.sync is .all, .any or .uni with .pred, or .ballot with .b32")),
    }
}

fn matching(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<WarpOp> {
    let Some(all) = op.pick(&[("all", true), ("any", false)]) else { return Err(op.unknown(d, "it needs .any or .all")) };
    op.end(d)?;
    let ty = op.single(d)?;
    if !matches!(ty, Ty::B32 | Ty::B64) {
        return Err(op.no_type(d));
    }
    let [to, a, members] = op.operands(d, instruction)?;
    let (to, p) = match to {
        Operand::Pair(to, p) if all => (&**to, Some(&**p)),
        Operand::Pair(..) => return Err(d.error("match.any writes no predicate")),
        to => (to, None),
    };
    let (a, members) = (source(d, a, ty)?, source(d, members, Ty::B32)?);
    let to = if p.is_some() { discardable(d, to, Ty::B32)? } else { destination(d, to, Ty::B32)? };
    let p = p.map(|p| d.pred_dst(p)).transpose()?.flatten();
    Ok(WarpOp::Match { all, d: to, p, a, members })
}

fn reduce(d: &mut Decoder<'_>, op: &mut Opcode<'_>, instruction: &Instruction) -> Result<WarpOp> {
    let name = op.pick(&[("add", "add"), ("min", "min"), ("max", "max"), ("and", "and"), ("or", "or"), ("xor", "xor")]);
    op.end(d)?;
    let ty = op.single(d)?;
    let kind = match (name, ty) {
        (Some("add"), Ty::U32 | Ty::S32) => Reduce::Add,
        (Some("min"), Ty::U32) => Reduce::MinU,
        (Some("min"), Ty::S32) => Reduce::MinS,
        (Some("max"), Ty::U32) => Reduce::MaxU,
        (Some("max"), Ty::S32) => Reduce::MaxS,
        (Some("and"), Ty::B32) => Reduce::And,
        (Some("or"), Ty::B32) => Reduce::Or,
        (Some("xor"), Ty::B32) => Reduce::Xor,
        _ => return Err(op.no_type(d)),
    };
    let [to, a, members] = op.operands(d, instruction)?;
    let (a, members) = (source(d, a, ty)?, source(d, members, Ty::B32)?);
    Ok(WarpOp::Reduce { op: kind, d: destination(d, to, ty)?, a, members })
}

/// The executing threads by the masks they name: live members of each.
struct Parties {
    masks: [Mask; LANES],
    count: usize,
}

impl Parties {
    fn iter(&self) -> impl Iterator<Item = Mask> {
        self.masks.iter().copied().take(self.count)
    }

    /// Of the executing lanes; or what they have to wait for.
    fn meet(cx: &Cx<'_>, members: &Src) -> Exec<std::result::Result<Parties, Wait>> {
        let named = cx.get32(members);
        let live = cx.warp.live;
        let mut parties = Parties { masks: [0; LANES], count: 0 };
        let mut absent = 0;
        let mut rest = cx.mask;
        while rest != 0 {
            let first = rest.trailing_zeros() as usize;
            let mask = named[first];
            let same = mask_of(|i| named[i] == mask) & cx.mask;
            rest &= !same;
            if let Some(lane) = lanes(same & !mask).next() {
                return Err(Fault::at(
                    Kind::Divergence,
                    lane,
                    format!("{} with member mask {mask:#010x} is executed by lane {lane}, which is not a member", cx.instr.text),
                ));
            }
            let here = mask & live;
            if let Some(other) = lanes(here & cx.mask & !same).next() {
                return Err(Fault::at(
                    Kind::Divergence,
                    other,
                    format!(
                        "the members of {} name different masks: {mask:#010x} in lane {first}, {:#010x} in lane {other}",
                        cx.instr.text, named[other]
                    ),
                ));
            }
            absent |= here & !cx.mask;
            parties.masks[parties.count] = here;
            parties.count += 1;
        }
        if absent == 0 {
            return Ok(Ok(parties));
        }
        Ok(Err(Wait::Converge(parties.iter().fold(0, |all, mask| all | mask))))
    }
}

/// Executes one.
pub fn exec(op: &WarpOp, cx: &mut Cx<'_>) -> Exec<Step> {
    let members = match op {
        WarpOp::ActiveMask { d } => {
            let active = cx.mask;
            cx.set32(*d, &[active; LANES]);
            return Ok(Step::Next);
        }
        WarpOp::Shuffle { members, .. }
        | WarpOp::Vote { members, .. }
        | WarpOp::Ballot { members, .. }
        | WarpOp::Match { members, .. }
        | WarpOp::Reduce { members, .. }
        | WarpOp::Elect { members, .. } => members,
    };
    let parties = match Parties::meet(cx, members)? {
        Ok(parties) => parties,
        Err(wait) => return Ok(Step::Wait(wait)),
    };
    match op {
        WarpOp::Shuffle { mode, d, p, a, b, c, .. } => exchange(cx, &parties, *mode, *d, *p, [a, b, c]),
        WarpOp::Vote { mode, d, a, .. } => {
            let a = a.mask(cx);
            let mut result = 0;
            for party in parties.iter() {
                let (all, none) = (a & party == party, a & party == 0);
                let holds = match mode {
                    Vote::All => all,
                    Vote::Any => !none,
                    Vote::Uni => all || none,
                };
                result |= if holds { party } else { 0 };
            }
            if let Some(d) = d {
                cx.set_pred(*d, result);
            }
        }
        WarpOp::Ballot { d, a, .. } => {
            let a = a.mask(cx);
            let mut out = [0; LANES];
            for party in parties.iter() {
                lanes(party).for_each(|i| out[i] = a & party);
            }
            cx.set32(*d, &out);
        }
        WarpOp::Match { all, d, p, a, .. } => {
            let a = cx.get64(a);
            let mut out = [0; LANES];
            let mut agreed = 0;
            for party in parties.iter() {
                for i in lanes(party) {
                    let equal = lanes(party).filter(|&j| a[j] == a[i]).fold(0, |mask: Mask, j| mask | 1 << j);
                    if !all || equal == party {
                        out[i] = equal;
                        agreed |= 1 << i;
                    }
                }
            }
            cx.set32(*d, &out);
            if let Some(p) = p {
                cx.set_pred(*p, agreed);
            }
        }
        WarpOp::Reduce { op, d, a, .. } => {
            let a = cx.get32(a);
            let mut out = [0; LANES];
            for party in parties.iter() {
                let result = lanes(party).map(|i| a[i]).reduce(|x, y| op.combine(x, y)).unwrap_or(0);
                lanes(party).for_each(|i| out[i] = result);
            }
            cx.set32(*d, &out);
        }
        WarpOp::Elect { d, p, .. } => {
            // Which member is left open by the manual: the lowest.
            let mut out = [0; LANES];
            let mut elected = 0;
            for party in parties.iter() {
                lanes(party).for_each(|i| out[i] = party.trailing_zeros());
                elected |= party & party.wrapping_neg();
            }
            cx.set32(*d, &out);
            if let Some(p) = p {
                cx.set_pred(*p, elected);
            }
        }
        WarpOp::ActiveMask { .. } => {}
    }
    Ok(Step::Next)
}

impl Reduce {
    fn combine(self, x: u32, y: u32) -> u32 {
        match self {
            Reduce::Add => x.wrapping_add(y),
            Reduce::MinS => (x as i32).min(y as i32) as u32,
            Reduce::MinU => x.min(y),
            Reduce::MaxS => (x as i32).max(y as i32) as u32,
            Reduce::MaxU => x.max(y),
            Reduce::And => x & y,
            Reduce::Or => x | y,
            Reduce::Xor => x ^ y,
        }
    }
}

/// `shfl.sync` (section 9.7.9.6). A lane that reads one outside of its party (it is not a member, or has exited) gets a value that nothing wrote,
/// which is reported where it is used: code that tests the source lane afterwards does nothing wrong.
fn exchange(cx: &mut Cx<'_>, parties: &Parties, mode: Shuffle, d: Reg, p: Option<u32>, [a, b, c]: [&Src; 3]) {
    let (values, b_values, c_values) = (cx.get32(a), cx.get32(b), cx.get32(c));
    // Lane by lane, without branches: the lane that is read, and whether it is in range.
    let found: [(u32, bool); LANES] = std::array::from_fn(|i| {
        let lane = i as u32;
        let (b, clamp) = (b_values[i] & 31, c_values[i] & 31);
        let segment = c_values[i] >> 8 & 31;
        let least = lane & segment;
        let most = least | (clamp & !segment);
        match mode {
            // A lane below zero wraps to a large number, which is not in range either.
            Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= most as i32),
            Shuffle::Down => (lane + b, lane + b <= most),
            Shuffle::Bfly => (lane ^ b, lane ^ b <= most),
            Shuffle::Idx => (least | (b & !segment), least | (b & !segment) <= most),
        }
    });
    let in_range = mask_of(|i| found[i].1);
    let sources: [usize; LANES] = std::array::from_fn(|i| if found[i].1 { (found[i].0 & 31) as usize } else { i });
    let out: Lanes32 = std::array::from_fn(|i| values[sources[i]]);
    let mut reachable = 0;
    for party in parties.iter() {
        reachable |= if party == Mask::MAX { party } else { mask_of(|i| party >> sources[i] & 1 == 1) & party };
    }
    if cx.env.config.checks.uninitialized {
        let defined = |src: &Src| match src {
            Src::Reg(reg) => cx.warp.regs.defined(reg.slot),
            _ => Mask::MAX,
        };
        let written = defined(a);
        let arrived = mask_of(|i| written >> sources[i] & 1 == 1);
        let result = arrived & reachable & defined(b) & defined(c);
        cx.warp.exchange.result_defined = Some(result);
        let readers = cx.mask & !reachable;
        let slot = cx.warp.regs.absolute(d.slot);
        let absent = &mut cx.warp.exchange.absent;
        absent.retain(|a| a.slot != slot || a.readers & !cx.mask != 0);
        if readers != 0 {
            absent.push(Absent { slot, readers, from: sources.map(|lane| lane as u8), line: cx.instr.span.line });
        }
    }
    cx.set32(d, &out);
    if let Some(p) = p {
        cx.set_pred(p, in_range);
    }
}
