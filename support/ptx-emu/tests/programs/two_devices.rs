//! `producer_consumer.cu`: kernels that run on two devices at once and talk through memory that both map.

use crate::SEEDS;
use crate::args;
use crate::common::pair::{Pair, Pipe, pipe};
use crate::common::*;
use ptx_emu::{Config, Shape};

fn each(run: impl Fn(&Text, Config) -> Run + Sync) {
    for arch in ["sm_80", "sm_90"] {
        let text = text("producer_consumer", arch);
        passes(SEEDS, |config| run(&text, config));
    }
}

#[test]
fn rings() {
    for kernels in [["produce", "consume"], ["produce_fenced", "consume_fenced"]] {
        for (blocks, chunks, slots, ring_on) in [(1, 1, 1, 0), (3, 5, 2, 1), (2, 7, 3, 0)] {
            each(|text, config| pipe(text, config, kernels, Pipe { blocks, chunks, slots, ring_on }));
        }
    }
}

#[test]
fn ping_pong() {
    each(|text, config| {
        let pair = Pair::new(text, config);
        let turns = 6u32;
        let (ball, out) = (pair.upload(0, &[0]), [0, 1].map(|device| pair.room(device, turns as usize)));
        let of = |me: u32| args![ball, out[me as usize], me, turns];
        pair.run([("ping_pong", &of(0)), ("ping_pong", &of(1))], Shape::new(1, 32))?;
        pair.expect("ball", ball, &[2 * turns])?;
        for me in 0..2 {
            pair.expect("out", out[me as usize], &Vec::from_iter((0..turns).map(|turn| 2 * turn + me)))?;
        }
        Ok(())
    });
}

#[test]
fn counting_together() {
    each(|text, config| {
        let pair = Pair::new(text, config);
        let count = pair.upload(1, &[0]);
        let args = args![count, 3u32];
        pair.run([("count_together", &args), ("count_together", &args)], Shape::new(2, 100))?;
        pair.expect("count", count, &[2 * 200 * 3])
    });
}

#[test]
fn exchange() {
    for n in [1, 256, 700] {
        each(|text, config| {
            let pair = Pair::new(text, config);
            let values = |device: u32| -> Vec<u32> { (0..n).map(|i| i * 7 + device * 100_000).collect() };
            let mine = [0, 1].map(|d| pair.upload(d, &values(d)));
            let inbox = [0, 1].map(|d| pair.room(d, n as usize));
            let flag = [0, 1].map(|d| pair.upload(d, &[0]));
            let out = [0, 1].map(|d| pair.room(d, n as usize));
            let of = |d: usize| args![mine[d], inbox[1 - d], inbox[d], flag[1 - d], flag[d], out[d], n];
            pair.run([("exchange", &of(0)), ("exchange", &of(1))], Shape::new(1, 256))?;
            (0..2).try_for_each(|d| pair.expect("out", out[d as usize], &values(1 - d)))
        });
    }
}
