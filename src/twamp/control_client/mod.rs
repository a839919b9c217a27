//! Control-Client of one control connection (RFC 5357 §3), from the greeting to the end of the
//! sessions. One instance serves one TCP connection.

mod error;
mod individual;
mod other_protocol;
mod types;

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::message_buffer::MessageBuffer;
use crate::{
    time::{Monotonic, NtpTimestamp},
    wire::{
        codes::{Accept, Command, Modes, Sid, TypeP},
        control::{StartAck, StartSessions, StopSessions},
        crypto::{BLOCK_OCTETS, Opener, Sealer, TokenKey},
        format::PacketFormat,
        greeting::{ServerGreeting, ServerStart, SetUpResponse},
        request::{AcceptSession, RequestTwSession},
    },
};

pub use error::ClientError;
pub use other_protocol::{FOREIGN_REQUEST, name_other_protocol};
pub use types::{AcceptedSession, ClientAction, ClientOptions, SessionRequest};

/// Largest modes value of a genuine greeting that lacks the wanted mode. A larger value shows that
/// the message is no greeting, because modes are assigned from the lowest bit on (IANA
/// "TWAMP-Modes").
const MAX_MODES: u32 = 0xffff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Deriving,
    ServerStart,
    /// Waiting for Accept-Session of the request with this index.
    Accept(usize),
    StartAck,
    Running,
    StopAck,
    Stopped,
}

/// Progress of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Connected and waiting for Server-Greeting.
    Greeting,
    /// Mode chosen, waiting for Server-Start.
    SetUp,
    /// Requesting the test sessions.
    Request,
    /// Starting the accepted sessions.
    Start,
    /// All sessions are started.
    Running,
}

/// State machine of a Control-Client.
#[derive(Debug)]
pub struct ControlClient {
    state: State,
    stage: Stage,
    server_start_time: NtpTimestamp,
    options: ClientOptions,
    requests: Vec<SessionRequest>,
    greeting: Option<ServerGreeting>,
    deadline: Option<Monotonic>,
    mode: Modes,
    /// Sessions accepted and not yet stopped.
    accepted: Vec<Sid>,
    /// Accepted sessions that Start-N-Sessions has not yet named.
    unstarted: Vec<Sid>,
    /// Sessions named in Start-N-Sessions or Stop-N-Sessions and not yet acknowledged.
    unacknowledged: Vec<Sid>,
    /// Set while sessions are stopped in order to request others.
    renegotiating: bool,
    /// Boxed: large and absent in most connections.
    sealer: Option<Box<Sealer>>,
    input: MessageBuffer,
    actions: VecDeque<ClientAction>,
}

impl ControlClient {
    /// Starts on an open connection.
    pub fn new(requests: Vec<SessionRequest>, options: ClientOptions, now: Monotonic) -> Self {
        Self {
            state: State::Greeting,
            stage: Stage::Greeting,
            server_start_time: NtpTimestamp::default(),
            deadline: Some(now.plus_ns(options.response_timeout_ns)),
            options,
            requests,
            greeting: None,
            mode: Modes::default(),
            accepted: Vec::new(),
            unstarted: Vec::new(),
            unacknowledged: Vec::new(),
            renegotiating: false,
            sealer: None,
            input: MessageBuffer::default(),
            actions: VecDeque::new(),
        }
    }

    /// Returns the chosen mode; 0 before the choice.
    pub fn mode(&self) -> Modes {
        self.mode
    }

    /// Returns the greeting once received.
    pub fn greeting(&self) -> Option<&ServerGreeting> {
        self.greeting.as_ref()
    }

    /// Returns the progress; a failure does not change it.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Returns the Start-Time of the server; zero before Server-Start.
    pub fn server_start_time(&self) -> NtpTimestamp {
        self.server_start_time
    }

    /// Handles octets from the server.
    pub fn handle_input(&mut self, octets: &[u8], now: Monotonic) {
        self.input.push(octets);
        self.advance(now);
    }

    /// Continues after [`ClientAction::DeriveKey`] with the derived key.
    pub fn key_derived(&mut self, key: &TokenKey, now: Monotonic) {
        let (State::Deriving, Some(greeting)) = (self.state, &self.greeting) else { return };
        let ClientOptions { keys, client_iv, key_id, .. } = &self.options;
        let token = key.seal(&greeting.challenge, keys);
        let response = SetUpResponse::protected(self.mode.0, key_id.as_bytes(), token, *client_iv);
        self.send(&response);
        let sealer = Sealer::new(&self.options.keys, self.options.client_iv);
        self.sealer = Some(Box::new(sealer));
        self.enter(State::ServerStart, now);
        self.advance(now);
    }

    /// Handles an expired deadline; called at or after [`Self::poll_deadline`].
    pub fn handle_timeout(&mut self, now: Monotonic) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let awaited = match self.state {
                State::Greeting => "Server-Greeting",
                State::ServerStart => "Server-Start",
                State::Accept(_) => "Accept-Session",
                State::StartAck if self.is_individual() => "Start-N-Ack",
                State::StartAck => "Start-Ack",
                State::StopAck => "Stop-N-Ack",
                State::Deriving | State::Running | State::Stopped => return,
            };
            let other = (self.state == State::Greeting)
                .then(|| name_other_protocol(self.input.clear_octets(), true))
                .flatten();
            self.fail(match other {
                Some(name) => ClientError::OtherProtocol(name),
                None => ClientError::ResponseTimeout(awaited),
            });
        }
    }

    /// Stops sessions and requests others over the same connection. Ends with
    /// [`ClientAction::Started`] or a failure.
    ///
    /// With individual control (RFC 5938) the sessions in `stop` are stopped and all others
    /// continue. Otherwise all are stopped, because a server accepts only Stop-Sessions while
    /// sessions run (RFC 5357 §3.1).
    pub fn renegotiate(&mut self, stop: Vec<Sid>, requests: Vec<SessionRequest>, now: Monotonic) {
        if self.state != State::Running {
            return;
        }
        self.requests = requests;
        self.renegotiating = true;
        let state = if self.is_individual() {
            self.accepted.retain(|sid| !stop.contains(sid));
            if stop.is_empty() {
                self.request(0)
            } else {
                self.send_individual(Command::STOP_N_SESSIONS, stop);
                State::StopAck
            }
        } else {
            let accepted = std::mem::take(&mut self.accepted);
            self.send_sealed(&StopSessions::new(0, accepted.len() as u32));
            self.request(0)
        };
        self.enter(state, now);
    }

    /// Ends the sessions. Stop-Sessions counts all sessions accepted and not yet stopped, expired
    /// ones included (RFC 5357 §3.8).
    pub fn stop(&mut self, now: Monotonic) {
        if self.state != State::Running {
            return;
        }
        self.renegotiating = false;
        let accepted = std::mem::take(&mut self.accepted);
        if self.is_individual() && !accepted.is_empty() {
            self.send_individual(Command::STOP_N_SESSIONS, accepted);
            self.enter(State::StopAck, now);
        } else {
            self.send_sealed(&StopSessions::new(0, accepted.len() as u32));
            self.enter(State::Stopped, now);
            self.actions.push_back(ClientAction::Stopped);
        }
    }

    /// Returns the next action of the driver.
    pub fn poll_action(&mut self) -> Option<ClientAction> {
        self.actions.pop_front()
    }

    /// Returns the time at which a response is overdue.
    pub fn poll_deadline(&self) -> Option<Monotonic> {
        self.deadline
    }

    /// Returns true when sessions are started and stopped individually (RFC 5938).
    pub fn is_individual(&self) -> bool {
        self.mode.contains(Modes::INDIVIDUAL_SESSION_CONTROL)
    }

    fn advance(&mut self, now: Monotonic) {
        loop {
            match self.step() {
                Some(Ok(state)) => self.enter(state, now),
                Some(Err(error)) => return self.fail(error),
                None => return,
            }
        }
    }

    fn enter(&mut self, state: State, now: Monotonic) {
        self.state = state;
        self.stage = match state {
            State::Greeting => Stage::Greeting,
            State::Deriving | State::ServerStart => Stage::SetUp,
            State::Accept(_) => Stage::Request,
            State::StartAck => Stage::Start,
            State::Running | State::StopAck | State::Stopped => Stage::Running,
        };
        let waits = !matches!(state, State::Deriving | State::Running | State::Stopped);
        let derives = state == State::ServerStart && self.mode.is_protected();
        let ClientOptions { response_timeout_ns, key_timeout_ns, .. } = self.options;
        let limit_ns = if derives { key_timeout_ns } else { response_timeout_ns };
        self.deadline = waits.then(|| now.plus_ns(limit_ns));
    }

    /// Handles one message; `None` if none is complete or expected.
    fn step(&mut self) -> Option<Result<State, ClientError>> {
        match self.state {
            State::Greeting => match name_other_protocol(self.input.clear_octets(), false) {
                Some(name) => Some(Err(ClientError::OtherProtocol(name))),
                None => self.input.pop_clear().map(|m| self.handle_greeting(m)),
            },
            State::ServerStart => self.input.pop_clear().map(|m| self.server_start(&m)),
            State::Accept(index) => self.input.pop().map(|m| self.accept(index, &m?)),
            State::StartAck if self.is_individual() => self.individual_ack(Command::START_N_ACK),
            State::StartAck => self.input.pop().map(|m| self.start_ack(&m?)),
            State::StopAck => self.individual_ack(Command::STOP_N_ACK),
            State::Running if self.input.is_empty() => None,
            State::Running => Some(Err(ClientError::Unexpected(self.input.clear()))),
            // Some servers respond to a late Stop-Sessions; the connection is closed anyway.
            State::Deriving | State::Stopped => None,
        }
    }

    fn handle_greeting(&mut self, greeting: ServerGreeting) -> Result<State, ClientError> {
        let offered = Modes(greeting.modes.get());
        let count = greeting.count.get();
        let (salt, ClientOptions { security, extensions, maximum_count: maximum, .. }) =
            (greeting.salt, &self.options);
        self.greeting = Some(greeting);
        if offered.0 == 0 {
            return Err(ClientError::ServiceRefused);
        }
        if !offered.contains(*security) {
            if offered.0 > MAX_MODES {
                return Err(ClientError::NoGreeting(offered.0));
            }
            return Err(ClientError::NoCommonMode { offered, wanted: *security });
        }
        self.mode = security.or(extensions.and(offered));
        if !security.is_protected() {
            self.send(&SetUpResponse::unauthenticated(self.mode.0));
            return Ok(State::ServerStart);
        }
        if !(1..=*maximum).contains(&count) {
            return Err(ClientError::Count { count, maximum: *maximum });
        }
        self.actions.push_back(ClientAction::DeriveKey { salt, count });
        Ok(State::Deriving)
    }

    fn server_start(&mut self, start: &ServerStart) -> Result<State, ClientError> {
        let protected = self.mode.is_protected();
        match Accept::received(start.accept) {
            Accept::OK => {}
            refused @ Accept::FAILURE if protected => {
                return Err(ClientError::KeyRejected(refused));
            }
            refused => return Err(ClientError::ConnectionRejected(refused)),
        }
        let mut start_time = start.start_time.get();
        if protected {
            let mut opener = Opener::new(&self.options.keys, start.server_iv);
            let mut block = [0; BLOCK_OCTETS];
            block.copy_from_slice(&start.as_bytes()[ServerStart::CLEAR_OCTETS..]);
            opener.decrypt(&mut block);
            opener.add_part(&block);
            self.input.protect(opener);
            start_time = block.iter().take(8).fold(0, |time, octet| time << 8 | u64::from(*octet));
        }
        self.server_start_time = NtpTimestamp(start_time);
        Ok(self.request(0))
    }

    /// Sends the request with this index; after the last one, starts the sessions.
    fn request(&mut self, index: usize) -> State {
        let Some(session) = self.requests.get(index) else {
            return self.start();
        };
        let format = PacketFormat::negotiated(self.mode, Some(&self.options.keys), Sid::default());
        let padding = usize::from(session.data_size).saturating_sub(format.probe_octets());
        let mut request = RequestTwSession::new(session.sender_address, session.receiver_address);
        request.sender_port = session.sender_port.into();
        request.receiver_port = session.receiver_port.into();
        request.padding_length = (padding as u32).into();
        request.timeout = (((u128::from(session.timeout_ns) << 32) / 1_000_000_000) as u64).into();
        request.type_p = TypeP::from_dscp(session.dscp).0.into();
        if self.mode.contains(Modes::REFLECT_OCTETS) {
            request.reflected_octets = self.options.reflected_octets.into();
            request.reflected_length = session.reflected_length.into();
        }
        self.send_sealed(&request);
        State::Accept(index)
    }

    /// Starts the accepted sessions.
    fn start(&mut self) -> State {
        let unstarted = std::mem::take(&mut self.unstarted);
        if self.is_individual() && unstarted.is_empty() {
            // No session is to be started, because sessions were only stopped.
            return self.all_started();
        }
        if self.is_individual() {
            self.send_individual(Command::START_N_SESSIONS, unstarted);
        } else {
            self.send_sealed(&StartSessions::new());
        }
        State::StartAck
    }

    fn accept(&mut self, index: usize, answer: &AcceptSession) -> Result<State, ClientError> {
        let accept = Accept::received(answer.accept);
        if accept != Accept::OK {
            let others_run = self.renegotiating && self.is_individual();
            if index + 1 == self.requests.len() && self.accepted.is_empty() && !others_run {
                return Err(ClientError::SessionRejected { index, accept });
            }
            self.actions.push_back(ClientAction::Refused(index, accept));
            return Ok(self.request(index + 1));
        }
        let port = answer.port.get();
        if port == 0 {
            return Err(ClientError::NoPort { index });
        }
        let mut server_octets = None;
        if self.mode.contains(Modes::REFLECT_OCTETS) {
            let (sent, received) = (self.options.reflected_octets, answer.reflected_octets.get());
            if sent != received {
                return Err(ClientError::ReflectedOctets { index, sent, received });
            }
            let octets = answer.server_octets.get();
            server_octets = (octets != 0).then(|| octets.to_be_bytes());
        }
        let sid = Sid(answer.sid);
        // The SID must be unique if it names sessions in commands or derives keys.
        let matters = self.is_individual() || self.mode.is_protected();
        if matters && self.accepted.contains(&sid) {
            return Err(ClientError::RepeatedSid { index });
        }
        self.accepted.push(sid);
        self.unstarted.push(sid);
        let keys = self.mode.is_protected().then_some(&self.options.keys);
        let format = PacketFormat::negotiated(self.mode, keys, sid);
        let session = AcceptedSession { index, port, sid, format, server_octets };
        self.actions.push_back(ClientAction::Accepted(session));
        Ok(self.request(index + 1))
    }

    fn start_ack(&mut self, ack: &StartAck) -> Result<State, ClientError> {
        match Accept::received(ack.accept) {
            Accept::OK => Ok(self.all_started()),
            refused => Err(ClientError::StartRejected(refused)),
        }
    }

    fn all_started(&mut self) -> State {
        self.renegotiating = false;
        self.actions.push_back(ClientAction::Started);
        State::Running
    }

    fn send_sealed(&mut self, message: &(impl IntoBytes + zerocopy::Immutable)) {
        self.send_octets(message.as_bytes().to_vec());
    }

    fn send_octets(&mut self, mut message: Vec<u8>) {
        if let Some(sealer) = &mut self.sealer {
            sealer.seal(&mut message);
        }
        self.actions.push_back(ClientAction::Send(message));
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
