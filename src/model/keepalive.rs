//! TCP keepalive of control connections.

/// The three options of TCP keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe, nanoseconds.
    pub idle_ns: u64,
    /// Gap between two probes, nanoseconds.
    pub interval_ns: u64,
    /// Unanswered probes that end the connection.
    pub count: u32,
}
