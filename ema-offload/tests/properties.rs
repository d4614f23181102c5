//! The asynchronous average against the synchronous reference, and every promise of the protocol.

use ema_offload::reference::{self, SynchronousEma};
use ema_offload::{Ema, EmaConfig, Error, Shard, State, Warmup, bf16, lerp};
use proptest::prelude::*;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use v3_numerics::cpu::{Isa, with_isa};
use v3_testkit::backend::for_each_available;
use v3_testkit::poison::{Guarded, POISON};
use v3_testkit::rng::awkward_sizes;
use v3_testkit::{Rng, Tolerance, assert_bits_eq};

fn views<T>(tensors: &[Vec<T>]) -> Vec<&[T]> {
    tensors.iter().map(|t| t.as_slice()).collect()
}

fn views_mut<T>(tensors: &mut [Vec<T>]) -> Vec<&mut [T]> {
    tensors.iter_mut().map(|t| t.as_mut_slice()).collect()
}

fn tensors(rng: &mut Rng, lens: &[usize]) -> Vec<Vec<f32>> {
    lens.iter().map(|&n| rng.normal_vec(n, 1.0)).collect()
}

fn to_bf16(tensors: &[Vec<f32>]) -> Vec<Vec<bf16>> {
    tensors.iter().map(|t| t.iter().map(|&x| bf16::from_f32(x)).collect()).collect()
}

fn assert_same(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    got.iter().zip(expected).for_each(|(g, e)| assert_bits_eq(what, g, e));
}

/// Equal bits, or both NaN: which NaN comes out of an operation is not part of the promise.
fn assert_same_values(what: &str, got: &[f32], expected: &[f32]) {
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(g.to_bits() == e.to_bits() || (g.is_nan() && e.is_nan()), "{what} [{i}]: {g:e} {e:e}");
    }
}

#[test]
fn lerp_equals_the_reference_on_every_instruction_set() {
    for_each_available("lerp", &Isa::ALL, Isa::name, Isa::is_available, |isa| {
        let mut rng = Rng::new(1);
        for n in awkward_sizes(16, 70).into_iter().chain([1000]) {
            for wild in [false, true] {
                let mut draw = |n| if wild { rng.bits_vec(n) } else { rng.spread_vec(n, -20, 20) };
                let (old, weight) = (draw(n), draw(n));
                let narrow: Vec<bf16> = weight.iter().map(|&w| bf16::from_f32(w)).collect();
                for rate in [0.0, 1e-4, 0.3, 1.0] {
                    let (mut wide, mut expected) = (Guarded::input(&old), old.clone());
                    with_isa(isa, || lerp(wide.as_mut_slice(), &weight, rate)).unwrap();
                    reference::lerp(&mut expected, &weight, rate);
                    assert_same_values("f32", wide.as_slice(), &expected);
                    wide.check().unwrap();
                    let (mut wide, mut expected) = (Guarded::input(&old), old.clone());
                    with_isa(isa, || lerp(wide.as_mut_slice(), &narrow, rate)).unwrap();
                    reference::lerp(&mut expected, &narrow, rate);
                    assert_same_values("bf16", wide.as_slice(), &expected);
                    wide.check().unwrap();
                }
            }
        }
    });
}

fn config() -> impl Strategy<Value = EmaConfig> {
    let warmup = prop_oneof![Just(Warmup::None), (1.5f64..20.0).prop_map(|offset| Warmup::Ratio { offset })];
    (0.0f64..0.9999, warmup, 1u64..4, 1usize..5).prop_map(|(decay, warmup, every_n, max_in_flight)| EmaConfig {
        decay,
        warmup,
        every_n,
        max_in_flight,
        ..EmaConfig::default()
    })
}

fn lens() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![Just(0usize), Just(1), Just(17), 0usize..400], 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn asynchronous_equals_synchronous(config in config(), lens in lens(), steps in 0u64..30, seed: u64) {
        let mut rng = Rng::new(seed);
        let initial = tensors(&mut rng, &lens);
        let ema = Ema::new(&views(&initial), config.clone()).unwrap();
        let mut sync = SynchronousEma::new(&views(&initial), &config);
        let mut exact: Vec<Vec<f64>> = initial.iter().map(|t| t.iter().map(|&x| f64::from(x)).collect()).collect();
        let mut step = 0;
        for _ in 0..steps {
            step += 1 + rng.below(2) as u64;
            let mut weights = tensors(&mut rng, &lens);
            let rate = f64::from(config.rate(sync.updates));
            let taken = if rng.below(2) == 0 {
                sync.submit(step, &views(&weights));
                ema.submit(step, &views(&weights)).unwrap().taken
            } else {
                let narrow = to_bf16(&weights);
                weights = narrow.iter().map(|t| t.iter().map(|x| x.to_f32()).collect()).collect();
                sync.submit(step, &views(&narrow));
                ema.submit(step, &views(&narrow)).unwrap().taken
            };
            prop_assert_eq!(taken, step % config.every_n == 0);
            if taken {
                exact.iter_mut().zip(&weights).for_each(|(a, w)| reference::lerp_f64(a, w, rate));
            }
            // The optimiser may overwrite now.
            weights.iter_mut().flatten().for_each(|w| *w = POISON);
            if rng.below(10) == 0 {
                assert_same("in between", &ema.averaged().unwrap(), &sync.averages);
            }
        }
        let averages = ema.averaged().unwrap();
        assert_same("at the end", &averages, &sync.averages);
        prop_assert_eq!(ema.progress().0, sync.updates);
        // An update rounds twice, each time by 2^-24 of at most 12 + 12 (values are below 6 in magnitude), and never enlarges
        // the error there was.
        let bound = sync.updates as f64 * 2.0 * 24.0 * 2f64.powi(-24);
        for (a, e) in averages.iter().zip(&exact) {
            Tolerance::absolute(bound).check("f64", a, e).unwrap();
        }
        let stats = ema.stats();
        prop_assert_eq!((stats.submitted, stats.applied, stats.in_flight), (sync.updates, sync.updates, 0));
        prop_assert!(stats.most_in_flight <= config.max_in_flight);
    }

    #[test]
    fn shards_make_the_whole(config in config(), lens in lens(), ranks in 1usize..6, seed: u64) {
        let mut rng = Rng::new(seed);
        let initial = tensors(&mut rng, &lens);
        let weights: Vec<_> = (0..4).map(|_| tensors(&mut rng, &lens)).collect();
        let whole = SynchronousEma::new(&views(&initial), &config);
        let mut sync = whole;
        weights.iter().enumerate().for_each(|(s, w)| sync.submit(s as u64, &views(w)));
        let mut together: Vec<Vec<f32>> = lens.iter().map(|&n| vec![POISON; n]).collect();
        let mut joined: Vec<Vec<f32>> = vec![vec![]; lens.len()];
        let mut total = 0;
        for rank in 0..ranks {
            let config = EmaConfig { shard: Shard { rank, ranks }, ..config.clone() };
            let ema = Ema::new(&views(&initial), config).unwrap();
            for (s, w) in weights.iter().enumerate() {
                ema.submit(s as u64, &views(w)).unwrap();
            }
            ema.write_into(&mut views_mut(&mut together)).unwrap();
            joined.iter_mut().zip(ema.averaged().unwrap()).for_each(|(all, part)| all.extend(part));
            total += ema.shard_len();
            prop_assert_eq!(ema.shard_pieces().map(|(_, r)| r.len()).sum::<usize>(), ema.shard_len());
            prop_assert_eq!(ema.stats().average_bytes, 4 * ema.shard_len());
            prop_assert!(ema.shard_len() <= lens.iter().sum::<usize>().div_ceil(ranks));
        }
        prop_assert_eq!(total, lens.iter().sum::<usize>());
        assert_same("written", &together, &sync.averages);
        assert_same("joined", &joined, &sync.averages);
    }

    #[test]
    fn an_interruption_changes_no_bit(config in config(), lens in lens(), before in 0u64..6, after in 0u64..6, seed: u64) {
        let mut rng = Rng::new(seed);
        let initial = tensors(&mut rng, &lens);
        let weights: Vec<_> = (0..before + after).map(|_| tensors(&mut rng, &lens)).collect();
        let mut sync = SynchronousEma::new(&views(&initial), &config);
        weights.iter().zip(0..).for_each(|(w, s)| sync.submit(s, &views(w)));
        let ema = Ema::new(&views(&initial), config.clone()).unwrap();
        for s in 0..before {
            ema.submit(s, &views(&weights[s as usize])).unwrap();
        }
        let mut bytes = Vec::new();
        let state = if seed.is_multiple_of(2) { ema.state() } else { ema.finish() }.unwrap();
        state.write_to(&mut bytes).unwrap();
        let read = State::read_from(&mut bytes.as_slice()).unwrap();
        prop_assert_eq!(&read, &state);
        let ema = Ema::restore(read, config).unwrap();
        for s in before..before + after {
            ema.submit(s, &views(&weights[s as usize])).unwrap();
        }
        assert_same("resumed", &ema.averaged().unwrap(), &sync.averages);
        prop_assert_eq!(ema.progress().0, sync.updates);
    }
}

/// An `Ema` whose worker stops after each update until it is told to go on.
fn held(initial: &[Vec<f32>], config: EmaConfig) -> (Ema, Sender<()>, Receiver<u64>) {
    let (go, wait) = channel::<()>();
    let (tell, told) = channel();
    let ema = Ema::with_observer(&views(initial), config, move |update| {
        let _ = tell.send(update.step);
        let _ = wait.recv();
    });
    (ema.unwrap(), go, told)
}

/// Waits for a condition that another thread is about to make true.
fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("hang: {what}");
}

#[test]
fn at_most_max_in_flight_and_the_wait_is_counted() {
    for max_in_flight in [1, 2, 3] {
        let initial = vec![vec![0.0f32; 100]];
        let config = EmaConfig { max_in_flight, decay: 0.5, ..EmaConfig::default() };
        let (ema, go, _told) = held(&initial, config.clone());
        let mut sync = SynchronousEma::new(&views(&initial), &config);
        let extra = 3;
        std::thread::scope(|scope| {
            let submitter = scope.spawn(|| {
                let mut blocked = 0;
                for step in 1..=(max_in_flight + extra) as u64 {
                    let mut weights = vec![vec![step as f32; 100]];
                    blocked += u32::from(ema.submit(step, &views(&weights)).unwrap().blocked > Duration::ZERO);
                    weights[0].fill(f32::NAN); // free to overwrite, although the worker has not seen it
                }
                blocked
            });
            // The worker holds the first; the others wait; the next submission finds no buffer.
            until("a submitter that waits", || ema.stats().waiting == 1);
            let stats = ema.stats();
            assert_eq!((stats.submitted, stats.in_flight), (max_in_flight as u64, max_in_flight));
            assert!(!submitter.is_finished());
            for _ in 0..max_in_flight + extra {
                go.send(()).unwrap();
            }
            assert!(submitter.join().unwrap() >= 1);
        });
        for step in 1..=(max_in_flight + extra) as u64 {
            sync.submit(step, &[vec![step as f32; 100].as_slice()]);
        }
        assert_same("all of them, in order", &ema.averaged().unwrap(), &sync.averages);
        let stats = ema.stats();
        assert_eq!(stats.most_in_flight, max_in_flight);
        assert!(stats.blocked_submissions >= 1 && stats.blocked_seconds > 0.0, "{stats:?}");
        assert!(stats.staging_bytes <= 400 * max_in_flight && stats.average_bytes == 400, "{stats:?}");
    }
}

#[test]
fn updates_are_reported_in_order() {
    let initial = vec![vec![0.0f32; 8]];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let config = EmaConfig { every_n: 3, decay: 0.75, ..EmaConfig::default() };
    let log = Arc::clone(&seen);
    let ema = Ema::with_observer(&views(&initial), config, move |u| log.lock().unwrap().push((u.step, u.updates, u.rate)));
    let ema = ema.unwrap();
    for step in 0..8 {
        assert_eq!(ema.submit(step, &views(&initial)).unwrap().taken, step % 3 == 0);
    }
    ema.flush().unwrap();
    assert_eq!(*seen.lock().unwrap(), [(0, 1, 0.25), (3, 2, 0.25), (6, 3, 0.25)]);
    assert_eq!((ema.stats().submitted, ema.stats().skipped), (3, 5));
    assert_eq!(ema.progress(), (3, Some(6)));
}

#[test]
fn a_panic_of_the_worker_is_an_error_everywhere() {
    let initial = vec![vec![0.0f32; 8]];
    let (go, wait) = channel::<()>();
    let config = EmaConfig { max_in_flight: 1, ..EmaConfig::default() };
    let ema = Ema::with_observer(&views(&initial), config, move |u| {
        let _ = wait.recv();
        panic!("bad luck at step {}", u.step);
    });
    let ema = ema.unwrap();
    ema.submit(1, &views(&initial)).unwrap();
    std::thread::scope(|scope| {
        // One submitter already waits when it happens.
        let waiting = scope.spawn(|| ema.submit(2, &views(&initial)).map(|_| ()));
        until("a submitter that waits", || ema.stats().waiting == 1);
        go.send(()).unwrap();
        let message = waiting.join().unwrap().unwrap_err().to_string();
        assert!(message.contains("bad luck at step 1"), "{message}");
    });
    let is_worker = |e: Option<Error>| assert!(matches!(e, Some(Error::Worker { .. })), "{e:?}");
    is_worker(ema.submit(3, &views(&initial)).err());
    is_worker(ema.flush().err());
    is_worker(ema.averaged().err());
    is_worker(ema.state().err());
    is_worker(ema.swap_in(&mut views_mut(&mut initial.clone())).err());
    is_worker(ema.reserve::<f32>().err());
    is_worker(ema.finish().err());
}

#[test]
fn dropping_joins_the_worker_with_work_left() {
    struct Last(Sender<&'static str>);
    impl Drop for Last {
        fn drop(&mut self) {
            let _ = self.0.send("the worker is gone");
        }
    }
    let initial = vec![vec![0.0f32; 8]];
    let (tell, told) = channel();
    let (go, wait) = channel::<()>();
    let last = Last(tell);
    let config = EmaConfig { max_in_flight: 3, ..EmaConfig::default() };
    let ema = Ema::with_observer(&views(&initial), config, move |_| {
        let _ = (&last, wait.recv());
    });
    let ema = ema.unwrap();
    for step in 0..3 {
        ema.submit(step, &views(&initial)).unwrap();
    }
    drop(go);
    drop(ema);
    assert_eq!(told.try_recv(), Ok("the worker is gone"));
    // And without any work.
    drop(Ema::new(&views(&initial), EmaConfig::default()).unwrap());
}

#[test]
fn swapping_in_and_out_restores_every_bit() {
    let mut rng = Rng::new(9);
    let lens = [5, 0, 33, 64];
    for ranks in [1, 3] {
        for rank in 0..ranks {
            let shard = Shard { rank, ranks };
            let initial = tensors(&mut rng, &lens);
            let mut weights = tensors(&mut rng, &lens);
            let ema = Ema::new(&views(&initial), EmaConfig { shard, decay: 0.9, ..EmaConfig::default() }).unwrap();
            ema.submit(1, &views(&weights)).unwrap();
            let averages = ema.averaged().unwrap();
            let mut expected = weights.clone();
            ema.write_into(&mut views_mut(&mut expected)).unwrap();
            let kept = weights.clone();
            assert!(matches!(ema.swap_out(&mut views_mut(&mut weights)), Err(Error::NotSwapped)));
            ema.swap_in(&mut views_mut(&mut weights)).unwrap();
            assert_same("swapped in", &weights, &expected);
            assert!(matches!(ema.submit(2, &views(&weights)), Err(Error::Swapped)));
            assert!(matches!(ema.averaged(), Err(Error::Swapped)));
            assert!(matches!(ema.state(), Err(Error::Swapped)));
            assert!(matches!(ema.swap_in(&mut views_mut(&mut weights)), Err(Error::Swapped)));
            ema.swap_out(&mut views_mut(&mut weights)).unwrap();
            assert_same("swapped out", &weights, &kept);
            assert_same("averages", &ema.averaged().unwrap(), &averages);
            let sum = ema.with_averages(&mut views_mut(&mut weights), |t| t.iter().map(|t| t.len()).sum::<usize>()).unwrap();
            assert_eq!(sum, 102);
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                ema.with_averages(&mut views_mut(&mut weights), |t| assert!(t.is_empty(), "evaluation failed"))
            }));
            assert!(panicked.is_err());
            assert_same("after a panic", &weights, &kept);
            ema.submit(2, &views(&weights)).unwrap();
        }
    }
}

#[test]
fn averages_can_be_written_as_bf16() {
    let initial = vec![vec![1.0 + 1.0 / 256.0, -3.0, 1e-40, f32::MAX]];
    let ema = Ema::new(&views(&initial), EmaConfig::default()).unwrap();
    let mut out = vec![vec![bf16::ZERO; 4]];
    ema.write_into(&mut views_mut(&mut out)).unwrap();
    assert_eq!(out, to_bf16(&initial));
}

#[test]
fn damaged_states_are_refused() {
    let initial = vec![vec![1.0f32, 2.0], vec![3.0]];
    let ema = Ema::new(&views(&initial), EmaConfig::default()).unwrap();
    ema.submit(7, &views(&initial)).unwrap();
    let state = ema.state().unwrap();
    assert_eq!((state.step, state.updates), (Some(7), 1));
    let mut bytes = Vec::new();
    state.write_to(&mut bytes).unwrap();
    for n in 0..bytes.len() {
        assert!(State::read_from(&mut &bytes[..n]).is_err(), "cut to {n} bytes");
    }
    for i in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[i / 8] ^= 1 << (i % 8);
        assert!(State::read_from(&mut damaged.as_slice()).is_err(), "bit {i} flipped");
    }
    // A state that contradicts itself or the configuration.
    let config = EmaConfig { shard: Shard { rank: 1, ranks: 2 }, ..EmaConfig::default() };
    assert!(matches!(Ema::restore(state.clone(), config), Err(Error::Shape { .. })));
    let short = State { values: vec![0.0; 2], ..state.clone() };
    assert!(matches!(Ema::restore(short, EmaConfig::default()), Err(Error::Format { .. })));
    let huge = State { lens: vec![usize::MAX, 2], ..state.clone() };
    assert!(Ema::restore(huge, EmaConfig::default()).is_err());
    // A restored average continues after its step.
    let ema = Ema::restore(state, EmaConfig::default()).unwrap();
    assert!(matches!(ema.submit(7, &views(&initial)), Err(Error::StepOrder { last: 7, got: 7 })));
    ema.submit(8, &views(&initial)).unwrap();
}

#[test]
fn wrong_shapes_and_configurations_are_refused() {
    let initial = vec![vec![0.0f32; 3], vec![0.0; 4]];
    let good = EmaConfig::default();
    for bad in [
        EmaConfig { decay: 1.0, ..good.clone() },
        EmaConfig { decay: -0.1, ..good.clone() },
        EmaConfig { decay: f64::NAN, ..good.clone() },
        EmaConfig { warmup: Warmup::Ratio { offset: 1.0 }, ..good.clone() },
        EmaConfig { warmup: Warmup::Ratio { offset: f64::INFINITY }, ..good.clone() },
        EmaConfig { every_n: 0, ..good.clone() },
        EmaConfig { max_in_flight: 0, ..good.clone() },
        EmaConfig { shard: Shard { rank: 2, ranks: 2 }, ..good.clone() },
        EmaConfig { shard: Shard { rank: 0, ranks: 0 }, ..good.clone() },
    ] {
        assert!(matches!(Ema::new(&views(&initial), bad.clone()), Err(Error::Config { .. })), "{bad:?}");
    }
    let ema = Ema::new(&views(&initial), good).unwrap();
    for wrong in [vec![], vec![vec![0.0f32; 3]], vec![vec![0.0; 4], vec![0.0; 3]]] {
        assert!(matches!(ema.submit(1, &views(&wrong)), Err(Error::Shape { .. })));
        let mut wrong = wrong;
        assert!(matches!(ema.write_into(&mut views_mut(&mut wrong)), Err(Error::Shape { .. })));
        assert!(matches!(ema.swap_in(&mut views_mut(&mut wrong)), Err(Error::Shape { .. })));
    }
    ema.submit(5, &views(&initial)).unwrap();
    for step in [0, 4, 5] {
        assert!(matches!(ema.submit(step, &views(&initial)), Err(Error::StepOrder { .. })));
    }
    assert_eq!(ema.stats().submitted, 1, "what is refused is not averaged");
}

#[test]
fn warm_up_by_hand() {
    let config = EmaConfig { decay: 0.9, warmup: Warmup::Ratio { offset: 10.0 }, ..EmaConfig::default() };
    assert_eq!([0, 1, 89].map(|t| config.decay_at(t)), [1.0 / 10.0, 2.0 / 11.0, 0.9]);
    assert_eq!(config.decay_at(1_000_000), 0.9);
    // An offset of 2 is the plain mean of everything.
    let config = EmaConfig { decay: 0.999, warmup: Warmup::Ratio { offset: 2.0 }, ..EmaConfig::default() };
    let ema = Ema::new(&[&[1.0f32]], config).unwrap();
    for step in 1..50 {
        ema.submit(step, &[&[(step + 1) as f32]]).unwrap();
    }
    let mean = ema.averaged().unwrap()[0][0];
    assert!((mean - 25.5).abs() < 1e-4, "{mean}");
}

#[test]
fn reserving_allocates_all_buffers_once() {
    let initial = vec![vec![0.0f32; 1000]];
    let ema = Ema::new(&views(&initial), EmaConfig { max_in_flight: 3, ..EmaConfig::default() }).unwrap();
    assert_eq!(ema.stats().staging_bytes, 0);
    ema.reserve::<f32>().unwrap();
    assert_eq!(ema.stats().staging_bytes, 12_000);
    for step in 0..5 {
        ema.submit(step, &views(&initial)).unwrap();
    }
    assert_eq!(ema.stats().staging_bytes, 12_000);
    ema.reserve::<bf16>().unwrap();
    assert_eq!(ema.stats().staging_bytes, 6_000);
    for step in 5..10 {
        ema.submit(step, &views(&to_bf16(&initial))).unwrap();
    }
    ema.flush().unwrap();
    assert_eq!(ema.stats().staging_bytes, 6_000);
}

#[test]
fn several_threads_may_read_while_one_submits() {
    let initial = vec![vec![0.0f32; 1000]];
    let ema = Ema::new(&views(&initial), EmaConfig { decay: 0.5, ..EmaConfig::default() }).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let averages = ema.averaged().unwrap();
                    let first = averages[0][0];
                    assert!(averages[0].iter().all(|x| *x == first), "never in the middle of an update");
                    let _ = ema.stats();
                }
            });
        }
        for step in 1..=100 {
            ema.submit(step, &[vec![step as f32; 1000].as_slice()]).unwrap();
        }
    });
    ema.flush().unwrap();
    assert_eq!(ema.progress(), (100, Some(100)));
}
