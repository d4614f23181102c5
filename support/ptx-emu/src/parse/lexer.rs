//! Tokens of PTX (PTX ISA 9.0, sections 4.1 to 4.5): whitespace and comments are dropped, places are kept.

use crate::ast::Span;

/// What a token is; its text is the slice of the source that its place names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// `[A-Za-z_$%][A-Za-z0-9_$]*`
    Word,
    /// `.` and a word at once, with every `::word` behind it: `.shared::cluster`, `.2d`.
    DotWord,
    /// An integer literal and whether it is unsigned: by its `U`, or because it does not fit a signed one.
    Int(u64, bool),
    /// `0f` and eight hexadecimal digits: the bits.
    F32(u32),
    /// `0d` and sixteen hexadecimal digits, or a decimal literal.
    F64(f64),
    /// `"..."`, in which a backslash is a character like any other.
    Str,
    /// A single character of punctuation.
    Punct(u8),
    /// `<<`, `>>`, `<=`, `>=`, `==`, `!=`, `&&`, `||`
    Punct2(u8, u8),
    /// The end of the text.
    End,
    /// No token begins here: the reason.
    Bad(&'static str),
}

/// A token and its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub span: Span,
}

/// Reads tokens one after another.
pub(super) struct Lexer<'a> {
    text: &'a str,
    pos: usize,
    line: u32,
    line_start: usize,
}

/// Whether `c` may begin a word; `$` and `%` need more behind them, and `%` alone is the remainder operator.
fn begins_word(c: u8, next: u8) -> bool {
    c.is_ascii_alphabetic() || c == b'_' || (matches!(c, b'$' | b'%') && in_word(next))
}

/// Whether `c` may stand inside a word.
fn in_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$')
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Lexer { text, pos: 0, line: 1, line_start: 0 }
    }

    fn at(&self, pos: usize) -> u8 {
        // The end of the text reads as NUL, which no rule accepts.
        self.text.as_bytes().get(pos).copied().unwrap_or(0)
    }

    fn span(&self, pos: usize) -> Span {
        Span { line: self.line, column: u32::try_from(pos - self.line_start + 1).unwrap_or(u32::MAX) }
    }

    fn newline(&mut self) {
        self.line = self.line.saturating_add(1);
        self.line_start = self.pos;
    }

    fn token(&mut self, kind: Kind, start: usize, end: usize) -> Token<'a> {
        let span = self.span(start);
        self.pos = end;
        // `start` and `end` are at ASCII characters or at the ends of whole characters; an empty text is never wrong.
        Token { kind, text: self.text.get(start..end).unwrap_or(""), span }
    }

    /// The next token; `End` again and again after the last.
    pub fn next(&mut self) -> Token<'a> {
        loop {
            match self.at(self.pos) {
                b'\n' => {
                    self.pos += 1;
                    self.newline();
                }
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => self.pos += 1,
                b'/' if self.at(self.pos + 1) == b'/' => {
                    let rest = &self.text.as_bytes()[self.pos..];
                    self.pos += rest.iter().position(|&c| c == b'\n').unwrap_or(rest.len());
                }
                b'/' if self.at(self.pos + 1) == b'*' => {
                    let place = self.span(self.pos);
                    self.pos += 2;
                    loop {
                        if self.pos >= self.text.len() {
                            let kind = Kind::Bad("this comment is not closed");
                            return Token { kind, text: "", span: place };
                        }
                        let c = self.at(self.pos);
                        self.pos += 1;
                        if c == b'\n' {
                            self.newline();
                        } else if c == b'*' && self.at(self.pos) == b'/' {
                            self.pos += 1;
                            break;
                        }
                    }
                }
                _ => break,
            }
        }
        let start = self.pos;
        if start >= self.text.len() {
            return self.token(Kind::End, start, start);
        }
        let c = self.at(start);
        if begins_word(c, self.at(start + 1)) {
            let end = self.word_end(start + 1);
            return self.token(Kind::Word, start, end);
        }
        if c.is_ascii_digit() {
            return self.number(start);
        }
        match c {
            b'.' => self.dot(start),
            b'"' => self.string(start),
            _ => self.punctuation(start, c),
        }
    }

    fn word_end(&self, start: usize) -> usize {
        let rest = &self.text.as_bytes()[start..];
        start + rest.iter().position(|&c| !in_word(c)).unwrap_or(rest.len())
    }

    fn digits_end(&self, start: usize) -> usize {
        let rest = &self.text.as_bytes()[start..];
        start + rest.iter().position(|c| !c.is_ascii_digit()).unwrap_or(rest.len())
    }

    /// `.word`, `.word::word`, or a fraction without digits before the point.
    fn dot(&mut self, start: usize) -> Token<'a> {
        let next = self.at(start + 1);
        if next.is_ascii_digit() && (start == 0 || !in_word(self.at(start - 1))) {
            // `.5` and `.5e3` are numbers where no word stands directly before them; `.2d` never is.
            let digits = self.digits_end(start + 1);
            if !in_word(self.at(digits)) || matches!(self.at(digits), b'e' | b'E') {
                return self.fraction(start);
            }
        }
        if !in_word(next) {
            return self.token(Kind::Bad("a name is expected after this dot"), start, start + 1);
        }
        let mut end = self.word_end(start + 1);
        while self.at(end) == b':' && self.at(end + 1) == b':' && in_word(self.at(end + 2)) {
            end = self.word_end(end + 2);
        }
        self.token(Kind::DotWord, start, end)
    }

    /// A decimal floating-point literal; it begins with a digit or a dot.
    fn fraction(&mut self, start: usize) -> Token<'a> {
        let mut end = self.digits_end(start);
        if self.at(end) == b'.' {
            end = self.digits_end(end + 1);
        }
        if matches!(self.at(end), b'e' | b'E') {
            let sign = usize::from(matches!(self.at(end + 1), b'+' | b'-'));
            let exponent = self.digits_end(end + 1 + sign);
            if exponent == end + 1 + sign {
                return self.token(Kind::Bad("this exponent has no digits"), start, exponent);
            }
            end = exponent;
        }
        if in_word(self.at(end)) {
            return self.token(Kind::Bad("malformed number"), start, end);
        }
        let kind = match self.text.get(start..end).unwrap_or("").parse::<f64>() {
            Ok(value) if value.is_finite() => Kind::F64(value),
            _ => Kind::Bad("this number is outside the range of f64"),
        };
        self.token(kind, start, end)
    }

    fn number(&mut self, start: usize) -> Token<'a> {
        let end = self.word_end(start);
        let body = &self.text.as_bytes()[start..end];
        let hex = |digits: &[u8]| digits.iter().all(u8::is_ascii_hexdigit);
        let kind = match body {
            [b'0', b'f' | b'F', digits @ ..] if digits.len() == 8 && hex(digits) => match number_of(digits, 16) {
                Some(bits) => Kind::F32(bits as u32),
                None => Kind::Bad("malformed number"),
            },
            [b'0', b'f' | b'F', ..] => Kind::Bad("`0f` takes eight hexadecimal digits"),
            [b'0', b'd' | b'D', digits @ ..] if digits.len() == 16 && hex(digits) => match number_of(digits, 16) {
                Some(bits) => Kind::F64(f64::from_bits(bits)),
                None => Kind::Bad("malformed number"),
            },
            [b'0', b'd' | b'D', ..] => Kind::Bad("`0d` takes sixteen hexadecimal digits"),
            [b'0', b'x' | b'X', digits @ ..] => integer(digits, 16),
            [b'0', b'b' | b'B', digits @ ..] => integer(digits, 2),
            _ => {
                let digits = self.digits_end(start);
                if matches!(self.at(digits), b'.' | b'e' | b'E') {
                    return self.fraction(start);
                }
                match body {
                    [b'0', octal @ ..] if octal.first().is_some_and(u8::is_ascii_digit) => integer(octal, 8),
                    _ => integer(body, 10),
                }
            }
        };
        self.token(kind, start, end)
    }

    fn string(&mut self, start: usize) -> Token<'a> {
        let rest = self.text.as_bytes().get(start + 1..).unwrap_or(&[]);
        match rest.iter().position(|&c| matches!(c, b'"' | b'\n')).filter(|&end| rest[end] == b'"') {
            Some(end) => self.token(Kind::Str, start, start + end + 2),
            None => self.token(Kind::Bad("this string is not closed"), start, start + 1),
        }
    }

    fn punctuation(&mut self, start: usize, c: u8) -> Token<'a> {
        let next = self.at(start + 1);
        if matches!((c, next), (b'<', b'<' | b'=') | (b'>', b'>' | b'=') | (b'=' | b'!', b'=') | (b'&', b'&') | (b'|', b'|')) {
            return self.token(Kind::Punct2(c, next), start, start + 2);
        }
        let (kind, length) = match c {
            b'{' | b'}' | b'(' | b')' | b'[' | b']' | b'<' | b'>' | b',' | b';' | b':' | b'@' | b'!' | b'=' | b'+' | b'-'
            | b'*' | b'/' | b'%' | b'&' | b'|' | b'^' | b'~' | b'?' => (Kind::Punct(c), 1),
            b'#' => (Kind::Bad("preprocessor lines are not supported"), 1),
            _ => {
                let length = self.text.get(start..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
                (Kind::Bad("this character has no meaning in PTX"), length)
            }
        };
        self.token(kind, start, start + length)
    }
}

/// The value of digits of the given radix, if there is one and 64 bits hold it.
fn number_of(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = char::from(digit).to_digit(radix)?;
        value.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    })
}

/// An integer literal without its prefix, perhaps with the suffix `U`.
fn integer(body: &[u8], radix: u32) -> Kind {
    let (digits, suffix) = match body {
        [digits @ .., b'U'] => (digits, true),
        _ => (body, false),
    };
    match number_of(digits, radix) {
        Some(value) => Kind::Int(value, suffix || value > i64::MAX as u64),
        None if !digits.is_empty() && digits.iter().all(|&digit| char::from(digit).is_digit(radix)) => {
            Kind::Bad("this integer does not fit 64 bits")
        }
        None => Kind::Bad("malformed number"),
    }
}
