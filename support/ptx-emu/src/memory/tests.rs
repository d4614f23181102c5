use super::*;
use std::collections::HashSet;

const GIB: u64 = 1 << 30;

#[test]
fn addresses_lie_in_the_space_of_their_device() {
    let memory = Memory::new(3, false);
    for device in 0..3 {
        let address = memory.alloc(device, 100).unwrap();
        assert_eq!(address >> 40, u64::from(device) + 1);
        assert_eq!(address % 256, 0);
        assert_ne!(address % 512, 0, "nothing may count on more than 256");
    }
    assert_eq!(memory.alloc_pinned(100).unwrap() >> 40, 65);
    assert_eq!(memory.alloc(3, 100), Err(MemoryError::NoDevice { device: 3, devices: 3 }));
    assert_eq!(memory.alloc(0, 0), Err(MemoryError::ZeroSize));
    assert_eq!(memory.alloc(0, 2 << 40), Err(MemoryError::OutOfMemory { bytes: 2 << 40 }));
    for align in [512, 4096, 1 << 20] {
        let address = memory.alloc_with(1, 8, &AllocOptions { align, ..AllocOptions::default() }).unwrap();
        assert_eq!(address % align, 0);
    }
    for align in [3, 1 << 21] {
        let options = AllocOptions { align, ..AllocOptions::default() };
        assert_eq!(memory.alloc_with(1, 8, &options), Err(MemoryError::Alignment { align }));
    }
}

#[test]
fn both_ends_of_an_allocation_are_guarded() {
    let memory = Memory::new(1, true);
    let sizes = [1, 255, 256, 257, 4096, 5000];
    let addresses: Vec<u64> = sizes.iter().map(|&s| memory.alloc(0, s).unwrap()).collect();
    for (&address, &size) in addresses.iter().zip(&sizes) {
        memory.write(address, &vec![1; size as usize]).unwrap();
        assert_eq!(memory.write(address + size - 1, &[1]), Ok(()));
        assert_eq!(memory.write(address - 1, &[1]), Err(MemoryError::NoAllocation { address: address - 1 }));
        assert_eq!(memory.write(address + size, &[1]), Err(MemoryError::NoAllocation { address: address + size }));
        let beyond = MemoryError::OutOfRange { address: address + size - 1, bytes: 2, base: address, size };
        assert_eq!(memory.read(address + size - 1, &mut [0; 2]), Err(beyond));
    }
    assert_eq!(memory.read(0, &mut [0]), Err(MemoryError::Null));
    assert_eq!(memory.read(0, &mut []), Ok(()), "no bytes need no memory");
    assert_eq!(memory.read(u64::MAX, &mut [0; 2]), Err(MemoryError::NoAllocation { address: u64::MAX }));
}

#[test]
fn what_was_freed_is_named_and_not_given_again() {
    let memory = Memory::new(1, false);
    let mut seen = HashSet::new();
    for _ in 0..100 {
        let address = memory.alloc(0, 1000).unwrap();
        assert!(seen.insert(address));
        memory.free(address).unwrap();
        let error = MemoryError::Freed { address: address + 999, base: address, size: 1000 };
        assert_eq!(memory.read(address + 999, &mut [0]), Err(error));
        assert_eq!(memory.free(address), Err(MemoryError::Freed { address, base: address, size: 1000 }));
        assert_eq!(memory.read(address + 1000, &mut [0]), Err(MemoryError::NoAllocation { address: address + 1000 }));
    }
    let address = memory.alloc(0, 1000).unwrap();
    assert_eq!(memory.free(address + 1), Err(MemoryError::NotABase { address: address + 1, base: address }));
    assert_eq!(memory.free(0), Err(MemoryError::Null));
}

#[test]
fn the_address_space_is_used_again_when_it_is_used_up() {
    let memory = Memory::new(1, false);
    let keep = memory.alloc(0, 16).unwrap();
    // 3 TiB in all, 4 GiB at a time, which the system commits none of.
    for i in 0..768 {
        let address = memory.alloc(0, 4 * GIB).unwrap();
        assert!(address > keep && address + 4 * GIB <= 2 << 40, "allocation {i} at {address:#x}");
        memory.write(address + 4 * GIB - 1, &[7]).unwrap();
        memory.free(address).unwrap();
    }
    memory.write(keep, &[1; 16]).unwrap();
    assert_eq!(memory.usage(0).unwrap(), Usage { current: 16, peak: 16 + 4 * GIB });
}

#[test]
fn bytes_come_back_at_every_alignment() {
    let memory = Memory::new(2, true);
    let a = memory.alloc(0, 10_000).unwrap();
    let b = memory.alloc(1, 10_000).unwrap();
    let data: Vec<u8> = (0..9000u32).map(|i| (i * 7 + i / 256) as u8).collect();
    for from in 0..9 {
        for len in [0, 1, 5, 8, 13, 64, 4097] {
            memory.fill(b, 0xee, 10_000).unwrap();
            memory.write(a + from, &data[..len]).unwrap();
            memory.copy(b + 3, a + from, len as u64).unwrap();
            let mut back = vec![0; len + 2];
            memory.read(b + 2, &mut back).unwrap();
            assert_eq!((back[0], back[len + 1]), (0xee, 0xee));
            assert_eq!(&back[1..=len], &data[..len], "{len} bytes at {from}");
        }
    }
}

#[test]
fn overlapping_copies_are_as_if_through_a_buffer() {
    let memory = Memory::new(1, true);
    let data: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
    for (to, from) in [(0, 5), (5, 0), (0, 4096), (4096, 0), (1, 9000), (9000, 1), (10, 10)] {
        let a = memory.alloc(0, 20_000).unwrap();
        // Only every other kilobyte is defined.
        memory.write(a, &data).unwrap();
        let range = memory.range(a, 20_000).unwrap();
        for k in (0..19).step_by(2) {
            range.undefine(k * 1000, 1000);
        }
        let state = |at: usize| range.first_undefined(at as u64, 1).is_none();
        let before: Vec<bool> = (0..20_000).map(state).collect();
        memory.copy(a + to, a + from, 10_000).unwrap();
        let (to, from) = (to as usize, from as usize);
        let (mut expected, mut expected_state) = (data.clone(), before.clone());
        expected.copy_within(from..from + 10_000, to);
        expected_state.copy_within(from..from + 10_000, to);
        let mut back = vec![0; 20_000];
        memory.read(a, &mut back).unwrap();
        assert!(back == expected, "{from} to {to}");
        assert!((0..20_000).map(state).eq(expected_state), "{from} to {to}");
    }
}

#[test]
fn definedness_is_kept_by_the_byte() {
    let memory = Memory::new(1, true);
    let size = 20_000;
    let a = memory.alloc(0, size).unwrap();
    let range = memory.range(a, size).unwrap();
    let mut model = vec![false; size as usize];
    let mut state = 1u64;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for step in 0..4000 {
        let len = if step % 3 == 0 { next(9000) } else { next(70) };
        let at = next(size - len);
        let part = at as usize..(at + len) as usize;
        match next(5) {
            0 => {
                range.undefine(at, len);
                model[part].fill(false);
            }
            1 | 2 => {
                range.define(at, len);
                model[part].fill(true);
            }
            _ => {
                let expected = model[part].iter().position(|&d| !d).map(|i| at + i as u64);
                assert_eq!(range.first_undefined(at, len), expected, "step {step}: {len} at {at}");
            }
        }
    }
    assert_eq!(Memory::new(1, false).alloc(0, 8).map(|_| ()), Ok(()));
}

#[test]
fn views_see_allocations_peers_and_frees() {
    let memory = Memory::new(2, false);
    let mut view = View::default();
    let mut find = |device, site, address| view.find(&memory, device, site, address).map(Allocation::base);
    assert!(find(0, 0, 0x1000).is_none());
    let addresses: Vec<u64> = (0..50).map(|i| memory.alloc(i % 2, 100 + u64::from(i)).unwrap()).collect();
    for (i, &address) in addresses.iter().enumerate() {
        let device = i as u32 % 2;
        let last = address + 99 + i as u64;
        for site in [3, 3 + 64, i as u32] {
            assert_eq!(find(device, site, address), Some(address));
            assert_eq!(find(device, site, last), Some(address));
            assert!(find(device, site, last + 1).is_none());
            assert!(find(device, site, address - 1).is_none());
            assert!(find(1 - device, site, address).is_none(), "no peer access");
        }
    }
    memory.enable_peer(0, 1).unwrap();
    assert!(find(0, 0, addresses[1]).is_some());
    assert!(find(1, 0, addresses[0]).is_none());
    memory.disable_peer(0, 1).unwrap();
    assert!(find(0, 0, addresses[1]).is_none());
    let pinned = memory.alloc_pinned(10).unwrap();
    assert!(find(0, 0, pinned).is_some() && find(1, 0, pinned).is_some());
    memory.free(addresses[2]).unwrap();
    assert!(find(0, 0, addresses[2]).is_none());
    assert!(find(0, 0, addresses[4]).is_some());
}

#[test]
fn explanations_say_what_is_there() {
    let memory = Memory::new(2, false);
    let options = AllocOptions { name: Some("table".into()), ..AllocOptions::default() };
    let a = memory.alloc_with(0, 100, &options).unwrap();
    let freed = memory.alloc(0, 64).unwrap();
    memory.free(freed).unwrap();
    let at = |address, bytes| memory.explain(0, address, bytes);
    assert_eq!(at(a + 100, 4), format!("just past the end of the allocation of 100 bytes at {a:#x} (table) on device 0"));
    assert_eq!(at(a + 107, 4), format!("7 bytes past the end of the allocation of 100 bytes at {a:#x} (table) on device 0"));
    assert_eq!(at(a - 4, 4), format!("4 bytes before the allocation of 100 bytes at {a:#x} (table) on device 0"));
    assert_eq!(
        at(a + 98, 4),
        format!("2 of 4 bytes beyond the end of the allocation of 100 bytes at {a:#x} (table) on device 0")
    );
    assert_eq!(at(freed + 8, 4), format!("byte 8 of an allocation of 64 bytes at {freed:#x} that was freed"));
    assert_eq!(at(16, 4), "a null pointer");
    assert_eq!(at(1 << 45, 4), "nowhere near an allocation");
    assert!(memory.explain(1, a, 4).contains("device 1 has no peer access to it"));
    assert_eq!(
        memory.info(a + 5).unwrap(),
        AllocationInfo { base: a, size: 100, device: Some(0), constant: false, name: Some("table".into()) }
    );
}

#[test]
fn pinned_memory_is_the_hosts() {
    let memory = Memory::new(1, true);
    let a = memory.alloc_pinned(16).unwrap();
    let pointer = memory.pinned_pointer(a + 4).unwrap();
    // SAFETY: 12 bytes of the allocation are left, and nobody else uses it.
    unsafe { pointer.write(9) };
    let mut back = [0; 5];
    memory.read(a, &mut back).unwrap();
    assert_eq!(back, [0, 0, 0, 0, 9]);
    assert_eq!(memory.range(a, 16).unwrap().first_undefined(0, 16), None);
    let b = memory.alloc(0, 16).unwrap();
    assert_eq!(memory.pinned_pointer(b), Err(MemoryError::NotPinned { address: b }));
    assert_eq!(memory.pinned_usage().current, 16);
}

#[test]
fn shared_memory_keeps_which_bytes_are_defined() {
    let mut shared = SharedMemory::new(2000, true);
    assert!(shared.write(1990, &[1; 10]) && !shared.write(1991, &[1; 10]) && !shared.write(u32::MAX, &[1]));
    assert!(!shared.write(1023, &[1; 2]), "the first 1024 bytes are nobody's");
    assert_eq!(shared.first_undefined(1900, 100), Some(1900));
    assert_eq!(shared.first_undefined(1990, 10), None);
    assert_eq!(shared.first_undefined(1985, 10), Some(1985));
    shared.undefine(1995, 1);
    assert_eq!(shared.first_undefined(1990, 10), Some(1995));
    shared.define(0, u64::MAX);
    assert_eq!(shared.first_undefined(1024, 976), None);
    assert!(shared.holds(1024, 976) && !shared.holds(1023, 1) && !shared.holds(1025, 976) && !shared.holds(u64::MAX, 1));
    assert_eq!(shared.bytes(1998, 2), Some(&[1, 1][..]));
    assert_eq!(shared.bytes(1998, 3), None);
    assert!(!SharedMemory::new(2000, false).tracked());
    assert_eq!(SharedMemory::new(2000, false).first_undefined(1024, 976), None);
}

#[test]
fn local_memory_is_each_lanes_own() {
    let mut local = LocalMemory::default();
    let same = [64u64; 32];
    let values: [u64; 32] = std::array::from_fn(|i| 0x0102_0304_0506_0708 + i as u64);
    for bytes in [1, 2, 4, 8] {
        let keep = u64::MAX >> (64 - 8 * bytes);
        assert!(local.store(&same, bytes, &values, 0x0fff_0001).unwrap());
        assert!(!local.store(&same, bytes, &values, 0x0fff_0001).unwrap(), "the same values again");
        let loaded = local.load(&same, bytes, u32::MAX).unwrap();
        for lane in [0, 16, 27] {
            assert_eq!(loaded[lane], values[lane] & keep, "{bytes} bytes of lane {lane}");
        }
        assert_eq!(loaded[31], 0);
        let spread: [u64; 32] = std::array::from_fn(|i| 8 * (i as u64 % 5) + 128);
        local.store(&spread, bytes, &values, u32::MAX).unwrap();
        assert_eq!(local.load(&spread, bytes, u32::MAX).unwrap(), values.map(|v| v & keep));
    }
    assert!(local.read(3, 1000, &mut [0; 4]).is_ok_and(|written| !written));
    local.write(3, 999, &[1, 2, 3, 4, 5, 6], true).unwrap();
    local.write(3, 1001, &[7], false).unwrap();
    let mut back = [0; 6];
    assert!(!local.read(3, 999, &mut back).unwrap());
    assert_eq!(back, [1, 2, 7, 4, 5, 6]);
    assert!(local.read(3, 1002, &mut back[..3]).unwrap());
    assert!(!local.read(4, 1002, &mut back[..3]).unwrap(), "another lane");
    let at = [1000u64; 32];
    assert_eq!(local.defined(&at, 1, u32::MAX).unwrap(), 1 << 3);
    local.define(&at, 4, 0xff, 0x0f).unwrap();
    assert_eq!(local.defined(&at, 4, u32::MAX).unwrap(), 0x0f);
    local.enter(1002, 1, 0b0110).unwrap();
    assert_eq!(local.written(1000, 4).unwrap(), [0b1111, 0b1111, 0b1001, 0b1111]);
    assert_eq!(local.defined(&at, 4, u32::MAX).unwrap(), 0b1111, "other bytes are still defined");
    assert_eq!(local.defined(&[1002; 32], 1, u32::MAX).unwrap(), 0b1001);
    local.set_written(1000, &[0, 3, 4, 0], 0b0110).unwrap();
    assert_eq!(local.written(1000, 4).unwrap(), [0b1001, 0b1011, 0b1101, 0b1001]);
    assert!(local.enter(0, 512 * 1024, 1).is_ok());
    assert!(local.enter(512 * 1024 - 16, 32, 1).is_err());
    assert!(local.store(&[512 * 1024 - 4; 32], 8, &values, 1).is_err());
    assert!(local.load(&[u64::MAX - 7; 32], 8, 1).is_err());
}
