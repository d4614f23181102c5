//! Tiles against a loop over elements that knows the manual's tables; rules of the tensor map one by one; reductions by hand.

use proptest::prelude::*;

use super::*;

/// Section 5.5.7: row `y` of a table says which 16-byte place of the source stands at each place of the `y`-th 128-byte line.
const SWIZZLE_128B: [[u32; 8]; 8] = [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [1, 0, 3, 2, 5, 4, 7, 6],
    [2, 3, 0, 1, 6, 7, 4, 5],
    [3, 2, 1, 0, 7, 6, 5, 4],
    [4, 5, 6, 7, 0, 1, 2, 3],
    [5, 4, 7, 6, 1, 0, 3, 2],
    [6, 7, 4, 5, 2, 3, 0, 1],
    [7, 6, 5, 4, 3, 2, 1, 0],
];

/// Where the byte of the unswizzled layout goes: the place of its line that the table gives to its source place. The 64-byte table is the
/// first four lines of this one, the 32-byte table the first two.
fn swizzled(swizzle: Swizzle, address: u32) -> u32 {
    let lines = match swizzle {
        Swizzle::B32 => 2,
        Swizzle::B64 => 4,
        Swizzle::B128 => 8,
        _ => 1,
    };
    let (line, place, byte) = (address / 128, address % 128 / 16, address % 16);
    let table = SWIZZLE_128B[(line % lines) as usize];
    let to = table.iter().position(|&source| source == place).unwrap() as u32;
    line * 128 + to * 16 + byte
}

#[test]
fn swizzles_follow_the_manuals_tables() {
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        for address in 0..4096 {
            assert_eq!(swizzle.apply(address), swizzled(swizzle, address), "{swizzle:?} {address}");
        }
    }
}

/// A description that owns its arrays.
#[derive(Debug, Clone)]
struct Description {
    data_type: DataType,
    dims: Vec<u64>,
    strides: Vec<u64>,
    box_dims: Vec<u32>,
    element_strides: Vec<u32>,
    swizzle: Swizzle,
    fill: Fill,
    coordinates: Vec<i32>,
}

const BASE: u64 = 0x7_0000_0010;
const SHARED: u32 = 64 * 1024;

impl Description {
    fn tiled(&self) -> Tiled<'_> {
        Tiled {
            data_type: self.data_type,
            address: BASE,
            dims: &self.dims,
            strides: &self.strides,
            box_dims: &self.box_dims,
            element_strides: &self.element_strides,
            swizzle: self.swizzle,
            fill: self.fill,
            ..Tiled::default()
        }
    }

    fn map(&self) -> TensorMap {
        TensorMap::tiled(&self.tiled()).unwrap()
    }

    fn size(&self) -> usize {
        self.data_type.bytes().unwrap() as usize
    }

    /// Bytes of global memory that the tensor spans.
    fn span(&self) -> usize {
        let outer: u64 = self.dims[1..].iter().zip(&self.strides).map(|(dim, stride)| (dim - 1) * stride).sum();
        (outer + self.dims[0] * self.size() as u64) as usize
    }

    /// Every element of the box: its offset in the tensor, if it is inside, and the offset of its bytes from the box's start before the swizzle.
    fn elements(&self) -> Vec<(Option<usize>, u32)> {
        let rank = self.dims.len();
        let steps: Vec<u32> = (0..rank).map(|i| if i == 0 { 1 } else { self.element_strides[i] }).collect();
        let counts: Vec<u32> = self.box_dims.iter().zip(&steps).map(|(b, s)| b.div_ceil(*s)).collect();
        let row = self.box_dims[0] * self.size() as u32;
        let pitch = match self.swizzle {
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
            _ => row,
        };
        let mut elements = vec![];
        for linear in 0..counts.iter().product::<u32>() {
            let (mut rest, mut offset, mut inside) = (linear, 0u64, true);
            for i in 0..rank {
                let index = rest % counts[i];
                rest /= counts[i];
                let at = i64::from(self.coordinates[i]) + i64::from(index * steps[i]);
                if at < 0 || at >= self.dims[i] as i64 {
                    inside = false;
                } else {
                    let stride = if i == 0 { self.size() as u64 } else { self.strides[i - 1] };
                    offset += at as u64 * stride;
                }
            }
            let place = linear / counts[0] * pitch + linear % counts[0] * self.size() as u32;
            elements.push((inside.then_some(offset as usize), place));
        }
        elements
    }
}

fn descriptions() -> impl Strategy<Value = (Description, u32)> {
    let types = prop_oneof![
        Just(DataType::Uint8),
        Just(DataType::Bfloat16),
        Just(DataType::Float16),
        Just(DataType::Float32),
        Just(DataType::Int64),
        Just(DataType::Float64)
    ];
    let swizzles = prop_oneof![Just(Swizzle::None), Just(Swizzle::B32), Just(Swizzle::B64), Just(Swizzle::B128)];
    (types, swizzles, 1usize..=5, any::<u64>(), 0u32..16).prop_map(|(data_type, swizzle, rank, seed, line)| {
        let mut state = seed | 1;
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 20) % n
        };
        let size = u64::from(data_type.bytes().unwrap());
        let span = u64::from(swizzle.span().unwrap_or(256));
        let inner = 16 / size * (1 + below((span / 16).min(256 * size / 16)));
        let most = [0, 300, 40, 12, 6, 5][rank];
        let dims: Vec<u64> = (0..rank).map(|_| 1 + below(most)).collect();
        let mut strides = vec![];
        let mut extent = dims[0] * size;
        for dim in &dims[1..] {
            let stride = (extent + below(40)).next_multiple_of(16);
            strides.push(stride);
            extent = stride * dim;
        }
        let side = [0, 1, 24, 8, 4, 3][rank];
        let box_dims: Vec<u32> = (0..rank).map(|i| if i == 0 { inner } else { 1 + below(side) } as u32).collect();
        let element_strides = (0..rank).map(|_| 1 + if below(3) == 0 { below(8) } else { 0 } as u32).collect();
        // Around the tensor: before it, in it, beyond it.
        let coordinates = (0..rank)
            .map(|i| {
                let reach = u64::from(box_dims[i]) + 2;
                below(dims[i] + 2 * reach) as i32 - reach as i32
            })
            .collect();
        let fill = if data_type.is_float() && below(2) == 0 { Fill::Nan } else { Fill::Zero };
        (Description { data_type, dims, strides, box_dims, element_strides, swizzle, fill, coordinates }, 1024 + 128 * line)
    })
}

/// Bytes of global memory that tell their place.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect()
}

const NAN: [(DataType, &[u8]); 4] = [
    (DataType::Float16, &[0xff, 0x7f]),
    (DataType::Bfloat16, &[0xff, 0x7f]),
    (DataType::Float32, &[0xff, 0xff, 0xff, 0x7f]),
    (DataType::Float64, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A load writes every element of the box once, where the manual says, and nothing else.
    #[test]
    fn loads((description, shared) in descriptions()) {
        let map = description.map();
        let tile = map.tile(shared, &description.coordinates, SHARED).unwrap();
        let global = pattern(description.span());
        let (mut memory, mut times) = (vec![0xee; SHARED as usize], vec![0u8; SHARED as usize]);
        for run in &tile.runs {
            let from = (run.global - BASE) as usize;
            let to = run.shared as usize..(run.shared + run.bytes) as usize;
            memory[to.clone()].copy_from_slice(&global[from..from + run.bytes as usize]);
            times[to].iter_mut().for_each(|t| *t += 1);
        }
        for fill in &tile.fills {
            let to = fill.shared as usize..(fill.shared + fill.bytes) as usize;
            map.fill(&mut memory[to.clone()]);
            times[to].iter_mut().for_each(|t| *t += 1);
        }
        let (mut expected, mut expected_times) = (vec![0xee; SHARED as usize], vec![0u8; SHARED as usize]);
        let size = description.size();
        let elements = description.elements();
        for &(offset, place) in &elements {
            for byte in 0..size {
                let to = swizzled(description.swizzle, shared + place + byte as u32) as usize;
                expected_times[to] += 1;
                expected[to] = match (offset, description.fill) {
                    (Some(offset), _) => global[offset + byte],
                    (None, Fill::Zero) => 0,
                    (None, Fill::Nan) => NAN.iter().find(|n| n.0 == description.data_type).unwrap().1[byte],
                };
            }
        }
        prop_assert!(memory == expected);
        prop_assert!(times == expected_times);
        prop_assert_eq!(tile.bytes as usize, elements.len() * size);
    }

    /// A store writes the elements inside the tensor and nothing else.
    #[test]
    fn stores((description, shared) in descriptions()) {
        let tile = description.map().tile(shared, &description.coordinates, SHARED).unwrap();
        let memory = pattern(SHARED as usize);
        let (mut global, mut expected) = (vec![0xee; description.span()], vec![0xee; description.span()]);
        for run in &tile.runs {
            let to = (run.global - BASE) as usize;
            global[to..to + run.bytes as usize].copy_from_slice(&memory[run.shared as usize..(run.shared + run.bytes) as usize]);
        }
        for (offset, place) in description.elements() {
            for byte in 0..description.size() {
                let from = swizzled(description.swizzle, shared + place + byte as u32);
                if let Some(offset) = offset {
                    expected[offset + byte] = memory[from as usize];
                }
            }
        }
        prop_assert!(global == expected);
    }

    /// Encoded and decoded, a map is the same; any changed byte is another map or an error, never a panic.
    #[test]
    fn encoding((description, _) in descriptions(), at in 0usize..128, value in any::<u8>()) {
        let map = description.map();
        let mut encoded = map.encode();
        prop_assert_eq!(TensorMap::decode(&encoded.bytes), Ok(map));
        encoded.bytes[at] = value;
        if let Ok(other) = TensorMap::decode(&encoded.bytes) {
            prop_assert_eq!(other.encode(), encoded);
            let _ = other.tile(1024, &description.coordinates, SHARED);
        }
    }

    #[test]
    fn decoding_anything(mut bytes in proptest::collection::vec(any::<u8>(), 128), magic in any::<bool>()) {
        if magic {
            let encoded = TensorMap::tiled(&MATRIX).unwrap().encode();
            bytes[..8].copy_from_slice(&encoded.bytes[..8]);
        }
        if let Ok(map) = TensorMap::decode(&bytes) {
            prop_assert_eq!(&map.encode().bytes[..], &bytes[..]);
        }
    }
}

const MATRIX: Tiled<'_> = Tiled {
    data_type: DataType::Bfloat16,
    address: 0x1000,
    dims: &[100, 50],
    strides: &[256],
    box_dims: &[64, 128],
    element_strides: &[1, 1],
    interleave: Interleave::None,
    swizzle: Swizzle::B128,
    l2_promotion: L2Promotion::B256,
    fill: Fill::Zero,
};

const CUBE: Tiled<'_> =
    Tiled { dims: &[32, 8, 8], strides: &[64, 512], box_dims: &[16, 4, 4], element_strides: &[1, 1, 1], ..MATRIX };

/// The requirements in the description of `cuTensorMapEncodeTiled`, in its order; each with the nearest legal value beside it.
#[test]
fn every_rule_of_the_tensor_map() {
    let refused = |tiled: Tiled<'_>| TensorMap::tiled(&tiled).unwrap_err();
    let accepted = |tiled: Tiled<'_>| assert!(TensorMap::tiled(&tiled).is_ok(), "{tiled:?}");
    accepted(MATRIX);
    accepted(CUBE);
    // tensorRank: 1 to 5; 3 and up for interleaved layouts.
    assert_eq!(refused(Tiled { dims: &[], ..MATRIX }), MapError::Rank(0));
    assert_eq!(refused(Tiled { dims: &[1; 6], ..MATRIX }), MapError::Rank(6));
    assert_eq!(refused(Tiled { interleave: Interleave::B16, ..MATRIX }), MapError::InterleaveRank(2));
    accepted(Tiled { interleave: Interleave::B16, ..CUBE });
    let length = |what, expected, got| MapError::Length { what, rank: 2, expected, got };
    assert_eq!(refused(Tiled { strides: &[256, 512], ..MATRIX }), length("globalStrides", 1, 2));
    assert_eq!(refused(Tiled { box_dims: &[64], ..MATRIX }), length("boxDim", 2, 1));
    assert_eq!(refused(Tiled { element_strides: &[], ..MATRIX }), length("elementStrides", 2, 0));
    // globalAddress: 16-byte aligned, 32 with INTERLEAVE_32B, which needs SWIZZLE_32B.
    assert_eq!(refused(Tiled { address: 0x1008, ..MATRIX }), MapError::Address { address: 0x1008, align: 16 });
    accepted(Tiled { address: 0x1010, ..MATRIX });
    let interleaved = Tiled { interleave: Interleave::B32, swizzle: Swizzle::B32, ..CUBE };
    accepted(interleaved);
    assert_eq!(refused(Tiled { address: 0x1010, ..interleaved }), MapError::Address { address: 0x1010, align: 32 });
    assert_eq!(refused(Tiled { swizzle: Swizzle::B64, ..interleaved }), MapError::InterleaveSwizzle);
    // globalDim: 1 to 2^32.
    assert_eq!(refused(Tiled { dims: &[0, 50], ..MATRIX }), MapError::Dim { dimension: 0, value: 0 });
    accepted(Tiled { dims: &[1 << 32, 1], ..MATRIX });
    assert_eq!(refused(Tiled { dims: &[1, (1 << 32) + 1], ..MATRIX }), MapError::Dim { dimension: 1, value: (1 << 32) + 1 });
    // globalStrides: a multiple of 16 (32 with INTERLEAVE_32B) below 2^40.
    assert_eq!(refused(Tiled { strides: &[200], ..MATRIX }), MapError::StrideAlign { index: 0, value: 200, align: 16 });
    accepted(Tiled { strides: &[208], ..MATRIX });
    accepted(Tiled { strides: &[0], ..MATRIX });
    assert_eq!(refused(Tiled { strides: &[64, 528], ..interleaved }), MapError::StrideAlign { index: 1, value: 528, align: 32 });
    accepted(Tiled { strides: &[(1 << 40) - 16], ..MATRIX });
    assert_eq!(refused(Tiled { strides: &[1 << 40], ..MATRIX }), MapError::StrideSize { index: 0, value: 1 << 40 });
    assert_eq!(refused(Tiled { address: u64::MAX - 15, ..MATRIX }), MapError::Extent);
    // boxDim: 1 to 256; its inner bytes a multiple of 16, at most the swizzle's span.
    assert_eq!(refused(Tiled { box_dims: &[64, 0], ..MATRIX }), MapError::Box { dimension: 1, value: 0 });
    accepted(Tiled { box_dims: &[64, 256], ..MATRIX });
    assert_eq!(refused(Tiled { box_dims: &[64, 257], ..MATRIX }), MapError::Box { dimension: 1, value: 257 });
    assert_eq!(refused(Tiled { box_dims: &[60, 1], ..MATRIX }), MapError::InnerMultiple(120));
    assert_eq!(refused(Tiled { box_dims: &[72, 1], ..MATRIX }), MapError::InnerSwizzle { bytes: 144, span: 128 });
    accepted(Tiled { box_dims: &[72, 1], swizzle: Swizzle::None, ..MATRIX });
    assert_eq!(refused(Tiled { swizzle: Swizzle::B64, ..MATRIX }), MapError::InnerSwizzle { bytes: 128, span: 64 });
    assert_eq!(
        refused(Tiled { swizzle: Swizzle::B32, box_dims: &[24, 1], ..MATRIX }),
        MapError::InnerSwizzle { bytes: 48, span: 32 }
    );
    // elementStrides: 1 to 8; the first is ignored without interleave.
    assert_eq!(refused(Tiled { element_strides: &[1, 0], ..MATRIX }), MapError::ElementStride { dimension: 1, value: 0 });
    assert_eq!(refused(Tiled { element_strides: &[1, 9], ..MATRIX }), MapError::ElementStride { dimension: 1, value: 9 });
    accepted(Tiled { element_strides: &[9, 8], ..MATRIX });
    assert_eq!(refused(Tiled { element_strides: &[9, 1, 1], ..interleaved }), MapError::ElementStride { dimension: 0, value: 9 });
    // oobFill: NaN for floating point only.
    accepted(Tiled { fill: Fill::Nan, ..MATRIX });
    assert_eq!(refused(Tiled { fill: Fill::Nan, data_type: DataType::Uint16, ..MATRIX }), MapError::FillType(DataType::Uint16));
    // Later architectures.
    assert!(matches!(refused(Tiled { data_type: DataType::Packed16U4Align8B, ..MATRIX }), MapError::Architecture(_)));
    assert!(matches!(refused(Tiled { swizzle: Swizzle::B128Atom64B, ..MATRIX }), MapError::Architecture(_)));
    // The message names the rule.
    assert_eq!(
        refused(Tiled { box_dims: &[72, 1], ..MATRIX }).to_string(),
        "boxDim[0] makes an inner dimension of 144 bytes, more than the 128 of the swizzle"
    );
}

#[test]
fn encoded_maps() {
    let map = TensorMap::tiled(&MATRIX).unwrap();
    let encoded = map.encode();
    assert_eq!((size_of_val(&encoded), align_of_val(&encoded)), (TENSOR_MAP_BYTES, TENSOR_MAP_ALIGN));
    assert_eq!(TensorMap::decode(&[0; 128]), Err(MapError::NotATensorMap));
    assert_eq!(TensorMap::decode(&encoded.bytes[..127]), Err(MapError::NotATensorMap));
    let with = |at: usize, value| {
        let mut bytes = encoded.bytes;
        bytes[at] = value;
        TensorMap::decode(&bytes)
    };
    assert_eq!(with(9, 6), Err(MapError::Rank(6)));
    assert_eq!(with(9, 1), Err(MapError::Damaged("a dimension beyond the rank is in use")));
    assert_eq!(with(8, 99), Err(MapError::Damaged("no such data type")));
    assert_eq!(with(127, 1), Err(MapError::Damaged("a byte that must be zero is not")));
    assert_eq!(with(16, 8), Err(MapError::Address { address: 0x1008, align: 16 }));
    assert_eq!(map.with_address(0x2000).unwrap().address(), 0x2000);
    assert_eq!(map.with_address(0x2008), Err(MapError::Address { address: 0x2008, align: 16 }));
}

#[test]
fn tiles_that_are_refused() {
    let map = TensorMap::tiled(&MATRIX).unwrap();
    assert_eq!(map.tile(1024, &[0], SHARED), Err(TileError::Coordinates { rank: 2, got: 1 }));
    assert_eq!(map.tile(1024 + 64, &[0, 0], SHARED), Err(TileError::SharedAlign { address: 1088 }));
    assert!(map.tile(SHARED - 128 * 128, &[0, 0], SHARED).is_ok());
    let beyond = TileError::SharedOutOfBounds { address: SHARED - 127 * 128, bytes: 128 * 128, end: SHARED };
    assert_eq!(map.tile(SHARED - 127 * 128, &[0, 0], SHARED), Err(beyond));
    let interleaved = TensorMap::tiled(&Tiled { interleave: Interleave::B16, ..CUBE }).unwrap();
    assert_eq!(interleaved.tile(1024, &[0; 3], SHARED), Err(TileError::Unsupported("interleaved")));
    let tf32 = Tiled { data_type: DataType::Tfloat32, box_dims: &[32, 128], ..MATRIX };
    assert_eq!(TensorMap::tiled(&tf32).unwrap().tile(1024, &[0; 2], SHARED), Err(TileError::Unsupported("TFLOAT32")));
    assert_eq!(TileError::IM2COL.to_string(), "im2col tensor copies are not supported");
    // Coordinates at the ends of their range.
    for coordinate in [i32::MIN, i32::MAX] {
        let tile = map.tile(1024, &[coordinate, coordinate], SHARED).unwrap();
        assert_eq!((tile.runs.len(), tile.bytes), (0, 128 * 128));
    }
    // The largest box takes no time to refuse.
    let huge =
        Tiled { dims: &[256; 5], strides: &[512; 4], box_dims: &[64, 256, 256, 256, 256], element_strides: &[1; 5], ..MATRIX };
    let refused = TensorMap::tiled(&huge).unwrap().tile(1024, &[0; 5], SHARED);
    assert_eq!(refused, Err(TileError::SharedOutOfBounds { address: 1024, bytes: 128 << 32, end: SHARED }));
}

/// Unswizzled rows that follow each other in both memories are one run; a swizzled row is one a place.
#[test]
fn runs_are_merged() {
    let plain = Tiled { dims: &[64, 50], strides: &[128], swizzle: Swizzle::None, box_dims: &[64, 32], ..MATRIX };
    let tile = TensorMap::tiled(&plain).unwrap().tile(1024, &[0, 4], SHARED).unwrap();
    assert_eq!(tile.runs, [Run { global: 0x1000 + 512, shared: 1024, bytes: 4096 }]);
    let outside = TensorMap::tiled(&plain).unwrap().tile(1024, &[0, 50], SHARED).unwrap();
    assert_eq!((outside.runs.len(), outside.fills), (0, vec![FillRun { shared: 1024, bytes: 4096 }]));
    let swizzled = TensorMap::tiled(&MATRIX).unwrap().tile(1024, &[0, 1], SHARED).unwrap();
    assert_eq!(swizzled.runs[0], Run { global: 0x1100, shared: 1024, bytes: 128 });
    assert_eq!(swizzled.runs[1], Run { global: 0x1200, shared: 1024 + 128 + 16, bytes: 16 });
}

#[test]
fn flushing_loads() {
    let map = TensorMap::tiled(&Tiled { data_type: DataType::Float32Ftz, box_dims: &[32, 1], ..MATRIX }).unwrap();
    let values = [1.0f32, -1.0e-40, 1.0e-40, f32::MIN_POSITIVE, -0.0, f32::INFINITY];
    let mut bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    map.convert(&mut bytes);
    let flushed: Vec<u32> = bytes.chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let expected = [1.0f32, -0.0, 0.0, f32::MIN_POSITIVE, -0.0, f32::INFINITY].map(f32::to_bits);
    assert_eq!(flushed, expected);
    let mut same = bytes.clone();
    TensorMap::tiled(&MATRIX).unwrap().convert(&mut same);
    assert_eq!(same, bytes);
}

#[test]
fn bulk_copies() {
    assert_eq!(check_bulk_copy(16, 32, 48), Ok(()));
    assert_eq!(check_bulk_copy(16, 32, 0), Ok(()));
    assert_eq!(check_bulk_copy(16, 32, 40), Err(BulkError::Size(40)));
    assert_eq!(check_bulk_copy(8, 32, 16), Err(BulkError::Address { side: "destination", address: 8 }));
    assert_eq!(check_bulk_copy(16, 36, 16), Err(BulkError::Address { side: "source", address: 36 }));
}

/// The table of operations and types in section 9.7.9.25.4.2.
#[test]
fn reductions_that_exist() {
    use ReduceOp::{Add, And, Dec, Inc, Max, Min, Or, Xor};
    use ReduceType::{B32, B64, Bf16, F16, F32, F64, S32, S64, U32, U64};
    let types = [U32, S32, U64, S64, B32, B64, F16, Bf16, F32, F64];
    let table: [(&[ReduceOp], bool, &[ReduceType]); 8] = [
        (&[Add], true, &[U32, S32, U64]),
        (&[Min, Max], true, &[U32, S32]),
        (&[Inc, Dec], true, &[U32]),
        (&[And, Or, Xor], true, &[B32]),
        (&[Add], false, &[U32, S32, U64, F32, F64, F16, Bf16]),
        (&[Min, Max], false, &[U32, S32, U64, S64, F16, Bf16]),
        (&[Inc, Dec], false, &[U32]),
        (&[And, Or, Xor], false, &[B32, B64]),
    ];
    for (ops, to_shared, legal) in table {
        for &op in ops {
            for ty in types {
                assert_eq!(Reduction::new(op, ty, to_shared).is_ok(), legal.contains(&ty), "{op:?} {ty:?} {to_shared}");
            }
        }
    }
    assert!(Reduction::for_tensor(Add, DataType::Bfloat16).is_ok());
    assert!(Reduction::for_tensor(And, DataType::Int32).is_ok());
    assert!(Reduction::for_tensor(Inc, DataType::Int32).is_err());
    assert_eq!(
        Reduction::for_tensor(Add, DataType::Uint8),
        Err(ReduceError::NoSuchTensorForm { op: Add, data_type: DataType::Uint8 })
    );
}

#[test]
fn reductions_by_hand() {
    use ReduceOp::{Add, And, Dec, Inc, Max, Min, Or, Xor};
    use ReduceType::{B32, B64, Bf16, F16, F32, F64, S32, S64, U32, U64};
    let minus = |x: i64| x as u64;
    let f = |x: f32| u64::from(x.to_bits());
    for (op, ty, old, operand, want) in [
        (Add, U32, 0xffff_ffff, 2, 1),
        (Add, S32, 0x7fff_ffff, 1, 0x8000_0000),
        (Add, U64, u64::MAX, 2, 1),
        (Min, U32, 1, 0xffff_ffff, 1),
        (Min, S32, 1, 0xffff_ffff, 0xffff_ffff),
        (Max, S32, 1, 0xffff_ffff, 1),
        (Max, U64, 1, u64::MAX, u64::MAX),
        (Max, S64, 1, minus(-1), 1),
        (Min, S64, 1, minus(-1), minus(-1)),
        (Inc, U32, 4, 5, 5),
        (Inc, U32, 5, 5, 0),
        (Inc, U32, 9, 5, 0),
        (Dec, U32, 4, 5, 3),
        (Dec, U32, 0, 5, 5),
        (Dec, U32, 6, 5, 5),
        (And, B32, 0b1100, 0b1010, 0b1000),
        (Or, B64, 0b1100, 0b1010, 0b1110),
        (Xor, B64, 0b1100, 0b1010, 0b0110),
        (Add, F32, f(1.5), f(-0.25), f(1.25)),
        (Add, F32, f(1.0e-40), f(0.0), f(0.0)),
        (Add, F32, f(1.2e-38), f(-1.19e-38), f(0.0)),
        (Add, F32, f(f32::INFINITY), f(f32::NEG_INFINITY), 0x7fff_ffff),
        (Add, F64, 1.5f64.to_bits(), 2.0f64.to_bits(), 3.5f64.to_bits()),
        (Add, F16, 0x3c00, 0x1001, 0x3c01), // 1 + 2^-11 and a little: up
        (Add, F16, 0x3c00, 0x1000, 0x3c00), // 1 + 2^-11: a tie, to the even one
        (Add, F16, 0x0001, 0x0001, 0x0002),
        (Add, F16, 0x7bff, 0x7bff, 0x7c00),
        (Add, Bf16, 0x3f80, 0x3b80, 0x3f80), // 1 + 2^-8: a tie, to the even one
        (Add, Bf16, 0x3f80, 0x3b81, 0x3f81),
        (Max, F16, 0x7e00, 0xbc00, 0xbc00), // NaN and -1
        (Min, F16, 0x8000, 0x0000, 0x8000),
        (Max, F16, 0x8000, 0x0000, 0x0000),
        (Max, F16, 0x7e00, 0xfe00, 0x7fff),
        (Min, Bf16, 0x3f80, 0xbf80, 0xbf80),
        (Max, Bf16, 0x3f80, 0xbf80, 0x3f80),
    ] {
        let reduction = Reduction::new(op, ty, false).unwrap();
        assert_eq!(reduction.element(old, operand), want, "{op:?} {ty:?} {old:#x} {operand:#x}");
        let size = reduction.element_bytes();
        let mut memory = [old.to_le_bytes(), old.to_le_bytes()].map(|b| b[..size].to_vec()).concat();
        let operands = [operand.to_le_bytes(), operand.to_le_bytes()].map(|b| b[..size].to_vec()).concat();
        reduction.apply(&mut memory, &operands);
        assert_eq!(memory, [want.to_le_bytes(), want.to_le_bytes()].map(|b| b[..size].to_vec()).concat());
    }
}
