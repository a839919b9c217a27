//! Commands to the result writer, and the state that it publishes.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Entry, Retention, StoreError, state::Changed};
use crate::time::Monotonic;

/// Pause of the writer after a record with an empty queue, to collect further records.
const BATCH_PAUSE: Duration = Duration::from_millis(5);

/// Size and health of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    /// Description of the failure; empty if the store works.
    pub detail: String,
    /// Cursor of the earliest record; 0 if the log is empty.
    pub earliest: u64,
    /// Cursor up to which records of some connections may have been removed.
    pub trimmed_up_to: u64,
    /// Cursor of the newest record that readers may see; 0 before the first record.
    pub newest: u64,
    /// Number of stored records.
    pub records: u64,
    /// Size of the stored records, bytes.
    pub live_bytes: u64,
    /// Size of all databases on disk, bytes.
    pub disk_bytes: u64,
    /// Number of records that could not be stored.
    pub dropped: u64,
    /// Time until which no record is deleted by age, after a large clock step; `None` if deletion
    /// by age is not suspended.
    pub keep_all_until: Option<Monotonic>,
}

/// Command to the result writer.
#[derive(Debug)]
pub(super) enum Command {
    Append(Entry),
    SaveStatistics(Changed),
    MoveConsumer(String, u64, oneshot::Sender<Result<u64, StoreError>>),
    DeleteConsumer(String, oneshot::Sender<Result<bool, StoreError>>),
    SetRetention(Retention),
    SaveConnections,
    BeginIncarnation(String),
    Flush(oneshot::Sender<Result<(), StoreError>>),
    End,
}

/// Waits for the next command. After a record further records are likely, so the thread pauses
/// first: commands that arrive during the pause do not wake it.
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
    let pause = if appended { BATCH_PAUSE.min(wait) } else { Duration::ZERO };
    if !pause.is_zero() {
        thread::park_timeout(pause);
    }
    commands.recv_timeout(wait.saturating_sub(pause))
}
