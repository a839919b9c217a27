//! NATS JetStream: each record is a message that the server has stored before the next ones go.

use std::time::Duration;

use async_nats::{
    Client, ConnectOptions, HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{self, stream},
};
use bytes::Bytes;
use prost::Message;

use super::{
    ship::{SendFailure, Sink, Taken},
    tls,
};
use crate::{
    document::{Fields, to_value},
    model::{Exporter, Secret},
    proto::{Record, record},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that wait for their acknowledgement.
const UNDER_WAY: usize = 256;
/// Octets of a message beside its payload and its identifier, at most: names and ends of headers.
const HEADER_OCTETS: usize = 64;
/// Time for which the server detects duplicates in a stream that is created.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);

/// A stream of JetStream.
pub(super) struct NatsSink {
    servers: Vec<String>,
    /// Subjects are this and the kind.
    subject: String,
    /// Name and subjects of the stream that is to be there.
    stream: Option<(String, String)>,
    json: bool,
    user: Option<String>,
    secret: Option<Secret>,
    ca_certificates: String,
    agent_id: String,
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
        agent_id: String,
    ) -> Self {
        Self {
            servers,
            subject,
            stream,
            json,
            user,
            secret: exporter.secret.clone(),
            ca_certificates: exporter.ca_certificates.clone(),
            agent_id,
            connected: None,
        }
    }

    async fn connect(&self) -> Result<(Client, jetstream::Context), String> {
        let mut options = ConnectOptions::new()
            .name("twamp-agent")
            .connection_timeout(CONNECT_TIMEOUT)
            // The exporter reconnects and reports that itself.
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

    /// Counts messages stored, and those refused for their length, as done.
    async fn publish(
        &self,
        (client, context): &(Client, jetstream::Context),
        records: &[Record],
    ) -> Result<Taken, String> {
        let longest = client.server_info().max_payload;
        let mut taken = Taken::default();
        for records in records.chunks(UNDER_WAY) {
            let mut acknowledgements = Vec::with_capacity(records.len());
            for record in records {
                let (id, payload) = (message_id(&self.agent_id, record), self.payload(record)?);
                let octets = payload.len() + id.len() + HEADER_OCTETS;
                if octets > longest {
                    taken.rejected += 1;
                    taken.detail = format!(
                        "record {} is a message of {octets} octets, and the server takes {longest} \
                         (max_payload)",
                        record.cursor
                    );
                    continue;
                }
                let mut headers = HeaderMap::new();
                headers.insert(NATS_MESSAGE_ID, id);
                let subject = format!("{}.{}", self.subject, kind(record));
                let sent = context.publish_with_headers(subject, headers, payload);
                acknowledgements.push(sent.await.map_err(|error| error.to_string())?);
            }
            for acknowledgement in acknowledgements {
                acknowledgement.await.map_err(|error| format!("not stored: {error}"))?;
            }
        }
        Ok(taken)
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
    async fn send(&mut self, records: &[Record]) -> Result<Taken, SendFailure> {
        let connected = match self.connected.take() {
            Some(connected) => connected,
            None => self.connect().await.map_err(SendFailure)?,
        };
        // Behind a failure the connection is dropped, and made anew.
        let taken = self.publish(&connected, records).await.map_err(SendFailure)?;
        self.connected = Some(connected);
        Ok(taken)
    }
}

/// By which the server knows what it has already. A gap has the cursor of its last record, and may
/// be another gap when it is met again.
fn message_id(agent_id: &str, record: &Record) -> String {
    match &record.kind {
        Some(record::Kind::Gap(gap)) => {
            format!("{agent_id}-gap-{}-{}", gap.first_cursor, gap.last_cursor)
        }
        _ => format!("{agent_id}-{}", record.cursor),
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
