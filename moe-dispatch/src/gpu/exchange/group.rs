//! The kernels, and a group of ranks on devices of this process.

use super::config::{ExchangeConfig, MAX_COMBINE_WARPS, Workspace};
use super::params::{CombineParams, CombineRank, DispatchParams, DispatchRank, MAX_HERE, MAX_RANKS};
use crate::error::{Error, Result};
use crate::gpu::Arch;
use bytemuck::Zeroable;
use v3_gpu::{Args, Buffer, Device, DevicePtr, Kernel, LaunchConfig, Stream};
use v3_numerics::bf16;

/// Shared memory of a warp that uses bulk copies (kernels/ep_dispatch_bulk.cu).
const BULK_SHARED: u32 = 8192;

/// How dispatch copies rows. It changes the speed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Copies {
    /// Loads and stores of 16 bytes by all lanes of a warp.
    #[default]
    Vectors,
    /// Bulk copies through shared memory, by one lane; sm_90a.
    Bulk,
}

/// Blocks that wait for each other.
fn blocks(ranks: u32, channels: u32, warps: u32) -> LaunchConfig {
    LaunchConfig::new(ranks.saturating_mul(channels).saturating_mul(2), warps.saturating_mul(32)).cooperative()
}

/// The kernels, loaded on a device.
#[derive(Debug, Clone)]
pub struct ExchangeKernels {
    arch: Arch,
    copies: Copies,
    dispatch: Kernel,
    combine: Kernel,
}

impl ExchangeKernels {
    /// Loads the kernels that the device runs best.
    ///
    /// # Errors
    /// [`Error::Unsupported`] before compute capability 8.0; what the device refuses.
    pub fn load(device: &Device) -> Result<ExchangeKernels> {
        Self::load_for(device, Arch::of(device.info()?.compute_capability)?, Copies::default())
    }

    /// Loads the kernels of one architecture, which the device must run, that copy rows in one way.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it does not run them, and for bulk copies on sm_80; what the device refuses.
    pub fn load_for(device: &Device, arch: Arch, copies: Copies) -> Result<ExchangeKernels> {
        let info = device.info()?;
        if !arch.runs_on(info.compute_capability) {
            return Err(Error::Unsupported { what: format!("kernels for {arch} on {}", info.name) });
        }
        let (dispatch, combine) = match (arch, copies) {
            (Arch::Sm80, Copies::Vectors) => (ptx!("ep_dispatch.sm_80"), ptx!("ep_combine.sm_80")),
            (Arch::Sm90a, Copies::Vectors) => (ptx!("ep_dispatch.sm_90a"), ptx!("ep_combine.sm_90a")),
            (Arch::Sm90a, Copies::Bulk) => (ptx!("ep_dispatch_bulk.sm_90a"), ptx!("ep_combine.sm_90a")),
            (Arch::Sm80, Copies::Bulk) => return Err(Error::Unsupported { what: "bulk copies before sm_90a".into() }),
        };
        // SAFETY: they are this crate's.
        unsafe { Self::from_ptx(device, arch, copies, dispatch, combine) }
    }

    /// The kernels of other texts.
    ///
    /// # Errors
    /// What the device refuses.
    ///
    /// # Safety
    ///
    /// Their `ep_dispatch` and `ep_combine` do what this crate's do, and touch no other memory.
    pub unsafe fn from_ptx(
        device: &Device,
        arch: Arch,
        copies: Copies,
        dispatch: &str,
        combine: &str,
    ) -> Result<ExchangeKernels> {
        let dispatch = device.module(dispatch)?.kernel("ep_dispatch")?;
        let combine = device.module(combine)?.kernel("ep_combine")?;
        Ok(ExchangeKernels { arch, copies, dispatch, combine })
    }

    /// How dispatch copies rows.
    pub fn copies(&self) -> Copies {
        self.copies
    }

    /// Which text of the kernels this is.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The device they are loaded on.
    pub fn device(&self) -> &Device {
        self.dispatch.device()
    }

    /// `ep_dispatch` with blocks of `warps` warps.
    ///
    /// # Errors
    /// What the device refuses: more blocks than it holds at once among it.
    ///
    /// # Safety
    ///
    /// Everything that `params` says is so (kernels/ep_dispatch.cuh): live memory of those sizes, that of the ranks on this device, workspaces that
    /// it reaches and that were zero before their first use, and that serve this configuration alone. All ranks of the group are launched, with the same shape, in
    /// the same order of launches, and run at the same time.
    pub unsafe fn dispatch_raw(&self, stream: &Stream, params: &DispatchParams, warps: u32) -> Result<()> {
        let mut config = blocks(params.shape.ranks_here, params.shape.channels, warps);
        if self.copies == Copies::Bulk {
            config = config.shared(warps.saturating_mul(BULK_SHARED));
        }
        // SAFETY: the struct that the kernel takes, over memory that the caller vouches for.
        Ok(unsafe { stream.launch(&self.dispatch, &config, Args::new().value(*params)) }?)
    }

    /// `ep_combine` with blocks of `warps` warps, at most [`MAX_COMBINE_WARPS`].
    ///
    /// # Errors
    /// As [`ExchangeKernels::dispatch_raw`].
    ///
    /// # Safety
    ///
    /// As [`ExchangeKernels::dispatch_raw`]; and what a dispatch of the same shape wrote is unchanged.
    pub unsafe fn combine_raw(&self, stream: &Stream, params: &CombineParams, warps: u32) -> Result<()> {
        let warps = warps.min(MAX_COMBINE_WARPS);
        let config = blocks(params.shape.ranks_here, params.shape.channels, warps);
        // SAFETY: the struct that the kernel takes, over memory that the caller vouches for.
        Ok(unsafe { stream.launch(&self.combine, &config, Args::new().value(*params)) }?)
    }
}

/// One rank of a [`Group`]: its memory, at addresses that stay. Buffers with places may be longer than [`ExchangeConfig::places`] says. Kernels that make what it sends may write through the addresses of `rows`,
/// `experts`, `weights`, `tokens`, `expert_rows` and `map`.
#[derive(Debug)]
pub struct Member {
    /// Which of the group's launches it belongs to.
    place: usize,
    workspace: Buffer<u8>,
    rows: Buffer<u8>,
    experts: Buffer<i32>,
    weights: Buffer<f32>,
    tokens: Buffer<u32>,
    expert_rows: Buffer<bf16>,
    map: Buffer<i32>,
    out_rows: Buffer<u8>,
    out_experts: Buffer<i32>,
    out_weights: Buffer<f32>,
    out_tokens: Buffer<u32>,
    out_counts: Buffer<u32>,
    forward_positions: Buffer<i32>,
    forward_counts: Buffer<u32>,
    home_positions: Buffer<i32>,
    home_counts: Buffer<u32>,
    combined: Buffer<bf16>,
    status: Buffer<u32>,
}

impl Member {
    /// Rows to dispatch, `[max_tokens, row_bytes]`.
    pub fn rows(&self) -> &Buffer<u8> {
        &self.rows
    }

    /// Logical experts of each token, `[max_tokens, top_k]`; negative: none. Different within a token.
    pub fn experts(&self) -> &Buffer<i32> {
        &self.experts
    }

    /// Weights, `[max_tokens, top_k]`.
    pub fn weights(&self) -> &Buffer<f32> {
        &self.weights
    }

    /// The number of tokens. Combine wants the one that was dispatched.
    pub fn tokens(&self) -> &Buffer<u32> {
        &self.tokens
    }

    /// What combine adds, `[expert_rows, columns]`.
    pub fn expert_rows(&self) -> &Buffer<bf16> {
        &self.expert_rows
    }

    /// For combine, `[places, top_k]`: the expert row of each choice that came. Where `out_experts` is -1 nothing is read.
    pub fn map(&self) -> &Buffer<i32> {
        &self.map
    }

    /// Dispatched rows `[places, row_bytes]`.
    pub fn out_rows(&self) -> &Buffer<u8> {
        &self.out_rows
    }

    /// Their choices `[places, top_k]`: numbers of this rank's experts, or -1.
    pub fn out_experts(&self) -> &Buffer<i32> {
        &self.out_experts
    }

    /// Their weights `[places, top_k]`, 0 where a row's choice is another rank's; places behind the counts hold anything.
    pub fn out_weights(&self) -> &Buffer<f32> {
        &self.out_weights
    }

    /// The sources' numbers of their tokens `[places]`.
    pub fn out_tokens(&self) -> &Buffer<u32> {
        &self.out_tokens
    }

    /// How many rows came, `[ranks, channels]`.
    pub fn out_counts(&self) -> &Buffer<u32> {
        &self.out_counts
    }

    /// Rows that passed this rank from each node, `[nodes, channels, 1 + ranks_per_node]`: how many, and how many to each rank of its node.
    pub fn forward_counts(&self) -> &Buffer<u32> {
        &self.forward_counts
    }

    /// Tokens of this rank for each node, `[nodes, channels]`: what it sent over the slow hop, its own node's apart.
    pub fn home_counts(&self) -> &Buffer<u32> {
        &self.home_counts
    }

    /// Combined rows `[max_tokens, columns]`.
    pub fn combined(&self) -> &Buffer<bf16> {
        &self.combined
    }
}

#[derive(Debug)]
struct Place {
    kernels: ExchangeKernels,
    stream: Stream,
    ranks: Vec<usize>,
}

/// All ranks of a group on devices of this process. Ranks on one device share its launches.
#[derive(Debug)]
pub struct Group {
    /// With the multiprocessors of the launches to come.
    config: ExchangeConfig,
    /// Those that there is room for.
    most_sms: u32,
    workspace: Workspace,
    members: Vec<Member>,
    places: Vec<Place>,
    /// Whether there is something to combine.
    dispatched: bool,
}

/// Copies to the front of a buffer, and zeros behind.
fn write<T: bytemuck::Pod>(stream: &Stream, to: &mut Buffer<T>, from: &[T]) -> Result<()> {
    let mut all = vec![T::zeroed(); to.len()];
    for (to, from) in all.iter_mut().zip(from) {
        *to = *from;
    }
    Ok(stream.write(to, &all)?)
}

impl Group {
    /// Ranks on devices: `devices[r]` is that of rank r, and may be that of others, up to [`MAX_HERE`] on each. Peer access is given where it is
    /// needed. `expert_rows`: rows that the input of combine holds.
    ///
    /// # Errors
    /// As [`ExchangeConfig::check`]; [`Error::Config`] when the number of devices is not that of ranks; what the devices refuse.
    pub fn new(config: ExchangeConfig, devices: &[Device], expert_rows: u32) -> Result<Group> {
        Group::with_kernels(config, devices, expert_rows, ExchangeKernels::load)
    }

    /// [`Group::new`] with kernels that `load` loads.
    ///
    /// # Errors
    /// As [`Group::new`].
    pub fn with_kernels(
        config: ExchangeConfig,
        devices: &[Device],
        expert_rows: u32,
        load: impl Fn(&Device) -> Result<ExchangeKernels>,
    ) -> Result<Group> {
        let workspace = config.workspace()?;
        if devices.len() != config.ranks as usize {
            let reason = format!("{} devices for {} ranks", devices.len(), config.ranks);
            return Err(Error::Config { what: "devices of the ranks", reason });
        }
        let mut places: Vec<Place> = Vec::new();
        let mut members = Vec::new();
        for (rank, device) in devices.iter().enumerate() {
            let place = match places.iter().position(|p| p.stream.device() == device) {
                Some(place) => place,
                None => {
                    places.push(Place { kernels: load(device)?, stream: device.stream()?, ranks: vec![] });
                    places.len() - 1
                }
            };
            let at = &mut places[place];
            at.ranks.push(rank);
            if at.ranks.len() > MAX_HERE {
                return Err(Error::Config { what: "ranks of one device", reason: format!("at most {MAX_HERE}") });
            }
            members.push(Member::new(&config, &workspace, &at.stream, place, expert_rows)?);
        }
        for a in &places {
            for b in &places {
                if a.stream.device() != b.stream.device() {
                    a.stream.device().enable_peer_access(b.stream.device())?;
                }
            }
        }
        // A workspace is zero before anyone reaches into it.
        places.iter().try_for_each(|place| place.stream.synchronize())?;
        Ok(Group { config, most_sms: config.sms, workspace, members, places, dispatched: false })
    }

    /// Its sizes.
    pub fn config(&self) -> &ExchangeConfig {
        &self.config
    }

    /// Lets launches to come use another number of multiprocessors on every rank. The places of dispatched rows depend on it.
    ///
    /// # Errors
    /// [`Error::Config`] when it is odd, or none, or more than the group was made for.
    pub fn set_sms(&mut self, sms: u32) -> Result<()> {
        if sms > self.most_sms {
            let reason = format!("{sms}, where there is room for {}", self.most_sms);
            return Err(Error::Config { what: "multiprocessors", reason });
        }
        let config = ExchangeConfig { sms, ..self.config };
        config.check()?;
        self.dispatched = false;
        self.config = config;
        Ok(())
    }

    /// The stream of a rank.
    pub fn stream(&self, rank: usize) -> Option<&Stream> {
        Some(&self.places.get(self.members.get(rank)?.place)?.stream)
    }

    /// A rank's memory.
    pub fn member(&self, rank: usize) -> Option<&Member> {
        self.members.get(rank)
    }

    /// Queues copies of a rank's tokens: rows `[tokens, row_bytes]`, experts and weights `[tokens, top_k]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the rank does not exist or has room for fewer tokens, or the lengths do not fit together; what the device
    /// refuses.
    pub fn write_tokens(&mut self, rank: usize, rows: &[u8], experts: &[i32], weights: &[f32]) -> Result<()> {
        let (row_bytes, top_k) = (self.config.row_bytes as usize, self.config.top_k as usize);
        let tokens = experts.len() / top_k;
        let expected = (tokens * row_bytes, tokens * top_k, tokens * top_k);
        let got = (rows.len(), experts.len(), weights.len());
        let most = self.config.max_tokens as usize;
        if got != expected || tokens > most {
            let expected = format!("rows, experts and weights of at most {most} tokens: {row_bytes} bytes, {top_k} and {top_k}");
            return Err(Error::Shape { what: "tokens", expected, got: format!("{got:?}") });
        }
        self.dispatched = false;
        let (stream, member) = self.rank(rank)?;
        write(stream, &mut member.rows, rows)?;
        write(stream, &mut member.experts, experts)?;
        write(stream, &mut member.weights, weights)?;
        // It is at most `max_tokens`.
        write(stream, &mut member.tokens, &[tokens as u32])
    }

    /// Queues copies of what combine adds on a rank: rows `[n, columns]` and the row of each choice, `[places, top_k]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the rank does not exist, has room for fewer rows, or the map has another length; what the device refuses.
    pub fn write_expert_rows(&mut self, rank: usize, rows: &[bf16], map: &[i32]) -> Result<()> {
        let columns = self.config.columns as usize;
        let choices = self.config.places() * self.config.top_k as usize;
        let (stream, member) = self.rank(rank)?;
        if !rows.len().is_multiple_of(columns) || rows.len() > member.expert_rows.len() || map.len() != choices {
            let room = member.expert_rows.len() / columns;
            let expected = format!("at most {room} rows of {columns}, and {choices} choices");
            return Err(Error::Shape { what: "expert rows", expected, got: format!("{} elements, {}", rows.len(), map.len()) });
        }
        write(stream, &mut member.expert_rows, rows)?;
        write(stream, &mut member.map, map)
    }

    fn rank(&mut self, rank: usize) -> Result<(&Stream, &mut Member)> {
        let ranks = self.members.len();
        let member = self.members.get_mut(rank);
        let found = member.and_then(|member| Some((&self.places.get(member.place)?.stream, member)));
        found.ok_or_else(|| Error::Shape { what: "rank", expected: format!("below {ranks}"), got: rank.to_string() })
    }

    /// Queues a dispatch on every device.
    ///
    /// # Errors
    /// What the devices refuse; then the group is of no further use.
    pub fn dispatch(&mut self) -> Result<()> {
        for place in &self.places {
            let mut params = DispatchParams::zeroed();
            params.shape = self.config.shape(place.ranks.len() as u32, self.config.row_bytes);
            params.offsets = self.workspace.dispatch;
            params.workspaces = self.workspaces();
            for (to, &rank) in params.ranks.iter_mut().zip(&place.ranks) {
                *to = self.members[rank].dispatch(rank);
            }
            // SAFETY: members own memory of the sizes that the configuration says; workspaces were zeroed and are used by nothing
            // else; every device gets the same launches in the same order.
            unsafe { place.kernels.dispatch_raw(&place.stream, &params, self.config.warps)? };
        }
        self.dispatched = true;
        Ok(())
    }

    /// Queues a combine on every device, back along the way of the last dispatch. `weighted`: rows are multiplied by their weights.
    ///
    /// # Errors
    /// [`Error::Config`] when no dispatch came before, or tokens were written since; what the devices refuse: then the group is of no
    /// further use.
    pub fn combine(&mut self, weighted: bool) -> Result<()> {
        if !self.dispatched {
            return Err(Error::Config { what: "combine", reason: "these tokens were not dispatched".into() });
        }
        for place in &self.places {
            let mut params = CombineParams::zeroed();
            params.shape = self.config.shape(place.ranks.len() as u32, self.config.columns * 2);
            params.offsets = self.workspace.combine;
            params.workspaces = self.workspaces();
            for (to, &rank) in params.ranks.iter_mut().zip(&place.ranks) {
                *to = self.members[rank].combine(rank, self.config.columns, weighted);
            }
            // SAFETY: as for dispatch; what dispatch wrote is not lent for writing.
            unsafe { place.kernels.combine_raw(&place.stream, &params, self.config.warps)? };
        }
        Ok(())
    }

    /// Waits for everything queued, and says what of the tokens was wrong since the last time and has been left out. The group can be used on.
    ///
    /// # Errors
    /// [`Error::Shape`] for experts that do not exist, an expert that a token names twice, more tokens than `max_tokens`, and choices without
    /// an expert row; what the devices report.
    pub fn synchronize(&mut self) -> Result<()> {
        self.places.iter().try_for_each(|place| place.stream.synchronize())?;
        let mut wrong = Ok(());
        for rank in 0..self.members.len() {
            let (experts, most) = (self.config.num_experts, self.config.max_tokens);
            let (stream, member) = self.rank(rank)?;
            let status = stream.download(&member.status)?;
            let kinds = [
                ("routing indices", format!("experts below {experts}"), "token"),
                ("routing indices", "different experts for a token".into(), "token"),
                ("number of tokens", format!("at most {most}"), "more than"),
                ("map of expert rows", "a row for each choice".into(), "place"),
            ];
            if let Some((&at, (what, expected, where_))) = status.iter().zip(kinds).find(|(at, _)| **at > 0) {
                stream.fill(&mut member.status, 0)?;
                wrong = wrong.and(Err(Error::Shape { what, expected, got: format!("{where_} {} of rank {rank}", at - 1) }));
            }
        }
        wrong
    }

    fn workspaces(&self) -> [DevicePtr; MAX_RANKS] {
        let mut all = [DevicePtr::default(); MAX_RANKS];
        for (to, member) in all.iter_mut().zip(&self.members) {
            *to = member.workspace.ptr();
        }
        all
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Kernels of one device reach into another's memory: none of it goes before all are done. Nobody can be told of an error.
        for place in &self.places {
            let _ = place.stream.synchronize();
        }
    }
}

impl Member {
    fn new(config: &ExchangeConfig, workspace: &Workspace, stream: &Stream, place: usize, expert_rows: u32) -> Result<Member> {
        // Bounded by `check`.
        let [ranks, nodes, channels, tokens, top_k] =
            [config.ranks, config.nodes(), config.channels(), config.max_tokens, config.top_k].map(|x| x as usize);
        let (row_bytes, columns) = (config.row_bytes as usize, config.columns as usize);
        let (places, through) = (ranks * config.room() as usize, nodes * config.room() as usize);
        Ok(Member {
            place,
            workspace: stream.zeroed(usize::try_from(workspace.bytes).unwrap_or(usize::MAX))?,
            rows: stream.alloc(tokens * row_bytes)?,
            experts: stream.alloc(tokens * top_k)?,
            weights: stream.alloc(tokens * top_k)?,
            tokens: stream.zeroed(1)?,
            expert_rows: stream.alloc(expert_rows as usize * columns)?,
            map: stream.alloc(places * top_k)?,
            out_rows: stream.alloc(places * row_bytes)?,
            out_experts: stream.alloc(places * top_k)?,
            out_weights: stream.alloc(places * top_k)?,
            out_tokens: stream.alloc(places)?,
            out_counts: stream.zeroed(ranks * channels)?,
            forward_positions: stream.alloc(through * config.ranks_per_node as usize)?,
            forward_counts: stream.zeroed(nodes * channels * (1 + config.ranks_per_node as usize))?,
            home_positions: stream.alloc(tokens * nodes)?,
            home_counts: stream.zeroed(nodes * channels)?,
            combined: stream.alloc(tokens * columns)?,
            status: stream.zeroed(4)?,
        })
    }

    fn dispatch(&self, rank: usize) -> DispatchRank {
        DispatchRank {
            rows: self.rows.ptr(),
            experts: self.experts.ptr(),
            weights: self.weights.ptr(),
            tokens: self.tokens.ptr(),
            out_rows: self.out_rows.ptr(),
            out_experts: self.out_experts.ptr(),
            out_weights: self.out_weights.ptr(),
            out_tokens: self.out_tokens.ptr(),
            out_counts: self.out_counts.ptr(),
            forward_positions: self.forward_positions.ptr(),
            forward_counts: self.forward_counts.ptr(),
            home_positions: self.home_positions.ptr(),
            home_counts: self.home_counts.ptr(),
            status: self.status.ptr(),
            rank: rank as u32,
            reserved: 0,
        }
    }

    fn combine(&self, rank: usize, columns: u32, weighted: bool) -> CombineRank {
        CombineRank {
            expert_rows: self.expert_rows.ptr(),
            map: self.map.ptr(),
            out_experts: self.out_experts.ptr(),
            out_weights: if weighted { self.out_weights.ptr() } else { DevicePtr::default() },
            out_counts: self.out_counts.ptr(),
            forward_positions: self.forward_positions.ptr(),
            forward_counts: self.forward_counts.ptr(),
            home_positions: self.home_positions.ptr(),
            home_counts: self.home_counts.ptr(),
            tokens: self.tokens.ptr(),
            combined: self.combined.ptr(),
            status: self.status.ptr(),
            // It fits: a buffer of u32 rows.
            expert_row_count: (self.expert_rows.len() / columns as usize) as u32,
            rank: rank as u32,
        }
    }
}
