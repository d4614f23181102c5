//! Long runs: what is kept stays small, and long chains stay right.

use super::*;
use AccessKind::{Read, ReadWrite, Write};

/// Entries of the largest clock that a warp of a block holds.
fn clock_size(t: &Bench, block: usize) -> usize {
    let b = &t.d.blocks[t.blocks[block].slot as usize];
    let groups = b.warps.iter().flat_map(|w| &w.groups);
    groups.map(|g| g.clock.lanes.len() + g.clock.blocks.len() + g.clock.ended.len()).max().unwrap_or(0)
}

#[test]
fn grid_barriers_of_many_blocks() {
    const BLOCKS: usize = 40;
    const COUNT: u64 = 1 << 20;
    const ASIDE: u64 = 1 << 16;
    let mut t = Bench::new(BLOCKS as u64, 64);
    let relaxed = Sem::new(Order::Relaxed, Scope::Gpu);
    for round in 0..6 {
        // Each block writes its part, all meet, each block reads its neighbour's.
        for b in 0..BLOCKS {
            t.write(t.warp(b, 1), ALL, Space::Global, 128 * b as u64).unwrap();
            if round == 0 {
                t.one(t.warp(b, 1), 0, Write, Sem::WEAK, ASIDE + 4 * b as u64).unwrap();
            }
        }
        for b in 0..BLOCKS {
            t.barrier(b);
            let w = t.warp(b, 0);
            t.d.fence(w, 1, FenceOrder::Sc, Scope::Gpu).unwrap();
            t.one(w, 0, ReadWrite, relaxed, COUNT).unwrap();
            // Blocks poll before all have come.
            t.one(w, 0, Read, Sem::VOLATILE, COUNT).unwrap();
        }
        for b in 0..BLOCKS {
            let w = t.warp(b, 0);
            for _ in 0..3 {
                t.one(w, 0, Read, Sem::VOLATILE, COUNT).unwrap();
            }
            // Who has seen all come but does not fence is not ordered.
            let next = (b as u64 + 1) % BLOCKS as u64;
            let early = t.one(w, 0, Read, Sem::WEAK, ASIDE + 4 * next);
            assert_eq!(kind(early).is_some(), round == 0, "round {round} block {b}");
            t.d.fence(w, 1, FenceOrder::Sc, Scope::Gpu).unwrap();
            t.barrier(b);
            t.read(t.warp(b, 1), ALL, Space::Global, 128 * next).unwrap();
        }
        // They meet once more before they write again.
        for b in 0..BLOCKS {
            t.barrier(b);
            t.one(t.warp(b, 0), 0, ReadWrite, Sem::new(Order::AcqRel, Scope::Gpu), COUNT).unwrap();
        }
        for b in 0..BLOCKS {
            t.one(t.warp(b, 0), 0, Read, Sem::new(Order::Acquire, Scope::Gpu), COUNT).unwrap();
            t.barrier(b);
        }
    }
    // About two entries a block, whatever the number of rounds.
    assert!(clock_size(&t, 3) <= 3 * BLOCKS, "{}", clock_size(&t, 3));
    assert!(t.d.global.side.locations[&COUNT].published.len() <= 6 * BLOCKS);
}

#[test]
fn the_last_of_many_blocks_knows_all() {
    const BLOCKS: u64 = 1500;
    const COUNT: u64 = 1 << 20;
    let mut t = Bench::new(BLOCKS, 32);
    let relaxed = Sem::new(Order::Relaxed, Scope::Gpu);
    for b in 0..BLOCKS {
        let w = t.warp(b as usize, 0);
        t.one(w, 0, Write, Sem::WEAK, 4 * b).unwrap();
        t.d.fence(w, ALL, FenceOrder::Sc, Scope::Gpu).unwrap();
        t.one(w, 0, ReadWrite, relaxed, COUNT).unwrap();
        if b + 1 < BLOCKS {
            t.d.block_end(t.blocks[b as usize]).unwrap();
        }
    }
    let w = t.warp(BLOCKS as usize - 1, 0);
    let early = t.one(w, 0, Read, Sem::WEAK, 8);
    assert_eq!(kind(early), Some(RaceKind::Unordered));
    t.d.fence(w, ALL, FenceOrder::Sc, Scope::Gpu).unwrap();
    for b in 3..BLOCKS {
        t.one(w, 0, Read, Sem::WEAK, 4 * b).unwrap();
    }
    assert_eq!(t.d.stats().dropped_records, 0);
}

#[test]
fn a_pipeline_keeps_clocks_and_agents_few() {
    let mut t = Bench::new(1, 5 * 32);
    let (block, s) = (t.blocks[0], t.shared(0));
    let p = t.warp(0, 4);
    let (mut full, mut empty) = (MbarrierSync::new(), MbarrierSync::new());
    t.d.mbarrier_init(p, 0, block, 8192, 1).unwrap();
    t.d.mbarrier_init(p, 0, block, 8200, 1).unwrap();
    t.barrier(0);
    let mut largest = 0;
    for i in 0..6000 {
        if i > 0 {
            t.d.mbarrier_wait(&mut empty, block, 8200, p, ALL, true, false, 1).unwrap();
        }
        t.d.mbarrier_arrive(&mut full, block, 8192, p, 1, false, 1).unwrap();
        let g = t.d.agent_issue(AgentKind::Tensor, Proxy::Async, &[(p, 1)], false).unwrap();
        let mut copy = AgentAccess { space: Space::Global, kind: Read, sem: Sem::WEAK, element: 1, site: 1 };
        t.d.agent_access(g, &copy, &[(64 * i, 64)]).unwrap();
        (copy.space, copy.kind) = (s, Write);
        t.d.agent_access(g, &copy, &[(0, 64)]).unwrap();
        t.d.mbarrier_complete(&mut full, block, 8192, g, 1).unwrap();
        t.d.agent_retire(g);
        full.complete_phase();
        for w in 0..4 {
            let w = t.warp(0, w);
            t.d.mbarrier_wait(&mut full, block, 8192, w, ALL, true, false, 1).unwrap();
            t.read(w, 0xffff, s, 0).unwrap();
            t.d.warp_barrier(w, ALL).unwrap();
            t.d.mbarrier_arrive(&mut empty, block, 8200, w, 1, false, 1).unwrap();
        }
        empty.complete_phase();
        largest = largest.max(clock_size(&t, 0));
    }
    assert!(largest <= 20, "{largest}");
    // Those that read different global memory are named by its records until the launch ends.
    assert!(t.d.stats().agents <= 6100, "{:?}", t.d.stats());
    t.d.block_end(block).unwrap();
    t.d.launch_end(t.launch).unwrap();
    t.d.host_sync().unwrap();
    let stats = t.d.stats();
    assert_eq!((stats.agents, stats.pages, stats.spilled_words, stats.events), (0, 0, 0, 0));
}

#[test]
fn polling_without_a_fence_is_remembered_in_bounds() {
    let mut t = Bench::new(3, 32);
    let relaxed = Sem::new(Order::Relaxed, Scope::Gpu);
    for i in 0..5000 {
        let (a, b) = (t.warp(0, 0), t.warp(1, 0));
        t.one(a, 0, Write, Sem::WEAK, 4 * i).unwrap();
        t.d.fence(a, 1, FenceOrder::Sc, Scope::Gpu).unwrap();
        t.one(a, 0, ReadWrite, relaxed, (1 << 20) + 4 * (i % 37)).unwrap();
        t.one(b, 0, ReadWrite, relaxed, (1 << 20) + 4 * (i % 37)).unwrap();
    }
    let state = |t: &Bench| t.d.blocks[t.blocks[1].slot as usize].warps[0].pending.len();
    assert!(state(&t) <= 520, "{}", state(&t));
    let (b, c) = (t.warp(1, 0), t.warp(2, 0));
    t.d.fence(b, 1, FenceOrder::Sc, Scope::Gpu).unwrap();
    for i in 0..5000 {
        t.one(b, 0, Read, Sem::WEAK, 4 * i).unwrap();
    }
    assert_eq!(state(&t), 0);
    assert_eq!(kind(t.one(c, 0, Read, Sem::WEAK, 400)), Some(RaceKind::Unordered));
}

#[test]
fn many_readers_of_a_word_are_kept_in_bounds_and_a_writer_races_with_those_kept() {
    let mut t = Bench::new(100, 32);
    for b in 0..100 {
        t.read(t.warp(b, 0), ALL, Space::Global, 0).unwrap();
    }
    let stats = t.d.stats();
    assert_eq!(stats.spilled_words, 32);
    assert!(stats.dropped_records > 0);
    assert!(t.d.global.side.lists.iter().all(|l| l.records.len() <= 8));
    assert_eq!(kind(t.write(t.warp(5, 0), ALL, Space::Global, 0)), Some(RaceKind::Unordered));
}

#[test]
fn touched_memory_alone_is_shadowed() {
    let mut t = Bench::new(1, 32);
    for i in 0..100u64 {
        t.one(t.warp(0, 0), 0, Write, Sem::WEAK, i << 32).unwrap();
    }
    assert_eq!(t.d.stats().pages, 100);
    // The ends of the address space.
    t.one(t.warp(0, 0), 0, Write, Sem::WEAK, u64::MAX - 3).unwrap();
    t.strided(t.warp(0, 0), 1, Write, Sem::WEAK, Space::Global, u64::MAX, 0, 8).unwrap();
    t.d.access_range(t.warp(0, 0), 0, Space::Global, u64::MAX - 100, 101, Read, 0).unwrap();
    t.d.access_range(t.warp(0, 0), 0, Space::Global, u64::MAX - 100, 400, Read, 0).unwrap();
    let s = t.shared(0);
    t.write(t.warp(0, 0), ALL, s, u64::MAX - 127).unwrap();
}
