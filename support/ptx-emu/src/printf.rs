//! `vprintf`: what a kernel prints.

use crate::cx::Cx;
use crate::fault::{Exec, Fault};
use crate::report::Kind;

/// The bytes of a C string at a generic address, as text.
pub fn c_string(_cx: &mut Cx<'_>, _lane: usize, _address: u64) -> Exec<String> {
    Err(Fault::new(Kind::Unsupported, "printf"))
}

/// Formats like C's printf: `format` is the address of the format, `list` that of the arguments.
pub fn format(_cx: &mut Cx<'_>, _lane: usize, _format: u64, _list: u64) -> Exec<String> {
    Err(Fault::new(Kind::Unsupported, "printf"))
}
