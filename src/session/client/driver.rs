//! Driver of one control connection: the loop that feeds its state machine and carries out the
//! actions of the machine.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use futures_util::future::OptionFuture;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    Tools,
    command::Command,
    connect, events, host,
    negotiate::{self, Established},
    open::{self, OpenSession, Opened},
    persistence::Persistence,
    sessions::SessionHandles,
};
use crate::{
    model::ControlType,
    net::{clock, random, tcp::TcpStream},
    session::wait_until,
    supervise::Heartbeat,
    twamp::connection::{
        Action, Connection, Declined, Desired, Failure, Input, Operation, SessionCommand, Started,
    },
};

/// Result of an operation, with the sockets that it opened.
enum Outcome {
    Resolved(Result<Vec<SocketAddr>, Failure>),
    Connected(Result<TcpStream, Failure>),
    Negotiated(Result<(Box<Established>, Vec<Declined>), Failure>),
    OpenedUnnegotiated(Vec<OpenSession>, Vec<Declined>),
    OpenedSockets(Vec<Opened>, Vec<Declined>),
    Done,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Driver {
    machine: Connection,
    tools: Tools,
    sessions: SessionHandles,
    /// A TCP connection over which nothing is negotiated yet.
    stream: Option<TcpStream>,
    /// The control connection, while no operation has it.
    control: Option<Box<Established>>,
    /// Started sessions that are not yet passed to their threads.
    started: Vec<OpenSession>,
    /// Sockets of sessions that are to be requested.
    sockets: Vec<Opened>,
    /// The operation in progress. It is boxed because it is large, and a connection whose sessions
    /// run has none.
    operation: Option<BoxFuture<Outcome>>,
    /// Completes when the name of a session resolves to another address.
    dns_watch: Option<BoxFuture<()>>,
    /// Kernel number of the interface that sockets are bound to, as of the start of the sessions.
    interface: Option<u32>,
    was_running: bool,
    is_finished: bool,
}

/// Runs the connection until `token` is cancelled.
pub(super) async fn run(
    mut desired: watch::Receiver<Desired>,
    tools: Tools,
    token: CancellationToken,
    heartbeat: Heartbeat,
) {
    let current = desired.borrow_and_update().clone();
    let mut network = tools.network.clone();
    let mut driver = Driver::new(current, tools);
    driver.machine.handle(Input::Network(network.borrow_and_update().better), clock::now());
    let progress = driver.sessions.progress();
    let mut check = interval(heartbeat.interval());
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_ending = false;
    let end = |persistence: &Persistence| Input::End { is_resumed: !persistence.is_removed() };
    loop {
        // Boxed, so that this large future takes no memory while the connection waits.
        Box::pin(driver.carry_out()).await;
        if driver.is_finished {
            return;
        }
        heartbeat.beat();
        let deadline = driver.machine.next_deadline();
        let input = tokio::select! {
            () = token.cancelled(), if !is_ending => {
                is_ending = true;
                Some(end(&driver.tools.persistence))
            }
            changed = desired.changed(), if !is_ending => match changed {
                Ok(()) => Some(Input::Desired(desired.borrow_and_update().clone())),
                Err(_) => {
                    is_ending = true;
                    Some(end(&driver.tools.persistence))
                }
            },
            Some(outcome) = OptionFuture::from(driver.operation.as_mut()) => {
                driver.operation = None;
                Some(driver.finish(outcome))
            }
            Some(failure) = OptionFuture::from(driver.control.as_mut().map(|c| c.watch())) => {
                driver.control = None;
                Some(Input::Lost(failure))
            }
            Ok(()) = network.changed() => {
                let better = network.borrow_and_update().better;
                driver.network_changed(better);
                None
            }
            Some(()) = OptionFuture::from(driver.dns_watch.as_mut()) => {
                driver.dns_watch = None;
                tracing::info!(connection = driver.machine.config().name, "server name resolves to other addresses");
                Some(Input::DnsChanged)
            }
            () = progress.changed() => None,
            () = driver.sessions.next_end() => None,
            () = wait_until(deadline) => Some(Input::Timer),
            _ = check.tick() => {
                driver.sessions.check_stalled();
                None
            }
        };
        let changed = progress.drain();
        if !changed.is_empty() {
            driver.machine.handle(Input::Progress(changed), clock::now());
        }
        if let Some(input) = input {
            driver.machine.handle(input, clock::now());
        }
    }
}

impl Driver {
    fn new(desired: Desired, tools: Tools) -> Self {
        let (status, now) = (tools.status.connection(), clock::now());
        let remembered = tools.persistence.read_remembered(now);
        Self {
            machine: Connection::start(desired, status, remembered, random::number(), now),
            tools,
            sessions: SessionHandles::default(),
            stream: None,
            control: None,
            started: Vec::new(),
            sockets: Vec::new(),
            operation: None,
            dns_watch: None,
            interface: None,
            was_running: false,
            is_finished: false,
        }
    }

    /// Carries out the actions that the machine asks for and publishes its status.
    async fn carry_out(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            self.act(action).await;
        }
        self.was_running = self.machine.is_running();
        if !self.was_running {
            self.dns_watch = None;
        }
        if let Some(status) = self.machine.poll_status() {
            self.tools.status.publish(status.clone());
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Begin(operation) => self.begin(operation).await,
            Action::Abandon => {
                self.operation = None;
                self.sockets.clear();
            }
            Action::Drop => (self.stream, self.control) = (None, None),
            Action::ConfigureSessions(config) => {
                self.sessions.configure(&config, &self.tools).await;
            }
            Action::EndSessions => self.sessions.end(&self.tools).await,
            Action::Start(names) => {
                for session in std::mem::take(&mut self.started) {
                    if names.contains(&session.name) {
                        self.sessions.start(session).await;
                    }
                }
            }
            Action::Command(command) => self.sessions.send_all(|| command_for(command)).await,
            Action::Decline { name, failure, tries, is_new } => {
                if is_new {
                    let connection = &self.machine.config().name;
                    let detail = failure.detail;
                    tracing::warn!(connection, session = name, detail, "session not started");
                }
                self.sessions.send(&name, Command::Down(failure.cause, tries)).await;
            }
            Action::SetSocketOptions(config) => {
                if let Some(control) = &self.control {
                    control.set_tcp_options(&config);
                }
            }
            Action::WatchDns => self.watch_dns(),
            Action::VerifyUnreachable(failure) => {
                let failure = host::is_unreachable(&self.machine).then_some(failure);
                self.machine.handle(Input::Verified(failure), clock::now());
            }
            Action::Event(event) => {
                let config = self.machine.config();
                events::record(&self.tools.results, config, &event, clock::now().unix);
            }
            Action::Persist(remembered) => {
                self.tools.persistence.remember(&remembered, clock::unix());
            }
            Action::Finish => self.is_finished = true,
        }
    }

    async fn begin(&mut self, operation: Operation) {
        let derivation = self.tools.derivation.clone();
        let work: BoxFuture<Outcome> = match operation {
            Operation::Resolve(config) => {
                Box::pin(async move { Outcome::Resolved(connect::resolve_server(&config).await) })
            }
            Operation::Connect { config, addresses, limit_ns } => Box::pin(async move {
                let limit = Duration::from_nanos(limit_ns);
                Outcome::Connected(connect::connect(&config, &addresses, limit).await)
            }),
            Operation::Negotiate { config, names, extensions, context } => {
                let Some(stream) = self.stream.take() else { return };
                Box::pin(async move {
                    let prepared =
                        negotiate::prepare(&config, &names, extensions, stream, context).await;
                    let mut established = match prepared {
                        Ok(established) => Box::new(established),
                        Err(failure) => return Outcome::Negotiated(Err(failure)),
                    };
                    let negotiated = established.negotiate(&config, &derivation).await;
                    let declined = established.take_declined();
                    Outcome::Negotiated(negotiated.map(|()| (established, declined)))
                })
            }
            Operation::OpenUnnegotiated { config, names, context, others_wait } => {
                Box::pin(async move {
                    let (sessions, declined) =
                        open::open_unnegotiated(&config, &names, context, others_wait).await;
                    Outcome::OpenedUnnegotiated(sessions, declined)
                })
            }
            Operation::OpenSockets { config, names, context } => {
                let Some(ends) = self.control.as_ref().and_then(|control| control.ends()) else {
                    return self.open_nothing();
                };
                Box::pin(async move {
                    let (opened, declined) =
                        open::open_negotiated(&config, &names, ends, context, true).await;
                    Outcome::OpenedSockets(opened, declined)
                })
            }
            Operation::PauseSessions => {
                let paused = self.sessions.request(None, Command::Pause).await;
                Box::pin(async move {
                    paused.await;
                    Outcome::Done
                })
            }
            Operation::StopSessions { names, grace } => {
                let stop = |done| Command::Stop(done, grace);
                let stopped = self.sessions.request(names.as_deref(), stop).await;
                Box::pin(async move {
                    stopped.await;
                    Outcome::Done
                })
            }
            Operation::Request { config, names, stop, context } => {
                let Some(mut control) = self.control.take() else { return };
                let opened = std::mem::take(&mut self.sockets);
                Box::pin(async move {
                    let renegotiated = control
                        .renegotiate(&config, &names, opened, stop, context, &derivation)
                        .await;
                    Outcome::Negotiated(renegotiated.map(|declined| (control, declined)))
                })
            }
            Operation::Close => {
                let control = self.control.take();
                Box::pin(async move {
                    if let Some(control) = control {
                        control.stop().await;
                    }
                    Outcome::Done
                })
            }
        };
        self.operation = Some(work);
    }

    /// Ends an operation without sockets, because the control connection is gone. The machine
    /// handles the loss next.
    fn open_nothing(&mut self) {
        self.operation = Some(Box::pin(async { Outcome::OpenedSockets(Vec::new(), Vec::new()) }));
    }

    /// Keeps the sockets that an operation opened and returns the input for the machine.
    fn finish(&mut self, outcome: Outcome) -> Input {
        match outcome {
            Outcome::Resolved(addresses) => Input::Resolved(addresses),
            Outcome::Connected(connected) => Input::Connected(connected.and_then(|stream| {
                let ends = negotiate::ends(&stream)?;
                self.stream = Some(stream);
                Ok(ends)
            })),
            Outcome::Negotiated(negotiated) => {
                Input::Started(negotiated.map(|(mut established, declined)| {
                    self.started = std::mem::take(&mut established.sessions);
                    let sessions = self.started.iter().map(OpenSession::started).collect();
                    let machine = established.machine();
                    let (mode, is_individual) = (machine.mode().0, machine.is_individual());
                    self.control = Some(established);
                    Started { sessions, declined, mode, is_individual }
                }))
            }
            Outcome::OpenedUnnegotiated(opened, declined) => {
                self.started = opened;
                let sessions = self.started.iter().map(OpenSession::started).collect();
                Input::Started(Ok(Started { sessions, declined, ..Started::default() }))
            }
            Outcome::OpenedSockets(opened, declined) => {
                let names = opened.iter().map(|(session, _)| session.name.clone()).collect();
                self.sockets = opened;
                Input::Opened(names, declined)
            }
            Outcome::Done => Input::Done,
        }
    }

    fn network_changed(&mut self, better: u64) {
        let now = clock::now();
        self.machine.handle(Input::Network(better), now);
        if !self.machine.is_running() {
            return;
        }
        let config = self.machine.config();
        if self.interface != host::bound_interface(config) {
            let failure = host::interface_gone(config);
            return self.machine.handle(Input::Lost(failure), now);
        }
        let local: Option<IpAddr> = self.control.as_ref().and_then(|control| control.local());
        if let Some(failure) = host::source_gone(&self.machine, local) {
            self.machine.handle(Input::Lost(failure), now);
        }
    }

    /// Watches for other addresses of the DNS names of sessions without a control connection.
    fn watch_dns(&mut self) {
        let config = self.machine.config();
        if !self.was_running {
            self.interface = host::bound_interface(config);
        }
        self.dns_watch = (config.control_type != ControlType::Managed).then(|| {
            let remotes = self.machine.remotes().map(|(name, to)| (name.to_owned(), to));
            let watch = connect::wait_for_dns_change(config.clone(), remotes.collect());
            Box::pin(watch) as BoxFuture<()>
        });
    }
}

fn command_for(command: SessionCommand) -> Command {
    match command {
        SessionCommand::Down(cause, attempts) => Command::Down(cause, attempts),
        SessionCommand::Park => Command::Park,
        SessionCommand::Idle => Command::Idle,
        SessionCommand::Restart => Command::Restart,
    }
}
