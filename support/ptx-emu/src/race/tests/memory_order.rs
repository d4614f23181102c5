//! Strong accesses, fences, scopes.

use super::*;
use AccessKind::{Read, ReadWrite, Write};
use Order::{AcqRel, Acquire, Relaxed, Release};
use Scope::{Cluster, Cta, Gpu, Sys};

const DATA: u64 = 0;
const FLAG: u64 = 4096;

fn sem(order: Order, scope: Scope) -> Sem {
    Sem::new(order, scope)
}

/// Two blocks of one device (a cluster each), and a block on another device.
fn three() -> (Bench, Warp, Warp, Warp) {
    let mut t = Bench::new(2, 32);
    let other = t.d.launch_begin(1, 1, 32, &[]).unwrap();
    let block = t.d.cluster_begin(other, &[0]).unwrap()[0];
    let (a, b) = (t.warp(0, 0), t.warp(1, 0));
    (t, a, b, Warp { block, index: 0 })
}

#[test]
fn release_and_acquire_order_at_matching_scopes() {
    for (release, acquire, far, expected) in [
        (Gpu, Gpu, false, None),
        (Sys, Gpu, false, None),
        (Cta, Gpu, false, Some(RaceKind::InsufficientScope)),
        (Gpu, Cta, false, Some(RaceKind::InsufficientScope)),
        (Cluster, Gpu, false, Some(RaceKind::InsufficientScope)),
        (Gpu, Gpu, true, Some(RaceKind::InsufficientScope)),
        (Sys, Gpu, true, Some(RaceKind::InsufficientScope)),
        (Gpu, Sys, true, Some(RaceKind::InsufficientScope)),
        (Sys, Sys, true, None),
    ] {
        let (mut t, a, b, c) = three();
        let other = if far { c } else { b };
        t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
        t.one(a, 0, Write, sem(Release, release), FLAG).unwrap();
        let polled = t.one(other, 0, Read, sem(Acquire, acquire), FLAG);
        assert_eq!(kind(polled), expected, "{release:?} {acquire:?} {far}");
        let read = kind(t.one(other, 0, Read, Sem::WEAK, DATA));
        assert_eq!(read.is_none(), expected.is_none(), "{release:?} {acquire:?} {far}");
    }
}

#[test]
fn only_the_acquiring_lane_learns_and_only_the_releasing_lane_is_released() {
    let (mut t, a, b, _) = three();
    t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
    t.one(a, 1, Write, Sem::WEAK, DATA + 4).unwrap();
    t.one(a, 0, Write, sem(Release, Gpu), FLAG).unwrap();
    t.one(b, 5, Read, sem(Acquire, Gpu), FLAG).unwrap();
    t.one(b, 5, Read, Sem::WEAK, DATA).unwrap();
    assert_eq!(kind(t.one(b, 5, Read, Sem::WEAK, DATA + 4)), Some(RaceKind::Unordered));
    assert_eq!(kind(t.one(b, 6, Read, Sem::WEAK, DATA)), Some(RaceKind::Unordered));
    // The usual way: a barrier on both sides.
    let (mut t, a, b, _) = three();
    t.write(a, ALL, Space::Global, DATA).unwrap();
    t.barrier(0);
    t.one(a, 0, Write, sem(Release, Gpu), FLAG).unwrap();
    t.one(b, 5, Read, sem(Acquire, Gpu), FLAG).unwrap();
    t.barrier(1);
    t.read(b, ALL, Space::Global, DATA).unwrap();
}

#[test]
fn relaxed_accesses_do_not_race_and_do_not_order() {
    let (mut t, a, b, _) = three();
    t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
    t.one(a, 0, Write, Sem::VOLATILE, FLAG).unwrap();
    t.one(b, 0, Read, Sem::VOLATILE, FLAG).unwrap();
    assert_eq!(kind(t.one(b, 0, Read, Sem::WEAK, DATA)), Some(RaceKind::Unordered));
    let (mut t, a, b, _) = three();
    t.one(a, 0, Write, Sem::WEAK, FLAG).unwrap();
    assert_eq!(kind(t.one(b, 0, Read, Sem::VOLATILE, FLAG)), Some(RaceKind::Unordered));
}

#[test]
fn fences_order_relaxed_accesses() {
    for (release, acquire, far, ordered) in [
        (Some(Gpu), Some(Gpu), false, true),
        (Some(Cta), Some(Gpu), false, false),
        (Some(Gpu), Some(Cta), false, false),
        (None, Some(Gpu), false, false),
        (Some(Gpu), None, false, false),
        (Some(Gpu), Some(Sys), true, false),
        (Some(Sys), Some(Sys), true, true),
    ] {
        let (mut t, a, b, c) = three();
        let other = if far { c } else { b };
        t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
        if let Some(scope) = release {
            t.d.fence(a, ALL, FenceOrder::Sc, scope).unwrap();
        }
        t.one(a, 0, Write, Sem::VOLATILE, FLAG).unwrap();
        // It polls more than once.
        t.one(other, 0, Read, Sem::VOLATILE, FLAG).unwrap();
        t.one(other, 0, Read, Sem::VOLATILE, FLAG).unwrap();
        if let Some(scope) = acquire {
            t.d.fence(other, ALL, FenceOrder::AcqRel, scope).unwrap();
        }
        let read = kind(t.one(other, 0, Read, Sem::WEAK, DATA));
        assert_eq!(read.is_none(), ordered, "{release:?} {acquire:?} {far}");
    }
}

#[test]
fn a_fence_covers_what_came_before_it_and_its_order_matters() {
    let (mut t, a, b, _) = three();
    t.d.fence(a, ALL, FenceOrder::AcqRel, Gpu).unwrap();
    t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
    t.one(a, 0, Write, sem(Relaxed, Gpu), FLAG).unwrap();
    t.one(b, 0, Read, sem(Acquire, Gpu), FLAG).unwrap();
    assert_eq!(kind(t.one(b, 0, Read, Sem::WEAK, DATA)), Some(RaceKind::Unordered));
    for (writer, reader, ordered) in [
        (FenceOrder::Release, FenceOrder::Acquire, true),
        (FenceOrder::Acquire, FenceOrder::Acquire, false),
        (FenceOrder::Release, FenceOrder::Release, false),
    ] {
        let (mut t, a, b, _) = three();
        t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
        t.d.fence(a, ALL, writer, Gpu).unwrap();
        t.one(a, 0, Write, sem(Relaxed, Gpu), FLAG).unwrap();
        t.one(b, 0, Read, sem(Relaxed, Gpu), FLAG).unwrap();
        t.d.fence(b, ALL, reader, Gpu).unwrap();
        let read = kind(t.one(b, 0, Read, Sem::WEAK, DATA));
        assert_eq!(read.is_none(), ordered, "{writer:?} {reader:?}");
    }
}

#[test]
fn a_narrower_fence_later_does_not_undo_a_wider_one() {
    let (mut t, a, b, _) = three();
    t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
    t.d.fence(a, ALL, FenceOrder::AcqRel, Gpu).unwrap();
    t.one(a, 0, Write, Sem::WEAK, DATA + 4).unwrap();
    t.d.fence(a, ALL, FenceOrder::AcqRel, Cta).unwrap();
    t.one(a, 0, Write, sem(Relaxed, Gpu), FLAG).unwrap();
    t.one(b, 0, Read, sem(Acquire, Gpu), FLAG).unwrap();
    t.one(b, 0, Read, Sem::WEAK, DATA).unwrap();
    assert_eq!(kind(t.one(b, 0, Read, Sem::WEAK, DATA + 4)), Some(RaceKind::Unordered));
}

#[test]
fn atomics_go_on_with_a_release_sequence_and_stores_end_it() {
    for (middle, ordered) in [
        (Some((ReadWrite, sem(Relaxed, Gpu))), true),
        (Some((ReadWrite, sem(AcqRel, Gpu))), true),
        (Some((Write, sem(Relaxed, Gpu))), false),
        (Some((Write, sem(Release, Gpu))), false),
        (None, true),
    ] {
        let mut t = Bench::new(3, 32);
        let (a, b, c) = (t.warp(0, 0), t.warp(1, 0), t.warp(2, 0));
        t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
        t.one(a, 0, ReadWrite, sem(Release, Gpu), FLAG).unwrap();
        if let Some((k, s)) = middle {
            t.one(b, 0, k, s, FLAG).unwrap();
        }
        t.one(c, 0, Read, sem(Acquire, Gpu), FLAG).unwrap();
        let read = kind(t.one(c, 0, Read, Sem::WEAK, DATA));
        assert_eq!(read.is_none(), ordered, "{middle:?}");
    }
}

#[test]
fn a_strong_store_publishes_the_threads_earlier_release_on_the_location() {
    let mut t = Bench::new(3, 32);
    let (a, b, c) = (t.warp(0, 0), t.warp(1, 0), t.warp(2, 0));
    t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
    t.one(a, 0, Write, sem(Release, Gpu), FLAG).unwrap();
    t.one(b, 0, Write, sem(Relaxed, Gpu), FLAG).unwrap();
    t.one(a, 0, Write, sem(Relaxed, Gpu), FLAG).unwrap();
    t.one(c, 0, Read, sem(Acquire, Gpu), FLAG).unwrap();
    t.one(c, 0, Read, Sem::WEAK, DATA).unwrap();
    // Not on another location, and not by another lane.
    t.one(a, 0, Write, sem(Relaxed, Gpu), FLAG + 8).unwrap();
    t.one(b, 0, Read, sem(Acquire, Gpu), FLAG + 8).unwrap();
    assert_eq!(kind(t.one(b, 0, Read, Sem::WEAK, DATA)), Some(RaceKind::Unordered));
}

#[test]
fn a_relaxed_read_then_an_acquire_of_the_same_location() {
    let mut t = Bench::new(3, 32);
    let (a, b, c) = (t.warp(0, 0), t.warp(1, 0), t.warp(2, 0));
    t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
    t.one(a, 0, Write, sem(Release, Gpu), FLAG).unwrap();
    t.one(c, 0, Read, sem(Relaxed, Gpu), FLAG).unwrap();
    t.one(c, 0, Read, sem(Acquire, Gpu), FLAG + 8).unwrap();
    t.one(b, 0, Write, sem(Relaxed, Gpu), FLAG).unwrap();
    t.one(c, 0, Read, sem(Acquire, Gpu), FLAG).unwrap();
    t.one(c, 0, Read, Sem::WEAK, DATA).unwrap();
}

#[test]
fn a_weak_store_publishes_nothing() {
    let (mut t, a, b, _) = three();
    t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
    t.one(a, 0, Write, sem(Release, Gpu), FLAG).unwrap();
    t.one(a, 0, Write, Sem::WEAK, FLAG).unwrap();
    assert_eq!(kind(t.one(b, 0, Read, sem(Acquire, Gpu), FLAG)), Some(RaceKind::Unordered));
    assert_eq!(kind(t.one(b, 0, Read, Sem::WEAK, DATA)), Some(RaceKind::Unordered));
}

#[test]
fn a_lock_passes_everything_on() {
    let mut t = Bench::new(4, 32);
    for round in 0..40 {
        let w = t.warp(round * 7 % 4, 0);
        let lane = round as u32 * 5 % 3;
        t.one(w, lane, ReadWrite, sem(Acquire, Gpu), FLAG).unwrap();
        t.one(w, lane, ReadWrite, Sem::WEAK, DATA).unwrap();
        let release = if round % 2 == 0 { Write } else { ReadWrite };
        t.one(w, lane, release, sem(Release, Gpu), FLAG).unwrap();
    }
    // The sequence of releases is kept short by dropping what later ones know.
    let location = &t.d.global.side.locations[&FLAG];
    assert!(location.published.len() < 40);
}

#[test]
fn the_last_block_resets_the_counter() {
    // The counter is reset by a plain store of the block that saw the last count, ordered only by having read it.
    let mut t = Bench::new(8, 64);
    for b in 0..8 {
        let (w, v) = (t.warp(b, 0), t.warp(b, 1));
        t.write(v, ALL, Space::Global, 256 * b as u64).unwrap();
        t.barrier(b);
        t.d.fence(w, 1, FenceOrder::Sc, Gpu).unwrap();
        t.one(w, 0, ReadWrite, sem(Relaxed, Gpu), FLAG).unwrap();
        t.d.fence(w, 1, FenceOrder::Sc, Gpu).unwrap();
        t.barrier(b);
    }
    let last = t.warp(7, 1);
    for b in 0..8 {
        t.read(last, ALL, Space::Global, 256 * b).unwrap();
    }
    t.one(last, 3, Write, Sem::WEAK, FLAG).unwrap();
    // Any earlier block did not see the last count.
    let mut t = Bench::new(3, 32);
    for b in 0..3 {
        t.one(t.warp(b, 0), 0, ReadWrite, sem(Relaxed, Gpu), FLAG).unwrap();
    }
    assert_eq!(kind(t.one(t.warp(1, 0), 0, Write, Sem::WEAK, FLAG)), Some(RaceKind::Unordered));
}

#[test]
fn a_reader_of_a_flag_may_overwrite_it() {
    let (mut t, a, b, _) = three();
    t.one(a, 0, Write, Sem::VOLATILE, FLAG).unwrap();
    t.one(b, 0, Read, Sem::VOLATILE, FLAG).unwrap();
    t.barrier(1);
    // The reader polls on; what another thread of its block learnt from the first poll still holds.
    t.one(b, 0, Read, Sem::VOLATILE, FLAG).unwrap();
    t.one(b, 9, Read, Sem::WEAK, FLAG).unwrap();
    assert_eq!(kind(t.one(b, 9, Write, Sem::WEAK, FLAG)), Some(RaceKind::Unordered));
    t.barrier(1);
    t.one(b, 9, Write, Sem::WEAK, FLAG).unwrap();
    let (mut t, a, b, _) = three();
    t.one(a, 0, Write, Sem::VOLATILE, FLAG).unwrap();
    assert_eq!(kind(t.one(b, 0, Write, Sem::WEAK, FLAG)), Some(RaceKind::Unordered));
}

#[test]
fn strong_accesses_of_different_sizes_race() {
    let (mut t, a, b, _) = three();
    let s = sem(Relaxed, Gpu);
    t.strided(a, 1, Write, s, Space::Global, FLAG, 0, 8).unwrap();
    assert_eq!(kind(t.strided(b, 1, Read, s, Space::Global, FLAG, 0, 4)), Some(RaceKind::MixedSize));
    t.strided(b, 1, Read, s, Space::Global, FLAG, 0, 8).unwrap();
    // Having read the value, the thread comes after its write.
    t.strided(b, 1, Read, s, Space::Global, FLAG, 0, 4).unwrap();
    assert_eq!(kind(t.strided(a, 1, Write, s, Space::Global, FLAG + 4, 0, 4)), Some(RaceKind::MixedSize));
    assert!(misused(t.strided(b, 1, Read, s, Space::Global, FLAG + 2, 0, 4)));
}

#[test]
fn small_strong_accesses_are_locations_of_their_own() {
    let (mut t, a, b, _) = three();
    for half in [0, 2] {
        let (x, y) = if half == 0 { (a, b) } else { (b, a) };
        t.one(x, 0, Write, Sem::WEAK, DATA + half * 8).unwrap();
        t.strided(x, 1, Write, sem(Release, Gpu), Space::Global, FLAG + half, 0, 2).unwrap();
        t.strided(y, 1, Read, sem(Acquire, Gpu), Space::Global, FLAG + half, 0, 2).unwrap();
        t.one(y, 0, Read, Sem::WEAK, DATA + half * 8).unwrap();
    }
}

#[test]
fn lanes_of_one_atomic_instruction_synchronise_in_order() {
    let mut t = Bench::new(1, 32);
    let a = t.warp(0, 0);
    t.write(a, ALL, Space::Global, DATA).unwrap();
    t.strided(a, ALL, ReadWrite, sem(AcqRel, Gpu), Space::Global, FLAG, 0, 4).unwrap();
    // The last lane to count has learnt of all the others, the first of none.
    let mut u = Bench::new(1, 32);
    u.write(a, ALL, Space::Global, DATA).unwrap();
    u.strided(a, ALL, ReadWrite, sem(AcqRel, Gpu), Space::Global, FLAG, 0, 4).unwrap();
    for word in 0..32 {
        t.one(a, 31, Read, Sem::WEAK, DATA + 4 * word).unwrap();
    }
    assert_eq!(kind(u.one(a, 0, Read, Sem::WEAK, DATA + 4)), Some(RaceKind::Unordered));
}

#[test]
fn clusters_are_a_scope() {
    for (cluster, ordered) in [(2, true), (1, false)] {
        let mut t = Bench::of_clusters(2, 32, cluster);
        let (a, b) = (t.warp(0, 0), t.warp(1, 0));
        t.one(a, 0, Write, Sem::WEAK, DATA).unwrap();
        t.one(a, 0, Write, sem(Release, Cluster), FLAG).unwrap();
        assert_eq!(kind(t.one(b, 0, Read, sem(Acquire, Cluster), FLAG)).is_none(), ordered);
        assert_eq!(kind(t.one(b, 0, Read, Sem::WEAK, DATA)).is_none(), ordered);
    }
}

#[test]
fn the_cluster_barrier_orders_its_blocks() {
    for relaxed in [None, Some(false), Some(true)] {
        let mut t = Bench::of_clusters(2, 64, 2);
        t.write(t.warp(0, 1), ALL, t.shared(0), 0).unwrap();
        let mut phase = SyncVar::new();
        for b in 0..2 {
            for w in 0..2 {
                let w = t.warp(b, w);
                match relaxed {
                    None => t.d.release(w, ALL, &mut phase).unwrap(),
                    Some(fence) => {
                        if fence {
                            t.d.fence(w, ALL, FenceOrder::AcqRel, Cluster).unwrap();
                        }
                        t.d.release_relaxed(w, ALL, &mut phase).unwrap();
                    }
                }
            }
        }
        for w in 0..2 {
            t.d.acquire(t.warp(1, w), ALL, &mut phase).unwrap();
        }
        let read = t.read(t.warp(1, 0), ALL, t.shared(0), 0);
        assert_eq!(kind(read).is_none(), relaxed != Some(false), "{relaxed:?}");
    }
}

#[test]
fn a_relaxed_wait_needs_a_fence() {
    for fence in [false, true] {
        let mut t = Bench::of_clusters(2, 32, 2);
        let (a, b) = (t.warp(0, 0), t.warp(1, 0));
        t.write(a, ALL, t.shared(0), 0).unwrap();
        let mut phase = SyncVar::new();
        t.d.release(a, ALL, &mut phase).unwrap();
        t.d.acquire_relaxed(b, ALL, &phase).unwrap();
        if fence {
            t.d.fence(b, ALL, FenceOrder::Acquire, Cluster).unwrap();
        }
        assert_eq!(kind(t.read(b, ALL, t.shared(0), 0)).is_none(), fence);
    }
}

#[test]
fn fences_before_a_barrier_order_by_the_order_of_sc_fences() {
    // Every thread fences its own write, a barrier follows, one thread sets a flag: no release pattern, unless both sides use fence.sc.
    for (writer, reader, far, ordered) in [
        (FenceOrder::Sc, FenceOrder::Sc, false, true),
        (FenceOrder::Sc, FenceOrder::AcqRel, false, false),
        (FenceOrder::AcqRel, FenceOrder::Sc, false, false),
        (FenceOrder::Sc, FenceOrder::Sc, true, false),
    ] {
        let mut t = Bench::new(2, 64);
        let other = t.d.launch_begin(1, 1, 64, &[]).unwrap();
        let block = t.d.cluster_begin(other, &[0]).unwrap()[0];
        let reading = if far { Warp { block, index: 0 } } else { t.warp(1, 0) };
        let (a, b) = (t.warp(0, 0), t.warp(0, 1));
        t.write(b, ALL, Space::Global, DATA).unwrap();
        t.d.fence(a, ALL, writer, Gpu).unwrap();
        t.d.fence(b, ALL, writer, Gpu).unwrap();
        t.barrier(0);
        t.one(a, 0, Write, sem(Relaxed, Sys), FLAG).unwrap();
        t.one(reading, 0, Read, sem(Relaxed, Sys), FLAG).unwrap();
        t.d.fence(reading, ALL, reader, Gpu).unwrap();
        let read = kind(t.one(reading, 0, Read, Sem::WEAK, DATA));
        assert_eq!(read.is_none(), ordered, "{writer:?} {reader:?} {far}");
    }
    // A release operation without a fence of its own passes the fences on only to those who fence.
    let mut t = Bench::new(2, 64);
    let (a, b, c) = (t.warp(0, 0), t.warp(0, 1), t.warp(1, 0));
    t.write(b, ALL, Space::Global, DATA).unwrap();
    t.d.fence(b, ALL, FenceOrder::Sc, Gpu).unwrap();
    t.barrier(0);
    t.one(a, 0, Write, sem(Relaxed, Gpu), FLAG).unwrap();
    t.one(c, 0, Read, sem(Acquire, Gpu), FLAG).unwrap();
    assert_eq!(kind(t.one(c, 0, Read, Sem::WEAK, DATA)), Some(RaceKind::Unordered));
}

#[test]
fn atomics_of_blocks_need_a_scope_that_has_both() {
    for (first, second, expected) in
        [(Cta, Cta, Some(RaceKind::InsufficientScope)), (Gpu, Cta, Some(RaceKind::InsufficientScope)), (Gpu, Gpu, None)]
    {
        let (mut t, a, b, c) = three();
        // Lanes of one block may.
        t.one(a, 0, ReadWrite, sem(Relaxed, first), FLAG).unwrap();
        t.one(a, 1, ReadWrite, sem(Relaxed, first), FLAG).unwrap();
        assert_eq!(kind(t.one(b, 0, ReadWrite, sem(Relaxed, second), FLAG)), expected);
        let far = t.one(c, 0, ReadWrite, sem(Relaxed, Gpu), FLAG);
        assert_eq!(kind(far), Some(RaceKind::InsufficientScope));
    }
}

#[test]
fn a_reader_comes_after_the_lane_whose_value_it_read_only() {
    let (mut t, a, b, _) = three();
    t.strided(a, 3, Write, sem(Relaxed, Gpu), Space::Global, FLAG, 0, 4).unwrap();
    t.one(b, 0, Read, sem(Relaxed, Gpu), FLAG).unwrap();
    let race = race(t.one(b, 0, Read, Sem::WEAK, FLAG));
    assert!(matches!(race.first.actor, Actor::Thread { lane: 0, .. }), "{race:?}");
}
