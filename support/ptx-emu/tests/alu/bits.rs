//! Logic, shifts and operations on bits (sections 9.7.1.14 to 9.7.1.22, 9.7.8 and 9.7.9.7), bit by bit as the manual's pseudocode has them.

use crate::harness::{Bits, Values, check, run};

/// An operation and what it computes.
type Binary = (&'static str, fn(u64, u64) -> u64);

/// Sections 9.7.8.1 to 9.7.8.5.
#[test]
fn logic() {
    for bits in [16, 32, 64] {
        let class = ["b16", "b32", "b64"][(bits as usize / 32).min(2)];
        let rows = Values::new(40).integers(&[bits; 2], 300);
        let mask = u64::MAX >> (64 - bits);
        let ops: [Binary; 3] = [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)];
        for (op, oracle) in ops {
            check(&format!("{op}.b{bits} %d, %a, %b;"), &[class; 2], class, &rows, |v| oracle(v[0], v[1]));
        }
        let rows = Values::new(41).integers(&[bits], 300);
        check(&format!("not.b{bits} %d, %a;"), &[class], class, &rows, |v| !v[0] & mask);
        check(&format!("cnot.b{bits} %d, %a;"), &[class], class, &rows, |v| u64::from(v[0] == 0));
    }
}

/// The same of predicates, in every combination.
#[test]
fn predicates() {
    let rows: Vec<Vec<Bits>> = (0..4).map(|i| vec![i & 1, i >> 1]).collect();
    let ops: [Binary; 3] = [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)];
    for (op, oracle) in ops {
        check(&format!("{op}.pred %d, %a, %b;"), &["pred"; 2], "pred", &rows, |v| oracle(v[0] & 1, v[1] & 1));
        check(&format!("{op}.pred %d, !%a, %b;"), &["pred"; 2], "pred", &rows, |v| oracle(!v[0] & 1, v[1] & 1));
        check(&format!("{op}.pred %d, %a, 1;"), &["pred"; 2], "pred", &rows, |v| oracle(v[0] & 1, 1));
    }
    check("not.pred %d, %a;", &["pred"; 2], "pred", &rows, |v| !v[0] & 1);
    check("mov.pred %d, !%b;", &["pred"; 2], "pred", &rows, |v| !v[1] & 1);
}

/// Sections 9.7.8.8 and 9.7.8.9: amounts beyond the width clamp, they do not wrap.
#[test]
fn shifts() {
    for bits in [16u32, 32, 64] {
        let class = ["b16", "b32", "b64"][(bits as usize / 32).min(2)];
        let mask = u64::MAX >> (64 - bits);
        let rows = Values::new(42).integers(&[bits, 32], 500);
        check(&format!("shl.b{bits} %d, %a, %b;"), &[class, "b32"], class, &rows, |v| {
            if v[1] >= u64::from(bits) { 0 } else { v[0] << v[1] & mask }
        });
        for unsigned in ["b", "u"] {
            check(&format!("shr.{unsigned}{bits} %d, %a, %b;"), &[class, "b32"], class, &rows, |v| {
                if v[1] >= u64::from(bits) { 0 } else { v[0] >> v[1] }
            });
        }
        check(&format!("shr.s{bits} %d, %a, %b;"), &[class, "b32"], class, &rows, |v| {
            let value = (v[0] << (64 - bits)) as i64 >> (64 - bits);
            (value >> v[1].min(63)) as u64 & mask
        });
    }
}

/// Section 9.7.8.7.
#[test]
fn funnel_shifts() {
    let rows = Values::new(43).integers(&[32; 3], 1500);
    for (mode, wrap) in [("clamp", false), ("wrap", true)] {
        let amount = |v: &[Bits]| if wrap { v[2] & 31 } else { v[2].min(32) };
        let pair = |v: &[Bits]| u128::from(v[1] << 32 | v[0]);
        check(&format!("shf.l.{mode}.b32 %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| {
            (pair(v) << amount(v) >> 32) as u32 as u64
        });
        check(&format!("shf.r.{mode}.b32 %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| (pair(v) >> amount(v)) as u32 as u64);
    }
}

/// Section 9.7.8.6: all 256 tables.
#[test]
fn tables() {
    let rows = Values::new(44).integers(&[32; 3], 40);
    let few: Vec<_> = rows.iter().step_by(13).cloned().collect();
    for table in 0..256u64 {
        let oracle = |v: &[Bits]| {
            (0..32).fold(0, |d, i| {
                let row = (v[0] >> i & 1) << 2 | (v[1] >> i & 1) << 1 | (v[2] >> i & 1);
                d | (table >> row & 1) << i
            })
        };
        check(&format!("lop3.b32 %d, %a, %b, %c, {table};"), &["b32"; 3], "b32", &few, oracle);
    }
    // The manual's examples: immLut = F(0xF0, 0xCC, 0xAA).
    check("lop3.b32 %d, %a, %b, %c, 0x80;", &["b32"; 3], "b32", &rows, |v| v[0] & v[1] & v[2]);
    check("lop3.b32 %d, %a, %b, %c, 0xFE;", &["b32"; 3], "b32", &rows, |v| v[0] | v[1] | v[2]);
    check("lop3.b32 %d, %a, %b, %c, 0x40;", &["b32"; 3], "b32", &rows, |v| v[0] & v[1] & !v[2]);
    check("lop3.b32 %d, %a, %b, %c, 0x1A;", &["b32"; 3], "b32", &rows, |v| (v[0] & v[1] | v[2]) ^ v[0]);
    // With a predicate: (d != 0) BoolOp q; the register may be discarded.
    let rows = Values::new(45).integers(&[32, 32, 32, 32], 100);
    let inputs = ["b32", "b32", "b32", "pred"];
    let and = |v: &[Bits]| v[0] & v[1] & v[2];
    check("lop3.and.b32 %t0|%d, %a, %b, %c, 0x80, %e;", &inputs, "pred", &rows, |v| u64::from(and(v) != 0) & v[3] & 1);
    check("lop3.or.b32 _|%d, %a, %b, %c, 0x80, !%e;", &inputs, "pred", &rows, |v| u64::from(and(v) != 0) | (!v[3] & 1));
    check("lop3.or.b32 %d|%p, %a, %b, %c, 0x80, %e;", &inputs, "b32", &rows, and);
}

/// Sections 9.7.1.14 to 9.7.1.18.
#[test]
fn counting() {
    for (bits, class) in [(32u32, "b32"), (64, "b64")] {
        let rows = Values::new(46).integers(&[bits], 400);
        let ones = |x: u64| (0..bits).map(|i| x >> i & 1).sum::<u64>();
        let highest = |x: u64| (0..bits).rev().find(|i| x >> i & 1 == 1).map(u64::from);
        let absent = u64::from(u32::MAX);
        check(&format!("popc.b{bits} %d, %a;"), &[class], "b32", &rows, |v| ones(v[0]));
        check(&format!("clz.b{bits} %d, %a;"), &[class], "b32", &rows, |v| {
            highest(v[0]).map_or(bits.into(), |i| u64::from(bits) - 1 - i)
        });
        check(&format!("brev.b{bits} %d, %a;"), &[class], class, &rows, |v| {
            (0..bits).fold(0, |d, i| d | (v[0] >> i & 1) << (bits - 1 - i))
        });
        check(&format!("bfind.u{bits} %d, %a;"), &[class], "b32", &rows, |v| highest(v[0]).unwrap_or(absent));
        check(&format!("bfind.shiftamt.u{bits} %d, %a;"), &[class], "b32", &rows, |v| {
            highest(v[0]).map_or(absent, |i| u64::from(bits) - 1 - i)
        });
        let folded = |x: u64| if x >> (bits - 1) == 1 { !x & (u64::MAX >> (64 - bits)) } else { x };
        check(&format!("bfind.s{bits} %d, %a;"), &[class], "b32", &rows, |v| highest(folded(v[0])).unwrap_or(absent));
        check(&format!("bfind.shiftamt.s{bits} %d, %a;"), &[class], "b32", &rows, |v| {
            highest(folded(v[0])).map_or(absent, |i| u64::from(bits) - 1 - i)
        });
    }
}

/// Sections 9.7.1.19 and 9.7.1.20: positions and lengths up to 255.
#[test]
fn fields() {
    for (bits, class) in [(32u64, "b32"), (64, "b64")] {
        let mut values = Values::new(47);
        let mut rows = values.integers(&[bits as u32, 32, 32], 500);
        rows.extend((0..2000).map(|_| vec![values.next(), values.next() % 70, values.next() % 70]));
        rows.extend((0..500).map(|_| vec![values.next(), values.next(), values.next()]));
        let msb = bits - 1;
        for (ty, signed) in [("u", false), ("s", true)] {
            check(&format!("bfe.{ty}{bits} %d, %a, %b, %c;"), &[class, "b32", "b32"], class, &rows, |v| {
                let (a, position, length) = (v[0], v[1] & 0xff, v[2] & 0xff);
                let sign = if !signed || length == 0 { 0 } else { a >> (position + length - 1).min(msb) & 1 };
                (0..=msb).fold(0, |d, i| {
                    let bit = if i < length && position + i <= msb { a >> (position + i) & 1 } else { sign };
                    d | bit << i
                })
            });
        }
        let rows: Vec<Vec<Bits>> = rows.into_iter().map(|v| vec![v[0], values.next(), v[1], v[2]]).collect();
        check(&format!("bfi.b{bits} %d, %a, %b, %c, %e;"), &[class, class, "b32", "b32"], class, &rows, |v| {
            let (position, length) = (v[2] & 0xff, v[3] & 0xff);
            (0..length)
                .take_while(|i| position + i <= msb)
                .fold(v[1], |f, i| f & !(1 << (position + i)) | (v[0] >> i & 1) << (position + i))
        });
    }
}

/// Section 9.7.1.17.
#[test]
fn find_nth_set() {
    for (mask, base, offset, wanted) in [
        (0xaaaa_aaaau64, 3u64, 1i32, 3u64),
        (0xaaaa_aaaa, 3, -1, 3),
        (0xaaaa_aaaa, 2, 1, 3),
        (0xaaaa_aaaa, 2, -1, 1),
        (0xaaaa_aaaa, 3, 0, 3),
        (0xaaaa_aaaa, 2, 0, 0xffff_ffff),
        (0xaaaa_aaaa, 0, 16, 31),
        (0xaaaa_aaaa, 0, 17, 0xffff_ffff),
        (0xffff_ffff, 31, -32, 0),
        (0, 0, i32::MIN, 0xffff_ffff),
        (1, 31, i32::MAX, 0xffff_ffff),
    ] {
        let row = vec![mask, base, u64::from(offset as u32)];
        assert_eq!(run("fns.b32 %d, %a, %b, %c;", &["b32"; 3], "b32", &[row]), [wanted], "{mask:#x} {base} {offset}");
    }
}

/// Sections 9.7.1.21 and 9.7.1.22, as the pseudocode has them.
#[test]
fn extension_and_masks() {
    let mut values = Values::new(48);
    let rows: Vec<Vec<Bits>> = (0..80)
        .flat_map(|b| [0, 5, 31, 32, 40, 0xdead_beef, 0xffff_ffff].map(|a| vec![a, b]))
        .chain((0..500).map(|_| vec![values.next() & 0xffff_ffff, values.next() % 40]))
        .collect();
    let ones = |shift: u64| if shift > 31 { 0 } else { u32::MAX << shift };
    for (mode, wrap) in [("clamp", false), ("wrap", true)] {
        for (ty, signed) in [("u32", false), ("s32", true)] {
            check(&format!("szext.{mode}.{ty} %d, %a, %b;"), &["b32"; 2], "b32", &rows, |v| {
                let (a, b, n) = (v[0] as u32, v[1], v[1] & 31);
                let large = b >= 32 && !wrap;
                let mask = if large { 0 } else { ones(n) };
                let sign = n != 0 && !large && signed && a >> (n - 1) & 1 == 1;
                u64::from((a & !mask) | if sign { mask } else { 0 })
            });
        }
        check(&format!("bmsk.{mode}.b32 %d, %a, %b;"), &["b32"; 2], "b32", &rows, |v| {
            let (a, b) = (v[0] & 31, v[1] & 31);
            let (far, wide) = (!wrap && v[0] >= 32, !wrap && v[1] >= 32);
            let from = if far { 0 } else { ones(a) };
            let to = if a + b >= 32 || far || wide {
                0
            } else if b == 0 {
                u32::MAX
            } else {
                ones(a + b)
            };
            u64::from(from & !to)
        });
    }
    assert_eq!(run("bmsk.wrap.b32 %d, 1, 2;", &["b32"], "b32", &[vec![0]]), [6]); // the manual's example
}

/// Section 9.7.9.7: the general form, and the table of modes.
#[test]
fn permutations() {
    let rows = Values::new(49).integers(&[32; 3], 1500);
    let byte = |v: &[Bits], i: u64| (v[1] << 32 | v[0]) >> (8 * i) & 0xff;
    let join = |bytes: [u64; 4]| bytes.iter().rev().fold(0, |word, b| word << 8 | b);
    check("prmt.b32 %d, %a, %b, %c;", &["b32"; 3], "b32", &rows, |v| {
        join([0, 1, 2, 3].map(|i| {
            let choice = v[2] >> (4 * i) & 0xf;
            let picked = byte(v, choice & 7);
            if choice < 8 {
                picked
            } else if picked < 0x80 {
                0
            } else {
                0xff
            }
        }))
    });
    // Bytes from the most significant to the least, for each value of the two selecting bits.
    for (mode, table) in [
        ("f4e", ["3210", "4321", "5432", "6543"]),
        ("b4e", ["5670", "6701", "7012", "0123"]),
        ("rc8", ["0000", "1111", "2222", "3333"]),
        ("ecl", ["3210", "3211", "3222", "3333"]),
        ("ecr", ["0000", "1110", "2210", "3210"]),
        ("rc16", ["1010", "3232", "1010", "3232"]),
    ] {
        check(&format!("prmt.b32.{mode} %d, %a, %b, %c;"), &["b32"; 3], "b32", &rows, |v| {
            table[(v[2] & 3) as usize].bytes().fold(0, |word, c| word << 8 | byte(v, u64::from(c - b'0')))
        });
    }
}
