//! Commands of `twampctl` that show or change the configuration.

use std::path::PathBuf;

use clap::Subcommand;

use super::{
    Connection, CtlError, Format,
    input::{confirm, is_interactive, read_document},
    output::{print, print_together, write_line},
    pages, tables,
    words::time,
};
use crate::{
    document::{DURATION_FORM, Fields, differences, parse_duration, to_value, to_yaml},
    proto::{
        ApplyConfigRequest, ApplyConfigResponse, ApplyMode, Change, ChangeKind,
        ConfirmConfigRequest, FieldChange, GetConfigResponse, RollbackConfigRequest,
        RollbackConfigResponse, Word,
    },
};

/// Maximum number of removed parts that the confirmation prompt lists.
const MAX_LISTED_REMOVALS: usize = 8;

/// Commands that show or change the configuration; their comments are the help texts.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigurationCommand {
    /// Replace the whole configuration; anything FILE does not name is removed (see --dry-run)
    ///
    /// With --merge, only what FILE names is changed. On a terminal, asks before it removes
    /// anything.
    Apply {
        /// Configuration in YAML or JSON; `-` is standard input
        #[arg(short, long, value_name = "FILE", required_unless_present = "delete")]
        file: Option<PathBuf>,
        /// Replace the parts that FILE names, and keep the others
        #[arg(long)]
        merge: bool,
        /// Remove this part: client/NAME, server, server/client_list/NAME, server/key_chains/NAME,
        /// export or storage; may be repeated
        #[arg(long, value_name = "PART", requires = "merge")]
        delete: Vec<String>,
        /// Remove parts without asking
        #[arg(short, long)]
        yes: bool,
        /// Options of every change
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Confirm the pending revision
    Confirm {
        /// Revision to confirm; the pending one by default
        #[arg(default_value_t = 0, hide_default_value = true)]
        revision: u64,
    },
    /// Commit the document of an earlier revision again
    Rollback {
        /// Revision to return to; the one before the current one by default
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        revision: Option<u64>,
        /// Options of every change
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Show what FILE would change, what a revision changed, or how two revisions differ
    Diff {
        /// Configuration in YAML or JSON; `-` is standard input
        #[arg(short, long, value_name = "FILE", conflicts_with = "revisions")]
        file: Option<PathBuf>,
        /// Treat FILE as parts, as with apply --merge
        #[arg(long, requires = "file")]
        merge: bool,
        /// Show what REVISION changed, or compare two; the current one by default
        #[arg(value_name = "REVISION", num_args = 0..=2)]
        revisions: Vec<u64>,
    },
    /// List the kept revisions
    Revisions,
}

/// Options of every command that changes the configuration.
#[derive(Clone, Debug, clap::Args)]
pub struct ChangeOptions {
    /// Check the change and show its effects without committing it
    #[arg(long)]
    dry_run: bool,
    /// Commit only if REVISION is the current one (0: nothing was committed yet)
    #[arg(long, value_name = "REVISION")]
    expect: Option<u64>,
    /// Roll back unless the revision is confirmed within this time, such as 5m
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    confirm: Option<prost_types::Duration>,
    /// Reason for the change, kept with the revision
    #[arg(long, default_value = "")]
    comment: String,
}

fn parse_timeout(text: &str) -> Result<prost_types::Duration, String> {
    parse_duration(text).ok_or_else(|| format!("expected {DURATION_FORM}"))
}

/// Runs a command and prints its result.
pub(super) async fn run(
    agent: &Connection,
    command: ConfigurationCommand,
    format: Format,
) -> Result<(), CtlError> {
    match command {
        ConfigurationCommand::Apply { file, merge, delete, yes, options } => {
            let request = ApplyConfigRequest {
                mode: mode(merge).into(),
                config: file.map(|file| read_document(&file)).transpose()?,
                expected_revision: options.expect,
                validate_only: options.dry_run,
                comment: options.comment,
                request_id: uuid::Uuid::new_v4().to_string(),
                delete,
                confirm_timeout: options.confirm,
            };
            apply(agent, request, yes, format).await
        }
        ConfigurationCommand::Confirm { revision } => {
            let request = ConfirmConfigRequest { revision };
            let answer = agent.config().confirm_config(request).await?.into_inner();
            print(format, &answer, "ConfirmConfigResponse", || {
                format!("revision {} confirmed", answer.revision)
            })
        }
        ConfigurationCommand::Rollback { revision, options } => {
            let request = RollbackConfigRequest {
                revision: revision.unwrap_or_default(),
                expected_revision: options.expect,
                validate_only: options.dry_run,
                comment: options.comment,
                confirm_timeout: options.confirm,
            };
            let answer = agent.config().rollback_config(request).await?.into_inner();
            print(format, &answer, "RollbackConfigResponse", || {
                let RollbackConfigResponse { revision, changes, warnings, confirm_deadline } =
                    answer.clone();
                let same = ApplyConfigResponse { revision, changes, warnings, confirm_deadline };
                format_answer(&same, options.dry_run, "not in that revision")
            })
        }
        ConfigurationCommand::Diff { file: Some(file), merge, .. } => {
            let request = ApplyConfigRequest {
                mode: mode(merge).into(),
                config: Some(read_document(&file)?),
                validate_only: true,
                ..ApplyConfigRequest::default()
            };
            let answer = agent.config().apply_config(request).await?.into_inner();
            let reason = removal_reason(mode(merge));
            print(format, &answer, "ApplyConfigResponse", || {
                format_changes(&answer.changes, reason, None)
            })
        }
        ConfigurationCommand::Diff { revisions, .. } => diff(agent, &revisions, format).await,
        ConfigurationCommand::Revisions => {
            let answer = pages::revisions(agent).await?;
            print(format, &answer, "ListRevisionsResponse", || tables::revisions(&answer.revisions))
        }
    }
}

/// Prints the configuration of a revision.
pub(super) async fn show(
    agent: &Connection,
    revision: u64,
    format: Format,
) -> Result<(), CtlError> {
    let config = pages::config(agent, revision).await?.config.unwrap_or_default();
    let value = to_value(&config, "AgentConfig", Fields::Given)?;
    match format {
        Format::Json => write_line(&format!("{value:#}")),
        Format::Table | Format::Yaml => write_line(&to_yaml(&value)?),
    }
}

/// Applies a document. On a terminal, asks before anything is removed.
async fn apply(
    agent: &Connection,
    mut request: ApplyConfigRequest,
    yes: bool,
    format: Format,
) -> Result<(), CtlError> {
    let dry_run = request.validate_only;
    let reason = removal_reason(request.mode());
    if !yes && !dry_run && is_interactive() {
        let (validate_only, request_id) = (true, String::new());
        let plan = ApplyConfigRequest { validate_only, request_id, ..request.clone() };
        let plan = agent.config().apply_config(plan).await?.into_inner();
        if let Some(removals) = format_removals(&plan.changes, reason) {
            if !confirm(&format!("{removals}\nApply?"))? {
                return Err(CtlError::Declined);
            }
            // The confirmation applies only to the revision that was shown.
            request.expected_revision.get_or_insert(plan.revision);
        }
    }
    let answer = agent.config().apply_config(request).await?.into_inner();
    print(format, &answer, "ApplyConfigResponse", || format_answer(&answer, dry_run, reason))
}

fn mode(merge: bool) -> ApplyMode {
    if merge { ApplyMode::Merge } else { ApplyMode::Replace }
}

fn removal_reason(mode: ApplyMode) -> &'static str {
    match mode {
        ApplyMode::Merge => "named by --delete",
        ApplyMode::Unspecified | ApplyMode::Replace => "not in the file",
    }
}

/// Returns a line with the parts that are removed; `None` if there are none.
fn format_removals(changes: &[Change], reason: &str) -> Option<String> {
    let removed: Vec<&str> = changes
        .iter()
        .filter(|change| change.kind() == ChangeKind::Removed)
        .map(|change| change.path.as_str())
        .collect();
    let named = removed.iter().take(MAX_LISTED_REMOVALS).copied().collect::<Vec<_>>().join(", ");
    let more = match removed.len().saturating_sub(MAX_LISTED_REMOVALS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!removed.is_empty()).then(|| format!("this change removes {named}{more} ({reason})"))
}

/// Prints the changes that one revision made, or the differences between two. Without a revision, the
/// request has 0, which stands for the current one.
async fn diff(agent: &Connection, revisions: &[u64], format: Format) -> Result<(), CtlError> {
    let get = async |revision| pages::config(agent, revision).await;
    let [before, after] = revisions else {
        let revision = revisions.first().copied().unwrap_or(0);
        let answer = get(revision).await?;
        return print(format, &answer, "GetConfigResponse", || {
            format_changes(&answer.changes, "", None)
        });
    };
    let value = |answer: GetConfigResponse| {
        to_value(&answer.config.unwrap_or_default(), "AgentConfig", Fields::Given)
    };
    let fields = differences(&value(get(*before).await?)?, &value(get(*after).await?)?);
    let table = || match fields.is_empty() {
        true => "no differences".into(),
        false => field_lines(&fields, "").trim_start_matches('\n').to_owned(),
    };
    if format == Format::Table {
        return write_line(&table());
    }
    let parts: Result<Vec<_>, _> =
        fields.iter().map(|field| to_value(field, "FieldChange", Fields::All)).collect();
    print_together(format, vec![("fields", parts?.into())], table)
}

fn format_answer(answer: &ApplyConfigResponse, dry_run: bool, removal_reason: &str) -> String {
    let mut text = match (dry_run, answer.changes.is_empty()) {
        (true, _) => format!("dry run against revision {}", answer.revision),
        (false, true) => format!("revision {}: no changes", answer.revision),
        (false, false) => format!("revision {}", answer.revision),
    };
    if !answer.changes.is_empty() {
        let revision = (!dry_run).then_some(answer.revision);
        text += &format!("\n{}", format_changes(&answer.changes, removal_reason, revision));
    }
    if answer.confirm_deadline.is_some() {
        let until = time(answer.confirm_deadline.as_ref());
        text += &format!("\n  pending: rolled back at {until} unless confirmed");
    }
    for warning in &answer.warnings {
        text += &format!("\n  warning: {warning}");
    }
    text
}

/// Returns the changes, removals first. `revision` is the revision that made them, if any; its details
/// can be read later.
fn format_changes(changes: &[Change], removal_reason: &str, revision: Option<u64>) -> String {
    if changes.is_empty() {
        return "no changes".into();
    }
    let mut changes: Vec<&Change> = changes.iter().collect();
    changes.sort_by_key(|change| change.kind() != ChangeKind::Removed);
    let mut lines = Vec::new();
    for change in changes {
        let kind = change.kind().word().to_lowercase();
        let effect = change.effect().word().to_lowercase().replace('_', " ");
        let mut line = format!("  {} {kind} ({effect})", change.path);
        if change.kind() == ChangeKind::Changed && !change.sessions.is_empty() {
            line += &format!(": {}", change.sessions.join(", "));
        } else if change.kind() == ChangeKind::Removed && !removal_reason.is_empty() {
            line += &format!(": {removal_reason}");
        }
        if change.details_omitted {
            line += &match revision {
                Some(revision) => format!(" (details omitted: see `twampctl diff {revision}`)"),
                None => " (details omitted)".to_owned(),
            };
        }
        lines.push(line + &field_lines(&change.fields, "    "));
    }
    lines.join("\n")
}

fn field_lines(fields: &[FieldChange], indent: &str) -> String {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let line = |field: &FieldChange| {
        let (before, after) = (or_dash(&field.before), or_dash(&field.after));
        format!("\n{indent}{}: {before} -> {after}", field.path)
    };
    fields.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ChangeEffect;

    fn change(path: &str, kind: ChangeKind, effect: ChangeEffect) -> Change {
        Change { path: path.into(), kind: kind.into(), effect: effect.into(), ..Change::default() }
    }

    #[test]
    fn removals_come_first_with_their_reason() {
        let all = [
            change("client/new", ChangeKind::Added, ChangeEffect::Start),
            change("client/loop", ChangeKind::Removed, ChangeEffect::Stop),
        ];
        assert_eq!(
            format_changes(&all, "not in the file", None),
            "  client/loop removed (stop): not in the file\n  client/new added (start)"
        );
        let line = format_removals(&all, "not in the file").unwrap();
        assert_eq!(line, "this change removes client/loop (not in the file)");
        assert_eq!(format_removals(&all[..1], "not in the file"), None);
        let kind = ChangeKind::Removed;
        let many: Vec<Change> =
            (0..10).map(|n| change(&format!("client/c{n}"), kind, ChangeEffect::Stop)).collect();
        let line = format_removals(&many, "not in the file").unwrap();
        assert!(line.ends_with("client/c7 and 2 more (not in the file)"), "{line}");
    }

    #[test]
    fn omitted_details_can_be_read_of_a_commit_only() {
        let mut change = change("client/a", ChangeKind::Changed, ChangeEffect::Live);
        change.details_omitted = true;
        let line = |revision| format_changes(&[change.clone()], "", revision);
        assert!(line(Some(7)).ends_with("(details omitted: see `twampctl diff 7`)"));
        assert!(line(None).ends_with("(details omitted)"));
    }

    #[test]
    fn durations_of_options_may_have_any_unit() {
        assert_eq!(parse_timeout("5m").map(|timeout| timeout.seconds), Ok(300));
        let error = parse_timeout("soon").unwrap_err();
        assert_eq!(error, "expected a number with a unit, such as 20ms, 1.5s or 1m30s");
    }
}
