//! Constant expressions, folded by the rules of PTX ISA 9.0, sections 4.5.4 to 4.5.6.

use super::lexer::Kind;
use super::{Parser, Result, error};
use crate::ast::Span;

/// A constant: `.s64`, `.u64` or `.f64`, or a single-precision literal, which takes no part in expressions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    Signed(i64),
    Unsigned(u64),
    Double(f64),
    Single(u32),
}

/// Binary operators, and how tightly each binds (C's order).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Mul,
    Div,
    Rem,
    Add,
    Sub,
    Shl,
    Shr,
    Lt,
    Gt,
    Le,
    Ge,
    Eq,
    Ne,
    And,
    Xor,
    Or,
    AndAnd,
    OrOr,
}

fn operator(kind: Kind) -> Option<(Op, u8)> {
    Some(match kind {
        Kind::Punct(b'*') => (Op::Mul, 10),
        Kind::Punct(b'/') => (Op::Div, 10),
        Kind::Punct(b'%') => (Op::Rem, 10),
        Kind::Punct(b'+') => (Op::Add, 9),
        Kind::Punct(b'-') => (Op::Sub, 9),
        Kind::Punct2(b'<', b'<') => (Op::Shl, 8),
        Kind::Punct2(b'>', b'>') => (Op::Shr, 8),
        Kind::Punct(b'<') => (Op::Lt, 7),
        Kind::Punct(b'>') => (Op::Gt, 7),
        Kind::Punct2(b'<', b'=') => (Op::Le, 7),
        Kind::Punct2(b'>', b'=') => (Op::Ge, 7),
        Kind::Punct2(b'=', b'=') => (Op::Eq, 6),
        Kind::Punct2(b'!', b'=') => (Op::Ne, 6),
        Kind::Punct(b'&') => (Op::And, 5),
        Kind::Punct(b'^') => (Op::Xor, 4),
        Kind::Punct(b'|') => (Op::Or, 3),
        Kind::Punct2(b'&', b'&') => (Op::AndAnd, 2),
        Kind::Punct2(b'|', b'|') => (Op::OrOr, 1),
        _ => return None,
    })
}

impl Value {
    /// The 64 bits of an integer.
    pub fn bits(self) -> Option<u64> {
        match self {
            Value::Signed(value) => Some(value as u64),
            Value::Unsigned(value) => Some(value),
            Value::Double(_) | Value::Single(_) => None,
        }
    }

    fn unsigned(self) -> bool {
        matches!(self, Value::Unsigned(_))
    }
}

/// Whether a constant expression may begin with this token.
pub(super) fn begins(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Int(..) | Kind::F32(_) | Kind::F64(_) => true,
        Kind::Punct(c) => matches!(c, b'(' | b'-' | b'+' | b'!' | b'~'),
        Kind::Word => text == "WARP_SZ",
        _ => false,
    }
}

impl Parser<'_> {
    /// A whole constant expression.
    pub(super) fn constant(&mut self) -> Result<Value> {
        let span = self.token.span;
        let condition = self.binary(0)?;
        if !self.is(b'?') {
            return Ok(condition);
        }
        let Some(bits) = condition.bits() else {
            return Err(error(span, "the condition of `?:` is an integer"));
        };
        self.bump()?;
        let (yes, no) = self.nested(|p| {
            let yes = p.constant()?;
            p.expect(b':')?;
            Ok((yes, p.constant()?))
        })?;
        // Both sides take their common type.
        // (Section 4.5.5; ptxas 13.0 leaves the chosen side its own type.)
        let pick = if bits != 0 { yes } else { no };
        match (yes.bits(), no.bits(), pick.bits()) {
            (Some(_), Some(_), Some(bits)) if yes.unsigned() || no.unsigned() => Ok(Value::Unsigned(bits)),
            (Some(_), Some(_), Some(bits)) => Ok(Value::Signed(bits as i64)),
            _ if matches!((yes, no), (Value::Double(_), Value::Double(_))) => Ok(pick),
            _ => Err(error(span, "both sides of `:` are integers or both are doubles")),
        }
    }

    /// A constant expression that is an integer: its 64 bits.
    pub(super) fn constant_bits(&mut self) -> Result<u64> {
        let span = self.token.span;
        match self.constant()?.bits() {
            Some(bits) => Ok(bits),
            None => Err(error(span, "an integer is expected here")),
        }
    }

    /// Operators that bind at least as tightly as `least`.
    fn binary(&mut self, least: u8) -> Result<Value> {
        let mut left = self.unary()?;
        while let Some((op, binding)) = operator(self.token.kind).filter(|&(_, binding)| binding >= least) {
            let span = self.bump()?.span;
            // Each of the ten levels of operators may add one frame; the depth counts them all.
            let right = self.nested(|p| p.binary(binding + 1))?;
            left = fold(op, left, right, span)?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Value> {
        let token = self.token;
        let value = match token.kind {
            Kind::Int(bits, true) => Value::Unsigned(bits),
            Kind::Int(bits, false) => Value::Signed(bits as i64),
            Kind::F32(bits) => Value::Single(bits),
            Kind::F64(value) => Value::Double(value),
            Kind::Word if token.text == "WARP_SZ" => Value::Signed(32),
            Kind::Punct(b'(') => {
                self.bump()?;
                let cast = match self.dot() {
                    Some(cast @ ("s64" | "u64")) => Some(cast),
                    Some(_) => return self.expected("`.s64`, `.u64` or an expression"),
                    None => None,
                };
                let Some(cast) = cast else {
                    let value = self.nested(Self::constant)?;
                    self.expect(b')')?;
                    return Ok(value);
                };
                self.bump()?;
                self.expect(b')')?;
                return match (cast, self.nested(Self::unary)?.bits()) {
                    ("s64", Some(bits)) => Ok(Value::Signed(bits as i64)),
                    (_, Some(bits)) => Ok(Value::Unsigned(bits)),
                    (_, None) => Err(error(token.span, "only integers are cast")),
                };
            }
            Kind::Punct(c @ (b'-' | b'+' | b'!' | b'~')) => {
                self.bump()?;
                let inner = self.nested(Self::unary)?;
                return match (c, inner) {
                    (b'+', Value::Signed(_) | Value::Unsigned(_) | Value::Double(_)) => Ok(inner),
                    (b'-', Value::Signed(value)) => Ok(Value::Signed(value.wrapping_neg())),
                    (b'-', Value::Unsigned(value)) => Ok(Value::Unsigned(value.wrapping_neg())),
                    (b'-', Value::Double(value)) => Ok(Value::Double(-value)),
                    (b'!', Value::Signed(value)) => Ok(Value::Signed(i64::from(value == 0))),
                    (b'!', Value::Unsigned(value)) => Ok(Value::Signed(i64::from(value == 0))),
                    (b'~', Value::Signed(value)) => Ok(Value::Unsigned(!(value as u64))),
                    (b'~', Value::Unsigned(value)) => Ok(Value::Unsigned(!value)),
                    (_, Value::Single(_)) => Err(error(token.span, "single-precision literals take no operators")),
                    _ => Err(error(token.span, format!("`{}` takes an integer", char::from(c)))),
                };
            }
            _ => return self.expected("a constant"),
        };
        self.bump()?;
        Ok(value)
    }
}

/// The value of `left op right`.
fn fold(op: Op, left: Value, right: Value, span: Span) -> Result<Value> {
    if let (Value::Double(a), Value::Double(b)) = (left, right) {
        return Ok(match op {
            Op::Add => Value::Double(a + b),
            Op::Sub => Value::Double(a - b),
            Op::Mul => Value::Double(a * b),
            Op::Div => Value::Double(a / b),
            Op::Lt => Value::Signed(i64::from(a < b)),
            Op::Gt => Value::Signed(i64::from(a > b)),
            Op::Le => Value::Signed(i64::from(a <= b)),
            Op::Ge => Value::Signed(i64::from(a >= b)),
            Op::Eq => Value::Signed(i64::from(a == b)),
            Op::Ne => Value::Signed(i64::from(a != b)),
            _ => return Err(error(span, "this operator takes integers")),
        });
    }
    let (Some(a), Some(b)) = (left.bits(), right.bits()) else {
        // Integers are not converted, and single-precision literals take no part at all (section 4.5.2).
        return Err(error(span, "both sides of this operator are integers or both are doubles"));
    };
    // C's usual conversions: one unsigned operand makes both unsigned.
    let unsigned = left.unsigned() || right.unsigned();
    let typed = |bits: u64| if unsigned { Value::Unsigned(bits) } else { Value::Signed(bits as i64) };
    let truth = |truth: bool| Ok(Value::Signed(i64::from(truth)));
    let less = if unsigned { a < b } else { (a as i64) < b as i64 };
    match op {
        Op::Add => Ok(typed(a.wrapping_add(b))),
        Op::Sub => Ok(typed(a.wrapping_sub(b))),
        Op::Mul => Ok(typed(a.wrapping_mul(b))),
        Op::Div | Op::Rem if b == 0 => Err(error(span, "division by zero")),
        Op::Div if unsigned => Ok(Value::Unsigned(a / b)),
        Op::Div => Ok(Value::Signed((a as i64).wrapping_div(b as i64))),
        // Unlike C's: of unsigned operands, with a signed result.
        Op::Rem => Ok(Value::Signed((a % b) as i64)),
        // A shift keeps the type of what is shifted; ptxas takes the amount modulo 64.
        Op::Shl if left.unsigned() => Ok(Value::Unsigned(a.wrapping_shl(b as u32))),
        Op::Shl => Ok(Value::Signed((a as i64).wrapping_shl(b as u32))),
        Op::Shr if left.unsigned() => Ok(Value::Unsigned(a.wrapping_shr(b as u32))),
        Op::Shr => Ok(Value::Signed((a as i64).wrapping_shr(b as u32))),
        Op::Lt => truth(less),
        Op::Ge => truth(!less),
        Op::Gt => truth(!less && a != b),
        Op::Le => truth(less || a == b),
        Op::Eq => truth(a == b),
        Op::Ne => truth(a != b),
        Op::And => Ok(typed(a & b)),
        Op::Xor => Ok(typed(a ^ b)),
        Op::Or => Ok(typed(a | b)),
        Op::AndAnd => truth(a != 0 && b != 0),
        Op::OrOr => truth(a != 0 || b != 0),
    }
}
