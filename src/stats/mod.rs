//! Figures of probes: delays, variation and loss. They are computed without I/O and in fixed
//! memory, and figures of several tests can be merged exactly.

mod bursts;
mod delays;
mod direction;
mod figures;
mod histogram;
mod moments;
mod numbering;
mod reordering;
mod result;
mod sample;
mod test;
mod thresholds;
mod voice;

pub use bursts::OutcomeTrack;
pub use direction::{Attribution, LossDirection};
pub use figures::{coarsen, merge};
pub use histogram::{Histogram, MERGED_BUCKETS, TEST_BUCKETS};
pub use moments::Moments;
pub use numbering::Numbering;
pub use result::{
    Availability, DelayStats, Figures, HistogramBuckets, LossBursts, ProbeResult, Reordering,
    StampFigures, TestResult,
};
pub use sample::{Sample, have_tai_offset};
pub use test::{Directions, MINUTE_NS, MinuteLosses, TestFigures, Track, minute_of};
pub use thresholds::{ThresholdChange, ThresholdMonitor};
pub use voice::{VoiceQuality, voice_quality};
