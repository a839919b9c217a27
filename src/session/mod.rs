//! The drivers: one loop around one machine each, with the sockets and clocks that the machines do
//! not have. `client` measures, `server` lets others measure.

pub mod client;
mod derivation;
mod modes;
mod plane;
pub mod server;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use derivation::Derivation;
pub use plane::PlaneSettings;

/// What a panic left behind is whole: nothing is half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
