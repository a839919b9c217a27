//! Checks the configuration of the exporters.

use std::net::{Ipv4Addr, SocketAddr};

use prost::Message;

use super::{
    super::{ExportConfig, ExportTarget, Exporter, Secret, ZonedAddress, certificates, limits},
    Check, check_name,
};
use crate::proto::{self, RecordFilter, RecordKind};

impl Check {
    pub(super) fn export(&mut self, e: &proto::ExportConfig) -> ExportConfig {
        let mut config = ExportConfig {
            prometheus: e
                .prometheus
                .as_ref()
                .map(|prometheus| self.at("prometheus", |check| check.prometheus(prometheus))),
            ..ExportConfig::default()
        };
        let count = e.otlp.len() + e.nats.len();
        if count > limits::MAXIMUM_EXPORTERS {
            let most = limits::MAXIMUM_EXPORTERS;
            self.report("", format!("{count} exporters: expected at most {most}"));
        }
        let mut take = |check: &mut Self, name: &str, exporter| {
            check.exporter_name(name);
            if config.exporters.insert(name.to_owned(), exporter).is_some() {
                check.duplicate(name);
            }
        };
        for (index, otlp) in e.otlp.iter().enumerate() {
            self.at(format!("otlp[{index}]"), |check| {
                let exporter = check.otlp(otlp);
                take(check, &otlp.name, exporter);
            });
        }
        for (index, nats) in e.nats.iter().enumerate() {
            self.at(format!("nats[{index}]"), |check| {
                let exporter = check.nats(nats);
                take(check, &nats.name, exporter);
            });
        }
        config
    }

    fn exporter_name(&mut self, name: &str) {
        let most = limits::MAXIMUM_EXPORTER_NAME_OCTETS;
        if name == limits::PROMETHEUS_NAME {
            self.report("name", format!("{name:?} is reserved for the metrics page"));
        } else if check_name(name).is_err() || name.len() > most {
            self.report(
                "name",
                format!("{name:?} is not a valid name: expected 1 to {most} characters from A-Z a-z 0-9 . _ : -"),
            );
        }
    }

    fn prometheus(&mut self, p: &proto::PrometheusExport) -> ZonedAddress {
        let mut zoned = self
            .zoned_listen_address("address", &p.address)
            .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into());
        zoned.address.set_port(self.number("port", p.port, &limits::PROMETHEUS_PORT) as u16);
        zoned
    }

    fn otlp(&mut self, o: &proto::OtlpExport) -> Exporter {
        self.url("endpoint", &o.endpoint, &["http", "https"], true);
        let kinds = [RecordKind::TestResult, RecordKind::Event];
        let temporality = self.enumeration::<proto::OtlpTemporality>("temporality", o.temporality);
        Exporter {
            inactive: o.inactive,
            filter: self.record_filter(o.filter.as_ref(), &kinds),
            ca_certificates: self.certificates(&o.ca_certificates),
            secret: self.export_secret(&o.secret, &o.secret_digest),
            target: ExportTarget::Otlp {
                endpoint: o.endpoint.clone(),
                is_delta: temporality == proto::OtlpTemporality::Delta,
            },
        }
    }

    fn nats(&mut self, n: &proto::NatsExport) -> Exporter {
        if n.servers.is_empty() || n.servers.len() > limits::MAXIMUM_NATS_SERVERS {
            let most = limits::MAXIMUM_NATS_SERVERS;
            self.report("servers", format!("{} servers: expected 1 to {most}", n.servers.len()));
        }
        for (index, server) in n.servers.iter().enumerate() {
            self.url(&format!("servers[{index}]"), server, &["nats", "tls"], false);
        }
        let prefix = if n.subject_prefix.is_empty() { "twamp" } else { &n.subject_prefix };
        let tokens = prefix.split('.');
        let token = |token: &str| {
            !token.is_empty()
                && token.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
        };
        if prefix.len() > 128 || !tokens.clone().all(token) {
            let right = "1 to 128 characters from A-Z a-z 0-9 _ - in parts with `.` between them";
            self.report(
                "subject_prefix",
                format!("{prefix:?} is not a valid subject: expected {right}"),
            );
        }
        if !n.stream.is_empty() && (n.stream.len() > 64 || !token(&n.stream)) {
            let right = "1 to 64 characters from A-Z a-z 0-9 _ -";
            self.report(
                "stream",
                format!("{:?} is not a valid stream name: expected {right}", n.stream),
            );
        }
        if n.user.len() > limits::MAXIMUM_USER_OCTETS {
            let most = limits::MAXIMUM_USER_OCTETS;
            self.report("user", format!("{} octets: expected at most {most}", n.user.len()));
        } else if n.user.contains(char::is_control) {
            self.report("user", format!("{:?} has control characters: expected none", n.user));
        }
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Exporter {
            inactive: n.inactive,
            filter: self.record_filter(n.filter.as_ref(), &[]),
            ca_certificates: self.certificates(&n.ca_certificates),
            secret: self.export_secret(&n.secret, &n.secret_digest),
            target: ExportTarget::Nats {
                servers: n.servers.clone(),
                prefix: prefix.to_owned(),
                stream: given(&n.stream),
                json: self.enumeration::<proto::NatsFormat>("format", n.format)
                    == proto::NatsFormat::Json,
                user: given(&n.user),
            },
        }
    }

    fn certificates(&mut self, pem: &str) -> String {
        let most = limits::MAXIMUM_PEM_OCTETS;
        if pem.len() > most {
            self.report(
                "ca_certificates",
                format!("{} octets: expected at most {most}", pem.len()),
            );
        } else if !pem.is_empty()
            && let Err(description) = certificates(pem.as_bytes())
        {
            self.report("ca_certificates", description);
        }
        pem.to_owned()
    }

    fn export_secret(&mut self, secret: &str, digest: &str) -> Option<Secret> {
        let most = limits::MAXIMUM_TOKEN_OCTETS;
        if secret.len() > most || !secret.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
            self.report(
                "secret",
                format!("invalid value: expected at most {most} octets of visible ASCII"),
            );
        }
        if secret.is_empty() && !digest.is_empty() {
            self.report("secret_digest", "is not the digest of the secret in this field of the current configuration; give the \
                 secret itself");
        }
        (!secret.is_empty()).then(|| Secret::new(secret))
    }

    fn record_filter(
        &mut self,
        given: Option<&RecordFilter>,
        default: &[RecordKind],
    ) -> RecordFilter {
        let mut filter = given.cloned().unwrap_or_default();
        self.at("filter", |check| {
            let (octets, most) = (filter.encoded_len(), limits::MAXIMUM_FILTER_OCTETS);
            if octets > most {
                check.report("", format!("{octets} octets encoded: expected at most {most}"));
            }
            for (index, kind) in filter.kinds.iter().enumerate() {
                if RecordKind::try_from(*kind).unwrap_or_default() == RecordKind::Unspecified {
                    let why = format!("{kind} is not a record kind: expected 1 to 4");
                    check.report(&format!("kinds[{index}]"), why);
                }
            }
        });
        if filter.kinds.is_empty() {
            filter.kinds = default.iter().map(|kind| (*kind).into()).collect();
        }
        filter
    }
}
