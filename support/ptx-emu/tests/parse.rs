//! The parser on real PTX.

use ptx_emu::parse::parse;

#[test]
fn real_modules_parse() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ptx")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let module = parse(&text).unwrap_or_else(|error| panic!("{}:{error}", path.display()));
        assert_eq!(module.version, (9, 0));
        assert!(module.functions.iter().any(|function| function.is_entry && function.body.is_some()));
    }
}
