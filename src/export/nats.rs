//! Exporter to NATS JetStream: each record is a message, and a batch is accepted when the server
//! has stored all of its messages.

use std::time::Duration;

use async_nats::{
    Client, ConnectOptions, HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{self, stream},
};
use bytes::Bytes;
use prost::Message;

use super::{
    ship::{Accepted, SendFailure, Sink},
    tls,
};
use crate::{
    document::{Fields, to_value},
    model::{Exporter, Secret},
    proto::{Record, record},
    results::Results,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of messages that are sent before their acknowledgements are awaited.
const MAX_IN_FLIGHT: usize = 256;
/// Upper limit of the bytes of a message in addition to payload and identifier: header names and line
/// ends.
const HEADER_BYTES: usize = 64;
/// Time for which the server detects duplicates, for a stream that the exporter creates.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);

/// Connection to a stream of JetStream.
pub(super) struct NatsSink {
    servers: Vec<String>,
    /// Subject without the kind of the record.
    subject: String,
    /// Name and subjects of the stream to create if it does not exist.
    stream: Option<(String, String)>,
    json: bool,
    user: Option<String>,
    secret: Option<Secret>,
    ca_certificates: String,
    agent_id: String,
    /// Cursor up to which this agent may have sent records before. A record after it cannot be a
    /// duplicate of this agent's own messages.
    sent_up_to: u64,
    connected: Option<(Client, jetstream::Context)>,
}

impl NatsSink {
    pub(super) fn new(
        servers: Vec<String>,
        subject: String,
        stream: Option<(String, String)>,
        json: bool,
        user: Option<String>,
        exporter: &Exporter,
        results: &Results,
    ) -> Self {
        Self {
            servers,
            subject,
            stream,
            json,
            user,
            secret: exporter.secret.clone(),
            ca_certificates: exporter.ca_certificates.clone(),
            agent_id: results.agent_id().to_owned(),
            sent_up_to: results.state().borrow().newest,
            connected: None,
        }
    }

    async fn connect(&self) -> Result<(Client, jetstream::Context), String> {
        let mut options = ConnectOptions::new()
            .name("twamp-agent")
            .connection_timeout(CONNECT_TIMEOUT)
            // The exporter itself reconnects, and reports the failure.
            .max_reconnects(1);
        let secret = self.secret.as_ref().map(|secret| String::from_utf8_lossy(secret.octets()));
        let secret = secret.unwrap_or_default().into_owned();
        match &self.user {
            Some(user) => options = options.user_and_password(user.clone(), secret),
            None if !secret.is_empty() => options = options.token(secret),
            None => {}
        }
        if !self.ca_certificates.is_empty() {
            options = options.tls_client_config(tls::client_config(&self.ca_certificates)?);
        }
        let connecting = options.connect(self.servers.clone());
        let client = tokio::time::timeout(CONNECT_TIMEOUT * 2, connecting)
            .await
            .map_err(|_| "no answer from the servers".to_owned())?
            .map_err(|error| format!("connect: {error}"))?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(ACK_TIMEOUT);
        if let Some((name, subjects)) = &self.stream {
            let config = stream::Config {
                name: name.clone(),
                subjects: vec![subjects.clone()],
                duplicate_window: DUPLICATE_WINDOW,
                ..stream::Config::default()
            };
            context
                .get_or_create_stream(config)
                .await
                .map_err(|error| format!("stream {name}: {error}"))?;
        }
        Ok((client, context))
    }

    /// Publishes records and waits until they are stored. Messages that are too long are rejected.
    async fn publish(
        &mut self,
        (client, context): &(Client, jetstream::Context),
        records: &[Record],
    ) -> Result<Accepted, String> {
        let max_len = client.server_info().max_payload;
        let mut accepted = Accepted::default();
        for records in records.chunks(MAX_IN_FLIGHT) {
            let mut acknowledgements = Vec::with_capacity(records.len());
            for record in records {
                let (id, payload) = (message_id(&self.agent_id, record), self.payload(record)?);
                let len = payload.len() + id.len() + HEADER_BYTES;
                if len > max_len {
                    accepted.rejected += 1;
                    accepted.detail = format!(
                        "record {} is a message of {len} bytes, but the server accepts at most \
                         {max_len} (max_payload)",
                        record.cursor
                    );
                    continue;
                }
                let mut headers = HeaderMap::new();
                headers.insert(NATS_MESSAGE_ID, id);
                let subject = format!("{}.{}", self.subject, kind(record));
                let sent = context.publish_with_headers(subject, headers, payload);
                let is_new = record.cursor > self.sent_up_to;
                self.sent_up_to = self.sent_up_to.max(record.cursor);
                let stored = sent.await.map_err(|error| error.to_string())?;
                acknowledgements.push((record.cursor, is_new, stored));
            }
            for (cursor, is_new, acknowledgement) in acknowledgements {
                let stored =
                    acknowledgement.await.map_err(|error| format!("not stored: {error}"))?;
                if is_new && stored.duplicate {
                    accepted.rejected += 1;
                    accepted.detail = format!(
                        "the stream dropped record {cursor} as a duplicate, though this agent sent \
                         it for the first time: another agent has the same id; stop one of them \
                         and run `twamp-agent db new-identity` on its state directory"
                    );
                }
            }
        }
        Ok(accepted)
    }

    fn payload(&self, record: &Record) -> Result<Bytes, String> {
        if !self.json {
            return Ok(record.encode_to_vec().into());
        }
        let value = to_value(record, "Record", Fields::Given).map_err(|error| error.to_string())?;
        Ok(value.to_string().into())
    }
}

impl Sink for NatsSink {
    async fn send(&mut self, records: &[Record]) -> Result<Accepted, SendFailure> {
        let connected = match self.connected.take() {
            Some(connected) => connected,
            None => self.connect().await.map_err(SendFailure)?,
        };
        // After a failure the connection is dropped; the next batch reconnects.
        let accepted = self.publish(&connected, records).await.map_err(SendFailure)?;
        self.connected = Some(connected);
        Ok(accepted)
    }
}

/// Returns the identifier by which the server detects duplicates. A gap has the cursor of its last
/// record and may begin earlier or later when it is read again.
fn message_id(agent_id: &str, record: &Record) -> String {
    match &record.kind {
        Some(record::Kind::Gap(gap)) => {
            format!("{agent_id}-gap-{}-{}", gap.first_cursor, gap.last_cursor)
        }
        _ => format!("{agent_id}-{}-{}", record.incarnation, record.cursor),
    }
}

fn kind(record: &Record) -> &'static str {
    match &record.kind {
        Some(record::Kind::TestResult(_)) => "test",
        Some(record::Kind::ProbeResults(_)) => "probes",
        Some(record::Kind::Event(_)) | None => "event",
        Some(record::Kind::IntervalResult(_)) => "interval",
        Some(record::Kind::Gap(_)) => "gap",
    }
}
