//! Decoder of replies in each format: decoded packets encode to the same octets.
#![no_main]
mod shared;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for format in shared::formats() {
        let Ok(header) = format.read_reply(data) else { continue };
        let mut again = data.to_vec();
        again.resize(again.len().max(format.reply_octets()), 0);
        format.write_reply(&header, &mut again);
        format.finish_reply(header.timestamp, &mut again);
        let mut expected = header;
        // A short reply has no TOS.
        expected.sender_tos = header.sender_tos.or(format.dscp_ecn.then_some(0));
        assert_eq!(format.read_reply(&again), Ok(expected));
        let _ = header.error_estimate.format().decode(header.timestamp, Default::default());
    }
});
