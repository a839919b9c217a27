//! A connection to the API over TCP, TLS or a Unix socket.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::identity::Origin;

/// Octets with which a client begins (RFC 9113 §3.4).
const PREFACE_OCTETS: usize = 24;

/// Client of the API.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Address and port, or `unix`.
    pub(super) address: String,
    pub(super) origin: Origin,
}

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Transport of a connection: TCP, TLS or a Unix socket.
pub(super) struct Connection {
    io: Box<dyn Io>,
    peer: Peer,
    preface: Preface,
}

/// Progress of the connection preface: the octets that were read, up to its length.
#[derive(Clone, Debug, Default)]
pub(super) struct Preface(Arc<AtomicUsize>);

impl Preface {
    pub(super) fn is_complete(&self) -> bool {
        self.0.load(Relaxed) >= PREFACE_OCTETS
    }
}

impl Connection {
    pub(super) fn new(io: impl Io + 'static, peer: Peer) -> Self {
        Self { io: Box::new(io), peer, preface: Preface::default() }
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer.clone()
    }

    pub(super) fn preface(&self) -> Preface {
        self.preface.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if !self.preface.is_complete() {
            self.preface.0.fetch_add(buffer.filled().len() - before, Relaxed);
        }
        polled
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
