//! Negotiation over an open TCP connection, from the greeting to the start of the sessions, and the
//! end of the connection with Stop-Sessions. Dropping a negotiation closes the connection.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::open::{self, OpenSession, Opened};
use crate::{
    model::{ControlConnection, Extensions},
    net::{
        clock, random,
        tcp::{self, TcpStream},
    },
    proto::FailureCause,
    session::{Derivation, modes, wait_until},
    time::TimestampFormat,
    twamp::{
        connection::{AttemptContext, Declined, Failure, Suspect},
        control_client::{
            AcceptedSession, ClientAction, ClientError, ClientOptions, ControlClient,
            FOREIGN_REQUEST, Stage, name_other_protocol,
        },
    },
    wire::{
        codes::{Modes, Sid},
        crypto::SessionKeys,
    },
};

const READ_BYTES: usize = 1024;
/// Time limit of each step of a proper end. After it the connection is dropped.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// Time limit for the answer of a server that may speak another protocol.
const IDENTIFY_LIMIT: Duration = Duration::from_millis(500);
/// Time limit for sending a message to a server that does not read.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// An open control connection.
#[derive(Debug)]
pub(super) struct Established {
    stream: TcpStream,
    machine: ControlClient,
    pub(super) sessions: Vec<OpenSession>,
    /// Sessions that could not be opened or were not accepted, while others were accepted or run.
    declined: Vec<Declined>,
    /// Number of requests of this negotiation that the server has answered.
    answered: usize,
    /// True once a negotiation has succeeded.
    has_started: bool,
}

/// Opens the sockets of the named sessions and prepares to negotiate them over a connection.
pub(super) async fn prepare(
    config: &ControlConnection,
    names: &[String],
    extensions: Extensions,
    stream: TcpStream,
    context: AttemptContext,
) -> Result<Established, Failure> {
    let (local, server) = ends(&stream)?;
    let ends = (local.ip(), server.ip());
    let (opened, mut declined) = open::open_negotiated(config, names, ends, context, false).await;
    if opened.is_empty()
        && let Some(last) = declined.pop()
    {
        return Err(last.failure);
    }
    let (sessions, requests) = opened.into_iter().unzip();
    let machine = ControlClient::new(requests, options(config, extensions)?, clock::monotonic());
    Ok(Established { stream, machine, sessions, declined, answered: 0, has_started: false })
}

fn options(config: &ControlConnection, extensions: Extensions) -> Result<ClientOptions, Failure> {
    let no_keys = |error| Failure::from_local_error("keys", &error);
    Ok(ClientOptions {
        security: modes::security(config.authentication),
        extensions: modes::extensions(extensions),
        key_id: config.key_id.clone(),
        maximum_count: config.maximum_count,
        response_timeout_ns: config.response_timeout_ns,
        key_timeout_ns: config.key_timeout_ns,
        keys: SessionKeys::new(
            random::bytes().map_err(no_keys)?,
            random::bytes().map_err(no_keys)?,
        ),
        client_iv: random::bytes().map_err(no_keys)?,
        reflected_octets: random::number() as u16,
    })
}

/// Returns the local and the remote address of a connection.
pub(super) fn ends(stream: &TcpStream) -> Result<(SocketAddr, SocketAddr), Failure> {
    let local = stream.local_addr().map_err(|error| Failure::from_connection_error(&error))?;
    let server = stream.peer_addr().map_err(|error| Failure::from_connection_error(&error))?;
    Ok((local, server))
}

impl Established {
    /// Negotiates until all sessions are started or declined.
    pub(super) async fn negotiate(
        &mut self,
        config: &ControlConnection,
        derivation: &Derivation,
    ) -> Result<(), Failure> {
        self.answered = 0;
        let negotiated = self.drive_negotiation(config, derivation).await;
        negotiated.map_err(|failure| self.with_suspect(failure))
    }

    /// Adds the suspected part of the request to a failure.
    fn with_suspect(&self, failure: Failure) -> Failure {
        let machine = &self.machine;
        let accepted = self.sessions.iter().filter(|session| session.sid.is_some()).count();
        let is_unanswered = machine.stage() == Stage::Request
            && (failure.is_end_by_server() || failure.cause == FailureCause::ResponseTimeout);
        let is_first = self.answered == 0 && !self.has_started;
        if is_unanswered
            && !is_first
            && let Some(session) = self.sessions.get(self.answered)
        {
            let suspect = Suspect::Session { name: session.name.clone(), accepted };
            let failure = failure.for_session(&session.name);
            return Failure { suspect, ..failure };
        }
        if machine.mode().extensions().0 == 0 {
            let suspect = if is_unanswered { Suspect::Addresses } else { Suspect::None };
            return Failure { suspect, ..failure };
        }
        failure
            .suspecting_extensions(machine.mode().is_protected() && machine.stage() == Stage::SetUp)
    }

    /// Stops sessions and starts others over the same connection. A server without individual
    /// session control stops all sessions. Requests the sessions in `names`; `opened` are the ones
    /// among them whose sockets are already open. Afterwards `self.sessions` holds the started
    /// sessions. Returns the declined sessions.
    pub(super) async fn renegotiate(
        &mut self,
        config: &ControlConnection,
        names: &[String],
        mut opened: Vec<Opened>,
        stop: Vec<Sid>,
        context: AttemptContext,
        derivation: &Derivation,
    ) -> Result<Vec<Declined>, Failure> {
        let is_open = |name: &String| opened.iter().any(|(open, _)| open.name == *name);
        let unopened: Vec<String> = names.iter().filter(|name| !is_open(name)).cloned().collect();
        let (local, server) = ends(&self.stream)?;
        let others_wait = !opened.is_empty();
        let ends = (local.ip(), server.ip());
        let (others, declined) = tokio::select! {
            others = open::open_negotiated(config, &unopened, ends, context, others_wait) => others,
            failure = self.watch() => return Err(failure),
        };
        opened.extend(others);
        if opened.is_empty() && stop.is_empty() {
            return Ok(declined);
        }
        let (sessions, requests) = opened.into_iter().unzip();
        (self.sessions, self.declined) = (sessions, declined);
        self.machine.renegotiate(stop, requests, clock::monotonic());
        self.negotiate(config, derivation).await?;
        Ok(self.take_declined())
    }

    /// Drops the sessions that were not accepted and returns their failures.
    pub(super) fn take_declined(&mut self) -> Vec<Declined> {
        self.sessions.retain(|session| session.sid.is_some());
        std::mem::take(&mut self.declined)
    }

    /// Sets the options that can be set on an open connection.
    pub(super) fn set_tcp_options(&self, config: &ControlConnection) {
        let result = tcp::set_options(&self.stream, config.control_dscp, config.keepalive);
        if let Err(error) = result {
            tracing::warn!(%error, connection = config.name, "failed to set TCP options");
        }
    }

    pub(super) fn machine(&self) -> &ControlClient {
        &self.machine
    }

    async fn drive_negotiation(
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
                        let server = self.stream.peer_addr().map_err(|error| {
                            Failure::from_local_error("control connection", &error)
                        })?;
                        let keys = derivation.derive(server.ip(), vec![secret], salt, count).await;
                        let Some(key) = keys.and_then(|mut keys| keys.pop()) else {
                            let detail = "the key could not be derived";
                            return Err(Failure::new(FailureCause::LocalError, detail));
                        };
                        self.machine.key_derived(&key, clock::monotonic());
                    }
                    ClientAction::Accepted(accepted) => {
                        self.answered += 1;
                        self.apply_accepted(accepted);
                    }
                    ClientAction::Refused(index, accept) => {
                        self.answered += 1;
                        let error = ClientError::SessionRejected { index, accept };
                        self.declined.push(self.decline(index, error));
                    }
                    ClientAction::Started => {
                        self.has_started = true;
                        return Ok(());
                    }
                    ClientAction::Stopped => return Err(Failure::closed_by_server()),
                    ClientAction::Failed(error @ ClientError::SessionRejected { index, .. }) => {
                        return Err(self.decline(index, error).failure);
                    }
                    ClientAction::Failed(ClientError::ResponseTimeout(_))
                        if self.machine.stage() == Stage::Greeting =>
                    {
                        return Err(self.identify_silent_server().await);
                    }
                    ClientAction::Failed(error) => return Err(error.into()),
                }
            }
            self.read().await?;
        }
    }

    /// Returns the failure of a server that has sent no greeting in time. In protocols such as HTTP
    /// and TLS the client begins, and the server waits for it. Such a server answers the request
    /// that is sent here, and its answer reveals the protocol. A TWAMP server closes the
    /// connection, which has failed anyway.
    async fn identify_silent_server(&mut self) -> Failure {
        let silent = Failure::from(ClientError::ResponseTimeout("Server-Greeting"));
        let mut answer = [0; READ_BYTES];
        let asked = timeout(IDENTIFY_LIMIT, async {
            self.stream.write_all(FOREIGN_REQUEST).await?;
            self.stream.read(&mut answer).await
        });
        let Ok(Ok(bytes)) = asked.await else { return silent };
        match name_other_protocol(&answer[..bytes], true) {
            Some(name) => ClientError::OtherProtocol(name).into(),
            None => silent,
        }
    }

    fn decline(&self, index: usize, error: ClientError) -> Declined {
        let name = self.sessions[index].name.clone();
        let failure = Failure::from(error).for_session(&name);
        Declined { name, failure }
    }

    fn apply_accepted(&mut self, accepted: AcceptedSession) {
        let mode = self.machine.mode();
        let ptp = mode.contains(Modes::PTP_TIMESTAMPS);
        let session = &mut self.sessions[accepted.index];
        session.remote.set_port(accepted.port);
        session.sid = Some(accepted.sid);
        session.carrier.format = accepted.format;
        session.padding_start = accepted.server_octets;
        session.carrier.honours_z_bit = ptp;
        session.carrier.has_extensions = mode.extensions() != Modes(0);
        if !ptp {
            session.carrier.timestamps = TimestampFormat::Ntp;
        }
    }

    /// Waits for the loss of a connection whose sessions run. Can be dropped and called again.
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

    /// Sends Stop-Sessions, awaits its acknowledgement where there is one, and closes the connection.
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
            tracing::debug!(detail = failure.detail, "failed to stop sessions cleanly");
        }
        let _ = timeout(STOP_LIMIT, self.stream.shutdown()).await;
    }

    /// Returns the addresses of both ends.
    pub(super) fn ends(&self) -> Option<(IpAddr, IpAddr)> {
        let (local, server) = ends(&self.stream).ok()?;
        Some((local.ip(), server.ip()))
    }

    /// Returns the local address.
    pub(super) fn local(&self) -> Option<IpAddr> {
        self.stream.local_addr().ok().map(|local| local.ip())
    }

    /// Waits for a message or a deadline and passes it to the machine.
    async fn read(&mut self) -> Result<(), Failure> {
        let deadline = self.machine.poll_deadline();
        tokio::select! {
            ready = self.stream.readable() => {
                ready.map_err(|error| Failure::from_connection_error(&error))?;
                self.receive()
            }
            () = wait_until(deadline) => {
                self.machine.handle_timeout(clock::monotonic());
                Ok(())
            }
        }
    }

    /// Reads the data that the socket holds. The buffer is a local variable of this function, so
    /// that it takes no memory while the connection waits.
    fn receive(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; READ_BYTES];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => Err(Failure::closed_by_server()),
            Ok(bytes) => {
                self.machine.handle_input(&buffer[..bytes], clock::monotonic());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(Failure::from_connection_error(&error)),
        }
    }

    async fn write(&mut self, octets: &[u8]) -> Result<(), Failure> {
        // Messages are small, so the socket accepts them unless the peer has not read for a long
        // time.
        match timeout(WRITE_LIMIT, self.stream.write_all(octets)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failure::from_connection_error(&error)),
            Err(_) => Err(Failure::new(
                FailureCause::ResponseTimeout,
                "the server does not read its control connection",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::parse_connection, proto};

    #[test]
    fn an_attempt_fails_without_random_bytes_for_its_keys() {
        let connection = proto::ControlConnection {
            name: "a".to_owned(),
            target_address: "192.0.2.1".to_owned(),
            test_sessions: vec![proto::TestSession {
                name: "b".to_owned(),
                ..proto::TestSession::default()
            }],
            ..proto::ControlConnection::default()
        };
        let config = parse_connection(&connection).unwrap();
        let made = options(&config, config.extensions).unwrap();
        assert_ne!(made.client_iv, [0; 16]);
        let _failing = random::failing::start();
        let failure = options(&config, config.extensions).unwrap_err();
        assert!(failure.detail.contains("no random bytes"), "{}", failure.detail);
    }
}
