//! Tensor maps: what `cuTensorMapEncodeTiled` accepts, and the 128 bytes that stand for one here.

/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 5;

/// Bytes of an encoded tensor map.
pub const TENSOR_MAP_BYTES: usize = 128;

/// Alignment of an encoded tensor map in memory, in bytes.
pub const TENSOR_MAP_ALIGN: usize = 64;

/// Declares an enumeration with CUDA's numbers and a way back from them.
macro_rules! coded {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_meta])* $variant = $code,)* }

        impl $name {
            /// By CUDA's number.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// CUDA's number.
            #[must_use]
            pub const fn code(self) -> u32 {
                self as u32
            }
        }
    };
}

coded! {
    /// `CUtensorMapDataType`.
    DataType {
        /// `UINT8`
        Uint8 = 0,
        /// `UINT16`
        Uint16 = 1,
        /// `UINT32`
        Uint32 = 2,
        /// `INT32`
        Int32 = 3,
        /// `UINT64`
        Uint64 = 4,
        /// `INT64`
        Int64 = 5,
        /// `FLOAT16`
        Float16 = 6,
        /// `FLOAT32`
        Float32 = 7,
        /// `FLOAT64`
        Float64 = 8,
        /// `BFLOAT16`
        Bfloat16 = 9,
        /// `FLOAT32_FTZ`: loads flush subnormals to zero, keeping the sign.
        Float32Ftz = 10,
        /// `TFLOAT32`: loads round to TF32, how is not documented; tiles of such maps are refused.
        Tfloat32 = 11,
        /// `TFLOAT32_FTZ`
        Tfloat32Ftz = 12,
        /// `16U4_ALIGN8B`: for `sm_100` and later, refused.
        Packed16U4Align8B = 13,
        /// `16U4_ALIGN16B`: for `sm_100` and later, refused.
        Packed16U4Align16B = 14,
        /// `16U6_ALIGN16B`: for `sm_100` and later, refused.
        Packed16U6Align16B = 15,
    }
}

coded! {
    /// `CUtensorMapInterleave`.
    Interleave {
        /// `NONE`
        None = 0,
        /// `16B`
        B16 = 1,
        /// `32B`
        B32 = 2,
    }
}

coded! {
    /// `CUtensorMapSwizzle`: 16-byte places within the span are exchanged by the number of the 128-byte line (section 5.5.7).
    Swizzle {
        /// `NONE`
        None = 0,
        /// `32B`
        B32 = 1,
        /// `64B`
        B64 = 2,
        /// `128B`
        B128 = 3,
        /// `128B_ATOM_32B`: for `sm_100` and later, refused.
        B128Atom32B = 4,
        /// `128B_ATOM_32B_FLIP_8B`: for `sm_100` and later, refused.
        B128Atom32BFlip8B = 5,
        /// `128B_ATOM_64B`: for `sm_100` and later, refused.
        B128Atom64B = 6,
    }
}

coded! {
    /// `CUtensorMapL2promotion`: a hint, without effect here.
    L2Promotion {
        /// `NONE`
        None = 0,
        /// `L2_64B`
        B64 = 1,
        /// `L2_128B`
        B128 = 2,
        /// `L2_256B`
        B256 = 3,
    }
}

coded! {
    /// `CUtensorMapFloatOOBfill`: what a load writes for elements outside the tensor.
    Fill {
        /// `NONE`: zero.
        Zero = 0,
        /// `NAN_REQUEST_ZERO_FMA`: NaN. The manual's "special NaN" is not documented; here it is the type's canonical NaN.
        Nan = 1,
    }
}

impl DataType {
    /// Bytes of an element; None for the packed types.
    #[must_use]
    pub const fn bytes(self) -> Option<u32> {
        match self {
            Self::Uint8 => Some(1),
            Self::Uint16 | Self::Float16 | Self::Bfloat16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Float32 | Self::Float32Ftz | Self::Tfloat32 | Self::Tfloat32Ftz => Some(4),
            Self::Uint64 | Self::Int64 | Self::Float64 => Some(8),
            Self::Packed16U4Align8B | Self::Packed16U4Align16B | Self::Packed16U6Align16B => None,
        }
    }

    /// Whether it is a floating-point type.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            Self::Float16
                | Self::Float32
                | Self::Float64
                | Self::Bfloat16
                | Self::Float32Ftz
                | Self::Tfloat32
                | Self::Tfloat32Ftz
        )
    }
}

impl Swizzle {
    /// Bytes within which places are exchanged; None without a swizzle, and for those of `sm_100`.
    #[must_use]
    pub const fn span(self) -> Option<u32> {
        match self {
            Self::B32 => Some(32),
            Self::B64 => Some(64),
            Self::B128 => Some(128),
            _ => None,
        }
    }

    /// Where the byte at a shared address goes (section 5.5.7): the pattern is fixed to the addresses, not to the box.
    #[must_use]
    pub const fn apply(self, address: u32) -> u32 {
        match self.span() {
            Some(span) => address ^ (((address >> 7) % (span / 16)) << 4),
            None => address,
        }
    }
}

/// Which rule of `cuTensorMapEncodeTiled` a description breaks, or why 128 bytes are no tensor map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The rank is not 1 to 5.
    #[error("a tensor map has 1 to 5 dimensions, not {0}")]
    Rank(usize),
    /// An array has the wrong length for the rank.
    #[error("{what} has {got} elements, a tensor of {rank} dimensions needs {expected}")]
    Length {
        /// Which array.
        what: &'static str,
        /// Dimensions.
        rank: usize,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// The address is not aligned.
    #[error("globalAddress {address:#x} must be a multiple of {align}")]
    Address {
        /// The address.
        address: u64,
        /// 16, or 32 with `INTERLEAVE_32B`.
        align: u64,
    },
    /// A dimension is 0 or more than 2^32.
    #[error("globalDim[{dimension}] = {value} must be 1 to 2^32")]
    Dim {
        /// Which.
        dimension: usize,
        /// Its size.
        value: u64,
    },
    /// A stride is not aligned.
    #[error("globalStrides[{index}] = {value} must be a multiple of {align}")]
    StrideAlign {
        /// Which; index 0 belongs to dimension 1.
        index: usize,
        /// In bytes.
        value: u64,
        /// 16, or 32 with `INTERLEAVE_32B`.
        align: u64,
    },
    /// A stride is too large.
    #[error("globalStrides[{index}] = {value} must be less than 2^40")]
    StrideSize {
        /// Which; index 0 belongs to dimension 1.
        index: usize,
        /// In bytes.
        value: u64,
    },
    /// The tensor's last byte is beyond the 64-bit address space.
    #[error("the tensor ends beyond the address space")]
    Extent,
    /// A side of the box is 0 or more than 256.
    #[error("boxDim[{dimension}] = {value} must be 1 to 256")]
    Box {
        /// Which dimension.
        dimension: usize,
        /// Its size.
        value: u32,
    },
    /// The box's inner dimension is no multiple of 16 bytes.
    #[error("boxDim[0] makes an inner dimension of {0} bytes, which must be a multiple of 16 without interleave")]
    InnerMultiple(u32),
    /// The box's inner dimension is wider than the swizzle.
    #[error("boxDim[0] makes an inner dimension of {bytes} bytes, more than the {span} of the swizzle")]
    InnerSwizzle {
        /// Bytes of the inner dimension.
        bytes: u32,
        /// Span of the swizzle in bytes.
        span: u32,
    },
    /// An element stride is 0 or more than 8.
    #[error("elementStrides[{dimension}] = {value} must be 1 to 8")]
    ElementStride {
        /// Which dimension.
        dimension: usize,
        /// The step.
        value: u32,
    },
    /// Interleaved layouts need three dimensions.
    #[error("an interleaved tensor needs at least 3 dimensions, not {0}")]
    InterleaveRank(usize),
    /// `INTERLEAVE_32B` goes with `SWIZZLE_32B` alone.
    #[error("INTERLEAVE_32B needs SWIZZLE_32B")]
    InterleaveSwizzle,
    /// A NaN fill of an integer tensor.
    #[error("a NaN fill needs a floating-point type, not {0:?}")]
    FillType(DataType),
    /// A type or swizzle of architectures after Hopper.
    #[error("{0} needs an architecture later than sm_90")]
    Architecture(&'static str),
    /// The bytes were not made by [`TensorMap::encode`].
    #[error("the 128 bytes are no tensor map")]
    NotATensorMap,
    /// The bytes were made by [`TensorMap::encode`] and changed since.
    #[error("the tensor map is damaged: {0}")]
    Damaged(&'static str),
}

/// The arguments of `cuTensorMapEncodeTiled`; dimension 0 is the innermost.
#[derive(Debug, Clone, Copy)]
pub struct Tiled<'a> {
    /// `tensorDataType`
    pub data_type: DataType,
    /// `globalAddress`: of the first element, in bytes.
    pub address: u64,
    /// `globalDim`: elements along each dimension.
    pub dims: &'a [u64],
    /// `globalStrides`: bytes from one index to the next along dimensions 1 and up; one fewer than `dims`.
    pub strides: &'a [u64],
    /// `boxDim`: elements along each dimension of a box.
    pub box_dims: &'a [u32],
    /// `elementStrides`: a load takes every so many-th element of the box; the first is ignored without interleave.
    pub element_strides: &'a [u32],
    /// `interleave`
    pub interleave: Interleave,
    /// `swizzle`
    pub swizzle: Swizzle,
    /// `l2Promotion`
    pub l2_promotion: L2Promotion,
    /// `oobFill`
    pub fill: Fill,
}

impl Default for Tiled<'_> {
    /// Bytes, no dimensions yet, no interleave, swizzle or promotion, zero fill.
    fn default() -> Self {
        Self {
            data_type: DataType::Uint8,
            address: 0,
            dims: &[],
            strides: &[],
            box_dims: &[],
            element_strides: &[],
            interleave: Interleave::None,
            swizzle: Swizzle::None,
            l2_promotion: L2Promotion::None,
            fill: Fill::Zero,
        }
    }
}

/// A checked tensor map; dimensions beyond the rank have size 1 and stride 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap {
    pub(super) data_type: DataType,
    pub(super) rank: usize,
    pub(super) address: u64,
    pub(super) dims: [u64; MAX_RANK],
    /// In bytes; the first is the element's size.
    pub(super) strides: [u64; MAX_RANK],
    pub(super) box_dims: [u32; MAX_RANK],
    pub(super) element_strides: [u32; MAX_RANK],
    pub(super) interleave: Interleave,
    pub(super) swizzle: Swizzle,
    pub(super) l2_promotion: L2Promotion,
    pub(super) fill: Fill,
}

/// An encoded tensor map with the alignment that a driver demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct EncodedTensorMap {
    /// See [`TensorMap::encode`].
    pub bytes: [u8; TENSOR_MAP_BYTES],
}

const MAGIC: [u8; 8] = *b"PTXEMU\x00T";

impl TensorMap {
    /// Checks a description against every rule of `cuTensorMapEncodeTiled`.
    ///
    /// Overlapping strides, zero ones included, are no error, as they are none there.
    ///
    /// # Errors
    /// [`MapError`] says which rule is broken.
    pub fn tiled(tiled: &Tiled<'_>) -> Result<Self, MapError> {
        let rank = tiled.dims.len();
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(MapError::Rank(rank));
        }
        for (what, got, expected) in [
            ("globalStrides", tiled.strides.len(), rank - 1),
            ("boxDim", tiled.box_dims.len(), rank),
            ("elementStrides", tiled.element_strides.len(), rank),
        ] {
            if got != expected {
                return Err(MapError::Length { what, rank, expected, got });
            }
        }
        let Some(size) = tiled.data_type.bytes() else {
            return Err(MapError::Architecture("a packed data type"));
        };
        if matches!(tiled.swizzle, Swizzle::B128Atom32B | Swizzle::B128Atom32BFlip8B | Swizzle::B128Atom64B) {
            return Err(MapError::Architecture("a 128-byte swizzle with atoms of more than 16 bytes"));
        }
        let mut map = Self {
            data_type: tiled.data_type,
            rank,
            address: tiled.address,
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            box_dims: [1; MAX_RANK],
            element_strides: [1; MAX_RANK],
            interleave: tiled.interleave,
            swizzle: tiled.swizzle,
            l2_promotion: tiled.l2_promotion,
            fill: tiled.fill,
        };
        map.dims[..rank].copy_from_slice(tiled.dims);
        map.strides[0] = u64::from(size);
        map.strides[1..rank].copy_from_slice(tiled.strides);
        map.box_dims[..rank].copy_from_slice(tiled.box_dims);
        map.element_strides[..rank].copy_from_slice(tiled.element_strides);
        map.check(size)?;
        if map.interleave == Interleave::None {
            map.element_strides[0] = 1;
        }
        Ok(map)
    }

    fn check(&self, size: u32) -> Result<(), MapError> {
        let align = if self.interleave == Interleave::B32 { 32 } else { 16 };
        if self.interleave != Interleave::None && self.rank < 3 {
            return Err(MapError::InterleaveRank(self.rank));
        }
        if self.interleave == Interleave::B32 && self.swizzle != Swizzle::B32 {
            return Err(MapError::InterleaveSwizzle);
        }
        if !self.address.is_multiple_of(align) {
            return Err(MapError::Address { address: self.address, align });
        }
        for (dimension, &value) in self.dims.iter().enumerate() {
            if !(1..=1 << 32).contains(&value) {
                return Err(MapError::Dim { dimension, value });
            }
        }
        for (index, &value) in self.strides[1..].iter().enumerate() {
            if !value.is_multiple_of(align) {
                return Err(MapError::StrideAlign { index, value, align });
            }
            if value >= 1 << 40 {
                return Err(MapError::StrideSize { index, value });
            }
        }
        let last = self.dims.iter().zip(self.strides).map(|(&dim, stride)| u128::from(dim - 1) * u128::from(stride));
        if u128::from(self.address) + last.sum::<u128>() + u128::from(size) > 1 << 64 {
            return Err(MapError::Extent);
        }
        for (dimension, &value) in self.box_dims.iter().enumerate() {
            if !(1..=256).contains(&value) {
                return Err(MapError::Box { dimension, value });
            }
        }
        for (dimension, &value) in self.element_strides.iter().enumerate() {
            let ignored = dimension == 0 && self.interleave == Interleave::None;
            if !ignored && !(1..=8).contains(&value) {
                return Err(MapError::ElementStride { dimension, value });
            }
        }
        if self.interleave == Interleave::None {
            let bytes = self.box_dims[0] * size;
            if !bytes.is_multiple_of(16) {
                return Err(MapError::InnerMultiple(bytes));
            }
            if let Some(span) = self.swizzle.span()
                && bytes > span
            {
                return Err(MapError::InnerSwizzle { bytes, span });
            }
        }
        if self.fill == Fill::Nan && !self.data_type.is_float() {
            return Err(MapError::FillType(self.data_type));
        }
        Ok(())
    }

    /// Dimensions, 1 to 5.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// Type of an element.
    #[must_use]
    pub const fn data_type(&self) -> DataType {
        self.data_type
    }

    /// Address of the first element.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// The swizzle.
    #[must_use]
    pub const fn swizzle(&self) -> Swizzle {
        self.swizzle
    }

    /// Bytes of an element.
    #[must_use]
    pub const fn element_bytes(&self) -> u32 {
        self.strides[0] as u32
    }

    /// The same map of a tensor elsewhere (`cuTensorMapReplaceAddress`).
    ///
    /// # Errors
    /// [`MapError::Address`], [`MapError::Extent`].
    pub fn with_address(mut self, address: u64) -> Result<Self, MapError> {
        self.address = address;
        self.check(self.element_bytes())?;
        Ok(self)
    }

    /// The map as 128 bytes of a format of our own (a driver's is opaque). Little-endian:
    ///
    /// | bytes | content |
    /// |---|---|
    /// | 0..8 | `PTXEMU\0T` |
    /// | 8..14 | data type, rank, interleave, swizzle, L2 promotion, fill: one byte each, CUDA's numbers |
    /// | 14..16 | zero |
    /// | 16..24 | address |
    /// | 24..44 | dimension sizes less one, five `u32` |
    /// | 44..54 | box, five `u16` |
    /// | 54..59 | element strides, five bytes |
    /// | 59..64 | zero |
    /// | 64..96 | strides of dimensions 1 to 4 in bytes, four `u64` |
    /// | 96..128 | zero |
    ///
    /// What lies beyond the rank has size 1, stride 0, box 1 and element stride 1.
    #[must_use]
    pub fn encode(&self) -> EncodedTensorMap {
        let mut bytes = [0; TENSOR_MAP_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = self.data_type as u8;
        bytes[9] = self.rank as u8;
        bytes[10] = self.interleave as u8;
        bytes[11] = self.swizzle as u8;
        bytes[12] = self.l2_promotion as u8;
        bytes[13] = self.fill as u8;
        bytes[16..24].copy_from_slice(&self.address.to_le_bytes());
        for i in 0..MAX_RANK {
            bytes[24 + 4 * i..][..4].copy_from_slice(&((self.dims[i] - 1) as u32).to_le_bytes());
            bytes[44 + 2 * i..][..2].copy_from_slice(&(self.box_dims[i] as u16).to_le_bytes());
            bytes[54 + i] = self.element_strides[i] as u8;
            if i > 0 {
                bytes[56 + 8 * i..][..8].copy_from_slice(&self.strides[i].to_le_bytes());
            }
        }
        EncodedTensorMap { bytes }
    }

    /// Reads what [`Self::encode`] wrote, and checks it all again: the bytes have lain in memory that a kernel could write.
    ///
    /// # Errors
    /// [`MapError::NotATensorMap`], [`MapError::Damaged`], or the rule that the content breaks.
    pub fn decode(bytes: &[u8]) -> Result<Self, MapError> {
        let bytes: &[u8; TENSOR_MAP_BYTES] = bytes.try_into().map_err(|_| MapError::NotATensorMap)?;
        if bytes[..8] != MAGIC {
            return Err(MapError::NotATensorMap);
        }
        let zeros = bytes[14..16].iter().chain(&bytes[59..64]).chain(&bytes[96..]);
        if zeros.into_iter().any(|&b| b != 0) {
            return Err(MapError::Damaged("a byte that must be zero is not"));
        }
        let code = |at: usize| u32::from(bytes[at]);
        let rank = usize::from(bytes[9]);
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(MapError::Rank(rank));
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let dims: [u64; MAX_RANK] =
            std::array::from_fn(|i| u64::from(u32::from_le_bytes(std::array::from_fn(|j| bytes[24 + 4 * i + j]))) + 1);
        let strides: [u64; MAX_RANK - 1] = std::array::from_fn(|i| word(64 + 8 * i));
        let box_dims: [u32; MAX_RANK] =
            std::array::from_fn(|i| u32::from(u16::from_le_bytes([bytes[44 + 2 * i], bytes[45 + 2 * i]])));
        let element_strides: [u32; MAX_RANK] = std::array::from_fn(|i| code(54 + i));
        let beyond = (rank..MAX_RANK).any(|i| dims[i] != 1 || strides[i - 1] != 0 || box_dims[i] != 1 || element_strides[i] != 1);
        if beyond {
            return Err(MapError::Damaged("a dimension beyond the rank is in use"));
        }
        let map = Self::tiled(&Tiled {
            data_type: DataType::from_code(code(8)).ok_or(MapError::Damaged("no such data type"))?,
            address: word(16),
            dims: &dims[..rank],
            strides: &strides[..rank - 1],
            box_dims: &box_dims[..rank],
            element_strides: &element_strides[..rank],
            interleave: Interleave::from_code(code(10)).ok_or(MapError::Damaged("no such interleave"))?,
            swizzle: Swizzle::from_code(code(11)).ok_or(MapError::Damaged("no such swizzle"))?,
            l2_promotion: L2Promotion::from_code(code(12)).ok_or(MapError::Damaged("no such L2 promotion"))?,
            fill: Fill::from_code(code(13)).ok_or(MapError::Damaged("no such fill"))?,
        })?;
        if map.interleave == Interleave::None && element_strides[0] != 1 {
            return Err(MapError::Damaged("an element stride of dimension 0 without interleave"));
        }
        Ok(map)
    }
}
