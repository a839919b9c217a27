"""Attempts of anyone who reaches the API: requests that grow in memory, connections that say nothing,
streams that are never read, and commands of users who have no role. Beside each, a good client is
answered and a measurement loses nothing."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import unittest
import urllib.request

import grpc

import harness
from harness import Case, client, connection, free_port, session

MIB = 1 << 20
OTHER = 4711
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def varint(number):
    octets = b""
    while number > 127:
        octets += bytes([number & 127 | 128])
        number >>= 7
    return octets + bytes([number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def method(service, name):
    return f"/twamp.agent.v1.{service}/{name}"


class Abuse(Case):
    """An agent with 1,024 files, which measures to itself."""

    def setUp(self):
        super().setUp()
        self.process = self.agent(files=1024)
        self.api = self.process.client()
        port, self.page = free_port(), free_port()
        one = session("s1", probe_count=50, probe_interval="0.02s", loss_timeout="1s", destination_port=port)
        self.api.apply({
            "server": {"light": {"listen": [{"address": "127.0.0.1", "port": port}], "prefixes": ["127.0.0.0/8"]}},
            "export": {"prometheus": {"address": "127.0.0.1", "port": self.page}},
            "client": client(connection("m", "127.0.0.1", [one], control_type="CONTROL_TYPE_LIGHT", test_interval="0.1s")),
        })
        self.wait_for(lambda: self.api.connection("m")["state"] == "CONNECTION_STATE_RUNNING")
        time.sleep(1)
        self.memory = self.process.memory_kib()
        self.latencies, self.stops = [], threading.Event()
        self.good = threading.Thread(target=self.ask)
        self.good.start()
        self.addCleanup(self.good.join)
        self.addCleanup(self.stops.set)

    def ask(self):
        """A good client: a new connection for each request."""
        while not self.stops.wait(0.05):
            begun = time.monotonic()
            with grpc.insecure_channel(f"127.0.0.1:{self.process.port}",
                                       options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                call = channel.unary_unary(method("AgentService", "GetAgent"))
                try:
                    call(b"", timeout=30, wait_for_ready=True)
                except grpc.RpcError as error:
                    self.latencies.append((float("inf"), error))
                    continue
            self.latencies.append((time.monotonic() - begun, None))

    def check(self):
        """The good client was answered within a second, and no probe was lost."""
        self.wait_for(lambda: len(self.latencies) >= 20)
        self.stops.set()
        self.good.join()
        worst = sorted(self.latencies, key=lambda one: one[0])
        self.assertLess(worst[int(len(worst) * 0.99) - 1][0], 1, worst[-3:])
        complete = lambda: harness.tests(self.api.records(), "m", "COMPLETE")  # noqa: E731
        figures = [t["figures"] for t in self.wait_for(lambda: complete() if len(complete()) > 2 else None)]
        self.assertEqual(sum(int(f["probes_lost"]) for f in figures), 0)
        self.assertEqual(sum(int(f["probes_not_sent"]) for f in figures), 0)

    def send(self, path, request, timeout=60):
        """The status of a request of raw octets."""
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.process.port}", options=options) as channel:
            try:
                channel.unary_unary(path)(request, timeout=timeout)
            except grpc.RpcError as error:
                return error
        return None

    def peak_kib(self):
        with open(f"/proc/{self.process.process.pid}/status") as status:
            return int(next(line for line in status if line.startswith("VmHWM")).split()[1])

    def test_requests_are_refused_by_the_memory_that_they_would_take(self):
        sessions = 18  # test_sessions
        for what, path, request in (
            ("connections", method("ConfigService", "ApplyConfig"), field(2, field(1, b"\x0a\x00" * (6 * MIB)))),
            ("sessions", method("ConfigService", "ApplyConfig"),
             field(2, field(1, field(1, (varint(sessions << 3 | 2) + b"\0") * (2 * MIB))))),
            ("names", method("ClientService", "ListConnections"), b"\x0a\x00" * (30 * MIB)),
            ("deleted", method("ConfigService", "ApplyConfig"), b"\x08\x02" + b"\x3a\x00" * (6 * MIB)),
        ):
            with self.subTest(what):
                begun = time.monotonic()
                error = self.send(path, request)
                took = time.monotonic() - begun
                print(f"{what}: {len(request)} octets, {error and error.code().name} after {took:.2f} s, "
                      f"peak {self.peak_kib() // 1024} MiB (before {self.memory // 1024})")
                self.assertIsNotNone(error)
                self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, error)
                self.assertLess(self.peak_kib() - self.memory, (4 * len(request) + 64 * MIB) // 1024)
        self.check()
        api = self.api.call("AgentService", "GetAgent")["api"]
        self.assertGreater(sum(int(m.get("refused_by_limits", 0)) for m in api["methods"]), 0)

    def test_unfinished_requests_of_one_connection_hold_bounded_memory(self):
        """Seventy requests of 60 MiB, none of them complete."""
        sender = subprocess.Popen([sys.executable, "-c", UNFINISHED, str(self.process.port)])
        self.stack.callback(sender.kill)
        time.sleep(8)
        self.assertLess(self.peak_kib() - self.memory, 256 * 1024)
        self.check()

    def test_connections_that_say_nothing_take_no_place_of_others(self):
        """Two thousand silent ones and half prefaces; the log has one line in ten seconds."""
        kept, ends = [], time.monotonic() + 10
        while time.monotonic() < ends and len(kept) < 2000:
            peer = socket.create_connection(("127.0.0.1", self.process.port))
            if len(kept) % 2:
                try:
                    peer.sendall(PREFACE[:12])
                except OSError:
                    pass
            kept.append(peer)
            self.stack.callback(peer.close)
        api = self.api.call("AgentService", "GetAgent")["api"]
        self.assertLessEqual(api["connections_open"], api["maximum_connections"])
        self.assertGreater(int(api["connections_displaced"]), 1000)
        self.check()
        lines = [line for line in self.process.log().splitlines() if "places for API connections" in line]
        self.assertLessEqual(len(lines), 3, lines[-3:])
        # A connection without a preface is closed after 5 s.
        self.wait_for(lambda: int(self.api.call("AgentService", "GetAgent")["api"]["connections_open"]) < 10, 30)

    def test_scrapers_that_say_nothing_keep_nobody_from_the_metrics(self):
        for n in range(64):
            peer = socket.create_connection(("127.0.0.1", self.page))
            self.stack.callback(peer.close)
            if n % 2:
                peer.sendall(b"GET /metr")
        for _ in range(5):
            begun = time.monotonic()
            with urllib.request.urlopen(f"http://127.0.0.1:{self.page}/metrics", timeout=10) as answer:
                self.assertIn(b"twamp_", answer.read())
            self.assertLess(time.monotonic() - begun, 1)
        self.check()

    def test_streams_that_are_not_read_are_bounded_for_each_caller(self):
        channel = grpc.insecure_channel(f"127.0.0.1:{self.process.port}")
        self.stack.callback(channel.close)
        streams = channel.unary_stream(method("ResultsService", "StreamRecords"))
        request = self.api.method("ResultsService", "StreamRecords")[0]()
        request.earliest = True
        open_streams = [streams(request.SerializeToString()) for _ in range(150)]
        time.sleep(3)
        refused = [s for s in open_streams if not s.is_active()]
        self.assertGreaterEqual(len(refused), 150 - 64)
        self.assertEqual({s.code() for s in refused}, {grpc.StatusCode.RESOURCE_EXHAUSTED})
        self.assertLess(self.process.memory_kib() - self.memory, 64 * 1024)
        for stream in open_streams:
            stream.cancel()
        self.check()


# Seventy requests with bodies that do not end, over HTTP/2 without a library.
UNFINISHED = r'''
import socket, struct, sys, threading, time
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
def literal(name, value):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
headers = b"".join(literal(*pair) for pair in (
    (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"),
    (b":path", b"/twamp.agent.v1.ConfigService/ApplyConfig"), (b"content-type", b"application/grpc"), (b"te", b"trailers")))
peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
threading.Thread(target=lambda: [None for _ in iter(lambda: peer.recv(65536), b"")], daemon=True).start()
octets = 60 << 20
for stream in range(1, 141, 2):
    peer.sendall(frame(1, 4, stream, headers))
    peer.sendall(frame(0, 0, stream, b"\0" + struct.pack(">I", octets)))
piece = bytes(16384)
end = time.monotonic() + 6
try:
    while time.monotonic() < end:
        for stream in range(1, 141, 2):
            peer.sendall(frame(0, 0, stream, piece))
except OSError as error:
    print("ended:", error)
time.sleep(30)
'''


class Roles(Case):
    """Callers on this host are the users that own their sockets."""

    def as_user(self, uid, *command, **options):
        return subprocess.run(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command],
                              capture_output=True, text=True, timeout=30, cwd=self.directory, **options)

    def setUp(self):
        super().setUp()
        os.chmod(self.directory, 0o755)
        # Other users may have no access to the directory of the build.
        self.program = shutil.copy(harness.CTL, self.directory)

    def ctl(self, uid, *arguments):
        return self.as_user(uid, self.program, "--agent", f"127.0.0.1:{self.process.port}", *arguments)

    def test_another_user_reads_and_commands_nothing(self):
        self.process = self.agent()
        api = self.process.client()
        port = free_port()
        document = os.path.join(self.directory, "evil.yaml")
        with open(document, "w") as file:
            file.write(f"server: {{listen: [{{address: 127.0.0.1, port: {port}}}], "
                       f'client_list: [{{name: a, prefixes: ["0.0.0.0/0"]}}]}}\n')
        os.chmod(document, 0o644)
        done = self.ctl(OTHER, "apply", "-f", document)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("ApplyConfig needs the role admin: uid:4711 has the role viewer", done.stderr)
        self.assertEqual(api.call("ConfigService", "ListRevisions")["revisions"], [])
        self.assertEqual(self.ctl(OTHER, "whoami").stdout, "uid:4711: viewer\n")
        self.assertEqual(self.ctl(0, "whoami").stdout, "uid:0: admin\n")
        done = self.ctl(0, "apply", "-f", document)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(api.call("ConfigService", "ListRevisions")["revisions"][0]["author"], "uid:0")

    def test_rules_give_roles(self):
        rules = ('[[api.roles]]\nrole = "admin"\nidentities = ["uid:0"]\n'
                 '[[api.roles]]\nrole = "operator"\nidentities = ["uid:1001"]\n'
                 '[[api.roles]]\nrole = "viewer"\nidentities = ["uid:100*"]\n')
        self.process = self.agent(settings=rules)
        self.process.client()
        stop = lambda uid: self.ctl(uid, "stop", "--all").stderr  # noqa: E731
        self.assertNotIn("needs the role", stop(1001))
        self.assertIn("StopConnections needs the role operator: uid:1002 has the role viewer", stop(1002))
        self.assertIn("StopConnections needs the role operator: uid:4711 has no role", stop(OTHER))
        stream = lambda uid: self.ctl(uid, "stream", "--consumer", "c").stderr  # noqa: E731
        self.assertIn("StreamRecords with a consumer needs the role collector: uid:1002", stream(1002))

    def test_a_token_names_its_holder_until_it_is_taken_away(self):
        done = subprocess.run([harness.CTL, "token", "new", "grafana"], capture_output=True, text=True, check=True)
        token, line = (part.split(":", 1)[1].strip() for part in done.stdout.splitlines())
        tokens, held = (os.path.join(self.directory, name) for name in ("tokens", "held"))
        for path, text in ((tokens, line), (held, token)):
            with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(text + "\n")
        self.process = self.agent(settings=f'tokens = "{tokens}"\n[[api.roles]]\nrole = "operator"\n'
                                           'identities = ["token:grafana"]\n')
        harness.dial(self.process.port).close()
        whoami = lambda: self.ctl(0, "--token-file", held, "whoami")  # noqa: E731
        self.assertEqual(whoami().stdout, "token:grafana: operator\n")
        self.assertIn("uid:0 has no role", self.ctl(0, "whoami").stderr)
        os.truncate(tokens, 0)
        self.assertIn("the caller is not identified", whoami().stderr)
        self.assertNotIn(token, self.process.log())

    def test_a_caller_who_is_gone_commands_nothing(self):
        """The kernel shows the end of a socket that was closed as root's."""
        self.process = self.agent()
        api = self.process.client()
        request = api.method("ConfigService", "ApplyConfig")[0]()
        request.comment = "by nobody"
        request.config.server.SetInParent()
        script = os.path.join(self.directory, "gone.py")
        with open(script, "w") as file:
            file.write(GONE)
        done = self.as_user(OTHER, os.path.realpath(sys.executable), script, str(self.process.port),
                            request.SerializeToString().hex(), "300")
        self.assertEqual(done.returncode, 0, done.stderr)
        time.sleep(2)
        self.assertEqual(api.call("ConfigService", "ListRevisions")["revisions"], [])


# Sends a complete request and closes, resets or exits at once.
GONE = r'''
import os, socket, struct, sys
port, request, times = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3])
def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
def literal(name, value):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
headers = b"".join(literal(*pair) for pair in (
    (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"),
    (b":path", b"/twamp.agent.v1.ConfigService/ApplyConfig"), (b"content-type", b"application/grpc"), (b"te", b"trailers")))
whole = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers)
         + frame(0, 1, 1, b"\0" + struct.pack(">I", len(request)) + request))
for n in range(times):
    peer = socket.create_connection(("127.0.0.1", port))
    if n % 3 == 1:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if n % 3 == 2 and not os.fork():
        peer.sendall(whole)
        os._exit(0)
    if n % 3 != 2:
        peer.sendall(whole)
    peer.close()
'''


if __name__ == "__main__":
    unittest.main()
