//! Local memory of the threads of a warp.

use crate::fault::{Exec, Fault};
use crate::regs::{LANES, Lanes64, Mask, lanes};
use crate::report::Kind;

/// Bytes of local memory of a thread (CUDA C++ Programming Guide, technical specifications per compute capability).
pub const MOST_LOCAL: u32 = 512 * 1024;

/// Local memory of a warp's lanes: every lane has the same addresses. It grows to where it was touched.
#[derive(Debug, Default)]
pub struct LocalMemory {
    /// The 4 bytes at address 4i of lane l are in word 32i + l: lanes that access the same address, as they mostly do, find their words side
    /// by side.
    words: Vec<u32>,
    /// By address: the lanes in which something wrote the byte.
    defined: Vec<Mask>,
}

impl LocalMemory {
    /// Bytes it has grown to.
    fn size(&self) -> u64 {
        self.defined.len() as u64
    }

    /// Makes room up to an address.
    #[inline]
    fn reach(&mut self, end: u64) -> Exec {
        if end <= self.size() { Ok(()) } else { self.grow(end) }
    }

    #[cold]
    fn grow(&mut self, end: u64) -> Exec {
        if end > u64::from(MOST_LOCAL) {
            return Err(Fault::new(
                Kind::OutOfBounds,
                format!("a thread has {MOST_LOCAL} bytes of local memory; its activations need {end}"),
            ));
        }
        let size = (end as usize).next_multiple_of(64);
        self.words.resize(size / 4 * LANES, 0);
        self.defined.resize(size, 0);
        Ok(())
    }

    /// Makes room for an activation whose part begins at `base`, and forgets what was there, in the given lanes.
    pub fn enter(&mut self, base: u32, size: u32, mask: Mask) -> Exec {
        let end = u64::from(base) + u64::from(size);
        if end > u64::from(MOST_LOCAL) {
            return self.grow(end);
        }
        let known = self.defined.len();
        for byte in &mut self.defined[(base as usize).min(known)..(end as usize).min(known)] {
            *byte &= !mask;
        }
        Ok(())
    }

    fn byte(&self, lane: usize, address: usize) -> u8 {
        self.words[address / 4 * LANES + lane].to_le_bytes()[address % 4]
    }

    fn set_byte(&mut self, lane: usize, address: usize, value: u8) {
        let word = &mut self.words[address / 4 * LANES + lane];
        let mut bytes = word.to_le_bytes();
        bytes[address % 4] = value;
        *word = u32::from_le_bytes(bytes);
    }

    /// Reads a lane's bytes; whether all of them were written before.
    pub fn read(&mut self, lane: usize, address: u32, bytes: &mut [u8]) -> Exec<bool> {
        let start = address as usize;
        self.reach(start as u64 + bytes.len() as u64)?;
        let mut written = true;
        for (at, to) in (start..).zip(bytes) {
            *to = self.byte(lane, at);
            written &= self.defined[at] >> lane & 1 != 0;
        }
        Ok(written)
    }

    /// Writes a lane's bytes, as defined or not.
    pub fn write(&mut self, lane: usize, address: u32, bytes: &[u8], defined: bool) -> Exec {
        let start = address as usize;
        self.reach(start as u64 + bytes.len() as u64)?;
        for (at, &value) in (start..).zip(bytes) {
            self.set_byte(lane, at, value);
            self.defined[at] = self.defined[at] & !(1 << lane) | Mask::from(defined) << lane;
        }
        Ok(())
    }

    /// The words of all lanes at an address that is a multiple of 4 and has been reached.
    #[inline]
    fn row(&mut self, address: u64) -> &mut [u32; LANES] {
        let at = address as usize / 4 * LANES;
        self.words[at..].first_chunk_mut().expect("a row for each 4 bytes reached")
    }

    /// Whether all addresses, those of lanes that do not execute too, are the same one.
    #[inline]
    fn uniform(addresses: &Lanes64) -> bool {
        addresses.iter().fold(0, |bits, a| bits | a ^ addresses[0]) == 0
    }

    /// Loads 1, 2, 4 or 8 bytes by lane, zero-extended. Addresses are multiples of `bytes`. Lanes outside of `mask` get anything.
    pub fn load(&mut self, addresses: &Lanes64, bytes: u32, mask: Mask) -> Exec<Lanes64> {
        let mut values = [0; LANES];
        let Some(first) = lanes(mask).next() else { return Ok(values) };
        let at = addresses[first];
        if bytes >= 4 && Self::uniform(addresses) {
            self.reach(at.saturating_add(u64::from(bytes)))?;
            values = self.row(at).map(u64::from);
            if bytes == 8 {
                let high = self.row(at + 4);
                for (value, &high) in values.iter_mut().zip(high.iter()) {
                    *value |= u64::from(high) << 32;
                }
            }
            return Ok(values);
        }
        for lane in lanes(mask) {
            self.reach(addresses[lane].saturating_add(u64::from(bytes)))?;
            let mut word = [0; 8];
            for (at, to) in (addresses[lane] as usize..).zip(&mut word[..bytes as usize]) {
                *to = self.byte(lane, at);
            }
            values[lane] = u64::from_le_bytes(word);
        }
        Ok(values)
    }

    /// Stores the low 1, 2, 4 or 8 bytes of each value by lane; whether that changed anything. Addresses are multiples of `bytes`.
    pub fn store(&mut self, addresses: &Lanes64, bytes: u32, values: &Lanes64, mask: Mask) -> Exec<bool> {
        let Some(first) = lanes(mask).next() else { return Ok(false) };
        let at = addresses[first];
        let mut changed = 0;
        if bytes >= 4 && Self::uniform(addresses) {
            self.reach(at.saturating_add(u64::from(bytes)))?;
            for part in 0..bytes / 4 {
                let row = self.row(at + 4 * u64::from(part));
                for i in 0..LANES {
                    let off = ((mask >> i) & 1).wrapping_sub(1);
                    let new = row[i] & off | (values[i] >> (32 * part)) as u32 & !off;
                    changed |= row[i] ^ new;
                    row[i] = new;
                }
            }
            return Ok(changed != 0);
        }
        for lane in lanes(mask) {
            self.reach(addresses[lane].saturating_add(u64::from(bytes)))?;
            let word = values[lane].to_le_bytes();
            for (at, &value) in (addresses[lane] as usize..).zip(&word[..bytes as usize]) {
                changed |= u32::from(self.byte(lane, at) ^ value);
                self.set_byte(lane, at, value);
            }
        }
        Ok(changed != 0)
    }

    /// For each of these bytes, the same addresses for all lanes, the lanes in which it was written.
    pub fn written(&mut self, address: u32, len: usize) -> Exec<&[Mask]> {
        self.reach(u64::from(address) + len as u64)?;
        Ok(&self.defined[address as usize..][..len])
    }

    /// Sets that again, in the given lanes.
    pub fn set_written(&mut self, address: u32, bytes: &[Mask], mask: Mask) -> Exec {
        self.reach(u64::from(address) + bytes.len() as u64)?;
        for (known, &byte) in self.defined[address as usize..].iter_mut().zip(bytes) {
            *known = *known & !mask | byte & mask;
        }
        Ok(())
    }

    /// The lanes in which any of these bytes was written. Registers are defined or not as a whole: structs with holes, copied a word at a
    /// time, must stay usable.
    pub fn defined(&mut self, addresses: &Lanes64, bytes: u32, mask: Mask) -> Exec<Mask> {
        if Self::uniform(addresses) {
            self.reach(addresses[0].saturating_add(u64::from(bytes)))?;
            return Ok(self.defined[addresses[0] as usize..][..bytes as usize].iter().fold(0, |any, &byte| any | byte) & mask);
        }
        let mut result = 0;
        for lane in lanes(mask) {
            self.reach(addresses[lane].saturating_add(u64::from(bytes)))?;
            let at = addresses[lane] as usize;
            result |= self.defined[at..at + bytes as usize].iter().fold(0, |any, &byte| any | byte) & 1 << lane;
        }
        Ok(result)
    }

    /// Sets in which of `mask`'s lanes these bytes count as written.
    pub fn define(&mut self, addresses: &Lanes64, bytes: u32, value: Mask, mask: Mask) -> Exec {
        if Self::uniform(addresses) {
            self.reach(addresses[0].saturating_add(u64::from(bytes)))?;
            for byte in &mut self.defined[addresses[0] as usize..][..bytes as usize] {
                *byte = *byte & !mask | value & mask;
            }
            return Ok(());
        }
        for lane in lanes(mask) {
            self.reach(addresses[lane].saturating_add(u64::from(bytes)))?;
            let at = addresses[lane] as usize;
            for byte in &mut self.defined[at..at + bytes as usize] {
                *byte = *byte & !(1 << lane) | value & (1 << lane);
            }
        }
        Ok(())
    }

    /// A digest of everything in it: equal states have equal digests.
    pub fn digest(&self, mut hash: u64) -> u64 {
        for pair in self.words.chunks_exact(2) {
            let word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
            hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        hash
    }
}
