"""The API by others: TLS with certificates that change, Unix socket, reflection of both versions,
health, streams, and an agent that measures itself through a long outage."""

import os
import socket
import struct
import subprocess
import threading
import time

import grpc
import harness
from google.protobuf import json_format
from harness import client, connection, events, free_port, server, session, sh, tests


class Tls(harness.Case):
    def authority(self, name):
        sh("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
           "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.pem"))

    def certificate(self, authority, name, file):
        extension = self.path("extension")
        with open(extension, "w") as out:
            out.write("subjectAltName=IP:127.0.0.1,DNS:localhost")
        sh("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
           "-keyout", self.path(f"{file}.key"), "-out", self.path("request"))
        sh("openssl", "x509", "-req", "-in", self.path("request"), "-days", "2", "-CA",
           self.path(f"{authority}.pem"), "-CAkey", self.path(f"{authority}.key"), "-CAcreateserial",
           "-extfile", extension, "-out", self.path(f"{file}.pem"))

    def path(self, name):
        return os.path.join(self.directory, name)

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def open(self, agent, authority, *identity):
        pair = [self.read(f"{identity[0]}.{end}") for end in ("key", "pem")] if identity else [None, None]
        credentials = grpc.ssl_channel_credentials(self.read(f"{authority}.pem"), *pair)
        channel = grpc.secure_channel(f"127.0.0.1:{agent.port}", credentials)
        self.addCleanup(channel.close)
        return channel

    def works(self, channel, seconds=3):
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
            # A client without a certificate is sent away after its handshake.
            channel.unary_unary("/twamp.agent.v1.AgentService/GetAgent")(b"", timeout=seconds)
            return True
        except (grpc.FutureTimeoutError, grpc.RpcError):
            return False

    def test_mutual_tls_and_new_certificates(self):
        harness.need("openssl")
        for name in ("root", "other"):
            self.authority(name)
        self.certificate("root", "agent", "agent")
        self.certificate("root", "controller-7", "controller")
        self.certificate("other", "stranger", "stranger")
        settings = (f'[api.tls]\ncertificate = "{self.path("agent.pem")}"\n'
                    f'key = "{self.path("agent.key")}"\nclient_ca = "{self.path("root.pem")}"\n'
                    '[[api.roles]]\nrole = "admin"\nidentities = ["cert:localhost", "uid:0"]\n')
        agent = self.agent(settings=settings)
        good = self.open(agent, "root", "controller")
        self.wait_for(lambda: self.works(good))
        self.assertFalse(self.works(self.open(agent, "root")), "no certificate")
        self.assertFalse(self.works(self.open(agent, "root", "stranger")), "of another root")
        self.assertFalse(self.works(self.open(agent, "other", "controller")), "agent of another root")
        plain = grpc.insecure_channel(f"127.0.0.1:{agent.port}")
        self.addCleanup(plain.close)
        self.assertFalse(self.works(plain), "without TLS")
        # Revisions name their author.
        apply = good.unary_unary("/twamp.agent.v1.ConfigService/ApplyConfig")
        apply(b"", timeout=5)
        over_unix = harness.Client(f"unix:{agent.socket}")
        revisions = over_unix.call("ConfigService", "ListRevisions")["revisions"]
        self.assertEqual(revisions[0]["author"], "cert:localhost")
        command = [harness.CTL, "--agent", f"https://127.0.0.1:{agent.port}", "--ca", self.path("root.pem"),
                   "--cert", self.path("controller.pem"), "--key", self.path("controller.key"), "status"]
        self.assertIn("revision  1", sh(*command))
        run = lambda *arguments: subprocess.run(  # noqa: E731
            [harness.CTL, *arguments, "status"], capture_output=True, text=True, timeout=30)
        refused = run("--agent", f"https://127.0.0.1:{agent.port}", "--ca", self.path("root.pem"))
        self.assertIn("refused the TLS handshake", refused.stderr)
        self.assertIn("--cert and --key", refused.stderr)
        distrusted = run("--agent", f"https://127.0.0.1:{agent.port}")
        self.assertIn("name its root certificate with --ca", distrusted.stderr)
        for failed in (refused, distrusted):
            self.assertEqual(failed.returncode, 69, failed.stderr)
        # New files hold without a restart; files that are wrong leave the old ones in force.
        time.sleep(1.1)
        with open(self.path("agent.pem"), "w") as file:
            file.write("nonsense")
        self.assertTrue(self.works(self.open(agent, "root", "controller")))
        time.sleep(1.1)
        self.certificate("other", "agent", "agent")
        self.wait_for(lambda: self.works(self.open(agent, "other", "controller")))
        self.assertFalse(self.works(self.open(agent, "root", "controller")))


class Api(harness.Case):
    def test_tls_to_a_port_without_tls(self):
        agent = self.agent()
        agent.client()
        done = subprocess.run([harness.CTL, "--agent", f"https://127.0.0.1:{agent.port}", "status"],
                              capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 69)
        self.assertIn(f"127.0.0.1:{agent.port} answers without TLS: use http:// instead of https://", done.stderr)

    def test_reflection_health_and_unix_socket(self):
        agent = self.agent()
        over_unix, over_tcp = harness.Client(f"unix:{agent.socket}"), agent.client()
        for api in (over_unix, over_tcp):
            self.assertEqual(api.call("AgentService", "GetAgent")["version"].count("."), 2)
        self.assertEqual(os.stat(agent.socket).st_mode & 0o777, 0o660)
        for version in ("v1", "v1alpha"):
            call = over_tcp.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
            # Request list_services is field 7.
            answer = next(call(iter([b"\x3a\x01*"]), timeout=5))
            for service in (b"ConfigService", b"ClientService", b"ServerService", b"ResultsService",
                            b"AgentService", b"grpc.health.v1.Health"):
                self.assertIn(service, answer, version)
        for service in ("", "twamp.agent.v1", "store"):
            health = over_tcp.call("Health", "Check", {"service": service}, package="grpc.health.v1")
            self.assertEqual(health["status"], "SERVING", service)

    def test_a_commit_is_listed_at_once(self):
        agent = self.agent()
        api = agent.client()
        for revision in range(1, 21):
            api.call("ConfigService", "ApplyConfig", {"config": {"storage": {"retention_bytes": (1 << 20) + revision}}})
            page = api.call("ResultsService", "ListRecords", {"latest": True, "page_size": 1})
            event = page["records"][0]["event"]
            self.assertEqual((event["type"], event["revision"]),
                             ("EVENT_TYPE_CONFIGURATION_COMMITTED", str(revision)))

    def test_cancelled_calls_hold_no_memory(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        api.apply({"server": server(port=port), "client": client(*(
            connection(f"c{n}", "127.0.0.1", [session("s", probe_count=1000, probe_interval="0.001s", loss_timeout="0.1s")],
                       destination_port=port, test_interval="0.1s") for n in range(4)))})
        stored = lambda: int(api.call("AgentService", "GetAgent")["store"]["records"])  # noqa: E731
        self.wait_for(lambda: stored() > 1000, 60)
        api.call("ClientService", "StopConnections", {"all": True})
        # Each answer has some megabytes.
        request, call = api.method("ResultsService", "ListRecords")
        message = json_format.ParseDict({"page_size": 1000}, request())
        self.assertGreater(call(message, timeout=20).ByteSize(), 1 << 20)
        before, peaks = agent.memory_kib(), []
        for _ in range(90):
            calls = [call.future(message, timeout=60) for _ in range(50)]
            time.sleep(0.02)
            for one in calls:
                one.cancel()
            peaks.append(agent.memory_kib())
        peak = max(peaks)
        print(f"\n4,500 cancelled calls: {before} KiB before, {peak} KiB at most")
        self.assertLess(peak - before, 256 << 10, "four answers at a time")
        self.assertGreater(len(api.records()), 500, "it answers still")

    def test_cancelled_changes_hold_no_memory(self):
        agent = self.agent()
        api = agent.client()
        many = client(*(connection(f"c{n:04}", "127.0.0.1", inactive=True, description="x" * 1000) for n in range(1200)))
        api.apply({"client": many})
        request, call = api.method("ConfigService", "ApplyConfig")
        message = json_format.ParseDict({"validate_only": True, "config": {"client": many}}, request())
        self.assertGreater(message.ByteSize(), 1 << 20)
        self.assertEqual(call(message, timeout=60).revision, 1)
        before, peaks = agent.memory_kib(), []
        for number in range(9):
            calls = [call.future(message, timeout=60) for _ in range(50)]
            for _ in range(3 + 2 * number):
                time.sleep(0.1)
                peaks.append(agent.memory_kib())
            for one in calls:
                one.cancel()
        peak = max(peaks)
        print(f"\n450 cancelled calls: {before} KiB before, {peak} KiB at most")
        self.assertLess(peak - before, 256 << 10, "four requests at a time")
        # It answers still, soon: what was cancelled is not worked on.
        api.apply({"client": many}, comment="after")

    def test_a_change_that_stops_halfway_does_not_keep_others_out(self):
        """Five clients begin a request and send nothing more; more than have a turn at a time."""
        agent = self.agent()
        api = agent.client()
        channels = [grpc.insecure_channel(f"127.0.0.1:{agent.port}") for _ in range(5)]
        released = threading.Event()

        def halfway():
            yield b""
            released.wait()

        calls = [channel.stream_unary(
            "/twamp.agent.v1.ConfigService/ApplyConfig", request_serializer=lambda octets: octets,
            response_deserializer=lambda octets: octets).future(halfway()) for channel in channels]
        time.sleep(0.5)
        api.apply({"client": client(connection("c1", "127.0.0.1", inactive=True))})
        for call in calls:
            self.assertEqual(call.code(), grpc.StatusCode.DEADLINE_EXCEEDED, call.details())
            self.assertIn("did not arrive", call.details())
        released.set()
        for channel in channels:
            channel.close()

    def test_a_stream_opens_replays_marks_and_beats(self):
        agent = self.agent()
        api = agent.client()
        about = self.wait_for(
            lambda: (a := api.call("AgentService", "GetAgent"))["store"]["latest_cursor"] == "1" and a
        )
        stream = api.stream({"earliest": True, "heartbeat_interval": "0.2s"})
        messages = (harness.to_dict(message) for message in stream)
        opening = next(messages)["opening"]
        self.assertEqual((opening["agent_id"], opening["boot_id"]), (about["agent_id"], about["boot_id"]))
        self.assertEqual(opening["first_cursor"], "1")
        self.assertEqual(next(messages)["batch"]["records"][0]["event"]["type"], "EVENT_TYPE_AGENT_STARTED")
        self.assertEqual(next(messages)["sync"]["cursor"], "1")
        self.assertEqual(next(messages)["heartbeat"]["latest_cursor"], "1")
        api.apply({"client": client(connection("c1", "127.0.0.1", inactive=True))})
        following = next(m for m in messages if "batch" in m)["batch"]["records"][0]
        self.assertEqual((following["cursor"], following["event"]["revision"]), ("2", "1"))
        # Agents end with their streams.
        begun = time.monotonic()
        self.assertEqual(agent.stop(), 0)
        self.assertLess(time.monotonic() - begun, 8)
        with self.assertRaises(grpc.RpcError) as raised:
            for _ in messages:
                pass
        self.assertEqual(raised.exception.code(), grpc.StatusCode.UNAVAILABLE)

    def test_filters(self):
        port = harness.free_port()
        api = self.agent().client()
        api.apply({
            "server": {**server("127.0.0.0/8"), "listen": [{"address": "127.0.0.1", "port": port}]},
            "client": client(*(
                connection(name, "127.0.0.1", [session("s1", labels={"site": name}), session("s2")],
                           destination_port=port, test_interval="0.2s")
                for name in ("a", "b")
            )),
        })
        self.wait_for(lambda: len(tests(api.records())) >= 8)
        only = api.records(filter={"connections": ["a"], "sessions": ["s1"], "kinds": ["RECORD_KIND_TEST_RESULT"]})
        self.assertGreater(len(only), 0)
        self.assertTrue(all((r["connection"], r["session"]) == ("a", "s1") for r in only))
        self.assertTrue(all("test_result" in r for r in only))
        labelled = api.records(filter={"labels": {"site": "b"}})
        self.assertTrue(labelled and all((r["connection"], r["session"]) == ("b", "s1") for r in labelled))
        latest = api.call("ResultsService", "ListRecords", {"latest": True, "page_size": 5})["records"]
        cursors = [int(r["cursor"]) for r in latest]
        self.assertEqual((len(cursors), cursors), (5, sorted(cursors)))
        everything = api.call("ResultsService", "GetStatistics")["statistics"]
        keys = [(s["connection"], s["session"], s["scope"]) for s in everything]
        self.assertEqual(len({k[:2] for k in keys}), 4)
        scopes = {k[2] for k in keys}
        self.assertTrue({"STATISTICS_SCOPE_LAST_TEST", "STATISTICS_SCOPE_ALL_TESTS"} <= scopes)
        self.wait_for(lambda: [
            s for s in api.call("ResultsService", "GetStatistics",
                                {"scopes": ["STATISTICS_SCOPE_CURRENT_TEST"]})["statistics"]
            if int(s["figures"]["probes_sent"]) > 0
        ])

    def test_a_stopped_test_loses_nothing(self):
        port = harness.free_port()
        agent = self.agent()
        api = agent.client()
        api.apply({
            "server": {**server("127.0.0.0/8"), "listen": [{"address": "127.0.0.1", "port": port}]},
            "client": client(connection(
                "c1", "127.0.0.1", [session("s1", probe_count=10_000, probe_interval="0.005s")],
                destination_port=port,
            )),
        })
        sent = lambda: [
            s for s in api.call("ResultsService", "GetStatistics",
                                {"scopes": ["STATISTICS_SCOPE_CURRENT_TEST"]})["statistics"]
            if int(s["figures"]["probes_sent"]) > 20
        ]

        def stopped(count):
            found = self.wait_for(lambda: (t := tests(api.records(), "c1", "STOPPED"))[count - 1:] and t)
            figures = found[-1]["figures"]
            self.assertEqual((len(found), figures["probes_lost"]), (count, "0"))
            self.assertGreater(int(figures["probes_received"]), 20)
            total = int(figures["probes_sent"]) + int(figures["probes_not_sent"])
            self.assertEqual(total, 10_000)

        self.wait_for(sent)
        api.call("ClientService", "StopConnections", {"all": True})
        stopped(1)
        api.call("ClientService", "StartConnections", {"all": True})
        self.wait_for(sent)
        self.assertEqual(agent.stop(), 0)
        agent.start()
        api = agent.client()
        stopped(2)

    def test_retention_leaves_a_gap_that_is_told(self):
        port = harness.free_port()
        api = self.agent().client()
        storage = {"retention_bytes": str(1 << 20)}
        api.apply({
            "storage": storage,
            "server": {"light": {"listen": [{"address": "127.0.0.1", "port": port}], "prefixes": ["127.0.0.0/8"]}},
            "client": client(*(
                connection(f"c{i}", "127.0.0.1", [session(
                    "s", destination_port=port, probe_count=60, probe_interval="0.001s", loss_timeout="0.05s",
                )], control_type="CONTROL_TYPE_LIGHT", test_interval="0.01s", labels={"l": "x" * 900})
                for i in range(20)
            )),
        })
        store = self.wait_for(lambda: (s := api.call("AgentService", "GetAgent")["store"])
                              and int(s["earliest_cursor"]) > 1 and s, 60)
        self.assertLessEqual(int(store["live_bytes"]), (1 << 20) * 1.2)
        first = next(m["batch"]["records"][0] for m in map(harness.to_dict, api.stream({"after_cursor": 1})) if "batch" in m)
        self.assertEqual(first["gap"]["first_cursor"], "2")
        self.assertEqual(first["gap"]["last_cursor"], first["cursor"])
        earliest = next(m["batch"]["records"][0] for m in map(harness.to_dict, api.stream({"earliest": True})) if "batch" in m)
        self.assertNotIn("gap", earliest)


class LongOutage(harness.Case):
    def test_attempts_by_the_thousand(self):
        """An hour at one attempt each second, in the time of a test: 10 ms for 36 s."""
        agent = self.agent()
        api = agent.client()
        port = harness.free_port()
        api.apply({"client": client(connection(
            "c1", "127.0.0.1", destination_port=port, test_interval="0.01s",
            test_sessions=[session("s1", probe_count=10, probe_interval="0.1s")],
        ))})
        attempts = lambda: int(api.connection("c1")["attempts_since_success"])
        self.wait_for(lambda: attempts() > 300)
        memory, begun, before = agent.memory_kib(), time.monotonic(), attempts()
        time.sleep(36)
        made, length = attempts() - before, time.monotonic() - begun
        grown = agent.memory_kib() - memory
        print(f"{made} attempts in {length:.1f} s at 10 ms; memory {memory} KiB + {grown} KiB")
        self.assertLessEqual(made, length / 0.01 + 2, "never more than one in an interval")
        self.assertGreater(made, length / 0.01 * 0.8)
        self.assertLess(grown, 8 << 10)
        status = api.connection("c1")
        self.assertEqual(status["outages"], "1")
        self.assertEqual(len(events(api.records(), "CONNECTION_LOST")), 1)
        # A hundred attempts a second: one may be under way.
        self.assertIn(status["state"], ("CONNECTION_STATE_WAITING_RETRY", "CONNECTION_STATE_CONNECTING"))

    def test_causes(self):
        """Each way in which a server can fail has its cause, and the words for it."""
        api = self.agent().client()
        scripts = {
            "FAILURE_CAUSE_CLOSED_BY_SERVER": lambda peer: None,
            "FAILURE_CAUSE_REJECTED": lambda peer: peer.sendall(bytes(64)) or peer.recv(1),
            "FAILURE_CAUSE_NO_COMMON_MODE": lambda peer: peer.sendall(greeting(4)) or peer.recv(1),
            "FAILURE_CAUSE_RESPONSE_TIMEOUT": lambda peer: time.sleep(3),
            "FAILURE_CAUSE_RESET": lambda peer: peer.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
        }
        connections = []
        for cause, script in scripts.items():
            listener = socket.create_server(("127.0.0.1", 0))
            self.addCleanup(listener.close)
            threading.Thread(target=serve, args=(listener, script), daemon=True).start()
            connections.append(connection(
                cause, "127.0.0.1", destination_port=listener.getsockname()[1], connect_timeout="0.5s",
            ))
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        connections += [
            connection("FAILURE_CAUSE_REFUSED", "127.0.0.1", destination_port=harness.free_port()),
            connection("FAILURE_CAUSE_DNS", "no-such-host.invalid"),
            connection("FAILURE_CAUSE_LOCAL_ERROR", "localhost", [session("s1", source_address="::1")],
                       destination_port=listening.getsockname()[1]),
        ]
        api.apply({"client": client(*connections)})
        for wanted in connections:
            cause = wanted["name"]
            loss = self.wait_for(lambda: api.connection(cause).get("last_loss"))
            self.assertEqual(loss["cause"], cause, loss["detail"])
            self.assertTrue(loss["detail"])


def greeting(modes):
    return bytes(12) + struct.pack(">I", modes) + bytes(48)


def serve(listener, script):
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer:
            try:
                script(peer)
            except OSError:
                pass
