//! Errors of the pieces, as errors of this crate: their message, with the name of the piece.

use crate::error::Error;

macro_rules! from_piece {
    ($($error:ty => $piece:literal),* $(,)?) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::Piece { piece: $piece, message: error.to_string() }
            }
        })*
    };
}

from_piece! {
    dualpipe::Error => "dualpipe",
    ema_offload::Error => "ema-offload",
    fp8_gemm::Error => "fp8-gemm",
    mla_kernels::Error => "mla-kernels",
    moe_dispatch::Error => "moe-dispatch",
    mtp::Error => "mtp",
    v3_numerics::Error => "v3-numerics",
    v3_ranks::Error => "v3-ranks",
}

impl From<v3_ranks::RanksError> for Error {
    fn from(error: v3_ranks::RanksError) -> Self {
        Error::Piece { piece: "training", message: format!("rank {}: {}", error.rank, error.message) }
    }
}
