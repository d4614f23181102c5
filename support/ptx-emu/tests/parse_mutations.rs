//! Damaged PTX of every kind: parser and decoder answer with a module or with an error inside the text, and soon.

use proptest::prelude::*;
use proptest::sample::Index;
use ptx_emu::Module;
use ptx_emu::parse::{parse, parse_bytes};
use std::sync::LazyLock;

/// The real modules, the short ones first.
static MODULES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ptx");
    let mut modules: Vec<Vec<u8>> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ptx"))
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    modules.sort_by_key(Vec::len);
    assert!(modules.len() >= 5);
    modules
});

/// Pieces of PTX that mean something, put where they do not belong.
const PIECES: &[&str] = &[
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "<",
    ">",
    ",",
    ";",
    ":",
    "@",
    "!",
    "|",
    "+",
    "-",
    "=",
    ".",
    "%",
    "/*",
    "*/",
    "//",
    "\"",
    "\n",
    "\0",
    "_",
    "0f3F800000",
    "0x",
    "18446744073709551615",
    "1e308",
    "?",
    "<<",
    "0xFF(",
    "generic(",
    ".reg .b32 %r<1048576>;",
    ".branchtargets L<65535>;",
    ".loc 1 2 3",
    ".entry",
    ".func",
    ".section .debug {",
    ".pragma \"x\";",
    "@p",
    "call (a), f, (b), c;",
    "{{{{{{{{",
    "((((((((",
    "é",
    "[1][1]",
];

/// One way to damage a text.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Delete(Index, usize),
    Truncate(Index),
    Insert(Index, usize),
    Repeat(Index, usize, usize),
    Splice(Index, Index, usize, usize),
    Swap(Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 1u8..).prop_map(|(i, bits)| Damage::Flip(i, bits)),
        (at(), 1usize..200).prop_map(|(i, n)| Damage::Delete(i, n)),
        at().prop_map(Damage::Truncate),
        (at(), 0..PIECES.len()).prop_map(|(i, piece)| Damage::Insert(i, piece)),
        (at(), 1usize..60, 2usize..400).prop_map(|(i, n, times)| Damage::Repeat(i, n, times)),
        (at(), at(), 0usize..5, 1usize..400).prop_map(|(i, j, from, n)| Damage::Splice(i, j, from, n)),
        (at(), at()).prop_map(|(i, j)| Damage::Swap(i, j)),
    ]
}

impl Damage {
    fn apply(&self, text: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        let len = text.len();
        match self {
            Damage::Flip(i, bits) => text[i.index(len)] ^= bits,
            Damage::Delete(i, n) => drop(text.drain(i.index(len)..(i.index(len) + n).min(len))),
            Damage::Truncate(i) => text.truncate(i.index(len)),
            Damage::Insert(i, piece) => drop(text.splice(i.index(len)..i.index(len), PIECES[*piece].bytes())),
            Damage::Repeat(i, n, times) => {
                let piece = text[i.index(len)..(i.index(len) + n).min(len)].repeat(*times);
                text.splice(i.index(len)..i.index(len), piece);
            }
            Damage::Splice(i, j, from, n) => {
                let other = &MODULES[*from];
                let start = j.index(other.len());
                let piece = other[start..(start + n).min(other.len())].to_vec();
                text.splice(i.index(len)..i.index(len), piece);
            }
            Damage::Swap(i, j) => text.swap(i.index(len), j.index(len)),
        }
    }
}

/// Parses, and decodes what parses; an error must name a place in the text, or the one behind its end.
fn check(bytes: &[u8]) {
    let parsed = parse_bytes(bytes);
    assert!(parsed.as_ref().err().is_none_or(|error| error.message.len() < 300), "a long message: {parsed:?}");
    let decoded = parsed.and_then(|_| match std::str::from_utf8(bytes) {
        Ok(text) => Module::parse(text).map(drop),
        Err(_) => panic!("bytes that are no text have parsed"),
    });
    let Err(error) = decoded else { return };
    let lines: Vec<&[u8]> = bytes.split(|&c| c == b'\n').collect();
    let line = lines.get(error.line as usize - 1).unwrap_or_else(|| panic!("no such line: {error}"));
    assert!(error.column >= 1 && error.column as usize <= line.len() + 1, "no such column: {error}");
    assert!(!error.message.is_empty(), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn damaged_modules(which in 0usize..2, damages in prop::collection::vec(damage(), 1..6)) {
        let mut text = MODULES[which].clone();
        for damage in &damages {
            damage.apply(&mut text);
        }
        check(&text);
    }

    #[test]
    fn damaged_large_modules(which in 2usize..5, damages in prop::collection::vec(damage(), 1..3)) {
        let mut text = MODULES[which].clone();
        for damage in &damages {
            damage.apply(&mut text);
        }
        check(&text);
    }

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&bytes);
    }

    #[test]
    fn arbitrary_text(body in "\\PC{0,200}") {
        check(body.as_bytes());
        check(format!(".version 9.0 .target sm_90a {body}").as_bytes());
        check(format!(".version 9.0 .target sm_90a .entry k() {{ {body}").as_bytes());
    }

    /// Tokens of PTX in any order reach deeper than characters do.
    #[test]
    fn arbitrary_pieces(pieces in prop::collection::vec((0..PIECES.len(), any::<bool>()), 0..60)) {
        let body: String = pieces.iter().map(|&(piece, space)| format!("{}{}", PIECES[piece], if space { " " } else { "a" })).collect();
        check(format!(".version 9.0 .target sm_90a {body}").as_bytes());
        check(format!(".version 9.0 .target sm_90a .entry k() {{ {body}").as_bytes());
        check(format!(".version 9.0 .target sm_90a .global .u32 x[2] = {{ {body}").as_bytes());
        check(format!(".version 9.0 .target sm_90a .entry k() {{ mov.u32 a, {body}").as_bytes());
    }
}

/// Every prefix of a real module, and the module without each of its lines in turn.
#[test]
fn prefixes_and_missing_lines() {
    let text = std::str::from_utf8(&MODULES[0]).unwrap();
    for end in 0..text.len() {
        check(&text.as_bytes()[..end]);
    }
    let lines: Vec<&str> = text.lines().collect();
    let mut parsed = 0;
    for skipped in 0..lines.len() {
        let kept: Vec<&str> = lines.iter().enumerate().filter(|&(i, _)| i != skipped).map(|(_, &line)| line).collect();
        let kept = kept.join("\n");
        check(kept.as_bytes());
        parsed += usize::from(parse(&kept).is_ok());
    }
    assert!(parsed > lines.len() / 2 && parsed < lines.len());
}

/// What fuzzing found, and texts built to be slow: each is a file in tests/data/damaged.
#[test]
fn kept_findings() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/damaged");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        check(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0);
}

/// Texts of a few megabytes that are linear to read only if nothing is read again and again.
#[test]
fn long_texts() {
    let head = ".version 9.0 .target sm_90a\n";
    let n = 1 << 18;
    for text in [
        "/*".repeat(n),
        "/**/".repeat(n),
        "//\n".repeat(n),
        "\"".repeat(n),
        format!(".file 1 \"{}", "x".repeat(n)),
        format!(".global .u32 {};", "x".repeat(n)),
        format!(".global .u32 {}x;", "x,".repeat(n)),
        format!(".global .u32 x{} = {{{}}};", "[1]".repeat(n), "{},".repeat(n)),
        format!(".global .u32 x[] = {{{}1}};", "1,".repeat(n)),
        format!(".global .u32 x = {}1;", "1+".repeat(n)),
        format!(".global .f64 x = {}.0;", "1".repeat(n)),
        format!(".global .u32 x = 0{};", "0".repeat(n)),
        format!(".entry k() {{ mov{} a; }}", ".x".repeat(n)),
        format!(".entry k() {{ mov a{}; }}", ".x".repeat(n)),
        format!(".entry k() {{ mov {}a; }}", "a,".repeat(n)),
        format!(".entry k() {{ {} }}", "ret;".repeat(n / 4)),
        format!(".entry k() {{ {} }}", "L:".repeat(n / 4)),
        format!(".entry k() {{ {} }}", "L:/* x */".repeat(n / 4)),
        format!(".entry k() {{ {} }}", "@p{".repeat(n)),
        format!(".section .debug_x {{ {} }}", ".b8 1,2".repeat(n / 4)),
        "@@DWARF x\n".repeat(n / 4),
        "é".repeat(n),
    ] {
        check(format!("{head}{text}").as_bytes());
    }
}
