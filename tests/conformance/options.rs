//! Default options of the machines in tests.

use twamp_agent::{
    time::NtpTimestamp,
    twamp::{control_client::ClientOptions, control_server::ServerOptions},
    wire::{codes::Modes, crypto::SessionKeys},
};

pub(crate) fn client_options() -> ClientOptions {
    ClientOptions {
        security: Modes::UNAUTHENTICATED,
        extensions: Modes::default(),
        key_id: String::new(),
        maximum_count: 32_768,
        response_timeout_ns: 1_000_000_000,
        key_timeout_ns: 1_000_000_000,
        keys: session_keys(),
        client_iv: [0x50; 16],
        reflected_octets: 0xcafe,
    }
}

pub(crate) fn session_keys() -> SessionKeys {
    SessionKeys::new([0x20; 16], [0x30; 32])
}

pub(crate) fn server_options() -> ServerOptions {
    ServerOptions {
        offered: Modes::UNAUTHENTICATED,
        count: 2048,
        start_time: NtpTimestamp(7),
        inactivity_timeout_ns: 900_000_000_000,
        challenge: [1; 16],
        salt: [2; 16],
        server_iv: [3; 16],
    }
}
