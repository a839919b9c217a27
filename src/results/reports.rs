//! The path from the measurements to the log: a bounded queue and one thread, so that neither the
//! lock of the statistics nor the store delays a probe.

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

use super::{log::Log, report::Report};

/// Maximum number of reports in the queue; further reports are dropped and counted. Ten thousand
/// connections that are lost together make some 25,000 reports. A report takes a few hundred bytes.
const REPORT_QUEUE: usize = 65_536;
/// Pause of the thread after it emptied the queue, so that it does not wake for each report. Records
/// are delayed by up to this time.
const BATCH_PAUSE: Duration = Duration::from_millis(5);

/// Entry of the queue.
#[derive(Debug)]
enum Item {
    Report(Report),
    /// Persists the state of a connection after the reports before it.
    Connection(String),
    /// Answered when all reports before it are in the log.
    Barrier(oneshot::Sender<()>),
    End,
}

/// Handle of the queue and its thread.
#[derive(Debug)]
pub(super) struct Reports {
    queue: SyncSender<Item>,
    thread: Mutex<Option<JoinHandle<()>>>,
    dropped: AtomicU64,
}

impl Reports {
    pub(super) fn start(log: Arc<Log>) -> io::Result<Self> {
        let (queue, reports) = sync_channel(REPORT_QUEUE);
        let thread = thread::Builder::new().name("results".into()).spawn(move || {
            run(&log, &reports);
        })?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)), dropped: AtomicU64::new(0) })
    }

    /// Queues a report without waiting.
    pub(super) fn send(&self, report: Report) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(Item::Report(report))
        {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Persists the state of a connection after all reports so far; at once if the queue is full.
    pub(super) fn save_connection(&self, log: &Log, name: &str) {
        if self.queue.try_send(Item::Connection(name.to_owned())).is_err() {
            log.store.save_connection(name);
        }
    }

    /// Waits until all reports so far are in the log; returns at once if the queue is full.
    pub(super) async fn wait_until_logged(&self) {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send(Item::Barrier(answer)).is_ok() {
            let _ = answered.await;
        }
    }

    /// Returns the number of reports dropped because the queue was full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Ends the thread once all reports are in the log; later ones are dropped.
    pub(super) fn end(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = self.queue.send(Item::End);
            if thread.join().is_err() {
                tracing::error!("results thread failed");
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
                Item::Report(report) => append(log, report),
                Item::Connection(name) => log.store.save_connection(&name),
                Item::Barrier(answer) => drop(answer.send(())),
                Item::End => return,
            }
        }
        // No other thread unparks this one.
        thread::park_timeout(BATCH_PAUSE);
    }
}

/// Appends a report. A panic loses only that report.
fn append(log: &Log, report: Report) {
    if catch_unwind(AssertUnwindSafe(|| log.append_report(report))).is_err() {
        log.count_dropped();
    }
}
