"""Light mode with an implementation that is not ours: stamp-suite from crates.io."""

import json
import os
import shutil
import subprocess

import harness
from harness import client, connection, session, tests

FOREIGN = os.environ.get("STAMP_SUITE") or shutil.which("stamp-suite")


class StampSuite(harness.Case):
    def setUp(self):
        super().setUp()
        self.assertTrue(FOREIGN, "stamp-suite is not installed: cargo install stamp-suite")

    def test_their_sender_and_our_reflector(self):
        port = harness.free_port()
        agent = self.agent()
        api = agent.client()
        api.apply({"server": {"light": {
            "listen": [{"address": "127.0.0.1", "port": port}],
            "prefixes": ["127.0.0.0/8"], "stateful": True,
        }}})
        answered = lambda: api.call("ServerService", "GetServerStatus")["sockets"]
        self.wait_for(lambda: answered() and not answered()[0]["error"])
        done = subprocess.run(
            [FOREIGN, "-r", "127.0.0.1", "-p", str(port), "-c", "50", "-d", "10", "-L", "1",
             "--output-format", "json"],
            capture_output=True, text=True, timeout=60,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        summary = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual((summary["packets_sent"], summary["packets_received"]), (50, 50))
        self.assertEqual(summary["measurements"]["last_reflector_sequence"], 49)
        self.assertEqual(summary["measurements"]["unknown_replies"], 0)
        self.assertGreater(summary["min_rtt_ms"], 0)
        self.assertLess(summary["owd"]["reverse_median_ms"], 100, "T3 is in their time format")
        packets = api.call("ServerService", "GetServerStatus")["packets"]
        self.assertEqual((packets["received"], packets["reflected_light"]), ("50", "50"))

    def measure_theirs(self, *options, **fields):
        port = harness.free_port()
        reflector = subprocess.Popen(
            [FOREIGN, "-i", "-S", "127.0.0.1", "-o", str(port), *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        self.stack.callback(reflector.wait)
        self.stack.callback(reflector.kill)
        api = self.agent().client()
        one = session("s1", probe_count=50, probe_interval="0.01s", data_size=44,
                      destination_port=port, **fields)
        api.apply({"client": client(connection(
            "c1", "127.0.0.1", [one], control_type="CONTROL_TYPE_LIGHT", test_interval="0.1s",
        ))})
        # The first test may come before their socket is open.
        complete = lambda: [t for t in tests(api.records(), "c1", "COMPLETE")
                            if t["figures"]["probes_lost"] == "0"]
        return self.wait_for(complete, 30)[0]["figures"]

    def test_our_sender_and_their_stateless_reflector(self):
        figures = self.measure_theirs()
        self.assertEqual(figures["probes_received"], "50")
        self.assertEqual(figures["rtt"]["samples"], "50")
        self.assertGreater(int(figures["rtt"]["min_ns"]), 0)
        self.assertEqual(figures["samples_invalid"], "0")
        self.assertEqual(figures["packets_ignored"], "0")

    def test_our_sender_and_their_stateful_reflector(self):
        figures = self.measure_theirs("--stateful-reflector")
        self.assertEqual(figures["probes_received"], "50")
        self.assertEqual(figures["probes_duplicate"], "0")
