"""Peers that are broken or mean harm: limits hold, and others are not disturbed."""

import os
import socket
import struct
import threading
import time
import unittest

from harness import Case, client, connection, events, free_port, server, session, tests


class Scripted:
    """A TWAMP server that goes a part of the way and then does something else."""

    def __init__(self, case, then):
        self.then, self.accepted = then, 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self.listener.getsockname()[1]
        case.addCleanup(self.listener.close)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    def serve(self, peer):
        try:
            with peer:
                self.then(peer)
        except OSError:
            pass


def take(peer, octets):
    said = b""
    while len(said) < octets:
        more = peer.recv(octets - len(said))
        if not more:
            raise OSError("gone")
        said += more
    return said


GREETING = bytes(12) + struct.pack(">I", 1) + os.urandom(32) + struct.pack(">I", 2048) + bytes(12)


def go(peer, steps):
    """Goes so many steps of a session: greeting, Server-Start, Accept-Session, Start-Ack."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    answers = [
        (0, GREETING),
        (164, bytes(48)),
        (112, struct.pack(">BBH", 0, 0, udp.getsockname()[1]) + os.urandom(16) + bytes(28)),
        (32, bytes(32)),
    ]
    for awaited, answer in answers[:steps]:
        if awaited:
            take(peer, awaited)
        peer.sendall(answer)
    return udp


def silent(peer):
    time.sleep(120)


def drip(peer):
    for octet in GREETING:
        peer.sendall(bytes([octet]))
        time.sleep(60)


def garbage(steps):
    def then(peer):
        udp = go(peer, steps)
        peer.sendall(os.urandom(4096))
        time.sleep(5)
        udp.close()
    return then


def flood(peer):
    while True:
        peer.sendall(os.urandom(1 << 16))


def closes(steps, octets=0):
    """Closes after a step, or in the middle of the next message."""
    def then(peer):
        go(peer, steps).close()
        if octets:
            peer.sendall(bytes(octets))
    return then


SERVERS = {
    "accepts and never speaks": silent,
    "speaks an octet a minute": drip,
    "garbage at once": garbage(0),
    "garbage after the greeting": garbage(1),
    "garbage after Server-Start": garbage(2),
    "garbage after Accept-Session": garbage(3),
    "garbage after Start-Ack": garbage(4),
    "sends without end": flood,
    "closes at once": closes(0),
    "closes in the greeting": closes(0, 30),
    "closes after the greeting": closes(1),
    "closes in Server-Start": closes(1, 20),
    "closes after Server-Start": closes(2),
    "closes in Accept-Session": closes(2, 20),
    "closes after Accept-Session": closes(3),
    "closes in Start-Ack": closes(3, 10),
    "closes after Start-Ack": closes(4),
}
ALLOWED = {"RESPONSE_TIMEOUT", "PROTOCOL_ERROR", "CLOSED_BY_SERVER", "RESET", "REJECTED", "NO_COMMON_MODE",
           "BAD_KEY", "LIMIT"}


class Servers(Case):
    def test_each_is_tried_in_the_rhythm_and_hurts_nobody(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        scripted = {name: Scripted(self, then) for name, then in SERVERS.items()}
        names = {f"bad{i}": name for i, name in enumerate(scripted)}
        good = connection("good", "127.0.0.1", [session("s1", probe_interval="0.02s")], destination_port=port,
                          test_interval="0.2s")
        api.apply({"server": server(port=port), "client": client(good)})
        self.wait_for(lambda: tests(api.records(), "good", "COMPLETE"))
        before = agent.memory_kib()
        api.apply({"client": client(good, *(
            connection(key, "127.0.0.1", destination_port=scripted[name].port, test_interval="0.5s",
                       connect_timeout="1s") for key, name in names.items()))}, mode="APPLY_MODE_MERGE")
        begun = time.monotonic()
        time.sleep(12)
        took = time.monotonic() - begun
        found = {c["name"]: c for c in api.call("ClientService", "ListConnections")["connections"]}
        for key, name in names.items():
            with self.subTest(server=name):
                loss = found[key].get("last_failure") or found[key]["last_loss"]
                self.assertIn(loss["cause"].removeprefix("FAILURE_CAUSE_"), ALLOWED, loss)
                self.assertTrue(loss["detail"])
                self.assertGreaterEqual(scripted[name].accepted, 3)
                # One attempt an interval, and one more where it had been up.
                self.assertLessEqual(scripted[name].accepted, took / 0.5 + 3)
        self.assertEqual(found["good"]["state"], "CONNECTION_STATE_RUNNING")
        results = tests(api.records(), "good")
        self.assertEqual({t["outcome"] for t in results}, {"TEST_OUTCOME_COMPLETE"})
        self.assertEqual(sum(int(t["figures"]["probes_lost"]) for t in results), 0)
        self.assertEqual({found[key]["task_restarts"] for key in found}, {"0"})
        self.assertLess(agent.memory_kib() - before, 30 << 10)

    def test_reflectors_that_flood(self):
        """Every probe is answered a thousand times, and with nonsense."""
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self.addCleanup(udp.close)

        def reflect():
            while True:
                try:
                    packet, source = udp.recvfrom(2048)
                except OSError:
                    return
                reply = bytearray(41)
                reply[0:4], reply[24:38] = packet[:4], packet[:14]
                reply[4:14] = packet[4:14]
                reply[16:24] = packet[4:12]
                for number in range(1000):
                    udp.sendto(reply if number % 2 else os.urandom(number), source)

        threading.Thread(target=reflect, daemon=True).start()
        agent = self.agent()
        api = agent.client()
        light = connection("c1", "127.0.0.1", [session("s1", destination_port=udp.getsockname()[1])],
                           control_type="CONTROL_TYPE_LIGHT", test_interval="0.2s")
        api.apply({"client": client(light)})
        self.wait_for(lambda: len(tests(api.records(), "c1", "COMPLETE")) >= 3, 30)
        figures = tests(api.records(), "c1", "COMPLETE")[0]["figures"]
        self.assertGreater(int(figures["probes_received"]), 0)
        self.assertGreater(int(figures["probes_duplicate"]) + int(figures["packets_ignored"]), 100)
        self.assertLess(agent.memory_kib(), 200 << 10)


class Clients(Case):
    def test_connections_that_are_opened_and_abandoned(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        good = connection("good", "127.0.0.1", [session("s1", probe_interval="0.02s")], destination_port=port,
                          test_interval="0.2s", source_address="127.0.0.2")
        api.apply({
            "server": server(port=port, maximum_connections=200, maximum_connections_per_client=50,
                             server_inactivity_timeout="2s"),
            "client": client(good),
        })
        self.wait_for(lambda: tests(api.records(), "good", "COMPLETE"))
        stop = threading.Event()
        opened = [0]

        def abandon(how):
            held = []
            while not stop.is_set():
                try:
                    peer = socket.create_connection(("127.0.0.1", port), timeout=2)
                    opened[0] += 1
                    how(peer)
                    held.append(peer)
                except OSError:
                    time.sleep(0.01)
                while len(held) > 60:
                    held.pop(0).close()

        def half(peer):
            peer.sendall(os.urandom(17))

        def session_of(peer):
            take(peer, 64)
            peer.sendall(struct.pack(">I", 1) + bytes(160))
            take(peer, 48)
            request = bytearray(112)
            request[:2] = 5, 4
            request[12:16] = struct.pack(">HH", 20000, 30000 + opened[0] % 9000)
            request[64:68] = struct.pack(">I", 27)
            peer.sendall(request)
            take(peer, 48)

        threads = [threading.Thread(target=abandon, args=(how,)) for how in (lambda peer: None, half, session_of)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        before = agent.memory_kib()
        time.sleep(8)
        status = api.call("ServerService", "GetServerStatus")
        self.assertLessEqual(status["connections_open"], 51)
        refused = {r["cause"]: int(r["count"]) for r in status["connections_refused"]}
        self.assertGreater(refused["REFUSAL_CAUSE_MAXIMUM_CONNECTIONS_PER_CLIENT"], 100)
        self.assertLessEqual(len(status["latest_refusals"]), 64)
        self.assertLess(agent.memory_kib() - before, 20 << 10)
        self.assertLess(len(os.listdir(f"/proc/{agent.process.pid}/fd")), 400)
        stop.set()
        for thread in threads:
            thread.join()
        self.assertGreater(opened[0], 500)
        results = tests(api.records(), "good")
        self.assertEqual({t["outcome"] for t in results}, {"TEST_OUTCOME_COMPLETE"})
        self.assertEqual(sum(int(t["figures"]["probes_lost"]) for t in results), 0)
        self.assertEqual(events(api.records(), "CONNECTION_LOST"), [])
        # All slots come back.
        self.wait_for(lambda: api.call("ServerService", "GetServerStatus")["connections_open"] == 1, 10)
        print(f"\n{opened[0]} connections opened and abandoned")


if __name__ == "__main__":
    unittest.main()
