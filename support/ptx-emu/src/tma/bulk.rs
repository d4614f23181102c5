//! Bulk copies without a tensor (`cp.async.bulk`, `cp.reduce.async.bulk`; sections 9.7.9.25.4.1 and 9.7.9.25.4.2).

/// Why a bulk copy is undefined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// The size is no multiple of 16.
    #[error("a bulk copy of {0} bytes: the size must be a multiple of 16")]
    Size(u32),
    /// An address is no multiple of 16.
    #[error("a bulk copy's {side} address {address:#x} must be a multiple of 16")]
    Address {
        /// `source` or `destination`.
        side: &'static str,
        /// The address.
        address: u64,
    },
}

/// Checks what the manual asks of size and addresses; whether the ranges lie in memory is for the memories to say.
///
/// # Errors
/// [`BulkError`]: the manual calls these undefined.
pub fn check_bulk_copy(destination: u64, source: u64, size: u32) -> Result<(), BulkError> {
    if !size.is_multiple_of(16) {
        return Err(BulkError::Size(size));
    }
    for (side, address) in [("destination", destination), ("source", source)] {
        if !address.is_multiple_of(16) {
            return Err(BulkError::Address { side, address });
        }
    }
    Ok(())
}
