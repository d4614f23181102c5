//! Integer arithmetic (sections 9.7.1 and 9.7.2) against 128-bit arithmetic.

use crate::harness::{Bits, Values, check, run};

/// An integer type: its name, width, signedness.
#[derive(Clone, Copy)]
struct Int {
    name: &'static str,
    bits: u32,
    signed: bool,
}

const TYPES: [Int; 6] = [
    Int { name: "u16", bits: 16, signed: false },
    Int { name: "s16", bits: 16, signed: true },
    Int { name: "u32", bits: 32, signed: false },
    Int { name: "s32", bits: 32, signed: true },
    Int { name: "u64", bits: 64, signed: false },
    Int { name: "s64", bits: 64, signed: true },
];

impl Int {
    /// The value that a pattern stands for.
    fn value(self, bits: Bits) -> i128 {
        let unsigned = i128::from(bits & (u64::MAX >> (64 - self.bits)));
        if self.signed && unsigned >> (self.bits - 1) != 0 { unsigned - (1 << self.bits) } else { unsigned }
    }

    /// The low bits of a value.
    fn wrap(self, value: i128) -> Bits {
        (value as u64) & (u64::MAX >> (64 - self.bits))
    }

    fn class(self) -> &'static str {
        class(self.bits)
    }

    fn range(self) -> (i128, i128) {
        if self.signed { (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1) } else { (0, (1 << self.bits) - 1) }
    }

    fn clamp(self, value: i128) -> Bits {
        let (least, most) = self.range();
        self.wrap(value.clamp(least, most))
    }
}

fn class(bits: u32) -> &'static str {
    match bits {
        16 => "b16",
        32 => "b32",
        _ => "b64",
    }
}

/// Checks `op d, a, b` against a function of values.
fn two(op: &str, ty: Int, oracle: impl Fn(i128, i128) -> i128) {
    let rows = Values::new(1).integers(&[ty.bits; 2], 400);
    let body = format!("{op}.{} %d, %a, %b;", ty.name);
    check(&body, &[ty.class(); 2], ty.class(), &rows, |v| ty.wrap(oracle(ty.value(v[0]), ty.value(v[1]))));
}

/// Checks `op d, a, b, c`.
fn three(op: &str, ty: Int, oracle: impl Fn(i128, i128, i128) -> i128) {
    let rows = Values::new(2).integers(&[ty.bits; 3], 400);
    let body = format!("{op}.{} %d, %a, %b, %c;", ty.name);
    check(&body, &[ty.class(); 3], ty.class(), &rows, |v| ty.wrap(oracle(ty.value(v[0]), ty.value(v[1]), ty.value(v[2]))));
}

/// Sections 9.7.1.1 to 9.7.1.3, 9.7.1.8, 9.7.1.9, 9.7.1.12, 9.7.1.13.
#[test]
fn of_two_sources() {
    for ty in TYPES {
        two("add", ty, |a, b| a + b);
        two("sub", ty, |a, b| a - b);
        two("mul.lo", ty, |a, b| a.wrapping_mul(b));
        two("min", ty, Ord::min);
        two("max", ty, Ord::max);
        // The manual leaves division by zero open; a GPU gives all ones, and here the remainder is the dividend.
        two("div", ty, |a, b| if b == 0 { -1 } else { a / b });
        two("rem", ty, |a, b| if b == 0 { a } else { a % b });
        // 64-bit products need all 128 bits, signed or not.
        two("mul.hi", ty, |a, b| match (ty.signed, ty.bits) {
            (false, 64) => ((a as u128 * b as u128) >> 64) as i128,
            _ => (a * b) >> ty.bits,
        });
    }
}

/// `.sat` of `.s32` (sections 9.7.1.1, 9.7.1.2, 9.7.1.4, 9.7.1.6), `.relu` (sections 9.7.1.12 and 9.7.1.13).
#[test]
fn clamped() {
    let ty = TYPES[3];
    let clamp = |v: i128| v.clamp(i32::MIN.into(), i32::MAX.into());
    two("add.sat", ty, |a, b| clamp(a + b));
    two("sub.sat", ty, |a, b| clamp(a - b));
    three("mad.hi.sat", ty, |a, b, c| clamp(((a * b) >> 32) + c));
    three("mad24.hi.sat", ty, |a, b, c| clamp(((s24(a) * s24(b)) >> 16) + c));
    two("min.relu", ty, |a, b| a.min(b).max(0));
    two("max.relu", ty, |a, b| a.max(b).max(0));
}

/// The low 24 bits, sign-extended.
fn s24(value: i128) -> i128 {
    let low = value & 0xff_ffff;
    if low >> 23 != 0 { low - (1 << 24) } else { low }
}

/// Sections 9.7.1.4 to 9.7.1.7.
#[test]
fn of_three_sources() {
    for ty in TYPES {
        three("mad.lo", ty, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
        three("mad.hi", ty, |a, b, c| match (ty.signed, ty.bits) {
            (false, 64) => ((a as u128 * b as u128) >> 64) as i128 + c,
            _ => ((a * b) >> ty.bits) + c,
        });
        three("sad", ty, |a, b, c| c + (a - b).abs());
    }
    let (u32_type, s32_type) = (TYPES[2], TYPES[3]);
    let low = |v: i128| v & 0xff_ffff;
    two("mul24.lo", u32_type, |a, b| low(a) * low(b));
    two("mul24.hi", u32_type, |a, b| (low(a) * low(b)) >> 16);
    two("mul24.lo", s32_type, |a, b| s24(a) * s24(b));
    two("mul24.hi", s32_type, |a, b| (s24(a) * s24(b)) >> 16);
    three("mad24.lo", u32_type, |a, b, c| low(a) * low(b) + c);
    three("mad24.hi", u32_type, |a, b, c| ((low(a) * low(b)) >> 16) + c);
    three("mad24.lo", s32_type, |a, b, c| s24(a) * s24(b) + c);
    three("mad24.hi", s32_type, |a, b, c| ((s24(a) * s24(b)) >> 16) + c);
}

/// `.wide` (sections 9.7.1.3 and 9.7.1.4): twice the width, exact.
#[test]
fn wide_products() {
    for ty in &TYPES[..4] {
        let wide = Int { bits: 2 * ty.bits, ..*ty };
        let rows = Values::new(3).integers(&[ty.bits, ty.bits, wide.bits], 400);
        let body = format!("mad.wide.{} %d, %a, %b, %c;", ty.name);
        check(&body, &[ty.class(), ty.class(), wide.class()], wide.class(), &rows, |v| {
            wide.wrap(ty.value(v[0]) * ty.value(v[1]) + wide.value(v[2]))
        });
        let rows = Values::new(4).integers(&[ty.bits; 2], 400);
        let body = format!("mul.wide.{} %d, %a, %b;", ty.name);
        check(&body, &[ty.class(); 2], wide.class(), &rows, |v| wide.wrap(ty.value(v[0]) * ty.value(v[1])));
    }
}

/// Sections 9.7.1.10 and 9.7.1.11; the smallest value wraps.
#[test]
fn signs() {
    for ty in TYPES.into_iter().filter(|ty| ty.signed) {
        let rows = Values::new(5).integers(&[ty.bits], 400);
        for (op, oracle) in [("abs", i128::abs as fn(i128) -> i128), ("neg", |v: i128| -v)] {
            let body = format!("{op}.{} %d, %a;", ty.name);
            check(&body, &[ty.class()], ty.class(), &rows, |v| ty.wrap(oracle(ty.value(v[0]))));
        }
    }
}

/// An operation and what it computes.
type Binary<'a> = (&'static str, &'a dyn Fn(i128, i128) -> i128);

/// Packed halves (sections 9.7.1.1, 9.7.1.12, 9.7.1.13): each half alone, without carries between them.
#[test]
fn packed_halves() {
    let rows = Values::new(6).integers(&[32; 2], 1000);
    for (ty, signed) in [("u16x2", false), ("s16x2", true)] {
        let half = Int { name: "", bits: 16, signed };
        let both = |v: &[Bits], f: &dyn Fn(i128, i128) -> i128| {
            let part = |shift: u32| half.wrap(f(half.value(v[0] >> shift), half.value(v[1] >> shift)));
            part(0) | part(16) << 16
        };
        let ops: [Binary<'_>; 3] = [("add", &|a, b| a + b), ("min", &Ord::min), ("max", &Ord::max)];
        for (op, oracle) in ops {
            check(&format!("{op}.{ty} %d, %a, %b;"), &["b32"; 2], "b32", &rows, |v| both(v, oracle));
        }
        if signed {
            check("min.s16x2.relu %d, %a, %b;", &["b32"; 2], "b32", &rows, |v| both(v, &|a, b| a.min(b).max(0)));
            check("max.relu.s16x2 %d, %a, %b;", &["b32"; 2], "b32", &rows, |v| both(v, &|a, b| a.max(b).max(0)));
        }
    }
}

/// Sections 9.7.1.23 and 9.7.1.24.
#[test]
fn dot_products() {
    let rows = Values::new(7).integers(&[32; 3], 1000);
    let part = |word: u64, at: u32, bits: u32, signed: bool| Int { name: "", bits, signed }.value(word >> at);
    for (a_type, a_signed) in [("u32", false), ("s32", true)] {
        for (b_type, b_signed) in [("u32", false), ("s32", true)] {
            check(&format!("dp4a.{a_type}.{b_type} %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| {
                let sum: i128 = (0..4).map(|i| part(v[0], 8 * i, 8, a_signed) * part(v[1], 8 * i, 8, b_signed)).sum();
                (sum + i128::from(v[2])) as u32 as u64
            });
            for (mode, first) in [("lo", 0), ("hi", 2)] {
                check(&format!("dp2a.{mode}.{a_type}.{b_type} %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| {
                    let product = |i: u32| part(v[0], 16 * i, 16, a_signed) * part(v[1], 8 * (first + i), 8, b_signed);
                    (product(0) + product(1) + i128::from(v[2])) as u32 as u64
                });
            }
        }
    }
}

/// Section 9.7.2: each instruction of a chain sees the carry of the one before it, lane by lane.
#[test]
fn carry_chains() {
    let rows = Values::new(8).integers(&[64; 2], 1500);
    let split = "mov.b64 {%t0, %t1}, %a;\nmov.b64 {%t2, %t3}, %b;\n";
    let join = "mov.b64 %d, {%t4, %t5};";
    check(&format!("{split}add.cc.u32 %t4, %t0, %t2;\naddc.u32 %t5, %t1, %t3;\n{join}"), &["b64"; 2], "b64", &rows, |v| {
        v[0].wrapping_add(v[1])
    });
    check(&format!("{split}sub.cc.s32 %t4, %t0, %t2;\nsubc.s32 %t5, %t1, %t3;\n{join}"), &["b64"; 2], "b64", &rows, |v| {
        v[0].wrapping_sub(v[1])
    });
    // 64 bits times 64, low 64 bits: the chain that the manual shows.
    let body = "mul.lo.u32 %t4, %t0, %t2;\nmul.hi.u32 %t5, %t0, %t2;\nmad.lo.cc.u32 %t5, %t1, %t2, %t5;\n\
                madc.hi.u32 %t6, %t1, %t2, 0;\nmad.lo.cc.u32 %t5, %t0, %t3, %t5;\n";
    check(&format!("{split}{body}{join}"), &["b64"; 2], "b64", &rows, |v| v[0].wrapping_mul(v[1]));
    // The third word of the full product.
    let body = format!(
        "{body}madc.hi.cc.u32 %t6, %t0, %t3, %t6;\naddc.u32 %t7, 0, 0;\nmad.lo.cc.u32 %t6, %t1, %t3, %t6;\nmadc.hi.u32 %t7, %t1, %t3, %t7;\n"
    );
    check(&format!("{split}{body}mov.b64 %d, {{%t6, %t7}};"), &["b64"; 2], "b64", &rows, |v| {
        ((u128::from(v[0]) * u128::from(v[1])) >> 64) as u64
    });
}

/// What each instruction of the chain itself computes, of all types, with the flag off and on.
#[test]
fn carries_by_type() {
    for ty in TYPES {
        let rows = Values::new(9).integers(&[ty.bits, ty.bits, ty.bits, 32], 300);
        let inputs = [ty.class(), ty.class(), ty.class(), "pred"];
        // Sets the flag where %e holds.
        let set = "selp.u32 %t0, 1, 0, %e;\nadd.cc.u32 %t1, %t0, 0xffffffff;\n";
        let unsigned = Int { signed: false, ..ty };
        let flag = |v: &[Bits]| i128::from(v[3] & 1);
        let name = ty.name;
        let product = |v: &[Bits], high: bool| {
            let (a, b) = (ty.value(v[0]), ty.value(v[1]));
            let wide = if ty.bits == 64 && !ty.signed { (a as u128).wrapping_mul(b as u128) as i128 } else { a.wrapping_mul(b) };
            let high_part = if ty.bits == 64 && !ty.signed { ((a as u128 * b as u128) >> 64) as i128 } else { wide >> ty.bits };
            i128::from(ty.wrap(if high { high_part } else { wide }))
        };
        let sum = |v: &[Bits]| unsigned.value(v[0]) + unsigned.value(v[1]);
        let difference = |v: &[Bits]| unsigned.value(v[0]) - unsigned.value(v[1]);
        check(&format!("{set}addc.{name} %d, %a, %b;"), &inputs, ty.class(), &rows, |v| ty.wrap(sum(v) + flag(v)));
        check(&format!("{set}subc.{name} %d, %a, %b;"), &inputs, ty.class(), &rows, |v| ty.wrap(difference(v) - 1 + flag(v)));
        check(&format!("{set}madc.lo.{name} %d, %a, %b, %c;"), &inputs, ty.class(), &rows, |v| {
            ty.wrap(product(v, false) + unsigned.value(v[2]) + flag(v))
        });
        check(&format!("{set}madc.hi.{name} %d, %a, %b, %c;"), &inputs, ty.class(), &rows, |v| {
            ty.wrap(product(v, true) + unsigned.value(v[2]) + flag(v))
        });
        if ty.bits == 16 {
            continue;
        }
        // The flag that comes out, read back by adding it to zero.
        let read = "addc.u32 %d, 0, 0;";
        let over = |v: i128| u64::from(v >> ty.bits != 0);
        let scratch = if ty.bits == 64 { "%w1" } else { "%t2" };
        check(&format!("add.cc.{name} {scratch}, %a, %b;\n{read}"), &inputs, "b32", &rows, |v| over(sum(v)));
        check(&format!("{set}addc.cc.{name} {scratch}, %a, %b;\n{read}"), &inputs, "b32", &rows, |v| over(sum(v) + flag(v)));
        // A subtraction sets it where nothing is borrowed, as the assembler folds it: 5 - 3 sets it, 3 - 5 does not.
        check(&format!("sub.cc.{name} {scratch}, %a, %b;\n{read}"), &inputs, "b32", &rows, |v| u64::from(difference(v) >= 0));
        check(&format!("{set}subc.cc.{name} {scratch}, %a, %b;\n{read}"), &inputs, "b32", &rows, |v| {
            u64::from(difference(v) - 1 + flag(v) >= 0)
        });
        for (part, high) in [("lo", false), ("hi", true)] {
            check(&format!("{set}madc.{part}.cc.{name} {scratch}, %a, %b, %c;\n{read}"), &inputs, "b32", &rows, |v| {
                over(product(v, high) + unsigned.value(v[2]) + flag(v))
            });
            check(&format!("mad.{part}.cc.{name} {scratch}, %a, %b, %c;\n{read}"), &inputs, "b32", &rows, |v| {
                over(product(v, high) + unsigned.value(v[2]))
            });
        }
    }
    // `.sat` clamps what the flag is part of.
    let rows = Values::new(10).integers(&[32, 32, 32, 32], 300);
    let s32_type = TYPES[3];
    let set = "selp.u32 %t0, 1, 0, %e;\nadd.cc.u32 %t1, %t0, 0xffffffff;\n";
    let inputs = ["b32", "b32", "b32", "pred"];
    check(&format!("{set}addc.sat.s32 %d, %a, %b;"), &inputs, "b32", &rows, |v| {
        s32_type.clamp(s32_type.value(v[0]) + s32_type.value(v[1]) + i128::from(v[3] & 1))
    });
    check(&format!("{set}subc.sat.s32 %d, %a, %b;"), &inputs, "b32", &rows, |v| {
        s32_type.clamp(s32_type.value(v[0]) - s32_type.value(v[1]) - 1 + i128::from(v[3] & 1))
    });
}

/// The flag belongs to the lanes that executed: under a guard the others keep theirs.
#[test]
fn guarded_carries() {
    let rows = Values::new(11).integers(&[32, 32], 200);
    // Lanes where %b is odd set the flag; the others clear it first and do not execute the second instruction.
    let body = "add.cc.u32 %t1, 0, 0;\n@%b add.cc.u32 %t1, 0xffffffff, 0xffffffff;\naddc.u32 %d, %a, 0;";
    check(body, &["b32", "pred"], "b32", &rows, |v| u64::from((v[0] as u32).wrapping_add((v[1] & 1) as u32)));
}

/// SIMD video instructions (section 9.7.18): parts alone, or summed onto c.
#[test]
fn video() {
    let rows = Values::new(12).integers(&[32; 3], 600);
    for (count, bits) in [(2u32, 16u32), (4, 8)] {
        for (a_type, b_type) in [("u32", "u32"), ("u32", "s32"), ("s32", "u32"), ("s32", "s32")] {
            let value = |word: u64, i: u32, ty: &str| Int { name: "", bits, signed: ty == "s32" }.value(word >> (i * bits));
            let ops: [Binary<'_>; 6] = [
                ("vadd", &|a, b| a + b),
                ("vsub", &|a, b| a - b),
                ("vavrg", &|a, b| if a + b >= 0 { (a + b + 1) >> 1 } else { (a + b) >> 1 }),
                ("vabsdiff", &|a, b| (a - b).abs()),
                ("vmin", &Ord::min),
                ("vmax", &Ord::max),
            ];
            for (op, oracle) in ops {
                let parts =
                    |v: &[Bits]| (0..count).map(|i| oracle(value(v[0], i, a_type), value(v[1], i, b_type))).collect::<Vec<_>>();
                for d_type in ["u32", "s32"] {
                    let d = Int { name: "", bits, signed: d_type == "s32" };
                    let head = format!("{op}{count}.{d_type}.{a_type}.{b_type}");
                    let pack = |parts: Vec<Bits>| parts.iter().enumerate().fold(0, |word, (i, p)| word | p << (i as u32 * bits));
                    check(&format!("{head} %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| {
                        pack(parts(v).into_iter().map(|p| d.wrap(p)).collect())
                    });
                    check(&format!("{head}.sat %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| {
                        pack(parts(v).into_iter().map(|p| d.clamp(p)).collect())
                    });
                    check(&format!("{head}.add %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| {
                        (i128::from(v[2]) + parts(v).iter().sum::<i128>()) as u32 as u64
                    });
                }
            }
        }
    }
}

/// Literals are as wide as the type; what is too large wraps, as in the assembler.
#[test]
fn literals() {
    let rows = vec![vec![5]];
    assert_eq!(run("add.s16 %d, %a, -6;", &["b16"], "b16", &rows), [0xffff]);
    assert_eq!(run("add.s32 %d, %a, 0x1FFFFFFFF;", &["b32"], "b32", &rows), [4]);
    assert_eq!(run("sub.s64 %d, %a, -1;", &["b64"], "b64", &rows), [6]);
    assert_eq!(run("mul.wide.s32 %d, %a, -2;", &["b32"], "b64", &rows), [(-10i64) as u64]);
    assert_eq!(run("mul.wide.u32 %d, %a, -2;", &["b32"], "b64", &rows), [5 * 0xffff_fffe]);
    assert_eq!(run("shr.s64 %d, %a, 300;", &["b64"], "b64", &rows), [0]);
    assert_eq!(run("min.s64 %d, %a, -9;", &["b64"], "b64", &rows), [(-9i64) as u64]);
}
