//! Handles of the test sessions of a connection, with which their endpoints are created, commanded,
//! watched and ended.

use std::sync::Arc;

use futures_util::{
    StreamExt,
    future::{JoinAll, join_all},
    stream::FuturesUnordered,
};
use tokio::sync::oneshot;

use super::{
    Tools,
    command::{COMMANDS, Command},
    open::OpenSession,
    progress::Progress,
    sender::{self, Session},
};
use crate::{
    model::ControlConnection,
    session::plane::{Exit, Handle},
};

struct SessionHandle {
    name: String,
    handle: Handle<Command>,
}

/// The sessions of one connection. A session whose thread panicked or stalled ends the driver, which
/// is started again.
#[derive(Default)]
pub(super) struct SessionHandles {
    sessions: Vec<SessionHandle>,
    ends: FuturesUnordered<oneshot::Receiver<Exit>>,
    progress: Arc<Progress>,
}

impl SessionHandles {
    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Applies a configuration: ends sessions that are no longer configured, creates new ones, and
    /// configures the others.
    pub(super) async fn configure(&mut self, config: &Arc<ControlConnection>, tools: &Tools) {
        let names: Vec<&str> =
            config.sessions.iter().map(|session| session.name.as_str()).collect();
        self.progress.set_sessions(&names);
        let mut known = std::mem::take(&mut self.sessions);
        for (index, name) in names.into_iter().enumerate() {
            let session = match known.iter().position(|session| session.name == name) {
                Some(position) => {
                    let session = known.swap_remove(position);
                    let configure = Command::Configure(config.clone(), index);
                    // The end of a session is handled by `next_end`.
                    let _ = session.handle.send(configure).await;
                    session
                }
                None => self.create(config, index, tools),
            };
            self.sessions.push(session);
        }
        // A session ends when its last handle is dropped.
        drop(known);
        let handles = self.sessions.iter().map(|session| session.handle.clone()).collect();
        tools.status.set_session_handles(handles);
    }

    fn create(&mut self, config: &ControlConnection, index: usize, tools: &Tools) -> SessionHandle {
        let session_tools = sender::Tools {
            results: tools.results.clone(),
            status: tools.status.clone(),
            progress: self.progress.clone(),
            pacing: tools.senders.pacing.clone(),
        };
        let session = Session::new(config, index, session_tools);
        let name = config.sessions[index].name.clone();
        match tools.senders.plane.spawn(|_| session, None, COMMANDS) {
            Ok((handle, ended)) => {
                self.ends.push(ended);
                SessionHandle { name, handle }
            }
            Err(error) => fail_driver(format!("session {name} has no thread: {error}")),
        }
    }

    /// Starts a session with its socket, unless it is no longer configured.
    pub(super) async fn start(&self, session: OpenSession) {
        if let Some(handle) = self.handle(&session.name) {
            let _ = handle.send(Command::Up(Box::new(session))).await;
        }
    }

    /// Sends a command to one session.
    pub(super) async fn send(&self, name: &str, command: Command) {
        if let Some(handle) = self.handle(name) {
            let _ = handle.send(command).await;
        }
    }

    /// Sends a command to all sessions.
    pub(super) async fn send_all(&self, command: impl Fn() -> Command) {
        for session in &self.sessions {
            let _ = session.handle.send(command()).await;
        }
    }

    /// Sends a command to the named sessions, or to all if `names` is `None`. The returned future
    /// completes when all have answered.
    pub(super) async fn request(
        &self,
        names: Option<&[String]>,
        command: impl Fn(oneshot::Sender<()>) -> Command,
    ) -> JoinAll<oneshot::Receiver<()>> {
        let mut answers = Vec::with_capacity(self.sessions.len());
        for session in &self.sessions {
            if names.is_none_or(|names| names.contains(&session.name)) {
                let (done, answer) = oneshot::channel();
                let _ = session.handle.send(command(done)).await;
                answers.push(answer);
            }
        }
        join_all(answers)
    }

    /// Ends all sessions and waits until the last has ended.
    pub(super) async fn end(&mut self, tools: &Tools) {
        self.sessions.clear();
        tools.status.set_session_handles(Vec::new());
        while self.ends.next().await.is_some() {}
    }

    /// Waits for the end of a session; pending while there is none.
    pub(super) async fn next_end(&mut self) {
        match self.ends.next().await {
            None => std::future::pending().await,
            Some(Ok(Exit::Clean)) => {}
            Some(Ok(Exit::Panicked(text))) => fail_driver(text),
            Some(Err(_)) => fail_driver("a thread of the data plane failed".into()),
        }
    }

    /// Ends the driver if a session has stalled.
    pub(super) fn check_stalled(&self) {
        if let Some(session) = self.sessions.iter().find(|s| s.handle.has_stalled()) {
            fail_driver(format!("session {} has stalled", session.name));
        }
    }

    fn handle(&self, name: &str) -> Option<&Handle<Command>> {
        let mut sessions = self.sessions.iter();
        sessions.find(|session| session.name == name).map(|session| &session.handle)
    }
}

/// Ends the driver, which is started again.
fn fail_driver(text: String) -> ! {
    std::panic::resume_unwind(Box::new(text))
}
