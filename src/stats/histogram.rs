//! Histograms of signed nanoseconds, log-linear like HDR histograms, with a limited number of
//! buckets: each power of two is divided into equal parts, and if there are too many buckets, pairs
//! are merged. Histograms of any precision can be merged.

use super::HistogramBuckets;

/// Initial precision: buckets in a power of two, as an exponent of 2.
const FINEST: u32 = 7;
/// Largest number of buckets for a test.
pub const TEST_BUCKETS: usize = 160;
/// Largest number of buckets for statistics over several tests.
pub const MERGED_BUCKETS: usize = 224;

/// Counts of values by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    precision: u32,
    /// Numbers of the buckets with their counts, in rising order. Number 0 is the value 0, `i + 1`
    /// is bucket `i` of the positive values, and `-(i + 1)` is bucket `i` of the negative values.
    buckets: Vec<(i16, u64)>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { precision: FINEST, buckets: Vec::new() }
    }
}

impl Histogram {
    /// Adds a value, keeping at most `most` buckets.
    pub fn add(&mut self, value: i64, most: usize) {
        let bucket = bucket(value, self.precision);
        match self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => self.buckets[at].1 += 1,
            Err(at) => {
                self.buckets.insert(at, (bucket, 1));
                self.limit_buckets(most);
            }
        }
    }

    /// Removes the values and keeps the allocation.
    pub fn clear(&mut self) {
        self.precision = FINEST;
        self.buckets.clear();
    }

    /// Returns the number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// Adds the values of another histogram.
    pub fn merge(&mut self, other: &Self, most: usize) {
        while self.precision > other.precision {
            self.coarsen();
        }
        let steps = other.precision - self.precision;
        let mine = std::mem::take(&mut self.buckets);
        let theirs = other.buckets.iter().map(|(bucket, count)| (coarser(*bucket, steps), *count));
        let mut all: Vec<(i16, u64)> = mine.into_iter().chain(theirs).collect();
        all.sort_unstable_by_key(|(bucket, _)| *bucket);
        self.buckets = all;
        self.merge_equal_buckets();
        self.limit_buckets(most);
    }

    /// Returns the middle of the bucket that contains a percentile (nearest rank); `None` without
    /// values.
    pub fn percentile(&self, percent: f64) -> Option<i64> {
        let count = self.count();
        let rank = ((percent / 100.0 * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        self.buckets.iter().find_map(|(bucket, count)| {
            seen += count;
            (seen >= rank).then(|| middle(*bucket, self.precision))
        })
    }

    /// Coarsens until there are at most `most` buckets.
    pub fn limit_buckets(&mut self, most: usize) {
        while self.buckets.len() > most.max(2) && self.precision > 0 {
            self.coarsen();
        }
    }

    /// Counts the values up to each limit of a rising series; exact where limits are powers of two.
    pub fn cumulative(&self, limits: &[i64]) -> Vec<u64> {
        let mut counts = vec![0; limits.len()];
        for (bucket, count) in &self.buckets {
            let highest = edges(*bucket, self.precision).1 - 1;
            let from = limits.partition_point(|limit| *limit < highest);
            counts[from..].iter_mut().for_each(|sum| *sum += count);
        }
        counts
    }

    fn coarsen(&mut self) {
        self.precision -= 1;
        self.buckets.iter_mut().for_each(|(bucket, _)| *bucket = coarser(*bucket, 1));
        self.merge_equal_buckets();
    }

    /// Merges neighbouring buckets that became equal.
    fn merge_equal_buckets(&mut self) {
        self.buckets.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 += later.1;
            }
            same
        });
    }
}

/// Returns the bucket of a value.
fn bucket(value: i64, precision: u32) -> i16 {
    let size = value.unsigned_abs();
    if size == 0 {
        return 0;
    }
    let exponent = size.ilog2();
    let rest = u128::from(size - (1 << exponent));
    // The index is at most 64 * 128, so it fits into the type.
    let index = (exponent << precision) + ((rest << precision) >> exponent) as u32;
    let number = index as i16 + 1;
    if value < 0 { -number } else { number }
}

fn coarser(bucket: i16, steps: u32) -> i16 {
    match bucket {
        0 => 0,
        positive if positive > 0 => ((positive - 1) >> steps) + 1,
        negative => -(((-negative - 1) >> steps) + 1),
    }
}

/// Returns the smallest absolute value of a bucket, and the smallest one beyond it.
fn edges_by_size(index: u32, precision: u32) -> (u64, u64) {
    let edge = |index: u32| {
        let (exponent, part) = (index >> precision, u128::from(index & ((1 << precision) - 1)));
        let beyond = ((part << exponent).div_ceil(1 << precision)) + (1u128 << exponent.min(100));
        u64::try_from(beyond).unwrap_or(u64::MAX)
    };
    (edge(index), edge(index + 1))
}

/// Returns the smallest value of a bucket, and the smallest one beyond it.
fn edges(bucket: i16, precision: u32) -> (i64, i64) {
    let limit = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    if bucket == 0 {
        return (0, 1);
    }
    let (low, high) = edges_by_size(u32::from(bucket.unsigned_abs()) - 1, precision);
    if bucket > 0 { (limit(low), limit(high)) } else { (1 - limit(high), 1 - limit(low)) }
}

fn middle(bucket: i16, precision: u32) -> i64 {
    let (low, beyond) = edges(bucket, precision);
    low.midpoint(beyond - 1)
}

impl From<&Histogram> for HistogramBuckets {
    fn from(histogram: &Histogram) -> Self {
        let mut before = 0;
        let steps = histogram.buckets.iter().map(|(bucket, _)| {
            let bucket = i32::from(*bucket);
            bucket - std::mem::replace(&mut before, bucket)
        });
        Self {
            precision: histogram.precision,
            bucket_deltas: steps.collect(),
            counts: histogram.buckets.iter().map(|(_, count)| *count).collect(),
        }
    }
}

impl From<&HistogramBuckets> for Histogram {
    /// An invalid message becomes an empty histogram.
    fn from(histogram: &HistogramBuckets) -> Self {
        let HistogramBuckets { precision, bucket_deltas, counts } = histogram;
        let mut bucket = 0i32;
        let buckets: Option<Vec<(i16, u64)>> = bucket_deltas
            .iter()
            .zip(counts)
            .enumerate()
            .map(|(place, (step, count))| {
                bucket = bucket.checked_add(*step)?;
                let rises = place == 0 || *step > 0;
                rises.then_some((i16::try_from(bucket).ok()?, *count))
            })
            .collect();
        match buckets {
            Some(buckets) if *precision <= FINEST => Self { precision: *precision, buckets },
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn histogram_of(values: &[i64], most: usize) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.add(*value, most));
        histogram
    }

    #[test]
    fn every_value_is_within_the_edges_of_its_bucket() {
        for precision in 0..=FINEST {
            for size in (0..62).flat_map(|e| [(1i64 << e) - 1, 1 << e, (1 << e) + 1, 3 << (e / 2)])
            {
                for value in [size, -size] {
                    let (low, beyond) = edges(bucket(value, precision), precision);
                    assert!((low..beyond).contains(&value), "{value} in {low}..{beyond}");
                    let wide = (beyond - 1 - low) as f64;
                    assert!(wide <= size as f64 / f64::from(1 << precision), "{value}: {wide}");
                }
            }
        }
        for extreme in [i64::MAX, i64::MIN, i64::MIN + 1] {
            let histogram = histogram_of(&[extreme], 4);
            assert_eq!(histogram.percentile(50.0).unwrap().signum(), extreme.signum());
        }
    }

    #[test]
    fn limits_that_are_powers_of_two_are_exact() {
        let values: Vec<i64> = (1..5000).map(|n| n * n).collect();
        let histogram = histogram_of(&values, 48);
        let limits: Vec<i64> = (4..26).map(|e| (1 << e) - 1).collect();
        let exact = limits.iter().map(|limit| values.iter().filter(|v| *v <= limit).count() as u64);
        assert_eq!(histogram.cumulative(&limits), exact.collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn merged_parts_are_the_whole_and_percentiles_are_near(
            values in prop::collection::vec(-50_000_000i64..2_000_000_000, 1..400),
            cut in 0usize..400,
            percent in 0.0f64..100.0,
        ) {
            let cut = cut.min(values.len());
            let mut parts = histogram_of(&values[..cut], TEST_BUCKETS);
            // The second part is converted to its stored form and back.
            let rest = HistogramBuckets::from(&histogram_of(&values[cut..], 24));
            parts.merge(&Histogram::from(&rest), TEST_BUCKETS);
            prop_assert!(parts.buckets.len() <= TEST_BUCKETS);
            prop_assert_eq!(parts.count(), values.len() as u64);
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = ((percent / 100.0 * sorted.len() as f64).ceil() as usize).max(1);
            let (exact, got) = (sorted[rank - 1], parts.percentile(percent).unwrap());
            let (low, beyond) = edges(bucket(exact, parts.precision), parts.precision);
            prop_assert!((low..beyond).contains(&got), "{} and {}", exact, got);
        }

        #[test]
        fn invalid_buckets_cause_no_panic(
            precision in 0u32..20,
            bucket_deltas in prop::collection::vec(any::<i32>(), 0..6),
            counts in prop::collection::vec(any::<u32>().prop_map(u64::from), 0..6),
        ) {
            let histogram = Histogram::from(&HistogramBuckets { precision, bucket_deltas, counts });
            let _ = (histogram.percentile(99.0), histogram.cumulative(&[0, 1 << 40]));
        }
    }
}
