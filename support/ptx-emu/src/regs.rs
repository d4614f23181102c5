//! Registers of a warp: 32 lanes side by side.
//!
//! A register is stored lane by lane in slots of 32 x 32 bits: one slot for 8- to 32-bit registers (kept zero-extended), two
//! adjacent ones, read as `[u64; 32]`, for 64-bit registers, four (two such pairs, low half first) for 128-bit ones. Predicates are bit
//! masks, one bit a lane. Each activation of a function has a window of its own.

use crate::isa::{Reg, Width};

/// Lanes of a warp.
pub const LANES: usize = 32;
/// A set of lanes: bit i is lane i.
pub type Mask = u32;
/// A 32-bit value per lane.
pub type Lanes32 = [u32; LANES];
/// A 64-bit value per lane.
pub type Lanes64 = [u64; LANES];

const SLOT: usize = LANES / 2; // in u64

/// The lanes of a mask, in order.
pub fn lanes(mask: Mask) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(lane)
    })
}

/// The register file of a warp.
#[derive(Debug, Default, Clone)]
pub struct RegFile {
    words: Vec<u64>,
    preds: Vec<Mask>,
    /// Per slot (only a register's first counts): the lanes in which something wrote it.
    defined: Vec<Mask>,
    preds_defined: Vec<Mask>,
    base: usize,
    pred_base: usize,
}

impl RegFile {
    /// Selects the window that starts at these slots and makes room for it.
    pub fn window(&mut self, base: usize, slots: usize, pred_base: usize, preds: usize) {
        self.base = base;
        self.pred_base = pred_base;
        let (slots, preds) = (base + slots, pred_base + preds);
        if self.defined.len() < slots {
            self.defined.resize(slots, 0);
            self.words.resize(slots * SLOT, 0);
        }
        if self.preds.len() < preds {
            self.preds.resize(preds, 0);
            self.preds_defined.resize(preds, 0);
        }
    }

    /// Marks the window's registers as unwritten in these lanes: a new activation.
    pub fn forget(&mut self, slots: usize, preds: usize, mask: Mask) {
        self.defined[self.base..self.base + slots].iter_mut().for_each(|d| *d &= !mask);
        self.preds_defined[self.pred_base..self.pred_base + preds].iter_mut().for_each(|d| *d &= !mask);
    }

    fn at(&self, slot: u32) -> usize {
        (self.base + slot as usize) * SLOT
    }

    /// The lanes of a slot as 32-bit values.
    pub fn r32(&self, slot: u32) -> &Lanes32 {
        let at = self.at(slot);
        bytemuck::cast_ref(<&[u64; SLOT]>::try_from(&self.words[at..at + SLOT]).expect("a slot"))
    }

    /// The same, to write.
    pub fn r32_mut(&mut self, slot: u32) -> &mut Lanes32 {
        let at = self.at(slot);
        bytemuck::cast_mut(<&mut [u64; SLOT]>::try_from(&mut self.words[at..at + SLOT]).expect("a slot"))
    }

    /// The lanes of two adjacent slots as 64-bit values.
    pub fn r64(&self, slot: u32) -> &Lanes64 {
        let at = self.at(slot);
        <&Lanes64>::try_from(&self.words[at..at + 2 * SLOT]).expect("two slots")
    }

    /// The same, to write.
    pub fn r64_mut(&mut self, slot: u32) -> &mut Lanes64 {
        let at = self.at(slot);
        <&mut Lanes64>::try_from(&mut self.words[at..at + 2 * SLOT]).expect("two slots")
    }

    /// Low 32 bits of a register of any width up to 64.
    pub fn get32(&self, reg: Reg) -> Lanes32 {
        match reg.width {
            Width::W64 | Width::W128 => {
                let wide = self.r64(reg.slot);
                std::array::from_fn(|i| wide[i] as u32)
            }
            _ => *self.r32(reg.slot),
        }
    }

    /// A register of any width as 64 bits: zero-extended, or the low half of 128.
    pub fn get64(&self, reg: Reg) -> Lanes64 {
        match reg.width {
            Width::W64 | Width::W128 => *self.r64(reg.slot),
            _ => {
                let narrow = self.r32(reg.slot);
                std::array::from_fn(|i| u64::from(narrow[i]))
            }
        }
    }

    /// Writes a register of up to 32 bits (a wider one is zero-extended to) in the given lanes.
    pub fn set32(&mut self, reg: Reg, values: &Lanes32, mask: Mask) {
        match reg.width {
            Width::W8 => self.put32(reg.slot, &values.map(|v| v & 0xff), mask),
            Width::W16 => self.put32(reg.slot, &values.map(|v| v & 0xffff), mask),
            Width::W32 => self.put32(reg.slot, values, mask),
            Width::W64 | Width::W128 => self.set64(reg, &values.map(u64::from), mask),
        }
    }

    /// Writes a register of any width up to 64 bits in the given lanes, keeping the low bits; the upper half of a 128-bit one
    /// becomes 0.
    pub fn set64(&mut self, reg: Reg, values: &Lanes64, mask: Mask) {
        match reg.width {
            Width::W64 => self.put64(reg.slot, values, mask),
            Width::W128 => {
                self.put64(reg.slot, values, mask);
                self.put64(reg.slot + 2, &[0; LANES], mask);
            }
            _ => self.set32(reg, &values.map(|v| v as u32), mask),
        }
    }

    /// Writes a 128-bit register in the given lanes; of a narrower one the low bits.
    pub fn set128(&mut self, reg: Reg, low: &Lanes64, high: &Lanes64, mask: Mask) {
        self.set64(reg, low, mask);
        if reg.width == Width::W128 {
            self.put64(reg.slot + 2, high, mask);
        }
    }

    fn put32(&mut self, slot: u32, values: &Lanes32, mask: Mask) {
        let to = self.r32_mut(slot);
        if mask == Mask::MAX {
            *to = *values;
        } else {
            for i in 0..LANES {
                let keep = ((mask >> i) & 1).wrapping_sub(1); // all ones where the lane is off
                to[i] = (to[i] & keep) | (values[i] & !keep);
            }
        }
    }

    fn put64(&mut self, slot: u32, values: &Lanes64, mask: Mask) {
        let to = self.r64_mut(slot);
        if mask == Mask::MAX {
            *to = *values;
        } else {
            for i in 0..LANES {
                let keep = u64::from((mask >> i) & 1).wrapping_sub(1);
                to[i] = (to[i] & keep) | (values[i] & !keep);
            }
        }
    }

    /// A predicate register.
    pub fn pred(&self, index: u32) -> Mask {
        self.preds[self.pred_base + index as usize]
    }

    /// Writes a predicate register in the given lanes.
    pub fn set_pred(&mut self, index: u32, value: Mask, mask: Mask) {
        let to = &mut self.preds[self.pred_base + index as usize];
        *to = (*to & !mask) | (value & mask);
    }

    /// The lanes in which a register (a predicate when [`crate::isa::PRED_BIT`] is set) was written.
    pub fn defined(&self, key: u32) -> Mask {
        if key & crate::isa::PRED_BIT != 0 {
            self.preds_defined[self.pred_base + (key & !crate::isa::PRED_BIT) as usize]
        } else {
            self.defined[self.base + key as usize]
        }
    }

    /// Sets which of `mask`'s lanes count as written.
    pub fn define(&mut self, key: u32, value: Mask, mask: Mask) {
        let to = if key & crate::isa::PRED_BIT != 0 {
            &mut self.preds_defined[self.pred_base + (key & !crate::isa::PRED_BIT) as usize]
        } else {
            &mut self.defined[self.base + key as usize]
        };
        *to = (*to & !mask) | (value & mask);
    }

    /// The slot of a register in the whole file, whatever the window: what tells registers of different activations apart.
    pub fn absolute(&self, key: u32) -> usize {
        self.base + key as usize
    }

    /// A digest of everything in the window up to here: equal states have equal digests.
    pub fn digest(&self, mut hash: u64) -> u64 {
        for &word in &self.words {
            hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        for &pred in &self.preds {
            hash = (hash.rotate_left(5) ^ u64::from(pred)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        hash
    }
}
