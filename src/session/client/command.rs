//! Commands to the test sessions of a connection.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::open::OpenSession;
use crate::{
    model::ControlConnection,
    proto::{FailureCause, Statistics},
    twamp::connection::Grace,
};

/// Limit of the commands in the queue of a session; the driver waits for room.
pub(super) const COMMANDS: usize = 16;

/// Command of the driver or of the API to a session.
#[derive(Debug)]
pub(super) enum Command {
    /// The session is started: probes may go out.
    Up(Box<OpenSession>),
    /// The connection is lost, or one more attempt failed.
    Down(FailureCause, u64),
    /// The connection is closed until the next test is due; that is no outage.
    Park,
    /// The running test is the last for now; answers when it has ended and the socket is closed.
    Pause(oneshot::Sender<()>),
    /// Other intervals, counts, labels.
    Configure(Arc<ControlConnection>, usize),
    /// A new run of `test_count` tests.
    Restart,
    /// No further tests; answers when the last result is reported.
    Stop(oneshot::Sender<()>, Grace),
    /// Nothing is measured until a start by hand: thresholds that are raised are cleared.
    Rest,
    /// Statistics of the running test.
    Snapshot(oneshot::Sender<Option<Statistics>>),
}
