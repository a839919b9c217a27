//! Key derivation (RFC 4656 §3.1), which is slow on purpose, isolated from everything else.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

use crate::{model::Secret, net::clock, wire::crypto::TokenKey};

/// Queue of key derivations, run one at a time on a blocking thread.
///
/// Hosts take turns: one that asks often delays only itself. All derivations together use a
/// limited share of one core, and the length of the queue is limited.
#[derive(Debug)]
pub struct Derivation {
    /// Lock of each host: one request of the host competes for `next`, the others wait for this
    /// lock.
    turns: Turns,
    /// Earliest start of the next derivation. Locked until the running one ends, even if its
    /// requester has gone.
    next: Arc<Mutex<Option<Instant>>>,
    /// Pause after a derivation, as a multiple of its duration.
    pause_factor: u32,
    waiting: AtomicUsize,
    max_waiting: usize,
    /// Limit of waiting requests of one host.
    max_waiting_per_host: usize,
}

type Turns = std::sync::Mutex<HashMap<IpAddr, Arc<Mutex<()>>>>;

/// Counts a waiting request for its lifetime.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Derivation {
    /// Creates the queue for outgoing connections: one core, unlimited length.
    pub fn for_clients() -> Self {
        Self::new(0, usize::MAX, usize::MAX)
    }

    /// Creates the queue for unauthenticated clients: a quarter of one core.
    pub fn for_server() -> Self {
        Self::new(3, 1024, 128)
    }

    fn new(pause_factor: u32, max_waiting: usize, max_waiting_per_host: usize) -> Self {
        let (turns, next, waiting) = (Turns::default(), Arc::default(), AtomicUsize::new(0));
        Self { turns, next, pause_factor, waiting, max_waiting, max_waiting_per_host }
    }

    /// Derives the keys of `secrets` for a host; `None` when too many requests are waiting.
    pub(super) async fn derive(
        &self,
        host: IpAddr,
        secrets: Vec<Secret>,
        salt: [u8; 16],
        count: u32,
    ) -> Option<Vec<TokenKey>> {
        let before = self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.max_waiting {
            return None;
        }
        let turn = self.turn(host);
        // One of the references belongs to the table.
        if Arc::strong_count(&turn) - 1 > self.max_waiting_per_host {
            return None;
        }
        let turn = turn.lock_owned().await;
        let mut next = self.next.clone().lock_owned().await;
        if let Some(at) = *next {
            sleep_until(at).await;
        }
        let pause_factor = self.pause_factor;
        let derive = move || {
            let begun = clock::monotonic();
            let derive = |secret: &Secret| TokenKey::derive(secret.octets(), &salt, count);
            let keys: Vec<TokenKey> = secrets.iter().map(derive).collect();
            let took = Duration::from_nanos(clock::monotonic().since_ns(begun));
            *next = Some(Instant::now() + took * pause_factor);
            drop((next, turn));
            keys
        };
        tokio::task::spawn_blocking(derive).await.ok()
    }

    fn turn(&self, host: IpAddr) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(network(host)).or_default().clone()
    }
}

/// Returns the network that counts as one host: a /64 for IPv6, which one host can occupy.
fn network(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(_) => host,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    use futures_util::{StreamExt, stream::FuturesUnordered};

    fn host(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    /// Sixty-four requests of one host, then one of another.
    #[tokio::test]
    async fn hosts_take_turns() {
        let derivation = Derivation { pause_factor: 0, ..Derivation::for_server() };
        let ask =
            |number| derivation.derive(host(number), vec![Secret::new("s")], [0; 16], 1 << 14);
        let mut answered = Vec::new();
        let mut questions = FuturesUnordered::new();
        for number in [vec![1; 64], vec![2]].concat() {
            questions.push(async move { ask(number).await.map(|_| number) });
        }
        while let Some(number) = questions.next().await {
            answered.push(number);
        }
        let at = answered.iter().position(|number| *number == Some(2));
        assert!(at.is_some_and(|at| at <= 2), "{answered:?}");
        assert_eq!(answered.len(), 65);
        drop(questions);
        derivation.turn(host(3));
        let turns = derivation.turns.lock().unwrap().len();
        assert_eq!(turns, 1, "turns without waiters are dropped");
    }

    #[test]
    fn an_ipv6_network_counts_as_one_host() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
    }

    /// A client that reconnects cannot have two derivations run at once.
    #[tokio::test]
    async fn an_abandoned_derivation_occupies_its_turn() {
        let derivation = Derivation::for_server();
        {
            let mut waiting =
                pin!(derivation.derive(host(1), vec![Secret::new("s")], [0; 16], 1 << 18));
            let begun = tokio::time::timeout(Duration::from_millis(5), &mut waiting).await;
            assert!(begun.is_err(), "the derivation takes longer");
        }
        assert_eq!(derivation.waiting.load(Relaxed), 0);
        assert!(
            derivation.next.try_lock().is_err(),
            "the derivation goes on and the next one waits"
        );
        let next = derivation.derive(host(1), vec![Secret::new("s")], [0; 16], 1).await;
        assert_eq!(next.map(|keys| keys.len()), Some(1));
    }

    /// One host cannot occupy the whole queue.
    #[tokio::test]
    async fn one_host_cannot_fill_the_queue() {
        let derivation = Derivation::for_server();
        let ask = |number| derivation.derive(host(number), vec![Secret::new("s")], [0; 16], 1024);
        let mut questions: FuturesUnordered<_> = (0..1100).map(|_| ask(1)).collect();
        let mut refused = 0;
        let other = ask(2);
        tokio::pin!(other);
        let keys = loop {
            tokio::select! {
                biased;
                Some(keys) = questions.next() => refused += usize::from(keys.is_none()),
                keys = &mut other => break keys,
            }
        };
        assert!(keys.is_some());
        assert!(refused >= 1100 - 2 * derivation.max_waiting_per_host, "{refused}");
    }

    #[tokio::test]
    async fn the_queue_is_limited() {
        let derivation = Derivation { max_waiting: 0, ..Derivation::for_server() };
        assert!(derivation.derive(host(1), Vec::new(), [0; 16], 1).await.is_none());
    }
}
