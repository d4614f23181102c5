//! What kernels that talk to other devices use besides: flags, cache policies, votes, generic addresses, and integer arithmetic of narrow and wide kinds.

use crate::Probe;
use crate::simple::{Out, f, probe};
use crate::special::plain;
use v3_gpu::LaunchConfig;

fn integers() -> Vec<Probe> {
    use Out::{Pred, W16, W32, W64};
    let low = |v: u64| v as u32;
    let half = |v: u64| v as u16;
    let less = "setp.lt.u32 %pa, %a, %b; setp.lt.u32 %pb, %b, %c; ";
    vec![
        probe("mad.lo.s32", "9.7.1.4", W32, "mad.lo.s32 %o, %a, %b, %c;", move |a, b, c| {
            u64::from(low(a).wrapping_mul(low(b)).wrapping_add(low(c)))
        }),
        probe("rem.u32", "9.7.1.9", W32, "or.b32 %b, %b, 1; rem.u32 %o, %a, %b;", move |a, b, _| {
            u64::from(low(a) % (low(b) | 1))
        }),
        probe("neg.s32", "9.7.1.11", W32, "neg.s32 %o, %a;", move |a, _, _| u64::from(low(a).wrapping_neg())),
        probe("max.u32", "9.7.1.13", W32, "max.u32 %o, %a, %b;", move |a, b, _| u64::from(low(a).max(low(b)))),
        probe("max.s32", "9.7.1.13", W32, "max.s32 %o, %a, %b;", move |a, b, _| {
            u64::from((low(a) as i32).max(low(b) as i32) as u32)
        }),
        probe("max.u64", "9.7.1.13", W64, "max.u64 %ro, %ra, %rb;", |a, b, _| a.max(b)),
        probe("min.u64", "9.7.1.12", W64, "min.u64 %ro, %ra, %rb;", |a, b, _| a.min(b)),
        probe("popc.b32", "9.7.1.14", W32, "popc.b32 %o, %a;", move |a, _, _| u64::from(low(a).count_ones())),
        probe("clz.b32", "9.7.1.15", W32, "clz.b32 %o, %a;", move |a, _, _| u64::from(low(a).leading_zeros())),
        // How far the highest one is from the top; without a one all bits are set.
        probe("bfind.shiftamt.u32", "9.7.1.16", W32, "bfind.shiftamt.u32 %o, %a;", move |a, _, _| {
            u64::from(if low(a) == 0 { u32::MAX } else { low(a).leading_zeros() })
        }),
        probe("brev.b32", "9.7.1.18", W32, "brev.b32 %o, %a;", move |a, _, _| u64::from(low(a).reverse_bits())),
        probe("bfi.b32", "9.7.1.20", W32, "bfi.b32 %o, %a, %b, 8, 12;", move |a, b, _| {
            let mask = 0xfffu32 << 8;
            u64::from(low(b) & !mask | (low(a) << 8) & mask)
        }),
        probe("setp.eq.s16", "9.7.6.2", Pred, "setp.eq.s16 %p, %ha, %hb;", move |a, b, _| u64::from(half(a) == half(b))),
        probe("setp.ne.s16", "9.7.6.2", Pred, "setp.ne.s16 %p, %ha, %hb;", move |a, b, _| u64::from(half(a) != half(b))),
        probe("setp.gt.s32", "9.7.6.2", Pred, "setp.gt.s32 %p, %a, %b;", move |a, b, _| u64::from(low(a) as i32 > low(b) as i32)),
        probe("setp.gt.u64", "9.7.6.2", Pred, "setp.gt.u64 %p, %ra, %rb;", |a, b, _| u64::from(a > b)),
        probe("setp.le.u64", "9.7.6.2", Pred, "setp.le.u64 %p, %ra, %rb;", |a, b, _| u64::from(a <= b)),
        probe("setp.lt.s64", "9.7.6.2", Pred, "setp.lt.s64 %p, %ra, %rb;", |a, b, _| u64::from((a as i64) < b as i64)),
        probe("selp.f32", "9.7.6.3", W32, "setp.lt.u32 %p, %a, %b; selp.f32 %o, %a, %c, %p;", move |a, b, c| {
            u64::from(if low(a) < low(b) { low(a) } else { low(c) })
        }),
        probe("selp.u16", "9.7.6.3", W16, "setp.lt.u32 %p, %a, %b; selp.u16 %ho, %ha, %hb, %p;", move |a, b, _| {
            u64::from(if low(a) < low(b) { half(a) } else { half(b) })
        }),
        probe("and.b16", "9.7.8.1", W16, "and.b16 %ho, %ha, %hb;", move |a, b, _| u64::from(half(a) & half(b))),
        probe("xor.b16", "9.7.8.3", W16, "xor.b16 %ho, %ha, %hb;", move |a, b, _| u64::from(half(a) ^ half(b))),
        probe("xor.pred", "9.7.8.3", Pred, &format!("{less} xor.pred %p, %pa, %pb;"), move |a, b, c| {
            u64::from((low(a) < low(b)) != (low(b) < low(c)))
        }),
        probe("not.pred", "9.7.8.4", Pred, &format!("{less} not.pred %p, %pa;"), move |a, b, _| u64::from(low(a) >= low(b))),
        probe("not.b32", "9.7.8.4", W32, "not.b32 %o, %a;", move |a, _, _| u64::from(!low(a))),
        probe("not.b64", "9.7.8.4", W64, "not.b64 %ro, %ra;", |a, _, _| !a),
        probe("mov.pred", "9.7.9.1", Pred, &format!("{less} mov.pred %p, %pa;"), move |a, b, _| u64::from(low(a) < low(b))),
        probe("cvt.u16.u32", "9.7.9.21", W16, "cvt.u16.u32 %ho, %a;", move |a, _, _| u64::from(half(a))),
        // Not reached, it does nothing; reached, it would take the context along.
        probe("trap", "9.7.19.4", W32, "setp.ne.u32 %p, %t, %t; @%p trap; add.f32 %o, %a, 0f00000000;", |a, _, _| {
            let sum = f(a) + 0.0;
            u64::from(if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits() })
        }),
    ]
}

/// Flags and policies between the threads of a warp, and of two blocks.
pub fn probes() -> Vec<Probe> {
    let one = LaunchConfig::new(1, 32);
    let words: Vec<u64> = (0..64).map(|i| 0x0102_0304_0506_0708u64.wrapping_mul(i + 3) ^ (i << 48)).collect();
    let mut all = integers();
    all.extend([
        plain(
            "L2::cache_hint",
            &[
                "createpolicy.fractional.L2::evict_first.b64",
                "ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32",
                "ld.global.L1::no_allocate.L2::cache_hint.v4.u32",
                "st.global.L1::no_allocate.L2::cache_hint.v4.u32",
            ],
            "9.7.9.8, 9.7.9.9, 9.7.9.12, 9.7.9.18",
            (
                "",
                "createpolicy.fractional.L2::evict_first.b64 %ro, 1.0;
                 mul.wide.u32 %at, %t, 16; add.s64 %ra, %from, %at; add.s64 %rb, %to, %at;
                 ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%a, %b, %c, %d}, [%ra], %ro;
                 st.global.L1::no_allocate.L2::cache_hint.v4.u32 [%rb], {%b, %a, %d, %c}, %ro;
                 ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%a, %b, %c, %d}, [%rb], %ro;
                 st.global.L1::no_allocate.L2::cache_hint.v4.u32 [%rb], {%a, %b, %d, %c}, %ro;",
            ),
            one,
            words.clone(),
            words.iter().enumerate().map(|(i, &w)| if i % 2 == 0 { w.rotate_left(32) } else { w }).collect(),
        ),
        // Block 0 writes and releases, block 1 acquires and copies.
        plain(
            "release and acquire at system scope",
            &[
                "st.release.sys.global.u32",
                "ld.acquire.sys.global.u32",
                "st.release.sys.global.u64",
                "ld.acquire.sys.global.u64",
                "nanosleep.u32",
                "st.relaxed.gpu.global.u32",
                "st.global.u32",
                "ld.global.u32",
                "ld.global.s32",
            ],
            "8.8, 9.7.9.8, 9.7.9.12, 9.7.19.2",
            (
                "",
                "setp.ne.u32 %p, %t, 0; @%p ret;
                 setp.ne.u32 %p, %cta, 0; @%p bra READ;
                 st.relaxed.gpu.global.u32 [%to], 7; st.release.sys.global.u32 [%to+4], 5;
                 st.global.u32 [%to+8], 9; mov.u64 %ra, 11; st.release.sys.global.u64 [%to+16], %ra; ret;
                 READ: nanosleep.u32 20; ld.acquire.sys.global.u32 %a, [%to+4]; setp.ne.u32 %q, %a, 5; @%q bra READ;
                 ld.global.u32 %b, [%to];
                 AGAIN: nanosleep.u32 20; ld.acquire.sys.global.u64 %ra, [%to+16]; setp.ne.u64 %q, %ra, 11; @%q bra AGAIN;
                 ld.global.s32 %c, [%to+8];
                 st.global.u32 [%to+24], %b; st.global.u32 [%to+28], %c;",
            ),
            LaunchConfig::new(2, 32),
            vec![0],
            vec![5 << 32 | 7, 9, 11, 9 << 32 | 7],
        ),
        // One thread takes 256 bytes through shared memory.
        plain(
            "cp.async.bulk",
            &[
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint",
                "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint",
                "fence.proxy.async.global",
            ],
            "9.7.9.25.4.1",
            (
                ".shared .align 128 .b8 memory[256];\n.shared .align 8 .b8 object[8];",
                "setp.ne.u32 %p, %t, 0; @%p ret;
                 createpolicy.fractional.L2::evict_first.b64 %ro, 1.0;
                 mov.u32 %o, object; mov.u32 %b, memory;
                 mbarrier.init.shared::cta.b64 [%o], 1; fence.mbarrier_init.release.cluster;
                 mbarrier.arrive.expect_tx.shared::cta.b64 %ra, [%o], 256; fence.proxy.async.global;
                 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%b], [%from], 256, [%o], %ro;
                 WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%o], 0; @!%q bra WAIT;
                 cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%to], [%b], 256, %ro;
                 cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
            ),
            one,
            words.clone(),
            words[..32].to_vec(),
        ),
        plain(
            "vote and shuffle",
            &["vote.sync.all.pred", "vote.sync.ballot.b32", "shfl.sync.idx.b32"],
            "9.7.9.6, 9.7.13.7",
            (
                "",
                "setp.lt.u32 %p, %t, 20; vote.sync.ballot.b32 %a, %p, -1; vote.sync.all.pred %q, %p, -1; selp.u32 %b, 1, 0, %q;
                 setp.lt.u32 %p, %t, 32; vote.sync.all.pred %q, %p, -1; selp.u32 %c, 2, 0, %q; or.b32 %b, %b, %c;
                 add.u32 %c, %t, 100; shfl.sync.idx.b32 %d, %c, %t, 7, -1; shfl.sync.idx.b32 %c, %c, 30, 31, -1;
                 mul.lo.u32 %c, %c, 1000; add.u32 %c, %c, %d; mul.lo.u32 %c, %c, 10; add.u32 %c, %c, %b;
                 mov.b64 %ro, {%a, %c}; st.global.u64 [%mine], %ro;",
            ),
            one,
            vec![0],
            // With a clamp of 7 and no segment mask lanes read up to lane 7, and themselves beyond.
            (0..32u64).map(|i| ((130 * 1000 + 100 + i) * 10 + 2) << 32 | 0xf_ffff).collect(),
        ),
        // The least and the most of a few of the lanes; a shuffle from the lane before, which the first lane has not.
        plain(
            "reductions and scans of a warp",
            &["redux.sync.max.u32", "shfl.sync.up.b32"],
            "9.7.9.6, 9.7.13.9",
            (
                "",
                "sub.s32 %a, %t, 7; redux.sync.max.u32 %b, %a, -1; min.u32 %a, %a, 100; redux.sync.max.u32 %a, %a, -1;
                 shr.u32 %b, %b, 28; add.u32 %a, %a, %b; shfl.sync.up.b32 %c, %t, 3, 0, -1;
                 mov.b64 %ro, {%a, %c}; st.global.u64 [%mine], %ro;",
            ),
            one,
            vec![0],
            (0..32u64).map(|i| (if i < 3 { i } else { i - 3 }) << 32 | 115).collect(),
        ),
        // Rows that pass L1 by, without a policy.
        plain(
            "L1::no_allocate",
            &["st.global.L1::no_allocate.v4.u32"],
            "9.7.9.12",
            (
                "",
                "mul.wide.u32 %at, %t, 16; add.s64 %ra, %from, %at; add.s64 %rb, %to, %at;
                 ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%a, %b, %c, %d}, [%ra];
                 st.global.L1::no_allocate.v4.u32 [%rb], {%c, %d, %a, %b};",
            ),
            one,
            words.clone(),
            (0..words.len()).map(|i| words[i ^ 1]).collect(),
        ),
        // Generic addresses of global memory, and words of shared memory.
        plain(
            "generic addresses",
            &["ld.u32", "ld.u64", "ld.f32", "st.u32", "st.u64", "st.shared.u32"],
            "9.7.9.8, 9.7.9.12",
            (
                ".shared .align 4 .b8 memory[128];",
                "mul.wide.u32 %at, %t, 8; add.s64 %ra, %from, %at;
                 ld.u32 %a, [%ra]; ld.f32 %b, [%ra+4]; ld.u64 %rb, [%ra];
                 mul.lo.u32 %c, %t, 4; mov.u32 %d, memory; add.u32 %d, %d, %c; st.shared.u32 [%d], %b; ld.shared.u32 %c, [%d];
                 st.u64 [%mine], %rb; st.u32 [%mine], %c; st.u32 [%mine+4], %a;",
            ),
            one,
            words.clone(),
            words[..32].iter().map(|w| w.rotate_left(32)).collect(),
        ),
    ]);
    all
}
