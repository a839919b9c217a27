"""Edge cases: open connections whose limits change, watches whose subject disappears, ports still in use,
thresholds of idle sessions, and an agent that goes away."""

import os
import resource
import signal
import socket
import subprocess
import time
import unittest

import grpc
import harness
from google.protobuf import json_format
from harness import Case, client, connection, events, free_port, server, session, sh, tests


class Edges(Case):
    def setUp(self):
        super().setUp()
        self.port = free_port()
        self.process = self.agent()
        self.api = self.process.client()

    def measured(self, **fields):
        given = {"probe_count": 2, "probe_interval": "0.02s", "loss_timeout": "0.2s", **fields.pop("session", {})}
        sessions = [session("s", **given)]
        return client(connection("c1", "127.0.0.1", sessions, destination_port=self.port,
                                 test_interval="0.1s", **fields))

    def state(self):
        return self.api.connection("c1")["state"].removeprefix("CONNECTION_STATE_")

    def test_a_new_inactivity_timeout_holds_for_open_connections(self):
        self.api.apply({"server": server(port=self.port)})
        with harness.dial(self.port) as idle:
            idle.settimeout(20)
            self.assertEqual(len(idle.recv(64, socket.MSG_WAITALL)), 64, "the greeting")
            # Mode 1, without a key; then the server's start.
            idle.sendall((1).to_bytes(4, "big") + bytes(160))
            self.assertEqual(len(idle.recv(48, socket.MSG_WAITALL)), 48)
            time.sleep(1)
            self.api.apply({"server": server(port=self.port, server_inactivity_timeout="1s")})
            self.assertEqual(idle.recv(1), b"", "closed")
        ended = self.api.call("ServerService", "GetServerStatus")
        self.assertEqual(int(ended["connections_accepted"]), 1)

    def test_a_port_that_another_session_gives_up_is_waited_for(self):
        self.api.apply({"server": server(port=self.port)})
        fixed = {"session": {"source_port": free_port()}}
        self.api.apply({"client": self.measured(**fixed)}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: self.state() == "RUNNING")
        moved = self.measured(**fixed)["control_connections"][0]
        # The same port goes to another connection in the same commit.
        self.api.apply({"client": client({**moved, "name": "c2"})}, mode="APPLY_MODE_MERGE", delete=["client/c1"])
        self.wait_for(lambda: self.api.call("ClientService", "ListConnections")["connections"][0]["state"]
                      == "CONNECTION_STATE_RUNNING")
        lost = [e for e in events(self.api.records(), "CONNECTION_LOST") if e["cause"] == "FAILURE_CAUSE_LOCAL_ERROR"]
        self.assertEqual(lost, [])

    def test_a_longer_interval_closes_what_waits_for_it(self):
        """A server need not keep a session that is silent for so long."""
        self.api.apply({"server": server(port=self.port, refwait="2s", server_inactivity_timeout="3s")})
        self.api.apply({"client": self.measured()}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: len(self.api.records()) > 5)
        longer = self.measured()
        longer["control_connections"][0]["test_interval"] = "1200s"
        answer = self.api.apply({"client": longer}, mode="APPLY_MODE_MERGE")
        self.assertEqual([c["effect"] for c in answer["changes"]], ["CHANGE_EFFECT_LIVE"])
        parked = self.wait_for(lambda: (c := self.api.connection("c1")).get("next_attempt_time") and c)
        self.assertGreater(harness.seconds(parked["next_attempt_time"]) - time.time(), 1000)
        self.assertEqual((parked["state"], parked["server_address"]), ("CONNECTION_STATE_RUNNING", ""))
        time.sleep(4)
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        # Another pace moves the time of the next test, and nothing else.
        accepted = lambda: int(self.api.call("ServerService", "GetServerStatus")["connections_accepted"])  # noqa: E731
        due = lambda: harness.seconds(self.api.connection("c1")["next_attempt_time"])  # noqa: E731
        before, count = due(), accepted()
        longer["control_connections"][0].update(test_interval="2400s", retry_backoff_max="3600s")
        self.api.apply({"client": longer}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: abs(due() - before - 1200) < 5)
        time.sleep(1)
        self.assertEqual(accepted(), count)
        # Nor does it stay open where it came for a test that is put off again.
        soon, late = self.measured(), self.measured()
        late["control_connections"][0]["test_interval"] = "2400s"
        for paced in (soon, late):
            self.api.apply({"client": paced}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: not self.api.connection("c1")["server_address"] and due() - time.time() > 1000)
        time.sleep(4)
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        # And comes back when it is shorter again.
        self.api.apply({"client": self.measured()}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: self.api.connection("c1")["server_address"])

    def test_what_is_closed_between_tests_counts_them_and_ends_with_the_last(self):
        self.api.apply({"server": server(port=self.port)})
        paced = lambda interval, count: client(  # noqa: E731
            {**self.measured()["control_connections"][0], "test_interval": interval, "test_count": count})
        ended = lambda: len([r for r in self.api.records() if "test_result" in r])  # noqa: E731
        parked = lambda: (c := self.api.connection("c1"))["state"] == "CONNECTION_STATE_RUNNING" and (  # noqa: E731
            not c["server_address"])
        self.api.apply({"client": paced("3600s", 3)}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: ended() == 1 and parked())
        self.api.apply({"client": paced("0.5s", 3)}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: self.state() == "COMPLETED" and ended() >= 3)
        time.sleep(1)
        self.assertEqual(ended(), 3)
        # A connection that has already run the new test_count.
        self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["client/c1"])
        self.api.apply({"client": paced("3600s", 3)}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: ended() == 4 and parked())
        self.api.apply({"client": paced("3600s", 1)}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: self.state() == "COMPLETED")
        self.wait_for(lambda: len(events(self.api.records(), "CONNECTION_COMPLETED")) == 2)

    def test_sessions_change_while_the_connection_is_closed_between_tests(self):
        """Unchanged sessions keep their counts and the time of their next test."""
        self.api.apply({"server": server(port=self.port)})
        base = self.measured()["control_connections"][0]
        one = lambda name, **fields: session(name, probe_count=2, probe_interval="0.02s",  # noqa: E731
                                             loss_timeout="0.2s", **fields)
        paced = lambda *sessions: {"client": client(  # noqa: E731
            {**base, "test_interval": "3600s", "test_count": 2, "test_sessions": list(sessions)})}
        ended = lambda: sorted(r["session"] for r in self.api.records() if "test_result" in r)  # noqa: E731
        parked = lambda: (c := self.api.connection("c1"))["state"] == "CONNECTION_STATE_RUNNING" and (  # noqa: E731
            not c["server_address"]) and c
        due = lambda: harness.seconds(self.api.connection("c1")["next_attempt_time"])  # noqa: E731
        accepted = lambda: int(self.api.call("ServerService", "GetServerStatus")["connections_accepted"])  # noqa: E731
        self.api.apply(paced(one("s1"), one("s2")), mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: ended() == ["s1", "s2"] and parked())
        before = due()
        changed = paced(one("s1"), one("s2", dscp_code_points="ef"), one("s3"))
        for dry in (True, False):
            change = self.api.apply(changed, mode="APPLY_MODE_MERGE", validate_only=dry)["changes"][0]
            self.assertEqual((change["effect"], sorted(change["sessions"])), ("CHANGE_EFFECT_SESSION_RESTART", ["s2", "s3"]))
        self.wait_for(lambda: len(ended()) == 4 and parked())
        self.assertEqual(ended(), ["s1", "s2", "s2", "s3"])
        self.assertLess(abs(due() - before), 1, "s1 as before")
        self.wait_for(lambda: not self.api.connection("c1")["reconciling"])
        # One session is complete and one removed: there is no reason to connect.
        count = accepted()
        self.api.apply(paced(one("s1"), one("s2", dscp_code_points="ef")), mode="APPLY_MODE_MERGE")
        time.sleep(1)
        self.assertEqual((accepted(), ended()), (count, ["s1", "s2", "s2", "s3"]))
        self.assertLess(abs(due() - before), 1)
        self.assertFalse(self.api.connection("c1")["reconciling"])
        # The last session that had something to do goes.
        self.api.apply(paced(one("s2", dscp_code_points="ef")), mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: self.state() == "COMPLETED")

    def test_an_outage_with_nothing_left_to_test_is_over(self):
        """The last session that had something to do goes, or it need not do it any more."""
        base = {**self.measured()["control_connections"][0], "test_interval": "3600s"}
        one = lambda name, **fields: session(name, probe_count=2, probe_interval="0.02s",  # noqa: E731
                                             loss_timeout="0.2s", **fields)
        apply = lambda count, *sessions: self.api.apply({"client": client(  # noqa: E731
            {**base, "test_count": count, "test_sessions": list(sessions)})}, mode="APPLY_MODE_MERGE")
        ended = lambda: len([r for r in self.api.records() if "test_result" in r])  # noqa: E731
        parked = lambda: self.state() == "RUNNING" and not self.api.connection("c1")["server_address"]  # noqa: E731
        count = lambda kind: len(events(self.api.records(), kind))  # noqa: E731
        for rounds, left in enumerate(((2, one("s1", dscp_code_points="ef")), (1, one("s1"), one("s2"))), 1):
            with self.subTest(left=left):
                self.api.apply({"server": server(port=self.port)}, mode="APPLY_MODE_MERGE")
                before = ended()
                apply(2, one("s1"), one("s2"))
                self.wait_for(lambda: ended() == before + 2 and parked())
                if len(left) == 2:
                    # One of the two runs all of its tests.
                    apply(2, one("s1", dscp_code_points="ef"), one("s2"))
                    self.wait_for(lambda: ended() == before + 3 and parked())
                self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["server"])
                self.api.call("ClientService", "StartConnections", {"names": ["c1"]})
                self.wait_for(lambda: self.state() == "WAITING_RETRY")
                apply(*left)
                self.wait_for(lambda: self.state() == "COMPLETED")
                for kind in ("LOST", "ABANDONED", "COMPLETED"):
                    self.wait_for(lambda: count(f"CONNECTION_{kind}") == rounds, 5)
                self.assertEqual(self.api.connection("c1")["attempts_since_success"], "0")
                self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["client/c1"])

    def test_a_connection_with_nothing_but_inactive_sessions_is_not_made(self):
        self.api.apply({"server": server(port=self.port, server_inactivity_timeout="1s")})
        wanted = self.measured(session={"inactive": True})
        answer = self.api.apply({"client": wanted}, mode="APPLY_MODE_MERGE")
        self.assertIn("all its sessions are inactive", " ".join(answer["warnings"]))
        time.sleep(2.5)
        self.assertEqual(self.state(), "INACTIVE")
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        answer = self.api.apply({"client": self.measured()}, mode="APPLY_MODE_MERGE")
        self.assertEqual([c["effect"] for c in answer["changes"]], ["CHANGE_EFFECT_START"])
        self.wait_for(lambda: self.state() == "RUNNING")
        answer = self.api.apply({"client": wanted}, mode="APPLY_MODE_MERGE")
        self.assertEqual([c["effect"] for c in answer["changes"]], ["CHANGE_EFFECT_STOP"])
        self.wait_for(lambda: self.state() == "INACTIVE")

    def test_another_pause_is_the_one_behind_the_test_that_runs(self):
        self.api.apply({"server": server(port=self.port)})
        paced = lambda interval: self.api.apply({"client": client({  # noqa: E731
            **self.measured(session={"probe_count": 20, "probe_interval": "0.1s"})["control_connections"][0],
            "test_interval": interval})}, mode="APPLY_MODE_MERGE")
        paced("3600s")
        self.wait_for(lambda: self.api.call("ResultsService", "GetStatistics", {
            "scopes": ["STATISTICS_SCOPE_CURRENT_TEST"]})["statistics"])
        paced("0.3s")
        self.wait_for(lambda: len([r for r in self.api.records() if "test_result" in r]) >= 2, 10)

    def test_what_was_answered_is_there(self):
        """A connection can be asked for, stopped and started as soon as its commit is answered."""
        for number in range(30):
            name = f"c{number}"
            self.api.apply({"server": server(port=self.port), "client": client({
                **self.measured()["control_connections"][0], "name": name})})
            self.assertEqual(self.api.connection(name)["name"], name)
            self.api.call("ClientService", "StopConnections", {"names": [name]})

    def test_what_is_stopped_and_not_yet_is_reconciling(self):
        self.api.apply({"server": server(port=self.port)})
        self.api.apply({"client": self.measured(session={"loss_timeout": "5s"})}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: self.state() == "RUNNING")
        self.api.apply({"server": server(port=self.port)}, mode="APPLY_MODE_MERGE")
        self.assertFalse(self.api.connection("c1")["reconciling"])
        self.api.call("ClientService", "StopConnections", {"names": ["c1"]})
        stopped = lambda: (c := self.api.connection("c1"))["reconciling"] == (  # noqa: E731
            c["state"] != "CONNECTION_STATE_STOPPED") and c["state"] == "CONNECTION_STATE_STOPPED"
        self.wait_for(stopped)
        self.api.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: (c := self.api.connection("c1"))["state"] == "CONNECTION_STATE_RUNNING"
                      and not c["reconciling"])

    def test_too_many_measurements_leave_the_api_its_files(self):
        self.api.apply({"server": server(port=self.port, maximum_connections=1000,
                                         maximum_connections_per_client=1000, maximum_sessions=1000)})
        resource.prlimit(self.process.process.pid, resource.RLIMIT_NOFILE, (200, 200))
        one = lambda i: {**self.measured()["control_connections"][0], "name": f"c{i}"}  # noqa: E731
        answer = self.api.apply({"client": client(*[one(i) for i in range(150)])}, mode="APPLY_MODE_MERGE")
        self.assertRegex(" ".join(answer["warnings"]), "300 sockets .* 1[0-7][0-9] may be open")
        failed = lambda: [  # noqa: E731
            c for c in self.api.call("ClientService", "ListConnections")["connections"]
            if "LimitNOFILE" in c.get("last_failure", {}).get("detail", "")
        ]
        self.wait_for(failed)
        for _ in range(10):
            status = subprocess.run([harness.CTL, "--agent", f"127.0.0.1:{self.process.port}", "status"],
                                    capture_output=True, text=True, timeout=30)
            self.assertEqual(status.returncode, 0, status.stderr)
        self.api.apply({"client": client(one(0))}, mode="APPLY_MODE_MERGE",
                       delete=[f"client/c{i}" for i in range(1, 150)])
        self.wait_for(lambda: self.api.connection("c0")["state"] == "CONNECTION_STATE_RUNNING")
        self.assertEqual(events(self.api.records(), "STORE_DEGRADED"), [])

    def test_bursts_go_out_at_once_and_keep_the_rhythm(self):
        burst = {"probe_count": 23, "burst_size": 5, "probe_interval": "0.05s"}
        self.api.apply({"server": server(port=self.port), "client": self.measured(session=burst)})
        results = self.wait_for(lambda: len(r := [r for r in self.api.records() if "test_result" in r]) >= 3 and r)
        figures = results[1]["test_result"]["figures"]
        self.assertEqual((figures["probes_sent"], figures["probes_received"]), ("23", "23"))
        probes = [p for r in self.api.records() if "probe_results" in r for p in r["probe_results"]["probes"]]
        first, second = (int(r["test_result"]["figures"]["probes_sent"]) for r in results[:2])
        sent = [int(p["sent_unix_ns"]) for p in sorted(probes, key=lambda p: p["sequence"])[first:first + second]]
        bursts = [sent[i:i + 5] for i in range(0, 23, 5)]
        self.assertEqual([len(b) for b in bursts], [5, 5, 5, 5, 3])
        widest = max(b[-1] - b[0] for b in bursts)
        gaps = [after[0] - before[0] for before, after in zip(bursts, bursts[1:])]
        self.assertLess(widest, min(gaps) / 2, (widest, gaps))
        self.assertLess(abs(sum(gaps) / 4e6 - 50), 12, gaps)

    def test_watchers_of_health_hear_of_the_end(self):
        self.api.apply({"server": server(port=self.port)})
        self.api.apply({"client": self.measured()}, mode="APPLY_MODE_MERGE")
        check = lambda: self.api.call("Health", "Check", {"service": "client/c1"}, "grpc.health.v1")["status"]
        self.wait_for(lambda: self.state() == "RUNNING")
        time.sleep(1)
        self.assertEqual(check(), "SERVING")
        request, call = self.api.method("Health", "Watch", "grpc.health.v1")
        told = []
        stream = call(json_format.ParseDict({"service": "client/c1"}, request()))

        def watch():
            try:
                for answer in stream:
                    told.append(harness.to_dict(answer)["status"])
            except grpc.RpcError as error:
                told.append(error.code().name)
            told.append("END")

        self.api.follow(stream, watch)
        self.wait_for(lambda: "SERVING" in told)
        self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["client/c1"])
        self.wait_for(lambda: told[-1] == "SERVICE_UNKNOWN")
        with self.assertRaises(grpc.RpcError) as gone:
            check()
        self.assertEqual(gone.exception.code(), grpc.StatusCode.NOT_FOUND)
        # It comes again, and then the agent ends.
        self.api.apply({"client": self.measured()}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: told[-1] == "SERVING")
        self.assertTrue(all(before != after for before, after in zip(told, told[1:])), told)
        self.process.stop()
        self.wait_for(lambda: told[-1] == "END")
        self.assertEqual(told[-2], "UNAVAILABLE")

    def test_reconciling_is_told_to_watchers(self):
        far = self.agent("far")
        far.client().apply({"server": server(port=self.port)})
        slow = {"connect_timeout": "30s"}
        self.api.apply({"client": self.measured(**slow)})
        self.wait_for(lambda: self.state() == "RUNNING")
        request, call = self.api.method("ClientService", "WatchConnections")
        seen = []
        stream = call(request())

        def watch():
            try:
                for answer in stream:
                    seen.extend(c["reconciling"] for c in harness.to_dict(answer)["connections"])
            except grpc.RpcError:
                pass

        self.api.follow(stream, watch)
        self.wait_for(lambda: seen)
        # A server that answers nothing for a while: what is asked of it waits.
        far.process.send_signal(signal.SIGSTOP)
        try:
            self.api.apply({"client": self.measured(session={"data_size": 200}, **slow)})
            self.wait_for(lambda: True in seen)
        finally:
            far.process.send_signal(signal.SIGCONT)
        self.wait_for(lambda: seen[-1] is False)
        stream.cancel()

    def test_a_paused_agent_goes_on_and_says_so(self):
        """As in a frozen container: nothing stalled, no task is restarted."""
        pause = float(os.environ.get("TWAMP_PAUSE_SECONDS", "7"))
        self.api.apply({"server": server(port=self.port)})
        self.api.apply({"client": self.measured()}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: self.state() == "RUNNING")
        self.process.process.send_signal(signal.SIGSTOP)
        time.sleep(pause)
        self.process.process.send_signal(signal.SIGCONT)
        paused = self.wait_for(lambda: events(self.api.records(), "AGENT_PAUSED"))
        self.assertEqual(len(paused), 1)
        self.assertTrue(pause - 1.5 < float(paused[0]["duration"].rstrip("s")) < pause + 5, paused)
        time.sleep(20 if pause > 60 else 2)
        lost = [event["cause"] for event in events(self.api.records(), "CONNECTION_LOST")]
        self.assertNotIn("FAILURE_CAUSE_PANIC", lost)
        self.assertEqual(int(self.api.connection("c1")["task_restarts"]), 0)
        tests = [r for r in self.api.records() if "test_result" in r]
        self.wait_for(lambda: len([r for r in self.api.records() if "test_result" in r]) > len(tests))

    def test_a_server_that_was_paused_keeps_the_sessions_of_its_clients(self):
        """Its own pause is longer than REFWAIT, but the clients have sent probes all the time."""
        self.api.apply({"server": {**server(port=self.port), "refwait": "3s"}})
        other = self.agent("client").client()
        other.apply({"client": self.measured(session={"probe_count": 20, "probe_interval": "0.1s"})})
        self.wait_for(lambda: other.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")
        sessions = lambda: self.api.call("ServerService", "GetServerStatus")["sessions_open"]  # noqa: E731
        self.wait_for(lambda: tests(other.records(), "c1", "COMPLETE"))
        starts = lambda: other.connection("c1")["sessions"][0]["starts"]  # noqa: E731
        begun = starts()
        self.process.process.send_signal(signal.SIGSTOP)
        time.sleep(8)
        self.process.process.send_signal(signal.SIGCONT)
        self.wait_for(lambda: events(self.api.records(), "AGENT_PAUSED"))
        self.assertEqual(sessions(), 1)
        before = len(tests(other.records(), "c1"))
        self.wait_for(lambda: len(tests(other.records(), "c1")) > before + 1)
        self.assertEqual(tests(other.records(), "c1")[-1]["figures"]["probes_received"], "20")
        self.assertEqual(starts(), begun, events(other.records(), "CONNECTION_LOST"))

    def test_a_kernel_without_ipv6_listens_on_ipv4(self):
        harness.need("gcc")
        library = os.path.join(self.directory, "no_ipv6.so")
        sh("gcc", "-O2", "-shared", "-fPIC", "-o", library, os.path.join(harness.ROOT, "tests/e2e/no_ipv6.c"), "-ldl")
        agent = self.agent("v4", environment={"LD_PRELOAD": library})
        api = agent.client()
        # The default listens on all addresses.
        api.apply({"server": {**server(port=self.port), "listen": [{"port": self.port}]}, "client": self.measured()})
        self.wait_for(lambda: api.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")
        sockets = api.call("ServerService", "GetServerStatus")["sockets"]
        self.assertEqual([socket["error"] for socket in sockets], [""] * len(sockets))
        with open(agent.log_path) as log:
            self.assertEqual(log.read().count("kernel without IPv6"), 1)

    def test_what_is_raised_is_cleared_where_nobody_watches_any_more(self):
        self.api.apply({"server": server(port=self.port)})
        limits = {"session": {"thresholds": {"max_rtt": "0.000000001s"}}}
        self.api.apply({"client": self.measured(**limits)}, mode="APPLY_MODE_MERGE")
        self.wait_for(lambda: events(self.api.records(), "THRESHOLD_RAISED"))
        self.assertEqual(events(self.api.records(), "THRESHOLD_CLEARED"), [])
        self.api.apply({"client": self.measured(inactive=True, **limits)}, mode="APPLY_MODE_MERGE")
        cleared = self.wait_for(lambda: events(self.api.records(), "THRESHOLD_CLEARED"))
        raised = events(self.api.records(), "THRESHOLD_RAISED")
        self.assertEqual(len(raised), len(cleared))
        self.assertEqual(cleared[-1]["threshold"], "THRESHOLD_MAX_RTT")

    def test_a_client_whose_agent_goes_away_says_so_by_its_code(self):
        stream = subprocess.Popen(
            [harness.CTL, "--agent", f"127.0.0.1:{self.process.port}", "stream", "--earliest"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        self.assertIn("# agent", stream.stdout.readline())
        # It may arrive before or after the end of the stored records.
        self.assertIn("AGENT_STARTED", stream.stdout.readline() + stream.stdout.readline())
        self.process.kill()
        _, told = stream.communicate(timeout=20)
        self.assertEqual(stream.returncode, 69, told)
        gone = subprocess.run([harness.CTL, "--agent", f"127.0.0.1:{self.process.port}", "status"],
                              capture_output=True, text=True)
        self.assertEqual(gone.returncode, 69, gone.stderr)

    def test_an_agent_that_does_not_answer_is_not_waited_for(self):
        with socket.create_server(("127.0.0.1", 0)) as mute:
            for scheme, command in (("", "status"), ("", "stream"), ("https://", "status")):
                address = f"{scheme}127.0.0.1:{mute.getsockname()[1]}"
                silent = subprocess.run([harness.CTL, "--agent", address, command],
                                        capture_output=True, text=True, timeout=60)
                self.assertEqual(silent.returncode, 69, silent.stderr)
                self.assertTrue(silent.stderr)


class Queue(harness.TwoHosts):
    """Probes wait in a queue of their own host: their timestamps arrive much later."""

    def setUp(self):
        super().setUp()
        harness.need("tc", "nft")
        sh("ip", "netns", "exec", self.a, "tc", "qdisc", "add", "dev", "veth0", "root",
           "tbf", "rate", "10mbit", "burst", "1600", "limit", "200kb")
        far = self.agent("b", self.b)
        far.client().apply({"server": server()})
        self.api = self.agent("a", self.a).client()

    def probes(self):
        return [p for r in self.api.records() if "probe_results" in r for p in r["probe_results"]["probes"]]

    def measure(self, **fields):
        given = {"loss_timeout": "0.5s", "data_size": 1400, **fields}
        self.api.apply({"client": client(connection("c1", self.B, [session("s", **given)], test_count=1))})
        result = self.wait_for(lambda: [r for r in self.api.records() if "test_result" in r], 30)[0]
        return result["test_result"]["figures"]

    def test_every_probe_of_a_burst_has_its_stamp(self):
        figures = self.measure(probe_count=60, burst_size=6, probe_interval="0.05s")
        self.assertEqual((figures["probes_received"], figures["kernel_transmit_timestamps"]), ("60", "60"))
        self.assertEqual((figures["rtt"]["samples"], figures.get("samples_other_timestamp_source", "0")), ("60", "0"))

    def test_a_stamp_behind_a_refused_probe_is_of_no_other(self):
        # Now and then one is refused, while others wait for tenths of a second.
        sh("ip", "netns", "exec", self.a, "nft", """
            add table inet t
            add chain inet t out { type filter hook output priority 0; }
            add rule inet t out udp length > 1000 numgen inc mod 100 == 99 drop""")
        figures = self.measure(probe_count=2000, probe_interval="0.001s")
        self.assertGreater(int(figures["probes_not_sent"]), 10)
        stamped = [p for p in self.probes() if "rtt_ns" in p and p["transmit_timestamp_source"] == "TIMESTAMP_SOURCE_KERNEL"]
        waited = [p for p in self.probes() if "rtt_ns" in p and p["transmit_timestamp_source"] == "TIMESTAMP_SOURCE_USER"]
        longest = lambda probes: max((int(p["rtt_ns"]) for p in probes), default=0) / 1e6  # noqa: E731
        print(f"\n{len(stamped)} stamped, rtt at most {longest(stamped):.2f} ms; "
              f"{len(waited)} not, {longest(waited):.2f} ms")
        self.assertGreater(len(stamped) + len(waited), 100)
        # Packets stamped by the program waited in the queue; those stamped by the kernel had left
        # it.
        self.assertGreater(longest(waited), 50)
        self.assertLess(longest(stamped), longest(waited) / 3)


class Stamps(Case):
    def test_an_interface_that_cannot_stamp_says_so_and_the_kernel_stamps(self):
        agent = self.agent(top='hardware_timestamp_interfaces = ["lo", "gone0"]\n')
        api = agent.client()
        port = free_port()
        api.apply({"server": server(port=port), "client": client(connection(
            "c", "127.0.0.1", [session("s", probe_count=3, probe_interval="0.01s", loss_timeout="0.1s")],
            destination_port=port, test_count=1))})
        result = self.wait_for(lambda: [r for r in api.records() if "test_result" in r])[0]["test_result"]
        self.assertEqual(result["figures"]["receive_timestamp_source"], "TIMESTAMP_SOURCE_KERNEL")
        told = {s["interface"]: s["error"] for s in api.call("AgentService", "GetAgent")["hardware_clocks"]}
        self.assertIn("no PTP hardware clock", told["lo"])
        self.assertIn("no such interface", told["gone0"])
        status = subprocess.run([harness.CTL, "--agent", f"127.0.0.1:{agent.port}", "status"],
                                capture_output=True, text=True).stdout
        self.assertIn("stamps    lo by the kernel, not in hardware: no PTP hardware clock", status)


if __name__ == "__main__":
    unittest.main()
