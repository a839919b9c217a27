//! Results of tests as the agent keeps them, in memory and in the store. For each answer they are
//! converted to messages of the API, so that stored results and the API can change independently.
//! Tags are never reused.

use prost::Message;

use crate::model::{
    FailureCause, OneWayValidity, ProbeStatus, ReflectorNumbering, TestOutcome, TimestampSource,
};

/// Counts, delays and outcome of one test.
#[derive(Clone, PartialEq, Message)]
pub struct TestResult {
    /// Number of the test within its session, from 1.
    #[prost(uint64, tag = "1")]
    pub test_number: u64,
    /// Outcome: complete, interrupted, unreachable or stopped.
    #[prost(enumeration = "TestOutcome", tag = "2")]
    pub outcome: i32,
    /// Start of the test; of an unreachable one, the time at which it was due.
    #[prost(uint64, tag = "3")]
    pub start_unix_ns: u64,
    /// End of the test, including the loss timeout.
    #[prost(uint64, tag = "4")]
    pub end_unix_ns: u64,
    /// Cause of the outage or interruption.
    #[prost(enumeration = "FailureCause", tag = "5")]
    pub cause: i32,
    /// Failed attempts to connect since the connection was lost; of unreachable tests only.
    #[prost(uint64, tag = "6")]
    pub attempts: u64,
    /// Counts and delays; `None` only in damaged records.
    #[prost(message, optional, boxed, tag = "7")]
    pub figures: Option<Box<Figures>>,
}

/// Counts and delays of one test, or of several.
#[derive(Clone, PartialEq, Message)]
pub struct Figures {
    /// Probes due within the test.
    #[prost(uint64, tag = "1")]
    pub probes_scheduled: u64,
    /// Probes handed to the socket within the test.
    #[prost(uint64, tag = "2")]
    pub probes_sent: u64,
    /// Probes due that were not sent.
    #[prost(uint64, tag = "3")]
    pub probes_not_sent: u64,
    /// Probes answered within the loss timeout.
    #[prost(uint64, tag = "4")]
    pub probes_received: u64,
    /// Probes not answered within the loss timeout.
    #[prost(uint64, tag = "5")]
    pub probes_lost: u64,
    /// Replies that arrived after the loss timeout.
    #[prost(uint64, tag = "6")]
    pub probes_late: u64,
    /// Further replies to a probe that was answered.
    #[prost(uint64, tag = "7")]
    pub probes_duplicate: u64,
    /// Replies that arrived after the reply to a later probe.
    #[prost(uint64, tag = "8")]
    pub probes_reordered: u64,
    /// Probes lost on the way to the reflector; `None` if its replies do not show the direction.
    #[prost(uint64, optional, tag = "9")]
    pub probes_lost_egress: Option<u64>,
    /// Probes lost on the way back; `None` if the replies do not show the direction.
    #[prost(uint64, optional, tag = "10")]
    pub probes_lost_ingress: Option<u64>,
    /// Probes lost in an unknown direction.
    #[prost(uint64, tag = "11")]
    pub probes_lost_unattributed: u64,
    /// Datagrams that answer no probe of the session.
    #[prost(uint64, tag = "12")]
    pub packets_ignored: u64,
    /// Round-trip time without the time in the reflector, (T4-T1)-(T3-T2).
    #[prost(message, optional, boxed, tag = "13")]
    pub rtt: Option<Box<DelayStats>>,
    /// Egress delay T2-T1, by the clocks of both ends.
    #[prost(message, optional, boxed, tag = "14")]
    pub egress: Option<Box<DelayStats>>,
    /// Ingress delay T4-T3, by the clocks of both ends.
    #[prost(message, optional, boxed, tag = "15")]
    pub ingress: Option<Box<DelayStats>>,
    /// Differences of the round-trip time between consecutive probes (RFC 3393).
    #[prost(message, optional, boxed, tag = "16")]
    pub rtt_jitter: Option<Box<DelayStats>>,
    /// Differences of the egress delay between consecutive probes.
    #[prost(message, optional, boxed, tag = "17")]
    pub egress_jitter: Option<Box<DelayStats>>,
    /// Differences of the ingress delay between consecutive probes.
    #[prost(message, optional, boxed, tag = "18")]
    pub ingress_jitter: Option<Box<DelayStats>>,
    /// Time in the reflector T3-T2, by its own clock.
    #[prost(message, optional, boxed, tag = "19")]
    pub reflector_processing: Option<Box<DelayStats>>,
    /// Delay of probes against their schedule.
    #[prost(message, optional, boxed, tag = "20")]
    pub schedule_error: Option<Box<DelayStats>>,
    /// Smoothed interarrival jitter at the end of the last test (RFC 3550 §6.4.1).
    #[prost(uint64, tag = "21")]
    pub interarrival_jitter_ns: u64,
    /// Validity of the worst one-way sample.
    #[prost(enumeration = "OneWayValidity", tag = "22")]
    pub one_way_validity: i32,
    /// Replies whose T4 is a stamp of the kernel or the network interface.
    #[prost(uint64, tag = "23")]
    pub kernel_receive_timestamps: u64,
    /// Samples left out of the one-way delays because these are impossible. If the round-trip time
    /// is below zero or the clock was stepped, they are left out of the round-trip time as well.
    #[prost(uint64, tag = "24")]
    pub samples_invalid: u64,
    /// Sender TTL of the latest reply.
    #[prost(uint32, tag = "25")]
    pub egress_ttl: u32,
    /// TTL of the latest reply's own packet; 0 if the kernel reported none.
    #[prost(uint32, tag = "26")]
    pub ingress_ttl: u32,
    /// TOS octet of the latest reply's own packet.
    #[prost(uint32, tag = "27")]
    pub ingress_tos: u32,
    /// TOS octet with which the latest probe reached the reflector, if it reports it.
    #[prost(uint32, optional, tag = "28")]
    pub egress_tos: Option<u32>,
    /// Packets whose HMAC is wrong.
    #[prost(uint64, tag = "29")]
    pub packets_integrity_failed: u64,
    /// Replies whose T3 was corrected by follow-up telemetry (RFC 8972 §4.7).
    #[prost(uint64, tag = "30")]
    pub reflector_timestamps_corrected: u64,
    /// Results of STAMP extensions; `None` without STAMP.
    #[prost(message, optional, boxed, tag = "31")]
    pub stamp: Option<Box<StampFigures>>,
    /// Replies to probes whose T1 is a stamp of the kernel or the network interface.
    #[prost(uint64, tag = "32")]
    pub kernel_transmit_timestamps: u64,
    /// Samples left out of all delays because their timestamps are of a less exact source.
    #[prost(uint64, tag = "33")]
    pub samples_other_timestamp_source: u64,
    /// Source of T1 of the samples in the delays.
    #[prost(enumeration = "TimestampSource", tag = "34")]
    pub transmit_timestamp_source: i32,
    /// Source of T4 of the samples in the delays.
    #[prost(enumeration = "TimestampSource", tag = "35")]
    pub receive_timestamp_source: i32,
    /// Packets dropped because the receive buffer was full.
    #[prost(uint64, tag = "36")]
    pub packets_dropped: u64,
    /// Probes still in flight when the test was cut short.
    #[prost(uint64, tag = "37")]
    pub probes_abandoned: u64,
    /// Runs of consecutive losses.
    #[prost(message, optional, tag = "38")]
    pub loss_bursts: Option<LossBursts>,
    /// Extent of reordering; `None` without reordered replies.
    #[prost(message, optional, tag = "39")]
    pub reordering: Option<Reordering>,
    /// Intervals of probes by the state of the path.
    #[prost(message, optional, tag = "40")]
    pub availability: Option<Availability>,
    /// Replies with another sender TTL than the previous reply.
    #[prost(uint64, tag = "41")]
    pub egress_ttl_changes: u64,
    /// Replies with another TTL than the previous reply.
    #[prost(uint64, tag = "42")]
    pub ingress_ttl_changes: u64,
    /// Replies with another sender TOS octet than the previous reply.
    #[prost(uint64, tag = "43")]
    pub egress_tos_changes: u64,
    /// Replies with another TOS octet than the previous reply.
    #[prost(uint64, tag = "44")]
    pub ingress_tos_changes: u64,
    /// Egress delay above its minimum (RFC 5481 §4.2).
    #[prost(message, optional, boxed, tag = "45")]
    pub egress_delay_variation: Option<Box<DelayStats>>,
    /// Ingress delay above its minimum (RFC 5481 §4.2).
    #[prost(message, optional, boxed, tag = "46")]
    pub ingress_delay_variation: Option<Box<DelayStats>>,
    /// Largest estimated error of this host's clock; `None` if it is unknown.
    #[prost(uint64, optional, tag = "47")]
    pub clock_error_ns: Option<u64>,
    /// Largest reported error of the reflector's clock; `None` if it is unknown.
    #[prost(uint64, optional, tag = "48")]
    pub reflector_clock_error_ns: Option<u64>,
    /// Numbering of replies by the reflector, on which the direction of losses depends.
    #[prost(enumeration = "ReflectorNumbering", tag = "49")]
    pub reflector_numbering: i32,
    /// Replies without an estimate of the reflector's clock (Multiplier 0).
    #[prost(uint64, tag = "50")]
    pub replies_without_error_estimate: u64,
}

/// Distribution of one quantity, in nanoseconds.
#[derive(Clone, PartialEq, Message)]
pub struct DelayStats {
    /// Number of values in the distribution.
    #[prost(uint64, tag = "1")]
    pub samples: u64,
    /// Smallest value, in nanoseconds.
    #[prost(int64, tag = "2")]
    pub min_ns: i64,
    /// Largest value, in nanoseconds.
    #[prost(int64, tag = "3")]
    pub max_ns: i64,
    /// Arithmetic mean, in nanoseconds.
    #[prost(double, tag = "4")]
    pub mean_ns: f64,
    /// Standard deviation of the population.
    #[prost(double, tag = "5")]
    pub stddev_ns: f64,
    /// Values by bucket; `None` for quantities without percentiles.
    #[prost(message, optional, tag = "8")]
    pub histogram: Option<HistogramBuckets>,
}

/// Encoded [`Histogram`](super::Histogram), laid out as `Histogram` of the API defines it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HistogramBuckets {
    /// Parts of each power of two, as a power of two: 0 to 7.
    #[prost(uint32, tag = "1")]
    pub precision: u32,
    /// Numbers of the buckets, each as its distance from the one before.
    #[prost(sint32, repeated, tag = "2")]
    pub bucket_deltas: Vec<i32>,
    /// Number of values in each bucket.
    #[prost(uint64, repeated, tag = "3")]
    pub counts: Vec<u64>,
}

/// Runs of consecutive losses.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LossBursts {
    /// Runs that have ended.
    #[prost(uint64, tag = "1")]
    pub bursts: u64,
    /// Probes in the longest run, including one that has not ended.
    #[prost(uint64, tag = "2")]
    pub max_length: u64,
    /// Runs by length: 1 probe, 2 to 3, 4 to 7 and so on, doubling.
    #[prost(uint64, repeated, tag = "3")]
    pub counts_by_length: Vec<u64>,
}

/// Extent of reordering (RFC 4737 §4.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Reordering {
    /// Largest extent, in replies.
    #[prost(uint32, tag = "1")]
    pub max_extent: u32,
    /// Sum of the extents, in replies.
    #[prost(uint64, tag = "2")]
    pub total_extent: u64,
}

/// Intervals of probes by the state of the path (ITU-T Y.1731, MEF 10).
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Availability {
    /// Intervals in which the path was available.
    #[prost(uint64, tag = "1")]
    pub available_intervals: u64,
    /// Intervals in which the path was unavailable.
    #[prost(uint64, tag = "2")]
    pub unavailable_intervals: u64,
    /// Intervals of high loss while the path was available.
    #[prost(uint64, tag = "3")]
    pub high_loss_intervals: u64,
    /// Runs of high-loss intervals that did not make the path unavailable.
    #[prost(uint64, tag = "4")]
    pub consecutive_high_loss_intervals: u64,
}

/// Results of STAMP extensions (RFC 8972). Fields that are no counts hold the latest value.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StampFigures {
    /// Replies without a session identifier.
    #[prost(uint64, tag = "1")]
    pub replies_without_ssid: u64,
    /// Replies that do not carry the TLVs of the probe.
    #[prost(uint64, tag = "2")]
    pub replies_without_tlvs: u64,
    /// Replies with a TLV that the reflector does not recognise.
    #[prost(uint64, tag = "3")]
    pub tlvs_unrecognised: u64,
    /// Replies with a TLV that the reflector found malformed.
    #[prost(uint64, tag = "4")]
    pub tlvs_malformed: u64,
    /// Replies whose TLVs failed the integrity check.
    #[prost(uint64, tag = "5")]
    pub tlvs_integrity_failed: u64,
    /// Replies that could not have the requested DSCP.
    #[prost(uint64, tag = "6")]
    pub dscp_refused: u64,
    /// Direct Measurement: probes sent.
    #[prost(uint32, tag = "7")]
    pub direct_sender_transmitted: u32,
    /// Direct Measurement: probes received by the reflector.
    #[prost(uint32, tag = "8")]
    pub direct_reflector_received: u32,
    /// Direct Measurement: replies sent by the reflector.
    #[prost(uint32, tag = "9")]
    pub direct_reflector_transmitted: u32,
    /// Timestamp Information: synchronisation source of the reflector (RFC 8972 §4.3).
    #[prost(uint32, tag = "10")]
    pub reflector_sync_source: u32,
    /// Timestamp Information: method by which T2 is taken.
    #[prost(uint32, tag = "11")]
    pub reflector_receive_method: u32,
    /// Timestamp Information: method by which T3 is taken.
    #[prost(uint32, tag = "12")]
    pub reflector_transmit_method: u32,
    /// Location: source address and port of the probe at the reflector.
    #[prost(string, tag = "13")]
    pub observed_source_address: String,
    /// Location: destination address and port of the probe at the reflector.
    #[prost(string, tag = "14")]
    pub observed_destination_address: String,
    /// Access Report: the reflector returned it.
    #[prost(bool, tag = "15")]
    pub access_report_acknowledged: bool,
}

/// Outcome of one probe. Optional fields are `None` for probes without a reply.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ProbeResult {
    /// Number of the test, as in [`TestResult::test_number`].
    #[prost(uint64, tag = "1")]
    pub test_number: u64,
    /// Sequence Number of the probe (RFC 5357 §4.1.2).
    #[prost(uint32, tag = "2")]
    pub sequence: u32,
    /// Send time T1, since 1970-01-01 UTC.
    #[prost(uint64, tag = "3")]
    pub sent_unix_ns: u64,
    /// Outcome: received, lost or abandoned.
    #[prost(enumeration = "ProbeStatus", tag = "4")]
    pub status: i32,
    /// Round-trip time without the time in the reflector, (T4-T1)-(T3-T2).
    #[prost(int64, optional, tag = "5")]
    pub rtt_ns: Option<i64>,
    /// Egress delay T2-T1, by the clocks of both ends.
    #[prost(int64, optional, tag = "6")]
    pub egress_ns: Option<i64>,
    /// Ingress delay T4-T3, by the clocks of both ends.
    #[prost(int64, optional, tag = "7")]
    pub ingress_ns: Option<i64>,
    /// Time in the reflector T3-T2, by its own clock.
    #[prost(int64, optional, tag = "8")]
    pub reflector_processing_ns: Option<i64>,
    /// Sequence Number of the reply (RFC 5357 §4.2.1).
    #[prost(uint32, optional, tag = "9")]
    pub reflector_sequence: Option<u32>,
    /// Sender TTL in the reply: the TTL of the probe at the reflector.
    #[prost(uint32, optional, tag = "10")]
    pub egress_ttl: Option<u32>,
    /// TTL of the reply's own packet, if the kernel reported it.
    #[prost(uint32, optional, tag = "11")]
    pub ingress_ttl: Option<u32>,
    /// TOS octet of the reply's own packet, if the kernel reported it.
    #[prost(uint32, optional, tag = "12")]
    pub ingress_tos: Option<u32>,
    /// TOS octet with which the probe reached the reflector, if it reports it.
    #[prost(uint32, optional, tag = "13")]
    pub egress_tos: Option<u32>,
    /// Source of T1: program, kernel or interface.
    #[prost(enumeration = "TimestampSource", tag = "14")]
    pub transmit_timestamp_source: i32,
    /// Source of T4: program, kernel or interface.
    #[prost(enumeration = "TimestampSource", optional, tag = "15")]
    pub receive_timestamp_source: Option<i32>,
    /// Validity of the one-way delays.
    #[prost(enumeration = "OneWayValidity", optional, tag = "16")]
    pub one_way_validity: Option<i32>,
    /// T3 was corrected by follow-up telemetry (RFC 8972 §4.7).
    #[prost(bool, tag = "17")]
    pub reflector_timestamp_corrected: bool,
}
