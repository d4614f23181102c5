//! The router: from logits to each token's experts and weights (kernels/router.cu), with the bits of [`route`](crate::router::route).
//!
//! A warp takes a token, its experts over the lanes in registers. The exponential is that of the CPU, operation by operation, and so are sums and divisions: scores,
//! selection and weights are the same.

use super::Arch;
use super::common::{blocks_of, check_arch, check_len, small, wrong};
use super::permute::MAX_TOP_K;
use crate::error::{Error, Result};
use crate::router::{RouterConfig, Routing, Scoring};
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;
use v3_gpu::{Args, Buffer, Device, DevicePtr, Kernel, LaunchConfig, Stream};

/// Most experts of a router.
pub const MAX_EXPERTS: usize = 512;

const THREADS: u32 = 128;
const WARPS: u64 = 4;

/// Parameters of `router_64`, `router_256` and `router_512` (kernels/router.cu).
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RouterParams {
    /// f32 `[tokens, num_experts]`.
    pub logits: DevicePtr,
    /// f32 `[num_experts]`; null for zeros.
    pub bias: DevicePtr,
    /// u32 `[tokens, top_k]`.
    pub indices: DevicePtr,
    /// f32 `[tokens, top_k]`.
    pub weights: DevicePtr,
    /// f32 `[tokens, num_experts]`, or null.
    pub scores: DevicePtr,
    /// One u32, zero at first: 1 + a token with a value that is not finite.
    pub status: DevicePtr,
    /// Rows of logits.
    pub tokens: u32,
    /// At most [`MAX_EXPERTS`].
    pub num_experts: u32,
    /// 1 to 16, and at most the experts of the kept groups.
    pub top_k: u32,
    /// A divisor of `num_experts`.
    pub groups: u32,
    /// 1 to `groups`.
    pub kept_groups: u32,
    /// How many of a group's best scores are its score: at least 1, at most the experts of a group.
    pub group_scores: u32,
    /// 0: sigmoid; 1: softmax.
    pub softmax: u32,
    /// Whether weights are divided by their sum: 0 or 1.
    pub normalize: u32,
    /// On the weights.
    pub factor: f32,
    /// Zero.
    pub reserved: [u32; 3],
}

const _: () = {
    assert!(size_of::<RouterParams>() == 96);
    assert!(offset_of!(RouterParams, tokens) == 48);
    assert!(offset_of!(RouterParams, normalize) == 76);
};

/// What the router gives, on a device.
#[derive(Debug)]
pub struct DeviceRouting {
    tokens: usize,
    top_k: usize,
    num_experts: usize,
    indices: Buffer<u32>,
    weights: Buffer<f32>,
    scores: Option<Buffer<f32>>,
    status: Buffer<u32>,
}

impl DeviceRouting {
    /// Room for `tokens` tokens. `with_scores`: for every expert's score too.
    ///
    /// # Errors
    /// A configuration that contradicts itself or that the kernels do not offer; what the device refuses.
    pub fn new(stream: &Stream, config: &RouterConfig, tokens: usize, with_scores: bool) -> Result<DeviceRouting> {
        check(config)?;
        let (top_k, num_experts) = (config.top_k, config.num_experts);
        let sizes = (tokens.checked_mul(top_k), tokens.checked_mul(num_experts));
        let (Some(choices), Some(all)) = sizes else { return Err(wrong("tokens", "fewer than 2^31", tokens)) };
        Ok(DeviceRouting {
            tokens,
            top_k,
            num_experts,
            indices: stream.alloc(choices)?,
            weights: stream.alloc(choices)?,
            scores: if with_scores { Some(stream.alloc(all)?) } else { None },
            status: stream.zeroed(1)?,
        })
    }

    /// `[tokens, top_k]`: each token's experts, best first; 2^32 - 1 throughout for a token whose values were not finite.
    pub fn indices(&self) -> &Buffer<u32> {
        &self.indices
    }

    /// `[tokens, top_k]`: the weight of each.
    pub fn weights(&self) -> &Buffer<f32> {
        &self.weights
    }

    /// `[tokens, num_experts]`: every expert's unbiased score, if asked for.
    pub fn scores(&self) -> Option<&Buffer<f32>> {
        self.scores.as_ref()
    }

    /// Waits for the stream, and says what was wrong since the last time.
    ///
    /// # Errors
    /// [`Error::Shape`] for a logit, or a score with its bias, that is not finite; what the device reports.
    pub fn check(&mut self, stream: &Stream) -> Result<()> {
        match stream.download(&self.status)?.first() {
            None | Some(0) => Ok(()),
            Some(token) => {
                let token = token - 1;
                stream.fill(&mut self.status, 0)?;
                Err(wrong("logits and bias", "finite numbers", format!("others for token {token}")))
            }
        }
    }

    /// Waits, and gives what [`route`](crate::router::route) does; no scores where none were asked for.
    ///
    /// # Errors
    /// As [`DeviceRouting::check`].
    pub fn download(&mut self, stream: &Stream) -> Result<Routing> {
        self.check(stream)?;
        Ok(Routing {
            tokens: self.tokens,
            top_k: self.top_k,
            indices: stream.download(&self.indices)?,
            weights: stream.download(&self.weights)?,
            scores: self.scores.as_ref().map_or(Ok(Vec::new()), |scores| stream.download(scores))?,
        })
    }
}

/// What the kernels do not offer.
fn check(config: &RouterConfig) -> Result<()> {
    config.validate()?;
    if config.num_experts > MAX_EXPERTS {
        return Err(Error::Unsupported {
            what: format!("{} experts routed on a GPU: at most {MAX_EXPERTS}", config.num_experts),
        });
    }
    if config.top_k > MAX_TOP_K as usize {
        return Err(Error::Unsupported { what: format!("{} experts for a token on a GPU: at most {MAX_TOP_K}", config.top_k) });
    }
    Ok(())
}

/// The kernels, loaded on a device: once, then used from any thread.
#[derive(Debug, Clone)]
pub struct RouterKernels {
    /// By the most experts: 64, 256, 512.
    kernels: [Kernel; 3],
}

impl RouterKernels {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::Unsupported`] before compute capability 8.0; what the device refuses.
    pub fn load(device: &Device) -> Result<RouterKernels> {
        check_arch(device, Arch::Sm80)?;
        let module = device.module(ptx!("router.sm_80"))?;
        let kernels = [module.kernel("router_64")?, module.kernel("router_256")?, module.kernel("router_512")?];
        Ok(RouterKernels { kernels })
    }

    /// The device they are loaded on.
    pub fn device(&self) -> &Device {
        self.kernels[0].device()
    }

    /// Routes the tokens of `logits` `[tokens, num_experts]`; `bias` `[num_experts]` counts for the selection alone.
    ///
    /// # Errors
    /// A configuration that contradicts itself or that the kernels do not offer; [`Error::Shape`] for other lengths; what the device refuses. Values that are not finite
    /// show in [`DeviceRouting::check`].
    pub fn route(
        &self,
        stream: &Stream,
        config: &RouterConfig,
        logits: &Buffer<f32>,
        bias: Option<&Buffer<f32>>,
        out: &mut DeviceRouting,
    ) -> Result<()> {
        check(config)?;
        if (config.num_experts, config.top_k) != (out.num_experts, out.top_k) {
            let expected = format!("of {} experts, {} a token", out.num_experts, out.top_k);
            return Err(wrong("router", expected, format!("of {}, {}", config.num_experts, config.top_k)));
        }
        check_len("logits", logits.len(), out.tokens, out.num_experts)?;
        if let Some(bias) = bias {
            check_len("bias", bias.len(), out.num_experts, 1)?;
            bias.use_in(stream)?;
        }
        // What `check` let pass is small.
        let params = RouterParams {
            logits: logits.ptr(),
            bias: bias.map_or(DevicePtr::default(), |bias| bias.ptr()),
            indices: out.indices.ptr(),
            weights: out.weights.ptr(),
            scores: out.scores.as_ref().map_or(DevicePtr::default(), |scores| scores.ptr()),
            status: out.status.ptr(),
            tokens: small("tokens", out.tokens)?,
            num_experts: config.num_experts as u32,
            top_k: config.top_k as u32,
            groups: config.n_group as u32,
            kept_groups: config.topk_group as u32,
            group_scores: config.scores_per_group() as u32,
            softmax: u32::from(config.scoring == Scoring::Softmax),
            normalize: u32::from(config.norm_topk_prob),
            factor: config.routed_scaling_factor,
            reserved: [0; 3],
        };
        logits.use_in(stream)?;
        out.indices.use_in(stream)?;
        out.weights.use_in(stream)?;
        out.status.use_in(stream)?;
        if let Some(scores) = &out.scores {
            scores.use_in(stream)?;
        }
        // SAFETY: the buffers hold as much as the kernel reads and writes, and are kept until this is done.
        unsafe { self.route_raw(stream, &params) }
    }

    /// The router over raw addresses.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for numbers outside the ranges that [`RouterParams`] names; what the device refuses.
    ///
    /// # Safety
    ///
    /// Everything that `params` says is so: live memory of those sizes that the device can reach, and nothing else writes what is read, or touches what is
    /// written, until the stream is past this.
    pub unsafe fn route_raw(&self, stream: &Stream, params: &RouterParams) -> Result<()> {
        let (experts, groups) = (params.num_experts, params.groups);
        let fits = (1..=MAX_EXPERTS as u32).contains(&experts)
            && groups > 0
            && experts.is_multiple_of(groups)
            && (1..=groups).contains(&params.kept_groups)
            && (1..=experts / groups).contains(&params.group_scores)
            && (1..=MAX_TOP_K.min(experts / groups * params.kept_groups)).contains(&params.top_k);
        if !fits {
            return Err(Error::Unsupported { what: format!("a router on a GPU with {params:?}") });
        }
        let kernel = match experts {
            ..=64 => &self.kernels[0],
            65..=256 => &self.kernels[1],
            _ => &self.kernels[2],
        };
        let Some(blocks) = blocks_of("tokens to route", u64::from(params.tokens).div_ceil(WARPS))? else { return Ok(()) };
        // SAFETY: the struct that the kernel takes, over memory that the caller vouches for.
        Ok(unsafe { stream.launch(kernel, &LaunchConfig::new(blocks, THREADS), Args::new().value(*params)) }?)
    }
}
