//! `attention.cu`: cp.async, ldmatrix and barriers in an attention.

use crate::common::attention::{Problem, run};
use crate::common::*;
use ptx_emu::{Kind, ThreadId};

/// Three tiles of keys: both buffers are filled again.
const PROBLEM: Problem = Problem { heads: 1, queries: 64, keys: 130, causal: false };

fn wrong(variant: &str, kinds: &[Kind], places: &[Place]) {
    let text = text(&format!("attention-{variant}"), "sm_80");
    let here = |id: ThreadId| id.block == [0; 3];
    let expected = Expected { text: &text, kernel: "attention", kinds, places, thread: here, says: &["shared"] };
    reports(WRONG, &expected, |config| run(&text, config, PROBLEM));
}

const COPY: Place = Place("cp.async.cg", "ptx::cp_async_cg_16_zfill(shared + place(row, chunk)");
const QUERIES: Place = Place("ldmatrix", "ptx::ldmatrix_x4(query[step], shared + Q");
const KEYS: Place = Place("ldmatrix", "ptx::ldmatrix_x4(keys4, shared + K");
const VALUES: Place = Place("ldmatrix", "ptx::ldmatrix_x4_trans(values, shared + V");

#[test]
fn no_barrier_after_the_wait() {
    wrong("barrier", &[Kind::DataRace], &[COPY, QUERIES, KEYS, VALUES]);
}

#[test]
fn no_barrier_before_a_buffer_is_filled_again() {
    wrong("reuse", &[Kind::DataRace], &[COPY, KEYS, VALUES]);
}

#[test]
fn no_wait_for_the_copies() {
    wrong("wait", &[Kind::DataRace], &[COPY, QUERIES, KEYS, VALUES]);
}

#[test]
fn without_a_mistake() {
    let text = text("attention", "sm_80");
    passes(CORRECT, |config| run(&text, config, PROBLEM));
}
