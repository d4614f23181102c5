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
            Some(Guard { name: self.register("a predicate register")?, negated })
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
        let (loc, inlined_at) = self.loc;
        Ok(Instruction { span: first.span, loc, inlined_at, guard, opcode, operands })
    }

    /// A register or another name, with what follows it directly: `%tid.x`, `v.b`.
    fn register(&mut self, what: &str) -> Result<String> {
        if self.token.kind != Kind::Word {
            return self.expected(what);
        }
        let first = self.bump()?;
        let mut name = first.text.to_owned();
        let mut end = first.end();
        while self.token.kind == Kind::DotWord && self.token.start == end {
            end = self.token.end();
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
                if self.is(b'+') || self.is(b'-') { Ok(Operand::Offset(name, self.offset()?)) } else { Ok(Operand::Name(name)) }
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

    /// `+4`, `-4`, `+-4`, `+4*2-1`: what is added to a base.
    pub(super) fn offset(&mut self) -> Result<i64> {
        let mut sum = 0i64;
        loop {
            let minus = match self.token.kind {
                Kind::Punct(b'+') => false,
                Kind::Punct(b'-') => true,
                _ => return Ok(sum),
            };
            let span = self.bump()?.span;
            let term = self.term_bits()? as i64;
            let next = if minus { sum.checked_sub(term) } else { sum.checked_add(term) };
            sum = next.ok_or_else(|| error(span, "this offset does not fit 64 bits"))?;
        }
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
