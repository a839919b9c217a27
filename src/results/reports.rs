//! The way from whoever measures to the log: a bounded queue and one thread behind it, so that
//! neither a lock of the statistics nor the store holds up a probe.

use std::{
    io, iter,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Subject, log::Log};
use crate::{
    proto::{Figures, TestResult, record},
    time::UnixTime,
};

/// Reports on their way; what does not fit is dropped and counted. At a few hundred octets each,
/// some megabytes.
const REPORTS: usize = 16_384;
/// The thread rests so long after it took what there was: reports that come meanwhile wake nobody.
/// A reader hears of a record as much later.
const REST: Duration = Duration::from_millis(5);

/// A record to be, or a part of statistics.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) subject: Arc<Subject>,
    pub(super) told: Told,
    pub(super) time: UnixTime,
}

/// What is reported; small, because the queue has room for many.
#[derive(Debug)]
pub(super) enum Told {
    Record(Box<record::Kind>),
    /// A test that ended, and the minute that all of it was in.
    Test(Box<TestResult>, Option<u64>),
    /// What was sent in a minute of a longer test.
    Minute(u64, Box<Figures>),
}

/// What is in the queue.
#[derive(Debug)]
enum Item {
    Report(Report),
    /// The stored state of a connection, after all before it.
    Connection(String),
    /// To be told when all before it is in the log.
    Barrier(oneshot::Sender<()>),
    End,
}

/// The queue with its thread.
#[derive(Debug)]
pub(super) struct Reports {
    queue: SyncSender<Item>,
    thread: Mutex<Option<JoinHandle<()>>>,
    dropped: AtomicU64,
}

impl Reports {
    pub(super) fn start(log: Arc<Log>) -> io::Result<Self> {
        let (queue, reports) = sync_channel(REPORTS);
        let thread = thread::Builder::new().name("results".into()).spawn(move || {
            run(&log, &reports);
        })?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)), dropped: AtomicU64::new(0) })
    }

    /// Never waits.
    pub(super) fn send(&self, report: Report) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(Item::Report(report))
        {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Has the state of a connection stored after all that was reported so far; at once where the queue
    /// is full.
    pub(super) fn save_connection(&self, log: &Log, name: &str) {
        if self.queue.try_send(Item::Connection(name.to_owned())).is_err() {
            log.store.save_connection(name);
        }
    }

    /// Waits until all that was reported so far is in the log or, where the queue is full, not at all.
    pub(super) async fn settle(&self) {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send(Item::Barrier(answer)).is_ok() {
            let _ = answered.await;
        }
    }

    /// Reports that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Waits until all that was reported is in the log; nothing is taken after that.
    pub(super) fn end(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = self.queue.send(Item::End);
            if thread.join().is_err() {
                tracing::error!("the thread of the results failed");
            }
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(log: &Log, reports: &Receiver<Item>) {
    while let Ok(first) = reports.recv() {
        for item in iter::once(first).chain(reports.try_iter()) {
            match item {
                Item::Report(report) => take(log, report),
                Item::Connection(name) => log.store.save_connection(&name),
                Item::Barrier(answer) => drop(answer.send(())),
                Item::End => return,
            }
        }
        // Nobody unparks it.
        thread::park_timeout(REST);
    }
}

/// One that makes the log fail is lost, and the others are not.
fn take(log: &Log, report: Report) {
    if catch_unwind(AssertUnwindSafe(|| log.take(report))).is_err() {
        log.count_dropped();
    }
}
