//! Supervision of tasks: named, tracked, stopped together and restarted after a failure.
//! Independent of their content.

mod heartbeat;
mod restart;
mod tasks;

pub use heartbeat::Heartbeat;
pub use restart::{RestartPolicy, keep_alive, panic_text};
pub use tasks::Tasks;
