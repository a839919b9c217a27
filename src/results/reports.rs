//! The way from whoever measures to the log: a bounded queue and one thread behind it, so that
//! neither a lock of the statistics nor the store holds up a probe.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

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

/// The queue with its thread.
#[derive(Debug)]
pub(super) struct Reports {
    queue: SyncSender<Option<Report>>,
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
            self.queue.try_send(Some(report))
        {
            self.dropped.fetch_add(1, Relaxed);
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
            let _ = self.queue.send(None);
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

fn run(log: &Log, reports: &Receiver<Option<Report>>) {
    while let Ok(Some(report)) = reports.recv() {
        take(log, report);
        loop {
            match reports.try_recv() {
                Ok(Some(report)) => take(log, report),
                Ok(None) => return,
                Err(_) => break,
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
