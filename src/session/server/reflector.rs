//! The task of one UDP socket: owns the machine with its sessions and answers packets.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::registry::{SessionEnd, SessionEntry};
use crate::{
    net::{Answer, Answered, Neighbours, PacketInfo, TestSocket, clock},
    proto::ServerSessionState,
    time::{Monotonic, UnixTime},
    twamp::reflector::{
        Ended, Finish, PacketMeta, Reflector, ReflectorCounters, ReflectorSession, Sessionless,
        Verdict,
    },
    wire::codes::Sid,
};

/// Commands that wait for a socket; connections wait where there are more.
const COMMANDS: usize = 256;
/// How often sessions that are over are looked for.
const EXPIRY: Duration = Duration::from_secs(1);
const SOCKET_REST: Duration = Duration::from_millis(100);
/// Looks without a session after which a socket of sessions' own is closed: a new one waits for
/// its first.
const EMPTY_LOOKS: u32 = 3;

/// What connections and the role tell a socket.
#[derive(Debug)]
pub(super) enum Command {
    /// Takes a session; answers with its entry where its sender has one here already.
    Add(ReflectorSession, SessionEntry, oneshot::Sender<Result<(), SessionEntry>>),
    /// Answers packets of a session from now on; answers when that is so.
    Start(Sid, oneshot::Sender<()>),
    /// Answers packets of a session until then.
    Drain(Sid, Monotonic),
    /// Ends a session at once.
    Remove(Sid),
    /// Who is answered without a session.
    SetSessionless(Sessionless),
}

/// A socket with its task.
#[derive(Clone, Debug)]
pub(super) struct ReflectorHandle {
    commands: mpsc::Sender<Command>,
    pub(super) local: SocketAddr,
}

impl ReflectorHandle {
    /// A handle, and the task to be run. The task ends with `token`, or, where it `ends_empty`,
    /// when its last session ended.
    pub(super) fn new(
        socket: TestSocket,
        sessionless: Sessionless,
        counters: Arc<ReflectorCounters>,
        ends_empty: bool,
        token: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let local = socket.local();
        let task = Task {
            answers: Answers {
                machine: Reflector::new(local.port(), sessionless, counters.clone()),
                local,
                neighbours: Neighbours::default(),
            },
            socket,
            entries: HashMap::new(),
            counters,
            ends_empty,
            empty_looks: 0,
            token,
        };
        (Self { commands, local }, task.run(receiver))
    }

    /// Takes a session; gives its entry back where the sender has one here already, or `None`
    /// where the socket is no more.
    pub(super) async fn add(
        &self,
        session: ReflectorSession,
        entry: SessionEntry,
    ) -> Result<(), Option<SessionEntry>> {
        let (answer, answered) = oneshot::channel();
        if let Err(unsent) = self.commands.send(Command::Add(session, entry, answer)).await {
            let Command::Add(_, entry, _) = unsent.0 else { return Err(None) };
            return Err(Some(entry));
        }
        answered.await.unwrap_or(Ok(())).map_err(Some)
    }

    pub(super) async fn start(&self, sid: Sid) {
        let (done, started) = oneshot::channel();
        if self.commands.send(Command::Start(sid, done)).await.is_ok() {
            let _ = started.await;
        }
    }

    pub(super) async fn drain(&self, sid: Sid, until: Monotonic) {
        let _ = self.commands.send(Command::Drain(sid, until)).await;
    }

    /// Ends a session, also from where one cannot wait; if the queue is full, REFWAIT ends it.
    pub(super) fn remove(&self, sid: Sid) {
        let _ = self.commands.try_send(Command::Remove(sid));
    }

    pub(super) async fn set_sessionless(&self, sessionless: Sessionless) {
        let _ = self.commands.send(Command::SetSessionless(sessionless)).await;
    }

    /// Whether the task has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }
}

struct Task {
    answers: Answers,
    socket: TestSocket,
    entries: HashMap<Sid, SessionEntry>,
    counters: Arc<ReflectorCounters>,
    ends_empty: bool,
    empty_looks: u32,
    token: CancellationToken,
}

/// The machine as the socket needs it.
struct Answers {
    machine: Reflector,
    local: SocketAddr,
    /// Read now and then, for a reflector of STAMP, which tells them to its senders.
    neighbours: Neighbours,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut expiry = interval(EXPIRY);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // In this order, so that a flood of packets does not hold up commands.
                biased;
                () = self.token.cancelled() => return self.close(),
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                _ = expiry.tick() => self.expire(),
                reflected = self.socket.reflect(&mut self.answers) => match reflected {
                    Ok(batch) if batch.failed > 0 => {
                        use std::sync::atomic::Ordering::Relaxed;
                        self.counters.send_failed.fetch_add(batch.failed as u64, Relaxed);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, local = %self.socket.local(), "test socket");
                        sleep(SOCKET_REST).await;
                    }
                },
            }
            if self.ends_empty && self.empty_looks > EMPTY_LOOKS {
                // Nobody can hand in a session any more, and those in the queue are answered.
                commands.close();
                while let Some(command) = commands.recv().await {
                    if let Command::Add(_, entry, answer) = command {
                        let _ = answer.send(Err(entry));
                    }
                }
                return;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = clock::monotonic();
        let machine = &mut self.answers.machine;
        match command {
            Command::Add(session, entry, answer) => {
                let sid = session.sid;
                match machine.add(session, now) {
                    Ok(before) => {
                        if let Some(before) = before {
                            self.entries.remove(&before);
                        }
                        self.empty_looks = 0;
                        self.entries.insert(sid, entry);
                        let _ = answer.send(Ok(()));
                    }
                    Err(_) => drop(answer.send(Err(entry))),
                }
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
        }
    }

    /// The socket goes though sessions are on it: the connections must know.
    fn close(&mut self) {
        for (sid, entry) in self.entries.drain() {
            entry.tell_ended(sid, SessionEnd::SocketClosed);
        }
    }

    fn set_state(&self, sid: Sid, state: ServerSessionState) {
        if let Some(entry) = self.entries.get(&sid) {
            entry.set(state);
        }
    }

    fn expire(&mut self) {
        let entries = &mut self.entries;
        self.answers.machine.expire(clock::monotonic(), |sid, ended| {
            if let Some(entry) = entries.remove(&sid)
                && ended == Ended::Silent
            {
                entry.tell_ended(sid, SessionEnd::Silent);
            }
        });
        if self.answers.machine.tells_locations() {
            self.answers.neighbours = Neighbours::read();
        }
        let empty = self.answers.machine.is_empty();
        self.empty_looks = if empty { self.empty_looks + 1 } else { 0 };
    }
}

impl Answer for Answers {
    type Ticket = Finish;

    fn answer(
        &mut self,
        info: &PacketInfo,
        packet: &[u8],
        reply: &mut [u8],
    ) -> Option<Answered<Finish>> {
        let destination = info.destination.unwrap_or_else(|| self.local.ip());
        let meta = PacketMeta {
            source: info.source,
            source_mac: self.neighbours.mac(info.source.ip()),
            destination: SocketAddr::new(destination, self.local.port()),
            to_group: info.to_group,
            received: info.received,
            ttl: info.ttl,
            tos: info.tos,
        };
        let (estimate, now) = (clock::error_estimate(), clock::monotonic());
        let verdict = self.machine.handle(&meta, packet, estimate, now, reply);
        if let Verdict::Reply { octets, tos, finish } = verdict {
            return Some(Answered { octets, tos, ticket: finish });
        }
        tracing::trace!(source = %info.source, ?verdict, "test packet");
        None
    }

    fn finish(&mut self, to: SocketAddr, ticket: Finish, reply: &mut [u8]) {
        self.machine.finish(to, ticket, reply, clock::unix());
    }

    fn transmitted(&mut self, packet: &[u8], at: UnixTime) {
        self.machine.transmitted(packet, at);
    }
}
