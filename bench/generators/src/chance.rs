//! A seeded stream of random numbers: the same arrivals for the same seed.

/// splitmix64: good enough for arrivals, and one line of state.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between 0 and 1, both left out.
    #[allow(clippy::cast_precision_loss)]
    fn fraction(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Nanoseconds until the next of Poisson arrivals at `per_s` a second.
    pub fn gap_ns(&mut self, per_s: f64) -> u64 {
        (-self.fraction().ln() / per_s * 1e9) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::Chance;

    #[test]
    #[allow(clippy::cast_precision_loss)]
    fn gaps_have_the_mean_and_the_spread_of_poisson_arrivals() {
        let mut chance = Chance::new(7);
        let gaps: Vec<f64> = (0..200_000)
            .map(|_| chance.gap_ns(1_000.0) as f64 / 1e6)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "mean {mean} ms");
        assert!((variance - 1.0).abs() < 0.05, "variance {variance} ms²");
    }

    #[test]
    fn the_same_seed_gives_the_same_gaps() {
        let gaps = |seed| {
            let mut chance = Chance::new(seed);
            (0..10).map(|_| chance.gap_ns(50.0)).collect::<Vec<_>>()
        };
        assert_eq!(gaps(3), gaps(3));
        assert_ne!(gaps(3), gaps(4));
    }
}
