//! Declarations of variables, parameters and registers, and initial values (PTX ISA 9.0, sections 5.1 to 5.5).

use super::expr::{Value, begins};
use super::lexer::Kind;
use super::{MAX_ALIGN, MAX_REGISTERS, MAX_VARIABLE_BYTES, Parser, Result, error};
use crate::ast::{Init, Space, Type, Variable};

/// Whose parameters they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signature {
    Kernel,
    Function,
    Prototype,
}

/// One level of nested initial values.
struct Level {
    /// How many elements it has.
    length: u64,
    /// How many scalars make one of them.
    row: u64,
    /// Whether every element must be given, as those of vectors.
    whole: bool,
}

/// A space by its directive without the dot.
fn space_of(word: &str) -> Option<Space> {
    Some(match word {
        "reg" => Space::Reg,
        "global" => Space::Global,
        "shared" => Space::Shared,
        "local" => Space::Local,
        "const" => Space::Const,
        "param" => Space::Param,
        _ => return None,
    })
}

impl Parser<'_> {
    /// `.space .type a, b[3] = {...}, ...;`
    pub(super) fn variables(&mut self, is_extern: bool) -> Result<Vec<Variable>> {
        let head = self.head(false)?;
        let mut variables = Vec::new();
        loop {
            let mut variable = self.declarator(&head)?;
            variable.is_extern = is_extern;
            let assigned = self.token.span;
            if self.eat(b'=')? {
                if !matches!(variable.space, Space::Global | Space::Const) {
                    return Err(error(assigned, "only `.global` and `.const` variables have initial values"));
                }
                if is_extern {
                    return Err(error(assigned, "an external variable has no initial value"));
                }
                self.initialiser(&mut variable)?;
            }
            if variable.unsized_array && !is_extern {
                return Err(error(variable.span, "an array without a length is external or has initial values"));
            }
            variables.push(variable);
            if !self.eat(b',')? {
                self.expect(b';')?;
                return Ok(variables);
            }
        }
    }

    /// `(.param .b32 a, ...)` of a kernel, a function, or a prototype, whose parameters may be named `_`.
    pub(super) fn parameters(&mut self, of: Signature) -> Result<Vec<Variable>> {
        self.expect(b'(')?;
        let mut params: Vec<Variable> = Vec::new();
        if self.eat(b')')? {
            return Ok(params);
        }
        loop {
            if let Some(last) = params.last().filter(|last| last.unsized_array) {
                return Err(error(last.span, "only the last parameter may be an array without a length"));
            }
            params.push(self.parameter(of)?);
            if !self.eat(b',')? {
                self.expect(b')')?;
                return Ok(params);
            }
        }
    }

    fn parameter(&mut self, of: Signature) -> Result<Variable> {
        let head = self.head(of == Signature::Kernel)?;
        if !(head.space == Space::Param || (head.space == Space::Reg && of != Signature::Kernel)) {
            return Err(error(head.span, "parameters of kernels are in `.param`, those of functions in `.param` or `.reg`"));
        }
        if self.is_word("_") && of == Signature::Prototype {
            let mut variable = head;
            variable.span = self.bump()?.span;
            variable.name = "_".to_owned();
            self.dimensions(&mut variable)?;
            return Ok(variable);
        }
        let variable = self.declarator(&head)?;
        if variable.range.is_some() {
            return Err(error(variable.span, "parameters are named one by one"));
        }
        if variable.unsized_array && of == Signature::Kernel {
            return Err(error(variable.span, "a parameter of a kernel has a length"));
        }
        Ok(variable)
    }

    /// `.const[2] .align 8 .v2 .f32`, or of a kernel's parameter `.param .u64 .ptr .global .align 16`: all before the name.
    fn head(&mut self, kernel_parameter: bool) -> Result<Variable> {
        let span = self.token.span;
        let Some(space) = self.dot().and_then(space_of) else {
            return self.expected("a state space such as `.param`");
        };
        self.bump()?;
        if space == Space::Const && self.eat(b'[')? {
            // The banks of old PTX; they do not overlap, so that one space holds them all.
            let at = self.token.span;
            if self.small("a bank")? > 10 {
                return Err(error(at, "constant banks are 0 to 10"));
            }
            self.expect(b']')?;
        }
        if self.is_dot("attribute") {
            self.attributes()?;
        }
        let align = self.alignment()?;
        if self.is_dot("attribute") {
            self.attributes()?;
        }
        let vector = match self.dot() {
            Some("v2") => 2,
            Some("v4") => 4,
            _ => 1,
        };
        if vector > 1 {
            self.bump()?;
        }
        let at = self.token.span;
        let Some(word) = self.dot() else {
            return self.expected("a type");
        };
        let Some(ty) = Type::of_variable(word) else {
            return Err(error(at, format!("{} is no type that a variable can have", self.found())));
        };
        self.bump()?;
        let pointer_align = if kernel_parameter && self.is_dot("ptr") {
            self.bump()?;
            if matches!(self.dot(), Some("global" | "shared" | "local" | "const")) {
                self.bump()?;
            }
            self.alignment()?
        } else {
            None
        };
        // Not in the manual, but ptxas takes it.
        let align = if kernel_parameter && align.is_none() && self.is_dot("align") { self.alignment()? } else { align };
        if ty == Type::Pred && space != Space::Reg {
            return Err(error(at, "predicates are in registers only"));
        }
        if matches!(ty, Type::TexRef | Type::SamplerRef | Type::SurfRef) && !matches!(space, Space::Global | Space::Param) {
            return Err(error(at, format!("`.{word}` is in `.global` or a parameter of a kernel")));
        }
        let natural = ty.bytes() * vector;
        if vector > 1 && (natural > 16 || ty == Type::Pred || space == Space::Param) {
            return Err(error(at, "a vector is at most 128 bits, not of predicates, and no parameter"));
        }
        Ok(Variable {
            span,
            space,
            align: align.unwrap_or(natural),
            ty,
            vector,
            name: String::new(),
            range: None,
            dims: Vec::new(),
            unsized_array: false,
            init: Vec::new(),
            is_extern: false,
            pointer_align,
        })
    }

    /// `.align 16`, if it is there.
    fn alignment(&mut self) -> Result<Option<u32>> {
        if !self.is_dot("align") {
            return Ok(None);
        }
        self.bump()?;
        let span = self.token.span;
        let value = self.small("an alignment")?;
        if !value.is_power_of_two() || value > MAX_ALIGN {
            return Err(error(span, format!("an alignment is a power of two of at most {MAX_ALIGN}")));
        }
        Ok(Some(value))
    }

    /// `.attribute(.managed)`: where a variable lives makes no difference here; other attributes do and are errors.
    pub(super) fn attributes(&mut self) -> Result<()> {
        self.bump()?;
        self.expect(b'(')?;
        loop {
            match self.dot() {
                Some("managed") => {
                    self.bump()?;
                }
                Some(_) => return Err(error(self.token.span, format!("unsupported attribute {}", self.found()))),
                None => return self.expected("an attribute"),
            }
            if !self.eat(b',')? {
                self.expect(b')')?;
                return Ok(());
            }
        }
    }

    /// `name`, `%r<10>`, `name[4][]`.
    fn declarator(&mut self, head: &Variable) -> Result<Variable> {
        let mut variable = head.clone();
        variable.span = self.token.span;
        variable.name = self.declared("a name")?;
        if !self.eat(b'<')? {
            self.dimensions(&mut variable)?;
            return Ok(variable);
        }
        let at = self.token.span;
        let count = self.small("a number of names")?;
        self.expect(b'>')?;
        self.registers = self.registers.saturating_add(count);
        if self.registers > MAX_REGISTERS {
            return Err(error(at, format!("more than {MAX_REGISTERS} names declared by `<n>`")));
        }
        variable.range = Some(count);
        Ok(variable)
    }

    /// `[4][3]`, `[]`
    fn dimensions(&mut self, variable: &mut Variable) -> Result<()> {
        let mut bytes = u64::from(variable.ty.bytes()) * u64::from(variable.vector);
        while self.is(b'[') {
            let at = self.bump()?.span;
            let first = variable.dims.is_empty();
            let length = if first && self.is(b']') { 0 } else { self.constant_bits()? };
            self.expect(b']')?;
            if length == 0 && !first {
                return Err(error(at, "an array of length 0"));
            }
            if length == 0 {
                variable.unsized_array = true;
            } else {
                bytes = bytes.saturating_mul(length);
            }
            if bytes > MAX_VARIABLE_BYTES {
                return Err(error(at, format!("a variable of more than {MAX_VARIABLE_BYTES} bytes")));
            }
            variable.dims.push(length);
        }
        if variable.space == Space::Reg && !variable.dims.is_empty() {
            return Err(error(variable.span, "registers have no arrays"));
        }
        Ok(())
    }

    /// What follows `=`: one value, or lists nested as the dimensions are; those of arrays may end early.
    fn initialiser(&mut self, variable: &mut Variable) -> Result<()> {
        let span = self.token.span;
        if variable.range.is_some() {
            return Err(error(span, "parameterised names have no initial values"));
        }
        let mut levels: Vec<Level> = variable.dims.iter().map(|&length| Level { length, row: 1, whole: false }).collect();
        if variable.unsized_array
            && let Some(first) = levels.first_mut()
        {
            first.length = u64::MAX;
        }
        if variable.vector > 1 {
            levels.push(Level { length: u64::from(variable.vector), row: 1, whole: true });
        }
        let mut row = 1u64;
        for level in levels.iter_mut().rev() {
            level.row = row;
            row = row.saturating_mul(level.length);
        }
        let mut init = Vec::new();
        let rows = self.values(&levels, variable.ty, &mut init)?;
        if variable.unsized_array {
            if rows == 0 {
                return Err(error(span, "an array of length 0"));
            }
            if let Some(first) = variable.dims.first_mut() {
                *first = rows;
            }
            variable.unsized_array = false;
        }
        variable.init = init;
        Ok(())
    }

    /// The values of one level of nesting and of those below it, put behind those already there; how many elements it gave.
    fn values(&mut self, levels: &[Level], ty: Type, init: &mut Vec<Init>) -> Result<u64> {
        let Some((level, inner)) = levels.split_first() else {
            let value = self.initial_value(ty)?;
            init.push(value);
            return Ok(1);
        };
        let first = init.len() as u64;
        self.expect(b'{')?;
        let mut count = 0u64;
        while !(count == 0 && self.is(b'}')) {
            if count == level.length {
                return Err(error(self.token.span, "more initial values than elements"));
            }
            // What rows before this one left out is zero.
            let missing = count.saturating_mul(level.row).saturating_sub(init.len() as u64 - first);
            self.imply(missing, self.token.span)?;
            init.extend((0..missing).map(|_| Init::Bits(0)));
            self.nested(|p| p.values(inner, ty, init))?;
            count += 1;
            if !self.eat(b',')? {
                break;
            }
        }
        if level.whole && count != level.length {
            return Err(error(self.token.span, "a vector is initialised whole"));
        }
        self.expect(b'}')?;
        Ok(count)
    }

    /// A constant, an address, or a byte of either.
    fn initial_value(&mut self, ty: Type) -> Result<Init> {
        let span = self.token.span;
        if !begins(self.token.kind, self.token.text) {
            let (name, offset, generic) = self.initial_address()?;
            return Ok(Init::Address { name, offset, generic });
        }
        if let Kind::Int(mask, _) = self.token.kind
            && self.ahead.kind == Kind::Punct(b'(')
        {
            let Some(byte) = (0..8u32).find(|byte| mask == 0xff << (8 * byte)) else {
                return Err(error(span, "the mask of an address is eight bits: 0xFF, 0xFF00, ..."));
            };
            self.bump()?;
            self.expect(b'(')?;
            let value = if begins(self.token.kind, self.token.text) {
                Init::Bits((self.constant_bits()? >> (8 * byte)) & 0xff)
            } else {
                let (name, offset, generic) = self.initial_address()?;
                Init::AddressByte { name, offset, generic, byte }
            };
            self.expect(b')')?;
            return Ok(value);
        }
        let value = self.constant()?;
        bits_as(ty, value).map(Init::Bits).ok_or_else(|| error(span, "this constant does not fit the type of the variable"))
    }

    /// `x`, `x+4`, `generic(x)`, `generic(x)+4`.
    fn initial_address(&mut self) -> Result<(String, i64, bool)> {
        let mut name = self.declared("a constant or an address")?;
        let generic = name == "generic" && self.eat(b'(')?;
        if generic {
            name = self.declared("the name of a variable")?;
            self.expect(b')')?;
        }
        Ok((name, self.offset()?, generic))
    }
}

/// The bits that initialise a variable of a type with a constant; integers are taken as they are.
fn bits_as(ty: Type, value: Value) -> Option<u64> {
    match (ty, value) {
        (Type::F64 | Type::B64, Value::Double(value)) => Some(value.to_bits()),
        (Type::F32 | Type::B32, Value::Double(value)) => Some(u64::from((value as f32).to_bits())),
        (Type::F32 | Type::B32, Value::Single(bits)) => Some(u64::from(bits)),
        // Section 5.4.4: `.f16` and `.f16x2` take no initial values at all.
        (Type::F32 | Type::F64 | Type::F16 | Type::F16x2 | Type::TexRef | Type::SamplerRef | Type::SurfRef, _) => None,
        (_, value) => value.bits(),
    }
}
