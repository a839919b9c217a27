//! Decoders of all control messages: decoded messages encode to the same octets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twamp_agent::wire::{
    Layout,
    codes::{Accept, Modes, TypeP},
    control::{StartAck, StartSessions, StopSessions},
    greeting::{ServerGreeting, ServerStart, SetUpResponse},
    individual::{self, IndividualHeader},
    request::{AcceptSession, RequestTwSession},
};

fn check<M: Layout>(data: &[u8]) {
    if let Some(message) = M::read(data) {
        assert_eq!(message.as_bytes(), &data[..M::SIZE]);
    }
}

fuzz_target!(|data: &[u8]| {
    check::<ServerGreeting>(data);
    check::<SetUpResponse>(data);
    check::<ServerStart>(data);
    check::<RequestTwSession>(data);
    check::<AcceptSession>(data);
    check::<StartSessions>(data);
    check::<StartAck>(data);
    check::<StopSessions>(data);
    check::<IndividualHeader>(data);
    if let Some(request) = RequestTwSession::read(data) {
        let _ = (request.sender_address(), request.receiver_address(), request.ipvn());
        let _ = TypeP(request.type_p.get()).dscp();
    }
    if let Some(response) = SetUpResponse::read(data) {
        assert!(response.key_id().len() <= 80);
        let _ = Modes(response.mode.get()).to_string();
    }
    if let Some(header) = IndividualHeader::read(data) {
        let octets = individual::octets((header.sessions.get() as usize).min(100));
        if let Some(message) = data.get(..octets) {
            assert!(individual::sids(message).len() <= 100);
        }
    }
    let _ = data.first().map(|accept| Accept::received(*accept).to_string());
});
