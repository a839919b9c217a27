//! Commands that read the result log.

use super::{
    Connection, CtlError, Format,
    output::{print, print_item},
    tables,
};
use crate::proto::{
    AckRecordsRequest, ListRecordsRequest, RecordFilter, RecordKind, StreamRecordsRequest,
    stream_records_request::From as StreamFrom, stream_records_response::Message,
};

/// Options that select records.
#[derive(Clone, Debug, clap::Args)]
pub struct FilterArguments {
    /// Show only records of this connection; may be repeated
    #[arg(long, value_name = "NAME")]
    connection: Vec<String>,
    /// Show only records of this session; may be repeated
    #[arg(long, value_name = "NAME")]
    session: Vec<String>,
    /// Show only records of this kind; may be repeated
    #[arg(long, value_enum)]
    kind: Vec<KindArgument>,
}

/// Kind of record, as the option `--kind` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KindArgument {
    /// Results of finished tests
    Test,
    /// Results of single probes
    Probes,
    /// Events, such as outages and thresholds
    Event,
    /// Statistics of minutes, quarters of an hour, hours and days
    Interval,
}

impl From<FilterArguments> for RecordFilter {
    fn from(arguments: FilterArguments) -> Self {
        let kind = |kind: &KindArgument| match kind {
            KindArgument::Test => RecordKind::TestResult.into(),
            KindArgument::Probes => RecordKind::ProbeResults.into(),
            KindArgument::Event => RecordKind::Event.into(),
            KindArgument::Interval => RecordKind::IntervalResult.into(),
        };
        Self {
            connections: arguments.connection,
            sessions: arguments.session,
            kinds: arguments.kind.iter().map(kind).collect(),
            labels: Default::default(),
        }
    }
}

/// Options that bound a list of records.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RecordRange {
    /// Number of records to show; the newest ones unless --after is given
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// Show records after this cursor, oldest first
    #[arg(long, value_name = "CURSOR")]
    after: Option<u64>,
}

/// Options for the start of a stream.
#[derive(Clone, Debug, clap::Args)]
pub struct StreamStart {
    /// Start after this cursor
    #[arg(long, value_name = "CURSOR", conflicts_with_all = ["earliest", "consumer"])]
    after: Option<u64>,
    /// Start at the earliest record
    #[arg(long, conflicts_with = "consumer")]
    earliest: bool,
    /// Start after the last record that this consumer acknowledged, and acknowledge printed
    /// records
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

/// Prints a page of the log; returns the last cursor that was read.
pub(super) async fn list(
    agent: &Connection,
    filter: RecordFilter,
    RecordRange { count, after }: RecordRange,
    format: Format,
) -> Result<u64, CtlError> {
    let request = ListRecordsRequest {
        filter: Some(filter),
        after_cursor: after.unwrap_or(0),
        page_size: count,
        latest: after.is_none(),
        ..ListRecordsRequest::default()
    };
    let answer = agent.results().list_records(request).await?.into_inner();
    print(format, &answer, "ListRecordsResponse", || {
        let lines: Vec<String> = answer.records.iter().map(tables::record_line).collect();
        if lines.is_empty() { "no records".into() } else { lines.join("\n") }
    })?;
    Ok(answer.end_cursor)
}

/// Prints events, and later ones as they occur.
pub(super) async fn events(
    agent: &Connection,
    connections: Vec<String>,
    range: RecordRange,
    follow: bool,
    format: Format,
) -> Result<(), CtlError> {
    let kinds = vec![RecordKind::Event.into()];
    let filter = RecordFilter { connections, kinds, ..RecordFilter::default() };
    let last = list(agent, filter.clone(), range, format).await?;
    if !follow {
        return Ok(());
    }
    follow_log(agent, filter, StreamFrom::AfterCursor(last), None, format).await
}

/// Prints records as they are stored.
pub(super) async fn stream(
    agent: &Connection,
    filter: RecordFilter,
    start: StreamStart,
    format: Format,
) -> Result<(), CtlError> {
    let StreamStart { after, earliest, consumer } = start;
    let from = match (after, earliest, &consumer) {
        (_, _, Some(name)) => StreamFrom::Consumer(name.clone()),
        (Some(cursor), _, _) => StreamFrom::AfterCursor(cursor),
        (_, true, _) => StreamFrom::Earliest(true),
        _ => StreamFrom::Latest(true),
    };
    follow_log(agent, filter, from, consumer, format).await
}

async fn follow_log(
    agent: &Connection,
    filter: RecordFilter,
    from: StreamFrom,
    consumer: Option<String>,
    format: Format,
) -> Result<(), CtlError> {
    let (filter, from) = (Some(filter), Some(from));
    let request = StreamRecordsRequest { filter, from, heartbeat_interval: None };
    let mut messages = agent.results().stream_records(request).await?.into_inner();
    while let Some(message) = messages.message().await? {
        print_item(format, &message, "StreamRecordsResponse", || match &message.message {
            Some(Message::Opening(opening)) => {
                Some(format!("# agent {}, from cursor {}", opening.agent_id, opening.first_cursor))
            }
            Some(Message::Batch(batch)) => {
                let lines: Vec<String> = batch.records.iter().map(tables::record_line).collect();
                Some(lines.join("\n"))
            }
            Some(Message::Sync(sync)) => {
                Some(format!("# end of the history at cursor {}; new records follow", sync.cursor))
            }
            Some(Message::Heartbeat(_)) | None => None,
        })?;
        // A printed record is acknowledged.
        if let (Some(consumer), Some(Message::Batch(batch))) = (&consumer, &message.message)
            && let Some(last) = batch.records.last()
        {
            let request = AckRecordsRequest { consumer: consumer.clone(), cursor: last.cursor };
            agent.results().ack_records(request).await?;
        }
    }
    Ok(())
}
