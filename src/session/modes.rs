//! Mode bits of configured modes and extensions.

use crate::{
    model::{AuthenticationMode, Extensions},
    wire::codes::Modes,
};

/// Returns the security bit of a mode.
pub(super) fn security(mode: AuthenticationMode) -> Modes {
    match mode {
        AuthenticationMode::None => Modes::UNAUTHENTICATED,
        AuthenticationMode::Authenticated => Modes::AUTHENTICATED,
        AuthenticationMode::Encrypted => Modes::ENCRYPTED,
        AuthenticationMode::ControlOnlyEncrypted => Modes::MIXED,
    }
}

/// Returns the bits of the enabled extensions.
pub(super) fn extensions(wanted: Extensions) -> Modes {
    let bits = [
        (wanted.individual_session_control, Modes::INDIVIDUAL_SESSION_CONTROL),
        (wanted.reflect_octets, Modes::REFLECT_OCTETS),
        (wanted.symmetrical_size, Modes::SYMMETRICAL_SIZE),
        (wanted.dscp_ecn_monitoring, Modes::DSCP_ECN_MONITORING),
        (wanted.ptp_timestamps, Modes::PTP_TIMESTAMPS),
    ];
    let wanted = bits.iter().filter(|(wanted, _)| *wanted);
    wanted.fold(Modes::default(), |modes, (_, bit)| modes.or(*bit))
}
