//! IPv6 addresses that are valid on one link only, with the link they belong to (RFC 4007 §11).

use std::{
    fmt::{self, Display, Formatter},
    net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use thiserror::Error;

use super::limits;

/// Address and port of a socket; a link-local IPv6 address has a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZonedAddress {
    /// Address and port, without the scope.
    pub address: SocketAddr,
    /// Name or index of the network interface to which a link-local address belongs.
    pub zone: Option<String>,
}

/// Text that is no address with a port.
#[derive(Debug, Error)]
pub enum ZonedAddressError {
    /// The text is neither `ADDRESS:PORT` nor `[ADDRESS%ZONE]:PORT`.
    #[error("{0}: expected ADDRESS:PORT, [ADDRESS]:PORT or [ADDRESS%INTERFACE]:PORT")]
    Address(#[from] AddrParseError),
    /// The address or its zone is not allowed.
    #[error("{0}")]
    Refused(String),
}

/// Returns the kind of an address that no single host has.
pub(super) fn shared_kind(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        address if address.is_unspecified() => Some("the unspecified address"),
        address if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Splits `ADDRESS%ZONE`; `None` for a text without a zone. The error describes a zone that is not
/// allowed.
pub(super) fn split_zone(text: &str) -> Option<Result<(Ipv6Addr, &str), String>> {
    let (address, zone) = text.split_once('%')?;
    let address: Ipv6Addr = address.parse().ok()?;
    Some(if !address.is_unicast_link_local() {
        Err(format!("{text:?} has a zone, but only link-local addresses (fe80::/10) have one"))
    } else if check_interface(zone).is_err() {
        Err(format!("{zone:?} is not a zone: expected the name or index of a network interface"))
    } else {
        Ok((address, zone))
    })
}

/// Splits a URL whose host is a link-local address with a zone into the URL without the zone, which
/// libraries understand, and the address to connect to. The zone follows `%25` (RFC 6874) or `%`.
pub fn split_url_zone(url: &str) -> Option<(String, ZonedAddress)> {
    let (scheme, rest) = url.split_once("://")?;
    let (host, port) = rest.strip_prefix('[')?.split_once("]:")?;
    let host = host.replacen("%25", "%", 1);
    let (address, zone) = split_zone(&host)?.ok()?;
    let address = SocketAddr::new(address.into(), port.trim_end_matches('/').parse().ok()?);
    let plain = format!("{scheme}://{address}");
    Some((plain, ZonedAddress { address, zone: Some(zone.to_owned()) }))
}

/// Checks the name of a network interface by the rules of the kernel.
pub fn check_interface(name: &str) -> Result<(), String> {
    let is_bad = |c: char| "/:".contains(c) || c.is_whitespace() || c.is_control();
    let is_path = name == "." || name == "..";
    let most = limits::MAXIMUM_INTERFACE_OCTETS;
    if !name.is_empty() && name.len() <= most && !is_path && !name.contains(is_bad) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(format!(
        "{shown:?} is not an interface name: expected 1 to {most} octets without `/`, `:` and white \
         space, such as eth0"
    ))
}

impl From<SocketAddr> for ZonedAddress {
    fn from(address: SocketAddr) -> Self {
        Self { address, zone: None }
    }
}

impl FromStr for ZonedAddress {
    type Err = ZonedAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let zoned = text.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
        if let Some((host, port)) = zoned
            && let Some(split) = split_zone(host)
            && let Ok(port) = port.parse::<u16>()
        {
            let (address, zone) = split.map_err(ZonedAddressError::Refused)?;
            let address = SocketAddr::new(IpAddr::V6(address), port);
            return Ok(Self { address, zone: Some(zone.to_owned()) });
        }
        let address: SocketAddr = text.parse()?;
        if let Some(kind) = shared_kind(address.ip())
            && !address.ip().is_unspecified()
        {
            return Err(ZonedAddressError::Refused(format!(
                "{text} is {kind}: expected an address of this host, or 0.0.0.0 or ::"
            )));
        }
        if matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local()) {
            return Err(ZonedAddressError::Refused(format!(
                "{text} is link-local: expected its interface in addition, such as \
                 [{}%eth0]:{}",
                address.ip(),
                address.port()
            )));
        }
        Ok(address.into())
    }
}

impl<'de> Deserialize<'de> for ZonedAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| D::Error::custom(format!("invalid address {text:?}: {error}")))
    }
}

impl Display for ZonedAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.zone {
            Some(zone) => write!(f, "[{}%{zone}]:{}", self.address.ip(), self.address.port()),
            None => Display::fmt(&self.address, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_shown_with_their_zone() {
        for text in ["127.0.0.1:1", "[::1]:65535", "[fe80::1%eth0]:9862", "[fe80::1%2]:9862"] {
            assert_eq!(text.parse::<ZonedAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_zone_of_a_url_is_taken_out() {
        for url in ["https://[fe80::1%25eth0]:4317", "https://[fe80::1%eth0]:4317/"] {
            let (plain, zoned) = split_url_zone(url).unwrap();
            assert_eq!(plain, "https://[fe80::1]:4317");
            assert_eq!(zoned.to_string(), "[fe80::1%eth0]:4317");
        }
        for url in ["https://[::1]:4317", "https://a:1", "https://[::1%25lo]:1", "[fe80::1%25a]:1"]
        {
            assert_eq!(split_url_zone(url), None, "{url}");
        }
    }

    #[test]
    fn a_zone_that_is_missing_or_wrong_is_explained() {
        for (text, told) in [
            ("[fe80::1]:9862", "expected its interface"),
            ("[2001:db8::1%eth0]:9862", "only link-local addresses"),
            ("[fe80::1%]:9862", "is not a zone"),
            ("[fe80::1%a/b]:9862", "is not a zone"),
            ("fe80::1%eth0", "expected ADDRESS:PORT"),
        ] {
            let error = text.parse::<ZonedAddress>().unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
