//! Changes of this host's network: links, addresses and routes, as the kernel tells of them.

use std::{io, time::Duration};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkFlags};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use nix::libc;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// What is asked for: links, addresses and routes of both families.
const GROUPS: [i32; 5] = [
    libc::RTMGRP_LINK,
    libc::RTMGRP_IPV4_IFADDR,
    libc::RTMGRP_IPV6_IFADDR,
    libc::RTMGRP_IPV4_ROUTE,
    libc::RTMGRP_IPV6_ROUTE,
];
/// The pause between two tellings. It doubles while changes go on, as they do on a router whose
/// routes are in motion, and is short again after a rest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_secs(10);
/// When the kernel's messages are asked for again after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// Octets of the messages that are read at once.
const READ_OCTETS: usize = 64 << 10;

/// Counts what was told; a change of a number is the news.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkChanges {
    /// A link came up, or an address or a route came: what failed may go now.
    pub better: u64,
    /// A link went or came, or an address went: what is bound to it may have lost it.
    pub bound: u64,
}

/// Tells of changes until `token` is cancelled.
pub async fn follow_network(changes: watch::Sender<NetworkChanges>, token: CancellationToken) {
    tokio::select! {
        () = token.cancelled() => {}
        () = follow(&changes) => {}
    }
}

async fn follow(changes: &watch::Sender<NetworkChanges>) {
    loop {
        if let Err(error) = listen(changes).await {
            tracing::warn!(%error, "changes of the network are not told; trying again");
        }
        sleep(AGAIN).await;
    }
}

async fn listen(changes: &watch::Sender<NetworkChanges>) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = GROUPS.iter().fold(0, |all, group| all | *group as u32);
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    let mut pace = Pace::default();
    let mut pending = News::default();
    let mut buffer = Vec::with_capacity(READ_OCTETS);
    loop {
        let due = pace.due();
        tokio::select! {
            received = socket.recv(&mut buffer) => {
                pending = pending.and(match received {
                    Ok(()) => News::of(&buffer),
                    // Messages were lost: anything may have changed.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => News::ANYTHING,
                    Err(error) => return Err(error),
                });
                buffer.clear();
            }
            () = sleep_until(due), if pending != News::default() => {
                let news = std::mem::take(&mut pending);
                changes.send_modify(|changes| {
                    changes.better += u64::from(news.better);
                    changes.bound += u64::from(news.bound);
                });
                pace.told();
            }
        }
    }
}

/// What a batch of messages tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct News {
    better: bool,
    bound: bool,
}

impl News {
    const ANYTHING: Self = Self { better: true, bound: true };

    fn and(self, other: Self) -> Self {
        Self { better: self.better || other.better, bound: self.bound || other.bound }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the kernel tells of much else")]
    fn of(mut octets: &[u8]) -> Self {
        let mut news = Self::default();
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(octets) {
            let length = (message.header.length as usize).next_multiple_of(4);
            news = news.and(match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Self {
                    better: link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
                    bound: true,
                },
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::DelLink(_) | RouteNetlinkMessage::DelAddress(_),
                ) => Self { better: false, bound: true },
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::NewRoute(_),
                ) => Self { better: true, bound: false },
                _ => Self::default(),
            });
            match octets.get(length..) {
                Some(rest) if length > 0 && !rest.is_empty() => octets = rest,
                _ => break,
            }
        }
        news
    }
}

/// How often it is told.
#[derive(Debug)]
struct Pace {
    last: Option<Instant>,
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { last: None, pause: FIRST_PAUSE }
    }
}

impl Pace {
    fn due(&self) -> Instant {
        self.last.map_or_else(Instant::now, |last| last + self.pause)
    }

    fn told(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last {
            let rested = now.duration_since(last) >= REST;
            self.pause = if rested { FIRST_PAUSE } else { (self.pause * 2).min(LONGEST_PAUSE) };
        }
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_told_ever_less_often_and_a_lone_change_at_once() {
        let mut pace = Pace::default();
        let begun = Instant::now();
        assert_eq!(pace.due(), begun);
        let mut told = 0;
        while begun.elapsed() < Duration::from_secs(60) {
            sleep_until(pace.due()).await;
            pace.told();
            told += 1;
        }
        assert!((15..25).contains(&told), "{told}");
        sleep(REST).await;
        assert!(pace.due() <= Instant::now());
        pace.told();
        assert_eq!(pace.due(), Instant::now() + FIRST_PAUSE);
    }

    #[test]
    fn nonsense_is_no_news() {
        assert_eq!(News::of(&[]), News::default());
        assert_eq!(News::of(&[0; 64]), News::default());
        assert_eq!(News::of(&[255; 64]), News::default());
    }
}
