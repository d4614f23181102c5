//! Runs one instruction on many values, a thread each.

use ptx_emu::{Arg, Checks, Config, Machine, Module, Report, Shape};

/// `.version` and so on, and registers of every kind.
pub const HEAD: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

/// A value of a register: its bits, zero-extended.
pub type Bits = u64;

/// Runs the instructions `body`, a thread for each row of `rows`. The inputs are in `%a`, `%b`, `%c`, `%e`, of the widths in `inputs`
/// (`b16`, `b32`, `b64`, or `pred`, set where the value is odd); the result is read from `%d`, of the width `output`.
///
/// `%p` and `%q` are predicates, `%t0` to `%t9` 32-bit, `%w0` to `%w9` 64-bit and `%h0` to `%h9` 16-bit registers.
pub fn run(body: &str, inputs: &[&str], output: &str, rows: &[Vec<Bits>]) -> Vec<Bits> {
    try_run(body, inputs, output, rows, Config { checks: Checks::ALL, ..Config::default() })
        .unwrap_or_else(|report| panic!("{body}: {report}"))
}

/// The same with these settings.
pub fn try_run(body: &str, inputs: &[&str], output: &str, rows: &[Vec<Bits>], config: Config) -> Result<Vec<Bits>, Report> {
    const NAMES: [&str; 4] = ["a", "b", "c", "e"];
    let mut text = format!(
        "{HEAD}.visible .entry k(.param .u64 in, .param .u64 out, .param .u32 n)\n{{\n\
         .reg .pred %p, %q, %last;\n.reg .b16 %h<10>;\n.reg .b32 %t<10>;\n.reg .b64 %w<10>;\n.reg .b128 %x<10>;\n.reg .b64 %at, %to;\n.reg .b32 %i, %n;\n"
    );
    let widths: Vec<u64> = inputs.iter().map(|ty| width(ty)).collect();
    for (name, ty) in NAMES.iter().zip(inputs) {
        text += &format!(".reg .{ty} %{name};\n");
    }
    text += &format!(
        ".reg .{output} %d;\nld.param.u64 %at, [in];\nld.param.u64 %to, [out];\nld.param.u32 %n, [n];\n\
         mov.u32 %i, %ctaid.x;\nmov.u32 %t0, %tid.x;\nmad.lo.u32 %i, %i, 128, %t0;\n\
         setp.ge.u32 %last, %i, %n;\n@%last exit;\n\
         mad.wide.u32 %at, %i, {}, %at;\nmad.wide.u32 %to, %i, 8, %to;\n",
        8 * inputs.len()
    );
    for (k, (name, ty)) in NAMES.iter().zip(inputs).enumerate() {
        if *ty == "pred" {
            text += &format!("ld.global.u32 %t0, [%at+{}];\nand.b32 %t0, %t0, 1;\nsetp.ne.u32 %{name}, %t0, 0;\n", 8 * k);
        } else {
            text += &format!("ld.global.{ty} %{name}, [%at+{}];\n", 8 * k);
        }
    }
    text += body;
    text += match output {
        "pred" => "\nselp.b64 %w0, 1, 0, %d;\nst.global.b64 [%to], %w0;\n",
        "b16" => "\ncvt.u64.u16 %w0, %d;\nst.global.b64 [%to], %w0;\n",
        "b32" => "\ncvt.u64.u32 %w0, %d;\nst.global.b64 [%to], %w0;\n",
        _ => "\nst.global.b64 [%to], %d;\n",
    };
    text += "ret;\n}\n";
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let machine = Machine::new(config);
    let loaded = machine.load(&module, 0).unwrap();
    let stream = machine.stream(0).unwrap();
    let memory = machine.memory();
    let bytes: Vec<u8> = rows
        .iter()
        .flat_map(|row| {
            assert_eq!(row.len(), widths.len());
            row.iter().zip(&widths).flat_map(|(value, width)| (value & (u64::MAX >> (64 - width))).to_le_bytes())
        })
        .collect();
    let input = memory.alloc(0, bytes.len().max(1) as u64).unwrap();
    memory.write(input, &bytes).unwrap();
    let result = memory.alloc(0, 8 * rows.len().max(1) as u64).unwrap();
    let blocks = rows.len().div_ceil(128) as u32;
    machine
        .launch(
            stream,
            &loaded,
            "k",
            Shape::new(blocks, 128),
            &[Arg::from(input), Arg::from(result), Arg::from(rows.len() as u32)],
        )
        .unwrap();
    machine.synchronize()?;
    let mut read = vec![0; 8 * rows.len()];
    memory.read(result, &mut read).unwrap();
    Ok(read.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect())
}

/// In bits; a predicate is passed as a word.
fn width(ty: &str) -> u64 {
    match ty {
        "b16" => 16,
        "b32" | "pred" => 32,
        _ => 64,
    }
}

/// Runs `body` on the rows and compares with the oracle. A message names the first row that differs.
pub fn check(body: &str, inputs: &[&str], output: &str, rows: &[Vec<Bits>], oracle: impl Fn(&[Bits]) -> Bits) {
    let got = run(body, inputs, output, rows);
    for (row, got) in rows.iter().zip(got) {
        let cut: Vec<Bits> = row.iter().zip(inputs).map(|(v, ty)| v & (u64::MAX >> (64 - width(ty)))).collect();
        let wanted = oracle(&cut);
        assert!(got == wanted, "{body}\n of {cut:#x?}\n gives {got:#x}, not {wanted:#x}");
    }
}

/// A stream of numbers (xorshift), and of values worth trying.
pub struct Values(u64);

impl Values {
    pub fn new(seed: u64) -> Values {
        Values(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Integers of so many bits: edges, small ones, random ones.
    pub fn integer(&mut self, bits: u32) -> u64 {
        let random = self.next();
        let mask = u64::MAX >> (64 - bits);
        mask & match self.next() % 4 {
            0 => integer_edges(bits)[random as usize % integer_edges(bits).len()],
            1 => random & 0xff,
            2 => (random & 0xff).wrapping_neg(),
            _ => random,
        }
    }

    /// Floats of so many bits with so many fraction bits: edges, values of similar size, random patterns.
    pub fn float(&mut self, bits: u32, fraction: u32) -> u64 {
        let random = self.next();
        let mask = u64::MAX >> (64 - bits);
        let edges = float_edges(bits, fraction);
        mask & match self.next() % 4 {
            0 => edges[random as usize % edges.len()],
            1 | 2 => {
                // Near one: sums cancel, products do not overflow.
                let bias = (1u64 << (bits - fraction - 2)) - 1;
                let exponent = bias - 4 + (random >> 60) % 9;
                (random & ((1 << fraction) - 1)) | exponent << fraction | (random >> 59 & 1) << (bits - 1)
            }
            _ => random,
        }
    }

    /// So many rows of integers of these widths, all pairs of edges among them.
    pub fn integers(&mut self, widths: &[u32], count: usize) -> Vec<Vec<Bits>> {
        let mut rows = pairs(widths.len(), &|k| integer_edges(widths[k]));
        rows.extend((0..count).map(|_| widths.iter().map(|&bits| self.integer(bits)).collect::<Vec<_>>()));
        rows
    }

    /// So many rows of floats, all pairs of edges among them.
    pub fn floats(&mut self, sources: usize, bits: u32, fraction: u32, count: usize) -> Vec<Vec<Bits>> {
        let mut rows = pairs(sources, &|_| float_edges(bits, fraction));
        rows.extend((0..count).map(|_| (0..sources).map(|_| self.float(bits, fraction)).collect::<Vec<_>>()));
        rows
    }
}

/// Every value with every other in the first two places; the third takes a few in turn.
fn pairs(sources: usize, edges: &dyn Fn(usize) -> Vec<u64>) -> Vec<Vec<Bits>> {
    let mut rows = vec![];
    let first = edges(0);
    for (i, &a) in first.iter().enumerate() {
        if sources == 1 {
            rows.push(vec![a]);
            continue;
        }
        for (j, &b) in edges(1).iter().enumerate() {
            let mut row = vec![a, b];
            for k in 2..sources {
                let list = edges(k);
                row.push(list[(i * 7 + j * 3 + k) % list.len()]);
            }
            rows.push(row);
        }
    }
    rows
}

/// Around zero, the limits of signed and unsigned, and powers of two.
pub fn integer_edges(bits: u32) -> Vec<u64> {
    let mask = u64::MAX >> (64 - bits);
    let top = 1u64 << (bits - 1);
    [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 255, 256, 0x5555_5555_5555_5555, 0x8000_7fff_8000_7fff]
        .into_iter()
        .chain([top - 1, top, top + 1, mask - 1, mask])
        .map(|v| v & mask)
        .collect()
}

/// Zeros, subnormal, smallest and largest numbers, infinities, NaNs, and numbers around one, of both signs.
pub fn float_edges(bits: u32, fraction: u32) -> Vec<u64> {
    let sign = 1u64 << (bits - 1);
    let infinity = (sign - 1) >> fraction << fraction;
    let one = ((1u64 << (bits - fraction - 2)) - 1) << fraction;
    let unit = 1u64 << fraction;
    let positive = [
        0,
        1,
        2,
        unit - 1,
        unit,
        unit + 1,
        one - unit,
        one - 1,
        one,
        one + 1,
        one + unit / 2,
        one + unit,
        one + 2 * unit + 1,
        infinity - unit,
        infinity - 1,
        infinity,
        infinity + 1,
        infinity | (unit / 2),
        infinity | (unit - 1),
    ];
    positive.into_iter().flat_map(|v| [v, v | sign]).collect()
}

/// `.f32` of bits.
pub fn f32_of(bits: Bits) -> f32 {
    f32::from_bits(bits as u32)
}

/// Bits of an `.f32` result: NaN is 0x7fff_ffff.
pub fn f32_bits(value: f32) -> Bits {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits().into() }
}
