//! Statistics of one scope as the agent keeps them, in memory and in the store.

use prost::Message;

use super::super::convert;
use crate::{
    proto::{self, StatisticsScope, TestOutcome},
    stats::{Figures, TestResult, merge},
    time::UnixTime,
};

/// Totals over tests, or over an interval by the clock. Tags are never reused.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Totals {
    #[prost(enumeration = "StatisticsScope", tag = "3")]
    pub(super) scope: i32,
    /// Start of the first test.
    #[prost(uint64, optional, tag = "4")]
    pub(super) start_unix_ns: Option<u64>,
    /// End of the last test.
    #[prost(uint64, optional, tag = "5")]
    pub(super) end_unix_ns: Option<u64>,
    #[prost(uint64, tag = "6")]
    pub(super) tests_complete: u64,
    #[prost(uint64, tag = "7")]
    pub(super) tests_interrupted: u64,
    #[prost(uint64, tag = "8")]
    pub(super) tests_unreachable: u64,
    #[prost(uint64, tag = "9")]
    pub(super) tests_stopped: u64,
    #[prost(message, optional, boxed, tag = "10")]
    pub(super) figures: Option<Box<Figures>>,
    /// Start of the interval; `None` for other scopes.
    #[prost(uint64, optional, tag = "12")]
    pub(super) interval_start_unix_ns: Option<u64>,
    /// True if the counts do not cover the whole interval.
    #[prost(bool, tag = "13")]
    pub(super) suspect: bool,
}

impl Totals {
    pub(super) fn new(scope: StatisticsScope) -> Self {
        Self { scope: scope.into(), ..Self::default() }
    }

    /// Adds the result of a later test.
    pub(super) fn add_result(&mut self, result: &TestResult) {
        self.add_outcome(result);
        if let Some(figures) = &result.figures {
            self.add_figures(figures);
        }
    }

    /// Adds the outcome of a later test, without its figures.
    pub(super) fn add_outcome(&mut self, result: &TestResult) {
        self.start_unix_ns.get_or_insert(result.start_unix_ns);
        self.end_unix_ns = Some(result.end_unix_ns);
        match result.outcome() {
            TestOutcome::Complete => self.tests_complete += 1,
            TestOutcome::Interrupted => self.tests_interrupted += 1,
            TestOutcome::Unreachable => self.tests_unreachable += 1,
            TestOutcome::Stopped => self.tests_stopped += 1,
            TestOutcome::Unspecified => {}
        }
    }

    pub(super) fn add_figures(&mut self, later: &Figures) {
        merge(self.figures.get_or_insert_default(), later);
    }

    /// Adds totals of a later time.
    pub(super) fn add(&mut self, later: &Self) {
        self.start_unix_ns = self.start_unix_ns.or(later.start_unix_ns);
        self.end_unix_ns = later.end_unix_ns.or(self.end_unix_ns);
        self.tests_complete += later.tests_complete;
        self.tests_interrupted += later.tests_interrupted;
        self.tests_unreachable += later.tests_unreachable;
        self.tests_stopped += later.tests_stopped;
        self.suspect |= later.suspect;
        if let Some(figures) = &later.figures {
            self.add_figures(figures);
        }
    }
}

impl From<Totals> for proto::Statistics {
    fn from(totals: Totals) -> Self {
        let Totals {
            scope,
            start_unix_ns,
            end_unix_ns,
            tests_complete,
            tests_interrupted,
            tests_unreachable,
            tests_stopped,
            figures,
            interval_start_unix_ns,
            suspect,
        } = totals;
        let time = |unix_ns: Option<u64>| unix_ns.map(|unix_ns| UnixTime(unix_ns).to_proto());
        Self {
            scope,
            start_time: time(start_unix_ns),
            end_time: time(end_unix_ns),
            tests_complete,
            tests_interrupted,
            tests_unreachable,
            tests_stopped,
            figures: figures.map(|figures| Box::new(convert::figures(*figures))),
            interval_start_time: time(interval_start_unix_ns),
            suspect,
            ..Self::default()
        }
    }
}

/// Figures of an ended interval, as stored in the log. Tags are never reused.
#[derive(Clone, PartialEq, Message)]
pub(in super::super) struct IntervalResult {
    #[prost(enumeration = "StatisticsScope", tag = "1")]
    pub(super) scope: i32,
    #[prost(uint64, tag = "2")]
    pub(super) start_unix_ns: u64,
    #[prost(uint64, tag = "3")]
    pub(super) end_unix_ns: u64,
    #[prost(bool, tag = "4")]
    pub(super) suspect: bool,
    #[prost(message, optional, boxed, tag = "5")]
    pub(in super::super) figures: Option<Box<Figures>>,
}

impl From<IntervalResult> for proto::IntervalResult {
    fn from(result: IntervalResult) -> Self {
        let IntervalResult { scope, start_unix_ns, end_unix_ns, suspect, figures } = result;
        Self {
            scope,
            start_time: Some(UnixTime(start_unix_ns).to_proto()),
            end_time: Some(UnixTime(end_unix_ns).to_proto()),
            suspect,
            figures: figures.map(|figures| Box::new(convert::figures(*figures))),
        }
    }
}
