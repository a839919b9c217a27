//! `ResultsService`: records, statistics and consumers.

use std::{ops::Range, pin::Pin, time::Duration};

use futures_util::stream::{Stream, unfold};
use prost::Message as _;
use prost_types::Timestamp;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    Context, error,
    layers::check_role,
    page::{ITEM_OVERHEAD_BYTES, PAGE_BYTES, PageRequest, split_front},
    services::results_service_server::ResultsService,
    statistics::statistics_query,
};
use crate::{
    model::{check_name, limits},
    net::clock,
    proto::{
        AckRecordsRequest, AckRecordsResponse, ClearStatisticsRequest, ClearStatisticsResponse,
        Consumer, DeleteConsumerRequest, DeleteConsumerResponse, GetStatisticsRequest,
        GetStatisticsResponse, Heartbeat, ListConsumersRequest, ListConsumersResponse,
        ListRecordsRequest, ListRecordsResponse, Record, RecordBatch, RecordFilter, Role,
        StreamOpening, StreamRecordsRequest, StreamRecordsResponse, StreamSync,
        stream_records_request::From as StreamStart, stream_records_response::Message,
    },
    results::{Filter, Reader, Start, StreamItem, page},
    time::UnixTime,
};

type Records = Pin<Box<dyn Stream<Item = Result<StreamRecordsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ResultsService for Context {
    async fn get_statistics(
        &self,
        request: Request<GetStatisticsRequest>,
    ) -> Result<Response<GetStatisticsResponse>, Status> {
        self.statistics_page(request.into_inner()).await.map(Response::new)
    }

    async fn clear_statistics(
        &self,
        request: Request<ClearStatisticsRequest>,
    ) -> Result<Response<ClearStatisticsResponse>, Status> {
        let request = request.into_inner();
        let has_names = !request.connections.is_empty() || !request.sessions.is_empty();
        error::check_chosen("connections", has_names, request.all)?;
        self.check_names(&request.connections, &request.sessions)?;
        let query = statistics_query(request.connections, request.sessions);
        let cleared = self.results.clear_statistics(&query, clock::unix()).await;
        match cleared.map_err(error::store)? {
            0 => Err(Status::not_found("no session is selected: see the names in GetConfig")),
            sessions => {
                Ok(Response::new(ClearStatisticsResponse { sessions_cleared: sessions as u32 }))
            }
        }
    }

    async fn list_records(
        &self,
        request: Request<ListRecordsRequest>,
    ) -> Result<Response<ListRecordsResponse>, Status> {
        let request = request.into_inner();
        let unpaged =
            ListRecordsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
        let paged = PageRequest::new(&unpaged, 0, &request.page_token)?;
        let mut filter = parse_filter(request.filter)?;
        if let Some(times) = parse_times(request.since, request.until)? {
            filter = filter.with_times(times);
        }
        let limit = match u64::from(request.page_size) {
            0 => limits::PAGE_SIZE.default,
            size if limits::PAGE_SIZE.range.contains(&size) => size,
            size => {
                let words = limits::PAGE_SIZE.words;
                return Err(error::invalid("page_size", format!("{size}: expected {words}")));
            }
        };
        let after_cursor = paged.fixed_key::<8>()?.map_or(request.after_cursor, u64::from_be_bytes);
        self.check_cursor(after_cursor)?;
        if request.page_token.is_empty()
            && let Err(error) = self.results.flush().await
        {
            // A failure does not hide the records that are stored.
            tracing::debug!(%error, "failed to store the latest records before they are listed");
        }
        let mut page = page(&self.results, &filter, after_cursor, limit as usize, request.latest)
            .await
            .map_err(error::store)?;
        if truncate_to_page(&mut page.records, request.latest)
            && !request.latest
            && let Some(last) = page.records.last()
        {
            page.read_up_to = last.cursor;
        }
        let has_more = page.read_up_to < self.results.state().borrow().newest;
        let next = has_more.then(|| paged.token(&page.read_up_to.to_be_bytes()));
        Ok(Response::new(ListRecordsResponse {
            records: page.records,
            end_cursor: page.read_up_to,
            next_page_token: next.unwrap_or_default(),
        }))
    }

    type StreamRecordsStream = Records;

    async fn stream_records(
        &self,
        request: Request<StreamRecordsRequest>,
    ) -> Result<Response<Records>, Status> {
        if matches!(request.get_ref().from, Some(StreamStart::Consumer(_))) {
            let name = "StreamRecords with a consumer";
            check_role(request.extensions(), name, Role::Collector)?;
        }
        let request = request.into_inner();
        let filter = parse_filter(request.filter)?;
        let start = parse_start(request.from)?;
        if let Start::After(cursor) = start {
            self.check_cursor(cursor)?;
        }
        let heartbeat = parse_heartbeat(request.heartbeat_interval)?;
        let reader = Reader::open(self.results.clone(), filter, start, heartbeat)
            .await
            .map_err(error::store)?;
        let stream = RecordStream {
            reader,
            agent_id: self.results.agent_id().to_owned(),
            boot_id: self.results.boot_id().to_owned(),
            token: self.token.clone(),
            unsent: Vec::new(),
        };
        Ok(Response::new(Box::pin(unfold(Some(stream), RecordStream::next))))
    }

    async fn ack_records(
        &self,
        request: Request<AckRecordsRequest>,
    ) -> Result<Response<AckRecordsResponse>, Status> {
        let AckRecordsRequest { consumer, cursor } = request.into_inner();
        check_name(&consumer).map_err(|why| error::invalid("consumer", why))?;
        if consumer.starts_with(limits::EXPORT_CONSUMER) {
            let why = format!(
                "consumer {consumer:?} belongs to an exporter: clients cannot move its cursor"
            );
            return Err(error::invalid("consumer", why));
        }
        let newest = self.results.state().borrow().newest;
        if cursor > newest {
            return Err(error::invalid("cursor", self.describe_unused(cursor, newest)));
        }
        let cursor = self.results.acknowledge(&consumer, cursor).await.map_err(error::store)?;
        let consumer = Consumer { name: consumer, cursor, lag: newest - cursor.min(newest) };
        Ok(Response::new(AckRecordsResponse { consumer: Some(consumer) }))
    }

    async fn list_consumers(
        &self,
        request: Request<ListConsumersRequest>,
    ) -> Result<Response<ListConsumersResponse>, Status> {
        let ListConsumersRequest { page_size, page_token } = request.into_inner();
        let page = PageRequest::new(&ListConsumersRequest::default(), page_size, &page_token)?;
        let newest = self.results.state().borrow().newest;
        let consumers = self.results.consumers().await.map_err(error::store)?;
        let consumer =
            |(name, cursor)| Consumer { name, cursor, lag: newest.saturating_sub(cursor) };
        let mut consumers: Vec<Consumer> = consumers.into_iter().map(consumer).collect();
        consumers.sort_by(|a, b| a.name.cmp(&b.name));
        let (consumers, next_page_token) =
            page.cut(consumers, |consumer| consumer.name.clone().into_bytes());
        Ok(Response::new(ListConsumersResponse { consumers, next_page_token }))
    }

    async fn delete_consumer(
        &self,
        request: Request<DeleteConsumerRequest>,
    ) -> Result<Response<DeleteConsumerResponse>, Status> {
        let name = request.into_inner().name;
        if self.results.delete_consumer(&name).await.map_err(error::store)? {
            Ok(Response::new(DeleteConsumerResponse {}))
        } else {
            Err(Status::not_found(format!("no consumer is named {name:?}")))
        }
    }
}

/// Removes records beyond the size of a page, from the end or, with `latest`, from the beginning. Keeps
/// at least one record. Returns true if any was removed.
fn truncate_to_page(records: &mut Vec<Record>, latest: bool) -> bool {
    let mut bytes = 0;
    let mut fits = |record: &&Record| {
        bytes += record.encoded_len() + ITEM_OVERHEAD_BYTES;
        bytes <= PAGE_BYTES
    };
    let all = records.len();
    if latest {
        let kept = records.iter().rev().take_while(&mut fits).count().max(1);
        records.drain(..all.saturating_sub(kept));
    } else {
        let kept = records.iter().take_while(&mut fits).count().max(1);
        records.truncate(kept);
    }
    records.len() < all
}

impl Context {
    /// Refuses a cursor after the latest record. It belongs to another agent or to a state directory
    /// that was removed.
    fn check_cursor(&self, cursor: u64) -> Result<(), Status> {
        let newest = self.results.state().borrow().newest;
        if cursor <= newest {
            return Ok(());
        }
        let why = format!(
            "{}; if it comes from another agent or a removed state directory, read from the beginning \
             (StreamRecords: earliest, ListRecords: after_cursor 0)",
            self.describe_unused(cursor, newest)
        );
        Err(error::invalid("after_cursor", why))
    }

    fn describe_unused(&self, cursor: u64, newest: u64) -> String {
        let agent = self.results.agent_id();
        format!("cursor {cursor} is after the latest record ({newest}) of agent {agent}")
    }
}

/// A stream of records to one client.
struct RecordStream {
    reader: Reader,
    agent_id: String,
    boot_id: String,
    token: CancellationToken,
    /// Records of a batch that did not fit into the messages sent so far.
    unsent: Vec<Record>,
}

impl RecordStream {
    /// Returns the next message, and the state for the next call unless the stream has ended. Called by
    /// [`unfold`].
    async fn next(
        stream: Option<Self>,
    ) -> Option<(Result<StreamRecordsResponse, Status>, Option<Self>)> {
        let mut stream = stream?;
        if !stream.unsent.is_empty() && !stream.token.is_cancelled() {
            let message = stream.next_batch();
            return Some((Ok(message), Some(stream)));
        }
        let item = tokio::select! {
            item = stream.reader.next() => item,
            () = stream.token.cancelled() => return Some((Err(error::ending()), None)),
        };
        match item {
            Ok(item) => Some((Ok(stream.message(item)), Some(stream))),
            Err(failed) => Some((Err(error::store(failed)), None)),
        }
    }

    /// Returns a message with as many unsent records as fit.
    fn next_batch(&mut self) -> StreamRecordsResponse {
        let records = split_front(&mut self.unsent, PAGE_BYTES);
        StreamRecordsResponse { message: Some(Message::Batch(RecordBatch { records })) }
    }

    fn message(&mut self, item: StreamItem) -> StreamRecordsResponse {
        let message = match item {
            StreamItem::Opening(first_cursor) => Message::Opening(StreamOpening {
                agent_id: self.agent_id.clone(),
                boot_id: self.boot_id.clone(),
                first_cursor,
            }),
            StreamItem::Batch(records) => {
                self.unsent = records;
                return self.next_batch();
            }
            StreamItem::Sync(cursor) => Message::Sync(StreamSync { cursor }),
            StreamItem::Heartbeat(latest_cursor) => {
                let time = Some(clock::unix().to_proto());
                Message::Heartbeat(Heartbeat { latest_cursor, time })
            }
        };
        StreamRecordsResponse { message: Some(message) }
    }
}

fn parse_filter(filter: Option<RecordFilter>) -> Result<Filter, Status> {
    Filter::new(filter.unwrap_or_default()).map_err(|why| error::invalid("filter.kinds", why))
}

/// Returns the range of times from `since` to `until`; `None` for all times.
fn parse_times(
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> Result<Option<Range<UnixTime>>, Status> {
    if since.is_none() && until.is_none() {
        return Ok(None);
    }
    let start = since.map_or(UnixTime(0), |time| UnixTime::from_proto(&time));
    let end = until.map_or(UnixTime(u64::MAX), |time| UnixTime::from_proto(&time));
    if start >= end {
        return Err(error::invalid("until", "expected a time after `since`"));
    }
    Ok(Some(start..end))
}

fn parse_start(from: Option<StreamStart>) -> Result<Start, Status> {
    match from {
        None | Some(StreamStart::Latest(true)) => Ok(Start::Latest),
        Some(StreamStart::Earliest(true)) => Ok(Start::Earliest),
        Some(StreamStart::AfterCursor(cursor)) => Ok(Start::After(cursor)),
        Some(StreamStart::Since(time)) => Ok(Start::Since(UnixTime::from_proto(&time))),
        Some(StreamStart::Consumer(name)) => {
            check_name(&name).map_err(|why| error::invalid("consumer", why))?;
            Ok(Start::Consumer(name))
        }
        Some(StreamStart::Latest(false)) => {
            Err(error::invalid("latest", "expected true, or another start in `from`"))
        }
        Some(StreamStart::Earliest(false)) => {
            Err(error::invalid("earliest", "expected true, or another start in `from`"))
        }
    }
}

fn parse_heartbeat(interval: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let limit = &limits::HEARTBEAT_INTERVAL;
    let Some(interval) = interval else { return Ok(Duration::from_nanos(limit.default)) };
    Duration::try_from(interval)
        .ok()
        .filter(|interval| {
            u64::try_from(interval.as_nanos()).is_ok_and(|ns| limit.range.contains(&ns))
        })
        .ok_or_else(|| {
            error::invalid("heartbeat_interval", format!("{interval}: expected {}", limit.words))
        })
}
