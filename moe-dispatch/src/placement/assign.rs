//! Matching new sets of experts to the devices (or nodes) that held similar ones.

/// Above this size the exact matching, whose time grows with the third power, gives way to a greedy one.
const EXACT: usize = 512;

/// A permutation `p` such that the sum of `gain(i, p[i])` is as large as possible (exactly up to 512 items).
pub(super) fn best_matching(n: usize, gain: impl Fn(usize, usize) -> usize) -> Vec<usize> {
    let gains: Vec<i64> = (0..n * n).map(|i| gain(i / n, i % n) as i64).collect();
    if n <= EXACT { hungarian(n, &gains) } else { greedy(n, &gains) }
}

fn greedy(n: usize, gains: &[i64]) -> Vec<usize> {
    let mut pairs: Vec<usize> = (0..n * n).filter(|&i| gains[i] > 0).collect();
    pairs.sort_by_key(|&i| (-gains[i], i));
    let mut to = vec![usize::MAX; n];
    let mut taken = vec![false; n];
    for i in pairs {
        let (a, b) = (i / n, i % n);
        if to[a] == usize::MAX && !taken[b] {
            (to[a], taken[b]) = (b, true);
        }
    }
    let mut free = (0..n).filter(|&b| !taken[b]).collect::<Vec<_>>().into_iter();
    for t in to.iter_mut().filter(|t| **t == usize::MAX) {
        *t = free.next().unwrap_or(0); // as many free ones as unmatched ones
    }
    to
}

/// The Hungarian method with potentials, for the cost `-gains`: rows are added one at a time, each by a shortest
/// augmenting path. Index 0 of the arrays is a sentinel.
fn hungarian(n: usize, gains: &[i64]) -> Vec<usize> {
    let mut row_potential = vec![0i64; n + 1];
    let mut col_potential = vec![0i64; n + 1];
    let mut row_of = vec![0usize; n + 1];
    let mut way = vec![0usize; n + 1];
    for row in 1..=n {
        row_of[0] = row;
        let mut col = 0;
        let mut slack = vec![i64::MAX; n + 1];
        let mut done = vec![false; n + 1];
        loop {
            done[col] = true;
            let r = row_of[col];
            let (mut delta, mut next) = (i64::MAX, 0);
            for c in 1..=n {
                if done[c] {
                    continue;
                }
                let reduced = -gains[(r - 1) * n + c - 1] - row_potential[r] - col_potential[c];
                if reduced < slack[c] {
                    (slack[c], way[c]) = (reduced, col);
                }
                if slack[c] < delta {
                    (delta, next) = (slack[c], c);
                }
            }
            for c in 0..=n {
                if done[c] {
                    row_potential[row_of[c]] += delta;
                    col_potential[c] -= delta;
                } else {
                    slack[c] = slack[c].saturating_sub(delta);
                }
            }
            col = next;
            if row_of[col] == 0 {
                break;
            }
        }
        while col != 0 {
            row_of[col] = row_of[way[col]];
            col = way[col];
        }
    }
    let mut to = vec![0; n];
    for c in 1..=n {
        to[row_of[c] - 1] = c - 1;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(n: usize, gains: &[i64], to: &[usize]) -> i64 {
        to.iter().enumerate().map(|(a, &b)| gains[a * n + b]).sum()
    }

    fn best_by_trying(n: usize, gains: &[i64], row: usize, used: &mut Vec<bool>) -> i64 {
        if row == n {
            return 0;
        }
        let mut best = i64::MIN;
        for c in 0..n {
            if !used[c] {
                used[c] = true;
                best = best.max(gains[row * n + c] + best_by_trying(n, gains, row + 1, used));
                used[c] = false;
            }
        }
        best
    }

    #[test]
    fn hungarian_equals_trying_everything() {
        let mut x = 1u64;
        for n in 0..7 {
            for _ in 0..20 {
                let gains: Vec<i64> = (0..n * n)
                    .map(|_| {
                        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        (x >> 61) as i64
                    })
                    .collect();
                for to in [hungarian(n, &gains), greedy(n, &gains)] {
                    let mut seen = to.clone();
                    seen.sort_unstable();
                    assert_eq!(seen, (0..n).collect::<Vec<_>>());
                }
                let best = best_by_trying(n, &gains, 0, &mut vec![false; n]);
                assert_eq!(total(n, &gains, &hungarian(n, &gains)), best, "{n}: {gains:?}");
            }
        }
    }
}
