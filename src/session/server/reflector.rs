//! One UDP socket on a thread of the data plane: owns the machine with its sessions and answers
//! packets. What is open to everybody has a socket on each thread, among which the kernel divides
//! the senders; nothing is shared between them.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc};

use tokio::sync::oneshot;

use super::registry::{SessionEnd, SessionEntry};
use crate::{
    net::{Drained, Neighbours, PacketHandler, PreparedReply, TestSocket, clock},
    proto::{PacketCounters, ServerSessionState},
    session::plane::{Endpoint, Handle, Plane, PlaneSettings},
    time::{Monotonic, NANOS_PER_SECOND, Now, UnixTime},
    twamp::{
        PacketMeta,
        reflector::{
            Ended, Finish, Reflector, ReflectorCounters, ReflectorSession, Sessionless, Verdict,
        },
    },
    wire::codes::Sid,
};

/// Commands that wait for a socket; connections wait where there are more.
const COMMANDS: usize = 256;
/// How often sessions that are over are looked for.
const EXPIRY_NS: u64 = NANOS_PER_SECOND;
/// Looks without a session after which a socket of sessions' own is closed: a new one waits for
/// its first.
const EMPTY_LOOKS: u32 = 3;

/// What connections and the role tell a socket.
#[derive(Debug)]
pub(super) enum Command {
    /// Takes a session; answers whether it did: not where its sender has one here already.
    Add(Box<ReflectorSession>, Arc<SessionEntry>, oneshot::Sender<bool>),
    /// Answers packets of a session from now on; answers when that is so.
    Start(Sid, oneshot::Sender<()>),
    /// Answers packets of a session until then.
    Drain(Sid, Monotonic),
    /// Ends a session at once.
    Remove(Sid),
    /// Who is answered without a session.
    SetSessionless(Sessionless),
    /// Packets answered in a second to each sender.
    SetSenderLimit(Option<u32>),
    /// The socket is to be closed; answers when no packet is taken any more.
    Close(oneshot::Sender<()>),
}

/// The threads of the reflectors.
#[derive(Debug)]
pub struct Reflectors {
    plane: Plane<ReflectorSocket>,
    /// Of each thread.
    counters: Vec<Arc<ReflectorCounters>>,
}

impl Reflectors {
    /// Starts them.
    pub fn start(settings: PlaneSettings) -> io::Result<Arc<Self>> {
        let plane = Plane::start("reflector", settings)?;
        let counters = (0..plane.threads()).map(|_| Arc::default()).collect();
        Ok(Arc::new(Self { plane, counters }))
    }

    /// Threads.
    pub(super) fn threads(&self) -> usize {
        self.counters.len()
    }

    /// Of all threads together.
    pub(super) fn counted(&self) -> PacketCounters {
        self.counters.iter().fold(PacketCounters::default(), |sum, one| one.add_to(sum))
    }

    /// Gives sockets to threads: one to whichever has the fewest, several to one each.
    pub(super) fn open(
        &self,
        sockets: Vec<TestSocket>,
        sessionless: &Sessionless,
        sender_limit: Option<u32>,
        ends_empty: bool,
    ) -> io::Result<ReflectorHandle> {
        let Some(local) = sockets.first().map(TestSocket::local) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let several = sockets.len() > 1;
        let handles = sockets.into_iter().enumerate().map(|(index, socket)| {
            let endpoint = |thread: usize| {
                let counters = self.counters[thread].clone();
                let mut endpoint =
                    ReflectorSocket::new(socket, sessionless.clone(), counters, ends_empty);
                endpoint.machine.reflector.set_sender_limit(sender_limit);
                endpoint
            };
            let on = several.then_some(index);
            self.plane.spawn(endpoint, on, COMMANDS).map(|(handle, _)| handle)
        });
        Ok(ReflectorHandle { handles: handles.collect::<io::Result<_>>()?, local })
    }
}

/// A socket, or several of one address, on their threads. They are closed when the last handle is
/// dropped.
#[derive(Clone, Debug)]
pub(super) struct ReflectorHandle {
    handles: Vec<Handle<Command>>,
    pub(super) local: SocketAddr,
}

impl ReflectorHandle {
    /// Takes a session, on each thread: only the kernel knows to which its packets will come.
    /// `false` where its sender has one here already, or the socket is no more.
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

    /// Ends a session, also from where one cannot wait; if the queue is full, REFWAIT ends it.
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

    pub(super) async fn set_sender_limit(&self, limit: Option<u32>) {
        for handle in &self.handles {
            let _ = handle.send(Command::SetSenderLimit(limit)).await;
        }
    }

    /// Closes the sockets; their sessions end. Returns when the address is free.
    pub(super) async fn close(&self) {
        for handle in &self.handles {
            let (done, closed) = oneshot::channel();
            if handle.send(Command::Close(done)).await.is_ok() {
                let _ = closed.await;
            }
        }
    }

    /// Whether the sockets are closed.
    pub(super) fn is_closed(&self) -> bool {
        self.handles.iter().any(Handle::is_closed)
    }
}

/// A socket with its sessions.
#[derive(Debug)]
struct ReflectorSocket {
    machine: SocketMachine,
    socket: Option<TestSocket>,
    entries: HashMap<Sid, Arc<SessionEntry>>,
    counters: Arc<ReflectorCounters>,
    ends_empty: bool,
    empty_looks: u32,
    next_look: Monotonic,
}

/// The reflector with the facts that its socket adds.
#[derive(Debug)]
struct SocketMachine {
    reflector: Reflector,
    /// Refreshed every [`EXPIRY_NS`] for a STAMP reflector, which reports MAC addresses to senders.
    neighbours: Neighbours,
}

impl ReflectorSocket {
    fn new(
        socket: TestSocket,
        sessionless: Sessionless,
        counters: Arc<ReflectorCounters>,
        ends_empty: bool,
    ) -> Self {
        let reflector = Reflector::new(socket.local().port(), sessionless, counters.clone());
        Self {
            machine: SocketMachine { reflector, neighbours: Neighbours::default() },
            socket: Some(socket),
            entries: HashMap::new(),
            counters,
            ends_empty,
            empty_looks: 0,
            next_look: clock::monotonic().plus_ns(EXPIRY_NS),
        }
    }

    /// The socket goes though sessions are on it: the connections must know.
    fn close(&mut self) {
        self.socket = None;
        for (sid, entry) in self.entries.drain() {
            entry.tell_ended(sid, SessionEnd::SocketClosed);
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
                entry.tell_ended(sid, SessionEnd::Silent);
            }
        });
        if self.machine.reflector.needs_neighbours() {
            self.machine.neighbours = Neighbours::read();
        }
        let empty = self.machine.reflector.is_empty();
        self.empty_looks = if empty { self.empty_looks + 1 } else { 0 };
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
            // The answer is dropped with the command: there is no such socket any more.
            Command::Add(..) if !open => {}
            Command::Add(session, entry, answer) => {
                let sid = session.sid;
                let taken = machine.add(*session, now);
                if let Ok(before) = &taken {
                    if let Some(before) = before {
                        self.entries.remove(before);
                    }
                    self.empty_looks = 0;
                    self.entries.insert(sid, entry);
                }
                let _ = answer.send(taken.is_ok());
            }
            Command::Start(sid, done) => {
                machine.start(sid, now);
                self.set_state(sid, ServerSessionState::Started);
                let _ = done.send(());
            }
            Command::Drain(sid, until) => {
                machine.drain(sid, until);
                self.set_state(sid, ServerSessionState::Draining);
            }
            Command::Remove(sid) => {
                machine.remove(sid);
                if self.entries.remove(&sid).is_some() && machine.is_empty() {
                    // Nobody waits for a first session any more.
                    self.empty_looks = EMPTY_LOOKS + 1;
                }
            }
            Command::SetSessionless(sessionless) => machine.set_sessionless(sessionless),
            Command::SetSenderLimit(limit) => machine.set_sender_limit(limit),
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
                tracing::debug!(%error, local = %socket.local(), "test socket");
                return Drained::Yes;
            }
        };
        if reflected.failed > 0 {
            self.counters.send_failed.fetch_add(reflected.failed as u64, Relaxed);
        }
        let dropped = socket.newly_dropped();
        if dropped > 0 {
            self.counters.no_room.fetch_add(dropped, Relaxed);
        }
        reflected.drained
    }

    fn advance(&mut self, now: Now) {
        if self.next_look <= now.monotonic {
            self.next_look = now.monotonic.plus_ns(EXPIRY_NS);
            self.expire(now.monotonic);
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        Some(self.next_look)
    }

    fn is_over(&self) -> bool {
        self.socket.is_none() || (self.ends_empty && self.empty_looks > EMPTY_LOOKS)
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
