//! `vprintf`: what a kernel prints.

use crate::cx::Cx;
use crate::fault::{Exec, Fault};
use crate::mem_ops::read_generic;
use crate::report::Kind;
use std::iter::Peekable;
use std::str::Chars;

/// Longest string that is read.
const LONGEST: u64 = 1 << 16;

/// The bytes of a C string at a generic address, as text.
pub fn c_string(cx: &mut Cx<'_>, lane: usize, address: u64) -> Exec<String> {
    let mut text = vec![];
    for i in 0..LONGEST {
        let mut byte = [0];
        read_generic(cx, lane, address.wrapping_add(i), &mut byte)?;
        if byte[0] == 0 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.push(byte[0]);
    }
    Err(Fault::at(Kind::OutOfBounds, lane, format!("printf: no end of the string at {address:#x} within {LONGEST} bytes")))
}

/// A conversion of a format.
#[derive(Default)]
struct Conversion {
    minus: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
    /// Of 64 bits.
    long: bool,
    kind: char,
}

/// The arguments, one after the other, each at a multiple of its size (CUDA C++ Programming Guide, "Formatted Output": as C's
/// default argument promotions leave them).
struct Arguments {
    address: u64,
    offset: u64,
}

impl Arguments {
    fn next(&mut self, cx: &mut Cx<'_>, lane: usize, size: u64) -> Exec<u64> {
        self.offset = self.offset.next_multiple_of(size);
        let mut word = [0; 8];
        read_generic(cx, lane, self.address.wrapping_add(self.offset), &mut word[..size as usize])?;
        self.offset += size;
        Ok(u64::from_le_bytes(word))
    }
}

/// Formats like C's printf: `format` is the address of the format, `list` that of the arguments.
pub fn format(cx: &mut Cx<'_>, lane: usize, format: u64, list: u64) -> Exec<String> {
    let format = c_string(cx, lane, format)?;
    let mut arguments = Arguments { address: list, offset: 0 };
    let mut out = String::new();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut conversion = Conversion::default();
        while let Some(&flag) = rest.peek() {
            match flag {
                '-' => conversion.minus = true,
                '+' => conversion.plus = true,
                ' ' => conversion.space = true,
                '#' => conversion.alternate = true,
                '0' => conversion.zero = true,
                _ => break,
            }
            rest.next();
        }
        conversion.width = number(cx, lane, &mut rest, &mut arguments)?;
        if rest.next_if_eq(&'.').is_some() {
            // A point alone is a precision of 0; a negative one counts as none.
            let star = rest.peek() == Some(&'*');
            let precision = number(cx, lane, &mut rest, &mut arguments)?;
            conversion.precision = if star { precision } else { Some(precision.unwrap_or(0)) };
        }
        while let Some(&length) = rest.peek() {
            match length {
                'l' | 'z' | 'j' | 't' => conversion.long = true,
                'h' | 'L' => {}
                _ => break,
            }
            rest.next();
        }
        let Some(kind) = rest.next() else {
            out.push('%');
            break;
        };
        conversion.kind = kind;
        match kind {
            '%' => out.push('%'),
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' | 'c' => {
                let bits = arguments.next(cx, lane, if conversion.long { 8 } else { 4 })?;
                out.push_str(&conversion.integer(bits));
            }
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a' | 'A' => {
                let value = f64::from_bits(arguments.next(cx, lane, 8)?);
                out.push_str(&conversion.float(value));
            }
            's' => {
                let address = arguments.next(cx, lane, 8)?;
                let mut text = c_string(cx, lane, address)?;
                if let Some(precision) = conversion.precision {
                    text = text.chars().take(precision).collect();
                }
                out.push_str(&conversion.padded("", &text, false));
            }
            'p' => {
                let address = arguments.next(cx, lane, 8)?;
                out.push_str(&conversion.padded("", &format!("{address:#x}"), false));
            }
            other => {
                return Err(Fault::at(Kind::Unsupported, lane, format!("printf: conversion %{other}")));
            }
        }
    }
    Ok(out)
}

/// A width or precision: digits, or `*` for an argument. None when there is none, or a negative argument.
fn number(cx: &mut Cx<'_>, lane: usize, rest: &mut Peekable<Chars<'_>>, arguments: &mut Arguments) -> Exec<Option<usize>> {
    if rest.next_if_eq(&'*').is_some() {
        let value = arguments.next(cx, lane, 4)? as u32 as i32;
        return Ok(usize::try_from(value).ok().map(|v| v.min(4096)));
    }
    let mut value = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        value = Some((value.unwrap_or(0) * 10 + digit as usize).min(4096));
        rest.next();
    }
    Ok(value)
}

impl Conversion {
    fn integer(&self, bits: u64) -> String {
        if self.kind == 'c' {
            let c = char::from(bits as u8).to_string();
            return self.padded("", &c, false);
        }
        let signed = matches!(self.kind, 'd' | 'i');
        let value = if self.long { bits as i64 } else { i64::from(bits as u32 as i32) };
        let unsigned = if self.long { bits } else { u64::from(bits as u32) };
        let mut digits = match self.kind {
            'd' | 'i' => value.unsigned_abs().to_string(),
            'u' => unsigned.to_string(),
            'x' => format!("{unsigned:x}"),
            'X' => format!("{unsigned:X}"),
            _ => format!("{unsigned:o}"),
        };
        if let Some(precision) = self.precision {
            digits = format!("{}{digits}", "0".repeat(precision.saturating_sub(digits.len())));
        }
        let sign = match self.kind {
            'x' if self.alternate && unsigned != 0 => "0x",
            'X' if self.alternate && unsigned != 0 => "0X",
            'o' if self.alternate && !digits.starts_with('0') => "0",
            _ if !signed => "",
            _ => self.sign(value < 0),
        };
        self.padded(sign, &digits, self.precision.is_none())
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    fn float(&self, value: f64) -> String {
        let sign = self.sign(value.is_sign_negative());
        let value = value.abs();
        let upper = self.kind.is_ascii_uppercase();
        if !value.is_finite() {
            let text = if value.is_nan() { "nan" } else { "inf" };
            let text = if upper { text.to_uppercase() } else { text.to_string() };
            return self.padded(sign, &text, false);
        }
        let precision = self.precision.unwrap_or(6);
        let text = match self.kind.to_ascii_lowercase() {
            'f' => format!("{value:.precision$}"),
            'e' => exponent(value, precision),
            'g' => {
                let precision = precision.max(1);
                let scientific = exponent(value, precision - 1);
                let power: i32 = scientific.rsplit('e').next().and_then(|p| p.parse().ok()).unwrap_or(0);
                let mut text = if power < -4 || power >= precision as i32 {
                    scientific
                } else {
                    format!("{value:.*}", (precision as i32 - 1 - power).max(0) as usize)
                };
                if !self.alternate {
                    let (mantissa, tail) =
                        text.split_once('e').map_or((text.as_str(), String::new()), |(m, e)| (m, format!("e{e}")));
                    let mantissa =
                        if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
                    text = format!("{mantissa}{tail}");
                }
                text
            }
            _ => format!("{:#x}", value.to_bits()),
        };
        self.padded(sign, &if upper { text.to_uppercase() } else { text }, true)
    }

    fn padded(&self, sign: &str, text: &str, zeros: bool) -> String {
        let length = sign.len() + text.chars().count();
        let fill = self.width.unwrap_or(0).saturating_sub(length);
        match (self.minus, self.zero && zeros) {
            (true, _) => format!("{sign}{text}{}", " ".repeat(fill)),
            (_, true) => format!("{sign}{}{text}", "0".repeat(fill)),
            _ => format!("{}{sign}{text}", " ".repeat(fill)),
        }
    }
}

/// `1.5e+03`: C's exponent has a sign and two digits at least.
fn exponent(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
}

#[cfg(test)]
mod tests {
    use super::Conversion;

    fn conversion(kind: char) -> Conversion {
        Conversion { kind, ..Conversion::default() }
    }

    #[test]
    fn as_c_prints() {
        assert_eq!(conversion('d').integer(-5i32 as u32 as u64), "-5");
        assert_eq!(conversion('u').integer(u64::from(u32::MAX)), "4294967295");
        assert_eq!(Conversion { zero: true, width: Some(6), ..conversion('d') }.integer(-42i32 as u32 as u64), "-00042");
        assert_eq!(Conversion { alternate: true, ..conversion('x') }.integer(255), "0xff");
        assert_eq!(Conversion { minus: true, width: Some(5), ..conversion('d') }.integer(7), "7    ");
        assert_eq!(Conversion { long: true, ..conversion('d') }.integer(u64::MAX), "-1");
        assert_eq!(conversion('f').float(1.5), "1.500000");
        assert_eq!(Conversion { precision: Some(2), ..conversion('e') }.float(1234.5), "1.23e+03");
        assert_eq!(conversion('g').float(0.0001), "0.0001");
        assert_eq!(conversion('g').float(1e10), "1e+10");
        assert_eq!(conversion('g').float(100.0), "100");
        assert_eq!(Conversion { plus: true, precision: Some(1), ..conversion('f') }.float(-0.25), "-0.2");
        assert_eq!(conversion('f').float(f64::INFINITY), "inf");
    }
}
