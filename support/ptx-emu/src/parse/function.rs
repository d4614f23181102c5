//! Kernels, device functions and what stands in their bodies (PTX ISA 9.0, sections 4.3, 7 and 11.2 to 11.4).

use super::lexer::Kind;
use super::variable::Signature;
use super::{MAX_INLINED, Parser, Result, error};
use crate::ast::{Function, Loc, Statement};
use std::sync::Arc;

impl Parser<'_> {
    /// A kernel or device function; `.entry` or `.func` is in hand.
    pub(super) fn function(&mut self, is_extern: bool) -> Result<Function> {
        let span = self.token.span;
        let is_entry = self.is_dot("entry");
        self.bump()?;
        self.loc = (None, Arc::default());
        self.inlined.clear();
        let outer = std::mem::take(&mut self.registers);
        let signature = if is_entry { Signature::Kernel } else { Signature::Function };
        if self.is_dot("attribute") {
            self.attributes()?;
        }
        let returns = if !is_entry && self.is(b'(') { self.parameters(signature)? } else { Vec::new() };
        if let Some(last) = returns.last().filter(|last| last.unsized_array) {
            return Err(error(last.span, "a return parameter has a length"));
        }
        let name = self.declared("the name of a function")?;
        let params = if self.is(b'(') { self.parameters(signature)? } else { Vec::new() };
        let directives = self.function_directives(signature)?;
        let body = if self.eat(b';')? {
            None
        } else {
            let brace = self.token.span;
            if !self.is(b'{') {
                return self.expected("a function's body, `;` or a directive");
            }
            if is_extern {
                return Err(error(brace, "an external function has no body"));
            }
            self.bump()?;
            Some(self.nested(Self::statements)?)
        };
        self.registers = outer;
        Ok(Function { span, name, is_entry, is_extern, returns, params, directives, body })
    }

    /// Directives between a function's parameters and its body (PTX ISA 9.0, sections 11.4, 11.7 and 11.8).
    fn function_directives(&mut self, of: Signature) -> Result<Vec<(String, Vec<u64>)>> {
        let mut directives = Vec::new();
        while let Some(word) = self.dot() {
            let span = self.token.span;
            let most = match (of, word) {
                (Signature::Kernel, "maxntid" | "reqntid" | "reqnctapercluster") => 3,
                (Signature::Kernel, "minnctapersm" | "maxnctapersm" | "maxnreg" | "maxclusterrank") => 1,
                (Signature::Kernel, "explicitcluster" | "blocksareclusters") => 0,
                (Signature::Function | Signature::Prototype, "noreturn") => 0,
                (Signature::Function | Signature::Prototype, "abi_preserve" | "abi_preserve_control") => 1,
                (Signature::Kernel | Signature::Function, "pragma") => {
                    self.pragma()?;
                    continue;
                }
                _ => return Err(error(span, format!("unsupported directive {} of this function", self.found()))),
            };
            self.bump()?;
            let mut values = Vec::new();
            while values.len() < most && (values.is_empty() || self.eat(b',')?) {
                values.push(u64::from(self.small("a number")?));
            }
            directives.push((word.to_owned(), values));
        }
        Ok(directives)
    }

    /// `.pragma "...", "...";`
    pub(super) fn pragma(&mut self) -> Result<Vec<String>> {
        self.bump()?;
        let mut texts = vec![self.string("a string")?];
        while self.eat(b',')? {
            texts.push(self.string("a string")?);
        }
        self.expect(b';')?;
        Ok(texts)
    }

    /// Statements up to and with the closing brace; the opening one is taken.
    fn statements(&mut self) -> Result<Vec<Statement>> {
        let mut statements = Vec::new();
        loop {
            match self.token.kind {
                Kind::Punct(b'}') => {
                    self.bump()?;
                    return Ok(statements);
                }
                Kind::Punct(b'{') => {
                    self.bump()?;
                    let block = self.nested(Self::statements)?;
                    statements.push(Statement::Block(block));
                }
                Kind::Word if self.ahead.kind == Kind::Punct(b':') => self.label(&mut statements)?,
                Kind::Word | Kind::Punct(b'@') => {
                    let instruction = self.instruction()?;
                    statements.push(Statement::Instruction(Box::new(instruction)));
                }
                Kind::DotWord => self.directive(&mut statements)?,
                _ => return self.expected("an instruction, a directive, a label or `}`"),
            }
        }
    }

    /// `name:` and the list or prototype that may follow it.
    fn label(&mut self, statements: &mut Vec<Statement>) -> Result<()> {
        let span = self.token.span;
        let name = self.declared("a label")?;
        self.expect(b':')?;
        match self.dot() {
            Some(word @ ("branchtargets" | "calltargets")) => {
                self.bump()?;
                let mut targets = Vec::new();
                loop {
                    self.target(&mut targets, word == "branchtargets")?;
                    if !self.eat(b',')? {
                        break;
                    }
                }
                self.expect(b';')?;
                statements.push(if word == "branchtargets" {
                    Statement::BranchTargets { span, name, targets }
                } else {
                    Statement::CallTargets { span, name, targets }
                });
            }
            Some("callprototype") => {
                self.bump()?;
                let returns = if self.is(b'(') { self.parameters(Signature::Prototype)? } else { Vec::new() };
                if !self.is_word("_") {
                    return self.expected("`_`, which stands for the name of a prototype's function");
                }
                self.bump()?;
                let params = if self.is(b'(') { self.parameters(Signature::Prototype)? } else { Vec::new() };
                self.function_directives(Signature::Prototype)?;
                self.expect(b';')?;
                statements.push(Statement::CallPrototype { span, name, returns, params });
            }
            _ => statements.push(Statement::Label { span, name }),
        }
        Ok(())
    }

    /// One name of a list of targets, or `L<3>` for `L0`, `L1`, `L2` among labels.
    fn target(&mut self, targets: &mut Vec<String>, labels: bool) -> Result<()> {
        let prefix = self.declared("a name")?;
        if !(labels && self.eat(b'<')?) {
            targets.push(prefix);
            return Ok(());
        }
        let span = self.token.span;
        let count = self.small("a number of labels")?;
        self.expect(b'>')?;
        // Long prefixes take their memory many times over.
        self.imply(u64::from(count).saturating_mul(1 + prefix.len() as u64 / 16), span)?;
        targets.extend((0..count).map(|number| format!("{prefix}{number}")));
        Ok(())
    }

    /// A directive inside a body.
    fn directive(&mut self, statements: &mut Vec<Statement>) -> Result<()> {
        let word = self.dot().unwrap_or("");
        match word {
            "loc" => self.location(),
            "pragma" => {
                let texts = self.pragma()?;
                statements.extend(texts.into_iter().map(Statement::Pragma));
                Ok(())
            }
            "reg" | "local" | "shared" | "global" | "const" | "param" => {
                let variables = self.variables(false)?;
                statements.extend(variables.into_iter().map(Statement::Variable));
                Ok(())
            }
            "branchtargets" | "calltargets" | "callprototype" => {
                Err(error(self.token.span, format!("`.{word}` needs a label before it")))
            }
            _ => Err(error(self.token.span, format!("unsupported directive {} in a function", self.found()))),
        }
    }

    /// `.loc file line column` with or without `, function_name label+offset, inlined_at file line column`.
    fn location(&mut self) -> Result<()> {
        self.bump()?;
        let loc = self.place()?;
        let mut inlined_at: Arc<[Loc]> = Arc::default();
        if self.eat(b',')? {
            self.keyword("function_name")?;
            if self.token.kind == Kind::DotWord {
                self.bump()?; // a section, as in `.debug_str+16`
            } else {
                self.declared("the label of a function's name")?;
            }
            self.offset()?;
            self.expect(b',')?;
            self.keyword("inlined_at")?;
            // The compiler says where the outer function was inlined before it says so of the inner one.
            let outer = self.place()?;
            let known = self.inlined.get(&outer).cloned().unwrap_or_default();
            inlined_at = std::iter::once(outer).chain(known.iter().copied()).take(MAX_INLINED).collect();
            self.inlined.insert(loc, Arc::clone(&inlined_at));
        }
        self.loc = (Some(loc), inlined_at);
        Ok(())
    }

    fn keyword(&mut self, word: &str) -> Result<()> {
        if !self.is_word(word) {
            return self.expected(&format!("`{word}`"));
        }
        self.bump()?;
        Ok(())
    }

    fn place(&mut self) -> Result<Loc> {
        let file = self.small("the number of a file")?;
        let line = self.small("a line")?;
        let column = self.small("a column")?;
        Ok(Loc { file, line, column })
    }
}
