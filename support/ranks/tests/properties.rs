//! What messages and collectives return, for any number of ranks, any lengths and any timing.

use proptest::prelude::*;
use v3_ranks::{Clock, Comm, Error, Link, LinkKind, LinkModel, WorldConfig, run_threads};

/// A fixed pseudo-random f32 in about [-1, 1], with a wide range of exponents so that the order of addition shows.
fn value(seed: u64, index: usize) -> f32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 31;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 29;
    let sign = if x & 1 == 0 { 1.0 } else { -1.0 };
    sign * ((x >> 40) as f32 / (1 << 24) as f32) * 2f32.powi(-((x >> 8) as i32 & 15))
}

/// Lets another rank go first, differently for each seed.
fn jitter(seed: u64, rank: usize) {
    for _ in 0..(seed.wrapping_mul(rank as u64 + 7) % 5) {
        std::thread::yield_now();
    }
    if (seed >> rank) & 3 == 3 {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

/// Half of the seeds have the virtual clock, and half of these links that take time.
fn config(size: usize, slots: Option<usize>, seed: u64) -> WorldConfig {
    let config = WorldConfig { compute_slots: slots, ..WorldConfig::new(size).ranks_per_node(2) };
    let second = Link { latency: std::time::Duration::from_secs(1), bandwidth: 100.0 };
    match seed % 4 {
        0 => config.clock(Clock::Virtual),
        1 => config.clock(Clock::Virtual).link(LinkModel { fast: Link { bandwidth: 300.0, ..second }, slow: second }),
        _ => config,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn all_to_all_v_transposes_uneven_rows(size in 1usize..7, seed: u64, slots in prop::option::of(1usize..3)) {
        let len = |src: usize, dst: usize| (value(seed, src * 16 + dst).abs() * 2000.0) as usize % 9;
        let element = |src: usize, dst: usize, i: usize| (src * 100 + dst * 10 + i) as u32;
        let got = run_threads(config(size, slots, seed), |comm: Comm| {
            jitter(seed, comm.rank());
            let me = comm.rank();
            comm.all_to_all_v((0..size).map(|dst| (0..len(me, dst)).map(|i| element(me, dst, i)).collect()).collect())
        }).unwrap();
        for (dst, parts) in got.iter().enumerate() {
            prop_assert_eq!(parts.len(), size);
            for (src, part) in parts.iter().enumerate() {
                let want: Vec<u32> = (0..len(src, dst)).map(|i| element(src, dst, i)).collect();
                prop_assert_eq!(part, &want);
            }
        }
    }

    #[test]
    fn all_reduce_adds_in_the_order_of_the_ranks(size in 1usize..7, len in 0usize..40, seed: u64, slots in prop::option::of(1usize..3)) {
        let want: Vec<u32> = (0..len).map(|i| {
            let mut sum = value(seed, i);
            for rank in 1..size {
                sum += value(seed + rank as u64, i);
            }
            sum.to_bits()
        }).collect();
        let got = run_threads(config(size, slots, seed), |comm: Comm| -> v3_ranks::Result<_> {
            let mut data: Vec<f32> = (0..len).map(|i| value(seed + comm.rank() as u64, i)).collect();
            jitter(seed, comm.rank());
            comm.all_reduce_sum(&mut data)?;
            Ok(data.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        }).unwrap();
        for bits in got {
            prop_assert_eq!(&bits, &want);
        }
    }

    #[test]
    fn reduce_scatter_gives_the_parts_of_all_reduce(size in 1usize..6, seed: u64) {
        let counts: Vec<usize> = (0..size).map(|rank| (seed >> (4 * rank)) as usize % 7).collect();
        let len = counts.iter().sum();
        let got = run_threads(config(size, None, seed), |comm: Comm| -> v3_ranks::Result<_> {
            let mut data: Vec<f32> = (0..len).map(|i| value(seed + comm.rank() as u64, i)).collect();
            let part = comm.reduce_scatter_sum(&data, &counts)?;
            comm.all_reduce_sum(&mut data)?;
            Ok((part, data))
        }).unwrap();
        let mut start = 0;
        for (rank, (part, sum)) in got.iter().enumerate() {
            let want = &sum[start..start + counts[rank]];
            prop_assert_eq!(part.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), want.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            start += counts[rank];
        }
    }

    #[test]
    fn messages_keep_their_order_per_source_and_tag(size in 1usize..5, messages in 0usize..20, seed: u64) {
        run_threads(config(size, None, seed), |comm: Comm| -> v3_ranks::Result<()> {
            let me = comm.rank() as u64;
            for i in 0..messages as u64 {
                for dst in 0..size {
                    comm.send(dst, i % 3, vec![me, i])?;
                }
            }
            // Received in another order of tags and sources than sent.
            for tag in [2, 0, 1] {
                for src in (0..size).rev() {
                    jitter(seed, src);
                    for i in (0..messages as u64).filter(|i| i % 3 == tag) {
                        assert_eq!(comm.recv::<u64>(src, tag)?, vec![src as u64, i]);
                    }
                    assert_eq!(comm.try_recv::<u64>(src, 77)?, None);
                    comm.barrier()?;
                }
            }
            Ok(())
        }).unwrap();
    }

    #[test]
    fn gather_and_broadcast(size in 1usize..6, seed: u64) {
        run_threads(config(size, Some(1), seed), |comm: Comm| -> v3_ranks::Result<()> {
            let rows = |rank: usize| vec![rank as i64; (seed >> rank) as usize % 4];
            let gathered = comm.all_gather_v(&rows(comm.rank()))?;
            assert_eq!(gathered, (0..size).map(rows).collect::<Vec<_>>());
            for root in 0..size {
                let text = comm.broadcast(root, vec![comm.rank() as f32; root])?;
                assert_eq!(text, vec![root as f32; root]);
            }
            let mut largest = [comm.rank() as u64, 5];
            comm.all_reduce(&mut largest, u64::max)?;
            assert_eq!(largest, [size as u64 - 1, 5]);
            Ok(())
        }).unwrap();
    }
}

#[test]
fn subgroups_do_not_see_each_others_messages() {
    run_threads(WorldConfig::new(6).ranks_per_node(2), |comm: Comm| -> v3_ranks::Result<()> {
        let me = comm.rank();
        // Rows and columns of a 2 x 3 grid, columns in descending order.
        let row: Vec<usize> = (0..3).map(|c| me / 3 * 3 + c).collect();
        let column = [me % 3 + 3, me % 3];
        let row = comm.subgroup(&row, 0)?;
        let other = comm.subgroup(row.world_ranks(), 1)?;
        let column = comm.subgroup(&column, 0)?;
        assert_eq!((row.rank(), row.size()), (me % 3, 3));
        assert_eq!((column.rank(), column.size()), (1 - me / 3, 2));
        assert_eq!((column.world_rank(), column.node()), (me, me / 2));
        for dst in 0..3 {
            other.send(dst, 0, vec![1000 + me])?;
            row.send(dst, 0, vec![me])?;
        }
        for src in 0..3 {
            assert_eq!(row.recv::<usize>(src, 0)?, [me / 3 * 3 + src]);
            assert_eq!(other.recv::<usize>(src, 0)?, [1000 + me / 3 * 3 + src]);
        }
        let mut sum = [me as u64];
        row.all_reduce_sum(&mut sum)?;
        assert_eq!(sum, [if me < 3 { 3 } else { 12 }]);
        column.all_reduce_sum(&mut sum)?;
        assert_eq!(sum, [15]);
        // A group of a group, the same one however often it is asked for.
        if column.rank() == 0 {
            let alone = column.subgroup(&[0], 5)?;
            alone.send(0, 1, vec![7u8])?;
            assert_eq!(column.subgroup(&[0], 5)?.recv::<u8>(0, 1)?, [7]);
        }
        assert!(matches!(comm.subgroup(&[me, 9], 0), Err(Error::Shape { .. })));
        assert!(matches!(comm.subgroup(&[me, me], 0), Err(Error::Shape { .. })));
        assert!(matches!(comm.subgroup(&[(me + 1) % 6], 0), Err(Error::Shape { .. })));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_message_is_handed_over_not_copied() {
    run_threads(WorldConfig::new(2), |comm: Comm| -> v3_ranks::Result<()> {
        let data = vec![1.0f32; 1000];
        let address = data.as_ptr() as usize;
        comm.send(1 - comm.rank(), 0, data)?;
        comm.send(1 - comm.rank(), 1, vec![address])?;
        let data: Vec<f32> = comm.recv(1 - comm.rank(), 0)?;
        assert_eq!(comm.recv::<usize>(1 - comm.rank(), 1)?, [data.as_ptr() as usize]);
        Ok(())
    })
    .unwrap();
}

#[test]
fn traffic_is_counted_by_kind_of_link() {
    let got = run_threads(WorldConfig::new(4).ranks_per_node(2), |comm: Comm| -> v3_ranks::Result<_> {
        for dst in 0..4 {
            comm.send_rows(dst, 0, vec![0f32; 6], 3)?;
        }
        let sent = comm.traffic();
        for src in 0..4 {
            comm.recv::<f32>(src, 0)?;
        }
        comm.count_rows(LinkKind::Slow, 10);
        assert_eq!(comm.traffic().since(&sent).slow.rows, 10);
        Ok(sent)
    })
    .unwrap();
    for sent in got {
        assert_eq!((sent.local.messages, sent.local.bytes, sent.local.rows), (1, 24, 3));
        assert_eq!((sent.fast.messages, sent.fast.bytes, sent.fast.rows), (1, 24, 3));
        assert_eq!((sent.slow.messages, sent.slow.bytes, sent.slow.rows), (2, 48, 6));
    }
}

#[test]
fn a_world_of_one_needs_no_thread() {
    let comm = Comm::solo();
    let mut x = [-0.0f32];
    comm.all_reduce_sum(&mut x).unwrap();
    assert_eq!(x[0].to_bits(), (-0.0f32).to_bits());
    comm.barrier().unwrap();
    assert_eq!(comm.all_to_all_v(vec![vec![1u8, 2]]).unwrap(), [[1, 2]]);
    assert_eq!(comm.reduce_scatter_sum(&[1.0f64, 2.0], &[2]).unwrap(), [1.0, 2.0]);
    assert_eq!(comm.broadcast(0, vec![3u32]).unwrap(), [3]);
    assert_eq!(comm.blocking(|| 5).unwrap(), 5);
}
