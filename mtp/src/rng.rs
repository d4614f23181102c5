//! Seeded random numbers, one stream per request.

/// A source of uniform numbers: what the sampler and the verifier draw from.
pub trait Uniform {
    /// The next number, at least 0 and less than 1.
    fn uniform(&mut self) -> f64;
}

impl<U: Uniform + ?Sized> Uniform for &mut U {
    fn uniform(&mut self) -> f64 {
        (**self).uniform()
    }
}

/// A small generator (xoshiro256++, Blackman and Vigna 2018) whose stream is set by a seed and a request number.
///
/// Two requests of one seed have unrelated streams, so what a request draws does not depend on which other requests are
/// served beside it. Not for cryptography.
///
/// ```
/// use mtp::{RequestRng, Uniform};
/// let (mut a, mut b, mut c) = (RequestRng::new(7, 0), RequestRng::new(7, 0), RequestRng::new(7, 1));
/// assert_eq!(a.uniform(), b.uniform());
/// assert_ne!(a.uniform(), c.uniform());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRng {
    state: [u64; 4],
}

impl RequestRng {
    /// The stream of `request` under `seed`.
    pub fn new(seed: u64, request: u64) -> Self {
        // The request number goes through the mixer before it meets the seed: (seed, request) and
        // (request, seed) must not share a stream.
        let mut mixer = seed ^ split_mix(&mut request.wrapping_add(0x243f_6a88_85a3_08d3)).rotate_left(23);
        // SplitMix64 is a bijection of a counter, so four consecutive outputs are never all zero.
        RequestRng { state: std::array::from_fn(|_| split_mix(&mut mixer)) }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// The generator's state, to be kept with a request that is suspended.
    pub fn state(&self) -> [u64; 4] {
        self.state
    }

    /// A generator in a state that [`RequestRng::state`] gave. `None` for the all-zero state, which is not one.
    pub fn from_state(state: [u64; 4]) -> Option<Self> {
        (state != [0; 4]).then_some(RequestRng { state })
    }
}

impl Uniform for RequestRng {
    fn uniform(&mut self) -> f64 {
        // 53 bits: every multiple of 2^-53 below 1 is equally likely.
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

fn split_mix(counter: &mut u64) -> u64 {
    *counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *counter;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_that_of_xoshiro256_plus_plus() {
        // The first outputs from state 1, 2, 3, 4, as the authors' C program gives them.
        let mut rng = RequestRng::from_state([1, 2, 3, 4]).unwrap();
        assert_eq!(rng.next_u64(), 41_943_041);
        assert_eq!(rng.next_u64(), 58_720_359);
        assert_eq!(rng.next_u64(), 3_588_806_011_781_223);
    }

    #[test]
    fn uniform_is_in_range_and_even() {
        let mut rng = RequestRng::new(3, 9);
        let mut cells = [0u32; 16];
        for _ in 0..16_000 {
            let u = rng.uniform();
            assert!((0.0..1.0).contains(&u));
            cells[(u * 16.0) as usize] += 1;
        }
        // Binomial(16000, 1/16): mean 1000, deviation 30.6; six deviations.
        assert!(cells.iter().all(|&c| (816..=1184).contains(&c)), "{cells:?}");
    }
}
