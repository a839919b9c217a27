//! The sessions of a connection on their threads: made, told, looked after and ended.

use std::net::IpAddr;

use futures_util::{
    StreamExt,
    future::{JoinAll, join_all},
};
use tokio::sync::oneshot;

use super::{
    connection::Driver,
    open::OpenSession,
    sender::{self, Command, Grace, Session},
};
use crate::{
    session::plane::{Exit, Handle},
    wire::codes::Sid,
};

/// A session on its thread.
pub(super) struct SessionTask {
    pub(super) name: String,
    pub(super) handle: Handle<Command>,
}

/// What is known of a session that runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    /// `None` where nothing was negotiated.
    pub(super) sid: Option<Sid>,
    /// Where its probes go.
    pub(super) remote: IpAddr,
}

impl Driver {
    /// Takes up the configuration that is wanted: sessions that are gone end, new ones get a place,
    /// the others are told what is new for them.
    pub(super) async fn follow_sessions(&mut self) {
        self.config = self.current.config.clone();
        let names: Vec<&str> =
            self.config.sessions.iter().map(|session| session.name.as_str()).collect();
        self.progress.follow(&names);
        self.running.retain(|name, _| names.contains(&name.as_str()));
        self.declined.retain(|name, _| names.contains(&name.as_str()));
        let mut known = std::mem::take(&mut self.sessions);
        for index in 0..self.config.sessions.len() {
            let name = &self.config.sessions[index].name;
            let place = known.iter().position(|session| session.name == *name);
            let session = match place {
                Some(place) => {
                    let session = known.swap_remove(place);
                    let configure = Command::Configure(self.config.clone(), index);
                    // One that is gone is found by `change`.
                    let _ = session.handle.send(configure).await;
                    session
                }
                None => self.make_session(index),
            };
            self.sessions.push(session);
        }
        // Sessions end when nobody is left to command them.
        drop(known);
        self.status.configured(&self.config, self.applied);
        let handles = self.sessions.iter().map(|session| session.handle.clone()).collect();
        self.status.set_session_handles(handles);
    }

    fn make_session(&mut self, index: usize) -> SessionTask {
        let tools = sender::Tools {
            results: self.results.clone(),
            status: self.status.clone(),
            progress: self.progress.clone(),
            pace: self.senders.pace.clone(),
        };
        let session = Session::new(&self.config, index, tools);
        let name = self.config.sessions[index].name.clone();
        match self.senders.plane.spawn(|_| session, None, sender::COMMANDS) {
            Ok((handle, ended)) => {
                self.ends.push(ended);
                SessionTask { name, handle }
            }
            // The driver is started again, and tries once more.
            Err(error) => panicked(format!("session {name} has no thread: {error}")),
        }
    }

    /// Gives sessions that are started to their tasks.
    pub(super) async fn start_sessions(&mut self, sessions: Vec<OpenSession>) {
        for session in sessions {
            let named = self.sessions.iter().position(|task| task.name == session.name);
            let Some(index) = named else { continue };
            let sid = session.sid.map(|sid| sid.to_string()).unwrap_or_default();
            let (local, remote) = (session.socket.local(), session.remote);
            self.status.session_started(&session.name, sid, local, remote);
            let running = Running { sid: session.sid, remote: session.remote.ip() };
            self.running.insert(session.name.clone(), running);
            self.declined.remove(&session.name);
            self.tell(index, Command::Up(Box::new(session))).await;
        }
    }

    /// Sessions end when nobody is left to command them.
    pub(super) async fn end_sessions(&mut self) {
        self.sessions.clear();
        self.running.clear();
        self.status.set_session_handles(Vec::new());
        while self.ends.next().await.is_some() {}
    }

    /// Ends running tests as STOPPED, once what is under way is answered or lost; returns when
    /// their results are reported.
    pub(super) async fn stop_sessions(&mut self) {
        self.ask(|_| true, |done| Command::Stop(done, Grace::Short)).await.await;
    }

    /// Tells sessions to do what they answer when it is done; what it gives ends when all have.
    pub(super) async fn ask(
        &self,
        which: impl Fn(&str) -> bool,
        command: impl Fn(oneshot::Sender<()>) -> Command,
    ) -> JoinAll<oneshot::Receiver<()>> {
        let mut answers = Vec::with_capacity(self.sessions.len());
        for index in 0..self.sessions.len() {
            if which(&self.sessions[index].name) {
                let (done, answer) = oneshot::channel();
                self.tell(index, command(done)).await;
                answers.push(answer);
            }
        }
        join_all(answers)
    }

    pub(super) async fn tell(&self, index: usize, command: Command) {
        // A session that is gone is found by `change`.
        let _ = self.sessions[index].handle.send(command).await;
    }

    /// A session that stalled takes the driver with it, which is started again.
    pub(super) fn look_after_sessions(&self) {
        if let Some(session) = self.sessions.iter().find(|s| s.handle.has_stalled()) {
            panicked(format!("session {} has stalled", session.name));
        }
    }

    /// A session ended; one that panicked takes the driver with it.
    pub(super) fn session_ended(ended: Result<Exit, oneshot::error::RecvError>) {
        match ended {
            Ok(Exit::Clean) => {}
            Ok(Exit::Panicked(text)) => panicked(text),
            Err(_) => panicked("a thread of the data plane failed".into()),
        }
    }
}

/// Ends the driver, which is started again.
fn panicked(text: String) -> ! {
    std::panic::resume_unwind(Box::new(text))
}
