//! Runs one warp for a while: which lanes go together, where they go, what is checked before each instruction.
//!
//! There is no stack of divergence. The lanes of a warp are in *groups*, one for each place where lanes are; the group that is furthest
//! behind runs until it meets another, which it joins, or until it has to wait. So lanes that parted come together again at the first
//! instruction that all of them reach, which is where structured code means them to, and lanes that spin on others of their own warp do
//! not starve them. With a seed, now and then another group is chosen: independent thread scheduling promises no order.

use crate::cx::{Cluster, Cx, Frame, Group, Step, Wait, Warp};
use crate::detect::Detector;
use crate::fault::{Exec, Fault};
use crate::isa::{CallArg, Callee, Control, Instr, Op, PRED_BIT};
use crate::machine::{Env, FUNCTION_HANDLES, Launch};
use crate::program::Function;
use crate::regs::{LANES, Mask, lanes};
use crate::report::Kind;
use crate::rng::Rng;
use crate::{alu, mem_ops, sync, tensor_ops, warp_ops};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Activations of one thread.
const DEEPEST_CALL: usize = 256;

/// How a warp's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It can go on.
    Ready,
    /// All its groups wait.
    Blocked,
    /// All its threads have exited.
    Done,
}

/// A fault with its place.
pub struct Located {
    /// What.
    pub fault: Box<Fault>,
    /// Function and instruction.
    pub at: (u32, u32),
    /// Lanes that executed it.
    pub mask: Mask,
}

/// What a turn needs besides the warp.
pub struct Surroundings<'a> {
    /// Memory, settings.
    pub env: &'a Env,
    /// The cluster.
    pub cluster: &'a mut Cluster,
    /// Rank of the warp's block.
    pub rank: usize,
    /// Detectors.
    pub detector: Option<&'a mut Detector>,
    /// Choices.
    pub rng: &'a mut Rng,
    /// Whether groups are chosen at random now and then.
    pub shuffle: bool,
}

/// Runs a warp for at most `quantum` instructions; returns how many it executed.
pub fn run(warp: &mut Warp, around: &mut Surroundings<'_>, quantum: u64) -> Result<(Turn, u64), Located> {
    let launch = Arc::clone(&around.cluster.launch);
    let mut left = quantum;
    while left > 0 {
        let Some(chosen) = choose(warp, around) else {
            if warp.groups.is_empty() {
                return Ok((Turn::Done, quantum - left));
            }
            if let Some(stuck) = unreachable_convergence(warp) {
                return Err(stuck);
            }
            return Ok((Turn::Blocked, quantum - left));
        };
        warp.current = chosen;
        let before = left;
        let yields = run_group(warp, around, &launch, &mut left)?;
        warp.executed += before - left;
        if yields {
            return Ok((Turn::Ready, quantum - left));
        }
        if before == left {
            // The group waits (again): nothing was executed.
            left -= 1;
            if choose(warp, around).is_none() {
                continue;
            }
        }
    }
    Ok((Turn::Ready, quantum))
}

/// The group to run: one that does not wait, in the innermost activation, furthest behind.
fn choose(warp: &Warp, around: &mut Surroundings<'_>) -> Option<usize> {
    let cluster = &*around.cluster;
    let rank = around.rank;
    let ready = |group: &Group| ready(group, warp, rank, cluster);
    if let [only] = warp.groups.as_slice() {
        return ready(only).then_some(0);
    }
    let order = |group: &Group| (usize::MAX - group.frames.len(), group.pc);
    let mut best = None;
    let mut count = 0;
    for (i, group) in warp.groups.iter().enumerate() {
        if ready(group) {
            count += 1;
            if best.is_none_or(|b: usize| order(group) < order(&warp.groups[b])) {
                best = Some(i);
            }
        }
    }
    if around.shuffle && count > 1 && around.rng.one_in(8) {
        let nth = around.rng.below(count);
        return warp.groups.iter().enumerate().filter(|(_, g)| ready(g)).nth(nth).map(|(i, _)| i);
    }
    best
}

/// Whether a group does not wait, or what it waits for has come.
pub fn ready(group: &Group, warp: &Warp, rank: usize, cluster: &Cluster) -> bool {
    match &group.wait {
        None => true,
        Some(Wait::Converge(mask)) => mask & warp.live & !group.mask == 0,
        Some(Wait::GridDependency) => cluster.launch.prerequisites.iter().all(|l| l.finished.load(Ordering::Acquire)),
        Some(wait) => sync::satisfied(wait, group, warp, rank, &cluster.blocks, &cluster.sync),
    }
}

/// When all groups of a warp wait for each other to arrive, none will: the place to report.
fn unreachable_convergence(warp: &Warp) -> Option<Located> {
    let inside = |g: &Group| matches!(g.wait, Some(Wait::Converge(_)));
    let group = warp.groups.iter().find(|g| inside(g))?;
    if !warp.groups.iter().all(|g| matches!(g.wait, Some(Wait::Converge(_) | Wait::WarpBarrier { .. }))) {
        return None;
    }
    let Some(Wait::Converge(mask)) = group.wait else { return None };
    let missing = mask & warp.live & !group.mask;
    let elsewhere: Vec<String> = warp
        .groups
        .iter()
        .filter(|g| !std::ptr::eq(*g, group))
        .map(|g| format!("lanes {:#010x} wait at instruction {} of the function", g.mask, g.pc))
        .collect();
    let mut fault = Fault::new(
        Kind::Divergence,
        format!(
            "lanes {:#010x} are here and wait for lanes {missing:#010x}, which cannot come: {}",
            group.mask,
            elsewhere.join("; ")
        ),
    );
    fault.lane = lanes(group.mask).next();
    let function = group.frames.last().map_or(0, |f| f.function);
    Some(Located { fault, at: (function, group.pc), mask: group.mask })
}

/// Runs the current group until it waits, exits, parts, meets another, or has used up what is left; whether it yields to other warps.
fn run_group(warp: &mut Warp, around: &mut Surroundings<'_>, launch: &Launch, left: &mut u64) -> Result<bool, Located> {
    let checks = around.env.config.checks;
    'function: loop {
        let Some(group) = warp.groups.get(warp.current) else { return Ok(false) };
        let Some(frame) = group.frames.last().copied() else { return Ok(false) };
        let function: &Function = &launch.program.functions[frame.function as usize];
        warp.regs.window(frame.base as usize, function.slots as usize, frame.pred_base as usize, function.preds as usize);
        loop {
            let group = &mut warp.groups[warp.current];
            let pc = group.pc;
            if *left == 0 {
                return Ok(false);
            }
            let located = |fault: Box<Fault>, mask: Mask| Located { fault, at: (frame.function, pc), mask };
            let Some(instr) = function.code.get(pc as usize) else {
                // Running off the end of a body is a return.
                let mask = group.mask;
                leave(warp, around, mask).map_err(|f| located(f, mask))?;
                continue 'function;
            };
            let all = group.mask;
            let mut mask = all;
            if let Some(guard) = instr.guard {
                if checks.uninitialized {
                    let unwritten = all & !warp.regs.defined(guard.index | PRED_BIT);
                    if unwritten != 0 {
                        return Err(located(unwritten_fault("the guard predicate", unwritten), all));
                    }
                }
                let value = warp.regs.pred(guard.index);
                mask &= if guard.negated { !value } else { value };
            }
            if let Op::Control(control) = &instr.op {
                *left -= 1;
                warp.thread_executed += u64::from(mask.count_ones());
                if checks.uninitialized && mask != 0 {
                    check_defined(warp, instr, mask).map_err(|f| located(f, mask))?;
                }
                let same_function = transfer(warp, around, launch, control, mask).map_err(|f| located(f, mask))?;
                if warp.current >= warp.groups.len() {
                    return Ok(false);
                }
                if !same_function {
                    continue 'function;
                }
                if warp.groups.len() > 1 && meet(warp) {
                    return Ok(false);
                }
                continue;
            }
            if mask == 0 {
                *left -= 1;
                warp.groups[warp.current].pc += 1;
            } else {
                let resumed = warp.groups[warp.current].wait.take();
                if checks.uninitialized || (checks.in_flight && warp.tensor.watches()) {
                    before(warp, instr, mask, checks.uninitialized).map_err(|f| located(f, mask))?;
                }
                let mut cx = Cx {
                    env: around.env,
                    launch,
                    blocks: &mut around.cluster.blocks,
                    cluster: &mut around.cluster.sync,
                    rank: around.rank,
                    warp: &mut *warp,
                    mask,
                    resumed,
                    instr,
                    site: launch.site_base + function.code_base + pc,
                    detector: around.detector.as_deref_mut(),
                    rng: &mut *around.rng,
                };
                let step = match &instr.op {
                    Op::Alu(op) => alu::exec(op, &mut cx),
                    Op::Mem(op) => mem_ops::exec(op, &mut cx),
                    Op::Warp(op) => warp_ops::exec(op, &mut cx),
                    Op::Sync(op) => sync::exec(op, &mut cx),
                    Op::Tensor(op) => tensor_ops::exec(op, &mut cx),
                    Op::Control(_) => Ok(Step::Next),
                };
                if step.is_err() {
                    // It may be executed again.
                    warp.groups[warp.current].wait = resumed;
                }
                match step.map_err(|f| located(f, mask))? {
                    Step::Wait(wait) => {
                        wait_here(warp, mask, wait);
                        return Ok(false);
                    }
                    step => {
                        *left -= 1;
                        warp.thread_executed += u64::from(mask.count_ones());
                        if checks.uninitialized {
                            after(warp, instr, mask);
                        }
                        warp.groups[warp.current].pc += 1;
                        if step == Step::Yield {
                            return Ok(true);
                        }
                    }
                }
            }
            if warp.groups.len() > 1 && meet(warp) {
                return Ok(false);
            }
        }
    }
}

fn unwritten_fault(what: &str, lanes_mask: Mask) -> Box<Fault> {
    let lane = lanes_mask.trailing_zeros() as usize;
    Fault::at(Kind::UninitializedRegister, lane, format!("{what} was never written in lanes {lanes_mask:#010x}"))
}

/// Reports registers that nothing wrote.
fn check_defined(warp: &Warp, instr: &Instr, mask: Mask) -> Exec {
    for &key in &instr.reads {
        let unwritten = mask & !warp.regs.defined(key);
        if unwritten != 0 {
            let what = match key & PRED_BIT {
                0 => format!("a source register of {}", instr.text),
                _ => format!("a source predicate of {}", instr.text),
            };
            return Err(
                warp_ops::read_from_absent(warp, key, unwritten, &what).unwrap_or_else(|| unwritten_fault(&what, unwritten))
            );
        }
    }
    Ok(())
}

fn before(warp: &mut Warp, instr: &Instr, mask: Mask, uninitialized: bool) -> Exec {
    if uninitialized && !instr.moves {
        check_defined(warp, instr, mask)?;
    }
    // Asynchronous matrix instructions know themselves which registers they may take.
    if warp.tensor.watches() && !matches!(instr.op, Op::Tensor(tensor_ops::TensorOp::Wgmma(_))) {
        tensor_ops::before_instruction(warp, instr, mask)?;
    }
    Ok(())
}

fn after(warp: &mut Warp, instr: &Instr, mask: Mask) {
    if instr.defines {
        return;
    }
    let mut value = Mask::MAX;
    if instr.moves {
        let guard = instr.guard.map(|g| g.index | PRED_BIT);
        for &key in instr.reads.iter().filter(|&&key| Some(key) != guard) {
            value &= warp.regs.defined(key);
        }
    }
    let of_registers = warp.exchange.result_defined.take().unwrap_or(value);
    for &key in &instr.writes {
        let value = if key & PRED_BIT == 0 { of_registers } else { value };
        warp.regs.define(key, value, mask);
    }
}

/// The executing lanes of the current group wait at this instruction; the others, whose guard is off, go on.
fn wait_here(warp: &mut Warp, mask: Mask, wait: Wait) {
    let group = &mut warp.groups[warp.current];
    let (rest, next) = (group.mask & !mask, group.pc + 1);
    group.wait = Some(wait);
    part(warp, rest, next);
    if matches!(wait, Wait::Converge(_)) {
        meet(warp);
    }
}

/// Joins the current group with one at the same place; whether another group should run now: it joined, or one is further behind.
fn meet(warp: &mut Warp) -> bool {
    let current = warp.current;
    let (pc, wait) = (warp.groups[current].pc, warp.groups[current].wait);
    let mergeable = |wait: &Option<Wait>| matches!(wait, None | Some(Wait::Converge(_)));
    if !mergeable(&wait) {
        return true;
    }
    let mut behind = false;
    for other in 0..warp.groups.len() {
        if other == current {
            continue;
        }
        let group = &warp.groups[other];
        if group.pc == pc && mergeable(&group.wait) && group.frames == warp.groups[current].frames {
            let (mask, wait) = (group.mask, group.wait);
            let here = &mut warp.groups[current];
            here.mask |= mask;
            here.wait = match (here.wait, wait) {
                (Some(Wait::Converge(a)), Some(Wait::Converge(b))) => Some(Wait::Converge(a | b)),
                (one, two) => one.or(two),
            };
            warp.groups.swap_remove(other);
            if warp.current == warp.groups.len() {
                warp.current = other;
            }
            return true;
        }
        behind |= group.wait.is_none() && (group.pc < pc || group.frames.len() > warp.groups[current].frames.len());
    }
    behind
}

/// Executes a control instruction for the lanes of `mask`; whether the current group stays in its activation.
fn transfer(warp: &mut Warp, around: &mut Surroundings<'_>, launch: &Launch, control: &Control, mask: Mask) -> Exec<bool> {
    let all = warp.groups[warp.current].mask;
    if mask == 0 {
        warp.groups[warp.current].pc += 1;
        return Ok(true);
    }
    match control {
        Control::Nothing => warp.groups[warp.current].pc += 1,
        Control::Branch { target, uniform } => {
            if mask == all {
                warp.groups[warp.current].pc = *target;
            } else {
                if *uniform {
                    return Err(Fault::new(
                        Kind::Divergence,
                        format!("bra.uni is taken by lanes {mask:#010x} of {all:#010x} only"),
                    ));
                }
                part(warp, mask, *target);
                warp.groups[warp.current].pc += 1;
            }
        }
        Control::BranchTable { index, targets, uniform } => {
            let cx = bare(warp, around, launch, mask);
            let index = cx.get32(index);
            let mut rest = mask;
            let mut first = true;
            while rest != 0 {
                let lane = rest.trailing_zeros() as usize;
                let Some(&target) = targets.get(index[lane] as usize) else {
                    let message = format!("brx.idx with index {} of {} targets", index[lane], targets.len());
                    return Err(Fault::at(Kind::IllegalOperand, lane, message));
                };
                let same = lanes(rest).filter(|&i| index[i] == index[lane]).fold(0, |m: Mask, i| m | 1 << i);
                rest &= !same;
                if *uniform && (rest != 0 || !first || same != all) {
                    return Err(Fault::at(Kind::Divergence, lane, "brx.idx.uni with different targets"));
                }
                first = false;
                if warp.groups[warp.current].mask == same {
                    warp.groups[warp.current].pc = target;
                } else {
                    part(warp, same, target);
                }
            }
            if mask != all {
                // Lanes whose guard is off: the group that remained.
                warp.groups[warp.current].pc += 1;
            }
        }
        Control::Return => {
            leave(warp, around, mask)?;
            return Ok(false);
        }
        Control::Exit => {
            exit(warp, around, mask)?;
            return Ok(false);
        }
        Control::Trap => return Err(Fault::at(Kind::Trap, mask.trailing_zeros() as usize, "the kernel executed trap")),
        Control::Call { callee, args, returns } => return call(warp, around, launch, callee, args, returns, mask),
    }
    Ok(true)
}

/// The lanes of `mask`, if any, leave the current group for `target`.
fn part(warp: &mut Warp, mask: Mask, target: u32) {
    if mask == 0 {
        return;
    }
    let group = &mut warp.groups[warp.current];
    group.mask &= !mask;
    let others = Group { mask, pc: target, frames: group.frames.clone(), wait: None };
    warp.groups.push(others);
}

fn bare<'a>(warp: &'a mut Warp, around: &'a mut Surroundings<'_>, launch: &'a Launch, mask: Mask) -> Cx<'a> {
    let group = &warp.groups[warp.current];
    let function = &launch.program.functions[group.frames.last().map_or(0, |f| f.function) as usize];
    let instr = &function.code[(group.pc as usize).min(function.code.len() - 1)];
    let site = launch.site_base + function.code_base + group.pc;
    Cx {
        env: around.env,
        launch,
        blocks: &mut around.cluster.blocks,
        cluster: &mut around.cluster.sync,
        rank: around.rank,
        warp,
        mask,
        resumed: None,
        instr,
        site,
        detector: around.detector.as_deref_mut(),
        rng: &mut *around.rng,
    }
}

fn call(
    warp: &mut Warp,
    around: &mut Surroundings<'_>,
    launch: &Launch,
    callee: &Callee,
    args: &[CallArg],
    returns: &[CallArg],
    mut mask: Mask,
) -> Exec<bool> {
    let id = match callee {
        Callee::Direct(id) => *id,
        Callee::System(name) => {
            system_call(warp, around, launch, name, args, returns, mask)?;
            warp.groups[warp.current].pc += 1;
            return Ok(true);
        }
        Callee::Indirect(handle) => {
            let handles = bare(warp, around, launch, mask).get64(handle);
            let lane = mask.trailing_zeros() as usize;
            // One target at a time: the lanes of the first go now, the others stay at this instruction. (Splitting alone would not
            // do: groups at one place are merged again before they run.)
            let same = lanes(mask).filter(|&i| handles[i] == handles[lane]).fold(0, |m: Mask, i| m | 1 << i);
            let others = mask & !same;
            let pc = warp.groups[warp.current].pc;
            part(warp, others, pc);
            mask = same;
            let id = handles[lane].wrapping_sub(FUNCTION_HANDLES);
            if id >= launch.program.functions.len() as u64 {
                return Err(Fault::at(Kind::IllegalOperand, lane, format!("call of {:#x}, which is no function", handles[lane])));
            }
            id as u32
        }
    };
    let function = &launch.program.functions[id as usize];
    if !function.defined {
        return Err(Fault::new(Kind::Unsupported, format!("call of {}, which has no body in this module", function.name)));
    }
    if function.params.len() != args.len() || function.returns.len() != returns.len() {
        return Err(Fault::new(Kind::IllegalOperand, format!("call of {} with another signature", function.name)));
    }
    let group = &warp.groups[warp.current];
    let (rest, next) = (group.mask & !mask, group.pc + 1);
    part(warp, rest, next);
    let caller = *warp.groups[warp.current].frames.last().expect("a group has an activation");
    if warp.groups[warp.current].frames.len() >= DEEPEST_CALL {
        return Err(Fault::new(Kind::Unsupported, format!("calls nested more than {DEEPEST_CALL} deep")));
    }
    let calling = &launch.program.functions[caller.function as usize];
    let frame = Frame {
        function: id,
        return_pc: warp.groups[warp.current].pc + 1,
        base: caller.base + calling.slots,
        pred_base: caller.pred_base + calling.preds,
        local_base: (caller.local_base + calling.local_size).next_multiple_of(16),
    };
    // Arguments are read in the caller's window and written in the callee's.
    let mut values = vec![];
    for arg in args {
        values.push(read_arg(warp, &caller, arg, mask)?);
    }
    warp.regs.window(frame.base as usize, function.slots as usize, frame.pred_base as usize, function.preds as usize);
    warp.regs.forget(function.slots as usize, function.preds as usize, mask);
    warp.local.enter(frame.local_base, function.local_size, mask)?;
    for (param, value) in function.params.iter().zip(values) {
        let to = match param.reg {
            Some(reg) => CallArg::Reg(reg),
            None => CallArg::Local { offset: i64::from(param.offset), size: param.size },
        };
        write_arg(warp, &frame, &to, &value, mask)?;
    }
    let group = &mut warp.groups[warp.current];
    group.frames.push(frame);
    group.pc = 0;
    Ok(false)
}

/// The bytes of an argument, lane after lane, and for each byte the lanes in which it is defined.
struct Value {
    bytes: Vec<u8>,
    size: usize,
    defined: Vec<Mask>,
}

fn read_arg(warp: &mut Warp, frame: &Frame, arg: &CallArg, mask: Mask) -> Exec<Value> {
    match *arg {
        CallArg::Local { offset, size } => {
            let size = size as usize;
            let mut bytes = vec![0; size * LANES];
            let at = frame.local_base.wrapping_add(offset as u32);
            for lane in lanes(mask) {
                warp.local.read(lane, at, &mut bytes[lane * size..(lane + 1) * size])?;
            }
            let defined = warp.local.written(at, size)?.to_vec();
            Ok(Value { bytes, size, defined })
        }
        CallArg::Reg(reg) => {
            let values = warp.regs.get64(reg);
            let size = 8;
            let defined = vec![warp.regs.defined(reg.slot); size];
            Ok(Value { bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(), size, defined })
        }
        CallArg::Imm(bits) => Ok(Value { bytes: bits.to_le_bytes().repeat(LANES), size: 8, defined: vec![mask; 8] }),
    }
}

fn write_arg(warp: &mut Warp, frame: &Frame, arg: &CallArg, value: &Value, mask: Mask) -> Exec {
    match *arg {
        CallArg::Local { offset, size } => {
            let at = frame.local_base.wrapping_add(offset as u32);
            for lane in lanes(mask) {
                let mut bytes = value.bytes[lane * value.size..(lane + 1) * value.size].to_vec();
                bytes.resize(size as usize, 0);
                warp.local.write(lane, at, &bytes, true)?;
            }
            let known = value.defined.len().min(size as usize);
            warp.local.set_written(at, &value.defined[..known], mask)?;
        }
        CallArg::Reg(reg) => {
            let lane_value = |i: usize| {
                let mut word = [0; 8];
                let bytes = &value.bytes[i * value.size..(i + 1) * value.size];
                let n = bytes.len().min(8);
                word[..n].copy_from_slice(&bytes[..n]);
                u64::from_le_bytes(word)
            };
            warp.regs.set64(reg, &std::array::from_fn(lane_value), mask);
            // As in loads of local memory: a register of which any byte is defined counts as defined.
            let bytes = value.defined.len().min(reg.width.bits() as usize / 8);
            let defined = value.defined[..bytes].iter().fold(0, |any, &byte| any | byte);
            warp.regs.define(reg.slot, defined, mask);
        }
        CallArg::Imm(..) => {}
    }
    Ok(())
}

/// The lanes of `mask` return from their activation; from the kernel itself: they exit.
fn leave(warp: &mut Warp, around: &mut Surroundings<'_>, mask: Mask) -> Exec {
    let group = &warp.groups[warp.current];
    if group.frames.len() == 1 {
        return exit(warp, around, mask);
    }
    let (rest, next) = (group.mask & !mask, group.pc + 1);
    part(warp, rest, next);
    let launch = Arc::clone(&around.cluster.launch);
    let Some(frame) = warp.groups[warp.current].frames.pop() else { return Ok(()) };
    let caller = *warp.groups[warp.current].frames.last().expect("the caller");
    let function = &launch.program.functions[frame.function as usize];
    let calling = &launch.program.functions[caller.function as usize];
    let Some(Op::Control(Control::Call { returns, .. })) = calling.code.get(frame.return_pc as usize - 1).map(|i| &i.op) else {
        return Err(Fault::new(Kind::Unsupported, "a return to what is no call"));
    };
    let mut values = vec![];
    for param in &function.returns {
        let from = match param.reg {
            Some(reg) => CallArg::Reg(reg),
            None => CallArg::Local { offset: i64::from(param.offset), size: param.size },
        };
        values.push(read_arg(warp, &frame, &from, mask)?);
    }
    warp.regs.window(caller.base as usize, calling.slots as usize, caller.pred_base as usize, calling.preds as usize);
    for (to, value) in returns.iter().zip(&values) {
        write_arg(warp, &caller, to, value, mask)?;
    }
    warp.groups[warp.current].pc = frame.return_pc;
    meet(warp);
    Ok(())
}

/// Threads end.
fn exit(warp: &mut Warp, around: &mut Surroundings<'_>, mask: Mask) -> Exec {
    let group = &mut warp.groups[warp.current];
    group.mask &= !mask;
    group.pc += 1;
    warp.live &= !mask;
    if warp.groups[warp.current].mask == 0 {
        warp.groups.swap_remove(warp.current);
        warp.current = usize::MAX;
    }
    let rank = around.rank;
    around.cluster.blocks[rank].live_threads -= mask.count_ones();
    let block = &mut around.cluster.blocks[rank];
    if block.live_threads == 0 && !std::mem::replace(&mut block.sync.released, true) {
        around.cluster.launch.released.fetch_add(1, Ordering::AcqRel);
    }
    around.env.progress();
    let launch = Arc::clone(&around.cluster.launch);
    let detector = around.detector.as_deref_mut();
    sync::exited(&launch, &mut around.cluster.blocks, &mut around.cluster.sync, rank, warp, detector)
}

/// Functions that the driver provides.
fn system_call(
    warp: &mut Warp,
    around: &mut Surroundings<'_>,
    launch: &Launch,
    name: &str,
    args: &[CallArg],
    returns: &[CallArg],
    mask: Mask,
) -> Exec {
    let frame = *warp.groups[warp.current].frames.last().expect("a group has an activation");
    let mut values = vec![];
    for arg in args {
        values.push(read_arg(warp, &frame, arg, mask)?);
    }
    let pointer = |value: &Value, lane: usize| -> u64 {
        let mut word = [0; 8];
        let n = value.size.min(8);
        word[..n].copy_from_slice(&value.bytes[lane * value.size..lane * value.size + n]);
        u64::from_le_bytes(word)
    };
    match name {
        "__assertfail" => {
            let lane = mask.trailing_zeros() as usize;
            let texts: Vec<u64> = values.iter().map(|v| pointer(v, lane)).collect();
            let mut cx = bare(warp, around, launch, mask);
            let mut text = |i: usize| {
                texts
                    .get(i)
                    .map_or_else(String::new, |&address| crate::printf::c_string(&mut cx, lane, address).unwrap_or_default())
            };
            let (message, file, function) = (text(0), text(1), text(3));
            let line = texts.get(2).map_or(0, |&l| l as u32);
            Err(Fault::at(Kind::Trap, lane, format!("assertion `{message}` failed in {function}, {file}:{line}")))
        }
        "vprintf" => {
            for lane in lanes(mask) {
                let (format, list) = match values.as_slice() {
                    [format, list] => (pointer(format, lane), pointer(list, lane)),
                    _ => return Err(Fault::new(Kind::Unsupported, "vprintf with other than two arguments")),
                };
                let mut cx = bare(warp, around, launch, mask);
                let text = crate::printf::format(&mut cx, lane, format, list)?;
                around.env.print(&text);
            }
            let ok = Value { bytes: 0u64.to_le_bytes().repeat(LANES), size: 8, defined: vec![mask; 8] };
            for to in returns {
                write_arg(warp, &frame, to, &ok, mask)?;
            }
            Ok(())
        }
        other => Err(Fault::new(Kind::Unsupported, format!("call of {other}, which the driver would provide"))),
    }
}
