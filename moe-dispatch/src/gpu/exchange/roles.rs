//! How the warps of a block are shared out between two roles: the function of kernels/ep_roles.cuh.

/// Of `warps` warps (2 or more) those of the first role, when the two have `first` and `second` rows to move: in proportion, to the nearest (a half
/// goes up), at least one for a role that has rows; none for one that has not. With no rows at all: none.
pub fn warps_of_first(warps: u32, first: u32, second: u32) -> u32 {
    if first == 0 {
        return 0;
    }
    if second == 0 {
        return warps;
    }
    let total = u64::from(first) + u64::from(second);
    let share = (2 * u64::from(warps) * u64::from(first) + total) / (2 * total);
    // At most `warps`, which is a u32.
    share.clamp(1, u64::from(warps.max(2)) - 1) as u32
}
