//! Any bytes end in a module or in an error inside the text.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Err(error) = ptx_emu::parse::parse_bytes(bytes) else { return };
    let line = bytes.split(|&c| c == b'\n').nth(error.line as usize - 1).expect("the error names a line of the text");
    assert!(error.column >= 1 && error.column as usize <= line.len() + 1, "no such column: {error}");
    assert!(!error.message.is_empty() && error.message.len() < 300, "{error}");
});
