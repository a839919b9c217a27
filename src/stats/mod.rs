//! Figures over probes: delays, variation and loss. Pure and of fixed memory; figures of
//! several tests merge exactly.

mod bursts;
mod delays;
mod direction;
mod figures;
mod histogram;
mod moments;
mod reordering;
mod result;
mod sample;
mod test;
mod thresholds;
mod voice;

pub use bursts::Fates;
pub use direction::{Attribution, LossDirection};
pub use figures::{coarsen, merge};
pub use histogram::{BUCKETS_OF_A_TEST, BUCKETS_OF_MANY, Histogram};
pub use moments::Moments;
pub use result::{
    Availability, DelayStats, Figures, HistogramBuckets, LossBursts, ProbeResult, Reordering,
    StampFigures, TestResult,
};
pub use sample::Sample;
pub use test::{MINUTE_NS, Placed, TestFigures, Track, minute_of};
pub use thresholds::{ThresholdChange, ThresholdMonitor};
pub use voice::{VoiceQuality, voice_quality};
