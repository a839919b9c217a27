"""What stands at the edge of what is supervised: open connections whose limits change, watches whose
subject goes, ports that are still taken, thresholds of what rests, and an agent that goes away."""

import signal
import socket
import subprocess
import threading
import time
import unittest

import grpc
import harness
from google.protobuf import json_format
from harness import Case, client, connection, events, free_port, server, session


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
        lost = [e for e in events(self.api.records(), "CONNECTION_LOST") if e["cause"] == "LOSS_CAUSE_LOCAL"]
        self.assertEqual(lost, [])

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

        def watch():
            try:
                for answer in call(json_format.ParseDict({"service": "client/c1"}, request())):
                    told.append(harness.to_dict(answer)["status"])
            except grpc.RpcError as error:
                told.append(error.code().name)
            told.append("END")

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        self.wait_for(lambda: "SERVING" in told)
        self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["client/c1"])
        self.wait_for(lambda: told[-1] in ("NOT_SERVING", "SERVICE_UNKNOWN", "END"))

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

        threading.Thread(target=watch, daemon=True).start()
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
        # It may be told before or behind the end of what is history.
        self.assertIn("AGENT_STARTED", stream.stdout.readline() + stream.stdout.readline())
        self.process.kill()
        _, told = stream.communicate(timeout=20)
        self.assertEqual(stream.returncode, 69, told)
        gone = subprocess.run([harness.CTL, "--agent", f"127.0.0.1:{self.process.port}", "status"],
                              capture_output=True, text=True)
        self.assertEqual(gone.returncode, 69, gone.stderr)


class Stamps(Case):
    def test_an_interface_that_cannot_stamp_says_so_and_the_kernel_stamps(self):
        agent = self.agent(top='hardware_stamps = ["lo", "gone0"]\n')
        api = agent.client()
        port = free_port()
        api.apply({"server": server(port=port), "client": client(connection(
            "c", "127.0.0.1", [session("s", probe_count=3, probe_interval="0.01s", loss_timeout="0.1s")],
            destination_port=port, test_count=1))})
        result = self.wait_for(lambda: [r for r in api.records() if "test_result" in r])[0]["test_result"]
        self.assertEqual(result["figures"]["receive_stamp"], "TIMESTAMP_SOURCE_KERNEL")
        told = {s["interface"]: s["detail"] for s in api.call("AgentService", "GetAgent")["hardware_stamps"]}
        self.assertIn("no clock of its own", told["lo"])
        self.assertIn("no such interface", told["gone0"])
        status = subprocess.run([harness.CTL, "--agent", f"127.0.0.1:{agent.port}", "status"],
                                capture_output=True, text=True).stdout
        self.assertIn("stamps    lo by the kernel: it has no clock of its own", status)


if __name__ == "__main__":
    unittest.main()
