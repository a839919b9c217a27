//! Decoder of probes in each format, and TLVs: decoded packets encode to the same octets.
#![no_main]
mod shared;

use libfuzzer_sys::fuzz_target;
use twamp_agent::wire::{format::Protection, tlv};

fuzz_target!(|data: &[u8]| {
    for format in shared::formats() {
        let Ok(header) = format.read_probe(data) else { continue };
        let mut again = data.to_vec();
        format.write_probe(&header, &mut again);
        assert_eq!(format.read_probe(&again), Ok(header));
        if matches!(format.protection, Protection::Open) && !format.symmetrical {
            assert_eq!(again, data);
        }
    }
    let mut end = 0;
    for tlv in tlv::walk(data).flatten() {
        assert!(tlv.at >= end && tlv.end() <= data.len());
        end = tlv.end();
        let _ = (tlv.has_right_length(), &data[tlv.value()]);
    }
});
