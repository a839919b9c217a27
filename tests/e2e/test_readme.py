"""The commands of the README's tour, run as they stand there."""

import os
import re
import shutil
import subprocess
import unittest

import harness


class Tour(unittest.TestCase):
    def test_every_command_of_the_tour_works(self):
        harness.need("grpcurl")
        with open(os.path.join(harness.ROOT, "README.md")) as file:
            text = file.read()
        tour = text.split("## A five-minute tour")[1].split("\n## ")[0]
        commands = []
        for block in re.findall(r"```console\n(.*?)```", tour, re.S):
            commands += [line[2:] for line in block.splitlines() if line.startswith("$ ")]
        self.assertGreater(len(commands), 15)
        state = "/tmp/twamp-tour"
        shutil.rmtree(state, ignore_errors=True)
        self.addCleanup(shutil.rmtree, state, ignore_errors=True)
        # Job control for %1, as in the shell of a person.
        script = "set -em\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "\n".join(
            f"echo '$' {self.quoted(command)}\n{command}" for command in commands
        ) + "\nwait\n"
        done = subprocess.run(
            ["bash", "-c", script], cwd=harness.ROOT, capture_output=True, text=True, timeout=600
        )
        shown = done.stdout + done.stderr[-3000:]
        self.assertEqual(done.returncode, 0, shown)
        for words in ("revision 1\n  client/loop added (start)", "MANAGED  RUNNING", "loop/voice\n  SCOPE",
                      "verdict   works: a probe to", "COMPLETE, sent", "started: loop",
                      "client/loop changed (session restart): bulk", "unless confirmed", "revision 2 confirmed", "TEST_OUTCOME_COMPLETE",
                      "twamp.agent.v1.ConfigService"):
            self.assertIn(words, done.stdout)

    def test_every_example_is_valid(self):
        examples = os.path.join(harness.ROOT, "examples")
        for name in sorted(os.listdir(examples)):
            shown = harness.sh(harness.AGENT, "check", os.path.join(examples, name))
            self.assertIn("valid", shown, name)

    @staticmethod
    def quoted(text):
        return "'" + text.replace("'", "'\\''") + "'"
