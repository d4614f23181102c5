//! `wgmma.mma_async`: four warps, each on its own rows of A and D, all with one B.
//!
//! A warp computes its rows when it executes the instruction. What the hardware does later shows in the detectors: the registers are in
//! flight, and the reads of shared memory belong to an asynchronous agent that is observed at `wgmma.wait_group`. The first warp that comes to
//! an instruction decodes B for the others, and leaves a note by which theirs is checked to be the same one.
//!
//! Warps do not wait for each other, unless the race detector is on: then the four meet, so that one agent can be told of what all of them know
//! and reads B once.

use std::collections::VecDeque;

use super::flight::Issued;
use super::{TensorOp, accumulation, accumulator, multiplicand, shape, take_satfinite};
use crate::ast::{Instruction, Operand, Type};
use crate::cx::{Block, Cx, SHARED_START, Step, Wait};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{PredSrc, Reg, Src};
use crate::memory::SharedMemory;
use crate::race::{self, AccessKind, AgentAccess, AgentId, AgentKind, Proxy, Sem, Space};
use crate::regs::Mask;
use crate::report::Kind;
use crate::tensor::wgmma::{Descriptor, Form, WARP_ROWS, Wgmma};
use crate::tensor::{PreparedB, Register};
use std::ops::Range;

/// Warps of a warpgroup.
const WARPS: usize = 4;

/// How far one warp may run ahead of another of its warpgroup before B is no longer kept for it.
const KEPT: usize = 16;

/// `wgmma.mma_async`
#[derive(Debug)]
pub struct WgmmaOp {
    wgmma: Wgmma,
    d: Box<[Reg]>,
    a: MatrixA,
    b: Src,
    scale_d: ScaleD,
}

#[derive(Debug)]
enum MatrixA {
    Registers(Box<[Reg]>),
    Shared(Src),
}

#[derive(Debug, Clone, Copy)]
enum ScaleD {
    Always(bool),
    Predicate(PredSrc),
}

/// What a block keeps: matrix instructions that not all warps of a warpgroup have executed yet.
#[derive(Debug, Default)]
pub struct BlockState {
    groups: Vec<Warpgroup>,
    /// Agents of the race detector, and how many warps have not waited for them yet.
    agents: Vec<(AgentId, u32)>,
    /// B's bytes, before they are decoded.
    bytes: Vec<u8>,
    /// A warp's rows of D.
    rows: Vec<u32>,
    registers: Vec<Register>,
}

impl BlockState {
    /// In words, a `wgmma.mma_async` that some warps of a warpgroup executed and others have not: an error at the end of a block.
    pub fn unfinished(&self) -> Option<String> {
        self.groups.iter().enumerate().find_map(|(group, state)| {
            let begun = state.begun.front()?;
            let (come, missing) = begun.names(group);
            Some(format!(
                "the block ended, and a wgmma.mma_async that its warps {come} executed was not executed by warps {missing} of their warpgroup"
            ))
        })
    }

    /// A warp has waited for an agent; whether it was the last.
    pub fn observed(&mut self, agent: AgentId) -> bool {
        let Some(at) = self.agents.iter().position(|known| known.0 == agent) else { return true };
        self.agents[at].1 -= 1;
        let last = self.agents[at].1 == 0;
        if last {
            self.agents.swap_remove(at);
        }
        last
    }

    fn begun(&self, warp: usize, number: u64) -> Option<&Begun> {
        let group = self.groups.get(warp / WARPS)?;
        group.begun.get(number.checked_sub(group.first)? as usize)
    }
}

/// Whether all warps have come to the instruction of this number that `warp` waits at.
pub fn satisfied(block: &Block, warp: usize, number: u64) -> bool {
    block.tensor.begun(warp, number).is_none_or(|begun| begun.come == ALL)
}

/// In words, which warps it waits for.
pub fn describe(block: &Block, warp: usize, number: u64) -> String {
    let missing = block.tensor.begun(warp, number).map_or_else(String::new, |begun| begun.names(warp / WARPS).1);
    format!("waits at a wgmma.mma_async for warps {missing} of its warpgroup")
}

#[derive(Debug, Default)]
struct Warpgroup {
    /// Number of the first of `begun`.
    first: u64,
    /// Instructions that some warp has executed, in order.
    begun: VecDeque<Begun>,
    /// Decoded operands to reuse.
    spare: Vec<PreparedB>,
}

#[derive(Debug)]
struct Begun {
    key: Key,
    first_warp: u32,
    /// Warps that have come to it, and warps that have executed it.
    come: u32,
    done: u32,
    b: Option<PreparedB>,
    agent: Option<AgentId>,
}

/// All warps of a warpgroup.
const ALL: u32 = (1 << WARPS) - 1;

impl Begun {
    /// The numbers of warps that have come, and of those that have not.
    fn names(&self, group: usize) -> (String, String) {
        let list = |wanted: bool| {
            let warps = (0..WARPS).filter(|warp| (self.come >> warp & 1 == 1) == wanted);
            warps.map(|warp| (group * WARPS + warp).to_string()).collect::<Vec<_>>().join(", ")
        };
        (list(true), list(false))
    }
}

/// What all warps must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    site: u32,
    a: u64,
    b: u64,
    scale_d: bool,
}

pub fn decode(decoder: &mut Decoder<'_>, instruction: &Instruction, shape_text: &str, rest: &[&str]) -> Result<TensorOp> {
    let (saturate, types) = take_satfinite(rest);
    let form = match types.as_slice() {
        [d, a, b] => accumulator(d).zip(multiplicand(a)).zip(multiplicand(b)),
        _ => None,
    };
    let (Some((64, n, k)), Some(((d_type, a_type), b_type))) = (shape(shape_text), form) else {
        return Err(decoder.unknown(instruction));
    };
    let [d, a, b, scale_d, immediates @ ..] = instruction.operands.as_slice() else {
        return Err(decoder.error("wgmma.mma_async takes at least four operands"));
    };
    let a_in_registers = matches!(a, Operand::Vector(_));
    let (signs, transposes) = match (a_type.is_integer(), a_type.bits() == 16) {
        (true, _) => (0, 0),
        (false, false) => (2, 0),
        (false, true) => (2, if a_in_registers { 1 } else { 2 }),
    };
    if immediates.len() != signs + transposes {
        return Err(decoder.error(format!(
            "wgmma.mma_async of this type takes {} immediates after scale-d, not {}",
            signs + transposes,
            immediates.len()
        )));
    }
    let mut negate = [false; 2];
    for (negate, operand) in negate.iter_mut().zip(&immediates[..signs]) {
        *negate = match decoder.literal(operand)? as i32 {
            1 => false,
            -1 => true,
            other => return Err(decoder.error(format!("imm-scale must be 1 or -1, not {other}"))),
        };
    }
    let mut transpose = [false; 2];
    // With A in registers there is only B's.
    let of_b = usize::from(transposes == 1);
    for (transpose, operand) in transpose[of_b..].iter_mut().zip(&immediates[signs..]) {
        *transpose = match decoder.literal(operand)? {
            0 => false,
            1 => true,
            other => return Err(decoder.error(format!("imm-trans must be 0 or 1, not {other}"))),
        };
    }
    let wgmma = Wgmma::new(Form {
        n,
        k,
        d: d_type,
        a: a_type,
        b: b_type,
        a_in_registers,
        negate_a: negate[0],
        negate_b: negate[1],
        transpose_a: transpose[0],
        transpose_b: transpose[1],
        saturate,
    })
    .map_err(|e| decoder.error(e.to_string()))?;
    // Whether D is read is known only when it executes.
    let list = decoder.elements(d);
    let d = list.iter().map(|element| decoder.dst_of(element, Type::B32)).collect::<Result<Box<[Reg]>>>()?;
    let a = if a_in_registers {
        let mut registers = Vec::new();
        for element in decoder.elements(a) {
            match decoder.src(element, Type::B32)? {
                Src::Reg(reg) => registers.push(reg),
                _ => return Err(decoder.error("the fragments of A must be registers")),
            }
        }
        MatrixA::Registers(registers.into_boxed_slice())
    } else {
        MatrixA::Shared(decoder.src(a, Type::B64)?)
    };
    for (what, got, expected) in [
        ("d", d.len(), wgmma.d_registers()),
        ("a", if let MatrixA::Registers(a) = &a { a.len() } else { wgmma.a_registers() }, wgmma.a_registers()),
    ] {
        if got != expected {
            return Err(decoder.error(format!("operand {what} has {got} registers, its type and shape need {expected}")));
        }
    }
    let mut slots: Vec<u32> = d.iter().map(|reg| reg.slot).collect();
    slots.sort_unstable();
    if slots.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(decoder.error("the accumulators of wgmma.mma_async must be different registers"));
    }
    let b = decoder.src(b, Type::B64)?;
    let scale_d = match scale_d {
        Operand::Int(value) => ScaleD::Always(*value != 0),
        other => ScaleD::Predicate(decoder.pred_src(other)?),
    };
    Ok(TensorOp::Wgmma(Box::new(WgmmaOp { wgmma, d, a, b, scale_d })))
}

impl WgmmaOp {
    pub fn exec(&self, cx: &mut Cx<'_>) -> Exec<Step> {
        let warp = cx.warp.index as usize;
        let group = warp / WARPS;
        if (group + 1) * WARPS > cx.blocks[cx.rank].warps.len() {
            return Err(Fault::new(
                Kind::Divergence,
                format!("warp {warp} belongs to no whole warpgroup: the block has {} warps", cx.blocks[cx.rank].warps.len()),
            ));
        }
        let scale_d = match self.scale_d {
            ScaleD::Always(value) => value,
            ScaleD::Predicate(src) => match cx.pred(src) {
                0 => false,
                Mask::MAX => true,
                lanes => {
                    let message = format!("scale-d must be the same in all threads, it is true in lanes {lanes:#010x}");
                    return Err(Fault::new(Kind::Divergence, message));
                }
            },
        };
        let a_descriptor = match &self.a {
            MatrixA::Shared(src) => Some(cx.uniform(&cx.get64(src), "the matrix descriptor of A")?),
            MatrixA::Registers(_) => None,
        };
        let b_descriptor = cx.uniform(&cx.get64(&self.b), "the matrix descriptor of B")?;
        for (operand, descriptor) in [("A", a_descriptor), ("B", Some(b_descriptor))] {
            let Some(descriptor) = descriptor else { continue };
            let start = Descriptor::decode(descriptor, operand)?.start;
            if start < SHARED_START {
                let message = format!("operand {operand} starts at shared address {start:#x}, before the first variable");
                return Err(Fault::new(Kind::OutOfBounds, message));
            }
        }
        let key = Key { site: cx.site, a: a_descriptor.unwrap_or(0), b: b_descriptor, scale_d };
        let number = cx.warp.tensor.issued;
        let here = Some(Wait::Warpgroup { number });
        if cx.resumed != here {
            let all = self.come(cx, group, warp, number, key)?;
            if let (Some(race), true) = (cx.race_warp(), cx.detector.is_some()) {
                if !all {
                    return Ok(Step::Wait(Wait::Warpgroup { number }));
                }
                self.tell_detector(cx, group, number, race, a_descriptor, b_descriptor)?;
            }
        }
        self.take_registers(cx, scale_d)?;
        let accumulation = accumulation(cx);
        let unwritten = cx.env.config.checks.uninitialized && cx.blocks[cx.rank].shared.tracked();
        if let (true, Some(descriptor)) = (unwritten, a_descriptor) {
            check_written(&cx.blocks[cx.rank].shared, "A", &self.wgmma.a_ranges(warp, descriptor)?)?;
        }

        // Everything below borrows parts of the block side by side.
        let block = &mut cx.blocks[cx.rank];
        let state = &mut block.tensor;
        let of_group = &mut state.groups[group];
        let at = (number - of_group.first) as usize;
        let left = of_group.begun.get_mut(at).and_then(|begun| begun.b.take());
        let b = match left {
            Some(b) => b,
            None => {
                let mut b = of_group.spare.pop().unwrap_or_default();
                if unwritten {
                    check_written(&block.shared, "B", &self.wgmma.b_ranges(b_descriptor)?)?;
                }
                self.wgmma.b_from_shared(&block.shared.data, b_descriptor, &mut state.bytes)?;
                self.wgmma.prepare_b(&state.bytes, accumulation, &mut b)?;
                b
            }
        };
        let mut a = [0; WARP_ROWS * crate::tensor::wgmma::ROW_BYTES];
        let mut fragments = [[0; 32]; 4];
        match (&self.a, a_descriptor) {
            (MatrixA::Registers(registers), _) => {
                for (to, reg) in fragments.iter_mut().zip(registers) {
                    *to = *cx.warp.regs.r32(reg.slot);
                }
                self.wgmma.a_from_registers(&fragments, &mut a)?;
            }
            (MatrixA::Shared(_), descriptor) => {
                self.wgmma.a_from_shared(warp, &block.shared.data, descriptor.unwrap_or(0), &mut a)?;
            }
        }
        state.rows.resize(WARP_ROWS * self.wgmma.form().n, 0);
        state.registers.resize(self.d.len(), [0; 32]);
        if scale_d {
            for (to, reg) in state.registers.iter_mut().zip(&self.d) {
                *to = *cx.warp.regs.r32(reg.slot);
            }
            self.wgmma.d_from_registers(&state.registers, &mut state.rows)?;
        }
        self.wgmma.run(&a, &b, scale_d, accumulation, &mut state.rows)?;
        self.wgmma.d_to_registers(&state.rows, &mut state.registers)?;
        for (from, reg) in state.registers.iter().zip(&self.d) {
            cx.warp.regs.set32(*reg, from, Mask::MAX);
        }
        // B goes back to the note for the next warp, or to the spares.
        let of_group = &mut state.groups[group];
        if let Some(begun) = of_group.begun.get_mut(at) {
            begun.done |= 1 << (warp % WARPS);
            cx.warp.tensor.take_part(begun.agent);
            if begun.done != ALL && at < KEPT {
                begun.b = Some(b);
            } else if of_group.spare.len() < 2 {
                of_group.spare.push(b);
            }
        }
        while of_group.begun.front().is_some_and(|begun| begun.done == ALL) {
            of_group.begun.pop_front();
            of_group.first += 1;
        }
        cx.warp.tensor.issued = number + 1;
        Ok(Step::Next)
    }

    /// The registers now belong to the instruction.
    fn take_registers(&self, cx: &mut Cx<'_>, scale_d: bool) -> Exec {
        let checks = cx.env.config.checks;
        if checks.uninitialized && scale_d {
            for reg in &self.d {
                let unwritten = !cx.warp.regs.defined(reg.slot);
                if unwritten != 0 {
                    let message = format!("an accumulator of wgmma.mma_async was never written in lanes {unwritten:#010x}");
                    return Err(Fault::at(Kind::UninitializedRegister, unwritten.trailing_zeros() as usize, message));
                }
            }
        }
        if !checks.in_flight {
            return Ok(());
        }
        let regs = &cx.warp.regs;
        let absolute = |registers: &[Reg]| registers.iter().map(|reg| regs.absolute(reg.slot)).collect::<Vec<usize>>();
        let form = self.wgmma.form();
        let issued = Issued {
            accumulators: absolute(&self.d),
            fragments: if let MatrixA::Registers(a) = &self.a { absolute(a) } else { Vec::new() },
            shape: (form.n, form.k, form.d),
        };
        cx.warp.tensor.check(&issued)?;
        cx.warp.tensor.issue(issued);
        Ok(())
    }

    /// Notes that a warp comes to the instruction; whether all have.
    fn come(&self, cx: &mut Cx<'_>, group: usize, warp: usize, number: u64, key: Key) -> Exec<bool> {
        let state = &mut cx.blocks[cx.rank].tensor;
        if state.groups.len() <= group {
            state.groups.resize_with(group + 1, Warpgroup::default);
        }
        let of_group = &mut state.groups[group];
        // No warp is behind `first`: what all have executed is gone.
        let at = number.saturating_sub(of_group.first) as usize;
        if at == of_group.begun.len() {
            of_group.begun.push_back(Begun { key, first_warp: warp as u32, come: 0, done: 0, b: None, agent: None });
        }
        let Some(begun) = of_group.begun.get_mut(at) else { return Ok(true) };
        if begun.key != key {
            let (mine, theirs) = (key, begun.key);
            let what = if mine.site != theirs.site {
                "executed another wgmma.mma_async at this point".to_string()
            } else if mine.a != theirs.a {
                format!("gave the matrix descriptor {:#018x} for A, this warp {:#018x}", theirs.a, mine.a)
            } else if mine.b != theirs.b {
                format!("gave the matrix descriptor {:#018x} for B, this warp {:#018x}", theirs.b, mine.b)
            } else {
                format!("gave scale-d {}, this warp {}", theirs.scale_d, mine.scale_d)
            };
            let message =
                format!("the warps of a warpgroup must execute the same wgmma.mma_async: warp {} {what}", begun.first_warp);
            return Err(Fault::new(Kind::Divergence, message));
        }
        begun.come |= 1 << (warp % WARPS);
        Ok(begun.come == ALL)
    }

    /// All four warps are here: one agent reads A and B for them.
    fn tell_detector(&self, cx: &mut Cx<'_>, group: usize, number: u64, race: race::Warp, a: Option<u64>, b: u64) -> Exec {
        let mut ranges = self.wgmma.b_ranges(b)?;
        if let Some(a) = a {
            for warp in 0..WARPS {
                ranges.extend(self.wgmma.a_ranges(warp, a)?);
            }
        }
        let ranges: Vec<(u64, u64)> = ranges.iter().map(|r| (u64::from(r.start), u64::from(r.end - r.start))).collect();
        let first = (group * WARPS) as u32;
        let issuers: [(race::Warp, Mask); WARPS] =
            std::array::from_fn(|i| (race::Warp { block: race.block, index: first + i as u32 }, Mask::MAX));
        // The operation joins that of the group being filled, when all warps fill the same one.
        let own = cx.warp.tensor.agent();
        let block = &mut cx.blocks[cx.rank];
        let others = block.warps.iter().skip(first as usize).take(WARPS).flatten();
        let shared = own.filter(|_| others.into_iter().all(|warp| warp.tensor.agent() == own));
        let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
        let agent = match shared {
            Some(agent) => {
                detector.race.agent_reissue(agent, &issuers)?;
                agent
            }
            None => {
                let agent = detector.race.agent_issue(AgentKind::Wgmma, Proxy::Async, &issuers, false)?;
                block.tensor.agents.push((agent, WARPS as u32));
                agent
            }
        };
        let of_group = &mut block.tensor.groups[group];
        if let Some(begun) = of_group.begun.get_mut((number - of_group.first) as usize) {
            begun.agent = Some(agent);
        }
        let space = Space::Shared(race.block);
        let access = AgentAccess { space, kind: AccessKind::Read, sem: Sem::WEAK, element: 1, site: cx.site };
        Ok(detector.race.agent_access(agent, &access, &ranges)?)
    }
}

/// Reports shared memory that an operand reads and nothing wrote.
fn check_written(shared: &SharedMemory, operand: &str, ranges: &[Range<u32>]) -> Exec {
    for range in ranges {
        if let Some(byte) = shared.first_undefined(u64::from(range.start), u64::from(range.end - range.start)) {
            let message = format!("operand {operand} reads shared memory at {byte:#x}, which nothing wrote");
            return Err(Fault::new(Kind::UninitializedMemory, message));
        }
    }
    Ok(())
}
