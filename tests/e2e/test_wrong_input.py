"""Wrong input of every kind: a clear answer, and nothing stored is lost."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import time

import grpc
import harness
from harness import client, connection, server, session, sh, tests

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


class Configuration(harness.Case):
    """Mistakes of a controller."""

    def setUp(self):
        super().setUp()
        self.api = self.agent().client()
        self.good = {"client": client(connection("good", "127.0.0.1", inactive=True))}
        self.api.apply(self.good)

    def tearDown(self):
        current = self.api.call("ConfigService", "GetConfig")
        self.assertEqual(current["revision"]["revision"], "1", "nothing has changed")
        super().tearDown()

    def refused(self, code, field, *words, config=None, **fields):
        got, message, found = self.api.refused(config or self.good, **fields)
        self.assertEqual(got, code, message)
        if field:
            self.assertIn(field, found)
            message = found[field]
        for word in words:
            self.assertIn(word, message)

    def test_names(self):
        two = client(connection("c1", "127.0.0.1"), connection("c1", "127.0.0.1"))
        self.refused(INVALID, "client.control_connections[1].name", "c1", config={"client": two})
        for name in ("", "a b", "ä", "x" * 65, "a/b"):
            bad = client(connection(name, "127.0.0.1"))
            self.refused(INVALID, "client.control_connections[0].name", config={"client": bad})
        for method in ("StartConnections", "StopConnections", "ListConnections"):
            with self.assertRaises(grpc.RpcError) as raised:
                self.api.call("ClientService", method, {"names": ["good", "nobody"]})
            self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)
            self.assertIn("nobody", raised.exception.details())
        with self.assertRaises(grpc.RpcError) as raised:
            self.api.call("ClientService", "StartConnections", {"names": ["good"]})
        self.assertEqual(raised.exception.code(), PRECONDITION)
        self.assertIn("inactive", raised.exception.details())

    def test_all_violations_at_once(self):
        bad = connection("c 1", "", [session("s1", ttl=0), session("s1", probe_count=0)])
        _, message, found = self.api.refused({"client": client(bad), "server": server(refwait="0s")})
        path = "client.control_connections[0]"
        for field in (f"{path}.name", f"{path}.target_address", f"{path}.test_sessions[0].ttl",
                      f"{path}.test_sessions[1].name", f"{path}.test_sessions[1].probe_count",
                      "server.refwait"):
            self.assertIn(field, found)
        self.assertTrue(message.startswith(f"{len(found)} violations"), message)

    def test_a_very_long_list_of_violations_arrives(self):
        many = client(*(connection(f"c{i}", "127.0.0.1", [session("s", ttl=999)]) for i in range(5000)))
        code, message, found = self.api.refused({"client": many})
        self.assertEqual(code, INVALID)
        self.assertIn("5000 violations", message)
        self.assertGreater(len(found), 20)

    def test_revisions(self):
        for expected in (0, 2, 99):
            self.refused(grpc.StatusCode.ABORTED, None, "current revision is 1", expected_revision=expected)
        with self.assertRaises(grpc.RpcError) as raised:
            self.api.call("ConfigService", "GetConfig", {"revision": 7})
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)
        self.refused(INVALID, "request_id", "UUID", request_id="not-a-uuid")
        self.refused(INVALID, "comment", "1024", comment="x" * 1025)
        self.refused(INVALID, "mode", mode=9)

    def test_the_limit_of_a_message_is_named(self):
        huge = client(*(
            connection(f"c{i}", "127.0.0.1", description="x" * 1024, labels={"l": "y" * 1000})
            for i in range(40_000)
        ))
        code, message, _ = self.api.refused({"client": huge})
        self.assertIn(code, (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.RESOURCE_EXHAUSTED))
        self.assertIn(str(64 << 20), message)
        agent = self.api.call("AgentService", "GetAgent")
        self.assertEqual(int(agent["maximum_request_bytes"]), 64 << 20)

    def test_invalid_utf8_and_garbage(self):
        def raw(octets):
            call = self.api.channel.unary_unary(
                "/twamp.agent.v1.ConfigService/ApplyConfig",
                request_serializer=lambda octets: octets, response_deserializer=lambda octets: octets,
            )
            with self.assertRaises(grpc.RpcError) as raised:
                call(octets, timeout=10)
            return raised.exception

        # comment = "\xff": field 5, length 1.
        error = raw(b"\x2a\x01\xff")
        self.assertIn("comment", error.details())
        self.assertIn("UTF-8", error.details())
        error = raw(b"\xff\xff\xff\xff")
        self.assertNotEqual(error.code(), grpc.StatusCode.OK)
        self.assertTrue(error.details())

    def test_sockets_in_the_way_of_each_other(self):
        def refused(**fields):
            code, _, fields = self.api.refused({"server": server(port=8620, **fields)})
            self.assertEqual(code, INVALID)
            return fields

        listed = {"prefixes": ["0.0.0.0/0"]}
        for kind in ("light", "stamp"):
            found = refused(**{kind: {**listed, "listen": [{"address": "127.0.0.1", "port": 8620}]}})
            self.assertIn("UDP 127.0.0.1:8620 conflicts with UDP 0.0.0.0:8620", found[f"server.{kind}.listen"])
        code, _, found = self.api.refused({"server": {
            **server(), "listen": [{"address": "::", "port": 8620}, {"address": "127.0.0.1", "port": 8620}]}})
        self.assertEqual(code, INVALID)
        self.assertIn("conflicts with", found["server.listen[1]"])
        code, _, found = self.api.refused({"server": {
            **server(), "listen": [{"address": "::", "port": 8620}, {"address": "0.0.0.0", "port": 8620}]}})
        self.assertIn("conflicts with", found["server.listen[1]"])
        # Of one socket there may be two uses.
        both = {"address": "::", "port": 8620}
        answer = self.api.apply({"server": server(port=8620, light={**listed, "listen": [both]})}, validate_only=True)
        self.assertEqual(answer["revision"], "1")

    def test_what_the_host_refuses(self):
        with socket.socket() as taken, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            listen = [{"address": "127.0.0.1", "port": port}]
            self.refused(PRECONDITION, "server.listen[0]", str(port), "in use",
                         config={"server": {**server(), "listen": listen}})
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            light = {"light": {"listen": [{"address": "127.0.0.1", "port": port}], "prefixes": ["::/0"]}}
            code, message, found = self.api.refused({"server": light})
            self.assertEqual(code, PRECONDITION)
            self.assertIn(str(port), str(found))
        self.refused(PRECONDITION, "server.listen[0]", "192.0.2.77", "ip address",
                     config={"server": {**server(), "listen": [{"address": "192.0.2.77"}]}})
        self.refused(PRECONDITION, "client.control_connections[c].interface", "nowhere0",
                     config={"client": client(connection("c", "127.0.0.1", interface="nowhere0"))})
        self.refused(PRECONDITION, "client.control_connections[c].source_address", "192.0.2.78",
                     config={"client": client(connection("c", "127.0.0.1", source_address="192.0.2.78"))})

    def test_cursors_that_were_never_given_out(self):
        for request in ({"after_cursor": 1 << 40}, {"after_cursor": (1 << 64) - 1}):
            with self.assertRaises(grpc.RpcError) as caught:
                list(self.api.stream(request))
            self.assertEqual(caught.exception.code(), INVALID)
            self.assertIn("is after the latest record", caught.exception.details())
            with self.assertRaises(grpc.RpcError) as caught:
                self.api.call("ResultsService", "ListRecords", request)
            self.assertEqual(caught.exception.code(), INVALID)
        for method in ("GetStatistics", "ClearStatistics"):
            with self.assertRaises(grpc.RpcError) as caught:
                self.api.call("ResultsService", method, {"connections": ["good", "nobody"]})
            self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
            self.assertIn("nobody", caught.exception.details())

    def test_readers(self):
        def invalid(method, field, request):
            with self.assertRaises(grpc.RpcError) as raised:
                self.api.call("ResultsService", method, request)
            self.assertEqual(raised.exception.code(), INVALID)
            self.assertIn(field, harness.violations(raised.exception))

        invalid("ListRecords", "page_size", {"page_size": 1001})
        invalid("ListRecords", "filter.kinds", {"filter": {"kinds": [77]}})
        invalid("AckRecords", "consumer", {"consumer": "", "cursor": 1})
        invalid("AckRecords", "cursor", {"consumer": "c", "cursor": 1 << 40})
        invalid("GetStatistics", "scopes", {"scopes": [9]})
        for request, field in (
            ({"consumer": "a b"}, "consumer"), ({"heartbeat_interval": "0.01s"}, "heartbeat_interval"),
            ({"heartbeat_interval": "3601s"}, "heartbeat_interval"), ({"earliest": False}, "earliest"),
        ):
            with self.assertRaises(grpc.RpcError) as raised:
                next(self.api.stream(request))
            self.assertEqual(raised.exception.code(), INVALID)
            self.assertIn(field, harness.violations(raised.exception))


class Idempotency(harness.Case):
    def test_request_id(self):
        agent = self.agent()
        api = agent.client()
        one = {"client": client(connection("c1", "127.0.0.1", inactive=True))}
        two = {"client": client(connection("c2", "127.0.0.1", inactive=True))}
        request_id = "a2f7a4ce-5b2d-4b4e-9d43-0d6d6a4f3c11"
        first = api.apply(one, request_id=request_id, expected_revision=0)
        api.apply(two)
        again = api.apply(one, request_id=request_id, expected_revision=0)
        self.assertEqual(first, again)
        code, message, _ = api.refused(two, request_id=request_id)
        self.assertEqual(code, grpc.StatusCode.ALREADY_EXISTS)
        self.assertIn(request_id, message)
        agent.kill()
        agent.start()
        api = agent.client()
        self.assertEqual(api.apply(one, request_id=request_id), first)
        revisions = api.call("ConfigService", "ListRevisions")["revisions"]
        self.assertEqual([r["revision"] for r in revisions], ["2", "1"])
        self.assertTrue(revisions[0]["author"])
        # The same document again makes no revision; only a check makes none either.
        self.assertEqual(api.apply(two)["revision"], "2")
        checked = api.apply(one, validate_only=True)
        self.assertEqual(checked["revision"], "2")
        self.assertEqual([c["path"] for c in checked["changes"]], ["client/c1", "client/c2"])
        self.assertEqual(api.call("ConfigService", "GetConfig")["revision"]["revision"], "2")
        old = api.call("ConfigService", "GetConfig", {"revision": 1})
        self.assertEqual(old["config"]["client"]["control_connections"][0]["name"], "c1")


class KilledCommits(harness.Case):
    def test_kill_between_any_two_steps(self):
        """SIGKILL at many moments of a commit: the old or the new revision, complete."""
        agent = self.agent()
        sizes = {}
        for round_ in range(16):
            api = agent.client()
            revision = int(api.call("ConfigService", "GetConfig").get("revision", {}).get("revision", 0))
            count = 2000 + round_
            document = {"client": client(*(
                connection(f"c{i}", "127.0.0.1", inactive=True) for i in range(count)
            ))}
            request, call = api.method("ConfigService", "ApplyConfig")
            from google.protobuf import json_format

            future = call.future(json_format.ParseDict({"config": document}, request()))
            time.sleep(0.004 * round_)
            agent.kill()
            answered = False
            try:
                future.result(timeout=5)
                answered = True
            except grpc.RpcError:
                pass
            agent.start()
            api = agent.client()
            current = api.call("ConfigService", "GetConfig", timeout=60)
            now = int(current.get("revision", {}).get("revision", 0))
            got = len(current["config"].get("client", {}).get("control_connections", []))
            self.assertIn(now, (revision, revision + 1))
            if answered:
                self.assertEqual(now, revision + 1, "what was answered is durable")
            if now == revision + 1:
                sizes[now] = count
            self.assertEqual(got, sizes.get(now, 0))
        print(f"{len(sizes)} of 16 commits came through")


class StateDirectory(harness.Case):
    def run_agent(self, directory, *arguments):
        return subprocess.run(
            [harness.AGENT, "run", "--state-dir", directory, "--listen", "127.0.0.1:0", *arguments],
            capture_output=True, text=True, timeout=30,
        )

    def refused(self, directory, *words):
        done = self.run_agent(directory)
        self.assertEqual(done.returncode, 78, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def mount(self, options, name="mounted"):
        directory = os.path.join(self.directory, name)
        os.mkdir(directory)
        sh("mount", "-t", "tmpfs", "-o", options, "tmpfs", directory)
        self.stack.callback(sh, "umount", "-l", directory, check=False)
        return directory

    def agent_on(self, directory):
        """An agent with its state on a disk of its own, and its log elsewhere."""
        agent = harness.Agent(os.path.join(directory, "state"), port=harness.free_port())
        agent.log_path = os.path.join(self.directory, "log")
        agent.start()
        self.agents.append(agent)
        self.stack.callback(agent.stop)
        return agent

    def test_read_only(self):
        directory = self.mount("ro,size=64m")
        self.refused(directory, directory, "Read-only")

    def test_full(self):
        directory = self.mount("size=2m")
        self.refused(directory, directory, "bytes free")

    def fill(self, directory):
        """To the last octet; the file that does it."""
        filler = os.path.join(directory, "filler")
        with open(filler, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * 4096)
        self.assertEqual(os.statvfs(directory).f_bavail, 0)
        return filler

    def test_a_start_on_a_full_disk_goes_on_measuring(self):
        for kill in (True, False):
            with self.subTest(kill=kill):
                self.start_on_a_full_disk(kill)

    def start_on_a_full_disk(self, kill):
        directory = self.mount("size=64m", f"mounted-{kill}")
        agent = self.agent_on(directory)
        api = agent.client()
        port = harness.free_port()
        one = connection("c1", "127.0.0.1", destination_port=port, test_interval="1s")
        api.apply({"server": server(port=port), "client": client(one)})
        self.wait_for(lambda: tests(api.records(), "c1", "COMPLETE"))
        told = int(api.records()[-1]["cursor"])
        agent_id = api.call("AgentService", "GetAgent")["agent_id"]
        agent.kill() if kill else agent.stop()
        filler = self.fill(directory)
        agent.start()
        api = agent.client()
        found = api.call("AgentService", "GetAgent")
        self.assertEqual(found["agent_id"], agent_id)
        self.assertEqual(found["applied_revision"], "1")
        store = self.wait_for(lambda: (s := api.call("AgentService", "GetAgent")["store"])
                              and not s["healthy"] and s)
        self.assertIn("disk is full", store["detail"])
        done = lambda: tests(  # noqa: E731
            [r for r in api.records() if int(r["cursor"]) > told], "c1", "COMPLETE"
        )
        self.wait_for(done)
        os.remove(filler)
        self.wait_for(lambda: api.call("AgentService", "GetAgent")["store"]["healthy"])
        api.apply({"server": server(port=port), "client": client({**one, "description": "there is room"})})
        # And once more: what was given up is set aside again.
        self.wait_for(lambda: os.path.exists(os.path.join(agent.directory, "reserve")))
        agent.kill() if kill else agent.stop()
        self.fill(directory)
        agent.start()
        self.assertEqual(agent.client().call("AgentService", "GetAgent")["applied_revision"], "2")
        agent.stop()

    def test_what_is_damaged_stays_where_it_is_on_a_full_disk(self):
        directory = self.mount("size=64m")
        agent = self.agent_on(directory)
        agent.client().apply({"client": client(connection("c1", "127.0.0.1", inactive=True))})
        agent.kill()
        state = agent.directory
        with open(os.path.join(state, "config.sled", "db"), "r+b") as file:
            file.write(b"\xff" * (1 << 16))
        filler = self.fill(directory)
        self.refused(state, state, "bytes free")
        self.assertFalse(os.path.exists(os.path.join(state, "config.damaged")))
        os.remove(filler)
        agent.start()
        config = agent.client().call("ConfigService", "GetConfig")["config"]
        self.assertEqual(len(config["client"]["control_connections"]), 1)
        self.assertTrue(os.path.exists(os.path.join(state, "config.damaged")))

    def test_full_while_it_runs(self):
        directory = self.mount("size=64m")
        agent = self.agent_on(directory)
        api = agent.client()
        one = {"client": client(connection("c1", "127.0.0.1", inactive=True))}
        api.apply(one)
        filler = self.fill(directory)
        code, message, _ = api.refused({"client": client()})
        self.assertEqual(code, grpc.StatusCode.UNAVAILABLE)
        self.assertIn("bytes free", message)
        store = self.wait_for(lambda: (s := api.call("AgentService", "GetAgent")["store"])
                              and not s["healthy"] and s)
        self.assertIn("disk is full", store["detail"])
        # Health is looked at twice a second.
        health = lambda: api.call("Health", "Check", {"service": "store"}, package="grpc.health.v1")  # noqa: E731
        self.wait_for(lambda: health()["status"] == "NOT_SERVING", 5)
        self.assertEqual(len(api.call("ConfigService", "GetConfig")["config"]["client"]["control_connections"]), 1)
        os.remove(filler)
        self.wait_for(lambda: api.call("AgentService", "GetAgent")["store"]["healthy"])
        api.apply({"client": client()})

    def test_locked(self):
        agent = self.agent("state")
        agent.client()
        self.refused(os.path.join(self.directory, "state"), "in use by another agent")

    def test_api_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            done = subprocess.run(
                [harness.AGENT, "run", "--state-dir", os.path.join(self.directory, "s"),
                 "--listen", f"127.0.0.1:{taken.getsockname()[1]}"],
                capture_output=True, text=True, timeout=30,
            )
        self.assertEqual(done.returncode, 1)
        self.assertIn("in use", done.stderr)

    def test_remote_without_tls(self):
        done = self.run_agent(os.path.join(self.directory, "s"), "--listen", "0.0.0.0:0")
        self.assertEqual(done.returncode, 78)
        self.assertIn("allow_remote_without_tls", done.stderr)

    def test_settings_and_files(self):
        path = os.path.join(self.directory, "settings.toml")

        def with_settings(text, *words):
            with open(path, "w") as file:
                file.write(text)
            done = self.run_agent(os.path.join(self.directory, "s"), "--settings", path)
            self.assertEqual(done.returncode, 78, done.stderr)
            for word in words:
                self.assertIn(word, done.stderr)

        with_settings("[api]\nlistne = []\n", "listne", "listen", "line 2")
        with_settings("[log]\nfilter = \"=====\"\n", "log filter")
        with_settings("[api.tls]\ncertificate = \"/nowhere.pem\"\nkey = \"/nowhere.pem\"\n", "/nowhere.pem")
        done = self.run_agent(os.path.join(self.directory, "s"), "--settings", "/nowhere.toml")
        self.assertEqual(done.returncode, 78)
        done = self.run_agent(os.path.join(self.directory, "s"), "--bootstrap-config", path)
        self.assertEqual(done.returncode, 78)
        done = subprocess.run([harness.AGENT, "run", "--unknown"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 64)
        done = subprocess.run([harness.CTL, "frobnicate"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 64)
        done = subprocess.run([harness.CTL, "--agent", "127.0.0.1:1", "status"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 69)
        self.assertIn("cannot reach an agent at", done.stderr)


class Wire(harness.Case):
    """Arbitrary input of a peer."""

    def setUp(self):
        super().setUp()
        self.port = harness.free_port()
        agent = self.agent()
        self.api = agent.client()
        self.api.apply({"server": {
            **server("127.0.0.0/8"), "listen": [{"address": "127.0.0.1", "port": self.port}],
            "light": {"listen": [{"address": "127.0.0.1", "port": self.port}], "prefixes": ["127.0.0.0/8"]},
        }})
        self.wait_for(lambda: self.sockets_open())

    def sockets_open(self):
        sockets = self.api.call("ServerService", "GetServerStatus")["sockets"]
        return len(sockets) == 2 and not any(s["error"] for s in sockets)

    def control(self):
        peer = harness.dial(self.port)
        self.addCleanup(peer.close)
        greeting = b""
        while len(greeting) < 64:
            greeting += peer.recv(64 - len(greeting))
        return peer

    def setup(self, peer):
        peer.sendall(struct.pack(">I", 1) + bytes(160))
        start = b""
        while len(start) < 48:
            start += peer.recv(48 - len(start))
        self.assertEqual(start[15], 0)

    def closed(self, peer, seconds=5):
        peer.settimeout(seconds)
        try:
            while peer.recv(4096):
                pass
        except ConnectionResetError:
            pass
        return True

    def test_garbage_on_the_control_port(self):
        peer = self.control()
        peer.sendall(os.urandom(4) + bytes(160))
        self.assertTrue(self.closed(peer))
        peer = self.control()
        self.setup(peer)
        peer.sendall(b"\xee" * 512)
        self.assertTrue(self.closed(peer))
        self.wait_for(lambda: not self.api.call("ServerService", "ListServerConnections")["connections"])
        self.good_session()

    def test_half_a_message_and_a_slow_trickle(self):
        half = self.control()
        half.sendall(bytes(80))
        half.shutdown(socket.SHUT_WR)
        self.assertTrue(self.closed(half))
        slow = self.control()
        for octet in struct.pack(">I", 1) + bytes(160):
            slow.sendall(bytes([octet]))
            time.sleep(0.002)
        start = slow.recv(48)
        self.assertEqual(start[15], 0, "octet by octet is allowed")
        trickle = self.control()
        self.setup(trickle)
        trickle.sendall(b"\x05")
        self.good_session()
        # A message that is not completed ends the connection.
        begun = time.monotonic()
        self.assertTrue(self.closed(trickle, 60))
        self.assertLess(time.monotonic() - begun, 45)

    def test_runts_and_jumbo_datagrams(self):
        def packets():
            return {k: int(v) for k, v in self.api.call("ServerService", "GetServerStatus")["packets"].items()}

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(5)
            before = packets()
            for size in (0, 1, 13):
                udp.sendto(bytes(size), ("127.0.0.1", self.port))
            self.wait_for(lambda: packets()["dropped_too_short"] - before["dropped_too_short"] == 3)
            # An error estimate with multiplier 0 is unknown.
            udp.sendto(bytes(14), ("127.0.0.1", self.port))
            self.assertEqual(len(udp.recv(65536)), 41)
            self.assertEqual(packets()["unknown_error_estimate"], 1)
            for size in (14, 41, 1472, 9000, 65507):
                probe = struct.pack(">IQH", size, 1 << 63, 1) + os.urandom(size - 14)
                udp.sendto(probe, ("127.0.0.1", self.port))
                reply = udp.recv(65536)
                self.assertEqual(len(reply), max(size, 41))
                self.assertEqual(reply[24:28], struct.pack(">I", size))
            counts = packets()
            self.assertEqual(counts["received"], 3 + 1 + 5)
            self.assertEqual(counts["reflected"], 6)

    def good_session(self):
        """The server still does its work."""
        peer = self.control()
        self.setup(peer)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            udp.settimeout(5)
            port = udp.getsockname()[1]
            request = bytearray(112)
            request[0:2] = b"\x05\x04"
            request[12:16] = struct.pack(">HH", port, port)
            request[64:68] = struct.pack(">I", 27)
            request[76:84] = struct.pack(">II", 1, 0)
            peer.sendall(request)
            accept = peer.recv(48)
            self.assertEqual((len(accept), accept[0]), (48, 0))
            reflector = struct.unpack(">H", accept[2:4])[0]
            peer.sendall(b"\x02" + bytes(31))
            self.assertEqual(peer.recv(32)[0], 0)
            udp.sendto(struct.pack(">IQH", 0, 1 << 63, 1) + bytes(27), ("127.0.0.1", reflector))
            self.assertEqual(len(udp.recv(100)), 41)
            peer.sendall(struct.pack(">BBHI", 3, 0, 0, 1) + bytes(24))
        peer.close()


class Demo(harness.Case):
    def demo(self, *arguments, interrupt=None):
        environment = {**os.environ, "TMPDIR": self.directory}
        process = subprocess.Popen([harness.AGENT, "demo", *arguments], env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if interrupt:
            time.sleep(interrupt)
            process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        self.assertEqual(os.listdir(self.directory), [], "it removes what it made")
        return process.returncode, out, error

    def test_results_an_end_before_time_and_none(self):
        code, out, error = self.demo("--duration", "4s")
        self.assertEqual(code, 0, error)
        self.assertIn("COMPLETE, sent 50, lost 0", out)
        code, out, _ = self.demo("--duration", "60s", interrupt=4)
        self.assertEqual(code, 0)
        self.assertIn("All temporary files are removed", out)
        code, _, error = self.demo("--duration", "0s")
        self.assertEqual(code, 1, "it fails where no results came")
        self.assertIn("no test was completed", error)


class CommandLine(harness.Case):
    def test_files_without_end_or_bottom_are_refused(self):
        path = os.path.join(self.directory, "deep.json")
        with open(path, "w") as file:
            file.write('{"client":' + "[" * (1 << 20))
        start = time.monotonic()
        done = subprocess.run([harness.AGENT, "check", path], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 78)
        self.assertIn("line 1: too many nested brackets", done.stderr)
        done = subprocess.run([harness.AGENT, "check", "/dev/zero"], capture_output=True, text=True, timeout=60)
        self.assertIn("/dev/zero: the file is larger than 64 MiB", done.stderr)
        self.assertLess(time.monotonic() - start, 30)

    def test_help_describes_the_program_and_fits(self):
        for program, words in ((harness.AGENT, "Measure networks with TWAMP"), (harness.CTL, "Configure, watch and read")):
            shown = harness.sh(program, "--help")
            self.assertTrue(shown.startswith(words), shown)
            self.assertLessEqual(max(len(line) for line in shown.splitlines()), 100, shown)
        done = subprocess.run([harness.CTL, "stop"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 64)
        self.assertIn("<NAMES|--all>", done.stderr)

    def test_one_host_has_one_clock(self):
        agent = self.agent()
        api, port = agent.client(), harness.free_port()
        wanted = harness.connection("c1", "127.0.0.1", [harness.session("s1")], destination_port=port, test_count=1)
        api.apply({"server": harness.server(port=port), "client": harness.client(wanted)})
        self.wait_for(lambda: [r for r in api.records() if "test_result" in r])
        stats = subprocess.run([harness.CTL, "--agent", f"unix:{agent.socket}", "stats"],
                               capture_output=True, text=True).stdout
        self.assertIn("c1/s1\n  SCOPE", stats)
        self.assertNotIn("one-way", stats)
        self.assertLessEqual(max(len(line) for line in stats.splitlines()), 80, stats)

    def test_apply_shows_every_violation_on_a_line(self):
        agent = self.agent()
        agent.client()
        path = os.path.join(self.directory, "bad.yaml")
        with open(path, "w") as file:
            file.write("client: {control_connections: [{name: c1, test_sessions: [{name: s1, ttl: 0}]}]}")
        apply = [harness.CTL, "--agent", f"unix:{agent.socket}", "apply", "-f", path]
        done = subprocess.run(apply, capture_output=True, text=True)
        self.assertEqual(done.returncode, 78)
        self.assertIn("client.control_connections[0].target_address: ", done.stderr)
        self.assertIn("client.control_connections[0].test_sessions[0].ttl: ", done.stderr)
        checked = subprocess.run([harness.AGENT, "check", path], capture_output=True, text=True)
        self.assertEqual(checked.returncode, 78)
        self.assertIn("client.control_connections[0].test_sessions[0].ttl: ", checked.stderr)
        with open(path, "w") as file:
            file.write("client: {control_connections: [{name: c1, target_address: 127.0.0.1, inactive: true, "
                       "test_sessions: [{name: s1}]}]}")
        done = subprocess.run([*apply, "--output", "json"], capture_output=True, text=True)
        self.assertEqual(json.loads(done.stdout)["revision"], "1")
        checked = subprocess.run([harness.AGENT, "check", path], capture_output=True, text=True)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        with open(path, "w") as file:
            file.write("client:\n  control_connections:\n  - name: c1\n    target_adress: 127.0.0.1\n"
                       "    test_interval: 5 minutes\n    tcp_keepcnt: many\n    control_type: LIGTH\n")
        for command in (apply, [harness.AGENT, "check", path]):
            done = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(done.returncode, 78)
            for words in (
                "4 problems\n  line 4, column 5: unknown field \"target_adress\" at client.control_connections[0]: "
                "did you mean target_address?\n",
                "line 5, column 5: invalid duration \"5 minutes\" at client.control_connections[0].test_interval: "
                "expected a number with a unit, such as 20ms, 1.5s or 1m30s\n",
                "line 6, column 5: invalid number \"many\" at client.control_connections[0].tcp_keepcnt: ",
                "did you mean LIGHT?\n",
            ):
                self.assertIn(words, done.stderr)
        for command in (["status"], ["stats"], ["records"], ["revisions"], ["get", "config"], ["server", "status"]):
            for output in ("table", "json", "yaml"):
                done = subprocess.run(
                    [harness.CTL, "--agent", f"unix:{agent.socket}", *command, "-o", output],
                    capture_output=True, text=True,
                )
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertTrue(done.stdout.strip())
                if output == "json":
                    json.loads(done.stdout)
