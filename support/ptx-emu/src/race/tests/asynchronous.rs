//! Asynchronous operations, mbarriers, proxy fences.

use super::*;
use AccessKind::{Read, ReadWrite, Write};

fn copy(space: Space, kind: AccessKind) -> AgentAccess {
    AgentAccess { space, kind, sem: Sem::WEAK, element: 1, site: 77 }
}

/// One block of 4 warps: warp 0 produces, with lane 0.
struct Pipe {
    t: Bench,
    bar: MbarrierSync,
}

const BAR: u64 = 1024;

impl Pipe {
    fn new() -> Self {
        let mut t = Bench::new(1, 128);
        t.d.mbarrier_init(t.warp(0, 0), 0, t.blocks[0], BAR, 1).unwrap();
        t.barrier(0);
        Pipe { t, bar: MbarrierSync::new() }
    }

    /// A bulk copy by lane 0 of warp 0 into shared bytes 0..256, complete on the mbarrier.
    fn load(&mut self) -> Outcome {
        let t = &mut self.t;
        let (p, s, b) = (t.warp(0, 0), t.shared(0), t.blocks[0]);
        t.d.mbarrier_arrive(&mut self.bar, b, BAR, p, 1, false, 2)?;
        let g = t.d.agent_issue(AgentKind::Tensor, Proxy::Async, &[(p, 1)], false).unwrap();
        t.d.agent_access(g, &copy(Space::Global, Read), &[(4096, 256)])?;
        let outcome = t.d.agent_access(g, &copy(s, Write), &[(0, 256)]);
        t.d.mbarrier_complete(&mut self.bar, b, BAR, g, 3)?;
        t.d.agent_retire(g);
        self.bar.complete_phase();
        outcome
    }

    fn wait(&mut self, warp: u32, passed: bool) -> Outcome {
        let (w, b) = (self.t.warp(0, warp), self.t.blocks[0]);
        self.t.d.mbarrier_wait(&mut self.bar, b, BAR, w, ALL, passed, false, 4)
    }
}

#[test]
fn who_waits_for_the_phase_may_read_what_was_loaded() {
    let mut p = Pipe::new();
    p.load().unwrap();
    let (w1, w2, s) = (p.t.warp(0, 1), p.t.warp(0, 2), p.t.shared(0));
    p.wait(1, true).unwrap();
    p.t.read(w1, ALL, s, 0).unwrap();
    // A failed test learns nothing.
    p.wait(2, false).unwrap();
    let race = race(p.t.read(w2, ALL, s, 0));
    let issuer = Actor::Agent { kind: AgentKind::Tensor, launch: p.t.launch, block: 0, warp: 0, lane: 0 };
    assert_eq!((race.first.actor, race.first.site, race.first.writes), (issuer, 77, true));
}

#[test]
fn what_an_observer_knows_can_be_passed_on() {
    let mut p = Pipe::new();
    p.load().unwrap();
    p.wait(1, true).unwrap();
    p.t.d.barrier(p.t.blocks[0], &[(1, ALL), (2, ALL)], None).unwrap();
    let (w2, w3, s) = (p.t.warp(0, 2), p.t.warp(0, 3), p.t.shared(0));
    p.t.read(w2, ALL, s, 0).unwrap();
    p.t.write(w2, ALL, s, 128).unwrap();
    assert_eq!(kind(p.t.read(w3, ALL, s, 0)), Some(RaceKind::Unordered));
}

#[test]
fn a_load_over_reads_needs_the_empty_slot() {
    for wait in [false, true] {
        let mut p = Pipe::new();
        p.load().unwrap();
        p.wait(1, true).unwrap();
        let s = p.t.shared(0);
        p.t.read(p.t.warp(0, 1), ALL, s, 0).unwrap();
        let mut empty = SyncVar::new();
        p.t.d.warp_barrier(p.t.warp(0, 1), ALL).unwrap();
        p.t.d.release(p.t.warp(0, 1), 1, &mut empty).unwrap();
        if wait {
            p.t.d.acquire(p.t.warp(0, 0), ALL, &mut empty).unwrap();
        }
        let again = p.load();
        assert_eq!(kind(again), (!wait).then_some(RaceKind::Unordered));
    }
}

#[test]
fn an_issuer_does_not_pass_later_writes_to_its_operation() {
    let mut t = Bench::new(1, 32);
    let (w, s) = (t.warp(0, 0), t.shared(0));
    t.write(w, 1, s, 0).unwrap();
    t.d.fence_proxy_async(w, 1, ProxyFence::SHARED_CTA).unwrap();
    let g = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(w, 1)], false).unwrap();
    t.d.agent_access(g, &copy(s, Read), &[(0, 4)]).unwrap();
    // Written after the issue, before the wait: seen from either side.
    assert_eq!(kind(t.write(w, 1, s, 0)), Some(RaceKind::Unordered));
    t.write(w, 1, s, 64).unwrap();
    let late = t.d.agent_access(g, &copy(s, Read), &[(64, 4)]);
    assert_eq!(kind(late), Some(RaceKind::Unordered));
}

#[test]
fn waiting_for_reads_frees_the_source_but_does_not_show_the_writes() {
    for (what, ordered) in [(Observe::Reads, false), (Observe::All, true)] {
        let mut t = Bench::new(1, 64);
        let (w, v, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
        t.write(w, 1, s, 0).unwrap();
        t.d.fence_proxy_async(w, ALL, ProxyFence::ALL).unwrap();
        let g = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(w, 1)], false).unwrap();
        t.d.agent_access(g, &copy(s, Read), &[(0, 128)]).unwrap();
        t.d.agent_access(g, &copy(Space::Global, Write), &[(0, 128)]).unwrap();
        t.d.agent_observe(g, w, ALL, what).unwrap();
        t.barrier(0);
        t.write(v, ALL, s, 0).unwrap();
        assert_eq!(kind(t.read(v, ALL, Space::Global, 0)).is_none(), ordered);
        // Lanes that did not issue have nothing to wait for.
        assert!(t.d.agent_observe(g, v, ALL, what).is_err());
    }
}

#[test]
fn generic_writes_need_the_writers_proxy_fence() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fence {
        None,
        Writer(ProxyFence),
        WriterTooEarly,
        Issuer,
        SomeLanes,
    }
    use Fence::*;
    let missing = Some(RaceKind::MissingProxyFence);
    for (fence, expected) in [
        (None, missing),
        (Writer(ProxyFence::ALL), Option::None),
        (Writer(ProxyFence::SHARED_CTA), Option::None),
        (Writer(ProxyFence::SHARED_CLUSTER), Option::None),
        (Writer(ProxyFence::GLOBAL), missing),
        (WriterTooEarly, missing),
        (Issuer, missing),
        (SomeLanes, missing),
    ] {
        for by in [Read, Write] {
            let mut t = Bench::new(1, 64);
            let (w, v, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
            if fence == WriterTooEarly {
                t.d.fence_proxy_async(v, ALL, ProxyFence::ALL).unwrap();
            }
            t.write(v, ALL, s, 0).unwrap();
            match fence {
                Writer(kind) => t.d.fence_proxy_async(v, ALL, kind).unwrap(),
                SomeLanes => t.d.fence_proxy_async(v, ALL >> 1, ProxyFence::ALL).unwrap(),
                _ => {}
            }
            t.barrier(0);
            if fence == Issuer {
                t.d.fence_proxy_async(w, ALL, ProxyFence::ALL).unwrap();
            }
            let g = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(w, 1)], false).unwrap();
            let outcome = t.d.agent_access(g, &copy(s, by), &[(0, 128)]);
            assert_eq!(kind(outcome), expected, "{fence:?} {by:?}");
        }
    }
    // Accepted on request.
    let mut t = Bench::new(1, 64);
    t.d.options.issuer_proxy_fence = true;
    t.write(t.warp(0, 1), ALL, t.shared(0), 0).unwrap();
    t.barrier(0);
    t.d.fence_proxy_async(t.warp(0, 0), 1, ProxyFence::ALL).unwrap();
    let g = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(t.warp(0, 0), 1)], false).unwrap();
    t.d.agent_access(g, &copy(t.shared(0), Read), &[(0, 128)]).unwrap();
}

#[test]
fn a_proxy_fence_after_the_release_is_not_known() {
    let mut t = Bench::new(1, 64);
    let (w, v, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
    let mut var = SyncVar::new();
    t.write(v, ALL, s, 0).unwrap();
    t.d.release(v, ALL, &mut var).unwrap();
    t.d.fence_proxy_async(v, ALL, ProxyFence::ALL).unwrap();
    t.d.acquire(w, ALL, &mut var).unwrap();
    let g = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(w, 1)], false).unwrap();
    let outcome = t.d.agent_access(g, &copy(s, Read), &[(0, 128)]);
    assert_eq!(kind(outcome), Some(RaceKind::MissingProxyFence));
}

#[test]
fn no_proxy_fence_is_needed_over_reads_between_launches_or_after_async_writes() {
    let mut t = Bench::new(1, 64);
    let (w, v, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
    t.read(v, ALL, s, 0).unwrap();
    t.barrier(0);
    let g = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(w, 1)], false).unwrap();
    t.d.agent_access(g, &copy(s, Write), &[(0, 128)]).unwrap();
    t.d.agent_observe(g, w, 1, Observe::All).unwrap();
    t.barrier(0);
    let h = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(w, 1)], false).unwrap();
    t.d.agent_access(h, &copy(s, Read), &[(0, 128)]).unwrap();
    // An earlier launch's writes to global memory, and the host's.
    let mut d = Detector::new();
    d.host_access(4096, 128, Write, 0).unwrap();
    let mut after = vec![];
    for _ in 0..2 {
        let l = d.launch_begin(0, 1, 32, &after).unwrap();
        let w = Warp { block: d.cluster_begin(l, &[0]).unwrap()[0], index: 0 };
        let g = d.agent_issue(AgentKind::Tensor, Proxy::Async, &[(w, 1)], false).unwrap();
        d.agent_access(g, &copy(Space::Global, Read), &[(0, 128), (4096, 128)]).unwrap();
        d.agent_observe(g, w, 1, Observe::All).unwrap();
        d.access_range(w, 0, Space::Global, 0, 128, Write, 0).unwrap();
        let again = d.agent_issue(AgentKind::Tensor, Proxy::Async, &[(w, 1)], false).unwrap();
        let outcome = d.agent_access(again, &copy(Space::Global, Read), &[(0, 128)]);
        assert_eq!(kind(outcome), Some(RaceKind::MissingProxyFence));
        d.block_end(w.block).unwrap();
        d.launch_end(l).unwrap();
        after = vec![l];
    }
}

#[test]
fn a_store_that_nobody_waited_for_is_complete_when_its_launch_is() {
    let mut d = Detector::new();
    let l = d.launch_begin(0, 1, 32, &[]).unwrap();
    let w = Warp { block: d.cluster_begin(l, &[0]).unwrap()[0], index: 0 };
    let g = d.agent_issue(AgentKind::Tensor, Proxy::Async, &[(w, 1)], false).unwrap();
    d.agent_access(g, &copy(Space::Global, Write), &[(0, 128)]).unwrap();
    d.block_end(w.block).unwrap();
    d.launch_end(l).unwrap();
    for (after, ordered) in [(vec![], false), (vec![l], true)] {
        let m = d.launch_begin(0, 1, 32, &after).unwrap();
        let w = Warp { block: d.cluster_begin(m, &[0]).unwrap()[0], index: 0 };
        assert_eq!(d.access_range(w, 0, Space::Global, 0, 4, Read, 0).is_ok(), ordered);
        d.block_end(w.block).unwrap();
        d.launch_end(m).unwrap();
    }
}

#[test]
fn an_mbarrier_must_be_initialised_before_it_is_used() {
    // No barrier after the initialisation.
    let mut t = Bench::new(1, 64);
    let (a, b, block) = (t.warp(0, 0), t.warp(0, 1), t.blocks[0]);
    let mut bar = MbarrierSync::new();
    t.d.mbarrier_init(a, 0, block, BAR, 1).unwrap();
    t.d.mbarrier_arrive(&mut bar, block, BAR, a, 1, false, 2).unwrap();
    let outcome = t.d.mbarrier_wait(&mut bar, block, BAR, b, ALL, false, false, 3);
    assert_eq!(kind(outcome), Some(RaceKind::MbarrierInit));
    // Another lane of the same warp, without bar.warp.sync.
    let mut t = Bench::new(1, 64);
    t.d.mbarrier_init(a, 0, block, BAR, 1).unwrap();
    let outcome = t.d.mbarrier_arrive(&mut bar, block, BAR, a, 2, false, 2);
    assert_eq!(kind(outcome), Some(RaceKind::MbarrierInit));
    // A bulk copy of another block of the cluster completes on it.
    for sync in [false, true] {
        let mut t = Bench::of_clusters(2, 32, 2);
        let (a, b) = (t.warp(0, 0), t.warp(1, 0));
        t.d.mbarrier_init(a, 0, t.blocks[0], BAR, 1).unwrap();
        // fence.mbarrier_init, and a relaxed arrival at the cluster's barrier.
        t.write(a, ALL, t.shared(0), 0).unwrap();
        let mut phase = SyncVar::new();
        if sync {
            t.d.fence_mbarrier_init(a, ALL).unwrap();
        }
        t.d.release_relaxed(a, ALL, &mut phase).unwrap();
        t.d.acquire(b, ALL, &mut phase).unwrap();
        let mut bar = MbarrierSync::new();
        let g = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(b, 1)], false).unwrap();
        let outcome = t.d.mbarrier_complete(&mut bar, t.blocks[0], BAR, g, 1);
        assert_eq!(kind(outcome), (!sync).then_some(RaceKind::MbarrierInit));
        // It releases nothing else.
        assert_eq!(kind(t.read(b, ALL, t.shared(0), 0)), Some(RaceKind::Unordered));
    }
}

#[test]
fn mbarrier_operations_do_not_race_among_themselves_but_with_other_uses_of_the_bytes() {
    let mut t = Bench::new(1, 128);
    let block = t.blocks[0];
    let mut bar = MbarrierSync::new();
    t.d.mbarrier_init(t.warp(0, 0), 0, block, BAR, 1).unwrap();
    t.barrier(0);
    for round in 0..3 {
        for w in 0..4 {
            t.d.mbarrier_arrive(&mut bar, block, BAR, t.warp(0, w), ALL, round == 1, 2).unwrap();
            t.d.mbarrier_wait(&mut bar, block, BAR, t.warp(0, w), ALL, false, false, 2).unwrap();
        }
    }
    for offset in [0, 4] {
        assert_eq!(kind(t.write(t.warp(0, 2), 1, t.shared(0), BAR + offset)), Some(RaceKind::Unordered));
    }
    let mut t = Bench::new(1, 128);
    t.d.mbarrier_init(t.warp(0, 0), 0, block, BAR, 1).unwrap();
    t.barrier(0);
    t.d.mbarrier_arrive(&mut bar, block, BAR, t.warp(0, 1), 1 << 9, false, 2).unwrap();
    assert!(t.d.mbarrier_inval(t.warp(0, 1), 0, block, BAR, 3).is_err());
    t.barrier(0);
    t.d.mbarrier_inval(t.warp(0, 1), 0, block, BAR, 3).unwrap();
    t.barrier(0);
    t.write(t.warp(0, 2), 3, t.shared(0), BAR).unwrap();
}

#[test]
fn cp_async_is_complete_for_each_lane_that_waits() {
    let mut t = Bench::new(1, 64);
    let (w, v, s) = (t.warp(0, 0), t.warp(0, 1), t.shared(0));
    let addresses = std::array::from_fn(|lane| 16 * lane as u64);
    let access = |space, kind| Access {
        space,
        kind,
        sem: Sem::WEAK,
        mask: ALL,
        addresses: &addresses,
        size: 16,
        element: 16,
        site: 5,
        agree: None,
    };
    // Generic writes before need no proxy fence.
    t.strided(w, ALL, Write, Sem::WEAK, s, 0, 16, 16).unwrap();
    let g = t.d.agent_issue(AgentKind::CpAsync, Proxy::Generic, &[(w, ALL)], true).unwrap();
    t.d.agent_access_lanes(g, &access(Space::Global, Read)).unwrap();
    t.d.agent_access_lanes(g, &access(s, Write)).unwrap();
    // Another operation of the same group, which knows what came in between.
    t.write(w, ALL, s, 4096).unwrap();
    t.d.agent_reissue(g, &[(w, ALL)]).unwrap();
    t.d.agent_access(g, &copy(s, Write), &[(4096, 4)]).unwrap();
    t.d.agent_observe(g, w, ALL >> 1, Observe::All).unwrap();
    t.strided(w, ALL >> 1, Read, Sem::WEAK, s, 0, 16, 16).unwrap();
    // Not another lane's copy without a barrier, and not lane 31's, which did not wait.
    assert_eq!(kind(t.strided(w, 1, Read, Sem::WEAK, s, 16, 16, 16)), Some(RaceKind::Unordered));
    t.barrier(0);
    t.strided(v, ALL >> 1, Read, Sem::WEAK, s, 0, 16, 16).unwrap();
    assert_eq!(kind(t.strided(v, 1 << 31, Read, Sem::WEAK, s, 0, 16, 16)), Some(RaceKind::Unordered));
    t.d.agent_observe(g, w, ALL, Observe::All).unwrap();
    t.strided(w, 1 << 31, Read, Sem::WEAK, s, 0, 16, 16).unwrap();
    t.barrier(0);
    t.strided(v, ALL, Write, Sem::WEAK, s, 0, 16, 16).unwrap();
}

#[test]
fn wgmma_belongs_to_four_warps_and_each_must_have_waited() {
    for waited in [0b0111, 0b1111] {
        let mut t = Bench::new(1, 160);
        let s = t.shared(0);
        let group: Vec<(Warp, u32)> = (0..4).map(|w| (t.warp(0, w), ALL)).collect();
        t.write(t.warp(0, 3), ALL, s, 0).unwrap();
        t.d.fence_proxy_async(t.warp(0, 3), ALL, ProxyFence::SHARED_CTA).unwrap();
        // The other warps of the group do not know of it yet.
        let g = t.d.agent_issue(AgentKind::Wgmma, Proxy::Async, &group, false).unwrap();
        let outcome = t.d.agent_access(g, &copy(s, Read), &[(0, 128)]);
        assert_eq!(kind(outcome), Some(RaceKind::Unordered));
        t.barrier(0);
        t.d.agent_reissue(g, &group).unwrap();
        t.d.agent_access(g, &copy(s, Read), &[(0, 128)]).unwrap();
        let mut empty = SyncVar::new();
        for (i, &(w, _)) in group.iter().enumerate() {
            if waited >> i & 1 != 0 {
                t.d.agent_observe(g, w, ALL, Observe::All).unwrap();
            }
            t.d.release(w, 1, &mut empty).unwrap();
        }
        let producer = t.warp(0, 4);
        t.d.acquire(producer, ALL, &mut empty).unwrap();
        assert_eq!(kind(t.write(producer, 1, s, 0)).is_none(), waited == 0b1111);
    }
}

#[test]
fn bulk_reductions_are_atomic_with_each_other() {
    let mut t = Bench::new(2, 32);
    let add =
        AgentAccess { space: Space::Global, kind: ReadWrite, sem: Sem::new(Order::Relaxed, Scope::Gpu), element: 4, site: 1 };
    for b in 0..2 {
        let g = t.d.agent_issue(AgentKind::Tensor, Proxy::Async, &[(t.warp(b, 0), 1)], false).unwrap();
        t.d.agent_access(g, &add, &[(0, 1024)]).unwrap();
    }
    let plain = t.d.agent_issue(AgentKind::Tensor, Proxy::Async, &[(t.warp(0, 0), 1)], false).unwrap();
    let outcome = t.d.agent_access(plain, &copy(Space::Global, Write), &[(0, 4)]);
    assert_eq!(kind(outcome), Some(RaceKind::Unordered));
    // Nor with atomics of threads: another proxy.
    let strong = Sem::new(Order::Relaxed, Scope::Gpu);
    assert_eq!(kind(t.one(t.warp(1, 0), 0, ReadWrite, strong, 64)), Some(RaceKind::Unordered));
}

#[test]
fn unused_agents_are_freed() {
    let mut p = Pipe::new();
    for _ in 0..20_000 {
        p.load().unwrap();
        p.wait(0, true).unwrap();
    }
    assert!(p.t.d.stats().agents <= 4096, "{:?}", p.t.d.stats());
    // Those that records name are not.
    let mut t = Bench::new(1, 64);
    let (w, s) = (t.warp(0, 0), t.shared(0));
    let first = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(w, 1)], false).unwrap();
    t.d.agent_access(first, &copy(s, Write), &[(0, 4)]).unwrap();
    t.d.agent_retire(first);
    for _ in 0..20_000 {
        let g = t.d.agent_issue(AgentKind::Bulk, Proxy::Async, &[(w, 1)], false).unwrap();
        t.d.agent_retire(g);
    }
    assert!(t.d.stats().agents <= 4096);
    assert_eq!(kind(t.read(t.warp(0, 1), 1, s, 0)), Some(RaceKind::Unordered));
    assert!(t.d.agent_access(AgentId { slot: 4095, generation: 0 }, &copy(s, Write), &[(0, 4)]).is_err());
}
