//! AdamW with moments in f32 or bf16.

use super::GRAIN;
use crate::cpu::Isa;
use crate::error::{Error, Result, check_len};
use crate::par;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use half::bf16;

/// The constants of one AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWParams {
    /// The learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the square root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
}

/// A type that the moments of an optimiser may be stored in: f32, or bf16 rounded to nearest even after each update.
pub trait Moment: bytemuck::Pod + Send + Sync {
    /// The value.
    fn load(self) -> f32;
    /// The nearest value of this type.
    fn store(x: f32) -> Self;
    /// 16 values.
    fn load_lanes<S: Simd>(s: S, x: &[Self; LANES]) -> S::F;
    /// 16 nearest values of this type.
    fn store_lanes<S: Simd>(s: S, x: S::F, y: &mut [Self; LANES]);
}

impl Moment for f32 {
    fn load(self) -> f32 {
        self
    }
    fn store(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn load_lanes<S: Simd>(s: S, x: &[f32; LANES]) -> S::F {
        s.load(x)
    }
    #[inline(always)]
    fn store_lanes<S: Simd>(s: S, x: S::F, y: &mut [f32; LANES]) {
        s.store(x, y);
    }
}

impl Moment for bf16 {
    fn load(self) -> f32 {
        self.to_f32()
    }
    fn store(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn load_lanes<S: Simd>(s: S, x: &[bf16; LANES]) -> S::F {
        s.load_bf16(x)
    }
    #[inline(always)]
    fn store_lanes<S: Simd>(s: S, x: S::F, y: &mut [bf16; LANES]) {
        s.store_bf16(x, y);
    }
}

/// One step of AdamW (Loshchilov and Hutter 2019) on `w` with the gradient `g * grad_scale`; `step` counts from 1.
///
/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `w = w (1 - lr weight_decay) - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)`. The update uses the moments before they
/// are rounded to their type.
pub fn adamw_step<M: Moment>(
    params: &AdamWParams,
    step: u64,
    w: &mut [f32],
    g: &[f32],
    grad_scale: f32,
    m: &mut [M],
    v: &mut [M],
) -> Result<()> {
    check_len("gradient of AdamW", w.len(), g.len())?;
    check_len("first moment of AdamW", w.len(), m.len())?;
    check_len("second moment of AdamW", w.len(), v.len())?;
    if step == 0 {
        return Err(Error::Parameter { what: "step of AdamW", expected: "1 or more", got: "0".into() });
    }
    let coefficients = Coefficients::new(params, step, grad_scale);
    let isa = Isa::detect();
    let mut chunks: Vec<_> = w
        .chunks_mut(GRAIN)
        .zip(g.chunks(GRAIN))
        .zip(m.chunks_mut(GRAIN).zip(v.chunks_mut(GRAIN)))
        .map(|((w, g), (m, v))| Step { coefficients, w, g, m, v })
        .collect();
    par::for_each_chunk_mut(&mut chunks, 1, |_, chunk| dispatch(isa, &mut chunk[0]));
    Ok(())
}

#[derive(Clone, Copy)]
struct Coefficients {
    grad_scale: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// 1 / sqrt(1 - beta2^step)
    root_scale: f32,
    eps: f32,
    /// 1 - lr * weight_decay
    decay: f32,
    /// lr / (1 - beta1^step)
    step_size: f32,
}

/// `beta^step` by repeated squaring: no library function, whose last place may differ between machines.
fn power(beta: f32, mut step: u64) -> f64 {
    let (mut square, mut result) = (f64::from(beta), 1.0);
    while step > 0 {
        if step & 1 == 1 {
            result *= square;
        }
        square *= square;
        step >>= 1;
    }
    result
}

impl Coefficients {
    fn new(p: &AdamWParams, step: u64, grad_scale: f32) -> Coefficients {
        Coefficients {
            grad_scale,
            beta1: p.beta1,
            one_minus_beta1: (1.0 - f64::from(p.beta1)) as f32,
            beta2: p.beta2,
            one_minus_beta2: (1.0 - f64::from(p.beta2)) as f32,
            root_scale: (1.0 / (1.0 - power(p.beta2, step)).sqrt()) as f32,
            eps: p.eps,
            decay: (1.0 - f64::from(p.lr) * f64::from(p.weight_decay)) as f32,
            step_size: (f64::from(p.lr) / (1.0 - power(p.beta1, step))) as f32,
        }
    }
}

struct Step<'a, M> {
    coefficients: Coefficients,
    w: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [M],
    v: &'a mut [M],
}

impl<M: Moment> Kernel for &mut Step<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.coefficients;
        let (w, w_rest) = self.w.as_chunks_mut::<LANES>();
        let (g, g_rest) = self.g.as_chunks::<LANES>();
        let (m, m_rest) = self.m.as_chunks_mut::<LANES>();
        let (v, v_rest) = self.v.as_chunks_mut::<LANES>();
        for ((w, g), (m, v)) in w.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
            update(s, c, w, g, m, v);
        }
        let n = w_rest.len();
        if n > 0 {
            // Zeros beyond the end stay zeros, or at any rate out of sight.
            let mut w = [0.0; LANES];
            let mut g = [0.0; LANES];
            let mut m = [M::zeroed(); LANES];
            let mut v = [M::zeroed(); LANES];
            w[..n].copy_from_slice(w_rest);
            g[..n].copy_from_slice(g_rest);
            m[..n].copy_from_slice(m_rest);
            v[..n].copy_from_slice(v_rest);
            update(s, c, &mut w, &g, &mut m, &mut v);
            w_rest.copy_from_slice(&w[..n]);
            m_rest.copy_from_slice(&m[..n]);
            v_rest.copy_from_slice(&v[..n]);
        }
    }
}

#[inline(always)]
fn update<S: Simd, M: Moment>(
    s: S,
    c: Coefficients,
    w: &mut [f32; LANES],
    g: &[f32; LANES],
    m: &mut [M; LANES],
    v: &mut [M; LANES],
) {
    let g = s.mul(s.load(g), s.splat(c.grad_scale));
    let new_m = s.mul_add(s.splat(c.beta1), M::load_lanes(s, m), s.mul(s.splat(c.one_minus_beta1), g));
    let new_v = s.mul_add(s.splat(c.beta2), M::load_lanes(s, v), s.mul(s.splat(c.one_minus_beta2), s.mul(g, g)));
    let denominator = s.mul_add(s.sqrt(new_v), s.splat(c.root_scale), s.splat(c.eps));
    let decayed = s.mul(s.load(w), s.splat(c.decay));
    s.store(s.neg_mul_add(s.splat(c.step_size), s.div(new_m, denominator), decayed), w);
    M::store_lanes(s, new_m, m);
    M::store_lanes(s, new_v, v);
}
