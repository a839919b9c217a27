//! Note of the host in its state directory, to recognise a copy of the directory and a clock that
//! was stepped while no agent was running.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use prost::Message;

use super::{LOCK_FILE, disk};
use crate::time::{LARGE_STEP_NS, Monotonic, Now, UnixTime};

const NAME: &str = "host";
const MAGIC: &[u8] = b"twamp-agent host 1\n";

/// Facts that distinguish the current host from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Machine id (machine-id(5)); empty if there is none.
    pub machine_id: String,
    /// UUID of the (virtual) machine from its firmware; empty if it cannot be read.
    pub product_uuid: String,
    /// Host name.
    pub name: String,
    /// Number that identifies the current boot of the kernel; 0 if unknown.
    pub boot: u64,
}

/// Changes of the host since the previous start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFindings {
    /// Facts that differ from those of the previous start, as text; empty if none differs.
    pub changes: Vec<String>,
    /// Clock step while no agent was running, nanoseconds; 0 if there was none, or if it is unknown
    /// because the host has rebooted.
    pub step_ns: i64,
}

/// Content of the note.
#[derive(Clone, PartialEq, Eq, Message)]
struct Note {
    #[prost(string, tag = "1")]
    machine_id: String,
    #[prost(string, tag = "2")]
    product_uuid: String,
    #[prost(string, tag = "3")]
    host_name: String,
    /// Inode of the lock file.
    #[prost(uint64, tag = "4")]
    inode: u64,
    #[prost(uint64, tag = "5")]
    boot: u64,
    /// Both clocks at the time of writing.
    #[prost(uint64, tag = "6")]
    since_boot_ns: u64,
    #[prost(uint64, tag = "7")]
    unix_ns: u64,
    /// Remaining time during which no record is deleted by age, nanoseconds.
    #[prost(uint64, tag = "8")]
    keep_all_ns: u64,
}

/// Note of the running agent.
#[derive(Clone, Debug)]
pub(super) struct HostNote(Note);

impl HostNote {
    /// Compares the host with the note of the previous start. Returns the new note, which is not
    /// written yet, and the changes. The monotonic clock of `now` counts from the boot of the host.
    pub(super) fn compare(directory: &Path, host: Host, now: Now) -> (Self, HostFindings) {
        // A copy and a backup that was restored have another lock file; a directory that was
        // renamed has not.
        let lock = fs::metadata(directory.join(LOCK_FILE));
        let inode = lock.map_or(0, |metadata| metadata.ino());
        let mut note = Note {
            machine_id: host.machine_id,
            product_uuid: host.product_uuid,
            host_name: host.name,
            inode,
            boot: host.boot,
            since_boot_ns: now.monotonic.0,
            unix_ns: now.unix.0,
            keep_all_ns: 0,
        };
        let before: Option<Note> = disk::read_message(&directory.join(NAME), MAGIC);
        let mut findings = HostFindings::default();
        if let Some(before) = before {
            findings = HostFindings {
                changes: before.changes(&note),
                step_ns: before.step_ns(host.boot, now),
            };
            note.keep_all_ns = before.keep_all_ns;
        }
        (Self(note), findings)
    }

    /// Returns the time during which no record is deleted by age, nanoseconds.
    pub(super) fn keep_all_ns(&self) -> u64 {
        self.0.keep_all_ns
    }

    /// Writes the note with the current time.
    pub(super) fn write(&mut self, directory: &Path, now: Now, keep_all_ns: u64) {
        self.0.since_boot_ns = now.monotonic.0;
        self.0.unix_ns = now.unix.0;
        self.0.keep_all_ns = keep_all_ns;
        if let Err(error) = disk::replace_message(&directory.join(NAME), MAGIC, &self.0) {
            tracing::warn!(%error, "failed to write the host note");
        }
    }
}

/// Returns true for a note that exists and cannot be read.
pub(super) fn is_damaged(directory: &Path) -> bool {
    disk::is_damaged_message::<Note>(&directory.join(NAME), MAGIC)
}

impl Note {
    fn changes(&self, present: &Self) -> Vec<String> {
        let facts = [
            ("machine-id", &self.machine_id, &present.machine_id),
            ("product UUID", &self.product_uuid, &present.product_uuid),
            ("host name", &self.host_name, &present.host_name),
        ];
        // A fact that can no longer be read is no change.
        let changed = facts
            .into_iter()
            .filter(|(_, before, present)| before != present && !present.is_empty())
            .map(|(name, before, present)| format!("{name} {present} (was {before:?})"));
        let is_copy = self.inode != present.inode && self.inode != 0 && present.inode != 0;
        let copy = "the state directory is a copy, or was restored from one";
        changed.chain(is_copy.then(|| copy.to_owned())).collect()
    }

    fn step_ns(&self, boot: u64, now: Now) -> i64 {
        if self.boot != boot || boot == 0 {
            return 0;
        }
        let noted = Now { monotonic: Monotonic(self.since_boot_ns), unix: UnixTime(self.unix_ns) };
        let step_ns = now.step_since_ns(noted);
        if step_ns.unsigned_abs() < LARGE_STEP_NS { 0 } else { step_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::NANOS_PER_SECOND;

    fn host() -> Host {
        Host {
            machine_id: "m".into(),
            product_uuid: String::new(),
            name: "probe-1".into(),
            boot: 7,
        }
    }

    fn at(since_boot_s: u64, unix_s: u64) -> Now {
        Now {
            monotonic: Monotonic(since_boot_s * NANOS_PER_SECOND),
            unix: UnixTime(unix_s * NANOS_PER_SECOND),
        }
    }

    fn start(directory: &Path, host: Host, now: Now) -> HostFindings {
        let (mut note, findings) = HostNote::compare(directory, host, now);
        note.write(directory, now, note.keep_all_ns());
        findings
    }

    #[test]
    fn changed_facts_and_copies_are_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join(LOCK_FILE), "").unwrap();
        assert_eq!(start(path, host(), at(100, 5_000)), HostFindings::default(), "first start");
        assert_eq!(start(path, host(), at(200, 5_100)), HostFindings::default());
        let other = Host { machine_id: "n".into(), name: "probe-2".into(), ..host() };
        let found = start(path, other.clone(), at(300, 5_200)).changes;
        assert_eq!(found, [r#"machine-id n (was "m")"#, r#"host name probe-2 (was "probe-1")"#]);
        assert_eq!(start(path, other.clone(), at(400, 5_300)).changes.len(), 0, "reported once");
        let unknown = Host { machine_id: String::new(), ..other.clone() };
        assert_eq!(
            start(path, unknown, at(500, 5_400)).changes.len(),
            0,
            "an unknown id is no change"
        );

        let copy = tempfile::tempdir().unwrap();
        fs::copy(path.join(NAME), copy.path().join(NAME)).unwrap();
        fs::write(copy.path().join(LOCK_FILE), "").unwrap();
        let found = start(copy.path(), Host { machine_id: String::new(), ..other }, at(600, 5_500));
        assert_eq!(found.changes, ["the state directory is a copy, or was restored from one"]);
        fs::write(copy.path().join(NAME), "damaged").unwrap();
        assert_eq!(start(copy.path(), host(), at(700, 5_600)), HostFindings::default());
    }

    #[test]
    fn a_clock_step_between_two_starts_is_detected_within_one_boot() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let step_s = |host, now| {
            let step_ns = start(path, host, now).step_ns;
            assert_eq!(step_ns % NANOS_PER_SECOND.cast_signed(), 0);
            step_ns / NANOS_PER_SECOND.cast_signed()
        };
        assert_eq!(step_s(host(), at(100, 5_000)), 0);
        assert_eq!(step_s(host(), at(7_200, 12_100 + 59)), 0, "slewed for hours");
        assert_eq!(step_s(host(), at(7_300, 12_259 + 691_200)), 691_200);
        assert_eq!(step_s(host(), at(7_400, 12_359)), -691_200);
        let rebooted = Host { boot: 8, ..host() };
        assert_eq!(step_s(rebooted, at(10, 999_999)), 0, "unknown after a reboot");
        let unknown = Host { boot: 0, ..host() };
        assert_eq!(step_s(unknown.clone(), at(20, 1)), 0);
        assert_eq!(step_s(unknown, at(30, 999_999)), 0);
    }

    #[test]
    fn suspension_of_deletion_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (mut note, _) = HostNote::compare(directory.path(), host(), at(100, 5_000));
        assert_eq!(note.keep_all_ns(), 0);
        note.write(directory.path(), at(200, 5_100), 77);
        let (note, _) = HostNote::compare(directory.path(), host(), at(300, 5_200));
        assert_eq!(note.keep_all_ns(), 77);
    }
}
