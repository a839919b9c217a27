"""Every trigger and cause of the supervision: what is lost, why, when it is tried again, and that it
comes back by itself. Times are those of the agent: when the next attempt is due is told with each
state, so a loaded machine makes no difference."""

import os
import subprocess
import time
import unittest

import grpc
from google.protobuf import json_format

from harness import (
    TwoHosts, client, connection, events, need, seconds, server, session, sh, tests, to_dict,
)

INTERVAL = 0.5
KEYS = [{"name": "k", "keys": [{"key_id": "k", "secret": "secret"}]}]
KEYED = {"authentication_mode": "AUTHENTICATION_MODE_ENCRYPTED", "key_id": "k", "secret": "secret"}


def health(api, service):
    try:
        return api.call("Health", "Check", {"service": service}, "grpc.health.v1")["status"]
    except grpc.RpcError as error:
        return error.code().name


class Watcher:
    """Follows WatchConnections of one connection."""

    def __init__(self, api, *names):
        request, call = api.method("ClientService", "WatchConnections")
        self.seen, self.removed = [], []
        self.stream = call(json_format.ParseDict({"names": list(names)}, request()))
        self.thread = api.follow(self.stream, self.follow)

    def follow(self):
        try:
            for message in self.stream:
                message = to_dict(message)
                self.seen += message["connections"]
                self.removed += message["removed_names"]
        except grpc.RpcError:
            pass

    def due(self):
        """When attempts were due, by the agent's clock."""
        return sorted({seconds(c["next_attempt_time"]) for c in self.seen if c.get("next_attempt_time")})

    def states(self):
        return [c["state"].removeprefix("CONNECTION_STATE_") for c in self.seen]


class Table(TwoHosts):
    """One row of the table: the way of losing the connection, the reported cause, and the repair."""

    def setUp(self):
        super().setUp()
        need("nft", "ss")
        self.netns_files = f"/etc/netns/{self.a}"
        os.makedirs(self.netns_files, exist_ok=True)
        self.stack.callback(sh, "rm", "-rf", self.netns_files)
        self.agent_a, self.agent_b = self.agent("a", self.a), self.agent("b", self.b)
        self.api, self.peer = self.agent_a.client(), self.agent_b.client()

    def wanted(self, target=None, **fields):
        fields = {"test_interval": f"{INTERVAL}s", "tcp_keepidle": "1s", "tcp_keepintvl": "1s",
                  "tcp_keepcnt": 2, **fields}
        sessions = [session("s1", probe_count=2, probe_interval="0.05s", loss_timeout="0.2s")]
        return {"client": client(connection("c1", target or self.B, sessions, **fields))}

    def serve(self, **fields):
        self.peer.apply({"server": server(**fields)})

    def up(self, **fields):
        self.serve()
        self.api.apply(self.wanted(**fields))
        self.wait_for(lambda: self.state() == "RUNNING")
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))

    def state(self):
        return self.api.connection("c1")["state"].removeprefix("CONNECTION_STATE_")

    def nft(self, *rules):
        for command in ("add table inet x",
                        "add chain inet x input { type filter hook input priority 0; }",
                        "add chain inet x output { type filter hook output priority 0; }", *rules):
            self.inside(self.b, "nft", command)

    def drop_table(self):
        self.inside(self.b, "nft", "delete table inet x", check=False)

    def outage(self, causes, mend, least=3, running=True, besides=0):
        """An outage goes on: its cause, its rhythm, its records; then it is mended."""
        watcher = Watcher(self.api, "c1")
        lost = lambda: events(self.api.records(), "CONNECTION_LOST")  # noqa: E731
        self.wait_for(lost, 30)
        status = lambda: self.api.connection("c1")  # noqa: E731
        self.wait_for(lambda: int(status()["attempts_since_success"]) >= least, 30)
        told = status()
        self.assertIn(told["last_loss"]["cause"].removeprefix("FAILURE_CAUSE_"), causes, told["last_loss"])
        self.assertIn(told["state"].removeprefix("CONNECTION_STATE_"),
                      ("WAITING_RETRY", "CONNECTING", "NEGOTIATING", "RESOLVING"))
        self.assertEqual((told["outages"], told["server_address"] if told["state"].endswith("RETRY") else ""), ("1", ""))
        self.wait_for(lambda: health(self.api, "client/c1") == "NOT_SERVING", 5)
        begun = seconds(lost()[0]["time"])
        self.wait_for(lambda: len([at for at in watcher.due() if at > begun]) >= 2)
        mend()
        self.wait_for(lambda: events(self.api.records(), "CONNECTION_RESTORED"), 30)
        self.wait_for(lambda: self.state() == "RUNNING")
        count = len(tests(self.api.records(), "c1", "COMPLETE"))
        self.wait_for(lambda: len(tests(self.api.records(), "c1", "COMPLETE")) > count)
        records = self.api.records()
        self.assertEqual(len(events(records, "CONNECTION_LOST")), 1, "one event pair for an outage")
        restored = events(records, "CONNECTION_RESTORED")
        self.assertEqual(len(restored), 1)
        self.assertEqual(restored[0]["cause"], told["last_loss"]["cause"])
        self.assertLess(abs(seconds(restored[0]["start_time"]) - begun), 0.05)
        length = seconds(restored[0]["time"]) - begun
        self.assertLess(abs(float(restored[0]["duration"].rstrip("s")) - length), 0.1)
        outage = float(self.api.connection("c1")["outage_duration"].rstrip("s"))
        self.assertLess(abs(outage - length), 0.1)
        # The rhythm: each attempt due at a whole number of intervals after the loss.
        due = [at for at in watcher.due() if at > begun]
        # A first attempt that fails is an attempt itself: beats count from when it began.
        phase = due[0]
        for at in due:
            beats = (at - phase) / INTERVAL
            self.assertLess(abs(beats - round(beats)), 0.02, [d - begun for d in due])
        if running:
            beats = (phase - seconds(told["last_loss"]["time"])) / INTERVAL
            self.assertLess(abs(beats - round(beats)), 0.02, (phase, told["last_loss"]))
        self.assertLessEqual(int(restored[0]["attempts"]), length / INTERVAL + 3 + besides)
        # Unreachable tests are reported and do not count as loss.
        gone = tests(records, "c1", "UNREACHABLE")
        self.assertTrue(gone)
        self.assertEqual(sum(int(t["figures"]["probes_sent"]) for t in gone), 0)
        statistics = self.api.call("ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]})
        self.assertGreaterEqual(int(statistics["statistics"][0]["tests_unreachable"]), len(gone))
        watcher.stream.cancel()
        return told, restored[0]

    def test_link_down(self):
        self.up()
        self.link(self.b, "down")
        self.outage({"KEEPALIVE_TIMEOUT"}, lambda: self.link(self.b, "up"))

    def test_process_killed(self):
        self.up()
        self.agent_b.kill()
        self.outage({"CLOSED_BY_SERVER", "RESET"}, self.agent_b.start)

    def test_reset(self):
        self.up()
        # The keepalive probe is the next segment; it and every SYN is answered so.
        self.nft("add rule inet x input tcp dport 862 reject with tcp reset")
        told, _ = self.outage({"RESET", "REFUSED"}, self.drop_table)
        self.assertEqual(told["last_loss"]["cause"], "FAILURE_CAUSE_RESET")

    def test_silent_drop(self):
        """The peer loses power: nothing is refused, nothing answered. Both ends find out."""
        self.serve(tcp_keepidle="1s", tcp_keepintvl="1s", tcp_keepcnt=2, maximum_connections=1)
        self.api.apply(self.wanted())
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
        begun = time.monotonic()
        self.nft("add rule inet x input ip saddr 10.99.0.1 drop", "add rule inet x output ip daddr 10.99.0.1 drop")
        self.wait_for(lambda: self.state() != "RUNNING", 30)
        self.assertLess(time.monotonic() - begun, 3 + 5, "keepidle + keepintvl x keepcnt")
        gone = lambda: not self.peer.call("ServerService", "ListServerConnections")["connections"]  # noqa: E731
        self.wait_for(gone, 10)
        self.assertLess(time.monotonic() - begun, 3 + 8)
        ended = self.peer.call("ServerService", "GetServerStatus")["connections_ended"]
        self.assertIn({"cause": "END_CAUSE_KEEPALIVE_TIMEOUT", "count": "1"}, ended)
        # The slot is free: the only one that there is.
        self.outage({"KEEPALIVE_TIMEOUT"}, self.drop_table)

    def test_silent_while_data_is_under_way(self):
        """Keepalive is silent while sent data is unacknowledged; the user timeout is not."""
        self.up(extensions={"individual_session_control": True})
        self.nft("add rule inet x input ip saddr 10.99.0.1 drop", "add rule inet x output ip daddr 10.99.0.1 drop")
        begun = time.monotonic()
        changed = self.wanted()
        changed["client"]["control_connections"][0]["test_sessions"][0]["dscp_code_points"] = "ef"
        self.api.apply(changed)
        self.wait_for(lambda: self.state() != "RUNNING", 30)
        self.assertLess(time.monotonic() - begun, 3 + 5)
        self.outage({"KEEPALIVE_TIMEOUT", "RESPONSE_TIMEOUT"}, self.drop_table)

    def test_refused(self):
        self.api.apply(self.wanted())
        self.outage({"REFUSED"}, self.serve, running=False)

    def test_connect_timeout(self):
        self.nft("add rule inet x input tcp dport 862 drop")
        self.serve()
        self.api.apply(self.wanted(connect_timeout="0.3s"))
        self.outage({"CONNECT_TIMEOUT"}, self.drop_table, running=False)

    def test_no_route(self):
        self.serve()
        sh("ip", "-n", self.a, "route", "add", "unreachable", "10.98.0.0/24")
        sh("ip", "-n", self.b, "address", "add", "10.98.0.2/32", "dev", "lo")
        self.api.apply(self.wanted("10.98.0.2"))

        def mend():
            sh("ip", "-n", self.a, "route", "delete", "unreachable", "10.98.0.0/24")
            sh("ip", "-n", self.a, "route", "add", "10.98.0.0/24", "via", self.B)

        # A route that comes is a reason to try at once, besides the rhythm.
        self.outage({"NO_ROUTE"}, mend, running=False, besides=2)

    def test_dns(self):
        with open(os.path.join(self.netns_files, "hosts"), "w") as file:
            file.write("127.0.0.1 localhost\n")
        with open(os.path.join(self.netns_files, "resolv.conf"), "w") as file:
            file.write(f"nameserver {self.B}\noptions timeout:1 attempts:1\n")
        self.agent_a.stop()
        self.agent_a.start()
        self.api = self.agent_a.client()
        self.serve()
        self.api.apply(self.wanted("server.example.net"))

        def mend():
            with open(os.path.join(self.netns_files, "hosts"), "w") as file:
                file.write(f"127.0.0.1 localhost\n{self.B} server.example.net\n")

        self.outage({"DNS"}, mend, running=False)

    def test_wrong_key(self):
        self.serve(key_chains=KEYS, authentication_modes=[KEYED["authentication_mode"]])
        wrong = self.wanted(**{**KEYED, "secret": "another"})
        self.api.apply(wrong)
        right = [{"name": "k", "keys": [*KEYS[0]["keys"], {"key_id": "k", "secret": "another"}]}]
        told, _ = self.outage(
            {"BAD_KEY"}, lambda: self.serve(key_chains=right, authentication_modes=[KEYED["authentication_mode"]]),
            running=False)
        self.assertIn("check key_id and secret", told["last_failure"]["detail"])

    def test_no_common_mode(self):
        self.serve()
        self.api.apply(self.wanted(**KEYED))
        told, _ = self.outage(
            {"NO_COMMON_MODE"}, lambda: self.serve(key_chains=KEYS, authentication_modes=[KEYED["authentication_mode"]]),
            running=False)
        self.assertIn("the server offers modes", told["last_failure"]["detail"])

    def test_server_full(self):
        self.serve(maximum_connections=1)
        # From the host itself: somebody else has the only place, with a session that runs.
        hold = (
            "import socket, struct, time; s = socket.create_connection((\"%s\", 862)); s.recv(64)\n"
            "s.sendall(struct.pack(\">I\", 1) + bytes(160)); s.recv(48)\n"
            "s.sendall(bytes([5, 4]) + bytes(10) + struct.pack(\">HH\", 4000, 4000) + bytes(96)); s.recv(48)\n"
            "s.sendall(bytes([2]) + bytes(31)); s.recv(32); time.sleep(99)"
        )
        other = subprocess.Popen(["ip", "netns", "exec", self.b, "python3", "-c", hold % self.B])
        self.stack.callback(other.kill)
        self.wait_for(lambda: [c for c in self.peer.call("ServerService", "ListServerConnections")["connections"]
                               if c["state"] == "SERVER_CONNECTION_STATE_RUNNING"])
        self.api.apply(self.wanted())
        self.outage({"REJECTED"}, other.kill, running=False)
        status = self.peer.call("ServerService", "GetServerStatus")
        self.assertEqual(status["connections_refused"][0]["cause"], "REFUSAL_CAUSE_MAXIMUM_CONNECTIONS")
        self.assertIn("maximum_connections is 1", status["latest_refusals"][0]["detail"])
        self.assertTrue(status["latest_refusals"][0]["client_address"].startswith(self.A))

    def test_not_listed(self):
        self.peer.apply({"server": server("192.0.2.0/24")})
        self.api.apply(self.wanted())
        self.outage({"CLOSED_BY_SERVER", "RESET"}, self.serve, running=False)
        status = self.peer.call("ServerService", "GetServerStatus")
        self.assertIn("is in no client_list", status["latest_refusals"][-1]["detail"])

    def test_sessions_full(self):
        self.serve(maximum_sessions=1)
        self.api.apply({"client": client(*self.wanted()["client"]["control_connections"])})
        self.wait_for(lambda: self.state() == "RUNNING")
        two = self.wanted()["client"]["control_connections"][0]
        self.api.apply({"client": client(two, {**two, "name": "c2"})})
        self.wait_for(lambda: self.api.connection("c2").get("last_failure"))
        failure = self.api.connection("c2")["last_failure"]
        self.assertEqual((failure["cause"], failure["accept_code"]), ("FAILURE_CAUSE_REJECTED", 5))
        self.assertEqual(self.state(), "RUNNING")
        status = self.peer.call("ServerService", "GetServerStatus")
        self.assertEqual(status["sessions_refused"][0]["accept_code"], 5)
        self.assertGreater(int(status["sessions_refused"][0]["count"]), 0)

    def test_closed_by_hand_and_after_its_time(self):
        """Ordinary ends: each time back within an interval."""
        self.serve(max_connection_duration="1.5s")
        self.api.apply(self.wanted())
        self.wait_for(lambda: len(events(self.api.records(), "CONNECTION_RESTORED")) >= 3, 30)
        records = self.api.records()
        for lost, restored in zip(events(records, "CONNECTION_LOST"), events(records, "CONNECTION_RESTORED")):
            self.assertIn(lost["cause"], ("FAILURE_CAUSE_CLOSED_BY_SERVER", "FAILURE_CAUSE_RESET"))
            self.assertEqual(restored["attempts"], "1")
            self.assertLess(abs(float(restored["duration"].rstrip("s")) - INTERVAL), 0.25)
        self.serve()
        self.wait_for(lambda: self.state() == "RUNNING")
        ids = [c["id"] for c in self.peer.call("ServerService", "ListServerConnections")["connections"]]
        close = lambda **fields: self.peer.call("ServerService", "CloseServerConnections", fields)  # noqa: E731
        for wrong, code in (({}, "INVALID_ARGUMENT"), ({"ids": [*ids, 999]}, "NOT_FOUND"),
                            ({"client_addresses": ["x"]}, "INVALID_ARGUMENT")):
            with self.assertRaises(grpc.RpcError) as refused:
                close(**wrong)
            self.assertEqual(refused.exception.code().name, code)
        for chosen in ({"ids": ids}, {"client_addresses": [self.A]}, {"all": True}):
            count = len(events(self.api.records(), "CONNECTION_RESTORED"))
            self.wait_for(lambda: close(**chosen)["ids"] if "ids" not in chosen else close(ids=[
                c["id"] for c in self.peer.call("ServerService", "ListServerConnections")["connections"]])["ids"])
            self.wait_for(lambda: len(events(self.api.records(), "CONNECTION_RESTORED")) > count)
        ended = {e["cause"]: int(e["count"]) for e in
                 self.peer.call("ServerService", "GetServerStatus")["connections_ended"]}
        self.assertGreaterEqual(ended["END_CAUSE_MAX_DURATION"], 3)
        self.assertGreaterEqual(ended["END_CAUSE_CLOSED_BY_OPERATOR"], 3)
        self.assertEqual(close(client_addresses=["192.0.2.1"])["ids"], [])


class Host(TwoHosts):
    """Changes on the host itself."""

    def setUp(self):
        super().setUp()
        self.agent_a, self.agent_b = self.agent("a", self.a), self.agent("b", self.b)
        self.api, self.peer = self.agent_a.client(), self.agent_b.client()
        self.peer.apply({"server": server()})

    def state(self):
        return self.api.connection("c1")["state"].removeprefix("CONNECTION_STATE_")

    def failing(self):
        self.wait_for(lambda: self.state() == "WAITING_RETRY")
        self.attempts = int(self.api.connection("c1")["attempts_since_success"])

    def at_once(self, what):
        begun = time.monotonic()
        what()
        self.wait_for(lambda: self.state() == "RUNNING", 20, 0.02)
        self.assertLess(time.monotonic() - begun, 10, "test_interval is an hour")

    def test_an_attempt_at_once_when_the_network_changes(self):
        self.api.apply({"client": client(connection("c1", self.B, test_interval="3600s", connect_timeout="1s"))})
        self.wait_for(lambda: self.state() == "RUNNING")
        self.peer.call("ServerService", "CloseServerConnections", {"all": True})
        # A link that goes down and up again ends the wait.
        sh("ip", "-n", self.a, "link", "set", "veth0", "down")
        self.wait_for(lambda: self.state() == "WAITING_RETRY")
        self.at_once(lambda: self.link(self.a, "up"))
        # An address, and with it the route.
        sh("ip", "-n", self.a, "address", "delete", f"{self.A}/24", "dev", "veth0")
        self.peer.call("ServerService", "CloseServerConnections", {"all": True})
        self.agent_a.stop()
        self.agent_a.start()
        self.api = self.agent_a.client()
        self.failing()
        self.at_once(lambda: sh("ip", "-n", self.a, "address", "add", f"{self.A}/24", "dev", "veth0"))
        # A new route ends the wait without any change of links.
        sh("ip", "-n", self.b, "address", "add", "10.98.0.2/32", "dev", "lo")
        self.api.apply({"client": client(connection("c1", "10.98.0.2", test_interval="3600s"))})
        self.failing()
        self.at_once(lambda: sh("ip", "-n", self.a, "route", "add", "10.98.0.0/24", "via", self.B))

    def test_a_host_that_cannot_send_says_so(self):
        """Within a test, whatever keepalive would take, and for what has no connection at all."""
        both = {"prefixes": ["0.0.0.0/0", "::/0"]}
        self.peer.apply({"server": {**server(), "light": {**both, "listen": [{"port": 8620}]},
                                    "stamp": {**both, "listen": [{"port": 8621}]}}})
        rule = {"probes_per_interval": 2, "consecutive_intervals": 2}
        common = {"probe_count": 4, "probe_interval": "0.05s", "loss_timeout": "0.1s", "availability": rule}
        connections = [
            connection("managed", self.B, [session("s1", **common)], test_interval="0.2s"),
            connection("light", self.B, [session("s1", destination_port=8620, **common)], test_interval="0.2s",
                       control_type="CONTROL_TYPE_LIGHT"),
            connection("stamp", self.B, [session("s1", destination_port=8621, **common)], test_interval="0.2s",
                       control_type="CONTROL_TYPE_STAMP"),
        ]
        names = [c["name"] for c in connections]
        self.api.apply({"client": client(*connections)})
        received = lambda name: sum(  # noqa: E731
            int(t["figures"]["probes_received"]) for t in tests(self.api.records(), name)
        )
        self.wait_for(lambda: all(received(name) for name in names))
        self.link(self.a, "down")
        lost = lambda: events(self.api.records(), "CONNECTION_LOST")  # noqa: E731
        self.wait_for(lambda: len(lost()) == 3, 10)
        self.assertEqual({event["cause"] for event in lost()}, {"FAILURE_CAUSE_NO_ROUTE"}, lost())
        states = lambda: {self.api.connection(name)["state"] for name in names}  # noqa: E731
        self.assertEqual(states(), {"CONNECTION_STATE_WAITING_RETRY"})
        time.sleep(3)
        for name in names:
            away = tests(self.api.records(), name, "UNREACHABLE")
            self.assertGreater(len(away), 3, name)
            self.assertEqual({t["cause"] for t in away}, {"FAILURE_CAUSE_NO_ROUTE"}, name)
            self.assertEqual(sum(int(t["figures"]["probes_sent"]) for t in away), 0)
        found = self.api.call("ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]})
        for one in found["statistics"]:
            self.assertGreater(int(one["figures"]["availability"]["unavailable_intervals"]), 4, one)
        self.link(self.a, "up")
        self.wait_for(lambda: states() == {"CONNECTION_STATE_RUNNING"}, 10)
        before = {name: received(name) for name in names}
        self.wait_for(lambda: all(received(name) > before[name] for name in names))
        self.assertEqual(len(lost()), 3, "one pair each")
        self.assertEqual(len(events(self.api.records(), "CONNECTION_RESTORED")), 3)

    def test_a_number_of_tests_outlives_an_outage_where_no_connection_breaks(self):
        both = {"prefixes": ["0.0.0.0/0", "::/0"]}
        self.peer.apply({"server": {**server(), "light": {**both, "listen": [{"port": 8620}]}}})
        common = {"probe_count": 2, "probe_interval": "0.05s", "loss_timeout": "0.1s"}
        apply = lambda **given: self.api.apply({"client": client(  # noqa: E731
            connection("light", self.B, [session(name, destination_port=8620, **common, **fields)
                                         for name, fields in (("s1", {}), ("s2", given))],
                       test_interval="0.3s", control_type="CONTROL_TYPE_LIGHT", test_count=12),
            connection("managed", self.B, [session("s1", **common)], test_interval="0.3s", test_count=12))})
        apply()
        names = ("light", "managed")
        self.wait_for(lambda: all(tests(self.api.records(), name, "COMPLETE") for name in names))
        # Not a link that goes: an address that lies elsewhere would answer for it.
        sh("ip", "-n", self.a, "route", "delete", "10.99.0.0/24", "dev", "veth0")
        self.wait_for(lambda: self.api.connection("light")["state"] == "CONNECTION_STATE_WAITING_RETRY")
        # Another session changes meanwhile: this one goes on counting.
        answer = apply(dscp_code_points="ef")
        self.assertEqual([(c["effect"], c["sessions"]) for c in answer["changes"]],
                         [("CHANGE_EFFECT_SESSION_RESTART", ["s2"])])
        time.sleep(0.5)
        sh("ip", "-n", self.a, "route", "add", "10.99.0.0/24", "dev", "veth0", "src", self.A)
        state = lambda name: self.api.connection(name)["state"]  # noqa: E731
        self.wait_for(lambda: all(state(name) == "CONNECTION_STATE_COMPLETED" for name in names), 30)
        for name in names:
            found = [t for t in tests(self.api.records(), name) if t["session"] == "s1"]
            # Probes that could not be sent count; tests due without a connection do not.
            self.assertGreaterEqual(len(found), 12, name)
            self.assertLess(len([t for t in found if t["outcome"] == "TEST_OUTCOME_COMPLETE"]), 12, name)
            self.assertGreaterEqual(len([t for t in found if t["figures"]["probes_received"] == "2"]), 6, name)
            self.assertEqual(found[-1]["outcome"], "TEST_OUTCOME_COMPLETE", name)

    def test_a_way_that_is_back_is_no_outage(self):
        """By the time that the test ends of which nothing could be sent."""
        both = {"prefixes": ["0.0.0.0/0", "::/0"]}
        self.peer.apply({"server": {**server(), "light": {**both, "listen": [{"port": 8620}]}}})
        one = session("s1", probe_count=20, probe_interval="0.1s", destination_port=8620)
        self.api.apply({"client": client(
            connection("c1", self.B, [one], test_interval="1s", control_type="CONTROL_TYPE_LIGHT"))})
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
        time.sleep(0.7)
        sh("ip", "-n", self.a, "route", "delete", "10.99.0.0/24", "dev", "veth0")
        time.sleep(1)
        sh("ip", "-n", self.a, "route", "add", "10.99.0.0/24", "dev", "veth0", "src", self.A)
        time.sleep(5)
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        refused = sum(int(t["figures"]["probes_not_sent"]) for t in tests(self.api.records(), "c1"))
        self.assertGreater(refused, 0)

    def test_what_a_rule_forbids_is_no_success(self):
        need("nft")
        both = {"prefixes": ["0.0.0.0/0", "::/0"]}
        self.peer.apply({"server": {**server(), "light": {**both, "listen": [{"port": 8620}]}}})
        light = session("s1", probe_count=4, probe_interval="0.05s", loss_timeout="0.1s", destination_port=8620)
        self.api.apply({"client": client(
            connection("c1", self.B, [light], test_interval="0.2s", control_type="CONTROL_TYPE_LIGHT"))})
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
        nft = lambda *words: self.inside(self.a, "nft", *words)  # noqa: E731
        nft("add", "table", "ip", "t")
        nft("add", "chain", "ip", "t", "out", "{ type filter hook output priority 0 ; }")
        nft("add", "rule", "ip", "t", "out", "udp", "dport", "8620", "drop")
        away = lambda: tests(self.api.records(), "c1", "UNREACHABLE")  # noqa: E731
        self.wait_for(lambda: len(away()) > 3)
        self.assertEqual({t["cause"] for t in away()}, {"FAILURE_CAUSE_LOCAL_ERROR"})
        nft("delete", "table", "ip", "t")
        count = len(tests(self.api.records(), "c1", "COMPLETE"))
        self.wait_for(lambda: len(tests(self.api.records(), "c1", "COMPLETE")) > count + 1)
        # No attempt was made: the connection was neither lost nor restored.
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])

    def test_a_change_of_the_network_is_nothing_to_what_waits_for_its_next_test(self):
        self.api.apply({"client": client(connection(
            "c1", self.B, [session("s1", probe_count=1, loss_timeout="0.1s")], test_interval="1200s"))})
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
        self.wait_for(lambda: self.api.connection("c1").get("next_attempt_time"))
        due = self.api.connection("c1")["next_attempt_time"]
        for host in range(1, 4):
            sh("ip", "-n", self.a, "address", "add", f"10.77.0.{host}/32", "dev", "lo")
            time.sleep(0.4)
        told = self.api.connection("c1")
        self.assertEqual((self.state(), told["next_attempt_time"]), ("RUNNING", due))
        self.assertEqual(len(tests(self.api.records(), "c1")), 1)
        self.assertEqual(health(self.api, "client/c1"), "SERVING", "nothing is wrong")

    def test_an_attempt_that_hangs_gives_way(self):
        for how in ("network", "hand"):
            self.inside(self.b, "nft", "add table inet x")
            self.inside(self.b, "nft", "add chain inet x input { type filter hook input priority 0; }")
            self.inside(self.b, "nft", "add rule inet x input tcp dport 862 drop")
            self.api.apply({"client": client(connection(
                f"c-{how}", self.B, test_interval="3600s", connect_timeout="60s"))})
            state = lambda: self.api.connection(f"c-{how}")["state"]  # noqa: E731
            self.wait_for(lambda: state() == "CONNECTION_STATE_CONNECTING")
            # By now the kernel waits for long before it sends another SYN.
            time.sleep(4)
            self.inside(self.b, "nft", "delete table inet x")
            begun = time.monotonic()
            if how == "network":
                sh("ip", "-n", self.a, "address", "add", "10.78.0.1/32", "dev", "lo")
            else:
                self.api.call("ClientService", "StartConnections", {"names": [f"c-{how}"]})
            self.wait_for(lambda: state() == "CONNECTION_STATE_RUNNING", 20, 0.02)
            self.assertLess(time.monotonic() - begun, 2)

    def test_an_interface_that_comes_and_goes(self):
        self.api.apply({"client": client(
            connection("c1", self.B, interface="veth0", test_interval="0.5s"),
            connection("c2", self.B, interface="veth0", test_interval="0.5s", control_type="CONTROL_TYPE_LIGHT"),
        )})
        self.wait_for(lambda: self.state() == "RUNNING")
        sh("ip", "-n", self.a, "link", "delete", "veth0")
        for name in ("c1", "c2"):
            self.wait_for(lambda: self.api.connection(name).get("last_loss"), 5)
            loss = self.api.connection(name)["last_loss"]
            self.assertEqual(loss["cause"], "FAILURE_CAUSE_LOCAL_ERROR")
            self.assertIn("veth0 is gone", loss["detail"])
        sh("ip", "-n", self.a, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", self.b)
        for namespace, v4 in ((self.a, self.A), (self.b, self.B)):
            sh("ip", "-n", namespace, "address", "add", f"{v4}/24", "dev", "veth0")
            sh("ip", "-n", namespace, "link", "set", "veth0", "up")
        self.wait_for(lambda: self.state() == "RUNNING", 10)
        self.wait_for(lambda: self.api.connection("c2")["state"] == "CONNECTION_STATE_RUNNING", 10)
        # Another one of the same name is another one.
        count = len(tests(self.api.records(), "c1", "COMPLETE"))
        self.wait_for(lambda: len(tests(self.api.records(), "c1", "COMPLETE")) > count)

    def test_a_source_address_that_goes_and_comes(self):
        """The kernel goes on sending from one of IPv6; nothing would come back."""
        both = {"prefixes": ["0.0.0.0/0", "::/0"]}
        self.peer.apply({"server": {**server(), "light": {**both, "listen": [{"address": "::", "port": 8620}]}}})
        common = {"test_interval": "3600s", "source_address": self.A6}
        probes = {"probe_count": 100000, "probe_interval": "0.05s"}
        self.api.apply({"client": client(
            connection("managed", self.B6, [session("s1", **probes)], **common),
            connection("light", self.B6, [session("s1", destination_port=8620, **probes)],
                       control_type="CONTROL_TYPE_LIGHT", **common),
            connection("other", self.B6, [session("s1", **probes)], test_interval="3600s"),
        )})
        state = lambda name: self.api.connection(name)["state"]  # noqa: E731
        every = ("managed", "light", "other")
        self.wait_for(lambda: all(state(name) == "CONNECTION_STATE_RUNNING" for name in every), 10)
        sh("ip", "-n", self.a, "address", "add", "fd99::9/64", "dev", "veth0", "nodad")
        sh("ip", "-n", self.a, "address", "delete", "fd99::9/64", "dev", "veth0")
        time.sleep(1)
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [], "another address")
        sh("ip", "-n", self.a, "address", "add", "fd99::8/64", "dev", "veth0", "nodad")
        sh("ip", "-n", self.a, "address", "delete", f"{self.A6}/64", "dev", "veth0")
        for name in ("managed", "light"):
            self.wait_for(lambda: state(name) == "CONNECTION_STATE_WAITING_RETRY", 10)
            loss = self.api.connection(name)["last_loss"]
            self.assertEqual(loss["cause"], "FAILURE_CAUSE_LOCAL_ERROR")
            self.assertIn(self.A6, loss["detail"])
        # Long before the next attempt of the rhythm.
        sh("ip", "-n", self.a, "address", "add", f"{self.A6}/64", "dev", "veth0", "nodad")
        self.wait_for(lambda: all(state(name) == "CONNECTION_STATE_RUNNING" for name in ("managed", "light")), 10)

    def test_routes_in_motion_do_not_hold_up_an_address(self):
        probes = session("s1", probe_count=100000, probe_interval="0.05s")
        self.api.apply({"client": client(
            connection("c1", self.B, [probes], test_interval="3600s", connect_timeout="1s"))})
        self.wait_for(lambda: self.state() == "RUNNING")
        self.peer.call("ServerService", "CloseServerConnections", {"all": True})
        self.wait_for(lambda: self.state() == "WAITING_RETRY")
        sh("ip", "-n", self.a, "address", "delete", f"{self.A}/24", "dev", "veth0")
        for _ in range(20):
            for change in ("add", "delete"):
                sh("ip", "-n", self.a, "route", change, "10.50.0.0/16", "dev", "lo")
                time.sleep(0.2)
        begun = time.monotonic()
        sh("ip", "-n", self.a, "address", "add", f"{self.A}/24", "dev", "veth0")
        self.wait_for(lambda: self.state() == "RUNNING", 10, 0.02)
        self.assertLess(time.monotonic() - begun, 1.5)

    def test_an_address_of_the_kernels_choice_that_goes(self):
        """Open sockets are bound to the interface; its replacement is used immediately."""
        probes = session("s1", probe_count=100000, probe_interval="0.05s")
        self.api.apply({"client": client(
            connection("c1", self.B, [probes], test_interval="3600s"),
            connection("c2", self.B, [probes], test_interval="3600s", interface="veth0"))})
        running = lambda: all(self.api.connection(n)["state"] == "CONNECTION_STATE_RUNNING"  # noqa: E731
                              for n in ("c1", "c2"))
        self.wait_for(running)
        sh("ip", "-n", self.a, "address", "add", "10.99.0.5/24", "dev", "veth0")
        sh("ip", "netns", "exec", self.a, "sysctl", "-qw", "net.ipv4.conf.veth0.promote_secondaries=1")
        sh("ip", "-n", self.a, "address", "delete", f"{self.A}/24", "dev", "veth0")
        for name in ("c1", "c2"):
            self.wait_for(lambda: self.api.connection(name).get("last_loss"), 5)
            self.assertEqual(self.api.connection(name)["last_loss"]["cause"], "FAILURE_CAUSE_LOCAL_ERROR")
        # Though the next beat of attempts is an hour away.
        told = lambda: [self.api.connection(name) for name in ("c1", "c2")]  # noqa: E731
        self.wait_for(running, told=told)
        count = lambda kind: len(events(self.api.records(), kind))  # noqa: E731
        self.wait_for(lambda: count("CONNECTION_RESTORED") == 2)
        self.assertEqual(count("CONNECTION_LOST"), 2)

    def test_an_interface_without_an_address_is_no_loss(self):
        """The kernel sends from 0.0.0.0 then."""
        both = {"prefixes": ["0.0.0.0/0", "::/0"]}
        self.peer.apply({"server": {**server(), "light": {**both, "listen": [{"port": 8620}]}}})
        probes = {"probe_count": 10, "probe_interval": "0.05s"}
        common = {"interface": "veth0", "test_interval": "0.5s"}
        self.api.apply({"client": client(
            connection("managed", self.B, [session("s1", **probes)], **common),
            connection("light", self.B, [session("s1", destination_port=8620, **probes)],
                       control_type="CONTROL_TYPE_LIGHT", **common))})
        state = lambda name: self.api.connection(name)["state"]  # noqa: E731
        running = lambda: all(state(n) == "CONNECTION_STATE_RUNNING" for n in ("managed", "light"))  # noqa: E731
        self.wait_for(running, 10)
        sh("ip", "-n", self.a, "address", "delete", f"{self.A}/24", "dev", "veth0")
        for name in ("managed", "light"):
            self.wait_for(lambda: state(name) == "CONNECTION_STATE_WAITING_RETRY", 10)
            self.assertEqual(self.api.connection(name)["last_loss"]["cause"], "FAILURE_CAUSE_LOCAL_ERROR", name)
            self.wait_for(lambda: tests(self.api.records(), name, "UNREACHABLE"), 10)
        sh("ip", "-n", self.a, "address", "add", "10.99.0.77/24", "dev", "veth0")
        self.wait_for(running, 10)
        count = lambda kind: len(events(self.api.records(), kind))  # noqa: E731
        self.wait_for(lambda: count("CONNECTION_RESTORED") == 2)
        self.assertEqual(count("CONNECTION_LOST"), 2)

    def test_tcp_facts_and_watching(self):
        self.api.apply({"client": client(connection("c1", self.B, test_interval="0.2s"))})
        self.wait_for(lambda: self.state() == "RUNNING")
        facts = self.api.connection("c1")["tcp"]
        self.assertEqual(facts["state"], "ESTAB")
        self.assertGreater(int(facts["rtt_ns"]), 0)
        watcher = Watcher(self.api)
        self.wait_for(lambda: watcher.seen)
        self.api.call("ClientService", "StopConnections", {"names": ["c1"]})
        self.wait_for(lambda: watcher.states()[-1] == "STOPPED")
        self.assertNotIn("tcp", self.api.connection("c1"))
        self.api.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: watcher.states()[-1] == "RUNNING")
        self.api.apply({"client": client(connection("c2", self.B, inactive=True))})
        self.wait_for(lambda: watcher.removed == ["c1"])
        self.wait_for(lambda: watcher.seen[-1]["name"] == "c2")
        with self.assertRaises(grpc.RpcError) as unknown:
            request, call = self.api.method("ClientService", "WatchConnections")
            next(call(request(names=["nobody"])))
        self.assertEqual(unknown.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_a_server_on_interfaces(self):
        """The same port on two interfaces, each with sessions of its own; and not on a third."""
        sh("ip", "-n", self.b, "link", "add", "other", "type", "veth", "peer", "name", "other2")
        sh("ip", "-n", self.b, "link", "set", "other", "up")
        sh("ip", "-n", self.b, "address", "add", "10.97.0.1/24", "dev", "other")
        listen = lambda *names: [{"address": "0.0.0.0", "interface": name} for name in names]  # noqa: E731
        serving = {**server(), "listen": listen("veth0", "lo"), "test_port": {"mode": "TEST_PORT_MODE_SHARED"}}
        code, _, fields = self.peer.refused({"server": {**serving, "listen": listen("veth0", "nothere")}})
        self.assertEqual((code, list(fields)), (grpc.StatusCode.FAILED_PRECONDITION, ["server.listen[1]", "server.test_port"]))
        self.peer.apply({"server": serving, "client": client(connection("c1", "127.0.0.1", test_interval="0.3s"))})
        self.api.apply({"client": client(connection("c1", self.B, test_interval="0.3s"))})
        for api in (self.api, self.peer):
            self.wait_for(lambda: api.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")
            self.wait_for(lambda: len(tests(api.records(), "c1", "COMPLETE")) > 1)
            self.assertEqual(tests(api.records(), "c1", "COMPLETE")[-1]["figures"]["probes_lost"], "0")
        sockets = self.peer.call("ServerService", "GetServerStatus")["sockets"]
        self.assertEqual(sorted((s["protocol"], s["interface"], s["error"]) for s in sockets),
                         [("tcp", "lo", ""), ("tcp", "veth0", ""), ("udp", "lo", ""), ("udp", "veth0", "")])
        self.peer.apply({"server": {**serving, "listen": listen("other")}})
        self.wait_for(lambda: self.api.connection("c1").get("last_failure", {}).get("cause") == "FAILURE_CAUSE_REFUSED")

    def test_a_light_reflector_answers_at_its_rate(self):
        self.peer.apply({"server": {"light": {"prefixes": [f"{self.A}/32", "0.0.0.0/0"], "maximum_packets_per_second": 20}}})
        light = lambda name, source: connection(  # noqa: E731
            name, self.B, [session("s1", probe_count=200, probe_interval="0.01s")], source_address=source,
            control_type="CONTROL_TYPE_LIGHT", test_interval="0.1s")
        sh("ip", "-n", self.a, "address", "add", "10.99.0.9/24", "dev", "veth0")
        self.api.apply({"client": client(light("c1", self.A))})
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
        figures = tests(self.api.records(), "c1", "COMPLETE")[0]["figures"]
        self.assertGreaterEqual(int(figures["probes_received"]), 40)
        self.assertLess(int(figures["probes_received"]), 100)
        packets = self.peer.call("ServerService", "GetServerStatus")["packets"]
        self.assertGreater(int(packets["dropped_rate_limited"]), 100)
        # The other prefix has a rate of its own.
        slow = connection("c2", self.B, [session("s1", probe_count=5)], source_address="10.99.0.9",
                          control_type="CONTROL_TYPE_LIGHT", test_interval="0.5s")
        self.api.apply({"client": client(light("c1", self.A), slow)})
        self.wait_for(lambda: tests(self.api.records(), "c2", "COMPLETE"))
        self.assertEqual(tests(self.api.records(), "c2", "COMPLETE")[0]["figures"]["probes_lost"], "0")

    def test_a_reflector_answers_each_sender_at_its_rate(self):
        serving = server(maximum_packets_per_second_per_sender=20)
        self.peer.apply({"server": {**serving, "light": {
            "listen": [{"address": self.B, "port": 4000}], "prefixes": ["0.0.0.0/0"]}}})
        fast, slow = session("fast", probe_count=200, probe_interval="0.01s"), session("slow", probe_count=10)
        light = [{**s, "destination_port": 4000} for s in (fast, slow)]
        self.api.apply({"client": client(
            connection("c1", self.B, [fast, slow], test_interval="0.1s"),
            connection("c2", self.B, light, control_type="CONTROL_TYPE_LIGHT", test_interval="0.1s"))})
        for name in ("c1", "c2"):
            of = lambda s: [t["test_result"]["figures"] for t in self.api.records()  # noqa: E731
                            if "test_result" in t and (t["connection"], t["session"]) == (name, s)]
            self.wait_for(lambda: of("fast") and of("slow"))
            received = int(of("fast")[0]["probes_received"])
            self.assertTrue(40 <= received < 100, received)
            self.assertEqual(of("slow")[0]["probes_lost"], "0", "one sender does not hold up another")
        # Without a limit from now on, on sockets that are open.
        self.peer.apply({"server": {**server(), "light": {
            "listen": [{"address": self.B, "port": 4000}], "prefixes": ["0.0.0.0/0"]}}})
        count = len(of("fast"))
        self.wait_for(lambda: len(of("fast")) >= count + 2, 20)
        self.assertEqual(of("fast")[-1]["probes_lost"], "0")

    def test_a_fleet_backs_off(self):
        """Twenty connections without a server: attempts are spread at random, with growing pauses."""
        self.peer.apply({})
        fleet = [connection(f"c{i}", self.B, test_interval="0.1s", retry_backoff_max="60s") for i in range(20)]
        self.api.apply({"client": client(*fleet, connection("steady", self.B, test_interval="0.1s"))})
        time.sleep(8)
        found = self.api.call("ClientService", "ListConnections")["connections"]
        attempts = {c["name"]: int(c["attempts_since_success"]) for c in found}
        self.assertGreater(attempts.pop("steady"), 30)
        self.assertLess(max(attempts.values()), 25)
        self.assertGreater(len({c["next_attempt_time"] for c in found if c.get("next_attempt_time")}), 15)

    def test_thresholds_and_traps(self):
        need("nft")
        self.api.apply({"client": client(connection(
            "c1", self.B,
            [session("s1", probe_interval="0.02s", loss_timeout="0.1s", traps={"test_completion": True}, thresholds={
                "successive_loss": 3, "total_loss": 4, "rtt": "1s", "clear_after_tests": 2})],
            test_interval="0.1s", traps={"test_iteration_done": True}))})
        self.wait_for(lambda: len(tests(self.api.records(), "c1", "COMPLETE")) > 3)
        kinds = lambda kind: events(self.api.records(), kind)  # noqa: E731
        self.assertEqual(kinds("THRESHOLD_RAISED"), [])
        self.wait_for(lambda: len(kinds("TEST_DONE")) > 3 and len(kinds("TEST_ITERATION_DONE")) > 3)
        for command in ("add table inet x", "add chain inet x input { type filter hook input priority 0; }",
                        "add rule inet x input meta l4proto udp drop"):
            self.inside(self.b, "nft", command)
        self.wait_for(lambda: len(kinds("THRESHOLD_RAISED")) == 2)
        raised = {e["threshold"]: e for e in kinds("THRESHOLD_RAISED")}
        self.assertEqual(set(raised), {"THRESHOLD_SUCCESSIVE_LOSS", "THRESHOLD_TOTAL_LOSS"})
        self.assertEqual(raised["THRESHOLD_SUCCESSIVE_LOSS"]["value"], "3")
        self.assertGreaterEqual(int(raised["THRESHOLD_TOTAL_LOSS"]["value"]), 4)
        time.sleep(1)
        self.assertEqual(len(kinds("THRESHOLD_RAISED")), 2, "once")
        # Unreachable: nothing is judged, nothing cleared.
        self.inside(self.b, "nft", "delete table inet x")
        self.wait_for(lambda: len(kinds("THRESHOLD_CLEARED")) == 2)
        cleared = kinds("THRESHOLD_CLEARED")[0]
        self.assertLess(abs(seconds(cleared["start_time"]) - seconds(raised[cleared["threshold"]]["time"])), 0.1)
        self.agent_b.kill()
        self.wait_for(lambda: len(tests(self.api.records(), "c1", "UNREACHABLE")) > 3)
        self.assertEqual(len(kinds("THRESHOLD_RAISED")), 2)


class Names(TwoHosts):
    """A name server that says what a test wants."""

    def serve_names(self, v4, v6):
        """Whatever is asked for has these addresses; the file where they stand."""
        files = f"/etc/netns/{self.a}"
        os.makedirs(files, exist_ok=True)
        self.stack.callback(sh, "rm", "-rf", files)
        with open(os.path.join(files, "resolv.conf"), "w") as file:
            file.write(f"nameserver {self.B}\n")
        script = os.path.join(self.directory, "dns.py")
        answer = os.path.join(self.directory, "answer")
        with open(answer, "w") as file:
            file.write(f"{v4} {v6}")
        with open(script, "w") as file:
            file.write(NAME_SERVER)
        name_server = subprocess.Popen(["ip", "netns", "exec", self.b, "python3", script, self.B, answer])
        self.stack.callback(name_server.kill)
        return answer

    def test_every_address_of_a_name_is_tried(self):
        dead = ",".join(f"fd99::dead:{number}" for number in range(1, 6))
        self.serve_names(f"10.99.0.77,10.99.0.78,{self.B}", dead)
        agent_a, agent_b = self.agent("a", self.a), self.agent("b", self.b)
        api, peer = agent_a.client(), agent_b.client()
        both = {"prefixes": ["0.0.0.0/0", "::/0"]}
        peer.apply({"server": {**server(), "light": {**both, "listen": [{"port": 8620}]}}})
        api.apply({"client": client(connection("c1", "many.example.net", test_interval="0.3s"))})
        self.wait_for(lambda: api.connection("c1")["state"] == "CONNECTION_STATE_RUNNING", 30)
        self.assertEqual(api.connection("c1")["server_address"], f"{self.B}:862")

    def test_an_address_without_a_route_is_left_at_once(self):
        self.serve_names(self.B, "2001:db8::1")
        agent_a, agent_b = self.agent("a", self.a), self.agent("b", self.b)
        api, peer = agent_a.client(), agent_b.client()
        both = {"prefixes": ["0.0.0.0/0", "::/0"]}
        peer.apply({"server": {**server(), "light": {**both, "listen": [{"port": 8620}]}}})
        light = session("s1", probe_count=2, loss_timeout="0.2s", destination_port=8620)
        api.apply({"client": client(connection("c1", "both.example.net", [light], test_interval="0.3s",
                                               control_type="CONTROL_TYPE_LIGHT"))})
        result = self.wait_for(lambda: tests(api.records(), "c1", "COMPLETE"))[0]
        self.assertEqual(result["figures"]["probes_received"], "2")
        self.assertEqual(events(api.records(), "CONNECTION_LOST"), [])

    def test_names_of_light_sessions_move_and_both_families_are_tried(self):
        sh("ip", "-n", self.b, "address", "add", "10.99.0.3/24", "dev", "veth0")
        answer = self.serve_names(self.B, "2001:db8::1")
        agent_a, agent_b = self.agent("a", self.a), self.agent("b", self.b)
        api, peer = agent_a.client(), agent_b.client()
        peer.apply({"server": {**server(), "light": {"prefixes": ["0.0.0.0/0", "::/0"], "listen": [{"port": 8620}]}}})
        light = connection("light", "moves.example.net",
                           [session("s1", probe_count=2, loss_timeout="0.2s", destination_port=8620)],
                           control_type="CONTROL_TYPE_LIGHT", test_interval="0.3s", source_address=self.A)
        # The first address of the managed one leads nowhere, in the other family.
        managed = connection("managed", "both.example.net", test_interval="0.5s", connect_timeout="3s")
        api.apply({"client": client(light, managed)})
        self.wait_for(lambda: api.connection("managed")["state"] == "CONNECTION_STATE_RUNNING")
        self.assertEqual(api.connection("managed")["server_address"], f"{self.B}:862")
        reflector = lambda: api.connection("light")["sessions"][0]["reflector_address"]  # noqa: E731
        self.wait_for(lambda: reflector() == f"{self.B}:8620")
        with open(answer, "w") as file:
            file.write("10.99.0.3 2001:db8::1")
        self.wait_for(lambda: reflector() == "10.99.0.3:8620", 30)
        self.wait_for(lambda: [t for t in tests(api.records(), "light", "COMPLETE")[-1:]
                               if t["figures"]["probes_received"] == "2"])
        self.assertEqual(events(api.records(), "CONNECTION_LOST"), [])


NAME_SERVER = '''
import socket, struct, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((sys.argv[1], 53))
while True:
    query, source = udp.recvfrom(512)
    end = query.index(0, 12) + 5
    kind = struct.unpack(">H", query[end - 4:end - 2])[0]
    of = dict(zip((1, 28), open(sys.argv[2]).read().split()))
    family = socket.AF_INET if kind == 1 else socket.AF_INET6
    found = [socket.inet_pton(family, address) for address in of.get(kind, "").split(",") if address]
    answer = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0) + query[12:end]
    for octets in found:
        answer += struct.pack(">HHHIH", 0xC00C, kind, 1, 1, len(octets)) + octets
    udp.sendto(answer, source)
'''


if __name__ == "__main__":
    unittest.main()
