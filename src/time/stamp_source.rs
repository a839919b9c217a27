//! Where a time of a packet is from.

/// Who noted when a packet went out or came; the later, the nearer to the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StampSource {
    /// The program, by its clock.
    #[default]
    User,
    /// The kernel.
    Kernel,
    /// The network interface, by its clock, told in the time of this host.
    Hardware,
}
