//! The syntax tree of a PTX module: what the parser makes and the decoder reads. Nothing here knows what an instruction means.

use std::sync::Arc;

/// A place in the PTX text, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// Line.
    pub line: u32,
    /// Column, in bytes.
    pub column: u32,
}

/// A place in the source that `-lineinfo` names: `.loc file line column`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Loc {
    /// Number of a `.file` directive.
    pub file: u32,
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// A parsed module.
#[derive(Debug, Clone, Default)]
pub struct Module {
    /// `.version major.minor`.
    pub version: (u32, u32),
    /// `.target sm_90a, ...`.
    pub targets: Vec<String>,
    /// `.address_size`, 64 unless the text says otherwise.
    pub address_size: u32,
    /// `.file number "name"`.
    pub files: Vec<(u32, String)>,
    /// Variables at module scope, in order.
    pub variables: Vec<Variable>,
    /// Functions and kernels, in order; a declaration has no body.
    pub functions: Vec<Function>,
}

/// `.reg`, `.shared`, `.global`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.reg`
    Reg,
    /// `.global`
    Global,
    /// `.shared`
    Shared,
    /// `.local`
    Local,
    /// `.const`
    Const,
    /// `.param`
    Param,
}

/// A fundamental type as written: `.b8 .. .b128`, `.u8 .. .u64`, `.s8 .. .s64`, `.f16`, `.f16x2`, `.bf16`, ..., `.pred`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are PTX's own
pub enum Type {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Tf32,
    E4m3x2,
    E5m2x2,
    Pred,
    TexRef,
    SamplerRef,
    SurfRef,
}

impl Type {
    /// The type of a variable by its name without the dot. Formats that only instructions know (`.bf16`, `.tf32`, `.e4m3x2`; section
    /// 5.2.3) are none.
    pub fn of_variable(word: &str) -> Option<Type> {
        Some(match word {
            "b8" => Type::B8,
            "b16" => Type::B16,
            "b32" => Type::B32,
            "b64" => Type::B64,
            "b128" => Type::B128,
            "u8" => Type::U8,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "u64" => Type::U64,
            "s8" => Type::S8,
            "s16" => Type::S16,
            "s32" => Type::S32,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "f32" => Type::F32,
            "f64" => Type::F64,
            "pred" => Type::Pred,
            "texref" => Type::TexRef,
            "samplerref" => Type::SamplerRef,
            "surfref" => Type::SurfRef,
            _ => return None,
        })
    }

    /// Size in bytes; a predicate counts as one, an opaque handle as eight.
    pub fn bytes(self) -> u32 {
        match self {
            Type::B8 | Type::U8 | Type::S8 | Type::Pred => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 | Type::E4m3x2 | Type::E5m2x2 => 2,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::Bf16x2 | Type::Tf32 => 4,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 | Type::TexRef | Type::SamplerRef | Type::SurfRef => 8,
            Type::B128 => 16,
        }
    }
}

/// A variable, parameter or register declaration.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Where it is declared.
    pub span: Span,
    /// State space.
    pub space: Space,
    /// `.align n` or the natural alignment of the type (of the whole vector), in bytes.
    pub align: u32,
    /// Element type.
    pub ty: Type,
    /// 1, or 2, 4 for `.v2`, `.v4`.
    pub vector: u32,
    /// Name; for `%r<10>` it is `%r`.
    pub name: String,
    /// The 10 of `%r<10>`: declares `%r0` to `%r9`.
    pub range: Option<u32>,
    /// Lengths of the dimensions of an array; an empty first one (`x[]`) is 0, with `unsized_array` set.
    pub dims: Vec<u64>,
    /// `extern` or dynamic: `x[]`.
    pub unsized_array: bool,
    /// Initial values, flattened in row-major order; missing ones are zero.
    pub init: Vec<Init>,
    /// `.extern`.
    pub is_extern: bool,
    /// `.ptr` etc. of kernel parameters: its alignment, if stated.
    pub pointer_align: Option<u32>,
}

/// One initial value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Init {
    /// An integer, or the bits of a float of the variable's type.
    Bits(u64),
    /// The address of a variable or function plus an offset; `generic(x)` when `generic`.
    Address {
        /// Name.
        name: String,
        /// Added to it.
        offset: i64,
        /// Whether it stands inside `generic( )`.
        generic: bool,
    },
    /// One byte of such an address: `0xFF00(x)` is byte 1, the second lowest.
    AddressByte {
        /// Name.
        name: String,
        /// Added to it.
        offset: i64,
        /// Whether it stands inside `generic( )`.
        generic: bool,
        /// 0 to 7.
        byte: u32,
    },
}

/// A kernel (`.entry`) or a device function (`.func`).
#[derive(Debug, Clone)]
pub struct Function {
    /// Where it begins.
    pub span: Span,
    /// Name.
    pub name: String,
    /// `.entry`.
    pub is_entry: bool,
    /// `.extern`.
    pub is_extern: bool,
    /// Return parameters (`.func (.param .b32 r) f`).
    pub returns: Vec<Variable>,
    /// Parameters.
    pub params: Vec<Variable>,
    /// `.maxntid 128, 1, 1` as ("maxntid", [128, 1, 1]); `.reqntid`, `.minnctapersm`, `.maxnreg`, `.reqnctapercluster`, `.explicitcluster`, `.noreturn`, ...
    pub directives: Vec<(String, Vec<u64>)>,
    /// None for a declaration.
    pub body: Option<Vec<Statement>>,
}

/// What stands in a body.
#[derive(Debug, Clone)]
pub enum Statement {
    /// A declaration: registers, or a variable of another space.
    Variable(Variable),
    /// `name:`
    Label {
        /// Where.
        span: Span,
        /// Name; local to the enclosing `{ }`.
        name: String,
    },
    /// An instruction.
    Instruction(Box<Instruction>),
    /// `{ ... }` with a scope of its own for registers, variables and labels.
    Block(Vec<Statement>),
    /// `label: .branchtargets a, b, c;`
    BranchTargets {
        /// Where.
        span: Span,
        /// Name of the list.
        name: String,
        /// Labels.
        targets: Vec<String>,
    },
    /// `label: .calltargets f, g;`
    CallTargets {
        /// Where.
        span: Span,
        /// Name of the list.
        name: String,
        /// Functions.
        targets: Vec<String>,
    },
    /// `label: .callprototype (...) _ (...);`
    CallPrototype {
        /// Where.
        span: Span,
        /// Name.
        name: String,
        /// Return parameters.
        returns: Vec<Variable>,
        /// Parameters.
        params: Vec<Variable>,
    },
    /// `.pragma "..."`
    Pragma(String),
}

/// `@p` or `@!p`.
#[derive(Debug, Clone)]
pub struct Guard {
    /// The predicate register.
    pub name: String,
    /// `@!p`.
    pub negated: bool,
}

/// An instruction as written.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// Where its opcode stands.
    pub span: Span,
    /// The `.loc` in force.
    pub loc: Option<Loc>,
    /// Where the function that holds `loc` was inlined into, by the `inlined_at` of that `.loc`; then where the function that holds that
    /// place was inlined into, and so on. Empty where nothing was inlined.
    pub inlined_at: Arc<[Loc]>,
    /// Guard predicate.
    pub guard: Option<Guard>,
    /// All of the opcode split at the dots: `ld.global.nc.v4.f32` is `["ld", "global", "nc", "v4", "f32"]`; `::` stays inside a
    /// part: `cp.async.bulk.shared::cluster.global` is `["cp", "async", "bulk", "shared::cluster", "global"]`.
    pub opcode: Vec<String>,
    /// Operands in order.
    pub operands: Vec<Operand>,
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// Register, special register (`%tid.x`, one name), variable, label or function. `_` too.
    Name(String),
    /// Integer literal; negative ones are wrapped to 64 bits (two's complement).
    Int(u64),
    /// `0f3F800000`: bits.
    F32(u32),
    /// `0d3FF0000000000000` or a decimal literal: bits.
    F64(u64),
    /// `!p`
    Not(String),
    /// `-x` for a register where PTX allows it.
    Negated(Box<Operand>),
    /// `p|q`
    Pair(Box<Operand>, Box<Operand>),
    /// `{a, b, c, d}`
    Vector(Vec<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `name+offset` outside brackets (an address used as a value in mov).
    Offset(String, i64),
    /// `name[3]`, `name[%r1]`, `name[%r1+2]`: an element of an array variable, counted in elements of its type.
    Element {
        /// The array.
        array: String,
        /// The register in the brackets.
        index: Option<String>,
        /// The constant in the brackets, or what is added to the register.
        offset: i64,
    },
    /// `[base+offset]`, `[base+offset, {c0, c1}]` (tensor coordinates) and other operands inside the brackets.
    Address {
        /// `Name` or `Int`.
        base: Box<Operand>,
        /// Added to it.
        offset: i64,
        /// Further operands inside the brackets, such as the vector of coordinates.
        rest: Vec<Operand>,
    },
}
