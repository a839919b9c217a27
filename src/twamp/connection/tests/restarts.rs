//! Automatic restarts; each test covers one situation.

use super::{world::*, *};
use crate::{model::FailureCause, proto::ControlType as Kind};

#[test]
fn committed_connection_connects_at_once() {
    let mut world = World::new(config(|_| {}));
    assert_eq!(world.attempts, [0]);
    world.run(20 * MS);
    assert!(world.machine.is_running());
    assert_eq!(world.status.phase, Phase::Running);
    assert!(world.events.is_empty());
}

#[test]
fn activated_connection_connects_at_once_and_waits_for_a_manual_start() {
    let mut world = World::new(config(|c| c.inactive = true));
    world.run(5 * SECOND);
    assert!(world.attempts.is_empty());
    world.start_by_hand();
    assert!(world.attempts.is_empty(), "inactive connections are not started by hand");
    world.desire(config(|_| {}));
    world.run(20 * MS);
    assert!(world.machine.is_running());
    let manual = config(|c| c.set_test_start(proto::TestStart::Manual));
    let mut world = World::resumed(manual.clone(), true, Remembered::default(), 0);
    world.run(SECOND);
    assert_eq!((world.status.phase, world.attempts.len()), (Phase::Stopped, 0));
    world.start_by_hand();
    world.run(SECOND);
    assert!(world.machine.is_running());
    world.may_stop_all = true;
    world.set_desired(manual, true);
    world.run(SECOND);
    assert_eq!(world.status.phase, Phase::Stopped);
}

#[test]
fn unreachable_server_gets_one_attempt_per_interval() {
    for (cause, takes) in [
        (FailureCause::Refused, MS),
        (FailureCause::NoRoute, 1),
        (FailureCause::ConnectTimeout, 60 * SECOND),
        (FailureCause::Reset, 700 * MS),
    ] {
        let mut world = World::new(config(|c| c.connect_timeout = seconds(1)));
        world.server.up = false;
        world.server.failure = (cause, takes);
        world.run(100 * SECOND);
        for (index, at) in world.attempts.iter().enumerate() {
            let due = index as u64 * SECOND;
            assert!(at.abs_diff(due) <= 50 * MS, "{cause:?}: attempt {index} at {at}");
        }
        assert!(world.attempts.len() >= 100, "{cause:?}: {}", world.attempts.len());
        assert_eq!(kinds(&world), ["lost"], "{cause:?}");
        world.server.up = true;
        let back = world.now;
        world.run(2 * SECOND);
        assert_eq!(kinds(&world), ["lost", "restored"]);
        let (at, ConnectionEvent::Restored { outage, length_ns }) = &world.events[1] else {
            panic!("no end");
        };
        assert!(at - back <= SECOND + 50 * MS, "{cause:?}");
        assert_eq!(outage.attempts as usize, world.attempts.len());
        assert_eq!(at - world.events[0].0, *length_ns);
    }
}

#[test]
fn wait_for_a_silent_resolver_is_limited() {
    let mut world = World::new(config(|c| {
        c.target_address = "server.example".into();
        c.test_interval = seconds(10);
    }));
    world.server.resolves_in = None;
    world.run(MS);
    assert_eq!(world.status.phase, Phase::Resolving);
    world.run(100 * SECOND);
    assert_eq!(world.attempts.len(), 11);
    let (_, ConnectionEvent::Lost(failure)) = &world.events[0] else { panic!("no loss") };
    assert_eq!(failure.cause, FailureCause::Dns);
    // A network change ends the wait.
    let attempts = world.attempts.len();
    world.server.resolves_in = Some(MS);
    world.input(Input::Network(1));
    assert_eq!(world.attempts.len(), attempts + 1, "at once");
    world.run(SECOND);
    assert!(world.machine.is_running());
}

#[test]
fn network_change_causes_one_additional_attempt_at_once() {
    let mut world = World::new(config(|c| c.test_interval = seconds(10)));
    world.server.up = false;
    world.run(13 * SECOND);
    assert_eq!(world.attempts, [0, 10 * SECOND]);
    world.input(Input::Network(1));
    assert_eq!(world.attempts.last(), Some(&(13 * SECOND)));
    world.input(Input::Network(1));
    world.run(20 * SECOND);
    assert_eq!(world.attempts[3..], [20 * SECOND, 30 * SECOND], "the schedule is unchanged");
    // An attempt that hangs in TCP is replaced, an attempt that negotiates is not.
    world.server.failure = (FailureCause::ConnectTimeout, 60 * SECOND);
    world.run(8 * SECOND);
    let attempts = world.attempts.len();
    world.input(Input::Network(2));
    assert_eq!(world.attempts.len(), attempts + 1);
    world.server.up = true;
    world.server.handshake = 2 * SECOND;
    world.run(10 * SECOND);
    assert!(world.machine.is_running());
    // A change during the negotiation makes the next attempt immediate.
    world.lose_server();
    world.server.up = true;
    world.run(10 * SECOND + 500 * MS);
    assert_eq!(world.status.phase, Phase::Negotiating);
    let attempts = world.attempts.len();
    world.input(Input::Network(3));
    assert_eq!(world.attempts.len(), attempts);
    world.server.up = false;
    world.run(2 * SECOND);
    assert_eq!(world.attempts.len(), attempts + 1);
}

#[test]
fn start_by_hand_causes_one_attempt_at_once() {
    let mut world = World::new(config(|c| c.test_interval = seconds(10)));
    world.server.up = false;
    world.run(13 * SECOND);
    world.start_by_hand();
    assert_eq!(world.attempts, [0, 10 * SECOND, 13 * SECOND]);
    world.run(8 * SECOND);
    assert_eq!(world.attempts[3..], [20 * SECOND]);
}

#[test]
fn shorter_interval_applies_after_the_running_attempt() {
    let every = |interval| {
        config(move |c| (c.test_interval, c.connect_timeout) = (seconds(interval), seconds(2)))
    };
    let mut world = World::new(every(40));
    world.server.up = false;
    world.server.failure = (FailureCause::ConnectTimeout, 60 * SECOND);
    world.run(10 * SECOND);
    world.input(Input::Network(1));
    world.run(MS);
    world.desire(every(1));
    let since = world.now;
    world.run(20 * SECOND);
    let attempts = world.attempts.iter().filter(|at| **at > since).count();
    assert!(attempts >= 4, "{attempts}");
}

#[test]
fn failed_start_by_hand_in_a_pause_is_retried_after_an_interval() {
    let mut world = World::new(config(|c| c.test_interval = seconds(1_200)));
    world.run(1_000 * SECOND);
    assert!(matches!(world.machine.state, State::Idle(_)));
    world.server.up = false;
    world.start_by_hand();
    let at = world.now;
    world.run(1_300 * SECOND);
    assert_eq!(world.attempts[1..], [at, at + 1_200 * SECOND]);
}

#[test]
fn loss_starts_the_retry_schedule_and_a_local_error_is_retried_at_once() {
    let mut world = World::new(config(|c| c.test_interval = seconds(10)));
    world.run(3 * SECOND);
    world.lose_server();
    assert!(matches!(world.commands.last(), Some(SessionCommand::Down(FailureCause::Reset, 0))));
    world.run(25 * SECOND);
    assert_eq!(world.attempts, [0, 13 * SECOND, 23 * SECOND]);
    world.server.up = true;
    world.run(10 * SECOND);
    assert!(world.machine.is_running());
    world.input(Input::Lost(Failure::new(FailureCause::LocalError, "the interface is gone")));
    let at = world.now;
    world.run(SECOND);
    assert_eq!(world.attempts.last(), Some(&at));
    assert!(world.machine.is_running());
    assert_eq!(kinds(&world), ["lost", "restored", "lost", "restored"]);
}

#[test]
fn completed_connection_restarts_only_by_hand_or_with_another_test_count() {
    let counted = |count| config(move |c| c.test_count = count);
    let mut world = World::new(counted(3));
    world.run(20 * SECOND);
    assert_eq!((world.status.phase, kinds(&world)), (Phase::Completed, vec!["completed"]));
    assert_eq!(world.sessions["s1"].answered, 3);
    assert_eq!(world.machine.next_deadline(), None);
    // A change with the same test_count keeps the connection completed.
    world.desire(config(|c| {
        c.test_count = 3;
        c.destination_port = Some(4000);
    }));
    world.run(20 * SECOND);
    assert_eq!(world.status.phase, Phase::Completed);
    assert_eq!(world.status.applied_revision, 2);
    world.start_by_hand();
    world.run(20 * SECOND);
    assert_eq!((world.status.phase, world.sessions["s1"].answered), (Phase::Completed, 6));
    world.desire(counted(2));
    world.run(20 * SECOND);
    assert_eq!((world.status.phase, world.sessions["s1"].answered), (Phase::Completed, 8));
    // Without a test_count, a connection with a manual start waits for the start; others run.
    let manual = config(|c| c.set_test_start(proto::TestStart::Manual));
    world.desire(manual.clone());
    world.restart_agent(true, SECOND);
    world.run(20 * SECOND);
    assert_eq!(world.status.phase, Phase::Completed);
    world.desire(config(|_| {}));
    world.run(20 * SECOND);
    assert_eq!(world.status.phase, Phase::Running);
}

#[test]
fn completed_connection_stays_completed_across_a_restart() {
    let counted = |count| config(move |c| c.test_count = count);
    let mut world = World::new(counted(3));
    world.run(20 * SECOND);
    let remembered = world.persisted.clone().unwrap();
    assert_eq!(remembered.completed, Some(3));
    let mut world = World::resumed(counted(3), false, remembered.clone(), 30 * SECOND);
    world.run(20 * SECOND);
    assert_eq!((world.status.phase, world.attempts.len()), (Phase::Completed, 0));
    assert!(world.events.is_empty(), "completed once");
    // An activation is not a start by hand, even after a restart while the connection is inactive.
    let inactive = config(|c| (c.test_count, c.inactive) = (3, true));
    for restarts in [false, true] {
        world.desire(inactive.clone());
        world.run(SECOND);
        assert_eq!(world.status.phase, Phase::Inactive);
        if restarts {
            world.restart_agent(true, SECOND);
        }
        world.desire(counted(3));
        world.run(20 * SECOND);
        assert_eq!((world.status.phase, world.attempts.len()), (Phase::Completed, 0));
    }
    world.start_by_hand();
    world.run(20 * SECOND);
    assert_eq!(world.sessions["s1"].answered, 3);
    // The test_count was changed while the agent was not running.
    let mut world = World::resumed(counted(2), false, remembered, 30 * SECOND);
    world.run(20 * SECOND);
    assert_eq!((world.status.phase, world.sessions["s1"].answered), (Phase::Completed, 2));
}

#[test]
fn loss_with_a_test_count_is_final() {
    let mut world = World::new(config(|c| c.test_count = 100));
    world.run(3 * SECOND);
    world.lose_server();
    world.run(20 * SECOND);
    assert_eq!((world.status.phase, world.attempts.len()), (Phase::Completed, 1));
    assert_eq!(kinds(&world), ["lost", "abandoned"]);
}

#[test]
fn test_count_without_a_control_connection_continues_after_an_outage() {
    let mut world = World::new(config(|c| {
        c.set_control_type(Kind::Light);
        c.test_count = 6;
    }));
    world.run(2 * SECOND);
    world.no_route = true;
    world.run(2 * SECOND);
    assert_eq!(kinds(&world)[0], "lost");
    world.no_route = false;
    world.run(20 * SECOND);
    assert_eq!(world.status.phase, Phase::Completed);
}

#[test]
fn connection_closed_by_the_server_is_reconnected() {
    let mut world = World::new(config(|_| {}));
    for _ in 0..10 {
        world.run(3 * SECOND);
        world.may_stop_all = true;
        world.input(Input::Lost(Failure::closed_by_server()));
        world.has_control = false;
        let at = world.now;
        world.run(SECOND + 50 * MS);
        assert!(world.machine.is_running());
        assert_eq!(world.attempts.last(), Some(&(at + SECOND)));
    }
    assert_eq!(world.events.len(), 20);
}

#[test]
fn outage_across_a_restart_of_the_task_has_one_pair_of_events() {
    let mut world = World::new(config(|_| {}));
    world.server.up = false;
    world.run(3 * SECOND);
    world.fail_task();
    world.server.up = true;
    world.run(3 * SECOND);
    assert_eq!(kinds(&world), ["lost", "restored"]);
    assert_eq!((world.status.outages, world.status.task_restarts), (1, 1));
}

#[test]
fn outage_across_restarts_has_one_pair_of_events_with_its_length() {
    for is_killed in [false, true] {
        let mut world = World::new(config(|_| {}));
        world.run(SECOND);
        world.lose_server();
        let began = world.now;
        world.run(4 * SECOND);
        for _ in 0..2 {
            world.restart_agent(is_killed, 5 * SECOND);
            world.run(2 * SECOND);
            assert_eq!(kinds(&world), ["lost"]);
            assert_eq!((world.status.outages, world.status.past_outages_ns), (1, 0));
            let last_loss = world.status.last_loss.as_ref().unwrap();
            assert_eq!(last_loss.time, at(began).unix);
            assert!(world.status.attempts_since_success >= 3);
        }
        world.server.up = true;
        world.run(2 * SECOND);
        assert_eq!(kinds(&world), ["lost", "restored"]);
        let (at, ConnectionEvent::Restored { outage, length_ns }) = &world.events[1] else {
            panic!("no end");
        };
        assert_eq!(*length_ns, at - began);
        assert_eq!(world.status.past_outages_ns, *length_ns);
        assert!(outage.attempts > world.attempts.len() as u64 / 2, "{}", outage.attempts);
        assert_eq!(world.persisted.as_ref().unwrap().outage, None);
        // The next process continues the counters and counts the next outage.
        let length_ns = *length_ns;
        world.restart_agent(is_killed, SECOND);
        assert_eq!((world.status.outages, world.status.past_outages_ns), (1, length_ns));
        world.run(2 * SECOND);
        world.lose_server();
        world.run(SECOND);
        world.restart_agent(is_killed, SECOND);
        assert_eq!((world.status.outages, world.status.past_outages_ns), (2, length_ns));
    }
}

#[test]
fn completion_in_progress_survives_a_restart() {
    for is_killed in [false, true] {
        // The agent ends while the sessions of a final loss are being stopped.
        let mut world = World::new(config(|c| c.test_count = 100));
        world.run(3 * SECOND);
        world.lose_server();
        assert!(matches!(world.machine.state, State::Leaving(_)));
        world.restart_agent(is_killed, SECOND);
        world.run(20 * SECOND);
        assert_eq!(
            (world.status.phase, kinds(&world)),
            (Phase::Completed, vec!["lost", "abandoned"])
        );
    }
    // The agent ends after the last test while the connection is being closed.
    let mut world = World::new(config(|c| c.test_count = 1));
    while !matches!(world.machine.state, State::Leaving(_)) {
        world.run(MS);
    }
    world.restart_agent(false, SECOND);
    world.run(20 * SECOND);
    assert_eq!((world.status.phase, kinds(&world)), (Phase::Completed, vec!["completed"]));
}

#[test]
fn backoff_spreads_attempts() {
    let mut world = World::new(config(|c| c.retry_backoff_max = seconds(60)));
    world.server.up = false;
    world.run(1_000 * SECOND);
    let attempts = world.attempts.len();
    assert!((20..200).contains(&attempts), "{attempts}");
    assert_eq!(kinds(&world), ["lost"]);
}
