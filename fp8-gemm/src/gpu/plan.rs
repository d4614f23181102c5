//! Which kernel, and how many blocks of it: functions of the shape and the device alone.

use crate::error::{Error, Result};
use std::fmt;

/// Which text of the kernels a device runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Arch {
    /// Compute capability 8.0 and later: the quantisers.
    Sm80,
    /// Compute capability 9.0 (Hopper): everything.
    Sm90a,
}

impl Arch {
    /// The best that a device of this compute capability runs.
    pub fn of(compute_capability: (u32, u32)) -> Result<Arch> {
        match compute_capability {
            // Texts for `sm_90a` are for that capability alone.
            (9, 0) => Ok(Arch::Sm90a),
            (8.., _) => Ok(Arch::Sm80),
            (major, minor) => Err(Error::Unsupported {
                what: "GPU",
                expected: "compute capability 8.0 or later",
                got: format!("{major}.{minor}"),
            }),
        }
    }

    /// Whether a device of this compute capability runs it.
    pub fn runs_on(self, compute_capability: (u32, u32)) -> bool {
        match self {
            Arch::Sm80 => compute_capability >= (8, 0),
            Arch::Sm90a => compute_capability == (9, 0),
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
        })
    }
}

/// Rows and columns of D that a block works on at a time.
pub const GEMM_TILE: u32 = 128;

/// How a product is launched. It changes the speed alone: every plan gives the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GemmPlan {
    /// Blocks of a cluster: 2 share the tiles of B by multicast, 1 do not.
    pub cluster: u32,
    /// Blocks, a multiple of `cluster`; each works on one tile after the other.
    pub blocks: u32,
    /// Row blocks (of 128 times `cluster` rows) that are worked on together, so that their part of A stays in L2.
    pub raster_rows: u32,
}

impl GemmPlan {
    /// The plan for D `[m, n]` on a device with this many multiprocessors.
    ///
    /// - Clusters of two where they take no more turns than single blocks: they load B once for two blocks, but an odd number of row blocks
    ///   leaves one of the last two without work.
    /// - As few blocks as take no more turns than all multiprocessors would.
    /// - Tiles in groups of rows by columns that make what runs at a time as square as it can be, which loads least.
    pub fn new(m: u32, n: u32, sm_count: u32) -> GemmPlan {
        let single = GemmPlan::with_cluster(m, n, sm_count, 1);
        let pair = GemmPlan::with_cluster(m, n, sm_count, 2);
        if m > GEMM_TILE && sm_count >= 2 && pair.turns(m, n) <= single.turns(m, n) { pair } else { single }
    }

    /// The plan with clusters of this many blocks (1 or 2; others count as 1).
    pub fn with_cluster(m: u32, n: u32, sm_count: u32, cluster: u32) -> GemmPlan {
        let cluster = if cluster == 2 { 2 } else { 1 };
        let (rows, columns) = tiles(m, n, cluster);
        let units = rows * columns;
        let resident = u64::from((sm_count / cluster).max(1));
        let turns = units.div_ceil(resident).max(1);
        let running = units.div_ceil(turns).clamp(1, resident);
        // What `running` units load: their row blocks of A and their column blocks of B. The first best in ascending order.
        let cost = |height: u64| height * u64::from(cluster) + running.div_ceil(height);
        let raster_rows = (1..=running.min(rows.max(1)).min(64)).min_by_key(|&height| cost(height)).unwrap_or(1);
        // Both fit: there are no more blocks than multiprocessors (or one cluster), and no more rows than 64.
        GemmPlan { cluster, blocks: running as u32 * cluster, raster_rows: raster_rows as u32 }
    }

    /// How many tiles the busiest block works on.
    pub fn turns(&self, m: u32, n: u32) -> u64 {
        let (rows, columns) = tiles(m, n, self.cluster.max(1));
        (rows * columns).div_ceil(u64::from(self.blocks / self.cluster.max(1)).max(1))
    }
}

/// Row blocks of a cluster's height, and column blocks.
fn tiles(m: u32, n: u32, cluster: u32) -> (u64, u64) {
    (u64::from(m).div_ceil(u64::from(GEMM_TILE * cluster)), u64::from(n).div_ceil(u64::from(GEMM_TILE)))
}

impl fmt::Display for GemmPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "128x128x128, {} blocks", self.blocks)?;
        if self.cluster > 1 {
            write!(f, " in clusters of {} (multicast)", self.cluster)?;
        }
        write!(f, ", {} row blocks together", self.raster_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plans_of_the_real_model() {
        let plan = |m, n| GemmPlan::new(m, n, 132).to_string();
        // One row block: nothing to share.
        assert_eq!(plan(64, 2112), "128x128x128, 17 blocks, 1 row blocks together");
        // 32 x 56 tiles: 14 turns of 128 blocks either way.
        assert_eq!(plan(4096, 7168), "128x128x128, 128 blocks in clusters of 2 (multicast), 5 row blocks together");
        // Five row blocks by 24: one turn for single blocks, two for three rows of pairs, of which one block has nothing to do.
        assert_eq!(plan(640, 3072), "128x128x128, 120 blocks, 5 row blocks together");
        assert_eq!(GemmPlan::new(4096, 4096, 1).cluster, 1);
    }

    #[test]
    fn archs() {
        assert_eq!(Arch::of((9, 0)), Ok(Arch::Sm90a));
        for capability in [(8, 0), (8, 9), (10, 0), (12, 1)] {
            assert_eq!(Arch::of(capability), Ok(Arch::Sm80));
            assert!(Arch::Sm80.runs_on(capability) && !Arch::Sm90a.runs_on(capability));
        }
        assert!(Arch::of((7, 5)).unwrap_err().to_string().contains("7.5"));
        assert_eq!([Arch::Sm80.to_string(), Arch::Sm90a.to_string()], ["sm_80", "sm_90a"]);
    }

    proptest! {
        #[test]
        fn plans_keep_the_kernels_rules(m in 0..=u32::MAX, n: u32, small in 0..2000u32, sm_count in 0..400u32) {
            for (m, n) in [(m, n), (small, n % 5000), (m, small)] {
                for plan in [GemmPlan::new(m, n, sm_count), GemmPlan::with_cluster(m, n, sm_count, 1), GemmPlan::with_cluster(m, n, sm_count, 2)] {
                    prop_assert!(matches!(plan.cluster, 1 | 2));
                    prop_assert!(plan.blocks >= plan.cluster && plan.blocks.is_multiple_of(plan.cluster));
                    prop_assert!(plan.blocks <= sm_count.max(plan.cluster));
                    prop_assert!((1..=64).contains(&plan.raster_rows));
                    // Every block has a tile, unless there is none.
                    let units = u64::from(m).div_ceil(128 * u64::from(plan.cluster)) * u64::from(n).div_ceil(128);
                    prop_assert!(u64::from(plan.blocks / plan.cluster) <= units.max(1));
                    // Fewer blocks than multiprocessors take no more turns than all of them would.
                    let all = u64::from((sm_count / plan.cluster).max(1));
                    prop_assert_eq!(plan.turns(m, n), units.div_ceil(all));
                }
            }
        }
    }
}
