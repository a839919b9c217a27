//! Driver of one control connection of the server role.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncWriteExt, Interest},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use zerocopy::IntoBytes;

use super::{
    allocate::{Allocation, Ends, PathInfo, allocate},
    registry::{ConnectionEntry, ConnectionRefusal, Registry, SessionEnd, SessionRefusal},
    sockets::Sockets,
};
use crate::{
    model::{Secret, ServerConfig, limits::SERVER_SESSIONS_PER_CONNECTION},
    net::{
        canonical, clock, random,
        tcp::{self, TcpStream},
    },
    proto::{EndCause, RefusalCause, ServerConnectionState, Word},
    session::{Derivation, modes, wait_until},
    time::{Monotonic, NtpTimestamp, TimestampFormat},
    twamp::control_server::{
        ControlServer, RequestedSession, ServerAction, ServerError, ServerOptions,
    },
    wire::{
        codes::{Accept, Modes, Sid},
        greeting::ServerGreeting,
    },
};

const READ_BYTES: usize = 4096;
/// Interval between checks for a client that closed the connection while its data is unread.
const CLOSE_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Time limit of a write to a client that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for sending the greeting to a refused client. Normally the empty socket buffer
/// accepts it at once.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// State shared by all connections.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) registry: Arc<Registry>,
    pub(super) sockets: Arc<Sockets>,
    pub(super) config: watch::Receiver<Option<Arc<ServerConfig>>>,
    pub(super) derivation: Arc<Derivation>,
    /// Network interface of the listener.
    pub(super) interface: Option<String>,
}

/// Cause and description of the end of a connection.
#[derive(Debug)]
struct Reason(EndCause, String);

impl Reason {
    /// Returns the reason for a socket error.
    #[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are open")]
    fn from_socket_error(error: &io::Error) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => EndCause::Reset,
            io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => EndCause::KeepaliveTimeout,
            _ => EndCause::ClosedByServer,
        };
        Self(cause, error.to_string())
    }

    /// Returns the reason for a failure of this host.
    fn from_host_error(error: &io::Error) -> Self {
        Self(EndCause::ClosedByServer, error.to_string())
    }

    fn from_machine_error(error: &ServerError) -> Self {
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
    /// KeyID that the client claims or has proved.
    key_id: String,
    /// Secret that the client has proved.
    secret: Option<Secret>,
}

/// Accepted and started sessions. Dropping them ends them, even after a panic of the task.
#[derive(Default)]
struct Sessions(Vec<Allocation>);

impl Drop for Sessions {
    fn drop(&mut self) {
        for session in &self.0 {
            session.reflector.remove(session.sid);
        }
    }
}

/// Serves a connection until it ends or `token` is cancelled.
pub(super) async fn serve(stream: TcpStream, shared: Shared, token: CancellationToken) {
    let Some(config) = shared.config.borrow().clone() else { return };
    let (Ok(client), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let ends = Ends { client: canonical(client), local: canonical(local) };
    let entry = match shared.registry.admit(&config, ends.client, ends.local) {
        Ok(entry) => entry,
        Err(refusal) => return refuse(stream, ends.client, &config, &refusal).await,
    };
    if let Err(error) = tcp::prepare_accepted(&stream, config.keepalive) {
        let detail = error.to_string();
        let refusal = ConnectionRefusal { cause: RefusalCause::OpenFiles, detail };
        shared.registry.connection_refused(ends.client, &refusal);
        return refuse(stream, ends.client, &config, &refusal).await;
    }
    let options = match options(&config, &shared.registry) {
        Ok(options) => options,
        Err(error) => {
            tracing::error!(client = %ends.client, %error, "failed to greet client");
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
        deadline: end_of_duration(&config, now),
        key_id: String::new(),
        secret: None,
    };
    tracing::info!(client = %ends.client, "control connection accepted");
    let close_requested = connection.entry.close.clone();
    let Reason(cause, reason) = tokio::select! {
        reason = connection.run(ended) => reason,
        (cause, reason) = close_requested.wait() => Reason(cause, reason),
        () = token.cancelled() => Reason(EndCause::ClosedByServer, "server role ended".into()),
    };
    connection.shared.registry.count_end(cause);
    tracing::info!(client = %ends.client, reason, "control connection ended");
}

/// Refuses a connection. A greeting without modes announces a reached limit (RFC 4656 §3.1). A
/// client that is in no client list receives no greeting, which reveals nothing and costs little.
async fn refuse(
    mut stream: TcpStream,
    client: SocketAddr,
    config: &ServerConfig,
    refusal: &ConnectionRefusal,
) {
    let ConnectionRefusal { cause, detail } = refusal;
    tracing::debug!(%client, cause = cause.word(), detail, "control connection refused");
    if *cause == RefusalCause::NotListed || config.refuse_silently {
        return;
    }
    let greeting = ServerGreeting::new(0, [0; 16], [0; 16], config.key_derivation_count);
    let sent = async {
        stream.write_all(greeting.as_bytes()).await?;
        stream.shutdown().await
    };
    if let Err(error) = timeout(REFUSAL_TIMEOUT, sent).await.unwrap_or(Ok(())) {
        tracing::debug!(%client, %error, "failed to send greeting without modes");
    }
}

impl Connection {
    /// Reads available data. The buffer is not kept across an await.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => self.machine.handle_end(),
            Ok(len) => self.machine.handle_input(&buffer[..len], clock::monotonic()),
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
            self.publish_state();
            let deadline = self.machine.poll_deadline().into_iter().chain(self.deadline).min();
            tokio::select! {
                ready = self.stream.readable() => {
                    if let Err(error) = ready.and_then(|()| self.read()) {
                        return Reason::from_socket_error(&error);
                    }
                }
                () = wait_until(deadline) => {
                    let now = clock::monotonic();
                    if self.deadline.is_some_and(|end| end <= now) {
                        let reason = "max_connection_duration expired";
                        return Reason(EndCause::MaxDuration, reason.into());
                    }
                    self.machine.handle_timeout(now);
                }
                Some((sid, end)) = ended.recv() => {
                    let known = !self.sessions.remove(&[sid]).is_empty();
                    if known && end == SessionEnd::SocketClosed {
                        // Further probes of the session would be lost, so the client must
                        // reconnect.
                        let reason = "the test port of a session was closed";
                        return Reason(EndCause::ClosedByServer, reason.into());
                    }
                    self.machine.session_expired(sid, clock::monotonic());
                }
                Ok(()) = configured.changed() => {
                    let Some(config) = configured.borrow_and_update().clone() else { continue };
                    self.deadline = end_of_duration(&config, self.since);
                    self.machine.set_inactivity_timeout(config.inactivity_timeout_ns);
                    if let Err(error) = tcp::keep_alive(&self.stream, config.keepalive) {
                        tracing::debug!(client = %self.ends.client, %error, "failed to set keepalive");
                    }
                    if !config.allows(self.ends.client.ip()) {
                        let reason = "client address removed from client_list";
                        return Reason(EndCause::ClosedByServer, reason.into());
                    }
                    if self.is_key_removed(&config) {
                        let reason = format!("key {:?} removed", self.key_id);
                        return Reason(EndCause::BadKey, reason);
                    }
                }
            }
        }
    }

    /// Carries out the actions of the machine; an error ends the connection.
    async fn carry_out(&mut self) -> Result<(), Reason> {
        while let Some(action) = self.machine.poll_action() {
            match action {
                ServerAction::Send(octets) => self.write(&octets).await?,
                ServerAction::Request(request) => {
                    let answer = self.allocate(&request).await;
                    self.machine.answer_request(answer, clock::monotonic());
                }
                ServerAction::Refused(accept, detail) => {
                    self.record_refusal(&SessionRefusal { accept, detail });
                }
                ServerAction::DeriveKeys { key_id, salt, count } => {
                    self.authenticate(&key_id, salt, count).await?;
                }
                ServerAction::Start(sids) => {
                    if !self.entry.begin_running() {
                        // The connection is about to close: the close request ends this task while
                        // it waits.
                        std::future::pending::<()>().await;
                    }
                    for session in self.sessions.0.iter().filter(|s| sids.contains(&s.sid)) {
                        session.reflector.start(session.sid).await;
                    }
                    self.machine.sessions_started(clock::monotonic());
                }
                ServerAction::Stop(sids) => {
                    let now = clock::monotonic();
                    for session in self.sessions.remove(&sids) {
                        let until = now.plus_ns(session.drain_ns);
                        session.reflector.drain(session.sid, until).await;
                    }
                }
                ServerAction::Close(error) => {
                    self.shared.registry.count_irregular_stop(&error);
                    return Err(Reason::from_machine_error(&error));
                }
            }
        }
        Ok(())
    }

    /// Derives the keys of all secrets with this KeyID and authenticates the client. Random secrets
    /// fill up their number, so that neither data nor timing reveals how many there are or which
    /// one is right.
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
        let candidates = config.as_ref().map_or(1, |config| config.max_keys_per_name());
        while secrets.len() < candidates.max(1) {
            let decoy = random::bytes::<32>().map_err(|error| Reason::from_host_error(&error))?;
            secrets.push(Secret::new(decoy));
        }
        let host = self.ends.client.ip();
        let derive = self.shared.derivation.derive(host, secrets.clone(), salt, count);
        let deadline = self.machine.poll_deadline().into_iter().chain(self.deadline).min();
        let derived = tokio::select! {
            () = wait_until(deadline) => {
                let reason = "time limit expired during key derivation";
                return Err(Reason(EndCause::Inactivity, reason.into()));
            }
            derived = derive => derived,
            // A client that has disconnected needs no key.
            () = wait_for_close(&self.stream) => {
                let reason = "the client disconnected during key derivation";
                return Err(Reason(EndCause::ClosedByClient, reason.into()));
            }
        };
        self.key_id = String::from_utf8_lossy(key_id).into_owned();
        let accepted = self.machine.authenticate(derived.as_deref(), clock::monotonic());
        self.shared.registry.count_authentication(derived.is_some().then_some(accepted.is_some()));
        self.secret = accepted.and_then(|index| secrets.get(index).cloned());
        Ok(())
    }

    /// Returns true when the client's secret is no longer configured under its KeyID.
    fn is_key_removed(&self, config: &ServerConfig) -> bool {
        self.secret.as_ref().is_some_and(|secret| {
            !config.keys.iter().any(|key| key.id == self.key_id && key.secret == *secret)
        })
    }

    async fn allocate(&mut self, request: &RequestedSession) -> Result<(u16, Sid), Accept> {
        // The current limits and ports apply, not those at the time of connecting.
        let config = self.shared.config.borrow().clone().ok_or(Accept::FAILURE)?;
        let (sockets, ended) = (&self.shared.sockets, self.ended_sender.clone());
        let machine = &self.machine;
        let ptp = machine.mode().contains(Modes::PTP_TIMESTAMPS);
        let timestamps = if ptp { config.timestamps } else { TimestampFormat::Ntp };
        let packets = |sid| (machine.format(sid), timestamps);
        let path = PathInfo { ends: self.ends, interface: self.shared.interface.as_deref() };
        let allocated =
            allocate(&config, sockets, &self.entry, path, (request, &packets), ended).await;
        match allocated {
            Ok(allocation) => {
                if allocation.ip_version_corrected {
                    self.shared.registry.ip_version_corrected();
                }
                let answer = (allocation.reflector.local.port(), allocation.sid);
                self.sessions.0.push(allocation);
                Ok(answer)
            }
            Err(refusal) => {
                self.record_refusal(&refusal);
                Err(refusal.accept)
            }
        }
    }

    fn record_refusal(&self, refusal: &SessionRefusal) {
        let SessionRefusal { accept, detail } = refusal;
        tracing::info!(client = %self.ends.client, %accept, detail, "session refused");
        self.shared.registry.session_refused(self.ends.client, refusal);
    }

    async fn write(&mut self, octets: &[u8]) -> Result<(), Reason> {
        match timeout(WRITE_TIMEOUT, self.stream.write_all(octets)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Reason::from_socket_error(&error)),
            Err(_) => {
                let reason = "the client does not read from its control connection";
                Err(Reason(EndCause::Inactivity, reason.into()))
            }
        }
    }

    fn publish_state(&self) {
        let mode = self.machine.mode();
        let state = match mode.0 {
            0 => ServerConnectionState::Setup,
            _ if self.machine.is_running() => ServerConnectionState::Running,
            _ => ServerConnectionState::Request,
        };
        self.entry.set(state, mode.0, &self.key_id);
    }
}

/// Returns the time at which a connection reaches its maximum duration.
fn end_of_duration(config: &ServerConfig, since: Monotonic) -> Option<Monotonic> {
    let duration_ns = config.max_connection_duration_ns;
    (duration_ns != 0).then(|| since.plus_ns(duration_ns))
}

/// Waits until the client closes the connection, without reading.
async fn wait_for_close(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(Interest::READABLE | Interest::ERROR).await {
        if ready.is_read_closed() || ready.is_error() {
            return;
        }
        // Unread data hides the end of the stream: check again later.
        sleep(CLOSE_CHECK_INTERVAL).await;
    }
}

impl Sessions {
    fn remove(&mut self, sids: &[Sid]) -> Vec<Allocation> {
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
