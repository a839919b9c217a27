//! Conformance tests, one for each item: the number in the name of a test is that of the item in
//! the checklist of RFC 4656, RFC 5357 and RFC 8545.
//!
//! Messages are octets here, so that a layout that is wrong at both ends in the same way is found.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm
)]

mod control_client;
mod control_server;
mod extensions;
mod live;
mod options;
mod pair;
mod security;
mod stamp;
mod test_packets;
mod vectors;
