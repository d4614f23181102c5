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
        self.targets(&mut module)?;
        if self.is_dot("address_size") {
            self.bump()?;
            module.address_size = match self.token.kind {
                Kind::Int(32, _) => 32,
                Kind::Int(64, _) => 64,
                _ => return self.expected("32 or 64"),
            };
            self.bump()?;
        }
        loop {
            match self.token.kind {
                Kind::End => return Ok(module),
                Kind::Punct(b'@') if self.ahead.kind == Kind::Punct(b'@') => self.skip_line()?,
                Kind::DotWord => self.module_directive(&mut module)?,
                _ => return self.expected("a directive"),
            }
        }
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

    /// `.target sm_90a, debug`, once or more.
    fn targets(&mut self, module: &mut Module) -> Result<()> {
        if !self.is_dot("target") {
            return self.expected("`.target`, which follows `.version`");
        }
        let span = self.token.span;
        while self.is_dot("target") {
            self.bump()?;
            module.targets.push(self.declared("a target such as `sm_90a`")?);
            while self.eat(b',')? {
                module.targets.push(self.declared("a target")?);
            }
        }
        if !module.targets.iter().any(|target| target.starts_with("sm_") || target.starts_with("compute_")) {
            return Err(error(span, "no architecture such as `sm_90a` among the targets"));
        }
        Ok(())
    }

    fn module_directive(&mut self, module: &mut Module) -> Result<()> {
        let span = self.token.span;
        let word = self.dot().unwrap_or("");
        match word {
            "version" | "target" | "address_size" => {
                return Err(error(span, format!("`.{word}` belongs to the beginning of the module, once")));
            }
            "file" => {
                self.bump()?;
                let number = self.small("the number of a file")?;
                let name = self.string("the name of a file")?;
                // A time stamp and a size may follow.
                for _ in 0..2 {
                    if self.eat(b',')? {
                        self.constant_bits()?;
                    }
                }
                module.files.push((number, name));
            }
            "section" => self.section()?,
            "pragma" => {
                self.pragma()?;
            }
            _ => self.linked(module)?,
        }
        Ok(())
    }

    /// A variable or function and the linkage before it.
    fn linked(&mut self, module: &mut Module) -> Result<()> {
        if self.is_dot("attribute") {
            self.attributes()?;
        }
        let mut linkage = None;
        while let Some(word @ ("visible" | "extern" | "weak" | "common")) = self.dot() {
            if linkage.is_some() {
                return Err(error(self.token.span, "a second linkage directive"));
            }
            linkage = Some(word);
            self.bump()?;
        }
        let is_extern = linkage == Some("extern");
        match self.dot() {
            Some("entry" | "func") => {
                if linkage == Some("common") {
                    return Err(error(self.token.span, "`.common` is for `.global` variables"));
                }
                let function = self.function(is_extern)?;
                module.functions.push(function);
                Ok(())
            }
            Some(space @ ("global" | "const" | "shared")) => {
                if linkage == Some("common") && space != "global" {
                    return Err(error(self.token.span, "`.common` is for `.global` variables"));
                }
                let variables = self.variables(is_extern)?;
                module.variables.extend(variables);
                Ok(())
            }
            Some(_) => Err(error(self.token.span, format!("unsupported directive {}", self.found()))),
            None => self.expected("a variable or a function"),
        }
    }

    /// `.section .debug_info { ... }`: DWARF, which is dropped.
    fn section(&mut self) -> Result<()> {
        self.bump()?;
        if self.token.kind != Kind::DotWord {
            return self.expected("the name of a section");
        }
        self.bump()?;
        self.expect(b'{')?;
        loop {
            match self.token.kind {
                Kind::Punct(b'}') => {
                    self.bump()?;
                    return Ok(());
                }
                Kind::DotWord | Kind::Word | Kind::Int(..) | Kind::Punct(b',' | b':' | b'+' | b'-') => {
                    self.bump()?;
                }
                _ => return self.expected("DWARF data or `}`"),
            }
        }
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
