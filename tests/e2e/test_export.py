"""Exporters against real parts: an OpenTelemetry collector, Prometheus, and a NATS server, each
stopped for a while under load and started again. Nothing is lost, and nothing is double once what
came twice is left out."""

import asyncio
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import unittest
import urllib.error
import urllib.request
from concurrent import futures

import grpc
import harness
from harness import Case, client, connection, free_port, need, server, session, sh

OUTAGE_SECONDS = float(os.environ.get("TWAMP_OUTAGE_SECONDS", "60"))


class Export(Case):
    """One agent that measures to itself: some twenty tests and a thousand probes a second."""

    CONNECTIONS = 10

    def setUp(self):
        super().setUp()
        self.process = self.agent()
        self.api = self.process.client()
        self.port = free_port()

    def load(self, export, **storage):
        sessions = [session("s", probe_count=50, probe_interval="0.01s", loss_timeout="0.1s",
                            labels={"site": "lab"})]
        self.api.apply({
            "server": server(port=self.port),
            "client": client(*(
                connection(f"c{i}", "127.0.0.1", sessions, destination_port=self.port, test_interval="0.01s",
                           labels={"region": "north", "up-link": "a", "session": "own"})
                for i in range(self.CONNECTIONS)
            )),
            "export": export,
            "storage": storage,
        })

    def exporter(self, name):
        agent = self.api.call("AgentService", "GetAgent")
        # A new exporter may not be listed yet.
        nothing = {"state": "", "detail": "", "lag": "0", "delivered": "0", "rejected": "0"}
        return next((e for e in agent["exporters"] if e["name"] == name), nothing)

    def state(self, name):
        return self.exporter(name)["state"].removeprefix("EXPORTER_STATE_")

    def stop_and_drain(self, name):
        """Ends the load; the cursors of the records that are stored then."""
        self.api.call("ClientService", "StopConnections", {"all": True})
        time.sleep(1)
        self.wait_for(lambda: self.state(name) and int(self.exporter(name)["lag"]) == 0, 60)
        return self.api.records()


class Otlp(Export):
    def test_a_collector_that_goes_and_comes_loses_nothing(self):
        sink = Sink()
        self.stack.callback(sink.stop)
        port = free_port()
        collector = Collector(port, sink.port)
        self.stack.callback(collector.stop)
        kinds = ["RECORD_KIND_TEST_RESULT", "RECORD_KIND_EVENT"]
        self.load({"otlp": [{
            "name": "collector", "endpoint": f"http://127.0.0.1:{port}", "filter": {"kinds": kinds},
            "secret": "Bearer t0ken", "temporality": "OTLP_TEMPORALITY_DELTA",
        }]})
        self.wait_for(lambda: self.state("collector") == "RUNNING")
        self.wait_for(lambda: len(sink.tests) > 50)
        collector.stop()
        self.wait_for(lambda: self.state("collector") == "FAILING")
        detail = self.exporter("collector")["detail"]
        self.assertIn("UNAVAILABLE", detail.upper())
        self.assertIn("refused", detail)
        time.sleep(OUTAGE_SECONDS)
        behind = int(self.exporter("collector")["lag"])
        self.assertGreater(behind, 100)
        collector.start()
        self.wait_for(lambda: self.state("collector") == "RUNNING", 60)
        records = self.stop_and_drain("collector")
        wanted = {
            (r["connection"], harness.seconds(r["test_result"]["end_time"])): r["test_result"]
            for r in records if "test_result" in r
        }
        # The collector passes on what it has in batches.
        self.wait_for(lambda: len(sink.tests) >= len(wanted), 30)
        self.assertEqual(set(sink.tests), set(wanted))
        twice = sink.test_points - len(wanted)
        print(f"\nOTLP: {len(wanted)} results of tests through a collector that was away for "
              f"{OUTAGE_SECONDS:.0f} s and {behind} records: none lost, {twice} twice")
        sent = sum(int(t["figures"]["probes_sent"]) for t in wanted.values())
        self.assertEqual(sum(sink.sent.values()), sent)
        self.assertEqual(sum(sink.rtt.values()), sum(int(t["figures"]["rtt"]["samples"]) for t in wanted.values()))
        word = lambda test: test["figures"]["one_way_validity"].removeprefix("ONE_WAY_VALIDITY_")  # noqa: E731
        self.assertEqual(sink.validity, {key: {word(test)} for key, test in wanted.items()
                                         if "egress" in test["figures"]})
        source = lambda test, key: test["figures"][key].removeprefix("TIMESTAMP_SOURCE_")  # noqa: E731
        self.assertEqual(sink.stamps, {key: (source(test, "transmit_timestamp_source"), source(test, "receive_timestamp_source"))
                                       for key, test in wanted.items() if "rtt" in test["figures"]})
        cursors = {int(r["cursor"]) for r in records if "event" in r}
        self.assertEqual(set(sink.events), cursors)
        self.assertIn("twamp.agent_started", sink.events.values())
        self.assertEqual(sink.labels, {"lab"})
        # Positions never move back.
        shown = self.api.call("ConfigService", "GetConfig")["config"]["export"]["otlp"][0]
        self.assertEqual(shown["secret"], "")
        self.assertTrue(shown["secret_digest"])

    def test_totals_rise_by_default_and_begin_again_after_a_kill(self):
        """Prometheus and Mimir accept cumulative values only."""
        sink = Sink()
        self.stack.callback(sink.stop)
        self.load({"otlp": [{"name": "direct", "endpoint": f"http://127.0.0.1:{sink.port}"}]})
        self.wait_for(lambda: len(sink.tests) > 50)
        self.process.kill()
        self.process.start()
        self.api.close()
        self.api = self.process.client()
        seen = len(sink.tests)
        self.wait_for(lambda: len(sink.tests) > seen + 50)
        results = [r["test_result"] for r in self.stop_and_drain("direct") if "test_result" in r]
        self.assertEqual(sink.temporalities, {CUMULATIVE})
        for (name, given), points in sink.points.items():
            by_start = {}
            for start, end, value in sorted(points, key=lambda p: p[1]):
                self.assertLessEqual(start, end)
                self.assertGreaterEqual(value, by_start.get(start, 0), (name, given))
                by_start[start] = value
            # One total of each run of the agent.
            self.assertLessEqual(len(by_start), 2, (name, given))
        # Results in flight at the kill may have come twice.
        again = sum(count for _, count in sink.repeated.items())
        count = lambda key: sum(int(r["figures"][key]) for r in results)  # noqa: E731
        for name in ("sent", "received"):
            total = sink.totals(f"twamp.probes.{name}")
            self.assertGreaterEqual(total, count(f"probes_{name}"))
            self.assertLessEqual(total, count(f"probes_{name}") + 50 * again)
        self.assertEqual(sink.totals("twamp.tests") - again, len(results))
        names = {name for name, _ in sink.points}
        self.assertLessEqual({f"twamp.probes.{n}" for n in
                              "sent not_sent received lost late duplicate reordered abandoned".split()}, names)
        self.assertNotIn("twamp.probes", names)
        directions = {dict(given)["twamp.direction"] for name, given in sink.points if name == "twamp.probes.lost"}
        self.assertEqual(directions, {"egress", "ingress", "unknown"})
        # The server chooses the port of the reflector.
        self.assertEqual(sink.peers, {("127.0.0.1", None, "udp", "ipv4")})
        # Events of the agent as a whole have no peer.
        self.assertEqual(sink.log_peers, {(None, None, None, None)})

    def test_the_sink_sees_the_token_and_refusals_are_counted(self):
        sink = Sink(token="Bearer t0ken")
        self.stack.callback(sink.stop)
        one = {"name": "direct", "endpoint": f"http://127.0.0.1:{sink.port}",
               "filter": {"kinds": ["RECORD_KIND_PROBE_RESULTS", "RECORD_KIND_EVENT"]}}
        self.load({"otlp": [one]})
        self.wait_for(lambda: "nauthenticated" in self.exporter("direct")["detail"])
        self.assertEqual(self.state("direct"), "FAILING")
        answer = self.api.apply({"export": {"otlp": [{**one, "secret": "Bearer t0ken"}]}}, mode="APPLY_MODE_MERGE")
        self.assertEqual([c["path"] for c in answer["changes"]], ["export"])
        self.wait_for(lambda: sink.probes > 1000)
        self.assertIn(("127.0.0.1", None, "udp", "ipv4"), sink.log_peers)
        self.assertEqual(self.state("direct"), "RUNNING")
        sink.refuse = True
        self.wait_for(lambda: int(self.exporter("direct")["rejected"]) > 0)
        self.assertIn("no thank you", self.exporter("direct")["detail"])
        sink.refuse = False
        # A removed exporter has no position: its consumer is deleted.
        names = lambda: [c["name"] for c in self.api.call("ResultsService", "ListConsumers")["consumers"]]
        self.assertIn("export:direct", names())
        self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["export"])
        self.wait_for(lambda: "export:direct" not in names())
        self.assertEqual(self.api.call("AgentService", "GetAgent")["exporters"], [])


class Nats(Export):
    def test_a_server_that_goes_and_comes_has_every_record_once(self):
        need("nats-server")
        nats = NatsServer(os.path.join(self.directory, "nats"))
        self.stack.callback(nats.stop)
        self.load({"nats": [{
            "name": "fleet", "servers": [f"nats://127.0.0.1:{nats.port}"], "stream": "TWAMP",
            "subject_prefix": "net.twamp", "format": "NATS_FORMAT_JSON", "user": "agent", "secret": "pass word",
        }]})
        self.wait_for(lambda: self.state("fleet") == "RUNNING")
        self.wait_for(lambda: int(self.exporter("fleet")["delivered"]) > 500)
        nats.kill()
        self.wait_for(lambda: self.state("fleet") == "FAILING", 30)
        time.sleep(OUTAGE_SECONDS)
        behind = int(self.exporter("fleet")["lag"])
        # The agent goes in the middle, too.
        self.process.kill()
        self.process.start()
        self.api.close()
        self.api = self.process.client()
        nats.start()
        self.wait_for(lambda: self.state("fleet") == "RUNNING", 60)
        records = self.stop_and_drain("fleet")
        messages = asyncio.run(nats.messages("TWAMP"))
        cursors = [int(json.loads(data)["cursor"]) for _, _, data in messages]
        self.assertEqual(len(cursors), len(set(cursors)), "each once")
        stored = {int(r["cursor"]) for r in records}
        self.assertEqual(stored - set(cursors), set(), "none lost")
        agent_id = self.api.call("AgentService", "GetAgent")["agent_id"]
        for subject, message_id, data in messages:
            self.assertTrue(subject.startswith(f"net.twamp.{agent_id}."), subject)
        kinds = {subject.rsplit(".", 1)[1] for subject, _, _ in messages}
        self.assertLessEqual({"test", "probes", "event"}, kinds)
        by_cursor = {int(r["cursor"]): r for r in records}
        _, message_id, data = messages[-1]
        last = json.loads(data)
        self.assertEqual(message_id, f"{agent_id}-{last['incarnation']}-{last['cursor']}")
        self.assertEqual(last.get("connection", ""), by_cursor[int(last["cursor"])]["connection"])
        print(f"\nNATS: {len(cursors)} records in a stream of a server that was killed for "
              f"{OUTAGE_SECONDS:.0f} s, {behind} records, and an agent that was killed meanwhile: none lost, none twice")

    def nats_config(self, nats):
        return {"nats": [{
            "name": "n", "servers": [f"nats://127.0.0.1:{nats.port}"], "stream": "TWAMP",
            "user": "agent", "secret": "pass word", "format": "NATS_FORMAT_JSON",
        }]}

    def test_two_agents_on_copies_of_a_state_directory_both_deliver_all_records(self):
        need("nats-server")
        nats = NatsServer(os.path.join(self.directory, "nats"))
        self.stack.callback(nats.stop)
        self.load(self.nats_config(nats))
        self.wait_for(lambda: int(self.exporter("n")["delivered"]) > 50)
        self.process.kill()
        copy = os.path.join(self.directory, "copy")
        shutil.copytree(self.process.directory, copy)
        self.process.start()
        clone = self.agent("copy")
        self.api.close()
        original, self.api = self.process.client(), clone.client()
        agents = [api.call("AgentService", "GetAgent") for api in (original, self.api)]
        self.assertEqual(agents[0]["agent_id"], agents[1]["agent_id"])
        self.assertEqual(agents[0]["host_changes"], [])
        self.assertEqual(agents[1]["host_changes"],
                         ["the state directory is a copy, or was restored from one"])
        event = next(r["event"] for r in self.api.records() if r.get("event", {}).get("type") == "EVENT_TYPE_HOST_CHANGED")
        self.assertIn("db new-identity", event["detail"])
        self.assertIn("host", sh(harness.CTL, "--agent", f"127.0.0.1:{clone.port}", "status"))
        stored = []
        for self.api in (original, self.api):
            self.wait_for(lambda: int(self.exporter("n")["delivered"]) > 100)
            records = self.stop_and_drain("n")
            self.assertEqual(int(self.exporter("n")["rejected"]), 0)
            stored += [(r["incarnation"], r["cursor"]) for r in records]
        self.assertEqual(len({incarnation for incarnation, _ in stored}), 3)
        messages = [json.loads(data) for _, _, data in asyncio.run(nats.messages("TWAMP"))]
        delivered = [(m["incarnation"], m["cursor"]) for m in messages]
        self.assertEqual(len(delivered), len(set(delivered)), "each once")
        self.assertEqual(set(stored) - set(delivered), set(), "none lost")
        # From here on there are two agents.
        clone.stop()
        renamed = sh(harness.AGENT, "db", "--state-dir", clone.directory, "new-identity")
        self.assertIn(f"(was {agents[0]['agent_id']})", renamed)
        clone.start()
        agent = clone.client().call("AgentService", "GetAgent")
        self.assertIn(f"agent id {agent['agent_id']}", renamed)
        self.assertNotEqual(agent["agent_id"], agents[0]["agent_id"])
        self.assertEqual(agent["host_changes"], [], "said once")

    def test_a_record_that_the_stream_drops_as_a_duplicate_is_told(self):
        need("nats-server")
        nats = NatsServer(os.path.join(self.directory, "nats"))
        self.stack.callback(nats.stop)
        self.load(self.nats_config(nats))
        self.wait_for(lambda: int(self.exporter("n")["delivered"]) > 50)
        self.assertEqual(int(self.exporter("n")["rejected"]), 0)
        # A snapshot of this agent that was resumed elsewhere sends the records to come.
        agent = self.api.call("AgentService", "GetAgent")
        next_cursor = int(agent["store"]["latest_cursor"]) + 200
        identifiers = [f"{agent['agent_id']}-{agent['boot_id']}-{next_cursor + n}" for n in range(20)]
        asyncio.run(nats.publish(f"twamp.{agent['agent_id']}.test", identifiers))
        self.wait_for(lambda: int(self.exporter("n")["rejected"]) >= 20, 30)
        told = self.exporter("n")
        self.assertIn("another agent has the same id", told["detail"])
        self.assertIn("db new-identity", told["detail"])
        self.assertEqual(self.state("n"), "RUNNING")

    def test_a_record_that_is_too_long_holds_nothing_up(self):
        need("nats-server")
        # Less than a result of a test takes, more than an event.
        nats = NatsServer(os.path.join(self.directory, "nats"), "max_payload: 1024")
        self.stack.callback(nats.stop)
        self.load({"nats": [{
            "name": "n", "servers": [f"nats://127.0.0.1:{nats.port}"], "stream": "TWAMP",
            "user": "agent", "secret": "pass word", "format": "NATS_FORMAT_JSON",
        }]})
        self.wait_for(lambda: int(self.exporter("n")["rejected"]) > 10, 30)
        told = self.exporter("n")
        self.assertEqual(self.state("n"), "RUNNING", told)
        self.assertIn("max_payload", told["detail"])
        self.assertGreater(int(told["delivered"]), 0)
        records = self.stop_and_drain("n")
        cursors = [int(json.loads(data)["cursor"]) for _, _, data in asyncio.run(nats.messages("TWAMP"))]
        self.assertEqual(len(cursors), len(set(cursors)))
        self.assertLessEqual({int(r["cursor"]) for r in records if "event" in r}, set(cursors))

    def test_what_is_wrong_is_said(self):
        need("nats-server")
        nats = NatsServer(os.path.join(self.directory, "nats"))
        self.stack.callback(nats.stop)
        one = {"name": "n", "servers": [f"nats://127.0.0.1:{nats.port}"]}
        self.load({"nats": [one]})
        self.wait_for(lambda: "uthorization" in self.exporter("n")["detail"])
        self.load({"nats": [{**one, "user": "agent", "secret": "pass word"}]})
        # No stream takes the subjects.
        self.wait_for(lambda: "not stored" in self.exporter("n")["detail"], 30)
        self.load({"nats": [{**one, "user": "agent", "secret": "pass word", "inactive": True}]})
        self.wait_for(lambda: self.state("n") == "INACTIVE")


class Prometheus(Export):
    def test_prometheus_scrapes_and_its_counts_are_those_of_the_statistics(self):
        need("prometheus", "promtool")
        page = free_port()
        self.load({"prometheus": {"port": page}})
        prometheus = PrometheusServer(os.path.join(self.directory, "prometheus"), page)
        self.stack.callback(prometheus.stop)
        query = prometheus.query
        self.wait_for(lambda: query("up") == [1.0], 30)
        self.wait_for(lambda: sum(query("twamp_probes_sent_total")) > 500, 30)
        # A scraper that is away misses nothing of what is counted, and neither does a restart.
        prometheus.stop()
        time.sleep(min(OUTAGE_SECONDS, 10))
        self.assertEqual(self.process.stop(), 0)
        self.process.start()
        self.api.close()
        self.api = self.process.client()
        prometheus.start()
        self.wait_for(lambda: query("up") == [1.0], 30)
        self.api.call("ClientService", "StopConnections", {"all": True})
        time.sleep(3)
        statistics = self.api.call("ResultsService", "GetStatistics",
                                   {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"], "include_histograms": True})["statistics"]
        sent = sum(int(s["figures"]["probes_sent"]) for s in statistics)
        self.wait_for(lambda: sum(query("twamp_probes_sent_total")) == sent, 20)
        samples = sum(int(s["figures"]["rtt"]["samples"]) for s in statistics)
        self.assertEqual(sum(query("twamp_rtt_seconds_count")), samples)
        self.assertEqual(sum(query('twamp_rtt_seconds_bucket{le="+Inf"}')), samples)
        total = sum(float(s["figures"]["rtt"]["mean_ns"]) * int(s["figures"]["rtt"]["samples"]) for s in statistics) / 1e9
        self.assertAlmostEqual(sum(query("twamp_rtt_seconds_sum")), total, delta=total * 1e-6)
        self.assertEqual(len(query('twamp_connection_up{connection="c0"}')), 1)
        self.assertEqual(len(query('twamp_probes_received_total{site="lab"}')), self.CONNECTIONS)
        # Labels of a connection have the same names in its own metrics as in those of its sessions.
        labels = '{region="north",up_link="a",label_session="own"}'
        for name in ("connection_up", "connection_outages_total", "connection_outage_seconds_total", "probes_sent_total"):
            self.assertEqual(len(query(f"twamp_{name}{labels}")), self.CONNECTIONS, name)
        shown = self.api.call("ClientService", "ListConnections")["connections"]
        self.assertEqual({c["labels"]["up-link"] for c in shown}, {"a"})
        quantile = query("histogram_quantile(0.5, sum by (le) (twamp_rtt_seconds_bucket))")[0]
        self.assertTrue(0 < quantile < 0.1, quantile)
        text = self.fetch(f"http://127.0.0.1:{page}/metrics")
        self.assertTrue(text.endswith("# EOF\n"))
        last = self.api.call("ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_LAST_TEST"]})["statistics"]
        words = {(s["connection"], s["figures"]["one_way_validity"].removeprefix("ONE_WAY_VALIDITY_").lower()) for s in last}
        told = re.findall(r'^twamp_last_test_one_way_validity{(.*)} 1$', text, re.M)
        told = [dict(re.findall(r'(\w+)="([^"]*)"', labels)) for labels in told]
        self.assertEqual({(labels["connection"], labels["validity"]) for labels in told}, words)
        told = re.findall(r'^twamp_delay_timestamp_source{(.*)} 1$', text, re.M)
        told = [dict(re.findall(r'(\w+)="([^"]*)"', labels)) for labels in told]
        self.assertLessEqual({("transmit", "kernel"), ("receive", "kernel")},
                             {(labels["timestamp"], labels["source"]) for labels in told})
        self.assertIn("twamp_last_test_schedule_error_max_seconds{", text)
        # Clients without a preference get the older text format, which promtool reads.
        plain = self.fetch(f"http://127.0.0.1:{page}/metrics", accept="")
        samples = lambda text: {line.split(" ")[0] for line in text.splitlines() if line[0] != "#"}  # noqa: E731
        self.assertEqual(samples(plain), samples(text))
        told = subprocess.run(["promtool", "check", "metrics"], input=plain, capture_output=True, text=True)
        self.assertNotIn("error", told.stderr.lower())
        self.assertEqual(told.returncode, 0, told.stderr)
        head = urllib.request.Request(f"http://127.0.0.1:{page}/metrics", method="HEAD")
        with urllib.request.urlopen(head, timeout=10) as answer:
            self.assertEqual((answer.status, answer.read()), (200, b""))
            self.assertIn("version=0.0.4", answer.headers["content-type"])
        for path, code in (("/", 404), ("/metrics/x", 404)):
            with self.assertRaises(urllib.error.HTTPError) as refused:
                self.fetch(f"http://127.0.0.1:{page}{path}")
            self.assertEqual(refused.exception.code, code)

    def test_no_count_goes_back_after_a_kill(self):
        """Prometheus would take a falling counter for a reset and count everything again. The page,
        GetStatistics and the records are read in turn just before each kill."""
        page = free_port()
        self.load({"prometheus": {"port": page}})
        counts = lambda: {  # noqa: E731
            name: float(value) for name, value in re.findall(
                r"^(twamp_(?:tests|probes|availability|rtt|loss)\w*(?:_total|_count|_bucket)(?:{.*})?) (\S+)$",
                self.fetch(f"http://127.0.0.1:{page}/metrics"), re.M)
        }
        self.wait_for(lambda: self.reachable(counts))
        self.wait_for(lambda: sum(n for name, n in counts().items() if "probes_sent" in name) > 500, 30)
        def statistics():
            answer = self.api.call("ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]})
            return {(s["connection"], s["session"]): int(s["figures"]["probes_sent"]) for s in answer["statistics"]}

        for turn in range(9):
            time.sleep(0.7)
            before, sent, cursor = counts(), statistics(), 0
            if turn % 3 == 0:
                before = counts()
            elif turn % 3 == 1:
                cursor = int(self.api.records()[-1]["cursor"])
            else:
                sent = statistics()
            self.process.kill()
            self.process.start()
            self.api.close()
            self.api = self.process.client()
            after = self.wait_for(lambda: self.reachable(counts))
            back = {name: (n, after.get(name)) for name, n in before.items() if after.get(name, 0) < n}
            self.assertEqual(back, {})
            now = statistics()
            self.assertEqual({key: (n, now[key]) for key, n in sent.items() if now[key] < n}, {})
            self.assertEqual([r["cursor"] for r in self.api.records() if int(r["cursor"]) == cursor],
                             [str(cursor)] * (cursor > 0))
        self.assertGreater(len(before), 50)

    @staticmethod
    def reachable(ask):
        try:
            return ask()
        except OSError:
            return None

    def test_a_port_in_use_is_refused_at_the_commit(self):
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            code, _, why = self.api.refused({"export": {"prometheus": {"port": port}}})
            self.assertEqual(code, grpc.StatusCode.FAILED_PRECONDITION)
            self.assertIn("in use", why["export.prometheus"])

    def test_the_page_moves_to_all_addresses_with_its_port(self):
        page = {"address": "127.0.0.1", "port": free_port()}
        for address in ("127.0.0.1", "0.0.0.0", "127.0.0.1"):
            self.api.apply({"export": {"prometheus": {**page, "address": address}}})
            url = f"http://127.0.0.1:{page['port']}/metrics"
            self.assertTrue(self.wait_for(lambda: self.reachable(lambda: self.fetch(url))))
            state = lambda: self.api.call("AgentService", "GetAgent")["exporters"][0]  # noqa: E731
            self.wait_for(lambda: not state().get("last_error"))

    @staticmethod
    def fetch(url, accept="application/openmetrics-text"):
        request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()


CUMULATIVE = 2
PEER = ("server.address", "server.port", "network.transport", "network.type")


class Sink:
    """An OTLP receiver, by the messages that OpenTelemetry publishes for Python."""

    def __init__(self, token=None):
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc

        self.token, self.refuse, self.lock = token, False, threading.Lock()
        self.tests, self.sent, self.rtt, self.events, self.labels = {}, {}, {}, {}, set()
        # Points of all counters and histograms by metric and attributes: start, end and value.
        self.points, self.temporalities, self.peers, self.log_peers = {}, set(), set(), set()
        self.validity, self.stamps = {}, {}
        self.probes = self.test_points = 0
        self.repeated = {}
        sink = self

        class Metrics(metrics_grpc.MetricsServiceServicer):
            def Export(self, request, context):
                sink.authorise(context)
                sink.take_metrics(request)
                return metrics.ExportMetricsServiceResponse()

        class Logs(logs_grpc.LogsServiceServicer):
            def Export(self, request, context):
                sink.authorise(context)
                answer = logs.ExportLogsServiceResponse()
                if sink.refuse:
                    answer.partial_success.rejected_log_records = 1
                    answer.partial_success.error_message = "no thank you"
                sink.take_logs(request)
                return answer

        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), self.server)
        logs_grpc.add_LogsServiceServicer_to_server(Logs(), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def stop(self):
        self.server.stop(0)

    def authorise(self, context):
        given = dict(context.invocation_metadata()).get("authorization")
        if self.token and given != self.token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

    def take_metrics(self, request):
        with self.lock:
            for of_scope in (s for r in request.resource_metrics for s in r.scope_metrics):
                for metric in of_scope.metrics:
                    self.take_series(metric)
                    if metric.name == "twamp.tests":
                        for point in metric.sum.data_points:
                            self.test_points += 1
                            if self.key(point) in self.tests:
                                self.repeated[self.key(point)] = self.repeated.get(self.key(point), 0) + 1
                            self.tests[self.key(point)] = attributes(point)
                            self.labels.add(attributes(point).get("site"))
                    elif metric.name == "twamp.probes.sent":
                        for point in metric.sum.data_points:
                            self.sent[self.key(point)] = point.as_int
                    elif metric.name == "twamp.rtt":
                        for point in metric.histogram.data_points:
                            assert sum(point.bucket_counts) == point.count
                            assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
                            self.rtt[self.key(point)] = point.count
                            given = attributes(point)
                            self.stamps[self.key(point)] = given["twamp.transmit_timestamp_source"], given["twamp.receive_timestamp_source"]
                    elif metric.name in ("twamp.egress", "twamp.ingress"):
                        for point in metric.histogram.data_points:
                            self.validity.setdefault(self.key(point), set()).add(attributes(point)["twamp.one_way_validity"])

    def take_series(self, metric):
        kind = metric.WhichOneof("data")
        if kind == "gauge":
            return
        data = getattr(metric, kind)
        self.temporalities.add(data.aggregation_temporality)
        for point in data.data_points:
            given = attributes(point)
            self.peers.add(tuple(given.get(key) for key in PEER))
            value = point.as_int if kind == "sum" else point.count
            series = self.points.setdefault((metric.name, tuple(sorted(given.items()))), set())
            series.add((point.start_time_unix_nano, point.time_unix_nano, value))

    def totals(self, name):
        """The final values of the series of a counter, by start, as a receiver adds them up."""
        total = 0
        for (metric, _), points in list(self.points.items()):
            if metric == name:
                last = {start: value for start, _, value in sorted(points, key=lambda p: p[1])}
                total += sum(last.values())
        return total

    def take_logs(self, request):
        with self.lock:
            for log in (l for r in request.resource_logs for s in r.scope_logs for l in s.log_records):
                self.log_peers.add(tuple(attributes(log).get(key) for key in PEER))
                if log.event_name == "twamp.probe":
                    self.probes += 1
                else:
                    self.events[attributes(log)["twamp.cursor"]] = log.event_name

    @staticmethod
    def key(point):
        return attributes(point)["twamp.connection"], point.time_unix_nano / 1e9


def attributes(point):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in point.attributes}


class Collector:
    """rotel, a collector written in Rust by others."""

    def __init__(self, port, sink_port):
        import rotel

        self.program = glob.glob(os.path.join(os.path.dirname(rotel.__file__), "rotel-agent"))[0]
        self.port, self.sink_port, self.process = port, sink_port, None
        self.start()

    def start(self):
        http = free_port()
        self.process = subprocess.Popen(
            [self.program, "start", "--otlp-grpc-endpoint", f"127.0.0.1:{self.port}",
             "--otlp-http-endpoint", f"127.0.0.1:{http}", "--exporter", "otlp",
             "--otlp-exporter-endpoint", f"http://127.0.0.1:{self.sink_port}",
             "--otlp-exporter-protocol", "grpc", "--batch-timeout", "200ms"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )

    def stop(self):
        """In good order: it passes on what it has taken."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)


class NatsServer:
    def __init__(self, directory, more=""):
        self.directory, self.port = directory, free_port()
        os.makedirs(directory)
        self.path = os.path.join(directory, "nats.conf")
        with open(self.path, "w") as file:
            file.write(
                f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{directory}" }}\n'
                f'authorization {{ users: [{{user: agent, password: "pass word"}}] }}\n{more}\n'
            )
        self.start()

    def start(self):
        log = open(os.path.join(self.directory, "log"), "ab")
        self.process = subprocess.Popen(["nats-server", "-c", self.path], stdout=log, stderr=log)
        log.close()
        harness.dial(self.port).close()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=20)

    async def publish(self, subject, identifiers):
        """Publishes a message to the stream with each of the identifiers."""
        import nats

        connected = await nats.connect(f"nats://127.0.0.1:{self.port}", user="agent", password="pass word")
        for identifier in identifiers:
            await connected.jetstream().publish(subject, b"{}", headers={"Nats-Msg-Id": identifier})
        await connected.close()

    async def messages(self, stream):
        """Subject, message id and payload of all that is in a stream."""
        import nats

        connected = await nats.connect(f"nats://127.0.0.1:{self.port}", user="agent", password="pass word")
        context = connected.jetstream()
        subscription = await context.pull_subscribe("", durable=None, stream=stream)
        found = []
        total = (await context.stream_info(stream)).state.messages
        while len(found) < total:
            for message in await subscription.fetch(min(500, total - len(found)), timeout=10):
                found.append((message.subject, message.headers["Nats-Msg-Id"], message.data))
                await message.ack()
        await connected.close()
        return found


class PrometheusServer:
    def __init__(self, directory, target):
        self.directory, self.port = directory, free_port()
        os.makedirs(directory)
        self.path = os.path.join(directory, "prometheus.yml")
        with open(self.path, "w") as file:
            file.write(
                "global: {scrape_interval: 1s}\nscrape_configs:\n"
                f"  - job_name: twamp\n    static_configs: [{{targets: ['127.0.0.1:{target}']}}]\n"
            )
        self.start()

    def start(self):
        log = open(os.path.join(self.directory, "log"), "ab")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={self.path}", f"--storage.tsdb.path={self.directory}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"],
            stdout=log, stderr=log,
        )
        log.close()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)

    def query(self, text):
        """The values of an instant query."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?query={urllib.request.quote(text)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                result = json.load(answer)["data"]["result"]
        except (OSError, urllib.error.URLError):
            return []
        return [float(sample["value"][1]) for sample in result]


if __name__ == "__main__":
    sys.exit(unittest.main())
