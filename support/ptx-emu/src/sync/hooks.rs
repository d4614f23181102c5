//! What this family tells the race detector; nothing when it is off.

use super::barrier::Waiting;
use super::cluster;
use crate::cx::Cx;
use crate::fault::Exec;
use crate::race::{FenceOrder, ProxyFence, Scope, SyncVar};
use crate::regs::Mask;

/// Threads that do not wait arrive at a named barrier.
pub fn barrier_arrive(cx: &mut Cx<'_>, id: u32) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    let released = cx.blocks[cx.rank].sync.barriers[id as usize].released();
    Ok(detector.race.release(warp, cx.mask, released)?)
}

/// A named barrier has completed: all of `waiting` know what all did.
pub fn barrier_complete(cx: &mut Cx<'_>, waiting: &Waiting, released: &SyncVar) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    Ok(detector.race.barrier(warp.block, waiting, Some(released))?)
}

/// `bar.warp.sync` of these lanes has completed.
pub fn warp_barrier(cx: &mut Cx<'_>, members: Mask) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    Ok(detector.race.warp_barrier(warp, members)?)
}

/// Threads arrive at the cluster's barrier.
pub fn cluster_arrive(cx: &mut Cx<'_>, relaxed: bool) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    let into = cluster::current(cx.cluster);
    if relaxed {
        detector.race.release_relaxed(warp, cx.mask, into)?;
    } else {
        detector.race.release(warp, cx.mask, into)?;
    }
    Ok(())
}

/// Threads go on behind the cluster's barrier.
pub fn cluster_wait(cx: &mut Cx<'_>) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    Ok(detector.race.acquire(warp, cx.mask, cluster::previous(cx.cluster))?)
}

/// `fence`, `membar`.
pub fn fence(cx: &mut Cx<'_>, order: FenceOrder, scope: Scope) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    Ok(detector.race.fence(warp, cx.mask, order, scope)?)
}

/// `fence.proxy.async`.
pub fn fence_proxy_async(cx: &mut Cx<'_>, covers: ProxyFence) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    Ok(detector.race.fence_proxy_async(warp, cx.mask, covers)?)
}

/// `fence.mbarrier_init`.
pub fn fence_mbarrier_init(cx: &mut Cx<'_>) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    Ok(detector.race.fence_mbarrier_init(warp, cx.mask)?)
}

/// `griddepcontrol.wait`: the launches before this one have ended.
pub fn grid_dependency(cx: &mut Cx<'_>) -> Exec {
    let Some(warp) = cx.race_warp() else { return Ok(()) };
    let Some(detector) = cx.detector.as_deref_mut() else { return Ok(()) };
    for before in &cx.launch.prerequisites {
        if let Some(&launch) = detector.launches.get(&before.id) {
            detector.race.launch_wait(warp, cx.mask, launch)?;
        }
    }
    Ok(())
}
