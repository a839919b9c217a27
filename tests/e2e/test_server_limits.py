"""Limits of the server role that one client reaches, and peers that are sloppy: nobody else is kept out, and
everyone learns the reason."""

import os
import socket
import struct
import subprocess
import time

import grpc
import harness
from harness import Case, TwoHosts, client, connection, dump, free_port, server, session, sh, tests


def exactly(peer, octets):
    got = b""
    while len(got) < octets:
        more = peer.recv(octets - len(got))
        if not more:
            raise EOFError(f"closed after {len(got)} octets")
        got += more
    return got


class Peer:
    """A client that sends raw octets, from an address of its own."""

    def __init__(self, case, port, source="127.0.0.1", target=None):
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        self.tcp = socket.socket(family)
        case.addCleanup(self.tcp.close)
        self.case, self.source = case, source
        self.tcp.settimeout(10)
        self.tcp.bind((source, 0))
        self.tcp.connect((target or source.replace(source, "::1" if ":" in source else "127.0.0.1"), port))
        self.greeting = exactly(self.tcp, 64)
        self.modes = struct.unpack(">I", self.greeting[12:16])[0]

    def set_up(self):
        self.tcp.sendall(struct.pack(">I", 1) + bytes(160))
        self.case.assertEqual(exactly(self.tcp, 48)[15], 0)
        return self

    def request(self, timeout=1, ip_version=None):
        """Requests a session; its Accept value and port."""
        udp = socket.socket(self.tcp.family, socket.SOCK_DGRAM)
        self.case.addCleanup(udp.close)
        udp.bind((self.source, 0))
        udp.settimeout(5)
        request = bytearray(112)
        request[0] = 5
        request[1] = (6 if ":" in self.source else 4) if ip_version is None else ip_version
        request[12:16] = struct.pack(">HH", udp.getsockname()[1], udp.getsockname()[1])
        request[64:68] = struct.pack(">I", 27)
        request[76:84] = struct.pack(">II", timeout, 0)
        self.tcp.sendall(request)
        accept = exactly(self.tcp, 48)
        self.udp, self.port = udp, struct.unpack(">H", accept[2:4])[0]
        return accept[0]

    def start(self):
        self.tcp.sendall(b"\x02" + bytes(31))
        self.case.assertEqual(exactly(self.tcp, 32)[0], 0)

    def stop(self, sessions=1):
        self.tcp.sendall(struct.pack(">BBHI", 3, 0, 0, sessions) + bytes(24))

    def probe(self, estimate=1):
        """Sends a probe; the reply, or None."""
        to = (self.tcp.getpeername()[0], self.port)
        self.udp.sendto(struct.pack(">IQH", 7, 1 << 63, estimate) + bytes(27), to)
        self.udp.settimeout(2)
        try:
            return self.udp.recv(100)
        except TimeoutError:
            return None

    def is_closed(self):
        self.tcp.settimeout(5)
        try:
            return self.tcp.recv(100) == b""
        except ConnectionResetError:
            return True


class Limits(Case):
    def setUp(self):
        super().setUp()
        self.port = free_port()
        self.process = self.agent()
        self.api = self.process.client()

    def serve(self, **fields):
        self.api.apply({"server": server(port=self.port, **fields)})
        harness.dial(self.port).close()
        self.wait_for(lambda: not self.status()["connections_open"])

    def status(self):
        return self.api.call("ServerService", "GetServerStatus")

    def peer(self, *arguments):
        return Peer(self, self.port, *arguments)

    def ctl(self, *arguments):
        command = [harness.CTL, "--agent", f"127.0.0.1:{self.process.port}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20)

    def test_one_idle_client_does_not_keep_others_out(self):
        self.serve(maximum_connections=20)
        idle = [self.peer() for _ in range(16)]
        self.assertEqual({peer.modes & 1 for peer in idle}, {1})
        over = self.peer()
        self.assertEqual(over.modes, 0, "a limit of one client, by the greeting")
        self.assertTrue(over.is_closed())
        busy = self.peer("127.0.0.2").set_up()
        self.assertEqual(busy.request(), 0)
        busy.start()
        others = [self.peer(f"127.0.0.{3 + i}") for i in range(10)]
        self.assertEqual({peer.modes & 1 for peer in others}, {1})
        self.assertIsNotNone(busy.probe(), "a running session is not displaced")
        self.wait_for(lambda: self.status()["connections_open"] == 20)
        ended = {e["cause"]: int(e["count"]) for e in self.status()["connections_ended"]}
        self.assertEqual(ended["END_CAUSE_DISPLACED"], 7)
        refusal = self.status()["latest_refusals"][0]
        self.assertEqual(refusal["cause"], "REFUSAL_CAUSE_MAXIMUM_CONNECTIONS_PER_CLIENT")
        self.assertIn("16: 127.0.0.1 has 16", refusal["detail"])

    def test_a_refused_client_learns_nothing_where_that_is_configured(self):
        self.serve(maximum_connections_per_client=1, refuse_silently=True)
        first = self.peer()
        with self.assertRaisesRegex((EOFError, ConnectionResetError), "0 octets|reset"):
            self.peer()
        first.tcp.close()
        self.serve(maximum_connections_per_client=1)
        self.assertEqual(self.peer().modes & 1, 1)

    def test_stopped_sessions_with_a_long_timeout_keep_nobody_out(self):
        self.serve(maximum_sessions=4)
        for _ in range(20):
            greedy = self.peer().set_up()
            self.assertEqual(greedy.request(timeout=900), 0)
            greedy.start()
            greedy.stop()
            greedy.tcp.close()
        self.wait_for(lambda: not self.status()["connections_open"] and not self.status()["sessions_open"])
        self.assertIn(self.status()["sessions_draining"], (4, 5, 6))
        other = self.peer("127.0.0.2").set_up()
        self.assertEqual([other.request() for _ in range(5)], [0, 0, 0, 0, 5])
        detail = self.status()["latest_refusals"][0]["detail"]
        self.assertEqual(detail, "maximum_sessions is 4: held by 127.0.0.2 (4)")
        closed = self.ctl("server", "close", "--client", "127.0.0.1")
        self.assertRegex(closed.stdout, "ended [456] draining sessions")
        self.assertEqual(self.status()["sessions_draining"], 0)
        self.assertIn("4: held by 127.0.0.2 (4)", self.ctl("server", "status").stdout)

    def test_a_stopped_session_answers_until_an_operator_ends_it(self):
        self.serve()
        peer = self.peer().set_up()
        self.assertEqual(peer.request(timeout=900), 0)
        peer.start()
        peer.stop()
        self.wait_for(lambda: self.status()["sessions_draining"] == 1)
        self.assertIsNotNone(peer.probe())
        number = self.api.call("ServerService", "ListServerSessions")["sessions"][0]["connection_id"]
        peer.tcp.close()
        self.wait_for(lambda: not self.status()["connections_open"])
        answer = self.api.call("ServerService", "CloseServerConnections", {"ids": [number]})
        self.assertEqual((answer["ids"], answer["draining_sessions_ended"]), ([], 1))
        with self.assertRaises(grpc.RpcError) as raised:
            self.api.call("ServerService", "CloseServerConnections", {"ids": [number]})
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_zero_addresses_with_the_wrong_ip_version_are_those_of_the_connection(self):
        self.serve()
        peer = self.peer("::1").set_up()
        self.assertEqual(peer.request(ip_version=4), 0)
        peer.start()
        self.assertIsNotNone(peer.probe())
        self.assertEqual(self.status()["ip_versions_corrected"], "1")

    def test_a_request_that_is_refused_for_its_content_is_counted_and_explained(self):
        self.serve()
        self.assertEqual(self.peer("::1").set_up().request(ip_version=0), 3)
        status = self.status()
        self.assertEqual(status["sessions_refused"], [{"accept_code": 3, "count": "1"}])
        self.assertIn("IPVN 0, neither 4 nor 6", status["latest_refusals"][-1]["detail"])

    def test_probes_without_an_error_estimate_are_answered_unless_configured(self):
        self.serve()
        peer = self.peer().set_up()
        self.assertEqual(peer.request(), 0)
        peer.start()
        self.assertIsNotNone(peer.probe(estimate=0))
        packets = self.status()["packets"]
        self.assertEqual((packets["unknown_error_estimate"], packets["dropped_corrupt"]), ("1", "0"))
        self.api.apply({"server": server(port=self.port, strict_error_estimate=True)})
        self.wait_for(lambda: peer.probe(estimate=0) is None)
        self.assertGreaterEqual(int(self.status()["packets"]["dropped_corrupt"]), 1)
        self.assertIsNotNone(peer.probe())


class Zeros(Case):
    """Servers that are sloppy with zeros, relayed."""

    def scripted(self, reflects=lambda request: True, accepts=lambda request: True, estimate=1,
                 refusal=b"\x03" + bytes(47)):
        """A server that reflects, or not, by the request of the session; its port. It refuses with an
        answer, with silence (no octets), or closes (None)."""
        import threading

        listener = socket.create_server(("127.0.0.1", 0), backlog=20)
        self.addCleanup(listener.close)

        def reflect(udp):
            while True:
                try:
                    probe, sender = udp.recvfrom(2000)
                except OSError:
                    return
                now = struct.pack(">Q", int((time.time() + 2208988800) * 2**32))
                head = probe[:4] + now + struct.pack(">HH", estimate, 0) + now + probe[:14] + bytes(2) + b"\xff"
                udp.sendto(head + bytes(max(0, len(probe) - len(head))), sender)

        def serve(tcp):
            with tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.bind(("127.0.0.1", 0))
                tcp.sendall(bytes(12) + struct.pack(">I", 1) + os.urandom(32) + struct.pack(">I", 2048) + bytes(12))
                exactly(tcp, 164)
                tcp.sendall(bytes(48))
                request = exactly(tcp, 112)
                if not accepts(request):
                    if refusal is None:
                        return
                    tcp.sendall(refusal)
                    tcp.recv(1)
                    return
                tcp.sendall(struct.pack(">BBH", 0, 0, udp.getsockname()[1]) + os.urandom(16) + bytes(28))
                exactly(tcp, 32)
                if reflects(request):
                    threading.Thread(target=reflect, args=(udp,), daemon=True).start()
                tcp.sendall(bytes(32))
                tcp.recv(1)

        def accept():
            while True:
                try:
                    tcp, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=guarded, args=(tcp,), daemon=True).start()

        def guarded(tcp):
            try:
                serve(tcp)
            except (OSError, EOFError):
                pass

        threading.Thread(target=accept, daemon=True).start()
        return listener.getsockname()[1]

    def measure(self, port, name="agent", **fields):
        self.process = self.agent(name)
        api = self.process.client()
        quick = session("s1", probe_count=2, probe_interval="0.01s", loss_timeout="1s")
        api.apply({"client": client(connection("c1", "127.0.0.1", [quick], destination_port=port,
                                               test_interval="0.2s", **fields))})
        return api

    def probe(self, port, *arguments):
        command = [harness.CTL, "--agent", f"127.0.0.1:{self.process.port}", "probe-server", "127.0.0.1",
                   "--port", str(port), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=40).stdout

    @staticmethod
    def has_addresses(request):
        return request[16:20] == request[32:36] == bytes([127, 0, 0, 1])

    def test_a_server_that_refuses_zeros_gets_addresses(self):
        port = self.scripted(accepts=self.has_addresses)
        api = self.measure(port)
        self.wait_for(lambda: tests(api.records(), "c1", "COMPLETE"))
        self.assertIn("works with addresses in the request only", self.probe(port))

    def test_a_server_that_fails_at_zeros_without_saying_so_gets_addresses(self):
        refusals = {"closes": None, "silent": b"", "permanent": b"\x04" + bytes(47), "temporary": b"\x05" + bytes(47)}
        for name, refusal in refusals.items():
            with self.subTest(name):
                port = self.scripted(accepts=self.has_addresses, refusal=refusal)
                api = self.measure(port, name, connect_timeout="0.5s")
                self.wait_for(lambda: tests(api.records(), "c1", "COMPLETE"))
                self.assertTrue(api.connection("c1")["sends_addresses"])
                self.assertIn("works with addresses in the request only", self.probe(port))

    def test_a_server_that_reflects_to_zeros_gets_addresses(self):
        port = self.scripted(reflects=self.has_addresses)
        api = self.measure(port)
        received = lambda: [int(t["figures"]["probes_received"])  # noqa: E731
                            for t in tests(api.records(), "c1", "COMPLETE")]
        self.wait_for(lambda: len(received()) >= 3 and received()[-1] == 2)
        self.assertEqual(received()[:3], [0, 2, 2], "one test to find out")
        self.assertTrue(api.connection("c1")["sends_addresses"])

    def test_addresses_are_sent_where_that_is_configured_and_never_where_not(self):
        port = self.scripted(accepts=self.has_addresses)
        api = self.measure(port, send_addresses="SEND_ADDRESSES_ALWAYS")
        self.wait_for(lambda: tests(api.records(), "c1", "COMPLETE"))
        self.assertEqual(int(api.connection("c1")["attempts_since_success"]), 0)
        api.apply({"client": client(connection("c1", "127.0.0.1", destination_port=port, test_interval="0.2s",
                                               send_addresses="SEND_ADDRESSES_NEVER"))})
        self.wait_for(lambda: int(api.connection("c1")["attempts_since_success"]) >= 5)
        self.assertIn("some aspect of the request", self.probe(port, "--send-addresses", "never"))

    def test_replies_without_an_error_estimate_are_measured_unless_configured(self):
        port = self.scripted(estimate=0)
        api = self.measure(port)
        done = self.wait_for(lambda: tests(api.records(), "c1", "COMPLETE"))[0]["figures"]
        self.assertEqual((done["probes_received"], done["replies_without_error_estimate"]), ("2", "2"))
        self.assertIn("works: ", self.probe(port))
        strict = self.probe(port, "--strict-error-estimate")
        self.assertIn("Error Estimate with Multiplier 0", strict)
        self.assertIn("1 packet from 127.0.0.1", strict)
        self.assertNotIn("no reply", strict)


class LinkLocal(TwoHosts):
    """Both ends have link-local addresses."""

    def setUp(self):
        super().setUp()
        self.agent_a, self.agent_b = self.agent("a", self.a), self.agent("b", self.b)
        self.api, self.peer = self.agent_a.client(), self.agent_b.client()
        self.local = {}
        for namespace in (self.a, self.b):
            self.wait_for(lambda: "tentative" not in self.inside(namespace, "ip", "-6", "address", "show", "veth0"))
            lines = self.inside(namespace, "ip", "-6", "-o", "address", "show", "dev", "veth0", "scope", "link")
            self.local[namespace] = lines.split()[3].split("/")[0]

    def test_measures_between_link_local_addresses_in_each_mode_of_ports(self):
        modes = {
            "RANGE": {"range_min": 7000, "range_max": 7010}, "AUTO": {}, "SHARED": {"shared_port": 5000},
        }
        for mode, fields in modes.items():
            with self.subTest(mode=mode):
                self.peer.apply({"server": server(test_port={"mode": f"TEST_PORT_MODE_{mode}", **fields})})
                self.api.apply({"client": client(connection(
                    "c1", self.local[self.b], [session("s1", probe_interval="0.02s", destination_port=7005)],
                    source_address=self.local[self.a], interface="veth0", test_interval="0.2s"))})
                self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
                figures = tests(self.api.records(), "c1", "COMPLETE")[-1]["figures"]
                self.assertEqual(figures["probes_received"], "5")
                shown = self.peer.call("ServerService", "ListServerSessions")["sessions"][-1]
                port = int(shown["reflector_address"].rsplit(":", 1)[1])
                self.assertEqual(port, 5000 if mode == "SHARED" else 7005)
                self.assertIn(self.local[self.a], shown["sender_address"])
                self.assertIn("tcp", self.api.connection("c1"))
                self.api.apply({})
                self.wait_for(lambda: not self.peer.call("ServerService", "ListServerConnections")["connections"])
        refused = self.peer.call("ServerService", "GetServerStatus")["sessions_refused"]
        self.assertEqual(refused, [])

    def test_a_listener_and_a_light_reflector_on_a_link_local_address(self):
        listen = {"address": self.local[self.b], "port": 862, "interface": "veth0"}
        light = {"listen": [{**listen, "port": 863}], "prefixes": ["fe80::/10"]}
        self.peer.apply({"server": {**server(), "listen": [listen], "light": light}})
        both = [
            connection("c1", self.local[self.b], interface="veth0", test_interval="0.2s"),
            connection("c2", self.local[self.b], [session("s1", destination_port=863)], interface="veth0",
                       control_type="CONTROL_TYPE_LIGHT", test_interval="0.2s"),
        ]
        self.api.apply({"client": client(*both)})
        for name in ("c1", "c2"):
            self.wait_for(lambda: [t for t in tests(self.api.records(), name, "COMPLETE")
                                   if t["figures"]["probes_received"] == "5"])
        address = self.api.connection("c1")["local_address"].rsplit(":", 1)[0].strip("[]")
        self.assertTrue(address.startswith("fe80:"), address)
        # As the list shows it, with the zone.
        shown = self.peer.call("ServerService", "ListServerConnections")["connections"][0]["client_address"]
        zoned = shown.rsplit(":", 1)[0].strip("[]")
        closed = self.peer.call("ServerService", "CloseServerConnections", {"client_addresses": [zoned]})
        self.assertEqual(len(closed["ids"]), 1)

    def test_what_is_shown_of_a_link_local_peer_has_its_scope(self):
        self.peer.apply({"server": server()})
        shown = f"[{self.local[self.b]}%{self.index(self.a)}]:"
        found = sh(harness.CTL, "--agent", f"unix:{self.agent_a.socket}", "probe-server", self.local[self.b],
                   "--interface", "veth0")
        self.assertIn("works: ", found)
        lines = {line.split()[0].rstrip(":"): line for line in found.splitlines()}
        for line in ("server", "verdict"):
            self.assertIn(shown, lines[line], found)
        self.api.apply({"client": client(connection("c1", self.local[self.b], interface="veth0", test_interval="0.2s"))})
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
        status = self.api.connection("c1")
        self.assertIn(shown, status["sessions"][0]["reflector_address"])
        self.assertIn(shown, status["server_address"])

    def index(self, namespace):
        return self.inside(namespace, "cat", "/sys/class/net/veth0/ifindex").strip()

    def test_the_api_and_exporters_use_link_local_addresses(self):
        """Each listens on one, or connects to one, whose interface stands in the address."""
        local, zone = self.local[self.b], "veth0"
        self.agent_b.stop()
        for interface in (zone, self.index(self.b)):
            with self.subTest(interface=interface):
                settings = ('allow_remote_without_tls = true\n[[api.roles]]\nrole = "viewer"\n'
                            'identities = ["anonymous"]\n[[api.roles]]\nrole = "admin"\nidentities = ["uid:0"]\n')
                third = self.agent("c", self.b, settings=settings, arguments=("--listen", f"[{local}%{interface}]:9876"))
                third.client().apply({"export": {"prometheus": {"address": f"{local}%{interface}"}}})
                self.wait_for(lambda: "9863" in self.inside(self.b, "ss", "-Hlnt", "src", f"[{local}]"))
                for target in (f"[{local}%veth0]:9876", f"http://[{local}%25veth0]:9876"):
                    told = self.inside(self.a, harness.CTL, "--agent", target, "status")
                    self.assertIn("agent", told)
                sink = {"name": "o1", "endpoint": f"http://[{local}%25veth0]:9876", "filter": {"kinds": ["RECORD_KIND_EVENT"]}}
                self.api.apply({"export": {"otlp": [sink]}})
                # It reaches the other agent, which has no such service.
                last = lambda: self.api.call("AgentService", "GetAgent")["exporters"][0]  # noqa: E731
                self.wait_for(lambda: "does not accept" in dump(last()), told=lambda: dump(last()))
                self.api.apply({})
                third.stop()

    def test_the_kernel_finds_the_tcp_connection_of_an_interface(self):
        self.peer.apply({"server": server()})
        self.api.apply({"client": client(connection("c1", self.B, interface="veth0", test_interval="0.2s"))})
        self.wait_for(lambda: tests(self.api.records(), "c1", "COMPLETE"))
        self.assertEqual(self.api.connection("c1")["tcp"]["state"], "ESTAB")

    def test_a_link_local_address_without_its_interface_is_explained(self):
        config = client(connection("c1", "fd99::2", source_address=self.local[self.a]))
        _, _, found = self.api.refused({"client": config})
        self.assertIn("a link-local address needs an interface", str(found))
        answer = self.api.apply({"client": client(connection("c1", self.local[self.b]))}, validate_only=True)
        self.assertIn("without an interface", str(answer["warnings"]))


class Sandbox(Case):
    def test_without_netlink_and_kernel_timestamps_it_measures_with_those_of_the_program(self):
        harness.need("gcc")
        library = os.path.join(self.directory, "no_stamps.so")
        source = os.path.join(harness.ROOT, "tests/e2e/no_stamps.c")
        sh("gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl")
        agent = self.agent("sandbox", environment={"LD_PRELOAD": library})
        api, port = agent.client(), free_port()
        stamp = {"listen": [{"address": "127.0.0.1", "port": free_port()}], "prefixes": ["127.0.0.0/8"],
                 "stateful": True}
        stamped = connection("c2", "127.0.0.1", [session("s1", destination_port=stamp["listen"][0]["port"])],
                             control_type="CONTROL_TYPE_STAMP", test_interval="0.2s")
        v6 = connection("c3", "::1", destination_port=port, test_interval="0.2s")
        api.apply({"server": server(port=port, stamp=stamp), "client": client(
            connection("c1", "127.0.0.1", destination_port=port, test_interval="0.2s"), stamped, v6)})
        for name in ("c1", "c2", "c3"):
            done = self.wait_for(lambda: tests(api.records(), name, "COMPLETE"))[0]["figures"]
            self.assertEqual(done["probes_received"], "5", name)
            self.assertEqual((done["kernel_receive_timestamps"], done["kernel_transmit_timestamps"]), ("0", "0"))
            self.assertEqual((done["receive_timestamp_source"], done["transmit_timestamp_source"]),
                             ("TIMESTAMP_SOURCE_USER", "TIMESTAMP_SOURCE_USER"))
            self.assertEqual(int(done["ingress_ttl"]), 255, "what the kernel has is used")
        time.sleep(4)
        log = agent.log()
        self.assertEqual(log.count("failed to follow network changes"), 1)
        for option in ("SO_TIMESTAMPING", "SO_TIMESTAMPNS", "SO_RXQ_OVFL"):
            self.assertEqual(log.count(f"option={option}") + log.count(f'option="{option}"'), 1, option)
