//! What stands in the opcode of a memory instruction: state space, order and scope, type, vector, cache hints.

use crate::ast::{Instruction, Space, Type};
use crate::decode::{Decoder, Result};
use crate::isa::Addr;
use crate::race::{Order, Scope, Sem};

/// A state space as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemSpace {
    /// None: a generic address.
    Generic,
    /// `.global`
    Global,
    /// `.const`
    Const,
    /// `.shared`, `.shared::cta`
    SharedCta,
    /// `.shared::cluster`
    SharedCluster,
    /// `.local`
    Local,
    /// `.param`; once decoded, of a kernel: those of functions lie in local memory.
    Param,
}

/// A scope by its name.
pub fn scope(part: &str) -> Option<Scope> {
    Some(match part {
        "cta" => Scope::Cta,
        "cluster" => Scope::Cluster,
        "gpu" => Scope::Gpu,
        "sys" => Scope::Sys,
        _ => return None,
    })
}

/// The types of `ld` and `st`: those of variables, without 16-bit floats, predicates and handles.
fn data_type(part: &str) -> Option<Type> {
    use Type::{F16, F16x2, Pred, SamplerRef, SurfRef, TexRef};
    Type::of_variable(part).filter(|ty| !matches!(ty, F16 | F16x2 | Pred | TexRef | SamplerRef | SurfRef))
}

/// The types of `atom` and `red`.
fn atomic_type(part: &str) -> Option<Type> {
    Some(match part {
        "b8" | "u8" | "s8" | "u16" | "s16" => return None,
        "f16" => Type::F16,
        "f16x2" => Type::F16x2,
        "bf16" => Type::Bf16,
        "bf16x2" => Type::Bf16x2,
        other => return data_type(other),
    })
}

/// Which instruction's modifiers to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `ld`, `ldu`
    Load,
    /// `st`
    Store,
    /// `atom`, `red`
    Atomic,
}

/// The modifiers of `ld`, `ldu`, `st`, `atom`, `red`. The manual gives their order; the assembler takes any.
#[derive(Debug)]
pub struct Modifiers {
    /// State space.
    pub space: MemSpace,
    /// `.param::entry` (true) or `.param::func` (false).
    pub param: Option<bool>,
    /// Order and scope.
    pub sem: Sem,
    /// `.nc`
    pub non_coherent: bool,
    /// `.L2::cache_hint`: one more operand.
    pub cache_hint: bool,
    /// `.noftz`
    pub noftz: bool,
    /// Elements of a vector; 1 without `.v2`, `.v4`, `.v8`.
    pub vector: u32,
    /// Of one element.
    pub ty: Type,
    /// `add` and so on, for atomics.
    pub operation: Option<String>,
}

/// Sets what must be set once.
fn once<T>(slot: &mut Option<T>, value: T) -> bool {
    slot.replace(value).is_none()
}

impl Modifiers {
    /// Reads them; an unknown one, or two that exclude each other, is an error that names the instruction.
    pub fn parse(decoder: &Decoder<'_>, instruction: &Instruction, family: Family) -> Result<Modifiers> {
        let unknown = || decoder.unknown(instruction);
        let (mut space, mut order, mut scope_, mut ty, mut vector) = (None, None, None, None, None);
        let (mut cop, mut l1, mut l2, mut prefetch, mut hint, mut nc, mut mmio) = (None, None, None, None, None, None, None);
        let (mut operation, mut noftz, mut param) = (None, None, None);
        let load = family == Family::Load;
        let store = family == Family::Store;
        for part in instruction.opcode.iter().skip(1) {
            let part = part.as_str();
            let atomic = family == Family::Atomic;
            let fresh = match part {
                "global" => once(&mut space, MemSpace::Global),
                "shared" | "shared::cta" => once(&mut space, MemSpace::SharedCta),
                "shared::cluster" => once(&mut space, MemSpace::SharedCluster),
                "local" if !atomic => once(&mut space, MemSpace::Local),
                "const" if load => once(&mut space, MemSpace::Const),
                "param" if !atomic => once(&mut space, MemSpace::Param),
                "param::entry" if load => once(&mut param, true) && once(&mut space, MemSpace::Param),
                "param::func" if !atomic => once(&mut param, false) && once(&mut space, MemSpace::Param),
                "weak" if !atomic => once(&mut order, Order::Weak),
                "volatile" if !atomic => once(&mut order, Order::Relaxed) && once(&mut scope_, Scope::Sys) && once(&mut cop, ()),
                "relaxed" => once(&mut order, Order::Relaxed),
                "acquire" if !store => once(&mut order, Order::Acquire),
                "release" if !load => once(&mut order, Order::Release),
                "acq_rel" if atomic => once(&mut order, Order::AcqRel),
                "mmio" if !atomic => once(&mut mmio, ()),
                "cta" | "cluster" | "gpu" | "sys" => once(&mut scope_, scope(part).ok_or_else(unknown)?),
                "ca" | "lu" | "cv" if load => once(&mut cop, ()),
                "cg" | "cs" if !atomic => once(&mut cop, ()),
                "wb" | "wt" if store => once(&mut cop, ()),
                "nc" if load => once(&mut nc, ()),
                "L1::evict_normal" | "L1::evict_unchanged" | "L1::evict_first" | "L1::evict_last" | "L1::no_allocate"
                    if !atomic =>
                {
                    once(&mut l1, ())
                }
                "L2::evict_normal" | "L2::evict_first" | "L2::evict_last" if !atomic => once(&mut l2, ()),
                "L2::64B" | "L2::128B" | "L2::256B" if load => once(&mut prefetch, ()),
                "L2::cache_hint" => once(&mut hint, ()),
                "v2" => once(&mut vector, 2),
                "v4" => once(&mut vector, 4),
                "v8" => once(&mut vector, 8),
                "noftz" if atomic => once(&mut noftz, ()),
                "and" | "or" | "xor" | "cas" | "exch" | "add" | "inc" | "dec" | "min" | "max" if atomic => {
                    once(&mut operation, part.to_string())
                }
                other => {
                    let known = if atomic { atomic_type(other) } else { data_type(other) };
                    once(&mut ty, known.ok_or_else(unknown)?)
                }
            };
            if !fresh {
                return Err(decoder.error(format!("{}: .{part} contradicts what stands before it", instruction.opcode.join("."))));
            }
        }
        let ty = ty.ok_or_else(|| decoder.error(format!("{} wants a type", instruction.opcode.join("."))))?;
        let space = space.unwrap_or(MemSpace::Generic);
        let atomic = family == Family::Atomic;
        let order = order.unwrap_or(if atomic { Order::Relaxed } else { Order::Weak });
        let strong = order != Order::Weak;
        // Scopes belong to strong accesses, which want one; atomics have one by default.
        let fits = match (strong, scope_) {
            (false, None) => true,
            (false, Some(_)) => false,
            (true, None) => atomic,
            (true, Some(_)) => true,
        };
        let shared_or_global =
            matches!(space, MemSpace::Generic | MemSpace::Global | MemSpace::SharedCta | MemSpace::SharedCluster);
        let global = matches!(space, MemSpace::Generic | MemSpace::Global);
        let legal = fits
            && (!strong || shared_or_global)
            && (cop.is_none() || !strong || instruction.opcode.iter().any(|p| p == "volatile"))
            && (cop.is_none() || (l1.is_none() && l2.is_none()))
            && (mmio.is_none() || (order == Order::Relaxed && scope_ == Some(Scope::Sys) && global && vector.is_none()))
            && (nc.is_none() || (space == MemSpace::Global && !strong))
            && (hint.is_none() || global)
            && (prefetch.is_none() || global);
        if !legal {
            let text = instruction.opcode.join(".");
            return Err(decoder.error(format!("{text}: these modifiers do not go together")));
        }
        Ok(Modifiers {
            space,
            param,
            sem: if strong { Sem::new(order, scope_.unwrap_or(Scope::Gpu)) } else { Sem::WEAK },
            non_coherent: nc.is_some(),
            cache_hint: hint.is_some(),
            noftz: noftz.is_some(),
            vector: vector.unwrap_or(1),
            ty,
            operation,
        })
    }
}

impl Modifiers {
    /// The state space that an address operand lies in: what the modifiers say, made sure by a variable that the operand names.
    pub fn space_of(&self, decoder: &Decoder<'_>, addr: &Addr, writes: bool) -> Result<MemSpace> {
        let variable = decoder.space_of(&addr.base);
        let mismatch = || Err(decoder.error("the variable lies in another state space than the instruction says"));
        Ok(match (self.space, variable) {
            (MemSpace::Generic, Some(Space::Global)) => MemSpace::Global,
            (MemSpace::Generic, Some(Space::Shared)) => MemSpace::SharedCta,
            (MemSpace::Generic, Some(Space::Local)) => MemSpace::Local,
            (MemSpace::Param, Some(Space::Local)) if self.param != Some(true) => MemSpace::Local,
            (MemSpace::Param, Some(Space::Param)) if writes => {
                return Err(decoder.error("a kernel's parameters cannot be written"));
            }
            (MemSpace::Param, Some(Space::Param)) if self.param != Some(false) => MemSpace::Param,
            (MemSpace::Param, None) => {
                let of_kernel = self.param.unwrap_or(decoder.is_entry() && !writes);
                if of_kernel { MemSpace::Param } else { MemSpace::Local }
            }
            (space, None)
            | (space @ MemSpace::Global, Some(Space::Global))
            | (space @ MemSpace::Const, Some(Space::Const))
            | (space @ (MemSpace::SharedCta | MemSpace::SharedCluster), Some(Space::Shared))
            | (space @ MemSpace::Local, Some(Space::Local)) => space,
            _ => return mismatch(),
        })
    }
}
