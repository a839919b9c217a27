//! Answers to requests with a `request_id`. A repeated request gets the same answer again.

use std::collections::{HashMap, VecDeque};

use crate::{
    proto::ApplyConfigResponse,
    store::{ConfigStore, StoreError},
};

/// Number of answers kept: one for each stored revision, and some to requests that made no revision.
const ANSWERS_KEPT: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Digest of the request and answer, by `request_id`.
    by_request: HashMap<String, (String, ApplyConfigResponse)>,
    /// Request identifiers, oldest answer first.
    order: VecDeque<String>,
}

impl Answers {
    pub(super) fn load(store: &ConfigStore) -> Result<Self, StoreError> {
        let mut answers = Self::default();
        for stored in store.answers()? {
            if let Some(answer) = stored.answer {
                answers.insert(stored.request_id, stored.digest, answer);
            }
        }
        for revision in store.revisions()?.into_iter().rev() {
            if revision.request_id.is_empty() {
                continue;
            }
            let Ok(Some(stored)) = store.revision(revision.revision) else { continue };
            if let Some(answer) = stored.answer {
                answers.insert(revision.request_id, stored.request_digest, answer);
            }
        }
        Ok(answers)
    }

    /// Returns the answer to a request and the digest of that request.
    pub(super) fn get(&self, request_id: &str) -> Option<&(String, ApplyConfigResponse)> {
        self.by_request.get(request_id)
    }

    /// Keeps an answer in place of the oldest one if there are too many.
    pub(super) fn insert(
        &mut self,
        request_id: String,
        digest: String,
        answer: ApplyConfigResponse,
    ) {
        self.order.push_back(request_id.clone());
        self.by_request.insert(request_id, (digest, answer));
        if self.order.len() > ANSWERS_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_request.remove(&oldest);
        }
    }
}
