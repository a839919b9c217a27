//! Drivers of the state machines. A driver is a loop around one machine; it owns the sockets and
//! reads the clocks. `client` measures, `server` reflects.

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

/// Locks a mutex. Poisoning is ignored, because code that panics leaves the data consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a deadline, or forever without one.
async fn wait_until(deadline: Option<Monotonic>) {
    match deadline {
        Some(at) => sleep(Duration::from_nanos(at.since_ns(clock::monotonic()))).await,
        None => future::pending().await,
    }
}
