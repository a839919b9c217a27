//! The messages of the API, as `proto/` defines them. They are also the form in which results,
//! statistics and states live inside the agent and in the store; services are in `api`.

#![allow(missing_docs, clippy::pedantic, clippy::nursery, unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/messages/twamp.agent.v1.rs"));

/// Descriptors of all services and messages, with comments, for reflection and for the JSON form.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
