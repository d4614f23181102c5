//! Kernels that ask for too much, never end, or do what no kernel may: each ends as its first line says, soon and without a panic.

use ptx_emu::{Arg, Checks, Config, Machine, Module, Shape};

/// How parsing, launching and running a module's first kernel ends, in words.
fn outcome(ptx: &str, checks: Checks) -> String {
    let module = match Module::parse(ptx) {
        Ok(module) => module,
        Err(error) => return format!("parse: {error}"),
    };
    let kernel = module.kernels().next().expect("a kernel").to_owned();
    let machine = Machine::new(Config { budget: 5000, checks, ..Config::default() });
    let buffer = machine.memory().alloc(0, 4096).unwrap();
    let loaded = match machine.load(&module, 0) {
        Ok(loaded) => loaded,
        Err(error) => return format!("load: {error}"),
    };
    let args: Vec<Arg> = module
        .params(&kernel)
        .unwrap()
        .iter()
        .map(|&size| if size == 8 { Arg::from(buffer) } else { Arg(vec![0; size as usize]) })
        .collect();
    let stream = machine.stream(0).unwrap();
    if let Err(error) = machine.launch(stream, &loaded, &kernel, Shape::new(2, 64), &args) {
        return format!("launch: {error}");
    }
    match machine.synchronize() {
        Ok(()) => "ends".into(),
        Err(report) => format!("report: {report}"),
    }
}

#[test]
fn hostile_kernels() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/hostile");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = text.lines().next().and_then(|line| line.strip_prefix("// ")).expect("what is expected").to_owned();
        for checks in [Checks::ALL, Checks::NONE] {
            let outcome = outcome(&text, checks);
            assert!(outcome.starts_with(&expected), "{}: expected {expected}\ngot {outcome}", path.display());
        }
        count += 1;
    }
    assert!(count > 25);
}
