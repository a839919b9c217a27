//! Periodic and Poisson gaps between probes.

use crate::model::Schedule;

/// Limit of Poisson gaps, in multiples of the mean.
const MAX_POISSON_GAP: f64 = 10.0;

/// Returns the gap to the next probe in nanoseconds; `random` is uniform over all values.
pub fn gap_ns(schedule: Schedule, interval_ns: u64, random: u64) -> u64 {
    match schedule {
        Schedule::Periodic => interval_ns,
        Schedule::Poisson => {
            // In (0, 1], so that the logarithm is finite.
            let uniform = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
            (interval_ns as f64 * (-uniform.ln()).min(MAX_POISSON_GAP)) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_gaps_have_the_mean_and_spread_of_an_exponential() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 29)
        };
        let gaps: Vec<f64> =
            (0..100_000).map(|_| gap_ns(Schedule::Poisson, 1_000_000, next()) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation =
            (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean / 1e6 - 1.0).abs() < 0.02, "{mean}");
        assert!((deviation / 1e6 - 1.0).abs() < 0.03, "{deviation}");
        assert!(gaps.iter().all(|gap| *gap <= 10e6));
    }
}
