//! Random octets from the kernel.

/// So many random octets. Where the kernel has none to give, which it does not do once it has
/// booted, they are zeros: nothing here is a key.
pub fn octets<const N: usize>() -> [u8; N] {
    let mut octets = [0; N];
    if let Err(error) = getrandom::fill(&mut octets) {
        tracing::error!(%error, "the kernel gave no random octets");
    }
    octets
}

/// Fills a buffer.
pub fn fill(buffer: &mut [u8]) {
    if let Err(error) = getrandom::fill(buffer) {
        tracing::error!(%error, "the kernel gave no random octets");
    }
}
