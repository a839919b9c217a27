//! Checks STAMP options on both ends, and fields that depend on the control type.

use ipnet::IpNet;

use super::{
    super::{
        AccessReport, AuthenticationMode, ControlType, StampReflector, StampReflectorSession,
        StampSession, limits,
    },
    Check,
    security::ClientSecurity,
};
use crate::proto;

/// Smallest length of an Extra Padding TLV.
const MIN_EXTRA_OCTETS: usize = 4;

impl Check {
    pub(super) fn stamp_session(
        &mut self,
        session: &proto::TestSession,
        control_type: ControlType,
        security: &ClientSecurity,
    ) -> Option<StampSession> {
        if control_type != ControlType::Stamp {
            if session.stamp.is_some() {
                self.report("stamp", "only valid with control_type STAMP");
            }
            return None;
        }
        let nothing = proto::StampSession::default();
        let s = session.stamp.as_deref().unwrap_or(&nothing);
        Some(self.at("stamp", |check| {
            StampSession {
                ssid: s.ssid.map(|ssid| check.number("ssid", Some(ssid), &limits::SSID) as u16),
                authenticated: security.mode == AuthenticationMode::Authenticated,
                secret: security.secret.clone(),
                class_of_service: (!s.class_of_service.is_empty())
                    .then(|| check.dscp("class_of_service", &s.class_of_service)),
                direct_measurement: s.direct_measurement,
                location: s.location,
                timestamp_information: s.timestamp_information,
                follow_up_telemetry: s.follow_up_telemetry,
                access_report: s
                    .access_report
                    .as_ref()
                    .map(|report| check.at("access_report", |check| check.access_report(report))),
                sign_tlvs: s.sign_tlvs,
                require_ssid: s.require_ssid,
            }
        }))
    }

    fn access_report(&mut self, report: &proto::AccessReport) -> AccessReport {
        let access_id = self.enumeration::<proto::AccessId>("access_id", report.access_id);
        if report.access_id == 0 {
            self.report("access_id", "required: ACCESS_ID_3GPP or ACCESS_ID_NON_3GPP");
        }
        let return_code =
            self.enumeration::<proto::AccessReturnCode>("return_code", report.return_code);
        if report.return_code == 0 {
            self.report(
                "return_code",
                "required: ACCESS_RETURN_CODE_AVAILABLE or ACCESS_RETURN_CODE_UNAVAILABLE",
            );
        }
        AccessReport {
            access_id: access_id as u8,
            return_code: return_code as u8,
            retransmission_interval_ns: self.duration(
                "retransmission_interval",
                report.retransmission_interval,
                &limits::RETRANSMISSION_INTERVAL,
            ),
            retransmissions: self.number(
                "retransmissions",
                report.retransmissions,
                &limits::RETRANSMISSIONS,
            ) as u32,
        }
    }

    /// Checks the size of probes, whose minimum and default depend on their content.
    pub(super) fn data_size(
        &mut self,
        session: &proto::TestSession,
        stamp: Option<&StampSession>,
        mode: AuthenticationMode,
    ) -> u16 {
        let given = self.number("data_size", session.data_size, &limits::DATA_SIZE);
        let least = match stamp {
            Some(stamp) => stamp.base_octets() + stamp.tlv_octets(),
            None if mode.protects_test_packets() => limits::MINIMUM_PROTECTED_DATA_SIZE.into(),
            None => 0,
        };
        if session.data_size.is_none() {
            return match stamp {
                Some(_) => least as u16,
                None if mode.protects_test_packets() => limits::DEFAULT_PROTECTED_DATA_SIZE as u16,
                None => given as u16,
            };
        }
        let size = given as usize;
        let extra_fits = stamp.is_none() || size == least || size >= least + MIN_EXTRA_OCTETS;
        if size < least {
            self.report(
                "data_size",
                format!("{size} octets: the content of the probe needs at least {least}"),
            );
        } else if !extra_fits {
            self.report(
                "data_size",
                format!(
                    "{size} octets: the content of the probe needs at least {least}, and Extra Padding at \
                     least {MIN_EXTRA_OCTETS} more or none"
                ),
            );
        }
        if size < least || !extra_fits { least as u16 } else { size as u16 }
    }

    pub(super) fn reflected_octets(
        &mut self,
        session: &proto::TestSession,
        control_type: ControlType,
    ) -> u16 {
        let octets =
            self.number("reflected_octets", session.reflected_octets, &limits::REFLECTED_OCTETS);
        if octets != 0 && control_type != ControlType::Managed {
            self.report("reflected_octets", "only valid with control_type MANAGED");
        }
        octets as u16
    }

    pub(super) fn stamp_server(&mut self, stamp: &proto::StampReflector) -> StampReflector {
        let all = [proto::ListenAddress::default()];
        let mode = self.authentication_mode("authentication_mode", stamp.authentication_mode);
        let authenticated = mode == AuthenticationMode::Authenticated;
        if !authenticated && mode != AuthenticationMode::None {
            self.report("authentication_mode", "STAMP supports only NONE and AUTHENTICATED");
        }
        let most =
            if authenticated { limits::MAXIMUM_STAMP_KEYS } else { limits::MAXIMUM_KEYS_PER_NAME };
        self.count_of_keys(stamp.keys.len(), usize::from(authenticated)..=most);
        let secrets =
            stamp.keys.iter().enumerate().map(|(index, key)| {
                self.at(format!("keys[{index}]"), |check| check.key(key).secret)
            });
        let secrets = secrets.collect();
        let mut sessions = self.stamp_sessions(&stamp.sessions);
        if stamp.sessions.is_empty() || !stamp.prefixes.is_empty() {
            let any = |prefix| StampReflectorSession { prefix, port: None, ssid: None };
            sessions.extend(self.prefixes(&stamp.prefixes).into_iter().map(any));
        }
        StampReflector {
            listen: self.listen(if stamp.listen.is_empty() { &all } else { &stamp.listen }),
            stateful: stamp.stateful,
            sessions,
            authenticated,
            secrets,
            allow_class_of_service: stamp.allow_class_of_service.unwrap_or(true),
            timestamps: self.timestamp_format(stamp.timestamp_format),
        }
    }

    fn stamp_sessions(
        &mut self,
        given: &[proto::StampReflectorSession],
    ) -> Vec<StampReflectorSession> {
        if given.len() > limits::MAXIMUM_STAMP_SESSIONS {
            let (count, most) = (given.len(), limits::MAXIMUM_STAMP_SESSIONS);
            self.report("sessions", format!("{count} sessions: expected at most {most}"));
        }
        let mut sessions = Vec::new();
        for (index, session) in given.iter().enumerate() {
            self.at(format!("sessions[{index}]"), |check| {
                let port = check.optional_port("port", session.port);
                let ssid = session
                    .ssid
                    .map(|ssid| check.number("ssid", Some(ssid), &limits::SERVER_SSID) as u16);
                match super::server::prefix(&session.prefix) {
                    Ok(prefix) => {
                        let prefix: IpNet = prefix;
                        sessions.push(StampReflectorSession { prefix, port, ssid });
                    }
                    Err(description) => check.report("prefix", description),
                }
            });
        }
        sessions
    }
}
