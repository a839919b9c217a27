//! Vectors of keys and control messages.

use serde_json::Value;
use twamp_agent::wire::{
    codes::{Command, Sid},
    control::{StartAck, StartSessions, StopSessions},
    crypto::{Opener, Sealer, TokenKey},
    greeting::{ServerGreeting, ServerStart, SetUpResponse},
    individual,
    request::{AcceptSession, RequestTwSession},
};
use zerocopy::IntoBytes;

use super::{array, integer, number, octets, session_keys, vector};

pub(super) fn keys(name: &str, input: &Value, output: &Value) {
    if name.starts_with("test-keys") {
        let keys = session_keys(input).test_keys(Sid(array(&input["sid"])));
        // Keys are private: their effect on a packet is compared.
        let expected = super::test_keys(output);
        let (mut made, mut right) = ([7; 48], [7; 48]);
        keys.seal(&mut made, 32, 32);
        expected.seal(&mut right, 32, 32);
        return assert_eq!(made, right, "{name}");
    }
    let (secret, salt) = (octets(&input["passphrase"]), array(&input["salt"]));
    let key = TokenKey::derive(&secret, &salt, integer(&input["count"]) as u32);
    if name.starts_with("pbkdf2") {
        // A token under the derived key equals one under the key of the vector.
        let (challenge, keys) = ([9; 16], super::super::options::session_keys());
        let token = key.seal(&challenge, &keys);
        let plain = aes_cbc_decrypt(&array(&output["key"]), &token);
        assert_eq!(plain[..16], challenge, "{name}");
    } else {
        let (challenge, keys) = (array(&input["challenge"]), session_keys(input));
        let token = array(&output["token"]);
        assert_eq!(key.seal(&challenge, &keys), token, "{name}");
        assert!(key.open(&token, &challenge) == Some(keys), "{name}");
        assert!(key.open(&token, &[0; 16]).is_none(), "{name}: of another challenge");
    }
}

/// Test keys with this AES key open the first block of a packet as CBC with a zero IV does.
fn aes_cbc_decrypt(key: &[u8; 16], octets: &[u8; 64]) -> Vec<u8> {
    use twamp_agent::wire::crypto::TestKeys;
    let mut packet = octets.to_vec();
    TestKeys::new(key, &[0; 32]).open(&mut packet, 48, 48);
    packet[..48].to_vec()
}

fn request() -> RequestTwSession {
    let mut request = RequestTwSession::new([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    request.sender_port = 20_000.into();
    request.receiver_port = 862.into();
    request.padding_length = 64.into();
    request.start_time = 0xe8fe_6f80_1f9a_dd37.into();
    request.timeout = (2u64 << 32).into();
    request.type_p = (46u32 << 24).into();
    request
}

fn sid() -> [u8; 16] {
    array(&vector("test-keys")["in"]["sid"])
}

pub(super) fn open(name: &str, input: &Value, output: &Value) {
    let mut wire = octets(output.get("wire").unwrap_or_else(|| &output["body"]));
    let made = match name {
        "server-greeting/all-four" => {
            let (challenge, salt) = (array(&input["challenge"]), array(&input["salt"]));
            ServerGreeting::new(15, challenge, salt, 1024).as_bytes().to_vec()
        }
        "server-greeting/refuse" => ServerGreeting::new(0, [0; 16], [0; 16], 0).as_bytes().to_vec(),
        "setup-response/unauth" => SetUpResponse::unauthenticated(1).as_bytes().to_vec(),
        "setup-response/mode2" | "setup-response/mode4" | "setup-response/mode8" => {
            let mode = integer(&input["mode"]) as u32;
            let (key_id, iv) = (octets(&input["keyid"]), array(&input["client_iv"]));
            let response = SetUpResponse::protected(mode, &key_id, array(&input["token"]), iv);
            assert_eq!(response.key_id(), key_id, "{name}");
            response.as_bytes().to_vec()
        }
        "server-start/unauth" => {
            let start = number(&input["start_time"]);
            ServerStart::unauthenticated(0, start).as_bytes().to_vec()
        }
        "server-start/refused" => ServerStart::unauthenticated(1, 0).as_bytes().to_vec(),
        "control-open/request-tw" => request().as_bytes().to_vec(),
        "control-open/accept" => AcceptSession::new(0, 20_862, sid()).as_bytes().to_vec(),
        "control-open/start" => StartSessions::new().as_bytes().to_vec(),
        "control-open/ack" => StartAck::new(0).as_bytes().to_vec(),
        "control-open/stop" => StopSessions::new(0, 1).as_bytes().to_vec(),
        "reflect-octets/request" => {
            let mut request = request();
            request.padding_length = 100.into();
            request.reflected_octets = 0xcafe.into();
            request.reflected_length = 20.into();
            request.type_p = 0.into();
            wire.extend([0; 16]);
            request.as_bytes().to_vec()
        }
        "reflect-octets/accept" => {
            let mut accept = AcceptSession::new(0, 20_862, array(&input["sid"]));
            accept.reflected_octets = 0xcafe.into();
            accept.server_octets = 0xbeef.into();
            wire.extend([0; 16]);
            accept.as_bytes().to_vec()
        }
        _ => panic!("nobody checks {name}"),
    };
    assert_eq!(hex::encode(made), hex::encode(wire), "{name}");
}

/// Both directions, sealed and opened: one chain each. The HMAC of the first response also covers
/// the encrypted part of Server-Start.
pub(super) fn conversation(input: &Value, output: &Value) {
    let keys = session_keys(input);
    let ivs = [array(&input["client_iv"]), array(&input["server_iv"])];
    let mut sealers = ivs.map(|iv| Sealer::new(&keys, iv));
    let mut openers = ivs.map(|iv| Opener::new(&keys, iv));
    for message in output["messages"].as_array().unwrap() {
        let name = message["msg"].as_str().unwrap();
        let direction = usize::from(message["dir"] == "S>C");
        let (mut made, wire) = (octets(&message["plain"]), octets(&message["wire"]));
        if name == "Server-Start" {
            let clear = octets(&message["clear"]);
            sealers[direction].seal_part(&mut made);
            assert_eq!([&clear[..], &made].concat(), wire);
            let mut block = wire[32..].to_vec();
            openers[direction].decrypt(&mut block);
            openers[direction].add_part(&block);
            assert_eq!(block, octets(&message["plain"]));
            continue;
        }
        made.extend([0; 16]);
        sealers[direction].seal(&mut made);
        assert_eq!(hex::encode(&made), hex::encode(&wire), "{name}");
        let mut plain = wire.clone();
        openers[direction].decrypt(&mut plain);
        assert_eq!(plain[..plain.len() - 16], octets(&message["plain"]), "{name}");
        assert_eq!(openers[direction].check(&plain), Ok(()), "{name}");
    }
}

pub(super) fn individual(name: &str, input: &Value, output: &Value) {
    let plain = octets(&output["plain"]);
    let (command, accept) = (Command(plain[0]), plain[1]);
    let sids: Vec<Sid> = plain[16..].chunks(16).map(|sid| Sid(sid.try_into().unwrap())).collect();
    let made = individual::message(command, accept, &sids);
    assert_eq!(made, octets(&output["wire_open"]), "{name}");
    assert_eq!(individual::sids(&made), sids, "{name}");
    let mut sealed = made;
    Sealer::new(&session_keys(input), array(&input["iv"])).seal(&mut sealed);
    assert_eq!(sealed, octets(&output["wire"]), "{name}");
}
