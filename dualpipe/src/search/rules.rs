//! Rules drawn by chance, and the urgencies they give.

use crate::search::build::{Keys, Rule};
use crate::search::setup::Setup;

/// A small generator (xorshift64*), seeded; the same numbers on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        // Splitmix, so that close seeds begin far apart.
        let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Chance((z ^ (z >> 31)) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// 0 to 1, 1 excluded.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// 0 to `n`, `n` excluded (0 for `n` = 0).
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { ((u128::from(self.next()) * n as u128) >> 64) as usize }
    }

    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }
}

/// What a rule is made of; each number is changed alone when a good rule is improved.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// Time between micro-batches, as a share of the busiest rank's work for one.
    pub period: f64,
    /// By how much the way forward, and the way back, are longer than with nothing else to do.
    pub stretch_f: f64,
    pub stretch_i: f64,
    /// By how many periods backwards are more urgent than forwards.
    pub backward_first: f64,
    /// By how many periods weights are put off.
    pub weights_later: f64,
    /// By how much direction 1 is more urgent than 0, in periods.
    pub second_first: f64,
    /// Waits, in periods.
    pub wait: f64,
    pub pair_wait: f64,
    pub pair_bonus: f64,
    /// Chunks held, as a share of what the delays imply; above 4 for no limit.
    pub limit: f64,
    pub reserve: bool,
    pub strict: bool,
}

impl Recipe {
    pub fn random(chance: &mut Chance) -> Recipe {
        let strict = chance.below(4) == 0;
        Recipe {
            period: if strict { chance.range(0.5, 5.0) } else { [0.0, 0.5, 0.8, 1.0, 1.0, 1.2][chance.below(6)] },
            stretch_f: chance.range(1.0, 3.0),
            stretch_i: chance.range(1.0, 3.0),
            backward_first: chance.range(-1.0, 6.0),
            weights_later: [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 100.0][chance.below(7)],
            second_first: [0.0, 0.0, chance.range(-1.0, 2.0), chance.range(-8.0, 8.0)][chance.below(4)],
            wait: [0.0, 0.0, 0.1, 0.3, 0.6][chance.below(5)],
            pair_wait: [0.0, 0.2, 0.5, 1.0][chance.below(4)],
            pair_bonus: [0.0, 0.5, 2.0, 100.0][chance.below(4)],
            limit: if chance.below(3) == 0 { 100.0 } else { chance.range(0.4, 2.5) },
            reserve: chance.below(8) > 0,
            strict,
        }
    }

    /// The recipe with one or two of its numbers moved.
    pub fn moved(&self, chance: &mut Chance) -> Recipe {
        let mut next = self.clone();
        let other = Recipe::random(chance);
        for _ in 0..1 + chance.below(2) {
            let scale = chance.range(0.8, 1.25);
            match chance.below(14) {
                0 => next.period = other.period,
                1 => next.period *= scale,
                2 => next.stretch_f *= scale,
                3 => next.stretch_i *= scale,
                4 => next.backward_first += chance.range(-0.5, 0.5),
                5 => next.weights_later = other.weights_later,
                6 => next.weights_later *= scale,
                7 => next.second_first += chance.range(-0.3, 0.3),
                8 => next.wait = chance.range(0.0, 1.0),
                9 => next.pair_wait = chance.range(0.0, 1.5),
                10 => next.pair_bonus = other.pair_bonus,
                11 => next.limit *= scale,
                12 => next.second_first = other.second_first,
                _ => next.limit = other.limit,
            }
        }
        next
    }

    /// Urgencies and rule: each action is as urgent as it would be early with nothing else to do, a period for each
    /// micro-batch, stretched and moved as the recipe says.
    pub fn cook(&self, setup: &Setup) -> (Keys, Rule) {
        let work = |rank: usize| -> f64 {
            let of = &setup.places[rank * setup.dirs..(rank + 1) * setup.dirs];
            of.iter().map(|p| p.f + p.i + p.w).sum()
        };
        let busiest = (0..setup.ranks).map(work).fold(0.0, f64::max);
        let period = busiest * self.period;
        let count = setup.places.len();
        let (mut forth, mut back) = (vec![0.0; count], vec![0.0; count]);
        for &first in &setup.firsts() {
            let mut place = first;
            let mut time = 0.0;
            loop {
                forth[place] = time;
                time += setup.places[place].f * self.stretch_f;
                let Some(next) = setup.places[place].after else { break };
                time += setup.places[next.place].before.map_or(0.0, |link| link.time);
                place = next.place;
            }
            loop {
                back[place] = time;
                time += setup.places[place].i * self.stretch_i;
                let Some(next) = setup.places[place].before else { break };
                time += setup.places[next.place].after.map_or(0.0, |link| link.time);
                place = next.place;
            }
        }
        let slots = count * setup.chunks;
        let mut keys = Keys { f: vec![0.0; slots], i: vec![0.0; slots], w: vec![0.0; slots] };
        let mut limit = vec![usize::MAX; count];
        for place in 0..count {
            let shift = if place % setup.dirs == 1 { self.second_first * busiest } else { 0.0 };
            for chunk in 0..setup.chunks {
                let at = chunk as f64 * period - shift;
                let slot = place * setup.chunks + chunk;
                keys.f[slot] = forth[place] + at;
                keys.i[slot] = back[place] + at - self.backward_first * busiest;
                keys.w[slot] = back[place] + at + (self.weights_later - self.backward_first) * busiest;
            }
            if self.limit < 4.0 && busiest > 0.0 {
                let chunks = (back[place] - forth[place] + setup.places[place].i) / busiest * self.limit;
                limit[place] = (chunks.ceil() as usize).max(1);
            }
        }
        let rule = Rule {
            wait: self.wait * busiest,
            pair_wait: self.pair_wait * busiest,
            pair_bonus: self.pair_bonus * busiest,
            limit,
            reserve: self.reserve,
            strict: self.strict,
        };
        (keys, rule)
    }
}
