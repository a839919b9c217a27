//! The messages of the API, as `proto/` defines them. They are also the form in which results,
//! statistics and states live inside the agent and in the store; services are in `api`.

#![allow(missing_docs, clippy::pedantic, clippy::nursery, unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/messages/twamp.agent.v1.rs"));

include!(concat!(env!("OUT_DIR"), "/secrets.rs"));

/// Receives the location of a secret, the secret and its digest, one of them not empty. Parts of a
/// list are located by their name.
pub type SecretVisitor<'a> = dyn FnMut(&str, &mut String, &mut String) + 'a;

/// A message with secrets somewhere in it: fields with the option `debug_redact` in the `.proto`.
/// The build implements it for the configuration and all of its parts.
pub trait VisitSecrets {
    /// Visits every secret of the message, with its field path.
    fn visit_secrets(&mut self, location: &str, visit: &mut SecretVisitor<'_>);
}

/// Descriptors of all services and messages, with comments, for reflection and for the JSON form.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// A value of an enum as people read it: without the name of the enum in front.
pub trait Word {
    /// Returns the name without the prefix of its type: `DNS` for `FAILURE_CAUSE_DNS`.
    fn word(self) -> &'static str;
}

macro_rules! words {
    ($($name:ident => $prefix:literal,)*) => {
        $(impl Word for $name {
            fn word(self) -> &'static str {
                let name = self.as_str_name();
                name.strip_prefix($prefix).unwrap_or(name)
            }
        })*

        #[cfg(test)]
        #[test]
        fn words_are_names_without_that_of_the_enum() {
            $(assert_eq!($name::default().word(), "UNSPECIFIED");)*
            assert_eq!(FailureCause::Dns.word(), "DNS");
        }
    };
}

words! {
    ChangeEffect => "CHANGE_EFFECT_",
    ChangeKind => "CHANGE_KIND_",
    ConnectionState => "CONNECTION_STATE_",
    ControlType => "CONTROL_TYPE_",
    EndCause => "END_CAUSE_",
    EventType => "EVENT_TYPE_",
    ExporterState => "EXPORTER_STATE_",
    FailureCause => "FAILURE_CAUSE_",
    OneWayValidity => "ONE_WAY_VALIDITY_",
    ProbeStage => "PROBE_STAGE_",
    ProbeStatus => "PROBE_STATUS_",
    ReflectorNumbering => "REFLECTOR_NUMBERING_",
    RefusalCause => "REFUSAL_CAUSE_",
    Role => "ROLE_",
    ServerConnectionState => "SERVER_CONNECTION_STATE_",
    ServerSessionState => "SERVER_SESSION_STATE_",
    StatisticsScope => "STATISTICS_SCOPE_",
    TestOutcome => "TEST_OUTCOME_",
    Threshold => "THRESHOLD_",
    TimestampSource => "TIMESTAMP_SOURCE_",
}
