"""The agent begins and ends: killed at any moment, started on a damaged store, watched by a service
manager, ended while peers hang."""

import os
import random
import shutil
import signal
import socket
import threading
import time
import unittest

import grpc

from harness import (
    Case, Client, client, connection, dial, events, free_port, seconds, server, session, tests,
)

KILLS = int(os.environ.get("TWAMP_KILLS", "200"))


def idle(name, **fields):
    return connection(name, "127.0.0.1", inactive=True, **fields)


class Killed(Case):
    def test_no_acknowledged_push_is_lost(self):
        """`kill -9` at random moments under pushes: what runs after it is the last that was
        acknowledged, or the one that was under way, or what was before one that waits."""
        seed = random.randrange(1 << 32)
        print(f"\nseed {seed}, {KILLS} kills")
        chance = random.Random(seed)
        agent = self.agent()
        api = agent.client()
        # The pool cannot load anything after the first kill.
        api.call("ConfigService", "GetConfig")
        pool, number = api.pool, 0
        # Possible current revisions: description, and whether unconfirmed.
        current, confirmed, acknowledged = "", "", 0
        rolled_back = 0
        for kill in range(KILLS):
            pushes, stop = [], threading.Event()

            def push(api=api, pushes=pushes, stop=stop):
                nonlocal number
                while not stop.is_set():
                    number += 1
                    timeout = chance.choice([None, None, None, "1s", "60s"])
                    fields = {"confirm_timeout": timeout} if timeout else {}
                    pushes.append([str(number), timeout, None])
                    try:
                        answer = api.apply(
                            {"client": client(idle("c", description=str(number)))}, **fields)
                    except (grpc.RpcError, ValueError):
                        return
                    pushes[-1][2] = int(answer["revision"])

            pusher = threading.Thread(target=push)
            pusher.start()
            time.sleep(chance.uniform(0, 0.15))
            agent.kill()
            stop.set()
            pusher.join()
            api.close()
            before = (current, confirmed)
            # The state after all that was acknowledged.
            for description, timeout, revision in pushes:
                if revision is None:
                    continue
                self.assertGreater(revision, acknowledged)
                acknowledged = revision
                current = description
                if timeout is None:
                    confirmed = description
            allowed = {current}
            under_way = [p for p in pushes if p[2] is None]
            allowed |= {description for description, _, _ in under_way}
            agent.start()
            api = Client(f"127.0.0.1:{agent.port}", pool=pool)
            # An unconfirmed revision may roll back in between.
            newest, kept = None, []
            while newest != (got := api.call("ConfigService", "GetConfig")).get("revision", {}).get("revision"):
                kept = api.call("ConfigService", "ListRevisions")["revisions"]
                newest = kept[0]["revision"] if kept else None
            connections = got.get("config", {}).get("client", {}).get("control_connections", [])
            found = connections[0]["description"] if connections else ""
            revision = int(got.get("revision", {}).get("revision", 0))
            self.assertGreaterEqual(revision, acknowledged, (seed, kill))
            if int(got.get("revision", {}).get("rollback_to", 0)) or (found == "" and current != ""):
                rolled_back += 1
                allowed = {confirmed}
                self.assertIn("confirm", got["revision"]["comment"])
            self.assertIn(found, allowed, (seed, kill, before, pushes, got))
            # From here on the truth is what is there.
            current, acknowledged = found, revision
            if "confirm_deadline" not in got:
                confirmed = found
            numbers = [int(r["revision"]) for r in kept]
            self.assertEqual(numbers, sorted(numbers, reverse=True))
            self.assertEqual(set(numbers), set(range(max(1, revision - 49), revision + 1)) & set(numbers), (seed, kill, got))
            self.assertGreaterEqual(len(numbers), min(revision, 50))
        print(f"{number} pushes, {acknowledged} revisions, {rolled_back} rolled back at a start")


class Remembered(Case):
    """The state of a connection goes on over the end of the agent, whichever way it ends."""

    def setUp(self):
        super().setUp()
        self.subject = self.agent()
        self.api = self.subject.client()
        self.port = free_port()
        self.ends = [self.subject.kill, self.subject.stop, self.subject.kill]

    def serve(self):
        self.agent("peer").client().apply({"server": server(port=self.port)})

    def measured(self, **fields):
        sessions = [session("s1", probe_count=2, probe_interval="0.01s", loss_timeout="0.2s")]
        return {"client": client(connection(
            "c1", "127.0.0.1", sessions, **{"destination_port": self.port, "test_interval": "0.2s", **fields}))}

    def state(self):
        return self.api.connection("c1")["state"].removeprefix("CONNECTION_STATE_")

    def restart(self, end):
        self.api.close()
        end()
        self.subject.start()
        self.api = self.subject.client()

    def count(self, kind):
        return len(events(self.api.records(), kind))

    def call(self, method):
        self.api.call("ClientService", method, {"names": ["c1"]})

    def test_an_outage_is_one_pair_of_events(self):
        self.api.apply(self.measured())
        lost = self.wait_for(lambda: events(self.api.records(), "CONNECTION_LOST"))[0]
        begun = seconds(lost["time"])
        for end in self.ends:
            before = int(self.api.connection("c1")["attempts_since_success"])
            self.wait_for(lambda: int(self.api.connection("c1")["attempts_since_success"]) >= before + 3)
            self.restart(end)
            time.sleep(0.5)
            told = self.api.connection("c1")
            self.assertEqual(told["outages"], "1")
            self.assertEqual(told["last_loss"]["cause"], "FAILURE_CAUSE_REFUSED")
            self.assertLess(abs(seconds(told["last_loss"]["time"]) - begun), 0.05)
            self.assertGreater(float(told["outage_duration"].rstrip("s")), time.time() - begun - 1)
        attempts = int(self.api.connection("c1")["attempts_since_success"])
        self.serve()
        restored = self.wait_for(lambda: events(self.api.records(), "CONNECTION_RESTORED"))
        kinds = ("LOST", "RESTORED", "ABANDONED")
        self.assertEqual([self.count(f"CONNECTION_{kind}") for kind in kinds], [1, 1, 0])
        self.assertEqual(restored[0]["cause"], "FAILURE_CAUSE_REFUSED")
        self.assertLess(abs(seconds(restored[0]["start_time"]) - begun), 0.05)
        length = seconds(restored[0]["time"]) - begun
        self.assertLess(abs(float(restored[0]["duration"].rstrip("s")) - length), 0.2)
        self.assertGreater(int(restored[0]["attempts"]), attempts)
        told = self.api.connection("c1")
        self.assertLess(abs(float(told["outage_duration"].rstrip("s")) - length), 0.2)
        # An outage that is over is not resumed, and counts on.
        self.restart(self.subject.kill)
        self.wait_for(lambda: self.state() == "RUNNING")
        again = self.api.connection("c1")
        self.assertEqual((again["outages"], again["outage_duration"]), ("1", told["outage_duration"]))

    def test_an_outage_ends_with_its_connection(self):
        self.api.apply(self.measured())
        self.wait_for(lambda: self.count("CONNECTION_LOST") == 1)
        self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["client/c1"])
        self.wait_for(lambda: self.count("CONNECTION_ABANDONED") == 1)
        self.api.apply(self.measured())
        self.wait_for(lambda: self.count("CONNECTION_LOST") == 2)
        self.assertEqual(self.api.connection("c1")["outages"], "1")
        self.restart(self.subject.kill)
        self.wait_for(lambda: int(self.api.connection("c1")["attempts_since_success"]) >= 3)
        self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["client/c1"])
        self.wait_for(lambda: self.count("CONNECTION_ABANDONED") == 2)
        self.restart(self.subject.kill)
        self.assertEqual((self.count("CONNECTION_LOST"), self.count("CONNECTION_RESTORED")), (2, 0))

    def test_a_completed_connection_stays_so(self):
        self.serve()
        self.api.apply(self.measured(test_count=2))
        completed, done = 0, 0
        measured = lambda: len(tests(self.api.records(), "c1", "COMPLETE"))  # noqa: E731
        for end in self.ends:
            # The first time after the commit, then by hand.
            completed, done = completed + 1, done + 2
            self.wait_for(lambda: self.count("CONNECTION_COMPLETED") == completed)
            time.sleep(0.2)
            self.restart(end)
            time.sleep(1)
            self.assertEqual((self.state(), self.count("CONNECTION_COMPLETED")), ("COMPLETED", completed))
            self.assertEqual(measured(), done)
            self.call("StartConnections")
        self.wait_for(lambda: self.count("CONNECTION_COMPLETED") == completed + 1)
        # Another test_count starts over.
        self.api.apply(self.measured(test_count=3))
        self.wait_for(lambda: self.count("CONNECTION_COMPLETED") == completed + 2)
        self.assertEqual(measured(), done + 2 + 3)

    def test_a_manual_stop_stays_from_its_answer_on(self):
        self.serve()
        self.api.apply(self.measured())
        for end in self.ends:
            self.wait_for(lambda: self.state() == "RUNNING")
            self.call("StopConnections")
            self.restart(end)
            time.sleep(0.5)
            self.assertEqual(self.state(), "STOPPED")
            self.call("StartConnections")
            self.restart(end)
            self.wait_for(lambda: self.state() == "RUNNING")
        # A change of the connection starts it, and a removal forgets the stop.
        self.call("StopConnections")
        self.api.apply(self.measured(description="changed"))
        self.wait_for(lambda: self.state() == "RUNNING")
        time.sleep(0.2)
        self.restart(self.subject.kill)
        self.wait_for(lambda: self.state() == "RUNNING")
        self.call("StopConnections")
        self.api.apply({}, mode="APPLY_MODE_MERGE", delete=["client/c1"])
        self.api.apply(self.measured())
        self.wait_for(lambda: self.state() == "RUNNING")
        self.assertEqual(self.count("CONNECTION_LOST"), 0)


class Damaged(Case):
    def wreck(self, path, how):
        size = os.path.getsize(path)
        if how == "missing":
            os.remove(path)
        elif how == "empty":
            os.truncate(path, 0)
        elif how == "half":
            os.truncate(path, size // 2)
        else:
            with open(path, "r+b") as file:
                for at in range(0, size, max(1, size // 64)):
                    file.seek(at)
                    octet = file.read(1)
                    file.seek(at)
                    file.write(bytes([octet[0] ^ 0x10]))

    def test_each_file_in_each_way(self):
        agent = self.agent()
        api = agent.client()
        port = free_port()
        wanted = connection("c1", "127.0.0.1", [session("s1", loss_timeout="0.1s")], destination_port=port,
                            authentication_mode="AUTHENTICATION_MODE_ENCRYPTED", key_id="k", secret="hush",
                            test_interval="0.1s")
        keys = [{"name": "k", "keys": [{"key_id": "k", "secret": "hush"}]}]
        serving = server(port=port, key_chains=keys, authentication_modes=["AUTHENTICATION_MODE_ENCRYPTED"])
        for number in range(5):
            wanted["description"] = str(number)
            api.apply({"client": client(wanted), "server": serving})
        digest = api.call("ConfigService", "GetConfig")["config"]["client"]["control_connections"][0]["secret_digest"]
        self.wait_for(lambda: len(tests(api.records(), "c1", "COMPLETE")) > 3)
        time.sleep(6)
        api.close()
        self.assertEqual(agent.stop(), 0)
        good = agent.directory + ".good"
        shutil.copytree(agent.directory, good)
        files = sorted(
            os.path.relpath(os.path.join(root, name), good)
            for root, _, names in os.walk(good) for name in names if name != "lock"
        )
        self.assertIn("config.last", files)
        told = {}
        for name in files:
            for how in ("missing", "empty", "half", "flipped"):
                shutil.rmtree(agent.directory)
                shutil.copytree(good, agent.directory)
                self.wreck(os.path.join(agent.directory, name), how)
                with self.subTest(file=name, how=how):
                    agent.start()
                    try:
                        api = agent.client()
                        got = api.call("ConfigService", "GetConfig")
                        shown = got["config"]["client"]["control_connections"][0]
                        self.assertEqual((got["revision"]["revision"], shown["description"]), ("5", "4"))
                        self.assertEqual(shown["secret_digest"], digest)
                        # It measures, with the secret.
                        self.wait_for(lambda: api.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")
                        self.wait_for(lambda: tests(api.records(), "c1", "COMPLETE"))
                        trouble = lambda: [  # noqa: E731
                            e["detail"] for e in events(api.records(), "STORE_DEGRADED")]
                        store = api.call("AgentService", "GetAgent")["store"]
                        if name == "config.sled/db":
                            self.assertFalse(store["healthy"])
                            self.assertIn("revision 5 was recovered from its copy", store["detail"])
                            self.wait_for(lambda: "recovered from its copy" in " ".join(trouble()))
                        if name == "state.sled/db":
                            self.wait_for(lambda: "statistics and consumers was damaged" in " ".join(trouble()))
                        if name.startswith("results/") and name.endswith("/db"):
                            self.wait_for(lambda: "results were damaged" in " ".join(trouble()))
                        told[name, how] = trouble()
                        # And the next change makes it whole again.
                        document = got["config"]
                        document["client"]["control_connections"][0]["description"] = "again"
                        self.assertEqual(api.apply(document)["revision"], "6")
                        self.assertTrue(api.call("AgentService", "GetAgent")["store"]["healthy"])
                        api.close()
                        self.assertEqual(agent.stop(), 0)
                        agent.start()
                        api = agent.client()
                        self.assertEqual(api.call("ConfigService", "GetConfig")["revision"]["revision"], "6")
                    finally:
                        api.close()
                        agent.stop()
        for place, trouble in told.items():
            print(place, trouble or "nothing to tell")


class Service(Case):
    def test_a_service_manager_is_told(self):
        path = os.path.join(self.directory, "notify")
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.bind(path)
        manager.settimeout(10)
        os.environ.update(NOTIFY_SOCKET=path, WATCHDOG_USEC="900000")
        try:
            agent = self.agent()
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"]
        self.assertEqual(manager.recv(100).strip(), b"READY=1")
        agent.client().close()
        beats = []
        while len(beats) < 5:
            self.assertEqual(manager.recv(100).strip(), b"WATCHDOG=1")
            beats.append(time.monotonic())
        self.assertLess(max(b - a for a, b in zip(beats, beats[1:])), 0.9)
        agent.process.send_signal(signal.SIGTERM)
        said = b""
        while b"STOPPING=1" not in said:
            said = manager.recv(100)
        self.assertEqual(agent.process.wait(timeout=10), 0)

    def test_sessions_are_stopped_in_form_and_drained(self):
        """Stop-Sessions with the right number, once what is under way is answered, in each mode."""
        for individual in (True, False):
            port = free_port()
            servers, agent = self.agent(f"servers{individual}"), self.agent(f"agent{individual}")
            peer, api = servers.client(), agent.client()
            peer.apply({"server": server(port=port, extensions={"individual_session_control": individual})})
            three = [session(f"s{i}", probe_count=1000, probe_interval="0.02s") for i in range(3)]
            api.apply({"client": client(connection("c1", "127.0.0.1", three, destination_port=port))})
            self.wait_for(lambda: api.connection("c1")["state"] == "CONNECTION_STATE_RUNNING")
            time.sleep(0.5)
            api.close()
            self.assertEqual(agent.stop(), 0)
            self.wait_for(lambda: not peer.call("ServerService", "ListServerConnections")["connections"])
            status = peer.call("ServerService", "GetServerStatus")
            self.assertEqual(status["irregular_stops"], "0")
            self.assertEqual(status["connections_ended"], [{"cause": "END_CAUSE_CLOSED_BY_CLIENT", "count": "1"}])
            agent.start()
            api = agent.client()
            stopped = tests(api.records(), "c1", "STOPPED")
            self.assertEqual(len(stopped), 3)
            self.assertEqual({t["figures"]["probes_lost"] for t in stopped}, {"0"})
            self.assertEqual({t["figures"]["probes_sent"] == t["figures"]["probes_received"] for t in stopped}, {True})
            packets = status["packets"]
            self.assertEqual(int(packets["received"]), sum(int(t["figures"]["probes_sent"]) for t in stopped))

    def test_it_ends_in_time_while_peers_hang(self):
        """Servers that never answer, a stream without a reader, a client that sends half a message."""
        silent = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.addCleanup(silent.close)
        port = free_port()
        agent = self.agent()
        api = agent.client()
        api.apply({
            "server": server(port=port),
            "client": client(*(
                connection(f"c{i}", "127.0.0.1", destination_port=silent.getsockname()[1], connect_timeout="30s")
                for i in range(10)
            ), connection("up", "127.0.0.1", [session("s1", loss_timeout="60s")], destination_port=port)),
        })
        stream = api.stream({"earliest": True})
        next(stream)
        half = dial(port)
        self.addCleanup(half.close)
        half.sendall(b"\0\0\0")
        self.wait_for(lambda: api.connection("up")["state"] == "CONNECTION_STATE_RUNNING")
        begun = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        self.assertEqual(agent.process.wait(timeout=20), 0)
        self.assertLess(time.monotonic() - begun, 15)
        agent.start()
        api = agent.client()
        stopped = events(api.records(), "AGENT_STOPPED")
        self.assertEqual(len(stopped), 1)


if __name__ == "__main__":
    unittest.main()
