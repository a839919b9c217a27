//! Stored form of the revisions of the configuration. Its messages are separate from those of the
//! API, so that each can change alone. Documents and answers are stored in the encoding of the API
//! with a number that identifies the encoding: a new version of the API gets a new number.

use std::fmt;

use prost::Message;

use super::{StoreError, delta};
use crate::{proto, time::UnixTime};

/// Encoding of a [`Payload`] as a message of `twamp.agent.v1`.
const API_V1: u32 = 1;

/// A committed revision with its document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredRevision {
    /// Number, author, comment and digest.
    pub revision: Option<proto::Revision>,
    /// Document of the revision.
    pub config: Option<proto::AgentConfig>,
    /// Answer to the request that made the revision, to return it if the request is repeated.
    pub answer: Option<proto::ApplyConfigResponse>,
    /// Digest of the document in the request.
    pub request_digest: String,
    /// Rollback that is due unless the revision is confirmed.
    pub unconfirmed: Option<Unconfirmed>,
}

/// Rollback of a revision that is not confirmed in time.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Unconfirmed {
    /// Time of the rollback, nanoseconds since 1970.
    #[prost(uint64, tag = "1")]
    pub until_unix_ns: u64,
    /// Revision whose document is committed again; 0 for an empty document.
    #[prost(uint64, tag = "2")]
    pub rollback_to: u64,
    /// Time limit for confirming, nanoseconds.
    #[prost(uint64, tag = "3")]
    pub timeout_ns: u64,
    /// Time of the rollback since the boot of the host, nanoseconds; clock steps do not affect it.
    #[prost(uint64, tag = "4")]
    pub until_uptime_ns: u64,
    /// Boot of the host that `until_uptime_ns` counts from.
    #[prost(fixed64, tag = "5")]
    pub boot: u64,
}

/// Answer to a request that made no revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredAnswer {
    /// The `request_id` of the request.
    pub request_id: String,
    /// Digest of the document in the request.
    pub digest: String,
    /// Answer to the request.
    pub answer: Option<proto::ApplyConfigResponse>,
}

/// Message with the number of its encoding.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Payload {
    #[prost(uint32, tag = "1")]
    encoding: u32,
    /// The encoded message or, with a base, its difference to the base.
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
    /// Number of the revision whose document is the base; 0 without a base.
    #[prost(uint64, tag = "3")]
    base: u64,
    /// CRC-32 of the encoded message if there is a base.
    #[prost(fixed32, tag = "4")]
    checksum: u32,
}

impl Payload {
    fn encode_message(message: &impl Message) -> Self {
        let content = message.encode_to_vec();
        Self { encoding: API_V1, content, ..Self::default() }
    }

    fn decode_message<M: Message + Default>(&self) -> Result<M, StoreError> {
        let is_known = self.encoding == API_V1 && self.base == 0;
        let decoded = M::decode(self.content.as_slice()).ok().filter(|_| is_known);
        decoded.ok_or(StoreError::Damaged("configuration"))
    }
}

/// Omits the content, because a document contains secrets.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload of {} bytes in encoding {}", self.content.len(), self.encoding)
    }
}

/// Stored form of a [`StoredRevision`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct Revision {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(fixed64, optional, tag = "2")]
    commit_time_unix_ns: Option<u64>,
    #[prost(string, tag = "3")]
    author: String,
    #[prost(string, tag = "4")]
    comment: String,
    #[prost(string, tag = "5")]
    digest: String,
    #[prost(string, tag = "6")]
    request_id: String,
    #[prost(uint64, tag = "7")]
    rollback_to: u64,
    #[prost(string, tag = "8")]
    request_digest: String,
    #[prost(message, optional, tag = "9")]
    unconfirmed: Option<Unconfirmed>,
    #[prost(message, optional, tag = "10")]
    answer: Option<Payload>,
    #[prost(message, optional, tag = "11")]
    document: Option<Payload>,
}

impl Revision {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Returns number, author, comment and digest.
    pub(super) fn description(&self) -> proto::Revision {
        proto::Revision {
            revision: self.number,
            commit_time: self.commit_time_unix_ns.map(|ns| UnixTime(ns).to_proto()),
            author: self.author.clone(),
            comment: self.comment.clone(),
            digest: self.digest.clone(),
            request_id: self.request_id.clone(),
            rollback_to: self.rollback_to,
        }
    }

    pub(super) fn unconfirmed(&self) -> Option<Unconfirmed> {
        self.unconfirmed
    }

    /// Returns the number of the revision to whose document this document is a difference; `None`
    /// if the document is stored whole.
    pub(super) fn base(&self) -> Option<u64> {
        self.document.as_ref().map(|document| document.base).filter(|base| *base > 0)
    }

    /// Returns the revision with its document as a difference to the document of `base`; `None`
    /// unless that is shorter than half of the document.
    pub(super) fn as_difference(&self, base: &Self) -> Option<Self> {
        let (whole, base_document) = (self.document.as_ref()?, base.document.as_ref()?);
        let content = delta::difference(&base_document.content, &whole.content);
        let saves = content.len() < whole.content.len() / 2;
        let checksum = crc32fast::hash(&whole.content);
        let document = Payload { content, base: base.number, checksum, ..whole.clone() };
        saves.then(|| Self { document: Some(document), ..self.clone() })
    }

    /// Returns the revision with its whole document, which is stored as a difference to that of
    /// `base`.
    pub(super) fn as_whole(&self, base: &Self) -> Result<Self, StoreError> {
        let whole = self.document.as_ref().zip(base.document.as_ref()).and_then(|(made, base)| {
            let content = delta::apply(&base.content, &made.content)?;
            let is_right = crc32fast::hash(&content) == made.checksum;
            is_right.then_some(Payload { encoding: made.encoding, content, ..Payload::default() })
        });
        let document = Some(whole.ok_or(StoreError::Damaged("configuration"))?);
        Ok(Self { document, ..self.clone() })
    }

    /// Decodes the document and the answer.
    pub(super) fn open(&self) -> Result<StoredRevision, StoreError> {
        Ok(StoredRevision {
            revision: Some(self.description()),
            config: self.document.as_ref().map(Payload::decode_message).transpose()?,
            answer: self.answer.as_ref().map(Payload::decode_message).transpose()?,
            request_digest: self.request_digest.clone(),
            unconfirmed: self.unconfirmed,
        })
    }
}

impl From<&StoredRevision> for Revision {
    fn from(stored: &StoredRevision) -> Self {
        let StoredRevision { revision, config, answer, request_digest, unconfirmed } = stored;
        let proto::Revision {
            revision: number,
            commit_time,
            author,
            comment,
            digest,
            request_id,
            rollback_to,
        } = revision.clone().unwrap_or_default();
        Self {
            number,
            commit_time_unix_ns: commit_time.map(|time| UnixTime::from_proto(&time).0),
            author,
            comment,
            digest,
            request_id,
            rollback_to,
            request_digest: request_digest.clone(),
            unconfirmed: *unconfirmed,
            answer: answer.as_ref().map(Payload::encode_message),
            document: config.as_ref().map(Payload::encode_message),
        }
    }
}

/// Stored form of a [`StoredAnswer`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(string, tag = "2")]
    digest: String,
    #[prost(message, optional, tag = "3")]
    given: Option<Payload>,
}

impl Answer {
    pub(super) fn open(self) -> Result<StoredAnswer, StoreError> {
        let Self { request_id, digest, given } = self;
        let answer = given.as_ref().map(Payload::decode_message).transpose()?;
        Ok(StoredAnswer { request_id, digest, answer })
    }
}

impl From<StoredAnswer> for Answer {
    fn from(StoredAnswer { request_id, digest, answer }: StoredAnswer) -> Self {
        Self { request_id, digest, given: answer.as_ref().map(Payload::encode_message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoded_revision_equals_the_encoded_one() {
        let server = Some(proto::ServerConfig::default());
        let stored = StoredRevision {
            revision: Some(proto::Revision {
                revision: 7,
                commit_time: Some(UnixTime(1_790_000_000_123_456_789).to_proto()),
                author: "uid:0".into(),
                comment: "a comment".into(),
                digest: "00ff".into(),
                request_id: "5e0c".into(),
                rollback_to: 5,
            }),
            config: Some(proto::AgentConfig { server, ..proto::AgentConfig::default() }),
            answer: Some(proto::ApplyConfigResponse { revision: 7, ..Default::default() }),
            request_digest: "11".into(),
            unconfirmed: Some(Unconfirmed { rollback_to: 3, ..Unconfirmed::default() }),
        };
        let octets = Revision::from(&stored).encode_to_vec();
        assert_eq!(Revision::decode(octets.as_slice()).unwrap().open().unwrap(), stored);
    }

    #[test]
    fn an_unknown_encoding_is_refused_and_no_document_is_logged() {
        let config = Some(proto::AgentConfig::default());
        let mut revision = Revision::from(&StoredRevision { config, ..Default::default() });
        revision.open().unwrap();
        let document = revision.document.as_mut().unwrap();
        document.content = b"secret".to_vec();
        document.encoding = API_V1 + 1;
        assert!(matches!(revision.open(), Err(StoreError::Damaged(_))));
        assert!(!format!("{revision:?}").contains("115"), "{revision:?}");
    }
}
