//! One attempt: name service, TCP, the negotiation of all sessions, and Start-Sessions. It can be
//! dropped at any time; nothing of it is left then.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{failure::Failure, status::Status};
use crate::{
    model::{ControlConnection, Endpoint, TestSession},
    net::{
        TestSocket, UdpOptions, clock, resolve,
        tcp::{self, ConnectOptions},
    },
    proto::{ConnectionState, LossCause},
    twamp::control_client::{ClientAction, ControlClient, SessionRequest},
    wire::{codes::Sid, test::SENDER_PACKET_OCTETS},
};

const READ_OCTETS: usize = 1024;

/// A session with its socket.
#[derive(Debug)]
pub(super) struct OpenSession {
    pub(super) socket: TestSocket,
    pub(super) remote: SocketAddr,
    pub(super) sid: Option<Sid>,
}

/// A control connection with all its sessions started.
#[derive(Debug)]
pub(super) struct Established {
    stream: TcpStream,
    machine: ControlClient,
    pub(super) sessions: Vec<OpenSession>,
}

/// Makes one attempt.
pub(super) async fn managed(
    config: &ControlConnection,
    status: &Arc<Status>,
) -> Result<Established, Failure> {
    let stream = connect(config, status).await?;
    status.state(ConnectionState::Negotiating, clock::now());
    let local = stream.local_addr().map_err(|error| Failure::broken(&error))?;
    let server = stream.peer_addr().map_err(|error| Failure::broken(&error))?;
    status.ends(local, server);
    let mut sessions = Vec::with_capacity(config.sessions.len());
    let mut requests = Vec::with_capacity(config.sessions.len());
    for session in &config.sessions {
        let (open, request) = open(config, session, local.ip(), server.ip()).await?;
        sessions.push(open);
        requests.push(request);
    }
    let machine = ControlClient::new(requests, config.connect_timeout_ns, clock::monotonic());
    let mut established = Established { stream, machine, sessions };
    established.negotiate().await?;
    status.mode(established.machine.mode());
    Ok(established)
}

/// Opens the sockets of sessions that nothing is negotiated for.
pub(super) async fn light(config: &ControlConnection) -> Result<Vec<OpenSession>, Failure> {
    let mut sessions = Vec::with_capacity(config.sessions.len());
    for session in &config.sessions {
        let source = session.source_address.or(config.source_address);
        let port = session.destination_port.unwrap_or(crate::model::limits::TWAMP_PORT);
        let Some(target) = session.target.as_ref().or(config.target.as_ref()) else {
            return Err(Failure::new(LossCause::Local, format!("{}: no target", session.name)));
        };
        let remote = first_address(target, port, source).await?;
        let any: IpAddr = if remote.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let socket = bind(config, session, source.unwrap_or(any))?;
        sessions.push(OpenSession { socket, remote, sid: None });
    }
    Ok(sessions)
}

/// Opens the TCP connection to the first address that takes it, all within `connect_timeout`.
async fn connect(config: &ControlConnection, status: &Status) -> Result<TcpStream, Failure> {
    let Some(target) = &config.target else {
        return Err(Failure::new(LossCause::Local, "no target_address"));
    };
    if matches!(target, Endpoint::Name(_)) {
        status.state(ConnectionState::Resolving, clock::now());
    }
    let limit = Duration::from_nanos(config.connect_timeout_ns);
    let addresses =
        timeout(limit, resolve::addresses(target, config.destination_port, config.source_address))
            .await
            .map_err(|_| Failure::new(LossCause::Dns, "name service did not answer in time"))?
            .map_err(|error| Failure::new(LossCause::Dns, error.to_string()))?;
    status.state(ConnectionState::Connecting, clock::now());
    let options = ConnectOptions {
        source: config.source_address,
        interface: config.interface.as_deref(),
        dscp: config.control_dscp,
        keepalive: config.keepalive,
    };
    let mut failure = Failure::new(LossCause::Dns, "no address");
    let attempts = async {
        for address in &addresses {
            match tcp::connect(*address, &options).await {
                Ok(stream) => return Some(stream),
                Err(error) => failure = Failure::connecting(&error, &address.to_string()),
            }
        }
        None
    };
    match timeout(limit, attempts).await {
        Ok(Some(stream)) => Ok(stream),
        Ok(None) => Err(failure),
        Err(_) => Err(Failure::new(
            LossCause::ConnectTimeout,
            format!("TCP connect to {} took longer than {limit:?}", addresses[0]),
        )),
    }
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
        Some(target) => first_address(target, 0, source).await?.ip(),
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
    let socket = bind(config, session, source)?;
    let unspecified: IpAddr = if remote.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
    let port = socket.local().port();
    let request = SessionRequest {
        // Zero stands for the addresses of the control connection (RFC 5357 §3.5).
        sender_address: if source == local { unspecified } else { source },
        sender_port: port,
        receiver_address: if remote == server { unspecified } else { remote },
        receiver_port: session.destination_port.unwrap_or(port),
        padding_length: u32::from(session.data_size) - SENDER_PACKET_OCTETS as u32,
        dscp: session.dscp.value(),
        timeout_ns: session.loss_timeout_ns,
    };
    // The port comes with Accept-Session.
    Ok((OpenSession { socket, remote: SocketAddr::new(remote, 0), sid: None }, request))
}

fn bind(
    config: &ControlConnection,
    session: &TestSession,
    address: IpAddr,
) -> Result<TestSocket, Failure> {
    let address = SocketAddr::new(address, session.source_port.unwrap_or(0));
    let options = UdpOptions {
        interface: config.interface.as_deref(),
        tos: session.dscp.tos(),
        ttl: session.ttl,
    };
    TestSocket::bind(address, &options)
        .map_err(|error| Failure::local(&format!("{}: UDP {address}", session.name), &error))
}

async fn first_address(
    target: &Endpoint,
    port: u16,
    source: Option<IpAddr>,
) -> Result<SocketAddr, Failure> {
    let found = resolve::addresses(target, port, source).await;
    let addresses = found.map_err(|error| Failure::new(LossCause::Dns, error.to_string()))?;
    Ok(addresses[0])
}

impl Established {
    async fn negotiate(&mut self) -> Result<(), Failure> {
        loop {
            while let Some(action) = self.machine.poll_action() {
                match action {
                    ClientAction::Send(octets) => self.write(&octets).await?,
                    ClientAction::Accepted { index, port, sid } => {
                        self.sessions[index].remote.set_port(port);
                        self.sessions[index].sid = Some(sid);
                    }
                    ClientAction::Started => return Ok(()),
                    ClientAction::Failed(error) => return Err(error.into()),
                }
            }
            self.read().await?;
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

    /// Stop-Sessions, and the end of the connection.
    pub(super) async fn stop(mut self) {
        self.machine.stop();
        while let Some(action) = self.machine.poll_action() {
            if let ClientAction::Send(octets) = action
                && let Err(failure) = self.write(&octets).await
            {
                tracing::debug!(detail = failure.detail, "Stop-Sessions was not sent");
            }
        }
        let _ = timeout(Duration::from_secs(1), self.stream.shutdown()).await;
    }

    /// Feeds the machine with what comes, or with time.
    async fn read(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; READ_OCTETS];
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
            read = self.stream.read(&mut buffer) => match read {
                Ok(0) => Err(Failure::closed_by_server()),
                Ok(octets) => {
                    self.machine.handle_input(&buffer[..octets], clock::monotonic());
                    Ok(())
                }
                Err(error) => Err(Failure::broken(&error)),
            },
            () = overdue => {
                self.machine.handle_timeout(clock::monotonic());
                Ok(())
            }
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
