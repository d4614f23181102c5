//! From syntax to decoded instructions: scopes, registers, labels, symbols. The families decode their own instructions with the
//! [`Decoder`]'s help.

use crate::ast::{self, Init, Instruction, Operand, Space, Span, Statement, Type};
use crate::error::ParseError;
use crate::isa::{Addr, CallArg, Callee, Control, Instr, Op, PRED_BIT, PredSrc, Reg, Special, Src, Width};
use crate::program::{Function, Param, Program, Relocation, Symbol, Target};
use std::collections::HashMap;
use std::sync::Arc;

/// A result of decoding.
pub type Result<T> = std::result::Result<T, ParseError>;

/// Most slots of registers in one function: 8 MiB a warp. Unoptimised kernels declare some thousands.
const MOST_SLOTS: u32 = 1 << 16;
/// The symbol that stands for the system's part of shared memory, and its bytes.
const RESERVED_NAME: &str = "%reserved_smem";
const RESERVED_SHARED: u64 = 1024;
/// Most bytes of a variable.
const MOST_BYTES: u64 = 1 << 40;

/// What a name stands for.
#[derive(Debug, Clone)]
enum Entity {
    Reg(Type, u32),
    /// `%r<10>`: type, first slot or predicate, count.
    RegRange(Type, u32, u32),
    Symbol(u32),
    Local(u32, u32),
    Param(u32),
    Targets(Vec<String>),
    Prototype(Vec<u32>, Vec<u32>),
}

#[derive(Default)]
struct Scope {
    names: HashMap<String, Entity>,
    labels: HashMap<String, u32>,
}

/// The state of decoding one function, with what families need.
pub struct Decoder<'a> {
    symbols: &'a mut Vec<Symbol>,
    globals: &'a HashMap<String, u32>,
    functions: &'a HashMap<String, u32>,
    signatures: &'a [(Vec<Param>, Vec<Param>)],
    scopes: Vec<Scope>,
    slots: u32,
    preds: u32,
    local: u64,
    local_align: u32,
    code: Vec<Instr>,
    shared: Vec<u32>,
    calls: Vec<u32>,
    reads: Vec<u32>,
    writes: Vec<u32>,
    moves: bool,
    defines: bool,
    span: Span,
    sink: u32,
    is_entry: bool,
    texts: HashMap<String, Arc<str>>,
}

fn size_of(variable: &ast::Variable) -> Result<u64> {
    let mut size = u64::from(variable.ty.bytes()) * u64::from(variable.vector.max(1));
    for &dim in &variable.dims {
        size = size
            .checked_mul(dim)
            .filter(|&s| s <= MOST_BYTES)
            .ok_or_else(|| error(variable.span, "the variable is too large"))?;
    }
    Ok(if variable.unsized_array && variable.init.is_empty() { 0 } else { size })
}

fn error(span: Span, message: impl Into<String>) -> ParseError {
    ParseError { line: span.line, column: span.column, message: message.into() }
}

/// Decodes a module.
pub fn decode(module: &ast::Module) -> Result<Program> {
    let mut functions_by_name = HashMap::new();
    let mut order: Vec<&ast::Function> = vec![];
    for function in &module.functions {
        // A declaration and its definition are one function.
        match functions_by_name.get(&function.name) {
            None => {
                functions_by_name.insert(function.name.clone(), order.len() as u32);
                order.push(function);
            }
            Some(&id) => {
                let known: &mut &ast::Function = &mut order[id as usize];
                if known.body.is_some() && function.body.is_some() {
                    return Err(error(function.span, format!("function {} is defined twice", function.name)));
                }
                if function.body.is_some() {
                    *known = function;
                }
            }
        }
    }
    let mut symbols = vec![];
    let mut globals = HashMap::new();
    for variable in &module.variables {
        if variable.space == Space::Reg {
            return Err(error(variable.span, "registers at module scope are not supported"));
        }
        if let Some(&known) = globals.get(&variable.name) {
            let known: &Symbol = &symbols[known as usize];
            if !known.is_extern && !variable.is_extern {
                return Err(error(variable.span, format!("{} is declared twice", variable.name)));
            }
            if variable.is_extern {
                continue;
            }
        }
        globals.insert(variable.name.clone(), symbols.len() as u32);
        symbols.push(symbol(variable)?);
    }
    // Relocations want all names.
    for variable in &module.variables {
        let id = globals[&variable.name];
        relocate(&mut symbols, id, variable, &globals, &functions_by_name)?;
    }
    let mut signatures = vec![];
    for function in &order {
        let mut end = 0;
        let returns = if function.is_entry { vec![] } else { layout(&function.returns, &mut end)? };
        let params = layout(&function.params, &mut end)?;
        signatures.push((params, returns));
    }
    let mut functions = vec![];
    let mut code_base = 0;
    for (function, (params, returns)) in order.iter().zip(&signatures) {
        let mut decoded = decode_function(function, params, returns, &mut symbols, &globals, &functions_by_name, &signatures)?;
        decoded.code_base = code_base;
        code_base += decoded.code.len() as u32;
        functions.push(decoded);
    }
    let reserved = symbols.iter().position(|s| s.name == RESERVED_NAME).map(|id| (id as u32, RESERVED_SHARED));
    Ok(Program {
        reserved,
        functions,
        by_name: functions_by_name,
        symbols,
        files: module.files.iter().map(|(n, f)| (*n, Arc::from(f.as_str()))).collect(),
        target: module.targets.first().cloned().unwrap_or_default(),
    })
}

/// Lays variables out one after the other.
fn layout(variables: &[ast::Variable], end: &mut u64) -> Result<Vec<Param>> {
    variables
        .iter()
        .map(|v| {
            let size = size_of(v)?;
            let align = v.align.max(1);
            *end = end.next_multiple_of(u64::from(align));
            let offset = *end;
            *end += size;
            if *end > 1 << 24 {
                return Err(error(v.span, "the parameters are too large"));
            }
            Ok(Param { offset: offset as u32, size: size as u32, reg: None })
        })
        .collect()
}

fn symbol(variable: &ast::Variable) -> Result<Symbol> {
    let mut size = size_of(variable)?;
    let element = variable.ty.bytes() as usize;
    let mut init = vec![];
    for value in &variable.init {
        let bits = match value {
            Init::Bits(bits) => *bits,
            Init::Address { .. } => 0,
            Init::AddressByte { .. } => {
                return Err(error(variable.span, "masks of addresses in initial values are not supported"));
            }
        };
        let bytes = bits.to_le_bytes();
        init.extend((0..element).map(|i| bytes.get(i).copied().unwrap_or(0)));
    }
    if variable.unsized_array {
        size = size.max(init.len() as u64);
    }
    if init.len() as u64 > size {
        return Err(error(variable.span, format!("{} has more initial values than elements", variable.name)));
    }
    Ok(Symbol {
        name: variable.name.clone(),
        space: variable.space,
        size,
        align: variable.align.max(1),
        init,
        relocations: vec![],
        dynamic: variable.space == Space::Shared && variable.unsized_array,
        is_extern: variable.is_extern,
    })
}

fn relocate(
    symbols: &mut [Symbol],
    id: u32,
    variable: &ast::Variable,
    globals: &HashMap<String, u32>,
    functions: &HashMap<String, u32>,
) -> Result<()> {
    let element = variable.ty.bytes();
    for (i, value) in variable.init.iter().enumerate() {
        let Init::Address { name, offset, .. } = value else { continue };
        let target = match (globals.get(name), functions.get(name)) {
            (Some(&s), _) => Target::Symbol(s),
            (None, Some(&f)) => Target::Function(f),
            (None, None) => return Err(error(variable.span, format!("unknown name {name} in an initial value"))),
        };
        symbols[id as usize].relocations.push(Relocation {
            at: i as u64 * u64::from(element),
            size: element,
            target,
            offset: *offset,
        });
    }
    Ok(())
}

fn decode_function(
    function: &ast::Function,
    params: &[Param],
    returns: &[Param],
    symbols: &mut Vec<Symbol>,
    globals: &HashMap<String, u32>,
    functions: &HashMap<String, u32>,
    signatures: &[(Vec<Param>, Vec<Param>)],
) -> Result<Function> {
    let param_end = params.iter().chain(returns).map(|p| p.offset + p.size).max().unwrap_or(0);
    let mut decoder = Decoder {
        symbols,
        globals,
        functions,
        signatures,
        scopes: vec![Scope::default()],
        slots: 4, // the first four take what `_` discards
        preds: 1,
        local: if function.is_entry { 0 } else { u64::from(param_end) },
        local_align: 16,
        code: vec![],
        shared: vec![],
        calls: vec![],
        reads: vec![],
        writes: vec![],
        moves: false,
        defines: false,
        span: function.span,
        sink: 0,
        is_entry: function.is_entry,
        texts: HashMap::new(),
    };
    let (mut params, mut returns) = (params.to_vec(), returns.to_vec());
    for (param, variable) in params.iter_mut().zip(&function.params).chain(returns.iter_mut().zip(&function.returns)) {
        let entity = if variable.space == Space::Reg {
            let first = decoder.allocate(variable.ty, 1, variable.span)?;
            param.reg = Width::of(variable.ty).map(|width| Reg { slot: first, width });
            if param.reg.is_none() {
                return Err(error(variable.span, "a parameter cannot be a predicate"));
            }
            Entity::Reg(variable.ty, first)
        } else if function.is_entry {
            Entity::Param(param.offset)
        } else {
            Entity::Local(param.offset, param.size)
        };
        decoder.declare(&variable.name, entity, variable.span)?;
    }
    if let Some(body) = &function.body {
        let count = decoder.labels(body, 0)?;
        decoder.body(body)?;
        debug_assert_eq!(count as usize, decoder.code.len());
    }
    let list = |name: &str| function.directives.iter().find(|d| d.0 == name).map(|d| d.1.as_slice());
    let dims =
        |v: &[u64]| -> [u32; 3] { std::array::from_fn(|i| v.get(i).copied().unwrap_or(1).clamp(1, u64::from(u32::MAX)) as u32) };
    Ok(Function {
        name: Arc::from(function.name.as_str()),
        is_entry: function.is_entry,
        defined: function.body.is_some(),
        slots: decoder.slots,
        preds: decoder.preds,
        local_size: u32::try_from(decoder.local.next_multiple_of(u64::from(decoder.local_align)))
            .map_err(|_| error(function.span, "too much local memory"))?,
        param_size: if function.is_entry { param_end } else { 0 },
        max_threads: list("maxntid").map(|v| v.iter().fold(1u64, |a, &b| a.saturating_mul(b))),
        required_block: list("reqntid").map(dims),
        required_cluster: list("reqnctapercluster").map(dims),
        code_base: 0,
        code: decoder.code,
        shared: decoder.shared,
        calls: decoder.calls,
        params,
        returns,
    })
}

impl Decoder<'_> {
    /// An error at the current instruction.
    pub fn error(&self, message: impl Into<String>) -> ParseError {
        error(self.span, message)
    }

    /// The error for an opcode that nothing here executes.
    pub fn unknown(&self, instruction: &Instruction) -> ParseError {
        self.error(format!("unknown instruction {}", instruction.opcode.join(".")))
    }

    fn allocate(&mut self, ty: Type, count: u32, span: Span) -> Result<u32> {
        let (counter, each) = match Width::of(ty) {
            Some(width) => (&mut self.slots, width.slots()),
            None if ty == Type::Pred => (&mut self.preds, 1),
            None => return Err(error(span, "a register of an opaque type")),
        };
        let first = *counter;
        let end = u64::from(first) + u64::from(each) * u64::from(count);
        if end > u64::from(MOST_SLOTS) {
            return Err(error(span, "too many registers"));
        }
        *counter = end as u32;
        Ok(first)
    }

    fn declare(&mut self, name: &str, entity: Entity, span: Span) -> Result<()> {
        let scope = self.scopes.last_mut().expect("a scope");
        if scope.names.insert(name.to_string(), entity).is_some() {
            return Err(error(span, format!("{name} is declared twice in one scope")));
        }
        Ok(())
    }

    /// Puts the labels of a body (not of blocks inside it) into the innermost scope; returns where the body ends.
    fn labels(&mut self, body: &[Statement], start: u32) -> Result<u32> {
        let mut pc = start;
        for statement in body {
            match statement {
                Statement::Instruction(_) => pc += 1,
                Statement::Block(inner) => pc += count(inner),
                Statement::Label { span, name } => {
                    let labels = &mut self.scopes.last_mut().expect("a scope").labels;
                    match labels.insert(name.clone(), pc) {
                        None => {}
                        Some(_) => return Err(error(*span, format!("label {name} stands twice in one scope"))),
                    }
                }
                _ => {}
            }
        }
        Ok(pc)
    }

    fn body(&mut self, body: &[Statement]) -> Result<()> {
        // Lists of targets stand after what uses them.
        for statement in body {
            match statement {
                Statement::BranchTargets { span, name, targets } => {
                    self.declare(name, Entity::Targets(targets.clone()), *span)?;
                }
                Statement::CallPrototype { span, name, returns, params } => {
                    let sizes =
                        |list: &[ast::Variable]| list.iter().map(|v| size_of(v).map(|s| s as u32)).collect::<Result<Vec<_>>>();
                    let entity = Entity::Prototype(sizes(returns)?, sizes(params)?);
                    self.declare(name, entity, *span)?;
                }
                _ => {}
            }
        }
        for statement in body {
            match statement {
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Instruction(instruction) => self.instruction(instruction)?,
                Statement::Block(inner) => {
                    self.scopes.push(Scope::default());
                    self.labels(inner, self.code.len() as u32)?;
                    self.body(inner)?;
                    self.scopes.pop();
                }
                Statement::Label { .. } | Statement::Pragma(_) => {}
                Statement::BranchTargets { .. } | Statement::CallPrototype { .. } => {}
                Statement::CallTargets { span, .. } => return Err(error(*span, "`.calltargets` is not supported")),
            }
        }
        Ok(())
    }

    fn variable(&mut self, variable: &ast::Variable) -> Result<()> {
        let entity = match variable.space {
            Space::Reg => {
                let vector = variable.vector.max(1);
                if vector != 1 {
                    return Err(error(variable.span, "vector registers are not supported"));
                }
                let first = self.allocate(variable.ty, variable.range.unwrap_or(1), variable.span)?;
                match variable.range {
                    Some(count) => Entity::RegRange(variable.ty, first, count),
                    None => Entity::Reg(variable.ty, first),
                }
            }
            Space::Local | Space::Param => {
                let size = size_of(variable)?;
                let align = variable.align.max(1);
                if align > 1 << 12 {
                    return Err(error(variable.span, "the alignment is too large"));
                }
                self.local = self.local.next_multiple_of(u64::from(align));
                let offset = self.local;
                self.local += size;
                self.local_align = self.local_align.max(align);
                if self.local > 1 << 24 {
                    return Err(error(variable.span, "too much local memory"));
                }
                if variable.range.is_some() {
                    return Err(error(variable.span, "a range of variables that are not registers"));
                }
                Entity::Local(offset as u32, size as u32)
            }
            Space::Shared | Space::Global | Space::Const => {
                self.symbols.push(symbol(variable)?);
                let id = self.symbols.len() as u32 - 1;
                let no_functions = self.functions;
                relocate(self.symbols, id, variable, self.globals, no_functions)?;
                Entity::Symbol(id)
            }
        };
        self.declare(&variable.name, entity, variable.span)
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<()> {
        self.span = instruction.span;
        self.reads.clear();
        self.writes.clear();
        self.moves = false;
        self.defines = false;
        let guard = match &instruction.guard {
            None => None,
            Some(guard) => Some(self.pred(&guard.name, guard.negated)?),
        };
        let op = self.op(instruction)?;
        let text = instruction.opcode.join(".");
        let text = self.texts.entry(text).or_insert_with_key(|k| Arc::from(k.as_str())).clone();
        self.reads.sort_unstable();
        self.reads.dedup();
        self.writes.sort_unstable();
        self.writes.dedup();
        self.writes.retain(|&w| w != self.sink && w != PRED_BIT);
        self.code.push(Instr {
            op,
            guard,
            reads: self.reads.as_slice().into(),
            writes: self.writes.as_slice().into(),
            moves: self.moves,
            defines: self.defines,
            span: instruction.span,
            loc: instruction.loc,
            inlined_at: Arc::clone(&instruction.inlined_at),
            text,
        });
        Ok(())
    }

    fn op(&mut self, instruction: &Instruction) -> Result<Op> {
        let Some(base) = instruction.opcode.first() else { return Err(self.error("an instruction without an opcode")) };
        Ok(match base.as_str() {
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "pmevent" => Op::Control(self.control(instruction)?),
            "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" | "prefetch" | "prefetchu" | "applypriority"
            | "discard" | "createpolicy" | "mapa" | "getctarank" | "stacksave" | "stackrestore" | "alloca" => {
                Op::Mem(crate::mem_ops::decode(self, instruction)?)
            }
            "shfl" | "vote" | "match" | "activemask" | "redux" | "elect" => Op::Warp(crate::warp_ops::decode(self, instruction)?),
            "bar" | "barrier" | "mbarrier" | "fence" | "membar" | "cp" | "nanosleep" | "griddepcontrol" | "setmaxnreg"
            | "tensormap" => Op::Sync(crate::sync::decode(self, instruction)?),
            "mma" | "wmma" | "wgmma" | "ldmatrix" | "stmatrix" | "movmatrix" => {
                Op::Tensor(crate::tensor_ops::decode(self, instruction)?)
            }
            _ => Op::Alu(crate::alu::decode(self, instruction)?),
        })
    }

    fn control(&mut self, instruction: &Instruction) -> Result<Control> {
        let opcode: Vec<&str> = instruction.opcode.iter().map(String::as_str).collect();
        let operands = &instruction.operands;
        Ok(match opcode.as_slice() {
            ["bra"] | ["bra", "uni"] => {
                let [Operand::Name(label)] = operands.as_slice() else { return Err(self.error("bra wants a label")) };
                Control::Branch { target: self.label(label)?, uniform: opcode.len() == 2 }
            }
            ["brx", "idx"] | ["brx", "idx", "uni"] => {
                let [index, Operand::Name(list)] = operands.as_slice() else {
                    return Err(self.error("brx.idx wants an index and a list of targets"));
                };
                let index = self.src(index, Type::U32)?;
                let Some(Entity::Targets(names)) = self.find(list) else {
                    return Err(self.error(format!("{list} is not a list of branch targets")));
                };
                let targets = names.iter().map(|name| self.label(name)).collect::<Result<Vec<_>>>()?;
                Control::BranchTable { index, targets: targets.into(), uniform: opcode.len() == 3 }
            }
            ["call"] | ["call", "uni"] => self.call(operands)?,
            ["ret"] | ["ret", "uni"] if operands.is_empty() => Control::Return,
            ["exit"] if operands.is_empty() => Control::Exit,
            ["trap"] if operands.is_empty() => Control::Trap,
            ["brkpt"] | ["pmevent", ..] => Control::Nothing,
            _ => return Err(self.unknown(instruction)),
        })
    }

    fn call(&mut self, operands: &[Operand]) -> Result<Control> {
        let (returns, rest) = match operands {
            [Operand::List(returns), rest @ ..] => (returns.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let [Operand::Name(callee), rest @ ..] = rest else { return Err(self.error("call wants a function")) };
        let (args, rest) = match rest {
            [Operand::List(args), rest @ ..] => (args.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (callee, params, results) = match (self.functions.get(callee), rest) {
            (Some(&id), []) => {
                self.calls.push(id);
                let (params, returns) = &self.signatures[id as usize];
                let sizes = |list: &[Param]| list.iter().map(|p| p.size).collect::<Vec<_>>();
                let (params, returns) = (sizes(params), sizes(returns));
                let known_to_driver = matches!(callee.as_str(), "vprintf" | "__assertfail" | "malloc" | "free");
                let callee = if known_to_driver { Callee::System(Arc::from(callee.as_str())) } else { Callee::Direct(id) };
                (callee, params, returns)
            }
            (None, [Operand::Name(prototype)]) => {
                let handle = self.src(&Operand::Name(callee.clone()), Type::U64)?;
                let Some(Entity::Prototype(returns, params)) = self.find(prototype).cloned() else {
                    return Err(self.error(format!("{prototype} is not a call prototype")));
                };
                (Callee::Indirect(handle), params, returns)
            }
            (None, _) => return Err(self.error(format!("unknown function {callee}"))),
            (Some(_), _) => return Err(self.error("too many operands of call")),
        };
        if params.len() != args.len() || results.len() != returns.len() {
            return Err(self.error(format!(
                "the call passes {} and takes back {} values, the function has {} and {}",
                args.len(),
                returns.len(),
                params.len(),
                results.len()
            )));
        }
        let args = args.iter().zip(&params).map(|(a, &size)| self.call_arg(a, size, false)).collect::<Result<Vec<_>>>()?;
        let returns = returns.iter().zip(&results).map(|(a, &size)| self.call_arg(a, size, true)).collect::<Result<Vec<_>>>()?;
        Ok(Control::Call { callee, args: args.into(), returns: returns.into() })
    }

    fn call_arg(&mut self, operand: &Operand, size: u32, written: bool) -> Result<CallArg> {
        if let Operand::Name(name) = operand
            && let Some(&Entity::Local(offset, have)) = self.find(name)
        {
            if have != size {
                return Err(self.error(format!("{name} has {have} bytes where the function has {size}")));
            }
            return Ok(CallArg::Local { offset: i64::from(offset), size });
        }
        match (operand, written) {
            (Operand::Int(bits), false) => Ok(CallArg::Imm(*bits)),
            (Operand::F32(bits), false) => Ok(CallArg::Imm(u64::from(*bits))),
            (Operand::F64(bits), false) => Ok(CallArg::Imm(*bits)),
            (_, true) => Ok(CallArg::Reg(self.dst(operand)?)),
            (_, false) => match self.src_any(operand)? {
                Src::Reg(reg) => Ok(CallArg::Reg(reg)),
                _ => Err(self.error("an argument must be a register, a literal or a .param variable")),
            },
        }
    }

    fn find(&self, name: &str) -> Option<&Entity> {
        self.scopes.iter().rev().find_map(|scope| scope.names.get(name))
    }

    fn label(&self, name: &str) -> Result<u32> {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.labels.get(name).copied())
            .ok_or_else(|| self.error(format!("unknown label {name}")))
    }

    /// A register by name: its type, and slot or predicate index.
    fn register(&self, name: &str) -> Option<(Type, u32)> {
        let split = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        for scope in self.scopes.iter().rev() {
            if let Some(&Entity::Reg(ty, at)) = scope.names.get(name) {
                return Some((ty, at));
            }
            if split < name.len()
                && (name.as_bytes()[split] != b'0' || name.len() == split + 1)
                && let Some(&Entity::RegRange(ty, first, count)) = scope.names.get(&name[..split])
            {
                let index: u32 = name[split..].parse().ok()?;
                let each = Width::of(ty).map_or(1, Width::slots);
                return (index < count).then(|| (ty, first + index * each));
            }
        }
        None
    }

    fn data_register(&self, name: &str) -> Result<Option<Reg>> {
        match self.register(name) {
            None => Ok(None),
            Some((ty, slot)) => match Width::of(ty) {
                Some(width) => Ok(Some(Reg { slot, width })),
                None => Err(self.error(format!("{name} is a predicate where a register must stand"))),
            },
        }
    }

    /// A destination register of any declared width; `_` gives one whose value is never read.
    pub fn dst(&mut self, operand: &Operand) -> Result<Reg> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(Reg { slot: self.sink, width: Width::W128 }),
            Operand::Name(name) => match self.data_register(name)? {
                Some(reg) => {
                    self.writes.push(reg.slot);
                    Ok(reg)
                }
                None => Err(self.error(format!("{name} is not a register"))),
            },
            _ => Err(self.error("the destination must be a register")),
        }
    }

    /// A destination register that holds at least a value of this type.
    pub fn dst_of(&mut self, operand: &Operand, ty: Type) -> Result<Reg> {
        let reg = self.dst(operand)?;
        match Width::of(ty) {
            Some(width) if reg.width.bits() >= width.bits() => Ok(reg),
            _ => Err(self.error(format!("a register of {} bits cannot hold a {ty:?}", reg.width.bits()))),
        }
    }

    /// A source of this type: a register at least as wide, a literal (brought to the type), a special register, the address of a
    /// variable.
    pub fn src(&mut self, operand: &Operand, ty: Type) -> Result<Src> {
        let value = match operand {
            Operand::F64(bits) if matches!(ty, Type::F32) => Src::Imm(u64::from((f64::from_bits(*bits) as f32).to_bits())),
            Operand::F32(bits) if matches!(ty, Type::F64) => Src::Imm(f64::from(f32::from_bits(*bits)).to_bits()),
            Operand::Int(value) => {
                let bits = Width::of(ty).map_or(64, Width::bits);
                Src::Imm(if bits >= 64 { *value } else { value & ((1 << bits) - 1) })
            }
            other => self.src_any(other)?,
        };
        if let (Src::Reg(reg), Some(width)) = (&value, Width::of(ty))
            && reg.width.bits() < width.bits()
        {
            return Err(self.error(format!("a register of {} bits where the instruction reads a {ty:?}", reg.width.bits())));
        }
        Ok(value)
    }

    /// A source whatever its type; literals as written.
    pub fn src_any(&mut self, operand: &Operand) -> Result<Src> {
        match operand {
            Operand::Int(value) => Ok(Src::Imm(*value)),
            Operand::F32(bits) => Ok(Src::Imm(u64::from(*bits))),
            Operand::F64(bits) => Ok(Src::Imm(*bits)),
            Operand::Name(name) => self.named(name, 0),
            Operand::Offset(name, offset) => self.named(name, *offset),
            _ => Err(self.error("this operand must be a register, a literal or a variable")),
        }
    }

    fn named(&mut self, name: &str, offset: i64) -> Result<Src> {
        if let Some(reg) = self.data_register(name)? {
            if offset != 0 {
                return Err(self.error("a register plus an offset outside of brackets"));
            }
            self.reads.push(reg.slot);
            return Ok(Src::Reg(reg));
        }
        if let Some(special) = Special::by_name(name) {
            return Ok(Src::Special(special));
        }
        if name == "WARP_SZ" {
            return Ok(Src::Imm(32));
        }
        if let Some(which) = name.strip_prefix("%reserved_smem_offset_") {
            return self.reserved(which);
        }
        if let Some(entity) = self.find(name) {
            return match *entity {
                Entity::Symbol(id) => Ok(self.symbol(id, offset)),
                Entity::Local(at, _) => Ok(Src::Local(i64::from(at).wrapping_add(offset))),
                Entity::Param(at) => Ok(Src::Param(i64::from(at).wrapping_add(offset))),
                _ => Err(self.error(format!("{name} cannot be an operand here"))),
            };
        }
        if let Some(&id) = self.globals.get(name) {
            return Ok(self.symbol(id, offset));
        }
        if let Some(&id) = self.functions.get(name) {
            self.calls.push(id);
            return Ok(Src::Function(id));
        }
        Err(self.error(format!("unknown name {name}")))
    }

    /// `%reserved_smem_offset_*`: what the system keeps for itself in shared memory, and cooperative groups use. Here it is a variable like
    /// any other, of kernels that name it.
    fn reserved(&mut self, which: &str) -> Result<Src> {
        let size = RESERVED_SHARED;
        let offset = match which {
            "begin" | "0" => 0,
            "1" => size / 2,
            "end" => size,
            "cap" => return Ok(Src::Imm(size)),
            _ => return Err(self.error(format!("unknown special register %reserved_smem_offset_{which}"))),
        };
        let id = match self.symbols.iter().position(|s| s.name == RESERVED_NAME) {
            Some(id) => id,
            None => {
                self.symbols.push(Symbol {
                    name: RESERVED_NAME.into(),
                    space: Space::Shared,
                    size,
                    align: 1024,
                    init: vec![],
                    relocations: vec![],
                    dynamic: false,
                    is_extern: false,
                });
                self.symbols.len() - 1
            }
        };
        Ok(self.symbol(id as u32, offset as i64))
    }

    fn symbol(&mut self, id: u32, offset: i64) -> Src {
        if self.symbols[id as usize].space == Space::Shared && !self.shared.contains(&id) {
            self.shared.push(id);
        }
        Src::Symbol(id, offset)
    }

    /// The state space of a variable that a source names; None for other sources.
    pub fn space_of(&self, src: &Src) -> Option<Space> {
        match *src {
            Src::Symbol(id, _) => Some(self.symbols[id as usize].space),
            Src::Local(_) => Some(Space::Local),
            Src::Param(_) => Some(Space::Param),
            _ => None,
        }
    }

    /// Whether this is a kernel: its `.param` variables are parameters, those of a function lie in local memory.
    pub fn is_entry(&self) -> bool {
        self.is_entry
    }

    fn pred(&mut self, name: &str, negated: bool) -> Result<PredSrc> {
        match self.register(name) {
            Some((Type::Pred, index)) => {
                self.reads.push(index | PRED_BIT);
                Ok(PredSrc { index, negated })
            }
            _ => Err(self.error(format!("{name} is not a predicate"))),
        }
    }

    /// A predicate as a source: `p` or `!p`.
    pub fn pred_src(&mut self, operand: &Operand) -> Result<PredSrc> {
        match operand {
            Operand::Name(name) => self.pred(name, false),
            Operand::Not(name) => self.pred(name, true),
            _ => Err(self.error("this operand must be a predicate")),
        }
    }

    /// A predicate as a destination; None for `_`.
    pub fn pred_dst(&mut self, operand: &Operand) -> Result<Option<u32>> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(None),
            Operand::Name(name) => match self.register(name) {
                Some((Type::Pred, index)) => {
                    self.writes.push(index | PRED_BIT);
                    Ok(Some(index))
                }
                _ => Err(self.error(format!("{name} is not a predicate"))),
            },
            _ => Err(self.error("this operand must be a predicate")),
        }
    }

    /// `[base+offset]` and nothing more inside the brackets.
    pub fn addr(&mut self, operand: &Operand) -> Result<Addr> {
        match operand {
            Operand::Address { rest, .. } if !rest.is_empty() => Err(self.error("this address takes no further operands")),
            _ => self.addr_with(operand).map(|(addr, _)| addr),
        }
    }

    /// `[base+offset, ...]`: the address and the other operands inside the brackets.
    pub fn addr_with<'o>(&mut self, operand: &'o Operand) -> Result<(Addr, &'o [Operand])> {
        let Operand::Address { base, offset, rest } = operand else {
            return Err(self.error("this operand must be an address in brackets"));
        };
        Ok((Addr { base: self.src_any(base)?, offset: *offset }, rest))
    }

    /// The elements of `{a, b}`; a single operand counts as a vector of one.
    pub fn elements<'o>(&self, operand: &'o Operand) -> &'o [Operand] {
        match operand {
            Operand::Vector(list) => list,
            other => std::slice::from_ref(other),
        }
    }

    /// A literal.
    pub fn literal(&self, operand: &Operand) -> Result<u64> {
        match operand {
            Operand::Int(value) => Ok(*value),
            _ => Err(self.error("this operand must be an integer literal")),
        }
    }

    /// The instruction only moves values: reading an unwritten register is then no error yet.
    pub fn moves(&mut self) {
        self.moves = true;
    }

    /// The instruction marks what it writes as defined or not itself.
    pub fn defines(&mut self) {
        self.defines = true;
    }

    /// Forgets that these registers are read: the instruction decides at run time (a multiplication by a false scale, say).
    pub fn not_read(&mut self, regs: &[Reg]) {
        self.reads.retain(|r| !regs.iter().any(|reg| reg.slot == *r));
    }
}

fn count(body: &[Statement]) -> u32 {
    body.iter()
        .map(|s| match s {
            Statement::Instruction(_) => 1,
            Statement::Block(inner) => count(inner),
            _ => 0,
        })
        .sum()
}
