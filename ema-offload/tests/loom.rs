//! The protocol of `src/ring.rs` through the interleavings of its threads (all of them with few jobs, those of at most three
//! preemptions with more):
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p ema-offload --release --test loom
//! ```
//!
//! The very file is compiled again here, with the model checker's primitives in place of the standard library's.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use ring::{Ring, Stopped};

mod sync {
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
}

#[path = "../src/ring.rs"]
mod ring;

/// A buffer whose content is checked by the model checker: a write by one side while the other has it is an error.
type Buffer = loom::cell::Cell<u64>;

/// The worker: adds up what the buffers hold, and checks the order of the jobs.
fn work(ring: &Ring<Box<Buffer>, u64>, sum: &AtomicUsize) {
    let mut last = 0;
    while let Some((buffer, job)) = ring.take() {
        assert_eq!(job, last + 1, "in the order of submission");
        last = job;
        assert_eq!(buffer.get(), job * 10, "what was copied for this job");
        sum.fetch_add(buffer.get() as usize, Ordering::Relaxed);
        ring.done(buffer);
    }
}

fn submit(ring: &Ring<Box<Buffer>, u64>, job: u64) -> Result<(), Stopped> {
    let (buffer, _) = ring.acquire()?;
    buffer.set(job * 10);
    ring.publish(buffer, job)
}

fn ring(buffers: usize) -> Arc<Ring<Box<Buffer>, u64>> {
    Arc::new(Ring::new((0..buffers).map(|_| Box::new(Buffer::new(0))).collect()))
}

fn everything_arrives_in_order(buffers: usize, jobs: u64, preemption_bound: Option<usize>) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemption_bound;
    model.check(move || {
        let ring = ring(buffers);
        let sum = Arc::new(AtomicUsize::new(0));
        let worker = {
            let (ring, sum) = (ring.clone(), sum.clone());
            thread::spawn(move || work(&ring, &sum))
        };
        for job in 1..=jobs {
            submit(&ring, job).unwrap();
        }
        ring.wait_idle().unwrap();
        assert_eq!(sum.load(Ordering::Relaxed) as u64, 10 * jobs * (jobs + 1) / 2, "all of it is there after wait_idle");
        let load = ring.load();
        assert!(load.most_in_flight <= buffers && load.in_flight == 0 && load.waiting == 0);
        ring.close();
        worker.join().unwrap();
    });
}

#[test]
fn one_buffer() {
    everything_arrives_in_order(1, 2, None);
    everything_arrives_in_order(1, 4, Some(3));
}

#[test]
fn two_buffers() {
    everything_arrives_in_order(2, 2, None);
    everything_arrives_in_order(2, 4, Some(3));
}

#[test]
fn closing_with_work_left_ends_the_worker() {
    loom::model(|| {
        let ring = ring(2);
        let sum = Arc::new(AtomicUsize::new(0));
        let worker = {
            let (ring, sum) = (ring.clone(), sum.clone());
            thread::spawn(move || work(&ring, &sum))
        };
        submit(&ring, 1).unwrap();
        submit(&ring, 2).unwrap();
        ring.close();
        worker.join().unwrap();
        assert_eq!(submit(&ring, 3), Err(Stopped::Closed));
        assert_eq!(ring.wait_idle(), Err(Stopped::Closed));
    });
}

#[test]
fn a_failure_wakes_a_submitter_and_a_reader() {
    loom::model(|| {
        let ring = ring(1);
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                let _job = ring.take();
                ring.fail("bad luck".into());
            })
        };
        let reader = {
            let ring = ring.clone();
            thread::spawn(move || ring.wait_idle())
        };
        submit(&ring, 1).unwrap();
        // The buffer never comes back: only the failure can end this wait.
        assert_eq!(submit(&ring, 2), Err(Stopped::Failed("bad luck".into())));
        worker.join().unwrap();
        // Idle before the first submission, or told.
        assert!(matches!(reader.join().unwrap(), Ok(()) | Err(Stopped::Failed(_))));
    });
}

#[test]
fn a_buffer_put_back_wakes_a_submitter() {
    loom::model(|| {
        let ring = ring(1);
        let other = {
            let ring = ring.clone();
            thread::spawn(move || {
                let (buffer, _) = ring.acquire().unwrap();
                ring.put_back(buffer);
            })
        };
        let (buffer, _) = ring.acquire().unwrap();
        ring.put_back(buffer);
        other.join().unwrap();
        assert_eq!(ring.load().in_flight, 0);
    });
}
