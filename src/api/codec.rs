//! Codec of the services: checks what a request would take before it is decoded, after it was
//! decompressed.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;

use super::layout::{ApiMessage, TooLarge, check};
use crate::model::limits::{MAXIMUM_CALL_OCTETS, MAXIMUM_REQUEST_OCTETS};

/// Protobuf with limits on requests.
#[derive(Debug)]
pub(super) struct ApiCodec<Encoded, Decoded>(PhantomData<(Encoded, Decoded)>);

impl<Encoded, Decoded> Default for ApiCodec<Encoded, Decoded> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Encoded, Decoded> Codec for ApiCodec<Encoded, Decoded>
where
    Encoded: Message + Send + 'static,
    Decoded: Message + ApiMessage + Default + Send + 'static,
{
    type Encode = Encoded;
    type Decode = Decoded;
    type Encoder = ProstEncoder<Encoded>;
    type Decoder = ApiDecoder<Decoded>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(tonic::codec::BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ApiDecoder(PhantomData)
    }
}

/// Decoder of one message.
#[derive(Debug)]
pub(super) struct ApiDecoder<Decoded>(PhantomData<Decoded>);

impl<Decoded: Message + ApiMessage + Default> Decoder for ApiDecoder<Decoded> {
    type Item = Decoded;
    type Error = Status;

    fn decode(&mut self, octets: &mut DecodeBuf<'_>) -> Result<Option<Decoded>, Status> {
        if let Some(layout) = Decoded::LAYOUT {
            let maximum = maximum_octets(Decoded::NAME);
            if octets.remaining() > maximum {
                return Err(Status::resource_exhausted(format!(
                    "{} of {} octets; at most {maximum}",
                    Decoded::NAME,
                    octets.remaining()
                )));
            }
            // A message that was received whole is one piece.
            check(layout, octets.chunk()).map_err(|refused| too_large(Decoded::NAME, refused))?;
        }
        let message = Decoded::decode(octets);
        message.map(Some).map_err(|error| {
            Status::invalid_argument(format!("{} cannot be decoded: {error}", Decoded::NAME))
        })
    }
}

fn maximum_octets(message: &str) -> usize {
    if message == "ApplyConfigRequest" { MAXIMUM_REQUEST_OCTETS } else { MAXIMUM_CALL_OCTETS }
}

fn too_large(message: &str, refused: TooLarge) -> Status {
    let TooLarge { octets, limit, field, elements } = refused;
    Status::resource_exhausted(format!(
        "{message} of {octets} octets would take more than {limit} octets of memory: {elements} \
         elements up to the last of `{field}`"
    ))
}
