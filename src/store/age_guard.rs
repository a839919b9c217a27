//! Suspends the deletion of records by age after a large clock step.

use std::path::PathBuf;

use super::host::HostNote;
use crate::time::{ClockWatch, LARGE_STEP_NS, Monotonic, NANOS_PER_SECOND, Now};

/// Time after a large clock step during which no record is deleted by age, so that an operator can
/// notice and correct a wrong clock. It is measured by the monotonic clock.
pub const KEEP_ALL_NS: u64 = 24 * 3_600 * NANOS_PER_SECOND;
/// Intervals at which the host note is written: normally, and while deletion by age is suspended.
const NOTE_NS: u64 = 3_600 * NANOS_PER_SECOND;
const NOTE_SOON_NS: u64 = 60 * NANOS_PER_SECOND;

/// Guard of deletion by age: detects clock steps and suspends the deletion.
#[derive(Debug)]
pub(super) struct AgeGuard {
    watch: ClockWatch,
    /// End of the suspension; `None` if deletion by age is not suspended.
    keep_all_until: Option<Monotonic>,
    note: Option<(PathBuf, HostNote)>,
    note_due: Monotonic,
}

impl AgeGuard {
    /// Creates the guard at the start of the agent. `note` is the state directory with the note of
    /// the host; a suspension that it contains continues.
    pub(super) fn new(note: Option<(PathBuf, HostNote)>, now: Now) -> Self {
        let keep_all_ns = note.as_ref().map_or(0, |(_, note)| note.keep_all_ns());
        let keep_all_until = (keep_all_ns > 0).then(|| now.monotonic.plus_ns(keep_all_ns));
        let note_due = now.monotonic.plus_ns(NOTE_NS);
        Self { watch: ClockWatch::new(now), keep_all_until, note, note_due }
    }

    /// Checks the clock for steps; returns true if records may be deleted by age.
    pub(super) fn update(&mut self, now: Now) -> bool {
        let step_ns = self.watch.step_ns(now).unwrap_or(0);
        if step_ns.unsigned_abs() >= LARGE_STEP_NS {
            self.keep_all_until = Some(now.monotonic.plus_ns(KEEP_ALL_NS));
            self.note_due = now.monotonic;
        }
        if self.keep_all_until.is_some_and(|until| until <= now.monotonic) {
            self.keep_all_until = None;
            self.note_due = now.monotonic;
        }
        if self.note_due <= now.monotonic {
            self.write_note(now);
        }
        self.keep_all_until.is_none()
    }

    /// Returns the end of the suspension; `None` if deletion by age is not suspended.
    pub(super) fn keep_all_until(&self) -> Option<Monotonic> {
        self.keep_all_until
    }

    /// Writes the clocks and the remaining suspension to the host note.
    pub(super) fn write_note(&mut self, now: Now) {
        let left_ns = self.keep_all_until.map_or(0, |until| until.since_ns(now.monotonic));
        if let Some((directory, note)) = &mut self.note {
            note.write(directory, now, left_ns);
        }
        self.note_due = now.monotonic.plus_ns(if left_ns > 0 { NOTE_SOON_NS } else { NOTE_NS });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{store::host::Host, time::UnixTime};

    const SECOND_NS: u64 = NANOS_PER_SECOND;

    fn at(uptime_s: u64, unix_s: u64) -> Now {
        Now { monotonic: Monotonic(uptime_s * SECOND_NS), unix: UnixTime(unix_s * SECOND_NS) }
    }

    #[test]
    fn large_step_in_either_direction_suspends_deletion_for_a_day() {
        let mut guard = AgeGuard::new(None, at(0, 1_000_000));
        assert!(guard.update(at(1, 1_000_001)));
        assert!(guard.update(at(2, 1_000_061)), "59 s");
        assert!(!guard.update(at(3, 1_691_262)), "8 days ahead");
        assert!(!guard.update(at(7, 1_000_067)), "and back");
        assert!(!guard.update(at(7 + 86_399, 1_086_466)));
        assert!(guard.update(at(7 + 86_400, 1_086_467)));
        assert_eq!(guard.keep_all_until(), None);
    }

    #[test]
    fn suspension_continues_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let begin = |now: Now| {
            let (note, findings) = HostNote::compare(path, Host::default(), now);
            (AgeGuard::new(Some((path.to_owned(), note)), now), findings)
        };
        let (mut guard, _) = begin(at(100, 5_000));
        assert!(!guard.update(at(101, 95_000)));
        assert!(!guard.update(at(3_701, 98_600)), "written at least once a minute");
        // The agent is killed: the note is not written again.
        let (mut guard, _) = begin(at(10, 98_700));
        assert!(!guard.update(at(11, 98_701)));
        assert!(!guard.update(at(10 + 82_799, 98_700 + 82_799)));
        assert!(guard.update(at(10 + 82_801, 98_700 + 82_801)));
        guard.write_note(at(92_812, 181_502));
        let (mut guard, _) = begin(at(92_900, 181_590));
        assert!(guard.update(at(92_901, 181_591)));
    }
}
