//! A small seeded random generator, the same on every machine.

/// PCG-XSH-RR 64/32 (O'Neill 2014). Not for cryptography, nor for anything but tests and benches.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Rng {
        let mut rng = Rng { state: seed.wrapping_add(0x9e37_79b9_7f4a_7c15) };
        rng.u32();
        rng.u32();
        rng
    }

    /// 32 random bits.
    pub fn u32(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((((old >> 18) ^ old) >> 27) as u32).rotate_right((old >> 59) as u32)
    }

    /// 64 random bits.
    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) << 32 | u64::from(self.u32())
    }

    /// A number below `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.u64()) * n as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f32 {
        (self.u32() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Close to standard normal: the sum of 12 uniform values less 6 (mean 0, variance 1, at most 6), which no mathematical
    /// library can round differently.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// `n` values uniform in `[low, high)`.
    pub fn uniform_vec(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| self.range(low, high)).collect()
    }

    /// `n` normal values of this standard deviation.
    pub fn normal_vec(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * deviation).collect()
    }

    /// `n` finite values with an exponent uniform in `low..high` (limited to -126..=127), a random mantissa and a random sign:
    /// what a format conversion or a sum must survive.
    pub fn spread_vec(&mut self, n: usize, low: i32, high: i32) -> Vec<f32> {
        let one = |rng: &mut Rng| {
            let exponent = low + rng.below((high - low).max(1) as usize) as i32;
            let field = (exponent.clamp(-126, 127) + 127) as u32;
            f32::from_bits((rng.u32() & 0x807f_ffff) | (field << 23))
        };
        (0..n).map(|_| one(self)).collect()
    }

    /// `n` values of any bit pattern: NaN, infinities, zeros of both signs and subnormals among them.
    pub fn bits_vec(&mut self, n: usize) -> Vec<f32> {
        const SPECIAL: [u32; 10] =
            [0, 0x8000_0000, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0000, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000];
        let one = |rng: &mut Rng| match rng.below(8) {
            0 => f32::from_bits(SPECIAL[rng.below(SPECIAL.len())]),
            _ => f32::from_bits(rng.u32()),
        };
        (0..n).map(|_| one(self)).collect()
    }

    /// Exchanges elements until every order is equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// Sizes that break kernels: 0, 1, small primes, and one less and one more than each multiple of `tile` up to `max`.
pub fn awkward_sizes(tile: usize, max: usize) -> Vec<usize> {
    let mut sizes = vec![0, 1, 2, 3, 5, 7, 13];
    if tile > 0 {
        for multiple in (tile..=max).step_by(tile) {
            sizes.extend([multiple - 1, multiple, multiple + 1]);
        }
    }
    sizes.retain(|size| *size <= max);
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
