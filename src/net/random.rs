//! Random bytes from the kernel.
//!
//! Without them, keys, challenges and identifiers cannot be generated. Numbers that only spread out
//! waits and ports, and padding, are derived from the clock instead.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::clock;

/// Returns random bytes that are fit for keys.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// Returns a number that spreads out waits, ports or probes. Never fit for keys.
pub fn number() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes).map_or_else(|_| number_from_clock(), |()| u64::from_ne_bytes(bytes))
}

/// Fills padding with octets that links do not compress.
pub fn fill_padding(padding: &mut [u8]) {
    if fill(padding).is_err() {
        for chunk in padding.chunks_mut(8) {
            chunk.copy_from_slice(&number_from_clock().to_ne_bytes()[..chunk.len()]);
        }
    }
}

fn fill(buffer: &mut [u8]) -> io::Result<()> {
    #[cfg(test)]
    let filled = failing::fill(buffer);
    #[cfg(not(test))]
    let filled = getrandom::fill(buffer);
    filled.map_err(|error| io::Error::other(format!("no random bytes from the kernel: {error}")))
}

/// Scrambles the time and a counter (the SplitMix64 generator).
fn number_from_clock() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let step = COUNTER.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut number = clock::monotonic().0.wrapping_add(step);
    number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// Simulation of a kernel without random bytes, for tests. It affects only the thread that starts
/// it.
#[cfg(test)]
pub mod failing {
    use std::cell::Cell;

    thread_local! {
        static FAILING: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn fill(buffer: &mut [u8]) -> Result<(), getrandom::Error> {
        if FAILING.get() { Err(getrandom::Error::UNSUPPORTED) } else { getrandom::fill(buffer) }
    }

    /// Restores the kernel's random bytes when dropped.
    pub struct Guard(());

    impl Drop for Guard {
        fn drop(&mut self) {
            FAILING.set(false);
        }
    }

    /// Fails until the guard is dropped.
    pub fn start() -> Guard {
        FAILING.set(true);
        Guard(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_are_refused_without_random_bytes_and_numbers_still_differ() {
        assert_ne!(bytes::<32>().unwrap(), [0; 32]);
        let _failing = failing::start();
        let error = bytes::<32>().unwrap_err().to_string();
        assert!(error.starts_with("no random bytes from the kernel: "), "{error}");
        let numbers: HashSet<u64> = (0..1_000).map(|_| number()).collect();
        assert_eq!(numbers.len(), 1_000);
        let mut padding = [0; 41];
        fill_padding(&mut padding);
        assert!(padding.chunks(8).all(|chunk| chunk != &[0; 8][..chunk.len()]), "{padding:?}");
    }
}
