//! Batches out.

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
    Answer, Answered, TestSocket,
    receive::{BATCH, Peer, Scratch, SendHeaders},
};

/// An answer on its way.
#[derive(Clone, Copy)]
pub(super) struct Reply<T> {
    /// Which of the buffers holds it.
    pub(super) buffer: usize,
    pub(super) answered: Answered<T>,
    pub(super) to: SocketAddr,
    pub(super) from: Option<IpAddr>,
    /// See [`super::PacketInfo::interface_index`].
    pub(super) interface_index: u32,
}

impl<T> Reply<T> {
    /// What packets that are sent together have in common.
    fn way(&self) -> (u8, Option<IpAddr>, u32) {
        (self.answered.tos, self.from, self.interface_index)
    }
}

impl TestSocket {
    /// Sends replies in runs that share TOS and source address; returns how many were not taken.
    pub(super) fn send_replies<A: Answer>(
        &self,
        queue: &[Reply<A::Ticket>],
        scratch: &mut Scratch,
        answers: &mut A,
    ) -> usize {
        let Scratch { replies: buffers, out, .. } = scratch;
        let mut failed = 0;
        for run in queue.chunk_by(|a, b| a.way() == b.way()) {
            if let Err(error) = self.set_tos(run[0].answered.tos) {
                tracing::debug!(%error, "cannot set the TOS of replies");
            }
            for Reply { buffer, answered, to, .. } in run {
                let reply = &mut buffers[*buffer][..answered.octets];
                answers.finish(*to, answered.ticket, reply);
            }
            let mut rest = run;
            while !rest.is_empty() {
                match self.send_run(rest, buffers, out) {
                    Ok(sent) => rest = &rest[sent.clamp(1, rest.len())..],
                    // The first packet is the one that was refused.
                    Err(_) => {
                        failed += 1;
                        rest = &rest[1..];
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
        match run[0].from.filter(|_| self.any_address) {
            None if self.local.is_ipv4() => self.send_all(run, buffers, &mut out.v4, &[]),
            None => self.send_all(run, buffers, &mut out.v6, &[]),
            Some(IpAddr::V4(from)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let cmsgs = [ControlMessage::Ipv4PacketInfo(&info)];
                self.send_all(run, buffers, &mut out.from_v4, &cmsgs)
            }
            Some(IpAddr::V6(from)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                    ipi6_ifindex: run[0].interface_index,
                };
                let cmsgs = [ControlMessage::Ipv6PacketInfo(&info)];
                self.send_all(run, buffers, &mut out.from_v6, &cmsgs)
            }
        }
    }

    fn send_all<T, S: Peer>(
        &self,
        run: &[Reply<T>],
        buffers: &[Vec<u8>],
        headers: &mut MultiHeaders<S>,
        cmsgs: &[ControlMessage<'_>],
    ) -> io::Result<usize> {
        let slices: ArrayVec<[IoSlice<'_>; 1], BATCH> =
            run.iter().map(|r| [IoSlice::new(&buffers[r.buffer][..r.answered.octets])]).collect();
        let addresses: ArrayVec<Option<S>, BATCH> =
            run.iter().map(|reply| S::of(reply.to)).collect();
        let (fd, flags) = (self.io.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        Ok(sendmmsg(fd, headers, &slices, &addresses, cmsgs, flags)?.count())
    }
}
