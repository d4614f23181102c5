//! The parser: real modules, each form of operand, constant, declaration and directive, and each kind of error at its place.

use ptx_emu::ast::{Function, Init, Instruction, Loc, Module, Operand, Space, Statement, Type, Variable};
use ptx_emu::parse::{MAX_DEPTH, ParseError, parse, parse_bytes};

const HEAD: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

/// A module with these directives behind its head.
fn module(text: &str) -> Module {
    parse(&format!("{HEAD}{text}")).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn failure(text: &str) -> ParseError {
    match parse(&format!("{HEAD}{text}")) {
        Ok(_) => panic!("parsed: {text}"),
        Err(error) => error,
    }
}

/// The statements of a kernel with this body.
fn body(text: &str) -> Vec<Statement> {
    module(&format!(".entry k() {{\n{text}\n}}")).functions.remove(0).body.unwrap()
}

fn instruction(text: &str) -> Instruction {
    match body(text).remove(0) {
        Statement::Instruction(instruction) => *instruction,
        other => panic!("{other:?}"),
    }
}

fn operand(text: &str) -> Operand {
    let mut operands = instruction(&format!("mov.u32 %r0, {text};")).operands;
    assert_eq!(operands.len(), 2);
    operands.remove(1)
}

fn variable(text: &str) -> Variable {
    module(text).variables.remove(0)
}

fn name(text: &str) -> Operand {
    Operand::Name(text.into())
}

fn boxed(text: &str) -> Box<Operand> {
    Box::new(name(text))
}

fn fixture(file: &str) -> Module {
    let path = format!("{}/tests/data/ptx/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    parse(&text).unwrap_or_else(|error| panic!("{file}:{error}"))
}

fn function<'m>(module: &'m Module, part: &str) -> &'m Function {
    module.functions.iter().find(|f| f.name.contains(part) && f.body.is_some()).unwrap()
}

/// Every statement of a function, those of inner blocks too.
fn flat(statements: &[Statement]) -> Vec<&Statement> {
    statements
        .iter()
        .flat_map(|statement| match statement {
            Statement::Block(inner) => flat(inner),
            other => vec![other],
        })
        .collect()
}

fn instructions(function: &Function) -> Vec<&Instruction> {
    let statements = flat(function.body.as_deref().unwrap());
    statements.into_iter().filter_map(|s| if let Statement::Instruction(i) = s { Some(&**i) } else { None }).collect()
}

#[test]
fn the_features_of_ordinary_modules() {
    let module = fixture("features.sm_90a.lineinfo.ptx");
    assert_eq!((module.version, module.address_size), ((9, 0), 64));
    assert_eq!(module.targets, ["sm_90a"]);
    assert_eq!(module.files[0], (1, "features.cu".into()));

    let of = |name: &str| module.variables.iter().find(|v| v.name == name).unwrap();
    let integers = of("integers");
    assert_eq!((integers.space, integers.ty, integers.align, integers.dims.as_slice()), (Space::Const, Type::B8, 4, &[64][..]));
    let address = |name: &str, offset, generic| Init::Address { name: name.into(), offset, generic };
    assert_eq!(of("pointer").init, [address("counter", 0, true)]);
    assert_eq!(of("records").init[1], address("floats", 4, true));
    assert_eq!(of("functions").init[1], address("_Z11add_counteri", 0, false));
    assert!(of("dynamic_shared").unsized_array && of("dynamic_shared").is_extern && of("dynamic_shared").dims == [0]);

    let branches = function(&module, "branches");
    assert!(branches.is_entry && branches.name == "branches");
    assert_eq!(branches.directives, [("maxntid".into(), vec![256, 1, 1]), ("minnctapersm".into(), vec![2])]);
    let params: Vec<_> = branches.params.iter().map(|p| (p.ty, p.align, p.dims.clone())).collect();
    assert_eq!(params, [(Type::U64, 8, vec![]), (Type::U32, 4, vec![]), (Type::B8, 8, vec![24])]);

    // The indirect call and the prototype before it; calls with and without results.
    let calls: Vec<_> = instructions(branches).into_iter().filter(|i| i.opcode[0] == "call").collect();
    let indirect = calls.iter().find(|i| i.operands.len() == 4).unwrap();
    let [Operand::List(results), Operand::Name(_), Operand::List(arguments), Operand::Name(prototype)] = &indirect.operands[..]
    else {
        panic!("{indirect:?}")
    };
    assert_eq!((results.as_slice(), arguments.as_slice()), (&[name("retval0")][..], &[name("param0")][..]));
    let statements = flat(branches.body.as_deref().unwrap());
    assert!(statements.iter().any(|s| matches!(s, Statement::CallPrototype { name, returns, params, .. }
        if name == prototype && returns.len() == 1 && params.len() == 1 && params[0].name == "_")));
    assert!(calls.iter().any(|i| i.operands[1] == name("vprintf")));
    let assertion: Vec<_> =
        instructions(function(&module, "grid_constant")).into_iter().filter(|i| i.opcode[0] == "call").collect();
    assert!(matches!(&assertion[0].operands[..], [Operand::Name(f), Operand::List(l)] if f == "__assertfail" && l.len() == 5));

    // Lines of the source, and where an inlined function was called from.
    let all: Vec<_> = module.functions.iter().filter(|f| f.body.is_some()).flat_map(instructions).collect();
    assert!(all.iter().all(|i| i.loc.is_some()));
    let shuffle = all.iter().find(|i| i.opcode[0] == "shfl").unwrap();
    assert_ne!(shuffle.loc.unwrap().file, 1);
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ptx/features.cu")).unwrap();
    let line = source.lines().position(|l| l.contains("__shfl_xor_sync")).unwrap() as u32 + 1;
    assert_eq!(shuffle.inlined_at.first().map(|at| (at.file, at.line)), Some((1, line)));
    assert!(matches!(shuffle.operands[0], Operand::Pair(..)));

    let device = function(&module, "bump");
    assert!(!device.is_entry && device.returns[0].dims == [16] && device.params.len() == 2);
    assert!(module.functions.iter().any(|f| f.name == "vprintf" && f.is_extern && f.body.is_none()));
}

#[test]
fn hopper_modules() {
    let module = fixture("hopper.sm_90a.lineinfo.ptx");
    let kernel = function(&module, "asynchronous");
    assert!(kernel.directives.contains(&("explicitcluster".into(), vec![])));
    assert!(kernel.directives.contains(&("reqnctapercluster".into(), vec![2, 1, 1])));
    let all = instructions(kernel);
    let find = |part: &str| *all.iter().find(|i| i.opcode.join(".").contains(part)).unwrap();

    let load = find("cp.async.bulk.tensor.2d");
    assert_eq!(
        load.opcode,
        ["cp", "async", "bulk", "tensor", "2d", "shared::cluster", "global", "mbarrier::complete_tx::bytes", "L2::cache_hint"]
    );
    let [Operand::Address { .. }, Operand::Address { rest, .. }, Operand::Address { rest: none, .. }, Operand::Name(_)] =
        &load.operands[..]
    else {
        panic!("{load:?}")
    };
    assert!(matches!(&rest[..], [Operand::Vector(c)] if c.len() == 2) && none.is_empty());
    let store = find("cp.async.bulk.tensor.3d");
    let Operand::Address { rest, .. } = &store.operands[0] else { panic!("{store:?}") };
    assert!(matches!(&rest[..], [Operand::Vector(c)] if c.len() == 3 && c[2] == Operand::Int(0)));

    let mma = find("wgmma.mma_async");
    assert!(matches!(&mma.operands[0], Operand::Vector(d) if d.len() == 8));
    assert_eq!(mma.operands[3..], [name("p"), Operand::Int(1), Operand::Int(1)]);
    assert!(matches!(find("ldmatrix").operands[1], Operand::Address { offset: -16, .. }));
    assert_eq!(find("elect").operands, [Operand::Pair(boxed("R"), boxed("P")), Operand::Int(0xffff_ffff)]);
    assert_eq!(find("arrive.expect_tx").operands[0], name("_"));
    let guarded: Vec<_> = all.iter().filter_map(|i| i.guard.as_ref()).map(|g| (g.name.as_str(), g.negated)).collect();
    assert_eq!(guarded, [("P1", false), ("P", false), ("P", true)]);
    // A loop in a block of its own, its labels among its statements.
    let blocks = kernel.body.as_ref().unwrap().iter().filter_map(|s| if let Statement::Block(b) = s { Some(b) } else { None });
    let labels: Vec<_> = blocks
        .flat_map(|b| b.iter().filter_map(|s| if let Statement::Label { name, .. } = s { Some(name.as_str()) } else { None }))
        .collect();
    assert_eq!(labels, ["LAB_WAIT", "DONE"]);
}

#[test]
fn debug_and_relocatable_modules() {
    for file in ["features.sm_90a.debug.ptx", "hopper.sm_90a.debug.ptx"] {
        let module = fixture(file);
        assert_eq!(module.targets, ["sm_90a", "debug"]);
        assert!(module.files.len() > 1 && module.functions.iter().any(|f| f.is_entry));
    }
    let module = fixture("features.sm_80.ptx");
    assert_eq!(module.targets, ["sm_80"]);
    assert!(function(&module, "templatedILi5").is_entry); // `.weak`
    assert!(
        module.functions.iter().flat_map(|f| f.body.as_deref().map(instructions_of).unwrap_or_default()).all(|i| i.loc.is_none())
    );
}

fn instructions_of(body: &[Statement]) -> Vec<&Instruction> {
    flat(body).into_iter().filter_map(|s| if let Statement::Instruction(i) = s { Some(&**i) } else { None }).collect()
}

#[test]
fn operands() {
    let address = |base: Operand, offset, rest| Operand::Address { base: Box::new(base), offset, rest };
    let element = |index: Option<&str>, offset| Operand::Element { array: "a".into(), index: index.map(Into::into), offset };
    for (text, expected) in [
        ("%r1", name("%r1")),
        ("%tid.x", name("%tid.x")),
        ("v .y", name("v.y")),
        ("$L__BB0_1", name("$L__BB0_1")),
        ("_", name("_")),
        ("!%p1", Operand::Not("%p1".into())),
        ("! p", Operand::Not("p".into())),
        ("-%r1", Operand::Negated(boxed("%r1"))),
        ("p|q", Operand::Pair(boxed("p"), boxed("q"))),
        ("_ | q", Operand::Pair(boxed("_"), boxed("q"))),
        ("{a, b}|p", Operand::Pair(Box::new(Operand::Vector(vec![name("a"), name("b")])), boxed("p"))),
        ("{a, _, -1, 1.0}", Operand::Vector(vec![name("a"), name("_"), Operand::Int(u64::MAX), Operand::F64(1f64.to_bits())])),
        ("a+4", Operand::Offset("a".into(), 4)),
        ("a+-4", Operand::Offset("a".into(), -4)),
        ("a+4*2-1", Operand::Offset("a".into(), 7)),
        ("[a]", address(name("a"), 0, vec![])),
        ("[%rd1+0]", address(name("%rd1"), 0, vec![])),
        ("[ %rd1 + 16 ]", address(name("%rd1"), 16, vec![])),
        ("[a+-4]", address(name("a"), -4, vec![])),
        ("[a+0xFFFFFFFFFFFFFFFC]", address(name("a"), -4, vec![])),
        ("[16+4]", address(Operand::Int(20), 0, vec![])),
        ("[m, {x, 3}]", address(name("m"), 0, vec![Operand::Vector(vec![name("x"), Operand::Int(3)])])),
        ("[t, s, {x}]", address(name("t"), 0, vec![name("s"), Operand::Vector(vec![name("x")])])),
        ("a[2]", element(None, 2)),
        ("a[%r1]", element(Some("%r1"), 0)),
        ("a[%r1+2]", element(Some("%r1"), 2)),
        ("a[%r1-2]", element(Some("%r1"), -2)),
        ("0f3F800000", Operand::F32(0x3f80_0000)),
        ("0Fbf800000", Operand::F32(0xbf80_0000)),
        ("0d3FF0000000000000", Operand::F64(0x3ff0_0000_0000_0000)),
        ("-0D3FF0000000000000", Operand::F64(0xbff0_0000_0000_0000)),
    ] {
        assert_eq!(operand(text), expected, "{text}");
    }
    // Parentheses are arguments in calls and expressions elsewhere.
    let call = instruction("call.uni (r), f, (a, (1+2)), t;");
    assert_eq!(call.opcode, ["call", "uni"]);
    assert_eq!(call.operands[0], Operand::List(vec![name("r")]));
    assert!(matches!(&call.operands[2], Operand::List(l) if l[0] == name("a")));
    assert_eq!(instruction("call f;").operands, [name("f")]);
    assert_eq!(instruction("call (), f, ();").operands[2], Operand::List(vec![]));
    assert!(instruction("exit;").operands.is_empty());
    let spaced = instruction("ld /* c */ .global\n.v2 .u32 {a, b}, [d];");
    assert_eq!(spaced.opcode, ["ld", "global", "v2", "u32"]);
}

#[test]
fn constants() {
    // PTX ISA 9.0, sections 4.5.1 to 4.5.6; every value here is also what ptxas 13.0 stores.
    let max = u64::MAX;
    for (text, expected) in [
        ("0", 0),
        ("0U", 0),
        ("010", 8),
        ("0x1F", 0x1f),
        ("0XFFU", 0xff),
        ("0b101", 5),
        ("0B11U", 3),
        ("18446744073709551615", max),
        ("WARP_SZ - 1", 31),
        ("-1", max),
        ("- -5", 5),
        ("+5", 5),
        ("!5", 0),
        ("!0", 1),
        ("~5", !5),
        ("2*3+4<<1", 20),
        ("1 - 2 - 3", -4i64 as u64),
        ("7 & 3 == 3", 1),
        ("1 | 2 ^ 3 & 4", 3),
        ("1||0&&0", 1),
        ("2 && 4", 1),
        ("(1<2)==1", 1),
        ("5 / -2", -2i64 as u64),
        ("5U/-2", 0),
        ("-9223372036854775808 / -1", 0),
        ("-7 % 3", 0),
        ("((5 % 3) - 3) < 0", 1),
        ("-1 >> 1", max),
        ("-1U >> 1", max / 2),
        ("1 << 65", 2),
        ("-8 >> 70", max),
        ("1<<-1", 1 << 63),
        ("(-1 & -1) < 0", 1),
        ("(-1 | 0U) < 0", 0),
        ("~0 < 0", 0),
        ("0xffffffffffffffff < 0", 0),
        ("(.s64)0xffffffffffffffff < 0", 1),
        ("(.u64)-1 > 5", 1),
        ("(.u64)3+-5 < 0", 0),
        ("1?0?1:2:3", 2),
        ("0 ? 2 : 3", 3),
        ("1.5 < 2.5", 1),
        ("1.0 == 1.0 ? 7 : 8", 7),
        ("((((1))))", 1),
        ("9223372036854775807 + 1", 1 << 63),
    ] {
        assert_eq!(operand(text), Operand::Int(expected), "{text}");
    }
    for (text, expected) in [
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        (".5e+1", 5.0),
        ("1.5E-3", 1.5e-3),
        ("-0.0", -0.0),
        ("1.5+2.0*2.0", 5.5),
        ("1 ? 2.5 : 1.5", 2.5),
        ("1.0/0.0", f64::INFINITY),
    ] {
        assert_eq!(operand(text), Operand::F64(expected.to_bits()), "{text}");
    }
}

#[test]
fn initial_values() {
    let init = |text: &str| variable(&format!(".global {text};")).init;
    let bits = |bits: &[u64]| bits.iter().map(|&b| Init::Bits(b)).collect::<Vec<_>>();
    assert_eq!(init(".u32 x = 7"), bits(&[7]));
    assert_eq!(init(".s8 x[3] = {-1, 300, 0x80}"), bits(&[u64::MAX, 300, 0x80]));
    assert_eq!(
        init(".f32 x[4] = {1.5, 0f40000000, 0d3ff0000000000000, -1.0/2.0}"),
        bits(&[0x3fc0_0000, 0x4000_0000, 0x3f80_0000, 0xbf00_0000])
    );
    assert_eq!(init(".f64 x = 1.5"), bits(&[1.5f64.to_bits()]));
    assert_eq!(init(".b32 x = 1.5"), bits(&[0x3fc0_0000]));
    assert_eq!(init(".b64 x = 1.5"), bits(&[1.5f64.to_bits()]));
    // The manual's example: { {1,2}, {3} } is { {1,2}, {3,0}, {0,0} }.
    assert_eq!(init(".s32 x[3][2] = { {1,2}, {3} }"), bits(&[1, 2, 3]));
    assert_eq!(init(".s32 x[3][2] = { {1}, {}, {5} }"), bits(&[1, 0, 0, 0, 5]));
    assert_eq!(init(".s32 x[2][2][2] = { {{1}}, {{}, {7, 8}} }"), bits(&[1, 0, 0, 0, 0, 0, 7, 8]));
    assert_eq!(init(".v2 .u32 x[2] = {{1,2},{3,4}}"), bits(&[1, 2, 3, 4]));
    let x = variable(".global .s32 x[][2] = { {-1, 0}, {0, -1}, {} };");
    assert_eq!((x.dims.as_slice(), x.unsized_array, x.init.len()), (&[3, 2][..], false, 4));

    let address = |offset, generic| Init::Address { name: "y".into(), offset, generic };
    assert_eq!(
        init(".u64 x[] = {y, y+4, y+-4, generic(y), generic(y)+8}"),
        [address(0, false), address(4, false), address(-4, false), address(0, true), address(8, true)]
    );
    let byte = |offset, generic, byte| Init::AddressByte { name: "y".into(), offset, generic, byte };
    assert_eq!(
        init(".u8 x[] = {0xFF(y), 0xff00(y+4), 0xFF00000000000000(generic(y)+8), 0xFF(1000 + 546), 0xFF00(131187)}"),
        [byte(0, false, 0), byte(4, false, 1), byte(8, true, 7), Init::Bits(10), Init::Bits(0)]
    );
}

#[test]
fn declarations() {
    let one = |text: &str| {
        let v = variable(text);
        (v.space, v.ty, v.vector, v.align, v.dims)
    };
    assert_eq!(one(".global .u32 x;"), (Space::Global, Type::U32, 1, 4, vec![]));
    assert_eq!(one(".visible .global .align 16 .b8 x[4][3];"), (Space::Global, Type::B8, 1, 16, vec![4, 3]));
    assert_eq!(one(".weak .const .v4 .f32 x;"), (Space::Const, Type::F32, 4, 16, vec![]));
    assert_eq!(one(".common .global .u8 x[2+2*3];"), (Space::Global, Type::U8, 1, 1, vec![8]));
    assert_eq!(one(".extern .const[2] .b64 x[];"), (Space::Const, Type::B64, 1, 8, vec![0]));
    assert_eq!(one(".extern .shared .align 1024 .b8 x[];"), (Space::Shared, Type::B8, 1, 1024, vec![0]));
    assert_eq!(one(".global .attribute(.managed) .s32 x;"), (Space::Global, Type::S32, 1, 4, vec![]));
    assert_eq!(one(".global .texref x;"), (Space::Global, Type::TexRef, 1, 8, vec![]));
    let several = module(".global .u32 a, b = 1, c[2];").variables;
    assert_eq!(several.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((several[0].span.line, several[0].span.column, several[2].span.column), (4, 14, 24));

    let body =
        body(".reg .b32 %r<10>, q;\n.reg .pred p;\n.local .align 8 .b8 d[16];\n.shared .v2 .u16 uv;\n.param .b32 a;\nret;");
    let declared: Vec<_> = body
        .iter()
        .filter_map(|s| if let Statement::Variable(v) = s { Some((v.name.as_str(), v.range, v.space)) } else { None })
        .collect();
    assert_eq!(
        declared,
        [
            ("%r", Some(10), Space::Reg),
            ("q", None, Space::Reg),
            ("p", None, Space::Reg),
            ("d", None, Space::Local),
            ("uv", None, Space::Shared),
            ("a", None, Space::Param)
        ]
    );

    let kernel = module(
        ".visible .entry k(.param .u64 .ptr .global .align 16 a, .param .u64 .ptr b, .param .align 64 .b8 c[128]) .maxntid 16,4 .maxnreg 32 .pragma \"x\", \"y\"; {}",
    );
    let kernel = &kernel.functions[0];
    assert_eq!(
        kernel.params.iter().map(|p| (p.pointer_align, p.align)).collect::<Vec<_>>(),
        [(Some(16), 8), (None, 8), (None, 64)]
    );
    assert_eq!(kernel.directives, [("maxntid".into(), vec![16, 4]), ("maxnreg".into(), vec![32])]);
    let functions = module(
        ".func (.reg .u32 r) f (.reg .u32 a, .param .align 4 .b8 rest[]) .abi_preserve 8;\n.weak .func g .noreturn { trap; }\n.extern .func h();",
    )
    .functions;
    assert_eq!((functions[0].returns.len(), functions[0].params.len(), functions[0].body.is_none()), (1, 2, true));
    assert!(functions[0].params[1].unsized_array && functions[2].is_extern);
    assert_eq!(functions[1].directives, [("noreturn".into(), vec![])]);
}

#[test]
fn statements() {
    let body = body(concat!(
        "@p bra L;\n L: M:\n { L: bra L; { } }\n .pragma \"nounroll\";\n",
        "ts: .branchtargets L, N<3>;\n cs: .calltargets f, g;\n",
        "ps: .callprototype (.param .b32 _) _ (.param .align 4 .b8 _[12], .reg .u32 x) .abi_preserve 2;\n@!%p2 ret;"
    ));
    let [
        Statement::Instruction(branch),
        Statement::Label { name: l, span },
        Statement::Label { name: m, .. },
        Statement::Block(inner),
        Statement::Pragma(pragma),
        Statement::BranchTargets { name: ts, targets, .. },
        Statement::CallTargets { targets: functions, .. },
        Statement::CallPrototype { returns, params, .. },
        Statement::Instruction(last),
    ] = &body[..]
    else {
        panic!("{body:?}")
    };
    assert_eq!((branch.span.line, branch.span.column, span.line, span.column), (5, 4, 6, 2));
    assert_eq!((l.as_str(), m.as_str(), pragma.as_str(), ts.as_str()), ("L", "M", "nounroll", "ts"));
    assert_eq!(targets, &["L", "N0", "N1", "N2"]);
    assert_eq!(functions, &["f", "g"]);
    assert_eq!((returns.len(), params.len(), params[0].dims.as_slice()), (1, 2, &[12][..]));
    assert!(matches!(&inner[..], [Statement::Label { .. }, Statement::Instruction(_), Statement::Block(b)] if b.is_empty()));
    let guard = last.guard.as_ref().unwrap();
    assert!(guard.negated && guard.name == "%p2");
}

#[test]
fn places_in_the_source() {
    let text = "exit;\n.loc 1 10 3\nexit;\n{ exit;\n.loc 1 9 3, function_name info+16, inlined_at 1 21 3\nexit; }\nexit;\n.loc 1 0 0\nexit;";
    let module =
        module(&format!(".file 1 \"a.cu\"\n.file 2 \"b\\\\.cu\", 12, 34\n.entry k() {{ {text} }} .entry l() {{ exit; }}"));
    assert_eq!(module.files, [(1, "a.cu".into()), (2, "b\\\\.cu".into())]);
    let loc = |line, column| Some(Loc { file: 1, line, column });
    let locs: Vec<_> = instructions(&module.functions[0]).iter().map(|i| (i.loc, i.inlined_at.first().copied())).collect();
    let inlined = (loc(9, 3), loc(21, 3));
    assert_eq!(locs, [(None, None), (loc(10, 3), None), (loc(10, 3), None), inlined, inlined, (loc(0, 0), None)]);
    assert_eq!(instructions(&module.functions[1])[0].loc, None);

    // The outer call comes first, and only its latest place counts.
    let at = |line, outer| format!(".loc 1 {line} 1, function_name info, inlined_at 1 {outer} 1\n");
    let text = format!(".entry k() {{ {}{}{}exit;\n{}{}exit; }}", at(9, 10), at(8, 9), at(7, 8), at(9, 20), at(8, 9));
    let module = self::module(&format!(".file 1 \"a.cu\"\n{text}"));
    let chains: Vec<Vec<u32>> =
        instructions(&module.functions[0]).iter().map(|i| i.inlined_at.iter().map(|l| l.line).collect()).collect();
    assert_eq!(chains, [vec![8, 9, 10], vec![9, 20]]);
}

#[test]
fn what_is_dropped() {
    let module = module(concat!(
        ".section .debug_str { L: .b8 1, -2 .b32 .debug_abbrev+4 .b64 L-M }\n@@DWARF .byte 0x2b, \"\", x\n",
        "/* a /* b */ .pragma \"x\"; // c\n.entry k() { ret; } // no newline"
    ));
    assert_eq!(module.functions.len(), 1);
    assert!(parse(&format!("// c\n/**//***/{HEAD}.entry k(){{}}\0\0")).is_ok());
    assert_eq!(parse(".version 9.0 .target sm_80, debug .target sm_90").unwrap().targets, ["sm_80", "debug", "sm_90"]);
    assert_eq!(parse(".version 9.0 .target sm_80").unwrap().address_size, 64);
}

#[test]
fn errors_name_what_is_wrong_and_where() {
    for (text, line, column, message) in [
        (".entry k() { ret }", 4, 18, "expected an operand, found `}`"),
        (".entry k() { ret a }", 4, 20, "expected `,` or `;`, found `}`"),
        (".entry k() { ret;", 4, 18, "the end of the text"),
        (".entry k()\n{\n  add.s32 %r1, %r2, 08;\n}", 6, 21, "malformed number"),
        (".entry k() { mov.f32 f, 0f3f8; }", 4, 25, "eight hexadecimal digits"),
        (".entry k() { mov.f64 f, 0d3f8; }", 4, 25, "sixteen hexadecimal digits"),
        (".entry k() { mov.u32 r, 18446744073709551616; }", 4, 25, "does not fit 64 bits"),
        (".entry k() { mov.u32 r, 1e; }", 4, 25, "no digits"),
        (".entry k() { mov.f64 r, 1e999; }", 4, 25, "outside the range"),
        (".entry k() { mov.u32 r, 1/0; }", 4, 26, "division by zero"),
        (".entry k() { mov.u32 r, 1+1.5; }", 4, 26, "both sides"),
        (".entry k() { mov.f32 f, -0f3f800000; }", 4, 25, "single-precision literals take no operators"),
        (".entry k() { mov.f32 f, 0f3f800000+1.0; }", 4, 35, "both sides"),
        (".entry k() { ld.u32 r, [d-4]; }", 4, 26, "`+-4`"),
        (".entry k() { ld.u32 r, [d; }", 4, 26, "expected `]`"),
        (".entry k() { mov.b64 d, {}; }", 4, 26, "an operand"),
        (".entry k() { mov.u32 r, {a|b|c}; }", 4, 29, "expected `}`"),
        (".entry k() { mov.u32 r, 1|b; }", 4, 27, "a constant"),
        (".entry k() { @p @q ret; }", 4, 17, "an instruction"),
        (".entry k() { @p { ret; } }", 4, 17, "an instruction"),
        (".entry k() { ;; }", 4, 14, "found `;`"),
        (".entry k() { add..u32 r, r; }", 4, 17, "after this dot"),
        (".entry k() { .branchtargets L; }", 4, 14, "needs a label"),
        (".entry k() { .file 1 \"a\" }", 4, 14, "unsupported directive `.file`"),
        (".entry k() { .loc 1 2 3, inlined_at 1 2 3 }", 4, 26, "`function_name`"),
        (".entry k() { .reg .u32 x[2]; }", 4, 24, "no arrays"),
        (".entry k() { .reg .tf32 x; }", 4, 19, "`.tf32` is no type"),
        (".entry k() { .reg .u32 _; }", 4, 24, "found `_`"),
        (".entry k() { .shared .u32 x = 1; }", 4, 29, "initial values"),
        (".entry k(.reg .u32 x) {}", 4, 10, "parameters of kernels"),
        (".entry k(.param .u32 x,) {}", 4, 24, "a state space"),
        (".entry k() .noreturn {}", 4, 12, "unsupported directive `.noreturn`"),
        (".entry k() .maxntid 1,2,3,4 {}", 4, 26, "a function's body"),
        (".func f() .maxntid 1 {}", 4, 11, "`.maxntid`"),
        (".extern .func f() {}", 4, 19, "no body"),
        (".visible .weak .func f();", 4, 10, "second linkage"),
        (".common .shared .u32 x;", 4, 9, "`.common`"),
        (".alias f, g;", 4, 1, "`.alias`"),
        (".abs_func f;", 4, 1, "`.abs_func`"),
        (".tex .u64 t;", 4, 1, "`.tex`"),
        (".global .attribute(.unified(1,2)) .u32 x;", 4, 20, "`.unified`"),
        (".global .align 3 .u32 x;", 4, 16, "power of two"),
        (".global .v4 .u64 x;", 4, 13, "128 bits"),
        (".global .pred p;", 4, 9, "registers only"),
        (".global .u32 x[];", 4, 14, "without a length"),
        (".global .u32 x[2][0];", 4, 18, "length 0"),
        (".global .b8 x[2000000][2000000];", 4, 23, "bytes"),
        (".global .u32 x[2] = {1,2,3};", 4, 26, "more initial values"),
        (".global .u32 x[2][2] = {1,2};", 4, 25, "expected `{`"),
        (".global .v2 .u32 x = {1};", 4, 24, "whole"),
        (".global .f32 x = 1;", 4, 18, "does not fit the type"),
        (".global .f16 x = 0;", 4, 18, "does not fit the type"),
        (".global .u8 x[] = {0xFF0(y)};", 4, 20, "eight bits"),
        (".global .u8 x[1000000][70000] = {{}, {}};", 4, 38, "left to be filled in"),
        (".file 1 \"a\nb\"", 4, 9, "not closed"),
        (".section .debug_str { .b8 {} }", 4, 27, "DWARF"),
        (".version 9.0", 4, 1, "beginning of the module"),
        ("\n/* x\n", 5, 1, "comment is not closed"),
        ("#define X", 4, 1, "preprocessor"),
        ("é", 4, 1, "no meaning"),
        (".entry é() {}", 4, 8, "no meaning"),
        (".entry k() { é }", 4, 14, "no meaning"),
    ] {
        let error = failure(text);
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
        assert!(error.message.contains(message), "{text}: {error}");
        assert_eq!(error.to_string(), format!("{line}:{column}: {}", error.message));
    }
    let at = |text: &str| parse(text).map(|_| ()).map_err(|e| (e.line, e.column));
    assert_eq!(at(""), Err((1, 1)));
    assert_eq!(at(".version 9"), Err((1, 10)));
    assert_eq!(at(".version 9.0\n.address_size 64"), Err((2, 1)));
    assert_eq!(at(".version 9.0 .target debug"), Err((1, 14)));
    let long = failure(&format!(".entry k() {{ {} }}", "x".repeat(1000)));
    assert!(long.message.len() < 120, "{long}");
}

#[test]
fn bytes_that_are_no_text() {
    assert!(parse_bytes(format!("{HEAD}.entry k(){{}}\0").as_bytes()).is_ok());
    for (bytes, line, column) in [(&b"\xff"[..], 1, 1), (b".version 9.0\n// a\xc3", 2, 5), (b"ab\n\n\xe2\x82", 3, 1)] {
        let error = parse_bytes(bytes).unwrap_err();
        assert_eq!((error.line, error.column), (line, column));
        assert!(error.message.contains("UTF-8"));
    }
    let error = parse_bytes(b".version 9.0 \0 .target sm_90a").unwrap_err();
    assert_eq!((error.line, error.column), (1, 14));
}

#[test]
fn nesting_is_limited() {
    const DEEP: usize = 200_000;
    let nest =
        |open: &str, middle: &str, close: &str, depth: usize| format!("{}{middle}{}", open.repeat(depth), close.repeat(depth));
    let kernel = |inner: String| format!(".entry k() {{ {inner} }}");
    let mov = |inner: String| kernel(format!("mov.u32 r, {inner};"));
    for text in [
        kernel(nest("{", "", "}", DEEP)),
        kernel("{".repeat(DEEP)),
        mov(nest("(", "1", ")", DEEP)),
        mov(nest("(.u64)", "1", "", DEEP)),
        mov(nest("-", "1", "", DEEP)),
        mov(nest("!~+ ", "1", "", DEEP)),
        mov(nest("{", "1", "}", DEEP)),
        mov(nest("[a, ", "b", "]", DEEP)),
        mov(nest("1?1:", "1", "", DEEP)),
        mov(nest("1?", "1", ":1", DEEP)),
        mov(nest("1||1&&1|1^1&1==1<1<<1+1*", "(1", ")", DEEP)),
        kernel(format!("call f, {};", nest("(", "1", ")", DEEP))),
        format!(".global .u32 x{} = {};", "[1]".repeat(DEEP), nest("{", "1", "}", DEEP)),
    ] {
        let error = failure(&text);
        let known = ["nested deeper", "expected", "expression"];
        assert!(known.iter().any(|k| error.message.contains(k)), "{error}");
    }
    // What stays below the limit parses, and wide texts are not deep.
    let fits = MAX_DEPTH as usize / 2;
    module(&kernel(nest("{", "ret;", "}", fits)));
    module(&mov(nest("(", "1", ")", fits)));
    module(&mov(format!("1{}", "+1".repeat(DEEP))));
    module(&kernel("{}".repeat(DEEP)));
}

#[test]
fn what_few_characters_stand_for_is_limited() {
    assert!(failure(".entry k() { .reg .u32 %r<4294967295>; }").message.contains("names declared by"));
    assert!(failure(&format!(".entry k() {{ {} }}", ".reg .u32 %r<1000>; ".repeat(2000))).message.contains("names declared by"));
    module(&".entry k() { .reg .u32 %r<1000000>; }".repeat(2));
    let many = ".entry k() { t: .branchtargets L<60000>; }";
    module(many);
    assert!(failure(&many.repeat(2)).message.contains("left to be filled in"));
    let rows = ".global .u32 x[2][40000] = {{}, {}};";
    module(rows);
    assert!(failure(&rows.repeat(2)).message.contains("left to be filled in"));
}
