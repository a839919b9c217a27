//! States of a control connection, each with its own data.

use std::collections::VecDeque;

use super::{
    action::{AttemptContext, Operation},
    failure::Failure,
};
use crate::time::Monotonic;

/// State of a connection.
#[derive(Debug)]
pub(super) enum State {
    Inactive,
    /// Stopped by hand, or waiting for a manual start.
    Stopped,
    /// All tests have run.
    Completed,
    /// An attempt is in progress.
    Connecting(Connecting),
    Running(Running),
    /// The connection is closed until the next test is due.
    Idle(Monotonic),
    /// The next attempt is due at this time.
    WaitingRetry(Monotonic),
    /// Sessions are being stopped and the control connection is being closed.
    Leaving(Leaving),
    Ended,
}

/// Step of an attempt in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Resolving,
    Tcp,
    /// Negotiating, or opening sockets without negotiation.
    Negotiating,
}

/// Attempt to connect or to negotiate.
#[derive(Debug)]
pub(super) struct Connecting {
    pub(super) step: Step,
    pub(super) names: Vec<String>,
    pub(super) context: AttemptContext,
}

/// Connection with running sessions.
#[derive(Debug)]
pub(super) struct Running {
    /// Time at which missing sessions are requested.
    pub(super) missing: Option<Monotonic>,
    /// Time of the next review if nothing else happens.
    pub(super) review: Monotonic,
    /// Change of the sessions in progress.
    pub(super) change: Option<Change>,
}

/// Step of a change of sessions.
#[derive(Debug)]
pub(super) enum Change {
    /// Sockets of missing sessions are being opened.
    Opening,
    /// All sessions finish their tests before they are requested again together.
    Pausing {
        touched: Vec<String>,
        /// Sessions whose sockets are open.
        opened: Vec<String>,
        /// Time at which running tests are stopped; `None` while they are being stopped.
        until: Option<Monotonic>,
    },
    /// Sessions that change are being stopped.
    Stopping { touched: Vec<String> },
    /// Sessions are being requested.
    Requesting {
        /// True if all sessions were stopped for this request.
        together: bool,
        /// True if no other session waits for these: any change of the desired state has priority.
        optional: bool,
    },
}

impl Change {
    /// Returns true if any other change has priority over this one.
    pub(super) fn is_optional(&self) -> bool {
        matches!(self, Self::Opening | Self::Requesting { optional: true, .. })
    }

    /// Returns true if the operation in progress uses the control connection.
    pub(super) fn uses_control(&self) -> bool {
        matches!(self, Self::Requesting { .. })
    }
}

/// Operations that stop everything, and the state after them.
#[derive(Debug)]
pub(super) struct Leaving {
    /// Operations after the one in progress.
    pub(super) operations: VecDeque<Operation>,
    pub(super) then: Then,
}

/// Continuation after the operations of [`Leaving`].
#[derive(Debug)]
pub(super) enum Then {
    /// Start over with the desired state.
    Restart,
    /// Connect again at once, without a failure.
    Reconnect,
    /// Wait for the next test.
    IdleUntil(Monotonic),
    /// Count a failed attempt, because no session could be started.
    AttemptFailed(Failure),
    /// Complete the connection, because all tests have run.
    Complete,
    /// Complete a connection with a `test_count` after its loss, which ends its tests.
    CompleteByLoss,
    /// Continue after a change of sessions of a connection that is not open.
    SessionsChanged {
        touched: Vec<String>,
        /// True if the connection waits for its next test.
        is_idle: bool,
    },
    End,
}
