//! TCP_INFO of connections, read through sock_diag without access to the sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};
use nix::libc;

use crate::proto::TcpInfo;

/// Cookie that matches any socket.
const NO_COOKIE: [u8; 8] = [0xff; 8];
const RESPONSE_BYTES: usize = 4096;
/// Number of the state `ESTAB`.
const ESTABLISHED: usize = 1;
/// State names of ss(8), by kernel number.
const STATES: [&str; 13] = [
    "",
    "ESTAB",
    "SYN-SENT",
    "SYN-RECV",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "UNCONN",
    "CLOSE-WAIT",
    "LAST-ACK",
    "LISTEN",
    "CLOSING",
    "NEW-SYN-RECV",
];

/// Returns the number of the interface of a link-local address; 0 for any other.
fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => v6.scope_id(),
    }
}

/// Netlink socket to the kernel's socket directory.
#[derive(Debug)]
pub struct TcpDirectory {
    socket: Socket,
}

impl TcpDirectory {
    /// Opens a netlink socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        // The kernel answers before the send returns.
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Returns the user that owns the local end of an established connection; `None` for any other,
    /// or if no process has it open any more.
    pub fn owner(&self, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        let InetResponse { header, .. } =
            self.find(local, remote, None, ExtensionFlags::empty())?;
        let is_open = usize::from(header.state) == ESTABLISHED && header.inode != 0;
        is_open.then_some(header.uid)
    }

    /// Returns the facts of the connection between two addresses; `None` if there is no such
    /// connection. `interface` is the number of the interface that the connection is bound to.
    pub fn facts(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        interface: Option<u32>,
    ) -> Option<TcpInfo> {
        let response = self.find(local, remote, interface, ExtensionFlags::INFO)?;
        let info = response
            .nlas
            .iter()
            .find_map(|nla| if let Nla::TcpInfo(info) = nla { Some(info) } else { None })?;
        let nanoseconds = |micros: u32| u64::from(micros) * 1_000;
        Some(TcpInfo {
            state: STATES.get(usize::from(info.state)).copied().unwrap_or_default().into(),
            rtt_ns: nanoseconds(info.rtt),
            rtt_variation_ns: nanoseconds(info.rttvar),
            retransmits: info.total_retrans,
            unacknowledged_segments: info.unacked,
            unanswered_probes: info.probes.into(),
            // The kernel reports these in milliseconds.
            time_since_data_received_ns: nanoseconds(info.last_data_recv) * 1_000,
            time_since_ack_received_ns: nanoseconds(info.last_ack_recv) * 1_000,
        })
    }

    fn find(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        interface: Option<u32>,
        extensions: ExtensionFlags,
    ) -> Option<InetResponse> {
        let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let request = InetRequest {
            family: family as u8,
            protocol: libc::IPPROTO_TCP as u8,
            extensions,
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: local.port(),
                destination_port: remote.port(),
                source_address: local.ip(),
                destination_address: remote.ip(),
                // The kernel finds a socket that is bound to an interface only by the number of the
                // interface.
                interface_id: interface.unwrap_or_else(|| scope(local)),
                cookie: NO_COOKIE,
            },
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let payload = SockDiagMessage::InetRequest(request).into();
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut octets = vec![0; message.buffer_len()];
        message.serialize(&mut octets);
        self.socket.send(&octets, 0).ok()?;
        let mut answer = Vec::with_capacity(RESPONSE_BYTES);
        self.socket.recv(&mut answer, 0).ok()?;
        let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).ok()?;
        let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) = answer.payload
        else {
            return None;
        };
        Some(*response)
    }
}

/// Returns the user that owns the local end of an established connection, as [`TcpDirectory::owner`]
/// does, from proc(5): slower, but without netlink.
pub fn tcp_owner_by_proc(local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let find = |name: &str, local, remote| {
        let table = std::fs::read_to_string(format!("/proc/self/net/{name}")).ok()?;
        owner_in_table(&table, local, remote)
    };
    let of_ipv4 = || local.is_ipv4().then(|| find("tcp", local, remote)).flatten();
    // A client may connect to an IPv4 address from a socket of IPv6.
    of_ipv4().or_else(|| find("tcp6", mapped(local), mapped(remote)))
}

/// Returns an IPv4 address as one of IPv6 (RFC 4291 §2.5.5.2).
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Finds an established connection in the text of `/proc/net/tcp`.
fn owner_in_table(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let (local, remote) = (in_proc(local), in_proc(remote));
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // sl, local_address, rem_address, st, queues, timer, retrnsmt, uid, timeout, inode.
        let [_, from, to, "01", _, _, _, uid, _, inode, ..] = fields[..] else { return None };
        (from == local && to == remote && inode != "0").then(|| uid.parse().ok())?
    })
}

/// Returns an address as proc(5) writes it: words in the order of the host.
fn in_proc(address: SocketAddr) -> String {
    let word = |octets: &[u8]| {
        let octets: [u8; 4] = octets.try_into().unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(octets))
    };
    let words: String = match address.ip() {
        IpAddr::V4(v4) => word(&v4.octets()),
        IpAddr::V6(v6) => v6.octets().chunks(4).map(word).collect(),
    };
    format!("{words}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn an_open_end_has_its_user_and_a_closed_one_has_none() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (_server, _) = listener.accept().unwrap();
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let directory = TcpDirectory::open().unwrap();
            let own = Some(nix::unistd::Uid::effective().as_raw());
            assert_eq!(directory.owner(local, remote), own);
            assert_eq!(tcp_owner_by_proc(local, remote), own);
            if local.is_ipv4() {
                let table = "header\n 0: 0000000000000000FFFF00000100007F:0001 \
                             0000000000000000FFFF00000100007F:0002 01 0:0 0:0 0 71 0 9 1\n";
                let end = |port| mapped(SocketAddr::from(([127, 0, 0, 1], port)));
                assert_eq!(owner_in_table(table, end(1), end(2)), Some(71));
                assert_eq!(owner_in_table(table, end(2), end(1)), None);
            }
            drop(client);
            assert_eq!(directory.owner(local, remote), None);
            assert_eq!(tcp_owner_by_proc(local, remote), None);
        }
    }

    #[test]
    fn only_open_connections_have_facts() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let directory = TcpDirectory::open().unwrap();
            let facts = directory.facts(local, remote, None).unwrap();
            assert_eq!((facts.state.as_str(), facts.retransmits), ("ESTAB", 0));
            assert!(facts.rtt_ns > 0 && facts.rtt_ns < 1_000_000_000, "{facts:?}");
            let unused = SocketAddr::new(local.ip(), 1);
            assert_eq!(directory.facts(unused, remote, None), None);
            assert!(directory.facts(local, remote, None).is_some());
        }
    }
}
