//! Events of the store, of this host and of its clock.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Results, Subject};
use crate::{
    proto::{Event, EventType},
    store::{HostFindings, KEEP_ALL_NS},
    supervise::watch_pauses,
    time::{ClockWatch, LARGE_STEP_NS, NANOS_PER_SECOND, Now, UnixTime, duration_to_proto},
};

/// Interval of checks for damage of the configuration.
const DAMAGE_INTERVAL: Duration = Duration::from_secs(1);
const HOST_INTERVAL: Duration = Duration::from_secs(1);

/// Reports faults of the store and their end. `damage` returns the damage of the configuration. A
/// fault that prevents records from being stored is reported once it is over.
pub async fn watch_store(
    results: Arc<Results>,
    damage: impl Fn() -> String + Send,
    now: fn() -> Now,
    token: CancellationToken,
) {
    let event = |kind: EventType, detail: String, since: Option<UnixTime>| {
        let event = Event {
            r#type: kind.into(),
            detail,
            start_time: since.map(UnixTime::to_proto),
            ..Event::default()
        };
        results.event(Subject::agent(), event, now().unix);
    };
    if !results.damage().is_empty() {
        event(EventType::StoreDegraded, results.damage().to_owned(), None);
    }
    let mut state = results.state();
    let mut faults = [Fault::default(), Fault::default()];
    loop {
        let details = [state.borrow_and_update().detail.clone(), damage()];
        for (fault, detail) in faults.iter_mut().zip(details) {
            if let Some((kind, detail, since)) = fault.update(detail, now().unix) {
                event(kind, detail, since);
            }
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() {
                return;
            },
            () = sleep(DAMAGE_INTERVAL) => {}
            () = token.cancelled() => return,
        }
    }
}

/// Start time and description of the current fault.
#[derive(Default)]
struct Fault(Option<(UnixTime, String)>);

impl Fault {
    /// Updates the fault; `detail` is empty without one. Returns the event to report if it began or
    /// ended.
    fn update(
        &mut self,
        detail: String,
        now: UnixTime,
    ) -> Option<(EventType, String, Option<UnixTime>)> {
        match (&self.0, detail.is_empty()) {
            (None, false) => {
                self.0 = Some((now, detail.clone()));
                Some((EventType::StoreDegraded, detail, None))
            }
            (Some(_), true) => {
                let (since, detail) = self.0.take()?;
                Some((EventType::StoreRecovered, detail, Some(since)))
            }
            (None, true) | (Some(_), false) => None,
        }
    }
}

/// Reports pauses of the process, in which nothing was measured although no task had stalled.
pub async fn report_pauses(results: Arc<Results>, now: fn() -> Now, token: CancellationToken) {
    let report = |pause: Duration| {
        let (end, pause_ns) = (now().unix, pause.as_nanos() as u64);
        let start = end.plus_ns(-pause_ns.cast_signed());
        let detail = format!("the agent did not run for {:.1} s", pause.as_secs_f64());
        let event = Event {
            r#type: EventType::AgentPaused.into(),
            detail,
            duration: Some(duration_to_proto(pause_ns)),
            start_time: Some(start.to_proto()),
            ..Event::default()
        };
        results.mark_suspect(start);
        results.mark_suspect(end);
        results.event(Subject::agent(), event, end);
    };
    watch_pauses(report, token).await;
}

/// Reports steps of the clock, which affect one-way delays, and a change of the machine id, for
/// example after the snapshot of a virtual machine was resumed on another host.
pub async fn watch_host(
    results: Arc<Results>,
    now: fn() -> Now,
    machine_id: fn() -> String,
    token: CancellationToken,
) {
    let mut watch = ClockWatch::new(now());
    let mut known_id = machine_id();
    loop {
        tokio::select! {
            () = sleep(HOST_INTERVAL) => {}
            () = token.cancelled() => return,
        }
        let now = now();
        if let Some(step_ns) = watch.step_ns(now) {
            clock_stepped(&results, step_ns, now.unix, "");
        }
        let id = machine_id();
        if !id.is_empty() && id != known_id {
            let change = format!("machine-id {id} (was {known_id:?})");
            host_changed(&results, vec![change], now.unix);
            results.change_incarnation();
            known_id = id;
        }
    }
}

/// Reports the changes of the host since the previous start.
pub fn report_host(results: &Results, findings: HostFindings, now: UnixTime) {
    if findings.step_ns != 0 {
        clock_stepped(results, findings.step_ns, now, " while no agent ran");
    }
    if !findings.changes.is_empty() {
        host_changed(results, findings.changes, now);
    }
}

fn clock_stepped(results: &Results, step_ns: i64, now: UnixTime, when: &str) {
    let mut detail = format!("by {:.3} ms{when}", step_ns as f64 / 1e6);
    if step_ns.unsigned_abs() >= LARGE_STEP_NS {
        let hours = KEEP_ALL_NS / (3_600 * NANOS_PER_SECOND);
        detail += &format!("; no record is deleted by age for {hours} h");
        results.change_incarnation();
    }
    let kind = EventType::ClockStepped.into();
    let event = Event { r#type: kind, value: step_ns, detail, ..Event::default() };
    // The times before and after the step.
    results.mark_suspect(now.plus_ns(-step_ns));
    results.mark_suspect(now);
    if step_ns < 0 {
        results.forget_future(now);
    }
    results.event(Subject::agent(), event, now);
}

fn host_changed(results: &Results, changes: Vec<String>, now: UnixTime) {
    let detail = format!(
        "{}; where the agent of the earlier host or directory still runs, stop one of the two and run \
         `twamp-agent db new-identity` on its state directory",
        changes.join(", ")
    );
    results.note_host_changes(changes);
    results.agent_event(EventType::HostChanged, 0, detail, now);
}
