//! How much time the race detector takes for typical accesses and synchronisation. Run with `--release`.

use ptx_emu::race::*;
use std::time::Instant;

const ALL: u32 = u32::MAX;

struct Bench {
    d: Detector,
    blocks: Vec<BlockId>,
}

impl Bench {
    fn new(blocks: u64, threads: u32) -> Outcome<Self> {
        let mut d = Detector::new();
        let launch = d.launch_begin(0, blocks, threads, &[])?;
        let mut ids = Vec::new();
        for b in 0..blocks {
            ids.extend(d.cluster_begin(launch, &[b])?);
        }
        Ok(Bench { d, blocks: ids })
    }

    fn warp(&self, block: usize, index: u32) -> Warp {
        Warp { block: self.blocks[block], index }
    }

    fn access(&mut self, warp: Warp, kind: AccessKind, sem: Sem, space: Space, addresses: &[u64; 32], size: u32) -> Outcome {
        let element = size.min(4);
        self.d.access(warp, &Access { space, kind, sem, mask: ALL, addresses, size, element, site: 1, agree: None })
    }

    fn barrier(&mut self, block: usize, warps: u32) -> Outcome {
        let members: Vec<(u32, u32)> = (0..warps).map(|w| (w, ALL)).collect();
        self.d.barrier(self.blocks[block], &members, None)
    }
}

fn row(base: u64, stride: u64) -> [u64; 32] {
    std::array::from_fn(|lane| base + stride * lane as u64)
}

/// Nanoseconds that this process has run on a processor, where the system tells: other programs do not disturb it.
fn running(start: Instant) -> u128 {
    let told = std::fs::read_to_string("/proc/self/schedstat").ok();
    let first = told.as_deref().and_then(|t| t.split(' ').next()).and_then(|n| n.parse().ok());
    first.unwrap_or_else(|| start.elapsed().as_nanos())
}

/// Prints the time of one of `n` things that `f` does.
fn time(what: &str, n: u64, f: impl FnOnce() -> Outcome) -> Outcome {
    let start = Instant::now();
    let before = running(start);
    f()?;
    println!("{:>9.2} ns  {what}", (running(start) - before) as f64 / n as f64);
    Ok(())
}

fn main() -> Outcome {
    use AccessKind::{Read, ReadWrite, Write};
    const ROUNDS: u64 = 10_000;
    let weak = Sem::WEAK;
    let relaxed = Sem::new(Order::Relaxed, Scope::Gpu);

    let mut t = Bench::new(1, 384)?;
    time("barrier of 384 threads that know the same", 100 * ROUNDS, || (0..100 * ROUNDS).try_for_each(|_| t.barrier(0, 12)))?;
    let mut var = SyncVar::new();
    time("the same after each warp released into an object and learnt what others did", 10 * ROUNDS, || {
        for _ in 0..10 * ROUNDS {
            for w in 0..12 {
                t.d.acquire(t.warp(0, w), 1 << w, &mut var)?;
                t.d.release(t.warp(0, w), 1 << w, &mut var)?;
            }
            t.barrier(0, 12)?;
            var.clear();
        }
        Ok(())
    })?;
    time("barrier of 4 of 12 warps", 10 * ROUNDS, || {
        (0..10 * ROUNDS).try_for_each(|_| t.d.barrier(t.blocks[0], &[(0, ALL), (1, ALL), (2, ALL), (3, ALL)], None))
    })?;
    time("bar.warp.sync", 100 * ROUNDS, || (0..100 * ROUNDS).try_for_each(|_| t.d.warp_barrier(t.warp(0, 3), ALL)))?;

    for (name, global) in [("global", true), ("shared", false)] {
        for size in [4u64, 8, 16] {
            let mut t = Bench::new(1, 256)?;
            let space = if global { Space::Global } else { Space::Shared(t.blocks[0]) };
            let words = ROUNDS * 8 * 32 * size / 4;
            time(&format!("a word, {name}, coalesced {size} bytes, write by its own warp"), words, || {
                for _ in 0..ROUNDS {
                    for w in 0..8 {
                        t.access(t.warp(0, w), Write, weak, space, &row(u64::from(w) * 512, size), size as u32)?;
                    }
                }
                Ok(())
            })?;
            time("    read of other warps' words, barrier, write, barrier", 2 * words, || {
                for _ in 0..ROUNDS {
                    t.barrier(0, 8)?;
                    for w in 0..8 {
                        let other = (u64::from(w) + 3) % 8;
                        t.access(t.warp(0, w), Read, weak, space, &row(other * 512, size), size as u32)?;
                    }
                    t.barrier(0, 8)?;
                    for w in 0..8 {
                        t.access(t.warp(0, w), Write, weak, space, &row(u64::from(w) * 512, size), size as u32)?;
                    }
                }
                Ok(())
            })?;
        }
    }
    let mut t = Bench::new(1, 256)?;
    let s = Space::Shared(t.blocks[0]);
    time("a half, coalesced 2 bytes, write and read by its own warp", 2 * ROUNDS * 8 * 32, || {
        for _ in 0..ROUNDS {
            for w in 0..8 {
                t.access(t.warp(0, w), Write, weak, s, &row(u64::from(w) * 512, 2), 2)?;
                t.access(t.warp(0, w), Read, weak, s, &row(u64::from(w) * 512, 2), 2)?;
            }
        }
        Ok(())
    })?;
    let mut t = Bench::new(1, 256)?;
    let s = Space::Shared(t.blocks[0]);
    time("a lane, one word read by all lanes of all 8 warps, again and again", 50 * ROUNDS * 8 * 32, || {
        for _ in 0..50 * ROUNDS {
            for w in 0..8 {
                t.access(t.warp(0, w), Read, weak, s, &[64; 32], 4)?;
            }
        }
        Ok(())
    })?;
    let mut t = Bench::new(1, 256)?;
    let s = Space::Shared(t.blocks[0]);
    // A tile of 128 rows by 8 columns each way, as a register-blocked matrix product reads it.
    time(
        "a word and lane, 8 warps read the tiles of a matrix product, then write them",
        ROUNDS / 20 * 8 * 32 * (8 * 16 + 8),
        || {
            for _ in 0..ROUNDS / 20 {
                t.barrier(0, 8)?;
                for w in 0..8u64 {
                    t.access(t.warp(0, w as u32), Write, weak, s, &row(w * 512, 16), 16)?;
                    t.access(t.warp(0, w as u32), Write, weak, s, &row(4096 + w * 512, 16), 16)?;
                }
                t.barrier(0, 8)?;
                for k in 0..8u64 {
                    for w in 0..8u64 {
                        let warp = t.warp(0, w as u32);
                        let a: [u64; 32] = std::array::from_fn(|l| 512 * k + 64 * w + 32 * (l as u64 / 16));
                        let b: [u64; 32] = std::array::from_fn(|l| 4096 + 512 * k + 32 * (l as u64 % 16));
                        for half in [0, 16] {
                            t.access(warp, Read, weak, s, &a.map(|x| x + half), 16)?;
                            t.access(warp, Read, weak, s, &b.map(|x| x + half), 16)?;
                        }
                    }
                }
            }
            Ok(())
        },
    )?;
    println!("           ({:?})", t.d.stats());
    let mut t = Bench::new(64, 256)?;
    time("a word of global memory, read by all of 64 blocks", 64 * 8 * 64 * 32, || {
        for b in 0..64 {
            for i in 0..64 {
                for w in 0..8 {
                    t.access(t.warp(b, w), Read, weak, Space::Global, &row(128 * (u64::from(w) + 8 * i), 4), 4)?;
                }
            }
        }
        Ok(())
    })?;
    println!("           ({:?})", t.d.stats());

    let mut t = Bench::new(8, 256)?;
    time("a lane of atomicAdd on 32 counters, relaxed, 8 blocks of 8 warps", ROUNDS * 64 * 32 / 10, || {
        for i in 0..ROUNDS * 64 / 10 {
            t.access(t.warp((i % 8) as usize, (i / 8 % 8) as u32), ReadWrite, relaxed, Space::Global, &row(0, 4), 4)?;
        }
        Ok(())
    })?;
    time("one release and one acquire through memory", ROUNDS, || {
        let addresses = [65536; 32];
        for i in 0..ROUNDS {
            for (b, kind, order) in [(i % 8, Write, Order::Release), ((i + 1) % 8, Read, Order::Acquire)] {
                let sem = Sem::new(order, Scope::Gpu);
                let (warp, space) = (t.warp(b as usize, 0), Space::Global);
                let access =
                    Access { space, kind, sem, mask: 1, addresses: &addresses, size: 4, element: 4, site: 2, agree: None };
                t.d.access(warp, &access)?;
            }
        }
        Ok(())
    })?;

    // A pipeline: lane 0 of warp 0 loads tiles, 8 warps read them with wgmma and give the slot back.
    let mut t = Bench::new(1, 288)?;
    let (block, s) = (t.blocks[0], Space::Shared(t.blocks[0]));
    let (mut full, mut empty) = (MbarrierSync::new(), MbarrierSync::new());
    let p = t.warp(0, 8);
    t.d.mbarrier_init(p, 0, block, 65536, 1)?;
    t.d.mbarrier_init(p, 0, block, 65544, 1)?;
    t.barrier(0, 9)?;
    let stages = ROUNDS / 20;
    time("a stage: 2 loads of 16 KB, 8 warps wait, 2 wgmma read 24 KB each, 8 arrivals", stages, || {
        for i in 0..stages {
            if i > 0 {
                t.d.mbarrier_wait(&mut empty, block, 65544, p, ALL, true, false, 3)?;
            }
            t.d.mbarrier_arrive(&mut full, block, 65536, p, 1, false, 3)?;
            for half in 0..2u64 {
                let g = t.d.agent_issue(AgentKind::Tensor, Proxy::Async, &[(p, 1)], false)?;
                let mut copy = AgentAccess { space: Space::Global, kind: Read, sem: weak, element: 1, site: 4 };
                t.d.agent_access(g, &copy, &[(half * 16384 + i * 32768, 16384)])?;
                (copy.space, copy.kind) = (s, Write);
                t.d.agent_access(g, &copy, &[(half * 16384, 16384)])?;
                t.d.mbarrier_complete(&mut full, block, 65536, g, 5)?;
                t.d.agent_retire(g);
            }
            full.complete_phase();
            for w in 0..8 {
                t.d.mbarrier_wait(&mut full, block, 65536, t.warp(0, w), ALL, true, false, 6)?;
            }
            for group in 0..2u32 {
                let warps: Vec<(Warp, u32)> = (0..4).map(|w| (t.warp(0, 4 * group + w), ALL)).collect();
                let g = t.d.agent_issue(AgentKind::Wgmma, Proxy::Async, &warps, false)?;
                let read = AgentAccess { space: s, kind: Read, sem: weak, element: 1, site: 7 };
                t.d.agent_access(g, &read, &[(u64::from(group) * 8192, 8192), (16384, 16384)])?;
                for &(w, mask) in &warps {
                    t.d.agent_observe(g, w, mask, Observe::All)?;
                }
                t.d.agent_retire(g);
            }
            for w in 0..8 {
                t.d.mbarrier_arrive(&mut empty, block, 65544, t.warp(0, w), 1, false, 8)?;
            }
            empty.complete_phase();
        }
        Ok(())
    })?;
    println!("           ({:?})", t.d.stats());
    Ok(())
}
