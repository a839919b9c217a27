//! A UDP socket of the server role on a data-plane thread, with the reflector machine of its
//! sessions.
//!
//! A shared socket exists once per thread. The kernel distributes the senders among these sockets,
//! and each thread has its own copy of the sessions.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use tokio::sync::oneshot;

use super::registry::{SessionEnd, SessionEntry, SessionRemoval};
use crate::{
    net::{Drained, Neighbours, PacketHandler, PreparedReply, TestSocket, clock},
    proto::ServerSessionState,
    session::plane::{Endpoint, Handle, Plane, PlaneSettings},
    time::{Monotonic, NANOS_PER_SECOND, Now, UnixTime},
    twamp::{
        PacketMeta,
        reflector::{
            Ended, Finish, PacketRules, Reflector, ReflectorCounters, ReflectorSession,
            Sessionless, Verdict,
        },
    },
    wire::codes::Sid,
};

/// Length of the command queue of a socket; connections wait when it is full.
const COMMANDS: usize = 256;
/// Interval between checks for expired sessions.
const EXPIRY_INTERVAL_NS: u64 = NANOS_PER_SECOND;
/// Number of successive expiry checks without a session after which a dedicated socket is closed. A
/// new socket must receive its first session within this time.
const MAX_EMPTY_CHECKS: u32 = 3;

/// A command to a socket.
#[derive(Debug)]
pub(super) enum Command {
    /// Adds a session; the response is false when its sender has one on this socket already.
    Add(Box<ReflectorSession>, Arc<SessionEntry>, oneshot::Sender<bool>),
    /// Starts a session; responds once the socket answers its packets.
    Start(Sid, oneshot::Sender<()>),
    /// Answers packets of a session until the given time.
    Drain(Sid, Monotonic),
    /// Removes a session immediately.
    Remove(Sid),
    /// Changes the policy for senders without a session.
    SetSessionless(Sessionless),
    /// Sets the rules for packets with and without a session.
    SetRules(PacketRules),
    /// Closes the socket; responds when no more packets are received.
    Close(oneshot::Sender<()>),
}

/// Data-plane threads of the server role.
#[derive(Debug)]
pub struct Reflectors {
    plane: Plane<ReflectorSocket>,
    /// Counters of each thread.
    counters: Vec<Arc<ReflectorCounters>>,
}

impl Reflectors {
    /// Starts the data-plane threads.
    pub fn start(settings: PlaneSettings) -> io::Result<Arc<Self>> {
        let plane = Plane::start("reflector", settings)?;
        let counters = (0..plane.threads()).map(|_| Arc::default()).collect();
        Ok(Arc::new(Self { plane, counters }))
    }

    /// Returns the number of threads.
    pub(super) fn threads(&self) -> usize {
        self.counters.len()
    }

    /// Returns the packet counters of each thread.
    pub fn counters(&self) -> Vec<Arc<ReflectorCounters>> {
        self.counters.clone()
    }

    /// Assigns sockets to threads: a single socket to the thread with the fewest endpoints, several
    /// sockets to one thread each.
    pub(super) fn open(
        &self,
        sockets: Vec<TestSocket>,
        sessionless: &Sessionless,
        rules: PacketRules,
        closes_when_empty: bool,
    ) -> io::Result<ReflectorHandle> {
        let Some(local) = sockets.first().map(TestSocket::local) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let several = sockets.len() > 1;
        let handles = sockets.into_iter().enumerate().map(|(index, socket)| {
            let endpoint = |thread: usize| {
                let counters = self.counters[thread].clone();
                let mut endpoint =
                    ReflectorSocket::new(socket, sessionless.clone(), counters, closes_when_empty);
                endpoint.machine.reflector.set_rules(rules);
                endpoint
            };
            let thread = several.then_some(index);
            self.plane.spawn(endpoint, thread, COMMANDS).map(|(handle, _)| handle)
        });
        Ok(ReflectorHandle { handles: handles.collect::<io::Result<_>>()?, local })
    }
}

/// Handle of one socket, or of several with the same address. The sockets close when the last
/// handle is dropped.
#[derive(Clone, Debug)]
pub(super) struct ReflectorHandle {
    handles: Vec<Handle<Command>>,
    pub(super) local: SocketAddr,
}

impl ReflectorHandle {
    /// Adds a session on each thread, because only the kernel knows which thread receives its
    /// packets. Returns false if its sender already has a session on this socket, or the socket is
    /// closed.
    pub(super) async fn add(&self, session: &ReflectorSession, entry: &Arc<SessionEntry>) -> bool {
        for handle in &self.handles {
            let (answer, answered) = oneshot::channel();
            let add = Command::Add(Box::new(session.clone()), entry.clone(), answer);
            if handle.send(add).await.is_err() || !answered.await.unwrap_or(false) {
                self.remove(session.sid);
                return false;
            }
        }
        true
    }

    /// Returns a function that removes a session. Any thread may call it, and it keeps no socket
    /// open.
    pub(super) fn removal(&self, sid: Sid) -> SessionRemoval {
        let handles: Vec<_> = self.handles.iter().map(Handle::downgrade).collect();
        SessionRemoval::new(move || {
            for handle in &handles {
                handle.try_send(Command::Remove(sid));
            }
        })
    }

    pub(super) async fn start(&self, sid: Sid) {
        for handle in &self.handles {
            let (done, started) = oneshot::channel();
            if handle.send(Command::Start(sid, done)).await.is_ok() {
                let _ = started.await;
            }
        }
    }

    pub(super) async fn drain(&self, sid: Sid, until: Monotonic) {
        for handle in &self.handles {
            let _ = handle.send(Command::Drain(sid, until)).await;
        }
    }

    /// Removes a session without waiting. If the command queue is full, the next expiry check
    /// removes it.
    pub(super) fn remove(&self, sid: Sid) {
        for handle in &self.handles {
            handle.try_send(Command::Remove(sid));
        }
    }

    pub(super) async fn set_sessionless(&self, sessionless: Sessionless) {
        for handle in &self.handles {
            let _ = handle.send(Command::SetSessionless(sessionless.clone())).await;
        }
    }

    pub(super) async fn set_rules(&self, rules: PacketRules) {
        for handle in &self.handles {
            let _ = handle.send(Command::SetRules(rules)).await;
        }
    }

    /// Closes the sockets and ends their sessions. Returns when the address is free.
    pub(super) async fn close(&self) {
        for handle in &self.handles {
            let (done, closed) = oneshot::channel();
            if handle.send(Command::Close(done)).await.is_ok() {
                let _ = closed.await;
            }
        }
    }

    /// Returns true when the sockets are closed.
    pub(super) fn is_closed(&self) -> bool {
        self.handles.iter().any(Handle::is_closed)
    }
}

/// A socket with its reflector and sessions.
#[derive(Debug)]
struct ReflectorSocket {
    machine: SocketMachine,
    socket: Option<TestSocket>,
    entries: HashMap<Sid, Arc<SessionEntry>>,
    counters: Arc<ReflectorCounters>,
    closes_when_empty: bool,
    empty_checks: u32,
    next_check: Monotonic,
}

/// The reflector machine with the facts of this host that its replies need.
#[derive(Debug)]
struct SocketMachine {
    reflector: Reflector,
    /// MAC addresses of senders, which a STAMP reflector reports to them. Refreshed every
    /// [`EXPIRY_INTERVAL_NS`].
    neighbours: Neighbours,
}

impl ReflectorSocket {
    fn new(
        socket: TestSocket,
        sessionless: Sessionless,
        counters: Arc<ReflectorCounters>,
        closes_when_empty: bool,
    ) -> Self {
        let reflector = Reflector::new(socket.local().port(), sessionless, counters.clone());
        Self {
            machine: SocketMachine { reflector, neighbours: Neighbours::default() },
            socket: Some(socket),
            entries: HashMap::new(),
            counters,
            closes_when_empty,
            empty_checks: 0,
            next_check: clock::monotonic().plus_ns(EXPIRY_INTERVAL_NS),
        }
    }

    /// Closes the socket and notifies the connections of its sessions.
    fn close(&mut self) {
        self.socket = None;
        for (sid, entry) in self.entries.drain() {
            entry.report_end(sid, SessionEnd::SocketClosed);
        }
    }

    fn set_state(&self, sid: Sid, state: ServerSessionState) {
        if let Some(entry) = self.entries.get(&sid) {
            entry.set(state);
        }
    }

    fn expire(&mut self, now: Monotonic) {
        let entries = &mut self.entries;
        self.machine.reflector.expire(now, |sid, ended| {
            if let Some(entry) = entries.remove(&sid)
                && ended == Ended::Silent
            {
                entry.report_end(sid, SessionEnd::Silent);
            }
        });
        let reflector = &mut self.machine.reflector;
        self.entries.retain(|sid, entry| {
            let is_orphaned = entry.is_orphaned();
            if is_orphaned {
                reflector.remove(*sid);
            }
            !is_orphaned
        });
        if self.machine.reflector.needs_neighbours() {
            self.machine.neighbours = Neighbours::read();
        }
        let empty = self.machine.reflector.is_empty();
        self.empty_checks = if empty { self.empty_checks + 1 } else { 0 };
    }
}

impl Endpoint for ReflectorSocket {
    type Command = Command;

    const POLL_COALESCE_NS: u64 = 0;

    fn socket(&self) -> Option<&TestSocket> {
        self.socket.as_ref()
    }

    fn handle_command(&mut self, command: Command) {
        let now = clock::monotonic();
        let open = self.socket.is_some() && !self.is_over();
        let machine = &mut self.machine.reflector;
        match command {
            // Dropping the command signals that the socket is closed.
            Command::Add(..) if !open => {}
            Command::Add(session, entry, answer) => {
                let sid = session.sid;
                let added = machine.add(*session, now);
                if let Ok(replaced) = &added {
                    if let Some(replaced) = replaced {
                        self.entries.remove(replaced);
                    }
                    self.empty_checks = 0;
                    self.entries.insert(sid, entry);
                }
                let _ = answer.send(added.is_ok());
            }
            Command::Start(sid, done) => {
                machine.start(sid, now);
                self.set_state(sid, ServerSessionState::Started);
                let _ = done.send(());
            }
            Command::Drain(sid, until) => {
                machine.drain(sid, until, now);
                self.set_state(sid, ServerSessionState::Draining);
            }
            Command::Remove(sid) => {
                machine.remove(sid);
                if self.entries.remove(&sid).is_some() && machine.is_empty() {
                    // The last session has ended: close without a grace period.
                    self.empty_checks = MAX_EMPTY_CHECKS + 1;
                }
            }
            Command::SetSessionless(sessionless) => machine.set_sessionless(sessionless),
            Command::SetRules(rules) => machine.set_rules(rules),
            Command::Close(done) => {
                self.close();
                let _ = done.send(());
            }
        }
    }

    fn receive(&mut self) -> Drained {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(socket) = &self.socket else { return Drained::Yes };
        let reflected = match socket.reflect(&mut self.machine) {
            Ok(reflected) => reflected,
            Err(error) => {
                tracing::debug!(%error, local = %socket.local(), "failed to receive test packets");
                return Drained::Yes;
            }
        };
        if reflected.failed > 0 {
            self.counters.send_failed.fetch_add(reflected.failed as u64, Relaxed);
        }
        let dropped = socket.newly_dropped();
        if dropped > 0 {
            self.counters.buffer_full.fetch_add(dropped, Relaxed);
        }
        reflected.drained
    }

    fn advance(&mut self, now: Now) {
        if self.next_check <= now.monotonic {
            self.next_check = now.monotonic.plus_ns(EXPIRY_INTERVAL_NS);
            self.expire(now.monotonic);
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        Some(self.next_check)
    }

    fn is_over(&self) -> bool {
        self.socket.is_none() || (self.closes_when_empty && self.empty_checks > MAX_EMPTY_CHECKS)
    }

    fn end(&mut self) {
        self.close();
    }
}

impl PacketHandler for SocketMachine {
    type ReplyToken = Finish;

    fn reply(
        &mut self,
        meta: &PacketMeta,
        packet: &[u8],
        reply: &mut [u8],
    ) -> Option<PreparedReply<Finish>> {
        let meta = PacketMeta { source_mac: self.neighbours.mac(meta.source.ip()), ..*meta };
        let (estimate, now) = (clock::error_estimate(), clock::monotonic());
        let verdict = self.reflector.handle(&meta, packet, estimate, now, reply);
        if let Verdict::Reply { octets: len, tos, finish } = verdict {
            return Some(PreparedReply { len, tos, token: finish });
        }
        tracing::trace!(source = %meta.source, ?verdict, "test packet not answered");
        None
    }

    fn finish(&mut self, to: SocketAddr, token: Finish, reply: &mut [u8]) {
        self.reflector.finish(to, token, reply, clock::unix());
    }

    fn transmitted(&mut self, packet: &[u8], at: UnixTime) {
        self.reflector.transmitted(packet, at);
    }
}
