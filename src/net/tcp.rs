//! TCP sockets of control connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpSocket;
pub use tokio::net::{TcpListener, TcpStream};

use super::{
    families::all_addresses,
    host::{check_file_limit, scoped},
};
use crate::model::{Dscp, Keepalive, ZonedAddress};

/// Length of the accept queue.
const BACKLOG: i32 = 1024;

/// Options of an outgoing control connection.
#[derive(Clone, Debug)]
pub struct ConnectOptions<'a> {
    /// Source address; `None` leaves the choice to routing.
    pub source: Option<IpAddr>,
    /// Network interface to bind to.
    pub interface: Option<&'a str>,
    /// DSCP of all packets, including the SYN.
    pub dscp: Dscp,
    /// Keepalive and user timeout.
    pub keepalive: Keepalive,
}

/// Opens a control connection.
pub async fn connect(target: SocketAddr, options: &ConnectOptions<'_>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    check_file_limit(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(options.interface.map(str::as_bytes))?;
    set_dscp(&SockRef::from(&socket), target.is_ipv4(), options.dscp)?;
    if let Some(source) = options.source {
        // With port 0 the kernel chooses the port at the connect, so that one port can serve
        // several destinations.
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    set_keepalive(&SockRef::from(&socket), options.keepalive)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects to an address on the link of its zone, which is looked up now.
pub async fn connect_zoned(target: &ZonedAddress) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(scoped(target)?).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sets DSCP and keepalive of an open connection.
pub fn set_options(stream: &TcpStream, dscp: Dscp, keepalive: Keepalive) -> io::Result<()> {
    let socket = SockRef::from(stream);
    set_dscp(&socket, stream.local_addr()?.is_ipv4(), dscp)?;
    set_keepalive(&socket, keepalive)
}

fn set_dscp(socket: &SockRef<'_>, is_ipv4: bool, dscp: Dscp) -> io::Result<()> {
    if is_ipv4 {
        socket.set_tos_v4(dscp.tos().into())
    } else {
        socket.set_tclass_v6(dscp.tos().into())
    }
}

/// Opens a listening socket.
pub fn listen(address: SocketAddr, interface: Option<&str>) -> io::Result<TcpListener> {
    let socket = bind(address, interface)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Binds a TCP socket without listening.
pub(super) fn bind(address: SocketAddr, interface: Option<&str>) -> io::Result<Socket> {
    let address = all_addresses(address);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(interface.map(str::as_bytes))?;
    if address.is_ipv6() {
        // `::` accepts both families.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Sets the options of an accepted connection. Fails if the connection exceeds the limit of open
/// files.
pub fn prepare_accepted(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    check_file_limit(stream)?;
    stream.set_nodelay(true)?;
    keep_alive(stream, keepalive)
}

/// Sets keepalive on an open connection.
pub fn keep_alive(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    set_keepalive(&SockRef::from(stream), keepalive)
}

/// Sets keepalive and the user timeout, which replaces keepalive while sent data is unacknowledged.
/// Each ends the connection after the same time.
fn set_keepalive(socket: &SockRef<'_>, keepalive: Keepalive) -> io::Result<()> {
    let Keepalive { idle_ns, interval_ns, count } = keepalive;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_nanos(idle_ns))
            .with_interval(Duration::from_nanos(interval_ns))
            .with_retries(count),
    )?;
    let limit = idle_ns.saturating_add(interval_ns.saturating_mul(count.into()));
    socket.set_tcp_user_timeout(Some(Duration::from_nanos(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_carry_keepalive_and_user_timeout() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let keepalive = Keepalive { idle_ns: 10_000_000_000, interval_ns: 3_000_000_000, count: 4 };
        let options =
            ConnectOptions { source: None, interface: None, dscp: Dscp::default(), keepalive };
        let client = connect(listener.local_addr().unwrap(), &options).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        prepare_accepted(&server, keepalive).unwrap();
        for stream in [&client, &server] {
            let socket = SockRef::from(stream);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(10));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(3));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(22)));
        }
    }
}
