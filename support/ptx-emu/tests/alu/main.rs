//! Arithmetic, logic, comparisons, conversions and moves: every instruction against an oracle that says the same in other words. Expected values
//! and rules are those of the PTX ISA 9.0; each test names the section.

mod approximations;
mod bits;
mod comparisons;
mod conversions;
mod floats;
mod halves;
mod harness;
mod integers;
mod moves;
mod programs;
mod spellings;
