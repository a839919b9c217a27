//! Start of an agent on existing state directories.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use twamp_agent::{
    db,
    model::{self, ResultKeeping},
    net::clock,
    proto::{
        AgentConfig, ClientConfig, ControlConnection, EventType, Revision, StatisticsScope,
        TestOutcome, TestSession, record,
    },
    results::{Filter, Results, StatisticsQuery, Subject, page},
    stats::{Figures, ProbeResult, TestResult},
    store::{
        ConfigStore, PersistedConnection, PersistedOutage, ResultStore, Retention, StateDirectory,
        StoreState, StoredRevision,
    },
    time::{Monotonic, Now, UnixTime},
};

fn agent(directory: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_twamp-agent"))
        .args(["run", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(directory)
        .output()
        .unwrap()
}

fn put_treasure(database: &Path) {
    let db = sled::open(database).unwrap();
    db.insert("treasure", "kept").unwrap();
    db.flush().unwrap();
}

fn assert_has_treasure(database: &Path) {
    let db = sled::open(database).unwrap();
    assert_eq!(db.get("treasure").unwrap().as_deref(), Some(b"kept".as_slice()));
}

#[test]
fn a_newer_schema_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    drop(ConfigStore::open(&StateDirectory::open(directory.path()).unwrap()).unwrap());
    let schema = directory.path().join("schema");
    std::fs::write(&schema, "7\n").unwrap();
    let path = directory.path().join("config.sled");
    put_treasure(&path);
    let output = agent(directory.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("newer agent") && said.contains("schema 7"), "{said}");
    assert_has_treasure(&path);
    assert_eq!(std::fs::read_to_string(&schema).unwrap(), "7\n");
}

/// Development layouts were never released: what to do is said, and nothing is touched.
#[test]
fn a_development_layout_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results.sled");
    put_treasure(&path);
    let output = agent(directory.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("another state directory"), "{said}");
    assert_has_treasure(&path);
}

/// A start reads what came behind the statistics that are stored. Single probes are in none: they are
/// not read again, however many there are.
#[test]
fn statistics_say_up_to_where_they_are_whole() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let open = || {
        let retention = Retention::of_all(u64::MAX, 1 << 30);
        ResultStore::open(&state, retention, "agent", clock::now).unwrap()
    };
    let results = Results::open(open(), "boot".into(), None).unwrap();
    let subject = Subject::new("c", "s", Default::default(), ResultKeeping::Stored);
    for number in 0..20 {
        let probe = ProbeResult { sequence: number, ..ProbeResult::default() };
        results.probes(subject.clone(), vec![probe], clock::unix());
    }
    results.close();
    drop(results);
    let store = open();
    assert_eq!(store.state().borrow().newest, 20);
    let as_of: Vec<u64> =
        store.statistics().unwrap().iter().map(|kept| kept.as_of_cursor).collect();
    assert_eq!(as_of, [20]);
}

const MINUTE_NS: u64 = 60_000_000_000;

fn test(start_ns: u64, end_ns: u64, probes: u64) -> TestResult {
    let figures = Figures { probes_sent: probes, ..Figures::default() };
    TestResult {
        test_number: 1,
        outcome: TestOutcome::Complete.into(),
        start_unix_ns: start_ns,
        end_unix_ns: end_ns,
        figures: Some(Box::new(figures)),
        ..TestResult::default()
    }
}

/// The state as it is when the agent is killed: what was handed to the kernel.
fn as_killed(directory: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let done = Command::new("cp").arg("-r").arg(directory.join(".")).arg(copy.path()).status();
    assert!(done.unwrap().success());
    copy
}

fn close_intervals(results: &Results) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(results.close_intervals(clock::unix()));
}

fn all_tests(results: &Results) -> (u64, u64) {
    let all = [StatisticsScope::AllTests].into();
    let query = StatisticsQuery { scopes: all, ..StatisticsQuery::default() };
    let found = results.statistics(&query);
    let sent = found[0].figures.as_ref().map_or(0, |figures| figures.probes_sent);
    (found[0].tests_complete + found[0].tests_interrupted, sent)
}

fn wait(store: &mut watch::Receiver<StoreState>, newest: u64) {
    for _ in 0..500 {
        let found = store.borrow_and_update().clone();
        if found.newest >= newest {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("the store did not get to {newest}");
}

fn opened(state: &StateDirectory) -> Arc<Results> {
    opened_with(state, None)
}

fn opened_with(state: &StateDirectory, config: Option<&model::AgentConfig>) -> Arc<Results> {
    let retention = Retention::of_all(u64::MAX, 1 << 30);
    let store = ResultStore::open(state, retention, "agent", clock::now).unwrap();
    Results::open(store, "boot".into(), config).unwrap()
}

/// Statistics are saved in the middle of a test: with the rest of it they are as if they had not been.
#[test]
fn a_test_that_was_half_counted_is_counted_whole_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let results = opened(&state);
    let subject = || Subject::new("c", "s", Default::default(), ResultKeeping::Stored);
    let minute = clock::unix().0 / MINUTE_NS;
    let boundary_ns = (minute + 1) * MINUTE_NS;
    let figures = |probes_sent| Box::new(Figures { probes_sent, ..Figures::default() });
    let now = UnixTime(boundary_ns);
    results.minute(subject(), minute, figures(4), now);
    // Long enough to save once.
    let saved = results.clone().keep_statistics(clock::now, CancellationToken::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_millis(200), saved).await })
        .unwrap_err();
    results.minute(subject(), minute + 1, figures(6), now);
    let over = test(boundary_ns - 400_000_000, boundary_ns + 600_000_000, 10);
    results.test(subject(), Box::new(over), None, now);
    wait(&mut results.state(), 1);
    assert_eq!(all_tests(&results), (1, 10));
    let killed = as_killed(directory.path());
    let again = opened(&StateDirectory::open(killed.path()).unwrap());
    assert_eq!(all_tests(&again), (1, 10));
}

/// Results of tests are in the log, what was sent in each minute of them is not: a start after a kill
/// comes to the same counts, and tells no interval twice.
#[test]
fn a_kill_costs_no_counts_and_doubles_no_interval() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let results = opened(&state);
    let subject = || Subject::new("c", "s", Default::default(), ResultKeeping::Stored);
    let minute = clock::unix().0 / MINUTE_NS - 3;
    let boundary_ns = (minute + 1) * MINUTE_NS;
    let figures = |probes_sent| Box::new(Figures { probes_sent, ..Figures::default() });
    // One test within a minute, and one over its end: the fold is told of its pieces.
    let within = test(boundary_ns - 9_000_000_000, boundary_ns - 8_000_000_000, 10);
    results.test(subject(), Box::new(within), Some(minute), UnixTime(boundary_ns));
    results.minute(subject(), minute, figures(4), UnixTime(boundary_ns));
    results.minute(subject(), minute + 1, figures(6), UnixTime(boundary_ns));
    let over = test(boundary_ns - 400_000_000, boundary_ns + 600_000_000, 10);
    results.test(subject(), Box::new(over), None, UnixTime(boundary_ns));
    let mut store = results.state();
    wait(&mut store, 2);
    assert_eq!(all_tests(&results), (2, 20));
    let killed = as_killed(directory.path());
    let again = opened(&StateDirectory::open(killed.path()).unwrap());
    assert_eq!(all_tests(&again), (2, 20));
    again.close();

    // The minutes are over and told; the agent is killed before statistics are saved.
    close_intervals(&results);
    let told = |scope: StatisticsScope| {
        let query = StatisticsQuery { scopes: [scope].into(), ..StatisticsQuery::default() };
        results.statistics(&query).len() as u64
    };
    // Longer ones as well where one of them ended with the minute.
    let longer = [
        StatisticsScope::Interval15Minutes,
        StatisticsScope::Interval1Hour,
        StatisticsScope::Interval1Day,
    ];
    let intervals = 2 + longer.map(told).iter().sum::<u64>();
    wait(&mut store, 2 + intervals);
    let killed = as_killed(directory.path());
    let again = opened(&StateDirectory::open(killed.path()).unwrap());
    close_intervals(&again);
    again.close();
    drop(again);
    let told = ResultStore::open(
        &StateDirectory::open(killed.path()).unwrap(),
        Retention::of_all(u64::MAX, 1 << 30),
        "agent",
        clock::now,
    );
    let told = told.unwrap();
    let entries = told.entries(0, u64::MAX, 100, 1 << 20, false).unwrap();
    assert_eq!(entries.len() as u64, 2 + intervals, "{entries:?}");
}

/// Interim results of a running test count in the totals even after a kill, and so do values of
/// the metrics page.
#[test]
fn what_was_told_of_a_test_that_runs_does_not_go_back_after_a_kill() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let subject = || Subject::new("c", "s", Default::default(), ResultKeeping::Stored);
    for by_interval in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let results = opened(&StateDirectory::open(directory.path()).unwrap());
        let minute = clock::unix().0 / MINUTE_NS - 3;
        let figures = Figures { probes_sent: 4, ..Figures::default() };
        results.minute(subject(), minute, Box::new(figures), clock::unix());
        let counted = || {
            let query = StatisticsQuery::default();
            results
                .statistics(&query)
                .iter()
                .any(|found| found.scope() == StatisticsScope::AllTests)
        };
        while !counted() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if by_interval {
            close_intervals(&results);
            wait(&mut results.state(), 1);
        } else {
            runtime.block_on(results.persist_statistics());
        }
        let killed = as_killed(directory.path());
        let again = opened(&StateDirectory::open(killed.path()).unwrap());
        assert_eq!(all_tests(&again), (0, 4), "by an interval: {by_interval}");
    }
}

/// The log alone is enough for a moving average: how long it is stands in the configuration.
#[test]
fn a_moving_average_that_was_never_saved_is_there_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let connection = ControlConnection {
        name: "c".into(),
        target_address: "192.0.2.1".into(),
        moving_average_size: Some(3),
        test_sessions: vec![TestSession { name: "s".into(), ..TestSession::default() }],
        ..ControlConnection::default()
    };
    let client = Some(ClientConfig { control_connections: vec![connection] });
    let config = model::parse(&AgentConfig { client, ..AgentConfig::default() }).unwrap();
    let results = opened_with(&StateDirectory::open(directory.path()).unwrap(), Some(&config));
    let begun_ns = clock::unix().0;
    for number in 1..=5 {
        let at_ns = begun_ns + number * 1_000_000_000;
        let subject = Subject::new("c", "s", Default::default(), ResultKeeping::Stored);
        let result = test(at_ns, at_ns + 1_000_000, number);
        results.test(subject, Box::new(result), Some(at_ns / MINUTE_NS), UnixTime(at_ns));
    }
    wait(&mut results.state(), 5);
    let killed = as_killed(directory.path());
    let again = opened_with(&StateDirectory::open(killed.path()).unwrap(), Some(&config));
    let scopes = [StatisticsScope::MovingAverage].into();
    let average = again.statistics(&StatisticsQuery { scopes, ..StatisticsQuery::default() });
    let sent = average[0].figures.as_ref().unwrap().probes_sent;
    assert_eq!((average[0].tests_complete, sent), (3, 3 + 4 + 5));
}

fn intervals(results: &Results) -> Vec<(u64, bool)> {
    let scopes = [StatisticsScope::Interval1Minute].into();
    let query = StatisticsQuery { scopes, current: true, ..StatisticsQuery::default() };
    let found = results.statistics(&query);
    let start = |time: Option<&prost_types::Timestamp>| time.unwrap().seconds as u64 / 60;
    found.iter().map(|one| (start(one.interval_start_time.as_ref()), one.suspect)).collect()
}

fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = ask() {
            return found;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("never");
}

/// A minute within which a test began, or the agent was killed, says so; one that was whole does not.
#[test]
fn what_is_not_whole_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let results = opened(&StateDirectory::open(directory.path()).unwrap());
    let subject = || Subject::new("c", "s", Default::default(), ResultKeeping::Stored);
    let figures = || Box::new(Figures { probes_sent: 4, ..Figures::default() });
    let minute = clock::unix().0 / MINUTE_NS;
    let started = UnixTime(minute * MINUTE_NS + 6_000_000_000);
    for later in 0..2 {
        results.minute(subject(), minute + later, figures(), started);
    }
    let found = eventually(|| Some(intervals(&results)).filter(|found| found.len() == 2));
    assert_eq!(found, [(minute, true), (minute + 1, false)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(results.persist_statistics());
    let killed = as_killed(directory.path());
    let again = opened(&StateDirectory::open(killed.path()).unwrap());
    // Whatever comes first then: what was running may have lost something.
    assert_eq!(intervals(&again), [(minute, true), (minute + 1, true)]);
}

fn config_of(connections: &[(&str, bool)]) -> model::AgentConfig {
    let connection = |(name, persistent): &(&str, bool)| ControlConnection {
        name: (*name).to_owned(),
        target_address: "192.0.2.1".into(),
        persistent_results: Some(*persistent),
        test_sessions: vec![TestSession { name: "s".into(), ..TestSession::default() }],
        ..ControlConnection::default()
    };
    let control_connections = connections.iter().map(connection).collect();
    let client = Some(ClientConfig { control_connections });
    model::parse(&AgentConfig { client, ..AgentConfig::default() }).unwrap()
}

/// Removed data, and data kept in memory only from now on, do not reappear after a kill.
#[test]
fn what_was_given_up_stays_so_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let both = config_of(&[("goes", true), ("memory", true)]);
    let results = opened_with(&StateDirectory::open(directory.path()).unwrap(), Some(&both));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let at_ns = clock::unix().0;
    let report = |results: &Results, connection: &str, keeping| {
        let subject = Subject::new(connection, "s", Default::default(), keeping);
        let result = Box::new(test(at_ns, at_ns + 1_000_000, 7));
        results.test(subject, result, Some(at_ns / MINUTE_NS), UnixTime(at_ns));
    };
    for _ in 0..5 {
        report(&results, "goes", ResultKeeping::Stored);
        report(&results, "memory", ResultKeeping::Stored);
    }
    wait(&mut results.state(), 10);
    runtime.block_on(results.persist_statistics());
    let changed = config_of(&[("memory", false)]);
    let follow = |config: &model::AgentConfig| {
        results.expect(config);
        results.follow_config(config);
    };
    follow(&changed);
    let again = config_of(&[("goes", true), ("memory", false)]);
    follow(&again);
    report(&results, "goes", ResultKeeping::Stored);
    report(&results, "memory", ResultKeeping::InMemory(3));
    wait(&mut results.state(), 12);
    // Twice: what a start leaves behind is there at the next.
    let mut state = as_killed(directory.path());
    for _ in 0..2 {
        let results = opened_with(&StateDirectory::open(state.path()).unwrap(), Some(&again));
        let query = StatisticsQuery {
            scopes: [StatisticsScope::AllTests].into(),
            ..StatisticsQuery::default()
        };
        let found: Vec<(String, u64)> = results
            .statistics(&query)
            .into_iter()
            .map(|one| (one.connection, one.tests_complete))
            .collect();
        assert_eq!(found, [("goes".to_owned(), 1)]);
        runtime.block_on(results.persist_statistics());
        state = as_killed(state.path());
    }
}

/// An open outage, a completed test count and a manual stop are found by the start after a kill.
#[test]
fn the_state_of_a_connection_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let results = opened(&StateDirectory::open(directory.path()).unwrap());
    let outage = |attempts| PersistedConnection {
        outage: Some(PersistedOutage { since_unix_ns: 5, attempts, ..PersistedOutage::default() }),
        ..PersistedConnection::default()
    };
    let persist = |name, state: PersistedConnection| {
        results.persist_connection(name, |persisted| *persisted = state)
    };
    assert!(persist("ended", outage(1)));
    assert!(persist("removed", outage(1)));
    assert!(persist("lost", outage(1)));
    assert!(persist("lost", outage(2)));
    assert!(!persist("lost", outage(2)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(results.flush()).unwrap();
    persist("ended", PersistedConnection::default());
    results.retain_persisted(|name| name != "removed");
    runtime.block_on(results.flush()).unwrap();
    let killed = as_killed(directory.path());
    let again = opened(&StateDirectory::open(killed.path()).unwrap());
    assert_eq!(again.persisted_connection("lost"), outage(2));
    for name in ["ended", "removed"] {
        assert_eq!(again.persisted_connection(name), PersistedConnection::default());
    }
}

/// Directories of each version of the layout, as an agent of that version left them.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/state");
const FIXTURE_NS: u64 = 1_790_000_000_000_000_000;

fn fixture_time() -> Now {
    Now { monotonic: Monotonic(1), unix: UnixTime(FIXTURE_NS) }
}

fn fixture_config(connections: usize) -> AgentConfig {
    let connection = |number| ControlConnection {
        name: format!("c{number}"),
        target_address: "192.0.2.1".into(),
        test_sessions: vec![TestSession { name: "s".into(), ..TestSession::default() }],
        ..ControlConnection::default()
    };
    let control_connections = (1..=connections).map(connection).collect();
    let client = Some(ClientConfig { control_connections });
    AgentConfig { client, ..AgentConfig::default() }
}

fn open_fixture(state: &StateDirectory, boot_id: &str) -> Arc<Results> {
    let retention = Retention::of_all(u64::MAX, 1 << 30);
    let store = ResultStore::open(state, retention, "fixture-agent", fixture_time).unwrap();
    Results::open(store, boot_id.into(), None).unwrap()
}

fn fixture_outage() -> PersistedConnection {
    let outage = PersistedOutage { since_unix_ns: FIXTURE_NS, attempts: 7, ..Default::default() };
    PersistedConnection { outage: Some(outage), ..PersistedConnection::default() }
}

/// Writes the state that the fixture of a version holds.
fn write_fixture(directory: &Path) {
    let state = StateDirectory::open(directory).unwrap();
    let config = ConfigStore::open(&state).unwrap();
    for revision in 1..=2 {
        let stored = StoredRevision {
            revision: Some(Revision { revision, author: "uid:0".into(), ..Revision::default() }),
            config: Some(fixture_config(revision as usize)),
            ..StoredRevision::default()
        };
        config.commit(revision, &stored).unwrap();
    }
    let results = open_fixture(&state, "boot-of-fixture");
    let time = UnixTime(FIXTURE_NS);
    let subject = || Subject::new("c1", "s", Default::default(), ResultKeeping::Stored);
    for number in 1..=3 {
        let at_ns = FIXTURE_NS + number * 1_000_000_000;
        let minute = Some(at_ns / MINUTE_NS);
        results.test(subject(), Box::new(test(at_ns, at_ns + 1_000_000, 5)), minute, time);
    }
    let probe = |sequence| ProbeResult { sequence, ..ProbeResult::default() };
    results.probes(subject(), (0..9).map(probe).collect(), time);
    results.agent_event(EventType::ConfigurationCommitted, 2, "a detail".into(), time);
    results.persist_connection("c1", |state| *state = fixture_outage());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(results.flush()).unwrap();
    runtime.block_on(results.acknowledge("consumer", 2)).unwrap();
    results.close();
}

/// A start reads all that an agent of each version stored. `UPDATE_FIXTURES=1` writes the directory of
/// this version, where there is none.
#[test]
fn a_state_of_each_version_is_read() {
    let current = Path::new(FIXTURES).join("4");
    if std::env::var_os("UPDATE_FIXTURES").is_some() && !current.exists() {
        write_fixture(&current);
        std::fs::remove_file(current.join("lock")).unwrap();
    }
    let versions: Vec<_> = std::fs::read_dir(FIXTURES).unwrap().map(Result::unwrap).collect();
    assert!(versions.iter().any(|version| version.path() == current));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for version in versions {
        let directory = as_killed(&version.path());
        let whole = db::verify(directory.path()).unwrap();
        assert!(whole.contains("whole; 2 revisions; 5 records, cursors 1 to 5"), "{whole}");
        let state = StateDirectory::open(directory.path()).unwrap();
        let config = ConfigStore::open(&state).unwrap();
        assert_eq!(config.damage(), "");
        let revision = |number| config.revision(number).unwrap().unwrap();
        assert_eq!(revision(1).config, Some(fixture_config(1)));
        assert_eq!(config.current().unwrap().unwrap().config, Some(fixture_config(2)));
        assert_eq!(revision(2).revision.unwrap().author, "uid:0");

        let results = open_fixture(&state, "another boot");
        assert_eq!((results.damage(), results.agent_id()), ("", "fixture-agent"));
        assert_eq!(all_tests(&results), (3, 15));
        let consumers = runtime.block_on(results.consumers()).unwrap();
        assert_eq!(consumers, [("consumer".to_owned(), 2)]);
        assert_eq!(results.persisted_connection("c1"), fixture_outage());
        let filter = Filter::default();
        let read = page(&results, &filter, 0, 100, false);
        let records = runtime.block_on(read).unwrap().records;
        let events = records.iter().filter_map(|record| match &record.kind {
            Some(record::Kind::Event(event)) => Some(event.detail.as_str()),
            _ => None,
        });
        assert_eq!((records.len(), events.collect::<Vec<_>>()), (5, vec!["a detail"]));
        assert!(records.iter().all(|record| record.incarnation == "boot-of-fixture"));
        let probes = records.iter().find_map(|record| match &record.kind {
            Some(record::Kind::ProbeResults(results)) => Some(results.probes.len()),
            _ => None,
        });
        assert_eq!(probes, Some(9));
    }
}
