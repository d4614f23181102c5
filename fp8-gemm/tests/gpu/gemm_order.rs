//! What the bits of a product do not depend on.

use crate::gemm::{Layout, Problem, hoppers};
use crate::{emulator, seeds};
use fp8_gemm::gpu::{GemmPlan, Kernels};
use v3_gpu::EmulatorConfig;
use v3_numerics::bf16;

fn bits(d: &[bf16]) -> Vec<u16> {
    d.iter().map(|d| d.to_bits()).collect()
}

/// Not on the order in which things happen, nor on the plan.
#[test]
fn bits_are_the_same_in_every_order_and_plan() {
    let (m, n, k) = (130, 136, 200);
    let problem = Problem::new(m, n, k, 21);
    let plans: Vec<GemmPlan> = [(1, 1, 1), (1, 3, 2), (2, 2, 1), (2, 4, 7)]
        .map(|(cluster, blocks, raster_rows)| GemmPlan { cluster, blocks, raster_rows })
        .into();
    let mut first: Option<(String, Vec<u16>)> = None;
    let mut run = |what: String, kernels: &Kernels, plan: GemmPlan| {
        let d = bits(&problem.run(kernels, &Layout { plan: Some(plan), ..Layout::default() }));
        let (other, expected) = first.get_or_insert_with(|| (what.clone(), d.clone()));
        let differs = d.iter().zip(&*expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what} and {other}");
    };
    for seed in 0..seeds() {
        let kernels = Kernels::load(&emulator(EmulatorConfig { seed, ..EmulatorConfig::default() })).unwrap();
        for &plan in &plans {
            run(format!("seed {seed}, {plan}"), &kernels, plan);
        }
    }
    // Another processor sums chains in its own way: its bits are compared with its own.
    let mut on_gpu: Option<Vec<u16>> = None;
    for (device, _) in hoppers("bits_are_the_same_in_every_order_and_plan").into_iter().filter(|(_, real)| *real) {
        let kernels = Kernels::load(&device).unwrap();
        for &plan in &plans {
            let d = bits(&problem.run(&kernels, &Layout { plan: Some(plan), ..Layout::default() }));
            assert_eq!(on_gpu.get_or_insert_with(|| d.clone()), &d, "{plan}");
        }
    }
}

/// Not on the other rows.
#[test]
fn a_row_depends_on_itself_and_the_weights() {
    let (m, n, k) = (133, 72, 260);
    let whole = Problem::new(m, n, k, 31);
    let blocks = k.div_ceil(128);
    for (device, _) in hoppers("a_row_depends_on_itself_and_the_weights").into_iter().rev().take(2) {
        let kernels = Kernels::load(&device).unwrap();
        let all = bits(&whole.run(&kernels, &Layout::default()));
        for rows in [0..1, 5..12, 130..133] {
            let part = Problem {
                m: rows.len(),
                a: whole.a[rows.start * k..rows.end * k].to_vec(),
                scales_a: whole.scales_a[rows.start * blocks..rows.end * blocks].to_vec(),
                b: whole.b.clone(),
                scales_b: whole.scales_b.clone(),
                ..whole
            };
            let d = bits(&part.run(&kernels, &Layout { first: 1, gap: 9, plan: None }));
            assert_eq!(d, all[rows.start * n..rows.end * n], "{}: rows {rows:?}", device.backend());
        }
    }
}
