//! Log lines of events: the agent logs of measurements what it records.

use super::Subject;
use crate::proto::{Event, EventType, FailureCause, Threshold, Word};

/// Logs an event, as a warning where the network fails or is worse than was configured.
pub(super) fn log_event(subject: &Subject, event: &Event) {
    // The start has a line of its own, with the addresses of the API.
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
    let text = event.r#type().word().to_lowercase().replace('_', " ");
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                connection, session, cause, attempts, revision, threshold, value, limit, epoch,
                detail, "{text}"
            )
        };
    }
    if matches!(event.r#type(), EventType::ConnectionLost | EventType::ThresholdRaised) {
        log!(warn);
    } else {
        log!(info);
    }
}
