//! Size of the whole state directory: the databases, revisions, statistics and quarantined windows
//! as well as the results.

use std::path::{Path, PathBuf};

use super::{disk::disk_bytes, quarantine};
use crate::time::{Monotonic, NANOS_PER_SECOND};

/// Interval of the measurements. Each one reads the metadata of all files, some milliseconds for a
/// thousand windows.
const MEASURE_INTERVAL_NS: u64 = 10 * NANOS_PER_SECOND;

/// Measurement of a state directory.
#[derive(Debug)]
pub(super) struct DiskUsage {
    directory: PathBuf,
    next: Monotonic,
    /// Size of everything except the state database and the windows, bytes.
    other_bytes: u64,
}

impl DiskUsage {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), next: Monotonic(0), other_bytes: 0 }
    }

    /// Measures the directory if that is due, removes quarantined windows beyond `quota`, and returns
    /// the size in bytes of the results that exceed it. `results_bytes` is the size of the state
    /// database and the windows; windows that wait for their last reader (`leaving_bytes`) count as
    /// removed.
    pub(super) fn excess(
        &mut self,
        now: Monotonic,
        quota: u64,
        results_bytes: u64,
        leaving_bytes: u64,
    ) -> u64 {
        if now < self.next {
            return 0;
        }
        self.next = now.plus_ns(MEASURE_INTERVAL_NS);
        let total = disk_bytes(&self.directory).saturating_sub(leaving_bytes);
        let freed = match total.saturating_sub(quota) {
            0 => 0,
            excess => quarantine::free(&self.directory, excess).unwrap_or_else(|error| {
                tracing::warn!(%error, "failed to remove quarantined windows");
                0
            }),
        };
        let total = total.saturating_sub(freed);
        self.other_bytes = total.saturating_sub(results_bytes);
        total.saturating_sub(quota)
    }

    /// Returns the size of everything except the state database and the windows, bytes.
    pub(super) fn other_bytes(&self) -> u64 {
        self.other_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn quarantined_windows_are_removed_before_results() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("results")).unwrap();
        fs::write(path.join("results/db"), vec![1; 400_000]).unwrap();
        for number in 1..=3 {
            let window = path.join("window");
            fs::create_dir(&window).unwrap();
            fs::write(window.join("db"), vec![number; 100_000]).unwrap();
            quarantine::put(path, &window).unwrap();
        }
        let quarantined = || fs::read_dir(path.join(quarantine::NAME)).unwrap().count();
        let mut usage = DiskUsage::new(path);
        let results_bytes = disk_bytes(&path.join("results"));
        let mut excess = |second: u64, quota: u64, leaving_bytes: u64| {
            usage.excess(Monotonic(second * NANOS_PER_SECOND), quota, results_bytes, leaving_bytes)
        };
        assert_eq!(excess(0, 1 << 20, 0), 0);
        assert_eq!(quarantined(), 3);
        assert_eq!(excess(10, 650_000, 0), 0);
        assert_eq!(quarantined(), 2);
        assert_eq!(excess(11, 1, 0), 0, "measured once in ten seconds");
        let beyond = excess(20, 300_000, 0);
        assert_eq!(quarantined(), 0);
        assert!((100_000..150_000).contains(&beyond), "{beyond}");
        assert_eq!(excess(30, 300_000, results_bytes), 0);
        assert!(usage.other_bytes() < 50_000);
    }
}
