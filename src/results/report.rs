//! Reports of the measurements on their way to the log.

use std::sync::Arc;

use super::Subject;
use crate::{
    proto::Event,
    stats::{Figures, ProbeResult, TestResult},
    time::UnixTime,
};

/// A future record, or a part of statistics.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) subject: Arc<Subject>,
    pub(super) kind: ReportKind,
    pub(super) time: UnixTime,
}

/// Content of a report; small, because the queue has space for many.
#[derive(Debug)]
pub(super) enum ReportKind {
    Event(Box<Event>),
    Probes(Vec<ProbeResult>),
    /// Result of a test, with its minute if all of its probes were sent in that minute.
    Test(Box<TestResult>, Option<u64>),
    /// Figures of one minute of a longer test.
    Minute(u64, Box<Figures>),
}
