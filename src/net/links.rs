//! Changes of links, addresses and routes of this host, reported by the kernel over netlink.

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

/// Multicast groups: links, addresses and routes of both families.
const GROUPS: [i32; 5] = [
    libc::RTMGRP_LINK,
    libc::RTMGRP_IPV4_IFADDR,
    libc::RTMGRP_IPV6_IFADDR,
    libc::RTMGRP_IPV4_ROUTE,
    libc::RTMGRP_IPV6_ROUTE,
];
/// Shortest pause between two notifications. After [`BURST`] notifications in a row, as on a router
/// with unstable routes, one notification follows in each [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);
const BURST: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Pause before the netlink socket is reopened after an error. It doubles up to [`MAX_RETRY_PAUSE`]
/// while the socket does not work at all, as in a sandbox without netlink.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(60);
/// Time for which a socket must be open before its failure counts as a new one.
const MIN_WORKING_TIME: Duration = Duration::from_secs(60);
/// Bytes read from the netlink socket at once.
const READ_BYTES: usize = 64 << 10;

/// Counters of changes. An increase notifies the receivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkChanges {
    /// Number of changes after which failed attempts may succeed: a link came up, or an address or
    /// a route was added.
    pub better: u64,
    /// Number of changes that may affect bound sockets: a link changed, or an address was removed.
    pub bound: u64,
}

/// Counts changes until `token` is cancelled.
pub async fn follow_network(changes: watch::Sender<NetworkChanges>, token: CancellationToken) {
    tokio::select! {
        () = token.cancelled() => {}
        () = follow(&changes) => {}
    }
}

async fn follow(changes: &watch::Sender<NetworkChanges>) {
    let mut failures = Failures::default();
    loop {
        let begun = Instant::now();
        if let Err(error) = listen(changes).await {
            if failures.must_log(&error, begun.elapsed()) {
                tracing::warn!(%error, "failed to follow network changes, retrying");
            } else {
                tracing::debug!(%error, "still failing to follow network changes");
            }
        }
        sleep(failures.pause).await;
    }
}

/// Failures of the netlink socket in a row.
#[derive(Debug)]
struct Failures {
    /// Error that was reported last.
    reported: Option<String>,
    pause: Duration,
}

impl Default for Failures {
    fn default() -> Self {
        Self { reported: None, pause: RETRY_PAUSE }
    }
}

impl Failures {
    /// Records a failure of a socket that had been open for `worked`. Returns true if it must be
    /// logged: a repeated error is logged once, until the socket has worked again.
    fn must_log(&mut self, error: &io::Error, worked: Duration) -> bool {
        if worked >= MIN_WORKING_TIME {
            *self = Self::default();
        }
        let error = Some(error.to_string());
        let must_log = self.reported != error;
        self.pause = if must_log { RETRY_PAUSE } else { MAX_RETRY_PAUSE.min(self.pause * 2) };
        self.reported = error;
        must_log
    }
}

async fn listen(changes: &watch::Sender<NetworkChanges>) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = GROUPS.iter().fold(0, |all, group| all | *group as u32);
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    // Routes have a rate limit of their own, so that unstable routes do not delay the notification
    // of a link or an address.
    let mut limit = RateLimit::new(Instant::now());
    let mut route_limit = RateLimit::new(Instant::now());
    let mut pending = News::NOTHING;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let limit = if pending == News::ROUTE { &mut route_limit } else { &mut limit };
        let due = limit.due();
        tokio::select! {
            received = socket.recv(&mut buffer) => {
                pending = pending.merge(match received {
                    Ok(()) => News::parse(&buffer),
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
                limit.record(Instant::now());
            }
        }
    }
}

/// Content of a batch of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct News {
    /// Link came up or address added.
    better: bool,
    route: bool,
    bound: bool,
}

impl News {
    const ANYTHING: Self = Self { better: true, route: true, bound: true };
    const ROUTE: Self = Self { better: false, route: true, bound: false };
    const NOTHING: Self = Self { better: false, route: false, bound: false };

    fn merge(self, other: Self) -> Self {
        Self {
            better: self.better || other.better,
            route: self.route || other.route,
            bound: self.bound || other.bound,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "other messages are irrelevant")]
    fn parse(mut messages: &[u8]) -> Self {
        let mut news = Self::NOTHING;
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(messages) {
            let len = (message.header.length as usize).next_multiple_of(4);
            news = news.merge(match message.payload {
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
            match messages.get(len..) {
                Some(rest) if len > 0 && !rest.is_empty() => messages = rest,
                _ => break,
            }
        }
        news
    }
}

/// Rate limit: [`BURST`] notifications, and one more for each [`MAX_PAUSE`] that passes.
#[derive(Debug)]
struct RateLimit {
    last: Option<Instant>,
    /// Time at which a whole burst is available again.
    full: Instant,
}

impl RateLimit {
    fn new(now: Instant) -> Self {
        Self { last: None, full: now }
    }

    fn due(&self) -> Instant {
        let spaced = self.last.map(|last| last + PAUSE);
        let burst = MAX_PAUSE * (BURST - 1);
        let left = self.full.checked_sub(burst);
        spaced.into_iter().chain(left).max().unwrap_or_else(Instant::now)
    }

    fn record(&mut self, now: Instant) {
        self.last = Some(now);
        self.full = self.full.max(now) + MAX_PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_limited_and_a_single_change_is_immediate() {
        let begun = Instant::now();
        let mut limit = RateLimit::new(begun);
        assert!(limit.due() <= begun);
        let mut notified = Vec::new();
        while begun.elapsed() < Duration::from_secs(60) {
            sleep_until(limit.due()).await;
            limit.record(Instant::now());
            notified.push(begun.elapsed());
        }
        assert!(notified[9] <= PAUSE * 10, "a burst: {notified:?}");
        assert!((18..26).contains(&notified.len()), "{notified:?}");
        sleep(MAX_PAUSE * 3).await;
        for _ in 0..3 {
            assert!(limit.due() <= Instant::now());
            limit.record(Instant::now());
            sleep(PAUSE).await;
        }
    }

    #[test]
    fn a_socket_that_never_works_is_reported_once() {
        let mut failures = Failures::default();
        let (lacking, short) = (io::ErrorKind::Unsupported, Duration::from_secs(1));
        assert!(failures.must_log(&lacking.into(), Duration::ZERO));
        for _ in 0..100 {
            assert!(!failures.must_log(&lacking.into(), short));
        }
        assert_eq!(failures.pause, MAX_RETRY_PAUSE);
        assert!(failures.must_log(&io::ErrorKind::OutOfMemory.into(), short), "another error");
        assert!(
            failures.must_log(&io::ErrorKind::OutOfMemory.into(), MIN_WORKING_TIME),
            "a new failure"
        );
        assert_eq!(failures.pause, RETRY_PAUSE);
    }

    #[test]
    fn unreadable_messages_are_ignored() {
        assert_eq!(News::parse(&[]), News::NOTHING);
        assert_eq!(News::parse(&[0; 64]), News::NOTHING);
        assert_eq!(News::parse(&[255; 64]), News::NOTHING);
    }
}
