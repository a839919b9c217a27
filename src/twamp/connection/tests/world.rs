//! Simulated server and host of the machine. Each step checks the invariants: one operation at a
//! time, events in pairs, and a deadline if no other input follows.

use std::collections::BTreeMap;

use super::{server::Server, *};
use crate::{model::FailureCause, time::UnixTime};

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;
/// Length of a test.
pub(super) const TEST: u64 = 100 * MS;
const EPOCH: u64 = 1_800_000_000 * SECOND;

/// Simulated session on its thread.
#[derive(Default)]
pub(super) struct Session {
    pub(super) progress: SessionProgress,
    /// Time of the latest packet while the session is started, nanoseconds.
    last_packet: u64,
    /// End of the latest test, nanoseconds.
    last_end: u64,
    pub(super) is_started: bool,
    pub(super) is_forgotten: bool,
    pub(super) is_parked: bool,
    pub(super) next_end: u64,
    pub(super) tests: u64,
    pub(super) answered: u64,
    pub(super) unanswered: u64,
    /// Unanswered tests before which the session may have expired.
    pub(super) expired: u64,
    pub(super) unreachable: u64,
    pub(super) starts: u64,
}

#[expect(clippy::struct_excessive_bools, reason = "facts about a simulated host")]
pub(super) struct World {
    pub(super) machine: Connection,
    pub(super) now: u64,
    pub(super) server: Server,
    pub(super) operation: Option<(u64, Operation)>,
    pub(super) has_control: bool,
    pub(super) sessions: BTreeMap<String, Session>,
    pub(super) events: Vec<(u64, ConnectionEvent)>,
    /// Times at which attempts began.
    pub(super) attempts: Vec<u64>,
    /// Operations that began, each as a word with its sessions.
    pub(super) operations: Vec<(&'static str, Vec<String>)>,
    pub(super) commands: Vec<SessionCommand>,
    pub(super) persisted: Option<Remembered>,
    pub(super) status: ConnectionStatus,
    pub(super) is_finished: bool,
    /// True if no reflector can be reached from this host.
    pub(super) no_route: bool,
    /// True if awaited tests last for minutes.
    pub(super) has_long_tests: bool,
    /// True if the current pause exceeds its limit.
    pub(super) pauses_for_long: bool,
    /// Probes of each test.
    pub(super) probes: u64,
    pub(super) starts: u64,
    pub(super) revision: u64,
    /// True if there is a reason to stop all sessions.
    pub(super) may_stop_all: bool,
    outage: bool,
}

impl World {
    pub(super) fn new(config: Arc<ControlConnection>) -> Self {
        Self::resumed(config, false, Remembered::default(), 0)
    }

    pub(super) fn resumed(
        config: Arc<ControlConnection>,
        stopped: bool,
        remembered: Remembered,
        now: u64,
    ) -> Self {
        let time = at(now);
        let status = ConnectionStatus::new(&config, time);
        let outage = remembered.outage.is_some();
        let persisted = Some(remembered.clone());
        let desired = Desired { config, stopped, starts: 0, revision: 1 };
        let machine = Connection::start(desired, status.clone(), remembered, 7, time);
        let mut world = Self {
            machine,
            now,
            server: Server::default(),
            operation: None,
            has_control: false,
            sessions: BTreeMap::new(),
            events: Vec::new(),
            attempts: Vec::new(),
            operations: Vec::new(),
            commands: Vec::new(),
            persisted,
            status,
            is_finished: false,
            no_route: false,
            has_long_tests: false,
            pauses_for_long: false,
            probes: 5,
            starts: 0,
            revision: 1,
            may_stop_all: false,
            outage,
        };
        world.carry_out();
        world
    }

    /// Makes the task fail and restarts it.
    pub(super) fn fail_task(&mut self) {
        let mut status = self.status.clone();
        let failure = Failure::new(FailureCause::Panic, "the task failed");
        if status.task_failed(failure.clone(), false, at(self.now)).is_some() {
            self.event(ConnectionEvent::Lost(failure));
        }
        let pending = self.machine.pending.clone();
        let desired = pending.unwrap_or_else(|| self.machine.desired.clone());
        self.sessions.clear();
        (self.operation, self.has_control) = (None, false);
        self.machine = Connection::start(desired, status, self.remembered(), 1, at(self.now));
        self.carry_out();
    }

    /// Returns the persisted state. Its outage is known by UTC only, as in another process.
    fn remembered(&self) -> Remembered {
        let persisted = self.persisted.clone().unwrap_or_default();
        let outage = persisted.outage.map(|outage| {
            let Outage { failure, began, attempts, .. } = outage;
            Outage::resume(failure, began, attempts, at(self.now))
        });
        Remembered { outage, ..persisted }
    }

    /// Ends the process, by a signal or a kill, and starts another after some time.
    pub(super) fn restart_agent(&mut self, is_killed: bool, down_ns: u64) {
        let (was_completed, was_done) =
            (matches!(self.machine.state, State::Completed), self.machine.pending.is_none());
        if !is_killed {
            self.may_stop_all = true;
            self.input(Input::End { is_resumed: true });
            self.run(10 * SECOND);
            assert!(self.is_finished, "still {:?}", self.machine.state);
        }
        self.now += down_ns;
        let time = at(self.now);
        let remembered = self.remembered();
        assert_eq!(self.outage, remembered.outage.is_some(), "an outage that was reported is kept");
        let pending = self.machine.pending.clone();
        let desired = pending.unwrap_or_else(|| self.machine.desired.clone());
        self.sessions.clear();
        (self.operation, self.has_control, self.is_finished) = (None, false, false);
        self.status = ConnectionStatus::new(&desired.config, time);
        self.machine = Connection::start(desired, self.status.clone(), remembered, 1, time);
        self.carry_out();
        let is_kept = !was_completed || !was_done || matches!(self.machine.state, State::Completed);
        assert!(is_kept, "completed before, but {:?} after a restart", self.machine.state);
    }

    pub(super) fn input(&mut self, input: Input) {
        let now = at(self.now);
        self.machine.handle(input, now);
        self.carry_out();
    }

    pub(super) fn desire(&mut self, config: Arc<ControlConnection>) {
        self.revision += 1;
        self.set_desired(config, false);
    }

    pub(super) fn set_desired(&mut self, config: Arc<ControlConnection>, stopped: bool) {
        let (starts, revision) = (self.starts, self.revision);
        self.input(Input::Desired(Desired { config, stopped, starts, revision }));
    }

    pub(super) fn start_by_hand(&mut self) {
        self.starts += 1;
        self.set_desired(self.machine.config().clone(), false);
    }

    pub(super) fn stop_by_hand(&mut self) {
        self.set_desired(self.machine.config().clone(), true);
    }

    /// Stops the server and resets open connections.
    pub(super) fn lose_server(&mut self) {
        self.server.up = false;
        self.reset();
    }

    pub(super) fn reset(&mut self) {
        if self.has_control {
            self.may_stop_all = true;
            self.input(Input::Lost(Failure::new(FailureCause::Reset, "reset")));
        }
    }

    pub(super) fn run(&mut self, length: u64) {
        let end = self.now + length;
        loop {
            let operation = self.operation.as_ref().map(|(due, _)| *due);
            let deadline = self.machine.next_deadline().map(|due| due.0.max(self.now));
            let test = self.sessions.values().filter(|s| s.next_end > 0).map(|s| s.next_end).min();
            let next = [operation, deadline, test].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if test.is_some_and(|test| test <= self.now) {
                self.end_tests();
            } else if operation.is_some_and(|due| due <= self.now) {
                self.end_operation();
            } else {
                self.input(Input::Timer);
            }
        }
        self.now = end;
    }

    fn end_tests(&mut self) {
        let config = self.machine.config().clone();
        let (now, up) = (self.now, self.server.up || self.has_control);
        let is_managed = config.control_type == ControlType::Managed;
        let mut changed = Vec::new();
        for (name, session) in &mut self.sessions {
            if session.next_end == 0 || session.next_end > now {
                continue;
            }
            let begun = now - TEST;
            let sent = session.is_started;
            // Unreachable tests do not count for test_count.
            session.tests += u64::from(sent);
            session.last_end = now;
            let idle = begun.saturating_sub(session.last_packet);
            session.is_forgotten |= sent && is_managed && idle > self.server.refwait;
            session.last_packet = now;
            let is_silent = self.server.silent.contains(name) || session.is_forgotten;
            let answered = sent.then_some(up && !is_silent);
            match answered {
                None => session.unreachable += 1,
                Some(true) => session.answered += 1,
                Some(false) => session.unanswered += 1,
            }
            let refused = Failure::new(FailureCause::NoRoute, "no route");
            let refused = (sent && self.no_route).then_some(refused);
            let probes = if sent && refused.is_none() { self.probes } else { 0 };
            let answered = if refused.is_some() { Some(false) } else { answered };
            session.progress.test_ended(answered, probes, refused, Monotonic(now));
            session.expired += u64::from(session.progress.may_have_expired());
            let count = config.test_count;
            if count != 0 && session.tests >= count {
                session.next_end = 0;
                session.progress.stage = SessionStage::Completed;
            } else {
                let due = now + config.test_interval_ns;
                session.next_end = due + TEST;
                session.progress.stage = SessionStage::Between(Monotonic(due));
            }
            changed.push((name.clone(), session.progress.clone()));
        }
        self.may_stop_all |= changed.iter().any(|(_, p)| p.stage == SessionStage::Completed);
        self.input(Input::Progress(changed));
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Begin(operation) => self.begin(operation),
                Action::Abandon => {
                    if let Some((_, Operation::Negotiate { .. } | Operation::Request { .. })) =
                        self.operation.take()
                    {
                        self.has_control = false;
                    }
                }
                Action::Drop => self.has_control = false,
                Action::ConfigureSessions(config) => self.configure(&config),
                Action::EndSessions => self.sessions.clear(),
                Action::Start(names) => {
                    for name in names {
                        let Some(session) = self.sessions.get_mut(&name) else { continue };
                        session.progress.session_started();
                        session.is_started = true;
                        session.is_forgotten = false;
                        session.starts += 1;
                        session.last_packet = self.now;
                        let due = match session.next_end {
                            0 => self.now,
                            end => (end - TEST).max(self.now),
                        };
                        let is_completed = session.progress.stage == SessionStage::Completed;
                        session.next_end = if is_completed { 0 } else { due + TEST };
                        session.is_parked = false;
                    }
                }
                Action::Command(command) => self.command(command),
                Action::VerifyUnreachable(failure) => {
                    let answer = self.no_route.then_some(failure);
                    self.may_stop_all |= self.no_route;
                    self.input(Input::Verified(answer));
                }
                Action::Event(event) => self.event(event),
                Action::Persist(remembered) => self.persisted = Some(remembered),
                Action::Finish => self.is_finished = true,
                Action::Decline { name, .. } => {
                    let now = self.now;
                    if let Some(session) = self.sessions.get_mut(&name)
                        && session.next_end == 0
                    {
                        session.next_end = now + TEST;
                    }
                }
                Action::SetSocketOptions(_) | Action::WatchDns => {}
            }
        }
        if let Some(status) = self.machine.poll_status() {
            self.status = status.clone();
        }
        self.check();
    }

    /// Checks the invariants after each input.
    fn check(&self) {
        let is_final = matches!(
            self.machine.state,
            State::Inactive | State::Stopped | State::Completed | State::Ended
        );
        let waits = self.machine.next_deadline().is_some() || self.operation.is_some();
        assert!(is_final || waits, "nothing will happen in {:?}", self.machine.state);
        assert_eq!(self.outage, self.status.outage.is_some() || self.is_finished && self.outage);
        if let State::WaitingRetry(due) = self.machine.state {
            let config = self.machine.config();
            let longest_ns = config.test_interval_ns.max(config.retry_backoff_max_ns);
            assert!(
                due.since_ns(Monotonic(self.now)) <= longest_ns,
                "the next attempt is due too late"
            );
            let started = self.sessions.values().any(|session| session.is_started);
            assert!(!started && self.outage, "an attempt is awaited without an outage");
        }
        let is_connected = self.machine.has_control == self.has_control;
        assert!(is_connected || self.operation.is_some(), "{:?}", self.machine.state);
    }

    fn configure(&mut self, config: &ControlConnection) {
        let names: Vec<String> = config.sessions.iter().map(|s| s.name.clone()).collect();
        self.sessions.retain(|name, _| names.contains(name));
        for name in names {
            self.sessions.entry(name).or_default();
        }
        // Intervals and test_count may have changed.
        let mut changed = Vec::new();
        for (name, session) in &mut self.sessions {
            let stage = match session.progress.stage {
                SessionStage::Completed
                    if config.test_count != 0 && session.tests >= config.test_count =>
                {
                    continue;
                }
                SessionStage::Completed => {
                    session.next_end = if session.is_started { self.now + TEST } else { 0 };
                    SessionStage::Testing
                }
                SessionStage::Between(_) if session.next_end > 0 => {
                    let due = (session.last_end + config.test_interval_ns).max(self.now);
                    session.next_end = due + TEST;
                    SessionStage::Between(Monotonic(due))
                }
                SessionStage::Between(_) | SessionStage::Testing => continue,
            };
            if stage != session.progress.stage {
                session.progress.stage = stage;
                changed.push((name.clone(), session.progress.clone()));
            }
        }
        if !changed.is_empty() {
            self.input(Input::Progress(changed));
        }
    }

    fn command(&mut self, command: SessionCommand) {
        self.commands.push(command);
        for session in self.sessions.values_mut() {
            match command {
                SessionCommand::Down(..) => {
                    session.is_started = false;
                    let is_completed = session.progress.stage == SessionStage::Completed;
                    if session.next_end == 0 && !is_completed {
                        session.next_end = self.now + TEST;
                    }
                }
                SessionCommand::Park => (session.is_started, session.is_parked) = (false, true),
                SessionCommand::Idle => session.next_end = 0,
                SessionCommand::Restart => {
                    (session.tests, session.progress.stage) = (0, SessionStage::Testing);
                }
            }
        }
    }

    fn event(&mut self, event: ConnectionEvent) {
        match &event {
            ConnectionEvent::Lost(_) => {
                assert!(
                    !std::mem::replace(&mut self.outage, true),
                    "a second outage begins during an outage"
                );
            }
            ConnectionEvent::Restored { .. } | ConnectionEvent::Abandoned { .. } => {
                assert!(std::mem::take(&mut self.outage), "an outage ends that did not begin");
            }
            ConnectionEvent::Completed => {}
        }
        self.events.push((self.now, event));
    }
}

pub(super) fn at(ns: u64) -> Now {
    Now { monotonic: Monotonic(ns), unix: UnixTime(EPOCH + ns) }
}
