//! Drivers: one loop around each machine, with the sockets and clocks that machines do not have.
//! `client` measures, `server` reflects.

pub mod client;
mod derivation;
mod modes;
mod plane;
pub mod server;

use std::{
    future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

use crate::{net::clock, time::Monotonic};

pub use derivation::Derivation;
pub use plane::PlaneSettings;

/// Locks a mutex. Poisoning is ignored: no code leaves the data inconsistent when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a deadline; for ever without one.
async fn wait_until(deadline: Option<Monotonic>) {
    match deadline {
        Some(at) => sleep(Duration::from_nanos(at.since_ns(clock::monotonic()))).await,
        None => future::pending().await,
    }
}
