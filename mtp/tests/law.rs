//! The law of the tokens that rejection sampling commits, by enumeration.
//!
//! Probabilities are multiples of 1/4, so every threshold that a uniform number meets (an acceptance ratio, a running sum
//! of a residual) is a fraction with a denominator of at most 4, hence a multiple of 1/12. Twelve midpoints then stand for
//! all uniform numbers, and counting over them gives the law itself, in integers, with nothing left to chance or tolerance.

use mtp::{Draft, Uniform, Verdict, reference, verify_sampled};
use v3_testkit::Rng;

const VOCAB: usize = 3;
const QUARTERS: u64 = 4;
const GRID: u64 = 12;

/// A distribution in quarters.
type Law = [u64; VOCAB];

struct Script {
    numbers: Vec<u64>,
    used: usize,
}

impl Uniform for Script {
    fn uniform(&mut self) -> f64 {
        self.used += 1;
        (self.numbers[self.used - 1] as f64 + 0.5) / GRID as f64
    }
}

fn all_laws() -> Vec<Law> {
    let mut laws = vec![];
    for a in 0..=QUARTERS {
        for b in 0..=QUARTERS - a {
            laws.push([a, b, QUARTERS - a - b]);
        }
    }
    laws
}

fn floats(laws: &[Law]) -> Vec<f32> {
    // Any common factor must do: rows are divided by their sums.
    laws.iter().flat_map(|law| law.map(|q| q as f32 * 0.75)).collect()
}

/// Calls `f` with the verdict for every sequence of uniform numbers.
fn for_all_numbers(draft: &[u32], proposal: Draft<'_>, target: &[f32], mut f: impl FnMut(Verdict)) {
    let draws = draft.len() + 1;
    for code in 0..GRID.pow(draws as u32) {
        let numbers = (0..draws as u32).map(|i| code / GRID.pow(i) % GRID).collect();
        let mut script = Script { numbers, used: 0 };
        let verdict = verify_sampled(draft, proposal, target, VOCAB, &mut script).unwrap();
        // Rejected at position i: i + 1 acceptances tried and one draw from the residual.
        assert_eq!(script.used, if verdict.accepted < draft.len() { verdict.accepted + 2 } else { draws });
        f(verdict);
    }
}

/// A target whose law depends on all that came before, over three tokens, and a drafter of two.
struct World {
    first: Law,
    second: [Law; VOCAB],
    third: [[Law; VOCAB]; VOCAB],
    draft_first: Law,
    draft_second: [Law; VOCAB],
}

impl World {
    fn random(rng: &mut Rng) -> World {
        let laws = all_laws();
        let mut any = || laws[rng.below(laws.len())];
        World {
            first: any(),
            second: std::array::from_fn(|_| any()),
            third: std::array::from_fn(|_| std::array::from_fn(|_| any())),
            draft_first: any(),
            draft_second: std::array::from_fn(|_| any()),
        }
    }

    /// The target's probability of continuing `from` committed tokens of `tokens` to all three, in quarters to the power 3 - from.
    fn continuation(&self, tokens: [usize; 3], from: usize) -> u64 {
        let [a, b, c] = tokens;
        [self.first[a], self.second[a][b], self.third[a][b][c]][from..].iter().product()
    }
}

/// Adds, for every uniform number, the verdict's tokens followed by the target's own continuation.
fn accumulate(world: &World, draft: [usize; 2], weight: u64, proposal: Draft<'_>, law: &mut [u64]) {
    let [a, b] = draft;
    let target = floats(&[world.first, world.second[a], world.third[a][b]]);
    for_all_numbers(&[a as u32, b as u32], proposal, &target, |verdict| {
        let tokens: Vec<usize> = verdict.committed(&[a as u32, b as u32]).map(|t| t as usize).collect();
        assert_eq!(tokens.len(), verdict.accepted + 1);
        for (index, law) in law.iter_mut().enumerate() {
            let all = [index / 9, index / 3 % 3, index % 3];
            if all[..tokens.len()] == tokens[..] {
                // Brought to the denominator 4^2 of a verdict of one token.
                *law += weight * world.continuation(all, tokens.len()) * QUARTERS.pow(tokens.len() as u32 - 1);
            }
        }
    });
}

#[test]
fn a_chain_from_any_drafter_has_the_targets_law() {
    let mut rng = Rng::new(1);
    for case in 0..60 {
        let world = World::random(&mut rng);
        let mut law = vec![0u64; 27];
        for a in 0..VOCAB {
            for b in 0..VOCAB {
                let weight = world.draft_first[a] * world.draft_second[a][b];
                if weight > 0 {
                    let q = floats(&[world.draft_first, world.draft_second[a]]);
                    accumulate(&world, [a, b], weight, Draft::Sampled(&q), &mut law);
                }
            }
        }
        // Weights of drafts sum to 4^2, uniform numbers to 12^3, continuations to 4^2; the target's law has 4^3.
        let whole = QUARTERS.pow(2) * GRID.pow(3) * QUARTERS.pow(2);
        for (index, &count) in law.iter().enumerate() {
            let expected = world.continuation([index / 9, index / 3 % 3, index % 3], 0);
            assert_eq!(count * QUARTERS.pow(3), expected * whole, "case {case}, tokens {index}");
        }
    }
}

#[test]
fn a_chain_chosen_without_chance_has_the_targets_law() {
    let mut rng = Rng::new(2);
    for case in 0..60 {
        let world = World::random(&mut rng);
        let draft = [rng.below(VOCAB), rng.below(VOCAB)];
        let mut law = vec![0u64; 27];
        accumulate(&world, draft, 1, Draft::Certain, &mut law);
        let whole = GRID.pow(3) * QUARTERS.pow(2);
        for (index, &count) in law.iter().enumerate() {
            let expected = world.continuation([index / 9, index / 3 % 3, index % 3], 0);
            assert_eq!(count * QUARTERS.pow(3), expected * whole, "case {case}, tokens {index}");
        }
    }
}

/// Certainty is a distribution like another: both ways of saying it give the same verdicts.
#[test]
fn certain_equals_a_distribution_on_one_token() {
    for p in all_laws() {
        for p_next in all_laws() {
            for token in 0..VOCAB {
                let mut one = [0u64; VOCAB];
                one[token] = QUARTERS;
                let (target, q) = (floats(&[p, p_next]), floats(&[one]));
                let (mut certain, mut sampled) = (vec![], vec![]);
                for_all_numbers(&[token as u32], Draft::Certain, &target, |v| certain.push(v));
                for_all_numbers(&[token as u32], Draft::Sampled(&q), &target, |v| sampled.push(v));
                assert_eq!(certain, sampled, "{p:?} {token}");
            }
        }
    }
}

/// No verifier accepts more often: the acceptance rate is the overlap of the two laws, for every pair of them.
#[test]
fn acceptance_is_the_overlap_of_the_laws() {
    for p in all_laws() {
        for q in all_laws() {
            let mut accepted = 0;
            for token in (0..VOCAB).filter(|&t| q[t] > 0) {
                for_all_numbers(&[token as u32], Draft::Sampled(&floats(&[q])), &floats(&[p, p]), |verdict| {
                    accepted += q[token] * verdict.accepted as u64;
                });
            }
            let overlap: u64 = p.iter().zip(&q).map(|(p, q)| p.min(q)).sum();
            assert_eq!(accepted, overlap * GRID * GRID, "{p:?} {q:?}");
        }
    }
}

/// The identity itself on arbitrary numbers, to f64 rounding.
#[test]
fn the_law_of_one_step_is_the_target() {
    let mut rng = Rng::new(3);
    for vocab in [1, 2, 5, 1000] {
        for _ in 0..50 {
            let mut law = || {
                let weights: Vec<f64> = (0..vocab).map(|_| f64::from(rng.uniform()).powi(3)).collect();
                let total: f64 = weights.iter().sum();
                weights.iter().map(|w| w / total).collect::<Vec<_>>()
            };
            let (p, q) = (law(), law());
            for (law, p) in reference::law_of_one_step(&p, &q).iter().zip(&p) {
                assert!((law - p).abs() <= 1e-12 * p.max(1e-3), "{law} {p}");
            }
        }
    }
}
