//! Complete control connection of a client, in clear and, with a server that has the key,
//! encrypted.
#![no_main]
mod shared;

use libfuzzer_sys::fuzz_target;
use twamp_agent::{
    time::Monotonic,
    twamp::control_client::{ClientAction, ClientOptions, ControlClient, SessionRequest},
    wire::{
        codes::Modes,
        crypto::{Sealer, TokenKey},
        greeting::{ServerGreeting, ServerStart},
    },
};
use zerocopy::IntoBytes;

fuzz_target!(|data: &[u8]| {
    let Some((&head, data)) = data.split_first() else { return };
    let security = Modes([1, 2, 4, 8][usize::from(head % 4)]);
    let options = ClientOptions {
        security,
        extensions: Modes(0x370),
        key_id: "alice".into(),
        maximum_count: 32_768,
        response_timeout_ns: 1_000_000_000,
        key_timeout_ns: 1_000_000_000,
        keys: shared::keys(),
        client_iv: [5; 16],
        reflected_octets: 0xcafe,
    };
    let request = SessionRequest {
        sender_address: [0, 0, 0, 0].into(),
        sender_port: 4001,
        receiver_address: [0, 0, 0, 0].into(),
        receiver_port: 862,
        data_size: 100,
        reflected_length: 10,
        dscp: 46,
        timeout_ns: 1,
    };
    let mut now = Monotonic(0);
    let mut client = ControlClient::new(vec![request; 2], options, now);
    let mut sealer = None;
    if head & 4 != 0 {
        let modes = if head & 8 != 0 { 0x37f } else { 0x0f };
        client.handle_input(ServerGreeting::new(modes, [1; 16], [2; 16], 1).as_bytes(), now);
        while let Some(action) = client.poll_action() {
            if let ClientAction::DeriveKey { .. } = action {
                client.key_derived(&TokenKey::derive(b"secret", &[2; 16], 1), now);
            }
        }
        let mut start = ServerStart::protected([3; 16], 7).as_bytes().to_vec();
        if security.is_protected() {
            let mut sealed = Sealer::new(&shared::keys(), [3; 16]);
            sealed.seal_part(&mut start[32..]);
            sealer = Some(sealed);
        }
        client.handle_input(&start, now);
    }
    let (mut ends, mut accepted) = (0, 0);
    for (choice, piece) in shared::pieces(data) {
        now = now.plus_ns(u64::from(choice) * 10_000_000);
        client.handle_timeout(now);
        let octets = shared::sealed(&mut sealer, choice, piece);
        client.handle_input(&octets, now);
        if choice & 2 != 0 {
            client.stop(now);
        }
        while let Some(action) = client.poll_action() {
            match action {
                ClientAction::DeriveKey { count, .. } => {
                    assert!((1..=32_768).contains(&count));
                    client.key_derived(&TokenKey::derive(b"secret", &[2; 16], 1), now);
                }
                ClientAction::Accepted(session) => {
                    assert_ne!(session.port, 0);
                    accepted += 1;
                }
                ClientAction::Failed(_) => ends += 1,
                ClientAction::Send(_)
                | ClientAction::Refused(..)
                | ClientAction::Started
                | ClientAction::Stopped => {}
            }
        }
    }
    assert!(ends <= 1 && accepted <= 2);
});
