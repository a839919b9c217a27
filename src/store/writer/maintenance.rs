//! Work of the writer besides commands: retention, free space, the files it writes to, and databases
//! that failed.

use std::sync::{Arc, PoisonError};

use super::{
    super::{
        engine::Engine,
        reserve::{self, RESERVE_OCTETS, free_octets},
        schema,
        state::{CACHE_OCTETS, Trees},
        windows::{Allowed, Windows},
    },
    Open, REOPEN_INTERVAL_NS, Writer,
};
use crate::time::{Monotonic, Now};

impl Writer {
    /// Returns the bytes on disk by which the state directory exceeds its quota.
    pub(super) fn disk_excess(&mut self, now: Monotonic) -> u64 {
        let Some(open) = &self.open else { return 0 };
        let (bytes, leaving) = (open.disk_bytes(), open.windows.leaving_bytes());
        self.disk_usage.excess(now, self.retention.disk_octets, bytes, leaving)
    }

    /// Fails if a file that is written to was deleted or replaced.
    pub(super) fn check_presence(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let open =
            |open: &Open| open.engine.check_presence().and_then(|()| open.windows.check_presence());
        let present = self.presence.check().and_then(|()| self.open.as_ref().map_or(Ok(()), open));
        if let Err(error) = present {
            self.fail(&error);
        }
    }

    /// Writes copies again that somebody deleted or changed. A directory that was replaced gets none.
    fn mend_copies(&mut self) {
        if self.presence.check().is_err() {
            return;
        }
        let directory = self.path.parent().unwrap_or(&self.path);
        schema::mend(directory);
        self.identity.mend(directory);
        self.incarnations.write().unwrap_or_else(PoisonError::into_inner).mend(directory);
        self.reservation.mend();
    }

    /// Applies the retention, checks the free disk space, and reopens a database that failed.
    pub(super) fn run_maintenance(&mut self, now: Now) {
        self.check_presence();
        self.mend_copies();
        let too_few = free_octets(&self.path).filter(|free| *free < RESERVE_OCTETS);
        match (too_few, &self.failure) {
            (Some(free), _) => self.stop_storing(full(free)),
            (None, Some(failure)) if failure.starts_with(FULL) && self.open.is_some() => {
                self.failure = None;
                tracing::info!("disk has space again, storing results");
                reserve::prepare(self.directory());
            }
            (None, Some(_)) if self.reopen_due.is_none_or(|again| again <= now.monotonic) => {
                self.reopen_due = Some(now.monotonic.plus_ns(REOPEN_INTERVAL_NS));
                self.reopen();
            }
            (None, _) => {}
        }
        if self.failure.is_none() && !self.unsaved.is_empty() {
            self.save(Vec::new());
        }
        self.unflushed |= self.connections.has_unsaved();
        let allowed = Allowed {
            delete_by_age: self.age_guard.update(now),
            copy: self.failure.is_none(),
            disk_excess: self.disk_excess(now.monotonic),
        };
        if let Some(Open { engine, windows }) = &mut self.open
            && let Err(error) =
                windows.retain(&self.retention, now, allowed, || engine.flush_durably())
        {
            self.fail(&error);
        }
        self.publish();
    }

    /// Reopens the databases: after an error sled accepts no more writes.
    pub(super) fn reopen(&mut self) {
        // Another agent may hold the directory that replaced this one. Readers keep what is open.
        if let Err(error) = self.presence.check() {
            self.failure = Some(error.to_string());
            return;
        }
        *self.trees.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        self.open = None;
        let opened = Engine::open(&self.path, CACHE_OCTETS).and_then(|engine| {
            let trees = Trees::open(&engine)?;
            let windows =
                Windows::reopen(&self.log_path, &trees.meta, self.newest + 1, self.list.clone())?;
            engine.flush_durably()?;
            Ok((trees, Open { windows, engine }))
        });
        match opened {
            Ok((trees, open)) => {
                *self.trees.write().unwrap_or_else(PoisonError::into_inner) = Some(trees);
                self.open = Some(open);
                self.failure = None;
                self.reopen_due = None;
                tracing::info!("results database reopened, storing results");
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
    }
}

const FULL: &str = "the disk is full";

fn full(free: u64) -> String {
    format!("{FULL}: {free} bytes free, {RESERVE_OCTETS} needed; results are not stored")
}
