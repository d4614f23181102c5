//! Any text ends in a parse error, a launch error, a report or a finished kernel, within a small budget of instructions.
//!
//! The first byte chooses the launch. A text that begins with `.version` is a module; any other is the body of a kernel that has
//! registers of every kind, variables of every space, and pointers to memory in the first registers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ptx_emu::tma::{Swizzle, TensorMap, Tiled};
use ptx_emu::{Arg, Checks, Config, Fp8Accumulation, Machine, Module, Shape};

const HEAD: &str = "
.version 9.0
.target sm_90a
.address_size 64
.global .align 16 .b8 g[256] = {1, 2, 3, 4};
.const .align 16 .b32 c[16] = {5, 6, 7, 8};
.extern .shared .align 128 .b8 dynamic[];
.func (.param .b32 r) f(.param .b32 x) {
    .reg .b32 %a;
    ld.param.b32 %a, [x];
    st.param.b32 [r], %a;
    ret;
}
.visible .entry kernel(.param .u64 a, .param .u32 n, .param .align 64 .b8 map[128]) {
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<32>;
    .reg .b64 %d<16>;
    .reg .b128 %q<2>;
    .reg .f32 %f<64>;
    .reg .f64 %g<8>;
    .shared .align 128 .b8 s[2048];
    .local .align 16 .b8 l[64];
    ld.param.u64 %d0, [a];
    mov.u64 %d1, map;
    ld.param.u32 %r0, [n];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, s;
    mov.u32 %r3, %laneid;
    mul.wide.u32 %d2, %r1, 16;
    add.u64 %d2, %d2, %d0;
    setp.lt.u32 %p0, %r1, 16;
    mov.u32 %r20, %ntid.x;
    mad.lo.u32 %r21, %r1, 16, %r2;
    mad.lo.u32 %r20, %r20, 16, 0;
    add.u32 %r22, %r2, 2048;
ZERO:
    setp.ge.u32 %p7, %r21, %r22;
    @%p7 bra ZEROED;
    st.shared.v4.u32 [%r21], {%r1, %r1, %r1, %r1};
    add.u32 %r21, %r21, %r20;
    bra ZERO;
ZEROED:
    fence.proxy.async;
    bar.sync 0;
";

fuzz_target!(|input: &[u8]| {
    let Some((&choice, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let whole;
    let text = if text.trim_start().starts_with(".version") {
        text
    } else {
        whole = format!("{HEAD}{text}\nret; }}");
        &whole
    };
    let Ok(module) = Module::parse(text) else { return };
    let Some(kernel) = module.kernels().next().map(str::to_owned) else { return };
    let sizes = module.params(&kernel).expect("it is a kernel");
    if sizes.iter().map(|&size| u64::from(size)).sum::<u64>() > 1 << 16 {
        return;
    }
    let machine = Machine::new(Config {
        devices: 1,
        seed: u64::from(choice),
        checks: if choice & 1 == 0 { Checks::ALL } else { Checks::NONE },
        fp8: if choice & 2 == 0 { Fp8Accumulation::Exact } else { Fp8Accumulation::Hopper },
        budget: 5000,
        ..Config::default()
    });
    let buffer = machine.memory().alloc(0, 4096).expect("a small buffer");
    if choice & 4 == 0 {
        machine.memory().fill(buffer, 0x11, 4096).expect("it was just allocated");
    }
    let tiled = Tiled {
        address: buffer,
        dims: &[32, 32],
        strides: &[32],
        box_dims: &[16, 4],
        element_strides: &[1, 1],
        swizzle: if choice & 128 == 0 { Swizzle::None } else { Swizzle::B32 },
        ..Tiled::default()
    };
    let map = TensorMap::tiled(&tiled).expect("a correct description");
    let Ok(loaded) = machine.load(&module, 0) else { return };
    let Ok(stream) = machine.stream(0) else { return };
    let args: Vec<Arg> = sizes
        .iter()
        .map(|&size| match size {
            8 => Arg::from(buffer),
            4 => Arg::from(3u32),
            128 => Arg(map.encode().bytes.to_vec()),
            _ => Arg(vec![0; size as usize]),
        })
        .collect();
    let threads = [1, 32, 70, 128][usize::from(choice >> 3 & 3)];
    let shape = Shape::new(2, threads).shared(if choice & 32 == 0 { 0 } else { 4096 });
    let shape = if choice & 64 == 0 { shape } else { shape.clusters(2) };
    if machine.launch(stream, &loaded, &kernel, shape, &args).is_ok()
        && let Err(report) = machine.synchronize()
    {
        assert!(!report.to_string().is_empty());
    }
});
