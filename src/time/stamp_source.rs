//! Origins of packet timestamps.

/// Origin of a packet timestamp; later variants are nearer to the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StampSource {
    /// Clock read by the program.
    #[default]
    User,
    /// Timestamp of the kernel.
    Kernel,
    /// Timestamp of the network interface, converted to host time.
    Hardware,
}
