//! From the log to a sink: what was not taken is offered again until it is, and only then does the
//! position move.

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

/// Silence after which the position moves over what the filter leaves out.
const HEARTBEAT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why a sink did not take records.
#[derive(Debug)]
pub(super) struct SendFailure(pub(super) String);

/// Result of a batch that the sink has finished.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Records that the other end refused for good.
    pub(super) rejected: u64,
    /// Message of the peer.
    pub(super) detail: String,
}

/// Takes records, all or none. After a failure it connects anew by itself.
pub(super) trait Sink: Send {
    fn send(
        &mut self,
        records: &[Record],
    ) -> impl Future<Output = Result<Taken, SendFailure>> + Send;
}

/// A shipment: records of one exporter.
pub(super) struct Shipment {
    pub(super) run: Run,
    pub(super) filter: Filter,
    pub(super) results: Arc<Results>,
    pub(super) token: CancellationToken,
    pub(super) heartbeat: Heartbeat,
}

/// Until the token is cancelled.
pub(super) async fn ship(shipment: Shipment, mut sink: impl Sink) {
    let mut pause = FIRST_PAUSE;
    while !shipment.token.is_cancelled() {
        let failure = shipment.ship_on(&mut sink, &mut pause).await;
        shipment.run.failed(&failure);
        shipment.rest(&mut pause).await;
    }
}

impl Shipment {
    /// From the position that is stored, until something fails.
    async fn ship_on(&self, sink: &mut impl Sink, pause: &mut Duration) -> String {
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
                    self.run.at(first.saturating_sub(1));
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
            // Where the position cannot be persisted, the same records are sent again after a
            // restart.
            match self.results.acknowledge(&consumer(self.run.name()), position).await {
                Ok(_) => self.run.at(position),
                Err(error) => {
                    tracing::debug!(%error, exporter = self.run.name(), "position not stored");
                }
            }
        }
    }

    /// Returns whether the batch was accepted; otherwise the exporter is to end.
    async fn deliver(
        &self,
        records: &[Record],
        sink: &mut impl Sink,
        pause: &mut Duration,
    ) -> bool {
        loop {
            let sent = tokio::select! {
                sent = sink.send(records) => sent,
                // Each call has its time; many calls may have more than one task is to be silent.
                () = self.beat() => return false,
                () = self.token.cancelled() => return false,
            };
            match sent {
                Ok(Taken { rejected, detail }) => {
                    *pause = FIRST_PAUSE;
                    let rejected = rejected.min(records.len() as u64);
                    self.run.delivered(records.len() as u64, rejected, &detail);
                    return true;
                }
                Err(SendFailure(why)) => {
                    tracing::debug!(exporter = self.run.name(), why, "records were not taken");
                    self.run.failed(&why);
                    self.rest(pause).await;
                }
            }
        }
    }

    /// Sends heartbeats until it is dropped.
    async fn beat(&self) {
        loop {
            self.heartbeat.beat();
            sleep(self.heartbeat.interval()).await;
        }
    }

    /// Longer with each failure, and not in step with other agents.
    async fn rest(&self, pause: &mut Duration) {
        let part = f64::from(random::number() as u16) / f64::from(u16::MAX);
        let rest = pause.mul_f64(0.5 + part / 2.0);
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        self.heartbeat.beat();
        tokio::select! {
            () = sleep(rest) => {}
            () = self.token.cancelled() => {}
        }
        self.heartbeat.beat();
    }
}
