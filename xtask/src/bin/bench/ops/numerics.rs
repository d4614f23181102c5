//! What the pieces stand on.

use super::{Operation, bytes, f32_flops, values};
use crate::ceilings::Ceiling;
use v3_numerics::gemm::{PackedB, gemm_packed};
use v3_numerics::ops::{self, AdamWParams};
use v3_numerics::{MatMut, MatRef, bf16, convert};

const V3_ROWS: (usize, usize) = (2048, 7168);

pub fn operations(_threads: usize) -> Vec<Operation> {
    let mut all: Vec<Operation> = [(2048, 256, 256), (1024, 1024, 1024), (128, 2112, 7168)].map(|(m, n, k)| gemm(m, n, k)).into();
    let (rows, d) = V3_ROWS;
    let shape = format!("{rows}x{d}");
    all.push(Operation::new("rms_norm", &*shape, bytes(8 * rows * d, Ceiling::Copy), move || {
        let (x, w) = (values(rows * d, 1), values(d, 2));
        let (mut y, mut rstd) = (vec![0.0; rows * d], vec![0.0; rows]);
        Ok(move || ops::rms_norm(&x, &w, 1e-6, &mut y, &mut rstd))
    }));
    all.push(Operation::new("rms_norm backward input", &*shape, bytes(12 * rows * d, Ceiling::Triad), move || {
        let (x, dy, w, rstd) = (values(rows * d, 1), values(rows * d, 3), values(d, 2), vec![1.0; rows]);
        let mut dx = vec![0.0; rows * d];
        Ok(move || ops::rms_norm_backward_input(&dy, &x, &w, &rstd, &mut dx))
    }));
    let inter = 2048;
    all.push(Operation::new("swiglu", format!("{rows}x{inter}"), bytes(12 * rows * inter, Ceiling::Triad), move || {
        let (x, mut y) = (values(2 * rows * inter, 1), vec![0.0; rows * inter]);
        Ok(move || ops::swiglu(&x, inter, &mut y))
    }));
    all.push(adamw::<f32>("adamw, f32 moments", 28));
    all.push(adamw::<bf16>("adamw, bf16 moments", 20));
    let n = 32 << 20;
    all.push(Operation::new("f32 to bf16", format!("{n}"), bytes(6 * n, Ceiling::Copy), move || {
        let (x, mut y) = (values(n, 1), vec![bf16::ZERO; n]);
        Ok(move || convert::f32_to_bf16(&x, &mut y))
    }));
    all
}

fn gemm(m: usize, n: usize, k: usize) -> Operation {
    Operation::new("gemm f32, packed", format!("{m}x{n}x{k}"), f32_flops(2.0 * (m * n * k) as f64), move || {
        let (a, b, mut c) = (values(m * k, 1), values(n * k, 2), vec![0.0; m * n]);
        let b = PackedB::new(MatRef::new(&b, n, k)?.t());
        Ok(move || gemm_packed(MatRef::new(&a, m, k)?, &b, MatMut::new(&mut c, m, n)?, false))
    })
}

fn adamw<M: ops::Moment>(name: &'static str, bytes_each: usize) -> Operation {
    let n = 16 << 20;
    // Two thirds of the traffic of a triad are reads; here it is a little more.
    Operation::new(name, format!("{n}"), bytes(bytes_each * n, Ceiling::TriadInPlace), move || {
        let (mut w, g) = (values(n, 1), values(n, 2));
        let (mut m, mut v) = (vec![M::store(0.0); n], vec![M::store(0.0); n]);
        let params = AdamWParams { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let mut step = 0;
        Ok(move || {
            step += 1;
            ops::adamw_step(&params, step, &mut w, &g, 1.0, &mut m, &mut v)
        })
    })
}
