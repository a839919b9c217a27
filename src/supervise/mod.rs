//! Supervision of tasks: they are named, tracked, stopped together and restarted after a failure.
//! It does not depend on what the tasks do.

mod heartbeat;
mod pause;
mod restart;
mod tasks;

pub use heartbeat::Heartbeat;
pub use pause::watch_pauses;
pub use restart::{RestartPolicy, keep_alive, panic_text};
pub use tasks::Tasks;
