//! Comparisons and selections (sections 9.7.3.1, 9.7.6 and 9.7.7).

use crate::harness::{Bits, Values, check};
use ptx_emu::formats::{bf16_to_f32, f16_to_f32};
use std::cmp::Ordering;

/// How values of a type are compared: None where one is NaN.
fn order(ty: &str, ftz: bool, a: Bits, b: Bits) -> Option<Ordering> {
    let float = |x: Bits| -> f64 {
        let flush = |x: Bits, exponent: Bits, sign: Bits| if ftz && x & exponent == 0 { x & sign } else { x };
        match ty {
            "f16" => f64::from(f16_to_f32(flush(x, 0x7c00, 0x8000) as u16)),
            "bf16" => f64::from(bf16_to_f32(x as u16)),
            "f32" => f64::from(f32::from_bits(flush(x, 0x7f80_0000, 0x8000_0000) as u32)),
            _ => f64::from_bits(x),
        }
    };
    match ty {
        "s16" => Some((a as i16).cmp(&(b as i16))),
        "s32" => Some((a as i32).cmp(&(b as i32))),
        "s64" => Some((a as i64).cmp(&(b as i64))),
        "f16" | "bf16" | "f32" | "f64" => float(a).partial_cmp(&float(b)),
        _ => Some(a.cmp(&b)),
    }
}

/// The manual's tables of comparison operators.
fn holds(relation: &str, order: Option<Ordering>) -> bool {
    use Ordering::{Equal, Greater, Less};
    match relation {
        "eq" => order == Some(Equal),
        "ne" => matches!(order, Some(Less | Greater)),
        "lt" | "lo" => order == Some(Less),
        "le" | "ls" => matches!(order, Some(Less | Equal)),
        "gt" | "hi" => order == Some(Greater),
        "ge" | "hs" => matches!(order, Some(Greater | Equal)),
        "num" => order.is_some(),
        "nan" => order.is_none(),
        unordered => order.is_none() || holds(&unordered[..2], order),
    }
}

const TYPES: [(&str, &str, u32, &str); 13] = [
    ("b16", "b16", 16, "bits"),
    ("u16", "b16", 16, "unsigned"),
    ("s16", "b16", 16, "signed"),
    ("b32", "b32", 32, "bits"),
    ("u32", "b32", 32, "unsigned"),
    ("s32", "b32", 32, "signed"),
    ("b64", "b64", 64, "bits"),
    ("u64", "b64", 64, "unsigned"),
    ("s64", "b64", 64, "signed"),
    ("f16", "b16", 10, "float"),
    ("bf16", "b16", 7, "float"),
    ("f32", "b32", 23, "float"),
    ("f64", "b64", 52, "float"),
];

fn relations(kind: &str) -> &'static [&'static str] {
    match kind {
        "bits" => &["eq", "ne"],
        "signed" => &["eq", "ne", "lt", "le", "gt", "ge"],
        "unsigned" => &["eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"],
        _ => &["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"],
    }
}

/// Pairs of values, equal ones among them, and a predicate.
fn rows(class: &str, detail: u32, kind: &str) -> Vec<Vec<Bits>> {
    let mut values = Values::new(50);
    let bits = match class {
        "b16" => 16,
        "b32" => 32,
        _ => 64,
    };
    let mut rows = if kind == "float" { values.floats(2, bits, detail, 300) } else { values.integers(&[bits; 2], 300) };
    for _ in 0..50 {
        let same = if kind == "float" { values.float(bits, detail) } else { values.integer(bits) };
        rows.push(vec![same, same]);
    }
    for row in &mut rows {
        row.push(values.next() & 1);
    }
    rows
}

fn combine(name: &str, t: bool, c: bool) -> bool {
    match name {
        ".and" => t & c,
        ".or" => t | c,
        ".xor" => t ^ c,
        _ => t,
    }
}

/// Section 9.7.6.2 and 9.7.7.2: every relation of every type; p = BoolOp(t, c), q = BoolOp(!t, c).
#[test]
fn setp() {
    for (ty, class, detail, kind) in TYPES {
        let rows = rows(class, detail, kind);
        let inputs = [class, class, "pred"];
        for relation in relations(kind) {
            for ftz in [false, true] {
                if ftz && !matches!(ty, "f16" | "f32") {
                    continue;
                }
                let flag = if ftz { ".ftz" } else { "" };
                let t = |v: &[Bits]| holds(relation, order(ty, ftz, v[0], v[1]));
                check(&format!("setp.{relation}{flag}.{ty} %d, %a, %b;"), &inputs, "pred", &rows, |v| u64::from(t(v)));
                for bool_op in [".and", ".or", ".xor"] {
                    let body = format!("setp.{relation}{bool_op}{flag}.{ty} %d, %a, %b, !%c;");
                    check(&body, &inputs, "pred", &rows, |v| u64::from(combine(bool_op, t(v), v[2] & 1 == 0)));
                    if !matches!(ty, "f16" | "bf16") {
                        let body = format!("setp.{relation}{bool_op}{flag}.{ty} %p|%d, %a, %b, %c;");
                        check(&body, &inputs, "pred", &rows, |v| u64::from(combine(bool_op, !t(v), v[2] & 1 == 1)));
                    }
                }
                if !matches!(ty, "f16" | "bf16") {
                    let body = format!("setp.{relation}{flag}.{ty} %p|%d, %a, %b;");
                    check(&body, &inputs, "pred", &rows, |v| u64::from(!t(v)));
                }
            }
        }
    }
}

/// Section 9.7.6.1 and 9.7.7.1: 1.0 for floating-point destinations, all ones for integers.
#[test]
fn set() {
    for (ty, class, detail, kind) in TYPES {
        let rows = rows(class, detail, kind);
        let inputs = [class, class, "pred"];
        let destinations: &[(&str, &str, Bits)] = match ty {
            "f16" => &[("u32", "b32", 0xffff_ffff), ("s16", "b16", 0xffff), ("f16", "b16", 0x3c00), ("bf16", "b16", 0x3f80)],
            "bf16" => &[("s32", "b32", 0xffff_ffff), ("u16", "b16", 0xffff), ("bf16", "b16", 0x3f80)],
            _ => &[("u32", "b32", 0xffff_ffff), ("s32", "b32", 0xffff_ffff), ("f32", "b32", 0x3f80_0000), ("f16", "b16", 0x3c00)],
        };
        for &(to, to_class, value) in destinations {
            for relation in relations(kind) {
                for bool_op in ["", ".and", ".or", ".xor"] {
                    let third = if bool_op.is_empty() { "" } else { ", %c" };
                    let body = format!("set.{relation}{bool_op}.{to}.{ty} %d, %a, %b{third};");
                    check(&body, &inputs, to_class, &rows, |v| {
                        let t = holds(relation, order(ty, false, v[0], v[1]));
                        if combine(bool_op, t, v[2] & 1 == 1) { value } else { 0 }
                    });
                }
            }
        }
    }
}

/// Packed floats: `setp` writes p of the lower halves and q of the upper ones, `set` each half by itself (section 9.7.7).
#[test]
fn packed() {
    for (ty, one) in [("f16", 0x3c00u64), ("bf16", 0x3f80)] {
        let single = rows("b16", if ty == "f16" { 10 } else { 7 }, "float");
        let packed: Vec<Vec<Bits>> =
            single.iter().zip(single.iter().rev()).map(|(l, h)| vec![l[0] | h[0] << 16, l[1] | h[1] << 16, l[2]]).collect();
        let inputs = ["b32", "b32", "pred"];
        for relation in relations("float") {
            for ftz in [false, true] {
                if ftz && ty == "bf16" {
                    continue;
                }
                let flag = if ftz { ".ftz" } else { "" };
                let t = |v: &[Bits], shift: u32| holds(relation, order(ty, ftz, v[0] >> shift & 0xffff, v[1] >> shift & 0xffff));
                let c = |v: &[Bits]| v[2] & 1 == 1;
                check(&format!("setp.{relation}{flag}.{ty}x2 %d|%q, %a, %b;"), &inputs, "pred", &packed, |v| u64::from(t(v, 0)));
                check(&format!("setp.{relation}{flag}.{ty}x2 %p|%d, %a, %b;"), &inputs, "pred", &packed, |v| u64::from(t(v, 16)));
                check(&format!("setp.{relation}.xor{flag}.{ty}x2 %p|%d, %a, %b, %c;"), &inputs, "pred", &packed, |v| {
                    u64::from(t(v, 16) ^ c(v))
                });
                let halves =
                    |v: &[Bits], value: u64| (if t(v, 0) { value } else { 0 }) | (if t(v, 16) { value << 16 } else { 0 });
                check(&format!("set.{relation}{flag}.{ty}x2.{ty}x2 %d, %a, %b;"), &inputs, "b32", &packed, |v| halves(v, one));
                check(&format!("set.{relation}{flag}.u32.{ty}x2 %d, %a, %b;"), &inputs, "b32", &packed, |v| halves(v, 0xffff));
                check(&format!("set.{relation}.and{flag}.s32.{ty}x2 %d, %a, %b, %c;"), &inputs, "b32", &packed, |v| {
                    if c(v) { halves(v, 0xffff) } else { 0 }
                });
            }
        }
    }
}

/// Sections 9.7.6.3 and 9.7.6.4.
#[test]
fn selections() {
    for (class, bits) in [("b16", 16), ("b32", 32), ("b64", 64)] {
        let rows = Values::new(51).integers(&[bits, bits, 32], 200);
        check(&format!("selp.{class} %d, %a, %b, %c;"), &[class, class, "pred"], class, &rows, |v| {
            v[if v[2] & 1 == 1 { 0 } else { 1 }]
        });
        check(&format!("selp.{class} %d, %a, %b, !%c;"), &[class, class, "pred"], class, &rows, |v| {
            v[usize::from(v[2] & 1 == 1)]
        });
        check(&format!("selp.{class} %d, %a, 7, %c;"), &[class, class, "pred"], class, &rows, |v| {
            if v[2] & 1 == 1 { v[0] } else { 7 }
        });
        let rows: Vec<Vec<Bits>> = {
            let mut values = Values::new(52);
            (0..400).map(|_| vec![values.next(), values.next(), values.float(32, 23)]).collect()
        };
        let inputs = [class, class, "b32"];
        check(&format!("slct.{class}.s32 %d, %a, %b, %c;"), &inputs, class, &rows, |v| v[usize::from((v[2] as i32) < 0)]);
        // NaN selects the second, -0 the first; with `.ftz` so does a negative subnormal.
        check(&format!("slct.{class}.f32 %d, %a, %b, %c;"), &inputs, class, &rows, |v| {
            v[usize::from(!matches!(order("f32", false, v[2], 0), Some(Ordering::Greater | Ordering::Equal)))]
        });
        check(&format!("slct.ftz.{class}.f32 %d, %a, %b, %c;"), &inputs, class, &rows, |v| {
            v[usize::from(!matches!(order("f32", true, v[2], 0), Some(Ordering::Greater | Ordering::Equal)))]
        });
    }
}

/// A class of numbers, and what exponent field, fraction and largest exponent field say of it.
type Class = (&'static str, fn((u64, u64, u64)) -> bool);

/// Section 9.7.3.1: zero is finite and a number, neither normal nor subnormal.
#[test]
fn testp() {
    for (ty, class, bits, fraction) in [("f32", "b32", 32, 23), ("f64", "b64", 64, 52)] {
        let rows = Values::new(53).floats(1, bits, fraction, 300);
        let top = (1u64 << (bits - 1 - fraction)) - 1;
        let fields = |x: u64| (x >> fraction & top, x & ((1 << fraction) - 1), top);
        let classes: [Class; 6] = [
            ("finite", |(e, _, top)| e != top),
            ("infinite", |(e, f, top)| e == top && f == 0),
            ("number", |(e, f, top)| e != top || f == 0),
            ("notanumber", |(e, f, top)| e == top && f != 0),
            ("normal", |(e, _, top)| e != top && e != 0),
            ("subnormal", |(e, f, _)| e == 0 && f != 0),
        ];
        for (name, oracle) in classes {
            check(&format!("testp.{name}.{ty} %d, %a;"), &[class], "pred", &rows, |v| u64::from(oracle(fields(v[0]))));
        }
    }
}
