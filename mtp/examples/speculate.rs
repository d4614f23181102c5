//! Speculative decoding of a toy target: the same law as plain decoding, in fewer passes of the target.
//!
//! The target draws the next token from a row of a table that the last token chooses; the drafter knows the table only
//! roughly. Run with `cargo run --release -p mtp --example speculate`.

use mtp::{AcceptanceStats, Draft, RequestRng, Sampler, Uniform, sample, verify_sampled};

const VOCAB: usize = 8;
const CHAIN: usize = 3;
const TOKENS: usize = 200_000;

fn main() -> mtp::Result<()> {
    let mut rng = RequestRng::new(2024, 0);
    let logits: Vec<f32> = (0..VOCAB * VOCAB).map(|_| (rng.uniform() * 4.0) as f32).collect();
    let rough: Vec<f32> = logits.iter().map(|x| x + (rng.uniform() * 1.5) as f32).collect();
    let sampler = Sampler::new(0.9, 6, 0.95)?;
    let target = |last: u32| sampler.probs(&logits[last as usize * VOCAB..][..VOCAB]);
    let drafter = |last: u32| sampler.probs(&rough[last as usize * VOCAB..][..VOCAB]);

    let mut plain = vec![0u32];
    while plain.len() < TOKENS {
        let next = sample(&target(plain[plain.len() - 1])?, &mut rng)?;
        plain.push(next);
    }

    let (mut fast, mut stats) = (vec![0u32], AcceptanceStats::default());
    while fast.len() < TOKENS {
        let (mut draft, mut q) = (vec![], vec![]);
        let mut last = fast[fast.len() - 1];
        // One pass of the target sees the last committed token and all drafted ones.
        let mut p = target(last)?;
        for _ in 0..CHAIN {
            let law = drafter(last)?;
            last = sample(&law, &mut rng)?;
            draft.push(last);
            q.extend(law);
            p.extend(target(last)?);
        }
        let verdict = verify_sampled(&draft, Draft::Sampled(&q), &p, VOCAB, &mut rng)?;
        stats.record(CHAIN, &verdict);
        fast.extend(verdict.committed(&draft));
    }

    println!("{stats}");
    println!("token    plain  speculative");
    for token in 0..VOCAB as u32 {
        let share = |tokens: &[u32]| tokens.iter().filter(|&&t| t == token).count() as f64 / tokens.len() as f64;
        println!("{token:>5}  {:>6.2}%      {:>6.2}%", 100.0 * share(&plain), 100.0 * share(&fast));
    }
    Ok(())
}
