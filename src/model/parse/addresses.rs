//! Checks addresses: those of peers, of this host, and in URLs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{
    super::{
        Endpoint, ZonedAddress, limits,
        zone::{check_interface, shared_kind, split_zone},
    },
    Check,
};

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

impl Check {
    fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        if text.is_empty() {
            return None;
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Some(address.to_canonical()),
            Err(_) => {
                if !self.has_zone(field, text) {
                    self.report(field, format!("{text:?} is not an IPv4 or IPv6 address"));
                }
                None
            }
        }
    }

    /// Checks a local address from which packets are sent.
    pub(super) fn source_address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let address = self.address(field, text)?;
        if let Some(kind) = shared_kind(address) {
            self.report(
                field,
                format!(
                    "{address} is {kind}: expected a single address of this host, or nothing to \
                     leave the choice to routing"
                ),
            );
            return None;
        }
        Some(address)
    }

    /// Checks an address on which sockets listen; `has_interface` if they are bound to one.
    pub(super) fn listen_address(
        &mut self,
        field: &str,
        text: &str,
        has_interface: bool,
    ) -> Option<IpAddr> {
        let address = self.address(field, text)?;
        match shared_kind(address) {
            Some(kind) if !address.is_unspecified() => {
                let right = "expected an address of this host, or 0.0.0.0 or ::";
                self.report(field, format!("{address} is {kind}: {right}"));
                None
            }
            _ if is_link_local_v6(address) && !has_interface => {
                let right = "expected its interface in `interface`";
                self.report(field, format!("{address} is link-local: {right}"));
                None
            }
            _ => Some(address),
        }
    }

    /// Checks an address without an `interface` field, which takes the zone in its text.
    pub(super) fn zoned_listen_address(&mut self, field: &str, text: &str) -> Option<ZonedAddress> {
        match split_zone(text) {
            Some(Ok((address, zone))) => {
                let zone = Some(zone.to_owned());
                return Some(ZonedAddress { address: SocketAddr::new(address.into(), 0), zone });
            }
            Some(Err(description)) => {
                self.report(field, description);
                return None;
            }
            None => {}
        }
        // A zone is only missing where the address needs one.
        let address = self.listen_address(field, text, true)?;
        if is_link_local_v6(address) {
            let why = format!("{address} is link-local: expected its interface, {address}%eth0");
            self.report(field, why);
        }
        Some(SocketAddr::new(address, 0).into())
    }

    /// Reports an address with a zone, which belongs into `interface`; returns whether it is one.
    fn has_zone(&mut self, field: &str, text: &str) -> bool {
        let Some((address, zone)) = text.split_once('%') else { return false };
        let is_address = address.parse::<IpAddr>().is_ok();
        if is_address {
            self.report(
                field,
                format!("give the address {address} here, and {zone:?} as the interface"),
            );
        }
        is_address
    }

    pub(super) fn endpoint(&mut self, field: &str, text: &str) -> Option<Endpoint> {
        if text.is_empty() {
            return None;
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            if let Some(kind) = shared_kind(address) {
                self.report(field, format!("{text} is {kind}: expected that of a single host"));
                return None;
            }
            return Some(Endpoint::Address(address.to_canonical()));
        }
        if self.has_zone(field, text) {
            return None;
        }
        if !is_host_name(text) {
            let shown: String = text.chars().take(80).collect();
            self.report(
                field,
                format!("{shown:?} is not valid: expected an IP address or a DNS name"),
            );
        }
        Some(Endpoint::Name(text.to_owned()))
    }

    pub(super) fn interface(&mut self, name: &str) -> Option<String> {
        if name.is_empty() {
            return None;
        }
        if let Err(description) = check_interface(name) {
            self.report("interface", description);
            return None;
        }
        Some(name.to_owned())
    }

    /// Checks a URL of a scheme, a host and a port. `takes_zone` where a link-local address can be
    /// connected to.
    pub(super) fn url(&mut self, field: &str, url: &str, schemes: &[&str], takes_zone: bool) {
        let right = schemes.iter().map(|scheme| format!("{scheme}://HOST:PORT"));
        let right = right.collect::<Vec<_>>().join(" or ");
        let shown: String = url.chars().take(80).collect();
        let rest = url.split_once("://").filter(|(scheme, _)| schemes.contains(scheme));
        let host = rest.and_then(|(_, rest)| rest.rsplit_once(':')).and_then(|(host, port)| {
            port.parse::<u16>().is_ok_and(|port| port > 0).then_some(host)
        });
        let checked = match host {
            Some(host) if url.len() <= limits::MAXIMUM_TEXT_OCTETS => url_host(host, takes_zone),
            _ => Err(None),
        };
        match checked {
            Ok(()) => {}
            Err(None) => {
                self.report(field, format!("{shown:?} is not a valid URL: expected {right}"));
            }
            Err(Some(why)) => self.report(field, format!("{shown:?}: {why}")),
        }
    }
}

/// Checks the host of a URL; the error says what is wrong with it if it is an address.
fn url_host(host: &str, takes_zone: bool) -> Result<(), Option<String>> {
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let (address, zone) = match v6 {
        None if is_host_name(host) => return Ok(()),
        None => (host.parse::<Ipv4Addr>().map_err(|_| None)?.into(), None),
        Some(text) => {
            // RFC 6874: the `%` before a zone is itself encoded.
            let (address, zone) = match text.split_once("%25") {
                Some((address, zone)) => (address, Some(zone)),
                None => (text, None),
            };
            if zone.is_none() && text.contains('%') {
                return Err(Some("the `%` before the interface is written %25 in a URL".into()));
            }
            (IpAddr::V6(address.parse().map_err(|_| None)?), zone)
        }
    };
    if let Some(kind) = shared_kind(address) {
        return Err(Some(format!("{address} is {kind}: expected that of a single host")));
    }
    match zone {
        None if !is_link_local_v6(address) => Ok(()),
        _ if is_link_local_v6(address) && !takes_zone => Err(Some(format!(
            "{address} is link-local, which this protocol cannot connect to: expected another \
             address of the host, or its name"
        ))),
        None => Err(Some(format!(
            "{address} is link-local: expected its interface, [{address}%25eth0]"
        ))),
        Some(zone) => match split_zone(&format!("{address}%{zone}")) {
            Some(Err(description)) => Err(Some(description)),
            Some(Ok(_)) | None => Ok(()),
        },
    }
}

/// Returns true for a DNS name that is no address. `_` is allowed, as container networks use it.
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    let looks_numeric = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let name = text.strip_suffix('.').unwrap_or(text);
    text.len() <= limits::MAXIMUM_HOST_OCTETS && !looks_numeric && name.split('.').all(is_label)
}
