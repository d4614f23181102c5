//! The blocking around the tile kernels, for bf16 and FP8.
//!
//! A task is up to 196 rows by 512 columns of one product. For each 512 of k it decodes its rows of the left operand to f32 once; then,
//! panel by panel and 128 of k at a time, it decodes the panel into the first cache and runs the tiles over it. Panels of bf16 are decoded
//! in registers when there are at most 4 rows. Totals stay in the output itself when that is f32 and plain, in scratch otherwise.
//!
//! How rows and columns fall into tasks depends on shapes and thread count, and no result does: an output element sees its k in one order.

use crate::cpu::{self, A_STRIDE, A_STRIDE_T, FEW_PANELS, FEW_ROWS, FewRows, K_CHUNK, PANEL, ROW_CHUNK, Strip};
use crate::operand::Output;
use crate::scaled::BLOCK;
use crate::source::{Left, Right};
use std::cell::RefCell;
use v3_numerics::cpu::Isa;
use v3_numerics::{bf16, par};

/// The most panels of a task.
const PANEL_CHUNK: usize = 16;

/// Products with fewer multiply-adds run on the calling thread.
const PARALLEL_FROM: usize = 1 << 18;

/// One product `[m, k] x [k, n]` in bf16 or FP8, with operands that agree (see `crate::gemm::check`).
pub(crate) struct Job<'a> {
    pub a: Left<'a>,
    pub b: Right<'a>,
    pub c: Output<'a>,
}

/// The pointer and strides of an output, from which tasks write disjoint parts.
#[derive(Clone, Copy)]
struct RawOutput {
    ptr: RawPointer,
    row_stride: usize,
    col_stride: usize,
}

#[derive(Clone, Copy)]
enum RawPointer {
    F32(*mut f32),
    Bf16(*mut bf16),
}

// SAFETY: a RawOutput comes from a `MatMut`, which may be sent, and tasks write disjoint elements.
unsafe impl Send for RawOutput {}
// SAFETY: as above.
unsafe impl Sync for RawOutput {}

/// Rows and panels of one job.
struct Task {
    job: usize,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

#[derive(Default)]
struct Scratch {
    a: Vec<f32>,
    row_scales: Vec<f32>,
    panel: Vec<f32>,
    totals: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs all jobs.
pub(crate) fn run(jobs: Vec<Job<'_>>, accumulate: bool) {
    let isa = Isa::detect();
    let work: usize = jobs.iter().map(|j| j.a.rows() * j.b.n() * j.b.k()).sum();
    let threads = if work < PARALLEL_FROM { 1 } else { par::num_threads() };
    let total_rows: usize = jobs.iter().map(|j| j.a.rows()).sum();
    let mut tasks = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        cut(index, job.a.rows(), job.b.n(), total_rows, threads, &mut tasks);
    }
    // Outputs are taken apart here, while they are borrowed for the whole of the run.
    let (jobs, outputs): (Vec<_>, Vec<_>) = jobs
        .into_iter()
        .map(|job| {
            let output = match job.c {
                Output::F32(mut c) => {
                    RawOutput { ptr: RawPointer::F32(c.as_mut_ptr()), row_stride: c.row_stride(), col_stride: c.col_stride() }
                }
                Output::Bf16(mut c) => {
                    RawOutput { ptr: RawPointer::Bf16(c.as_mut_ptr()), row_stride: c.row_stride(), col_stride: c.col_stride() }
                }
            };
            ((job.a, job.b), output)
        })
        .unzip();
    let body = |i: usize| {
        let Task { job, rows, panels } = &tasks[i];
        let (a, b) = &jobs[*job];
        // Taken, not borrowed: were this thread ever to run another task in the middle of this one, that would get its own.
        let mut scratch = SCRATCH.take();
        // SAFETY: tasks cover disjoint rows or columns of outputs that this function borrows.
        unsafe { run_task(isa, a, b, outputs[*job], rows.clone(), panels.clone(), accumulate, &mut scratch) };
        SCRATCH.set(scratch);
    };
    if threads == 1 { (0..tasks.len()).for_each(body) } else { par::for_each(tasks.len(), body) }
}

/// Cuts one job into tasks: as large as they may be, but enough of them for the threads.
fn cut(job: usize, rows: usize, cols: usize, total_rows: usize, threads: usize, tasks: &mut Vec<Task>) {
    if rows == 0 || cols == 0 {
        return;
    }
    let panels = cols.div_ceil(PANEL);
    // A thread's share of all rows, if rows are enough to share; else the columns are shared.
    let share = total_rows.div_ceil(threads);
    let row_parts = if share >= 48 { rows.div_ceil(share.min(ROW_CHUNK)) } else { rows.div_ceil(ROW_CHUNK) };
    let panel_parts = if share >= 48 { 1 } else { threads };
    let panel_parts = panel_parts.max(panels.div_ceil(PANEL_CHUNK)).min(panels);
    for p in 0..panel_parts {
        for r in 0..row_parts {
            tasks.push(Task { job, rows: part(rows, row_parts, r), panels: part(panels, panel_parts, p) });
        }
    }
}

/// Part `i` of `0..len` cut into `parts` as evenly as can be.
fn part(len: usize, parts: usize, i: usize) -> std::ops::Range<usize> {
    len * i / parts..len * (i + 1) / parts
}

/// # Safety
/// `output` must be valid for `a.rows()` rows and `b.n` columns, and nothing else may reach the elements of `rows` x `panels` meanwhile.
unsafe fn run_task(
    isa: Isa,
    a: &Left<'_>,
    b: &Right<'_>,
    output: RawOutput,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    let m = rows.len();
    let (k, n) = (b.k(), b.n());
    let promote = b.has_scales();
    let transposed = a.is_transposed();
    let mut col_scales = [0.0; PANEL];
    scratch.a.resize((ROW_CHUNK * A_STRIDE).max(K_CHUNK * A_STRIDE_T), 0.0);
    scratch.row_scales.resize(K_CHUNK / BLOCK * ROW_CHUNK, 0.0);
    scratch.panel.resize(BLOCK * PANEL, 0.0);
    scratch.totals.resize(PANEL_CHUNK * ROW_CHUNK * PANEL, 0.0);

    // Where the totals of panel `p` are: in the output when it is plain and the panel whole.
    let plain = match output.ptr {
        RawPointer::F32(c) if !accumulate && output.col_stride == 1 => Some(c),
        _ => None,
    };
    let totals = scratch.totals.as_mut_ptr();
    let place = |p: usize| match plain {
        // SAFETY: the panel lies inside the output.
        Some(c) if (p + 1) * PANEL <= n => (unsafe { c.add(rows.start * output.row_stride + p * PANEL) }, output.row_stride),
        // SAFETY: the scratch has room for ROW_CHUNK rows of PANEL_CHUNK panels.
        _ => (unsafe { totals.add((p - panels.start) * m * PANEL) }, PANEL),
    };

    for k0 in (0..k).step_by(K_CHUNK) {
        let k1 = (k0 + K_CHUNK).min(k);
        a.load(isa, rows.clone(), k0..k1, &mut scratch.a, &mut scratch.row_scales);
        if let Some(data) = b.bf16_panels()
            && m <= FEW_ROWS
            && !transposed
        {
            let mut p = panels.start;
            while p < panels.end {
                // Panels whose totals are alike: all in the output, or all in scratch.
                let (_, total_stride) = place(p);
                let count = (p..panels.end).take(FEW_PANELS).take_while(|p| place(*p).1 == total_stride).count();
                let mut few = FewRows {
                    rows: m,
                    panels: count,
                    a: scratch.a.as_ptr(),
                    b: data[(p * k + k0) * PANEL..].as_ptr(),
                    panel_stride: k * PANEL,
                    k: k1 - k0,
                    totals: [std::ptr::null_mut(); FEW_PANELS],
                    total_stride,
                    first: k0 == 0,
                };
                few.totals[..count].iter_mut().zip(p..).for_each(|(total, p)| *total = place(p).0);
                // SAFETY: the left operand was loaded for all rows and this stretch of k, which every panel of `b` has; `place` gave
                // room for all rows.
                unsafe { cpu::run_few_rows(isa, &few) };
                p += count;
            }
            continue;
        }
        for p in panels.clone() {
            let (total, total_stride) = place(p);
            for first in (k0..k1).step_by(BLOCK) {
                let len = (k1 - first).min(BLOCK);
                b.load(isa, p, first..first + len, &mut scratch.panel, &mut col_scales);
                let a_step = if transposed { A_STRIDE_T } else { 1 };
                let strip = Strip {
                    rows: m,
                    a: scratch.a[(first - k0) * a_step..].as_ptr(),
                    b: scratch.panel.as_ptr(),
                    k: len,
                    total,
                    total_stride,
                    row_scales: scratch.row_scales[(first - k0) / BLOCK * ROW_CHUNK..].as_ptr(),
                    col_scales: col_scales.as_ptr(),
                    first: first == 0,
                    transposed,
                    promote,
                };
                // SAFETY: the left operand and its scales were loaded for all rows and this stretch of k; the panel was decoded;
                // `place` gave room for all rows.
                unsafe { cpu::run_strip(isa, &strip) };
            }
        }
    }

    for p in panels.clone() {
        let in_place = plain.is_some() && (p + 1) * PANEL <= n;
        if in_place && k > 0 {
            continue;
        }
        let width = (n - p * PANEL).min(PANEL);
        let at = (p - panels.start) * m * PANEL;
        if k == 0 {
            scratch.totals[at..at + m * PANEL].fill(0.0);
        }
        for r in 0..m {
            let total = &scratch.totals[at + r * PANEL..][..width];
            // SAFETY: the caller's promise about the output.
            unsafe { store(output, rows.start + r, p * PANEL, total, accumulate) };
        }
    }
}

/// # Safety
/// As [`run_task`], for the elements from `(row, col)` on.
unsafe fn store(output: RawOutput, row: usize, col: usize, total: &[f32], accumulate: bool) {
    let at = row * output.row_stride + col * output.col_stride;
    for (j, total) in total.iter().enumerate() {
        let at = at + j * output.col_stride;
        match output.ptr {
            // SAFETY: the caller's promise.
            RawPointer::F32(c) => unsafe {
                let c = c.add(at);
                *c = if accumulate { *c + *total } else { *total };
            },
            // SAFETY: the caller's promise.
            RawPointer::Bf16(c) => unsafe {
                let c = c.add(at);
                *c = bf16::from_f32(if accumulate { (*c).to_f32() + *total } else { *total });
            },
        }
    }
}
