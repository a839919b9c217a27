//! Pages of listings (AIP-158). A token names the request that it belongs to and the last item of
//! its page, so items that come or go between two pages neither hide nor repeat another.

use std::any::type_name;

use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::error;
use crate::document::hexadecimal;

/// Limit of the encoded items of a page, in bytes: common clients refuse answers beyond 4 MiB.
pub(super) const PAGE_BYTES: usize = 3 * 1024 * 1024;
/// Upper limit of the tag and length bytes of an item in its answer.
pub(super) const ITEM_OVERHEAD_BYTES: usize = 6;
const DIGEST_BYTES: usize = 8;
/// Upper limit of the length of a token: names of a connection and a session with their scope fit
/// well within it.
const MAXIMUM_TOKEN_BYTES: usize = 512;

/// Request for one page.
#[derive(Debug)]
pub(super) struct PageRequest {
    digest: [u8; DIGEST_BYTES],
    limit: usize,
    /// Key of the last item of the page before.
    pub(super) after: Option<Vec<u8>>,
}

impl PageRequest {
    /// Checks a token against its request; `request` is the one at hand without `page_size` and
    /// `page_token`. A `page_size` of 0 is as many as fit.
    pub(super) fn new<M: Message>(
        request: &M,
        page_size: u32,
        page_token: &str,
    ) -> Result<Self, Status> {
        let method = Sha256::new().chain_update(type_name::<M>());
        let whole = method.chain_update(request.encode_to_vec()).finalize();
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&whole[..DIGEST_BYTES]);
        let limit = if page_size == 0 { usize::MAX } else { page_size as usize };
        let after = match page_token {
            "" => None,
            token => Some(last_key(token, digest)?),
        };
        Ok(Self { digest, limit, after })
    }

    /// Reads the key of a token as `N` bytes.
    pub(super) fn fixed_key<const N: usize>(&self) -> Result<Option<[u8; N]>, Status> {
        let key = |key: &Vec<u8>| key.as_slice().try_into().map_err(|_| malformed());
        self.after.as_ref().map(key).transpose()
    }

    /// Makes the token of the page after the item with this key.
    pub(super) fn token(&self, key: &[u8]) -> String {
        hexadecimal(&[&self.digest, key].concat())
    }

    /// Cuts the page out of a whole listing, which is sorted by `key`; returns it with the token of
    /// the next one.
    pub(super) fn cut<T: Message>(
        &self,
        items: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> Vec<u8>,
    ) -> (Vec<T>, String) {
        let mut page = Page::new(self);
        for item in items {
            let key = key(&item);
            if !page.push(item, key) {
                break;
            }
        }
        page.finish()
    }
}

/// A page under construction, limited in items and bytes.
#[derive(Debug)]
pub(super) struct Page<'a, T> {
    request: &'a PageRequest,
    items: Vec<T>,
    bytes: usize,
    last_key: Vec<u8>,
    has_more: bool,
}

impl<'a, T: Message> Page<'a, T> {
    pub(super) fn new(request: &'a PageRequest) -> Self {
        Self { request, items: Vec::new(), bytes: 0, last_key: Vec::new(), has_more: false }
    }

    /// Adds the next item unless an earlier page held it; returns false when the page is full.
    pub(super) fn push(&mut self, item: T, key: Vec<u8>) -> bool {
        if self.request.after.as_ref().is_some_and(|after| key <= *after) {
            return true;
        }
        let bytes = item.encoded_len() + ITEM_OVERHEAD_BYTES;
        let fits = self.items.len() < self.request.limit && self.bytes + bytes <= PAGE_BYTES;
        if !fits && !self.items.is_empty() {
            self.has_more = true;
            return false;
        }
        self.bytes += bytes;
        self.items.push(item);
        self.last_key = key;
        true
    }

    /// Returns the items and the token of the next page, which is empty after the last one.
    pub(super) fn finish(self) -> (Vec<T>, String) {
        let token = if self.has_more { self.request.token(&self.last_key) } else { String::new() };
        (self.items, token)
    }
}

/// Removes the first items that fit into one message of `limit` bytes, at least one, and returns
/// them.
pub(super) fn split_front<T: Message>(items: &mut Vec<T>, limit: usize) -> Vec<T> {
    let mut bytes = 0;
    let fits = |item: &&T| {
        bytes += item.encoded_len() + ITEM_OVERHEAD_BYTES;
        bytes <= limit
    };
    let count = items.iter().take_while(fits).count().max(1).min(items.len());
    let rest = items.split_off(count);
    std::mem::replace(items, rest)
}

fn malformed() -> Status {
    error::invalid("page_token", "not a token that this agent made: begin with the first page")
}

fn last_key(token: &str, digest: [u8; DIGEST_BYTES]) -> Result<Vec<u8>, Status> {
    let octets = decoded(token).ok_or_else(malformed)?;
    let (belongs_to, key) = octets.split_at_checked(DIGEST_BYTES).ok_or_else(malformed)?;
    if belongs_to != digest {
        let right = "belongs to another request: repeat every field but page_size, or begin with the first page";
        return Err(error::invalid("page_token", right));
    }
    Ok(key.to_vec())
}

fn decoded(token: &str) -> Option<Vec<u8>> {
    if token.len() > 2 * MAXIMUM_TOKEN_BYTES || !token.len().is_multiple_of(2) {
        return None;
    }
    let digit = |octet: u8| char::from(octet).to_digit(16);
    let octet = |pair: &[u8]| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok();
    token.as_bytes().chunks_exact(2).map(octet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Consumer, ListConsumersRequest, ListServerSessionsRequest};

    fn consumers(count: usize, name_len: usize) -> Vec<Consumer> {
        let name = |index| format!("{index:04}{}", "x".repeat(name_len.saturating_sub(4)));
        (0..count).map(|index| Consumer { name: name(index), ..Consumer::default() }).collect()
    }

    fn read_all(all: &[Consumer], page_size: u32) -> (Vec<Consumer>, usize) {
        let (mut read, mut token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let request =
                PageRequest::new(&ListConsumersRequest::default(), page_size, &token).unwrap();
            let (page, next) = request.cut(all.to_vec(), |one| one.name.as_bytes()[..4].to_vec());
            assert!(page.iter().map(Message::encoded_len).sum::<usize>() <= PAGE_BYTES);
            assert!(page_size == 0 || page.len() <= page_size as usize);
            read.extend(page);
            pages += 1;
            if next.is_empty() {
                return (read, pages);
            }
            token = next;
        }
    }

    #[test]
    fn pages_hold_every_item_once() {
        let all = consumers(10, 4);
        assert_eq!(read_all(&all, 0), (all.clone(), 1));
        assert_eq!(read_all(&all, 3), (all.clone(), 4));
        assert_eq!(read_all(&all, 5), (all.clone(), 2));
        assert_eq!(read_all(&[], 5), (Vec::new(), 1));
    }

    #[test]
    fn a_page_is_bounded_in_bytes_whatever_its_size() {
        let all = consumers(100, 100_000);
        for page_size in [0, 100, u32::MAX] {
            let (read, pages) = read_all(&all, page_size);
            assert_eq!((read.len(), pages), (100, 4));
        }
    }

    #[test]
    fn messages_of_a_stream_are_bounded_and_hold_everything_in_order() {
        let all = consumers(100, 100_000);
        let (mut rest, mut read, mut messages) = (all.clone(), Vec::new(), 0);
        while !rest.is_empty() {
            let part = split_front(&mut rest, PAGE_BYTES);
            assert!(part.iter().map(Message::encoded_len).sum::<usize>() <= PAGE_BYTES);
            read.extend(part);
            messages += 1;
        }
        assert_eq!((read, messages), (all, 4));
        assert_eq!(split_front(&mut consumers(2, 100), 10).len(), 1);
        assert_eq!(split_front::<Consumer>(&mut Vec::new(), 10).len(), 0);
    }

    #[test]
    fn removed_items_do_not_disturb_the_pages() {
        let all = consumers(10, 4);
        let request = PageRequest::new(&ListConsumersRequest::default(), 3, "").unwrap();
        let (_, token) = request.cut(all.clone(), |one| one.name.clone().into_bytes());
        let request = PageRequest::new(&ListConsumersRequest::default(), 3, &token).unwrap();
        let rest = all[3..].iter().filter(|one| one.name != "0003").cloned();
        let (page, _) = request.cut(rest, |one| one.name.clone().into_bytes());
        assert_eq!(page[0].name, "0004");
    }

    #[test]
    fn tokens_are_checked() {
        let of = |connection_id| ListServerSessionsRequest { connection_id, ..Default::default() };
        let token = PageRequest::new(&of(1), 0, "").unwrap().token(b"key");
        assert_eq!(PageRequest::new(&of(1), 9, &token).unwrap().after.unwrap(), b"key");
        let fixed: Result<Option<[u8; 8]>, _> =
            PageRequest::new(&of(1), 0, &token).unwrap().fixed_key();
        assert!(fixed.is_err());
        let other_method = PageRequest::new(&ListConsumersRequest::default(), 0, "").unwrap();
        assert!(PageRequest::new(&of(1), 0, &other_method.token(b"key")).is_err());
        let refused = PageRequest::new(&of(2), 0, &token).unwrap_err();
        assert!(refused.message().contains("another request"), "{refused}");
        let long = "00".repeat(MAXIMUM_TOKEN_BYTES + 1);
        for token in ["x", "zz", "00", "é0", &token[1..], long.as_str()] {
            let refused = PageRequest::new(&of(1), 0, token).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        }
    }
}
