"""Ten thousand control connections of one agent, their servers in one other process: the largest
expected load. Times are printed; those the design promises are asserted, multiplied by SLACK."""

import os
import statistics
import time
import unittest

from google.protobuf import json_format

from harness import Case, client, connection, events, free_port, session, to_dict

MANAGED = int(os.environ.get("TWAMP_SCALE", "10000")) * 8 // 10
LIGHT = int(os.environ.get("TWAMP_SCALE", "10000")) * 2 // 10
INTERVAL = 5


class TenThousand(Case):
    def test_commit_change_outage_and_idle(self):
        port, light_port = free_port(), free_port()
        servers = self.agent("servers")
        agent = self.agent("agent")
        self.peer, self.api = servers.client(), agent.client()
        serving = {
            "listen": [{"address": "127.0.0.1", "port": port}],
            "client_list": [{"name": "local", "prefixes": ["127.0.0.0/8"]}],
            "maximum_connections": 20000, "maximum_connections_per_client": 20000,
            "maximum_sessions": 20000, "test_port": {"mode": "TEST_PORT_MODE_SHARED"},
            "light": {"listen": [{"address": "127.0.0.1", "port": light_port}],
                      "prefixes": ["127.0.0.0/8"]},
        }
        self.peer.apply({"server": serving})
        before = agent.memory_kib()
        # One probe a second each.
        one = lambda: session("s", probe_count=1, loss_timeout="0.5s", store_probes="STORE_PROBES_NONE")  # noqa: E731
        wanted = [
            connection(f"m{i}", "127.0.0.1", [one()], destination_port=port, test_interval=f"{INTERVAL}s")
            for i in range(MANAGED)
        ] + [
            connection(f"l{i}", "127.0.0.1",
                       [{**one(), "destination_port": light_port}],
                       control_type="CONTROL_TYPE_LIGHT", test_interval=f"{INTERVAL}s")
            for i in range(LIGHT)
        ]
        for c in wanted:
            c["test_sessions"][0].update(probe_count=5, probe_interval="1s")

        begun = time.monotonic()
        _, answered = self.apply(wanted)
        self.wait_for(lambda: self.running() == MANAGED + LIGHT, 120, 0.5)
        up = time.monotonic() - begun
        print(f"\n{MANAGED} managed and {LIGHT} light: answered in {answered:.2f} s, all running after {up:.1f} s")
        self.assertLess(answered, 2 * SLACK)
        self.assertLess(up, 60 * SLACK)

        # The agent is idle: its processor time and memory are measured.
        time.sleep(10)
        cpu, received, kib = self.cpu(agent), self.received(), []
        for _ in range(10):
            time.sleep(2)
            kib.append((agent.memory_kib() - before) / (MANAGED + LIGHT))
        used = (self.cpu(agent) - cpu) / 20
        probes = (self.received() - received) / 20
        memory = statistics.median(kib)
        print(f"idle: {used * 100:.1f} % of a core, {probes:.0f} probes/s, {memory:.1f} KiB for each connection "
              f"({min(kib):.1f} to {max(kib):.1f})")
        self.assertGreater(probes, 0.4 * (MANAGED + LIGHT))
        self.assertLess(memory, 32 * SLACK)

        # One field of one session.
        starts = self.starts()
        accepted = int(self.peer.call("ServerService", "GetServerStatus")["connections_accepted"])
        wanted[MANAGED // 2]["test_sessions"][0]["dscp_code_points"] = "ef"
        answer, took = self.apply(wanted)
        print(f"one field of one session: answered in {took:.2f} s")
        self.assertEqual([c["path"] for c in answer["changes"]], [f"client/m{MANAGED // 2}"])
        self.assertEqual(answer["changes"][0]["effect"], "CHANGE_EFFECT_SESSION_RESTART")
        self.wait_for(lambda: self.starts()[f"m{MANAGED // 2}"] == 2, 20)
        after = self.starts()
        self.assertEqual({name for name in after if after[name] != starts[name]}, {f"m{MANAGED // 2}"})
        status = self.peer.call("ServerService", "GetServerStatus")
        self.assertEqual(int(status["connections_accepted"]), accepted)
        lost = events(self.api.records(filter={"kinds": ["RECORD_KIND_EVENT"]}), "CONNECTION_LOST")
        self.assertEqual([(e["cause"], e["detail"], e["time"]) for e in lost[:5]], [], f"{len(lost)} in all")

        # The servers are killed and restarted.
        servers.kill()
        gone = time.monotonic()
        self.wait_for(lambda: self.running() <= LIGHT, 30, 0.5)
        time.sleep(3 * INTERVAL)
        servers.start()
        self.peer.close()
        self.peer = servers.client()
        back = time.monotonic()
        self.wait_for(lambda: self.running() == MANAGED + LIGHT, 120, 0.2)
        took = time.monotonic() - back
        print(f"servers gone for {back - gone:.1f} s; all back after {took:.1f} s (interval {INTERVAL} s)")
        self.assertLess(took, 2 * INTERVAL * SLACK)
        self.wait_for(lambda: self.event_count("CONNECTION_RESTORED") == MANAGED, 30, 1)
        self.assertEqual(self.event_count("CONNECTION_LOST"), MANAGED, "one pair each")
        # At most one attempt per interval.
        intervals = (back + took - gone) / INTERVAL + 2
        most = max(int(e["attempts"]) for e in self.restored)
        self.assertLessEqual(most, intervals)
        print(f"attempts: at most {most} of each, {intervals:.1f} intervals")

    def apply(self, wanted):
        """Returns the answer and the duration of the call alone."""
        request, call = self.api.method("ConfigService", "ApplyConfig")
        message = json_format.ParseDict({"config": {"client": client(*wanted)}}, request())
        begun = time.monotonic()
        answer = call(message, timeout=60)
        return to_dict(answer), time.monotonic() - begun

    def connections(self):
        return self.api.call("ClientService", "ListConnections", timeout=60)["connections"]

    def running(self):
        return sum(c["state"] == "CONNECTION_STATE_RUNNING" for c in self.connections())

    def starts(self):
        return {c["name"]: int(c["sessions"][0]["starts"]) for c in self.connections()}

    def event_count(self, kind):
        found = events(self.api.records(filter={"kinds": ["RECORD_KIND_EVENT"]}), kind)
        if kind == "CONNECTION_RESTORED":
            self.restored = found
        return len(found)

    def received(self):
        return int(self.peer.call("ServerService", "GetServerStatus")["packets"]["received"])

    @staticmethod
    def cpu(agent):
        fields = open(f"/proc/{agent.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Factor by which a busy machine may exceed time limits.
SLACK = float(os.environ.get("TWAMP_SLACK", "2"))


if __name__ == "__main__":
    unittest.main()
