//! One attempt: name service, TCP, the negotiation of all sessions, and Start-Sessions. It can be
//! dropped at any time; nothing of it is left then.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    time::{sleep, timeout},
};

use super::{
    connect::{Turn, connect, reachable, resolved},
    failure::Failure,
    sender::LONGEST_GRACE_NS,
    status::Status,
};
use crate::{
    model::{ControlConnection, Extensions, StampSession, TestSession},
    net::{
        TestSocket, TransmitStamps, UdpOptions, clock, random,
        tcp::{self, TcpStream},
    },
    proto::{ConnectionState, LossCause},
    session::{Derivation, modes},
    time::TimestampFormat,
    twamp::{
        control_client::{
            AcceptedSession, ClientAction, ClientError, ClientOptions, ControlClient,
            SessionRequest, Stage,
        },
        sender::{Carrier, StampSender},
    },
    wire::{
        codes::{Modes, Sid},
        crypto::SessionKeys,
    },
};

const READ_OCTETS: usize = 1024;
/// A port that another session of this agent gives up is waited for so long, and asked for so often.
const PORT_LIMIT_NS: u64 = LONGEST_GRACE_NS + 500_000_000;
const PORT_AGAIN: Duration = Duration::from_millis(50);
/// How long the end of a connection may take that is closed anyway.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// A session with its socket.
#[derive(Debug)]
pub(super) struct OpenSession {
    pub(super) name: String,
    pub(super) socket: TestSocket,
    pub(super) remote: SocketAddr,
    pub(super) sid: Option<Sid>,
    /// What its packets look like.
    pub(super) carrier: Carrier,
    /// What the padding of each probe begins with (RFC 6038 §4.3).
    pub(super) padding_start: Option<[u8; 2]>,
}

/// A control connection with its sessions started.
#[derive(Debug)]
pub(super) struct Established {
    stream: TcpStream,
    machine: ControlClient,
    pub(super) sessions: Vec<OpenSession>,
    /// Why a session that was asked for is not among them, where others are or run.
    refused: Option<Failure>,
}

/// Makes one attempt. Sessions that are not started, where others are, leave those alone: why, for the
/// last of them.
pub(super) async fn managed(
    config: &ControlConnection,
    extensions: Extensions,
    turn: Turn,
    status: &Status,
    derivation: &Derivation,
) -> Result<(Established, Option<Failure>), Failure> {
    let stream = connect(config, status, turn).await?;
    let mut established = prepare(config, extensions, stream, status).await?;
    established.negotiate(config, derivation).await?;
    status.mode(established.machine.mode().0);
    let refused = established.take_refused();
    Ok((established, refused))
}

/// Everything for a negotiation over this connection.
pub(super) async fn prepare(
    config: &ControlConnection,
    extensions: Extensions,
    stream: TcpStream,
    status: &Status,
) -> Result<Established, Failure> {
    status.state(ConnectionState::Negotiating, clock::now());
    let local = stream.local_addr().map_err(|error| Failure::broken(&error))?;
    let server = stream.peer_addr().map_err(|error| Failure::broken(&error))?;
    status.ends(local, server);
    let all = |_: &TestSession| true;
    let (sessions, requests, refused) = open_all(config, all, local.ip(), server.ip()).await;
    if let Some(failure) = refused.as_ref().filter(|_| sessions.is_empty()) {
        return Err(failure.clone());
    }
    let options = ClientOptions {
        security: modes::security(config.authentication),
        extensions: modes::extensions(extensions),
        key_id: config.key_id.clone(),
        maximum_count: config.maximum_count,
        response_timeout_ns: config.response_timeout_ns,
        key_timeout_ns: config.key_timeout_ns,
        keys: SessionKeys::new(random::octets(), random::octets()),
        client_iv: random::octets(),
        reflected_octets: u16::from_ne_bytes(random::octets()),
    };
    let machine = ControlClient::new(requests, options, clock::monotonic());
    Ok(Established { stream, machine, sessions, refused })
}

/// Opens the sockets of the sessions of these names, for which nothing is negotiated; those that
/// can be opened, and why the last of the others cannot. `turn` chooses among the addresses of a
/// name.
pub(super) async fn without_control(
    config: &ControlConnection,
    names: &[String],
    turn: Turn,
) -> (Vec<OpenSession>, Option<Failure>) {
    let (mut sessions, mut failed) = (Vec::with_capacity(names.len()), None);
    for session in config.sessions.iter().filter(|session| names.contains(&session.name)) {
        match open_without_control(config, session, turn).await {
            Ok(open) => sessions.push(open),
            Err(failure) => failed = Some(failure),
        }
    }
    (sessions, failed)
}

async fn open_without_control(
    config: &ControlConnection,
    session: &TestSession,
    turn: Turn,
) -> Result<OpenSession, Failure> {
    let source = session.source_address.or(config.source_address);
    let port = session.destination_port.unwrap_or(crate::model::limits::TWAMP_PORT);
    let Some(target) = session.target.as_ref().or(config.target.as_ref()) else {
        return Err(Failure::new(LossCause::Local, format!("{}: no target", session.name)));
    };
    let remote = reachable(config, target, port, source, turn).await?;
    let any: IpAddr = if remote.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let socket = bind(config, session, source.unwrap_or(any)).await?;
    let carrier =
        session.stamp.as_ref().map_or_else(Carrier::default, |stamp| stamp_carrier(session, stamp));
    let name = session.name.clone();
    Ok(OpenSession { name, socket, remote, sid: None, carrier, padding_start: None })
}

fn stamp_carrier(session: &TestSession, stamp: &StampSession) -> Carrier {
    let ssid = stamp.ssid.unwrap_or_else(|| u16::from_ne_bytes(random::octets()).max(1));
    let padding = |octets: &mut [u8]| {
        if !session.zero_padding {
            random::fill(octets);
        }
    };
    let sender = StampSender::new(stamp.clone(), ssid, session.data_size.into(), padding);
    Carrier {
        format: sender.format(),
        timestamps: session.timestamps,
        stamp: Some(Box::new(sender)),
    }
}

/// Opens the sockets of these sessions and says what to ask for; why the last of those that cannot be
/// opened cannot.
async fn open_all(
    config: &ControlConnection,
    which: impl Fn(&TestSession) -> bool,
    local: IpAddr,
    server: IpAddr,
) -> (Vec<OpenSession>, Vec<SessionRequest>, Option<Failure>) {
    let (mut sessions, mut requests, mut failed) = (Vec::new(), Vec::new(), None);
    for session in config.sessions.iter().filter(|session| which(session)) {
        match open(config, session, local, server).await {
            Ok((open, request)) => {
                sessions.push(open);
                requests.push(request);
            }
            Err(failure) => failed = Some(failure),
        }
    }
    (sessions, requests, failed)
}

/// Opens the socket of a session and says what to ask for.
async fn open(
    config: &ControlConnection,
    session: &TestSession,
    local: IpAddr,
    server: IpAddr,
) -> Result<(OpenSession, SessionRequest), Failure> {
    let source = session.source_address.or(config.source_address);
    let remote = match &session.target {
        // Of the family that the session's own end has.
        Some(target) => resolved(config, target, 0, Some(source.unwrap_or(local))).await?[0].ip(),
        None => server,
    };
    let source = source.unwrap_or(local);
    if source.is_ipv4() != remote.is_ipv4() {
        return Err(Failure::new(
            LossCause::Local,
            format!(
                "{}: sender {source} and reflector {remote} are of different IP versions; \
                 source_address or target_address of the session would have to change",
                session.name
            ),
        ));
    }
    let socket = bind(config, session, source).await?;
    let unspecified: IpAddr = if remote.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let port = socket.local().port();
    let request = SessionRequest {
        // Zero stands for the addresses of the control connection (RFC 5357 §3.5).
        sender_address: if source == local { unspecified } else { source },
        sender_port: port,
        receiver_address: if remote == server { unspecified } else { remote },
        receiver_port: session.destination_port.unwrap_or(port),
        data_size: session.data_size,
        reflected_length: session.reflected_padding,
        dscp: session.dscp.value(),
        timeout_ns: session.loss_timeout_ns,
    };
    // The port comes with Accept-Session.
    let remote = SocketAddr::new(remote, 0);
    let carrier = Carrier { timestamps: session.timestamps, ..Carrier::default() };
    let name = session.name.clone();
    let open = OpenSession { name, socket, remote, sid: None, carrier, padding_start: None };
    Ok((open, request))
}

async fn bind(
    config: &ControlConnection,
    session: &TestSession,
    address: IpAddr,
) -> Result<TestSocket, Failure> {
    let address = SocketAddr::new(address, session.source_port.unwrap_or(0));
    let options = UdpOptions {
        interface: config.interface.as_deref(),
        tos: session.dscp.tos(),
        ttl: session.ttl,
        transmit_stamps: TransmitStamps::Numbered,
    };
    let begun = clock::monotonic();
    loop {
        match TestSocket::bind(address, &options) {
            // A session of ours that had the port before may yet wait for its answers.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && clock::monotonic().since_ns(begun) < PORT_LIMIT_NS =>
            {
                sleep(PORT_AGAIN).await;
            }
            bound => return bound.map_err(|error| refused(session, address, &error)),
        }
    }
}

fn refused(session: &TestSession, address: SocketAddr, error: &io::Error) -> Failure {
    Failure::local(&format!("{}: UDP {address}", session.name), error)
}

impl Established {
    /// Until all sessions are started.
    pub(super) async fn negotiate(
        &mut self,
        config: &ControlConnection,
        derivation: &Derivation,
    ) -> Result<(), Failure> {
        let negotiated = self.go_through(config, derivation).await;
        negotiated.map_err(|failure| match self.machine.mode().extensions().0 {
            0 => failure,
            _ => {
                let derives =
                    self.machine.mode().is_protected() && self.machine.stage() == Stage::SetUp;
                failure.with_extensions(derives)
            }
        })
    }

    /// Stops sessions and starts others over the same connection, as far as the server can do that
    /// one by one; otherwise stops all. Those that are started are in `sessions` then; why another
    /// is not is the answer.
    pub(super) async fn renegotiate(
        &mut self,
        config: &ControlConnection,
        names: &[String],
        stop: Vec<Sid>,
        derivation: &Derivation,
    ) -> Result<Option<Failure>, Failure> {
        let local = self.stream.local_addr().map_err(|error| Failure::broken(&error))?;
        let server = self.stream.peer_addr().map_err(|error| Failure::broken(&error))?;
        let named = |session: &TestSession| names.contains(&session.name);
        let (sessions, requests, refused) = open_all(config, named, local.ip(), server.ip()).await;
        let others_run = self.machine.is_individual();
        if let Some(failure) = refused.as_ref().filter(|_| sessions.is_empty() && !others_run) {
            return Err(failure.clone());
        }
        (self.sessions, self.refused) = (sessions, refused);
        self.machine.renegotiate(stop, requests, clock::monotonic());
        self.negotiate(config, derivation).await?;
        Ok(self.take_refused())
    }

    /// Lets go of what was not accepted.
    fn take_refused(&mut self) -> Option<Failure> {
        self.sessions.retain(|session| session.sid.is_some());
        self.refused.take()
    }

    /// Sets what can be set on an open connection.
    pub(super) fn tune(&self, config: &ControlConnection) {
        let tuned = tcp::tune(&self.stream, config.control_dscp, config.keepalive);
        if let Err(error) = tuned {
            tracing::warn!(%error, connection = config.name, "options of TCP stay as they are");
        }
    }

    /// What the machine knows.
    pub(super) fn machine(&self) -> &ControlClient {
        &self.machine
    }

    async fn go_through(
        &mut self,
        config: &ControlConnection,
        derivation: &Derivation,
    ) -> Result<(), Failure> {
        loop {
            while let Some(action) = self.machine.poll_action() {
                match action {
                    ClientAction::Send(octets) => self.write(&octets).await?,
                    ClientAction::DeriveKey { salt, count } => {
                        let secret = config.secret.clone().unwrap_or_default();
                        let server = self
                            .stream
                            .peer_addr()
                            .map_err(|error| Failure::local("control connection", &error))?;
                        let keys = derivation.derive(server.ip(), vec![secret], salt, count).await;
                        let Some(key) = keys.and_then(|mut keys| keys.pop()) else {
                            let detail = "the key could not be derived";
                            return Err(Failure::new(LossCause::Local, detail));
                        };
                        self.machine.key_derived(&key, clock::monotonic());
                    }
                    ClientAction::Accepted(accepted) => self.accepted(accepted),
                    ClientAction::Refused(index, accept) => {
                        let error = ClientError::SessionRejected { index, accept };
                        self.refused = Some(error.into());
                    }
                    ClientAction::Started => return Ok(()),
                    ClientAction::Stopped => return Err(Failure::closed_by_server()),
                    ClientAction::Failed(error) => return Err(error.into()),
                }
            }
            self.read().await?;
        }
    }

    fn accepted(&mut self, accepted: AcceptedSession) {
        let ptp = self.machine.mode().contains(Modes::PTP_TIMESTAMPS);
        let session = &mut self.sessions[accepted.index];
        session.remote.set_port(accepted.port);
        session.sid = Some(accepted.sid);
        session.carrier.format = accepted.format;
        session.padding_start = accepted.server_octets;
        if !ptp {
            session.carrier.timestamps = TimestampFormat::Ntp;
        }
    }

    /// Watches a connection whose sessions run; returns when it is lost. May be dropped and called
    /// again.
    pub(super) async fn watch(&mut self) -> Failure {
        loop {
            if let Err(failure) = self.read().await {
                return failure;
            }
            while let Some(action) = self.machine.poll_action() {
                if let ClientAction::Failed(error) = action {
                    return error.into();
                }
            }
        }
    }

    /// Stop-Sessions, its acknowledgement where there is one, and the end of the connection.
    pub(super) async fn stop(mut self) {
        self.machine.stop(clock::monotonic());
        let stopped = timeout(STOP_LIMIT, async {
            loop {
                while let Some(action) = self.machine.poll_action() {
                    match action {
                        ClientAction::Send(octets) => self.write(&octets).await?,
                        ClientAction::Stopped => return Ok(()),
                        ClientAction::Failed(error) => return Err(error.into()),
                        ClientAction::DeriveKey { .. }
                        | ClientAction::Accepted(_)
                        | ClientAction::Refused(..)
                        | ClientAction::Started => {}
                    }
                }
                self.read().await?;
            }
        });
        let outcome: Result<Result<(), Failure>, _> = stopped.await;
        if let Ok(Err(failure)) = outcome {
            tracing::debug!(detail = failure.detail, "sessions not stopped in form");
        }
        let _ = timeout(STOP_LIMIT, self.stream.shutdown()).await;
    }

    /// The address that it comes from.
    pub(super) fn local(&self) -> Option<IpAddr> {
        self.stream.local_addr().ok().map(|local| local.ip())
    }

    /// Feeds the machine with what comes, or with time.
    async fn read(&mut self) -> Result<(), Failure> {
        let deadline = self.machine.poll_deadline();
        let overdue = async {
            match deadline {
                Some(at) => {
                    sleep(Duration::from_nanos(at.since_ns(clock::monotonic()))).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = self.stream.readable() => {
                ready.map_err(|error| Failure::broken(&error))?;
                self.take()
            }
            () = overdue => {
                self.machine.handle_timeout(clock::monotonic());
                Ok(())
            }
        }
    }

    /// Takes what is there. The buffer is not part of what waits for it.
    fn take(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; READ_OCTETS];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => Err(Failure::closed_by_server()),
            Ok(octets) => {
                self.machine.handle_input(&buffer[..octets], clock::monotonic());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(Failure::broken(&error)),
        }
    }

    async fn write(&mut self, octets: &[u8]) -> Result<(), Failure> {
        // Messages are small: the socket takes them unless the peer has not read for long.
        match timeout(Duration::from_secs(10), self.stream.write_all(octets)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::broken(&error)),
            Err(_) => Err(Failure::new(
                LossCause::ResponseTimeout,
                "the server does not read its control connection",
            )),
        }
    }
}
