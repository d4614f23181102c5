//! The formats, exhaustively: every bf16 against another implementation's casts, every code against the definition, every f32
//! near a boundary against the definition of "nearest even".

use v3_numerics::cpu::{Isa, with_isa};
use v3_numerics::{E4M3, E5M2, bf16, convert, e5m6, reference};
use v3_testkit::Rng;
use v3_testkit::backend::for_each_available;

/// Byte i is PyTorch's cast of the bf16 with bit pattern i.
const E4M3_GOLDEN: &[u8; 65536] = include_bytes!("data/bf16_to_e4m3fn.bin");
const E5M2_GOLDEN: &[u8; 65536] = include_bytes!("data/bf16_to_e5m2.bin");

fn all_bf16() -> Vec<f32> {
    (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).collect()
}

/// Fails with the first few indexes at which two lists differ.
fn assert_same<T: PartialEq + std::fmt::Debug>(what: &str, got: &[T], expected: &[T]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let wrong: Vec<_> = (0..got.len()).filter(|i| got[*i] != expected[*i]).collect();
    let shown: Vec<_> = wrong.iter().take(8).map(|i| (*i, &got[*i], &expected[*i])).collect();
    assert!(wrong.is_empty(), "{what}: {} differ, (index, got, expected): {shown:?}", wrong.len());
}

#[test]
fn every_bf16_casts_as_pytorch_does() {
    let x = all_bf16();
    let e4m3: Vec<u8> = x.iter().map(|x| E4M3::from_f32(*x).0).collect();
    assert_same("e4m3", &e4m3, E4M3_GOLDEN);
    let e5m2: Vec<u8> = x.iter().map(|x| E5M2::from_f32(*x).0).collect();
    // Which of its three NaN codes a NaN becomes is not specified.
    let quiet = |code: &u8| if code & 0x7f > 0x7c { code | 3 } else { *code };
    assert_same("e5m2", &e5m2.iter().map(quiet).collect::<Vec<_>>(), &E5M2_GOLDEN.iter().map(quiet).collect::<Vec<_>>());
}

#[test]
fn every_code_has_the_value_of_its_definition() {
    let same = |got: f32, expected: f64| {
        (got.is_nan() && expected.is_nan())
            || (f64::from(got) == expected && got.is_sign_negative() == expected.is_sign_negative())
    };
    for code in 0..=255u8 {
        assert!(same(E4M3(code).to_f32(), reference::decode_e4m3(code)), "E4M3 {code:#x}");
        assert!(same(E5M2(code).to_f32(), reference::decode_ieee(code.into(), 5, 2)), "E5M2 {code:#x}");
        assert_eq!(E4M3(code).is_nan(), E4M3(code).to_f32().is_nan());
        assert_eq!(E5M2(code).is_nan(), E5M2(code).to_f32().is_nan());
    }
    for code in 0..4096u16 {
        assert!(same(e5m6::decode(code), reference::decode_ieee(code.into(), 5, 6)), "E5M6 {code:#x}");
    }
    assert_eq!((E4M3::MAX.to_f32(), E5M2::MAX.to_f32(), E5M2::INFINITY.to_f32()), (448.0, 57344.0, f32::INFINITY));
    assert_eq!(e5m6::decode(0x7bf), e5m6::MAX);
}

#[test]
fn codes_survive_the_round_trip() {
    for code in 0..=255u8 {
        assert!(E4M3(code).is_nan() || E4M3::from_f32(E4M3(code).to_f32()).0 == code);
        assert!(E5M2(code).is_nan() || E5M2::from_f32(E5M2(code).to_f32()).0 == code);
    }
    for code in 0..4096u16 {
        let value = e5m6::decode(code);
        assert!(value.is_nan() || e5m6::encode(value) == code, "{code:#x}");
    }
}

/// Values at, just below and just above every tie between neighbouring codes, where a rounding mistake would show, and random ones.
fn boundary_values(codes: std::ops::Range<u32>, decode: impl Fn(u32) -> f64) -> Vec<f32> {
    let mut values = vec![0.0, -0.0, 1e-30, -1e-30, f32::from_bits(1)];
    for code in codes.start..codes.end - 1 {
        let tie = ((decode(code) + decode(code + 1)) / 2.0) as f32;
        if tie.is_finite() && tie != 0.0 {
            values.extend([-tie, tie, f32::from_bits(tie.to_bits() - 1), f32::from_bits(tie.to_bits() + 1)]);
        }
    }
    values.extend(Rng::new(1).spread_vec(2000, -30, 18));
    values
}

#[test]
fn rounding_is_to_the_nearest_even_code() {
    let e4m3 = |code: u32| reference::decode_e4m3(code as u8);
    for x in boundary_values(0..0x7f, e4m3) {
        let sign = u8::from(x.is_sign_negative()) << 7;
        let expected = reference::nearest(f64::from(x.abs()), 0..0x7f, e4m3) as u8 | sign;
        assert_eq!(E4M3::from_f32(x).0, expected, "{x:e}");
    }
    let e5m2 = |code: u32| reference::decode_ieee(code, 5, 2);
    for x in boundary_values(0..0x7c, e5m2) {
        let sign = u8::from(x.is_sign_negative()) << 7;
        // Half way to the next power of two, and beyond, overflows.
        let magnitude = if x.abs() >= 61440.0 { 0x7c } else { reference::nearest(f64::from(x.abs()), 0..0x7c, e5m2) };
        assert_eq!(E5M2::from_f32(x).0, magnitude as u8 | sign, "{x:e}");
    }
    let wide = |code: u32| reference::decode_ieee(code, 5, 6);
    for x in boundary_values(0..0x7c0, wide).into_iter().step_by(3) {
        let sign = u16::from(x.is_sign_negative()) << 11;
        let expected = reference::nearest(f64::from(x.abs()), 0..0x7c0, wide) as u16 | sign;
        assert_eq!(e5m6::encode(x), expected, "{x:e}");
    }
}

#[test]
fn special_values() {
    assert_eq!((E4M3::from_f32(f32::INFINITY).0, E4M3::from_f32(-1e30).0), (0x7e, 0xfe));
    assert!(E4M3::from_f32(f32::NAN).is_nan() && E5M2::from_f32(f32::NAN).is_nan());
    assert_eq!((E5M2::from_f32(f32::INFINITY).0, E5M2::from_f32(-1e30).0), (0x7c, 0xfc));
    assert_eq!((E4M3::from_f32(-0.0).0, E5M2::from_f32(-0.0).0, e5m6::encode(-0.0)), (0x80, 0x80, 0x800));
    assert_eq!((e5m6::encode(1e30), e5m6::encode(-65025.0), e5m6::encode(f32::INFINITY)), (0x7bf, 0xfbf, 0x7c0));
    assert!(e5m6::decode(e5m6::encode(f32::NAN)).is_nan());
    assert_eq!(f32::from(E4M3(0x38)), 1.0);
    assert_eq!(format!("{:?} {:?}", E4M3(0x38), E5M2(0x3c)), "1.0e4m3 1.0e5m2");
}

/// Another implementation, on the finite values inside its range: it saturates E5M2 too.
#[test]
fn agrees_with_the_float8_crate() {
    let mut x = all_bf16();
    x.extend(Rng::new(2).spread_vec(100_000, -20, 20));
    for x in x.into_iter().filter(|x| x.is_finite()) {
        assert_eq!(E4M3::from_f32(x).0, float8::F8E4M3::from_f32(x).to_bits(), "{x:e}");
        if x.abs() < 61440.0 {
            assert_eq!(E5M2::from_f32(x).0, float8::F8E5M2::from_f32(x).to_bits(), "{x:e}");
        }
    }
}

#[test]
fn slices_convert_as_single_values_do() {
    let mut x = Rng::new(3).bits_vec(100_003);
    x.extend(all_bf16());
    x.extend(boundary_values(0..0x7f, |code| reference::decode_e4m3(code as u8)));
    // Long enough to be cut for several threads, and with a rest.
    let n = x.len();
    let codes: Vec<u8> = (0..n).map(|i| i as u8).collect();
    for_each_available("conversion", &Isa::ALL, Isa::name, Isa::is_available, |isa| {
        with_isa(isa, || {
            let mut y = vec![bf16::NAN; n];
            convert::f32_to_bf16(&x, &mut y).unwrap();
            let bits = |y: &[bf16]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            assert_same("to bf16", &bits(&y), &x.iter().map(|x| bf16::from_f32(*x).to_bits()).collect::<Vec<_>>());
            let mut back = vec![f32::NAN; n];
            convert::bf16_to_f32(&y, &mut back).unwrap();
            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            assert_same("from bf16", &bits(&back), &y.iter().map(|y| u32::from(y.to_bits()) << 16).collect::<Vec<_>>());

            let mut y = vec![E4M3(0x55); n];
            convert::f32_to_e4m3(&x, &mut y).unwrap();
            assert_same("to e4m3", &y, &x.iter().map(|x| E4M3::from_f32(*x)).collect::<Vec<_>>());
            let canonical = |y: f32| if y.is_nan() { u32::MAX } else { y.to_bits() };
            let (e4m3, e5m2): (Vec<E4M3>, Vec<E5M2>) = codes.iter().map(|c| (E4M3(*c), E5M2(*c))).unzip();
            convert::e4m3_to_f32(&e4m3, &mut back).unwrap();
            let expected = e4m3.iter().map(|c| canonical(c.to_f32())).collect::<Vec<_>>();
            assert_same("from e4m3", &back.iter().map(|y| canonical(*y)).collect::<Vec<_>>(), &expected);

            let mut y = vec![E5M2(0x55); n];
            convert::f32_to_e5m2(&x, &mut y).unwrap();
            assert_same("to e5m2", &y, &x.iter().map(|x| E5M2::from_f32(*x)).collect::<Vec<_>>());
            convert::e5m2_to_f32(&e5m2, &mut back).unwrap();
            let expected = e5m2.iter().map(|c| canonical(c.to_f32())).collect::<Vec<_>>();
            assert_same("from e5m2", &back.iter().map(|y| canonical(*y)).collect::<Vec<_>>(), &expected);
        })
        .unwrap();
    });
    for short in 0..40 {
        let mut y = vec![E4M3(0x55); short + 1];
        convert::f32_to_e4m3(&x[..short], &mut y[..short]).unwrap();
        assert_same("short", &y[..short], &x[..short].iter().map(|x| E4M3::from_f32(*x)).collect::<Vec<_>>());
        assert_eq!(y[short], E4M3(0x55));
    }
    let message = convert::f32_to_e4m3(&x[..3], &mut [E4M3(0); 2]).unwrap_err().to_string();
    assert_eq!(message, "E4M3 output: expected length 3, got length 2");
}

#[test]
fn twelve_bits_pack_in_pairs() {
    assert_eq!(e5m6::pack_pair(0xabc, 0x123), [0xbc, 0x3a, 0x12]);
    for (a, b) in [(0, 0xfff), (0xfff, 0), (0x5a5, 0xa5a), (0x123, 0x456)] {
        assert_eq!(e5m6::unpack_pair(e5m6::pack_pair(a, b)), (a, b));
    }
    let mut rng = Rng::new(4);
    for n in [0, 1, 2, 3, 127, 128] {
        let x = rng.spread_vec(n, -8, 10);
        let mut packed = vec![0xee; e5m6::packed_len(n)];
        e5m6::encode_slice(&x, 16.0, &mut packed).unwrap();
        let mut y = vec![f32::NAN; n];
        e5m6::decode_slice(&packed, 1.0 / 16.0, &mut y).unwrap();
        for (x, y) in x.iter().zip(&y) {
            // 6 mantissa bits: half a unit in the last place is 2^-7 of the power of two below.
            assert!((x - y).abs() <= x.abs() / 128.0, "{x} became {y}");
        }
        assert!(e5m6::encode_slice(&x, 1.0, &mut vec![0; e5m6::packed_len(n) + 1]).is_err());
        assert!(e5m6::decode_slice(&packed, 1.0, &mut vec![0.0; n + 2]).is_err());
    }
}
