//! STAMP options of a Session-Sender: TLVs added to probes and read from replies (RFC 8972).

use std::sync::Arc;

use crate::{
    model::{AccessReport, StampSession},
    stats::StampFigures,
    time::Monotonic,
    wire::{
        crypto::StampKey,
        format::{PacketFormat, Protection},
        tlv::{self, HEADER_OCTETS, Tlv, flags, location, types},
    },
};

/// STAMP options and figures of one session.
#[derive(Debug)]
pub struct StampSender {
    session: StampSession,
    ssid: u16,
    key: Option<Arc<StampKey>>,
    /// TLVs of a probe; values that change from probe to probe are 0.
    template: Vec<u8>,
    /// Offset of the padding TLV that an Access Report replaces.
    report_at: Option<usize>,
    /// Number of probes sent, for Direct Measurement.
    sent: u32,
    report: Report,
    figures: StampFigures,
}

/// Progress of an Access Report (RFC 8972 §4.6): repeated until it is returned.
#[derive(Debug, Default)]
struct Report {
    transmissions: u32,
    next: Option<Monotonic>,
    acknowledged: bool,
}

/// Values read from the TLVs of a reply.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TlvReadout {
    /// TOS with which the probe reached the reflector.
    pub(super) egress_tos: Option<u8>,
    /// Sequence number of an earlier reply, and its transmit time.
    pub(super) follow_up: Option<(u32, u64)>,
}

impl StampSender {
    /// Creates the options of a session with the identifier `ssid`, which is not 0, and probes of
    /// `data_size` octets. Space beyond the configured TLVs becomes Extra Padding, filled by
    /// `padding`.
    pub fn new(
        session: StampSession,
        ssid: u16,
        data_size: usize,
        padding: impl FnOnce(&mut [u8]),
    ) -> Self {
        let key = session.secret.as_ref().map(|secret| Arc::new(StampKey::new(secret.octets())));
        let room = data_size - session.base_octets();
        let mut template = Vec::with_capacity(room);
        if let Some(extra) = room.checked_sub(session.tlv_octets()).filter(|extra| *extra > 0) {
            // The padding comes first, so that the HMAC TLV covers it, as some reflectors require.
            let mut octets = vec![0; extra.saturating_sub(HEADER_OCTETS)];
            padding(&mut octets);
            tlv::append(&mut template, types::EXTRA_PADDING, &octets);
        }
        if let Some(dscp) = session.class_of_service {
            let value = [dscp.value() << 2, 0, 0, 0];
            tlv::append(&mut template, types::CLASS_OF_SERVICE, &value);
        }
        if session.location {
            let mut value = vec![0; 4];
            tlv::append(&mut value, location::DESTINATION_ADDRESS, &[0; 16]);
            tlv::append(&mut value, location::SOURCE_ADDRESS, &[0; 16]);
            tlv::append(&mut template, types::LOCATION, &value);
        }
        if session.timestamp_information {
            tlv::append(&mut template, types::TIMESTAMP_INFORMATION, &[0; 4]);
        }
        if session.direct_measurement {
            tlv::append(&mut template, types::DIRECT_MEASUREMENT, &[0; 12]);
        }
        if session.follow_up_telemetry {
            tlv::append(&mut template, types::FOLLOW_UP_TELEMETRY, &[0; 16]);
        }
        let report_at = session.access_report.map(|_| template.len());
        if session.access_report.is_some() {
            tlv::append(&mut template, types::EXTRA_PADDING, &[0; 4]);
        }
        if session.signs_tlvs() {
            tlv::append(&mut template, types::HMAC, &[0; 16]);
        }
        let (report, figures) = (Report::default(), StampFigures::default());
        Self { session, ssid, key, template, report_at, sent: 0, report, figures }
    }

    /// Returns the format of the packets.
    pub fn format(&self) -> PacketFormat {
        let protection = match &self.key {
            Some(key) if self.session.authenticated => Protection::StampAuthenticated(key.clone()),
            _ => Protection::StampOpen,
        };
        PacketFormat { protection, ..PacketFormat::default() }
    }

    pub(super) fn ssid(&self) -> u16 {
        self.ssid
    }

    pub(super) fn follows_up(&self) -> bool {
        self.session.follow_up_telemetry
    }

    /// Returns the counters since the last call and the latest of the other values.
    pub(super) fn take_figures(&mut self) -> StampFigures {
        let figures = self.figures.clone();
        self.figures = StampFigures {
            replies_without_ssid: 0,
            replies_without_tlvs: 0,
            tlvs_unrecognised: 0,
            tlvs_malformed: 0,
            tlvs_integrity_failed: 0,
            dscp_refused: 0,
            ..figures.clone()
        };
        figures
    }

    pub(super) fn figures(&self) -> StampFigures {
        self.figures.clone()
    }

    /// Returns true if a reply with this SSID belongs to the session. A reply without one comes
    /// from a reflector that does not support identifiers (RFC 8972 §3).
    pub(super) fn accepts_ssid(&mut self, ssid: u16) -> bool {
        self.figures.replies_without_ssid += u64::from(ssid == 0);
        ssid == self.ssid || (ssid == 0 && !self.session.require_ssid)
    }

    /// Writes the TLVs that follow the base packet of a probe.
    pub(super) fn write_tlvs(&mut self, sequence: u32, area: &mut [u8], now: Monotonic) {
        self.sent = self.sent.wrapping_add(1);
        let octets = self.template.len().min(area.len());
        let area = &mut area[..octets];
        area.copy_from_slice(&self.template[..octets]);
        let report = self.session.access_report.filter(|report| self.report.is_due(report, now));
        let mut at = 0;
        while let Some(Ok(found)) = tlv::walk(&area[at..]).next() {
            let tlv = Tlv { at: at + found.at, ..found };
            at = tlv.end();
            match (tlv.kind, report) {
                (types::DIRECT_MEASUREMENT, _) => {
                    area[tlv.value()][..4].copy_from_slice(&self.sent.to_be_bytes());
                }
                // The report replaces padding, so that all probes have the same size.
                (types::EXTRA_PADDING, Some(report)) if Some(tlv.at) == self.report_at => {
                    area[tlv.at + 1] = types::ACCESS_REPORT;
                    let value = [report.access_id << 4, report.return_code, 0, 0];
                    area[tlv.value()].copy_from_slice(&value);
                }
                (types::HMAC, _) => {
                    if let Some(key) = &self.key {
                        let hmac = key.sign(&sequence.to_be_bytes(), &area[..tlv.at]);
                        area[tlv.value()].copy_from_slice(&hmac);
                    }
                }
                _ => {}
            }
        }
    }

    /// Reads the trusted TLVs of a reply.
    pub(super) fn read_tlvs(&mut self, sequence: u32, area: &[u8]) -> TlvReadout {
        let mut readout = TlvReadout::default();
        if self.template.is_empty() {
            return readout;
        }
        if !self.are_sent_tlvs(area) {
            self.figures.replies_without_tlvs += 1;
            return readout;
        }
        let all = || tlv::walk(area).map_while(Result::ok);
        if all().any(|tlv| tlv.flags & flags::INTEGRITY != 0) || !self.is_genuine(sequence, area) {
            self.figures.tlvs_integrity_failed += 1;
            return readout;
        }
        self.figures.tlvs_malformed +=
            u64::from(all().any(|tlv| tlv.flags & flags::MALFORMED != 0));
        self.figures.tlvs_unrecognised +=
            u64::from(all().any(|tlv| tlv.flags & flags::UNRECOGNISED != 0));
        for tlv in all() {
            if tlv.flags & flags::MALFORMED != 0 {
                break;
            }
            if tlv.flags & flags::UNRECOGNISED == 0 && tlv.has_right_length() {
                self.read_one(tlv, &area[tlv.value()], &mut readout);
            }
        }
        readout
    }

    /// Returns true if these are the TLVs that were sent. A TWAMP Light reflector returns them as
    /// padding, at another offset (RFC 8762 §4.6).
    fn are_sent_tlvs(&self, area: &[u8]) -> bool {
        let shape = |tlv: Tlv| (tlv.at, tlv.length, tlv.kind);
        let sent = tlv::walk(&self.template).map_while(Result::ok).map(shape);
        let mut received = tlv::walk(area).map_while(Result::ok).map(shape);
        sent.into_iter().all(|sent| {
            received.next().is_some_and(|received| {
                let report = (sent.2, received.2) == (types::EXTRA_PADDING, types::ACCESS_REPORT);
                received == sent || (report && (received.0, received.1) == (sent.0, sent.1))
            })
        })
    }

    fn is_genuine(&self, sequence: u32, area: &[u8]) -> bool {
        let (true, Some(key)) = (self.session.signs_tlvs(), &self.key) else { return true };
        let mut tlvs = tlv::walk(area);
        let hmac = tlvs.by_ref().flatten().find(|tlv| tlv.kind == types::HMAC);
        // Only padding may follow the HMAC TLV: anything else would not be signed (RFC 8972 §4.8).
        if tlvs.any(|tlv| !tlv.is_ok_and(|tlv| tlv.kind == types::EXTRA_PADDING)) {
            return false;
        }
        // The flags of the HMAC TLV are not signed and cannot be trusted. A reflector that does not
        // know the TLV did not sign.
        hmac.is_some_and(|tlv| {
            tlv.has_right_length()
                && key.verify(&sequence.to_be_bytes(), &area[..tlv.at], &area[tlv.value()])
        })
    }

    fn read_one(&mut self, tlv: Tlv, value: &[u8], readout: &mut TlvReadout) {
        let word = |at: usize| {
            let octets = value.get(at..at + 4).and_then(|octets| octets.try_into().ok());
            u32::from_be_bytes(octets.unwrap_or_default())
        };
        match tlv.kind {
            types::CLASS_OF_SERVICE => {
                let (dscp, ecn) = ((value[0] & 3) << 4 | value[1] >> 4, value[1] >> 2 & 3);
                readout.egress_tos = Some(dscp << 2 | ecn);
                self.figures.dscp_refused += u64::from(value[1] & 3 != 0);
            }
            types::LOCATION => self.read_location(value),
            types::TIMESTAMP_INFORMATION => {
                self.figures.reflector_sync_source = value[0].into();
                self.figures.reflector_receive_method = value[1].into();
                self.figures.reflector_transmit_method = value[3].into();
            }
            types::DIRECT_MEASUREMENT => {
                self.figures.direct_sender_transmitted = word(0);
                self.figures.direct_reflector_received = word(4);
                self.figures.direct_reflector_transmitted = word(8);
            }
            types::ACCESS_REPORT => {
                self.report.acknowledged = true;
                self.figures.access_report_acknowledged = true;
            }
            // A stateless reflector, or one before its first reply, sends zeros.
            types::FOLLOW_UP_TELEMETRY if value[4..12] != [0; 8] => {
                let time = u64::from(word(4)) << 32 | u64::from(word(8));
                readout.follow_up = Some((word(0), time));
            }
            _ => {}
        }
    }

    fn read_location(&mut self, value: &[u8]) {
        let port = |at: usize| u16::from_be_bytes([value[at], value[at + 1]]);
        let parts = &value[4..];
        for part in tlv::walk(parts).map_while(Result::ok) {
            let Ok(octets) = <[u8; 16]>::try_from(&parts[part.value()]) else { continue };
            let v4 = [octets[0], octets[1], octets[2], octets[3]];
            let (at, ip) = match part.kind {
                location::DESTINATION_IPV4 => (0, v4.into()),
                location::DESTINATION_IPV6 => (0, octets.into()),
                location::SOURCE_IPV4 => (2, v4.into()),
                location::SOURCE_IPV6 => (2, std::net::IpAddr::from(octets)),
                _ => continue,
            };
            let text = std::net::SocketAddr::new(ip, port(at)).to_string();
            if at == 0 {
                self.figures.observed_destination_address = text;
            } else {
                self.figures.observed_source_address = text;
            }
        }
    }
}

impl Report {
    /// Returns true if the next probe carries the report.
    fn is_due(&mut self, report: &AccessReport, now: Monotonic) -> bool {
        if self.acknowledged
            || self.transmissions > report.retransmissions
            || self.next.is_some_and(|next| now < next)
        {
            return false;
        }
        self.transmissions += 1;
        self.next = Some(now.plus_ns(report.retransmission_interval_ns));
        true
    }
}
