//! Tables for human readers, at most 80 columns wide with ordinary names.

mod connections;
mod records;
mod server;
mod statistics;

use comfy_table::{Table, presets::NOTHING};

pub(super) use connections::{connection_line, connections};
pub use records::record_line;
pub(super) use server::server;
pub use statistics::statistics_table;

use super::words::{bytes, count, duration, entry, nanoseconds, time_in_seconds};
use crate::proto::{GetAgentResponse, Revision, Word};

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

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}

/// Returns a table of the kept revisions.
pub(super) fn revisions(revisions: &[Revision]) -> String {
    if revisions.is_empty() {
        return "no revisions: nothing was ever committed".into();
    }
    let mut rows = table(&["REVISION", "COMMITTED", "AUTHOR", "COMMENT"]);
    for r in revisions {
        rows.add_row([
            r.revision.to_string(),
            time_in_seconds(r.commit_time.as_ref()),
            or_dash(&r.author),
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
        _ => "not synchronised: one-way delays to other hosts cannot be trusted".into(),
    };
    let kept = format!("{}, {}", count(store.records, "record"), bytes(store.live_bytes));
    let health = if store.detail.is_empty() { kept } else { format!("{kept}; {}", store.detail) };
    let mut revision = agent.revision.to_string();
    if agent.applied_revision != agent.revision {
        revision += &format!(" committed, {} applied", agent.applied_revision);
    }
    let (id, version, host) = (&agent.agent_id, &agent.version, &agent.host_name);
    let uptime = duration(agent.uptime.as_ref());
    let mut entries = vec![
        entry("agent", &format!("{id} {version} on {host}, up {uptime}")),
        entry("revision", &revision),
        entry("clock", &clock),
        entry("results", &health),
    ];
    if let Some(left) = &store.age_retention_suspended {
        let how =
            format!("clock was set: no record is deleted by age for {}", duration(Some(left)));
        entries.push(entry("", &how));
    }
    for change in &agent.host_changes {
        entries.push(entry("host", change));
    }
    for stamps in &agent.hardware_clocks {
        let how = match stamps.error.as_str() {
            "" => format!("in hardware, error {} ns", stamps.error_estimate_ns),
            detail => format!("by the kernel, not in hardware: {detail}"),
        };
        entries.push(entry("stamps", &format!("{} {how}", stamps.interface)));
    }
    for exporter in &agent.exporters {
        let mut state = format!(
            "{} ({}) {}, {} delivered, {} pending",
            exporter.name,
            exporter.kind,
            exporter.state().word(),
            exporter.delivered,
            exporter.lag
        );
        if !exporter.detail.is_empty() {
            state += &format!(": {}", exporter.detail);
        }
        entries.push(entry("export", &state));
    }
    entries.join("\n") + "\n"
}
