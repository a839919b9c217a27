//! Tasks that are named, counted, stopped together, and started again when they fail. Knows
//! nothing of what they do.

mod restart;
mod tasks;

pub use restart::{RestartPolicy, keep_alive};
pub use tasks::Tasks;
