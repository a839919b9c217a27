//! What is wanted changes while a connection runs: as little as possible is touched.

use std::{future::pending, pin::pin, time::Duration};

use futures_util::StreamExt;
use tokio::time::sleep;

use super::{
    Wanted,
    attempt::Established,
    connect::{MOST_PATIENCE, PATIENCE, Turn},
    connection::{Driver, Next},
    failure::Failure,
    open::{self, Opened},
    sender::{Command, Grace},
};
use crate::{
    model::{
        ControlConnection, ControlType, Endpoint, SessionControl, TestSession, connection_effect,
        touched_sessions,
    },
    net::clock,
    proto::ChangeEffect,
    wire::codes::Sid,
};

/// How long sessions may finish their tests before they are negotiated anew; a test that goes on
/// for longer is stopped.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What became of a change of sessions.
pub(super) enum Changed {
    /// All run as they are to.
    Done,
    /// The server ended the connection when its sessions were stopped: some do. No probe was under
    /// way; another connection is to be made at once.
    Closed,
    /// The connection was lost.
    Lost(Failure),
    /// No session runs any more, for those that were asked for were refused.
    Declined(Failure),
}

impl Driver {
    /// Waits until something is wanted that the present stage cannot give. What changes without a
    /// word on the wire is passed on meanwhile.
    pub(super) async fn change(&mut self) -> Next {
        loop {
            self.heartbeat.beat();
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() {
                    return Next::End;
                },
                () = self.token.cancelled() => return Next::End,
                Some(ended) = self.ends.next() => Self::session_ended(ended),
                () = sleep(self.heartbeat.interval()) => {
                    self.look_after_sessions();
                    continue;
                }
            }
            let wanted = self.wanted.borrow_and_update().clone();
            let before = std::mem::replace(&mut self.current, wanted);
            if self.current.stopped || self.current.config.inactive != self.config.inactive {
                return Next::Anew;
            }
            let session_control = self.status.session_control();
            match connection_effect(&self.config, &self.current.config, session_control) {
                ChangeEffect::Live => {}
                ChangeEffect::SessionRestart | ChangeEffect::Renegotiate => return Next::Sessions,
                ChangeEffect::Unspecified
                | ChangeEffect::Reconnect
                | ChangeEffect::Start
                | ChangeEffect::Stop
                | ChangeEffect::Listen
                | ChangeEffect::CloseConnections => return Next::Anew,
            }
            let transport = |config: &ControlConnection| (config.control_dscp, config.keepalive);
            let tuned = transport(&self.config) != transport(&self.current.config);
            if self.current.config != self.config {
                let paces = |config: &ControlConnection| {
                    (config.test_interval_ns, config.retry_backoff_max_ns)
                };
                let retimed = paces(&self.config) != paces(&self.current.config);
                self.applied = self.current.revision;
                self.follow_sessions().await;
                if before.stopped {
                    return Next::Anew;
                }
                if tuned
                    && matches!(
                        session_control,
                        SessionControl::AllOrNothing | SessionControl::Individual
                    )
                {
                    return Next::Tuned;
                }
                if retimed {
                    return Next::Retimed;
                }
            } else if self.applied != self.current.revision {
                // What was wanted in between is wanted no more.
                self.took_up();
            }
            if self.current.starts != before.starts {
                return Next::Attempt;
            }
        }
    }

    /// Does what takes its time for as long as it is wanted: `None` where the connection is to stop,
    /// to end or to begin anew meanwhile. Other changes wait until it is done.
    async fn while_wanted<T>(&mut self, work: impl Future<Output = T> + Send) -> Option<T> {
        let ends = |from: &Wanted, to: &Wanted| {
            let effect = connection_effect(&from.config, &to.config, SessionControl::Individual);
            to.stopped || matches!(effect, ChangeEffect::Stop | ChangeEffect::Reconnect)
        };
        self.unless(work, ends).await
    }

    /// Does what can be left for later, unless something else is wanted.
    pub(super) async fn unless_wanted<T>(
        &mut self,
        work: impl Future<Output = T> + Send,
    ) -> Option<T> {
        self.unless(work, |_, _| true).await
    }

    /// Does it unless it gives way to what is wanted meanwhile, which is told by what was and is.
    async fn unless<T>(
        &mut self,
        work: impl Future<Output = T> + Send,
        gives_way: fn(&Wanted, &Wanted) -> bool,
    ) -> Option<T> {
        let mut work = pin!(work);
        let mut news = false;
        let result = loop {
            self.heartbeat.beat();
            tokio::select! {
                result = &mut work => break Some(result),
                () = self.token.cancelled() => break None,
                changed = self.wanted.changed() => {
                    news = true;
                    if changed.is_err() || gives_way(&self.current, &self.wanted.borrow()) {
                        break None;
                    }
                }
                () = sleep(self.heartbeat.interval()) => {}
            }
        };
        if news {
            self.wanted.mark_changed();
        }
        result
    }

    /// Changes the sessions of a connection that runs to those that are wanted.
    pub(super) async fn change_sessions(&mut self, control: Option<&mut Established>) -> Changed {
        let touched = touched_sessions(&self.config, &self.current.config);
        tracing::debug!(connection = self.config.name, ?touched, "sessions change");
        self.declined.retain(|name, _| !touched.contains(name));
        let mut control = control;
        let opened = match &mut control {
            Some(control) if touched.is_empty() => match self.open_missing(control).await {
                Ok(opened) if opened.is_empty() => return Changed::Done,
                Ok(opened) => opened,
                Err(failure) => return Changed::Lost(failure),
            },
            Some(_) | None => Vec::new(),
        };
        match control {
            Some(control) if self.status.session_control() == SessionControl::AllOrNothing => {
                let paused = self.pause_all(control).await;
                self.follow_sessions().await;
                match paused {
                    None => return Changed::Done,
                    Some(Err(failure)) => return Changed::Lost(failure),
                    Some(Ok(())) => {}
                }
                // Those that ran are waited for longer: nothing was wrong with their names.
                let ran = |session: &TestSession| {
                    self.running.contains_key(&session.name) && !touched.contains(&session.name)
                };
                let is_name =
                    |session: &TestSession| matches!(session.target, Some(Endpoint::Name(_)));
                let some =
                    self.config.sessions.iter().any(|session| ran(session) && is_name(session));
                let patience = if some { PATIENCE * MOST_PATIENCE } else { PATIENCE };
                self.running.clear();
                self.asked_together = clock::monotonic();
                match self
                    .request_missing(Some(control), opened, &touched, Vec::new(), patience)
                    .await
                {
                    Changed::Lost(failure) if failure.is_end() => Changed::Closed,
                    changed @ (Changed::Done
                    | Changed::Closed
                    | Changed::Lost(_)
                    | Changed::Declined(_)) => changed,
                }
            }
            mut control => {
                let stopped = self.stop_named(&touched, control.as_deref_mut()).await;
                let stopping = touched.iter().filter_map(|name| self.running.remove(name)?.sid);
                let stop: Vec<Sid> = stopping.collect();
                self.follow_sessions().await;
                match stopped {
                    Some(Ok(())) => {
                        self.request_missing(control, opened, &touched, stop, PATIENCE).await
                    }
                    Some(Err(failure)) => Changed::Lost(failure),
                    None => Changed::Done,
                }
            }
        }
    }

    /// Changes the sessions of a connection that is not there: those that are not touched have their
    /// next test when they would have had it.
    pub(super) async fn change_sessions_apart(&mut self) {
        let touched = touched_sessions(&self.config, &self.current.config);
        let is_touched = |name: &str| touched.iter().any(|touched| touched == name);
        self.ask(is_touched, |done| Command::Stop(done, Grace::Short)).await.await;
        self.applied = self.current.revision;
        self.follow_sessions().await;
        self.progress.wake(is_touched);
    }

    /// Starts the sessions that are configured and do not run; where some are touched or open, but for
    /// those that were declined before. Over a control connection once those with these SIDs are
    /// stopped. One that cannot be started where the others run on is tried again at the beat of the
    /// connection.
    async fn request_missing(
        &mut self,
        control: Option<&mut Established>,
        opened: Vec<Opened>,
        touched: &[String],
        stop: Vec<Sid>,
        patience: Duration,
    ) -> Changed {
        let config = self.config.clone();
        let mut turn = Turn { patience, ..self.turn() };
        let mut names = self.missing();
        if !touched.is_empty() || !opened.is_empty() {
            // What changes, or has come, does not wait for what did not come before.
            let is_open = |name: &String| opened.iter().any(|(open, _)| open.name == *name);
            let is_declined = |name: &String| self.declined.contains_key(name);
            names.retain(|name| is_open(name) || !is_declined(name));
        }
        let (sessions, declined) = match control {
            Some(control) => {
                let derivation = self.derivation.clone();
                let requested =
                    control.renegotiate(&config, &names, opened, stop, turn, &derivation);
                match self.while_wanted(requested).await {
                    None => return Changed::Done,
                    Some(Err(failure)) => return Changed::Lost(failure),
                    Some(Ok(declined)) => (std::mem::take(&mut control.sessions), declined),
                }
            }
            None => {
                let opened = if touched.is_empty() {
                    turn.patience = self.patience();
                    let opened = open::without_control(&config, &names, turn, true);
                    self.unless_wanted(opened).await
                } else {
                    let opened = open::without_control(&config, &names, turn, false);
                    self.while_wanted(opened).await
                };
                match opened {
                    None => return Changed::Done,
                    Some(opened) => opened,
                }
            }
        };
        self.start_sessions(sessions).await;
        match declined.last().filter(|_| self.running.is_empty()) {
            Some(last) => Changed::Declined(last.failure.clone()),
            None => {
                self.sessions_declined(declined).await;
                Changed::Done
            }
        }
    }

    /// What runs is what is configured, or is tried for.
    pub(super) fn took_up(&mut self) {
        self.applied = self.current.revision;
        self.status.configured(&self.config, self.applied);
    }

    /// Lets all sessions finish their tests, within bounds.
    async fn pause_all(&mut self, control: &mut Established) -> Option<Result<(), Failure>> {
        let answers = self.ask(|_| true, Command::Pause).await;
        let paused = async {
            tokio::select! {
                _ = answers => Ok(true),
                failure = control.watch() => Err(failure),
                () = sleep(LONGEST_PAUSE) => Ok(false),
            }
        };
        match self.while_wanted(paused).await? {
            Ok(true) => Some(Ok(())),
            Ok(false) => {
                self.stop_sessions().await;
                Some(Ok(()))
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    /// Ends the tests of these sessions as STOPPED, once what is under way is answered or lost.
    async fn stop_named(
        &mut self,
        names: &[String],
        control: Option<&mut Established>,
    ) -> Option<Result<(), Failure>> {
        let which = |name: &str| names.iter().any(|wanted| wanted == name);
        let answers = self.ask(which, |done| Command::Stop(done, Grace::LossTimeout)).await;
        let stopped = async {
            let lost = async {
                match control {
                    Some(control) => control.watch().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = answers => Ok(()),
                failure = lost => Err(failure),
            }
        };
        self.while_wanted(stopped).await
    }

    /// How sessions of what runs now can be changed.
    pub(super) fn session_control(&self, control: Option<&Established>) -> SessionControl {
        match control {
            None => SessionControl::Individual,
            Some(control) if control.machine().is_individual() => SessionControl::Individual,
            Some(_) => {
                debug_assert_eq!(self.config.control_type, ControlType::Managed);
                SessionControl::AllOrNothing
            }
        }
    }
}
