//! Arithmetic, logic, comparisons, conversions and moves: every instruction against an oracle that says the same in other words. Expected values
//! and rules are those of the PTX ISA 9.0; each test names the section.

mod floats;
mod halves;
mod harness;
mod integers;
mod spellings;
