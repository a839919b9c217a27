"""Results: that numbers are what an independent computation makes of the single probes, that
intervals go by the clock, and that nothing that a consumer was given is ever lost."""

import collections
import errno
import itertools
import os
import random
import re
import subprocess
import threading
import time
import unittest

import grpc
import harness
from harness import Case, client, connection, events, free_port, need, server, session, sh

KILLS = int(os.environ.get("TWAMP_RESULT_KILLS", "50"))
PROBES = int(float(os.environ.get("TWAMP_STATISTICS_PROBES", "1000000")))


class Numbers(harness.TwoHosts):
    """A million probes over a link that loses some both ways."""

    SESSIONS = 10

    def test_numbers_are_those_of_numpy(self):
        need("nft")
        import numpy

        far = self.agent("far", namespace=self.b).client()
        near = self.agent("near", namespace=self.a).client()
        far.apply({"server": server(maximum_sessions=64)})
        # In runs now and then: one in fifty, and all of some in a row.
        for namespace in (self.a, self.b):
            self.inside(namespace, "nft", "add", "table", "inet", "t")
            self.inside(namespace, "nft", "add", "chain", "inet", "t", "c",
                        "{ type filter hook input priority 0; }")
            self.inside(namespace, "nft", "add", "rule", "inet", "t", "c", "udp", "length", "gt", "60",
                        "numgen", "random", "mod", "1000", "<", "8", "drop")
        seconds = max(5, PROBES // (self.SESSIONS * 1000))
        sessions = [
            session("s", probe_count=5000, probe_interval="0.001s", loss_timeout="0.3s", data_size=100,
                    percentiles=[50, 90, 99, 99.9])
        ]
        near.apply({"client": client(*(
            connection(f"c{i}", self.B, sessions, test_interval="0.1s", test_count=str(max(1, seconds // 5)),
                       moving_average_size=3)
            for i in range(self.SESSIONS)
        ))})
        states = lambda: {c["state"] for c in near.call("ClientService", "ListConnections")["connections"]}
        self.wait_for(lambda: states() == {"CONNECTION_STATE_COMPLETED"}, seconds * 3 + 60, 1)
        time.sleep(65)  # the last minute closes

        probes, tests, minutes = collections.defaultdict(list), {}, collections.defaultdict(list)
        stream = near.stream({"earliest": True})
        for message in stream:
            if message.WhichOneof("message") == "sync":
                break
            for record in message.batch.records:
                kind = record.WhichOneof("kind")
                if kind == "probe_results":
                    probes[record.connection] += list(record.probe_results.probes)
                elif kind == "test_result":
                    tests[record.connection, record.test_result.test_number] = record.test_result
                elif kind == "interval_result" and record.interval_result.scope == 5:
                    minutes[record.connection].append(record.interval_result)
        stream.cancel()
        total = sum(map(len, probes.values()))
        self.assertEqual(total, sum(t.figures.probes_sent for t in tests.values()))
        self.assertGreaterEqual(total, PROBES * 0.9)

        worst = 0.0
        for name, all_probes in probes.items():
            all_probes.sort(key=lambda p: p.sent_unix_ns)
            by_test = collections.defaultdict(list)
            for probe in all_probes:
                by_test[probe.test_number].append(probe)
            for number, of_test in by_test.items():
                worst = max(worst, self.compare(numpy, of_test, tests[name, number].figures))
            # Every probe counts in the minute in which it was sent.
            by_minute = collections.Counter(p.sent_unix_ns // 60_000_000_000 for p in all_probes)
            told = {m.start_time.seconds // 60: m.figures.probes_sent for m in minutes[name] if m.figures.probes_sent}
            self.assertEqual(told, dict(by_minute))
        print(f"\n{total} probes in {len(tests)} tests: counts, extremes, moments, jitters, bursts as numpy has them; "
              f"percentiles within {worst * 100:.2f} % of the exact ones")

        # All tests, and the last three, are what their tests are together.
        for scope, last in (("ALL_TESTS", None), ("MOVING_AVERAGE", 3)):
            answer = near.call("ResultsService", "GetStatistics", {"scopes": [f"STATISTICS_SCOPE_{scope}"]})
            self.assertEqual(len(answer["statistics"]), self.SESSIONS)
            for one in answer["statistics"]:
                numbers = sorted(n for c, n in tests if c == one["connection"])[-(last or len(tests)):]
                taken = [p for p in probes[one["connection"]] if p.test_number in numbers and p.status == 1]
                rtt = numpy.array([p.rtt_ns for p in taken], dtype=float)
                told = one["figures"]["rtt"]
                self.assertEqual(int(told["samples"]), len(rtt))
                self.assertEqual((int(told["min_ns"]), int(told["max_ns"])), (rtt.min(), rtt.max()))
                self.assertAlmostEqual(told["mean_ns"], rtt.mean(), delta=1e-6 * rtt.mean())
                self.assertAlmostEqual(told["stddev_ns"], rtt.std(), delta=1e-4 * rtt.std())

    def compare(self, numpy, probes, figures):
        """The largest relative error of a percentile."""
        received = [p for p in probes if p.status == 1]
        lost = [p.status == 2 for p in probes]
        self.assertEqual(figures.probes_received, len(received))
        self.assertEqual(figures.probes_lost, sum(lost))
        self.assertEqual(figures.probes_lost_egress + figures.probes_lost_ingress + figures.probes_lost_unattributed, sum(lost))
        worst = 0.0
        for field in ("rtt", "egress", "ingress"):
            values = numpy.array([getattr(p, f"{field}_ns") for p in received], dtype=float)
            told = getattr(figures, field)
            self.moments(numpy, told, values)
            ordered = numpy.sort(values)
            for percentile in told.percentiles:
                exact = ordered[max(int(numpy.ceil(percentile.percent / 100 * len(ordered))), 1) - 1]
                error = abs(percentile.value_ns - exact) / max(abs(exact), 1)
                # Half of a bucket.
                self.assertLess(error, 2.0 ** -told.histogram.precision, (field, percentile, exact))
                worst = max(worst, error)
            self.assertEqual(sum(told.histogram.counts), len(values))
            pairs = [
                getattr(b, f"{field}_ns") - getattr(a, f"{field}_ns")
                for a, b in zip(probes, probes[1:]) if a.status == b.status == 1
            ]
            self.moments(numpy, getattr(figures, f"{field}_jitter"), numpy.array(pairs, dtype=float))
        # RFC 3550, section 6.4.1; answers came in order.
        jitter = 0.0
        for a, b in zip(received, received[1:]):
            jitter += (abs(b.rtt_ns - a.rtt_ns) - jitter) / 16
        if figures.probes_reordered == 0:
            self.assertAlmostEqual(figures.interarrival_jitter_ns, jitter, delta=20 + jitter * 0.02)
        runs, run = [], 0
        for is_lost in lost:
            if is_lost:
                run += 1
            elif run:
                runs.append(run)
                run = 0
        # Runs at the ends may continue in the previous and next test.
        self.assertLessEqual(abs(figures.loss_bursts.bursts - len(runs)), 1)
        self.assertGreaterEqual(figures.loss_bursts.max_length, max(runs, default=0))
        return worst

    def moments(self, numpy, told, values):
        self.assertEqual(told.samples, len(values))
        self.assertEqual((told.min_ns, told.max_ns), (values.min(), values.max()))
        self.assertAlmostEqual(told.mean_ns, values.mean(), delta=1 + 1e-9 * abs(values.mean()))
        self.assertAlmostEqual(told.stddev_ns, values.std(), delta=1 + 1e-6 * values.std())
        self.assertEqual(told.peak_to_peak_ns, values.max() - values.min())


class Intervals(Case):
    def test_minutes_go_by_the_clock_and_say_whether_they_are_whole(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        api.apply({
            "server": server(port=port),
            "client": client(
                connection("c", "127.0.0.1", [session("s", probe_count=10)], destination_port=port,
                           test_interval="0.1s"),
                connection("brief", "127.0.0.1", [session("s", probe_count=10)], destination_port=port,
                           test_interval="0.1s", retention_age="60s"),
            ),
            "storage": {"retention_age": "600s"},
        })
        scope = "STATISTICS_SCOPE_INTERVAL_1_MINUTE"
        kinds = {"kinds": ["RECORD_KIND_INTERVAL_RESULT"], "connections": ["c"]}
        found = self.wait_for(
            lambda: len(r := [r for r in api.records(filter=kinds)
                              if r["interval_result"]["scope"] == scope]) >= 2 and r, 200, 2)
        first, second = (r["interval_result"] for r in found[:2])
        self.assertTrue(first["suspect"], "the session began in it")
        self.assertFalse(second["suspect"])
        begins, ends = harness.seconds(second["start_time"]), harness.seconds(second["end_time"])
        self.assertEqual((begins % 60, ends - begins), (0, 60))
        self.assertEqual(harness.seconds(first["end_time"]), begins)
        # 10 probes in 1.5 s: 0.9 s, the loss timeout, the interval.
        self.assertTrue(360 <= int(second["figures"]["probes_sent"]) <= 410, second["figures"]["probes_sent"])
        self.brief_records_go(api)
        running = api.call("ResultsService", "GetStatistics", {"include_current_intervals": True, "connections": ["c"]})["statistics"]
        scopes = collections.Counter(s["scope"] for s in running)
        self.assertEqual(scopes[scope], 2)
        for longer in ("15_MINUTES", "1_HOUR", "1_DAY"):
            self.assertGreaterEqual(scopes[f"STATISTICS_SCOPE_INTERVAL_{longer}"], 1)
        day = next(s for s in running if s["scope"] == "STATISTICS_SCOPE_INTERVAL_1_DAY")
        self.assertTrue(day["current"] and day["suspect"])
        self.assertGreaterEqual(int(day["figures"]["probes_sent"]),
                                sum(int(r["interval_result"]["figures"]["probes_sent"]) for r in found[:2]))
        # A restart, without warning: what was counted goes on, and the minute is not whole.
        agent.kill()
        agent.start()
        api.close()
        api = agent.client()
        after = api.call("ResultsService", "GetStatistics",
                         {"scopes": ["STATISTICS_SCOPE_INTERVAL_1_DAY"], "include_current_intervals": True,
                          "connections": ["c"]})["statistics"]
        self.assertGreaterEqual(int(after[-1]["figures"]["probes_sent"]), int(day["figures"]["probes_sent"]) * 0.8)
        time.sleep(2)
        now = api.call("ResultsService", "GetStatistics", {"scopes": [scope], "include_current_intervals": True,
                                                               "connections": ["c"]})["statistics"]
        self.assertTrue(now[-1]["suspect"] and now[-1]["current"])

    def brief_records_go(self, api):
        """Of the connection whose records are kept for a minute none is left that is older than a
        minute, an eighth of that and a window of ten seconds, with some seconds to copy the rest."""
        def age(name):
            records = [r for r in api.records(filter={"connections": [name]}) if "gap" not in r]
            return time.time() - harness.seconds(records[0]["time"])

        self.wait_for(lambda: age("c") > 100, 60, 1)
        oldest = self.wait_for(lambda: (found := age("brief")) < 90 and found, 30, 1)
        self.assertGreater(oldest, 50)
        brief = api.records(filter={"connections": ["brief"]})
        gap, rest = brief[0]["gap"], brief[1:]
        self.assertTrue(all(r["connection"] == "brief" for r in rest))
        # The other has all of its own, and hears nothing of what went.
        other = api.records(filter={"connections": ["c"]})
        self.assertFalse([r for r in other if "gap" in r])
        self.assertLess(int(other[0]["cursor"]), int(gap["last_cursor"]))
        # Statistics are of everything.
        whole = api.call("ResultsService", "GetStatistics",
                         {"connections": ["brief"], "scopes": ["STATISTICS_SCOPE_ALL_TESTS"]})["statistics"][0]
        kept = sum("test_result" in r for r in rest)
        self.assertGreater(int(whole["tests_complete"]), kept + 10)

    def test_statistics_begin_anew_and_history_is_kept_in_memory(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        sessions = [session("s", probe_count=2, probe_interval="0.01s", loss_timeout="0.05s")]
        common = {"destination_port": port, "test_interval": "0.05s"}
        api.apply({
            "server": server(port=port),
            "client": client(
                connection("kept", "127.0.0.1", sessions, **common),
                connection("passing", "127.0.0.1", sessions, persistent_results=False, history_size=5, **common),
            ),
        })
        statistics = lambda **f: {
            (s["connection"], s["scope"].removeprefix("STATISTICS_SCOPE_")): s
            for s in api.call("ResultsService", "GetStatistics", f)["statistics"]
        }
        tests = lambda name: int(statistics().get((name, "ALL_TESTS"), {"tests_complete": 0})["tests_complete"])
        self.wait_for(lambda: tests("kept") > 10 and tests("passing") > 10)
        history = statistics(include_history=True)
        self.assertEqual(len(history["passing", "LAST_TEST"]["history"]), 5)
        numbers = [int(r["test_number"]) for r in history["passing", "LAST_TEST"]["history"]]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 5)))
        self.assertEqual(history["kept", "LAST_TEST"]["history"], [])
        # Streams carry what is not stored.
        live = api.stream({"latest": True, "filter": {"connections": ["passing"]}})
        batch = next(m for m in live if m.WhichOneof("message") == "batch")
        self.assertEqual(batch.batch.records[0].connection, "passing")
        live.cancel()

        self.assertEqual(api.call("ResultsService", "ClearStatistics", {"connections": ["kept"]}), {"sessions_cleared": 1})
        self.assertLess(tests("kept"), 10)
        self.wait_for(lambda: tests("kept") > 0)
        self.assertEqual(statistics()["kept", "ALL_TESTS"]["epoch"], "1")
        self.assertEqual(statistics()["passing", "ALL_TESTS"]["epoch"], "0")
        cleared = self.wait_for(lambda: events(api.records(), "STATISTICS_CLEARED"))
        self.assertEqual(cleared[0]["value"], "1")
        for method, unknown in itertools.product(
            ("ClearStatistics", "GetStatistics"),
            ({"connections": ["nobody"]}, {"sessions": ["nothing"]},
             {"connections": ["kept"], "sessions": ["s", "nothing"]}),
        ):
            with self.subTest(method=method, **unknown), self.assertRaises(grpc.RpcError) as refused:
                api.call("ResultsService", method, unknown)
            self.assertEqual(refused.exception.code(), grpc.StatusCode.NOT_FOUND)
            self.assertRegex(refused.exception.details(), '"no(body|thing)" is not configured')

        self.wait_for(lambda: tests("kept") > 20)
        self.wait_for(lambda: tests("passing") > 40)
        before, passing = tests("kept"), tests("passing")
        self.assertEqual(agent.stop(), 0)
        agent.start()
        api.close()
        api = agent.client()
        self.wait_for(lambda: ("passing", "ALL_TESTS") in statistics())
        self.assertGreaterEqual(tests("kept"), before)
        self.assertEqual(statistics()["kept", "ALL_TESTS"]["epoch"], "1")
        self.assertLess(tests("passing"), passing)
        self.assertEqual([r for r in api.records(filter={"connections": ["passing"]})
                          if "event" not in r and harness.seconds(r["time"]) < time.time() - 60], [])


class Blocks(Case):
    def test_probes_share_records(self):
        for interval in ("0.02s", "0.1s"):
            with self.subTest(interval):
                self.share(interval)

    def share(self, interval):
        port = free_port()
        api = self.agent("a" + interval).client()
        one = session("s", probe_count=100_000, probe_interval=interval)
        api.apply({"server": server(port=port),
                   "client": client(connection("c1", "127.0.0.1", [one], destination_port=port))})
        store = lambda: int(api.call("AgentService", "GetAgent")["store"]["live_bytes"])  # noqa: E731
        blocks = lambda: [  # noqa: E731
            len(r["probe_results"]["probes"]) for r in api.records() if "probe_results" in r
        ]
        self.wait_for(lambda: len(blocks()) > 3)
        # Results of a minute follow it by some seconds; they are records as well, but not of probes.
        while not 10 < time.time() % 60 < 45:
            time.sleep(0.5)
        octets, probes = store(), sum(blocks())
        time.sleep(12)
        octets, found = store() - octets, blocks()
        probes = sum(found) - probes
        print(f"\n{octets / probes:.1f} octets for each probe, {sum(found) / len(found):.1f} probes in a record")
        self.assertGreater(sum(found) / len(found), 8)
        self.assertLess(octets / probes, 16)
        # Records hold the sent probes in order.
        sequences = [p["sequence"] for r in api.records() if "probe_results" in r for p in r["probe_results"]["probes"]]
        self.assertEqual(sequences, sorted(set(sequences)))
        self.assertEqual({p["one_way_validity"] for p in harness.probes(api.records())} - {
            "ONE_WAY_VALIDITY_VALID", "ONE_WAY_VALIDITY_CLOCK_UNSYNCHRONISED"}, set())


class Epochs(Case):
    def test_the_mark_of_an_answered_clear_survives_a_kill(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        names = [f"c{number}" for number in range(8)]
        listen = {"server": server(port=port)}
        config = client(*(connection(name, "127.0.0.1", destination_port=port) for name in names))
        api.apply({**listen, "client": config})
        self.wait_for(lambda: len({t["connection"] for t in api.records() if "test_result" in t}) == 8)
        for epoch in range(1, 6):
            self.assertEqual(api.call("ResultsService", "ClearStatistics", {"all": True}), {"sessions_cleared": 8})
            agent.kill()
            agent.start()
            api = agent.client()
            marks = events(api.records(), "STATISTICS_CLEARED")
            self.assertEqual(len(marks), 8 * epoch)
            found = lambda: api.call(  # noqa: E731
                "ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]}
            )["statistics"]
            self.wait_for(lambda: len(found()) == 8)
            self.assertEqual({one["epoch"] for one in found()}, {str(epoch)})
        current = lambda: api.call(  # noqa: E731
            "ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_CURRENT_TEST"]}
        )["statistics"]
        self.assertEqual({one["epoch"] for one in self.wait_for(current)}, {"5"})


class Crash(Case):
    """SIGKILL at random moments, while twenty thousand results of probes are written each second."""

    def test_what_a_consumer_was_given_is_there(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        sessions = [session("s", probe_count=100000, probe_interval="0.002s", loss_timeout="0.2s")]
        api.apply({
            "server": server(port=port, maximum_sessions=64, maximum_connections=64,
                             maximum_connections_per_client=64),
            "client": client(*(
                connection(f"c{i}", "127.0.0.1", sessions, destination_port=port, test_interval="0.1s")
                for i in range(40)
            )),
        })
        generator = random.Random(7)
        given, position, longest, rates, opened = {}, 0, 0.0, [], []
        for _ in range(KILLS):
            collector = Collector(api, position)
            begun = time.monotonic()
            time.sleep(generator.uniform(0.7, 2.5))
            agent.kill()
            length = time.monotonic() - begun
            collector.join()
            self.assertIsNone(collector.failure)
            self.assertEqual(collector.gaps, [])
            rates.append(collector.probes / length)
            given = collector.given
            position = max(given, default=position)
            killed = time.monotonic()
            agent.start()
            api.close()
            api = agent.client()
            opened.append(time.monotonic() - killed)
            newest = int(api.call("AgentService", "GetAgent")["store"]["latest_cursor"])
            self.assertGreaterEqual(newest, position)
            found = Collector(api, min(given, default=1) - 1, until=position)
            found.join()
            self.assertEqual(found.gaps, [])
            self.assertEqual(set(given) - set(found.given), set())
            changed = [cursor for cursor, octets in given.items() if found.given[cursor] != octets]
            self.assertEqual(changed, [])
        records = self.cursors(api)
        self.assertEqual(records, list(range(records[0], records[0] + len(records))), "no hole")
        store = api.call("AgentService", "GetAgent")["store"]
        print(f"\n{KILLS} kills at {sum(rates) / len(rates):.0f} probe results/s in the mean (at most {max(rates):.0f}): "
              f"{len(records)} records, no hole, nothing lost that was given; up again after at most {max(opened):.2f} s; "
              f"{int(store['live_bytes']) / 1e6:.0f} MB live")

    def cursors(self, api):
        found = []
        stream = api.stream({"earliest": True})
        for message in stream:
            if message.WhichOneof("message") == "sync":
                break
            found += [record.cursor for record in message.batch.records]
        stream.cancel()
        return found


class Collector(threading.Thread):
    """Returns all records after a cursor, encoded."""

    def __init__(self, api, after, until=None):
        super().__init__(daemon=True)
        self.given, self.gaps, self.failure, self.probes, self.until = {}, [], None, 0, until
        self.messages = api.stream({"after_cursor": after})
        self.start()

    def run(self):
        try:
            for message in self.messages:
                for record in message.batch.records:
                    if record.WhichOneof("kind") == "gap":
                        self.gaps.append((record.gap.first_cursor, record.gap.last_cursor))
                    self.probes += len(record.probe_results.probes)
                    self.given[record.cursor] = record.SerializeToString(deterministic=True)
                if self.until is not None and (max(self.given, default=0) >= self.until or message.HasField("sync")):
                    self.messages.cancel()
                    return
        except grpc.RpcError as error:
            # The agent is gone.
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                self.failure = error


class Database(Case):
    """Work on a state directory without a running agent."""

    def db(self, *arguments, code=0):
        done = subprocess.run([harness.AGENT, "db", *arguments], capture_output=True, text=True)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def test_a_state_is_verified_exported_imported_and_compacted(self):
        port = free_port()
        agent = self.agent()
        api = agent.client()
        sessions = [session("s", probe_count=20, probe_interval="0.01s", loss_timeout="0.05s")]
        api.apply({"server": server(port=port), "client": client(
            connection("c", "127.0.0.1", sessions, destination_port=port, test_interval="0.02s"))})
        self.wait_for(lambda: int(api.call("AgentService", "GetAgent")["store"]["records"]) > 100)
        api.call("ResultsService", "AckRecords", {"consumer": "mine", "cursor": 7})
        here = ("--state-dir", agent.directory)
        self.assertIn("in use by another agent", self.db("verify", *here, code=1))
        self.assertEqual(agent.stop(), 0)
        records = self.records_of(agent)
        told = self.db("verify", *here)
        self.assertIn("whole; 1 revisions", told)
        newest = int(re.search(r"cursors 1 to (\d+);", told)[1])
        self.assertGreaterEqual(newest, records[-1])
        self.assertIn("octets on disk before", self.db("compact", *here))
        self.assertIn("whole", self.db("verify", *here))
        file = os.path.join(self.directory, "state.export")
        self.assertIn("items", self.db("export", file, *here))
        self.assertIn("exists", self.db("export", file, *here, code=1))
        self.assertIn("holds a state already", self.db("import", file, *here, code=1))
        there = os.path.join(self.directory, "there")
        self.db("import", file, "--state-dir", there)
        os.rename(agent.directory, agent.directory + ".before")
        os.rename(there, agent.directory)
        again = self.records_of(agent, consumer=7)
        self.assertEqual(again[: len(records)], records)
        # Wrong input is named in the error and leaves no file.
        with open(file, "r+b") as damaged:
            damaged.seek(os.path.getsize(file) // 2)
            damaged.write(b"\xff" * 8)
        self.assertIn("is damaged after", self.db("import", file, "--state-dir", there, code=1))
        self.assertIn("not an export", self.db("import", harness.AGENT, "--state-dir", there, code=1))
        self.assertIn("holds no state", self.db("verify", "--state-dir", there, code=1))
        self.assertIn("No such file", self.db("import", file + ".x", "--state-dir", there, code=1))
        self.db("verify", "--state-dir", self.directory, code=1)

    def records_of(self, agent, consumer=None):
        """The cursors of an agent that does nothing more."""
        agent.start()
        api = agent.client()
        api.call("ClientService", "StopConnections", {"all": True})
        found = [int(r["cursor"]) for r in api.records()]
        if consumer:
            kept = api.call("ResultsService", "ListConsumers")["consumers"]
            self.assertEqual([(c["name"], int(c["cursor"])) for c in kept], [("mine", consumer)])
        self.assertEqual(agent.stop(), 0)
        api.close()
        agent.start()
        api = agent.client()
        found = [int(r["cursor"]) for r in api.records()]
        api.close()
        self.assertEqual(agent.stop(), 0)
        return found


class Disks(Case):
    """Behaviour on a full disk, and afterwards."""

    def test_no_cursor_is_told_twice(self):
        """Whatever ends the agent while nothing is stored: what follows has cursors of its own, behind
        all that was told."""
        for number, end in ((errno.EIO, "kill"), (errno.EROFS, "stop"), (errno.ENOSPC, "kill"), (errno.ENOSPC, "stop")):
            with self.subTest(number=number, end=end):
                agent, fail, mend = self.with_faults(f"agent-{number}-{end}", number)
                port, api = free_port(), agent.client()
                sessions = [session("s", probe_count=2, probe_interval="0.01s", loss_timeout="0.05s")]
                api.apply({"server": server(port=port), "client": client(
                    connection("c", "127.0.0.1", sessions, destination_port=port, test_interval="0.02s"))})
                store = lambda: api.call("AgentService", "GetAgent")["store"]  # noqa: B023, E731
                self.wait_for(lambda: int(store()["records"]) > 30)  # noqa: B023
                stored = int(store()["latest_cursor"])
                live = api.stream({"latest": True})
                fail()
                self.wait_for(lambda: not store()["healthy"])  # noqa: B023
                told, until = 0, time.time() + 2
                while time.time() < until:
                    message = next(live)
                    if message.WhichOneof("message") == "batch":
                        told = message.batch.records[-1].cursor
                self.assertGreater(told, stored + 20)
                live.cancel()
                api.close()
                getattr(agent, end)()
                mend()
                agent.start()
                api = agent.client()
                started = self.wait_for(lambda: (e := events(api.records(), "AGENT_STARTED")) and len(e) == 2 and e[-1])
                cursors = [int(r["cursor"]) for r in api.records() if "gap" not in r]
                self.assertEqual(cursors, sorted(set(cursors)))
                behind = [c for c in cursors if c > stored + 100]
                self.assertGreater(min(behind), told)
                follow = api.stream({"after_cursor": told})
                self.assertGreater(next(m for m in follow if m.WhichOneof("message") == "batch").batch.records[0].cursor, told)
                follow.cancel()
                self.assertTrue(started)
                api.close()
                agent.stop()

    def test_what_was_not_confirmed_goes_back_whatever_the_disk_does(self):
        agent, fail, mend = self.with_faults("agent", errno.EIO)
        api = agent.client()
        idle = lambda name: connection(name, "192.0.2.1", [session("s")])  # noqa: E731
        api.apply({"client": client(idle("a"))})
        api.apply({"client": client(idle("a"), idle("b"))}, confirm_timeout="2s")
        # The copy is lost, and the database is closed by what it refuses.
        os.unlink(os.path.join(self.directory, "agent", "config.last"))
        fail()
        self.assertEqual(api.refused({"client": client(idle("c"))})[0], grpc.StatusCode.UNAVAILABLE)
        names = lambda: [c["name"] for c in api.call("ClientService", "ListConnections")["connections"]]  # noqa: E731
        self.wait_for(lambda: names() == ["a"], 10)
        self.wait_for(lambda: api.call("AgentService", "GetAgent")["applied_revision"] == "1", 5)
        mend()
        get = lambda: api.call("ConfigService", "GetConfig")  # noqa: E731
        config = self.wait_for(lambda: self.stored(get) and get())
        self.assertEqual([(c["path"], c["kind"]) for c in config["changes"]], [("client/b", "CHANGE_KIND_REMOVED")])
        self.wait_for(lambda: api.call("AgentService", "GetAgent")["applied_revision"] == "3", 5)
        self.assertEqual(names(), ["a"])

    @staticmethod
    def stored(get):
        try:
            return get()["revision"]["revision"] == "3"
        except grpc.RpcError:
            return False

    def test_a_full_disk(self):
        disk = os.path.join(self.directory, "disk")
        os.makedirs(disk)
        sh("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk)
        self.stack.callback(sh, "umount", "-l", disk, check=False)
        filling = os.path.join(disk, "filling")

        def fill():
            with open(filling, "wb") as file:
                try:
                    while file.write(bytes(1 << 20)):
                        file.flush()
                except OSError:
                    pass

        self.goes_on_and_recovers(self.agent("disk/agent"), fill, lambda: os.unlink(filling), ("full", "space"))

    def test_a_disk_that_fails(self):
        self.faulty(errno.EIO)

    def test_a_disk_that_became_read_only(self):
        self.faulty(errno.EROFS)

    def faulty(self, number):
        agent, fail, mend = self.with_faults("agent", number)
        self.goes_on_and_recovers(agent, fail, mend, (os.strerror(number).lower(),))

    def with_faults(self, name, number):
        harness.need("gcc")
        library, fault = (os.path.join(self.directory, name + suffix) for suffix in (".so", ".fault"))
        source = os.path.join(harness.ROOT, "tests", "e2e", "disk_faults.c")
        sh("gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl")
        below = os.path.join(self.directory, name, "")
        agent = self.agent(name, environment={"LD_PRELOAD": library, "DISK_FAULT": fault, "DISK_FAULT_BELOW": below})

        def fail():
            with open(fault + ".new", "w") as file:
                file.write(str(number))
            os.rename(fault + ".new", fault)

        return agent, fail, lambda: os.unlink(fault)

    def goes_on_and_recovers(self, agent, disturb, mend, words):
        port = free_port()
        api = agent.client()
        sessions = [session("s", probe_count=50, probe_interval="0.01s", loss_timeout="0.1s")]
        connections = [connection(f"c{i}", "127.0.0.1", sessions, destination_port=port, test_interval="0.05s")
                       for i in range(5)]
        config = {"server": server(port=port), "client": client(*connections)}
        api.apply(config)
        store = lambda: api.call("AgentService", "GetAgent")["store"]
        sent = lambda: sum(int(s["figures"]["probes_sent"]) for s in api.call(
            "ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]})["statistics"])
        self.wait_for(lambda: int(store()["records"]) > 500)
        live = api.stream({"latest": True})
        position = lambda: next(m for m in live if m.WhichOneof("message") == "batch").batch.records[-1].cursor
        tried = {**config, "client": client(*connections, connection("tried", "192.0.2.1", sessions))}
        api.apply(tried, confirm_timeout="4s")
        disturb()
        wrong = self.wait_for(lambda: not (s := store())["healthy"] and s)
        self.assertTrue(any(word in wrong["detail"].lower() for word in words), wrong["detail"])
        before, cursor = sent(), position()
        time.sleep(5)
        self.assertGreater(sent(), before + 500, "measured")
        for _ in range(50):
            later = position()
        self.assertGreater(later, cursor, "told to who follows")
        # An unconfirmed revision is rolled back even though the disk fails, and stored data stays
        # readable.
        names = lambda: [c["name"] for c in api.call("ClientService", "ListConnections")["connections"]]
        self.wait_for(lambda: "tried" not in names(), 10)
        self.assertEqual(len(names()), 5)
        self.assertEqual(api.call("ConfigService", "GetConfig")["revision"]["revision"], "1", "what runs")
        self.assertEqual(len(api.call("ConfigService", "GetConfig", {"revision": 2})["config"]["client"]["control_connections"]), 6)
        self.assertEqual(len(api.call("ConfigService", "GetConfig", {"revision": 1})["config"]["client"]["control_connections"]), 5)
        for refused in (lambda: api.apply({"client": client()}),
                        lambda: api.call("ConfigService", "ConfirmConfig", {"revision": 2})):
            with self.assertRaises(grpc.RpcError) as wrong:
                refused()
            self.assertEqual(wrong.exception.code(), grpc.StatusCode.UNAVAILABLE, wrong.exception.details())
        dropped = int(store()["records_dropped"])
        self.assertGreater(dropped, 0)
        self.assertEqual(api.call("ResultsService", "ClearStatistics", {"connections": ["c0"]}), {"sessions_cleared": 1})
        mend()
        self.wait_for(lambda: store()["healthy"], 30)
        current = self.wait_for(lambda: (c := api.call("ConfigService", "GetConfig"))["revision"]["revision"] == "3" and c)
        self.assertEqual((len(current["config"]["client"]["control_connections"]), current["revision"]["rollback_to"]),
                         (5, "1"))
        newest = int(store()["latest_cursor"])
        self.wait_for(lambda: int(store()["latest_cursor"]) > newest + 100)
        live.cancel()
        self.assertTrue(self.wait_for(lambda: events(api.records(), "STORE_RECOVERED")))
        self.assertGreater(sent(), before)
        # The reset of statistics meanwhile is stored as well.
        epochs = lambda: {s["connection"]: s["epoch"] for s in api.call(
            "ResultsService", "GetStatistics", {"scopes": ["STATISTICS_SCOPE_ALL_TESTS"]})["statistics"]}
        self.assertEqual((epochs()["c0"], epochs()["c1"]), ("1", "0"))
        whole = sent()
        self.assertEqual(agent.stop(), 0)
        agent.start()
        api.close()
        api = agent.client()
        self.assertEqual((epochs()["c0"], epochs()["c1"]), ("1", "0"))
        self.assertGreaterEqual(sent(), whole)
        api.apply({"client": client(*connections[1:]), "server": config["server"]})
        revision = api.call("ConfigService", "GetConfig")["revision"]
        api.apply({"client": client()})
        self.assertEqual(agent.stop(), 0)
        # Records that were delivered but not stored are lost, and the gap is reported.
        agent.start()
        api.close()
        again = agent.client()
        self.assertTrue(again.call("AgentService", "GetAgent")["store"]["healthy"])
        revisions = again.call("ConfigService", "ListRevisions")["revisions"]
        self.assertIn(revision["revision"], [r["revision"] for r in revisions])
        records = again.records()
        gaps = [r["gap"] for r in records if "gap" in r]
        self.assertGreaterEqual(len(gaps), 1)
        gone = sum(int(g["last_cursor"]) - int(g["first_cursor"]) + 1 for g in gaps)
        self.assertGreaterEqual(gone, dropped)
        first, last = int(records[0]["cursor"]), int(records[-1]["cursor"])
        self.assertEqual(last - first + 1, len(records) - len(gaps) + gone, "every cursor is there or told to be gone")


if __name__ == "__main__":
    unittest.main()
