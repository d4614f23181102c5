//! `fp8_gemm_bugs.cu` with operands whose product is exact, and what it must give.

use super::{Failure, Gpu, Run, Text, equal};
use half::bf16;
use ptx_emu::tma::{DataType, EncodedTensorMap, Swizzle, TensorMap, Tiled};
use ptx_emu::{Arg, Config, Shape};
use v3_testkit::Rng;

/// Bytes of dynamic shared memory that the kernel asks for.
pub const SHARED: u32 = 41024;

/// A product D = A B^T.
#[derive(Clone, Copy)]
pub struct Product {
    /// Rows of A and D.
    pub m: usize,
    /// Rows of B, columns of D; a multiple of 8 (the rows of D are a multiple of 16 bytes).
    pub n: usize,
    /// Columns of A and B; a multiple of 16.
    pub k: usize,
    /// Blocks.
    pub blocks: u32,
}

/// E4M3 of an integer from -4 to 4: bias 7, so 1.0 is 0x38.
fn e4m3(x: i32) -> u8 {
    let magnitude = [0x00, 0x38, 0x40, 0x44, 0x48][x.unsigned_abs() as usize];
    if x < 0 { magnitude | 0x80 } else { magnitude }
}

fn map(data_type: DataType, address: u64, columns: usize, rows: usize, inner: u32) -> Arg {
    let bytes = u64::from(data_type.bytes().unwrap());
    let map = TensorMap::tiled(&Tiled {
        data_type,
        address,
        dims: &[columns as u64, rows as u64],
        strides: &[columns as u64 * bytes],
        box_dims: &[inner, 64],
        element_strides: &[1, 1],
        swizzle: Swizzle::B128,
        ..Tiled::default()
    });
    let encoded: EncodedTensorMap = map.unwrap().encode();
    Arg(encoded.bytes.to_vec())
}

/// Runs the kernel on operands of small integers; every sum is exact in f32, so D is its bf16 rounding.
pub fn run(text: &Text, config: Config, product: Product) -> Run {
    let Product { m, n, k, blocks } = product;
    let gpu = Gpu::new(text, config);
    let mut rng = Rng::new((m * 31 + n * 7 + k) as u64);
    let mut matrix = |rows: usize| -> Vec<i32> { (0..rows * k).map(|_| rng.below(9) as i32 - 4).collect() };
    let (a, b) = (matrix(m), matrix(n));
    let upload = |x: &[i32]| gpu.upload(&x.iter().map(|&x| e4m3(x)).collect::<Vec<u8>>());
    let d = gpu.room::<u16>(m * n);
    let args = [
        map(DataType::Uint8, upload(&a), k, m, 128),
        map(DataType::Uint8, upload(&b), k, n, 128),
        map(DataType::Bfloat16, d, n, m, 64),
        Arg::from(m as u32),
        Arg::from(n as u32),
        Arg::from(k as u32),
    ];
    gpu.run("fp8_gemm", Shape::new(blocks, 160).shared(SHARED), &args)?;
    let mut expected = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let sum: i32 = (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
            expected.push(bf16::from_f32(sum as f32).to_bits());
        }
    }
    equal("D", &gpu.download::<u16>(d, m * n), &expected)
}

/// Whether a run ended with wrong values and without a report.
pub fn only_values_are_wrong(run: &Run) -> bool {
    matches!(run, Err(Failure::Wrong(text)) if text.starts_with("D: "))
}
