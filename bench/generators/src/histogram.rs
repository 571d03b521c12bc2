//! Latencies with three digits kept: a bucket for each 1/1,024 of a power of two.

/// Buckets of one power of two, as bits: a value is told within a thousandth of itself.
const BITS: u32 = 10;

#[derive(Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub fn add(&mut self, value: u64) {
        let at = index(value);
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that `share` of all are not above; 0 where there are none.
    #[allow(clippy::cast_precision_loss)]
    pub fn at(&self, share: f64) -> u64 {
        let rank = ((share * self.total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(at).min(self.max);
            }
        }
        self.max
    }
}

/// Values below 2,048 have a bucket each; above, each power of two has 1,024.
fn index(value: u64) -> usize {
    let shift = (64 - value.leading_zeros()).saturating_sub(BITS + 1);
    ((u64::from(shift) << BITS) + (value >> shift)) as usize
}

/// The largest value of a bucket.
fn highest(at: usize) -> u64 {
    let at = at as u64;
    if at < 2 << BITS {
        return at;
    }
    let shift = (at >> BITS) - 1;
    let mantissa = at - (shift << BITS);
    ((mantissa + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::{Histogram, highest, index};

    #[test]
    fn a_value_is_told_within_a_thousandth() {
        for value in (0..5_000).chain((0..60).map(|power| (1_u64 << power) + 12_345)) {
            let told = highest(index(value));
            assert!(
                told >= value && told - value <= value / 1_024,
                "{value} was told as {told}"
            );
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for at in 0..30_000 {
            assert_eq!(index(highest(at)), at);
            assert_eq!(index(highest(at) + 1), at + 1);
        }
    }

    #[test]
    fn percentiles_are_values_that_so_many_are_not_above() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.at(0.99), histogram.max()), (0, 0));
        for value in 1..=1_000 {
            histogram.add(value);
        }
        assert_eq!(
            [0.5, 0.99, 0.999, 1.0].map(|share| histogram.at(share)),
            [500, 990, 999, 1_000]
        );
        assert_eq!((histogram.count(), histogram.max()), (1_000, 1_000));
    }
}
