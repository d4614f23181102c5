//! The devices that every test runs on, and the kernels that they run.

#![allow(dead_code)] // each test program uses some of it

use v3_gpu::{Device, EmulatorConfig, Error, Kernel, Stream};

/// Calls `test` for the emulator, and for the first GPU if this was built with `cuda` and there is one; otherwise that is noted as
/// skipped under `name`.
pub fn for_each_device(name: &str, test: impl Fn(&Device)) {
    test(&emulated(1)[0]);
    if let Some(device) = gpu(name) {
        test(&device);
    }
}

/// As [`for_each_device`], for devices of this compute capability and later.
pub fn for_each_device_from(name: &str, least: (u32, u32), test: impl Fn(&Device)) {
    for_each_device(name, |device| {
        let info = device.info().unwrap();
        if info.compute_capability >= least {
            test(device);
        } else {
            v3_testkit::skip::skip(&format!("{name} (cuda)"), &format!("{} is older than {least:?}", info.name));
        }
    });
}

pub fn emulated(devices: u32) -> Vec<Device> {
    Device::emulated(&EmulatorConfig { devices, ..EmulatorConfig::default() }).unwrap()
}

/// The first GPU.
pub fn gpu(name: &str) -> Option<Device> {
    match Device::cuda(0) {
        Ok(device) => Some(device),
        Err(Error::NoDevice { reason, .. } | Error::Unsupported { what: reason }) => {
            v3_testkit::skip::skip(&format!("{name} (cuda)"), &reason);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// A device, a stream of it and a kernel of [`PTX`].
pub fn with_kernel(device: &Device, kernel: &str) -> (Stream, Kernel) {
    (device.stream().unwrap(), device.module(PTX).unwrap().kernel(kernel).unwrap())
}

/// Kernels for every GPU from sm_80 on.
///
/// - `scale(x, n, factor)`: x[i] *= factor for i = the thread's number in x, all blocks, below n.
/// - `mixed(s: 24 bytes, c: 1 byte, out)`: the first word of s plus c goes to out.
/// - `shared(out)`: 1024 bytes of static shared memory; thread 0 writes the number of dynamic bytes to out.
/// - `small`: at most 64 threads.
/// - `nothing`: takes nothing and does nothing.
/// - `counter`: a variable that begins as 7, and `bump` adds 1 to it.
/// - `fails`: executes `trap`.
pub const PTX: &str = "
.version 7.0
.target sm_80
.address_size 64

.visible .global .align 4 .u32 counter = 7;
.extern .shared .align 16 .b8 dynamic[];

.visible .entry scale(.param .u64 x, .param .u32 n, .param .u32 factor)
{
    .reg .b64 %rd<4>;
    .reg .b32 %r<9>;
    .reg .pred %p;
    ld.param.u64 %rd1, [x];
    ld.param.u32 %r1, [n];
    ld.param.u32 %r2, [factor];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.u32 %r6, %r3, %r4, %r5;
    setp.ge.u32 %p, %r6, %r1;
    @%p bra DONE;
    mul.wide.u32 %rd2, %r6, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r7, [%rd3];
    mul.lo.u32 %r8, %r7, %r2;
    st.global.u32 [%rd3], %r8;
DONE:
    ret;
}

.visible .entry mixed(.param .align 8 .b8 s[24], .param .u8 c, .param .u64 out)
{
    .reg .b64 %rd<2>;
    .reg .b32 %r<4>;
    ld.param.u32 %r1, [s];
    ld.param.u8 %r2, [c];
    ld.param.u64 %rd1, [out];
    add.u32 %r3, %r1, %r2;
    st.global.u32 [%rd1], %r3;
    ret;
}

.visible .entry shared(.param .u64 out)
{
    .shared .align 4 .b8 fixed[1024];
    .reg .b64 %rd<2>;
    .reg .b32 %r<4>;
    .reg .pred %p;
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p, %r1, 0;
    @%p bra DONE;
    mov.u32 %r2, fixed;
    st.shared.u32 [%r2+1020], %r1;
    mov.u32 %r2, dynamic;
    mov.u32 %r3, %dynamic_smem_size;
    st.shared.u8 [%r2], %r1;
    ld.param.u64 %rd1, [out];
    st.global.u32 [%rd1], %r3;
DONE:
    ret;
}

.visible .entry small()
.maxntid 64, 1, 1
{
    ret;
}

.visible .entry nothing()
{
    ret;
}

.visible .entry bump()
{
    .reg .b32 %r<3>;
    ld.global.u32 %r1, [counter];
    add.u32 %r2, %r1, 1;
    st.global.u32 [counter], %r2;
    ret;
}

.visible .entry fails()
{
    trap;
    ret;
}
";

/// Kernels that want sm_90.
///
/// - `pair(out)`: clusters of 2 that the kernel itself requires; each block writes its rank to out[block].
/// - `ranks(out)`: the same, without requiring anything.
/// - `first(x)`: lets the next launch begin, then x[0] = 5. `second(x)`: waits for what it depends on, then x[1] = x[0] + 1.
pub const PTX_90: &str = "
.version 8.0
.target sm_90
.address_size 64

.visible .entry pair(.param .u64 out)
.explicitcluster
.reqnctapercluster 2, 1, 1
{
    .reg .b64 %rd<4>;
    .reg .b32 %r<3>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %cluster_ctarank;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r2;
    ret;
}

.visible .entry ranks(.param .u64 out)
{
    .reg .b64 %rd<4>;
    .reg .b32 %r<3>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %cluster_ctarank;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r2;
    ret;
}

.visible .entry first(.param .u64 x)
{
    .reg .b64 %rd<2>;
    .reg .b32 %r<2>;
    griddepcontrol.launch_dependents;
    ld.param.u64 %rd1, [x];
    mov.u32 %r1, 5;
    st.global.u32 [%rd1], %r1;
    ret;
}

.visible .entry second(.param .u64 x)
{
    .reg .b64 %rd<2>;
    .reg .b32 %r<3>;
    griddepcontrol.wait;
    ld.param.u64 %rd1, [x];
    ld.global.u32 %r1, [%rd1];
    add.u32 %r2, %r1, 1;
    st.global.u32 [%rd1+4], %r2;
    ret;
}
";
