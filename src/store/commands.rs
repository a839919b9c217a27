//! Commands to the writer of the results, and the state that it publishes.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Entry, Retention, StoreError, state::Changed};
use crate::time::Monotonic;

/// Pause of the thread after it wrote all that waited.
const REST: Duration = Duration::from_millis(5);

/// Content and condition of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    /// Description of a failure; empty without any.
    pub detail: String,
    /// Cursor of the earliest record; 0 where there is none.
    pub earliest: u64,
    /// Up to this cursor records of some connections may be gone.
    pub trimmed_up_to: u64,
    /// Cursor of the newest record that may be read; 0 where there never was one.
    pub newest: u64,
    /// Number of stored records.
    pub records: u64,
    /// Octets of the stored records.
    pub live_bytes: u64,
    /// Octets of all databases on the disk.
    pub disk_bytes: u64,
    /// Records that could not be written.
    pub dropped: u64,
    /// Time on the store's monotonic clock until which no record is deleted by age, because the
    /// clock was set by much; `None` otherwise.
    pub keep_all_until: Option<Monotonic>,
}

/// Command to the writer.
#[derive(Debug)]
pub(super) enum Command {
    Append(Entry),
    SaveStatistics(Changed),
    MoveConsumer(String, u64, oneshot::Sender<Result<u64, StoreError>>),
    DeleteConsumer(String, oneshot::Sender<Result<bool, StoreError>>),
    SetRetention(Retention),
    SaveConnections,
    BeginIncarnation(String),
    Flush(oneshot::Sender<()>),
    End,
}

/// Waits for the next command. After a record others follow: commands that come during the pause wake no
/// thread.
pub(super) fn next_command(
    commands: &Receiver<Command>,
    wait: Duration,
    appended: bool,
) -> Result<Command, RecvTimeoutError> {
    match commands.try_recv() {
        Ok(command) => return Ok(command),
        Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
        Err(TryRecvError::Empty) => {}
    }
    let rest = if appended { REST.min(wait) } else { Duration::ZERO };
    if !rest.is_zero() {
        thread::park_timeout(rest);
    }
    commands.recv_timeout(wait.saturating_sub(rest))
}
