"""The main job between two hosts: a controller, a collector, an outage, a killed agent."""

import time

import harness
from harness import client, connection, events, probes, seconds, server, session, tests


class MainJob(harness.TwoHosts):
    def setUp(self):
        super().setUp()
        self.agent_a = self.agent("a", self.a)
        self.agent_b = self.agent("b", self.b)

    def configure(self, **fields):
        b = self.agent_b.client()
        b.apply({"server": server()})
        a = self.agent_a.client()
        answer = a.apply({"client": client(connection("c1", self.B, **fields))})
        self.assertEqual(answer["revision"], "1")
        self.assertEqual(
            answer["changes"],
            [{"path": "client/c1", "kind": "CHANGE_KIND_ADDED",
              # A connection with a manual start is idle.
              "effect": "CHANGE_EFFECT_LIVE" if "test_start" in fields else "CHANGE_EFFECT_START",
              "sessions": [], "fields": [], "details_omitted": False}],
        )
        return a, b

    def test_outage_kill_and_history(self):
        started = time.time()
        a, _ = self.configure(
            test_interval="1s", tcp_keepidle="1s", tcp_keepintvl="1s", tcp_keepcnt=2,
            labels={"site": "north"},
        )
        collector = Collector(self.agent_a.client())
        self.wait_for(lambda: len(tests(collector.records, "c1", "COMPLETE")) >= 2)
        first = events(a.records(), "CONFIGURATION_COMMITTED")[0]
        probe = min(int(p["sent_unix_ns"]) for p in probes(a.records())) / 1e9
        self.assertLess(probe - seconds(first["time"]), 0.5, "measures at once after the commit")

        # Ten seconds without a link.
        down = time.time()
        self.link(self.b, "down")
        status = self.wait_for(
            lambda: (c := a.connection("c1"))["state"] != "CONNECTION_STATE_RUNNING" and c
        )
        self.assertIn(
            status["last_loss"]["cause"],
            ("FAILURE_CAUSE_KEEPALIVE_TIMEOUT", "FAILURE_CAUSE_CONNECT_TIMEOUT", "FAILURE_CAUSE_NO_ROUTE"),
        )
        time.sleep(max(0, down + 10 - time.time()))
        status = a.connection("c1")
        self.assertGreaterEqual(int(status["attempts_since_success"]), 4)
        self.assertEqual(status["outages"], "1")
        up = time.time()
        self.link(self.b, "up")
        self.wait_for(lambda: events(collector.records, "CONNECTION_RESTORED"))
        self.wait_for(
            lambda: [p for p in probes(collector.records)
                     if int(p["sent_unix_ns"]) / 1e9 > up and p["status"] == "PROBE_STATUS_RECEIVED"]
        )
        records = collector.records
        lost = events(records, "CONNECTION_LOST")
        restored = events(records, "CONNECTION_RESTORED")
        self.assertEqual((len(lost), len(restored)), (1, 1), "an outage is one pair of events")
        self.assertEqual(lost[0]["cause"], "FAILURE_CAUSE_KEEPALIVE_TIMEOUT")
        # Keepalive finds it after 1 s + 2 x 1 s, or the user timeout after the same.
        self.assertLess(seconds(lost[0]["time"]) - down, 6)
        # One attempt for each interval of the outage.
        attempts = int(restored[0]["attempts"])
        length = seconds(restored[0]["time"]) - seconds(lost[0]["time"])
        self.assertLessEqual(abs(attempts - length), 2, f"{attempts} attempts in {length:.1f} s")
        self.assertLess(
            seconds(restored[0]["time"]) - up, 3.5,
            "the attempt that is under way, the next one, and the resolution of the address",
        )
        # Tests that could not be run say so, and how often a connection was tried for.
        unreachable = tests(records, "c1", "UNREACHABLE")
        self.assertGreaterEqual(len(unreachable), 2)
        for test in unreachable:
            self.assertEqual(test["figures"]["probes_not_sent"], "5")
            self.assertEqual(test["figures"]["probes_sent"], "0")
            self.assertNotEqual(test["cause"], "FAILURE_CAUSE_UNSPECIFIED")
        tried = [int(test["attempts"]) for test in unreachable]
        self.assertEqual(tried, sorted(tried))
        self.assertGreater(tried[-1], 2)
        self.assertTrue(all(r["labels"] == {"site": "north"} for r in records if r["connection"]))

        # SIGKILL; the agent recovers without a controller.
        self.wait_for(lambda: len(tests(collector.records, "c1", "COMPLETE")) >= 4)
        before = a.call("ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]})
        seen = {r["cursor"]: r for r in collector.records}
        agent_id = a.call("AgentService", "GetAgent")["agent_id"]
        collector.stop()
        self.agent_a.kill()
        killed = time.time()
        self.agent_a.start()
        a = self.agent_a.client()
        self.assertEqual(a.call("AgentService", "GetAgent")["agent_id"], agent_id)
        self.wait_for(
            lambda: [t for t in tests(a.records(), "c1", "COMPLETE") if seconds(t["start_time"]) > killed]
        )
        records = a.records()
        started_again = events(records, "AGENT_STARTED")[-1]
        first_probe = min(
            int(p["sent_unix_ns"]) / 1e9 for p in probes(records) if int(p["sent_unix_ns"]) / 1e9 > killed
        )
        self.assertLess(first_probe - seconds(started_again["time"]), 2, "measures again by itself")
        cursors = [int(r["cursor"]) for r in records]
        self.assertEqual(cursors, list(range(1, len(cursors) + 1)), "none twice, none missing")
        stored = {r["cursor"]: r for r in records}
        for cursor, record in seen.items():
            self.assertEqual(stored[cursor], record, "what a collector saw is history")
        after = a.call("ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]})
        was, now = before["statistics"][0], after["statistics"][0]
        self.assertEqual(was["start_time"], now["start_time"])
        self.assertGreater(int(now["tests_complete"]), int(was["tests_complete"]))
        # The statistics are those of the log, no more and no less.
        self.assertEqual(int(now["tests_complete"]), len(tests(a.records(), "c1", "COMPLETE")))
        self.assertEqual(int(now["tests_unreachable"]), len(tests(a.records(), "c1", "UNREACHABLE")))
        self.assertGreater(seconds(was["start_time"]), started)

    def test_a_consumer_that_is_away_for_30_seconds(self):
        a, _ = self.configure(test_interval="0.2s")
        self.wait_for(lambda: tests(a.records()))

        def read(name, acknowledge, until):
            """Reads as a consumer up to a cursor; acknowledges each batch, or nothing."""
            mine = self.agent_a.client()
            got = []
            stream = mine.stream({"consumer": name})
            for message in stream:
                batch = harness.to_dict(message).get("batch", {"records": []})
                got += batch["records"]
                if batch["records"] and acknowledge:
                    mine.call("ResultsService", "AckRecords",
                              {"consumer": name, "cursor": batch["records"][-1]["cursor"]})
                if got and int(got[-1]["cursor"]) >= until():
                    break
            stream.cancel()
            mine.close()
            return [int(r["cursor"]) for r in got]

        newest = lambda: int(a.call("AgentService", "GetAgent")["store"]["latest_cursor"])
        mark = newest()
        tidy = read("tidy", True, lambda: mark)
        forgetful = read("forgetful", False, lambda: mark)
        time.sleep(30)
        mark = newest()
        tidy += read("tidy", True, lambda: mark)
        self.assertEqual(tidy, list(range(1, tidy[-1] + 1)), "each record exactly once")
        again = read("forgetful", False, lambda: mark)
        self.assertEqual(again, list(range(1, again[-1] + 1)), "again from the last acknowledgement")
        self.assertGreater(len(again), len(forgetful))
        consumers = {c["name"]: c for c in a.call("ResultsService", "ListConsumers")["consumers"]}
        self.assertEqual(int(consumers["tidy"]["cursor"]), tidy[-1])
        self.assertNotIn("forgetful", consumers)
        a.call("ResultsService", "DeleteConsumer", {"name": "tidy"})
        self.assertEqual(a.call("ResultsService", "ListConsumers")["consumers"], [])

    def test_server_gone_and_back(self):
        """RST at once, attempts at each interval while the port is closed, and back."""
        a, _ = self.configure(test_interval="0.5s")
        self.wait_for(lambda: tests(a.records(), "c1", "COMPLETE"))
        self.agent_b.kill()
        lost = self.wait_for(lambda: events(a.records(), "CONNECTION_LOST"))[0]
        self.assertIn(lost["cause"], ("FAILURE_CAUSE_RESET", "FAILURE_CAUSE_CLOSED_BY_SERVER"))
        self.wait_for(lambda: int(a.connection("c1")["attempts_since_success"]) >= 4)
        status = a.connection("c1")
        self.assertEqual(status["last_loss"]["cause"], lost["cause"], "how the outage began")
        self.assertEqual(status["last_failure"]["cause"], "FAILURE_CAUSE_REFUSED")
        interrupted = tests(a.records(), "c1", "INTERRUPTED")
        self.assertLessEqual(len(interrupted), 1)
        self.agent_b.start()
        self.wait_for(lambda: events(a.records(), "CONNECTION_RESTORED"))
        restored = events(a.records(), "CONNECTION_RESTORED")[0]
        self.assertEqual(restored["cause"], lost["cause"])
        length = seconds(restored["time"]) - seconds(lost["time"])
        self.assertLessEqual(abs(int(restored["attempts"]) - length / 0.5), 2)
        self.wait_for(lambda: tests(a.records(), "c1", "COMPLETE")[-1]["cursor"] > restored["cursor"])

    def test_by_hand_and_live_changes(self):
        a, b = self.configure(test_interval="5s", sessions=[session("s1", probe_count=2)])
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")
        a.call("ClientService", "StopConnections", {"names": ["c1"]})
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_STOPPED")
        self.wait_for(lambda: not b.call("ServerService", "ListServerConnections")["connections"])
        a.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_RUNNING", 2)
        # Changes that are not visible on the wire need no reconnect.
        before = b.call("ServerService", "ListServerConnections")["connections"]
        changed = connection("c1", self.B, test_interval="0.3s",
                             sessions=[session("s1", probe_count=3)], labels={"new": "label"})
        answer = a.apply({"client": client(changed)})
        self.assertEqual(answer["changes"][0]["effect"], "CHANGE_EFFECT_LIVE")
        self.wait_for(
            lambda: [t for t in tests(a.records()) if t["figures"]["probes_scheduled"] == "3"]
        )
        self.assertEqual(b.call("ServerService", "ListServerConnections")["connections"], before)
        # Another DSCP needs a word.
        changed["test_sessions"][0]["dscp_code_points"] = "ef"
        answer = a.apply({"client": client(changed)})
        self.assertEqual(answer["changes"][0]["effect"], "CHANGE_EFFECT_SESSION_RESTART")
        self.wait_for(
            lambda: b.call("ServerService", "ListServerSessions")["sessions"][-1:] and
            b.call("ServerService", "ListServerSessions")["sessions"][-1]["dscp"] == 46
        )
        # A session becomes inactive and active again.
        changed["inactive"] = True
        a.apply({"client": client(changed)})
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_INACTIVE")
        changed["inactive"] = False
        a.apply({"client": client(changed)})
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_RUNNING", 2)

    def test_the_server_moves_and_changes_its_ports(self):
        a, b = self.agent_a.client(), self.agent_b.client()
        several = client(*(
            connection(f"c{i}", self.B6 if i % 2 else self.B, [session("s1"), session("s2")], test_interval="0.2s")
            for i in range(4)
        ))
        states = lambda: {c["state"] for c in a.call("ClientService", "ListConnections")["connections"]}
        ports = lambda: {int(s["reflector_address"].rsplit(":", 1)[1])
                         for c in a.call("ClientService", "ListConnections")["connections"] for s in c["sessions"]}
        for mode, fields, expected in (
            ("SHARED", {}, {862}), ("SHARED", {"shared_port": 5000}, {5000}),
            ("RANGE", {"range_min": 7000, "range_max": 7010}, set(range(7000, 7011))),
            ("AUTO", {}, set(range(1024, 65536))),
        ):
            b.apply({"server": server(test_port={"mode": f"TEST_PORT_MODE_{mode}", **fields})})
            a.apply({"client": several})
            self.wait_for(lambda: states() == {"CONNECTION_STATE_RUNNING"})
            self.assertLessEqual(ports(), expected, mode)
            count = len(tests(a.records(), outcome="COMPLETE"))
            self.wait_for(lambda: len(tests(a.records(), outcome="COMPLETE")) >= count + 8)
            a.apply({})
        complete = tests(a.records(), outcome="COMPLETE")
        self.assertEqual(sum(int(t["figures"]["probes_lost"]) for t in complete), 0)
        self.assertEqual({t["figures"]["kernel_receive_timestamps"] for t in complete}, {"5"})
        # Removed sessions have no statistics, even when their last test ends later.
        time.sleep(1)
        self.assertEqual(a.call("ResultsService", "GetStatistics")["statistics"], [])
        # From all addresses to one, on the same port: its own socket is not in its way.
        a.apply({"client": client(connection("c1", self.B, test_interval="0.2s"))})
        self.wait_for(lambda: states() == {"CONNECTION_STATE_RUNNING"})
        moved = server()
        moved["listen"] = [{"address": self.B, "port": 862}]
        self.assertEqual(b.apply({"server": moved})["changes"][0]["effect"], "CHANGE_EFFECT_LISTEN")
        sockets = lambda: b.call("ServerService", "GetServerStatus")["sockets"]
        self.wait_for(lambda: len(sockets()) == 2 and not any(s["error"] for s in sockets()))
        self.wait_for(lambda: events(a.records(), "CONNECTION_RESTORED")[-1:])
        self.wait_for(lambda: states() == {"CONNECTION_STATE_RUNNING"})

    def test_manual_start(self):
        a, _ = self.configure(test_interval="0.2s", test_start="TEST_START_MANUAL")
        time.sleep(0.5)
        self.assertEqual(a.connection("c1")["state"], "CONNECTION_STATE_STOPPED")
        a.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: tests(a.records(), "c1", "COMPLETE"))
        # A change does not stop it, a start of the agent does not start it.
        a.apply({"client": client(connection("c1", self.B, test_interval="0.3s", test_start="TEST_START_MANUAL"))})
        time.sleep(0.3)
        self.assertEqual(a.connection("c1")["state"], "CONNECTION_STATE_RUNNING")
        self.agent_a.stop()
        self.agent_a.start()
        a = self.agent_a.client()
        time.sleep(0.5)
        self.assertEqual(a.connection("c1")["state"], "CONNECTION_STATE_STOPPED")

    def test_test_count_completes(self):
        a, b = self.configure(test_interval="0.2s", test_count=2)
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_COMPLETED")
        self.wait_for(lambda: events(a.records(), "CONNECTION_COMPLETED"))
        self.assertEqual(len(tests(a.records(), "c1", "COMPLETE")), 2)
        self.wait_for(lambda: not b.call("ServerService", "ListServerConnections")["connections"])
        a.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: len(tests(a.records(), "c1", "COMPLETE")) == 4)
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_COMPLETED")

    def test_a_break_with_test_count_is_final(self):
        a, _ = self.configure(
            test_interval="0.2s", test_count=1000, sessions=[session("s1", probe_count=500)]
        )
        # The break is within a test: a connection is RUNNING before its first test.
        current = {"scopes": ["STATISTICS_SCOPE_CURRENT_TEST"]}
        self.wait_for(lambda: [s for s in a.call("ResultsService", "GetStatistics", current)["statistics"]
                               if int(s["figures"]["probes_sent"]) > 0])
        self.agent_b.kill()
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_COMPLETED")
        self.wait_for(lambda: tests(a.records(), "c1", "INTERRUPTED"))
        self.agent_b.start()
        time.sleep(2)
        self.assertEqual(a.connection("c1")["state"], "CONNECTION_STATE_COMPLETED")
        a.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")

    def test_max_connection_duration_is_an_ordinary_reconnect(self):
        self.agent_b.client().apply({"server": server(max_connection_duration="3s")})
        a = self.agent_a.client()
        a.apply({"client": client(connection("c1", self.B, test_interval="0.5s"))})
        restored = self.wait_for(lambda: events(a.records(), "CONNECTION_RESTORED"))[0]
        self.assertEqual(restored["cause"], "FAILURE_CAUSE_CLOSED_BY_SERVER")
        self.assertEqual(restored["attempts"], "1")
        self.assertLess(float(restored["duration"].rstrip("s")), 1.0)


class Collector:
    """Streams from the earliest record on, in a thread of its own."""

    def __init__(self, client):
        self.client = client
        self.records = []
        self.messages = []
        self.call = client.stream({"earliest": True, "heartbeat_interval": "1s"})
        self.thread = client.follow(self.call, self.run)

    def run(self):
        try:
            for message in self.call:
                message = harness.to_dict(message)
                self.messages.append(message)
                self.records += message.get("batch", {}).get("records", [])
        except Exception:  # cancelled, or the agent was killed
            pass

    def stop(self):
        self.call.cancel()
        self.thread.join(10)
