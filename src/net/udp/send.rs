//! Batched sending of replies.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::atomic::Ordering::Relaxed,
};

use arrayvec::ArrayVec;
use nix::{
    libc,
    sys::socket::{ControlMessage, MsgFlags, MultiHeaders, sendmmsg},
};

use super::{
    PacketHandler, PreparedReply, TestSocket,
    receive::{BATCH, FamilyAddress, Scratch, SendHeaders},
};

/// A reply to be sent.
#[derive(Clone, Copy)]
pub(super) struct Reply<T> {
    /// Index of the buffer that holds the reply.
    pub(super) buffer: usize,
    pub(super) prepared: PreparedReply<T>,
    pub(super) to: SocketAddr,
    pub(super) from: IpAddr,
    pub(super) interface_index: u32,
}

impl<T> Reply<T> {
    /// Returns the properties that all packets of one system call share.
    fn route(&self) -> (u8, IpAddr, u32) {
        (self.prepared.tos, self.from, self.interface_index)
    }
}

impl TestSocket {
    /// Sends replies in runs that share TOS and source address; returns the number that failed.
    pub(super) fn send_replies<H: PacketHandler>(
        &self,
        queue: &[Reply<H::ReplyToken>],
        scratch: &mut Scratch,
        handler: &mut H,
    ) -> usize {
        let Scratch { replies: buffers, out, .. } = scratch;
        let mut failed = 0;
        for run in queue.chunk_by(|a, b| a.route() == b.route()) {
            if let Err(error) = self.set_tos(run[0].prepared.tos) {
                tracing::debug!(%error, "failed to set TOS of replies");
            }
            for Reply { buffer, prepared, to, .. } in run {
                let reply = &mut buffers[*buffer][..prepared.len];
                handler.finish(*to, prepared.token, reply);
            }
            let mut unsent = run;
            while !unsent.is_empty() {
                match self.send_run(unsent, buffers, out) {
                    Ok(sent) => unsent = &unsent[sent.clamp(1, unsent.len())..],
                    // The kernel returns the error of the first packet in the run.
                    Err(_) => {
                        failed += 1;
                        unsent = &unsent[1..];
                    }
                }
            }
        }
        failed
    }

    fn set_tos(&self, tos: u8) -> io::Result<()> {
        if self.tos.load(Relaxed) == tos {
            return Ok(());
        }
        if self.local.is_ipv4() {
            self.io.set_tos_v4(tos.into())?;
        } else {
            self.io.set_tclass_v6(tos.into())?;
        }
        self.tos.store(tos, Relaxed);
        Ok(())
    }

    fn send_run<T>(
        &self,
        run: &[Reply<T>],
        buffers: &[Vec<u8>],
        out: &mut SendHeaders,
    ) -> io::Result<usize> {
        if !self.any_address {
            return if self.local.is_ipv4() {
                self.send_all(run, buffers, &mut out.v4, &[])
            } else {
                self.send_all(run, buffers, &mut out.v6, &[])
            };
        }
        match run[0].from {
            IpAddr::V4(from) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let cmsgs = [ControlMessage::Ipv4PacketInfo(&info)];
                self.send_all(run, buffers, &mut out.from_v4, &cmsgs)
            }
            IpAddr::V6(from) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                    ipi6_ifindex: run[0].interface_index,
                };
                let cmsgs = [ControlMessage::Ipv6PacketInfo(&info)];
                self.send_all(run, buffers, &mut out.from_v6, &cmsgs)
            }
        }
    }

    fn send_all<T, S: FamilyAddress>(
        &self,
        run: &[Reply<T>],
        buffers: &[Vec<u8>],
        headers: &mut MultiHeaders<S>,
        cmsgs: &[ControlMessage<'_>],
    ) -> io::Result<usize> {
        let slices: ArrayVec<[IoSlice<'_>; 1], BATCH> =
            run.iter().map(|r| [IoSlice::new(&buffers[r.buffer][..r.prepared.len])]).collect();
        let addresses: ArrayVec<Option<S>, BATCH> =
            run.iter().map(|reply| S::from_std(reply.to)).collect();
        let (fd, flags) = (self.io.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        Ok(sendmmsg(fd, headers, &slices, &addresses, cmsgs, flags)?.count())
    }
}
