//! SwiGLU feed-forward networks: the dense one of a block or of its shared experts, and the routed experts' grouped one.
//! `y = down(silu(gate(x)) * up(x))`.

use fp8_gemm::Precision;
use fp8_gemm::linear::Activation;
use v3_numerics::ops;
use v3_numerics::view::MatMut;

use super::Env;
use super::linear::{Linear, Packing, expert_order, fuses};
use crate::error::Result;
use crate::params::ParamStore;

/// One feed-forward network, or one per group of rows.
#[derive(Debug)]
pub struct Mlp {
    gate_up: Linear,
    down: Linear,
    inter: usize,
}

/// What the forward leaves for the backward. The input is the caller's to keep.
#[derive(Debug)]
pub struct Saved {
    gate_up: Vec<f32>,
    act: Option<Activation>,
    deferred: Option<(Vec<f32>, Vec<f32>)>,
}

fn matrix(prefix: &str, which: &str) -> String {
    format!("{prefix}.{which}_proj.weight")
}

/// The tensors of a dense network under `prefix`, in memory order.
pub fn tensor_names(prefix: &str) -> Vec<String> {
    ["gate", "up", "down"].map(|m| matrix(prefix, m)).into()
}

/// The tensors of the experts under `prefixes`, in memory order.
pub fn expert_tensor_names(prefixes: &[String], inter: usize, precision: Precision) -> Vec<String> {
    let of = |which: &str| prefixes.iter().map(|p| matrix(p, which)).collect::<Vec<_>>();
    let mut names = expert_order(&[of("gate"), of("up")], fuses(precision, &[inter, inter]));
    names.extend(of("down"));
    names
}

impl Mlp {
    /// The dense network under `prefix`.
    pub fn dense(store: &ParamStore, prefix: &str, precision: Precision, packing: Packing) -> Result<Self> {
        let gate_up = Linear::new(store, &[matrix(prefix, "gate"), matrix(prefix, "up")], precision, packing)?;
        let down = Linear::new(store, &[matrix(prefix, "down")], precision, packing)?;
        Ok(Self { inter: down.k, gate_up, down })
    }

    /// The experts under `prefixes`, one group each.
    pub fn experts(store: &ParamStore, prefixes: &[String], precision: Precision, packing: Packing) -> Result<Self> {
        let of = |which: &str| prefixes.iter().map(|p| matrix(p, which)).collect::<Vec<_>>();
        let gate_up = Linear::grouped(store, &[of("gate"), of("up")], precision, packing)?;
        let down = Linear::grouped(store, &[of("down")], precision, packing)?;
        Ok(Self { inter: down.k, gate_up, down })
    }

    /// Packs the current values again.
    pub fn pack(&mut self, store: &ParamStore) -> Result<()> {
        self.gate_up.pack(store, Packing::Training)?;
        self.down.pack(store, Packing::Training)
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }

    fn activate(&self, env: &Env<'_>, gate_up: &[f32]) -> Result<Activation> {
        let m = gate_up.len() / (2 * self.inter);
        let mut act = vec![0.0; m * self.inter];
        ops::swiglu(gate_up, self.inter, &mut act)?;
        env.activation(act, m, self.inter)
    }

    /// Forward; rows of group `g` are `offsets[g]..offsets[g + 1]`.
    pub fn forward(&self, env: &Env<'_>, x: &Activation, offsets: &[usize]) -> Result<(Vec<f32>, Saved)> {
        let gate_up = self.gate_up.forward_grouped(x, offsets)?;
        let act = self.activate(env, &gate_up)?;
        let y = self.down.forward_grouped(&act, offsets)?;
        Ok((y, Saved { gate_up, act: (!env.recompute.swiglu).then_some(act), deferred: None }))
    }

    /// Backward for inputs; `dx` is overwritten, or added to when `accumulate`.
    pub fn backward_input(
        &self,
        saved: &mut Saved,
        offsets: &[usize],
        dy: Vec<f32>,
        dx: MatMut<'_, f32>,
        accumulate: bool,
    ) -> Result<()> {
        let m = dx.rows();
        let mut dact = vec![0.0; m * self.inter];
        self.down.backward_input_grouped(&dy, offsets, MatMut::new(&mut dact, m, self.inter)?, false)?;
        let mut dgate_up = vec![0.0; saved.gate_up.len()];
        ops::swiglu_backward(&dact, &saved.gate_up, self.inter, &mut dgate_up)?;
        self.gate_up.backward_input_grouped(&dgate_up, offsets, dx, accumulate)?;
        saved.deferred = Some((dy, dgate_up));
        Ok(())
    }

    /// Backward for weights; `x` is the forward's input.
    pub fn backward_weight(
        &self,
        env: &Env<'_>,
        saved: Saved,
        x: &Activation,
        offsets: &[usize],
        grads: &mut [f32],
    ) -> Result<()> {
        let Some((dy, dgate_up)) = &saved.deferred else {
            return Err(super::out_of_order("feed-forward network"));
        };
        let made;
        let act = match &saved.act {
            Some(act) => act,
            None => {
                made = self.activate(env, &saved.gate_up)?;
                &made
            }
        };
        self.down.backward_weight_grouped(env, act, offsets, dy, grads)?;
        self.gate_up.backward_weight_grouped(env, x, offsets, dgate_up, grads)
    }
}

impl Saved {
    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        let deferred = self.deferred.as_ref().map_or(0, |(a, b)| a.len() + b.len());
        (self.gate_up.len() + deferred) * 4 + self.act.as_ref().map_or(0, Activation::bytes)
    }
}
