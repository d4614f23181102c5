//! Which opcodes are decoded. The list in `data/opcodes.txt` says what the assembler takes out of every combination of modifiers and types tried here:
//! all of it must decode, and nothing else.

use crate::harness::HEAD;
use ptx_emu::Module;
use std::collections::BTreeSet;

const ACCEPTED: &str = include_str!("../data/opcodes.txt");

const TYPES: [&str; 23] = [
    "b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64", "b128", "u16x2", "s16x2", "f16", "f16x2",
    "bf16", "bf16x2", "f32", "f64", "pred", "tf32",
];

/// Accepted by the assembler but absent from the manual, or of a meaning that the manual does not pin down: errors here.
fn left_out(opcode: &str) -> bool {
    let rounded_half = ["rz", "rm", "rp"].iter().any(|r| opcode.starts_with(&format!("fma.{r}."))) && opcode.contains("bf16");
    let flushed_double = opcode.starts_with("rcp.r") && opcode.ends_with(".ftz.f64");
    opcode.contains(".oob") || rounded_half || flushed_double
}

/// Registers of a type: 1 to 5 of each exist.
fn register(ty: &str, n: u32) -> String {
    let class = match ty {
        "pred" => "p",
        "b128" => "q",
        "f32" => "f",
        "f64" => "g",
        "b64" | "u64" | "s64" => "d",
        "b8" | "u8" | "s8" | "b16" | "u16" | "s16" | "f16" | "bf16" | "e4m3x2" | "e5m2x2" => "h",
        _ => "r",
    };
    format!("%{class}{n}")
}

fn decodes(instructions: &str) -> Result<(), String> {
    let text = format!(
        "{HEAD}.entry k()\n{{\n.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .b128 %q<9>; .reg .f32 %f<9>; .reg .f64 %g<9>;\n\
         {instructions}\nret;\n}}\n"
    );
    Module::parse(&text).map(|_| ()).map_err(|error| error.to_string())
}

/// Every choice of one of each list, joined.
fn combinations(lists: &[&[&str]]) -> Vec<String> {
    lists.iter().fold(vec![String::new()], |all, list| {
        all.iter().flat_map(|head| list.iter().map(move |m| format!("{head}{m}"))).collect()
    })
}

/// Opcodes and instructions to try.
struct Candidates(Vec<(String, String)>);

impl Candidates {
    fn push(&mut self, opcode: String, operands: String) {
        let instruction = format!("{opcode} {operands};");
        self.0.push((opcode, instruction));
    }

    /// `op.modifiers.type` with a destination and sources all of the type.
    fn uniform(&mut self, op: &str, modifiers: &[&[&str]], sources: u32) {
        for modifiers in combinations(modifiers) {
            for ty in TYPES {
                let operands: Vec<String> = (1..=sources + 1).map(|n| register(ty, n)).collect();
                self.push(format!("{op}{modifiers}.{ty}"), operands.join(", "));
            }
        }
    }
}

const ROUNDINGS: [&str; 5] = ["", ".rn", ".rz", ".rm", ".rp"];
const FTZ: [&str; 2] = ["", ".ftz"];
const SAT: [&str; 2] = ["", ".sat"];
const CC: [&str; 2] = ["", ".cc"];

fn arithmetic(all: &mut Candidates) {
    for op in ["add", "sub"] {
        all.uniform(op, &[&ROUNDINGS, &FTZ, &SAT, &CC], 2);
        all.uniform(op, &[&[".relu", ".wide", ".lo", ".approx"]], 2);
    }
    for op in ["addc", "subc"] {
        all.uniform(op, &[&["", ".cc", ".sat"]], 2);
    }
    let parts = ["", ".rn", ".rz", ".rm", ".rp", ".lo", ".hi"];
    all.uniform("mul", &[&parts, &FTZ, &SAT, &CC], 2);
    all.uniform("mad", &[&parts, &FTZ, &SAT, &CC], 3);
    all.uniform("fma", &[&ROUNDINGS, &FTZ, &SAT, &["", ".relu"], &["", ".oob"]], 3);
    all.uniform("madc", &[&["", ".lo", ".hi"], &SAT, &CC], 3);
    all.uniform("mul24", &[&["", ".lo", ".hi", ".lo.sat"]], 2);
    all.uniform("mad24", &[&["", ".lo", ".hi", ".lo.sat", ".hi.sat"]], 3);
    for (ty, wide) in [("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64"), ("u64", "b128"), ("f32", "f64")] {
        let (d, a, b, c) = (register(wide, 1), register(ty, 2), register(ty, 3), register(wide, 4));
        all.push(format!("mul.wide.{ty}"), format!("{d}, {a}, {b}"));
        all.push(format!("mad.wide.{ty}"), format!("{d}, {a}, {b}, {c}"));
    }
    all.uniform("sad", &[&SAT], 3);
    all.uniform("rem", &[&SAT], 2);
    all.uniform("div", &[&["", ".rn", ".rz", ".rm", ".rp", ".approx", ".full"], &FTZ, &SAT], 2);
    all.uniform("abs", &[&FTZ, &SAT], 1);
    all.uniform("neg", &[&FTZ, &SAT], 1);
    for op in ["min", "max"] {
        all.uniform(op, &[&FTZ, &["", ".NaN"], &["", ".xorsign.abs", ".abs"], &["", ".relu"]], 2);
    }
    for op in ["rcp", "sqrt"] {
        all.uniform(op, &[&["", ".rn", ".rz", ".rm", ".rp", ".approx"], &FTZ, &SAT], 1);
    }
    all.uniform("rsqrt", &[&["", ".approx", ".rn"], &FTZ, &SAT], 1);
    for op in ["sin", "cos", "lg2", "ex2", "tanh"] {
        all.uniform(op, &[&["", ".approx"], &FTZ, &SAT], 1);
    }
    all.uniform("copysign", &[&[""]], 2);
    for a in ["s32", "u32", "b32"] {
        for b in ["s32", "u32"] {
            all.push(format!("dp4a.{a}.{b}"), "%r1, %r2, %r3, %r4".into());
            for part in ["", ".lo", ".hi"] {
                all.push(format!("dp2a{part}.{a}.{b}"), "%r1, %r2, %r3, %r4".into());
            }
        }
    }
}

fn logic(all: &mut Candidates) {
    for op in ["and", "or", "xor"] {
        all.uniform(op, &[&[""]], 2);
    }
    for op in ["not", "cnot", "brev", "mov"] {
        all.uniform(op, &[&[""]], 1);
    }
    for ty in TYPES {
        let r = |n| register(ty, n);
        for op in ["shl", "shr"] {
            all.push(format!("{op}.{ty}"), format!("{}, {}, %r3", r(1), r(2)));
        }
        for op in ["popc", "clz", "bfind", "bfind.shiftamt"] {
            all.push(format!("{op}.{ty}"), format!("%r1, {}", r(2)));
        }
        all.push(format!("bfe.{ty}"), format!("{}, {}, %r3, %r4", r(1), r(2)));
        all.push(format!("bfi.{ty}"), format!("{}, {}, {}, %r4, %r5", r(1), r(2), r(3)));
        all.push(format!("fns.{ty}"), format!("{}, {}, %r3, %r4", r(1), r(2)));
        for mode in ["", ".clamp", ".wrap"] {
            all.push(format!("szext{mode}.{ty}"), format!("{}, {}, %r3", r(1), r(2)));
            all.push(format!("bmsk{mode}.{ty}"), format!("{}, {}, %r3", r(1), r(2)));
            for direction in [".l", ".r", ""] {
                all.push(format!("shf{direction}{mode}.{ty}"), format!("{}, {}, {}, %r4", r(1), r(2), r(3)));
            }
        }
        for mode in ["", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16"] {
            all.push(format!("prmt.{ty}{mode}"), format!("{}, {}, {}, %r4", r(1), r(2), r(3)));
        }
        all.push(format!("lop3.{ty}"), format!("{}, {}, {}, {}, 0x1f", r(1), r(2), r(3), r(4)));
        for combine in [".and", ".or", ".xor"] {
            all.push(format!("lop3{combine}.{ty}"), format!("{}|%p1, {}, {}, {}, 0x1f, %p2", r(1), r(2), r(3), r(4)));
        }
        all.push(format!("selp.{ty}"), format!("{}, {}, {}, %p1", r(1), r(2), r(3)));
        for selector in ["s32", "f32", "u32", "f64", "s64"] {
            for ftz in FTZ {
                let c = register(selector, 4);
                all.push(format!("slct{ftz}.{ty}.{selector}"), format!("{}, {}, {}, {c}", r(1), r(2), r(3)));
            }
        }
        for class in ["finite", "infinite", "number", "notanumber", "normal", "subnormal", "nan"] {
            all.push(format!("testp.{class}.{ty}"), format!("%p1, {}", r(2)));
        }
    }
}

fn exchanges(all: &mut Candidates) {
    for sync in ["", ".sync"] {
        for mode in [".all", ".any", ".uni", ".ballot", ""] {
            all.push(format!("vote{sync}{mode}.pred"), "%p1, %p2, %r3".into());
            all.push(format!("vote{sync}{mode}.b32"), "%r1, %p2, %r3".into());
        }
        for ty in TYPES {
            let (d, a) = (register(ty, 1), register(ty, 2));
            for mode in [".any", ".all", ""] {
                all.push(format!("match{mode}{sync}.{ty}"), format!("%r1, {a}, %r3"));
            }
            for mode in [".up", ".down", ".bfly", ".idx", ""] {
                all.push(format!("shfl{sync}{mode}.{ty}"), format!("{d}|%p1, {a}, %r3, %r4, %r5"));
            }
            for op in [".add", ".min", ".max", ".and", ".or", ".xor", ".min.NaN", ".min.abs", ".max.abs.NaN"] {
                all.push(format!("redux{sync}{op}.{ty}"), format!("{d}, {a}, %r3"));
            }
        }
        all.push(format!("elect{sync}"), "%r1|%p1, %r2".into());
    }
    for ty in TYPES {
        all.push(format!("activemask.{ty}"), register(ty, 1));
    }
}

fn conversions(all: &mut Candidates) {
    const SCALAR: [&str; 12] = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "f16", "bf16", "f32", "f64"];
    for to in SCALAR {
        for from in SCALAR {
            for rounding in ["", ".rn", ".rz", ".rm", ".rp", ".rna", ".rni", ".rzi", ".rmi", ".rpi"] {
                for other in combinations(&[&FTZ, &["", ".sat", ".relu", ".satfinite", ".relu.satfinite"]]) {
                    all.push(format!("cvt{rounding}{other}.{to}.{from}"), format!("{}, {}", register(to, 1), register(from, 2)));
                }
            }
        }
    }
    for rounding in ["", ".rn", ".rz", ".rm", ".rp", ".rna"] {
        for other in ["", ".relu", ".satfinite", ".relu.satfinite", ".ftz", ".sat"] {
            all.push(format!("cvt{rounding}{other}.tf32.f32"), "%r1, %f1".into());
            for to in ["f16x2", "bf16x2", "e4m3x2", "e5m2x2"] {
                all.push(format!("cvt{rounding}{other}.{to}.f32"), format!("{}, %f1, %f2", register(to, 1)));
                for from in ["f16x2", "bf16x2", "e4m3x2", "e5m2x2"] {
                    all.push(format!("cvt{rounding}{other}.{to}.{from}"), format!("{}, {}", register(to, 1), register(from, 2)));
                }
            }
        }
    }
    for to in ["u2", "s2", "u4", "s4", "u8", "s8", "u16", "s16", "u32", "s32"] {
        for from in ["s32", "u32", "s16"] {
            for sat in SAT {
                all.push(format!("cvt.pack{sat}.{to}.{from}"), "%r1, %r2, %r3".into());
                for third in ["b32", "u32"] {
                    all.push(format!("cvt.pack{sat}.{to}.{from}.{third}"), "%r1, %r2, %r3, %r4".into());
                }
            }
        }
    }
}

/// What the assembler takes decodes; of all else that is tried, nothing does.
#[test]
fn as_the_assembler() {
    let accepted: BTreeSet<&str> = ACCEPTED.lines().filter(|line| !line.starts_with('#')).collect();
    let mut all = Candidates(vec![]);
    arithmetic(&mut all);
    logic(&mut all);
    exchanges(&mut all);
    conversions(&mut all);
    let mut tried = BTreeSet::new();
    let mut wrong = vec![];
    for (opcode, instruction) in &all.0 {
        let wanted = accepted.contains(opcode.as_str()) && !left_out(opcode);
        match decodes(instruction) {
            Ok(()) if !wanted => wrong.push(format!("{instruction} decodes, but the assembler refuses it")),
            Err(error) if wanted => wrong.push(format!("{instruction} is accepted by the assembler: {error}")),
            _ => {}
        }
        tried.insert(opcode.as_str());
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.0.len(), wrong.join("\n"));
    for opcode in accepted {
        assert!(tried.contains(opcode), "{opcode} was not tried");
    }
}

/// Comparisons by type (sections 9.7.6 and 9.7.7): bits are equal or not; signed integers have an order; unsigned ones have it by two names;
/// floats also by names that hold for NaN.
#[test]
fn comparisons() {
    let bits = ["eq", "ne"].as_slice();
    let signed = ["eq", "ne", "lt", "le", "gt", "ge"].as_slice();
    let unsigned = ["eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"].as_slice();
    let floats = ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"].as_slice();
    let all: BTreeSet<&str> = [bits, signed, unsigned, floats].concat().into_iter().chain(["foo"]).collect();
    let relations = |ty: &str| match ty {
        "b16" | "b32" | "b64" => bits,
        "s16" | "s32" | "s64" => signed,
        "u16" | "u32" | "u64" => unsigned,
        "f16" | "f16x2" | "bf16" | "bf16x2" | "f32" | "f64" => floats,
        _ => &[],
    };
    let flushes = |ty: &str| matches!(ty, "f32" | "f16" | "f16x2");
    for ty in TYPES {
        let (a, b) = (register(ty, 2), register(ty, 3));
        for &relation in &all {
            let has = relations(ty).contains(&relation);
            for ftz in FTZ {
                let legal = has && (ftz.is_empty() || flushes(ty));
                let both = legal && !matches!(ty, "f16" | "bf16");
                for (combine, p, known) in [
                    ("", "", true),
                    (".and", ", %p3", true),
                    (".or", ", !%p3", true),
                    (".xor", ", 1", true),
                    (".nand", ", %p3", false),
                ] {
                    for (to, legal) in [("%p1", legal), ("%p1|%p2", both), ("_|%p2", both), ("%p1|_", both)] {
                        let text = format!("setp.{relation}{combine}{ftz}.{ty} {to}, {a}, {b}{p};");
                        assert_eq!(decodes(&text).is_ok(), legal && known, "{text}");
                    }
                    for to in ["u16", "s16", "b16", "u32", "s32", "b32", "u64", "f16", "bf16", "f16x2", "bf16x2", "f32", "f64"] {
                        let goes = match (ty, to) {
                            ("f16x2", "f16x2") | ("bf16x2", "bf16x2") | (_, "u32" | "s32") => true,
                            ("f16x2" | "bf16x2", _) => false,
                            ("f16" | "bf16", "u16" | "s16") => true,
                            ("bf16", "bf16") | ("f16", "f16" | "bf16") => true,
                            ("f16" | "bf16", _) => false,
                            (_, "f16" | "bf16" | "f32") => true,
                            _ => false,
                        };
                        let text = format!("set.{relation}{combine}{ftz}.{to}.{ty} {}, {a}, {b}{p};", register(to, 1));
                        assert_eq!(decodes(&text).is_ok(), legal && known && goes, "{text}");
                    }
                }
            }
        }
    }
}

/// What is wrong is named, with its place.
#[test]
fn errors_name_what_is_wrong() {
    for (text, wanted) in [
        ("add.foo.s32 %r1, %r2, %r3;", "add.foo.s32: no modifier .foo"),
        ("frobnicate.s32 %r1, %r2;", "unknown instruction frobnicate.s32"),
        ("add.s32 %r1, %r2;", "add.s32 takes 3 operands, not 2"),
        ("add.s16 %h1, %r2, %h3;", "a register of 32 bits where the instruction takes .s16"),
        ("add.s32 %h1, %r2, %r3;", "a register of 16 bits"),
        ("add.f32 %f1, %f2, 1;", "a literal of another type"),
        ("add.s32 %r1, %r2, 0f3F800000;", "a literal of another type"),
        ("add.f16 %h1, %h2, 0x3c00;", "a literal of another type"),
        ("add.s32 _, %r2, %r3;", "cannot be discarded"),
        ("add.s32 %r1, %p1, %r3;", "%p1 is a predicate"),
        ("setp.lo.s32 %p1, %r1, %r2;", "this type has no comparison .lo"),
        ("fma.f32 %f1, %f2, %f3, %f4;", "needs a rounding"),
        ("ex2.f32 %f1, %f2;", "needs .approx"),
        ("mul.s32 %r1, %r2, %r3;", "needs .lo, .hi or .wide"),
        ("lop3.b32 %r1, %r2, %r3, %r4, %r5;", "must be an integer literal"),
        ("lop3.and.b32 %r1, %r2, %r3, %r4, 1, %p1;", "d|p"),
        ("mov.b64 %d1, {%r1, %r2, %r3};", "cannot be made of 3 parts"),
        ("mov.u64 {%r1, %r2}, %d1;", "vectors are moved as"),
        ("mov.b32 %r1, %clock64;", "a special register of 64 bits"),
        ("mov.u64 %d1, %tid.x;", "a special register of 32 bits"),
        ("shfl.idx.b32 %r1, %r2, %r3, %r4;", "without .sync"),
        ("vote.ballot.b32 %r1, %p1;", "without .sync"),
        ("redux.sync.min.NaN.f32 %f1, %f2, -1;", "no modifier .NaN"),
        ("redux.sync.min.f32 %f1, %f2, -1;", "not a type"),
        ("match.any.sync.b32 %r1|%p1, %r2, -1;", "writes no predicate"),
        ("elect.sync %r1, -1;", "d|p"),
        ("cvt.rn.e4m3x2.f32 %h1, %f1, %f2;", "needs .satfinite"),
        ("cvt.s32.f32 %r1, %f1;", "needs .rni"),
        ("cvt.f32.f64 %f1, %g1;", "needs a rounding"),
        ("cvt.s64.s32 %r1, %r2;", "cannot hold"),
    ] {
        let error = decodes(text).expect_err(text);
        assert!(error.contains(wanted), "{text}: {error}");
        assert!(error.starts_with(&format!("{}:", HEAD.lines().count() + 4)), "{text}: {error}");
    }
}

/// Modifiers come in any order, as the assembler takes them.
#[test]
fn any_order() {
    for text in [
        "add.ftz.rn.f32 %f1, %f2, %f3;",
        "add.f32.rn %f1, %f2, %f3;",
        "max.s32.relu %r1, %r2, %r3;",
        "min.s16x2.relu %r1, %r2, %r3;",
        "cvt.f64.bf16.rp %g1, %h1;",
        "prmt.f4e.b32 %r1, %r2, %r3, %r4;",
        "vote.all.sync.pred %p1, %p2, -1;",
    ] {
        decodes(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

/// Operands as the compiler and the assembler have them.
#[test]
fn operands() {
    for text in [
        "mov.b64 {%r1, _}, %d1;",
        "mov.b64 {_, %r1}, %d1;",
        "mov.b64 %d1, {%r1, 0};",
        "mov.b64 {%h1, %h2, %h3, %h4}, %d1;",
        "mov.b32 {%h1, %h2}, %r1;",
        "mov.b128 %q1, {%d1, %d2};",
        "mov.b128 {%d1, %d2}, %q1;",
        "mov.b128 %q1, %q2;",
        "mov.pred %p1, 1;",
        "mov.pred %p1, !%p2;",
        "mov.pred %p1, %is_explicit_cluster;",
        "and.pred %p1, %p2, !%p3;",
        "not.pred %p1, 1;",
        "selp.b32 %r1, 0f3F800000, %r2, !%p1;",
        "mov.b32 %r1, 0f3F800000;",
        "mov.b64 %d1, 0d3FF0000000000000;",
        "add.f32 %f1, %f2, 1.5;",
        "add.f64 %g1, %g2, 0f3F800000;",
        "and.b32 %r1, %r2, 0f3F800000;",
        "lop3.and.b32 _|%p1, %r2, %r3, %r4, 0x3f, !%p2;",
        "lop3.b32 %r1, %r2, %r3, %r4, -1;",
        "elect.sync _|%p1, 0xffffffff;",
        "vote.sync.all.pred %p1, !%p2, -1;",
        "vote.sync.any.pred %p1, 1, -1;",
        "match.all.sync.b32 _|%p1, %r2, %r3;",
        "cvt.u32.u16 %d1, %r1;",
        "cvt.s32.s8 %d1, %d2;",
        "cvt.u8.u32 %r1, %r2;",
        "cvt.rn.f32.s32 %d1, %r1;",
        "cvt.rn.f16x2.f32 %d1, %f1, %f2;",
        "cvt.u32.u16 %r1, 5;",
        "cvt.u64.u32 %d1, %tid.x;",
        "mov.u16 %h1, %tid.x;",
        "mov.u64 %d1, %gridid;",
        "mov.u32 %r1, %gridid;",
    ] {
        decodes(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    for text in [
        "cvt.rn.satfinite.e4m3x2.f32 %r1, %f1, %f2;",
        "cvt.rna.tf32.f32 %d1, %f2;",
        "cvt.u32.u32 %h1, %r2;",
        "shl.b32 %r1, %r2, %h1;",
        "shl.b64 %d1, %d2, %d3;",
        "bfe.u32 %r1, %r2, %r3, %d1;",
        "testp.number.f32 %p1|%p2, %f1;",
        "shfl.sync.idx.b32 _|%p1, %r2, %r3, %r4, -1;",
        "mov.b32 %r1, 1.0;",
        "mov.u32 %r1, 0f3F800000;",
        "mov.u32 %r1, %is_explicit_cluster;",
        "selp.b32 %r1, 1.0, %r2, %p1;",
        "selp.u32 %r1, 0f3F800000, %r2, %p1;",
        "vote.sync.all %p1, %p2, -1;",
    ] {
        assert!(decodes(text).is_err(), "{text}");
    }
}
