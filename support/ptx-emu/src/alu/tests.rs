//! The loops for AVX2 and FMA give the same bits as those for any processor, for every operation.

use super::approx::{Approx, Function, Operand};
use super::compare::Compare;
use super::float::{Arith, Extremum, Mode};
use super::half::{Half, HalfMode};
use super::ints::Permute;
use super::opcode::Ty;
use super::ops::*;
use crate::formats::Rounding;
use crate::regs::LANES;

/// Numbers of every kind: integers small and large, floats of 16, 32 and 64 bits near one, special patterns.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn value(&mut self) -> u64 {
        const SPECIAL: [u64; 12] = [
            0,
            1,
            u64::MAX,
            1 << 63,
            0x7f80_0000_7f80_0000,
            0x7fff_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0x8000_0000_8000_0000,
            0x0000_0001_0040_0000,
            0x3f80_0000_3c00_3c00,
            0x7c00_7c01_7f7f_ffff,
            0x7fef_ffff_ffff_ffff,
        ];
        let random = self.next();
        match self.next() % 6 {
            0 => SPECIAL[random as usize % SPECIAL.len()],
            1 => random & 0x3f,
            2 => (random & 0x807f_ffff_807f_ffff) | 0x3f00_0000_3f00_0000,
            3 => (random & 0x800f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000,
            4 => (random & 0x83ff_83ff_83ff_83ff) | 0x3800_3800_3800_3800,
            _ => random,
        }
    }

    fn lanes64(&mut self) -> [u64; LANES] {
        std::array::from_fn(|_| self.value())
    }

    fn lanes32(&mut self) -> [u32; LANES] {
        std::array::from_fn(|_| self.value() as u32)
    }
}

const ROUNDS: usize = 60;

macro_rules! compare {
    ($ops:expr, $zero:expr, $($source:ident),+) => {
        for &op in $ops {
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
            for _ in 0..ROUNDS {
                let sources = ($(numbers.$source(),)+);
                let (mut chosen, mut plain) = ($zero, $zero);
                compare!(@run op, sources, chosen, plain, $($source),+);
                assert_eq!(chosen, plain, "{op:?} of {sources:x?}");
            }
        }
    };
    (@run $op:ident, $s:ident, $x:ident, $y:ident, $a:ident) => {
        $op.run(&$s.0, &mut $x);
        $op.run_all(&$s.0, &mut $y);
    };
    (@run $op:ident, $s:ident, $x:ident, $y:ident, $a:ident, $b:ident) => {
        $op.run(&$s.0, &$s.1, &mut $x);
        $op.run_all(&$s.0, &$s.1, &mut $y);
    };
    (@run $op:ident, $s:ident, $x:ident, $y:ident, $a:ident, $b:ident, $c:ident) => {
        $op.run(&$s.0, &$s.1, &$s.2, &mut $x);
        $op.run_all(&$s.0, &$s.1, &$s.2, &mut $y);
    };
    (@run $op:ident, $s:ident, $x:ident, $y:ident, $a:ident, $b:ident, $c:ident, $e:ident) => {
        $op.run(&$s.0, &$s.1, &$s.2, &$s.3, &mut $x);
        $op.run_all(&$s.0, &$s.1, &$s.2, &$s.3, &mut $y);
    };
}

#[test]
fn both_compilations_agree() {
    let mode = Mode { rounding: Rounding::NearestEven, ftz: true, sat: true };
    let half_mode = HalfMode { ftz: true, sat: false, relu: true };
    let how = Extremum { max: true, ftz: true, nan: false, xorsign: true, abs: true };
    compare!(Un32::PLAIN.iter().copied().flatten(), [0u32; LANES], lanes32);
    let approx = |function, operand| Un32::Approx(Approx { function, operand });
    compare!(
        &[
            Un32::RcpApprox(true),
            Un32::SqrtApprox(false),
            Un32::RsqrtApprox(false),
            Un32::Ex2Approx(true),
            Un32::BfindS(true),
            Un32::FlushThenXor(1 << 31),
            Un32::HalfSigns(Half::Bf16, 0x7fff, 0),
            Un32::ArithF32(Arith::Sqrt, mode),
            approx(Function::Ex2, Operand::Half(Half::F16, true)),
            approx(Function::Tanh, Operand::F32(false)),
        ],
        [0u32; LANES],
        lanes32
    );
    compare!(Bin32::PLAIN.iter().copied().flatten(), [0u32; LANES], lanes32, lanes32);
    compare!(
        &[
            Bin32::ExtremumF32(how),
            Bin32::ExtremumF16x2(how),
            Bin32::ExtremumBf16x2(how),
            Bin32::DivApprox(true),
            Bin32::Szext(true, true),
            Bin32::Bmsk(false),
            Bin32::ArithF32(Arith::Mul, mode),
            Bin32::Halfx2InMode(Arith::Add, Half::F16, half_mode),
        ],
        [0u32; LANES],
        lanes32,
        lanes32
    );
    compare!(Tri32::PLAIN.iter().copied().flatten(), [0u32; LANES], lanes32, lanes32, lanes32);
    compare!(
        &[
            Tri32::Lop3(0x1a),
            Tri32::Lop3(0xe8),
            Tri32::FunnelL(false),
            Tri32::FunnelR(true),
            Tri32::PrmtMode(Permute::Ecl),
            Tri32::Bfe(true),
            Tri32::Dp4a(true, false),
            Tri32::Dp2a(false, true, true),
            Tri32::ArithF32(Arith::Fma, mode),
            Tri32::Halfx2InMode(Arith::Fma, Half::Bf16, half_mode),
        ],
        [0u32; LANES],
        lanes32,
        lanes32,
        lanes32
    );
    compare!(Quad32::PLAIN.iter().copied().flatten(), [0u32; LANES], lanes32, lanes32, lanes32, lanes32);
    compare!(Un64::PLAIN.iter().copied().flatten(), [0u64; LANES], lanes64);
    compare!(Bin64::PLAIN.iter().copied().flatten(), [0u64; LANES], lanes64, lanes64);
    compare!(&[Bin64::ExtremumF64(true), Bin64::ArithF64(Arith::Add, Rounding::Down)], [0u64; LANES], lanes64, lanes64);
    compare!(Tri64::PLAIN.iter().copied().flatten(), [0u64; LANES], lanes64, lanes64, lanes64);
    compare!(Quad64::PLAIN.iter().copied().flatten(), [0u64; LANES], lanes64, lanes64, lanes64, lanes64);
    compare!(Widen1::PLAIN.iter().copied().flatten(), [0u64; LANES], lanes32);
    compare!(Widen2::PLAIN.iter().copied().flatten(), [0u64; LANES], lanes32, lanes32);
    compare!(Widen3::PLAIN.iter().copied().flatten(), [0u64; LANES], lanes32, lanes32, lanes64);
    compare!(Narrow1::PLAIN.iter().copied().flatten(), [0u32; LANES], lanes64);
}

#[test]
fn both_compilations_of_comparisons_agree() {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    let types = [Ty::S16, Ty::U16, Ty::B32, Ty::S32, Ty::U32, Ty::S64, Ty::U64, Ty::F16, Ty::Bf16, Ty::F16x2, Ty::F32, Ty::F64];
    let relations = ["eq", "ne", "lt", "le", "gt", "ge", "hs", "equ", "ltu", "geu", "num", "nan"];
    let mut compared = 0;
    for ty in types {
        for relation in relations {
            let Some(compare) = Compare::new(relation, ty, ty == Ty::F32) else { continue };
            for _ in 0..20 {
                let (a, mut b) = (numbers.lanes64(), numbers.lanes64());
                (b[3], b[17]) = (a[3], a[17]);
                if compare.is_wide() {
                    assert_eq!(compare.run64(&a, &b), compare.run64_all(&a, &b), "{compare:?}");
                } else {
                    let (a, b) = (a.map(|v| v as u32), b.map(|v| v as u32));
                    assert_eq!(compare.run32(&a, &b), compare.run32_all(&a, &b), "{compare:?}");
                    let upper = compare.of_upper_halves();
                    assert_eq!(upper.run32(&a, &b), upper.run32_all(&a, &b), "{upper:?}");
                }
                compared += 1;
            }
        }
    }
    assert!(compared > 1500);
}
