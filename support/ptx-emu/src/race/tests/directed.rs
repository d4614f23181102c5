//! Accesses, barriers, launches.

use super::*;

#[test]
fn a_barrier_orders_and_its_absence_is_a_race() {
    let mut t = Bench::new(1, 64);
    let (a, b, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
    t.write(a, ALL, s, 0).unwrap();
    t.barrier(0);
    t.read(b, ALL, s, 0).unwrap();
    t.read(a, ALL, s, 0).unwrap();
    // A write after others' reads, without a barrier.
    let race = race(t.write(b, 1 << 7, s, 0));
    assert_eq!(race.kind, RaceKind::Unordered);
    assert_eq!((race.space, race.address, race.size), (s, 28, 4));
    assert_eq!(race.first.actor, Actor::Thread { launch: t.launch, block: 0, warp: 0, lane: 7 });
    assert_eq!(race.second.actor, Actor::Thread { launch: t.launch, block: 0, warp: 1, lane: 7 });
    assert_eq!((race.first.site, race.second.site), (3, 4));
    assert!(!race.first.writes && race.second.writes);
    assert!(race.first.time < race.second.time);
}

#[test]
fn lanes_of_a_warp_are_ordered_only_by_program_order_and_warp_barriers() {
    let mut t = Bench::new(1, 32);
    let (a, s) = (t.warp(0, 0), t.shared(0));
    t.write(a, ALL, s, 0).unwrap();
    t.read(a, ALL, s, 0).unwrap();
    t.write(a, ALL, s, 0).unwrap();
    // Each lane reads its neighbour's word.
    assert_eq!(kind(t.read(a, ALL >> 1, s, 4)), Some(RaceKind::Unordered));

    let mut t = Bench::new(1, 32);
    let (a, s) = (t.warp(0, 0), t.shared(0));
    t.write(a, ALL, s, 0).unwrap();
    t.d.warp_barrier(a, ALL).unwrap();
    t.read(a, ALL >> 1, s, 4).unwrap();
    // A barrier of the lower half does not order the upper half.
    t.d.warp_barrier(a, 0xffff).unwrap();
    t.write(a, 0x7fff, s, 4).unwrap();
    assert_eq!(kind(t.write(a, 1 << 20, s, 0)), Some(RaceKind::Unordered));
}

#[test]
fn a_named_barrier_orders_only_its_members() {
    let mut t = Bench::new(1, 128);
    let s = t.shared(0);
    let w: Vec<Warp> = (0..4).map(|i| t.warp(0, i)).collect();
    t.write(w[0], ALL, s, 0).unwrap();
    t.write(w[3], ALL, s, 128).unwrap();
    t.d.barrier(t.blocks[0], &[(0, ALL), (1, ALL)], None).unwrap();
    t.read(w[1], ALL, s, 0).unwrap();
    assert_eq!(kind(t.read(w[2], 1, s, 0)), Some(RaceKind::Unordered));
    assert_eq!(kind(t.read(w[1], 1, s, 128)), Some(RaceKind::Unordered));
}

#[test]
fn bar_arrive_releases_what_was_done_before_it_only() {
    let mut t = Bench::new(1, 96);
    let s = t.shared(0);
    let (a, b) = (t.warp(0, 0), t.warp(0, 1));
    let mut arrived = SyncVar::new();
    t.write(a, ALL, s, 0).unwrap();
    t.d.release(a, ALL, &mut arrived).unwrap();
    t.write(a, ALL, s, 256).unwrap();
    t.d.barrier(t.blocks[0], &[(1, ALL)], Some(&arrived)).unwrap();
    t.read(b, ALL, s, 0).unwrap();
    assert_eq!(kind(t.read(b, ALL, s, 256)), Some(RaceKind::Unordered));
    // And the arriving warp learns nothing.
    t.write(b, ALL, s, 512).unwrap();
    assert_eq!(kind(t.read(a, ALL, s, 512)), Some(RaceKind::Unordered));
}

#[test]
fn a_barrier_without_exited_threads_does_not_order_them() {
    let mut t = Bench::new(1, 64);
    let (a, b, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
    t.write(a, 1 << 31, s, 0).unwrap();
    t.d.barrier(t.blocks[0], &[(0, ALL >> 1), (1, ALL)], None).unwrap();
    assert_eq!(kind(t.read(b, 1 << 31, s, 0)), Some(RaceKind::Unordered));
}

#[test]
fn barriers_of_warps_with_fewer_lanes_count_as_whole() {
    let mut t = Bench::new(1, 40);
    let (a, b, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
    t.write(b, 0xff, s, 0).unwrap();
    t.barrier(0);
    t.read(a, ALL, s, 0).unwrap();
    t.d.warp_barrier(b, 0xff).unwrap();
    t.write(b, 0xff, s, 256).unwrap();
    t.d.warp_barrier(b, 0xff).unwrap();
    t.write(b, 0x7f, s, 260).unwrap();
}

#[test]
fn lanes_of_one_instruction_may_write_equal_values() {
    for (agree, expected) in [(true, None), (false, Some(RaceKind::SameInstruction))] {
        let mut t = Bench::new(1, 64);
        let a = t.warp(0, 0);
        let check = |x: u32, y: u32| {
            assert!(x != y);
            agree
        };
        let access = Access {
            space: Space::Global,
            kind: AccessKind::Write,
            sem: Sem::WEAK,
            mask: 0xff,
            addresses: &[64; 32],
            size: 4,
            element: 4,
            site: 9,
            agree: Some(&check),
        };
        assert_eq!(kind(t.d.access(a, &access)), expected);
        // All the writers are remembered: a later one that knows only the last of them races with the others.
        if agree {
            assert_eq!(kind(t.one(a, 7, AccessKind::Write, Sem::WEAK, 64)), Some(RaceKind::Unordered));
        }
    }
}

#[test]
fn bytes_and_halves_of_a_word_have_histories_of_their_own() {
    let mut t = Bench::new(1, 64);
    let (a, b, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
    let weak = Sem::WEAK;
    // 32 halves in a row: lane i owns half i, again and again, without any barrier.
    for _ in 0..3 {
        t.strided(a, ALL, AccessKind::Read, weak, s, 0, 2, 2).unwrap();
        t.strided(a, ALL, AccessKind::Write, weak, s, 0, 2, 2).unwrap();
    }
    assert_eq!(t.d.stats().split_words, 0);
    // Bytes.
    for _ in 0..3 {
        t.strided(b, ALL, AccessKind::Write, weak, s, 1024, 1, 1).unwrap();
        t.strided(b, ALL, AccessKind::Read, weak, s, 1024, 1, 1).unwrap();
    }
    assert_eq!(t.d.stats().split_words, 0);
    // Interleaved halves of two warps.
    t.strided(a, 1, AccessKind::Write, weak, s, 2048, 4, 2).unwrap();
    t.strided(b, 1, AccessKind::Write, weak, s, 2050, 4, 2).unwrap();
    assert_eq!(t.d.stats().split_words, 1);
    t.strided(a, 1, AccessKind::Read, weak, s, 2048, 4, 2).unwrap();
    t.strided(b, 1, AccessKind::Read, weak, s, 2050, 4, 2).unwrap();
    let race = race(t.read(a, 1, s, 2048));
    assert_eq!((race.address, race.size), (2050, 1));
    // A whole write that knows both makes one word of it again.
    t.barrier(0);
    t.write(b, 1, s, 2048).unwrap();
    assert_eq!(t.d.stats().split_words, 0);
    // Unaligned bytes across two words.
    t.strided(a, 2, AccessKind::Read, weak, s, 2044, 2, 2).unwrap();
    assert_eq!(kind(t.strided(a, 2, AccessKind::Read, weak, s, 2045, 2, 2)), Some(RaceKind::Unordered));
}

#[test]
fn vectors_cover_all_their_words() {
    let mut t = Bench::new(1, 64);
    let (a, b) = (t.warp(0, 0), t.warp(0, 1));
    t.strided(a, ALL, AccessKind::Write, Sem::WEAK, Space::Global, 4096, 16, 16).unwrap();
    for word in [0, 1, 2, 3, 77, 127] {
        let mut u = Bench::new(1, 64);
        u.strided(a, ALL, AccessKind::Write, Sem::WEAK, Space::Global, 4096, 16, 16).unwrap();
        let c = u.one(b, 3, AccessKind::Read, Sem::WEAK, 4096 + 4 * word);
        assert_eq!(kind(c), Some(RaceKind::Unordered), "word {word}");
    }
    t.one(b, 3, AccessKind::Read, Sem::WEAK, 4096 + 512).unwrap();
}

#[test]
fn readers_do_not_race_and_all_are_remembered() {
    for culprit in 0..12 {
        let mut t = Bench::new(1, 12 * 32);
        let s = t.shared(0);
        for w in 0..12 {
            t.read(t.warp(0, w), ALL, s, 0).unwrap();
        }
        // All but one of the readers meet the writer.
        let members: Vec<_> = (0..12).filter(|&w| w != culprit).map(|w| (w, ALL)).collect();
        t.d.barrier(t.blocks[0], &members, None).unwrap();
        let writer = (culprit + 1) % 12;
        let race = race(t.write(t.warp(0, writer), ALL, s, 0));
        assert!(matches!(race.first.actor, Actor::Thread { warp, .. } if warp == culprit), "{race:?}");
    }
    let mut t = Bench::new(1, 12 * 32);
    let s = t.shared(0);
    for _ in 0..4 {
        for w in 0..12 {
            t.read(t.warp(0, w), ALL, s, 0).unwrap();
        }
        t.barrier(0);
        t.write(t.warp(0, 5), ALL, s, 0).unwrap();
        t.barrier(0);
    }
    assert_eq!(t.d.stats().spilled_words, 0);
}

#[test]
fn blocks_share_nothing_but_race_in_global_memory() {
    let mut t = Bench::new(2, 32);
    let (a, b) = (t.warp(0, 0), t.warp(1, 0));
    let (s0, s1) = (t.shared(0), t.shared(1));
    t.write(a, ALL, s0, 0).unwrap();
    t.write(b, ALL, s1, 0).unwrap();
    t.write(a, ALL, Space::Global, 0).unwrap();
    t.barrier(0);
    t.barrier(1);
    assert_eq!(kind(t.read(b, ALL, Space::Global, 0)), Some(RaceKind::Unordered));
    // Distributed shared memory lies in the owner's.
    assert_eq!(kind(t.read(b, ALL, s0, 0)), Some(RaceKind::Unordered));
}

#[test]
fn an_ended_block_still_races_in_global_memory() {
    let mut t = Bench::new(2, 32);
    let (a, b) = (t.warp(0, 0), t.warp(1, 0));
    t.write(a, ALL, Space::Global, 0).unwrap();
    let s = t.shared(0);
    t.write(a, ALL, s, 0).unwrap();
    assert_eq!(t.d.stats().pages, 2);
    t.d.block_end(t.blocks[0]).unwrap();
    assert_eq!(t.d.stats().pages, 1);
    let race = race(t.read(b, ALL, Space::Global, 0));
    assert_eq!(race.first.actor, Actor::Thread { launch: t.launch, block: 0, warp: 0, lane: 0 });
    // The ended block is no longer to be named.
    assert!(misused(t.write(a, ALL, s, 0)));
    assert!(misused(t.write(b, ALL, s, 0)));
    // Its slot serves another, whose shared memory is new.
    let mut t = Bench::new(3, 32);
    t.write(t.warp(0, 0), ALL, t.shared(0), 0).unwrap();
    t.d.block_end(t.blocks[0]).unwrap();
    t.blocks[0] = t.d.cluster_begin(t.launch, &[2]).unwrap()[0];
    t.write(t.warp(0, 0), ALL, t.shared(0), 0).unwrap();
}

fn run(d: &mut Detector, device: u32, after: &[LaunchId], kind: AccessKind, address: u64) -> (LaunchId, Option<RaceKind>) {
    let launch = d.launch_begin(device, 1, 32, after).unwrap();
    let block = d.cluster_begin(launch, &[0]).unwrap()[0];
    let access = Access {
        space: Space::Global,
        kind,
        sem: Sem::WEAK,
        mask: 1,
        addresses: &[address; 32],
        size: 4,
        element: 4,
        site: 0,
        agree: None,
    };
    let outcome = super::kind(d.access(Warp { block, index: 0 }, &access));
    d.block_end(block).unwrap();
    d.launch_end(launch).unwrap();
    (launch, outcome)
}

#[test]
fn launches_are_ordered_by_streams_events_and_the_host() {
    use AccessKind::{Read, Write};
    let mut d = Detector::new();
    let (l0, r) = run(&mut d, 0, &[], Write, 0);
    assert_eq!(r, None);
    let (l1, r) = run(&mut d, 0, &[l0], Read, 0);
    assert_eq!(r, None);
    // Another stream that waits for l1 knows l0 as well.
    let (l2, r) = run(&mut d, 1, &[l1], Write, 0);
    assert_eq!(r, None);
    let (_, r) = run(&mut d, 1, &[l1], Read, 0);
    assert_eq!(r, Some(RaceKind::Unordered));
    let (_, r) = run(&mut d, 0, &[], Read, 0);
    assert_eq!(r, Some(RaceKind::Unordered));
    // The host waits for the writer; reads of launches that it did not wait for still race with what follows.
    d.host_wait(&[l2]).unwrap();
    let (_, r) = run(&mut d, 0, &[], Read, 0);
    assert_eq!(r, None);
    d.host_sync().unwrap();
    let (_, r) = run(&mut d, 0, &[], Write, 0);
    assert_eq!(r, None);
    assert_eq!(d.launches.len(), 1);
}

#[test]
fn the_past_is_forgotten_when_the_host_knows_it_all() {
    use AccessKind::Write;
    let mut d = Detector::new();
    let mut last = Vec::new();
    for _ in 0..100 {
        let (l, r) = run(&mut d, 0, &last, Write, 0);
        assert_eq!(r, None);
        last = vec![l];
    }
    assert_eq!(d.launches.len(), 100);
    // A chain of launches is one range.
    assert!(d.launches.last().unwrap().base.ended.len() <= 1);
    d.host_wait(&last).unwrap();
    run(&mut d, 0, &[], Write, 0);
    assert_eq!((d.launches.len(), d.stats().pages), (1, 1));
    assert!(d.stats().events < 10);
}

#[test]
fn the_host_races_with_launches_it_did_not_wait_for() {
    use AccessKind::{Read, Write};
    let mut d = Detector::new();
    d.host_access(0, 4096, Write, 7).unwrap();
    let (l, r) = run(&mut d, 0, &[], Write, 64);
    assert_eq!(r, None);
    let race = d.host_access(60, 8, Read, 8).unwrap_err();
    assert!(matches!(*race, Report::Race(r) if r.address == 64 && r.second.actor == Actor::Host && r.second.site == 8));
    d.host_access(4, 56, Read, 8).unwrap();
    d.host_wait(&[l]).unwrap();
    d.host_access(60, 8, Write, 9).unwrap();
    // A launch that had begun before the host wrote does not know of it.
    let launch = d.launch_begin(0, 1, 32, &[]).unwrap();
    d.host_access(128, 4, Write, 10).unwrap();
    let block = d.cluster_begin(launch, &[0]).unwrap()[0];
    let w = Warp { block, index: 0 };
    d.access_range(w, 0, Space::Global, 132, 100, Read, 1).unwrap();
    let race = d.access_range(w, 0, Space::Global, 0, 256, Read, 1).unwrap_err();
    assert!(matches!(*race, Report::Race(r) if r.first.actor == Actor::Host && r.address == 128));
}

#[test]
fn freed_memory_has_no_past() {
    let mut t = Bench::new(2, 32);
    t.write(t.warp(0, 0), ALL, Space::Global, 1 << 40).unwrap();
    t.strided(t.warp(0, 0), ALL, AccessKind::Write, Sem::WEAK, Space::Global, 1 << 20, 4096, 16).unwrap();
    t.d.forget_global(1 << 40, 64);
    t.write(t.warp(1, 0), 0xffff, Space::Global, 1 << 40).unwrap();
    assert_eq!(kind(t.write(t.warp(1, 0), 1 << 16, Space::Global, 1 << 40)), Some(RaceKind::Unordered));
    t.d.forget_global(0, 1 << 30);
    t.strided(t.warp(1, 0), ALL, AccessKind::Write, Sem::WEAK, Space::Global, 1 << 20, 4096, 16).unwrap();
    t.d.forget_global(0, 0);
    t.d.forget_global(u64::MAX, u64::MAX);
    t.d.forget_global(0, u64::MAX);
    assert_eq!(t.d.stats().pages, 0);
}

#[test]
fn launch_wait_orders_a_dependent_launch() {
    use AccessKind::{Read, Write};
    for wait in [false, true] {
        let mut d = Detector::new();
        let first = d.launch_begin(0, 1, 32, &[]).unwrap();
        let second = d.launch_begin(0, 1, 32, &[]).unwrap();
        let w = |d: &mut Detector, l| Warp { block: d.cluster_begin(l, &[0]).unwrap()[0], index: 0 };
        let (a, b) = (w(&mut d, first), w(&mut d, second));
        d.access_range(a, 0, Space::Global, 0, 64, Write, 0).unwrap();
        assert!(d.launch_wait(b, ALL, first).is_err());
        d.block_end(a.block).unwrap();
        d.launch_end(first).unwrap();
        if wait {
            d.launch_wait(b, ALL, first).unwrap();
        }
        assert_eq!(d.access_range(b, 3, Space::Global, 0, 64, Read, 0).is_err(), !wait);
    }
}

#[test]
fn times_are_counted_not_wrapped() {
    let mut t = Bench::new(1, 32);
    t.d.now = u32::MAX - 1;
    t.barrier(0);
    assert!(matches!(*t.write(t.warp(0, 0), 1, Space::Global, 0).unwrap_err(), Report::Exhausted(_)));
    let mut d = Detector::new();
    d.next_warp = (1 << 31) - 2;
    assert!(matches!(*d.launch_begin(0, 2, 32, &[]).unwrap_err(), Report::Exhausted(_)));
    assert!(matches!(*d.launch_begin(0, u64::MAX, 1024, &[]).unwrap_err(), Report::Exhausted(_)));
    assert!(matches!(*d.launch_begin(0, 1, 0, &[]).unwrap_err(), Report::Misuse(_)));
    assert!(matches!(*d.launch_begin(0, 1, 1025, &[]).unwrap_err(), Report::Misuse(_)));
}

#[test]
fn lanes_that_read_one_after_the_other_are_all_remembered() {
    for culprit in 0..6u32 {
        let mut t = Bench::new(1, 64);
        let (a, s) = (t.warp(0, 0), t.shared(0));
        for lane in 0..6 {
            t.strided(a, 1 << lane, AccessKind::Read, Sem::WEAK, s, 8, 0, 4).unwrap();
        }
        t.d.warp_barrier(a, 0x3f & !(1 << culprit)).unwrap();
        let writer = (culprit + 1) % 6;
        let race = race(t.strided(a, 1 << writer, AccessKind::Write, Sem::WEAK, s, 8, 0, 4));
        assert!(matches!(race.first.actor, Actor::Thread { lane, .. } if lane == culprit), "{race:?}");
    }
}

#[test]
fn a_broadcast_read_is_checked_for_each_lane() {
    // With other warps' reads on the list, and without.
    for others in [0, 2] {
        let mut t = Bench::new(1, 96);
        let (a, s) = (t.warp(0, 0), t.shared(0));
        t.strided(a, 1, AccessKind::Write, Sem::WEAK, s, 8, 0, 4).unwrap();
        let mut var = SyncVar::new();
        t.d.release(a, 1, &mut var).unwrap();
        for w in 1..=others {
            t.d.acquire(t.warp(0, w), ALL, &mut var).unwrap();
            t.strided(t.warp(0, w), ALL, AccessKind::Read, Sem::WEAK, s, 8, 0, 4).unwrap();
        }
        t.strided(a, 1, AccessKind::Read, Sem::WEAK, s, 8, 0, 4).unwrap();
        let race = race(t.strided(a, 0xf, AccessKind::Read, Sem::WEAK, s, 8, 0, 4));
        assert!(matches!(race.second.actor, Actor::Thread { warp: 0, lane: 1, .. }), "{race:?}");
    }
}
