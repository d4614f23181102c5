//! f32 matrix multiplication with one order of summation.
//!
//! **Numerical policy.** `c[i, j]` is the chain `acc = fma(a[i, p], b[p, j], acc)` over `p` ascending from `acc = +0`; with
//! `accumulate` the finished chain is added to the former `c[i, j]` once. The bits are the same on every instruction set, for
//! every number of threads, every number of rows and columns, every stride, packed or not. (Which NaN a NaN is, is not part
//! of it.)
//!
//! **How.** Lanes run along the columns of C, so the chain of an element stays in one lane of one register. B is packed into panels
//! of 32 columns, `[k][32]`, once per call or once for all in a [`PackedB`]; A is copied in blocks of 256 along k, without
//! transposing it, at a stride that the kernel knows at compile time. The tile is 14 x 32 on AVX-512, 6 x 16 on AVX2; rows are
//! cut into tiles of nearly equal height instead of full ones and a rest. After 256 steps partial sums go back to memory: a
//! stored f32 is the register's value, so the chain is unbroken. Threads take bands of rows or groups of panels, whichever
//! packs less twice; a panel that is not packed yet is packed right before its use, into the first-level cache.

mod kernel;
mod pack;
mod split;

use crate::cpu::Isa;
use crate::error::{Error, Result, check_len, check_shape};
use crate::par;
use crate::scratch::{Aligned, Scratch};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::view::{MatMut, MatRef};
use kernel::{KC, MAX_ROWS, PANEL, TileArgs, run_tile};
use pack::{ALayout, PackA, PackB, Tiles, packed_a_len, panel_width};
use split::{Split, split};

/// `c = a b`, or `c += a b` with `accumulate`: `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`, each with any strides.
///
/// ```
/// use v3_numerics::{MatMut, MatRef, gemm::gemm};
/// let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
/// let w = [1.0, 0.0, -1.0, 0.5, 0.5, 0.5]; // [2 outputs, 3 inputs]
/// let mut y = [f32::NAN; 4];
/// gemm(MatRef::new(&x, 2, 3)?, MatRef::new(&w, 2, 3)?.t(), MatMut::new(&mut y, 2, 2)?, false)?;
/// assert_eq!(y, [-2.0, 3.0, -2.0, 7.5]);
/// # Ok::<(), v3_numerics::Error>(())
/// ```
pub fn gemm(a: MatRef<'_, f32>, b: MatRef<'_, f32>, c: MatMut<'_, f32>, accumulate: bool) -> Result<()> {
    check_shape("b of a matrix product", (a.cols(), b.cols()), (b.rows(), b.cols()))?;
    check_shape("c of a matrix product", (a.rows(), b.cols()), (c.rows(), c.cols()))?;
    // The lanes run along the rows of C: they must be contiguous, and should not be short. The product is the same bits either way.
    let transposed = c.col_stride() != 1 && c.row_stride() == 1;
    let narrow = c.col_stride() == 1 && b.cols() < LANES / 2 && a.rows() > 4 * b.cols();
    if transposed || narrow {
        product(Isa::detect(), b.t(), &Rhs::View(a.t()), c.t(), accumulate);
    } else {
        product(Isa::detect(), a, &Rhs::View(b), c, accumulate);
    }
    Ok(())
}

/// A right operand `[k, n]` in the layout the kernels read: packed once, used many times.
///
/// The layout is the same for every instruction set: panels of 32 columns (the last may have 16), each `[k][width]`, padded with zeros.
#[derive(Clone)]
pub struct PackedB {
    k: usize,
    n: usize,
    data: Aligned,
}

impl std::fmt::Debug for PackedB {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedB [{}, {}]", self.k, self.n)
    }
}

impl PackedB {
    /// Packs `b` `[k, n]`. For weights stored `[out, in]` pass their transposed view.
    pub fn new(b: MatRef<'_, f32>) -> PackedB {
        let (k, n) = (b.rows(), b.cols());
        let mut packed = PackedB { k, n, data: Aligned::zeroed(packed_b_len(k, n)) };
        pack_panels(Isa::detect(), b, SendPtr(packed.data.as_mut_ptr()));
        packed
    }

    /// Packs another `b` of the same shape into the same memory.
    pub fn repack(&mut self, b: MatRef<'_, f32>) -> Result<()> {
        check_shape("matrix to pack", (self.k, self.n), (b.rows(), b.cols()))?;
        pack_panels(Isa::detect(), b, SendPtr(self.data.as_mut_ptr()));
        Ok(())
    }

    /// The number of rows, the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }
    /// The number of columns.
    pub fn n(&self) -> usize {
        self.n
    }
    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        self.data.len() * 4
    }
}

/// [`gemm`] with a packed right operand: the same bits.
pub fn gemm_packed(a: MatRef<'_, f32>, b: &PackedB, c: MatMut<'_, f32>, accumulate: bool) -> Result<()> {
    check_shape("packed b of a matrix product", (a.cols(), b.n), (b.k, b.n))?;
    check_shape("c of a matrix product", (a.rows(), b.n), (c.rows(), c.cols()))?;
    product(Isa::detect(), a, &Rhs::Packed { data: b.data.as_ptr(), k: b.k }, c, accumulate);
    Ok(())
}

/// One product for each group of consecutive rows: `c[offsets[g]..offsets[g + 1]] = a[same rows] * weights[g]`.
///
/// `a` is `[rows, k]`, `c` `[rows, n]`; `offsets` ascends from 0 to `rows`, one more than there are groups; groups may be empty.
/// The groups run at the same time.
pub fn gemm_grouped(
    a: MatRef<'_, f32>,
    offsets: &[usize],
    weights: &[&PackedB],
    mut c: MatMut<'_, f32>,
    accumulate: bool,
) -> Result<()> {
    check_offsets(offsets, weights.len(), a.rows())?;
    check_shape("c of a grouped product", (a.rows(), c.cols()), (c.rows(), c.cols()))?;
    for w in weights {
        check_shape("weight of a grouped product", (a.cols(), c.cols()), (w.k(), w.n()))?;
    }
    let n = c.cols();
    let isa = Isa::detect();
    let shared = c.as_shared();
    par::for_each(weights.len(), |g| {
        let (first, end) = (offsets[g], offsets[g + 1]);
        if let Ok(a) = a.row_range(first..end) {
            // SAFETY: the rows of a group are its own, and lie inside `c` as the offsets do.
            let c = unsafe { shared.tile(first, end - first, 0, n) };
            let w = weights[g];
            product(isa, a, &Rhs::Packed { data: w.data.as_ptr(), k: w.k }, c, accumulate);
        }
    });
    Ok(())
}

/// One product for each group of consecutive *summands*: `c[g] = a[rows of g]^T * b[rows of g]`, as weight gradients of experts are.
///
/// `a` is `[rows, m]`, `b` `[rows, n]`, `c` `[groups, m, n]` contiguous. An empty group gives 0 (or adds it to `c` with `accumulate`).
pub fn gemm_k_grouped(a: MatRef<'_, f32>, b: MatRef<'_, f32>, offsets: &[usize], c: &mut [f32], accumulate: bool) -> Result<()> {
    check_shape("b of a grouped product", (a.rows(), b.cols()), (b.rows(), b.cols()))?;
    let groups = offsets.len().saturating_sub(1);
    check_offsets(offsets, groups, a.rows())?;
    let (m, n) = (a.cols(), b.cols());
    check_len("c of a grouped product", groups * m * n, c.len())?;
    let isa = Isa::detect();
    par::for_each_chunk_mut(c, (m * n).max(1), |g, c| {
        let rows = offsets[g]..offsets[g + 1];
        if let (Ok(a), Ok(b), Ok(c)) = (a.row_range(rows.clone()), b.row_range(rows), MatMut::new(c, m, n)) {
            product(isa, a.t(), &Rhs::View(b), c, accumulate);
        }
    });
    Ok(())
}

fn check_offsets(offsets: &[usize], groups: usize, rows: usize) -> Result<()> {
    if offsets.len() == groups + 1 && offsets[0] == 0 && offsets[groups] == rows && offsets.is_sorted() {
        Ok(())
    } else {
        Err(Error::Shape {
            what: "group offsets",
            expected: format!("{} values ascending from 0 to {rows}", groups + 1),
            got: format!("{offsets:?}"),
        })
    }
}

/// The right operand of a product.
enum Rhs<'a> {
    View(MatRef<'a, f32>),
    /// Panels as in [`PackedB`].
    Packed {
        data: *const f32,
        k: usize,
    },
}

// SAFETY: the packed values are only read, and outlive the call that made the value.
unsafe impl Sync for Rhs<'_> {}

/// A pointer whose users keep to disjoint places.
#[derive(Clone, Copy)]
struct SendPtr(*mut f32);

impl SendPtr {
    /// The address `offset` values further on.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

// SAFETY: see the type.
unsafe impl Send for SendPtr {}
// SAFETY: see the type.
unsafe impl Sync for SendPtr {}

fn packed_b_len(k: usize, n: usize) -> usize {
    n / PANEL * PANEL * k + if n.is_multiple_of(PANEL) { 0 } else { panel_width(n % PANEL) * k }
}

/// Packs all of `b` into `out`, which has room for [`packed_b_len`] values, by the threads of the pool.
fn pack_panels(isa: Isa, b: MatRef<'_, f32>, out: SendPtr) {
    let (k, n) = (b.rows(), b.cols());
    let pack = |panel: usize| {
        let (first, end) = (panel * PANEL, n.min((panel + 1) * PANEL));
        if let Ok(b) = b.col_range(first..end) {
            dispatch(isa, PackB { b, out: out.at(first * k) });
        }
    };
    let panels = n.div_ceil(PANEL);
    if k * n < split::PARALLEL_FROM / 16 { (0..panels).for_each(pack) } else { par::for_each(panels, pack) }
}

/// The product. Shapes have been checked.
fn product(isa: Isa, a: MatRef<'_, f32>, b: &Rhs<'_>, mut c: MatMut<'_, f32>, accumulate: bool) {
    let (m, k, n) = (a.rows(), a.cols(), c.cols());
    if m == 0 || n == 0 {
        return;
    }
    let Split { bands, groups } = split(m, n, k, par::num_threads(), matches!(b, Rhs::Packed { .. }));
    let rows = Tiles { rows: m, count: bands };
    let panels = Tiles { rows: n.div_ceil(PANEL), count: groups };
    let count = bands * groups;
    let shared = c.as_shared();
    let task = |i: usize| {
        let (first_row, band) = rows.get(i % bands);
        let (first_panel, group) = panels.get(i / bands);
        let (first_col, end_col) = (first_panel * PANEL, n.min((first_panel + group) * PANEL));
        if let Ok(a) = a.row_range(first_row..first_row + band) {
            // SAFETY: inside `c`, and each task has a tile of its own.
            let c = unsafe { shared.tile(first_row, band, first_col, end_col - first_col) };
            dispatch(isa, Task { a, b, first_col, c, accumulate });
        }
    };
    if count == 1 { task(0) } else { par::for_each(count, task) }
}

/// One band of rows by one group of panels.
struct Task<'a> {
    a: MatRef<'a, f32>,
    b: &'a Rhs<'a>,
    /// The first column of the group, at the start of a panel.
    first_col: usize,
    c: MatMut<'a, f32>,
    accumulate: bool,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Task { a, b, first_col, mut c, accumulate } = self;
        let (m, k, n) = (c.rows(), a.cols(), c.cols());
        let tiles = Tiles::new(m, S::TILE_ROWS);
        let layout = if a.row_stride() == 1 && a.col_stride() != 1 { ALayout::KMajor } else { ALayout::RowMajor };
        let mut a_packed = Scratch::take(packed_a_len(layout, tiles, k.min(KC)));
        // A panel is packed here where B is not packed yet.
        let mut b_packed = match b {
            Rhs::View(_) => Some(Scratch::take(KC * PANEL)),
            Rhs::Packed { .. } => None,
        };
        // Partial sums stay in C itself, unless C holds what the finished sums are added to.
        let blocks = k.div_ceil(KC).max(1);
        let (c_rows, c_cols) = (c.row_stride(), c.col_stride());
        let c_ptr = c.as_mut_ptr();
        let mut partial = (accumulate && blocks > 1).then(|| Scratch::take(m * n.next_multiple_of(LANES)));
        for block in 0..blocks {
            let (first_k, last) = (block * KC, block + 1 == blocks);
            let kc = (k - first_k).min(KC);
            let Ok(a) = a.col_range(first_k..first_k + kc) else { return };
            s.outline(PackA { a, layout, tiles, out: a_packed.as_mut_ptr() });
            for col in (0..n).step_by(PANEL) {
                let cols = (n - col).min(PANEL);
                let width = panel_width(cols);
                let (panel, b_stride) = match (b, &mut b_packed) {
                    (Rhs::Packed { data, k }, _) => (data.wrapping_add((first_col + col) * k + first_k * width), width),
                    // With few rows the copy costs more than it saves, if the panel can be read where it is.
                    (Rhs::View(b), _) if b.col_stride() == 1 && tiles.count <= 2 && cols == width => {
                        (b.as_ptr().wrapping_add(first_k * b.row_stride() + first_col + col), b.row_stride())
                    }
                    (Rhs::View(b), Some(out)) => {
                        let columns = first_col + col..first_col + col + cols;
                        let Ok(b) = b.row_range(first_k..first_k + kc).and_then(|b| b.col_range(columns)) else { return };
                        s.outline(PackB { b, out: out.as_mut_ptr() });
                        (out.as_ptr(), width)
                    }
                    (Rhs::View(_), None) => return,
                };
                for t in 0..tiles.count {
                    let (row, rows) = tiles.get(t);
                    let a = match layout {
                        ALayout::RowMajor => a_packed.as_ptr().wrapping_add(row * kernel::A_STRIDE),
                        ALayout::KMajor => a_packed.as_ptr().wrapping_add(t * kc * LANES),
                    };
                    let mut v = 0;
                    while v * LANES < cols {
                        let vectors = S::TILE_VECTORS.min(width / LANES - v);
                        let own = (cols - v * LANES).min(vectors * LANES);
                        let out = c_ptr.wrapping_add(row * c_rows + (col + v * LANES) * c_cols);
                        let (sums, sums_stride) = match &mut partial {
                            Some(p) => (p.as_mut_ptr().wrapping_add(row * n + col + v * LANES), n),
                            None => (out, c_rows),
                        };
                        let first = block == 0;
                        let args = TileArgs {
                            kc,
                            a,
                            b: panel.wrapping_add(v * LANES),
                            b_stride,
                            init: if first { std::ptr::null() } else { sums },
                            init_stride: sums_stride,
                            out: if last { out } else { sums },
                            out_stride: if last { c_rows } else { sums_stride },
                            add: last && accumulate,
                        };
                        // SAFETY: the packed operands hold `kc` steps of the tile; the output and the sums hold its rows and, unless
                        // `edge` takes it, its columns.
                        unsafe {
                            if own == vectors * LANES && c_cols == 1 {
                                run_tile(s, rows, vectors, layout == ALayout::KMajor, args);
                            } else {
                                let sums_cols = if partial.is_some() { 1 } else { c_cols };
                                let out_cols = if last { c_cols } else { sums_cols };
                                edge(s, rows, vectors, layout == ALayout::KMajor, args, own, sums_cols, out_cols);
                            }
                        }
                        v += vectors;
                    }
                }
            }
        }
    }
}

/// A tile of which only `own` columns exist, or whose columns are not contiguous in C: by way of a full one.
///
/// # Safety
/// As [`run_tile`], for `own` columns, `init_cols` and `out_cols` values apart.
#[inline(never)]
unsafe fn edge<S: Simd>(
    s: S,
    rows: usize,
    vectors: usize,
    k_major: bool,
    args: TileArgs,
    own: usize,
    init_cols: usize,
    out_cols: usize,
) {
    let mut tile = [0.0f32; MAX_ROWS * PANEL];
    let started = !args.init.is_null();
    // SAFETY: the caller's; the tile has room for the largest there is.
    unsafe {
        if started {
            for i in 0..rows {
                for j in 0..own {
                    tile[i * PANEL + j] = *args.init.add(i * args.init_stride + j * init_cols);
                }
            }
        }
        let init = if started { tile.as_ptr() } else { std::ptr::null() };
        let out = tile.as_mut_ptr();
        run_tile(
            s,
            rows,
            vectors,
            k_major,
            TileArgs {
                init: if started { out.cast_const() } else { init },
                init_stride: PANEL,
                out,
                out_stride: PANEL,
                add: false,
                ..args
            },
        );
        for i in 0..rows {
            for j in 0..own {
                let x = tile[i * PANEL + j];
                let out = args.out.add(i * args.out_stride + j * out_cols);
                *out = if args.add { *out + x } else { x };
            }
        }
    }
}
