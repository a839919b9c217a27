//! Key derivation (RFC 4656 §3.1), which is slow on purpose, kept away from everything else.

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

/// Derives keys one at a time on a thread of its own. The hosts that ask take turns, so that one
/// that asks often waits for itself and not the others for it: all of them together get a set share
/// of one core, and not more may wait than are told a number of.
#[derive(Debug)]
pub struct Derivation {
    /// Each host that asks has one question in the queue of all, and the others behind it here.
    turns: Turns,
    /// When the next one may begin. Held until one has ended, also where nobody waits for it any more.
    next: Arc<Mutex<Option<Instant>>>,
    /// Rest after a derivation, as a multiple of how long it took.
    rest: u32,
    waiting: AtomicUsize,
    most_waiting: usize,
    /// Of one host.
    most_of_a_host: usize,
}

type Turns = std::sync::Mutex<HashMap<IpAddr, Arc<Mutex<()>>>>;

/// One that waits, for as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Derivation {
    /// For the keys of this host's own connections: one core, and all may wait.
    pub fn of_clients() -> Self {
        Self::new(0, usize::MAX, usize::MAX)
    }

    /// For the keys of strangers, who have proved nothing yet: a quarter of one core.
    pub fn of_server() -> Self {
        Self::new(3, 1024, 128)
    }

    fn new(rest: u32, most_waiting: usize, most_of_a_host: usize) -> Self {
        let (turns, next, waiting) = (Turns::default(), Arc::default(), AtomicUsize::new(0));
        Self { turns, next, rest, waiting, most_waiting, most_of_a_host }
    }

    /// The keys of these secrets, for `asker`; `None` where too many wait already.
    pub(super) async fn derive(
        &self,
        asker: IpAddr,
        secrets: Vec<Secret>,
        salt: [u8; 16],
        count: u32,
    ) -> Option<Vec<TokenKey>> {
        let before = self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.most_waiting {
            return None;
        }
        let turn = self.turn(asker);
        // One is that of the table.
        if Arc::strong_count(&turn) - 1 > self.most_of_a_host {
            return None;
        }
        let turn = turn.lock_owned().await;
        let mut next = self.next.clone().lock_owned().await;
        if let Some(at) = *next {
            sleep_until(at).await;
        }
        let rest = self.rest;
        let derive = move || {
            let begun = clock::monotonic();
            let derive = |secret: &Secret| TokenKey::derive(secret.octets(), &salt, count);
            let keys: Vec<TokenKey> = secrets.iter().map(derive).collect();
            let took = Duration::from_nanos(clock::monotonic().since_ns(begun));
            *next = Some(Instant::now() + took * rest);
            drop((next, turn));
            keys
        };
        tokio::task::spawn_blocking(derive).await.ok()
    }

    fn turn(&self, asker: IpAddr) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(network(asker)).or_default().clone()
    }
}

/// What counts as one host: of IPv6, all that one host can take for itself.
fn network(asker: IpAddr) -> IpAddr {
    match asker {
        IpAddr::V4(_) => asker,
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

    /// Sixty-four questions of one host, each of some milliseconds, and then one of another.
    #[tokio::test]
    async fn hosts_take_turns() {
        let derivation = Derivation { rest: 0, ..Derivation::of_server() };
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
        assert_eq!(turns, 1, "those that nobody waits for are forgotten");
    }

    #[test]
    fn a_host_is_a_network_of_ipv6() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
    }

    /// A stranger that comes and goes does not have two derived at once.
    #[tokio::test]
    async fn what_is_given_up_still_has_its_turn() {
        let derivation = Derivation::of_server();
        {
            let mut waiting =
                pin!(derivation.derive(host(1), vec![Secret::new("s")], [0; 16], 1 << 18));
            let begun = tokio::time::timeout(Duration::from_millis(5), &mut waiting).await;
            assert!(begun.is_err(), "it takes longer");
        }
        assert_eq!(derivation.waiting.load(Relaxed), 0);
        assert!(derivation.next.try_lock().is_err(), "it goes on, and the next one waits");
        let next = derivation.derive(host(1), vec![Secret::new("s")], [0; 16], 1).await;
        assert_eq!(next.map(|keys| keys.len()), Some(1));
    }

    /// One host that takes all the places that it gets leaves some to the others.
    #[tokio::test]
    async fn a_host_does_not_take_all_places() {
        let derivation = Derivation::of_server();
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
        assert!(refused >= 1100 - 2 * derivation.most_of_a_host, "{refused}");
    }

    #[tokio::test]
    async fn no_more_wait_than_are_told_a_number_of() {
        let derivation = Derivation { most_waiting: 0, ..Derivation::of_server() };
        assert!(derivation.derive(host(1), Vec::new(), [0; 16], 1).await.is_none());
    }
}
