//! Groups, routings, and what dispatch and combine must give for them.

use moe_dispatch::gpu::exchange::{ExchangeConfig, Group};
use moe_dispatch::reference::dispatch::combine_rounded;
use moe_dispatch::{Layout, Routing};
use v3_numerics::bf16;

/// A small generator of the tests' own (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn float(&mut self) -> f32 {
        (self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * 4.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any experts, some choices masked out.
    Random,
    /// Half of the tokens want the experts of rank 0.
    Skewed,
    /// Some ranks have no tokens, some tokens no experts.
    Sparse,
    /// No token anywhere.
    Empty,
}

/// The tokens of one rank.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    pub rows: Vec<u8>,
    pub experts: Vec<i32>,
    pub weights: Vec<f32>,
}

pub fn config(nodes: u32, per_node: u32, experts: u32, top_k: u32, max_tokens: u32) -> ExchangeConfig {
    let layout = Layout::new(experts as usize, (nodes * per_node) as usize, per_node as usize).unwrap();
    let mut config = ExchangeConfig::new(&layout, top_k, max_tokens, 256, 128).unwrap();
    (config.sms, config.slots, config.warps) = (2, 4, 3);
    config
}

/// Tokens of every rank.
pub fn tokens(config: &ExchangeConfig, kind: Kind, rng: &mut Rng) -> Vec<Tokens> {
    let (top_k, experts) = (config.top_k as usize, u64::from(config.num_experts));
    (0..config.ranks)
        .map(|rank| {
            let count = match kind {
                Kind::Empty => 0,
                Kind::Sparse if rank % 2 == 1 => 0,
                _ => rng.below(u64::from(config.max_tokens) + 1) as usize,
            };
            let mut all = Tokens::default();
            for _ in 0..count {
                let range = if kind == Kind::Skewed && rng.below(2) == 0 { u64::from(config.local_experts()) } else { experts };
                let mut chosen: Vec<i32> = Vec::new();
                while chosen.len() < top_k {
                    let expert = rng.below(range) as i32;
                    if !chosen.contains(&expert) {
                        chosen.push(expert);
                    } else if chosen.len() as u64 >= range {
                        chosen.push(-1);
                    }
                }
                let masked = match kind {
                    Kind::Sparse => rng.below(2) == 0,
                    _ => false,
                };
                for expert in &mut chosen {
                    if masked || rng.below(8) == 0 {
                        *expert = -1;
                    }
                }
                all.experts.extend(&chosen);
                all.weights.extend((0..top_k).map(|_| rng.float().abs()));
                all.rows.extend((0..config.row_bytes).map(|_| rng.next() as u8));
            }
            all
        })
        .collect()
}

/// A dispatched row: source, its token, and the choices as dispatch gives them.
#[derive(Debug, PartialEq)]
pub struct Row {
    pub source: usize,
    pub token: usize,
    pub experts: Vec<i32>,
    pub weights: Vec<f32>,
}

/// What must come to a rank in the segment of a source and channel.
pub fn segment(config: &ExchangeConfig, all: &[Tokens], rank: usize, source: usize, channel: usize) -> Vec<Row> {
    let (top_k, local) = (config.top_k as usize, config.local_experts() as i32);
    let per_channel = config.tokens_per_channel() as usize;
    let tokens = &all[source];
    let count = tokens.experts.len() / top_k;
    let range = (channel * per_channel).min(count)..((channel + 1) * per_channel).min(count);
    range
        .filter_map(|token| {
            let chosen = &tokens.experts[token * top_k..(token + 1) * top_k];
            let here = |&e: &i32| if e >= 0 && e / local == rank as i32 { e % local } else { -1 };
            let experts: Vec<i32> = chosen.iter().map(here).collect();
            let weights =
                experts.iter().zip(&tokens.weights[token * top_k..]).map(|(&e, &w)| if e >= 0 { w } else { 0.0 }).collect();
            experts.iter().any(|&e| e >= 0).then_some(Row { source, token, experts, weights })
        })
        .collect()
}

/// Checks all that a dispatch gave.
pub fn check_dispatch(group: &Group, all: &[Tokens]) {
    let config = *group.config();
    let (top_k, row_bytes) = (config.top_k as usize, config.row_bytes as usize);
    let (channels, per_channel) = (config.channels() as usize, config.tokens_per_channel() as usize);
    for rank in 0..config.ranks as usize {
        let (stream, member) = (group.stream(rank).unwrap(), group.member(rank).unwrap());
        let rows = stream.download(member.out_rows()).unwrap();
        let experts = stream.download(member.out_experts()).unwrap();
        let weights = stream.download(member.out_weights()).unwrap();
        let tokens = stream.download(member.out_tokens()).unwrap();
        let counts = stream.download(member.out_counts()).unwrap();
        for source in 0..config.ranks as usize {
            for channel in 0..channels {
                let expected = segment(&config, all, rank, source, channel);
                let at = source * channels + channel;
                assert_eq!(counts[at] as usize, expected.len(), "rank {rank}, source {source}, channel {channel}");
                for (i, row) in expected.iter().enumerate() {
                    let place = at * per_channel + i;
                    let choices = place * top_k..(place + 1) * top_k;
                    let got = Row {
                        source,
                        token: tokens[place] as usize,
                        experts: experts[choices.clone()].to_vec(),
                        weights: weights[choices].to_vec(),
                    };
                    assert_eq!(&got, row, "rank {rank}, source {source}, row {i}");
                    let payload = &all[source].rows[row.token * row_bytes..(row.token + 1) * row_bytes];
                    assert!(rows[place * row_bytes..(place + 1) * row_bytes] == *payload, "rank {rank}, {row:?}: payload");
                }
                let behind = (at * per_channel + expected.len()) * top_k..(at + 1) * per_channel * top_k;
                assert!(experts[behind].iter().all(|&e| e == -1), "rank {rank}, source {source}: behind the rows");
            }
        }
    }
}

/// The row that a rank's expert gives for a token.
pub fn expert_row(config: &ExchangeConfig, expert: usize, source: usize, token: usize) -> Vec<bf16> {
    let mut rng = Rng((expert << 40 | source << 20 | token) as u64);
    (0..config.columns).map(|_| bf16::from_f32(rng.float())).collect()
}

/// Gives every rank what its experts made, in a mixed order, and the map to it.
pub fn write_expert_rows(group: &mut Group, all: &[Tokens], rng: &mut Rng) {
    let config = *group.config();
    let (top_k, per_channel) = (config.top_k as usize, config.tokens_per_channel() as usize);
    let columns = config.columns as usize;
    for rank in 0..config.ranks as usize {
        let mut choices = Vec::new();
        for source in 0..config.ranks as usize {
            for channel in 0..config.channels() as usize {
                for (i, row) in segment(&config, all, rank, source, channel).iter().enumerate() {
                    let place = (source * config.channels() as usize + channel) * per_channel + i;
                    for (j, &e) in row.experts.iter().enumerate().filter(|(_, e)| **e >= 0) {
                        let expert = rank * config.local_experts() as usize + e as usize;
                        choices.push((place * top_k + j, expert_row(&config, expert, source, row.token)));
                    }
                }
            }
        }
        for i in (1..choices.len()).rev() {
            choices.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let mut map = vec![-1; config.places() * top_k];
        let mut rows = Vec::with_capacity(choices.len() * columns);
        for (at, (place, row)) in choices.into_iter().enumerate() {
            map[place] = at as i32;
            rows.extend(row);
        }
        group.write_expert_rows(rank, &rows, &map).unwrap();
    }
}

/// Checks all that a combine gave: the reference's sums in bf16, whose last, at home, the kernel rounds too.
pub fn check_combine(group: &Group, all: &[Tokens], weighted: bool) {
    let config = *group.config();
    let (columns, top_k) = (config.columns as usize, config.top_k as usize);
    let layout = Layout::new(config.num_experts as usize, config.ranks as usize, config.ranks_per_node as usize).unwrap();
    for (source, tokens) in all.iter().enumerate() {
        let combined = group.stream(source).unwrap().download(group.member(source).unwrap().combined()).unwrap();
        let routing = Routing {
            tokens: tokens.experts.len() / top_k,
            top_k,
            // -1 is MASKED.
            indices: tokens.experts.iter().map(|&expert| expert as u32).collect(),
            weights: tokens.weights.clone(),
            scores: vec![],
        };
        let row = |token: usize, choice: usize| -> Vec<f32> {
            let expert = routing.indices[token * top_k + choice] as usize;
            expert_row(&config, expert, source, token).iter().map(|x| x.to_f32()).collect()
        };
        let expected = combine_rounded(&layout, source, &routing, columns, weighted, row);
        for (token, expected) in expected.chunks(columns).enumerate() {
            let expected: Vec<u16> = expected.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
            let got: Vec<u16> = combined[token * columns..(token + 1) * columns].iter().map(|x| x.to_bits()).collect();
            assert_eq!(got, expected, "token {token} of rank {source}");
        }
    }
}

/// Gives every rank its tokens.
pub fn write_tokens(group: &mut Group, all: &[Tokens]) {
    for (rank, tokens) in all.iter().enumerate() {
        group.write_tokens(rank, &tokens.rows, &tokens.experts, &tokens.weights).unwrap();
    }
}
