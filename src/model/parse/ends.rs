//! Checks that the addresses and ports of connections and sessions work together.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{
    super::{ControlConnection, ControlType, Endpoint, TestSession},
    Check,
};
use crate::proto;

impl Check {
    /// Reports local addresses of another family than the peer's. A name may resolve to both.
    pub(super) fn families(&mut self, document: &proto::ControlConnection, c: &ControlConnection) {
        let is_managed = c.control_type == ControlType::Managed;
        let mut is_reported = false;
        if let Some((source, target)) = c.source_address.zip(literal(c.target.as_ref()))
            && source.is_ipv4() != target.is_ipv4()
            && (is_managed || c.sessions.iter().any(inherits_both))
        {
            is_reported = true;
            let why = differs("target_address", target, source);
            self.report("source_address", why);
        }
        for session in &c.sessions {
            let Some(index) = position(document, session) else { continue };
            let path = format!("test_sessions[{index}]");
            let own = literal(session.target.as_ref());
            let Some(target) = own.or_else(|| literal(inherited(session, c))) else { continue };
            // Without a source address, a session of MANAGED has that of the control connection.
            let control_end = literal(c.target.as_ref()).filter(|_| is_managed);
            let local = session.source_address.or(c.source_address);
            let Some(end) = local.or(control_end) else { continue };
            if end.is_ipv4() == target.is_ipv4() {
                continue;
            }
            if session.source_address.is_some() {
                let why = differs("target_address", target, end);
                self.report(&format!("{path}.source_address"), why);
            } else if own.is_some() {
                let field = if local.is_some() { "source_address" } else { "target_address" };
                let why = format!(
                    "{target} is of another address family than the {field} {end} of the \
                     connection: expected the same family, or a source_address of the session"
                );
                self.report(&format!("{path}.target_address"), why);
            } else if !is_reported {
                is_reported = true;
                self.report("source_address", differs("target_address", target, end));
            }
        }
    }
}

fn differs(field: &str, target: IpAddr, source: IpAddr) -> String {
    let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
    format!(
        "{source} is of another address family than the {field} {target}: expected an {family} \
         address"
    )
}

fn inherits_both(session: &TestSession) -> bool {
    session.target.is_none() && session.source_address.is_none()
}

fn literal(endpoint: Option<&Endpoint>) -> Option<IpAddr> {
    match endpoint? {
        Endpoint::Address(address) => Some(*address),
        Endpoint::Name(_) => None,
    }
}

/// Returns the target of the connection if the session has none of its own.
fn inherited<'a>(session: &TestSession, c: &'a ControlConnection) -> Option<&'a Endpoint> {
    c.target.as_ref().filter(|_| session.target.is_none())
}

fn position(document: &proto::ControlConnection, session: &TestSession) -> Option<usize> {
    document.test_sessions.iter().position(|given| given.name == session.name)
}

/// Local end of sockets with the same port that exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Local<'a> {
    Address(IpAddr),
    /// Local address of the control connection of this index.
    OfConnection(usize),
    /// All addresses, of the family to which this name resolves.
    OfName(&'a str),
    /// Any address of a family; true is IPv4.
    Family(bool),
}

/// Fixed ports of sessions, with the interface and the path of their first user.
#[derive(Debug, Default)]
pub(super) struct SourcePorts<'a> {
    used: HashMap<(u16, Local<'a>), BTreeMap<Option<&'a str>, String>>,
}

impl<'a> SourcePorts<'a> {
    /// Adds the ports of a connection, and reports those that another session has on the same
    /// address. Sessions that do not run need no port.
    pub(super) fn add(
        &mut self,
        check: &mut Check,
        index: usize,
        document: &proto::ControlConnection,
        c: &'a ControlConnection,
    ) {
        for session in c.sessions.iter().filter(|_| !c.inactive) {
            let Some(port) = session.source_port else { continue };
            let Some(at) = position(document, session) else { continue };
            let path = format!("control_connections[{index}].test_sessions[{at}]");
            let interface = c.interface.as_deref();
            let local = local(session, c, index);
            let (conflicts, marks) = conflicts(local);
            let user = conflicts.iter().find_map(|local| self.user(port, *local, interface));
            match user {
                Some(user) => {
                    let why = format!(
                        "{port} is also the source_port of client.{user}: expected another port, or a \
                         source_address of its own"
                    );
                    check.report(&format!("{path}.source_port"), why);
                }
                None => {
                    for mark in marks.into_iter().flatten() {
                        let users = self.used.entry((port, mark)).or_default();
                        users.entry(interface).or_insert_with(|| path.clone());
                    }
                }
            }
        }
    }

    /// Returns a session that has the port there: sockets on two different interfaces do not meet.
    fn user(&self, port: u16, local: Local<'a>, interface: Option<&'a str>) -> Option<&String> {
        let users = self.used.get(&(port, local))?;
        match interface {
            None => users.values().next(),
            Some(_) => users.get(&interface).or_else(|| users.get(&None)),
        }
    }
}

fn local<'a>(session: &'a TestSession, c: &'a ControlConnection, index: usize) -> Local<'a> {
    match session.source_address.or(c.source_address) {
        Some(address) => Local::Address(address),
        None if c.control_type == ControlType::Managed => Local::OfConnection(index),
        None => match session.target.as_ref().or(c.target.as_ref()) {
            Some(Endpoint::Address(target)) => Local::Address(any(target.is_ipv4())),
            Some(Endpoint::Name(name)) => Local::OfName(name),
            None => Local::OfConnection(index),
        },
    }
}

fn any(is_ipv4: bool) -> IpAddr {
    if is_ipv4 { [0u8; 4].into() } else { [0u16; 8].into() }
}

/// Returns the ends with which a socket conflicts, and those under which others find it.
fn conflicts(local: Local<'_>) -> (Vec<Local<'_>>, [Option<Local<'_>>; 2]) {
    match local {
        Local::Address(address) => {
            let family = Local::Family(address.is_ipv4());
            let conflicts = if address.is_unspecified() {
                vec![family]
            } else {
                vec![local, Local::Address(any(address.is_ipv4()))]
            };
            (conflicts, [Some(local), Some(family)])
        }
        Local::OfConnection(_) | Local::OfName(_) | Local::Family(_) => {
            (vec![local], [Some(local), None])
        }
    }
}
