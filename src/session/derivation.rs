//! Key derivation (RFC 4656 §3.1), which is slow on purpose, kept away from everything else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

use crate::{model::Secret, net::clock, wire::crypto::TokenKey};

/// Derives keys one at a time, in the order of the questions, on a thread of its own. Whoever asks
/// often waits longer: all of them together get a set share of one core, and not more may wait
/// than are told a number of.
#[derive(Debug)]
pub struct Derivation {
    /// When the next one may begin. Held until one has ended, also where nobody waits for it any more.
    next: Arc<Mutex<Option<Instant>>>,
    /// Rest after a derivation, as a multiple of how long it took.
    rest: u32,
    waiting: AtomicUsize,
    most_waiting: usize,
}

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
        Self::new(0, usize::MAX)
    }

    /// For the keys of strangers, who have proved nothing yet: a quarter of one core.
    pub fn of_server() -> Self {
        Self::new(3, 1024)
    }

    fn new(rest: u32, most_waiting: usize) -> Self {
        Self { next: Arc::default(), rest, waiting: AtomicUsize::new(0), most_waiting }
    }

    /// The keys of these secrets; `None` where too many wait already.
    pub(super) async fn derive(
        &self,
        secrets: Vec<Secret>,
        salt: [u8; 16],
        count: u32,
    ) -> Option<Vec<TokenKey>> {
        let before = self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.most_waiting {
            return None;
        }
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
            keys
        };
        tokio::task::spawn_blocking(derive).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    /// A stranger that comes and goes does not have two derived at once.
    #[tokio::test]
    async fn what_is_given_up_still_has_its_turn() {
        let derivation = Derivation::of_server();
        {
            let mut waiting = pin!(derivation.derive(vec![Secret::new("s")], [0; 16], 1 << 18));
            let begun = tokio::time::timeout(Duration::from_millis(5), &mut waiting).await;
            assert!(begun.is_err(), "it takes longer");
        }
        assert_eq!(derivation.waiting.load(Relaxed), 0);
        assert!(derivation.next.try_lock().is_err(), "it goes on, and the next one waits");
        let next = derivation.derive(vec![Secret::new("s")], [0; 16], 1).await;
        assert_eq!(next.map(|keys| keys.len()), Some(1));
    }

    #[tokio::test]
    async fn no_more_wait_than_are_told_a_number_of() {
        let derivation = Derivation { most_waiting: 0, ..Derivation::of_server() };
        assert!(derivation.derive(Vec::new(), [0; 16], 1).await.is_none());
    }
}
