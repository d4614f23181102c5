//! What the ranks of a job do in each case.

use std::fmt::Display;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use v3_ranks::{Comm, Error, Heartbeat, Lane, MpiConfig, Step, Task, WorldConfig, run_mpi, run_threads};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Parts small enough that short vectors have many.
fn config() -> MpiConfig {
    MpiConfig {
        chunk_bytes: 1000,
        heartbeat: Heartbeat { period: Duration::from_millis(500), timeout: Duration::from_secs(5) },
        ..MpiConfig::default()
    }
}

pub fn run(case: &str) -> ExitCode {
    let ended = match case {
        "messages" => rank(config(), messages),
        "collectives" => rank(config(), collectives),
        "as-threads" => rank(config(), as_threads),
        "lanes" => rank(config(), lanes),
        "own-errors" => rank(config(), own_errors),
        "progress" => rank(MpiConfig::default(), progress),
        "idle" => rank(config(), idle),
        "clock" => rank(config(), clock),
        "huge" => rank(MpiConfig::default(), huge),
        "wrong-size" => wrong_size(),
        "slow" => rank(config(), slow),
        "error" => rank(config(), error),
        "error-of-ranks" => rank(config(), error_of_ranks),
        "panic" => rank(config(), panics),
        "killed" => rank(config(), |comm| lost(comm, "-KILL")),
        "stopped" => rank(config(), |comm| lost(comm, "-STOP")),
        "stalled" => rank(MpiConfig { stall_after: Duration::from_secs(3), ..config() }, stalled),
        other => Err(format!("no case {other}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn rank(config: MpiConfig, body: impl Fn(&Comm) -> Outcome) -> Result<(), String> {
    let me = run_mpi(config, |comm| {
        println!("pid {}", std::process::id());
        body(&comm).map(|()| comm.rank()).map_err(|error| error.to_string())
    });
    println!("ok {}.", me.map_err(|error| error.to_string())?);
    Ok(())
}

fn expect<T: PartialEq + std::fmt::Debug>(what: impl Display, got: &T, expected: &T) -> Outcome {
    if got == expected {
        return Ok(());
    }
    let short = |value: &T| format!("{value:?}").chars().take(200).collect::<String>();
    Err(format!("{what}: expected {}, got {}", short(expected), short(got)).into())
}

/// A generator of numbers, the same for the same seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        // Many magnitudes, so that the order of a sum shows in its bits.
        (0..len).map(|_| (self.next() as i32 as f32) * 2f32.powi(self.below(40) as i32 - 40)).collect()
    }
}

/// Lengths around the limits of what travels in the head and of the parts.
const LENGTHS: [usize; 14] = [0, 1, 7, 999, 1000, 1001, 2000, 3071, 3072, 3073, 4096, 10_000, 65_537, 300_000];

fn messages(comm: &Comm) -> Outcome {
    let (me, size) = (comm.rank(), comm.size());
    let data = |src: usize, dst: usize, i: usize| -> Vec<u8> {
        let mut numbers = Numbers((src * 1000 + dst * 100 + i) as u64);
        (0..LENGTHS[i]).map(|_| numbers.next() as u8).collect()
    };
    // All to everybody, myself included, under one tag: short ones must not overtake long ones.
    for round in 0..2 {
        for dst in 0..size {
            for i in 0..LENGTHS.len() {
                let i = if round == 0 { i } else { LENGTHS.len() - 1 - i };
                comm.send(dst, 9, data(me, dst, i))?;
            }
        }
        for src in 0..size {
            for i in 0..LENGTHS.len() {
                let i = if round == 0 { i } else { LENGTHS.len() - 1 - i };
                expect(format!("message {i} of rank {src}"), &comm.recv::<u8>(src, 9)?, &data(src, me, i))?;
            }
        }
    }
    // Tags are taken in another order than they were sent in, and elements are of all sizes.
    let next = (me + 1) % size;
    let last = (me + size - 1) % size;
    comm.send(next, 1, vec![me as f64; 5000])?;
    comm.send(next, 2, vec![[me as u32; 3]; 777])?;
    comm.send(next, 3, vec![me as u128; 300])?;
    comm.send(next, 4, vec![me as u16])?;
    comm.send(next, u64::MAX, vec![(); 0])?;
    expect("no elements", &comm.recv::<()>(last, u64::MAX)?.len(), &0)?;
    expect("u16", &comm.recv(last, 4)?, &vec![last as u16])?;
    expect("u128", &comm.recv(last, 3)?, &vec![last as u128; 300])?;
    expect("triples", &comm.recv(last, 2)?, &vec![[last as u32; 3]; 777])?;
    expect("f64", &comm.recv(last, 1)?, &vec![last as f64; 5000])?;
    // Nobody has ended yet.
    comm.barrier()?;
    expect("nothing more", &comm.try_recv::<u8>(last, 9)?, &None)?;
    Ok(comm.barrier()?)
}

fn collectives(comm: &Comm) -> Outcome {
    let (me, size) = (comm.rank(), comm.size());
    for round in 0..30u64 {
        // Uneven all-to-all, with empty parts and long ones.
        let part = |src: usize, dst: usize| -> Vec<u32> {
            let mut numbers = Numbers(round * 10_000 + (src * 100 + dst) as u64);
            let len = [0, 1, 40, 2000, 9000][numbers.below(5) as usize];
            (0..len).map(|_| numbers.next() as u32).collect()
        };
        let got = comm.all_to_all_v((0..size).map(|dst| part(me, dst)).collect())?;
        expect(format!("all_to_all_v {round}"), &got, &(0..size).map(|src| part(src, me)).collect())?;

        // The sum in the order of the ranks, to the bit.
        let len = [0, 1, 5, 300, 7001][(round % 5) as usize];
        let vector = |rank: usize| Numbers(round * 77 + rank as u64).floats(len);
        let mut sum = vector(me);
        comm.all_reduce_sum(&mut sum)?;
        let mut expected = vector(0);
        for rank in 1..size {
            expected.iter_mut().zip(vector(rank)).for_each(|(sum, x)| *sum += x);
        }
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        expect(format!("all_reduce_sum {round}"), &bits(&sum), &bits(&expected))?;

        let root = round as usize % size;
        let sent = if me == root { vector(root) } else { Vec::new() };
        expect(format!("broadcast {round}"), &bits(&comm.broadcast(root, sent)?), &bits(&vector(root)))?;
        let gathered = comm.all_gather_v(&vector(me)[..len.min(me * 10)])?;
        for (rank, got) in gathered.iter().enumerate() {
            expect(format!("all_gather_v {round}"), &bits(got), &bits(&vector(rank)[..len.min(rank * 10)]))?;
        }
        comm.barrier()?;

        // Two groups at the same time.
        let group: Vec<usize> = (0..size).filter(|rank| rank % 2 == me % 2).collect();
        let half = comm.subgroup(&group, 3)?;
        let mut sum = [me as u64 + round];
        half.all_reduce_sum(&mut sum)?;
        expect("sum of a group", &sum[0], &group.iter().map(|&rank| rank as u64 + round).sum())?;
    }
    Ok(())
}

/// A program that does a bit of everything in a random order, and what it saw.
fn program(comm: &Comm) -> v3_ranks::Result<Vec<u64>> {
    let (me, size) = (comm.rank(), comm.size());
    let mut numbers = Numbers(5);
    let mut own = Numbers(me as u64);
    let mut state = own.floats(64);
    let mut seen = Vec::new();
    for round in 0..200 {
        let scale = 1 + numbers.below(100) as usize;
        match numbers.below(4) {
            0 => comm.all_reduce_sum(&mut state)?,
            1 => {
                let parts = (0..size).map(|dst| own.floats(scale * (dst + me))).collect();
                let got: Vec<Vec<f32>> = comm.all_to_all_v(parts)?;
                for part in got.iter().filter(|part| !part.is_empty()) {
                    state[round % 64] += part.iter().sum::<f32>();
                }
            }
            2 => {
                let counts: Vec<usize> =
                    (0..size).map(|rank| if rank + 1 == size { 64 - 64 / size * (size - 1) } else { 64 / size }).collect();
                let part = comm.reduce_scatter_sum(&state, &counts)?;
                state[..part.len()].copy_from_slice(&part);
            }
            _ => {
                for dst in (0..size).filter(|dst| *dst != me) {
                    comm.send(dst, round as u64, own.floats(scale * 50))?;
                }
                for src in (0..size).rev().filter(|src| *src != me) {
                    state[src] += comm.recv::<f32>(src, round as u64)?.iter().sum::<f32>();
                }
            }
        }
        // Values stay finite, whatever comes.
        state.iter_mut().for_each(|x| *x *= 0.5);
        seen.push(state.iter().fold(0u64, |hash, x| hash.wrapping_mul(31).wrapping_add(u64::from(x.to_bits()))));
    }
    Ok(seen)
}

fn as_threads(comm: &Comm) -> Outcome {
    let here = program(comm)?;
    let threads = run_threads(WorldConfig::new(comm.size()), |comm| program(&comm))?;
    expect("the same program as threads", &here, &threads[comm.rank()])
}

/// Sends a vector to every other rank and takes one from each.
struct Everybody {
    tag: u64,
    len: usize,
    sent: bool,
    missing: Vec<usize>,
    sum: u64,
}

impl Task for Everybody {
    type Output = u64;
    type Error = Error;

    fn poll(&mut self, comm: &Comm) -> v3_ranks::Result<Step<u64>> {
        if !std::mem::replace(&mut self.sent, true) {
            for &dst in &self.missing {
                comm.send(dst, self.tag, vec![comm.rank() as u64 + self.tag; self.len])?;
            }
        }
        let mut missing = Vec::new();
        for &src in &self.missing {
            match comm.try_recv::<u64>(src, self.tag)? {
                Some(data) => self.sum += data.iter().sum::<u64>(),
                None => missing.push(src),
            }
        }
        self.missing = missing;
        let waits = self.missing.iter().map(|&src| (src, self.tag)).collect::<Vec<_>>();
        Ok(if waits.is_empty() { Step::Done(self.sum) } else { Step::Waiting(waits) })
    }
}

/// Several tasks of a lane are in flight between processes while the rank itself uses the messages, too.
fn lanes(comm: &Comm) -> Outcome {
    let (me, size) = (comm.rank(), comm.size());
    let lane = Lane::spawn(comm, "exchange")?;
    for round in 0..20u64 {
        let len = |tag: u64| [3, 0, 20_000, 500][(tag % 4) as usize];
        let submit = |tag: u64| {
            let missing = (0..size).filter(|&rank| rank != me).collect();
            lane.submit(Everybody { tag, len: len(tag), sent: false, missing, sum: 0 })
        };
        let tickets: Vec<_> = (0..5).map(|i| (round * 5 + i, submit(round * 5 + i))).collect();
        let mut sum = [1u64];
        comm.all_reduce_sum(&mut sum)?;
        expect("a sum meanwhile", &sum[0], &(size as u64))?;
        for (tag, ticket) in tickets.into_iter().rev() {
            let others: u64 = (0..size as u64).filter(|&rank| rank != me as u64).map(|rank| rank + tag).sum();
            expect(format!("task {tag}"), &ticket.finish(comm)?, &(others * len(tag) as u64))?;
        }
    }
    Ok(())
}

/// Errors that a rank can deal with are values, and the messages go on after them.
fn own_errors(comm: &Comm) -> Outcome {
    let (me, size) = (comm.rank(), comm.size());
    let (next, last) = ((me + 1) % size, (me + size - 1) % size);
    comm.send(next, 1, vec![1u8, 2])?;
    match comm.recv::<u16>(last, 1) {
        Err(Error::TypeMismatch { .. }) => {}
        other => return Err(format!("expected another type, got {other:?}").into()),
    }
    expect("a rank that is not there", &comm.send(size, 1, vec![0u8]).is_err(), &true)?;
    comm.barrier()?;
    // Rank 0 ends; who waits for it is told.
    if me > 0 {
        match comm.recv::<u8>(0, 2) {
            Err(Error::Ended { source_rank: 0, .. }) => {}
            other => return Err(format!("expected the end of rank 0, got {other:?}").into()),
        }
    }
    Ok(())
}

/// A long message arrives while both sides compute.
fn progress(comm: &Comm) -> Outcome {
    let len = 32 << 20;
    if comm.rank() == 0 {
        for dst in 1..comm.size() {
            comm.send(dst, 0, vec![dst as u8; len])?;
        }
        compute(Duration::from_secs(2));
        comm.barrier()?;
        return Ok(());
    }
    compute(Duration::from_secs(2));
    let arrived = comm.try_recv::<u8>(0, 0)?;
    comm.barrier()?;
    let arrived = arrived.ok_or("32 MiB have not arrived in 2 s of computing")?;
    expect("the bytes", &(arrived.len(), arrived.iter().all(|&byte| byte == comm.rank() as u8)), &(len, true))
}

fn compute(time: Duration) {
    let began = Instant::now();
    let mut x = 1u64;
    while began.elapsed() < time {
        for _ in 0..1000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
    }
}

/// Seconds of processor time of this process: fields 14 and 15 of /proc/self/stat, in hundredths (proc(5)).
fn processor_time() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(") ").ok_or("no name")?.1.split(' ').collect();
    let ticks: u64 = fields.get(11).ok_or("short")?.parse::<u64>()? + fields.get(12).ok_or("short")?.parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

/// A rank that waits costs next to nothing.
fn idle(comm: &Comm) -> Outcome {
    comm.barrier()?;
    if comm.rank() == 0 {
        std::thread::sleep(Duration::from_secs(4));
        comm.send(1, 0, vec![1u8])?;
        return Ok(());
    }
    let (began, before) = (Instant::now(), processor_time()?);
    comm.recv::<u8>(0, 0)?;
    let share = (processor_time()? - before) / began.elapsed().as_secs_f64();
    println!("note waiting took {:.1} % of a processor", 100.0 * share);
    if share > 0.15 {
        return Err(format!("waiting took {share} of a processor").into());
    }
    Ok(())
}

/// Clocks of different processes agree: what is sent at a time arrives later.
fn clock(comm: &Comm) -> Outcome {
    let (me, size) = (comm.rank(), comm.size());
    let mut least = f64::INFINITY;
    for _ in 0..200 {
        let times = comm.all_gather_v(&[comm.now()])?;
        let now = comm.now();
        for (rank, time) in times.iter().enumerate().filter(|(rank, _)| *rank != me) {
            least = least.min(now - time[0]);
            if now - time[0] < -5e-4 || now - time[0] > 30.0 {
                return Err(format!("rank {rank} of {size} sent at {}, received at {now}", time[0]).into());
            }
        }
    }
    if me == 0 {
        println!("note shortest trip {:.0} us", least * 1e6);
    }
    Ok(())
}

/// A vector of more than 2 GiB, in the parts that MPI can count.
fn huge(comm: &Comm) -> Outcome {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let free =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let enough = [u64::from(free.is_some_and(|kib| kib > 8 << 20))];
    if comm.broadcast(0, enough.to_vec())?[0] == 0 {
        println!("note skipped: 8 GiB of free memory are needed");
        return Ok(());
    }
    let len = (1usize << 28) + 12_345;
    if comm.rank() == 0 {
        comm.send(1, 0, (0..len as u64).collect::<Vec<u64>>())?;
        return Ok(());
    }
    let got: Vec<u64> = comm.recv(0, 0)?;
    expect("length", &got.len(), &len)?;
    expect("elements in order", &got.iter().zip(0u64..).find(|(x, i)| **x != *i), &None)
}

fn wrong_size() -> Result<(), String> {
    match run_mpi(MpiConfig { size: Some(3), ..config() }, |_| Err::<(), _>("it ran")) {
        Err(error) if error.message.contains("expected 3 ranks, got 2") => {
            println!("ok {}.", error.rank);
            Ok(())
        }
        other => Err(format!("{other:?}")),
    }
}

/// One rank computes for longer than the time-out, the others wait for it.
fn slow(comm: &Comm) -> Outcome {
    if comm.rank() == 0 {
        compute(Duration::from_secs(8));
    }
    Ok(comm.barrier()?)
}

/// Rank 1 fails while the others wait in different operations.
fn error(comm: &Comm) -> Outcome {
    let others: Vec<usize> = (0..comm.size()).filter(|&rank| rank != 0).collect();
    match comm.rank() {
        0 => {
            comm.send(1, 0, vec![1u8])?;
            comm.recv::<u8>(1, 7).map(drop)?;
        }
        1 => {
            comm.recv::<u8>(0, 0)?;
            return Err("a message of its own".into());
        }
        _ => comm.subgroup(&others, 1)?.barrier()?,
    }
    Ok(())
}

fn error_of_ranks(comm: &Comm) -> Outcome {
    match comm.rank() {
        0 => comm.send(1, 0, vec![1u8])?,
        1 => comm.recv::<u64>(0, 0).map(drop)?,
        _ => {}
    }
    Ok(comm.barrier()?)
}

fn panics(comm: &Comm) -> Outcome {
    if comm.rank() == 1 {
        comm.set_label("step 7");
        panic!("out of cheese");
    }
    Ok(comm.barrier()?)
}

/// Rank 1 is killed or stopped, by itself; the others wait for it.
fn lost(comm: &Comm, signal: &str) -> Outcome {
    comm.barrier()?;
    if comm.rank() == 1 {
        // What the barrier has sent is to leave first.
        std::thread::sleep(Duration::from_millis(500));
        Command::new("kill").args([signal, &std::process::id().to_string()]).status()?;
        compute(Duration::from_secs(30));
        return Err("the signal did nothing".into());
    }
    comm.recv::<u8>(1, 5)?;
    Ok(())
}

fn stalled(comm: &Comm) -> Outcome {
    comm.recv::<u8>((comm.rank() + 1) % comm.size(), 0)?;
    Ok(())
}
