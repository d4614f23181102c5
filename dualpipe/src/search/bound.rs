//! What no schedule can beat.

use crate::kind::Placement;
use crate::search::problem::Problem;
use crate::search::setup::Setup;

/// A time below which no schedule of this problem ends, whatever the order and the placement: the least over the placements that fit,
/// infinite when none does. For a placement it is the largest of
///
/// - for each rank, its work, pairs at their overlapped cost where that is less (but the first forward and the last backward are in no pair), after the earliest time at which
///   anything can arrive there; and the same without `W`, before the shortest way of the last gradient to the end;
/// - for each stage, one micro-batch from the beginning there and back, and to the end;
/// - for each stage, micro-batches over slots under the cap, rounded up, times the shortest time from the start of `F` to the end of
///   `I`, between head and tail; and for each rank, memory times time: what all its chunks take over what there is.
///
/// # Errors
/// As [`Problem::check`].
pub fn lower_bound(problem: &Problem) -> crate::Result<f64> {
    problem.check()?;
    let of = |placement: &Placement| Setup::new(problem, *placement).map_or(f64::INFINITY, |setup| bound(&setup));
    Ok(problem.placements.iter().map(of).fold(f64::INFINITY, f64::min))
}

/// The largest of the bounds of one placement.
pub(crate) fn bound(setup: &Setup) -> f64 {
    let ends = Ends::new(setup);
    let mut best: f64 = 0.0;
    for rank in 0..setup.ranks {
        best = best.max(rank_bound(setup, &ends, rank));
    }
    for place in (0..setup.places.len()).filter(|&place| setup.chunks_at(place) > 0) {
        best = best.max(ends.there_and_back(place)).max(slots_bound(setup, &ends, place));
    }
    for rank in 0..setup.ranks {
        best = best.max(area_bound(setup, &ends, rank));
    }
    best
}

/// For each place the earliest start of a forward, the least time from the end of a backward for inputs there to the end of all, and
/// the least time from the start of a forward to the end of its backward for inputs.
pub(crate) struct Ends {
    pub head: Vec<f64>,
    pub tail: Vec<f64>,
    pub hold: Vec<f64>,
    /// The least time in which a backward for inputs can be done: in a pair it may be less than alone.
    i: Vec<f64>,
    /// The same of a backward for inputs with its weights.
    b: Vec<f64>,
}

impl Ends {
    pub fn new(setup: &Setup) -> Ends {
        let count = setup.places.len();
        let dirs = setup.dirs;
        // The cheapest pair with this place's forward, and with its backward.
        let pair = |place: usize, backward: bool| {
            let (rank, d) = (place / dirs, place % dirs);
            let costs = (0..dirs).map(|other| match backward {
                false => setup.places[place].pair[other],
                true => setup.places[rank * dirs + other].pair[d],
            });
            costs.fold(f64::INFINITY, f64::min)
        };
        let f: Vec<f64> = (0..count).map(|p| setup.places[p].f.min(pair(p, false))).collect();
        let i: Vec<f64> = (0..count).map(|p| setup.places[p].i.min(pair(p, true))).collect();
        let b: Vec<f64> = (0..count).map(|p| (setup.places[p].i + setup.places[p].w).min(pair(p, true))).collect();
        let (mut head, mut tail, mut hold) = (vec![0.0; count], vec![0.0; count], vec![0.0; count]);
        for first in setup.firsts() {
            let mut chain = vec![first];
            let mut place = first;
            while let Some(next) = setup.places[place].after {
                let travel = setup.places[next.place].before.map_or(0.0, |link| link.time);
                head[next.place] = head[place] + f[place] + travel;
                place = next.place;
                chain.push(place);
            }
            // From the end of the backward here to the end of all: its own weights, or the way back.
            for &place in &chain {
                let own = if pair(place, true) < f64::INFINITY { 0.0 } else { setup.places[place].w };
                tail[place] = match setup.places[place].before {
                    None => own,
                    Some(before) => {
                        let travel = setup.places[before.place].after.map_or(0.0, |link| link.time);
                        let further = travel + (i[before.place] + tail[before.place]).max(b[before.place]);
                        further.max(own)
                    }
                };
            }
            for (index, &place) in chain.iter().enumerate().rev() {
                hold[place] = f[place] + i[place];
                if let Some(&next) = chain.get(index + 1) {
                    let there = setup.places[next].before.map_or(0.0, |link| link.time);
                    let back = setup.places[place].after.map_or(0.0, |link| link.time);
                    hold[place] += there + hold[next] + back;
                }
            }
        }
        Ends { head, tail, hold, i, b }
    }

    /// One micro-batch through everything, and the weights of this place at the end.
    fn there_and_back(&self, place: usize) -> f64 {
        self.head[place] + self.hold[place] - self.i[place] + self.b[place].max(self.i[place] + self.tail[place])
    }
}

/// The most that pairs can save on a rank, when a pair saves `saves[f][b]`: no pair has the rank's first forward or its last
/// backward.
fn most_saved(dirs: usize, counts: [usize; 2], saves: [[f64; 2]; 2]) -> f64 {
    let mut best: f64 = 0.0;
    if dirs == 1 {
        return (counts[0] - 1) as f64 * saves[0][0].max(0.0);
    }
    let saves = saves.map(|row| row.map(|s| s.max(0.0)));
    for first in 0..2 {
        for last in 0..2 {
            let supply = [0, 1].map(|d| counts[d].saturating_sub(usize::from(first == d)));
            let demand = [0, 1].map(|d| counts[d].saturating_sub(usize::from(last == d)));
            for straight in 0..=supply[0].min(demand[0]) {
                let (across, back) = (supply[0] - straight, demand[0] - straight);
                // For so many 0 -> 0 the sum is concave in the number of 1 -> 1, and linear between these.
                let most = supply[1].min(demand[1]);
                let corners = [0, demand[1].saturating_sub(across), supply[1].saturating_sub(back), most];
                for corner in corners.map(|corner| corner.min(most)) {
                    let across = across.min(demand[1] - corner);
                    let back = back.min(supply[1] - corner);
                    let counts = [[straight, across], [back, corner]];
                    let saved: f64 = (0..4).map(|n| counts[n / 2][n % 2] as f64 * saves[n / 2][n % 2]).sum();
                    best = best.max(saved);
                }
            }
        }
    }
    best
}

/// The work of a rank, from the earliest time at which it can begin to the latest at which it can end.
fn rank_bound(setup: &Setup, ends: &Ends, rank: usize) -> f64 {
    let own = rank * setup.dirs..(rank + 1) * setup.dirs;
    let own: Vec<usize> = own.filter(|&place| setup.chunks_at(place) > 0).collect();
    let head = own.iter().map(|&p| ends.head[p]).fold(f64::INFINITY, f64::min);
    let saving = |without_weights: bool| {
        let mut saves = [[0.0f64; 2]; 2];
        for (f, &forward) in own.iter().enumerate() {
            for (b, &backward) in own.iter().enumerate() {
                let back = &setup.places[backward];
                let apart = setup.places[forward].f + back.i + if without_weights { 0.0 } else { back.w };
                saves[f][b] = apart - setup.places[forward].pair[b];
            }
        }
        most_saved(own.len(), setup.counts, saves)
    };
    let chunks = |p: usize| setup.chunks_at(p) as f64;
    let inputs: f64 = own.iter().map(|&p| chunks(p) * (setup.places[p].f + setup.places[p].i)).sum();
    let weights: f64 = own.iter().map(|&p| chunks(p) * setup.places[p].w).sum();
    let whole = head + inputs + weights - saving(false);
    // What is not `W` must be done before the last gradient leaves. In a V the way down comes last.
    let last = match setup.placement {
        Placement::V => ends.tail[own[0]],
        _ => own.iter().map(|&p| ends.tail[p]).fold(f64::INFINITY, f64::min),
    };
    whole.max(head + inputs - saving(true) + last)
}

/// As many chunks as fit at a time, each held from its forward to its backward.
fn slots_bound(setup: &Setup, ends: &Ends, place: usize) -> f64 {
    let size = setup.places[place].size();
    let slots = setup.room[place / setup.dirs] / size;
    if !slots.is_finite() || slots >= setup.chunks_at(place) as f64 {
        return 0.0;
    }
    let slots = (slots.floor() as usize).max(1);
    let rounds = setup.chunks_at(place).div_ceil(slots) as f64;
    ends.head[place] + rounds * ends.hold[place] + ends.tail[place]
}

/// Memory times time: what all chunks of a rank take, over what there is.
fn area_bound(setup: &Setup, ends: &Ends, rank: usize) -> f64 {
    let own = (rank * setup.dirs..(rank + 1) * setup.dirs).filter(|&place| setup.chunks_at(place) > 0);
    let room = setup.room[rank];
    let head = own.clone().map(|p| ends.head[p]).fold(f64::INFINITY, f64::min);
    let area = |p: usize| {
        let place = &setup.places[p];
        let to_weight = ends.hold[p] + (ends.b[p] - ends.i[p]).max(0.0);
        setup.chunks_at(p) as f64 * (place.at_input * ends.hold[p] + place.at_weight * to_weight)
    };
    let area: f64 = own.map(area).sum();
    if area == 0.0 || room <= 0.0 || room == f64::INFINITY {
        return 0.0;
    }
    head + area / room
}
