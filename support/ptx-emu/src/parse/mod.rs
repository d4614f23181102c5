//! Reads PTX text into a syntax tree (PTX ISA 9.0, sections 4, 5 and 11).
//!
//! The grammar is the manual's; whatever it does not allow is an error with its line and column. Names are not resolved and
//! opcodes are not known here: that is the decoder's work. Constant expressions are folded, comments and DWARF sections dropped.
//!
//! Any text ends in a module or an error, in time and memory proportional to its length: nesting is limited to [`MAX_DEPTH`].

mod expr;
mod function;
mod lexer;
mod module;
mod operand;
mod variable;

use crate::ast::{Loc, Module, Span};
pub use crate::error::ParseError;
use lexer::{Kind, Lexer, Token};
use std::collections::HashMap;
use std::sync::Arc;

/// How deep blocks, parentheses, operands and initialisers may nest, taken together.
pub const MAX_DEPTH: u32 = 200;

/// How many names the parameterised declarations (`%r<10>`) of one function, or all those outside of functions, may stand for.
pub const MAX_REGISTERS: u32 = 1 << 20;

/// How many bytes one variable may take.
pub const MAX_VARIABLE_BYTES: u64 = 1 << 40;

/// The largest alignment, in bytes.
pub const MAX_ALIGN: u32 = 1 << 16;

/// How many calls that were inlined into each other a place remembers.
pub const MAX_INLINED: usize = 16;

/// How many elements the initial values of a module may leave out between those they give (`{{1}, {2}}` of rows of three leaves
/// two), and how many labels its `.branchtargets` may name by `L<10>`: what a few characters of text stand for.
pub const MAX_IMPLIED: u64 = 1 << 16;

type Result<T> = std::result::Result<T, ParseError>;

/// Parses a PTX module. NUL characters at the end, which C strings bring along, are dropped.
///
/// # Errors
/// The first place where the text is not PTX, or uses a directive that this crate does not support (`.alias`, `.abs_func`,
/// textures' `.tex` space and the like), which the message names.
pub fn parse(text: &str) -> Result<Module> {
    Parser::new(text.trim_end_matches('\0')).module()
}

/// Parses a PTX module from bytes, as a file or a C string holds it.
///
/// # Errors
/// As [`parse`]; bytes that are not UTF-8 are an error at the first of them.
pub fn parse_bytes(bytes: &[u8]) -> Result<Module> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text),
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line_start = before.iter().rposition(|&c| c == b'\n').map_or(0, |at| at + 1);
            let line = before.iter().filter(|&&c| c == b'\n').count() + 1;
            let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (line, column) = (clamp(line), clamp(before.len() - line_start + 1));
            Err(ParseError { line, column, message: "this byte is not UTF-8".into() })
        }
    }
}

/// The parser: a token in hand, one ahead, and what is in force.
struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    ahead: Token<'a>,
    depth: u32,
    /// The `.loc` in force and the places it was inlined into, innermost first.
    loc: (Option<Loc>, Arc<[Loc]>),
    /// What each place of the function in hand was last said to be inlined into.
    inlined: HashMap<Loc, Arc<[Loc]>>,
    /// Names that the function in hand, or the module outside of functions, has declared by parameterised declarations.
    registers: u32,
    /// What counts against [`MAX_IMPLIED`].
    implied: u64,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let mut lexer = Lexer::new(text);
        let token = lexer.next();
        let ahead = lexer.next();
        Parser { lexer, token, ahead, depth: 0, loc: (None, Arc::default()), inlined: HashMap::new(), registers: 0, implied: 0 }
    }

    /// Takes the token in hand.
    fn bump(&mut self) -> Result<Token<'a>> {
        if let Kind::Bad(message) = self.token.kind {
            return Err(error(self.token.span, message));
        }
        let token = self.token;
        self.token = self.ahead;
        self.ahead = self.lexer.next();
        Ok(token)
    }

    /// An error at the token in hand: what was wanted and what stands there.
    fn expected<T>(&self, what: &str) -> Result<T> {
        if let Kind::Bad(message) = self.token.kind {
            return Err(error(self.token.span, message));
        }
        Err(error(self.token.span, format!("expected {what}, found {}", self.found())))
    }

    /// The token in hand, for a message.
    fn found(&self) -> String {
        if self.token.kind == Kind::End {
            return "the end of the text".into();
        }
        quoted(self.token.text)
    }

    fn is(&self, c: u8) -> bool {
        self.token.kind == Kind::Punct(c)
    }

    /// Takes the character `c` if it is in hand.
    fn eat(&mut self, c: u8) -> Result<bool> {
        let here = self.is(c);
        if here {
            self.bump()?;
        }
        Ok(here)
    }

    fn expect(&mut self, c: u8) -> Result<Token<'a>> {
        if self.is(c) { self.bump() } else { self.expected(&format!("`{}`", char::from(c))) }
    }

    fn is_word(&self, word: &str) -> bool {
        self.token.kind == Kind::Word && self.token.text == word
    }

    /// Whether the directive or type in hand is `.word`.
    fn is_dot(&self, word: &str) -> bool {
        self.dot() == Some(word)
    }

    /// The directive or type in hand, without its dot.
    fn dot(&self) -> Option<&'a str> {
        if self.token.kind == Kind::DotWord { self.token.text.get(1..) } else { None }
    }

    /// An identifier.
    fn name(&mut self, what: &str) -> Result<String> {
        if self.token.kind == Kind::Word { Ok(self.bump()?.text.to_owned()) } else { self.expected(what) }
    }

    /// An identifier that names something: any but `_`.
    fn declared(&mut self, what: &str) -> Result<String> {
        if self.is_word("_") {
            return self.expected(what);
        }
        self.name(what)
    }

    /// A string literal.
    fn string(&mut self, what: &str) -> Result<String> {
        if self.token.kind != Kind::Str {
            return self.expected(what);
        }
        Ok(self.bump()?.text.trim_matches('"').to_owned())
    }

    /// An integer literal of at most 32 bits.
    fn small(&mut self, what: &str) -> Result<u32> {
        match self.token.kind {
            Kind::Int(value, _) => match u32::try_from(value) {
                Ok(value) => {
                    self.bump()?;
                    Ok(value)
                }
                Err(_) => Err(error(self.token.span, format!("{what} does not fit 32 bits"))),
            },
            _ => self.expected(what),
        }
    }

    /// Counts elements or labels that no text stands for one by one.
    fn imply(&mut self, count: u64, span: Span) -> Result<()> {
        self.implied = self.implied.saturating_add(count);
        if self.implied > MAX_IMPLIED {
            return Err(error(span, format!("more than {MAX_IMPLIED} elements or labels are left to be filled in")));
        }
        Ok(())
    }

    /// Runs `inner` one level deeper.
    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(error(self.token.span, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }
}

/// An error at a place.
fn error(span: Span, message: impl Into<String>) -> ParseError {
    ParseError { line: span.line, column: span.column, message: message.into() }
}

/// A piece of the text for a message, shortened.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("`{}...`", text.get(..end).unwrap_or("")),
        None => format!("`{text}`"),
    }
}
