//! Pages of `GetStatistics`, and the checks of its names.

use tonic::Status;

use super::{
    Context, error,
    page::{Page, PageRequest},
};
use crate::{
    proto::{GetStatisticsRequest, GetStatisticsResponse, Statistics, StatisticsScope},
    results::{StatisticsQuery, convert::remove_histograms},
};

/// Number of connections whose statistics are read at a time, which limits the memory of a request.
const CONNECTIONS_AT_A_TIME: usize = 64;

const ALL_SCOPES: [StatisticsScope; 8] = [
    StatisticsScope::CurrentTest,
    StatisticsScope::LastTest,
    StatisticsScope::AllTests,
    StatisticsScope::MovingAverage,
    StatisticsScope::Interval1Minute,
    StatisticsScope::Interval15Minutes,
    StatisticsScope::Interval1Hour,
    StatisticsScope::Interval1Day,
];

impl Context {
    pub(super) async fn statistics_page(
        &self,
        request: GetStatisticsRequest,
    ) -> Result<GetStatisticsResponse, Status> {
        let unpaged =
            GetStatisticsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
        let paged = PageRequest::new(&unpaged, request.page_size, &request.page_token)?;
        self.check_names(&request.connections, &request.sessions)?;
        let mut query = statistics_query(Vec::new(), request.sessions);
        for number in request.scopes {
            match StatisticsScope::try_from(number) {
                Ok(StatisticsScope::Unspecified) => query.scopes.extend(ALL_SCOPES),
                Ok(scope) => drop(query.scopes.insert(scope)),
                Err(_) => {
                    let why = format!("invalid scope {number} (expected 1 to 8)");
                    return Err(error::invalid("scopes", why));
                }
            }
        }
        (query.current, query.history) =
            (request.include_current_intervals, request.include_history);
        let mut names = request.connections;
        if names.is_empty() {
            names = self.control.connection_names();
        }
        names.sort_unstable();
        names.dedup();
        let first = match &paged.after {
            Some(key) => names.partition_point(|name| name.as_bytes() < connection_of(key)),
            None => 0,
        };
        let mut page = Page::new(&paged);
        'full: for connections in names[first..].chunks(CONNECTIONS_AT_A_TIME) {
            query.connections = connections.iter().cloned().collect();
            for mut entry in self.select_statistics(&query).await? {
                if !request.include_histograms
                    && let Some(figures) = entry.figures.as_deref_mut()
                {
                    remove_histograms(figures);
                }
                let key = page_key(&entry);
                if !page.push(entry, key) {
                    break 'full;
                }
            }
        }
        // Statistics are persisted before they are shown, so that a client never sees them decrease
        // after a crash.
        self.results.persist_statistics().await;
        let (statistics, next_page_token) = page.finish();
        Ok(GetStatisticsResponse { statistics, next_page_token })
    }

    /// Returns the statistics that a query selects, sorted by connection, session and scope.
    async fn select_statistics(&self, query: &StatisticsQuery) -> Result<Vec<Statistics>, Status> {
        let read = self.results.read_statistics(query.clone());
        let mut statistics = read.await.map_err(error::store)?;
        if query.selects_scope(StatisticsScope::CurrentTest) {
            let connections: Vec<String> = query.connections.iter().cloned().collect();
            let mut current = self.control.clients().current_tests(&connections).await;
            current.retain(|entry| query.selects(&entry.connection, &entry.session));
            for entry in &mut current {
                entry.epoch = self.results.epoch(&entry.connection, &entry.session);
            }
            statistics.extend(current);
        }
        statistics.sort_by_cached_key(page_key);
        Ok(statistics)
    }

    /// Checks that all connections exist, and that each session exists in one of them.
    pub(super) fn check_names(
        &self,
        connections: &[String],
        sessions: &[String],
    ) -> Result<(), Status> {
        let known = self
            .control
            .check_names(connections)
            .and_then(|()| self.control.check_session_names(connections, sessions));
        known.map_err(|error| error::by_hand(&error))
    }
}

pub(super) fn statistics_query(connections: Vec<String>, sessions: Vec<String>) -> StatisticsQuery {
    StatisticsQuery {
        connections: connections.into_iter().collect(),
        sessions: sessions.into_iter().collect(),
        ..StatisticsQuery::default()
    }
}

/// Returns the key of an entry in a page. Keys sort by connection, session and scope, then finished
/// intervals before running ones, then by the start of the interval. Names contain no zero byte.
fn page_key(entry: &Statistics) -> Vec<u8> {
    let start = entry.interval_start_time.map_or(0, |time| time.seconds.max(0).cast_unsigned());
    let names = [entry.connection.as_bytes(), &[0], entry.session.as_bytes(), &[0]].concat();
    let scope = entry.scope.cast_unsigned().to_be_bytes();
    [&names[..], &scope, &[u8::from(entry.current)], &start.to_be_bytes()].concat()
}

fn connection_of(key: &[u8]) -> &[u8] {
    key.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_names_before_scopes() {
        let entry = |connection: &str, session: &str, scope: i32, current, seconds| Statistics {
            connection: connection.into(),
            session: session.into(),
            scope,
            current,
            interval_start_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..Statistics::default()
        };
        let sorted = [
            entry("a", "s", 8, true, 9),
            entry("a-1", "s", 1, false, 0),
            entry("a-1", "s", 5, false, 60),
            entry("a-1", "s", 5, true, 60),
            entry("a-1", "s-1", 1, false, 0),
            entry("b", "a", 1, false, 0),
        ];
        assert!(sorted.iter().map(page_key).is_sorted());
        assert_eq!(connection_of(&page_key(&sorted[1])), b"a-1");
    }
}
