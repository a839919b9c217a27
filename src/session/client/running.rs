//! A connection whose sessions run, until they no longer can or shall.

use std::{future::pending, io, net::SocketAddr, pin::Pin};

use futures_util::future::OptionFuture;
use tokio::time::sleep;

use super::{
    attempt::Established,
    changes::Changed,
    connect::names_move,
    connection::{Driver, Next},
    failure::Failure,
    open::OpenSession,
    sender::Command,
    sessions::Running,
    waits::until,
};
use crate::{
    model::{
        ControlType, SessionControl,
        limits::{SILENT_CONNECTION_NS, TWAMP_PORT},
    },
    net::{check_route, check_source, clock, interface_index},
    proto::{ConnectionState, EventType, FailureCause},
    time::{Monotonic, NANOS_PER_SECOND, duration_to_proto},
};

/// A connection that would be closed between two tests stays where the next one is sooner.
pub(super) const SOON_NS: u64 = 60 * NANOS_PER_SECOND;

impl Driver {
    /// Sessions run, until they no longer can or shall.
    pub(super) async fn run_sessions(&mut self, control: &mut Option<Box<Established>>) -> Next {
        let progress = self.progress.clone();
        let mut network = self.network.clone();
        network.mark_unchanged();
        let interface = self.bound_interface();
        let mut moved = self.names_move(control.is_none());
        let mut missing = self.missing_due();
        if self.in_time().len() < self.config.sessions.len() {
            // They come behind the others, not an interval later.
            missing = self.missing_now();
        }
        let mut better = network.borrow().better;
        loop {
            let watch = async {
                match control {
                    Some(control) => control.watch().await,
                    None => pending().await,
                }
            };
            let next = tokio::select! {
                failure = watch => return Next::Lost(failure, true),
                next = self.change() => next,
                () = progress.changed() => match self.after_tests().await {
                    Some(next) => return next,
                    None if missing.is_some_and(|due| due <= clock::monotonic())
                        && progress.idle_until().is_some() => Next::Sessions,
                    None => continue,
                },
                Some(()) = &mut moved => {
                    tracing::info!(connection = self.config.name, "a name has another address");
                    self.stop_sessions().await;
                    return Next::Again;
                }
                () = sleep(until(missing)), if missing.is_some() && self.is_one_by_one() => Next::Sessions,
                Ok(()) = network.changed() => {
                    if interface != self.bound_interface() {
                        return Next::Lost(self.interface_gone(), true);
                    }
                    if let Some(failure) = self.source_gone(control.as_deref()) {
                        return Next::Lost(failure, true);
                    }
                    // What was missing here may have come.
                    let known = std::mem::replace(&mut better, network.borrow().better);
                    missing = missing.filter(|_| known == better).or_else(|| self.missing_now());
                    continue;
                }
            };
            match next {
                Next::Sessions => {
                    let changed = Box::pin(self.change_sessions(control.as_deref_mut())).await;
                    self.took_up();
                    match changed {
                        Changed::Done => {}
                        Changed::Closed => return Next::Again,
                        Changed::Lost(failure) => return Next::Lost(failure, true),
                        Changed::Declined(failure) => return Next::Lost(failure, false),
                    }
                    if let Some(control) = control {
                        control.tune(&self.config);
                    }
                    moved = self.names_move(control.is_none());
                    missing = self.missing_due();
                    // Those that are gone may have been the last that had something to do.
                    if let Some(next) = self.after_tests().await {
                        return next;
                    }
                }
                Next::Tuned => {
                    if let Some(control) = control {
                        control.tune(&self.config);
                    }
                    missing = self.missing_due();
                }
                Next::Retimed => missing = self.missing_due(),
                // One by hand is for those that do not run.
                Next::Attempt => missing = self.missing_now(),
                next @ (Next::Anew
                | Next::Lost(..)
                | Next::Completed
                | Next::Parked(_)
                | Next::Again
                | Next::End) => return next,
            }
        }
    }

    /// Ends when a name has another address than sessions without control are sent to.
    fn names_move(
        &self,
        without_control: bool,
    ) -> OptionFuture<Pin<Box<impl Future<Output = ()> + use<>>>> {
        let remotes = self.running.iter().map(|(name, running)| (name.clone(), running.remote));
        let (config, remotes) = (self.config.clone(), remotes.collect());
        OptionFuture::from(without_control.then(|| Box::pin(names_move(config, remotes))))
    }

    fn missing_now(&self) -> Option<Monotonic> {
        (!self.missing().is_empty()).then(clock::monotonic)
    }

    fn is_one_by_one(&self) -> bool {
        self.status.session_control() == SessionControl::Individual
    }

    /// The kernel's number of the interface that sockets are bound to; another one is another
    /// interface, whatever its name.
    fn bound_interface(&self) -> Option<u32> {
        self.config.interface.as_deref().and_then(interface_index)
    }

    fn interface_gone(&self) -> Failure {
        let name = self.config.interface.as_deref().unwrap_or_default();
        Failure::new(FailureCause::LocalError, format!("interface {name} is gone or was replaced"))
    }

    /// Why no reply can come: the address of the control connection is gone, or what all sessions send
    /// from, their source addresses or that of their interface. The kernel goes on sending.
    fn source_gone(&self, control: Option<&Established>) -> Option<Failure> {
        if self.ends_with_a_break() {
            return None;
        }
        let interface = self.config.interface.as_deref();
        if let Some(address) = control.and_then(Established::local)
            && let Err(error) = check_source(address, interface)
            && error.kind() == io::ErrorKind::AddrNotAvailable
        {
            return Some(Failure::local(&format!("control connection from {address}"), &error));
        }
        let mut gone = None;
        for session in &self.config.sessions {
            let Some(running) = self.running.get(&session.name) else { continue };
            let remote = SocketAddr::new(running.remote, TWAMP_PORT);
            let source = session.source_address.or(self.config.source_address);
            let error = check_route(remote, source, interface).err();
            let error = error.filter(|error| error.kind() == io::ErrorKind::AddrNotAvailable)?;
            let from = source.map_or_else(String::new, |source| format!(" from {source}"));
            gone = Some(Failure::local(&format!("UDP to {remote}{from}"), &error));
        }
        gone
    }

    /// Whether the break of its control connection would be the end of its tests.
    fn ends_with_a_break(&self) -> bool {
        self.config.control_type == ControlType::Managed && self.config.test_count != 0
    }

    /// All sessions are started.
    pub(super) async fn up(&mut self, control: Option<&Established>, sessions: Vec<OpenSession>) {
        let now = clock::now();
        self.progress.wake(|_| true);
        self.progress.forget_silence();
        self.status.state(ConnectionState::Running, now);
        self.status.set_session_control(self.session_control(control));
        if let Some(outage) = self.course.ended() {
            let length_ns = now.monotonic.since_ns(outage.since);
            self.event(EventType::ConnectionRestored, |event| {
                event.cause = outage.failure.cause.into();
                event.accept_code = outage.failure.accept_code.into();
                event.attempts = outage.attempts + 1;
                event.duration = Some(duration_to_proto(length_ns));
                event.start_time = Some(outage.began.to_proto());
            });
        }
        self.status.outage_ends(now);
        self.start_sessions(sessions).await;
    }

    /// Why nothing can be sent from here, where an attempt would come to the same: it fails as long as
    /// there is no way to the server. With a number of tests a control connection is kept: its break
    /// would be their end.
    fn refused(&self) -> Option<Failure> {
        let managed = self.config.control_type == ControlType::Managed;
        let elsewhere = self.config.sessions.iter().any(|session| session.target.is_some());
        if managed && elsewhere || self.ends_with_a_break() {
            return None;
        }
        let failure = self.progress.refused(|name| self.running.contains_key(name))?;
        // There may be a way again since then.
        let (source, interface) = (self.config.source_address, self.config.interface.as_deref());
        let is_away = |running: &Running| {
            check_route(SocketAddr::new(running.remote, TWAMP_PORT), source, interface).is_err()
        };
        self.running.values().all(is_away).then_some(failure)
    }

    /// A session ended a test: what follows from it for the connection.
    async fn after_tests(&mut self) -> Option<Next> {
        if self.progress.all_completed() {
            return Some(Next::Completed);
        }
        if let Some(failure) = self.refused() {
            return Some(Next::Lost(failure, true));
        }
        if self.config.is_resolved_anew() && self.silence.is_over(&self.progress) {
            tracing::info!(connection = self.config.name, "no reply comes: negotiating anew");
            self.status.renegotiates();
            self.stop_sessions().await;
            self.silences += 1;
            return Some(Next::Again);
        }
        let silent = self.config.test_interval_ns > SILENT_CONNECTION_NS
            && self.config.control_type == ControlType::Managed;
        let now = clock::monotonic();
        let due = self.progress.idle_until().filter(|due| silent && due.since_ns(now) > SOON_NS)?;
        for index in 0..self.sessions.len() {
            self.tell(index, Command::Park).await;
        }
        Some(Next::Parked(due))
    }
}
