//! Figures over probes: delays, variation and loss. Pure and of fixed memory; what a test gathers
//! is what the API tells ([`crate::proto::Figures`]), and figures of several tests merge exactly.

mod direction;
mod figures;
mod moments;
mod test;
mod thresholds;

pub use direction::{Attribution, LossDirection};
pub use figures::{add_result, merge};
pub use moments::Moments;
pub use test::{Sample, TestFigures};
pub use thresholds::ThresholdMonitor;
