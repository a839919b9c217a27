//! `twampctl probe-server`: one try of a server, told so that a person knows what to do.

use std::path::PathBuf;

use super::{
    CtlError,
    commands::read,
    words::{nanoseconds, time},
};
use crate::proto::{
    AuthenticationMode, FailureCause, ModeExtensions, ProbeServerRequest, ProbeServerResponse,
    ProbeStage, Word,
};

/// Mode to be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ModeArgument {
    /// No security
    #[default]
    None,
    /// Mode 2
    Authenticated,
    /// Mode 4
    Encrypted,
    /// Mode 8
    ControlOnlyEncrypted,
}

/// Which server, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct ProbeArguments {
    /// Address or DNS name of the server
    target: String,
    /// TCP port
    #[arg(short, long)]
    port: Option<u16>,
    /// Mode to be asked for
    #[arg(short, long, value_enum, default_value_t)]
    mode: ModeArgument,
    /// Name of the key
    #[arg(long, default_value = "")]
    key_id: String,
    /// File with the secret of the key; `-` is standard input. A line break at its end is left out
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Ask for no extension
    #[arg(long)]
    no_extensions: bool,
    /// Local address
    #[arg(long, default_value = "")]
    source: String,
    /// Network interface
    #[arg(long, default_value = "")]
    interface: String,
    /// Octets of the probe
    #[arg(long)]
    data_size: Option<u32>,
    /// DSCP of the probe
    #[arg(long, default_value = "")]
    dscp: String,
}

impl ProbeArguments {
    pub(super) fn request(self) -> Result<ProbeServerRequest, CtlError> {
        let secret = self.secret_file.map(|file| read(&file)).transpose()?.unwrap_or_default();
        let mode = match self.mode {
            ModeArgument::None => AuthenticationMode::None,
            ModeArgument::Authenticated => AuthenticationMode::Authenticated,
            ModeArgument::Encrypted => AuthenticationMode::Encrypted,
            ModeArgument::ControlOnlyEncrypted => AuthenticationMode::ControlOnlyEncrypted,
        };
        let none = ModeExtensions {
            individual_session_control: Some(false),
            reflect_octets: Some(false),
            symmetrical_size: Some(false),
            dscp_ecn_monitoring: Some(false),
            ptp_timestamps: Some(false),
        };
        Ok(ProbeServerRequest {
            target_address: self.target,
            destination_port: self.port.map(u32::from),
            source_address: self.source,
            interface: self.interface,
            authentication_mode: mode.into(),
            key_id: self.key_id,
            secret: secret.trim_end_matches(['\r', '\n']).to_owned(),
            extensions: self.no_extensions.then_some(none),
            timeout: None,
            data_size: self.data_size,
            dscp_code_points: self.dscp,
        })
    }
}

/// Line by line, as far as the server went along.
pub(super) fn found(found: &ProbeServerResponse) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(format!("{name:<10}{value}"));
    if !found.server_address.is_empty() {
        let took = nanoseconds(found.connect_duration_ns as f64);
        line("server", format!("{}, connected in {took}", found.server_address));
        line("from", found.local_address.clone());
    }
    if found.offered_modes.is_some() {
        line("offers", found.offered_mode_names.clone());
        line("count", format!("{} rounds of key derivation", found.key_derivation_count));
    }
    if found.mode != 0 {
        line("chosen", found.mode_name.clone());
    }
    if found.server_start_time.is_some() {
        line("started", time(found.server_start_time.as_ref()));
    }
    if found.accepted_port != 0 {
        line("session", found.sid.clone());
        line(
            "UDP port",
            format!("{} given, {} asked for", found.accepted_port, found.requested_port),
        );
    }
    if let Some(probe) = &found.probe {
        let hops = probe.egress_ttl.map_or_else(|| "?".into(), |ttl| ttl.to_string());
        line(
            "probe",
            format!(
                "rtt {}, reflector took {}, TTL {hops} there",
                nanoseconds(probe.rtt_ns.unwrap_or(0) as f64),
                nanoseconds(probe.reflector_processing_ns.unwrap_or(0) as f64),
            ),
        );
    }
    let verdict = match (found.stage(), found.cause()) {
        (ProbeStage::Done, _) => format!("works: {}", found.detail),
        (stage, FailureCause::Unspecified) => {
            format!("fails at {}: {}", stage.word(), found.detail)
        }
        (stage, cause) => format!("fails at {} ({}): {}", stage.word(), cause.word(), found.detail),
    };
    line("verdict", verdict);
    lines.join("\n")
}
