//! A test session on a data-plane thread. It owns its state machine, its socket and the results
//! that are not yet reported. It lives as long as the session is configured, over any number of
//! control connections.

mod report;

use std::{io, net::SocketAddr, sync::Arc};

use tokio::sync::oneshot;

use report::FinishedTest;

use super::{
    command::Command,
    open::{MAX_GRACE_NS, OpenSession},
    pacing::{Pacing, Share},
    progress::Progress,
    status::Status,
};
use crate::{
    model::{ControlConnection, ControlType, Schedule, TestSession, Thresholds},
    net::{Drained, StampNumbers, TestSocket, clock, random},
    results::{Results, Subject},
    session::plane::Endpoint,
    stats::{ProbeResult, ThresholdMonitor},
    time::{Monotonic, Now, StampSource, UnixTime},
    twamp::{
        connection::{Failure, Grace, SHORT_PAUSE_NS, SessionProgress, SessionStage},
        sender::{SenderConfig, SessionSender},
    },
};

/// Grid of all deadlines except those of probes. One wake-up then serves many sessions.
const GRID_NS: u64 = 1_000_000;
/// Number of sent packets after which transmit timestamps are read although no reply has arrived.
/// Otherwise they are read together with replies.
const MAX_UNREAD_STAMPS: u32 = 16;

struct Link {
    socket: TestSocket,
    remote: SocketAddr,
    /// Length in octets of a probe without padding.
    min_len: usize,
    padding_start: Option<[u8; 2]>,
    packet: Vec<u8>,
    numbers: StampNumbers,
    /// Number of packets sent since transmit timestamps were last read.
    unread_stamps: u32,
    _share: Share,
}

/// State that all sessions of a connection share.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    pub(super) results: Arc<Results>,
    pub(super) status: Arc<Status>,
    pub(super) progress: Arc<Progress>,
    pub(super) pacing: Arc<Pacing>,
}

/// Test session on a data-plane thread.
pub(super) struct Session {
    config: TestSession,
    subject: Arc<Subject>,
    iteration_done_events: bool,
    machine: SessionSender,
    link: Option<Link>,
    /// Latest error with which the kernel refused to send a probe of the running test.
    refusal: Option<io::Error>,
    /// Pending `Stop` command, answered when the running test has ended.
    stopping: Option<oneshot::Sender<()>>,
    /// Pending `Pause` command, answered when no test runs.
    pausing: Option<oneshot::Sender<()>>,
    thresholds: ThresholdMonitor,
    probes: Vec<ProbeResult>,
    probes_due: Monotonic,
    /// True if the server may end the session in a pause between tests.
    may_expire: bool,
    /// Latest test, not yet reported because its session may have expired before it.
    unexplained: Option<Box<FinishedTest>>,
    /// True until the first test since the start of the session has ended.
    is_first_test: bool,
    tools: Tools,
}

impl Endpoint for Session {
    type Command = Command;

    /// Replies carry a timestamp of the kernel, so the time at which they are read does not matter.
    const POLL_COALESCE_NS: u64 = 1_000_000;

    fn socket(&self) -> Option<&TestSocket> {
        self.link.as_ref().map(|link| &link.socket)
    }

    fn handle_command(&mut self, command: Command) {
        self.handle_command(command, clock::now());
    }

    fn receive(&mut self) -> Drained {
        let Some(link) = &mut self.link else { return Drained::Yes };
        let machine = &mut self.machine;
        // Transmit timestamps are read first: a reply is evaluated with the timestamp of its probe.
        link.read_stamps(machine);
        let received = link.socket.receive(|meta, packet| {
            if meta.source.port() == link.remote.port() && meta.source.ip() == link.remote.ip() {
                machine.handle_reply(packet, meta, clock::now());
            } else {
                machine.count_ignored();
            }
        });
        machine.count_dropped(link.socket.newly_dropped());
        received.unwrap_or_else(|error| {
            tracing::debug!(%error, session = self.config.name, "failed to read test socket");
            Drained::Yes
        })
    }

    fn advance(&mut self, now: Now) {
        self.advance(now);
    }

    fn deadline(&self) -> Option<Monotonic> {
        let (probe, machine) = (self.machine.next_probe(), self.machine.poll_deadline());
        let flush = (!self.probes.is_empty()).then_some(self.probes_due);
        let other = machine.into_iter().chain(flush).min();
        let on_grid = |at: Monotonic| at.0.checked_next_multiple_of(GRID_NS).map(Monotonic);
        let other = other.map(|at| on_grid(at).unwrap_or(at));
        probe.into_iter().chain(other).min()
    }

    fn end(&mut self) {
        let now = clock::now();
        self.machine.stop(0, now);
        self.machine.handle_timeout(now);
        self.report(now);
        self.report_unexplained(false);
        self.flush_probes(now);
        // Raised thresholds are cleared, because their measurement ends.
        let cleared = self.thresholds.set(&Thresholds::default());
        self.report_thresholds(cleared, now);
    }
}

impl Link {
    fn read_stamps(&mut self, machine: &mut SessionSender) {
        if self.numbers.is_pending() {
            let Self { socket, numbers, .. } = self;
            socket.transmitted(assign_stamps(numbers, machine));
        }
        self.unread_stamps = 0;
    }

    fn restart_numbers(&mut self, machine: &mut SessionSender) {
        let Self { socket, numbers, .. } = self;
        if let Err(error) = socket.restart_numbers(assign_stamps(numbers, machine)) {
            tracing::debug!(%error, "failed to restart timestamp numbers");
        }
        numbers.restart(clock::monotonic());
        self.unread_stamps = 0;
    }
}

/// Returns a function that assigns transmit stamps to their probes.
fn assign_stamps<'a>(
    numbers: &'a mut StampNumbers,
    machine: &'a mut SessionSender,
) -> impl FnMut(u32, UnixTime, StampSource) + use<'a> {
    let now = clock::monotonic();
    move |number, at, source| {
        if let Some(sequence) = numbers.packet(number, now) {
            machine.transmitted(sequence, at, source);
        }
    }
}

impl Session {
    /// Creates a session without a socket.
    pub(super) fn new(connection: &ControlConnection, index: usize, tools: Tools) -> Self {
        let config = connection.sessions[index].clone();
        let mut thresholds = ThresholdMonitor::default();
        thresholds.set(&config.thresholds);
        Self {
            subject: Arc::new(subject(connection, &config)),
            machine: SessionSender::new(sender_config(connection, &config)),
            iteration_done_events: connection.test_iteration_done_events,
            config,
            link: None,
            refusal: None,
            stopping: None,
            pausing: None,
            thresholds,
            probes: Vec::new(),
            probes_due: Monotonic::default(),
            may_expire: connection.sessions_may_expire(),
            unexplained: None,
            is_first_test: false,
            tools,
        }
    }

    fn handle_command(&mut self, command: Command, now: Now) {
        match command {
            Command::Up(session) => self.start(*session, now),
            Command::Down(cause, attempts) => {
                self.report_unexplained(false);
                self.link = None;
                self.pausing = None;
                self.thresholds.set_reachable(false);
                self.machine.session_lost(cause, attempts, now);
            }
            Command::Park => {
                self.link = None;
                self.machine.pause();
            }
            Command::Pause(done) => {
                self.machine.pause();
                self.pausing = Some(done);
            }
            Command::Configure(connection, index) => self.configure(&connection, index, now),
            Command::Restart => {
                self.report_unexplained(false);
                self.machine.restart();
                self.tools.progress.set_stage(&self.config.name, SessionStage::Testing);
            }
            Command::Stop(done, grace) => {
                let full_ns = self.config.loss_timeout_ns;
                let grace_ns = match grace {
                    Grace::LossTimeout => full_ns,
                    Grace::Short => full_ns.min(MAX_GRACE_NS),
                };
                if grace_ns < full_ns {
                    self.thresholds.set_reachable(false);
                }
                self.machine.stop(grace_ns, now);
                self.tools.progress.update(&self.config.name, SessionProgress::wake);
                self.stopping = Some(done);
            }
            Command::Idle => {
                self.report_unexplained(false);
                let cleared = self.thresholds.clear_all();
                self.report_thresholds(cleared, now);
            }
            Command::Snapshot(answer) => {
                let _ = answer.send(self.current_statistics(now));
            }
        }
    }

    /// Takes over the socket of a started session and sends its probes from now on.
    fn start(&mut self, session: OpenSession, now: Now) {
        let OpenSession { socket, remote, mut carrier, padding_start, .. } = session;
        carrier.shares_clock = remote.ip().is_loopback() || remote.ip() == socket.local().ip();
        let min_len = carrier.format.probe_octets();
        let packet = new_packet(&self.config, min_len, padding_start);
        let TestSession { probe_interval_ns, burst_size, .. } = self.config;
        let latest_ns = self.machine.test_interval_ns();
        let share = self.tools.pacing.join(probe_interval_ns, burst_size, latest_ns);
        let first = share.first_start(now.monotonic);
        self.link = Some(Link {
            socket,
            remote,
            min_len,
            padding_start,
            packet,
            numbers: StampNumbers::default(),
            unread_stamps: 0,
            _share: share,
        });
        self.is_first_test = true;
        self.tools.progress.update(&self.config.name, SessionProgress::session_started);
        // The configuration may have changed while the socket was opened.
        self.set_ttl();
        self.thresholds.set_reachable(true);
        self.machine.session_started(carrier, first, now);
        // The test that the connection was made for may no longer be due.
        self.report_due(now);
    }

    fn configure(&mut self, connection: &ControlConnection, index: usize, now: Now) {
        self.report_unexplained(false);
        self.may_expire = connection.sessions_may_expire();
        self.config = connection.sessions[index].clone();
        self.subject = Arc::new(subject(connection, &self.config));
        self.iteration_done_events = connection.test_iteration_done_events;
        let completed = self.machine.is_completed();
        self.machine.set_config(sender_config(connection, &self.config), now.monotonic);
        if completed && !self.machine.is_completed() {
            self.tools.progress.set_stage(&self.config.name, SessionStage::Testing);
        }
        if let Some(link) = &mut self.link {
            link.packet = new_packet(&self.config, link.min_len, link.padding_start);
        }
        self.set_ttl();
        self.report_due(now);
        let cleared = self.thresholds.set(&self.config.thresholds);
        self.report_thresholds(cleared, now);
    }

    fn report_due(&self, now: Now) {
        if let Some(due) = self.machine.idle_until() {
            let waits_long = due.since_ns(now.monotonic) > SHORT_PAUSE_NS;
            self.tools.progress.move_due(&self.config.name, due, waits_long);
        }
    }

    fn set_ttl(&self) {
        let Some(link) = &self.link else { return };
        if let Err(error) = link.socket.set_ttl(self.config.ttl) {
            tracing::warn!(%error, session = self.config.name, "failed to set TTL");
        }
    }

    /// Sends the probes that are due, passes the time to the machine, and reports its events.
    fn advance(&mut self, now: Now) {
        if self.machine.has_expired_probe(now.monotonic) {
            // A reply that arrived in time may still be in the socket.
            self.receive();
        }
        self.machine.handle_timeout(now);
        self.send_due();
        self.report(now);
        if !self.probes.is_empty() && self.probes_due <= now.monotonic {
            self.flush_probes(now);
        }
        if self.machine.is_paused()
            && let Some(done) = self.pausing.take()
        {
            self.link = None;
            let _ = done.send(());
        }
        if self.machine.is_stopped()
            && let Some(done) = self.stopping.take()
        {
            self.link = None;
            self.flush_probes(now);
            let _ = done.send(());
        }
    }

    fn send_due(&mut self) {
        let Some(link) = &mut self.link else { return };
        loop {
            // Both clocks are read together, because a delay between the readings would look like a
            // step of the clock.
            let now = clock::now();
            if self.machine.poll_probe(now).is_none() {
                return;
            }
            let random = match self.config.schedule {
                Schedule::Poisson => random::number(),
                Schedule::Periodic => 0,
            };
            let error_estimate = clock::error_estimate();
            let now = clock::now();
            self.machine.write_probe(now.unix, error_estimate, &mut link.packet, now.monotonic);
            match link.socket.send(&link.packet, link.remote) {
                Ok(()) => {
                    self.machine.probe_sent(now.unix, random, now);
                    link.numbers.sent();
                    link.unread_stamps += 1;
                    if link.unread_stamps >= MAX_UNREAD_STAMPS {
                        link.read_stamps(&mut self.machine);
                    }
                }
                Err(error) => {
                    tracing::trace!(%error, session = self.config.name, "probe not sent");
                    link.restart_numbers(&mut self.machine);
                    let refusal = (!TestSocket::is_transient(&error)).then_some(error);
                    let failure =
                        refusal.as_ref().map(|error| Failure::from_send_error(error, link.remote));
                    self.machine.probe_refused(failure.map(|f| f.cause), random, now);
                    self.refusal = refusal.or_else(|| self.refusal.take());
                }
            }
        }
    }
}

/// Returns a packet with padding, into which the header of each probe is written. All probes have
/// the same padding; it is random only so that links do not compress it.
fn new_packet(config: &TestSession, min_len: usize, padding_start: Option<[u8; 2]>) -> Vec<u8> {
    let mut packet = vec![0; min_len.max(config.data_size.into())];
    if !config.zero_padding {
        random::fill_padding(&mut packet);
    }
    if let (Some(start), Some(padding)) = (padding_start, packet.get_mut(min_len..min_len + 2)) {
        padding.copy_from_slice(&start);
    }
    packet
}

fn subject(connection: &ControlConnection, session: &TestSession) -> Subject {
    Subject::new(&connection.name, &session.name, session.labels.clone(), connection.results)
}

pub(super) fn sender_config(connection: &ControlConnection, session: &TestSession) -> SenderConfig {
    SenderConfig {
        probe_count: session.probe_count,
        probe_interval_ns: session.probe_interval_ns,
        burst_size: session.burst_size,
        schedule: session.schedule,
        loss_timeout_ns: session.loss_timeout_ns,
        test_interval_ns: connection.test_interval_ns,
        test_count: connection.test_count,
        data_size: session.data_size,
        reflector_numbers_replies: connection.control_type == ControlType::Managed,
        availability: session.availability,
        strict_error_estimate: connection.strict_error_estimate,
    }
}
