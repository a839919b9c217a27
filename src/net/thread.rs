//! What a thread asks of the kernel for itself.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::prctl,
    unistd::Pid,
};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// Where and how urgently a thread runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadPlace {
    /// CPUs that it may run on; empty for all.
    pub cpus: Vec<usize>,
    /// Priority of SCHED_FIFO, 1 to 99; 0 for the ordinary scheduler.
    pub realtime_priority: u8,
}

/// Puts the thread that calls there; what the kernel refuses is in the answer, in words, and the
/// rest holds.
pub fn take_place(place: &ThreadPlace) -> Vec<String> {
    let mut refused = Vec::new();
    if !place.cpus.is_empty() {
        let mut set = CpuSet::new();
        for cpu in &place.cpus {
            if set.set(*cpu).is_err() {
                refused.push(format!("CPU {cpu} is beyond what this system can name"));
            }
        }
        let this = Pid::from_raw(0);
        match sched_setaffinity(this, &set).and_then(|()| sched_getaffinity(this)) {
            Err(error) => refused.push(format!("CPUs {:?}: {}", place.cpus, error.desc())),
            // The kernel leaves out without a word what is not there, or not for this process.
            Ok(given) => {
                let missing = |cpu: &&usize| !given.is_set(**cpu).unwrap_or(false);
                let missing: Vec<_> = place.cpus.iter().filter(missing).collect();
                if !missing.is_empty() {
                    refused
                        .push(format!("CPUs {missing:?} are not there, or not for this process"));
                }
            }
        }
    }
    // Timers of an ordinary thread may ring this much later, so that others ring with them.
    if let Err(error) = prctl::set_timerslack(1) {
        refused.push(format!("timer slack: {}", error.desc()));
    }
    if place.realtime_priority > 0 {
        let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
        let set = ThreadPriorityValue::try_from(place.realtime_priority)
            .map(ThreadPriority::Crossplatform)
            .map_err(|_| thread_priority::Error::Priority("it is from 1 to 99"))
            .and_then(|priority| {
                set_thread_priority_and_policy(thread_native_id(), priority, policy)
            });
        if let Err(error) = set {
            refused.push(format!(
                "SCHED_FIFO {}: {error:?}; it needs CAP_SYS_NICE or LimitRTPRIO=",
                place.realtime_priority
            ));
        }
    }
    refused
}
