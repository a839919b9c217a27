"""Failures around an agent, and its recovery from them."""

import os
import shutil
import time
import unittest

import grpc

from harness import (
    Case, TwoHosts, client, connection, dial, events, free_port, need, seconds, server, session, sh,
    tests,
)


class Surroundings(TwoHosts):
    """Two hosts with a network that misbehaves."""

    def setUp(self):
        super().setUp()
        need("nft")
        self.netns_files = f"/etc/netns/{self.a}"
        os.makedirs(self.netns_files, exist_ok=True)
        self.stack.callback(sh, "rm", "-rf", self.netns_files)

    def file(self, name, text):
        """A file of /etc as the first host sees it."""
        with open(os.path.join(self.netns_files, name), "w") as file:
            file.write(text)

    def drop(self, rule):
        """Has the second host drop what it receives."""
        for command in (
            "add table inet x",
            "add chain inet x input { type filter hook input priority 0; }",
            f"add rule inet x input {rule} drop",
        ):
            self.inside(self.b, "nft", command)

    def drop_nothing(self):
        self.inside(self.b, "nft", "delete table inet x")

    def start(self):
        self.agent_a, self.agent_b = self.agent("a", self.a), self.agent("b", self.b)
        return self.agent_a.client(), self.agent_b.client()

    def test_a_dead_resolver_hurts_only_names(self):
        self.file("resolv.conf", f"nameserver {self.B}\n")
        self.drop("udp dport 53")
        a, b = self.start()
        b.apply({"server": server()})
        names = [connection(f"c{i}", f"host{i}.example.net") for i in range(100)]
        a.apply({"client": client(connection("good", self.B), *names)})
        self.wait_for(lambda: a.connection("good")["state"] == "CONNECTION_STATE_RUNNING")
        self.wait_for(lambda: a.connection("c99").get("last_loss"), seconds=30)
        self.assertEqual(a.connection("c99")["last_loss"]["cause"], "FAILURE_CAUSE_DNS")
        for service, method in (("ResultsService", "ListRecords"), ("ConfigService", "ListRevisions")):
            a.call(service, method, timeout=5)
        threads = len(os.listdir(f"/proc/{self.agent_a.process.pid}/task"))
        self.assertLess(threads, 40)
        a.apply({})
        self.assertEqual(self.agent_a.stop(), 0)

    def test_a_name_that_nobody_answers_for_holds_up_no_other_session(self):
        """Neither at the start nor where another one changes; a name service that is slow is waited for longer."""
        self.file("resolv.conf", f"nameserver {self.B}\n")
        self.drop("udp dport 53")
        a, b = self.start()
        both = {"prefixes": ["0.0.0.0/0"], "listen": [{"port": 8620}]}
        b.apply({"server": {**server(), "light": both}})
        for control in ("MANAGED", "LIGHT"):
            port = {"destination_port": 8620} if control == "LIGHT" else {}
            wanted = lambda **fields: {"client": client(connection(  # noqa: E731
                control, self.B, [session("s1", **port, **fields), session("n", target_address="far.test", **port)],  # noqa: B023
                control_type=f"CONTROL_TYPE_{control}", test_interval="300s", connect_timeout="20s"))}  # noqa: B023
            told = lambda: a.connection(control)  # noqa: E731, B023
            starts = lambda: [int(s["starts"]) for s in told()["sessions"]]  # noqa: E731
            begun = time.monotonic()
            a.apply(wanted())
            self.wait_for(lambda: starts() == [1, 0], told=told)
            self.assertLess(time.monotonic() - begun, 6)
            self.wait_for(lambda: told().get("last_failure"), 2, told=told)
            self.assertEqual(told()["last_failure"]["cause"], "FAILURE_CAUSE_DNS")
            self.assertIn("session n: ", told()["last_failure"]["detail"])
            self.wait_for(lambda: tests(a.records(), control, "UNREACHABLE"), 3)  # noqa: B023
            begun = time.monotonic()
            change = a.apply(wanted(dscp_code_points="ef"))["changes"]
            self.assertEqual([c["sessions"] for c in change], [["s1"]])
            self.wait_for(lambda: starts() == [2, 0], told=told)
            self.assertLess(time.monotonic() - begun, 3)

    def test_a_silent_address_does_not_hide_the_next(self):
        self.file("hosts", f"{self.B6} far.test\n{self.B} far.test\n127.0.0.1 localhost\n")
        self.drop("meta nfproto ipv6 tcp dport 862")
        a, b = self.start()
        b.apply({"server": server()})
        a.apply({"client": client(connection("c1", "far.test"))})
        self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")
        self.assertEqual(a.connection("c1")["outages"], "0")

    def test_broadcasts_and_multicasts_are_not_answered(self):
        """A reflector on all addresses receives broadcasts and does not answer them."""
        _, b = self.start()
        prefixes = ["0.0.0.0/0", "::/0"]
        b.apply({"server": {"light": {"listen": [{"address": "0.0.0.0", "port": 4000}],
                                      "prefixes": prefixes}}})
        packets = lambda: b.call("ServerService", "GetServerStatus")["packets"]  # noqa: E731
        self.wait_for(lambda: b.call("ServerService", "GetServerStatus")["sockets"])
        script = (
            "import socket,sys,time\n"
            "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
            "s.setsockopt(socket.SOL_SOCKET,socket.SO_BROADCAST,1)\n"
            "s.settimeout(1)\n"
            "s.sendto(bytes(13)+b'\\x01'+bytes(30),(sys.argv[1],4000))\n"
            "try:\n  print(len(s.recv(2048)))\n"
            "except OSError:\n  print('nothing')\n"
        )
        send = lambda to: self.inside(self.a, "python3", "-c", script, to).strip()  # noqa: E731
        self.assertEqual(send(self.B), "44")
        self.assertEqual(send("10.99.0.255"), "nothing")
        # Each thread of the reflector hears it.
        self.assertGreaterEqual(int(packets()["dropped_reflection_loop"]), 1)

    def test_link_local_addresses(self):
        a, b = self.start()
        b.apply({"server": server()})

        def link_local():
            shown = sh("ip", "-n", self.b, "-6", "address", "show", "dev", "veth0", "-tentative")
            found = [word for word in shown.split() if word.startswith("fe80")]
            return found and found[0].split("/")[0]

        target = self.wait_for(link_local)
        a.apply({"client": client(connection("c1", target, interface="veth0"))})
        result = self.wait_for(lambda: tests(a.records(), "c1", "COMPLETE"))[0]
        self.assertEqual(result["figures"]["probes_received"], result["figures"]["probes_sent"])
        # From an address that is of no link: the kernel takes it while its own is yet to be checked.
        light = {"listen": [{"port": 8620}], "prefixes": ["::/0"]}
        b.apply({"server": {**server(), "light": light}})
        opened = lambda: [s for s in b.call("ServerService", "GetServerStatus")["sockets"]  # noqa: E731
                          if s["address"].endswith(":8620") and not s["error"]]
        self.wait_for(opened)
        a.apply({"client": client(
            connection("c2", target, interface="veth0", source_address=self.A6),
            connection("c3", target, [session("s1", destination_port=8620)], interface="veth0",
                       source_address=self.A6, control_type="CONTROL_TYPE_LIGHT"))})
        for name in ("c2", "c3"):
            figures = self.wait_for(lambda: tests(a.records(), name, "COMPLETE"))[0]["figures"]
            self.assertEqual(figures["probes_received"], figures["probes_sent"], name)
        self.assertEqual(b.call("ServerService", "GetServerStatus")["packets"]["dropped_send_failed"], "0")
        code, _, fields = a.refused({"client": client(connection("c1", f"{target}%veth0"))})
        self.assertEqual(code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("veth0", fields["client.control_connections[0].target_address"])

    def test_attempts_to_a_silent_host_keep_their_rhythm(self):
        a, b = self.start()
        b.apply({"server": server()})
        self.drop("tcp dport 862")
        a.apply({"client": client(connection("c1", self.B, test_interval="0.2s"))})
        count = lambda: int(a.connection("c1")["attempts_since_success"])  # noqa: E731
        self.wait_for(lambda: count() > 0)
        before, begun = count(), time.monotonic()
        time.sleep(5)
        made, passed = count() - before, time.monotonic() - begun
        self.assertLessEqual(abs(made - passed / 0.2), 3)

    def test_a_session_that_its_server_forgot(self):
        a, b = self.start()
        b.apply({"server": server(refwait="1s", server_inactivity_timeout="0s")})
        sessions = [session("s1", probe_count=2, loss_timeout="0.2s")]
        a.apply({"client": client(connection("c1", self.B, sessions, test_interval="0.5s"))})
        self.wait_for(lambda: tests(a.records(), "c1", "COMPLETE"))
        self.drop("meta l4proto udp")
        time.sleep(4)
        self.drop_nothing()
        self.wait_for(lambda: a.connection("c1")["renegotiations"] != "0", seconds=60)
        received = lambda: tests(a.records(), "c1")[-1]["figures"]["probes_received"]  # noqa: E731
        self.wait_for(lambda: received() == "2")
        self.assertEqual(events(a.records(), "CONNECTION_LOST"), [], "the connection never was")

    def test_a_server_that_moves_its_test_port(self):
        a, b = self.start()
        first, second = 4001, 4002
        moved = lambda port: {"mode": "TEST_PORT_MODE_SHARED", "shared_port": port}  # noqa: E731
        b.apply({"server": server(test_port=moved(first))})
        a.apply({"client": client(connection("c1", self.B))})
        self.wait_for(lambda: tests(a.records(), "c1", "COMPLETE"))
        b.apply({"server": server(test_port=moved(second))})
        where = lambda: a.connection("c1")["sessions"][0]["reflector_address"]  # noqa: E731
        self.wait_for(lambda: where().endswith(str(second)))
        mark = int(a.records()[-1]["cursor"])
        later = lambda: [t for t in tests(a.records(), "c1", "COMPLETE") if t["cursor"] > mark]  # noqa: E731
        self.assertEqual(self.wait_for(later)[-1]["figures"]["probes_lost"], "0")

    def test_a_reconnect_finds_room_beside_sessions_that_drain(self):
        a, b = self.start()
        b.apply({"server": server(maximum_sessions=40)})
        sessions = lambda dscp: [  # noqa: E731
            session(f"s{i}", loss_timeout="5s", dscp_code_points=dscp) for i in range(40)
        ]
        sessions_fixed = [session("s1", source_port=40000, loss_timeout="5s")]
        for change in ("ef", "af11", "cs1"):
            a.apply({"client": client(connection("c1", self.B, sessions(change)))})
            self.wait_for(lambda: a.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")
        b.apply({"server": server(test_port={"mode": "TEST_PORT_MODE_SHARED"})})
        a.apply({"client": client(connection("c2", self.B, sessions_fixed))})
        self.wait_for(lambda: a.connection("c2")["state"] == "CONNECTION_STATE_RUNNING")
        a.call("ClientService", "StopConnections", {"names": ["c2"]})
        self.wait_for(lambda: a.connection("c2")["state"] == "CONNECTION_STATE_STOPPED")
        a.call("ClientService", "StartConnections", {"names": ["c2"]})
        self.wait_for(lambda: a.connection("c2")["state"] == "CONNECTION_STATE_RUNNING", seconds=3)
        self.assertEqual(events(a.records(), "CONNECTION_LOST"), [])


class Alone(Case):
    """Outages of a client and a server on one host."""

    def test_outages_come_in_pairs(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        config = {"client": client(connection("c1", "127.0.0.1", destination_port=port,
                                              test_interval="0.2s"))}
        api.apply(config)
        self.wait_for(lambda: events(api.records(), "CONNECTION_LOST"))
        api.call("ClientService", "StopConnections", {"names": ["c1"]})
        self.wait_for(lambda: events(api.records(), "CONNECTION_ABANDONED"))
        api.call("ClientService", "StartConnections", {"names": ["c1"]})
        self.wait_for(lambda: len(events(api.records(), "CONNECTION_LOST")) == 2)
        api.close()
        agent.stop()
        agent.start()
        api = agent.client()
        attempts = int(api.connection("c1")["attempts_since_success"])
        self.wait_for(lambda: int(api.connection("c1")["attempts_since_success"]) > attempts)
        self.assertEqual(len(events(api.records(), "CONNECTION_LOST")), 2, "the outage goes on")
        self.assertEqual(len(events(api.records(), "CONNECTION_ABANDONED")), 1)
        api.call("ClientService", "StopConnections", {"names": ["c1"]})
        self.wait_for(lambda: len(events(api.records(), "CONNECTION_ABANDONED")) == 2)
        records = api.records()
        for lost, abandoned in zip(events(records, "CONNECTION_LOST"), events(records, "CONNECTION_ABANDONED"), strict=True):
            self.assertEqual(abandoned["cause"], "FAILURE_CAUSE_REFUSED")
            length = seconds(abandoned["time"]) - seconds(lost["time"])
            self.assertLess(abs(float(abandoned["duration"].rstrip("s")) - length), 0.2)
            self.assertLess(abs(seconds(abandoned["start_time"]) - seconds(lost["time"])), 0.05)

    def test_sessions_that_expire_in_pauses_are_negotiated_before_each_test(self):
        port = free_port()
        self.agent("peer").client().apply({"server": server(port=port, refwait="2s")})
        api = self.agent().client()
        sessions = [session("s1", probe_interval="0.02s", loss_timeout="0.3s")]
        api.apply({"client": client(connection("c1", "127.0.0.1", sessions, destination_port=port, test_interval="4s"))})
        found = self.wait_for(lambda: (t := tests(api.records(), "c1")) and len(t) >= 5 and t, 40)
        self.assertEqual([int(t["test_number"]) for t in found], list(range(1, len(found) + 1)))
        expired = [t for t in found if t["outcome"] == "TEST_OUTCOME_INTERRUPTED"]
        self.assertEqual([t["cause"] for t in expired], ["FAILURE_CAUSE_SESSION_EXPIRED"])
        self.assertEqual((expired[0]["test_number"], expired[0]["figures"]["probes_received"]), ("2", "0"))
        complete = [t for t in found if t["outcome"] == "TEST_OUTCOME_COMPLETE"]
        self.assertEqual(len(complete), len(found) - 1)
        self.assertEqual({t["figures"]["probes_received"] for t in complete}, {"5"})
        self.assertEqual(api.connection("c1")["renegotiations"], "1")
        self.assertEqual(events(api.records(), "CONNECTION_LOST"), [])

    def test_a_damaged_configuration_is_told(self):
        agent = self.agent()
        api = agent.client()
        api.apply({"client": client(connection("c1", "127.0.0.1", inactive=True))})
        api.close()
        agent.stop()
        path = os.path.join(agent.directory, "config.sled", "db")
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            file.write(os.urandom(size))
        agent.start()
        api = agent.client()
        store = api.call("AgentService", "GetAgent")["store"]
        self.assertFalse(store["healthy"])
        self.assertIn("config.damaged", store["detail"])
        health = lambda: api.call("Health", "Check", {"service": "store"}, "grpc.health.v1")  # noqa: E731
        self.wait_for(lambda: health()["status"] == "NOT_SERVING")
        api.apply({"client": client(connection("c1", "127.0.0.1", inactive=True))})
        self.assertTrue(api.call("AgentService", "GetAgent")["store"]["healthy"])

    def test_a_state_directory_that_is_deleted_or_replaced_is_noticed(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        measured = {"server": server(port=port), "client": client(connection(
            "c1", "127.0.0.1", [session("s", probe_count=5, probe_interval="0.05s", loss_timeout="0.1s")],
            destination_port=port, test_interval="0.1s"))}
        api.apply(measured)
        self.wait_for(lambda: any("test_result" in r for r in api.records()))
        directory = agent.directory
        store = lambda: api.call("AgentService", "GetAgent")["store"]  # noqa: E731
        tests = lambda: int(api.call("ClientService", "ListConnections")["connections"][0]  # noqa: E731
                            ["sessions"][0]["tests_finished"])

        def delete(name):
            (shutil.rmtree if os.path.isdir(name) else os.remove)(name)

        for name in ("", "replaced", "lock", "config.sled", "config.sled/db"):
            with self.subTest(name):
                agent.stop()
                shutil.copytree(directory, directory + ".backup")
                agent.start()
                api.close()
                api = agent.client()
                self.wait_for(lambda: tests() > 0)
                if name == "config.sled/db":
                    os.truncate(os.path.join(directory, name), 0)
                else:
                    delete(directory if name in ("", "replaced") else os.path.join(directory, name))
                if name == "replaced":
                    shutil.copytree(directory + ".backup", directory)
                with self.assertRaises(grpc.RpcError) as refused:
                    api.apply(measured)
                self.assertEqual(refused.exception.code(), grpc.StatusCode.UNAVAILABLE)
                self.assertIn("was deleted, replaced or truncated", refused.exception.details())
                if not name.startswith("config.sled"):
                    with self.assertRaises(grpc.RpcError):
                        api.call("ResultsService", "AckRecords", {"consumer": "c", "cursor": 1})
                begin = time.monotonic()
                found = self.wait_for(lambda: not (found := store())["healthy"] and found, 5)
                self.assertLess(time.monotonic() - begin, 5)
                self.assertIn("put a backup in place", found["detail"])
                before = tests()
                self.wait_for(lambda: tests() > before + 3)
                if not name.startswith("config.sled"):
                    with self.assertRaises(grpc.RpcError) as refused:
                        api.call("ClientService", "StopConnections", {"all": True})
                    self.assertIn("a restart of the agent will undo it", refused.exception.details())
                # The text tells to do this.
                agent.kill()
                shutil.rmtree(directory, ignore_errors=True)
                os.rename(directory + ".backup", directory)
                agent.start()
                api.close()
                api = agent.client()
                self.assertTrue(store()["healthy"])
                api.apply(measured)
        # Copies are written again.
        for name in ("config.last", "agent-id", "incarnations", "schema", "results.last"):
            path = os.path.join(directory, name)
            for touch in (os.remove, lambda path: os.truncate(path, 0)):
                touch(path)
                self.wait_for(lambda: os.path.exists(path) and os.path.getsize(path), 5)
                self.assertTrue(store()["healthy"])
        self.assertIn("deleted or changed", agent.log())
        # The results alone can begin anew.
        delete(os.path.join(directory, "state.sled"))
        self.wait_for(lambda: events(api.records(), "STORE_DEGRADED"))
        self.wait_for(lambda: events(api.records(), "STORE_RECOVERED"))
        self.assertTrue(store()["healthy"])
        api.call("ResultsService", "AckRecords", {"consumer": "c", "cursor": 1})

    def test_a_copy_that_cannot_be_written_is_told(self):
        agent = self.agent()
        api = agent.client()
        api.apply({"client": client(connection("c1", "127.0.0.1", inactive=True))})
        copy = os.path.join(agent.directory, "config.last")
        os.remove(copy)
        os.mkdir(copy)
        api.apply({"client": client(connection("c2", "127.0.0.1", inactive=True))})
        store = self.wait_for(lambda: (s := api.call("AgentService", "GetAgent")["store"])
                              and not s["healthy"] and s)
        self.assertIn("config.last", store["detail"])
        self.wait_for(lambda: events(api.records(), "STORE_DEGRADED"))
        os.rmdir(copy)
        self.wait_for(lambda: api.call("AgentService", "GetAgent")["store"]["healthy"])
        self.assertTrue(os.path.isfile(copy))

    def test_what_stands_in_the_place_of_a_database_is_put_aside(self):
        agent = self.agent()
        api = agent.client()
        api.apply({"client": client(connection("c1", "127.0.0.1", inactive=True))})
        for place in ("config.sled", "config.sled/db", "state.sled"):
            agent.stop()
            # Something of that name is there already.
            sh("rm", "-rf", *(os.path.join(agent.directory, f"{name}.damaged") for name in ("config", "state")))
            with open(os.path.join(agent.directory, "config.damaged"), "w") as file:
                file.write("in the way")
            path = os.path.join(agent.directory, place)
            if os.path.isdir(path):
                sh("rm", "-rf", path)
                with open(path, "w") as file:
                    file.write("no directory")
            else:
                os.remove(path)
                os.mkdir(path)
            agent.start()
            api = agent.client()
            config = api.call("ConfigService", "GetConfig")["config"]
            self.assertEqual(len(config["client"]["control_connections"]), 1, place)
            aside = place.split(".")[0] + ".damaged"
            self.assertTrue(os.path.exists(os.path.join(agent.directory, aside)), place)
            self.wait_for(lambda: [e for e in events(api.records(), "STORE_DEGRADED") if aside in e["detail"]])

    def test_damage_is_told_though_a_revision_was_rolled_back(self):
        agent = self.agent()
        api = agent.client()
        idle = lambda name: {"client": client(connection(name, "127.0.0.1", inactive=True))}  # noqa: E731
        api.apply(idle("a"))
        api.apply(idle("b"), confirm_timeout="1s")
        api.close()
        agent.kill()
        path = os.path.join(agent.directory, "config.sled", "db")
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
        time.sleep(1.2)
        agent.start()
        api = agent.client()
        document = api.call("ConfigService", "GetConfig")["config"]
        self.assertEqual([c["name"] for c in document["client"]["control_connections"]], ["a"])
        self.assertFalse(api.call("AgentService", "GetAgent")["store"]["healthy"])
        self.wait_for(lambda: events(api.records(), "STORE_DEGRADED"))
        # Both are missing although results exist: this is not a first start.
        api.close()
        agent.stop()
        shutil.rmtree(os.path.join(agent.directory, "config.sled"))
        os.remove(os.path.join(agent.directory, "config.last"))
        agent.start()
        api = agent.client()
        self.assertIn("are missing although results exist", api.call("AgentService", "GetAgent")["store"]["detail"])

    def test_health_of_each_connection(self):
        port, nobody = free_port(), free_port()
        api = self.agent().client()
        up = connection("up", "127.0.0.1", destination_port=port)
        down = connection("down", "127.0.0.1", destination_port=nobody)
        api.apply({"server": server(port=port), "client": client(up, down)})
        health = lambda name: api.call(  # noqa: E731
            "Health", "Check", {"service": f"client/{name}"}, "grpc.health.v1")["status"]
        self.wait_for(lambda: api.connection("up")["state"] == "CONNECTION_STATE_RUNNING")
        time.sleep(1)
        self.assertEqual((health("up"), health("down")), ("SERVING", "NOT_SERVING"))
        api.apply({"client": client(down)})
        time.sleep(1)
        with self.assertRaises(grpc.RpcError) as unknown:
            health("up")
        self.assertEqual(unknown.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_a_request_that_changed_nothing_is_remembered_over_a_restart(self):
        agent = self.agent()
        api = agent.client()
        one = {"client": client(connection("c1", "127.0.0.1", inactive=True))}
        other = {"client": client(connection("c2", "127.0.0.1", inactive=True))}
        api.apply(one)
        identifier = "6fa459ea-ee8a-3ca4-894e-db77e160355e"
        self.assertEqual(api.apply(one, request_id=identifier)["revision"], "1")
        self.assertEqual(api.apply(other)["revision"], "2")
        api.close()
        agent.kill()
        agent.start()
        api = agent.client()
        self.assertEqual(api.apply(one, request_id=identifier)["revision"], "1")
        self.assertEqual(api.call("ConfigService", "GetConfig")["revision"]["revision"], "2")

    def test_statistics_go_with_their_session(self):
        port = free_port()
        api = self.agent().client()
        name = lambda number: connection(  # noqa: E731
            "c1", "127.0.0.1",
            [session(f"s{number}", probe_count=1, loss_timeout="0.1s")],
            destination_port=port, test_interval="0.1s",
        )
        for number in range(5):
            api.apply({"server": server(port=port), "client": client(name(number))})
            self.wait_for(lambda: any(
                r["session"] == f"s{number}" for r in api.records() if r.get("test_result")))
        kept = {s["session"] for s in api.call("ResultsService", "GetStatistics")["statistics"]}
        self.assertEqual(kept, {"s4"})

    def test_sockets_of_sessions_go_with_their_connections(self):
        """A client that comes, asks and goes, again and again, holds no more than is allowed."""
        import socket
        import struct

        port = free_port()
        agent = self.agent()
        agent.client().apply({"server": server(port=port, maximum_sessions=4)})
        request = bytearray(112)
        request[:2] = 5, 4
        request[64:68] = struct.pack(">I", 27)
        most = 0
        for number in range(300):
            with dial(port) as peer:
                peer.recv(64, socket.MSG_WAITALL)
                peer.sendall(struct.pack(">I", 1) + bytes(160))
                peer.recv(48, socket.MSG_WAITALL)
                request[12:16] = struct.pack(">HH", 20000, 30000 + number)
                peer.sendall(request)
                peer.recv(48, socket.MSG_WAITALL)
            most = max(most, len(os.listdir(f"/proc/{agent.process.pid}/fd")))
        self.assertLess(most, 120)


if __name__ == "__main__":
    unittest.main()
