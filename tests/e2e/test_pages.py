"""Listings come in pages, acting on everything must be said, entries of the server's lists are merged one by one."""

import json
import subprocess
import unittest

import grpc

import harness
from harness import CTL, Case, client, connection, free_port, server, session

INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Surface(Case):
    def setUp(self):
        super().setUp()
        self.running = self.agent()
        self.api = self.running.client()

    def invalid(self, service, method, fields, field):
        with self.assertRaises(grpc.RpcError) as raised:
            self.api.call(service, method, fields)
        self.assertEqual(raised.exception.code(), INVALID, raised.exception.details())
        self.assertIn(field, harness.violations(raised.exception))
        return raised.exception.details()

    def idle(self, count, **fields):
        return client(*(connection(f"c{i:05}", "127.0.0.1", inactive=True, **fields) for i in range(count)))

    def ctl(self, *arguments):
        return subprocess.run([CTL, "--agent", f"127.0.0.1:{self.running.port}", *arguments],
                              capture_output=True, text=True)

    def test_pages_of_a_large_server(self):
        """Lists of the server that are longer together than an answer may be."""
        keys = lambda chain: [{"key_id": f"{chain:02}-{n:057}", "secret": f"{chain}/{n}"} for n in range(1024)]  # noqa: E731
        prefixes = [f"2001:db8::{n:x}/128" for n in range(1024)]
        self.api.apply({"server": server(
            port=free_port(), maximum_sessions=7, authentication_modes=["AUTHENTICATION_MODE_ENCRYPTED"],
            client_list=[{"name": f"l{n}", "prefixes": prefixes} for n in range(64)],
            key_chains=[{"name": f"k{n}", "keys": keys(n)} for n in range(64)])})
        limited = harness.Client(f"127.0.0.1:{self.running.port}", default_limits=True)
        self.addCleanup(limited.close)
        page = limited.call("ConfigService", "GetConfig", {"page_token": ""})
        self.assertTrue(page["next_page_token"])
        told = self.ctl("get", "config", "--output", "json")
        self.assertEqual(told.returncode, 0, told.stderr)
        for shown in (limited.call("ConfigService", "GetConfig")["config"]["server"],
                      json.loads(told.stdout)["server"]):
            self.assertEqual(shown["maximum_sessions"], 7)
            self.assertEqual([(one["name"], len(one["prefixes"])) for one in shown["client_list"]],
                             [(f"l{n}", 1024) for n in range(64)])
            self.assertEqual([(one["name"], len(one["keys"])) for one in shown["key_chains"]],
                             [(f"k{n}", 1024) for n in range(64)])

    def test_pages_of_connections_and_of_the_document(self):
        self.api.apply({"client": self.idle(6000, description="x" * 1000), "server": server(port=free_port())})
        whole = self.api.call("ConfigService", "GetConfig")
        names = [c["name"] for c in whole["config"]["client"]["control_connections"]]
        self.assertEqual(names, [f"c{i:05}" for i in range(6000)])
        self.assertEqual(len(whole["changes"]), 6001)
        listed = self.api.call("ClientService", "ListConnections")["connections"]
        self.assertEqual([c["name"] for c in listed], names)

        first = self.api.call("ConfigService", "GetConfig", {"page_size": 1_000_000})
        self.assertTrue(first["next_page_token"], "a page is bounded, whatever is asked for")
        self.assertIn("server", first["config"])
        pages, token = [], ""
        while True:
            page = self.api.call("ClientService", "ListConnections", {"page_size": 2500, "page_token": token})
            pages.append(len(page["connections"]))
            token = page["next_page_token"]
            if not token:
                break
        self.assertEqual(pages, [2500, 2500, 1000])
        # A commit between two pages does not mix with them.
        self.api.apply({"client": self.idle(2)})
        rest = self.api.call("ConfigService", "GetConfig",
                             {"page_size": 2, "page_token": first["next_page_token"]})
        self.assertEqual(rest["revision"]["revision"], "1")
        some = self.api.call("ConfigService", "GetConfig", {"connections": ["c00001"]})
        self.assertEqual([c["name"] for c in some["config"]["client"]["control_connections"]], ["c00001"])
        shown = self.ctl("get", "config", "--revision", "1").stdout
        self.assertEqual(shown.count(" name: c"), 6000)

    def test_a_client_with_default_limits_reads_everything_of_twenty_thousand_connections(self):
        """grpcio refuses answers beyond 4 MiB unless it is told otherwise."""
        port = free_port()
        running = [connection(f"running{i}", "127.0.0.1", [session(
            "s", probe_count=1000, probe_interval="0.002s", loss_timeout="0.1s",
        )], destination_port=port, test_interval="0.1s") for i in range(10)]
        idle = [connection(f"{'long' * 14}{i:05}", "127.0.0.1", inactive=True, description="x" * 200,
                           labels={"label": "y" * 100}) for i in range(20_000 - len(running))]
        whole = {"client": client(*running, *idle), "server": server(port=port)}
        self.api.call("ConfigService", "ApplyConfig", {"config": whole}, timeout=120)
        plain = harness.Client(f"127.0.0.1:{self.running.port}", pool=self.api.pool, default_limits=True)
        self.addCleanup(plain.close)

        # Watching begins with all connections.
        request, call = plain.method("ClientService", "WatchConnections")
        stream, watched = call(request()), set()
        for message in stream:
            watched.update(c.name for c in message.connections)
            if len(watched) == 20_000:
                break
        stream.cancel()

        # Every connection changes, with its fields, and back again.
        for text in ("z", "x"):
            for one in idle:
                one["description"] = text * 200
            answer = plain.call("ConfigService", "ApplyConfig", {"config": whole}, timeout=120)
            self.assertEqual(len(answer["changes"]), len(idle))
            self.assertTrue(answer["changes"][0]["fields"])
        self.assertTrue(answer["changes"][-1]["details_omitted"])
        back = plain.call("ConfigService", "RollbackConfig", {}, timeout=120)
        self.assertEqual(len(back["changes"]), len(idle))

        everything = {}
        for service, method, part in (
            ("ConfigService", "GetConfig", "changes"), ("ConfigService", "ListRevisions", "revisions"),
            ("ClientService", "ListConnections", "connections"), ("ResultsService", "GetStatistics", "statistics"),
            ("ResultsService", "ListRecords", "records"), ("ResultsService", "ListConsumers", "consumers"),
            ("ServerService", "ListServerConnections", "connections"), ("ServerService", "ListServerSessions", "sessions"),
        ):
            fields = {"include_histograms": True, "include_history": True} if method == "GetStatistics" else {}
            everything[method] = plain.call(service, method, fields, timeout=120)[part]
        self.assertEqual(len(everything["GetConfig"]), len(idle))
        self.assertTrue(all(c["fields"] for c in everything["GetConfig"]), "nothing is left out of a page")
        self.assertEqual(len(everything["ListConnections"]), 20_000)
        self.assertEqual({s["connection"] for s in everything["GetStatistics"]}, {c["name"] for c in running})

        # Results of probes unfold to many times their stored size.
        latest = lambda: int(self.api.call("AgentService", "GetAgent")["store"]["latest_cursor"])  # noqa: E731
        self.wait_for(lambda: latest() > 1000, 120)
        newest = latest()
        stream, cursor = plain.stream({"earliest": True}), 0
        for message in stream:
            if message.WhichOneof("message") == "batch":
                cursor = message.batch.records[-1].cursor
            if cursor >= newest:
                break
        stream.cancel()
        stopped = plain.call("ClientService", "StopConnections", {"all": True})
        self.assertEqual(len(stopped["names"]), len(running))

    def test_tokens_are_checked(self):
        self.api.apply({"client": self.idle(5)})
        for number in range(3):
            self.api.apply({"client": self.idle(number)}, comment="x")
        page = self.api.call("ConfigService", "ListRevisions", {"page_size": 2})
        self.assertEqual([r["revision"] for r in page["revisions"]], ["4", "3"])
        rest = self.api.call("ConfigService", "ListRevisions", {"page_token": page["next_page_token"]})
        self.assertEqual([r["revision"] for r in rest["revisions"]], ["2", "1"])
        for service, method in (
            ("ConfigService", "GetConfig"), ("ConfigService", "ListRevisions"),
            ("ClientService", "ListConnections"), ("ServerService", "ListServerConnections"),
            ("ServerService", "ListServerSessions"), ("ResultsService", "GetStatistics"),
            ("ResultsService", "ListRecords"), ("ResultsService", "ListConsumers"),
        ):
            self.invalid(service, method, {"page_token": "nonsense"}, "page_token")
        for service, method in (("ConfigService", "GetConfig"), ("ResultsService", "ListConsumers")):
            self.assertIn("another request", self.invalid(
                service, method, {"page_token": page["next_page_token"]}, "page_token"))
        first, second = self.api.call("ResultsService", "ListRecords", {"page_size": 2})["records"]
        later = self.api.call("ResultsService", "ListRecords", {"since": second["time"]})["records"]
        self.assertNotIn(first["cursor"], [record["cursor"] for record in later])
        self.assertIn(second["cursor"], [record["cursor"] for record in later])
        self.assertEqual(len({record["incarnation"] for record in later}), 1)
        earlier = self.api.call("ResultsService", "ListRecords", {"until": second["time"], "latest": True})
        self.assertEqual([record["cursor"] for record in earlier["records"]], [first["cursor"]])
        self.invalid("ResultsService", "ListRecords",
                     {"since": second["time"], "until": first["time"]}, "until")
        records = self.api.call("ResultsService", "ListRecords", {"page_size": 1})
        self.assertTrue(records["next_page_token"])
        more = self.api.call("ResultsService", "ListRecords", {"page_token": records["next_page_token"]})
        self.assertGreater(int(more["records"][0]["cursor"]), int(records["records"][0]["cursor"]))
        self.invalid("ResultsService", "ListRecords",
                     {"page_token": records["next_page_token"], "filter": {"connections": ["c1"]}}, "page_token")

    def test_acting_on_everything_must_be_said(self):
        self.api.apply({"client": self.idle(1)})
        for service, method, field in (
            ("ClientService", "StartConnections", "names"), ("ClientService", "StopConnections", "names"),
            ("ResultsService", "ClearStatistics", "connections"),
        ):
            self.invalid(service, method, {}, field)
            self.invalid(service, method, {field: ["c00000"], "all": True}, "all")
        self.assertEqual(self.api.call("ClientService", "StopConnections", {"all": True}), {"names": []})
        for command in ("start", "stop", "clear"):
            self.assertEqual(self.ctl(command).returncode, 64, command)
            self.assertEqual(self.ctl(command, "c00000", "--all").returncode, 64, command)
        self.assertEqual(self.ctl("stop", "--all").returncode, 0)
        self.assertEqual(self.ctl("server", "close").returncode, 64)
        help_text = self.ctl("--help").stdout
        self.assertIn("Configure, watch and read a twamp-agent", help_text.splitlines()[0])

    def test_entries_of_the_servers_lists_are_merged_one_by_one(self):
        merge = dict(mode="APPLY_MODE_MERGE")
        entry = {"server": {"client_list": [{"name": "fleet/p/a", "prefixes": ["192.0.2.1"]}],
                            "key_chains": [{"name": "fleet/p/k", "keys": [{"key_id": "k", "secret": "s"}]}]}}
        _, _, found = self.api.refused(entry, **merge)
        self.assertIn("server", found, "there is no server to add it to")
        base = server(port=free_port(), maximum_sessions=7)
        self.api.apply({"server": base})
        self.api.apply(entry, **merge)
        shown = self.api.call("ConfigService", "GetConfig")["config"]["server"]
        lists = [entry["name"] for entry in base["client_list"]] + ["fleet/p/a"]
        self.assertEqual([one["name"] for one in shown["client_list"]], lists)
        self.assertEqual(shown["maximum_sessions"], 7)
        self.assertEqual(shown["key_chains"][0]["name"], "fleet/p/k")
        # Replaced, the rest is kept; a secret stays under its digest.
        entry["server"]["client_list"][0]["prefixes"] = ["192.0.2.2"]
        entry["server"]["key_chains"] = shown["key_chains"]
        self.api.apply(entry, **merge)
        shown = self.api.call("ConfigService", "GetConfig")["config"]["server"]
        self.assertEqual(shown["client_list"][-1]["prefixes"], ["192.0.2.2"])
        revision = int(self.api.call("AgentService", "GetAgent")["revision"])
        code, _, _ = self.api.refused({}, delete=["server/key_chains/fleet/p/k"], expected_revision=revision - 1,
                                      **merge)
        self.assertEqual(code, grpc.StatusCode.ABORTED)
        wrong = ["server/client_list/fleet/p/a", "server/client_list/nobody", "server/key_chains/fleet/p/k",
                 "server/key_chains/fleet/p/k"]
        bad = {"server": {"client_list": [{"name": "fleet/p/a", "prefixes": ["x"]}]}}
        _, _, found = self.api.refused(bad, delete=wrong, **merge)
        self.assertEqual(set(found), {"server.client_list[0].prefixes[0]", "delete[0]", "delete[1]", "delete[3]"})
        gone = self.ctl("apply", "--merge", "--delete", "server/client_list/fleet/p/a",
                        "--delete", "server/key_chains/fleet/p/k")
        self.assertEqual(gone.returncode, 0, gone.stderr)
        shown = self.api.call("ConfigService", "GetConfig")["config"]["server"]
        self.assertEqual([one["name"] for one in shown["client_list"]], lists[:-1])
        self.assertEqual(shown["key_chains"], [])
        _, _, found = self.api.refused({}, delete=["server/key_chains/fleet/p/k"], **merge)
        self.assertEqual(list(found), ["delete[0]"])


if __name__ == "__main__":
    unittest.main()
