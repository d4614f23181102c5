//! `bugs_async.cu`, clusters of two blocks.

use crate::args;
use crate::common::*;
use ptx_emu::{Kind, Shape};
use std::sync::Arc;

const BLOCKS: u32 = 4;

fn clusters() -> Arc<Text> {
    text("bugs_async", "sm_90a")
}

fn wrong(kernel: &str, kinds: &[Kind], places: &[Place], says: &[&str]) {
    let text = clusters();
    let expected = Expected { text: &text, kernel, kinds, places, thread: |id| id.block[0] < BLOCKS, says };
    reports(WRONG, &expected, |config| {
        let gpu = Gpu::new(&text, config);
        gpu.run(kernel, Shape::new(BLOCKS, 128), &args![gpu.room::<u32>(512)])
    });
}

/// Each block ends up with what the other one of its cluster wrote.
fn right(kernel: &str) {
    let text = clusters();
    passes(CORRECT, |config| {
        let gpu = Gpu::new(&text, config);
        let out = gpu.room::<u32>(512);
        gpu.run(kernel, Shape::new(BLOCKS, 128), &args![out])?;
        gpu.expect("out", out, &Vec::from_iter((0..BLOCKS).flat_map(|b| (0..128).map(move |i| 1000 * (b ^ 1) + i))))
    });
}

const WRITE: Place = Place("st.shared", "values[threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;");
const READ: Place = Place("ld.shared::cluster", "= ptx::ld_shared_cluster_u32(peer);");

#[test]
fn a_block_that_ends_while_its_memory_is_read() {
    // Whether or not the other block has ended by then.
    wrong("cluster_exit", &[Kind::EarlyExit], &[READ], &["shared"]);
    right("cluster_exit_ok");
}

#[test]
fn a_block_that_is_read_before_it_has_written() {
    wrong("cluster_no_barrier", &[Kind::DataRace], &[WRITE, READ], &["shared"]);
}

#[test]
fn copies_and_arrivals_between_blocks() {
    right("cluster_send");
    right("cluster_remote_arrive");
}

#[test]
fn a_wait_at_the_scope_of_a_block_for_another_block() {
    let write = Place("st.shared::cluster", "ptx::st_shared_cluster_u32(ptx::mapa_shared_cluster(");
    let read = Place("ld.shared", "out[blockIdx.x * 128 + threadIdx.x] = received[threadIdx.x];");
    wrong("cluster_scope", &[Kind::DataRace, Kind::InsufficientScope], &[write, read], &["shared"]);
}
