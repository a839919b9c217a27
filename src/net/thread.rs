//! CPU affinity, timer slack and priority of the current thread.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::prctl,
    unistd::Pid,
};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// CPU affinity and priority of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadScheduling {
    /// Allowed CPUs; empty for all.
    pub cpus: Vec<usize>,
    /// SCHED_FIFO priority, 1 to 99; 0 for the default scheduler.
    pub realtime_priority: u8,
}

/// Applies the scheduling to the calling thread. Returns a description of each setting that the
/// kernel rejected; all other settings are applied.
pub fn apply_scheduling(scheduling: &ThreadScheduling) -> Vec<String> {
    let mut errors = Vec::new();
    if !scheduling.cpus.is_empty() {
        let mut set = CpuSet::new();
        for cpu in &scheduling.cpus {
            if set.set(*cpu).is_err() {
                errors.push(format!("CPU {cpu} is above the limit of the system"));
            }
        }
        let this = Pid::from_raw(0);
        match sched_setaffinity(this, &set).and_then(|()| sched_getaffinity(this)) {
            Err(error) => errors.push(format!("CPUs {:?}: {}", scheduling.cpus, error.desc())),
            // The kernel silently ignores CPUs that are offline or outside the cpuset of the
            // process.
            Ok(applied) => {
                let missing = |cpu: &&usize| !applied.is_set(**cpu).unwrap_or(false);
                let missing: Vec<_> = scheduling.cpus.iter().filter(missing).collect();
                if !missing.is_empty() {
                    errors.push(format!(
                        "CPUs {missing:?} are offline or not allowed for this process"
                    ));
                }
            }
        }
    }
    // The default slack of 50 µs lets the kernel delay timers to merge wake-ups.
    if let Err(error) = prctl::set_timerslack(1) {
        errors.push(format!("timer slack: {}", error.desc()));
    }
    if scheduling.realtime_priority > 0 {
        let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
        let set = ThreadPriorityValue::try_from(scheduling.realtime_priority)
            .map(ThreadPriority::Crossplatform)
            .map_err(|_| thread_priority::Error::Priority("expected 1 to 99"))
            .and_then(|priority| {
                set_thread_priority_and_policy(thread_native_id(), priority, policy)
            });
        if let Err(error) = set {
            errors.push(format!(
                "SCHED_FIFO {}: {error:?}; CAP_SYS_NICE or LimitRTPRIO= is required",
                scheduling.realtime_priority
            ));
        }
    }
    errors
}
