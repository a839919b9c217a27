//! Conversion of internal errors into gRPC statuses.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    control::{ApplyError, ClientsError},
    model::Violation,
    net::ResourceRefusal,
    store::StoreError,
};

/// Octets of details in a status. They travel in a header, and common clients refuse headers
/// beyond 8 KiB, base64 included.
const DETAIL_OCTETS: usize = 5 * 1024;

/// A violation of one field.
pub(super) fn invalid(field: &str, description: impl Into<String>) -> Status {
    all_invalid(&[Violation { field: field.to_owned(), description: description.into() }])
}

/// Checks that a request names its targets or selects all of them.
pub(super) fn check_chosen(field: &str, has_names: bool, all: bool) -> Result<(), Status> {
    match (has_names, all) {
        (false, false) => Err(invalid(field, "required, unless `all` is set")),
        (true, true) => Err(invalid("all", format!("excludes `{field}`: set one of them"))),
        _ => Ok(()),
    }
}

/// Returns `INVALID_ARGUMENT` with every violation that fits, and counts the others.
pub(super) fn all_invalid(violations: &[Violation]) -> Status {
    let mut details = ErrorDetails::new();
    let shown = shown(violations.iter().map(|v| (&v.field, &v.description)));
    for violation in &violations[..shown] {
        details.add_bad_request_violation(&violation.field, &violation.description);
    }
    let left_out = violations.len() - shown;
    if left_out > 0 {
        let plural = if left_out == 1 { "" } else { "s" };
        details.add_bad_request_violation("", format!("and {left_out} more violation{plural}"));
    }
    let message = summary(
        "violations",
        violations.len(),
        violations.first().map(|v| (v.field.as_str(), v.description.as_str())),
    );
    Status::with_error_details(Code::InvalidArgument, message, details)
}

fn refused(refusals: &[ResourceRefusal]) -> Status {
    let mut details = ErrorDetails::new();
    let shown = shown(refusals.iter().map(|r| (&r.field, &r.description)));
    for refusal in &refusals[..shown] {
        details.add_precondition_failure_violation(
            "RESOURCE",
            &refusal.field,
            &refusal.description,
        );
    }
    let message = summary(
        "resources that are not available on this host",
        refusals.len(),
        refusals.first().map(|r| (r.field.as_str(), r.description.as_str())),
    );
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// Returns the number of violations that fit into the details.
fn shown<'a>(items: impl Iterator<Item = (&'a String, &'a String)>) -> usize {
    let mut room = DETAIL_OCTETS;
    items
        .take_while(|(field, description)| {
            // Protobuf framing takes a dozen bytes for each violation.
            let size = field.len() + description.len() + 12;
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        })
        .count()
}

fn summary(what: &str, count: usize, first: Option<(&str, &str)>) -> String {
    let (field, description) = first.unwrap_or_default();
    let separator = if field.is_empty() { "" } else { ": " };
    if count == 1 {
        format!("{field}{separator}{description}")
    } else {
        format!("{count} {what}; the first: {field}{separator}{description}")
    }
}

/// Converts the reason for which a configuration was not applied.
pub(super) fn apply(error: ApplyError) -> Status {
    match error {
        ApplyError::Invalid(violations) => all_invalid(&violations),
        ApplyError::Stale { .. } => Status::aborted(error.to_string()),
        ApplyError::RequestReused(_) => Status::already_exists(error.to_string()),
        ApplyError::NoRevision(_) | ApplyError::NothingBefore(_) => {
            Status::not_found(error.to_string())
        }
        ApplyError::NotPending { .. } => Status::failed_precondition(error.to_string()),
        ApplyError::Refused(refusals) => refused(&refusals),
        ApplyError::Store(_) | ApplyError::Ending => Status::unavailable(error.to_string()),
    }
}

/// Converts the error of a request that names connections or sessions.
pub(super) fn by_hand(error: &ClientsError) -> Status {
    match error {
        ClientsError::Unknown(_) | ClientsError::UnknownSession(_) => {
            Status::not_found(error.to_string())
        }
        ClientsError::Inactive(_) => Status::failed_precondition(error.to_string()),
        ClientsError::NotStored(_) => Status::unavailable(error.to_string()),
    }
}

/// Converts an error of the store.
pub(super) fn store(error: StoreError) -> Status {
    match error {
        StoreError::Damaged(_) => Status::data_loss(error.to_string()),
        StoreError::TooManyConsumers(_) => Status::resource_exhausted(error.to_string()),
        StoreError::Locked(_)
        | StoreError::Directory { .. }
        | StoreError::NewerSchema { .. }
        | StoreError::OldSchema(_)
        | StoreError::Removed(_)
        | StoreError::Database(_)
        | StoreError::Full { .. }
        | StoreError::Unavailable => Status::unavailable(error.to_string()),
    }
}

/// Returns the status of requests that arrive during the shutdown.
pub(super) fn ending() -> Status {
    Status::unavailable("the agent is shutting down")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_stay_below_what_clients_take() {
        let violation = |index| Violation {
            field: format!("client.control_connections[{index}].test_sessions[0].ttl"),
            description: "0 is out of range: 1 to 255".into(),
        };
        let violations: Vec<Violation> = (0..20_000).map(violation).collect();
        let status = all_invalid(&violations);
        assert!(status.details().len() < 6 * 1024, "{}", status.details().len());
        let details = status.get_error_details();
        let shown = &details.bad_request().unwrap().field_violations;
        assert!(shown.len() > 40);
        assert_eq!(
            shown.last().unwrap().description,
            format!("and {} more violations", 20_000 - (shown.len() - 1))
        );
        assert!(status.message().starts_with("20000 violations; the first: client."));
    }
}
