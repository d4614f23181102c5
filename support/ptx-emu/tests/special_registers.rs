//! Special registers that stand for more than a number.

use ptx_emu::{Arg, Config, Machine, Module, Shape};

/// The system's part of shared memory, which cooperative groups use: as large as it says, zero at first, shared by the block, and apart
/// from the kernel's own variables.
#[test]
fn the_reserved_part_of_shared_memory() {
    let ptx = "
.version 8.0
.target sm_90
.address_size 64
.visible .entry probe(.param .u64 to) {
    .shared .align 4 .b8 own[256];
    .reg .b32 %a, %b, %c, %d; .reg .b64 %to, %at; .reg .pred %p;
    ld.param.u64 %to, [to];
    mov.u32 %a, %tid.x; mul.wide.u32 %at, %a, 4; add.s64 %to, %to, %at;
    shl.b32 %b, %a, 2; mov.u32 %c, own; add.u32 %b, %b, %c; st.shared.u32 [%b], %a;
    mov.u32 %c, %reserved_smem_offset_1;
    atom.shared.add.u32 %d, [%c], 1;
    bar.sync 0;
    ld.shared.u32 %d, [%c];
    ld.shared.u32 %b, [%b]; sub.u32 %b, %b, %a; add.u32 %d, %d, %b;
    mov.u32 %b, %reserved_smem_offset_end; mov.u32 %c, %reserved_smem_offset_begin; sub.u32 %b, %b, %c;
    mov.u32 %c, %reserved_smem_offset_cap; sub.u32 %b, %b, %c; add.u32 %d, %d, %b;
    st.global.u32 [%to], %d;
    ret;
}";
    for seed in 0..5 {
        let machine = Machine::new(Config { seed, ..Config::default() });
        let module = machine.load(&Module::parse(ptx).unwrap(), 0).unwrap();
        let stream = machine.stream(0).unwrap();
        let to = machine.memory().alloc(0, 256).unwrap();
        machine.launch(stream, &module, "probe", Shape::new(1, 64), &[Arg::from(to)]).unwrap();
        machine.synchronize().unwrap();
        let mut bytes = [0; 256];
        machine.memory().read(to, &mut bytes).unwrap();
        assert!(bytes.chunks(4).all(|w| w == 64u32.to_le_bytes()), "{bytes:?}");
    }
    let unknown = ptx.replace("offset_cap", "offset_7");
    assert!(Module::parse(&unknown).unwrap_err().to_string().contains("reserved_smem_offset_7"));
}
