//! Tasks that are named, counted, stopped together, and started again when they fail. Knows
//! nothing of what they do.

mod pulse;
mod restart;
mod tasks;

pub use pulse::Pulse;
pub use restart::{RestartPolicy, keep_alive, panic_text};
pub use tasks::Tasks;
