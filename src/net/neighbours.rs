//! MAC addresses of IPv4 neighbours, from the kernel's ARP table.

use std::{collections::HashMap, fs, net::IpAddr};

const TABLE: &str = "/proc/net/arp";

/// MAC addresses by IPv4 address; empty when the table cannot be read.
#[derive(Debug, Default)]
pub struct Neighbours {
    addresses: HashMap<IpAddr, [u8; 6]>,
}

impl Neighbours {
    /// Reads the current table.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string(TABLE).unwrap_or_default())
    }

    /// Returns the MAC address of a directly connected host.
    pub fn mac(&self, host: IpAddr) -> Option<[u8; 6]> {
        self.addresses.get(&host).copied()
    }

    /// Parses lines of `IP HW-type Flags HW-address Mask Device` after a header line.
    fn parse(table: &str) -> Self {
        let entry = |line: &str| {
            let mut columns = line.split_whitespace();
            let host = columns.next()?.parse().ok()?;
            let mut mac = [0; 6];
            let mut octets = columns.nth(2)?.split(':');
            for octet in &mut mac {
                *octet = u8::from_str_radix(octets.next()?, 16).ok()?;
            }
            (mac != [0; 6]).then_some((host, mac))
        };
        Self { addresses: table.lines().skip(1).filter_map(entry).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_table_of_the_kernel() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     192.0.2.1        0x1         0x2         02:00:5e:10:20:30     *        eth0\n\
                     192.0.2.9        0x1         0x0         00:00:00:00:00:00     *        eth0\n\
                     nonsense\n";
        let neighbours = Neighbours::parse(table);
        let mac = |host: &str| neighbours.mac(host.parse().unwrap());
        assert_eq!(mac("192.0.2.1"), Some([0x02, 0x00, 0x5e, 0x10, 0x20, 0x30]));
        assert_eq!(mac("192.0.2.9"), None, "not known yet");
        assert_eq!(mac("192.0.2.7"), None);
    }
}
