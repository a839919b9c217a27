//! Invariants under random inputs in random order. The world checks most of them at each step: one
//! operation at a time, events in pairs, a deadline if no other input follows, and no session
//! stopped without a reason.

use proptest::prelude::*;

use super::{world::*, *};
use crate::{
    model::{ConnectionEffect, FailureCause},
    proto::{ControlType as Kind, TestStart},
};

/// Random step of the world.
#[derive(Clone, Debug)]
enum Step {
    Run(u64),
    Lose,
    Return,
    Fail(usize),
    Network,
    Start,
    Stop,
    Configure(Shape),
    Reject(Option<u8>),
    SessionLimit(usize),
    Individual(bool),
    Refwait(bool),
    Names(bool),
    Route(bool),
    DnsChanges,
    LocalLoss,
    TaskFails,
    AgentRestarts(bool),
    LongTests(bool),
}

#[derive(Clone, Debug)]
struct Shape {
    kind: u8,
    sessions: u8,
    port: u16,
    session_port: u16,
    interval: u8,
    count: u64,
    is_inactive: bool,
    is_manual: bool,
    is_named: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let numbers = (0..4u8, 1..8u8, 0..2u16, 0..3u16, 0..4u8);
    let flags = (proptest::bool::weighted(0.1), proptest::bool::weighted(0.1), any::<bool>());
    (numbers, prop_oneof![4 => Just(0), 1 => 1..4u64], flags).prop_map(|(numbers, count, flags)| {
        let (kind, sessions, port, session_port, interval) = numbers;
        let (is_inactive, is_manual, is_named) = flags;
        let kind = kind.saturating_sub(1);
        Shape {
            kind,
            sessions,
            port,
            session_port,
            interval,
            count,
            is_inactive,
            is_manual,
            is_named,
        }
    })
}

fn build_config(shape: &Shape) -> Arc<ControlConnection> {
    config(|c| {
        c.set_control_type([Kind::Managed, Kind::Light, Kind::Stamp][usize::from(shape.kind)]);
        if shape.kind == 0 {
            c.destination_port = Some((4000 + shape.port).into());
        }
        if shape.is_named {
            c.target_address = "server.example".into();
        }
        c.test_interval = Some(prost_types::Duration {
            seconds: [1, 2, 40, 1_200][usize::from(shape.interval)],
            nanos: 0,
        });
        c.test_count = shape.count;
        c.inactive = shape.is_inactive;
        if shape.is_manual {
            c.set_test_start(TestStart::Manual);
        }
        let chosen = (0..3).filter(|bit| shape.sessions >> bit & 1 == 1);
        c.test_sessions = chosen
            .map(|bit| {
                let mut session = session(&format!("s{bit}"));
                session.destination_port = Some((5000 + shape.session_port * (bit + 1)).into());
                session
            })
            .collect();
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (1..20_000u64).prop_map(Step::Run),
        3 => Just(Step::Lose),
        6 => Just(Step::Return),
        1 => (0..4usize).prop_map(Step::Fail),
        2 => Just(Step::Network),
        2 => Just(Step::Start),
        1 => Just(Step::Stop),
        5 => shape().prop_map(Step::Configure),
        1 => proptest::option::of(0..3u8).prop_map(Step::Reject),
        1 => prop_oneof![1..4usize, Just(usize::MAX)].prop_map(Step::SessionLimit),
        1 => any::<bool>().prop_map(Step::Individual),
        1 => any::<bool>().prop_map(Step::Refwait),
        1 => any::<bool>().prop_map(Step::Names),
        1 => any::<bool>().prop_map(Step::Route),
        1 => Just(Step::DnsChanges),
        1 => Just(Step::LocalLoss),
        1 => Just(Step::TaskFails),
        2 => any::<bool>().prop_map(Step::AgentRestarts),
        1 => any::<bool>().prop_map(Step::LongTests),
    ]
}

fn apply(world: &mut World, step: Step, network: &mut u64, desired: &mut Arc<ControlConnection>) {
    match step {
        Step::Run(ms) => world.run(ms * MS),
        Step::Lose => world.lose_server(),
        Step::Return => world.server.up = true,
        Step::Fail(index) => {
            world.server.failure = [
                (FailureCause::Refused, MS),
                (FailureCause::NoRoute, 1),
                (FailureCause::ConnectTimeout, 60 * SECOND),
                (FailureCause::Rejected, 2 * MS),
            ][index];
        }
        Step::Network => {
            *network += 1;
            world.input(Input::Network(*network));
        }
        Step::Start => {
            world.starts += 1;
            world.may_stop_all = true;
            world.set_desired(desired.clone(), false);
        }
        Step::Stop => {
            world.may_stop_all = true;
            world.set_desired(desired.clone(), true);
        }
        Step::Configure(shape) => {
            *desired = build_config(&shape);
            let effect = crate::model::connection_effect(
                world.machine.config(),
                desired,
                SessionControl::Individual,
            );
            let is_inactive = desired.inactive || world.machine.config().inactive;
            world.may_stop_all |= is_inactive
                || effect != ConnectionEffect::SessionRestart && effect != ConnectionEffect::Live;
            world.revision += 1;
            let (machine, is_manual) = (&world.machine, shape.is_manual);
            let stopped = is_manual && (machine.desired.stopped || machine.config().inactive);
            world.set_desired(desired.clone(), stopped);
        }
        Step::Reject(session) => {
            world.server.rejects = session.map(|bit| format!("s{bit}")).into_iter().collect();
            // If the server rejects all sessions of a change, none runs any more.
            world.may_stop_all = true;
        }
        Step::SessionLimit(sessions) => {
            world.server.max_sessions = sessions;
            world.may_stop_all = true;
        }
        Step::Individual(is_individual) => world.server.is_individual = is_individual,
        Step::Refwait(is_short) => {
            world.server.refwait = if is_short { 3 * SECOND } else { u64::MAX };
            world.may_stop_all = true;
        }
        Step::Names(answer) => world.server.resolves_in = answer.then_some(2 * MS),
        Step::Route(is_gone) => {
            world.no_route = is_gone;
            world.may_stop_all = true;
        }
        Step::DnsChanges => {
            world.may_stop_all = true;
            world.input(Input::DnsChanged);
        }
        Step::LocalLoss => {
            world.may_stop_all = true;
            world.input(Input::Lost(Failure::new(
                FailureCause::LocalError,
                "the interface is gone",
            )));
        }
        Step::TaskFails => world.fail_task(),
        Step::LongTests(are_long) => {
            world.has_long_tests = are_long;
            world.may_stop_all = true;
        }
        Step::AgentRestarts(is_killed) => {
            world.restart_agent(is_killed, 3 * SECOND);
            *network = 0;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_for_random_inputs(
        first in shape(),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut desired = build_config(&first);
        let mut world = World::new(desired.clone());
        let mut network = 0;
        world.may_stop_all = true;
        for step in steps {
            if world.machine.pending.is_none() && world.machine.accepts_changes() {
                world.may_stop_all = world.is_disturbed();
            }
            apply(&mut world, step, &mut network, &mut desired);
        }
        // With a server that stays up, every connection completes or runs.
        world.server.up = true;
        world.server.rejects.clear();
        world.server.max_sessions = usize::MAX;
        world.server.resolves_in = Some(2 * MS);
        world.server.refwait = u64::MAX;
        world.no_route = false;
        world.has_long_tests = false;
        world.may_stop_all = true;
        world.run(10_000 * SECOND);
        prop_assert_eq!(world.status.applied_revision, world.revision);
        prop_assert_eq!(world.machine.config(), &desired);
        prop_assert!(world.status.outage.is_none(), "{:?}", world.machine.state);
        let expected = match (desired.inactive, world.machine.desired.stopped, desired.test_count) {
            (true, ..) => Phase::Inactive,
            (false, true, _) => Phase::Stopped,
            // A completed connection with a manual start stays completed across all changes.
            (false, false, 0) if desired.manual_start && world.status.phase == Phase::Completed => {
                Phase::Completed
            }
            (false, false, 0) => Phase::Running,
            // A session that the server did not accept has tests left.
            (false, false, _)
                if world.machine.is_running()
                    && !world.machine.sessions.missing(&desired).is_empty() =>
            {
                Phase::Running
            }
            (false, false, _) => Phase::Completed,
        };
        prop_assert_eq!(world.status.phase, expected, "{:?}", world.machine.state);
        let missing = world.machine.missing_sessions();
        prop_assert!(!world.machine.is_running() || missing.is_empty(), "{:?} do not run", missing);
        let tests = |world: &World| world.sessions.values().map(|s| s.answered).sum::<u64>();
        let before = tests(&world);
        world.run(5_000 * SECOND);
        let measures = tests(&world) > before;
        if expected != Phase::Running || desired.test_count == 0 {
            prop_assert_eq!(measures, expected == Phase::Running, "{:?}", world.machine.state);
        }
        world.input(Input::End { is_resumed: false });
        world.run(100 * SECOND);
        prop_assert!(world.is_finished && world.sessions.is_empty());
    }
}
