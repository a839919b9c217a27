//! `twampctl probe-server`: tries a server once and explains the result.

use std::path::PathBuf;

use super::{
    CtlError,
    input::read_file,
    words::{entry, nanoseconds, time},
};
use crate::proto::{
    AuthenticationMode, FailureCause, ModeExtensions, ProbeServerRequest, ProbeServerResponse,
    ProbeStage, SendAddresses, Word,
};

/// Security mode to request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ModeArgument {
    /// No security: unauthenticated mode 1
    #[default]
    None,
    /// Authenticated mode, value 2
    Authenticated,
    /// Encrypted mode, value 4
    Encrypted,
    /// Encrypted control and unauthenticated test, value 8 (RFC 5618)
    ControlOnlyEncrypted,
}

/// Addresses in the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum AddressesArgument {
    /// Zeros, and explicit addresses if the server does not work with zeros
    #[default]
    Auto,
    /// Addresses of both ends, always
    Always,
    /// Zeros for both ends, always
    Never,
}

/// Options of `probe-server`: server, security and probe.
#[derive(Clone, Debug, clap::Args)]
pub struct ProbeArguments {
    /// Address or DNS name of the server
    target: String,
    /// TCP port of the server
    #[arg(short, long)]
    port: Option<u16>,
    /// Security mode to request
    #[arg(short, long, value_enum, default_value_t)]
    mode: ModeArgument,
    /// Name of the key
    #[arg(long, default_value = "")]
    key_id: String,
    /// File with the secret of the key; `-` is standard input. A line break at its end is ignored
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Request no extension
    #[arg(long)]
    no_extensions: bool,
    /// Local address; chosen by routing by default
    #[arg(long, default_value = "")]
    source: String,
    /// Network interface to bind to; none by default
    #[arg(long, default_value = "")]
    interface: String,
    /// Bytes of UDP payload of the probe
    #[arg(long)]
    data_size: Option<u32>,
    /// DSCP of the probe
    #[arg(long, default_value = "")]
    dscp: String,
    /// Discard a reply whose Error Estimate has Multiplier 0
    #[arg(long)]
    strict_error_estimate: bool,
    /// Addresses in the request: explicit ones, or zeros for the ends of the control connection
    #[arg(long, value_enum, default_value_t)]
    send_addresses: AddressesArgument,
}

impl ProbeArguments {
    pub(super) fn request(self) -> Result<ProbeServerRequest, CtlError> {
        let secret = self.secret_file.map(|file| read_file(&file)).transpose()?.unwrap_or_default();
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
            strict_error_estimate: self.strict_error_estimate,
            send_addresses: match self.send_addresses {
                AddressesArgument::Auto => SendAddresses::Auto,
                AddressesArgument::Always => SendAddresses::Always,
                AddressesArgument::Never => SendAddresses::Never,
            }
            .into(),
        })
    }
}

/// Returns one line for each step, up to the first step that failed, and a line with the verdict.
pub(super) fn verdict(found: &ProbeServerResponse) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(entry(name, &value));
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
            format!("{} accepted, {} requested", found.accepted_port, found.requested_port),
        );
    }
    if let Some(probe) = &found.probe {
        let hops = probe.egress_ttl.map_or_else(|| "?".into(), |ttl| ttl.to_string());
        line(
            "probe",
            format!(
                "rtt {} (without {} in the reflector), TTL at reflector {hops}",
                nanoseconds(probe.rtt_ns.unwrap_or(0) as f64),
                nanoseconds(probe.reflector_processing_ns.unwrap_or(0) as f64),
            ),
        );
    }
    for discarded in &found.discarded {
        let packets = if discarded.count == 1 { "packet" } else { "packets" };
        let discarded = format!(
            "{} {packets} from {}: {}",
            discarded.count, discarded.source_address, discarded.reason
        );
        line("discarded", discarded);
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

/// Returns whether the last step succeeded.
pub(super) fn works(found: &ProbeServerResponse) -> bool {
    found.stage() == ProbeStage::Done
}
