"""Changes of the configuration: in part, confirmed, rolled back, and with as little disturbance as
the wire allows."""

import contextlib
import os
import pty
import subprocess
import time
import unittest

import grpc

from harness import (
    CTL, Case, TwoHosts, client, connection, events, free_port, seconds, server, session, sh, tests,
)


def names(api):
    document = api.call("ConfigService", "GetConfig").get("config", {})
    return [c["name"] for c in document.get("client", {}).get("control_connections", [])]


def idle(name, **fields):
    """A connection that does nothing."""
    return connection(name, "127.0.0.1", inactive=True, **fields)


class Documents(Case):
    def setUp(self):
        super().setUp()
        self.running = self.agent()
        self.api = self.running.client()

    def restart(self, kill=False):
        self.api.close()
        self.running.kill() if kill else self.running.stop()
        self.running.start()
        self.api = self.running.client()

    def revision(self):
        return int(self.api.call("AgentService", "GetAgent")["revision"])

    def test_a_merge_touches_what_it_names(self):
        port = free_port()
        self.api.apply({
            "client": client(idle("a"), idle("b", description="old")),
            "storage": {"retention_age": "3600s"},
        })
        answer = self.api.apply(
            {"client": client(idle("b", description="new"), idle("c")), "server": server(port=port)},
            mode="APPLY_MODE_MERGE", delete=["client/a"],
        )
        self.assertEqual(
            [(c["path"], c["kind"].removeprefix("CHANGE_KIND_")) for c in answer["changes"]],
            [("client/b", "CHANGED"), ("client/c", "ADDED"), ("client/a", "REMOVED"), ("server", "ADDED")],
        )
        self.assertEqual(answer["changes"][0]["effect"], "CHANGE_EFFECT_LIVE")
        self.assertEqual(names(self.api), ["b", "c"])
        document = self.api.call("ConfigService", "GetConfig")["config"]
        self.assertEqual(document["client"]["control_connections"][0]["description"], "new")
        self.assertEqual(document["storage"]["retention_age"], "3600s")
        # A contradictory request is rejected as a whole.
        code, _, fields = self.api.refused(
            {"client": client(idle("b"), idle("d", test_count=4294967295))},
            mode="APPLY_MODE_MERGE", delete=["client/b", "client/nobody", "x", "storage", "storage"],
        )
        self.assertEqual(code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(sorted(fields), [
            "client.control_connections[1].test_count",
            "delete[0]", "delete[1]", "delete[2]", "delete[4]",
        ])
        code, _, fields = self.api.refused({}, delete=["server"])
        self.assertEqual((code, list(fields)), (grpc.StatusCode.INVALID_ARGUMENT, ["delete"]))
        self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["server", "storage", "client/b"])
        self.assertEqual(names(self.api), ["c"])
        self.assertEqual(self.revision(), 3)

    def test_the_same_merge_again_does_nothing_twice(self):
        identifier = "6fa459ea-ee8a-3ca4-894e-db77e160355e"
        self.api.apply({"client": client(idle("a"))})
        merge = lambda **fields: self.api.apply(  # noqa: E731
            {}, mode="APPLY_MODE_MERGE", request_id=identifier, **fields)
        self.assertEqual(merge(delete=["client/a"])["revision"], "2")
        self.api.apply({"client": client(idle("a"), idle("b"))})
        self.assertEqual(merge(delete=["client/a"])["revision"], "2", "the answer of then")
        again = self.api.apply({}, mode="APPLY_MODE_MERGE", request_id=identifier.upper(), delete=["client/a"])
        self.assertEqual(again["revision"], "2", "however it is written")
        self.assertEqual(merge(delete=["client/a"], validate_only=True)["revision"], "3", "what would happen now")
        self.assertEqual(names(self.api), ["a", "b"])
        self.restart(kill=True)
        self.assertEqual(merge(delete=["client/a"])["revision"], "2")
        with self.assertRaises(grpc.RpcError) as other:
            merge(delete=["client/b"])
        self.assertEqual(other.exception.code(), grpc.StatusCode.ALREADY_EXISTS)

    def test_what_is_not_confirmed_is_rolled_back(self):
        self.api.apply({"client": client(idle("a"))})
        answer = self.api.apply({"client": client(idle("b"))}, confirm_timeout="1.5s")
        begun = time.time()
        self.assertLess(abs(seconds(answer["confirm_deadline"]) - begun - 1.5), 0.5)
        config = self.api.call("ConfigService", "GetConfig")
        self.assertEqual(config["confirm_deadline"], answer["confirm_deadline"])
        self.wait_for(lambda: names(self.api) == ["a"], 5, 0.02)
        self.assertGreater(time.time() - begun, 1.4)
        latest = self.api.call("ConfigService", "ListRevisions")["revisions"][0]
        self.assertEqual((latest["revision"], latest["rollback_to"], latest["author"]), ("3", "1", "agent"))
        self.assertIn("revision 2 was not confirmed", latest["comment"])
        self.assertNotIn("confirm_deadline", self.api.call("ConfigService", "GetConfig"))
        committed = lambda: events(self.api.records(), "CONFIGURATION_COMMITTED")[-1]  # noqa: E731
        self.wait_for(lambda: "back to revision 1" in committed()["detail"])
        # Confirmed, it stays; nothing is left to be confirmed then.
        self.api.apply({"client": client(idle("b"))}, confirm_timeout="1s")
        confirm = lambda revision=0: self.api.call(  # noqa: E731
            "ConfigService", "ConfirmConfig", {"revision": revision})
        with self.assertRaises(grpc.RpcError) as wrong:
            confirm(3)
        self.assertEqual(wrong.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        self.assertIn("revision 4 is pending", wrong.exception.details())
        self.assertEqual(confirm()["revision"], "4")
        self.assertEqual(confirm(4)["revision"], "4", "again")
        time.sleep(1.5)
        self.assertEqual(names(self.api), ["b"])
        with self.assertRaises(grpc.RpcError) as nothing:
            confirm()
        self.assertEqual(nothing.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        for wrong in ("0.5s", "86401s"):
            code, _, fields = self.api.refused({}, confirm_timeout=wrong)
            self.assertEqual((code, list(fields)), (grpc.StatusCode.INVALID_ARGUMENT, ["confirm_timeout"]))

    def test_a_change_without_a_time_makes_what_waits_stay(self):
        self.api.apply({"client": client(idle("a"))})
        self.api.apply({"client": client(idle("b"))}, confirm_timeout="1s")
        self.api.apply({"client": client(idle("b"), idle("c"))}, confirm_timeout="60s")
        # The time starts over, and the rollback leads to the latest revision that was not pending.
        time.sleep(1.3)
        self.assertEqual(names(self.api), ["b", "c"])
        self.api.apply({"client": client(idle("b"), idle("c"), idle("x"))})
        with self.assertRaises(grpc.RpcError):
            self.api.call("ConfigService", "ConfirmConfig")
        self.api.apply({"client": client(idle("d"))}, confirm_timeout="1s")
        self.api.apply({"client": client(idle("e"))}, confirm_timeout="1s")
        self.wait_for(lambda: names(self.api) == ["b", "c", "x"], 5)

    def test_what_is_as_before_and_not_confirmed_waits_no_longer(self):
        self.api.apply({"client": client(idle("a"))})
        self.api.apply({"client": client(idle("b"))}, confirm_timeout="60s")
        self.api.apply({"client": client(idle("a"))}, confirm_timeout="1s")
        current = lambda: self.api.call("ConfigService", "GetConfig")  # noqa: E731
        self.assertIn("confirm_deadline", current())
        self.wait_for(lambda: "confirm_deadline" not in current(), 5)
        revision = current()["revision"]
        self.assertEqual((revision["revision"], revision["rollback_to"]), ("4", "1"))
        time.sleep(1.5)
        self.assertEqual(current()["revision"], revision, "once")

    def test_the_same_document_does_not_confirm(self):
        self.api.apply({"client": client(idle("a"))})
        until = self.api.apply({"client": client(idle("b"))}, confirm_timeout="2s")["confirm_deadline"]
        same = self.api.apply({"client": client(idle("b"))})
        self.assertEqual((same["changes"], same["confirm_deadline"]), ([], until))
        self.assertIn("revision 2 is still pending", same["warnings"][0])
        longer = self.api.apply({"client": client(idle("b"))}, confirm_timeout="4s")
        self.assertGreater(seconds(longer["confirm_deadline"]), seconds(until) + 1)
        time.sleep(2.5)
        self.restart(kill=True)
        self.assertEqual(names(self.api), ["b"], "the time was set anew")
        self.wait_for(lambda: names(self.api) == ["a"], 6)

    def test_a_rollback_at_the_start_has_its_changes(self):
        self.api.apply({"client": client(idle("a", destination_port=1001))})
        self.api.apply({"client": client(idle("a", destination_port=1002))}, confirm_timeout="1s")
        self.api.close()
        self.running.kill()
        time.sleep(1.2)
        self.running.start()
        self.api = self.running.client()
        change = self.api.call("ConfigService", "GetConfig", {"revision": 3})["changes"][0]
        self.assertEqual((change["path"], change["fields"][0]["path"]), ("client/a", "destination_port"))
        ctl = subprocess.run([CTL, "--agent", f"127.0.0.1:{self.running.port}", "diff", "3"],
                             capture_output=True, text=True)
        self.assertEqual(ctl.returncode, 0, ctl.stderr)
        self.assertIn("1002 -> 1001", ctl.stdout)

    def test_the_time_runs_while_the_agent_does_not(self):
        for kill in (False, True):
            self.api.apply({"client": client(idle("a"))})
            self.api.apply({"client": client(idle("b"))}, confirm_timeout="3s")
            self.restart(kill)
            self.assertEqual(names(self.api), ["b"], "its time is not over")
            self.wait_for(lambda: names(self.api) == ["a"], 6)
            self.api.apply({"client": client(idle("b"))}, confirm_timeout="1s")
            self.api.close()
            self.running.kill() if kill else self.running.stop()
            time.sleep(1.2)
            self.running.start()
            self.api = self.running.client()
            self.assertEqual(names(self.api), ["a"], "before anything runs")
            told = lambda: [e["detail"] for e in events(self.api.records(), "CONFIGURATION_COMMITTED")]  # noqa: E731
            self.wait_for(lambda: "was not confirmed in time" in told()[-1])
            self.api.apply({"client": client(idle("b"))}, confirm_timeout="2s")
            self.api.call("ConfigService", "ConfirmConfig")
            self.restart(kill)
            time.sleep(2)
            self.assertEqual(names(self.api), ["b"])

    def test_a_first_configuration_that_is_not_confirmed_leaves_nothing(self):
        self.api.apply({"client": client(idle("a"))}, confirm_timeout="1s")
        self.wait_for(lambda: names(self.api) == [] and self.revision() == 2, 5)

    def test_rollback_brings_a_revision_back_with_its_secrets(self):
        secret = idle("a", authentication_mode="AUTHENTICATION_MODE_ENCRYPTED", key_id="k", secret="hush")
        self.api.apply({"client": client(secret)}, comment="first")
        self.api.apply({"client": client(idle("b"))})
        with self.assertRaises(grpc.RpcError) as unknown:
            self.api.call("ConfigService", "RollbackConfig", {"revision": 9})
        self.assertEqual(unknown.exception.code(), grpc.StatusCode.NOT_FOUND)
        with self.assertRaises(grpc.RpcError) as stale:
            self.api.call("ConfigService", "RollbackConfig", {"revision": 1, "expected_revision": 1})
        self.assertEqual(stale.exception.code(), grpc.StatusCode.ABORTED)
        dry = self.api.call("ConfigService", "RollbackConfig", {"validate_only": True})
        self.assertEqual((dry["revision"], len(dry["changes"])), ("2", 2))
        answer = self.api.call("ConfigService", "RollbackConfig", {"comment": "b was wrong"})
        self.assertEqual(answer["revision"], "3")
        document = self.api.call("ConfigService", "GetConfig")
        self.assertEqual(document["revision"]["rollback_to"], "1")
        shown = document["config"]["client"]["control_connections"][0]
        self.assertTrue(shown["secret_digest"])
        self.assertFalse(shown.get("secret"))
        # The secret is the one of then: what is shown can be applied again.
        self.assertEqual(self.api.apply(document["config"])["changes"], [])
        self.assertEqual(
            self.api.call("ConfigService", "RollbackConfig", {"revision": 3})["revision"], "3",
            "nothing to be done")

    def test_what_only_people_read_is_a_change(self):
        one = connection("c1", "127.0.0.1", inactive=True)
        self.api.apply({"client": client(one)})
        for field, value in (("description", "new words"), ("history_size", 60)):
            one = {**one, field: value}
            answer = self.api.apply({"client": client(one)})
            self.assertEqual([c["effect"] for c in answer["changes"]], ["CHANGE_EFFECT_LIVE"], field)
            self.assertEqual([f["path"] for f in answer["changes"][0]["fields"]], [field])

    def test_changes_name_their_fields_and_no_secret(self):
        one = idle("a", secret="old secret", key_id="k", authentication_mode="AUTHENTICATION_MODE_ENCRYPTED")
        self.api.apply({"client": client(one)})
        two = {**one, "secret": "new secret", "test_interval": "5s"}
        two["test_sessions"] = [session("s1", ttl=9), session("s2")]
        answer = self.api.apply({"client": client(two)})
        fields = {f["path"]: (f["before"], f["after"]) for f in answer["changes"][0]["fields"]}
        self.assertEqual(set(fields), {
            "secret_digest", "test_interval", "test_sessions[s1].ttl", "test_sessions[s2]"})
        self.assertEqual(fields["test_interval"], ("", '"5s"'))
        self.assertNotIn("secret", "".join(fields["secret_digest"]))
        kept = self.api.call("ConfigService", "GetConfig", {"revision": 2})["changes"]
        self.assertEqual(kept, answer["changes"])

    def test_the_shell(self):
        def run(*arguments, code=0, text=None):
            done = subprocess.run(
                [CTL, "--agent", f"127.0.0.1:{self.running.port}", *arguments],
                input=text, capture_output=True, text=True)
            self.assertEqual(done.returncode, code, done.stdout + done.stderr)
            return done.stdout + done.stderr

        document = lambda ttl: (  # noqa: E731
            "client: {control_connections: [{name: a, inactive: true, target_address: 192.0.2.1,"
            f" test_sessions: [{{name: s, ttl: {ttl}}}]}}]}}")
        run("apply", "-f", "-", text=document(5))
        self.assertIn("client/a changed (live)", run("diff", "-f", "-", text=document(6)))
        told = run("apply", "-f", "-", "--confirm", "2m", "--comment", "six", text=document(6))
        self.assertIn("unless confirmed", told)
        self.assertIn("test_sessions[s].ttl: 5 -> 6", told)
        self.assertIn("revision 2 confirmed", run("confirm"))
        self.assertIn("no revision is pending", run("confirm", code=1))
        self.assertIn("ttl: 5 -> 6", run("diff"))
        self.assertIn("ttl: 6 -> 5", run("diff", "2", "1"))
        self.assertIn("revision 3", run("rollback", "1"))
        self.wait_for(lambda: "back to revision 1" in run("events"))
        self.assertIn("six", run("revisions"))
        self.assertIn("client/a removed", run("apply", "--merge", "--delete", "client/a"))
        run("apply", "--delete", "client/a", code=64)
        run("apply", "-f", "-", "--confirm", "soon", code=64, text="")
        self.assertIn("1 s to 24 h", run("apply", "-f", "-", "--confirm", "10ms", code=78, text="{}"))
        self.assertIn("never made", run("rollback", "77", code=1))

    def test_removals_are_asked_for_on_a_terminal(self):
        self.api.apply({"client": client(idle("a"), idle("b"))})
        path = os.path.join(self.directory, "one.yaml")
        with open(path, "w") as file:
            file.write("client: {control_connections: [{name: a, inactive: true, target_address: 192.0.2.1,"
                       " test_sessions: [{name: s1}]}]}")

        def apply(answer, *arguments):
            ours, theirs = pty.openpty()
            os.write(ours, answer)
            done = subprocess.run(
                [CTL, "--agent", f"127.0.0.1:{self.running.port}", "apply", "-f", path, *arguments],
                stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True, timeout=30)
            os.close(theirs)
            asked = b""
            with contextlib.suppress(OSError):
                while part := os.read(ours, 4096):
                    asked += part
            os.close(ours)
            return done, asked.decode()

        done, asked = apply(b"n\n")
        self.assertEqual(done.returncode, 1, asked)
        self.assertIn("this change removes client/b (not in the file)", asked)
        self.assertIn("nothing has changed", asked)
        self.assertEqual(sorted(names(self.api)), ["a", "b"])
        done, asked = apply(b"y\n")
        self.assertEqual(done.returncode, 0, asked)
        self.assertIn("client/b removed (stop): not in the file", done.stdout)
        self.assertEqual(names(self.api), ["a"])
        self.api.apply({"client": client(idle("a"), idle("b"))})
        done, asked = apply(b"", "--yes")
        self.assertNotIn("this change removes", asked)
        self.assertEqual(names(self.api), ["a"])


class Sessions(TwoHosts):
    """A change of one session is felt by that one alone."""

    def setUp(self):
        super().setUp()
        self.agent_a, self.agent_b = self.agent("a", self.a), self.agent("b", self.b)
        self.api, self.server = self.agent_a.client(), self.agent_b.client()

    def connection(self, *sessions, **fields):
        return connection("c1", self.B, list(sessions), test_interval="0.2s", **fields)

    def up(self, wanted, **server_fields):
        self.server.apply({"server": server(**server_fields)})
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: self.state() == "RUNNING")
        self.wait_for(lambda: len(tests(self.api.records(), "c1", "COMPLETE")) >= 4)

    def state(self):
        return self.api.connection("c1")["state"].removeprefix("CONNECTION_STATE_")

    def starts(self):
        return {s["name"]: (int(s["starts"]), s["sid"]) for s in self.api.connection("c1")["sessions"]}

    def settled(self):
        self.wait_for(lambda: not self.api.connection("c1")["reconciling"], 20, 0.02)
        self.wait_for(lambda: self.state() == "RUNNING")

    def nothing_lost(self):
        """No probe of any session is lost, no connection was."""
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        results = tests(self.api.records(), "c1")
        self.assertEqual(sum(int(t["figures"]["probes_lost"]) for t in results), 0)
        self.assertLessEqual({t["outcome"] for t in results}, {"TEST_OUTCOME_COMPLETE", "TEST_OUTCOME_STOPPED"})
        return results

    def of(self, name):
        return [t for t in self.api.records() if t.get("test_result") and t["session"] == name]

    def test_one_of_three_with_individual_control(self):
        three = [session(name, dscp_code_points="be") for name in ("s1", "s2", "s3")]
        wanted = self.connection(*three)
        self.up(wanted)
        before, ids = self.starts(), self.connections()
        wanted["test_sessions"][1]["dscp_code_points"] = "ef"
        dry = self.api.apply({"client": client(wanted)}, validate_only=True)
        answer = self.api.apply({"client": client(wanted)})
        self.assertEqual(dry["changes"], answer["changes"])
        change = answer["changes"][0]
        self.assertEqual((change["effect"], change["sessions"]), ("CHANGE_EFFECT_SESSION_RESTART", ["s2"]))
        self.settled()
        self.wait_for(lambda: self.starts()["s2"][0] == 2)
        after = self.starts()
        self.assertEqual((after["s1"], after["s3"]), (before["s1"], before["s3"]))
        self.assertNotEqual(after["s2"][1], before["s2"][1])
        self.assertEqual(self.connections(), ids, "the same control connection")
        self.wait_for(lambda: sorted(s["dscp"] for s in self.server_sessions("STARTED")) == [0, 0, 46])
        # One more, one less, and the order turned round.
        wanted["test_sessions"] = [session("s4"), wanted["test_sessions"][1], three[0]]
        change = self.api.apply({"client": client(wanted)})["changes"][0]
        self.assertEqual((change["effect"], sorted(change["sessions"])), ("CHANGE_EFFECT_SESSION_RESTART", ["s3", "s4"]))
        self.settled()
        self.wait_for(lambda: self.starts().get("s4", (0,))[0] == 1)
        last = self.starts()
        self.assertEqual((last["s1"], last["s2"]), (after["s1"], after["s2"]))
        self.assertEqual(list(last), ["s4", "s2", "s1"])
        self.wait_for(lambda: len(self.of("s4")) >= 2)
        time.sleep(1)
        results = self.nothing_lost()
        # Unchanged connections kept their schedule: none of their tests was cut short.
        for record in self.of("s1"):
            self.assertEqual(record["test_result"]["outcome"], "TEST_OUTCOME_COMPLETE")
        self.assertGreater(len(results), 10)

    def test_all_together_with_a_peer_without_it(self):
        wanted = self.connection(session("s1"), session("s2", probe_count=8))
        self.up(wanted, extensions={"individual_session_control": False})
        ids = self.connections()
        wanted["test_sessions"][0]["data_size"] = 200
        change = self.api.apply({"client": client(wanted)})["changes"][0]
        self.assertEqual(change["effect"], "CHANGE_EFFECT_RENEGOTIATE")
        self.settled()
        self.wait_for(lambda: {s[0] for s in self.starts().values()} == {2})
        self.assertEqual(self.connections(), ids, "the same control connection")
        self.wait_for(lambda: 200 - 14 in [int(s["padding_length"]) for s in self.server_sessions("STARTED")])
        count = len(self.of("s2"))
        self.wait_for(lambda: len(self.of("s2")) >= count + 2)
        results = self.nothing_lost()
        self.assertEqual({t["outcome"] for t in results}, {"TEST_OUTCOME_COMPLETE"}, "between two tests")
        self.assertEqual({int(t["figures"]["probes_not_sent"]) for t in results}, {0})

    def test_light_sessions_change_one_by_one(self):
        self.server.apply({"server": {"light": {"prefixes": ["0.0.0.0/0"]}}})
        wanted = self.connection(session("s1"), session("s2"), control_type="CONTROL_TYPE_LIGHT")
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: len(self.of("s2")) >= 2)
        before = self.starts()
        wanted["test_sessions"][0]["data_size"] = 300
        change = self.api.apply({"client": client(wanted)})["changes"][0]
        self.assertEqual((change["effect"], change["sessions"]), ("CHANGE_EFFECT_SESSION_RESTART", ["s1"]))
        self.wait_for(lambda: self.starts()["s1"][0] == 2)
        self.assertEqual(self.starts()["s2"], before["s2"])
        count = len(self.of("s1"))
        self.wait_for(lambda: len(self.of("s1")) >= count + 2)
        self.nothing_lost()

    def test_what_needs_no_word_and_what_needs_another_connection(self):
        wanted = self.connection(session("s1"))
        self.up(wanted)
        before, ids = self.starts(), self.connections()
        wanted.update(tcp_keepidle="33s", control_dscp="cs6", labels={"a": "b"}, test_count=0)
        wanted["test_sessions"][0].update(ttl=77, loss_timeout="1.5s", probe_count=3, schedule="SCHEDULE_POISSON")
        change = self.api.apply({"client": client(wanted)})["changes"][0]
        self.assertEqual((change["effect"], change["sessions"]), ("CHANGE_EFFECT_LIVE", []))
        self.wait_for(lambda: tests(self.api.records(), "c1")[-1]["figures"].get("egress_ttl") == 77)
        sockets = self.inside(self.a, "ss", "-tnoi", "dst", self.B)
        self.assertRegex(sockets, r"keepalive,(2[0-9]|3[0-3])sec")
        self.assertEqual((self.starts(), self.connections()), (before, ids))
        wanted["key_id"], wanted["secret"] = "k", "secret"
        wanted["authentication_mode"] = "AUTHENTICATION_MODE_ENCRYPTED"
        change = self.api.apply({"client": client(wanted)}, validate_only=True)["changes"][0]
        self.assertEqual(change["effect"], "CHANGE_EFFECT_RECONNECT")
        self.nothing_lost()

    def test_a_session_that_cannot_start_leaves_the_others_alone(self):
        """It is tried again until it can, and says why it does not run."""
        wanted = self.connection(session("s1"), session("s2"))
        self.up(wanted, maximum_sessions_per_connection=2)
        before = self.starts()
        wanted["test_sessions"].append(session("s3"))
        change = self.api.apply({"client": client(wanted)})["changes"][0]
        self.assertEqual((change["effect"], change["sessions"]), ("CHANGE_EFFECT_SESSION_RESTART", ["s3"]))
        self.wait_for(lambda: self.api.connection("c1").get("last_failure"))
        failure = self.api.connection("c1")["last_failure"]
        self.assertEqual((failure["cause"], failure["accept_code"]), ("FAILURE_CAUSE_REJECTED", 4))
        self.assertFalse(self.api.connection("c1")["reconciling"])
        self.wait_for(lambda: [t for t in self.of("s3") if t["test_result"]["outcome"] == "TEST_OUTCOME_UNREACHABLE"])
        after = self.starts()
        self.assertEqual((after["s1"], after["s2"]), (before["s1"], before["s2"]))
        self.server.apply({"server": server()})
        self.wait_for(lambda: self.starts()["s3"][0] == 1)
        self.wait_for(lambda: [t for t in self.of("s3") if t["test_result"]["outcome"] == "TEST_OUTCOME_COMPLETE"])
        self.assertEqual((self.starts()["s1"], self.state()), (before["s1"], "RUNNING"))
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        for name in ("s1", "s2"):
            self.assertEqual({t["test_result"]["outcome"] for t in self.of(name)}, {"TEST_OUTCOME_COMPLETE"})

    def test_a_session_that_is_refused_from_the_beginning_leaves_the_others_alone(self):
        self.refused_from_the_beginning()
        # And is asked for again.
        self.server.apply({"server": server()})
        self.wait_for(lambda: self.starts()["s3"][0] == 1)

    def test_each_session_that_does_not_run_says_why(self):
        self.server.apply({"server": server(maximum_sessions_per_connection=1)})
        wanted = self.connection(session("s1"), session("dns", target_address="nowhere.invalid"), session("full"))
        self.api.apply({"client": client(wanted)})
        of = lambda name: self.of(name)[-1]["test_result"]  # noqa: E731
        for name, cause in (("dns", "DNS"), ("full", "REJECTED")):
            self.wait_for(lambda: len(self.of(name)) > 2 and int(of(name)["attempts"]) > 2)  # noqa: B023
            self.assertEqual({t["test_result"]["cause"] for t in self.of(name)}, {f"FAILURE_CAUSE_{cause}"})
        failure = self.api.connection("c1")["last_failure"]
        for why in ("session dns: ", "session full: the server refused the session"):
            self.assertIn(why, failure["detail"])
        self.assertEqual(failure["cause"], "FAILURE_CAUSE_DNS", "of the first of them")

    def test_what_is_refused_is_asked_for_at_another_pace_and_by_hand(self):
        self.server.apply({"server": server(maximum_sessions_per_connection=1)})
        slow = {**self.connection(session("s1"), session("s2")), "test_interval": "300s"}
        for by in ("pace", "hand"):
            self.api.apply({"client": client({**slow, "name": by})})
            self.wait_for(lambda: self.api.connection(by).get("last_failure"))  # noqa: B023
            self.server.apply({"server": server()})
            if by == "pace":
                self.api.apply({"client": client({**slow, "name": by, "test_interval": "0.5s"})})
            else:
                self.api.call("ClientService", "StartConnections", {"names": [by]})
            self.wait_for(lambda: all(s["started"] for s in self.api.connection(by)["sessions"]), 5)  # noqa: B023
            self.server.apply({"server": server(maximum_sessions_per_connection=1)})

    def test_the_only_session_that_is_refused_is_an_outage(self):
        for control in ("MANAGED", "LIGHT"):
            with self.subTest(control):
                both = {"prefixes": ["0.0.0.0/0"], "listen": [{"port": 8620}]}
                self.server.apply({"server": server(light=both)})
                light = {"control_type": "CONTROL_TYPE_LIGHT"} if control == "LIGHT" else {}
                port = {"destination_port": 8620} if light else {}
                right, wrong = ({**self.connection(session("s1", **port, **target), **light), "name": control}
                                for target in ({}, {"target_address": "nowhere.invalid"}))
                told = lambda: self.api.connection(control)  # noqa: E731, B023
                state = lambda: told()["state"].removeprefix("CONNECTION_STATE_")  # noqa: E731
                self.api.apply({"client": client(right)})
                self.wait_for(lambda: tests(self.api.records(), control, "COMPLETE"))  # noqa: B023
                self.api.apply({"client": client(wrong)})
                self.wait_for(lambda: state() == "WAITING_RETRY", told=told)
                self.assertEqual((told()["last_loss"]["cause"], told()["sessions"][0]["started"]), ("FAILURE_CAUSE_DNS", False))
                self.api.apply({"client": client(right)})
                self.wait_for(lambda: state() == "RUNNING" and told()["sessions"][0]["started"], told=told)

    def test_a_session_that_does_not_run_hides_no_loss_of_the_others(self):
        self.server.apply({"server": {"light": {"prefixes": ["0.0.0.0/0"], "listen": [{"port": 8620}]}}})
        sh("ip", "-n", self.a, "address", "add", "10.99.0.5/24", "dev", "veth0")
        wanted = self.connection(session("s1", destination_port=8620, source_address="10.99.0.5"),
                                 session("s2", target_address="nowhere.invalid"), control_type="CONTROL_TYPE_LIGHT")
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: self.of("s1"))
        self.assertEqual(self.state(), "RUNNING")
        sh("ip", "-n", self.a, "address", "delete", "10.99.0.5/24", "dev", "veth0")
        self.wait_for(lambda: self.state() == "WAITING_RETRY")
        self.assertEqual(self.api.connection("c1")["last_loss"]["cause"], "FAILURE_CAUSE_LOCAL_ERROR")
        sh("ip", "-n", self.a, "address", "add", "10.99.0.5/24", "dev", "veth0")
        self.wait_for(lambda: self.state() == "RUNNING")

    def test_ports_that_are_taken_hold_up_nothing_else(self):
        self.server.apply({"server": server()})
        ports = [free_port() for _ in range(4)]
        taken = [session(f"p{port}", source_port=port) for port in ports]
        wanted = self.connection(session("s1"), *taken)
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: self.state() == "RUNNING")
        self.agent_a.stop()
        holder = subprocess.Popen(["ip", "netns", "exec", self.a, "python3", "-c", (
            "import socket, time\n"
            f"held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in {ports}]\n"
            f"[one.bind(('0.0.0.0', port)) for one, port in zip(held, {ports})]\n"
            "print('held', flush=True)\ntime.sleep(600)")], stdout=subprocess.PIPE, text=True)
        self.addCleanup(holder.stdout.close)
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        self.assertEqual(holder.stdout.readline(), "held\n")
        begun = time.monotonic()
        self.agent_a.start()
        self.api = self.agent_a.client()
        up = lambda: [s["started"] for s in self.api.connection("c1")["sessions"]]  # noqa: E731
        self.wait_for(lambda: up() == [True, False, False, False, False], told=up)
        # A port that is about to be given up is waited for once, and for all of them together.
        self.assertLess(time.monotonic() - begun, 6)
        # While they are asked for again and again, what happens is heard.
        for _ in range(3):
            time.sleep(1)
            count = len(events(self.api.records(), "CONNECTION_RESTORED"))
            self.server.call("ServerService", "CloseServerConnections", {"all": True})
            begun = time.monotonic()
            self.wait_for(lambda: len(events(self.api.records(), "CONNECTION_RESTORED")) > count, 20, 0.02)  # noqa: B023
            self.assertLess(time.monotonic() - begun, 1.5)
        holder.kill()
        self.wait_for(lambda: up() == [True] * 5, told=up)

    def test_also_where_they_are_started_together(self):
        self.refused_from_the_beginning(extensions={"individual_session_control": False})

    def refused_from_the_beginning(self, **fields):
        """At the first attempt, and at the one after an outage."""
        self.server.apply({"server": server(maximum_sessions_per_connection=2, **fields)})
        self.api.apply({"client": client(self.connection(session("s1"), session("s2"), session("s3")))})
        shown = lambda: (self.state(), [s["started"] for s in self.api.connection("c1")["sessions"]])  # noqa: E731
        runs = lambda: shown() == ("RUNNING", [True, True, False])  # noqa: E731
        self.wait_for(runs, told=shown)
        self.assertEqual(self.api.connection("c1")["last_failure"]["accept_code"], 4)
        self.wait_for(lambda: [t for t in self.of("s3") if t["test_result"]["outcome"] == "TEST_OUTCOME_UNREACHABLE"])
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        self.server.call("ServerService", "CloseServerConnections", {"all": True})
        self.wait_for(lambda: events(self.api.records(), "CONNECTION_RESTORED"))
        self.wait_for(runs, told=shown)
        count = len(self.of("s1"))
        self.wait_for(lambda: len(self.of("s1")) > count + 2)

    def test_a_light_session_that_cannot_start_leaves_the_others_alone(self):
        self.server.apply({"server": {"light": {"prefixes": ["0.0.0.0/0"]}}})
        wanted = self.connection(session("s1"), control_type="CONTROL_TYPE_LIGHT")
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: self.of("s1"))
        wanted["test_sessions"].append(session("s2", target_address="nowhere.invalid"))
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: self.api.connection("c1").get("last_failure"))
        self.assertEqual(self.api.connection("c1")["last_failure"]["cause"], "FAILURE_CAUSE_DNS")
        count = len(self.of("s1"))
        self.wait_for(lambda: len(self.of("s1")) > count + 2)
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        # Two that exchange their ports get there.
        ports = [free_port(), free_port()]
        pair = lambda a, b: client(  # noqa: E731
            self.connection(session("s1", source_port=a), session("s2"), control_type="CONTROL_TYPE_LIGHT"),
            {**self.connection(session("s1", source_port=b), session("s2"), control_type="CONTROL_TYPE_LIGHT"), "name": "c2"})
        self.api.apply({"client": pair(*ports)})
        self.wait_for(lambda: self.api.connection("c2")["state"] == "CONNECTION_STATE_RUNNING")
        self.api.apply({"client": pair(*reversed(ports))})
        sender = lambda name: self.api.connection(name)["sessions"][0]["sender_address"]  # noqa: E731
        self.wait_for(lambda: sender("c1").endswith(f":{ports[1]}") and sender("c2").endswith(f":{ports[0]}"))
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])

    def test_another_pace_holds_at_once(self):
        """While the server is away, between two tests, and while the connection is closed between them."""
        slow = lambda interval: client({  # noqa: E731
            **self.connection(session("s1", probe_count=1)), "test_interval": interval})
        self.api.apply({"client": slow("3600s")})
        self.wait_for(lambda: self.state() == "WAITING_RETRY")
        self.assertEqual(self.api.apply({"client": slow("0.5s")})["changes"][0]["effect"], "CHANGE_EFFECT_LIVE")
        self.wait_for(lambda: int(self.api.connection("c1")["attempts_since_success"]) > 3, 5)
        self.server.apply({"server": server()})
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
        for interval in ("300s", "3600s"):
            self.api.apply({"client": slow(interval)})
            count = lambda: len(tests(self.api.records(), "c1", "COMPLETE"))  # noqa: E731
            time.sleep(2.5)
            before = count()
            time.sleep(1)
            self.assertEqual(count(), before)
            self.api.apply({"client": slow("0.3s")})
            self.wait_for(lambda: count() > before + 2, 5)

    def test_what_is_wanted_no_more_is_not_waited_for(self):
        """There and back while the first change is being made: all is applied."""
        wanted = self.connection(session("s1", probe_count=30, probe_interval="0.1s"))
        self.up(wanted, extensions={"individual_session_control": False})
        for dscp in ("ef", "af11", "ef", "be", "ef"):
            wanted["test_sessions"][0]["dscp_code_points"] = dscp
            self.api.apply({"client": client(wanted)})
            time.sleep(0.1)
        self.settled()
        about = lambda: self.api.call("AgentService", "GetAgent")  # noqa: E731
        self.wait_for(lambda: about()["applied_revision"] == about()["revision"] == "6", 20)
        # A stop does not wait for the end of a test.
        wanted["test_sessions"][0].update(probe_count=300, dscp_code_points="be")
        self.api.apply({"client": client(wanted)})
        time.sleep(5)
        wanted["test_sessions"][0]["dscp_code_points"] = "cs6"
        self.api.apply({"client": client(wanted)})
        begun = time.monotonic()
        self.api.call("ClientService", "StopConnections", {"names": ["c1"]})
        self.wait_for(lambda: self.state() == "STOPPED", 10)
        self.assertLess(time.monotonic() - begun, 5)

    def test_commits_while_the_server_is_away_add_nothing_to_the_books(self):
        wanted = self.connection(session("s1", probe_count=50, probe_interval="0.1s"), session("s2"))
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: self.of("s1"))
        before, begun = len(self.of("s1")), time.monotonic()
        for size in range(100, 120):
            wanted["test_sessions"][1]["data_size"] = size
            self.api.apply({"client": client(wanted)})
        time.sleep(1)
        most = (time.monotonic() - begun) / 5.6 + 1
        self.assertLessEqual(len(self.of("s1")) - before, most)

    def test_what_is_completed_stays_so(self):
        self.server.apply({"server": {"light": {"prefixes": ["0.0.0.0/0"]}}})
        wanted = self.connection(session("s1"), session("s2", probe_count=20), test_count=2,
                                 control_type="CONTROL_TYPE_LIGHT")
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: len(self.of("s1")) == 2)
        # The one that had something left to do goes.
        wanted["test_sessions"] = wanted["test_sessions"][:1]
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: self.state() == "COMPLETED", 10)
        self.wait_for(lambda: events(self.api.records(), "CONNECTION_COMPLETED"))
        wanted["test_sessions"][0]["dscp_code_points"] = "ef"
        self.api.apply({"client": client(wanted)})
        time.sleep(1)
        self.assertEqual((self.state(), len(self.of("s1"))), ("COMPLETED", 2))
        self.assertFalse(self.api.connection("c1")["reconciling"])
        self.api.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: len(self.of("s1")) == 4)
        # A connection that waits for a manual start does so even with tests left to run.
        wanted = {**wanted, "test_count": "0", "test_start": "TEST_START_MANUAL"}
        answer = self.api.apply({"client": client(wanted)})
        self.assertEqual(answer["changes"][0]["effect"], "CHANGE_EFFECT_LIVE")
        time.sleep(1)
        self.assertEqual((self.state(), len(self.of("s1"))), ("COMPLETED", 4))
        self.api.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: len(self.of("s1")) > 5)

    def test_another_count_of_tests(self):
        self.server.apply({"server": {"light": {"prefixes": ["0.0.0.0/0"]}}})
        light = lambda count, *sessions: client(self.connection(  # noqa: E731
            *sessions, test_count=count, control_type="CONTROL_TYPE_LIGHT"))
        short, long = session("s1", probe_count=1), session("s2", probe_count=60, probe_interval="0.05s")
        self.api.apply({"client": light(1, short, long)})
        self.wait_for(lambda: len(self.of("s1")) == 1)
        time.sleep(0.3)
        # One has done its one test, and is to do two more; the other one is in its first.
        self.api.apply({"client": light(3, short, long)})
        self.wait_for(lambda: len(self.of("s1")) == 3, 5)
        self.assertEqual(events(self.api.records(), "CONNECTION_COMPLETED"), [])
        self.wait_for(lambda: len(self.of("s2")) == 3, 20)
        self.wait_for(lambda: events(self.api.records(), "CONNECTION_COMPLETED"))
        # A connection that has run more than the new test_count is complete after the change.
        self.api.apply({"client": light(0, short, long)})
        self.wait_for(lambda: len(self.of("s1")) >= 6)
        self.api.apply({"client": light(2, {**short, "dscp_code_points": "ef"}, long)})
        self.wait_for(lambda: self.state() == "COMPLETED", 10)

    def test_what_an_answer_says_of_what_rests(self):
        self.up(self.connection(session("s1")))

        def effect(wanted, api=None):
            changes = (api or self.api).apply(wanted)["changes"]
            self.assertEqual(len(changes), 1)
            return changes[0]["effect"].removeprefix("CHANGE_EFFECT_")

        def c1(dscp="be", **fields):
            return {"client": client(self.connection(session("s1", dscp_code_points=dscp), **fields))}

        def stop():
            self.api.call("ClientService", "StopConnections", {"names": ["c1"]})
            self.wait_for(lambda: self.state() == "STOPPED")

        stop()
        ids = self.connections()
        self.assertEqual(effect(c1(labels={"a": "b"})), "START", "a change starts what was stopped")
        self.wait_for(lambda: self.state() == "RUNNING" and self.connections() != ids)
        self.assertEqual(effect(c1(test_start="TEST_START_MANUAL")), "LIVE")
        stop()
        self.assertEqual(effect(c1("ef", test_start="TEST_START_MANUAL")), "LIVE")
        self.assertEqual(self.state(), "STOPPED")
        manual = {"client": client(connection("c2", self.B, test_start="TEST_START_MANUAL"))}
        self.assertEqual(effect({"client": client(*c1("ef", test_start="TEST_START_MANUAL")["client"]
                                                  ["control_connections"], *manual["client"]["control_connections"])}), "LIVE")
        # Of a server: whether it may close what is open.
        say = lambda *lists, **fields: effect({"server": server(*lists, **fields)}, self.server)  # noqa: E731
        self.assertEqual(say(maximum_sessions=500), "LIVE")
        self.assertEqual(say(maximum_sessions=500, max_connection_duration="1h".replace("1h", "3600s")), "CLOSE_CONNECTIONS")
        self.assertEqual(say(maximum_sessions=500), "LIVE")
        self.assertEqual(say("192.0.2.0/24", maximum_sessions=500), "CLOSE_CONNECTIONS")

    def test_a_loss_is_seen_while_a_session_is_stopped(self):
        slow = session("s1", loss_timeout="15s", probe_count=100, source_port=5001)
        wanted = self.connection(slow, session("s2"))
        self.up(wanted)
        self.inside(self.b, "nft", "add table inet x")
        self.inside(self.b, "nft", "add chain inet x input { type filter hook input priority 0; }")
        self.inside(self.b, "nft", "add rule inet x input udp sport 5001 drop")
        time.sleep(0.5)
        slow["dscp_code_points"] = "ef"
        change = self.api.apply({"client": client(wanted)})["changes"][0]
        self.assertEqual((change["effect"], change["sessions"]), ("CHANGE_EFFECT_SESSION_RESTART", ["s1"]))
        time.sleep(0.3)
        killed = time.time()
        self.agent_b.kill()
        self.wait_for(lambda: events(self.api.records(), "CONNECTION_LOST"), 5)
        self.assertLess(seconds(events(self.api.records(), "CONNECTION_LOST")[0]["time"]) - killed, 2)
        # Neither waits a new server for the old answers.
        self.agent_b.start()
        wanted["target_address"] = "127.0.0.1"
        self.api.apply({"client": client(wanted)})
        self.wait_for(lambda: not self.api.connection("c1")["reconciling"], 2)

    def test_a_server_that_changes_what_holds_for_open_connections(self):
        self.up(self.connection(session("s1")))
        kept = lambda: self.inside(self.b, "ss", "-tno", "state", "established", check=True)  # noqa: E731
        self.server.apply({"server": server(tcp_keepidle="3s", tcp_keepintvl="1s", tcp_keepcnt=2)})
        self.wait_for(lambda: "keepalive,2" in (told := kept()) or "keepalive,1" in told or "keepalive,3" in told, 10)

    def test_who_is_taken_off_the_list_goes_and_a_life_holds_for_all(self):
        self.up(self.connection(session("s1")))
        self.server.apply({"server": server(max_connection_duration="1s")})
        self.wait_for(lambda: events(self.api.records(), "CONNECTION_LOST"))
        self.server.apply({"server": server()})
        self.wait_for(lambda: self.state() == "RUNNING")
        time.sleep(1.5)
        count = len(events(self.api.records(), "CONNECTION_LOST"))
        self.server.apply({"server": server("192.0.2.0/24")})
        self.wait_for(lambda: len(events(self.api.records(), "CONNECTION_LOST")) == count + 1)
        self.wait_for(lambda: not self.connections())

    def connections(self):
        found = self.server.call("ServerService", "ListServerConnections")["connections"]
        return [c["id"] for c in found]

    def server_sessions(self, state):
        found = self.server.call("ServerService", "ListServerSessions")["sessions"]
        return [s for s in found if s["state"] == f"SERVER_SESSION_STATE_{state}"]


if __name__ == "__main__":
    unittest.main()
