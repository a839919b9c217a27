//! A server and a host for the machine, in simulated time. Each step checks what holds always: one
//! operation at a time, events in pairs, and a deadline wherever nothing else will happen.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{model::touched_sessions, proto::FailureCause, time::UnixTime};

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;
/// Length of a test.
pub(super) const TEST: u64 = 100 * MS;
const EPOCH: u64 = 1_800_000_000 * SECOND;

/// The server and the network between.
#[expect(clippy::struct_excessive_bools, reason = "each is a habit of some server")]
pub(super) struct Server {
    pub(super) up: bool,
    /// Failure of an attempt while the server is down, and the time that takes.
    pub(super) failure: (FailureCause, u64),
    /// Time that name resolution takes; `None` where nobody answers.
    pub(super) resolves_in: Option<u64>,
    pub(super) handshake: u64,
    pub(super) is_individual: bool,
    /// Sessions that it takes; asked for more, it closes the connection.
    pub(super) takes: usize,
    /// Sessions that it rejects.
    pub(super) rejects: BTreeSet<String>,
    /// Sessions whose sockets do not come about, and why.
    pub(super) unopened: BTreeMap<String, FailureCause>,
    /// Silence after which it forgets a session.
    pub(super) refwait: u64,
    /// Closes when sessions are stopped.
    pub(super) closes_on_stop: bool,
    /// Whether it answers extensions.
    pub(super) knows_extensions: bool,
}

/// A session on its thread.
#[derive(Default)]
pub(super) struct Session {
    progress: SessionProgress,
    /// Time until which packets are sent, while started.
    last_packet: u64,
    pub(super) is_started: bool,
    is_forgotten: bool,
    is_parked: bool,
    next_end: u64,
    pub(super) tests: u64,
    pub(super) answered: u64,
    pub(super) unanswered: u64,
    pub(super) unreachable: u64,
    pub(super) starts: u64,
}

#[expect(clippy::struct_excessive_bools, reason = "facts about a simulated host")]
pub(super) struct World {
    pub(super) machine: Connection,
    pub(super) now: u64,
    pub(super) server: Server,
    operation: Option<(u64, Operation)>,
    pub(super) has_control: bool,
    pub(super) sessions: BTreeMap<String, Session>,
    pub(super) events: Vec<(u64, ConnectionEvent)>,
    /// Times at which attempts began.
    pub(super) attempts: Vec<u64>,
    /// Operations that began, by a word and the sessions they name.
    pub(super) operations: Vec<(&'static str, Vec<String>)>,
    pub(super) commands: Vec<SessionCommand>,
    pub(super) persisted: Option<Remembered>,
    pub(super) status: ConnectionStatus,
    pub(super) is_finished: bool,
    /// Whether no reflector can be reached from this host.
    pub(super) no_route: bool,
    pub(super) starts: u64,
    pub(super) revision: u64,
    /// A reason for which all sessions may be stopped.
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
        let desired = Desired { config, stopped, starts: 0, revision: 1 };
        let machine = Connection::start(desired, status.clone(), remembered, 7, time);
        let mut world = Self {
            machine,
            now,
            server: Server {
                up: true,
                failure: (FailureCause::Refused, MS),
                resolves_in: Some(2 * MS),
                handshake: 3 * MS,
                is_individual: true,
                takes: usize::MAX,
                rejects: BTreeSet::new(),
                unopened: BTreeMap::new(),
                refwait: u64::MAX,
                closes_on_stop: false,
                knows_extensions: true,
            },
            operation: None,
            has_control: false,
            sessions: BTreeMap::new(),
            events: Vec::new(),
            attempts: Vec::new(),
            operations: Vec::new(),
            commands: Vec::new(),
            persisted: None,
            status,
            is_finished: false,
            no_route: false,
            starts: 0,
            revision: 1,
            may_stop_all: false,
            outage,
        };
        world.carry_out();
        world
    }

    /// Lets the task fail and starts it again.
    pub(super) fn fail_task(&mut self) {
        let mut status = self.status.clone();
        let failure = Failure::new(FailureCause::Panic, "the task failed");
        if status.task_failed(failure.clone(), false, at(self.now)) {
            self.event(ConnectionEvent::Lost(failure));
        }
        let config = self.machine.config().clone();
        let (starts, revision) = (self.starts, self.revision);
        let desired = Desired { config, stopped: false, starts, revision };
        (self.operation, self.has_control) = (None, false);
        self.machine = Connection::start(desired, status, Remembered::default(), 1, at(self.now));
        self.carry_out();
    }

    pub(super) fn input(&mut self, input: Input) {
        let now = at(self.now);
        self.machine.handle(input, now);
        self.carry_out();
    }

    pub(super) fn desire(&mut self, config: Arc<ControlConnection>) {
        self.revision += 1;
        self.desired(config, false);
    }

    pub(super) fn desired(&mut self, config: Arc<ControlConnection>, stopped: bool) {
        let (starts, revision) = (self.starts, self.revision);
        self.input(Input::Desired(Desired { config, stopped, starts, revision }));
    }

    pub(super) fn start_by_hand(&mut self) {
        self.starts += 1;
        self.desired(self.machine.config().clone(), false);
    }

    pub(super) fn stop_by_hand(&mut self) {
        self.desired(self.machine.config().clone(), true);
    }

    /// Ends the server: open connections are reset.
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
            session.tests += 1;
            let sent = session.is_started;
            let idle = begun.saturating_sub(session.last_packet);
            session.is_forgotten |= sent && is_managed && idle > self.server.refwait;
            session.last_packet = now;
            let answered = sent.then_some(up && !session.is_forgotten);
            match answered {
                None => session.unreachable += 1,
                Some(true) => session.answered += 1,
                Some(false) => session.unanswered += 1,
            }
            let refused = Failure::new(FailureCause::NoRoute, "no route");
            let refused = (sent && self.no_route).then_some(refused);
            let answered = if refused.is_some() { Some(false) } else { answered };
            session.progress.test_ended(answered, refused, Monotonic(now));
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
                Action::Follow(config) => self.follow(&config),
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
                Action::Tune(_) | Action::WatchNames => {}
            }
        }
        if let Some(status) = self.machine.poll_status() {
            self.status = status.clone();
        }
        let rests = matches!(
            self.machine.state,
            State::Inactive | State::Stopped | State::Completed | State::Ended
        );
        let waits = self.machine.next_deadline().is_some() || self.operation.is_some();
        assert!(rests || waits, "nothing will happen in {:?}", self.machine.state);
        assert_eq!(self.outage, self.status.outage.is_some() || self.is_finished && self.outage);
    }

    fn follow(&mut self, config: &ControlConnection) {
        let names: Vec<String> = config.sessions.iter().map(|s| s.name.clone()).collect();
        self.sessions.retain(|name, _| names.contains(name));
        for name in names {
            self.sessions.entry(name).or_default();
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
                SessionCommand::Rest => session.next_end = 0,
                SessionCommand::Restart => {
                    (session.tests, session.progress.stage) = (0, SessionStage::Testing);
                }
            }
        }
    }

    fn event(&mut self, event: ConnectionEvent) {
        match &event {
            ConnectionEvent::Lost(_) => {
                assert!(!std::mem::replace(&mut self.outage, true), "an outage in an outage");
            }
            ConnectionEvent::Restored { .. } | ConnectionEvent::Abandoned { .. } => {
                assert!(std::mem::take(&mut self.outage), "the end of no outage");
            }
            ConnectionEvent::Completed => {}
        }
        self.events.push((self.now, event));
    }

    fn begin(&mut self, operation: Operation) {
        assert!(self.operation.is_none(), "{operation:?} beside {:?}", self.operation);
        let server = &self.server;
        let (word, names, takes) = match &operation {
            Operation::Resolve(_) => {
                self.attempts.push(self.now);
                ("resolve", Vec::new(), server.resolves_in.unwrap_or(5 * SECOND))
            }
            Operation::Connect { limit_ns, .. } => match server.up {
                true => ("connect", Vec::new(), MS),
                false => ("connect", Vec::new(), server.failure.1.min(*limit_ns)),
            },
            Operation::Negotiate { names, .. } => ("negotiate", names.clone(), server.handshake),
            Operation::OpenUnnegotiated { names, .. } => {
                if !self.machine.is_running() {
                    self.attempts.push(self.now);
                }
                ("open unnegotiated", names.clone(), MS)
            }
            Operation::OpenSockets { names, .. } => ("open", names.clone(), MS),
            Operation::PauseSessions => ("pause", Vec::new(), self.pause()),
            Operation::StopSessions { names, .. } => {
                let all = self.sessions.keys().cloned().collect();
                let chosen = names.clone().unwrap_or(all);
                self.check_stop(names.is_none(), &chosen);
                for name in &chosen {
                    let Some(session) = self.sessions.get_mut(name) else { continue };
                    session.is_started = false;
                    session.next_end = 0;
                    session.progress.wake();
                }
                (if names.is_some() { "stop" } else { "stop all" }, chosen, 10 * MS)
            }
            Operation::Request { names, .. } => ("request", names.clone(), server.handshake),
            Operation::Close => {
                self.has_control = false;
                ("close", Vec::new(), 5 * MS)
            }
        };
        self.operations.push((word, names));
        self.operation = Some((self.now + takes, operation));
    }

    /// Lets sessions finish their tests; returns how long that takes.
    fn pause(&mut self) -> u64 {
        let now = self.now;
        let in_test = |session: &&mut Session| {
            session.is_started && session.next_end > 0 && session.next_end - TEST < now
        };
        let ends = self.sessions.values_mut().filter(in_test).map(|session| session.next_end);
        let last = ends.max().map_or(MS, |end| end + MS - now);
        for session in self.sessions.values_mut().filter(|session| session.is_started) {
            session.is_parked = true;
        }
        last
    }

    /// Only sessions that change are stopped, and all only for a reason.
    fn check_stop(&self, all: bool, names: &[String]) {
        let running = |name: &String| self.sessions.get(name).is_some_and(|s| s.is_started);
        if all {
            assert!(self.may_stop_all || !names.iter().any(running), "all stopped for no reason");
        } else {
            let machine = &self.machine;
            let touched = touched_sessions(&machine.config, &machine.desired.config);
            assert!(names.iter().all(|name| touched.contains(name)), "{names:?} do not change");
        }
    }

    fn end_operation(&mut self) {
        let Some((_, operation)) = self.operation.take() else { return };
        let down = Failure::new(self.server.failure.0, "down");
        let input = match operation {
            Operation::Resolve(_) => Input::Resolved(match self.server.resolves_in {
                Some(_) => Ok(vec!["192.0.2.1:862".parse().unwrap()]),
                None => Err(Failure::new(FailureCause::Dns, "no answer")),
            }),
            Operation::Connect { .. } => Input::Connected(if self.server.up {
                self.has_control = true;
                Ok(("192.0.2.2:1".parse().unwrap(), "192.0.2.1:862".parse().unwrap()))
            } else {
                Err(down)
            }),
            Operation::Negotiate { names, extensions, .. } => {
                let some = extensions != crate::model::Extensions::NONE;
                let result = if !self.server.up {
                    Err(down)
                } else if some && !self.server.knows_extensions {
                    let refused = Failure::new(FailureCause::Rejected, "refused");
                    let suspect = Suspect::ExtensionsLikely;
                    Err(Failure { accept_code: 1, suspect, ..refused })
                } else {
                    self.negotiated(names, 0)
                };
                self.has_control &= result.is_ok();
                Input::Started(result)
            }
            Operation::OpenUnnegotiated { names, .. } => Input::Started(Ok(self.opened(names))),
            Operation::OpenSockets { names, .. } => {
                let Started { sessions, declined, .. } = self.opened(names);
                Input::Opened(sessions.into_iter().map(|s| s.name).collect(), declined)
            }
            Operation::Request { names, .. } => {
                let result = if self.server.closes_on_stop && !self.server.is_individual {
                    Err(Failure::closed_by_server())
                } else if self.server.up {
                    let is_running = |s: &&Session| s.is_started;
                    let running = self.sessions.values().filter(is_running).count();
                    self.negotiated(names, running)
                } else {
                    Err(down)
                };
                self.has_control &= result.is_ok();
                Input::Started(result)
            }
            Operation::PauseSessions => {
                for session in self.sessions.values_mut().filter(|session| session.is_started) {
                    session.is_started = false;
                }
                Input::Done
            }
            Operation::StopSessions { .. } | Operation::Close => Input::Done,
        };
        self.input(input);
    }

    fn opened(&self, names: Vec<String>) -> Started {
        let mut started = Started::default();
        for name in names {
            match self.server.unopened.get(&name) {
                Some(cause) => {
                    let failure = Failure::new(*cause, "not opened");
                    started.declined.push(Declined { name, failure });
                }
                None => started.sessions.push(super::started(&name)),
            }
        }
        started
    }

    fn negotiated(&self, names: Vec<String>, running: usize) -> Result<Started, Failure> {
        let mut started = self.opened(names);
        let room = self.server.takes.saturating_sub(running);
        if let Some(session) = started.sessions.get(room) {
            let suspect = Suspect::Session { name: session.name.clone(), accepted: room };
            let suspect = if room > 0 { suspect } else { Suspect::None };
            return Err(Failure { suspect, ..Failure::closed_by_server() });
        }
        started.sessions.retain(|session| {
            let is_rejected = self.server.rejects.contains(&session.name);
            if is_rejected {
                let failure = Failure::new(FailureCause::Rejected, "rejected");
                started.declined.push(Declined { name: session.name.clone(), failure });
            }
            !is_rejected
        });
        started.is_individual = self.server.is_individual;
        Ok(started)
    }
}

pub(super) fn at(ns: u64) -> Now {
    Now { monotonic: Monotonic(ns), unix: UnixTime(EPOCH + ns) }
}
