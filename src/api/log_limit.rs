//! Log lines about events that anyone on the network can cause: one line in ten seconds.

use std::time::Duration;

use crate::{net::clock, time::Monotonic};

const INTERVAL: Duration = Duration::from_secs(10);

/// Events since the latest log line, and its time.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    unlogged: u64,
    logged: Option<Monotonic>,
}

impl LogLimit {
    /// Counts an event. Returns the number of events since the latest line if a line is due.
    pub(super) fn count(&mut self) -> Option<u64> {
        self.unlogged += 1;
        let now = clock::monotonic();
        let is_due = |logged| now.since_ns(logged) >= INTERVAL.as_nanos() as u64;
        self.logged.is_none_or(is_due).then(|| {
            self.logged = Some(now);
            std::mem::take(&mut self.unlogged)
        })
    }
}
