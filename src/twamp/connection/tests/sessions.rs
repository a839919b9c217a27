//! Changes of sessions, declined sessions, and adaptation to a server; each test covers one
//! situation.

use super::{world::*, *};
use crate::{model::FailureCause, proto::ControlType as Kind};

#[test]
fn one_session_changes_alone_with_individual_control() {
    let mut world = World::new(three());
    world.run(5 * SECOND);
    let changed = config(|c| {
        c.test_sessions = ["s1", "s2", "s3"].map(session).into();
        c.test_sessions[1].destination_port = Some(4001);
    });
    world.desire(changed);
    world.run(5 * SECOND);
    assert_eq!(last_names(&world, "stop"), ["s2"]);
    assert_eq!(last_names(&world, "request"), ["s2"]);
    assert_eq!(world.status.applied_revision, 2);
    let starts: Vec<u64> = world.sessions.values().map(|session| session.starts).collect();
    assert_eq!((starts, world.attempts.len()), (vec![1, 2, 1], 1));
    assert_eq!(count(&world, "stop all"), 0);
}

#[test]
fn sessions_change_together_without_individual_control() {
    let mut world = World::new(three());
    world.server.is_individual = false;
    world.reset();
    world.run(50 * MS);
    world.desire(config(|c| c.test_sessions = ["s1", "s2"].map(session).into()));
    world.run(5 * SECOND);
    assert_eq!((count(&world, "pause"), count(&world, "stop all")), (1, 0));
    assert_eq!(last_names(&world, "request"), ["s1", "s2"]);
    let unanswered: u64 = world.sessions.values().map(|session| session.unanswered).sum();
    assert_eq!((unanswered, world.attempts.len()), (0, 1));
    // If the server closes the connection, it is opened again at once without an outage.
    world.server.closes_on_stop = true;
    world.desire(three());
    world.run(5 * SECOND);
    assert!(world.machine.is_running() && world.events.is_empty());
    assert_eq!(world.attempts.len(), 2);
}

#[test]
fn live_changes_need_no_operation() {
    let mut world = World::new(three());
    world.run(5 * SECOND);
    let operations = world.operations.len();
    world.desire(config(|c| {
        c.test_sessions = ["s1", "s2", "s3"].map(session).into();
        c.test_interval = seconds(7);
        c.labels.insert("site".into(), "a".into());
    }));
    world.run(SECOND);
    assert_eq!(world.operations.len(), operations);
    assert_eq!(world.status.applied_revision, 2);
}

#[test]
fn changed_server_needs_another_connection() {
    let mut world = World::new(three());
    world.run(5 * SECOND);
    world.may_stop_all = true;
    world.desire(config(|c| {
        c.test_sessions = ["s1", "s2", "s3"].map(session).into();
        c.destination_port = Some(4000);
    }));
    world.run(SECOND);
    assert_eq!((world.attempts.len(), count(&world, "close")), (2, 1));
    assert!(world.machine.is_running() && world.events.is_empty());
}

#[test]
fn change_that_is_reverted_while_it_is_applied_is_applied() {
    let mut world = World::new(three());
    world.server.is_individual = false;
    world.reset();
    world.run(1_500 * MS);
    world.events.clear();
    world.desire(config(|c| c.test_sessions = vec![session("s1")]));
    world.desire(three());
    world.run(10 * SECOND);
    assert_eq!(world.status.applied_revision, 3);
    assert!(world.sessions.values().all(|session| session.is_started));
    assert!(world.events.is_empty());
}

#[test]
fn stop_interrupts_a_change() {
    let mut world = World::new(three());
    world.run(5 * SECOND);
    world.desire(config(|c| c.test_sessions = vec![session("s1")]));
    world.may_stop_all = true;
    world.stop_by_hand();
    world.run(SECOND);
    assert_eq!(world.status.phase, Phase::Stopped);
}

#[test]
fn sessions_of_a_lost_connection_change_during_the_outage() {
    let mut world = World::new(three());
    world.server.up = false;
    world.run(5_500 * MS);
    world.desire(config(|c| c.test_sessions = ["s2", "s3"].map(session).into()));
    world.run(SECOND);
    assert_eq!(world.status.applied_revision, 2);
    assert_eq!(last_names(&world, "stop"), ["s1"]);
    assert_eq!(kinds(&world), ["lost"]);
    world.server.up = true;
    world.run(2 * SECOND);
    assert!(world.machine.is_running());
}

#[test]
fn rejected_session_does_not_affect_others_and_is_requested_again() {
    let mut world = World::new(three());
    world.server.rejects.insert("s2".into());
    world.run(5 * SECOND);
    assert!(world.machine.is_running() && world.events.is_empty());
    assert!(count(&world, "open") >= 4 && count(&world, "request") >= 4);
    assert_eq!(last_names(&world, "request"), ["s2"]);
    assert!(world.status.last_failure.is_some());
    world.server.rejects.clear();
    world.run(2 * SECOND);
    assert_eq!(world.sessions["s2"].starts, 1);
    assert_eq!(world.sessions["s1"].starts, 1);
    assert_eq!(world.attempts.len(), 1);
}

#[test]
fn rejected_session_of_a_server_without_individual_control_waits_a_minute() {
    let mut world = World::new(three());
    world.server.is_individual = false;
    world.reset();
    world.server.rejects.insert("s2".into());
    world.run(50 * SECOND);
    assert_eq!(count(&world, "pause"), 0, "the others would have to be interrupted");
    world.run(30 * SECOND);
    assert_eq!(count(&world, "pause"), 1);
    assert!(world.sessions["s1"].starts == 2 && world.sessions["s1"].unanswered == 0);
    world.server.rejects.clear();
    world.run(70 * SECOND);
    assert!(world.sessions["s2"].is_started);
}

#[test]
fn only_session_that_is_rejected_is_an_outage() {
    let mut world = World::new(config(|_| {}));
    world.server.rejects.insert("s1".into());
    world.run(5_500 * MS);
    assert_eq!((kinds(&world), world.attempts.len()), (vec!["lost"], 6));
    world.server.rejects.clear();
    world.run(SECOND);
    assert_eq!(kinds(&world), ["lost", "restored"]);
}

#[test]
fn slow_name_of_a_session_does_not_delay_others() {
    let mut world = World::new(three());
    world.server.unopened.insert("s3".into(), FailureCause::Dns);
    world.run(3_500 * MS);
    assert!(world.machine.is_running());
    assert_eq!(last_names(&world, "open"), ["s3"]);
    let waits = world.machine.sessions.socket_wait_ns();
    assert_eq!(waits, 4 * SOCKET_WAIT_NS, "waited for longer each time");
    // After a loss the others are requested first, and this session follows at once.
    world.reset();
    world.run(1_020 * MS);
    assert_eq!(last_names(&world, "negotiate"), ["s1", "s2"]);
    assert_eq!(last_names(&world, "open"), ["s3"]);
    world.server.unopened.clear();
    world.run(2 * SECOND);
    assert!(world.sessions["s3"].is_started);
}

#[test]
fn light_session_that_cannot_open_does_not_affect_others() {
    let mut world = World::new(config(|c| {
        c.set_control_type(Kind::Light);
        c.test_sessions = ["s1", "s2"].map(session).into();
    }));
    world.server.unopened.insert("s2".into(), FailureCause::LocalError);
    world.run(5 * SECOND);
    assert!(world.machine.is_running() && world.events.is_empty());
    world.server.unopened.clear();
    world.run(2 * SECOND);
    assert_eq!((world.sessions["s1"].starts, world.sessions["s2"].starts), (1, 1));
}

#[test]
fn long_pause_closes_the_connection_until_the_next_test() {
    let mut world = World::new(config(|c| c.test_interval = seconds(1_200)));
    world.run(10 * SECOND);
    assert_eq!((world.status.phase, world.has_control), (Phase::Running, false));
    assert_eq!(world.machine.next_deadline(), Some(Monotonic(1_200 * SECOND + TEST + 6 * MS)));
    world.run(6_000 * SECOND);
    assert_eq!((world.attempts.len(), world.sessions["s1"].answered), (6, 6));
    assert!(world.events.is_empty());
    // A network change causes no attempt, a start by hand does.
    world.input(Input::Network(1));
    assert_eq!(world.attempts.len(), 6);
    world.start_by_hand();
    assert_eq!(world.attempts.len(), 7);
}

#[test]
fn forgotten_sessions_are_negotiated_again_after_a_silence() {
    let mut world = World::new(config(|c| c.test_interval = seconds(10)));
    world.run(60 * SECOND);
    // The server has lost its sessions but not the connection.
    world.sessions.values_mut().for_each(|session| session.is_forgotten = true);
    world.may_stop_all = true;
    world.run(50 * SECOND);
    assert_eq!(world.status.renegotiations, 1);
    assert!(world.events.is_empty(), "no outage");
}

#[test]
fn refwait_shorter_than_the_pause_is_learnt() {
    let mut world = World::new(config(|c| c.test_interval = seconds(40)));
    world.server.refwait = 3 * SECOND;
    world.may_stop_all = true;
    world.run(400 * SECOND);
    let (unanswered, renegotiations) =
        (world.sessions["s1"].unanswered, world.status.renegotiations);
    assert_eq!(renegotiations, 1);
    assert_eq!((unanswered, world.sessions["s1"].expired), (1, 1), "one test, and known why");
    world.run(4_000 * SECOND);
    assert_eq!(world.sessions["s1"].unanswered, unanswered, "no test is lost any more");
    assert!(world.sessions["s1"].answered >= 95);
    assert_eq!(world.status.renegotiations, renegotiations);
    assert!(world.events.is_empty());
}

#[test]
fn refwait_is_learnt_from_five_tests_of_a_single_probe() {
    let mut world = World::new(config(|c| c.test_interval = seconds(40)));
    world.server.refwait = 3 * SECOND;
    (world.probes, world.may_stop_all) = (1, true);
    world.run(4_000 * SECOND);
    let session = &world.sessions["s1"];
    assert_eq!((session.unanswered, session.expired, world.status.renegotiations), (5, 5, 5));
    assert!(session.answered >= 95, "{}", session.answered);
}

#[test]
fn unanswered_session_causes_no_loss_in_an_expiring_one() {
    let mut world = World::new(config(|c| {
        c.test_interval = seconds(40);
        c.test_sessions = ["s1", "s2"].map(session).into();
    }));
    world.server.refwait = 3 * SECOND;
    world.server.silent.insert("s2".into());
    world.may_stop_all = true;
    world.run(400 * SECOND);
    let unanswered = world.sessions["s1"].unanswered;
    assert_eq!(unanswered, 1);
    world.run(4_000 * SECOND);
    assert_eq!(world.sessions["s1"].unanswered, unanswered);
}

#[test]
fn broken_path_in_the_first_pause_is_not_taken_for_refwait() {
    let mut world = World::new(config(|c| c.test_interval = seconds(40)));
    world.run(20 * SECOND);
    world.server.silent.insert("s1".into());
    world.may_stop_all = true;
    world.run(22 * SECOND);
    assert_eq!(world.status.renegotiations, 1, "one negotiation to find out");
    world.run(60 * SECOND);
    assert_eq!(world.status.renegotiations, 1);
    assert_eq!(world.sessions["s1"].expired, 1);
    world.server.silent.clear();
    world.run(400 * SECOND);
    let renegotiations = world.status.renegotiations;
    world.may_stop_all = false;
    world.run(4_000 * SECOND);
    assert_eq!(world.status.renegotiations, renegotiations);
    assert!(world.has_control, "the connection is kept over pauses");
}

#[test]
fn sessions_within_the_limit_run_if_the_server_closes_beyond_it() {
    for is_individual in [true, false] {
        let mut world = World::new(config(|c| {
            c.test_sessions = ["s1", "s2", "s3", "s4"].map(session).into();
        }));
        world.server.is_individual = is_individual;
        world.server.max_sessions = 2;
        world.run(3 * SECOND);
        assert!(world.machine.is_running());
        assert_eq!(last_names(&world, "negotiate"), ["s1", "s2"]);
        assert_eq!(kinds(&world), ["lost", "restored"]);
        assert_eq!(world.attempts.len(), 4);
        world.run(1_000 * SECOND);
        assert_eq!(world.attempts.len(), 4, "it is not asked for more");
        assert!(world.status.last_failure.is_some());
        assert_eq!(world.events.len(), 2);
        // Removing a session allows another one to start.
        world.desire(config(|c| c.test_sessions = ["s2", "s3", "s4"].map(session).into()));
        world.run(5 * SECOND);
        assert!(world.sessions["s3"].is_started && !world.sessions["s4"].is_started);
        assert_eq!(world.attempts.len(), 4);
    }
}

#[test]
fn extensions_that_a_server_refuses_are_left_out() {
    let mut world = World::new(config(|_| {}));
    world.server.knows_extensions = false;
    world.run(2 * SECOND);
    assert!(world.machine.is_running());
    assert_eq!(world.attempts.len(), 2);
    world.reset();
    world.run(2 * SECOND);
    assert!(world.machine.is_running());
    assert_eq!(world.attempts.len(), 3, "remembered");
}

#[test]
fn a_server_that_refuses_zero_addresses_gets_addresses() {
    let mut world = World::new(config(|_| {}));
    world.server.accepts_zeros = false;
    world.run(5 * SECOND);
    assert!(world.machine.is_running());
    let attempts = world.attempts.len();
    assert_eq!(attempts, 3, "with zeros, without extensions, with addresses");
    world.reset();
    world.run(2 * SECOND);
    assert!(world.machine.is_running());
    assert_eq!(world.attempts.len(), attempts + 1, "remembered");
}

#[test]
fn a_server_that_reflects_nothing_for_zero_addresses_gets_addresses() {
    let mut world = World::new(three());
    world.server.reflects_zeros = false;
    world.may_stop_all = true;
    world.run(60 * SECOND);
    let session = &world.sessions["s1"];
    assert_eq!((session.unanswered, world.status.renegotiations), (1, 1));
    assert!(session.answered > 10, "{}", session.answered);
    assert!(world.events.is_empty(), "no outage");
}

#[test]
fn a_path_that_loses_everything_is_not_blamed_on_zero_addresses_for_long() {
    let mut world = World::new(config(|_| {}));
    world.server.silent.insert("s1".into());
    world.may_stop_all = true;
    world.run(25 * SECOND);
    assert_eq!(world.status.renegotiations, 2, "with addresses, and with zeros again");
}

#[test]
fn missing_route_is_an_outage_and_its_return_ends_it() {
    let mut world = World::new(config(|c| {
        c.set_control_type(Kind::Stamp);
    }));
    world.run(3 * SECOND);
    world.no_route = true;
    world.run(1_500 * MS);
    assert_eq!(kinds(&world)[0], "lost");
    world.no_route = false;
    world.run(2 * SECOND);
    assert!(world.machine.is_running());
}

#[test]
fn changed_address_of_a_name_causes_no_outage() {
    let mut world = World::new(config(|c| {
        c.set_control_type(Kind::Light);
        c.target_address = "reflector.example".into();
    }));
    world.run(3 * SECOND);
    world.may_stop_all = true;
    world.input(Input::DnsChanged);
    world.run(SECOND);
    assert!(world.machine.is_running() && world.events.is_empty());
    assert_eq!(world.attempts.len(), 2);
}

#[test]
fn removed_connection_abandons_its_outage_and_stops() {
    for is_up in [false, true] {
        let mut world = World::new(three());
        world.server.up = is_up;
        world.run(3 * SECOND);
        world.may_stop_all = true;
        world.input(Input::End { is_resumed: false });
        world.run(SECOND);
        assert!(world.is_finished && world.sessions.is_empty());
        assert_eq!(kinds(&world), if is_up { vec![] } else { vec!["lost", "abandoned"] });
        assert_eq!(count(&world, "close"), usize::from(is_up));
    }
}

#[test]
fn changed_interval_applies_at_once_during_an_outage() {
    let mut world = World::new(config(|c| c.test_interval = seconds(600)));
    world.server.up = false;
    world.run(20 * SECOND);
    world.desire(config(|c| c.test_interval = seconds(2)));
    world.run(10 * SECOND);
    assert!(world.attempts.len() >= 5, "{:?}", world.attempts);
    assert_eq!(kinds(&world), ["lost"]);
}

#[test]
fn change_after_a_start_by_hand_requests_the_desired_sessions() {
    let sessions = |name: &'static str| {
        config(move |c| {
            c.test_count = 2;
            c.test_sessions = vec![session(name)];
        })
    };
    let mut world = World::new(sessions("s1"));
    world.run(20 * SECOND);
    assert_eq!(world.status.phase, Phase::Completed);
    world.start_by_hand();
    // The name of the server is not yet resolved.
    world.desire(sessions("s2"));
    world.run(20 * SECOND);
    assert_eq!((world.status.phase, world.sessions["s2"].answered), (Phase::Completed, 2));
}

#[test]
fn change_does_not_wait_for_a_test_of_minutes() {
    let mut world = World::new(three());
    world.server.is_individual = false;
    world.run(3 * SECOND);
    (world.has_long_tests, world.may_stop_all) = (true, true);
    world.desire(config(|c| c.test_sessions = ["s1", "s2"].map(session).into()));
    world.run(61 * SECOND);
    assert_eq!(count(&world, "stop all"), 1);
    assert_eq!(world.status.applied_revision, 2);
    assert!(world.machine.is_running());
}

#[test]
fn completed_sessions_continue_if_test_count_is_removed_during_an_attempt() {
    let mut world = World::new(config(|c| {
        c.test_count = 1;
        c.test_sessions = ["s1", "s2"].map(session).into();
    }));
    world.server.rejects.insert("s2".into());
    world.run(SECOND);
    assert_eq!(world.sessions["s1"].progress.stage, SessionStage::Completed);
    world.may_stop_all = true;
    world.input(Input::DnsChanged);
    world.desire(config(|_| {}));
    world.run(10 * SECOND);
    assert_eq!(world.status.phase, Phase::Running);
    assert!(world.sessions["s1"].answered > 5);
}

#[test]
fn declined_session_is_declined_again_after_a_start_by_hand() {
    let mut world = World::new(three());
    world.server.max_sessions = 2;
    world.run(10 * SECOND);
    assert!(world.machine.is_running());
    world.may_stop_all = true;
    world.stop_by_hand();
    world.run(SECOND);
    let unreachable = world.sessions["s3"].unreachable;
    world.start_by_hand();
    world.run(10 * SECOND);
    assert!(world.sessions["s3"].unreachable > unreachable + 5, "its tests are reported");
}
