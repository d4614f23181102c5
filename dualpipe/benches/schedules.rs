//! Making, checking, reading and simulating schedules. One element is one step.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dualpipe::{Costs, Kind, Schedule, simulate};

fn schedules(criterion: &mut Criterion) {
    let costs = Costs { fb: 2.5, ..Costs::default() };
    let mut group = criterion.benchmark_group("schedule");
    for (kind, ranks, micro_batches) in [(Kind::OneFOneB, 16, 128), (Kind::DualPipe, 16, 128), (Kind::DualPipeV, 64, 512)] {
        let schedule = Schedule::new(kind, ranks, micro_batches).expect("sizes that the kind takes");
        let steps: usize = schedule.ranks_actions().iter().map(Vec::len).sum();
        let json = schedule.to_json();
        let size = format!("{kind}/r{ranks}_m{micro_batches}");
        group.throughput(Throughput::Elements(steps as u64));
        group.bench_function(BenchmarkId::new("new", &size), |b| b.iter(|| Schedule::new(kind, ranks, micro_batches)));
        group.bench_function(BenchmarkId::new("simulate", &size), |b| b.iter(|| simulate(&schedule, &costs)));
        group.bench_function(BenchmarkId::new("from_json", &size), |b| b.iter(|| Schedule::from_json(&json)));
    }
    group.finish();
}

criterion_group!(benches, schedules);
criterion_main!(benches);
