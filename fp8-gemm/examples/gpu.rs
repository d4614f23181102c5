//! A linear layer's forward product with the GPU kernels: `cargo run --release -p fp8-gemm --example gpu [TOKENS OUT IN]`.
//!
//! On the emulator, with all its detectors; with `--features cuda` on the first GPU, and timed.

use fp8_gemm::gpu::{Activation, Kernels, View, ViewMut, Weight};
use fp8_gemm::quantize::{quantize_1x128, quantize_128x128};
use fp8_gemm::{MatMut, MatRef, Operand, Output, ScalePolicy, gemm};
use std::time::Instant;
use v3_gpu::{Backend, Device, EmulatorConfig};
use v3_numerics::bf16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|s| s.parse()).collect::<Result<_, _>>()?;
    let device = if cfg!(feature = "cuda") { Device::cuda(0)? } else { Device::emulated(&EmulatorConfig::default())?.remove(0) };
    let on_gpu = device.backend() == Backend::Cuda;
    let default = if on_gpu { [4096, 7168, 2048] } else { [130, 256, 384] };
    let [m, n, k] = if sizes.is_empty() { default } else { sizes.try_into().map_err(|_| "three sizes: TOKENS OUT IN")? };
    let info = device.info()?;
    let kernels = Kernels::load(&device)?;
    println!("{} ({}), {}, kernels for {}", device.backend(), info.name, info.driver, kernels.arch());
    println!("[{m}, {k}] by [{n}, {k}]: {}", kernels.plan(m as u32, n as u32));

    // Something that is not constant.
    let wave = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
    let x: Vec<bf16> = wave(m * k, 0.37).into_iter().map(bf16::from_f32).collect();
    let w = quantize_128x128(MatRef::new(&wave(n * k, 0.11), n, k)?, ScalePolicy::F32);

    let stream = device.stream()?;
    let (x_there, weight) = (stream.upload(&x)?, Weight::upload(&stream, &w)?);
    let mut input = Activation::new(&stream, m, k)?;
    let stride = n.next_multiple_of(8);
    let mut y = stream.alloc::<bf16>(m * stride)?;
    let start = Instant::now();
    kernels.quantize_1x128(&stream, View::new(&x_there, m, k)?, ScalePolicy::F32, &mut input)?;
    kernels.gemm_nt(&stream, input.view(), weight.view(), ViewMut::with_stride(&mut y, 0, m, n, stride)?)?;
    let got = stream.download(&y)?;
    println!("quantised, multiplied and copied back in {:.3} s", start.elapsed().as_secs_f64());

    // The CPU's product of the same operands.
    let floats: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let a = quantize_1x128(MatRef::new(&floats, m, k)?, ScalePolicy::F32);
    let mut expected = vec![0.0f32; m * n];
    gemm::gemm_nt(Operand::Fp8(a.view()), Operand::Fp8(w.view()), Output::F32(MatMut::new(&mut expected, m, n)?), false)?;
    let (mut error, mut norm) = (0.0f64, 0.0f64);
    for (row, expected) in got.chunks(stride).zip(expected.chunks(n)) {
        for (got, expected) in row.iter().zip(expected) {
            error += (got.to_f64() - f64::from(*expected)).powi(2);
            norm += f64::from(*expected).powi(2);
        }
    }
    println!("relative difference to the CPU's product: {:.1e} (bf16 rounds by up to 3.9e-3)", (error / norm).sqrt());

    if on_gpu {
        let (from, until) = (device.event(true)?, device.event(true)?);
        let times = 20;
        stream.record(&from)?;
        for _ in 0..times {
            kernels.gemm_nt(&stream, input.view(), weight.view(), ViewMut::with_stride(&mut y, 0, m, n, stride)?)?;
        }
        stream.record(&until)?;
        until.synchronize()?;
        let seconds = f64::from(from.elapsed_ms(&until)?) / 1e3 / f64::from(times);
        println!("{:.1} us a product, {:.0} TFLOP/s", seconds * 1e6, 2.0 * (m * n * k) as f64 / seconds / 1e12);
    }
    Ok(())
}
