//! The Server of one control connection (RFC 5357 §3). It decides what RFC and state decide;
//! resources (ports, limits, policy) are the driver's, who answers each request.

use std::{collections::VecDeque, net::IpAddr};

use thiserror::Error;
use zerocopy::IntoBytes;

use super::message_buffer::MessageBuffer;
use crate::{
    time::{Monotonic, NtpTimestamp},
    wire::{
        Layout,
        codes::{Accept, Command, Modes, Sid, TypeP},
        control::{StartAck, StartSessions, StopSessions},
        greeting::{ServerGreeting, ServerStart, SetUpResponse},
        request::{AcceptSession, RequestTwSession},
    },
};

/// PBKDF2 count of the greeting; without meaning in unauthenticated mode, but filled in as real
/// servers do.
const COUNT: u32 = 2048;
/// A message must be complete so long after its first octet.
const MESSAGE_COMPLETION_NS: u64 = 30_000_000_000;
/// The client must have chosen a mode so long after the greeting.
const SET_UP_NS: u64 = 60_000_000_000;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedSession {
    /// IP version, 4 or 6.
    pub ip_version: u8,
    /// `None`: the client's address of the control connection.
    pub sender_address: Option<IpAddr>,
    /// UDP port of the sender.
    pub sender_port: u16,
    /// `None`: the server's address of the control connection.
    pub receiver_address: Option<IpAddr>,
    /// UDP port wanted.
    pub receiver_port: u16,
    /// Octets of padding in each probe.
    pub padding_length: u32,
    /// How long to reflect after Stop-Sessions, nanoseconds.
    pub timeout_ns: u64,
    /// DSCP of the replies.
    pub dscp: u8,
}

/// Why the server closes a connection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ServerError {
    /// Mode 0: the client gave up.
    #[error("the client chose no mode")]
    ClientGaveUp,
    /// A mode that was not offered, or not exactly one.
    #[error("the client chose mode {0:#x}, which was not offered")]
    ModeNotOffered(u32),
    /// A command that is unknown, forbidden, or not allowed now.
    #[error("command {0} is not allowed here")]
    Command(u8),
    /// Number of Sessions in Stop-Sessions.
    #[error("the client stopped {received} sessions; there are {expected}")]
    WrongSessionCount {
        /// In the message.
        received: u32,
        /// Accepted and not yet stopped.
        expected: u32,
    },
    /// Nothing came for SERVWAIT.
    #[error("nothing came for the inactivity timeout")]
    Inactive,
    /// Half a message, or no answer to the greeting.
    #[error("a message was not completed in time")]
    Incomplete,
}

/// What the driver is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerAction {
    /// Write these octets.
    Send(Vec<u8>),
    /// Answer with [`ControlServer::answer_request`].
    Request(RequestedSession),
    /// Start all accepted sessions, then call [`ControlServer::sessions_started`].
    Start,
    /// Let all sessions drain for their timeout.
    Stop,
    /// Close the connection; its sessions end.
    Close(ServerError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SetUp,
    Request,
    /// The driver has a request or a start to answer.
    Answering,
    Running,
    Closed,
}

/// The machine.
#[derive(Debug)]
pub struct ControlServer {
    state: State,
    offered: Modes,
    mode: Modes,
    start_time: NtpTimestamp,
    inactivity_timeout_ns: u64,
    last_input: Monotonic,
    /// When the message that is being received began.
    partial_since: Option<Monotonic>,
    /// Accepted and not yet stopped, those that REFWAIT ended included.
    sessions: u32,
    /// Of those, not ended by REFWAIT.
    alive: u32,
    input: MessageBuffer,
    actions: VecDeque<ServerAction>,
}

impl ControlServer {
    /// For a connection just accepted. `start_time` is that of the server, the same for all;
    /// `challenge` and `salt` are random.
    pub fn new(
        start_time: NtpTimestamp,
        inactivity_timeout_ns: u64,
        challenge: [u8; 16],
        salt: [u8; 16],
        now: Monotonic,
    ) -> Self {
        let mut server = Self {
            state: State::SetUp,
            offered: Modes::UNAUTHENTICATED,
            mode: Modes::default(),
            start_time,
            inactivity_timeout_ns,
            last_input: now,
            partial_since: None,
            sessions: 0,
            alive: 0,
            input: MessageBuffer::default(),
            actions: VecDeque::new(),
        };
        server.send(&ServerGreeting::new(server.offered.0, challenge, salt, COUNT));
        server
    }

    /// The mode in force; 0 before one is chosen.
    pub fn mode(&self) -> u32 {
        self.mode.0
    }

    /// Whether sessions run.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Octets from the client.
    pub fn handle_input(&mut self, octets: &[u8], now: Monotonic) {
        self.last_input = now;
        if self.state == State::Closed {
            return;
        }
        self.input.push(octets);
        self.advance(now);
    }

    /// Answers [`ServerAction::Request`]: the port and identifier, or why not.
    pub fn answer_request(&mut self, answer: Result<(u16, Sid), Accept>, now: Monotonic) {
        self.state = State::Request;
        match answer {
            Ok((port, sid)) => {
                self.sessions += 1;
                self.alive += 1;
                self.send(&AcceptSession::new(Accept::OK.0, port, sid.0));
            }
            Err(accept) => self.refuse(accept),
        }
        self.advance(now);
    }

    /// Answers [`ServerAction::Start`].
    pub fn sessions_started(&mut self, now: Monotonic) {
        self.send(&StartAck::new(Accept::OK.0));
        self.state = State::Running;
        self.advance(now);
    }

    /// REFWAIT ended sessions of this connection. They still count in Stop-Sessions.
    pub fn sessions_expired(&mut self, count: u32, now: Monotonic) {
        self.alive = self.alive.saturating_sub(count);
        if self.alive == 0 {
            // SERVWAIT begins anew (RFC 5357 §3.1).
            self.last_input = now;
        }
    }

    /// Call at or after [`Self::poll_deadline`].
    pub fn handle_timeout(&mut self, now: Monotonic) {
        let Some((deadline, error)) = self.deadline() else { return };
        if deadline <= now {
            self.close(error);
        }
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_deadline(&self) -> Option<Monotonic> {
        self.deadline().map(|(deadline, _)| deadline)
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<ServerAction> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<(Monotonic, ServerError)> {
        let partial = self
            .partial_since
            .map(|since| (since.plus_ns(MESSAGE_COMPLETION_NS), ServerError::Incomplete));
        let idle = match self.state {
            State::Closed => return None,
            State::SetUp => Some((self.last_input.plus_ns(SET_UP_NS), ServerError::Incomplete)),
            // Suspended while sessions run.
            State::Running if self.alive > 0 => None,
            State::Request | State::Answering | State::Running
                if self.inactivity_timeout_ns == 0 =>
            {
                None
            }
            State::Request | State::Answering | State::Running => {
                Some((self.last_input.plus_ns(self.inactivity_timeout_ns), ServerError::Inactive))
            }
        };
        partial.into_iter().chain(idle).min_by_key(|(deadline, _)| *deadline)
    }

    fn advance(&mut self, now: Monotonic) {
        while self.step() {
            self.partial_since = None;
        }
        self.partial_since = match self.state {
            // What waits behind a request being answered is not late.
            State::Closed | State::Answering => None,
            State::SetUp | State::Request | State::Running if self.input.is_empty() => None,
            State::SetUp | State::Request | State::Running => self.partial_since.or(Some(now)),
        };
    }

    /// Handles one message; `false` when there is none to be handled now.
    fn step(&mut self) -> bool {
        let handled = match self.state {
            State::SetUp => self.input.take().map(|response| self.set_up(&response)),
            State::Request | State::Running => {
                self.input.first().and_then(|command| self.command(Command(command)))
            }
            State::Answering | State::Closed => None,
        };
        match handled {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                self.close(error);
                false
            }
            None => false,
        }
    }

    fn set_up(&mut self, response: &SetUpResponse) -> Result<(), ServerError> {
        let mode = Modes(response.mode.get());
        if mode.security().0 == 0 {
            return Err(ServerError::ClientGaveUp);
        }
        if !self.offered.contains(mode) || mode.security().0.count_ones() != 1 {
            self.send(&ServerStart::unauthenticated(Accept::NOT_SUPPORTED.0, 0));
            return Err(ServerError::ModeNotOffered(mode.0));
        }
        self.mode = mode;
        self.send(&ServerStart::unauthenticated(Accept::OK.0, self.start_time.0));
        self.state = State::Request;
        Ok(())
    }

    /// Handles a command; `None` until all of it is here.
    fn command(&mut self, command: Command) -> Option<Result<(), ServerError>> {
        match (self.state, command) {
            (State::Request, Command::REQUEST_TW_SESSION) => {
                self.input.take().map(|request| self.request(&request))
            }
            (State::Request, Command::START_SESSIONS) => {
                let _: StartSessions = self.input.take()?;
                self.state = State::Answering;
                self.actions.push_back(ServerAction::Start);
                Some(Ok(()))
            }
            (State::Running, Command::STOP_SESSIONS) => {
                self.input.take().map(|stop| self.stop(&stop))
            }
            // Where the next message begins cannot be known: answer once and close.
            (State::Request, Command(other)) => {
                (self.input.len() >= StartSessions::SIZE).then(|| {
                    self.refuse(Accept::NOT_SUPPORTED);
                    Err(ServerError::Command(other))
                })
            }
            (_, Command(other)) => Some(Err(ServerError::Command(other))),
        }
    }

    fn request(&mut self, request: &RequestTwSession) -> Result<(), ServerError> {
        let dscp = TypeP(request.type_p.get()).dscp();
        let forbidden = request.conf_sender != 0
            || request.conf_receiver != 0
            || request.schedule_slots.get() != 0
            || request.packets.get() != 0
            || !matches!(request.ipvn(), 4 | 6)
            || request.sender_port.get() == 0;
        match dscp {
            Some(dscp) if !forbidden => {
                self.state = State::Answering;
                let timeout_ns = (u128::from(request.timeout.get()) * 1_000_000_000) >> 32;
                self.actions.push_back(ServerAction::Request(RequestedSession {
                    ip_version: request.ipvn(),
                    sender_address: request.sender_address(),
                    sender_port: request.sender_port.get(),
                    receiver_address: request.receiver_address(),
                    receiver_port: request.receiver_port.get(),
                    padding_length: request.padding_length.get(),
                    timeout_ns: timeout_ns as u64,
                    dscp,
                }));
            }
            _ => self.refuse(Accept::NOT_SUPPORTED),
        }
        Ok(())
    }

    fn stop(&mut self, stop: &StopSessions) -> Result<(), ServerError> {
        let (received, expected) = (stop.sessions.get(), self.sessions);
        if received != expected {
            return Err(ServerError::WrongSessionCount { received, expected });
        }
        (self.sessions, self.alive) = (0, 0);
        self.state = State::Request;
        self.actions.push_back(ServerAction::Stop);
        Ok(())
    }

    /// A refusal carries port 0 (RFC 5357 §3.5) and leaves the connection open.
    fn refuse(&mut self, accept: Accept) {
        self.send(&AcceptSession::new(accept.0, 0, [0; 16]));
    }

    fn send(&mut self, message: &(impl IntoBytes + zerocopy::Immutable)) {
        self.actions.push_back(ServerAction::Send(message.as_bytes().to_vec()));
    }

    fn close(&mut self, error: ServerError) {
        self.state = State::Closed;
        self.actions.push_back(ServerAction::Close(error));
    }
}
