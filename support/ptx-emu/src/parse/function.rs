//! Kernels, device functions and what stands in their bodies (PTX ISA 9.0, sections 4.3, 7 and 11.2 to 11.4).

use super::lexer::Kind;
use super::{Parser, Result, error};
use crate::ast::{Function, Loc, Space, Statement, Variable};

impl Parser<'_> {
    /// A kernel or device function; `.entry` or `.func` is in hand.
    pub(super) fn function(&mut self, is_extern: bool) -> Result<Function> {
        let span = self.token.span;
        let is_entry = self.is_dot("entry");
        self.bump()?;
        self.loc = (None, None);
        self.registers = 0;
        let mut directives = Vec::new();
        self.function_directives(&mut directives)?;
        let returns = if !is_entry && self.is(b'(') { self.parameters()? } else { Vec::new() };
        let name = self.name("the name of a function")?;
        let params = if self.is(b'(') { self.parameters()? } else { Vec::new() };
        self.function_directives(&mut directives)?;
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
            let body = self.nested(Self::statements)?;
            Some(body)
        };
        Ok(Function { span, name, is_entry, is_extern, returns, params, directives, body })
    }

    /// `(.param .b32 a, ...)`
    fn parameters(&mut self) -> Result<Vec<Variable>> {
        self.expect(b'(')?;
        let mut params = Vec::new();
        if self.eat(b')')? {
            return Ok(params);
        }
        loop {
            params.push(self.parameter()?);
            if !self.eat(b',')? {
                self.expect(b')')?;
                return Ok(params);
            }
        }
    }

    /// Performance-tuning and other directives around a function's parameters (PTX ISA 9.0, sections 11.2 to 11.4).
    fn function_directives(&mut self, directives: &mut Vec<(String, Vec<u64>)>) -> Result<()> {
        while let Some(word) = self.dot() {
            let span = self.token.span;
            match word {
                "maxntid"
                | "reqntid"
                | "reqnctapercluster"
                | "minnctapersm"
                | "maxnctapersm"
                | "maxnreg"
                | "maxclusterrank"
                | "abi_preserve"
                | "abi_preserve_control" => {
                    self.bump()?;
                    let mut values = vec![self.constant_bits()?];
                    while self.eat(b',')? {
                        values.push(self.constant_bits()?);
                    }
                    let most = if matches!(word, "maxntid" | "reqntid" | "reqnctapercluster") { 3 } else { 1 };
                    if values.len() > most {
                        return Err(error(span, format!("`.{word}` takes at most {most} numbers")));
                    }
                    directives.push((word.to_owned(), values));
                }
                "explicitcluster" | "blocksareclusters" | "noreturn" => {
                    self.bump()?;
                    directives.push((word.to_owned(), Vec::new()));
                }
                "attribute" => self.attributes()?,
                "pragma" => {
                    self.pragma()?;
                }
                _ => return Err(error(span, format!("unsupported directive `.{word}` of a function"))),
            }
        }
        Ok(())
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
                Kind::Punct(b';') => {
                    self.bump()?;
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
        let name = self.name("a label")?;
        self.expect(b':')?;
        match self.dot() {
            Some(word @ ("branchtargets" | "calltargets")) => {
                self.bump()?;
                let mut targets = vec![self.name("a name")?];
                while self.eat(b',')? {
                    targets.push(self.name("a name")?);
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
                let returns = if self.is(b'(') { self.parameters()? } else { Vec::new() };
                if !self.is_word("_") {
                    return self.expected("`_`, which stands for the name of a prototype's function");
                }
                self.bump()?;
                let params = if self.is(b'(') { self.parameters()? } else { Vec::new() };
                self.function_directives(&mut Vec::new())?;
                self.expect(b';')?;
                statements.push(Statement::CallPrototype { span, name, returns, params });
            }
            _ => statements.push(Statement::Label { span, name }),
        }
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
                let variables = self.variables(false, false)?;
                statements.extend(variables.into_iter().map(Statement::Variable));
                Ok(())
            }
            "branchtargets" | "calltargets" | "callprototype" => {
                Err(error(self.token.span, format!("`.{word}` needs a label before it")))
            }
            _ => Err(error(self.token.span, format!("unsupported directive `.{word}` in a function"))),
        }
    }

    /// `.loc file line column` with or without `, function_name label, inlined_at file line column`.
    pub(super) fn location(&mut self) -> Result<()> {
        self.bump()?;
        let loc = self.place()?;
        let mut inlined_at = None;
        while self.is(b',') && self.ahead.kind == Kind::Word && matches!(self.ahead.text, "function_name" | "inlined_at") {
            self.bump()?;
            if self.bump()?.text == "inlined_at" {
                inlined_at = Some(self.place()?);
            } else {
                self.name("the label of a function's name")?;
                self.offset()?;
            }
        }
        self.loc = (Some(loc), inlined_at);
        Ok(())
    }

    fn place(&mut self) -> Result<Loc> {
        let file = self.small("the number of a file")?;
        let line = self.small("a line")?;
        let column = self.small("a column")?;
        Ok(Loc { file, line, column })
    }

    /// A parameter of a function: one variable without an initial value.
    fn parameter(&mut self) -> Result<Variable> {
        let span = self.token.span;
        let variable = self.declaration()?;
        if !matches!(variable.space, Space::Param | Space::Reg) {
            return Err(error(span, "parameters are in `.param` or `.reg`"));
        }
        Ok(variable)
    }
}
