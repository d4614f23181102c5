//! Instructions and their operands (PTX ISA 9.0, section 6).

use super::expr::{Value, begins};
use super::lexer::Kind;
use super::{Parser, Result, error};
use crate::ast::{Guard, Instruction, Operand};

impl Parser<'_> {
    /// `@p opcode operands;`, its guard included.
    pub(super) fn instruction(&mut self) -> Result<Instruction> {
        let guard = if self.eat(b'@')? {
            let negated = self.eat(b'!')?;
            Some(Guard { name: self.declared("a predicate register")?, negated })
        } else {
            None
        };
        if self.token.kind != Kind::Word {
            return self.expected("an instruction");
        }
        let first = self.bump()?;
        let mut opcode = vec![first.text.to_owned()];
        while let Some(part) = self.dot() {
            opcode.push(part.to_owned());
            self.bump()?;
        }
        let is_call = first.text == "call";
        let mut operands = Vec::new();
        if !self.is(b';') {
            loop {
                operands.push(self.operand(is_call)?);
                if !self.eat(b',')? {
                    break;
                }
            }
        }
        if !self.is(b';') {
            return self.expected("`,` or `;`");
        }
        self.bump()?;
        let (loc, inlined_at) = self.loc.clone();
        Ok(Instruction { span: first.span, loc, inlined_at, guard, opcode, operands })
    }

    /// A register or another name with its components: `%tid.x`, `v.b`.
    fn register(&mut self, what: &str) -> Result<String> {
        if self.token.kind != Kind::Word {
            return self.expected(what);
        }
        let mut name = self.bump()?.text.to_owned();
        while self.token.kind == Kind::DotWord {
            name.push_str(self.token.text);
            self.bump()?;
        }
        Ok(name)
    }

    /// One operand; parentheses hold arguments in a call and expressions elsewhere.
    fn operand(&mut self, in_call: bool) -> Result<Operand> {
        let left = self.single(in_call)?;
        if !self.is(b'|') {
            return Ok(left);
        }
        let span = self.bump()?.span;
        if !matches!(left, Operand::Name(_) | Operand::Vector(_)) {
            return Err(error(span, "`|` joins destination registers"));
        }
        let right = Operand::Name(self.register("a register")?);
        Ok(Operand::Pair(Box::new(left), Box::new(right)))
    }

    fn single(&mut self, in_call: bool) -> Result<Operand> {
        let ahead_is_name = self.ahead.kind == Kind::Word && self.ahead.text != "WARP_SZ";
        match self.token.kind {
            Kind::Punct(b'[') => self.address(),
            Kind::Punct(b'{') => {
                self.bump()?;
                if self.is(b'}') {
                    return self.expected("an operand");
                }
                Ok(Operand::Vector(self.operands_until(b'}', in_call)?))
            }
            Kind::Punct(b'(') if in_call => {
                self.bump()?;
                Ok(Operand::List(self.operands_until(b')', in_call)?))
            }
            Kind::Punct(b'!') if ahead_is_name => {
                self.bump()?;
                Ok(Operand::Not(self.register("a predicate register")?))
            }
            Kind::Punct(b'-') if ahead_is_name => {
                self.bump()?;
                Ok(Operand::Negated(Box::new(Operand::Name(self.register("a register")?))))
            }
            kind if begins(kind, self.token.text) => Ok(literal(self.constant()?)),
            Kind::Word => {
                let name = self.register("an operand")?;
                match self.token.kind {
                    Kind::Punct(b'[') => self.element(name),
                    Kind::Punct(b'+' | b'-') => Ok(Operand::Offset(name, self.offset()?)),
                    _ => Ok(Operand::Name(name)),
                }
            }
            _ => self.expected("an operand"),
        }
    }

    /// Operands to the closing character, which is taken too; there may be none.
    fn operands_until(&mut self, close: u8, in_call: bool) -> Result<Vec<Operand>> {
        let mut operands = Vec::new();
        if self.eat(close)? {
            return Ok(operands);
        }
        loop {
            let operand = self.nested(|p| p.operand(in_call))?;
            operands.push(operand);
            if !self.eat(b',')? {
                self.expect(close)?;
                return Ok(operands);
            }
        }
    }

    /// `+4`, `+-4`, `+4*2-1`: what is added to a base. There is no `-4`: a negative offset is added too (section 6.4.1).
    pub(super) fn offset(&mut self) -> Result<i64> {
        if self.is(b'-') {
            return Err(error(self.token.span, "a negative offset is written `+-4`"));
        }
        if !self.eat(b'+')? {
            return Ok(0);
        }
        Ok(self.constant_bits()? as i64)
    }

    /// `[3]`, `[%r1]`, `[%r1+2]`, `[%r1-2]` behind the name of an array (section 6.4.2).
    fn element(&mut self, array: String) -> Result<Operand> {
        self.expect(b'[')?;
        let (index, offset) = if begins(self.token.kind, self.token.text) {
            (None, self.constant_bits()? as i64)
        } else {
            let index = Some(self.register("an index")?);
            let span = self.token.span;
            let offset = if self.eat(b'-')? {
                let offset = (self.constant_bits()? as i64).checked_neg();
                offset.ok_or_else(|| error(span, "this index does not fit 64 bits"))?
            } else {
                self.offset()?
            };
            (index, offset)
        };
        self.expect(b']')?;
        Ok(Operand::Element { array, index, offset })
    }

    /// `[base+offset, more]`.
    fn address(&mut self) -> Result<Operand> {
        self.expect(b'[')?;
        let (base, offset) = if begins(self.token.kind, self.token.text) {
            (Operand::Int(self.constant_bits()?), 0)
        } else {
            let base = Operand::Name(self.register("an address")?);
            (base, self.offset()?)
        };
        let mut rest = Vec::new();
        while self.eat(b',')? {
            let operand = self.nested(|p| p.operand(false))?;
            rest.push(operand);
        }
        self.expect(b']')?;
        Ok(Operand::Address { base: Box::new(base), offset, rest })
    }
}

fn literal(value: Value) -> Operand {
    match value {
        Value::Signed(value) => Operand::Int(value as u64),
        Value::Unsigned(value) => Operand::Int(value),
        Value::Double(value) => Operand::F64(value.to_bits()),
        Value::Single(bits) => Operand::F32(bits),
    }
}
