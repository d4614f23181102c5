//! Tensor maps: what TMA knows of a tensor in global memory.

use crate::{DevicePtr, Error, Result};

/// Element type of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // the names say it
pub enum TensorType {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F64,
    Bf16,
    Tf32,
}

impl TensorType {
    /// Bytes of an element.
    pub fn bytes(self) -> u32 {
        match self {
            TensorType::U8 => 1,
            TensorType::U16 | TensorType::F16 | TensorType::Bf16 => 2,
            TensorType::U32 | TensorType::S32 | TensorType::F32 | TensorType::Tf32 => 4,
            TensorType::U64 | TensorType::S64 | TensorType::F64 => 8,
        }
    }
}

/// How a box's rows are permuted in shared memory, so that neither copies nor matrix instructions run into bank conflicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)] // the names say it
pub enum Swizzle {
    #[default]
    None,
    B32,
    B64,
    B128,
}

/// Bytes that L2 fetches at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)] // the names say it
pub enum L2Promotion {
    #[default]
    None,
    B64,
    B128,
    B256,
}

/// What elements outside of the tensor read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutOfBoundsFill {
    /// Zero.
    #[default]
    Zero,
    /// A special NaN (floating-point types only).
    Nan,
}

/// Description of a tiled tensor map, of rank 1 to 5. Dimension 0 is the innermost, with stride 1 element.
///
/// Rules of the hardware (CUDA driver API, `cuTensorMapEncodeTiled`): `address` is a multiple of 16; `strides` (bytes, of dimensions 1
/// and up: one fewer than `dims`) are multiples of 16 below 2^40; `dims` are 1 to 2^32; box dimensions are 1 to 256;
/// the box's innermost bytes are a multiple of 16 and, with a swizzle, at most its span; element strides are 1 to 8; NaN outside
/// only for types that have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMapDesc {
    /// Element type.
    pub ty: TensorType,
    /// Device address of element 0.
    pub address: DevicePtr,
    /// Extents in elements.
    pub dims: Vec<u64>,
    /// Strides in bytes of dimensions 1 and up.
    pub strides: Vec<u64>,
    /// Extents of the box that one copy moves.
    pub box_dims: Vec<u32>,
    /// Steps between the elements of a box; empty for 1 in every dimension.
    pub element_strides: Vec<u32>,
    /// Permutation in shared memory.
    pub swizzle: Swizzle,
    /// L2 fetch size.
    pub l2_promotion: L2Promotion,
    /// What lies outside.
    pub fill: OutOfBoundsFill,
}

impl TensorMapDesc {
    /// A row-major matrix [rows, cols] with this distance in bytes from one row to the next, copied in boxes of `box_rows` by `box_cols`.
    pub fn matrix(
        ty: TensorType,
        address: DevicePtr,
        [rows, cols]: [u64; 2],
        row_bytes: u64,
        [box_rows, box_cols]: [u32; 2],
    ) -> Self {
        TensorMapDesc {
            ty,
            address,
            dims: vec![cols, rows],
            strides: vec![row_bytes],
            box_dims: vec![box_cols, box_rows],
            element_strides: vec![],
            swizzle: Swizzle::None,
            l2_promotion: L2Promotion::None,
            fill: OutOfBoundsFill::Zero,
        }
    }

    /// Whether it keeps the rules above; [`Error::TensorMap`](crate::Error::TensorMap) names the first that it breaks. Encoding it checks this first, on every
    /// back end.
    pub fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::TensorMap { message });
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) {
            return fail(format!("{rank} dimensions: 1 to 5"));
        }
        if self.strides.len() != rank - 1 {
            return fail(format!("{} strides for {rank} dimensions: one fewer than dimensions", self.strides.len()));
        }
        if self.box_dims.len() != rank {
            return fail(format!("a box of {} dimensions in a tensor of {rank}", self.box_dims.len()));
        }
        if !self.element_strides.is_empty() && self.element_strides.len() != rank {
            return fail(format!("{} element strides for {rank} dimensions: none or one each", self.element_strides.len()));
        }
        if !self.address.0.is_multiple_of(16) {
            return fail(format!("address {:#x} is not a multiple of 16", self.address.0));
        }
        if let Some(dim) = self.dims.iter().find(|&&d| d == 0 || d > 1 << 32) {
            return fail(format!("a dimension of {dim}: 1 to 2^32"));
        }
        if let Some(stride) = self.strides.iter().find(|&&s| !s.is_multiple_of(16) || s >= 1 << 40) {
            return fail(format!("a stride of {stride} bytes: a multiple of 16 below 2^40"));
        }
        if let Some(dim) = self.box_dims.iter().find(|&&d| d == 0 || d > 256) {
            return fail(format!("a box dimension of {dim}: 1 to 256"));
        }
        if let Some(stride) = self.element_strides.iter().find(|&&s| s == 0 || s > 8) {
            return fail(format!("an element stride of {stride}: 1 to 8"));
        }
        let inner = self.box_dims.first().map_or(0, |&d| d * self.ty.bytes());
        if !inner.is_multiple_of(16) {
            return fail(format!("{inner} bytes along the box's innermost dimension: a multiple of 16"));
        }
        let span = match self.swizzle {
            Swizzle::None => u32::MAX,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        };
        if inner > span {
            return fail(format!("{inner} bytes along the box's innermost dimension: at most the {span} of the swizzle"));
        }
        let float = matches!(self.ty, TensorType::F16 | TensorType::F32 | TensorType::F64 | TensorType::Bf16 | TensorType::Tf32);
        if self.fill == OutOfBoundsFill::Nan && !float {
            return fail(format!("NaN outside of a tensor of {:?}", self.ty));
        }
        Ok(())
    }

    /// With this swizzle.
    pub fn swizzle(self, swizzle: Swizzle) -> Self {
        TensorMapDesc { swizzle, ..self }
    }

    /// With this L2 fetch size.
    pub fn l2_promotion(self, l2_promotion: L2Promotion) -> Self {
        TensorMapDesc { l2_promotion, ..self }
    }
}

/// An encoded tensor map, to be passed to a kernel by value (`const __grid_constant__`), alone or inside a parameter struct, at a
/// multiple of 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u8; 128]);

impl std::fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TensorMap(..)")
    }
}

// SAFETY: 128 bytes without padding, any bit pattern of which is a value.
unsafe impl bytemuck::Zeroable for TensorMap {}
// SAFETY: as above; alignment 64 divides the size, so that there is no padding.
unsafe impl bytemuck::Pod for TensorMap {}
