//! Commands of `twampctl` that show or change the configuration.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{
    Connection, CtlError, Format,
    commands::read,
    output::{print, print_together, write_line},
    pages, tables,
    words::time,
};
use crate::{
    document::{DocumentError, Fields, differences, read_config, to_value},
    proto::{
        AgentConfig, ApplyConfigRequest, ApplyConfigResponse, ApplyMode, Change, ChangeKind,
        ConfirmConfigRequest, FieldChange, GetConfigResponse, RollbackConfigRequest,
        RollbackConfigResponse, Word,
    },
};

/// Commands that show or change the configuration; their comments are the help texts.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigurationCommand {
    /// Replace the whole configuration: what FILE does not name is removed (see --dry-run); with
    /// --merge, change only what it names
    Apply {
        /// Configuration in YAML or JSON; `-` is standard input
        #[arg(short, long, value_name = "FILE", required_unless_present = "delete")]
        file: Option<PathBuf>,
        /// Replace the parts that FILE names, and keep the others
        #[arg(long)]
        merge: bool,
        /// Remove this part: client/NAME, server, server/client_list/NAME, server/key_chains/NAME,
        /// export or storage; may be given several times
        #[arg(long, value_name = "PART", requires = "merge")]
        delete: Vec<String>,
        /// Options of the change
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
        /// Options of the change
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Show what FILE would change, what a revision changed, or the differences between two
    Diff {
        /// Configuration in YAML or JSON; `-` is standard input
        #[arg(short, long, value_name = "FILE", conflicts_with = "revisions")]
        file: Option<PathBuf>,
        /// The file holds parts, as with apply --merge
        #[arg(long, requires = "file")]
        merge: bool,
        /// One revision or two; the current one by default
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
    /// Commit only if this is the current revision; 0 stands for none
    #[arg(long, value_name = "REVISION")]
    expect: Option<u64>,
    /// Roll back unless the revision is confirmed within this time, such as 5m
    #[arg(long, value_name = "TIME", value_parser = length)]
    confirm: Option<prost_types::Duration>,
    /// Reason for the change, kept with the revision
    #[arg(long, default_value = "")]
    comment: String,
}

fn length(text: &str) -> Result<prost_types::Duration, String> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("invalid duration {text:?}: expected one such as 90s or 5m"))?;
    Ok(prost_types::Duration { seconds: span.as_secs(), nanos: span.subsec_nanos() })
}

/// Runs a command and prints its result.
pub(super) async fn run(
    agent: &Connection,
    command: ConfigurationCommand,
    format: Format,
) -> Result<(), CtlError> {
    match command {
        ConfigurationCommand::Apply { file, merge, delete, options } => {
            let request = ApplyConfigRequest {
                mode: mode(merge).into(),
                config: file.map(|file| document(&file)).transpose()?,
                expected_revision: options.expect,
                validate_only: options.dry_run,
                comment: options.comment,
                request_id: uuid::Uuid::new_v4().to_string(),
                delete,
                confirm_timeout: options.confirm,
            };
            let answer = agent.config().apply_config(request).await?.into_inner();
            print(format, &answer, "ApplyConfigResponse", || applied(&answer, options.dry_run))
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
                applied(&same, options.dry_run)
            })
        }
        ConfigurationCommand::Diff { file: Some(file), merge, .. } => {
            let request = ApplyConfigRequest {
                mode: mode(merge).into(),
                config: Some(document(&file)?),
                validate_only: true,
                ..ApplyConfigRequest::default()
            };
            let answer = agent.config().apply_config(request).await?.into_inner();
            print(format, &answer, "ApplyConfigResponse", || changes(&answer.changes))
        }
        ConfigurationCommand::Diff { revisions, .. } => diff(agent, &revisions, format).await,
        ConfigurationCommand::Revisions => {
            let answer = pages::revisions(agent).await?;
            print(format, &answer, "ListRevisionsResponse", || tables::revisions(&answer.revisions))
        }
    }
}

fn mode(merge: bool) -> ApplyMode {
    if merge { ApplyMode::Merge } else { ApplyMode::Replace }
}

fn document(file: &Path) -> Result<AgentConfig, CtlError> {
    let text = read(file)?;
    // A truncated file must not remove the whole configuration.
    let config =
        if text.trim().is_empty() { Err(DocumentError::empty()) } else { read_config(&text) };
    config.map_err(|error| CtlError::Document(file.display().to_string(), error))
}

/// Prints the changes of one revision, or the differences between two.
async fn diff(agent: &Connection, revisions: &[u64], format: Format) -> Result<(), CtlError> {
    let get = async |revision| pages::config(agent, revision).await;
    let [before, after] = revisions else {
        let revision = revisions.first().copied().unwrap_or(0);
        let answer = get(revision).await?;
        return print(format, &answer, "GetConfigResponse", || changes(&answer.changes));
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

fn applied(answer: &ApplyConfigResponse, dry_run: bool) -> String {
    let mut text = match (dry_run, answer.changes.is_empty()) {
        (true, _) => format!("dry run against revision {}", answer.revision),
        (false, true) => format!("revision {}: no changes", answer.revision),
        (false, false) => format!("revision {}", answer.revision),
    };
    if !answer.changes.is_empty() {
        text += &format!("\n{}", changes(&answer.changes));
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

fn changes(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "no changes".into();
    }
    let mut lines = Vec::new();
    for change in changes {
        let kind = change.kind().word().to_lowercase();
        let effect = change.effect().word().to_lowercase().replace('_', " ");
        let mut line = format!("  {} {kind} ({effect})", change.path);
        if change.kind() == ChangeKind::Changed && !change.sessions.is_empty() {
            line += &format!(": {}", change.sessions.join(", "));
        }
        lines.push(line + &field_lines(&change.fields, "    "));
    }
    lines.join("\n")
}

fn field_lines(fields: &[FieldChange], indent: &str) -> String {
    let or_nothing = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let line = |field: &FieldChange| {
        let (before, after) = (or_nothing(&field.before), or_nothing(&field.after));
        format!("\n{indent}{}: {before} -> {after}", field.path)
    };
    fields.iter().map(line).collect()
}
