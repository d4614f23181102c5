//! `fp8_gemm_bugs.cu`: TMA, an mbarrier ring, WGMMA and a TMA store, with one mistake each.

use crate::common::fp8_gemm::{Product, only_values_are_wrong, run};
use crate::common::*;
use ptx_emu::{Config, Kind};

/// One block that makes two tiles, each with more blocks of k than the ring has slots.
const PRODUCT: Product = Product { m: 128, n: 64, k: 384, blocks: 1 };

fn wrong(variant: &str, kinds: &[Kind], places: &[Place], says: &[&str]) {
    let text = text(&format!("fp8_gemm_bugs-{variant}"), "sm_90a");
    let expected = Expected { text: &text, kernel: "fp8_gemm", kinds, places, thread: |id| id.block == [0; 3], says };
    reports(WRONG, &expected, |config| run(&text, config, PRODUCT));
}

const LOAD_A: Place = Place("cp.async.bulk.tensor.2d.shared", "cp_async_bulk_tensor_2d_load(shared + A");
const LOAD_B: Place = Place("cp.async.bulk.tensor.2d.shared", "cp_async_bulk_tensor_2d_load(shared + B");
const PRODUCTS: Place = Place("wgmma.mma_async", "ptx::wgmma_m64n64k32_f32_e4m3_e4m3(chain");
const WRITE_D: Place = Place("stmatrix", "ptx::stmatrix_x4(shared + D");
const STORE_D: Place = Place("cp.async.bulk.tensor.2d.global", "ptx::cp_async_bulk_tensor_2d_store(&d");

#[test]
fn without_a_mistake() {
    let text = text("fp8_gemm_bugs", "sm_90a");
    passes(CORRECT, |config| run(&text, config, PRODUCT));
}

#[test]
fn descriptors_with_another_swizzle_than_the_data() {
    let text = text("fp8_gemm_bugs-swizzle", "sm_90a");
    passes(WRONG, |config: Config| {
        let outcome = run(&text, config, PRODUCT);
        if only_values_are_wrong(&outcome) {
            Ok(())
        } else {
            Err(Failure::Wrong(format!("wrong values were expected: {outcome:?}")))
        }
    });
}

#[test]
fn no_barrier_after_mbarrier_init() {
    // Threads that come before the initialisation find no barrier.
    let uses = [
        Place("mbarrier.init", "ring.init(1, CONSUMER_WARPS);"),
        Place("mbarrier.try_wait", "ring.wait_full(slot);"),
        Place("mbarrier.try_wait", "ring.wait_empty(slot);"),
        Place("mbarrier.arrive", "ptx::mbarrier_arrive_expect_tx(ring.full(slot)"),
        Place("mbarrier.arrive", "ring.arrive_empty(slot);"),
        LOAD_A,
        LOAD_B,
    ];
    wrong("init", &[Kind::DataRace, Kind::BarrierMisuse], &uses, &["mbarrier"]);
}

#[test]
fn a_producer_that_does_not_wait_for_empty_slots() {
    // It may also be far ahead: then a second copy is announced in the same phase.
    let announce = Place("mbarrier.arrive", "ptx::mbarrier_arrive_expect_tx(ring.full(slot)");
    let places = [LOAD_A, LOAD_B, PRODUCTS, announce];
    wrong("empty", &[Kind::DataRace, Kind::BarrierMisuse], &places, &["shared"]);
}

#[test]
fn half_the_bytes_are_expected() {
    wrong("expect", &[Kind::DataRace], &[LOAD_A, LOAD_B, PRODUCTS], &["shared"]);
}

#[test]
fn no_wait_for_the_products() {
    wrong("wait", &[Kind::WgmmaRegisterInFlight], &[], &["wgmma"]);
}

#[test]
fn no_barrier_before_the_store() {
    wrong("store-barrier", &[Kind::DataRace], &[WRITE_D, STORE_D], &["shared"]);
}

#[test]
fn no_proxy_fence_before_the_store() {
    wrong("proxy", &[Kind::MissingProxyFence], &[WRITE_D, STORE_D], &["fence.proxy.async"]);
}

#[test]
fn the_store_still_reads_what_is_written_again() {
    wrong("reuse", &[Kind::DataRace], &[WRITE_D, STORE_D], &["shared"]);
}

#[test]
fn no_fence_before_the_products() {
    wrong("fence", &[Kind::MissingWgmmaFence], &[PRODUCTS], &["wgmma.fence"]);
}

#[test]
fn a_producer_that_waits_for_the_phase_under_way() {
    let places = [
        Place("mbarrier.try_wait", "pipeline::wait(ring.empty(slot), slot.parity);"),
        Place("mbarrier.try_wait", "ring.wait_full(slot);"),
    ];
    wrong("parity", &[Kind::Deadlock], &places, &["mbarrier", "warp 0", "warp 3", "warp 4"]);
}

#[test]
fn every_lane_arrives_where_one_is_expected() {
    // 32 arrivals of one instruction where 4 complete the phase.
    wrong("arrive", &[Kind::BarrierMisuse], &[Place("mbarrier.arrive", "ring.arrive_empty(slot);")], &["arriv"]);
}
