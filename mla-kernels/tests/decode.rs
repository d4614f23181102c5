//! The latent cache and absorbed decode.

mod common;

use common::{EPS, checked, max_abs, on_every_isa};
use mla_kernels::{
    Absorbed, CacheConfig, DecodeOptions, DecodeRequest, Error, KvType, LatentCache, PrefillShape, SeqId, decode,
    prefill_forward, reference,
};
use proptest::prelude::*;
use v3_testkit::poison::Guarded;
use v3_testkit::{Rng, Tolerance, assert_bits_eq};

const TYPES: [KvType; 3] = [KvType::F32, KvType::Bf16, KvType::Fp8];

fn config(d_c: usize, d_rope: usize, page_size: usize, num_pages: usize, dtype: KvType) -> CacheConfig {
    CacheConfig { d_c, d_rope, page_size, num_pages, dtype }
}

/// A cache with sequences of these lengths, appended in pieces of three tokens, in turn.
fn filled(config: CacheConfig, lengths: &[usize], seed: u64) -> (LatentCache, Vec<SeqId>) {
    let mut rng = Rng::new(seed);
    let mut cache = LatentCache::new(config).unwrap();
    let ids: Vec<SeqId> = lengths.iter().map(|_| cache.new_sequence()).collect();
    for start in (0..lengths.iter().copied().max().unwrap_or(0)).step_by(3) {
        for (id, len) in ids.iter().zip(lengths) {
            let n = len.saturating_sub(start).min(3);
            let (latent, k_rope) = (rng.normal_vec(n * config.d_c, 1.0), rng.normal_vec(n * config.d_rope, 1.0));
            cache.append(*id, &latent, &k_rope).unwrap();
        }
    }
    (cache, ids)
}

fn stored(cache: &LatentCache, seq: SeqId) -> (Vec<f32>, Vec<f32>) {
    let len = cache.len(seq).unwrap();
    let mut both = [Guarded::output(len * cache.config().d_c), Guarded::output(len * cache.config().d_rope)];
    let [latent, k_rope] = both.each_mut().map(Guarded::as_mut_slice);
    cache.read(seq, 0, latent, k_rope).unwrap();
    checked(both).into()
}

struct Queries {
    heads: usize,
    latent: Vec<f32>,
    rope: Vec<f32>,
}

fn queries(cache: &LatentCache, rows: usize, heads: usize, seed: u64) -> Queries {
    let mut rng = Rng::new(seed);
    let c = cache.config();
    Queries { heads, latent: rng.normal_vec(rows * heads * c.d_c, 1.5), rope: rng.normal_vec(rows * heads * c.d_rope, 1.5) }
}

const SCALE: f32 = 0.21;

fn run(cache: &LatentCache, requests: &[DecodeRequest], q: &Queries, split_len: usize) -> (Vec<f32>, Vec<f32>) {
    let (q_latent, q_rope) = (Guarded::input(&q.latent), Guarded::input(&q.rope));
    let rows: usize = requests.iter().map(|r| r.s_q).sum();
    let (mut out, mut lse) = (Guarded::output(q.latent.len()), Guarded::output(rows * q.heads));
    decode(
        cache,
        requests,
        q.heads,
        q_latent.as_slice(),
        q_rope.as_slice(),
        SCALE,
        out.as_mut_slice(),
        lse.as_mut_slice(),
        &DecodeOptions { split_len },
    )
    .unwrap();
    checked([out, lse]).into()
}

/// Bounds on the error of (`out`, `lse`): as for prefill (see `Problem::weight_bound`), with keys of `d` values of at most `k`, plus
/// two roundings and two exponentials per split in the merge.
fn bounds(cache: &LatentCache, q: &Queries, len: usize, splits: usize) -> (f64, f64) {
    let c = cache.config();
    let d = (c.d_c + c.d_rope) as f64;
    // Normal variates of this generator are below 6; FP8 and bf16 add at most one part in 8.
    let k: f64 = 6.0 * 1.125;
    let score = f64::from(SCALE) * d * k * max_abs(&q.latent).max(max_abs(&q.rope)) + (len.max(1) as f64).ln();
    let weight = EPS * (2.0 * score * (d + 8.0) + 2.0 * len as f64 + 16.0 + 8.0 * splits as f64);
    (k * (weight + 2.0 * EPS * (len + splits) as f64), weight)
}

fn check_against_reference(cache: &LatentCache, requests: &[DecodeRequest], q: &Queries, split_len: usize, what: &str) {
    let c = *cache.config();
    let (out, lse) = run(cache, requests, q, split_len);
    let mut first = 0;
    for r in requests {
        let (latent, k_rope) = stored(cache, r.seq);
        let rows = first * q.heads..(first + r.s_q) * q.heads;
        let part = |x: &[f32], width: usize| reference::widen(&x[rows.start * width..rows.end * width]);
        let (o, l) = reference::decode(
            q.heads,
            c.d_c,
            c.d_rope,
            SCALE.into(),
            &reference::widen(&latent),
            &reference::widen(&k_rope),
            &part(&q.latent, c.d_c),
            &part(&q.rope, c.d_rope),
        );
        let len = cache.len(r.seq).unwrap();
        let (out_bound, lse_bound) = bounds(cache, q, len, len.div_ceil(split_len));
        Tolerance::absolute(out_bound).check(&format!("{what}: out"), &part(&out, c.d_c), &o).unwrap();
        Tolerance::absolute(lse_bound).check(&format!("{what}: lse"), &part(&lse, 1), &l).unwrap();
        first += r.s_q;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_batch(
        d_c in prop::sample::select(vec![1usize, 7, 8, 24, 33, 130]),
        d_rope in prop::sample::select(vec![0usize, 2, 8, 10]),
        page_size in prop::sample::select(vec![1usize, 5, 16, 64]),
        heads in prop::sample::select(vec![1usize, 3, 16, 17, 33]),
        batch in prop::collection::vec((prop::sample::select(vec![0usize, 1, 2, 63, 64, 65, 150]), 0usize..4), 0..4),
        split_len in prop::sample::select(vec![1usize, 31, 64, 100, 1024]),
        dtype in prop::sample::select(TYPES.to_vec()),
        seed in any::<u64>(),
    ) {
        let lengths: Vec<usize> = batch.iter().map(|b| b.0).collect();
        let pages = lengths.iter().map(|l| l.div_ceil(page_size)).sum();
        let (cache, ids) = filled(config(d_c, d_rope, page_size, pages, dtype), &lengths, seed);
        prop_assert_eq!(cache.free_pages(), 0);
        let requests: Vec<_> = ids.iter().zip(&batch).map(|(&seq, b)| DecodeRequest { seq, s_q: b.1 }).collect();
        let q = queries(&cache, batch.iter().map(|b| b.1).sum(), heads, seed ^ 1);
        on_every_isa("decode of any batch", |isa| check_against_reference(&cache, &requests, &q, split_len, isa.name()));
    }
}

#[test]
fn real_sizes() {
    for dtype in TYPES {
        let (cache, ids) = filled(config(512, 64, 64, 4, dtype), &[200], 1);
        let q = queries(&cache, 1, 16, 2);
        let requests = [DecodeRequest { seq: ids[0], s_q: 1 }];
        on_every_isa("decode at 512 + 64", |isa| check_against_reference(&cache, &requests, &q, 128, isa.name()));
    }
}

#[test]
fn the_same_bits_on_every_instruction_set_and_number_of_threads() {
    let (cache, ids) = filled(config(40, 8, 16, 40, KvType::Bf16), &[300, 1, 130], 3);
    let requests: Vec<_> = ids.iter().map(|&seq| DecodeRequest { seq, s_q: 3 }).collect();
    let q = queries(&cache, 9, 9, 4);
    let expected = run(&cache, &requests, &q, 64);
    on_every_isa("bits of decode", |isa| assert_eq!(run(&cache, &requests, &q, 64), expected, "{isa}"));
    #[cfg(feature = "rayon")]
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| run(&cache, &requests, &q, 64)), expected, "{threads} threads");
    }
}

/// A row has the same bits whether its token came alone, with later ones (which may even be NaN), or in a batch.
#[test]
fn a_row_depends_on_its_own_tokens_alone() {
    let (d_c, d_rope, heads) = (24, 4, 5);
    for dtype in TYPES {
        let (full, ids) = filled(config(d_c, d_rope, 16, 64, dtype), &[213, 90], 5);
        let s_q = 100;
        let q = queries(&full, s_q + 2, heads, 6);
        let requests = [DecodeRequest { seq: ids[0], s_q }, DecodeRequest { seq: ids[1], s_q: 2 }];
        let (out, lse) = run(&full, &requests, &q, 50);
        for row in [0usize, 1, 36, 37, 50, 99] {
            let mut cache = full.clone();
            cache.trim(ids[0], 213 - s_q + row + 1).unwrap();
            let at = |x: &[f32], width: usize| x[row * heads * width..(row + 1) * heads * width].to_vec();
            let one = Queries { heads, latent: at(&q.latent, d_c), rope: at(&q.rope, d_rope) };
            let (o, l) = run(&cache, &[DecodeRequest { seq: ids[0], s_q: 1 }], &one, 50);
            assert_bits_eq("out", &o, &at(&out, d_c));
            assert_bits_eq("lse", &l, &at(&lse, 1));
            // Later tokens that hold NaN change nothing.
            let n = s_q - row - 1;
            cache.append(ids[0], &vec![f32::NAN; n * d_c], &vec![f32::NAN; n * d_rope]).unwrap();
            let (o, l) = run(&cache, &requests, &q, 50);
            assert_bits_eq("out before NaN", &at(&o, d_c), &at(&out, d_c));
            assert_bits_eq("lse before NaN", &at(&l, 1), &at(&lse, 1));
        }
    }
}

#[test]
fn a_query_without_keys() {
    let (cache, ids) = filled(config(8, 2, 4, 8, KvType::F32), &[2, 0], 7);
    let q = queries(&cache, 5, 3, 8);
    let requests = [DecodeRequest { seq: ids[0], s_q: 4 }, DecodeRequest { seq: ids[1], s_q: 1 }];
    let (out, lse) = run(&cache, &requests, &q, 64);
    for row in 0..15 {
        let sees = (6..12).contains(&row);
        assert_eq!(lse[row] > f32::NEG_INFINITY, sees, "{row}");
        assert_eq!(out[row * 8..row * 8 + 8].iter().any(|&x| x != 0.0), sees, "{row}");
    }
}

/// Decoding absorbed equals attention over the expanded keys and values; and so does a prompt taken in chunks.
#[test]
fn absorbed_equals_expanded() {
    let s = PrefillShape { heads: 3, d_nope: 12, d_rope: 6, d_v: 10 };
    let (d_c, tokens) = (20, 75);
    let mut rng = Rng::new(9);
    let (latent, k_rope) = (rng.normal_vec(tokens * d_c, 1.0), rng.normal_vec(tokens * s.d_rope, 1.0));
    let weight = rng.normal_vec(s.heads * s.d_kv() * d_c, 0.3);
    let q = rng.normal_vec(tokens * s.heads * s.d_qk(), 1.0);
    let kv: Vec<f32> = latent
        .chunks(d_c)
        .flat_map(|c| weight.chunks(d_c).map(move |w| w.iter().zip(c).map(|(a, b)| f64::from(a * b)).sum::<f64>() as f32))
        .collect();
    let rows = tokens * s.heads;
    let (mut expanded, mut expanded_lse) = (vec![0.0; rows * s.d_v], vec![0.0; rows]);
    prefill_forward(&s, SCALE, &[0, tokens], &q, &kv, &k_rope, &mut expanded, &mut expanded_lse).unwrap();

    let absorbed = Absorbed::new(&weight, s.heads, s.d_nope, s.d_v, d_c).unwrap();
    assert!(absorbed.bytes() >= 4 * weight.len());
    let mut q_latent = vec![f32::NAN; rows * d_c];
    absorbed.absorb_query(&q, tokens, s.heads * s.d_qk(), s.d_qk(), &mut q_latent).unwrap();
    let q_rope: Vec<f32> = q.chunks(s.d_qk()).flat_map(|r| r[s.d_nope..].to_vec()).collect();
    let attend = |chunk: usize| {
        let mut cache = LatentCache::new(config(d_c, s.d_rope, 8, 10, KvType::F32)).unwrap();
        let seq = cache.new_sequence();
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for start in (0..tokens).step_by(chunk) {
            let range = |width: usize| start * width..(start + chunk).min(tokens) * width;
            cache.append(seq, &latent[range(d_c)], &k_rope[range(s.d_rope)]).unwrap();
            let q = Queries {
                heads: s.heads,
                latent: q_latent[range(s.heads * d_c)].to_vec(),
                rope: q_rope[range(s.heads * s.d_rope)].to_vec(),
            };
            let (o, l) = run(&cache, &[DecodeRequest { seq, s_q: range(1).len() }], &q, 32);
            out.extend(o);
            lse.extend(l);
        }
        (out, lse)
    };
    let (out_latent, lse) = attend(tokens);
    for chunk in [1, 7, 32] {
        assert_eq!(attend(chunk), (out_latent.clone(), lse.clone()), "chunks of {chunk}");
    }
    let mut out = vec![f32::NAN; rows * s.d_v];
    absorbed.expand_output(&out_latent, tokens, &mut out).unwrap();
    // Two more roundings of d_c products on each way; scores are sums of d_c * d_nope products of order 1.
    Tolerance::absolute(2e-5).check("lse", &lse, &expanded_lse).unwrap();
    Tolerance::absolute(5e-5).check("out", &out, &expanded).unwrap();

    let wide = reference::widen(&weight);
    let q_nope: Vec<f32> = q.chunks(s.d_qk()).flat_map(|r| r[..s.d_nope].to_vec()).collect();
    let expected = reference::absorb_query(&wide, s.heads, s.d_nope, s.d_v, d_c, &reference::widen(&q_nope));
    Tolerance::absolute(1e-5).check("absorb_query", &q_latent, &expected).unwrap();
    let expected = reference::expand_output(&wide, s.heads, s.d_nope, s.d_v, d_c, &reference::widen(&out_latent));
    Tolerance::absolute(1e-5).check("expand_output", &out, &expected).unwrap();
}

#[test]
fn stored_values_are_rounded_as_stated() {
    let mut rng = Rng::new(10);
    for d_c in [1usize, 127, 128, 129, 300] {
        let (latent, k_rope) = (rng.spread_vec(2 * d_c, -20, 8), rng.normal_vec(2 * 6, 1.0));
        for dtype in TYPES {
            let mut cache = LatentCache::new(config(d_c, 6, 4, 1, dtype)).unwrap();
            let seq = cache.new_sequence();
            cache.append(seq, &latent, &k_rope).unwrap();
            let (l, k) = stored(&cache, seq);
            let bf16 = |x: &f32| v3_numerics::bf16::from_f32(*x).to_f32();
            let rope: Vec<f32> = if dtype == KvType::F32 { k_rope.clone() } else { k_rope.iter().map(bf16).collect() };
            assert_eq!(k, rope, "{dtype}");
            let expected: Vec<f32> = match dtype {
                KvType::F32 => latent.clone(),
                KvType::Bf16 => latent.iter().map(bf16).collect(),
                KvType::Fp8 => {
                    let group = |x: &[f32]| {
                        let scale = x.iter().fold(1e-4f32, |m, v| m.max(v.abs())) / 448.0;
                        x.iter().map(|v| v3_numerics::E4M3::from_f32(v * (1.0 / scale)).to_f32() * scale).collect::<Vec<_>>()
                    };
                    latent.chunks(d_c).flat_map(|row| row.chunks(128).flat_map(group).collect::<Vec<_>>()).collect()
                }
            };
            assert_eq!(l, expected, "{dtype}");
        }
    }
    assert_eq!(config(512, 64, 1, 1, KvType::Fp8).token_bytes(), 656);
    assert_eq!(config(512, 64, 1, 1, KvType::Bf16).token_bytes(), 1152);
}

/// What a cache should hold, as plain vectors.
#[derive(Clone, Default)]
struct Model(Vec<Option<(SeqId, Vec<f32>)>>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Appends, trims, forks and frees in any order: each sequence holds its own tokens, pages are neither lost nor shared by mistake, and
    /// what the pool cannot hold changes nothing.
    #[test]
    fn any_history(
        page_size in 1usize..6,
        num_pages in 0usize..12,
        steps in prop::collection::vec((0usize..5, 0usize..8, 0usize..9), 1..60),
    ) {
        let mut cache = LatentCache::new(config(2, 1, page_size, num_pages, KvType::F32)).unwrap();
        let mut model = Model::default();
        let mut stamp = 0.0f32;
        for (action, slot, n) in steps {
            let live: Vec<usize> = (0..model.0.len()).filter(|&i| model.0[i].is_some()).collect();
            if action == 0 || live.is_empty() {
                model.0.push(Some((cache.new_sequence(), Vec::new())));
                continue;
            }
            let index = live[slot % live.len()];
            let (id, tokens) = model.0[index].clone().unwrap();
            match action {
                1 | 2 => {
                    let new: Vec<f32> = (0..n).map(|i| stamp + i as f32).collect();
                    stamp += n as f32;
                    let latent: Vec<f32> = new.iter().flat_map(|v| [*v, -v]).collect();
                    let (needed, free) = (cache.pages_needed(id, n).unwrap(), cache.free_pages());
                    let result = cache.append(id, &latent, &new);
                    if needed <= free {
                        prop_assert!(result.is_ok());
                        model.0[index].as_mut().unwrap().1.extend(new);
                        prop_assert_eq!(cache.free_pages(), free - needed);
                    } else {
                        prop_assert_eq!(result, Err(Error::OutOfPages { needed, free }));
                        prop_assert_eq!(cache.free_pages(), free);
                    }
                }
                3 => {
                    let kept = n.min(tokens.len());
                    cache.trim(id, kept).unwrap();
                    model.0[index].as_mut().unwrap().1.truncate(kept);
                }
                _ if n % 2 == 0 => model.0.push(Some((cache.fork(id).unwrap(), tokens))),
                _ => {
                    cache.free(id).unwrap();
                    model.0[index] = None;
                    let (index, generation) = match cache.len(id) {
                        Err(Error::UnknownSequence { index, generation }) => (index, generation),
                        other => panic!("{other:?}"),
                    };
                    prop_assert_eq!(cache.free(id), Err(Error::UnknownSequence { index, generation }));
                }
            }
            for (id, tokens) in model.0.iter().flatten() {
                prop_assert_eq!(cache.len(*id).unwrap(), tokens.len());
                let (latent, k_rope) = stored(&cache, *id);
                prop_assert_eq!(&k_rope, tokens);
                prop_assert_eq!(latent, tokens.iter().flat_map(|v| [*v, -v]).collect::<Vec<_>>());
            }
        }
        for (id, _) in model.0.into_iter().flatten() {
            cache.free(id).unwrap();
        }
        prop_assert_eq!(cache.free_pages(), num_pages);
    }
}

#[test]
fn wrong_arguments_are_refused() {
    for bad in [config(0, 1, 1, 1, KvType::F32), config(1, 1, 0, 1, KvType::F32)] {
        assert!(matches!(LatentCache::new(bad), Err(Error::Parameter { .. })));
    }
    for bad in [config(usize::MAX, 1, 1, 1, KvType::F32), config(8, 8, usize::MAX / 8, 9, KvType::Fp8)] {
        assert!(matches!(LatentCache::new(bad), Err(Error::Shape { .. })));
    }
    let mut cache = LatentCache::new(config(4, 2, 3, 2, KvType::F32)).unwrap();
    let seq = cache.new_sequence();
    assert!(matches!(cache.append(seq, &[0.0; 5], &[0.0; 2]), Err(Error::Shape { what: "latent", .. })));
    assert!(matches!(cache.append(seq, &[0.0; 8], &[0.0; 2]), Err(Error::Shape { what: "k_rope", .. })));
    assert!(matches!(cache.append(seq, &[0.0; 28], &[0.0; 14]), Err(Error::OutOfPages { needed: 3, free: 2 })));
    assert!(cache.is_empty(seq).unwrap());
    assert!(matches!(cache.trim(seq, 1), Err(Error::TooLong { requested: 1, len: 0, .. })));
    assert!(matches!(cache.read(seq, 0, &mut [0.0; 4], &mut [0.0; 2]), Err(Error::TooLong { .. })));
    let other = LatentCache::new(config(4, 2, 3, 2, KvType::F32)).unwrap();
    assert!(matches!(other.len(seq), Err(Error::UnknownSequence { .. })));

    let go = |scale: f32, split_len: usize, q: usize, seq: SeqId| {
        let (mut out, mut lse) = ([0.0; 4], [0.0; 1]);
        let requests = [DecodeRequest { seq, s_q: 1 }];
        decode(&cache, &requests, 1, &vec![0.0; q], &[0.0; 2], scale, &mut out, &mut lse, &DecodeOptions { split_len })
    };
    assert_eq!(go(1.0, 1, 4, seq), Ok(()));
    assert!(matches!(go(1.0, 0, 4, seq), Err(Error::Parameter { what: "split_len", .. })));
    assert!(matches!(go(f32::NAN, 1, 4, seq), Err(Error::Parameter { .. })));
    assert!(matches!(go(1.0, 1, 5, seq), Err(Error::Shape { what: "q_latent", .. })));
    assert!(Absorbed::new(&[0.0; 7], 1, 1, 1, 4).is_err());
    let absorbed = Absorbed::new(&[0.0; 16], 2, 1, 1, 4).unwrap();
    assert!(absorbed.absorb_query(&[0.0; 2], 1, 2, 0, &mut [0.0; 8]).is_err());
    assert!(absorbed.absorb_query(&[0.0; 1], 1, 2, 1, &mut [0.0; 8]).is_err());
    assert!(absorbed.expand_output(&[0.0; 7], 1, &mut [0.0; 2]).is_err());
}
