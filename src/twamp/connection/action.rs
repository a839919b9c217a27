//! Inputs of the machine and actions that its driver carries out.

use std::{net::SocketAddr, sync::Arc};

use super::{
    failure::Failure,
    outage::{ConnectionEvent, Remembered},
    progress::SessionProgress,
    sessions::{Declined, StartedSession},
};
use crate::{
    model::{ControlConnection, Extensions, FailureCause},
    time::Monotonic,
    wire::codes::Sid,
};

/// Desired state of a connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Desired {
    pub(crate) config: Arc<ControlConnection>,
    /// Stopped by hand, or not yet started by hand.
    pub(crate) stopped: bool,
    /// Number of starts by hand; an increase requests an attempt at once.
    pub(crate) starts: u64,
    pub(crate) revision: u64,
}

/// Input of the machine. Progress is handled before any other input that is available at the same
/// time.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Desired(Desired),
    /// Counter of the changes of this host's network that may let an attempt succeed.
    Network(u64),
    /// Progress of those sessions whose progress has changed.
    Progress(Vec<(String, SessionProgress)>),
    /// Result of [`Operation::Resolve`]: the addresses of the server.
    Resolved(Result<Vec<SocketAddr>, Failure>),
    /// Result of [`Operation::Connect`]: local and remote address.
    Connected(Result<(SocketAddr, SocketAddr), Failure>),
    /// Result of [`Operation::Negotiate`], [`Operation::OpenUnnegotiated`] and [`Operation::Request`].
    Started(Result<Started, Failure>),
    /// Result of [`Operation::OpenSockets`]: names of the sessions whose sockets are open.
    Opened(Vec<String>, Vec<Declined>),
    /// End of [`Operation::PauseSessions`], [`Operation::StopSessions`] or [`Operation::Close`].
    Done,
    /// Answer to [`Action::VerifyUnreachable`]: the failure if no reflector can be reached.
    Verified(Option<Failure>),
    /// The control connection was lost, or the interface or address that it needs.
    Lost(Failure),
    /// A name no longer resolves to the address of a session.
    DnsChanged,
    /// The time of [`super::Connection::next_deadline`] is reached.
    Timer,
    /// The connection is removed, or the agent ends.
    End {
        /// True if a later process resumes the connection, so that a current outage stays open.
        is_resumed: bool,
    },
}

/// Sessions that an operation started, and those that it could not start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Started {
    /// Sessions with an open socket that the server accepted.
    pub(crate) sessions: Vec<StartedSession>,
    /// Sessions that were not started although others were started or run.
    pub(crate) declined: Vec<Declined>,
    /// Mode in force; 0 without a control connection.
    pub(crate) mode: u32,
    /// True if the server starts and stops sessions individually.
    pub(crate) is_individual: bool,
}

/// Limits and choices of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptContext {
    /// Time at which the TCP connection must be open.
    pub(crate) deadline: Monotonic,
    /// Index of the address of a name that is tried first.
    pub(crate) address: usize,
    /// True if a port in use may be released by another session of this agent.
    pub(crate) waits_for_ports: bool,
    /// Time that sessions whose sockets are open wait for others, nanoseconds.
    pub(crate) socket_wait_ns: u64,
    /// True if requests name the ends of the control connection instead of zeros.
    pub(crate) sends_addresses: bool,
}

/// Time for which a stopped session waits for replies to the probes in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grace {
    /// Until each is answered or lost.
    LossTimeout,
    /// Short time, because a caller waits; abandoned probes do not count as lost.
    Short,
}

/// Operation of the driver. One is in progress at a time; its time is bounded, and it ends with an
/// input unless it is abandoned.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Resolves the address of the server within the response timeout.
    Resolve(Arc<ControlConnection>),
    /// Opens the TCP connection to the first address that accepts it.
    Connect { config: Arc<ControlConnection>, addresses: Vec<SocketAddr>, limit_ns: u64 },
    /// Negotiates sessions over the open TCP connection and starts them.
    Negotiate {
        config: Arc<ControlConnection>,
        names: Vec<String>,
        extensions: Extensions,
        context: AttemptContext,
    },
    /// Opens the sockets of sessions that need no negotiation.
    OpenUnnegotiated {
        config: Arc<ControlConnection>,
        names: Vec<String>,
        context: AttemptContext,
        /// True if other sessions wait for these from the beginning.
        others_wait: bool,
    },
    /// Opens the sockets of sessions that are then requested.
    OpenSockets { config: Arc<ControlConnection>, names: Vec<String>, context: AttemptContext },
    /// Lets all sessions finish their tests and close their sockets.
    PauseSessions,
    /// Stops the tests of these sessions, or of all.
    StopSessions {
        /// Sessions to stop; `None` for all.
        names: Option<Vec<String>>,
        grace: Grace,
    },
    /// Stops and requests sessions over the open control connection: individually if the server
    /// supports it, otherwise all are stopped. Sessions that [`Operation::OpenSockets`] opened are
    /// included.
    Request {
        config: Arc<ControlConnection>,
        names: Vec<String>,
        stop: Vec<Sid>,
        context: AttemptContext,
    },
    /// Sends Stop-Sessions and closes the control connection.
    Close,
}

/// Command to all sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionCommand {
    /// The connection is lost, or one more attempt failed.
    Down(FailureCause, u64),
    /// The connection is closed until the next test is due.
    Park,
    /// Measures nothing until a manual start.
    Idle,
    /// Begins a new run of `test_count` tests.
    Restart,
}

/// Action of the driver. Actions are carried out in their order.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Begin(Operation),
    /// Drops the operation in progress, with the control connection if it uses it.
    Abandon,
    /// Drops the control connection without a message.
    Drop,
    /// Applies a configuration: ends removed sessions, creates new ones, and configures the others.
    ConfigureSessions(Arc<ControlConnection>),
    EndSessions,
    /// Passes the sessions that an operation opened to their threads.
    Start(Vec<String>),
    /// Sends a command to all sessions.
    Command(SessionCommand),
    /// Reports to a session that it was not started.
    Decline {
        name: String,
        failure: Failure,
        /// Number of times that the session was declined, including this time.
        tries: u64,
        /// True if the failure differs from the previous one.
        is_new: bool,
    },
    /// Sets the socket options of the open control connection that can be changed.
    SetSocketOptions(Arc<ControlConnection>),
    /// Watches for other addresses of the DNS names of the sessions while sessions run.
    WatchDns,
    /// Checks whether any reflector can be reached from this host; the failure is the reason for
    /// the check.
    VerifyUnreachable(Failure),
    Event(ConnectionEvent),
    /// Persists the state that survives the process.
    Persist(Remembered),
    Finish,
}
