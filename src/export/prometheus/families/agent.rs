//! The agent, its connections, its server role and its exporters.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use super::{super::Sources, add_configured_labels, counter};
use crate::{
    net::clock,
    proto::{self, ConnectionState},
};

/// Metrics of the agent itself.
#[derive(Debug)]
pub(super) struct Agent {
    sources: Sources,
    connections: Vec<proto::Connection>,
}

impl Agent {
    pub(super) fn new(sources: &Sources) -> Self {
        Self { sources: sources.clone(), connections: (sources.connections)() }
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = |connection: &proto::Connection| {
            add_configured_labels(&[("connection", &connection.name)], &connection.labels)
        };
        let help = "1 while the sessions of the connection run";
        let mut family =
            encoder.encode_descriptor("connection_up", help, None, MetricType::Gauge)?;
        for connection in &self.connections {
            let up = connection.state() == ConnectionState::Running;
            family.encode_family(&labels(connection))?.encode_gauge(&i64::from(up))?;
        }
        let help = "Outages since the agent started";
        let mut family =
            encoder.encode_descriptor("connection_outages", help, None, MetricType::Counter)?;
        for connection in &self.connections {
            counter(&mut family, &labels(connection), connection.outages)?;
        }
        let (help, seconds) = ("Time in outage since the agent started", Some(&Unit::Seconds));
        let mut family =
            encoder.encode_descriptor("connection_outage", help, seconds, MetricType::Counter)?;
        for connection in &self.connections {
            let duration = connection.outage_duration.unwrap_or_default();
            let seconds = duration.seconds as f64 + f64::from(duration.nanos) / 1e9;
            family
                .encode_family(&labels(connection))?
                .encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
        }
        Ok(())
    }

    fn server(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(status) = (self.sources.server)() else { return Ok(()) };
        let gauge = |encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64| {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&value.cast_signed())
        };
        let (connections, sessions) = (status.connections_open.into(), status.sessions_open.into());
        gauge(encoder, "server_connections", "Control connections of clients", connections)?;
        gauge(encoder, "server_sessions", "Test sessions of clients", sessions)?;
        let packets = status.packets.unwrap_or_default();
        let help = "Packets received by the reflector";
        let mut family = encoder.encode_descriptor(
            "reflector_packets_received",
            help,
            None,
            MetricType::Counter,
        )?;
        family.encode_counter::<NoLabelSet, _, u64>(&packets.received, None)?;
        let help = "Packets answered by the reflector";
        let mut family = encoder.encode_descriptor(
            "reflector_packets_reflected",
            help,
            None,
            MetricType::Counter,
        )?;
        family.encode_counter::<NoLabelSet, _, u64>(&packets.reflected, None)
    }

    fn store(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let results = &self.sources.results;
        let state = results.state().borrow().clone();
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: u64| {
            encoder
                .encode_descriptor(name, help, unit, MetricType::Gauge)?
                .encode_gauge(&value.cast_signed())
        };
        let bytes = Some(&Unit::Bytes);
        let healthy = u64::from(state.detail.is_empty());
        gauge("store_healthy", "1 while records are stored", None, healthy)?;
        gauge("store_records", "Records stored", None, state.records)?;
        gauge("store_live", "Size of the stored records", bytes, state.live_bytes)?;
        gauge("store_disk", "Size of the files of the result store", bytes, state.disk_bytes)?;
        gauge("store_latest_cursor", "Latest cursor of the log", None, state.newest)?;
        let clock = clock::state();
        let synchronised = u64::from(clock.synchronised);
        gauge("clock_synchronised", "1 while the clock is synchronised", None, synchronised)?;
        let help = "Records that were not stored since the agent started";
        let mut family =
            encoder.encode_descriptor("records_dropped", help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&results.dropped(), None)
    }

    fn exporters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let newest = self.sources.results.state().borrow().newest;
        let states = self.sources.states.list(newest);
        let name = |status: &proto::ExporterStatus| {
            vec![
                ("exporter".to_owned(), status.name.clone()),
                ("kind".to_owned(), status.kind.clone()),
            ]
        };
        let help = "Cursors between the last delivered record and the latest";
        let mut family =
            encoder.encode_descriptor("exporter_lag", help, None, MetricType::Gauge)?;
        for status in &states {
            family.encode_family(&name(status))?.encode_gauge(&status.lag.cast_signed())?;
        }
        let help = "Failed attempts to deliver records since the agent started";
        let mut family =
            encoder.encode_descriptor("exporter_failures", help, None, MetricType::Counter)?;
        for status in &states {
            counter(&mut family, &name(status), status.failures)?;
        }
        Ok(())
    }
}

impl Collector for Agent {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.connections(&mut encoder)?;
        self.server(&mut encoder)?;
        self.store(&mut encoder)?;
        self.exporters(&mut encoder)?;
        let help = "Version and identifier of the agent";
        let labels = vec![
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("agent_id".to_owned(), self.sources.results.agent_id().to_owned()),
        ];
        encoder.encode_descriptor("agent", help, None, MetricType::Info)?.encode_info(&labels)
    }
}
