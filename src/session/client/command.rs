//! Commands to the test sessions of a connection.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::open::OpenSession;
use crate::{
    model::ControlConnection,
    proto::{FailureCause, Statistics},
    twamp::connection::Grace,
};

/// Length of the command queue of a session; the driver waits while it is full.
pub(super) const COMMANDS: usize = 16;

/// Command of the driver or of the API to a session.
#[derive(Debug)]
pub(super) enum Command {
    /// The session is started: probes may be sent.
    Up(Box<OpenSession>),
    /// The connection is lost, or one more attempt failed.
    Down(FailureCause, u64),
    /// The connection is closed until the next test is due, which is not an outage.
    Park,
    /// Begins no further test until the next `Up`; answers when the running test has ended and the
    /// socket is closed.
    Pause(oneshot::Sender<()>),
    /// Changes intervals, counts and labels.
    Configure(Arc<ControlConnection>, usize),
    /// Begins a new run of `test_count` tests.
    Restart,
    /// Begins no further tests; answers when the last result is reported.
    Stop(oneshot::Sender<()>, Grace),
    /// Measures nothing until a manual start, and clears raised thresholds.
    Idle,
    /// Returns the statistics of the running test.
    Snapshot(oneshot::Sender<Option<Statistics>>),
}
