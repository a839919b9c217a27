//! A connection to the API over TCP, TLS or a Unix socket.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::{Extensions, transport::server::Connected};

/// Address and identity of a client of the API.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Address and port, or `unix`.
    pub(super) address: String,
    /// Common name of the client's certificate.
    pub(super) common_name: Option<String>,
}

/// Returns the author that is recorded with a change.
pub(super) fn author(extensions: &Extensions) -> String {
    extensions.get::<Peer>().map_or_else(String::new, |peer| {
        peer.common_name.clone().unwrap_or_else(|| peer.address.clone())
    })
}

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Transport of a connection: TCP, TLS or a Unix socket.
pub(super) struct Connection {
    io: Box<dyn Io>,
    peer: Peer,
}

impl Connection {
    pub(super) fn new(io: impl Io + 'static, peer: Peer) -> Self {
        Self { io: Box::new(io), peer }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
