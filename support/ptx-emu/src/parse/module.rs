//! Directives at module scope (PTX ISA 9.0, sections 11.1, 11.5 and 11.6).

use super::lexer::Kind;
use super::{Parser, Result, error};
use crate::ast::Module;

impl Parser<'_> {
    /// The whole text.
    pub(super) fn module(mut self) -> Result<Module> {
        let mut module = Module { address_size: 64, ..Module::default() };
        if !self.is_dot("version") {
            return self.expected("`.version`, with which a module begins");
        }
        self.bump()?;
        module.version = self.version()?;
        loop {
            match self.token.kind {
                Kind::End => break,
                Kind::Punct(b';') => {
                    self.bump()?;
                }
                Kind::Punct(b'@') if self.ahead.kind == Kind::Punct(b'@') => self.skip_line()?,
                Kind::DotWord => self.module_directive(&mut module)?,
                _ => return self.expected("a directive"),
            }
        }
        if module.targets.is_empty() {
            return self.expected("`.target`");
        }
        Ok(module)
    }

    /// `9.0`
    fn version(&mut self) -> Result<(u32, u32)> {
        let parts = self.token.text.split_once('.').filter(|_| matches!(self.token.kind, Kind::F64(_)));
        match parts.map(|(major, minor)| (major.parse(), minor.parse())) {
            Some((Ok(major), Ok(minor))) => {
                self.bump()?;
                Ok((major, minor))
            }
            _ => self.expected("a version such as `9.0`"),
        }
    }

    fn module_directive(&mut self, module: &mut Module) -> Result<()> {
        let span = self.token.span;
        let word = self.dot().unwrap_or("");
        match word {
            "version" => {
                self.bump()?;
                let version = self.version()?;
                if version != module.version {
                    return Err(error(span, "a second `.version` that differs from the first"));
                }
            }
            "target" => {
                self.bump()?;
                module.targets.push(self.name("a target such as `sm_90a`")?);
                while self.eat(b',')? {
                    module.targets.push(self.name("a target")?);
                }
            }
            "address_size" => {
                self.bump()?;
                module.address_size = match self.token.kind {
                    Kind::Int(32, _) => 32,
                    Kind::Int(64, _) => 64,
                    _ => return self.expected("32 or 64"),
                };
                self.bump()?;
            }
            "file" => {
                self.bump()?;
                let number = self.small("the number of a file")?;
                let name = self.string("the name of a file")?;
                // A time stamp and a size may follow.
                if self.eat(b',')? {
                    self.constant_bits()?;
                    self.expect(b',')?;
                    self.constant_bits()?;
                }
                module.files.push((number, name));
            }
            "section" => self.section()?,
            "loc" => self.location()?,
            "pragma" => {
                self.pragma()?;
            }
            _ => self.linked(module)?,
        }
        Ok(())
    }

    /// A variable or function and the linkage before it.
    fn linked(&mut self, module: &mut Module) -> Result<()> {
        let mut linkage = None;
        while let Some(word @ ("visible" | "extern" | "weak" | "common")) = self.dot() {
            if linkage.is_some() {
                return Err(error(self.token.span, "a second linkage directive"));
            }
            linkage = Some(word);
            self.bump()?;
        }
        if module.targets.is_empty() {
            return self.expected("`.target` before the first declaration");
        }
        let is_extern = linkage == Some("extern");
        match self.dot() {
            Some("entry" | "func") => {
                if linkage == Some("common") {
                    return Err(error(self.token.span, "`.common` is for variables"));
                }
                let function = self.function(is_extern)?;
                module.functions.push(function);
                Ok(())
            }
            Some("global" | "const" | "shared") => {
                let variables = self.variables(is_extern, true)?;
                module.variables.extend(variables);
                Ok(())
            }
            Some(word) => Err(error(self.token.span, format!("unsupported directive `.{word}`"))),
            None => self.expected("a variable or a function"),
        }
    }

    /// `.section .debug_info { ... }`: DWARF, which is dropped.
    fn section(&mut self) -> Result<()> {
        self.bump()?;
        if !matches!(self.token.kind, Kind::DotWord | Kind::Word) {
            return self.expected("the name of a section");
        }
        self.bump()?;
        self.expect(b'{')?;
        let mut depth = 1u64;
        while depth > 0 {
            match self.token.kind {
                Kind::Punct(b'{') => depth += 1,
                Kind::Punct(b'}') => depth -= 1,
                Kind::End => return self.expected("`}` of a section"),
                _ => {}
            }
            self.bump()?;
        }
        Ok(())
    }

    /// `@@DWARF ...`: what compilers wrote before `.section`; dropped to the end of the line.
    fn skip_line(&mut self) -> Result<()> {
        let line = self.token.span.line;
        while self.token.span.line == line && self.token.kind != Kind::End {
            self.bump()?;
        }
        Ok(())
    }
}
