//! Accesses of threads.

use super::{Access, AccessKind, Detector, Outcome, Space, Warp};

impl Detector {
    /// A memory instruction of a warp.
    pub fn access(&mut self, warp: Warp, access: &Access<'_>) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = access;
        Ok(())
    }

    /// A weak access of one thread to `len` bytes in a row (a copy or fill in stream order).
    pub fn access_range(
        &mut self,
        warp: Warp,
        lane: u32,
        space: Space,
        address: u64,
        len: u64,
        kind: AccessKind,
        site: u32,
    ) -> Outcome {
        self.tick()?;
        self.warp_state(warp)?;
        let _ = (lane, space, address, len, kind, site);
        Ok(())
    }

    /// A weak access of the host to global memory.
    pub fn host_access(&mut self, address: u64, len: u64, kind: AccessKind, site: u32) -> Outcome {
        self.tick()?;
        let _ = (address, len, kind, site);
        Ok(())
    }

    /// Forgets what happened in a range of global memory: it has been freed.
    pub fn forget_global(&mut self, address: u64, len: u64) {
        let _ = (address, len);
    }
}
