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
/// The pause between two tellings, of which there may be so many in a row: links, addresses and routes
/// that come one by one are told each. Where changes go on, as they do on a router whose routes are in
/// motion, it is one in each longest pause.
const PAUSE: Duration = Duration::from_millis(50);
const IN_A_ROW: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
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
    // Routes that are in motion elsewhere do not hold up a link or an address.
    let (mut pace, mut pace_of_routes) = (Pace::new(Instant::now()), Pace::new(Instant::now()));
    let mut pending = News::NOTHING;
    let mut buffer = Vec::with_capacity(READ_OCTETS);
    loop {
        let pace = if pending == News::ROUTE { &mut pace_of_routes } else { &mut pace };
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
            () = sleep_until(due), if pending != News::NOTHING => {
                let news = std::mem::replace(&mut pending, News::NOTHING);
                changes.send_modify(|changes| {
                    changes.better += u64::from(news.better || news.route);
                    changes.bound += u64::from(news.bound);
                });
                pace.told(Instant::now());
            }
        }
    }
}

/// What a batch of messages tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct News {
    /// A link or an address came.
    better: bool,
    /// A route came.
    route: bool,
    bound: bool,
}

impl News {
    const ANYTHING: Self = Self { better: true, route: true, bound: true };
    const ROUTE: Self = Self { better: false, route: true, bound: false };
    const NOTHING: Self = Self { better: false, route: false, bound: false };

    fn and(self, other: Self) -> Self {
        Self {
            better: self.better || other.better,
            route: self.route || other.route,
            bound: self.bound || other.bound,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the kernel tells of much else")]
    fn of(mut octets: &[u8]) -> Self {
        let mut news = Self::NOTHING;
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(octets) {
            let length = (message.header.length as usize).next_multiple_of(4);
            news = news.and(match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Self {
                    better: link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
                    bound: true,
                    ..Self::NOTHING
                },
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::DelLink(_) | RouteNetlinkMessage::DelAddress(_),
                ) => Self { bound: true, ..Self::NOTHING },
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(_)) => {
                    Self { better: true, ..Self::NOTHING }
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(_)) => Self::ROUTE,
                _ => Self::NOTHING,
            });
            match octets.get(length..) {
                Some(rest) if length > 0 && !rest.is_empty() => octets = rest,
                _ => break,
            }
        }
        news
    }
}

/// How often it is told: [`IN_A_ROW`] times, and once more for each longest pause that passes.
#[derive(Debug)]
struct Pace {
    last: Option<Instant>,
    /// When there may be all of a row again.
    full: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { last: None, full: now }
    }

    fn due(&self) -> Instant {
        let spaced = self.last.map(|last| last + PAUSE);
        let rest = LONGEST_PAUSE * (IN_A_ROW - 1);
        let left = self.full.checked_sub(rest);
        spaced.into_iter().chain(left).max().unwrap_or_else(Instant::now)
    }

    fn told(&mut self, now: Instant) {
        self.last = Some(now);
        self.full = self.full.max(now) + LONGEST_PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_told_ever_less_often_and_a_lone_change_at_once() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        assert!(pace.due() <= begun);
        let mut told = Vec::new();
        while begun.elapsed() < Duration::from_secs(60) {
            sleep_until(pace.due()).await;
            pace.told(Instant::now());
            told.push(begun.elapsed());
        }
        assert!(told[9] <= PAUSE * 10, "a row: {told:?}");
        assert!((18..26).contains(&told.len()), "{told:?}");
        sleep(LONGEST_PAUSE * 3).await;
        for _ in 0..3 {
            assert!(pace.due() <= Instant::now());
            pace.told(Instant::now());
            sleep(PAUSE).await;
        }
    }

    #[test]
    fn nonsense_is_no_news() {
        assert_eq!(News::of(&[]), News::NOTHING);
        assert_eq!(News::of(&[0; 64]), News::NOTHING);
        assert_eq!(News::of(&[255; 64]), News::NOTHING);
    }
}
