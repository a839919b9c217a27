"""Every mode and extension of TWAMP between two agents, opened by an independent decoder; the
peculiarities of other servers, by servers that have just those; and keys."""

import itertools
import os
import socket
import struct
import threading
import time
import unittest

import decode
import harness
from harness import client, connection, dial, events, free_port, server, session, sh, tests

SECRET = "correct horse battery staple"
MODES = {
    "NONE": decode.UNAUTHENTICATED,
    "AUTHENTICATED": decode.AUTHENTICATED,
    "ENCRYPTED": decode.ENCRYPTED,
    "CONTROL_ONLY_ENCRYPTED": decode.MIXED,
}
EXTENSIONS = {
    "individual_session_control": decode.INDIVIDUAL,
    "reflect_octets": decode.REFLECT,
    "symmetrical_size": decode.SYMMETRICAL,
    "dscp_ecn_monitoring": decode.DSCP_ECN,
    "ptp_timestamps": decode.PTP,
}
KEY_CHAINS = [{"name": "ops", "keys": [{"key_id": "alice", "secret": SECRET}]}]


def only(*names):
    return {name: name in names for name in EXTENSIONS}


def keyed(mode, **fields):
    """Fields of a connection in this mode."""
    if mode == "NONE":
        return fields
    return {"authentication_mode": f"AUTHENTICATION_MODE_{mode}", "key_id": "alice", "secret": SECRET,
            **fields}


def all_modes(**fields):
    return server(
        authentication_modes=[f"AUTHENTICATION_MODE_{mode}" for mode in MODES],
        key_chains=KEY_CHAINS, maximum_connections=1000, maximum_connections_per_client=1000,
        maximum_sessions=1000, **fields,
    )


class EveryMode(harness.TwoHosts):
    SIZES = (0, 1, 27, 64, 200, 1400)

    def wanted(self):
        """Connections by name, with the extensions that are to be in force."""
        sets = [(), *((name,) for name in EXTENSIONS), tuple(EXTENSIONS)]
        for (mode, family), extensions in itertools.product(
            itertools.product(MODES, (4, 6)), sets
        ):
            label = "all" if len(extensions) > 1 else (extensions[0] if extensions else "base")
            sessions = []
            for index, padding in enumerate(self.SIZES):
                header = 48 if mode in ("AUTHENTICATED", "ENCRYPTED") else 14
                reflected = 20 if "reflect_octets" in extensions and padding >= 200 else 0
                sessions.append(session(
                    f"s{index}", data_size=header + padding, probe_count=3, probe_interval="0.02s",
                    dscp_code_points=("be", "ef", "af11", "cs6", "101110", "1")[index],
                    data_fill_with_zeros=index % 2 == 1, reflected_octets=reflected,
                    timestamp_format=f"TIMESTAMP_FORMAT_{'PTP' if index == 0 else 'NTP'}",
                ))
            yield f"{mode}.{family}.{label}", extensions, keyed(
                mode, target_address=self.B if family == 4 else self.B6, test_count=1,
                connect_timeout="30s",
                test_sessions=sessions, extensions=only(*extensions),
            )

    def test_conformance_069_071_072_073_075_080_081_096_106_108_109_on_the_wire(self):
        """All modes, both IP versions, all extensions, paddings of 0 to 1400 octets."""
        a, b = self.agent("a", self.a).client(), self.agent("b", self.b).client()
        path = os.path.join(self.directory, "all.pcap")
        open(path, "w").close()
        os.chmod(path, 0o666)
        os.chmod(self.directory, 0o777)
        wanted = list(self.wanted())
        b.apply({"server": all_modes(timestamp_format="TIMESTAMP_FORMAT_PTP")})
        capture = harness.subprocess.Popen(
            ["ip", "netns", "exec", self.b, "dumpcap", "-q", "-P", "-B", "32", "-i", "veth0", "-w", path],
            stderr=harness.subprocess.PIPE,
        )
        self.wait_for(lambda: b"File:" in capture.stderr.readline())
        drain = threading.Thread(target=capture.stderr.read, daemon=True)
        drain.start()
        a.apply({"client": client(*({"name": name, **fields} for name, _, fields in wanted))})
        completed = lambda: all(  # noqa: E731
            c["state"] == "CONNECTION_STATE_COMPLETED"
            for c in a.call("ClientService", "ListConnections")["connections"])
        self.wait_for(completed, seconds=60)
        time.sleep(1)
        capture.send_signal(harness.signal.SIGINT)
        capture.wait()
        drain.join()
        capture.stderr.close()
        # Every number that the agent has is as it should be.
        results = {}
        for record in a.records(filter={"kinds": ["RECORD_KIND_TEST_RESULT"]}):
            results[record["connection"], record["session"]] = record["test_result"]
        self.assertEqual(len(results), len(wanted) * len(self.SIZES))
        for key, result in results.items():
            figures = result["figures"]
            got = [figures[f] for f in ("probes_received", "packets_ignored", "packets_integrity_failed")]
            self.assertEqual(got, ["3", "0", "0"], key)
            dscp = (0, 46, 10, 48, 46, 1)[int(key[1][1:])]
            monitored = any(name == key[0] and "dscp_ecn_monitoring" in e for name, e, _ in wanted)
            self.assertEqual(figures.get("egress_tos"), dscp << 2 if monitored else None, key)
            self.assertEqual(figures["ingress_tos"], dscp << 2, key)
        # And so is every octet on the wire: the decoder raises over a wrong HMAC.
        secrets = {b"alice": SECRET.encode()}
        connections = decode.decode(path, secrets)
        self.assertEqual(len(connections), len(wanted))
        seen = sorted((c.mode, c.sessions[0]["version"]) for c in connections)
        expected = sorted(
            (MODES[name.split(".")[0]] | sum(EXTENSIONS[e] for e in extensions),
             int(name.split(".")[1]))
            for name, extensions, _ in wanted)
        self.assertEqual(seen, expected)
        for found in connections:
            self.check(found)

    def check(self, found):
        keys = bool(found.mode & (decode.AUTHENTICATED | decode.ENCRYPTED))
        self.assertEqual(len(found.sessions), len(self.SIZES))
        for index, (one, padding) in enumerate(zip(found.sessions, self.SIZES)):
            where = f"mode {found.mode:#x}, session {index}"
            dscp = (0, 46, 10, 48, 46, 1)[index]
            self.assertEqual((one["dscp"], one["timeout"]), (dscp, 0.5), where)
            probes, replies = one["probes"], one["replies"]
            self.assertEqual(sorted(probes), [0, 1, 2], where)
            self.assertEqual([r["number"] for r in replies], [0, 1, 2], where)
            octets = (48 if keys else 14) + padding
            least = 112 if keys else (44 if found.mode & decode.DSCP_ECN else 41)
            if found.mode & decode.SYMMETRICAL:
                octets = max(octets, least)
            for reply in replies:
                probe = probes[reply["sequence"]]
                self.assertEqual(probe["octets"], octets, where)
                self.assertEqual(len(probe["padding"]), one["padding"], where)
                self.assertEqual(reply["octets"], max(octets, least), where)
                self.assertEqual((probe["ip_ttl"], reply["ip_ttl"], reply["ttl"]), (255,) * 3, where)
                self.assertEqual((probe["ip_tos"], reply["ip_tos"]), (dscp << 2,) * 2, where)
                self.assertEqual(reply["tos"], dscp << 2 if found.mode & decode.DSCP_ECN else 0, where)
                self.assertEqual(reply["t1"], probe["time"], where)
                self.assertEqual(reply["of_probe"], probe["estimate"], where)
                self.assertNotEqual(probe["estimate"] & 0xFF, 0, where)
                self.assertTrue(probe["padding"].startswith(reply["padding"]), where)
                if index % 2 == 1:
                    self.assertEqual(probe["padding"], bytes(len(probe["padding"])), where)
                elif padding > 27:
                    self.assertNotEqual(probe["padding"][-8:], bytes(8), where)
                ptp = bool(found.mode & decode.PTP)
                self.assertEqual(bool(probe["estimate"] & 0x4000), ptp and index == 0, where)
                self.assertEqual(bool(reply["estimate"] & 0x4000), ptp, where)
                t1, t2, t3 = (unix(t, e) for t, e in (
                    (probe["time"], probe["estimate"]), (reply["t2"], reply["estimate"]),
                    (reply["t3"], reply["estimate"])))
                self.assertLess(abs(t2 - t1), 1, where)
                self.assertLessEqual(t2, t3, where)
                self.assertLess(abs(t3 - time.time()), 300, where)


def unix(value, estimate):
    """Seconds since 1970 of a timestamp in the format that its estimate tells."""
    seconds, rest = value >> 32, value & 0xFFFFFFFF
    if estimate & 0x4000:
        return seconds - 37 + rest / 1e9
    return seconds - 2208988800 + rest / 2**32


class Keys(harness.Case):
    def setUp(self):
        super().setUp()
        self.port = free_port()
        self.api = self.agent().client()

    def one(self, **fields):
        return connection("c1", "127.0.0.1", destination_port=self.port, test_interval="0.3s",
                          **keyed("ENCRYPTED", **fields))

    def running(self):
        return self.api.connection("c1")["state"] == "CONNECTION_STATE_RUNNING"

    def test_keys_change_without_an_outage(self):
        listen = {"port": self.port, "authentication_modes": ["AUTHENTICATION_MODE_ENCRYPTED"]}
        chains = lambda *keys: [{"name": "ops", "keys": [  # noqa: E731
            {"key_id": k, "secret": s} for k, s in keys]}]
        old, new = ("alice", SECRET), ("alice-2", "next year's secret")
        self.api.apply({"server": server(key_chains=chains(old), **listen),
                        "client": client(self.one())})
        self.wait_for(self.running)
        for keys, (key_id, secret) in (((old, new), old), ((old, new), new), ((new,), new)):
            self.api.apply({"server": server(key_chains=chains(*keys), **listen),
                            "client": client(self.one(key_id=key_id, secret=secret))})
            self.wait_for(self.running)
        # One name with two secrets.
        third = ("alice-2", "the one after")
        self.api.apply({"server": server(key_chains=chains(new, third), **listen),
                        "client": client(self.one(key_id=third[0], secret=third[1]))})
        self.wait_for(self.running)
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])
        # One of two secrets of a name that is taken away takes its connections with it.
        refused = lambda: ((self.api.connection("c1").get("last_failure") or {}).get("cause")  # noqa: E731
                           == "FAILURE_CAUSE_BAD_KEY")
        self.api.apply({"server": server(key_chains=chains(new), **listen),
                        "client": client(self.one(key_id=third[0], secret=third[1]))})
        self.wait_for(refused)
        self.api.apply({"server": server(key_chains=chains(new, third), **listen),
                        "client": client(self.one(key_id=third[0], secret=third[1]))})
        self.wait_for(self.running)
        # A key that is taken away takes its connections with it.
        self.api.apply({"server": server(key_chains=chains(old), **listen),
                        "client": client(self.one(key_id=third[0], secret=third[1]))})
        self.wait_for(lambda: (self.api.connection("c1").get("last_failure") or {}).get("cause")
                      == "FAILURE_CAUSE_BAD_KEY")

    def test_secrets_are_never_shown(self):
        config = {"server": server(port=self.port, key_chains=KEY_CHAINS,
                                   authentication_modes=["AUTHENTICATION_MODE_ENCRYPTED"]),
                  "client": client(self.one())}
        self.api.apply(config)
        shown = self.api.call("ConfigService", "GetConfig")["config"]
        self.assertNotIn(SECRET, str(shown))
        one = shown["client"]["control_connections"][0]
        self.assertTrue(one["secret_digest"])
        self.assertEqual(one["secret_digest"],
                         shown["server"]["key_chains"][0]["keys"][0]["secret_digest"])
        # A displayed configuration can be applied again without a change.
        self.assertEqual(self.api.apply(shown)["changes"], [])
        self.wait_for(self.running)
        one["secret_digest"] = "00" * 16
        code, _, fields = self.api.refused(shown)
        self.assertIn("client.control_connections[0].secret_digest", fields)
        agent = self.agents[0]
        agent.stop()
        self.assertNotIn(SECRET, agent.log())
        self.assertEqual(os.stat(agent.directory).st_mode & 0o077, 0, "nobody else may look")

    def test_conformance_017_an_unknown_key_and_a_wrong_secret_look_the_same(self):
        self.api.apply({"server": server(
            port=self.port, key_chains=KEY_CHAINS, key_derivation_count=65536,
            authentication_modes=["AUTHENTICATION_MODE_ENCRYPTED"])})

        def refusal(key_id):
            with dial(self.port) as peer:
                peer.recv(64, socket.MSG_WAITALL)
                begun = time.monotonic()
                peer.sendall(struct.pack(">I", 4) + key_id.ljust(80, b"\0") + os.urandom(80))
                said = b""
                while octets := peer.recv(1024):
                    said += octets
                return said, time.monotonic() - begun

        # The derivation is most of what is measured.
        known = [refusal(b"alice") for _ in range(5)]
        unknown = [refusal(b"mallory") for _ in range(5)]
        self.assertEqual({said for said, _ in known + unknown}, {bytes(15) + b"\x01" + bytes(32)})
        middle = lambda taken: sorted(seconds for _, seconds in taken)[2]  # noqa: E731
        self.assertLess(middle(known) / middle(unknown), 2)
        self.assertLess(middle(unknown) / middle(known), 2)
        keys = self.api.call("ServerService", "GetServerStatus")["keys"]
        self.assertEqual((keys["refused"], keys["accepted"]), ("10", "0"))

    def test_derivation_for_strangers_disturbs_nobody(self):
        """Clients with a wrong secret, as many as they like: others are served, a core is not."""
        self.api.apply({
            "server": server(port=self.port, key_chains=KEY_CHAINS, key_derivation_count=65536,
                             maximum_connections=200, maximum_connections_per_client=200,
                             authentication_modes=["AUTHENTICATION_MODE_ENCRYPTED",
                                                   "AUTHENTICATION_MODE_NONE"]),
        })
        peers = []
        for _ in range(100):
            peer = dial(self.port)
            self.addCleanup(peer.close)
            peer.recv(64, socket.MSG_WAITALL)
            peer.sendall(struct.pack(">I", 4) + b"alice".ljust(80, b"\0") + os.urandom(80))
            peers.append(peer)
        pid = self.agents[0].process.pid
        ticks = lambda: sum(int(t) for t in open(f"/proc/{pid}/stat").read().split()[13:15])  # noqa: E731
        before, begun = ticks(), time.monotonic()
        with dial(self.port) as peer:
            peer.settimeout(2)
            peer.recv(64, socket.MSG_WAITALL)
            peer.sendall(struct.pack(">I", 1) + bytes(160))
            self.assertEqual(peer.recv(48, socket.MSG_WAITALL)[15], 0)
        time.sleep(2)
        used = (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)
        self.assertLess(used, 0.6)


class Scripted(threading.Thread):
    """A server that does what its script says with each connection."""

    def __init__(self, script):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.script, self.responses = script, []
        self.start()

    def run(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    def serve(self, peer):
        with peer:
            try:
                self.script(self, peer)
            except (OSError, struct.error):
                pass

    def close(self):
        self.listener.close()


def take(peer, octets):
    data = peer.recv(octets, socket.MSG_WAITALL)
    if len(data) < octets:
        raise OSError("closed")
    return data


def greet(self, peer, modes):
    peer.sendall(bytes(12) + struct.pack(">I", modes) + os.urandom(32) + struct.pack(">I", 2048) + bytes(12))
    mode = struct.unpack(">I", take(peer, 164)[:4])[0]
    self.responses.append(mode)
    return mode


def reflect(udp):
    """Answers probes as perfSONAR does, of 41 octets or more."""
    number = 0
    while True:
        try:
            probe, source = udp.recvfrom(2048)
        except OSError:
            return
        now = int((time.time() + 2208988800) * 2**32)
        reply = struct.pack(">IQH2xQ", number, now, 1, now) + probe[:14] + bytes(2) + b"\xff"
        udp.sendto(reply + probe[14:-27] if len(probe) > 41 else reply, source)
        number += 1


class Peculiar(harness.Case):
    """Servers that are not as the RFCs have them, and are met all the same."""

    def setUp(self):
        super().setUp()
        self.api = self.agent().client()

    def scripted(self, script):
        peer = Scripted(script)
        self.stack.callback(peer.close)
        return peer

    def measure(self, peer, **fields):
        one = session("s1", probe_count=3, probe_interval="0.05s", loss_timeout="0.2s", data_size=60)
        self.api.apply({"client": client(connection(
            "c1", "127.0.0.1", [one], destination_port=peer.port, test_interval="0.3s",
            connect_timeout="0.5s", **fields))})

    def complete(self):
        found = [t for t in tests(self.api.records(), "c1", "COMPLETE")
                 if t["figures"]["probes_lost"] == "0"]
        return found and found[-1]

    def session_of(self, peer, offer=None):
        """Serves one session as an ordinary server does, on a port of its own."""
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        threading.Thread(target=reflect, args=(udp,), daemon=True).start()
        self.addCleanup(udp.close)
        take(peer, 112)
        peer.sendall(struct.pack(">BBH", 0, 0, udp.getsockname()[1]) + os.urandom(16) + bytes(28))
        take(peer, 32)
        peer.sendall(bytes(32))
        stop = take(peer, 32)
        udp.close()
        return stop

    def test_extra_mode_bits_that_are_offered_and_refused(self):
        """Closes on any mode but exactly 1, 2, 4 or 8, as perfSONAR does, though it offers more."""
        def script(self_, peer):
            mode = greet(self_, peer, 0x37F)
            if mode in (1, 2, 4, 8):
                peer.sendall(bytes(48))
                self.session_of(peer)

        peer = self.scripted(script)
        self.measure(peer)
        self.wait_for(self.complete)
        self.assertEqual(self.api.connection("c1")["mode"], 1)
        self.assertEqual(peer.responses, [0x311, 0x311, 1], "once may be chance")
        # And remembered: the next attempt goes without.
        self.api.call("ClientService", "StopConnections", {"names": ["c1"]})
        self.wait_for(lambda: self.api.connection("c1")["state"] == "CONNECTION_STATE_STOPPED")
        self.api.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: len(peer.responses) > 3)
        self.assertEqual(peer.responses[3], 1)
        self.api.call("ClientService", "StopConnections", {"names": ["c1"]})
        self.wait_for(lambda: self.api.connection("c1")["state"] == "CONNECTION_STATE_STOPPED")
        probe = self.api.call("ClientService", "ProbeServer", {
            "target_address": "127.0.0.1", "destination_port": peer.port})
        self.assertEqual((probe["stage"], probe["extensions_refused"]), ("PROBE_STAGE_DONE", True))
        self.assertIn("works without extensions only", probe["detail"])

    def test_extensions_that_are_offered_and_not_answered(self):
        def script(self_, peer):
            if greet(self_, peer, 0x11) == 1:
                peer.sendall(bytes(48))
                self.session_of(peer)
            else:
                time.sleep(2)

        peer = self.scripted(script)
        self.measure(peer)
        self.wait_for(self.complete)
        self.assertEqual(peer.responses[:3], [0x11, 0x11, 1], "once may be chance")

    def test_a_base_server_is_asked_for_nothing_more(self):
        def script(self_, peer):
            greet(self_, peer, 0x0F)
            peer.sendall(bytes(48))
            self.session_of(peer)

        peer = self.scripted(script)
        self.measure(peer)
        self.wait_for(self.complete)
        self.assertEqual(peer.responses, [1])

    def test_a_counter_offered_port_and_a_reflector_that_stops_at_once(self):
        """The port of Accept-Session is used; probes are answered or lost before Stop-Sessions."""
        stops = []

        def script(self_, peer):
            greet(self_, peer, 1)
            peer.sendall(bytes(48))
            stops.append((self.session_of(peer), time.monotonic()))

        peer = self.scripted(script)
        self.measure(peer, test_count=1)
        self.wait_for(lambda: self.api.connection("c1")["state"] == "CONNECTION_STATE_COMPLETED")
        self.wait_for(lambda: stops)
        self.assertEqual(stops[0][0][:8], bytes([3, 0, 0, 0, 0, 0, 0, 1]))
        received = self.wait_for(self.complete)["figures"]["probes_received"]
        self.assertEqual(received, "3")

    def test_no_answer_to_a_request(self):
        """As perfSONAR to what it does not like: the client has a patience of its own."""
        def script(self_, peer):
            greet(self_, peer, 1)
            peer.sendall(bytes(48))
            take(peer, 112)
            time.sleep(3)

        self.measure(self.scripted(script))
        lost = self.wait_for(lambda: self.api.connection("c1").get("last_loss"))
        self.assertEqual(lost["cause"], "FAILURE_CAUSE_RESPONSE_TIMEOUT")
        self.assertIn("Accept-Session", lost["detail"])

    def test_a_server_that_does_not_answer_the_third_request_measures_two(self):
        def script(self_, peer):
            greet(self_, peer, 1)
            peer.sendall(bytes(48))
            udps = []
            while True:
                command = take(peer, 1)[0]
                if command == 5:
                    take(peer, 111)
                    if len(udps) == 2:
                        time.sleep(3)
                        return
                    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    self.addCleanup(udp.close)
                    udp.bind(("127.0.0.1", 0))
                    threading.Thread(target=reflect, args=(udp,), daemon=True).start()
                    udps.append(udp)
                    peer.sendall(struct.pack(">BBH", 0, 0, udp.getsockname()[1]) + os.urandom(16) + bytes(28))
                else:
                    take(peer, 31)
                    peer.sendall(bytes(32))

        peer = self.scripted(script)
        sessions = [session(name, probe_count=3, probe_interval="0.05s", loss_timeout="0.2s", data_size=60)
                    for name in ("s1", "s2", "s3")]
        self.api.apply({"client": client(connection(
            "c1", "127.0.0.1", sessions, destination_port=peer.port, test_interval="0.3s", connect_timeout="0.5s"))})
        measured = lambda: {t["session"] for t in tests(self.api.records(), "c1", "COMPLETE")  # noqa: E731
                            if t["figures"]["probes_lost"] == "0"}
        self.wait_for(lambda: len(measured()) == 2)

    def test_a_light_reflector_with_ptp_timestamps_is_measured_where_that_is_configured(self):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self.addCleanup(udp.close)
        formats = set()

        def reflect_ptp():
            while True:
                try:
                    probe, source = udp.recvfrom(2048)
                except OSError:
                    return
                formats.add(probe[12] >> 6 & 1)
                now = time.time_ns() + 37 * 10**9  # TAI
                stamp = struct.pack(">II", now // 10**9, now % 10**9)
                udp.sendto(probe[:4] + stamp + b"\x40\x01\0\0" + stamp + probe[:14] + b"\0\0\xff", source)

        threading.Thread(target=reflect_ptp, daemon=True).start()
        one = session("s1", probe_count=3, probe_interval="0.05s", loss_timeout="0.2s", timestamp_format="TIMESTAMP_FORMAT_PTP",
                      destination_port=udp.getsockname()[1])
        self.api.apply({"client": client(connection("c1", "127.0.0.1", [one], control_type="CONTROL_TYPE_LIGHT",
                                                    test_interval="0.3s"))})
        self.wait_for(self.complete)
        delay = self.complete()["figures"]["egress"]
        self.assertLess(abs(int(delay["max_ns"])), 10**9, delay)
        self.assertEqual(formats, {1}, "T1 is in this format, too")

    def test_accept_values_that_are_undefined_and_answers_to_stop(self):
        def script(self_, peer):
            greet(self_, peer, 1)
            peer.sendall(bytes(48))
            if len(self_.responses) == 1:
                take(peer, 112)
                peer.sendall(b"\x09" + bytes(47))
                return
            self.session_of(peer)
            # An answer to a late Stop-Sessions, twice, as perfSONAR gives it.
            peer.sendall((b"\x03" + bytes(47)) * 2)

        peer = self.scripted(script)
        self.measure(peer)
        lost = self.wait_for(lambda: events(self.api.records(), "CONNECTION_LOST"))[0]
        self.assertEqual((lost["cause"], lost["accept_code"]), ("FAILURE_CAUSE_REJECTED", 1))
        self.wait_for(self.complete)
        self.api.call("ClientService", "StopConnections", {"names": ["c1"]})
        self.wait_for(lambda: self.api.connection("c1")["state"] == "CONNECTION_STATE_STOPPED")

    def test_probe_server_says_why_not(self):
        """One sentence for each way in which a server fails; nothing stays configured or stored."""
        def stage(at):
            def script(self_, peer):
                if at == "greeting":
                    return
                greet(self_, peer, {"refuses": 0, "modes": 6}.get(at, 1))
                peer.sendall(bytes(15) + bytes([5 if at == "start" else 0]) + bytes(32))
                take(peer, 112)
                if at == "session":
                    peer.sendall(b"\x04" + bytes(47))
                    return
                # A port without a listener.
                peer.sendall(struct.pack(">BBH", 0, 0, 9) + bytes(44))
                take(peer, 32)
                peer.sendall(bytes(32))
                take(peer, 32)
            return script

        probe = lambda port, **fields: self.api.call("ClientService", "ProbeServer", {  # noqa: E731
            "target_address": "127.0.0.1", "destination_port": port, "timeout": "0.5s", **fields})
        for at, wanted, cause, words in (
            ("greeting", "GREETING", "CLOSED_BY_SERVER", "closed"),
            ("refuses", "GREETING", "REJECTED", "refuses service"),
            ("modes", "GREETING", "NO_COMMON_MODE", "0x6 (authenticated, encrypted)"),
            ("start", "SETUP", "REJECTED", "temporary resource limitation"),
            ("session", "REQUEST", "REJECTED", "permanent resource limitation"),
            ("udp", "PROBE", "UNSPECIFIED", "check that UDP can pass"),
        ):
            found = probe(self.scripted(stage(at)).port)
            self.assertEqual(found["stage"], f"PROBE_STAGE_{wanted}", found)
            self.assertEqual(found["cause"], f"FAILURE_CAUSE_{cause}", found)
            self.assertIn(words, found["detail"])
        found = probe(free_port())
        self.assertEqual((found["stage"], found["cause"]),
                         ("PROBE_STAGE_CONNECT", "FAILURE_CAUSE_REFUSED"))
        self.assertEqual(self.api.call("ClientService", "ListConnections")["connections"], [])
        self.assertEqual(events(self.api.records(), "CONNECTION_LOST"), [])

    def test_servers_of_other_protocols_are_named(self):
        import http.server
        import ssl

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
        secure = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key, certificate = (os.path.join(self.directory, name) for name in ("key", "certificate"))
        harness.need("openssl")
        sh("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", certificate)
        context.load_cert_chain(certificate, key)
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        for one in (web, secure):
            threading.Thread(target=one.serve_forever, daemon=True).start()
            self.stack.callback(one.server_close)
            self.stack.callback(one.shutdown)
        say = lambda octets: self.scripted(lambda _, peer: (peer.sendall(octets), time.sleep(3))).port  # noqa: E731
        for port, words in (
            (web.server_port, "an HTTP server"),
            (secure.server_port, "a TLS server"),
            (say(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), "an SSH server"),
            (say(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\nConnection: close\r\n\r\n" + b"<html>" * 20), "an HTTP server"),
            (say(b"220 mail.example ESMTP\r\n"), "an FTP or SMTP server"),
            (say(bytes.fromhex("000012040000000000") + bytes(18)), "an HTTP/2 server"),
            (say(bytes.fromhex("fffd18fffd20fffd23")), "a telnet server"),
            (say(b"\xff" * 16 + struct.pack(">HBBHH", 29, 1, 4, 64512, 90) + bytes(5)), "a BGP router"),
            (say(struct.pack("<I", 74) + b"\x0a8.0.36\0" + bytes(66)), "a MySQL or MariaDB server"),
            (self.scripted(lambda _, peer: [peer.sendall(o) for o in iter(lambda: peer.recv(512), b"")]).port,
             "an echo server"),
        ):
            found = self.api.call("ClientService", "ProbeServer", {
                "target_address": "127.0.0.1", "destination_port": port, "timeout": "0.5s"})
            self.assertEqual(found["cause"], "FAILURE_CAUSE_PROTOCOL_ERROR", found)
            self.assertIn(words, found["detail"])


def tlvs(octets):
    """The TLVs of a STAMP packet: where each begins, its flags, its type, its value."""
    found, at = [], 0
    while at < len(octets):
        flags, kind, length = struct.unpack(">BBH", octets[at:at + 4])
        found.append((at, flags, kind, octets[at + 4:at + 4 + length]))
        at += 4 + length
    return found


class BothEndsOfStamp(harness.TwoHosts):
    """STAMP between two agents, open and authenticated, over both IP versions, with all extensions:
    every HMAC on the wire, and what came of it."""

    def test_every_extension_on_both_ends(self):
        a, b = self.agent("a", self.a).client(), self.agent("b", self.b).client()
        asked = {"class_of_service": "af41", "direct_measurement": True, "follow_up_telemetry": True,
                 "location": True, "timestamp_information": True}
        ports = {"NONE": 863, "AUTHENTICATED": 864}
        ends = {"v4": (self.B, self.A), "v6": (self.B6, self.A6)}
        path = os.path.join(self.directory, "stamp.pcapng")
        with self.capture(self.a, path):
            for mode, port in ports.items():
                keys = [{"key_id": "k", "secret": SECRET}] if mode != "NONE" else []
                b.apply({"server": {"stamp": {
                    "listen": [{"address": "::", "port": port}], "stateful": True, "keys": keys,
                    "prefixes": ["0.0.0.0/0", "::/0"], "authentication_mode": f"AUTHENTICATION_MODE_{mode}"}}})
                secret = {"authentication_mode": f"AUTHENTICATION_MODE_{mode}", "secret": SECRET} if keys else {}
                a.apply({"client": client(*(
                    connection(f"{mode}-{version}", ends[version][0], [session(
                        "s1", destination_port=port, probe_count=10, probe_interval="0.05s",
                        dscp_code_points="af11", data_size=512, stamp=asked)],
                        control_type="CONTROL_TYPE_STAMP", test_interval="60s", **secret)
                    for version in ends))})
                for version in ends:
                    self.wait_for(lambda: tests(a.records(), f"{mode}-{version}", "COMPLETE"))
        for mode, version in itertools.product(ports, ends):
            figures = tests(a.records(), f"{mode}-{version}", "COMPLETE")[0]["figures"]
            told = figures["stamp"]
            with self.subTest(mode=mode, version=version):
                self.assertEqual((figures["probes_received"], figures["probes_lost"]), ("10", "0"))
                # DSCP as the probe came, and as the reply was asked to go.
                self.assertEqual((figures["egress_tos"] >> 2, figures["ingress_tos"] >> 2), (10, 34))
                self.assertEqual(
                    [told[f"direct_{end}"] for end in ("sender_transmitted", "reflector_received", "reflector_transmitted")],
                    [10, 10, 10])
                # A loaded host answers several probes at once, before the stamps of the replies are known.
                self.assertGreaterEqual(int(figures["reflector_timestamps_corrected"]), 5)
                self.assertIn(ends[version][1], told["observed_source_address"])
                self.assertGreater(told["reflector_sync_source"], 0)
                flags = [told[name] for name in ("tlvs_unrecognised", "tlvs_malformed", "tlvs_integrity_failed")]
                self.assertEqual(flags, ["0", "0", "0"])
        self.on_the_wire(path, ports)

    def on_the_wire(self, path, ports):
        import hashlib
        import hmac

        mac = lambda octets: hmac.new(SECRET.encode(), octets, hashlib.sha256).digest()[:16]  # noqa: E731
        seen = {mode: 0 for mode in ports}
        fields = ("udp.srcport", "udp.dstport", "udp.payload")
        shown = sh("tshark", "-r", path, "-Y", "udp.port in {863, 864}", "-T", "fields",
                   *(argument for field in fields for argument in ("-e", field)))
        for line in shown.splitlines():
            source, destination, payload = line.split("\t")
            mode = "AUTHENTICATED" if "864" in (source, destination) else "NONE"
            octets, base = bytes.fromhex(payload), 112 if mode == "AUTHENTICATED" else 44
            seen[mode] += 1
            self.assertEqual(len(octets), 512)
            found = tlvs(octets[base:])
            self.assertEqual({flags & 0x60 for _, flags, _, _ in found}, {0}, "neither malformed nor failed")
            kinds = [kind for _, _, kind, _ in found]
            self.assertLessEqual({1, 2, 3, 4, 5, 7}, set(kinds))
            if mode == "AUTHENTICATED":
                self.assertEqual(octets[96:112], mac(octets[:96]))
                at, _, kind, value = found[-1]
                self.assertEqual((kind, value), (8, mac(octets[:4] + octets[base:base + at])))
        self.assertGreaterEqual(min(seen.values()), 40)


class Syn(harness.TwoHosts):
    def test_conformance_022_the_dscp_of_the_syn(self):
        """With tcp_reflect_tos, the server's packets carry the DSCP of the client's SYN."""
        harness.need("tshark")
        self.inside(self.b, "sysctl", "-qw", "net.ipv4.tcp_reflect_tos=1")
        a, b = self.agent("a", self.a).client(), self.agent("b", self.b).client()
        path = os.path.join(self.directory, "syn.pcapng")
        open(path, "w").close()
        os.chmod(path, 0o666)
        os.chmod(self.directory, 0o777)
        b.apply({"server": server()})
        with self.capture(self.a, path):
            a.apply({"client": client(connection("c1", self.B, control_dscp="cs6", test_count=1))})
            self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_COMPLETED")
        shown = sh("tshark", "-r", path, "-Y", f"tcp.port==862 && ip.src=={self.B}",
                   "-T", "fields", "-e", "ip.dsfield.dscp")
        self.assertEqual(set(shown.split()), {"48"})


if __name__ == "__main__":
    unittest.main()
