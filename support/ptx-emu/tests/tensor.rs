//! Matrix instructions in kernels: operands in order, convergence, registers in flight, bad operands. What they compute is tested where it is
//! computed; here the same functions give the expected values.

use ptx_emu::tensor::matrix;
use ptx_emu::tensor::mma::Mma;
use ptx_emu::tensor::wgmma::{Descriptor, Form, ROW_BYTES, Swizzle, WARP_ROWS, Wgmma};
use ptx_emu::tensor::wmma::Wmma;
use ptx_emu::tensor::{Accumulation, Accumulator, Multiplicand, PreparedB, Register};
use ptx_emu::{Arg, Checks, Config, Fp8Accumulation, Kind, Machine, Module, Report, Shape};

const HEAD: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

/// Words that look like small FP8, FP16 and BF16 numbers, and like any integer.
fn words(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32)
        .map(|i| {
            let bits = (i.wrapping_add(seed.wrapping_mul(7919)) ^ 0x5bd1).wrapping_mul(0x9e37_79b1);
            bits & 0xbfbf_bfbf | 0x2020_2020
        })
        .collect()
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A machine with a module, and the buffers of a launch.
struct Run {
    config: Config,
    shape: Shape,
    ptx: String,
}

impl Run {
    fn new(threads: u32, ptx: String) -> Self {
        Self { config: Config::default(), shape: Shape::new(1, threads), ptx: format!("{HEAD}{ptx}") }
    }

    /// Launches kernel `k` with buffers of these bytes, and reads the last back: `output` words, not written before.
    fn output(&self, inputs: &[&[u8]], output: usize) -> Result<Vec<u32>, Report> {
        let module = Module::parse(&self.ptx).unwrap_or_else(|error| panic!("{error}\n{}", self.ptx));
        let machine = Machine::new(self.config.clone());
        let loaded = machine.load(&module, 0).unwrap();
        let stream = machine.stream(0).unwrap();
        let mut args = vec![];
        for input in inputs {
            let address = machine.memory().alloc(0, input.len().max(1) as u64).unwrap();
            machine.memory().write(address, input).unwrap();
            args.push(Arg::from(address));
        }
        let result = machine.memory().alloc(0, 4 * output.max(1) as u64).unwrap();
        args.push(Arg::from(result));
        machine.launch(stream, &loaded, "k", self.shape, &args).unwrap();
        machine.synchronize()?;
        let mut read = vec![0; 4 * output];
        machine.memory().read(result, &mut read).unwrap();
        Ok(read.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect())
    }

    fn report(&self, inputs: &[&[u8]]) -> Report {
        match self.output(inputs, 4096) {
            Ok(_) => panic!("nothing was reported"),
            Err(report) => report,
        }
    }
}

/// `{%r0, %r1, ...}`
fn vector(prefix: &str, count: usize) -> String {
    let names: Vec<String> = (0..count).map(|i| format!("%{prefix}{i}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// A kernel whose parameters are buffers `p0`, `p1`, ..., as global addresses in `%p0`, `%p1`, ...; `%tid` is in `%t`.
fn kernel(parameters: usize, body: &str) -> String {
    let list: Vec<String> = (0..parameters).map(|i| format!(".param .u64 p{i}")).collect();
    let mut text =
        format!(".visible .entry k({}) {{\n.reg .b32 %t;\n.reg .b64 %p<16>, %x<16>;\n.reg .pred %q<4>;\n", list.join(", "));
    for i in 0..parameters {
        text += &format!("ld.param.u64 %p{i}, [p{i}];\ncvta.to.global.u64 %p{i}, %p{i};\n");
    }
    text + "mov.u32 %t, %tid.x;\n" + body + "ret;\n}\n"
}

/// Moves `count` words a thread between registers and a buffer: `[thread][count]`.
fn move_words(load: bool, pointer: usize, prefix: &str, count: usize) -> String {
    let mut text = format!("mul.wide.u32 %x15, %t, {};\nadd.s64 %x15, %p{pointer}, %x15;\n", 4 * count);
    for i in 0..count {
        text += &match load {
            true => format!("ld.global.b32 %{prefix}{i}, [%x15+{}];\n", 4 * i),
            false => format!("st.global.b32 [%x15+{}], %{prefix}{i};\n", 4 * i),
        };
    }
    text
}

/// `[lane][count]` words as registers.
fn registers(words: &[u32], count: usize) -> Vec<Register> {
    (0..count).map(|r| std::array::from_fn(|lane| words[lane * count + r])).collect()
}

fn flat(registers: &[Register]) -> Vec<u32> {
    (0..32).flat_map(|lane| registers.iter().map(move |register| register[lane])).collect()
}

#[test]
fn mma() {
    use Accumulator::{F16, F32, S32};
    use Multiplicand as M;
    for (text, shape, d, a, b, saturate) in [
        ("m16n8k16.row.col.f32.f16.f16.f32", (16, 8, 16), F32, M::F16, M::F16, false),
        ("m16n8k8.row.col.f16.f16.f16.f16", (16, 8, 8), F16, M::F16, M::F16, false),
        ("m16n8k16.row.col.f16.f16.f16.f16", (16, 8, 16), F16, M::F16, M::F16, false),
        ("m16n8k16.row.col.f32.bf16.bf16.f32", (16, 8, 16), F32, M::Bf16, M::Bf16, false),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", (16, 8, 8), F32, M::Tf32, M::Tf32, false),
        ("m16n8k4.row.col.f32.tf32.tf32.f32", (16, 8, 4), F32, M::Tf32, M::Tf32, false),
        ("m16n8k32.row.col.f32.e4m3.e5m2.f32", (16, 8, 32), F32, M::E4m3, M::E5m2, false),
        ("m16n8k16.row.col.f16.e5m2.e5m2.f16", (16, 8, 16), F16, M::E5m2, M::E5m2, false),
        ("m16n8k32.row.col.s32.s8.u8.s32", (16, 8, 32), S32, M::S8, M::U8, false),
        ("m16n8k32.row.col.satfinite.s32.u8.s8.s32", (16, 8, 32), S32, M::U8, M::S8, true),
        ("m8n8k16.row.col.s32.s8.s8.s32", (8, 8, 16), S32, M::S8, M::S8, false),
        ("m16n8k64.row.col.s32.s4.u4.s32", (16, 8, 64), S32, M::S4, M::U4, false),
    ] {
        let form = Mma::new(shape, d, a, b, saturate).unwrap();
        let (na, nb, nd) = (form.a_registers(), form.b_registers(), form.d_registers());
        let body = [
            ".reg .b32 %a<4>, %b<2>, %c<4>, %d<4>;\n".to_string(),
            move_words(true, 0, "a", na),
            move_words(true, 1, "b", nb),
            move_words(true, 2, "c", nd),
            format!(
                "mma.sync.aligned.{text} {}, {}, {}, {};\n",
                vector("d", nd),
                vector("a", na),
                vector("b", nb),
                vector("c", nd)
            ),
            move_words(false, 3, "d", nd),
        ];
        let (aw, bw, cw) = (words(32 * na, 1), words(32 * nb, 2), words(32 * nd, 3));
        let run = Run::new(32, kernel(4, &body.concat()));
        let got = run.output(&[&bytes(&aw), &bytes(&bw), &bytes(&cw)], 32 * nd).unwrap();
        let mut want = vec![[0; 32]; nd];
        form.run(&registers(&aw, na), &registers(&bw, nb), &registers(&cw, nd), &mut want, Accumulation::Exact).unwrap();
        assert_eq!(got, flat(&want), "{text}");
    }
}

/// The second way of adding FP8 products is the machine's choice.
#[test]
fn fp8_accumulation_of_the_machine() {
    let form = Mma::new((16, 8, 32), Accumulator::F32, Multiplicand::E4m3, Multiplicand::E4m3, false).unwrap();
    let body = [
        ".reg .b32 %a<4>, %b<2>, %d<4>;\n".to_string(),
        move_words(true, 0, "a", 4),
        move_words(true, 1, "b", 2),
        move_words(true, 2, "d", 4),
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%b0, %b1}, {%d0, %d1, %d2, \
         %d3};\n"
            .to_string(),
        move_words(false, 3, "d", 4),
    ];
    let (aw, bw) = (words(128, 1), words(64, 2));
    let cw = vec![1000.1f32.to_bits(); 128];
    let mut results = vec![];
    for (fp8, accumulation) in [(Fp8Accumulation::Exact, Accumulation::Exact), (Fp8Accumulation::Hopper, Accumulation::Hopper)] {
        let mut run = Run::new(32, kernel(4, &body.concat()));
        run.config.fp8 = fp8;
        let got = run.output(&[&bytes(&aw), &bytes(&bw), &bytes(&cw)], 128).unwrap();
        let mut want = [[0; 32]; 4];
        form.run(&registers(&aw, 4), &registers(&bw, 2), &registers(&cw, 4), &mut want, accumulation).unwrap();
        assert_eq!(got, flat(&want));
        results.push(got);
    }
    assert_ne!(results[0], results[1]);
}

#[test]
fn mma_of_doubles() {
    // A has 1, 2, 3, 4 along k in row 0 (lanes 0 to 3) and zeros elsewhere; B has 10 everywhere; C is 0.5.
    let body = "\
        .reg .f64 %fa, %fb, %fc, %fd<2>, %zero;\n.reg .b32 %n;\n\
        mov.f64 %zero, 0d0000000000000000;\n\
        add.u32 %n, %t, 1;\n\
        cvt.rn.f64.u32 %fa, %n;\n\
        setp.lt.u32 %q0, %t, 4;\n\
        selp.f64 %fa, %fa, %zero, %q0;\n\
        mov.f64 %fb, 0d4024000000000000;\n\
        mov.f64 %fc, 0d3FE0000000000000;\n\
        mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%fd0, %fd1}, {%fa}, {%fb}, {%fc, %fc};\n\
        mul.wide.u32 %x0, %t, 16;\nadd.s64 %x0, %p0, %x0;\n\
        st.global.f64 [%x0], %fd0;\nst.global.f64 [%x0+8], %fd1;\n";
    let got = Run::new(32, kernel(1, body)).output(&[], 128).unwrap();
    for lane in 0..32 {
        for i in 0..2 {
            let value = f64::from_bits(u64::from(got[lane * 4 + 2 * i]) | u64::from(got[lane * 4 + 2 * i + 1]) << 32);
            assert_eq!(value, if lane < 4 { 100.5 } else { 0.5 }, "lane {lane}");
        }
    }
}

/// Each lane stores its words where it is told, and the four matrices come back, transposed or not.
#[test]
fn ldmatrix_stmatrix_movmatrix() {
    let input = words(32 * 4, 5);
    for (load, store) in [("", ""), (".trans", ""), ("", ".trans"), (".trans", ".trans")] {
        for count in [1, 2, 4] {
            // Rows 80 bytes apart, so that every address is the lane's own; through a generic address for the load.
            let body = [
                ".reg .b32 %a<4>, %b<4>, %s, %m;\n.shared .align 16 .b8 tile[4096];\n".to_string(),
                move_words(true, 0, "a", count),
                "mov.u32 %s, tile;\nmad.lo.u32 %s, %t, 80, %s;\ncvt.u64.u32 %x0, %s;\ncvta.shared.u64 %x1, %x0;\n".to_string(),
                format!("stmatrix.sync.aligned.m8n8.x{count}{store}.shared.b16 [%s], {};\n", vector("a", count)),
                "bar.warp.sync 0xffffffff;\n".to_string(),
                format!("ldmatrix.sync.aligned.m8n8.x{count}{load}.b16 {}, [%x1];\n", vector("b", count)),
                "movmatrix.sync.aligned.m8n8.trans.b16 %m, %b0;\nmov.b32 %a0, %m;\n".to_string(),
                move_words(false, 1, "b", count),
                format!("mul.wide.u32 %x2, %t, 4;\nadd.s64 %x2, %p1, %x2;\nst.global.b32 [%x2+{}], %m;\n", 32 * 4 * count),
            ];
            let words = &input[..32 * count];
            let got = Run::new(32, kernel(2, &body.concat())).output(&[&bytes(words)], 32 * (count + 1)).unwrap();
            let loaded: Vec<Register> = registers(words, count)
                .iter()
                .map(|register| matrix::load(&matrix::store(register, !store.is_empty()), !load.is_empty()))
                .collect();
            assert_eq!(got[..32 * count], flat(&loaded)[..], "{load} {store} x{count}");
            assert_eq!(got[32 * count..], matrix::transpose(&loaded[0])[..], "{load} {store} x{count}");
        }
    }
}

#[test]
fn ldmatrix_of_bad_addresses() {
    let with = |setup: &str| {
        let body = format!(
            ".reg .b32 %a, %s;\n.shared .align 16 .b8 tile[512];\nmov.u32 %a, 0;\nmov.u32 %s, tile;\n{setup}\
             ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%a}}, [%s];\n"
        );
        Run::new(32, kernel(1, &body)).report(&[])
    };
    assert_eq!(with("add.u32 %s, %s, 8;\n").kind, Kind::Misaligned);
    assert_eq!(with("add.u32 %s, %s, 512;\n").kind, Kind::OutOfBounds);
    assert_eq!(with("mov.u32 %s, 0;\n").kind, Kind::OutOfBounds);
    assert_eq!(with("").kind, Kind::UninitializedMemory);
}

/// `.sync.aligned` needs the whole warp: lanes that come later are waited for, lanes that cannot come are an error.
#[test]
fn whole_warps() {
    let mma = "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%d0, %d1}, {%a}, {%a}, {%d0, %d1};\n";
    let head = ".reg .b32 %a, %d<2>;\nmov.u32 %a, 0x01010101;\nmov.u32 %d0, 0;\nmov.u32 %d1, 0;\nsetp.lt.u32 %q0, %t, 7;\n";
    let tail = move_words(false, 0, "d", 2);
    let late = format!("{head}@%q0 bra LATE;\nbra JOIN;\nLATE:\nadd.u32 %d0, %d0, 0;\nJOIN:\n{mma}{tail}");
    assert_eq!(Run::new(32, kernel(1, &late)).output(&[], 64).unwrap(), vec![16; 64]);
    let exited = format!("{head}@%q0 exit;\n{mma}{tail}");
    let report = Run::new(32, kernel(1, &exited)).report(&[]);
    assert_eq!(report.kind, Kind::Divergence);
    assert!(report.message.contains("0x0000007f"), "{report}");
    let guarded = format!("{head}@%q0 {mma}{tail}");
    assert_eq!(Run::new(32, kernel(1, &guarded)).report(&[]).kind, Kind::Divergence);
    let partial = format!("{head}{mma}{tail}");
    assert_eq!(Run::new(24, kernel(1, &partial)).report(&[]).kind, Kind::Divergence);
}

#[test]
fn wmma() {
    // D = A B + C of row-major A and column-major B in FP16 from global memory, scaled element by element, stored by columns.
    let body = "\
        .reg .b32 %a<8>, %b<8>, %s;\n.reg .f32 %c<8>, %d<8>;\nmov.u32 %s, 24;\n\
        wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {%a0, %a1, %a2, %a3, %a4, %a5, %a6, %a7}, [%p0], %s;\n\
        wmma.load.b.sync.aligned.col.m16n16k16.global.f16 {%b0, %b1, %b2, %b3, %b4, %b5, %b6, %b7}, [%p1];\n\
        wmma.load.c.sync.aligned.m16n16k16.row.f32 {%c0, %c1, %c2, %c3, %c4, %c5, %c6, %c7}, [%p2];\n\
        wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7}, {%a0, %a1, %a2, %a3, %a4, %a5, \
        %a6, %a7}, {%b0, %b1, %b2, %b3, %b4, %b5, %b6, %b7}, {%c0, %c1, %c2, %c3, %c4, %c5, %c6, %c7};\n\
        add.f32 %d0, %d0, %d0;\nadd.f32 %d1, %d1, %d1;\nadd.f32 %d2, %d2, %d2;\nadd.f32 %d3, %d3, %d3;\n\
        add.f32 %d4, %d4, %d4;\nadd.f32 %d5, %d5, %d5;\nadd.f32 %d6, %d6, %d6;\nadd.f32 %d7, %d7, %d7;\n\
        wmma.store.d.sync.aligned.col.m16n16k16.global.f32 [%p3], {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7}, 20;\n";
    let (a, b) = (words(16 * 12, 1), words(16 * 8, 2));
    let c: Vec<u32> = (0..256).map(|i| (i as f32).to_bits()).collect();
    // Only what a column of 16 covers is written.
    let mut run = Run::new(32, kernel(4, body));
    run.config.checks = Checks::ALL;
    let got = run.output(&[&bytes(&a), &bytes(&b), &bytes(&c)], 20 * 15 + 16).unwrap();
    let half = |words: &[u32], i: usize| ptx_emu::formats::f16_to_f32((words[i / 2] >> (16 * (i % 2))) as u16);
    for row in 0..16 {
        for column in 0..16 {
            let start = f32::from_bits(c[row * 16 + column]);
            let sum = (0..16).fold(start, |sum, k| sum + half(&a, row * 24 + k) * half(&b, column * 16 + k));
            assert_eq!(f32::from_bits(got[column * 20 + row]), 2.0 * sum, "({row}, {column})");
        }
    }
    let wmma = Wmma::new((16, 16, 16), Accumulator::F32, Multiplicand::F16, Multiplicand::F16, Accumulator::F32, false);
    assert!(wmma.is_ok());
}

/// Shared memory of the kernels below: A from 2048 on, B from 16384 on, the dynamic part filled by the host's bytes.
const SHARED: u32 = 48 * 1024;
const DYNAMIC: usize = SHARED as usize - 1024;

/// Copies the first buffer to shared memory and makes it visible to the asynchronous proxy.
fn fill_shared(fence: &str) -> String {
    format!(
        ".reg .b32 %i, %v, %s;\nmov.u32 %s, tile;\nshl.b32 %i, %t, 2;\nFILL:\n\
         cvt.u64.u32 %x0, %i;\nadd.s64 %x0, %p0, %x0;\nld.global.b32 %v, [%x0];\nadd.u32 %v, %v, 0;\nadd.u32 %s, %i, tile;\n\
         st.shared.b32 [%s], %v;\nadd.u32 %i, %i, 512;\nsetp.lt.u32 %q1, %i, {DYNAMIC};\n@%q1 bra FILL;\n{fence}\nbar.sync 0;\n"
    )
}

const PROXY_FENCE: &str = "fence.proxy.async.shared::cta;";

fn descriptor(start: u32, swizzle: Swizzle) -> u64 {
    let stride_byte_offset = 8 * swizzle.bytes().max(32);
    Descriptor { start, leading_byte_offset: 128, stride_byte_offset, base_offset: 0, swizzle }.encode()
}

/// A kernel of one warpgroup: `product` between loading and storing the accumulators.
fn wgmma_kernel(registers: usize, fence: &str, product: &str) -> String {
    let body = [
        format!(".reg .b32 %d<{registers}>, %a<4>;\n.reg .b64 %da, %db;\n"),
        fill_shared(fence),
        move_words(true, 1, "d", registers),
        product.to_string(),
        move_words(false, 2, "d", registers),
    ];
    format!(".extern .shared .align 1024 .b8 tile[];\n{}", kernel(3, &body.concat()))
}

fn shared_image(seed: u32) -> Vec<u8> {
    bytes(&words(DYNAMIC / 4, seed))
}

/// What the four warps' registers become.
fn wgmma_expected(form: Form, image: &[u8], a: Result<u64, &[u32]>, b: u64, scale_d: bool, d: &[u32]) -> Vec<u32> {
    let wgmma = Wgmma::new(form).unwrap();
    let mut shared = vec![0; 1024];
    shared.extend_from_slice(image);
    let (mut bytes_of_b, mut prepared) = (vec![], PreparedB::default());
    wgmma.b_from_shared(&shared, b, &mut bytes_of_b).unwrap();
    wgmma.prepare_b(&bytes_of_b, Accumulation::Exact, &mut prepared).unwrap();
    let count = wgmma.d_registers();
    let mut result = vec![];
    for warp in 0..4 {
        let mut rows = [0; WARP_ROWS * ROW_BYTES];
        match a {
            Ok(descriptor) => wgmma.a_from_shared(warp, &shared, descriptor, &mut rows).unwrap(),
            Err(words) => wgmma.a_from_registers(&registers(&words[warp * 128..], 4), &mut rows).unwrap(),
        }
        let mut of_warp = registers(&d[warp * 32 * count..], count);
        let mut sums = vec![0; WARP_ROWS * form.n];
        wgmma.d_from_registers(&of_warp, &mut sums).unwrap();
        wgmma.run(&rows, &prepared, scale_d, Accumulation::Exact, &mut sums).unwrap();
        wgmma.d_to_registers(&sums, &mut of_warp).unwrap();
        result.extend(flat(&of_warp));
    }
    result
}

fn form(n: usize, k: usize, d: Accumulator, a: Multiplicand, b: Multiplicand) -> Form {
    Form {
        n,
        k,
        d,
        a,
        b,
        a_in_registers: false,
        negate_a: false,
        negate_b: false,
        transpose_a: false,
        transpose_b: false,
        saturate: false,
    }
}

const A: u32 = 2048;
const B: u32 = 16384;
const COMMIT_AND_WAIT: &str = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n";

#[test]
fn wgmma_forms() {
    use Accumulator::{F16, F32, S32};
    use Multiplicand as M;
    let image = shared_image(3);
    for (text, form, immediates, scale_d) in [
        ("m64n16k32.f32.e4m3.e5m2", form(16, 32, F32, M::E4m3, M::E5m2), ", 1, 1", true),
        ("m64n128k32.f32.e4m3.e4m3", Form { negate_b: true, ..form(128, 32, F32, M::E4m3, M::E4m3) }, ", 1, -1", false),
        ("m64n64k16.f32.bf16.bf16", form(64, 16, F32, M::Bf16, M::Bf16), ", 1, 1, 0, 0", true),
        (
            "m64n64k16.f16.f16.f16",
            Form { transpose_a: true, transpose_b: true, ..form(64, 16, F16, M::F16, M::F16) },
            ", 1, 1, 1, 1",
            true,
        ),
        ("m64n8k8.f32.tf32.tf32", Form { negate_a: true, ..form(8, 8, F32, M::Tf32, M::Tf32) }, ", -1, 1", true),
        ("m64n32k32.s32.s8.u8", form(32, 32, S32, M::S8, M::U8), "", true),
        ("m64n32k32.s32.u8.u8.satfinite", Form { saturate: true, ..form(32, 32, S32, M::U8, M::U8) }, "", false),
        (
            "m64n24k16.f32.f16.f16",
            Form { a_in_registers: true, transpose_b: true, ..form(24, 16, F32, M::F16, M::F16) },
            ", 1, 1, 1",
            true,
        ),
        ("m64n256k32.f32.e5m2.e5m2", Form { a_in_registers: true, ..form(256, 32, F32, M::E5m2, M::E5m2) }, ", 1, 1", true),
    ] {
        for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
            let count = Wgmma::new(form).unwrap().d_registers();
            let (a, b) = (descriptor(A, swizzle), descriptor(B, swizzle));
            let mut product = String::new();
            if form.a_in_registers {
                // Any words will do: those of the old accumulators' buffer.
                product += "mul.wide.u32 %x3, %t, 16;\nadd.s64 %x3, %p1, %x3;\n";
                for i in 0..4 {
                    product += &format!("ld.global.b32 %a{i}, [%x3+{}];\n", 4 * i);
                }
            }
            let first = if form.a_in_registers { "{%a0, %a1, %a2, %a3}".to_string() } else { "%da".to_string() };
            product += &format!(
                "mov.b64 %da, {a};\nmov.b64 %db, {b};\nsetp.eq.u32 %q0, 0, {};\nwgmma.fence.sync.aligned;\n\
                 wgmma.mma_async.sync.aligned.{text} {}, {first}, %db, %q0{immediates};\n{COMMIT_AND_WAIT}",
                u32::from(!scale_d),
                vector("d", count),
            );
            let old = words(128 * count.max(4), 4);
            let old = &old[..128 * count];
            let mut padded = old.to_vec();
            padded.resize(128 * count.max(4), 0x2c2c_2c2c);
            let run = Run {
                shape: Shape::new(1, 128).shared(DYNAMIC as u32),
                ..Run::new(128, wgmma_kernel(count, PROXY_FENCE, &product))
            };
            let got = run.output(&[&image, &bytes(&padded)], 128 * count).unwrap_or_else(|e| panic!("{text} {swizzle:?}: {e}"));
            let operand = if form.a_in_registers { Err(&padded[..]) } else { Ok(a) };
            let want = wgmma_expected(form, &image, operand, b, scale_d, old);
            assert!(got == want, "{text} {swizzle:?}");
        }
    }
}

/// One wgmma of 64x16x32 with this text around it: `before`, the instruction, `after`.
fn sequence(before: &str, after: &str) -> Run {
    let (a, b) = (descriptor(A, Swizzle::B128), descriptor(B, Swizzle::B128));
    let product = format!(
        "mov.b64 %da, {a};\nmov.b64 %db, {b};\n{before}wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {}, %da, %db, 1, 1, 1;\n\
         {after}",
        vector("d", 8)
    );
    Run { shape: Shape::new(1, 128).shared(DYNAMIC as u32), ..Run::new(128, wgmma_kernel(8, PROXY_FENCE, &product)) }
}

fn inputs() -> [Vec<u8>; 2] {
    [shared_image(3), bytes(&words(128 * 8, 4))]
}

const FENCE: &str = "wgmma.fence.sync.aligned;\n";

#[test]
fn registers_in_flight() {
    let [image, old] = inputs();
    let kind = |before: &str, after: &str| sequence(before, after).output(&[&image, &old], 1024).map_err(|e| e.kind).err();
    let again = format!("wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {}, %da, %db, 1, 1, 1;\n", vector("d", 8));
    assert_eq!(kind(FENCE, COMMIT_AND_WAIT), None);
    // Not waited for: not at all, not committed, one group too few.
    assert_eq!(kind(FENCE, ""), Some(Kind::WgmmaRegisterInFlight));
    assert_eq!(kind(FENCE, "wgmma.wait_group.sync.aligned 0;\n"), Some(Kind::WgmmaRegisterInFlight));
    let commit = "wgmma.commit_group.sync.aligned;\n";
    assert_eq!(kind(FENCE, &format!("{commit}wgmma.wait_group.sync.aligned 1;\n")), Some(Kind::WgmmaRegisterInFlight));
    // The same accumulators, same shape: fine without a fence, complete when the last group is.
    assert_eq!(kind(FENCE, &format!("{again}{COMMIT_AND_WAIT}")), None);
    assert_eq!(kind(FENCE, &format!("{commit}{again}{commit}wgmma.wait_group.sync.aligned 0;\n")), None);
    assert_eq!(
        kind(FENCE, &format!("{commit}{again}{commit}wgmma.wait_group.sync.aligned 1;\n")),
        Some(Kind::WgmmaRegisterInFlight)
    );
    // Another shape on accumulators in flight.
    let other = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%d0, %d1, %d2, %d3}, %da, %db, 1, 1, 1;\n";
    assert_eq!(kind(FENCE, &format!("{other}{COMMIT_AND_WAIT}")), Some(Kind::WgmmaRegisterInFlight));
    assert_eq!(kind(FENCE, &format!("{COMMIT_AND_WAIT}{other}{COMMIT_AND_WAIT}")), None);
    // Accumulators in flight as fragments of A.
    let fragments =
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%a0, %a1, %a2, %a3}, {%d0, %d1, %d2, %d3}, %db, 0, 1, 1;\n";
    assert_eq!(kind(FENCE, &format!("{fragments}{COMMIT_AND_WAIT}")), Some(Kind::WgmmaRegisterInFlight));
    // Copies: made in flight, used after the wait; used before it.
    let copy = "mov.b32 %a0, %d0;\n";
    assert_eq!(kind(FENCE, &format!("{copy}{COMMIT_AND_WAIT}add.u32 %a1, %a0, 1;\n")), None);
    assert_eq!(kind(FENCE, &format!("{copy}add.u32 %a1, %a0, 1;\n{COMMIT_AND_WAIT}")), Some(Kind::WgmmaRegisterInFlight));
    assert_eq!(kind(FENCE, &format!("{copy}add.u32 %a0, %t, 1;\nadd.u32 %a1, %a0, 1;\n{COMMIT_AND_WAIT}")), None);
    assert_eq!(kind(FENCE, &format!("mov.b32 %d0, 0;\n{COMMIT_AND_WAIT}")), Some(Kind::WgmmaRegisterInFlight));
    // Off, when that check is off.
    let mut unchecked = sequence(FENCE, "");
    unchecked.config.checks = Checks { in_flight: false, ..Checks::ALL };
    assert!(unchecked.output(&[&image, &old], 1024).is_ok());
}

#[test]
fn missing_fences() {
    let [image, old] = inputs();
    let kind = |before: &str, after: &str| sequence(before, after).output(&[&image, &old], 1024).map_err(|e| e.kind).err();
    assert_eq!(kind("", COMMIT_AND_WAIT), Some(Kind::MissingWgmmaFence));
    assert_eq!(kind(&format!("{FENCE}add.u32 %d3, %d3, 1;\n"), COMMIT_AND_WAIT), Some(Kind::MissingWgmmaFence));
    assert_eq!(kind(&format!("add.u32 %d3, %d3, 1;\n{FENCE}"), COMMIT_AND_WAIT), None);
    // What a compiler's copies and constants do is not the program's.
    assert_eq!(kind(&format!("mov.b32 %a0, %d3;\n{FENCE}mov.b32 %d3, %a0;\n"), COMMIT_AND_WAIT), None);
    assert_eq!(
        kind(&format!("{FENCE}add.u32 %a0, %d3, 1;\nmov.b32 %d3, %a0;\n"), COMMIT_AND_WAIT),
        Some(Kind::MissingWgmmaFence)
    );
}

#[test]
fn what_the_warps_must_agree_on() {
    let [image, old] = inputs();
    let report = |before: &str, after: &str| sequence(before, after).report(&[&image, &old]);
    let other_warp = "setp.lt.u32 %q2, %t, 96;\nselp.b64 %db, %db, %da, %q2;\n";
    let found = report(&format!("{FENCE}{other_warp}"), COMMIT_AND_WAIT);
    assert_eq!(found.kind, Kind::Divergence);
    assert!(found.message.contains("for B"), "{found}");
    let lane = "setp.ne.u32 %q2, %t, 5;\nselp.b64 %da, %da, %db, %q2;\n";
    assert_eq!(report(&format!("{FENCE}{lane}"), COMMIT_AND_WAIT).kind, Kind::Divergence);
    // Warp 3 leaves before the instruction: the others wait for it, or are done before it shows.
    let leaves = format!("{FENCE}setp.ge.u32 %q2, %t, 96;\n@%q2 exit;\n");
    let found = report(&leaves, COMMIT_AND_WAIT);
    assert_eq!(found.kind, Kind::Deadlock);
    assert!(found.to_string().contains("for warps 3 of its warpgroup"), "{found}");
    let mut alone = sequence(&leaves, COMMIT_AND_WAIT);
    alone.config.checks = Checks { races: false, ..Checks::ALL };
    let found = alone.report(&[&image, &old]);
    assert_eq!(found.kind, Kind::Divergence);
    assert!(found.message.contains("not executed by warps 3"), "{found}");
    // A block of three warps has no warpgroup.
    let mut small = sequence(FENCE, COMMIT_AND_WAIT);
    small.shape = Shape::new(1, 96).shared(DYNAMIC as u32);
    assert_eq!(small.report(&[&image, &old]).kind, Kind::Divergence);
}

#[test]
fn bad_operands_of_wgmma() {
    let [image, old] = inputs();
    let with = |descriptor: u64| {
        let product = format!(
            "mov.b64 %db, {descriptor};\n{FENCE}wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {}, %db, %db, 1, 1, 1;\n{COMMIT_AND_WAIT}",
            vector("d", 8)
        );
        let run =
            Run { shape: Shape::new(1, 128).shared(DYNAMIC as u32), ..Run::new(128, wgmma_kernel(8, PROXY_FENCE, &product)) };
        run.output(&[&image, &old], 1024).map_err(|e| e.kind).err()
    };
    assert_eq!(with(descriptor(A, Swizzle::B64)), None);
    assert_eq!(with(descriptor(SHARED - 1024, Swizzle::B64)), Some(Kind::OutOfBounds));
    assert_eq!(with(descriptor(A, Swizzle::B64) | 1 << 47), Some(Kind::IllegalOperand));
    assert_eq!(with(descriptor(512, Swizzle::B64)), Some(Kind::OutOfBounds));
    // Part of what is read was never written.
    let mut run = sequence(FENCE, COMMIT_AND_WAIT);
    run.shape = Shape::new(1, 128).shared(DYNAMIC as u32);
    run.ptx = run.ptx.replace(&format!("setp.lt.u32 %q1, %i, {DYNAMIC};"), &format!("setp.lt.u32 %q1, %i, {};", B - 1024));
    assert_eq!(run.report(&[&image, &old]).kind, Kind::UninitializedMemory);
    // An accumulator that nothing wrote, read and not read.
    for (scale_d, want) in [(1, Some(Kind::UninitializedRegister)), (0, None)] {
        let product = format!(
            "mov.b64 %da, {};\nmov.b64 %db, {};\n{FENCE}wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {{%a0, %a1, %a2, %a3}}, %da, %db, \
             {scale_d}, 1, 1;\n{COMMIT_AND_WAIT}add.u32 %a0, %a0, 1;\n",
            descriptor(A, Swizzle::B128),
            descriptor(B, Swizzle::B128)
        );
        let run =
            Run { shape: Shape::new(1, 128).shared(DYNAMIC as u32), ..Run::new(128, wgmma_kernel(8, PROXY_FENCE, &product)) };
        assert_eq!(run.output(&[&image, &old], 1024).map_err(|e| e.kind).err(), want);
    }
}

/// Ordinary stores to the operands without a proxy fence; with it, nothing over many seeds.
#[test]
fn proxies() {
    let [image, old] = inputs();
    let mut run = sequence(FENCE, COMMIT_AND_WAIT);
    for seed in 0..5 {
        run.config.seed = seed;
        if let Err(report) = run.output(&[&image, &old], 1024) {
            panic!("{report}");
        }
    }
    run.ptx = run.ptx.replace(PROXY_FENCE, "");
    assert_eq!(run.report(&[&image, &old]).kind, Kind::MissingProxyFence);
    // And without the barrier, a race.
    run.ptx = sequence(FENCE, COMMIT_AND_WAIT).ptx.replace("bar.sync 0;", "");
    assert!(matches!(run.report(&[&image, &old]).kind, Kind::DataRace | Kind::UninitializedMemory));
    // Writing B again before the wait.
    let overwrite = format!("mov.u32 %s, tile;\nst.shared.b32 [%s+{}], %t;\n{COMMIT_AND_WAIT}", B - 1024);
    assert_eq!(sequence(FENCE, &overwrite).report(&[&image, &old]).kind, Kind::DataRace);
}

/// What does not exist is refused where the module is loaded, with its name.
#[test]
fn unknown_forms() {
    for (text, part) in [
        (
            "mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16 {%d0, %d1}, {%d0, %d1, %d2, %d3}, {%d0, %d1}, {%d0, %d1};",
            "no form",
        ),
        ("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%d0}, {%d0}, {%d0}, {%d0};", "unknown instruction mma"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%d0, %d1}, {%d0, %d1, %d2, %d3}, {%d0, %d1}, {%d0, %d1};",
            "registers",
        ),
        ("ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%d0, %d1}, [%d2];", "unknown instruction ldmatrix"),
        ("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%d0, %d1, %d2, %d3}, %x0, %x1, 1, 1;", "immediates"),
        ("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%d0, %d1, %d2, %d3}, %x0, %x1, 1, 2, 1;", "imm-scale"),
        ("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%d0, %d0, %d2, %d3}, %x0, %x1, 1, 1, 1;", "different registers"),
        ("wgmma.mma_async.sp.sync.aligned.m64n8k64.f32.e4m3.e4m3 {%d0}, %x0, %x1, %d1, 0, 1, 1, 1;", "unknown instruction wgmma"),
    ] {
        let ptx = format!("{HEAD}{}", kernel(1, &format!(".reg .b32 %d<4>;\n{text}\n")));
        let error = match Module::parse(&ptx) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(part), "{text}: {error}");
    }
}
