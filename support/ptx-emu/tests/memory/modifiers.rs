//! What is taken and what is not: each line was tried with ptxas 13.0.88 for sm_90a, which takes and refuses the same.

use super::decodes;

#[test]
fn forms_that_the_assembler_takes() {
    for body in "
        atom.global.cas.b16 %h2, [%rd1], %h3, %h4;
        atom.shared.b128.cas %q0, [sh], %q1, %q2;
        atom.shared.cas.b128 %q0, [sh], %q1, %q2;
        atom.global.v4.f32.add {%f0,%f1,%f2,%f3}, [%rd1], {%f0,%f1,%f2,%f3};
        atom.global.add.v4.f32 {%f0,%f1,%f2,%f3}, [%rd1], {%f0,%f1,%f2,%f3};
        atom.add.noftz.v2.bf16x2 {%r0,%r1}, [%rd1], {%r0,%r1};
        atom.global.v8.f16.max.noftz {%h0,%h1,%h2,%h3,%h4,%h5,%h6,%h7}, [%rd1], {%h0,%h1,%h2,%h3,%h4,%h5,%h6,%h7};
        red.global.v4.f16x2.max.noftz [%rd1], {%r0,%r1,%r2,%r3};
        atom.global.relaxed.cta.add.u32 %r0, [%rd1], 1;
        atom.add.u32 %r0, [sh], 1;
        atom.add.f64 %fd0, [%rd1], %fd1;
        atom.add.u32 _, [%rd1], %r1;
        ld.u32 %r0, [gv];
        ld.u32 %r0, [sh];
        ld.u32 %r0, [lo];
        st.u32 [sh], %r0;
        ld.shared.u32 %r0, [%rd1];
        ld.shared.u32 %r0, [%r1];
        ld.local.u32 %r0, [%r1+4];
        ld.local.u32 %r0, [%rd1+4];
        ld.param.u32 %r0, [%rd1];
        mov.u64 %rd2, blob; ld.param.u32 %r0, [%rd2+4];
        ld.global.u8 %h0, [%rd1];
        ld.global.s8 %rd0, [%rd1];
        ld.global.f32 %r0, [%rd1];
        ld.global.b16 %r0, [%rd1];
        ld.global.v2.u8 {%h0,%h1}, [%rd1];
        ld.global.v4.u32 {%r0,_,%r1,_}, [%rd1];
        ld.global.v2.f64 {%fd0,%fd1}, [%rd1];
        ld.global.b128 %q0, [%rd1];
        ld.volatile.global.v4.u32 {%r0,%r1,%r2,%r3}, [%rd1];
        ld.global.ca.nc.u32 %r0, [%rd1];
        ld.global.nc.ca.u32 %r0, [%rd1];
        ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%r0,%r1,%r2,%r3}, [%rd1];
        ld.acquire.cta.shared.u32 %r0, [sh];
        ld.weak.global.L2::cache_hint.u32 %r0, [%rd1], %rd2;
        ld.mmio.relaxed.sys.global.u32 %r0, [%rd1];
        ld.global.v4.b8 {%r0,%r1,%r2,%r3}, [%rd1];
        ld.global.v8.b8 {%r0,%r1,%r2,%r3,%r0,%r1,%r2,%r3}, [%rd1];
        st.global.u8 [%rd1], %r0;
        st.global.u8 [%rd1], %rd0;
        st.global.u32 [%rd1], 5;
        st.global.f32 [%rd1], 0f3F800000;
        st.global.f32 [%rd1], 1.5;
        st.global.v2.f32 [%rd1], {%f0, 0f00000000};
        st.global.b128 [%rd1], %q0;
        st.global.u32 [gv+8], %r0;
        st.shared::cluster.u32 [%r1], %r0;
        st.wt.global.u32 [%rd1], %r0;
        st.global.cg.u32 [%rd1], %r0;
        st.release.gpu.global.u32 [%rd1], %r0;
        st.volatile.shared.u32 [sh], %r0;
        isspacep.global %p1, %rd1;
        isspacep.shared %p1, %r1;
        isspacep.param::entry %p1, %rd1;
        cvta.to.shared::cluster.u64 %rd2, %rd1;
        cvta.to.param.u64 %rd2, %rd1;
        cvta.param.u64 %rd2, blob+4;
        cvta.local.u64 %rd2, lo;
        cvta.global.u64 %rd2, gv;
        cvta.const.u64 %rd2, cv;
        cvta.to.global.u64 %rd2, 4096;
        prefetch.global.L2::evict_last [%rd1];
        prefetch.L1 [%rd1];
        prefetchu.L1 [%rd1];
        prefetch.tensormap [%rd1];
        prefetch.param.tensormap [blob];
        applypriority.global.L2::evict_normal [%rd1], 128;
        discard.global.L2 [%rd1], 128;
        discard.L2 [%rd1], 128;
        createpolicy.fractional.L2::evict_last.b64 %rd2, 0.25;
        createpolicy.fractional.L2::evict_last.b64 %rd2;
        createpolicy.fractional.L2::evict_last.b64 %rd2, %f1;
        createpolicy.range.global.L2::evict_last.L2::evict_first.b64 %rd2, [%rd1], 65536, 131072;
        createpolicy.range.L2::evict_last.b64 %rd2, [%rd1], %r1, %r2;
        createpolicy.cvt.L2.b64 %rd2, %rd3;
        mapa.shared::cluster.u32 %r2, sh, 1;
        mapa.shared::cluster.u32 %r2, %r1, %r3;
        mapa.shared::cluster.u64 %rd2, sh+4, %r3;
        mapa.u64 %rd2, %rd1, %r3;
        getctarank.shared::cluster.u32 %r2, sh;
        getctarank.u64 %r2, %rd1;
        ldu.global.u32 %r0, [%rd1];"
        .lines()
        .filter(|l| !l.trim().is_empty())
    {
        assert_eq!(decodes(body), Ok(()), "{body}");
    }
}

#[test]
fn forms_that_the_assembler_refuses() {
    for body in "
        atom.global.add.s64 %rd2, [%rd1], %rd3;
        atom.global.inc.u64 %rd2, [%rd1], %rd3;
        atom.global.min.f32 %f2, [%rd1], %f3;
        atom.global.min.noftz.f16x2 %r2, [%rd1], %r3;
        atom.global.and.u32 %r2, [%rd1], %r3;
        atom.global.cas.u32 %r2, [%rd1], %r3, %r4;
        atom.global.exch.f32 %f2, [%rd1], %f3;
        atom.global.exch.b16 %h2, [%rd1], %h3;
        red.global.max.noftz.f16x2 [%rd1], %r0;
        atom.global.add.f16 %h0, [%rd1], %h1;
        red.global.acquire.gpu.add.u32 [%rd1], %r0;
        red.global.exch.b32 [%rd1], %r0;
        red.async.relaxed.cluster.global.add.u32 [%rd1], %r0;
        atom.local.add.u32 %r0, [lo], 1;
        atom.shared.add.v2.f32 {%f0,%f1}, [sh], {%f0,%f1};
        ld.u32 %r0, [cv];
        ld.u32 %r0, [n];
        ld.global.u32 %r0, [sh];
        ld.shared.u32 %r0, [gv];
        ld.global.f16 %h0, [%rd1];
        ld.global.u64 %r0, [%rd1];
        ld.global.v4.f64 {%fd0,%fd1,%fd2,%fd3}, [%rd1];
        ld.global.v2.b128 {%q0,%q1}, [%rd1];
        ld.global.v2.u32 {%r0,%r1,%r2}, [%rd1];
        ld.acquire.u32 %r0, [%rd1];
        ld.relaxed.u32 %r0, [%rd1];
        ld.relaxed.gpu.cg.global.u32 %r0, [%rd1];
        ld.volatile.local.u32 %r0, [lo];
        ld.volatile.param.u32 %r0, [n];
        ld.global.v4.u32.v2 {%r0,%r1,%r2,%r3}, [%rd1];
        ld.global.shared.u32 %r0, [%rd1];
        ld.release.gpu.u32 %r0, [%rd1];
        ld.gpu.u32 %r0, [%rd1];
        ld.global.u32 %r0, [%rd1], %rd2;
        ld.global.L2::cache_hint.u32 %r0, [%rd1];
        ld.global.frob.u32 %r0, [%rd1];
        ld.global %r0, [%rd1];
        st.global.v4.u32 [%rd1], {%r0,_,%r1,%r2};
        st.const.u32 [cv], %r0;
        st.param.u32 [n], %r0;
        st.param::entry.u32 [n], %r0;
        st.global.u64 [%rd1], gv;
        st.global.u32 [%rd1], %tid.x;
        st.release.global.u32 [%rd1], %r0;
        st.acquire.gpu.global.u32 [%rd1], %r0;
        st.global.ca.u32 [%rd1], %r0;
        cvta.shared.u32 %r2, %r1;
        cvta.shared.u64 %rd2, %r1;
        cvta.shared.u64 %rd2, gv;
        ldu.shared.u32 %r0, [%r1];
        ld.global.pred %p1, [%rd1];
        ld.global.ca.L1::evict_last.u32 %r0, [%rd1];
        ld.global.v3.u32 {%r0,%r1,%r2}, [%rd1];
        ld.shared.nc.u32 %r0, [sh];
        ld.nc.u32 %r0, [%rd1];
        st.bulk.weak.shared::cta [sh], 64, 0;
        applypriority.global.L2::evict_normal [%rd1], 64;
        createpolicy.fractional.L2::evict_last.L2::evict_last.b64 %rd2;
        prefetch.shared.L1 [sh];
        mapa.u32 %r2, %r1, %r3;
        isspacep.shared::grid %p1, %rd1;"
        .lines()
        .filter(|l| !l.trim().is_empty())
    {
        assert!(decodes(body).is_err(), "{body}");
    }
}

#[test]
fn what_is_not_modelled_is_named() {
    for (body, name) in [
        ("ld.global.v8.b32 {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7}, [%rd1];", "ld.global.v8.b32"),
        ("st.global.v4.b64 [%rd1], {%rd0,%rd1,%rd2,%rd3};", "st.global.v4.b64"),
        ("stacksave.u64 %rd1;", "stacksave.u64"),
        ("alloca.u64 %rd1, 16;", "alloca.u64"),
        ("ld.global.u31 %r0, [%rd1];", "ld.global.u31"),
    ] {
        let error = decodes(body).expect_err(body);
        assert!(error.contains(&format!("unknown instruction {name}")), "{error}");
    }
}
