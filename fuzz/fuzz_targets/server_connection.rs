//! Complete control connection of a server, in clear and, with a client that has the key,
//! encrypted.
#![no_main]
mod shared;

use libfuzzer_sys::fuzz_target;
use twamp_agent::{
    time::{Monotonic, NtpTimestamp},
    twamp::control_server::{ControlServer, ServerAction, ServerOptions},
    wire::{
        codes::{Accept, Modes, Sid},
        crypto::{Sealer, TokenKey},
        greeting::SetUpResponse,
    },
};
use zerocopy::IntoBytes;

fuzz_target!(|data: &[u8]| {
    let Some((&head, data)) = data.split_first() else { return };
    let options = ServerOptions {
        offered: Modes(0x37f),
        count: 1024,
        start_time: NtpTimestamp(7),
        inactivity_timeout_ns: 900_000_000_000,
        challenge: [1; 16],
        salt: [2; 16],
        server_iv: [3; 16],
    };
    let mut now = Monotonic(0);
    let mut server = ControlServer::new(options, now);
    // The key is used directly: otherwise only its derivation would be tested.
    let derive = || TokenKey::derive(b"secret", &[2; 16], 1);
    let mut sealer = None;
    let modes = [0, 1, 1 | 16, 1 | 32, 2, 4 | 16, 8, 4 | 0x370];
    match modes[usize::from(head % 8)] {
        0 => {}
        mode if mode & 0xe != 0 => {
            let token = derive().seal(&[1; 16], &shared::keys());
            let response = SetUpResponse::protected(mode, b"alice", token, [5; 16]);
            server.handle_input(response.as_bytes(), now);
            sealer = Some(Sealer::new(&shared::keys(), [5; 16]));
        }
        mode => server.handle_input(SetUpResponse::unauthenticated(mode).as_bytes(), now),
    }
    let (mut ends, mut sessions) = (0, 0u8);
    for (choice, piece) in std::iter::once((0, &[][..])).chain(shared::pieces(data)) {
        now = now.plus_ns(u64::from(choice) * 1_000_000_000);
        server.handle_timeout(now);
        let octets = shared::sealed(&mut sealer, choice, piece);
        server.handle_input(&octets, now);
        while let Some(action) = server.poll_action() {
            match action {
                ServerAction::DeriveKeys { .. } => {
                    server.authenticate(Some(&[derive()]), now);
                }
                ServerAction::Request(_) if sessions < 8 && choice & 2 == 0 => {
                    sessions += 1;
                    server.answer_request(Ok((5000, Sid([sessions; 16]))), now);
                }
                ServerAction::Request(_) => server.answer_request(Err(Accept::FAILURE), now),
                ServerAction::Start(_) => server.sessions_started(now),
                ServerAction::Close(_) => ends += 1,
                ServerAction::Send(octets) => assert!(octets.len() <= 16 * 1024),
                ServerAction::Refused(_, detail) => assert!(detail.len() < 200),
                ServerAction::Stop(sids) => assert!(sids.len() <= 8),
            }
        }
        if choice & 4 != 0 {
            server.session_expired(Sid([choice; 16]), now);
        }
    }
    assert!(ends <= 1);
});
