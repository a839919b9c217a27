//! Connections: a table of their states, a table of their sessions, and the reasons of failures.

use prost_types::{Duration, Timestamp};

use super::{or_dash, table, text};
use crate::{
    ctl::words::{count, duration, time_in_seconds, time_of_day},
    proto::{Connection, ConnectionFailure, ConnectionState, GetAgentResponse, Word},
};

/// Returns a table of connections with their sessions, at the time of an answer of the agent.
pub(in crate::ctl) fn connections(connections: &[Connection], agent: &GetAgentResponse) -> String {
    if connections.is_empty() {
        return "no connections are configured".into();
    }
    let mut overview =
        table(&["CONNECTION", "TYPE", "STATE", "UP/DOWN SINCE", "OUTAGES", "TOTAL DOWN"]);
    let mut sessions = table(&["CONNECTION", "SESSION", "SENDER", "REFLECTOR", "STARTED", "TESTS"]);
    let mut remarks = String::new();
    let now = now(agent);
    for c in connections {
        let since = c.outage_start_time.as_ref().or(c.state_start_time.as_ref());
        overview.add_row([
            c.name.clone(),
            c.control_type().word().into(),
            c.state().word().into(),
            time_in_seconds(since),
            c.outages.to_string(),
            match c.outages {
                0 => "-".into(),
                _ => duration(c.outage_duration.as_ref()),
            },
        ]);
        if let Some(remark) = remark(c, now) {
            remarks += &format!("{}: {remark}\n", c.name);
        }
        for s in &c.sessions {
            sessions.add_row([
                c.name.clone(),
                s.name.clone(),
                or_dash(&s.sender_address),
                or_dash(&s.reflector_address),
                if s.started { "yes" } else { "no" }.into(),
                s.tests_finished.to_string(),
            ]);
        }
    }
    if connections.iter().any(|c| c.outages > 0) {
        let since = time_in_seconds(agent.start_time.as_ref());
        remarks += &format!("outages are counted since {since}, when the agent started\n");
    }
    let parts = [text(&overview), text(&sessions), remarks];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

/// Returns the time of the agent when it answered.
fn now(agent: &GetAgentResponse) -> Option<Timestamp> {
    let (start, uptime) = (agent.start_time?, agent.uptime?);
    Some(Timestamp {
        seconds: start.seconds
            + uptime.seconds
            + i64::from(start.nanos + uptime.nanos) / 1_000_000_000,
        nanos: (start.nanos + uptime.nanos) % 1_000_000_000,
    })
}

/// Returns the reason why a connection or a session of it does not run.
fn remark(c: &Connection, now: Option<Timestamp>) -> Option<String> {
    if let Some(start) = c.outage_start_time {
        return Some(outage_text(c, start, now));
    }
    let failure = c.last_failure.as_ref()?;
    let state = c.state();
    let idle_states =
        [ConnectionState::Inactive, ConnectionState::Stopped, ConnectionState::Completed];
    let all_run = c.sessions.iter().all(|session| session.started);
    let is_complete =
        (state == ConnectionState::Running && all_run) || idle_states.contains(&state);
    (!is_complete).then(|| failure.detail.clone())
}

fn outage_text(c: &Connection, start: Timestamp, now: Option<Timestamp>) -> String {
    let since = time_of_day(Some(&start), now.as_ref());
    let mut text = format!("down since {since}");
    if let Some(now) = now {
        let elapsed = Duration {
            seconds: now.seconds - start.seconds - i64::from(now.nanos < start.nanos),
            nanos: (now.nanos - start.nanos).rem_euclid(1_000_000_000),
        };
        text += &format!(" ({})", duration(Some(&elapsed)));
    }
    // An older failure is of another outage.
    let is_of_this_outage = |failure: &&ConnectionFailure| {
        failure.time.is_some_and(|time| (time.seconds, time.nanos) >= (start.seconds, start.nanos))
    };
    let attempt = c.last_failure.as_ref().filter(is_of_this_outage);
    if let Some(failure) = attempt.filter(|_| c.attempts_since_success > 0) {
        let time = time_of_day(failure.time.as_ref(), now.as_ref());
        text += &format!(", attempt {} at {time}: {}", c.attempts_since_success, failure.detail);
    } else if let Some(loss) = &c.last_loss {
        text += &format!(": {}", loss.detail);
    }
    if c.next_attempt_time.is_some() {
        let next = time_of_day(c.next_attempt_time.as_ref(), now.as_ref());
        text += &format!("; next attempt at {next}");
    }
    text
}

/// Returns the state of a connection on one line.
pub(in crate::ctl) fn connection_line(c: &Connection) -> String {
    let state = c.state().word();
    let start = c.state_start_time.as_ref();
    let mut line = format!("{}  {}  {state}", time_in_seconds(start), c.name);
    if !c.server_address.is_empty() {
        line += &format!(" {}", c.server_address);
    }
    if c.attempts_since_success > 0
        && let Some(failure) = &c.last_failure
    {
        let attempts = count(c.attempts_since_success, "attempt");
        line += &format!(", {} after {attempts}", failure.cause().word());
    }
    if c.next_attempt_time.is_some() {
        line += &format!(", next attempt {}", time_of_day(c.next_attempt_time.as_ref(), start));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ControlType, FailureCause, Session};

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds: 1_800_000_000 + seconds, nanos: 0 })
    }

    fn failure(seconds: i64, detail: &str) -> Option<ConnectionFailure> {
        Some(ConnectionFailure {
            cause: FailureCause::Refused.into(),
            detail: detail.into(),
            time: at(seconds),
            ..ConnectionFailure::default()
        })
    }

    fn agent(uptime: i64) -> GetAgentResponse {
        let uptime = Some(Duration { seconds: uptime, nanos: 0 });
        GetAgentResponse { start_time: at(0), uptime, ..GetAgentResponse::default() }
    }

    fn down() -> Connection {
        Connection {
            name: "to-far".into(),
            control_type: ControlType::Managed.into(),
            state: ConnectionState::WaitingRetry.into(),
            state_start_time: at(164),
            outage_start_time: at(42),
            last_loss: failure(42, "connection closed"),
            last_failure: failure(164, "TCP connect 192.0.2.1:862: connection refused"),
            attempts_since_success: 123,
            outages: 3,
            outage_duration: Some(Duration { seconds: 200, nanos: 0 }),
            sessions: vec![Session {
                name: "voice".into(),
                tests_finished: 7,
                ..Session::default()
            }],
            ..Connection::default()
        }
    }

    #[test]
    fn remark_covers_the_current_outage_only() {
        let shown = connections(&[down()], &agent(165));
        let expected = "to-far: down since 08:00:42 (2m 3s), attempt 123 at 08:02:44: \
                        TCP connect 192.0.2.1:862: connection refused\n";
        assert!(shown.contains(expected), "{shown}");
        assert!(
            shown.contains(
                "to-far      MANAGED  WAITING_RETRY  2027-01-15 08:00:42Z  3        3m 20s"
            )
        );
        let older = Connection { last_failure: failure(1, "older"), ..down() };
        let shown = connections(&[older], &agent(45));
        assert!(
            shown.contains("to-far: down since 08:00:42 (3.0 s): connection closed\n"),
            "{shown}"
        );
        let up = Connection {
            state: ConnectionState::Running.into(),
            outage_start_time: None,
            sessions: Vec::new(),
            ..down()
        };
        assert!(!connections(&[up], &agent(165)).contains("to-far:"));
    }

    #[test]
    fn tables_fit_into_80_columns() {
        let mut connection = down();
        connection.name = "frankfurt-nyc".into();
        connection.sessions[0].sender_address = "192.0.2.10:49152".into();
        connection.sessions[0].reflector_address = "192.0.2.100:18760".into();
        let shown = connections(&[connection], &agent(165));
        let widest = shown.lines().take(5).map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{shown}");
    }

    #[test]
    fn one_attempt_is_not_many() {
        let connection = Connection { attempts_since_success: 1, ..down() };
        let line = connection_line(&connection);
        assert!(line.ends_with("to-far  WAITING_RETRY, REFUSED after 1 attempt"), "{line}");
    }
}
