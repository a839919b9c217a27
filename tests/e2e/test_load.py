"""A thousand control connections of one session each, agent to agent on one machine."""

import os
import time

import harness
from harness import client, connection

CONNECTIONS = int(os.environ.get("TWAMP_LOAD_CONNECTIONS", 1000))
SECONDS = int(os.environ.get("TWAMP_LOAD_SECONDS", 300))


class Load(harness.Case):
    def test_a_thousand_connections(self):
        port = harness.free_port()
        far = self.agent("server")
        b = far.client()
        b.apply({"server": {
            "listen": [{"address": "127.0.0.1", "port": port}],
            "client_list": [{"name": "all", "prefixes": ["127.0.0.0/8"]}],
            "maximum_connections": 2000, "maximum_connections_per_client": 2000,
            "maximum_sessions": 2000, "test_port": {"mode": "TEST_PORT_MODE_SHARED"},
        }})
        near = self.agent("client")
        a = near.client()
        one = {"name": "s1", "probe_count": 10, "probe_interval": "1s", "loss_timeout": "2s"}
        a.apply({"client": client(*(
            connection(f"c{i:04}", "127.0.0.1", [one], destination_port=port, test_interval="1s")
            for i in range(CONNECTIONS)
        ))})
        begun = time.monotonic()
        running = lambda: sum(
            c["state"] == "CONNECTION_STATE_RUNNING"
            for c in a.call("ClientService", "ListConnections")["connections"]
        ) == CONNECTIONS
        self.wait_for(running, 60)
        print(f"{CONNECTIONS} connections run after {time.monotonic() - begun:.1f} s")
        cpu = {agent: cpu_seconds(agent) for agent in (near, far)}
        begun, peak = time.monotonic(), {near: 0, far: 0}
        while time.monotonic() - begun < SECONDS:
            time.sleep(5)
            for agent in (near, far):
                peak[agent] = max(peak[agent], agent.memory_kib())
        length = time.monotonic() - begun
        statistics = a.call(
            "ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]}
        )["statistics"]
        total = lambda field: sum(int(s["figures"][field]) for s in statistics)
        sent, lost = total("probes_sent"), total("probes_lost")
        store = a.call("AgentService", "GetAgent")["store"]
        packets = b.call("ServerService", "GetServerStatus")["packets"]
        for name, agent in (("client", near), ("server", far)):
            used = (cpu_seconds(agent) - cpu[agent]) / length
            print(f"{name}: peak memory {peak[agent] / 1024:.1f} MiB, {used:.2f} CPUs")
        print(f"{sent} probes sent, {lost} lost, {total('probes_not_sent')} not sent; "
              f"{store['records']} records, {int(store['live_bytes']) >> 20} MiB live, "
              f"{int(store['disk_bytes']) >> 20} MiB on disk, {packets['reflected']} reflected")
        self.assertEqual(len(statistics), CONNECTIONS)
        self.assertEqual(lost, 0, "no loss that is the agent's own")
        self.assertEqual(store["records_dropped"], "0")
        # Ten probes in each 10 + 2 seconds, give or take the tests that are under way.
        self.assertGreater(sent, CONNECTIONS * 10 * (int(SECONDS / 12) - 1))
        outages = [c for c in a.call("ClientService", "ListConnections")["connections"]
                   if c["outages"] != "0"]
        self.assertEqual(outages, [])
        self.assertEqual(packets["dropped_no_session"], "0")
        self.assertEqual(packets["dropped_send_failed"], "0")


def cpu_seconds(agent):
    with open(f"/proc/{agent.process.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
