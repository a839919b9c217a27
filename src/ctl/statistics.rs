//! Commands that show and reset statistics.

use super::{
    Connection, CtlError, Format, connections::ConnectionSelection, output::print, pages, tables,
    words::count,
};
use crate::proto::{ClearStatisticsRequest, GetStatisticsRequest, StatisticsScope};

/// Scope of statistics, as the option `--scope` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// The test that is running
    Current,
    /// The last finished test
    Last,
    /// All tests that have finished
    All,
    /// The last `moving_average_size` tests
    Moving,
    /// The latest minute by the clock
    Minute,
    /// The latest quarter of an hour by the clock
    Quarter,
    /// The latest hour by the clock
    Hour,
    /// The latest day, UTC
    Day,
}

impl From<Scope> for StatisticsScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Current => Self::CurrentTest,
            Scope::Last => Self::LastTest,
            Scope::All => Self::AllTests,
            Scope::Moving => Self::MovingAverage,
            Scope::Minute => Self::Interval1Minute,
            Scope::Quarter => Self::Interval15Minutes,
            Scope::Hour => Self::Interval1Hour,
            Scope::Day => Self::Interval1Day,
        }
    }
}

/// Prints the statistics of connections.
pub(super) async fn show(
    agent: &Connection,
    names: Vec<String>,
    scope: Option<Scope>,
    running: bool,
    format: Format,
) -> Result<(), CtlError> {
    let request = GetStatisticsRequest {
        connections: names,
        scopes: scope.into_iter().map(|scope| StatisticsScope::from(scope).into()).collect(),
        include_current_intervals: running,
        ..GetStatisticsRequest::default()
    };
    let answer = pages::statistics(agent, &request).await?;
    print(format, &answer, "GetStatisticsResponse", || tables::statistics_table(&answer.statistics))
}

/// Resets the statistics of connections.
pub(super) async fn clear(
    agent: &Connection,
    ConnectionSelection { names, all }: ConnectionSelection,
    format: Format,
) -> Result<(), CtlError> {
    let request = ClearStatisticsRequest { connections: names, sessions: Vec::new(), all };
    let answer = agent.results().clear_statistics(request).await?.into_inner();
    print(format, &answer, "ClearStatisticsResponse", || {
        format!("statistics of {} reset", count(answer.sessions_cleared.into(), "session"))
    })
}
