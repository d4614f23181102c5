// The asynchronous instructions of sm_90a, written as inline PTX.
#include <cstdint>

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    asynchronous(const __grid_constant__ char4 map, float *out, uint64_t desc_a, uint64_t desc_b) {
    extern __shared__ __align__(1024) unsigned char smem[];
    uint32_t s = (uint32_t)__cvta_generic_to_shared(smem);
    float d[8] = {};
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(s), "r"(1));
    asm volatile("fence.mbarrier_init.release.cluster;");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(s), "r"(1024));
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(s + 1024), "l"(&map), "r"(s), "r"(3), "r"(4), "l"(0x1234ull) : "memory");
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%1, {%3, %4, 0}], [%2];"
                 ::"r"(s + 1024), "l"(&map), "r"(s), "r"(3), "r"(4) : "memory");
    asm volatile("{\n.reg .pred P1;\nLAB_WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n"
                 "@P1 bra DONE;\nbra LAB_WAIT;\nDONE:\n}\n" ::"r"(s), "r"(0));
    asm volatile("wgmma.fence.sync.aligned;");
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, p, 1, 1;\n}\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                 : "l"(desc_a), "l"(desc_b), "r"((int)(threadIdx.x > 0)));
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    uint32_t elected, a, b, c, e;
    asm volatile("{ .reg .pred P; .reg .b32 R; elect.sync R|P, 0xFFFFFFFF; @P mov.s32 %0, 1; @!P mov.s32 %0, 0; }" : "=r"(elected));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4+-16];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(e) : "r"(s));
    asm volatile("bar.sync %0, %1;" ::"r"(1), "n"(128));
    asm volatile("griddepcontrol.wait;");
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;");
    for (int i = 0; i < 8; ++i) out[threadIdx.x + i * 384] = d[i] + a + b + c + e + elected;
}
