//! The Control-Client of one control connection (RFC 5357 §3), from the greeting to
//! Stop-Sessions. One instance for one TCP connection.

use std::{collections::VecDeque, net::IpAddr};

use thiserror::Error;
use zerocopy::IntoBytes;

use super::message_buffer::MessageBuffer;
use crate::{
    time::Monotonic,
    wire::{
        codes::{Accept, Modes, Sid, TypeP},
        control::{StartAck, StartSessions, StopSessions},
        greeting::{ServerGreeting, ServerStart, SetUpResponse},
        request::{AcceptSession, RequestTwSession},
    },
};

/// A test session to be asked for.
#[derive(Clone, Copy, Debug)]
pub struct SessionRequest {
    /// Address of the sender; unspecified stands for that of the control connection.
    pub sender_address: IpAddr,
    /// UDP port of the sender.
    pub sender_port: u16,
    /// Address of the reflector; unspecified stands for that of the control connection.
    pub receiver_address: IpAddr,
    /// UDP port wanted at the reflector.
    pub receiver_port: u16,
    /// Octets of padding in each probe.
    pub padding_length: u32,
    /// DSCP of probes and replies.
    pub dscp: u8,
    /// How long the reflector is to answer after Stop-Sessions, nanoseconds.
    pub timeout_ns: u64,
}

/// Why the client gave up.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClientError {
    /// The greeting offers nothing: the server refuses service.
    #[error("the server offers no mode at all: it refuses service")]
    ServiceRefused,
    /// Nothing in the greeting that is configured.
    #[error("the server offers modes {offered:#x}; wanted: {wanted:#x}")]
    NoCommonMode {
        /// Modes of the greeting.
        offered: u32,
        /// Modes that the configuration allows.
        wanted: u32,
    },
    /// Server-Start with a non-zero Accept.
    #[error("the server refused the connection: {0}")]
    ConnectionRejected(Accept),
    /// Accept-Session with a non-zero Accept.
    #[error("the server refused session {index}: {accept}")]
    SessionRejected {
        /// Index of the request.
        index: usize,
        /// Its answer.
        accept: Accept,
    },
    /// Start-Ack with a non-zero Accept.
    #[error("the server refused to start the sessions: {0}")]
    StartRejected(Accept),
    /// Accept-Session with port 0 though accepted.
    #[error("the server accepted session {index} on port 0")]
    NoPort {
        /// Index of the request.
        index: usize,
    },
    /// Something came when nothing was due.
    #[error("the server sent {0} octets that answer nothing")]
    Unexpected(usize),
    /// An answer is overdue.
    #[error("the server did not send its {0} in time")]
    ResponseTimeout(&'static str),
}

/// What the driver is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientAction {
    /// Write these octets.
    Send(Vec<u8>),
    /// The request of this index was accepted.
    Accepted {
        /// Index of the request.
        index: usize,
        /// UDP port of the reflector, which may differ from the one asked for.
        port: u16,
        /// Session identifier.
        sid: Sid,
    },
    /// Start-Ack came: probes may be sent.
    Started,
    /// Close the connection.
    Failed(ClientError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    ServerStart,
    /// Waits for the Accept-Session of this request.
    Accept(usize),
    StartAck,
    Running,
    Stopped,
}

/// The machine.
#[derive(Debug)]
pub struct ControlClient {
    state: State,
    requests: Vec<SessionRequest>,
    response_timeout_ns: u64,
    deadline: Option<Monotonic>,
    mode: Modes,
    accepted: u32,
    input: MessageBuffer,
    actions: VecDeque<ClientAction>,
}

impl ControlClient {
    /// For a connection that is open. Each answer is due within `response_timeout_ns`.
    pub fn new(requests: Vec<SessionRequest>, response_timeout_ns: u64, now: Monotonic) -> Self {
        Self {
            state: State::Greeting,
            requests,
            response_timeout_ns,
            deadline: Some(now.plus_ns(response_timeout_ns)),
            mode: Modes::default(),
            accepted: 0,
            input: MessageBuffer::default(),
            actions: VecDeque::new(),
        }
    }

    /// The mode in force; 0 before one is chosen.
    pub fn mode(&self) -> u32 {
        self.mode.0
    }

    /// Octets from the server.
    pub fn handle_input(&mut self, octets: &[u8], now: Monotonic) {
        self.input.push(octets);
        while self.step(now) {}
    }

    /// Call at or after [`Self::poll_deadline`].
    pub fn handle_timeout(&mut self, now: Monotonic) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let awaited = match self.state {
                State::Greeting => "Server-Greeting",
                State::ServerStart => "Server-Start",
                State::Accept(_) => "Accept-Session",
                State::StartAck => "Start-Ack",
                State::Running | State::Stopped => return,
            };
            self.fail(ClientError::ResponseTimeout(awaited));
        }
    }

    /// Ends the sessions: the count of Stop-Sessions is that of all sessions accepted and not
    /// yet stopped, declined ones included (RFC 5357 §3.8).
    pub fn stop(&mut self) {
        if self.state == State::Running {
            self.send(&StopSessions::new(0, self.accepted));
            self.state = State::Stopped;
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<ClientAction> {
        self.actions.pop_front()
    }

    /// When an answer is overdue.
    pub fn poll_deadline(&self) -> Option<Monotonic> {
        self.deadline
    }

    /// Handles one message; `false` when there is none, or nothing more to be read.
    fn step(&mut self, now: Monotonic) -> bool {
        let advanced = match self.state {
            State::Greeting => self.input.take().map(|m| self.greeting(&m)),
            State::ServerStart => self.input.take().map(|m| self.server_start(&m)),
            State::Accept(index) => self.input.take().map(|m| self.accept(index, &m)),
            State::StartAck => self.input.take().map(|m| self.start_ack(&m)),
            State::Running if self.input.is_empty() => None,
            State::Running => {
                let octets = std::mem::take(&mut self.input).len();
                Some(Err(ClientError::Unexpected(octets)))
            }
            // Some servers answer a late Stop-Sessions; the connection is closed anyway.
            State::Stopped => None,
        };
        match advanced {
            Some(Ok(state)) => {
                self.state = state;
                let waits = !matches!(state, State::Running | State::Stopped);
                self.deadline = waits.then(|| now.plus_ns(self.response_timeout_ns));
                true
            }
            Some(Err(error)) => {
                self.fail(error);
                false
            }
            None => false,
        }
    }

    fn greeting(&mut self, greeting: &ServerGreeting) -> Result<State, ClientError> {
        let offered = Modes(greeting.modes.get());
        if offered.0 == 0 {
            return Err(ClientError::ServiceRefused);
        }
        if !offered.contains(Modes::UNAUTHENTICATED) {
            let wanted = Modes::UNAUTHENTICATED.0;
            return Err(ClientError::NoCommonMode { offered: offered.0, wanted });
        }
        self.mode = Modes::UNAUTHENTICATED;
        self.send(&SetUpResponse::unauthenticated(self.mode.0));
        Ok(State::ServerStart)
    }

    fn server_start(&mut self, start: &ServerStart) -> Result<State, ClientError> {
        match Accept::received(start.accept) {
            Accept::OK => Ok(self.request(0)),
            refused => Err(ClientError::ConnectionRejected(refused)),
        }
    }

    /// Sends the request of this index, or starts the sessions behind the last.
    fn request(&mut self, index: usize) -> State {
        let Some(session) = self.requests.get(index) else {
            self.send(&StartSessions::new());
            return State::StartAck;
        };
        let mut request = RequestTwSession::new(session.sender_address, session.receiver_address);
        request.sender_port = session.sender_port.into();
        request.receiver_port = session.receiver_port.into();
        request.padding_length = session.padding_length.into();
        request.timeout = (((u128::from(session.timeout_ns) << 32) / 1_000_000_000) as u64).into();
        request.type_p = TypeP::from_dscp(session.dscp).0.into();
        self.send(&request);
        State::Accept(index)
    }

    fn accept(&mut self, index: usize, answer: &AcceptSession) -> Result<State, ClientError> {
        let accept = Accept::received(answer.accept);
        if accept != Accept::OK {
            return Err(ClientError::SessionRejected { index, accept });
        }
        if answer.port.get() == 0 {
            return Err(ClientError::NoPort { index });
        }
        self.accepted += 1;
        let (port, sid) = (answer.port.get(), Sid(answer.sid));
        self.actions.push_back(ClientAction::Accepted { index, port, sid });
        Ok(self.request(index + 1))
    }

    fn start_ack(&mut self, ack: &StartAck) -> Result<State, ClientError> {
        match Accept::received(ack.accept) {
            Accept::OK => {
                self.actions.push_back(ClientAction::Started);
                Ok(State::Running)
            }
            refused => Err(ClientError::StartRejected(refused)),
        }
    }

    fn send(&mut self, message: &(impl IntoBytes + zerocopy::Immutable)) {
        self.actions.push_back(ClientAction::Send(message.as_bytes().to_vec()));
    }

    fn fail(&mut self, error: ClientError) {
        self.state = State::Stopped;
        self.deadline = None;
        self.actions.push_back(ClientAction::Failed(error));
    }
}
