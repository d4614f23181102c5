//! Runs a kernel of any PTX file.
//!
//! ```text
//! cargo run -p ptx-emu --example run -- FILE.ptx KERNEL [OPTION...] [ARGUMENT...]
//! ```
//!
//! `--help` says the rest. Exit status: 0 when the kernel ran and nothing is wrong, 1 when the emulator reports something, 2 when the
//! command line, the PTX or the launch is not right.

use ptx_emu::{Arg, Checks, Config, Fp8Accumulation, Machine, Module, Shape, explore};
use std::process::ExitCode;

const USAGE: &str = "\
run FILE.ptx [KERNEL [OPTION...] [ARGUMENT...]]

Without KERNEL: lists the kernels of the file and the sizes of their parameters.

Options:
  --grid X[,Y[,Z]]      blocks (1)
  --block X[,Y[,Z]]     threads of a block (32)
  --cluster X[,Y[,Z]]   blocks of a cluster
  --shared BYTES        dynamic shared memory (0)
  --seed N              order in which things happen (0)
  --seeds N             run N seeds from --seed on, stop at the first report
  --checks all|none     detectors (all)
  --threads N           threads that run blocks, without detectors (1)
  --fp8 exact|hopper    accumulation of FP8 matrix instructions (exact)
  --budget N            most warp instructions

Arguments, one for each parameter of the kernel, in order:
  u32=5 s64=-1 f32=1.5 f64=2 u8=1 ...      a scalar
  bytes=00ff10..                           any parameter, as hexadecimal bytes
  buf:TYPE[COUNT]                          a buffer that nothing has written
  buf:TYPE[COUNT]=VALUE                    ... filled with a value
  buf:TYPE[COUNT]=iota                     ... with 0, 1, 2, ...
  buf:TYPE[COUNT]=random                   ... with values in [-1, 1), or random bits for integers
  buf:TYPE=a,b,c                           ... with these values
  buf:TYPE=@FILE                           ... with the bytes of a file
TYPE is one of u8 s8 u16 s16 u32 s32 u64 s64 f32 f64 (f16, bf16, FP8: give u16 and u8 bits, or a file).
After a buffer:
  :print or :print=N                       prints it (its first N values) afterwards
  :save=FILE                               writes its bytes to a file afterwards
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.is_empty() || args.iter().any(|a| a == "--help" || a == "-h") {
        print!("{USAGE}");
        return ExitCode::from(if args.is_empty() { 2 } else { 0 });
    }
    match run(&args) {
        Ok(status) => status,
        Err(message) => {
            eprintln!("run: {message}");
            ExitCode::from(2)
        }
    }
}

struct Command {
    shape: Shape,
    config: Config,
    seeds: u64,
    params: Vec<Param>,
}

enum Param {
    Scalar(Arg),
    Buffer { ty: String, bytes: Content, after: After },
}

enum Content {
    Unwritten(u64),
    Bytes(Vec<u8>),
}

#[derive(Default)]
struct After {
    print: Option<usize>,
    save: Option<String>,
}

fn run(args: &[String]) -> Result<ExitCode, String> {
    let file = &args[0];
    let text = std::fs::read(file).map_err(|e| format!("{file}: {e}"))?;
    let text = String::from_utf8(text).map_err(|_| format!("{file}: not UTF-8 text"))?;
    let module = Module::parse(text.trim_end_matches('\0')).map_err(|e| format!("{file}:{e}"))?;
    let Some(kernel) = args.get(1) else {
        for kernel in module.kernels() {
            let sizes = module.params(kernel).unwrap_or_default();
            println!(
                "{kernel}  parameters of {sizes:?} bytes, {} bytes of static shared memory",
                module.static_shared(kernel).unwrap_or(0)
            );
        }
        return Ok(ExitCode::SUCCESS);
    };
    let command = command(&args[2..])?;
    let outcome = explore(command.seeds, &command.config, |config| once(&module, kernel, &command, config));
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err((_, Failure::Usage(message))) => Err(message),
        Err((seed, Failure::Report(report))) => {
            if command.seeds > 1 {
                println!("seed {seed}:");
            }
            println!("{report}");
            Ok(ExitCode::from(1))
        }
    }
}

enum Failure {
    Usage(String),
    Report(Box<ptx_emu::Report>),
}

fn once(module: &Module, kernel: &str, command: &Command, config: Config) -> Result<(), Failure> {
    let usage = |e: &dyn std::fmt::Display| Failure::Usage(e.to_string());
    let last = config.seed == command.config.seed;
    let machine = Machine::new(config);
    let loaded = machine.load(module, 0).map_err(|e| usage(&e))?;
    let stream = machine.stream(0).map_err(|e| usage(&e))?;
    let mut args = vec![];
    let mut buffers = vec![];
    for param in &command.params {
        match param {
            Param::Scalar(arg) => args.push(arg.clone()),
            Param::Buffer { ty, bytes, after } => {
                let size = match bytes {
                    Content::Unwritten(size) => *size,
                    Content::Bytes(bytes) => bytes.len() as u64,
                };
                let address = machine.memory().alloc(0, size).map_err(|e| usage(&e))?;
                if let Content::Bytes(bytes) = bytes {
                    machine.memory().write(address, bytes).map_err(|e| usage(&e))?;
                }
                args.push(Arg::from(address));
                buffers.push((ty, address, size, after));
            }
        }
    }
    machine.launch(stream, &loaded, kernel, command.shape, &args).map_err(|e| usage(&e))?;
    let result = machine.synchronize();
    if last {
        print!("{}", machine.take_printed());
    }
    result.map_err(|r| Failure::Report(Box::new(r)))?;
    if !last {
        return Ok(());
    }
    for (i, (ty, address, size, after)) in buffers.into_iter().enumerate() {
        let mut bytes = vec![0; size as usize];
        machine.memory().read(address, &mut bytes).map_err(|e| usage(&e))?;
        if let Some(count) = after.print {
            println!("buffer {i}: {}", shown(ty, &bytes, count));
        }
        if let Some(path) = &after.save {
            std::fs::write(path, &bytes).map_err(|e| Failure::Usage(format!("{path}: {e}")))?;
        }
    }
    Ok(())
}

fn command(args: &[String]) -> Result<Command, String> {
    let mut command = Command { shape: Shape::new(1, 32), config: Config::default(), seeds: 1, params: vec![] };
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(option) = arg.strip_prefix("--") else {
            command.params.push(param(arg)?);
            continue;
        };
        let value = rest.next().ok_or_else(|| format!("--{option} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("--{option} {value}: not a number"));
        match option {
            "grid" => command.shape.grid = dims(value)?,
            "block" => command.shape.block = dims(value)?,
            "cluster" => command.shape.cluster = Some(dims(value)?),
            "shared" => command.shape.dynamic_shared = u32::try_from(number()?).map_err(|_| "--shared: too large")?,
            "seed" => command.config.seed = number()?,
            "seeds" => command.seeds = number()?.max(1),
            "threads" => command.config.threads = number()?.clamp(1, 256) as usize,
            "budget" => command.config.budget = number()?,
            "checks" => {
                command.config.checks = match value.as_str() {
                    "all" => Checks::ALL,
                    "none" => Checks::NONE,
                    other => return Err(format!("--checks {other}: expected all or none")),
                }
            }
            "fp8" => {
                command.config.fp8 = match value.as_str() {
                    "exact" => Fp8Accumulation::Exact,
                    "hopper" => Fp8Accumulation::Hopper,
                    other => return Err(format!("--fp8 {other}: expected exact or hopper")),
                }
            }
            other => return Err(format!("unknown option --{other}; --help lists them")),
        }
    }
    Ok(command)
}

fn dims(text: &str) -> Result<[u32; 3], String> {
    let mut dims = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err(format!("{text}: at most three numbers"));
    }
    for (dim, part) in dims.iter_mut().zip(parts) {
        *dim = part.parse().map_err(|_| format!("{text}: expected X,Y,Z"))?;
    }
    Ok(dims)
}

fn width(ty: &str) -> Result<usize, String> {
    Ok(match ty {
        "u8" | "s8" => 1,
        "u16" | "s16" => 2,
        "u32" | "s32" | "f32" => 4,
        "u64" | "s64" | "f64" => 8,
        other => return Err(format!("unknown type {other}")),
    })
}

fn value(ty: &str, text: &str) -> Result<Vec<u8>, String> {
    let bad = || format!("{text} is not a {ty}");
    let integer = || -> Result<i128, String> {
        match text.strip_prefix("0x") {
            Some(hex) => i128::from_str_radix(hex, 16).map_err(|_| bad()),
            None => text.parse().map_err(|_| bad()),
        }
    };
    Ok(match ty {
        "f32" => text.parse::<f32>().map_err(|_| bad())?.to_le_bytes().to_vec(),
        "f64" => text.parse::<f64>().map_err(|_| bad())?.to_le_bytes().to_vec(),
        _ => {
            let bytes = width(ty)?;
            let value = integer()?;
            let bits = bytes as u32 * 8;
            if value < -(1 << (bits - 1)) || value >= 1 << bits {
                return Err(bad());
            }
            value.to_le_bytes()[..bytes].to_vec()
        }
    })
}

fn param(text: &str) -> Result<Param, String> {
    let Some(rest) = text.strip_prefix("buf:") else {
        let (ty, value_text) = text.split_once('=').ok_or_else(|| format!("{text}: expected TYPE=VALUE or buf:..."))?;
        if ty == "bytes" {
            let bytes = (0..value_text.len())
                .step_by(2)
                .map(|i| value_text.get(i..i + 2).and_then(|h| u8::from_str_radix(h, 16).ok()))
                .collect::<Option<Vec<u8>>>()
                .ok_or_else(|| format!("{text}: expected pairs of hexadecimal digits"))?;
            return Ok(Param::Scalar(Arg(bytes)));
        }
        return Ok(Param::Scalar(Arg(value(ty, value_text)?)));
    };
    let mut parts = rest.split(':');
    let main = parts.next().unwrap_or_default();
    let mut after = After::default();
    for part in parts {
        match part.split_once('=').unwrap_or((part, "")) {
            ("print", "") => after.print = Some(usize::MAX),
            ("print", n) => after.print = Some(n.parse().map_err(|_| format!("{part}: not a number"))?),
            ("save", file) if !file.is_empty() => after.save = Some(file.to_string()),
            _ => return Err(format!("{part}: expected print, print=N or save=FILE")),
        }
    }
    let (head, init) = match main.split_once('=') {
        Some((head, init)) => (head, Some(init)),
        None => (main, None),
    };
    let (ty, count) = match head.split_once('[') {
        None => (head, None),
        Some((ty, count)) => {
            let count = count.strip_suffix(']').and_then(|c| c.parse::<usize>().ok());
            (ty, Some(count.ok_or_else(|| format!("{head}: expected TYPE[COUNT]"))?))
        }
    };
    let each = width(ty)?;
    let size = |count: usize| count.checked_mul(each).filter(|&s| s < 1 << 40).ok_or_else(|| format!("{head}: too large"));
    let bytes = match (count, init) {
        (Some(count), None) => Content::Unwritten(size(count)? as u64),
        (None, None) => return Err(format!("{text}: expected a count or values")),
        (_, Some(file)) if file.starts_with('@') => {
            let bytes = std::fs::read(&file[1..]).map_err(|e| format!("{}: {e}", &file[1..]))?;
            if let Some(count) = count
                && bytes.len() != size(count)?
            {
                return Err(format!("{}: {} bytes where {head} has {}", &file[1..], bytes.len(), size(count)?));
            }
            Content::Bytes(bytes)
        }
        (Some(count), Some("iota")) => {
            size(count)?;
            Content::Bytes((0..count).map(|i| value(ty, &i.to_string())).collect::<Result<Vec<_>, _>>()?.concat())
        }
        (Some(count), Some("random")) => Content::Bytes(random(ty, count, size(count)?)),
        (Some(count), Some(one)) => {
            size(count)?;
            Content::Bytes(value(ty, one)?.repeat(count))
        }
        (None, Some(list)) => Content::Bytes(list.split(',').map(|v| value(ty, v)).collect::<Result<Vec<_>, _>>()?.concat()),
    };
    Ok(Param::Buffer { ty: ty.to_string(), bytes, after })
}

/// splitmix64: the same values each time.
fn random(ty: &str, count: usize, size: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 31)
    };
    let mut bytes = Vec::with_capacity(size);
    for _ in 0..count {
        let unit = (next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
        match ty {
            "f32" => bytes.extend((unit as f32).to_le_bytes()),
            "f64" => bytes.extend(unit.to_le_bytes()),
            _ => bytes.extend(&next().to_le_bytes()[..size / count]),
        }
    }
    bytes
}

fn shown(ty: &str, bytes: &[u8], count: usize) -> String {
    let each = width(ty).unwrap_or(1);
    let one = |b: &[u8]| -> String {
        let mut word = [0; 8];
        word[..b.len()].copy_from_slice(b);
        let bits = u64::from_le_bytes(word);
        match ty {
            "f32" => f32::from_bits(bits as u32).to_string(),
            "f64" => f64::from_bits(bits).to_string(),
            "s8" => (bits as i8).to_string(),
            "s16" => (bits as i16).to_string(),
            "s32" => (bits as i32).to_string(),
            "s64" => (bits as i64).to_string(),
            _ => bits.to_string(),
        }
    };
    let all = bytes.len() / each;
    let mut text: Vec<String> = bytes.chunks_exact(each).take(count).map(one).collect();
    if count < all {
        text.push(format!("... ({all} in all)"));
    }
    text.join(" ")
}
