//! Calls of functions (PTX ISA 9.0, section 9.7.13.4), indirect ones above all.

use ptx_emu::{Arg, Config, Machine, Module, Shape};

/// A table of functions; every lane calls the one that its number says, `@%p1` or not.
fn text(guard: &str) -> String {
    let functions: String = (0..3)
        .map(|k| {
            format!(
                ".func (.param .b32 r) f{k} (.param .b32 a)\n{{ .reg .b32 %x, %y; ld.param.u32 %x, [a]; mad.lo.u32 %y, %x, {k}, 100;\n\
                 st.param.b32 [r], %y; ret; }}\n"
            )
        })
        .collect();
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n{functions}\
         .global .align 8 .u64 table[3] = {{f0, f1, f2}};\n\
         .visible .entry k(.param .u64 to)\n{{ .reg .pred %p1; .reg .b32 %i, %k, %d; .reg .b64 %at, %base, %f, %to;\n\
         mov.u32 %i, %tid.x; rem.u32 %k, %i, 3; mov.u64 %base, table; mad.wide.u32 %at, %k, 8, %base; ld.global.u64 %f, [%at];\n\
         setp.lt.u32 %p1, %i, 20; mov.u32 %d, 7;\n\
         {{ .param .b32 a0; .param .b32 r0; st.param.b32 [a0], %i; st.param.b32 [r0], %d;\n\
         kind: .callprototype (.param .b32 _) _ (.param .b32 _);\n\
         {guard} call (r0), %f, (a0), kind;\n\
         ld.param.b32 %d, [r0]; }}\n\
         ld.param.u64 %to, [to]; mad.wide.u32 %to, %i, 4, %to; st.global.u32 [%to], %d; ret; }}\n"
    )
}

#[test]
fn lanes_call_different_functions() {
    for (guard, all) in [("", true), ("@%p1", false)] {
        let module = Module::parse(&text(guard)).unwrap();
        for seed in 0..6 {
            let machine = Machine::new(Config { seed, ..Config::default() });
            let loaded = machine.load(&module, 0).unwrap();
            let to = machine.memory().alloc(0, 4 * 64).unwrap();
            let stream = machine.stream(0).unwrap();
            machine.launch(stream, &loaded, "k", Shape::new(1, 64), &[Arg::from(to)]).unwrap();
            machine.synchronize().unwrap_or_else(|report| panic!("{report}"));
            let mut bytes = [0; 4 * 64];
            machine.memory().read(to, &mut bytes).unwrap();
            for (i, word) in bytes.chunks_exact(4).enumerate() {
                let i = i as u32;
                let expected = if all || i < 20 { i * (i % 3) + 100 } else { 7 };
                assert_eq!(u32::from_le_bytes(word.try_into().unwrap()), expected, "{guard} thread {i}, seed {seed}");
            }
        }
    }
}
