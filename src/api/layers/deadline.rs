//! Deadline of a request: the header `grpc-timeout` of its client.

use std::time::Duration;

use hyper::{HeaderMap, Request, Response};
use tokio::time::timeout;
use tonic::{Status, body::Body};

use super::{Layer, Service, pass};

const TIMEOUT_HEADER: &str = "grpc-timeout";
/// Digits of the value (gRPC over HTTP/2, TimeoutValue).
const MAXIMUM_DIGITS: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct Deadline;

impl Layer for Deadline {
    async fn answer(&self, request: Request<Body>, next: Service) -> Response<Body> {
        let Some(limit) = requested(request.headers()) else {
            return pass(request, next).await;
        };
        match timeout(limit, pass(request, next)).await {
            Ok(response) => response,
            Err(_) => {
                let late = format!("no answer within the {limit:?} that the client allows");
                Status::deadline_exceeded(late).into_http()
            }
        }
    }
}

/// Returns the time that a client allows; `None` without the header, or if it is malformed.
fn requested(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(TIMEOUT_HEADER)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > MAXIMUM_DIGITS {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_digits_and_a_unit() {
        let requested = |value: &str| {
            requested(&HeaderMap::from_iter([(
                hyper::header::HeaderName::from_static(TIMEOUT_HEADER),
                value.parse().unwrap(),
            )]))
        };
        assert_eq!(requested("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(requested("100m"), Some(Duration::from_millis(100)));
        assert_eq!(requested("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for malformed in ["", "1", "S", "1s", "-1S", "999999999S"] {
            assert_eq!(requested(malformed), None, "{malformed}");
        }
    }
}
