//! The driver of one control connection of the server role.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncWriteExt, Interest},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    place::{Ends, Placed, Way, place},
    registry::{ConnectionEntry, Registry, SessionEnd},
    sockets::Sockets,
};
use crate::{
    model::{Secret, ServerConfig, limits::SERVER_SESSIONS_PER_CONNECTION},
    net::{
        clock, random,
        tcp::{self, TcpStream},
    },
    proto::{EndCause, ServerConnectionState, Word},
    session::{Derivation, modes},
    time::{Monotonic, NtpTimestamp, TimestampFormat},
    twamp::control_server::{
        ControlServer, RequestedSession, ServerAction, ServerError, ServerOptions,
    },
    wire::codes::{Accept, Modes, Sid},
};

const READ_OCTETS: usize = 4096;
/// How often it is looked whether a client has gone that sent what nobody reads yet.
const GONE_EVERY: Duration = Duration::from_millis(20);
/// A client that does not read what it is sent for so long is given up.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// What all connections of the role share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) registry: Arc<Registry>,
    pub(super) sockets: Arc<Sockets>,
    pub(super) config: watch::Receiver<Option<Arc<ServerConfig>>>,
    pub(super) derivation: Arc<Derivation>,
    /// Network interface on which its listener accepts.
    pub(super) interface: Option<String>,
}

/// Why a connection ended.
#[derive(Debug)]
struct Reason(EndCause, String);

impl Reason {
    /// What the kernel says of a socket.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    fn of_socket(error: &io::Error) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => EndCause::Reset,
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => EndCause::KeepaliveTimeout,
            _ => EndCause::ClosedByServer,
        };
        Self(cause, error.to_string())
    }

    /// What this host cannot do.
    fn of_host(error: &io::Error) -> Self {
        Self(EndCause::Server, error.to_string())
    }

    fn of_machine(error: &ServerError) -> Self {
        let cause = match error {
            ServerError::Ended | ServerError::ClientGaveUp => EndCause::ClosedByClient,
            ServerError::BadKey | ServerError::Busy => EndCause::BadKey,
            ServerError::Inactive | ServerError::Incomplete => EndCause::Inactivity,
            ServerError::ModeNotOffered { .. }
            | ServerError::NotGenuine(_)
            | ServerError::TooManySessions { .. }
            | ServerError::Command(_)
            | ServerError::WrongSessionCount { .. }
            | ServerError::BrokenStop => EndCause::ProtocolError,
        };
        Self(cause, error.to_string())
    }
}

struct Connection {
    stream: TcpStream,
    machine: ControlServer,
    entry: ConnectionEntry,
    ends: Ends,
    shared: Shared,
    sessions: Sessions,
    ended_sender: mpsc::Sender<(Sid, SessionEnd)>,
    since: Monotonic,
    deadline: Option<Monotonic>,
    /// Of the key that the client proved to have, or wants to.
    key_id: String,
    /// The secret that it proved to have.
    secret: Option<Secret>,
}

/// The sessions that are accepted or started. They end with the connection, also if its task
/// fails.
#[derive(Default)]
struct Sessions(Vec<Placed>);

impl Drop for Sessions {
    fn drop(&mut self) {
        for session in &self.0 {
            session.reflector.remove(session.sid);
        }
    }
}

/// Serves a connection until it ends or `token` is cancelled. One that is not allowed is closed
/// without a word: a stranger learns nothing, and spends nothing of ours.
pub(super) async fn serve(stream: TcpStream, shared: Shared, token: CancellationToken) {
    let Some(config) = shared.config.borrow().clone() else { return };
    let (Ok(client), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    let ends = Ends { client: canonical(client), local: canonical(local) };
    let entry = match shared.registry.admit(&config, ends.client, ends.local) {
        Ok(entry) => entry,
        Err(cause) => {
            tracing::debug!(client = %ends.client, cause = cause.word(), "refused");
            return;
        }
    };
    if let Err(error) = tcp::prepare_accepted(&stream, config.keepalive) {
        tracing::debug!(client = %ends.client, %error, "cannot prepare a control connection");
        return;
    }
    let options = match options(&config, &shared.registry) {
        Ok(options) => options,
        Err(error) => {
            tracing::error!(client = %ends.client, %error, "cannot greet a client");
            return;
        }
    };
    let now = clock::monotonic();
    let (ended_sender, ended) = mpsc::channel(*SERVER_SESSIONS_PER_CONNECTION.range.end() as usize);
    let mut connection = Connection {
        machine: ControlServer::new(options, now),
        stream,
        entry,
        ends,
        shared,
        sessions: Sessions::default(),
        ended_sender,
        since: now,
        deadline: end_of_life(&config, now),
        key_id: String::new(),
        secret: None,
    };
    tracing::info!(client = %ends.client, "control connection accepted");
    let by_hand = connection.entry.close.clone();
    let Reason(cause, reason) = tokio::select! {
        reason = connection.run(ended) => reason,
        () = by_hand.cancelled() => Reason(EndCause::ClosedByOperator, "it was closed by hand".into()),
        () = token.cancelled() => Reason(EndCause::ClosedByServer, "the server role ends".into()),
    };
    connection.shared.registry.ended(cause);
    tracing::info!(client = %ends.client, reason, "control connection ended");
}

impl Connection {
    /// Takes what is there. The buffer is not part of what waits for it.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_OCTETS];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => self.machine.handle_end(),
            Ok(octets) => self.machine.handle_input(&buffer[..octets], clock::monotonic()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn run(&mut self, mut ended: mpsc::Receiver<(Sid, SessionEnd)>) -> Reason {
        let mut configured = self.shared.config.clone();
        configured.mark_unchanged();
        loop {
            if let Err(reason) = self.carry_out().await {
                return reason;
            }
            self.tell_state();
            let deadline = self.machine.poll_deadline().into_iter().chain(self.deadline).min();
            let due = async {
                match deadline {
                    Some(at) => {
                        sleep(Duration::from_nanos(at.since_ns(clock::monotonic()))).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = self.stream.readable() => {
                    if let Err(error) = ready.and_then(|()| self.read()) {
                        return Reason::of_socket(&error);
                    }
                }
                () = due => {
                    let now = clock::monotonic();
                    if self.deadline.is_some_and(|end| end <= now) {
                        let reason = "max_connection_duration has passed";
                        return Reason(EndCause::MaxDuration, reason.into());
                    }
                    self.machine.handle_timeout(now);
                }
                Some((sid, end)) = ended.recv() => {
                    let known = !self.sessions.take(&[sid]).is_empty();
                    if known && end == SessionEnd::SocketClosed {
                        // Its probes go nowhere: the client is to come again.
                        let reason = "the test port of a session was closed";
                        return Reason(EndCause::ClosedByServer, reason.into());
                    }
                    self.machine.session_expired(sid, clock::monotonic());
                }
                Ok(()) = configured.changed() => {
                    let Some(config) = configured.borrow_and_update().clone() else { continue };
                    self.deadline = end_of_life(&config, self.since);
                    self.machine.set_inactivity_timeout(config.inactivity_timeout_ns);
                    if let Err(error) = tcp::keep_alive(&self.stream, config.keepalive) {
                        tracing::debug!(client = %self.ends.client, %error, "keepalive stays");
                    }
                    if !config.allows(self.ends.client.ip()) {
                        let reason = "its address is in no client_list any more";
                        return Reason(EndCause::ClosedByServer, reason.into());
                    }
                    if self.key_is_gone(&config) {
                        let reason = format!("key {:?} was taken away", self.key_id);
                        return Reason(EndCause::BadKey, reason);
                    }
                }
            }
        }
    }

    /// Does what the machine asks for; an error is the reason for the end.
    async fn carry_out(&mut self) -> Result<(), Reason> {
        while let Some(action) = self.machine.poll_action() {
            match action {
                ServerAction::Send(octets) => self.write(&octets).await?,
                ServerAction::Request(request) => {
                    let answer = self.place(&request).await;
                    self.machine.answer_request(answer, clock::monotonic());
                }
                ServerAction::DeriveKeys { key_id, salt, count } => {
                    self.authenticate(&key_id, salt, count).await?;
                }
                ServerAction::Start(sids) => {
                    for session in self.sessions.0.iter().filter(|s| sids.contains(&s.sid)) {
                        session.reflector.start(session.sid).await;
                    }
                    self.machine.sessions_started(clock::monotonic());
                }
                ServerAction::Stop(sids) => {
                    let now = clock::monotonic();
                    for session in self.sessions.take(&sids) {
                        let until = now.plus_ns(session.drain_ns);
                        session.reflector.drain(session.sid, until).await;
                    }
                }
                ServerAction::Close(error) => {
                    self.shared.registry.closed(&error);
                    return Err(Reason::of_machine(&error));
                }
            }
        }
        Ok(())
    }

    /// Derives the keys of all secrets that go by this name. Whether there are any, and which of
    /// them is right, neither octets nor time tell: for those that are missing, keys of secrets
    /// that nobody has are derived.
    async fn authenticate(
        &mut self,
        key_id: &[u8],
        salt: [u8; 16],
        count: u32,
    ) -> Result<(), Reason> {
        let config = self.shared.config.borrow().clone();
        let keys = config.iter().flat_map(|config| &config.keys);
        let named = keys.filter(|key| key.id.as_bytes() == key_id);
        let mut secrets: Vec<Secret> = named.map(|key| key.secret.clone()).collect();
        let most = config.as_ref().map_or(1, |config| config.most_keys_of_a_name());
        while secrets.len() < most.max(1) {
            let decoy = random::bytes::<32>().map_err(|error| Reason::of_host(&error))?;
            secrets.push(Secret::new(decoy));
        }
        let asker = self.ends.client.ip();
        let derive = self.shared.derivation.derive(asker, secrets.clone(), salt, count);
        let deadline = self.machine.poll_deadline();
        let over = async {
            match self.deadline.into_iter().chain(deadline).min() {
                Some(at) => sleep(Duration::from_nanos(at.since_ns(clock::monotonic()))).await,
                None => std::future::pending().await,
            }
        };
        let derived = tokio::select! {
            () = over => {
                let reason = "its time passed before its key was derived";
                return Err(Reason(EndCause::Inactivity, reason.into()));
            }
            derived = derive => derived,
            // Nothing is worked for whom nobody waits any more.
            () = gone(&self.stream) => {
                let reason = "the client went before its key was derived";
                return Err(Reason(EndCause::ClosedByClient, reason.into()));
            }
        };
        self.key_id = String::from_utf8_lossy(key_id).into_owned();
        let accepted = self.machine.authenticate(derived.as_deref(), clock::monotonic());
        self.shared.registry.key_used(derived.is_some().then_some(accepted.is_some()));
        self.secret = accepted.and_then(|index| secrets.get(index).cloned());
        Ok(())
    }

    /// The secret by which the client came in is configured no more, at least not by this name.
    fn key_is_gone(&self, config: &ServerConfig) -> bool {
        self.secret.as_ref().is_some_and(|secret| {
            !config.keys.iter().any(|key| key.id == self.key_id && key.secret == *secret)
        })
    }

    async fn place(&mut self, request: &RequestedSession) -> Result<(u16, Sid), Accept> {
        // Limits and ports of today, not of when the connection came.
        let config = self.shared.config.borrow().clone().ok_or(Accept::FAILURE)?;
        let (sockets, ended) = (&self.shared.sockets, self.ended_sender.clone());
        let machine = &self.machine;
        let ptp = machine.mode().contains(Modes::PTP_TIMESTAMPS);
        let timestamps = if ptp { config.timestamps } else { TimestampFormat::Ntp };
        let packets = |sid| (machine.format(sid), timestamps);
        let way = Way { ends: self.ends, interface: self.shared.interface.as_deref() };
        let placed = place(&config, sockets, &self.entry, way, (request, &packets), ended).await;
        match placed {
            Ok(placed) => {
                let answer = (placed.reflector.local.port(), placed.sid);
                self.sessions.0.push(placed);
                Ok(answer)
            }
            Err(accept) => {
                tracing::info!(client = %self.ends.client, %accept, ?request, "session refused");
                let detail = format!("UDP port {}: {accept}", request.receiver_port);
                self.shared.registry.session_refused(self.ends.client, accept, detail);
                Err(accept)
            }
        }
    }

    async fn write(&mut self, octets: &[u8]) -> Result<(), Reason> {
        match timeout(WRITE_LIMIT, self.stream.write_all(octets)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Reason::of_socket(&error)),
            Err(_) => {
                let reason = "the client does not read its control connection";
                Err(Reason(EndCause::Inactivity, reason.into()))
            }
        }
    }

    fn tell_state(&self) {
        let mode = self.machine.mode();
        let state = match mode.0 {
            0 => ServerConnectionState::Setup,
            _ if self.machine.is_running() => ServerConnectionState::Running,
            _ => ServerConnectionState::Request,
        };
        self.entry.set(state, mode.0, &self.key_id);
    }
}

/// When a connection that was accepted at `since` has lived long enough.
fn end_of_life(config: &ServerConfig, since: Monotonic) -> Option<Monotonic> {
    let duration_ns = config.max_connection_duration_ns;
    (duration_ns != 0).then(|| since.plus_ns(duration_ns))
}

/// Waits for the end of what the other end sends, which nobody reads meanwhile.
async fn gone(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(Interest::READABLE | Interest::ERROR).await {
        if ready.is_read_closed() || ready.is_error() {
            return;
        }
        // Octets lie there; whether the end follows them is looked at again.
        sleep(GONE_EVERY).await;
    }
}

impl Sessions {
    fn take(&mut self, sids: &[Sid]) -> Vec<Placed> {
        self.0.extract_if(.., |session| sids.contains(&session.sid)).collect()
    }
}

fn options(config: &ServerConfig, registry: &Registry) -> io::Result<ServerOptions> {
    let security = config.authentication_modes.iter().map(|mode| modes::security(*mode));
    let extensions = modes::extensions(config.extensions);
    Ok(ServerOptions {
        offered: security.fold(extensions, Modes::or),
        count: config.key_derivation_count,
        start_time: NtpTimestamp::from_unix(registry.start_time()),
        inactivity_timeout_ns: config.inactivity_timeout_ns,
        challenge: random::bytes()?,
        salt: random::bytes()?,
        server_iv: random::bytes()?,
    })
}
