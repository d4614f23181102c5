//! Declarations of variables, parameters and registers, and initial values (PTX ISA 9.0, sections 5.1 to 5.5).

use super::expr::{Value, begins};
use super::lexer::Kind;
use super::{MAX_REGISTERS, MAX_VARIABLE_BYTES, Parser, Result, error};
use crate::ast::{Init, Space, Type, Variable};
use half::{bf16, f16};

/// How many elements the initialisers of a variable may leave out between those they give.
const MAX_PADDING: u64 = 1 << 20;

/// A type by its name without the dot.
fn type_of(word: &str) -> Option<Type> {
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
        "bf16" => Type::Bf16,
        "bf16x2" => Type::Bf16x2,
        "f32" => Type::F32,
        "f64" => Type::F64,
        "tf32" => Type::Tf32,
        "e4m3x2" => Type::E4m3x2,
        "e5m2x2" => Type::E5m2x2,
        "pred" => Type::Pred,
        "texref" => Type::TexRef,
        "samplerref" => Type::SamplerRef,
        "surfref" => Type::SurfRef,
        _ => return None,
    })
}

/// Size in bytes; a predicate counts as one, an opaque handle as eight.
fn size_of(ty: Type) -> u32 {
    match ty {
        Type::B8 | Type::U8 | Type::S8 | Type::Pred => 1,
        Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 | Type::E4m3x2 | Type::E5m2x2 => 2,
        Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::F16x2 | Type::Bf16x2 | Type::Tf32 => 4,
        Type::B64 | Type::U64 | Type::S64 | Type::F64 | Type::TexRef | Type::SamplerRef | Type::SurfRef => 8,
        Type::B128 => 16,
    }
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
    pub(super) fn variables(&mut self, is_extern: bool, at_module_scope: bool) -> Result<Vec<Variable>> {
        let head = self.head()?;
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
            if variable.unsized_array && !is_extern && at_module_scope {
                return Err(error(variable.span, "an array without a length is external or has initial values"));
            }
            variables.push(variable);
            if !self.eat(b',')? {
                self.expect(b';')?;
                return Ok(variables);
            }
        }
    }

    /// One variable with its space and type, as in a list of parameters.
    pub(super) fn declaration(&mut self) -> Result<Variable> {
        let head = self.head()?;
        self.declarator(&head)
    }

    /// `.const[2] .align 8 .v2 .f32`, `.param .u64 .ptr .global .align 16`: all that stands before the name.
    fn head(&mut self) -> Result<Variable> {
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
        let (mut align, mut ty, mut vector, mut pointer) = (None, None, 1, false);
        let mut pointer_align = None;
        while let Some(word) = self.dot() {
            let at = self.token.span;
            self.bump()?;
            match word {
                "align" => {
                    let value = self.small("an alignment")?;
                    if !value.is_power_of_two() || value > 1 << 16 {
                        return Err(error(at, "an alignment is a power of two of at most 65536"));
                    }
                    if pointer { pointer_align = Some(value) } else { align = Some(value) }
                }
                "v2" => vector = 2,
                "v4" => vector = 4,
                "ptr" if space == Space::Param && ty.is_some() => pointer = true,
                "global" | "shared" | "local" | "const" if pointer => {}
                "attribute" => self.attribute_list()?,
                _ => match type_of(word) {
                    Some(found) if ty.is_none() => ty = Some(found),
                    Some(_) => return Err(error(at, "a second type")),
                    None => return Err(error(at, format!("`.{word}` is no type of a variable"))),
                },
            }
        }
        let Some(ty) = ty else {
            return self.expected("a type");
        };
        if ty == Type::Pred && space != Space::Reg {
            return Err(error(span, "predicates are in registers only"));
        }
        let natural = size_of(ty) * vector;
        if vector > 1 && (natural > 16 || ty == Type::Pred) {
            return Err(error(span, "a vector is at most 128 bits and not of predicates"));
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

    /// `.attribute(.managed)`; the keyword is in hand.
    pub(super) fn attributes(&mut self) -> Result<()> {
        self.bump()?;
        self.attribute_list()
    }

    /// `(.managed)`: where a variable lives makes no difference here; others do and are errors.
    fn attribute_list(&mut self) -> Result<()> {
        self.expect(b'(')?;
        loop {
            let at = self.token.span;
            match self.dot() {
                Some("managed") => {
                    self.bump()?;
                }
                Some(word) => return Err(error(at, format!("unsupported attribute `.{word}`"))),
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
        variable.name = self.name("a name")?;
        if self.eat(b'<')? {
            let at = self.token.span;
            let count = self.small("a number of names")?;
            self.expect(b'>')?;
            if variable.space == Space::Reg {
                self.registers = self.registers.saturating_add(count);
            }
            if count > MAX_REGISTERS || self.registers > MAX_REGISTERS {
                return Err(error(at, format!("more than {MAX_REGISTERS} names in a function")));
            }
            variable.range = Some(count);
        }
        let mut bytes = u64::from(size_of(variable.ty)) * u64::from(variable.vector);
        while self.is(b'[') {
            let at = self.bump()?.span;
            let length = if self.is(b']') && variable.dims.is_empty() {
                variable.unsized_array = true;
                0
            } else {
                let length = self.constant_bits()?;
                if length == 0 {
                    return Err(error(at, "an array of length 0"));
                }
                bytes = bytes.saturating_mul(length);
                length
            };
            if bytes > MAX_VARIABLE_BYTES {
                return Err(error(at, format!("a variable of more than {MAX_VARIABLE_BYTES} bytes")));
            }
            self.expect(b']')?;
            variable.dims.push(length);
        }
        if variable.space == Space::Reg && !variable.dims.is_empty() {
            return Err(error(variable.span, "registers have no arrays"));
        }
        Ok(variable)
    }

    /// What follows `=`.
    fn initialiser(&mut self, variable: &mut Variable) -> Result<()> {
        let span = self.token.span;
        // The lengths of the levels of braces, outermost first; a vector is the innermost one.
        let mut levels = variable.dims.clone();
        if variable.vector > 1 {
            levels.push(u64::from(variable.vector));
        }
        if !self.is(b'{') {
            if !levels.is_empty() {
                return self.expected("`{`");
            }
            let value = self.initial_value(variable.ty)?;
            variable.init.push(value);
            return Ok(());
        }
        if levels.is_empty() {
            levels.push(1);
        }
        if variable.unsized_array
            && let Some(first) = levels.first_mut()
        {
            *first = u64::MAX;
        }
        let mut padding = 0;
        let mut init = Vec::new();
        self.nested(|p| p.braces(&levels, 0, variable.ty, &mut init, &mut padding))?;
        variable.init = init;
        if variable.unsized_array {
            let row = levels[1..].iter().product::<u64>().max(1);
            let rows = (variable.init.len() as u64).div_ceil(row);
            if let Some(first) = variable.dims.first_mut() {
                *first = rows;
            }
            variable.unsized_array = false;
            if rows == 0 {
                return Err(error(span, "an array of length 0"));
            }
        }
        Ok(())
    }

    /// `{a, {b, c}, d}`: the elements of one level from element `begin` on, rows of it aligned to their own beginnings.
    fn braces(&mut self, levels: &[u64], begin: u64, ty: Type, init: &mut Vec<Init>, padding: &mut u64) -> Result<()> {
        self.expect(b'{')?;
        let row = levels.iter().skip(1).fold(1u64, |row, &n| row.saturating_mul(n));
        let end = levels.first().map_or(begin.saturating_add(1), |&n| begin.saturating_add(row.saturating_mul(n)));
        let mut at = begin;
        while !self.is(b'}') {
            let span = self.token.span;
            if at >= end {
                return Err(error(span, "more initial values than elements"));
            }
            // Rows that ended early leave elements at zero.
            *padding = padding.saturating_add(at.saturating_sub(init.len() as u64));
            if *padding > MAX_PADDING {
                return Err(error(span, format!("the initial values leave out more than {MAX_PADDING} elements")));
            }
            while (init.len() as u64) < at {
                init.push(Init::Bits(0));
            }
            if self.is(b'{') {
                if levels.len() < 2 || !(at - begin).is_multiple_of(row) {
                    return Err(error(span, "these braces stand for no row of the array"));
                }
                self.nested(|p| p.braces(levels.get(1..).unwrap_or(&[]), at, ty, init, padding))?;
                at = at.saturating_add(row);
            } else {
                let value = self.initial_value(ty)?;
                init.push(value);
                at += 1;
            }
            if !self.eat(b',')? {
                break;
            }
        }
        self.expect(b'}')?;
        Ok(())
    }

    /// A constant, an address, or a byte of an address.
    fn initial_value(&mut self, ty: Type) -> Result<Init> {
        let span = self.token.span;
        if !begins(self.token.kind, self.token.text) {
            let (name, offset, generic) = self.initial_address()?;
            return Ok(Init::Address { name, offset, generic });
        }
        if let Kind::Int(mask, _) = self.token.kind
            && self.ahead.kind == Kind::Punct(b'(')
        {
            let Some(byte) = (0..8).find(|byte| mask == 0xff << (8 * byte)) else {
                return Err(error(span, "the mask of an address is eight bits: 0xFF, 0xFF00, ..."));
            };
            self.bump()?;
            self.expect(b'(')?;
            let (name, offset, generic) = self.initial_address()?;
            self.expect(b')')?;
            return Ok(Init::AddressByte { name, offset, generic, byte });
        }
        let value = self.constant()?;
        bits_as(ty, value).map(Init::Bits).ok_or_else(|| error(span, "this constant does not fit the type of the variable"))
    }

    /// `x`, `x+4`, `generic(x)`, `generic(x)+4`, `generic(x+4)`.
    fn initial_address(&mut self) -> Result<(String, i64, bool)> {
        let mut name = self.name("a constant or an address")?;
        let mut generic = false;
        let mut offset = 0i64;
        if name == "generic" && self.eat(b'(')? {
            generic = true;
            name = self.name("the name of a variable")?;
            offset = self.offset()?;
            self.expect(b')')?;
        }
        let span = self.token.span;
        match offset.checked_add(self.offset()?) {
            Some(offset) => Ok((name, offset, generic)),
            None => Err(error(span, "this offset does not fit 64 bits")),
        }
    }
}

/// The bits that initialise a variable of a type with a constant; integers are taken as they are.
fn bits_as(ty: Type, value: Value) -> Option<u64> {
    Some(match (ty, value) {
        (Type::F64, Value::Double(value)) => value.to_bits(),
        (Type::F32, Value::Double(value)) => u64::from((value as f32).to_bits()),
        (Type::F16, Value::Double(value)) => u64::from(f16::from_f64(value).to_bits()),
        (Type::Bf16, Value::Double(value)) => u64::from(bf16::from_f64(value).to_bits()),
        (Type::F32 | Type::B32, Value::Single(bits)) => u64::from(bits),
        (Type::B64, Value::Double(value)) => value.to_bits(),
        (_, value) => value.bits()?,
    })
}
