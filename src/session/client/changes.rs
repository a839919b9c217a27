//! What is wanted changes while a connection runs: as little as possible is touched.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until},
};

use super::{
    attempt::{self, Established},
    connection::{Driver, Next},
    failure::Failure,
    sender::Command,
};
use crate::{
    model::{ControlType, Standing, connection_effect, touched_sessions},
    proto::ChangeEffect,
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
}

impl Driver {
    /// Waits until something is wanted that the present stage cannot give. What changes without a
    /// word on the wire is passed on meanwhile.
    pub(super) async fn change(&mut self) -> Next {
        loop {
            self.pulse.beat();
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() {
                    return Next::End;
                },
                () = self.token.cancelled() => return Next::End,
                Some(Err(error)) = self.tasks.join_next() => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
                () = sleep(self.pulse.rest()) => {
                    self.look_after_sessions();
                    continue;
                }
            }
            let wanted = self.wanted.borrow_and_update().clone();
            let before = std::mem::replace(&mut self.current, wanted);
            if self.current.stopped || self.current.config.inactive != self.config.inactive {
                return Next::Anew;
            }
            let standing = self.status.standing();
            match connection_effect(&self.config, &self.current.config, standing) {
                ChangeEffect::Live => {}
                ChangeEffect::Sessions | ChangeEffect::Renegotiate => return Next::Sessions,
                ChangeEffect::Unspecified
                | ChangeEffect::Reconnect
                | ChangeEffect::Start
                | ChangeEffect::Stop
                | ChangeEffect::Listen => return Next::Anew,
            }
            let transport =
                |config: &crate::model::ControlConnection| (config.control_dscp, config.keepalive);
            let tuned = transport(&self.config) != transport(&self.current.config);
            if self.current.config != self.config {
                self.applied = self.current.revision;
                self.follow_sessions().await;
                if before.stopped {
                    return Next::Anew;
                }
            }
            if tuned && standing != Standing::Down {
                return Next::Tuned;
            }
            if self.current.starts != before.starts {
                return Next::Attempt;
            }
        }
    }

    /// An attempt is under way, or not wanted: one by hand has nothing to add.
    pub(super) async fn change_but_attempts(&mut self) -> Next {
        loop {
            let next = self.change().await;
            if !matches!(next, Next::Attempt) {
                return next;
            }
        }
    }

    /// Changes the sessions of a connection that runs to those that are wanted.
    pub(super) async fn change_sessions(&mut self, control: Option<&mut Established>) -> Changed {
        let touched = touched_sessions(&self.config, &self.current.config);
        tracing::debug!(connection = self.config.name, ?touched, "sessions change");
        match control {
            None => self.change_without_control(&touched).await,
            Some(control) if self.status.standing() == Standing::OneByOne => {
                self.stop_named(&touched).await;
                let stop: Vec<_> =
                    touched.iter().filter_map(|name| self.sids.remove(name)).collect();
                self.follow_sessions().await;
                self.request(control, &touched, stop).await
            }
            Some(control) => {
                if let Err(failure) = self.pause_all(control).await {
                    return Changed::Lost(failure);
                }
                self.follow_sessions().await;
                let all: Vec<String> =
                    self.config.sessions.iter().map(|session| session.name.clone()).collect();
                match self.request(control, &all, Vec::new()).await {
                    Changed::Lost(failure) if failure.is_end() => Changed::Closed,
                    changed @ (Changed::Done | Changed::Closed | Changed::Lost(_)) => changed,
                }
            }
        }
    }

    /// Stops what runs under these SIDs, requests and starts the sessions of these names.
    async fn request(
        &mut self,
        control: &mut Established,
        names: &[String],
        stop: Vec<crate::wire::codes::Sid>,
    ) -> Changed {
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        let config = self.config.clone();
        let requested = tokio::select! {
            requested = control.renegotiate(&config, &wanted, stop, &self.derivation) => requested,
            // The end is seen by whoever waits for it next.
            () = self.token.cancelled() => return Changed::Done,
        };
        match requested {
            Ok(()) => {
                let sessions = std::mem::take(&mut control.sessions);
                self.start_sessions(sessions).await;
                Changed::Done
            }
            Err(failure) => Changed::Lost(failure),
        }
    }

    async fn change_without_control(&mut self, touched: &[String]) -> Changed {
        self.stop_named(touched).await;
        self.follow_sessions().await;
        let touched: Vec<&str> = touched.iter().map(String::as_str).collect();
        match attempt::without_control(&self.config, &touched, self.turn).await {
            Ok(sessions) => {
                self.start_sessions(sessions).await;
                Changed::Done
            }
            Err(failure) => Changed::Lost(failure),
        }
    }

    /// What runs is what is configured, or is tried for.
    pub(super) fn took_up(&mut self) {
        self.applied = self.current.revision;
        self.status.configured(&self.config, self.applied);
    }

    /// Lets all sessions finish their tests, within bounds.
    async fn pause_all(&mut self, control: &mut Established) -> Result<(), Failure> {
        let mut all = Vec::with_capacity(self.sessions.len());
        for index in 0..self.sessions.len() {
            let (done, paused) = oneshot::channel();
            self.tell(index, Command::Pause(done)).await;
            all.push(paused);
        }
        let (pulse, limit) = (self.pulse.clone(), Instant::now() + LONGEST_PAUSE);
        let paused = join_all(all);
        tokio::pin!(paused);
        loop {
            pulse.beat();
            tokio::select! {
                _ = &mut paused => return Ok(()),
                failure = control.watch() => return Err(failure),
                () = self.token.cancelled() => return Ok(()),
                () = sleep_until(limit) => break,
                () = sleep(pulse.rest()) => {}
            }
        }
        self.stop_sessions().await;
        Ok(())
    }

    /// How sessions of what runs now can be changed.
    pub(super) fn standing(&self, control: Option<&Established>) -> Standing {
        match control {
            None => Standing::OneByOne,
            Some(control) if control.machine().is_individual() => Standing::OneByOne,
            Some(_) => {
                debug_assert_eq!(self.config.control_type, ControlType::Managed);
                Standing::Together
            }
        }
    }
}
