//! Buffers that show what a kernel forgot to write, read too far, or wrote too far.

/// The NaN that fills what nobody should read. Its payload tells it from a NaN that was computed.
pub const POISON: f32 = f32::from_bits(0x7fc0_dead);

/// `n` poisoned values, for an output.
pub fn poisoned(n: usize) -> Vec<f32> {
    vec![POISON; n]
}

/// A buffer between two poisoned guards. [`Guarded::check`] fails when a guard has changed.
#[derive(Debug, Clone)]
pub struct Guarded {
    data: Vec<f32>,
    len: usize,
}

impl Guarded {
    /// The number of guard values on each side.
    pub const GUARD: usize = 64;

    /// A poisoned output of `n` values.
    pub fn output(n: usize) -> Guarded {
        Guarded { data: vec![POISON; n + 2 * Self::GUARD], len: n }
    }

    /// An input: what lies beyond it is NaN, so that reading too far shows in the result.
    pub fn input(values: &[f32]) -> Guarded {
        let mut guarded = Self::output(values.len());
        guarded.as_mut_slice().copy_from_slice(values);
        guarded
    }

    /// The buffer between the guards.
    pub fn as_slice(&self) -> &[f32] {
        &self.data[Self::GUARD..Self::GUARD + self.len]
    }

    /// The buffer between the guards.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data[Self::GUARD..Self::GUARD + self.len]
    }

    /// Whether both guards are intact; else which of their values is not, counted from the start of the buffer (negative: before it).
    pub fn check(&self) -> Result<(), String> {
        for (i, value) in self.data.iter().enumerate() {
            let inside = (Self::GUARD..Self::GUARD + self.len).contains(&i);
            if !inside && value.to_bits() != POISON.to_bits() {
                return Err(format!(
                    "wrote {value:e} at index {} of a buffer of {}",
                    i as isize - Self::GUARD as isize,
                    self.len
                ));
            }
        }
        Ok(())
    }
}

/// The indexes that still hold the poison.
pub fn unwritten(values: &[f32]) -> Vec<usize> {
    values.iter().enumerate().filter(|(_, v)| v.to_bits() == POISON.to_bits()).map(|(i, _)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::Guarded;

    #[test]
    fn stray_writes_show() {
        for (at, index) in [(Guarded::GUARD - 1, "-1"), (Guarded::GUARD + 10, "10")] {
            let mut buffer = Guarded::output(10);
            buffer.check().unwrap();
            buffer.data[at] = 0.0;
            assert_eq!(buffer.check().unwrap_err(), format!("wrote 0e0 at index {index} of a buffer of 10"));
        }
    }
}
