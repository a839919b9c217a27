//! Status of a connection, which the API converts.

use std::net::SocketAddr;

use super::{
    failure::Failure,
    outage::{ConnectionEvent, Outage},
    sessions::{Declined, StartedSession},
};
use crate::{
    model::{ControlConnection, ControlType, SessionControl},
    time::{Now, UnixTime},
};

/// Largest number of declined sessions whose reasons are named.
const MAX_DETAILS: usize = 3;

/// Phase of a connection as shown by the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Inactive,
    Resolving,
    Connecting,
    Negotiating,
    /// Sessions run, or the connection is closed until a test that is due much later.
    Running,
    WaitingRetry,
    /// Stopped by hand, or waiting for a manual start.
    Stopped,
    Completed,
    /// The task failed too often.
    Failed,
}

impl Phase {
    fn is_attempt(self) -> bool {
        matches!(self, Self::Resolving | Self::Connecting | Self::Negotiating)
    }
}

/// Failure with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailureReport {
    pub(crate) failure: Failure,
    pub(crate) time: UnixTime,
}

/// Status of a test session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionStatus {
    pub(crate) name: String,
    /// Present while the session is started.
    pub(crate) started: Option<StartedSession>,
    pub(crate) starts: u64,
}

/// Status of a control connection and its sessions.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionStatus {
    pub(crate) name: String,
    pub(crate) control_type: ControlType,
    pub(crate) phase: Phase,
    /// Time at which the phase began.
    pub(crate) phase_since: UnixTime,
    /// Time of the next attempt, or of the next test while the connection is closed until then.
    pub(crate) next_attempt: Option<UnixTime>,
    /// Local and remote address of the control connection while it is open.
    pub(crate) ends: Option<(SocketAddr, SocketAddr)>,
    /// Interface that the control connection is bound to.
    pub(crate) interface: Option<String>,
    /// True if the latest requests named the ends of the control connection instead of zeros.
    pub(crate) sends_addresses: bool,
    /// Negotiated mode bits; 0 without negotiation.
    pub(crate) mode: u32,
    /// Beginning of the latest outage.
    pub(crate) last_loss: Option<FailureReport>,
    /// Latest failed attempt, or latest session that was not started.
    pub(crate) last_failure: Option<FailureReport>,
    /// Failed attempts of the current outage.
    pub(crate) attempts_since_success: u64,
    pub(crate) outages: u64,
    /// Length of all ended outages, nanoseconds.
    pub(crate) past_outages_ns: u64,
    /// Outage that has not ended.
    pub(crate) outage: Option<Outage>,
    /// Number of negotiations repeated because sessions were silent.
    pub(crate) renegotiations: u64,
    /// Number of restarts of the task after a failure.
    pub(crate) task_restarts: u64,
    /// Sessions in the order of the configuration.
    pub(crate) sessions: Vec<SessionStatus>,
    /// Revision of the configuration that is in effect.
    pub(crate) applied_revision: u64,
    /// Way in which the sessions can be controlled, which decides the effect of a change of the
    /// configuration.
    pub(crate) session_control: SessionControl,
    /// Time of the attempt after the current one.
    following_attempt: Option<UnixTime>,
}

impl ConnectionStatus {
    /// Returns the status of a connection before its first attempt.
    pub(crate) fn new(config: &ControlConnection, now: Now) -> Self {
        let mut status = Self {
            name: String::new(),
            control_type: config.control_type,
            phase: Phase::Inactive,
            phase_since: now.unix,
            next_attempt: None,
            ends: None,
            interface: None,
            sends_addresses: false,
            mode: 0,
            last_loss: None,
            last_failure: None,
            attempts_since_success: 0,
            outages: 0,
            past_outages_ns: 0,
            outage: None,
            renegotiations: 0,
            task_restarts: 0,
            sessions: Vec::new(),
            applied_revision: 0,
            session_control: SessionControl::Down,
            following_attempt: None,
        };
        status.set_config(config, 0);
        status
    }

    /// Records that the task failed; returns the outage that begins with it. After the `last` failure
    /// that the restart budget allows the connection is FAILED.
    pub(crate) fn task_failed(
        &mut self,
        failure: Failure,
        last: bool,
        now: Now,
    ) -> Option<&Outage> {
        let report = FailureReport { failure: failure.clone(), time: now.unix };
        let begins = self.begin_outage(failure, 0, now);
        // The status names the task's failure also within an outage that had another cause.
        self.last_loss = Some(report);
        self.set_phase(if last { Phase::Failed } else { Phase::WaitingRetry }, now);
        self.task_restarts += u64::from(!last);
        self.outage.as_ref().filter(|_| begins)
    }

    pub(super) fn set_config(&mut self, config: &ControlConnection, revision: u64) {
        self.applied_revision = revision;
        self.name.clone_from(&config.name);
        self.control_type = config.control_type;
        self.interface.clone_from(&config.interface);
        let known = std::mem::take(&mut self.sessions);
        let status = |name: &String| {
            let known = known.iter().find(|session| session.name == *name);
            known
                .cloned()
                .unwrap_or_else(|| SessionStatus { name: name.clone(), ..SessionStatus::default() })
        };
        self.sessions = config.sessions.iter().map(|session| status(&session.name)).collect();
    }

    /// Enters a phase, and clears the values that apply to other phases only.
    pub(super) fn set_phase(&mut self, phase: Phase, now: Now) {
        match phase {
            Phase::Running => {}
            Phase::Stopped => self.session_control = SessionControl::Stopped,
            Phase::Completed => self.session_control = SessionControl::Completed,
            Phase::Inactive
            | Phase::Resolving
            | Phase::Connecting
            | Phase::Negotiating
            | Phase::WaitingRetry
            | Phase::Failed => self.session_control = SessionControl::Down,
        }
        if self.phase != phase {
            (self.phase, self.phase_since) = (phase, now.unix);
        }
        self.next_attempt = self.following_attempt.filter(|_| phase.is_attempt());
        if !matches!(phase, Phase::Negotiating | Phase::Running) {
            self.clear_connection();
        }
    }

    /// Sets the time of the attempt after the current one.
    pub(super) fn set_following_attempt(&mut self, next: Option<UnixTime>) {
        self.following_attempt = next;
        if self.phase.is_attempt() {
            self.next_attempt = next;
        }
    }

    /// Enters the pause between two tests in which the connection is closed.
    pub(super) fn set_idle(&mut self, until: UnixTime) {
        self.session_control = SessionControl::Down;
        self.clear_connection();
        self.next_attempt = Some(until);
    }

    pub(super) fn session_started(&mut self, started: StartedSession) {
        let mut sessions = self.sessions.iter_mut();
        if let Some(session) = sessions.find(|session| session.name == started.name) {
            session.starts += 1;
            session.started = Some(started);
        }
    }

    /// Records sessions that are not started while others run; the cause is that of the first.
    pub(super) fn sessions_declined(&mut self, declined: &[Declined], now: Now) {
        let Some(first) = declined.first() else { return };
        for session in &mut self.sessions {
            if declined.iter().any(|declined| declined.name == session.name) {
                session.started = None;
            }
        }
        let details = declined.iter().map(|declined| declined.failure.detail.as_str());
        let mut detail = details.take(MAX_DETAILS).collect::<Vec<_>>().join("; ");
        if declined.len() > MAX_DETAILS {
            detail = format!("{detail}; and {} more", declined.len() - MAX_DETAILS);
        }
        let failure = Failure { detail, ..first.failure.clone() };
        self.last_failure = Some(FailureReport { failure, time: now.unix });
    }

    /// Begins an outage unless there is one; returns true if it began.
    pub(super) fn begin_outage(&mut self, failure: Failure, attempts: u64, now: Now) -> bool {
        if self.outage.is_some() {
            return false;
        }
        self.outages += 1;
        self.last_loss = Some(FailureReport { failure: failure.clone(), time: now.unix });
        self.outage = Some(Outage::begin(failure, attempts, now));
        true
    }

    /// Continues the counters from before the start of this process, unless they are known.
    pub(super) fn resume_outage_counters(&mut self, past_outages: u64, past_outages_ns: u64) {
        if self.outages == 0 {
            self.outages = past_outages;
            self.past_outages_ns = past_outages_ns;
        }
    }

    /// Continues an outage from before the start of this process, unless there is one.
    pub(super) fn resume_outage(&mut self, outage: Outage) {
        if self.outage.is_some() {
            return;
        }
        self.outages += 1;
        self.attempts_since_success = outage.attempts;
        self.last_loss =
            Some(FailureReport { failure: outage.failure.clone(), time: outage.began });
        self.outage = Some(outage);
    }

    /// Ends the current outage, if there is one, and returns it with its length.
    pub(super) fn end_outage(&mut self, now: Now) -> Option<(Outage, u64)> {
        self.attempts_since_success = 0;
        let outage = self.outage.take()?;
        let length_ns = outage.length_ns(now);
        self.past_outages_ns += length_ns;
        Some((outage, length_ns))
    }

    /// Ends the outage of a connection that is no longer desired; returns the event.
    pub(crate) fn abandon_outage(&mut self, now: Now) -> Option<ConnectionEvent> {
        let (outage, length_ns) = self.end_outage(now)?;
        Some(ConnectionEvent::Abandoned { outage, length_ns })
    }

    fn clear_connection(&mut self) {
        (self.ends, self.mode) = (None, 0);
        self.sessions.iter_mut().for_each(|session| session.started = None);
    }
}
