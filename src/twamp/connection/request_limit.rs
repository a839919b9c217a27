//! Limit on the sessions that are requested from a server. Some servers end the connection instead
//! of rejecting a session for which they have no port or memory. A request for all sessions would
//! then prevent every measurement.

use super::{
    extension_probe::{FIRST_RETRY_NS, MAX_RETRY_NS},
    failure::Suspect,
};
use crate::time::Monotonic;

/// Knowledge about the number of sessions that one server accepts.
#[derive(Debug)]
pub(super) struct RequestLimit {
    /// Session at whose request the server last ended the connection, and the number of sessions
    /// that it had accepted before.
    ended_at: Option<(String, usize)>,
    /// Sessions that are not requested.
    left_out: Vec<String>,
    /// Largest number of sessions that the server accepts.
    limit: Option<usize>,
    /// Start of the time after which all sessions are requested again.
    since: Monotonic,
    retry_ns: u64,
}

impl Default for RequestLimit {
    fn default() -> Self {
        let (ended_at, left_out, limit) = (None, Vec::new(), None);
        Self { ended_at, left_out, limit, since: Monotonic::default(), retry_ns: FIRST_RETRY_NS }
    }
}

impl RequestLimit {
    /// Records a failed negotiation; returns true if the next one requests fewer sessions.
    pub(super) fn record_failure(&mut self, suspect: &Suspect, now: Monotonic) -> bool {
        let Suspect::Session { name, accepted } = suspect else { return false };
        if *accepted == 0 {
            return false;
        }
        let before = self.ended_at.replace((name.clone(), *accepted));
        self.since = now;
        match before {
            // Another session failed after the same number of sessions: their number is the reason.
            Some((other, count)) if other != *name && count == *accepted => {
                self.left_out.clear();
                self.limit = Some(*accepted);
                true
            }
            Some((same, _)) if same == *name => {
                self.left_out.push(same);
                true
            }
            // The first failure may be a coincidence: the server may have been stopped at that
            // moment.
            Some(_) | None => false,
        }
    }

    /// Records a negotiation that succeeded.
    pub(super) fn record_success(&mut self) {
        if !self.is_restricted() {
            self.ended_at = None;
            self.retry_ns = FIRST_RETRY_NS;
        }
    }

    /// Lifts the restriction for one attempt when it is old enough; call before each attempt.
    pub(super) fn begin_attempt(&mut self, now: Monotonic) {
        if self.is_restricted() && now.since_ns(self.since) >= self.retry_ns {
            self.left_out.clear();
            self.limit = None;
            self.retry_ns = (self.retry_ns * 2).min(MAX_RETRY_NS);
        }
    }

    /// Allows requests for all sessions again after a change of the configuration. The limit of
    /// their number is kept.
    pub(super) fn sessions_changed(&mut self) {
        self.left_out.clear();
    }

    /// Divides sessions into those to request and those for which the server would end the
    /// connection, given the number of `running` sessions.
    pub(super) fn split(&self, names: Vec<String>, running: usize) -> (Vec<String>, Vec<String>) {
        let mut room = self.limit.map_or(usize::MAX, |limit| limit.saturating_sub(running));
        names.into_iter().partition(|name| {
            let requested = room > 0 && !self.left_out.contains(name);
            room -= usize::from(requested);
            requested
        })
    }

    fn is_restricted(&self) -> bool {
        self.limit.is_some() || !self.left_out.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Monotonic = Monotonic(7);

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|number| format!("s{number}")).collect()
    }

    /// Makes attempts at a server that accepts `limit` sessions until one succeeds; returns their
    /// number.
    fn attempts(
        requests: &mut RequestLimit,
        sessions: usize,
        limit: usize,
        now: Monotonic,
    ) -> usize {
        for attempt in 1..=10 {
            requests.begin_attempt(now);
            let (requested, _) = requests.split(names(sessions), 0);
            match requested.get(limit) {
                None => {
                    requests.record_success();
                    return attempt;
                }
                Some(name) => {
                    let suspect = Suspect::Session { name: name.clone(), accepted: limit };
                    requests.record_failure(&suspect, now);
                }
            }
        }
        panic!("no attempt succeeds");
    }

    #[test]
    fn session_limit_is_learnt_in_four_attempts_and_retried_later() {
        let mut requests = RequestLimit::default();
        assert_eq!(attempts(&mut requests, 5, 2, NOW), 4);
        let (requested, left) = requests.split(names(5), 0);
        assert_eq!((requested, left.len()), (names(2), 3));
        assert_eq!(requests.split(names(5), 2).0, names(0), "as many run as the server takes");
        assert_eq!(requests.split(names(5), 1).0, names(1), "room for one");
        let later = NOW.plus_ns(FIRST_RETRY_NS);
        assert_eq!(attempts(&mut requests, 5, 2, later), 2, "tried again, and learnt again");
        assert_eq!(attempts(&mut requests, 5, 2, later.plus_ns(FIRST_RETRY_NS)), 1, "not so soon");
        assert_eq!(attempts(&mut requests, 5, 9, later.plus_ns(2 * FIRST_RETRY_NS)), 1);
        assert_eq!(requests.split(names(5), 0).0, names(5));
    }

    #[test]
    fn a_single_failure_leaves_no_session_out() {
        let mut requests = RequestLimit::default();
        let suspect = Suspect::Session { name: "s2".into(), accepted: 1 };
        assert!(!requests.record_failure(&suspect, NOW));
        assert_eq!(requests.split(names(3), 0).0, names(3));
        requests.record_success();
        assert!(!requests.record_failure(&suspect, NOW), "long ago");
    }

    #[test]
    fn only_the_suspected_session_is_left_out() {
        let mut requests = RequestLimit::default();
        let suspect = Suspect::Session { name: "s2".into(), accepted: 1 };
        requests.record_failure(&suspect, NOW);
        assert!(requests.record_failure(&suspect, NOW));
        let (requested, left) = requests.split(names(3), 0);
        assert_eq!(requested, ["s1", "s3"]);
        assert_eq!(left, ["s2"]);
        requests.sessions_changed();
        assert_eq!(requests.split(names(3), 0).0, names(3));
    }
}
