//! A decoded module: functions, symbols, and how kernels are laid out in memory.

use crate::ast::Space;
use crate::isa::{Instr, Reg};
use std::collections::HashMap;
use std::sync::Arc;

/// A decoded module.
#[derive(Debug)]
pub struct Program {
    /// Functions and kernels.
    pub functions: Vec<Function>,
    /// Their names.
    pub by_name: HashMap<String, u32>,
    /// Variables of `.global`, `.const` and `.shared`.
    pub symbols: Vec<Symbol>,
    /// The system's part of shared memory, where the module names it: symbol, bytes.
    pub reserved: Option<(u32, u64)>,
    /// `.file` names by number.
    pub files: HashMap<u32, Arc<str>>,
    /// `sm_90a` and the like.
    pub target: String,
}

/// A variable with an address of its own.
#[derive(Debug)]
pub struct Symbol {
    /// Name.
    pub name: String,
    /// `.global`, `.const` or `.shared`.
    pub space: Space,
    /// Bytes; 0 for dynamic shared memory.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u32,
    /// Initial bytes; shorter than `size` where the rest is 0. None for shared memory.
    pub init: Vec<u8>,
    /// Addresses among the initial bytes.
    pub relocations: Vec<Relocation>,
    /// `.extern .shared x[]`.
    pub dynamic: bool,
    /// It is only declared here.
    pub is_extern: bool,
}

/// An address among initial bytes.
#[derive(Debug)]
pub struct Relocation {
    /// Where it goes.
    pub at: u64,
    /// Its bytes.
    pub size: u32,
    /// Whose address.
    pub target: Target,
    /// What is added.
    pub offset: i64,
}

/// What a relocation points at.
#[derive(Debug)]
pub enum Target {
    /// A variable.
    Symbol(u32),
    /// A function.
    Function(u32),
}

/// A parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// Where it lies: in parameter memory for kernels, in local memory for functions.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// A function's parameter that is a register.
    pub reg: Option<Reg>,
}

/// A function or kernel.
#[derive(Debug)]
pub struct Function {
    /// Name.
    pub name: Arc<str>,
    /// A kernel.
    pub is_entry: bool,
    /// Instructions; empty for a declaration.
    pub code: Vec<Instr>,
    /// Number of its first instruction among all of the program.
    pub code_base: u32,
    /// Whether it has a body.
    pub defined: bool,
    /// Slots of registers.
    pub slots: u32,
    /// Predicates.
    pub preds: u32,
    /// Bytes of local memory, parameters included.
    pub local_size: u32,
    /// Parameters.
    pub params: Vec<Param>,
    /// Bytes of parameter memory (kernels).
    pub param_size: u32,
    /// What it returns.
    pub returns: Vec<Param>,
    /// Shared variables it names.
    pub shared: Vec<u32>,
    /// Functions it calls or takes the address of.
    pub calls: Vec<u32>,
    /// `.maxntid`: most threads.
    pub max_threads: Option<u64>,
    /// `.reqntid`.
    pub required_block: Option<[u32; 3]>,
    /// `.reqnctapercluster`.
    pub required_cluster: Option<[u32; 3]>,
}

impl Program {
    /// Shared variables that a kernel can reach: offsets by symbol, and the bytes of the static part. Dynamic ones come after.
    pub fn shared_layout(&self, kernel: u32) -> (HashMap<u32, u32>, u32) {
        let mut seen = vec![false; self.functions.len()];
        let mut queue = vec![kernel];
        let mut wanted: Vec<u32> = vec![];
        while let Some(f) = queue.pop() {
            let Some(function) = self.functions.get(f as usize) else { continue };
            if std::mem::replace(&mut seen[f as usize], true) {
                continue;
            }
            wanted.extend_from_slice(&function.shared);
            queue.extend_from_slice(&function.calls);
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut offsets = HashMap::new();
        let mut end = u64::from(crate::cx::SHARED_START);
        let (dynamic, fixed): (Vec<u32>, Vec<u32>) = wanted.into_iter().partition(|&s| self.symbols[s as usize].dynamic);
        for id in fixed {
            let symbol = &self.symbols[id as usize];
            end = end.next_multiple_of(u64::from(symbol.align.max(1)));
            offsets.insert(id, end.min(u64::from(u32::MAX)) as u32);
            end = end.saturating_add(symbol.size);
        }
        // Dynamic shared memory begins where the static part ends, aligned as its strictest declaration wants, at least 16.
        let align = dynamic.iter().map(|&s| self.symbols[s as usize].align).max().unwrap_or(1).max(16);
        end = end.next_multiple_of(u64::from(align));
        for id in dynamic {
            offsets.insert(id, end.min(u64::from(u32::MAX)) as u32);
        }
        (offsets, end.min(u64::from(u32::MAX)) as u32 - crate::cx::SHARED_START)
    }
}
