//! Conversion of whole slices between f32 and the narrow formats. Lengths must agree.

use crate::error::{Result, check_len};
use crate::formats::{E4M3, E5M2};
use half::bf16;

/// To bf16, nearest even; overflow becomes infinite, NaN stays NaN (quiet).
pub fn f32_to_bf16(x: &[f32], y: &mut [bf16]) -> Result<()> {
    check_len("bf16 output", x.len(), y.len())?;
    x.iter().zip(y).for_each(|(x, y)| *y = bf16::from_f32(*x));
    Ok(())
}

/// From bf16, exactly.
pub fn bf16_to_f32(x: &[bf16], y: &mut [f32]) -> Result<()> {
    check_len("f32 output", x.len(), y.len())?;
    x.iter().zip(y).for_each(|(x, y)| *y = x.to_f32());
    Ok(())
}

/// To E4M3 as [`E4M3::from_f32`].
pub fn f32_to_e4m3(x: &[f32], y: &mut [E4M3]) -> Result<()> {
    check_len("E4M3 output", x.len(), y.len())?;
    x.iter().zip(y).for_each(|(x, y)| *y = E4M3::from_f32(*x));
    Ok(())
}

/// From E4M3, exactly.
pub fn e4m3_to_f32(x: &[E4M3], y: &mut [f32]) -> Result<()> {
    check_len("f32 output", x.len(), y.len())?;
    x.iter().zip(y).for_each(|(x, y)| *y = x.to_f32());
    Ok(())
}

/// To E5M2 as [`E5M2::from_f32`].
pub fn f32_to_e5m2(x: &[f32], y: &mut [E5M2]) -> Result<()> {
    check_len("E5M2 output", x.len(), y.len())?;
    x.iter().zip(y).for_each(|(x, y)| *y = E5M2::from_f32(*x));
    Ok(())
}

/// From E5M2, exactly.
pub fn e5m2_to_f32(x: &[E5M2], y: &mut [f32]) -> Result<()> {
    check_len("f32 output", x.len(), y.len())?;
    x.iter().zip(y).for_each(|(x, y)| *y = x.to_f32());
    Ok(())
}
