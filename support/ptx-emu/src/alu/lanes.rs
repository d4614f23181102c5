//! Operations that treat each lane alone: written once for one lane, executed as loops over all 32, which the compiler vectorises.
//!
//! Each list of operations becomes an enum whose `run` picks the loop. On x86-64 every loop exists twice, for the baseline and for AVX2 with
//! fused multiply-add; both give the same bits.

use crate::cx::Cx;
use crate::isa::Src;
use crate::regs::{LANES, Lanes32, Lanes64};

/// Whether the loops compiled for AVX2 and FMA may run.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn wide_vectors() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// Makes an enum of lane-wise operations from `Name(sources) -> Result { Operation(parameters) => expression of the sources, ... }`.
macro_rules! lanewise {
    ($(#[$attr:meta])* $name:ident $sources:tt -> $Out:ty { $($ops:tt)+ }) => {
        $crate::alu::lanes::lanewise! { @enum $(#[$attr])* $name $sources $sources -> $Out { $($ops)+ } }
    };
    (
        @enum $(#[$attr:meta])*
        $name:ident ($($x:ident: $In:ty),+) $sources:tt -> $Out:ty {
            $($(#[$op_attr:meta])* $op:ident $(($($p:ident: $P:ty),+))? => $body:expr,)+
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub(crate) enum $name {
            $($(#[$op_attr])* $op $(($($P),+))?,)+
        }

        #[cfg(test)]
        impl $name {
            /// The operations without parameters.
            pub const PLAIN: &'static [&'static [$name]] =
                &[$($crate::alu::lanes::lanewise! { @plain $name $op $(($($P),+))? }),+];
        }

        impl $name {
            /// Computes all lanes.
            #[inline]
            pub fn run(self, $($x: &[$In; $crate::regs::LANES],)+ out: &mut [$Out; $crate::regs::LANES]) {
                #[cfg(target_arch = "x86_64")]
                if $crate::alu::lanes::wide_vectors() {
                    // SAFETY: the processor has both features.
                    return unsafe { self.run_wide($($x,)+ out) };
                }
                self.run_all($($x,)+ out);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn run_wide(self, $($x: &[$In; $crate::regs::LANES],)+ out: &mut [$Out; $crate::regs::LANES]) {
                self.run_all($($x,)+ out);
            }

            /// What `run` does on any processor.
            #[inline(always)]
            pub fn run_all(self, $($x: &[$In; $crate::regs::LANES],)+ out: &mut [$Out; $crate::regs::LANES]) {
                match self {
                    $($name::$op $(($($p),+))? => $crate::alu::lanes::lanewise! { @loop $sources out $body },)+
                }
            }
        }
    };
    (@plain $name:ident $op:ident) => { &[$name::$op] };
    (@plain $name:ident $op:ident ($($P:ty),+)) => { &[] };
    (@loop ($($x:ident: $In:ty),+) $out:ident $body:expr) => {
        for i in 0..$crate::regs::LANES {
            $(let $x = $x[i];)+
            $out[i] = $body;
        }
    };
}
pub(crate) use lanewise;

/// The lanes of a source as 32 bits: the register itself where it is one.
#[inline(always)]
pub(crate) fn view32<'a>(cx: &'a Cx<'_>, src: &Src, hold: &'a mut Lanes32) -> &'a Lanes32 {
    match *src {
        Src::Reg(reg) if reg.width.bits() <= 32 => cx.warp.regs.r32(reg.slot),
        Src::Imm(bits) => {
            *hold = [bits as u32; LANES];
            hold
        }
        ref other => {
            *hold = cx.get32(other);
            hold
        }
    }
}

/// The lanes of a source as 64 bits: the register itself where it is one; narrower registers are zero-extended.
#[inline(always)]
pub(crate) fn view64<'a>(cx: &'a Cx<'_>, src: &Src, hold: &'a mut Lanes64) -> &'a Lanes64 {
    match *src {
        Src::Reg(reg) if reg.width.bits() >= 64 => cx.warp.regs.r64(reg.slot),
        Src::Imm(bits) => {
            *hold = [bits; LANES];
            hold
        }
        ref other => {
            *hold = cx.get64(other);
            hold
        }
    }
}
