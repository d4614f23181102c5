//! The tensor memory accelerator: tensor maps ([`TensorMap`]), the bytes that a box of a tensor covers in global and shared memory
//! ([`Tile`]), and the element-wise reductions of bulk copies ([`Reduction`]).
//!
//! Pure functions on numbers and slices; what is asynchronous about these copies is not here. Facts are from the PTX ISA 9.0 manual (section
//! numbers below) and the CUDA driver API's description of `cuTensorMapEncodeTiled`.
//!
//! ```
//! use ptx_emu::tma::{DataType, Swizzle, TensorMap, Tiled};
//! // A [300][64] matrix of FP8 in rows of 64 bytes, read in boxes of 128 rows.
//! let map = TensorMap::tiled(&Tiled {
//!     data_type: DataType::Uint8,
//!     address: 0x1000,
//!     dims: &[64, 300],
//!     strides: &[64],
//!     box_dims: &[64, 128],
//!     element_strides: &[1, 1],
//!     swizzle: Swizzle::B64,
//!     ..Tiled::default()
//! })?;
//! let tile = map.tile(2048, &[0, 256], 64 * 1024)?;
//! assert_eq!(tile.bytes, 64 * 128); // what complete_tx counts, the rows beyond the tensor included
//! assert_eq!(tile.runs.iter().map(|run| run.bytes).sum::<u32>(), 64 * 44);
//! assert_eq!(tile.fills.iter().map(|fill| fill.bytes).sum::<u32>(), 64 * 84);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bulk;
mod map;
mod reduce;
mod tile;

pub use bulk::{BulkError, check_bulk_copy};
pub use map::{
    DataType, EncodedTensorMap, Fill, Interleave, L2Promotion, MAX_RANK, MapError, Swizzle, TENSOR_MAP_ALIGN, TENSOR_MAP_BYTES,
    TensorMap, Tiled,
};
pub use reduce::{ReduceError, ReduceOp, ReduceType, Reduction};
pub use tile::{FillRun, Run, SHARED_ALIGN, Tile, TileError};

#[cfg(test)]
mod tests;
