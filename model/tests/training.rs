//! What no plan, grid or number of threads may change, and what resuming must not.

mod common;

use common::{Gradients, args, config, first_step, folder, job, on_grid, run_step};
use dualpipe::Stage;
use v3_model::train::save::Resume;
use v3_model::train::{Job, TrainArgs, TrainOptions, metrics};

const ULP: f64 = 1.0 / (1u64 << 24) as f64;

fn single() -> TrainArgs {
    TrainArgs { pipeline: Some(1), expert_parallel: Some(1), schedule: Some("gpipe".into()), ..args() }
}

/// For every parameter, the sum over micro-batches (and over the uses of a shared tensor within one) of |gradient|, and over
/// their terms.
struct Scales {
    gradients: Gradients,
    terms: Gradients,
}

/// One micro-batch at a time on one rank.
fn scales(job: &Job) -> Scales {
    let batches = first_step(job);
    let add = |sum: &mut Gradients, more: Gradients| {
        for (name, values) in more {
            let sum = sum.entry(name).or_insert_with(|| vec![0.0; values.len()]);
            sum.iter_mut().zip(&values).for_each(|(s, v)| *s += v.abs());
        }
    };
    let (mut gradients, mut terms) = (Gradients::new(), Gradients::new());
    for only in 0..batches.len() {
        for magnitudes in [false, true] {
            let (_, g) = on_grid(job, 1, |trainer| {
                let chunks = batches.iter().map(|b| trainer.chunk(b, batches.len())).collect();
                let model = &mut trainer.model;
                model.begin_step(chunks);
                model.forward(0, only, None)?;
                model.backward_input(0, only, None)?;
                model.settings.magnitudes = magnitudes;
                model.backward_weight(0, only)
            });
            add(if magnitudes { &mut terms } else { &mut gradients }, g);
        }
    }
    Scales { gradients, terms }
}

#[test]
fn every_schedule_gives_the_losses_and_gradients_of_one_rank() {
    let config = config();
    let single = job(&single(), &config, folder("unused"));
    let (expected, gradients) = run_step(&single, 1);
    let scales = scales(&single);
    let batches = first_step(&single).len() as f64;
    for (schedule, ranks) in [
        ("gpipe", 2),
        ("gpipe", 4),
        ("1f1b", 2),
        ("1f1b", 3),
        ("zb-h1", 2),
        ("zb-h1", 4),
        ("zb-v", 2),
        ("dualpipe", 2),
        ("dualpipev", 2),
    ] {
        let args = TrainArgs { pipeline: Some(ranks), schedule: Some(schedule.into()), ..self::single() };
        let (outcome, found) = run_step(&job(&args, &config, folder("unused")), 1);
        let bits = |losses: &[f64]| losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&outcome.micro_losses), bits(&expected.micro_losses), "{schedule} on {ranks} ranks");
        assert_eq!(outcome.loss.to_bits(), expected.loss.to_bits(), "{schedule} on {ranks} ranks");
        assert_eq!(found.keys().collect::<Vec<_>>(), gradients.keys().collect::<Vec<_>>());
        for (name, values) in &gradients {
            for (i, (a, b)) in values.iter().zip(&found[name]).enumerate() {
                let bound = 2.0 * batches * ULP * f64::from(scales.gradients[name][i]);
                let error = f64::from(a - b).abs();
                assert!(
                    error <= bound,
                    "{schedule} on {ranks} ranks, {name}[{i}]: {a} and {b}, {error:e} apart, bound {bound:e}"
                );
            }
        }
    }
}

#[test]
fn deferring_the_weights_changes_no_bit() {
    let config = config();
    let job = job(&single(), &config, folder("unused"));
    let batches = first_step(&job);
    let run = |deferred: bool| {
        on_grid(&job, 1, |trainer| {
            let chunks = batches.iter().map(|b| trainer.chunk(b, batches.len())).collect();
            let model = &mut trainer.model;
            model.begin_step(chunks);
            for i in 0..batches.len() {
                model.forward(0, i, None)?;
                model.backward_input(0, i, None)?;
                if !deferred {
                    model.backward_weight(0, i)?;
                }
            }
            if deferred {
                assert!(model.grads.iter().all(|g| *g == 0.0), "no weight gradient before its time");
            }
            for i in (0..batches.len()).filter(|_| deferred) {
                model.backward_weight(0, i)?;
            }
            Ok(())
        })
        .1
    };
    assert_same(&run(false), &run(true));
}

fn assert_same(a: &Gradients, b: &Gradients) {
    for (name, values) in a {
        for (i, (a, b)) in values.iter().zip(&b[name]).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{name}[{i}]: {a} and {b}");
        }
    }
}

#[test]
fn recomputing_changes_no_bit() {
    let config = config();
    let kept = run_step(&job(&single(), &config, folder("unused")), 1);
    for list in ["norm", "mla-up", "swiglu", "all"] {
        let args = TrainArgs { recompute: Some(list.into()), ..single() };
        let again = run_step(&job(&args, &config, folder("unused")), 1);
        assert_eq!(kept.0.loss.to_bits(), again.0.loss.to_bits(), "{list}");
        assert_same(&kept.1, &again.1);
    }
}

#[test]
fn threads_change_no_bit() {
    let config = config();
    for precision in ["f32", "bf16", "fp8"] {
        let args = TrainArgs { precision: Some(precision.into()), ..args() };
        let job = job(&args, &config, folder("unused"));
        let batches = first_step(&job);
        let run = |threads| on_grid(&job, threads, |t| Ok((t.step(1, 0.01, &batches)?.0, t.model.store.weights.clone()))).0;
        let one = run(1);
        for threads in [2, 3] {
            for ((a, weights_a), (b, weights_b)) in one.iter().zip(&run(threads)) {
                assert_eq!((a.loss.to_bits(), a.grad_norm.to_bits()), (b.loss.to_bits(), b.grad_norm.to_bits()));
                assert!(
                    weights_a.iter().zip(weights_b).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{precision}, {threads} threads"
                );
            }
        }
    }
}

/// Splitting the sequences of a micro-batch over ranks changes no token's output: the losses are sums over sequences taken in one
/// order, so they have the same bits. A gradient is one chain of `rows` multiply-adds per micro-batch on one rank, and
/// `ranks` shorter chains, added, on several. Either is within gamma(n) = n u / (1 - n u) of the exact sum of its terms, times
/// the sum of their absolute values, with n = rows + micro-batches + ranks + uses of a tensor in a chunk (2); they are
/// apart by twice that at most. The sums of absolute values are themselves rounded: 1 % more covers it.
#[test]
fn expert_parallel_ranks_change_no_token_and_gradients_only_by_rounding() {
    let config = config();
    let single = job(&single(), &config, folder("unused"));
    let (expected, gradients) = run_step(&single, 1);
    let scales = scales(&single);
    let s = &single.options.stored;
    for (ranks, nodes) in [(2, 0), (4, 0), (4, 2), (8, 2)] {
        let args = TrainArgs { expert_parallel: Some(ranks), ranks_per_node: (nodes > 0).then_some(nodes), ..self::single() };
        let (outcome, found) = run_step(&job(&args, &config, folder("unused")), 1);
        let bits = |losses: &[f64]| losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&outcome.micro_losses), bits(&expected.micro_losses), "{ranks} ranks");
        assert_eq!(outcome.loss.to_bits(), expected.loss.to_bits(), "{ranks} ranks");
        let n = (s.seq_len * s.micro_batch + s.micro_batches + ranks + 2) as f64 * ULP;
        let gamma = n / (1.0 - n);
        for (name, values) in &gradients {
            for (i, (a, b)) in values.iter().zip(&found[name]).enumerate() {
                let bound = 2.0 * gamma * 1.01 * f64::from(scales.terms[name][i]);
                let error = f64::from(a - b).abs();
                assert!(error <= bound, "{ranks} ranks, {name}[{i}]: {a} and {b}, {error:e} apart, bound {bound:e}");
            }
        }
    }
}

#[test]
fn expert_parallel_ranks_change_no_token_in_low_precision_either() {
    let config = config();
    for precision in ["bf16", "fp8"] {
        let args = TrainArgs { precision: Some(precision.into()), ..single() };
        let expected = run_step(&job(&args, &config, folder("unused")), 1).0;
        for ranks in [2, 4] {
            let args = TrainArgs { expert_parallel: Some(ranks), ranks_per_node: Some(2), ..args.clone() };
            let found = run_step(&job(&args, &config, folder("unused")), 1).0;
            let bits = |losses: &[f64]| losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found.micro_losses), bits(&expected.micro_losses), "{precision}, {ranks} ranks");
        }
    }
}

#[test]
fn a_resumed_run_has_the_losses_of_an_uninterrupted_one() {
    let config = config();
    for precision in ["f32", "fp8"] {
        let args = TrainArgs { precision: Some(precision.into()), ..args() };
        let whole = folder(&format!("whole-{precision}"));
        job(&args, &config, whole.clone()).run().expect("a run");
        let broken = folder(&format!("broken-{precision}"));
        let mut first = job(&args, &config, broken.clone());
        first.options.stop_after = Some(5); // two steps after the last checkpoint
        first.run().expect("the first part");
        assert_eq!(metrics::read(&broken).expect("metrics").len(), 5);

        let resume = Resume::open(&broken).expect("a checkpoint to go on from");
        assert_eq!(resume.state.step, 3);
        let options = TrainOptions::new(&TrainArgs { threads: Some(1), ..TrainArgs::default() }, Some(&resume.state.options));
        let config = resume.weights.config().expect("a configuration");
        let second = Job::with(options.expect("stored options"), config, Some(resume), broken.clone()).expect("a job");
        second.run().expect("the second part");

        let (a, b) = (metrics::read(&whole).expect("metrics"), metrics::read(&broken).expect("metrics"));
        assert_eq!((a.len(), b.len()), (6, 6));
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((a.step, a.loss.to_bits(), a.grad_norm.to_bits()), (b.step, b.loss.to_bits(), b.grad_norm.to_bits()));
        }
        for dir in ["checkpoint", "ema"] {
            let file = |run: &std::path::Path| std::fs::read(run.join(dir).join("model.safetensors")).expect("weights");
            assert!(file(&whole) == file(&broken), "{dir} differs");
        }
    }
}

fn resumed(out: &std::path::Path, args: &TrainArgs) -> Job {
    let resume = Resume::open(out).expect("a checkpoint to go on from");
    let options = TrainOptions::new(args, Some(&resume.state.options)).expect("options");
    let config = resume.weights.config().expect("a configuration");
    Job::with(options, config, Some(resume), out.to_path_buf()).expect("a job")
}

#[test]
fn a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_checkpoint() {
    let config = config();
    let args = TrainArgs { save_every: Some(1), ..args() };
    let whole = folder("converges");
    job(&args, &config, whole.clone()).run().expect("a run");
    let out = folder("diverges");
    let mut first = job(&args, &config, out.clone());
    first.options.stop_after = Some(3);
    assert_eq!(first.run().expect("the first part").saved_step, Some(2), "step 3 proved the weights of step 2");

    // The third step with an absurd rate: its own loss is finite, what it makes of the weights is not good any more.
    let wild = TrainArgs { lr: Some(1e20), ..TrainArgs::default() };
    let outcome = resumed(&out, &wild).run().expect("ranks end in order");
    let (step, what, value) = outcome.diverged.expect("it diverges");
    assert!(step == 4 && !value.is_finite(), "{what} {value} in step {step}");
    assert_eq!(outcome.saved_step, Some(2));

    // What was kept is good: training goes on from it as if nothing had happened.
    resumed(&out, &TrainArgs { lr: Some(0.01), ..TrainArgs::default() }).run().expect("the rest");
    let losses =
        |run: &std::path::Path| metrics::read(run).expect("metrics").iter().map(|m| m.loss.to_bits()).collect::<Vec<_>>();
    assert_eq!(losses(&out), losses(&whole));
}
