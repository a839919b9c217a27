//! Requests that were answered, for when one comes again.

use std::collections::{HashMap, VecDeque};

use crate::{
    proto::ApplyConfigResponse,
    store::{ConfigStore, StoreError},
};

/// Requests that are remembered; as many as there may be kept revisions, and some without one.
const REMEMBERED: usize = 256;

/// By request_id; with the order in which they came, to forget the oldest.
#[derive(Debug, Default)]
pub(super) struct Answered {
    all: HashMap<String, (String, ApplyConfigResponse)>,
    order: VecDeque<String>,
}

impl Answered {
    /// Those of the store.
    pub(super) fn load(store: &ConfigStore) -> Result<Self, StoreError> {
        let mut answered = Self::default();
        for stored in store.answers()? {
            if let Some(answer) = stored.answer {
                answered.keep(stored.request_id, stored.digest, answer);
            }
        }
        for revision in store.revisions()?.into_iter().rev() {
            if revision.request_id.is_empty() {
                continue;
            }
            let Ok(Some(stored)) = store.revision(revision.revision) else { continue };
            if let Some(answer) = stored.answer {
                answered.keep(revision.request_id, stored.request_digest, answer);
            }
        }
        Ok(answered)
    }

    /// The answer to a request, with the digest of what it said.
    pub(super) fn get(&self, request_id: &str) -> Option<&(String, ApplyConfigResponse)> {
        self.all.get(request_id)
    }

    pub(super) fn keep(&mut self, request_id: String, digest: String, answer: ApplyConfigResponse) {
        self.order.push_back(request_id.clone());
        self.all.insert(request_id, (digest, answer));
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }
}
