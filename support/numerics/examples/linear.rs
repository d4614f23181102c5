//! A linear layer on packed weights, on every instruction set of this machine: the same bits.

use v3_numerics::cpu::{Isa, with_isa};
use v3_numerics::gemm::{PackedB, gemm_packed};
use v3_numerics::{MatMut, MatRef, Result};

fn main() -> Result<()> {
    let (tokens, inputs, outputs) = (512, 1024, 768);
    let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
    let x: Vec<f32> = (0..tokens * inputs).map(value).collect();
    let w: Vec<f32> = (0..outputs * inputs).map(value).collect();
    let packed = PackedB::new(MatRef::new(&w, outputs, inputs)?.t());
    let mut y = vec![0.0; tokens * outputs];
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("{isa}: not available");
            continue;
        }
        let start = std::time::Instant::now();
        with_isa(isa, || gemm_packed(MatRef::new(&x, tokens, inputs)?, &packed, MatMut::new(&mut y, tokens, outputs)?, false))??;
        let seconds = start.elapsed().as_secs_f64();
        let checksum = y.iter().fold(0u64, |sum, y| sum.wrapping_mul(31).wrapping_add(u64::from(y.to_bits())));
        let rate = 2.0 * (tokens * inputs * outputs) as f64 / seconds / 1e9;
        println!("{isa}: {rate:.1} GFLOP/s, checksum {checksum:016x}");
    }
    Ok(())
}
