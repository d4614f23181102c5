//! `wgmma.mma_async`: four warps, each on its own rows of A and D, all with one B.
//!
//! A warp computes its rows when it executes the instruction; it does not wait for the others. What the hardware does later shows in the
//! detectors: the registers are in flight, and the reads of shared memory belong to an asynchronous agent that is observed at
//! `wgmma.wait_group`. The first warp that comes to an instruction decodes B for the others, and leaves a note by which theirs is checked to
//! be the same one.

use std::collections::VecDeque;

use super::flight::Issued;
use super::{TensorOp, accumulation, accumulator, multiplicand, shape, take_satfinite};
use crate::ast::{Instruction, Operand, Type};
use crate::cx::{Cx, SHARED_START};
use crate::decode::{Decoder, Result};
use crate::fault::{Exec, Fault};
use crate::isa::{PredSrc, Reg, Src};
use crate::race::{AccessKind, AgentAccess, AgentKind, Proxy, Sem, Space};
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
            let warps = |wanted: bool| {
                let list = (0..WARPS).filter(|warp| (begun.warps >> warp & 1 == 1) == wanted);
                list.map(|warp| (group * WARPS + warp).to_string()).collect::<Vec<_>>().join(", ")
            };
            Some(format!(
                "the block ended, and a wgmma.mma_async that its warps {} executed was not executed by warps {} of their warpgroup",
                warps(true),
                warps(false)
            ))
        })
    }
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
    /// Warps that have executed it, and the first of them.
    warps: u32,
    first_warp: u32,
    b: Option<PreparedB>,
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
    pub fn exec(&self, cx: &mut Cx<'_>) -> Exec {
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
        self.take_registers(cx, scale_d)?;
        let key = Key { site: cx.site, a: a_descriptor.unwrap_or(0), b: b_descriptor, scale_d };
        let number = cx.warp.tensor.issued;
        let mut begun = self.join(cx, group, warp, number, key)?;
        let accumulation = accumulation(cx);

        // Everything below borrows parts of the block side by side.
        let block = &mut cx.blocks[cx.rank];
        let state = &mut block.tensor;
        let mut b = match begun.take() {
            Some(b) => b,
            None => {
                let mut b = state.groups[group].spare.pop().unwrap_or_default();
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
        match of_group.begun.get_mut((number - of_group.first) as usize) {
            Some(begun) if begun.warps != 0b1111 && number - of_group.first < KEPT as u64 => begun.b = Some(b),
            _ => {
                if of_group.spare.len() < 2 {
                    of_group.spare.push(std::mem::take(&mut b));
                }
            }
        }
        while of_group.begun.front().is_some_and(|begun| begun.warps == 0b1111) {
            of_group.begun.pop_front();
            of_group.first += 1;
        }
        cx.warp.tensor.issued = number + 1;
        self.memory(cx, warp, a_descriptor, b_descriptor)
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

    /// Notes that a warp executes the instruction; the decoded B, when an earlier warp left one.
    fn join(&self, cx: &mut Cx<'_>, group: usize, warp: usize, number: u64, key: Key) -> Exec<Option<PreparedB>> {
        let state = &mut cx.blocks[cx.rank].tensor;
        if state.groups.len() <= group {
            state.groups.resize_with(group + 1, Warpgroup::default);
        }
        let of_group = &mut state.groups[group];
        // No warp is behind `first`: what all have executed is gone.
        let at = number.saturating_sub(of_group.first) as usize;
        if at == of_group.begun.len() {
            of_group.begun.push_back(Begun { key, warps: 0, first_warp: warp as u32, b: None });
        }
        let Some(begun) = of_group.begun.get_mut(at) else { return Ok(None) };
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
        begun.warps |= 1 << (warp % WARPS);
        Ok(begun.b.take())
    }

    /// What the detectors say to the reads of shared memory.
    fn memory(&self, cx: &mut Cx<'_>, warp: usize, a: Option<u64>, b: u64) -> Exec {
        let check = cx.env.config.checks.uninitialized && cx.blocks[cx.rank].shared.tracked();
        let race = cx.race_warp().filter(|_| cx.detector.is_some());
        if !check && race.is_none() {
            return Ok(());
        }
        let mut operands: Vec<(&str, Vec<Range<u32>>)> = vec![("B", self.wgmma.b_ranges(b)?)];
        if let Some(a) = a {
            operands.push(("A", self.wgmma.a_ranges(warp, a)?));
        }
        if check {
            let shared = &cx.blocks[cx.rank].shared;
            for (operand, ranges) in &operands {
                for range in ranges {
                    let length = u64::from(range.end - range.start);
                    if let Some(byte) = shared.first_undefined(u64::from(range.start), length) {
                        let message = format!("operand {operand} reads shared memory at {byte:#x}, which nothing wrote");
                        return Err(Fault::new(Kind::UninitializedMemory, message));
                    }
                }
            }
        }
        let (Some(race), site) = (race, cx.site) else { return Ok(()) };
        let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
        let issuer = [(race, Mask::MAX)];
        let agent = match *cx.warp.tensor.agent() {
            Some(agent) => {
                detector.race.agent_reissue(agent, &issuer)?;
                agent
            }
            None => detector.race.agent_issue(AgentKind::Wgmma, Proxy::Async, &issuer, false)?,
        };
        *cx.warp.tensor.agent() = Some(agent);
        let space = Space::Shared(race.block);
        let access = AgentAccess { space, kind: AccessKind::Read, sem: Sem::WEAK, element: 1, site };
        let ranges: Vec<(u64, u64)> = operands
            .iter()
            .flat_map(|operand| &operand.1)
            .map(|range| (u64::from(range.start), u64::from(range.end - range.start)))
            .collect();
        detector.race.agent_access(agent, &access, &ranges)?;
        Ok(())
    }
}
