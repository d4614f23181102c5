//! Buffers, pinned memory, copies.

use crate::common::{emulated, for_each_device, gpu};
use v3_gpu::{Buffer, Device, DevicePtr, Error, Pinned};

fn shape<T>(result: Result<T, Error>) -> (&'static str, String, String) {
    match result {
        Err(Error::Shape { what, expected, got }) => (what, expected, got),
        Err(e) => panic!("{e:?}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn values_go_there_and_back() {
    for_each_device("values_go_there_and_back", |device| {
        let stream = device.stream().unwrap();
        for len in [1usize, 2, 31, 1000, 4097] {
            let values: Vec<u64> = (0..len as u64).map(|i| i * 0x0123_4567_89ab).collect();
            let buffer = stream.upload(&values).unwrap();
            assert_eq!((buffer.len(), buffer.bytes(), buffer.is_empty()), (len, 8 * len as u64, false));
            assert!(buffer.ptr().0.is_multiple_of(256), "{:?}", buffer.ptr());
            let mut copy = stream.alloc(len).unwrap();
            stream.copy(&mut copy, &buffer).unwrap();
            assert_eq!(stream.download(&copy).unwrap(), values);
            stream.fill(&mut copy, 0xa5).unwrap();
            assert_eq!(stream.download(&copy).unwrap(), vec![0xa5a5_a5a5_a5a5_a5a5; len]);
            assert_eq!(stream.download(&buffer).unwrap(), values, "the source stays");
        }
        assert_eq!(stream.download(&stream.zeroed::<[u8; 3]>(5).unwrap()).unwrap(), [[0; 3]; 5]);
    });
}

#[test]
fn empty_buffers_are_buffers() {
    for_each_device("empty_buffers_are_buffers", |device| {
        let stream = device.stream().unwrap();
        let mut none: Buffer<f32> = stream.upload(&[]).unwrap();
        let other: Buffer<f32> = stream.zeroed(0).unwrap();
        assert_eq!((none.len(), none.bytes(), none.ptr()), (0, 0, DevicePtr(0)));
        stream.fill(&mut none, 1).unwrap();
        stream.copy(&mut none, &other).unwrap();
        assert_eq!(stream.download(&none).unwrap(), [] as [f32; 0]);
        assert_eq!(none.range(0..0).unwrap(), DevicePtr(0));
        let mut pinned: Pinned<u32> = device.pinned(0).unwrap();
        assert_eq!((pinned.len(), pinned.as_mut().len()), (0, 0));
        assert!(matches!(shape(stream.write(&mut none, &[1.0])), ("copy to a buffer", e, g) if e == "0 elements" && g == "1"));
        // Elements without bytes.
        let units = stream.upload(&[(), ()]).unwrap();
        assert_eq!((units.len(), units.bytes()), (2, 0));
        assert_eq!(stream.download(&units).unwrap(), [(), ()]);
    });
}

#[test]
fn lengths_must_agree() {
    for_each_device("lengths_must_agree", |device| {
        let stream = device.stream().unwrap();
        let (mut three, four) = (stream.upload(&[1u8, 2, 3]).unwrap(), stream.upload(&[1u8; 4]).unwrap());
        assert_eq!(shape(stream.write(&mut three, &[0; 4])), ("copy to a buffer", "3 elements".into(), "4".into()));
        assert_eq!(shape(stream.read(&three, &mut [0; 2])), ("copy from a buffer", "3 elements".into(), "2".into()));
        assert_eq!(shape(stream.copy(&mut three, &four)), ("copy between buffers", "3 elements".into(), "4".into()));
        let mut pinned = device.pinned::<u8>(2).unwrap();
        assert_eq!(shape(stream.write_pinned(&mut three, &pinned)).0, "copy with pinned memory");
        assert_eq!(shape(stream.read_pinned(&three, &mut pinned)).0, "copy with pinned memory");
        assert_eq!(stream.download(&three).unwrap(), [1, 2, 3], "nothing was copied");
        assert!(matches!(shape(stream.alloc::<u64>(usize::MAX)), ("buffer", _, got) if got == usize::MAX.to_string()));
        assert!(matches!(shape(device.pinned::<u64>(usize::MAX)), ("buffer", ..)));
    });
}

#[test]
fn ranges_are_inside() {
    for_each_device("ranges_are_inside", |device| {
        let stream = device.stream().unwrap();
        let buffer = stream.zeroed::<u32>(10).unwrap();
        let start = buffer.ptr();
        assert_eq!(buffer.range(0..10).unwrap(), start);
        assert_eq!(buffer.range(3..7).unwrap(), start.offset(12));
        assert_eq!(buffer.range(10..10).unwrap(), start.offset(40));
        #[allow(clippy::reversed_empty_ranges)] // that is the mistake
        for wrong in [0..11, 11..11, 7..3, usize::MAX - 1..usize::MAX] {
            assert_eq!(shape(buffer.range(wrong)).0, "range of a buffer");
        }
    });
}

#[test]
fn parts_are_filled() {
    for_each_device("parts_are_filled", |device| {
        let stream = device.stream().unwrap();
        let mut buffer = stream.upload(&[1u16; 6]).unwrap();
        stream.fill_range(&mut buffer, 2..4, 2).unwrap();
        stream.fill_range(&mut buffer, 6..6, 3).unwrap();
        // SAFETY: the buffer's last two bytes.
        unsafe { stream.fill_raw(buffer.range(5..6).unwrap(), 0, 2).unwrap() };
        assert_eq!(stream.download(&buffer).unwrap(), [1, 1, 0x202, 0x202, 1, 0]);
        assert_eq!(shape(stream.fill_range(&mut buffer, 5..7, 0)).0, "range of a buffer");
    });
}

#[test]
fn too_much_memory_is_an_error() {
    for_each_device("too_much_memory_is_an_error", |device| {
        let stream = device.stream().unwrap();
        let bytes = 1u64 << 56;
        assert_eq!(stream.alloc::<u8>(bytes as usize).unwrap_err(), Error::OutOfMemory { bytes });
        // And the device goes on.
        assert_eq!(stream.download(&stream.upload(&[9u8]).unwrap()).unwrap(), [9]);
    });
}

#[test]
fn pinned_memory_is_copied_in_stream_order() {
    for_each_device("pinned_memory_is_copied_in_stream_order", |device| {
        let stream = device.stream().unwrap();
        let mut source = device.pinned::<u32>(1000).unwrap();
        let mut target = device.pinned::<u32>(1000).unwrap();
        assert_ne!(source.ptr(), DevicePtr(0));
        assert_eq!(source[..], [0; 1000], "it begins as zeros");
        source.iter_mut().enumerate().for_each(|(i, x)| *x = i as u32);
        let mut buffer = stream.alloc(1000).unwrap();
        stream.write_pinned(&mut buffer, &source).unwrap();
        stream.read_pinned(&buffer, &mut target).unwrap();
        // Both touch the slices, and wait for the copies then.
        source.fill(7);
        assert!(target.iter().enumerate().all(|(i, &x)| x == i as u32));
        stream.read_pinned(&buffer, &mut target).unwrap();
        drop(target);
        assert_eq!(stream.download(&buffer).unwrap(), (0..1000).collect::<Vec<u32>>());
    });
}

#[test]
fn memory_is_freed_behind_what_its_stream_was_given() {
    for_each_device("memory_is_freed_behind_what_its_stream_was_given", |device| {
        let stream = device.stream().unwrap();
        let mut out = device.pinned::<u32>(4096).unwrap();
        for round in 0..20 {
            let buffer = stream.upload(&vec![round; 4096]).unwrap();
            stream.read_pinned(&buffer, &mut out).unwrap();
            // Freed, and its address given out again, while the copy is only queued.
            drop(buffer);
            let other = stream.upload(&vec![u32::MAX; 4096]).unwrap();
            assert!(out.iter().all(|&x| x == round), "round {round}");
            drop(other);
        }
        stream.synchronize().unwrap();
    });
}

#[test]
fn memory_outlives_the_copies_of_other_streams() {
    for_each_device("memory_outlives_the_copies_of_other_streams", |device| {
        let (own, other) = (device.stream().unwrap(), device.stream().unwrap());
        let mut out = device.pinned::<u32>(512).unwrap();
        for round in 0..20u32 {
            // The other stream reads what the buffer's own stream has only queued, and the buffer goes before that is done.
            let buffer = own.upload(&vec![round; 512]).unwrap();
            other.read_pinned(&buffer, &mut out).unwrap();
            drop(buffer);
            let reused = own.upload(&vec![u32::MAX; 512]).unwrap();
            assert!(out.iter().all(|&x| x == round), "round {round}");
            drop(reused);
        }
    });
}

#[test]
fn everything_keeps_its_device() {
    for_each_device("everything_keeps_its_device", |device| {
        let again: Device = device.clone();
        assert_eq!(&again, device);
        let buffer = device.stream().unwrap().upload(&[1u16, 2]).unwrap();
        // The stream handle above is gone; the buffer holds the stream.
        assert_eq!(buffer.stream().download(&buffer).unwrap(), [1, 2]);
        assert_eq!(buffer.device(), device);
    });
}

#[test]
fn memory_of_another_device_is_refused() {
    let mut pairs = vec![("machine", emulated(1).remove(0), emulated(1).remove(0))];
    let mut two = emulated(2);
    pairs.push(("device", two.remove(0), two.remove(0)));
    if let Some(gpu) = gpu("memory_of_another_device_is_refused") {
        pairs.push(("back end", gpu, emulated(1).remove(0)));
    }
    for (other, a, b) in pairs {
        assert_ne!(a, b);
        let (on_a, on_b) = (a.stream().unwrap(), b.stream().unwrap());
        let mut of_a = on_a.upload(&[1u8, 2]).unwrap();
        let mut of_b = on_b.upload(&[3u8, 4]).unwrap();
        let mut pinned_b = b.pinned::<u8>(2).unwrap();
        let wrong = |result: Result<(), Error>, what: &str| match result {
            Err(Error::WrongDevice { what: said }) => assert_eq!(said, what, "{other}"),
            result => panic!("another {other}: {result:?}"),
        };
        wrong(on_a.write(&mut of_b, &[0, 0]), "the buffer");
        wrong(on_a.read(&of_b, &mut [0, 0]), "the buffer");
        wrong(on_a.fill(&mut of_b, 0), "the buffer");
        wrong(on_a.copy(&mut of_b, &of_a), "the buffer");
        wrong(on_a.copy(&mut of_a, &of_b), "the buffer");
        wrong(on_a.write_pinned(&mut of_a, &pinned_b), "the pinned memory");
        wrong(on_a.read_pinned(&of_a, &mut pinned_b), "the pinned memory");
        assert_eq!(on_b.download(&of_b).unwrap(), [3, 4], "another {other}");
    }
}

#[test]
fn threads_share_a_device() {
    for_each_device("threads_share_a_device", |device| {
        std::thread::scope(|scope| {
            for t in 0..4u32 {
                scope.spawn(move || {
                    let stream = device.stream().unwrap();
                    for i in 0..10 {
                        let buffer = stream.upload(&[t, i]).unwrap();
                        assert_eq!(stream.download(&buffer).unwrap(), [t, i]);
                    }
                });
            }
        });
    });
}
