//! Logs events, so that the log of the agent contains all events of the result log.

use super::Subject;
use crate::proto::{Event, EventType, FailureCause, Threshold, Word};

/// Logs an event with its values as fields; as a warning if the network, the store or the clock
/// does not work as configured.
pub(super) fn log_event(subject: &Subject, event: &Event) {
    // The start is logged separately, with the addresses of the API.
    if event.r#type() == EventType::AgentStarted {
        return;
    }
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (connection, session) = (given(subject.connection()), given(subject.session()));
    let cause = (event.cause() != FailureCause::Unspecified).then(|| event.cause().word());
    let attempts = (event.attempts > 0).then_some(event.attempts);
    let revision = (event.revision > 0).then_some(event.revision);
    let crosses = event.threshold() != Threshold::Unspecified;
    let threshold = crosses.then(|| event.threshold().word());
    let (value, limit) = (crosses.then_some(event.value), crosses.then_some(event.limit));
    let epoch = (event.r#type() == EventType::StatisticsCleared).then_some(event.value);
    let detail = given(&event.detail);
    macro_rules! log {
        ($level:ident, $message:literal) => {
            tracing::$level!(
                connection, session, cause, attempts, revision, threshold, value, limit, epoch,
                detail, $message
            )
        };
    }
    match event.r#type() {
        EventType::AgentStarted => log!(info, "agent started"),
        EventType::AgentStopped => log!(info, "agent stopping"),
        EventType::AgentPaused => log!(warn, "agent paused"),
        EventType::ConfigurationCommitted => log!(info, "configuration committed"),
        EventType::ConnectionLost => log!(warn, "connection lost"),
        EventType::ConnectionRestored => log!(info, "connection restored"),
        EventType::ConnectionAbandoned => log!(info, "connection abandoned during an outage"),
        EventType::ConnectionCompleted => log!(info, "connection completed"),
        EventType::ThresholdRaised => log!(warn, "threshold raised"),
        EventType::ThresholdCleared => log!(info, "threshold cleared"),
        EventType::StoreDegraded => log!(warn, "store degraded"),
        EventType::StoreRecovered => log!(info, "store recovered"),
        EventType::ClockStepped => log!(warn, "clock stepped"),
        EventType::HostChanged => log!(warn, "host changed"),
        EventType::StatisticsCleared => log!(info, "statistics cleared"),
        EventType::TestDone => log!(debug, "test done"),
        EventType::TestIterationDone => log!(debug, "test iteration done"),
        EventType::Unspecified => log!(debug, "unknown event"),
    }
}
