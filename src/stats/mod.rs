//! Figures over probes: delays, variation and loss. Pure and of fixed memory; what a test gathers
//! is what the API tells ([`crate::proto::Figures`]), and figures of several tests merge exactly.

mod bursts;
mod delays;
mod direction;
mod figures;
mod histogram;
mod moments;
mod reordering;
mod sample;
mod test;
mod thresholds;
mod voice;

pub use bursts::Fates;
pub use direction::{Attribution, LossDirection};
pub use figures::{add_outcome, add_result, clear_histograms, coarsen, complete, merge};
pub use histogram::{BUCKETS_OF_A_TEST, BUCKETS_OF_MANY, Histogram};
pub use moments::Moments;
pub use sample::Sample;
pub use test::{MINUTE_NS, Placed, TestFigures, Track, minute_of};
pub use thresholds::ThresholdMonitor;
pub use voice::voice_quality;
