//! Storage and delivery of results: records stored per second compared with bare sled and the same
//! octets, records replayed to one reader and to fifty compared with a bare stream of the same
//! messages, latency of a following reader, and time to open a store.
//!
//! `cargo bench --bench results [-- SECONDS [MIB]]`; with MIB only the last one, with a store of
//! that size.

#![allow(clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::{
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt, stream};
use tokio::task::JoinSet;
use tonic::{Request, Response, Status, transport::Server};
use twamp_agent::{
    agent::{Agent, Options},
    api::{
        ApiSettings,
        services::{
            results_service_client::ResultsServiceClient,
            results_service_server::{ResultsService, ResultsServiceServer},
        },
    },
    model::ResultKeeping,
    net::clock,
    proto::{self, stream_records_request::From as From_, stream_records_response::Message},
    results::{Filter, Reader, Results, Start, StreamItem, Subject},
    session::PlaneSettings,
    stats::ProbeResult,
    store::{ResultStore, Retention, StateDirectory},
    time::UnixTime,
};

const SESSIONS: usize = 1_000;
/// Probes per record: a session of 1,000 probes per second yields as many in 40 ms.
const PROBES: usize = 40;
/// Records in the queue of the store at a time.
const UNDER_WAY: u64 = 4_000;
const READERS: usize = 50;
/// Probes read by each reader.
const OF_EACH: u64 = 400_000;
const REOPENED_WITHIN: Duration = Duration::from_secs(4);
const LIVE_PROBES_PER_SECOND: u64 = 50_000;

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u64>().ok());
    let length = Duration::from_secs(numbers.next().unwrap_or(10));
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().join("state");
    let (records, live_bytes) = persisted(&state, length);
    bare_sled(&directory.path().join("bare"), live_bytes, length);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(replayed(&state, records));
    runtime.block_on(live(&directory.path().join("live"), length));
    if let Some(mib) = numbers.next() {
        reopened(&directory.path().join("large"), mib);
    }
}

fn open(directory: &Path) -> Arc<Results> {
    open_with(directory, Retention::of_all(u64::MAX, 1 << 40))
}

fn open_with(directory: &Path, retention: Retention) -> Arc<Results> {
    let state = StateDirectory::open(directory).expect("a directory");
    let store = ResultStore::open(&state, retention, "agent", clock::now).expect("a store");
    Results::open(store, "boot".into(), None).expect("results")
}

fn subjects() -> Vec<Arc<Subject>> {
    let labels = || [("site".to_owned(), "lab".to_owned())].into();
    let subject = |index| {
        let name = format!("connection-{index}");
        Arc::new(Subject::new(&name, "session", labels(), ResultKeeping::Stored))
    };
    (0..SESSIONS).map(subject).collect()
}

/// Realistic probes: jitter of some ten microseconds and a clock offset.
fn probes(number: u64) -> Vec<ProbeResult> {
    let first = number / SESSIONS as u64 * PROBES as u64;
    let kernel = proto::TimestampSource::Kernel.into();
    (first..first + PROBES as u64)
        .map(|sequence| {
            let noise = sequence.wrapping_add(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
            let (rtt, egress) = (1_000_000 + noise as i64, 7_000_000_000 + noise as i64 / 2);
            ProbeResult {
                test_number: 1,
                sequence: sequence as u32,
                sent_unix_ns: 1_790_000_000_000_000_000 + sequence * 1_000_000 + noise,
                status: proto::ProbeStatus::Received.into(),
                rtt_ns: Some(rtt),
                egress_ns: Some(egress),
                ingress_ns: Some(rtt - egress),
                reflector_processing_ns: Some(4_000 + noise as i64 / 16),
                reflector_sequence: Some(sequence as u32),
                egress_ttl: Some(255),
                ingress_ttl: Some(255),
                ingress_tos: Some(0),
                egress_tos: None,
                transmit_timestamp_source: kernel,
                receive_timestamp_source: Some(kernel),
                one_way_validity: Some(proto::OneWayValidity::Negative.into()),
                reflector_timestamp_corrected: false,
            }
        })
        .collect()
}

/// Stored records and their octets.
fn persisted(directory: &Path, length: Duration) -> (u64, u64) {
    let results = open(directory);
    let (subjects, state) = (subjects(), results.state());
    let (begun, mut sent) = (Instant::now(), 0u64);
    while begun.elapsed() < length {
        while sent.saturating_sub(state.borrow().newest) >= UNDER_WAY {
            std::thread::yield_now();
        }
        let subject = subjects[sent as usize % SESSIONS].clone();
        results.probes(subject, probes(sent), clock::unix());
        sent += 1;
    }
    while state.borrow().newest < sent {
        std::thread::yield_now();
    }
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(results.dropped(), 0, "all are stored");
    let octets = state.borrow().live_bytes;
    let each = sent as f64 * PROBES as f64;
    println!("stored: {:.0} probe results/s in {:.0} records/s", each / took, sent as f64 / took);
    println!("  {:.1} octets live for each probe result, {sent} records", octets as f64 / each);
    println!("  {:.1} MB/s", octets as f64 / took / 1e6);
    results.close();
    (sent, octets)
}

/// Writes the same octets into sled, in values of 4 KiB, flushed as often.
fn bare_sled(directory: &Path, octets: u64, length: Duration) {
    let db = sled::Config::new().path(directory).cache_capacity(16 << 20).open().expect("sled");
    let mut value = vec![0u8; 4096];
    let (begun, mut flushed, mut key) = (Instant::now(), Instant::now(), 0u64);
    while key * 4104 < octets && begun.elapsed() < length * 3 {
        key += 1;
        // Each value differs from all earlier ones.
        let mut state = key;
        for eight in value.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            eight.copy_from_slice(&state.to_ne_bytes());
        }
        db.insert(key.to_be_bytes(), value.as_slice()).expect("an insert");
        if flushed.elapsed() > Duration::from_millis(20) {
            db.flush().expect("a flush");
            flushed = Instant::now();
        }
    }
    db.flush().expect("a flush");
    let took = begun.elapsed().as_secs_f64();
    println!("  bare sled, the same octets: {:.1} MB/s", key as f64 * 4104.0 / took / 1e6);
}

async fn replayed(directory: &Path, records: u64) {
    let agent = Agent::start(Options {
        senders: PlaneSettings::default(),
        reflectors: PlaneSettings::default(),
        state_dir: directory.to_owned(),
        api: ApiSettings {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()],
            ..ApiSettings::default()
        },
        hardware_timestamp_interfaces: Vec::new(),
        clock_is_synchronised: false,
        bootstrap: None,
    });
    let agent = agent.await.expect("an agent");
    let address = agent.addresses()[0];
    let (one, messages) = read(address, u64::MAX, true).await;
    println!("replayed to one reader: {:.0} probe results/s of {records} records", one.rate());
    let all = fifty(address).await;
    println!("replayed to {READERS} readers: {:.0} probe results/s in all", all.rate());
    agent.stop().await;

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    let server = Server::builder()
        .add_service(ResultsServiceServer::new(Bare { messages: messages.into() }))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { server.await.expect("a server") });
    let (bare, _) = read(address, u64::MAX, false).await;
    println!("  bare stream of the same messages: {:.0}; ratio {:.2}", bare.rate(), {
        one.rate() / bare.rate()
    });
    let bare = fifty(address).await;
    println!("  bare stream, {READERS} readers: {:.0}; ratio {:.2}", bare.rate(), {
        all.rate() / bare.rate()
    });
}

struct Read {
    probes: u64,
    took: Duration,
}

impl Read {
    fn rate(&self) -> f64 {
        self.probes as f64 / self.took.as_secs_f64()
    }
}

/// Reads up to this many stored probes and keeps the messages.
async fn read(
    address: SocketAddr,
    most: u64,
    keep: bool,
) -> (Read, Vec<proto::StreamRecordsResponse>) {
    let mut client = ResultsServiceClient::connect(format!("http://{address}"))
        .await
        .expect("a connection")
        .max_decoding_message_size(64 << 20);
    let (begun, mut probes, mut kept) = (Instant::now(), 0, Vec::new());
    let request = proto::StreamRecordsRequest {
        from: Some(From_::Earliest(true)),
        ..proto::StreamRecordsRequest::default()
    };
    let mut stream = client.stream_records(request).await.expect("a stream").into_inner();
    while let Some(message) = stream.message().await.expect("a message") {
        match &message.message {
            Some(Message::Batch(batch)) => {
                for record in &batch.records {
                    if let Some(proto::record::Kind::ProbeResults(results)) = &record.kind {
                        probes += results.probes.len() as u64;
                    }
                }
            }
            Some(Message::Sync(_)) => break,
            Some(Message::Opening(_) | Message::Heartbeat(_)) | None => {}
        }
        // Limited to what fits into memory.
        if keep && kept.len() < 400 {
            kept.push(message);
        }
        if probes >= most {
            break;
        }
    }
    (Read { probes, took: begun.elapsed() }, kept)
}

/// Reads with many readers at the same time.
async fn fifty(address: SocketAddr) -> Read {
    let (begun, mut readers, mut probes) = (Instant::now(), JoinSet::new(), 0);
    for _ in 0..READERS {
        readers.spawn(async move { read(address, OF_EACH, false).await.0.probes });
    }
    while let Some(read) = readers.join_next().await {
        probes += read.expect("a reader");
    }
    Read { probes, took: begun.elapsed() }
}

/// Latency between a record and its delivery to a following reader.
async fn live(directory: &Path, length: Duration) {
    let results = open(directory);
    let subjects = subjects();
    let records = LIVE_PROBES_PER_SECOND / PROBES as u64;
    let late = Arc::new(AtomicU64::new(0));
    let writer = {
        let (results, late) = (results.clone(), late.clone());
        std::thread::spawn(move || {
            let begun = Instant::now();
            for number in 0..records * length.as_secs() {
                let due = Duration::from_nanos(number * 1_000_000_000 / records);
                if let Some(rest) = due.checked_sub(begun.elapsed()) {
                    std::thread::park_timeout(rest);
                } else if begun.elapsed() > due + Duration::from_millis(100) {
                    late.fetch_add(1, Relaxed);
                }
                let subject = subjects[number as usize % SESSIONS].clone();
                results.probes(subject, probes(number), clock::unix());
            }
        })
    };
    let heartbeat = Duration::from_secs(3);
    let start = Start::Earliest;
    let filter = Filter::default();
    let mut reader =
        Reader::open(results.clone(), filter, start, heartbeat).await.expect("a reader");
    let mut delays = Vec::new();
    loop {
        match reader.next().await.expect("records") {
            StreamItem::Batch(records) => {
                let now = clock::unix();
                for record in records {
                    let time = record.time.as_ref().map(UnixTime::from_proto).expect("a time");
                    delays.push(now.since_ns(time).max(0) as u64);
                }
            }
            StreamItem::Heartbeat(_) => break,
            StreamItem::Opening(_) | StreamItem::Sync(_) => {}
        }
    }
    writer.join().expect("the writer");
    delays.sort_unstable();
    let at = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize] as f64 / 1e6;
    println!(
        "live at {LIVE_PROBES_PER_SECOND} probe results/s: delay p50 {:.1} ms, p99 {:.1} ms, max \
         {:.1} ms; {} records were made late",
        at(0.5),
        at(0.99),
        at(1.0),
        late.load(Relaxed)
    );
    results.close();
}

/// Time to open a store of a given size.
fn reopened(directory: &Path, mib: u64) {
    // Window size of a quota of that size.
    let retention = Retention::of_all(u64::MAX, (mib << 20) * 17 / 16);
    let results = open_with(directory, retention.clone());
    let (subjects, state) = (subjects(), results.state());
    let mut sent = 0u64;
    while state.borrow().live_bytes < mib << 20 {
        while sent.saturating_sub(state.borrow().newest) >= UNDER_WAY {
            std::thread::yield_now();
        }
        results.probes(subjects[sent as usize % SESSIONS].clone(), probes(sent), clock::unix());
        sent += 1;
    }
    results.close();
    drop(results);
    let begun = Instant::now();
    let results = open_with(directory, retention);
    let took = begun.elapsed();
    let octets = results.state().borrow().live_bytes;
    println!("opened again with {} MiB live: {:.2} s", octets >> 20, took.as_secs_f64());
    assert!(octets >> 20 >= mib, "{octets} octets are left");
    assert!(took < REOPENED_WITHIN, "twice what it may take on a machine that does nothing else");
    results.close();
}

/// Service that streams messages prepared beforehand.
struct Bare {
    messages: Arc<[proto::StreamRecordsResponse]>,
}

type Messages = Pin<Box<dyn Stream<Item = Result<proto::StreamRecordsResponse, Status>> + Send>>;

impl Bare {
    fn stream(&self) -> Messages {
        let messages = self.messages.clone();
        let all = stream::iter(0..messages.len()).map(move |index| Ok(messages[index].clone()));
        let sync = proto::StreamRecordsResponse {
            message: Some(Message::Sync(proto::StreamSync::default())),
        };
        Box::pin(all.chain(stream::iter([Ok(sync)])))
    }
}

/// The method under test; all others are unimplemented.
macro_rules! bare_service {
    ($($method:ident $request:ident $response:ident),*) => {
        #[tonic::async_trait]
        impl ResultsService for Bare {
            type StreamRecordsStream = Messages;

            async fn stream_records(
                &self,
                _: Request<proto::StreamRecordsRequest>,
            ) -> Result<Response<Messages>, Status> {
                Ok(Response::new(self.stream()))
            }

            $(async fn $method(
                &self,
                _: Request<proto::$request>,
            ) -> Result<Response<proto::$response>, Status> {
                Err(Status::unimplemented("a baseline"))
            })*
        }
    };
}

bare_service! {
    get_statistics GetStatisticsRequest GetStatisticsResponse,
    clear_statistics ClearStatisticsRequest ClearStatisticsResponse,
    list_records ListRecordsRequest ListRecordsResponse,
    ack_records AckRecordsRequest AckRecordsResponse,
    list_consumers ListConsumersRequest ListConsumersResponse,
    delete_consumer DeleteConsumerRequest DeleteConsumerResponse
}
