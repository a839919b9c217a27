//! Drivers: one loop around each machine, with the sockets and clocks that machines do not have.
//! `client` measures, `server` reflects.

pub mod client;
mod derivation;
mod modes;
mod plane;
pub mod server;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use derivation::Derivation;
pub use plane::PlaneSettings;

/// Locks a mutex. Poisoning is ignored: no code leaves the data inconsistent when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
