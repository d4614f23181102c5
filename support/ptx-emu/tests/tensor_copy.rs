//! Tensor copies: loads, stores, reductions and multicasts of boxes by tensor maps, and their misuse, on small kernels.

mod kernel_runs;

use kernel_runs::{Buffer, FENCE, INIT, Run, WAIT, config, dump, fast, fill, module, module_with, run_with, value};
use proptest::prelude::*;
use ptx_emu::tma::{DataType, Fill, Swizzle, TensorMap, Tiled};
use ptx_emu::{Arg, Config, Kind, Module, Shape};

const SEEDS: u64 = 10;

/// A tensor in global memory and the box that is copied.
#[derive(Debug, Clone)]
struct Case {
    data_type: DataType,
    dims: Vec<u64>,
    /// Bytes between rows beyond what they need.
    padding: u64,
    box_dims: Vec<u32>,
    element_strides: Vec<u32>,
    swizzle: Swizzle,
    fill: Fill,
    coordinates: Vec<i32>,
}

impl Case {
    fn size(&self) -> u64 {
        u64::from(self.data_type.bytes().unwrap())
    }

    fn strides(&self) -> Vec<u64> {
        let mut strides = vec![];
        let mut at = (self.dims[0] * self.size()).next_multiple_of(16) + self.padding;
        for &dim in &self.dims[1..] {
            strides.push(at);
            at *= dim;
        }
        strides
    }

    fn global_bytes(&self) -> usize {
        let strides = self.strides();
        match strides.last() {
            Some(last) => (last * self.dims[self.dims.len() - 1]) as usize,
            None => (self.dims[0] * self.size()) as usize,
        }
    }

    fn map(&self, address: u64) -> TensorMap {
        TensorMap::tiled(&Tiled {
            data_type: self.data_type,
            address,
            dims: &self.dims,
            strides: &self.strides(),
            box_dims: &self.box_dims,
            element_strides: &self.element_strides,
            swizzle: self.swizzle,
            fill: self.fill,
            ..Tiled::default()
        })
        .unwrap()
    }

    fn bytes(&self) -> u32 {
        (self.box_dims.iter().zip(&self.element_strides).map(|(b, s)| b.div_ceil(*s)).product::<u32>()) * self.size() as u32
    }

    /// Every element of the box: where it lies in shared memory behind an address that is a multiple of 1024, and in the tensor, if inside.
    fn elements(&self) -> Vec<(usize, Option<usize>)> {
        let counts: Vec<u32> = self.box_dims.iter().zip(&self.element_strides).map(|(b, s)| b.div_ceil(*s)).collect();
        let strides: Vec<u64> = [self.size()].into_iter().chain(self.strides()).collect();
        let mask = match self.swizzle {
            Swizzle::B128 => 7,
            Swizzle::B64 => 3,
            Swizzle::B32 => 1,
            _ => 0,
        };
        let mut list = vec![];
        for flat in 0..counts.iter().product::<u32>() {
            let (mut rest, mut global) = (flat, Some(0u64));
            for d in 0..counts.len() {
                let at = i64::from(self.coordinates[d]) + i64::from(rest % counts[d] * self.element_strides[d]);
                rest /= counts[d];
                let inside = (0..self.dims[d] as i64).contains(&at);
                global = global.filter(|_| inside).map(|g| g + at as u64 * strides[d]);
            }
            let place = flat as usize * self.size() as usize;
            list.push((place ^ (place >> 7 & mask) << 4, global.map(|g| g as usize)));
        }
        list
    }

    fn coordinates_text(&self) -> String {
        self.coordinates.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let swizzle = prop_oneof![Just(Swizzle::None), Just(Swizzle::B32), Just(Swizzle::B64), Just(Swizzle::B128)];
    let data_type = prop_oneof![Just(DataType::Uint8), Just(DataType::Bfloat16), Just(DataType::Float32), Just(DataType::Uint64)];
    (swizzle, data_type, 1usize..=5, 0u64..3, any::<bool>()).prop_flat_map(|(swizzle, data_type, rank, padding, nan)| {
        let size = data_type.bytes().unwrap();
        let inner = match swizzle.span() {
            // Narrower rows than the swizzle's would leave bytes that nothing writes.
            Some(span) => Just(span / size).boxed(),
            None => (1u32..5).prop_map(move |n| n * 16 / size).boxed(),
        };
        let others = if rank > 3 { 1u32..4 } else { 1u32..9 };
        (
            inner,
            proptest::collection::vec((others, 1u32..3), rank - 1),
            proptest::collection::vec(1u64..40, rank),
            proptest::collection::vec(-6i32..30, rank),
        )
            .prop_map(move |(inner, outer, dims, coordinates)| Case {
                data_type,
                dims,
                padding: padding * 16,
                box_dims: [inner].into_iter().chain(outer.iter().map(|o| o.0)).collect(),
                element_strides: [1].into_iter().chain(outer.iter().map(|o| o.1)).collect(),
                swizzle,
                fill: if nan && data_type.is_float() { Fill::Nan } else { Fill::Zero },
                coordinates,
            })
    })
}

/// A kernel with `buffers` addresses and a tensor map behind them; `%rd60` is the map's generic address.
fn tensor_module(body: &str, buffers: usize, shared: usize) -> String {
    let params: Vec<String> =
        (0..buffers).map(|i| format!(".param .b64 arg{i}")).chain([".param .align 64 .b8 map[128]".into()]).collect();
    let front: String = (0..buffers).map(|i| format!("ld.param.b64 p{i}, [arg{i}];")).collect();
    let front = format!("{front} mov.b64 %rd59, map; cvta.param.u64 %rd60, %rd59;");
    module_with(body, &params.join(", "), &front, shared)
}

fn map_arg(map: &TensorMap) -> Vec<Arg> {
    vec![Arg::from(&map.encode().bytes[..])]
}

const BOX: u32 = 1024;

/// Loads the box to `smem + 1024` and dumps it.
fn load_case(case: &Case, config: Config, expected_bytes: u32) -> Run {
    let body = format!(
        "{INIT} setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {expected_bytes};
        cp.async.bulk.tensor.{}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1+{BOX}], [%rd60, {{{}}}], [%r1];
        WAITS: {WAIT} {}",
        case.dims.len(),
        case.coordinates_text(),
        dump(BOX, case.bytes() / 4, "0")
    );
    let bytes = (0..case.global_bytes()).map(|i| (value(i as u32) >> 9) as u8).collect();
    let ptx = tensor_module(&body, 2, (BOX + case.bytes()) as usize);
    let buffers = vec![Buffer::zeros(case.bytes() as usize / 4), Buffer::Bytes(bytes)];
    run_with(&ptx, Shape::new(1, 64), buffers, config, |a| map_arg(&case.map(a[1])))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tensor_loads(case in cases(), seed in 0u64..1000, unchecked: bool) {
        let config = if unchecked { fast() } else { config(seed) };
        let run = load_case(&case, config, case.bytes()).ok();
        let (out, source) = (run.bytes(0), run.bytes(1));
        let size = case.size() as usize;
        let nan: &[u8] = if size == 2 { &[0xff, 0x7f] } else { &[0xff, 0xff, 0xff, 0x7f] };
        for (at, global) in case.elements() {
            let expected = match global {
                Some(g) => &source[g..g + size],
                None if case.fill == Fill::Nan => nan,
                None => &[0; 8][..size],
            };
            prop_assert_eq!(&out[at..at + size], expected, "element at {}", at);
        }
    }

    #[test]
    fn tensor_stores(mut case in cases(), seed in 0u64..1000, reduce: bool, unchecked: bool) {
        let config = if unchecked { fast() } else { config(seed) };
        case.element_strides.fill(1);
        case.fill = Fill::Zero;
        let integer = matches!(case.data_type, DataType::Uint64);
        let op = match (reduce, integer) {
            (true, true) => "cp.reduce.async.bulk.tensor.{}d.global.shared::cta.or.bulk_group",
            _ => "cp.async.bulk.tensor.{}d.global.shared::cta.bulk_group",
        };
        let op = op.replace("{}", &case.dims.len().to_string());
        let body = format!(
            "{} @%p1 exit; {op} [%rd60, {{{}}}], [%r1]; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;",
            fill(case.bytes() / 4, FENCE),
            case.coordinates_text()
        );
        let before: Vec<u8> = (0..case.global_bytes()).map(|i| (value(i as u32) >> 9) as u8).collect();
        let ptx = tensor_module(&body, 1, case.bytes() as usize);
        let run = run_with(&ptx, Shape::new(1, 64), vec![Buffer::Bytes(before.clone())], config, |a| map_arg(&case.map(a[0]))).ok();
        let shared: Vec<u8> = (0..case.bytes() / 4).flat_map(|i| (3 * i + 7).to_le_bytes()).collect();
        let size = case.size() as usize;
        let mut expected = before.clone();
        for (at, global) in case.elements() {
            let Some(g) = global else { continue };
            for i in 0..size {
                expected[g + i] = if reduce && integer { before[g + i] | shared[at + i] } else { shared[at + i] };
            }
        }
        prop_assert_eq!(run.bytes(0), expected);
    }
}

/// A [40][64] matrix of bytes, boxes of 8 by 32.
fn plain() -> Case {
    Case {
        data_type: DataType::Uint8,
        dims: vec![64, 40],
        padding: 0,
        box_dims: vec![32, 8],
        element_strides: vec![1, 1],
        swizzle: Swizzle::None,
        fill: Fill::Zero,
        coordinates: vec![16, 36],
    }
}

#[test]
fn a_box_at_the_edge_counts_in_full() {
    for seed in 0..SEEDS {
        load_case(&plain(), config(seed), 256).ok();
    }
    // The bytes inside the tensor alone are too few.
    for seed in 0..SEEDS {
        let run = load_case(&plain(), config(seed), 128);
        assert_eq!(run.report().kind, Kind::DataRace, "{}", run.report());
    }
    let outside = Case { coordinates: vec![-32, 40], ..plain() };
    assert!(load_case(&outside, config(1), 256).ok().bytes(0).iter().all(|&b| b == 0));
}

#[test]
fn tensor_multicast() {
    // Each block of a pair loads half of the rows for both.
    let case = Case { coordinates: vec![0, 0], ..plain() };
    let body = format!(
        "{INIT} setp.eq.u32 %p4, tid, 0; @%p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 512; barrier.cluster.arrive; barrier.cluster.wait;
        setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS; mov.u16 %h1, 3; shl.b32 %r2, rank, 3; shl.b32 %r3, rank, 8; add.u32 %r3, %r3, %r1;
        cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%r3+{BOX}], [%rd60, {{16, %r2}}], [%r1], %h1;
        WAITS: {WAIT} shl.b32 %r50, rank, 7; {} barrier.cluster.arrive; barrier.cluster.wait;",
        dump(BOX, 128, "%r50")
    );
    let source: Vec<u8> = (0..case.global_bytes()).map(|i| (value(i as u32) >> 9) as u8).collect();
    for config in (0..SEEDS).map(config).chain([fast()]) {
        let ptx = tensor_module(&body, 2, 2048);
        let buffers = vec![Buffer::zeros(256), Buffer::Bytes(source.clone())];
        let run = run_with(&ptx, Shape::new(2, 64).clusters(2), buffers, config, |a| map_arg(&case.map(a[1]))).ok();
        let out = run.bytes(0);
        for (i, &byte) in out.iter().enumerate() {
            let (row, column) = (i % 512 / 32, i % 32);
            assert_eq!(byte, source[row * 64 + 16 + column], "byte {i}");
        }
    }
}

#[test]
fn tensor_maps_may_lie_in_memory() {
    let case = plain();
    let body = format!(
        "{INIT} setp.ne.u32 %p2, tid, 0; @%p2 bra WAITS; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 256;
        fence.proxy.tensormap::generic.acquire.gpu [p2], 128; cp.async.bulk.prefetch.tensor.2d.L2.global.tile [p2, {{16, 36}}];
        cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1+{BOX}], [p2, {{16, 36}}], [%r1];
        WAITS: {WAIT} {}",
        dump(BOX, 64, "0")
    );
    let source: Vec<u8> = (0..case.global_bytes()).map(|i| (value(i as u32) >> 9) as u8).collect();
    let attempt = |encode: &dyn Fn(u64) -> Vec<u8>| {
        let module = Module::parse(&module(&body, 3, 2048)).unwrap();
        let machine = ptx_emu::Machine::new(config(0));
        let loaded = machine.load(&module, 0).unwrap();
        let stream = machine.stream(0).unwrap();
        let memory = machine.memory();
        let [out, data, map] = [256, source.len() as u64, 128].map(|n| memory.alloc(0, n).unwrap());
        memory.write(out, &[0; 256]).unwrap();
        memory.write(data, &source).unwrap();
        memory.write(map, &encode(data)).unwrap();
        machine.launch(stream, &loaded, "k", Shape::new(1, 64), &[out.into(), data.into(), map.into()]).unwrap();
        machine.synchronize()
    };
    attempt(&|data| case.map(data).encode().bytes.to_vec()).unwrap_or_else(|e| panic!("{e}"));
    let report = attempt(&|_| vec![0; 128]).unwrap_err();
    assert_eq!(report.kind, Kind::IllegalOperand, "{report}");
    assert!(report.to_string().contains("no tensor map"), "{report}");
}

#[test]
fn misuse_of_tensor_copies_is_reported() {
    let init = "mbarrier.init.shared::cta.b64 [%r1], 1;";
    let load = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes";
    for (body, kind, part) in [
        (format!("{init} {load} [%r1+{}], [%rd60, {{0, 0}}], [%r1];", BOX + 64), Kind::Misaligned, "must be a multiple of 128"),
        (format!("{init} {load} [%r1+{}], [%rd60, {{0, 0}}], [%r1];", BOX + 896), Kind::OutOfBounds, "ends beyond shared memory"),
        (format!("{init} {load} [%r1+{BOX}], [%rd60+8, {{0, 0}}], [%r1];"), Kind::Misaligned, "a tensor map at"),
        (format!("{init} {load} [%r1+{BOX}], [%rd60+64, {{0, 0}}], [%r1];"), Kind::OutOfBounds, "bytes of parameters"),
        (format!("{init} {load} [%r1+{BOX}], [p0, {{0, 0}}], [%r1];"), Kind::OutOfBounds, "a tensor map"),
        (
            format!("{init} {} [%r1+{BOX}], [%rd60, {{0, 0, 0}}], [%r1];", load.replace("2d", "3d")),
            Kind::IllegalOperand,
            "3 coordinates, the tensor map has 2 dimensions",
        ),
        (format!("{load} [%r1+{BOX}], [%rd60, {{0, 0}}], [%r1];"), Kind::BarrierMisuse, "mbarrier.init has not been executed"),
        (
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd60, {0, 0}], [%r1];".into(),
            Kind::UninitializedMemory,
            "was never written",
        ),
        (
            "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%rd60, {0, 0}], [%r1];".into(),
            Kind::IllegalOperand,
            "no Add of a tensor of Uint8",
        ),
    ] {
        let body = format!("mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 exit; {body}");
        let case = plain();
        let buffers = vec![Buffer::zeros(1), Buffer::zeros(case.global_bytes() / 4)];
        let ptx = tensor_module(&body, 2, 2048);
        let run = run_with(&ptx, Shape::new(1, 32), buffers, config(0), |a| map_arg(&case.map(a[1])));
        run.reports(kind, part);
    }
    // A map that says more than is allocated.
    let case = plain();
    let body =
        format!("mov.u32 %r1, smem; setp.ne.u32 %p1, tid, 0; @%p1 exit; {init} {load} [%r1+{BOX}], [%rd60, {{0, 36}}], [%r1];");
    let run = run_with(&tensor_module(&body, 1, 2048), Shape::new(1, 32), vec![Buffer::zeros(38 * 64 / 4)], config(0), |a| {
        map_arg(&case.map(a[0]))
    });
    run.reports(Kind::OutOfBounds, "the allocation of 2432 bytes");
}
