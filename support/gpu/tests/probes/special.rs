//! Instructions that are about memory, barriers, copies and matrices: a kernel for each few that only mean something together.

use crate::{Expected, Probe, run};
use v3_gpu::{Args, Device, Error, LaunchConfig, Swizzle, TensorMapDesc, TensorType};

const HEAD: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

/// A kernel `probe(from, to)`, with `%from`, `%to`, `%t` loaded and `%mine` = `to` + 8 * the thread's number in the grid.
fn kernel(declarations: &str, body: &str) -> String {
    format!(
        "{HEAD}{declarations}
.visible .entry probe(.param .u64 from, .param .u64 to)
{{
    .reg .pred %p, %q;
    .reg .b16 %h;
    .reg .b32 %a, %b, %c, %d, %o, %t, %cta;
    .reg .b64 %ra, %rb, %ro, %from, %to, %at, %mine;
    ld.param.u64 %from, [from];
    ld.param.u64 %to, [to];
    mov.u32 %t, %tid.x;
    mov.u32 %cta, %ctaid.x;
    mov.u32 %a, %ntid.x;
    mad.lo.u32 %a, %cta, %a, %t;
    mul.wide.u32 %at, %a, 8;
    add.s64 %mine, %to, %at;
{body}
    ret;
}}
"
    )
}

fn probe(
    name: &str,
    covers: &[&'static str],
    section: &'static str,
    run: impl Fn(&Device) -> Result<Vec<u64>, Error> + 'static,
    expected: Vec<u64>,
) -> Probe {
    Probe { name: name.into(), covers: covers.to_vec(), section, run: Box::new(run), expected: Expected::Words(expected) }
}

/// A probe of one kernel with inputs and outputs alone.
pub fn plain(
    name: &str,
    covers: &[&'static str],
    section: &'static str,
    (declarations, body): (&str, &str),
    config: LaunchConfig,
    inputs: Vec<u64>,
    expected: Vec<u64>,
) -> Probe {
    let text = kernel(declarations, body);
    let outputs = expected.len();
    probe(name, covers, section, move |device| run(device, &text, &config, &inputs, outputs), expected)
}

pub fn probes() -> Vec<Probe> {
    let one = LaunchConfig::new(1, 32);
    let words: Vec<u64> = (0..64).map(|i| 0x0101_0101_0101_0101u64.wrapping_mul(i + 1) ^ (i << 56)).collect();
    let mut all = vec![
        plain(
            "ld.global.nc",
            &["ld.global.nc.L1::no_allocate.L2::256B.v4.u32", "ld.global.nc.f32", "ld.global.nc.u16", "st.global.v4.u32"],
            "9.7.9.9",
            (
                "",
                "mul.wide.u32 %at, %t, 16; add.s64 %ra, %from, %at; add.s64 %rb, %to, %at;
                 ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%a, %b, %c, %d}, [%ra];
                 ld.global.nc.f32 %a, [%ra+4]; ld.global.nc.u16 %h, [%ra+6]; cvt.u32.u16 %d, %h;
                 st.global.v4.u32 [%rb], {%a, %b, %c, %d};",
            ),
            one,
            words.clone(),
            words
                .chunks(2)
                .flat_map(|w| {
                    let (high, low) = (w[0] >> 32, w[1] & 0xffff_ffff);
                    [high << 32 | high, (w[0] >> 48) << 32 | low]
                })
                .collect(),
        ),
        plain(
            "st.global",
            &["st.global.f32", "st.global.u8", "st.global.v2.u32"],
            "9.7.9.12",
            (
                "",
                "mul.wide.u32 %at, %t, 16; add.s64 %rb, %to, %at;
                 add.u32 %a, %t, 256; add.u32 %b, %t, 0x01020300;
                 st.global.v2.u32 [%rb], {%a, %b}; st.global.f32 [%rb+8], %b; st.global.u8 [%rb+13], %a;",
            ),
            one,
            vec![0],
            (0..32u64).flat_map(|i| [(i + 0x0102_0300) << 32 | (i + 256), i << 40 | (i + 0x0102_0300)]).collect(),
        ),
        // Each thread reads what its neighbour wrote.
        plain(
            "shared",
            &[
                "st.shared.v4.u32",
                "st.shared.v2.u32",
                "st.shared.f32",
                "ld.shared.v4.u32",
                "ld.shared.f32",
                "ld.shared.u32",
                "bar.sync",
            ],
            "9.7.9.8, 9.7.9.12, 9.7.13.1",
            (
                ".shared .align 16 .b8 memory[512];",
                "mov.u32 %o, memory; mul.lo.u32 %a, %t, 16; add.u32 %o, %o, %a;
                 add.u32 %b, %t, 100; add.u32 %c, %t, 200; add.u32 %d, %t, 300;
                 st.shared.v4.u32 [%o], {%t, %b, %c, %d}; st.shared.v2.u32 [%o+8], {%d, %c}; st.shared.f32 [%o+4], %c;
                 bar.sync 0;
                 xor.b32 %a, %t, 1; mul.lo.u32 %a, %a, 16; mov.u32 %o, memory; add.u32 %o, %o, %a;
                 ld.shared.v4.u32 {%a, %b, %c, %d}, [%o]; ld.shared.u32 %d, [%o+8]; ld.shared.f32 %c, [%o+12];
                 mul.lo.u32 %a, %a, 1000000; add.u32 %a, %a, %b; mul.lo.u32 %c, %c, 1000; add.u32 %c, %c, %d;
                 mov.b64 %ro, {%a, %c}; st.global.u64 [%mine], %ro;",
            ),
            one,
            vec![0],
            (0..32u64)
                .map(|i| {
                    let i = i ^ 1;
                    // Words of a thread: i, i + 200, i + 300, i + 200.
                    ((i + 200) * 1000 + i + 300) << 32 | (i * 1_000_000 + i + 200)
                })
                .collect(),
        ),
        plain(
            "cvta.to.global",
            &["cvta.to.global.u64", "ld.param.u64"],
            "9.7.9.20",
            (
                "",
                "cvta.to.global.u64 %ra, %from; mul.wide.u32 %at, %t, 8; add.s64 %ra, %ra, %at; ld.global.u64 %ro, [%ra]; st.global.u64 [%mine], %ro;",
            ),
            one,
            words.clone(),
            words[..32].to_vec(),
        ),
        // One lane is chosen, which one the manual leaves open: how many, and whether they know which.
        plain(
            "elect.sync",
            &["elect.sync", "bar.warp.sync"],
            "9.7.13.16, 9.7.13.3",
            (
                "",
                "elect.sync %a|%p, -1; selp.u32 %b, 1, 0, %p; vote.sync.ballot.b32 %c, %p, -1; popc.b32 %c, %c;
                 setp.eq.u32 %q, %a, %t; selp.u32 %d, 1, 0, %q; setp.eq.u32 %q, %b, %d; selp.u32 %d, 1, 0, %q;
                 bar.warp.sync -1; mov.b64 %ro, {%c, %d}; st.global.u64 [%mine], %ro;",
            ),
            one,
            vec![0],
            vec![1 << 32 | 1; 32],
        ),
        plain(
            "stmatrix",
            &["stmatrix.sync.aligned.m8n8.x4.shared.b16"],
            "9.7.14.5.16",
            (
                ".shared .align 16 .b8 memory[512];",
                "mov.u32 %o, memory; mul.lo.u32 %a, %t, 16; add.u32 %o, %o, %a;
                 mul.lo.u32 %a, %t, 4; add.u32 %b, %a, 1; add.u32 %c, %a, 2; add.u32 %d, %a, 3;
                 stmatrix.sync.aligned.m8n8.x4.shared.b16 [%o], {%a, %b, %c, %d};
                 bar.warp.sync -1;
                 ld.shared.v4.u32 {%a, %b, %c, %d}, [%o]; mul.wide.u32 %at, %t, 16; add.s64 %rb, %to, %at;
                 st.global.v4.u32 [%rb], {%a, %b, %c, %d};",
            ),
            one,
            vec![0],
            // Word w of memory: register w / 32 of thread w % 32, which holds 4 * thread + register.
            (0..64u64)
                .map(|i| {
                    let word = |w: u64| (w % 32) * 4 + w / 32;
                    word(2 * i + 1) << 32 | word(2 * i)
                })
                .collect(),
        ),
        // Thread 0 arrives once itself, the other 31 through the count of 32.
        plain(
            "mbarrier",
            &[
                "mbarrier.init.shared::cta.b64",
                "mbarrier.arrive.shared::cta.b64",
                "mbarrier.try_wait.parity.shared::cta.b64",
                "fence.mbarrier_init.release.cluster",
            ],
            "9.7.13.15",
            (
                ".shared .align 8 .b8 object[8];\n.shared .align 4 .b8 memory[128];",
                "mov.u32 %o, object; setp.ne.u32 %p, %t, 0;
                 @!%p mbarrier.init.shared::cta.b64 [%o], 32; @!%p fence.mbarrier_init.release.cluster;
                 bar.sync 0;
                 mul.lo.u32 %a, %t, 4; mov.u32 %b, memory; add.u32 %b, %b, %a; add.u32 %c, %t, 7; st.shared.u32 [%b], %c;
                 mbarrier.arrive.shared::cta.b64 %ra, [%o];
                 WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%o], 0; @!%q bra WAIT;
                 xor.b32 %a, %a, 124; mov.u32 %b, memory; add.u32 %b, %b, %a; ld.shared.u32 %c, [%b];
                 cvt.u64.u32 %ro, %c; st.global.u64 [%mine], %ro;",
            ),
            one,
            vec![0],
            (0..32).map(|i| (31 - i) + 7).collect(),
        ),
        // Block 1 arrives at block 0's object; both count their rank.
        plain(
            "cluster",
            &[
                "barrier.cluster.arrive.release.aligned",
                "barrier.cluster.wait.acquire.aligned",
                "mapa.shared::cluster.u32",
                "mbarrier.arrive.release.cluster.shared::cluster.b64",
                "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64",
            ],
            "9.7.13.4, 9.7.9.23, 9.7.13.15",
            (
                ".shared .align 8 .b8 object[8];",
                "mov.u32 %o, object; setp.ne.u32 %p, %t, 0;
                 @!%p mbarrier.init.shared::cta.b64 [%o], 1; @!%p fence.mbarrier_init.release.cluster;
                 barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
                 mov.u32 %c, %cluster_ctarank; xor.b32 %d, %c, 1; mapa.shared::cluster.u32 %a, %o, %d;
                 @!%p mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%a];
                 WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %q, [%o], 0; @!%q bra WAIT;
                 barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
                 add.u32 %c, %c, 10; cvt.u64.u32 %ro, %c; st.global.u64 [%mine], %ro;",
            ),
            LaunchConfig::new(2, 32).clusters(2),
            vec![0],
            [vec![10; 32], vec![11; 32]].concat(),
        ),
    ];
    all.push(registers());
    all.push(params());
    all.push(grid_dependency());
    all.extend(tensor_copies());
    all.push(wgmma());
    all.push(wgmma_width());
    all
}

/// A warpgroup gives registers back and takes some again. The assembler wants to know how many it starts with.
fn registers() -> Probe {
    let text = kernel(
        "",
        "setmaxnreg.dec.sync.aligned.u32 24; setmaxnreg.inc.sync.aligned.u32 40; cvt.u64.u32 %ro, %t; st.global.u64 [%mine], %ro;",
    )
    .replacen("\n{", "\n.maxnreg 64\n.reqntid 128\n{", 1);
    probe(
        "setmaxnreg",
        &["setmaxnreg.dec.sync.aligned.u32", "setmaxnreg.inc.sync.aligned.u32"],
        "9.7.19.5",
        move |device| run(device, &text, &LaunchConfig::new(1, 128), &[0], 128),
        (0..128).collect(),
    )
}

/// A parameter of 64 bytes, read in pieces, and through a generic address.
fn params() -> Probe {
    let text = format!(
        "{HEAD}.visible .entry probe(.param .align 16 .b8 p[64], .param .u64 to)
{{
    .reg .b32 %a, %b, %c, %d, %t;
    .reg .b64 %ra, %rb, %ro, %to;
    ld.param.u64 %to, [to];
    mov.u32 %t, %tid.x;
    ld.param.u32 %a, [p+4];
    cvt.u64.u32 %ro, %a;
    st.global.u64 [%to], %ro;
    ld.param.v2.u32 {{%a, %b}}, [p+8];
    st.global.v2.u32 [%to+8], {{%b, %a}};
    ld.param.v4.u32 {{%a, %b, %c, %d}}, [p+16];
    st.global.v4.u32 [%to+16], {{%d, %c, %b, %a}};
    ld.param.v2.u64 {{%ra, %rb}}, [p+32];
    st.global.u64 [%to+32], %rb;
    mov.b64 %ra, p;
    cvta.param.u64 %rb, %ra;
    ld.u64 %ro, [%rb+56];
    st.global.u64 [%to+40], %ro;
    ld.param.f32 %a, [p+52];
    cvt.u64.u32 %ro, %a;
    st.global.u64 [%to+48], %ro;
    ret;
}}
"
    );
    let words: [u64; 8] = std::array::from_fn(|i| 0x1111_1111_0000_0001u64.wrapping_mul(i as u64 + 1));
    let swap = |w: u64| w.rotate_left(32);
    let expected = vec![words[0] >> 32, swap(words[1]), swap(words[3]), swap(words[2]), words[5], words[7], words[6] >> 32];
    probe(
        "ld.param",
        &["ld.param.u32", "ld.param.v2.u32", "ld.param.v4.u32", "ld.param.v2.u64", "ld.param.f32", "cvta.param.u64"],
        "9.7.9.8, 9.7.9.20",
        move |device| {
            let stream = device.stream()?;
            let kernel = device.module(&text)?.kernel("probe")?;
            let to = stream.zeroed::<u64>(7)?;
            let args = Args::new().value(words).buffer(&to);
            // SAFETY: the probe writes seven words of `to`.
            unsafe { stream.launch(&kernel, &LaunchConfig::new(1, 1), args)? };
            stream.download(&to)
        },
        expected,
    )
}

/// Three launches that may overlap, each of which waits for the one before.
fn grid_dependency() -> Probe {
    let text = kernel(
        "",
        "griddepcontrol.wait;
         ld.global.u64 %ro, [%mine]; add.s64 %ro, %ro, %ro; add.s64 %ro, %ro, 1; st.global.u64 [%mine], %ro;
         griddepcontrol.launch_dependents;",
    );
    probe(
        "griddepcontrol",
        &["griddepcontrol.wait", "griddepcontrol.launch_dependents"],
        "9.7.13.13",
        move |device| {
            let stream = device.stream()?;
            let kernel = device.module(&text)?.kernel("probe")?;
            let (from, to) = (stream.upload(&[0u64])?, stream.zeroed::<u64>(64)?);
            for _ in 0..3 {
                let args = Args::new().buffer(&from).buffer(&to);
                // SAFETY: each launch reads and writes the 64 words of `to`, after the one before.
                unsafe { stream.launch(&kernel, &LaunchConfig::new(2, 32).programmatic(), args)? };
            }
            stream.download(&to)
        },
        vec![7; 64],
    )
}

/// Runs a kernel `probe(map, from, to)` with a map of `tensor` (u8 [rows, 128], box [8, 128], swizzle of 128 bytes); the tensor
/// afterwards follows the outputs when `and_tensor`.
fn with_map(
    device: &Device,
    text: &str,
    config: &LaunchConfig,
    tensor: &[u8],
    outputs: usize,
    and_tensor: bool,
) -> Result<Vec<u64>, Error> {
    let stream = device.stream()?;
    let kernel = device.module(text)?.kernel("probe")?;
    let memory = stream.upload(tensor)?;
    let rows = tensor.len() as u64 / 128;
    let desc = TensorMapDesc::matrix(TensorType::U8, memory.ptr(), [rows, 128], 128, [8, 128]).swizzle(Swizzle::B128);
    let map = device.tensor_map(&desc)?;
    let (from, to) = (stream.upload(&[0u64])?, stream.zeroed::<u64>(outputs.max(1))?);
    let args = Args::new().value(map).buffer(&from).buffer(&to);
    // SAFETY: the probe touches the tensor through its map, and the words of `to`.
    unsafe { stream.launch(&kernel, config, args)? };
    let mut words = stream.download(&to)?;
    words.truncate(outputs);
    if and_tensor {
        let bytes = stream.download(&memory)?;
        words.extend(bytes.chunks(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))));
    }
    Ok(words)
}

fn map_kernel(declarations: &str, body: &str) -> String {
    kernel(declarations, body).replace("probe(.param .u64 from", "probe(.param .align 64 .b8 map[128], .param .u64 from").replace(
        "    ld.param.u64 %from",
        "    .reg .b64 %map;\n    mov.b64 %map, map;\n    cvta.param.u64 %map, %map;\n    ld.param.u64 %from",
    )
}

fn byte(row: usize, column: usize) -> u8 {
    (row * 131 + column) as u8
}

/// Byte `at` of a box of rows of 128 bytes in shared memory, swizzled by 128 bytes: bits 4 to 6 of the address are xored with bits 7 to 9
/// (section 5.5.6).
fn swizzled(at: usize) -> usize {
    at ^ (((at >> 7) & 7) << 4)
}

fn tensor_copies() -> Vec<Probe> {
    const ROWS: usize = 6;
    let tensor: Vec<u8> = (0..ROWS * 128).map(|i| byte(i / 128, i % 128)).collect();
    // Rows 2 to 9 of the tensor, of which 6 and up are outside and read as zero; all of the box's bytes count.
    let mut box_bytes = vec![0u8; 1024];
    for at in 0..1024 {
        let (row, column) = (at / 128 + 2, at % 128);
        box_bytes[swizzled(at)] = if row < ROWS { byte(row, column) } else { 0 };
    }
    let loaded: Vec<u64> = box_bytes.chunks(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))).collect();
    let read_tile = "mul.lo.u32 %a, %t, 32; mov.u32 %o, tile; add.u32 %o, %o, %a;
         mov.u32 %a, %ntid.x; mad.lo.u32 %a, %cta, %a, %t; mul.wide.u32 %at, %a, 32; add.s64 %rb, %to, %at;
         ld.shared.u64 %ra, [%o]; st.global.u64 [%rb], %ra; ld.shared.u64 %ra, [%o+8]; st.global.u64 [%rb+8], %ra;
         ld.shared.u64 %ra, [%o+16]; st.global.u64 [%rb+16], %ra; ld.shared.u64 %ra, [%o+24]; st.global.u64 [%rb+24], %ra;";
    let declarations = ".shared .align 1024 .b8 tile[1024];\n.shared .align 8 .b8 object[8];";
    let load = map_kernel(
        declarations,
        &format!(
            "mov.u32 %o, object; mov.u32 %b, tile; mov.u32 %c, 0; mov.u32 %d, 2; setp.ne.u32 %p, %t, 0;
             @!%p prefetch.tensormap [%map];
             @!%p mbarrier.init.shared::cta.b64 [%o], 1; @!%p fence.mbarrier_init.release.cluster;
             bar.sync 0;
             @%p bra WAIT;
             mbarrier.arrive.expect_tx.shared::cta.b64 %ra, [%o], 1024;
             cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%b], [%map, {{%c, %d}}], [%o];
             WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%o], 0; @!%q bra WAIT;
             {read_tile}"
        ),
    );
    let store = map_kernel(
        declarations,
        "mul.lo.u32 %a, %t, 32; mov.u32 %o, tile; add.u32 %o, %o, %a;
         cvt.u64.u32 %ra, %t; st.shared.u64 [%o], %ra; add.s64 %ra, %ra, 1000; st.shared.u64 [%o+8], %ra;
         add.s64 %ra, %ra, 1000; st.shared.u64 [%o+16], %ra; add.s64 %ra, %ra, 1000; st.shared.u64 [%o+24], %ra;
         fence.proxy.async.shared::cta; bar.sync 0;
         setp.ne.u32 %p, %t, 0; @%p ret;
         mov.u32 %b, tile; mov.u32 %c, 0; mov.u32 %d, 2;
         cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%map, {%c, %d}], [%b];
         cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.bulk.wait_group 0;",
    );
    let mut stored = tensor.clone();
    let source: Vec<u8> = (0..128u64).flat_map(|word| (word / 4 + 1000 * (word % 4)).to_le_bytes()).collect();
    for at in 0..1024 {
        let (row, column) = (at / 128 + 2, at % 128);
        if row < ROWS {
            stored[row * 128 + column] = source[swizzled(at)];
        }
    }
    let stored: Vec<u64> = stored.chunks(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))).collect();
    // Block 0 loads for both blocks of the cluster.
    let multicast = map_kernel(
        declarations,
        &format!(
            "mov.u32 %o, object; mov.u32 %b, tile; mov.u32 %c, 0; mov.u32 %d, 2; setp.ne.u32 %p, %t, 0; mov.b16 %h, 3;
             @!%p mbarrier.init.shared::cta.b64 [%o], 1; @!%p fence.mbarrier_init.release.cluster;
             @!%p mbarrier.arrive.expect_tx.shared::cta.b64 %ra, [%o], 1024;
             barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
             mov.u32 %a, %cluster_ctarank; or.b32 %a, %a, %t; setp.ne.u32 %p, %a, 0;
             @!%p cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%b], [%map, {{%c, %d}}], [%o], %h;
             WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%o], 0; @!%q bra WAIT;
             {read_tile}
             barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
        ),
    );
    let both = [loaded.clone(), loaded.clone()].concat();
    let (for_load, for_store, for_both) = (tensor.clone(), tensor.clone(), tensor);
    vec![
        probe(
            "tensor load",
            &[
                "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes",
                "mbarrier.arrive.expect_tx.shared::cta.b64",
                "prefetch.tensormap",
            ],
            "9.7.9.27.1.2",
            move |device| with_map(device, &load, &LaunchConfig::new(1, 32), &for_load, 128, false),
            loaded,
        ),
        probe(
            "tensor store",
            &[
                "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group",
                "cp.async.bulk.commit_group",
                "cp.async.bulk.wait_group",
                "cp.async.bulk.wait_group.read",
                "fence.proxy.async.shared::cta",
            ],
            "9.7.9.27.1.2, 9.7.9.25.5",
            move |device| with_map(device, &store, &LaunchConfig::new(1, 32), &for_store, 0, true),
            stored,
        ),
        probe(
            "tensor load multicast",
            &["cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"],
            "9.7.9.27.1.2",
            move |device| with_map(device, &multicast, &LaunchConfig::new(2, 32).clusters(2), &for_both, 256, false),
            both,
        ),
    ]
}

/// The E4M3 code of an integer from -8 to 8 that E4M3 has.
fn e4m3(value: i32) -> u8 {
    let sign = if value < 0 { 0x80 } else { 0 };
    let code = match value.unsigned_abs() {
        0 => 0,
        1 => 0x38,
        2 => 0x40,
        3 => 0x44,
        4 => 0x48,
        other => panic!("no code for {other}"),
    };
    sign | code
}

/// The E4M3 code of 2^-exponent, exponents 0 to 9.
fn power(exponent: usize) -> u8 {
    if exponent <= 6 { (7 - exponent as u8) << 3 } else { 8 >> (exponent - 6) }
}

/// Small integers: exact whatever the order and width of the sums.
fn wgmma() -> Probe {
    let a = |row: usize, k: usize| (row + k) as i32 % 5 - 2;
    let b = |column: usize, k: usize| (3 * column + k) as i32 % 7 - 3;
    let sum = |row: usize, column: usize| (0..32).map(|k| a(row, k) * b(column, k)).sum::<i32>() as f32;
    wgmma_of("wgmma", |row, k| e4m3(a(row, k)), |column, k| e4m3(b(column, k)), Some(&sum))
}

/// 1 plus 31 products of 2^-(row % 7 + column % 10): how many bits of small products survive beside a large one tells how wide the sums
/// are, which the manual leaves open.
fn wgmma_width() -> Probe {
    let code = |at: usize, k: usize, most: usize| if k == 0 { power(0) } else { power(at % most) };
    wgmma_of("wgmma width of sums", |row, k| code(row, k, 7), |column, k| code(column, k, 10), None)
}

/// D[64, 128] = A[64, 32] B[128, 32]^T of these codes.
fn wgmma_of(
    name: &str,
    a: impl Fn(usize, usize) -> u8,
    b: impl Fn(usize, usize) -> u8,
    sum: Option<&dyn Fn(usize, usize) -> f32>,
) -> Probe {
    // Rows of 128 bytes, of which k takes the first 32, swizzled by 128 bytes.
    let mut bytes = vec![0u8; (64 + 128) * 128];
    for k in 0..32 {
        for row in 0..64 {
            bytes[swizzled(row * 128 + k)] = a(row, k);
        }
        for column in 0..128 {
            bytes[64 * 128 + swizzled(column * 128 + k)] = b(column, k);
        }
    }
    let inputs: Vec<u64> = bytes.chunks(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))).collect();
    let registers: Vec<String> = (0..64).map(|i| format!("%f{i}")).collect();
    let stores: String = (0..64).map(|i| format!("cvt.u64.u32 %ro, %f{i}; st.global.u64 [%rb+{}], %ro;\n", 8 * i)).collect();
    let text = kernel(
        ".shared .align 1024 .b8 tiles[24576];",
        &format!(
            ".reg .b32 %f<64>;
             mov.u32 %o, tiles; mul.lo.u32 %a, %t, 8; add.u32 %o, %o, %a; cvt.u64.u32 %at, %a; add.s64 %ra, %from, %at;
             mov.u32 %b, 0;
             COPY: ld.global.u64 %ro, [%ra]; st.shared.u64 [%o], %ro;
             add.s64 %ra, %ra, 1024; add.u32 %o, %o, 1024; add.u32 %b, %b, 1; setp.lt.u32 %p, %b, 24; @%p bra COPY;
             fence.proxy.async.shared::cta; bar.sync 0;
             mov.u32 %o, tiles; shr.u32 %o, %o, 4; cvt.u64.u32 %ra, %o; or.b64 %ra, %ra, 0x4000004000010000;
             add.s64 %rb, %ra, 512;
             setp.ne.u32 %p, 0, 0;
             wgmma.fence.sync.aligned;
             wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {{{}}}, %ra, %rb, %p, 1, 1;
             wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
             mul.wide.u32 %at, %t, 512; add.s64 %rb, %to, %at;
             {stores}",
            registers.join(", ")
        ),
    );
    // Register i of lane l of warp w: row 16 w + l / 4 + 8 * (i / 2 % 2), column 8 * (i / 4) + 2 * (l % 4) + i % 2 (section 9.7.15.5).
    let expected = sum.map(|sum| {
        (0..128 * 64)
            .map(|at| {
                let (thread, i) = (at / 64, at % 64);
                let (warp, lane) = (thread / 32, thread % 32);
                let (row, column) = (16 * warp + lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2);
                u64::from(sum(row, column).to_bits())
            })
            .collect::<Vec<u64>>()
    });
    Probe {
        name: name.into(),
        covers: vec![
            "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3",
            "wgmma.fence.sync.aligned",
            "wgmma.commit_group.sync.aligned",
            "wgmma.wait_group.sync.aligned",
        ],
        section: "9.7.15.5",
        run: Box::new(move |device| run(device, &text, &LaunchConfig::new(1, 128), &inputs, 128 * 64)),
        expected: expected.map_or(Expected::Open, Expected::Words),
    }
}
