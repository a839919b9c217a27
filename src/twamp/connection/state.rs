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
    /// All tests were run.
    Completed,
    /// An attempt is being made.
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

/// Step of an attempt that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Resolving,
    Tcp,
    /// Negotiating, or opening sockets where nothing is negotiated.
    Negotiating,
}
#[derive(Debug)]
pub(super) struct Connecting {
    pub(super) step: Step,
    pub(super) names: Vec<String>,
    pub(super) context: AttemptContext,
}

/// A connection whose sessions run.
#[derive(Debug)]
pub(super) struct Running {
    /// Sessions that do not run are requested at this time.
    pub(super) missing: Option<Monotonic>,
    /// Time of the next review, in case that nothing else happens.
    pub(super) review: Monotonic,
    /// Change of the sessions that is under way.
    pub(super) change: Option<Change>,
}

/// Step of a change of sessions.
#[derive(Debug)]
pub(super) enum Change {
    /// Sockets of sessions that do not run are being opened.
    Opening,
    /// All sessions finish their tests before they are requested again together.
    Pausing {
        touched: Vec<String>,
        /// Sessions whose sockets are open.
        opened: Vec<String>,
        /// Tests that last for longer are stopped; `None` while they are.
        until: Option<Monotonic>,
    },
    /// Sessions that change are being stopped.
    Stopping { touched: Vec<String> },
    /// Sessions are being requested.
    Requesting {
        together: bool,
        /// Only sessions that no other waits for: any change of the desired state comes first.
        optional: bool,
    },
}

impl Change {
    /// Returns true if the change gives way to any other.
    pub(super) fn is_optional(&self) -> bool {
        matches!(self, Self::Opening | Self::Requesting { optional: true, .. })
    }

    /// Returns true if the operation that is under way uses the control connection.
    pub(super) fn uses_control(&self) -> bool {
        matches!(self, Self::Requesting { .. })
    }
}

/// Operations until nothing runs, and the state after them.
#[derive(Debug)]
pub(super) struct Leaving {
    /// Operations after the one that is under way.
    pub(super) operations: VecDeque<Operation>,
    pub(super) then: Then,
}

/// Continuation after the sessions were stopped.
#[derive(Debug)]
pub(super) enum Then {
    /// Start over with the desired state.
    Restart,
    /// Connect again at once, without a failure.
    Reconnect,
    /// Wait for the next test.
    IdleUntil(Monotonic),
    /// No session could be started: an attempt has failed.
    AttemptFailed(Failure),
    /// All tests were run.
    Complete,
    /// With a `test_count`, the loss of the connection is the end of its tests.
    CompleteByLoss,
    /// Sessions of a connection that is not open have changed.
    SessionsChanged {
        touched: Vec<String>,
        /// The connection waits for its next test.
        is_idle: bool,
    },
    End,
}
