//! Server role: sockets, counters, control connections and test sessions.

use super::{or_dash, table, text};
use crate::{
    ctl::words::{entry, time, time_in_seconds},
    proto::{
        GetServerStatusResponse, KeyCounters, PacketCounters, ServerConnection, ServerSession, Word,
    },
};

/// Maximum number of refused connections that are shown.
const SHOWN_REFUSALS: usize = 5;

/// Returns the state of the server role.
pub(in crate::ctl) fn server(
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
    let mut out = format!("{}\n{}", text(&sockets), counters(status));
    if !connections.is_empty() {
        out += &format!("\n{}", connection_table(connections));
    }
    if !sessions.is_empty() {
        out += &format!("\n{}", session_table(sessions));
    }
    out
}

fn counters(status: &GetServerStatusResponse) -> String {
    let packets = status.packets.unwrap_or_default();
    let refused: Vec<String> = status
        .connections_refused
        .iter()
        .map(|refused| format!("{} {}", refused.count, refused.cause().word()))
        .collect();
    let received = format!(
        "{} received, {} reflected ({} light, {} STAMP)",
        packets.received, packets.reflected, packets.reflected_light, packets.reflected_stamp,
    );
    let mut entries = vec![
        entry("packets", &received),
        entry("dropped", &or_none(&dropped(&packets))),
        entry("refused", &or_none(&refused)),
    ];
    if packets.unknown_error_estimate > 0 {
        let unknown = format!("{} with Multiplier 0, not dropped", packets.unknown_error_estimate);
        entries.push(entry("estimates", &unknown));
    }
    if status.sessions_draining > 0 {
        entries.push(entry("draining", &format!("{} stopped sessions", status.sessions_draining)));
    }
    if status.ip_versions_corrected > 0 {
        let corrected = format!("{} requests with another IPVN", status.ip_versions_corrected);
        entries.push(entry("corrected", &corrected));
    }
    let keys = status.keys.unwrap_or_default();
    if keys != KeyCounters::default() {
        let KeyCounters { accepted, refused, busy } = keys;
        let keys = format!("{accepted} accepted, {refused} refused, {busy} refused as busy");
        entries.push(entry("keys", &keys));
    }
    let ended: Vec<String> = status
        .connections_ended
        .iter()
        .map(|ended| format!("{} {}", ended.count, ended.cause().word()))
        .collect();
    if !ended.is_empty() {
        entries.push(entry("ended", &ended.join(", ")));
    }
    for refusal in status.latest_refusals.iter().take(SHOWN_REFUSALS) {
        let (when, client) = (time(refusal.time.as_ref()), &refusal.client_address);
        let what = if refusal.accept_code == 0 { "connection" } else { "session" };
        entries.push(entry("refused", &format!("{when} {client}: {what}, {}", refusal.detail)));
    }
    entries.join("\n") + "\n"
}

fn dropped(packets: &PacketCounters) -> Vec<String> {
    let dropped = [
        ("no session", packets.dropped_no_session),
        ("not started", packets.dropped_not_started),
        ("too short", packets.dropped_too_short),
        ("corrupt", packets.dropped_corrupt),
        ("integrity check failed", packets.dropped_integrity_failed),
        ("not listed", packets.dropped_not_listed),
        ("reflection loop", packets.dropped_reflection_loop),
        ("send failed", packets.dropped_send_failed),
        ("rate limited", packets.dropped_rate_limited),
        ("receive buffer full", packets.dropped_buffer_full),
    ];
    let dropped = dropped.iter().filter(|(_, count)| *count > 0);
    dropped.map(|(why, count)| format!("{count} {why}")).collect()
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

fn connection_table(connections: &[ServerConnection]) -> String {
    let mut rows = table(&["ID", "CLIENT", "STATE", "MODE", "KEY", "SINCE", "SESSIONS"]);
    for c in connections {
        rows.add_row([
            c.id.to_string(),
            c.client_address.clone(),
            c.state().word().into(),
            format!("{:#x}", c.mode),
            or_dash(&c.key_id),
            time_in_seconds(c.accept_time.as_ref()),
            c.sessions.to_string(),
        ]);
    }
    text(&rows)
}

fn session_table(sessions: &[ServerSession]) -> String {
    let mut rows = table(&["ID", "SENDER", "REFLECTOR", "STATE", "DSCP", "RECEIVED", "REFLECTED"]);
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
    text(&rows)
}
