//! The bytes of a box: `cp.async.bulk.tensor` and `cp.reduce.async.bulk.tensor` in tiled mode (sections 5.5.3 and 5.5.7).

use super::map::{DataType, Fill, Interleave, MAX_RANK, TensorMap};

/// Alignment in bytes of the shared address of a tensor copy without interleave (section 5.5.7, and the CUDA programming guide on swizzles).
pub const SHARED_ALIGN: u32 = 128;

/// Consecutive bytes that a copy moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Address in global memory.
    pub global: u64,
    /// Address in shared memory, swizzled.
    pub shared: u32,
    /// How many.
    pub bytes: u32,
}

/// Consecutive bytes of shared memory that a load fills: they stand for elements outside the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillRun {
    /// Address in shared memory, swizzled; a multiple of the element's size.
    pub shared: u32,
    /// How many.
    pub bytes: u32,
}

/// A box of a tensor, as a copy sees it. Loads move `runs` from global to shared memory and fill `fills`; stores and reductions move `runs`
/// the other way and leave the outside alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    /// Elements inside the tensor, in the box's order; neighbours merged.
    pub runs: Vec<Run>,
    /// Elements outside the tensor, in the box's order; neighbours merged.
    pub fills: Vec<FillRun>,
    /// What `complete_tx` counts: all elements of the box, inside the tensor or not.
    pub bytes: u32,
}

/// Why a tensor copy is undefined or not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TileError {
    /// The instruction's dimension is not the tensor map's rank.
    #[error("the instruction has {got} coordinates, the tensor map has {rank} dimensions")]
    Coordinates {
        /// Dimensions of the map.
        rank: usize,
        /// Coordinates of the instruction.
        got: usize,
    },
    /// The shared address is not aligned.
    #[error("the shared address {address:#x} of a tensor copy must be a multiple of {SHARED_ALIGN}")]
    SharedAlign {
        /// The address.
        address: u32,
    },
    /// The box does not fit into shared memory.
    #[error("a box of {bytes} bytes at shared address {address:#x} ends beyond shared memory, which ends at {end:#x}")]
    SharedOutOfBounds {
        /// Where it begins.
        address: u32,
        /// What it covers.
        bytes: u64,
        /// Where shared memory ends.
        end: u32,
    },
    /// A mode that is not modelled.
    #[error("{0} tensor copies are not supported")]
    Unsupported(&'static str),
}

impl TileError {
    /// The `.im2col` family of modes (section 5.5.4).
    pub const IM2COL: Self = Self::Unsupported("im2col");
    /// The `.tile::gather4` and `.tile::scatter4` modes (section 5.5.3.4), of `sm_100`.
    pub const GATHER4: Self = Self::Unsupported("tile::gather4 and tile::scatter4");
}

impl TensorMap {
    /// The bytes of the box whose first element has these coordinates (dimension 0 first, as in the instruction), at `shared` in a
    /// shared memory of `shared_end` bytes.
    ///
    /// The box lies packed in shared memory, dimension 0 innermost, then swizzled. Where its inner dimension is narrower than the
    /// swizzle, rows begin a whole span apart (the CUDA programming guide: shared memory must "accommodate the full swizzle width").
    ///
    /// # Errors
    /// [`TileError`].
    pub fn tile(&self, shared: u32, coordinates: &[i32], shared_end: u32) -> Result<Tile, TileError> {
        if coordinates.len() != self.rank {
            return Err(TileError::Coordinates { rank: self.rank, got: coordinates.len() });
        }
        if self.interleave != Interleave::None {
            return Err(TileError::Unsupported("interleaved"));
        }
        if matches!(self.data_type, DataType::Tfloat32 | DataType::Tfloat32Ftz) {
            return Err(TileError::Unsupported("TFLOAT32"));
        }
        if !shared.is_multiple_of(SHARED_ALIGN) {
            return Err(TileError::SharedAlign { address: shared });
        }
        let size = self.element_bytes();
        let counts: [u64; MAX_RANK] = std::array::from_fn(|i| u64::from(self.box_dims[i].div_ceil(self.element_strides[i])));
        let row_bytes = self.box_dims[0] * size;
        let pitch = self.swizzle.span().unwrap_or(row_bytes);
        let rows: u64 = counts[1..].iter().product();
        let covered = rows * u64::from(pitch);
        if u64::from(shared) + covered > u64::from(shared_end) {
            return Err(TileError::SharedOutOfBounds { address: shared, bytes: covered, end: shared_end });
        }
        let mut builder = Builder { map: self, runs: Vec::new(), fills: Vec::new() };
        // Of the inner dimension: the part of the box inside the tensor, in elements from the box's start.
        let first = coordinates.first().map_or(0, |&c| i64::from(c));
        let width = i64::from(self.box_dims[0]);
        let begin = (-first).clamp(0, width);
        let end = (self.dims[0] as i64 - first).clamp(begin, width);
        let mut index = [0u64; MAX_RANK];
        for row in 0..rows {
            let mut global = self.address;
            let mut inside = begin < end;
            for i in 1..self.rank {
                let at = i64::from(coordinates[i]) + (index[i] * u64::from(self.element_strides[i])) as i64;
                match u64::try_from(at) {
                    // Inside, so below the tensor's end, which fits into the address space.
                    Ok(at) if at < self.dims[i] => global = global.wrapping_add(at * self.strides[i]),
                    _ => inside = false,
                }
            }
            let base = shared + row as u32 * pitch;
            if inside {
                let (begin, end) = (begin as u32 * size, end as u32 * size);
                // `first` is negative only where `begin` makes up for it.
                let global = global.wrapping_add((first * i64::from(size) + i64::from(begin)) as u64);
                builder.fill(base, begin);
                builder.copy(global, base + begin, end - begin);
                builder.fill(base + end, row_bytes - end);
            } else {
                builder.fill(base, row_bytes);
            }
            for i in 1..MAX_RANK {
                index[i] += 1;
                if index[i] < counts[i] {
                    break;
                }
                index[i] = 0;
            }
        }
        Ok(Tile { runs: builder.runs, fills: builder.fills, bytes: rows as u32 * row_bytes })
    }

    /// Writes the fill pattern over the bytes of a [`FillRun`].
    pub fn fill(&self, bytes: &mut [u8]) {
        let nan: &[u8] = match self.data_type {
            DataType::Float16 | DataType::Bfloat16 => &[0xff, 0x7f],
            DataType::Float64 => &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            _ => &[0xff, 0xff, 0xff, 0x7f],
        };
        if self.fill == Fill::Nan {
            bytes.iter_mut().zip(nan.iter().cycle()).for_each(|(byte, pattern)| *byte = *pattern);
        } else {
            bytes.fill(0);
        }
    }

    /// What a load does to the values it moves: `FLOAT32_FTZ` flushes subnormals to zero, keeping the sign; other types are copied.
    ///
    /// `bytes` are whole elements of a [`Run`].
    pub fn convert(&self, bytes: &mut [u8]) {
        if self.data_type == DataType::Float32Ftz {
            for element in bytes.chunks_exact_mut(4) {
                if element[3] & 0x7f == 0 && element[2] & 0x80 == 0 {
                    element[..3].fill(0);
                    element[3] &= 0x80;
                }
            }
        }
    }
}

struct Builder<'a> {
    map: &'a TensorMap,
    runs: Vec<Run>,
    fills: Vec<FillRun>,
}

impl Builder<'_> {
    /// Splits bytes where the swizzle breaks them: calls `each` with offset, swizzled address and length.
    fn split(&self, shared: u32, bytes: u32, mut each: impl FnMut(u32, u32, u32)) {
        if self.map.swizzle.span().is_none() {
            if bytes > 0 {
                each(0, shared, bytes);
            }
            return;
        }
        let mut offset = 0;
        while offset < bytes {
            let at = shared + offset;
            let length = (16 - at % 16).min(bytes - offset);
            each(offset, self.map.swizzle.apply(at), length);
            offset += length;
        }
    }

    fn copy(&mut self, global: u64, shared: u32, bytes: u32) {
        let mut runs = std::mem::take(&mut self.runs);
        self.split(shared, bytes, |offset, shared, bytes| {
            let global = global.wrapping_add(u64::from(offset));
            match runs.last_mut() {
                Some(last) if last.shared + last.bytes == shared && last.global.wrapping_add(u64::from(last.bytes)) == global => {
                    last.bytes += bytes;
                }
                _ => runs.push(Run { global, shared, bytes }),
            }
        });
        self.runs = runs;
    }

    fn fill(&mut self, shared: u32, bytes: u32) {
        let mut fills = std::mem::take(&mut self.fills);
        self.split(shared, bytes, |_, shared, bytes| match fills.last_mut() {
            Some(last) if last.shared + last.bytes == shared => last.bytes += bytes,
            _ => fills.push(FillRun { shared, bytes }),
        });
        self.fills = fills;
    }
}
