"""TWAMP Light and STAMP with an implementation that is not ours: stamp-suite from crates.io."""

import json
import os
import shutil
import subprocess

import harness
from harness import client, connection, session, tests

FOREIGN = os.environ.get("STAMP_SUITE") or shutil.which("stamp-suite")


# stamp-suite takes the key in hexadecimal, twamp-agent as text.
SECRET = "0123456789abcdef0123456789abcdef"
KEY = ["--auth-mode", "A", "--hmac-key", SECRET.encode().hex()]
# Names of TLVs on the command line of stamp-suite.
TLVS = ["--cos", "--dscp", "46", "--timestamp-info", "--direct-measurement", "--location",
        "--follow-up-telemetry", "--access-report", "1", "--extra-padding", "20"]


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

    def reflect_theirs(self, authenticated):
        """Checks the report of their sender, with all TLVs, on our reflector."""
        port = harness.free_port()
        api = self.agent().client()
        stamp = {"listen": [{"address": "127.0.0.1", "port": port}], "stateful": True,
                 "prefixes": ["127.0.0.0/8"], "keys": [{"key_id": "k", "secret": SECRET}]}
        if authenticated:
            stamp["authentication_mode"] = "AUTHENTICATION_MODE_AUTHENTICATED"
        api.apply({"server": {"stamp": stamp}})
        status = lambda: api.call("ServerService", "GetServerStatus")
        self.wait_for(lambda: status()["sockets"] and not status()["sockets"][0]["error"])
        done = subprocess.run(
            [FOREIGN, "-r", "127.0.0.1", "-p", str(port), "-c", "50", "-d", "10", "-L", "1",
             "--ssid", "9", *(KEY if authenticated else []), *TLVS, "--output-format", "json"],
            capture_output=True, text=True, timeout=60,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        summary = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual((summary["packets_sent"], summary["packets_received"]), (50, 50))
        measured = summary["measurements"]
        flags = measured["tlv_validation"]["flags"]
        self.assertEqual(set(flags.values()), {0}, flags)
        self.assertEqual(measured["tlv_validation"]["rejected_replies"], 0)
        self.assertEqual(measured["tlv_validation"]["hmac"]["verified"], 50 if authenticated else 0)
        self.assertEqual(measured["direct_measurement"]["forward_missing"], 0)
        self.assertEqual(measured["direct_measurement"]["reverse_missing"], 0)
        self.assertEqual(measured["direct_measurement"]["latest_transmit"]["reflector_tx"], 50)
        # A reply has no transmit timestamp yet when the next one is in the same batch.
        self.assertIn(measured["follow_up"]["matched"], range(40, 50))
        self.assertEqual(measured["follow_up"]["unmatched"], 0)
        self.assertEqual(summary["access_report"]["outcome"], "acknowledged")
        packets = status()["packets"]
        got = [packets[f] for f in ("received", "reflected_stamp", "access_reports",
                                    "tlvs_malformed", "tlvs_integrity_failed", "dropped_integrity_failed")]
        self.assertEqual(got, ["50", "50", "1", "0", "0", "0"])

    def test_their_stamp_sender_and_our_reflector(self):
        self.reflect_theirs(False)

    def test_their_authenticated_stamp_sender_and_our_reflector(self):
        self.reflect_theirs(True)

    def test_their_malformed_tlvs(self):
        """A length beyond the packet: answered with the flag for it, and nothing is lost."""
        port = harness.free_port()
        api = self.agent().client()
        api.apply({"server": {"stamp": {
            "listen": [{"address": "127.0.0.1", "port": port}], "prefixes": ["127.0.0.0/8"]}}})
        status = lambda: api.call("ServerService", "GetServerStatus")
        self.wait_for(lambda: status()["sockets"] and not status()["sockets"][0]["error"])
        done = subprocess.run(
            [FOREIGN, "-r", "127.0.0.1", "-p", str(port), "-c", "10", "-d", "10", "-L", "1",
             "--malformed", "bad-length", "--cos", "--output-format", "json"],
            capture_output=True, text=True, timeout=60,
        )
        summary = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual(summary["packets_received"], 10)
        self.assertEqual(summary["measurements"]["tlv_validation"]["flags"]["malformed"], 10)
        self.assertEqual(status()["packets"]["tlvs_malformed"], "10")

    def measure_with_tlvs(self, authenticated, *options):
        """Our sender with all TLVs to their reflector."""
        port = harness.free_port()
        reflector = subprocess.Popen(
            [FOREIGN, "-i", "-S", "127.0.0.1", "-o", str(port), *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        self.stack.callback(reflector.wait)
        self.stack.callback(reflector.kill)
        api = self.agent().client()
        one = session(
            "s1", probe_count=50, probe_interval="0.01s", data_size=300, destination_port=port,
            dscp_code_points="af11", stamp={
                "ssid": 77, "class_of_service": "ef", "direct_measurement": True, "location": True,
                "timestamp_information": True, "follow_up_telemetry": True,
                "access_report": {"access_id": "ACCESS_ID_3GPP",
                                  "return_code": "ACCESS_RETURN_CODE_AVAILABLE"}})
        fields = {"authentication_mode": "AUTHENTICATION_MODE_AUTHENTICATED", "secret": SECRET}
        api.apply({"client": client(connection(
            "c1", "127.0.0.1", [one], control_type="CONTROL_TYPE_STAMP", test_interval="0.1s",
            **(fields if authenticated else {}),
        ))})
        complete = lambda: [t for t in tests(api.records(), "c1", "COMPLETE")
                            if t["figures"]["probes_lost"] == "0"]
        return port, self.wait_for(complete, 30)[0]["figures"]

    def check_figures(self, port, figures):
        self.assertEqual(figures["probes_received"], "50")
        self.assertEqual((figures["packets_ignored"], figures["packets_integrity_failed"]), ("0", "0"))
        self.assertEqual((figures["egress_tos"], figures["ingress_tos"]), (10 << 2, 46 << 2))
        stamp = figures["stamp"]
        for field in ("tlvs_unrecognised", "tlvs_malformed", "tlvs_integrity_failed", "dscp_refused",
                      "replies_without_ssid", "replies_without_tlvs"):
            self.assertEqual(stamp[field], "0", field)
        self.assertEqual(stamp["observed_destination_address"], f"127.0.0.1:{port}")
        self.assertEqual(stamp["direct_sender_transmitted"] % 50, 0)
        self.assertEqual(stamp["direct_reflector_received"], stamp["direct_sender_transmitted"])
        # Their counter does not include the reply that carries it.
        self.assertEqual(stamp["direct_reflector_transmitted"] + 1, stamp["direct_reflector_received"])
        # Their follow-up repeats the first value: nothing is corrected.
        self.assertEqual(int(figures["reflector_timestamps_corrected"]), 0)

    def test_our_stamp_sender_and_their_reflector(self):
        port, figures = self.measure_with_tlvs(False, "--stateful-reflector")
        self.check_figures(port, figures)
        self.assertTrue(figures["stamp"]["access_report_acknowledged"])

    def test_our_authenticated_stamp_sender_and_their_reflector(self):
        self.check_figures(*self.measure_with_tlvs(
            True, "--stateful-reflector", "--verify-tlv-hmac", *KEY))

    def test_our_stamp_sender_and_their_reflector_without_tlvs(self):
        """A reflector that copies everything after the base packet, as RFC 8762 alone specifies."""
        _, figures = self.measure_with_tlvs(False, "--tlv-mode", "ignore")
        self.assertEqual(figures["probes_received"], "50")
        self.assertNotIn("egress_tos", figures)
        self.assertEqual(figures["stamp"]["tlvs_unrecognised"], "50")

    def test_packets_with_a_wrong_key_are_counted(self):
        """Our reflector drops and counts packets with a wrong key."""
        port = harness.free_port()
        api = self.agent().client()
        api.apply({"server": {"stamp": {
            "listen": [{"address": "127.0.0.1", "port": port}], "prefixes": ["127.0.0.0/8"],
            "authentication_mode": "AUTHENTICATION_MODE_AUTHENTICATED",
            "keys": [{"key_id": "k", "secret": "another secret"}]}}})
        status = lambda: api.call("ServerService", "GetServerStatus")
        self.wait_for(lambda: status()["sockets"] and not status()["sockets"][0]["error"])
        subprocess.run(
            [FOREIGN, "-r", "127.0.0.1", "-p", str(port), "-c", "5", "-d", "10", "-L", "1", *KEY],
            capture_output=True, timeout=60,
        )
        packets = status()["packets"]
        self.assertEqual((packets["dropped_integrity_failed"], packets["reflected"]), ("5", "0"))
