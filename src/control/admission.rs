//! Limit on requests to change the configuration, which have megabytes each.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that are received, decoded and worked on at a time.
const REQUESTS: usize = 4;

/// Turns of requests. A caller that gives up before its turn costs nothing.
#[derive(Clone, Debug)]
pub struct Admissions(Arc<Semaphore>);

/// Turn of one request, over when the last clone is dropped. It accompanies the request to the commit
/// actor, which may still work on it after the caller has given up.
#[derive(Clone, Debug, Default)]
pub struct Admission(#[expect(dead_code, reason = "held")] Option<Arc<OwnedSemaphorePermit>>);

impl Default for Admissions {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(REQUESTS)))
    }
}

impl Admissions {
    /// Waits for the turn of a request.
    pub async fn admit(&self) -> Admission {
        Admission(self.0.clone().acquire_owned().await.ok().map(Arc::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn turns_are_limited_and_end_with_the_last_clone() {
        let admissions = Admissions::default();
        let mut admitted: Vec<Admission> =
            (0..REQUESTS).map(|_| admissions.admit().now_or_never().unwrap()).collect();
        let clone = admitted[0].clone();
        assert!(admissions.admit().now_or_never().is_none());
        admitted.remove(0);
        assert!(admissions.admit().now_or_never().is_none(), "the clone is worked on");
        drop(clone);
        assert!(admissions.admit().now_or_never().is_some());
    }
}
