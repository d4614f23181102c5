//! Instructions that compute from registers: three inputs, one output a thread.

use crate::{Expected, Probe, run};
use v3_gpu::LaunchConfig;

/// What a probe's output register is.
#[derive(Clone, Copy, PartialEq)]
pub enum Out {
    /// `%o`, 32 bits.
    W32,
    /// `%ro`, 64 bits.
    W64,
    /// `%ho`, 16 bits.
    W16,
    /// `%p`.
    Pred,
}

/// The inputs of 32 threads: edges first, then values of a fixed generator.
fn inputs() -> Vec<[u64; 3]> {
    let edges: [[u64; 3]; 14] = [
        [0, 0, 0],
        [1, 2, 3],
        [u64::MAX, 1, 0],
        [0x7fff_ffff, 1, 31],
        [0x8000_0000, 0x8000_0000, 32],
        [0xffff_ffff, 0xffff_ffff, 5],
        [0x8000_0000_0000_0000, 2, 63],
        [0x7fff_ffff_ffff_ffff, 1, 64],
        // As f32: 1.0, -0.0; 3.5, 0.1; inf, 1; NaN, 1; subnormals; large.
        [0x3f80_0000, 0x8000_0000, 0x4000_0000],
        [0x4060_0000, 0x3dcc_cccd, 0xc120_0000],
        [0x7f80_0000, 0x3f80_0000, 0xff80_0000],
        [0x7fc0_0000, 0x3f80_0000, 0x3f80_0000],
        [0x0000_0001, 0x007f_ffff, 0x0080_0000],
        [0x7f7f_ffff, 0x7f7f_ffff, 0xff7f_ffff],
    ];
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state ^ (state >> 29)
    };
    let mut all: Vec<[u64; 3]> = edges.into();
    while all.len() < 32 {
        all.push([next(), next(), next()]);
    }
    all
}

fn ptx(body: &str, out: Out) -> String {
    let store = match out {
        Out::W32 => "cvt.u64.u32 %ro, %o;",
        Out::W64 => "",
        Out::W16 => "cvt.u64.u16 %ro, %ho;",
        Out::Pred => "selp.b64 %ro, 1, 0, %p;",
    };
    format!(
        ".version 8.0
.target sm_90a
.address_size 64
.visible .entry probe(.param .u64 from, .param .u64 to)
{{
    .reg .pred %p, %q, %pa, %pb;
    .reg .b16 %ha, %hb, %ho;
    .reg .b32 %a, %b, %c, %o, %t;
    .reg .b64 %ra, %rb, %rc, %ro, %from, %to, %at;
    ld.param.u64 %from, [from];
    ld.param.u64 %to, [to];
    mov.u32 %t, %tid.x;
    mul.wide.u32 %at, %t, 24;
    add.s64 %from, %from, %at;
    mul.wide.u32 %at, %t, 8;
    add.s64 %to, %to, %at;
    ld.global.u64 %ra, [%from];
    ld.global.u64 %rb, [%from+8];
    ld.global.u64 %rc, [%from+16];
    cvt.u32.u64 %a, %ra;
    cvt.u32.u64 %b, %rb;
    cvt.u32.u64 %c, %rc;
    cvt.u16.u64 %ha, %ra;
    cvt.u16.u64 %hb, %rb;
    {body}
    {store}
    st.global.u64 [%to], %ro;
    ret;
}}
"
    )
}

pub fn probe(
    covers: &'static str,
    section: &'static str,
    out: Out,
    body: &str,
    expected: impl Fn(u64, u64, u64) -> u64,
) -> Probe {
    let text = ptx(body, out);
    let inputs = inputs();
    let words = inputs.iter().map(|&[a, b, c]| expected(a, b, c)).collect();
    let flat: Vec<u64> = inputs.concat();
    Probe {
        name: covers.into(),
        covers: vec![covers],
        section,
        run: Box::new(move |device| run(device, &text, &LaunchConfig::new(1, 32), &flat, 32)),
        expected: Expected::Words(words),
    }
}

pub fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// The bits of a result; a NaN is the canonical one (section 9.7.3).
fn bits(value: f32) -> u64 {
    u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() })
}

/// bf16, round to nearest even.
fn bf16(value: f32) -> u64 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    let rounded = (u64::from(bits) + 0x7fff + u64::from((bits >> 16) & 1)) >> 16;
    rounded & 0xffff
}

/// E4M3, nearest even, finite results saturate at 448, by search over all codes.
fn e4m3(value: f32) -> u64 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = f64::from(value.abs());
    let decode = |code: u64| {
        let (exponent, mantissa) = (code >> 3, (code & 7) as f64);
        if exponent == 0 { mantissa / 8.0 * 2f64.powi(-6) } else { (1.0 + mantissa / 8.0) * 2f64.powi(exponent as i32 - 7) }
    };
    let mut best = 0;
    for code in 0..=0x7e {
        let (here, so_far) = ((decode(code) - magnitude).abs(), (decode(best) - magnitude).abs());
        if here < so_far || (here == so_far && code % 2 == 0) {
            best = code;
        }
    }
    sign | best
}

/// `prmt.b32` in its default mode (section 9.7.8.7).
fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let pick = |i: u32| {
        let nibble = (selector >> (4 * i)) & 15;
        let byte = bytes[(nibble & 7) as usize];
        if nibble & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
    };
    u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)])
}

fn bf16_to_f32(bits: u64) -> f32 {
    f32::from_bits((bits as u32 & 0xffff) << 16)
}

/// `max.bf16x2` of one half: NaN loses against a number; +0 is above -0; two NaNs give the canonical one.
fn max_bf16(a: u64, b: u64) -> u64 {
    let (x, y) = (bf16_to_f32(a), bf16_to_f32(b));
    match (x.is_nan(), y.is_nan()) {
        (true, true) => 0x7fff,
        (true, false) => b & 0xffff,
        (false, true) => a & 0xffff,
        _ if x == y => {
            if x.is_sign_negative() {
                b & 0xffff
            } else {
                a & 0xffff
            }
        }
        _ => {
            if x > y {
                a & 0xffff
            } else {
                b & 0xffff
            }
        }
    }
}

/// `max.f32` and `min.f32`: a NaN loses against a number; -0 is below +0.
fn extreme(a: f32, b: f32, larger: bool) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f32::NAN,
        (true, false) => b,
        (false, true) => a,
        _ if a == b => {
            if a.is_sign_negative() == larger {
                b
            } else {
                a
            }
        }
        _ => {
            if (a > b) == larger {
                a
            } else {
                b
            }
        }
    }
}

pub fn probes() -> Vec<Probe> {
    use Out::{Pred, W16, W32, W64};
    let low = |v: u64| v as u32;
    let mut all = vec![
        // Integers: section 9.7.1.
        probe("add.s32", "9.7.1.1", W32, "add.s32 %o, %a, %b;", move |a, b, _| u64::from(low(a).wrapping_add(low(b)))),
        probe("add.s64", "9.7.1.1", W64, "add.s64 %ro, %ra, %rb;", |a, b, _| a.wrapping_add(b)),
        probe("sub.s32", "9.7.1.2", W32, "sub.s32 %o, %a, %b;", move |a, b, _| u64::from(low(a).wrapping_sub(low(b)))),
        probe("sub.s64", "9.7.1.2", W64, "sub.s64 %ro, %ra, %rb;", |a, b, _| a.wrapping_sub(b)),
        probe("mul.lo.s32", "9.7.1.3", W32, "mul.lo.s32 %o, %a, %b;", move |a, b, _| u64::from(low(a).wrapping_mul(low(b)))),
        probe("mul.lo.s64", "9.7.1.3", W64, "mul.lo.s64 %ro, %ra, %rb;", |a, b, _| a.wrapping_mul(b)),
        probe("mul.wide.u32", "9.7.1.3", W64, "mul.wide.u32 %ro, %a, %b;", move |a, b, _| u64::from(low(a)) * u64::from(low(b))),
        probe("div.u32", "9.7.1.8", W32, "or.b32 %b, %b, 1; div.u32 %o, %a, %b;", move |a, b, _| {
            u64::from(low(a) / (low(b) | 1))
        }),
        probe("div.u64", "9.7.1.8", W64, "or.b64 %rb, %rb, 1; div.u64 %ro, %ra, %rb;", |a, b, _| a / (b | 1)),
        probe("min.u32", "9.7.1.12", W32, "min.u32 %o, %a, %b;", move |a, b, _| u64::from(low(a).min(low(b)))),
        probe("bfi.b64", "9.7.1.18", W64, "bfi.b64 %ro, %ra, %rb, 32, 16;", |a, b, _| {
            let mask = 0xffffu64 << 32;
            b & !mask | (a << 32) & mask
        }),
        // f32: section 9.7.3.
        probe("add.rn.f32", "9.7.3.3", W32, "add.rn.f32 %o, %a, %b;", |a, b, _| bits(f(a) + f(b))),
        probe("add.f32", "9.7.3.3", W32, "add.f32 %o, %a, %b;", |a, b, _| bits(f(a) + f(b))),
        probe("sub.f32", "9.7.3.4", W32, "sub.f32 %o, %a, %b;", |a, b, _| bits(f(a) - f(b))),
        probe("mul.f32", "9.7.3.5", W32, "mul.f32 %o, %a, %b;", |a, b, _| bits(f(a) * f(b))),
        probe("mul.rn.f32", "9.7.3.5", W32, "mul.rn.f32 %o, %a, %b;", |a, b, _| bits(f(a) * f(b))),
        probe("fma.rn.f32", "9.7.3.6", W32, "fma.rn.f32 %o, %a, %b, %c;", |a, b, c| bits(f(a).mul_add(f(b), f(c)))),
        probe("div.rn.f32", "9.7.3.8", W32, "div.rn.f32 %o, %a, %b;", |a, b, _| bits(f(a) / f(b))),
        probe("min.f32", "9.7.3.11", W32, "min.f32 %o, %a, %b;", |a, b, _| bits(extreme(f(a), f(b), false))),
        probe("max.f32", "9.7.3.12", W32, "max.f32 %o, %a, %b;", |a, b, _| bits(extreme(f(a), f(b), true))),
        // bf16: section 9.7.4.
        probe("max.bf16x2", "9.7.4.8", W32, "max.bf16x2 %o, %a, %b;", |a, b, _| {
            max_bf16(a >> 16, b >> 16) << 16 | max_bf16(a, b)
        }),
        // The manual keeps the sign of a NaN's absolute value open: NaNs are made numbers first.
        probe("abs.bf16x2", "9.7.4.6", W32, "and.b32 %a, %a, 0xbf7fbf7f; abs.bf16x2 %o, %a;", |a, _, _| a & 0x3f7f_3f7f),
        // Comparisons: section 9.7.6.
        probe("setp.eq.b32", "9.7.6.2", Pred, "setp.eq.b32 %p, %a, %b;", move |a, b, _| u64::from(low(a) == low(b))),
        probe("setp.eq.s32", "9.7.6.2", Pred, "setp.eq.s32 %p, %a, %b;", move |a, b, _| u64::from(low(a) == low(b))),
        probe("setp.eq.s64", "9.7.6.2", Pred, "setp.eq.s64 %p, %ra, %rb;", |a, b, _| u64::from(a == b)),
        probe("setp.eq.f32", "9.7.6.2", Pred, "setp.eq.f32 %p, %a, %b;", |a, b, _| u64::from(f(a) == f(b))),
        probe("setp.ne.b32", "9.7.6.2", Pred, "setp.ne.b32 %p, %a, %b;", move |a, b, _| u64::from(low(a) != low(b))),
        probe("setp.ne.s32", "9.7.6.2", Pred, "setp.ne.s32 %p, %a, %b;", move |a, b, _| u64::from(low(a) != low(b))),
        probe("setp.ne.s64", "9.7.6.2", Pred, "setp.ne.s64 %p, %ra, %rb;", |a, b, _| u64::from(a != b)),
        probe("setp.ge.u32", "9.7.6.2", Pred, "setp.ge.u32 %p, %a, %b;", move |a, b, _| u64::from(low(a) >= low(b))),
        probe("setp.ge.u64", "9.7.6.2", Pred, "setp.ge.u64 %p, %ra, %rb;", |a, b, _| u64::from(a >= b)),
        probe("setp.gt.u32", "9.7.6.2", Pred, "setp.gt.u32 %p, %a, %b;", move |a, b, _| u64::from(low(a) > low(b))),
        probe("setp.le.u32", "9.7.6.2", Pred, "setp.le.u32 %p, %a, %b;", move |a, b, _| u64::from(low(a) <= low(b))),
        probe("setp.lt.u32", "9.7.6.2", Pred, "setp.lt.u32 %p, %a, %b;", move |a, b, _| u64::from(low(a) < low(b))),
        probe("setp.lt.u64", "9.7.6.2", Pred, "setp.lt.u64 %p, %ra, %rb;", |a, b, _| u64::from(a < b)),
        probe("setp.lt.s32", "9.7.6.2", Pred, "setp.lt.s32 %p, %a, %b;", move |a, b, _| {
            u64::from((low(a) as i32) < low(b) as i32)
        }),
        // Selection: section 9.7.6.3.
        probe("selp.b32", "9.7.6.3", W32, "setp.lt.u32 %p, %a, %b; selp.b32 %o, %a, %c, %p;", move |a, b, c| {
            u64::from(if low(a) < low(b) { low(a) } else { low(c) })
        }),
        probe("selp.u32", "9.7.6.3", W32, "setp.lt.u32 %p, %a, %b; selp.u32 %o, %a, %c, %p;", move |a, b, c| {
            u64::from(if low(a) < low(b) { low(a) } else { low(c) })
        }),
        probe(
            "selp.b64",
            "9.7.6.3",
            W64,
            "setp.lt.u64 %p, %ra, %rb; selp.b64 %ro, %ra, %rc, %p;",
            |a, b, c| if a < b { a } else { c },
        ),
        // Logic and shifts: section 9.7.8.
        probe("and.b32", "9.7.8.1", W32, "and.b32 %o, %a, %b;", move |a, b, _| u64::from(low(a) & low(b))),
        probe("and.b64", "9.7.8.1", W64, "and.b64 %ro, %ra, %rb;", |a, b, _| a & b),
        probe(
            "and.pred",
            "9.7.8.1",
            Pred,
            "setp.lt.u32 %pa, %a, %b; setp.lt.u32 %pb, %b, %c; and.pred %p, %pa, %pb;",
            move |a, b, c| u64::from(low(a) < low(b) && low(b) < low(c)),
        ),
        probe("or.b32", "9.7.8.2", W32, "or.b32 %o, %a, %b;", move |a, b, _| u64::from(low(a) | low(b))),
        probe("or.b64", "9.7.8.2", W64, "or.b64 %ro, %ra, %rb;", |a, b, _| a | b),
        probe(
            "or.pred",
            "9.7.8.2",
            Pred,
            "setp.lt.u32 %pa, %a, %b; setp.lt.u32 %pb, %b, %c; or.pred %p, %pa, %pb;",
            move |a, b, c| u64::from(low(a) < low(b) || low(b) < low(c)),
        ),
        probe("xor.b32", "9.7.8.3", W32, "xor.b32 %o, %a, %b;", move |a, b, _| u64::from(low(a) ^ low(b))),
        // Shifts by more than the width give zero.
        probe("shl.b32", "9.7.8.8", W32, "shl.b32 %o, %a, %c;", move |a, _, c| {
            u64::from(low(a).checked_shl(low(c)).unwrap_or(0))
        }),
        probe("shl.b64", "9.7.8.8", W64, "shl.b64 %ro, %ra, %c;", move |a, _, c| a.checked_shl(low(c)).unwrap_or(0)),
        probe("shr.u32", "9.7.8.9", W32, "shr.u32 %o, %a, %c;", move |a, _, c| {
            u64::from(low(a).checked_shr(low(c)).unwrap_or(0))
        }),
        probe("shr.u64", "9.7.8.9", W64, "shr.u64 %ro, %ra, %c;", move |a, _, c| a.checked_shr(low(c)).unwrap_or(0)),
        probe("prmt.b32", "9.7.9.7", W32, "prmt.b32 %o, %a, %b, %c;", move |a, b, c| u64::from(prmt(low(a), low(b), low(c)))),
        // Moves and conversions: section 9.7.9.
        probe("mov.b32", "9.7.9.1", W32, "mov.b32 %o, %a;", move |a, _, _| u64::from(low(a))),
        probe("mov.u32", "9.7.9.1", W32, "mov.u32 %o, %a;", move |a, _, _| u64::from(low(a))),
        probe("mov.f32", "9.7.9.1", W32, "mov.f32 %o, %a;", move |a, _, _| u64::from(low(a))),
        probe("mov.u16", "9.7.9.1", W16, "mov.u16 %ho, %ha;", |a, _, _| a & 0xffff),
        probe("mov.u64", "9.7.9.1", W64, "mov.u64 %ro, %ra;", |a, _, _| a),
        probe("mov.b64", "9.7.9.2", W64, "mov.b64 %ro, {%a, %b};", move |a, b, _| u64::from(low(b)) << 32 | u64::from(low(a))),
        probe("cvt.u64.u32", "9.7.9.21", W64, "cvt.u64.u32 %ro, %a;", move |a, _, _| u64::from(low(a))),
        probe("cvt.u32.u64", "9.7.9.21", W32, "cvt.u32.u64 %o, %ra;", move |a, _, _| u64::from(low(a))),
        probe("cvt.s64.s32", "9.7.9.21", W64, "cvt.s64.s32 %ro, %a;", move |a, _, _| i64::from(low(a) as i32) as u64),
        probe("cvt.u32.u16", "9.7.9.21", W32, "cvt.u32.u16 %o, %ha;", |a, _, _| a & 0xffff),
        probe("cvt.u64.u16", "9.7.9.21", W64, "cvt.u64.u16 %ro, %ha;", |a, _, _| a & 0xffff),
        // The first source goes to the upper half.
        probe("cvt.rn.bf16x2.f32", "9.7.9.21", W32, "cvt.rn.bf16x2.f32 %o, %a, %b;", |a, b, _| bf16(f(a)) << 16 | bf16(f(b))),
        probe("cvt.rn.satfinite.e4m3x2.f32", "9.7.9.21", W16, "cvt.rn.satfinite.e4m3x2.f32 %ho, %a, %b;", |a, b, _| {
            e4m3(f(a)) << 8 | e4m3(f(b))
        }),
    ];
    // Branches: the shorter way for even threads. Section 9.7.12.
    all.push(probe(
        "bra",
        "9.7.12.3",
        W32,
        "and.b32 %c, %t, 1; setp.eq.u32 %p, %c, 0; mov.u32 %o, 1; @%p bra EVEN; mov.u32 %o, 2; EVEN: add.u32 %o, %o, 4;",
        |_, _, _| 0,
    ));
    let last = all.last_mut().expect("just pushed");
    last.expected = Expected::Words((0..32).map(|i| if i % 2 == 0 { 5 } else { 6 }).collect());
    all.push(probe(
        "bra.uni",
        "9.7.12.3",
        W32,
        "mov.u32 %o, 1; bra.uni OVER; mov.u32 %o, 2; OVER: add.u32 %o, %o, 4;",
        |_, _, _| 5,
    ));
    all.push(probe("ret", "9.7.12.7", W32, "mov.u32 %o, 9; setp.lt.u32 %p, %t, 7; @%p ret;", |_, _, _| 9));
    let last = all.last_mut().expect("just pushed");
    last.expected = Expected::Words((0..32).map(|i| if i < 7 { 0 } else { 9 }).collect());
    // Shuffles: section 9.7.9.6. Lane i reads lane i ^ 5.
    all.push(probe("shfl.sync.bfly.b32", "9.7.9.6", W32, "shfl.sync.bfly.b32 %o, %t, 5, 31, -1;", |_, _, _| 0));
    let last = all.last_mut().expect("just pushed");
    last.expected = Expected::Words((0..32).map(|i| i ^ 5).collect());
    all
}
