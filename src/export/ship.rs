//! Delivery from the log to a sink. A batch is retried until the sink has accepted it, and only then
//! is the position of the consumer stored.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{consumer, state::Run};
use crate::{
    net::random,
    proto::Record,
    results::{Filter, Reader, Results, Start, StreamItem},
    supervise::Heartbeat,
};

/// Interval of heartbeats of the reader, at which the position is stored even if the filter selects no
/// record.
const HEARTBEAT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Error of a sink that did not accept records.
#[derive(Debug)]
pub(super) struct SendFailure(pub(super) String);

/// Result of a batch that the sink has accepted.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Records that the receiver rejected permanently.
    pub(super) rejected: u64,
    /// Message of the receiver about the rejected records.
    pub(super) detail: String,
}

/// Receiver of records, which accepts a batch as a whole. It reconnects by itself after a failure.
pub(super) trait Sink: Send {
    fn send(
        &mut self,
        records: &[Record],
    ) -> impl Future<Output = Result<Accepted, SendFailure>> + Send;
}

/// Delivery of the records of one exporter.
pub(super) struct Shipment {
    pub(super) run: Run,
    pub(super) filter: Filter,
    pub(super) results: Arc<Results>,
    pub(super) token: CancellationToken,
    pub(super) heartbeat: Heartbeat,
}

/// Delivers records until the token is cancelled.
pub(super) async fn ship(shipment: Shipment, mut sink: impl Sink) {
    let mut pause = FIRST_PAUSE;
    while !shipment.token.is_cancelled() {
        let failure = shipment.deliver_from_position(&mut sink, &mut pause).await;
        shipment.run.record_failure(&failure);
        shipment.back_off(&mut pause).await;
    }
}

impl Shipment {
    /// Delivers records from the stored position until an error, which it returns.
    async fn deliver_from_position(&self, sink: &mut impl Sink, pause: &mut Duration) -> String {
        let start = Start::Consumer(consumer(self.run.name()));
        let opened = Reader::open(self.results.clone(), self.filter.clone(), start, HEARTBEAT);
        let mut reader = match opened.await {
            Ok(reader) => reader,
            Err(error) => return error.to_string(),
        };
        loop {
            self.heartbeat.beat();
            let item = tokio::select! {
                item = reader.next() => item,
                () = self.token.cancelled() => return String::new(),
            };
            let position = match item {
                Ok(StreamItem::Opening(first)) => {
                    self.run.set_cursor(first.saturating_sub(1));
                    continue;
                }
                Ok(StreamItem::Batch(records)) => {
                    if !self.deliver(&records, sink, pause).await {
                        return String::new();
                    }
                    reader.position()
                }
                Ok(StreamItem::Sync(newest) | StreamItem::Heartbeat(newest)) => newest,
                Err(error) => return error.to_string(),
            };
            // If the position cannot be persisted, the same records are sent again after a restart.
            match self.results.acknowledge(&consumer(self.run.name()), position).await {
                Ok(_) => self.run.set_cursor(position),
                Err(error) => {
                    tracing::debug!(%error, exporter = self.run.name(), "failed to persist consumer position");
                }
            }
        }
    }

    /// Delivers a batch, with retries. Returns false when the exporter must stop.
    async fn deliver(
        &self,
        records: &[Record],
        sink: &mut impl Sink,
        pause: &mut Duration,
    ) -> bool {
        loop {
            let sent = tokio::select! {
                sent = sink.send(records) => sent,
                // Each call has a timeout; several in a row may exceed the heartbeat interval.
                () = self.beat() => return false,
                () = self.token.cancelled() => return false,
            };
            match sent {
                Ok(Accepted { rejected, detail }) => {
                    *pause = FIRST_PAUSE;
                    let rejected = rejected.min(records.len() as u64);
                    self.run.record_delivery(records.len() as u64, rejected, &detail);
                    return true;
                }
                Err(SendFailure(error)) => {
                    tracing::debug!(
                        exporter = self.run.name(),
                        error,
                        "failed to deliver records, retrying"
                    );
                    self.run.record_failure(&error);
                    self.back_off(pause).await;
                }
            }
        }
    }

    /// Sends heartbeats until the future is dropped.
    async fn beat(&self) {
        loop {
            self.heartbeat.beat();
            sleep(self.heartbeat.interval()).await;
        }
    }

    /// Waits after a failure. The pause doubles with each failure and has jitter, so that agents do not
    /// reconnect at the same time.
    async fn back_off(&self, pause: &mut Duration) {
        let part = f64::from(random::number() as u16) / f64::from(u16::MAX);
        let jittered = pause.mul_f64(0.5 + part / 2.0);
        *pause = (*pause * 2).min(MAX_PAUSE);
        self.heartbeat.beat();
        tokio::select! {
            () = sleep(jittered) => {}
            () = self.token.cancelled() => {}
        }
        self.heartbeat.beat();
    }
}
