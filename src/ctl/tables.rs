//! Tables for human readers.

use comfy_table::{Table, presets::NOTHING};

use super::words::{duration, nanoseconds, octets, range, time};
use crate::proto::{
    self, Connection, Figures, GetAgentResponse, GetServerStatusResponse, KeyCounters, Record,
    Revision, ServerConnection, ServerSession, Statistics, Word, record,
};

/// Refused connections shown, of those that the agent remembers.
const SHOWN_REFUSALS: usize = 5;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    table
}

/// Returns the rows of a table without white space at either end.
fn text(table: &Table) -> String {
    let lines = table.to_string();
    let trimmed = |line: &str| line.strip_prefix(' ').unwrap_or(line).trim_end().to_owned() + "\n";
    lines.lines().map(trimmed).collect()
}

fn cause(cause: proto::FailureCause) -> &'static str {
    cause.word()
}

/// Returns a table of connections with their sessions.
pub(super) fn connections(connections: &[Connection]) -> String {
    if connections.is_empty() {
        return "no connections are configured".into();
    }
    let mut overview = table(&[
        "CONNECTION",
        "TYPE",
        "STATE",
        "SINCE",
        "SERVER",
        "LAST LOSS",
        "ATTEMPTS",
        "NEXT ATTEMPT",
        "OUTAGES",
        "IN OUTAGE",
    ]);
    let mut sessions = table(&["CONNECTION", "SESSION", "SENDER", "REFLECTOR", "STARTED", "TESTS"]);
    let mut losses = String::new();
    for c in connections {
        let loss = c.last_loss.as_ref();
        overview.add_row([
            c.name.clone(),
            c.control_type().word().into(),
            c.state().word().into(),
            time(c.state_start_time.as_ref()),
            if c.server_address.is_empty() { "-".into() } else { c.server_address.clone() },
            loss.map_or("-", |loss| cause(loss.cause())).into(),
            c.attempts_since_success.to_string(),
            time(c.next_attempt_time.as_ref()),
            c.outages.to_string(),
            duration(c.outage_duration.as_ref()),
        ]);
        let latest = c.last_failure.as_ref().or(loss);
        if let Some(loss) = latest.filter(|_| c.state() != proto::ConnectionState::Running) {
            losses.push_str(&format!("{}: {}\n", c.name, loss.detail));
        }
        for s in &c.sessions {
            let or_dash = |text: &str| if text.is_empty() { "-".into() } else { text.to_owned() };
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
    format!("{}\n{}{losses}", text(&overview), text(&sessions))
}

/// Returns the state of a connection on one line.
pub(super) fn connection_line(c: &Connection) -> String {
    let state = c.state().word();
    let mut line = format!("{}  {:<16}  {state}", time(c.state_start_time.as_ref()), c.name);
    if !c.server_address.is_empty() {
        line += &format!(", {}", c.server_address);
    }
    if c.attempts_since_success > 0
        && let Some(failure) = &c.last_failure
    {
        let attempts = c.attempts_since_success;
        line += &format!(", {} after {attempts} attempts", cause(failure.cause()));
    }
    if c.next_attempt_time.is_some() {
        line += &format!(", next attempt {}", time(c.next_attempt_time.as_ref()));
    }
    line
}

/// Returns a table of statistics by connection, session and scope.
pub fn statistics_table(statistics: &[Statistics]) -> String {
    if statistics.is_empty() {
        return "no statistics yet".into();
    }
    let mut rows = table(&[
        "CONNECTION",
        "SESSION",
        "SCOPE",
        "TESTS",
        "UNREACHABLE",
        "SENT",
        "LOST",
        "LOSS",
        "RTT MIN / AVG / MAX",
        "RTT STDDEV",
        "EGRESS AVG",
        "INGRESS AVG",
        "ONE-WAY",
    ]);
    for s in statistics {
        let tests = s.tests_complete + s.tests_interrupted + s.tests_unreachable + s.tests_stopped;
        let figures = s.figures.clone().unwrap_or_default();
        let mean = |stats: Option<&proto::DelayStats>| {
            let stats = stats.filter(|stats| stats.samples > 0);
            stats.map_or_else(|| "-".into(), |stats| nanoseconds(stats.mean_ns))
        };
        let deviation = figures.rtt.as_deref().filter(|rtt| rtt.samples > 0);
        rows.add_row([
            s.connection.clone(),
            s.session.clone(),
            s.scope().word().into(),
            tests.to_string(),
            s.tests_unreachable.to_string(),
            figures.probes_sent.to_string(),
            lost(&figures),
            loss_ratio(&figures),
            range(figures.rtt.as_deref()),
            deviation.map_or_else(|| "-".into(), |rtt| nanoseconds(rtt.stddev_ns)),
            mean(figures.egress.as_deref()),
            mean(figures.ingress.as_deref()),
            figures.one_way_validity().word().replace("UNSPECIFIED", "-"),
        ]);
    }
    text(&rows)
}

/// Returns the lost probes, by direction where it is known.
fn lost(figures: &Figures) -> String {
    match (figures.probes_lost, figures.probes_lost_egress, figures.probes_lost_ingress) {
        (0, _, _) => "0".into(),
        (lost, Some(egress), Some(ingress)) => format!("{lost} ({egress}→ {ingress}←)"),
        (lost, _, _) => lost.to_string(),
    }
}

fn loss_ratio(figures: &Figures) -> String {
    let decided = figures.probes_received + figures.probes_lost;
    if decided == 0 {
        return "-".into();
    }
    format!("{:.1}%", figures.probes_lost as f64 * 100.0 / decided as f64)
}

/// Returns a record on one line.
pub fn record_line(record: &Record) -> String {
    let who = match (record.connection.as_str(), record.session.as_str()) {
        ("", _) => "agent".to_owned(),
        (connection, "") => connection.to_owned(),
        (connection, session) => format!("{connection}/{session}"),
    };
    let what = match &record.kind {
        Some(record::Kind::TestResult(result)) => test_text(result),
        Some(record::Kind::ProbeResults(batch)) => probes_text(batch),
        Some(record::Kind::Event(event)) => event_text(event),
        Some(record::Kind::IntervalResult(interval)) => interval_text(interval),
        Some(record::Kind::Gap(gap)) => {
            format!("GAP      cursors {} to {} are gone", gap.first_cursor, gap.last_cursor)
        }
        None => "unknown kind of record".into(),
    };
    format!("{:>8}  {}  {who:<16}  {what}", record.cursor, time(record.time.as_ref()))
}

fn interval_text(interval: &proto::IntervalResult) -> String {
    let figures = interval.figures.clone().unwrap_or_default();
    let scope = interval.scope().word().trim_start_matches("INTERVAL_");
    let suspect = if interval.suspect { ", not whole" } else { "" };
    format!(
        "INTERVAL {scope} from {}{suspect}, sent {}, lost {} ({}), rtt {}",
        time(interval.start_time.as_ref()),
        figures.probes_sent,
        lost(&figures),
        loss_ratio(&figures),
        range(figures.rtt.as_deref()),
    )
}

fn test_text(result: &proto::TestResult) -> String {
    let figures = result.figures.clone().unwrap_or_default();
    let outcome = result.outcome().word();
    let mut text = format!("TEST     {} {outcome}", result.test_number);
    if result.cause() != proto::FailureCause::Unspecified {
        text += &format!(", {}", cause(result.cause()));
    }
    if result.outcome() == proto::TestOutcome::Unreachable {
        let not_sent = figures.probes_not_sent;
        return text + &format!(", {} attempts, {not_sent} probes not sent", result.attempts);
    }
    text + &format!(
        ", sent {}, lost {} ({}), rtt {}",
        figures.probes_sent,
        lost(&figures),
        loss_ratio(&figures),
        range(figures.rtt.as_deref()),
    )
}

fn probes_text(batch: &proto::ProbeResults) -> String {
    let rtts = batch.probes.iter().filter_map(|probe| probe.rtt_ns);
    let lost = batch.probes.iter().filter(|p| p.status() == proto::ProbeStatus::Lost).count();
    let (least, most) = (rtts.clone().min(), rtts.max());
    let mut text = format!("PROBES   {}", batch.probes.len());
    if let (Some(least), Some(most)) = (least, most) {
        text += &format!(", rtt {} to {}", nanoseconds(least as f64), nanoseconds(most as f64));
    }
    if lost > 0 {
        text += &format!(", {lost} lost");
    }
    text
}

fn event_text(event: &proto::Event) -> String {
    let name = event.r#type().word();
    let mut text = format!("EVENT    {name}");
    if event.cause() != proto::FailureCause::Unspecified {
        text += &format!(", {}", cause(event.cause()));
    }
    if event.revision > 0 {
        text += &format!(", revision {}", event.revision);
    }
    if event.attempts > 0 {
        let length = duration(event.duration.as_ref());
        text += &format!(", after {length} and {} attempts", event.attempts);
    }
    if event.threshold() != proto::Threshold::Unspecified {
        let threshold = event.threshold().word();
        let counts = [proto::Threshold::SuccessiveLoss, proto::Threshold::TotalLoss];
        let value = |value: i64| match counts.contains(&event.threshold()) {
            true => value.to_string(),
            false => nanoseconds(value as f64),
        };
        text += &format!(", {threshold} {} (limit {})", value(event.value), value(event.limit));
    }
    if event.r#type() == proto::EventType::ClockStepped {
        text += &format!(", by {}", nanoseconds(event.value as f64));
    }
    if event.test_number > 0 {
        text += &format!(", test {}", event.test_number);
    }
    if !event.detail.is_empty() {
        text += &format!(": {}", event.detail);
    }
    text
}

/// Returns a table of the kept revisions.
pub(super) fn revisions(revisions: &[Revision]) -> String {
    let mut rows = table(&["REVISION", "TIME", "AUTHOR", "COMMENT"]);
    for r in revisions {
        rows.add_row([
            r.revision.to_string(),
            time(r.commit_time.as_ref()),
            r.author.clone(),
            r.comment.clone(),
        ]);
    }
    text(&rows)
}

/// Returns the state of the agent, printed above its connections.
pub(super) fn agent(agent: &GetAgentResponse) -> String {
    let store = agent.store.clone().unwrap_or_default();
    let clock = match agent.clock {
        Some(clock) if clock.synchronised => {
            format!("synchronised, error {}", nanoseconds(clock.error_estimate_ns as f64))
        }
        _ => "not synchronised: one-way delays cannot be trusted".into(),
    };
    let kept = format!("{} records, {}", store.records, octets(store.live_bytes));
    let health = if store.detail.is_empty() { kept } else { format!("{kept}; {}", store.detail) };
    let mut text = format!(
        "agent     {} {} on {}, up {}\nrevision  {}",
        agent.agent_id,
        agent.version,
        agent.host_name,
        duration(agent.uptime.as_ref()),
        agent.revision,
    );
    if agent.applied_revision != agent.revision {
        text += &format!(" committed, {} applied", agent.applied_revision);
    }
    text += &format!("\nclock     {clock}\nresults   {health}\n");
    for stamps in &agent.hardware_clocks {
        let how = match stamps.error.as_str() {
            "" => format!("by its own clock, known to {} ns", stamps.error_estimate_ns),
            detail => format!("by the kernel: {detail}"),
        };
        text += &format!("stamps    {} {how}\n", stamps.interface);
    }
    for exporter in &agent.exporters {
        let state = exporter.state().word();
        text += &format!(
            "export    {} ({}) {state}, {} delivered, {} behind",
            exporter.name, exporter.kind, exporter.delivered, exporter.lag
        );
        if !exporter.detail.is_empty() {
            text += &format!(": {}", exporter.detail);
        }
        text.push('\n');
    }
    text
}

/// Returns the state of the server role.
pub(super) fn server(
    status: &GetServerStatusResponse,
    connections: &[ServerConnection],
    sessions: &[ServerSession],
) -> String {
    if status.sockets.is_empty() {
        return "the server role is not configured".into();
    }
    let mut sockets = table(&["SOCKET", "ADDRESS", "STATE"]);
    for socket in &status.sockets {
        let state = if socket.error.is_empty() { "open" } else { &socket.error };
        sockets.add_row([&socket.protocol, &socket.address, state]);
    }
    let packets = status.packets.unwrap_or_default();
    let dropped = [
        ("no session", packets.dropped_no_session),
        ("not started", packets.dropped_not_started),
        ("too short", packets.dropped_too_short),
        ("corrupt", packets.dropped_corrupt),
        ("not genuine", packets.dropped_integrity_failed),
        ("not listed", packets.dropped_not_listed),
        ("reflection loop", packets.dropped_reflection_loop),
        ("send failed", packets.dropped_send_failed),
        ("rate limited", packets.dropped_rate_limited),
        ("no room in the receive buffer", packets.dropped_buffer_full),
    ];
    let dropped: Vec<String> = dropped
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(why, count)| format!("{count} {why}"))
        .collect();
    let refused: Vec<String> = status
        .connections_refused
        .iter()
        .map(|r| format!("{} {}", r.count, r.cause().word()))
        .collect();
    let list = |items: &[String]| if items.is_empty() { "none".into() } else { items.join(", ") };
    let mut out = format!(
        "{}\npackets   {} received, {} reflected ({} light, {} STAMP)\ndropped   {}\nrefused   {}\n",
        text(&sockets),
        packets.received,
        packets.reflected,
        packets.reflected_light,
        packets.reflected_stamp,
        list(&dropped),
        list(&refused),
    );
    let keys = status.keys.unwrap_or_default();
    if keys != KeyCounters::default() {
        let KeyCounters { accepted, refused, busy } = keys;
        out += &format!("keys      {accepted} accepted, {refused} refused, {busy} too many\n");
    }
    let ended: Vec<String> = status
        .connections_ended
        .iter()
        .map(|e| format!("{} {}", e.count, e.cause().word()))
        .collect();
    if !ended.is_empty() {
        out += &format!("ended     {}\n", ended.join(", "));
    }
    for refusal in status.latest_refusals.iter().take(SHOWN_REFUSALS) {
        let (when, client) = (time(refusal.time.as_ref()), &refusal.client_address);
        let what = if refusal.accept_code == 0 { "connection" } else { "session" };
        out += &format!("refused   {when} {client}: {what}, {}\n", refusal.detail);
    }
    if !connections.is_empty() {
        let mut rows =
            table(&["ID", "CLIENT", "LOCAL", "STATE", "MODE", "KEY", "SINCE", "SESSIONS"]);
        for c in connections {
            rows.add_row([
                c.id.to_string(),
                c.client_address.clone(),
                c.local_address.clone(),
                c.state().word().into(),
                format!("{:#x}", c.mode),
                if c.key_id.is_empty() { "-".into() } else { c.key_id.clone() },
                time(c.accept_time.as_ref()),
                c.sessions.to_string(),
            ]);
        }
        out += &format!("\n{}", text(&rows));
    }
    if !sessions.is_empty() {
        let mut rows =
            table(&["CONNECTION", "SENDER", "REFLECTOR", "STATE", "DSCP", "RECEIVED", "REFLECTED"]);
        for s in sessions {
            rows.add_row([
                s.connection_id.to_string(),
                s.sender_address.clone(),
                s.reflector_address.clone(),
                s.state().word().into(),
                s.dscp.to_string(),
                s.packets_received.to_string(),
                s.packets_reflected.to_string(),
            ]);
        }
        out += &format!("\n{}", text(&rows));
    }
    out
}
