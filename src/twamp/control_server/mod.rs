//! Server of one control connection (RFC 5357 §3).
//!
//! The machine implements the protocol and its states. Resources (ports, limits, policy, key
//! derivation) belong to the driver, which answers each request.

mod commands;
mod error;
mod sessions;
mod set_up;

use std::{collections::VecDeque, net::IpAddr};

use zerocopy::IntoBytes;

use super::message_buffer::MessageBuffer;
use crate::{
    time::{Monotonic, NtpTimestamp},
    wire::{
        Layout,
        codes::{Accept, Command, Modes, Sid},
        control::{StartAck, StartSessions, StopSessions},
        crypto::{Sealer, SessionKeys},
        format::PacketFormat,
        greeting::{ServerGreeting, SetUpResponse},
        request::AcceptSession,
    },
};
use sessions::Sessions;

pub use error::ServerError;

/// Time limit to complete a message after its first octet.
const MESSAGE_COMPLETION_NS: u64 = 30_000_000_000;
/// Time limit of Set-Up-Response after the greeting.
const SET_UP_NS: u64 = 60_000_000_000;

/// Configuration of a server and its random octets.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Offered security modes and extensions.
    pub offered: Modes,
    /// Iteration count of key derivation; a power of two of at least 1024 (RFC 4656 §3.1).
    pub count: u32,
    /// Start-Time of the server, the same for all connections.
    pub start_time: NtpTimestamp,
    /// SERVWAIT in nanoseconds; 0 disables it.
    pub inactivity_timeout_ns: u64,
    /// Random challenge of the greeting.
    pub challenge: [u8; 16],
    /// Random salt of the greeting.
    pub salt: [u8; 16],
    /// Random initialisation vector of Server-Start.
    pub server_iv: [u8; 16],
}

/// A test session requested by a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedSession {
    /// IP version, 4 or 6.
    pub ip_version: u8,
    /// Address of the sender; `None` means the client address of the control connection.
    pub sender_address: Option<IpAddr>,
    /// UDP port of the sender.
    pub sender_port: u16,
    /// Address of the reflector; `None` means the server address of the control connection.
    pub receiver_address: Option<IpAddr>,
    /// Requested UDP port of the reflector.
    pub receiver_port: u16,
    /// Octets of padding in each probe.
    pub padding_length: u32,
    /// Time for which packets are reflected after Stop-Sessions, nanoseconds.
    pub timeout_ns: u64,
    /// DSCP of the replies.
    pub dscp: u8,
}

/// An action for the driver.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerAction {
    /// Write octets to the connection.
    Send(Vec<u8>),
    /// Derive the keys of all secrets with this KeyID, which is slow, and pass them to
    /// [`ControlServer::authenticate`].
    DeriveKeys {
        /// KeyID of the client; arbitrary octets.
        key_id: Vec<u8>,
        /// Salt of the greeting.
        salt: [u8; 16],
        /// Iteration count of the greeting.
        count: u32,
    },
    /// Allocate a session, then call [`ControlServer::answer_request`].
    Request(RequestedSession),
    /// Record that a session request was refused because of its content; the text describes the
    /// reason.
    Refused(Accept, String),
    /// Start these sessions, then call [`ControlServer::sessions_started`].
    Start(Vec<Sid>),
    /// Let these sessions drain for their timeout.
    Stop(Vec<Sid>),
    /// Close the connection; its sessions end.
    Close(ServerError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SetUp,
    Deriving,
    Request,
    /// Waiting for the driver's answer to a request with these octets to be reflected (RFC 6038
    /// §4.2).
    Answering(u16),
    Starting,
    Running,
    Closed,
}

/// State machine of a Server.
#[derive(Debug)]
pub struct ControlServer {
    state: State,
    options: ServerOptions,
    mode: Modes,
    /// Response of the client that is being authenticated.
    response: Option<SetUpResponse>,
    keys: Option<SessionKeys>,
    last_input: Monotonic,
    /// Arrival time of the first octet of an incomplete message.
    partial_since: Option<Monotonic>,
    sessions: Sessions,
    /// Boxed: large and absent in most connections.
    sealer: Option<Box<Sealer>>,
    input: MessageBuffer,
    actions: VecDeque<ServerAction>,
}

impl ControlServer {
    /// Starts on a new connection by sending the greeting.
    pub fn new(options: ServerOptions, now: Monotonic) -> Self {
        let ServerOptions { offered, challenge, salt, count, .. } = options;
        let mut server = Self {
            state: State::SetUp,
            options,
            mode: Modes::default(),
            response: None,
            keys: None,
            last_input: now,
            partial_since: None,
            sessions: Sessions::default(),
            sealer: None,
            input: MessageBuffer::default(),
            actions: VecDeque::new(),
        };
        server.send(&ServerGreeting::new(offered.0, challenge, salt, count));
        server
    }

    /// Returns the chosen mode; 0 before the choice.
    pub fn mode(&self) -> Modes {
        self.mode
    }

    /// Returns true while sessions are started.
    pub fn is_running(&self) -> bool {
        self.sessions.any_started()
    }

    /// Returns the format of the test packets of a session.
    pub fn format(&self, sid: Sid) -> PacketFormat {
        PacketFormat::negotiated(self.mode, self.keys.as_ref(), sid)
    }

    /// Handles octets from the client.
    pub fn handle_input(&mut self, octets: &[u8], now: Monotonic) {
        self.last_input = now;
        if self.state == State::Closed {
            return;
        }
        self.input.push(octets);
        self.advance(now);
    }

    /// Changes SERVWAIT, counted from the latest input; 0 disables it.
    pub fn set_inactivity_timeout(&mut self, nanoseconds: u64) {
        self.options.inactivity_timeout_ns = nanoseconds;
    }

    /// Handles the end of the client's stream.
    pub fn handle_end(&mut self) {
        let error =
            if self.has_truncated_stop() { ServerError::BrokenStop } else { ServerError::Ended };
        self.close(error);
    }

    /// Completes [`ServerAction::Request`] with port and SID, or a refusal.
    pub fn answer_request(&mut self, answer: Result<(u16, Sid), Accept>, now: Monotonic) {
        let State::Answering(reflected) = self.state else { return };
        match answer {
            Ok((port, sid)) => {
                self.sessions.accept(sid);
                let mut answer = AcceptSession::new(Accept::OK.0, port, sid.0);
                answer.reflected_octets = reflected.into();
                self.send_sealed(answer.as_bytes().to_vec());
            }
            Err(accept) => self.send_refusal(accept),
        }
        self.state = self.idle_state();
        self.advance(now);
    }

    /// Continues after [`ServerAction::Start`] once the sessions run.
    pub fn sessions_started(&mut self, now: Monotonic) {
        if self.state != State::Starting {
            return;
        }
        if !self.is_individual() {
            self.send_sealed(StartAck::new(Accept::OK.0).as_bytes().to_vec());
        }
        self.state = self.idle_state();
        self.advance(now);
    }

    /// Records that REFWAIT ended a session. Stop-Sessions still counts it.
    pub fn session_expired(&mut self, sid: Sid, now: Monotonic) {
        self.sessions.expire(sid);
        if !self.sessions.any_started() {
            // SERVWAIT restarts (RFC 5357 §3.1).
            self.last_input = now;
        }
    }

    /// Handles an expired deadline; called at or after [`Self::poll_deadline`].
    pub fn handle_timeout(&mut self, now: Monotonic) {
        let Some((deadline, error)) = self.deadline() else { return };
        if deadline <= now {
            let is_stop = self.has_truncated_stop();
            self.close(if is_stop { ServerError::BrokenStop } else { error });
        }
    }

    /// Returns the time of the next [`Self::handle_timeout`].
    pub fn poll_deadline(&self) -> Option<Monotonic> {
        self.deadline().map(|(deadline, _)| deadline)
    }

    /// Returns the next action of the driver.
    pub fn poll_action(&mut self) -> Option<ServerAction> {
        self.actions.pop_front()
    }

    fn is_individual(&self) -> bool {
        self.mode.contains(Modes::INDIVIDUAL_SESSION_CONTROL)
    }

    /// Returns the state in which commands are accepted: with individual control any command at
    /// any time, otherwise only Stop-Sessions while sessions run.
    fn idle_state(&self) -> State {
        let running = !self.is_individual() && self.sessions.started_together();
        if running { State::Running } else { State::Request }
    }

    fn deadline(&self) -> Option<(Monotonic, ServerError)> {
        let partial = self
            .partial_since
            .map(|since| (since.plus_ns(MESSAGE_COMPLETION_NS), ServerError::Incomplete));
        let servwait_ns = self.options.inactivity_timeout_ns;
        let idle = match self.state {
            State::Closed => return None,
            State::SetUp => Some((self.last_input.plus_ns(SET_UP_NS), ServerError::Incomplete)),
            // Suspended while sessions run.
            _ if self.sessions.any_started() || servwait_ns == 0 => None,
            State::Deriving
            | State::Request
            | State::Answering(_)
            | State::Starting
            | State::Running => Some((self.last_input.plus_ns(servwait_ns), ServerError::Inactive)),
        };
        partial.into_iter().chain(idle).min_by_key(|(deadline, _)| *deadline)
    }

    fn advance(&mut self, now: Monotonic) {
        while self.step() {
            self.partial_since = None;
        }
        let waits = matches!(self.state, State::SetUp | State::Request | State::Running);
        // Input that arrives while a request is being answered is not handled yet, and therefore
        // not late.
        let partial = waits && !self.input.is_empty();
        self.partial_since = if partial { self.partial_since.or(Some(now)) } else { None };
    }

    /// Handles one message; false if none can be handled now.
    fn step(&mut self) -> bool {
        let handled = match self.state {
            State::SetUp => self.input.pop_clear().map(|response| self.set_up(response)),
            State::Request | State::Running => {
                self.input.command().and_then(|command| self.command(Command(command)))
            }
            State::Deriving | State::Answering(_) | State::Starting | State::Closed => None,
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

    /// Handles a command; `None` until it is complete.
    fn command(&mut self, command: Command) -> Option<Result<(), ServerError>> {
        let individual = self.is_individual();
        match command {
            Command::REQUEST_TW_SESSION if self.state == State::Request => {
                Some(self.input.pop()?.map_err(ServerError::from).map(|r| self.handle_request(&r)))
            }
            Command::START_SESSIONS if self.state == State::Request && !individual => {
                Some(self.input.pop()?.map_err(ServerError::from).map(|_: StartSessions| {
                    self.state = State::Starting;
                    self.actions.push_back(ServerAction::Start(self.sessions.start_all()));
                }))
            }
            Command::STOP_SESSIONS if self.state == State::Running => {
                Some(self.input.pop()?.map_err(ServerError::from).and_then(|s| self.stop(&s)))
            }
            Command::START_N_SESSIONS | Command::STOP_N_SESSIONS if individual => {
                self.handle_individual(command)
            }
            // The start of the next message is unknown after an unknown command: refuse once and
            // close. With keys, only an authentic command gets a response.
            Command(other) if self.state == State::Request => {
                if self.sealer.is_some()
                    && let Err(error) = self.input.pop_octets(StartSessions::SIZE)?
                {
                    return Some(Err(error.into()));
                }
                self.refuse(Accept::NOT_SUPPORTED, format!("command {other}"));
                Some(Err(ServerError::Command(other)))
            }
            Command(other) => Some(Err(ServerError::Command(other))),
        }
    }

    fn stop(&mut self, stop: &StopSessions) -> Result<(), ServerError> {
        let (received, expected) = (stop.sessions.get(), self.sessions.len());
        self.actions.push_back(ServerAction::Stop(self.sessions.stop_all()));
        // The connection ends (RFC 4656 §3.8), but packets in flight are still reflected: some
        // clients send a wrong number with a normal stop.
        if received != expected {
            return Err(ServerError::WrongSessionCount { received, expected });
        }
        self.state = State::Request;
        Ok(())
    }

    /// Refuses a command for its content.
    fn refuse(&mut self, accept: Accept, detail: String) {
        self.actions.push_back(ServerAction::Refused(accept, detail));
        self.send_refusal(accept);
    }

    /// Sends a refusal, which carries port 0 (RFC 5357 §3.5) and leaves the connection open.
    fn send_refusal(&mut self, accept: Accept) {
        self.send_sealed(AcceptSession::new(accept.0, 0, [0; 16]).as_bytes().to_vec());
    }

    fn send_sealed(&mut self, mut message: Vec<u8>) {
        if let Some(sealer) = &mut self.sealer {
            sealer.seal(&mut message);
        }
        self.actions.push_back(ServerAction::Send(message));
    }

    fn send(&mut self, message: &(impl IntoBytes + zerocopy::Immutable)) {
        self.actions.push_back(ServerAction::Send(message.as_bytes().to_vec()));
    }

    /// Returns true if a truncated Stop-Sessions was received, which some clients send. In modes
    /// with keys it is invalid without its HMAC.
    fn has_truncated_stop(&self) -> bool {
        self.state == State::Running
            && self.sealer.is_none()
            && self.input.command() == Some(Command::STOP_SESSIONS.0)
    }

    fn close(&mut self, error: ServerError) {
        if error == ServerError::BrokenStop {
            self.actions.push_back(ServerAction::Stop(self.sessions.stop_all()));
        }
        self.state = State::Closed;
        self.actions.push_back(ServerAction::Close(error));
    }
}
