//! One attempt: name service, TCP, the negotiation of all sessions, and Start-Sessions. It can be
//! dropped at any time; nothing of it is left then.

use std::{io, net::IpAddr, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    time::{sleep, timeout},
};

use super::{
    connect::{Turn, connect},
    failure::Failure,
    open::{self, Declined, OpenSession, Opened},
    status::Status,
};
use crate::{
    model::{ControlConnection, Extensions},
    net::{
        clock, random,
        tcp::{self, TcpStream},
    },
    proto::{ConnectionState, FailureCause},
    session::{Derivation, modes},
    time::TimestampFormat,
    twamp::control_client::{
        AcceptedSession, ClientAction, ClientError, ClientOptions, ControlClient, Stage,
    },
    wire::{
        codes::{Modes, Sid},
        crypto::SessionKeys,
    },
};

const READ_OCTETS: usize = 1024;
/// How long the end of a connection may take that is closed anyway.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// A control connection with its sessions started.
#[derive(Debug)]
pub(super) struct Established {
    stream: TcpStream,
    machine: ControlClient,
    pub(super) sessions: Vec<OpenSession>,
    /// Those that were asked for and are not among them, where others are or run.
    declined: Vec<Declined>,
}

/// Makes one attempt. Sessions that are not started, where others are, leave those alone.
pub(super) async fn managed(
    config: &ControlConnection,
    names: &[String],
    extensions: Extensions,
    turn: Turn,
    status: &Status,
    derivation: &Derivation,
) -> Result<(Established, Vec<Declined>), Failure> {
    let stream = connect(config, status, turn).await?;
    let mut established = prepare(config, names, extensions, stream, turn, status).await?;
    established.negotiate(config, derivation).await?;
    status.mode(established.machine.mode().0);
    let declined = established.take_declined();
    Ok((established, declined))
}

/// Everything for a negotiation of the sessions of these names over this connection.
pub(super) async fn prepare(
    config: &ControlConnection,
    names: &[String],
    extensions: Extensions,
    stream: TcpStream,
    turn: Turn,
    status: &Status,
) -> Result<Established, Failure> {
    status.state(ConnectionState::Negotiating, clock::now());
    let local = stream.local_addr().map_err(|error| Failure::broken(&error))?;
    let server = stream.peer_addr().map_err(|error| Failure::broken(&error))?;
    status.ends(local, server);
    let ends = (local.ip(), server.ip());
    let (opened, mut declined) = open::with_control(config, names, ends, turn, false).await;
    if opened.is_empty()
        && let Some(last) = declined.pop()
    {
        return Err(last.failure);
    }
    let (sessions, requests) = opened.into_iter().unzip();
    let machine = ControlClient::new(requests, options(config, extensions)?, clock::monotonic());
    Ok(Established { stream, machine, sessions, declined })
}

fn options(config: &ControlConnection, extensions: Extensions) -> Result<ClientOptions, Failure> {
    let without = |error| Failure::local("keys", &error);
    Ok(ClientOptions {
        security: modes::security(config.authentication),
        extensions: modes::extensions(extensions),
        key_id: config.key_id.clone(),
        maximum_count: config.maximum_count,
        response_timeout_ns: config.response_timeout_ns,
        key_timeout_ns: config.key_timeout_ns,
        keys: SessionKeys::new(
            random::bytes().map_err(without)?,
            random::bytes().map_err(without)?,
        ),
        client_iv: random::bytes().map_err(without)?,
        reflected_octets: random::number() as u16,
    })
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
    /// one by one; otherwise stops all. Those of these names that are not `opened` are. Those that are
    /// started are in `sessions` then; the others are the answer.
    pub(super) async fn renegotiate(
        &mut self,
        config: &ControlConnection,
        names: &[String],
        mut opened: Vec<Opened>,
        stop: Vec<Sid>,
        turn: Turn,
        derivation: &Derivation,
    ) -> Result<Vec<Declined>, Failure> {
        let is_open = |name: &String| opened.iter().any(|(open, _)| open.name == *name);
        let rest: Vec<String> = names.iter().filter(|name| !is_open(name)).cloned().collect();
        let (others, declined) = self.open(config, &rest, turn, !opened.is_empty()).await?;
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

    /// Opens the sockets of sessions, for as long as the connection lives; `others_wait` tells of some
    /// that do.
    pub(super) async fn open(
        &mut self,
        config: &ControlConnection,
        names: &[String],
        turn: Turn,
        others_wait: bool,
    ) -> Result<(Vec<Opened>, Vec<Declined>), Failure> {
        let local = self.stream.local_addr().map_err(|error| Failure::broken(&error))?;
        let server = self.stream.peer_addr().map_err(|error| Failure::broken(&error))?;
        let ends = (local.ip(), server.ip());
        tokio::select! {
            opened = open::with_control(config, names, ends, turn, others_wait) => Ok(opened),
            failure = self.watch() => Err(failure),
        }
    }

    /// Lets go of what was not accepted.
    fn take_declined(&mut self) -> Vec<Declined> {
        self.sessions.retain(|session| session.sid.is_some());
        std::mem::take(&mut self.declined)
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
                            return Err(Failure::new(FailureCause::LocalError, detail));
                        };
                        self.machine.key_derived(&key, clock::monotonic());
                    }
                    ClientAction::Accepted(accepted) => self.accepted(accepted),
                    ClientAction::Refused(index, accept) => {
                        let error = ClientError::SessionRejected { index, accept };
                        self.declined.push(self.rejected(index, error));
                    }
                    ClientAction::Started => return Ok(()),
                    ClientAction::Stopped => return Err(Failure::closed_by_server()),
                    ClientAction::Failed(error @ ClientError::SessionRejected { index, .. }) => {
                        return Err(self.rejected(index, error).failure);
                    }
                    ClientAction::Failed(error) => return Err(error.into()),
                }
            }
            self.read().await?;
        }
    }

    fn rejected(&self, index: usize, error: ClientError) -> Declined {
        let name = self.sessions[index].name.clone();
        let failure = Failure::from(error).of_session(&name);
        Declined { name, failure }
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
