//! What calls NCCL: over a stand-in for its library and emulated devices; and over the library itself with one rank, where there is a GPU.

mod stand_in;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::*;
use v3_gpu::{Device, EmulatorConfig};
use v3_ranks::nccl::{Communicator, Error, Nccl};
use v3_ranks::{Comm, WorldConfig, run_threads};

/// The stand-in is one for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    stand_in::reset();
    guard
}

fn nccl() -> Nccl {
    // SAFETY: the stand-in does what nccl.h says, and stays.
    unsafe { Nccl::from_functions(stand_in::functions()) }.unwrap()
}

/// Emulated devices that reach each other.
fn devices(count: usize) -> Vec<Device> {
    let devices = Device::emulated(&EmulatorConfig { devices: count as u32, ..EmulatorConfig::default() }).unwrap();
    for a in &devices {
        for b in devices.iter().filter(|b| *b != a) {
            a.enable_peer_access(b).unwrap();
        }
    }
    devices
}

/// What rank `from` sends to rank `to`.
fn message(from: usize, to: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| (from * 1_000_000 + to * 10_000 + i) as u32).collect()
}

/// Everybody sends to everybody, `counts[from][to]` elements, `rounds` times on one stream without a wait between them.
fn exchange(counts: &[Vec<usize>], rounds: usize) {
    let size = counts.len();
    let (nccl, devices) = (nccl(), devices(size));
    run_threads(WorldConfig::new(size), |comm: Comm| -> Result<(), Error> {
        let me = comm.rank();
        let stream = devices[me].stream()?;
        stand_in::know(&stream);
        let ranks = Communicator::over(&comm, &nccl, &devices[me])?;
        assert_eq!((ranks.rank(), ranks.size(), ranks.device()), (me, size, &devices[me]));
        let receive_counts: Vec<usize> = counts.iter().map(|row| row[me]).collect();
        let total: usize = receive_counts.iter().sum();
        let mut results = Vec::new();
        for round in 0..rounds {
            let mine: Vec<u32> = (0..size).flat_map(|to| message(me + 7 * round, to, counts[me][to])).collect();
            let mine = stream.upload(&mine)?;
            let mut theirs = stream.alloc::<u32>(total)?;
            ranks.all_to_all_v(&stream, &mine, &counts[me], &mut theirs, &receive_counts)?;
            // What was sent may go at once: it is freed in the order of the stream.
            drop(mine);
            results.push(theirs);
        }
        for (round, theirs) in results.iter().enumerate() {
            let expected: Vec<u32> = (0..size).flat_map(|from| message(from + 7 * round, me, counts[from][me])).collect();
            assert_eq!(stream.download(theirs)?, expected, "rank {me}, round {round}");
        }
        ranks.check()
    })
    .unwrap();
    assert_eq!(stand_in::live(), 0);
    assert!(!stand_in::calls().contains(&"ncclCommAbort"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn everybody_gets_what_everybody_sent(
        counts in (1usize..5).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(prop_oneof![Just(0), 0usize..70], n), n)),
        rounds in 1usize..4,
    ) {
        let _alone = alone();
        exchange(&counts, rounds);
    }
}

#[test]
fn one_rank_sends_to_itself() {
    let _alone = alone();
    exchange(&[vec![33]], 2);
}

/// The functions that a whole life of two ranks calls.
const LIFE: [&str; 9] = [
    "ncclGetUniqueId",
    "ncclCommInitRank",
    "ncclCommCount",
    "ncclGroupStart",
    "ncclSend",
    "ncclRecv",
    "ncclGroupEnd",
    "ncclCommGetAsyncError",
    "ncclCommDestroy",
];

#[test]
fn every_error_of_every_function_is_returned_and_ends_the_communicator() {
    let _alone = alone();
    let names = ["ncclUnhandledCudaError", "ncclSystemError", "ncclInternalError", "ncclInvalidArgument", "ncclInvalidUsage"];
    let names: Vec<&str> = names.into_iter().chain(["ncclRemoteError", "ncclInProgress", "result 8"]).collect();
    let devices = devices(1);
    for function in LIFE {
        for (code, name) in (1u32..).zip(&names) {
            stand_in::reset();
            let nccl = nccl();
            let stream = devices[0].stream().unwrap();
            stand_in::know(&stream);
            let expect = |error: Error| match error {
                Error::Call { call, code: got, name: got_name, message } => {
                    assert_eq!((call, got, got_name.as_str()), (function, code, *name));
                    assert!(message.contains("told to fail"), "{message}");
                }
                other => panic!("{function} {code}: {other}"),
            };
            let life = || -> Result<(), Error> {
                stand_in::fail(Some((function, code)));
                let id = nccl.unique_id()?;
                let ranks = Communicator::new(&nccl, &devices[0], &id, 0, 1)?;
                let mine = stream.upload(&[1u8, 2, 3])?;
                let mut theirs = stream.zeroed::<u8>(3)?;
                let first = ranks.all_to_all_v(&stream, &mine, &[3], &mut theirs, &[3]);
                let first = first.and_then(|()| ranks.check());
                if let Err(first) = first {
                    // It stays the error, whatever is asked, and nothing more is called.
                    let before = stand_in::calls().len();
                    assert_eq!(ranks.check(), Err(first.clone()));
                    assert_eq!(ranks.all_to_all_v(&stream, &mine, &[3], &mut theirs, &[3]), Err(first.clone()));
                    assert_eq!(stand_in::calls().len(), before);
                    return Err(first);
                }
                assert_eq!(stream.download(&theirs)?, [1, 2, 3]);
                Ok(())
            };
            let result = life();
            let calls = stand_in::calls();
            match function {
                // Nobody can be told: the communicator is dropped.
                "ncclCommDestroy" => {
                    assert_eq!(result, Ok(()));
                    assert_eq!(calls.last(), Some(&"ncclCommDestroy"));
                }
                "ncclGetUniqueId" | "ncclCommInitRank" => {
                    expect(result.unwrap_err());
                    assert_eq!(calls.last(), Some(&function));
                }
                // A finished communicator is not waited for. Every group that began has ended.
                _ => {
                    expect(result.unwrap_err());
                    assert_eq!(calls.last(), Some(&"ncclCommAbort"));
                    let count = |name: &str| calls.iter().filter(|call| **call == name).count();
                    let begun = count("ncclGroupStart") - usize::from(function == "ncclGroupStart");
                    assert_eq!(begun, count("ncclGroupEnd"), "{function} {code}");
                    assert_eq!(stand_in::live(), 0);
                }
            }
        }
    }
}

#[test]
fn a_failure_under_way_is_found_and_ends_the_communicator() {
    let _alone = alone();
    let (nccl, devices) = (nccl(), devices(1));
    let id = nccl.unique_id().unwrap();
    let ranks = Communicator::new(&nccl, &devices[0], &id, 0, 1).unwrap();
    assert_eq!(ranks.check(), Ok(()));
    stand_in::fail_later(7); // in progress: no failure
    assert_eq!(ranks.check(), Ok(()));
    stand_in::fail_later(6);
    let error = ranks.check().unwrap_err();
    assert_eq!(error.to_string(), "ncclCommGetAsyncError: ncclRemoteError (6): remote process exited; told to fail");
    assert_eq!(ranks.abort(), Ok(()));
    assert_eq!(stand_in::live(), 0);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_queued() {
    let _alone = alone();
    let (nccl, devices) = (nccl(), devices(2));
    let id = nccl.unique_id().unwrap();
    for (rank, size) in [(1, 1), (0, 0), (5, 2), (usize::MAX, usize::MAX)] {
        assert!(matches!(Communicator::new(&nccl, &devices[0], &id, rank, size), Err(Error::Shape { what: "rank", .. })));
    }
    let ranks = Communicator::new(&nccl, &devices[0], &id, 0, 1).unwrap();
    let (stream, other) = (devices[0].stream().unwrap(), devices[1].stream().unwrap());
    stand_in::know(&stream);
    let (mine, mut theirs) = (stream.upload(&[1u16, 2, 3]).unwrap(), stream.zeroed::<u16>(3).unwrap());
    let foreign = other.upload(&[1u16]).unwrap();
    let shape = |result: Result<(), Error>, expected: &str| match result {
        Err(Error::Shape { what, .. }) => assert_eq!(what, expected),
        result => panic!("{expected}: {result:?}"),
    };
    let mut all = |send: &[usize], recv: &[usize]| ranks.all_to_all_v(&stream, &mine, send, &mut theirs, recv);
    shape(all(&[], &[3]), "counts to send");
    shape(all(&[3, 0], &[3]), "counts to send");
    shape(all(&[4], &[3]), "counts to send");
    shape(all(&[3], &[4]), "counts to receive");
    shape(all(&[usize::MAX], &[3]), "counts to send");
    shape(ranks.group(|group| group.send(&stream, &mine, 0..1, 1)), "rank");
    assert!(matches!(ranks.group(|group| group.send(&stream, &mine, 2..4, 0)), Err(Error::Gpu(_))));
    assert!(matches!(ranks.group(|group| group.send(&stream, &foreign, 0..1, 0)), Err(Error::Gpu(_))));
    assert!(matches!(ranks.group(|group| group.send(&other, &mine, 0..1, 0)), Err(Error::Gpu(_))));
    assert!(!stand_in::calls().iter().any(|call| ["ncclSend", "ncclRecv"].contains(call)));
    // None of that finished it: the others have not been told of anything.
    ranks.all_to_all_v(&stream, &mine, &[3], &mut theirs, &[3]).unwrap();
    assert_eq!(stream.download(&theirs).unwrap(), [1, 2, 3]);
}

#[test]
fn a_group_that_fails_half_way_finishes_the_communicator_and_ends_the_group() {
    let _alone = alone();
    let (nccl, devices) = (nccl(), devices(1));
    let id = nccl.unique_id().unwrap();
    let stream = devices[0].stream().unwrap();
    stand_in::know(&stream);
    let mut buffer = stream.zeroed::<u8>(4).unwrap();
    let ranks = Communicator::new(&nccl, &devices[0], &id, 0, 1).unwrap();
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ranks.group(|_| -> Result<(), Error> { panic!("in a group") })));
    assert!(panicked.is_err());
    let count = |name: &str| stand_in::calls().iter().filter(|call| **call == name).count();
    assert_eq!((count("ncclGroupStart"), count("ncclGroupEnd")), (1, 1));
    // Both halves are there, and the body fails after them.
    let result = ranks.group(|group| {
        let mine = stream.upload(&[5u8; 4])?;
        group.send(&stream, &mine, 0..4, 0)?;
        group.recv(&stream, &mut buffer, 0..4, 0)?;
        group.send(&stream, &mine, 0..4, 9)
    });
    assert!(matches!(&result, Err(Error::Shape { what: "rank", .. })), "{result:?}");
    assert_eq!(ranks.check(), result);
    drop(ranks);
    assert_eq!(stand_in::calls().last(), Some(&"ncclCommAbort"));
    assert_eq!((count("ncclGroupStart"), count("ncclGroupEnd")), (2, 2));
}

#[test]
fn a_library_that_is_not_there_or_another_one_is_named() {
    let _alone = alone();
    let error = Nccl::open_at(Path::new("/nowhere/libnccl.so.2")).unwrap_err();
    assert!(matches!(&error, Error::Library { reason } if reason.contains("/nowhere/libnccl.so.2")), "{error}");
    #[cfg(target_os = "linux")]
    {
        let error = Nccl::open_at(Path::new("libc.so.6")).unwrap_err();
        assert_eq!(error.to_string(), "libc.so.6 has no function ncclCommAbort");
    }
    let missing = v3_ranks::nccl::sys::Functions { ncclSend: None, ..stand_in::functions() };
    // SAFETY: as in `nccl`.
    let error = unsafe { Nccl::from_functions(missing) }.unwrap_err();
    assert_eq!(error.to_string(), "the given library has no function ncclSend");
    stand_in::fail(Some(("ncclGetVersion", 3)));
    // SAFETY: as in `nccl`.
    let error = unsafe { Nccl::from_functions(stand_in::functions()) }.unwrap_err();
    assert!(matches!(error, Error::Call { call: "ncclGetVersion", code: 3, .. }), "{error}");
    stand_in::fail(None);
    assert_eq!(nccl().version(), 22707);
}

#[test]
fn one_rank_of_the_real_library_in_a_stream() {
    let name = "one_rank_of_the_real_library_in_a_stream";
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(e) => return v3_testkit::skip::skip(name, &e.to_string()),
    };
    let nccl = match Nccl::open() {
        Ok(nccl) => nccl,
        Err(e) => return v3_testkit::skip::skip(name, &e.to_string()),
    };
    println!("NCCL {}", nccl.version());
    let stream = device.stream().unwrap();
    let ranks = Communicator::new(&nccl, &device, &nccl.unique_id().unwrap(), 0, 1).unwrap();
    let values: Vec<u32> = (0..100_000).collect();
    let (mine, mut theirs) = (stream.upload(&values).unwrap(), stream.zeroed::<u32>(values.len()).unwrap());
    ranks.all_to_all_v(&stream, &mine, &[values.len()], &mut theirs, &[values.len()]).unwrap();
    assert_eq!(stream.download(&theirs).unwrap(), values);
    ranks.check().unwrap();
}
