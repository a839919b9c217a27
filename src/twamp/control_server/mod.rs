//! The Server of one control connection (RFC 5357 §3). It decides what RFC and state decide;
//! resources (ports, limits, policy, key derivation) are the driver's, who answers each request.

mod error;
mod sessions;

use std::{collections::VecDeque, net::IpAddr};

use zerocopy::IntoBytes;

use super::message_buffer::MessageBuffer;
use crate::{
    time::{Monotonic, NtpTimestamp},
    wire::{
        Layout,
        codes::{Accept, Command, Modes, Sid, TypeP},
        control::{StartAck, StartSessions, StopSessions},
        crypto::{Opener, Sealer, SessionKeys, TokenKey},
        format::PacketFormat,
        greeting::{ServerGreeting, ServerStart, SetUpResponse},
        individual::{self, IndividualHeader},
        request::{AcceptSession, RequestTwSession},
    },
};
use sessions::Sessions;

pub use error::ServerError;

/// A message must be complete so long after its first octet.
const MESSAGE_COMPLETION_NS: u64 = 30_000_000_000;
/// The client must have chosen a mode so long after the greeting.
const SET_UP_NS: u64 = 60_000_000_000;
/// Padding of the longest datagram there is; more than that cannot come.
const LONGEST_PADDING: u32 = 65_507;

/// What the server offers, and the random octets that it needs.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Security modes and extensions.
    pub offered: Modes,
    /// Rounds of key derivation; a power of two from 1024 on (RFC 4656 §3.1).
    pub count: u32,
    /// Start of the server, the same for all.
    pub start_time: NtpTimestamp,
    /// SERVWAIT, nanoseconds; 0 is off.
    pub inactivity_timeout_ns: u64,
    /// Random.
    pub challenge: [u8; 16],
    /// Random.
    pub salt: [u8; 16],
    /// Random.
    pub server_iv: [u8; 16],
}

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

/// What the driver is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerAction {
    /// Write these octets.
    Send(Vec<u8>),
    /// Derive the keys of the secrets that go by this name, which takes its time, and give them to
    /// [`ControlServer::authenticate`].
    DeriveKeys {
        /// KeyID of the client; any octets.
        key_id: Vec<u8>,
        /// Of the greeting.
        salt: [u8; 16],
        /// Of the greeting.
        count: u32,
    },
    /// Answer with [`ControlServer::answer_request`].
    Request(RequestedSession),
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
    /// The driver derives keys.
    Deriving,
    Request,
    /// The driver answers a request that carried these octets (RFC 6038 §4.2).
    Answering(u16),
    /// The driver starts sessions.
    Starting,
    Running,
    Closed,
}

/// The machine.
#[derive(Debug)]
pub struct ControlServer {
    state: State,
    options: ServerOptions,
    mode: Modes,
    /// Of the client that is being authenticated.
    response: Option<SetUpResponse>,
    keys: Option<SessionKeys>,
    last_input: Monotonic,
    /// When the message that is being received began.
    partial_since: Option<Monotonic>,
    sessions: Sessions,
    sealer: Option<Sealer>,
    input: MessageBuffer,
    actions: VecDeque<ServerAction>,
}

impl ControlServer {
    /// For a connection just accepted.
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

    /// The mode in force; 0 before one is chosen.
    pub fn mode(&self) -> Modes {
        self.mode
    }

    /// Whether sessions run.
    pub fn is_running(&self) -> bool {
        self.sessions.any_started()
    }

    /// What the packets of a session look like.
    pub fn format(&self, sid: Sid) -> PacketFormat {
        PacketFormat::negotiated(self.mode, self.keys.as_ref(), sid)
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

    /// Answers [`ServerAction::DeriveKeys`] with the keys of all secrets that the client may mean;
    /// none where it cannot be done now. Whether the client has one of them.
    pub fn authenticate(&mut self, candidates: Option<&[TokenKey]>, now: Monotonic) -> bool {
        let Some(SetUpResponse { token, client_iv, .. }) = self.response.take() else {
            return false;
        };
        let challenge = &self.options.challenge;
        let open = |key: &TokenKey| key.open(&token, challenge);
        // All are tried, also behind the right one: time tells nothing.
        let found = candidates.map(|all| all.iter().filter_map(open).collect::<Vec<_>>());
        let keys = match found.map(|mut keys| keys.pop()) {
            Some(Some(keys)) => keys,
            refused => {
                let busy = refused.is_none();
                let accept = if busy { Accept::TEMPORARY_RESOURCE_LIMIT } else { Accept::FAILURE };
                self.send(&ServerStart::unauthenticated(accept.0, 0));
                self.close(if busy { ServerError::Busy } else { ServerError::BadKey });
                return false;
            }
        };
        let server_iv = self.options.server_iv;
        let mut sealer = Sealer::new(&keys, server_iv);
        let start = ServerStart::protected(server_iv, self.options.start_time.0);
        let mut octets = start.as_bytes().to_vec();
        sealer.seal_part(&mut octets[ServerStart::CLEAR_OCTETS..]);
        self.actions.push_back(ServerAction::Send(octets));
        self.input.protect(Opener::new(&keys, client_iv));
        self.sealer = Some(sealer);
        self.keys = Some(keys);
        self.state = State::Request;
        self.advance(now);
        true
    }

    /// Answers [`ServerAction::Request`]: the port and identifier, or why not.
    pub fn answer_request(&mut self, answer: Result<(u16, Sid), Accept>, now: Monotonic) {
        let State::Answering(reflected) = self.state else { return };
        match answer {
            Ok((port, sid)) => {
                self.sessions.accept(sid);
                let mut answer = AcceptSession::new(Accept::OK.0, port, sid.0);
                answer.reflected_octets = reflected.into();
                self.send_sealed(answer.as_bytes().to_vec());
            }
            Err(accept) => self.refuse(accept),
        }
        self.state = self.resting();
        self.advance(now);
    }

    /// Answers [`ServerAction::Start`].
    pub fn sessions_started(&mut self, now: Monotonic) {
        if self.state != State::Starting {
            return;
        }
        if !self.is_individual() {
            self.send_sealed(StartAck::new(Accept::OK.0).as_bytes().to_vec());
        }
        self.state = self.resting();
        self.advance(now);
    }

    /// REFWAIT ended a session of this connection. It still counts in Stop-Sessions.
    pub fn session_expired(&mut self, sid: Sid, now: Monotonic) {
        self.sessions.expire(sid);
        if !self.sessions.any_started() {
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

    fn is_individual(&self) -> bool {
        self.mode.contains(Modes::INDIVIDUAL_SESSION_CONTROL)
    }

    /// Where commands are waited for: with individual control all of them at any time, otherwise
    /// nothing but Stop-Sessions once sessions run.
    fn resting(&self) -> State {
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
        // What waits behind a request being answered is not late.
        let partial = waits && !self.input.is_empty();
        self.partial_since = if partial { self.partial_since.or(Some(now)) } else { None };
    }

    /// Handles one message; `false` when there is none to be handled now.
    fn step(&mut self) -> bool {
        let handled = match self.state {
            State::SetUp => self.input.take_clear().map(|response| self.set_up(response)),
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

    fn set_up(&mut self, response: SetUpResponse) -> Result<(), ServerError> {
        let (chosen, offered) = (Modes(response.mode.get()), self.options.offered);
        if chosen.security().0 == 0 {
            return Err(ServerError::ClientGaveUp);
        }
        if !offered.contains(chosen) || chosen.security().0.count_ones() != 1 {
            self.send(&ServerStart::unauthenticated(Accept::NOT_SUPPORTED.0, 0));
            return Err(ServerError::ModeNotOffered { chosen, offered });
        }
        self.mode = chosen;
        if chosen.is_protected() {
            self.actions.push_back(ServerAction::DeriveKeys {
                key_id: response.key_id().to_vec(),
                salt: self.options.salt,
                count: self.options.count,
            });
            self.response = Some(response);
            self.state = State::Deriving;
        } else {
            let start_time = self.options.start_time.0;
            self.send(&ServerStart::unauthenticated(Accept::OK.0, start_time));
            self.state = State::Request;
        }
        Ok(())
    }

    /// Handles a command; `None` until all of it is here.
    fn command(&mut self, command: Command) -> Option<Result<(), ServerError>> {
        let individual = self.is_individual();
        match command {
            Command::REQUEST_TW_SESSION if self.state == State::Request => {
                Some(self.input.take()?.map_err(ServerError::from).map(|r| self.request(&r)))
            }
            Command::START_SESSIONS if self.state == State::Request && !individual => {
                Some(self.input.take()?.map_err(ServerError::from).map(|_: StartSessions| {
                    self.state = State::Starting;
                    self.actions.push_back(ServerAction::Start(self.sessions.start_all()));
                }))
            }
            Command::STOP_SESSIONS if self.state == State::Running => {
                Some(self.input.take()?.map_err(ServerError::from).and_then(|s| self.stop(&s)))
            }
            Command::START_N_SESSIONS | Command::STOP_N_SESSIONS if individual => {
                self.individual(command)
            }
            // Where the next message begins cannot be known: answer once and close. Where commands
            // are authentic, one that is not gets no answer.
            Command(other) if self.state == State::Request => {
                if self.sealer.is_some()
                    && let Err(error) = self.input.take_octets(StartSessions::SIZE)?
                {
                    return Some(Err(error.into()));
                }
                self.refuse(Accept::NOT_SUPPORTED);
                Some(Err(ServerError::Command(other)))
            }
            Command(other) => Some(Err(ServerError::Command(other))),
        }
    }

    fn request(&mut self, request: &RequestTwSession) {
        let dscp = TypeP(request.type_p.get()).dscp();
        let padding_length = request.padding_length.get();
        let forbidden = request.conf_sender != 0
            || request.conf_receiver != 0
            || request.schedule_slots.get() != 0
            || request.packets.get() != 0
            || !matches!(request.ipvn(), 4 | 6)
            || request.sender_port.get() == 0
            || padding_length > LONGEST_PADDING
            || !self.reflects(request);
        let Some(dscp) = dscp.filter(|_| !forbidden) else {
            return self.refuse(Accept::NOT_SUPPORTED);
        };
        let reflects = self.mode.contains(Modes::REFLECT_OCTETS);
        self.state = State::Answering(if reflects { request.reflected_octets.get() } else { 0 });
        let timeout_ns = (u128::from(request.timeout.get()) * 1_000_000_000) >> 32;
        self.actions.push_back(ServerAction::Request(RequestedSession {
            ip_version: request.ipvn(),
            sender_address: request.sender_address(),
            sender_port: request.sender_port.get(),
            receiver_address: request.receiver_address(),
            receiver_port: request.receiver_port.get(),
            padding_length,
            timeout_ns: timeout_ns as u64,
            dscp,
        }));
    }

    /// Whether what is to be reflected fits into replies as long as the probes (RFC 6038 §4.3).
    fn reflects(&self, request: &RequestTwSession) -> bool {
        let length = u32::from(request.reflected_length.get());
        if !self.mode.contains(Modes::REFLECT_OCTETS) || length == 0 {
            return true;
        }
        let format = self.format(Sid::default());
        let truncated = (format.reply_octets() - format.probe_octets()) as u32;
        let padding = request.padding_length.get();
        padding > length && padding >= length + truncated
    }

    fn stop(&mut self, stop: &StopSessions) -> Result<(), ServerError> {
        let (received, expected) = (stop.sessions.get(), self.sessions.len());
        if received != expected {
            return Err(ServerError::WrongSessionCount { received, expected });
        }
        self.actions.push_back(ServerAction::Stop(self.sessions.stop_all()));
        self.state = State::Request;
        Ok(())
    }

    /// Start-N-Sessions and Stop-N-Sessions: one ack for each Accept value (RFC 5938 §3).
    fn individual(&mut self, command: Command) -> Option<Result<(), ServerError>> {
        let header: &IndividualHeader = self.input.peek()?;
        let (received, expected) = (header.sessions.get(), self.sessions.len());
        // The length depends on the number: bound before it is waited for. One more than there are
        // may be named, and is refused by name.
        if received > expected + 1 {
            return Some(Err(ServerError::TooManySessions { received, expected }));
        }
        let message = match self.input.take_octets(individual::octets(received as usize))? {
            Ok(message) => message,
            Err(error) => return Some(Err(error.into())),
        };
        let sids = individual::sids(&message);
        let starts = command == Command::START_N_SESSIONS;
        let outcome = if starts { self.sessions.start(&sids) } else { self.sessions.stop(&sids) };
        if starts && !outcome.done.is_empty() {
            self.actions.push_back(ServerAction::Start(outcome.done.clone()));
            self.state = State::Starting;
        } else if !outcome.done.is_empty() {
            self.actions.push_back(ServerAction::Stop(outcome.done.clone()));
        }
        let ack = if starts { Command::START_N_ACK } else { Command::STOP_N_ACK };
        for (accept, sids) in [(Accept::OK, outcome.done), (Accept::NOT_SUPPORTED, outcome.refused)]
        {
            // A command about no session is not affirmed.
            let about_none = received == 0 && accept != Accept::OK;
            if !sids.is_empty() || about_none {
                self.send_sealed(individual::message(ack, accept.0, &sids));
            }
        }
        Some(Ok(()))
    }

    /// A refusal carries port 0 (RFC 5357 §3.5) and leaves the connection open.
    fn refuse(&mut self, accept: Accept) {
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

    fn close(&mut self, error: ServerError) {
        self.state = State::Closed;
        self.actions.push_back(ServerAction::Close(error));
    }
}
