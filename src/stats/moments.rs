//! Count, extremes, mean and variance in one pass (Welford), mergeable (Chan et al.).

use super::DelayStats;

/// Moments of a series of signed nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    samples: u64,
    minimum: i64,
    maximum: i64,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
}

impl Moments {
    /// Adds a value to all moments.
    pub fn add(&mut self, value: i64) {
        if self.samples == 0 {
            (self.minimum, self.maximum) = (value, value);
        }
        self.samples += 1;
        self.minimum = self.minimum.min(value);
        self.maximum = self.maximum.max(value);
        let distance = value as f64 - self.mean;
        self.mean += distance / self.samples as f64;
        self.squares += distance * (value as f64 - self.mean);
    }

    /// Returns the number of values.
    pub fn count(&self) -> u64 {
        self.samples
    }

    /// Returns the moments of the values less their minimum.
    pub fn above_minimum(&self) -> Self {
        Self {
            minimum: 0,
            maximum: self.maximum.saturating_sub(self.minimum),
            mean: self.mean - self.minimum as f64,
            ..*self
        }
    }

    /// Adds the values of another series.
    pub fn merge(&mut self, other: &Self) {
        if other.samples == 0 {
            return;
        }
        if self.samples == 0 {
            *self = *other;
            return;
        }
        let (a, b) = (self.samples as f64, other.samples as f64);
        let distance = other.mean - self.mean;
        self.samples += other.samples;
        self.minimum = self.minimum.min(other.minimum);
        self.maximum = self.maximum.max(other.maximum);
        self.mean += distance * b / (a + b);
        self.squares += other.squares + distance * distance * a * b / (a + b);
    }
}

impl From<&Moments> for DelayStats {
    fn from(moments: &Moments) -> Self {
        let samples = moments.samples.max(1) as f64;
        Self {
            samples: moments.samples,
            min_ns: moments.minimum,
            max_ns: moments.maximum,
            mean_ns: moments.mean,
            stddev_ns: (moments.squares / samples).max(0.0).sqrt(),
            histogram: None,
        }
    }
}

impl From<&DelayStats> for Moments {
    fn from(stats: &DelayStats) -> Self {
        Self {
            samples: stats.samples,
            minimum: stats.min_ns,
            maximum: stats.max_ns,
            mean: stats.mean_ns,
            squares: stats.stddev_ns * stats.stddev_ns * stats.samples as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moments_of(values: &[i64]) -> Moments {
        let mut moments = Moments::default();
        values.iter().for_each(|value| moments.add(*value));
        moments
    }

    proptest! {
        #[test]
        fn merged_parts_equal_the_whole(values in prop::collection::vec(-10_000_000_000i64..10_000_000_000, 1..200), cut in 0usize..200) {
            let cut = cut.min(values.len());
            let mut parts = moments_of(&values[..cut]);
            // Through the stored form and back, as statistics over stored tests do.
            parts.merge(&Moments::from(&DelayStats::from(&moments_of(&values[cut..]))));
            let (parts, whole) = (DelayStats::from(&parts), DelayStats::from(&moments_of(&values)));
            prop_assert_eq!((parts.samples, parts.min_ns, parts.max_ns), (whole.samples, whole.min_ns, whole.max_ns));
            prop_assert!((parts.mean_ns - whole.mean_ns).abs() <= 1e-3 + whole.mean_ns.abs() * 1e-9);
            prop_assert!((parts.stddev_ns - whole.stddev_ns).abs() <= 1.0 + whole.stddev_ns * 1e-6);
        }
    }
}
