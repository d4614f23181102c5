//! How a product is cut into tasks. The result does not depend on it.

use super::kernel::{MAX_ROWS, PANEL};

/// The most rows of A that a task packs at once. 1008 x 272 values are read again for each panel of B, 4 bytes a cycle: a second-level
/// cache of 2 MiB holds them, a third-level cache is fast enough.
const BAND: usize = 72 * MAX_ROWS;
/// Products of less work, in multiply-adds, run on the calling thread: some 15 microseconds.
pub(super) const PARALLEL_FROM: usize = 1 << 21;

/// Bands of rows and groups of panels; every band meets every group in one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    pub bands: usize,
    pub groups: usize,
}

/// How to cut `[m, k] x [k, n]` for a number of threads; `packed` when B is packed already. `m` and `n` are at least 1.
pub(super) fn split(m: usize, n: usize, k: usize, threads: usize, packed: bool) -> Split {
    let least = m.div_ceil(BAND);
    // A value from memory takes the time of about 8 multiply-adds.
    let work = m.saturating_mul(n).saturating_mul(k) + 8 * (m * k + k * n + m * n);
    if threads <= 1 || work < PARALLEL_FROM {
        return Split { bands: least, groups: 1 };
    }
    let panels = n.div_ceil(PANEL);
    let tiles = m.div_ceil(MAX_ROWS);
    // Two tasks for each thread even out a thread that is held up, where they do not get too small for it.
    let tasks = if work >= 4 * threads * PARALLEL_FROM { 2 * threads } else { threads };
    // The time in cycles for each value of k: 32 multiply-adds a cycle, and the packing that every task does.
    let time = |split: &Split| {
        let share = |all: usize, parts: usize| all.div_ceil(parts) as f64;
        let rounds = share(split.bands * split.groups, threads);
        let (rows, cols) = (share(tiles, split.bands) * MAX_ROWS as f64, share(panels, split.groups) * PANEL as f64);
        let pack_b = if packed { 0.0 } else { 0.3 };
        rounds * (rows * cols / 32.0 + 0.15 * rows + pack_b * cols)
    };
    let by_cols = {
        let groups = panels.min(tasks);
        Split { bands: least.max(tasks / groups).min(tiles), groups }
    };
    let by_rows = {
        let bands = least.next_multiple_of(tasks).min(tiles);
        Split { bands, groups: tasks.div_ceil(bands).min(panels) }
    };
    if time(&by_cols) <= time(&by_rows) { by_cols } else { by_rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_takes_everything_that_fits() {
        for (m, n, k) in [(1, 1, 0), (64, 256, 256), (1008, 5000, 300)] {
            assert_eq!(split(m, n, k, 1, false), Split { bands: 1, groups: 1 });
        }
        assert_eq!(split(4096, 512, 512, 1, false), Split { bands: 5, groups: 1 });
    }

    #[test]
    fn small_products_are_not_cut() {
        assert_eq!(split(16, 64, 64, 16, true), Split { bands: 1, groups: 1 });
    }

    #[test]
    fn few_rows_are_cut_along_the_columns() {
        assert_eq!(split(1, 2048, 2048, 2, true), Split { bands: 1, groups: 4 });
        assert_eq!(split(64, 256, 256, 2, false), Split { bands: 1, groups: 2 });
    }

    #[test]
    fn few_columns_are_cut_along_the_rows() {
        assert_eq!(split(4096, 32, 512, 2, true), Split { bands: 8, groups: 1 });
    }

    #[test]
    fn no_task_is_empty_and_every_thread_has_one() {
        for threads in [2, 3, 8, 64] {
            for m in [1, 13, 15, 100, 1009, 3000] {
                for n in [1, 31, 33, 500, 4000] {
                    let Split { bands, groups } = split(m, n, 600, threads, m % 2 == 0);
                    assert!((1..=m.div_ceil(MAX_ROWS)).contains(&bands) && (1..=n.div_ceil(PANEL)).contains(&groups));
                    assert!(m.div_ceil(bands) <= BAND);
                    let large = m >= 1009 && n >= 500;
                    assert!(!large || bands * groups >= threads, "[{m}, {n}] on {threads}: {bands} x {groups}");
                }
            }
        }
    }
}
